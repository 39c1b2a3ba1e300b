//! Data under a spinlock.

use std::cell::UnsafeCell;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use super::{Spinlock, SpinlockError};

/// Data that SpdkThreads share under a [`Spinlock`].
///
/// # Examples
///
/// ```
/// use corespun::thread::{SpinMutex, ThreadLib};
///
/// let total = SpinMutex::new(0);
/// let mut thread = ThreadLib::new().thread().build()?.attach();
/// thread.enter(|| *total.lock().unwrap() += 1);
/// assert_eq!(total.into_inner(), 1);
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[derive(Default)]
pub struct SpinMutex<T> {
    lock: Spinlock,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached through a guard only, of which `lock` lets one
// be at a time.
unsafe impl<T: Send> Sync for SpinMutex<T> {}

impl<T> SpinMutex<T> {
    /// Data under a lock whose misuse aborts the process.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::Arc;
    /// use corespun::thread::{SpinMutex, ThreadLib};
    ///
    /// let library = ThreadLib::new();
    /// let table = Arc::new(SpinMutex::new(Vec::new()));
    /// for name in ["a", "b"] {
    ///     let mut runner = library.thread().name(name).build()?.attach();
    ///     runner.enter(|| table.lock().unwrap().push(name));
    /// }
    /// assert_eq!(Arc::into_inner(table).unwrap().into_inner(), ["a", "b"]);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    #[track_caller]
    pub fn new(value: T) -> Self {
        SpinMutex {
            lock: Spinlock::new(),
            value: UnsafeCell::new(value),
        }
    }

    /// Data under a lock whose misuse is told to `hook`.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::thread::{SpinMutex, SpinlockMisuse, ThreadLib};
    ///
    /// let count = SpinMutex::with_hook(0, |_error| ());
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// runner.enter(|| {
    ///     let guard = count.lock().unwrap();
    ///     assert_eq!(count.lock().unwrap_err().misuse, SpinlockMisuse::Deadlock);
    ///     drop(guard);
    /// });
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    #[track_caller]
    pub fn with_hook(value: T, hook: impl Fn(&SpinlockError) + Send + Sync + 'static) -> Self {
        SpinMutex {
            lock: Spinlock::with_hook(hook),
            value: UnsafeCell::new(value),
        }
    }

    /// Locks the data until the guard is dropped.
    ///
    /// # Errors
    ///
    /// As [`Spinlock::lock`].
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::thread::{SpinMutex, ThreadLib};
    ///
    /// let count = SpinMutex::new(0);
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// runner.enter(|| {
    ///     *count.lock()? += 1;
    ///     *count.lock()? += 1;
    ///     Ok::<_, corespun::thread::SpinlockError>(())
    /// })?;
    /// assert_eq!(count.into_inner(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[track_caller]
    pub fn lock(&self) -> Result<SpinMutexGuard<'_, T>, SpinlockError> {
        self.lock.lock()?;
        Ok(SpinMutexGuard {
            mutex: self,
            _stays: PhantomData,
        })
    }

    /// The data.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T> fmt::Debug for SpinMutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpinMutex")
            .field("lock", &self.lock)
            .finish_non_exhaustive()
    }
}

/// The locked data of a [`SpinMutex`]; unlocks when dropped, which must happen
/// before the callback that locked returns to the loop.
///
/// # Examples
///
/// ```
/// use corespun::thread::{SpinMutex, ThreadLib};
///
/// let queue = SpinMutex::new(vec![1, 2]);
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let last = runner.enter(|| {
///     let mut guard = queue.lock().unwrap();
///     guard.push(3);
///     guard.len()
///     // Unlocked before the callback returns.
/// });
/// assert_eq!(last, 3);
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[must_use = "dropping the guard unlocks"]
pub struct SpinMutexGuard<'a, T> {
    mutex: &'a SpinMutex<T>,
    /// Belongs to the SpdkThread that locked.
    _stays: PhantomData<*const ()>,
}

impl<T> Deref for SpinMutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: there is one guard at a time, and `self` is it.
        unsafe { &*self.mutex.value.get() }
    }
}

impl<T> DerefMut for SpinMutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and it is borrowed mutably.
        unsafe { &mut *self.mutex.value.get() }
    }
}

impl<T> Drop for SpinMutexGuard<'_, T> {
    #[track_caller]
    fn drop(&mut self) {
        // On another thread than the one that locked it is reported, and the
        // data stay locked.
        let _ = self.mutex.lock.unlock();
    }
}

impl<T> fmt::Debug for SpinMutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpinMutexGuard").finish_non_exhaustive()
    }
}
