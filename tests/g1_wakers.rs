//! G1: a waker works from anywhere, always; it never blocks, fails, polls a
//! task inline or loses a wake.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

use corespun::task::{self, JoinHandle};
use corespun::thread::ThreadLib;
use futures::FutureExt;
use harness::threads::Threads;

/// A task that counts its polls and hands out its waker.
#[derive(Clone, Default)]
struct Probe(Arc<(AtomicUsize, Mutex<Option<Waker>>)>);

impl Probe {
    /// Pending in each poll.
    fn spawn(&self, threads: &mut Threads) -> JoinHandle<()> {
        let probe = self.clone();
        let handle = threads.on(0, || {
            task::spawn_local(poll_fn(move |cx| {
                probe.0.0.fetch_add(1, Ordering::Relaxed);
                *probe.0.1.lock().unwrap() = Some(cx.waker().clone());
                Poll::Pending
            }))
        });
        threads.poll_threads();
        assert_eq!(self.polls(), 1);
        handle
    }

    fn polls(&self) -> usize {
        self.0.0.swap(0, Ordering::Relaxed)
    }

    fn waker(&self) -> Waker {
        self.0.1.lock().unwrap().clone().unwrap()
    }
}

#[test]
fn a_wake_by_the_owner_is_a_message_and_never_polls_inline() {
    let mut threads = Threads::allocate(1);
    let probe = Probe::default();
    drop(probe.spawn(&mut threads));
    threads.on(0, || {
        probe.waker().wake();
        probe.waker().wake_by_ref();
    });
    assert_eq!(probe.polls(), 0);
    threads.poll_threads();
    assert_eq!(probe.polls(), 1);
    threads.free();
}

#[test]
fn a_wake_by_another_thread_reaches_the_owner_only() {
    let mut threads = Threads::allocate(2);
    let probe = Probe::default();
    drop(probe.spawn(&mut threads));
    threads.on(1, || probe.waker().wake());
    threads.poll_thread(1);
    assert_eq!(probe.polls(), 0);
    threads.poll_thread(0);
    assert_eq!(probe.polls(), 1);
    threads.free();
}

#[test]
fn a_wake_from_inside_a_poll_of_the_other_reaches_the_owner() {
    let mut threads = Threads::allocate(2);
    let probe = Probe::default();
    drop(probe.spawn(&mut threads));
    let waker = probe.waker();
    threads.handle(1).send_msg(move || waker.wake()).unwrap();
    threads.poll_threads();
    assert_eq!(probe.polls(), 1);
    threads.free();
}

#[test]
fn a_wake_by_a_foreign_os_thread_reaches_the_owner() {
    let mut threads = Threads::allocate(1);
    let probe = Probe::default();
    drop(probe.spawn(&mut threads));
    let waker = probe.waker();
    std::thread::spawn(move || waker.wake()).join().unwrap();
    assert_eq!(probe.polls(), 0);
    threads.poll_threads();
    assert_eq!(probe.polls(), 1);
    threads.free();
}

#[test]
fn a_wake_during_its_own_poll_brings_another_poll() {
    let mut threads = Threads::allocate(1);
    let polls = Arc::new(AtomicUsize::new(0));
    let counter = polls.clone();
    let handle = threads.on(0, || {
        task::spawn_local(poll_fn(move |cx| {
            let waker = cx.waker().clone();
            let n = counter.fetch_add(1, Ordering::Relaxed);
            std::thread::spawn(move || waker.wake()).join().unwrap();
            if n < 3 { Poll::Pending } else { Poll::Ready(n) }
        }))
    });
    threads.poll_threads();
    assert_eq!(handle.now_or_never().unwrap().unwrap(), 3);
    threads.free();
}

/// Wakes when dropped.
struct WakeOnDrop(Waker);

impl Drop for WakeOnDrop {
    fn drop(&mut self) {
        self.0.wake_by_ref();
    }
}

#[test]
fn a_wake_by_a_drop_during_unwinding_reaches_the_owner() {
    let mut threads = Threads::allocate(1);
    let probe = Probe::default();
    drop(probe.spawn(&mut threads));
    for own in [false, true] {
        let guard = WakeOnDrop(probe.waker());
        let unwind = || {
            let _ = catch_unwind(AssertUnwindSafe(|| {
                let _guard = guard;
                std::panic::resume_unwind(Box::new("on purpose"));
            }));
        };
        if own {
            threads.on(0, unwind);
        } else {
            unwind();
        }
        threads.poll_threads();
        assert_eq!(probe.polls(), 1);
    }
    threads.free();
}

#[test]
fn a_wake_after_exit_is_a_no_op() {
    let mut threads = Threads::allocate(1);
    let probe = Probe::default();
    let handle = probe.spawn(&mut threads);
    let (own, foreign) = (probe.waker(), probe.waker());
    threads.free();
    own.wake();
    std::thread::spawn(move || foreign.wake()).join().unwrap();
    assert_eq!(probe.polls(), 0);
    let error = handle.now_or_never().unwrap().unwrap_err();
    assert!(error.is_thread_exited());
}

#[test]
fn a_wake_after_the_library_is_gone_is_a_no_op() {
    let probe = Probe::default();
    let mut threads = Threads::allocate(1);
    drop(probe.spawn(&mut threads));
    drop(threads);
    probe.waker().wake_by_ref();
    drop(probe);
}

/// Reports its drop, and where it was dropped.
struct Dropped(Arc<Mutex<Option<std::thread::ThreadId>>>);

impl Drop for Dropped {
    fn drop(&mut self) {
        *self.0.lock().unwrap() = Some(std::thread::current().id());
    }
}

/// A detached task whose last waker goes can never run again: it stays until
/// its own thread drops it at exit, wherever the waker was dropped.
#[test]
fn dropping_the_last_waker_leaves_the_task_to_its_owner() {
    for foreign in [false, true] {
        for detach_last in [false, true] {
            let mut threads = Threads::allocate(1);
            let probe = Probe::default();
            let dropped = Arc::new(Mutex::new(None));
            let (inside, witness) = (probe.clone(), Dropped(dropped.clone()));
            let handle = threads.on(0, || {
                task::spawn_local(poll_fn(move |cx| {
                    let _ = &witness;
                    *inside.0.1.lock().unwrap() = Some(cx.waker().clone());
                    Poll::<()>::Pending
                }))
            });
            threads.poll_threads();
            let waker = probe.0.1.lock().unwrap().take();
            let handle = if detach_last {
                Some(handle)
            } else {
                drop(handle);
                None
            };
            if foreign {
                std::thread::spawn(move || drop(waker)).join().unwrap();
            } else {
                drop(waker);
            }
            drop(handle);
            threads.poll_threads();
            assert!(dropped.lock().unwrap().is_none());
            assert_eq!(threads.runner(0).exit_holders().len(), 1);
            threads.free();
            assert_eq!(*dropped.lock().unwrap(), Some(std::thread::current().id()));
        }
    }
}

/// Many foreign wakers at once, real OS threads: as the stress, in small.
#[test]
fn no_wake_is_lost_among_many_wakers() {
    const WAKERS: usize = 4;
    const ROUNDS: usize = 200;
    let mut runner = ThreadLib::new().thread().build().unwrap().attach();
    let sent = Arc::new(AtomicUsize::new(0));
    let slot = Arc::new(futures::task::AtomicWaker::new());
    let (seen, register) = (sent.clone(), slot.clone());
    let all = runner.enter(|| {
        task::spawn_local(poll_fn(move |cx| {
            register.register(cx.waker());
            if seen.load(Ordering::Acquire) == WAKERS * ROUNDS {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        }))
    });
    let wakers: Vec<_> = (0..WAKERS)
        .map(|_| {
            let (sent, slot) = (sent.clone(), slot.clone());
            std::thread::spawn(move || {
                for _ in 0..ROUNDS {
                    sent.fetch_add(1, Ordering::Release);
                    slot.wake();
                }
            })
        })
        .collect();
    while wakers.iter().any(|waker| !waker.is_finished()) {
        runner.poll(0, 0);
    }
    while runner.poll(0, 0).is_busy() {}
    assert!(all.is_finished());
}
