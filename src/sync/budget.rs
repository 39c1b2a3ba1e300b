//! What the poll of a task under way may still take from sources that are ready without end.
//!
//! On this floor, because the sources are on every floor above: sockets and files, channels, timers,
//! joins. Each takes one unit for each item it hands out, errors and ends of streams included: a loop
//! over those is as endless. Once there is none left it wakes the task and is pending, so that the
//! task goes behind the others. What is polled outside of a task has no limit.

use std::cell::Cell;
use std::future::poll_fn;
use std::task::{Context, Poll, ready};

/// Units per poll of a task, as tokio's.
pub(crate) const PER_POLL: u32 = 128;
/// The budget of what has none.
pub(crate) const UNLIMITED: u32 = u32::MAX;

thread_local! {
    /// Of the innermost poll of a task on this OS thread.
    static BUDGET: Cell<u32> = const { Cell::new(UNLIMITED) };
}

/// Sets the budget; returns what it was, for the caller to give back.
#[inline]
pub(crate) fn replace(budget: u32) -> u32 {
    BUDGET.replace(budget)
}

/// Leave to hand out one item; dropped unused, the unit goes back.
pub(crate) struct Spent {
    restore: u32,
}

impl Spent {
    /// The item was handed out.
    #[inline]
    pub(crate) fn progressed(mut self) {
        self.restore = UNLIMITED;
    }

    /// As [`progressed`](Self::progressed) if `polled` is ready.
    #[inline]
    pub(crate) fn on<T>(self, polled: Poll<T>) -> Poll<T> {
        if polled.is_ready() {
            self.progressed();
        }
        polled
    }
}

impl Drop for Spent {
    #[inline]
    fn drop(&mut self) {
        if self.restore != UNLIMITED {
            BUDGET.set(self.restore);
        }
    }
}

/// Takes one unit of the current task's budget, or wakes it and is pending.
#[inline]
pub(crate) fn poll_budget(cx: &mut Context<'_>) -> Poll<Spent> {
    poll_budget_of(1, cx)
}

/// As [`poll_budget`], for an item that is worth several units; the last one of a poll gets what is
/// left.
#[inline]
pub(crate) fn poll_budget_of(units: u32, cx: &mut Context<'_>) -> Poll<Spent> {
    let restore = BUDGET.get();
    if restore == UNLIMITED {
        return Poll::Ready(Spent { restore });
    }
    if restore == 0 {
        cx.waker().wake_by_ref();
        return Poll::Pending;
    }
    BUDGET.set(restore.saturating_sub(units));
    Poll::Ready(Spent { restore })
}

/// Takes one unit, at once or after the others' turn.
pub(crate) async fn take() {
    poll_fn(|cx| {
        ready!(poll_budget(cx)).progressed();
        Poll::Ready(())
    })
    .await
}

/// Whether the poll of the current task has budget left. Outside of a task it has.
pub(crate) fn is_left() -> bool {
    BUDGET.get() != 0
}
