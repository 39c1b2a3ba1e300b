//! The process's standard streams.
//!
//! Their descriptors may be anything, also regular files, and are shared with other processes, whom a
//! change to non-blocking would hit: they are read and written on helper threads, one call at a time
//! each.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::runtime::{Handle, shutdown_error};
use crate::task::{JoinHandle, spawn_blocking};

/// The most that one call on a helper thread reads or writes.
const MOST: usize = 2 * 1024 * 1024;

/// A blocking reader or writer, and what is on its way to or from it.
struct Blocking<T> {
    state: State<T>,
    /// A write was begun since the last flush.
    written: bool,
}

enum State<T> {
    Idle(Box<Idle<T>>),
    Busy(JoinHandle<(io::Result<()>, Box<Idle<T>>)>),
}

struct Idle<T> {
    inner: Option<T>,
    buf: Vec<u8>,
    /// Where what was read and not given out begins.
    start: usize,
}

impl<T: Send + 'static> Blocking<T> {
    fn new(inner: T) -> Self {
        let idle = Idle {
            inner: Some(inner),
            buf: Vec::new(),
            start: 0,
        };
        Blocking {
            state: State::Idle(Box::new(idle)),
            written: false,
        }
    }

    /// Waits for the call that is under way.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&mut Idle<T>>> {
        if let State::Busy(call) = &mut self.state {
            let ended = ready!(Pin::new(call).poll(cx));
            let Ok((done, idle)) = ended else {
                return Poll::Ready(Err(shutdown_error()));
            };
            self.state = State::Idle(idle);
            done?;
        }
        match &mut self.state {
            State::Idle(idle) => Poll::Ready(Ok(idle)),
            State::Busy(_) => unreachable!("it has ended"),
        }
    }

    /// Begins a call on a helper thread.
    fn begin(
        &mut self,
        call: impl FnOnce(&mut T, &mut Vec<u8>) -> io::Result<()> + Send + 'static,
    ) {
        let State::Idle(idle) = &mut self.state else {
            unreachable!("one call at a time");
        };
        let empty = Idle {
            inner: None,
            buf: Vec::new(),
            start: 0,
        };
        let mut idle = std::mem::replace(idle, Box::new(empty));
        self.state = State::Busy(spawn_blocking(move || {
            let inner = idle.inner.as_mut().expect("it comes back with each call");
            let done = call(inner, &mut idle.buf);
            (done, idle)
        }));
    }
}

impl<T: Read + Send + 'static> Blocking<T> {
    fn poll_read(&mut self, cx: &mut Context<'_>, dst: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let was_busy = matches!(self.state, State::Busy(_));
            let idle = ready!(self.poll_idle(cx))?;
            let left = &idle.buf[idle.start..];
            if !left.is_empty() || was_busy {
                let count = left.len().min(dst.remaining());
                dst.put_slice(&left[..count]);
                idle.start += count;
                return Poll::Ready(Ok(()));
            }
            if dst.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            idle.start = 0;
            let wanted = dst.remaining().min(MOST);
            self.begin(move |inner, buf| {
                buf.resize(wanted, 0);
                let read = loop {
                    match inner.read(buf) {
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        done => break done,
                    }
                };
                buf.truncate(*read.as_ref().unwrap_or(&0));
                read.map(drop)
            });
        }
    }
}

impl<T: Write + Send + 'static> Blocking<T> {
    fn poll_write(&mut self, cx: &mut Context<'_>, src: &[u8]) -> Poll<io::Result<usize>> {
        let idle = ready!(self.poll_idle(cx))?;
        if Handle::current().is_shut_down() {
            return Poll::Ready(Err(shutdown_error()));
        }
        let count = src.len().min(MOST);
        idle.buf.clear();
        idle.buf.extend_from_slice(&src[..count]);
        self.written = true;
        self.begin(|inner, buf| inner.write_all(buf));
        Poll::Ready(Ok(count))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_idle(cx))?;
        if std::mem::take(&mut self.written) {
            self.begin(|inner, _| inner.flush());
        }
        self.poll_idle(cx).map_ok(drop)
    }
}

/// The standard input of the process; see [`stdin`].
pub struct Stdin(Blocking<std::io::Stdin>);

/// The standard output of the process; see [`stdout`].
pub struct Stdout(Blocking<std::io::Stdout>);

/// The standard error of the process; see [`stderr`].
pub struct Stderr(Blocking<std::io::Stderr>);

/// The standard input of the process, read on a helper thread.
///
/// A read that waits for input keeps its helper thread, and with it the end of the runtime, until there
/// is some: for a program that talks with a person, a thread of its own is better.
///
/// # Cancel safety
///
/// What a dropped read takes later is given to the next one.
pub fn stdin() -> Stdin {
    Stdin(Blocking::new(std::io::stdin()))
}

/// The standard output of the process, written on a helper thread. Several of them, used by several
/// tasks, may mix their lines; flush before the runtime ends.
///
/// # Examples
///
/// ```
/// use tokio::io::AsyncWriteExt;
///
/// # use corespun_compat as tokio;
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let mut stdout = tokio::io::stdout();
/// stdout.write_all(b"hello\n").await?;
/// stdout.flush().await
/// # }).unwrap();
/// ```
pub fn stdout() -> Stdout {
    Stdout(Blocking::new(std::io::stdout()))
}

/// The standard error of the process, as [`stdout`].
pub fn stderr() -> Stderr {
    Stderr(Blocking::new(std::io::stderr()))
}

impl AsyncRead for Stdin {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.poll_read(cx, buf)
    }
}

macro_rules! stream {
    ($($stream:ident, $std:ident;)*) => {$(
        impl fmt::Debug for $stream {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($stream)).finish_non_exhaustive()
            }
        }

        impl AsRawFd for $stream {
            fn as_raw_fd(&self) -> RawFd {
                std::io::$std().as_raw_fd()
            }
        }

        impl AsFd for $stream {
            fn as_fd(&self) -> BorrowedFd<'_> {
                // SAFETY: the standard streams stay open as long as the process.
                unsafe { BorrowedFd::borrow_raw(self.as_raw_fd()) }
            }
        }
    )*};
}

stream! {
    Stdin, stdin;
    Stdout, stdout;
    Stderr, stderr;
}

macro_rules! write {
    ($($stream:ident),*) => {$(
        impl AsyncWrite for $stream {
            fn poll_write(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &[u8],
            ) -> Poll<io::Result<usize>> {
                self.0.poll_write(cx, buf)
            }

            fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.0.poll_flush(cx)
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.poll_flush(cx)
            }
        }
    )*};
}

write!(Stdout, Stderr);
