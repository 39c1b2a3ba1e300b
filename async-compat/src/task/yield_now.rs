//! Giving way.

use std::future::poll_fn;
use std::task::Poll;

/// Lets the other tasks of the thread run, its timers and its I/O.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        if let Some(driver) = corespun::io::Driver::current() {
            driver.look_next_turn();
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
