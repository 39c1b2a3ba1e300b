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
use crate::notify::Sleeper;

/// What places new threads on something that polls them: the reactors, or a
/// scheduler of your own (SPDK's `new_thread_fn`).
pub trait Framework: Send + Sync + 'static {
    /// Takes a new thread, to attach and poll it somewhere. Called by
    /// [`ThreadBuilder::create`], on the creating OS thread, with no lock held.
    ///
    /// # Errors
    ///
    /// The error of the caller's `create`; dropping `thread` destroys it.
    fn place(&self, thread: ParkedThread) -> Result<(), CreateError>;

    /// Hears that `thread`, the current one, asks for another mask (SPDK's
    /// `SPDK_THREAD_OP_RESCHED`): look at [`SpdkThread::cpumask`] after the
    /// poll and move it if it must. Unless overridden, refuses.
    ///
    /// # Errors
    ///
    /// The error of the caller's [`SpdkThread::set_cpumask`]; the mask stays
    /// as it is then.
    fn reschedule(&self, thread: &SpdkThread, mask: &CpuSet) -> Result<(), SetCpumaskError> {
        let _ = mask;
        Err(SetCpumaskError::NotSupported(thread.name().to_owned()))
    }
}

/// What to do when user code panics on a SpdkThread.
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
    /// Where helper threads may run.
    pub(crate) helper_cpus: Option<CpuSet>,
    /// The helper threads, made when first needed by the floor that uses them.
    pub(crate) helpers: OnceLock<Arc<dyn Any + Send + Sync>>,
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
/// thread.handle().send_msg(|| println!("hello")).unwrap();
/// thread.poll(0, 0);
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

    /// Names who places threads made by [`ThreadBuilder::create`].
    ///
    /// # Errors
    ///
    /// [`FrameworkSet`] when one was named before.
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
    pub fn thread_by_id(&self, id: u64) -> Option<SpdkThread> {
        lock(&self.inner.threads)
            .get(&id)
            .and_then(Weak::upgrade)
            .map(SpdkThread::from_shared)
    }

    /// Every thread that has not exited, in the order created.
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

    /// As [`ThreadLib::next_running`], for the floors above.
    pub(crate) fn running_after(&self, cursor: u64) -> Option<SpdkThread> {
        self.next_running(cursor).map(SpdkThread::from_shared)
    }

    /// The first thread this instance ever made (`spdk_thread_get_app_thread`),
    /// apart from those that the framework refused; until it is gone.
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
#[derive(Debug, thiserror::Error)]
#[error("this library instance already has a framework that places its threads")]
pub struct FrameworkSet;

/// Settings of a library instance.
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

    /// Reports each message, poller and poll of a task that holds its thread
    /// for `limit` or longer, when it has ended: once in the log and to the
    /// [`stall_hook`](Self::stall_hook). Two reads of the clock for each of
    /// them; off unless set.
    pub fn stall_limit(mut self, limit: Duration) -> Self {
        self.stall_limit = Some(limit);
        self
    }

    /// Called, on the thread that was held, with each stall.
    pub fn stall_hook(mut self, hook: impl Fn(&Stall<'_>) + Send + Sync + 'static) -> Self {
        self.stall_hook = Some(Box::new(hook));
        self
    }

    /// The cores that helper threads (of
    /// [`spawn_blocking`](crate::task::spawn_blocking)) run on; unless set, those
    /// that the OS thread that builds the instance may run on. Leave out the
    /// cores of the reactors.
    pub fn helper_cpus(mut self, cpus: CpuSet) -> Self {
        self.helper_cpus = Some(cpus);
        self
    }

    /// The instance.
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
                helper_cpus: self.helper_cpus.or_else(|| cpu::available().ok()),
                helpers: OnceLock::new(),
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
