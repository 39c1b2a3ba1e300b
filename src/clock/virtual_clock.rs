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
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use corespun::{clock::VirtualClock, task, thread::ThreadLib, time};
///
/// let hand = VirtualClock::new(1_000_000);
/// let library = ThreadLib::builder().clock(hand.clock()).build();
/// let mut runner = library.thread().build()?.attach();
/// let nap = runner.enter(|| task::spawn_local(time::sleep(Duration::from_secs(3600))));
/// runner.poll(0, 0);
/// // An hour passes.
/// hand.advance_by(Duration::from_secs(3600));
/// while runner.poll(0, 0).is_busy() {}
/// assert!(nap.is_finished());
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
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
    ///
    /// # Examples
    ///
    /// ```
    /// let hand = corespun::clock::VirtualClock::new(1_000_000);
    /// assert_eq!(hand.now(), 0);
    /// ```
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
    ///
    /// # Examples
    ///
    /// ```
    /// let hand = corespun::clock::VirtualClock::new(1_000_000);
    /// // Two libraries that share their time.
    /// let (one, other) = (hand.clock(), hand.clock());
    /// hand.advance(5);
    /// assert_eq!((one.now(), other.now()), (5, 5));
    /// ```
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
    ///
    /// # Examples
    ///
    /// ```
    /// let hand = corespun::clock::VirtualClock::new(1_000);
    /// assert_eq!(hand.advance(3), 3);
    /// assert_eq!(hand.advance(4), 7);
    /// ```
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
