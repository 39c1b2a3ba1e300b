//! What every socket and pipe of this crate is inside: a descriptor that the driver of the polling OS
//! thread watches ([`SharedFd`]), used within the cooperative budget of the task.
//!
//! A transfer that moves less than it was asked to has emptied, or filled, the kernel's buffer: the next
//! one waits at once instead of spending a system call on `EAGAIN`.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::task::{Context, Poll, ready};

use bytes::BufMut;
use corespun::io::{Interest, Ready, SharedFd};
use rustix::net::{RecvFlags, SendFlags};
use socket2::SockAddr;
use tokio::io::ReadBuf;
use tokio::task::coop::poll_proceed;

use super::context;
use crate::runtime::shutdown_error;

const BOTH: Interest = Interest::READABLE.add(Interest::WRITABLE);

pub(crate) struct Evented<T: AsFd>(SharedFd<T>);

impl<T: AsFd> Evented<T> {
    /// Takes a non-blocking descriptor, to be read and written.
    ///
    /// # Errors
    ///
    /// If the runtime is shut down.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    #[track_caller]
    pub(crate) fn new(io: T) -> io::Result<Self> {
        Self::with_interest(io, BOTH)
    }

    /// As [`new`](Self::new), for `interest` alone.
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Panics
    ///
    /// As there.
    #[track_caller]
    pub(crate) fn with_interest(io: T, interest: Interest) -> io::Result<Self> {
        let fd = context::share(io, interest);
        fd.map(Evented).map_err(|_| shutdown_error())
    }

    /// As [`with_interest`](Self::with_interest), of what is not tried before a driver has seen an
    /// event, and is watched at once.
    ///
    /// # Errors
    ///
    /// If the kernel refuses to watch it, or the runtime is shut down.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    #[track_caller]
    pub(crate) fn watched(io: T, interest: Interest) -> io::Result<Self> {
        let fd = context::share(io, interest).map_err(|_| shutdown_error())?;
        let fd = fd.after_event();
        if corespun::io::Driver::current().is_some() {
            fd.watch()?;
        }
        Ok(Evented(fd))
    }

    /// Takes it for ready before a driver has looked.
    pub(crate) fn assume(self, ready: Ready) -> Self {
        Evented(self.0.assume(ready))
    }

    #[inline]
    pub(crate) fn get_ref(&self) -> &T {
        self.0.get_ref()
    }

    pub(crate) fn into_inner(self) -> T {
        self.0.into_inner()
    }

    pub(crate) async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        let event = self.0.ready(interest).await.map_err(context::gone)?;
        Ok(event.ready())
    }

    pub(crate) fn poll_ready(
        &self,
        cx: &mut Context<'_>,
        interest: Interest,
    ) -> Poll<io::Result<()>> {
        let budget = ready!(poll_proceed(cx));
        let event = ready!(self.0.poll_ready(cx, interest)).map_err(context::gone);
        budget.made_progress();
        Poll::Ready(event.map(drop))
    }

    #[inline]
    pub(crate) fn try_io<R>(
        &self,
        interest: Interest,
        op: impl FnOnce(&T) -> io::Result<R>,
    ) -> io::Result<R> {
        self.0.try_io(interest, op)
    }

    /// Runs `op` until it does not answer `WouldBlock`; only the last task that polled this direction is
    /// woken.
    #[inline]
    pub(crate) fn poll_io<R>(
        &self,
        cx: &mut Context<'_>,
        interest: Interest,
        mut op: impl FnMut(&T) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        let budget = ready!(poll_proceed(cx));
        let done = ready!(self.0.poll_io(cx, interest, |io, _| op(io)));
        budget.made_progress();
        Poll::Ready(done.map_err(context::gone))
    }

    /// As [`poll_io`](Self::poll_io), for a transfer of up to `wanted` bytes of a stream.
    #[inline]
    fn poll_transfer(
        &self,
        cx: &mut Context<'_>,
        interest: Interest,
        wanted: usize,
        mut op: impl FnMut(&T) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let budget = ready!(poll_proceed(cx));
        let done = ready!(self.0.poll_io(cx, interest, |io, seen| {
            let count = op(io)?;
            if 0 < count && count < wanted {
                self.0.clear(seen);
            }
            Ok(count)
        }));
        budget.made_progress();
        Poll::Ready(done.map_err(context::gone))
    }

    pub(crate) async fn async_io<R>(
        &self,
        interest: Interest,
        mut op: impl FnMut(&T) -> io::Result<R>,
    ) -> io::Result<R> {
        loop {
            {
                let budget = poll_fn(poll_proceed).await;
                match self.0.try_io(interest, &mut op) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    done => {
                        budget.made_progress();
                        return done;
                    }
                }
            }
            self.0.ready(interest).await.map_err(context::gone)?;
        }
    }

    /// Reads from a stream into what `buf` has left.
    #[inline]
    pub(crate) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
        read: impl Fn(&T, &mut [MaybeUninit<u8>]) -> io::Result<usize>,
    ) -> Poll<io::Result<()>> {
        let wanted = buf.remaining();
        // SAFETY: `read` only writes initialised bytes there.
        let space = unsafe { buf.unfilled_mut() };
        let count =
            ready!(self.poll_transfer(cx, Interest::READABLE, wanted, |io| read(io, &mut *space)))?;
        // SAFETY: `read` has filled that many bytes.
        unsafe { buf.assume_init(count) };
        buf.advance(count);
        Poll::Ready(Ok(()))
    }

    /// Receives a datagram into what `buf` has left.
    #[inline]
    pub(crate) fn poll_read_datagram<R>(
        &self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
        read: impl Fn(&T, &mut [MaybeUninit<u8>]) -> io::Result<(usize, R)>,
    ) -> Poll<io::Result<R>> {
        // SAFETY: `read` only writes initialised bytes there.
        let space = unsafe { buf.unfilled_mut() };
        let (count, more) =
            ready!(self.poll_io(cx, Interest::READABLE, |io| read(io, &mut *space)))?;
        // SAFETY: `read` has filled that many bytes.
        unsafe { buf.assume_init(count) };
        buf.advance(count);
        Poll::Ready(Ok(more))
    }

    #[inline]
    pub(crate) fn poll_write(
        &self,
        cx: &mut Context<'_>,
        wanted: usize,
        write: impl FnMut(&T) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        self.poll_transfer(cx, Interest::WRITABLE, wanted, write)
    }
}

/// Receives into the spare room of a `BufMut`.
pub(crate) fn fill<B: BufMut>(
    buf: &mut B,
    read: impl FnOnce(&mut [MaybeUninit<u8>]) -> io::Result<usize>,
) -> io::Result<usize> {
    fill_with(buf, |space| read(space).map(|count| (count, ()))).map(|(count, ())| count)
}

/// As [`fill`], for what has more to say than how much it was.
pub(crate) fn fill_with<B: BufMut, R>(
    buf: &mut B,
    read: impl FnOnce(&mut [MaybeUninit<u8>]) -> io::Result<(usize, R)>,
) -> io::Result<(usize, R)> {
    // SAFETY: only initialised bytes are written to it.
    let space = unsafe { buf.chunk_mut().as_uninit_slice_mut() };
    let (count, more) = read(space)?;
    // SAFETY: that many bytes were filled.
    unsafe { buf.advance_mut(count) };
    Ok((count, more))
}

/// A slice of bytes as the room that a read may fill.
pub(crate) fn room(buf: &mut [u8]) -> &mut [MaybeUninit<u8>] {
    // SAFETY: the layouts agree, and every use here only writes initialised bytes to it.
    unsafe { std::slice::from_raw_parts_mut(buf.as_mut_ptr().cast(), buf.len()) }
}

/// `read(2)`, for what is not a socket.
pub(crate) fn read_fd(fd: BorrowedFd<'_>, space: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
    // SAFETY: the room is writable, and the descriptor open, for the whole call.
    let count = unsafe { libc::read(fd.as_raw_fd(), space.as_mut_ptr().cast(), space.len()) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// `write(2)`, for what is not a socket.
pub(crate) fn write_fd(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the bytes are readable, and the descriptor open, for the whole call.
    let count = unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// `recv(2)`, by the system call itself: libc's function is a point where an OS thread may be
/// cancelled, which it keeps account of as soon as there are two of them.
#[inline]
pub(crate) fn recv(socket: &impl AsFd, space: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
    let (_, count) = rustix::net::recv(socket, space, RecvFlags::empty())?;
    Ok(count)
}

/// `send(2)` without SIGPIPE, by the system call itself, as [`recv`].
#[inline]
pub(crate) fn send(socket: &impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    Ok(rustix::net::send(socket, bytes, SendFlags::NOSIGNAL)?)
}

/// `accept(2)`, non-blocking and closed on exec.
pub(crate) fn accept(fd: BorrowedFd<'_>) -> io::Result<(OwnedFd, SockAddr)> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the call writes an address and its length, and gives a descriptor that is nobody's yet.
    unsafe {
        SockAddr::try_init(|storage, len| {
            let socket = libc::accept4(fd.as_raw_fd(), storage.cast(), len, flags);
            match socket {
                -1 => Err(io::Error::last_os_error()),
                socket => Ok(OwnedFd::from_raw_fd(socket)),
            }
        })
    }
}

impl<T: AsFd> AsFd for Evented<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

// A descriptor that a panic has left is as good as before.
impl<T: AsFd> std::panic::UnwindSafe for Evented<T> {}
impl<T: AsFd> std::panic::RefUnwindSafe for Evented<T> {}

impl<T: AsFd> AsRawFd for Evented<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl<T: AsFd + fmt::Debug> fmt::Debug for Evented<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.get_ref().fmt(f)
    }
}
