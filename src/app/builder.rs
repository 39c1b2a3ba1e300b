//! Settings of an app, and running it.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::AppError;
use super::handle::AppHandle;
use super::subsystem::{Registered, Subsystem};
use crate::clock::Clock;
use crate::cpu::CpuSet;
use crate::io::DriverConfig;
use crate::reactor::scheduler::{Scheduler, SchedulerConfig};
use crate::reactor::{AdaptivePolling, Lcore, ReactorMode};
use crate::thread::Stall;

/// The application framework; see [`App::builder`].
///
/// # Examples
///
/// ```
/// use corespun::app::App;
///
/// // The code is for the process to exit with.
/// let code = App::builder().name("probe").run(async |app| app.stop(3))?;
/// assert_eq!(code, 3);
/// # Ok::<(), corespun::app::AppError>(())
/// ```
#[derive(Debug)]
pub struct App(());

impl App {
    /// Settings of an app: one core, adaptive mode, signals handled.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::app::App;
    ///
    /// let cores = App::builder().block_on(async |app| app.reactors().count())?;
    /// // One reactor, unless more are asked for.
    /// assert_eq!(cores, 1);
    /// # Ok::<(), corespun::app::AppError>(())
    /// ```
    pub fn builder() -> AppBuilder {
        AppBuilder::default()
    }
}

type ShutdownFn = Box<dyn FnOnce(&AppHandle) + Send>;
type StallHook = Box<dyn Fn(&Stall<'_>) + Send + Sync>;

/// What a panic of user code, on any SpdkThread of an app, leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum OnPanic {
    #[default]
    Contain,
    Stop(i32),
    Abort,
}

/// Settings of an app; run it with [`run`](AppBuilder::run) or
/// [`block_on`](AppBuilder::block_on).
///
/// # Examples
///
/// ```
/// use corespun::{app::App, cpu, io::{BackendChoice, DriverConfig}, reactor::ReactorMode};
///
/// let app = App::builder()
///     .name("target")
///     .cores(cpu::available()?)
///     .mode(ReactorMode::Interrupt)
///     .io(DriverConfig::new().backend(BackendChoice::Epoll));
/// let reactors = app.block_on(async |app| app.reactors().cores())?;
/// assert_eq!(reactors, cpu::available()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "call `run` or `block_on`"]
pub struct AppBuilder {
    pub(super) name: String,
    pub(super) places: Option<Vec<Lcore>>,
    pub(super) main_core: Option<usize>,
    pub(super) mode: ReactorMode,
    pub(super) adaptive: AdaptivePolling,
    pub(super) driver: DriverConfig,
    pub(super) clock: Option<Clock>,
    pub(super) stall_limit: Option<Duration>,
    pub(super) stall_hook: Option<StallHook>,
    pub(super) on_panic: OnPanic,
    pub(super) signals: bool,
    pub(super) shutdown: Option<ShutdownFn>,
    pub(super) shutdown_limit: Duration,
    pub(super) scheduling: SchedulerConfig,
    pub(super) subsystems: Vec<Registered>,
}

impl Default for AppBuilder {
    fn default() -> Self {
        AppBuilder {
            name: "app".to_owned(),
            places: None,
            main_core: None,
            mode: ReactorMode::default(),
            adaptive: AdaptivePolling::default(),
            driver: DriverConfig::default(),
            clock: None,
            stall_limit: None,
            stall_hook: None,
            on_panic: OnPanic::default(),
            signals: true,
            shutdown: None,
            shutdown_limit: Duration::from_secs(3),
            scheduling: SchedulerConfig::default(),
            subsystems: Vec::new(),
        }
    }
}

impl AppBuilder {
    /// The app's name, and its app thread's.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The cores to run a reactor on; the first core of the process unless
    /// set. `"0x3".parse()` makes a set of a core mask, `"[0-1]"` of a list.
    pub fn cores(mut self, cores: CpuSet) -> Self {
        let places = cores.iter().map(|core| Lcore { core, cpu: core });
        self.places = Some(places.collect());
        self
    }

    /// Reactors whose core numbers are not those of processors: pairs of a
    /// core number and the processor that its reactor is pinned to, as DPDK's
    /// `--lcores`. Several may share a processor; then they sleep when idle
    /// whatever their mode says, so that none of them starves.
    ///
    /// # Examples
    ///
    /// Four reactors on one processor, to try out a layout on a small machine:
    ///
    /// ```
    /// use corespun::{app::App, cpu};
    ///
    /// let cpu = cpu::available()?.first().unwrap();
    /// let reactors = App::builder()
    ///     .lcores((0..4).map(|core| (core, cpu)))
    ///     .block_on(async |app| app.reactors().cores().as_list().to_string())?;
    /// assert_eq!(reactors, "[0-3]");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn lcores(mut self, lcores: impl IntoIterator<Item = (usize, usize)>) -> Self {
        let places = lcores.into_iter().map(|(core, cpu)| Lcore { core, cpu });
        self.places = Some(places.collect());
        self
    }

    /// The core whose reactor runs in the OS thread that calls `run`, and that
    /// the app thread lives on; the lowest unless set.
    pub fn main_core(mut self, core: usize) -> Self {
        self.main_core = Some(core);
        self
    }

    /// What the reactors do when idle; [`ReactorMode::Adaptive`] unless set.
    pub fn mode(mut self, mode: ReactorMode) -> Self {
        self.mode = mode;
        self
    }

    /// How long adaptive mode spins.
    pub fn adaptive_polling(mut self, polling: AdaptivePolling) -> Self {
        self.adaptive = polling;
        self
    }

    /// Settings of the reactors' I/O drivers, the back-end among them.
    pub fn io(mut self, config: DriverConfig) -> Self {
        self.driver = config;
        self
    }

    /// Where ticks come from; the system clock unless set.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Reports whatever holds a reactor for `limit` or longer: a message, a poller,
    /// one poll of a task, an event. When it has ended, and, found by an OS thread
    /// that looks every half limit (each millisecond at most), while it still runs,
    /// since it may never end. Each goes to the log and to the
    /// [`stall_hook`](Self::stall_hook).
    ///
    /// That OS thread runs off the reactors' cores if there are others, and ends
    /// with the app. Off unless set; what it costs the reactors is said at
    /// [`ThreadLibBuilder::stall_limit`](crate::thread::ThreadLibBuilder::stall_limit).
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{app::App, thread::Stall};
    /// use std::{sync::mpsc, time::Duration};
    ///
    /// let (seen, stalls) = mpsc::channel();
    /// App::builder()
    ///     .stall_limit(Duration::from_millis(20))
    ///     .stall_hook(move |stall: &Stall<'_>| {
    ///         let _ = seen.send((stall.still_running, stall.to_string()));
    ///     })
    ///     .block_on(async move |_| {
    ///         // What no reactor should ever do: block.
    ///         let found = stalls.iter().find(|(still_running, _)| *still_running);
    ///         let (_, report) = found.expect("nothing else ends this wait");
    ///         println!("{report}");
    ///     })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn stall_limit(mut self, limit: Duration) -> Self {
        self.stall_limit = Some(limit);
        self
    }

    /// Called with each [`Stall`]: on the reactor that was held, and for what is
    /// still running, on the OS thread that looks for that.
    pub fn stall_hook(mut self, hook: impl Fn(&Stall<'_>) + Send + Sync + 'static) -> Self {
        self.stall_hook = Some(Box::new(hook));
        self
    }

    /// Stops the app with `code` when user code panics on one of its threads
    /// and no caller or waiter receives the panic. Without this, a panic is
    /// reported and the app goes on.
    pub fn stop_on_panic(mut self, code: i32) -> Self {
        self.on_panic = OnPanic::Stop(code);
        self
    }

    /// Aborts the process when user code panics on one of the app's threads.
    pub fn abort_on_panic(mut self) -> Self {
        self.on_panic = OnPanic::Abort;
        self
    }

    /// Whether SIGINT and SIGTERM stop the app; they do unless this says no.
    ///
    /// The first of them asks: it does what [`AppHandle::start_shutdown`] does, on
    /// the app thread, or on the main reactor if that has exited. If the end takes
    /// longer than [`shutdown_limit`](Self::shutdown_limit), stderr is told what
    /// holds it. The third within two seconds ends the process at once, as if
    /// nothing handled the signal; others are ignored. None of that needs a reactor
    /// that is not blocked.
    ///
    /// Signals belong to the process. Where several apps run in one, each that
    /// handles signals is asked, and what was in force before the first of them is
    /// put back when the last has ended, unless the program has installed another
    /// handler since then, which stays. A child made by `fork` has no reactors:
    /// there the signals do what they do by default.
    pub fn handle_signals(mut self, handle: bool) -> Self {
        self.signals = handle;
        self
    }

    /// Called, once, on the app thread by the first SIGINT or SIGTERM, instead
    /// of stopping the app; it has to see to it that [`AppHandle::stop`] is
    /// called in the end. If it panics, the app is stopped with code 1. If the app
    /// thread has exited by then, it is called on the main reactor, with no
    /// SpdkThread current.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::{Arc, atomic::{AtomicBool, Ordering}};
    /// use corespun::app::App;
    ///
    /// let flushed = Arc::new(AtomicBool::new(false));
    /// let flag = flushed.clone();
    /// let code = App::builder()
    ///     .on_shutdown(move |app| {
    ///         flag.store(true, Ordering::Relaxed);
    ///         app.stop(0);
    ///     })
    ///     // As SIGTERM would.
    ///     .run(async |app| app.start_shutdown())?;
    /// assert!(code == 0 && flushed.load(Ordering::Relaxed));
    /// # Ok::<(), corespun::app::AppError>(())
    /// ```
    pub fn on_shutdown(mut self, shutdown: impl FnOnce(&AppHandle) + Send + 'static) -> Self {
        self.shutdown = Some(Box::new(shutdown));
        self
    }

    /// How long the end of the app may take after SIGINT or SIGTERM before stderr
    /// is told what holds it: reactors that do not answer, and threads with what
    /// they wait for; 3 s unless set. After that, each signal is answered with it
    /// again.
    pub fn shutdown_limit(mut self, limit: Duration) -> Self {
        self.shutdown_limit = limit;
        self
    }

    /// The scheduler in use from the start, by name, and its options:
    /// [`Value::Null`](serde_json::Value::Null) leaves those as they are.
    /// `"static"` unless set. See [`scheduler`](crate::reactor::scheduler). With the feature
    /// `scheduler-options`, which is on by default.
    #[cfg(feature = "scheduler-options")]
    pub fn scheduler(mut self, name: impl Into<String>, options: serde_json::Value) -> Self {
        self.scheduling.scheduler = Some((name.into(), options));
        self
    }

    /// Registers a scheduler of your own, so that [`AppBuilder::scheduler`] can name
    /// it.
    pub fn register_scheduler(
        mut self,
        name: impl Into<String>,
        scheduler: impl Scheduler,
    ) -> Self {
        let one = (name.into(), Box::new(scheduler) as Box<dyn Scheduler>);
        self.scheduling.schedulers.push(one);
        self
    }

    /// The time between two rounds of the scheduler; one second unless set, and zero
    /// for none by themselves.
    pub fn scheduler_period(mut self, period: Duration) -> Self {
        self.scheduling.period = Some(period);
        self
    }

    /// The core that runs the scheduler; the main core unless set.
    pub fn scheduling_core(mut self, core: usize) -> Self {
        self.scheduling.core = Some(core);
        self
    }

    /// Cores that no scheduler moves threads to or from.
    pub fn isolated_cores(mut self, cores: CpuSet) -> Self {
        self.scheduling.isolated = Some(cores);
        self
    }

    /// Adds a subsystem: initialised before the start function is called, finished
    /// when the app stops. Its name and what it depends on are asked here, and looked
    /// at when the app is run.
    pub fn subsystem(mut self, subsystem: impl Subsystem) -> Self {
        self.subsystems.push(Registered::new(subsystem));
        self
    }

    /// Runs the app: starts the reactors, runs `start` on the app thread, and
    /// blocks until [`AppHandle::stop`] was called and every thread has exited
    /// (`spdk_app_start`). Returns the exit code given there. That `start`
    /// ends does not stop the app. What stops it while [subsystems](Subsystem) are
    /// initialised has `start` not called.
    ///
    /// The reactor of the main core runs in the calling OS thread, whose
    /// affinity and name are restored in the end.
    ///
    /// # Errors
    ///
    /// [`AppError`]; if it is neither [`AppError::StartPanicked`] nor
    /// [`AppError::ReactorPanicked`], then `start` was not called.
    ///
    /// # Examples
    ///
    /// It lasts until the stop, however long after the end of the start function:
    ///
    /// ```
    /// use std::time::Duration;
    /// use corespun::{app::{App, AppHandle}, task, time};
    ///
    /// let code = App::builder().run(async |app: AppHandle| {
    ///     drop(task::spawn_local(async move {
    ///         time::sleep(Duration::from_micros(50)).await;
    ///         app.stop(5);
    ///     }));
    /// })?;
    /// assert_eq!(code, 5);
    /// # Ok::<(), corespun::app::AppError>(())
    /// ```
    pub fn run<S>(self, start: S) -> Result<i32, AppError>
    where
        S: AsyncFnOnce(AppHandle) + 'static,
    {
        let app = self.start(start)?;
        Ok(app.shared.code.load(Ordering::Acquire))
    }

    /// Runs the app for as long as `main` runs, and returns what that returns.
    ///
    /// # Errors
    ///
    /// As [`AppBuilder::run`], and [`AppError::Stopped`] if the app was stopped
    /// before `main` had ended: by a signal, or by [`AppHandle::stop`].
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::app::{App, AppHandle};
    ///
    /// let sum = App::builder().block_on(async |app: AppHandle| {
    ///     let worker = app.thread().create().unwrap();
    ///     worker.call(|| (1..=10).sum::<u32>()).await.unwrap()
    /// })?;
    /// assert_eq!(sum, 55);
    /// # Ok::<(), corespun::app::AppError>(())
    /// ```
    pub fn block_on<M, T>(self, main: M) -> Result<T, AppError>
    where
        M: AsyncFnOnce(AppHandle) -> T + 'static,
        T: 'static,
    {
        let output = Rc::new(Cell::new(None));
        let ended = output.clone();
        let app = self.start(async move |app: AppHandle| {
            let output = main(app.clone()).await;
            ended.set(Some(output));
            app.stop(0);
        })?;
        let code = app.shared.code.load(Ordering::Acquire);
        output.take().ok_or(AppError::Stopped { code })
    }

    /// [`block_on`](Self::block_on) of a `main` that may fail itself: both errors
    /// are one.
    ///
    /// # Errors
    ///
    /// Those of `main`, and those of [`block_on`](Self::block_on), converted.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::app::{App, AppHandle};
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     App::builder().try_block_on(serve)
    /// }
    ///
    /// async fn serve(app: AppHandle) -> Result<(), Box<dyn std::error::Error>> {
    ///     let worker = app.thread().name("worker").create()?;
    ///     assert_eq!(worker.call(|| 42).await?, 42);
    ///     Ok(())
    /// }
    /// ```
    pub fn try_block_on<M, T, E>(self, main: M) -> Result<T, E>
    where
        M: AsyncFnOnce(AppHandle) -> Result<T, E> + 'static,
        T: 'static,
        E: From<AppError> + 'static,
    {
        self.block_on(main)?
    }
}

impl fmt::Debug for AppBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppBuilder")
            .field("name", &self.name)
            .field("places", &self.places)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}
