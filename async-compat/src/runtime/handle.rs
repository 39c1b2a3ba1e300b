//! The handle of a runtime, and making it the current one.

use std::fmt;
use std::marker::PhantomData;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use corespun::task::TaskBuilder;
use corespun::thread::ThreadLib;

use super::RuntimeFlavor;
use super::blocking::BlockingPool;
use super::config::Config;
use super::context::{self, SetCurrent};
use super::drive;
use super::metrics::RuntimeMetrics;
use super::scheduler::Scheduler;
use crate::task::tracked::Tracked;
use crate::task::{Id, JoinHandle};
#[cfg(feature = "time")]
use crate::time::Clock;

/// A runtime's handle: spawns on it from any OS thread.
///
/// It does not keep the runtime running: once that is shut down, what is spawned is
/// cancelled.
///
/// # Examples
///
/// ```
/// use corespun_compat as tokio;
///
/// let runtime = tokio::runtime::Runtime::new()?;
/// let handle = runtime.handle().clone();
/// let foreign = std::thread::spawn(move || handle.block_on(handle.spawn(async { 42 })));
/// assert_eq!(foreign.join().unwrap().unwrap(), 42);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct Handle {
    pub(crate) inner: Arc<Inner>,
}

/// What all handles of a runtime share.
pub(crate) struct Inner {
    pub(super) id: NonZeroU64,
    pub(super) config: Config,
    pub(super) library: ThreadLib,
    pub(super) scheduler: Scheduler,
    pub(super) blocking: BlockingPool,
    /// The runtime is shut down.
    pub(super) ended: AtomicBool,
    /// Who watches sockets for OS threads that have no I/O driver.
    pub(crate) home: corespun::io::Home,
    #[cfg(feature = "time")]
    #[cfg_attr(not(feature = "test-util"), allow(dead_code))]
    pub(crate) clock: Clock,
}

/// Keeps a runtime current on this OS thread; see [`Handle::enter`].
///
/// Guards have to be dropped in the reverse order of their making.
#[must_use = "the runtime is current only while the guard lives"]
pub struct EnterGuard<'a> {
    _current: Option<SetCurrent>,
    _runtime: PhantomData<&'a Handle>,
}

impl fmt::Debug for EnterGuard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnterGuard").finish_non_exhaustive()
    }
}

impl Handle {
    /// Makes the runtime current on this OS thread, without polling anything: for
    /// [`tokio::spawn`](crate::spawn) and for making timers and sockets.
    pub fn enter(&self) -> EnterGuard<'_> {
        EnterGuard {
            _current: context::set_current(self),
            _runtime: PhantomData,
        }
    }

    /// The current runtime.
    ///
    /// # Panics
    ///
    /// When there is none: outside of a runtime, and of [`Handle::enter`].
    #[track_caller]
    #[must_use]
    pub fn current() -> Self {
        match Handle::try_current() {
            Ok(handle) => handle,
            Err(error) => panic!("{error}"),
        }
    }

    /// The current runtime, if there is one.
    ///
    /// # Errors
    ///
    /// [`TryCurrentError`] says why there is none.
    pub fn try_current() -> Result<Self, TryCurrentError> {
        context::with_current(Handle::clone)
    }

    /// Spawns a task on the runtime: on a `current_thread` runtime it stays there, on a
    /// `multi_thread` one it is given to a worker now and stays with that
    /// ([`Placement`](super::Placement)).
    ///
    /// It begins to run whether or not the handle is awaited. On a runtime that was shut
    /// down, it is cancelled at once.
    #[track_caller]
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.spawn_named(TaskBuilder::new(), future)
    }

    #[track_caller]
    pub(crate) fn spawn_named<F>(&self, builder: TaskBuilder, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let id = Id::next();
        let (thread, load) = self.inner.scheduler.place_task(self);
        let task = builder.spawn_on(thread, Tracked::new(future, id, load, !thread.is_current()));
        JoinHandle::of_task(task, id)
    }

    /// Runs `func` on a helper OS thread, where it may block.
    ///
    /// The pool is the runtime's: at most
    /// [`max_blocking_threads`](super::Builder::max_blocking_threads), not pinned.
    #[track_caller]
    pub fn spawn_blocking<F, R>(&self, func: F) -> JoinHandle<R>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Send + 'static,
    {
        self.inner.blocking.spawn(self, func)
    }

    /// Runs a future on the calling OS thread, which sleeps while it waits; tasks of the
    /// runtime go on where they are: those of a `current_thread` runtime only while a
    /// [`Runtime::block_on`](super::Runtime::block_on) runs.
    ///
    /// Timers and sockets that the future itself polls are served by the calling OS
    /// thread.
    ///
    /// # Panics
    ///
    /// When called in a runtime; and when the future does.
    #[track_caller]
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        context::enter_runtime(self, true, || drive::block_on_beside(self, future))
    }

    /// Which kind of runtime it is.
    #[must_use]
    pub fn runtime_flavor(&self) -> RuntimeFlavor {
        self.inner.scheduler.flavor()
    }

    /// A number that no other runtime of the process has.
    #[must_use]
    pub fn id(&self) -> super::Id {
        super::Id(self.inner.id)
    }

    /// The name that [`Builder::name`](super::Builder::name) gave.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.inner.config.name.as_deref()
    }

    /// What the runtime counts.
    #[must_use]
    pub fn metrics(&self) -> RuntimeMetrics {
        RuntimeMetrics::new(self.clone())
    }

    /// Whether the runtime is shut down, as who is none of its workers sees it.
    #[allow(dead_code, reason = "asked by timers and I/O objects")]
    pub(crate) fn is_shut_down(&self) -> bool {
        self.inner.ended.load(Ordering::Acquire) && context::worker_index().is_none()
    }

    /// Whether it is one of a [`LocalRuntime`](super::LocalRuntime).
    pub(super) fn is_local(&self) -> bool {
        self.inner.config.is_local
    }

    /// The processors that helper threads of the runtime may use.
    #[cfg(feature = "compat")]
    pub(crate) fn free_cpus(&self) -> Option<corespun::cpu::CpuSet> {
        self.inner.library.helper_cpus()
    }

    /// Panics as tokio does when a timer is made where none works.
    #[cfg(feature = "time")]
    #[track_caller]
    pub(crate) fn check_time(&self) {
        assert!(
            self.inner.config.enable_time,
            "A Tokio 1.x context was found, but timers are disabled. Call `enable_time` on the \
             runtime builder to enable timers."
        );
    }

    /// Panics as tokio does when an I/O object is made where none works.
    #[allow(dead_code, reason = "for those of the I/O features that are on")]
    #[track_caller]
    pub(crate) fn check_io(&self) {
        assert!(
            self.inner.config.enable_io,
            "A Tokio 1.x context was found, but IO is disabled. Call `enable_io` on the runtime \
             builder to enable IO."
        );
    }
}

impl std::panic::UnwindSafe for Handle {}
impl std::panic::RefUnwindSafe for Handle {}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("id", &self.inner.id)
            .field("flavor", &self.runtime_flavor())
            .finish_non_exhaustive()
    }
}

/// Why there is no current runtime; see [`Handle::try_current`].
#[derive(Debug)]
pub struct TryCurrentError {
    kind: TryCurrentErrorKind,
}

#[derive(Debug, thiserror::Error)]
enum TryCurrentErrorKind {
    #[error("there is no reactor running, must be called from the context of a Tokio 1.x runtime")]
    NoContext,
    #[error("The Tokio context thread-local variable has been destroyed.")]
    ThreadLocalDestroyed,
}

impl TryCurrentError {
    pub(super) fn no_context() -> Self {
        TryCurrentError {
            kind: TryCurrentErrorKind::NoContext,
        }
    }

    pub(super) fn thread_local_destroyed() -> Self {
        TryCurrentError {
            kind: TryCurrentErrorKind::ThreadLocalDestroyed,
        }
    }

    /// Whether no runtime is current.
    #[must_use]
    pub fn is_missing_context(&self) -> bool {
        matches!(self.kind, TryCurrentErrorKind::NoContext)
    }

    /// Whether the OS thread is ending.
    #[must_use]
    pub fn is_thread_local_destroyed(&self) -> bool {
        matches!(self.kind, TryCurrentErrorKind::ThreadLocalDestroyed)
    }
}

impl fmt::Display for TryCurrentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)
    }
}

impl std::error::Error for TryCurrentError {}
