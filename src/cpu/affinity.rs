//! Which cores an OS thread may run on. Everything here acts on the calling
//! OS thread and keeps no state of its own: a caller that needs the process's
//! cores after pinning has to have asked before.

use std::io;

use nix::sched::{sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use thiserror::Error;

use super::CpuSet;

/// "The calling thread", where the kernel asks for a thread id.
const SELF: Pid = Pid::from_raw(0);

/// Why the kernel's idea of where a thread may run could not be read or set.
///
/// # Examples
///
/// ```
/// use corespun::cpu::{self, AffinityError, CpuSet};
///
/// let error = cpu::pin_current_thread(CpuSet::CAPACITY).unwrap_err();
/// assert!(matches!(error, AffinityError::Pin { core: 1024, .. }));
/// ```
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AffinityError {
    /// The thread could not be pinned to this core.
    #[error("cannot pin the current thread to core {core}: {source}{}", set_hint(.source))]
    Pin {
        /// The core asked for.
        core: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// The thread could not be confined to these cores.
    #[error(
        "cannot confine the current thread to cores {}: {source}{}",
        .cpus.as_list(),
        set_hint(.source)
    )]
    Confine {
        /// The cores asked for.
        cpus: Box<CpuSet>,
        /// What the kernel said.
        source: io::Error,
    },
    /// The cores of the thread could not be read.
    #[error("cannot read which cores the current thread may run on: {source}{}", read_hint(.source))]
    Read {
        /// What the kernel said.
        source: io::Error,
    },
}

/// What to do about a refusal to set, as far as its errno tells.
fn set_hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EINVAL) => {
            "; choose cores that are online and that taskset or the container allows"
        }
        Some(libc::EPERM | libc::EACCES | libc::ENOSYS) => {
            "; the sandbox or container must allow sched_setaffinity"
        }
        _ => "",
    }
}

/// What to do about a refusal to read, as far as its errno tells.
fn read_hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EINVAL) => "; kernels built for more than 1024 CPUs refuse a mask of this size",
        Some(libc::EPERM | libc::EACCES | libc::ENOSYS) => {
            "; the sandbox or container must allow sched_getaffinity"
        }
        _ => "",
    }
}

/// The cores this process may run on, as the calling thread sees them.
///
/// Ask once, from a thread that is not pinned (`main`, before any reactor
/// starts), and keep the answer: the kernel keeps the mask per thread, so a
/// pinned thread, or one started from it, sees only its own core. taskset and
/// cpusets are honoured; CPU quotas are not a matter of cores and do not show.
///
/// # Errors
///
/// [`AffinityError::Read`] when the kernel refuses.
///
/// # Examples
///
/// ```
/// let cores = corespun::cpu::available()?;
/// assert!(!cores.is_empty());
/// # Ok::<(), corespun::cpu::AffinityError>(())
/// ```
pub fn available() -> Result<CpuSet, AffinityError> {
    let cores = core_affinity::get_core_ids().ok_or_else(|| AffinityError::Read {
        source: io::Error::last_os_error(),
    })?;
    Ok(cores.into_iter().map(|core| core.id).collect())
}

/// Pins the calling OS thread to one core. Threads it starts afterwards inherit
/// that: see [`set_current_affinity`].
///
/// # Errors
///
/// [`AffinityError::Pin`], naming the core, when it is not there, not allowed,
/// or above 1023. The thread then runs where it ran before.
///
/// # Examples
///
/// ```
/// use corespun::cpu::{self, CpuSet};
///
/// let core = cpu::available()?.first().unwrap();
/// let pinned = std::thread::spawn(move || {
///     cpu::pin_current_thread(core)?;
///     cpu::current_affinity()
/// });
/// assert_eq!(pinned.join().unwrap()?, CpuSet::single(core));
/// # Ok::<(), cpu::AffinityError>(())
/// ```
pub fn pin_current_thread(core: usize) -> Result<(), AffinityError> {
    // core_affinity indexes a 1024-bit mask with the id and panics beyond it.
    let pinned = if core >= CpuSet::CAPACITY {
        Err(io::Error::from_raw_os_error(libc::EINVAL))
    } else if core_affinity::set_for_current(core_affinity::CoreId { id: core }) {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    };
    pinned.map_err(|source| AffinityError::Pin { core, source })
}

/// Lets the calling OS thread run on any of `cpus`, and on no other core.
///
/// For helper threads (blocking pool, signal thread): a thread started from a
/// pinned reactor inherits the reactor's core and would compete with it, so its
/// first act is to go back to the cores that [`available`] gave at the start.
///
/// # Errors
///
/// [`AffinityError::Confine`] when none of `cpus` is there and allowed. The
/// thread then runs where it ran before.
///
/// # Examples
///
/// ```
/// use corespun::cpu;
///
/// let all = cpu::available()?;
/// cpu::pin_current_thread(all.first().unwrap())?;
/// let helper = std::thread::spawn(move || {
///     cpu::set_current_affinity(&all)?;
///     cpu::current_affinity()
/// });
/// assert_eq!(helper.join().unwrap()?, all);
/// # Ok::<(), cpu::AffinityError>(())
/// ```
pub fn set_current_affinity(cpus: &CpuSet) -> Result<(), AffinityError> {
    let mut mask = nix::sched::CpuSet::new();
    let confined = cpus
        .iter()
        .try_for_each(|cpu| mask.set(cpu))
        .and_then(|()| sched_setaffinity(SELF, &mask));
    confined.map_err(|errno| AffinityError::Confine {
        cpus: Box::new(*cpus),
        source: errno.into(),
    })
}

/// The cores the calling OS thread may run on right now.
///
/// # Errors
///
/// [`AffinityError::Read`] when the kernel refuses.
///
/// # Examples
///
/// ```
/// use corespun::cpu;
///
/// let before = cpu::current_affinity()?;
/// assert!(!before.is_empty());
/// assert_eq!(before, cpu::available()?);
/// # Ok::<(), cpu::AffinityError>(())
/// ```
pub fn current_affinity() -> Result<CpuSet, AffinityError> {
    let mask = sched_getaffinity(SELF).map_err(|errno| AffinityError::Read {
        source: errno.into(),
    })?;
    Ok((0..CpuSet::CAPACITY)
        .filter(|&cpu| mask.is_set(cpu) == Ok(true))
        .collect())
}
