//! Post-poller handlers: what a poller wants done right after it, once.

use std::cell::{Cell, RefCell};

use crate::thread::local::{ExitPhase, Local};
use crate::thread::panic::{PanicSource, contain};
use crate::thread::part::Part;
use crate::thread::placement::bound::{Bound, BoundBy};
use crate::thread::{Exited, NotOnThread};

/// How many may wait, as SPDK's.
const MAX: usize = 4;

/// Why a post-poller handler was refused.
///
/// # Examples
///
/// ```
/// use corespun::thread::{PostPollerError, ThreadLib, register_post_poller_handler};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// runner.enter(|| {
///     for _ in 0..4 {
///         register_post_poller_handler(|| ())?;
///     }
///     assert_eq!(register_post_poller_handler(|| ()), Err(PostPollerError::Full));
///     Ok::<_, PostPollerError>(())
/// })?;
/// let refused = register_post_poller_handler(|| ());
/// assert!(matches!(refused, Err(PostPollerError::NotOnThread(_))));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PostPollerError {
    /// No SpdkThread is current on this OS thread.
    #[error(transparent)]
    NotOnThread(#[from] NotOnThread),
    /// As many wait already as there may be.
    #[error("{MAX} post-poller handlers wait on this thread already")]
    Full,
    /// A post-poller handler asked.
    #[error("a post-poller handler cannot register another")]
    Nested,
    /// The thread has exited, or is dropping what it has.
    #[error(transparent)]
    Exited(#[from] Exited),
}

type Handler = Box<dyn FnOnce()>;

#[derive(Default)]
pub(crate) struct PostPollers {
    handlers: RefCell<Vec<Bound<Handler>>>,
    running: Cell<bool>,
    /// What waited was dropped: the thread exits.
    closed: Cell<bool>,
    /// The length of `handlers`, for a quick look after every poller.
    waiting: Cell<usize>,
}

/// Runs `handler` once, on the current SpdkThread, right after the active poller
/// that is running, or the next one that does; not after timed pollers or
/// messages (`spdk_thread_register_post_poller_handler`). Several run in the
/// order registered.
///
/// # Errors
///
/// [`PostPollerError`] off a SpdkThread, on one that has exited, when four wait
/// already, and from inside a handler.
///
/// # Examples
///
/// ```
/// use std::{cell::RefCell, rc::Rc};
/// use corespun::thread::{Poller, ThreadLib, register_post_poller_handler};
///
/// let mut thread = ThreadLib::new().thread().build()?.attach();
/// let log = Rc::new(RefCell::new(Vec::new()));
/// let submitted = log.clone();
/// let poller = thread.enter(|| {
///     Poller::active(move || {
///         let flushed = submitted.clone();
///         register_post_poller_handler(move || flushed.borrow_mut().push("flush")).unwrap();
///         submitted.borrow_mut().extend(["read", "write"]);
///     })
/// })?;
/// thread.poll(0, 0);
/// assert_eq!(*log.borrow(), ["read", "write", "flush"]);
/// # drop(poller);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn register_post_poller_handler(
    handler: impl FnOnce() + 'static,
) -> Result<(), PostPollerError> {
    register(true, Box::new(handler))
}

/// [`register_post_poller_handler`] of a `handler` that is `Send`: while it waits, it does
/// not keep the thread on its OS thread.
///
/// # Errors
///
/// As there.
pub fn register_send_post_poller_handler(
    handler: impl FnOnce() + Send + 'static,
) -> Result<(), PostPollerError> {
    register(false, Box::new(handler))
}

/// Registers a handler that may not be `Send` if it `stays`.
fn register(stays: bool, handler: Handler) -> Result<(), PostPollerError> {
    let register = |local: &Local| {
        let waiting = &local.rare().post_pollers;
        if waiting.closed.get() || local.exit_phase.get() == ExitPhase::Done {
            let gone = "has exited and runs no more post-poller handlers";
            return Err(Exited::new(local.shared.name(), gone).into());
        }
        if waiting.running.get() {
            return Err(PostPollerError::Nested);
        }
        if waiting.waiting.get() == MAX {
            return Err(PostPollerError::Full);
        }
        let handler = local.anchor.bind_if(stays, handler);
        waiting.handlers.borrow_mut().push(handler);
        waiting.waiting.set(waiting.waiting.get() + 1);
        Ok(())
    };
    let needs = "a post-poller handler must be registered on a SpdkThread";
    Local::with_current(register).unwrap_or_else(|| Err(NotOnThread::new(needs).into()))
}

impl PostPollers {
    fn take(&self) -> Vec<Bound<Handler>> {
        let handlers = self.handlers.take();
        self.waiting.set(0);
        handlers
    }
}

impl Part for PostPollers {
    fn binders(&self, by: &mut Vec<BoundBy>) -> usize {
        let handlers = self.handlers.borrow();
        let binders = handlers.iter().filter(|handler| handler.binds());
        by.extend(binders.map(|_| BoundBy::PostPoller));
        0
    }

    /// Drops what waits unrun.
    fn end(&self, local: &Local) {
        self.closed.set(true);
        for handler in self.take() {
            local.drop_contained(handler);
        }
    }
}

impl Local {
    #[inline]
    pub(in crate::thread) fn run_post_pollers(&self) {
        if let Some(rare) = self.existing_rare()
            && rare.post_pollers.waiting.get() > 0
        {
            self.run_waiting_post_pollers(&rare.post_pollers);
        }
    }

    #[cold]
    fn run_waiting_post_pollers(&self, waiting: &PostPollers) {
        let mut handlers = waiting.take();
        waiting.running.set(true);
        for handler in handlers.drain(..) {
            if let Err(payload) = contain(handler.into_inner()) {
                self.report_panic(PanicSource::Poller, Some("post-poller handler"), payload);
            }
            self.check_held_locks();
        }
        waiting.running.set(false);
        // Keeps the allocation for the next poller.
        waiting.handlers.replace(handlers);
    }
}
