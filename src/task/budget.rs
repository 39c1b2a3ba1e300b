//! What one poll of a task may take: a task whose sources are always ready gives
//! way after so many items, without its author having thought of it.
//!
//! Each poll of a task starts with a budget. Every leaf of this crate that can be
//! ready without end (channels, semaphores, streams, timers that are due, tasks that
//! have ended) takes one unit for each item it hands out, and once there is none
//! left it wakes the task and is pending, so that the task goes behind the others.
//! A future polled outside of a task has no limit.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project::pin_project;

use crate::thread::local::Local;

/// Units per poll, as tokio's.
pub(super) const PER_POLL: u32 = 128;
/// The budget of what has none.
const UNLIMITED: u32 = u32::MAX;

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
}

impl Drop for Spent {
    #[inline]
    fn drop(&mut self) {
        if self.restore != UNLIMITED {
            Local::with_current(|local| local.budget.set(self.restore));
        }
    }
}

/// Takes one unit of the current task's budget, or wakes it and is pending.
#[inline]
pub(crate) fn poll_budget(cx: &mut Context<'_>) -> Poll<Spent> {
    let budget = Local::with_current(|local| {
        let budget = local.budget.get();
        if budget != UNLIMITED && budget > 0 {
            local.budget.set(budget - 1);
        }
        budget
    });
    match budget {
        Some(0) => {
            cx.waker().wake_by_ref();
            Poll::Pending
        }
        Some(restore) => Poll::Ready(Spent { restore }),
        None => Poll::Ready(Spent { restore: UNLIMITED }),
    }
}

/// Whether the poll of the current task has budget left. Outside of a task it
/// has.
pub(crate) fn has_budget() -> bool {
    Local::with_current(|local| local.budget.get()) != Some(0)
}

/// Takes one unit of the task's budget for this poll; once there is none left,
/// gives way to the other tasks, the pollers and the timers as
/// [`yield_now`](super::yield_now) does.
///
/// For loops over work that never waits: cheap enough to be called for each item.
///
/// # Cancel safety
///
/// Cancelled, nothing is taken.
///
/// # Examples
///
/// ```
/// use corespun::{task, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let sum = runner.enter(|| task::spawn_local(async {
///     let mut sum = 0u64;
///     for item in 0..1000 {
///         sum += item;
///         task::consume_budget().await;
///     }
///     sum
/// }));
/// let mut polls = 0;
/// while !sum.is_finished() {
///     runner.poll(0, 0);
///     polls += 1;
/// }
/// assert_eq!(polls, 1000 / 128 + 1);
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
pub async fn consume_budget() {
    poll_fn(|cx| {
        ready!(poll_budget(cx)).progressed();
        Poll::Ready(())
    })
    .await
}

/// Runs `future` without a budget: it takes as much in one poll as is ready.
///
/// # Examples
///
/// ```
/// use corespun::{task, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let done = runner.enter(|| task::spawn_local(task::unconstrained(async {
///     for _ in 0..1000 {
///         task::consume_budget().await;
///     }
/// })));
/// runner.poll(0, 0);
/// assert!(done.is_finished());
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
pub fn unconstrained<F: Future>(future: F) -> Unconstrained<F> {
    Unconstrained { future }
}

/// The future of [`unconstrained`].
///
/// # Examples
///
/// ```
/// use corespun::{task, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let greedy = task::unconstrained(async {
///     for _ in 0..1000 {
///         task::consume_budget().await;
///     }
/// });
/// let done = runner.enter(|| task::spawn_local(async {
///     greedy.await;
///     // Only what is inside is without a budget.
///     for _ in 0..1000 {
///         task::consume_budget().await;
///     }
/// }));
/// runner.poll(0, 0);
/// assert!(!done.is_finished());
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[pin_project]
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct Unconstrained<F> {
    #[pin]
    future: F,
}

/// Gives a task its budget back, also when the poll in between unwinds.
struct Restore(u32);

impl Drop for Restore {
    fn drop(&mut self) {
        Local::with_current(|local| local.budget.set(self.0));
    }
}

impl<F: Future> Future for Unconstrained<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let _restore = Local::with_current(|local| local.budget.replace(UNLIMITED)).map(Restore);
        self.project().future.poll(cx)
    }
}
