//! Giving way to the other tasks, the pollers and the timers of a thread.

use std::pin::Pin;
use std::task::{Context, Poll};

use super::raw;
use crate::thread::local::Local;

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
        if !raw::gives_way(cx.waker()) {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

/// Whether the poll under way has used its slice of the reactor's time, so that a long
/// loop can give way.
///
/// In tasks as `if should_yield() { yield_now().await }`; a message, poller or other
/// callback returns and goes on in another one. The poll ends with the callback that was
/// told so. The slice of a thread with 100 shares is 50 µs, that of others in proportion,
/// cut short where another thread's [latency limit](crate::thread::ThreadBuilder::latency)
/// asks for it. Never true for a thread that has its reactor for itself, is polled by hand,
/// or outside of any. Costs a look at the clock (seastar's and glommio's `need_preempt`,
/// without their timer in the kernel).
///
/// # Examples
///
/// ```
/// use corespun::{app::App, task};
///
/// let sum = App::builder().handle_signals(false).block_on(async |_app| {
///     let mut sum = 0u64;
///     for item in 0..1_000_000 {
///         sum += item;
///         if item % 1024 == 0 && task::should_yield() {
///             task::yield_now().await;
///         }
///     }
///     sum
/// })?;
/// assert_eq!(sum, 499_999_500_000);
/// # Ok::<(), corespun::app::AppError>(())
/// ```
#[must_use = "it gives way itself to nobody"]
pub fn should_yield() -> bool {
    Local::with_current(Local::slice_is_used).unwrap_or(false)
}
