//! A clock that runs and can be stopped while it runs: real time for a program,
//! and virtual time for the tests of that program.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Clock, NANOS_PER_SEC, Source, monotonic_nanos};

/// What `stopped_at` holds while the clock runs.
const RUNS: u64 = u64::MAX;

#[derive(Debug)]
pub(super) struct Stoppable {
    /// The tick it stands at, or [`RUNS`].
    stopped_at: AtomicU64,
    /// What a running clock is ahead of `CLOCK_MONOTONIC` (modulo 2⁶⁴): all that
    /// it was advanced by, less all the time that it stood. Written while it stands.
    ahead: AtomicU64,
}

impl Stoppable {
    #[inline]
    pub(super) fn now(&self) -> u64 {
        // Acquire: who sees the clock run again sees how far ahead it is.
        match self.stopped_at.load(Ordering::Acquire) {
            RUNS => monotonic_nanos().wrapping_add(self.ahead.load(Ordering::Relaxed)),
            tick => tick,
        }
    }
}

/// Stops, moves and starts the [`Clock`]s made from it, which otherwise tick as
/// [`Clock::monotonic`] does: a tick is a nanosecond.
///
/// Clones have the same clock in hand, from any OS thread. Reading costs what reading
/// `CLOCK_MONOTONIC` costs, and two loads. Whoever sleeps until a tick of a clock
/// that is stopped or moved meanwhile has to be woken by who does that.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use corespun::clock::StoppableClock;
///
/// let hand = StoppableClock::new();
/// let clock = hand.clock();
/// assert!(hand.stop());
/// let begin = clock.now();
/// hand.advance_by(Duration::from_secs(3600));
/// assert_eq!(clock.duration_from(clock.now() - begin), Duration::from_secs(3600));
/// // It goes on from there.
/// assert!(hand.start());
/// assert!(clock.now() >= begin + 3_600_000_000_000);
/// ```
#[derive(Clone, Debug)]
pub struct StoppableClock {
    state: Arc<Stoppable>,
}

impl StoppableClock {
    /// A clock that runs.
    ///
    /// # Examples
    ///
    /// ```
    /// assert!(!corespun::clock::StoppableClock::new().is_stopped());
    /// ```
    #[must_use]
    #[allow(clippy::new_without_default, reason = "no clock is like another")]
    pub fn new() -> Self {
        StoppableClock {
            state: Arc::new(Stoppable {
                stopped_at: AtomicU64::new(RUNS),
                ahead: AtomicU64::new(0),
            }),
        }
    }

    /// A clock that shows this time.
    ///
    /// # Examples
    ///
    /// ```
    /// let hand = corespun::clock::StoppableClock::new();
    /// assert_eq!(hand.clock().hz(), 1_000_000_000);
    /// ```
    #[must_use]
    pub fn clock(&self) -> Clock {
        Clock {
            source: Source::Stoppable(self.state.clone()),
            hz: NANOS_PER_SEC,
        }
    }

    /// Stops the clock at the current tick. Says whether it ran.
    ///
    /// # Examples
    ///
    /// ```
    /// let hand = corespun::clock::StoppableClock::new();
    /// assert_eq!((hand.stop(), hand.stop()), (true, false));
    /// ```
    pub fn stop(&self) -> bool {
        let now = self.state.now().min(RUNS - 1);
        let stopped_at = &self.state.stopped_at;
        stopped_at
            .compare_exchange(RUNS, now, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// Lets the clock go on from where it stands. Says whether it stood.
    ///
    /// # Examples
    ///
    /// ```
    /// let hand = corespun::clock::StoppableClock::new();
    /// assert!(!hand.start());
    /// hand.stop();
    /// assert!(hand.start());
    /// ```
    pub fn start(&self) -> bool {
        let stopped_at = &self.state.stopped_at;
        let mut tick = stopped_at.load(Ordering::Acquire);
        while tick != RUNS {
            // No reader looks at it before the clock runs.
            let ahead = tick.wrapping_sub(monotonic_nanos());
            self.state.ahead.store(ahead, Ordering::Relaxed);
            match stopped_at.compare_exchange(tick, RUNS, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(moved) => tick = moved,
            }
        }
        false
    }

    /// Whether the clock stands.
    ///
    /// # Examples
    ///
    /// ```
    /// let hand = corespun::clock::StoppableClock::new();
    /// hand.stop();
    /// assert!(hand.is_stopped());
    /// ```
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.state.stopped_at.load(Ordering::Acquire) != RUNS
    }

    /// Moves a clock that stands by `duration`, and says where to; `None` when it
    /// runs.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// let hand = corespun::clock::StoppableClock::new();
    /// assert_eq!(hand.advance_by(Duration::from_millis(1)), None);
    /// hand.stop();
    /// let begin = hand.clock().now();
    /// assert_eq!(hand.advance_by(Duration::from_millis(1)), Some(begin + 1_000_000));
    /// ```
    pub fn advance_by(&self, duration: Duration) -> Option<u64> {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let moved = |tick: u64| tick.saturating_add(nanos).min(RUNS - 1);
        let advance = |tick| (tick != RUNS).then(|| moved(tick));
        let stopped_at = &self.state.stopped_at;
        stopped_at
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, advance)
            .ok()
            .map(moved)
    }
}
