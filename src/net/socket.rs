//! What all stream sockets share: one registered descriptor, and reads and writes on it.
//!
//! A transfer that moves less than it was asked to has most likely emptied (or filled) the socket's
//! buffer. On the ring, whose waits look at the level, the next one therefore waits at once instead
//! of spending a system call on `EAGAIN`; with edges that would lose what is left. So does a read after
//! one that got all it asked for, if that has been in vain lately.

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use socket2::{SockAddr, SockRef};

use super::bound::Bound;
use crate::io::readiness::Direction;
use crate::io::{IoBuf, IoBufMut, PollFd};
use crate::sync::budget::{self, poll_budget};

/// As many buffers as the kernel takes at once; of more the first ones are moved, as by `std`.
const MOST_PARTS: usize = libc::UIO_MAXIOV as usize;

/// Public only in name: the module is private, and nothing hands it out.
pub struct Socket {
    _bound: Bound,
    fd: PollFd<OwnedFd>,
}

impl Socket {
    /// Registers a descriptor that is non-blocking already.
    pub(crate) fn nonblocking(fd: impl Into<OwnedFd>) -> io::Result<Self> {
        Ok(Socket {
            _bound: Bound::default(),
            fd: PollFd::new(fd.into())?,
        })
    }

    pub(crate) fn from_std(fd: impl Into<OwnedFd>) -> io::Result<Self> {
        let fd = fd.into();
        SockRef::from(&fd).set_nonblocking(true)?;
        Self::nonblocking(fd)
    }

    /// The descriptor, still non-blocking.
    pub(crate) fn into_fd(self) -> io::Result<OwnedFd> {
        let owner = self.fd.owner();
        drop(self.fd);
        // A wait in flight holds the owner too, until the kernel has let go of it.
        Rc::try_unwrap(owner).or_else(|shared| shared.try_clone())
    }

    /// Starts to connect `fd`, which is non-blocking, and waits until it is.
    pub(crate) async fn connect(fd: socket2::Socket, address: &SockAddr) -> io::Result<Self> {
        match fd.connect(address) {
            Ok(()) => return Self::nonblocking(fd),
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(error) => return Err(error),
        }
        let socket = Self::nonblocking(fd)?;
        // Asked again, the kernel says whether it is connected by now, or why not.
        let connect = |fd: &OwnedFd| match SockRef::from(fd).connect(address) {
            Err(error) => match error.raw_os_error() {
                Some(libc::EALREADY | libc::EINPROGRESS) => Err(io::ErrorKind::WouldBlock.into()),
                Some(libc::EISCONN) => Ok(()),
                _ => Err(error),
            },
            connected => connected,
        };
        socket.fd.write_with(connect).await?;
        Ok(socket)
    }

    pub(crate) fn pollable(&self) -> &PollFd<OwnedFd> {
        &self.fd
    }

    pub(crate) fn get(&self) -> SockRef<'_> {
        SockRef::from(self.fd.get_ref())
    }

    pub(crate) fn local_addr(&self) -> io::Result<SockAddr> {
        self.get().local_addr()
    }

    pub(crate) fn peer_addr(&self) -> io::Result<SockAddr> {
        self.get().peer_addr()
    }

    pub(crate) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.get().shutdown(how)
    }

    /// Ends the sending direction; that a peer has gone first is no error.
    pub(crate) fn poll_close(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        Poll::Ready(match self.shutdown(Shutdown::Write) {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            done => done,
        })
    }

    /// Nothing is held back here; it only gives way as any source that is always ready.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(poll_budget(cx)).progressed();
        Poll::Ready(Ok(()))
    }

    pub(crate) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let wanted = buf.len();
        let read = self
            .fd
            .poll_read_with(cx, |fd| (&*SockRef::from(fd)).read(buf));
        self.note(Direction::Read, wanted, read)
    }

    pub(crate) fn poll_read_vectored(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let most = bufs.len().min(MOST_PARTS);
        let bufs = &mut bufs[..most];
        let wanted = bufs.iter().map(|buf| buf.len()).sum();
        let read = self
            .fd
            .poll_read_with(cx, |fd| (&*SockRef::from(fd)).read_vectored(bufs));
        self.note(Direction::Read, wanted, read)
    }

    pub(crate) fn poll_write(&self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let sent = self.fd.poll_write_with(cx, |fd| {
            SockRef::from(fd).send_with_flags(buf, libc::MSG_NOSIGNAL)
        });
        self.note(Direction::Write, buf.len(), sent)
    }

    pub(crate) fn poll_write_vectored(
        &self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bufs = &bufs[..bufs.len().min(MOST_PARTS)];
        let wanted = bufs.iter().map(|buf| buf.len()).sum();
        let sent = self.fd.poll_write_with(cx, |fd| {
            SockRef::from(fd).send_vectored_with_flags(bufs, libc::MSG_NOSIGNAL)
        });
        self.note(Direction::Write, wanted, sent)
    }

    pub(crate) async fn recv<B: IoBufMut>(&self, mut buf: B) -> (io::Result<usize>, B) {
        let wanted = buf.bytes_total();
        let pointer = buf.stable_mut_ptr().cast::<MaybeUninit<u8>>();
        // SAFETY: IoBufMut promises `wanted` writable bytes there; `buf` is owned by this future
        // and not used while the slice is.
        let space = unsafe { std::slice::from_raw_parts_mut(pointer, wanted) };
        let read = self.fd.read_with(|fd| SockRef::from(fd).recv(space)).await;
        if let Ok(count) = read {
            // SAFETY: the kernel has filled that many bytes.
            unsafe { buf.set_init(count) };
        }
        self.hint(Direction::Read, wanted, &read);
        (read, buf)
    }

    pub(crate) async fn recv_exact<B: IoBufMut>(&self, mut buf: B) -> (io::Result<()>, B) {
        let (total, mut done) = (buf.bytes_total(), 0);
        if total == 0 {
            budget::take().await;
        }
        while done < total {
            let (result, part) = self.recv(buf.slice(done..)).await;
            buf = part.into_inner();
            match result {
                Ok(0) => return (Err(io::ErrorKind::UnexpectedEof.into()), buf),
                Ok(count) => done += count,
                Err(error) => return (Err(error), buf),
            }
        }
        (Ok(()), buf)
    }

    pub(crate) async fn send<B: IoBuf>(&self, buf: B) -> (io::Result<usize>, B) {
        let len = buf.bytes_init();
        // SAFETY: IoBuf promises `len` readable bytes there; `buf` is owned by this future.
        let bytes = unsafe { std::slice::from_raw_parts(buf.stable_ptr(), len) };
        let sent = self
            .fd
            .write_with(|fd| SockRef::from(fd).send_with_flags(bytes, libc::MSG_NOSIGNAL))
            .await;
        self.hint(Direction::Write, len, &sent);
        (sent, buf)
    }

    pub(crate) async fn send_all<B: IoBuf>(&self, mut buf: B) -> (io::Result<()>, B) {
        let (total, mut done) = (buf.bytes_init(), 0);
        if total == 0 {
            budget::take().await;
        }
        while done < total {
            let (result, part) = self.send(buf.slice(done..)).await;
            buf = part.into_inner();
            match result {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), buf),
                Ok(count) => done += count,
                Err(error) => return (Err(error), buf),
            }
        }
        (Ok(()), buf)
    }

    fn note(
        &self,
        direction: Direction,
        wanted: usize,
        moved: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(moved) = &moved {
            self.hint(direction, wanted, moved);
        }
        moved
    }

    fn hint(&self, direction: Direction, wanted: usize, moved: &io::Result<usize>) {
        match *moved {
            // The end of the stream, which nothing follows, or nothing that was asked for.
            Ok(0) | Err(_) => {}
            Ok(count) if count < wanted => self.fd.hint_drained(direction),
            Ok(_) if direction == Direction::Read => self.fd.hint_full(),
            Ok(_) => {}
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What every stream type offers, on its one `Socket`.
macro_rules! stream {
    ($stream:ident) => {
        impl $stream {
            /// Receives into the buffer's capacity as soon as there is something; 0 bytes is the end
            /// of the stream. A `Vec` that is used again has the capacity it ever had:
            /// [`buf.slice(..n)`](crate::io::IoBuf::slice) takes at most `n` bytes.
            ///
            /// # Errors
            ///
            /// Those of `recv(2)`; an error if this is not the driver's OS thread.
            ///
            /// # Cancel safety
            ///
            /// Safe: a dropped future has taken nothing from the socket.
            pub async fn recv<B: $crate::io::IoBufMut>(&self, buf: B) -> (io::Result<usize>, B) {
                self.0.recv(buf).await
            }

            /// Fills the buffer's whole capacity; with [`buf.slice(..n)`](crate::io::IoBuf::slice),
            /// `n` bytes of it.
            ///
            /// # Errors
            ///
            /// `UnexpectedEof` if the stream ends before; otherwise as [`recv`](Self::recv).
            ///
            /// # Cancel safety
            ///
            /// Not safe: a dropped future may have taken a part.
            ///
            /// # Examples
            ///
            /// Of a [`UnixStream`](crate::net::UnixStream); a [`TcpStream`](crate::net::TcpStream) does
            /// the same.
            ///
            /// ```
            /// use std::io::ErrorKind;
            /// use corespun::net::UnixStream;
            ///
            /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
            /// let (client, server) = UnixStream::pair()?;
            /// client.send_all("headerbo").await.0?;
            /// let (received, header) = server.recv_exact(vec![0; 6]).await;
            /// received?;
            /// assert_eq!(header, b"header");
            /// // The rest never comes.
            /// drop(client);
            /// let (received, _body) = server.recv_exact(vec![0; 4]).await;
            /// assert_eq!(received.unwrap_err().kind(), ErrorKind::UnexpectedEof);
            /// # Ok::<(), Box<dyn std::error::Error>>(())
            /// # })??;
            /// # Ok::<(), Box<dyn std::error::Error>>(())
            /// ```
            pub async fn recv_exact<B: $crate::io::IoBufMut>(&self, buf: B) -> (io::Result<()>, B) {
                self.0.recv_exact(buf).await
            }

            /// Sends the buffer's initialised bytes, or as many as fit at once.
            ///
            /// # Errors
            ///
            /// Those of `send(2)`; an error if this is not the driver's OS thread.
            ///
            /// # Cancel safety
            ///
            /// Safe: a dropped future has sent nothing.
            pub async fn send<B: $crate::io::IoBuf>(&self, buf: B) -> (io::Result<usize>, B) {
                self.0.send(buf).await
            }

            /// Sends all the buffer's initialised bytes.
            ///
            /// # Errors
            ///
            /// As [`send`](Self::send).
            ///
            /// # Cancel safety
            ///
            /// Not safe: a dropped future may have sent a part.
            pub async fn send_all<B: $crate::io::IoBuf>(&self, buf: B) -> (io::Result<()>, B) {
                self.0.send_all(buf).await
            }

            /// Ends one or both directions for good.
            ///
            /// # Errors
            ///
            /// Those of `shutdown(2)`.
            pub fn shutdown(&self, how: std::net::Shutdown) -> io::Result<()> {
                self.0.shutdown(how)
            }

            /// Two owned halves, for two tasks of this OS thread.
            ///
            /// A shared reference reads and writes too, so two `&stream` are borrowed halves.
            ///
            /// # Examples
            ///
            /// Of a [`UnixStream`](crate::net::UnixStream); a [`TcpStream`](crate::net::TcpStream) does
            /// the same.
            ///
            /// ```
            /// use corespun::net::UnixStream;
            /// use futures::{AsyncReadExt, AsyncWriteExt};
            ///
            /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
            /// let (stream, peer) = UnixStream::pair()?;
            /// let (mut reader, mut writer) = stream.split();
            /// peer.send_all("ping").await.0?;
            /// writer.write_all(b"pong").await?;
            /// let mut received = [0; 4];
            /// reader.read_exact(&mut received).await?;
            /// assert_eq!((&received, &peer.recv_exact(vec![0; 4]).await.1[..]), (b"ping", &b"pong"[..]));
            /// # Ok::<(), Box<dyn std::error::Error>>(())
            /// # })??;
            /// # Ok::<(), Box<dyn std::error::Error>>(())
            /// ```
            pub fn split(self) -> ($crate::net::ReadHalf<Self>, $crate::net::WriteHalf<Self>) {
                $crate::net::split::halves(self)
            }
        }

        impl $crate::net::split::Stream for $stream {
            fn socket(&self) -> &Socket {
                &self.0
            }
        }

        $crate::net::socket::async_io!([] $stream, |stream| &stream.0);
        $crate::net::socket::async_io!(['a] &'a $stream, |stream| &stream.0);

        impl AsFd for $stream {
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.0.as_fd()
            }
        }

        impl std::fmt::Debug for $stream {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_tuple(stringify!($stream)).field(&self.0.as_fd()).finish()
            }
        }
    };
}

/// `AsyncRead` and `AsyncWrite` for a type that leads to a `Socket`.
macro_rules! async_io {
    ([$($generics:tt)*] $type:ty, $socket:expr) => {
        $crate::net::socket::async_io!(read [$($generics)*] $type, $socket);
        $crate::net::socket::async_io!(write [$($generics)*] $type, $socket);
    };
    (read [$($generics:tt)*] $type:ty, $socket:expr) => {
        /// Only one task at a time may read: the waker of the last `poll` is kept.
        impl<$($generics)*> futures::io::AsyncRead for $type {
            fn poll_read(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                buf: &mut [u8],
            ) -> std::task::Poll<std::io::Result<usize>> {
                let socket: fn(&Self) -> &$crate::net::socket::Socket = $socket;
                socket(&self).poll_read(cx, buf)
            }

            fn poll_read_vectored(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                bufs: &mut [std::io::IoSliceMut<'_>],
            ) -> std::task::Poll<std::io::Result<usize>> {
                let socket: fn(&Self) -> &$crate::net::socket::Socket = $socket;
                socket(&self).poll_read_vectored(cx, bufs)
            }
        }
    };
    (write [$($generics:tt)*] $type:ty, $socket:expr) => {
        /// Only one task at a time may write: the waker of the last `poll` is kept. Closing shuts
        /// down the sending direction.
        impl<$($generics)*> futures::io::AsyncWrite for $type {
            fn poll_write(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                buf: &[u8],
            ) -> std::task::Poll<std::io::Result<usize>> {
                let socket: fn(&Self) -> &$crate::net::socket::Socket = $socket;
                socket(&self).poll_write(cx, buf)
            }

            fn poll_write_vectored(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                bufs: &[std::io::IoSlice<'_>],
            ) -> std::task::Poll<std::io::Result<usize>> {
                let socket: fn(&Self) -> &$crate::net::socket::Socket = $socket;
                socket(&self).poll_write_vectored(cx, bufs)
            }

            fn poll_flush(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                let socket: fn(&Self) -> &$crate::net::socket::Socket = $socket;
                socket(&self).poll_flush(cx)
            }

            fn poll_close(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                let socket: fn(&Self) -> &$crate::net::socket::Socket = $socket;
                socket(&self).poll_close(cx)
            }
        }
    };
}

pub(crate) use {async_io, stream};
