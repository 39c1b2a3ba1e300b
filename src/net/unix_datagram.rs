//! Unix-domain datagram sockets.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::SocketAddr;
use std::path::Path;

use socket2::SockRef;

use super::datagram::Datagram;
use crate::io::{IoBuf, IoBufMut};

/// A Unix-domain datagram socket on the OS thread's driver. Neither `Send` nor `Sync`.
///
/// Its methods take `&self`: several tasks of its OS thread may send and receive at once.
///
/// # Examples
///
/// ```
/// use corespun::net::UnixDatagram;
///
/// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
/// let (one, other) = UnixDatagram::pair()?;
/// one.send("ping").await.0?;
/// let (received, buf) = other.recv(Vec::with_capacity(16)).await;
/// assert_eq!((received?, &*buf), (4, &b"ping"[..]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct UnixDatagram(Datagram<std::os::unix::net::UnixDatagram>);

impl UnixDatagram {
    /// Binds to `path`. The file stays when the socket is dropped.
    ///
    /// # Errors
    ///
    /// Those of `bind(2)`; an error if no driver is entered on this OS thread.
    pub fn bind(path: impl AsRef<Path>) -> io::Result<UnixDatagram> {
        Self::from_std(std::os::unix::net::UnixDatagram::bind(path)?)
    }

    /// A socket without an address.
    ///
    /// # Errors
    ///
    /// Those of `socket(2)`; an error if no driver is entered.
    pub fn unbound() -> io::Result<UnixDatagram> {
        Self::from_std(std::os::unix::net::UnixDatagram::unbound()?)
    }

    /// Two connected sockets.
    ///
    /// # Errors
    ///
    /// Those of `socketpair(2)`; an error if no driver is entered.
    pub fn pair() -> io::Result<(UnixDatagram, UnixDatagram)> {
        let (one, other) = std::os::unix::net::UnixDatagram::pair()?;
        Ok((Self::from_std(one)?, Self::from_std(other)?))
    }

    /// Wraps a socket, on this OS thread's driver; makes it non-blocking.
    ///
    /// # Errors
    ///
    /// If no driver is entered, or the socket cannot be watched.
    pub fn from_std(socket: std::os::unix::net::UnixDatagram) -> io::Result<UnixDatagram> {
        socket.set_nonblocking(true)?;
        Datagram::new(socket).map(UnixDatagram)
    }

    /// Gives the socket back, still non-blocking, to be sent to another OS thread.
    ///
    /// # Errors
    ///
    /// Those of `dup(2)`.
    pub fn into_std(self) -> io::Result<std::os::unix::net::UnixDatagram> {
        self.0.get().try_clone()
    }

    /// Sets the peer that [`send`](Self::send) sends to, and that it receives from.
    ///
    /// # Errors
    ///
    /// Those of `connect(2)`.
    pub fn connect(&self, path: impl AsRef<Path>) -> io::Result<()> {
        self.0.get().connect(path)
    }

    /// Waits until a datagram is there, or an error.
    ///
    /// # Errors
    ///
    /// If this is not the driver's OS thread, or the kernel refuses.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn readable(&self) -> io::Result<()> {
        self.0.fd.readable().await
    }

    /// Waits until a datagram can be sent.
    ///
    /// # Errors
    ///
    /// If this is not the driver's OS thread, or the kernel refuses.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn writable(&self) -> io::Result<()> {
        self.0.fd.writable().await
    }

    /// Sends the buffer's initialised bytes as one datagram to where it is connected.
    ///
    /// # Errors
    ///
    /// Those of `send(2)`; an error if this is not the driver's OS thread.
    ///
    /// # Cancel safety
    ///
    /// Safe: a dropped future has sent nothing.
    pub async fn send<B: IoBuf>(&self, buf: B) -> (io::Result<usize>, B) {
        self.0.send(buf, |socket, bytes| socket.send(bytes)).await
    }

    /// Sends the buffer's initialised bytes as one datagram to the socket at `path`.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    ///
    /// # Cancel safety
    ///
    /// Safe: a dropped future has sent nothing.
    pub async fn send_to<B: IoBuf>(
        &self,
        buf: B,
        path: impl AsRef<Path>,
    ) -> (io::Result<usize>, B) {
        self.0
            .send(buf, |socket, bytes| socket.send_to(bytes, path.as_ref()))
            .await
    }

    /// Receives a datagram into the buffer's capacity; what does not fit is lost.
    ///
    /// # Errors
    ///
    /// Those of `recv(2)`; an error if this is not the driver's OS thread.
    ///
    /// # Cancel safety
    ///
    /// Safe: a dropped future has taken nothing.
    pub async fn recv<B: IoBufMut>(&self, buf: B) -> (io::Result<usize>, B) {
        let (received, buf) = self
            .0
            .recv(buf, |socket, space| {
                Ok((SockRef::from(socket).recv(space)?, ()))
            })
            .await;
        (received.map(|(count, ())| count), buf)
    }

    /// As [`recv`](Self::recv), and its sender's address.
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Cancel safety
    ///
    /// Safe: a dropped future has taken nothing.
    pub async fn recv_from<B: IoBufMut>(&self, buf: B) -> (io::Result<(usize, SocketAddr)>, B) {
        self.0
            .recv(buf, |socket, space| {
                let (count, from) = SockRef::from(socket).recv_from(space)?;
                match from.as_unix() {
                    Some(from) => Ok((count, from)),
                    // A sender without an address has not even a family.
                    None => Ok((count, SocketAddr::from_pathname("")?)),
                }
            })
            .await
    }

    /// As [`recv`](Self::recv), into borrowed bytes, if a datagram is there.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if none is; as there.
    pub fn try_recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.get().recv(buf)
    }

    /// As [`send`](Self::send), from borrowed bytes, if there is room.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if there is none; as there.
    pub fn try_send(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.get().send(bytes)
    }

    /// This end's address.
    ///
    /// # Errors
    ///
    /// Those of `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.get().local_addr()
    }

    /// The address it is connected to.
    ///
    /// # Errors
    ///
    /// Those of `getpeername(2)`.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.0.get().peer_addr()
    }

    /// Ends one or both directions for good.
    ///
    /// # Errors
    ///
    /// Those of `shutdown(2)`.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.0.get().shutdown(how)
    }
}

impl AsFd for UnixDatagram {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl std::fmt::Debug for UnixDatagram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("UnixDatagram").field(&self.as_fd()).finish()
    }
}
