//! Waiting for a condition that only looking at it shows.

use std::cell::Cell;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use crate::sync::budget::poll_budget;
use crate::thread::{Activity, Poller};

/// Calls `f` once in every poll of the thread, as an active poller, until it is
/// ready. It is called for the first time when the future is first polled.
///
/// # Panics
///
/// The future panics when polled outside of a SpdkThread, and when `f` panicked,
/// which was reported as every poller's panic is.
///
/// # Cancel safety
///
/// Dropping it unregisters the poller.
///
/// # Examples
///
/// ```
/// use std::task::Poll;
/// use corespun::{stream, task, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let mut looks = 0;
/// let found = runner.enter(|| task::spawn_local(stream::poll_until(move || {
///     looks += 1;
///     if looks < 5 { Poll::Pending } else { Poll::Ready(looks) }
/// })));
/// let mut polls = 0;
/// while !found.is_finished() {
///     runner.poll(0, 0);
///     polls += 1;
/// }
/// assert_eq!(futures::executor::block_on(found).unwrap(), 5);
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
pub fn poll_until<T, F>(f: F) -> PollUntil<T, F>
where
    F: FnMut() -> Poll<T> + 'static,
    T: 'static,
{
    PollUntil {
        f: Some(f),
        looking: None,
    }
}

struct Found<T> {
    value: Cell<Option<T>>,
    waker: Cell<Option<Waker>>,
}

/// Wakes the waiting task also when the closure is dropped without a value.
struct WakeOnDrop<T>(Rc<Found<T>>);

impl<T> Drop for WakeOnDrop<T> {
    fn drop(&mut self) {
        if let Some(waker) = self.0.waker.take() {
            waker.wake();
        }
    }
}

/// The future of [`poll_until`].
///
/// # Examples
///
/// Waits for a flag whose change wakes no task, such as one in a device's memory:
///
/// ```
/// use std::{cell::Cell, rc::Rc, task::Poll};
/// use corespun::{stream, task, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let ready = Rc::new(Cell::new(false));
/// let seen = ready.clone();
/// let up = runner.enter(|| task::spawn_local(stream::poll_until(move || match seen.get() {
///     true => Poll::Ready(()),
///     false => Poll::Pending,
/// })));
/// runner.poll(0, 0);
/// assert!(runner.has_active_pollers());
/// ready.set(true);
/// runner.poll(0, 0);
/// runner.poll(0, 0);
/// assert!(up.is_finished() && !runner.has_pollers());
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[must_use = "futures do nothing unless awaited"]
pub struct PollUntil<T, F> {
    f: Option<F>,
    looking: Option<(Rc<Found<T>>, Poller)>,
}

impl<T, F> Unpin for PollUntil<T, F> {}

impl<T, F> Future for PollUntil<T, F>
where
    F: FnMut() -> Poll<T> + 'static,
    T: 'static,
{
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let budget = ready!(poll_budget(cx));
        if let Some((found, poller)) = &self.looking {
            if let Some(value) = found.value.take() {
                budget.progressed();
                self.looking = None;
                return Poll::Ready(value);
            }
            assert!(
                poller.state() != crate::thread::PollerState::Unregistered,
                "the closure of poll_until panicked, or its thread has exited"
            );
            found.waker.set(Some(cx.waker().clone()));
            return Poll::Pending;
        }
        let mut f = self.f.take().expect("polled after completion");
        if let Poll::Ready(value) = f() {
            budget.progressed();
            return Poll::Ready(value);
        }
        let found = Rc::new(Found {
            value: Cell::new(None),
            waker: Cell::new(Some(cx.waker().clone())),
        });
        let looking = WakeOnDrop(found.clone());
        let poller = Poller::builder().register_with(move |poller| {
            move || {
                let Poll::Ready(value) = f() else {
                    return Activity::Idle;
                };
                looking.0.value.set(Some(value));
                // Drops this closure, which wakes the task.
                poller.unregister();
                Activity::Busy
            }
        });
        match poller {
            Ok(poller) => self.looking = Some((found, poller)),
            Err(error) => panic!("poll_until cannot look: {error}"),
        }
        Poll::Pending
    }
}

impl<T, F> fmt::Debug for PollUntil<T, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PollUntil").finish_non_exhaustive()
    }
}
