//! Waiting for a task, and ending it.

use std::any::Any;
use std::fmt;
use std::io;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use corespun::task as core;
use tokio::task::coop::poll_proceed;

use super::Id;
use super::slot::{Abort, Slot};
use super::tracked::Output;

/// Waits for a task, on any OS thread and in any runtime.
///
/// Dropped, it detaches the task, which goes on.
///
/// # Cancel safety
///
/// Cancel safe: the result stays until it is taken.
pub struct JoinHandle<T> {
    task: Task<T>,
    id: Id,
}

enum Task<T> {
    /// On a SpdkThread.
    Thread(core::JoinHandle<Output<T>>),
    /// On a helper thread, or in a `LocalSet`.
    Slot(Arc<Slot<T>>),
}

impl<T> Unpin for JoinHandle<T> {}
impl<T> UnwindSafe for JoinHandle<T> {}
impl<T> RefUnwindSafe for JoinHandle<T> {}

impl<T> JoinHandle<T> {
    pub(crate) fn of_task(task: core::JoinHandle<Output<T>>, id: Id) -> Self {
        let task = Task::Thread(task);
        JoinHandle { task, id }
    }

    pub(crate) fn of_slot(slot: Arc<Slot<T>>) -> Self {
        let id = slot.id();
        let task = Task::Slot(slot);
        JoinHandle { task, id }
    }

    /// Cancels the task: its future is dropped where it runs, and who waits gets a
    /// [`JoinError`] that says so. One that has ended is not changed; one of
    /// [`spawn_blocking`](super::spawn_blocking) is only cancelled before it runs.
    pub fn abort(&self) {
        match &self.task {
            Task::Thread(task) => task.abort(),
            Task::Slot(slot) => slot.abort(),
        }
    }

    /// Whether the task has ended, one way or another. Not yet when it was just aborted.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        match &self.task {
            Task::Thread(task) => task.is_finished(),
            Task::Slot(slot) => slot.is_finished(),
        }
    }

    /// A handle that can only abort the task.
    #[must_use]
    pub fn abort_handle(&self) -> AbortHandle
    where
        T: 'static,
    {
        let task = match &self.task {
            Task::Thread(task) => AbortTask::Thread(task.abort_handle()),
            Task::Slot(slot) => AbortTask::Slot(slot.abort_part()),
        };
        AbortHandle { task, id: self.id }
    }

    /// The task's id.
    #[must_use]
    pub fn id(&self) -> Id {
        self.id
    }
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        if let Task::Slot(slot) = &self.task {
            slot.unwanted();
        }
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let budget = ready!(poll_proceed(cx));
        let id = self.id;
        let result = match &mut self.task {
            Task::Thread(task) => match ready!(Pin::new(task).poll(cx)) {
                Ok(output) => Ok(output.take()),
                Err(error) => Err(JoinError::of_core(id, error)),
            },
            Task::Slot(slot) => ready!(slot.poll_join(cx)),
        };
        budget.made_progress();
        Poll::Ready(result)
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinHandle").field("id", &self.id).finish()
    }
}

/// Aborts a task, without the right to its result.
#[derive(Clone)]
pub struct AbortHandle {
    task: AbortTask,
    id: Id,
}

#[derive(Clone)]
enum AbortTask {
    Thread(core::AbortHandle),
    Slot(Arc<Abort>),
}

impl UnwindSafe for AbortHandle {}
impl RefUnwindSafe for AbortHandle {}

impl AbortHandle {
    /// As [`JoinHandle::abort`].
    pub fn abort(&self) {
        match &self.task {
            AbortTask::Thread(task) => task.abort(),
            AbortTask::Slot(slot) => slot.abort(),
        }
    }

    /// As [`JoinHandle::is_finished`].
    #[must_use]
    pub fn is_finished(&self) -> bool {
        match &self.task {
            AbortTask::Thread(task) => task.is_finished(),
            AbortTask::Slot(slot) => slot.is_finished(),
        }
    }

    /// The task's id.
    #[must_use]
    pub fn id(&self) -> Id {
        self.id
    }
}

impl fmt::Debug for AbortHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AbortHandle").field("id", &self.id).finish()
    }
}

/// Why a task gave no result: it was cancelled, or it panicked.
pub struct JoinError {
    id: Id,
    cause: Cause,
}

enum Cause {
    Cancelled,
    /// The payload is `Send` only; nobody looks at it through a shared reference
    /// without the lock.
    Panicked(Mutex<Box<dyn Any + Send + 'static>>),
}

impl JoinError {
    pub(crate) fn cancelled(id: Id) -> Self {
        let cause = Cause::Cancelled;
        JoinError { id, cause }
    }

    pub(crate) fn panicked(id: Id, payload: Box<dyn Any + Send + 'static>) -> Self {
        let cause = Cause::Panicked(Mutex::new(payload));
        JoinError { id, cause }
    }

    /// The end of its thread is a task's cancellation, as the end of a runtime is.
    fn of_core(id: Id, error: core::JoinError) -> Self {
        match error.try_into_panic() {
            Ok(payload) => JoinError::panicked(id, payload),
            Err(_) => JoinError::cancelled(id),
        }
    }

    /// Whether the task was cancelled: aborted, or ended with its runtime.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        matches!(self.cause, Cause::Cancelled)
    }

    /// Whether the task panicked.
    #[must_use]
    pub fn is_panic(&self) -> bool {
        matches!(self.cause, Cause::Panicked(_))
    }

    /// The payload of the task's panic.
    ///
    /// # Panics
    ///
    /// When the task did not panic.
    #[track_caller]
    #[must_use]
    pub fn into_panic(self) -> Box<dyn Any + Send + 'static> {
        self.try_into_panic()
            .expect("`JoinError` reason is not a panic.")
    }

    /// The payload of the task's panic, if it panicked.
    ///
    /// # Errors
    ///
    /// This error, if not.
    pub fn try_into_panic(self) -> Result<Box<dyn Any + Send + 'static>, JoinError> {
        match self.cause {
            Cause::Panicked(payload) => {
                Ok(payload.into_inner().unwrap_or_else(PoisonError::into_inner))
            }
            Cause::Cancelled => Err(self),
        }
    }

    /// The task's id.
    #[must_use]
    pub fn id(&self) -> Id {
        self.id
    }

    /// What the panic said, if it was text.
    fn panic_text(&self) -> Option<String> {
        let Cause::Panicked(payload) = &self.cause else {
            return None;
        };
        let payload = payload.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(text) = payload.downcast_ref::<String>() {
            return Some(text.clone());
        }
        payload
            .downcast_ref::<&'static str>()
            .map(|text| (*text).to_owned())
    }
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.cause, self.panic_text()) {
            (Cause::Cancelled, _) => write!(f, "task {} was cancelled", self.id),
            (_, Some(text)) => write!(f, "task {} panicked with message {text:?}", self.id),
            (_, None) => write!(f, "task {} panicked", self.id),
        }
    }
}

impl fmt::Debug for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.cause, self.panic_text()) {
            (Cause::Cancelled, _) => write!(f, "JoinError::Cancelled({:?})", self.id),
            (_, Some(text)) => write!(f, "JoinError::Panic({:?}, {text:?}, ...)", self.id),
            (_, None) => write!(f, "JoinError::Panic({:?}, ...)", self.id),
        }
    }
}

impl std::error::Error for JoinError {}

impl From<JoinError> for io::Error {
    fn from(error: JoinError) -> io::Error {
        io::Error::other(match error.cause {
            Cause::Cancelled => "task was cancelled",
            Cause::Panicked(_) => "task panicked",
        })
    }
}
