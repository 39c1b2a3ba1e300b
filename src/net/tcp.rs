//! TCP: listener and stream.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::Stream;
use socket2::{Domain, Protocol, SockAddr, SockRef, Type};

use super::accept::Listener;
use super::socket::{Socket, stream};
use crate::io::delay::Delay;
use crate::sync::budget;

/// Connections that may wait to be accepted; the kernel clamps it to `net.core.somaxconn`.
const BACKLOG: i32 = 1024;

/// A TCP connection on the OS thread's driver. Neither `Send` nor `Sync`.
///
/// Other socket options: through `socket2::SockRef::from(&stream)`.
///
/// # Examples
///
/// ```
/// use corespun::net::{TcpListener, TcpStream};
/// use futures::{AsyncReadExt, AsyncWriteExt};
///
/// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
/// let listener = TcpListener::bind("127.0.0.1:0".parse()?)?;
/// let mut client = TcpStream::connect(listener.local_addr()?).await?;
/// let (mut server, _peer) = listener.accept().await?;
/// client.write_all(b"hello").await?;
/// let mut received = [0; 5];
/// server.read_exact(&mut received).await?;
/// assert_eq!(&received, b"hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct TcpStream(Socket);

stream!(TcpStream);

impl TcpStream {
    /// Connects to `address`; for a name see [`lookup_host`](super::lookup_host).
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
    /// use corespun::net::{TcpListener, TcpStream};
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let listener = TcpListener::bind("127.0.0.1:0".parse()?)?;
    /// let address = listener.local_addr()?;
    /// let (client, (server, _peer)) =
    ///     futures::try_join!(TcpStream::connect(address), listener.accept())?;
    /// assert_eq!(client.peer_addr()?, server.local_addr()?);
    /// // There is no listener any more.
    /// drop(listener);
    /// assert!(TcpStream::connect(address).await.is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
        // A local listener's queue takes it at once, as often as one asks; what is refused is so too.
        budget::take().await;
        let kind = Type::STREAM.nonblocking().cloexec();
        let fd = socket2::Socket::new_raw(Domain::for_address(address), kind, Some(Protocol::TCP))?;
        Socket::connect(fd, &SockAddr::from(address))
            .await
            .map(TcpStream)
    }

    /// Wraps a connected socket, on this OS thread's driver; makes it non-blocking.
    ///
    /// # Errors
    ///
    /// If no driver is entered, or the socket cannot be watched.
    pub fn from_std(stream: std::net::TcpStream) -> io::Result<TcpStream> {
        Socket::from_std(stream).map(TcpStream)
    }

    /// Gives the socket back, still non-blocking, to be sent to another OS thread.
    ///
    /// # Errors
    ///
    /// Those of `dup(2)`, which is needed while a wait is in flight.
    ///
    /// # Examples
    ///
    /// From one reactor to another, a thread of which takes it up:
    ///
    /// ```
    /// use corespun::net::{TcpListener, TcpStream};
    /// use corespun::thread::SpdkThread;
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let listener = TcpListener::bind("127.0.0.1:0".parse()?)?;
    /// let client = TcpStream::connect(listener.local_addr()?).await?;
    /// let (moved, address) = (client.into_std()?, listener.local_addr()?);
    /// let worker = SpdkThread::current().unwrap().library().thread().create()?;
    /// let peer = worker.call(move || TcpStream::from_std(moved)?.peer_addr()).await??;
    /// assert_eq!(peer, address);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn into_std(self) -> io::Result<std::net::TcpStream> {
        self.0.into_fd().map(Into::into)
    }

    /// This end's address.
    ///
    /// # Errors
    ///
    /// Those of `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr().and_then(inet)
    }

    /// The other end's address.
    ///
    /// # Errors
    ///
    /// Those of `getpeername(2)`.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.0.peer_addr().and_then(inet)
    }

    /// Whether small writes go out at once (`TCP_NODELAY`).
    ///
    /// # Errors
    ///
    /// Those of `getsockopt(2)`.
    pub fn nodelay(&self) -> io::Result<bool> {
        self.0.get().tcp_nodelay()
    }

    /// Sets whether small writes go out at once (`TCP_NODELAY`).
    ///
    /// # Errors
    ///
    /// Those of `setsockopt(2)`.
    pub fn set_nodelay(&self, yes: bool) -> io::Result<()> {
        self.0.get().set_tcp_nodelay(yes)
    }
}

/// A TCP listener on the OS thread's driver. Neither `Send` nor `Sync`.
///
/// # Examples
///
/// ```
/// use corespun::net::{TcpListener, TcpStream};
///
/// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
/// let listener = TcpListener::bind("127.0.0.1:0".parse()?)?;
/// let client = TcpStream::connect(listener.local_addr()?).await?;
/// let (stream, peer) = listener.accept().await?;
/// assert_eq!(peer, client.local_addr()?);
/// # drop(stream);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct TcpListener(Listener);

impl TcpListener {
    /// Listens on `address` (port 0: one the kernel chooses), with `SO_REUSEADDR`.
    ///
    /// # Errors
    ///
    /// Those of `bind(2)` and `listen(2)`; an error if no driver is entered on this OS thread.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::ErrorKind;
    /// use corespun::net::TcpListener;
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let listener = TcpListener::bind("127.0.0.1:0".parse()?)?;
    /// let taken = TcpListener::bind(listener.local_addr()?);
    /// assert_eq!(taken.unwrap_err().kind(), ErrorKind::AddrInUse);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
        let listener = std::net::TcpListener::bind(address)?;
        SockRef::from(&listener).listen(BACKLOG)?;
        Self::from_std(listener)
    }

    /// Wraps a listening socket; makes it non-blocking.
    ///
    /// # Errors
    ///
    /// If no driver is entered, or the socket cannot be watched.
    pub fn from_std(listener: std::net::TcpListener) -> io::Result<TcpListener> {
        Listener::from_std(listener).map(TcpListener)
    }

    /// Gives the socket back, still non-blocking.
    ///
    /// # Errors
    ///
    /// Those of `dup(2)`, which is needed while a wait is in flight.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::net::TcpListener;
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let listener = TcpListener::bind("127.0.0.1:0".parse()?)?;
    /// let address = listener.local_addr()?;
    /// // It goes on listening.
    /// let socket = listener.into_std()?;
    /// assert_eq!(socket.local_addr()?, address);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn into_std(self) -> io::Result<std::net::TcpListener> {
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
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (socket, peer) = self.0.accept().await?;
        Ok((TcpStream(socket), inet(peer)?))
    }

    /// Takes a connection as its std type (blocking), to be sent to another OS thread and wrapped
    /// there with [`TcpStream::from_std`].
    ///
    /// # Errors
    ///
    /// As [`accept`](Self::accept).
    ///
    /// # Cancel safety
    ///
    /// Safe: a dropped future has taken no connection.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{net::{TcpListener, TcpStream}, thread::SpdkThread};
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let listener = TcpListener::bind("127.0.0.1:0".parse()?)?;
    /// let client = TcpStream::connect(listener.local_addr()?).await?;
    /// let (connection, _peer) = listener.accept_std().await?;
    /// // Served by a thread that may be on another core.
    /// let worker = SpdkThread::current().unwrap().library().thread().create()?;
    /// let served = worker.spawn_with(async move || {
    ///     TcpStream::from_std(connection)?.send_all("hello").await.0
    /// });
    /// let (received, buf) = client.recv_exact(vec![0; 5]).await;
    /// received?;
    /// served.await??;
    /// assert_eq!(buf, b"hello");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub async fn accept_std(&self) -> io::Result<(std::net::TcpStream, SocketAddr)> {
        let (fd, peer) = self.0.accept_fd().await?;
        Ok((fd.into(), inet(peer)?))
    }

    /// The connections as a stream that never ends; an error does not end it either. It waits after
    /// errors that last, as [`accept`](Self::accept) does.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{net::{TcpListener, TcpStream}, task};
    /// use futures::StreamExt;
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let listener = TcpListener::bind("127.0.0.1:0".parse()?)?;
    /// let address = listener.local_addr()?;
    /// let first_two = task::spawn_local(async move {
    ///     listener.incoming().take(2).filter(|taken| std::future::ready(taken.is_ok())).count().await
    /// });
    /// let clients = (TcpStream::connect(address).await?, TcpStream::connect(address).await?);
    /// assert_eq!(first_two.await?, 2);
    /// # drop(clients);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn incoming(&self) -> TcpIncoming<'_> {
        TcpIncoming {
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
        self.0.local_addr().and_then(inet)
    }
}

impl AsFd for TcpListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl std::fmt::Debug for TcpListener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("TcpListener").field(&self.0.as_fd()).finish()
    }
}

/// The connections of a [`TcpListener`]; one task at a time may wait for them.
///
/// # Examples
///
/// ```
/// use corespun::net::{TcpListener, TcpStream};
/// use futures::TryStreamExt;
///
/// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
/// let listener = TcpListener::bind("127.0.0.1:0".parse()?)?;
/// let client = TcpStream::connect(listener.local_addr()?).await?;
/// let server = listener.incoming().try_next().await?.expect("it never ends");
/// assert_eq!(server.peer_addr()?, client.local_addr()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "streams do nothing unless polled"]
pub struct TcpIncoming<'a> {
    listener: &'a TcpListener,
    wait: Option<Delay>,
}

impl Stream for TcpIncoming<'_> {
    type Item = io::Result<TcpStream>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let TcpIncoming { listener, wait } = &mut *self;
        let accepted = ready!(listener.0.poll_accept(wait, cx));
        Poll::Ready(Some(accepted.map(TcpStream)))
    }
}

impl std::fmt::Debug for TcpIncoming<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("TcpIncoming").field(self.listener).finish()
    }
}

fn inet(address: SockAddr) -> io::Result<SocketAddr> {
    address
        .as_socket()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an internet address"))
}
