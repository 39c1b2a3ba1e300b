//! The handle of a thread, for use on any OS thread.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::exit::Exit;
use super::library::ThreadLib;
use super::local::{self, Local};
use super::poll::message;
use super::shared::Shared;
use super::{CriticalMsgError, SendError, ThreadState, ThreadStats};
use crate::sync::PostError;

/// A handle of a SpdkThread (`struct spdk_thread *`): sends it messages and
/// looks at it, from any OS thread. It does not keep the thread from exiting,
/// and everything on it works, or says no, after that.
///
/// # Examples
///
/// Any OS thread may hold one and send with it:
///
/// ```
/// use corespun::thread::{SpdkThread, ThreadLib};
///
/// fn log_from(thread: SpdkThread) {
///     std::thread::spawn(move || thread.send_msg(|| ()).unwrap()).join().unwrap();
/// }
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let thread = runner.handle();
/// log_from(thread.clone());
/// assert!(runner.poll(0, 0).is_busy());
/// // It outlives the thread, and says so.
/// drop(runner);
/// assert!(thread.is_exited() && thread.send_msg(|| ()).is_err());
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[derive(Clone)]
pub struct SpdkThread {
    pub(crate) shared: Arc<Shared>,
}

impl SpdkThread {
    pub(crate) fn from_shared(shared: Arc<Shared>) -> Self {
        SpdkThread { shared }
    }

    /// The SpdkThread that this OS thread is polling or has entered
    /// (`spdk_get_thread`).
    pub fn current() -> Option<SpdkThread> {
        Local::with_current(|local| SpdkThread::from_shared(local.shared.clone()))
    }

    /// Whether this thread is the current one.
    pub fn is_current(&self) -> bool {
        self.shared.current_local().is_some()
    }

    /// Sends a message: `f` is run once by the thread, in a later poll, also
    /// when sent by the thread to itself (`spdk_thread_send_msg`). Messages run in
    /// the order sent, by whomever and from wherever: when one that a thread sends
    /// itself runs, all that was sent to it before has run. A task that the thread
    /// itself wakes or spawns keeps its place among the thread's own messages, and
    /// takes turns with those of others.
    ///
    /// # Errors
    ///
    /// [`SendError`] with `f` in it when the thread has exited, or when as
    /// many messages are outstanding as its limit allows.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::mpsc;
    /// use corespun::thread::ThreadLib;
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let (sender, done) = mpsc::channel();
    /// for request in ["write", "flush"] {
    ///     let sender = sender.clone();
    ///     runner.handle().send_msg(move || sender.send(request).unwrap()).unwrap();
    /// }
    /// assert!(done.try_recv().is_err());
    /// runner.poll(0, 0);
    /// assert!(done.try_iter().eq(["write", "flush"]));
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    ///
    /// What it holds must be `Send`:
    ///
    /// ```compile_fail,E0277
    /// # let thread = corespun::thread::ThreadLib::new().thread().build().unwrap().handle();
    /// let not_send = std::rc::Rc::new(1);
    /// thread.send_msg(move || drop(not_send));
    /// ```
    pub fn send_msg<F: FnOnce() + Send + 'static>(&self, f: F) -> Result<(), SendError<F>> {
        self.shared.send(f)
    }

    /// Runs `f` now if this thread is the current one, else sends it
    /// (`spdk_thread_exec_msg`).
    ///
    /// # Errors
    ///
    /// As [`SpdkThread::send_msg`].
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{sync::mpsc, thread};
    /// use corespun::thread::ThreadLib;
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let (sender, done) = mpsc::channel();
    /// let (handle, second) = (runner.handle(), sender.clone());
    /// // On the thread, nothing is queued.
    /// runner.enter(|| handle.exec_msg(move || sender.send("now").unwrap())).unwrap();
    /// assert_eq!(done.try_recv(), Ok("now"));
    /// handle.exec_msg(move || second.send("sent").unwrap()).unwrap();
    /// assert!(done.try_recv().is_err());
    /// runner.poll(0, 0);
    /// assert_eq!(done.try_recv(), Ok("sent"));
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn exec_msg<F: FnOnce() + Send + 'static>(&self, f: F) -> Result<(), SendError<F>> {
        if self.is_current() {
            f();
            return Ok(());
        }
        self.send_msg(f)
    }

    /// Posts a critical message: a plain function that the thread runs before
    /// anything else in its next poll (`spdk_thread_send_critical_msg`).
    /// Async-signal-safe. There is one place for it.
    ///
    /// # Errors
    ///
    /// [`CriticalMsgError`] while an earlier one is pending or running, and
    /// when the thread has exited.
    ///
    /// # Examples
    ///
    /// What a signal handler may do:
    ///
    /// ```
    /// use std::sync::atomic::{AtomicBool, Ordering};
    /// use corespun::thread::ThreadLib;
    ///
    /// static STOP: AtomicBool = AtomicBool::new(false);
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// runner.handle().send_critical_msg(|| STOP.store(true, Ordering::Relaxed))?;
    /// runner.poll(0, 0);
    /// assert!(STOP.load(Ordering::Relaxed));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn send_critical_msg(&self, f: fn()) -> Result<(), CriticalMsgError> {
        match self.shared.critical.post(f) {
            Ok(()) => {
                self.shared.notify_host_critical();
                Ok(())
            }
            Err(PostError::Pending) => Err(CriticalMsgError::Pending),
            Err(PostError::Closed) => Err(CriticalMsgError::Exited),
        }
    }

    /// Asks the thread to exit (`spdk_thread_exit`): in its own poll, its tasks
    /// of that moment are cancelled, and it reads EXITED once no poller, task
    /// or message is left, at the latest after its exit timeout. Asking again
    /// changes nothing. Awaiting the result waits for the end.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{task, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let idle = runner.handle().spawn(std::future::pending::<()>());
    /// let exit = runner.handle().exit();
    /// while !runner.is_exited() {
    ///     runner.poll(0, 0);
    /// }
    /// task::block_on(exit);
    /// // Its tasks were cancelled on the way.
    /// assert!(task::block_on(idle).unwrap_err().is_thread_exited());
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn exit(&self) -> Exit {
        let exit = Exit {
            shared: self.shared.clone(),
        };
        match self.shared.current_local() {
            Some(local) => local.request_exit(),
            None => {
                let request = message::Message::new(|| {
                    Local::with_current(Local::request_exit);
                });
                // Refused only by a thread that is past this already.
                let _ = self.shared.enqueue(request);
            }
        }
        exit
    }

    /// A number unique within the library instance, never reused.
    pub fn id(&self) -> u64 {
        self.shared.id
    }

    /// The name given, or one made of the id.
    pub fn name(&self) -> &str {
        self.shared.name()
    }

    /// Whether a SpdkThread is current on this OS thread. As
    /// [`SpdkThread::current`], without making a handle of it.
    #[inline]
    #[must_use]
    pub fn has_current() -> bool {
        !local::current_ptr().is_null()
    }

    /// Asks the framework not to move the thread, whatever its mask says, or
    /// takes that back (`spdk_thread_bind`). The mask is not touched.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::thread::ThreadLib;
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// runner.handle().bind(true);
    /// // Refused, though nothing on the thread has to stay.
    /// let runner = runner.park().unwrap_err();
    /// runner.handle().bind(false);
    /// assert!(runner.park().is_ok());
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn bind(&self, bind: bool) {
        self.shared.bound.store(bind, Ordering::Release);
        // The OS thread that polls it may have waited for that to move it.
        self.shared.notify_host();
    }

    /// Whether the framework was asked not to move the thread. See
    /// [`ThreadRunner::can_move`](super::ThreadRunner::can_move) for whether it cannot.
    pub fn is_bound(&self) -> bool {
        self.shared.bound.load(Ordering::Acquire)
    }

    /// The value that [`ThreadBuilder::context`](super::ThreadBuilder::context) attached for
    /// the framework, if it is a `T` (`spdk_thread_get_ctx`).
    pub fn context<T: 'static>(&self) -> Option<&T> {
        self.shared.context.as_ref()?.downcast_ref()
    }

    /// Where the thread stands in its life.
    pub fn state(&self) -> ThreadState {
        self.shared.state()
    }

    /// Whether the thread has exited.
    pub fn is_exited(&self) -> bool {
        self.state() == ThreadState::Exited
    }

    /// Whether the thread was not asked to exit yet.
    pub fn is_running(&self) -> bool {
        self.state() == ThreadState::Running
    }

    /// How its time was spent so far. Never stops the thread.
    ///
    /// # Examples
    ///
    /// Two samples make a load:
    ///
    /// ```
    /// use corespun::thread::ThreadLib;
    ///
    /// let (clock, hand) = corespun::clock::Clock::virtual_at(1_000_000);
    /// let mut runner = ThreadLib::builder().clock(clock).build().thread().build()?.attach();
    /// let before = runner.handle().stats();
    /// let work = hand.clone();
    /// runner.handle().send_msg(move || _ = work.advance(30)).unwrap();
    /// runner.poll(0, 0);
    /// hand.advance(70);
    /// // Counted from the end of the last poll.
    /// runner.poll(0, runner.last_tick());
    /// let after = runner.handle().stats();
    /// let busy = after.busy_ticks - before.busy_ticks;
    /// let idle = after.idle_ticks - before.idle_ticks;
    /// assert_eq!(100 * busy / (busy + idle), 30);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn stats(&self) -> ThreadStats {
        self.shared.stats()
    }

    /// The tick at which its last poll ended (`spdk_thread_get_last_tsc`).
    pub fn last_tick(&self) -> u64 {
        self.shared.last_tick.load(Ordering::Relaxed)
    }

    /// The library instance it belongs to.
    pub fn library(&self) -> ThreadLib {
        ThreadLib {
            inner: self.shared.library.clone(),
        }
    }
}

impl PartialEq for SpdkThread {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl Eq for SpdkThread {}

impl fmt::Debug for SpdkThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpdkThread")
            .field("id", &self.id())
            .field("name", &self.name())
            .field("state", &self.state())
            .finish()
    }
}
