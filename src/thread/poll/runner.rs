//! The right to poll a thread.
//!
//! The right is unique. As a [`ThreadRunner`] it belongs to an OS thread; as a
//! [`ParkedThread`] it may be sent to another one, which is possible only while
//! the thread holds nothing that must stay.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Whole;
use super::activity::Activity;
use crate::cpu::CpuSet;
use crate::notify::Sleeper;
use crate::thread::SpdkThread;
use crate::thread::local::{Entered, ExitPhase, Local};

/// The right to poll a SpdkThread, on this OS thread.
///
/// There is one per thread, it is not `Send`, and polling borrows it: a thread
/// is never polled twice at once, nor from inside its own poll. Dropping it
/// before the thread has exited cancels what lives on the thread and drops the
/// messages that wait.
///
/// # Examples
///
/// ```
/// use corespun::{task, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let answer = runner.enter(|| task::spawn_local(async { 42 }));
/// while runner.poll(0, 0).is_busy() {}
/// assert_eq!(futures::executor::block_on(answer).unwrap(), 42);
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
///
/// It stays on its OS thread, and polls only from outside:
///
/// ```compile_fail,E0277
/// fn crosses<T: Send>() {}
/// crosses::<corespun::thread::ThreadRunner>();
/// ```
///
/// ```compile_fail,E0499
/// # let library = corespun::thread::ThreadLib::new();
/// let mut runner = library.thread().build().unwrap().attach();
/// runner.enter(|| runner.poll(0, 0));
/// ```
pub struct ThreadRunner {
    pub(in crate::thread) local: Rc<Local>,
}

impl ThreadRunner {
    /// One poll of the thread (`spdk_thread_poll`): runs up to `max_msgs`
    /// messages and ready tasks (0, or more than the thread's batch: the
    /// batch), then every active poller, then what is due at `now`, a tick of
    /// the library's clock (0: it is read). Says whether anything was done.
    ///
    /// The poll begins at `now` and ends when the clock says: a caller that
    /// passes [`SpdkThread::last_tick`] of the poll before as `now` leaves no
    /// time unaccounted.
    ///
    /// # Examples
    ///
    /// A loop of your own; it is idle when nothing of one round was busy:
    ///
    /// ```
    /// use corespun::thread::{Activity, ThreadLib};
    ///
    /// let library = ThreadLib::new();
    /// let mut ring = [library.thread().build()?.attach(), library.thread().build()?.attach()];
    /// ring[1].handle().send_msg(|| ()).unwrap();
    /// let mut round = || ring.iter_mut().map(|thread| thread.poll(0, 0)).max();
    /// assert_eq!(round(), Some(Activity::Busy));
    /// assert_eq!(round(), Some(Activity::Idle));
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    #[inline]
    pub fn poll(&mut self, max_msgs: usize, now: u64) -> Activity {
        self.poll_slice(Whole(max_msgs), now)
    }

    /// Makes the thread the current one while `f` runs, without polling it
    /// (`spdk_set_thread`), to register pollers or spawn tasks from outside.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::thread::{Poller, SpdkThread, ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let poller = runner.enter(|| Poller::active(|| ()))?;
    /// assert_eq!(runner.enter(SpdkThread::current), Some(runner.handle()));
    /// // Nothing has run yet.
    /// assert_eq!(poller.stats().run_count, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn enter<R>(&mut self, f: impl FnOnce() -> R) -> R {
        self.local.interrupts_awake();
        let _asleep = AsleepOnDrop(&self.local);
        let _entered = Entered::new(&self.local);
        f()
    }

    /// The thread's handle.
    pub fn handle(&self) -> SpdkThread {
        SpdkThread::from_shared(self.local.shared.clone())
    }

    /// The thread's name.
    pub fn name(&self) -> &str {
        self.local.shared.name()
    }

    /// Whether the thread was not asked to exit yet.
    pub fn is_running(&self) -> bool {
        self.local.exit_phase.get() == ExitPhase::None
    }

    /// Whether the thread has exited.
    pub fn is_exited(&self) -> bool {
        self.local.exit_phase.get() == ExitPhase::Done
    }

    /// Asks the thread to exit; as [`SpdkThread::exit`].
    pub fn exit(&mut self) -> crate::thread::Exit {
        let handle = self.handle();
        self.enter(|| handle.exit())
    }

    /// The tick at which the last poll ended.
    pub fn last_tick(&self) -> u64 {
        self.local.shared.last_tick.load(Ordering::Relaxed)
    }

    /// Whether an active poller is registered and not paused: one that wants
    /// to run in every poll.
    pub fn has_active_pollers(&self) -> bool {
        self.local.pollers.active_count() > 0
    }

    /// Whether any poller is registered, paused ones included.
    pub fn has_pollers(&self) -> bool {
        self.local.pollers.registered() > 0
    }

    /// Whether a message, a ready task or a critical message waits to be run. Good before
    /// a sleep as [`ThreadRunner::needs_poll`] is.
    pub fn has_messages(&self) -> bool {
        self.local.has_ready_work_before_sleep()
    }

    /// Whether the next poll has something to run apart from timers: then
    /// the OS thread that polls this thread must not sleep. Ask it when the sleep is
    /// announced ([`Sleeper::sleep_unless`]): a sender that sends after it said no
    /// wakes the sleeper. A poll that found nothing says less.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use corespun::{task, thread::ThreadLib, time};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let nap = runner.enter(|| task::spawn_local(time::sleep(Duration::from_secs(1))));
    /// assert!(runner.needs_poll());
    /// runner.poll(0, 0);
    /// // Only a timer is left: the loop may sleep until then.
    /// assert!(!runner.needs_poll() && runner.next_deadline().is_some());
    /// # drop(nap);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn needs_poll(&self) -> bool {
        self.local.needs_poll_before_sleep()
    }

    /// The latest tick to poll this thread at although nothing arrives: its
    /// earliest timer (`spdk_thread_next_poller_expiration`), or the end of its exit's
    /// patience.
    pub fn next_deadline(&self) -> Option<u64> {
        self.local.next_deadline()
    }

    /// A descriptor that is readable whenever this thread, in interrupt mode,
    /// has something to do: an epoll of its messages, its timers and its
    /// interrupts (`spdk_thread_get_interrupt_fd`). For frameworks that wait for
    /// many threads in one epoll; poll the thread when it is readable.
    ///
    /// An active poller without an interrupt of its own keeps it readable. In
    /// poll mode it says nothing. This takes the place of
    /// [`ThreadRunner::set_host`]: use one of the two. Ask again on the OS thread
    /// that a parked thread was moved to.
    ///
    /// # Errors
    ///
    /// [`InterruptError`](crate::thread::InterruptError) when the kernel gives no
    /// descriptors.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{interrupt::{FdGroup, FdOptions}, thread::ThreadLib};
    ///
    /// let mut thread = ThreadLib::new().thread().build()?.attach();
    /// thread.set_interrupt_mode(true)?;
    /// let waiting = FdGroup::new()?;
    /// waiting.add(&thread.interrupt_fd()?, FdOptions::default(), |_| ())?;
    /// let handle = thread.handle();
    /// std::thread::spawn(move || handle.send_msg(|| ()).unwrap());
    /// assert_eq!(waiting.wait(None)?, 1);
    /// assert!(thread.poll(0, 0).is_busy());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn interrupt_fd(&mut self) -> Result<BorrowedFd<'_>, crate::thread::InterruptError> {
        self.local.interrupt_fd()
    }

    /// As [`set_interrupt_mode`](crate::thread::set_interrupt_mode), from outside of a
    /// poll.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn set_interrupt_mode(&mut self, on: bool) -> Result<(), crate::thread::InterruptError> {
        self.enter(|| crate::thread::set_interrupt_mode(on))
    }

    /// Whether the thread is in interrupt mode.
    pub fn is_in_interrupt_mode(&self) -> bool {
        self.local.in_interrupt_mode()
    }

    /// Names the sleeper of the loop that polls this thread: it is notified of
    /// every message while it sleeps. Set it before relying on being woken, and
    /// look at [`ThreadRunner::needs_poll`] before each sleep. The library
    /// keeps the sleeper alive for as long as it lives.
    ///
    /// # Examples
    ///
    /// A loop that sleeps while its thread has nothing to do:
    ///
    /// ```
    /// use std::{sync::Arc, thread};
    /// use corespun::{notify::Sleeper, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let this = thread::current();
    /// let sleeper = Arc::new(Sleeper::new(move || this.unpark()));
    /// runner.set_host(Some(&sleeper));
    /// let handle = runner.handle();
    /// let stopper = thread::spawn(move || drop(handle.exit()));
    /// while !runner.is_exited() {
    ///     runner.poll(0, 0);
    ///     sleeper.sleep_unless(|| runner.needs_poll() || runner.is_exited(), thread::park);
    /// }
    /// stopper.join().unwrap();
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn set_host(&mut self, host: Option<&Arc<Sleeper>>) {
        self.local.shared.set_host(host);
    }

    /// What would keep the thread from exiting now.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{task::TaskBuilder, thread::{ExitHolder, ThreadLib}};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let task = runner.enter(|| {
    ///     TaskBuilder::new().name("scrubber").spawn_local(std::future::pending::<()>())
    /// });
    /// runner.poll(0, 0);
    /// match &runner.exit_holders()[..] {
    ///     [ExitHolder::Task(name)] => assert!(name.starts_with("scrubber")),
    ///     other => panic!("{other:?}"),
    /// }
    /// # drop(task);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn exit_holders(&self) -> Vec<crate::thread::ExitHolder> {
        self.local.exit_holders()
    }

    /// Gives up the right to poll on this OS thread, so that it can be sent
    /// to another one.
    ///
    /// # Errors
    ///
    /// The runner itself, when the thread is *bound*: it holds something that is not
    /// known to be `Send`, such as a task spawned with `spawn_local` or a
    /// [`Poller`](crate::thread::Poller), or there is a handle of such a thing.
    /// [`ThreadRunner::bound_by`] names it.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{task, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let stays = runner.enter(|| task::spawn_local(std::future::pending::<()>()));
    /// // Its future need not be `Send`.
    /// let mut runner = runner.park().unwrap_err();
    /// stays.abort();
    /// runner.poll(0, 0);
    /// assert!(runner.park().is_ok());
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn park(mut self) -> Result<ParkedThread, ThreadRunner> {
        if !self.can_move() {
            return Err(self);
        }
        self.set_host(None);
        self.set_core(None);
        self.set_interrupts_watched(false);
        Ok(ParkedThread { runner: self })
    }

    /// Whether the thread may leave this OS thread: it holds nothing that must not, and
    /// was not bound to it by [`SpdkThread::bind`].
    pub fn can_move(&self) -> bool {
        !self.local.is_bound()
    }

    /// What keeps the thread [where it is](ThreadRunner::can_move), by name, and what would
    /// not be; see [`BoundBy`](crate::thread::BoundBy). Empty if nothing does.
    pub fn bound_by(&self) -> Vec<crate::thread::BoundBy> {
        self.local.bound_by(1)
    }
}

/// When dropped, lets a waiter for the thread's descriptor hear of what was begun
/// meanwhile.
struct AsleepOnDrop<'a>(&'a Local);

impl Drop for AsleepOnDrop<'_> {
    fn drop(&mut self) {
        self.0.interrupts_asleep();
    }
}

impl Drop for ThreadRunner {
    fn drop(&mut self) {
        self.local.abandon();
    }
}

impl fmt::Debug for ThreadRunner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadRunner")
            .field("thread", &self.local.shared.name())
            .finish_non_exhaustive()
    }
}

/// The right to poll a SpdkThread, between two OS threads.
///
/// # Examples
///
/// From one OS thread to another, with all that waits on it:
///
/// ```
/// use corespun::{task, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let task = runner.enter(|| task::spawn(async { std::thread::current().id() }));
/// let parked = runner.park().unwrap();
/// let other = std::thread::spawn(move || {
///     parked.attach().poll(0, 0);
///     std::thread::current().id()
/// });
/// let ran_on = futures::executor::block_on(task).unwrap();
/// assert_eq!(ran_on, other.join().unwrap());
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
pub struct ParkedThread {
    runner: ThreadRunner,
}

// SAFETY: `ThreadRunner::park` and `ThreadBuilder::build` make one only while
// the owner's part holds nothing that is not `Send` (the rule of `bound`) and no
// `Rc` of it is anywhere else; nothing can be added before `attach`. What is `Send` in it may
// be used, and dropped, by the OS thread that has the value.
unsafe impl Send for ParkedThread {}

impl ParkedThread {
    pub(in crate::thread) fn new(local: Rc<Local>) -> Self {
        ParkedThread {
            runner: ThreadRunner { local },
        }
    }

    /// Takes up the right to poll, on this OS thread.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::thread::ThreadLib;
    ///
    /// let parked = ThreadLib::new().thread().build()?;
    /// let mut runner = parked.attach();
    /// assert!(!runner.poll(0, 0).is_busy());
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn attach(self) -> ThreadRunner {
        self.runner
    }

    /// The thread's handle.
    pub fn handle(&self) -> SpdkThread {
        self.runner.handle()
    }

    /// The cores that the thread may be placed on.
    pub fn cpumask(&self) -> CpuSet {
        self.handle().cpumask()
    }
}

impl fmt::Debug for ParkedThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ParkedThread")
            .field("thread", &self.runner.local.shared.name())
            .finish()
    }
}
