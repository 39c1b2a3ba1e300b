//! Many tasks that are waited for together.

use std::fmt;
use std::future::poll_fn;
use std::panic::resume_unwind;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker, ready};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::task::coop::unconstrained;

use super::{AbortHandle, Id, JoinError, JoinHandle, LocalSet};
use crate::runtime::Handle;

/// Tasks that are waited for together, in the order they end. Dropped, it aborts them.
///
/// # Examples
///
/// ```
/// # use corespun_compat as tokio;
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// let mut squares: tokio::task::JoinSet<_> = (1..=3).map(|n| async move { n * n }).collect();
/// let mut sum = 0;
/// while let Some(square) = squares.join_next().await {
///     sum += square.unwrap();
/// }
/// assert_eq!(sum, 14);
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
#[must_use = "dropped, it aborts its tasks"]
pub struct JoinSet<T> {
    tasks: FuturesUnordered<Entry<T>>,
}

/// A task of a set.
struct Entry<T>(JoinHandle<T>);

impl<T> Future for Entry<T> {
    type Output = (Id, Result<T, JoinError>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let id = self.0.id();
        let result = ready!(Pin::new(&mut self.0).poll(cx));
        Poll::Ready((id, result))
    }
}

impl<T> JoinSet<T> {
    /// A set without tasks.
    pub fn new() -> Self {
        JoinSet {
            tasks: FuturesUnordered::new(),
        }
    }

    /// How many tasks were not joined yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Whether every task was joined.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }
}

impl<T: 'static> JoinSet<T> {
    fn insert(&mut self, task: JoinHandle<T>) -> AbortHandle {
        let abort = task.abort_handle();
        self.tasks.push(Entry(task));
        abort
    }

    /// As [`spawn`](super::spawn).
    #[track_caller]
    pub fn spawn<F>(&mut self, task: F) -> AbortHandle
    where
        F: Future<Output = T> + Send + 'static,
        T: Send,
    {
        self.insert(super::spawn(task))
    }

    /// As [`Handle::spawn`].
    #[track_caller]
    pub fn spawn_on<F>(&mut self, task: F, handle: &Handle) -> AbortHandle
    where
        F: Future<Output = T> + Send + 'static,
        T: Send,
    {
        self.insert(handle.spawn(task))
    }

    /// As [`spawn_local`](super::spawn_local).
    #[track_caller]
    pub fn spawn_local<F>(&mut self, task: F) -> AbortHandle
    where
        F: Future<Output = T> + 'static,
    {
        self.insert(super::spawn_local(task))
    }

    /// As [`LocalSet::spawn_local`].
    #[track_caller]
    pub fn spawn_local_on<F>(&mut self, task: F, local_set: &LocalSet) -> AbortHandle
    where
        F: Future<Output = T> + 'static,
    {
        self.insert(local_set.spawn_local(task))
    }

    /// As [`spawn_blocking`](super::spawn_blocking).
    #[track_caller]
    pub fn spawn_blocking<F>(&mut self, f: F) -> AbortHandle
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send,
    {
        self.insert(super::spawn_blocking(f))
    }

    /// As [`Handle::spawn_blocking`].
    #[track_caller]
    pub fn spawn_blocking_on<F>(&mut self, f: F, handle: &Handle) -> AbortHandle
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send,
    {
        self.insert(handle.spawn_blocking(f))
    }

    /// Waits for a task to end, and gives its result; `None` when there is none.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no result is lost.
    pub async fn join_next(&mut self) -> Option<Result<T, JoinError>> {
        poll_fn(|cx| self.poll_join_next(cx)).await
    }

    /// As [`join_next`](Self::join_next), with the task's id.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no result is lost.
    pub async fn join_next_with_id(&mut self) -> Option<Result<(Id, T), JoinError>> {
        poll_fn(|cx| self.poll_join_next_with_id(cx)).await
    }

    /// The result of a task that has ended, if there is one.
    pub fn try_join_next(&mut self) -> Option<Result<T, JoinError>> {
        self.try_next().map(|(_, result)| result)
    }

    /// As [`try_join_next`](Self::try_join_next), with the task's id.
    pub fn try_join_next_with_id(&mut self) -> Option<Result<(Id, T), JoinError>> {
        let (id, result) = self.try_next()?;
        Some(result.map(|output| (id, output)))
    }

    fn try_next(&mut self) -> Option<(Id, Result<T, JoinError>)> {
        /// Notes that another look is due.
        struct Again(AtomicBool);
        impl Wake for Again {
            fn wake(self: Arc<Self>) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let again = Arc::new(Again(AtomicBool::new(false)));
        let waker = Waker::from(again.clone());
        let mut cx = Context::from_waker(&waker);
        loop {
            let next = poll_fn(|cx| self.tasks.poll_next_unpin(cx));
            // Whoever asks without waiting gives way to nobody.
            match pin!(unconstrained(next)).poll(&mut cx) {
                Poll::Ready(next) => return next,
                Poll::Pending if again.0.swap(false, Ordering::Relaxed) => {}
                Poll::Pending => return None,
            }
        }
    }

    /// Aborts the tasks, and waits for them to end.
    pub async fn shutdown(&mut self) {
        self.abort_all();
        while self.join_next().await.is_some() {}
    }

    /// Waits for all tasks, and gives their results in the order they ended.
    ///
    /// # Panics
    ///
    /// When one of them panicked, with its payload, or was cancelled.
    pub async fn join_all(mut self) -> Vec<T> {
        let mut outputs = Vec::with_capacity(self.len());
        while let Some(result) = self.join_next().await {
            match result {
                Ok(output) => outputs.push(output),
                Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
                Err(error) => panic!("{error}"),
            }
        }
        outputs
    }

    /// Aborts the tasks; they stay in the set.
    pub fn abort_all(&mut self) {
        self.tasks.iter().for_each(|task| task.0.abort());
    }

    /// Lets the tasks go on without the set.
    pub fn detach_all(&mut self) {
        self.tasks.clear();
    }

    /// As [`join_next`](Self::join_next).
    pub fn poll_join_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<T, JoinError>>> {
        let next = ready!(self.tasks.poll_next_unpin(cx));
        Poll::Ready(next.map(|(_, result)| result))
    }

    /// As [`join_next_with_id`](Self::join_next_with_id).
    pub fn poll_join_next_with_id(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<(Id, T), JoinError>>> {
        let next = ready!(self.tasks.poll_next_unpin(cx));
        Poll::Ready(next.map(|(id, result)| result.map(|output| (id, output))))
    }
}

impl<T> Drop for JoinSet<T> {
    fn drop(&mut self) {
        self.tasks.iter().for_each(|task| task.0.abort());
    }
}

impl<T> Default for JoinSet<T> {
    fn default() -> Self {
        JoinSet::new()
    }
}

impl<T> fmt::Debug for JoinSet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinSet").field("len", &self.len()).finish()
    }
}

/// Spawns each future.
impl<T, F> std::iter::FromIterator<F> for JoinSet<T>
where
    F: Future<Output = T> + Send + 'static,
    T: Send + 'static,
{
    fn from_iter<I: IntoIterator<Item = F>>(futures: I) -> Self {
        let mut set = JoinSet::new();
        set.extend(futures);
        set
    }
}

/// Spawns each future.
impl<T, F> Extend<F> for JoinSet<T>
where
    F: Future<Output = T> + Send + 'static,
    T: Send + 'static,
{
    fn extend<I: IntoIterator<Item = F>>(&mut self, futures: I) {
        for future in futures {
            self.spawn(future);
        }
    }
}
