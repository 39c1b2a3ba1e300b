//! Walks over the threads of a library instance with asynchronous functions,
//! one thread after the other or all at once: tasks on those threads, joined in
//! the order in which the threads were created.

use std::panic::Location;
use std::sync::Arc;

use super::{JoinError, JoinHandle, TaskBuilder};
use crate::sync::budget;
use crate::thread::{SpdkThread, ThreadLib};

/// Runs `f` as a task of `thread`.
fn visit<F, T>(
    thread: &SpdkThread,
    f: &Arc<F>,
    location: &'static Location<'static>,
) -> JoinHandle<T>
where
    F: AsyncFn(SpdkThread) -> T + Send + Sync + 'static,
    T: Send + 'static,
{
    let (visited, f) = (thread.clone(), f.clone());
    TaskBuilder::new().spawn_with_at(thread, async move || f(visited).await, location)
}

/// Walks with asynchronous functions.
impl ThreadLib {
    /// Runs `f` as a task of every running thread of this instance, one after
    /// the other in the order created, and yields what each made of it.
    ///
    /// The asynchronous form of [`ThreadLib::for_each_thread`]. Unlike that it may
    /// be called and awaited anywhere, and does nothing until it is awaited. A thread
    /// that was asked to exit before its turn is passed over, one made while the
    /// walk is under way is visited, and one that exits during its turn gives a
    /// [`JoinError`], as does a panic; the walk goes on. See
    /// [walks](crate::thread#walks).
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
    ///         library.walk_threads(async |thread| thread.name().to_owned()).await
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
    #[track_caller]
    pub fn walk_threads<F, T>(
        &self,
        f: F,
    ) -> impl Future<Output = Vec<(SpdkThread, Result<T, JoinError>)>> + Send + use<F, T>
    where
        F: AsyncFn(SpdkThread) -> T + Send + Sync + 'static,
        T: Send + 'static,
    {
        let (library, f, location) = (self.clone(), Arc::new(f), Location::caller());
        async move {
            budget::take().await;
            let mut cursor = 0;
            let mut results = Vec::new();
            while let Some(thread) = library.running_after(cursor) {
                cursor = thread.id();
                let result = visit(&thread, &f, location).await;
                results.push((thread, result));
            }
            results
        }
    }

    /// Runs `f` as a task of every thread of this instance that is running now,
    /// on all at once, and yields what each made of it, in the order in which
    /// the threads were created.
    ///
    /// As [`ThreadLib::walk_threads`], it does nothing until it is awaited. A thread
    /// that exits before `f` is through gives a [`JoinError`], as does a panic.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future only stops the waiting; the tasks that it has spawned go on.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{task, thread::ThreadLib};
    ///
    /// let library = ThreadLib::new();
    /// let mut a = library.thread().build()?.attach();
    /// let mut b = library.thread().build()?.attach();
    /// let walk = library.walk_threads_concurrent(async |thread| thread.id());
    /// let walk = a.enter(|| task::spawn(walk));
    /// while !walk.is_finished() {
    ///     b.poll(0, 0);
    ///     a.poll(0, 0);
    /// }
    /// for (thread, id) in futures::executor::block_on(walk).unwrap() {
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
        let (library, f, location) = (self.clone(), Arc::new(f), Location::caller());
        async move {
            budget::take().await;
            let running = library.threads().into_iter().filter(SpdkThread::is_running);
            // All are spawned before the first is waited for.
            let visits: Vec<_> = running
                .map(|thread| (visit(&thread, &f, location), thread))
                .collect();
            let mut results = Vec::with_capacity(visits.len());
            for (visit, thread) in visits {
                results.push((thread, visit.await));
            }
            results
        }
    }
}
