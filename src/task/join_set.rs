//! Tasks joined as they end, and aborted together.

use std::fmt;
use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};

use super::{AbortHandle, JoinError, JoinHandle, TaskBuilder, unconstrained};
use crate::sync::budget::poll_budget;
use crate::thread::SpdkThread;

/// A set of tasks, on any threads, that are joined in the order they end.
/// Dropping it aborts those that are left.
///
/// # Examples
///
/// ```
/// use corespun::{task::{self, JoinSet}, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let sum = runner.enter(|| task::spawn_local(async {
///     let mut set = JoinSet::new();
///     for number in 1..=3 {
///         set.spawn_local(async move { number });
///     }
///     let mut sum = 0;
///     while let Some(number) = set.join_next().await {
///         sum += number.unwrap();
///     }
///     sum
/// }));
/// while !sum.is_finished() {
///     runner.poll(0, 0);
/// }
/// assert_eq!(futures::executor::block_on(sum).unwrap(), 6);
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
pub struct JoinSet<T> {
    tasks: FuturesUnordered<JoinHandle<T>>,
}

impl<T> JoinSet<T> {
    /// An empty set.
    pub fn new() -> Self {
        JoinSet {
            tasks: FuturesUnordered::new(),
        }
    }

    /// How many tasks were not joined yet.
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Whether every task was joined.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Adds a task that was spawned before.
    pub fn insert(&mut self, task: JoinHandle<T>) -> AbortHandle {
        let abort = task.abort_handle();
        self.tasks.push(task);
        abort
    }

    /// Adds a task made by [`spawn_local`](super::spawn_local).
    ///
    /// # Panics
    ///
    /// When no SpdkThread is current.
    #[track_caller]
    pub fn spawn_local<F>(&mut self, future: F) -> AbortHandle
    where
        F: Future<Output = T> + 'static,
        T: 'static,
    {
        self.insert(TaskBuilder::new().spawn_local(future))
    }

    /// Adds a task made by [`spawn`](super::spawn).
    ///
    /// # Panics
    ///
    /// When no SpdkThread is current.
    #[track_caller]
    pub fn spawn<F>(&mut self, future: F) -> AbortHandle
    where
        F: Future<Output = T> + Send + 'static,
        T: Send + 'static,
    {
        self.insert(TaskBuilder::new().spawn(future))
    }

    /// Adds a task made by [`SpdkThread::spawn`].
    #[track_caller]
    pub fn spawn_on<F>(&mut self, thread: &SpdkThread, future: F) -> AbortHandle
    where
        F: Future<Output = T> + Send + 'static,
        T: Send + 'static,
    {
        self.insert(TaskBuilder::new().spawn_on(thread, future))
    }

    /// Waits for the next task to end; `None` when the set is empty.
    ///
    /// # Cancel safety
    ///
    /// Cancelled, no task is taken out.
    ///
    /// # Examples
    ///
    /// The fastest first, and a failure of one as a value:
    ///
    /// ```
    /// use corespun::{task::{self, JoinSet}, thread::ThreadLib};
    /// use futures::executor::block_on;
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let mut set = JoinSet::new();
    /// runner.enter(|| {
    ///     set.spawn_local(async {
    ///         task::yield_now().await;
    ///         "mirror"
    ///     });
    ///     set.spawn_local(async { "primary" });
    ///     set.spawn_local(async { panic!("no such disk") });
    /// });
    /// runner.poll(0, 0);
    /// assert_eq!(block_on(set.join_next()).unwrap().unwrap(), "primary");
    /// assert!(block_on(set.join_next()).unwrap().unwrap_err().is_panic());
    /// runner.poll(0, 0);
    /// assert_eq!(block_on(set.join_next()).unwrap().unwrap(), "mirror");
    /// assert!(block_on(set.join_next()).is_none());
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub async fn join_next(&mut self) -> Option<Result<T, JoinError>> {
        poll_fn(|cx| self.poll_join_next(cx)).await
    }

    /// A task that has ended, if there is one that was not joined.
    pub fn try_join_next(&mut self) -> Option<Result<T, JoinError>> {
        unconstrained(self.tasks.next()).now_or_never()?
    }

    /// The form of [`JoinSet::join_next`] for hand-written futures.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::task::{Context, Poll, Waker};
    /// use corespun::{task::JoinSet, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let mut set = JoinSet::new();
    /// runner.enter(|| set.spawn_local(async { 5 }));
    /// let mut cx = Context::from_waker(Waker::noop());
    /// assert!(set.poll_join_next(&mut cx).is_pending());
    /// runner.poll(0, 0);
    /// assert!(matches!(set.poll_join_next(&mut cx), Poll::Ready(Some(Ok(5)))));
    /// assert!(matches!(set.poll_join_next(&mut cx), Poll::Ready(None)));
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn poll_join_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<T, JoinError>>> {
        let budget = ready!(poll_budget(cx));
        // What the handles would take is taken.
        let next = ready!(unconstrained(self.tasks.next()).poll_unpin(cx));
        budget.progressed();
        Poll::Ready(next)
    }

    /// Aborts every task. They stay in the set and are to be joined.
    pub fn abort_all(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }

    /// Lets every task run on by itself.
    pub fn detach_all(&mut self) {
        self.tasks = FuturesUnordered::new();
    }

    /// Aborts every task and waits until their futures are gone.
    ///
    /// # Cancel safety
    ///
    /// Cancelled, all are aborted, but some may not have ended.
    pub async fn shutdown(&mut self) {
        self.abort_all();
        while self.join_next().await.is_some() {}
    }

    /// Waits for all tasks and returns their outputs, in the order they ended.
    ///
    /// # Panics
    ///
    /// With the payload of a task that panicked, or when one was cancelled. The
    /// others are aborted.
    ///
    /// # Cancel safety
    ///
    /// Cancelled, every task is aborted.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{task::{self, JoinSet}, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let sum = runner.enter(|| task::spawn_local(async {
    ///     let mut reads = JoinSet::new();
    ///     for block in 0..4 {
    ///         reads.spawn_local(async move { block * 10 });
    ///     }
    ///     reads.join_all().await.into_iter().sum::<i32>()
    /// }));
    /// while !sum.is_finished() {
    ///     runner.poll(0, 0);
    /// }
    /// assert_eq!(futures::executor::block_on(sum).unwrap(), 60);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub async fn join_all(mut self) -> Vec<T> {
        let mut outputs = Vec::with_capacity(self.len());
        while let Some(joined) = self.join_next().await {
            match joined.map_err(JoinError::try_into_panic) {
                Ok(output) => outputs.push(output),
                Err(Ok(payload)) => std::panic::resume_unwind(payload),
                Err(Err(error)) => panic!("join_all: {error}"),
            }
        }
        outputs
    }
}

impl<T> Default for JoinSet<T> {
    fn default() -> Self {
        JoinSet::new()
    }
}

impl<T> Extend<JoinHandle<T>> for JoinSet<T> {
    fn extend<I: IntoIterator<Item = JoinHandle<T>>>(&mut self, tasks: I) {
        self.tasks.extend(tasks);
    }
}

impl<T> FromIterator<JoinHandle<T>> for JoinSet<T> {
    fn from_iter<I: IntoIterator<Item = JoinHandle<T>>>(tasks: I) -> Self {
        JoinSet {
            tasks: tasks.into_iter().collect(),
        }
    }
}

impl<T> Drop for JoinSet<T> {
    fn drop(&mut self) {
        self.abort_all();
    }
}

impl<T> fmt::Debug for JoinSet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinSet").field("len", &self.len()).finish()
    }
}
