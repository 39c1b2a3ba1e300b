//! TCP, UDP and Unix sockets, as tokio's `net`.
//!
//! They are `Send` and `Sync`: made on one OS thread, polled on another, or each half of a split on
//! its own. A system call is tried at once, and only one that would block has the I/O driver of the
//! calling OS thread watch the socket; so a connection that is accepted on one reactor and served by
//! another costs the first one nothing.
//!
//! What differs from tokio: an operation may succeed before a driver has reported readiness, as it is
//! tried first. A socket belongs to the runtime it was made in: after the end of that, whatever would
//! wait is refused, wherever it is polled ([`is_rt_shutdown_err`](crate::runtime::is_rt_shutdown_err)),
//! and a wait that had begun on another runtime ends with its next event at the latest. To take a socket
//! along, turn it into `std`'s type and wrap that again.

mod addr;
mod datagram;
mod lookup_host;
mod ready;
mod tcp_socket;
mod udp;

pub mod tcp;
pub mod unix;

pub use addr::ToSocketAddrs;
pub use lookup_host::lookup_host;
pub use tcp::listener::TcpListener;
pub use tcp::stream::TcpStream;
pub use tcp_socket::TcpSocket;
pub use udp::UdpSocket;
pub use unix::datagram::UnixDatagram;
pub use unix::listener::UnixListener;
pub use unix::socket::UnixSocket;
pub use unix::stream::UnixStream;

use addr::addresses;
use datagram::datagram_methods;
use ready::{ready_methods, socket_traits, stream_halves, stream_methods};
