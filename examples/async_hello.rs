//! The three things a SpdkThread is written with, in async/await: a poller as a
//! stream, a timer, and a message to another thread.
//!
//! ```text
//! cargo run --release --example async_hello -- --time 2 --cores [0-1]
//! ```

use std::time::Duration;

use clap::Parser;
use corespun::app::{App, AppHandle};
use corespun::cpu::CpuSet;
use corespun::stream::PollerStream;
use corespun::thread::SpdkThread;
use corespun::time::{sleep, timeout};
use futures::StreamExt;

#[derive(Parser)]
struct Options {
    /// Seconds until everything stops.
    #[arg(long, default_value_t = 2)]
    time: u64,
    /// Cores to run a reactor on, as a mask (0x3) or a list ([0-1]).
    #[arg(long, default_value = "0x1")]
    cores: CpuSet,
}

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let options = Options::parse();
    let lasts = Duration::from_secs(options.time);
    let app = App::builder().name("async_hello").cores(options.cores);
    app.try_block_on(async move |app| hello(app, lasts).await)
}

async fn hello(app: AppHandle, lasts: Duration) -> Result<(), Error> {
    // A poller that says something every 250 ms: a stream, so that what it finds
    // is handled by whoever awaits it.
    let mut count = 0;
    let mut hellos = PollerStream::timed(Duration::from_millis(250), move || {
        count += 1;
        Some(count)
    })?;

    // A second thread, on the next core if there is one, and a message to it that
    // is answered.
    let reader = app.thread().name("reader").create()?;
    let name = reader
        .call(|| SpdkThread::current().map(|thread| thread.name().to_owned()))
        .await?;
    println!("answered by {:?}", name.as_deref().unwrap_or("nobody"));

    // A timer around the stream.
    let said = timeout(lasts, async {
        while let Some(count) = hellos.next().await {
            println!("hello {count}");
        }
    });
    if said.await.is_err() {
        println!("time is up");
    }
    drop(hellos);
    sleep(Duration::from_millis(1)).await;
    reader.exit().await;
    Ok(())
}
