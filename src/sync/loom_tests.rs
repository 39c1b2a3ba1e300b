//! Models of the mailbox and the critical slot, run by loom over every interleaving
//! within a bound of preemptions.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
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
/// comes back, and a sender that is refused sees what the consumer wrote before
/// closing.
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
