//! What a driver is made from, which back-end it ended up with, and why it could not be made.
//!
//! Plain values: read once by `Driver::new`, never shared afterwards.

use std::io;

use super::helpers::Helpers;
use crate::cpu::CpuSet;

/// Which back-end a driver is asked to use.
///
/// # Examples
///
/// ```
/// use corespun::io::{Backend, BackendChoice, Driver, DriverConfig};
///
/// let config = DriverConfig::new().backend(BackendChoice::Epoll);
/// let driver = Driver::new(&config)?;
/// assert_eq!(driver.backend(), Backend::Epoll);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum BackendChoice {
    /// io_uring where the kernel permits it, else epoll. Decided when the driver is made.
    #[default]
    Auto,
    /// io_uring or an error.
    IoUring,
    /// epoll readiness for sockets, Linux AIO for direct file I/O, helper threads for the rest.
    Epoll,
}

/// Which back-end a driver runs on.
///
/// # Examples
///
/// ```
/// use corespun::io::Backend;
///
/// // As it is shown.
/// assert_eq!(Backend::IoUring.to_string(), "io_uring");
/// assert_eq!(Backend::Epoll.to_string(), "epoll");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Backend {
    /// Linux io_uring: every operation is a ring entry, completions are reaped by the loop.
    IoUring,
    /// epoll, Linux AIO and helper threads.
    Epoll,
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Backend::IoUring => "io_uring",
            Backend::Epoll => "epoll",
        })
    }
}

/// The settings of a [`Driver`](super::Driver).
///
/// # Examples
///
/// ```
/// use corespun::io::{BackendChoice, DriverConfig};
///
/// let config = DriverConfig::new().backend(BackendChoice::Epoll).blocking_threads(2);
/// assert_eq!(config, config.clone());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverConfig {
    pub(crate) backend: BackendChoice,
    pub(crate) entries: u32,
    pub(crate) blocking_threads: usize,
    pub(crate) helper_affinity: Option<CpuSet>,
    pub(crate) pooled_bytes: usize,
    pub(crate) registered_bytes: usize,
    /// The pool to share, instead of one of its own.
    helpers: Option<Helpers>,
}

impl Default for DriverConfig {
    fn default() -> Self {
        DriverConfig {
            backend: BackendChoice::Auto,
            entries: 256,
            blocking_threads: 8,
            helper_affinity: None,
            pooled_bytes: 16 << 20,
            registered_bytes: 1 << 20,
            helpers: None,
        }
    }
}

impl DriverConfig {
    /// The defaults: back-end chosen at run time, 256 submission entries, at most 8 file operations
    /// on helper threads, at most 16 MiB of idle pooled buffers, of which 1 MiB is registered.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets which back-end to use.
    #[must_use]
    pub fn backend(mut self, choice: BackendChoice) -> Self {
        self.backend = choice;
        self
    }

    /// Sets the submission entries of the ring (io_uring) or the AIO context (epoll). The kernel
    /// rounds up to a power of two and clamps to its limit. This bounds a batch, not the number of
    /// operations in flight: what does not fit waits in the driver.
    #[must_use]
    pub fn entries(mut self, entries: u32) -> Self {
        self.entries = entries.max(1);
        self
    }

    /// Sets how many of this driver's own operations may run on helper threads at once (at least 1):
    /// what the back-end cannot do without blocking, as a buffered write on epoll. Calls of
    /// [`unblock`](super::unblock) do not count. Threads start when first needed and end after ten
    /// seconds without work.
    #[must_use]
    pub fn blocking_threads(mut self, max: usize) -> Self {
        self.blocking_threads = max.max(1);
        self
    }

    /// Sets the CPUs helper threads run on. A thread inherits the mask of the one that starts it, so
    /// a driver of a pinned OS thread should be given the process' original mask here; without it,
    /// helpers share the pinned CPU. An App's reactors use the helpers of its library instead
    /// ([`ThreadLibBuilder::helper_cpus`](crate::thread::ThreadLibBuilder::helper_cpus)).
    #[must_use]
    pub fn helper_affinity(mut self, cpus: CpuSet) -> Self {
        self.helper_affinity = Some(cpus);
        self
    }

    /// Has the driver use the threads of `helpers`.
    pub(crate) fn helpers(mut self, helpers: Helpers) -> Self {
        self.helpers = Some(helpers);
        self
    }

    /// The pool that the driver is to use.
    pub(crate) fn pool(&self) -> Helpers {
        match &self.helpers {
            Some(helpers) => helpers.clone(),
            None => Helpers::new(self.helper_affinity),
        }
    }

    /// Sets how many bytes of returned [`PooledBuf`](super::PooledBuf)s are kept for reuse.
    #[must_use]
    pub fn pooled_bytes(mut self, bytes: usize) -> Self {
        self.pooled_bytes = bytes;
        self
    }

    /// Sets how many bytes of [`PooledBuf`](super::PooledBuf)s are registered with the ring, 0 for
    /// none: the first ones that are made. They are memory that is locked (`RLIMIT_MEMLOCK`, for all
    /// processes of a user together), and stay in the pool until the driver ends; not more than
    /// [`pooled_bytes`](Self::pooled_bytes) are. Where the kernel refuses (before Linux 5.19, or at the
    /// limit), buffers are used without it.
    #[must_use]
    pub fn registered_bytes(mut self, bytes: usize) -> Self {
        self.registered_bytes = bytes;
        self
    }
}

/// Why a [`Driver`](super::Driver) could not be made.
///
/// # Examples
///
/// ```
/// use std::io::{Error, ErrorKind};
/// use corespun::io::DriverError;
///
/// let refused = DriverError::IoUringRefused(ErrorKind::PermissionDenied.into());
/// assert_eq!(Error::from(refused).kind(), ErrorKind::PermissionDenied);
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriverError {
    /// The kernel, or a filter in front of it, does not permit io_uring.
    #[error("io_uring is refused here ({0}): allow it, or use BackendChoice::Auto or Epoll")]
    IoUringRefused(#[source] io::Error),
    /// The kernel's io_uring lacks something the driver rests on.
    #[error("io_uring of this kernel lacks {0} (needs Linux 5.11): use BackendChoice::Epoll")]
    IoUringTooOld(&'static str),
    /// A descriptor the driver needs could not be made or set up.
    #[error("cannot set up {what} for the I/O driver: {source}")]
    Setup {
        /// What was being set up.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl From<DriverError> for io::Error {
    fn from(error: DriverError) -> Self {
        let kind = match &error {
            DriverError::IoUringRefused(source) | DriverError::Setup { source, .. } => {
                source.kind()
            }
            DriverError::IoUringTooOld(_) => io::ErrorKind::Unsupported,
        };
        io::Error::new(kind, error)
    }
}
