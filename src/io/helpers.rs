//! Helper threads, for code that blocks: one pool per library, off the reactors' cores.
//!
//! Two kinds of jobs share the threads. *Calls* are the program's (`task::spawn_blocking`,
//! `io::unblock`): how long one takes is not known, and at most [`MAX_CALLS`] run at once.
//! *Operations* are what an I/O back-end cannot do itself, a driver's buffered write for example;
//! they run beside the calls, so that calls that never end cannot keep a driver from its files or
//! from its end. Threads start when no idle one can take a job, and end after a while without any.
//!
//! A job leads to two context switches, beside which the lock of the queue is nothing; no user code
//! runs under it. A panic ends its job and no thread.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fmt, io, mem, thread};

use nix::sys::signal::{SigSet, SigmaskHow};

use crate::cpu::{CpuSet, set_current_affinity};

/// Calls that run at once, as QEMU's pool.
const MAX_CALLS: usize = 64;
/// How long a helper waits for a job before it ends, as QEMU's.
const IDLE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

/// What a job is; see the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    Operation,
    Call,
}

impl Lane {
    /// In the order in which they are served.
    const ALL: [Lane; 2] = [Lane::Operation, Lane::Call];
}

/// A handle to the pool. With the last one, idle threads end; jobs that wait are still run.
#[derive(Clone)]
pub(crate) struct Helpers(Arc<Handle>);

struct Handle(Arc<Pool>);

struct Pool {
    /// A thread inherits the mask of its starter, which is pinned when it is a reactor.
    cpus: Option<CpuSet>,
    queue: Mutex<Queue>,
    work: Condvar,
    /// The process whose threads these are: a forked child has only the memory.
    process: u32,
}

struct Queue {
    lanes: [Waiting; 2],
    /// Threads that run. Its starter counts one, which may have ended by then if the starter was
    /// kept from it for long: hence signed.
    threads: isize,
    idle: usize,
    closed: bool,
}

struct Waiting {
    jobs: VecDeque<Job>,
    running: usize,
    limit: usize,
}

impl Waiting {
    fn new(limit: usize) -> Self {
        Waiting {
            jobs: VecDeque::new(),
            running: 0,
            limit,
        }
    }

    /// Threads that this lane can use, if `more` jobs come.
    fn wants(&self, more: usize) -> usize {
        self.limit.min(self.running + self.jobs.len() + more)
    }
}

impl Queue {
    fn next(&mut self) -> Option<(Lane, Job)> {
        Lane::ALL.into_iter().find_map(|lane| {
            let waiting = &mut self.lanes[lane as usize];
            if waiting.running == waiting.limit {
                return None;
            }
            let job = waiting.jobs.pop_front()?;
            waiting.running += 1;
            Some((lane, job))
        })
    }

    /// Whether a thread will come to a job of `lane`: it may never come back from a call, and calls wait
    /// for each other anyway.
    fn is_served(&self, lane: Lane) -> bool {
        let lost = match lane {
            Lane::Operation => self.lanes[Lane::Call as usize].running,
            Lane::Call => 0,
        };
        self.threads > isize::try_from(lost).unwrap_or(isize::MAX)
    }

    /// Whether one more job of `lane` would wait although it need not. Threads that another OS
    /// thread is starting do not count: they may never come.
    fn needs_thread_for(&self, lane: Lane) -> bool {
        let wanted: usize = Lane::ALL
            .map(|other| self.lanes[other as usize].wants(usize::from(other == lane)))
            .iter()
            .sum();
        self.threads < isize::try_from(wanted).unwrap_or(isize::MAX)
    }
}

impl Helpers {
    /// Where its threads run, if that was said.
    pub(crate) fn cpus(&self) -> Option<CpuSet> {
        self.0.0.cpus
    }

    /// A pool whose threads run on `cpus`. Starts none yet.
    pub(crate) fn new(cpus: Option<CpuSet>) -> Self {
        // Each driver bounds its own operations.
        let limits = [usize::MAX, MAX_CALLS];
        Helpers(Arc::new(Handle(Arc::new(Pool {
            cpus,
            queue: Mutex::new(Queue {
                lanes: limits.map(Waiting::new),
                threads: 0,
                idle: 0,
                closed: false,
            }),
            work: Condvar::new(),
            process: std::process::id(),
        }))))
    }

    /// Runs `job` on a helper thread. Any thread may call this.
    ///
    /// # Errors
    ///
    /// If no helper thread can be started, and there is none, or for an operation none that is not in
    /// a call; and in a forked child of the process that made the pool. The job is dropped then.
    pub(crate) fn run(&self, lane: Lane, job: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let pool = &self.0.0;
        if pool.is_forked() {
            return Err(of_the_parent());
        }
        let mut refused = None;
        let mut queue = pool.lock();
        if queue.needs_thread_for(lane) {
            drop(queue);
            let started = pool.start();
            queue = pool.lock();
            match started {
                Ok(()) => queue.threads += 1,
                // Nothing was queued yet, so that this takes no other caller's job away.
                Err(error) if !queue.is_served(lane) => {
                    drop(queue);
                    return Err(error);
                }
                Err(error) => refused = Some(error),
            }
        }
        queue.lanes[lane as usize].jobs.push_back(Box::new(job));
        if queue.idle > 0 {
            pool.work.notify_one();
        }
        drop(queue);
        if let Some(error) = refused {
            tracing::warn!(%error, "cannot start another helper thread");
        }
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn idle_threads(&self) -> usize {
        self.0.0.lock().idle
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // In a child there is no helper thread to tell, and the lock may be held for ever.
        if !self.0.is_forked() {
            self.0.lock().closed = true;
            self.0.work.notify_all();
        }
    }
}

impl Pool {
    fn is_forked(&self) -> bool {
        std::process::id() != self.process
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // No user code runs under the lock, so a poisoned one is whole.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(self: &Arc<Self>) -> io::Result<()> {
        // The new thread inherits the mask: signals are for the program's own threads.
        let old = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        let pool = self.clone();
        let started = thread::Builder::new()
            .name("corespun-helper".into())
            .spawn(move || pool.serve());
        old.thread_set_mask()?;
        started.map(drop)
    }

    /// The life of a helper thread.
    fn serve(&self) {
        if let Some(cpus) = &self.cpus
            && let Err(error) = set_current_affinity(cpus)
        {
            tracing::warn!(%error, "a helper thread stays on its starter's cores");
        }
        let mut queue = self.lock();
        loop {
            if let Some((lane, job)) = queue.next() {
                drop(queue);
                contain(job);
                queue = self.lock();
                queue.lanes[lane as usize].running -= 1;
                continue;
            }
            if queue.closed {
                break;
            }
            queue.idle += 1;
            let (woken, wait) = self
                .work
                .wait_timeout(queue, IDLE)
                .unwrap_or_else(PoisonError::into_inner);
            queue = woken;
            queue.idle -= 1;
            if wait.timed_out() && queue.lanes.iter().all(|lane| lane.jobs.is_empty()) {
                break;
            }
        }
        queue.threads -= 1;
    }
}

#[cold]
fn of_the_parent() -> io::Error {
    io::Error::other(
        "the helper threads are those of the parent process: after a fork, exec, or make a library or \
         driver of the child's own",
    )
}

/// A job ends, however it does. The waiter for its result hears of that from the job itself.
fn contain(job: Job) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(job)) {
        tracing::error!("a job of a helper thread panicked, or a destructor in it");
        if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            mem::forget(second);
        }
    }
}

/// The same pool.
impl PartialEq for Helpers {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Helpers {}

impl fmt::Debug for Helpers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = self.0.0.lock();
        f.debug_struct("Helpers")
            .field("threads", &queue.threads)
            .field("idle", &queue.idle)
            .finish_non_exhaustive()
    }
}
