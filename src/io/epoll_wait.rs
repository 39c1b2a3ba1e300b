//! Waiting in an epoll set with a limit that counts nanoseconds, by one system call where the
//! kernel has one for that (`epoll_pwait2`, Linux 5.11).

use std::cell::Cell;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::epoll::{Epoll as Set, EpollEvent, EpollTimeout};
use nix::sys::time::TimeSpec;

/// How a driver waits in its sets.
#[derive(Default)]
pub(super) struct EpollWait {
    /// The kernel, or a filter in front of it, has refused the call that counts nanoseconds.
    coarse: Cell<bool>,
}

impl EpollWait {
    /// `epoll_wait` with a limit in nanoseconds.
    pub(super) fn wait(
        &self,
        set: &Set,
        events: &mut [EpollEvent],
        limit: Option<Duration>,
    ) -> Result<usize, Errno> {
        match limit {
            None => set.wait(events, EpollTimeout::NONE),
            Some(limit) if limit.is_zero() => set.wait(events, EpollTimeout::ZERO),
            Some(limit) if self.coarse.get() => wait_in_parts(set, events, limit),
            Some(limit) => match wait_precisely(set, events, limit) {
                // A filter may answer with either.
                Err(Errno::ENOSYS | Errno::EPERM) => {
                    self.coarse.set(true);
                    wait_in_parts(set, events, limit)
                }
                waited => waited,
            },
        }
    }
}

fn wait_precisely(set: &Set, events: &mut [EpollEvent], limit: Duration) -> Result<usize, Errno> {
    let limit = TimeSpec::from(limit);
    let room = i32::try_from(events.len()).unwrap_or(i32::MAX);
    // SAFETY: `EpollEvent` is the kernel's structure and there is room for so many; the limit is
    // there for the whole call, and no signal mask is given.
    let count = unsafe {
        libc::syscall(
            libc::SYS_epoll_pwait2,
            set.0.as_raw_fd(),
            events.as_mut_ptr().cast::<libc::epoll_event>(),
            room,
            ptr::from_ref(limit.as_ref()),
            ptr::null::<libc::sigset_t>(),
            0,
        )
    };
    Errno::result(count).map(|count| count as usize)
}

/// By the calls that every kernel has.
fn wait_in_parts(
    set: &Set,
    events: &mut [EpollEvent],
    mut limit: Duration,
) -> Result<usize, Errno> {
    // Whole milliseconds are the set's own affair, and most sleeps end within them: one system call.
    let whole = u16::try_from(limit.as_millis()).unwrap_or(u16::MAX);
    if whole > 0 {
        let begin = Instant::now();
        let count = set.wait(events, EpollTimeout::from(whole))?;
        limit = limit.saturating_sub(begin.elapsed());
        if count > 0 || limit.is_zero() {
            return Ok(count);
        }
    }
    // An epoll set is itself pollable, and ppoll counts nanoseconds on every kernel.
    let fd = set.0.as_fd();
    debug_assert!(fd.as_raw_fd() >= 0);
    match ppoll(
        &mut [PollFd::new(fd, PollFlags::POLLIN)],
        Some(TimeSpec::from(limit)),
        None,
    )? {
        0 => Ok(0),
        _ => set.wait(events, EpollTimeout::ZERO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::epoll::{EpollCreateFlags, EpollFlags};
    use nix::sys::eventfd::EventFd;

    fn both() -> [EpollWait; 2] {
        let coarse = EpollWait::default();
        coarse.coarse.set(true);
        [EpollWait::default(), coarse]
    }

    /// Real time: it is the kernel that counts.
    #[test]
    fn a_wait_lasts_as_long_as_its_limit_with_either_call() {
        let set = Set::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        let mut events = [EpollEvent::empty(); 4];
        for waits in both() {
            for limit in [1, 300_000, 1_700_000].map(Duration::from_nanos) {
                let begin = Instant::now();
                let count = waits.wait(&set, &mut events, Some(limit));
                // A signal of a debugger or profiler would end it before.
                assert_eq!(count, Ok(0));
                assert!(begin.elapsed() >= limit);
            }
        }
    }

    #[test]
    fn what_is_ready_ends_a_wait_of_any_limit_with_either_call() {
        let set = Set::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        let ready = EventFd::from_value(1).unwrap();
        set.add(&ready, EpollEvent::new(EpollFlags::EPOLLIN, 7))
            .unwrap();
        let hour = Duration::from_secs(3600);
        let limits = [
            None,
            Some(Duration::ZERO),
            Some(Duration::from_nanos(1)),
            Some(hour),
            Some(Duration::from_secs(u32::MAX.into())),
        ];
        for waits in both() {
            for limit in limits {
                let mut events = [EpollEvent::empty(); 4];
                assert_eq!(waits.wait(&set, &mut events, limit), Ok(1));
                assert_eq!(events[0].data(), 7);
            }
        }
    }
}
