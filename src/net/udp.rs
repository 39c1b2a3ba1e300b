//! UDP sockets.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

use socket2::SockRef;

use super::datagram::Datagram;
use crate::io::{IoBuf, IoBufMut};

/// A UDP socket on the OS thread's driver. Neither `Send` nor `Sync`.
///
/// Its methods take `&self`: several tasks of its OS thread may send and receive at once.
///
/// # Examples
///
/// ```
/// use corespun::net::UdpSocket;
///
/// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
/// let one = UdpSocket::bind("127.0.0.1:0".parse()?)?;
/// let other = UdpSocket::bind("127.0.0.1:0".parse()?)?;
/// one.send_to("ping", other.local_addr()?).await.0?;
/// let (received, buf) = other.recv_from(Vec::with_capacity(16)).await;
/// assert_eq!((received?, &*buf), ((4, one.local_addr()?), &b"ping"[..]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct UdpSocket(Datagram<std::net::UdpSocket>);

/// Options, by the names that the socket inside has for them.
macro_rules! options {
    ($($(#[$doc:meta])* $get:ident, $set:ident: $type:ty;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        ///
        /// Those of `getsockopt(2)`.
        pub fn $get(&self) -> io::Result<$type> {
            SockRef::from(self.0.get()).$get()
        }

        #[doc = concat!("Sets what [`", stringify!($get), "`](Self::", stringify!($get), ") gives.")]
        ///
        /// # Errors
        ///
        /// Those of `setsockopt(2)`.
        pub fn $set(&self, value: $type) -> io::Result<()> {
            SockRef::from(self.0.get()).$set(value)
        }
    )*};
}

impl UdpSocket {
    /// Binds to an address; port 0 has the kernel choose one.
    ///
    /// # Errors
    ///
    /// Those of `bind(2)`; an error if no driver is entered on this OS thread.
    pub fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
        Self::from_std(std::net::UdpSocket::bind(address)?)
    }

    /// Wraps a socket, on this OS thread's driver; makes it non-blocking.
    ///
    /// # Errors
    ///
    /// If no driver is entered, or the socket cannot be watched.
    pub fn from_std(socket: std::net::UdpSocket) -> io::Result<UdpSocket> {
        socket.set_nonblocking(true)?;
        Datagram::new(socket).map(UdpSocket)
    }

    /// Gives the socket back, still non-blocking, to be sent to another OS thread.
    ///
    /// # Errors
    ///
    /// Those of `dup(2)`.
    pub fn into_std(self) -> io::Result<std::net::UdpSocket> {
        self.0.get().try_clone()
    }

    /// Sets the peer that [`send`](Self::send) sends to, and that it receives from.
    ///
    /// # Errors
    ///
    /// Those of `connect(2)`.
    pub fn connect(&self, address: SocketAddr) -> io::Result<()> {
        self.0.get().connect(address)
    }

    /// Waits until a datagram is there, or an error.
    ///
    /// # Errors
    ///
    /// If this is not the driver's OS thread, or the kernel refuses.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn readable(&self) -> io::Result<()> {
        self.0.fd.readable().await
    }

    /// Waits until a datagram can be sent.
    ///
    /// # Errors
    ///
    /// If this is not the driver's OS thread, or the kernel refuses.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn writable(&self) -> io::Result<()> {
        self.0.fd.writable().await
    }

    /// Sends the buffer's initialised bytes as one datagram to where it is connected.
    ///
    /// # Errors
    ///
    /// Those of `send(2)`, also such as an earlier datagram has caused; an error if this is not the
    /// driver's OS thread.
    ///
    /// # Cancel safety
    ///
    /// Safe: a dropped future has sent nothing.
    pub async fn send<B: IoBuf>(&self, buf: B) -> (io::Result<usize>, B) {
        self.0.send(buf, |socket, bytes| socket.send(bytes)).await
    }

    /// Sends the buffer's initialised bytes as one datagram to `address`.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    ///
    /// # Cancel safety
    ///
    /// Safe: a dropped future has sent nothing.
    pub async fn send_to<B: IoBuf>(&self, buf: B, address: SocketAddr) -> (io::Result<usize>, B) {
        self.0
            .send(buf, |socket, bytes| socket.send_to(bytes, address))
            .await
    }

    /// Receives a datagram from where it is connected into the buffer's capacity; what does not fit is
    /// lost.
    ///
    /// # Errors
    ///
    /// Those of `recv(2)`; an error if this is not the driver's OS thread.
    ///
    /// # Cancel safety
    ///
    /// Safe: a dropped future has taken nothing.
    pub async fn recv<B: IoBufMut>(&self, buf: B) -> (io::Result<usize>, B) {
        let (received, buf) = self
            .0
            .recv(buf, |socket, space| {
                Ok((SockRef::from(socket).recv(space)?, ()))
            })
            .await;
        (received.map(|(count, ())| count), buf)
    }

    /// Receives a datagram into the buffer's capacity, and its sender's address; what does not fit is
    /// lost.
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv).
    ///
    /// # Cancel safety
    ///
    /// Safe: a dropped future has taken nothing.
    pub async fn recv_from<B: IoBufMut>(&self, buf: B) -> (io::Result<(usize, SocketAddr)>, B) {
        self.0
            .recv(buf, |socket, space| {
                inet(SockRef::from(socket).recv_from(space)?)
            })
            .await
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
    pub async fn peek_from<B: IoBufMut>(&self, buf: B) -> (io::Result<(usize, SocketAddr)>, B) {
        self.0
            .recv(buf, |socket, space| {
                inet(SockRef::from(socket).peek_from(space)?)
            })
            .await
    }

    /// As [`recv_from`](Self::recv_from), into borrowed bytes, if a datagram is there.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if none is; as there.
    pub fn try_recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.0.get().recv_from(buf)
    }

    /// As [`send_to`](Self::send_to), from borrowed bytes, if there is room.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if there is none; as there.
    pub fn try_send_to(&self, bytes: &[u8], address: SocketAddr) -> io::Result<usize> {
        self.0.get().send_to(bytes, address)
    }

    /// This end's address.
    ///
    /// # Errors
    ///
    /// Those of `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.get().local_addr()
    }

    /// The address it is connected to.
    ///
    /// # Errors
    ///
    /// Those of `getpeername(2)`.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.0.get().peer_addr()
    }

    options! {
        /// Whether it may send to broadcast addresses (`SO_BROADCAST`).
        broadcast, set_broadcast: bool;
        /// The time to live of its IPv4 datagrams (`IP_TTL`).
        ttl_v4, set_ttl_v4: u32;
        /// The size of the receive buffer, in bytes; the kernel doubles what is set (`SO_RCVBUF`).
        recv_buffer_size, set_recv_buffer_size: usize;
        /// The size of the send buffer, in bytes; the kernel doubles what is set (`SO_SNDBUF`).
        send_buffer_size, set_send_buffer_size: usize;
        /// Whether IPv4 multicast datagrams come back here (`IP_MULTICAST_LOOP`).
        multicast_loop_v4, set_multicast_loop_v4: bool;
        /// The time to live of IPv4 multicast datagrams (`IP_MULTICAST_TTL`).
        multicast_ttl_v4, set_multicast_ttl_v4: u32;
        /// Whether IPv6 multicast datagrams come back here (`IPV6_MULTICAST_LOOP`).
        multicast_loop_v6, set_multicast_loop_v6: bool;
    }

    /// Joins an IPv4 multicast group on the interface of that address.
    ///
    /// # Errors
    ///
    /// Those of `setsockopt(2)`.
    pub fn join_multicast_v4(&self, group: Ipv4Addr, interface: Ipv4Addr) -> io::Result<()> {
        self.0.get().join_multicast_v4(&group, &interface)
    }

    /// Leaves an IPv4 multicast group.
    ///
    /// # Errors
    ///
    /// Those of `setsockopt(2)`.
    pub fn leave_multicast_v4(&self, group: Ipv4Addr, interface: Ipv4Addr) -> io::Result<()> {
        self.0.get().leave_multicast_v4(&group, &interface)
    }

    /// Joins an IPv6 multicast group on the interface of that number.
    ///
    /// # Errors
    ///
    /// Those of `setsockopt(2)`.
    pub fn join_multicast_v6(&self, group: &Ipv6Addr, interface: u32) -> io::Result<()> {
        self.0.get().join_multicast_v6(group, interface)
    }

    /// Leaves an IPv6 multicast group.
    ///
    /// # Errors
    ///
    /// Those of `setsockopt(2)`.
    pub fn leave_multicast_v6(&self, group: &Ipv6Addr, interface: u32) -> io::Result<()> {
        self.0.get().leave_multicast_v6(group, interface)
    }
}

fn inet((count, from): (usize, socket2::SockAddr)) -> io::Result<(usize, SocketAddr)> {
    match from.as_socket() {
        Some(from) => Ok((count, from)),
        None => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "not an internet address",
        )),
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl std::fmt::Debug for UdpSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("UdpSocket").field(&self.as_fd()).finish()
    }
}
