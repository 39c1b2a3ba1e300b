//! Settings of an app, and running it.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use super::AppError;
use super::handle::{AppHandle, AppShared};
use super::os_thread::{Borrowed, name_after_core, reactor_name};
use super::signals::Registration;
use crate::clock::Clock;
use crate::cpu::{self, CpuSet};
use crate::io::{Driver, DriverConfig};
use crate::reactor::{
    AdaptivePolling, Group, Place, Placement, Reactor, ReactorMode, StartError, Watcher,
};
use crate::task::{JoinHandle, TaskBuilder};
use crate::thread::{PanicPolicy, SpdkThread, Stall, ThreadLib};

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
    /// assert_eq!(cores, Some(1));
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
enum OnPanic {
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
/// assert_eq!(reactors, Some(cpu::available()?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "call `run` or `block_on`"]
pub struct AppBuilder {
    name: String,
    places: Option<Vec<Place>>,
    main_core: Option<usize>,
    mode: ReactorMode,
    adaptive: AdaptivePolling,
    driver: DriverConfig,
    clock: Option<Clock>,
    stall_limit: Option<Duration>,
    stall_hook: Option<StallHook>,
    on_panic: OnPanic,
    signals: bool,
    shutdown: Option<ShutdownFn>,
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
        }
    }
}

impl AppBuilder {
    /// The app's name, and its app thread's.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{app::App, thread::SpdkThread};
    ///
    /// let name = App::builder().name("target").block_on(async |_app| {
    ///     SpdkThread::current().unwrap().name().to_owned()
    /// })?;
    /// assert_eq!(name.as_deref(), Some("target"));
    /// # Ok::<(), corespun::app::AppError>(())
    /// ```
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The cores to run a reactor on; the first core of the process unless
    /// set. `"0x3".parse()` makes a set of a core mask, `"[0-1]"` of a list.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{app::App, cpu::{self, CpuSet}};
    ///
    /// let last: CpuSet = cpu::available()?.iter().last().into_iter().collect();
    /// let cores = App::builder().cores(last).block_on(async |app| app.reactors().cores())?;
    /// assert_eq!(cores, Some(last));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn cores(mut self, cores: CpuSet) -> Self {
        let places = cores.iter().map(|core| Place { core, cpu: core });
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
    /// assert_eq!(reactors.as_deref(), Some("[0-3]"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn lcores(mut self, lcores: impl IntoIterator<Item = (usize, usize)>) -> Self {
        let places = lcores.into_iter().map(|(core, cpu)| Place { core, cpu });
        self.places = Some(places.collect());
        self
    }

    /// The core whose reactor runs in the OS thread that calls `run`, and that
    /// the app thread lives on; the lowest unless set.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{app::App, cpu::{self, CpuSet}};
    ///
    /// let cpu = cpu::available()?.first().unwrap();
    /// let home = App::builder()
    ///     .lcores([(0, cpu), (1, cpu)])
    ///     .main_core(1)
    ///     .block_on(async |app| app.app_thread().cpumask())?;
    /// assert_eq!(home, Some(CpuSet::single(1)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn main_core(mut self, core: usize) -> Self {
        self.main_core = Some(core);
        self
    }

    /// What the reactors do when idle; [`ReactorMode::Adaptive`] unless set.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{app::App, reactor::ReactorMode};
    ///
    /// let mode = App::builder().mode(ReactorMode::Poll).block_on(async |app| {
    ///     let core = app.reactors().cores().first().unwrap();
    ///     app.reactors().mode(core)
    /// })?;
    /// assert_eq!(mode, Some(Some(ReactorMode::Poll)));
    /// # Ok::<(), corespun::app::AppError>(())
    /// ```
    pub fn mode(mut self, mode: ReactorMode) -> Self {
        self.mode = mode;
        self
    }

    /// How long adaptive mode spins.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use corespun::{app::App, reactor::AdaptivePolling, time};
    ///
    /// // Spins for longer than the pauses of this work, so that it never sleeps in them.
    /// let polling = AdaptivePolling { max: Duration::from_micros(200), ..AdaptivePolling::default() };
    /// let pauses = App::builder().adaptive_polling(polling).block_on(async |_app| {
    ///     for _ in 0..10 {
    ///         time::sleep(Duration::from_micros(20)).await;
    ///     }
    ///     10
    /// })?;
    /// assert_eq!(pauses, Some(10));
    /// # Ok::<(), corespun::app::AppError>(())
    /// ```
    pub fn adaptive_polling(mut self, polling: AdaptivePolling) -> Self {
        self.adaptive = polling;
        self
    }

    /// Settings of the reactors' I/O drivers, the back-end among them.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{app::App, io::{Backend, BackendChoice, Driver, DriverConfig}};
    ///
    /// let config = DriverConfig::new().backend(BackendChoice::Epoll);
    /// let backend = App::builder().io(config).block_on(async |_app| {
    ///     Driver::current().unwrap().backend()
    /// })?;
    /// assert_eq!(backend, Some(Backend::Epoll));
    /// # Ok::<(), corespun::app::AppError>(())
    /// ```
    pub fn io(mut self, config: DriverConfig) -> Self {
        self.driver = config;
        self
    }

    /// Where ticks come from; the system clock unless set.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{app::App, clock::Clock, time};
    ///
    /// let (clock, hand) = Clock::virtual_at(1_000_000);
    /// hand.set(7_000);
    /// let now = App::builder().clock(clock).block_on(async |_app| time::now())?;
    /// assert_eq!(now, Some(7_000));
    /// # Ok::<(), corespun::app::AppError>(())
    /// ```
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
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::app::App;
    /// use std::{sync::mpsc, thread, time::Duration};
    ///
    /// let (seen, stalls) = mpsc::channel();
    /// App::builder()
    ///     .stall_limit(Duration::from_millis(1))
    ///     .stall_hook(move |stall| _ = seen.send(stall.held))
    ///     .block_on(async |_| thread::sleep(Duration::from_millis(2)))?;
    /// assert!(stalls.iter().any(|held| held >= Duration::from_millis(2)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn stall_hook(mut self, hook: impl Fn(&Stall<'_>) + Send + Sync + 'static) -> Self {
        self.stall_hook = Some(Box::new(hook));
        self
    }

    /// Stops the app with `code` when user code panics on one of its threads
    /// and nobody receives the panic. Without this, a panic is reported and
    /// the app goes on.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{app::App, task};
    ///
    /// let code = App::builder().stop_on_panic(7).run(async |_app| {
    ///     // Nobody joins it.
    ///     drop(task::spawn_local(async { panic!("no such queue") }));
    /// })?;
    /// assert_eq!(code, 7);
    /// # Ok::<(), corespun::app::AppError>(())
    /// ```
    pub fn stop_on_panic(mut self, code: i32) -> Self {
        self.on_panic = OnPanic::Stop(code);
        self
    }

    /// Aborts the process when user code panics on one of the app's threads.
    ///
    /// # Examples
    ///
    /// For a service that is restarted, with a core dump to look into. A panic is all
    /// that it reacts to:
    ///
    /// ```
    /// use corespun::app::App;
    ///
    /// let code = App::builder().abort_on_panic().run(async |app| app.stop(0))?;
    /// assert_eq!(code, 0);
    /// # Ok::<(), corespun::app::AppError>(())
    /// ```
    pub fn abort_on_panic(mut self) -> Self {
        self.on_panic = OnPanic::Abort;
        self
    }

    /// Whether SIGINT and SIGTERM stop the app; they do unless this says no.
    ///
    /// # Examples
    ///
    /// An app inside of a larger program leaves the signals to that:
    ///
    /// ```
    /// use corespun::app::App;
    ///
    /// let answer = App::builder().handle_signals(false).block_on(async |_app| 42)?;
    /// assert_eq!(answer, Some(42));
    /// # Ok::<(), corespun::app::AppError>(())
    /// ```
    pub fn handle_signals(mut self, handle: bool) -> Self {
        self.signals = handle;
        self
    }

    /// Called, once, on the app thread by the first SIGINT or SIGTERM, instead
    /// of stopping the app; it has to see to it that [`AppHandle::stop`] is
    /// called in the end. Later signals are ignored.
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

    /// Runs the app: starts the reactors, runs `start` on the app thread, and
    /// blocks until [`AppHandle::stop`] was called and every thread has exited
    /// (`spdk_app_start`). Returns the exit code given there. That `start`
    /// ends does not stop the app.
    ///
    /// The reactor of the main core runs in the calling OS thread, whose
    /// affinity and name are restored in the end.
    ///
    /// # Errors
    ///
    /// [`AppError`]; if it is not [`AppError::StartPanicked`], then `start` was
    /// not called.
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
    /// An app stopped by somebody else returns `None`.
    ///
    /// # Errors
    ///
    /// As [`AppBuilder::run`].
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
    /// assert_eq!(sum, Some(55));
    /// # Ok::<(), corespun::app::AppError>(())
    /// ```
    pub fn block_on<M, T>(self, main: M) -> Result<Option<T>, AppError>
    where
        M: AsyncFnOnce(AppHandle) -> T + 'static,
        T: 'static,
    {
        let output = Rc::new(Cell::new(None));
        let ended = output.clone();
        self.start(async move |app: AppHandle| {
            let output = main(app.clone()).await;
            ended.set(Some(output));
            app.stop(0);
        })?;
        Ok(output.take())
    }

    fn start<S>(mut self, start: S) -> Result<AppHandle, AppError>
    where
        S: AsyncFnOnce(AppHandle) + 'static,
    {
        if let Some(thread) = SpdkThread::current() {
            return Err(AppError::InsideThread {
                thread: thread.name().to_owned(),
            });
        }
        if Driver::current().is_some() {
            return Err(AppError::InsideLoop);
        }
        let available = cpu::available()?;
        let places = self.places(&available)?;
        let stop_on_panic: Arc<OnceLock<Weak<AppShared>>> = Arc::default();
        let taken: CpuSet = places.iter().map(|place| place.cpu).collect();
        let free = available & !taken;
        // With a reactor on every core, helper threads have to share.
        let helper_cpus = if free.is_empty() { available } else { free };
        let library = self.library(stop_on_panic.clone(), helper_cpus);
        let driver = self.driver.helpers(library.inner.helpers.clone());
        let group = Group::new(library.clone(), &places, self.mode, self.adaptive, driver)
            .map_err(StartError::from)?;
        let app = AppHandle::new(self.name.clone(), group.clone(), self.shutdown);

        let _borrowed = Borrowed::new()?;
        let start_watcher = |limit| Watcher::start(group.clone(), limit, helper_cpus);
        let watcher = self.stall_limit.map(start_watcher).transpose();
        let watcher = watcher.map_err(StartError::from)?;
        let others = OtherReactors::start(&group, &places)?;
        let mut reactor = Reactor::start(group.clone(), 0)?;
        name_after_core(places[0].core);
        library
            .set_framework(Arc::new(Placement(Arc::downgrade(&group))))
            .expect("the library was made here");
        let app_thread = library
            .thread()
            .name(self.name)
            .cpumask(CpuSet::single(places[0].core))
            .build()?;
        let _ = app.shared.app_thread.set(app_thread.handle());
        let _ = stop_on_panic.set(Arc::downgrade(&app.shared));
        let signals = self
            .signals
            .then(|| Registration::new(app.clone()))
            .transpose()?;
        let panicked = Rc::new(Cell::new(None));
        drop(reactor.arrive(app_thread).enter(|| {
            let given = app.clone();
            let start = TaskBuilder::new()
                .name("start function")
                .spawn_local(async move { start(given).await });
            let watch = watch(start, app.clone(), panicked.clone());
            TaskBuilder::new()
                .name("start function's end")
                .spawn_local(watch)
        }));
        reactor.run();
        others.join();
        drop(watcher);
        // Only now: a signal is ignored for as long as anything winds down.
        drop(signals);
        if let Some((core, source)) = group.failure() {
            return Err(AppError::IoLost { core, source });
        }
        match panicked.take() {
            Some(message) => Err(AppError::StartPanicked { message }),
            None => Ok(app),
        }
    }

    fn library(&mut self, app: Arc<OnceLock<Weak<AppShared>>>, helper_cpus: CpuSet) -> ThreadLib {
        let mut builder = ThreadLib::builder().helper_cpus(helper_cpus);
        if let Some(clock) = &self.clock {
            builder = builder.clock(clock.clone());
        }
        if let Some(limit) = self.stall_limit {
            builder = builder.stall_limit(limit);
        }
        if let Some(hook) = self.stall_hook.take() {
            builder = builder.stall_hook(hook);
        }
        match self.on_panic {
            OnPanic::Contain => builder,
            OnPanic::Abort => builder.panic_policy(PanicPolicy::Abort),
            OnPanic::Stop(code) => builder.panic_hook(move |_| {
                // The app owns the library, so this must not own the app.
                if let Some(shared) = app.get().and_then(Weak::upgrade) {
                    AppHandle { shared }.stop(code);
                }
            }),
        }
        .build()
    }

    /// Where the reactors go, the main one first.
    fn places(&self, available: &CpuSet) -> Result<Vec<Place>, AppError> {
        let mut places = match &self.places {
            Some(places) => places.clone(),
            None => available
                .first()
                .map(|core| Place { core, cpu: core })
                .into_iter()
                .collect(),
        };
        if places.is_empty() {
            return Err(AppError::NoCores);
        }
        places.sort_by_key(|place| place.core);
        if let Some(pair) = places.windows(2).find(|pair| pair[0].core == pair[1].core) {
            return Err(AppError::DuplicateCore { core: pair[0].core });
        }
        if let Some(place) = places.iter().find(|place| place.core >= CpuSet::CAPACITY) {
            return Err(AppError::CoreTooHigh { core: place.core });
        }
        if let Some(place) = places.iter().find(|place| !available.contains(place.cpu)) {
            return Err(AppError::NoSuchCore {
                core: place.cpu,
                available: available.as_list().to_string(),
            });
        }
        if let Some(core) = self.main_core {
            let Some(main) = places.iter().position(|place| place.core == core) else {
                let cores: CpuSet = places.iter().map(|place| place.core).collect();
                return Err(AppError::NotAmongCores {
                    core,
                    cores: cores.as_list().to_string(),
                });
            };
            let main = places.remove(main);
            places.insert(0, main);
        }
        Ok(places)
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

/// Stops the app if its start function panics: nothing else would.
async fn watch(start: JoinHandle<()>, app: AppHandle, panicked: Rc<Cell<Option<String>>>) {
    if let Err(error) = start.await
        && error.is_panic()
    {
        panicked.set(Some(error.to_string()));
        app.stop(1);
    }
}

/// The reactors that run in OS threads of their own.
struct OtherReactors {
    group: Arc<Group>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl OtherReactors {
    /// Starts them and waits until each can poll; if one cannot, all end.
    fn start(group: &Arc<Group>, places: &[Place]) -> Result<Self, StartError> {
        let (report, reports) = std::sync::mpsc::channel();
        let mut others = OtherReactors {
            group: group.clone(),
            threads: Vec::new(),
        };
        for (index, place) in places.iter().enumerate().skip(1) {
            let group = group.clone();
            let report = report.clone();
            let spawned = std::thread::Builder::new()
                .name(reactor_name(place.core))
                .spawn(move || match Reactor::start(group, index) {
                    Ok(reactor) => {
                        let _ = report.send(Ok(()));
                        drop(report);
                        reactor.run();
                    }
                    Err(error) => drop(report.send(Err(error))),
                });
            match spawned {
                Ok(thread) => others.threads.push(thread),
                Err(error) => {
                    others.stop();
                    return Err(error.into());
                }
            }
        }
        drop(report);
        for report in reports {
            if let Err(error) = report {
                others.stop();
                return Err(error);
            }
        }
        Ok(others)
    }

    fn stop(self) {
        self.group.stop();
        self.join();
    }

    fn join(mut self) {
        self.join_all();
    }

    fn join_all(&mut self) {
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a reactor panicked");
            }
        }
    }
}

impl Drop for OtherReactors {
    /// An app that fails to start after its reactors did.
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.group.stop();
            self.join_all();
        }
    }
}
