//! Halves of a stream, so that reading and writing need not share one `&mut`.
//!
//! For one task, two `&stream` do as well; halves are for two tasks. No lock and no atomic: both live
//! on the stream's OS thread.

use std::net::Shutdown;
use std::rc::Rc;

use super::socket::{Socket, async_io};

/// A stream type that can be split; implemented by this module's streams alone.
pub trait Stream {
    #[doc(hidden)]
    fn socket(&self) -> &Socket;
}

/// The reading half that `split` gives.
///
/// # Examples
///
/// ```
/// use corespun::{net::UnixStream, task};
/// use futures::{AsyncReadExt, AsyncWriteExt};
///
/// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
/// let (mut client, server) = UnixStream::pair()?;
/// let (mut requests, mut replies) = server.split();
/// // One task reads while the other writes.
/// let reader = task::spawn_local(async move {
///     let mut all = Vec::new();
///     requests.read_to_end(&mut all).await.map(|_| all)
/// });
/// replies.write_all(b"hello").await?;
/// client.write_all(b"read 7").await?;
/// client.close().await?;
/// assert_eq!(reader.await??, b"read 7");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ReadHalf<S>(Rc<S>);

/// The writing half that `split` gives. Closing or dropping it shuts down the sending direction.
///
/// # Examples
///
/// ```
/// use corespun::net::UnixStream;
/// use futures::{AsyncReadExt, AsyncWriteExt};
///
/// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
/// let (mut client, server) = UnixStream::pair()?;
/// let (_requests, mut replies) = server.split();
/// replies.write_all(b"bye").await?;
/// // The client reads its end.
/// drop(replies);
/// let mut all = Vec::new();
/// client.read_to_end(&mut all).await?;
/// assert_eq!(all, b"bye");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct WriteHalf<S: Stream> {
    stream: Rc<S>,
    shutdown_on_drop: bool,
}

/// The halves given to `reunite` are not of one stream; they come back.
///
/// # Examples
///
/// ```
/// use corespun::net::{ReuniteError, UnixStream};
///
/// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
/// let (one, other) = UnixStream::pair()?;
/// let (one_reads, _one_writes) = one.split();
/// let (_other_reads, other_writes) = other.split();
/// let ReuniteError(reader, writer) = one_reads.reunite(other_writes).unwrap_err();
/// // Both are as good as before.
/// assert!(reader.as_ref().peer_addr().is_ok() && writer.as_ref().peer_addr().is_ok());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[error("these halves are of two different streams: reunite a half with its own other half")]
pub struct ReuniteError<S: Stream>(pub ReadHalf<S>, pub WriteHalf<S>);

pub(crate) fn halves<S: Stream>(stream: S) -> (ReadHalf<S>, WriteHalf<S>) {
    let stream = Rc::new(stream);
    (
        ReadHalf(stream.clone()),
        WriteHalf {
            stream,
            shutdown_on_drop: true,
        },
    )
}

impl<S: Stream> ReadHalf<S> {
    /// Puts the two halves of one stream together again.
    ///
    /// # Errors
    ///
    /// [`ReuniteError`] with both halves if they are of two streams.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::net::UnixStream;
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let (client, server) = UnixStream::pair()?;
    /// let (reader, writer) = server.split();
    /// let server = reader.reunite(writer)?;
    /// // Neither direction was ended.
    /// server.send_all("hello").await.0?;
    /// let (received, buf) = client.recv_exact(vec![0; 5]).await;
    /// received?;
    /// assert_eq!(buf, b"hello");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn reunite(self, mut writer: WriteHalf<S>) -> Result<S, ReuniteError<S>> {
        if !Rc::ptr_eq(&self.0, &writer.stream) {
            return Err(ReuniteError(self, writer));
        }
        writer.shutdown_on_drop = false;
        drop(writer);
        Ok(Rc::into_inner(self.0).expect("a stream has two halves"))
    }
}

impl<S> AsRef<S> for ReadHalf<S> {
    fn as_ref(&self) -> &S {
        &self.0
    }
}

impl<S: Stream> AsRef<S> for WriteHalf<S> {
    fn as_ref(&self) -> &S {
        &self.stream
    }
}

impl<S: Stream> Drop for WriteHalf<S> {
    fn drop(&mut self) {
        if self.shutdown_on_drop {
            // Fails only if the peer is gone, when there is nothing to end.
            let _ = self.stream.socket().shutdown(Shutdown::Write);
        }
    }
}

async_io!(read [S: Stream] ReadHalf<S>, |half| half.0.socket());
async_io!(write [S: Stream] WriteHalf<S>, |half| half.stream.socket());
