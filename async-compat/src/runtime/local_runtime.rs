//! A runtime that stays on its OS thread and takes futures that are not `Send`.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::time::Duration;

use corespun::task::LocalSpawner;
use corespun::thread::ThreadRunner;

use super::context;
use super::drive;
use super::handle::{EnterGuard, Handle};
use super::metrics::RuntimeMetrics;
use super::runtime::{Wait, shut_down};
use crate::task::JoinHandle;
use crate::task::local::{LocalContext, spawn_on_thread};

/// A `current_thread` runtime that is not `Send`: everything on it may hold what is not.
///
/// # Examples
///
/// ```
/// use corespun_compat as tokio;
///
/// let runtime = tokio::runtime::LocalRuntime::new()?;
/// let answer = runtime.block_on(async {
///     let not_send = std::rc::Rc::new(42);
///     tokio::task::spawn_local(async move { *not_send }).await.unwrap()
/// });
/// assert_eq!(answer, 42);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct LocalRuntime {
    handle: Handle,
    runner: RefCell<Option<ThreadRunner>>,
    spawner: LocalSpawner,
}

/// Settings of a [`LocalRuntime`] beyond those of the builder: none yet.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct LocalOptions {
    /// They may come to hold hooks that are not `Send`.
    _not_send: std::marker::PhantomData<*const ()>,
}

impl LocalRuntime {
    pub(super) fn of(handle: Handle, mut runner: ThreadRunner) -> Self {
        let spawner = runner.enter(LocalSpawner::current);
        let spawner = spawner.expect("the thread is entered");
        let load = handle.inner.scheduler.place().1.clone();
        let local = LocalContext::Thread(spawner.clone(), load);
        context::add_local_runtime(handle.inner.id, local);
        LocalRuntime {
            handle,
            spawner,
            runner: RefCell::new(Some(runner)),
        }
    }

    /// A runtime with everything enabled.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn new() -> io::Result<LocalRuntime> {
        super::Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())
    }

    /// The runtime's handle, which is `Send`.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Spawns a task that stays on this OS thread.
    #[track_caller]
    pub fn spawn_local<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        spawn_on_thread(&self.spawner, self.load(), future)
    }

    /// As [`Handle::spawn_blocking`].
    #[track_caller]
    pub fn spawn_blocking<F, R>(&self, func: F) -> JoinHandle<R>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Send + 'static,
    {
        self.handle.spawn_blocking(func)
    }

    fn load(&self) -> &std::sync::Arc<super::Load> {
        self.handle.inner.scheduler.place().1
    }

    /// As [`Runtime::block_on`](super::Runtime::block_on).
    ///
    /// # Panics
    ///
    /// When called in a runtime; and when the future does.
    #[track_caller]
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let load = self.load();
        context::enter_runtime(&self.handle, false, || {
            let _worker = context::enter_worker(Some(0));
            let runner = self.runner.borrow_mut().take();
            let mut back = PutBack(self, runner);
            let runner = back
                .1
                .as_mut()
                .expect("nothing blocks on it while it is polled");
            drive::block_on_runner(&self.handle, runner, load, future)
        })
    }

    /// As [`Handle::enter`]; and [`spawn_local`](crate::task::spawn_local) spawns here.
    pub fn enter(&self) -> EnterGuard<'_> {
        self.handle.enter()
    }

    /// As [`Runtime::shutdown_timeout`](super::Runtime::shutdown_timeout).
    pub fn shutdown_timeout(mut self, duration: Duration) {
        self.end_tasks();
        shut_down(&self.handle, Wait::AtMost(duration));
    }

    /// As [`Runtime::shutdown_background`](super::Runtime::shutdown_background).
    pub fn shutdown_background(self) {
        self.shutdown_timeout(Duration::ZERO);
    }

    /// As [`Handle::metrics`].
    #[must_use]
    pub fn metrics(&self) -> RuntimeMetrics {
        self.handle.metrics()
    }

    fn end_tasks(&mut self) {
        if let Some(runner) = self.runner.get_mut().take() {
            let _current = context::set_current(&self.handle);
            drop(runner);
        }
        context::remove_local_runtime(self.handle.inner.id);
    }
}

/// Puts the right to poll back, also when a poll unwinds.
struct PutBack<'a>(&'a LocalRuntime, Option<ThreadRunner>);

impl Drop for PutBack<'_> {
    fn drop(&mut self) {
        *self.0.runner.borrow_mut() = self.1.take();
    }
}

impl Drop for LocalRuntime {
    fn drop(&mut self) {
        self.end_tasks();
        shut_down(&self.handle, Wait::Forever);
    }
}

impl fmt::Debug for LocalRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalRuntime")
            .field("handle", &self.handle)
            .finish_non_exhaustive()
    }
}
