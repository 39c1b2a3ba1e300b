//! Giving way to the other tasks, the pollers and the timers of a thread.

use std::pin::Pin;
use std::task::{Context, Poll};

/// Lets everything else on the thread have its turn: the task goes behind the messages
/// and tasks that wait, and active pollers, and timers that are due, run before it.
/// Where there is nothing of these, it goes on within the same poll of the thread.
///
/// # Examples
///
/// ```
/// # let mut runner = corespun::thread::ThreadLib::new().thread().build()?.attach();
/// let handle = runner.enter(|| corespun::task::spawn_local(async {
///     corespun::task::yield_now().await;
/// }));
/// runner.poll(1, 0);
/// assert!(!handle.is_finished());
/// runner.poll(1, 0);
/// assert!(handle.is_finished());
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
pub fn yield_now() -> YieldNow {
    YieldNow { yielded: false }
}

/// The future of [`yield_now`].
///
/// # Examples
///
/// ```
/// use std::{cell::RefCell, rc::Rc};
/// use corespun::{task, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let order = Rc::new(RefCell::new(Vec::new()));
/// let both = runner.enter(|| ["a", "b"].map(|name| {
///     let order = order.clone();
///     task::spawn_local(async move {
///         for round in [1, 2] {
///             order.borrow_mut().push((name, round));
///             task::yield_now().await;
///         }
///     })
/// }));
/// while !both.iter().all(|task| task.is_finished()) {
///     runner.poll(0, 0);
/// }
/// assert_eq!(*order.borrow(), [("a", 1), ("b", 1), ("a", 2), ("b", 2)]);
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct YieldNow {
    yielded: bool,
}

impl Future for YieldNow {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.yielded {
            return Poll::Ready(());
        }
        self.yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
