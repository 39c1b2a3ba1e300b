//! What a reactor stands on: an OS thread with an I/O driver, or a core of a simulation.
//! All that differs between the two is here; what a turn does is written once, in
//! [`Reactor`](super::Reactor).

use std::io;
use std::time::Duration;

use super::hosted::Hosted;
use super::idle::Spin;
use crate::clock::Clock;
use crate::io::EnterGuard;
use crate::notify::Sleeper;
use crate::thread::{Slice, ThreadRunner, Whole};

pub(crate) trait Ground {
    /// How much of what waits a poll runs.
    type Slice: Slice;

    /// Whether the next event, if there is one, has arrived; then it is taken.
    fn next_event_arrived(&mut self) -> bool;

    /// The same, before a rest, when it is not taken.
    fn has_event_arrived(&self) -> bool;

    /// How much the poll of a thread that comes next may run; `None` to pass it over.
    fn slice(&mut self, runner: &ThreadRunner) -> Option<Self::Slice>;

    /// That poll has ended.
    fn polled(&mut self, runner: &ThreadRunner, busy: bool);

    /// Whether the next turn would find something to run there, timers apart.
    fn needs_poll(&self, hosted: &Hosted) -> bool;

    /// [`Ground::needs_poll`] when the sleep of the reactor is announced.
    fn needs_poll_before_sleep(&self, hosted: &Hosted) -> bool {
        self.needs_poll(hosted)
    }

    /// Reaps I/O, and says whether some has completed.
    fn run_io(&self) -> bool;

    /// Why no I/O will complete any more.
    fn failure(&self) -> Option<io::Error>;

    /// Between two turns, the last of which has found nothing; `has_work` says whether
    /// the next one will. With more reactors than processors, others are `waiting`.
    fn pause(&mut self, waiting: bool, has_work: bool);

    /// One step of a spin.
    fn give_way(&mut self, spin: &mut Spin, clock: &Clock);

    /// Sleeps as [`Sleeper::sleep_unless`] does, for so long at most. Says whether the
    /// sleep is over: a ground that does not block is told when it is.
    fn sleep<R>(
        &self,
        sleeper: &Sleeper,
        timeout: Option<Duration>,
        has_work: impl FnOnce() -> bool,
        around: impl FnOnce() -> R,
    ) -> bool;
}

/// An OS thread that has entered its driver: all that was sent has arrived, and nothing
/// is cut short.
impl Ground for EnterGuard {
    type Slice = Whole;

    #[inline(always)]
    fn next_event_arrived(&mut self) -> bool {
        true
    }

    #[inline(always)]
    fn has_event_arrived(&self) -> bool {
        true
    }

    #[inline(always)]
    fn slice(&mut self, _runner: &ThreadRunner) -> Option<Whole> {
        Some(Whole(0))
    }

    #[inline(always)]
    fn polled(&mut self, _runner: &ThreadRunner, _busy: bool) {}

    #[inline(always)]
    fn needs_poll(&self, hosted: &Hosted) -> bool {
        hosted.needs_poll()
    }

    fn needs_poll_before_sleep(&self, hosted: &Hosted) -> bool {
        hosted.needs_poll_before_sleep()
    }

    #[inline]
    fn run_io(&self) -> bool {
        self.driver().poll() > 0
    }

    fn failure(&self) -> Option<io::Error> {
        self.driver().failure()
    }

    fn pause(&mut self, waiting: bool, _has_work: bool) {
        if waiting {
            std::thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
    }

    fn give_way(&mut self, spin: &mut Spin, clock: &Clock) {
        spin.give_way(clock);
    }

    fn sleep<R>(
        &self,
        sleeper: &Sleeper,
        timeout: Option<Duration>,
        has_work: impl FnOnce() -> bool,
        around: impl FnOnce() -> R,
    ) -> bool {
        // Tasks that the completions wake are this reactor's own: it is awake
        // by then, and no waker has to write its eventfd.
        sleeper.sleep_unless(has_work, || {
            let _around = around();
            self.driver().park_announced(timeout, sleeper)
        });
        true
    }
}
