//! The eventfd by which a thread's senders make its descriptor readable: opened
//! by the owner, written by any sender, and closed when both have let go of it.
//!
//! The sleeper that rings lives as long as the last handle of its thread, which
//! may be the life of the program, and is reached without a count of references,
//! from signal handlers too. So the descriptor ends by itself: the owner *leaves*,
//! after which no sender begins to ring, and the last of those that were at it, or
//! the owner, closes it. Until then no other descriptor has its number.

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

/// The owner has left; below it, how many are ringing.
const LEFT: usize = 1 << (usize::BITS - 1);

pub(in crate::thread) struct Doorbell {
    /// -1 once it was taken to be closed.
    fd: AtomicI32,
    state: AtomicUsize,
}

impl Doorbell {
    /// Takes over a non-blocking eventfd.
    pub(in crate::thread) fn new(eventfd: impl Into<OwnedFd>) -> Self {
        Doorbell {
            fd: AtomicI32::new(eventfd.into().into_raw_fd()),
            state: AtomicUsize::new(0),
        }
    }

    /// Makes it readable, unless the owner has left. Async-signal-safe.
    pub(in crate::thread) fn ring(&self) -> io::Result<()> {
        let mut result = Ok(());
        if self.state.fetch_add(1, Ordering::Acquire) & LEFT == 0 {
            let one = 1u64;
            // SAFETY: the buffer is eight bytes. A sender that has come before the
            // owner left keeps the descriptor open (`done`).
            let written = unsafe {
                let fd = self.fd.load(Ordering::Relaxed);
                libc::write(fd, (&raw const one).cast(), size_of_val(&one))
            };
            if written < 0 {
                result = Err(io::Error::last_os_error());
            }
        }
        if self.state.fetch_sub(1, Ordering::AcqRel) == LEFT | 1 {
            self.close();
        }
        result
    }

    /// The owner's end: no sender begins to ring any more.
    pub(in crate::thread) fn leave(&self) {
        if self.state.fetch_or(LEFT, Ordering::AcqRel) == 0 {
            self.close();
        }
    }

    /// With no sender at it. Late senders pass through here as well, and find it done.
    #[cold]
    fn close(&self) {
        let fd = self.fd.swap(-1, Ordering::AcqRel);
        if fd >= 0 {
            // SAFETY: it came from an `OwnedFd`, and only the first swap gets it.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
}

impl Drop for Doorbell {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, BorrowedFd};
    use std::sync::Barrier;

    use nix::sys::eventfd::{EfdFlags, EventFd};

    use super::*;

    fn eventfd() -> OwnedFd {
        EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
            .unwrap()
            .into()
    }

    /// At its first free number from `least` on, where no other test is.
    fn high(least: i32) -> OwnedFd {
        // SAFETY: the new descriptor is owned by the result alone.
        unsafe {
            let fd = libc::fcntl(eventfd().as_raw_fd(), libc::F_DUPFD_CLOEXEC, least);
            OwnedFd::from_raw_fd(fd)
        }
    }

    #[test]
    fn a_ring_makes_it_readable_and_says_if_it_could_not() {
        let bell = eventfd();
        let other = bell.try_clone().unwrap();
        let bell = Doorbell::new(bell);
        bell.ring().unwrap();
        bell.ring().unwrap();
        let mut count = [0; 8];
        assert_eq!(nix::unistd::read(&other, &mut count), Ok(8));
        assert_eq!(u64::from_ne_bytes(count), 2);
        nix::unistd::write(&other, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        assert!(bell.ring().is_err(), "it is full");
    }

    /// While others ring, the owner leaves, and a stranger gets the number: it is
    /// never rung, and the descriptor is closed exactly once.
    #[test]
    fn a_doorbell_that_was_left_rings_at_no_stranger() {
        for round in 0..500 {
            let bell = high(900);
            let number = bell.as_raw_fd();
            let bell = Doorbell::new(bell);
            let begin = Barrier::new(3);
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        begin.wait();
                        for _ in 0..20 {
                            let _ = bell.ring();
                        }
                    });
                }
                begin.wait();
                for _ in 0..round % 50 {
                    std::hint::spin_loop();
                }
                bell.leave();
            });
            let stranger = high(900);
            assert_eq!(stranger.as_raw_fd(), number, "it was closed");
            let _ = bell.ring();
            drop(bell);
            // SAFETY: `stranger` is open.
            let open = unsafe { BorrowedFd::borrow_raw(number) };
            let unread = nix::unistd::read(open, &mut [0; 8]);
            assert_eq!(unread, Err(nix::Error::EAGAIN), "nobody rang it");
        }
    }
}
