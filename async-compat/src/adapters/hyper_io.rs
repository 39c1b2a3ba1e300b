//! Between tokio's and hyper's I/O traits.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::rt::ReadBufCursor;
use pin_project::pin_project;
use tokio::io::ReadBuf;

use super::wrapper;

/// What implements tokio's I/O traits, with those of hyper: a socket to serve HTTP on.
///
/// # Examples
///
/// See [`HyperExecutor`](super::HyperExecutor).
#[pin_project]
#[derive(Clone, Copy, Debug)]
pub struct TokioAsHyper<T> {
    #[pin]
    inner: T,
}

/// What implements hyper's I/O traits, with those of tokio: an upgraded connection, say.
///
/// # Examples
///
/// ```
/// # use corespun_compat as tokio;
/// use corespun_compat::adapters::{HyperAsTokio, TokioAsHyper};
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let (mut peer, socket) = tokio::net::UnixStream::pair()?;
/// // There and back again.
/// let mut socket = HyperAsTokio::new(TokioAsHyper::new(socket));
/// peer.write_all(b"ping").await?;
/// let mut buf = [0; 4];
/// socket.read_exact(&mut buf).await?;
/// assert_eq!(&buf, b"ping");
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
#[pin_project]
#[derive(Clone, Copy, Debug)]
pub struct HyperAsTokio<T> {
    #[pin]
    inner: T,
}

wrapper!(TokioAsHyper {});
wrapper!(HyperAsTokio {});

/// # Panics
///
/// If the reader swaps the buffer that it is given for another.
impl<T: tokio::io::AsyncRead> hyper::rt::Read for TokioAsHyper<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        // SAFETY: a tokio reader only writes initialised bytes there.
        let mut space = ReadBuf::uninit(unsafe { buf.as_mut() });
        let begin = space.filled().as_ptr();
        ready!(self.project().inner.poll_read(cx, &mut space))?;
        // A reader may put another buffer in its place, without `unsafe`.
        let same = space.filled().as_ptr() == begin;
        assert!(same, "the reader has swapped the buffer it was given");
        let count = space.filled().len();
        // SAFETY: those bytes of this very buffer were filled.
        unsafe { buf.advance(count) };
        Poll::Ready(Ok(()))
    }
}

impl<T: hyper::rt::Read> tokio::io::AsyncRead for HyperAsTokio<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // SAFETY: hyper's buffer only takes initialised bytes.
        let mut space = hyper::rt::ReadBuf::uninit(unsafe { buf.unfilled_mut() });
        ready!(self.project().inner.poll_read(cx, space.unfilled()))?;
        let count = space.filled().len();
        // SAFETY: those bytes were filled.
        unsafe { buf.assume_init(count) };
        buf.advance(count);
        Poll::Ready(Ok(()))
    }
}

/// Writing: the two traits have the same methods.
macro_rules! passes_writes_on {
    ($adapter:ident: $inside:path => $outside:path) => {
        impl<T: $inside> $outside for $adapter<T> {
            fn poll_write(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &[u8],
            ) -> Poll<io::Result<usize>> {
                self.project().inner.poll_write(cx, buf)
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.project().inner.poll_flush(cx)
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.project().inner.poll_shutdown(cx)
            }

            fn is_write_vectored(&self) -> bool {
                self.inner.is_write_vectored()
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                self.project().inner.poll_write_vectored(cx, bufs)
            }
        }
    };
}

passes_writes_on!(TokioAsHyper: tokio::io::AsyncWrite => hyper::rt::Write);
passes_writes_on!(HyperAsTokio: hyper::rt::Write => tokio::io::AsyncWrite);
