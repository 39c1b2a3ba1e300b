//! Pollers: callbacks that a thread runs on every poll (active) or after each
//! period (timed), and the handle that owns one.
//!
//! All of this belongs to the thread's owner. A poller is in one [`PollerPlace`] at a time,
//! which says all there is to say of when it runs next. A callback is taken out of its
//! poller while it runs, so registering, pausing, resuming and unregistering anything
//! from inside it only changes what the pass looks at afterwards.

mod change;
mod handle;
mod list;
#[cfg(all(test, corespun_loom))]
mod loom_tests;
mod post_poller;
mod send;
mod turn;

use std::cell::{Cell, OnceCell};
use std::fmt;

pub use handle::{Polled, Poller, PollerBuilder};
pub(crate) use list::PollerList;
pub(super) use post_poller::PostPollers;
pub use post_poller::{
    PostPollerError, register_post_poller_handler, register_send_post_poller_handler,
};
pub use send::SendPoller;

use super::poll::activity::Activity;
use super::poll::timer_queue::TimerKey;
use super::stall::Occupant;
use super::{Exited, NotOnThread};

/// Where a poller stands; the text forms are SPDK's.
///
/// # Examples
///
/// As text they are SPDK's names:
///
/// ```
/// use corespun::thread::{Poller, PollerState, ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let poller = runner.enter(|| Poller::active(|| ()))?;
/// assert_eq!(poller.state(), PollerState::Waiting);
/// assert_eq!(poller.state().to_string(), "waiting");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PollerState {
    /// Waits for its turn.
    Waiting,
    /// Its callback runs now.
    Running,
    /// Will never run again.
    Unregistered,
    /// Will be paused at its next turn, without running.
    Pausing,
    /// Is paused.
    Paused,
}

impl fmt::Display for PollerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PollerState::Waiting => "waiting",
            PollerState::Running => "running",
            PollerState::Unregistered => "unregistered",
            PollerState::Pausing => "pausing",
            PollerState::Paused => "paused",
        })
    }
}

/// How often a poller ran.
///
/// # Examples
///
/// ```
/// use corespun::thread::{Poller, ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let poller = runner.enter(|| Poller::active(|| false))?;
/// runner.poll(0, 0);
/// let stats = poller.stats();
/// // It has looked once, for nothing.
/// assert_eq!((stats.run_count, stats.busy_count), (1, 0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PollerStats {
    /// Times the callback was called.
    pub run_count: u64,
    /// Times it returned [`Activity::Busy`].
    pub busy_count: u64,
}

/// Why a poller could not be registered.
///
/// # Examples
///
/// ```
/// use corespun::thread::{Poller, PollerError};
///
/// let error = Poller::active(|| ()).unwrap_err();
/// assert!(matches!(error, PollerError::NotOnThread(_)));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PollerError {
    /// No SpdkThread is current on this OS thread.
    #[error(transparent)]
    NotOnThread(#[from] NotOnThread),
    /// The current thread is about to read EXITED.
    #[error(transparent)]
    Exited(#[from] Exited),
}

impl PollerError {
    #[cold]
    pub(crate) fn not_on_thread() -> Self {
        NotOnThread::new("a poller must be registered on a SpdkThread").into()
    }
}

type Callback = Box<dyn FnMut() -> Activity>;

/// Finds a poller again on its thread. Any OS thread may have it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PollerKey {
    slot: usize,
    /// Unique on its thread, starting at 1.
    id: u64,
}

impl PollerKey {
    fn occupant(self, name: Option<&str>) -> Occupant<'_> {
        Occupant::Poller { name, id: self.id }
    }
}

/// Where a poller is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PollerPlace {
    /// Among those that every poll runs, by the entry of that number.
    Active(u64),
    /// In the timer queue.
    Timed(TimerKey),
    /// Left to its interrupt, in interrupt mode. A timed one has so many ticks left of
    /// its period.
    Suspended {
        remaining: u64,
    },
    Paused,
    /// Unregistered.
    Gone,
}

/// What a poller's turn is, or will be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Its callback will be called.
    Runs,
    /// It is being called.
    Running,
    /// It will be paused, or when its callback returns.
    Pauses,
    /// There is none: it is paused, or gone.
    None,
}

pub(crate) struct PollerCore {
    callback: Cell<Option<Callback>>,
    turn: Cell<Turn>,
    place: Cell<PollerPlace>,
    /// Where the thread finds it, and its number.
    key: PollerKey,
    /// The callback, and the switch hook, may not be `Send`.
    stays: bool,
    /// A [`Poller`] of it is there, which binds.
    has_handle: Cell<bool>,
    name: Option<String>,
    period: u64,
    run_count: Cell<u64>,
    busy_count: Cell<u64>,
    interrupt: OnceCell<Box<PollerInterrupt>>,
}

/// Hears of mode switches.
type SwitchHook = Box<dyn FnMut(bool)>;

/// What a poller with an interrupt of its own needs: it is *suspended* in
/// interrupt mode.
struct PollerInterrupt {
    hook: Cell<Option<SwitchHook>>,
    /// They hear of a switch in the order in which they were given their first.
    order: u64,
}

impl PollerCore {
    pub(crate) fn name(&self) -> String {
        self.occupant().describe()
    }

    /// What the thread is occupied with while the callback runs.
    fn occupant(&self) -> Occupant<'_> {
        self.key.occupant(self.name.as_deref())
    }

    pub(super) fn id(&self) -> u64 {
        self.key.id
    }

    fn stats(&self) -> PollerStats {
        PollerStats {
            run_count: self.run_count.get(),
            busy_count: self.busy_count.get(),
        }
    }

    fn state(&self) -> PollerState {
        match (self.turn.get(), self.place.get()) {
            (Turn::Runs, _) => PollerState::Waiting,
            (Turn::Running, _) => PollerState::Running,
            (Turn::Pauses, _) => PollerState::Pausing,
            (Turn::None, PollerPlace::Gone) => PollerState::Unregistered,
            (Turn::None, _) => PollerState::Paused,
        }
    }

    fn is_gone(&self) -> bool {
        self.place.get() == PollerPlace::Gone
    }

    fn is_suspended(&self) -> bool {
        matches!(self.place.get(), PollerPlace::Suspended { .. })
    }
}
