//! A counting semaphore for one thread; the mutex and the bounded channel rest
//! on it.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::Deref;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use super::wait_list::{WaitList, WaiterKey};
use crate::sync::budget::poll_budget;

/// A counting semaphore for the tasks of one SpdkThread.
///
/// Fair: a task that asks for many permits is not passed by those that ask for few.
///
/// # Examples
///
/// ```
/// use corespun::local::Semaphore;
///
/// let semaphore = Semaphore::new(2);
/// let first = semaphore.try_acquire(1)?;
/// assert!(semaphore.try_acquire(2).is_err());
/// drop(first);
/// assert_eq!(semaphore.available_permits(), 2);
/// # Ok::<(), corespun::local::TryAcquireError>(())
/// ```
pub struct Semaphore {
    permits: Cell<usize>,
    closed: Cell<bool>,
    waiters: RefCell<WaitList<usize, Result<(), Closed>>>,
}

impl Semaphore {
    /// A semaphore with so many permits.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::local::Semaphore;
    ///
    /// // At most 32 requests in flight.
    /// let in_flight = Semaphore::new(32);
    /// assert_eq!(in_flight.available_permits(), 32);
    /// ```
    pub const fn new(permits: usize) -> Self {
        Semaphore {
            permits: Cell::new(permits),
            closed: Cell::new(false),
            waiters: RefCell::new(WaitList::new()),
        }
    }

    /// Waits for `permits` permits; they are given back when the [`Permit`] is
    /// dropped.
    ///
    /// # Errors
    ///
    /// [`Closed`] once the semaphore is closed.
    ///
    /// # Cancel safety
    ///
    /// Cancelled, no permit is taken, and the place in the queue is lost.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::cell::Cell;
    /// use corespun::{local::Semaphore, task};
    ///
    /// let (slots, running, most) = (Semaphore::new(2), Cell::new(0), Cell::new(0));
    /// let all = task::scope(async |scope| {
    ///     for _ in 0..5 {
    ///         scope.spawn(async {
    ///             let _slot = slots.acquire(1).await.unwrap();
    ///             running.set(running.get() + 1);
    ///             most.set(most.get().max(running.get()));
    ///             task::yield_now().await;
    ///             running.set(running.get() - 1);
    ///         });
    ///     }
    /// });
    /// futures::executor::block_on(all);
    /// assert_eq!(most.get(), 2);
    /// ```
    pub fn acquire(&self, permits: usize) -> Acquire<&Semaphore> {
        Acquire::new(self, permits)
    }

    /// [`Semaphore::acquire`] with a result that keeps the semaphore alive.
    ///
    /// # Errors
    ///
    /// As [`Semaphore::acquire`].
    ///
    /// # Examples
    ///
    /// For a task, which may not borrow:
    ///
    /// ```
    /// use std::rc::Rc;
    /// use corespun::{local::Semaphore, task, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let slots = Rc::new(Semaphore::new(2));
    /// let mine = slots.clone();
    /// let request = runner.enter(|| task::spawn_local(async move {
    ///     let _slot = mine.acquire_owned(1).await.unwrap();
    ///     std::future::pending::<()>().await
    /// }));
    /// runner.poll(0, 0);
    /// assert_eq!(slots.available_permits(), 1);
    /// // Given back when the task's future is dropped.
    /// request.abort();
    /// runner.poll(0, 0);
    /// assert_eq!(slots.available_permits(), 2);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn acquire_owned(self: Rc<Self>, permits: usize) -> Acquire<Rc<Semaphore>> {
        Acquire::new(self, permits)
    }

    /// Takes `permits` permits if they are there and there is no waiter.
    ///
    /// # Errors
    ///
    /// [`TryAcquireError`] if not.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::local::{Semaphore, TryAcquireError};
    ///
    /// let slots = Semaphore::new(1);
    /// let slot = slots.try_acquire(1).unwrap();
    /// assert_eq!(slots.try_acquire(1).unwrap_err(), TryAcquireError::NoPermits);
    /// drop(slot);
    /// assert!(slots.try_acquire(1).is_ok());
    /// ```
    pub fn try_acquire(&self, permits: usize) -> Result<Permit<&Semaphore>, TryAcquireError> {
        self.take(permits)?;
        Ok(Permit {
            semaphore: Some(self),
            permits,
        })
    }

    pub(super) fn take(&self, permits: usize) -> Result<(), TryAcquireError> {
        if self.closed.get() {
            return Err(TryAcquireError::Closed);
        }
        let available = self.permits.get();
        if available < permits || self.waiters.borrow().front().is_some() {
            return Err(TryAcquireError::NoPermits);
        }
        self.permits.set(available - permits);
        Ok(())
    }

    /// Adds permits, or gives back those of a permit that was forgotten.
    pub fn add_permits(&self, permits: usize) {
        self.permits.set(self.permits.get() + permits);
        self.hand_out();
    }

    fn hand_out(&self) {
        loop {
            let mut waiters = self.waiters.borrow_mut();
            let available = self.permits.get();
            match waiters.front() {
                Some(wants) if wants <= available => self.permits.set(available - wants),
                _ => return,
            }
            let waker = waiters.let_through(Ok(()));
            drop(waiters);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// Refuses all requests from now on, those that wait included. Permits that are
    /// out stay valid.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::local::{Closed, Semaphore};
    ///
    /// let slots = Semaphore::new(1);
    /// let last = slots.try_acquire(1).unwrap();
    /// let waits = slots.acquire(1);
    /// slots.close();
    /// assert_eq!(futures::executor::block_on(waits).unwrap_err(), Closed);
    /// // What is in flight goes on.
    /// assert_eq!(last.num_permits(), 1);
    /// ```
    pub fn close(&self) {
        self.closed.set(true);
        loop {
            let waker = self.waiters.borrow_mut().let_through(Err(Closed));
            match waker {
                Some(waker) => waker.wake(),
                None => return,
            }
        }
    }

    /// Whether [`Semaphore::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// How many permits are free.
    pub fn available_permits(&self) -> usize {
        self.permits.get()
    }
}

impl fmt::Debug for Semaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Semaphore")
            .field("permits", &self.permits.get())
            .field("closed", &self.closed.get())
            .finish_non_exhaustive()
    }
}

/// The semaphore was closed.
///
/// # Examples
///
/// ```
/// use corespun::local::Semaphore;
///
/// let slots = Semaphore::new(0);
/// slots.close();
/// let error = futures::executor::block_on(slots.acquire(1)).unwrap_err();
/// assert_eq!(error.to_string(), "the semaphore is closed");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the semaphore is closed")]
pub struct Closed;

/// Why permits were not to be had at once.
///
/// # Examples
///
/// ```
/// use corespun::local::{Semaphore, TryAcquireError};
///
/// let slots = Semaphore::new(0);
/// assert_eq!(slots.try_acquire(1).unwrap_err(), TryAcquireError::NoPermits);
/// slots.close();
/// assert_eq!(slots.try_acquire(1).unwrap_err(), TryAcquireError::Closed);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TryAcquireError {
    /// Too few are free, or others wait; `acquire` waits for them.
    #[error("too few permits are free; wait for them with `acquire`")]
    NoPermits,
    /// The semaphore was closed.
    #[error("the semaphore is closed")]
    Closed,
}

/// The future of [`Semaphore::acquire`].
///
/// # Examples
///
/// Its place in the queue is that of its first poll:
///
/// ```
/// use corespun::local::Semaphore;
/// use futures::poll;
///
/// let slots = Semaphore::new(0);
/// futures::executor::block_on(async {
///     let (mut made_first, mut polled_first) = (slots.acquire(1), slots.acquire(1));
///     assert!(poll!(&mut polled_first).is_pending());
///     assert!(poll!(&mut made_first).is_pending());
///     slots.add_permits(1);
///     assert!(poll!(&mut made_first).is_pending());
///     assert!(poll!(&mut polled_first).is_ready());
/// });
/// ```
#[must_use = "futures do nothing unless awaited"]
pub struct Acquire<S: Deref<Target = Semaphore>> {
    /// `None` once complete.
    semaphore: Option<S>,
    permits: usize,
    place: Option<WaiterKey>,
}

impl<S: Deref<Target = Semaphore>> Unpin for Acquire<S> {}

impl<S: Deref<Target = Semaphore>> Acquire<S> {
    fn new(semaphore: S, permits: usize) -> Self {
        Acquire {
            semaphore: Some(semaphore),
            permits,
            place: None,
        }
    }

    fn poll_permits(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        let semaphore = self.semaphore.as_deref().expect("polled after completion");
        let Some(place) = self.place else {
            let budget = ready!(poll_budget(cx));
            return match semaphore.take(self.permits) {
                Ok(()) => {
                    budget.progressed();
                    Poll::Ready(Ok(()))
                }
                Err(TryAcquireError::Closed) => {
                    budget.progressed();
                    Poll::Ready(Err(Closed))
                }
                Err(TryAcquireError::NoPermits) => {
                    let waker = cx.waker().clone();
                    let place = semaphore.waiters.borrow_mut().insert(self.permits, waker);
                    self.place = Some(place);
                    Poll::Pending
                }
            };
        };
        let polled = semaphore.waiters.borrow_mut().poll(place, cx.waker());
        match polled {
            Ok(result) => {
                self.place = None;
                Poll::Ready(result)
            }
            Err(_replaced_waker) => Poll::Pending,
        }
    }
}

impl<S: Deref<Target = Semaphore>> Future for Acquire<S> {
    type Output = Result<Permit<S>, Closed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        ready!(self.poll_permits(cx))?;
        Poll::Ready(Ok(Permit {
            semaphore: self.semaphore.take(),
            permits: self.permits,
        }))
    }
}

impl<S: Deref<Target = Semaphore>> Drop for Acquire<S> {
    fn drop(&mut self) {
        let (Some(semaphore), Some(place)) = (&self.semaphore, self.place.take()) else {
            return;
        };
        let (got, _waker) = semaphore.waiters.borrow_mut().remove(place);
        match got {
            // Let through, and never knew.
            Some(Ok(())) => semaphore.add_permits(self.permits),
            Some(Err(Closed)) => {}
            // It may have stood in the way of others that want less.
            None => semaphore.hand_out(),
        }
    }
}

impl<S: Deref<Target = Semaphore>> fmt::Debug for Acquire<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acquire")
            .field("permits", &self.permits)
            .finish_non_exhaustive()
    }
}

/// Permits of a [`Semaphore`], given back when dropped.
///
/// # Examples
///
/// ```
/// let slots = corespun::local::Semaphore::new(4);
/// {
///     let _slot = slots.try_acquire(4).unwrap();
///     assert_eq!(slots.available_permits(), 0);
/// }
/// assert_eq!(slots.available_permits(), 4);
/// ```
#[must_use = "dropping a permit gives it back at once"]
pub struct Permit<S: Deref<Target = Semaphore>> {
    /// `None` once given up.
    semaphore: Option<S>,
    permits: usize,
}

impl<S: Deref<Target = Semaphore>> Permit<S> {
    /// Gives the permits up for good; the semaphore has so many less.
    pub fn forget(mut self) {
        self.semaphore = None;
    }

    /// How many permits it stands for.
    pub fn num_permits(&self) -> usize {
        self.permits
    }
}

impl<S: Deref<Target = Semaphore>> Drop for Permit<S> {
    fn drop(&mut self) {
        if let Some(semaphore) = &self.semaphore {
            semaphore.add_permits(self.permits);
        }
    }
}

impl<S: Deref<Target = Semaphore>> fmt::Debug for Permit<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit")
            .field("permits", &self.permits)
            .finish_non_exhaustive()
    }
}
