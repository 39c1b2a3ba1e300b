//! The fall-back where io_uring is not permitted: epoll for readiness, Linux AIO for direct file
//! I/O, helper threads for the rest.
//!
//! Sources are registered once, edge-triggered for both directions; the readiness table remembers
//! what the edges said. A buffered read whose pages are cached is done at once with
//! `RWF_NOWAIT`, and reported at the next turn like any other, so that a loop of cached reads
//! still yields to its neighbours.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll as Set, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::aio::Aio;
use super::blocking::BlockingOps;
use super::config::{DriverConfig, DriverError};
use super::epoll_wait::EpollWait;
use super::op::{Completion, Request, Sink, Slot};
use super::readiness::Direction;
use super::shared;
use super::table::Key;
use super::wake::WakeFd;

const WAKE: u64 = u64::MAX;
const AIO: u64 = u64::MAX - 1;

pub(crate) struct Epoll {
    set: Arc<Set>,
    waits: EpollWait,
    events: Vec<EpollEvent>,
    wake: WakeFd,
    /// The eventfd was seen readable, and drained, since the last park.
    woken: bool,
    aio: Option<Aio>,
    /// Operations that were done on the spot.
    done: VecDeque<(Key, i32)>,
    /// Directions that have a waiter: while zero, a turn need not ask the kernel.
    pub(crate) waiting: usize,
    /// There may be shared descriptors, so that every turn asks.
    pub(crate) shares: bool,
    /// Their events, for their table.
    pub(crate) shared: Vec<EpollEvent>,
}

impl Epoll {
    pub(crate) fn new(config: &DriverConfig, wake: WakeFd) -> Result<Self, DriverError> {
        let setup = |what| {
            move |errno: Errno| DriverError::Setup {
                what,
                source: errno.into(),
            }
        };
        let set = Set::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(setup("an epoll set"))?;
        set.add(&wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))
            .map_err(setup("the wake eventfd"))?;
        let aio = match Aio::new(config.entries) {
            Ok(aio) => {
                let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
                set.add(aio.eventfd(), EpollEvent::new(flags, AIO))
                    .map_err(setup("the AIO eventfd"))?;
                Some(aio)
            }
            Err(error) => {
                tracing::info!(%error, "Linux AIO is refused: direct I/O uses helper threads");
                None
            }
        };
        Ok(Epoll {
            set: Arc::new(set),
            waits: EpollWait::default(),
            events: vec![EpollEvent::empty(); 256],
            wake,
            woken: false,
            aio,
            done: VecDeque::new(),
            waiting: 0,
            shares: false,
            shared: Vec::new(),
        })
    }

    pub(crate) fn set(&self) -> &Arc<Set> {
        &self.set
    }

    /// Starts the operation `key` by the quickest way that cannot block this thread.
    pub(crate) fn start(
        &mut self,
        key: Key,
        request: Request,
        blocking: &mut BlockingOps,
    ) -> io::Result<()> {
        match (&request, &mut self.aio) {
            (
                Request::Read { direct: true, .. } | Request::Write { direct: true, .. },
                Some(aio),
            ) => {
                aio.queue(key, &request);
                Ok(())
            }
            (
                &Request::Read {
                    fd,
                    ptr,
                    len,
                    offset,
                    direct: false,
                    ..
                },
                _,
            ) => match read_cached(fd, ptr, len, offset) {
                Some(count) => {
                    self.done.push_back((key, count));
                    Ok(())
                }
                None => blocking.start(key, request),
            },
            _ => blocking.start(key, request),
        }
    }

    pub(crate) fn add(&mut self, fd: RawFd, source: Key) -> io::Result<()> {
        let flags = EpollFlags::EPOLLIN
            | EpollFlags::EPOLLOUT
            | EpollFlags::EPOLLRDHUP
            | EpollFlags::EPOLLET;
        // SAFETY: the source's owner holds the descriptor open.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        match self.set.add(fd, EpollEvent::new(flags, source.to_bits())) {
            // A regular file is always ready, as a new source says.
            Ok(()) | Err(Errno::EPERM) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    pub(crate) fn remove(&mut self, fd: RawFd) {
        // SAFETY: the source's owner still holds the descriptor open.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        // Fails only for what was never in the set (a regular file).
        let _ = self.set.delete(fd);
    }

    /// # Errors
    ///
    /// If the kernel refuses to serve the set, for good.
    pub(crate) fn poll(&mut self, sink: &mut Sink<'_>) -> io::Result<()> {
        // Only what was there at the start: completions may start new operations.
        for _ in 0..self.done.len() {
            let Some((key, result)) = self.done.pop_front() else {
                break;
            };
            sink.complete(key, Completion { result, flags: 0 }, false);
        }
        if let Some(aio) = &mut self.aio {
            aio.submit(sink);
            aio.reap(sink);
        }
        if self.waiting > 0 || self.shares {
            let count = served(self.set.wait(&mut self.events, EpollTimeout::ZERO))?;
            self.dispatch(count, sink);
        }
        Ok(())
    }

    pub(crate) fn park(
        &mut self,
        timeout: Option<Duration>,
        blocking: &BlockingOps,
        sink: &mut Sink<'_>,
    ) -> io::Result<()> {
        self.poll(sink)?;
        let awake = sink.reaped > 0 || self.woken || !self.shared.is_empty();
        let limit = match awake || !blocking.announce_sleep() {
            true => Some(Duration::ZERO),
            false => timeout,
        };
        let waited = served(self.waits.wait(&self.set, &mut self.events, limit));
        blocking.retract();
        self.dispatch(waited?, sink);
        if let Some(aio) = &mut self.aio {
            aio.reap(sink);
        }
        self.woken = false;
        Ok(())
    }

    fn dispatch(&mut self, count: usize, sink: &mut Sink<'_>) {
        for event in &self.events[..count] {
            match event.data() {
                WAKE => {
                    self.woken = true;
                    self.wake.drain();
                }
                // An edge, never read: the completions themselves are looked for in memory.
                AIO => {}
                key if shared::is_tag(key) => self.shared.push(*event),
                source => {
                    let (source, flags) = (Key::from_bits(source), event.events());
                    let broken = EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
                    for (direction, ready, closed) in [
                        (Direction::Read, EpollFlags::EPOLLIN, EpollFlags::EPOLLRDHUP),
                        (Direction::Write, EpollFlags::EPOLLOUT, EpollFlags::empty()),
                    ] {
                        if flags.intersects(ready | closed | broken)
                            && sink.sources.ready(source, direction, None, sink.effects)
                        {
                            self.waiting -= 1;
                            sink.reaped += 1;
                            sink.finished += 1;
                        }
                    }
                }
            }
        }
    }

    /// Waits until the kernel and the helpers have let go of every operation.
    pub(crate) fn drain(&mut self, blocking: &mut BlockingOps, sink: &mut Sink<'_>) {
        loop {
            let mut served = self.poll(sink).is_ok();
            blocking.reap(sink);
            let running = sink.slots.iter().any(|(_, slot)| {
                matches!(
                    slot,
                    Slot::Waiting(..) | Slot::Orphan(..) | Slot::Watch { .. }
                )
            });
            if !running {
                return;
            }
            sink.reaped = 0;
            let limit = Duration::from_millis(10);
            served &= self.park(Some(limit), blocking, sink).is_ok();
            if !served {
                // What is left needs no readiness: helper threads and AIO.
                std::thread::sleep(limit);
            }
        }
    }
}

/// Reads what the page cache holds; None if that is nothing, or the file system cannot tell.
pub(super) fn read_cached(fd: RawFd, ptr: *mut u8, len: u32, offset: u64) -> Option<i32> {
    let part = libc::iovec {
        iov_base: ptr.cast(),
        iov_len: len as usize,
    };
    // Not by libc's function, which is a point of cancellation: that costs two atomic exchanges.
    // SAFETY: the caller keeps the buffer and the descriptor valid, and this call is done with both
    // when it returns. A word too narrow for the offset has its other half in the next.
    let count = unsafe {
        let (low, high) = (offset as libc::c_long, (offset >> 32) as libc::c_long);
        let part = &raw const part;
        libc::syscall(
            libc::SYS_preadv2,
            fd,
            part,
            1 as libc::c_long,
            low,
            high,
            libc::RWF_NOWAIT,
        )
    };
    (count >= 0).then_some(count as i32)
}

/// An interruption is a wait that found nothing; any other error is there to stay.
fn served(waited: Result<usize, Errno>) -> io::Result<usize> {
    match waited {
        Err(Errno::EINTR) => Ok(0),
        waited => Ok(waited?),
    }
}
