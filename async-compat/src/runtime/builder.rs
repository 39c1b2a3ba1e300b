//! Settings of a runtime.

use std::fmt;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use corespun::reactor::ReactorMode;
use corespun::thread::{ParkedThread, SpdkThread, ThreadLib};

use super::blocking::BlockingPool;
use super::config::{Callback, Config, ThreadNameFn};
use super::handle::{Handle, Inner};
use super::local_runtime::{LocalOptions, LocalRuntime};
#[cfg(feature = "rt-multi-thread")]
use super::multi_thread::Workers;
use super::runtime::Runtime;
use super::scheduler::{CurrentThread, Scheduler};
#[cfg(feature = "time")]
use crate::time::Clock;

/// Where a `multi_thread` runtime puts a task that is spawned. It stays there.
///
/// The default was chosen by measuring tokio's benches with two workers, where tasks talk with
/// those that spawned them: spread from the fifth on, a hundred tasks that watch a value took
/// 20 times as long per change as tokio's, and six that share a semaphore 1.6 times; kept beside
/// who spawned them, they take as long as tokio's. A loop that accepts connections is the
/// opposite: what it spawns has nothing to say to it, and should use all workers from the first
/// on. Whether a task accepts connections is seen by its having done so, on a listener of
/// [`net`](crate::net). For work that is to be spread otherwise, spawn it from the future of
/// `block_on`, or ask for [`RoundRobin`](Placement::RoundRobin).
///
/// What is meant for a worker that is in [`block_in_place`](crate::task::block_in_place) goes
/// to another one.
///
/// A task that is spawned from elsewhere than a worker (the future of `block_on`, a
/// foreign OS thread) goes to the next worker in turn, or the one of two with fewer
/// tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Placement {
    /// On the worker that spawns it: no message between cores, and no balance either.
    Local,
    /// On the next worker in turn.
    RoundRobin,
    /// On the worker that spawns it, unless that has clearly more tasks than another (128):
    /// what a connection spawns stays beside it. What is spawned by a task that accepts
    /// connections goes to the one of two that has fewer.
    #[default]
    LeastLoaded,
}

/// Settings of a runtime.
///
/// # Examples
///
/// ```
/// use corespun_compat as tokio;
///
/// let runtime = tokio::runtime::Builder::new_multi_thread()
///     .worker_threads(2)
///     .thread_name("server")
///     .enable_all()
///     .build()?;
/// assert_eq!(runtime.block_on(async { tokio::spawn(async { 42 }).await.unwrap() }), 42);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Builder {
    kind: Kind,
    worker_threads: Option<usize>,
    mode: ReactorMode,
    start_paused: bool,
    config: Config,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    CurrentThread,
    #[cfg(feature = "rt-multi-thread")]
    MultiThread,
}

/// The clock of this machine, measured once: that takes 2 ms.
pub(crate) fn system_clock() -> corespun::clock::Clock {
    static CLOCK: OnceLock<corespun::clock::Clock> = OnceLock::new();
    CLOCK.get_or_init(corespun::clock::Clock::system).clone()
}

impl Builder {
    fn new(kind: Kind) -> Self {
        Builder {
            kind,
            worker_threads: None,
            mode: ReactorMode::Adaptive,
            start_paused: false,
            config: Config {
                name: None,
                is_local: false,
                is_native: false,
                enable_io: false,
                enable_time: false,
                max_blocking_threads: 512,
                thread_name: Arc::new(|| "tokio-rt-worker".to_owned()),
                thread_stack_size: None,
                after_start: None,
                before_stop: None,
                before_park: None,
                after_unpark: None,
                keep_alive: Duration::from_secs(10),
                event_interval: 61,
                placement: Placement::default(),
            },
        }
    }

    /// A runtime of one SpdkThread, which `block_on` polls.
    #[must_use]
    pub fn new_current_thread() -> Builder {
        Builder::new(Kind::CurrentThread)
    }

    /// A runtime of reactors, one for each processor unless set.
    #[cfg(feature = "rt-multi-thread")]
    #[must_use]
    pub fn new_multi_thread() -> Builder {
        Builder::new(Kind::MultiThread)
    }

    /// Enables timers and I/O.
    pub fn enable_all(&mut self) -> &mut Self {
        self.config.enable_io = true;
        self.config.enable_time = true;
        self
    }

    /// Enables I/O.
    #[cfg(any(feature = "net", feature = "process", feature = "signal"))]
    pub fn enable_io(&mut self) -> &mut Self {
        self.config.enable_io = true;
        self
    }

    /// Enables timers.
    #[cfg(feature = "time")]
    pub fn enable_time(&mut self) -> &mut Self {
        self.config.enable_time = true;
        self
    }

    /// How many I/O events one turn takes: the driver's ring says that here.
    ///
    /// # Panics
    ///
    /// When it is 0.
    #[cfg(any(feature = "net", feature = "process", feature = "signal"))]
    #[track_caller]
    pub fn max_io_events_per_tick(&mut self, capacity: usize) -> &mut Self {
        assert!(capacity > 0, "max_io_events_per_tick must be non-zero");
        self
    }

    /// How many I/O events one turn takes that does not wait: as above.
    ///
    /// # Panics
    ///
    /// When it is 0.
    #[cfg(any(feature = "net", feature = "process", feature = "signal"))]
    #[track_caller]
    pub fn max_io_events_per_busy_tick(&mut self, capacity: usize) -> &mut Self {
        assert!(capacity > 0, "max_io_events_per_busy_tick must be non-zero");
        self
    }

    /// How many workers there are; as the environment variable `TOKIO_WORKER_THREADS`
    /// says unless set, and one for each processor if that is not either. More than
    /// processors share those, and sleep when idle.
    ///
    /// # Panics
    ///
    /// When it is 0.
    #[track_caller]
    pub fn worker_threads(&mut self, val: usize) -> &mut Self {
        assert!(val > 0, "Worker threads cannot be set to 0");
        self.worker_threads = Some(val);
        self
    }

    /// How many helper threads there may be for what blocks; 512 unless set.
    ///
    /// # Panics
    ///
    /// When it is 0.
    #[track_caller]
    pub fn max_blocking_threads(&mut self, val: usize) -> &mut Self {
        assert!(val > 0, "Max blocking threads cannot be set to 0");
        self.config.max_blocking_threads = val;
        self
    }

    /// The name of the runtime's OS threads.
    ///
    /// # Panics
    ///
    /// When it holds a null byte.
    #[track_caller]
    pub fn thread_name(&mut self, val: impl Into<String>) -> &mut Self {
        let name = val.into();
        assert!(!name.contains('\0'), "thread name contains a null byte");
        self.config.thread_name = Arc::new(move || name.clone());
        self
    }

    /// The runtime's name.
    ///
    /// # Panics
    ///
    /// When it is empty.
    #[track_caller]
    pub fn name(&mut self, val: impl Into<String>) -> &mut Self {
        let name = val.into();
        assert!(!name.trim().is_empty(), "runtime name shouldn't be empty");
        self.config.name = Some(name);
        self
    }

    /// What gives each OS thread of the runtime its name.
    pub fn thread_name_fn<F>(&mut self, f: F) -> &mut Self
    where
        F: Fn() -> String + Send + Sync + 'static,
    {
        let name: ThreadNameFn = Arc::new(f);
        self.config.thread_name = name;
        self
    }

    /// The stack of the runtime's OS threads, in bytes.
    pub fn thread_stack_size(&mut self, val: usize) -> &mut Self {
        self.config.thread_stack_size = Some(val);
        self
    }

    /// Called on each OS thread that the runtime starts, before anything else.
    pub fn on_thread_start<F>(&mut self, f: F) -> &mut Self
    where
        F: Fn() + Send + Sync + 'static,
    {
        let hook: Callback = Arc::new(f);
        self.config.after_start = Some(hook);
        self
    }

    /// Called on each OS thread that the runtime has started, when it ends.
    pub fn on_thread_stop<F>(&mut self, f: F) -> &mut Self
    where
        F: Fn() + Send + Sync + 'static,
    {
        let hook: Callback = Arc::new(f);
        self.config.before_stop = Some(hook);
        self
    }

    /// Called when a worker, or the `block_on` of a `current_thread` runtime, goes to
    /// sleep.
    pub fn on_thread_park<F>(&mut self, f: F) -> &mut Self
    where
        F: Fn() + Send + Sync + 'static,
    {
        let hook: Callback = Arc::new(f);
        self.config.before_park = Some(hook);
        self
    }

    /// Called when a worker, or the `block_on` of a `current_thread` runtime, has slept.
    pub fn on_thread_unpark<F>(&mut self, f: F) -> &mut Self
    where
        F: Fn() + Send + Sync + 'static,
    {
        let hook: Callback = Arc::new(f);
        self.config.after_unpark = Some(hook);
        self
    }

    /// How long a helper thread without work stays; 10 s unless set.
    pub fn thread_keep_alive(&mut self, duration: Duration) -> &mut Self {
        self.config.keep_alive = duration;
        self
    }

    /// How many tasks run between two looks at what other threads have sent: a
    /// SpdkThread takes turns, so that this is always 1.
    ///
    /// # Panics
    ///
    /// When it is 0.
    #[track_caller]
    pub fn global_queue_interval(&mut self, val: u32) -> &mut Self {
        assert!(val > 0, "global_queue_interval must be greater than 0");
        self
    }

    /// How many tasks run between two looks at timers and I/O; 61 unless set.
    ///
    /// # Panics
    ///
    /// When it is 0.
    #[track_caller]
    pub fn event_interval(&mut self, val: u32) -> &mut Self {
        assert!(val > 0, "event_interval must be greater than 0");
        self.config.event_interval = val as usize;
        self
    }

    /// Where a `multi_thread` runtime puts tasks. Not in tokio.
    pub fn placement(&mut self, placement: Placement) -> &mut Self {
        self.config.placement = placement;
        self
    }

    /// What the workers of a `multi_thread` runtime do when idle; adaptive unless set.
    /// Not in tokio.
    pub fn reactor_mode(&mut self, mode: ReactorMode) -> &mut Self {
        self.mode = mode;
        self
    }

    /// Whether the clock stands from the beginning; see [`time::pause`](crate::time::pause).
    #[cfg(feature = "test-util")]
    pub fn start_paused(&mut self, start_paused: bool) -> &mut Self {
        self.start_paused = start_paused;
        self
    }

    /// Makes the runtime, and starts its workers.
    ///
    /// # Errors
    ///
    /// The system's, when it refuses what is needed.
    pub fn build(&mut self) -> io::Result<Runtime> {
        match self.kind {
            Kind::CurrentThread => {
                let (library, thread, time) = self.one_thread()?;
                let scheduler = Scheduler::CurrentThread(CurrentThread::new(thread));
                Ok(Runtime::of(self.handle(library, scheduler, time, false)))
            }
            #[cfg(feature = "rt-multi-thread")]
            Kind::MultiThread => self.build_workers(),
        }
    }

    /// Makes a runtime that stays on the calling OS thread.
    ///
    /// # Errors
    ///
    /// The system's.
    ///
    /// # Panics
    ///
    /// When the builder is one of a `multi_thread` runtime.
    #[track_caller]
    pub fn build_local(&mut self, options: LocalOptions) -> io::Result<LocalRuntime> {
        let _ = options;
        match self.kind {
            Kind::CurrentThread => {
                let (library, thread, time) = self.one_thread()?;
                let runner = thread.attach();
                let scheduler = Scheduler::CurrentThread(CurrentThread::elsewhere(runner.handle()));
                let handle = self.handle(library, scheduler, time, true);
                Ok(LocalRuntime::of(handle, runner))
            }
            #[cfg(feature = "rt-multi-thread")]
            Kind::MultiThread => {
                panic!("multi_thread is not supported for LocalRuntime")
            }
        }
    }

    /// The handle of a thread that somebody else polls.
    pub(super) fn native(mut self, thread: SpdkThread) -> Handle {
        self.enable_all();
        self.config.is_native = true;
        let library = thread.library();
        let scheduler = Scheduler::CurrentThread(CurrentThread::elsewhere(thread));
        self.handle(library, scheduler, Time::default(), false)
    }

    fn one_thread(&self) -> io::Result<(ThreadLib, ParkedThread, Time)> {
        let (clock, time) = self.stoppable_clock();
        let library = ThreadLib::builder().clock(clock).build();
        let thread = library
            .thread()
            .name("current_thread")
            .batch(self.config.event_interval)
            // The future of a `block_on` waits for its turn between two polls.
            .yield_ends_poll()
            .build()
            .map_err(io::Error::other)?;
        Ok((library, thread, time))
    }

    #[cfg(all(feature = "time", feature = "test-util"))]
    fn stoppable_clock(&self) -> (corespun::clock::Clock, Time) {
        let time = Clock::stoppable(self.start_paused);
        (time.ticks(), time)
    }

    #[cfg(not(all(feature = "time", feature = "test-util")))]
    fn stoppable_clock(&self) -> (corespun::clock::Clock, Time) {
        debug_assert!(!self.start_paused, "it cannot be set");
        (system_clock(), Time::default())
    }

    #[cfg(feature = "rt-multi-thread")]
    fn build_workers(&mut self) -> io::Result<Runtime> {
        #[cfg(feature = "test-util")]
        if self.start_paused {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a clock stands still for a `current_thread` runtime only",
            ));
        }
        let count = match self.worker_threads {
            Some(count) => count,
            None => default_workers(),
        };
        let library = ThreadLib::builder().clock(system_clock()).build();
        let (workers, seats) = Workers::new(&library, &self.config, count, self.mode)?;
        let handle = self.handle(
            library,
            Scheduler::MultiThread(workers),
            Time::default(),
            false,
        );
        let runtime = Runtime::of(handle);
        let started = match &runtime.handle().inner.scheduler {
            Scheduler::MultiThread(workers) => workers.start(runtime.handle(), seats),
            Scheduler::CurrentThread(_) => Ok(()),
        };
        match started {
            Ok(()) => Ok(runtime),
            Err(error) => {
                // It may be a task that asked for it.
                runtime.shutdown_background();
                Err(error)
            }
        }
    }

    fn handle(
        &self,
        library: ThreadLib,
        scheduler: Scheduler,
        time: Time,
        is_local: bool,
    ) -> Handle {
        #[cfg(not(feature = "time"))]
        let () = time;
        Handle {
            inner: Arc::new(Inner {
                id: super::Id::next().0,
                blocking: BlockingPool::new(&self.config, library.helper_cpus()),
                home: corespun::io::Home::new(),
                config: Config {
                    is_local,
                    ..self.config.clone()
                },
                library,
                scheduler,
                ended: AtomicBool::new(false),
                #[cfg(feature = "time")]
                clock: time,
            }),
        }
    }
}

/// The runtime's clock, as the feature `time` has it.
#[cfg(feature = "time")]
type Time = Clock;
#[cfg(not(feature = "time"))]
type Time = ();

/// As many workers as the environment says, or processors.
#[cfg(feature = "rt-multi-thread")]
#[track_caller]
fn default_workers() -> usize {
    const VARIABLE: &str = "TOKIO_WORKER_THREADS";
    match std::env::var(VARIABLE) {
        Ok(text) => {
            let count: usize = text.parse().unwrap_or_else(|error| {
                panic!("\"{VARIABLE}\" must be usize, error: {error}, value: {text}")
            });
            assert!(count > 0, "\"{VARIABLE}\" cannot be set to 0");
            count
        }
        Err(std::env::VarError::NotPresent) => {
            std::thread::available_parallelism().map_or(1, |count| count.get())
        }
        Err(std::env::VarError::NotUnicode(text)) => {
            panic!("\"{VARIABLE}\" must be valid unicode, error: {text:?}")
        }
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("kind", &self.kind)
            .field("worker_threads", &self.worker_threads)
            .field("max_blocking_threads", &self.config.max_blocking_threads)
            .field("keep_alive", &self.config.keep_alive)
            .field("event_interval", &self.config.event_interval)
            .field("placement", &self.config.placement)
            .finish_non_exhaustive()
    }
}
