//! What is wrong when a spinlock is misused.

use std::fmt;
use std::panic::Location;

/// How a spinlock was misused.
///
/// # Examples
///
/// ```
/// use corespun::thread::{Spinlock, SpinlockMisuse};
///
/// let lock = Spinlock::with_hook(|_error| ());
/// let error = lock.lock().unwrap_err();
/// assert_eq!(error.misuse, SpinlockMisuse::NotOnThread);
/// assert_eq!(error.misuse.to_string(), "used off a SpdkThread");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpinlockMisuse {
    /// Used off a SpdkThread (`NOT_SPDK_THREAD`).
    NotOnThread,
    /// Locked by the thread that holds it (`DEADLOCK`).
    Deadlock,
    /// Unlocked by a thread that does not hold it (`WRONG_THREAD`).
    WrongThread,
    /// Still held when a callback returned (`HOLD_DURING_SWITCH`).
    HeldDuringSwitch,
    /// Destroyed while held (`LOCK_HELD`).
    DestroyedHeld,
}

impl fmt::Display for SpinlockMisuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SpinlockMisuse::NotOnThread => "used off a SpdkThread",
            SpinlockMisuse::Deadlock => "locked by the thread that holds it already",
            SpinlockMisuse::WrongThread => "unlocked by a thread that does not hold it",
            SpinlockMisuse::HeldDuringSwitch => {
                "still held when a message, poller or task returned to the loop"
            }
            SpinlockMisuse::DestroyedHeld => "destroyed while held",
        })
    }
}

/// A misuse of a spinlock, with all that is known about it.
///
/// # Examples
///
/// It names both threads:
///
/// ```
/// use corespun::thread::{SpinlockMisuse, Spinlock, ThreadLib};
///
/// let library = ThreadLib::new();
/// let mut a = library.thread().name("a").build()?.attach();
/// let mut b = library.thread().name("b").build()?.attach();
/// let lock = Spinlock::with_hook(|_error| ());
/// a.enter(|| lock.lock())?;
/// let error = b.enter(|| lock.unlock()).unwrap_err();
/// assert_eq!(error.misuse, SpinlockMisuse::WrongThread);
/// assert!(error.thread.contains("\"b\"") && error.holder.unwrap().contains("\"a\""));
/// a.enter(|| lock.unlock())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("spinlock made at {made}: {misuse}; by {thread} at {at}{}", Other(.holder, .locked))]
#[non_exhaustive]
pub struct SpinlockError {
    /// What was wrong.
    pub misuse: SpinlockMisuse,
    /// Where the lock was made.
    pub made: &'static Location<'static>,
    /// The name of the thread that misused it.
    pub thread: String,
    /// Where; for [`SpinlockMisuse::HeldDuringSwitch`], where it was locked.
    pub at: &'static Location<'static>,
    /// The name of the thread that holds it, if any does.
    pub holder: Option<String>,
    /// Where it was last locked.
    pub locked: Option<&'static Location<'static>>,
}

struct Other<'a>(&'a Option<String>, &'a Option<&'static Location<'static>>);

impl fmt::Display for Other<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(holder) = self.0 {
            write!(f, "; held by {holder}")?;
        }
        match self.1 {
            Some(locked) => write!(f, "; last locked at {locked}"),
            None => Ok(()),
        }
    }
}
