//! A queue from many tasks of a thread to one, bounded or not.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use futures::stream::{FusedStream, Stream};

use super::semaphore::{Semaphore, TryAcquireError};
use crate::sync::budget::poll_budget;

struct Channel<T> {
    queue: RefCell<VecDeque<T>>,
    receiver: Cell<Option<Waker>>,
    senders: Cell<usize>,
    /// Free places of a bounded channel; closed with the receiver.
    room: Semaphore,
    bounded: bool,
}

impl<T> Channel<T> {
    fn push(&self, value: T) {
        self.queue.borrow_mut().push_back(value);
        self.wake_receiver();
    }

    fn wake_receiver(&self) {
        if let Some(waker) = self.receiver.take() {
            waker.wake();
        }
    }
}

/// A channel that holds up to `capacity` values; senders wait when it is full.
///
/// # Panics
///
/// When `capacity` is 0.
///
/// # Examples
///
/// ```
/// use corespun::{local::mpsc, task, thread::ThreadLib};
/// use futures::StreamExt;
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let (sender, receiver) = mpsc::channel(1);
/// let numbers = runner.enter(|| {
///     task::spawn_local(async move {
///         for number in 0..3 {
///             sender.send(number).await.unwrap();
///         }
///     });
///     task::spawn_local(receiver.collect::<Vec<_>>())
/// });
/// while !numbers.is_finished() {
///     runner.poll(0, 0);
/// }
/// assert_eq!(futures::executor::block_on(numbers).unwrap(), [0, 1, 2]);
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[track_caller]
pub fn channel<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    assert!(capacity > 0, "a channel needs a capacity above zero");
    let inner = make(capacity, true);
    let sender = Sender {
        inner: inner.clone(),
    };
    (sender, Receiver { inner })
}

/// A channel without a bound.
///
/// # Examples
///
/// ```
/// let (sender, mut receiver) = corespun::local::mpsc::unbounded();
/// sender.send('a').unwrap();
/// drop(sender);
/// assert_eq!(futures::executor::block_on(receiver.recv()), Some('a'));
/// assert_eq!(futures::executor::block_on(receiver.recv()), None);
/// ```
pub fn unbounded<T>() -> (UnboundedSender<T>, Receiver<T>) {
    let inner = make(0, false);
    let sender = UnboundedSender {
        inner: inner.clone(),
    };
    (sender, Receiver { inner })
}

fn make<T>(capacity: usize, bounded: bool) -> Rc<Channel<T>> {
    Rc::new(Channel {
        queue: RefCell::new(VecDeque::new()),
        receiver: Cell::new(None),
        senders: Cell::new(1),
        room: Semaphore::new(capacity),
        bounded,
    })
}

/// The receiver is gone or closed; the value comes back.
///
/// # Examples
///
/// A value that cannot be delivered is not lost; retry it elsewhere, or drop it:
///
/// ```
/// use corespun::local::mpsc::{self, SendError};
///
/// let (sender, receiver) = mpsc::unbounded();
/// drop(receiver);
/// let SendError(request) = sender.send("write 7").unwrap_err();
/// assert_eq!(request, "write 7");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the channel is closed")]
pub struct SendError<T>(pub T);

impl<T> fmt::Debug for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SendError")
    }
}

/// Why a value was not taken at once; it comes back.
///
/// # Examples
///
/// ```
/// use corespun::local::mpsc::{self, TrySendError};
///
/// let (sender, mut receiver) = mpsc::channel(1);
/// sender.try_send('a').unwrap();
/// assert_eq!(sender.try_send('b'), Err(TrySendError::Full('b')));
/// receiver.close();
/// assert_eq!(sender.try_send('b'), Err(TrySendError::Closed('b')));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrySendError<T> {
    /// The channel is full; `send` waits for a place.
    #[error("the channel is full; wait for a place with `send`")]
    Full(T),
    /// The receiver is gone or closed.
    #[error("the channel is closed")]
    Closed(T),
}

impl<T> TrySendError<T> {
    /// The value that was not sent.
    pub fn into_inner(self) -> T {
        match self {
            TrySendError::Full(value) | TrySendError::Closed(value) => value,
        }
    }
}

impl<T> fmt::Debug for TrySendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TrySendError::Full(_) => "Full",
            TrySendError::Closed(_) => "Closed",
        })
    }
}

/// Sends into a bounded channel; clone it for more senders.
///
/// # Examples
///
/// ```
/// use corespun::local::mpsc;
/// use futures::StreamExt;
///
/// let (sender, receiver) = mpsc::channel(2);
/// let other = sender.clone();
/// sender.try_send(1).unwrap();
/// other.try_send(2).unwrap();
/// // The stream ends with the last sender.
/// drop((sender, other));
/// assert_eq!(futures::executor::block_on(receiver.collect::<Vec<_>>()), [1, 2]);
/// ```
pub struct Sender<T> {
    inner: Rc<Channel<T>>,
}

impl<T> Sender<T> {
    /// Sends `value`, once there is a place.
    ///
    /// # Errors
    ///
    /// [`SendError`] with the value when the receiver is gone or closed.
    ///
    /// # Cancel safety
    ///
    /// Cancelled, the value is not sent and is dropped.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{local::mpsc, task};
    ///
    /// let (sender, mut receiver) = mpsc::channel(1);
    /// let received = task::scope(async |scope| {
    ///     let sent = scope.spawn(async move {
    ///         sender.send(1).await.unwrap();
    ///         // Waits until the first value was taken.
    ///         sender.send(2).await
    ///     });
    ///     let received = (receiver.recv().await, receiver.recv().await);
    ///     sent.await.unwrap().unwrap();
    ///     received
    /// });
    /// assert_eq!(futures::executor::block_on(received), (Some(1), Some(2)));
    /// ```
    pub async fn send(&self, value: T) -> Result<(), SendError<T>> {
        match self.inner.room.acquire(1).await {
            // Closed after it let this one through: no sender may look again.
            Ok(_) if self.is_closed() => Err(SendError(value)),
            Ok(place) => {
                place.forget();
                self.inner.push(value);
                Ok(())
            }
            Err(_) => Err(SendError(value)),
        }
    }

    /// Sends `value` if there is a place and no sender waits for one.
    ///
    /// # Errors
    ///
    /// [`TrySendError`] with the value if not.
    ///
    /// # Examples
    ///
    /// ```
    /// let (sender, mut receiver) = corespun::local::mpsc::channel(1);
    /// assert!(sender.try_send(1).is_ok());
    /// assert!(sender.try_send(2).is_err());
    /// // Taking one makes a place.
    /// assert_eq!(receiver.try_recv(), Ok(1));
    /// assert!(sender.try_send(2).is_ok());
    /// ```
    pub fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
        match self.inner.room.take(1) {
            Ok(()) => {
                self.inner.push(value);
                Ok(())
            }
            Err(TryAcquireError::NoPermits) => Err(TrySendError::Full(value)),
            Err(TryAcquireError::Closed) => Err(TrySendError::Closed(value)),
        }
    }

    /// Whether the receiver is gone or closed.
    pub fn is_closed(&self) -> bool {
        self.inner.room.is_closed()
    }
}

/// Sends into an unbounded channel; clone it for more senders.
///
/// # Examples
///
/// It takes whatever comes, so something else must bound how much that is:
///
/// ```
/// let (log, mut lines) = corespun::local::mpsc::unbounded();
/// for number in 0..100 {
///     log.send(format!("line {number}")).unwrap();
/// }
/// assert_eq!(lines.len(), 100);
/// assert_eq!(lines.try_recv().unwrap(), "line 0");
/// ```
pub struct UnboundedSender<T> {
    inner: Rc<Channel<T>>,
}

impl<T> UnboundedSender<T> {
    /// Sends `value`.
    ///
    /// # Errors
    ///
    /// [`SendError`] with the value when the receiver is gone or closed.
    ///
    /// # Examples
    ///
    /// ```
    /// let (sender, mut receiver) = corespun::local::mpsc::unbounded();
    /// // Never waits, so that a `Drop` or a poller can send.
    /// sender.send(1).unwrap();
    /// assert_eq!(receiver.try_recv(), Ok(1));
    /// drop(receiver);
    /// assert_eq!(sender.send(2).unwrap_err().0, 2);
    /// ```
    pub fn send(&self, value: T) -> Result<(), SendError<T>> {
        if self.inner.room.is_closed() {
            return Err(SendError(value));
        }
        self.inner.push(value);
        Ok(())
    }

    /// Whether the receiver is gone or closed.
    pub fn is_closed(&self) -> bool {
        self.inner.room.is_closed()
    }
}

macro_rules! sender_traits {
    ($sender:ident) => {
        impl<T> Clone for $sender<T> {
            fn clone(&self) -> Self {
                self.inner.senders.set(self.inner.senders.get() + 1);
                $sender {
                    inner: self.inner.clone(),
                }
            }
        }

        impl<T> Drop for $sender<T> {
            fn drop(&mut self) {
                let left = self.inner.senders.get() - 1;
                self.inner.senders.set(left);
                if left == 0 {
                    self.inner.wake_receiver();
                }
            }
        }

        impl<T> fmt::Debug for $sender<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($sender)).finish_non_exhaustive()
            }
        }
    };
}

sender_traits!(Sender);
sender_traits!(UnboundedSender);

/// Receives from a channel; also a `Stream`, which ends when every sender is
/// gone, or the channel is closed, and the queue is empty.
///
/// # Examples
///
/// ```
/// use futures::{StreamExt, executor::block_on};
///
/// let (sender, mut receiver) = corespun::local::mpsc::unbounded();
/// (1..=4).for_each(|number| sender.send(number).unwrap());
/// drop(sender);
/// assert_eq!(block_on(receiver.recv()), Some(1));
/// // The rest, as a stream.
/// let even = receiver.filter(|number| std::future::ready(number % 2 == 0));
/// assert_eq!(block_on(even.collect::<Vec<_>>()), [2, 4]);
/// ```
pub struct Receiver<T> {
    inner: Rc<Channel<T>>,
}

/// Why there is no value.
///
/// # Examples
///
/// ```
/// use corespun::local::mpsc::{self, TryRecvError};
///
/// let (sender, mut receiver) = mpsc::channel::<u8>(1);
/// assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
/// drop(sender);
/// assert_eq!(receiver.try_recv(), Err(TryRecvError::Closed));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TryRecvError {
    /// None is there now.
    #[error("the channel is empty")]
    Empty,
    /// None will come.
    #[error("the channel is empty and every sender is gone")]
    Closed,
}

impl<T> Receiver<T> {
    /// Waits for the next value; `None` when none will come.
    ///
    /// # Cancel safety
    ///
    /// Cancelled, no value is lost.
    pub async fn recv(&mut self) -> Option<T> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// The form of [`Receiver::recv`] for hand-written futures.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::future::poll_fn;
    /// use std::task::Poll;
    ///
    /// let (sender, mut receiver) = corespun::local::mpsc::unbounded();
    /// sender.send(1).unwrap();
    /// sender.send(2).unwrap();
    /// // Everything that is there, in one poll.
    /// let batch = poll_fn(|cx| {
    ///     let mut batch = Vec::new();
    ///     while let Poll::Ready(Some(value)) = receiver.poll_recv(cx) {
    ///         batch.push(value);
    ///     }
    ///     Poll::Ready(batch)
    /// });
    /// assert_eq!(futures::executor::block_on(batch), [1, 2]);
    /// ```
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let budget = ready!(poll_budget(cx));
        match self.try_recv() {
            Ok(value) => {
                budget.progressed();
                Poll::Ready(Some(value))
            }
            Err(TryRecvError::Closed) => {
                budget.progressed();
                Poll::Ready(None)
            }
            Err(TryRecvError::Empty) => {
                let known = self.inner.receiver.take();
                let waker = match known {
                    Some(known) if known.will_wake(cx.waker()) => known,
                    _ => cx.waker().clone(),
                };
                self.inner.receiver.set(Some(waker));
                Poll::Pending
            }
        }
    }

    /// The next value, if one is there.
    ///
    /// # Errors
    ///
    /// [`TryRecvError`] if not.
    ///
    /// # Examples
    ///
    /// ```
    /// let (sender, mut receiver) = corespun::local::mpsc::unbounded();
    /// assert!(receiver.try_recv().is_err());
    /// sender.send(5).unwrap();
    /// assert_eq!(receiver.try_recv(), Ok(5));
    /// ```
    pub fn try_recv(&mut self) -> Result<T, TryRecvError> {
        let value = self.inner.queue.borrow_mut().pop_front();
        match value {
            Some(value) => {
                if self.inner.bounded {
                    self.inner.room.add_permits(1);
                }
                Ok(value)
            }
            None if self.is_terminated() => Err(TryRecvError::Closed),
            None => Err(TryRecvError::Empty),
        }
    }

    /// Refuses what is sent from now on; what is in the queue can be received.
    pub fn close(&mut self) {
        self.inner.room.close();
    }

    /// How many values are in the queue.
    pub fn len(&self) -> usize {
        self.inner.queue.borrow().len()
    }

    /// Whether no value is in the queue.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Stream for Receiver<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        self.poll_recv(cx)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let len = self.len();
        (len, self.is_terminated_when_empty().then_some(len))
    }
}

impl<T> Receiver<T> {
    fn is_terminated_when_empty(&self) -> bool {
        self.inner.senders.get() == 0 || self.inner.room.is_closed()
    }
}

impl<T> FusedStream for Receiver<T> {
    fn is_terminated(&self) -> bool {
        self.is_empty() && self.is_terminated_when_empty()
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.close();
        drop(self.inner.receiver.take());
        // Here, not when the last sender goes; a value may hold a sender.
        let queue = self.inner.queue.take();
        drop(queue);
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").finish_non_exhaustive()
    }
}
