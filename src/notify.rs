//! The sleep/wake handshake: how something that sleeps when it has nothing to
//! do is woken exactly when it must be.
//!
//! A notifier calls [`Sleeper::notify`] after it has published work; a sleeper
//! that is about to sleep calls [`Sleeper::sleep_unless`], which announces the
//! sleep first and looks for work afterwards. Each side puts a sequentially
//! consistent fence between its store and its load, so at least one of them
//! sees the other's: either the sleeper finds the work, or the notifier finds
//! the sleeper. (A release/acquire flag on both sides would lose wakes.) The
//! notifier that takes the announcement back is the only one that pays for the
//! system call, and while the sleeper is awake none does.

mod host;
#[cfg(all(test, corespun_loom))]
mod loom_tests;

use std::fmt;

use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};

pub(crate) use host::{Host, Recipient};

const AWAKE: u32 = 0;
const ASLEEP: u32 = 1;
/// An [`Observer`] is to hear of everything that is published for this sleeper. With
/// it the state is not `AWAKE`, so that a notifier that looks for that alone looks
/// no further.
const OBSERVED: u32 = 2;

/// Hears of all that is published for a sleeper, before that is woken: how a simulation
/// knows what is on its way. Called by the notifier, on any OS thread.
pub(crate) trait Observer: Send + Sync {
    /// A message was sent to a thread that the sleeper's owner polls.
    fn sent(&self, recipient: &dyn Recipient);

    /// Something was published for the owner itself.
    fn notified(&self);
}

/// Something that sleeps, and the way to wake it.
///
/// Used by every sleeper of the crate: a reactor, a stand-alone loop over
/// threads polled by hand, `block_on`.
///
/// # Examples
///
/// ```
/// use std::sync::{Arc, atomic::{AtomicBool, Ordering}};
/// use std::thread;
/// use corespun::notify::Sleeper;
///
/// let this = thread::current();
/// let sleeper = Arc::new(Sleeper::new(move || this.unpark()));
/// let work = Arc::new(AtomicBool::new(false));
/// let (waker, published) = (sleeper.clone(), work.clone());
/// let other = thread::spawn(move || {
///     published.store(true, Ordering::Release);
///     waker.notify();
/// });
/// while !work.load(Ordering::Acquire) {
///     sleeper.sleep_unless(|| work.load(Ordering::Acquire), thread::park);
/// }
/// other.join().unwrap();
/// ```
pub struct Sleeper {
    state: AtomicU32,
    /// A dormant thread of this sleeper's has a critical message.
    called: AtomicBool,
    unpark: Box<dyn Fn() + Send + Sync>,
    /// Tells the sleeper which of its dormant threads has got something to do; see
    /// [`Host`].
    rouse: Option<Box<Rouse>>,
    observer: Option<Box<dyn Observer>>,
}

/// What a sender calls with the place of a dormant thread.
type Rouse = dyn Fn(usize) + Send + Sync;

impl Sleeper {
    /// A sleeper that is awake. `unpark` must make a block that is under way,
    /// or the next one, return; it is called by the notifying thread, at most
    /// once per announced sleep. It must not panic, and must be
    /// async-signal-safe (a write to an eventfd is) if critical messages are
    /// sent from signal handlers.
    ///
    /// # Examples
    ///
    /// With an eventfd, for a loop that sleeps in epoll; one that is full is readable:
    ///
    /// ```
    /// use std::sync::Arc;
    /// use corespun::notify::Sleeper;
    /// use nix::sys::eventfd::EventFd;
    ///
    /// let wake = Arc::new(EventFd::new()?);
    /// let written = wake.clone();
    /// let sleeper = Sleeper::new(move || _ = written.write(1));
    /// sleeper.sleep_unless(|| false, || sleeper.notify());
    /// assert_eq!(wake.read()?, 1);
    /// # Ok::<(), nix::errno::Errno>(())
    /// ```
    pub fn new(unpark: impl Fn() + Send + Sync + 'static) -> Self {
        Sleeper {
            state: AtomicU32::new(AWAKE),
            called: AtomicBool::new(false),
            unpark: Box::new(unpark),
            rouse: None,
            observer: None,
        }
    }

    /// One whose threads may be dormant: `rouse` publishes the place of one that is
    /// to be woken where this sleeper looks before it sleeps. It must not panic.
    pub(crate) fn with_dormant(
        unpark: impl Fn() + Send + Sync + 'static,
        rouse: impl Fn(usize) + Send + Sync + 'static,
    ) -> Self {
        Sleeper {
            rouse: Some(Box::new(rouse)),
            ..Sleeper::new(unpark)
        }
    }

    /// The same sleeper, of which `observer` hears everything.
    pub(crate) fn observed_by(self, observer: Box<dyn Observer>) -> Self {
        Sleeper {
            state: AtomicU32::new(AWAKE | OBSERVED),
            observer: Some(observer),
            ..self
        }
    }

    /// What is in the state besides the sleep.
    fn mark(&self) -> u32 {
        match self.observer {
            Some(_) => OBSERVED,
            None => 0,
        }
    }

    /// Announces a sleep, then sleeps by calling `block`, unless `has_work`
    /// says no. Returns what `block` returned, or `None` when it was not
    /// called.
    ///
    /// Only the thread that owns the sleeper may call this. `has_work` must
    /// look at everything that a notifier may publish.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::notify::Sleeper;
    ///
    /// let sleeper = Sleeper::new(|| ());
    /// let mut queue = vec!["request"];
    /// // There is work: it does not sleep.
    /// assert_eq!(sleeper.sleep_unless(|| !queue.is_empty(), || "slept"), None);
    /// queue.clear();
    /// assert_eq!(sleeper.sleep_unless(|| !queue.is_empty(), || "slept"), Some("slept"));
    /// ```
    pub fn sleep_unless<R>(
        &self,
        has_work: impl FnOnce() -> bool,
        block: impl FnOnce() -> R,
    ) -> Option<R> {
        // Ends the announcement also when `block` unwinds.
        struct Awake<'a>(&'a Sleeper);
        impl Drop for Awake<'_> {
            fn drop(&mut self) {
                self.0.retract();
            }
        }

        self.announce();
        let _awake = Awake(self);
        if has_work() {
            return None;
        }
        Some(block())
    }

    /// The announcement of [`Sleeper::sleep_unless`] by itself, for a sleep that
    /// something else ends: look for work after this.
    pub(crate) fn announce(&self) {
        self.state.store(ASLEEP | self.mark(), Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Takes the announcement back: at the end of a sleep that was announced
    /// alone, or before `block` returns, so that what the rest of it publishes on
    /// this thread wakes no sleeper that is awake. Only the owner may call this.
    pub(crate) fn retract(&self) {
        self.state.store(AWAKE | self.mark(), Ordering::Relaxed);
    }

    /// Wakes the sleeper if it sleeps or is about to. Call it after the work
    /// was published. Any thread, and signal handlers; never blocks.
    #[inline]
    pub fn notify(&self) {
        fence(Ordering::SeqCst);
        self.notify_after_fence();
    }

    /// [`Sleeper::notify`] for a caller that has just executed a sequentially
    /// consistent fence after publishing.
    #[inline]
    pub(crate) fn notify_after_fence(&self) {
        if self.state.load(Ordering::Relaxed) != AWAKE {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        if let Some(observer) = &self.observer {
            observer.notified();
        }
        self.end_sleep();
    }

    /// Wakes the sleeper if it sleeps or is about to, and tells no observer.
    fn end_sleep(&self) {
        let (asleep, awake) = (ASLEEP | self.mark(), AWAKE | self.mark());
        if self
            .state
            .compare_exchange(asleep, awake, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
        {
            (self.unpark)();
        }
    }

    /// Has the sleeper look at all of its dormant threads, since one of them got a
    /// critical message. Async-signal-safe as far as `unpark` is.
    #[cold]
    fn call(&self) {
        // With the message: the sleeper that takes the call finds it.
        self.called.store(true, Ordering::Release);
        self.notify();
    }

    /// Whether to look at all dormant threads; says so until it was asked with
    /// [`Sleeper::take_call`].
    #[inline]
    pub(crate) fn is_called(&self) -> bool {
        self.called.load(Ordering::Relaxed)
    }

    /// Whether to look at all dormant threads, once for each call.
    #[inline]
    pub(crate) fn take_call(&self) -> bool {
        self.is_called() && self.called.swap(false, Ordering::AcqRel)
    }

    /// Whether a sleep is announced: a hint, stale at once.
    pub fn is_asleep(&self) -> bool {
        self.state.load(Ordering::Relaxed) & ASLEEP != 0
    }
}

impl fmt::Debug for Sleeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleeper")
            .field("asleep", &self.is_asleep())
            .finish()
    }
}
