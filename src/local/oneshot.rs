//! One value from one task of a thread to another.

use std::cell::Cell;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use crate::sync::budget::poll_budget;

struct Inner<T> {
    value: Cell<Option<T>>,
    /// Of the receiver while it waits for the value, of the sender while it
    /// waits for the receiver's end.
    receiver: Cell<Option<Waker>>,
    sender: Cell<Option<Waker>>,
    closed: Cell<bool>,
}

/// A channel for one value.
///
/// # Examples
///
/// ```
/// use corespun::local::oneshot;
///
/// let (sender, receiver) = oneshot::channel();
/// sender.send(5).unwrap();
/// assert_eq!(futures::executor::block_on(receiver), Ok(5));
/// ```
pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let inner = Rc::new(Inner {
        value: Cell::new(None),
        receiver: Cell::new(None),
        sender: Cell::new(None),
        closed: Cell::new(false),
    });
    (
        Sender {
            inner: inner.clone(),
        },
        Receiver { inner },
    )
}

/// Keeps `waker` in `place`, unless it is the one there.
fn keep(place: &Cell<Option<Waker>>, waker: &Waker) {
    match place.take() {
        Some(known) if known.will_wake(waker) => place.set(Some(known)),
        known => {
            place.set(Some(waker.clone()));
            drop(known);
        }
    }
}

/// The sending half; dropped unsent, the receiver learns of it.
///
/// # Examples
///
/// ```
/// use corespun::local::oneshot::{self, RecvError};
///
/// let (sender, receiver) = oneshot::channel::<u8>();
/// drop(sender);
/// assert_eq!(futures::executor::block_on(receiver), Err(RecvError));
/// ```
pub struct Sender<T> {
    inner: Rc<Inner<T>>,
}

impl<T> Sender<T> {
    /// Sends the value.
    ///
    /// # Errors
    ///
    /// The value, when the receiver is gone or closed.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::local::oneshot;
    ///
    /// let (reply, receiver) = oneshot::channel();
    /// assert_eq!(reply.send("done"), Ok(()));
    /// assert_eq!(futures::executor::block_on(receiver), Ok("done"));
    ///
    /// let (reply, receiver) = oneshot::channel();
    /// drop(receiver);
    /// assert_eq!(reply.send("nobody waits"), Err("nobody waits"));
    /// ```
    pub fn send(self, value: T) -> Result<(), T> {
        if self.inner.closed.get() {
            return Err(value);
        }
        self.inner.value.set(Some(value));
        Ok(())
        // Dropping the sender wakes the receiver.
    }

    /// Whether the receiver is gone or closed.
    pub fn is_closed(&self) -> bool {
        self.inner.closed.get()
    }

    /// Waits until the receiver is gone or closed.
    ///
    /// # Cancel safety
    ///
    /// Cancelled, nothing is lost.
    ///
    /// # Examples
    ///
    /// Ends work whose result is not wanted any more:
    ///
    /// ```
    /// use corespun::local::oneshot;
    /// use futures::future::{Either, pending, select};
    ///
    /// let (mut reply, receiver) = oneshot::channel::<u8>();
    /// drop(receiver);
    /// let abandoned = async {
    ///     let work = Box::pin(pending::<u8>());
    ///     let closed = Box::pin(reply.closed());
    ///     matches!(select(work, closed).await, Either::Right(_))
    /// };
    /// assert!(futures::executor::block_on(abandoned));
    /// ```
    pub async fn closed(&mut self) {
        poll_fn(|cx| {
            let budget = ready!(poll_budget(cx));
            if self.inner.closed.get() {
                budget.progressed();
                return Poll::Ready(());
            }
            keep(&self.inner.sender, cx.waker());
            Poll::Pending
        })
        .await
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        drop(self.inner.sender.take());
        if let Some(waker) = self.inner.receiver.take() {
            waker.wake();
        }
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

/// The receiving half: a future of the value.
///
/// # Cancel safety
///
/// Awaiting `&mut receiver` may be cancelled and repeated.
///
/// # Examples
///
/// ```
/// use corespun::{local::oneshot, task, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let (reply, receiver) = oneshot::channel();
/// let waiter = runner.enter(|| task::spawn_local(receiver));
/// runner.poll(0, 0);
/// assert!(!waiter.is_finished());
/// reply.send(5).unwrap();
/// runner.poll(0, 0);
/// assert_eq!(futures::executor::block_on(waiter).unwrap(), Ok(5));
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[must_use = "futures do nothing unless awaited"]
pub struct Receiver<T> {
    inner: Rc<Inner<T>>,
}

/// The sender of a oneshot channel was dropped without sending.
///
/// # Examples
///
/// ```
/// use corespun::local::oneshot;
///
/// let (sender, receiver) = oneshot::channel::<u8>();
/// drop(sender);
/// let error = futures::executor::block_on(receiver).unwrap_err();
/// assert_eq!(error.to_string(), "the sender was dropped without sending a value");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the sender was dropped without sending a value")]
pub struct RecvError;

/// Why there is no value.
///
/// # Examples
///
/// ```
/// use corespun::local::oneshot::{self, TryRecvError};
///
/// let (sender, mut receiver) = oneshot::channel::<u8>();
/// assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
/// drop(sender);
/// assert_eq!(receiver.try_recv(), Err(TryRecvError::Closed));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TryRecvError {
    /// Not sent yet.
    #[error("no value was sent yet")]
    Empty,
    /// Received before, or never to come.
    #[error("the sender was dropped without sending a value")]
    Closed,
}

impl<T> Receiver<T> {
    /// The value, if it was sent.
    ///
    /// # Errors
    ///
    /// [`TryRecvError`] if not.
    ///
    /// # Examples
    ///
    /// ```
    /// let (sender, mut receiver) = corespun::local::oneshot::channel();
    /// assert!(receiver.try_recv().is_err());
    /// sender.send(5).unwrap();
    /// assert_eq!(receiver.try_recv(), Ok(5));
    /// ```
    pub fn try_recv(&mut self) -> Result<T, TryRecvError> {
        match self.inner.value.take() {
            Some(value) => Ok(value),
            // The sender has the other reference.
            None if Rc::strong_count(&self.inner) > 1 => Err(TryRecvError::Empty),
            None => Err(TryRecvError::Closed),
        }
    }

    /// Refuses a value that was not sent yet.
    ///
    /// # Examples
    ///
    /// ```
    /// let (sender, mut receiver) = corespun::local::oneshot::channel();
    /// receiver.close();
    /// assert_eq!(sender.send(5), Err(5));
    /// assert!(receiver.try_recv().is_err());
    /// ```
    pub fn close(&mut self) {
        self.inner.closed.set(true);
        if let Some(waker) = self.inner.sender.take() {
            waker.wake();
        }
    }
}

impl<T> Future for Receiver<T> {
    type Output = Result<T, RecvError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let budget = ready!(poll_budget(cx));
        match self.try_recv() {
            Ok(value) => {
                budget.progressed();
                Poll::Ready(Ok(value))
            }
            Err(TryRecvError::Closed) => {
                budget.progressed();
                Poll::Ready(Err(RecvError))
            }
            Err(TryRecvError::Empty) => {
                keep(&self.inner.receiver, cx.waker());
                Poll::Pending
            }
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        drop(self.inner.receiver.take());
        self.close();
        // Here, not when the sender goes.
        drop(self.inner.value.take());
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").finish_non_exhaustive()
    }
}
