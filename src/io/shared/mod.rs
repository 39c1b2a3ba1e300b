//! Descriptors that any OS thread may use: watched by the driver of whichever one polls them.
//!
//! [`SharedFd`] is what [`PollFd`](super::PollFd) is, but `Send` and `Sync`. A system call is tried
//! first; only when it would block does the driver of the calling OS thread begin to watch the
//! descriptor, once, for as long as it is open or until its use has moved to another driver. A wake
//! from any of the drivers that watch reaches every task that waits, wherever it is.

mod home;
mod remote;
mod source;

use std::future::poll_fn;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use home::Fallback;
pub use home::Home;
pub use remote::{DriverHandle, NotWatched};
pub(crate) use remote::{Watched, is_tag};
pub use source::ReadyEvent;
use source::Source;

use super::driver::{Driver, current_id, current_is_usable};
use super::interest::{Interest, Ready};
use super::readiness::Direction;
use crate::sync::budget::poll_budget;

/// A descriptor whose readiness is watched by the driver of the OS thread that polls it: `Send` and
/// `Sync` if `T` is, and two of its users may be on two OS threads.
///
/// It owns `T`, whose descriptor should be non-blocking and must stay the same. For what stays on one
/// OS thread, [`PollFd`](super::PollFd) costs less on io_uring.
///
/// Dropped, on any OS thread, it is out of every driver's sight before `T` is dropped. What waits on a
/// driver that ends is woken, and goes on where it is polled next.
///
/// # Examples
///
/// ```
/// use std::{io::{Read, Write}, os::unix::net::UnixStream};
/// use corespun::io::{Interest, SharedFd};
///
/// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
/// let (mut peer, socket) = UnixStream::pair()?;
/// socket.set_nonblocking(true)?;
/// let socket = SharedFd::new(socket, Interest::READABLE);
/// peer.write_all(b"ping")?;
/// let mut buf = [0; 16];
/// assert_eq!(socket.async_io(Interest::READABLE, |mut socket| socket.read(&mut buf)).await?, 4);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct SharedFd<T: AsFd> {
    /// Taken once, by drop or by `into_inner`.
    io: ManuallyDrop<T>,
    watch: FdWatch,
}

/// The readiness of a [`SharedFd`], without the owner of its descriptor: `Send` and `Sync` whatever
/// that is.
///
/// # Examples
///
/// ```
/// use corespun::io::{FdWatch, Interest, SharedFd};
/// use nix::sys::eventfd::EventFd;
///
/// fn is_sync<T: Sync>(_: &T) {}
///
/// let doorbell = SharedFd::new(EventFd::new()?, Interest::READABLE);
/// let watch: &FdWatch = doorbell.watcher();
/// is_sync(watch);
/// // No driver has said anything yet.
/// assert!(watch.seen(Interest::READABLE).is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct FdWatch {
    source: Arc<Source>,
    fallback: Option<Fallback>,
}

impl<T: AsFd> SharedFd<T> {
    /// Takes `io`, to be watched for `interest`. Makes no system call, and needs no driver yet.
    pub fn new(io: T, interest: Interest) -> Self {
        Self::make(io, interest, None)
    }

    /// As [`new`](Self::new), with the driver that watches for an OS thread that has none.
    pub fn with_driver(io: T, interest: Interest, driver: DriverHandle) -> Self {
        Self::make(io, interest, Some(Fallback::Driver(driver)))
    }

    /// As [`new`](Self::new), with a home whose drivers watch for an OS thread that has none.
    pub fn with_home(io: T, interest: Interest, home: Home) -> Self {
        Self::make(io, interest, Some(Fallback::Home(home)))
    }

    /// As [`with_home`](Self::with_home), for what belongs to that home: once it has ended, a wait that
    /// begins is refused on every OS thread, also on one whose driver would watch.
    pub fn bound_to(io: T, interest: Interest, home: Home) -> Self {
        Self::make(io, interest, Some(Fallback::Bound(home)))
    }

    /// Takes it for ready before any driver has looked: for what was made to be, as a new connection
    /// is to be written to.
    #[must_use]
    pub fn assume(self, ready: Ready) -> Self {
        self.watch.source.assume(ready);
        self
    }

    /// Has nothing be tried before a driver has seen an event: for what answers otherwise before there
    /// was one, as a FIFO that no writer has opened is at its end.
    #[must_use]
    pub fn after_event(self) -> Self {
        self.watch.source.untry();
        self
    }

    fn make(io: T, interest: Interest, fallback: Option<Fallback>) -> Self {
        let source = Arc::new(Source::new(io.as_fd().as_raw_fd(), interest));
        SharedFd {
            io: ManuallyDrop::new(io),
            watch: FdWatch { source, fallback },
        }
    }

    /// The descriptor's owner.
    #[inline]
    pub fn get_ref(&self) -> &T {
        &self.io
    }

    /// The descriptor's owner, whose descriptor must stay the same.
    #[inline]
    pub fn get_mut(&mut self) -> &mut T {
        &mut self.io
    }

    /// Gives the descriptor's owner back; no driver watches it any more.
    pub fn into_inner(self) -> T {
        let mut this = ManuallyDrop::new(self);
        this.watch.source.close();
        // SAFETY: `this` is never dropped, so that each field is read, or dropped, here alone.
        unsafe {
            std::ptr::drop_in_place(&raw mut this.watch);
            ManuallyDrop::take(&mut this.io)
        }
    }

    /// Its readiness, without the owner of the descriptor.
    #[inline]
    pub fn watcher(&self) -> &FdWatch {
        &self.watch
    }

    /// Has the current driver watch the descriptor now, instead of at the first wait.
    ///
    /// # Errors
    ///
    /// If the kernel refuses: `PermissionDenied` for a regular file, which is always ready,
    /// `AlreadyExists` for a descriptor that is watched here for another owner; and if there is no
    /// driver.
    pub fn watch(&self) -> io::Result<()> {
        self.watch.here(Direction::Read)
    }

    /// As [`FdWatch::poll_ready`].
    ///
    /// # Errors
    ///
    /// As there.
    #[inline]
    pub fn poll_ready(
        &self,
        cx: &mut Context<'_>,
        interest: Interest,
    ) -> Poll<io::Result<ReadyEvent>> {
        self.watch.poll_ready(cx, interest)
    }

    /// As [`FdWatch::ready`].
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Cancel safety
    ///
    /// As there.
    pub async fn ready(&self, interest: Interest) -> io::Result<ReadyEvent> {
        self.watch.ready(interest).await
    }

    /// As [`FdWatch::seen`].
    pub fn seen(&self, interest: Interest) -> Option<ReadyEvent> {
        self.watch.seen(interest)
    }

    /// As [`FdWatch::clear`].
    #[inline]
    pub fn clear(&self, event: ReadyEvent) {
        self.watch.clear(event);
    }

    /// Runs `op`, if it is not known that it would block, and takes note if it does.
    ///
    /// # Errors
    ///
    /// `WouldBlock`, or that of `op`.
    #[inline]
    pub fn try_io<R>(
        &self,
        interest: Interest,
        op: impl FnOnce(&T) -> io::Result<R>,
    ) -> io::Result<R> {
        let Some(event) = self.watch.source.worth_a_try(interest) else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        self.attempt(event, op)
    }

    /// Runs `op` until it does not answer `WouldBlock`, for use in a `poll` function; waits in between
    /// as [`poll_ready`](Self::poll_ready). `op` is given what was seen, for [`clear`](Self::clear).
    ///
    /// # Errors
    ///
    /// That of `op`, and those of [`poll_ready`](Self::poll_ready).
    #[inline]
    pub fn poll_io<R>(
        &self,
        cx: &mut Context<'_>,
        interest: Interest,
        mut op: impl FnMut(&T, ReadyEvent) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        let budget = ready!(poll_budget(cx));
        loop {
            let event = match self.watch.source.worth_a_try(interest) {
                Some(event) => event,
                None => match ready!(self.watch.poll_last(cx, interest)) {
                    Ok(event) => event,
                    Err(error) => return budget.on(Poll::Ready(Err(error))),
                },
            };
            match self.attempt(event, |io| op(io, event)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return budget.on(Poll::Ready(done)),
            }
        }
    }

    /// Runs `op` until it does not answer `WouldBlock`, waiting in between as [`ready`](Self::ready).
    ///
    /// # Errors
    ///
    /// That of `op`, and those of [`poll_ready`](Self::poll_ready).
    ///
    /// # Cancel safety
    ///
    /// Dropped, nothing more happens than what `op` has done.
    pub async fn async_io<R>(
        &self,
        interest: Interest,
        mut op: impl FnMut(&T) -> io::Result<R>,
    ) -> io::Result<R> {
        let mut wait = Wait::new(&self.watch.source);
        poll_fn(|cx| {
            let budget = ready!(poll_budget(cx));
            loop {
                let event = match self.watch.source.worth_a_try(interest) {
                    Some(event) => event,
                    None => match ready!(self.watch.poll_wait(&mut wait, cx, interest)) {
                        Ok(event) => event,
                        Err(error) => return budget.on(Poll::Ready(Err(error))),
                    },
                };
                match self.attempt(event, &mut op) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    done => return budget.on(Poll::Ready(done)),
                }
            }
        })
        .await
    }

    #[inline]
    fn attempt<R>(&self, event: ReadyEvent, op: impl FnOnce(&T) -> io::Result<R>) -> io::Result<R> {
        let done = op(&self.io);
        if matches!(&done, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            self.clear(event);
        }
        done
    }
}

impl FdWatch {
    /// Makes sure that the driver of this OS thread, or the home, watches.
    #[inline]
    fn here(&self, direction: Direction) -> io::Result<()> {
        if let Some(fallback) = &self.fallback
            && fallback.forbids_waits()
        {
            return Err(NotWatched::Ended.into());
        }
        let here = current_id();
        if here != 0 && self.source.is_here(direction, here) && current_is_usable() {
            return Ok(());
        }
        self.begin_to_watch(direction)
    }

    #[cold]
    fn begin_to_watch(&self, direction: Direction) -> io::Result<()> {
        match (Driver::current(), &self.fallback) {
            (Some(driver), _) => driver.core().table()?.watch(&self.source, direction),
            (None, Some(fallback)) => fallback.watch(&self.source, direction),
            (None, None) => Err(NotWatched::NoDriver.into()),
        }
    }

    /// Waits, for use in a `poll` function, until a driver says that the descriptor is ready to be read
    /// or, with [`Interest::WRITABLE`], written.
    ///
    /// Only the waker of the last call is kept for each of the two: one task at a time may read this
    /// way, and one write. It is ready until [`clear`](Self::clear)ed.
    ///
    /// # Errors
    ///
    /// [`NotWatched`] if there is no driver on this OS thread, and no home or that has ended, or if it is
    /// bound to one that has; those of the kernel if it refuses to watch the descriptor.
    #[inline]
    pub fn poll_ready(
        &self,
        cx: &mut Context<'_>,
        interest: Interest,
    ) -> Poll<io::Result<ReadyEvent>> {
        let budget = ready!(poll_budget(cx));
        budget.on(self.poll_last(cx, interest))
    }

    /// As [`poll_ready`](Self::poll_ready), without a budget.
    #[inline]
    fn poll_last(&self, cx: &mut Context<'_>, interest: Interest) -> Poll<io::Result<ReadyEvent>> {
        if let Some(event) = self.source.seen(interest) {
            return Poll::Ready(Ok(event));
        }
        let direction = interest.direction();
        self.source.register(direction, cx);
        self.here(direction)?;
        match self.source.seen(interest) {
            Some(event) => Poll::Ready(Ok(event)),
            None => Poll::Pending,
        }
    }

    /// Waits until a driver says that the descriptor is ready for some of `interest`.
    ///
    /// # Errors
    ///
    /// As [`poll_ready`](Self::poll_ready).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future forgets the wait. Any number of tasks may wait, on any OS threads.
    pub async fn ready(&self, interest: Interest) -> io::Result<ReadyEvent> {
        let mut wait = Wait::new(&self.source);
        poll_fn(|cx| {
            let budget = ready!(poll_budget(cx));
            budget.on(self.poll_wait(&mut wait, cx, interest))
        })
        .await
    }

    /// One poll of a wait that is one of many, without a budget.
    fn poll_wait(
        &self,
        wait: &mut Wait<'_>,
        cx: &mut Context<'_>,
        interest: Interest,
    ) -> Poll<io::Result<ReadyEvent>> {
        if let Some(event) = self.source.seen(interest) {
            return Poll::Ready(Ok(event));
        }
        wait.id = Some(self.source.wait(wait.id, interest, cx.waker()));
        self.here(interest.direction())?;
        match self.source.seen(interest) {
            Some(event) => Poll::Ready(Ok(event)),
            None => Poll::Pending,
        }
    }

    /// What is known for `interest` without a system call; nothing before a driver watches.
    pub fn seen(&self, interest: Interest) -> Option<ReadyEvent> {
        self.source.seen(interest)
    }

    /// Says that what `event` says is over, since a system call would have blocked, so that the next
    /// wait waits. An event that came after `event` was given out is not lost; a side that is closed
    /// stays closed.
    #[inline]
    pub fn clear(&self, event: ReadyEvent) {
        self.source.clear(event);
    }
}

impl std::fmt::Debug for FdWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FdWatch").finish_non_exhaustive()
    }
}

/// A wait of an async method, given up when its future is dropped.
struct Wait<'a> {
    source: &'a Source,
    id: Option<u64>,
}

impl<'a> Wait<'a> {
    fn new(source: &'a Source) -> Self {
        Wait { source, id: None }
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.source.forget(id);
        }
    }
}

impl<T: AsFd> Drop for SharedFd<T> {
    fn drop(&mut self) {
        self.watch.source.close();
        // SAFETY: taken nowhere else, as this is the drop.
        unsafe { ManuallyDrop::drop(&mut self.io) }
    }
}

impl<T: AsFd> AsFd for SharedFd<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.io.as_fd()
    }
}

impl<T: AsFd + std::fmt::Debug> std::fmt::Debug for SharedFd<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SharedFd").field(&*self.io).finish()
    }
}
