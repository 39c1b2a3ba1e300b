//! Joining a task: its handle, its outcome, and the error when there is none.

use std::any::Any;
use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::pin::Pin;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};

use super::TaskId;
use super::raw::{RawTask, TaskMeta, with_running};
use crate::sync::budget::poll_budget;
use crate::thread::local::Local;
use crate::thread::panic::{PanicSource, Payload, contain, discard, payload_text};
use crate::thread::shared::Shared;

/// What a task ended with, on its way to whoever joins it. Dropped unjoined, a
/// panic is reported.
pub(crate) struct Outcome<T>(Option<Ended<T>>);

/// Failures are boxed: every task has room for this beside its future.
enum Ended<T> {
    Finished(T),
    Failed(Box<JoinError>),
    Panicked(Box<Panicked>),
}

struct Panicked {
    id: TaskId,
    payload: Payload,
    thread: Arc<Shared>,
    name: String,
}

impl<T> Outcome<T> {
    pub(super) fn finished(output: T) -> Self {
        Outcome(Some(Ended::Finished(output)))
    }

    pub(super) fn failed(error: JoinError) -> Self {
        Outcome(Some(Ended::Failed(Box::new(error))))
    }

    pub(super) fn panicked(
        id: TaskId,
        payload: Payload,
        thread: Arc<Shared>,
        name: String,
    ) -> Self {
        Outcome(Some(Ended::Panicked(Box::new(Panicked {
            id,
            payload,
            thread,
            name,
        }))))
    }

    fn into_result(mut self, id: TaskId) -> Result<T, JoinError> {
        match self.0.take() {
            Some(Ended::Finished(output)) => Ok(output),
            Some(Ended::Failed(error)) => Err(*error),
            Some(Ended::Panicked(panicked)) => Err(JoinError {
                id: panicked.id,
                cause: Cause::Panicked(Mutex::new(panicked.payload)),
            }),
            None => Err(JoinError::exited(id)),
        }
    }
}

impl<T> Drop for Outcome<T> {
    fn drop(&mut self) {
        match self.0.take() {
            Some(Ended::Panicked(panicked)) => {
                let Panicked {
                    payload,
                    thread,
                    name,
                    ..
                } = *panicked;
                let library = &thread.library;
                if library.panic_is_fatal() {
                    return discard(payload);
                }
                library.report_panic(thread.name(), PanicSource::Task, Some(&name), payload);
            }
            // The output's destructor is the task's own business, and must not
            // reach into async-task, which would abort.
            ended => {
                if let Err(payload) = contain(|| drop(ended)) {
                    let mut payload = Some(payload);
                    Local::with_current(|local| {
                        if let Some(payload) = payload.take() {
                            local.report_panic(PanicSource::Drop, None, payload);
                        }
                    });
                    // Where no thread is current, nobody else can be told.
                    if let Some(payload) = payload {
                        tracing::error!(
                            "an unjoined task's output panicked when dropped: {}",
                            payload_text(&*payload)
                        );
                        discard(payload);
                    }
                }
            }
        }
    }
}

/// The waker of a foreign executor that joins a task: a panic of its code is
/// reported and goes no further.
struct Joiner {
    foreign: Option<Waker>,
}

impl Joiner {
    /// Keeps in `slot` a contained form of `foreign`, made once for polls by
    /// the same waker.
    fn renew<'a>(slot: &'a mut Option<(Arc<Joiner>, Waker)>, foreign: &Waker) -> &'a Waker {
        let same = |(joiner, _): &mut (Arc<Joiner>, Waker)| {
            let kept = joiner.foreign.as_ref();
            kept.is_some_and(|kept| kept.will_wake(foreign))
        };
        let kept = slot.take_if(|kept| !same(kept));
        drop(kept);
        let (_, contained) = slot.get_or_insert_with(|| {
            let joiner = Arc::new(Joiner {
                foreign: Some(foreign.clone()),
            });
            let contained = Waker::from(joiner.clone());
            (joiner, contained)
        });
        contained
    }

    fn contain(f: impl FnOnce()) {
        if let Err(payload) = contain(f) {
            tracing::error!(
                "the waker of a foreign executor panicked: {}",
                payload_text(&*payload)
            );
            discard(payload);
        }
    }
}

impl Wake for Joiner {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(foreign) = &self.foreign {
            Joiner::contain(|| foreign.wake_by_ref());
        }
    }
}

impl Drop for Joiner {
    fn drop(&mut self) {
        Joiner::contain(|| drop(self.foreign.take()));
    }
}

/// Owns the right to learn how a task ended. Awaiting it gives the task's
/// output; dropping it lets the task run on by itself.
///
/// Works from any thread and any executor: it is `Send` if the output is. A task
/// that has ended takes a unit of the budget of the task that awaits it
/// ([`consume_budget`](super::consume_budget)), so that a loop over tasks that end
/// at once gives way.
///
/// # Cancel safety
///
/// Awaiting `&mut handle` may be cancelled and repeated; the waker of the last
/// poll is the one that is woken.
///
/// # Panics
///
/// When it is polled again after it gave the result.
///
/// # Examples
///
/// ```
/// use corespun::{task, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let handle = runner.enter(|| task::spawn_local(async { 6 * 7 }));
/// runner.poll(0, 0);
/// assert!(handle.is_finished());
/// assert_eq!(futures::executor::block_on(handle).unwrap(), 42);
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
///
/// The handle of an output that cannot be sent stays on its OS thread:
///
/// ```compile_fail,E0277
/// fn crosses<T: Send>() {}
/// crosses::<corespun::task::JoinHandle<std::rc::Rc<u8>>>();
/// ```
#[must_use = "dropping a JoinHandle detaches its task"]
pub struct JoinHandle<T> {
    /// `None` only while being dropped. Keeps `meta` alive.
    task: Option<RawTask<T>>,
    meta: NonNull<TaskMeta>,
    /// Set while a foreign executor waits.
    joiner: Option<(Arc<Joiner>, Waker)>,
    /// Whether the result was given out.
    joined: bool,
}

// SAFETY: async-task's handle is `Send` for a `Send` output, and the metadata
// is `Sync`.
unsafe impl<T: Send> Send for JoinHandle<T> {}
// SAFETY: through a shared reference only the metadata and the task's atomic
// state are read.
unsafe impl<T: Send> Sync for JoinHandle<T> {}

impl<T> Unpin for JoinHandle<T> {}
// Nothing of the task is seen half done: what panicked is gone, and its result
// is an error.
impl<T> UnwindSafe for JoinHandle<T> {}
impl<T> RefUnwindSafe for JoinHandle<T> {}

impl<T> JoinHandle<T> {
    /// # Safety
    ///
    /// `meta` is the metadata of `task`.
    pub(super) unsafe fn new(task: RawTask<T>, meta: NonNull<TaskMeta>) -> Self {
        JoinHandle {
            task: Some(task),
            meta,
            joiner: None,
            joined: false,
        }
    }

    fn meta(&self) -> &TaskMeta {
        // SAFETY: it lives in the allocation that `task` keeps alive.
        unsafe { self.meta.as_ref() }
    }

    /// Cancels the task: at its next poll, which this brings about, its future
    /// is dropped on its own thread, and joining it yields
    /// [`JoinError::is_cancelled`]. A task that ends before that ends as if
    /// nothing had happened. Any thread may call this.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{task, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let request = runner.enter(|| task::spawn_local(std::future::pending::<()>()));
    /// request.abort();
    /// runner.poll(0, 0);
    /// assert!(futures::executor::block_on(request).unwrap_err().is_cancelled());
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn abort(&self) {
        // SAFETY: the join handle keeps the allocation alive.
        unsafe { self.meta().abort() }
    }

    /// A handle that can only abort the task.
    ///
    /// # Examples
    ///
    /// One place waits for the task, another may end it:
    ///
    /// ```
    /// use corespun::{task, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let request = runner.enter(|| task::spawn_local(std::future::pending::<()>()));
    /// let abort = request.abort_handle();
    /// std::thread::spawn(move || abort.abort()).join().unwrap();
    /// runner.poll(0, 0);
    /// assert!(futures::executor::block_on(request).unwrap_err().is_cancelled());
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn abort_handle(&self) -> AbortHandle {
        let meta = self.meta();
        AbortHandle {
            // SAFETY: the join handle keeps the allocation alive.
            waker: Waker::clone(&*unsafe { meta.waker() }),
            meta: self.meta,
        }
    }

    /// Whether the task has ended: awaiting the handle would not wait for it.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{task, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let flush = runner.enter(|| task::spawn_local(task::yield_now()));
    /// let mut polls = 0;
    /// while !flush.is_finished() {
    ///     runner.poll(0, 0);
    ///     polls += 1;
    /// }
    /// assert_eq!(polls, 2);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn is_finished(&self) -> bool {
        self.task.as_ref().is_none_or(|task| task.is_finished())
    }

    /// The task's id.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{task, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let request = runner.enter(|| task::spawn_local(std::future::pending::<()>()));
    /// assert_eq!(runner.tasks()[0].id, request.id());
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn id(&self) -> TaskId {
        self.meta().id()
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let id = self.id();
        let this = &mut *self;
        assert!(
            !this.joined,
            "the JoinHandle of task {id} was polled after it had given the result"
        );
        let task = this.task.as_mut().expect("present until dropped");
        // One that has ended is a source that is always ready: a loop over eager
        // tasks makes those without end.
        if task.is_finished() {
            ready!(poll_budget(cx)).progressed();
        }
        // async-task would abort the process where a waker panics. Those of our
        // own tasks do not.
        let trusted = with_running(|running| {
            // SAFETY: the join handle keeps the task alive.
            let join_here = || unsafe { this.meta.as_ref().join_here(running) };
            running
                .is_waker(cx.waker())
                .then(|| !task.is_finished() && join_here())
        });
        let mut polled = Poll::Pending;
        if let Some(Some(joined_here)) = trusted {
            if joined_here {
                return Poll::Pending;
            }
            polled = Pin::new(task).poll(cx);
        } else {
            if task.is_finished() {
                polled = Pin::new(&mut *task).poll(&mut Context::from_waker(Waker::noop()));
            }
            // Pending also where the `Runnable` is just being dropped.
            if polled.is_pending() {
                let joiner = Joiner::renew(&mut this.joiner, cx.waker());
                polled = Pin::new(task).poll(&mut Context::from_waker(joiner));
            }
        }
        this.joined = polled.is_ready();
        polled.map(|outcome| match outcome {
            Some(outcome) => outcome.into_result(id),
            // The `Runnable` was dropped: only the end of a thread does that.
            None => Err(JoinError::exited(id)),
        })
    }
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            if !task.is_finished() {
                // SAFETY: `task` keeps the allocation alive.
                unsafe { self.meta().forget_joiner() };
            }
            task.detach();
        }
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinHandle")
            .field("id", &self.id())
            .field("finished", &self.is_finished())
            .finish()
    }
}

/// Aborts a task without being able to join it. Any thread may use it.
///
/// # Examples
///
/// Clones of it can be kept wherever the wish to cancel may come from:
///
/// ```
/// use corespun::{task, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let request = runner.enter(|| task::spawn_local(std::future::pending::<()>()));
/// let (on_timeout, on_disconnect) = (request.abort_handle(), request.abort_handle());
/// // The task runs on by itself, as its handle is gone, until one of them is used.
/// drop(request);
/// on_disconnect.abort();
/// runner.poll(0, 0);
/// assert!(on_timeout.is_finished());
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
pub struct AbortHandle {
    /// Keeps the task's allocation, and so `meta`, alive.
    waker: Waker,
    meta: NonNull<TaskMeta>,
}

// SAFETY: `TaskMeta` is `Sync`, and is only read here.
unsafe impl Send for AbortHandle {}
// SAFETY: as above.
unsafe impl Sync for AbortHandle {}

impl UnwindSafe for AbortHandle {}
impl RefUnwindSafe for AbortHandle {}

impl AbortHandle {
    fn meta(&self) -> &TaskMeta {
        // SAFETY: the waker keeps the task's allocation alive.
        unsafe { self.meta.as_ref() }
    }

    /// As [`JoinHandle::abort`].
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{task, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let request = runner.enter(|| task::spawn_local(async { "done" }));
    /// let abort = request.abort_handle();
    /// runner.poll(0, 0);
    /// // It has ended: too late to change anything.
    /// abort.abort();
    /// assert_eq!(futures::executor::block_on(request).unwrap(), "done");
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn abort(&self) {
        // SAFETY: the waker keeps the allocation alive.
        unsafe { self.meta().abort() }
    }

    /// Whether the task's future is gone.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{task, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let abort = runner.enter(|| task::spawn_local(async {}).abort_handle());
    /// assert!(!abort.is_finished());
    /// runner.poll(0, 0);
    /// assert!(abort.is_finished());
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn is_finished(&self) -> bool {
        self.meta().finished.load(Ordering::Acquire)
    }

    /// The task's id.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{task, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let request = runner.enter(|| task::spawn_local(async {}));
    /// assert_eq!(request.abort_handle().id(), request.id());
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn id(&self) -> TaskId {
        self.meta().id()
    }
}

impl Clone for AbortHandle {
    fn clone(&self) -> Self {
        AbortHandle {
            waker: self.waker.clone(),
            meta: self.meta,
        }
    }
}

impl fmt::Debug for AbortHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AbortHandle")
            .field("id", &self.id())
            .finish()
    }
}

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
    pub(super) fn cancelled(id: TaskId) -> Self {
        JoinError {
            id,
            cause: Cause::Cancelled,
        }
    }

    pub(super) fn exited(id: TaskId) -> Self {
        JoinError {
            id,
            cause: Cause::Exited,
        }
    }

    /// Whether the task panicked.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{task, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let parser = runner.enter(|| task::spawn_local(async { "5O".parse::<u8>().unwrap() }));
    /// // The panic is the task's end, not the thread's.
    /// runner.poll(0, 0);
    /// assert!(futures::executor::block_on(parser).unwrap_err().is_panic());
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn is_panic(&self) -> bool {
        matches!(self.cause, Cause::Panicked(_))
    }

    /// Whether the task was aborted.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{task, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let request = runner.enter(|| task::spawn_local(std::future::pending::<()>()));
    /// request.abort();
    /// runner.poll(0, 0);
    /// let error = futures::executor::block_on(request).unwrap_err();
    /// assert!(error.is_cancelled());
    /// assert!(error.to_string().ends_with("was aborted"));
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn is_cancelled(&self) -> bool {
        matches!(self.cause, Cause::Cancelled)
    }

    /// Whether the task's thread exited, or had exited, before it finished.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{task, thread::ThreadLib};
    ///
    /// let runner = ThreadLib::new().thread().build()?.attach();
    /// let thread = runner.handle();
    /// drop(runner);
    /// let late = thread.spawn(async { 5 });
    /// assert!(futures::executor::block_on(late).unwrap_err().is_thread_exited());
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
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
    /// Lets the panic of a task go on in whoever waits for it:
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
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{task, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let request = runner.enter(|| task::spawn_local(std::future::pending::<()>()));
    /// let id = request.id();
    /// request.abort();
    /// runner.poll(0, 0);
    /// assert_eq!(futures::executor::block_on(request).unwrap_err().id(), id);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn id(&self) -> TaskId {
        self.id
    }
}

impl fmt::Debug for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinError({self})")
    }
}
