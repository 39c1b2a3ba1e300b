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
#[derive(Debug)]
pub struct ReadHalf<S>(Rc<S>);

/// The writing half that `split` gives. Closing or dropping it shuts down the sending direction.
#[derive(Debug)]
pub struct WriteHalf<S: Stream> {
    stream: Rc<S>,
    shutdown_on_drop: bool,
}

/// The halves given to `reunite` are not of one stream; they come back.
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
