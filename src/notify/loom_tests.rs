//! Models of the sleep/wake handshake with the real mailbox behind it (G10). A
//! lost wake is a deadlock, which loom reports.

use std::sync::Arc as Plain;
use std::sync::atomic::{AtomicUsize as Count, Ordering::Relaxed};

use loom::sync::Arc;
use loom::thread;

use super::{Host, Sleeper};
use crate::sync::Mailbox;

fn model(preemptions: usize, f: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(f);
}

/// A sleeper that parks the calling thread, and how often it was unparked.
fn parking() -> (Sleeper, Plain<Count>) {
    let unparks = Plain::new(Count::new(0));
    let (sleeping, counter) = (thread::current(), unparks.clone());
    let sleeper = Sleeper::new(move || {
        counter.fetch_add(1, Relaxed);
        sleeping.unpark();
    });
    (sleeper, unparks)
}

/// Takes `expected` messages, sleeping when there is none; says how often a
/// sleep was announced.
fn receive(mailbox: &Mailbox<u8>, sleeper: &Sleeper, expected: usize) -> usize {
    let mut announced = 0;
    let mut got = 0;
    while got < expected {
        // SAFETY: each model has one consumer, which is this thread.
        if unsafe { mailbox.pop() }.is_some() {
            got += 1;
            continue;
        }
        announced += 1;
        // SAFETY: as above.
        let slept = sleeper.sleep_unless(|| unsafe { mailbox.has_messages() }, thread::park);
        if slept.is_none() {
            // A place is claimed, and not written yet.
            thread::yield_now();
        }
        assert!(!sleeper.is_asleep());
    }
    announced
}

/// A publisher against a sleeper: no wake is lost, and the sleeper is unparked
/// at most once for each sleep it announced.
#[test]
fn loom_a_publish_against_a_sleep_is_not_lost() {
    model(3, || {
        let mailbox = Arc::new(Mailbox::new(2));
        let (sleeper, unparks) = parking();
        let sleeper = Arc::new(sleeper);
        let sender = {
            let (mailbox, sleeper) = (mailbox.clone(), sleeper.clone());
            thread::spawn(move || {
                for n in 0..2 {
                    mailbox.push(n).unwrap();
                    sleeper.notify();
                }
            })
        };
        let announced = receive(&mailbox, &sleeper, 2);
        sender.join().unwrap();
        assert!(unparks.load(Relaxed) <= announced);
    });
}

/// The same for a sleep that is announced by itself, as that of who waits for a
/// thread's descriptor: the announcement, then a look, and no call that blocks.
#[test]
fn loom_a_publish_against_an_announced_sleep_is_not_lost() {
    model(3, || {
        let mailbox = Arc::new(Mailbox::new(2));
        let (sleeper, _) = parking();
        let sleeper = Arc::new(sleeper);
        let sender = {
            let (mailbox, sleeper) = (mailbox.clone(), sleeper.clone());
            thread::spawn(move || {
                for n in 0..2 {
                    mailbox.push(n).unwrap();
                    sleeper.notify();
                }
            })
        };
        let mut got = 0;
        while got < 2 {
            // SAFETY: the one consumer.
            if unsafe { mailbox.pop() }.is_some() {
                got += 1;
                continue;
            }
            sleeper.announce();
            // SAFETY: as above.
            if unsafe { mailbox.has_messages() } {
                thread::yield_now();
            } else {
                thread::park();
            }
            sleeper.retract();
        }
        sender.join().unwrap();
    });
}

/// Two publishers: one of them pays for the wake, not both.
#[test]
fn loom_two_publishers_wake_a_sleep_once() {
    model(2, || {
        let mailbox = Arc::new(Mailbox::new(2));
        let (sleeper, unparks) = parking();
        let sleeper = Arc::new(sleeper);
        let senders: Vec<_> = (0..2)
            .map(|n| {
                let (mailbox, sleeper) = (mailbox.clone(), sleeper.clone());
                thread::spawn(move || {
                    mailbox.push(n).unwrap();
                    sleeper.notify();
                })
            })
            .collect();
        let announced = receive(&mailbox, &sleeper, 2);
        for sender in senders {
            sender.join().unwrap();
        }
        assert!(unparks.load(Relaxed) <= announced);
    });
}

/// A spilled message wakes like one in the ring.
#[test]
fn loom_a_spilled_publish_against_a_sleep_is_not_lost() {
    model(3, || {
        let mailbox = Arc::new(Mailbox::new(2));
        for n in 0..2 {
            mailbox.push(n).unwrap();
        }
        let (sleeper, _) = parking();
        let sleeper = Arc::new(sleeper);
        let sender = {
            let (mailbox, sleeper) = (mailbox.clone(), sleeper.clone());
            thread::spawn(move || {
                mailbox.push(2).unwrap();
                sleeper.notify();
            })
        };
        receive(&mailbox, &sleeper, 3);
        sender.join().unwrap();
    });
}

/// Nobody pays for a wake while the sleeper is awake.
#[test]
fn loom_an_awake_sleeper_is_not_unparked() {
    model(3, || {
        let mailbox = Arc::new(Mailbox::new(2));
        let (sleeper, unparks) = parking();
        let sleeper = Arc::new(sleeper);
        let sender = {
            let (mailbox, sleeper) = (mailbox.clone(), sleeper.clone());
            thread::spawn(move || {
                mailbox.push(0).unwrap();
                sleeper.notify();
            })
        };
        // SAFETY: the one consumer.
        while unsafe { mailbox.pop() }.is_none() {
            thread::yield_now();
        }
        sender.join().unwrap();
        assert_eq!(unparks.load(Relaxed), 0);
    });
}

/// A message sent while the thread gets a new host wakes the new one, unless
/// the new one sees it before it sleeps.
#[test]
fn loom_a_publish_against_a_change_of_host_is_not_lost() {
    model(3, || {
        let mailbox = Arc::new(Mailbox::new(2));
        let host = Arc::new(Host::new());
        let old = Arc::new(Sleeper::new(|| {}));
        let (new, _) = parking();
        let new = Arc::new(new);
        // SAFETY: both sleepers outlive the sender, which is joined below.
        unsafe { host.set(&*old) };
        let sender = {
            let (mailbox, host) = (mailbox.clone(), host.clone());
            thread::spawn(move || {
                mailbox.push(0).unwrap();
                host.notify();
            })
        };
        // Parked, and attached elsewhere.
        // SAFETY: as above.
        unsafe {
            host.set(std::ptr::null());
            host.set(&*new);
        }
        receive(&mailbox, &new, 1);
        sender.join().unwrap();
    });
}
