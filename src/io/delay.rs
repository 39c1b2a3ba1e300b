//! Waits of the I/O layer itself: for real time, on the driver's turns.
//!
//! The timers of a SpdkThread are floors above, and need one. These are few and short (a try that the
//! kernel has just refused, say), so an ordered map does. A wait counts as in flight, which is what
//! makes a turn look here at all.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::op::Effect;
use super::state::Core;

/// The waits of a driver, the earliest first; the number tells equal ones apart.
#[derive(Default)]
pub(super) struct Delays(RefCell<BTreeMap<(Instant, u64), Waker>>);

impl Delays {
    /// For how long a turn may block at most.
    pub(super) fn limit(&self, limit: Option<Duration>) -> Option<Duration> {
        let Some(first) = self.first() else {
            return limit;
        };
        let left = first.saturating_duration_since(Instant::now());
        Some(limit.map_or(left, |limit| limit.min(left)))
    }

    pub(super) fn is_due(&self) -> bool {
        self.first().is_some_and(|first| first <= Instant::now())
    }

    /// Ends the waits that are due; returns how many.
    pub(super) fn end_due(&self, effects: &mut Vec<Effect>) -> usize {
        if self.0.borrow().is_empty() {
            return 0;
        }
        let now = Instant::now();
        let mut waits = self.0.borrow_mut();
        let mut ended = 0;
        while let Some(first) = waits.first_entry()
            && first.key().0 <= now
        {
            effects.push(Effect::Wake(first.remove()));
            ended += 1;
        }
        ended
    }

    /// Wakes all waiters, because there will be no more turns.
    pub(super) fn end_all(&self, effects: &mut Vec<Effect>) {
        let waits = self.0.take();
        effects.extend(waits.into_values().map(Effect::Wake));
    }

    fn first(&self) -> Option<Instant> {
        let waits = self.0.borrow();
        waits.first_key_value().map(|((first, _), _)| *first)
    }
}

/// Completes at a time; made on the OS thread whose driver is to wake it.
///
/// # Cancel safety
///
/// Dropping it forgets the wait.
pub(crate) struct Delay {
    core: Rc<Core>,
    until: Instant,
    number: Option<u64>,
}

impl Delay {
    pub(crate) fn new(core: Rc<Core>, until: Instant) -> Self {
        Delay {
            core,
            until,
            number: None,
        }
    }

    /// Takes the wait out of the driver's, if it is there.
    fn disarm(&mut self) {
        let Some(number) = self.number.take() else {
            return;
        };
        let waits = &self.core.delays.0;
        let waker = waits.borrow_mut().remove(&(self.until, number));
        if waker.is_some() {
            self.core.count_in_flight(-1);
        }
        // A foreign waker's destructor is foreign code: no borrow here.
        drop(waker);
    }
}

impl Future for Delay {
    /// An error if this is not the driver's OS thread, or the driver has ended.
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Err(error) = self.core.check_current() {
            return Poll::Ready(Err(error));
        }
        self.disarm();
        if self.until <= Instant::now() {
            return Poll::Ready(Ok(()));
        }
        let number = self.core.next_waiter();
        let waker = cx.waker().clone();
        let mut waits = self.core.delays.0.borrow_mut();
        waits.insert((self.until, number), waker);
        drop(waits);
        self.core.count_in_flight(1);
        self.number = Some(number);
        Poll::Pending
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        self.disarm();
    }
}
