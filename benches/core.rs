//! What the core costs, in nanoseconds per operation: medians of several runs.
//!
//! ```text
//! cargo bench --bench core
//! ```
//!
//! The first row is the floor of everything that crosses cores: two cache lines
//! 256 bytes apart bouncing between two spinning OS threads. Run it on a quiet
//! machine, and compare only figures that one run printed together.

use std::hint::{black_box, spin_loop};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Instant;

use corespun::cpu::{self, CpuSet};
use corespun::task::{spawn_local, yield_now};
use corespun::thread::{Activity, SpdkThread, ThreadLib, ThreadRunner};

const RUNS: usize = 7;

fn main() {
    // `cargo test --benches` passes this: then one short run shows that it works.
    let scale = if std::env::args().any(|arg| arg == "--bench") {
        100
    } else {
        1
    };
    let cores: Vec<usize> = cpu::available()
        .expect("the cores of this process")
        .iter()
        .collect();
    println!(
        "{:<44} {:>10} {:>10} {:>10}",
        "ns per operation", "min", "median", "max"
    );
    if let [first, second, ..] = cores[..] {
        row("floor: bare cache-line round trip", || {
            line_round_trip(first, second, 2_000 * scale)
        });
    }
    cpu::pin_current_thread(cores[0]).expect("pinning to a core of this process");
    row("idle poll, tick given", || idle_poll(10_000 * scale));
    row("local spawn + join, one at a time", || {
        spawn_join(1_000 * scale)
    });
    row("yield, one task", || yields(1, 5_000 * scale));
    row("yield, 1,000 tasks", || yields(1_000, 10 * scale));
    row("local wake round trip", || local_wake(2_000 * scale));
    row("message to self, batches of 8", || {
        self_messages(1_000 * scale)
    });
    if let [first, second, ..] = cores[..] {
        row("cross-core wake round trip", || {
            cross_wake(first, second, 500 * scale)
        });
        row("messages core to core, each", || {
            flood(first, second, 5_000 * scale)
        });
        cpu::set_current_affinity(&[first, second].into_iter().collect::<CpuSet>()).ok();
    }
}

/// Prints the spread of several measurements.
fn row(name: &str, measure: impl Fn() -> f64) {
    let mut figures: Vec<f64> = (0..RUNS).map(|_| measure()).collect();
    figures.sort_by(f64::total_cmp);
    println!(
        "{name:<44} {:>10.1} {:>10.1} {:>10.1}",
        figures[0],
        figures[RUNS / 2],
        figures[RUNS - 1]
    );
}

fn per_op(start: Instant, operations: usize) -> f64 {
    start.elapsed().as_nanos() as f64 / operations as f64
}

fn runner() -> ThreadRunner {
    ThreadLib::new()
        .thread()
        .build()
        .expect("a thread")
        .attach()
}

fn run_until(runner: &mut ThreadRunner, mut done: impl FnMut() -> bool) {
    while !done() {
        runner.poll(0, 0);
    }
}

#[repr(align(256))]
struct Line(AtomicU64);

fn line_round_trip(here: usize, there: usize, rounds: usize) -> f64 {
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

fn idle_poll(polls: usize) -> f64 {
    let mut runner = runner();
    let start = Instant::now();
    for tick in 1..=polls as u64 {
        black_box(runner.poll(0, tick));
    }
    per_op(start, polls)
}

fn spawn_join(tasks: usize) -> f64 {
    let mut runner = runner();
    let all = runner.enter(|| {
        spawn_local(async move {
            for n in 0..tasks {
                black_box(spawn_local(async move { n }).await.expect("it ends"));
            }
        })
    });
    let start = Instant::now();
    run_until(&mut runner, || all.is_finished());
    per_op(start, tasks)
}

fn yields(tasks: usize, each: usize) -> f64 {
    let mut runner = runner();
    let handles: Vec<_> = runner.enter(|| {
        let task = || async move {
            for _ in 0..each {
                yield_now().await;
            }
        };
        (0..tasks).map(|_| spawn_local(task())).collect()
    });
    let start = Instant::now();
    run_until(&mut runner, || {
        handles.iter().all(|handle| handle.is_finished())
    });
    per_op(start, tasks * each)
}

/// Two tasks that wake each other, through one cell.
fn local_wake(rounds: usize) -> f64 {
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;
    let mut runner = runner();
    let turn = Rc::new(Cell::new(0));
    let wakers = Rc::new([RefCell::new(None), RefCell::new(None)]);
    let player = |me: usize| {
        let (turn, wakers) = (turn.clone(), wakers.clone());
        async move {
            for _ in 0..rounds {
                std::future::poll_fn(|cx| {
                    if turn.get() == me {
                        return Poll::Ready(());
                    }
                    *wakers[me].borrow_mut() = Some(cx.waker().clone());
                    Poll::Pending
                })
                .await;
                turn.set(1 - me);
                let other: Option<std::task::Waker> = wakers[1 - me].borrow_mut().take();
                other.into_iter().for_each(std::task::Waker::wake);
            }
        }
    };
    let handles = runner.enter(|| [spawn_local(player(0)), spawn_local(player(1))]);
    let start = Instant::now();
    run_until(&mut runner, || {
        handles.iter().all(|handle| handle.is_finished())
    });
    per_op(start, rounds)
}

fn self_messages(batches: usize) -> f64 {
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
struct Elsewhere {
    thread: SpdkThread,
    stop: Arc<AtomicBool>,
    os_thread: std::thread::JoinHandle<()>,
}

impl Elsewhere {
    fn start(core: usize) -> Self {
        let parked = ThreadLib::new().thread().build().expect("a thread");
        let thread = parked.handle();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let os_thread = std::thread::spawn(move || {
            cpu::pin_current_thread(core).expect("pinning");
            let mut runner = parked.attach();
            while !stopped.load(Ordering::Relaxed) {
                if runner.poll(0, 0) == Activity::Idle {
                    spin_loop();
                }
            }
        });
        Elsewhere {
            thread,
            stop,
            os_thread,
        }
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.os_thread.join().expect("the other core");
    }
}

/// A task here that spawns a task there and is woken by it.
fn cross_wake(here: usize, there: usize, rounds: usize) -> f64 {
    use futures::StreamExt;
    use futures::channel::mpsc;
    cpu::pin_current_thread(here).expect("pinning");
    let elsewhere = Elsewhere::start(there);
    let mut runner = runner();
    let (mut to_there, mut there_rx) = mpsc::channel::<u64>(1);
    let (mut to_here, mut here_rx) = mpsc::channel::<u64>(1);
    let echo = elsewhere.thread.spawn(async move {
        while let Some(value) = there_rx.next().await {
            let _ = to_here.try_send(value);
        }
    });
    let asker = runner.enter(|| {
        spawn_local(async move {
            for round in 0..rounds as u64 {
                let _ = to_there.try_send(round);
                black_box(here_rx.next().await);
            }
        })
    });
    let start = Instant::now();
    run_until(&mut runner, || asker.is_finished());
    let figure = per_op(start, rounds);
    drop(echo);
    elsewhere.stop();
    figure
}

fn flood(here: usize, there: usize, messages: usize) -> f64 {
    cpu::pin_current_thread(here).expect("pinning");
    let elsewhere = Elsewhere::start(there);
    let received = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    for sent in 0..messages as u64 {
        while sent - received.load(Ordering::Relaxed) >= 32_768 {
            spin_loop();
        }
        let received = Counter(Arc::as_ptr(&received));
        elsewhere
            .thread
            .send_msg(move || received.add())
            .expect("fewer than 65,536 outstanding");
    }
    while received.load(Ordering::Relaxed) < messages as u64 {
        spin_loop();
    }
    let figure = per_op(start, messages);
    elsewhere.stop();
    figure
}

/// The receiver's counter, which only it writes and which outlives the flood.
struct Counter(*const AtomicU64);

// SAFETY: `flood` keeps the counter alive until every message has run.
unsafe impl Send for Counter {}

impl Counter {
    fn add(self) {
        // SAFETY: as above.
        let counter = unsafe { &*self.0 };
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}
