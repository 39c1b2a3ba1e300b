//! The library instance: the registry of threads, the clock, the panic policy
//! and the framework that places new threads. Nothing of it is process-wide;
//! two instances live side by side without knowing of each other.

mod builder;
mod framework;

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

pub use builder::ThreadLibBuilder;
pub use framework::{Framework, FrameworkSet};

use super::builder::ThreadBuilder;
use super::panic::{
    ContainedPanic, PanicSource, Payload, contain, discard, drop_logged, payload_text,
};
use super::shared::Shared;
use super::stall::StallHook;
use super::{SpdkThread, ThreadState};
use crate::clock::Clock;
use crate::cpu::CpuSet;
use crate::io::helpers::Helpers;
use crate::notify::Sleeper;

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
    /// The registry of io_devices, kept for their own floor, which alone knows the type.
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
    /// a caller or waiter may still receive.
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

    /// The cores that helper threads run on ([`ThreadLibBuilder::helper_cpus`]), for a
    /// caller that starts some from a reactor, which is pinned. `None` if the kernel did not
    /// say.
    pub fn helper_cpus(&self) -> Option<CpuSet> {
        self.inner.helpers.cpus()
    }

    /// Names the framework that places threads made by [`ThreadBuilder::create`].
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
