//! Why a simulation did not come where it was to go.

use std::fmt;
use std::time::Duration;

/// Why a simulation did not reach what was waited for.
///
/// # Examples
///
/// An answer that never comes:
///
/// ```
/// use corespun::sim::{Sim, SimError};
///
/// let mut sim = Sim::builder().build();
/// let (_asked, answer) = futures::channel::oneshot::channel::<()>();
/// match sim.try_block_on(answer).unwrap_err() {
///     SimError::NothingLeft { waiting, .. } => assert!(waiting[0].contains("\"main\": task")),
///     other => panic!("{other}"),
/// }
/// ```
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SimError {
    /// A deadlock: nothing is left to run, to arrive or to be due.
    #[error(
        "deadlock after {}: nothing is left to run (seed {seed}){}",
        Millis(*now), list("waiting", waiting)
    )]
    NothingLeft {
        /// The simulation's seed.
        seed: u64,
        /// The time it was, since the begin.
        now: Duration,
        /// The threads, each with what waits on it.
        waiting: Vec<String>,
    },
    /// So many turns were taken.
    #[error(
        "not reached after {turns} turns and {} (seed {seed}){}",
        Millis(*now), list("busy", busy)
    )]
    TurnLimit {
        /// The simulation's seed.
        seed: u64,
        /// How many turns that were.
        turns: u64,
        /// The time it was, since the begin.
        now: Duration,
        /// The threads that were busy meanwhile, the busiest first, or that want to be
        /// polled all the time.
        busy: Vec<String>,
    },
    /// Code of the user's has panicked, and its end had no waiter.
    #[error("{message} (seed {seed}, after {})", Millis(*now))]
    Panicked {
        /// The simulation's seed.
        seed: u64,
        /// The time it was, since the begin.
        now: Duration,
        /// Where, and what the panic said.
        message: String,
    },
}

struct Millis(Duration);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        write!(f, "{}.{:06} ms", nanos / 1_000_000, nanos % 1_000_000)
    }
}

fn list(what: &str, items: &[String]) -> String {
    let items = items.iter().map(|item| format!("\n  {what}: {item}"));
    items.collect()
}

/// As displayed: it is what `unwrap` shows.
impl fmt::Debug for SimError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
