//! Threads polled by hand on virtual time, one tick a microsecond: what the
//! reference suite's helpers do (BEHAVIOURS E.0).

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::cell::Cell;
use std::rc::Rc;

use corespun::clock::{Clock, VirtualClock};
use corespun::thread::{Activity, ThreadLib, ThreadRunner};

pub(crate) struct Threads {
    pub(crate) library: ThreadLib,
    pub(crate) time: VirtualClock,
    runners: Vec<ThreadRunner>,
}

impl Threads {
    /// `count` unnamed threads; none is current.
    pub(crate) fn new(count: usize) -> Self {
        let (clock, time) = Clock::virtual_at(1_000_000);
        let library = ThreadLib::builder().clock(clock).build();
        let runners = (0..count)
            .map(|_| library.thread().build().unwrap().attach())
            .collect();
        Threads {
            library,
            time,
            runners,
        }
    }

    /// Runs `f` with thread `index` current, without polling it.
    pub(crate) fn on<R>(&mut self, index: usize, f: impl FnOnce() -> R) -> R {
        self.runners[index].enter(f)
    }

    pub(crate) fn runner(&mut self, index: usize) -> &mut ThreadRunner {
        &mut self.runners[index]
    }

    /// One poll that runs at most one message.
    pub(crate) fn poll_once(&mut self, index: usize) -> Activity {
        self.runners[index].poll(1, 0)
    }

    /// Polls one thread until a poll does nothing.
    pub(crate) fn poll_thread(&mut self, index: usize) {
        while self.poll_once(index).is_busy() {}
    }

    /// Polls all threads until a whole round does nothing.
    pub(crate) fn poll_threads(&mut self) {
        loop {
            let mut busy = false;
            for index in 0..self.runners.len() {
                busy |= self.poll_once(index).is_busy();
            }
            if !busy {
                return;
            }
        }
    }

    pub(crate) fn is_exited(&self, index: usize) -> bool {
        self.runners[index].handle().is_exited()
    }

    pub(crate) fn exit(&self, index: usize) {
        drop(self.runners[index].handle().exit());
    }

    /// Ends every thread, in an orderly way or not at all.
    pub(crate) fn free(mut self) {
        for index in 0..self.runners.len() {
            self.exit(index);
        }
        for _ in 0..100 {
            for runner in &mut self.runners {
                runner.poll(1, 0);
            }
        }
        for runner in &self.runners {
            let holders = runner.exit_holders();
            assert!(runner.handle().is_exited(), "still held by {holders:?}");
        }
        assert_eq!(self.library.thread_count(), 0);
    }
}

/// A count that callbacks share with their test.
#[derive(Clone, Default)]
pub(crate) struct Counter(Rc<Cell<u32>>);

impl Counter {
    pub(crate) fn add(&self) {
        self.0.set(self.0.get() + 1);
    }

    pub(crate) fn get(&self) -> u32 {
        self.0.get()
    }
}

/// The same for callbacks that travel.
#[derive(Clone, Default)]
pub(crate) struct SharedCounter(std::sync::Arc<std::sync::atomic::AtomicI32>);

impl SharedCounter {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }

    pub(crate) fn subtract(&self) {
        self.0.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
    }

    pub(crate) fn get(&self) -> i32 {
        self.0.load(std::sync::atomic::Ordering::SeqCst)
    }
}
