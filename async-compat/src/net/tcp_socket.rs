//! A TCP socket before it connects or listens.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::{TcpListener, TcpStream};

/// A TCP socket that is neither connected nor listening yet, to set its options.
///
/// # Examples
///
/// ```
/// use tokio::net::TcpSocket;
///
/// # use corespun_compat as tokio;
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let socket = TcpSocket::new_v4()?;
/// socket.set_reuseaddr(true)?;
/// socket.bind("127.0.0.1:0".parse().unwrap())?;
/// let listener = socket.listen(16)?;
/// TcpSocket::new_v4()?.connect(listener.local_addr()?).await?;
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
pub struct TcpSocket {
    inner: Socket,
}

/// Options that `socket2` has under the same name, or nearly.
macro_rules! options {
    ($($what:literal $set:ident = $inner_set:ident, $get:ident = $inner_get:ident: $type:ty;)*) => {$(
        #[doc = concat!("Sets ", $what, ".")]
        ///
        /// # Errors
        ///
        /// Those of `setsockopt(2)`.
        pub fn $set(&self, value: $type) -> io::Result<()> {
            self.inner.$inner_set(value)
        }

        #[doc = concat!("Gives ", $what, ".")]
        ///
        /// # Errors
        ///
        /// Those of `getsockopt(2)`.
        pub fn $get(&self) -> io::Result<$type> {
            self.inner.$inner_get()
        }
    )*};
}

impl TcpSocket {
    /// A socket for IPv4.
    ///
    /// # Errors
    ///
    /// Those of `socket(2)`.
    pub fn new_v4() -> io::Result<TcpSocket> {
        Self::new(Domain::IPV4)
    }

    /// A socket for IPv6.
    ///
    /// # Errors
    ///
    /// Those of `socket(2)`.
    pub fn new_v6() -> io::Result<TcpSocket> {
        Self::new(Domain::IPV6)
    }

    fn new(domain: Domain) -> io::Result<TcpSocket> {
        let kind = Type::STREAM.nonblocking().cloexec();
        let inner = Socket::new_raw(domain, kind, Some(Protocol::TCP))?;
        Ok(TcpSocket { inner })
    }

    options! {
        "whether an idle connection is probed (`SO_KEEPALIVE`)"
            set_keepalive = set_keepalive, keepalive = keepalive: bool;
        "whether an address may be taken that was in use a moment ago (`SO_REUSEADDR`)"
            set_reuseaddr = set_reuse_address, reuseaddr = reuse_address: bool;
        "whether several sockets may listen on one address (`SO_REUSEPORT`)"
            set_reuseport = set_reuse_port, reuseport = reuse_port: bool;
        "whether small packets are sent at once (`TCP_NODELAY`)"
            set_nodelay = set_tcp_nodelay, nodelay = tcp_nodelay: bool;
        "the traffic class of its IPv6 packets (`IPV6_TCLASS`)"
            set_tclass_v6 = set_tclass_v6, tclass_v6 = tclass_v6: u32;
        "the type of service of its IPv4 packets (`IP_TOS`)"
            set_tos_v4 = set_tos_v4, tos_v4 = tos_v4: u32;
    }

    /// Sets the size of the send buffer, in bytes; the kernel doubles it.
    ///
    /// # Errors
    ///
    /// Those of `setsockopt(2)`.
    pub fn set_send_buffer_size(&self, size: u32) -> io::Result<()> {
        self.inner.set_send_buffer_size(size as usize)
    }

    /// The size of the send buffer, in bytes.
    ///
    /// # Errors
    ///
    /// Those of `getsockopt(2)`.
    pub fn send_buffer_size(&self) -> io::Result<u32> {
        self.inner.send_buffer_size().map(|size| size as u32)
    }

    /// Sets the size of the receive buffer, in bytes; the kernel doubles it.
    ///
    /// # Errors
    ///
    /// Those of `setsockopt(2)`.
    pub fn set_recv_buffer_size(&self, size: u32) -> io::Result<()> {
        self.inner.set_recv_buffer_size(size as usize)
    }

    /// The size of the receive buffer, in bytes.
    ///
    /// # Errors
    ///
    /// Those of `getsockopt(2)`.
    pub fn recv_buffer_size(&self) -> io::Result<u32> {
        self.inner.recv_buffer_size().map(|size| size as u32)
    }

    /// Sets how long a close waits for unsent data (`SO_LINGER`), on the thread that closes: it then
    /// stops everything on its core.
    ///
    /// # Errors
    ///
    /// Those of `setsockopt(2)`.
    #[deprecated = "it blocks the thread when the socket is dropped: see `set_zero_linger`"]
    pub fn set_linger(&self, dur: Option<Duration>) -> io::Result<()> {
        self.inner.set_linger(dur)
    }

    /// Has a close drop what is unsent and reset the connection.
    ///
    /// # Errors
    ///
    /// Those of `setsockopt(2)`.
    pub fn set_zero_linger(&self) -> io::Result<()> {
        self.inner.set_linger(Some(Duration::ZERO))
    }

    /// How long a close waits for unsent data (`SO_LINGER`).
    ///
    /// # Errors
    ///
    /// Those of `getsockopt(2)`.
    pub fn linger(&self) -> io::Result<Option<Duration>> {
        self.inner.linger()
    }

    /// As [`tos_v4`](Self::tos_v4).
    ///
    /// # Errors
    ///
    /// As there.
    #[deprecated = "renamed to `tos_v4`"]
    pub fn tos(&self) -> io::Result<u32> {
        self.inner.tos_v4()
    }

    /// As [`set_tos_v4`](Self::set_tos_v4).
    ///
    /// # Errors
    ///
    /// As there.
    #[deprecated = "renamed to `set_tos_v4`"]
    pub fn set_tos(&self, tos: u32) -> io::Result<()> {
        self.inner.set_tos_v4(tos)
    }

    /// The interface it is bound to (`SO_BINDTODEVICE`).
    ///
    /// # Errors
    ///
    /// Those of `getsockopt(2)`.
    pub fn device(&self) -> io::Result<Option<Vec<u8>>> {
        self.inner.device()
    }

    /// Binds it to an interface, or to none (`SO_BINDTODEVICE`).
    ///
    /// # Errors
    ///
    /// Those of `setsockopt(2)`.
    pub fn bind_device(&self, interface: Option<&[u8]>) -> io::Result<()> {
        self.inner.bind_device(interface)
    }

    /// This end's address.
    ///
    /// # Errors
    ///
    /// Those of `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        let address = self.inner.local_addr()?;
        address
            .as_socket()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an internet address"))
    }

    /// The error that the socket has stored, if any, which is taken.
    ///
    /// # Errors
    ///
    /// Those of `getsockopt(2)`.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.inner.take_error()
    }

    /// Binds it to an address of this machine.
    ///
    /// # Errors
    ///
    /// Those of `bind(2)`.
    pub fn bind(&self, addr: SocketAddr) -> io::Result<()> {
        self.inner.bind(&addr.into())
    }

    /// Connects it.
    ///
    /// # Errors
    ///
    /// Those of `connect(2)`.
    ///
    /// # Cancel safety
    ///
    /// Safe: dropping the future gives the connection up.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub async fn connect(self, addr: SocketAddr) -> io::Result<TcpStream> {
        match self.inner.connect(&addr.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
            _ => TcpStream::connected(self.inner.into()).await,
        }
    }

    /// Listens, with so many connections that may wait to be accepted.
    ///
    /// # Errors
    ///
    /// Those of `listen(2)`.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    #[track_caller]
    pub fn listen(self, backlog: u32) -> io::Result<TcpListener> {
        self.inner.listen(backlog.min(i32::MAX as u32) as i32)?;
        TcpListener::new(self.inner.into())
    }

    /// Takes a socket that is not connected yet, in the type of one that is.
    pub fn from_std_stream(std_stream: std::net::TcpStream) -> TcpSocket {
        let inner = Socket::from(std_stream);
        // A blocking one would stop everything on its core. Nothing here can say so.
        let _ = inner.set_nonblocking(true);
        TcpSocket { inner }
    }
}

impl fmt::Debug for TcpSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl AsRawFd for TcpSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.inner.as_raw_fd()
    }
}

impl AsFd for TcpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl FromRawFd for TcpSocket {
    /// # Safety
    ///
    /// The descriptor is open, a TCP socket, non-blocking, and owned by nobody else.
    unsafe fn from_raw_fd(fd: RawFd) -> TcpSocket {
        // SAFETY: the caller's promise.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        TcpSocket { inner: fd.into() }
    }
}

impl IntoRawFd for TcpSocket {
    fn into_raw_fd(self) -> RawFd {
        self.inner.into_raw_fd()
    }
}
