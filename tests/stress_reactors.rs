//! Random operations from several OS threads, and from each other, against
//! SpdkThreads on reactors, with pauses long enough for those to become dormant:
//! messages, critical ones, timers, wakers, aborts, moves, exits, events, calls and walks
//! of reactors, mode switches, rounds of schedulers that are switched, shares, and pollers
//! and interrupts that move along. What is sent to a thread that nobody else speaks to is waited for, so
//! that a wake that is lost is seen. At the end the books must balance: each
//! accepted message ran, each future and callback is gone, each walk has ended, each
//! thread has exited.
//!
//! `CORESPUN_STRESS_SECONDS` sets how long it runs (2 s), and nothing it asserts;
//! `CORESPUN_STRESS_SEED` repeats a choice of operations. No test harness, so that
//! it runs under ThreadSanitizer.

use std::future::poll_fn;
use std::hint::spin_loop;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use corespun::app::{App, AppHandle};
use corespun::cpu::{self, CpuSet};
use corespun::reactor::ReactorMode;
use corespun::task::AbortHandle;
use corespun::thread::{Poller, SendInterrupt, SendPoller, SpdkThread};
use corespun::time;
use crossbeam_queue::SegQueue;
use harness::stress::*;
use nix::sys::eventfd::{EfdFlags, EventFd};

const OPERATORS: usize = 2;
const CORES: usize = 2;
/// Threads that everybody speaks to.
const SHARED: usize = 6;
/// Longer than a thread that has nothing to do stays awake, in microseconds.
const DROWSY: u64 = 60;
/// No expectation: far beyond what a loaded machine needs.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Books {
    accepted: AtomicUsize,
    ran: AtomicUsize,
    critical_accepted: AtomicUsize,
    futures_made: AtomicUsize,
    futures_dropped: AtomicUsize,
    ended: AtomicUsize,
    pings: AtomicUsize,
    threads: AtomicUsize,
    moves: AtomicUsize,
    calls: AtomicUsize,
    called: AtomicUsize,
    walks: AtomicUsize,
    visits: AtomicUsize,
    walks_ended: AtomicUsize,
    answered: AtomicUsize,
}

static CRITICAL: AtomicUsize = AtomicUsize::new(0);

struct World {
    app: AppHandle,
    books: Arc<Books>,
    stop: AtomicBool,
    threads: SegQueue<SpdkThread>,
    all: SegQueue<SpdkThread>,
    wakers: SegQueue<(Arc<AtomicBool>, Waker)>,
    aborts: SegQueue<AbortHandle>,
}

/// In a future.
struct Content(Arc<Books>);

impl Content {
    fn new(world: &World) -> Self {
        count(&world.books.futures_made);
        Content(world.books.clone())
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        count(&self.0.futures_dropped);
    }
}

impl World {
    fn create(&self, dice: &mut Dice) -> SpdkThread {
        let mask = CpuSet::single(dice.below(CORES as u64) as usize);
        let builder = self.app.thread().cpumask(mask);
        let builder = builder.exit_timeout(Duration::from_millis(dice.below(5)));
        let thread = builder.create().expect("the app runs");
        count(&self.books.threads);
        self.all.push(thread.clone());
        thread
    }

    /// One of the shared threads, which stays among them.
    fn any(&self) -> Option<SpdkThread> {
        let thread = self.threads.pop()?;
        self.threads.push(thread.clone());
        Some(thread)
    }

    fn send(&self, thread: &SpdkThread) {
        let books = self.books.clone();
        if thread.send_msg(move || count(&books.ran)).is_ok() {
            count(&self.books.accepted);
        }
    }

    fn wake_one(&self) {
        if let Some((flag, waker)) = self.wakers.pop() {
            flag.store(true, Ordering::Release);
            waker.wake();
        }
    }
}

fn switch_mode(world: &World, dice: &mut Dice) {
    const MODES: [ReactorMode; 3] = [
        ReactorMode::Poll,
        ReactorMode::Adaptive,
        ReactorMode::Interrupt,
    ];
    let core = dice.below(CORES as u64) as usize;
    let mode = MODES[dice.below(3) as usize];
    drop(world.app.reactors().set_mode(core, mode));
}

/// Has the thread go to another core, or wherever a scheduler wants it; it may be bound, or
/// be there.
fn send_away(world: &World, dice: &mut Dice, thread: &SpdkThread) {
    let books = world.books.clone();
    let mask = match dice.below(1 + CORES as u64) as usize {
        CORES => (0..CORES).collect(),
        core => CpuSet::single(core),
    };
    let sent = thread.send_msg(move || {
        let thread = SpdkThread::current().expect("in a message");
        if thread.set_cpumask(&mask).is_ok() {
            count(&books.moves);
        }
        count(&books.ran);
    });
    if sent.is_ok() {
        count(&world.books.accepted);
    }
}

/// A task with pollers and an interrupt that move along, which has rung by then.
fn keep(world: &Arc<World>, dice: &mut Dice, thread: &SpdkThread) {
    let contents = [(); 4].map(|()| Content::new(world));
    let nap = Duration::from_micros(dice.below(3 * DROWSY));
    let bell = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd"));
    bell.write(1).expect("it is not full");
    drop(thread.spawn(async move {
        let [content, timed, active, called] = contents;
        let keeps = |content: Content| move || _ = &content;
        let _timed = SendPoller::timed(nap, keeps(timed));
        let _active = SendPoller::active(keeps(active));
        let rung = bell.clone();
        let answer = move |_event| {
            if rung.read().is_ok() {
                count(&called.0.answered);
            }
        };
        let _interrupt = SendInterrupt::register(bell, answer);
        time::sleep(2 * nap).await;
        count(&content.0.ended);
    }));
}

/// Walks over all reactors, from an event of one of them.
fn walk(world: &World, core: usize) {
    let (reactors, books) = (world.app.reactors(), world.books.clone());
    let begin = move || {
        let (visited, ended) = (books.clone(), books.clone());
        let visit = move |_: &_| count(&visited.visits);
        let end = move |_: Result<_, _>| count(&ended.walks_ended);
        if reactors.for_each_reactor(visit, end).is_ok() {
            count(&books.walks);
        }
    };
    let _ = world.app.reactors().send_event(core, begin);
}

/// Another scheduler, or another period, or a round now.
fn schedule(world: &World, dice: &mut Dice) {
    let schedulers = world.app.reactors().schedulers();
    match dice.below(4) {
        0 => drop(schedulers.set("dynamic")),
        1 => drop(schedulers.set("static")),
        2 => drop(schedulers.set_period(Duration::from_micros(50 * dice.below(20)))),
        _ => drop(schedulers.run_round()),
    }
}

/// What concerns the reactors, and what moves between them.
fn operate_reactors(world: &Arc<World>, dice: &mut Dice, thread: &SpdkThread) {
    let core = dice.below(CORES as u64) as usize;
    match dice.below(8) {
        0..3 => keep(world, dice, thread),
        3 => drop(thread.move_to_core(core)),
        4 => walk(world, core),
        5 => {
            let books = world.books.clone();
            count(&books.calls);
            drop(
                world
                    .app
                    .reactors()
                    .call(core, move || count(&books.called)),
            );
        }
        6 => schedule(world, dice),
        _ => {
            let limit = Duration::from_micros(dice.below(200));
            thread.set_latency((dice.below(2) == 0).then_some(limit));
            let shares = 1 + dice.below(1000) as u32;
            thread.set_shares(shares).expect("1 to 1000");
        }
    }
}

/// Spawns a task that sleeps, waits for a waker, keeps a poller or pends.
fn spawn(world: &Arc<World>, dice: &mut Dice, thread: &SpdkThread) {
    let content = Content::new(world);
    let nap = Duration::from_micros(dice.below(3 * DROWSY));
    let shared = world.clone();
    let handle = match dice.below(3) {
        0 => thread.spawn(async move {
            time::sleep(nap).await;
            count(&content.0.ended);
        }),
        1 => thread.spawn(async move {
            let flag = Arc::new(AtomicBool::new(false));
            poll_fn(|cx| {
                if flag.load(Ordering::Acquire) {
                    return Poll::Ready(());
                }
                shared.wakers.push((flag.clone(), cx.waker().clone()));
                Poll::Pending
            })
            .await;
            count(&content.0.ended);
        }),
        _ => thread.spawn_with(async move || {
            let _poller = Poller::timed(nap, || ());
            time::sleep(2 * nap).await;
            count(&content.0.ended);
        }),
    };
    if dice.below(4) == 0 {
        world.aborts.push(handle.abort_handle());
    }
}

fn operate(world: &Arc<World>, dice: &mut Dice) {
    let Some(thread) = world.any() else {
        return;
    };
    match dice.below(30) {
        24.. => operate_reactors(world, dice, &thread),
        0..5 => world.send(&thread),
        5..9 => spawn(world, dice, &thread),
        9..13 => world.wake_one(),
        13 => {
            if let Some(abort) = world.aborts.pop() {
                abort.abort();
            }
        }
        14..16 => send_away(world, dice, &thread),
        16 => thread.bind(dice.below(2) == 0),
        17 => {
            let run = || count(&CRITICAL);
            if thread.send_critical_msg(run).is_ok() {
                count(&world.books.critical_accepted);
            }
        }
        18 => switch_mode(world, dice),
        19 => {
            let (shared, mut dice) = (world.clone(), dice.other());
            let core = dice.below(CORES as u64) as usize;
            let event = move || shared.wake_one();
            let _ = world.app.reactors().send_event(core, event);
        }
        20..23 => {
            // One of them to another.
            let (shared, mut dice) = (world.clone(), dice.other());
            let books = world.books.clone();
            let sent = thread.send_msg(move || {
                if let Some(other) = shared.any() {
                    shared.send(&other);
                    spawn(&shared, &mut dice, &other);
                }
                count(&books.ran);
            });
            if sent.is_ok() {
                count(&world.books.accepted);
            }
        }
        23 => {
            if let Some(thread) = world.threads.pop() {
                drop(thread.exit());
                world.threads.push(world.create(dice));
            }
        }
    }
}

/// Gives a thread that nobody else speaks to something to do, and waits for that.
fn ping(world: &Arc<World>, dice: &mut Dice, thread: &SpdkThread) {
    let done = Arc::new(AtomicBool::new(false));
    let does = done.clone();
    let what = dice.below(4);
    match what {
        0 => thread
            .send_msg(move || does.store(true, Ordering::Release))
            .expect("it runs"),
        1 => drop(thread.spawn(async move { does.store(true, Ordering::Release) })),
        2 => {
            let nap = Duration::from_micros(dice.below(2 * DROWSY));
            drop(thread.spawn(async move {
                time::sleep(nap).await;
                does.store(true, Ordering::Release);
            }));
        }
        _ => {
            static RUNS: AtomicUsize = AtomicUsize::new(0);
            // Two at once may count for each other, which the next one tells.
            let before = RUNS.load(Ordering::Acquire);
            let run = || _ = RUNS.fetch_add(1, Ordering::AcqRel);
            if thread.send_critical_msg(run).is_err() {
                return;
            }
            let since = Instant::now();
            while RUNS.load(Ordering::Acquire) == before {
                assert!(since.elapsed() < PATIENCE, "a critical message is lost");
                thread::yield_now();
            }
            return count(&world.books.pings);
        }
    }
    let since = Instant::now();
    while !done.load(Ordering::Acquire) {
        assert!(since.elapsed() < PATIENCE, "a wake is lost: {what}");
        thread::yield_now();
    }
    count(&world.books.pings);
}

fn operate_until_stopped(world: &Arc<World>, mut dice: Dice) {
    let own = [(); 2].map(|()| world.create(&mut dice));
    while !world.stop.load(Ordering::Relaxed) {
        for _ in 0..dice.below(6) {
            operate(world, &mut dice);
        }
        let thread = &own[dice.below(2) as usize];
        if dice.below(16) == 0 {
            send_away(world, &mut dice, thread);
        }
        ping(world, &mut dice, thread);
        // Short of, about, and beyond what makes a thread dormant.
        let pause = Duration::from_micros(dice.below(DROWSY));
        let since = Instant::now();
        while since.elapsed() < pause {
            spin_loop();
        }
        if dice.below(8) == 0 {
            thread::yield_now();
        }
    }
}

fn main() {
    let (seconds, seed) = settings("stress of reactors");
    let cpus: Vec<_> = cpu::available().expect("a mask").iter().collect();
    let cores = (0..CORES).map(|core| (core, cpus[core % cpus.len()]));
    let builder = App::builder().lcores(cores).handle_signals(false);
    let world = builder.block_on(async move |app: AppHandle| {
        let world = Arc::new(World {
            app,
            books: Arc::default(),
            stop: AtomicBool::new(false),
            threads: SegQueue::new(),
            all: SegQueue::new(),
            wakers: SegQueue::new(),
            aborts: SegQueue::new(),
        });
        let mut dice = Dice::of(seed, OPERATORS);
        for _ in 0..SHARED {
            world.threads.push(world.create(&mut dice));
        }
        let operators: Vec<_> = (0..OPERATORS)
            .map(|n| {
                let (world, dice) = (world.clone(), Dice::of(seed, n));
                thread::spawn(move || operate_until_stopped(&world, dice))
            })
            .collect();
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end && !operators.iter().any(|one| one.is_finished()) {
            time::sleep(Duration::from_millis(10)).await;
        }
        world.stop.store(true, Ordering::Relaxed);
        while !operators.iter().all(|one| one.is_finished()) {
            time::sleep(Duration::from_millis(1)).await;
        }
        for operator in operators {
            operator.join().expect("no operator panicked");
        }
        world
    });
    let world = world.expect("the app runs");
    let left = world.wakers.len();
    while let Some(left) = world.wakers.pop() {
        drop(left);
    }
    while let Some(left) = world.aborts.pop() {
        drop(left);
    }
    let mut threads = 0;
    while let Some(thread) = world.all.pop() {
        assert!(thread.is_exited(), "{}", thread.name());
        threads += 1;
    }
    let books = &*world.books;
    println!(
        "{threads} threads, {} messages, {} critical, {} futures ({} ended), {} pings, {} moves, {left} wakers left",
        read(&books.accepted),
        read(&books.critical_accepted),
        read(&books.futures_made),
        read(&books.ended),
        read(&books.pings),
        read(&books.moves),
    );
    println!(
        "{} calls, {} walks, {} interrupts answered",
        read(&books.calls),
        read(&books.walks),
        read(&books.answered)
    );
    assert_eq!(read(&books.calls), read(&books.called));
    assert_eq!(read(&books.walks), read(&books.walks_ended));
    assert_eq!(CORES * read(&books.walks), read(&books.visits));
    assert_eq!(threads, read(&books.threads));
    assert_eq!(read(&books.accepted), read(&books.ran), "messages");
    assert_eq!(read(&books.critical_accepted), read(&CRITICAL));
    assert_eq!(read(&books.futures_made), read(&books.futures_dropped));
    assert_eq!(world.app.library().thread_count(), 0);
    println!("test result: ok. 1 passed; 0 failed");
}
