//! What tasks, timers and calls of a SpdkThread cost, in nanoseconds: medians of
//! several runs.
//!
//! ```text
//! cargo bench --bench async_face [PART OF A ROW'S NAME...]
//! ```
//!
//! The threads are polled by plain loops, so that a row shows what its code costs
//! and nothing of the reactor around it: it is there to find regressions. Beside
//! other runtimes the same measures run, with reactors, in `benches/peers`. The
//! floor is a bare cache-line round trip between two pinned OS threads. Run it on
//! a quiet machine, and compare only figures that one run printed together.

mod measure;

use std::hint::{black_box, spin_loop};
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use corespun::cpu;
use corespun::task;
use corespun::thread::{SpdkThread, ThreadRunner};
use futures::FutureExt;
use futures::task::noop_waker_ref;
use measure::tasks::{self, Ended, Executor, Timers};
use measure::{Elsewhere, Line, line_round_trip, per_op, runner};

const RUNS: usize = 9;

fn main() {
    // `cargo test --benches` does not pass this: one short run shows that it works.
    let scale = if std::env::args().any(|arg| arg == "--bench") {
        100
    } else {
        1
    };
    let cores: Vec<usize> = cpu::available()
        .expect("the cores of this process")
        .iter()
        .collect();
    cpu::pin_current_thread(cores[0]).expect("pinning to a core of this process");
    println!(
        "{:<44} {:>10} {:>10} {:>10}",
        "ns per operation", "min", "median", "max"
    );
    row("local spawn + join, one at a time", || {
        tasks::spawn_join::<Polled>(300 * scale)
    });
    row("local spawn + join, eager, one at a time", || {
        tasks::spawn_join::<Eager>(300 * scale)
    });
    row("spawn 10,000, join all, each", || {
        tasks::spawn_many::<Polled>(1, 100 * scale)
    });
    for (name, tasks) in [("yield, 1 task", 1), ("yield, 1,000 tasks", 1000)] {
        row(name, || {
            tasks::yields::<Polled>(tasks, 1000 * scale / tasks + 1)
        });
    }
    row("local wake ping-pong, round trip", || {
        tasks::ping_pong::<Polled>(500 * scale)
    });
    for (name, live) in [
        ("10 s sleep: create + poll + drop, alone", 0),
        ("10 s sleep: the same, 20,000 live", 200 * scale),
    ] {
        row(name, || {
            tasks::cancelled_sleeps::<Polled>(live, 300 * scale)
        });
    }
    let (sleeps, within) = (1000 * scale, Duration::from_millis(scale as u64));
    row("100,000 sleeps in 100 ms: CPU each", || {
        spread_sleeps(sleeps, within).0
    });
    row("100,000 sleeps in 100 ms: mean lateness", || {
        spread_sleeps(sleeps, within).1
    });
    if let [here, there, ..] = cores[..] {
        row("floor: bare cache-line round trip", || {
            line_round_trip(here, there, 500 * scale)
        });
        row("call to another core and back", || {
            calls(there, 300 * scale)
        });
        row("remote spawn, each", || remote_spawns(there, 3000 * scale));
        row("remote spawn, detached, each", || {
            remote_detached_spawns(there, 3000 * scale)
        });
    }
}

/// Prints the spread of several measurements, unless other rows were asked for by
/// a part of their name.
fn row(name: &str, measure: impl Fn() -> f64) {
    let mut wanted = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"))
        .peekable();
    if wanted.peek().is_some() && !wanted.any(|part| name.contains(&part)) {
        return;
    }
    let mut figures: Vec<f64> = (0..RUNS).map(|_| measure()).collect();
    figures.sort_by(f64::total_cmp);
    println!(
        "{name:<44} {:>10.1} {:>10.1} {:>10.1}",
        figures[0],
        figures[RUNS / 2],
        figures[RUNS - 1]
    );
}

/// A SpdkThread polled by a plain loop.
struct Polled;

/// Polls until `main` has ended, and shows each poll's ticks and whether it was
/// busy. As a reactor does: a poll begins when the one before ended.
fn run_on<T: 'static>(
    runner: &mut ThreadRunner,
    main: impl Future<Output = T> + 'static,
    mut see: impl FnMut(u64, bool),
) -> T {
    let mut handle = runner.enter(|| task::spawn_local(main));
    let mut cx = Context::from_waker(noop_waker_ref());
    let thread = runner.handle();
    let mut tick = thread.library().clock().now();
    while !handle.is_finished() {
        let busy = runner.poll(0, tick).is_busy();
        let end = thread.last_tick();
        see(end.saturating_sub(tick), busy);
        tick = end;
    }
    match handle.poll_unpin(&mut cx) {
        Poll::Ready(joined) => joined.expect("it ends"),
        Poll::Pending => unreachable!("it has ended"),
    }
}

impl Executor for Polled {
    type Handle<T: 'static> = Ended<task::JoinHandle<T>>;

    fn run<T: 'static>(main: impl Future<Output = T> + 'static) -> T {
        run_on(&mut runner(), main, |_, _| ())
    }

    fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> Self::Handle<T> {
        Ended(task::spawn_local(future))
    }

    async fn give_way() {
        task::yield_now().await
    }
}

/// The same, with tasks that are polled once before their spawn returns.
struct Eager;

impl Executor for Eager {
    type Handle<T: 'static> = Ended<task::JoinHandle<T>>;

    fn run<T: 'static>(main: impl Future<Output = T> + 'static) -> T {
        Polled::run(main)
    }

    fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> Self::Handle<T> {
        Ended(task::spawn_eager(future))
    }

    async fn give_way() {
        Polled::give_way().await
    }
}

impl Timers for Polled {
    fn sleep(duration: Duration) -> impl Future<Output = ()> {
        corespun::time::sleep(duration)
    }
}

/// The time of the busy polls per sleep, and the mean lateness, in ns.
fn spread_sleeps(count: usize, within: Duration) -> (f64, f64) {
    let mut runner = runner();
    let mut busy_ticks = 0;
    let main = tasks::spread_sleeps::<Polled>(count, within);
    let late = run_on(&mut runner, main, |ticks, busy| {
        busy_ticks += if busy { ticks } else { 0 };
    });
    let library = runner.handle().library();
    let busy = library.clock().duration_from(busy_ticks);
    (busy.as_nanos() as f64 / count as f64, late)
}

// Between cores.

/// Runs `f` with a SpdkThread that another core polls.
fn with_elsewhere<R>(core: usize, f: impl FnOnce(SpdkThread) -> R) -> R {
    let elsewhere = Elsewhere::start(core, |_| ());
    let result = f(elsewhere.thread.clone());
    elsewhere.stop();
    result
}

fn calls(there: usize, rounds: usize) -> f64 {
    with_elsewhere(there, |thread| {
        Polled::run(async move {
            let start = Instant::now();
            for round in 0..rounds {
                black_box(thread.call(move || round).await.expect("it answers"));
            }
            per_op(start, rounds)
        })
    })
}

/// Tasks that count themselves, started on another core one by one.
fn remote_tasks(there: usize, count: usize, start: impl Fn(&SpdkThread, &'static Line)) -> f64 {
    with_elsewhere(there, |thread| {
        let ran = Line::leaked();
        let started = Instant::now();
        for _ in 0..count {
            start(&thread, ran);
        }
        while ran.0.load(Ordering::Relaxed) < count as u64 {
            spin_loop();
        }
        per_op(started, count)
    })
}

async fn count_one(ran: &Line) {
    let before = ran.0.load(Ordering::Relaxed);
    ran.0.store(before + 1, Ordering::Relaxed);
}

fn remote_spawns(there: usize, count: usize) -> f64 {
    remote_tasks(there, count, |thread, ran| {
        drop(thread.spawn(count_one(ran)));
    })
}

fn remote_detached_spawns(there: usize, count: usize) -> f64 {
    remote_tasks(there, count, |thread, ran| {
        thread
            .spawn_detached(move || count_one(ran))
            .expect("it runs");
    })
}
