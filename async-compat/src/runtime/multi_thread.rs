//! The workers of a `multi_thread` runtime: reactors on OS threads of their own.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use corespun::cpu::{self, CpuSet};
use corespun::reactor::{ReactorMode, ReactorSeat, Reactors, SeatError, StartError, StartedSeat};
use corespun::thread::{SpdkThread, ThreadLib};

use tokio::sync::watch;

use super::Placement;
use super::config::{Config, call};
use super::context;
use super::handle::Handle;
use super::scheduler::Load;
use super::spare::{self, Spares};

pub(super) struct Workers {
    reactors: Reactors,
    workers: Box<[Worker]>,
    placement: Placement,
    /// Where the search for a place begins.
    next: AtomicUsize,
    spares: Spares,
    running: Mutex<Running>,
}

pub(super) struct Worker {
    pub(super) thread: SpdkThread,
    pub(super) load: Arc<Load>,
}

/// Shared by the workers: the last of them ends what sockets of the runtime wait for, when
/// no task is left that could take that for an error of its peer's.
pub(super) struct EndOfIo(corespun::io::Home);

impl Drop for EndOfIo {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// The workers that have not ended.
#[derive(Default)]
struct Running {
    os_threads: Vec<std::thread::JoinHandle<()>>,
    /// While they run: what spare ones need.
    for_spares: Option<(watch::Sender<bool>, Arc<EndOfIo>)>,
}

/// How many tasks more than another a worker may have before it gives away what it
/// spawns: the helpers of a task stay beside it, and talk with it without a message between
/// cores. What accepts connections gives them away from the first one on.
const SLACK: usize = 128;

/// The seats of workers that do not run yet.
pub(super) struct Seats(Vec<ReactorSeat>);

impl Workers {
    /// Makes the workers; they begin to run with [`Workers::start`].
    pub(super) fn new(
        library: &ThreadLib,
        config: &Config,
        count: usize,
        mode: ReactorMode,
    ) -> io::Result<(Self, Seats)> {
        let loads: Arc<[Arc<Load>]> = (0..count).map(|_| Arc::default()).collect();
        let park = |hook: &Option<super::config::Callback>| {
            let (loads, hook) = (loads.clone(), hook.clone());
            move |core: usize| {
                loads[core].note_park();
                call(&hook);
            }
        };
        let (reactors, seats) = Reactors::builder()
            .lcores(places(count)?)
            .mode(mode)
            .sleep_hooks(park(&config.before_park), park(&config.after_unpark))
            .build(library)
            .map_err(start_error)?;
        let worker = |core: usize| {
            let thread = reactors
                .thread()
                .name(format!("worker_{core}"))
                .cpumask(CpuSet::single(core))
                .batch(config.event_interval)
                .create()
                .map_err(io::Error::other)?;
            let load = loads[core].clone();
            Ok(Worker { thread, load })
        };
        let workers: io::Result<Box<[Worker]>> = (0..count).map(worker).collect();
        let workers = Workers {
            workers: workers?,
            reactors,
            placement: config.placement,
            next: AtomicUsize::new(0),
            spares: Spares::default(),
            running: Mutex::default(),
        };
        Ok((workers, Seats(seats)))
    }

    /// Starts the OS threads, and waits until each of them has its driver: one without would
    /// refuse whatever is placed there.
    pub(super) fn start(&self, handle: &Handle, seats: Seats) -> io::Result<()> {
        let mut running = Vec::new();
        for worker in self
            .workers
            .iter()
            .filter(|_| handle.inner.config.enable_io)
        {
            let home = handle.inner.home.clone();
            // On the worker, with its driver. Not if it never runs.
            let _ = worker.thread.send_msg(move || {
                let driver = corespun::io::Driver::current().map(|driver| driver.handle());
                if let Some(Ok(driver)) = driver {
                    home.serve(&driver);
                }
            });
        }
        let (tell, told) = mpsc::channel();
        let io = Arc::new(EndOfIo(handle.inner.home.clone()));
        let mut result = Ok(());
        for seat in seats.0 {
            let (of_worker, tell, io) = (handle.clone(), tell.clone(), io.clone());
            let os_thread = handle.inner.config.os_thread();
            let started = os_thread.spawn(move || {
                let _io = io;
                let index = seat.core();
                let started = match seat.start() {
                    Ok(seat) => {
                        let _ = tell.send(Ok(()));
                        seat
                    }
                    Err(error) => return drop(tell.send(Err(error))),
                };
                drop(tell);
                run(&of_worker, index, started);
            });
            match started {
                Ok(os_thread) => running.push(os_thread),
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        drop(tell);
        for started in told {
            result = result.and(started.map_err(seat_error));
        }
        if result.is_err() {
            self.reactors.stop();
        }
        let mut place = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        // In any case: the runtime waits for them when it is dropped.
        place.os_threads = running;
        place.for_spares = result.is_ok().then(|| (watch::Sender::new(false), io));
        result
    }

    pub(super) fn all(&self) -> Vec<(&SpdkThread, &Arc<Load>)> {
        let workers = self.workers.iter();
        workers.map(|one| (&one.thread, &one.load)).collect()
    }

    /// The place of a task that is spawned now.
    pub(super) fn place(&self) -> (&SpdkThread, &Arc<Load>) {
        let here = context::worker_index().filter(|&index| {
            // The index may be one of another runtime.
            self.workers
                .get(index)
                .is_some_and(|one| one.thread.is_current())
        });
        let index = match (self.placement, here) {
            (Placement::Local, Some(here)) => here,
            (Placement::LeastLoaded, Some(here)) => {
                let other = self.another(here);
                let load = |index: usize| self.workers[index].load.alive();
                let slack = if context::accepts() { 0 } else { SLACK };
                match load(here) > load(other) + slack {
                    true => other,
                    false => here,
                }
            }
            (Placement::LeastLoaded, None) => {
                // Few are looked at one and all; of many, some.
                let first = self.next_worker();
                let looked_at = self.workers.len().min(8);
                let looked_at = (first..first + looked_at).map(|index| index % self.workers.len());
                let least = looked_at.min_by_key(|&index| self.workers[index].load.alive());
                least.unwrap_or(first)
            }
            (Placement::RoundRobin | Placement::Local, _) => self.next_worker(),
        };
        let worker = &self.workers[index];
        (&worker.thread, &worker.load)
    }

    /// The place of a task that is spawned now, when the worker it was meant for is in
    /// `block_in_place`.
    pub(super) fn place_beside(&self, handle: &Handle) -> Option<(&SpdkThread, &Arc<Load>)> {
        let first = self.next_worker();
        let in_turn = self.workers.iter().cycle().skip(first);
        let free = in_turn
            .take(self.workers.len())
            .find(|one| !one.load.is_blocked());
        let free = free.or_else(|| {
            let most = handle.inner.config.max_blocking_threads;
            self.spares.one(most, || self.start_spare(handle))
        });
        free.map(|worker| (&worker.thread, &worker.load))
    }

    fn start_spare(&self, handle: &Handle) -> Option<Worker> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let (stop, io) = running.for_spares.as_ref()?;
        match spare::start(handle, stop.subscribe(), io.clone()) {
            Ok((worker, os_thread)) => {
                running.os_threads.push(os_thread);
                Some(worker)
            }
            Err(error) => {
                tracing::warn!("no spare worker while all others block: {error}");
                None
            }
        }
    }

    pub(super) fn loads(&self) -> Vec<&Arc<Load>> {
        let mut loads = self.spares.loads();
        loads.extend(self.workers.iter().map(|one| &one.load));
        loads
    }

    fn next_worker(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed) % self.workers.len()
    }

    /// One of the others, in turn. The same, if there is only one.
    fn another(&self, index: usize) -> usize {
        match self.workers.len() {
            1 => index,
            2 => 1 - index,
            count => {
                let step = 1 + self.next.fetch_add(1, Ordering::Relaxed) % (count - 1);
                (index + step) % count
            }
        }
    }

    pub(super) fn stop(&self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let for_spares = running.for_spares.take();
        drop(running);
        if let Some((stop, _)) = for_spares {
            stop.send_replace(true);
        }
        self.reactors.stop();
    }

    /// Waits for the OS threads to end, except for that of a worker that waits itself
    /// (in `block_in_place`): it ends when it comes back.
    pub(super) fn join(&self, until: Option<Instant>) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let os_threads = std::mem::take(&mut running.os_threads);
        drop(running);
        let here = std::thread::current().id();
        for os_thread in os_threads {
            if os_thread.thread().id() == here {
                continue;
            }
            if let Some(until) = until {
                while !os_thread.is_finished() {
                    if Instant::now() >= until {
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            // What it had to say was said when it panicked.
            let _ = os_thread.join();
        }
    }
}

/// One worker, in its OS thread.
fn run(handle: &Handle, index: usize, seat: StartedSeat) {
    let config = &handle.inner.config;
    context::enter_runtime(handle, true, || {
        let _worker = context::enter_worker(Some(index));
        call(&config.after_start);
        if let Err(error) = seat.run() {
            tracing::error!("worker {index} ended: {error}");
        }
        call(&config.before_stop);
    });
}

/// Core numbers, and the processors they are pinned to: those that the process may use,
/// in turn, from the one after the caller's.
fn places(count: usize) -> io::Result<Vec<(usize, usize)>> {
    let cpus = cpu::current_affinity().map_err(io::Error::other)?;
    let cpus: Vec<usize> = cpus.iter().collect();
    let here = nix::sched::sched_getcpu().unwrap_or(0);
    let first = cpus.iter().position(|&cpu| cpu > here).unwrap_or(0);
    let cpu = |core: usize| cpus[(first + core) % cpus.len()];
    Ok((0..count).map(|core| (core, cpu(core))).collect())
}

fn seat_error(error: SeatError) -> io::Error {
    match error {
        SeatError::Start(error) => start_error(error),
        other => io::Error::other(other),
    }
}

fn start_error(error: StartError) -> io::Error {
    match error {
        StartError::Io(error) => error,
        other => io::Error::other(other),
    }
}
