//! Changing the mode of a reactor while it runs.
//!
//! The change is an event: the reactor makes it between two callbacks, in the order
//! asked, and the caller is told when it is in force. What was sent to the reactor
//! before and after waits in the same mailbox, whatever the mode, so nothing can be
//! lost on the way.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::channel::oneshot;

use super::ReactorMode;
use super::group::Group;
use super::inside::Inside;
use crate::task::reply::{Asker, Reply};
use crate::thread::InterruptError;
use crate::thread::panic::{PanicSource, contain};

/// Why the mode of a reactor was not changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetModeError {
    /// No reactor runs on that core.
    #[error("no reactor runs on core {core}; there are reactors on cores {available}")]
    NoReactor {
        /// The core asked for.
        core: usize,
        /// The cores that have one.
        available: String,
    },
    /// The reactors are stopping, or have ended.
    #[error("the reactors are stopping: the one on core {core} keeps its mode")]
    Stopping {
        /// The reactor's core.
        core: usize,
    },
    /// A thread on it has active pollers with interrupts, and cannot wait for them.
    #[error(
        "the reactor on core {core} keeps its mode: thread {thread:?} cannot follow it: {source}"
    )]
    Refused {
        /// The reactor's core.
        core: usize,
        /// The thread's name.
        thread: String,
        /// What was refused.
        source: InterruptError,
    },
}

type Done = Box<dyn FnOnce(Result<(), SetModeError>) + Send>;

/// The caller, to be told once, whatever happens.
struct Told {
    group: Arc<Group>,
    index: usize,
    done: Option<Done>,
}

impl Told {
    fn tell(mut self, result: Result<(), SetModeError>) {
        self.call(result);
    }

    fn call(&mut self, result: Result<(), SetModeError>) {
        if let Some(done) = self.done.take()
            && let Err(payload) = contain(|| done(result))
        {
            let here = &self.group.reactors[self.index];
            self.group.report_panic(here, PanicSource::Message, payload);
        }
    }
}

impl Drop for Told {
    /// The reactor has ended.
    fn drop(&mut self) {
        let core = self.group.reactors[self.index].place.core;
        self.call(Err(SetModeError::Stopping { core }));
    }
}

impl Group {
    pub(super) fn set_mode(
        self: &Arc<Self>,
        core: usize,
        mode: ReactorMode,
        done: Done,
    ) -> Result<(), SetModeError> {
        let Some(index) = self.index_of(core) else {
            return Err(SetModeError::NoReactor {
                core,
                available: self.cores().as_list().to_string(),
            });
        };
        if self.is_stopping() {
            return Err(SetModeError::Stopping { core });
        }
        let told = Told {
            group: self.clone(),
            index,
            done: Some(done),
        };
        let change = move |reactor: &mut dyn Inside, told: Told| {
            let result = reactor.enter_mode(mode);
            if result.is_ok() {
                // Asked for by name, it is no longer a scheduler's to take back.
                reactor.set_awake_mode(None);
            }
            told.tell(result.map_err(|(thread, source)| SetModeError::Refused {
                core,
                thread,
                source,
            }));
        };
        // Refused by a reactor that has ended; the caller is told by the drop.
        drop(self.send_within(index, told, change));
        Ok(())
    }

    pub(super) fn set_mode_future(self: &Arc<Self>, core: usize, mode: ReactorMode) -> SetMode {
        let (sender, end) = oneshot::channel();
        // The waiter may have given up.
        let done = Box::new(move |result| drop(sender.send(result)));
        let refused = self.set_mode(core, mode, done).err();
        SetMode(Reply::new(ModeAsker { core, refused }, end))
    }
}

/// Completes when a reactor's mode is in force; made by
/// [`Reactors::set_mode`](super::Reactors::set_mode).
///
/// # Examples
///
/// ```
/// use corespun::{app::App, reactor::ReactorMode};
///
/// let refused = App::builder().block_on(async |app| {
///     let missing = app.reactors().cores().iter().last().unwrap() + 1;
///     app.reactors().set_mode(missing, ReactorMode::Poll).await.unwrap_err().to_string()
/// })?;
/// assert!(refused.starts_with("no reactor runs on core"));
/// # Ok::<(), corespun::app::AppError>(())
/// ```
#[must_use = "the mode changes without being awaited; this tells when, and whether"]
pub struct SetMode(Reply<ModeAsker>);

impl Future for SetMode {
    type Output = Result<(), SetModeError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

struct ModeAsker {
    core: usize,
    /// Why the change was not even begun.
    refused: Option<SetModeError>,
}

impl Asker for ModeAsker {
    type Answer = Result<(), SetModeError>;
    type Output = Result<(), SetModeError>;

    fn output(&mut self, answer: Option<Self::Answer>) -> Self::Output {
        let core = self.core;
        match self.refused.take() {
            Some(refused) => Err(refused),
            None => answer.unwrap_or(Err(SetModeError::Stopping { core })),
        }
    }
}

impl fmt::Debug for SetMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SetMode")
            .field("core", &self.0.asker().core)
            .finish_non_exhaustive()
    }
}
