//! TCP and Unix-domain sockets on the OS thread's I/O driver.
//!
//! Streams are [`futures::io::AsyncRead`] and [`AsyncWrite`](futures::io::AsyncWrite), by value and by
//! shared reference, so that one task may read while another writes. They try the non-blocking system
//! call first and wait for readiness through the driver only when it would block.
//!
//! A socket belongs to the driver it was made on. To serve a connection on another OS thread, accept it
//! as its std type ([`TcpListener::accept_std`]), send that over, and wrap it there
//! ([`TcpStream::from_std`]).

mod accept;
mod lookup;
mod socket;
mod split;
mod tcp;
mod unix;

pub use lookup::lookup_host;
pub use split::{ReadHalf, ReuniteError, WriteHalf};
pub use tcp::{TcpIncoming, TcpListener, TcpStream};
pub use unix::{UnixIncoming, UnixListener, UnixStream};
