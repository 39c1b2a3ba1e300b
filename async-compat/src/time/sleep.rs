//! A future that is ready at a point in time.

use std::fmt;
use std::marker::PhantomPinned;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use corespun::thread::SpdkThread;
use pin_project::pin_project;
use tokio::task::coop::poll_proceed;

use super::Instant;
use crate::runtime::Handle;
#[cfg(feature = "test-util")]
use crate::runtime::context;
use crate::task::JoinHandle;

/// Waits until `deadline`.
///
/// # Cancel safety
///
/// Cancel safe: a new one for the same deadline goes on waiting.
///
/// # Panics
///
/// Outside of a runtime, and in one whose timers are disabled.
#[track_caller]
pub fn sleep_until(deadline: Instant) -> Sleep {
    new(deadline, Timer::Unarmed)
}

#[track_caller]
fn new(deadline: Instant, timer: Timer) -> Sleep {
    let handle = Handle::current();
    handle.check_time();
    Sleep {
        deadline,
        handle,
        timer,
        polled: false,
        elapsed: false,
        _pinned: PhantomPinned,
    }
}

/// Waits for `duration`.
///
/// # Cancel safety
///
/// Cancel safe: nothing but the wait is lost.
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
/// use tokio::time::{Duration, Instant, sleep};
///
/// let begin = Instant::now();
/// sleep(Duration::from_micros(50)).await;
/// assert!(begin.elapsed() >= Duration::from_micros(50));
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
#[track_caller]
pub fn sleep(duration: Duration) -> Sleep {
    match Instant::now().checked_add(duration) {
        // The thread's clock is read here, so that no poll has to compare the two.
        Some(deadline) if SpdkThread::has_current() => {
            new(deadline, Timer::Thread(corespun::time::sleep(duration)))
        }
        deadline => sleep_until(deadline.unwrap_or_else(Instant::far_future)),
    }
}

/// The future of [`sleep`] and [`sleep_until`].
#[pin_project]
#[must_use = "futures do nothing unless awaited"]
pub struct Sleep {
    deadline: Instant,
    handle: Handle,
    timer: Timer,
    polled: bool,
    elapsed: bool,
    /// tokio's is not `Unpin` either.
    #[pin]
    _pinned: PhantomPinned,
}

enum Timer {
    Unarmed,
    /// In the queue of a SpdkThread.
    Thread(corespun::time::Sleep),
    /// On the runtime, for a poll on an OS thread that has no SpdkThread.
    Remote(Remote),
}

/// A task that waits in another's place; it ends with this.
struct Remote(JoinHandle<()>);

impl Drop for Remote {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Sleep {
    /// When it is ready.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether that is past.
    #[must_use]
    pub fn is_elapsed(&self) -> bool {
        let armed = self.polled && !matches!(self.timer, Timer::Unarmed);
        self.elapsed || armed && Instant::now() >= self.deadline
    }

    /// Moves the deadline, earlier or later, whether or not it has passed. The task
    /// that waits is woken then, without polling this again.
    pub fn reset(self: Pin<&mut Self>, deadline: Instant) {
        let this = self.project();
        *this.deadline = deadline;
        *this.elapsed = false;
        match this.timer {
            Timer::Thread(timer) if SpdkThread::has_current() => {
                timer.reset_after(deadline.saturating_duration_since(Instant::now()));
            }
            Timer::Remote(remote) => {
                // Wakes who waits; that polls, and asks anew.
                remote.0.abort();
            }
            _ => *this.timer = Timer::Unarmed,
        }
    }

    /// As [`Sleep::reset`] for an interval, which polls before it waits.
    pub(super) fn set(self: Pin<&mut Self>, deadline: Instant) {
        self.reset(deadline);
    }

    /// Polled in another runtime it goes on there, with the time it has left by the clock of
    /// the one before: either may have stood.
    #[cfg(feature = "test-util")]
    fn settled(mut self: Pin<&mut Self>) -> Pin<&mut Self> {
        let this = self.as_mut().project();
        let id = this.handle.id();
        let moved = context::with_current(|current| (current.id() != id).then(|| current.clone()));
        if let Ok(Some(current)) = moved {
            let then = Instant::from_std(this.handle.inner.clock.now());
            let left = this.deadline.saturating_duration_since(then);
            let deadline = Instant::now().checked_add(left);
            *this.deadline = deadline.unwrap_or_else(Instant::far_future);
            *this.handle = current;
        }
        self
    }

    /// Polls without taking of the budget.
    pub(super) fn poll_elapsed(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if !self.elapsed && self.handle.is_shut_down() {
            panic!("A Tokio 1.x context was found, but it is being shutdown.");
        }
        #[cfg(feature = "test-util")]
        let this = self.settled().project();
        #[cfg(not(feature = "test-util"))]
        let this = self.project();
        *this.polled = true;
        while !*this.elapsed {
            let here = SpdkThread::has_current();
            match this.timer {
                // Due by the runtime's clock, whatever the thread's says, if that may stand.
                Timer::Thread(_) if here && this.handle.inner.clock.is_due(*this.deadline) => {}
                Timer::Thread(timer) if here => ready!(Pin::new(timer).poll(cx)),
                Timer::Remote(remote) if !here => {
                    let _ = ready!(Pin::new(&mut remote.0).poll(cx));
                    *this.timer = Timer::Unarmed;
                }
                _ => *this.timer = Timer::Unarmed,
            }
            // The thread's clock may be ahead of the one that counts.
            let left = this.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                *this.elapsed = true;
                *this.timer = Timer::Unarmed;
                break;
            }
            match this.timer {
                Timer::Thread(timer) => timer.reset_after(left),
                _ if here => *this.timer = Timer::Thread(corespun::time::sleep(left)),
                _ => {
                    let (handle, deadline) = (this.handle.clone(), *this.deadline);
                    let waits = async move { sleep_until(deadline).await };
                    *this.timer = Timer::Remote(Remote(handle.spawn(waits)));
                }
            }
        }
        Poll::Ready(())
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let budget = ready!(poll_proceed(cx));
        ready!(self.poll_elapsed(cx));
        budget.made_progress();
        Poll::Ready(())
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleep")
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}
