//! Pipes, anonymous and named (FIFOs).

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

#[cfg(feature = "io-util")]
use crate::io::evented::fill;
use crate::io::evented::{Evented, read_fd, write_fd};
use crate::io::{Interest, Ready};

/// A new anonymous pipe.
///
/// # Errors
///
/// Those of `pipe2(2)`.
///
/// # Panics
///
/// Outside of a runtime.
///
/// # Examples
///
/// ```
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// use tokio::net::unix::pipe;
///
/// # use corespun_compat as tokio;
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let (mut sender, mut receiver) = pipe::pipe()?;
/// sender.write_all(b"ping").await?;
/// drop(sender);
/// let mut all = Vec::new();
/// receiver.read_to_end(&mut all).await?;
/// assert_eq!(all, b"ping");
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
#[track_caller]
pub fn pipe() -> io::Result<(Sender, Receiver)> {
    let (receiver, sender) = nix::unistd::pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
    Ok((Sender::new(sender.into())?, Receiver::new(receiver.into())?))
}

/// How a FIFO is opened.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    read_write: bool,
    unchecked: bool,
}

impl OpenOptions {
    /// For one direction, and only if it is a FIFO.
    pub fn new() -> OpenOptions {
        OpenOptions::default()
    }

    /// Sets whether it is opened for both directions, so that neither end waits for, or depends on,
    /// the other.
    pub fn read_write(&mut self, value: bool) -> &mut Self {
        self.read_write = value;
        self
    }

    /// Sets whether anything may be opened, FIFO or not.
    pub fn unchecked(&mut self, value: bool) -> &mut Self {
        self.unchecked = value;
        self
    }

    /// Opens the reading end.
    ///
    /// # Errors
    ///
    /// Those of `open(2)`; `InvalidInput` if it is not a FIFO.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    #[track_caller]
    pub fn open_receiver<P: AsRef<Path>>(&self, path: P) -> io::Result<Receiver> {
        self.open(path.as_ref(), true, self.read_write)
            .and_then(Receiver::new)
    }

    /// Opens the writing end.
    ///
    /// # Errors
    ///
    /// Those of `open(2)`: `ENXIO` if nobody reads; `InvalidInput` if it is not a FIFO.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    #[track_caller]
    pub fn open_sender<P: AsRef<Path>>(&self, path: P) -> io::Result<Sender> {
        self.open(path.as_ref(), self.read_write, true)
            .and_then(Sender::new)
    }

    fn open(&self, path: &Path, read: bool, write: bool) -> io::Result<File> {
        let file = File::options()
            .read(read)
            .write(write)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        match self.unchecked || is_fifo(&file)? {
            true => Ok(file),
            false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a pipe")),
        }
    }
}

/// The writing end of a pipe.
#[derive(Debug)]
pub struct Sender {
    io: Evented<File>,
}

impl Sender {
    #[track_caller]
    fn new(file: File) -> io::Result<Sender> {
        let io = Evented::watched(file, Interest::WRITABLE)?;
        Ok(Sender { io })
    }

    /// Takes the writing end of a pipe, and makes it non-blocking.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if it is not a pipe, or not open for writing; those of `fcntl(2)`.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    #[track_caller]
    pub fn from_file(file: File) -> io::Result<Sender> {
        check(&file, OFlag::O_WRONLY)?;
        Self::from_file_unchecked(file)
    }

    /// As [`from_file`](Self::from_file).
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Panics
    ///
    /// As there.
    #[track_caller]
    pub fn from_owned_fd(owned_fd: OwnedFd) -> io::Result<Sender> {
        Self::from_file(owned_fd.into())
    }

    /// Takes any descriptor that can be watched and written, and makes it non-blocking.
    ///
    /// # Errors
    ///
    /// Those of `fcntl(2)`.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    #[track_caller]
    pub fn from_file_unchecked(file: File) -> io::Result<Sender> {
        set_nonblocking(&file, true)?;
        Self::new(file)
    }

    /// As [`from_file_unchecked`](Self::from_file_unchecked).
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Panics
    ///
    /// As there.
    #[track_caller]
    pub fn from_owned_fd_unchecked(owned_fd: OwnedFd) -> io::Result<Sender> {
        Self::from_file_unchecked(owned_fd.into())
    }

    /// Waits until it is ready for some of `interest`, and says for what.
    ///
    /// # Errors
    ///
    /// If there is no I/O driver that could watch, or the kernel refuses to.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        self.io.ready(interest).await
    }

    /// Waits until it is writable, or nobody reads any more.
    ///
    /// # Errors
    ///
    /// As [`ready`](Self::ready).
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn writable(&self) -> io::Result<()> {
        self.ready(Interest::WRITABLE).await.map(drop)
    }

    /// As [`writable`](Self::writable), in a `poll` function, one task at a time.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.poll_ready(cx, Interest::WRITABLE)
    }

    /// Writes what fits.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if nothing does; `BrokenPipe` if nobody reads; those of `write(2)`.
    pub fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
        self.io.try_io(Interest::WRITABLE, |mut io| io.write(buf))
    }

    /// As [`try_write`](Self::try_write), from several buffers in turn.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn try_write_vectored(&self, buf: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.io
            .try_io(Interest::WRITABLE, |mut io| io.write_vectored(buf))
    }

    /// Runs `f`, a non-blocking write that is not wrapped here, unless it is known that it would block.
    ///
    /// # Errors
    ///
    /// `WouldBlock`, or that of `f`.
    pub fn try_io<R>(&self, f: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
        self.io.try_io(Interest::WRITABLE, |_| f())
    }

    /// Gives the descriptor back, made blocking.
    ///
    /// # Errors
    ///
    /// Those of `fcntl(2)`.
    pub fn into_blocking_fd(self) -> io::Result<OwnedFd> {
        into_blocking(self.io.into_inner())
    }

    /// Gives the descriptor back, still non-blocking.
    ///
    /// # Errors
    ///
    /// None today.
    pub fn into_nonblocking_fd(self) -> io::Result<OwnedFd> {
        Ok(self.io.into_inner().into())
    }
}

impl AsyncWrite for Sender {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.io
            .poll_write(cx, buf.len(), |io| write_fd(io.as_fd(), buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wanted = bufs.iter().map(|buf| buf.len()).sum();
        self.io
            .poll_write(cx, wanted, |mut io| io.write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The reading end of a pipe.
#[derive(Debug)]
pub struct Receiver {
    io: Evented<File>,
}

impl Receiver {
    #[track_caller]
    fn new(file: File) -> io::Result<Receiver> {
        let io = Evented::watched(file, Interest::READABLE)?;
        Ok(Receiver { io })
    }

    /// Takes the reading end of a pipe, and makes it non-blocking.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if it is not a pipe, or not open for reading; those of `fcntl(2)`.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    #[track_caller]
    pub fn from_file(file: File) -> io::Result<Receiver> {
        check(&file, OFlag::O_RDONLY)?;
        Self::from_file_unchecked(file)
    }

    /// As [`from_file`](Self::from_file).
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Panics
    ///
    /// As there.
    #[track_caller]
    pub fn from_owned_fd(owned_fd: OwnedFd) -> io::Result<Receiver> {
        Self::from_file(owned_fd.into())
    }

    /// Takes any descriptor that can be watched and read, and makes it non-blocking.
    ///
    /// # Errors
    ///
    /// Those of `fcntl(2)`.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    #[track_caller]
    pub fn from_file_unchecked(file: File) -> io::Result<Receiver> {
        set_nonblocking(&file, true)?;
        Self::new(file)
    }

    /// As [`from_file_unchecked`](Self::from_file_unchecked).
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Panics
    ///
    /// As there.
    #[track_caller]
    pub fn from_owned_fd_unchecked(owned_fd: OwnedFd) -> io::Result<Receiver> {
        Self::from_file_unchecked(owned_fd.into())
    }

    /// Waits until it is ready for some of `interest`, and says for what.
    ///
    /// # Errors
    ///
    /// If there is no I/O driver that could watch, or the kernel refuses to.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        self.io.ready(interest).await
    }

    /// Waits until it is readable, or nobody writes any more.
    ///
    /// # Errors
    ///
    /// As [`ready`](Self::ready).
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn readable(&self) -> io::Result<()> {
        self.ready(Interest::READABLE).await.map(drop)
    }

    /// As [`readable`](Self::readable), in a `poll` function, one task at a time.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.poll_ready(cx, Interest::READABLE)
    }

    /// Reads what is there.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if there is nothing; those of `read(2)`.
    pub fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.io.try_io(Interest::READABLE, |mut io| io.read(buf))
    }

    /// As [`try_read`](Self::try_read), into several buffers in turn.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn try_read_vectored(&self, bufs: &mut [io::IoSliceMut<'_>]) -> io::Result<usize> {
        self.io
            .try_io(Interest::READABLE, |mut io| io.read_vectored(bufs))
    }

    /// As [`try_read`](Self::try_read), into the spare room of `buf`.
    ///
    /// # Errors
    ///
    /// As there.
    #[cfg(feature = "io-util")]
    pub fn try_read_buf<B: bytes::BufMut>(&self, buf: &mut B) -> io::Result<usize> {
        self.io.try_io(Interest::READABLE, |io| {
            fill(buf, |space| read_fd(io.as_fd(), space))
        })
    }

    /// Runs `f`, a non-blocking read that is not wrapped here, unless it is known that it would block.
    ///
    /// # Errors
    ///
    /// `WouldBlock`, or that of `f`.
    pub fn try_io<R>(&self, f: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
        self.io.try_io(Interest::READABLE, |_| f())
    }

    /// Gives the descriptor back, made blocking.
    ///
    /// # Errors
    ///
    /// Those of `fcntl(2)`.
    pub fn into_blocking_fd(self) -> io::Result<OwnedFd> {
        into_blocking(self.io.into_inner())
    }

    /// Gives the descriptor back, still non-blocking.
    ///
    /// # Errors
    ///
    /// None today.
    pub fn into_nonblocking_fd(self) -> io::Result<OwnedFd> {
        Ok(self.io.into_inner().into())
    }
}

impl AsyncRead for Receiver {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.io
            .poll_read(cx, buf, |io, space| read_fd(io.as_fd(), space))
    }
}

macro_rules! descriptor {
    ($($end:ident),*) => {$(
        impl AsRawFd for $end {
            fn as_raw_fd(&self) -> RawFd {
                self.io.as_raw_fd()
            }
        }

        impl AsFd for $end {
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.io.as_fd()
            }
        }
    )*};
}

descriptor!(Sender, Receiver);

fn is_fifo(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.file_type().is_fifo())
}

/// Whether `file` is a pipe that is open for what `access` says.
fn check(file: &File, access: OFlag) -> io::Result<()> {
    let refuse = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    if !is_fifo(file)? {
        return refuse("not a pipe");
    }
    let mode = flags(file)? & OFlag::O_ACCMODE;
    if mode != access && mode != OFlag::O_RDWR {
        return match access {
            OFlag::O_WRONLY => refuse("not in O_WRONLY or O_RDWR access mode"),
            _ => refuse("not in O_RDONLY or O_RDWR access mode"),
        };
    }
    Ok(())
}

fn flags(file: &File) -> io::Result<OFlag> {
    Ok(OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?))
}

fn set_nonblocking(file: &File, on: bool) -> io::Result<()> {
    let old = flags(file)?;
    let mut new = old;
    new.set(OFlag::O_NONBLOCK, on);
    if new != old {
        fcntl(file, FcntlArg::F_SETFL(new))?;
    }
    Ok(())
}

fn into_blocking(file: File) -> io::Result<OwnedFd> {
    set_nonblocking(&file, false)?;
    Ok(file.into())
}
