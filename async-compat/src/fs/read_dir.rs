//! What is in a directory.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{FileType, Metadata};
use std::future::poll_fn;
use std::io;
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::asyncify;
use crate::task::{JoinHandle, spawn_blocking};

/// Entries that one call on a helper thread fetches.
const CHUNK: usize = 32;

/// Gives what is in a directory, in no order.
///
/// # Errors
///
/// As [`std::fs::read_dir`].
///
/// # Examples
///
/// ```
/// # use corespun_compat as tokio;
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let dir = tempfile::tempdir()?;
/// tokio::fs::write(dir.path().join("a"), "").await?;
/// let mut entries = tokio::fs::read_dir(dir.path()).await?;
/// assert_eq!(entries.next_entry().await?.unwrap().file_name(), "a");
/// assert!(entries.next_entry().await?.is_none());
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
pub async fn read_dir(path: impl AsRef<Path>) -> io::Result<ReadDir> {
    let path = path.as_ref().to_owned();
    let batch = asyncify(move || {
        let mut batch = Batch {
            std: std::fs::read_dir(path)?,
            entries: VecDeque::new(),
            more: true,
        };
        batch.fetch();
        Ok(batch)
    })
    .await?;
    Ok(ReadDir(State::Idle(Some(batch))))
}

/// The entries of a directory; see [`read_dir`].
#[derive(Debug)]
#[must_use = "it does nothing unless its entries are taken"]
pub struct ReadDir(State);

#[derive(Debug)]
enum State {
    Idle(Option<Batch>),
    Fetching(JoinHandle<Batch>),
}

#[derive(Debug)]
struct Batch {
    std: std::fs::ReadDir,
    entries: VecDeque<io::Result<DirEntry>>,
    more: bool,
}

impl Batch {
    fn fetch(&mut self) {
        while self.entries.len() < CHUNK && self.more {
            let Some(entry) = self.std.next() else {
                self.more = false;
                return;
            };
            // A directory that fails goes on failing.
            self.more = entry.is_ok();
            self.entries.push_back(entry.map(|std| DirEntry {
                file_type: std.file_type().ok(),
                std: Arc::new(std),
            }));
        }
    }
}

impl ReadDir {
    /// The next entry; `None` at the end.
    ///
    /// # Errors
    ///
    /// Those of `readdir(3)`.
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing is lost.
    pub async fn next_entry(&mut self) -> io::Result<Option<DirEntry>> {
        poll_fn(|cx| self.poll_next_entry(cx)).await
    }

    /// As [`next_entry`](Self::next_entry), in a `poll` function.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn poll_next_entry(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<DirEntry>>> {
        loop {
            match &mut self.0 {
                State::Idle(place) => {
                    let batch = place.as_mut().expect("it comes back with each fetch");
                    if let Some(entry) = batch.entries.pop_front() {
                        return Poll::Ready(entry.map(Some));
                    }
                    if !batch.more {
                        return Poll::Ready(Ok(None));
                    }
                    let mut batch = place.take().expect("looked at above");
                    self.0 = State::Fetching(spawn_blocking(move || {
                        batch.fetch();
                        batch
                    }));
                }
                State::Fetching(fetch) => match ready!(Pin::new(fetch).poll(cx)) {
                    Ok(batch) => self.0 = State::Idle(Some(batch)),
                    Err(_) => return Poll::Ready(Err(crate::runtime::shutdown_error())),
                },
            }
        }
    }
}

/// One entry of a directory.
#[derive(Debug)]
pub struct DirEntry {
    file_type: Option<FileType>,
    std: Arc<std::fs::DirEntry>,
}

impl DirEntry {
    /// Its path: that of the directory and its name.
    pub fn path(&self) -> PathBuf {
        self.std.path()
    }

    /// Its name.
    pub fn file_name(&self) -> OsString {
        self.std.file_name()
    }

    /// Its number in the file system.
    pub fn ino(&self) -> u64 {
        self.std.ino()
    }

    /// What is known of it, not following a link.
    ///
    /// # Errors
    ///
    /// As [`std::fs::DirEntry::metadata`].
    pub async fn metadata(&self) -> io::Result<Metadata> {
        let std = self.std.clone();
        asyncify(move || std.metadata()).await
    }

    /// What kind of file it is.
    ///
    /// # Errors
    ///
    /// As [`std::fs::DirEntry::file_type`].
    pub async fn file_type(&self) -> io::Result<FileType> {
        if let Some(file_type) = self.file_type {
            return Ok(file_type);
        }
        let std = self.std.clone();
        asyncify(move || std.file_type()).await
    }
}
