//! What UDP's and Unix's datagram sockets do alike: all that needs no address.

/// Waits for readiness, and what a connected socket sends and receives.
macro_rules! datagram_methods {
    ($socket:ident) => {
        impl $socket {
            /// Waits, in a `poll` function, until a datagram can be sent. One task at a time: only the last
            /// waker is kept.
            ///
            /// # Errors
            ///
            /// As [`ready`](Self::ready).
            pub fn poll_send_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.io.poll_ready(cx, Interest::WRITABLE)
            }

            /// Waits, in a `poll` function, until a datagram is there. One task at a time: only the last waker
            /// is kept.
            ///
            /// # Errors
            ///
            /// As [`ready`](Self::ready).
            pub fn poll_recv_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.io.poll_ready(cx, Interest::READABLE)
            }

            /// Sends a datagram to the peer that it is connected to.
            ///
            /// # Errors
            ///
            /// Those of `send(2)`, also such as an earlier datagram has caused.
            ///
            /// # Cancel safety
            ///
            /// Safe: a dropped future has sent nothing.
            pub async fn send(&self, buf: &[u8]) -> io::Result<usize> {
                self.io
                    .async_io(Interest::WRITABLE, |io| io.send(buf))
                    .await
            }

            /// As [`send`](Self::send), in a `poll` function, one task at a time.
            ///
            /// # Errors
            ///
            /// As there.
            pub fn poll_send(&self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                self.io.poll_io(cx, Interest::WRITABLE, |io| io.send(buf))
            }

            /// As [`send`](Self::send), if it need not wait.
            ///
            /// # Errors
            ///
            /// `WouldBlock`, or as there.
            pub fn try_send(&self, buf: &[u8]) -> io::Result<usize> {
                self.io.try_io(Interest::WRITABLE, |io| io.send(buf))
            }

            /// Receives a datagram of the peer that it is connected to; what does not fit is lost.
            ///
            /// # Errors
            ///
            /// Those of `recv(2)`.
            ///
            /// # Cancel safety
            ///
            /// Safe: a dropped future has taken nothing.
            pub async fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
                self.io
                    .async_io(Interest::READABLE, |io| io.recv(buf))
                    .await
            }

            /// As [`recv`](Self::recv), in a `poll` function, one task at a time.
            ///
            /// # Errors
            ///
            /// As there.
            pub fn poll_recv(
                &self,
                cx: &mut Context<'_>,
                buf: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                self.io.poll_read_datagram(cx, buf, |io, space| {
                    SockRef::from(io).recv(space).map(|count| (count, ()))
                })
            }

            /// As [`recv`](Self::recv), if it need not wait.
            ///
            /// # Errors
            ///
            /// `WouldBlock`, or as there.
            pub fn try_recv(&self, buf: &mut [u8]) -> io::Result<usize> {
                self.io.try_io(Interest::READABLE, |io| io.recv(buf))
            }

            /// As [`try_recv`](Self::try_recv), into the spare room of `buf`.
            ///
            /// # Errors
            ///
            /// As there.
            #[cfg(feature = "io-util")]
            pub fn try_recv_buf<B: BufMut>(&self, buf: &mut B) -> io::Result<usize> {
                self.io.try_io(Interest::READABLE, |io| {
                    fill(buf, |space| SockRef::from(io).recv(space))
                })
            }

            /// As [`recv`](Self::recv), into the spare room of `buf`.
            ///
            /// # Errors
            ///
            /// As there.
            ///
            /// # Cancel safety
            ///
            /// Safe.
            #[cfg(feature = "io-util")]
            pub async fn recv_buf<B: BufMut>(&self, buf: &mut B) -> io::Result<usize> {
                self.io
                    .async_io(Interest::READABLE, |io| {
                        fill(buf, |space| SockRef::from(io).recv(space))
                    })
                    .await
            }
        }
    };
}

pub(super) use datagram_methods;
