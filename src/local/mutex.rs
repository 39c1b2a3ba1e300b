//! A lock that may be held across `.await`, for one thread.

use std::cell::{RefCell, RefMut};
use std::fmt;
use std::ops::{Deref, DerefMut};

use super::semaphore::{Permit, Semaphore};

/// A mutex for the tasks of one SpdkThread, which may be held while waiting.
/// Fair. What is not held across an `.await` needs a `Cell` or `RefCell` only.
///
/// A task that panics while it holds the lock gives it free; there is no poison.
///
/// # Examples
///
/// ```
/// use std::rc::Rc;
/// use corespun::{local::Mutex, task, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let total = Rc::new(Mutex::new(0));
/// let counter = total.clone();
/// let handle = runner.enter(|| task::spawn_local(async move {
///     let mut total = counter.lock().await;
///     let before = *total;
///     task::yield_now().await;
///     *total = before + 1;
/// }));
/// while !handle.is_finished() {
///     runner.poll(0, 0);
/// }
/// assert_eq!(*total.try_lock().unwrap(), 1);
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
pub struct Mutex<T> {
    turn: Semaphore,
    /// Borrowed by the holder of the permit, so never twice.
    value: RefCell<T>,
}

impl<T> Mutex<T> {
    /// An unlocked mutex.
    ///
    /// # Examples
    ///
    /// As it is `const`, a thread-local may hold one:
    ///
    /// ```
    /// use corespun::local::Mutex;
    ///
    /// thread_local! {
    ///     static NEXT_ID: Mutex<u64> = const { Mutex::new(1) };
    /// }
    /// assert_eq!(NEXT_ID.with(|next| *next.try_lock().unwrap()), 1);
    /// ```
    pub const fn new(value: T) -> Self {
        Mutex {
            turn: Semaphore::new(1),
            value: RefCell::new(value),
        }
    }

    /// Waits until the lock is free.
    ///
    /// # Cancel safety
    ///
    /// Cancelled, the lock is not held, and the place in the queue is lost.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{local::Mutex, task};
    ///
    /// let log = Mutex::new(Vec::new());
    /// let both = task::scope(async |scope| {
    ///     for name in ["a", "b"] {
    ///         let log = &log;
    ///         scope.spawn(async move {
    ///             let mut log = log.lock().await;
    ///             log.push(format!("{name} begins"));
    ///             task::yield_now().await;
    ///             log.push(format!("{name} ends"));
    ///         });
    ///     }
    /// });
    /// futures::executor::block_on(both);
    /// // Held across the wait, so that nothing comes between.
    /// assert_eq!(log.into_inner(), ["a begins", "a ends", "b begins", "b ends"]);
    /// ```
    pub async fn lock(&self) -> MutexGuard<'_, T> {
        let permit = self.turn.acquire(1).await;
        let permit = permit.expect("a mutex never closes its semaphore");
        self.guard(permit)
    }

    /// The lock, if it is free and has no waiter.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let permit = self.turn.try_acquire(1).ok()?;
        Some(self.guard(permit))
    }

    fn guard<'a>(&'a self, permit: Permit<&'a Semaphore>) -> MutexGuard<'a, T> {
        MutexGuard {
            value: self.value.borrow_mut(),
            _permit: permit,
        }
    }

    /// The value, of which no guard can be alive.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }

    /// The value.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T: fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mutex").field("value", &self.value).finish()
    }
}

/// The value of a [`Mutex`], held until this is dropped.
///
/// # Examples
///
/// ```
/// let count = corespun::local::Mutex::new(1);
/// let mut guard = count.try_lock().unwrap();
/// *guard += 1;
/// assert_eq!(*guard, 2);
/// drop(guard);
/// assert_eq!(count.into_inner(), 2);
/// ```
#[must_use = "dropping the guard gives the lock free"]
pub struct MutexGuard<'a, T> {
    // Dropped before the permit, which lets the next one borrow it.
    value: RefMut<'a, T>,
    _permit: Permit<&'a Semaphore>,
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T: fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
