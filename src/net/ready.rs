//! Streams without owned buffers: their readiness, and what need not wait.

use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::time::Duration;

use socket2::SockRef;

use super::split::Stream;
use super::{TcpStream, UnixStream};
use crate::io::IoBufMut;
use crate::io::readiness::Direction;

macro_rules! readiness {
    ($($stream:ident),*) => {$(
        impl $stream {
            /// Waits until there is something to read, or the end of it, or an error.
            ///
            /// # Errors
            ///
            /// If this is not the driver's OS thread, or the kernel refuses.
            ///
            /// # Cancel safety
            ///
            /// Safe. Any number of tasks may wait.
            pub async fn readable(&self) -> io::Result<()> {
                self.socket().pollable().readable().await
            }

            /// Waits until there is room to write, or an error.
            ///
            /// # Errors
            ///
            /// If this is not the driver's OS thread, or the kernel refuses.
            ///
            /// # Cancel safety
            ///
            /// Safe. Any number of tasks may wait.
            pub async fn writable(&self) -> io::Result<()> {
                self.socket().pollable().writable().await
            }

            /// Reads what is there.
            ///
            /// # Errors
            ///
            /// `WouldBlock` if there is nothing; those of `recv(2)`.
            pub fn try_recv(&self, buf: &mut [u8]) -> io::Result<usize> {
                let read = (&*self.socket().get()).read(buf);
                self.note(Direction::Read, &read);
                read
            }

            /// Writes what fits.
            ///
            /// # Errors
            ///
            /// `WouldBlock` if nothing does; those of `send(2)`.
            pub fn try_send(&self, bytes: &[u8]) -> io::Result<usize> {
                let sent = self.socket().get().send_with_flags(bytes, libc::MSG_NOSIGNAL);
                self.note(Direction::Write, &sent);
                sent
            }

            /// Receives into the buffer's capacity without taking from the queue: the next read gives
            /// the same bytes.
            ///
            /// # Errors
            ///
            /// Those of `recv(2)`; an error if this is not the driver's OS thread.
            ///
            /// # Cancel safety
            ///
            /// Safe.
            pub async fn peek<B: IoBufMut>(&self, mut buf: B) -> (io::Result<usize>, B) {
                let wanted = buf.bytes_total();
                let pointer = buf.stable_mut_ptr().cast::<MaybeUninit<u8>>();
                // SAFETY: IoBufMut promises so many writable bytes there; `buf` is owned by this
                // future and not used while the slice is.
                let space = unsafe { std::slice::from_raw_parts_mut(pointer, wanted) };
                let peeked = self
                    .socket()
                    .pollable()
                    .read_with(|fd| SockRef::from(fd).peek(space))
                    .await;
                if let Ok(count) = peeked {
                    // SAFETY: the kernel has filled that many bytes.
                    unsafe { buf.set_init(count) };
                }
                (peeked, buf)
            }

            /// The error that the socket has stored, if any, which is taken.
            ///
            /// # Errors
            ///
            /// Those of `getsockopt(2)`.
            pub fn take_error(&self) -> io::Result<Option<io::Error>> {
                self.socket().get().take_error()
            }

            /// Lets the next wait wait, if this would have blocked.
            fn note(&self, direction: Direction, done: &io::Result<usize>) {
                if matches!(done, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
                    self.socket().pollable().hint_drained(direction);
                }
            }
        }
    )*};
}

readiness!(TcpStream, UnixStream);

impl TcpStream {
    /// How long a close waits for unsent data, on the thread that closes (`SO_LINGER`).
    ///
    /// # Errors
    ///
    /// Those of `getsockopt(2)`.
    pub fn linger(&self) -> io::Result<Option<Duration>> {
        self.socket().get().linger()
    }

    /// Sets how long a close waits for unsent data, on the thread that closes; zero resets the
    /// connection (`SO_LINGER`).
    ///
    /// # Errors
    ///
    /// Those of `setsockopt(2)`.
    pub fn set_linger(&self, limit: Option<Duration>) -> io::Result<()> {
        self.socket().get().set_linger(limit)
    }

    /// Whether an idle connection is probed (`SO_KEEPALIVE`).
    ///
    /// # Errors
    ///
    /// Those of `getsockopt(2)`.
    pub fn keepalive(&self) -> io::Result<bool> {
        self.socket().get().keepalive()
    }

    /// Sets whether an idle connection is probed (`SO_KEEPALIVE`), by the kernel's settings.
    ///
    /// # Errors
    ///
    /// Those of `setsockopt(2)`.
    pub fn set_keepalive(&self, yes: bool) -> io::Result<()> {
        self.socket().get().set_keepalive(yes)
    }

    /// The time to live of its packets (`IP_TTL`).
    ///
    /// # Errors
    ///
    /// Those of `getsockopt(2)`.
    pub fn ttl(&self) -> io::Result<u32> {
        self.socket().get().ttl_v4()
    }

    /// Sets the time to live of its packets (`IP_TTL`).
    ///
    /// # Errors
    ///
    /// Those of `setsockopt(2)`.
    pub fn set_ttl(&self, ttl: u32) -> io::Result<()> {
        self.socket().get().set_ttl_v4(ttl)
    }
}
