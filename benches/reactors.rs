//! What reactors cost, in nanoseconds per operation: medians of several runs.
//!
//! ```text
//! cargo bench --bench reactors
//! ```
//!
//! Run it on a quiet machine, and compare only figures that one run printed together.
//! The floors are what crosses cores without any runtime, for reactors that poll and for
//! those that sleep.

mod measure;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use corespun::cpu::{self, CpuSet};
use corespun::reactor::scheduler::{CoreSnapshot, Dynamic, Scheduler, Snapshot, ThreadSnapshot};
use corespun::reactor::{ReactorMode, Reactors};
use corespun::task::block_on;
use corespun::thread::{SpdkThread, ThreadLib};
use measure::{line_round_trip, per_op};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

const RUNS: usize = 7;

fn main() {
    // `cargo test --benches` does not pass this: then one short run shows that it works.
    let scale = if std::env::args().any(|arg| arg == "--bench") {
        100
    } else {
        1
    };
    let cores: Vec<usize> = cpu::available()
        .expect("the cores of this process")
        .iter()
        .collect();
    println!(
        "{:<44} {:>10} {:>10} {:>10}",
        "ns per operation", "min", "median", "max"
    );
    let &[first, ref rest @ ..] = &cores[..] else {
        return;
    };
    let one = || Running::new(&[first], ReactorMode::Poll);
    let sleeping = || Running::new(&[first], ReactorMode::Interrupt);
    row("event to own core, depth 1", || {
        events(&one(), 1, 2_000 * scale)
    });
    row("event to own core, depth 32", || {
        events(&one(), 32, 2_000 * scale)
    });
    row("message there and back, one core", || {
        message_trips(&one(), [0, 0], 1_000 * scale)
    });
    row("message to itself, poll mode", || {
        to_itself(&one(), 2_000 * scale)
    });
    row("message to itself, interrupt mode", || {
        to_itself(&sleeping(), 2_000 * scale)
    });
    row("call between threads of one core", || {
        thread_calls(&one(), [0, 0], 500 * scale)
    });
    row("plan of `dynamic` for 1,000 threads", || plans(scale));
    row("round of `dynamic` over 1,000 threads", || {
        rounds(&one(), 2 * scale)
    });
    let &[second, ..] = rest else { return };
    row("floor: bare cache-line round trip", || {
        apart(move || line_round_trip(first, second, 2_000 * scale))
    });
    let two = || Running::new(&[first, second], ReactorMode::Poll);
    row("event round trip between cores", || {
        event_trips(&two(), 500 * scale)
    });
    row("message there and back, two cores", || {
        message_trips(&two(), [0, 1], 500 * scale)
    });
    row("call between threads of two cores", || {
        thread_calls(&two(), [0, 1], 500 * scale)
    });
    row("an idle thread to another core", || {
        moves(&two(), 20 * scale)
    });
    row("floor: bare eventfd and epoll round trip", || {
        apart(move || eventfd_trips(first, second, 50 * scale))
    });
    row("message there and back, both asleep", || {
        let two = Running::new(&[first, second], ReactorMode::Interrupt);
        message_trips(&two, [0, 1], 50 * scale)
    });
}

/// Measures in an OS thread of its own: what pins itself is not to pin all that is started
/// later.
fn apart(measure: impl FnOnce() -> f64 + Send + 'static) -> f64 {
    std::thread::spawn(measure).join().expect("it measures")
}

/// Prints the spread of several measurements.
fn row(name: &str, measure: impl Fn() -> f64) {
    let mut figures: Vec<f64> = (0..RUNS).map(|_| measure()).collect();
    figures.sort_by(f64::total_cmp);
    println!(
        "{name:<44} {:>10.1} {:>10.1} {:>10.1}",
        figures[0],
        figures[RUNS / 2],
        figures[RUNS - 1]
    );
}

/// Reactors, numbered from 0; they stop when this is dropped.
struct Running {
    reactors: Reactors,
    seats: Vec<std::thread::JoinHandle<()>>,
}

impl Running {
    fn new(cpus: &[usize], mode: ReactorMode) -> Self {
        let places = cpus.iter().copied().enumerate();
        let builder = Reactors::builder().lcores(places).mode(mode);
        let (reactors, seats) = builder.build(&ThreadLib::new()).expect("reactors");
        let run = |seat: corespun::reactor::ReactorSeat| {
            std::thread::spawn(move || seat.run().expect("a reactor"))
        };
        let seats = seats.into_iter().map(run).collect();
        let started = |core| block_on(reactors.call(core, || ())).expect("it runs");
        (0..cpus.len()).for_each(started);
        Running { reactors, seats }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.reactors.stop();
        for seat in self.seats.drain(..) {
            seat.join().expect("a reactor ends");
        }
    }
}

/// Events that send themselves again, so many at a time, as SPDK's `reactor_perf`.
fn events(running: &Running, depth: usize, count: usize) -> f64 {
    struct Shared {
        reactors: Reactors,
        left: AtomicUsize,
        told: mpsc::Sender<Instant>,
    }
    fn again(shared: Arc<Shared>) {
        let left = shared.left.load(Ordering::Relaxed);
        if left == 0 {
            let _ = shared.told.send(Instant::now());
            return;
        }
        shared.left.store(left - 1, Ordering::Relaxed);
        let next = shared.clone();
        let sent = shared.reactors.send_event(0, move || again(next));
        assert!(sent.is_ok());
    }
    let (told, tell) = mpsc::channel();
    let shared = Arc::new(Shared {
        reactors: running.reactors.clone(),
        left: AtomicUsize::new(count),
        told,
    });
    let begin = running.reactors.call(0, move || {
        let start = Instant::now();
        (0..depth).for_each(|_| again(shared.clone()));
        start
    });
    let start = block_on(begin).expect("it runs");
    let end = tell.recv().expect("the last one tells");
    (end - start).as_nanos() as f64 / count as f64
}

/// An event there that sends one back.
fn event_trips(running: &Running, count: usize) -> f64 {
    struct Shared {
        reactors: Reactors,
        left: AtomicUsize,
        told: mpsc::Sender<Instant>,
    }
    fn hop(shared: Arc<Shared>, core: usize) {
        let left = shared.left.load(Ordering::Relaxed);
        if left == 0 {
            let _ = shared.told.send(Instant::now());
            return;
        }
        shared.left.store(left - 1, Ordering::Relaxed);
        let next = shared.clone();
        let sent = shared
            .reactors
            .send_event(1 - core, move || hop(next, 1 - core));
        assert!(sent.is_ok());
    }
    let (told, tell) = mpsc::channel();
    let shared = Arc::new(Shared {
        reactors: running.reactors.clone(),
        left: AtomicUsize::new(2 * count),
        told,
    });
    let start = Instant::now();
    running
        .reactors
        .send_event(0, move || hop(shared, 0))
        .expect("it runs");
    let end = tell.recv().expect("the last one tells");
    (end - start).as_nanos() as f64 / count as f64
}

/// A thread on each of `cores`.
fn threads_on<const N: usize>(running: &Running, cores: [usize; N]) -> [SpdkThread; N] {
    cores.map(|core| {
        let thread = running.reactors.thread().cpumask(CpuSet::single(core));
        let thread = thread.create().expect("a thread");
        block_on(thread.call(|| ())).expect("it runs");
        thread
    })
}

/// A message there that sends one back, as SPDK's threads do it.
fn message_trips(running: &Running, cores: [usize; 2], count: usize) -> f64 {
    struct Shared {
        threads: [SpdkThread; 2],
        left: AtomicUsize,
        told: mpsc::Sender<Instant>,
    }
    fn hop(shared: Arc<Shared>, to: usize) {
        let left = shared.left.load(Ordering::Relaxed);
        if left == 0 {
            let _ = shared.told.send(Instant::now());
            return;
        }
        shared.left.store(left - 1, Ordering::Relaxed);
        let next = shared.clone();
        let sent = shared.threads[to].send_msg(move || hop(next, 1 - to));
        assert!(sent.is_ok());
    }
    let (told, tell) = mpsc::channel();
    let shared = Arc::new(Shared {
        threads: threads_on(running, cores),
        left: AtomicUsize::new(2 * count),
        told,
    });
    let first = shared.threads[0].clone();
    let start = Instant::now();
    let sent = first.send_msg(move || hop(shared, 1));
    assert!(sent.is_ok());
    let end = tell.recv().expect("the last one tells");
    (end - start).as_nanos() as f64 / count as f64
}

/// Messages of a thread to itself, each sent by the one before.
fn to_itself(running: &Running, count: usize) -> f64 {
    fn again(thread: SpdkThread, left: usize, told: mpsc::Sender<Instant>) {
        if left == 0 {
            let _ = told.send(Instant::now());
            return;
        }
        let next = thread.clone();
        let sent = thread.send_msg(move || again(next, left - 1, told));
        assert!(sent.is_ok());
    }
    let [thread] = threads_on(running, [0]);
    let (told, tell) = mpsc::channel();
    let itself = thread.clone();
    let begin = thread.call(move || {
        let start = Instant::now();
        again(itself, count, told);
        start
    });
    let start = block_on(begin).expect("it runs");
    let end = tell.recv().expect("the last one tells");
    (end - start).as_nanos() as f64 / count as f64
}

/// Two OS threads that sleep in an epoll of an eventfd each, and wake each other: what a
/// round trip between sleeping reactors cannot do without.
fn eventfd_trips(here: usize, there: usize, count: usize) -> f64 {
    let make = || EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd");
    let (one, other) = (Arc::new(make()), Arc::new(make()));
    let (waits, wakes) = (other.clone(), one.clone());
    let echo = std::thread::spawn(move || {
        cpu::pin_current_thread(there).expect("pinning");
        let wait = waiter(&waits);
        for _ in 0..count {
            wait();
            wakes.write(1).expect("it is not full");
        }
    });
    cpu::pin_current_thread(here).expect("pinning");
    let wait = waiter(&one);
    let start = Instant::now();
    for _ in 0..count {
        other.write(1).expect("it is not full");
        wait();
    }
    let figure = per_op(start, count);
    echo.join().expect("the echo");
    figure
}

/// Waits for an eventfd in an epoll of its own, and reads it.
fn waiter(eventfd: &EventFd) -> impl Fn() + '_ {
    let epoll = Epoll::new(EpollCreateFlags::empty()).expect("an epoll");
    let event = EpollEvent::new(EpollFlags::EPOLLIN, 0);
    epoll.add(eventfd, event).expect("it can be waited for");
    move || {
        let mut events = [EpollEvent::empty()];
        epoll.wait(&mut events, EpollTimeout::NONE).expect("a wait");
        eventfd.read().expect("it was written");
    }
}

/// A message to a thread that answers with one.
fn thread_calls(running: &Running, cores: [usize; 2], count: usize) -> f64 {
    let [asker, other] = threads_on(running, cores);
    let trips = asker.spawn(async move {
        let start = Instant::now();
        for _ in 0..count {
            other.call(|| ()).await.expect("it answers");
        }
        per_op(start, count)
    });
    block_on(trips).expect("it ends")
}

/// The arithmetic alone.
fn plans(scale: usize) -> f64 {
    let mut snapshot = Snapshot::new(0);
    for core in 0..8 {
        let mut one = CoreSnapshot::new(core, 500_000, 500_000);
        let ids = (0..125).map(|n| (core * 125 + n) as u64);
        let threads = ids.map(|id| ThreadSnapshot::new(id, core, 4_000, 1_000_000));
        one.threads.extend(threads);
        snapshot.cores.push(one);
    }
    let start = Instant::now();
    for _ in 0..scale {
        drop(std::hint::black_box(Dynamic::default().balance(&snapshot)));
    }
    per_op(start, scale)
}

/// From the request to the report, with all its events.
fn rounds(running: &Running, count: usize) -> f64 {
    let threads: Vec<_> = (0..1_000)
        .map(|_| running.reactors.thread().create().expect("a thread"))
        .collect();
    let schedulers = running.reactors.schedulers();
    block_on(schedulers.set_period(Duration::ZERO)).expect("a period");
    block_on(schedulers.set("dynamic")).expect("it is there");
    let start = Instant::now();
    for _ in 0..count {
        block_on(schedulers.run_round()).expect("a round");
    }
    let figure = per_op(start, count);
    drop(threads);
    figure
}

/// From the call to the arrival, over there and back again; this OS thread waits
/// without sleeping.
fn moves(running: &Running, count: usize) -> f64 {
    // A third OS thread that spins would take the cores from the two reactors.
    let [asker] = threads_on(running, [0]);
    let moved = running.reactors.thread().create().expect("a thread");
    let trips = asker.spawn(async move {
        let start = Instant::now();
        for n in 0..count {
            let to = usize::from(n % 2 == 0);
            moved.move_to_core(to).await.expect("it goes");
        }
        per_op(start, count)
    });
    block_on(trips).expect("it ends")
}
