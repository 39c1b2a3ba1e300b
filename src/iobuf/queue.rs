//! The waiters for buffers on one thread, and where a buffer goes that comes back.
//!
//! All of it belongs to the thread's owner, as the context of the pools'
//! io_channel. The queues are never borrowed while a callback runs; a buffer that
//! a callback gives back is dealt with after it, in the same loop, so that no
//! chain of callbacks grows the stack.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use super::buf::{Home, IobufBuf};
use super::channel::{ChannelCore, WaiterId};
use super::pool::Pools;
use super::{Class, IobufError};
use crate::sync::budget::poll_budget;
use crate::thread::local::Local;
use crate::thread::panic::{PanicSource, contain};
use crate::thread::shared::Shared;

/// What is called with the buffers once they are all there.
pub(super) type Done = Box<dyn FnOnce(Vec<IobufBuf>)>;

pub(super) struct Waiter {
    pub(super) id: WaiterId,
    pub(super) home: Home,
    pub(super) need: usize,
    pub(super) got: Vec<IobufBuf>,
    pub(super) done: Done,
}

/// A buffer on its way from one user to the next.
#[derive(Clone, Copy)]
struct Loose {
    index: u32,
    node: u16,
    class: Class,
}

pub(super) struct ThreadState {
    pub(super) inner: Arc<Pools>,
    thread: Arc<Shared>,
    pub(super) node: u16,
    queues: [RefCell<VecDeque<Waiter>>; 2],
    /// Whether the pool's list has this thread.
    listed: [Cell<bool>; 2],
    serving: Cell<bool>,
    returned: RefCell<Vec<Loose>>,
    channels: RefCell<Vec<(Home, Weak<ChannelCore>)>>,
}

impl ThreadState {
    pub(super) fn new(inner: Arc<Pools>, thread: Arc<Shared>) -> Self {
        ThreadState {
            thread,
            node: inner.node_here(),
            inner,
            queues: Default::default(),
            listed: Default::default(),
            serving: Cell::new(false),
            returned: RefCell::default(),
            channels: RefCell::default(),
        }
    }

    pub(super) fn channel_count(&self) -> usize {
        self.channels.borrow().len()
    }

    pub(super) fn add_channel(&self, id: Home, channel: Weak<ChannelCore>) {
        self.channels.borrow_mut().push((id, channel));
    }

    /// A channel closes: its waiters come back, to be dropped by the caller.
    pub(super) fn remove_channel(&self, id: Home) -> Vec<Waiter> {
        self.channels.borrow_mut().retain(|(other, _)| *other != id);
        let mut removed = Vec::new();
        for queue in &self.queues {
            let all = queue.take();
            let (own, others): (Vec<_>, VecDeque<_>) = partition(all, |waiter| waiter.home == id);
            queue.replace(others);
            removed.extend(own);
        }
        self.unlist_if_served();
        removed
    }

    pub(super) fn for_each_channel(&self, mut f: impl FnMut(&ChannelCore)) {
        let channels = self.channels.borrow();
        let live = channels.iter().filter_map(|(_, channel)| channel.upgrade());
        live.for_each(|channel| f(&channel));
    }

    fn find_channel(&self, id: Home) -> Option<Rc<ChannelCore>> {
        let channels = self.channels.borrow();
        let (_, channel) = channels.iter().find(|(other, _)| *other == id)?;
        channel.upgrade()
    }

    /// The waiters of a channel, the small ones first.
    pub(super) fn waiters_of(&self, channel: Home) -> Vec<WaiterId> {
        let mut found = Vec::new();
        for class in Class::ALL {
            let queue = self.queues[class as usize].borrow();
            let own = queue.iter().filter(|waiter| waiter.home == channel);
            found.extend(own.map(|waiter| waiter.id.clone()));
        }
        found
    }

    pub(super) fn enqueue(&self, class: Class, waiter: Waiter) {
        self.queues[class as usize].borrow_mut().push_back(waiter);
        self.list(class);
    }

    fn list(&self, class: Class) {
        if self.listed[class as usize].replace(true) {
            return;
        }
        self.inner.list_waiting(self.node, class, &self.thread);
    }

    /// Takes a waiter out that has not been served.
    pub(super) fn abort(&self, id: &WaiterId) -> Option<Waiter> {
        let waiter = {
            let mut queue = self.queues[id.class() as usize].borrow_mut();
            let index = queue.iter().position(|waiter| waiter.id == *id)?;
            queue.remove(index)
        };
        self.unlist_if_served();
        waiter
    }

    fn unlist_if_served(&self) {
        for class in Class::ALL {
            let listed = &self.listed[class as usize];
            if !listed.get() || self.has_waiters(class) {
                continue;
            }
            let found = self.inner.unlist_waiting(self.node, class, &self.thread);
            listed.set(!found);
        }
    }

    fn has_waiters(&self, class: Class) -> bool {
        !self.queues[class as usize].borrow().is_empty()
    }

    fn put(&self, loose: Loose, home: Home) {
        if self.has_waiters(loose.class) {
            if self.serving.get() {
                self.returned.borrow_mut().push(loose);
            } else {
                self.serve(loose);
            }
            return;
        }
        let Loose { index, node, class } = loose;
        let pool = self.inner.pool(node, class);
        if !pool.has_waiting()
            && node == self.node
            && let Some(channel) = self.find_channel(home)
            && channel.cache(class, index)
        {
            return;
        }
        pool.give(index);
        self.inner.wake_waiting(node, class);
    }

    /// Gives a buffer to the waiter that has waited longest, and what comes back
    /// meanwhile to the next.
    fn serve(&self, first: Loose) {
        self.serving.set(true);
        let mut next = Some(first);
        while let Some(loose) = next {
            let queue = &self.queues[loose.class as usize];
            let waiter = queue.borrow_mut().pop_front();
            match waiter {
                Some(waiter) => self.hand_over(loose, waiter),
                None => self.put(loose, Home::NONE),
            }
            // Before the next one is put: it need not go round by a message.
            self.unlist_if_served();
            next = self.returned.borrow_mut().pop();
        }
        self.serving.set(false);
    }

    fn hand_over(&self, loose: Loose, mut waiter: Waiter) {
        let Loose { index, node, class } = loose;
        let inner = self.inner.clone();
        let buffer = IobufBuf::new(inner, index, node, class, waiter.home);
        waiter.got.push(buffer);
        if waiter.got.len() < waiter.need {
            // It keeps its place, so that it is not overtaken for ever.
            self.queues[class as usize].borrow_mut().push_front(waiter);
            return;
        }
        if let Err(payload) = contain(|| (waiter.done)(waiter.got)) {
            Local::with_current(|local| {
                local.report_panic(PanicSource::Message, Some("iobuf callback"), payload);
            });
        }
    }

    /// What a closing channel had in its caches.
    pub(super) fn take_back(&self, class: Class, index: u32) {
        let node = self.node;
        self.put(Loose { index, node, class }, Home::NONE);
    }
}

fn partition<T>(all: VecDeque<T>, mut choose: impl FnMut(&T) -> bool) -> (Vec<T>, VecDeque<T>) {
    let (mut chosen, mut rest) = (Vec::new(), VecDeque::new());
    for item in all {
        if choose(&item) {
            chosen.push(item);
        } else {
            rest.push_back(item);
        }
    }
    (chosen, rest)
}

/// A buffer was dropped, on any thread.
pub(super) fn put(inner: &Arc<Pools>, index: u32, node: u16, class: Class, home: Home) {
    let loose = Loose { index, node, class };
    let device = inner.device.get();
    let put = device.and_then(|device| device.with_existing(|state| state.put(loose, home)));
    if put.is_none() {
        inner.pool(node, class).give(index);
        inner.wake_waiting(node, class);
    }
}

/// The message that brings a buffer from another thread. Dropped here, it goes
/// to a waiter here, or the next thread.
pub(super) fn arrived(buffer: IobufBuf) {
    let class = buffer.class();
    let inner = buffer.inner().clone();
    let device = inner.device.get().expect("set when built");
    device.with_existing(|state| state.listed[class as usize].set(false));
    drop(buffer);
    device.with_existing(|state| {
        if state.has_waiters(class) {
            state.list(class);
        }
    });
}

/// What a waiting future and its entry in the queue share.
#[derive(Default)]
struct WaiterSlot {
    buffers: RefCell<Option<Vec<IobufBuf>>>,
    waker: RefCell<Option<Waker>>,
}

enum GetState {
    Refused(Option<IobufError>),
    New,
    Waiting { slot: Rc<WaiterSlot>, id: WaiterId },
    Done,
}

/// Completes with several buffers of one class; made by
/// [`IobufChannel::get_many`](super::IobufChannel::get_many).
///
/// # Examples
///
/// It keeps what has come while it waits for the rest:
///
/// ```
/// use corespun::{iobuf::Iobuf, task, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let iobuf = runner.enter(|| Iobuf::builder().small(64, 4096).large(8, 8192).build())?;
/// iobuf.register_module("null")?;
/// let channel = runner.enter(|| iobuf.channel("null", 0, 0))?;
/// let mut all: Vec<_> = std::iter::from_fn(|| channel.try_get(8192).unwrap()).collect();
/// let two = runner.enter(|| task::spawn_local(channel.get_many(8192, 2)));
/// runner.poll(0, 0);
/// runner.enter(|| drop(all.pop()));
/// runner.poll(0, 0);
/// assert!(!two.is_finished() && channel.try_get(8192)?.is_none());
/// runner.enter(|| drop(all.pop()));
/// runner.poll(0, 0);
/// assert_eq!(futures::executor::block_on(two)??.len(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "futures do nothing unless awaited"]
pub struct GetMany {
    channel: Rc<ChannelCore>,
    class: Class,
    need: usize,
    state: GetState,
}

impl GetMany {
    pub(super) fn new(
        channel: Rc<ChannelCore>,
        class: Result<Class, IobufError>,
        need: usize,
    ) -> Self {
        let (class, state) = match class {
            Ok(class) => (class, GetState::New),
            Err(error) => (Class::Large, GetState::Refused(Some(error))),
        };
        GetMany {
            channel,
            class,
            need,
            state,
        }
    }

    fn start(&mut self, cx: &mut Context<'_>) -> Poll<Vec<IobufBuf>> {
        let got = self.channel.take_many(self.class, self.need);
        if got.len() == self.need {
            self.state = GetState::Done;
            return Poll::Ready(got);
        }
        let slot = Rc::new(WaiterSlot::default());
        slot.waker.replace(Some(cx.waker().clone()));
        let place = slot.clone();
        let done = Box::new(move |buffers| {
            place.buffers.replace(Some(buffers));
            let waker = place.waker.take();
            waker.into_iter().for_each(Waker::wake);
        });
        let id = self.channel.wait(self.class, self.need, got, done);
        self.state = GetState::Waiting { slot, id };
        Poll::Pending
    }
}

impl Future for GetMany {
    type Output = Result<Vec<IobufBuf>, IobufError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let budget = ready!(poll_budget(cx));
        match &mut self.state {
            GetState::Refused(error) => {
                budget.progressed();
                let error = error.take().expect("polled after it completed");
                Poll::Ready(Err(error))
            }
            GetState::New => budget.on(self.start(cx).map(Ok)),
            GetState::Waiting { slot, .. } => {
                let served = slot.buffers.take();
                if let Some(buffers) = served {
                    budget.progressed();
                    self.state = GetState::Done;
                    return Poll::Ready(Ok(buffers));
                }
                slot.waker.replace(Some(cx.waker().clone()));
                Poll::Pending
            }
            GetState::Done => panic!("an iobuf future was polled after it completed"),
        }
    }
}

impl Drop for GetMany {
    fn drop(&mut self) {
        // Buffers that have come and were not looked at go back with the slot.
        if let GetState::Waiting { id, .. } = &self.state {
            drop(self.channel.abort(id));
        }
    }
}

impl fmt::Debug for GetMany {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GetMany")
            .field("class", &self.class)
            .field("need", &self.need)
            .finish_non_exhaustive()
    }
}

/// Completes with a buffer; made by
/// [`IobufChannel::get`](super::IobufChannel::get).
///
/// # Examples
///
/// Dropped, it gives its place in the queue to the next:
///
/// ```
/// use corespun::{iobuf::Iobuf, task, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let iobuf = runner.enter(|| Iobuf::builder().small(64, 4096).large(8, 8192).build())?;
/// iobuf.register_module("null")?;
/// let channel = runner.enter(|| iobuf.channel("null", 0, 0))?;
/// let mut all: Vec<_> = std::iter::from_fn(|| channel.try_get(8192).unwrap()).collect();
/// let (first, second) = runner.enter(|| {
///     (task::spawn_local(channel.get(8192)), task::spawn_local(channel.get(8192)))
/// });
/// runner.poll(0, 0);
/// first.abort();
/// runner.poll(0, 0);
/// runner.enter(|| drop(all.pop()));
/// runner.poll(0, 0);
/// assert!(second.is_finished());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct GetBuf(pub(super) GetMany);

impl Future for GetBuf {
    type Output = Result<IobufBuf, IobufError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let buffers = std::task::ready!(Pin::new(&mut self.0).poll(cx));
        Poll::Ready(buffers.map(|mut buffers| buffers.pop().expect("one was asked for")))
    }
}
