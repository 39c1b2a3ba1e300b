//! A Unix stream listener.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::task::{Context, Poll, ready};

use super::SocketAddr;
use super::stream::UnixStream;
use crate::io::Interest;
use crate::io::evented::Evented;
use crate::net::socket_traits;

/// A Unix stream listener. The file it is bound to stays when it is dropped.
///
/// # Examples
///
/// ```
/// use tokio::net::{UnixListener, UnixStream};
///
/// # use corespun_compat as tokio;
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let dir = tempfile::tempdir()?;
/// let path = dir.path().join("socket");
/// let listener = UnixListener::bind(&path)?;
/// let _client = UnixStream::connect(&path).await?;
/// let (server, _) = listener.accept().await?;
/// assert_eq!(server.local_addr()?.as_pathname(), Some(&*path));
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
pub struct UnixListener {
    io: Evented<std::os::unix::net::UnixListener>,
}

socket_traits!(UnixListener);

impl UnixListener {
    #[track_caller]
    pub(crate) fn new(listener: std::os::unix::net::UnixListener) -> io::Result<UnixListener> {
        Ok(UnixListener {
            io: Evented::new(listener)?,
        })
    }

    /// Listens at `path`; one that begins with a NUL byte is an abstract name.
    ///
    /// # Errors
    ///
    /// Those of `bind(2)`.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    #[track_caller]
    pub fn bind<P: AsRef<Path>>(path: P) -> io::Result<UnixListener> {
        Self::bind_to(&socket2::SockAddr::unix(path)?)
    }

    /// As [`bind`](Self::bind), to an address.
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Panics
    ///
    /// As there.
    #[track_caller]
    pub fn bind_addr(socket_addr: &SocketAddr) -> io::Result<UnixListener> {
        Self::bind_to(&socket_addr.to_sock_addr()?)
    }

    #[track_caller]
    fn bind_to(address: &socket2::SockAddr) -> io::Result<UnixListener> {
        let kind = socket2::Type::STREAM.nonblocking().cloexec();
        let socket = socket2::Socket::new_raw(socket2::Domain::UNIX, kind, None)?;
        socket.bind(address)?;
        socket.listen(1024)?;
        Self::new(socket.into())
    }

    /// Wraps a listener that is non-blocking already.
    ///
    /// # Panics
    ///
    /// If it is blocking, or outside of a runtime.
    ///
    /// # Errors
    ///
    /// If the runtime is shut down.
    #[track_caller]
    pub fn from_std(listener: std::os::unix::net::UnixListener) -> io::Result<UnixListener> {
        crate::io::context::check_nonblocking(&listener);
        Self::new(listener)
    }

    /// Gives the listener back, still non-blocking.
    ///
    /// # Errors
    ///
    /// None today.
    pub fn into_std(self) -> io::Result<std::os::unix::net::UnixListener> {
        Ok(self.io.into_inner())
    }

    /// The address it listens on.
    ///
    /// # Errors
    ///
    /// Those of `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.get_ref().local_addr().map(SocketAddr)
    }

    /// The error that the socket has stored, if any, which is taken.
    ///
    /// # Errors
    ///
    /// Those of `getsockopt(2)`.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.io.get_ref().take_error()
    }

    /// Takes the next connection.
    ///
    /// # Errors
    ///
    /// Those of `accept(2)`.
    ///
    /// # Cancel safety
    ///
    /// Safe: a dropped future has accepted nothing.
    pub async fn accept(&self) -> io::Result<(UnixStream, SocketAddr)> {
        let (stream, address) = self.io.async_io(Interest::READABLE, accept).await?;
        Ok((UnixStream::accepted(stream)?, address))
    }

    /// As [`accept`](Self::accept), in a `poll` function, one task at a time.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(UnixStream, SocketAddr)>> {
        let (socket, address) = ready!(self.io.poll_io(cx, Interest::READABLE, accept))?;
        Poll::Ready(UnixStream::accepted(socket).map(|stream| (stream, address)))
    }
}

fn accept(
    listener: &std::os::unix::net::UnixListener,
) -> io::Result<(std::os::unix::net::UnixStream, SocketAddr)> {
    let (socket, address) = crate::io::evented::accept(listener.as_fd())?;
    crate::runtime::context::note_accept();
    Ok((socket.into(), SocketAddr::of(address)?))
}

impl TryFrom<std::os::unix::net::UnixListener> for UnixListener {
    type Error = io::Error;

    fn try_from(listener: std::os::unix::net::UnixListener) -> io::Result<Self> {
        Self::from_std(listener)
    }
}
