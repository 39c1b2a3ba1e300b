//! A lost update that no real run finds, and the simulator does.
//!
//! A cache counts on one core, and writes its count back to a store on another, every
//! now and then, if it has changed. It forgets that the count may change while it is on
//! its way there. That matters if it was the last change, and comes in the microsecond that
//! takes: a real run of a second shows nothing, on most days of the year. The simulator
//! has runs of a few updates in each of a thousand seeds, and time to spare.
//!
//! ```text
//! cargo run --release --example lost_update
//! ```

use std::cell::Cell;
use std::error::Error;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use corespun::app::{App, AppHandle};
use corespun::cpu::{self, CpuSet};
use corespun::sim::{Sim, SimBuilder, SimFailure};
use corespun::thread::{SpdkThread, ThreadBuilder};
use corespun::{task, time};

/// How often the cache writes back.
const WRITE_BACK: Duration = Duration::from_millis(1);

/// Which of the two caches.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cache {
    /// Takes the count for written when the store has answered.
    Forgetful,
    /// Takes it for written when it is sent, and looks again after the answer.
    Careful,
}

/// What the cache knows, on its thread.
#[derive(Default)]
struct Count {
    value: Cell<u64>,
    changed: Cell<bool>,
}

/// Writes back until it is stopped.
async fn write_back(cache: Cache, count: Rc<Count>, store: SpdkThread, stored: Arc<AtomicU64>) {
    loop {
        time::sleep(WRITE_BACK).await;
        if !count.changed.get() {
            continue;
        }
        if cache == Cache::Careful {
            count.changed.set(false);
        }
        let (value, place) = (count.value.get(), stored.clone());
        let written = store
            .call(move || place.store(value, Ordering::Relaxed))
            .await;
        if written.is_err() {
            return;
        }
        if cache == Cache::Forgetful {
            // What has changed since it was sent is not written.
            count.changed.set(false);
        }
    }
}

/// Counts so often, with pauses that follow from `seed`; says what is in the store in the
/// end.
async fn run(cache: Cache, threads: [SpdkThread; 2], updates: u64, seed: u64) -> u64 {
    let [counter, store] = threads;
    let stored = Arc::new(AtomicU64::new(0));
    let place = stored.clone();
    let counting = counter.spawn_with(async move || {
        let count = Rc::new(Count::default());
        let writer = task::spawn_local(write_back(cache, count.clone(), store, place));
        let mut pause = seed;
        for _ in 0..updates {
            pause = pause
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            time::sleep(Duration::from_nanos(500_000 + (pause >> 32) % 1_000_000)).await;
            count.value.set(count.value.get() + 1);
            count.changed.set(true);
        }
        time::sleep(WRITE_BACK * 10).await;
        writer.abort();
    });
    counting.await.expect("it only counts");
    stored.load(Ordering::Relaxed)
}

/// One thread on each of two cores.
fn threads(make: impl Fn() -> ThreadBuilder) -> [SpdkThread; 2] {
    [("cache", 0), ("store", 1)].map(|(name, core)| {
        let thread = make().name(name).cpumask(CpuSet::single(core));
        thread.create().expect("both cores are there")
    })
}

/// On two reactors, for about a second.
fn real(cache: Cache, updates: u64) -> Result<u64, Box<dyn Error>> {
    let available: Vec<usize> = cpu::available()?.iter().collect();
    let cpus = [available[0], available[1 % available.len()]];
    let app = App::builder().lcores([(0, cpus[0]), (1, cpus[1])]);
    let stored = app.block_on(async move |app: AppHandle| {
        run(cache, threads(|| app.thread()), updates, 1).await
    })?;
    Ok(stored)
}

/// The simulation, on a day when messages take their time.
pub(crate) fn settings() -> SimBuilder {
    let delay = Duration::from_nanos(50)..=Duration::from_micros(100);
    Sim::builder().cores(2).message_delay(delay)
}

/// What is asked of a simulated run.
pub(crate) fn counts(sim: &mut Sim, cache: Cache) {
    let threads = threads(|| sim.thread());
    let (updates, seed) = (5, sim.seed());
    let stored = sim.block_on(run(cache, threads, updates, seed));
    assert_eq!(stored, updates, "updates are lost");
}

/// Many of them.
pub(crate) fn explore(cache: Cache) -> Result<u64, SimFailure> {
    settings().explore(0..1000, |sim| counts(sim, cache))
}

fn main() -> Result<(), Box<dyn Error>> {
    let stored = real(Cache::Forgetful, 1000)?;
    println!("a real run: {stored} of 1000 updates are in the store");
    match explore(Cache::Forgetful) {
        Ok(runs) => println!("{runs} simulated runs find nothing"),
        Err(failure) => println!("the simulator: {failure}"),
    }
    let runs = explore(Cache::Careful)?;
    println!("without the mistake, {runs} simulated runs lose nothing");
    Ok(())
}
