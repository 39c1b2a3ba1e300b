//! `File`: how it is opened, and positional reads and writes.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use super::metadata::{Asking, Metadata};
use super::open::{OpenOptions, must_be_seekable};
use crate::io::driver::Driver;
use crate::io::fixed::OpenFile;
use crate::io::op::{Payload, Request, transfer_len};
use crate::io::state::Core;
use crate::io::{IoBuf, IoBufMut, Lent};
use crate::sync::budget;

/// An open file on the OS thread's driver.
///
/// Neither `Send` nor `Sync`: it belongs to the driver that was current when it was made, and
/// answers with an error elsewhere. To move a file to another OS thread, turn it into a
/// [`std::fs::File`] and wrap that there. Clones share the descriptor.
///
/// All operations take `&self` and may overlap. Dropping the last clone closes the descriptor; an
/// operation in flight holds it open.
///
/// On io_uring a file that is used again and again is registered with the ring, and so are the first
/// buffers of [`Driver::buffer`](crate::io::Driver::buffer): reads and writes between the two spare
/// the kernel its look-ups (`READ_FIXED`, `IOSQE_FIXED_FILE`). There is nothing to ask for, and where
/// the kernel registers nothing they do without. The last clone that goes, and the last operation,
/// take the file out again; before Linux 6.13 the kernel may keep it open until what was in flight on
/// other files then has ended.
///
/// # Cancel safety
///
/// Dropping the future of any operation leaves the operation running; what it needs is kept until it
/// is done, and whether it took effect is then unknown.
///
/// # Examples
///
/// ```
/// use corespun::fs::OpenOptions;
///
/// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
/// let dir = tempfile::tempdir()?;
/// let path = dir.path().join("data");
/// let file = OpenOptions::new().read(true).write(true).create(true).open(&path).await?;
/// let (written, buf) = file.write_all_at(b"hello".to_vec(), 4096).await;
/// written?;
/// file.sync_data().await?;
/// let (read, buf) = file.read_exact_at(buf, 4096).await;
/// read?;
/// assert_eq!(buf, b"hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct File {
    fd: Rc<OpenFile>,
    direct: bool,
}

impl File {
    /// Opens an existing file for reading.
    ///
    /// # Errors
    ///
    /// As [`OpenOptions::open`].
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::fs::File;
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let file = File::open("/proc/self/comm").await?;
    /// let (read, name) = file.read_at(Vec::with_capacity(64), 0).await;
    /// assert_eq!(read?, name.len());
    /// let missing = File::open("/no/such/file").await;
    /// assert_eq!(missing.unwrap_err().kind(), std::io::ErrorKind::NotFound);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub async fn open(path: impl AsRef<Path>) -> io::Result<File> {
        OpenOptions::new().read(true).open(path).await
    }

    /// Opens a file for writing, created if missing and cut to length 0.
    ///
    /// # Errors
    ///
    /// As [`OpenOptions::open`].
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::fs::File;
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let dir = tempfile::tempdir()?;
    /// let path = dir.path().join("log");
    /// std::fs::write(&path, "old contents")?;
    /// let file = File::create(&path).await?;
    /// assert_eq!(file.len().await?, 0);
    /// file.write_all_at(b"new".to_vec(), 0).await.0?;
    /// assert_eq!(std::fs::read(&path)?, b"new");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub async fn create(path: impl AsRef<Path>) -> io::Result<File> {
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .await
    }

    /// Wraps an open descriptor (of a [`std::fs::File`], for example). Whether it does direct I/O is
    /// asked of the kernel.
    ///
    /// # Errors
    ///
    /// If no driver is entered on this OS thread, or the descriptor's flags cannot be read;
    /// `NotSeekable` for a pipe, a socket and whatever else has no offsets: wrap that in a
    /// [`PollFd`](crate::io::PollFd).
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::fs::File;
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let file = File::from_std(tempfile::tempfile()?)?;
    /// file.write_all_at(b"data".to_vec(), 0).await.0?;
    /// assert_eq!(file.len().await?, 4);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_std(file: impl Into<OwnedFd>) -> io::Result<File> {
        let fd = file.into();
        let flags = nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_GETFL)?;
        if flags & libc::O_PATH == 0 {
            must_be_seekable(&fd)?;
        }
        Ok(File::on(
            Driver::current_core()?,
            fd,
            flags & libc::O_DIRECT != 0,
        ))
    }

    /// Gives the descriptor back, to be wrapped elsewhere.
    ///
    /// # Errors
    ///
    /// Those of `dup(2)`, which is needed while a clone or an operation shares the descriptor.
    ///
    /// # Examples
    ///
    /// To close it where closing may block, or to go on elsewhere:
    ///
    /// ```
    /// use corespun::fs::File;
    /// use corespun::task;
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let file = File::from_std(tempfile::tempfile()?)?;
    /// file.set_len(4096).await?;
    /// let file = file.into_std()?;
    /// let len = task::spawn_blocking(move || file.metadata().map(|found| found.len())).await??;
    /// assert_eq!(len, 4096);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn into_std(self) -> io::Result<std::fs::File> {
        match Rc::try_unwrap(self.fd) {
            Ok(file) => Ok(file.into_fd().into()),
            Err(shared) => shared.as_fd().try_clone_to_owned().map(Into::into),
        }
    }

    pub(crate) fn on(core: Rc<Core>, fd: OwnedFd, direct: bool) -> File {
        File {
            fd: Rc::new(OpenFile::new(core, fd, direct)),
            direct,
        }
    }

    /// Whether the file bypasses the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Reads into the buffer's whole capacity at `offset` bytes; fewer bytes may come, 0 at the end
    /// of the file. A `Vec` that is used again has the capacity it ever had:
    /// [`buf.slice(..n)`](IoBuf::slice) reads at most `n` bytes.
    ///
    /// Up to 16 KiB that the page cache holds come at once, for one unit of the task's budget for each
    /// 512 bytes: after 64 KiB it goes behind the others. Where the cache does not have them, tasks
    /// that read at the same time share their submission to the ring.
    ///
    /// # Errors
    ///
    /// Those of `pread(2)`; `InvalidInput` if the offset is not a file offset.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{fs::File, io::IoBuf};
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let file = File::from_std(tempfile::tempfile()?)?;
    /// file.write_all_at(b"0123456789".to_vec(), 0).await.0?;
    /// // So many bytes, whatever the capacity of the buffer.
    /// let (read, part) = file.read_at(vec![0; 8].slice(..4), 0).await;
    /// assert_eq!((read?, &part[..]), (4, &b"0123"[..]));
    /// // The room of the buffer decides how much, and the file's end.
    /// let (read, buf) = file.read_at(Vec::with_capacity(64), 6).await;
    /// assert_eq!((read?, &buf[..]), (4, &b"6789"[..]));
    /// let (read, _buf) = file.read_at(buf, 10).await;
    /// assert_eq!(read?, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub async fn read_at<B: IoBufMut>(&self, mut buf: B, offset: u64) -> (io::Result<usize>, B) {
        let len = transfer_len(buf.bytes_total());
        if !is_in_range(offset, len.into()) {
            return (Err(refused(offset, len.into()).await), buf);
        }
        let cached = poll_fn(|cx| self.fd.poll_read_cached(&mut buf, offset, cx)).await;
        let result = match cached {
            Some(count) => Ok(count),
            None => {
                let (fd, direct) = (self.fd.clone(), self.direct);
                let (result, read) = self
                    .run(Reading {
                        fd,
                        buf: Lent::new(buf),
                        offset,
                        len,
                        direct,
                    })
                    .await;
                buf = read.buf.into_inner();
                result.map(|count| count as usize)
            }
        };
        if let Ok(count) = result {
            // SAFETY: the kernel has filled that many bytes, and was asked for no more than fit.
            unsafe { buf.set_init(count) };
        }
        (result, buf)
    }

    /// Writes the buffer's initialised bytes at `offset` bytes; fewer may be taken.
    ///
    /// # Errors
    ///
    /// Those of `pwrite(2)`; `InvalidInput` if the offset is not a file offset.
    ///
    /// # Examples
    ///
    /// A part of a buffer, and the whole of it back:
    ///
    /// ```
    /// use corespun::{fs::File, io::IoBuf};
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let file = File::from_std(tempfile::tempfile()?)?;
    /// let (written, part) = file.write_at(b"0123456789".to_vec().slice(2..6), 0).await;
    /// assert_eq!(written?, 4);
    /// assert_eq!((file.len().await?, part.into_inner().len()), (4, 10));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub async fn write_at<B: IoBuf>(&self, buf: B, offset: u64) -> (io::Result<usize>, B) {
        let len = transfer_len(buf.bytes_init());
        if let Err(error) = check_range(offset, len.into()).await {
            return (Err(error), buf);
        }
        let (fd, direct) = (self.fd.clone(), self.direct);
        let (result, written) = self
            .run(Writing {
                fd,
                buf: Lent::new(buf),
                offset,
                len,
                direct,
            })
            .await;
        (result.map(|count| count as usize), written.buf.into_inner())
    }

    /// Fills the buffer's whole capacity from `offset` bytes on; with
    /// [`buf.slice(..n)`](IoBuf::slice), `n` bytes of it.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if the file ends before; otherwise as [`read_at`](Self::read_at). What was
    /// read before an error is in the buffer.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::ErrorKind;
    /// use corespun::fs::File;
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let file = File::from_std(tempfile::tempfile()?)?;
    /// file.set_len(4096).await?;
    /// let (read, block) = file.read_exact_at(vec![1; 4096], 0).await;
    /// read?;
    /// assert!(block.iter().all(|&byte| byte == 0));
    /// let (read, _block) = file.read_exact_at(block, 512).await;
    /// assert_eq!(read.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub async fn read_exact_at<B: IoBufMut>(&self, mut buf: B, offset: u64) -> (io::Result<()>, B) {
        let total = buf.bytes_total();
        let mut done = 0;
        if total == 0 {
            budget::take().await;
        }
        while done < total {
            let (result, part) = self.read_at(buf.slice(done..), offset + done as u64).await;
            buf = part.into_inner();
            match result {
                Ok(0) => return (Err(io::ErrorKind::UnexpectedEof.into()), buf),
                Ok(count) => done += count,
                Err(error) => return (Err(error), buf),
            }
        }
        (Ok(()), buf)
    }

    /// Writes all the buffer's initialised bytes from `offset` bytes on.
    ///
    /// # Errors
    ///
    /// `WriteZero` if the file takes no more; otherwise as [`write_at`](Self::write_at). A part may
    /// have been written.
    ///
    /// # Examples
    ///
    /// Several writes at once, each in its own place:
    ///
    /// ```
    /// use corespun::fs::File;
    /// use futures::future::join_all;
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let file = File::from_std(tempfile::tempfile()?)?;
    /// let writes = (0..4).map(|block| file.write_all_at(vec![block; 512], u64::from(block) * 512));
    /// for (written, _buf) in join_all(writes).await {
    ///     written?;
    /// }
    /// assert_eq!(file.len().await?, 2048);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub async fn write_all_at<B: IoBuf>(&self, mut buf: B, offset: u64) -> (io::Result<()>, B) {
        let total = buf.bytes_init();
        let mut done = 0;
        if total == 0 {
            budget::take().await;
        }
        while done < total {
            let (result, part) = self.write_at(buf.slice(done..), offset + done as u64).await;
            buf = part.into_inner();
            match result {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), buf),
                Ok(count) => done += count,
                Err(error) => return (Err(error), buf),
            }
        }
        (Ok(()), buf)
    }

    /// What the file system says about the file.
    ///
    /// # Errors
    ///
    /// Those of `statx(2)`.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::fs::File;
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let metadata = File::open("/proc/self/comm").await?.metadata().await?;
    /// assert!(metadata.is_file() && metadata.mode() & 0o400 != 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub async fn metadata(&self) -> io::Result<Metadata> {
        let (result, asking) = self.run(Asking::about(self.fd.clone())).await;
        result?;
        // SAFETY: it has succeeded.
        Ok(unsafe { asking.answer() })
    }

    /// Runs an operation to its end, again if it is interrupted.
    pub(super) async fn run<P: Payload>(&self, payload: P) -> (io::Result<u32>, P) {
        run(self.fd.core(), payload).await
    }

    pub(super) fn fd(&self) -> &Rc<OpenFile> {
        &self.fd
    }
}

/// Runs an operation, again if a signal has interrupted it.
pub(super) async fn run<P: Payload>(core: &Rc<Core>, mut payload: P) -> (io::Result<u32>, P) {
    loop {
        let operation = match core.submit(payload) {
            Ok(operation) => operation,
            Err((error, payload)) => {
                budget::take().await;
                return (Err(error), payload);
            }
        };
        let (completion, back) = operation.await;
        match completion.into_result() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => payload = back,
            result => return (result, back),
        }
    }
}

/// io_uring takes offset -1 for "the file's cursor", so what no `off_t` holds is refused here.
#[inline]
fn is_in_range(offset: u64, len: u64) -> bool {
    offset
        .checked_add(len)
        .is_some_and(|end| i64::try_from(end).is_ok())
}

/// Refused without a turn of the driver: a loop over it has to give way too.
#[cold]
async fn refused(offset: u64, len: u64) -> io::Error {
    budget::take().await;
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("{len} bytes at offset {offset} are past the greatest file offset"),
    )
}

pub(super) async fn check_range(offset: u64, len: u64) -> io::Result<()> {
    match is_in_range(offset, len) {
        true => Ok(()),
        false => Err(refused(offset, len).await),
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("File")
            .field("fd", &self.fd)
            .field("direct", &self.direct)
            .finish()
    }
}

struct Reading<B> {
    fd: Rc<OpenFile>,
    buf: Lent<B>,
    offset: u64,
    len: u32,
    direct: bool,
}

// SAFETY: IoBufMut keeps `len` (<= bytes_total) writable bytes in place; the descriptor is shared.
unsafe impl<B: IoBufMut> Payload for Reading<B> {
    fn request(&mut self) -> Request {
        let buf = self.buf.get_mut();
        Request::Read {
            fd: self.fd.as_raw_fd(),
            ptr: buf.stable_mut_ptr(),
            len: self.len,
            offset: self.offset,
            direct: self.direct,
            known: self.fd.known(buf),
        }
    }
}

struct Writing<B> {
    fd: Rc<OpenFile>,
    buf: Lent<B>,
    offset: u64,
    len: u32,
    direct: bool,
}

// SAFETY: IoBuf keeps `len` (= bytes_init) readable bytes in place; the descriptor is shared.
unsafe impl<B: IoBuf> Payload for Writing<B> {
    fn request(&mut self) -> Request {
        let buf = self.buf.get_mut();
        Request::Write {
            fd: self.fd.as_raw_fd(),
            ptr: buf.stable_ptr(),
            len: self.len,
            offset: self.offset,
            direct: self.direct,
            known: self.fd.known(buf),
        }
    }
}
