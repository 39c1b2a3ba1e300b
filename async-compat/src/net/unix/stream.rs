//! A Unix stream connection.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::split::{OwnedReadHalf, OwnedWriteHalf, ReadHalf, WriteHalf};
use super::{SocketAddr, UCred};
use crate::io::evented::{Evented, fill, recv, room, send};
use crate::io::{Interest, Ready};
use crate::net::{ready_methods, stream_methods};

/// A Unix stream connection.
///
/// `Send` and `Sync`; see the [module](crate::net) for who watches it.
///
/// # Examples
///
/// ```
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// use tokio::net::UnixStream;
///
/// # use corespun_compat as tokio;
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let (mut one, mut other) = UnixStream::pair()?;
/// one.write_all(b"ping").await?;
/// let mut buf = [0; 4];
/// other.read_exact(&mut buf).await?;
/// assert_eq!(&buf, b"ping");
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
pub struct UnixStream {
    io: Evented<std::os::unix::net::UnixStream>,
}

ready_methods!(UnixStream);
stream_methods!(UnixStream, std::os::unix::net::UnixStream);

impl UnixStream {
    pub(crate) fn new(stream: std::os::unix::net::UnixStream) -> io::Result<UnixStream> {
        Ok(UnixStream {
            io: Evented::new(stream)?,
        })
    }

    /// A connection that was made: it may be written, and perhaps read.
    pub(crate) fn accepted(stream: std::os::unix::net::UnixStream) -> io::Result<UnixStream> {
        let io = Evented::new(stream)?.assume(Ready::READABLE | Ready::WRITABLE);
        Ok(UnixStream { io })
    }

    /// Connects to the socket at `path`; one that begins with a NUL byte is an abstract name.
    ///
    /// # Errors
    ///
    /// Those of `connect(2)`: `WouldBlock` if too many wait to be accepted.
    ///
    /// # Cancel safety
    ///
    /// Safe: dropping the future gives the connection up.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub async fn connect<P: AsRef<Path>>(path: P) -> io::Result<UnixStream> {
        Self::connect_to(&SockAddr::unix(path)?).await
    }

    /// As [`connect`](Self::connect), to an address.
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn connect_addr(socket_addr: &SocketAddr) -> io::Result<UnixStream> {
        Self::connect_to(&socket_addr.to_sock_addr()?).await
    }

    async fn connect_to(address: &SockAddr) -> io::Result<UnixStream> {
        let kind = Type::STREAM.nonblocking().cloexec();
        let socket = Socket::new_raw(Domain::UNIX, kind, None)?;
        Self::connect_socket(socket, address).await
    }

    pub(crate) async fn connect_socket(
        socket: Socket,
        address: &SockAddr,
    ) -> io::Result<UnixStream> {
        match socket.connect(address) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        let stream = Self::new(socket.into())?;
        stream.writable().await?;
        match stream.take_error()? {
            None => Ok(stream),
            Some(error) => Err(error),
        }
    }

    /// Two connected streams.
    ///
    /// # Errors
    ///
    /// Those of `socketpair(2)`; if the runtime is shut down.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    #[track_caller]
    pub fn pair() -> io::Result<(UnixStream, UnixStream)> {
        let kind = Type::STREAM.nonblocking().cloexec();
        let (one, other) = Socket::pair_raw(Domain::UNIX, kind, None)?;
        let end = |socket: Socket| {
            let io = Evented::new(socket.into())?.assume(Ready::WRITABLE);
            Ok::<_, io::Error>(UnixStream { io })
        };
        Ok((end(one)?, end(other)?))
    }

    /// This end's address.
    ///
    /// # Errors
    ///
    /// Those of `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.get_ref().local_addr().map(SocketAddr)
    }

    /// The other end's address.
    ///
    /// # Errors
    ///
    /// Those of `getpeername(2)`.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.io.get_ref().peer_addr().map(SocketAddr)
    }

    /// The credentials of the process that has connected, or that made the pair.
    ///
    /// # Errors
    ///
    /// Those of `getsockopt(2)`.
    pub fn peer_cred(&self) -> io::Result<UCred> {
        UCred::of(&self.io)
    }
}
