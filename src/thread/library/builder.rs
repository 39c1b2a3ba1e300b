//! The settings of a library instance.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use super::{LibraryInner, PanicHook, PanicPolicy, ThreadLib};
use crate::clock::Clock;
use crate::cpu::{self, CpuSet};
use crate::io::helpers::Helpers;
use crate::thread::panic::ContainedPanic;
use crate::thread::stall::{Stall, StallHook};

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

    /// Called, on the thread it happened on, with each panic that no caller or
    /// waiter receives, after it was logged.
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
    /// [`SpdkThread::tasks`](crate::thread::SpdkThread::tasks); two reads of the clock a poll. Off unless set.
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
