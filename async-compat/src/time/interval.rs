//! Ticks at a fixed period.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use super::{Instant, Sleep, sleep_until};

/// A tick at once, and then one each `period`.
///
/// # Panics
///
/// When `period` is zero; outside of a runtime, and in one whose timers are disabled.
///
/// # Examples
///
/// ```
/// # use corespun_compat as tokio;
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// use tokio::time::{Duration, interval};
///
/// let mut ticks = interval(Duration::from_micros(50));
/// let first = ticks.tick().await;
/// assert_eq!(ticks.tick().await - first, Duration::from_micros(50));
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
#[track_caller]
pub fn interval(period: Duration) -> Interval {
    interval_at(Instant::now(), period)
}

/// A tick at `start`, and then one each `period`.
///
/// # Panics
///
/// As [`interval`].
#[track_caller]
pub fn interval_at(start: Instant, period: Duration) -> Interval {
    assert!(!period.is_zero(), "`period` must be non-zero.");
    Interval {
        delay: Box::pin(sleep_until(start)),
        // What is longer is as good as never, and could not be added to an instant.
        period: period.min(Duration::from_secs(86_400 * 365 * 30)),
        missed_tick_behavior: MissedTickBehavior::default(),
    }
}

/// When the next tick comes after one that was late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MissedTickBehavior {
    /// At once, until the missed ones are made up for.
    #[default]
    Burst,
    /// One period after the late one.
    Delay,
    /// At the next multiple of the period.
    Skip,
}

impl MissedTickBehavior {
    /// When the tick after the one of `due` comes, which came at `now`.
    fn next(self, due: Instant, now: Instant, period: Duration) -> Instant {
        match self {
            MissedTickBehavior::Burst => due + period,
            MissedTickBehavior::Delay => now + period,
            MissedTickBehavior::Skip => {
                let late = (now - due).as_nanos() % period.as_nanos();
                // Less than the period, which fits.
                let late = u64::try_from(late).map_or(Duration::ZERO, Duration::from_nanos);
                now + period - late
            }
        }
    }
}

/// How late a tick may come and not count as missed.
const LATE: Duration = Duration::from_millis(5);

/// Ticks at a fixed period; see [`interval`].
pub struct Interval {
    delay: Pin<Box<Sleep>>,
    period: Duration,
    missed_tick_behavior: MissedTickBehavior,
}

impl Interval {
    /// Waits for the next tick, and says when it was due.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no tick is lost.
    pub async fn tick(&mut self) -> Instant {
        poll_fn(|cx| self.poll_tick(cx)).await
    }

    /// As [`Interval::tick`].
    pub fn poll_tick(&mut self, cx: &mut Context<'_>) -> Poll<Instant> {
        ready!(self.delay.as_mut().poll(cx));
        let due = self.delay.deadline();
        let now = Instant::now();
        let next = match now > due + LATE {
            true => self.missed_tick_behavior.next(due, now, self.period),
            false => {
                let next = due.checked_add(self.period);
                next.unwrap_or_else(Instant::far_future)
            }
        };
        self.delay.as_mut().set(next);
        Poll::Ready(due)
    }

    /// The next tick comes one period from now.
    pub fn reset(&mut self) {
        self.reset_at(Instant::now() + self.period);
    }

    /// The next tick comes at once.
    pub fn reset_immediately(&mut self) {
        self.reset_at(Instant::now());
    }

    /// The next tick comes after `after`.
    pub fn reset_after(&mut self, after: Duration) {
        let deadline = Instant::now().checked_add(after);
        self.reset_at(deadline.unwrap_or_else(Instant::far_future));
    }

    /// The next tick comes at `deadline`.
    pub fn reset_at(&mut self, deadline: Instant) {
        self.delay.as_mut().reset(deadline);
    }

    /// What happens after a late tick.
    #[must_use]
    pub fn missed_tick_behavior(&self) -> MissedTickBehavior {
        self.missed_tick_behavior
    }

    /// Says what happens after a late tick.
    pub fn set_missed_tick_behavior(&mut self, behavior: MissedTickBehavior) {
        self.missed_tick_behavior = behavior;
    }

    /// The period.
    #[must_use]
    pub fn period(&self) -> Duration {
        self.period
    }
}

impl fmt::Debug for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interval")
            .field("period", &self.period)
            .field("missed_tick_behavior", &self.missed_tick_behavior)
            .finish_non_exhaustive()
    }
}
