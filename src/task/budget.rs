//! What one poll of a task may take: a task whose sources are always ready gives
//! way after so many items, without its author having thought of it.
//!
//! Each poll of a task starts with a budget. Every leaf of this crate that can be
//! ready without end takes one unit for each item it hands out ([`poll_budget`]),
//! and once there is none left the task goes behind the others.
//!
//! [`poll_budget`]: crate::sync::budget::poll_budget

use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project::pin_project;

use crate::sync::budget;

/// Takes one unit of the task's budget for this poll; once there is none left,
/// gives way to the other tasks, the pollers and the timers as
/// [`yield_now`](super::yield_now) does.
///
/// For loops over work that never waits: cheap enough to be called for each item. What
/// this crate waits for does so by itself: sockets, channels, timers, locks and joins
/// take a unit for each item, and for an error or an end as well.
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
///     // Alone on its thread, it might go on in the same poll: hence the 1.
///     runner.poll(1, 0);
///     polls += 1;
/// }
/// assert_eq!(polls, 1000 / 128 + 1);
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
pub async fn consume_budget() {
    budget::take().await;
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
        budget::replace(self.0);
    }
}

impl<F: Future> Future for Unconstrained<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let _restore = Restore(budget::replace(budget::UNLIMITED));
        self.project().future.poll(cx)
    }
}
