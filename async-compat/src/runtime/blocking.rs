//! The helper OS threads of a runtime, for what can only block.
//!
//! They are the runtime's and not the library's, because tokio's settings are: how many
//! there may be, their names and hooks, how long they stay, and that the end of the
//! runtime waits for them.

use std::cell::Cell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use corespun::cpu::{self, CpuSet};

use super::config::{Config, call};
use super::context;
use super::handle::Handle;
use crate::task::slot::Slot;
use crate::task::{Id, JoinError, JoinHandle};

pub(super) struct BlockingPool {
    shared: Arc<Shared>,
}

struct Shared {
    config: Config,
    /// Where helpers may run. They are started by workers, which are pinned.
    cpus: Option<CpuSet>,
    queue: Mutex<Queue>,
    work: Condvar,
    ended: Condvar,
}

thread_local! {
    /// The pool that the OS thread is a helper of, by its address; zero if of none.
    static HELPS: Cell<usize> = const { Cell::new(0) };
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    closed: bool,
}

struct Job {
    run: Box<dyn FnOnce(Run) + Send>,
    handle: Handle,
}

/// What is to be done with a job.
enum Run {
    Now,
    Cancel,
}

impl BlockingPool {
    /// A pool whose helpers run on `cpus`. Starts none yet.
    pub(super) fn new(config: &Config, cpus: Option<CpuSet>) -> Self {
        BlockingPool {
            shared: Arc::new(Shared {
                config: config.clone(),
                cpus,
                queue: Mutex::default(),
                work: Condvar::new(),
                ended: Condvar::new(),
            }),
        }
    }

    /// Where helpers may run.
    #[cfg(feature = "rt-multi-thread")]
    pub(super) fn cpus(&self) -> Option<CpuSet> {
        self.shared.cpus
    }

    /// How many helpers there are, and how many of them have nothing to do.
    pub(super) fn threads(&self) -> (usize, usize) {
        let queue = self.shared.lock();
        (queue.threads, queue.idle)
    }

    #[track_caller]
    pub(super) fn spawn<F, R>(&self, handle: &Handle, func: F) -> JoinHandle<R>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Send + 'static,
    {
        let id = Id::next();
        let slot = Slot::new(id);
        let join = JoinHandle::of_slot(slot.clone());
        #[cfg(all(feature = "time", feature = "test-util"))]
        let standing = handle.inner.clock.inhibit_auto_advance();
        #[cfg(all(feature = "time", feature = "test-util"))]
        let of_job = handle.clone();
        let run = move |run| {
            let _in_task = context::enter_task(Some(id));
            let result = match run {
                Run::Now if !slot.is_aborted() => {
                    let result = catch_unwind(AssertUnwindSafe(func));
                    result.map_err(|payload| JoinError::panicked(id, payload))
                }
                _ => {
                    // What it holds is the task's, also when it is dropped, and when
                    // that panics.
                    match catch_unwind(AssertUnwindSafe(|| drop(func))) {
                        Ok(()) => Err(JoinError::cancelled(id)),
                        Err(payload) => Err(JoinError::panicked(id, payload)),
                    }
                }
            };
            slot.finish(result);
            #[cfg(all(feature = "time", feature = "test-util"))]
            if standing.end() {
                // The clock may go on: who sleeps has to see that. One that has exited
                // does not sleep.
                let _ = of_job.inner.scheduler.place().0.send_msg(|| ());
            }
        };
        let run = Box::new(run);
        let handle = handle.clone();
        if let Err(error) = self.shared.submit(Job { run, handle }) {
            panic!("OS can't spawn worker thread: {error}");
        }
        join
    }

    /// Refuses what comes from now on. What waits is still run, if there is a helper: it
    /// was spawned before the end, and tokio runs it too. Says whether it was open.
    pub(super) fn close(&self) -> bool {
        let mut queue = self.shared.lock();
        if std::mem::replace(&mut queue.closed, true) {
            return false;
        }
        let waiting = match queue.threads {
            0 => std::mem::take(&mut queue.jobs),
            _ => VecDeque::new(),
        };
        drop(queue);
        self.shared.work.notify_all();
        waiting.into_iter().for_each(Job::cancel);
        true
    }

    /// Waits for the helpers to end, except one that waits itself.
    pub(super) fn wait(&self, until: Option<Instant>) {
        let own = usize::from(HELPS.get() == Arc::as_ptr(&self.shared).addr());
        let mut queue = self.shared.lock();
        while queue.threads > own {
            queue = match until {
                None => self.shared.ended.wait(queue),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return;
                    }
                    let waited = self.shared.ended.wait_timeout(queue, left);
                    waited
                        .map(|waited| waited.0)
                        .map_err(|error| PoisonError::new(error.into_inner().0))
                }
            }
            .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for BlockingPool {
    fn drop(&mut self) {
        self.close();
    }
}

impl Job {
    fn run(self) {
        let _current = context::set_current(&self.handle);
        (self.run)(Run::Now);
    }

    fn cancel(self) {
        (self.run)(Run::Cancel);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // No user code runs under the lock, so a poisoned one is whole.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn submit(self: &Arc<Self>, job: Job) -> std::io::Result<()> {
        let mut queue = self.lock();
        if queue.closed {
            drop(queue);
            job.cancel();
            return Ok(());
        }
        queue.jobs.push_back(job);
        if queue.idle >= queue.jobs.len() {
            self.work.notify_one();
            return Ok(());
        }
        if queue.threads >= self.config.max_blocking_threads {
            return Ok(());
        }
        queue.threads += 1;
        drop(queue);
        let shared = self.clone();
        let started = self.config.os_thread().spawn(move || shared.serve());
        let Err(error) = started else {
            return Ok(());
        };
        let mut queue = self.lock();
        queue.threads -= 1;
        if queue.threads > 0 {
            // The others will come to it.
            return Ok(());
        }
        // Nobody would ever run it.
        let job = queue.jobs.pop_back();
        drop(queue);
        job.into_iter().for_each(Job::cancel);
        Err(error)
    }

    fn serve(self: Arc<Self>) {
        /// Counts the helper out also when a hook panics.
        struct Leave(Arc<Shared>);
        impl Drop for Leave {
            fn drop(&mut self) {
                self.0.lock().threads -= 1;
                self.0.ended.notify_all();
            }
        }
        let shared = Leave(self);
        let shared = &*shared.0;
        if let Some(cpus) = &shared.cpus
            && let Err(error) = cpu::set_current_affinity(cpus)
        {
            tracing::warn!("a helper thread stays on its starter's cores: {error}");
        }
        HELPS.set(std::ptr::from_ref(shared).addr());
        call(&shared.config.after_start);
        shared.work_until_idle();
        call(&shared.config.before_stop);
    }

    fn work_until_idle(&self) {
        let mut queue = self.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                job.run();
                queue = self.lock();
                continue;
            }
            if queue.closed {
                return;
            }
            queue.idle += 1;
            let (woken, wait) = self
                .work
                .wait_timeout(queue, self.config.keep_alive)
                .unwrap_or_else(PoisonError::into_inner);
            queue = woken;
            queue.idle -= 1;
            if wait.timed_out() && queue.jobs.is_empty() {
                return;
            }
        }
    }
}
