//! The entries of a directory, read on helper threads a batch at a time.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::FileType;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::Stream;

use super::metadata::Metadata;
use crate::io::unblock;
use crate::sync::budget::poll_budget;

/// Entries that one visit to a helper thread brings.
const BATCH: usize = 64;

/// Reads a directory. The order is the file system's; `.` and `..` are left out.
///
/// # Errors
///
/// Those of `opendir(3)`.
///
/// # Examples
///
/// ```
/// use corespun::fs;
/// use futures::TryStreamExt;
///
/// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
/// let dir = tempfile::tempdir()?;
/// for name in ["b", "a"] {
///     fs::write(dir.path().join(name), "").await?;
/// }
/// let entries = fs::read_dir(dir.path()).await?;
/// let mut names: Vec<_> = entries.map_ok(|entry| entry.file_name().to_owned()).try_collect().await?;
/// names.sort();
/// assert_eq!(names, ["a", "b"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub async fn read_dir(path: impl AsRef<Path>) -> io::Result<ReadDir> {
    let path = path.as_ref().to_owned();
    let directory = unblock(move || std::fs::read_dir(path)).await??;
    Ok(ReadDir {
        read: VecDeque::new(),
        rest: Some(directory),
        reading: None,
    })
}

type Batch = (VecDeque<io::Result<DirEntry>>, Option<std::fs::ReadDir>);

/// The entries of a directory: a `Stream`, or [`next_entry`](ReadDir::next_entry). What [`read_dir`]
/// gives.
///
/// # Cancel safety
///
/// Between two entries it may be dropped, or asked again.
pub struct ReadDir {
    read: VecDeque<io::Result<DirEntry>>,
    /// `None` while a helper thread has it, and after the end.
    rest: Option<std::fs::ReadDir>,
    reading: Option<Pin<Box<dyn Future<Output = io::Result<Batch>>>>>,
}

impl ReadDir {
    /// The next entry; `None` at the end.
    ///
    /// # Errors
    ///
    /// Those of `readdir(3)`, after which it may be asked again.
    ///
    /// # Cancel safety
    ///
    /// Safe: no entry is lost.
    pub async fn next_entry(&mut self) -> io::Result<Option<DirEntry>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx))
            .await
            .transpose()
    }
}

impl Stream for ReadDir {
    type Item = io::Result<DirEntry>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let budget = ready!(poll_budget(cx));
            if let Some(entry) = self.read.pop_front() {
                budget.progressed();
                return Poll::Ready(Some(entry));
            }
            if let Some(reading) = &mut self.reading {
                let batch = ready!(reading.as_mut().poll(cx));
                self.reading = None;
                match batch {
                    Ok((read, rest)) => (self.read, self.rest) = (read, rest),
                    Err(error) => {
                        budget.progressed();
                        return Poll::Ready(Some(Err(error)));
                    }
                }
                continue;
            }
            let Some(rest) = self.rest.take() else {
                budget.progressed();
                return Poll::Ready(None);
            };
            self.reading = Some(Box::pin(unblock(move || next_batch(rest))));
        }
    }
}

/// What is left is `None` at the end.
fn next_batch(mut directory: std::fs::ReadDir) -> Batch {
    let mut batch = VecDeque::with_capacity(BATCH);
    while batch.len() < BATCH {
        match directory.next() {
            Some(entry) => batch.push_back(entry.and_then(DirEntry::new)),
            None => return (batch, None),
        }
    }
    (batch, Some(directory))
}

impl std::fmt::Debug for ReadDir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadDir").finish_non_exhaustive()
    }
}

/// An entry of a directory, as it was when the directory was read. A plain value.
#[derive(Clone, Debug)]
pub struct DirEntry {
    directory: PathBuf,
    name: OsString,
    kind: FileType,
    ino: u64,
}

impl DirEntry {
    /// On a helper thread: some file systems have to be asked for the type.
    fn new(entry: std::fs::DirEntry) -> io::Result<Self> {
        use std::os::unix::fs::DirEntryExt;
        let mut directory = entry.path();
        directory.pop();
        Ok(DirEntry {
            directory,
            name: entry.file_name(),
            kind: entry.file_type()?,
            ino: entry.ino(),
        })
    }

    /// Its name in the directory.
    pub fn file_name(&self) -> &OsStr {
        &self.name
    }

    /// Its path: the directory's, as it was given, and the name.
    pub fn path(&self) -> PathBuf {
        self.directory.join(&self.name)
    }

    /// What it is; a symbolic link is one.
    pub fn file_type(&self) -> FileType {
        self.kind
    }

    /// Its number on its device.
    pub fn ino(&self) -> u64 {
        self.ino
    }

    /// Facts about it, of a symbolic link itself.
    ///
    /// # Errors
    ///
    /// Those of `statx(2)`: it may be gone.
    pub async fn metadata(&self) -> io::Result<Metadata> {
        super::symlink_metadata(self.path()).await
    }
}
