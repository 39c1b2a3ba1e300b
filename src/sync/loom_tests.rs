//! Models of the mailbox, the critical slot and the life of a task's wake, run
//! by loom over every interleaving within a bound of preemptions.
//!
//! async-task knows nothing of loom, so [`MiniTask`] stands in for it: the same
//! state bits, changed in the same steps, by `wake`, the drop of a waker and
//! `run`. The mailbox is the real one.

use std::sync::atomic::{AtomicUsize as Count, Ordering::Relaxed};

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;

use super::{CriticalSlot, Mailbox, PostError, PushError};

fn model(preemptions: usize, f: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(f);
}

/// Pops until `expected` messages came, or the closed mailbox is drained.
fn drain<T>(mailbox: &Mailbox<T>, expected: Option<usize>) -> Vec<T> {
    let mut got = Vec::new();
    loop {
        if expected == Some(got.len()) {
            return got;
        }
        // SAFETY: every model has one consumer, which is this thread.
        match unsafe { mailbox.pop() } {
            Some(message) => got.push(message),
            // SAFETY: as above.
            None if expected.is_none() && unsafe { mailbox.is_drained() } => return got,
            None => thread::yield_now(),
        }
    }
}

/// Sender `n` sent `counts[n]` messages, numbered from 0.
fn assert_each_in_order(got: &[(u8, u8)], counts: &[u8]) {
    for (sender, count) in (0..).zip(counts) {
        let order: Vec<u8> = got.iter().filter(|m| m.0 == sender).map(|m| m.1).collect();
        assert_eq!(order, (0..*count).collect::<Vec<_>>(), "from {sender}");
    }
}

/// G2: two senders, a ring of two, so that both spill; each one's messages come
/// out once and in order while the consumer pops.
#[test]
fn loom_messages_stay_in_order_across_the_spill() {
    model(2, || {
        let mailbox = Arc::new(Mailbox::new(2));
        let other = {
            let mailbox = mailbox.clone();
            thread::spawn(move || {
                for n in 0..2 {
                    mailbox.push((1, n)).unwrap();
                }
            })
        };
        let sender = {
            let mailbox = mailbox.clone();
            thread::spawn(move || {
                for n in 0..3 {
                    mailbox.push((0, n)).unwrap();
                }
            })
        };
        let got = drain(&mailbox, Some(5));
        other.join().unwrap();
        sender.join().unwrap();
        assert_each_in_order(&got, &[3, 2]);
        // SAFETY: the one consumer.
        assert!(unsafe { mailbox.pop() }.is_none());
    });
}

/// G2: the ring is full before the race begins, so every message spills and
/// the first pops free the ring while senders look at it.
#[test]
fn loom_a_sender_that_spilled_does_not_overtake_itself() {
    model(3, || {
        let mailbox = Arc::new(Mailbox::new(2));
        for n in 0..3 {
            mailbox.push((0, n)).unwrap();
        }
        let sender = {
            let mailbox = mailbox.clone();
            thread::spawn(move || {
                for n in 3..6 {
                    mailbox.push((0, n)).unwrap();
                }
            })
        };
        let got = drain(&mailbox, Some(6));
        sender.join().unwrap();
        assert_each_in_order(&got, &[6]);
    });
}

/// G3: what a limit refuses comes back, what it does not is delivered, and the
/// limit counts exactly what is outstanding.
#[test]
fn loom_a_limited_push_is_delivered_or_comes_back() {
    model(3, || {
        let mailbox = Arc::new(Mailbox::new(2));
        let senders: Vec<_> = (0..2)
            .map(|sender| {
                let mailbox = mailbox.clone();
                thread::spawn(move || {
                    let mut accepted = 0;
                    for n in 0..2 {
                        match mailbox.push_limited(3, (sender, n), |message| message) {
                            Ok(()) => accepted += 1,
                            Err(PushError::Full(back)) => assert_eq!(back, (sender, n)),
                            Err(PushError::Closed(_)) => unreachable!(),
                        }
                    }
                    accepted
                })
            })
            .collect();
        let accepted: usize = senders.into_iter().map(|s| s.join().unwrap()).sum();
        assert_eq!(accepted, 3);
        assert_eq!(drain(&mailbox, Some(accepted)).len(), accepted);
        // SAFETY: the one consumer.
        assert!(unsafe { mailbox.is_drained() });
    });
}

/// R3 of `task::raw`: every push that succeeded is drained, every refused one
/// comes back, and who is refused sees what the consumer wrote before closing.
#[test]
fn loom_a_push_against_close_is_drained_or_comes_back() {
    model(3, || {
        let mailbox = Arc::new(Mailbox::new(2));
        let emptied = Arc::new(UnsafeCell::new(false));
        let senders: Vec<_> = (0..2u8)
            .map(|sender| {
                let (mailbox, emptied) = (mailbox.clone(), emptied.clone());
                thread::spawn(move || {
                    let mut accepted = 0;
                    for n in 0..2u8 {
                        match mailbox.push((sender, n)) {
                            Ok(()) => accepted += 1,
                            Err(back) => {
                                assert_eq!(back, (sender, n));
                                // SAFETY: loom checks just this.
                                assert!(emptied.with(|cell| unsafe { *cell }));
                            }
                        }
                    }
                    accepted
                })
            })
            .collect();
        // SAFETY: only read by senders that were refused, so after `close`.
        emptied.with_mut(|cell| unsafe { *cell = true });
        mailbox.close();
        let drained = drain(&mailbox, None).len();
        let accepted: usize = senders.into_iter().map(|s| s.join().unwrap()).sum();
        assert_eq!(drained, accepted);
        // SAFETY: the one consumer; drained stays drained.
        assert!(unsafe { mailbox.is_drained() });
        assert!(mailbox.push((9, 9)).is_err());
    });
}

/// The same with everything in the spill.
#[test]
fn loom_a_spilled_push_against_close_is_drained_or_comes_back() {
    model(3, || {
        let mailbox = Arc::new(Mailbox::new(2));
        for _ in 0..3 {
            mailbox.push(0).unwrap();
        }
        let sender = {
            let mailbox = mailbox.clone();
            thread::spawn(move || (0..3).filter(|_| mailbox.push(1).is_ok()).count())
        };
        mailbox.close();
        let drained = drain(&mailbox, None).len();
        assert_eq!(drained, 3 + sender.join().unwrap());
    });
}

thread_local! {
    static LAST: std::cell::Cell<u8> = const { std::cell::Cell::new(0) };
}

fn first() {
    LAST.set(1);
}

fn second() {
    LAST.set(2);
}

/// Critical messages: a post that succeeded is run once, one that finds the
/// slot taken or closed is refused, and nothing is accepted after the close.
#[test]
fn loom_a_critical_post_is_run_or_refused() {
    model(3, || {
        let slot = Arc::new(CriticalSlot::new());
        let published = Arc::new(UnsafeCell::new(0));
        let poster = {
            let (slot, published) = (slot.clone(), published.clone());
            thread::spawn(move || {
                // SAFETY: read by the owner after it got the message.
                published.with_mut(|cell| unsafe { *cell = 7 });
                slot.post(first)
            })
        };
        let other = {
            let slot = slot.clone();
            thread::spawn(move || slot.post(second))
        };
        let mut ran = 0;
        while !slot.close() {
            if let Some(f) = slot.get() {
                f();
                if LAST.get() == 1 {
                    // SAFETY: loom checks that the poster's write is visible.
                    assert_eq!(published.with(|cell| unsafe { *cell }), 7);
                }
                // While it runs, the slot is taken.
                assert!(matches!(slot.post(first), Err(PostError::Pending)));
                ran += 1;
                slot.clear();
            }
        }
        let posted = [poster.join().unwrap(), other.join().unwrap()];
        assert_eq!(ran, posted.iter().filter(|post| post.is_ok()).count());
        assert!(slot.get().is_none() && !slot.is_posted());
        assert!(matches!(slot.post(first), Err(PostError::Closed)));
    });
}

// The state of a task as async-task 4.7 keeps it.
const SCHEDULED: usize = 1;
const CLOSED: usize = 8;
const TASK: usize = 16;
const REFERENCE: usize = 256;

/// A pending task: its state, its future, and the waker set aside for it (R5).
struct MiniTask {
    state: AtomicUsize,
    mailbox: Mailbox<()>,
    /// Whether there still is a future. Owner only.
    future: UnsafeCell<bool>,
    /// What a poll looks for; published by the wake alone.
    event: AtomicBool,
    runnables: Count,
}

impl MiniTask {
    fn new(state: usize) -> Arc<Self> {
        Arc::new(MiniTask {
            state: AtomicUsize::new(state),
            mailbox: Mailbox::new(2),
            future: UnsafeCell::new(true),
            event: AtomicBool::new(false),
            runnables: Count::new(0),
        })
    }

    /// At most one `Runnable` of a task exists.
    fn schedule(&self) {
        assert_eq!(self.runnables.fetch_add(1, Relaxed), 0, "queued twice");
        if self.mailbox.push(()).is_err() {
            self.drop_runnable();
        }
    }

    fn drop_runnable(&self) {
        assert_eq!(self.runnables.fetch_sub(1, Relaxed), 1);
        self.state.fetch_or(CLOSED, Ordering::AcqRel);
        // SAFETY: by R3 whoever drops a `Runnable` finds an empty shell.
        assert!(!self.future.with(|cell| unsafe { *cell }));
    }

    fn wake_by_ref(&self) {
        let mut state = self.state.load(Ordering::Acquire);
        while state & CLOSED == 0 {
            let new = match state & SCHEDULED {
                0 => (state | SCHEDULED) + REFERENCE,
                _ => state,
            };
            match self
                .state
                .compare_exchange(state, new, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) if new == state => return,
                Ok(_) => return self.schedule(),
                Err(now) => state = now,
            }
        }
    }

    fn drop_waker(&self) {
        let state = self.state.fetch_sub(REFERENCE, Ordering::AcqRel) - REFERENCE;
        if state / REFERENCE == 0 && state & (TASK | CLOSED) == 0 {
            self.state
                .store(SCHEDULED | CLOSED | REFERENCE, Ordering::Release);
            self.schedule();
        }
    }

    /// `JoinHandle::drop`.
    fn detach(&self) {
        self.state.fetch_and(!TASK, Ordering::AcqRel);
    }

    /// The exit's way: `task::raw::cancel`.
    fn cancel(&self) {
        // SAFETY: the owner.
        self.future.with_mut(|cell| unsafe { *cell = false });
        self.wake_by_ref();
        // The one set aside.
        self.drop_waker();
    }

    /// Runs what is queued; says whether a poll saw the event.
    fn run_queued(&self) -> bool {
        let mut seen = false;
        // SAFETY: the one consumer.
        while unsafe { self.mailbox.pop() }.is_some() {
            assert_eq!(self.runnables.fetch_sub(1, Relaxed), 1);
            let state = self.state.fetch_and(!SCHEDULED, Ordering::AcqRel);
            if state & CLOSED == 0 {
                seen |= self.event.load(Ordering::Relaxed);
            } else {
                // SAFETY: the owner.
                self.future.with_mut(|cell| unsafe { *cell = false });
            }
            self.state.fetch_sub(REFERENCE, Ordering::AcqRel);
        }
        seen
    }
}

/// G1: a wake from another thread against the run that an earlier wake brought:
/// the task is queued at most once, and a poll after the wake sees what was
/// published before it.
#[test]
fn loom_a_wake_against_a_run_is_not_lost() {
    model(3, || {
        let task = MiniTask::new(2 * REFERENCE);
        // Ready already when the other wake comes.
        task.wake_by_ref();
        let waker = {
            let task = task.clone();
            thread::spawn(move || {
                task.wake_by_ref();
                task.drop_waker();
            })
        };
        task.run_queued();
        waker.join().unwrap();
        task.run_queued();
        assert_eq!(task.state.load(Ordering::Relaxed), REFERENCE);
    });
}

/// G1: what was published before a wake is seen by the poll it leads to, also
/// where the task is queued already.
#[test]
fn loom_a_wake_publishes_what_came_before_it() {
    model(3, || {
        let task = MiniTask::new(2 * REFERENCE);
        task.wake_by_ref();
        let waker = {
            let task = task.clone();
            thread::spawn(move || {
                task.event.store(true, Ordering::Relaxed);
                task.wake_by_ref();
            })
        };
        let mut seen = task.run_queued();
        waker.join().unwrap();
        seen |= task.run_queued();
        assert!(seen);
    });
}

/// G1, G7, R5: the last waker that a detached task gave away is dropped by
/// another thread while the owner's exit cancels the task and closes the mailbox: one
/// `Runnable` at most, and none with a future is dropped off the owner.
#[test]
fn loom_the_last_waker_drop_against_the_exit_queues_once() {
    model(3, || {
        let task = MiniTask::new(2 * REFERENCE);
        let waker = {
            let task = task.clone();
            thread::spawn(move || task.drop_waker())
        };
        task.cancel();
        task.mailbox.close();
        task.run_queued();
        waker.join().unwrap();
        task.run_queued();
        // SAFETY: the owner, alone by now.
        assert!(!task.future.with(|cell| unsafe { *cell }));
        assert_eq!(task.runnables.load(Relaxed), 0);
    });
}

/// R3: a wake from elsewhere against the exit never ends with a live future in
/// a refused `Runnable`.
#[test]
fn loom_a_wake_against_the_exit_finds_the_future_gone() {
    model(3, || {
        let task = MiniTask::new(2 * REFERENCE);
        let waker = {
            let task = task.clone();
            thread::spawn(move || task.wake_by_ref())
        };
        task.cancel();
        task.mailbox.close();
        task.run_queued();
        waker.join().unwrap();
        task.run_queued();
        assert_eq!(task.runnables.load(Relaxed), 0);
    });
}

/// R5: the same with a join handle that a third thread drops meanwhile.
#[test]
fn loom_a_detach_and_the_last_waker_drop_against_the_exit_queue_once() {
    model(3, || {
        // One waker elsewhere, one set aside.
        let task = MiniTask::new(2 * REFERENCE | TASK);
        let waker = {
            let task = task.clone();
            thread::spawn(move || task.drop_waker())
        };
        let handle = {
            let task = task.clone();
            thread::spawn(move || task.detach())
        };
        task.cancel();
        task.mailbox.close();
        task.run_queued();
        waker.join().unwrap();
        handle.join().unwrap();
        task.run_queued();
        assert_eq!(task.runnables.load(Relaxed), 0);
    });
}
