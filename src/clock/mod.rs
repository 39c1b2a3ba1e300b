//! Ticks: the one unit of time inside the library, and where they come from.
//!
//! A [`Clock`] is made with the library instance and copied to each part that needs
//! the time; no clock is process-wide. Four sources: the invariant TSC (`tsc`),
//! `CLOCK_MONOTONIC` where there is no such TSC, a [`StoppableClock`] over that, and
//! a hand-advanced [`VirtualClock`] for tests and simulation.

mod stoppable;
mod tsc;
mod virtual_clock;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

pub use stoppable::StoppableClock;
pub use virtual_clock::VirtualClock;

const NANOS_PER_SEC: u64 = 1_000_000_000;

/// A source of ticks, with the rate that converts them to time.
///
/// Cloning is cheap, all clones tick alike, and any thread may read any of
/// them. Ticks start anywhere (a boot-time counter, usually): only differences
/// mean something. They never go backwards on one core, nor between cores whose
/// TSCs the kernel trusts; a virtual clock goes where it is told.
///
/// Mirrors `spdk_get_ticks` and `spdk_get_ticks_hz`.
///
/// # Examples
///
/// ```
/// use corespun::clock::Clock;
/// use std::time::Duration;
///
/// let clock = Clock::system();
/// let deadline = clock.now() + clock.ticks_from(Duration::from_micros(50));
/// while clock.now() < deadline {
///     std::hint::spin_loop();
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Clock {
    source: Source,
    hz: u64,
}

#[derive(Clone, Debug)]
enum Source {
    Tsc,
    Monotonic,
    Virtual(Arc<AtomicU64>),
    Stoppable(Arc<stoppable::Stoppable>),
}

/// Where a [`Clock`]'s ticks come from.
///
/// # Examples
///
/// ```
/// use corespun::clock::{Clock, ClockSource};
///
/// let (clock, _hand) = Clock::virtual_at(1_000);
/// assert_eq!(clock.source(), ClockSource::Virtual);
/// assert_ne!(Clock::system().source(), ClockSource::Virtual);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ClockSource {
    /// The processor's time stamp counter.
    Tsc,
    /// `CLOCK_MONOTONIC`, one tick a nanosecond.
    Monotonic,
    /// A [`VirtualClock`].
    Virtual,
    /// A [`StoppableClock`].
    Stoppable,
}

impl Clock {
    /// The highest tick rate a clock can have. Below it, a second's worth of
    /// nanoseconds times the rate fits 64 bits, which keeps every conversion
    /// free of 128-bit division.
    pub const MAX_HZ: u64 = u64::MAX / NANOS_PER_SEC;

    /// The best clock of this machine: the TSC if it ticks at one rate in every
    /// power state and the kernel trusts it too, else `CLOCK_MONOTONIC`.
    ///
    /// Measuring the TSC's rate keeps the calling thread busy for 2 ms, so make
    /// one and clone it.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::clock::{Clock, ClockSource};
    ///
    /// let clock = Clock::system();
    /// // What the TSC of this machine is good for.
    /// match clock.source() {
    ///     ClockSource::Tsc => assert!(clock.hz() > 1_000_000),
    ///     _ => assert_eq!(clock.hz(), 1_000_000_000),
    /// }
    /// ```
    #[must_use]
    pub fn system() -> Self {
        match tsc::calibrated_hz() {
            Some(hz) => Self {
                source: Source::Tsc,
                hz,
            },
            None => Self::monotonic(),
        }
    }

    /// `CLOCK_MONOTONIC` in nanoseconds, whatever the machine has. Reading it
    /// costs about three times as much as the TSC (31 against 10 ns).
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::clock::{Clock, ClockSource};
    ///
    /// let clock = Clock::monotonic();
    /// assert_eq!((clock.source(), clock.hz()), (ClockSource::Monotonic, 1_000_000_000));
    /// assert!(clock.now() <= clock.now());
    /// ```
    #[must_use]
    pub fn monotonic() -> Self {
        Self {
            source: Source::Monotonic,
            hz: NANOS_PER_SEC,
        }
    }

    /// A clock of `hz` ticks a second that stands at 0 and moves only when the
    /// returned [`VirtualClock`] moves it.
    ///
    /// # Panics
    ///
    /// When `hz` is 0 or above [`MAX_HZ`](Self::MAX_HZ).
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::clock::Clock;
    ///
    /// let (clock, hand) = Clock::virtual_at(1_000_000);
    /// hand.advance(250);
    /// assert_eq!(clock.now(), 250);
    /// assert_eq!(clock.duration_from(250).as_micros(), 250);
    /// ```
    #[must_use]
    #[track_caller]
    pub fn virtual_at(hz: u64) -> (Self, VirtualClock) {
        let hand = VirtualClock::new(hz);
        (hand.clock(), hand)
    }

    /// The current tick.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::clock::Clock;
    ///
    /// let clock = Clock::system();
    /// let begin = clock.now();
    /// let sum: u64 = (1..=100).sum();
    /// let took = clock.duration_from(clock.now() - begin);
    /// assert!(sum == 5050 && took < std::time::Duration::from_secs(60));
    /// ```
    #[inline]
    #[must_use]
    pub fn now(&self) -> u64 {
        match &self.source {
            Source::Tsc => tsc::read(),
            Source::Monotonic => monotonic_nanos(),
            Source::Virtual(ticks) => ticks.load(Ordering::Acquire),
            Source::Stoppable(clock) => clock.now(),
        }
    }

    /// Ticks per second, at least 1.
    #[inline]
    #[must_use]
    pub fn hz(&self) -> u64 {
        self.hz
    }

    /// Where the ticks come from.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::clock::{Clock, ClockSource};
    ///
    /// assert_eq!(Clock::monotonic().source(), ClockSource::Monotonic);
    /// ```
    #[must_use]
    pub fn source(&self) -> ClockSource {
        match self.source {
            Source::Tsc => ClockSource::Tsc,
            Source::Monotonic => ClockSource::Monotonic,
            Source::Virtual(_) => ClockSource::Virtual,
            Source::Stoppable(_) => ClockSource::Stoppable,
        }
    }

    /// The fewest ticks that last at least `duration`, for timers: one that
    /// waits so many ticks is never early. A duration beyond the tick counter
    /// becomes `u64::MAX`.
    #[inline]
    #[must_use]
    pub fn ticks_from(&self, duration: Duration) -> u64 {
        let whole = duration.as_secs().saturating_mul(self.hz);
        let part = u64::from(duration.subsec_nanos()) * self.hz;
        whole.saturating_add(part.div_ceil(NANOS_PER_SEC))
    }

    /// The shortest duration, in whole nanoseconds, that lasts at least `ticks`:
    /// after a sleep of that length the ticks have gone by. Every tick count fits.
    #[inline]
    #[must_use]
    pub fn duration_from(&self, ticks: u64) -> Duration {
        let nanos = (ticks % self.hz * NANOS_PER_SEC).div_ceil(self.hz);
        Duration::from_secs(ticks / self.hz) + Duration::from_nanos(nanos)
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
fn monotonic_nanos() -> u64 {
    // The call fails only for an unknown clock or a bad address.
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has CLOCK_MONOTONIC");
    now.tv_sec() as u64 * NANOS_PER_SEC + now.tv_nsec() as u64
}
