//! The application framework: reactors on the cores asked for, a start function
//! on the app thread, and a clean end.
//!
//! ```
//! use corespun::{app::App, cpu::CpuSet, reactor::ReactorMode};
//!
//! let core = corespun::cpu::available()?.first().expect("at least one core");
//! let code = App::builder()
//!     .name("hello")
//!     .cores(CpuSet::single(core))
//!     .mode(ReactorMode::Interrupt)
//!     .run(async |app| {
//!         println!("hello from core mask {}", app.reactors().cores());
//!         app.stop(0);
//!     })?;
//! assert_eq!(code, 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod builder;
mod handle;
mod os_thread;
mod run;
mod signals;
mod subsystem;
#[cfg(test)]
mod tests;

pub use builder::{App, AppBuilder};
pub use handle::AppHandle;
pub use subsystem::{Subsystem, SubsystemError, SubsystemInfo};

use crate::reactor::{ReactorPanicked, StartError};
use crate::thread::CreateError;

/// Why an app could not be started, or how its start function failed.
///
/// # Examples
///
/// ```
/// use corespun::{app::{App, AppError}, cpu::CpuSet};
///
/// let none = App::builder().cores(CpuSet::empty()).run(async |app| app.stop(0));
/// assert!(matches!(none, Err(AppError::NoCores)));
/// let twice = App::builder().lcores([(3, 0), (3, 0)]).run(async |app| app.stop(0));
/// assert_eq!(twice.unwrap_err().to_string(), "core 3 is listed twice");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppError {
    /// The core mask or list is empty.
    #[error("no core was asked for: give a core mask such as 0x1 or a list such as [0-3]")]
    NoCores,
    /// A core was asked for that this process does not have.
    #[error("core {core} does not exist or is not allowed to this process, which has {available}")]
    NoSuchCore {
        /// The core asked for.
        core: usize,
        /// Those there are, as a list.
        available: String,
    },
    /// The main core is not among the cores asked for.
    #[error("main core {core} is not among the cores asked for, {cores}")]
    NotAmongCores {
        /// The main core asked for.
        core: usize,
        /// The cores asked for, as a list.
        cores: String,
    },
    /// Two reactors were given the same core number.
    #[error("core {core} is listed twice")]
    DuplicateCore {
        /// The number.
        core: usize,
    },
    /// A reactor's number is higher than a core mask can say.
    #[error("core {core} is too high: cores are numbered from 0 to 1023")]
    CoreTooHigh {
        /// The number.
        core: usize,
    },
    /// This OS thread is polling a SpdkThread.
    #[error(
        "an app cannot be run inside a SpdkThread, here {thread:?}: it would block the reactor"
    )]
    InsideThread {
        /// The current SpdkThread's name.
        thread: String,
    },
    /// This OS thread is a reactor, or has entered an I/O driver.
    #[error(
        "an app cannot be run on an OS thread that runs a reactor or an I/O driver already: it would block it"
    )]
    InsideLoop,
    /// The reactors could not be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The cores of this process could not be read.
    #[error(transparent)]
    Affinity(#[from] crate::cpu::AffinityError),
    /// The app thread could not be made.
    #[error(transparent)]
    Thread(#[from] CreateError),
    /// The signal handlers could not be installed, or what serves them not made.
    #[error("cannot handle SIGINT and SIGTERM: {0}")]
    Signals(std::io::Error),
    /// The kernel refused to serve a reactor's I/O while the app ran, which stopped it.
    #[error("reactor {core} stopped the app: {source}")]
    IoLost {
        /// The reactor's core.
        core: usize,
        /// What was refused.
        source: std::io::Error,
    },
    /// The start function panicked.
    #[error("the app's start function panicked: {message}")]
    StartPanicked {
        /// The panic's text.
        message: String,
    },
    /// The app was stopped before the main function of
    /// [`block_on`](AppBuilder::block_on) had ended: by a signal, or by
    /// [`AppHandle::stop`].
    #[error("the app was stopped, with code {code}, before its main function had ended")]
    Stopped {
        /// The exit code that it was stopped with.
        code: i32,
    },
    /// The loop of a reactor panicked: its threads were ended, and the app was
    /// stopped. That is a fault of this library; panics of the program's own code
    /// are contained.
    #[error("the reactor of core {core} panicked, and the app was stopped: {message}")]
    ReactorPanicked {
        /// The reactor's core.
        core: usize,
        /// The panic's text.
        message: String,
    },
    /// The scheduler, its options or its cores are not what the app can have.
    #[error(transparent)]
    Scheduler(#[from] crate::reactor::scheduler::SchedulerError),
    /// The subsystems do not fit together, or one could not be initialised.
    #[error(transparent)]
    Subsystem(#[from] SubsystemError),
}

impl From<AppError> for std::io::Error {
    fn from(error: AppError) -> Self {
        std::io::Error::other(error)
    }
}

impl From<ReactorPanicked> for AppError {
    fn from(ReactorPanicked { core, message }: ReactorPanicked) -> Self {
        AppError::ReactorPanicked { core, message }
    }
}
