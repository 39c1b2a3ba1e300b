//! A TCP listener.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::task::{Context, Poll, ready};

use super::stream::TcpStream;
use crate::io::Interest;
use crate::io::evented::Evented;
use crate::net::{TcpSocket, ToSocketAddrs, addresses, socket_traits};

/// A TCP listener.
///
/// It may be shared by tasks on several OS threads, each of which accepts.
///
/// # Examples
///
/// ```
/// use tokio::net::{TcpListener, TcpStream};
///
/// # use corespun_compat as tokio;
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let listener = TcpListener::bind("127.0.0.1:0").await?;
/// let client = TcpStream::connect(listener.local_addr()?).await?;
/// let (_server, peer) = listener.accept().await?;
/// assert_eq!(peer, client.local_addr()?);
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
pub struct TcpListener {
    io: Evented<std::net::TcpListener>,
}

socket_traits!(TcpListener);

impl TcpListener {
    #[track_caller]
    pub(crate) fn new(listener: std::net::TcpListener) -> io::Result<TcpListener> {
        Ok(TcpListener {
            io: Evented::new(listener)?,
        })
    }

    /// Listens on the first of the addresses that can be had, with `SO_REUSEADDR` and a backlog of
    /// 1024. Port 0 has the kernel choose one.
    ///
    /// # Errors
    ///
    /// That of the last address; those of the resolver; `InvalidInput` if there is no address.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub async fn bind<A: ToSocketAddrs>(addr: A) -> io::Result<TcpListener> {
        let query = addr.query();
        let mut refusal = None;
        for address in addresses(query).await? {
            match Self::bind_to(address) {
                Ok(listener) => return Ok(listener),
                Err(error) => refusal = Some(error),
            }
        }
        Err(refusal.unwrap_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "could not resolve to any address",
            )
        }))
    }

    fn bind_to(address: SocketAddr) -> io::Result<TcpListener> {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(1024)
    }

    /// Takes the next connection.
    ///
    /// # Errors
    ///
    /// Those of `accept(2)`: at the limit of descriptors, say, and then again at once.
    ///
    /// # Cancel safety
    ///
    /// Safe: a dropped future has accepted nothing.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (socket, address) = self.io.async_io(Interest::READABLE, accept).await?;
        Ok((TcpStream::accepted(socket)?, address))
    }

    /// As [`accept`](Self::accept), in a `poll` function, one task at a time.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        let (socket, address) = ready!(self.io.poll_io(cx, Interest::READABLE, accept))?;
        Poll::Ready(TcpStream::accepted(socket).map(|stream| (stream, address)))
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
    pub fn from_std(listener: std::net::TcpListener) -> io::Result<TcpListener> {
        crate::io::context::check_nonblocking(&listener);
        Self::new(listener)
    }

    /// Gives the listener back, still non-blocking.
    ///
    /// # Errors
    ///
    /// None today.
    pub fn into_std(self) -> io::Result<std::net::TcpListener> {
        Ok(self.io.into_inner())
    }

    /// The address it listens on.
    ///
    /// # Errors
    ///
    /// Those of `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.get_ref().local_addr()
    }

    /// The time to live of its packets (`IP_TTL`).
    ///
    /// # Errors
    ///
    /// Those of `getsockopt(2)`.
    pub fn ttl(&self) -> io::Result<u32> {
        self.io.get_ref().ttl()
    }

    /// Sets the time to live of its packets (`IP_TTL`).
    ///
    /// # Errors
    ///
    /// Those of `setsockopt(2)`.
    pub fn set_ttl(&self, ttl: u32) -> io::Result<()> {
        self.io.get_ref().set_ttl(ttl)
    }
}

/// Takes one connection, non-blocking and closed on exec.
fn accept(listener: &std::net::TcpListener) -> io::Result<(std::net::TcpStream, SocketAddr)> {
    let (socket, address) = crate::io::evented::accept(listener.as_fd())?;
    crate::runtime::context::note_accept();
    let address = address
        .as_socket()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an internet address"))?;
    Ok((socket.into(), address))
}

impl TryFrom<std::net::TcpListener> for TcpListener {
    type Error = io::Error;

    fn try_from(listener: std::net::TcpListener) -> io::Result<Self> {
        Self::from_std(listener)
    }
}
