//! A poller whose closure makes the items of a stream.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use futures::stream::{FusedStream, Stream};

use super::PollerItem;
use crate::sync::budget::poll_budget;
use crate::thread::poller::PollerKey;
use crate::thread::{Activity, Poller, PollerBuilder, PollerError};

/// What the poller's closure and the stream share.
pub(super) struct Buffer<T> {
    items: RefCell<VecDeque<T>>,
    capacity: usize,
    consumer: Cell<Option<Waker>>,
    /// The closure is gone, or said that it has no more.
    ended: Cell<bool>,
    /// The poller paused itself because the buffer is full.
    paused: Cell<bool>,
}

impl<T> Buffer<T> {
    pub(super) fn new(capacity: usize) -> Self {
        Buffer {
            items: RefCell::new(VecDeque::new()),
            capacity,
            consumer: Cell::new(None),
            ended: Cell::new(false),
            paused: Cell::new(false),
        }
    }

    pub(super) fn queued(&self) -> usize {
        self.items.borrow().len()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.get()
    }

    /// What the closure of `poller` found.
    fn put(&self, found: Poll<Option<T>>, poller: PollerKey) -> Activity {
        match found {
            Poll::Pending => return Activity::Idle,
            Poll::Ready(Some(item)) => {
                let mut items = self.items.borrow_mut();
                items.push_back(item);
                if items.len() >= self.capacity {
                    self.paused.set(true);
                    poller.pause();
                }
                drop(items);
                self.wake();
            }
            Poll::Ready(None) => {
                poller.unregister();
                self.end();
            }
        }
        Activity::Busy
    }

    /// The next item, or the end. Calls `resume` if there is room again for a poller
    /// that had paused.
    pub(super) fn poll_take(&self, cx: &mut Context<'_>, resume: impl FnOnce()) -> Poll<Option<T>> {
        let budget = ready!(poll_budget(cx));
        let item = self.items.borrow_mut().pop_front();
        if let Some(item) = item {
            budget.progressed();
            if self.paused.replace(false) {
                resume();
            }
            return Poll::Ready(Some(item));
        }
        if self.ended.get() {
            budget.progressed();
            return Poll::Ready(None);
        }
        let waker = match self.consumer.take() {
            Some(known) if known.will_wake(cx.waker()) => known,
            _ => cx.waker().clone(),
        };
        self.consumer.set(Some(waker));
        Poll::Pending
    }

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

/// How a closure and a stream share their buffer.
pub(super) trait Share<T> {
    /// Calls `f` with the buffer, if it may be touched here.
    fn lend(&self, f: impl FnOnce(&Buffer<T>));
}

impl<T> Share<T> for Rc<Buffer<T>> {
    fn lend(&self, f: impl FnOnce(&Buffer<T>)) {
        f(self);
    }
}

/// The poller's side of a buffer. It ends the stream when the poller drops its
/// closure: because the closure panicked, or because the thread is over.
pub(super) struct Producer<T, S: Share<T>> {
    buffer: S,
    poller: PollerKey,
    _item: PhantomData<fn(T)>,
}

impl<T, S: Share<T>> Producer<T, S> {
    pub(super) fn new(buffer: S, poller: PollerKey) -> Self {
        Producer {
            buffer,
            poller,
            _item: PhantomData,
        }
    }

    /// One turn of the poller, in which its closure found this.
    pub(super) fn put(&self, found: Poll<Option<T>>) -> Activity {
        let mut activity = Activity::Idle;
        self.buffer
            .lend(|buffer| activity = buffer.put(found, self.poller));
        activity
    }
}

impl<T, S: Share<T>> Drop for Producer<T, S> {
    fn drop(&mut self) {
        self.buffer.lend(Buffer::end);
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
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{cell::RefCell, collections::VecDeque, rc::Rc};
    /// use corespun::{stream::PollerStream, task, thread::ThreadLib};
    /// use futures::StreamExt;
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let device = Rc::new(RefCell::new(VecDeque::from(["read done", "write done"])));
    /// let queue = device.clone();
    /// let first = runner.enter(|| {
    ///     let mut completions = PollerStream::active(move || queue.borrow_mut().pop_front()).unwrap();
    ///     task::spawn_local(async move { completions.next().await })
    /// });
    /// while !first.is_finished() {
    ///     runner.poll(0, 0);
    /// }
    /// assert_eq!(futures::executor::block_on(first).unwrap(), Some("read done"));
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
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
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{stream::PollerStream, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let link = runner
    ///     .enter(|| PollerStream::<bool>::builder().name("link state").register(|| Some(true)))
    ///     .unwrap();
    /// assert_eq!(link.poller().unwrap().name(), "link state");
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn builder() -> PollerStreamBuilder {
        PollerStreamBuilder::default()
    }

    /// The poller behind the stream, until the stream has ended.
    pub fn poller(&self) -> Option<&Poller> {
        self.poller.as_ref()
    }

    /// How many items wait to be taken.
    pub fn queued(&self) -> usize {
        self.buffer.queued()
    }
}

impl<T> Unpin for PollerStream<T> {}

impl<T> Stream for PollerStream<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let this = &mut *self;
        let next = this.buffer.poll_take(cx, || {
            if let Some(poller) = &this.poller {
                poller.resume();
            }
        });
        if let Poll::Ready(None) = next {
            this.poller = None;
        }
        next
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
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use corespun::{stream::PollerStreamBuilder, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let beats = PollerStreamBuilder::default()
///     .name("heartbeat")
///     .period(Duration::from_millis(100))
///     .capacity(1);
/// let beats = runner.enter(|| beats.register(|| Some("alive"))).unwrap();
/// assert!(runner.next_deadline().is_some());
/// # drop(beats);
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "call `register`"]
pub struct PollerStreamBuilder {
    name: Option<String>,
    period: Duration,
    pub(super) capacity: usize,
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
    ///
    /// # Examples
    ///
    /// ```
    /// use std::task::Poll;
    /// use corespun::{stream::PollerStream, task, thread::ThreadLib};
    /// use futures::StreamExt;
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let mut left = 3;
    /// let countdown = runner.enter(|| {
    ///     let numbers = PollerStream::<u32>::builder().register(move || {
    ///         left -= 1;
    ///         Poll::Ready((left > 0).then_some(left))
    ///     });
    ///     task::spawn_local(numbers.unwrap().collect::<Vec<_>>())
    /// });
    /// while !countdown.is_finished() {
    ///     runner.poll(0, 0);
    /// }
    /// assert_eq!(futures::executor::block_on(countdown).unwrap(), [2, 1]);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn register<R>(
        self,
        mut f: impl FnMut() -> R + 'static,
    ) -> Result<PollerStream<R::Item>, PollerError>
    where
        R: PollerItem,
        R::Item: 'static,
    {
        let buffer = Rc::new(Buffer::new(self.capacity));
        let shared = buffer.clone();
        let poller = self.poller().register_with(move |poller| {
            let producer = Producer::new(shared, poller);
            move || producer.put(f().into_poll())
        })?;
        Ok(PollerStream {
            buffer,
            poller: Some(poller),
        })
    }

    /// Settings of the poller.
    pub(super) fn poller(&self) -> PollerBuilder {
        let builder = Poller::builder().period(self.period);
        match &self.name {
            Some(name) => builder.name(name),
            None => builder,
        }
    }
}
