//! A poller whose closure makes the items of a stream.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use futures::stream::{FusedStream, Stream};

use super::PollerItem;
use crate::task::poll_budget;
use crate::thread::{Activity, Poller, PollerError};

/// What the poller's closure and the stream share.
struct Buffer<T> {
    items: RefCell<VecDeque<T>>,
    capacity: usize,
    consumer: Cell<Option<Waker>>,
    /// The closure is gone, or said that it has no more.
    ended: Cell<bool>,
    /// The poller paused itself because the buffer is full.
    paused: Cell<bool>,
}

impl<T> Buffer<T> {
    fn wake(&self) {
        if let Some(waker) = self.consumer.take() {
            waker.wake();
        }
    }

    fn end(&self) {
        self.ended.set(true);
        self.wake();
    }
}

/// Ends the stream when the poller drops its closure: because the closure
/// panicked, or because the thread is over.
struct EndOnDrop<T>(Rc<Buffer<T>>);

impl<T> Drop for EndOnDrop<T> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// A poller as a `Stream` of what its closure finds.
///
/// The closure runs as any poller does: on every poll of the thread, or once per
/// period. What it finds waits in a bounded buffer; when that is full the poller
/// pauses itself until the consumer has taken an item, so nothing is dropped and
/// nothing piles up. Dropping the stream unregisters the poller.
///
/// A closure that panics is reported as every poller's is, and the stream ends.
///
/// # Examples
///
/// ```
/// use corespun::{stream::PollerStream, task, thread::ThreadLib};
/// use futures::StreamExt;
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let mut count = 0;
/// let counted = runner.enter(|| {
///     let numbers = PollerStream::active(move || {
///         count += 1;
///         Some(count)
///     });
///     task::spawn_local(numbers.unwrap().take(3).collect::<Vec<_>>())
/// });
/// while !counted.is_finished() {
///     runner.poll(0, 0);
/// }
/// assert_eq!(futures::executor::block_on(counted).unwrap(), [1, 2, 3]);
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[must_use = "dropping a PollerStream unregisters its poller"]
pub struct PollerStream<T> {
    buffer: Rc<Buffer<T>>,
    /// `None` once the stream has ended.
    poller: Option<Poller>,
}

impl<T: 'static> PollerStream<T> {
    /// Calls `f` on every poll of the current SpdkThread.
    ///
    /// # Errors
    ///
    /// [`PollerError`] when no SpdkThread is current or it has exited.
    pub fn active<R>(f: impl FnMut() -> R + 'static) -> Result<Self, PollerError>
    where
        R: PollerItem<Item = T>,
    {
        PollerStream::<T>::builder().register(f)
    }

    /// Calls `f` once per `period`, as [`Poller::timed`].
    ///
    /// # Errors
    ///
    /// [`PollerError`] when no SpdkThread is current or it has exited.
    pub fn timed<R>(period: Duration, f: impl FnMut() -> R + 'static) -> Result<Self, PollerError>
    where
        R: PollerItem<Item = T>,
    {
        PollerStream::<T>::builder().period(period).register(f)
    }
}

impl<T> PollerStream<T> {
    /// With a name, a period or another buffer.
    pub fn builder() -> PollerStreamBuilder {
        PollerStreamBuilder::default()
    }

    /// The poller behind the stream, until the stream has ended.
    pub fn poller(&self) -> Option<&Poller> {
        self.poller.as_ref()
    }

    /// How many items wait to be taken.
    pub fn queued(&self) -> usize {
        self.buffer.items.borrow().len()
    }
}

impl<T> Unpin for PollerStream<T> {}

impl<T> Stream for PollerStream<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let budget = ready!(poll_budget(cx));
        let item = self.buffer.items.borrow_mut().pop_front();
        if let Some(item) = item {
            budget.progressed();
            if self.buffer.paused.replace(false)
                && let Some(poller) = &self.poller
            {
                poller.resume();
            }
            return Poll::Ready(Some(item));
        }
        if self.buffer.ended.get() {
            self.poller = None;
            return Poll::Ready(None);
        }
        let waker = match self.buffer.consumer.take() {
            Some(known) if known.will_wake(cx.waker()) => known,
            _ => cx.waker().clone(),
        };
        self.buffer.consumer.set(Some(waker));
        Poll::Pending
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let queued = self.queued();
        (queued, self.buffer.ended.get().then_some(queued))
    }
}

impl<T> FusedStream for PollerStream<T> {
    fn is_terminated(&self) -> bool {
        self.buffer.ended.get() && self.queued() == 0
    }
}

impl<T> fmt::Debug for PollerStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PollerStream")
            .field("poller", &self.poller)
            .field("queued", &self.queued())
            .finish()
    }
}

/// Settings of a [`PollerStream`].
#[derive(Clone, Debug)]
#[must_use = "call `register`"]
pub struct PollerStreamBuilder {
    name: Option<String>,
    period: Duration,
    capacity: usize,
}

impl Default for PollerStreamBuilder {
    fn default() -> Self {
        PollerStreamBuilder {
            name: None,
            period: Duration::ZERO,
            capacity: 16,
        }
    }
}

impl PollerStreamBuilder {
    /// A name for introspection, cut at 256 bytes.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Calls the closure once per `period` only, unless that is zero.
    pub fn period(mut self, period: Duration) -> Self {
        self.period = period;
        self
    }

    /// How many items wait for the consumer before the poller pauses itself; 16
    /// unless set, 1 at least.
    pub fn capacity(mut self, items: usize) -> Self {
        self.capacity = items.max(1);
        self
    }

    /// Registers the poller on the current SpdkThread.
    ///
    /// # Errors
    ///
    /// [`PollerError`] when no SpdkThread is current or it has exited.
    pub fn register<R>(
        self,
        mut f: impl FnMut() -> R + 'static,
    ) -> Result<PollerStream<R::Item>, PollerError>
    where
        R: PollerItem,
        R::Item: 'static,
    {
        let buffer = Rc::new(Buffer {
            items: RefCell::new(VecDeque::new()),
            capacity: self.capacity,
            consumer: Cell::new(None),
            ended: Cell::new(false),
            paused: Cell::new(false),
        });
        let producer = EndOnDrop(buffer.clone());
        let mut builder = Poller::builder().period(self.period);
        if let Some(name) = self.name {
            builder = builder.name(name);
        }
        let poller = builder.register_with(move |poller| {
            let buffer = &*producer.0;
            match f().into_poll() {
                Poll::Pending => return Activity::Idle,
                Poll::Ready(Some(item)) => {
                    let mut items = buffer.items.borrow_mut();
                    items.push_back(item);
                    if items.len() >= buffer.capacity {
                        buffer.paused.set(true);
                        poller.pause();
                    }
                    drop(items);
                    buffer.wake();
                }
                Poll::Ready(None) => {
                    poller.unregister();
                    buffer.end();
                }
            }
            Activity::Busy
        })?;
        Ok(PollerStream {
            buffer,
            poller: Some(poller),
        })
    }
}
