//! Taking connections: what the listeners of each kind share.
//!
//! Out of descriptors or memory, the next try fails as this one did, and at once. So a listener that
//! was refused so waits before it tries again: an accept loop that goes on after errors neither spins
//! nor keeps the rest of its thread from what would free a descriptor.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use socket2::{SockAddr, SockAddrStorage};

use super::socket::Socket;
use crate::io::delay::Delay;

/// The wait after the first refusal, and the longest one: each is twice the last.
const FIRST_WAIT: Duration = Duration::from_millis(5);
const LONGEST_WAIT: Duration = Duration::from_millis(160);

pub(crate) struct Listener {
    socket: Socket,
    /// Set by a refusal that lasts, until a connection is taken.
    refused: Cell<Option<Refused>>,
}

#[derive(Clone, Copy)]
struct Refused {
    until: Instant,
    wait: Duration,
}

impl Listener {
    pub(crate) fn from_std(fd: impl Into<OwnedFd>) -> io::Result<Self> {
        Ok(Listener {
            socket: Socket::from_std(fd)?,
            refused: Cell::new(None),
        })
    }

    pub(crate) fn into_fd(self) -> io::Result<OwnedFd> {
        self.socket.into_fd()
    }

    pub(crate) fn local_addr(&self) -> io::Result<SockAddr> {
        self.socket.local_addr()
    }

    /// A connection, on this OS thread's driver.
    pub(crate) async fn accept(&self) -> io::Result<(Socket, SockAddr)> {
        let (fd, peer) = self.accept_nonblocking().await?;
        Ok((self.note(Socket::nonblocking(fd))?, peer))
    }

    /// A connection, blocking.
    pub(crate) async fn accept_fd(&self) -> io::Result<(socket2::Socket, SockAddr)> {
        let (fd, peer) = self.accept_nonblocking().await?;
        fd.set_nonblocking(false)?;
        Ok((fd, peer))
    }

    async fn accept_nonblocking(&self) -> io::Result<(socket2::Socket, SockAddr)> {
        loop {
            while let Some(wait) = self.wait() {
                wait.await?;
            }
            let accepted = self.socket.pollable().read_with(accept_once).await;
            if !is_aborted(&accepted) {
                return self.note(accepted);
            }
        }
    }

    /// As [`accept`](Self::accept), for one task at a time, which keeps `wait` between the polls.
    pub(crate) fn poll_accept(
        &self,
        wait: &mut Option<Delay>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Socket>> {
        loop {
            if wait.is_none() {
                *wait = self.wait();
            }
            if let Some(delay) = wait {
                let waited = ready!(Pin::new(delay).poll(cx));
                *wait = None;
                waited?;
                continue;
            }
            let accepted = ready!(self.socket.pollable().poll_read_with(cx, accept_once));
            if !is_aborted(&accepted) {
                let socket = accepted.and_then(|(fd, _)| Socket::nonblocking(fd));
                return Poll::Ready(self.note(socket));
            }
        }
    }

    /// What is to be waited for before the next try.
    fn wait(&self) -> Option<Delay> {
        let until = self.refused.get()?.until;
        let core = self.socket.pollable().core().clone();
        (Instant::now() < until).then(|| Delay::new(core, until))
    }

    fn note<T>(&self, accepted: io::Result<T>) -> io::Result<T> {
        let lasts = accepted.as_ref().err().is_some_and(lasts);
        self.refused.set(lasts.then(|| {
            let wait = self.refused.get().map_or(FIRST_WAIT, |last| last.wait * 2);
            let wait = wait.min(LONGEST_WAIT);
            let until = Instant::now() + wait;
            Refused { until, wait }
        }));
        accepted
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Takes a connection that is non-blocking from the start: two system calls less.
fn accept_once(listener: &OwnedFd) -> io::Result<(socket2::Socket, SockAddr)> {
    let accept = |address: *mut SockAddrStorage, len: *mut libc::socklen_t| {
        let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: `address` and `len` are of a place for any address, which lives until this returns.
        let fd = unsafe { libc::accept4(listener.as_raw_fd(), address.cast(), len, flags) };
        match fd {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: the kernel has just made it, for this call alone.
            fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        }
    };
    // SAFETY: a successful `accept4` sets the address and its length.
    let (fd, peer) = unsafe { SockAddr::try_init(accept) }?;
    Ok((fd.into(), peer))
}

/// A connection that broke while it waited is passed over.
fn is_aborted<T>(accepted: &io::Result<T>) -> bool {
    let error = accepted.as_ref().err();
    error.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionAborted)
}

/// Whether the next try would fail as this one did: the process, or the system, is short of
/// something.
fn lasts(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS | libc::ENOSPC)
    )
}
