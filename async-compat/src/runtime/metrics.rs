//! What a runtime counts.

use std::fmt;
use std::time::Duration;

use super::handle::Handle;

/// What a runtime counts. Reading never stops a worker.
///
/// # Examples
///
/// ```
/// use corespun_compat as tokio;
///
/// let runtime = tokio::runtime::Builder::new_current_thread().build()?;
/// assert_eq!(runtime.metrics().num_workers(), 1);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct RuntimeMetrics {
    handle: Handle,
}

impl RuntimeMetrics {
    pub(super) fn new(handle: Handle) -> Self {
        RuntimeMetrics { handle }
    }

    fn worker<R>(
        &self,
        worker: usize,
        f: impl FnOnce(&corespun::thread::SpdkThread, u64) -> R,
    ) -> R {
        let workers = self.handle.inner.scheduler.workers();
        let (thread, load) = workers[worker];
        f(thread, load.parks())
    }

    /// How many workers there are; 1 for a `current_thread` runtime.
    #[must_use]
    pub fn num_workers(&self) -> usize {
        self.handle.inner.scheduler.workers().len()
    }

    /// How many tasks have begun and not ended.
    #[must_use]
    pub fn num_alive_tasks(&self) -> usize {
        let loads = self.handle.inner.scheduler.loads();
        loads.iter().map(|load| load.alive()).sum()
    }

    /// How many tasks were spawned by other threads than their worker, and wait for their
    /// first poll. No queue is shared: a task is placed when it is spawned.
    #[must_use]
    pub fn global_queue_depth(&self) -> usize {
        let loads = self.handle.inner.scheduler.loads();
        loads.iter().map(|load| load.injected()).sum()
    }

    /// How long a worker was busy.
    ///
    /// # Panics
    ///
    /// When there is no such worker.
    #[must_use]
    pub fn worker_total_busy_duration(&self, worker: usize) -> Duration {
        self.worker(worker, |thread, _| {
            let clock = thread.library().clock().clone();
            clock.duration_from(thread.stats().busy_ticks)
        })
    }

    /// How often a worker went to sleep.
    ///
    /// # Panics
    ///
    /// When there is no such worker.
    #[must_use]
    pub fn worker_park_count(&self, worker: usize) -> u64 {
        self.worker(worker, |_, parks| parks.div_ceil(2))
    }

    /// How often a worker went to sleep or woke: odd while it sleeps.
    ///
    /// # Panics
    ///
    /// When there is no such worker.
    #[must_use]
    pub fn worker_park_unpark_count(&self, worker: usize) -> u64 {
        self.worker(worker, |_, parks| parks)
    }

    /// How many helper threads there are for what blocks.
    #[must_use]
    pub fn num_blocking_threads(&self) -> usize {
        self.handle.inner.blocking.threads().0
    }

    /// How many of those have nothing to do.
    #[must_use]
    pub fn num_idle_blocking_threads(&self) -> usize {
        self.handle.inner.blocking.threads().1
    }
}

impl fmt::Display for RuntimeMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} workers, {} tasks",
            self.num_workers(),
            self.num_alive_tasks()
        )
    }
}
