//! The one timer future, on which the others of this module rest: an entry of
//! its thread's timer queue, taken out at once when it is dropped.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use crate::sync::budget::poll_budget;
use crate::thread::local::{Local, TimerTarget};
use crate::thread::message::Message;
use crate::thread::shared::Shared;
use crate::thread::timer_queue::TimerKey;

/// Completes once `duration` has passed, counted from now on a SpdkThread, from
/// the first poll elsewhere.
///
/// It completes in the first poll of the thread that begins at or after the
/// deadline: in poll mode that is a fraction of a microsecond late. One that is
/// due when it is first polled completes at once, but takes a unit of its task's
/// budget as any source that is always ready ([`consume_budget`]), so that a loop
/// over `sleep(Duration::ZERO)` gives way.
///
/// [`consume_budget`]: crate::task::consume_budget
///
/// # Cancel safety
///
/// Dropping it cancels the timer at once.
///
/// # Panics
///
/// The future panics when polled outside of a SpdkThread.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use corespun::{task, thread::ThreadLib, time};
///
/// let (clock, hand) = corespun::clock::Clock::virtual_at(1_000_000);
/// let library = ThreadLib::builder().clock(clock).build();
/// let mut runner = library.thread().build()?.attach();
/// let nap = runner.enter(|| task::spawn_local(time::sleep(Duration::from_micros(5))));
/// runner.poll(0, 0);
/// hand.advance(5);
/// runner.poll(0, 0);
/// runner.poll(0, 0);
/// assert!(nap.is_finished());
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
pub fn sleep(duration: Duration) -> Sleep {
    let when = Local::with_current(|local| When::At(deadline(local, duration)));
    Sleep {
        when: when.unwrap_or(When::After(duration)),
        armed: None,
    }
}

/// Completes once the library's clock reads `tick` or later; otherwise as
/// [`sleep`].
///
/// # Panics
///
/// The future panics when polled outside of a SpdkThread.
///
/// # Examples
///
/// ```
/// use corespun::{task, thread::ThreadLib, time};
///
/// let (clock, hand) = corespun::clock::Clock::virtual_at(1_000_000);
/// let mut runner = ThreadLib::builder().clock(clock).build().thread().build()?.attach();
/// let nap = runner.enter(|| task::spawn_local(time::sleep_until(5)));
/// runner.poll(0, 0);
/// hand.advance(5);
/// runner.poll(0, 0);
/// runner.poll(0, 0);
/// assert!(nap.is_finished());
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
pub fn sleep_until(tick: u64) -> Sleep {
    Sleep {
        when: When::At(tick),
        armed: None,
    }
}

pub(super) fn deadline(local: &Local, duration: Duration) -> u64 {
    let clock = &local.shared.library.clock;
    clock.now().saturating_add(clock.ticks_from(duration))
}

enum When {
    After(Duration),
    At(u64),
}

/// The future of [`sleep`] and [`sleep_until`].
///
/// # Examples
///
/// One sleep can be awaited by reference again and again, beside other things:
///
/// ```
/// use std::time::Duration;
/// use corespun::{local::mpsc, task, thread::ThreadLib, time};
/// use futures::future::{Either, select};
///
/// let (clock, hand) = corespun::clock::Clock::virtual_at(1_000_000);
/// let mut runner = ThreadLib::builder().clock(clock).build().thread().build()?.attach();
/// let (sender, mut requests) = mpsc::unbounded();
/// let served = runner.enter(|| task::spawn_local(async move {
///     let mut shutdown = time::sleep(Duration::from_micros(10));
///     let mut served = 0;
///     loop {
///         match select(Box::pin(requests.recv()), &mut shutdown).await {
///             Either::Left(_) => served += 1,
///             Either::Right(_) => return served,
///         }
///     }
/// }));
/// for _ in 0..3 {
///     sender.send("read").unwrap();
///     runner.poll(0, 0);
/// }
/// hand.advance(10);
/// while !served.is_finished() {
///     runner.poll(0, 0);
/// }
/// assert_eq!(futures::executor::block_on(served).unwrap(), 3);
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[must_use = "futures do nothing unless awaited"]
pub struct Sleep {
    when: When,
    armed: Option<Armed>,
}

/// An entry in a thread's timer queue.
struct Armed {
    thread: Arc<Shared>,
    key: TimerKey,
}

impl Sleep {
    /// The deadline in ticks, once it is known.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use corespun::{thread::ThreadLib, time};
    ///
    /// let (clock, hand) = corespun::clock::Clock::virtual_at(1_000_000);
    /// let mut runner = ThreadLib::builder().clock(clock).build().thread().build()?.attach();
    /// hand.advance(100);
    /// let here = runner.enter(|| time::sleep(Duration::from_micros(5)));
    /// assert_eq!(here.deadline(), Some(105));
    /// // Without a thread there is no clock to count from.
    /// assert_eq!(time::sleep(Duration::from_micros(5)).deadline(), None);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn deadline(&self) -> Option<u64> {
        match self.when {
            When::At(tick) => Some(tick),
            When::After(_) => None,
        }
    }

    /// Whether it completed, or would if it were polled now. `false` before its
    /// deadline is known.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use corespun::{thread::ThreadLib, time};
    ///
    /// let (clock, hand) = corespun::clock::Clock::virtual_at(1_000_000);
    /// let mut runner = ThreadLib::builder().clock(clock).build().thread().build()?.attach();
    /// let nap = runner.enter(|| time::sleep(Duration::from_micros(5)));
    /// assert!(!runner.enter(|| nap.is_elapsed()));
    /// hand.advance(5);
    /// assert!(runner.enter(|| nap.is_elapsed()));
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn is_elapsed(&self) -> bool {
        match (self.deadline(), &self.armed) {
            (Some(deadline), Some(armed)) => armed.thread.library.clock.now() >= deadline,
            (Some(deadline), None) => {
                let now = Local::with_current(|local| local.shared.library.clock.now());
                now.is_some_and(|now| now >= deadline)
            }
            (None, _) => false,
        }
    }

    /// Moves the deadline to `tick`, earlier or later, whether or not it has
    /// completed. On the thread that polled it last, the task that waits is
    /// woken at the new deadline without polling it again; elsewhere, poll it.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use corespun::{task, thread::ThreadLib, time};
    ///
    /// let (clock, hand) = corespun::clock::Clock::virtual_at(1_000_000);
    /// let mut runner = ThreadLib::builder().clock(clock).build().thread().build()?.attach();
    /// let nap = runner.enter(|| {
    ///     task::spawn_local(async {
    ///         let mut sleep = time::sleep(Duration::from_secs(3600));
    ///         sleep.reset(5);
    ///         sleep.await;
    ///     })
    /// });
    /// runner.poll(0, 0);
    /// hand.advance(5);
    /// runner.poll(0, 0);
    /// runner.poll(0, 0);
    /// assert!(nap.is_finished());
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn reset(&mut self, tick: u64) {
        self.when = When::At(tick);
        let here = self.armed.as_ref().and_then(|armed| {
            let local = armed.thread.current_local()?;
            let target = local.timers.borrow_mut().remove(armed.key)?;
            Some(local.insert_timer(tick, target))
        });
        match (here, &mut self.armed) {
            (Some(key), Some(armed)) => armed.key = key,
            _ => self.disarm(),
        }
    }

    /// [`Sleep::reset`] to `duration` from now; from the next poll when no
    /// SpdkThread is current.
    ///
    /// # Examples
    ///
    /// Puts an idle timeout off with every request:
    ///
    /// ```
    /// use std::time::Duration;
    /// use corespun::{task, thread::ThreadLib, time};
    ///
    /// let (clock, hand) = corespun::clock::Clock::virtual_at(1_000_000);
    /// let mut runner = ThreadLib::builder().clock(clock).build().thread().build()?.attach();
    /// let ended = runner.enter(|| task::spawn_local(async {
    ///     let mut idle = time::sleep(Duration::from_micros(10));
    ///     for _request in 0..3 {
    ///         time::sleep(Duration::from_micros(8)).await;
    ///         idle.reset_after(Duration::from_micros(10));
    ///     }
    ///     idle.await;
    ///     time::now()
    /// }));
    /// while !ended.is_finished() {
    ///     runner.poll(0, 0);
    ///     hand.advance(1);
    /// }
    /// assert!(futures::executor::block_on(ended).unwrap() >= 3 * 8 + 10);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn reset_after(&mut self, duration: Duration) {
        match Local::with_current(|local| deadline(local, duration)) {
            Some(tick) => self.reset(tick),
            None => {
                self.disarm();
                self.when = When::After(duration);
            }
        }
    }

    /// Whether the deadline has passed; if not, `cx` hears of it. Takes no
    /// budget.
    ///
    /// # Panics
    ///
    /// When no SpdkThread is current.
    pub(super) fn poll_elapsed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match Local::with_current(|local| self.poll_on(local, cx)) {
            Some(ready) => ready,
            None => panic!("a Sleep must be polled on a SpdkThread: spawn the task on one"),
        }
    }

    fn poll_on(&mut self, local: &Local, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(armed) = &self.armed {
            if std::ptr::eq(&*armed.thread, &*local.shared) {
                return self.poll_armed(local, armed.key, cx);
            }
            // The task moved to another thread, perhaps of a library that counts otherwise.
            let (old, new) = (&armed.thread.library, &local.shared.library);
            if let When::At(tick) = self.when
                && !Arc::ptr_eq(old, new)
            {
                let left = tick.saturating_sub(old.clock.now());
                self.when = When::After(old.clock.duration_from(left));
            }
            self.disarm();
        }
        let deadline = match self.when {
            When::At(tick) => tick,
            When::After(duration) => deadline(local, duration),
        };
        self.when = When::At(deadline);
        if local.shared.library.clock.now() >= deadline {
            return Poll::Ready(());
        }
        let key = local.insert_timer(deadline, TimerTarget::Waker(cx.waker().clone()));
        self.armed = Some(Armed {
            thread: local.lend_shared(),
            key,
        });
        Poll::Pending
    }

    fn poll_armed(&self, local: &Local, key: TimerKey, cx: &mut Context<'_>) -> Poll<()> {
        match local.timers.borrow_mut().get_mut(key) {
            Some(TimerTarget::Waker(waker)) if waker.will_wake(cx.waker()) => return Poll::Pending,
            Some(_) => {}
            // It fired.
            None => return Poll::Ready(()),
        }
        // A waker's clone and destructor may be anything's: no borrow here.
        let mut other = cx.waker().clone();
        if let Some(TimerTarget::Waker(waker)) = local.timers.borrow_mut().get_mut(key) {
            std::mem::swap(waker, &mut other);
        }
        Poll::Pending
    }

    fn disarm(&mut self) {
        let Some(Armed { thread, key }) = self.armed.take() else {
            return;
        };
        if let Some(local) = thread.current_local() {
            local.cancel_timer(key);
            Local::give_back_shared(thread);
            return;
        }
        // Dropped off its thread: the thread takes the entry out itself. If it
        // has exited, there is none.
        let _ = thread.enqueue(Message::new(move || {
            Local::with_current(|local| local.cancel_timer(key));
        }));
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        ready!(self.poll_elapsed(cx));
        // What has elapsed stays so, should the budget make it wait.
        ready!(poll_budget(cx)).progressed();
        Poll::Ready(())
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.disarm();
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleep")
            .field("deadline", &self.deadline())
            .finish_non_exhaustive()
    }
}
