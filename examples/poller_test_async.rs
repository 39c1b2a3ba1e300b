//! The demo of `poller_test` again, as async code: the message is a task, the
//! periodic poller a stream, and the second timed poller a time-out.
//!
//! ```text
//! cargo run --release --example poller_test_async -- --time 3
//! ```
//!
//! A SpdkThread is an executor. A woken task is a message in its mailbox, a
//! poller's callback yields the items of a [`PollerStream`], and a sleep is an
//! entry of the same timer queue that timed pollers wait in. So nothing about
//! who polls the thread, on which core, changes: here `main` does it by hand.

use std::time::Duration;

use clap::Parser;
use corespun::stream::PollerStream;
use corespun::task;
use corespun::thread::{SpdkThread, ThreadLib};
use corespun::time;
use futures::StreamExt;

#[derive(Parser)]
struct Options {
    /// Seconds until everything stops.
    #[arg(long, default_value_t = 3)]
    time: u64,
}

async fn demo(for_long: Duration) {
    // Ready before any timer: so this is printed first.
    let reader = task::spawn_local(async { println!("hello reader") });
    reader.await.expect("it does not panic");

    let half_a_second = Duration::from_millis(500);
    let hellos = PollerStream::timed(half_a_second, || Some("hello poller"))
        .expect("a task runs on a SpdkThread");
    let print_all = hellos.for_each(async |hello| println!("{hello}"));
    // The stream never ends. When time is up, dropping it unregisters its poller.
    if time::timeout(for_long, print_all).await.is_err() {
        println!("time is up");
    }
    let this = SpdkThread::current().expect("a task runs on a SpdkThread");
    // Not awaited: a task cannot outlive the exit of its own thread.
    drop(this.exit());
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let mut runner = ThreadLib::new()
        .thread()
        .name("poller_test")
        .build()?
        .attach();
    let demo = runner.enter(|| task::spawn_local(demo(Duration::from_secs(options.time))));
    while !runner.is_exited() {
        if !runner.poll(0, 0).is_busy() {
            std::thread::yield_now();
        }
    }
    futures::executor::block_on(demo)?;
    println!("the thread has exited");
    Ok(())
}
