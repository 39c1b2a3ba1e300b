//! A Unix datagram socket.

use std::io;
use std::net::Shutdown;
use std::path::Path;
use std::task::{Context, Poll, ready};

#[cfg(feature = "io-util")]
use bytes::BufMut;
use socket2::SockRef;
use tokio::io::ReadBuf;

use super::SocketAddr;
use crate::io::evented::Evented;
#[cfg(feature = "io-util")]
use crate::io::evented::{fill, fill_with};
use crate::io::{Interest, Ready};
use crate::net::{datagram_methods, ready_methods};

/// A Unix datagram socket.
///
/// Its methods take `&self`: shared in an `Arc`, several tasks, also on several OS threads, may send
/// and receive.
///
/// # Examples
///
/// ```
/// use tokio::net::UnixDatagram;
///
/// # use corespun_compat as tokio;
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let (one, other) = UnixDatagram::pair()?;
/// one.send(b"ping").await?;
/// let mut buf = [0; 16];
/// assert_eq!(other.recv(&mut buf).await?, 4);
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
pub struct UnixDatagram {
    io: Evented<std::os::unix::net::UnixDatagram>,
}

ready_methods!(UnixDatagram);
datagram_methods!(UnixDatagram);

impl UnixDatagram {
    /// Binds to `path`.
    ///
    /// # Errors
    ///
    /// Those of `bind(2)`.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    #[track_caller]
    pub fn bind<P: AsRef<Path>>(path: P) -> io::Result<UnixDatagram> {
        Self::take(std::os::unix::net::UnixDatagram::bind(path)?)
    }

    /// Two connected sockets.
    ///
    /// # Errors
    ///
    /// Those of `socketpair(2)`.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    #[track_caller]
    pub fn pair() -> io::Result<(UnixDatagram, UnixDatagram)> {
        let (one, other) = std::os::unix::net::UnixDatagram::pair()?;
        let end = |socket: std::os::unix::net::UnixDatagram| {
            let Self { io } = Self::take(socket)?;
            let io = io.assume(Ready::WRITABLE);
            Ok::<_, io::Error>(UnixDatagram { io })
        };
        Ok((end(one)?, end(other)?))
    }

    /// A socket without an address.
    ///
    /// # Errors
    ///
    /// Those of `socket(2)`.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    #[track_caller]
    pub fn unbound() -> io::Result<UnixDatagram> {
        Self::take(std::os::unix::net::UnixDatagram::unbound()?)
    }

    #[track_caller]
    fn take(socket: std::os::unix::net::UnixDatagram) -> io::Result<UnixDatagram> {
        socket.set_nonblocking(true)?;
        Self::from_std(socket)
    }

    /// Wraps a socket that is non-blocking already.
    ///
    /// # Panics
    ///
    /// If it is blocking, or outside of a runtime.
    ///
    /// # Errors
    ///
    /// If the runtime is shut down.
    #[track_caller]
    pub fn from_std(datagram: std::os::unix::net::UnixDatagram) -> io::Result<UnixDatagram> {
        crate::io::context::check_nonblocking(&datagram);
        Ok(UnixDatagram {
            io: Evented::new(datagram)?,
        })
    }

    /// Gives the socket back, still non-blocking.
    ///
    /// # Errors
    ///
    /// None today.
    pub fn into_std(self) -> io::Result<std::os::unix::net::UnixDatagram> {
        Ok(self.io.into_inner())
    }

    /// Sets where [`send`](Self::send) sends to and whom it receives from.
    ///
    /// # Errors
    ///
    /// Those of `connect(2)`.
    pub fn connect<P: AsRef<Path>>(&self, path: P) -> io::Result<()> {
        self.io.get_ref().connect(path)
    }

    /// Sends a datagram to the socket at `target`.
    ///
    /// # Errors
    ///
    /// Those of `sendto(2)`.
    ///
    /// # Cancel safety
    ///
    /// Safe: a dropped future has sent nothing.
    pub async fn send_to<P: AsRef<Path>>(&self, buf: &[u8], target: P) -> io::Result<usize> {
        self.io
            .async_io(Interest::WRITABLE, |io| io.send_to(buf, target.as_ref()))
            .await
    }

    /// As [`send_to`](Self::send_to), in a `poll` function, one task at a time.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn poll_send_to<P: AsRef<Path>>(
        &self,
        cx: &mut Context<'_>,
        buf: &[u8],
        target: P,
    ) -> Poll<io::Result<usize>> {
        self.io.poll_io(cx, Interest::WRITABLE, |io| {
            io.send_to(buf, target.as_ref())
        })
    }

    /// As [`send_to`](Self::send_to), if it need not wait.
    ///
    /// # Errors
    ///
    /// `WouldBlock`, or as there.
    pub fn try_send_to<P: AsRef<Path>>(&self, buf: &[u8], target: P) -> io::Result<usize> {
        self.io
            .try_io(Interest::WRITABLE, |io| io.send_to(buf, target))
    }

    /// As [`try_recv_from`](Self::try_recv_from), into the spare room of `buf`.
    ///
    /// # Errors
    ///
    /// As there.
    #[cfg(feature = "io-util")]
    pub fn try_recv_buf_from<B: BufMut>(&self, buf: &mut B) -> io::Result<(usize, SocketAddr)> {
        self.io.try_io(Interest::READABLE, |io| {
            fill_with(buf, |space| recv_from(io, space))
        })
    }

    /// As [`recv_from`](Self::recv_from), into the spare room of `buf`.
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    #[cfg(feature = "io-util")]
    pub async fn recv_buf_from<B: BufMut>(&self, buf: &mut B) -> io::Result<(usize, SocketAddr)> {
        self.io
            .async_io(Interest::READABLE, |io| {
                fill_with(buf, |space| recv_from(io, space))
            })
            .await
    }

    /// Receives a datagram and its sender's address; what does not fit is lost.
    ///
    /// # Errors
    ///
    /// Those of `recvfrom(2)`.
    ///
    /// # Cancel safety
    ///
    /// Safe: a dropped future has taken nothing.
    pub async fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let (count, from) = self
            .io
            .async_io(Interest::READABLE, |io| io.recv_from(buf))
            .await?;
        Ok((count, SocketAddr(from)))
    }

    /// As [`recv_from`](Self::recv_from), in a `poll` function, one task at a time.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn poll_recv_from(
        &self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<SocketAddr>> {
        let from = ready!(self.io.poll_read_datagram(cx, buf, recv_from))?;
        Poll::Ready(Ok(from))
    }

    /// As [`recv_from`](Self::recv_from), if it need not wait.
    ///
    /// # Errors
    ///
    /// `WouldBlock`, or as there.
    pub fn try_recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let received = self.io.try_io(Interest::READABLE, |io| io.recv_from(buf));
        received.map(|(count, from)| (count, SocketAddr(from)))
    }

    /// This end's address.
    ///
    /// # Errors
    ///
    /// Those of `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.get_ref().local_addr().map(SocketAddr)
    }

    /// The address it is connected to.
    ///
    /// # Errors
    ///
    /// Those of `getpeername(2)`.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.io.get_ref().peer_addr().map(SocketAddr)
    }

    /// The error that the socket has stored, if any, which is taken.
    ///
    /// # Errors
    ///
    /// Those of `getsockopt(2)`.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.io.get_ref().take_error()
    }

    /// Ends one or both directions for good.
    ///
    /// # Errors
    ///
    /// Those of `shutdown(2)`.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.io.get_ref().shutdown(how)
    }
}

fn recv_from(
    io: &std::os::unix::net::UnixDatagram,
    space: &mut [std::mem::MaybeUninit<u8>],
) -> io::Result<(usize, SocketAddr)> {
    let (count, from) = SockRef::from(io).recv_from(space)?;
    Ok((count, SocketAddr::of(from)?))
}

impl TryFrom<std::os::unix::net::UnixDatagram> for UnixDatagram {
    type Error = io::Error;

    fn try_from(socket: std::os::unix::net::UnixDatagram) -> io::Result<Self> {
        Self::from_std(socket)
    }
}
