//! For crates that are bound to real tokio: [`Compat`] gives a future or an I/O object of
//! theirs a real tokio context beside the SpdkThread.
//!
//! `reqwest`, `sqlx`, `tonic` and their like look for tokio's own reactor, which a runtime
//! of this crate is not. Wrapped, they find one: tokio's context is entered whenever the
//! wrapped value is polled, and when it is dropped.
//!
//! # What it costs
//!
//! - One helper OS thread for each OS thread that uses [`Compat`], from the first use on:
//!   tokio gives no descriptor of its runtime that a reactor could wait for, so somebody has
//!   to sleep in it. It ends with the last wrapped value of its OS thread, or with that.
//! - Each readiness and each timer that the wrapped value waits for goes over that thread:
//!   two wake-ups between OS threads where a native one costs none.
//! - What the wrapped value spawns with `tokio::spawn` of the real tokio runs on the helper
//!   thread, all of it on that one.
//! - A SpdkThread that is to move to another core cannot take the helper along: what is
//!   wrapped goes on, and is woken across cores.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use corespun::cpu;
use futures::Stream;
use pin_project::{pin_project, pinned_drop};
use tokio::io::{AsyncBufRead, AsyncRead, AsyncSeek, AsyncWrite, ReadBuf};

use crate::runtime::context;

/// tokio's runtime of an OS thread, with the helper that sleeps in it.
struct Helper {
    handle: tokio::runtime::Handle,
    /// Dropped, it ends the helper.
    _stop: tokio::sync::oneshot::Sender<()>,
}

thread_local! {
    static HELPER: RefCell<Option<Arc<Helper>>> = const { RefCell::new(None) };
}

impl Helper {
    /// The one of this OS thread.
    fn current() -> io::Result<Arc<Helper>> {
        let known = HELPER.try_with(|helper| helper.borrow().clone());
        if let Ok(Some(helper)) = known {
            return Ok(helper);
        }
        let helper = Arc::new(Helper::start()?);
        // Not while the OS thread ends.
        let _ = HELPER.try_with(|place| place.replace(Some(helper.clone())));
        Ok(helper)
    }

    fn start() -> io::Result<Helper> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let cpus = context::with_current(|handle| handle.free_cpus())
            .ok()
            .flatten();
        std::thread::Builder::new()
            .name("corespun-compat".to_owned())
            .spawn(move || {
                // A worker is pinned, and so would be what it starts.
                if let Some(cpus) = cpus
                    && let Err(error) = cpu::set_current_affinity(&cpus)
                {
                    tracing::warn!("a helper thread stays on its starter's core: {error}");
                }
                // Until the sender is dropped.
                let _ = runtime.block_on(stopped);
            })?;
        Ok(Helper {
            handle,
            _stop: stop,
        })
    }
}

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
    helper: Arc<Helper>,
}

impl<T> Compat<T> {
    /// Wraps a value, with the tokio context of the calling OS thread.
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
        let helper = Helper::current()?;
        Ok(Compat {
            inner: Some(inner),
            helper,
        })
    }

    /// Makes a value in the context, and wraps it: a socket of real tokio's, say.
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
        let helper = match Helper::current() {
            Ok(helper) => helper,
            Err(error) => panic!("there is no tokio context to be had: {error}"),
        };
        let inner = {
            let _entered = helper.handle.enter();
            Some(make())
        };
        Compat { inner, helper }
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
    fn entered<R>(self: Pin<&mut Self>, f: impl FnOnce(Pin<&mut T>) -> R) -> R {
        let this = self.project();
        let _entered = this.helper.handle.enter();
        f(this.inner.as_pin_mut().expect("it is there until the end"))
    }
}

#[pinned_drop]
impl<T> PinnedDrop for Compat<T> {
    fn drop(self: Pin<&mut Self>) {
        let mut this = self.project();
        let _entered = this.helper.handle.enter();
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
        let this = self.project();
        let _entered = this.helper.handle.enter();
        let inner = this.inner.as_pin_mut().expect("it is there until the end");
        inner.poll_fill_buf(cx)
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
