//! A TCP connection.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::split::{OwnedReadHalf, OwnedWriteHalf, ReadHalf, WriteHalf};
use crate::io::evented::{Evented, fill, recv, room, send};
use crate::io::{Interest, Ready};
use crate::net::{TcpSocket, ToSocketAddrs, addresses, ready_methods, stream_methods};

/// A TCP connection.
///
/// `Send` and `Sync`; see the [module](crate::net) for who watches it.
///
/// # Examples
///
/// ```
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// use tokio::net::{TcpListener, TcpStream};
///
/// # use corespun_compat as tokio;
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let listener = TcpListener::bind("127.0.0.1:0").await?;
/// let mut client = TcpStream::connect(listener.local_addr()?).await?;
/// let (mut server, _) = listener.accept().await?;
/// client.write_all(b"ping").await?;
/// let mut buf = [0; 4];
/// server.read_exact(&mut buf).await?;
/// assert_eq!(&buf, b"ping");
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
pub struct TcpStream {
    io: Evented<std::net::TcpStream>,
}

ready_methods!(TcpStream);
stream_methods!(TcpStream, std::net::TcpStream);

impl TcpStream {
    pub(crate) fn new(stream: std::net::TcpStream) -> io::Result<TcpStream> {
        Ok(TcpStream {
            io: Evented::new(stream)?,
        })
    }

    /// A connection that was made: it may be written, and perhaps read.
    pub(crate) fn accepted(stream: std::net::TcpStream) -> io::Result<TcpStream> {
        let io = Evented::new(stream)?.assume(Ready::READABLE | Ready::WRITABLE);
        Ok(TcpStream { io })
    }

    /// Connects to the first of the addresses that answers.
    ///
    /// # Errors
    ///
    /// That of the last address; those of the resolver; `InvalidInput` if there is no address.
    ///
    /// # Cancel safety
    ///
    /// Safe: dropping the future gives the connection up.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub async fn connect<A: ToSocketAddrs>(addr: A) -> io::Result<TcpStream> {
        let query = addr.query();
        let mut refusal = None;
        for address in addresses(query).await? {
            match Self::connect_to(address).await {
                Ok(stream) => return Ok(stream),
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

    async fn connect_to(address: SocketAddr) -> io::Result<TcpStream> {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.connect(address).await
    }

    /// Waits until a connection that was begun is made.
    pub(crate) async fn connected(socket: std::net::TcpStream) -> io::Result<TcpStream> {
        let stream = Self::new(socket)?;
        stream.writable().await?;
        match stream.take_error()? {
            None => Ok(stream),
            Some(error) => Err(error),
        }
    }

    /// This end's address.
    ///
    /// # Errors
    ///
    /// Those of `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.get_ref().local_addr()
    }

    /// The peer's address.
    ///
    /// # Errors
    ///
    /// Those of `getpeername(2)`.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.io.get_ref().peer_addr()
    }

    /// As [`peek`](Self::peek), in a `poll` function, one task at a time. The bytes are put into `buf`.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn poll_peek(
        &self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<usize>> {
        // SAFETY: only initialised bytes are written to it.
        let space = unsafe { buf.unfilled_mut() };
        let count = ready!(self.io.poll_io(cx, Interest::READABLE, |io| {
            SockRef::from(io).peek(&mut *space)
        }))?;
        // SAFETY: the kernel has filled that many bytes.
        unsafe { buf.assume_init(count) };
        buf.advance(count);
        Poll::Ready(Ok(count))
    }

    /// Receives without taking from the queue: the next read gives the same bytes.
    ///
    /// # Errors
    ///
    /// Those of `recv(2)`, and those of [`ready`](Self::ready).
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn peek(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.io
            .async_io(Interest::READABLE, |io| SockRef::from(io).peek(room(buf)))
            .await
    }

    /// Whether small packets are sent at once (`TCP_NODELAY`).
    ///
    /// # Errors
    ///
    /// Those of `getsockopt(2)`.
    pub fn nodelay(&self) -> io::Result<bool> {
        self.io.get_ref().nodelay()
    }

    /// Sets whether small packets are sent at once (`TCP_NODELAY`).
    ///
    /// # Errors
    ///
    /// Those of `setsockopt(2)`.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.io.get_ref().set_nodelay(nodelay)
    }

    /// Whether acknowledgements are sent at once (`TCP_QUICKACK`).
    ///
    /// # Errors
    ///
    /// Those of `getsockopt(2)`.
    pub fn quickack(&self) -> io::Result<bool> {
        SockRef::from(self.io.get_ref()).tcp_quickack()
    }

    /// Sets whether acknowledgements are sent at once (`TCP_QUICKACK`), which is not for good.
    ///
    /// # Errors
    ///
    /// Those of `setsockopt(2)`.
    pub fn set_quickack(&self, quickack: bool) -> io::Result<()> {
        SockRef::from(self.io.get_ref()).set_tcp_quickack(quickack)
    }

    /// How long a close waits for unsent data (`SO_LINGER`).
    ///
    /// # Errors
    ///
    /// Those of `getsockopt(2)`.
    pub fn linger(&self) -> io::Result<Option<Duration>> {
        SockRef::from(self.io.get_ref()).linger()
    }

    /// Sets how long a close waits for unsent data (`SO_LINGER`), on the thread that closes: it then
    /// stops everything on its core.
    ///
    /// # Errors
    ///
    /// Those of `setsockopt(2)`.
    #[deprecated = "it blocks the thread when the socket is dropped: see `set_zero_linger`"]
    pub fn set_linger(&self, dur: Option<Duration>) -> io::Result<()> {
        SockRef::from(self.io.get_ref()).set_linger(dur)
    }

    /// Has a close drop what is unsent and reset the connection.
    ///
    /// # Errors
    ///
    /// Those of `setsockopt(2)`.
    pub fn set_zero_linger(&self) -> io::Result<()> {
        SockRef::from(self.io.get_ref()).set_linger(Some(Duration::ZERO))
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
