//! The methods that sockets have in common, on their field `io`.

/// `ready`, `readable`, `writable`, `try_io` and `async_io`.
macro_rules! ready_methods {
    ($socket:ident) => {
        impl $socket {
            /// Waits until it is ready for some of `interest`, and says for what.
            ///
            /// What it says may be over by the time it is used: be prepared for `WouldBlock`.
            ///
            /// # Errors
            ///
            /// If there is no I/O driver that could watch, or the kernel refuses to.
            ///
            /// # Cancel safety
            ///
            /// Safe: a dropped future leaves nothing behind.
            pub async fn ready(
                &self,
                interest: $crate::io::Interest,
            ) -> std::io::Result<$crate::io::Ready> {
                self.io.ready(interest).await
            }

            /// Waits until it is readable, or at its end.
            ///
            /// # Errors
            ///
            /// As [`ready`](Self::ready).
            ///
            /// # Cancel safety
            ///
            /// Safe.
            pub async fn readable(&self) -> std::io::Result<()> {
                self.ready($crate::io::Interest::READABLE).await.map(drop)
            }

            /// Waits until it is writable, or broken.
            ///
            /// # Errors
            ///
            /// As [`ready`](Self::ready).
            ///
            /// # Cancel safety
            ///
            /// Safe.
            pub async fn writable(&self) -> std::io::Result<()> {
                self.ready($crate::io::Interest::WRITABLE).await.map(drop)
            }

            /// Runs `f`, a non-blocking operation on this socket that is not wrapped here, unless it
            /// is known that it would block; takes note if it does.
            ///
            /// # Errors
            ///
            /// `WouldBlock`, or that of `f`.
            pub fn try_io<R>(
                &self,
                interest: $crate::io::Interest,
                f: impl FnOnce() -> std::io::Result<R>,
            ) -> std::io::Result<R> {
                self.io.try_io(interest, |_| f())
            }

            /// Runs `f` until it does not answer `WouldBlock`, waiting for `interest` in between.
            ///
            /// # Errors
            ///
            /// That of `f`, and those of [`ready`](Self::ready).
            ///
            /// # Cancel safety
            ///
            /// Safe if `f` is.
            pub async fn async_io<R>(
                &self,
                interest: $crate::io::Interest,
                mut f: impl FnMut() -> std::io::Result<R>,
            ) -> std::io::Result<R> {
                self.io.async_io(interest, |_| f()).await
            }
        }

        $crate::net::socket_traits!($socket);
    };
}

/// How it is shown, and its descriptor.
macro_rules! socket_traits {
    ($socket:ident) => {
        impl std::fmt::Debug for $socket {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.io.fmt(f)
            }
        }

        impl std::os::fd::AsRawFd for $socket {
            fn as_raw_fd(&self) -> std::os::fd::RawFd {
                self.io.as_raw_fd()
            }
        }

        impl std::os::fd::AsFd for $socket {
            fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
                self.io.as_fd()
            }
        }
    };
}

/// Reading and writing, for the two stream types.
macro_rules! stream_methods {
    ($stream:ident, $std:ty) => {
        impl $stream {
            /// Waits, in a `poll` function, until it is readable. One task at a time: only the last
            /// waker is kept.
            ///
            /// # Errors
            ///
            /// As [`ready`](Self::ready).
            pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.io.poll_ready(cx, Interest::READABLE)
            }

            /// Waits, in a `poll` function, until it is writable. One task at a time: only the last
            /// waker is kept.
            ///
            /// # Errors
            ///
            /// As [`ready`](Self::ready).
            pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.io.poll_ready(cx, Interest::WRITABLE)
            }

            /// Reads what is there.
            ///
            /// # Errors
            ///
            /// `WouldBlock` if there is nothing; those of `recv(2)`.
            pub fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
                self.io.try_io(Interest::READABLE, |io| recv(io, room(buf)))
            }

            /// As [`try_read`](Self::try_read), into several buffers in turn.
            ///
            /// # Errors
            ///
            /// As there.
            pub fn try_read_vectored(&self, bufs: &mut [io::IoSliceMut<'_>]) -> io::Result<usize> {
                self.io
                    .try_io(Interest::READABLE, |mut io| io.read_vectored(bufs))
            }

            /// As [`try_read`](Self::try_read), into the spare room of `buf`.
            ///
            /// # Errors
            ///
            /// As there.
            #[cfg(feature = "io-util")]
            pub fn try_read_buf<B: bytes::BufMut>(&self, buf: &mut B) -> io::Result<usize> {
                self.io
                    .try_io(Interest::READABLE, |io| fill(buf, |space| recv(io, space)))
            }

            /// Writes what fits.
            ///
            /// # Errors
            ///
            /// `WouldBlock` if nothing does; those of `send(2)`.
            pub fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
                self.io.try_io(Interest::WRITABLE, |io| send(io, buf))
            }

            /// As [`try_write`](Self::try_write), from several buffers in turn.
            ///
            /// # Errors
            ///
            /// As there.
            pub fn try_write_vectored(&self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
                self.io
                    .try_io(Interest::WRITABLE, |mut io| io.write_vectored(bufs))
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
            pub fn from_std(stream: $std) -> io::Result<$stream> {
                crate::io::context::check_nonblocking(&stream);
                Ok($stream {
                    io: Evented::new(stream)?,
                })
            }

            /// Gives the socket back, still non-blocking.
            ///
            /// # Errors
            ///
            /// None today.
            pub fn into_std(self) -> io::Result<$std> {
                Ok(self.io.into_inner())
            }

            /// The error that the socket has stored, if any, which is taken.
            ///
            /// # Errors
            ///
            /// Those of `getsockopt(2)`.
            pub fn take_error(&self) -> io::Result<Option<io::Error>> {
                self.io.get_ref().take_error()
            }

            /// Two halves that borrow it, at no cost.
            pub fn split<'a>(&'a mut self) -> (ReadHalf<'a>, WriteHalf<'a>) {
                (ReadHalf(self), WriteHalf(self))
            }

            /// Two halves that own it together, which two tasks, also on two OS threads, may use.
            ///
            /// Dropping the writing half ends the sending direction.
            pub fn into_split(self) -> (OwnedReadHalf, OwnedWriteHalf) {
                let stream = Arc::new(self);
                let writer = OwnedWriteHalf {
                    inner: stream.clone(),
                    shutdown_on_drop: true,
                };
                (OwnedReadHalf { inner: stream }, writer)
            }

            pub(super) fn poll_read_shared(
                &self,
                cx: &mut Context<'_>,
                buf: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                self.io.poll_read(cx, buf, recv)
            }

            pub(super) fn poll_write_shared(
                &self,
                cx: &mut Context<'_>,
                buf: &[u8],
            ) -> Poll<io::Result<usize>> {
                self.io.poll_write(cx, buf.len(), |io| send(io, buf))
            }

            pub(super) fn poll_write_vectored_shared(
                &self,
                cx: &mut Context<'_>,
                bufs: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                let wanted = bufs.iter().map(|buf| buf.len()).sum();
                self.io
                    .poll_write(cx, wanted, |mut io| io.write_vectored(bufs))
            }

            /// That the peer has gone first is no error.
            pub(super) fn shutdown_std(&self, how: Shutdown) -> io::Result<()> {
                match self.io.get_ref().shutdown(how) {
                    Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
                    ended => ended,
                }
            }
        }

        impl TryFrom<$std> for $stream {
            type Error = io::Error;

            fn try_from(stream: $std) -> io::Result<Self> {
                Self::from_std(stream)
            }
        }

        impl AsRef<Self> for $stream {
            fn as_ref(&self) -> &Self {
                self
            }
        }

        impl AsyncRead for $stream {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                self.poll_read_shared(cx, buf)
            }
        }

        impl AsyncWrite for $stream {
            fn poll_write(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &[u8],
            ) -> Poll<io::Result<usize>> {
                self.poll_write_shared(cx, buf)
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                self.poll_write_vectored_shared(cx, bufs)
            }

            fn is_write_vectored(&self) -> bool {
                true
            }

            fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                // Nothing is kept back.
                Poll::Ready(Ok(()))
            }

            fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(self.shutdown_std(Shutdown::Write))
            }
        }
    };
}

/// The borrowed and the owned halves of a stream type.
macro_rules! stream_halves {
    ($stream:ident, $address:ty) => {
        /// The reading half that borrows a stream; see `split`.
        #[derive(Debug)]
        pub struct ReadHalf<'a>(pub(super) &'a $stream);

        /// The writing half that borrows a stream; see `split`.
        #[derive(Debug)]
        pub struct WriteHalf<'a>(pub(super) &'a $stream);

        /// The reading half that owns its part of a stream; see `into_split`.
        #[derive(Debug)]
        pub struct OwnedReadHalf {
            pub(super) inner: Arc<$stream>,
        }

        /// The writing half that owns its part of a stream; see `into_split`.
        ///
        /// Dropping it ends the sending direction, unless it is [`forget`](Self::forget)ten or reunited.
        #[derive(Debug)]
        pub struct OwnedWriteHalf {
            pub(super) inner: Arc<$stream>,
            pub(super) shutdown_on_drop: bool,
        }

        /// The halves given to `reunite` are not of one stream; they come back.
        #[derive(Debug, thiserror::Error)]
        #[error("tried to reunite halves that are not from the same socket")]
        pub struct ReuniteError(pub OwnedReadHalf, pub OwnedWriteHalf);

        fn reunite(
            reader: OwnedReadHalf,
            writer: OwnedWriteHalf,
        ) -> Result<$stream, ReuniteError> {
            if !Arc::ptr_eq(&reader.inner, &writer.inner) {
                return Err(ReuniteError(reader, writer));
            }
            writer.forget();
            Ok(Arc::into_inner(reader.inner).expect("a stream has two halves"))
        }

        impl OwnedReadHalf {
            /// Puts the two halves of one stream together again.
            ///
            /// # Errors
            ///
            /// [`ReuniteError`] with both halves if they are of two streams.
            pub fn reunite(self, other: OwnedWriteHalf) -> Result<$stream, ReuniteError> {
                reunite(self, other)
            }
        }

        impl OwnedWriteHalf {
            /// Puts the two halves of one stream together again.
            ///
            /// # Errors
            ///
            /// [`ReuniteError`] with both halves if they are of two streams.
            pub fn reunite(self, other: OwnedReadHalf) -> Result<$stream, ReuniteError> {
                reunite(other, self)
            }

            /// Drops it without ending the sending direction.
            pub fn forget(mut self) {
                self.shutdown_on_drop = false;
            }
        }

        impl Drop for OwnedWriteHalf {
            fn drop(&mut self) {
                if self.shutdown_on_drop {
                    // Fails only if the peer is gone, when there is nothing to end.
                    let _ = self.inner.shutdown_std(Shutdown::Write);
                }
            }
        }

        stream_halves!(@read $stream, $address, [] OwnedReadHalf, inner);
        stream_halves!(@read $stream, $address, ['_] ReadHalf, 0);
        stream_halves!(@write $stream, $address, [] OwnedWriteHalf, inner);
        stream_halves!(@write $stream, $address, ['_] WriteHalf, 0);

        impl AsyncWrite for WriteHalf<'_> {
            stream_halves!(@writes 0);

            fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(self.0.shutdown_std(Shutdown::Write))
            }
        }

        impl AsyncWrite for OwnedWriteHalf {
            stream_halves!(@writes inner);

            fn poll_shutdown(
                mut self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<io::Result<()>> {
                let ended = self.inner.shutdown_std(Shutdown::Write);
                if ended.is_ok() {
                    self.shutdown_on_drop = false;
                }
                Poll::Ready(ended)
            }
        }
    };
    (@writes $inner:tt) => {
        fn poll_write(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.$inner.poll_write_shared(cx, buf)
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bufs: &[io::IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            self.$inner.poll_write_vectored_shared(cx, bufs)
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    };
    (@read $stream:ident, $address:ty, [$($lifetime:lifetime)?] $half:ident, $inner:tt) => {
        impl $half$(<$lifetime>)? {
            /// Waits until the stream is readable, or at its end.
            ///
            /// # Errors
            ///
            /// As that of the stream.
            pub async fn readable(&self) -> io::Result<()> {
                self.$inner.readable().await
            }

            /// Reads what is there.
            ///
            /// # Errors
            ///
            /// `WouldBlock` if there is nothing; those of `recv(2)`.
            pub fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
                self.$inner.try_read(buf)
            }

            /// As [`try_read`](Self::try_read), into several buffers in turn.
            ///
            /// # Errors
            ///
            /// As there.
            pub fn try_read_vectored(&self, bufs: &mut [io::IoSliceMut<'_>]) -> io::Result<usize> {
                self.$inner.try_read_vectored(bufs)
            }

            /// As [`try_read`](Self::try_read), into the spare room of `buf`.
            ///
            /// # Errors
            ///
            /// As there.
            #[cfg(feature = "io-util")]
            pub fn try_read_buf<B: bytes::BufMut>(&self, buf: &mut B) -> io::Result<usize> {
                self.$inner.try_read_buf(buf)
            }
        }

        impl AsyncRead for $half$(<$lifetime>)? {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                self.$inner.poll_read_shared(cx, buf)
            }
        }

        stream_halves!(@both $stream, $address, [$($lifetime)?] $half, $inner);
    };
    (@write $stream:ident, $address:ty, [$($lifetime:lifetime)?] $half:ident, $inner:tt) => {
        impl $half$(<$lifetime>)? {
            /// Waits until the stream is writable, or broken.
            ///
            /// # Errors
            ///
            /// As that of the stream.
            pub async fn writable(&self) -> io::Result<()> {
                self.$inner.writable().await
            }

            /// Writes what fits.
            ///
            /// # Errors
            ///
            /// `WouldBlock` if nothing does; those of `send(2)`.
            pub fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
                self.$inner.try_write(buf)
            }

            /// As [`try_write`](Self::try_write), from several buffers in turn.
            ///
            /// # Errors
            ///
            /// As there.
            pub fn try_write_vectored(&self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
                self.$inner.try_write_vectored(bufs)
            }
        }

        stream_halves!(@both $stream, $address, [$($lifetime)?] $half, $inner);
    };
    (@both $stream:ident, $address:ty, [$($lifetime:lifetime)?] $half:ident, $inner:tt) => {
        impl $half$(<$lifetime>)? {
            /// Waits until the stream is ready for some of `interest`, and says for what.
            ///
            /// # Errors
            ///
            /// As that of the stream.
            pub async fn ready(&self, interest: Interest) -> io::Result<Ready> {
                self.$inner.ready(interest).await
            }

            /// The peer's address.
            ///
            /// # Errors
            ///
            /// Those of `getpeername(2)`.
            pub fn peer_addr(&self) -> io::Result<$address> {
                self.$inner.peer_addr()
            }

            /// This end's address.
            ///
            /// # Errors
            ///
            /// Those of `getsockname(2)`.
            pub fn local_addr(&self) -> io::Result<$address> {
                self.$inner.local_addr()
            }
        }

        impl AsRef<$stream> for $half$(<$lifetime>)? {
            fn as_ref(&self) -> &$stream {
                &self.$inner
            }
        }
    };
}

pub(crate) use {ready_methods, socket_traits, stream_halves, stream_methods};
