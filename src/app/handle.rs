//! The handle of a running app, and how it stops.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::subsystem::{Control, SubsystemInfo};
use crate::reactor::{Group, Reactors};
use crate::thread::panic::{PanicSource, contain, drop_logged};
use crate::thread::{SpdkThread, ThreadBuilder, ThreadLib};

type ShutdownFn = Box<dyn FnOnce(&AppHandle) + Send>;

pub(super) struct AppShared {
    pub(super) name: String,
    pub(super) group: Arc<Group>,
    pub(super) app_thread: OnceLock<SpdkThread>,
    pub(super) code: AtomicI32,
    pub(super) subsystems: Control,
    stopped: AtomicBool,
    shutdown_started: AtomicBool,
    /// What the first signal does instead of stopping the app.
    shutdown: Mutex<Option<ShutdownFn>>,
}

/// The last handle may go anywhere, as part of a waker too.
impl Drop for AppShared {
    fn drop(&mut self) {
        drop_logged(self.shutdown.get_mut().map(Option::take));
    }
}

impl AppShared {
    pub(super) fn app_thread(&self) -> &SpdkThread {
        let thread = self.app_thread.get();
        thread.expect("set before the handle is given out")
    }
}

/// A running app. Cheap to clone; any OS thread may use it.
///
/// # Examples
///
/// What it hands out reaches everything that runs:
///
/// ```
/// use corespun::app::{App, AppHandle};
///
/// let names = App::builder().name("target").block_on(async |app: AppHandle| {
///     let worker = app.thread().name("worker").create().unwrap();
///     let threads = app.library().threads();
///     let names: Vec<_> = threads.iter().map(|thread| thread.name().to_owned()).collect();
///     drop(worker);
///     names
/// })?;
/// assert_eq!(names, ["target", "worker"]);
/// # Ok::<(), corespun::app::AppError>(())
/// ```
#[derive(Clone)]
pub struct AppHandle {
    pub(super) shared: Arc<AppShared>,
}

impl AppHandle {
    pub(super) fn new(
        name: String,
        group: Arc<Group>,
        shutdown: Option<ShutdownFn>,
        subsystems: Control,
    ) -> Self {
        AppHandle {
            shared: Arc::new(AppShared {
                name,
                group,
                app_thread: OnceLock::new(),
                code: AtomicI32::new(0),
                subsystems,
                stopped: AtomicBool::new(false),
                shutdown_started: AtomicBool::new(false),
                shutdown: Mutex::new(shutdown),
            }),
        }
    }

    /// Stops the app (`spdk_app_stop`): its [subsystems] are finished, then every
    /// SpdkThread is asked to exit, the reactors end when all of them have, and
    /// [`AppBuilder::run`] returns. Of several calls, the first code that is not 0
    /// is kept.
    ///
    /// [`AppBuilder::run`]: super::AppBuilder::run
    /// [subsystems]: super::Subsystem
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::app::App;
    ///
    /// let code = App::builder().run(async |app| {
    ///     app.stop(0);
    ///     // A failure on the way down.
    ///     app.stop(2);
    ///     app.stop(3);
    /// })?;
    /// assert_eq!(code, 2);
    /// # Ok::<(), corespun::app::AppError>(())
    /// ```
    pub fn stop(&self, code: i32) {
        let _ = self
            .shared
            .code
            .compare_exchange(0, code, Ordering::AcqRel, Ordering::Relaxed);
        if self.shared.stopped.swap(true, Ordering::SeqCst) {
            tracing::info!(app = self.name(), code, "stop called again");
            return;
        }
        if self.shared.subsystems.stop() {
            self.shared.group.stop();
        }
    }

    /// Whether [`AppHandle::stop`] was called.
    pub(super) fn was_stopped(&self) -> bool {
        self.shared.stopped.load(Ordering::SeqCst)
    }

    /// Does what the first SIGINT or SIGTERM does (`spdk_app_start_shutdown`):
    /// calls the app's shutdown function if it has one, else stops it with
    /// code 0. Later calls do nothing.
    ///
    /// A shutdown function that panics cannot stop the app any more: the panic is
    /// reported, and the app is stopped with code 1.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::app::App;
    ///
    /// // Without a shutdown function, the app stops.
    /// let code = App::builder().run(async |app| app.start_shutdown())?;
    /// assert_eq!(code, 0);
    /// # Ok::<(), corespun::app::AppError>(())
    /// ```
    pub fn start_shutdown(&self) {
        if self.shared.shutdown_started.swap(true, Ordering::AcqRel) {
            tracing::info!(app = self.name(), "shuts down already");
            return;
        }
        let mut shutdown = self
            .shared
            .shutdown
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let function = shutdown.take();
        drop(shutdown);
        let Some(function) = function else {
            return self.stop(0);
        };
        if let Err(payload) = contain(|| function(self)) {
            let library = self.library();
            let (name, source) = (self.name(), PanicSource::Message);
            library
                .inner
                .report_panic(name, source, Some("on_shutdown"), payload);
            self.stop(1);
        }
    }

    /// Whether [`AppHandle::start_shutdown`] was called.
    pub(super) fn is_shutting_down(&self) -> bool {
        self.shared.shutdown_started.load(Ordering::Acquire)
    }

    /// Whether the app stops: [`AppHandle::stop`] was called, or a reactor has
    /// panicked.
    pub fn is_stopping(&self) -> bool {
        self.was_stopped() || self.shared.group.is_stopping()
    }

    /// The subsystems, in the order they are initialised
    /// (`framework_get_subsystems`).
    pub fn subsystems(&self) -> &[SubsystemInfo] {
        self.shared.subsystems.order()
    }

    /// The app's name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The reactors.
    pub fn reactors(&self) -> Reactors {
        Reactors(self.shared.group.clone())
    }

    /// Settings for a new thread, to be placed on a reactor by
    /// [`create`](ThreadBuilder::create).
    pub fn thread(&self) -> ThreadBuilder {
        self.reactors().thread()
    }

    /// The thread that the start function runs on.
    pub fn app_thread(&self) -> SpdkThread {
        self.shared.app_thread().clone()
    }

    /// The library instance that all of this belongs to.
    pub fn library(&self) -> ThreadLib {
        self.reactors().library().clone()
    }
}

impl fmt::Debug for AppHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppHandle")
            .field("name", &self.name())
            .field("stopping", &self.is_stopping())
            .finish_non_exhaustive()
    }
}
