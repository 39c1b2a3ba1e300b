//! Why a task has no output.

use std::any::Any;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use crate::task::TaskId;
use crate::thread::panic::{Payload, payload_text};

/// Why a task has no output.
///
/// # Examples
///
/// ```
/// use corespun::{task, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let request = runner.enter(|| task::spawn_local(std::future::pending::<()>()));
/// // The thread ends, and its tasks with it.
/// drop(runner);
/// let error = futures::executor::block_on(request).unwrap_err();
/// assert!(error.is_thread_exited() && !error.is_cancelled() && !error.is_panic());
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[derive(thiserror::Error)]
#[error("task {id} {cause}")]
pub struct JoinError {
    id: TaskId,
    cause: Cause,
}

enum Cause {
    /// In a mutex only to be `Sync`.
    Panicked(Mutex<Payload>),
    Cancelled,
    Exited,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Panicked(payload) => {
                let payload = payload.lock().unwrap_or_else(PoisonError::into_inner);
                write!(f, "panicked: {}", payload_text(&**payload))
            }
            Cause::Cancelled => f.write_str("was aborted"),
            Cause::Exited => f.write_str("was cancelled by the exit of its thread"),
        }
    }
}

impl JoinError {
    pub(super) fn panicked(id: TaskId, payload: Payload) -> Self {
        JoinError {
            id,
            cause: Cause::Panicked(Mutex::new(payload)),
        }
    }

    pub(in crate::task) fn cancelled(id: TaskId) -> Self {
        JoinError {
            id,
            cause: Cause::Cancelled,
        }
    }

    pub(in crate::task) fn exited(id: TaskId) -> Self {
        JoinError {
            id,
            cause: Cause::Exited,
        }
    }

    /// Whether the task panicked.
    pub fn is_panic(&self) -> bool {
        matches!(self.cause, Cause::Panicked(_))
    }

    /// Whether the task was aborted.
    pub fn is_cancelled(&self) -> bool {
        matches!(self.cause, Cause::Cancelled)
    }

    /// Whether the task's thread exited, or had exited, before it finished.
    pub fn is_thread_exited(&self) -> bool {
        matches!(self.cause, Cause::Exited)
    }

    /// The payload of the task's panic.
    ///
    /// # Errors
    ///
    /// The error itself when the task did not panic.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{task, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let request = runner.enter(|| task::spawn_local(async { panic!("bad request") }));
    /// runner.poll(0, 0);
    /// let error = futures::executor::block_on(request).unwrap_err();
    /// match error.try_into_panic() {
    ///     Ok(payload) => assert_eq!(*payload.downcast::<&str>().unwrap(), "bad request"),
    ///     Err(error) => panic!("aborted, not panicked: {error}"),
    /// }
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn try_into_panic(self) -> Result<Box<dyn Any + Send + 'static>, JoinError> {
        match self.cause {
            Cause::Panicked(payload) => {
                Ok(payload.into_inner().unwrap_or_else(PoisonError::into_inner))
            }
            cause => Err(JoinError { id: self.id, cause }),
        }
    }

    /// The payload of the task's panic, to be passed to
    /// [`std::panic::resume_unwind`].
    ///
    /// # Panics
    ///
    /// When the task did not panic.
    ///
    /// # Examples
    ///
    /// Lets the panic of a task go on in its waiter:
    ///
    /// ```
    /// use corespun::{task, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let request = runner.enter(|| task::spawn_local(async { panic!("bad request") }));
    /// runner.poll(0, 0);
    /// let waiter = std::thread::spawn(move || {
    ///     let error = futures::executor::block_on(request).unwrap_err();
    ///     std::panic::resume_unwind(error.into_panic())
    /// });
    /// let payload = waiter.join().unwrap_err();
    /// assert_eq!(*payload.downcast::<&str>().unwrap(), "bad request");
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    #[track_caller]
    pub fn into_panic(self) -> Box<dyn Any + Send + 'static> {
        match self.try_into_panic() {
            Ok(payload) => payload,
            Err(error) => panic!("into_panic on the error of a task that did not panic: {error}"),
        }
    }

    /// The task's id.
    pub fn id(&self) -> TaskId {
        self.id
    }
}

impl fmt::Debug for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinError({self})")
    }
}
