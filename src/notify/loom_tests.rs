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
        let has_messages = || unsafe { mailbox.has_messages_before_sleep() };
        let slept = sleeper.sleep_unless(has_messages, thread::park);
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

/// The same for a sleep that is announced by itself, as that of an OS thread that
/// waits for a thread's descriptor: the announcement, then a look, and no call that
/// blocks.
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

/// No notifier pays for a wake while the sleeper is awake.
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
                host.notify_pushed(&Nobody);
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

/// Observers are told of it, and here is none.
struct Nobody;

impl super::Recipient for Nobody {
    fn id(&self) -> u64 {
        0
    }

    unsafe fn messages_sent(&self) -> usize {
        0
    }
}

/// A dormant thread and the reactor that keeps it, as far as the handshake goes:
/// the thread's mailbox and host, the reactor's events and sleeper.
struct Dozer {
    mailbox: Arc<Mailbox<u8>>,
    host: Arc<Host>,
    events: Arc<Mailbox<usize>>,
    sleeper: Arc<Sleeper>,
    unparks: Plain<Count>,
}

const PLACE: usize = 7;

impl Dozer {
    /// On the OS thread that is to be the reactor.
    fn new() -> Self {
        let events = Arc::new(Mailbox::new(2));
        let unparks = Plain::new(Count::new(0));
        let (sleeping, counter, rouse) = (thread::current(), unparks.clone(), events.clone());
        let sleeper = Sleeper::with_dormant(
            move || {
                counter.fetch_add(1, Relaxed);
                sleeping.unpark();
            },
            move |place| rouse.push(place).unwrap(),
        );
        let dozer = Dozer {
            mailbox: Arc::new(Mailbox::new(2)),
            host: Arc::new(Host::new()),
            events,
            sleeper: Arc::new(sleeper),
            unparks,
        };
        dozer.arrives();
        dozer
    }

    fn arrives(&self) {
        // SAFETY: the models join their senders before the sleeper goes.
        unsafe { self.host.set(&*self.sleeper) }
    }

    fn has_messages(&self) -> bool {
        // SAFETY: each model has one consumer, which is the reactor.
        unsafe { self.mailbox.has_messages_before_sleep() }
    }

    fn take(&self) -> Option<u8> {
        // SAFETY: as above.
        unsafe { self.mailbox.pop() }
    }

    /// Makes the thread dormant and sleeps until it is roused: the end of this means
    /// that it was, or that it had something to do.
    fn doze(&self) {
        if !self.host.doze_unless(PLACE, || self.has_messages()) {
            return thread::yield_now();
        }
        loop {
            // SAFETY: as above.
            if let Some(place) = unsafe { self.events.pop() } {
                assert_eq!(place, PLACE);
                return self.host.wake();
            }
            let slept = self
                .sleeper
                // SAFETY: as above.
                .sleep_unless(|| unsafe { self.events.has_messages() }, thread::park);
            if slept.is_none() {
                thread::yield_now();
            }
        }
    }

    /// A sender of `count` messages.
    fn sender(&self, count: u8) -> thread::JoinHandle<()> {
        let (mailbox, host) = (self.mailbox.clone(), self.host.clone());
        thread::spawn(move || {
            for n in 0..count {
                mailbox.push(n).unwrap();
                host.notify_pushed(&Nobody);
            }
        })
    }
}

/// A send against going dormant: the thread sees it, or is roused.
#[test]
fn loom_a_send_against_going_dormant_is_not_lost() {
    model(2, || {
        let dozer = Dozer::new();
        let sender = dozer.sender(2);
        let mut got = 0;
        while got < 2 {
            match dozer.take() {
                Some(_) => got += 1,
                None => dozer.doze(),
            }
        }
        sender.join().unwrap();
    });
}

/// Two senders rouse a dormant thread once.
#[test]
fn loom_two_senders_rouse_a_dormant_thread_once() {
    model(2, || {
        let dozer = Dozer::new();
        assert!(dozer.host.doze_unless(PLACE, || dozer.has_messages()));
        let senders = [dozer.sender(1), dozer.sender(1)];
        senders
            .into_iter()
            .for_each(|sender| sender.join().unwrap());
        // SAFETY: the one consumer.
        let roused = std::iter::from_fn(|| unsafe { dozer.events.pop() });
        assert_eq!(roused.count(), 1);
        assert_eq!(dozer.unparks.load(Relaxed), 0, "the reactor was awake");
    });
}

/// A deadline wakes the thread while a message is sent: it is run, by this wake or
/// by the next, and what rouses a thread that is awake costs a look.
#[test]
fn loom_a_deadline_against_a_send_loses_neither() {
    model(2, || {
        let dozer = Dozer::new();
        let sender = dozer.sender(1);
        // Dormant, and due at once.
        if dozer.host.doze_unless(PLACE, || dozer.has_messages()) {
            dozer.host.wake();
        }
        while dozer.take().is_none() {
            dozer.doze();
        }
        sender.join().unwrap();
        // SAFETY: the one consumer.
        let late = std::iter::from_fn(|| unsafe { dozer.events.pop() });
        assert!(late.count() <= 1);
    });
}

/// A dormant thread is woken, and moves to another reactor, while a message is sent:
/// whichever reactor the sender rouses, the thread is polled when it arrives.
#[test]
fn loom_a_send_against_a_wake_and_a_move_is_not_lost() {
    model(2, || {
        let old = Dozer::new();
        let new = Dozer {
            mailbox: old.mailbox.clone(),
            host: old.host.clone(),
            ..Dozer::new()
        };
        old.arrives();
        let sender = old.sender(1);
        if old.host.doze_unless(PLACE, || old.has_messages()) {
            old.host.wake();
        }
        // SAFETY: as in `arrives`.
        unsafe { old.host.set(std::ptr::null()) };
        new.arrives();
        while new.take().is_none() {
            new.doze();
        }
        sender.join().unwrap();
    });
}

/// A thread exits while one that thinks it is dormant sends: the message is run, or
/// comes back.
#[test]
fn loom_an_exit_against_a_send_to_a_dormant_thread_loses_nothing() {
    model(2, || {
        let dozer = Dozer::new();
        let dozes = dozer.host.doze_unless(PLACE, || dozer.has_messages());
        assert!(dozes);
        let sender = {
            let (mailbox, host) = (dozer.mailbox.clone(), dozer.host.clone());
            thread::spawn(move || {
                let sent = mailbox.push(0).is_ok();
                host.notify_pushed(&Nobody);
                sent
            })
        };
        dozer.host.wake();
        dozer.mailbox.close();
        let mut got = false;
        // SAFETY: the one consumer.
        while !unsafe { dozer.mailbox.is_drained() } {
            match dozer.take() {
                Some(_) => got = true,
                None => thread::yield_now(),
            }
        }
        assert_eq!(sender.join().unwrap(), got);
    });
}

/// A critical message reaches a dormant thread by a call to its sleeper.
#[test]
fn loom_a_critical_message_against_going_dormant_is_not_lost() {
    model(2, || {
        let dozer = Dozer::new();
        let posted = Arc::new(loom::sync::atomic::AtomicBool::new(false));
        let sender = {
            let (posted, host) = (posted.clone(), dozer.host.clone());
            thread::spawn(move || {
                posted.store(true, loom::sync::atomic::Ordering::Release);
                host.notify_critical();
            })
        };
        let is_posted = || posted.load(loom::sync::atomic::Ordering::Acquire);
        if dozer.host.doze_unless(PLACE, is_posted) {
            while !dozer.sleeper.take_call() {
                dozer
                    .sleeper
                    .sleep_unless(|| dozer.sleeper.is_called(), thread::park);
            }
            assert!(is_posted());
            dozer.host.wake();
        }
        sender.join().unwrap();
        assert!(is_posted());
    });
}
