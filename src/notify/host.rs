//! The place where the senders of one mailbox find the sleeper of the OS thread that
//! polls it, and where they see that its thread is dormant.
//!
//! A dormant thread is not polled until something is published for it. It is
//! a sleeper of a second kind, in the same handshake: the owner announces, behind a
//! fence, and looks for work afterwards ([`Host::doze_unless`]); a sender publishes,
//! and behind a fence, or the exchange that its push is, looks here. At least one of
//! them sees the other. The sender
//! that takes the announcement back rouses the thread: it tells the sleeper which
//! one it is. As long as the thread is not dormant, a sender does what it would do
//! without all this.
//!
//! The announcement is a mark in the pointer to the sleeper, so that a sender finds
//! both with one load. A sender that is slow may rouse a thread that is awake by
//! then, or whatever is dormant at that place by then: one poll for nothing.

use std::ptr;

use super::Sleeper;
use crate::sync::atomic::{AtomicPtr, AtomicUsize, Ordering, fence};

/// In the address of the sleeper: its thread is dormant.
const DORMANT: usize = 1;

/// In the address of the sleeper: an observer is to be told of what is sent.
const OBSERVED: usize = 2;

/// What a sender that finds none of it does nothing about.
const MARKS: usize = DORMANT | OBSERVED;

const _: () = assert!(align_of::<Sleeper>() > MARKS);

/// A thread that was sent a message, as an observer sees it.
pub(crate) trait Recipient {
    /// Its number, unique within its library.
    fn id(&self) -> u64;

    /// How many messages its mailbox has taken in its life.
    ///
    /// # Safety
    ///
    /// The caller is on the OS thread that polls the recipient, and not within its
    /// mailbox.
    unsafe fn messages_sent(&self) -> usize;
}

pub(crate) struct Host {
    sleeper: AtomicPtr<Sleeper>,
    /// Where the sleeper keeps the thread while that is dormant.
    place: AtomicUsize,
}

fn is_dormant(host: *mut Sleeper) -> bool {
    host.addr() & DORMANT != 0
}

fn awake(host: *mut Sleeper) -> *mut Sleeper {
    host.map_addr(|address| address & !DORMANT)
}

/// The sleeper itself.
fn unmarked(host: *mut Sleeper) -> *mut Sleeper {
    host.map_addr(|address| address & !MARKS)
}

impl Host {
    pub(crate) fn new() -> Self {
        Host {
            sleeper: AtomicPtr::new(ptr::null_mut()),
            place: AtomicUsize::new(0),
        }
    }

    /// Names the sleeper that is to be woken from now on; null for none. The OS thread
    /// that sleeps calls this, and sleeps by [`Sleeper::sleep_unless`].
    ///
    /// # Safety
    ///
    /// A sleeper put here stays alive for as long as any OS thread may call
    /// [`Host::notify`]: also one that was replaced, since a sender may still
    /// be looking at it.
    pub(crate) unsafe fn set(&self, sleeper: *const Sleeper) {
        // SAFETY: by this function's contract it is alive.
        let observed = unsafe { sleeper.as_ref() }.is_some_and(|one| one.observer.is_some());
        let mark = if observed { OBSERVED } else { 0 };
        let marked = sleeper.cast_mut().map_addr(|address| address | mark);
        // The fence that this needs before the sleep is in `sleep_unless`.
        self.sleeper.store(marked, Ordering::Release);
    }

    /// Wakes the host if it sleeps, and rouses the thread, which is `recipient`, if it
    /// is dormant; call it after publishing something.
    #[inline]
    pub(crate) fn notify<R: Recipient>(&self, recipient: &R) {
        // Pairs with the fence in `Sleeper::sleep_unless`, which comes after
        // `set`: a sender that still sees the old host published before the
        // new one looks. And with the one in `doze_unless`.
        fence(Ordering::SeqCst);
        self.notify_pushed(recipient);
    }

    /// [`Host::notify`] for a sender that has just pushed into the mailbox of the thread. It
    /// has no fence of its own: the owner looks by
    /// [`Mailbox::has_messages_before_sleep`](crate::sync::Mailbox::has_messages_before_sleep),
    /// and of the two exchanges the later sees what came before the earlier.
    #[inline]
    pub(crate) fn notify_pushed<R: Recipient>(&self, recipient: &R) {
        let host = self.sleeper.load(Ordering::Acquire);
        if host.addr() & MARKS != 0 {
            return self.notify_marked(host, recipient);
        }
        if !host.is_null() {
            // SAFETY: what is stored is alive, by the contract of `set`.
            unsafe { (*host).notify_after_fence() }
        }
    }

    #[cold]
    fn notify_marked(&self, host: *mut Sleeper, recipient: &dyn Recipient) {
        // SAFETY: as in `notify`.
        let sleeper = unsafe { &*unmarked(host) };
        if let Some(observer) = &sleeper.observer {
            observer.sent(recipient);
        }
        match is_dormant(host) {
            true => self.rouse(host),
            false => sleeper.end_sleep(),
        }
    }

    /// [`Host::notify`] for a critical message: allocates nothing, and may be called
    /// by a signal handler.
    pub(crate) fn notify_critical(&self) {
        fence(Ordering::SeqCst);
        let host = self.sleeper.load(Ordering::Acquire);
        if host.is_null() {
            return;
        }
        // SAFETY: as in `notify`.
        let sleeper = unsafe { &*unmarked(host) };
        match is_dormant(host) {
            true => sleeper.call(),
            false => sleeper.notify_after_fence(),
        }
    }

    fn rouse(&self, host: *mut Sleeper) {
        let taken = self.sleeper.compare_exchange(
            host,
            awake(host),
            // What the owner wrote before its announcement, and for it what this
            // sender published.
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
        if taken.is_err() {
            // Another notifier rouses it, or it is awake.
            return;
        }
        // SAFETY: what is stored is alive, by the contract of `set`.
        let sleeper = unsafe { &*unmarked(host) };
        if let Some(rouse) = &sleeper.rouse {
            rouse(self.place.load(Ordering::Relaxed));
            sleeper.notify();
        }
    }

    /// Makes the thread dormant at `place` of its sleeper unless there is work for
    /// it; says whether it is. From then on the sleeper is told when something is
    /// published. Owner only, with a sleeper that has dormant threads.
    pub(crate) fn doze_unless(&self, place: usize, has_work: impl FnOnce() -> bool) -> bool {
        let host = self.sleeper.load(Ordering::Relaxed);
        self.place.store(place, Ordering::Relaxed);
        let dormant = host.map_addr(|address| address | DORMANT);
        self.sleeper.store(dormant, Ordering::Release);
        fence(Ordering::SeqCst);
        let dozes = !has_work();
        if !dozes {
            self.wake();
        }
        dozes
    }

    /// Ends being dormant. A sender that was quicker has roused it, or will, for
    /// nothing. Owner only.
    pub(crate) fn wake(&self) {
        // Only senders write beside the owner, and they only take the mark out.
        let host = self.sleeper.load(Ordering::Relaxed);
        self.sleeper.store(awake(host), Ordering::Relaxed);
    }
}

#[cfg(all(test, not(corespun_loom)))]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    struct Nobody;

    impl Recipient for Nobody {
        fn id(&self) -> u64 {
            0
        }

        unsafe fn messages_sent(&self) -> usize {
            0
        }
    }

    /// A sleeper whose dormant threads are noted when they are roused.
    fn sleeper() -> (Sleeper, Arc<Mutex<Vec<usize>>>) {
        let roused = Arc::<Mutex<Vec<usize>>>::default();
        let noted = roused.clone();
        let rouse = move |place| noted.lock().unwrap().push(place);
        (Sleeper::with_dormant(|| (), rouse), roused)
    }

    #[test]
    fn a_thread_is_roused_once_and_only_if_it_is_dormant() {
        let (sleeper, roused) = sleeper();
        let host = Host::new();
        // SAFETY: it lives longer than `host`.
        unsafe { host.set(&sleeper) };
        let taken = || std::mem::take(&mut *roused.lock().unwrap());
        assert!(host.doze_unless(3, || false));
        host.notify(&Nobody);
        host.notify(&Nobody);
        assert_eq!(taken(), [3]);
        assert!(host.doze_unless(4, || false));
        host.wake();
        host.notify(&Nobody);
        assert!(!host.doze_unless(5, || true), "it has work");
        host.notify(&Nobody);
        assert_eq!(taken(), [0; 0]);
    }

    /// G10.
    #[test]
    fn nobody_is_woken_who_has_ended_its_sleep() {
        let unparked = Arc::<Mutex<usize>>::default();
        let counted = unparked.clone();
        let sleeper = Sleeper::new(move || *counted.lock().unwrap() += 1);
        let taken = || std::mem::take(&mut *unparked.lock().unwrap());
        assert_eq!(sleeper.sleep_unless(|| true, || ()), None);
        sleeper.notify();
        let slept = sleeper.sleep_unless(|| false, || sleeper.notify());
        assert_eq!((slept, taken()), (Some(()), 1));
        sleeper.notify();
        let unwound = std::panic::AssertUnwindSafe(|| {
            sleeper.sleep_unless(|| false, || std::panic::resume_unwind(Box::new(())));
        });
        assert!(std::panic::catch_unwind(unwound).is_err());
        sleeper.notify();
        assert_eq!(taken(), 0);
    }

    #[test]
    fn a_call_of_all_dormant_threads_is_taken_once() {
        let (sleeper, roused) = sleeper();
        let host = Host::new();
        // SAFETY: it lives longer than `host`.
        unsafe { host.set(&sleeper) };
        host.notify_critical();
        assert!(!sleeper.is_called(), "it is awake");
        assert!(host.doze_unless(3, || false));
        host.notify_critical();
        assert!(sleeper.is_called());
        assert!(sleeper.take_call());
        assert!(!sleeper.is_called() && !sleeper.take_call());
        assert!(
            roused.lock().unwrap().is_empty(),
            "its allocations are not a signal handler's"
        );
    }
}
