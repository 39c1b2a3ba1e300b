//! What a disk has to do to be served, and the one thing both kinds share.
//!
//! A disk is a cheap handle: each connection has a clone on its own thread. The ranges
//! it is given were checked against its size.

use std::io;

/// How an area is to be zeroed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Zeroing {
    /// Whether the area may be given back to the system, to read as zeroes.
    pub(crate) may_punch: bool,
    /// Whether to answer [`io::ErrorKind::Unsupported`], with the disk unchanged, where
    /// zeroing would not be faster than a write.
    pub(crate) only_if_fast: bool,
}

/// A disk that connections are served from.
///
/// Every operation that has returned is visible to all clones, on all threads; after
/// [`Disk::flush`] it is also durable, if the disk is.
pub(crate) trait Disk: Clone + 'static {
    /// Reads at once, or returns `None` where that means to wait: the caller then uses
    /// [`Disk::read`].
    fn try_read(&self, offset: u64, into: &mut [u8]) -> Option<io::Result<()>>;

    /// Writes at once, or returns `None` with nothing written where that means to wait.
    fn try_write(&self, offset: u64, data: &[u8]) -> Option<io::Result<()>>;

    /// Fills `frame[from..]`; what is before it is the caller's.
    async fn read(&self, offset: u64, frame: Vec<u8>, from: usize) -> (io::Result<()>, Vec<u8>);

    /// Writes all of `data` and returns it for the next write.
    async fn write(&self, offset: u64, data: Vec<u8>) -> (io::Result<()>, Vec<u8>);

    /// Makes durable every write that has returned, on whichever connection.
    async fn flush(&self) -> io::Result<()>;

    /// Gives the area back where that is cheap; what it reads as then is not defined.
    async fn trim(&self, offset: u64, length: u32) -> io::Result<()>;

    /// Makes the area read as zeroes.
    async fn write_zeroes(&self, offset: u64, length: u32, how: Zeroing) -> io::Result<()>;

    /// Hears that the area will be read soon.
    async fn cache(&self, offset: u64, length: u32) -> io::Result<()>;
}
