//! Governors: the frequencies of the processors that reactors run on, and how deep
//! those may sleep.
//!
//! A [`Scheduler`](super::scheduler::Scheduler) asks for frequencies in its plans;
//! the [`Governor`] that it has chosen sets them. [`Cpufreq`] is the one of Linux, by
//! the name `"cpufreq"`. [`ResumeLatency`] is apart from all that: it tells the kernel
//! how long a processor may take to wake.

mod cpufreq;
mod resume;

use std::io;
use std::path::PathBuf;

use crate::cpu::CpuSet;

pub use cpufreq::Cpufreq;
pub use resume::{LatencyLimit, ResumeLatency};

/// The name of [`Cpufreq`] among the governors.
pub(crate) const CPUFREQ: &str = "cpufreq";

/// The directory of the processors.
const SYSTEM: &str = "/sys/devices/system/cpu";

/// A change of a processor's frequency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Frequency {
    /// The lowest there is.
    Min,
    /// One step lower.
    Down,
    /// One step higher.
    Up,
    /// The highest there is.
    Max,
}

/// Sets the frequencies of processors (`struct spdk_governor`).
///
/// Called in events on the scheduling core, one call at a time; so it should not take
/// long.
///
/// # Examples
///
/// One that only takes notes:
///
/// ```
/// use corespun::{cpu::CpuSet, reactor::governor::{Frequency, Governor, GovernorError}};
///
/// #[derive(Default)]
/// struct Notes(Vec<(usize, Frequency)>);
///
/// impl Governor for Notes {
///     fn init(&mut self, _cpus: &CpuSet) -> Result<(), GovernorError> {
///         Ok(())
///     }
///
///     fn set(&mut self, cpu: usize, frequency: Frequency) -> Result<bool, GovernorError> {
///         self.0.push((cpu, frequency));
///         Ok(true)
///     }
///
///     fn frequency(&mut self, _cpu: usize) -> Result<u32, GovernorError> {
///         Ok(2_000_000)
///     }
/// }
///
/// let mut notes = Notes::default();
/// assert_eq!(notes.set(0, Frequency::Max), Ok(true));
/// ```
pub trait Governor: Send + 'static {
    /// Takes over these processors, those of the reactors.
    ///
    /// # Errors
    ///
    /// Why it cannot; it has changed nothing then.
    fn init(&mut self, cpus: &CpuSet) -> Result<(), GovernorError>;

    /// Gives them back as it found them. Unless overridden, does nothing.
    fn deinit(&mut self) {}

    /// Changes the frequency of a processor; says whether there was something to
    /// change.
    ///
    /// # Errors
    ///
    /// What was refused.
    fn set(&mut self, cpu: usize, frequency: Frequency) -> Result<bool, GovernorError>;

    /// The frequency of a processor now, in kHz.
    ///
    /// # Errors
    ///
    /// Why it cannot be told.
    fn frequency(&mut self, cpu: usize) -> Result<u32, GovernorError>;

    /// The processors that share a frequency with `cpu`, itself included. Unless
    /// overridden, none does.
    fn siblings(&mut self, cpu: usize) -> CpuSet {
        CpuSet::single(cpu)
    }
}

/// Why a governor does not do what it was asked to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GovernorError {
    /// No governor was registered under that name.
    #[error("there is no governor {name:?}; registered are {available}")]
    Unknown {
        /// The name asked for.
        name: String,
        /// The names there are.
        available: String,
    },
    /// The machine has no such thing, as in most virtual machines.
    #[error("processor {cpu} has no frequency control: there is no {}", path.display())]
    NotThere {
        /// The processor.
        cpu: usize,
        /// What was looked for.
        path: PathBuf,
    },
    /// A file of the kernel could not be read or written, or holds what it should
    /// not.
    #[error("processor {cpu}: {}: {message}", path.display())]
    File {
        /// The processor.
        cpu: usize,
        /// The file.
        path: PathBuf,
        /// What went wrong.
        message: String,
    },
    /// A processor shares its frequency with one that is not the reactors'.
    #[error(
        "processor {cpu} shares its frequency with {siblings}, and not all of them are the reactors'"
    )]
    Shared {
        /// The processor.
        cpu: usize,
        /// All that share it.
        siblings: String,
    },
    /// It was not told of this processor.
    #[error("processor {cpu} is not one of those that the governor took over: {taken}")]
    NotTaken {
        /// The processor.
        cpu: usize,
        /// Those it took over.
        taken: String,
    },
    /// The governor panicked.
    #[error("governor {name:?} panicked: {message}")]
    Panicked {
        /// Its name.
        name: String,
        /// What the panic said.
        message: String,
    },
}

impl GovernorError {
    fn file(cpu: usize, path: PathBuf, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => GovernorError::NotThere { cpu, path },
            _ => GovernorError::File {
                cpu,
                path,
                message: error.to_string(),
            },
        }
    }
}
