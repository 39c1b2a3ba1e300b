//! Naming a task before it is spawned.

use std::io;

use corespun::task::TaskBuilder;

use super::{JoinHandle, LocalSet, local};
use crate::runtime::Handle;

/// Names a task for reports and introspection
/// ([`SpdkThread::tasks`](corespun::thread::SpdkThread::tasks)).
///
/// # Errors
///
/// None of its methods fails; the signatures are tokio's.
///
/// # Examples
///
/// ```
/// # use corespun_compat as tokio;
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// let scrub = tokio::task::Builder::new().name("scrub").spawn(async { 42 })?;
/// assert_eq!(scrub.await?, 42);
/// # Ok::<(), std::io::Error>(())
/// # })?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[must_use = "call one of the `spawn` methods"]
pub struct Builder<'a> {
    name: Option<&'a str>,
}

impl<'a> Builder<'a> {
    /// A task without a name.
    pub fn new() -> Self {
        Builder::default()
    }

    /// The task's name.
    pub fn name(&self, name: &'a str) -> Self {
        Builder { name: Some(name) }
    }

    fn core(self) -> TaskBuilder {
        match self.name {
            Some(name) => TaskBuilder::new().name(name),
            None => TaskBuilder::new(),
        }
    }

    /// As [`spawn`](super::spawn).
    #[track_caller]
    pub fn spawn<F>(self, future: F) -> io::Result<JoinHandle<F::Output>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        Ok(super::spawn_named(self.core(), future))
    }

    /// As [`Handle::spawn`].
    #[track_caller]
    pub fn spawn_on<F>(self, future: F, handle: &Handle) -> io::Result<JoinHandle<F::Output>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        Ok(handle.spawn_named(self.core(), future))
    }

    /// As [`spawn_local`](super::spawn_local). The name is not kept.
    #[track_caller]
    pub fn spawn_local<F>(self, future: F) -> io::Result<JoinHandle<F::Output>>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        Ok(local::spawn_local(future))
    }

    /// As [`LocalSet::spawn_local`]. The name is not kept.
    #[track_caller]
    pub fn spawn_local_on<F>(
        self,
        future: F,
        local_set: &LocalSet,
    ) -> io::Result<JoinHandle<F::Output>>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        Ok(local_set.spawn_local(future))
    }

    /// As [`spawn_blocking`](super::spawn_blocking). The name is not kept.
    #[track_caller]
    pub fn spawn_blocking<F, R>(self, function: F) -> io::Result<JoinHandle<R>>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Send + 'static,
    {
        Ok(Handle::current().spawn_blocking(function))
    }

    /// As [`Handle::spawn_blocking`]. The name is not kept.
    #[track_caller]
    pub fn spawn_blocking_on<F, R>(self, function: F, handle: &Handle) -> io::Result<JoinHandle<R>>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Send + 'static,
    {
        Ok(handle.spawn_blocking(function))
    }
}
