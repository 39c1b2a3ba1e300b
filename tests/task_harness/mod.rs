//! Threads polled by hand on a virtual clock of 1 tick per µs, for the tests of
//! tasks, streams and timers.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses a part of it"
)]

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use corespun::clock::{Clock, VirtualClock};
use corespun::task::JoinHandle;
use corespun::thread::{ThreadLib, ThreadRunner};
use futures::executor::block_on;

pub const fn us(us: u64) -> Duration {
    Duration::from_micros(us)
}

pub fn library() -> (ThreadLib, VirtualClock) {
    let (clock, hand) = Clock::virtual_at(1_000_000);
    (ThreadLib::builder().clock(clock).build(), hand)
}

pub fn thread() -> (ThreadRunner, VirtualClock) {
    let (library, hand) = library();
    (library.thread().build().unwrap().attach(), hand)
}

/// Two threads of one library.
pub fn two_threads() -> (ThreadRunner, ThreadRunner) {
    let (library, _) = library();
    let make = |name| library.thread().name(name).build().unwrap().attach();
    (make("here"), make("there"))
}

/// A library whose contained panics are collected, as "source: message".
pub fn library_with_panics() -> (ThreadLib, Arc<Mutex<Vec<String>>>) {
    let panics = Arc::new(Mutex::new(Vec::new()));
    let seen = panics.clone();
    let library = ThreadLib::builder()
        .panic_hook(move |panic| {
            let text = format!("{:?}: {}", panic.source, panic.message);
            seen.lock().unwrap().push(text);
        })
        .build();
    (library, panics)
}

/// Polls at the current tick until nothing is left to do at it. Gives up on what
/// is busy for ever.
pub fn settle(runner: &mut ThreadRunner) {
    for _ in 0..10_000 {
        if !runner.poll(0, 0).is_busy() {
            return;
        }
    }
    panic!("the thread is busy without end");
}

/// [`settle`] for threads that talk to each other.
pub fn settle_all(runners: &mut [&mut ThreadRunner]) {
    for _ in 0..10_000 {
        let mut busy = false;
        for runner in runners.iter_mut() {
            busy |= runner.poll(0, 0).is_busy();
        }
        if !busy {
            return;
        }
    }
    panic!("the threads are busy without end");
}

pub fn run_to(runner: &mut ThreadRunner, hand: &VirtualClock, tick: u64) {
    settle(runner);
    while hand.now() < tick {
        hand.advance(1);
        settle(runner);
    }
}

pub fn output<T>(handle: JoinHandle<T>) -> T {
    assert!(handle.is_finished(), "the task has not ended");
    block_on(handle).unwrap()
}

/// What happened, in order.
#[derive(Clone, Default)]
pub struct Trace(Rc<RefCell<Vec<String>>>);

impl Trace {
    pub fn note(&self, what: impl Into<String>) {
        self.0.borrow_mut().push(what.into());
    }

    pub fn take(&self) -> Vec<String> {
        self.0.take()
    }
}

/// Notes its drop.
pub struct DropNote(pub Trace, pub &'static str);

impl Drop for DropNote {
    fn drop(&mut self) {
        self.0.note(self.1);
    }
}
