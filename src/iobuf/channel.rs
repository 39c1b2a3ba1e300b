//! A module's channel on one thread: its caches, and the ways to get a buffer.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::buf::{Home, IobufBuf};
use super::pool::PoolStats;
use super::queue::{Done, GetBuf, GetMany, ThreadState, Waiter};
use super::{Class, IobufError};
use crate::channel::IoChannel;
use crate::thread::panic::drop_anywhere;

/// Channels that one thread may have, as SPDK's.
const MAX_CHANNELS: usize = 64;
/// The most buffers that move between a cache and its pool at once.
const BATCH: usize = 32;

pub(super) struct ChannelCore {
    pub(super) module: Arc<str>,
    home: Home,
    thread: IoChannel<ThreadState>,
    /// Hot ones last.
    caches: [RefCell<Vec<u32>>; 2],
    sizes: [usize; 2],
    stats: [Cell<PoolStats>; 2],
}

impl ChannelCore {
    /// A buffer that is free now.
    pub(super) fn take(&self, class: Class) -> Option<IobufBuf> {
        let (inner, node) = (&self.thread.inner, self.thread.node);
        let cached = self.caches[class as usize].borrow_mut().pop();
        let index = match cached {
            Some(index) => {
                self.count(class, |stats| stats.cache += 1);
                index
            }
            None => {
                let index = inner.pool(node, class).take()?;
                self.refill(class);
                self.count(class, |stats| stats.main += 1);
                index
            }
        };
        Some(IobufBuf::new(inner.clone(), index, node, class, self.home))
    }

    /// After one came from the pool: the rest of the batch.
    fn refill(&self, class: Class) {
        let pool = self.thread.inner.pool(self.thread.node, class);
        let batch = self.sizes[class as usize].clamp(1, BATCH);
        let more = std::iter::from_fn(|| pool.take()).take(batch - 1);
        self.caches[class as usize].borrow_mut().extend(more);
    }

    /// Keeps a buffer that came back, unless this channel has no cache. A cache
    /// that overflows gives a batch to the pool.
    pub(super) fn cache(&self, class: Class, index: u32) -> bool {
        let size = self.sizes[class as usize];
        if size == 0 {
            return false;
        }
        let batch = size.min(BATCH);
        let mut cache = self.caches[class as usize].borrow_mut();
        cache.push(index);
        if cache.len() >= size + batch {
            let (inner, node) = (&self.thread.inner, self.thread.node);
            for index in cache.drain(..batch) {
                inner.pool(node, class).give(index);
            }
            inner.wake_waiting(node, class);
        }
        true
    }

    /// So many, or as many as there are.
    pub(super) fn take_many(&self, class: Class, count: usize) -> Vec<IobufBuf> {
        let mut got = Vec::with_capacity(count.min(BATCH));
        got.extend(std::iter::from_fn(|| self.take(class)).take(count));
        got
    }

    pub(super) fn wait(
        &self,
        class: Class,
        need: usize,
        got: Vec<IobufBuf>,
        done: Done,
    ) -> WaiterId {
        self.count(class, |stats| stats.retry += 1);
        let id = WaiterId(Rc::new(class));
        let waiter = Waiter {
            id: id.clone(),
            home: self.home,
            need,
            got,
            done,
        };
        self.thread.enqueue(class, waiter);
        id
    }

    pub(super) fn abort(&self, id: &WaiterId) -> Option<Waiter> {
        self.thread.abort(id)
    }

    fn count(&self, class: Class, count: impl FnOnce(&mut PoolStats)) {
        let cell = &self.stats[class as usize];
        let mut stats = cell.get();
        count(&mut stats);
        cell.set(stats);
    }

    pub(super) fn add_stats(&self, total: &mut [PoolStats; 2]) {
        for (index, total) in total.iter_mut().enumerate() {
            let stats = self.stats[index].get();
            total.cache += stats.cache;
            total.main += stats.main;
            total.retry += stats.retry;
            total.cache_size += self.sizes[index];
        }
    }

    fn class_of(&self, len: usize) -> Result<Class, IobufError> {
        let [small, large] = self.thread.inner.sizes;
        if len <= small {
            Ok(Class::Small)
        } else if len <= large {
            Ok(Class::Large)
        } else {
            Err(IobufError::TooLong {
                wanted: len,
                largest: large,
            })
        }
    }
}

impl Drop for ChannelCore {
    fn drop(&mut self) {
        for waiter in self.thread.remove_channel(self.home) {
            drop_anywhere(waiter);
        }
        for class in Class::ALL {
            for index in self.caches[class as usize].take() {
                self.thread.take_back(class, index);
            }
        }
    }
}

/// A module's access to the pools on one SpdkThread
/// (`struct spdk_iobuf_channel`); opened by [`Iobuf::channel`](super::Iobuf::channel).
///
/// Dropping it takes back the requests of [`IobufChannel::get_with`] that wait,
/// unserved, and gives its caches back. While there is one, its thread does not
/// exit, and does not move to another OS thread.
///
/// # Examples
///
/// ```
/// use corespun::{iobuf::Iobuf, task, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let iobuf = runner.enter(|| Iobuf::builder().small(64, 4096).large(8, 8192).build())?;
/// iobuf.register_module("null")?;
/// let channel = runner.enter(|| iobuf.channel("null", 0, 0))?;
/// let request = runner.enter(|| task::spawn_local(async move {
///     let mut buffer = channel.get(8192).await?;
///     buffer.fill(0xff);
///     Ok::<_, corespun::iobuf::IobufError>(buffer.len())
/// }));
/// runner.poll(0, 0);
/// assert_eq!(futures::executor::block_on(request)??, 8192);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct IobufChannel {
    core: Rc<ChannelCore>,
}

/// What [`IobufChannel::get_with`] came to.
///
/// # Examples
///
/// ```
/// use corespun::{iobuf::{Got, Iobuf}, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let iobuf = runner.enter(|| Iobuf::builder().small(64, 4096).large(8, 8192).build())?;
/// iobuf.register_module("null")?;
/// let channel = runner.enter(|| iobuf.channel("null", 0, 0))?;
/// let all: Vec<_> = std::iter::from_fn(|| channel.try_get(8192).unwrap()).collect();
/// match channel.get_with(8192, |_buffer| ())? {
///     Got::Buffer(_buffer) => panic!("there are {} only", all.len()),
///     Got::Waiting(waiter) => assert!(channel.abort(&waiter)),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub enum Got {
    /// A buffer was free; the callback is not called.
    Buffer(IobufBuf),
    /// The callback is called once one is; this aborts it.
    Waiting(WaiterId),
}

/// What asking for several buffers, with a callback, led to.
///
/// # Examples
///
/// ```
/// use corespun::{iobuf::{GotMany, Iobuf}, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let iobuf = runner.enter(|| Iobuf::builder().small(64, 4096).large(8, 8192).build())?;
/// iobuf.register_module("null")?;
/// let channel = runner.enter(|| iobuf.channel("null", 0, 0))?;
/// match channel.get_many_with(8192, 8, |_late| unreachable!("there are eight"))? {
///     GotMany::Buffers(all) => assert_eq!(all.len(), 8),
///     GotMany::Waiting(waiter) => assert!(channel.abort(&waiter)),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub enum GotMany {
    /// They were free; the callback is dropped.
    Buffers(Vec<IobufBuf>),
    /// The callback is called once all of them are; this aborts it.
    Waiting(WaiterId),
}

/// Names a request that waits.
///
/// # Examples
///
/// ```
/// use std::ops::ControlFlow;
/// use corespun::{iobuf::{Got, Iobuf, WaiterId}, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let iobuf = runner.enter(|| Iobuf::builder().small(64, 4096).large(8, 8192).build())?;
/// iobuf.register_module("null")?;
/// let channel = runner.enter(|| iobuf.channel("null", 0, 0))?;
/// let all: Vec<_> = std::iter::from_fn(|| channel.try_get(8192).unwrap()).collect();
/// let Got::Waiting(waiter) = channel.get_with(8192, |_buffer| ())? else {
///     panic!("there are {} only", all.len());
/// };
/// let first: ControlFlow<WaiterId> = channel.for_each_waiter(ControlFlow::Break);
/// assert_eq!(first, ControlFlow::Break(waiter));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct WaiterId(Rc<Class>);

impl WaiterId {
    /// The class of buffer that it waits for.
    pub fn class(&self) -> Class {
        *self.0
    }
}

/// A request is itself only.
impl PartialEq for WaiterId {
    fn eq(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for WaiterId {}

impl fmt::Debug for WaiterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WaiterId")
            .field("class", &self.class())
            .finish_non_exhaustive()
    }
}

impl IobufChannel {
    pub(super) fn open(
        thread: IoChannel<ThreadState>,
        module: Arc<str>,
        sizes: [usize; 2],
    ) -> Result<Self, IobufError> {
        if thread.channel_count() >= MAX_CHANNELS {
            return Err(IobufError::TooManyChannels(MAX_CHANNELS));
        }
        let home = Home(thread.inner.next_channel.fetch_add(1, Ordering::Relaxed));
        // From here on dropping it undoes everything.
        let core = Rc::new(ChannelCore {
            module,
            home,
            thread,
            caches: Default::default(),
            sizes,
            stats: Default::default(),
        });
        for class in Class::ALL {
            let wanted = sizes[class as usize];
            let pool = core.thread.inner.pool(core.thread.node, class);
            let mut cache = core.caches[class as usize].borrow_mut();
            cache.extend(std::iter::from_fn(|| pool.take()).take(wanted));
            if cache.len() < wanted {
                return Err(IobufError::CacheNotFilled { class, wanted });
            }
        }
        core.thread.add_channel(home, Rc::downgrade(&core));
        Ok(IobufChannel { core })
    }

    /// A buffer of at least `len` bytes, if one is free.
    ///
    /// # Errors
    ///
    /// [`IobufError::TooLong`].
    pub fn try_get(&self, len: usize) -> Result<Option<IobufBuf>, IobufError> {
        Ok(self.core.take(self.core.class_of(len)?))
    }

    /// A buffer of at least `len` bytes if one is free; else `callback` is
    /// called with one, on this thread, as soon as it is its turn
    /// (`spdk_iobuf_get`): usually by the drop of a buffer here.
    ///
    /// What the callback asks for in turn is a new request, behind all that wait.
    /// A caller that needs several at once is not to ask one by one: see
    /// [`IobufChannel::get_many_with`].
    ///
    /// # Errors
    ///
    /// [`IobufError::TooLong`].
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{cell::Cell, rc::Rc};
    /// use corespun::{iobuf::{Got, Iobuf}, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let iobuf = runner.enter(|| Iobuf::builder().small(64, 4096).large(8, 8192).build())?;
    /// iobuf.register_module("null")?;
    /// let channel = runner.enter(|| iobuf.channel("null", 0, 0))?;
    /// let mut all: Vec<_> = std::iter::from_fn(|| channel.try_get(8192).unwrap()).collect();
    /// let got = Rc::new(Cell::new(0));
    /// let length = got.clone();
    /// let waits = channel.get_with(8192, move |buffer| length.set(buffer.len()))?;
    /// assert!(matches!(waits, Got::Waiting(_)));
    /// // The drop of a buffer serves the waiter.
    /// runner.enter(|| drop(all.pop()));
    /// assert_eq!(got.get(), 8192);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn get_with(
        &self,
        len: usize,
        callback: impl FnOnce(IobufBuf) + 'static,
    ) -> Result<Got, IobufError> {
        let class = self.core.class_of(len)?;
        if let Some(buffer) = self.core.take(class) {
            return Ok(Got::Buffer(buffer));
        }
        let done = Box::new(|mut buffers: Vec<IobufBuf>| {
            callback(buffers.pop().expect("one was asked for"));
        });
        let id = self.core.wait(class, 1, Vec::new(), done);
        Ok(Got::Waiting(id))
    }

    /// As [`IobufChannel::get_with`], for a request that needs several buffers of
    /// `len` bytes. It takes what is free, and once it has come to the head of the
    /// queue it stays there until it has the last: what `spdk_iobuf_get` gives an
    /// entry that asks again in its own callback.
    ///
    /// # Errors
    ///
    /// [`IobufError::TooLong`].
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{cell::Cell, rc::Rc};
    /// use corespun::{iobuf::{GotMany, Iobuf}, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let iobuf = runner.enter(|| Iobuf::builder().small(64, 4096).large(8, 8192).build())?;
    /// iobuf.register_module("null")?;
    /// let channel = runner.enter(|| iobuf.channel("null", 0, 0))?;
    /// let mut all: Vec<_> = std::iter::from_fn(|| channel.try_get(8192).unwrap()).collect();
    /// let served = Rc::new(Cell::new(0));
    /// let count = served.clone();
    /// let got = channel.get_many_with(8192, 2, move |pair| count.set(pair.len()))?;
    /// assert!(matches!(got, GotMany::Waiting(_)));
    /// runner.enter(|| drop(all.pop()));
    /// assert_eq!(served.get(), 0);
    /// runner.enter(|| drop(all.pop()));
    /// assert_eq!(served.get(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn get_many_with(
        &self,
        len: usize,
        count: usize,
        callback: impl FnOnce(Vec<IobufBuf>) + 'static,
    ) -> Result<GotMany, IobufError> {
        let class = self.core.class_of(len)?;
        let got = self.core.take_many(class, count);
        if got.len() == count {
            return Ok(GotMany::Buffers(got));
        }
        let id = self.core.wait(class, count, got, Box::new(callback));
        Ok(GotMany::Waiting(id))
    }

    /// A buffer of at least `len` bytes, waited for if need be. The future
    /// yields [`IobufError::TooLong`] if there is no such buffer.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up its place in the queue, or the buffer.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{iobuf::Iobuf, task, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let iobuf = runner.enter(|| Iobuf::builder().small(64, 4096).large(8, 8192).build())?;
    /// iobuf.register_module("null")?;
    /// let channel = runner.enter(|| iobuf.channel("null", 0, 0))?;
    /// let mut all: Vec<_> = std::iter::from_fn(|| channel.try_get(8192).unwrap()).collect();
    /// let waits = runner.enter(|| task::spawn_local(channel.get(8192)));
    /// runner.poll(0, 0);
    /// assert!(!waits.is_finished());
    /// runner.enter(|| drop(all.pop()));
    /// runner.poll(0, 0);
    /// assert_eq!(futures::executor::block_on(waits)??.len(), 8192);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn get(&self, len: usize) -> GetBuf {
        GetBuf(self.get_many(len, 1))
    }

    /// `count` buffers of at least `len` bytes each. A waiter for several keeps
    /// its place in the queue until it has them all, and those that have come;
    /// two tasks that each need two do not starve each other, as they might by
    /// asking one by one.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up its place in the queue, and the buffers.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{iobuf::Iobuf, task, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let iobuf = runner.enter(|| Iobuf::builder().small(64, 4096).large(8, 8192).build())?;
    /// iobuf.register_module("null")?;
    /// let channel = runner.enter(|| iobuf.channel("null", 0, 0))?;
    /// // A stripe: all of it, or none.
    /// let stripe = runner.enter(|| task::spawn_local(channel.get_many(8192, 5)));
    /// runner.poll(0, 0);
    /// assert_eq!(futures::executor::block_on(stripe)??.len(), 5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn get_many(&self, len: usize, count: usize) -> GetMany {
        GetMany::new(self.core.clone(), self.core.class_of(len), count)
    }

    /// Takes back a request that waits (`spdk_iobuf_entry_abort`): its callback
    /// is dropped, uncalled. Says whether it still waited.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{iobuf::{Got, Iobuf}, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let iobuf = runner.enter(|| Iobuf::builder().small(64, 4096).large(8, 8192).build())?;
    /// iobuf.register_module("null")?;
    /// let channel = runner.enter(|| iobuf.channel("null", 0, 0))?;
    /// let mut all: Vec<_> = std::iter::from_fn(|| channel.try_get(8192).unwrap()).collect();
    /// let Got::Waiting(waiter) = channel.get_with(8192, |_buffer| panic!("was aborted"))? else {
    ///     panic!("there are {} only", all.len());
    /// };
    /// assert!(channel.abort(&waiter));
    /// assert!(!channel.abort(&waiter));
    /// runner.enter(|| drop(all.pop()));
    /// assert_eq!(iobuf.free_counts(), [64, 1]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn abort(&self, waiter: &WaiterId) -> bool {
        self.core.abort(waiter).is_some()
    }

    /// Calls `f` for each waiting request of this channel, those for small
    /// buffers first, until it breaks (`spdk_iobuf_for_each_entry`).
    pub fn for_each_waiter<B>(&self, f: impl FnMut(WaiterId) -> ControlFlow<B>) -> ControlFlow<B> {
        let waiters = self.core.thread.waiters_of(self.core.home);
        waiters.into_iter().try_for_each(f)
    }

    /// The module.
    pub fn module(&self) -> &str {
        &self.core.module
    }
}

impl fmt::Debug for IobufChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IobufChannel")
            .field("module", &self.module())
            .field("cache_sizes", &self.core.sizes)
            .finish_non_exhaustive()
    }
}
