//! Telling tasks of one thread that something happened, without a value.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use super::wait_list::{WaitList, WaiterKey};
use crate::sync::budget::poll_budget;

/// Wakes one of the tasks of a SpdkThread that wait for it, or all of them.
///
/// # Examples
///
/// ```
/// use std::rc::Rc;
/// use corespun::{local::Notify, task, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let ready = Rc::new(Notify::new());
/// let seen = ready.clone();
/// let waiter = runner.enter(|| task::spawn_local(async move { seen.notified().await }));
/// runner.poll(0, 0);
/// assert!(!waiter.is_finished());
/// ready.notify_one();
/// runner.poll(0, 0);
/// assert!(waiter.is_finished());
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
pub struct Notify {
    /// A notification that no waiter has taken.
    stored: Cell<bool>,
    /// How often all were notified.
    round: Cell<u64>,
    waiters: RefCell<WaitList<(), How>>,
}

/// How a waiter was notified.
enum How {
    /// Alone: if it does not take it, another one must.
    One,
    /// With all the others.
    All,
}

impl Notify {
    /// Without a notification.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::local::Notify;
    /// use futures::FutureExt;
    ///
    /// let idle = Notify::new();
    /// assert_eq!(idle.notified().now_or_never(), None);
    /// ```
    pub const fn new() -> Self {
        Notify {
            stored: Cell::new(false),
            round: Cell::new(0),
            waiters: RefCell::new(WaitList::new()),
        }
    }

    /// Wakes the task that has waited longest. If none waits, the next one to
    /// wait does not have to; several notifications that no waiter took count once.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::local::Notify;
    /// use futures::FutureExt;
    ///
    /// let work = Notify::new();
    /// // No task waits: kept for the next one, once.
    /// work.notify_one();
    /// work.notify_one();
    /// assert!(work.notified().now_or_never().is_some());
    /// assert!(work.notified().now_or_never().is_none());
    /// ```
    pub fn notify_one(&self) {
        let waker = self.waiters.borrow_mut().let_through(How::One);
        match waker {
            Some(waker) => waker.wake(),
            None => self.stored.set(true),
        }
    }

    /// Wakes all that wait, and all that hold a [`Notified`] made before, polled
    /// or not. Nothing is kept for later ones.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::local::Notify;
    /// use futures::FutureExt;
    ///
    /// let reconfigured = Notify::new();
    /// let (first, second) = (reconfigured.notified(), reconfigured.notified());
    /// reconfigured.notify_waiters();
    /// assert!(first.now_or_never().is_some());
    /// assert!(second.now_or_never().is_some());
    /// assert!(reconfigured.notified().now_or_never().is_none());
    /// ```
    pub fn notify_waiters(&self) {
        self.round.set(self.round.get() + 1);
        loop {
            let waker = self.waiters.borrow_mut().let_through(How::All);
            match waker {
                Some(waker) => waker.wake(),
                None => return,
            }
        }
    }

    /// Waits for a notification.
    ///
    /// # Cancel safety
    ///
    /// A notification that a dropped waiter was given and had not seen goes to
    /// the next.
    ///
    /// # Examples
    ///
    /// Made before the condition is looked at, it misses no notification that comes
    /// in between:
    ///
    /// ```
    /// use std::cell::Cell;
    /// use corespun::{local::Notify, task};
    ///
    /// let (closed, open) = (Notify::new(), Cell::new(1));
    /// let drained = task::scope(async |scope| {
    ///     scope.spawn(async {
    ///         open.set(open.get() - 1);
    ///         closed.notify_waiters();
    ///     });
    ///     loop {
    ///         let change = closed.notified();
    ///         if open.get() == 0 {
    ///             break;
    ///         }
    ///         change.await;
    ///     }
    /// });
    /// futures::executor::block_on(drained);
    /// assert_eq!(open.get(), 0);
    /// ```
    pub fn notified(&self) -> Notified<'_> {
        Notified {
            notify: self,
            round: self.round.get(),
            state: State::New,
        }
    }
}

impl Default for Notify {
    fn default() -> Self {
        Notify::new()
    }
}

impl fmt::Debug for Notify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notify")
            .field("stored", &self.stored.get())
            .finish_non_exhaustive()
    }
}

enum State {
    New,
    Waiting(WaiterKey),
    Done,
}

/// The future of [`Notify::notified`].
///
/// # Examples
///
/// Dropped with a notification that it has not seen, it passes that on:
///
/// ```
/// use corespun::local::Notify;
/// use futures::{FutureExt, poll};
///
/// let work = Notify::new();
/// let passed_on = async {
///     let mut first = Box::pin(work.notified());
///     assert!(poll!(&mut first).is_pending());
///     work.notify_one();
///     drop(first);
///     work.notified().now_or_never()
/// };
/// assert_eq!(futures::executor::block_on(passed_on), Some(()));
/// ```
#[must_use = "futures do nothing unless awaited"]
pub struct Notified<'a> {
    notify: &'a Notify,
    round: u64,
    state: State,
}

impl Future for Notified<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let notify = self.notify;
        match self.state {
            State::New => {
                let budget = ready!(poll_budget(cx));
                if notify.round.get() == self.round && !notify.stored.replace(false) {
                    let waker = cx.waker().clone();
                    let place = notify.waiters.borrow_mut().insert((), waker);
                    self.state = State::Waiting(place);
                    return Poll::Pending;
                }
                budget.progressed();
            }
            State::Waiting(place) => {
                let polled = notify.waiters.borrow_mut().poll(place, cx.waker());
                if let Err(_replaced_waker) = polled {
                    return Poll::Pending;
                }
            }
            State::Done => {}
        }
        self.state = State::Done;
        Poll::Ready(())
    }
}

impl Drop for Notified<'_> {
    fn drop(&mut self) {
        if let State::Waiting(place) = self.state {
            let (got, _waker) = self.notify.waiters.borrow_mut().remove(place);
            if let Some(How::One) = got {
                self.notify.notify_one();
            }
        }
    }
}

impl fmt::Debug for Notified<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notified").finish_non_exhaustive()
    }
}
