//! The append-only file: each change, as the command that made it.

use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::resp;
use crate::settings::Fsync;
use crate::store::Store;

/// Where changes are sent; each has a number, counted from 1.
#[derive(Debug)]
pub(crate) struct Log {
    changes: mpsc::UnboundedSender<Bytes>,
    sent: u64,
}

impl Log {
    /// Sends a change. It is called under the lock of the store, so that changes of a
    /// key are in the file in the order they were made.
    pub(crate) fn append(&mut self, request: &[Bytes]) -> u64 {
        let mut text = BytesMut::new();
        resp::put_request(&mut text, request);
        // The writer ends last.
        let _ = self.changes.send(text.freeze());
        self.sent += 1;
        self.sent
    }
}

/// What has been done about the changes: the number of the last one written, and
/// synchronised if that is asked for before each reply. Or why no more is written.
pub(crate) type Written = Result<u64, String>;

/// Reads what the file has, and writes to it from then on. The writer ends, with
/// everything on the disk, when the log is dropped.
pub(crate) async fn open(
    path: &Path,
    fsync: Fsync,
    store: &Store,
) -> io::Result<(Log, watch::Receiver<Written>, JoinHandle<io::Result<()>>)> {
    let mut options = OpenOptions::new();
    let mut file = options
        .read(true)
        .append(true)
        .create(true)
        .open(path)
        .await?;
    let whole = replay(&mut file, store).await?;
    // A crash may have cut the last one short.
    file.set_len(whole).await?;
    let (changes, waiting) = mpsc::unbounded_channel();
    let (written, progress) = watch::channel(Ok(0));
    let writer = tokio::spawn(write(file, fsync, waiting, written));
    Ok((Log { changes, sent: 0 }, progress, writer))
}

/// Applies what the file holds; says where the last whole command ends.
async fn replay(file: &mut File, store: &Store) -> io::Result<u64> {
    let mut input = BytesMut::with_capacity(64 << 10);
    let mut read = 0;
    loop {
        let count = file.read_buf(&mut input).await?;
        read += count as u64;
        loop {
            match resp::take_request(&mut input) {
                Ok(Some(request)) => store.replay(request),
                Ok(None) => break,
                Err(error) => {
                    let at = read - input.len() as u64;
                    let text = format!("the append-only file is broken near byte {at}: {error}");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                }
            }
        }
        if count == 0 {
            return Ok(read - input.len() as u64);
        }
        input.reserve(64 << 10);
    }
}

async fn write(
    mut file: File,
    fsync: Fsync,
    mut waiting: mpsc::UnboundedReceiver<Bytes>,
    written: watch::Sender<Written>,
) -> io::Result<()> {
    let mut batch = Vec::new();
    let mut text = BytesMut::new();
    let mut count = 0;
    let mut sync_at: Option<Instant> = None;
    let failed = loop {
        let due = async {
            match sync_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            taken = waiting.recv_many(&mut batch, 1024) => {
                if taken == 0 {
                    break None;
                }
                // All that wait go in one write, and one sync.
                batch.drain(..).for_each(|change| text.extend_from_slice(&change));
                let mut done = file.write_all(&text).await;
                text.clear();
                if done.is_ok() {
                    done = file.flush().await;
                }
                match fsync {
                    Fsync::Always if done.is_ok() => done = file.sync_data().await,
                    Fsync::EverySecond => {
                        sync_at.get_or_insert_with(|| Instant::now() + Duration::from_secs(1));
                    }
                    _ => {}
                }
                if let Err(error) = done {
                    break Some(error);
                }
                count += taken as u64;
                // Nobody waits, perhaps.
                let _ = written.send(Ok(count));
            }
            () = due => {
                sync_at = None;
                if let Err(error) = file.sync_data().await {
                    break Some(error);
                }
            }
        }
    };
    if let Some(error) = failed {
        let _ = written.send(Err(format!(
            "the append-only file cannot be written: {error}"
        )));
        return Err(error);
    }
    file.sync_all().await
}
