//! The library instance: the registry of threads, the clock, the panic policy
//! and the framework that places new threads. Nothing of it is process-wide;
//! two instances live side by side without knowing of each other.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use super::builder::ThreadBuilder;
use super::panic::{
    ContainedPanic, PanicSource, Payload, contain, discard, drop_logged, payload_text,
};
use super::runner::ParkedThread;
use super::shared::Shared;
use super::stall::{Stall, StallHook};
use super::{CreateError, SetCpumaskError, SpdkThread, ThreadState};
use crate::clock::Clock;
use crate::cpu::{self, CpuSet};
use crate::io::helpers::Helpers;
use crate::notify::Sleeper;

/// What places new threads on something that polls them: the reactors, or a
/// scheduler of your own (SPDK's `new_thread_fn`).
///
/// # Examples
///
/// One OS thread that polls whatever was created, in turn:
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use corespun::thread::{CreateError, Framework, ParkedThread, ThreadLib};
///
/// #[derive(Default)]
/// struct Arrivals(Mutex<Vec<ParkedThread>>);
///
/// impl Framework for Arrivals {
///     fn place(&self, thread: ParkedThread) -> Result<(), CreateError> {
///         self.0.lock().unwrap().push(thread);
///         Ok(())
///     }
/// }
///
/// let arrivals = Arc::new(Arrivals::default());
/// let library = ThreadLib::new();
/// library.set_framework(arrivals.clone())?;
/// let calls = [library.thread().create()?.call(|| 1), library.thread().create()?.call(|| 2)];
///
/// let mut ring: Vec<_> = arrivals.0.lock().unwrap().drain(..).map(ParkedThread::attach).collect();
/// for thread in &mut ring {
///     thread.poll(0, 0);
/// }
/// let results = futures::executor::block_on(futures::future::try_join_all(calls))?;
/// assert_eq!(results, [1, 2]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Framework: Send + Sync + 'static {
    /// Takes a new thread, to attach and poll it somewhere. Called by
    /// [`ThreadBuilder::create`], on the creating OS thread, with no lock held.
    ///
    /// # Errors
    ///
    /// The error of the caller's `create`; dropping `thread` destroys it.
    ///
    /// # Examples
    ///
    /// A framework may refuse, and the thread is gone as if it had never been there:
    ///
    /// ```
    /// use std::sync::Arc;
    /// use corespun::thread::{CreateError, Framework, ParkedThread, ThreadLib};
    ///
    /// struct Closed;
    ///
    /// impl Framework for Closed {
    ///     fn place(&self, _thread: ParkedThread) -> Result<(), CreateError> {
    ///         Err(CreateError::Stopping)
    ///     }
    /// }
    ///
    /// let library = ThreadLib::new();
    /// library.set_framework(Arc::new(Closed))?;
    /// assert!(matches!(library.thread().create(), Err(CreateError::Stopping)));
    /// assert_eq!(library.thread_count(), 0);
    /// # Ok::<(), corespun::thread::FrameworkSet>(())
    /// ```
    fn place(&self, thread: ParkedThread) -> Result<(), CreateError>;

    /// Hears that `thread`, the current one, asks for another mask (SPDK's
    /// `SPDK_THREAD_OP_RESCHED`): look at [`SpdkThread::cpumask`] after the
    /// poll and move it if it must. Unless overridden, refuses. Who awaits
    /// [`SpdkThread::set_cpumask_async`] waits for
    /// [`ThreadRunner::set_core`](super::ThreadRunner::set_core).
    ///
    /// # Errors
    ///
    /// The error of the caller's [`SpdkThread::set_cpumask`]; the mask stays
    /// as it is then.
    ///
    /// # Examples
    ///
    /// The mask is looked at when the poll is over:
    ///
    /// ```
    /// use std::sync::{Arc, Mutex};
    /// use corespun::cpu::CpuSet;
    /// use corespun::thread::{CreateError, Framework, ParkedThread, SetCpumaskError};
    /// use corespun::thread::{SpdkThread, ThreadLib};
    ///
    /// #[derive(Default)]
    /// struct Moves(Mutex<Vec<SpdkThread>>);
    ///
    /// impl Framework for Moves {
    ///     fn place(&self, _thread: ParkedThread) -> Result<(), CreateError> {
    ///         Ok(())
    ///     }
    ///
    ///     fn reschedule(&self, thread: &SpdkThread, _mask: &CpuSet) -> Result<(), SetCpumaskError> {
    ///         self.0.lock().unwrap().push(thread.clone());
    ///         Ok(())
    ///     }
    /// }
    ///
    /// let (library, moves) = (ThreadLib::new(), Arc::new(Moves::default()));
    /// library.set_framework(moves.clone())?;
    /// let mut runner = library.thread().build()?.attach();
    /// runner.enter(|| SpdkThread::current().unwrap().set_cpumask(&CpuSet::single(1)))?;
    /// let asked = moves.0.lock().unwrap().pop().unwrap();
    /// assert_eq!(asked.cpumask(), CpuSet::single(1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn reschedule(&self, thread: &SpdkThread, mask: &CpuSet) -> Result<(), SetCpumaskError> {
        let _ = mask;
        Err(SetCpumaskError::NotSupported(thread.name().to_owned()))
    }

    /// Hears that `thread`, the current one, is to go to `core` with its mask as it
    /// is: move it there after the poll. Unless overridden, refuses.
    ///
    /// # Errors
    ///
    /// The error of the caller's [`SpdkThread::move_to_core`].
    fn move_to(&self, thread: &SpdkThread, core: usize) -> Result<(), SetCpumaskError> {
        let _ = core;
        Err(SetCpumaskError::NotSupported(thread.name().to_owned()))
    }
}

/// What to do when user code panics on a SpdkThread.
///
/// # Examples
///
/// ```
/// use corespun::thread::{PanicPolicy, Poller, PollerState, ThreadLib};
///
/// // `PanicPolicy::Abort` is for those who would rather have a core dump.
/// let library = ThreadLib::builder().panic_policy(PanicPolicy::Contain).build();
/// let mut runner = library.thread().build()?.attach();
/// let broken = runner.enter(|| Poller::active(|| -> bool { panic!("no such queue") }))?;
/// runner.poll(0, 0);
/// // The poller is over; the thread is not.
/// assert_eq!(broken.state(), PollerState::Unregistered);
/// assert!(runner.is_running());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum PanicPolicy {
    /// Report it and go on: a task yields a `JoinError`, a message is over, a
    /// poller is unregistered.
    #[default]
    Contain,
    /// Report it and abort the process.
    Abort,
}

type PanicHook = Box<dyn Fn(&ContainedPanic<'_>) + Send + Sync>;

pub(crate) struct LibraryInner {
    pub(crate) clock: Clock,
    next_id: AtomicU64,
    threads: Mutex<BTreeMap<u64, Weak<Shared>>>,
    /// Every sleeper that any thread was ever hosted by: a sender may still
    /// look at the one it was hosted by before.
    sleepers: Mutex<Vec<Arc<Sleeper>>>,
    framework: OnceLock<Arc<dyn Framework>>,
    app_thread: Mutex<Option<Weak<Shared>>>,
    /// The registry of io_devices, kept by their own floor.
    pub(crate) devices: OnceLock<Arc<dyn Any + Send + Sync>>,
    panic_policy: PanicPolicy,
    panic_hook: Option<PanicHook>,
    pub(crate) times_tasks: bool,
    pub(crate) stall_ticks: u64,
    pub(super) stall_hook: Option<StallHook>,
    /// The threads for what blocks; the reactors' drivers share them.
    pub(crate) helpers: Helpers,
}

/// As the last thread goes, so may this: from a waker's drop, which must not
/// unwind.
impl Drop for LibraryInner {
    fn drop(&mut self) {
        drop_logged(self.panic_hook.take());
        drop_logged(self.stall_hook.take());
        drop_logged(self.framework.take());
        let sleepers = self.sleepers.get_mut();
        let sleepers = sleepers.unwrap_or_else(PoisonError::into_inner);
        drop_logged(std::mem::take(sleepers));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No user code runs under these locks, so a poisoned one is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LibraryInner {
    /// `None` for ever once the ids are used up.
    pub(super) fn next_thread_id(&self) -> Option<u64> {
        self.next_id
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |id| id.checked_add(1))
            .ok()
    }

    pub(super) fn add_thread(&self, thread: &Arc<Shared>) {
        lock(&self.threads).insert(thread.id, Arc::downgrade(thread));
        lock(&self.app_thread).get_or_insert_with(|| Arc::downgrade(thread));
    }

    /// A thread that no framework took was never there: the next one may be the
    /// app thread.
    pub(super) fn withdraw_thread(&self, thread: &Arc<Shared>) {
        let mut app_thread = lock(&self.app_thread);
        let first = app_thread.as_ref().map(Weak::as_ptr);
        if first == Some(Arc::as_ptr(thread)) {
            *app_thread = None;
        }
    }

    /// The quoted name of the thread whose shared part is at `address`.
    pub(super) fn find_thread(&self, address: usize) -> Option<String> {
        let threads = lock(&self.threads);
        let mut threads = threads.values().filter_map(Weak::upgrade);
        let found = threads.find(|thread| Arc::as_ptr(thread).addr() == address)?;
        Some(format!("thread {:?}", found.name()))
    }

    pub(super) fn forget_thread(&self, id: u64) {
        lock(&self.threads).remove(&id);
    }

    pub(super) fn keep_sleeper(&self, sleeper: &Arc<Sleeper>) {
        let mut sleepers = lock(&self.sleepers);
        if !sleepers.iter().any(|known| Arc::ptr_eq(known, sleeper)) {
            sleepers.push(sleeper.clone());
        }
    }

    pub(super) fn framework(&self) -> Option<&Arc<dyn Framework>> {
        self.framework.get()
    }

    pub(crate) fn report_panic(
        &self,
        thread: &str,
        source: PanicSource,
        name: Option<&str>,
        payload: Payload,
    ) {
        self.report_panic_text(thread, source, name, payload_text(&*payload));
        discard(payload);
    }

    pub(crate) fn report_panic_text(
        &self,
        thread: &str,
        source: PanicSource,
        name: Option<&str>,
        message: &str,
    ) {
        tracing::error!(thread, ?source, name, "user code panicked: {message}");
        if let Some(hook) = &self.panic_hook {
            let panic = ContainedPanic {
                thread,
                source,
                name,
                message,
            };
            if let Err(second) = contain(|| hook(&panic)) {
                discard(second);
            }
        }
        if self.panic_policy == PanicPolicy::Abort {
            std::process::abort();
        }
    }

    /// Applies a policy other than containing at once, for a panic that
    /// somebody may still receive.
    pub(crate) fn panic_is_fatal(&self) -> bool {
        self.panic_policy == PanicPolicy::Abort
    }
}

/// A library instance (`spdk_thread_lib_init`): makes SpdkThreads and finds
/// them again. Cheap to clone; all clones are the same instance, which lives
/// as long as any of them or any of its threads.
///
/// # Examples
///
/// ```
/// use corespun::thread::ThreadLib;
///
/// let library = ThreadLib::new();
/// let mut thread = library.thread().name("worker").build()?.attach();
/// let id = thread.handle().id();
/// let found = library.thread_by_id(id).unwrap();
/// let call = found.call(|| "hello");
/// thread.poll(0, 0);
/// assert_eq!(futures::executor::block_on(call).unwrap(), "hello");
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[derive(Clone)]
pub struct ThreadLib {
    pub(crate) inner: Arc<LibraryInner>,
}

impl Default for ThreadLib {
    fn default() -> Self {
        ThreadLib::new()
    }
}

impl ThreadLib {
    /// An instance on the system clock that contains panics.
    pub fn new() -> Self {
        ThreadLib::builder().build()
    }

    /// An instance with settings.
    ///
    /// # Examples
    ///
    /// With a virtual clock, time stands still unless a test moves it:
    ///
    /// ```
    /// use corespun::{clock::Clock, thread::ThreadLib};
    ///
    /// let (clock, hand) = Clock::virtual_at(1_000_000);
    /// let library = ThreadLib::builder().clock(clock).build();
    /// hand.advance(5);
    /// assert_eq!(library.clock().now(), 5);
    /// ```
    pub fn builder() -> ThreadLibBuilder {
        ThreadLibBuilder::default()
    }

    /// Settings for a new thread.
    pub fn thread(&self) -> ThreadBuilder {
        ThreadBuilder::new(self.inner.clone())
    }

    /// The clock that this instance's ticks come from.
    pub fn clock(&self) -> &Clock {
        &self.inner.clock
    }

    /// The cores that helper threads run on ([`ThreadLibBuilder::helper_cpus`]), for whoever
    /// starts some from a reactor, which is pinned. `None` if the kernel did not say.
    pub fn helper_cpus(&self) -> Option<CpuSet> {
        self.inner.helpers.cpus()
    }

    /// Names who places threads made by [`ThreadBuilder::create`].
    ///
    /// # Errors
    ///
    /// [`FrameworkSet`] when one was named before.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::Arc;
    /// use corespun::thread::{CreateError, Framework, ParkedThread, ThreadLib};
    ///
    /// struct Nowhere;
    ///
    /// impl Framework for Nowhere {
    ///     fn place(&self, thread: ParkedThread) -> Result<(), CreateError> {
    ///         drop(thread);
    ///         Ok(())
    ///     }
    /// }
    ///
    /// let library = ThreadLib::new();
    /// assert!(matches!(library.thread().create(), Err(CreateError::NoFramework)));
    /// library.set_framework(Arc::new(Nowhere))?;
    /// assert!(library.thread().create().is_ok());
    /// // It is there to stay.
    /// assert!(library.set_framework(Arc::new(Nowhere)).is_err());
    /// # Ok::<(), corespun::thread::FrameworkSet>(())
    /// ```
    pub fn set_framework(&self, framework: Arc<dyn Framework>) -> Result<(), FrameworkSet> {
        self.inner
            .framework
            .set(framework)
            .map_err(|_| FrameworkSet)
    }

    /// How many threads exist that have not exited (`spdk_thread_get_count`);
    /// it may be stale at once.
    pub fn thread_count(&self) -> usize {
        lock(&self.inner.threads).len()
    }

    /// The thread with this id, unless it has exited (`spdk_thread_get_by_id`).
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::thread::ThreadLib;
    ///
    /// let library = ThreadLib::new();
    /// let runner = library.thread().build()?.attach();
    /// let id = runner.handle().id();
    /// assert_eq!(library.thread_by_id(id), Some(runner.handle()));
    /// drop(runner);
    /// assert_eq!(library.thread_by_id(id), None);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn thread_by_id(&self, id: u64) -> Option<SpdkThread> {
        lock(&self.inner.threads)
            .get(&id)
            .and_then(Weak::upgrade)
            .map(SpdkThread::from_shared)
    }

    /// Every thread that has not exited, in the order created.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::thread::ThreadLib;
    ///
    /// let library = ThreadLib::new();
    /// let parked = [library.thread().name("a").build()?, library.thread().name("b").build()?];
    /// let threads = library.threads();
    /// let names: Vec<_> = threads.iter().map(|thread| thread.name()).collect();
    /// assert_eq!(names, ["a", "b"]);
    /// # drop(parked);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn threads(&self) -> Vec<SpdkThread> {
        lock(&self.inner.threads)
            .values()
            .filter_map(Weak::upgrade)
            .map(SpdkThread::from_shared)
            .collect()
    }

    /// The first thread after `cursor`, in the order created, that was not
    /// asked to exit.
    pub(super) fn next_running(&self, cursor: u64) -> Option<Arc<Shared>> {
        let threads = lock(&self.inner.threads);
        threads
            .range(cursor.saturating_add(1)..)
            .filter_map(|(_, thread)| thread.upgrade())
            .find(|thread| thread.state() == ThreadState::Running)
    }

    /// The first threads after `cursor`, in the order created, that are not gone;
    /// `count` at most.
    pub(super) fn threads_after(&self, cursor: u64, count: usize) -> Vec<Arc<Shared>> {
        let threads = lock(&self.inner.threads);
        threads
            .range(cursor.saturating_add(1)..)
            .filter_map(|(_, thread)| thread.upgrade())
            .take(count)
            .collect()
    }

    /// As [`ThreadLib::next_running`], for the floors above.
    pub(crate) fn running_after(&self, cursor: u64) -> Option<SpdkThread> {
        self.next_running(cursor).map(SpdkThread::from_shared)
    }

    /// The first thread this instance ever made (`spdk_thread_get_app_thread`),
    /// apart from those that the framework refused; until it is gone.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::thread::ThreadLib;
    ///
    /// let library = ThreadLib::new();
    /// assert_eq!(library.app_thread(), None);
    /// let first = library.thread().build()?;
    /// let second = library.thread().build()?;
    /// assert_eq!(library.app_thread(), Some(first.handle()));
    /// # drop(second);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn app_thread(&self) -> Option<SpdkThread> {
        lock(&self.inner.app_thread)
            .as_ref()
            .and_then(Weak::upgrade)
            .map(SpdkThread::from_shared)
    }
}

impl fmt::Debug for ThreadLib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadLib")
            .field("threads", &self.thread_count())
            .finish_non_exhaustive()
    }
}

/// A framework was set on this library instance before.
///
/// # Examples
///
/// ```
/// use corespun::app::{App, AppHandle};
/// use corespun::thread::{CreateError, Framework, FrameworkSet, ParkedThread};
///
/// struct Mine;
///
/// impl Framework for Mine {
///     fn place(&self, _thread: ParkedThread) -> Result<(), CreateError> {
///         Ok(())
///     }
/// }
///
/// let second = App::builder().block_on(async |app: AppHandle| {
///     // The app's instance has the reactors.
///     app.library().set_framework(std::sync::Arc::new(Mine))
/// })?;
/// assert!(matches!(second, Err(FrameworkSet)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[error("this library instance already has a framework that places its threads")]
pub struct FrameworkSet;

/// Settings of a library instance.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use corespun::thread::ThreadLib;
///
/// let library = ThreadLib::builder()
///     .task_times(true)
///     .stall_limit(Duration::from_millis(1))
///     .stall_hook(|stall| eprintln!("{} held {} for {:?}", stall.name, stall.thread, stall.held))
///     .panic_hook(|panic| eprintln!("{} panicked: {}", panic.thread, panic.message))
///     .build();
/// assert_eq!(library.thread_count(), 0);
/// ```
#[derive(Default)]
#[must_use = "call `build`"]
pub struct ThreadLibBuilder {
    clock: Option<Clock>,
    panic_policy: PanicPolicy,
    panic_hook: Option<PanicHook>,
    times_tasks: bool,
    stall_limit: Option<Duration>,
    stall_hook: Option<StallHook>,
    helper_cpus: Option<CpuSet>,
}

impl ThreadLibBuilder {
    /// Where ticks come from; the system clock unless set.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// What a panic of user code leads to.
    pub fn panic_policy(mut self, policy: PanicPolicy) -> Self {
        self.panic_policy = policy;
        self
    }

    /// Called, on the thread it happened on, with each panic that nobody else
    /// receives, after it was logged.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::{Arc, Mutex};
    /// use corespun::thread::ThreadLib;
    ///
    /// let panics = Arc::new(Mutex::new(Vec::new()));
    /// let seen = panics.clone();
    /// let library = ThreadLib::builder()
    ///     .panic_hook(move |panic| seen.lock().unwrap().push(panic.message.to_owned()))
    ///     .build();
    /// let mut runner = library.thread().build()?.attach();
    /// runner.handle().send_msg(|| panic!("bad request")).unwrap();
    /// runner.poll(0, 0);
    /// assert_eq!(*panics.lock().unwrap(), ["bad request"]);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn panic_hook(
        mut self,
        hook: impl Fn(&ContainedPanic<'_>) + Send + Sync + 'static,
    ) -> Self {
        self.panic_hook = Some(Box::new(hook));
        self
    }

    /// Measures how long each poll of each task takes, for
    /// [`SpdkThread::tasks`]; two reads of the clock a poll. Off unless set.
    pub fn task_times(mut self, measured: bool) -> Self {
        self.times_tasks = measured;
        self
    }

    /// Reports each message, poller and poll of a task, and whatever else a poll of
    /// a thread does, that holds its thread for `limit` or longer, when it has
    /// ended: once in the log and to the [`stall_hook`](Self::stall_hook). What has
    /// not ended is found by [`ThreadLib::check_stalls`].
    ///
    /// Off unless set. It costs two reads of the clock and a few stores for each of
    /// those, and another read for each poll of a thread.
    pub fn stall_limit(mut self, limit: Duration) -> Self {
        self.stall_limit = Some(limit);
        self
    }

    /// Called with each [`Stall`]: on the OS thread that was held, and for what is
    /// still running, on the one that found it.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{sync::mpsc, time::Duration};
    /// use corespun::{task::TaskBuilder, thread::{StallSource, ThreadLib}};
    ///
    /// let (clock, hand) = corespun::clock::Clock::virtual_at(1_000_000);
    /// let (sender, stalls) = mpsc::channel();
    /// let library = ThreadLib::builder()
    ///     .clock(clock)
    ///     .stall_limit(Duration::from_micros(50))
    ///     .stall_hook(move |stall| sender.send((stall.source, stall.name.to_owned())).unwrap())
    ///     .build();
    /// let mut runner = library.thread().build()?.attach();
    /// let task = runner.enter(|| TaskBuilder::new().name("checksum").spawn_local(async move {
    ///     hand.advance(80);
    /// }));
    /// runner.poll(0, 0);
    /// let (source, name) = stalls.recv()?;
    /// assert_eq!(source, StallSource::Task);
    /// assert!(name.starts_with("checksum"));
    /// # drop(task);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn stall_hook(mut self, hook: impl Fn(&Stall<'_>) + Send + Sync + 'static) -> Self {
        self.stall_hook = Some(Box::new(hook));
        self
    }

    /// The cores that helper threads (of
    /// [`spawn_blocking`](crate::task::spawn_blocking), and of the reactors' I/O
    /// drivers) run on; unless set, those
    /// that the OS thread that builds the instance may run on. Leave out the
    /// cores of the reactors.
    pub fn helper_cpus(mut self, cpus: CpuSet) -> Self {
        self.helper_cpus = Some(cpus);
        self
    }

    /// The instance.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::thread::ThreadLib;
    ///
    /// let library = ThreadLib::builder().build();
    /// // Clones are the same instance.
    /// let thread = library.clone().thread().build()?;
    /// assert_eq!(library.thread_count(), 1);
    /// # drop(thread);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn build(self) -> ThreadLib {
        let clock = self.clock.unwrap_or_else(Clock::system);
        let stall_ticks = self.stall_limit.map(|limit| clock.ticks_from(limit).max(1));
        ThreadLib {
            inner: Arc::new(LibraryInner {
                clock,
                times_tasks: self.times_tasks,
                stall_ticks: stall_ticks.unwrap_or(0),
                stall_hook: self.stall_hook,
                // Asked now: later, this may be a pinned thread.
                helpers: Helpers::new(self.helper_cpus.or_else(|| cpu::available().ok())),
                next_id: AtomicU64::new(1),
                threads: Mutex::new(BTreeMap::new()),
                sleepers: Mutex::new(Vec::new()),
                framework: OnceLock::new(),
                app_thread: Mutex::new(None),
                devices: OnceLock::new(),
                panic_policy: self.panic_policy,
                panic_hook: self.panic_hook,
            }),
        }
    }
}

impl fmt::Debug for ThreadLibBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadLibBuilder")
            .field("clock", &self.clock)
            .field("panic_policy", &self.panic_policy)
            .finish_non_exhaustive()
    }
}
