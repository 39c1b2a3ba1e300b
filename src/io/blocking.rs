//! Helper threads for what the kernel cannot do without blocking.
//!
//! Jobs go out through a lock-free queue and a semaphore eventfd; results come back through another
//! queue, and through the driver's wake eventfd if, and only if, the driver sleeps. Threads are
//! started when all others are busy, un-pinned and with all signals blocked, and end with the driver.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::thread::{self, JoinHandle};

use crossbeam_queue::SegQueue;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, SigmaskHow};

use super::config::DriverConfig;
use super::op::{Completion, Request, Sink};
use super::table::Key;
use crate::cpu::{self, CpuSet};

enum Job {
    Operation(Key, SendRequest),
    Call(Box<dyn FnOnce() + Send>),
}

/// A request on its way to a helper thread.
struct SendRequest(Request);

// SAFETY: the addresses in a request stay valid and unused until its completion, which is after the
// helper thread's last use (`op::Payload`).
unsafe impl Send for SendRequest {}

struct Shared {
    jobs: SegQueue<Job>,
    done: SegQueue<(Key, i32)>,
    /// One token per sleeping thread to be woken.
    tokens: EventFd,
    /// Threads that sleep, or are about to, and have no token on its way.
    idle: AtomicUsize,
    stopping: AtomicBool,
    /// The driver sleeps and wants its eventfd written.
    asleep: AtomicBool,
    wake: Arc<EventFd>,
}

pub(crate) struct BlockingPool {
    shared: Option<Arc<Shared>>,
    threads: Vec<JoinHandle<()>>,
    max_threads: usize,
    affinity: Option<CpuSet>,
    wake: Arc<EventFd>,
    in_flight: usize,
}

impl BlockingPool {
    pub(crate) fn new(config: &DriverConfig, wake: Arc<EventFd>) -> Self {
        BlockingPool {
            shared: None,
            threads: Vec::new(),
            max_threads: config.blocking_threads,
            affinity: config.helper_affinity,
            wake,
            in_flight: 0,
        }
    }

    pub(crate) fn start(&mut self, key: Key, request: Request) -> io::Result<()> {
        self.send(Job::Operation(key, SendRequest(request)))?;
        self.in_flight += 1;
        Ok(())
    }

    pub(crate) fn call(&mut self, job: Box<dyn FnOnce() + Send>) -> io::Result<()> {
        self.send(Job::Call(job))
    }

    fn send(&mut self, job: Job) -> io::Result<()> {
        let shared = match &self.shared {
            Some(shared) => shared.clone(),
            None => {
                let shared = Arc::new(Shared::new(self.wake.clone())?);
                self.shared.insert(shared).clone()
            }
        };
        let busy = shared.idle.load(Ordering::SeqCst) == 0;
        if busy && self.threads.len() < self.max_threads {
            match self.spawn(shared.clone()) {
                Ok(thread) => self.threads.push(thread),
                Err(error) if self.threads.is_empty() => return Err(error),
                Err(error) => tracing::warn!(%error, "cannot start another I/O helper thread"),
            }
        }
        shared.jobs.push(job);
        fence(Ordering::SeqCst);
        shared.wake_one();
        Ok(())
    }

    fn spawn(&self, shared: Arc<Shared>) -> io::Result<JoinHandle<()>> {
        let affinity = self.affinity;
        // The new thread inherits the mask: signals are for the program's own threads.
        let old = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        let name = format!("corespun-io-{}", self.threads.len());
        let spawned = thread::Builder::new().name(name).spawn(move || {
            if let Some(cpus) = affinity
                && let Err(error) = cpu::set_current_affinity(&cpus)
            {
                tracing::warn!(%error, "cannot un-pin an I/O helper thread");
            }
            shared.work();
        });
        old.thread_set_mask()?;
        spawned
    }

    /// Whether no operation is in flight here.
    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight == 0
    }

    /// Leaves threads and queues alone in a forked child, which has only their memory.
    pub(crate) fn leave_to_parent(&mut self) {
        std::mem::forget(std::mem::take(&mut self.threads));
        std::mem::forget(self.shared.take());
        self.in_flight = 0;
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.in_flight == 0
            || self
                .shared
                .as_ref()
                .is_none_or(|shared| shared.done.is_empty())
    }

    /// Takes the results that have come back.
    pub(crate) fn reap(&mut self, sink: &mut Sink<'_>) {
        if self.in_flight == 0 {
            return;
        }
        let shared = self.shared.as_ref().expect("made by the first job");
        while let Some((key, result)) = shared.done.pop() {
            self.in_flight -= 1;
            sink.complete(key, Completion { result, flags: 0 }, false);
        }
    }

    /// Before the driver blocks: asks for its eventfd to be written. False if a result is here
    /// already, and blocking would miss it.
    pub(crate) fn announce_sleep(&self) -> bool {
        if self.in_flight == 0 {
            return true;
        }
        let shared = self.shared.as_ref().expect("made by the first job");
        shared.asleep.store(true, Ordering::SeqCst);
        // Pairs with the fence in `Shared::finish`: either it sees the flag or this sees the result.
        fence(Ordering::SeqCst);
        shared.done.is_empty()
    }

    pub(crate) fn retract(&self) {
        if let Some(shared) = &self.shared {
            shared.asleep.store(false, Ordering::Relaxed);
        }
    }

    /// Ends the threads after the jobs that are queued.
    pub(crate) fn stop(&mut self) {
        let Some(shared) = self.shared.take() else {
            return;
        };
        shared.stopping.store(true, Ordering::SeqCst);
        let _ = shared.tokens.write(self.threads.len() as u64);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("an I/O helper thread panicked");
            }
        }
    }
}

impl Shared {
    fn new(wake: Arc<EventFd>) -> io::Result<Self> {
        Ok(Shared {
            jobs: SegQueue::new(),
            done: SegQueue::new(),
            tokens: EventFd::from_flags(EfdFlags::EFD_SEMAPHORE | EfdFlags::EFD_CLOEXEC)?,
            idle: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            wake,
        })
    }

    /// Takes back one announcement of sleep; false if there is none without a token.
    fn claim_idle(&self) -> bool {
        self.idle
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
            .is_ok()
    }

    fn wake_one(&self) {
        if self.claim_idle() {
            let _ = self.tokens.write(1);
        }
    }

    /// The life of a helper thread.
    fn work(&self) {
        loop {
            while let Some(job) = self.jobs.pop() {
                self.run(job);
            }
            if self.stopping.load(Ordering::SeqCst) {
                return;
            }
            self.idle.fetch_add(1, Ordering::SeqCst);
            // Pairs with the fence in `send`: either it sees this thread idle or this sees the job.
            fence(Ordering::SeqCst);
            let work_came = !self.jobs.is_empty() || self.stopping.load(Ordering::SeqCst);
            if work_came && self.claim_idle() {
                continue;
            }
            // Asleep, or a token for this thread is on its way: take it. Interruptions cannot be,
            // signals are blocked; any other failure only makes the thread look again.
            let _ = self.tokens.read();
        }
    }

    fn run(&self, job: Job) {
        match job {
            Job::Operation(key, request) => {
                let result = perform(&request.0);
                self.done.push((key, result));
                fence(Ordering::SeqCst);
                if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::AcqRel)
                {
                    let _ = self.wake.write(1);
                }
            }
            Job::Call(call) => call(),
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
    // SAFETY: whoever built the request keeps its addresses and descriptors valid until the result
    // has been delivered (`op::Payload`).
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
            Request::Open { path, flags, mode } => libc::open(path, flags, mode).into(),
            Request::Stat { fd, out } => {
                let mask = libc::STATX_BASIC_STATS | libc::STATX_BTIME;
                libc::statx(fd, c"".as_ptr(), libc::AT_EMPTY_PATH, mask, out).into()
            }
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
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap());
        let mut pool = BlockingPool::new(&DriverConfig::new(), wake.clone());
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
        // The result is here, and the helper thread has looked whether somebody sleeps.
        while pool.is_quiet() || pool.shared.as_ref().unwrap().idle.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        assert!(!pool.announce_sleep());
        pool.retract();
        assert!(
            wake.read().is_err(),
            "the driver was awake: no eventfd is written"
        );

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
        pool.stop();
    }
}
