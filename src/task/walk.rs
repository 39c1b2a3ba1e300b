//! Walks over the threads of a library instance with asynchronous functions,
//! one thread after the other or all at once: tasks on those threads, joined in
//! the order in which the threads were created.

use std::sync::Arc;

use super::{JoinError, JoinHandle};
use crate::sync::budget;
use crate::thread::{SpdkThread, ThreadLib};

/// Runs `f` as a task of `thread`.
#[track_caller]
fn visit<F, T>(thread: &SpdkThread, f: &Arc<F>) -> JoinHandle<T>
where
    F: AsyncFn(SpdkThread) -> T + Send + Sync + 'static,
    T: Send + 'static,
{
    let (visited, f) = (thread.clone(), f.clone());
    thread.spawn_with(async move || f(visited).await)
}

/// Walks with asynchronous functions.
impl ThreadLib {
    /// Runs `f` as a task of every running thread of this instance, one after
    /// the other in the order created, and yields what each made of it.
    ///
    /// The asynchronous form of [`ThreadLib::walk_threads`]. Unlike that it may
    /// be called and awaited anywhere, and does nothing until it is. A thread
    /// that was asked to exit before its turn is passed over, one made while the
    /// walk is under way is visited, and one that exits during its turn gives a
    /// [`JoinError`], as does a panic; the walk goes on.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the walk after the thread that it is at.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{task, thread::ThreadLib};
    ///
    /// let library = ThreadLib::new();
    /// let mut a = library.thread().name("a").build()?.attach();
    /// let mut b = library.thread().name("b").build()?.attach();
    /// let walk = a.enter(|| {
    ///     task::spawn_local(async move {
    ///         library.walk_threads_async(async |thread| thread.name().to_owned()).await
    ///     })
    /// });
    /// while !walk.is_finished() {
    ///     a.poll(0, 0);
    ///     b.poll(0, 0);
    /// }
    /// let names = futures::executor::block_on(walk).unwrap();
    /// assert_eq!(names.into_iter().map(|(_, name)| name.unwrap()).collect::<Vec<_>>(), ["a", "b"]);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub async fn walk_threads_async<F, T>(&self, f: F) -> Vec<(SpdkThread, Result<T, JoinError>)>
    where
        F: AsyncFn(SpdkThread) -> T + Send + Sync + 'static,
        T: Send + 'static,
    {
        budget::take().await;
        let f = Arc::new(f);
        let mut cursor = 0;
        let mut results = Vec::new();
        while let Some(thread) = self.running_after(cursor) {
            cursor = thread.id();
            let result = visit(&thread, &f).await;
            results.push((thread, result));
        }
        results
    }

    /// Runs `f` as a task of every thread of this instance that is running now,
    /// on all at once, and yields what each made of it, in the order in which
    /// the threads were created.
    ///
    /// The tasks are spawned by the call, from whatever thread; the future only
    /// waits for them, anywhere. A thread that exits before `f` is through gives
    /// a [`JoinError`], as does a panic.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future only stops the waiting; the tasks go on.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::thread::ThreadLib;
    ///
    /// let library = ThreadLib::new();
    /// let mut a = library.thread().build()?.attach();
    /// let mut b = library.thread().build()?.attach();
    /// let walk = library.walk_threads_concurrent(async |thread| thread.id());
    /// b.poll(0, 0);
    /// a.poll(0, 0);
    /// for (thread, id) in futures::executor::block_on(walk) {
    ///     assert_eq!(id.unwrap(), thread.id());
    /// }
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    #[track_caller]
    pub fn walk_threads_concurrent<F, T>(
        &self,
        f: F,
    ) -> impl Future<Output = Vec<(SpdkThread, Result<T, JoinError>)>> + Send + use<F, T>
    where
        F: AsyncFn(SpdkThread) -> T + Send + Sync + 'static,
        T: Send + 'static,
    {
        let f = Arc::new(f);
        let running = self.threads().into_iter().filter(SpdkThread::is_running);
        let mut visits = Vec::new();
        for thread in running {
            let visit = visit(&thread, &f);
            visits.push((thread, visit));
        }
        async move {
            budget::take().await;
            let mut results = Vec::with_capacity(visits.len());
            for (thread, visit) in visits {
                results.push((thread, visit.await));
            }
            results
        }
    }
}
