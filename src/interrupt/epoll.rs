//! The few epoll calls, on raw descriptors: the kernel checks those, and a
//! descriptor that its owner has closed is an error there, not a danger.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

#[derive(Debug)]
pub(super) struct Epoll(OwnedFd);

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

impl Epoll {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: the call takes no pointer, and the descriptor it gives is new
        // and ours.
        unsafe {
            let fd = check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?;
            Ok(Epoll(OwnedFd::from_raw_fd(fd)))
        }
    }

    fn control(&self, operation: libc::c_int, fd: RawFd, events: u32, data: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: data };
        // SAFETY: `event` lives through the call.
        check(unsafe { libc::epoll_ctl(self.raw(), operation, fd, &raw mut event) })?;
        Ok(())
    }

    pub(super) fn add(&self, fd: RawFd, events: u32, data: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, events, data)
    }

    pub(super) fn modify(&self, fd: RawFd, events: u32, data: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, events, data)
    }

    pub(super) fn delete(&self, fd: RawFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, 0, 0)
    }

    /// Waits for up to `timeout` milliseconds (-1: for ever) and says how many
    /// of `events` were written.
    pub(super) fn wait(
        &self,
        events: &mut [libc::epoll_event],
        timeout: libc::c_int,
    ) -> io::Result<usize> {
        let capacity = libc::c_int::try_from(events.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: `events` has room for `capacity` events.
        let count = unsafe { libc::epoll_wait(self.raw(), events.as_mut_ptr(), capacity, timeout) };
        check(count).map(|count| count as usize)
    }

    pub(super) fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
