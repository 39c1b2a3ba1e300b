//! SpdkThreads on a virtual clock, polled by hand on the test's own OS thread:
//! the helpers that the reference suites' scenarios are written in. A tick is
//! 1 µs.

// Each test binary uses a part of it.
#![allow(dead_code)]

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use corespun::clock::{Clock, VirtualClock};
use corespun::thread::{Activity, SpdkThread, ThreadLib, ThreadRunner};

/// Rounds after which a clean-up counts as one that does not end.
const PATIENCE: usize = 10_000;

pub(crate) struct Threads {
    pub(crate) library: ThreadLib,
    pub(crate) time: VirtualClock,
    runners: Vec<ThreadRunner>,
    panics: Arc<Mutex<Vec<String>>>,
}

impl Threads {
    /// A library instance with `n` unnamed threads; none is current afterwards.
    pub(crate) fn allocate(n: usize) -> Self {
        let (clock, time) = Clock::virtual_at(1_000_000);
        let panics: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = panics.clone();
        let library = ThreadLib::builder()
            .clock(clock)
            .panic_hook(move |panic| seen.lock().unwrap().push(panic.message.to_owned()))
            .build();
        let runners = (0..n)
            .map(|_| library.thread().build().unwrap().attach())
            .collect();
        Threads {
            library,
            time,
            runners,
            panics,
        }
    }

    /// The panics that the threads have contained, which are then expected.
    pub(crate) fn take_panics(&self) -> Vec<String> {
        std::mem::take(&mut *self.panics.lock().unwrap())
    }

    pub(crate) fn handle(&self, thread: usize) -> SpdkThread {
        self.runners[thread].handle()
    }

    pub(crate) fn runner(&mut self, thread: usize) -> &mut ThreadRunner {
        &mut self.runners[thread]
    }

    /// `set_thread(i)`, for as long as `f` runs.
    pub(crate) fn on<R>(&mut self, thread: usize, f: impl FnOnce() -> R) -> R {
        self.runners[thread].enter(f)
    }

    /// Asks from outside: a message, if the thread is not exiting already.
    pub(crate) fn exit(&self, thread: usize) {
        drop(self.handle(thread).exit());
    }

    pub(crate) fn is_exited(&self, thread: usize) -> bool {
        self.handle(thread).is_exited()
    }

    pub(crate) fn poll_once(&mut self, thread: usize) -> bool {
        self.poll_thread_times(thread, 1)
    }

    pub(crate) fn delay_us(&self, us: u64) {
        self.time.advance(us);
    }

    /// Exactly `n` polls of one message each, every one beginning when the one
    /// before ended. Says whether one was busy.
    pub(crate) fn poll_thread_times(&mut self, thread: usize, n: usize) -> bool {
        let runner = &mut self.runners[thread];
        let mut busy = false;
        let mut now = self.time.now();
        for _ in 0..n {
            busy |= runner.poll(1, now).is_busy();
            now = runner.handle().last_tick();
        }
        busy
    }

    /// Polls while a poll does something; says whether one did.
    pub(crate) fn poll_thread(&mut self, thread: usize) -> bool {
        let mut busy = false;
        while self.poll_thread_times(thread, 1) {
            busy = true;
        }
        busy
    }

    /// Polls all threads until a full round did nothing.
    pub(crate) fn poll_threads(&mut self) {
        let mut busy = true;
        while busy {
            busy = false;
            for thread in 0..self.runners.len() {
                busy |= self.poll_thread(thread);
            }
        }
    }

    /// Exits every thread and polls until all have; fails if that does not end.
    pub(crate) fn free(mut self) {
        for thread in 0..self.runners.len() {
            self.on(thread, || drop(SpdkThread::current().unwrap().exit()));
        }
        for _ in 0..PATIENCE {
            if self.runners.iter().all(|r| r.handle().is_exited()) {
                assert_eq!(self.library.thread_count(), 0);
                return;
            }
            for runner in &mut self.runners {
                runner.poll(1, 0);
            }
        }
        let left: Vec<_> = self.runners.iter().map(|r| r.exit_holders()).collect();
        panic!("threads do not exit; held by {left:?}");
    }
}

/// An assertion that fails inside a message, poller or task is contained there,
/// so it fails the test here.
impl Drop for Threads {
    fn drop(&mut self) {
        self.runners.clear();
        if !std::thread::panicking() {
            assert_eq!(self.take_panics(), [""; 0], "contained panics");
        }
    }
}

/// A counter that a poller and its test share.
#[derive(Clone, Default)]
pub(crate) struct Runs(Rc<Cell<u64>>);

impl Runs {
    pub(crate) fn add(&self) {
        self.0.set(self.0.get() + 1);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.get()
    }

    /// How many since the last `take`.
    pub(crate) fn take(&self) -> u64 {
        self.0.take()
    }

    /// A callback that counts and finds nothing to do.
    pub(crate) fn idle(&self) -> impl FnMut() -> Activity + use<> {
        let runs = self.clone();
        move || {
            runs.add();
            Activity::Idle
        }
    }
}

/// A counter for callbacks that travel.
#[derive(Clone, Default)]
pub(crate) struct SharedRuns(Arc<AtomicI64>);

impl SharedRuns {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn subtract(&self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }

    pub(crate) fn get(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }
}

pub(crate) fn us(us: u64) -> Duration {
    Duration::from_micros(us)
}
