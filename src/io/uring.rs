//! The io_uring back-end: operations become ring entries, the loop reaps their completions.
//!
//! Entries queue in the submission ring and go to the kernel with the next turn, one system call for
//! the lot. What does not fit waits in `backlog`, so that starting an operation cannot fail. With
//! `DEFER_TASKRUN` the kernel does its completion work only when this thread enters it, and says in
//! a flag that there is some: a turn without that flag and without new entries makes no system call.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use io_uring::squeue::Flags;
use io_uring::types::{Fd, Fixed, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, Probe, Submitter, cqueue, opcode, squeue};

use super::blocking::BlockingOps;
use super::config::{DriverConfig, DriverError};
use super::fixed::Tables;
use super::op::{Completion, Ending, Request, Sink, Slot};
use super::table::Key;
use super::wake::WakeFd;

/// Where a relative path begins.
const HERE: Fd = Fd(libc::AT_FDCWD);

/// Tags of entries that are not operations.
const WAKE: u64 = u64::MAX;
const CANCEL: u64 = u64::MAX - 1;
const TRIAL: u64 = u64::MAX - 2;
/// The place that no key has, with another generation than `WAKE`.
const SHARED: u64 = u64::MAX - (1 << 32);

/// So many entries of one turn are taken for a part of a batch,
const MANY: usize = 4;
/// which is whole when there are so many: a system call is a small part of their cost then.
const FULL: usize = 32;

pub(crate) struct Uring {
    pub(super) ring: IoUring,
    pub(super) fixed: Tables,
    pub(super) backlog: VecDeque<squeue::Entry>,
    /// The user data of the entries in the submission ring that the kernel has not taken.
    unsubmitted: VecDeque<u64>,
    /// How many entries were in the submission ring at the last turn.
    seen: usize,
    probe: Probe,
    wake: WakeFd,
    wake_armed: bool,
    /// The kernel has multi-shot polls (Linux 5.13).
    wake_multi: bool,
    /// The eventfd was seen readable, and drained, since the last park.
    woken: bool,
    /// A wait for the set is in the ring's hands.
    shared_armed: bool,
    /// The set was seen readable since it was last looked at.
    shared_ready: bool,
}

impl Uring {
    pub(crate) fn new(config: &DriverConfig, wake: WakeFd) -> Result<Self, DriverError> {
        let ring = build(config.entries).map_err(DriverError::IoUringRefused)?;
        if !ring.params().is_feature_ext_arg() {
            return Err(DriverError::IoUringTooOld("waits with a time limit"));
        }
        if !ring.params().is_feature_nodrop() {
            return Err(DriverError::IoUringTooOld(
                "completions that are never dropped",
            ));
        }
        let mut probe = Probe::new();
        ring.submitter()
            .register_probe(&mut probe)
            .map_err(DriverError::IoUringRefused)?;
        let mut uring = Uring {
            ring,
            fixed: Tables::default(),
            backlog: VecDeque::new(),
            unsubmitted: VecDeque::new(),
            seen: 0,
            probe,
            wake,
            wake_armed: false,
            wake_multi: true,
            woken: false,
            shared_armed: false,
            shared_ready: false,
        };
        uring.try_out().map_err(DriverError::IoUringRefused)?;
        Ok(uring)
    }

    /// Has the kernel run an entry that does nothing: a filter may permit to make a ring and refuse
    /// to enter it.
    fn try_out(&mut self) -> io::Result<()> {
        self.push(opcode::Nop::new().build().user_data(TRIAL));
        // Signals and shortages pass; a thousand of them in a row do not.
        for _ in 0..1000 {
            self.enter(|submitter| submitter.submit_and_wait(1))?;
            if let Some(done) = self.ring.completion().next() {
                debug_assert_eq!(done.user_data(), TRIAL);
                return Ok(());
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Starts the operation `key`, on a helper thread if this kernel's ring does not know it.
    pub(crate) fn start(
        &mut self,
        key: Key,
        request: Request,
        blocking: &mut BlockingOps,
    ) -> io::Result<()> {
        let entry = entry_of(&request).user_data(key.to_bits());
        if !self.probe.is_supported(entry.get_opcode() as u8) {
            return blocking.start(key, request);
        }
        self.push(entry);
        Ok(())
    }

    /// Arms a wait for readiness: a one-shot one, or one that lasts and tells of edges.
    pub(crate) fn watch(&mut self, key: Key, fd: RawFd, mask: i16, lasting: bool) {
        self.push(
            opcode::PollAdd::new(Fd(fd), mask as u32)
                .multi(lasting)
                .build()
                .user_data(key.to_bits()),
        );
    }

    /// Has the epoll set of the shared descriptors end the ring's waits too, while there are other
    /// things to wait for; it stays in the set's hands otherwise.
    pub(crate) fn watch_shared(&mut self, set: RawFd) {
        if !self.shared_armed {
            self.shared_armed = true;
            let entry = opcode::PollAdd::new(Fd(set), libc::POLLIN as u32).build();
            self.push(entry.user_data(SHARED));
        }
    }

    pub(crate) fn is_shared_armed(&self) -> bool {
        self.shared_armed
    }

    /// Whether the set should be looked at.
    pub(crate) fn take_shared(&mut self) -> bool {
        std::mem::take(&mut self.shared_ready)
    }

    pub(crate) fn cancel(&mut self, key: Key) {
        self.push(
            opcode::AsyncCancel::new(key.to_bits())
                .build()
                .user_data(CANCEL),
        );
    }

    /// Cancels waits for readiness and has the kernel let go of their files at once: a listener's
    /// address is free, and a stream's peer is told, when the last descriptor is closed, and not with
    /// the next turn. The completions are for that.
    pub(crate) fn end_watches(&mut self, keys: impl Iterator<Item = Key>) {
        keys.for_each(|key| self.cancel(key));
        loop {
            let entries = self.ring.submission().len() as u32;
            // The kernel gives a cancelled wait up in its deferred work, which only an enter that asks
            // for completions runs.
            let flags = EnterFlags::GETEVENTS.bits();
            // SAFETY: no argument goes with these flags.
            let call = |submitter: &Submitter<'_>| unsafe {
                submitter.enter::<libc::sigset_t>(entries, 0, flags, None)
            };
            let waiting = self.backlog.len();
            if self.enter(call).is_err() {
                // The next turn meets the same error.
                return;
            }
            self.flush_backlog();
            if self.backlog.len() == waiting {
                return;
            }
        }
    }

    /// Whether the kernel has not seen this operation.
    pub(crate) fn holds_back(&self, key: Key) -> bool {
        let waiting = self.backlog.iter().map(squeue::Entry::get_user_data);
        let mut unseen = self.unsubmitted.iter().copied().chain(waiting);
        unseen.any(|data| data == key.to_bits())
    }

    pub(crate) fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: as in `flush_backlog`.
        let full =
            !self.backlog.is_empty() || unsafe { self.ring.submission().push(&entry) }.is_err();
        if full {
            self.backlog.push_back(entry);
        } else {
            self.unsubmitted.push_back(entry.get_user_data());
        }
    }

    /// Moves waiting entries into the ring as far as there is room, a chain as a whole.
    pub(super) fn flush_backlog(&mut self) {
        let mut queue = self.ring.submission();
        while !self.backlog.is_empty() {
            let linked = self.backlog.iter().take_while(|entry| is_linked(entry));
            let length = linked.count() + 1;
            if queue.capacity() - queue.len() < length {
                break;
            }
            for entry in self.backlog.drain(..length) {
                // SAFETY: the entry's memory and descriptor are owned by a payload, or a watch's
                // owner, that lives until its completion (`op`).
                let pushed = unsafe { queue.push(&entry) };
                debug_assert!(pushed.is_ok(), "there was room");
                self.unsubmitted.push_back(entry.get_user_data());
            }
        }
    }

    /// Makes one system call. What passes by itself needs no more than another turn; any other error
    /// is there to stay.
    fn enter(&mut self, call: impl FnOnce(&Submitter<'_>) -> io::Result<usize>) -> io::Result<()> {
        let entered = call(&self.ring.submitter());
        let left = self.ring.submission().len();
        match left {
            0 => self.unsubmitted.clear(),
            _ => {
                let taken = self.unsubmitted.len().saturating_sub(left);
                self.unsubmitted.drain(..taken);
            }
        }
        match entered {
            Err(error) if !passes(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Takes the keys of all operations that the kernel has not seen: nothing more is submitted.
    pub(crate) fn take_unsubmitted(&mut self) -> impl Iterator<Item = Key> {
        let waiting = self.backlog.drain(..).map(|entry| entry.get_user_data());
        let all: Vec<u64> = self.unsubmitted.drain(..).chain(waiting).collect();
        all.into_iter()
            .filter(|data| *data < TRIAL)
            .map(Key::from_bits)
    }

    /// Leaves the ring to the parent of this process, whose mappings are not here: the place where
    /// they were may be another's, so nothing is unmapped.
    pub(crate) fn leave_to_parent(self) {
        // SAFETY: the number is this process' own copy of the descriptor, and it is not used again.
        unsafe { libc::close(self.ring.as_raw_fd()) };
        std::mem::forget(self);
    }

    /// Whether there is nothing to submit, nothing to reap, and nothing the kernel wants to post.
    pub(crate) fn is_quiet(&mut self) -> bool {
        let queue = self.ring.submission();
        let idle = queue.is_empty() && !queue.taskrun() && !queue.cq_overflow();
        drop(queue);
        idle && self.backlog.is_empty() && self.ring.completion().is_empty()
    }

    /// # Errors
    ///
    /// If the kernel refuses to serve the ring, for good.
    pub(crate) fn poll(&mut self, sink: &mut Sink<'_>) -> io::Result<()> {
        loop {
            let queue = self.ring.submission();
            let wanted = queue.taskrun() || queue.cq_overflow();
            let length = queue.len();
            drop(queue);
            if wanted || length > 0 && !self.is_filling(length) {
                self.enter(|submitter| submitter.submit())?;
            }
            if self.backlog.is_empty() {
                break;
            }
            let before = self.backlog.len();
            self.flush_backlog();
            if self.backlog.len() == before {
                break;
            }
        }
        self.reap(sink);
        Ok(())
    }

    /// Whether the submission ring is being filled by tasks that one turn has not run all of: then
    /// the next turn's entries go to the kernel by the same system call.
    fn is_filling(&mut self, length: usize) -> bool {
        let more = length.saturating_sub(self.seen);
        let filling = more >= MANY && length < FULL && self.backlog.is_empty();
        self.seen = if filling { length } else { 0 };
        filling
    }

    pub(crate) fn park(
        &mut self,
        timeout: Option<Duration>,
        blocking: &BlockingOps,
        sink: &mut Sink<'_>,
    ) -> io::Result<()> {
        self.reap(sink);
        if !self.wake_armed {
            self.wake_armed = true;
            let entry = opcode::PollAdd::new(Fd(self.wake.as_raw_fd()), libc::POLLIN as u32)
                .multi(self.wake_multi)
                .build();
            self.push(entry.user_data(WAKE));
        }
        let awake = sink.reaped > 0 || self.woken || self.shared_ready || !self.backlog.is_empty();
        let served = if awake || timeout == Some(Duration::ZERO) || !blocking.announce_sleep() {
            self.poll(sink)
        } else {
            let waited = self.wait(timeout);
            self.reap(sink);
            waited
        };
        blocking.retract();
        self.woken = false;
        served
    }

    /// Submits, and blocks until there is a completion.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let mut short = false;
        self.enter(|submitter| {
            let waited = match timeout {
                None => submitter.submit_and_wait(1),
                Some(timeout) => {
                    let limit = Timespec::new()
                        .sec(timeout.as_secs())
                        .nsec(timeout.subsec_nanos());
                    submitter.submit_with_args(1, &SubmitArgs::new().timespec(&limit))
                }
            };
            let errno = waited.as_ref().err().and_then(io::Error::raw_os_error);
            short = matches!(errno, Some(libc::EAGAIN | libc::ENOMEM));
            waited
        })?;
        if short {
            // The kernel is short of memory, and that ends no sooner for being asked without pause.
            let pause = Duration::from_millis(1);
            std::thread::sleep(timeout.map_or(pause, |timeout| timeout.min(pause)));
        }
        Ok(())
    }

    /// Takes the completions that are there; no system call.
    pub(crate) fn reap(&mut self, sink: &mut Sink<'_>) {
        for entry in self.ring.completion() {
            let more = cqueue::more(entry.flags());
            match entry.user_data() {
                CANCEL | TRIAL => {}
                WAKE => {
                    self.wake_armed = more;
                    self.wake_multi &= entry.result() != -libc::EINVAL;
                    self.woken = true;
                    self.wake.drain();
                }
                SHARED => {
                    self.shared_armed = false;
                    self.shared_ready = true;
                }
                key => {
                    let completion = Completion {
                        result: entry.result(),
                        flags: entry.flags(),
                    };
                    sink.complete(Key::from_bits(key), completion, more);
                }
            }
        }
    }

    /// Cancels what may never end and waits until nothing is in flight.
    ///
    /// # Errors
    ///
    /// As [`poll`](Self::poll); some are in flight then.
    pub(crate) fn drain(
        &mut self,
        blocking: &mut BlockingOps,
        sink: &mut Sink<'_>,
    ) -> io::Result<()> {
        loop {
            self.poll(sink)?;
            blocking.reap(sink);
            let mut running = false;
            for (key, slot) in sink.slots.iter() {
                running |= match slot {
                    Slot::Done(_) | Slot::Multi { ended: true, .. } => false,
                    Slot::Waiting(_, Ending::ByItself) | Slot::Orphan(_, Ending::ByItself, _) => {
                        true
                    }
                    _ => {
                        self.cancel(key);
                        true
                    }
                };
            }
            if !running {
                return Ok(());
            }
            // Round again soon: a cancel can miss an operation that is just being moved to a kernel
            // worker, and helper threads do not end this wait.
            self.wait(Some(Duration::from_millis(1)))?;
        }
    }
}

/// Makes a ring with the best flags this kernel has.
fn build(entries: u32) -> io::Result<IoUring> {
    type Step = fn(&mut io_uring::Builder);
    let best: Step = |b| {
        b.setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all();
    };
    let linux_6_0: Step = |b| {
        b.setup_single_issuer()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all();
    };
    let linux_5_19: Step = |b| {
        b.setup_coop_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all();
    };
    let plain: Step = |_| {};
    let mut refusal = io::Error::from_raw_os_error(libc::EINVAL);
    for step in [best, linux_6_0, linux_5_19, plain] {
        let mut builder = IoUring::builder();
        builder
            .dontfork()
            .setup_clamp()
            .setup_cqsize(entries.saturating_mul(4));
        step(&mut builder);
        match builder.build(entries) {
            Ok(ring) => return Ok(ring),
            Err(error) => refusal = error,
        }
        if refusal.raw_os_error() != Some(libc::EINVAL) {
            break;
        }
    }
    Err(refusal)
}

/// An entry for a file by its place in the ring's table, if it has one, or by its descriptor.
macro_rules! on_file {
    ($fd:expr, $place:expr, |$at:ident| $entry:expr) => {
        match $place {
            Some(place) => {
                let $at = Fixed(place);
                $entry
            }
            None => {
                let $at = Fd($fd);
                $entry
            }
        }
    };
}

fn entry_of(request: &Request) -> squeue::Entry {
    match *request {
        Request::Read {
            fd,
            ptr,
            len,
            offset,
            known,
            ..
        } => match known.buf {
            None => on_file!(fd, known.file, |at| {
                opcode::Read::new(at, ptr, len).offset(offset).build()
            }),
            Some(buf) => on_file!(fd, known.file, |at| {
                opcode::ReadFixed::new(at, ptr, len, buf)
                    .offset(offset)
                    .build()
            }),
        },
        Request::Write {
            fd,
            ptr,
            len,
            offset,
            known,
            ..
        } => match known.buf {
            None => on_file!(fd, known.file, |at| {
                opcode::Write::new(at, ptr, len).offset(offset).build()
            }),
            Some(buf) => on_file!(fd, known.file, |at| {
                opcode::WriteFixed::new(at, ptr, len, buf)
                    .offset(offset)
                    .build()
            }),
        },
        Request::Sync { fd, data_only } => {
            let flags = if data_only {
                FsyncFlags::DATASYNC
            } else {
                FsyncFlags::empty()
            };
            opcode::Fsync::new(Fd(fd)).flags(flags).build()
        }
        Request::Allocate {
            fd,
            mode,
            offset,
            len,
        } => opcode::Fallocate::new(Fd(fd), len)
            .offset(offset)
            .mode(mode)
            .build(),
        Request::WillNeed { fd, offset, len } => {
            opcode::Fadvise::new(Fd(fd), len.into(), libc::POSIX_FADV_WILLNEED)
                .offset(offset)
                .build()
        }
        Request::Truncate { fd, len } => opcode::Ftruncate::new(Fd(fd), len).build(),
        Request::Open { path, flags, mode } => opcode::OpenAt::new(HERE, path)
            .flags(flags)
            .mode(mode)
            .build(),
        Request::Stat {
            fd,
            path,
            flags,
            out,
        } => opcode::Statx::new(Fd(fd), path, out.cast())
            .flags(flags)
            .mask(libc::STATX_BASIC_STATS | libc::STATX_BTIME)
            .build(),
        Request::ReadVectored {
            fd,
            parts,
            count,
            offset,
        } => opcode::Readv::new(Fd(fd), parts, count)
            .offset(offset)
            .build(),
        Request::WriteVectored {
            fd,
            parts,
            count,
            offset,
        } => opcode::Writev::new(Fd(fd), parts, count)
            .offset(offset)
            .build(),
        Request::Rename { from, to } => opcode::RenameAt::new(HERE, from, HERE, to).build(),
        Request::Unlink { path, flags } => opcode::UnlinkAt::new(HERE, path).flags(flags).build(),
        Request::MakeDir { path, mode } => opcode::MkDirAt::new(HERE, path).mode(mode).build(),
        Request::Symlink { target, link } => opcode::SymlinkAt::new(HERE, target, link).build(),
        Request::Link { from, to } => opcode::LinkAt::new(HERE, from, HERE, to).build(),
    }
}

/// Interruptions, time limits and passing shortages need no more than another turn.
fn passes(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINTR | libc::ETIME | libc::EAGAIN | libc::EBUSY | libc::ENOMEM)
    )
}

/// Whether the next entry belongs to the same chain.
pub(super) fn is_linked(entry: &squeue::Entry) -> bool {
    flags_of(entry).intersects(Flags::IO_LINK | Flags::IO_HARDLINK)
}

pub(super) fn flags_of(entry: &squeue::Entry) -> Flags {
    const { assert!(size_of::<squeue::Entry>() == 64) };
    // SAFETY: an entry is the kernel's `struct io_uring_sqe` of 64 bytes, as its type says, whose
    // second one are the flags (`linux/io_uring.h`).
    Flags::from_bits_retain(unsafe { *std::ptr::from_ref(entry).cast::<u8>().add(1) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_of_an_entry_are_where_the_kernel_has_them() {
        let nop = || opcode::Nop::new().build();
        assert_eq!(flags_of(&nop()), Flags::empty());
        for flag in Flags::all().iter() {
            assert_eq!(flags_of(&nop().flags(flag)), flag);
        }
    }
}
