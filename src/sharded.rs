//! One value per SpdkThread, used where it lives (seastar's `sharded`).
//!
//! Each value is owned by a task of its thread, so that what holds for tasks
//! holds for it: it need not be `Send`, keeps its thread on its OS thread, and is
//! dropped there at the latest when the thread exits.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use futures::channel::oneshot;
use futures::future::join_all;

use crate::sync::budget;
use crate::task::{CallError, JoinHandle};
use crate::thread::SpdkThread;

/// Where a thread's value is found by what runs on the thread.
struct ShardSlot<T> {
    thread: SpdkThread,
    value: RefCell<Option<Rc<T>>>,
}

// SAFETY: `value` is only touched while `thread` is the current one, which `with`
// checks and `Filled` has by being part of a task of it. It is empty whenever no
// `Filled` is there, so a drop of the slot elsewhere drops no `Rc`.
unsafe impl<T> Sync for ShardSlot<T> {}
// SAFETY: as above.
unsafe impl<T> Send for ShardSlot<T> {}

impl<T> ShardSlot<T> {
    /// The value, on its own thread, while it is there.
    fn get(&self) -> Option<Rc<T>> {
        if !self.thread.is_current() {
            return None;
        }
        self.value.borrow().clone()
    }
}

/// Empties the slot again. Part of the task that owns the value.
struct Filled<T>(Arc<ShardSlot<T>>);

impl<T> Filled<T> {
    fn new(slot: Arc<ShardSlot<T>>, value: T) -> Self {
        *slot.value.borrow_mut() = Some(Rc::new(value));
        Filled(slot)
    }
}

impl<T> Drop for Filled<T> {
    fn drop(&mut self) {
        let value = self.0.value.borrow_mut().take();
        drop(value);
    }
}

struct Shard<T> {
    slot: Arc<ShardSlot<T>>,
    /// Dropped to end the task that owns the value.
    stop: Mutex<Option<(oneshot::Sender<()>, JoinHandle<()>)>>,
}

/// One `T` on each of several SpdkThreads.
///
/// Clones are the same set; when the last is dropped, the values are, each on its
/// own thread.
///
/// # Examples
///
/// ```
/// use std::cell::Cell;
/// use corespun::{sharded::Sharded, task, thread::ThreadLib};
///
/// let library = ThreadLib::new();
/// let mut runners = [library.thread().build()?.attach(), library.thread().build()?.attach()];
/// let threads: Vec<_> = runners.iter().map(|runner| runner.handle()).collect();
/// let total = runners[0].enter(|| task::spawn_local(async move {
///     let counters = Sharded::start(&threads, async |_| Cell::new(0)).await?;
///     counters.invoke_on(0, |counter| counter.set(3)).await?;
///     counters.invoke_on_all(|counter| counter.set(counter.get() + 1)).await?;
///     counters.map_reduce(Cell::get, 0, |sum, count| sum + count).await
/// }));
/// while !total.is_finished() {
///     runners.iter_mut().for_each(|runner| _ = runner.poll(0, 0));
/// }
/// assert_eq!(futures::executor::block_on(total).unwrap().unwrap(), 5);
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
pub struct Sharded<T> {
    shards: Arc<[Shard<T>]>,
}

impl<T> Clone for Sharded<T> {
    fn clone(&self) -> Self {
        Sharded {
            shards: self.shards.clone(),
        }
    }
}

impl<T: 'static> Sharded<T> {
    /// Makes a value on each of `threads`; `make` is given its index.
    ///
    /// # Errors
    ///
    /// [`ShardError`] when one of them panicked, or its thread has exited; the
    /// others are dropped.
    ///
    /// # Cancel safety
    ///
    /// Cancelled, what was made is dropped.
    ///
    /// # Examples
    ///
    /// A value may be made by async code, and need not be `Send`:
    ///
    /// ```
    /// use std::{cell::RefCell, rc::Rc};
    /// use corespun::{sharded::Sharded, task, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let threads = [runner.handle()];
    /// let caches = runner.enter(|| task::spawn_local(async move {
    ///     Sharded::start(&threads, async |index| {
    ///         task::yield_now().await;
    ///         Rc::new(RefCell::new(vec![index]))
    ///     })
    ///     .await
    /// }));
    /// while !caches.is_finished() {
    ///     runner.poll(0, 0);
    /// }
    /// let caches = futures::executor::block_on(caches).unwrap().unwrap();
    /// assert_eq!(*runner.enter(|| caches.local()).unwrap().borrow(), [0]);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub async fn start<'a, F>(
        threads: impl IntoIterator<Item = &'a SpdkThread>,
        make: F,
    ) -> Result<Self, ShardError>
    where
        F: AsyncFnOnce(usize) -> T + Clone + Send + 'static,
    {
        budget::take().await;
        let started = threads.into_iter().enumerate().map(|(index, thread)| {
            let (ready, is_ready) = oneshot::channel();
            let (stop, stopped) = oneshot::channel::<()>();
            let slot = Arc::new(ShardSlot {
                thread: thread.clone(),
                value: RefCell::new(None),
            });
            let (fill, make) = (slot.clone(), make.clone());
            let owner = thread.spawn_with(async move || {
                let _filled = Filled::new(fill, make(index).await);
                let _ = ready.send(());
                // Sent to, or dropped: both are the end.
                let _ = stopped.await;
            });
            let shard = Shard {
                slot,
                stop: Mutex::new(Some((stop, owner))),
            };
            async move {
                if is_ready.await.is_ok() {
                    return Ok(shard);
                }
                Err(shard.failed().await)
            }
        });
        let started: Vec<_> = started.collect();
        let shards = join_all(started).await;
        let shards = shards.into_iter().collect::<Result<_, _>>()?;
        Ok(Sharded { shards })
    }

    /// How many shards there are.
    pub fn len(&self) -> usize {
        self.shards.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.shards.is_empty()
    }

    /// The thread of a shard.
    ///
    /// # Panics
    ///
    /// When there is no such shard.
    #[track_caller]
    pub fn thread(&self, shard: usize) -> &SpdkThread {
        &self.shards[shard].slot.thread
    }

    /// The current thread's value.
    ///
    /// # Examples
    ///
    /// The way of code that runs on the threads already; it sends no message:
    ///
    /// ```
    /// use std::cell::Cell;
    /// use corespun::{sharded::Sharded, task, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let threads = [runner.handle()];
    /// let set = runner.enter(|| task::spawn_local(async move {
    ///     let hits = Sharded::start(&threads, async |_| Cell::new(0)).await.unwrap();
    ///     let here = hits.local().unwrap();
    ///     here.set(here.get() + 1);
    ///     hits
    /// }));
    /// while !set.is_finished() {
    ///     runner.poll(0, 0);
    /// }
    /// let hits = futures::executor::block_on(set).unwrap();
    /// assert_eq!(runner.enter(|| hits.local().unwrap().get()), 1);
    /// // No shard is here, outside of the threads.
    /// assert!(hits.local().is_none());
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn local(&self) -> Option<Rc<T>> {
        self.shards.iter().find_map(|shard| shard.slot.get())
    }

    /// Runs `f` with a shard's value, on its thread.
    ///
    /// # Errors
    ///
    /// [`ShardError`] when `f` panicked, or the value is gone.
    ///
    /// # Panics
    ///
    /// When there is no such shard.
    ///
    /// # Cancel safety
    ///
    /// As [`SpdkThread::call`].
    ///
    /// # Examples
    ///
    /// A key's home is one shard, so that its accesses need no lock:
    ///
    /// ```
    /// use std::{cell::RefCell, collections::HashMap};
    /// use corespun::{sharded::Sharded, task, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let threads = [runner.handle()];
    /// let found = runner.enter(|| task::spawn_local(async move {
    ///     let table = Sharded::start(&threads, async |_| RefCell::new(HashMap::new())).await?;
    ///     let (key, value) = (7, "seven");
    ///     let home = key % table.len();
    ///     table.invoke_on(home, move |part| part.borrow_mut().insert(key, value)).await?;
    ///     table.invoke_on(home, move |part| part.borrow().get(&key).copied()).await
    /// }));
    /// while !found.is_finished() {
    ///     runner.poll(0, 0);
    /// }
    /// assert_eq!(futures::executor::block_on(found).unwrap().unwrap(), Some("seven"));
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub async fn invoke_on<R: Send + 'static>(
        &self,
        shard: usize,
        f: impl FnOnce(&T) -> R + Send + 'static,
    ) -> Result<R, ShardError> {
        let slot = self.shards[shard].slot.clone();
        let called = self.shards[shard].slot.thread.call({
            let slot = slot.clone();
            move || slot.get().map(|value| f(&value))
        });
        called
            .await?
            .ok_or_else(|| ShardError::stopped(&slot.thread))
    }

    /// Runs an async `f` with a shard's value, on its thread.
    ///
    /// # Errors
    ///
    /// As [`Sharded::invoke_on`].
    ///
    /// # Panics
    ///
    /// When there is no such shard.
    ///
    /// # Cancel safety
    ///
    /// As [`SpdkThread::call_async`].
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{local::Semaphore, sharded::Sharded, task, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let threads = [runner.handle()];
    /// let left = runner.enter(|| task::spawn_local(async move {
    ///     let slots = Sharded::start(&threads, async |_| Semaphore::new(2)).await?;
    ///     slots.invoke_on_async(0, async |slots| {
    ///         // Waits over there.
    ///         let _slot = slots.acquire(1).await.unwrap();
    ///         slots.available_permits()
    ///     })
    ///     .await
    /// }));
    /// while !left.is_finished() {
    ///     runner.poll(0, 0);
    /// }
    /// assert_eq!(futures::executor::block_on(left).unwrap().unwrap(), 1);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub async fn invoke_on_async<R, F>(&self, shard: usize, f: F) -> Result<R, ShardError>
    where
        R: Send + 'static,
        F: AsyncFnOnce(Rc<T>) -> R + Send + 'static,
    {
        let slot = self.shards[shard].slot.clone();
        let called = slot.thread.call_async({
            let slot = slot.clone();
            async move || match slot.get() {
                Some(value) => Some(f(value).await),
                None => None,
            }
        });
        called
            .await?
            .ok_or_else(|| ShardError::stopped(&slot.thread))
    }

    /// Runs `f` with every value, each on its thread, side by side.
    ///
    /// # Errors
    ///
    /// The first [`ShardError`], in the order of the shards; all are waited for.
    ///
    /// # Cancel safety
    ///
    /// As [`SpdkThread::call`].
    ///
    /// # Examples
    ///
    /// ```
    /// use std::cell::Cell;
    /// use corespun::{sharded::Sharded, task, thread::ThreadLib};
    ///
    /// let library = ThreadLib::new();
    /// let mut runners = [library.thread().build()?.attach(), library.thread().build()?.attach()];
    /// let threads: Vec<_> = runners.iter().map(|runner| runner.handle()).collect();
    /// let set = runners[0].enter(|| task::spawn_local(async move {
    ///     let levels = Sharded::start(&threads, async |_| Cell::new("info")).await.unwrap();
    ///     levels.invoke_on_all(|level| level.set("debug")).await.unwrap();
    ///     levels
    /// }));
    /// while !set.is_finished() {
    ///     runners.iter_mut().for_each(|runner| _ = runner.poll(0, 0));
    /// }
    /// let levels = futures::executor::block_on(set).unwrap();
    /// for runner in &mut runners {
    ///     assert_eq!(runner.enter(|| levels.local().unwrap().get()), "debug");
    /// }
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub async fn invoke_on_all(
        &self,
        f: impl FnOnce(&T) + Clone + Send + 'static,
    ) -> Result<(), ShardError> {
        self.map_reduce(f, (), |(), ()| ()).await
    }

    /// Runs `map` with every value, each on its thread, side by side, and combines
    /// what they return, in the order of the shards, here.
    ///
    /// # Errors
    ///
    /// As [`Sharded::invoke_on_all`].
    ///
    /// # Cancel safety
    ///
    /// As [`SpdkThread::call`].
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{sharded::Sharded, task, thread::ThreadLib};
    ///
    /// let library = ThreadLib::new();
    /// let mut runners = [library.thread().build()?.attach(), library.thread().build()?.attach()];
    /// let threads: Vec<_> = runners.iter().map(|runner| runner.handle()).collect();
    /// let longest = runners[0].enter(|| task::spawn_local(async move {
    ///     let queues = Sharded::start(&threads, async |index| vec![0; 3 + index]).await?;
    ///     queues.map_reduce(Vec::len, 0, usize::max).await
    /// }));
    /// while !longest.is_finished() {
    ///     runners.iter_mut().for_each(|runner| _ = runner.poll(0, 0));
    /// }
    /// assert_eq!(futures::executor::block_on(longest).unwrap().unwrap(), 4);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub async fn map_reduce<M, R, A>(
        &self,
        map: M,
        initial: A,
        reduce: impl FnMut(A, R) -> A,
    ) -> Result<A, ShardError>
    where
        M: FnOnce(&T) -> R + Clone + Send + 'static,
        R: Send + 'static,
    {
        budget::take().await;
        let all = (0..self.len()).map(|shard| self.invoke_on(shard, map.clone()));
        let results = join_all(all).await;
        let results: Vec<R> = results.into_iter().collect::<Result<_, _>>()?;
        Ok(results.into_iter().fold(initial, reduce))
    }

    /// Drops every value, each on its thread once nothing there uses it, and waits
    /// until the shards are closed. Later invocations are refused.
    ///
    /// # Cancel safety
    ///
    /// Cancelled, those that were not told yet go on.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{sharded::{ShardError, Sharded}, task, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let threads = [runner.handle()];
    /// let late = runner.enter(|| task::spawn_local(async move {
    ///     let set = Sharded::start(&threads, async |_| 7).await?;
    ///     set.stop().await;
    ///     set.invoke_on(0, |value| *value).await
    /// }));
    /// while !late.is_finished() {
    ///     runner.poll(0, 0);
    /// }
    /// let late = futures::executor::block_on(late).unwrap();
    /// assert!(matches!(late, Err(ShardError::Stopped { .. })));
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub async fn stop(&self) {
        budget::take().await;
        let owners = self.shards.iter().filter_map(Shard::tell_to_stop);
        let owners: Vec<_> = owners.collect();
        join_all(owners).await;
    }
}

impl<T> Shard<T> {
    /// Ends the task that owns the value; the task, if that is not done yet.
    fn tell_to_stop(&self) -> Option<JoinHandle<()>> {
        // Only this and `failed` lock it, and run nothing inside.
        let mut stop = self.stop.lock().unwrap_or_else(PoisonError::into_inner);
        stop.take().map(|(_stop, owner)| owner)
    }

    /// Why there is no value.
    async fn failed(self) -> ShardError {
        let thread = self.slot.thread.clone();
        let Some(owner) = self.tell_to_stop() else {
            return ShardError::stopped(&thread);
        };
        match owner.await.map_err(|error| error.try_into_panic()) {
            Err(Ok(payload)) => CallError::panicked(thread.name(), payload).into(),
            Err(Err(_)) => CallError::exited(thread.name()).into(),
            Ok(()) => ShardError::stopped(&thread),
        }
    }
}

impl<T> fmt::Debug for Sharded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sharded")
            .field("shards", &self.shards.len())
            .finish()
    }
}

/// Why a shard could not be used.
///
/// # Examples
///
/// Tells a closure that panicked from a set that was stopped:
///
/// ```
/// use corespun::{sharded::{ShardError, Sharded}, task, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let threads = [runner.handle()];
/// let failed = runner.enter(|| task::spawn_local(async move {
///     let set = Sharded::start(&threads, async |_| 0).await?;
///     set.invoke_on(0, |divisor| 1 / divisor).await
/// }));
/// while !failed.is_finished() {
///     runner.poll(0, 0);
/// }
/// match futures::executor::block_on(failed).unwrap() {
///     Err(ShardError::Call(error)) => assert!(error.is_panic()),
///     other => panic!("{other:?}"),
/// }
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShardError {
    /// The call to its thread failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The set was stopped, or the thread is exiting: the value is gone.
    #[error("the shard on thread {thread:?} was stopped")]
    Stopped {
        /// The thread's name.
        thread: String,
    },
}

impl ShardError {
    fn stopped(thread: &SpdkThread) -> Self {
        ShardError::Stopped {
            thread: thread.name().to_owned(),
        }
    }
}
