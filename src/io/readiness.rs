//! Waiting until a descriptor is readable or writable.
//!
//! One `SourceState` per descriptor, with one `Wait` per direction. Callers try the system call
//! first, say "drained" when it would block, and wait; so a direction starts out as ready. How a
//! wait reaches the kernel differs: io_uring arms a one-shot poll per wait, epoll has an
//! edge-triggered registration for the life of the source.

use std::any::Any;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use super::driver::Driver;
use super::guess::Guess;
use super::op::Effect;
use super::state::Core;
use super::table::{Key, Table};
use crate::sync::budget::poll_budget;
use nix::poll::{PollFd as SysPollFd, PollFlags, PollTimeout};

/// Which side of a descriptor is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Read,
    Write,
}

impl Direction {
    pub(crate) fn poll_mask(self) -> i16 {
        match self {
            Direction::Read => libc::POLLIN | libc::POLLRDHUP,
            Direction::Write => libc::POLLOUT,
        }
    }

    /// Whether what a poll on the ring found is about this direction: such a poll also finds that
    /// the peer has shut its side down, whatever it was to wait for.
    fn is_told_by(self, found: i32) -> bool {
        let always = libc::POLLERR | libc::POLLHUP | libc::POLLNVAL;
        found & i32::from(self.poll_mask() | always) != 0
    }
}

/// One direction of one source.
#[derive(Default)]
pub(crate) struct Wait {
    ready: bool,
    error: Option<i32>,
    /// A wait is in the kernel's or the epoll set's hands.
    pub(crate) armed: bool,
    /// A poll on the ring would end at once, for what is not about this direction: the next one
    /// lasts, and tells of edges.
    pub(crate) lasting: bool,
    pub(crate) guess: Guess,
    /// The ring operation that waits, on io_uring.
    pub(crate) watch: Option<Key>,
    /// The task that used a `poll_` method last.
    last: Option<Waker>,
    /// The tasks inside an async method, by their waiter's number.
    others: Vec<(u64, Waker)>,
}

pub(crate) struct SourceState {
    pub(crate) fd: RawFd,
    pub(crate) owner: Rc<dyn Any>,
    pub(crate) waits: [Wait; 2],
}

/// All sources of a driver.
#[derive(Default)]
pub(crate) struct Sources(Table<SourceState>);

impl Sources {
    pub(crate) fn insert(&mut self, fd: RawFd, owner: Rc<dyn Any>) -> Key {
        let wait = || Wait {
            ready: true,
            ..Wait::default()
        };
        self.0.insert(SourceState {
            fd,
            owner,
            waits: [wait(), wait()],
        })
    }

    /// For the `PollFd` of `source`, which removes it when it goes, and no other.
    pub(crate) fn remove(&mut self, source: Key) -> SourceState {
        self.0.remove(source).expect("its PollFd removes it")
    }

    /// As [`remove`](Self::remove), for a `PollFd` that is there.
    pub(crate) fn get_mut(&mut self, source: Key) -> &mut SourceState {
        self.0.get_mut(source).expect("its PollFd is there")
    }

    pub(crate) fn wait(&mut self, source: Key, direction: Direction) -> &mut Wait {
        &mut self.get_mut(source).waits[direction as usize]
    }

    /// An event says that `direction` is ready. Returns whether it had a waiter: it has none if the
    /// source is gone, which a descriptor that was duplicated may outlive in the epoll set.
    pub(crate) fn ready(
        &mut self,
        source: Key,
        direction: Direction,
        error: Option<i32>,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let Some(source) = self.0.get_mut(source) else {
            return false;
        };
        let wait = &mut source.waits[direction as usize];
        wait.tell(error, effects)
    }

    /// A poll on the ring has ended, or has found something and lasts.
    pub(crate) fn polled(
        &mut self,
        source: Key,
        direction: Direction,
        result: i32,
        lasts: bool,
        effects: &mut Vec<Effect>,
    ) {
        let Some(source) = self.0.get_mut(source) else {
            return;
        };
        let wait = &mut source.waits[direction as usize];
        if result >= 0 && !direction.is_told_by(result) {
            wait.lasting = true;
            if lasts {
                return;
            }
        }
        let (watch, error) = (wait.watch, (result < 0).then_some(-result));
        let armed = wait.tell(error, effects);
        if lasts {
            (wait.watch, wait.armed) = (watch, armed);
        }
    }

    /// Wakes all waiters, because the driver is being shut down.
    pub(crate) fn wake_all(&mut self, effects: &mut Vec<Effect>) {
        for source in self.0.iter_mut() {
            for wait in &mut source.waits {
                wait.tell(None, effects);
            }
        }
    }
}
/// A waker that was replaced, for the caller to drop after the state is released.
pub(crate) type Replaced = Option<Waker>;

impl Wait {
    /// Is ready from now on; returns whether it was armed.
    fn tell(&mut self, error: Option<i32>, effects: &mut Vec<Effect>) -> bool {
        self.ready = true;
        self.error = error;
        self.watch = None;
        effects.extend(self.last.take().map(Effect::Wake));
        effects.extend(self.others.drain(..).map(|(_, waker)| Effect::Wake(waker)));
        std::mem::take(&mut self.armed)
    }

    /// Whether the direction is ready, taking a stored error.
    pub(crate) fn check(&mut self) -> Poll<io::Result<()>> {
        match self.error.take() {
            Some(errno) => Poll::Ready(Err(io::Error::from_raw_os_error(errno))),
            None if self.ready => Poll::Ready(Ok(())),
            None => Poll::Pending,
        }
    }

    /// Remembers the waker of a waiter, replacing that waiter's earlier waker.
    pub(crate) fn register(&mut self, waiter: Waiter, waker: &Waker) -> Replaced {
        let slot = match waiter {
            Waiter::Last => self.last.as_mut(),
            Waiter::Numbered(id) => self
                .others
                .iter_mut()
                .find(|(other, _)| *other == id)
                .map(|(_, waker)| waker),
        };
        match (slot, waiter) {
            (Some(slot), _) if slot.will_wake(waker) => None,
            (Some(slot), _) => Some(std::mem::replace(slot, waker.clone())),
            (None, Waiter::Last) => self.last.replace(waker.clone()),
            (None, Waiter::Numbered(id)) => {
                self.others.push((id, waker.clone()));
                None
            }
        }
    }

    /// The waiters that are told no more, because the source is gone.
    pub(crate) fn into_wakers(self) -> impl Iterator<Item = Waker> {
        let others = self.others.into_iter().map(|(_, waker)| waker);
        self.last.into_iter().chain(others)
    }

    /// Forgets a waiter that was dropped.
    pub(crate) fn forget(&mut self, id: u64) -> Replaced {
        let place = self.others.iter().position(|(other, _)| *other == id)?;
        Some(self.others.swap_remove(place).1)
    }

    pub(crate) fn clear(&mut self) {
        self.ready = false;
    }
}

/// A waiter: the task that used a `poll_` method last, or one call of an async method.
#[derive(Clone, Copy)]
pub(crate) enum Waiter {
    Last,
    Numbered(u64),
}

/// A descriptor whose readiness the driver watches: a socket, pipe, eventfd, timerfd, signalfd, or
/// the interrupt descriptor of a device.
///
/// It owns `T` and is bound to the OS thread and the driver it was made on (it is neither `Send` nor
/// `Sync`). The descriptor should be non-blocking. One descriptor belongs in one `PollFd`.
///
/// # Examples
///
/// ```
/// use std::{io::{Read, Write}, os::unix::net::UnixStream};
/// use corespun::io::{Driver, DriverConfig, PollFd};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let driver = Driver::new(&DriverConfig::new())?;
/// let _entered = driver.enter();
/// let (mut a, b) = UnixStream::pair()?;
/// b.set_nonblocking(true)?;
/// let b = PollFd::new(b)?;
/// let mut byte = [0];
/// let mut read = std::pin::pin!(b.read_with(|mut b| b.read(&mut byte)));
/// let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
/// assert!(read.as_mut().poll(&mut cx).is_pending());
/// a.write_all(b"x")?;
/// while driver.park(None) == 0 {}
/// assert!(matches!(read.as_mut().poll(&mut cx), std::task::Poll::Ready(Ok(1))));
/// # Ok(()) }
/// # use std::future::Future;
/// ```
pub struct PollFd<T: AsFd + 'static> {
    core: Rc<Core>,
    pub(super) source: Key,
    io: Rc<T>,
}

impl<T: AsFd + 'static> PollFd<T> {
    /// Registers `io` with the OS thread's current driver.
    ///
    /// # Errors
    ///
    /// If no driver is entered on this OS thread, or the kernel refuses to watch the descriptor.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{app::App, io::PollFd};
    ///
    /// // Only where a driver is entered, as on a reactor.
    /// let (_peer, socket) = std::os::unix::net::UnixStream::pair()?;
    /// assert!(PollFd::new(socket.try_clone()?).is_err());
    /// let watched = App::builder().block_on(async |_app| PollFd::new(socket).is_ok())?;
    /// assert!(watched);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new(io: T) -> io::Result<Self> {
        let core = Driver::current_core()?;
        let io = Rc::new(io);
        let fd = io.as_fd().as_raw_fd();
        let source = core.add_source(fd, io.clone())?;
        Ok(PollFd { core, source, io })
    }

    /// The descriptor's owner.
    pub fn get_ref(&self) -> &T {
        &self.io
    }

    /// Waits until the descriptor is readable (or at its end, or in error) at this moment: a
    /// level, not an edge.
    ///
    /// # Errors
    ///
    /// If the driver is not this OS thread's current one or was dropped, or the kernel refuses.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future forgets the wait. Any number of tasks may wait.
    ///
    /// # Examples
    ///
    /// An eventfd of a C library:
    ///
    /// ```
    /// use corespun::io::PollFd;
    /// use nix::sys::eventfd::EventFd;
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let doorbell = PollFd::new(EventFd::new()?)?;
    /// doorbell.get_ref().write(3)?;
    /// doorbell.readable().await?;
    /// assert_eq!(doorbell.get_ref().read()?, 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub async fn readable(&self) -> io::Result<()> {
        self.wait_level(Direction::Read).await
    }

    /// Waits until the descriptor is writable (or in error) at this moment.
    ///
    /// # Errors
    ///
    /// As [`readable`](Self::readable).
    ///
    /// # Cancel safety
    ///
    /// As [`readable`](Self::readable).
    pub async fn writable(&self) -> io::Result<()> {
        self.wait_level(Direction::Write).await
    }

    /// Runs `op` until it does not answer `WouldBlock`, waiting for readability in between.
    ///
    /// # Errors
    ///
    /// The errors of `op`, and those of [`readable`](Self::readable).
    ///
    /// # Cancel safety
    ///
    /// `op` ran to its end or not at all. Any number of tasks may wait.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{io::{Read, Write}, os::unix::net::UnixStream};
    /// use corespun::{io::PollFd, task};
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let (mut peer, socket) = UnixStream::pair()?;
    /// socket.set_nonblocking(true)?;
    /// let socket = PollFd::new(socket)?;
    /// let reader = task::spawn_local(async move {
    ///     let mut buf = [0; 16];
    ///     let length = socket.read_with(|mut socket| socket.read(&mut buf)).await?;
    ///     Ok::<_, std::io::Error>(buf[..length].to_vec())
    /// });
    /// task::yield_now().await;
    /// peer.write_all(b"ping")?;
    /// assert_eq!(reader.await??, b"ping");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub async fn read_with<R>(&self, op: impl FnMut(&T) -> io::Result<R>) -> io::Result<R> {
        self.op_with(Direction::Read, op).await
    }

    /// Runs `op` until it does not answer `WouldBlock`, waiting for writability in between.
    ///
    /// # Errors
    ///
    /// The errors of `op`, and those of [`writable`](Self::writable).
    ///
    /// # Cancel safety
    ///
    /// As [`read_with`](Self::read_with).
    pub async fn write_with<R>(&self, op: impl FnMut(&T) -> io::Result<R>) -> io::Result<R> {
        self.op_with(Direction::Write, op).await
    }

    /// As [`read_with`](Self::read_with), for use in a `poll` function.
    ///
    /// Only the waker of the last call is kept: one task at a time may read this way.
    ///
    /// # Errors
    ///
    /// As [`read_with`](Self::read_with).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{future::poll_fn, io::{Read, Write}, os::unix::net::UnixStream};
    /// use corespun::io::PollFd;
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let (mut peer, socket) = UnixStream::pair()?;
    /// socket.set_nonblocking(true)?;
    /// let socket = PollFd::new(socket)?;
    /// peer.write_all(b"ping")?;
    /// let mut buf = [0; 16];
    /// let read = poll_fn(|cx| socket.poll_read_with(cx, |mut socket| socket.read(&mut buf)));
    /// assert_eq!(read.await?, 4);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn poll_read_with<R>(
        &self,
        cx: &mut Context<'_>,
        op: impl FnMut(&T) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        self.poll_op(Direction::Read, Waiter::Last, cx, op)
    }

    /// As [`write_with`](Self::write_with), for use in a `poll` function.
    ///
    /// Only the waker of the last call is kept: one task at a time may write this way.
    ///
    /// # Errors
    ///
    /// As [`write_with`](Self::write_with).
    pub fn poll_write_with<R>(
        &self,
        cx: &mut Context<'_>,
        op: impl FnMut(&T) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        self.poll_op(Direction::Write, Waiter::Last, cx, op)
    }

    pub(crate) fn owner(&self) -> Rc<T> {
        self.io.clone()
    }

    pub(crate) fn core(&self) -> &Rc<Core> {
        &self.core
    }

    async fn op_with<R>(
        &self,
        direction: Direction,
        mut op: impl FnMut(&T) -> io::Result<R>,
    ) -> io::Result<R> {
        let place = ListedWaiter {
            fd: self,
            direction,
            id: self.core.next_waiter(),
        };
        poll_fn(|cx| self.poll_op(direction, Waiter::Numbered(place.id), cx, &mut op)).await
    }

    async fn wait_level(&self, direction: Direction) -> io::Result<()> {
        let events = PollFlags::from_bits_truncate(direction.poll_mask());
        self.op_with(direction, |io| {
            let mut fds = [SysPollFd::new(io.as_fd(), events)];
            match nix::poll::poll(&mut fds, PollTimeout::ZERO)? {
                0 => Err(io::ErrorKind::WouldBlock.into()),
                _ => Ok(()),
            }
        })
        .await
    }

    fn poll_op<R>(
        &self,
        direction: Direction,
        waiter: Waiter,
        cx: &mut Context<'_>,
        mut op: impl FnMut(&T) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        loop {
            let budget = ready!(poll_budget(cx));
            let ready = match self.core.check_current() {
                Ok(()) => ready!(self.core.poll_ready(self.source, direction, waiter, cx)),
                error => error,
            };
            match ready.and_then(|()| op(&self.io)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.core.with_wait(self.source, direction, |wait| {
                        wait.guess.nothing();
                        wait.clear();
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => budget.progressed(),
                done => {
                    budget.progressed();
                    return Poll::Ready(done);
                }
            }
        }
    }
}

impl<T: AsFd + 'static> Drop for PollFd<T> {
    fn drop(&mut self) {
        self.core.remove_source(self.source);
    }
}

impl<T: AsFd + 'static> AsFd for PollFd<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.io.as_fd()
    }
}

impl<T: AsFd + std::fmt::Debug + 'static> std::fmt::Debug for PollFd<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("PollFd").field(&self.io).finish()
    }
}

/// A waiter's place in a direction's list, given up when its future is dropped.
struct ListedWaiter<'a, T: AsFd + 'static> {
    fd: &'a PollFd<T>,
    direction: Direction,
    id: u64,
}

impl<T: AsFd + 'static> Drop for ListedWaiter<'_, T> {
    fn drop(&mut self) {
        drop(
            self.fd
                .core
                .with_wait(self.fd.source, self.direction, |wait| wait.forget(self.id)),
        );
    }
}
