//! Between tokio's and futures' I/O traits.

use std::io::{self, IoSlice, SeekFrom};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project::pin_project;
use tokio::io::ReadBuf;

use super::wrapper;

/// What implements tokio's I/O traits, with those of futures.
///
/// # Examples
///
/// ```
/// # use corespun_compat as tokio;
/// use corespun_compat::adapters::TokioAsFutures;
/// use futures::{AsyncReadExt, AsyncWriteExt};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let (one, other) = tokio::net::UnixStream::pair()?;
/// let (mut one, mut other) = (TokioAsFutures::new(one), TokioAsFutures::new(other));
/// one.write_all(b"ping").await?;
/// one.close().await?;
/// let mut all = String::new();
/// other.read_to_string(&mut all).await?;
/// assert_eq!(all, "ping");
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
#[pin_project]
#[derive(Clone, Copy, Debug)]
pub struct TokioAsFutures<T> {
    #[pin]
    inner: T,
    /// Where the seek goes that is under way.
    seek: Option<SeekFrom>,
}

/// What implements futures' I/O traits, with those of tokio.
///
/// # Examples
///
/// See the [module](super).
#[pin_project]
#[derive(Clone, Copy, Debug)]
pub struct FuturesAsTokio<T> {
    #[pin]
    inner: T,
    /// Where the seek goes that is under way.
    seek: Option<SeekFrom>,
}

wrapper!(TokioAsFutures { seek: Option<SeekFrom> });
wrapper!(FuturesAsTokio { seek: Option<SeekFrom> });

impl<T: tokio::io::AsyncRead> futures::io::AsyncRead for TokioAsFutures<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut buf = ReadBuf::new(buf);
        ready!(self.project().inner.poll_read(cx, &mut buf))?;
        Poll::Ready(Ok(buf.filled().len()))
    }
}

impl<T: tokio::io::AsyncWrite> futures::io::AsyncWrite for TokioAsFutures<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.project().inner.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.project().inner.poll_write_vectored(cx, bufs)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().inner.poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().inner.poll_shutdown(cx)
    }
}

impl<T: tokio::io::AsyncBufRead> futures::io::AsyncBufRead for TokioAsFutures<T> {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        self.project().inner.poll_fill_buf(cx)
    }

    fn consume(self: Pin<&mut Self>, amt: usize) {
        self.project().inner.consume(amt);
    }
}

impl<T: tokio::io::AsyncSeek> futures::io::AsyncSeek for TokioAsFutures<T> {
    fn poll_seek(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pos: SeekFrom,
    ) -> Poll<io::Result<u64>> {
        let mut this = self.project();
        if *this.seek != Some(pos) {
            // One that somebody gave up is to end first.
            ready!(this.inner.as_mut().poll_complete(cx))?;
            this.inner.as_mut().start_seek(pos)?;
            *this.seek = Some(pos);
        }
        let sought = ready!(this.inner.poll_complete(cx));
        *this.seek = None;
        Poll::Ready(sought)
    }
}

impl<T: futures::io::AsyncRead> tokio::io::AsyncRead for FuturesAsTokio<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // futures' trait reads into initialised bytes only.
        let space = buf.initialize_unfilled();
        let count = ready!(self.project().inner.poll_read(cx, space))?;
        buf.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<T: futures::io::AsyncWrite> tokio::io::AsyncWrite for FuturesAsTokio<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.project().inner.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.project().inner.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        // futures' trait does not say; one that is not takes the first buffer.
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().inner.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().inner.poll_close(cx)
    }
}

impl<T: futures::io::AsyncBufRead> tokio::io::AsyncBufRead for FuturesAsTokio<T> {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        self.project().inner.poll_fill_buf(cx)
    }

    fn consume(self: Pin<&mut Self>, amt: usize) {
        self.project().inner.consume(amt);
    }
}

impl<T: futures::io::AsyncSeek> tokio::io::AsyncSeek for FuturesAsTokio<T> {
    fn start_seek(self: Pin<&mut Self>, position: SeekFrom) -> io::Result<()> {
        *self.project().seek = Some(position);
        Ok(())
    }

    fn poll_complete(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<u64>> {
        let this = self.project();
        let Some(position) = *this.seek else {
            // tokio asks before the first seek too.
            return Poll::Ready(Ok(0));
        };
        let sought = ready!(this.inner.poll_seek(cx, position));
        *this.seek = None;
        Poll::Ready(sought)
    }
}
