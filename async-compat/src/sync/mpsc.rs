//! tokio's channels with one receiver.
//!
//! All of it is tokio's own but the sender of a bounded channel: its
//! [`send_timeout`](Sender::send_timeout) asks for tokio's timer, where that of this crate is
//! meant. So [`Sender`] is tokio's with a cover that adds that one method; it costs nothing,
//! dereferences to tokio's, and is made of it and turned into it by `From`, for a library
//! that asks for tokio's own type. [`WeakSender`] and [`OwnedPermit`] are covered because
//! they give senders.

use std::fmt;
use std::ops::Deref;

use tokio::sync::mpsc as theirs;

#[cfg(feature = "time")]
use error::SendTimeoutError;
use error::{SendError, TrySendError};

pub use theirs::{
    Permit, PermitIterator, Receiver, UnboundedReceiver, UnboundedSender, WeakUnboundedSender,
    error, unbounded_channel,
};

/// A channel of so many places.
///
/// # Panics
///
/// When there is no place, or there are more than a semaphore counts (`usize::MAX >> 3`).
///
/// # Examples
///
/// ```
/// # use corespun_compat as tokio;
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// use tokio::sync::mpsc;
///
/// let (sender, mut receiver) = mpsc::channel(1);
/// tokio::spawn(async move { sender.send(42).await });
/// assert_eq!(receiver.recv().await, Some(42));
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
#[track_caller]
#[must_use]
pub fn channel<T>(buffer: usize) -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = theirs::channel(buffer);
    (Sender(sender), receiver)
}

/// The sending end of a bounded channel: tokio's, see the [module](self).
pub struct Sender<T>(theirs::Sender<T>);

/// A sending end that does not keep the channel open: tokio's, see the [module](self).
pub struct WeakSender<T>(theirs::WeakSender<T>);

/// A place in a channel, with the sender that has it: tokio's, see the [module](self).
pub struct OwnedPermit<T>(theirs::OwnedPermit<T>);

impl<T> Sender<T> {
    /// Sends `value`, if there is a place for it within `timeout`.
    ///
    /// # Errors
    ///
    /// The value: `Timeout` if there was none, `Closed` if nobody receives any more.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, but the value is lost and the place in the queue is too.
    ///
    /// # Panics
    ///
    /// Outside of a runtime, and in one whose timers are disabled.
    ///
    /// # Examples
    ///
    /// ```
    /// # use corespun_compat as tokio;
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
    /// use tokio::sync::mpsc::{self, error::SendTimeoutError};
    /// use tokio::time::Duration;
    ///
    /// let (sender, _receiver) = mpsc::channel(1);
    /// let limit = Duration::from_micros(50);
    /// assert_eq!(sender.send_timeout(1, limit).await, Ok(()));
    /// assert_eq!(sender.send_timeout(2, limit).await, Err(SendTimeoutError::Timeout(2)));
    /// # });
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[cfg(feature = "time")]
    pub async fn send_timeout(
        &self,
        value: T,
        timeout: std::time::Duration,
    ) -> Result<(), SendTimeoutError<T>> {
        match crate::time::timeout(timeout, self.0.reserve()).await {
            Ok(Ok(permit)) => {
                permit.send(value);
                Ok(())
            }
            Ok(Err(_)) => Err(SendTimeoutError::Closed(value)),
            Err(_) => Err(SendTimeoutError::Timeout(value)),
        }
    }

    /// As tokio's.
    ///
    /// # Errors
    ///
    /// The value, if nobody receives any more.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, but the value is lost and the place in the queue is too.
    pub async fn send(&self, value: T) -> Result<(), SendError<T>> {
        self.0.send(value).await
    }

    /// As tokio's: waits until nobody receives any more.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn closed(&self) {
        self.0.closed().await;
    }

    /// As tokio's: sends if there is a place now.
    ///
    /// # Errors
    ///
    /// The value, if there is none or nobody receives any more.
    pub fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
        self.0.try_send(message)
    }

    /// As tokio's: sends, and blocks the OS thread until there is a place.
    ///
    /// # Errors
    ///
    /// The value, if nobody receives any more.
    ///
    /// # Panics
    ///
    /// In a task, and in the future of a `block_on`.
    #[track_caller]
    pub fn blocking_send(&self, value: T) -> Result<(), SendError<T>> {
        self.0.blocking_send(value)
    }

    /// Whether nobody receives any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// As tokio's: waits for a place.
    ///
    /// # Errors
    ///
    /// If nobody receives any more.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, but the place in the queue is lost.
    pub async fn reserve(&self) -> Result<Permit<'_, T>, SendError<()>> {
        self.0.reserve().await
    }

    /// As tokio's: waits for `n` places.
    ///
    /// # Errors
    ///
    /// If nobody receives any more, or the channel never has so many.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, but the place in the queue is lost.
    pub async fn reserve_many(&self, n: usize) -> Result<PermitIterator<'_, T>, SendError<()>> {
        self.0.reserve_many(n).await
    }

    /// As tokio's: waits for a place, and gives the sender into it.
    ///
    /// # Errors
    ///
    /// If nobody receives any more.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, but the place in the queue is lost, and the sender.
    pub async fn reserve_owned(self) -> Result<OwnedPermit<T>, SendError<()>> {
        self.0.reserve_owned().await.map(OwnedPermit)
    }

    /// As tokio's: a place, if there is one now.
    ///
    /// # Errors
    ///
    /// If there is none, or nobody receives any more.
    pub fn try_reserve(&self) -> Result<Permit<'_, T>, TrySendError<()>> {
        self.0.try_reserve()
    }

    /// As tokio's: `n` places, if there are so many now.
    ///
    /// # Errors
    ///
    /// If there are not, or nobody receives any more.
    pub fn try_reserve_many(&self, n: usize) -> Result<PermitIterator<'_, T>, TrySendError<()>> {
        self.0.try_reserve_many(n)
    }

    /// As tokio's: a place with the sender in it, if there is one now.
    ///
    /// # Errors
    ///
    /// The sender, if there is none or nobody receives any more.
    pub fn try_reserve_owned(self) -> Result<OwnedPermit<T>, TrySendError<Self>> {
        match self.0.try_reserve_owned() {
            Ok(permit) => Ok(OwnedPermit(permit)),
            Err(TrySendError::Full(sender)) => Err(TrySendError::Full(Sender(sender))),
            Err(TrySendError::Closed(sender)) => Err(TrySendError::Closed(Sender(sender))),
        }
    }

    /// Whether both send to the same channel.
    #[must_use]
    pub fn same_channel(&self, other: &Self) -> bool {
        self.0.same_channel(&other.0)
    }

    /// How many places are free.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.0.capacity()
    }

    /// How many places there are.
    #[must_use]
    pub fn max_capacity(&self) -> usize {
        self.0.max_capacity()
    }

    /// A sender that does not keep the channel open.
    #[must_use]
    pub fn downgrade(&self) -> WeakSender<T> {
        WeakSender(self.0.downgrade())
    }

    /// How many senders there are.
    #[must_use]
    pub fn strong_count(&self) -> usize {
        self.0.strong_count()
    }

    /// How many [`WeakSender`]s there are.
    #[must_use]
    pub fn weak_count(&self) -> usize {
        self.0.weak_count()
    }
}

impl<T> Deref for Sender<T> {
    type Target = theirs::Sender<T>;

    fn deref(&self) -> &theirs::Sender<T> {
        &self.0
    }
}

impl<T> From<theirs::Sender<T>> for Sender<T> {
    fn from(sender: theirs::Sender<T>) -> Self {
        Sender(sender)
    }
}

impl<T> From<Sender<T>> for theirs::Sender<T> {
    fn from(sender: Sender<T>) -> Self {
        sender.0
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Sender(self.0.clone())
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T> WeakSender<T> {
    /// A sender, if the channel is still open.
    #[must_use]
    pub fn upgrade(&self) -> Option<Sender<T>> {
        self.0.upgrade().map(Sender)
    }

    /// How many senders there are.
    #[must_use]
    pub fn strong_count(&self) -> usize {
        self.0.strong_count()
    }

    /// How many [`WeakSender`]s there are.
    #[must_use]
    pub fn weak_count(&self) -> usize {
        self.0.weak_count()
    }
}

impl<T> Clone for WeakSender<T> {
    fn clone(&self) -> Self {
        WeakSender(self.0.clone())
    }
}

impl<T> fmt::Debug for WeakSender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T> OwnedPermit<T> {
    /// Sends into the place, and gives the sender back.
    pub fn send(self, value: T) -> Sender<T> {
        Sender(self.0.send(value))
    }

    /// Gives the place up, and the sender back.
    pub fn release(self) -> Sender<T> {
        Sender(self.0.release())
    }

    /// Whether both are places of the same channel.
    #[must_use]
    pub fn same_channel(&self, other: &Self) -> bool {
        self.0.same_channel(&other.0)
    }

    /// Whether it is a place of the channel that `sender` sends to.
    #[must_use]
    pub fn same_channel_as_sender(&self, sender: &Sender<T>) -> bool {
        self.0.same_channel_as_sender(&sender.0)
    }
}

impl<T> fmt::Debug for OwnedPermit<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
