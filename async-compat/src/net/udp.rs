//! A UDP socket.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::task::{Context, Poll};

#[cfg(feature = "io-util")]
use bytes::BufMut;
use socket2::{SockAddr, SockRef};
use tokio::io::ReadBuf;

use super::{ToSocketAddrs, addresses, datagram_methods, ready_methods};
use crate::io::Interest;
use crate::io::evented::Evented;
#[cfg(feature = "io-util")]
use crate::io::evented::{fill, fill_with};

/// A UDP socket.
///
/// Its methods take `&self`: shared in an `Arc`, several tasks, also on several OS threads, may send
/// and receive.
///
/// # Examples
///
/// ```
/// use tokio::net::UdpSocket;
///
/// # use corespun_compat as tokio;
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let one = UdpSocket::bind("127.0.0.1:0").await?;
/// let other = UdpSocket::bind("127.0.0.1:0").await?;
/// one.send_to(b"ping", other.local_addr()?).await?;
/// let mut buf = [0; 16];
/// let (count, from) = other.recv_from(&mut buf).await?;
/// assert_eq!((&buf[..count], from), (&b"ping"[..], one.local_addr()?));
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
pub struct UdpSocket {
    io: Evented<std::net::UdpSocket>,
}

ready_methods!(UdpSocket);
datagram_methods!(UdpSocket);

/// Options that the socket inside has under the same name.
macro_rules! options {
    ($($what:literal $set:ident, $get:ident: $type:ty;)*) => {$(
        #[doc = concat!("Gives ", $what, ".")]
        ///
        /// # Errors
        ///
        /// Those of `getsockopt(2)`.
        pub fn $get(&self) -> io::Result<$type> {
            self.sock().$get()
        }

        #[doc = concat!("Sets ", $what, ".")]
        ///
        /// # Errors
        ///
        /// Those of `setsockopt(2)`.
        pub fn $set(&self, value: $type) -> io::Result<()> {
            self.sock().$set(value)
        }
    )*};
}

impl UdpSocket {
    /// Binds to the first of the addresses that can be had. Port 0 has the kernel choose one.
    ///
    /// # Errors
    ///
    /// That of the last address; those of the resolver; `InvalidInput` if there is no address.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub async fn bind<A: ToSocketAddrs>(addr: A) -> io::Result<UdpSocket> {
        let query = addr.query();
        let mut refusal = None;
        for address in addresses(query).await? {
            match std::net::UdpSocket::bind(address) {
                Ok(socket) => {
                    socket.set_nonblocking(true)?;
                    return Self::from_std(socket);
                }
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

    /// Wraps a socket that is non-blocking already.
    ///
    /// # Panics
    ///
    /// If it is blocking, or outside of a runtime.
    ///
    /// # Errors
    ///
    /// If the runtime is shut down.
    #[track_caller]
    pub fn from_std(socket: std::net::UdpSocket) -> io::Result<UdpSocket> {
        crate::io::context::check_nonblocking(&socket);
        Ok(UdpSocket {
            io: Evented::new(socket)?,
        })
    }

    /// Gives the socket back, still non-blocking.
    ///
    /// # Errors
    ///
    /// None today.
    pub fn into_std(self) -> io::Result<std::net::UdpSocket> {
        Ok(self.io.into_inner())
    }

    fn sock(&self) -> SockRef<'_> {
        SockRef::from(self.io.get_ref())
    }

    /// This end's address.
    ///
    /// # Errors
    ///
    /// Those of `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.get_ref().local_addr()
    }

    /// The address it is connected to.
    ///
    /// # Errors
    ///
    /// Those of `getpeername(2)`.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.io.get_ref().peer_addr()
    }

    /// Sets where [`send`](Self::send) sends to and whom it receives from: the first of the addresses
    /// that the kernel takes.
    ///
    /// # Errors
    ///
    /// That of the last address; those of the resolver; `InvalidInput` if there is no address.
    pub async fn connect<A: ToSocketAddrs>(&self, addr: A) -> io::Result<()> {
        let query = addr.query();
        let mut refusal = None;
        for address in addresses(query).await? {
            match self.io.get_ref().connect(address) {
                Ok(()) => return Ok(()),
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

    /// As [`try_recv_from`](Self::try_recv_from), into the spare room of `buf`.
    ///
    /// # Errors
    ///
    /// As there.
    #[cfg(feature = "io-util")]
    pub fn try_recv_buf_from<B: BufMut>(&self, buf: &mut B) -> io::Result<(usize, SocketAddr)> {
        self.io.try_io(Interest::READABLE, |io| {
            fill_with(buf, |space| inet(SockRef::from(io).recv_from(space)))
        })
    }

    /// As [`recv_from`](Self::recv_from), into the spare room of `buf`.
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    #[cfg(feature = "io-util")]
    pub async fn recv_buf_from<B: BufMut>(&self, buf: &mut B) -> io::Result<(usize, SocketAddr)> {
        self.io
            .async_io(Interest::READABLE, |io| {
                fill_with(buf, |space| inet(SockRef::from(io).recv_from(space)))
            })
            .await
    }

    /// Sends a datagram to the first of the addresses.
    ///
    /// # Errors
    ///
    /// Those of `sendto(2)` and of the resolver; `InvalidInput` if there is no address.
    ///
    /// # Cancel safety
    ///
    /// Safe: a dropped future has sent nothing.
    pub async fn send_to<A: ToSocketAddrs>(&self, buf: &[u8], addr: A) -> io::Result<usize> {
        let query = addr.query();
        let Some(&target) = addresses(query).await?.first() else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "no addresses to send data to",
            ));
        };
        self.io
            .async_io(Interest::WRITABLE, |io| io.send_to(buf, target))
            .await
    }

    /// As [`send_to`](Self::send_to), in a `poll` function, one task at a time.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn poll_send_to(
        &self,
        cx: &mut Context<'_>,
        buf: &[u8],
        target: SocketAddr,
    ) -> Poll<io::Result<usize>> {
        self.io
            .poll_io(cx, Interest::WRITABLE, |io| io.send_to(buf, target))
    }

    /// As [`send_to`](Self::send_to), if it need not wait.
    ///
    /// # Errors
    ///
    /// `WouldBlock`, or as there.
    pub fn try_send_to(&self, buf: &[u8], target: SocketAddr) -> io::Result<usize> {
        self.io
            .try_io(Interest::WRITABLE, |io| io.send_to(buf, target))
    }

    /// Receives a datagram and its sender's address; what does not fit is lost.
    ///
    /// # Errors
    ///
    /// Those of `recvfrom(2)`.
    ///
    /// # Cancel safety
    ///
    /// Safe: a dropped future has taken nothing.
    pub async fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.io
            .async_io(Interest::READABLE, |io| io.recv_from(buf))
            .await
    }

    /// As [`recv_from`](Self::recv_from), in a `poll` function, one task at a time.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn poll_recv_from(
        &self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<SocketAddr>> {
        self.io.poll_read_datagram(cx, buf, |io, space| {
            inet(SockRef::from(io).recv_from(space))
        })
    }

    /// As [`recv_from`](Self::recv_from), if it need not wait.
    ///
    /// # Errors
    ///
    /// `WouldBlock`, or as there.
    pub fn try_recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.io.try_io(Interest::READABLE, |io| io.recv_from(buf))
    }

    /// As [`recv`](Self::recv), without taking the datagram.
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn peek(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.io
            .async_io(Interest::READABLE, |io| io.peek(buf))
            .await
    }

    /// As [`peek`](Self::peek), in a `poll` function, one task at a time.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn poll_peek(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.io.poll_read_datagram(cx, buf, |io, space| {
            SockRef::from(io).peek(space).map(|count| (count, ()))
        })
    }

    /// As [`peek`](Self::peek), if it need not wait.
    ///
    /// # Errors
    ///
    /// `WouldBlock`, or as there.
    pub fn try_peek(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.io.try_io(Interest::READABLE, |io| io.peek(buf))
    }

    /// As [`recv_from`](Self::recv_from), without taking the datagram.
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn peek_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.io
            .async_io(Interest::READABLE, |io| io.peek_from(buf))
            .await
    }

    /// As [`peek_from`](Self::peek_from), in a `poll` function, one task at a time.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn poll_peek_from(
        &self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<SocketAddr>> {
        self.io.poll_read_datagram(cx, buf, |io, space| {
            inet(SockRef::from(io).peek_from(space))
        })
    }

    /// As [`peek_from`](Self::peek_from), if it need not wait.
    ///
    /// # Errors
    ///
    /// `WouldBlock`, or as there.
    pub fn try_peek_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.io.try_io(Interest::READABLE, |io| io.peek_from(buf))
    }

    /// Waits for a datagram and gives its sender's address, without taking it.
    ///
    /// # Errors
    ///
    /// Those of `recvfrom(2)`.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn peek_sender(&self) -> io::Result<SocketAddr> {
        self.io.async_io(Interest::READABLE, peek_sender).await
    }

    /// As [`peek_sender`](Self::peek_sender), in a `poll` function, one task at a time.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn poll_peek_sender(&self, cx: &mut Context<'_>) -> Poll<io::Result<SocketAddr>> {
        self.io.poll_io(cx, Interest::READABLE, peek_sender)
    }

    /// As [`peek_sender`](Self::peek_sender), if it need not wait.
    ///
    /// # Errors
    ///
    /// `WouldBlock`, or as there.
    pub fn try_peek_sender(&self) -> io::Result<SocketAddr> {
        self.io.try_io(Interest::READABLE, peek_sender)
    }

    options! {
        "whether it may send to broadcast addresses (`SO_BROADCAST`)"
            set_broadcast, broadcast: bool;
        "whether IPv4 multicast datagrams come back here (`IP_MULTICAST_LOOP`)"
            set_multicast_loop_v4, multicast_loop_v4: bool;
        "the time to live of IPv4 multicast datagrams (`IP_MULTICAST_TTL`)"
            set_multicast_ttl_v4, multicast_ttl_v4: u32;
        "whether IPv6 multicast datagrams come back here (`IPV6_MULTICAST_LOOP`)"
            set_multicast_loop_v6, multicast_loop_v6: bool;
        "the traffic class of its IPv6 datagrams (`IPV6_TCLASS`)"
            set_tclass_v6, tclass_v6: u32;
        "the type of service of its IPv4 datagrams (`IP_TOS`)"
            set_tos_v4, tos_v4: u32;
    }

    /// The time to live of its datagrams (`IP_TTL`).
    ///
    /// # Errors
    ///
    /// Those of `getsockopt(2)`.
    pub fn ttl(&self) -> io::Result<u32> {
        self.io.get_ref().ttl()
    }

    /// Sets the time to live of its datagrams (`IP_TTL`).
    ///
    /// # Errors
    ///
    /// Those of `setsockopt(2)`.
    pub fn set_ttl(&self, ttl: u32) -> io::Result<()> {
        self.io.get_ref().set_ttl(ttl)
    }

    /// As [`tos_v4`](Self::tos_v4).
    ///
    /// # Errors
    ///
    /// As there.
    #[deprecated = "renamed to `tos_v4`"]
    pub fn tos(&self) -> io::Result<u32> {
        self.tos_v4()
    }

    /// As [`set_tos_v4`](Self::set_tos_v4).
    ///
    /// # Errors
    ///
    /// As there.
    #[deprecated = "renamed to `set_tos_v4`"]
    pub fn set_tos(&self, tos: u32) -> io::Result<()> {
        self.set_tos_v4(tos)
    }

    /// The interface it is bound to (`SO_BINDTODEVICE`).
    ///
    /// # Errors
    ///
    /// Those of `getsockopt(2)`.
    pub fn device(&self) -> io::Result<Option<Vec<u8>>> {
        self.sock().device()
    }

    /// Binds it to an interface, or to none (`SO_BINDTODEVICE`).
    ///
    /// # Errors
    ///
    /// Those of `setsockopt(2)`.
    pub fn bind_device(&self, interface: Option<&[u8]>) -> io::Result<()> {
        self.sock().bind_device(interface)
    }

    /// Joins an IPv4 multicast group (`IP_ADD_MEMBERSHIP`).
    ///
    /// # Errors
    ///
    /// Those of `setsockopt(2)`.
    pub fn join_multicast_v4(&self, multiaddr: Ipv4Addr, interface: Ipv4Addr) -> io::Result<()> {
        self.io.get_ref().join_multicast_v4(&multiaddr, &interface)
    }

    /// Joins an IPv6 multicast group (`IPV6_ADD_MEMBERSHIP`).
    ///
    /// # Errors
    ///
    /// Those of `setsockopt(2)`.
    pub fn join_multicast_v6(&self, multiaddr: &Ipv6Addr, interface: u32) -> io::Result<()> {
        self.io.get_ref().join_multicast_v6(multiaddr, interface)
    }

    /// Leaves an IPv4 multicast group (`IP_DROP_MEMBERSHIP`).
    ///
    /// # Errors
    ///
    /// Those of `setsockopt(2)`.
    pub fn leave_multicast_v4(&self, multiaddr: Ipv4Addr, interface: Ipv4Addr) -> io::Result<()> {
        self.io.get_ref().leave_multicast_v4(&multiaddr, &interface)
    }

    /// Leaves an IPv6 multicast group (`IPV6_DROP_MEMBERSHIP`).
    ///
    /// # Errors
    ///
    /// Those of `setsockopt(2)`.
    pub fn leave_multicast_v6(&self, multiaddr: &Ipv6Addr, interface: u32) -> io::Result<()> {
        self.io.get_ref().leave_multicast_v6(multiaddr, interface)
    }

    /// The error that the socket has stored, if any, which is taken.
    ///
    /// # Errors
    ///
    /// Those of `getsockopt(2)`.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.io.get_ref().take_error()
    }
}

impl TryFrom<std::net::UdpSocket> for UdpSocket {
    type Error = io::Error;

    fn try_from(socket: std::net::UdpSocket) -> io::Result<Self> {
        Self::from_std(socket)
    }
}

fn inet(received: io::Result<(usize, SockAddr)>) -> io::Result<(usize, SocketAddr)> {
    let (count, from) = received?;
    match from.as_socket() {
        Some(from) => Ok((count, from)),
        None => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "not an internet address",
        )),
    }
}

fn peek_sender(io: &std::net::UdpSocket) -> io::Result<SocketAddr> {
    let from = SockRef::from(io).peek_sender()?;
    inet(Ok((0, from))).map(|(_, from)| from)
}
