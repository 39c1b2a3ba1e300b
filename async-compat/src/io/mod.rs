//! Traits, utilities, standard streams and readiness, as tokio's `io`.
//!
//! The traits and what is built on them alone are tokio's own, re-exported. What watches a descriptor
//! ([`AsyncFd`](unix::AsyncFd)) or reads and writes the process's standard streams is native.

#[cfg(any(feature = "net", feature = "process", feature = "signal"))]
pub(crate) mod context;
#[cfg(any(feature = "net", feature = "process", feature = "signal"))]
pub(crate) mod evented;

#[cfg(feature = "net")]
mod async_fd;
#[cfg(any(feature = "fs", feature = "io-std", feature = "net"))]
pub(crate) mod blocking;
#[cfg(feature = "io-std")]
mod stdio;

pub use tokio::io::{AsyncBufRead, AsyncRead, AsyncSeek, AsyncWrite, ReadBuf};

#[doc(no_inline)]
pub use std::io::{Error, ErrorKind, Result, SeekFrom};

#[cfg(all(not(feature = "net"), any(feature = "process", feature = "signal")))]
pub(crate) use corespun::io::Interest;
#[cfg(feature = "net")]
pub use corespun::io::{Interest, Ready};

/// Waiting for the readiness of any descriptor: [`AsyncFd`](unix::AsyncFd).
#[cfg(feature = "net")]
pub mod unix {
    #[allow(deprecated)]
    pub use super::async_fd::AsyncFdTryNewError;
    pub use super::async_fd::{
        AsyncFd, AsyncFdReadyGuard, AsyncFdReadyMutGuard, AsyncFdRegisterError, TryIoError,
    };
}

#[cfg(feature = "io-std")]
pub use stdio::{Stderr, Stdin, Stdout, stderr, stdin, stdout};

#[cfg(feature = "io-util")]
pub use tokio::io::{
    AsyncBufReadExt, AsyncReadExt, AsyncSeekExt, AsyncWriteExt, BufReader, BufStream, BufWriter,
    Chain, DuplexStream, Empty, Join, Lines, ReadHalf, Repeat, SimplexStream, Sink, Split, Take,
    WriteHalf, copy, copy_bidirectional, copy_bidirectional_with_sizes, copy_buf, duplex, empty,
    join, repeat, simplex, sink, split,
};
