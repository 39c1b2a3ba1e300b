//! Spinlocks of SpdkThreads: for the few data that several threads must share
//! and none may hold across a return to its loop.
//!
//! The owner is a SpdkThread, not an OS thread, and is known, so that every
//! misuse is detected: a second lock by the owner, an unlock by any other
//! caller, a lock off a SpdkThread, and a lock still held when a message, poller
//! or task poll returns to the loop. A thread knows the locks that it holds, and
//! its loop looks at their number after every callback.

mod held;
mod misuse;
mod mutex;

use std::fmt;
use std::hint;
use std::io::Write;
use std::panic::Location;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

pub(super) use held::HeldLocks;
pub use misuse::{SpinlockError, SpinlockMisuse};
pub use mutex::{SpinMutex, SpinMutexGuard};

use super::local::Local;
use super::panic::{contain, discard};
use crate::sync::{FREE, OwnerWord};

/// Spins before the OS thread gives way to the owner, which may hold the lock
/// without a core.
const SPINS: u32 = 1 << 14;

type Hook = Box<dyn Fn(&SpinlockError) + Send + Sync>;

struct LockState {
    /// The address of the owner's shared part, only compared.
    owner: OwnerWord,
    locked: AtomicPtr<Location<'static>>,
    made: &'static Location<'static>,
    /// The reaction to misuse; the process is aborted if there is none.
    hook: Option<Hook>,
}

/// The owner of a lock whose owner's memory is gone: no thread's address.
const GONE: usize = 1;

fn token(local: &Local) -> usize {
    Arc::as_ptr(&local.shared).addr()
}

impl LockState {
    fn locked_at(&self) -> Option<&'static Location<'static>> {
        let locked = self.locked.load(Ordering::Relaxed);
        // SAFETY: only `lock` stores here, and what it stores is `'static` and
        // never written.
        unsafe { locked.as_ref() }
    }

    /// Reports a misuse. It returns only if there is a hook.
    #[cold]
    fn misused(&self, misuse: SpinlockMisuse, at: &'static Location<'static>) -> SpinlockError {
        let owner = self.owner.get();
        let (thread, holder) = Local::with_current(|local| {
            let holder = (owner != FREE).then(|| {
                if owner == GONE {
                    return "a thread that is gone".to_owned();
                }
                // It may go meanwhile: found by its address.
                let known = local.shared.library.find_thread(owner);
                known.unwrap_or_else(|| {
                    "a thread that has exited or is of another library instance".to_owned()
                })
            });
            (format!("thread {:?}", local.shared.name()), holder)
        })
        .unwrap_or_else(|| {
            let holder = (owner != FREE).then(|| "a SpdkThread".to_owned());
            ("no SpdkThread".to_owned(), holder)
        });
        let error = SpinlockError {
            misuse,
            made: self.made,
            thread,
            at,
            holder,
            locked: self.locked_at(),
        };
        tracing::error!("{error}");
        match &self.hook {
            // A guard is being dropped: a second panic would end the process.
            Some(hook) if std::thread::panicking() => {
                if let Err(payload) = contain(|| hook(&error)) {
                    discard(payload);
                }
            }
            Some(hook) => hook(&error),
            None => {
                // A process that ends must say why, subscriber or not.
                let _ = writeln!(std::io::stderr(), "{error}");
                std::process::abort();
            }
        }
        error
    }
}

/// A spinlock of SpdkThreads, without data (`struct spdk_spinlock`). Code that
/// has data to guard is better off with a [`SpinMutex`].
///
/// It may be made and destroyed anywhere, and used on SpdkThreads only, of any
/// library instance. What is locked must be unlocked before the message, poller
/// or task poll returns. A misuse aborts the process, or goes to a hook, after
/// which the misused operation does nothing but return the error.
///
/// # Examples
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use corespun::thread::{Spinlock, SpinlockMisuse, ThreadLib};
///
/// let seen = Arc::new(Mutex::new(Vec::new()));
/// let hook = seen.clone();
/// let lock = Spinlock::with_hook(move |error| hook.lock().unwrap().push(error.misuse));
/// let mut thread = ThreadLib::new().thread().build()?.attach();
/// thread.enter(|| {
///     lock.lock()?;
///     assert!(lock.lock().is_err());
///     lock.unlock()
/// })?;
/// assert_eq!(*seen.lock().unwrap(), [SpinlockMisuse::Deadlock]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Spinlock {
    inner: Arc<LockState>,
}

impl Default for Spinlock {
    #[track_caller]
    fn default() -> Self {
        Spinlock::new()
    }
}

impl Spinlock {
    /// A lock whose misuse aborts the process (`spdk_spin_init`).
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::thread::{Spinlock, ThreadLib};
    ///
    /// let lock = Spinlock::new();
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// runner.enter(|| {
    ///     lock.lock()?;
    ///     assert!(lock.is_held());
    ///     lock.unlock()
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[track_caller]
    pub fn new() -> Self {
        Spinlock::make(None, Location::caller())
    }

    /// A lock whose misuse is told to `hook`, on the thread that misuses it. Its
    /// panic goes on to the caller that misuses the lock; one about a lock that a
    /// callback left held is contained, for that has returned, and so is one
    /// while another unwinds.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::mpsc;
    /// use corespun::thread::Spinlock;
    ///
    /// let (sender, reports) = mpsc::channel();
    /// let lock = Spinlock::with_hook(move |error| sender.send(error.to_string()).unwrap());
    /// // Off a SpdkThread.
    /// let _ = lock.lock();
    /// assert!(reports.recv()?.starts_with("spinlock made at"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[track_caller]
    pub fn with_hook(hook: impl Fn(&SpinlockError) + Send + Sync + 'static) -> Self {
        Spinlock::make(Some(Box::new(hook)), Location::caller())
    }

    fn make(hook: Option<Hook>, made: &'static Location<'static>) -> Self {
        Spinlock {
            inner: Arc::new(LockState {
                owner: OwnerWord::new(),
                locked: AtomicPtr::new(ptr::null_mut()),
                made,
                hook,
            }),
        }
    }

    /// Locks it, spinning until it is free (`spdk_spin_lock`).
    ///
    /// # Errors
    ///
    /// If a hook was set: off a SpdkThread, and when the current one holds it.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::thread::{Spinlock, SpinlockMisuse, ThreadLib};
    ///
    /// let lock = Spinlock::with_hook(|_error| ());
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// runner.enter(|| {
    ///     lock.lock()?;
    ///     // It is not recursive.
    ///     assert_eq!(lock.lock().unwrap_err().misuse, SpinlockMisuse::Deadlock);
    ///     lock.unlock()
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[track_caller]
    pub fn lock(&self) -> Result<(), SpinlockError> {
        let caller = Location::caller();
        let inner = &*self.inner;
        let lock = |local: &Local| {
            let me = token(local);
            if inner.owner.get() == me {
                return Err(SpinlockMisuse::Deadlock);
            }
            let mut spins = 0u32;
            inner.owner.acquire(me, || {
                spins = spins.wrapping_add(1);
                if spins.is_multiple_of(SPINS) {
                    std::thread::yield_now();
                }
                hint::spin_loop();
            });
            let locked = ptr::from_ref(caller).cast_mut();
            inner.locked.store(locked, Ordering::Relaxed);
            local.rare().held.push(self.inner.clone());
            Ok(())
        };
        Local::with_current(lock)
            .unwrap_or(Err(SpinlockMisuse::NotOnThread))
            .map_err(|misuse| inner.misused(misuse, caller))
    }

    /// Unlocks it (`spdk_spin_unlock`).
    ///
    /// # Errors
    ///
    /// If a hook was set: off a SpdkThread, and when the current one does not
    /// hold it.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::thread::{Spinlock, SpinlockMisuse, ThreadLib};
    ///
    /// let lock = Spinlock::with_hook(|_error| ());
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let error = runner.enter(|| lock.unlock()).unwrap_err();
    /// assert_eq!(error.misuse, SpinlockMisuse::WrongThread);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    #[track_caller]
    pub fn unlock(&self) -> Result<(), SpinlockError> {
        let caller = Location::caller();
        let inner = &*self.inner;
        let unlock = |local: &Local| {
            if inner.owner.get() != token(local) {
                return Err(SpinlockMisuse::WrongThread);
            }
            let held = local.rare().held.remove(&self.inner);
            inner.owner.release();
            drop(held);
            Ok(())
        };
        Local::with_current(unlock)
            .unwrap_or(Err(SpinlockMisuse::NotOnThread))
            .map_err(|misuse| inner.misused(misuse, caller))
    }

    /// Whether the current SpdkThread holds it (`spdk_spin_held`). Asking off
    /// one is a misuse, and gives `false` if there is a hook.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::thread::{Spinlock, ThreadLib};
    ///
    /// let library = ThreadLib::new();
    /// let (mut a, mut b) = (library.thread().build()?.attach(), library.thread().build()?.attach());
    /// let lock = Spinlock::new();
    /// a.enter(|| lock.lock())?;
    /// // By the one that asks.
    /// assert!(a.enter(|| lock.is_held()));
    /// assert!(!b.enter(|| lock.is_held()));
    /// a.enter(|| lock.unlock())?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[track_caller]
    pub fn is_held(&self) -> bool {
        let caller = Location::caller();
        let inner = &*self.inner;
        Local::with_current(|local| inner.owner.get() == token(local)).unwrap_or_else(|| {
            inner.misused(SpinlockMisuse::NotOnThread, caller);
            false
        })
    }

    /// Destroys it (`spdk_spin_destroy`); the same as dropping it, which can
    /// not give it back.
    ///
    /// # Errors
    ///
    /// If a hook was set: the lock itself, still good, when it is held.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::thread::{Spinlock, ThreadLib};
    ///
    /// let lock = Spinlock::with_hook(|_error| ());
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// runner.enter(|| lock.lock())?;
    /// let lock = lock.destroy().unwrap_err();
    /// runner.enter(|| lock.unlock())?;
    /// assert!(lock.destroy().is_ok());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[track_caller]
    pub fn destroy(self) -> Result<(), Spinlock> {
        if self.inner.owner.get() != FREE {
            self.inner
                .misused(SpinlockMisuse::DestroyedHeld, Location::caller());
            return Err(self);
        }
        Ok(())
    }
}

impl Drop for Spinlock {
    #[track_caller]
    fn drop(&mut self) {
        if self.inner.owner.get() != FREE && !std::thread::panicking() {
            self.inner
                .misused(SpinlockMisuse::DestroyedHeld, self.inner.made);
        }
    }
}

impl fmt::Debug for Spinlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spinlock")
            .field("made", &self.inner.made)
            .field("locked", &(self.inner.owner.get() != FREE))
            .finish_non_exhaustive()
    }
}
