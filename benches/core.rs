//! What the core costs, in nanoseconds per operation: medians of several runs.
//!
//! ```text
//! cargo bench --bench core
//! ```
//!
//! The first row is the floor of everything that crosses cores: two cache lines
//! 256 bytes apart bouncing between two spinning OS threads. Run it on a quiet
//! machine, and compare only figures that one run printed together.

mod measure;

use std::hint::black_box;
use std::task::Poll;
use std::time::Instant;

use corespun::cpu::{self, CpuSet};
use corespun::task::{spawn_local, yield_now};
use corespun::thread::ThreadRunner;
use measure::{
    Elsewhere, flood, idle_poll, line_round_trip, per_op, resident, runner, self_messages,
};

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
    row("bytes of a parked task without content", || {
        parked_task_bytes(500 * scale)
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

fn run_until(runner: &mut ThreadRunner, mut done: impl FnMut() -> bool) {
    while !done() {
        runner.poll(0, 0);
    }
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

/// Resident memory that so many detached tasks add which wait for nothing, with the
/// queue that they were in before they were first polled.
fn parked_task_bytes(tasks: usize) -> f64 {
    let mut runner = runner();
    let before = resident();
    runner.enter(|| (0..tasks).for_each(|_| drop(spawn_local(std::future::pending::<()>()))));
    while runner.poll(0, 0).is_busy() {}
    let after = resident();
    // The next run is to find no memory that this one has freed.
    std::mem::forget(runner);
    after.saturating_sub(before) as f64 / tasks as f64
}

/// A task here that spawns a task there and is woken by it.
fn cross_wake(here: usize, there: usize, rounds: usize) -> f64 {
    use futures::StreamExt;
    use futures::channel::mpsc;
    cpu::pin_current_thread(here).expect("pinning");
    let elsewhere = Elsewhere::start(there, |_| ());
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
