//! A TCP socket before it connects or listens, to set its options.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::{TcpListener, TcpStream};

/// A TCP socket that is neither connected nor listening yet. It belongs to no driver, and may be sent.
///
/// # Examples
///
/// Several listeners of one port, one for each reactor, among which the kernel spreads the
/// connections:
///
/// ```
/// use corespun::net::TcpSocket;
///
/// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
/// let listen = |address| {
///     let socket = TcpSocket::of(address)?;
///     socket.set_reuse_port(true)?;
///     socket.bind(address)?;
///     socket.listen(1024)
/// };
/// let first = listen("127.0.0.1:0".parse()?)?;
/// let second = listen(first.local_addr()?)?;
/// assert_eq!(first.local_addr()?, second.local_addr()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct TcpSocket(Socket);

/// Options, by the names that the socket inside has for them.
macro_rules! options {
    ($($(#[$doc:meta])* $get:ident = $inner_get:ident, $set:ident = $inner_set:ident: $type:ty;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        ///
        /// Those of `getsockopt(2)`.
        pub fn $get(&self) -> io::Result<$type> {
            self.0.$inner_get()
        }

        #[doc = concat!("Sets what [`", stringify!($get), "`](Self::", stringify!($get), ") gives.")]
        ///
        /// # Errors
        ///
        /// Those of `setsockopt(2)`.
        pub fn $set(&self, value: $type) -> io::Result<()> {
            self.0.$inner_set(value)
        }
    )*};
}

impl TcpSocket {
    /// A socket for addresses of the family of `address`.
    ///
    /// # Errors
    ///
    /// Those of `socket(2)`.
    pub fn of(address: SocketAddr) -> io::Result<TcpSocket> {
        let kind = Type::STREAM.nonblocking().cloexec();
        let domain = Domain::for_address(address);
        Socket::new_raw(domain, kind, Some(Protocol::TCP)).map(TcpSocket)
    }

    options! {
        /// Whether an address may be taken that was in use a moment ago (`SO_REUSEADDR`).
        reuse_address = reuse_address, set_reuse_address = set_reuse_address: bool;
        /// Whether several sockets may listen on one address (`SO_REUSEPORT`).
        reuse_port = reuse_port, set_reuse_port = set_reuse_port: bool;
        /// Whether an idle connection is probed (`SO_KEEPALIVE`).
        keepalive = keepalive, set_keepalive = set_keepalive: bool;
        /// Whether small packets are sent at once (`TCP_NODELAY`).
        nodelay = tcp_nodelay, set_nodelay = set_tcp_nodelay: bool;
        /// How long a close waits for unsent data, on the thread that closes; zero resets the
        /// connection (`SO_LINGER`).
        linger = linger, set_linger = set_linger: Option<Duration>;
        /// The size of the receive buffer, in bytes; the kernel doubles what is set (`SO_RCVBUF`).
        recv_buffer_size = recv_buffer_size, set_recv_buffer_size = set_recv_buffer_size: usize;
        /// The size of the send buffer, in bytes; the kernel doubles what is set (`SO_SNDBUF`).
        send_buffer_size = send_buffer_size, set_send_buffer_size = set_send_buffer_size: usize;
        /// The type of service of its IPv4 packets (`IP_TOS`).
        tos_v4 = tos_v4, set_tos_v4 = set_tos_v4: u32;
    }

    /// Binds it to an address of this machine; port 0 has the kernel choose one.
    ///
    /// # Errors
    ///
    /// Those of `bind(2)`.
    pub fn bind(&self, address: SocketAddr) -> io::Result<()> {
        self.0.bind(&address.into())
    }

    /// This end's address.
    ///
    /// # Errors
    ///
    /// Those of `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0
            .local_addr()?
            .as_socket()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an internet address"))
    }

    /// Listens, on this OS thread's driver, with so many connections that may wait to be accepted.
    ///
    /// # Errors
    ///
    /// Those of `listen(2)`; an error if no driver is entered.
    pub fn listen(self, backlog: u32) -> io::Result<TcpListener> {
        self.0.listen(backlog.min(i32::MAX as u32) as i32)?;
        TcpListener::from_std(self.0.into())
    }

    /// Connects, on this OS thread's driver.
    ///
    /// # Errors
    ///
    /// Those of `connect(2)`; an error if no driver is entered.
    ///
    /// # Cancel safety
    ///
    /// Safe: dropping the future gives the connection up.
    pub async fn connect(self, address: SocketAddr) -> io::Result<TcpStream> {
        match self.0.connect(&address.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        let stream = TcpStream::from_std(self.0.into())?;
        stream.writable().await?;
        match stream.take_error()? {
            None => Ok(stream),
            Some(error) => Err(error),
        }
    }
}

impl AsFd for TcpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
