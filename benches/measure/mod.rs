//! What several benches measure, or measure with: the floor of everything that
//! crosses cores, a thread polled on another core, and the plainest operations.

#![allow(dead_code, unreachable_pub, reason = "each bench uses a part of it")]

pub mod tasks;

use std::hint::{black_box, spin_loop};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use corespun::cpu;
use corespun::thread::{Activity, SpdkThread, ThreadLib, ThreadRunner};

/// A counter in a cache line of its own, and the line that is fetched with it.
#[repr(align(256))]
pub struct Line(pub AtomicU64);

impl Line {
    /// One that tasks on several cores refer to without counting references, which
    /// would take a line from core to core for each of them.
    #[allow(dead_code, reason = "not every bench has several cores")]
    pub fn leaked() -> &'static Self {
        Box::leak(Box::new(Line(AtomicU64::new(0))))
    }
}

/// Nanoseconds per operation since `start`.
pub fn per_op(start: Instant, operations: usize) -> f64 {
    start.elapsed().as_nanos() as f64 / operations as f64
}

/// A thread to be polled here.
pub fn runner() -> ThreadRunner {
    let parked = ThreadLib::new().thread().build().expect("a thread");
    parked.attach()
}

/// Two cache lines 256 bytes apart, bouncing between two spinning OS threads.
pub fn line_round_trip(here: usize, there: usize, rounds: usize) -> f64 {
    let lines = Arc::new([Line(AtomicU64::new(0)), Line(AtomicU64::new(0))]);
    let echo = lines.clone();
    let rounds = rounds as u64;
    let thread = std::thread::spawn(move || {
        cpu::pin_current_thread(there).expect("pinning");
        for round in 1..=rounds {
            while echo[0].0.load(Ordering::Acquire) != round {
                spin_loop();
            }
            echo[1].0.store(round, Ordering::Release);
        }
    });
    cpu::pin_current_thread(here).expect("pinning");
    let start = Instant::now();
    for round in 1..=rounds {
        lines[0].0.store(round, Ordering::Release);
        while lines[1].0.load(Ordering::Acquire) != round {
            spin_loop();
        }
    }
    let figure = per_op(start, rounds as usize);
    thread.join().expect("the echo");
    figure
}

/// Messages of a thread to itself, eight to a poll.
pub fn self_messages(batches: usize) -> f64 {
    let mut runner = runner();
    let thread = runner.handle();
    let start = Instant::now();
    for batch in 0..batches {
        runner.enter(|| {
            for message in 0..8 {
                thread
                    .send_msg(move || _ = black_box(batch + message))
                    .expect("room for eight");
            }
        });
        runner.poll(0, 1);
    }
    per_op(start, batches * 8)
}

/// A SpdkThread polled in a loop by an OS thread of its own.
pub struct Elsewhere {
    pub thread: SpdkThread,
    stop: Arc<AtomicBool>,
    os_thread: std::thread::JoinHandle<()>,
}

impl Elsewhere {
    pub fn start<T>(
        core: usize,
        setup: impl FnOnce(&mut ThreadRunner) -> T + Send + 'static,
    ) -> Self {
        Elsewhere::start_in(&ThreadLib::new(), core, setup)
    }

    pub fn start_in<T>(
        library: &ThreadLib,
        core: usize,
        setup: impl FnOnce(&mut ThreadRunner) -> T + Send + 'static,
    ) -> Self {
        let parked = library.thread().build().expect("a thread");
        let thread = parked.handle();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let os_thread = std::thread::spawn(move || {
            cpu::pin_current_thread(core).expect("pinning");
            let mut runner = parked.attach();
            let _kept = setup(&mut runner);
            ready.send(()).expect("the starter waits");
            while !stopped.load(Ordering::Relaxed) {
                if runner.poll(0, 1) == Activity::Idle {
                    spin_loop();
                }
            }
        });
        is_ready.recv().expect("it starts");
        Elsewhere {
            thread,
            stop,
            os_thread,
        }
    }

    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.os_thread.join().expect("the other core");
    }
}

/// Messages from one core to another, with at most 32,768 outstanding.
pub fn flood(here: usize, there: usize, messages: usize) -> f64 {
    cpu::pin_current_thread(here).expect("pinning");
    let elsewhere = Elsewhere::start(there, |_| ());
    let received: &'static Line = Box::leak(Box::new(Line(AtomicU64::new(0))));
    let start = Instant::now();
    let mut known = 0;
    for sent in 0..messages as u64 {
        while sent - known >= 32_768 {
            known = received.0.load(Ordering::Relaxed);
            spin_loop();
        }
        let count = || {
            let before = received.0.load(Ordering::Relaxed);
            received.0.store(before + 1, Ordering::Relaxed);
        };
        elsewhere
            .thread
            .send_msg(count)
            .expect("fewer than 65,536 outstanding");
    }
    while received.0.load(Ordering::Relaxed) < messages as u64 {
        spin_loop();
    }
    let figure = per_op(start, messages);
    elsewhere.stop();
    figure
}

/// Polls that find nothing, given the tick.
pub fn idle_poll(polls: usize) -> f64 {
    let mut runner = runner();
    let start = Instant::now();
    for tick in 1..=polls as u64 {
        black_box(runner.poll(0, tick));
    }
    per_op(start, polls)
}

/// Resident memory of this process.
pub fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("procfs");
    let pages: usize = (statm.split(' ').nth(1))
        .and_then(|pages| pages.parse().ok())
        .expect("resident pages");
    pages * 4096
}
