//! A queue from any threads to one SpdkThread, whose wake is the message that
//! carries the value.
//!
//! Channels that do not know of SpdkThreads put the value into a queue of their
//! own and wake the receiver's task, which then is a message to its thread: two
//! hand-overs between the cores. Here the value travels in the mailbox; on the
//! receiver's thread it goes into a queue without locks or atomics, and the wake
//! of the task is a local one.
//!
//! The count of places is the only thing that senders and receiver share.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker, ready};

use futures::stream::{FusedStream, Stream};

pub use crate::local::mpsc::{SendError, TryRecvError, TrySendError};
use crate::sync::Places;
use crate::sync::budget::{self, poll_budget};
use crate::thread::SpdkThread;
use crate::thread::ended::{EndKey, EndsWithThread};
use crate::thread::local::Local;
use crate::thread::message::Message;
use crate::thread::panic::contain;
use crate::thread::shared::Shared;

/// What only the receiver's thread touches.
struct Inbox<T> {
    values: VecDeque<T>,
    receiver: Option<Waker>,
    /// Every sender is gone and all they sent has arrived.
    ended: bool,
    /// The receiver is gone.
    abandoned: bool,
}

struct Channel<T> {
    thread: Arc<Shared>,
    inbox: RefCell<Inbox<T>>,
    /// Those taken are of values sent and not taken out of the inbox.
    places: Places,
    senders: AtomicUsize,
}

// SAFETY: `inbox` is touched by messages, which the owner of `thread` runs, and
// by the receiver, whose `Rc<Local>` keeps it and the thread on one OS thread. The
// values in it are `Send`, so that the last owner of the channel may drop them.
unsafe impl<T: Send> Sync for Channel<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Channel<T> {}

/// No message comes any more, and none is taken.
impl<T: Send + 'static> EndsWithThread for Channel<T> {
    fn thread_ended(&self) {
        // A waker of the receiver's that panics keeps no sender asleep.
        let woken = contain(|| self.end());
        self.places.close();
        if let Err(payload) = woken {
            std::panic::resume_unwind(payload);
        }
    }
}

impl<T> Channel<T> {
    /// A value arrives. On the receiver's thread.
    fn deliver(&self, value: T) {
        let mut inbox = self.inbox.borrow_mut();
        if inbox.abandoned {
            drop(inbox);
            drop(value);
            return;
        }
        inbox.values.push_back(value);
        let waker = inbox.receiver.take();
        drop(inbox);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// No more will arrive. On the receiver's thread.
    fn end(&self) {
        let mut inbox = self.inbox.borrow_mut();
        inbox.ended = true;
        let waker = inbox.receiver.take();
        drop(inbox);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// A channel to the current SpdkThread that holds up to `capacity` values, those
/// on their way included; senders wait when there is no place.
///
/// Values arrive in the order sent, and the end after all of them. While the receiver
/// lives, its thread stays on its OS thread. It ends with its thread: senders then
/// have their values back, and the receiver what had arrived.
///
/// # Panics
///
/// When no SpdkThread is current, or `capacity` is 0.
///
/// # Examples
///
/// ```
/// use corespun::{mpsc, task, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let (sender, mut receiver) = runner.enter(|| mpsc::channel(4));
/// let sum = runner.enter(|| task::spawn_local(async move {
///     let mut sum = 0;
///     while let Some(value) = receiver.recv().await {
///         sum += value;
///     }
///     sum
/// }));
/// std::thread::spawn(move || (1..=3).for_each(|value| sender.try_send(value).unwrap()))
///     .join()
///     .unwrap();
/// while !sum.is_finished() {
///     runner.poll(0, 0);
/// }
/// assert_eq!(futures::executor::block_on(sum).unwrap(), 6);
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[track_caller]
pub fn channel<T: Send + 'static>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    assert!(capacity > 0, "a channel needs a capacity above zero");
    let Some(local) = Local::current_rc() else {
        panic!("mpsc::channel needs a current SpdkThread, which will receive");
    };
    let channel = Arc::new(Channel {
        thread: local.shared.clone(),
        inbox: RefCell::new(Inbox {
            values: VecDeque::new(),
            receiver: None,
            ended: false,
            abandoned: false,
        }),
        places: Places::new(capacity),
        senders: AtomicUsize::new(1),
    });
    let sender = Sender {
        channel: channel.clone(),
    };
    let end = local.tell_end(channel.clone());
    let receiver = Receiver {
        channel,
        local,
        end,
    };
    (sender, receiver)
}

/// Sends to a SpdkThread, from any thread; clone it for more senders.
///
/// # Examples
///
/// ```
/// use corespun::{mpsc, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let (sender, mut receiver) = runner.enter(|| mpsc::channel(8));
/// let senders = [sender.clone(), sender].map(|sender| {
///     std::thread::spawn(move || sender.try_send(std::thread::current().id()).unwrap())
/// });
/// senders.map(|sender| sender.join().unwrap());
/// // The values are messages to the thread: they arrive when it is polled.
/// runner.poll(0, 0);
/// assert_ne!(receiver.try_recv().unwrap(), receiver.try_recv().unwrap());
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
pub struct Sender<T: Send + 'static> {
    channel: Arc<Channel<T>>,
}

impl<T: Send + 'static> Sender<T> {
    /// Sends `value` if there is a place.
    ///
    /// # Errors
    ///
    /// [`TrySendError`] with the value when there is none, or the receiver or its
    /// thread is gone.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{mpsc::{self, TrySendError}, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let (sender, mut receiver) = runner.enter(|| mpsc::channel(1));
    /// sender.try_send(1).unwrap();
    /// // Full, also while the value is on its way.
    /// assert_eq!(sender.try_send(2), Err(TrySendError::Full(2)));
    /// runner.poll(0, 0);
    /// assert_eq!(receiver.try_recv(), Ok(1));
    /// assert_eq!(sender.try_send(2), Ok(()));
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
        let channel = &self.channel;
        if self.is_closed() {
            return Err(TrySendError::Closed(value));
        }
        let Some(before) = channel.places.try_take() else {
            return Err(TrySendError::Full(value));
        };
        self.deliver(value, before)
            .map_err(|SendError(value)| TrySendError::Closed(value))
    }

    /// Sends `value`, once there is a place.
    ///
    /// # Errors
    ///
    /// [`SendError`] with the value when the receiver or its thread is gone.
    ///
    /// # Cancel safety
    ///
    /// Cancelled, the value is not sent and is dropped.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{mpsc, task, thread::ThreadLib};
    /// use futures::StreamExt;
    ///
    /// let library = ThreadLib::new();
    /// let mut disk = library.thread().build()?.attach();
    /// let mut client = library.thread().build()?.attach();
    /// let (sender, receiver) = disk.enter(|| mpsc::channel(1));
    /// let sent = client.enter(|| task::spawn(async move {
    ///     for block in 0..3 {
    ///         // Waits while the other thread is behind.
    ///         sender.send(block).await.unwrap();
    ///     }
    /// }));
    /// let received = disk.enter(|| task::spawn_local(receiver.collect::<Vec<_>>()));
    /// while !received.is_finished() {
    ///     client.poll(0, 0);
    ///     disk.poll(0, 0);
    /// }
    /// assert!(sent.is_finished());
    /// assert_eq!(futures::executor::block_on(received).unwrap(), [0, 1, 2]);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub async fn send(&self, value: T) -> Result<(), SendError<T>> {
        budget::take().await;
        match self.channel.places.take().await {
            Some(before) => self.deliver(value, before),
            None => Err(SendError(value)),
        }
    }

    /// With a place taken, after `before` others.
    fn deliver(&self, value: T, before: usize) -> Result<(), SendError<T>> {
        let channel = &self.channel;
        // If all of those have arrived, this one overtakes none.
        if channel.thread.is_current() && channel.inbox.borrow().values.len() == before {
            channel.deliver(value);
            return Ok(());
        }
        let arrives = channel.clone();
        let sent = channel.thread.deliver(value, move |value| {
            Message::new(move || arrives.deliver(value))
        });
        sent.map_err(|value| {
            channel.places.close();
            SendError(value)
        })
    }

    /// Whether the receiver is known to be gone.
    pub fn is_closed(&self) -> bool {
        self.channel.places.is_closed()
    }

    /// The thread that receives.
    pub fn thread(&self) -> SpdkThread {
        SpdkThread::from_shared(self.channel.thread.clone())
    }
}

impl<T: Send + 'static> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.channel.senders.fetch_add(1, Ordering::Relaxed);
        Sender {
            channel: self.channel.clone(),
        }
    }
}

impl<T: Send + 'static> Drop for Sender<T> {
    fn drop(&mut self) {
        // What every other sender sent was sent to the thread before its
        // decrement, which this one follows, so the end arrives after it (G13).
        if self.channel.senders.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        let channel = self.channel.clone();
        let ends = Message::new(move || channel.end());
        // If the thread has exited, no receiver waits.
        drop(self.channel.thread.deliver(ends, |ends| ends));
    }
}

impl<T: Send + 'static> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender")
            .field("to", &self.channel.thread.name())
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

/// Receives on the SpdkThread that made it; also a `Stream`, which ends when every
/// sender is gone and what they sent was taken.
///
/// # Examples
///
/// ```
/// use corespun::{mpsc, task, thread::ThreadLib};
/// use futures::StreamExt;
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let (sender, receiver) = runner.enter(|| mpsc::channel(8));
/// std::thread::spawn(move || (1..=3).for_each(|value| sender.try_send(value).unwrap()))
///     .join()
///     .unwrap();
/// let doubled = receiver.map(|value| value * 2).collect::<Vec<_>>();
/// let doubled = runner.enter(|| task::spawn_local(doubled));
/// while !doubled.is_finished() {
///     runner.poll(0, 0);
/// }
/// assert_eq!(futures::executor::block_on(doubled).unwrap(), [2, 4, 6]);
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
pub struct Receiver<T: Send + 'static> {
    channel: Arc<Channel<T>>,
    /// Keeps the thread where the receiver is.
    local: Rc<Local>,
    end: Option<EndKey>,
}

impl<T: Send + 'static> Receiver<T> {
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
    /// use std::task::{Context, Poll, Waker};
    /// use corespun::{mpsc, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let (sender, mut receiver) = runner.enter(|| mpsc::channel(1));
    /// let mut cx = Context::from_waker(Waker::noop());
    /// assert_eq!(receiver.poll_recv(&mut cx), Poll::Pending);
    /// sender.try_send(5).unwrap();
    /// runner.poll(0, 0);
    /// assert_eq!(receiver.poll_recv(&mut cx), Poll::Ready(Some(5)));
    /// # Ok::<(), corespun::thread::CreateError>(())
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
                let mut inbox = self.channel.inbox.borrow_mut();
                let known = inbox.receiver.as_ref();
                if !known.is_some_and(|known| known.will_wake(cx.waker())) {
                    let replaced = inbox.receiver.replace(cx.waker().clone());
                    // A foreign waker's destructor is foreign code.
                    drop(inbox);
                    drop(replaced);
                }
                Poll::Pending
            }
        }
    }

    /// The next value, if one has arrived.
    ///
    /// # Errors
    ///
    /// [`TryRecvError`] if not.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{mpsc::{self, TryRecvError}, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let (sender, mut receiver) = runner.enter(|| mpsc::channel(1));
    /// sender.try_send(5).unwrap();
    /// assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
    /// // Now the message that carries it runs.
    /// runner.poll(0, 0);
    /// assert_eq!(receiver.try_recv(), Ok(5));
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn try_recv(&mut self) -> Result<T, TryRecvError> {
        let value = self.channel.inbox.borrow_mut().values.pop_front();
        match value {
            Some(value) => {
                self.channel.places.free();
                Ok(value)
            }
            None if self.is_terminated() => Err(TryRecvError::Closed),
            None => Err(TryRecvError::Empty),
        }
    }
}

impl<T: Send + 'static> Stream for Receiver<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        self.poll_recv(cx)
    }
}

impl<T: Send + 'static> FusedStream for Receiver<T> {
    fn is_terminated(&self) -> bool {
        let inbox = self.channel.inbox.borrow();
        inbox.ended && inbox.values.is_empty()
    }
}

impl<T: Send + 'static> Drop for Receiver<T> {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            self.local.forget_end(end);
        }
        let mut inbox = self.channel.inbox.borrow_mut();
        inbox.abandoned = true;
        let left = (std::mem::take(&mut inbox.values), inbox.receiver.take());
        drop(inbox);
        self.channel.places.close();
        drop(left);
    }
}

impl<T: Send + 'static> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver")
            .field("on", &self.channel.thread.name())
            .finish_non_exhaustive()
    }
}
