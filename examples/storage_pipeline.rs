//! A pipeline over two cores: one reads a file with several reads in flight, the
//! other checksums what it is sent, and a bar shows how far they are.
//!
//! ```text
//! cargo run --release --example storage_pipeline -- --cores [0-1] FILE
//! ```
//!
//! The channel between them is bounded, so a slow checksum holds the reads back
//! and memory stays where it is.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use corespun::app::{App, AppHandle};
use corespun::cpu::CpuSet;
use corespun::fs::File;
use corespun::{mpsc, task};
use futures::stream::{self, StreamExt, TryStreamExt};
use indicatif::{ProgressBar, ProgressStyle};

/// Bytes of one read.
const CHUNK: u64 = 128 * 1024;
/// Reads in flight.
const DEPTH: usize = 8;

#[derive(Parser)]
struct Options {
    /// The file to read.
    file: PathBuf,
    /// Cores to run a reactor on, as a mask (0x3) or a list ([0-1]).
    #[arg(long, default_value = "0x1")]
    cores: CpuSet,
}

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let options = Options::parse();
    let app = App::builder().name("storage_pipeline").cores(options.cores);
    app.try_block_on(async move |app| pipeline(app, options.file).await)
}

async fn pipeline(app: AppHandle, path: PathBuf) -> Result<(), Error> {
    let file = File::open(&path).await?;
    let len = file.len().await?;
    let bar = ProgressBar::new(len);
    bar.set_style(ProgressStyle::with_template(
        "{bar:40} {bytes}/{total_bytes} {binary_bytes_per_sec}",
    )?);
    // Drawn by a thread of its own: a terminal may block.
    bar.enable_steady_tick(Duration::from_millis(100));

    // The checksum on the next core; it makes the channel that it receives from.
    let hasher = app.thread().name("checksum").create()?;
    let (hand_over, sender) = futures::channel::oneshot::channel();
    let progress = bar.clone();
    let checksum = hasher.spawn_with(async move || {
        let (sender, mut chunks) = mpsc::channel::<Vec<u8>>(DEPTH);
        if hand_over.send(sender).is_err() {
            return None;
        }
        let mut hash = crc32fast::Hasher::new();
        while let Some(chunk) = chunks.recv().await {
            hash.update(&chunk);
            progress.inc(chunk.len() as u64);
            task::yield_now().await;
        }
        Some(hash.finalize())
    });
    let sender = sender.await?;

    // The reads here, in order, DEPTH of them at a time.
    let offsets = (0..len).step_by(CHUNK as usize);
    let reads = stream::iter(offsets).map(|offset| {
        let buffer = vec![0; CHUNK.min(len - offset) as usize];
        let read = file.read_exact_at(buffer, offset);
        async move {
            let (read, buffer) = read.await;
            read.map(|()| buffer)
        }
    });
    reads
        .buffered(DEPTH)
        .map_err(Error::from)
        .try_for_each(async |chunk| {
            Ok(sender.send(chunk).await.map_err(|gone| gone.to_string())?)
        })
        .await?;
    drop(sender);

    let checksum = checksum.await?.ok_or("nobody wanted the checksum")?;
    bar.finish();
    println!("crc32 {checksum:08x} of {len} bytes of {}", path.display());
    hasher.exit().await;
    Ok(())
}
