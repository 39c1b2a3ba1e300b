//! What a busy program on one reactor pays for what does nothing: idle threads, parked tasks, timers
//! that are far away, idle connections. One SVG for each, with the cost of a call to another thread of
//! the core and back, and of a hand-over between two tasks and back.
//!
//! ```text
//! cargo run --release --manifest-path benches/plots/Cargo.toml -- [--most N] [--into DIRECTORY]
//! ```
//!
//! Run it on a quiet machine. `cargo bench --bench growth` has more figures of idle threads, in all
//! modes of a reactor, as a table.

mod draw;
mod idle;

use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::Parser;
use corespun::app::{App, AppHandle};
use corespun::cpu::{self, CpuSet};
use corespun::local::Notify;
use corespun::reactor::ReactorMode;
use corespun::task::{self, spawn_local};
use corespun::thread::SpdkThread;
use corespun::time::sleep;
use idle::Kind;

/// Draws what corespun's costs grow with.
#[derive(Parser)]
struct Options {
    /// The greatest number of what is idle.
    #[arg(long, default_value_t = 100_000)]
    most: usize,
    /// Where the SVGs go.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/svg"))]
    into: PathBuf,
}

/// The figures beside so many idle ones, in ns.
#[derive(Clone, Copy)]
struct Point {
    count: usize,
    call: f64,
    wake: f64,
}

fn main() {
    let options = Options::parse();
    std::fs::create_dir_all(&options.into).expect("a place for the SVGs");
    for kind in Kind::ALL {
        let mut points = Vec::new();
        let counts = std::iter::successors(Some(1), |count| Some(count * 10));
        for count in counts.take_while(|count| *count <= options.most.min(kind.limit())) {
            let point = measure(kind, count);
            println!(
                "{count:>8} {:<20} call {:>8.0} ns, hand-over {:>8.0} ns",
                kind.name(),
                point.call,
                point.wake
            );
            points.push(point);
        }
        let path = options.into.join(kind.file());
        draw::curves(&path, kind.name(), &points).expect("an SVG");
        println!("{}", path.display());
    }
}

fn measure(kind: Kind, count: usize) -> Point {
    let core = cpu::available().expect("the cores of this process").first();
    let app = App::builder()
        .cores(CpuSet::single(core.expect("a core")))
        .mode(ReactorMode::Poll)
        .handle_signals(false);
    let point = app.block_on(async move |app: AppHandle| {
        let idle = kind.make(&app, count).await;
        let busy = app.thread().name("busy").create().expect("room for it");
        // All have come to rest.
        sleep(Duration::from_millis(200)).await;
        let call = median(async || call(&busy).await).await;
        let wake = median(async || hand_over().await).await;
        idle.end().await;
        Point { count, call, wake }
    });
    point.expect("only its end stops it")
}

const RUNS: usize = 9;
const ROUNDS: usize = 300;

async fn median(mut measure: impl AsyncFnMut() -> f64) -> f64 {
    let mut figures = Vec::new();
    for _ in 0..RUNS {
        figures.push(measure().await);
    }
    figures.sort_by(f64::total_cmp);
    figures[RUNS / 2]
}

fn per_round(start: Instant) -> f64 {
    start.elapsed().as_nanos() as f64 / ROUNDS as f64
}

async fn call(busy: &SpdkThread) -> f64 {
    let start = Instant::now();
    for _ in 0..ROUNDS {
        busy.call(|| ()).await.expect("it runs");
    }
    per_round(start)
}

async fn hand_over() -> f64 {
    let there = Rc::new((Notify::new(), Notify::new()));
    let here = there.clone();
    let echo = spawn_local(async move {
        for _ in 0..ROUNDS {
            there.0.notified().await;
            there.1.notify_one();
        }
    });
    task::yield_now().await;
    let start = Instant::now();
    for _ in 0..ROUNDS {
        here.0.notify_one();
        here.1.notified().await;
    }
    let figure = per_round(start);
    echo.await.expect("it ends");
    figure
}
