//! Models of G13, one FIFO, run by loom: the real own queue beside the real
//! mailbox, with senders elsewhere. "Before" is what a flag shows: a send that
//! returned before the flag was set, and one that began after it was seen.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

use super::{Mailbox, OwnEntry, OwnQueue, PushError};

const TASK: &str = "task";

impl OwnEntry for &'static str {
    type Message = Self;

    fn from_message(message: Self) -> Self {
        message
    }

    unsafe fn into_message(self) -> Self {
        self
    }

    fn is_task(&self) -> bool {
        *self == TASK
    }
}

fn model(preemptions: usize, f: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(f);
}

/// What the owner of a thread has, for messages with a name each.
struct Owner {
    mailbox: Arc<Mailbox<&'static str>>,
    own: OwnQueue<&'static str>,
    ran: Vec<&'static str>,
}

impl Owner {
    fn new(limit: usize) -> Self {
        let mailbox = Arc::new(Mailbox::new(2));
        Owner {
            own: OwnQueue::new(&mailbox, limit),
            mailbox,
            ran: Vec::new(),
        }
    }

    fn send(&self, message: &'static str) {
        // SAFETY: each model has one owner, the thread that made this.
        unsafe { self.own.push_message(&self.mailbox, message) }
    }

    /// Polls once; `most` messages.
    fn poll(&mut self, most: usize) {
        self.own.begin(usize::MAX);
        for _ in 0..most {
            // SAFETY: as above.
            match unsafe { self.own.next(&self.mailbox) } {
                Some(message) => self.ran.push(message),
                None => return,
            }
        }
    }

    fn poll_until(&mut self, ran: usize) {
        while self.ran.len() < ran {
            self.poll(8);
            thread::yield_now();
        }
        // SAFETY: as above.
        assert!(self.own.is_empty() && unsafe { self.mailbox.is_drained() });
    }

    fn assert_before(&self, earlier: &str, later: &str) {
        let at = |name| self.ran.iter().position(|ran| *ran == name);
        let (first, second) = (at(earlier).unwrap(), at(later).unwrap());
        assert!(first < second, "{later} passed {earlier}: {:?}", self.ran);
    }
}

/// A message that the owner sends itself, against those of another: in the ring,
/// and with `preloaded` messages before it in the spill.
fn own_against_another(preloaded: &'static [&'static str]) {
    model(2, move || {
        let mut owner = Owner::new(100);
        for name in preloaded {
            owner.mailbox.push(*name).unwrap();
        }
        let sent_first = Arc::new(AtomicBool::new(false));
        let own_sent = Arc::new(AtomicBool::new(false));
        let sender = {
            let (mailbox, sent_first) = (owner.mailbox.clone(), sent_first.clone());
            let own_sent = own_sent.clone();
            thread::spawn(move || {
                mailbox.push("first").unwrap();
                sent_first.store(true, Ordering::Release);
                let after_own = own_sent.load(Ordering::Acquire);
                mailbox.push("second").unwrap();
                after_own
            })
        };
        owner.poll(1);
        let after_first = sent_first.load(Ordering::Acquire);
        owner.send("own");
        own_sent.store(true, Ordering::Release);
        owner.poll(1);
        let second_after_own = sender.join().unwrap();
        owner.poll_until(preloaded.len() + 3);
        owner.assert_before("first", "second");
        for name in preloaded {
            owner.assert_before(name, "own");
            owner.assert_before(name, "first");
        }
        if after_first {
            owner.assert_before("first", "own");
        }
        if second_after_own {
            owner.assert_before("own", "second");
        }
    });
}

/// G13
#[test]
fn loom_an_own_message_keeps_its_place_in_the_ring() {
    own_against_another(&[]);
}

/// G13
#[test]
fn loom_an_own_message_keeps_its_place_in_the_spill() {
    own_against_another(&["a", "b", "c"]);
}

/// G13. The sender of the one before may be pre-empted between its claim and its
/// write, and hides what another has finished behind it.
#[test]
fn loom_an_own_message_waits_for_what_a_slow_sender_hides() {
    model(2, || {
        let mut owner = Owner::new(100);
        let finished = Arc::new(AtomicBool::new(false));
        let slow = {
            let mailbox = owner.mailbox.clone();
            thread::spawn(move || mailbox.push("slow").unwrap())
        };
        let quick = {
            let (mailbox, finished) = (owner.mailbox.clone(), finished.clone());
            thread::spawn(move || {
                mailbox.push("quick").unwrap();
                finished.store(true, Ordering::Release);
            })
        };
        let after = finished.load(Ordering::Acquire);
        owner.send("own");
        owner.poll(8);
        slow.join().unwrap();
        quick.join().unwrap();
        owner.poll_until(3);
        if after {
            owner.assert_before("quick", "own");
        }
    });
}

/// G13, of two others, with the ring full before: the second begins when the first
/// has returned, while the owner empties the ring.
#[test]
fn loom_of_two_senders_the_earlier_one_is_first() {
    model(2, || {
        let mut owner = Owner::new(100);
        for name in ["a", "b"] {
            owner.mailbox.push(name).unwrap();
        }
        let sent = Arc::new(AtomicBool::new(false));
        let earlier = {
            let (mailbox, sent) = (owner.mailbox.clone(), sent.clone());
            thread::spawn(move || {
                mailbox.push("earlier").unwrap();
                sent.store(true, Ordering::Release);
            })
        };
        let later = {
            let mailbox = owner.mailbox.clone();
            thread::spawn(move || {
                let after = sent.load(Ordering::Acquire);
                mailbox.push("later").unwrap();
                after
            })
        };
        owner.poll(2);
        earlier.join().unwrap();
        let after = later.join().unwrap();
        owner.poll_until(4);
        if after {
            owner.assert_before("earlier", "later");
        }
    });
}

/// Tasks that the owner queued and messages of others take turns, and neither holds
/// up an own message that was sent before them.
#[test]
fn loom_a_task_takes_turns_with_others() {
    model(2, || {
        let mut owner = Owner::new(100);
        let own_sent = Arc::new(AtomicBool::new(false));
        let sender = {
            let (mailbox, own_sent) = (owner.mailbox.clone(), own_sent.clone());
            thread::spawn(move || {
                let after_own = own_sent.load(Ordering::Acquire);
                mailbox.push("other").unwrap();
                after_own
            })
        };
        owner.own.push_task(TASK, false);
        owner.send("own");
        own_sent.store(true, Ordering::Release);
        owner.poll(1);
        let after_own = sender.join().unwrap();
        owner.poll_until(3);
        if after_own {
            owner.assert_before("own", "other");
        }
    });
}

/// The limit is one: what the owner has sent itself leaves no place for others,
/// and what has run makes room.
#[test]
fn loom_own_messages_count_against_the_limit_of_others() {
    model(3, || {
        let mut owner = Owner::new(3);
        owner.send("a");
        let sender = {
            let mailbox = owner.mailbox.clone();
            thread::spawn(move || {
                let push = |name| match mailbox.push_limited(3, name, |name| name) {
                    Ok(()) => 1,
                    Err(PushError::Full(_)) => 0,
                    Err(PushError::Closed(_)) => unreachable!(),
                };
                [push("x"), push("y"), push("z")]
            })
        };
        // One that the sender may not have seen: both may have found the last place.
        let mut own = 1;
        if !owner.mailbox.is_full(3) {
            owner.send("b");
            own += 1;
        }
        let accepted: usize = sender.join().unwrap().iter().sum();
        assert!((3..=4).contains(&(accepted + own)), "{accepted} and {own}");
        assert!(owner.mailbox.is_full(3));
        owner.poll_until(accepted + own);
        assert!(!owner.mailbox.is_full(3));
        let fills = (0..4).filter(|_| owner.mailbox.push_limited(3, "n", |n| n).is_ok());
        assert_eq!(fills.count(), 3);
    });
}
