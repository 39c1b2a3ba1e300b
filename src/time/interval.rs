//! Ticks at a fixed period, and what becomes of those that were not taken in time.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::stream::{FusedStream, Stream};

use super::sleep::{Sleep, sleep_until};
use crate::thread::local::Local;

/// Ticks every `period`, the first time at once.
///
/// # Panics
///
/// When `period` is zero. Ticking panics outside of a SpdkThread.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use corespun::{task, thread::ThreadLib, time};
///
/// let (clock, hand) = corespun::clock::Clock::virtual_at(1_000_000);
/// let mut runner = ThreadLib::builder().clock(clock).build().thread().build()?.attach();
/// let ticks = runner.enter(|| {
///     task::spawn_local(async {
///         let mut interval = time::interval(Duration::from_micros(10));
///         (interval.tick().await, interval.tick().await, interval.tick().await)
///     })
/// });
/// while !ticks.is_finished() {
///     runner.poll(0, 0);
///     hand.advance(1);
/// }
/// assert_eq!(futures::executor::block_on(ticks).unwrap(), (0, 10, 20));
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[track_caller]
pub fn interval(period: Duration) -> Interval {
    Interval::new(None, period)
}

/// [`interval`] with the first tick at `start`, in ticks of the library's clock.
///
/// # Panics
///
/// As [`interval`].
#[track_caller]
pub fn interval_at(start: u64, period: Duration) -> Interval {
    Interval::new(Some(start), period)
}

/// What an [`Interval`] does when whole periods passed and its ticks were not taken.
///
/// A tick that is taken late, but before the next one is due, does not move
/// those that follow under any policy.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use corespun::{task, thread::ThreadLib, time::{self, MissedTickBehavior}};
///
/// // Ticks every 10 µs, of which the second is taken 25 µs late.
/// let after = |behavior| -> Result<u64, corespun::thread::CreateError> {
///     let (clock, hand) = corespun::clock::Clock::virtual_at(1_000_000);
///     let mut runner = ThreadLib::builder().clock(clock).build().thread().build()?.attach();
///     let next = runner.enter(|| {
///         let mut interval = time::interval(Duration::from_micros(10));
///         interval.set_missed_tick_behavior(behavior);
///         task::spawn_local(async move {
///             interval.tick().await;
///             hand.advance(35);
///             interval.tick().await;
///             hand.advance(100);
///             interval.tick().await
///         })
///     });
///     while !next.is_finished() {
///         runner.poll(0, 0);
///     }
///     Ok(futures::executor::block_on(next).unwrap())
/// };
/// assert_eq!(after(MissedTickBehavior::Burst)?, 20);
/// assert_eq!(after(MissedTickBehavior::Delay)?, 45);
/// assert_eq!(after(MissedTickBehavior::Skip)?, 40);
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MissedTickBehavior {
    /// Every missed tick completes at once, one after the other, until the
    /// schedule is caught up with.
    #[default]
    Burst,
    /// The schedule starts anew at the late tick.
    Delay,
    /// Missed ticks are left out; the next one is on the old schedule.
    Skip,
}

/// Ticks at a fixed period; made by [`interval`] and [`interval_at`].
///
/// Also a `Stream` of the ticks, which never ends.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use corespun::{task, thread::ThreadLib, time};
/// use futures::StreamExt;
///
/// let (clock, hand) = corespun::clock::Clock::virtual_at(1_000_000);
/// let mut runner = ThreadLib::builder().clock(clock).build().thread().build()?.attach();
/// let ticks = runner.enter(|| {
///     let ticks = time::interval(Duration::from_micros(10));
///     task::spawn_local(ticks.take(3).collect::<Vec<_>>())
/// });
/// while !ticks.is_finished() {
///     runner.poll(0, 0);
///     hand.advance(1);
/// }
/// assert_eq!(futures::executor::block_on(ticks).unwrap(), [0, 10, 20]);
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[derive(Debug)]
pub struct Interval {
    period: Duration,
    /// `None` until the first poll of one that begins "now".
    sleep: Option<Sleep>,
    missed: MissedTickBehavior,
}

impl Interval {
    #[track_caller]
    fn new(start: Option<u64>, period: Duration) -> Self {
        assert!(!period.is_zero(), "an interval needs a period above zero");
        let start = start.or_else(|| Local::with_current(|local| local.shared.library.clock.now()));
        Interval {
            period,
            sleep: start.map(sleep_until),
            missed: MissedTickBehavior::default(),
        }
    }

    /// Waits for the next tick and returns when it was due, in ticks of the
    /// library's clock.
    ///
    /// # Panics
    ///
    /// When polled outside of a SpdkThread.
    ///
    /// # Cancel safety
    ///
    /// Cancelled, it has taken no tick.
    pub async fn tick(&mut self) -> u64 {
        poll_fn(|cx| self.poll_tick(cx)).await
    }

    /// The form of [`Interval::tick`] for hand-written futures.
    ///
    /// # Panics
    ///
    /// When called outside of a SpdkThread.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::task::{Context, Poll, Waker};
    /// use std::time::Duration;
    /// use corespun::{thread::ThreadLib, time};
    ///
    /// let (clock, hand) = corespun::clock::Clock::virtual_at(1_000_000);
    /// let mut runner = ThreadLib::builder().clock(clock).build().thread().build()?.attach();
    /// runner.enter(|| {
    ///     let mut cx = Context::from_waker(Waker::noop());
    ///     let mut ticks = time::interval(Duration::from_micros(10));
    ///     assert_eq!(ticks.poll_tick(&mut cx), Poll::Ready(0));
    ///     assert_eq!(ticks.poll_tick(&mut cx), Poll::Pending);
    /// });
    /// # drop(hand);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn poll_tick(&mut self, cx: &mut Context<'_>) -> Poll<u64> {
        let clock = Local::with_current(|local| local.shared.library.clock.clone());
        let clock = clock.expect("an Interval must be polled on a SpdkThread");
        let sleep = self.sleep.get_or_insert_with(|| sleep_until(clock.now()));
        ready!(Pin::new(&mut *sleep).poll(cx));
        let due = sleep.deadline().expect("made with a deadline");
        let period = clock.ticks_from(self.period).max(1);
        let next = due.saturating_add(period);
        let now = clock.now();
        sleep.reset(if now < next {
            next
        } else {
            match self.missed {
                MissedTickBehavior::Burst => next,
                MissedTickBehavior::Delay => now.saturating_add(period),
                MissedTickBehavior::Skip => now.saturating_add(period - (now - due) % period),
            }
        });
        Poll::Ready(due)
    }

    /// Makes the next tick one full period from now.
    ///
    /// # Panics
    ///
    /// When no SpdkThread is current.
    ///
    /// # Examples
    ///
    /// A heartbeat that is due only when nothing else was sent for a while:
    ///
    /// ```
    /// use std::time::Duration;
    /// use corespun::{task, thread::ThreadLib, time};
    ///
    /// let (clock, hand) = corespun::clock::Clock::virtual_at(1_000_000);
    /// let mut runner = ThreadLib::builder().clock(clock).build().thread().build()?.attach();
    /// let beat = runner.enter(|| task::spawn_local(async {
    ///     let mut heartbeat = time::interval(Duration::from_micros(10));
    ///     heartbeat.tick().await;
    ///     time::sleep_until(7).await;
    ///     // Something was sent.
    ///     heartbeat.reset();
    ///     heartbeat.tick().await
    /// }));
    /// while !beat.is_finished() {
    ///     // Once for the timer, once for the task it wakes.
    ///     runner.poll(0, 0);
    ///     runner.poll(0, 0);
    ///     hand.advance(1);
    /// }
    /// assert_eq!(futures::executor::block_on(beat).unwrap(), 17);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    #[track_caller]
    pub fn reset(&mut self) {
        match Local::with_current(|local| super::sleep::deadline(local, self.period)) {
            Some(tick) => self.reset_at(tick),
            None => panic!("Interval::reset needs a current SpdkThread: use `reset_at` elsewhere"),
        }
    }

    /// Makes the next tick complete at once.
    pub fn reset_immediately(&mut self) {
        // Due from the poll on: a tick in the past would count as missed.
        self.sleep = None;
    }

    /// Makes the next tick due at `tick`.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use corespun::{task, thread::ThreadLib, time};
    ///
    /// let (clock, hand) = corespun::clock::Clock::virtual_at(1_000_000);
    /// let mut runner = ThreadLib::builder().clock(clock).build().thread().build()?.attach();
    /// let ticks = runner.enter(|| task::spawn_local(async {
    ///     let mut interval = time::interval(Duration::from_micros(10));
    ///     interval.reset_at(25);
    ///     (interval.tick().await, interval.tick().await)
    /// }));
    /// while !ticks.is_finished() {
    ///     // Once for the timer, once for the task it wakes.
    ///     runner.poll(0, 0);
    ///     runner.poll(0, 0);
    ///     hand.advance(1);
    /// }
    /// assert_eq!(futures::executor::block_on(ticks).unwrap(), (25, 35));
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn reset_at(&mut self, tick: u64) {
        match &mut self.sleep {
            Some(sleep) => sleep.reset(tick),
            none => *none = Some(sleep_until(tick)),
        }
    }

    /// The period.
    pub fn period(&self) -> Duration {
        self.period
    }

    /// What happens to ticks that were not taken in time.
    pub fn missed_tick_behavior(&self) -> MissedTickBehavior {
        self.missed
    }

    /// Sets what happens to ticks that were not taken in time.
    ///
    /// # Examples
    ///
    /// A progress report that was held up is not to be repeated for each period that
    /// went by:
    ///
    /// ```
    /// use std::time::Duration;
    /// use corespun::{task, thread::ThreadLib, time::{self, MissedTickBehavior}};
    ///
    /// let (clock, hand) = corespun::clock::Clock::virtual_at(1_000_000);
    /// let mut runner = ThreadLib::builder().clock(clock).build().thread().build()?.attach();
    /// let ticks = runner.enter(|| task::spawn_local(async move {
    ///     let mut report = time::interval(Duration::from_micros(10));
    ///     report.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ///     report.tick().await;
    ///     hand.advance(45);
    ///     let late = report.tick().await;
    ///     hand.advance(5);
    ///     (late, report.tick().await)
    /// }));
    /// while !ticks.is_finished() {
    ///     runner.poll(0, 0);
    /// }
    /// assert_eq!(futures::executor::block_on(ticks).unwrap(), (10, 50));
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn set_missed_tick_behavior(&mut self, behavior: MissedTickBehavior) {
        self.missed = behavior;
    }
}

impl Stream for Interval {
    type Item = u64;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<u64>> {
        self.poll_tick(cx).map(Some)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::MAX, None)
    }
}

impl FusedStream for Interval {
    fn is_terminated(&self) -> bool {
        false
    }
}
