//! A Unix socket before it connects or listens.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::path::Path;

use socket2::{Domain, SockAddr, Socket, Type};

use super::datagram::UnixDatagram;
use super::listener::UnixListener;
use super::stream::UnixStream;

/// A Unix socket that is neither connected nor listening yet.
///
/// # Examples
///
/// ```
/// use tokio::net::UnixSocket;
///
/// # use corespun_compat as tokio;
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let dir = tempfile::tempdir()?;
/// let path = dir.path().join("socket");
/// let socket = UnixSocket::new_stream()?;
/// socket.bind(&path)?;
/// let listener = socket.listen(16)?;
/// UnixSocket::new_stream()?.connect(&path).await?;
/// listener.accept().await?;
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
#[derive(Debug)]
pub struct UnixSocket {
    inner: Socket,
}

fn refuse<T>(message: &str) -> io::Result<T> {
    Err(io::Error::other(message))
}

impl UnixSocket {
    fn kind(&self) -> io::Result<Type> {
        self.inner.r#type()
    }

    /// A datagram socket.
    ///
    /// # Errors
    ///
    /// Those of `socket(2)`.
    pub fn new_datagram() -> io::Result<UnixSocket> {
        Self::new(Type::DGRAM)
    }

    /// A stream socket.
    ///
    /// # Errors
    ///
    /// Those of `socket(2)`.
    pub fn new_stream() -> io::Result<UnixSocket> {
        Self::new(Type::STREAM)
    }

    fn new(kind: Type) -> io::Result<UnixSocket> {
        let inner = Socket::new_raw(Domain::UNIX, kind.nonblocking().cloexec(), None)?;
        Ok(UnixSocket { inner })
    }

    /// Binds it to `path`.
    ///
    /// # Errors
    ///
    /// Those of `bind(2)`.
    pub fn bind(&self, path: impl AsRef<Path>) -> io::Result<()> {
        self.inner.bind(&SockAddr::unix(path)?)
    }

    /// Listens, with so many connections that may wait to be accepted.
    ///
    /// # Errors
    ///
    /// Those of `listen(2)`; if it is a datagram socket.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    #[track_caller]
    pub fn listen(self, backlog: u32) -> io::Result<UnixListener> {
        if self.kind()? == Type::DGRAM {
            return refuse("listen cannot be called on a datagram socket");
        }
        self.inner.listen(backlog.min(i32::MAX as u32) as i32)?;
        UnixListener::new(self.inner.into())
    }

    /// Connects it.
    ///
    /// # Errors
    ///
    /// Those of `connect(2)`; if it is a datagram socket.
    ///
    /// # Cancel safety
    ///
    /// Safe: dropping the future gives the connection up.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub async fn connect(self, path: impl AsRef<Path>) -> io::Result<UnixStream> {
        if self.kind()? == Type::DGRAM {
            return refuse("connect cannot be called on a datagram socket");
        }
        UnixStream::connect_socket(self.inner, &SockAddr::unix(path)?).await
    }

    /// Makes a datagram socket of it.
    ///
    /// # Errors
    ///
    /// If it is a stream socket.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    #[track_caller]
    pub fn datagram(self) -> io::Result<UnixDatagram> {
        if self.kind()? == Type::STREAM {
            return refuse("datagram cannot be called on a stream socket");
        }
        UnixDatagram::from_std(self.inner.into())
    }
}

impl AsRawFd for UnixSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.inner.as_raw_fd()
    }
}

impl AsFd for UnixSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl FromRawFd for UnixSocket {
    /// # Safety
    ///
    /// The descriptor is open, a Unix socket, non-blocking, and owned by nobody else.
    unsafe fn from_raw_fd(fd: RawFd) -> UnixSocket {
        // SAFETY: the caller's promise.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        UnixSocket { inner: fd.into() }
    }
}

impl IntoRawFd for UnixSocket {
    fn into_raw_fd(self) -> RawFd {
        self.inner.into_raw_fd()
    }
}
