//! Unix-domain stream sockets: listener and stream.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures::Stream;
use socket2::{Domain, SockAddr, SockRef, Type};

use super::accept::Listener;
use super::socket::{Socket, stream};
use crate::io::delay::Delay;
use crate::io::driver::Driver;
use crate::sync::budget;

/// Connections that may wait to be accepted; the kernel clamps it to `net.core.somaxconn`.
const BACKLOG: i32 = 1024;

/// How long a connect waits for room in a full queue before it asks again; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(64);

/// A Unix-domain stream connection on the OS thread's driver. Neither `Send` nor `Sync`.
///
/// # Examples
///
/// ```
/// use corespun::net::UnixStream;
/// use futures::{AsyncReadExt, AsyncWriteExt};
///
/// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
/// let (mut client, mut server) = UnixStream::pair()?;
/// client.write_all(b"hello").await?;
/// let mut received = [0; 5];
/// server.read_exact(&mut received).await?;
/// assert_eq!(&received, b"hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct UnixStream(Socket);

stream!(UnixStream);

impl UnixStream {
    /// Connects to the socket at `path`. While the listener's queue is full it asks again, at first
    /// after a millisecond, later after 64.
    ///
    /// # Errors
    ///
    /// Those of `connect(2)`; an error if no driver is entered on this OS thread.
    ///
    /// # Cancel safety
    ///
    /// Safe: dropping the future gives the connection up.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::net::{UnixListener, UnixStream};
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let dir = tempfile::tempdir()?;
    /// let path = dir.path().join("disk.sock");
    /// assert!(UnixStream::connect(&path).await.is_err());
    /// let listener = UnixListener::bind(&path)?;
    /// let client = UnixStream::connect(&path).await?;
    /// assert_eq!(client.peer_addr()?.as_pathname(), Some(&*path));
    /// # drop(listener);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub async fn connect(path: impl AsRef<Path>) -> io::Result<UnixStream> {
        // The listener's queue takes it at once, as often as one asks; what is refused is so too.
        budget::take().await;
        let address = SockAddr::unix(path)?;
        let mut pause = FIRST_PAUSE;
        loop {
            let kind = Type::STREAM.nonblocking().cloexec();
            let fd = socket2::Socket::new_raw(Domain::UNIX, kind, None)?;
            match Socket::connect(fd, &address).await {
                // The listener's queue is full, and the kernel tells no client when it no longer
                // is. A blocking connect would wait for that, but could not be given up.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let core = Driver::current_core()?;
                    Delay::new(core, Instant::now() + pause).await?;
                }
                connected => return connected.map(UnixStream),
            }
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    /// Two connected streams, both on this OS thread's driver.
    ///
    /// # Errors
    ///
    /// Those of `socketpair(2)`; an error if no driver is entered.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::net::UnixStream;
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let (one, other) = UnixStream::pair()?;
    /// one.send_all("ping").await.0?;
    /// let (received, buf) = other.recv_exact(vec![0; 4]).await;
    /// received?;
    /// assert_eq!(buf, b"ping");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn pair() -> io::Result<(UnixStream, UnixStream)> {
        let (a, b) = std::os::unix::net::UnixStream::pair()?;
        Ok((Self::from_std(a)?, Self::from_std(b)?))
    }

    /// Wraps a connected socket, on this OS thread's driver; makes it non-blocking.
    ///
    /// # Errors
    ///
    /// If no driver is entered, or the socket cannot be watched.
    pub fn from_std(stream: std::os::unix::net::UnixStream) -> io::Result<UnixStream> {
        Socket::from_std(stream).map(UnixStream)
    }

    /// Gives the socket back, still non-blocking, to be sent to another OS thread.
    ///
    /// # Errors
    ///
    /// Those of `dup(2)`, which is needed while a wait is in flight.
    pub fn into_std(self) -> io::Result<std::os::unix::net::UnixStream> {
        self.0.into_fd().map(Into::into)
    }

    /// This end's address.
    ///
    /// # Errors
    ///
    /// Those of `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr().and_then(unix)
    }

    /// The other end's address.
    ///
    /// # Errors
    ///
    /// Those of `getpeername(2)`.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.0.peer_addr().and_then(unix)
    }
}

/// A Unix-domain listener on the OS thread's driver. Neither `Send` nor `Sync`.
///
/// As with std, the socket's file stays when the listener is dropped.
///
/// # Examples
///
/// ```
/// use corespun::net::{UnixListener, UnixStream};
///
/// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
/// let dir = tempfile::tempdir()?;
/// let path = dir.path().join("disk.sock");
/// let listener = UnixListener::bind(&path)?;
/// let client = UnixStream::connect(&path).await?;
/// let (server, _peer) = listener.accept().await?;
/// assert_eq!(server.local_addr()?.as_pathname(), Some(&*path));
/// # drop(client);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct UnixListener(Listener);

impl UnixListener {
    /// Makes a socket at `path` and listens on it.
    ///
    /// # Errors
    ///
    /// Those of `bind(2)`: `AddrInUse` if there is a file at `path`, whether or not a socket
    /// listens; an error if no driver is entered on this OS thread.
    pub fn bind(path: impl AsRef<Path>) -> io::Result<UnixListener> {
        let listener = std::os::unix::net::UnixListener::bind(path)?;
        SockRef::from(&listener).listen(BACKLOG)?;
        Self::from_std(listener)
    }

    /// Wraps a listening socket; makes it non-blocking.
    ///
    /// # Errors
    ///
    /// If no driver is entered, or the socket cannot be watched.
    pub fn from_std(listener: std::os::unix::net::UnixListener) -> io::Result<UnixListener> {
        Listener::from_std(listener).map(UnixListener)
    }

    /// Gives the socket back, still non-blocking.
    ///
    /// # Errors
    ///
    /// Those of `dup(2)`, which is needed while a wait is in flight.
    pub fn into_std(self) -> io::Result<std::os::unix::net::UnixListener> {
        self.0.into_fd().map(Into::into)
    }

    /// Takes a connection, onto this OS thread's driver.
    ///
    /// # Errors
    ///
    /// Those of `accept(2)`. Out of descriptors or memory is among them, and lasts: after such an
    /// error the listener waits before it tries again, 5 ms at first, 160 ms at most, so that a loop
    /// may go on after any error.
    ///
    /// # Cancel safety
    ///
    /// Safe: a dropped future has taken no connection.
    pub async fn accept(&self) -> io::Result<(UnixStream, SocketAddr)> {
        let (socket, peer) = self.0.accept().await?;
        Ok((UnixStream(socket), unix(peer)?))
    }

    /// Takes a connection as its std type (blocking), to be sent to another OS thread and wrapped
    /// there with [`UnixStream::from_std`].
    ///
    /// # Errors
    ///
    /// As [`accept`](Self::accept).
    ///
    /// # Cancel safety
    ///
    /// Safe: a dropped future has taken no connection.
    pub async fn accept_std(&self) -> io::Result<(std::os::unix::net::UnixStream, SocketAddr)> {
        let (fd, peer) = self.0.accept_fd().await?;
        Ok((fd.into(), unix(peer)?))
    }

    /// The connections as a stream that never ends; an error does not end it either. It waits after
    /// errors that last, as [`accept`](Self::accept) does.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::net::{UnixListener, UnixStream};
    /// use futures::StreamExt;
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let dir = tempfile::tempdir()?;
    /// let path = dir.path().join("disk.sock");
    /// let listener = UnixListener::bind(&path)?;
    /// let clients = (UnixStream::connect(&path).await?, UnixStream::connect(&path).await?);
    /// let taken: Vec<_> = listener.incoming().take(2).collect().await;
    /// assert!(taken.iter().all(|connection| connection.is_ok()));
    /// # drop(clients);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn incoming(&self) -> UnixIncoming<'_> {
        UnixIncoming {
            listener: self,
            wait: None,
        }
    }

    /// The address it listens on.
    ///
    /// # Errors
    ///
    /// Those of `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr().and_then(unix)
    }
}

impl AsFd for UnixListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl std::fmt::Debug for UnixListener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("UnixListener")
            .field(&self.0.as_fd())
            .finish()
    }
}

/// The connections of a [`UnixListener`]; one task at a time may wait for them.
///
/// # Examples
///
/// ```
/// use corespun::net::{UnixListener, UnixStream};
/// use futures::TryStreamExt;
///
/// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
/// let dir = tempfile::tempdir()?;
/// let path = dir.path().join("disk.sock");
/// let listener = UnixListener::bind(&path)?;
/// let client = UnixStream::connect(&path).await?;
/// let server = listener.incoming().try_next().await?.expect("it never ends");
/// server.send_all("hello").await.0?;
/// assert_eq!(client.recv_exact(vec![0; 5]).await.1, b"hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "streams do nothing unless polled"]
pub struct UnixIncoming<'a> {
    listener: &'a UnixListener,
    wait: Option<Delay>,
}

impl Stream for UnixIncoming<'_> {
    type Item = io::Result<UnixStream>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let UnixIncoming { listener, wait } = &mut *self;
        let accepted = ready!(listener.0.poll_accept(wait, cx));
        Poll::Ready(Some(accepted.map(UnixStream)))
    }
}

impl std::fmt::Debug for UnixIncoming<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("UnixIncoming").field(self.listener).finish()
    }
}

fn unix(address: SockAddr) -> io::Result<SocketAddr> {
    match (address.as_pathname(), address.as_abstract_namespace()) {
        (Some(path), _) => SocketAddr::from_pathname(path),
        (None, Some(name)) => SocketAddr::from_abstract_name(name),
        // An empty path is std's unnamed address.
        (None, None) => SocketAddr::from_pathname(""),
    }
}
