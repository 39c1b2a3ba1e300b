//! An orderly end: SIGINT or SIGTERM stops new work, lets what is under way finish
//! for a while, and cancels the rest.
//!
//! ```text
//! cargo run --release --example graceful_shutdown      # then press Ctrl-C
//! ```
//!
//! The signal cancels a token (tokio-util's: wakers work from anywhere, so any
//! crate's will do). The workers finish their job in hand and return; a timeout
//! around the wait for them says how long that may take; dropping their set
//! cancels those that are left; and what even they leave behind, the exit of the
//! threads cancels.

use std::time::Duration;

use corespun::app::{App, AppHandle};
use corespun::task::{JoinSet, TaskBuilder};
use corespun::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

const WORKERS: u64 = 4;
const PATIENCE: Duration = Duration::from_millis(500);

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let token = CancellationToken::new();
    let on_signal = token.clone();
    let app = App::builder()
        .name("graceful_shutdown")
        // Instead of stopping the app at once.
        .on_shutdown(move |_| on_signal.cancel());
    let code = app.run(async move |app| {
        let code = match serve(&app, token).await {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("{error}");
                1
            }
        };
        app.stop(code);
    })?;
    std::process::exit(code)
}

async fn serve(app: &AppHandle, token: CancellationToken) -> Result<(), Error> {
    let threads = app.reactors().thread_per_core("worker")?;
    let mut workers = JoinSet::new();
    for (worker, thread) in (0..WORKERS).zip(threads.iter().cycle()) {
        let token = token.clone();
        let name = format!("worker {worker}");
        let task = TaskBuilder::new().name(name);
        workers.insert(task.spawn_with_on(thread, async move || work(worker, token).await));
    }
    println!("working; press Ctrl-C");
    token.cancelled().await;

    println!("finishing what is under way");
    let mut jobs = 0;
    let finished = timeout(PATIENCE, async {
        while let Some(done) = workers.join_next().await {
            jobs += done?;
        }
        Ok::<_, Error>(())
    });
    match finished.await {
        Ok(result) => result?,
        Err(_) => println!("cancelling {} that take too long", workers.len()),
    }
    workers.shutdown().await;
    println!("done: {jobs} jobs were finished");
    Ok(())
}

/// Does jobs until told to stop; the one in hand is always finished. The last
/// worker's take longer than anybody is willing to wait.
async fn work(worker: u64, token: CancellationToken) -> u64 {
    let each = match worker {
        3 => Duration::from_secs(3600),
        _ => Duration::from_millis(20 * (worker + 1)),
    };
    let mut jobs = 0;
    while !token.is_cancelled() {
        sleep(each).await;
        jobs += 1;
    }
    jobs
}
