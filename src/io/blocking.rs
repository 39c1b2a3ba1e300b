//! What a back-end cannot do without blocking: system calls on helper threads.
//!
//! Results come back through a queue of the driver's own, and through its wake eventfd if, and only
//! if, the driver sleeps.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use crossbeam_queue::SegQueue;

use super::helpers::{Helpers, Lane};
use super::op::{Completion, Request, Sink};
use super::table::Key;
use super::wake::WakeFd;
use crate::notify::Sleeper;

/// Where a relative path begins.
const HERE: i32 = libc::AT_FDCWD;

/// A request on its way to a helper thread.
struct SendRequest(Request);

// SAFETY: the addresses in a request stay valid and unused until its completion, which is after the
// helper thread's last use (`op::Payload`).
unsafe impl Send for SendRequest {}

/// Where the helper threads put a driver's results.
struct Results {
    done: SegQueue<(Key, i32)>,
    driver: Sleeper,
}

pub(crate) struct BlockingOps {
    helpers: Helpers,
    results: Arc<Results>,
    /// With the helper threads, at most `limit`.
    running: usize,
    limit: usize,
    /// What waits until fewer run.
    backlog: VecDeque<(Key, Request)>,
}

impl BlockingOps {
    /// A driver's way to `helpers`, on which so many of its operations run at once.
    pub(crate) fn new(helpers: Helpers, limit: usize, wake: WakeFd) -> Self {
        let driver = Sleeper::new(move || wake.wake());
        BlockingOps {
            helpers,
            results: Arc::new(Results {
                done: SegQueue::new(),
                driver,
            }),
            running: 0,
            limit,
            backlog: VecDeque::new(),
        }
    }

    pub(crate) fn helpers(&self) -> &Helpers {
        &self.helpers
    }

    pub(crate) fn start(&mut self, key: Key, request: Request) -> io::Result<()> {
        if self.running < self.limit {
            return self.hand_over(key, request);
        }
        self.backlog.push_back((key, request));
        Ok(())
    }

    fn hand_over(&mut self, key: Key, request: Request) -> io::Result<()> {
        let (request, results) = (SendRequest(request), self.results.clone());
        self.helpers.run(Lane::Operation, move || {
            let request = request;
            results.done.push((key, perform(&request.0)));
            results.driver.notify();
        })?;
        self.running += 1;
        Ok(())
    }

    /// Whether no operation is in flight here.
    pub(crate) fn is_idle(&self) -> bool {
        self.running == 0 && self.backlog.is_empty()
    }

    /// Waits for nothing in a forked child, which does not have the threads.
    pub(crate) fn leave_to_parent(&mut self) {
        self.running = 0;
        self.backlog.clear();
    }

    /// Whether `reap` would find nothing.
    pub(crate) fn is_quiet(&self) -> bool {
        self.running == 0 || self.results.done.is_empty()
    }

    /// Takes the results that have come back, and hands over what waited for them.
    pub(crate) fn reap(&mut self, sink: &mut Sink<'_>) {
        if self.running == 0 {
            return;
        }
        while let Some((key, result)) = self.results.done.pop() {
            self.running -= 1;
            sink.complete(key, Completion { result, flags: 0 }, false);
        }
        while self.running < self.limit
            && let Some((key, request)) = self.backlog.pop_front()
        {
            if let Err(error) = self.hand_over(key, request) {
                if self.running > 0 {
                    // The next result brings it here again.
                    self.backlog.push_front((key, request));
                    return;
                }
                let result = -error.raw_os_error().unwrap_or(libc::EAGAIN);
                sink.complete(key, Completion { result, flags: 0 }, false);
            }
        }
    }

    /// Before the driver blocks: asks for its eventfd to be written. False if a result is here
    /// already, and blocking would miss it.
    pub(crate) fn announce_sleep(&self) -> bool {
        if self.running == 0 {
            return true;
        }
        self.results.driver.announce();
        self.results.done.is_empty()
    }

    pub(crate) fn retract(&self) {
        if self.running > 0 {
            self.results.driver.retract();
        }
    }
}

/// Runs a request as a system call; `-errno` on failure.
fn perform(request: &Request) -> i32 {
    loop {
        let result = perform_once(request);
        if result >= 0 {
            return result as i32;
        }
        let errno = nix::errno::Errno::last_raw();
        if errno != libc::EINTR {
            return -errno;
        }
    }
}

fn perform_once(request: &Request) -> i64 {
    // SAFETY: the payload that made the request keeps its addresses and descriptors valid until the
    // result has been delivered (`op::Payload`).
    unsafe {
        match *request {
            Request::Read {
                fd,
                ptr,
                len,
                offset,
                ..
            } => libc::pread(fd, ptr.cast(), len as usize, offset as i64) as i64,
            Request::Write {
                fd,
                ptr,
                len,
                offset,
                ..
            } => libc::pwrite(fd, ptr.cast(), len as usize, offset as i64) as i64,
            Request::Sync {
                fd,
                data_only: true,
            } => libc::fdatasync(fd).into(),
            Request::Sync {
                fd,
                data_only: false,
            } => libc::fsync(fd).into(),
            Request::Allocate {
                fd,
                mode,
                offset,
                len,
            } => libc::fallocate(fd, mode, offset as i64, len as i64).into(),
            Request::Truncate { fd, len } => libc::ftruncate(fd, len as i64).into(),
            Request::WillNeed { fd, offset, len } => {
                // Gives the error itself instead of -1.
                let (offset, len) = (offset as i64, len.into());
                let errno = libc::posix_fadvise(fd, offset, len, libc::POSIX_FADV_WILLNEED);
                nix::errno::Errno::set_raw(errno);
                -i64::from(errno != 0)
            }
            Request::Open { path, flags, mode } => libc::open(path, flags, mode).into(),
            Request::Stat {
                fd,
                path,
                flags,
                out,
            } => {
                let mask = libc::STATX_BASIC_STATS | libc::STATX_BTIME;
                libc::statx(fd, path, flags, mask, out).into()
            }
            Request::ReadVectored {
                fd,
                parts,
                count,
                offset,
            } => libc::preadv(fd, parts, count as i32, offset as i64) as i64,
            Request::WriteVectored {
                fd,
                parts,
                count,
                offset,
            } => libc::pwritev(fd, parts, count as i32, offset as i64) as i64,
            Request::Rename { from, to } => libc::rename(from, to).into(),
            Request::Unlink { path, flags } => libc::unlinkat(HERE, path, flags).into(),
            Request::MakeDir { path, mode } => libc::mkdir(path, mode).into(),
            Request::Symlink { target, link } => libc::symlink(target, link).into(),
            Request::Link { from, to } => libc::linkat(HERE, from, HERE, to, 0).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::op::Slot;
    use crate::io::table::Table;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_result_that_came_before_the_sleep_forbids_it() {
        let wake = WakeFd::new().unwrap();
        let helpers = Helpers::new(None);
        let mut pool = BlockingOps::new(helpers.clone(), 1, wake.clone());
        assert!(pool.announce_sleep(), "nothing is in flight");
        let fd = wake.as_raw_fd();
        let mut slots = Table::default();
        pool.start(
            slots.next_key(),
            Request::Sync {
                fd,
                data_only: true,
            },
        )
        .unwrap();
        // The result is here, and the helper thread has looked whether the driver sleeps.
        while pool.is_quiet() || helpers.idle_threads() == 0 {
            std::thread::yield_now();
        }
        assert!(!pool.announce_sleep());
        pool.retract();
        assert!(!wake.drain(), "the driver was awake: no eventfd is written");

        let (mut sources, mut effects) = Default::default();
        slots.insert(Slot::Waiting(None, crate::io::op::Ending::ByItself));
        let mut sink = Sink {
            slots: &mut slots,
            sources: &mut sources,
            effects: &mut effects,
            reaped: 0,
            finished: 0,
        };
        pool.reap(&mut sink);
        assert_eq!((sink.reaped, sink.finished), (1, 1));
        assert!(pool.announce_sleep(), "nothing is in flight any more");
    }
}
