//! What SpdkThreads that have nothing to do cost those that have: one reactor, two busy threads,
//! and more and more idle ones beside them.
//!
//! ```text
//! cargo bench --bench growth
//! cargo bench --bench growth -- 1 100000
//! ```
//!
//! Arguments are the numbers of idle threads. Each figure is the median of several. Run it on a
//! quiet machine, and compare only figures that one run printed together.

mod measure;

use std::time::{Duration, Instant};

use corespun::app::{App, AppHandle};
use corespun::cpu::{self, CpuSet};
use corespun::local::Notify;
use corespun::reactor::ReactorMode;
use corespun::task::{self, spawn_local};
use corespun::thread::SpdkThread;
use corespun::time::sleep;
use futures::future::join_all;
use measure::per_op;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

const RUNS: usize = 7;

fn main() {
    // `cargo test --benches` leaves this out: then one short run shows that it works.
    let full = std::env::args().any(|arg| arg == "--bench");
    let asked: Vec<usize> = std::env::args()
        .filter_map(|arg| arg.parse().ok())
        .collect();
    let counts: &[usize] = match (full, &asked[..]) {
        (false, _) => &[1, 10],
        (true, []) => &[1, 100, 10_000, 100_000],
        (true, asked) => asked,
    };
    println!(
        "{:<10} {:>8} {:>10} {:>10} {:>12} {:>12} {:>10} {:>10}",
        "mode", "idle", "call, ns", "wake, ns", "late, µs", "make, ms", "exit, ms", "CPU, %"
    );
    for mode in [
        ReactorMode::Poll,
        ReactorMode::Adaptive,
        ReactorMode::Interrupt,
    ] {
        for &idle in counts {
            Row::measure(mode, idle, full).print(mode, idle);
        }
    }
}

/// The figures of one mode and one number of idle threads.
struct Row {
    /// A call to another thread of the core, and back.
    call: f64,
    /// Two tasks of one thread: a hand-over and back.
    wake: f64,
    /// How much later than a millisecond a sleep of one ends.
    late: Duration,
    /// Until the last of the idle threads has answered a message.
    make: Duration,
    /// Until the last of the idle threads has exited.
    exit: Duration,
    /// Of one processor, while all threads are idle.
    cpu: f64,
}

impl Row {
    fn measure(mode: ReactorMode, idle: usize, full: bool) -> Row {
        let core = cpu::available().expect("the cores of this process").first();
        let app = App::builder()
            .cores(CpuSet::single(core.expect("a core")))
            .mode(mode)
            .handle_signals(false);
        let row = app.block_on(async move |app: AppHandle| measure(&app, idle, full).await);
        row.expect("only its end stops it")
    }

    fn print(&self, mode: ReactorMode, idle: usize) {
        println!(
            "{:<10} {idle:>8} {:>10.0} {:>10.0} {:>12.1} {:>12.1} {:>10.1} {:>10.2}",
            format!("{mode:?}").to_lowercase(),
            self.call,
            self.wake,
            self.late.as_nanos() as f64 / 1e3,
            self.make.as_secs_f64() * 1e3,
            self.exit.as_secs_f64() * 1e3,
            self.cpu,
        );
    }
}

async fn measure(app: &AppHandle, idle: usize, full: bool) -> Row {
    let start = Instant::now();
    let create = |n| app.thread().name(format!("idle_{n}")).create();
    let threads: Vec<SpdkThread> = (0..idle).map(|n| create(n).expect("room for it")).collect();
    for answer in join_all(threads.iter().map(|thread| thread.call(|| ()))).await {
        answer.expect("an idle thread");
    }
    let make = start.elapsed();
    let busy = app.thread().name("busy").create().expect("room for it");
    let (rounds, naps, idles) = if full { (200, 50, 1_000) } else { (5, 2, 1) };
    // All have come to rest.
    sleep(Duration::from_millis(idles / 5)).await;
    let call = median(async || {
        let start = Instant::now();
        for _ in 0..rounds {
            busy.call(|| ()).await.expect("it runs");
        }
        per_op(start, rounds)
    })
    .await;
    let wake = median(async || hand_over(rounds).await).await;
    let mut lateness = Vec::new();
    for _ in 0..naps {
        let start = Instant::now();
        sleep(Duration::from_millis(1)).await;
        lateness.push(start.elapsed().saturating_sub(Duration::from_millis(1)));
    }
    lateness.sort_unstable();
    let (start, before) = (Instant::now(), processor_time());
    sleep(Duration::from_millis(idles)).await;
    let cpu = 100.0 * (processor_time() - before).as_secs_f64() / start.elapsed().as_secs_f64();
    let start = Instant::now();
    join_all(threads.iter().map(SpdkThread::exit)).await;
    Row {
        call,
        wake,
        late: lateness[lateness.len() / 2],
        make,
        exit: start.elapsed(),
        cpu,
    }
}

async fn median(mut measure: impl AsyncFnMut() -> f64) -> f64 {
    let mut figures = Vec::new();
    for _ in 0..RUNS {
        figures.push(measure().await);
    }
    figures.sort_by(f64::total_cmp);
    figures[RUNS / 2]
}

async fn hand_over(rounds: usize) -> f64 {
    let there = std::rc::Rc::new((Notify::new(), Notify::new()));
    let here = there.clone();
    let echo = spawn_local(async move {
        for _ in 0..rounds {
            there.0.notified().await;
            there.1.notify_one();
        }
    });
    task::yield_now().await;
    let start = Instant::now();
    for _ in 0..rounds {
        here.0.notify_one();
        here.1.notified().await;
    }
    let figure = per_op(start, rounds);
    echo.await.expect("it ends");
    figure
}

/// What this process has used of the processors.
fn processor_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("one's own usage");
    let used = usage.user_time() + usage.system_time();
    Duration::from_micros(used.num_microseconds().unsigned_abs())
}
