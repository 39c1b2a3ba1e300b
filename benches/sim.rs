//! How fast the simulator is: polls of threads per second, and what a run costs that does
//! little. In processor time, since all of it is on one OS thread: what else the machine
//! does matters less.
//!
//! ```text
//! cargo bench --bench sim
//! ```

use std::time::Duration;

use corespun::sim::Sim;
use corespun::thread::{Poller, SpdkThread};
use corespun::time;
use nix::time::{ClockId, clock_gettime};

const RUNS: usize = 7;

fn main() {
    // `cargo test --benches` passes this: then one short run shows that it works.
    let scale = if std::env::args().any(|arg| arg == "--bench") {
        100
    } else {
        1
    };
    println!(
        "{:<52} {:>12} {:>12}",
        "million polls a second", "median", "max"
    );
    rate("four cores, 16 threads that poll", || pollers(500 * scale));
    rate("two cores, calls there and back", || calls(100 * scale));
    rate("four cores, 1,000 threads with timers", || timers(scale));
    println!("{:<52} {:>12} {:>12}", "µs a run", "median", "max");
    figure("two cores, one call", || {
        let begin = processor_time();
        for seed in 0..10 * scale {
            let mut sim = Sim::builder().cores(2).seed(seed).build();
            let thread = sim.thread().create().unwrap();
            sim.block_on(thread.call(|| ())).unwrap();
        }
        (processor_time() - begin).as_secs_f64() * 1e6 / (10 * scale) as f64
    });
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID);
    time.expect("every Linux has it").into()
}

/// Active pollers that find nothing.
fn pollers(micros: u64) -> u64 {
    let mut sim = Sim::builder().cores(4).turn_limit(u64::MAX).build();
    let threads: Vec<_> = (0..16).map(|_| sim.thread().create().unwrap()).collect();
    let pollers: Vec<_> = threads
        .iter()
        .map(|thread| {
            sim.enter(thread, || Poller::active(|| ()).unwrap())
                .unwrap()
        })
        .collect();
    sim.run_for(Duration::from_micros(micros)).unwrap();
    for (thread, poller) in threads.iter().zip(pollers) {
        sim.enter(thread, || drop(poller)).unwrap();
    }
    sim.polls()
}

/// Messages between two cores, and tasks that wait for the answers.
fn calls(count: u64) -> u64 {
    let mut sim = Sim::builder().cores(2).turn_limit(u64::MAX).build();
    let pairs: Vec<[SpdkThread; 2]> = (0..4)
        .map(|_| [(); 2].map(|()| sim.thread().create().unwrap()))
        .collect();
    let tasks: Vec<_> = pairs
        .iter()
        .map(|[one, other]| {
            let other = other.clone();
            one.spawn(async move {
                for _ in 0..count {
                    other.call(|| ()).await.unwrap();
                }
            })
        })
        .collect();
    sim.block_on(async {
        for task in tasks {
            task.await.unwrap();
        }
    });
    sim.polls()
}

/// Threads that sleep most of the time.
fn timers(rounds: u64) -> u64 {
    let mut sim = Sim::builder().cores(4).turn_limit(u64::MAX).build();
    let tasks: Vec<_> = (0..1_000u64)
        .map(|index| {
            let thread = sim.thread().create().unwrap();
            thread.spawn(async move {
                for _ in 0..rounds {
                    time::sleep(Duration::from_micros(500 + index)).await;
                }
            })
        })
        .collect();
    sim.block_on(async {
        for task in tasks {
            task.await.unwrap();
        }
    });
    sim.polls()
}

fn rate(name: &str, run: impl Fn() -> u64) {
    figure(name, || {
        let begin = processor_time();
        let polls = run();
        polls as f64 / (processor_time() - begin).as_secs_f64() / 1e6
    });
}

fn figure(name: &str, run: impl Fn() -> f64) {
    let mut figures: Vec<_> = (0..RUNS).map(|_| run()).collect();
    figures.sort_by(f64::total_cmp);
    println!(
        "{name:<52} {:>12.2} {:>12.2}",
        figures[RUNS / 2],
        figures[RUNS - 1]
    );
}
