//! The readiness of any descriptor.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::task::{Context, Poll, ready};

use corespun::io::{FdWatch, Interest, Ready, ReadyEvent, SharedFd};

use super::context;
use crate::runtime::shutdown_error;

const BOTH: Interest = Interest::READABLE.add(Interest::WRITABLE);

/// A descriptor that is watched for its owner: a socket or pipe that another library has made, a timer,
/// an inotify queue.
///
/// The descriptor must be non-blocking. Its readiness is an edge: it stays until it is cleared, by
/// [`try_io`](AsyncFdReadyGuard::try_io) when the operation would have blocked, or by hand. It is
/// watched by the I/O driver of each OS thread that polls it.
///
/// # Examples
///
/// ```
/// use std::io::{Read, Write};
/// use tokio::io::unix::AsyncFd;
///
/// # use corespun_compat as tokio;
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let (mut peer, socket) = std::os::unix::net::UnixStream::pair()?;
/// socket.set_nonblocking(true)?;
/// // SAFETY: a socket keeps its descriptor.
/// let socket = unsafe { AsyncFd::register(socket) }?;
/// peer.write_all(b"ping")?;
/// let mut guard = socket.readable().await?;
/// let mut buf = [0; 16];
/// assert_eq!(guard.try_io(|socket| socket.get_ref().read(&mut buf)).unwrap()?, 4);
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
pub struct AsyncFd<T: AsRawFd>(SharedFd<Owner<T>>);

/// The owner of a descriptor that keeps it open, as [`AsyncFd::register`] asks for.
struct Owner<T>(T);

impl<T: AsRawFd> AsFd for Owner<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: open as long as its owner is here, by the contract of `AsyncFd::register`.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

/// The result of looking at what was thought to be ready; see [`AsyncFd::readable`].
#[must_use = "it says nothing until `try_io`, `clear_ready` or `retain_ready` is called"]
pub struct AsyncFdReadyGuard<'a, T: AsRawFd> {
    fd: &'a AsyncFd<T>,
    event: Option<ReadyEvent>,
}

/// As [`AsyncFdReadyGuard`], with the owner to be changed.
#[must_use = "it says nothing until `try_io`, `clear_ready` or `retain_ready` is called"]
pub struct AsyncFdReadyMutGuard<'a, T: AsRawFd> {
    fd: &'a mut AsyncFd<T>,
    event: Option<ReadyEvent>,
}

/// The operation would have blocked; the readiness is cleared.
#[derive(Debug, thiserror::Error)]
#[error("the operation would have blocked")]
pub struct TryIoError(());

/// The kernel refuses to watch a descriptor; its owner comes back.
pub struct AsyncFdRegisterError<T> {
    inner: T,
    cause: io::Error,
}

/// The name that [`AsyncFdRegisterError`] had before.
#[deprecated = "renamed to `AsyncFdRegisterError`"]
pub type AsyncFdTryNewError<T> = AsyncFdRegisterError<T>;

impl<T: AsRawFd> AsyncFd<T> {
    /// Watches `inner` for reading and writing.
    ///
    /// # Errors
    ///
    /// As [`register_with_interest`](Self::register_with_interest).
    ///
    /// # Safety
    ///
    /// As there.
    ///
    /// # Panics
    ///
    /// As there.
    #[track_caller]
    pub unsafe fn register(inner: T) -> Result<Self, AsyncFdRegisterError<T>> {
        // SAFETY: the caller's promise.
        unsafe { Self::register_with_interest(inner, BOTH) }
    }

    /// Watches `inner` for `interest`.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, with `inner`: `EPERM` for a regular file, `EEXIST` for a descriptor that
    /// is watched already, `EBADF` for one that is not open.
    ///
    /// # Safety
    ///
    /// The descriptor that `inner` names stays open, and the same, as long as `inner` is in here.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    #[track_caller]
    pub unsafe fn register_with_interest(
        inner: T,
        interest: Interest,
    ) -> Result<Self, AsyncFdRegisterError<T>> {
        let fd = inner.as_raw_fd();
        // SAFETY: the call only reads a flag.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
            let cause = io::Error::last_os_error();
            return Err(AsyncFdRegisterError { inner, cause });
        }
        let fd = match context::share(Owner(inner), interest) {
            Ok(fd) => fd,
            Err(Owner(inner)) => {
                let cause = shutdown_error();
                return Err(AsyncFdRegisterError { inner, cause });
            }
        };
        match corespun::io::Driver::current().map(|_| fd.watch()) {
            Some(Err(cause)) => Err(AsyncFdRegisterError {
                inner: fd.into_inner().0,
                cause,
            }),
            _ => Ok(AsyncFd(fd)),
        }
    }

    /// As [`register`](Self::register).
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Panics
    ///
    /// As there.
    #[deprecated = "an owner that closes its descriptor makes it unsound: use `AsyncFd::register`"]
    #[track_caller]
    pub fn new(inner: T) -> io::Result<Self> {
        // SAFETY: not to be known here, as tokio says of its own.
        unsafe { Ok(Self::register(inner)?) }
    }

    /// As [`register_with_interest`](Self::register_with_interest).
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Panics
    ///
    /// As there.
    #[deprecated = "an owner that closes its descriptor makes it unsound: use `AsyncFd::register_with_interest`"]
    #[track_caller]
    pub fn with_interest(inner: T, interest: Interest) -> io::Result<Self> {
        // SAFETY: as in `new`.
        unsafe { Ok(Self::register_with_interest(inner, interest)?) }
    }

    /// As [`register`](Self::register).
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Panics
    ///
    /// As there.
    #[deprecated = "an owner that closes its descriptor makes it unsound: use `AsyncFd::register`"]
    #[track_caller]
    pub fn try_new(inner: T) -> Result<Self, AsyncFdRegisterError<T>> {
        // SAFETY: as in `new`.
        unsafe { Self::register(inner) }
    }

    /// As [`register_with_interest`](Self::register_with_interest).
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Panics
    ///
    /// As there.
    #[deprecated = "an owner that closes its descriptor makes it unsound: use `AsyncFd::register_with_interest`"]
    #[track_caller]
    pub fn try_with_interest(
        inner: T,
        interest: Interest,
    ) -> Result<Self, AsyncFdRegisterError<T>> {
        // SAFETY: as in `new`.
        unsafe { Self::register_with_interest(inner, interest) }
    }

    /// The descriptor's owner.
    pub fn get_ref(&self) -> &T {
        &self.0.get_ref().0
    }

    /// The descriptor's owner, whose descriptor must stay the same.
    pub fn get_mut(&mut self) -> &mut T {
        &mut self.0.get_mut().0
    }

    /// Gives the descriptor's owner back, watched no more.
    pub fn into_inner(self) -> T {
        self.0.into_inner().0
    }

    fn poll(&self, cx: &mut Context<'_>, interest: Interest) -> Poll<io::Result<ReadyEvent>> {
        let budget = ready!(tokio::task::coop::poll_proceed(cx));
        let event = ready!(self.0.poll_ready(cx, interest)).map_err(context::gone);
        budget.made_progress();
        Poll::Ready(event)
    }

    /// Waits, in a `poll` function, until it is readable. One task at a time: only the last waker is
    /// kept.
    ///
    /// # Errors
    ///
    /// If there is no I/O driver that could watch, or the kernel refuses to.
    pub fn poll_read_ready<'a>(
        &'a self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<AsyncFdReadyGuard<'a, T>>> {
        let event = ready!(self.poll(cx, Interest::READABLE))?;
        Poll::Ready(Ok(AsyncFdReadyGuard::new(self, event)))
    }

    /// As [`poll_read_ready`](Self::poll_read_ready), with the owner to be changed.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn poll_read_ready_mut<'a>(
        &'a mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<AsyncFdReadyMutGuard<'a, T>>> {
        let event = ready!(self.poll(cx, Interest::READABLE))?;
        Poll::Ready(Ok(AsyncFdReadyMutGuard::new(self, event)))
    }

    /// Waits, in a `poll` function, until it is writable. One task at a time: only the last waker is
    /// kept.
    ///
    /// # Errors
    ///
    /// As [`poll_read_ready`](Self::poll_read_ready).
    pub fn poll_write_ready<'a>(
        &'a self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<AsyncFdReadyGuard<'a, T>>> {
        let event = ready!(self.poll(cx, Interest::WRITABLE))?;
        Poll::Ready(Ok(AsyncFdReadyGuard::new(self, event)))
    }

    /// As [`poll_write_ready`](Self::poll_write_ready), with the owner to be changed.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn poll_write_ready_mut<'a>(
        &'a mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<AsyncFdReadyMutGuard<'a, T>>> {
        let event = ready!(self.poll(cx, Interest::WRITABLE))?;
        Poll::Ready(Ok(AsyncFdReadyMutGuard::new(self, event)))
    }

    /// Waits until it is ready for some of `interest`.
    ///
    /// # Errors
    ///
    /// As [`poll_read_ready`](Self::poll_read_ready).
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn ready(&self, interest: Interest) -> io::Result<AsyncFdReadyGuard<'_, T>> {
        let event = wait(self.0.watcher(), interest).await?;
        Ok(AsyncFdReadyGuard::new(self, event))
    }

    /// As [`ready`](Self::ready), with the owner to be changed.
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn ready_mut(
        &mut self,
        interest: Interest,
    ) -> io::Result<AsyncFdReadyMutGuard<'_, T>> {
        let event = wait(self.0.watcher(), interest).await?;
        Ok(AsyncFdReadyMutGuard::new(self, event))
    }

    /// Waits until it is readable.
    ///
    /// # Errors
    ///
    /// As [`ready`](Self::ready).
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn readable<'a>(&'a self) -> io::Result<AsyncFdReadyGuard<'a, T>> {
        self.ready(Interest::READABLE).await
    }

    /// As [`readable`](Self::readable), with the owner to be changed.
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn readable_mut<'a>(&'a mut self) -> io::Result<AsyncFdReadyMutGuard<'a, T>> {
        self.ready_mut(Interest::READABLE).await
    }

    /// Waits until it is writable.
    ///
    /// # Errors
    ///
    /// As [`ready`](Self::ready).
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn writable<'a>(&'a self) -> io::Result<AsyncFdReadyGuard<'a, T>> {
        self.ready(Interest::WRITABLE).await
    }

    /// As [`writable`](Self::writable), with the owner to be changed.
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn writable_mut<'a>(&'a mut self) -> io::Result<AsyncFdReadyMutGuard<'a, T>> {
        self.ready_mut(Interest::WRITABLE).await
    }

    /// Runs `f` until it does not answer `WouldBlock`, waiting for `interest` in between.
    ///
    /// # Errors
    ///
    /// That of `f`, and those of [`ready`](Self::ready).
    ///
    /// # Cancel safety
    ///
    /// Safe if `f` is.
    pub async fn async_io<R>(
        &self,
        interest: Interest,
        mut f: impl FnMut(&T) -> io::Result<R>,
    ) -> io::Result<R> {
        loop {
            let event = wait(self.0.watcher(), interest).await?;
            match f(self.get_ref()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.0.clear(event),
                done => return done,
            }
        }
    }

    /// As [`async_io`](Self::async_io), with the owner to be changed.
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Cancel safety
    ///
    /// As there.
    pub async fn async_io_mut<R>(
        &mut self,
        interest: Interest,
        mut f: impl FnMut(&mut T) -> io::Result<R>,
    ) -> io::Result<R> {
        loop {
            let event = wait(self.0.watcher(), interest).await?;
            match f(self.get_mut()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.0.clear(event),
                done => return done,
            }
        }
    }

    /// Runs `f`, unless it is known that it would block; takes note if it does.
    ///
    /// # Errors
    ///
    /// `WouldBlock`, or that of `f`.
    pub fn try_io<R>(
        &self,
        interest: Interest,
        f: impl FnOnce(&T) -> io::Result<R>,
    ) -> io::Result<R> {
        self.0.try_io(interest, |owner| f(&owner.0))
    }

    /// As [`try_io`](Self::try_io), with the owner to be changed.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn try_io_mut<R>(
        &mut self,
        interest: Interest,
        f: impl FnOnce(&mut T) -> io::Result<R>,
    ) -> io::Result<R> {
        let Some(event) = self.0.seen(interest) else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        let done = f(self.get_mut());
        if matches!(&done, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            self.0.clear(event);
        }
        done
    }
}

impl<T: AsRawFd> AsRawFd for AsyncFd<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.get_ref().as_raw_fd()
    }
}

impl<T: AsRawFd> AsFd for AsyncFd<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl<T: AsRawFd + fmt::Debug> fmt::Debug for AsyncFd<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncFd")
            .field("inner", self.get_ref())
            .finish()
    }
}

impl<T: AsRawFd + std::panic::UnwindSafe> std::panic::UnwindSafe for AsyncFd<T> {}
impl<T: AsRawFd + std::panic::RefUnwindSafe> std::panic::RefUnwindSafe for AsyncFd<T> {}

async fn wait(watch: &FdWatch, interest: Interest) -> io::Result<ReadyEvent> {
    watch.ready(interest).await.map_err(context::gone)
}

/// What both guards do.
macro_rules! guard {
    ($guard:ident, $fd:ty) => {
        impl<'a, T: AsRawFd> $guard<'a, T> {
            fn new(fd: $fd, event: ReadyEvent) -> Self {
                let event = Some(event);
                $guard { fd, event }
            }

            /// Says that it is no longer ready, since an operation would have blocked: the next wait
            /// waits for a new event.
            pub fn clear_ready(&mut self) {
                if let Some(event) = self.event.take() {
                    self.fd.0.clear(event);
                }
            }

            /// Says that it is no longer ready for `ready`.
            pub fn clear_ready_matching(&mut self, ready: Ready) {
                if let Some(event) = self.event {
                    self.fd.0.clear(event.masked(ready));
                    let left = event.masked(Ready::ALL - ready);
                    self.event = (!left.ready().is_empty()).then_some(left);
                }
            }

            /// Says that it is still ready: nothing has to be done.
            pub fn retain_ready(&mut self) {}

            /// What it is ready for, of what was waited for and is not cleared.
            pub fn ready(&self) -> Ready {
                self.event.map_or(Ready::EMPTY, |event| event.ready())
            }
        }

        impl<T: AsRawFd + fmt::Debug> fmt::Debug for $guard<'_, T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($guard))
                    .field("async_fd", &self.fd)
                    .finish()
            }
        }
    };
}

guard!(AsyncFdReadyGuard, &'a AsyncFd<T>);
guard!(AsyncFdReadyMutGuard, &'a mut AsyncFd<T>);

impl<'a, T: AsRawFd> AsyncFdReadyGuard<'a, T> {
    /// Runs `f`, and clears the readiness if it would have blocked.
    ///
    /// # Errors
    ///
    /// [`TryIoError`] if it would have.
    pub fn try_io<R>(
        &mut self,
        f: impl FnOnce(&'a AsyncFd<T>) -> io::Result<R>,
    ) -> Result<io::Result<R>, TryIoError> {
        match f(self.fd) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.clear_ready();
                Err(TryIoError(()))
            }
            done => Ok(done),
        }
    }

    /// What is watched.
    pub fn get_ref(&self) -> &'a AsyncFd<T> {
        self.fd
    }

    /// The descriptor's owner.
    pub fn get_inner(&self) -> &'a T {
        self.fd.get_ref()
    }
}

impl<T: AsRawFd> AsyncFdReadyMutGuard<'_, T> {
    /// Runs `f`, and clears the readiness if it would have blocked.
    ///
    /// # Errors
    ///
    /// [`TryIoError`] if it would have.
    pub fn try_io<R>(
        &mut self,
        f: impl FnOnce(&mut AsyncFd<T>) -> io::Result<R>,
    ) -> Result<io::Result<R>, TryIoError> {
        match f(self.fd) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.clear_ready();
                Err(TryIoError(()))
            }
            done => Ok(done),
        }
    }

    /// What is watched.
    pub fn get_ref(&self) -> &AsyncFd<T> {
        self.fd
    }

    /// What is watched.
    pub fn get_mut(&mut self) -> &mut AsyncFd<T> {
        self.fd
    }

    /// The descriptor's owner.
    pub fn get_inner(&self) -> &T {
        self.fd.get_ref()
    }

    /// The descriptor's owner.
    pub fn get_inner_mut(&mut self) -> &mut T {
        self.fd.get_mut()
    }
}

impl<T> AsyncFdRegisterError<T> {
    /// The descriptor's owner, and why it is not watched.
    pub fn into_parts(self) -> (T, io::Error) {
        (self.inner, self.cause)
    }
}

impl<T> fmt::Display for AsyncFdRegisterError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cause.fmt(f)
    }
}

impl<T> fmt::Debug for AsyncFdRegisterError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cause.fmt(f)
    }
}

impl<T> std::error::Error for AsyncFdRegisterError<T> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.cause)
    }
}

impl<T> From<AsyncFdRegisterError<T>> for io::Error {
    fn from(error: AsyncFdRegisterError<T>) -> Self {
        error.cause
    }
}
