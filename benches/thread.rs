//! What the thread library costs, row by row beside SPDK's C library: medians
//! of several runs, in nanoseconds per operation.
//!
//! ```text
//! cargo bench --bench thread
//! ```
//!
//! SPDK's figures were measured on two quiet cores of the same kind of machine;
//! the floor, two cache lines 256 bytes apart bouncing between two spinning OS
//! threads, is measured here. Run it on a quiet machine. A filter (a part of a
//! row's name) as argument selects rows.

mod measure;

use std::cell::Cell;
use std::convert::Infallible;
use std::hint::{black_box, spin_loop};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use corespun::channel::IoDevice;
use corespun::clock::Clock;
use corespun::cpu::{self, CpuSet};
use corespun::thread::{Activity, Poller, SpdkThread, ThreadLib, ThreadRunner};
use measure::{
    Elsewhere, flood, idle_poll, line_round_trip, per_op, resident, runner, self_messages,
};

const RUNS: usize = 7;

fn main() {
    // `cargo test --benches` leaves this out: then one short run shows that it
    // works.
    let full = std::env::args().any(|arg| arg == "--bench");
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let bench = Bench {
        runs: if full { RUNS } else { 1 },
        scale: if full { 100 } else { 1 },
        filter,
    };
    let cores: Vec<usize> = cpu::available()
        .expect("the cores of this process")
        .iter()
        .collect();
    println!(
        "{:<46} {:>8} {:>8} {:>8} {:>8}",
        "ns per operation", "min", "median", "max", "SPDK C"
    );
    let pair = match cores[..] {
        [first, second, ..] => Some((first, second)),
        _ => None,
    };
    let scale = bench.scale;
    if let Some((here, there)) = pair {
        bench.row("floor: bare cache-line round trip", 49.0, || {
            line_round_trip(here, there, 2_000 * scale)
        });
    }
    cpu::pin_current_thread(cores[0]).expect("pinning to a core of this process");
    bench.row("message to self, batches of 8", 10.9, || {
        self_messages(1_000 * scale)
    });
    bench.row("round trip, two threads, one core", 38.0, || {
        local_round_trip(2_000 * scale)
    });
    if let Some((here, there)) = pair {
        bench.row("round trip, two cores", 213.0, || {
            cross_round_trip(here, there, 1_000 * scale)
        });
        bench.row("flood core to core, <= 32,768 outstanding", 110.0, || {
            flood(here, there, 10_000 * scale)
        });
        cpu::pin_current_thread(cores[0]).expect("pinning to a core of this process");
    }
    bench.row("idle poll, tick given", 9.3, || idle_poll(10_000 * scale));
    bench.row("active poller, each of 1,000", 3.4, || {
        active_pollers(1_000, 50 * scale)
    });
    for (outstanding, spdk) in [(10, 106.0), (1_000, 110.0), (100_000, 264.0)] {
        let name = format!("timed poller: register + cancel, {outstanding} there");
        bench.row(&name, spdk, || {
            timed_register_cancel(outstanding, 1_000 * scale)
        });
    }
    for (outstanding, spdk) in [(10, 24.0), (1_000, 51.0), (100_000, 120.0)] {
        let name = format!("timed poller: expire + re-arm, {outstanding} in a poll");
        bench.row(&name, spdk, || timed_expire(outstanding, 2_000 * scale));
    }
    bench.row("channel get + put, there", 14.2, || {
        channel_get_put(10_000 * scale)
    });
    bench.row("channel create + destroy + poll", 112.0, || {
        channel_create_destroy(1_000 * scale)
    });
    bench.row("for_each_channel, two threads, one core", 162.0, || {
        local_walk(1_000 * scale)
    });
    if let Some((here, there)) = pair {
        bench.row("for_each_channel, two threads, two cores", 455.0, || {
            cross_walk(here, there, 500 * scale)
        });
        cpu::pin_current_thread(cores[0]).expect("pinning to a core of this process");
    }
    bench.row("thread create + exit + destroy", 20_100.0, || {
        create_destroy(100 * scale)
    });
    bench.row("bytes of an idle thread, 1,000 x scale", 555_000.0, || {
        idle_thread_bytes(1_000 * scale)
    });
    if let Some((first, second)) = pair {
        cpu::set_current_affinity(&[first, second].into_iter().collect::<CpuSet>()).ok();
    }
}

struct Bench {
    runs: usize,
    scale: usize,
    filter: Option<String>,
}

impl Bench {
    /// Prints the spread of several measurements beside SPDK's figure.
    fn row(&self, name: &str, spdk: f64, measure: impl Fn() -> f64) {
        if self
            .filter
            .as_ref()
            .is_some_and(|part| !name.contains(part))
        {
            return;
        }
        let mut figures: Vec<f64> = (0..self.runs).map(|_| measure()).collect();
        figures.sort_by(f64::total_cmp);
        println!(
            "{name:<46} {:>8.1} {:>8.1} {:>8.1} {spdk:>8.1}",
            figures[0],
            figures[self.runs / 2],
            figures[self.runs - 1]
        );
    }
}

/// Where a ball is thrown: two threads, and how often the first got it back.
struct Court {
    threads: [SpdkThread; 2],
    rounds: AtomicU64,
}

/// Throws the ball of the current thread to the other one.
fn throw(court: &'static Court, to: usize) {
    let caught = move || {
        if to == 0 {
            let rounds = court.rounds.load(Ordering::Relaxed);
            court.rounds.store(rounds + 1, Ordering::Relaxed);
        }
        throw(court, 1 - to);
    };
    court.threads[to].send_msg(caught).expect("one ball");
}

fn court(threads: [SpdkThread; 2]) -> &'static Court {
    // A few bytes for each measurement.
    Box::leak(Box::new(Court {
        threads,
        rounds: AtomicU64::new(0),
    }))
}

/// One loop over both threads, as a reactor's.
fn local_round_trip(rounds: usize) -> f64 {
    let library = ThreadLib::new();
    let mut runners = [(); 2].map(|()| library.thread().build().expect("a thread").attach());
    let court = court([runners[0].handle(), runners[1].handle()]);
    runners[0].enter(|| throw(court, 1));
    let start = Instant::now();
    let mut now = 1;
    while court.rounds.load(Ordering::Relaxed) < rounds as u64 {
        for runner in &mut runners {
            runner.poll(0, now);
            now += 1;
        }
    }
    per_op(start, rounds)
}

fn cross_round_trip(here: usize, there: usize, rounds: usize) -> f64 {
    cpu::pin_current_thread(here).expect("pinning");
    let elsewhere = Elsewhere::start(there, |_| ());
    let mut runner = runner();
    let court = court([runner.handle(), elsewhere.thread.clone()]);
    runner.enter(|| throw(court, 1));
    let start = Instant::now();
    while court.rounds.load(Ordering::Relaxed) < rounds as u64 {
        if runner.poll(0, 1) == Activity::Idle {
            spin_loop();
        }
    }
    let figure = per_op(start, rounds);
    elsewhere.stop();
    figure
}

fn active_pollers(pollers: usize, polls: usize) -> f64 {
    let mut runner = runner();
    let _kept: Vec<Poller> = runner.enter(|| {
        let poller = || Poller::active(|| Activity::Idle).expect("on a thread");
        (0..pollers).map(|_| poller()).collect()
    });
    let start = Instant::now();
    for tick in 1..=polls as u64 {
        black_box(runner.poll(0, tick));
    }
    per_op(start, polls * pollers)
}

/// Timed pollers on a clock of 1 MHz, with periods from 1,000 s on.
fn with_timers(count: usize) -> (ThreadRunner, corespun::clock::VirtualClock, Vec<Poller>) {
    let (clock, time) = Clock::virtual_at(1_000_000);
    let library = ThreadLib::builder().clock(clock).build();
    let mut runner = library.thread().build().expect("a thread").attach();
    let kept = runner.enter(|| {
        let timed = |n: usize| {
            let period = Duration::from_micros(1_000_000_000 + (n as u64 * 7919) % 1_000_000);
            Poller::timed(period, || Activity::Idle).expect("on a thread")
        };
        (0..count).map(timed).collect()
    });
    (runner, time, kept)
}

fn timed_register_cancel(outstanding: usize, rounds: usize) -> f64 {
    let (mut runner, _time, _kept) = with_timers(outstanding);
    let start = Instant::now();
    for round in 0..rounds {
        runner.enter(|| {
            let period =
                Duration::from_micros(1_000_000_000 + (round as u64 * 104_729) % 1_000_000);
            drop(Poller::timed(period, || Activity::Idle).expect("on a thread"));
        });
        runner.poll(0, 1);
    }
    per_op(start, rounds)
}

fn timed_expire(outstanding: usize, runs: usize) -> f64 {
    let (mut runner, time, _kept) = with_timers(outstanding);
    let polls = runs.div_ceil(outstanding).max(1);
    let start = Instant::now();
    for _ in 0..polls {
        let now = time.advance(1_001_000_000);
        black_box(runner.poll(0, now));
    }
    per_op(start, polls * outstanding)
}

fn counting_device(runner: &mut ThreadRunner) -> IoDevice<Cell<u64>> {
    let construct = || Ok::<_, Infallible>(Cell::new(0));
    runner
        .enter(|| IoDevice::builder().register(construct))
        .expect("on a thread")
}

fn channel_get_put(rounds: usize) -> f64 {
    let mut runner = runner();
    let device = counting_device(&mut runner);
    runner.enter(|| {
        let _held = device.channel().expect("registered");
        let start = Instant::now();
        for _ in 0..rounds {
            drop(black_box(device.channel().expect("registered")));
        }
        per_op(start, rounds)
    })
}

fn channel_create_destroy(rounds: usize) -> f64 {
    let mut runner = runner();
    let device = counting_device(&mut runner);
    let start = Instant::now();
    for _ in 0..rounds {
        runner.enter(|| drop(black_box(device.channel().expect("registered"))));
        runner.poll(0, 1);
    }
    let figure = per_op(start, rounds);
    assert!(device.holders().is_empty());
    figure
}

/// Walks one after the other, and counts those that have ended.
fn walk(device: &IoDevice<Cell<u64>>, ended: &Rc<Cell<usize>>) {
    let seen = ended.clone();
    device
        .for_each_channel(
            |visits| {
                visits.set(visits.get() + 1);
                Ok::<_, Infallible>(())
            },
            move |_| seen.set(seen.get() + 1),
        )
        .expect("on a thread");
}

fn local_walk(rounds: usize) -> f64 {
    let library = ThreadLib::new();
    let mut runners = [(); 2].map(|()| library.thread().build().expect("a thread").attach());
    let device = counting_device(&mut runners[0]);
    let _channels: Vec<_> = (runners.iter_mut())
        .map(|runner| runner.enter(|| device.channel()).expect("registered"))
        .collect();
    let ended = Rc::new(Cell::new(0));
    let start = Instant::now();
    for round in 0..rounds {
        runners[0].enter(|| walk(&device, &ended));
        while ended.get() == round {
            for runner in &mut runners {
                runner.poll(0, 1);
            }
        }
    }
    per_op(start, rounds)
}

fn cross_walk(here: usize, there: usize, rounds: usize) -> f64 {
    cpu::pin_current_thread(here).expect("pinning");
    let library = ThreadLib::new();
    let mut runner = library.thread().build().expect("a thread").attach();
    let device = counting_device(&mut runner);
    let _channel = runner.enter(|| device.channel()).expect("registered");
    let over_there = device.clone();
    let elsewhere = Elsewhere::start_in(&library, there, move |runner| {
        runner.enter(|| over_there.channel()).expect("registered")
    });
    let ended = Rc::new(Cell::new(0));
    let start = Instant::now();
    for round in 0..rounds {
        runner.enter(|| walk(&device, &ended));
        while ended.get() == round {
            if runner.poll(0, 1) == Activity::Idle {
                spin_loop();
            }
        }
    }
    let figure = per_op(start, rounds);
    elsewhere.stop();
    figure
}

fn create_destroy(threads: usize) -> f64 {
    let library = ThreadLib::new();
    let _app_thread = library.thread().build().expect("a thread");
    let start = Instant::now();
    for _ in 0..threads {
        let mut runner = library.thread().build().expect("a thread").attach();
        let thread = runner.handle();
        runner.enter(|| drop(thread.exit()));
        while !thread.is_exited() {
            runner.poll(0, 1);
        }
    }
    per_op(start, threads)
}

/// Resident memory that `count` threads add, each polled once.
fn idle_thread_bytes(count: usize) -> f64 {
    let library = ThreadLib::new();
    let before = resident();
    let mut runners = Vec::with_capacity(count);
    for _ in 0..count {
        let mut runner = library.thread().build().expect("a thread").attach();
        runner.poll(0, 1);
        runners.push(runner);
    }
    let after = resident();
    drop(runners);
    after.saturating_sub(before) as f64 / count as f64
}
