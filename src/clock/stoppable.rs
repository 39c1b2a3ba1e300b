//! A clock that runs and can be stopped while it runs: real time for a program,
//! and virtual time for the tests of that program.

use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{Clock, NANOS_PER_SEC, Source, monotonic_nanos};

/// What `stopped_at` holds while the clock runs.
const RUNS: u64 = u64::MAX;

#[derive(Debug)]
pub(super) struct Stoppable {
    /// Odd while a hand changes the rest, and another number after that: a reader that
    /// has read meanwhile reads again.
    version: AtomicU64,
    /// Held by the hand that changes it.
    hand: Mutex<()>,
    /// The tick it stands at, or [`RUNS`].
    stopped_at: AtomicU64,
    /// What a running clock is ahead of `CLOCK_MONOTONIC` (modulo 2⁶⁴): all that
    /// it was advanced by, less all the time that it stood.
    ahead: AtomicU64,
}

impl Stoppable {
    // Out of line, so that the clocks that threads run by stay a few instructions.
    #[inline(never)]
    pub(super) fn now(&self) -> u64 {
        // Acquire: a reader that sees a version sees what its hand has written.
        let version = self.version.load(Ordering::Acquire);
        if version.is_multiple_of(2) {
            let tick = self.shown();
            // Pairs with the fence in `change`: a reader that has seen a part of a
            // change sees its version here.
            fence(Ordering::Acquire);
            if self.version.load(Ordering::Relaxed) == version {
                return tick;
            }
        }
        self.now_after_the_hand()
    }

    #[cold]
    fn now_after_the_hand(&self) -> u64 {
        let _hand = self.hand.lock().unwrap_or_else(PoisonError::into_inner);
        self.shown()
    }

    /// What it shows, unless a hand changes it meanwhile.
    #[inline]
    fn shown(&self) -> u64 {
        match self.stopped_at.load(Ordering::Relaxed) {
            RUNS => monotonic_nanos().wrapping_add(self.ahead.load(Ordering::Relaxed)),
            tick => tick,
        }
    }

    /// Changes what it shows: one hand at a time. `f` is given the tick where it stands.
    fn change<R>(&self, f: impl FnOnce(Option<u64>) -> R) -> R {
        let _hand = self.hand.lock().unwrap_or_else(PoisonError::into_inner);
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version + 1, Ordering::Relaxed);
        // What is read of real time is later than what any reader takes for good.
        fence(Ordering::SeqCst);
        let tick = self.stopped_at.load(Ordering::Relaxed);
        let result = f((tick != RUNS).then_some(tick));
        self.version.store(version + 2, Ordering::Release);
        result
    }
}

/// Stops, moves and starts the [`Clock`]s made from it, which otherwise tick as
/// [`Clock::monotonic`] does: a tick is a nanosecond.
///
/// Clones have the same clock in hand, from any OS thread. Reading costs what reading
/// `CLOCK_MONOTONIC` costs, and four loads. A sleeper that waits for a tick of a
/// clock that is stopped or moved meanwhile has to be woken by the caller that stops
/// or moves it.
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
                version: AtomicU64::new(0),
                hand: Mutex::new(()),
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
        self.state.change(|stands| {
            if stands.is_none() {
                let now = self.state.shown().min(RUNS - 1);
                self.state.stopped_at.store(now, Ordering::Relaxed);
            }
            stands.is_none()
        })
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
        self.state.change(|stands| {
            if let Some(tick) = stands {
                let ahead = tick.wrapping_sub(monotonic_nanos());
                self.state.ahead.store(ahead, Ordering::Relaxed);
                self.state.stopped_at.store(RUNS, Ordering::Relaxed);
            }
            stands.is_some()
        })
    }

    /// Whether the clock stands.
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
        self.state.change(|stands| {
            let moved = stands?.saturating_add(nanos).min(RUNS - 1);
            self.state.stopped_at.store(moved, Ordering::Relaxed);
            Some(moved)
        })
    }
}
