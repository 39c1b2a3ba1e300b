//! For crates that are bound to real tokio: [`Compat`] gives a future or an I/O object of
//! theirs a real tokio context beside the SpdkThread.
//!
//! `reqwest`, `sqlx`, `tonic`, axum's `serve` and their like look for tokio's own reactor, which
//! a runtime of this crate is not. Wrapped, they find one: tokio's context is entered whenever
//! the wrapped value is polled, and when it is dropped. It is a runtime of tokio's of one thread,
//! one for each OS thread that uses [`Compat`]. Who turns it depends on the mode of the reactor:
//!
//! | mode | who turns it | what a wait costs |
//! |---|---|---|
//! | [`Poll`](corespun::reactor::ReactorMode::Poll) | a poller of the SpdkThread, named `tokio`, every 20 µs, and at once after a wrapped value was polled that has begun tasks of tokio's | no OS thread is woken; a turn is a system call and takes 1 to 2 µs, so 5 to 10 % of the core as long as something is wrapped |
//! | [`Adaptive`](corespun::reactor::ReactorMode::Adaptive), [`Interrupt`](corespun::reactor::ReactorMode::Interrupt); a `block_on` | a helper OS thread, which sleeps in it: tokio gives no descriptor of its runtime that a reactor could wait for | two wake-ups between OS threads, where a native wait costs none |
//!
//! Measured by `benches/compat.rs` on a virtual machine of two cores shared with others, so for
//! comparison only (medians, the native operation before the slash): a byte to an OS thread and
//! back takes 14 / 14 µs in poll mode, 32 / 33 µs in adaptive mode and 15 / 44 µs in interrupt
//! mode. A timer of tokio's is up to 1 ms late by itself, being rounded up to milliseconds; the
//! poller adds its 20 µs at most and one turn of the reactor, the helper 0.1 to 0.2 ms (0.99 and
//! 1.17 ms late altogether, where a native one is 1 µs late in poll mode and 90 µs in the others).
//!
//! # What else it costs
//!
//! - The helper OS thread is there in each mode, from the first use on until its OS thread has
//!   ended and the last value that was wrapped there is gone; in poll mode it sleeps. A mode that
//!   changes, changes who turns the runtime. A poller that has found nothing wrapped and no task of
//!   tokio's for 100 ms leaves it to the helper, until something is wrapped again.
//! - What the wrapped value spawns with `tokio::spawn` of the real tokio runs where the runtime
//!   is turned, all of it: in poll mode in the poller, at most 122 polls of tasks in one turn.
//!   There it holds up the reactor if it blocks. While the reactor is held up (in
//!   [`block_in_place`](crate::task::block_in_place), say), it stands still.
//! - A SpdkThread of a reactor that has polled a wrapped value stays on its OS thread from then
//!   on: it [is bound](corespun::thread::ThreadRunner::can_move). The thread of a `block_on` goes
//!   where that goes; what it has wrapped is woken across cores from then on.

mod foreign;
mod seat;

use std::fmt;
use std::io;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;
use pin_project::{pin_project, pinned_drop};
use tokio::io::{AsyncBufRead, AsyncRead, AsyncSeek, AsyncWrite, ReadBuf};

use foreign::Foreign;

/// A value that has a real tokio context whenever it is polled, and when it is dropped.
///
/// A future stays a future, a stream a stream, and what reads and writes by tokio's traits
/// goes on doing so.
///
/// # Examples
///
/// ```
/// use corespun_compat::{compat::Compat, runtime::Runtime};
///
/// // Real tokio's timer, on a worker of this crate's runtime.
/// let runtime = Runtime::new()?;
/// runtime.block_on(async {
///     let foreign = async { tokio::time::sleep(std::time::Duration::from_millis(1)).await };
///     Compat::new(foreign).await;
/// });
/// # Ok::<(), std::io::Error>(())
/// ```
#[pin_project(PinnedDrop)]
#[must_use = "futures do nothing unless awaited"]
pub struct Compat<T> {
    #[pin]
    inner: Option<T>,
    foreign: Arc<Foreign>,
    /// It may have kept something of this context, and stays in it.
    settled: bool,
}

impl<T> Compat<T> {
    /// Wraps a value. Its context is that of the OS thread that polls it first; until then, that
    /// of the calling one.
    ///
    /// # Panics
    ///
    /// When the system refuses what that needs; see [`Compat::try_new`].
    #[track_caller]
    pub fn new(inner: T) -> Self {
        match Compat::try_new(inner) {
            Ok(compat) => compat,
            Err(error) => panic!("there is no tokio context to be had: {error}"),
        }
    }

    /// As [`Compat::new`].
    ///
    /// # Errors
    ///
    /// The system's, when it refuses an OS thread or an epoll.
    pub fn try_new(inner: T) -> io::Result<Self> {
        let foreign = Foreign::current()?;
        Ok(Compat {
            inner: Some(inner),
            foreign,
            settled: false,
        })
    }

    /// Makes a value in the context of the calling OS thread, and wraps it: a socket of real
    /// tokio's, say.
    ///
    /// # Panics
    ///
    /// As [`Compat::new`].
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun_compat::compat::Compat;
    ///
    /// let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    /// listener.set_nonblocking(true)?;
    /// let listener = Compat::with(|| tokio::net::TcpListener::from_std(listener));
    /// assert!(listener.get_ref().as_ref().is_ok());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[track_caller]
    pub fn with(make: impl FnOnce() -> T) -> Self {
        let foreign = match Foreign::current() {
            Ok(foreign) => foreign,
            Err(error) => panic!("there is no tokio context to be had: {error}"),
        };
        let inner = {
            let _entered = foreign.enter();
            Some(make())
        };
        Compat {
            inner,
            foreign,
            settled: true,
        }
    }

    /// The value.
    pub fn get_ref(&self) -> &T {
        self.inner.as_ref().expect("it is there until the end")
    }

    /// The value.
    pub fn get_mut(&mut self) -> &mut T {
        self.inner.as_mut().expect("it is there until the end")
    }

    /// The value, without a context.
    pub fn into_inner(mut self) -> T {
        self.inner.take().expect("it is there until the end")
    }

    /// Calls `f` with the value, in the context.
    fn entered<'a, R>(self: Pin<&'a mut Self>, f: impl FnOnce(Pin<&'a mut T>) -> R) -> R {
        let this = self.project();
        if !*this.settled {
            *this.settled = true;
            // It was made with one that does as well.
            if let Ok(here) = Foreign::current() {
                *this.foreign = here;
            }
        }
        let _entered = this.foreign.enter();
        f(this.inner.as_pin_mut().expect("it is there until the end"))
    }
}

#[pinned_drop]
impl<T> PinnedDrop for Compat<T> {
    fn drop(self: Pin<&mut Self>) {
        let mut this = self.project();
        let _entered = this.foreign.enter();
        this.inner.set(None);
    }
}

impl<T: Future> Future for Compat<T> {
    type Output = T::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T::Output> {
        self.entered(|inner| inner.poll(cx))
    }
}

impl<T: Stream> Stream for Compat<T> {
    type Item = T::Item;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T::Item>> {
        self.entered(|inner| inner.poll_next(cx))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.get_ref().size_hint()
    }
}

impl<T: AsyncRead> AsyncRead for Compat<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.entered(|inner| inner.poll_read(cx, buf))
    }
}

impl<T: AsyncBufRead> AsyncBufRead for Compat<T> {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        self.entered(|inner| inner.poll_fill_buf(cx))
    }

    fn consume(self: Pin<&mut Self>, amt: usize) {
        self.entered(|inner| inner.consume(amt));
    }
}

impl<T: AsyncWrite> AsyncWrite for Compat<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.entered(|inner| inner.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.entered(|inner| inner.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.get_ref().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.entered(|inner| inner.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.entered(|inner| inner.poll_shutdown(cx))
    }
}

impl<T: AsyncSeek> AsyncSeek for Compat<T> {
    fn start_seek(self: Pin<&mut Self>, position: io::SeekFrom) -> io::Result<()> {
        self.entered(|inner| inner.start_seek(position))
    }

    fn poll_complete(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<u64>> {
        self.entered(|inner| inner.poll_complete(cx))
    }
}

impl<T: fmt::Debug> fmt::Debug for Compat<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Compat").field(self.get_ref()).finish()
    }
}
