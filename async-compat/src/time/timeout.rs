//! A future with a limit on its time.

use std::future::IntoFuture;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project::pin_project;
use tokio::task::coop::has_budget_remaining;

use super::error::Elapsed;
use super::{Instant, Sleep, sleep, sleep_until};

/// Waits for `future` for `duration` at most.
///
/// The future is polled first: one that is ready at once never times out. When the time
/// is up it stays where it is, until the [`Timeout`] is dropped.
///
/// # Panics
///
/// Outside of a runtime, and in one whose timers are disabled.
///
/// # Examples
///
/// ```
/// # use corespun_compat as tokio;
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// use tokio::time::{Duration, timeout};
///
/// assert_eq!(timeout(Duration::from_secs(1), async { 42 }).await, Ok(42));
/// assert!(timeout(Duration::from_micros(50), std::future::pending::<()>()).await.is_err());
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
#[track_caller]
pub fn timeout<F: IntoFuture>(duration: Duration, future: F) -> Timeout<F::IntoFuture> {
    let delay = sleep(duration);
    Timeout {
        value: future.into_future(),
        delay,
    }
}

/// Waits for `future` until `deadline` at most; see [`timeout`].
///
/// # Panics
///
/// As [`timeout`].
#[track_caller]
pub fn timeout_at<F: IntoFuture>(deadline: Instant, future: F) -> Timeout<F::IntoFuture> {
    Timeout {
        delay: sleep_until(deadline),
        value: future.into_future(),
    }
}

/// The future of [`timeout`] and [`timeout_at`].
#[pin_project]
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct Timeout<T> {
    #[pin]
    value: T,
    #[pin]
    delay: Sleep,
}

impl<T> Timeout<T> {
    /// The future that has the limit.
    pub fn get_ref(&self) -> &T {
        &self.value
    }

    /// The future that has the limit.
    pub fn get_mut(&mut self) -> &mut T {
        &mut self.value
    }

    /// The future, without the limit.
    pub fn into_inner(self) -> T {
        self.value
    }
}

impl<T: Future> Future for Timeout<T> {
    type Output = Result<T::Output, Elapsed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(value) = this.value.poll(cx) {
            return Poll::Ready(Ok(value));
        }
        // A future that takes the whole budget at each poll must not outlast its limit.
        let elapsed = match has_budget_remaining() {
            true => this.delay.poll(cx),
            false => this.delay.poll_elapsed(cx),
        };
        elapsed.map(|()| Err(Elapsed::new()))
    }
}
