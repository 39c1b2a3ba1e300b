//! The pools, and the object that holds them: what all threads share.
//!
//! A pool is a lock-free queue of free buffers. Threads that have a waiter
//! are listed in order; a thread that puts a buffer back into a pool looks at that
//! list after a fence, and one that lists itself looks at the pool after a fence,
//! so that one of the two sees the other and no buffer lies there while a waiter is
//! listed.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};

use crossbeam_queue::ArrayQueue;

use super::arena::Arena;
use super::buf::{Home, IobufBuf};
use super::builder::{IobufBuilder, no_memory};
use super::channel::IobufChannel;
use super::queue::{self, ThreadState};
use super::{Class, IobufError};
use crate::channel::{IoDevice, Unregister, UnregisterCancelled, UnregisterError};
use crate::thread::WalkStartError;
use crate::thread::message::Message;
use crate::thread::shared::Shared;

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No user code runs under these locks, so a poisoned one is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) struct Pool {
    pub(super) arena: Arena,
    free: ArrayQueue<u32>,
    /// The length of `list`, looked at by every put.
    waiting: AtomicUsize,
    /// Threads that have a waiter, the one that waits longest first.
    list: Mutex<VecDeque<Arc<Shared>>>,
}

impl Pool {
    pub(super) fn new(count: usize, size: usize, node: Option<usize>) -> Result<Self, IobufError> {
        // An index is 32 bits.
        let indices = u32::try_from(count).map_err(|_| no_memory(count.saturating_mul(size)))?;
        let arena = Arena::new(count, size, node)?;
        let free = ArrayQueue::new(count);
        for index in 0..indices {
            let _ = free.push(index);
        }
        Ok(Pool {
            arena,
            free,
            waiting: AtomicUsize::new(0),
            list: Mutex::default(),
        })
    }

    pub(super) fn take(&self) -> Option<u32> {
        self.free.pop()
    }

    /// Gives a buffer back; [`Pools::wake_waiting`] must follow.
    pub(super) fn give(&self, index: u32) {
        // There is room for every buffer that exists.
        let _ = self.free.push(index);
    }

    /// Whether a thread is listed: a hint without a fence.
    #[inline]
    pub(super) fn has_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }
}

pub(super) struct Pools {
    /// By node, then class.
    pub(super) pools: Vec<[Pool; 2]>,
    pub(super) sizes: [usize; 2],
    pub(super) modules: Mutex<Vec<Arc<str>>>,
    pub(super) device: OnceLock<IoDevice<ThreadState>>,
    /// Of the channels; the first is 1.
    pub(super) next_channel: AtomicU64,
}

impl Pools {
    #[inline]
    pub(super) fn pool(&self, node: u16, class: Class) -> &Pool {
        &self.pools[usize::from(node)][class as usize]
    }

    /// The pools' index for the core that the caller runs on.
    pub(super) fn node_here(&self) -> u16 {
        match self.pools.len() {
            1 => 0,
            pools => pools_near(current_node(), pools),
        }
    }

    /// Lists a thread that has a waiter.
    pub(super) fn list_waiting(self: &Arc<Self>, node: u16, class: Class, thread: &Arc<Shared>) {
        let pool = self.pool(node, class);
        lock(&pool.list).push_back(thread.clone());
        pool.waiting.fetch_add(1, Ordering::Relaxed);
        // Pairs with the fence in `wake_waiting`.
        fence(Ordering::SeqCst);
        if !pool.free.is_empty() {
            self.wake_listed(node, class);
        }
    }

    /// Takes a thread off the list that has no waiter any more; says whether
    /// it was there. If not, a buffer is on its way to it.
    pub(super) fn unlist_waiting(&self, node: u16, class: Class, thread: &Arc<Shared>) -> bool {
        let pool = self.pool(node, class);
        let mut list = lock(&pool.list);
        match list.iter().position(|listed| Arc::ptr_eq(listed, thread)) {
            Some(index) => {
                list.remove(index);
                pool.waiting.fetch_sub(1, Ordering::Relaxed);
                true
            }
            None => false,
        }
    }

    /// After a buffer was given back to a pool: sends it to the thread that
    /// waits longest.
    pub(super) fn wake_waiting(self: &Arc<Self>, node: u16, class: Class) {
        fence(Ordering::SeqCst);
        if self.pool(node, class).has_waiting() {
            self.wake_listed(node, class);
        }
    }

    /// Brings free buffers and listed threads together. A buffer travels in the
    /// message: one that was only announced could be taken by the next get of
    /// the thread that put it back.
    #[cold]
    fn wake_listed(self: &Arc<Self>, node: u16, class: Class) {
        let pool = self.pool(node, class);
        loop {
            let mut list = lock(&pool.list);
            if list.is_empty() {
                return;
            }
            let Some(index) = pool.take() else {
                return;
            };
            let Some(thread) = list.pop_front() else {
                return pool.give(index);
            };
            drop(list);
            pool.waiting.fetch_sub(1, Ordering::Relaxed);
            let buffer = IobufBuf::new(self.clone(), index, node, class, Home::NONE);
            // A thread that has exited waits no more; its message, refused,
            // would put the buffer back while this loop looks for it.
            if let Err(buffer) = thread.deliver(buffer, |buffer| {
                Message::new(move || queue::arrived(buffer))
            }) {
                pool.give(buffer.into_index());
            }
        }
    }

    pub(super) fn free_counts(&self) -> [usize; 2] {
        Class::ALL.map(|class| {
            let pools = self.pools.iter();
            pools.map(|pools| pools[class as usize].free.len()).sum()
        })
    }
}

/// Pools of I/O buffers (`spdk_iobuf`): a handle, good on every thread.
///
/// Made on a SpdkThread, and used on threads of its library instance. They last
/// until [`Iobuf::finish`] and the end of the last buffer.
///
/// # Examples
///
/// One handle serves all threads; each opens its own channel:
///
/// ```
/// use corespun::{iobuf::Iobuf, thread::ThreadLib};
///
/// let library = ThreadLib::new();
/// let mut runners = [library.thread().build()?.attach(), library.thread().build()?.attach()];
/// let iobuf = runners[0].enter(|| Iobuf::builder().small(64, 4096).large(8, 8192).build())?;
/// iobuf.register_module("nbd")?;
/// for runner in &mut runners {
///     let channel = runner.enter(|| iobuf.channel("nbd", 0, 0))?;
///     assert!(channel.try_get(4096)?.is_some());
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Iobuf {
    pub(super) inner: Arc<Pools>,
    pub(super) counts: [usize; 2],
}

/// The memory node of the core that the caller runs on.
fn current_node() -> usize {
    let mut node: libc::c_uint = 0;
    // SAFETY: the call writes one integer, if it succeeds, and takes null for the others.
    unsafe {
        let no_core: *mut libc::c_uint = std::ptr::null_mut();
        libc::syscall(libc::SYS_getcpu, no_core, &raw mut node, no_core)
    };
    node as usize
}

/// The index, of so many, of the pools for a node.
pub(super) fn pools_near(node: usize, pools: usize) -> u16 {
    if node < pools { node as u16 } else { 0 }
}

impl Iobuf {
    /// Settings of pools to be made.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{iobuf::Iobuf, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let iobuf = runner.enter(|| Iobuf::builder().build())?;
    /// assert_eq!(iobuf.free_counts(), [8192, 1024]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn builder() -> IobufBuilder {
        IobufBuilder::new()
    }

    /// Registers a module, whose channels and statistics go by this name
    /// (`spdk_iobuf_register_module`). Any OS thread.
    ///
    /// # Errors
    ///
    /// [`IobufError::ModuleExists`].
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{iobuf::IobufError, iobuf::Iobuf, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let iobuf = runner.enter(|| Iobuf::builder().build())?;
    /// iobuf.register_module("nbd")?;
    /// assert!(matches!(iobuf.register_module("nbd"), Err(IobufError::ModuleExists(_))));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn register_module(&self, name: &str) -> Result<(), IobufError> {
        let mut modules = lock(&self.inner.modules);
        if modules.iter().any(|known| **known == *name) {
            return Err(IobufError::ModuleExists(name.to_owned()));
        }
        modules.push(name.into());
        Ok(())
    }

    /// Forgets a module; channels that it has stay good.
    ///
    /// # Errors
    ///
    /// [`IobufError::NoModule`].
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{iobuf::{Iobuf, IobufError}, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let iobuf = runner.enter(|| Iobuf::builder().build())?;
    /// iobuf.register_module("nbd")?;
    /// iobuf.unregister_module("nbd")?;
    /// let late = runner.enter(|| iobuf.channel("nbd", 0, 0));
    /// assert!(matches!(late, Err(IobufError::NoModule(_))));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn unregister_module(&self, name: &str) -> Result<(), IobufError> {
        let mut modules = lock(&self.inner.modules);
        match modules.iter().position(|known| **known == *name) {
            Some(index) => {
                modules.remove(index);
                Ok(())
            }
            None => Err(IobufError::NoModule(name.to_owned())),
        }
    }

    /// Opens a channel of `module` on the current SpdkThread, and fills its
    /// caches with so many small and large buffers (`spdk_iobuf_channel_init`).
    ///
    /// # Errors
    ///
    /// [`IobufError`] when the module is unknown, when the thread has 64
    /// channels, when a cache cannot be filled, and when there is no thread for
    /// it. Nothing is kept then.
    ///
    /// # Examples
    ///
    /// Its caches are filled when it is opened:
    ///
    /// ```
    /// use corespun::{iobuf::Iobuf, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let iobuf = runner.enter(|| Iobuf::builder().small(64, 4096).large(8, 8192).build())?;
    /// iobuf.register_module("nbd")?;
    /// let channel = runner.enter(|| iobuf.channel("nbd", 16, 2))?;
    /// assert_eq!(iobuf.free_counts(), [48, 6]);
    /// runner.enter(|| drop(channel));
    /// assert_eq!(iobuf.free_counts(), [64, 8]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn channel(
        &self,
        module: &str,
        small_cache: usize,
        large_cache: usize,
    ) -> Result<IobufChannel, IobufError> {
        let name = {
            let modules = lock(&self.inner.modules);
            let known = modules.iter().find(|known| ***known == *module);
            known.cloned()
        };
        let module = name.ok_or_else(|| IobufError::NoModule(module.to_owned()))?;
        let device = self.inner.device.get().expect("set when built");
        IobufChannel::open(device.channel()?, module, [small_cache, large_cache])
    }

    /// How many small and large buffers are in the pools now, those in caches
    /// not counted. Stale at once.
    pub fn free_counts(&self) -> [usize; 2] {
        self.inner.free_counts()
    }

    /// Gathers the statistics of every module, over all threads
    /// (`spdk_iobuf_get_stats`), and hands them to `done` on the current thread.
    ///
    /// # Errors
    ///
    /// [`WalkStartError`] off a SpdkThread.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{cell::RefCell, rc::Rc};
    /// use corespun::{iobuf::Iobuf, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let iobuf = runner.enter(|| Iobuf::builder().small(64, 4096).large(8, 8192).build())?;
    /// iobuf.register_module("null")?;
    /// let channel = runner.enter(|| iobuf.channel("null", 0, 0))?;
    /// let small = channel.try_get(512)?;
    /// let gathered = Rc::new(RefCell::new(Vec::new()));
    /// let result = gathered.clone();
    /// runner.enter(|| iobuf.stats(move |stats| *result.borrow_mut() = stats))?;
    /// while runner.poll(0, 0).is_busy() {}
    /// let stats = &gathered.borrow()[0];
    /// assert_eq!((&stats.module[..], stats.small.main), ("null", 1));
    /// # drop(small);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn stats(
        &self,
        done: impl FnOnce(Vec<ModuleStats>) + 'static,
    ) -> Result<(), WalkStartError> {
        let modules = lock(&self.inner.modules).clone();
        let empty = |name: Arc<str>| (name, [PoolStats::default(); 2]);
        let totals: BTreeMap<_, _> = modules.iter().cloned().map(empty).collect();
        let totals = Arc::new(Mutex::new(totals));
        let gathered = totals.clone();
        let device = self.inner.device.get().expect("set when built");
        device.for_each_channel(
            move |thread: &ThreadState| {
                let mut totals = lock(&gathered);
                thread.for_each_channel(|channel| {
                    if let Some(total) = totals.get_mut(&channel.module) {
                        channel.add_stats(total);
                    }
                });
                Ok::<_, std::convert::Infallible>(())
            },
            move |_| {
                let totals = lock(&totals);
                let of_module = |module: &Arc<str>| ModuleStats {
                    module: module.to_string(),
                    small: totals[module][0],
                    large: totals[module][1],
                };
                done(modules.iter().map(of_module).collect());
            },
        )
    }

    /// Ends the pools (`spdk_iobuf_finish`): no new channel is opened, and when
    /// the last one is closed the future completes. Buffers still out then are
    /// logged; they stay good until dropped.
    ///
    /// # Errors
    ///
    /// [`UnregisterError`] off a SpdkThread, and when called twice.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future only stops the waiting.
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
    /// let finished = runner.enter(|| iobuf.finish().map(task::spawn_local))?;
    /// while runner.poll(0, 0).is_busy() {}
    /// // A channel is open.
    /// assert!(!finished.is_finished());
    /// runner.enter(|| drop(channel));
    /// while runner.poll(0, 0).is_busy() {}
    /// assert!(finished.is_finished());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn finish(&self) -> Result<Finish, UnregisterError> {
        let device = self.inner.device.get().expect("set when built");
        Ok(Finish {
            gone: device.unregister()?,
            iobuf: RefCell::new(Some(self.clone())),
        })
    }
}

impl fmt::Debug for Iobuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iobuf")
            .field("counts", &self.counts)
            .field("free", &self.free_counts())
            .finish_non_exhaustive()
    }
}

/// Completes when the last channel of the pools is closed; made by
/// [`Iobuf::finish`].
///
/// # Examples
///
/// ```
/// use corespun::{iobuf::Iobuf, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let iobuf = runner.enter(|| Iobuf::builder().build())?;
/// let finish = runner.enter(|| iobuf.finish())?;
/// while runner.poll(0, 0).is_busy() {}
/// assert_eq!(futures::executor::block_on(finish), Ok(()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited; the pools end without"]
pub struct Finish {
    gone: Unregister,
    iobuf: RefCell<Option<Iobuf>>,
}

impl Future for Finish {
    type Output = Result<(), UnregisterCancelled>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let result = std::task::ready!(Pin::new(&mut self.gone).poll(cx));
        if let Some(iobuf) = self.iobuf.take() {
            for (class, (free, count)) in Class::ALL
                .into_iter()
                .zip(iobuf.free_counts().into_iter().zip(iobuf.counts))
            {
                if free != count {
                    tracing::error!(?class, free, count, "iobuf buffers are still out");
                }
            }
        }
        Poll::Ready(result)
    }
}

/// How one class of buffers served a module.
///
/// # Examples
///
/// Whether a cache is large enough, and a pool:
///
/// ```
/// use corespun::iobuf::PoolStats;
///
/// let stats = PoolStats { cache: 900, main: 100, retry: 0, cache_size: 32 };
/// let hits = stats.cache * 100 / (stats.cache + stats.main);
/// assert!(hits == 90 && stats.retry == 0);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Gets that the cache served.
    pub cache: u64,
    /// Gets that the pool served.
    pub main: u64,
    /// Gets that had to wait: a growing number asks for a larger pool.
    pub retry: u64,
    /// The sizes of the caches, summed over the threads.
    pub cache_size: usize,
}

/// The statistics of one module, summed over the threads.
///
/// # Examples
///
/// ```
/// use std::{cell::RefCell, rc::Rc};
/// use corespun::{iobuf::{Iobuf, PoolStats}, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let iobuf = runner.enter(|| Iobuf::builder().build())?;
/// iobuf.register_module("nbd")?;
/// let channel = runner.enter(|| iobuf.channel("nbd", 32, 0))?;
/// drop(runner.enter(|| channel.try_get(4096))?);
/// let gathered = Rc::new(RefCell::new(Vec::new()));
/// let result = gathered.clone();
/// runner.enter(|| iobuf.stats(move |stats| *result.borrow_mut() = stats))?;
/// while runner.poll(0, 0).is_busy() {}
/// let small = PoolStats { cache: 1, main: 0, retry: 0, cache_size: 32 };
/// assert_eq!(gathered.borrow()[0].small, small);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModuleStats {
    /// Its name.
    pub module: String,
    /// The small buffers.
    pub small: PoolStats,
    /// The large buffers.
    pub large: PoolStats,
}
