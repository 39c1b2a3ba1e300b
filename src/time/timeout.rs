//! A future with a deadline.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project::pin_project;

use super::sleep::{Sleep, sleep, sleep_until};
use crate::sync::budget;

/// Gives `future` until `duration` from now; then it is over with [`Elapsed`].
///
/// The future is polled first, so one that is ready in time, or at all when it
/// is polled, wins. It is dropped with the `Timeout`, not before.
///
/// # Panics
///
/// The result panics when it has to wait outside of a SpdkThread.
///
/// # Cancel safety
///
/// As cancel-safe as `future`.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use corespun::{task, thread::ThreadLib, time};
///
/// let (clock, hand) = corespun::clock::Clock::virtual_at(1_000_000);
/// let mut runner = ThreadLib::builder().clock(clock).build().thread().build()?.attach();
/// let never = runner.enter(|| {
///     task::spawn_local(time::timeout(Duration::from_micros(5), std::future::pending::<()>()))
/// });
/// runner.poll(0, 0);
/// hand.advance(5);
/// runner.poll(0, 0);
/// runner.poll(0, 0);
/// assert_eq!(futures::executor::block_on(never).unwrap(), Err(time::Elapsed));
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
pub fn timeout<F: IntoFuture>(duration: Duration, future: F) -> Timeout<F::IntoFuture> {
    Timeout {
        future: future.into_future(),
        deadline: sleep(duration),
    }
}

/// [`timeout`] at a tick of the library's clock.
///
/// # Examples
///
/// ```
/// use corespun::{task, thread::ThreadLib, time};
///
/// let (clock, hand) = corespun::clock::Clock::virtual_at(1_000_000);
/// let mut runner = ThreadLib::builder().clock(clock).build().thread().build()?.attach();
/// let never = runner.enter(|| {
///     task::spawn_local(time::timeout_at(5, std::future::pending::<()>()))
/// });
/// runner.poll(0, 0);
/// hand.advance(5);
/// runner.poll(0, 0);
/// runner.poll(0, 0);
/// assert!(never.is_finished());
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
pub fn timeout_at<F: IntoFuture>(tick: u64, future: F) -> Timeout<F::IntoFuture> {
    Timeout {
        future: future.into_future(),
        deadline: sleep_until(tick),
    }
}

/// The deadline of a [`Timeout`] passed before its future completed.
///
/// # Examples
///
/// It becomes the `std::io::Error` that I/O code expects:
///
/// ```
/// use std::io::{Error, ErrorKind};
/// use corespun::time::Elapsed;
///
/// assert_eq!(Error::from(Elapsed).kind(), ErrorKind::TimedOut);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the deadline passed before the operation completed")]
pub struct Elapsed;

impl From<Elapsed> for std::io::Error {
    fn from(elapsed: Elapsed) -> Self {
        std::io::Error::new(std::io::ErrorKind::TimedOut, elapsed)
    }
}

/// The future of [`timeout`] and [`timeout_at`].
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use corespun::{task, thread::ThreadLib, time};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let read = async { "data" };
/// let in_time = runner.enter(|| task::spawn_local(time::timeout(Duration::from_secs(1), read)));
/// runner.poll(0, 0);
/// assert_eq!(futures::executor::block_on(in_time).unwrap(), Ok("data"));
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[pin_project]
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct Timeout<F> {
    #[pin]
    future: F,
    deadline: Sleep,
}

impl<F> Timeout<F> {
    /// The deadline in ticks, once it is known.
    pub fn deadline(&self) -> Option<u64> {
        self.deadline.deadline()
    }

    /// The future that is waited for.
    pub fn get_ref(&self) -> &F {
        &self.future
    }

    /// The future that is waited for.
    pub fn get_mut(&mut self) -> &mut F {
        &mut self.future
    }

    /// The future, without a deadline again.
    pub fn into_inner(self) -> F {
        self.future
    }
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let had_budget = budget::is_left();
        if let Poll::Ready(output) = this.future.poll(cx) {
            return Poll::Ready(Ok(output));
        }
        if had_budget && !budget::is_left() {
            // A future that takes the whole budget each time must not keep its
            // deadline from being looked at.
            ready!(this.deadline.poll_elapsed(cx));
        } else {
            ready!(Pin::new(this.deadline).poll(cx));
        }
        Poll::Ready(Err(Elapsed))
    }
}
