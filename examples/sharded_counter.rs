//! A counter service with one counter per core: increments stay on their core and
//! cost no atomics; only reading the total asks every core.
//!
//! ```text
//! cargo run --release --example sharded_counter -- --cores [0-1] --increments 1000000
//! ```

use std::cell::Cell;
use std::time::Instant;

use clap::Parser;
use corespun::app::{App, AppHandle};
use corespun::cpu::CpuSet;
use corespun::sharded::Sharded;
use corespun::task::{JoinSet, consume_budget};

#[derive(Parser)]
struct Options {
    /// Cores to run a reactor on, as a mask (0x3) or a list ([0-1]).
    #[arg(long, default_value = "0x1")]
    cores: CpuSet,
    /// Increments on each core.
    #[arg(long, default_value_t = 1_000_000)]
    increments: u64,
}

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let options = Options::parse();
    let app = App::builder().name("sharded_counter").cores(options.cores);
    app.try_block_on(async move |app| count(app, options.increments).await)
}

async fn count(app: AppHandle, increments: u64) -> Result<(), Error> {
    let threads = app.reactors().thread_per_core("counter")?;
    let counters = Sharded::start(&threads, async |_| Cell::new(0u64)).await?;

    let start = Instant::now();
    let mut clients = JoinSet::new();
    for thread in &threads {
        let counters = counters.clone();
        // A client on each core, which uses the counter that lives there.
        let client = thread.spawn_with(async move || {
            let counter = counters.local().expect("a counter on each of the threads");
            for _ in 0..increments {
                counter.set(counter.get() + 1);
                // Others on this core want their turn, too.
                consume_budget().await;
            }
        });
        clients.insert(client);
    }
    clients.join_all().await;
    let took = start.elapsed();

    let total = counters
        .map_reduce(Cell::get, 0, |sum, count| sum + count)
        .await?;
    println!("{total} on {} cores in {took:?}", threads.len());
    counters.stop().await;
    if total != increments * threads.len() as u64 {
        return Err("increments were lost".into());
    }
    Ok(())
}
