//! A file with a position.
//!
//! One operation is under way at a time, and owns the buffer meanwhile. A read takes what it can into
//! the buffer, and what was not asked for yet waits there; a write puts its bytes into the buffer, is
//! done, and goes on behind the caller's back: its error is that of the next call, and
//! [`flush`](tokio::io::AsyncWriteExt::flush) waits for it.

use std::fmt;
use std::fs::{File as StdFile, Metadata, Permissions};
use std::future::poll_fn;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use corespun::io::{FileAction, FileOp};
use tokio::io::{AsyncRead, AsyncSeek, AsyncWrite, ReadBuf};
use tokio::sync::Mutex;

use super::abandoned::Abandoned;
use super::{FileTimes, OpenOptions, asyncify};
use crate::task::{JoinHandle, spawn_blocking};

/// The most that one operation moves, unless it is set.
const MAX_BUF: usize = 2 * 1024 * 1024;

/// A file that is read and written from where it was left, as [`std::fs::File`].
///
/// A write is done when its bytes are taken over: flush before the file is dropped where its error
/// matters.
///
/// # Examples
///
/// ```
/// use std::io::SeekFrom;
/// # use corespun_compat as tokio;
/// use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let dir = tempfile::tempdir()?;
/// let mut file = tokio::fs::File::options()
///     .read(true)
///     .write(true)
///     .create(true)
///     .open(dir.path().join("log"))
///     .await?;
/// file.write_all(b"hello").await?;
/// file.seek(SeekFrom::Start(1)).await?;
/// let mut rest = String::new();
/// file.read_to_string(&mut rest).await?;
/// assert_eq!(rest, "ello");
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
pub struct File {
    std: Arc<StdFile>,
    inner: Mutex<Inner>,
    abandoned: Abandoned,
    max_buf_size: usize,
    /// A regular file, whose operations end by themselves.
    regular: bool,
}

struct Inner {
    state: State,
    /// A write behind the caller's back has failed.
    failed: Option<io::ErrorKind>,
    position: u64,
}

enum State {
    Idle(Buf),
    Busy(Action, Running),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Read,
    Write,
}

/// What an operation gives back: how many bytes it has moved, and the buffer.
type Outcome = (io::Result<usize>, Vec<u8>);

enum Running {
    Ring(FileOp),
    Pool(JoinHandle<Outcome>),
}

/// Bytes that were read and not given out.
#[derive(Default)]
struct Buf {
    bytes: Vec<u8>,
    start: usize,
}

impl Buf {
    fn left(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

impl File {
    /// Opens a file for reading.
    ///
    /// # Errors
    ///
    /// As [`std::fs::File::open`].
    pub async fn open(path: impl AsRef<Path>) -> io::Result<File> {
        Self::options().read(true).open(path).await
    }

    /// Opens a file for writing, made or emptied.
    ///
    /// # Errors
    ///
    /// As [`std::fs::File::create`].
    pub async fn create(path: impl AsRef<Path>) -> io::Result<File> {
        let path = path.as_ref().to_owned();
        Ok(File::from_std(
            asyncify(move || StdFile::create(path)).await?,
        ))
    }

    /// Makes a file, which must not be there, for reading and writing.
    ///
    /// # Errors
    ///
    /// As [`std::fs::File::create_new`].
    pub async fn create_new<P: AsRef<Path>>(path: P) -> io::Result<File> {
        let path = path.as_ref().to_owned();
        let created = asyncify(move || StdFile::create_new(path)).await?;
        Ok(File::from_std(created))
    }

    /// How a file is opened.
    #[must_use]
    pub fn options() -> OpenOptions {
        OpenOptions::new()
    }

    /// Takes a file of `std`'s.
    pub fn from_std(std: StdFile) -> File {
        let regular = std.metadata().is_ok_and(|metadata| metadata.is_file());
        File {
            std: Arc::new(std),
            abandoned: Abandoned::default(),
            inner: Mutex::new(Inner {
                state: State::Idle(Buf::default()),
                failed: None,
                position: 0,
            }),
            max_buf_size: MAX_BUF,
            regular,
        }
    }

    /// Waits for the operation that is under way; a write's error is kept for the next call.
    async fn settled(&self) -> tokio::sync::MutexGuard<'_, Inner> {
        let mut inner = self.inner.lock().await;
        poll_fn(|cx| inner.poll_settled(cx, &self.std, self.regular)).await;
        inner
    }

    /// Has all that was written reach the disk, with what is known of the file.
    ///
    /// # Errors
    ///
    /// Those of `fsync(2)`.
    pub async fn sync_all(&self) -> io::Result<()> {
        self.sync(FileAction::SyncAll).await
    }

    /// Has all that was written reach the disk.
    ///
    /// # Errors
    ///
    /// Those of `fdatasync(2)`.
    pub async fn sync_data(&self) -> io::Result<()> {
        self.sync(FileAction::SyncData).await
    }

    async fn sync(&self, action: FileAction) -> io::Result<()> {
        let _inner = self.settled().await;
        if let Ok(sync) = FileOp::start(action, &self.std, Vec::new()) {
            return self.abandoned.unless_done(sync).await.0.map(drop);
        }
        self.call(move |std| match action {
            FileAction::SyncAll => std.sync_all(),
            _ => std.sync_data(),
        })
        .await
    }

    /// Makes the file so long, cutting it off or filling it up with zeros.
    ///
    /// # Errors
    ///
    /// As [`std::fs::File::set_len`].
    pub async fn set_len(&self, size: u64) -> io::Result<()> {
        let mut inner = self.settled().await;
        inner.put_back(&self.std)?;
        self.call(move |std| std.set_len(size)).await
    }

    /// What is known of the file.
    ///
    /// # Errors
    ///
    /// As [`std::fs::File::metadata`].
    pub async fn metadata(&self) -> io::Result<Metadata> {
        self.call(StdFile::metadata).await
    }

    /// Another one for the same file, with the same position.
    ///
    /// # Errors
    ///
    /// As [`std::fs::File::try_clone`].
    pub async fn try_clone(&self) -> io::Result<File> {
        drop(self.settled().await);
        let mut clone = File::from_std(self.call(StdFile::try_clone).await?);
        clone.max_buf_size = self.max_buf_size;
        Ok(clone)
    }

    /// Gives the file of `std`'s, once the operation that is under way has ended, and with it those
    /// whose futures were dropped.
    pub async fn into_std(self) -> StdFile {
        drop(self.settled().await);
        let File {
            std,
            inner,
            abandoned,
            ..
        } = self;
        drop(inner);
        abandoned.ended().await;
        Arc::into_inner(std).expect("only an operation under way has another share")
    }

    /// Runs `f` on a helper thread.
    async fn call<T: Send + 'static>(
        &self,
        f: impl FnOnce(&StdFile) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let std = self.std.clone();
        // The share is gone before the call has ended.
        let call = spawn_blocking(move || f(&std));
        match self.abandoned.unless_done(call).await {
            Ok(done) => done,
            Err(_) => Err(io::Error::other("background task failed")),
        }
    }

    /// Gives the file of `std`'s, if no operation is under way.
    ///
    /// # Errors
    ///
    /// The file itself, if one is.
    #[expect(clippy::result_large_err, reason = "tokio's signature")]
    pub fn try_into_std(mut self) -> Result<StdFile, Self> {
        if matches!(self.inner.get_mut().state, State::Busy(..)) {
            return Err(self);
        }
        match Arc::try_unwrap(self.std) {
            Ok(std) => Ok(std),
            Err(std) => {
                self.std = std;
                Err(self)
            }
        }
    }

    /// Sets the permissions of the file.
    ///
    /// # Errors
    ///
    /// As [`std::fs::File::set_permissions`].
    pub async fn set_permissions(&self, perm: Permissions) -> io::Result<()> {
        self.call(move |std| std.set_permissions(perm)).await
    }

    /// Sets times of the file.
    ///
    /// # Errors
    ///
    /// As [`std::fs::File::set_times`].
    pub async fn set_times(&self, times: FileTimes) -> io::Result<()> {
        drop(self.settled().await);
        self.call(move |std| std.set_times(times.0)).await
    }

    /// Sets when the file was written last.
    ///
    /// # Errors
    ///
    /// As [`std::fs::File::set_modified`].
    pub async fn set_modified(&self, time: SystemTime) -> io::Result<()> {
        self.set_times(FileTimes::new().set_modified(time)).await
    }

    /// Sets the most that one operation moves, in bytes; 2 MiB if it is not set.
    ///
    /// # Panics
    ///
    /// If it is 0.
    #[track_caller]
    pub fn set_max_buf_size(&mut self, max_buf_size: usize) {
        assert!(max_buf_size > 0, "`max_buf_size` must be greater than 0");
        self.max_buf_size = max_buf_size;
    }

    /// The most that one operation moves, in bytes.
    pub fn max_buf_size(&self) -> usize {
        self.max_buf_size
    }
}

impl Inner {
    /// Begins a read or a write of `bytes`.
    fn begin(&mut self, action: Action, std: &Arc<StdFile>, regular: bool, bytes: Vec<u8>) {
        let ring = match action {
            Action::Read => FileAction::Read,
            Action::Write => FileAction::Write,
        };
        let started = match regular {
            true => FileOp::start(ring, std, bytes).map_err(|(_, bytes)| bytes),
            false => Err(bytes),
        };
        let running = match started {
            Ok(op) => Running::Ring(op),
            Err(mut bytes) => {
                let std = std.clone();
                Running::Pool(spawn_blocking(move || {
                    let done = match action {
                        Action::Read => read_once(&std, &mut bytes),
                        Action::Write => (&*std)
                            .write_all(&bytes)
                            .and_then(|()| (&*std).flush())
                            .map(|()| bytes.len()),
                    };
                    (done, bytes)
                }))
            }
        };
        self.state = State::Busy(action, running);
    }

    /// Waits for the operation that is under way, if any, and gives its outcome.
    fn poll_ended(
        &mut self,
        cx: &mut Context<'_>,
        std: &Arc<StdFile>,
        regular: bool,
    ) -> Poll<Option<(Action, io::Result<()>)>> {
        loop {
            let State::Busy(action, running) = &mut self.state else {
                return Poll::Ready(None);
            };
            let action = *action;
            let (done, mut bytes) = match running {
                Running::Ring(op) => ready!(Pin::new(op).poll(cx)),
                Running::Pool(call) => match ready!(Pin::new(call).poll(cx)) {
                    Ok(outcome) => outcome,
                    Err(_) => (Err(io::Error::other("background task failed")), Vec::new()),
                },
            };
            self.state = State::Idle(Buf::default());
            let outcome = match done {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    self.begin(action, std, regular, bytes);
                    continue;
                }
                Err(error) => Err(error),
                Ok(count) => match action {
                    Action::Read => {
                        bytes.truncate(count);
                        self.state = State::Idle(Buf { bytes, start: 0 });
                        Ok(())
                    }
                    Action::Write if count < bytes.len() => {
                        if count > 0 {
                            bytes.drain(..count);
                            self.begin(action, std, regular, bytes);
                            continue;
                        }
                        Err(io::ErrorKind::WriteZero.into())
                    }
                    Action::Write => {
                        bytes.clear();
                        self.state = State::Idle(Buf { bytes, start: 0 });
                        Ok(())
                    }
                },
            };
            return Poll::Ready(Some((action, outcome)));
        }
    }

    fn poll_settled(
        &mut self,
        cx: &mut Context<'_>,
        std: &Arc<StdFile>,
        regular: bool,
    ) -> Poll<()> {
        if let Some((Action::Write, Err(error))) = ready!(self.poll_ended(cx, std, regular)) {
            self.failed = Some(error.kind());
        }
        Poll::Ready(())
    }

    /// Moves the position back to before what was read and not given out.
    fn put_back(&mut self, mut std: &StdFile) -> io::Result<()> {
        let State::Idle(buf) = &mut self.state else {
            return Ok(());
        };
        let left = buf.left().len() as i64;
        buf.bytes.clear();
        buf.start = 0;
        match left {
            0 => Ok(()),
            left => std.seek(SeekFrom::Current(-left)).map(drop),
        }
    }

    fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        std: &Arc<StdFile>,
        regular: bool,
    ) -> Poll<io::Result<()>> {
        if let Some(failed) = self.failed.take() {
            return Poll::Ready(Err(failed.into()));
        }
        match ready!(self.poll_ended(cx, std, regular)) {
            Some((Action::Write, outcome)) => Poll::Ready(outcome),
            _ => Poll::Ready(Ok(())),
        }
    }
}

fn read_once(mut std: &StdFile, bytes: &mut [u8]) -> io::Result<usize> {
    loop {
        match std.read(bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

impl AsyncRead for File {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        dst: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let budget = ready!(tokio::task::coop::poll_proceed(cx));
        let this = self.get_mut();
        let inner = this.inner.get_mut();
        let mut at_end = false;
        loop {
            match ready!(inner.poll_ended(cx, &this.std, this.regular)) {
                Some((Action::Read, Err(error))) => return Poll::Ready(Err(error)),
                Some((Action::Read, Ok(()))) => at_end = true,
                Some((Action::Write, Err(error))) => inner.failed = Some(error.kind()),
                Some(_) | None => {}
            }
            let State::Idle(buf) = &mut inner.state else {
                unreachable!("it has ended");
            };
            if !buf.left().is_empty() || at_end || dst.remaining() == 0 {
                let count = buf.left().len().min(dst.remaining());
                dst.put_slice(&buf.left()[..count]);
                buf.start += count;
                budget.made_progress();
                return Poll::Ready(Ok(()));
            }
            let mut bytes = std::mem::take(&mut buf.bytes);
            bytes.resize(dst.remaining().min(this.max_buf_size), 0);
            inner.begin(Action::Read, &this.std, this.regular, bytes);
        }
    }
}

impl AsyncSeek for File {
    fn start_seek(self: Pin<&mut Self>, mut position: SeekFrom) -> io::Result<()> {
        let this = self.get_mut();
        let inner = this.inner.get_mut();
        let State::Idle(buf) = &mut inner.state else {
            return Err(io::Error::other(
                "other file operation is pending, call poll_complete before start_seek",
            ));
        };
        // What was read ahead was not read, for the caller.
        let left = buf.left().len() as i64;
        buf.bytes.clear();
        buf.start = 0;
        if let SeekFrom::Current(by) = &mut position {
            *by -= left;
        }
        // It only sets a number: nothing waits.
        inner.position = { &*this.std }.seek(position)?;
        Ok(())
    }

    fn poll_complete(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<u64>> {
        let budget = ready!(tokio::task::coop::poll_proceed(cx));
        let this = self.get_mut();
        let inner = this.inner.get_mut();
        ready!(inner.poll_settled(cx, &this.std, this.regular));
        budget.made_progress();
        Poll::Ready(Ok(inner.position))
    }
}

impl File {
    fn poll_write_bytes<'a>(
        &mut self,
        cx: &mut Context<'_>,
        parts: impl Iterator<Item = &'a [u8]>,
    ) -> Poll<io::Result<usize>> {
        let budget = ready!(tokio::task::coop::poll_proceed(cx));
        let inner = self.inner.get_mut();
        if let Some(failed) = inner.failed.take() {
            return Poll::Ready(Err(failed.into()));
        }
        if let Some((Action::Write, Err(error))) =
            ready!(inner.poll_ended(cx, &self.std, self.regular))
        {
            return Poll::Ready(Err(error));
        }
        inner.put_back(&self.std)?;
        let State::Idle(buf) = &mut inner.state else {
            unreachable!("it has ended");
        };
        let mut bytes = std::mem::take(&mut buf.bytes);
        for part in parts {
            let room = self.max_buf_size - bytes.len();
            bytes.extend_from_slice(&part[..part.len().min(room)]);
            if bytes.len() == self.max_buf_size {
                break;
            }
        }
        let count = bytes.len();
        inner.begin(Action::Write, &self.std, self.regular, bytes);
        budget.made_progress();
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for File {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        src: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_bytes(cx, std::iter::once(src))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut()
            .poll_write_bytes(cx, bufs.iter().map(|buf| &**buf))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let budget = ready!(tokio::task::coop::poll_proceed(cx));
        let this = self.get_mut();
        let flushed = ready!(this.inner.get_mut().poll_flush(cx, &this.std, this.regular));
        budget.made_progress();
        Poll::Ready(flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

impl From<StdFile> for File {
    fn from(std: StdFile) -> File {
        File::from_std(std)
    }
}

impl From<OwnedFd> for File {
    fn from(fd: OwnedFd) -> File {
        File::from_std(fd.into())
    }
}

impl AsRawFd for File {
    fn as_raw_fd(&self) -> RawFd {
        self.std.as_raw_fd()
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.std.as_fd()
    }
}

impl FromRawFd for File {
    /// # Safety
    ///
    /// The descriptor is open and owned by nobody else.
    unsafe fn from_raw_fd(fd: RawFd) -> File {
        // SAFETY: the caller's promise.
        File::from_std(unsafe { StdFile::from_raw_fd(fd) })
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("tokio::fs::File")
            .field("std", &self.std)
            .finish()
    }
}
