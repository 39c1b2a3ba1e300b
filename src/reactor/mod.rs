//! Reactors: one pinned OS thread per core, each polling the SpdkThreads placed
//! on it, running events, and driving the I/O of its core.
//!
//! [`Reactors`] is the handle of all of them. The order of work inside one turn
//! of the loop is written in one function, `Reactor::turn`.
//!
//! A thread that has had nothing to do for some polls in 10 µs is *dormant*: no
//! turn, sleep or wake of its reactor looks at it until something is sent to it, a
//! descriptor of its interrupts is ready, or its earliest timer is due. So a reactor
//! may have a hundred thousand idle threads, and they cost the busy ones nothing.

mod dormant;
pub mod governor;
mod ground;
mod group;
mod handle;
mod hosted;
mod idle;
mod inside;
mod mode;
mod one;
pub mod scheduler;
mod seat;
mod shares;
mod stats;
mod stepped;
mod switches;
mod turn;
mod walk;
mod watcher;
mod wreck;

use std::time::Duration;

pub use group::StartError;
pub(crate) use group::{Event, Group, Lcore, Placement};
pub use handle::{EventError, Reactors};
pub use mode::{SetMode, SetModeError};
pub use one::{ReactorCall, ReactorCallError, ReactorHandle};
pub use seat::{ReactorSeat, ReactorsBuilder, SeatError, StartedSeat};
pub use stats::{KeptAwake, ReactorStats};
pub(crate) use stepped::{Director, Part, Rest, Stepped};
pub(crate) use turn::Reactor;
pub use walk::ReactorWalkError;
pub(crate) use watcher::Watcher;
pub(crate) use wreck::ReactorPanicked;

/// How a reactor spends its time when it has nothing to do.
///
/// In the modes that sleep, it waits for the [`Interrupt`](crate::thread::Interrupt)s
/// of its threads too, and takes threads whose active pollers have interrupts
/// ([`Poller::set_interrupt`](crate::thread::Poller::set_interrupt)) into interrupt
/// mode. Any other active poller keeps it awake:
/// [`ReactorStats::kept_awake_by`] names it.
///
/// # Examples
///
/// ```
/// use corespun::{app::App, reactor::ReactorMode};
///
/// assert_eq!(ReactorMode::default(), ReactorMode::Adaptive);
/// let all = [ReactorMode::Poll, ReactorMode::Adaptive, ReactorMode::Interrupt];
/// for mode in all {
///     // They differ in what they cost, not in what they do.
///     assert_eq!(App::builder().mode(mode).block_on(async |_app| 42)?, 42);
/// }
/// # Ok::<(), corespun::app::AppError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ReactorMode {
    /// Never sleeps: the quickest reaction, and a full core.
    Poll,
    /// Spins for a while that adapts to how soon work usually comes, then
    /// sleeps.
    #[default]
    Adaptive,
    /// Sleeps at once.
    Interrupt,
}

impl ReactorMode {
    const ALL: [ReactorMode; 3] = [
        ReactorMode::Poll,
        ReactorMode::Adaptive,
        ReactorMode::Interrupt,
    ];
}

/// How long a reactor in adaptive mode spins before it sleeps, as QEMU's
/// `poll-max-ns`, `poll-grow` and `poll-shrink`.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use corespun::reactor::AdaptivePolling;
///
/// let default = AdaptivePolling::default();
/// assert_eq!((default.max, default.grow), (Duration::from_micros(50), 2));
/// // A useless spin is halved, not given up at once.
/// let patient = AdaptivePolling { shrink: 2, ..default };
/// assert_ne!(patient, default);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdaptivePolling {
    /// The longest spin; zero never spins.
    pub max: Duration,
    /// What a spin that was too short is multiplied by; 0 stands for 2.
    pub grow: u32,
    /// What a spin that was useless is divided by; 0 takes it back to nothing.
    pub shrink: u32,
}

impl Default for AdaptivePolling {
    /// 50 µs at most: about twice what waking a sleeping core costs in a
    /// virtual machine, so that spinning never wastes more than it may save.
    fn default() -> Self {
        AdaptivePolling {
            max: Duration::from_micros(50),
            grow: 2,
            shrink: 0,
        }
    }
}
