//! The runtime itself: it ends what it has begun when it is dropped.

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::context;
use super::drive;
use super::handle::{EnterGuard, Handle};
use super::metrics::RuntimeMetrics;
use super::scheduler::Scheduler;
use crate::task::JoinHandle;

/// Runs tasks, timers and I/O.
///
/// Dropped, it cancels its tasks: their futures are dropped on the threads they run on
/// (those of a `current_thread` runtime on the OS thread that drops it, unless one of
/// them was made not `Send` with corespun's own API: then at the end of the OS thread that
/// called `block_on` last), and what [`spawn_blocking`](Self::spawn_blocking) has begun is
/// waited for.
/// [`shutdown_timeout`](Self::shutdown_timeout) waits so long at most, and
/// [`shutdown_background`](Self::shutdown_background) not at all.
///
/// # Panics
///
/// When it is dropped where nothing may block, as in a task: use `shutdown_background`
/// there.
///
/// # Examples
///
/// ```
/// use corespun_compat as tokio;
///
/// let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
/// let answer = runtime.block_on(async {
///     let task = tokio::spawn(async { 42 });
///     task.await.unwrap()
/// });
/// assert_eq!(answer, 42);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Runtime {
    handle: Handle,
}

/// Which kind of runtime one is.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RuntimeFlavor {
    /// One thread, polled by `block_on`.
    CurrentThread,
    /// Workers.
    MultiThread,
}

/// How long the end of a runtime waits for what blocks.
#[derive(Clone, Copy)]
pub(super) enum Wait {
    Forever,
    AtMost(Duration),
}

impl Runtime {
    pub(super) fn of(handle: Handle) -> Self {
        Runtime { handle }
    }

    /// A `multi_thread` runtime with everything enabled.
    ///
    /// # Errors
    ///
    /// The system's, when it refuses the OS threads.
    #[cfg(feature = "rt-multi-thread")]
    pub fn new() -> io::Result<Runtime> {
        super::Builder::new_multi_thread().enable_all().build()
    }

    /// The runtime's handle.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// As [`Handle::spawn`].
    #[track_caller]
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.handle.spawn(future)
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

    /// Runs a future to its end on the calling OS thread. On a `current_thread` runtime
    /// that runs the tasks too.
    ///
    /// # Panics
    ///
    /// When called in a runtime; and when the future does.
    #[track_caller]
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        match &self.handle.inner.scheduler {
            Scheduler::CurrentThread(thread) => context::enter_runtime(&self.handle, false, || {
                drive::block_on_thread(&self.handle, thread, future)
            }),
            #[cfg(feature = "rt-multi-thread")]
            Scheduler::MultiThread(_) => self.handle.block_on(future),
        }
    }

    /// As [`Handle::enter`].
    pub fn enter(&self) -> EnterGuard<'_> {
        self.handle.enter()
    }

    /// Ends the runtime, and waits for what blocks for so long at most. What blocks
    /// longer goes on, and its result is lost.
    pub fn shutdown_timeout(self, duration: Duration) {
        shut_down(&self.handle, Wait::AtMost(duration));
    }

    /// Ends the runtime without waiting for what blocks, for where nothing may.
    pub fn shutdown_background(self) {
        self.shutdown_timeout(Duration::ZERO);
    }

    /// As [`Handle::metrics`].
    #[must_use]
    pub fn metrics(&self) -> RuntimeMetrics {
        self.handle.metrics()
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        shut_down(&self.handle, Wait::Forever);
    }
}

/// Ends the tasks of a runtime, then its helper threads. The second call does nothing.
pub(super) fn shut_down(handle: &Handle, wait: Wait) {
    let until = match wait {
        Wait::Forever => None,
        // A limit of centuries is none.
        Wait::AtMost(limit) => Instant::now().checked_add(limit),
    };
    if !handle.inner.blocking.close() {
        return;
    }
    match &handle.inner.scheduler {
        Scheduler::CurrentThread(thread) => {
            // What tasks drop may spawn.
            let _current = context::set_current(handle);
            match thread.try_take() {
                Ok(Some(taken)) => taken.end(),
                Ok(None) => {}
                Err(os_thread) => tracing::warn!(
                    "tasks of this runtime are not `Send`: they are dropped at the end of \
                     {os_thread:?}"
                ),
            }
            thread.close();
            handle.inner.home.end();
        }
        #[cfg(feature = "rt-multi-thread")]
        Scheduler::MultiThread(workers) => workers.stop(),
    }
    handle.inner.ended.store(true, Ordering::Release);
    let waits = match wait {
        Wait::Forever => true,
        Wait::AtMost(limit) => !limit.is_zero(),
    };
    if !waits {
        return;
    }
    if context::must_not_block() {
        // Not while unwinding: the first panic is what matters.
        if !std::thread::panicking() {
            panic!(
                "Cannot drop a runtime in a context where blocking is not allowed. This happens \
                 when a runtime is dropped from within an asynchronous context."
            );
        }
        return;
    }
    #[cfg(feature = "rt-multi-thread")]
    if let Scheduler::MultiThread(workers) = &handle.inner.scheduler {
        workers.join(until);
    }
    handle.inner.blocking.wait(until);
}

impl std::panic::UnwindSafe for Runtime {}
impl std::panic::RefUnwindSafe for Runtime {}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime")
            .field("handle", &self.handle)
            .finish()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("A Tokio 1.x context was found, but it is being shutdown.")]
struct ShutdownError;

/// The error of an I/O object whose runtime is shut down.
#[allow(dead_code, reason = "for those of the I/O features that are on")]
pub(crate) fn shutdown_error() -> io::Error {
    io::Error::other(ShutdownError)
}

/// Whether an error says that the runtime of an I/O object is shut down.
#[must_use]
pub fn is_rt_shutdown_err(error: &io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(|inner| inner.is::<ShutdownError>())
}
