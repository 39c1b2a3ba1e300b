//! Who takes what is spawned while every worker is in `block_in_place`: one more worker, on
//! an OS thread that is not pinned.
//!
//! tokio has another thread take over the tasks of a worker that blocks. Here those stay where
//! they were placed, but what is spawned meanwhile goes to a worker that does not block, and
//! if there is none, to a spare one. It stays until the runtime ends, and has nothing to do
//! when no worker blocks.

use std::sync::{Arc, OnceLock};

use corespun::cpu;
use tokio::sync::watch;

use super::config::call;
use super::context;
use super::drive;
use super::handle::Handle;
use super::multi_thread::{EndOfIo, Worker};
use super::scheduler::Load;

/// The spare workers of a runtime, in the order they were made. None goes before the end.
#[derive(Default)]
pub(super) struct Spares(OnceLock<Box<Spare>>);

struct Spare {
    worker: Worker,
    next: Spares,
}

impl Spares {
    /// One that does not block, made with `start` if there is none and fewer than `most`.
    pub(super) fn one(
        &self,
        most: usize,
        start: impl FnOnce() -> Option<Worker>,
    ) -> Option<&Worker> {
        let (mut place, mut count) = (self, 0);
        while let Some(spare) = place.0.get() {
            if !spare.worker.load.is_blocked() {
                return Some(&spare.worker);
            }
            place = &spare.next;
            count += 1;
        }
        if count >= most {
            return None;
        }
        // Who comes second drops its own: an OS thread that has nothing to do until the
        // runtime ends.
        let spare = Spare {
            worker: start()?,
            next: Spares::default(),
        };
        let _ = place.0.set(Box::new(spare));
        place.0.get().map(|spare| &spare.worker)
    }

    /// What is counted of them.
    pub(super) fn loads(&self) -> Vec<&Arc<Load>> {
        let (mut place, mut loads) = (self, Vec::new());
        while let Some(spare) = place.0.get() {
            loads.push(&spare.worker.load);
            place = &spare.next;
        }
        loads
    }
}

/// Starts one, until `stop` says so.
pub(super) fn start(
    handle: &Handle,
    mut stop: watch::Receiver<bool>,
    io: Arc<EndOfIo>,
) -> std::io::Result<(Worker, std::thread::JoinHandle<()>)> {
    let inner = &handle.inner;
    let thread = inner
        .library
        .thread()
        .name("worker_spare")
        .batch(inner.config.event_interval)
        .build()
        .map_err(std::io::Error::other)?;
    let load = Arc::new(Load::default());
    let worker = Worker {
        thread: thread.handle(),
        load: load.clone(),
    };
    let (handle, cpus) = (handle.clone(), inner.blocking.cpus());
    let os_thread = inner.config.os_thread().spawn(move || {
        // It is started by a worker, perhaps, which is pinned.
        if let Some(cpus) = cpus
            && let Err(error) = cpu::set_current_affinity(&cpus)
        {
            tracing::warn!("a spare worker stays on its starter's cores: {error}");
        }
        let _io = io;
        let mut runner = thread.attach();
        let config = &handle.inner.config;
        context::enter_runtime(&handle, true, || {
            let _spare = context::enter_spare(load.clone());
            call(&config.after_start);
            let stopped = stop.wait_for(|stops| *stops);
            // An error says that the runtime is gone.
            let _ = drive::block_on_runner(&handle, &mut runner, &load, stopped);
            // Its tasks, while the runtime is current.
            drop(runner);
            call(&config.before_stop);
        });
    })?;
    Ok((worker, os_thread))
}
