//! The sleep/wake handshake: how something that sleeps when it has nothing to
//! do is woken exactly when it must be.
//!
//! The one who publishes work calls [`Sleeper::notify`] afterwards; the one who
//! is about to sleep calls [`Sleeper::sleep_unless`], which announces the sleep
//! first and looks for work afterwards. Each side puts a sequentially
//! consistent fence between its store and its load, so at least one of them
//! sees the other's: either the sleeper finds the work, or the notifier finds
//! the sleeper. (A release/acquire flag on both sides would lose wakes.) The
//! notifier that takes the announcement back is the only one that pays for the
//! system call, and while the sleeper is awake nobody does.

#[cfg(all(test, corespun_loom))]
mod loom_tests;

use std::fmt;
use std::ptr;

use crate::sync::atomic::{AtomicPtr, AtomicU32, Ordering, fence};

const AWAKE: u32 = 0;
const ASLEEP: u32 = 1;

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
    unpark: Box<dyn Fn() + Send + Sync>,
}

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
            unpark: Box::new(unpark),
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

        self.state.store(ASLEEP, Ordering::Relaxed);
        let _awake = Awake(self);
        fence(Ordering::SeqCst);
        if has_work() {
            return None;
        }
        Some(block())
    }

    /// The announcement of [`Sleeper::sleep_unless`] by itself, for a sleep that
    /// something else ends: look for work after this.
    pub(crate) fn announce(&self) {
        self.state.store(ASLEEP, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Takes the announcement back: at the end of a sleep that was announced
    /// alone, or before `block` returns, so that what the rest of it publishes on
    /// this thread wakes nobody who is awake. Only the owner may call this.
    pub(crate) fn retract(&self) {
        self.state.store(AWAKE, Ordering::Relaxed);
    }

    /// Wakes the sleeper if it sleeps or is about to. Call it after the work
    /// was published. Any thread, and signal handlers; never blocks.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::{Arc, atomic::{AtomicU32, Ordering}};
    /// use corespun::notify::Sleeper;
    ///
    /// let wakes = Arc::new(AtomicU32::new(0));
    /// let counter = wakes.clone();
    /// let sleeper = Sleeper::new(move || _ = counter.fetch_add(1, Ordering::Relaxed));
    /// // Awake: nothing has to be done.
    /// sleeper.notify();
    /// assert_eq!(wakes.load(Ordering::Relaxed), 0);
    /// // Once per sleep.
    /// sleeper.sleep_unless(|| false, || (sleeper.notify(), sleeper.notify()));
    /// assert_eq!(wakes.load(Ordering::Relaxed), 1);
    /// ```
    #[inline]
    pub fn notify(&self) {
        fence(Ordering::SeqCst);
        self.notify_after_fence();
    }

    /// [`Sleeper::notify`] for a caller that has just executed a sequentially
    /// consistent fence after publishing.
    #[inline]
    pub(crate) fn notify_after_fence(&self) {
        if self.state.load(Ordering::Relaxed) == ASLEEP {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        if self
            .state
            .compare_exchange(ASLEEP, AWAKE, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
        {
            (self.unpark)();
        }
    }

    /// Whether a sleep is announced: a hint, stale at once.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::notify::Sleeper;
    ///
    /// let sleeper = Sleeper::new(|| ());
    /// assert!(!sleeper.is_asleep());
    /// assert_eq!(sleeper.sleep_unless(|| false, || sleeper.is_asleep()), Some(true));
    /// ```
    pub fn is_asleep(&self) -> bool {
        self.state.load(Ordering::Relaxed) == ASLEEP
    }
}

impl fmt::Debug for Sleeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleeper")
            .field("asleep", &self.is_asleep())
            .finish()
    }
}

/// The place where the senders of one mailbox find the sleeper of whoever polls
/// it, which may change while they send.
pub(crate) struct Host(AtomicPtr<Sleeper>);

impl Host {
    pub(crate) fn new() -> Self {
        Host(AtomicPtr::new(ptr::null_mut()))
    }

    /// Names who is to be woken from now on; null for nobody. The OS thread
    /// that sleeps calls this, and sleeps by [`Sleeper::sleep_unless`].
    ///
    /// # Safety
    ///
    /// A sleeper put here stays alive for as long as anybody may call
    /// [`Host::notify`]: also one that was replaced, since a sender may still
    /// be looking at it.
    pub(crate) unsafe fn set(&self, sleeper: *const Sleeper) {
        // The fence that this needs before the sleep is in `sleep_unless`.
        self.0.store(sleeper.cast_mut(), Ordering::Release);
    }

    /// Wakes the host if it sleeps; call it after publishing something.
    #[inline]
    pub(crate) fn notify(&self) {
        // Pairs with the fence in `Sleeper::sleep_unless`, which comes after
        // `set`: a sender that still sees the old host published before the
        // new one looks.
        fence(Ordering::SeqCst);
        let host = self.0.load(Ordering::Acquire);
        if !host.is_null() {
            // SAFETY: what is stored is alive, by the contract of `set`.
            unsafe { (*host).notify_after_fence() }
        }
    }
}
