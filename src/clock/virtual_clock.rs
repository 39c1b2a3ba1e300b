//! Time moved by hand: the writing end of a virtual [`Clock`]. Tests and
//! simulations hold it; the library only ever sees the `Clock`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Clock, Source};

/// Moves the [`Clock`]s made from it; see [`Clock::virtual_at`].
///
/// Clones move the same time, from any thread. A move is visible to every read
/// that happens after it, and publishes what the mover wrote before.
#[derive(Clone, Debug)]
pub struct VirtualClock {
    ticks: Arc<AtomicU64>,
    hz: u64,
}

impl VirtualClock {
    /// Virtual time of `hz` ticks a second, standing at 0.
    ///
    /// # Panics
    ///
    /// When `hz` is 0 or above [`Clock::MAX_HZ`].
    #[must_use]
    #[track_caller]
    pub fn new(hz: u64) -> Self {
        assert!(
            (1..=Clock::MAX_HZ).contains(&hz),
            "a clock ticks 1 to {} times a second, not {hz}",
            Clock::MAX_HZ
        );
        Self {
            ticks: Arc::new(AtomicU64::new(0)),
            hz,
        }
    }

    /// A clock that shows this time.
    #[must_use]
    pub fn clock(&self) -> Clock {
        Clock {
            source: Source::Virtual(Arc::clone(&self.ticks)),
            hz: self.hz,
        }
    }

    /// The current tick.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.ticks.load(Ordering::Acquire)
    }

    /// Moves time forward and returns the new tick. Time stops at `u64::MAX`.
    pub fn advance(&self, ticks: u64) -> u64 {
        let before = self
            .ticks
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| {
                Some(now.saturating_add(ticks))
            })
            .unwrap_or_else(|now| now);
        before.saturating_add(ticks)
    }

    /// Moves time forward by the fewest ticks that last at least `duration`, and
    /// returns the new tick.
    pub fn advance_by(&self, duration: Duration) -> u64 {
        self.advance(self.clock().ticks_from(duration))
    }

    /// Sets the time to `tick`, which may lie in the past: a way to see how code
    /// takes a clock that jumps, since real ones do not go back.
    pub fn set(&self, tick: u64) {
        self.ticks.store(tick, Ordering::Release);
    }
}
