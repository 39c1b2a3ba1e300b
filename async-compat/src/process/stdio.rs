//! The pipes to and from a child.

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::process::Stdio;
use std::task::{Context, Poll};

use corespun::io::Interest;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::io::evented::{Evented, read_fd, write_fd};

/// The writing end of a child's standard input. Dropping it ends what the child reads.
#[derive(Debug)]
pub struct ChildStdin(Evented<std::fs::File>);

/// The reading end of a child's standard output.
#[derive(Debug)]
pub struct ChildStdout(Evented<std::fs::File>);

/// The reading end of a child's standard error.
#[derive(Debug)]
pub struct ChildStderr(Evented<std::fs::File>);

macro_rules! pipe {
    ($pipe:ident, $std:ty, $interest:ident) => {
        impl $pipe {
            /// Takes the pipe of a child of `std`'s, and makes it non-blocking.
            ///
            /// # Errors
            ///
            /// Those of `fcntl(2)`; if the runtime is shut down.
            ///
            /// # Panics
            ///
            /// Outside of a runtime.
            #[track_caller]
            pub fn from_std(inner: $std) -> io::Result<Self> {
                let fd = OwnedFd::from(inner);
                set_nonblocking(&fd, true)?;
                let pipe = Evented::with_interest(fd.into(), Interest::$interest)?;
                Ok($pipe(pipe))
            }

            /// Gives the descriptor, made blocking.
            ///
            /// # Errors
            ///
            /// Those of `fcntl(2)`.
            pub fn into_owned_fd(self) -> io::Result<OwnedFd> {
                let fd = OwnedFd::from(self.0.into_inner());
                set_nonblocking(&fd, false)?;
                Ok(fd)
            }
        }

        impl AsRawFd for $pipe {
            fn as_raw_fd(&self) -> RawFd {
                self.0.as_raw_fd()
            }
        }

        impl AsFd for $pipe {
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.0.as_fd()
            }
        }

        impl TryInto<Stdio> for $pipe {
            type Error = io::Error;

            fn try_into(self) -> io::Result<Stdio> {
                self.into_owned_fd().map(Stdio::from)
            }
        }
    };
}

pipe!(ChildStdin, std::process::ChildStdin, WRITABLE);
pipe!(ChildStdout, std::process::ChildStdout, READABLE);
pipe!(ChildStderr, std::process::ChildStderr, READABLE);

fn set_nonblocking(fd: &OwnedFd, on: bool) -> io::Result<()> {
    let mut flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    flags.set(OFlag::O_NONBLOCK, on);
    fcntl(fd, FcntlArg::F_SETFL(flags))?;
    Ok(())
}

macro_rules! read {
    ($($pipe:ident),*) => {$(
        impl AsyncRead for $pipe {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                self.0
                    .poll_read(cx, buf, |io, space| read_fd(io.as_fd(), space))
            }
        }
    )*};
}

read!(ChildStdout, ChildStderr);

impl AsyncWrite for ChildStdin {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0
            .poll_write(cx, buf.len(), |io| write_fd(io.as_fd(), buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wanted = bufs.iter().map(|buf| buf.len()).sum();
        self.0
            .poll_write(cx, wanted, |mut io| io.write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
