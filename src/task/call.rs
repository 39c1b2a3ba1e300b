//! Request and reply between threads: run something there, have its result here
//! (seastar's `submit_to`).

use std::any::Any;
use std::fmt;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use futures::channel::oneshot;

use super::reply::{CallReply, Callee};
use super::{JoinHandle, TaskBuilder};
use crate::thread::local::Local;
use crate::thread::message::Message;
use crate::thread::panic::{PanicSource, Payload, contain, payload_text};
use crate::thread::{BoundBy, ExitHolder, Exited, SendError, SpdkThread};

/// What carries a reply back. Dropped unanswered, which only the end of the
/// thread or reactor does, it says so by itself. A panic without a waiter is that of
/// the message.
pub(crate) fn request<R: Send + 'static>(
    f: impl FnOnce() -> R + Send + 'static,
    panic_is_fatal: impl FnOnce() -> bool + Send + 'static,
) -> (impl FnOnce() + Send + 'static, Returned<R>) {
    let (sender, reply) = oneshot::channel();
    let run = move || {
        let result = match contain(f) {
            Err(payload) if panic_is_fatal() => resume_unwind(payload),
            result => result,
        };
        // If the waiter has gone, the result is dropped here.
        if let Err(Err(payload)) = sender.send(result) {
            resume_unwind(payload);
        }
    };
    (run, reply)
}

/// Whether the policy is not to go on, though a waiter may receive the panic.
#[cold]
fn panic_is_fatal() -> bool {
    Local::with_current(|local| local.shared.library.panic_is_fatal()) == Some(true)
}

/// Where what was called says what it returned, or its panic.
pub(crate) type Returned<R> = oneshot::Receiver<Result<R, Payload>>;

impl Callee for SpdkThread {
    type Error = CallError;

    fn panicked(&self, payload: Payload) -> CallError {
        CallError::panicked(self.name(), payload)
    }

    fn ended(&mut self) -> CallError {
        CallError::exited(self.name())
    }

    fn report(&self, payload: Payload) {
        let library = &self.shared.library;
        library.report_panic(self.name(), PanicSource::Message, None, payload);
    }
}

/// Calls to a thread from anywhere.
impl SpdkThread {
    /// Runs `f` on this thread, as a message, and waits for what it returns.
    ///
    /// The message is sent now; awaiting is for the result. It does not count
    /// against the thread's message limit: a caller waits for each of its calls,
    /// so it cannot flood the thread. [`SpdkThread::try_call`] counts.
    ///
    /// # Errors
    ///
    /// [`CallError`] when `f` panicked, or the thread exited before it ran it.
    ///
    /// # Cancel safety
    ///
    /// A call that is dropped runs all the same; its result is dropped, by that
    /// thread or by this one, and a panic is reported as that of a message.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::thread::{SpdkThread, ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().name("worker").build()?.attach();
    /// let call = runner.handle().call(|| SpdkThread::current().unwrap().name().len());
    /// runner.poll(0, 0);
    /// assert_eq!(futures::executor::block_on(call).unwrap(), 6);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn call<F, R>(&self, f: F) -> Call<R>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Send + 'static,
    {
        let (run, reply) = request(f, panic_is_fatal);
        // Refused, the request is dropped, and the reply says so.
        drop(self.shared.deliver(run, Message::new));
        Call(CallReply::called(self.clone(), Some(reply)))
    }

    /// What would keep this thread from exiting now: pollers, channels, walks and
    /// tasks, by name, and messages. Asked by a message, as [`SpdkThread::call`].
    ///
    /// # Errors
    ///
    /// As [`SpdkThread::call`].
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::thread::{ExitHolder, Poller, ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let poller = runner.enter(|| Poller::builder().name("watch").register(|| false))?;
    /// let exit = runner.exit();
    /// let holders = runner.handle().exit_holders();
    /// runner.poll(0, 0);
    /// let holders = futures::executor::block_on(holders)?;
    /// assert_eq!(holders, [ExitHolder::Poller("watch".to_owned())]);
    /// # drop((poller, exit));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn exit_holders(&self) -> Call<Vec<ExitHolder>> {
        self.call(|| Local::with_current(Local::exit_holders).unwrap_or_default())
    }

    /// What keeps this thread on its OS thread, by name, so that no scheduler can move
    /// it. Asked by a message, as [`SpdkThread::call`].
    ///
    /// # Errors
    ///
    /// As [`SpdkThread::call`].
    pub fn bound_by(&self) -> Call<Vec<BoundBy>> {
        self.call(Local::current_bound_by)
    }

    /// [`SpdkThread::call`], unless the thread has as many messages outstanding
    /// as it allows, or has exited.
    ///
    /// # Errors
    ///
    /// [`SendError`] with `f`, which was not run.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::thread::ThreadLib;
    ///
    /// let mut worker = ThreadLib::new().thread().message_limit(2).build()?.attach();
    /// let thread = worker.handle();
    /// let accepted = [thread.try_call(|| 1).unwrap(), thread.try_call(|| 2).unwrap()];
    /// // Full; the closure comes back.
    /// let refused = thread.try_call(|| 3).unwrap_err();
    /// worker.poll(0, 0);
    /// let third = thread.try_call(refused.into_message()).unwrap();
    /// worker.poll(0, 0);
    /// assert_eq!(futures::executor::block_on(third).unwrap(), 3);
    /// # drop(accepted);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn try_call<F, R>(&self, f: F) -> Result<Call<R>, SendError<F>>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Send + 'static,
    {
        let f = self.admit(f)?;
        Ok(self.call(f))
    }

    /// Sends `make` to this thread, where it makes a future, which need not be
    /// `Send`, and waits for what that returns.
    ///
    /// # Errors
    ///
    /// [`CallError`] when either panicked, or the thread exited before the end.
    ///
    /// # Cancel safety
    ///
    /// Dropping the call aborts what it started over there, at its next point of
    /// waiting; [`SpdkThread::spawn_with`] starts something that lives on.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::rc::Rc;
    /// use corespun::{task, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let call = runner.handle().call_async(async || {
    ///     let not_send = Rc::new(5);
    ///     task::yield_now().await;
    ///     *not_send
    /// });
    /// runner.poll(0, 0);
    /// runner.poll(0, 0);
    /// assert_eq!(futures::executor::block_on(call).unwrap(), 5);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    #[track_caller]
    pub fn call_async<M, F>(&self, make: M) -> CallAsync<F::Output>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future + 'static,
        F::Output: Send + 'static,
    {
        CallAsync {
            handle: TaskBuilder::new().spawn_with_on(self, make),
            thread: self.clone(),
        }
    }

    /// [`SpdkThread::call_async`], unless the thread has as many messages
    /// outstanding as it allows, or has exited.
    ///
    /// # Errors
    ///
    /// [`SendError`] with `make`, which was not run.
    #[track_caller]
    pub fn try_call_async<M, F>(&self, make: M) -> Result<CallAsync<F::Output>, SendError<M>>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future + 'static,
        F::Output: Send + 'static,
    {
        let make = self.admit(make)?;
        Ok(self.call_async(make))
    }

    /// Gives `content` back as an error if the thread is full or has exited.
    fn admit<C>(&self, content: C) -> Result<C, SendError<C>> {
        if self.is_exited() {
            return Err(SendError::exited(self.name(), content));
        }
        if self.shared.is_full() {
            return Err(SendError::full(
                self.name(),
                self.shared.message_limit(),
                content,
            ));
        }
        Ok(content)
    }
}

/// Why a call has no result.
///
/// # Examples
///
/// ```
/// use corespun::{task::CallError, thread::ThreadLib};
///
/// let runner = ThreadLib::new().thread().name("disk").build()?.attach();
/// let call = runner.handle().call(|| 5);
/// drop(runner);
/// let error = futures::executor::block_on(call).unwrap_err();
/// assert!(matches!(&error, CallError::Exited(exited) if exited.thread() == "disk"));
/// assert_eq!(error.to_string(), r#"thread "disk" exited before it finished the call"#);
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// What was called panicked.
    #[error("a call to thread {thread:?} panicked: {}", text(.payload))]
    Panicked {
        /// The thread's name.
        thread: String,
        /// The panic's payload, in a mutex only to be `Sync`.
        payload: Mutex<Box<dyn Any + Send + 'static>>,
    },
    /// No helper thread could be started for a blocking call.
    #[error("cannot start a helper thread: {source}; raise the limit on processes, or call later")]
    NoHelper {
        /// What the system said.
        source: std::io::Error,
    },
    /// The thread exited before the call ended, or had exited.
    #[error(transparent)]
    Exited(#[from] Exited),
}

fn text(payload: &Mutex<Payload>) -> String {
    let payload = payload.lock().unwrap_or_else(PoisonError::into_inner);
    payload_text(&**payload).to_owned()
}

impl CallError {
    pub(crate) fn panicked(thread: &str, payload: Payload) -> Self {
        CallError::Panicked {
            thread: thread.to_owned(),
            payload: Mutex::new(payload),
        }
    }

    pub(crate) fn exited(thread: &str) -> Self {
        Exited::new(thread, "exited before it finished the call").into()
    }

    /// Whether what was called panicked.
    pub fn is_panic(&self) -> bool {
        matches!(self, CallError::Panicked { .. })
    }

    /// Whether the thread exited before the call ended.
    pub fn is_exited(&self) -> bool {
        matches!(self, CallError::Exited(_))
    }
}

impl fmt::Debug for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CallError({self})")
    }
}

/// The future of [`SpdkThread::call`].
///
/// # Examples
///
/// Several calls run on their threads at the same time:
///
/// ```
/// use corespun::thread::ThreadLib;
/// use futures::future::try_join_all;
///
/// let library = ThreadLib::new();
/// let mut runners = [library.thread().build()?.attach(), library.thread().build()?.attach()];
/// let calls = runners.each_ref().map(|runner| runner.handle().call(|| 21));
/// runners.iter_mut().for_each(|runner| _ = runner.poll(0, 0));
/// let results = futures::executor::block_on(try_join_all(calls)).unwrap();
/// assert_eq!(results.into_iter().sum::<i32>(), 42);
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[must_use = "the call runs without being awaited, but its result is lost; `send_msg` is for that"]
pub struct Call<R>(CallReply<R, SpdkThread>);

impl<R> Future for Call<R> {
    type Output = Result<R, CallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl<R> fmt::Debug for Call<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("thread", self.0.asker().callee())
            .finish_non_exhaustive()
    }
}

/// The future of [`SpdkThread::call_async`]; dropping it aborts the call.
///
/// # Examples
///
/// What it started goes with it:
///
/// ```
/// use std::sync::Arc;
/// use corespun::thread::ThreadLib;
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let request = Arc::new("read");
/// let held = request.clone();
/// let call = runner.handle().call_async(async move || {
///     std::future::pending::<()>().await;
///     drop(held);
/// });
/// runner.poll(0, 0);
/// assert_eq!(Arc::strong_count(&request), 2);
/// drop(call);
/// runner.poll(0, 0);
/// assert_eq!(Arc::strong_count(&request), 1);
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[must_use = "dropping an async call aborts it; `spawn_with` starts something that lives on"]
pub struct CallAsync<R> {
    handle: JoinHandle<R>,
    thread: SpdkThread,
}

impl<R> Future for CallAsync<R> {
    type Output = Result<R, CallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let joined = ready!(Pin::new(&mut self.handle).poll(cx));
        Poll::Ready(joined.map_err(|error| match error.try_into_panic() {
            Ok(payload) => CallError::panicked(self.thread.name(), payload),
            Err(_) => CallError::exited(self.thread.name()),
        }))
    }
}

impl<R> Drop for CallAsync<R> {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

impl<R> fmt::Debug for CallAsync<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallAsync")
            .field("thread", &self.thread)
            .finish_non_exhaustive()
    }
}
