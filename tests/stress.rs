//! Random operations from several OS threads against SpdkThreads that are polled,
//! moved, exited, dropped and made anew, on real time. At the end the books must
//! balance: each accepted message ran once, or was dropped once with a thread
//! that was dropped without exit; each future is gone, dropped where it may be;
//! each task that is joined has an outcome.
//!
//! `CORESPUN_STRESS_SECONDS` sets how long it runs (2 s), which is how many
//! interleavings it tries, and nothing it asserts; `CORESPUN_STRESS_SEED` repeats
//! a choice of operations. No lock here and no test harness, so that
//! ThreadSanitizer, which does not see into a ready-made standard library, can
//! follow every edge.

use std::cell::Cell;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Poll, Waker};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use corespun::notify::Sleeper;
use corespun::task::{self, AbortHandle, JoinHandle};
use corespun::thread::{ParkedThread, Poller, SpdkThread, ThreadLib, ThreadRunner};
use corespun::time;
use crossbeam_queue::SegQueue;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use harness::stress::*;

const POLLING: usize = 2;
const SENDING: usize = 3;

#[derive(Default)]
struct Books {
    accepted: AtomicUsize,
    refused: AtomicUsize,
    ran: AtomicUsize,
    dropped_unrun: AtomicUsize,
    lost: AtomicUsize,
    futures_made: AtomicUsize,
    futures_dropped: AtomicUsize,
    strayed: AtomicUsize,
    joined: AtomicUsize,
    joined_by_tasks: AtomicUsize,
    exited: AtomicUsize,
    abandoned: AtomicUsize,
    moved: AtomicUsize,
}

/// Where everybody finds what the others made.
struct World {
    library: ThreadLib,
    books: Books,
    stop: AtomicBool,
    handles: [SegQueue<SpdkThread>; POLLING],
    parked: SegQueue<ParkedThread>,
    wakers: SegQueue<Waker>,
    tasks: SegQueue<JoinHandle<u64>>,
    aborts: SegQueue<AbortHandle>,
}

thread_local! {
    /// Whether this OS thread is dropping a thread that has not exited.
    static ABANDONING: Cell<bool> = const { Cell::new(false) };
}

fn abandon<T>(thread: T) {
    ABANDONING.set(true);
    drop(thread);
    ABANDONING.set(false);
}

/// In a message: knows whether it ran.
struct Letter {
    world: Arc<World>,
    ran: bool,
    refused: Arc<AtomicBool>,
}

impl Letter {
    fn run(mut self) {
        self.ran = true;
        count(&self.world.books.ran);
    }
}

impl Drop for Letter {
    fn drop(&mut self) {
        if !self.ran && !self.refused.load(Ordering::Relaxed) {
            count(&self.world.books.dropped_unrun);
            if !ABANDONING.get() {
                count(&self.world.books.lost);
            }
        }
    }
}

/// In a future: counts it, and if it is tied to an OS thread, checks that.
struct Content {
    world: Arc<World>,
    home: Option<ThreadId>,
}

impl Content {
    fn new(world: &Arc<World>, home: Option<ThreadId>) -> Self {
        count(&world.books.futures_made);
        Content {
            world: world.clone(),
            home,
        }
    }

    fn check(&self) {
        // Counted, since a panic in here is contained.
        if self.home.is_some_and(|home| home != thread::current().id()) {
            count(&self.world.books.strayed);
        }
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        self.check();
        count(&self.world.books.futures_dropped);
    }
}

/// A child of the current task, on its thread: bound to it or not, polled at once
/// or not.
fn spawn_child(world: &Arc<World>, dice: &mut Dice) -> JoinHandle<u64> {
    let seed = dice.below(u64::MAX);
    let wander =
        |home| -> BoxFuture<'static, u64> { wander(Content::new(world, home), seed).boxed() };
    let here = Some(thread::current().id());
    match dice.below(3) {
        0 => task::spawn(wander(None)),
        1 => task::spawn_local(wander(here)),
        _ => task::spawn_eager(wander(here)),
    }
}

/// Polls a task's handle as one task or another, here or on another thread, did
/// before, and leaves it to the next, or waits for the end.
async fn join_as_others_do(world: &Arc<World>, dice: &mut Dice, mut handle: JoinHandle<u64>) {
    if dice.below(4) == 0 {
        let _ = handle.await;
        return count(&world.books.joined_by_tasks);
    }
    let polled = match dice.below(3) {
        // With another waker than the task's.
        0 => FuturesUnordered::from_iter([&mut handle])
            .next()
            .now_or_never(),
        _ => futures::poll!(&mut handle).is_ready().then_some(None),
    };
    if polled.is_some() {
        count(&world.books.joined_by_tasks);
    } else if dice.below(4) > 0 {
        world.tasks.push(handle);
    }
}

/// Gives its waker away, sleeps, yields, panics, waits for a wake that may never
/// come, or for another task.
async fn wander(content: Content, seed: u64) -> u64 {
    let mut dice = Dice::new(seed);
    for _ in 0..dice.below(6) {
        content.check();
        match dice.below(11) {
            0 => task::yield_now().await,
            1 => time::sleep(Duration::from_nanos(dice.below(50_000))).await,
            2 => {
                // Dropped while armed, mostly.
                let nap = pin!(time::sleep(Duration::from_secs(1)));
                let _ = futures::poll!(nap);
            }
            3 if dice.below(20) == 0 => std::panic::resume_unwind(Box::new(ON_PURPOSE)),
            4 if dice.below(2) == 0 => {
                let world = content.world.clone();
                let child = spawn_child(&world, &mut dice);
                join_as_others_do(&world, &mut dice, child).await;
            }
            5..8 => {
                let world = content.world.clone();
                if let Some(handle) = world.tasks.pop() {
                    join_as_others_do(&world, &mut dice, handle).await;
                }
            }
            _ => {
                let mut given = false;
                poll_fn(|cx| {
                    if std::mem::replace(&mut given, true) {
                        return Poll::Ready(());
                    }
                    for _ in 0..dice.below(3) {
                        content.world.wakers.push(cx.waker().clone());
                    }
                    Poll::Pending
                })
                .await;
            }
        }
    }
    seed
}

fn send_some(world: &Arc<World>, dice: &mut Dice, thread: &SpdkThread) {
    for _ in 0..dice.below(12) {
        let refused = Arc::new(AtomicBool::new(false));
        let letter = Letter {
            world: world.clone(),
            ran: false,
            refused: refused.clone(),
        };
        match thread.send_msg(move || letter.run()) {
            Ok(()) => count(&world.books.accepted),
            Err(error) => {
                refused.store(true, Ordering::Relaxed);
                count(&world.books.refused);
                drop(error.into_message());
            }
        }
    }
}

fn spawn_on(world: &Arc<World>, dice: &mut Dice, thread: &SpdkThread) {
    let seed = dice.below(u64::MAX);
    let handle = if dice.below(2) == 0 {
        thread.spawn(wander(Content::new(world, None), seed))
    } else {
        let world = world.clone();
        thread.spawn_with(move || {
            let not_send = Rc::new(Cell::new(seed));
            let content = Content::new(&world, Some(thread::current().id()));
            async move { wander(content, not_send.get()).await }
        })
    };
    match dice.below(4) {
        0 => drop(handle),
        1 => {
            world.aborts.push(handle.abort_handle());
            world.tasks.push(handle);
        }
        _ => world.tasks.push(handle),
    }
}

fn join(world: &World, handle: JoinHandle<u64>) {
    let outcome = handle.now_or_never().expect("every task has an outcome");
    if let Err(error) = outcome {
        assert!(error.is_panic() || error.is_cancelled() || error.is_thread_exited());
    }
    count(&world.books.joined);
}

/// One of the OS threads that send, spawn, wake, abort, join.
fn send_and_spawn(world: &Arc<World>, mut dice: Dice) {
    let mut known: Vec<Option<SpdkThread>> = vec![None; POLLING];
    while !world.stop.load(Ordering::Relaxed) {
        let at = dice.below(POLLING as u64) as usize;
        if let Some(handle) = world.handles[at].pop() {
            // The others want it, too; an old one is as good to annoy with.
            if dice.below(4) > 0 {
                world.handles[at].push(handle.clone());
            }
            known[at] = Some(handle);
        }
        let Some(thread) = &known[at] else { continue };
        if thread.is_exited() && dice.below(20) == 0 {
            known[at] = None;
            continue;
        }
        match dice.below(16) {
            0..6 => send_some(world, &mut dice, thread),
            6..9 => spawn_on(world, &mut dice, thread),
            9 => {
                let _ = thread.send_critical_msg(|| ());
            }
            10..13 => {
                for _ in 0..dice.below(6) {
                    let Some(waker) = world.wakers.pop() else {
                        break;
                    };
                    match dice.below(3) {
                        0 => drop(waker),
                        1 => waker.wake_by_ref(),
                        _ => waker.wake(),
                    }
                }
            }
            13 => {
                if let Some(abort) = world.aborts.pop() {
                    abort.abort();
                }
            }
            14 => {
                if let Some(mut handle) = world.tasks.pop() {
                    match dice.below(4) {
                        0 => drop(handle),
                        1 => handle.abort(),
                        _ => {
                            // As an executor of its own would, once.
                            let waker = world.wakers.pop();
                            let waker = waker.as_ref().unwrap_or(Waker::noop());
                            let mut cx = std::task::Context::from_waker(waker);
                            match handle.poll_unpin(&mut cx) {
                                Poll::Ready(_) => count(&world.books.joined),
                                Poll::Pending => world.tasks.push(handle),
                            }
                        }
                    }
                }
            }
            _ => {
                if dice.below(20) == 0 {
                    drop(thread.exit());
                }
            }
        }
    }
}

/// A runner on its OS thread, with local content of its own now and then.
struct Hosted {
    runner: ThreadRunner,
    pollers: Vec<Poller>,
    _here: PhantomData<Rc<()>>,
}

fn poll_some(world: &Arc<World>, dice: &mut Dice, hosted: &mut Hosted, sleeper: &Sleeper) {
    for _ in 0..dice.below(400) {
        if hosted.runner.handle().is_exited() {
            return;
        }
        hosted.runner.poll(dice.below(10) as usize, 0);
        if dice.below(50) == 0 {
            let content = Content::new(world, Some(thread::current().id()));
            let seed = dice.below(u64::MAX);
            let handle = hosted
                .runner
                .enter(|| task::spawn_local(wander(content, seed)));
            match dice.below(2) {
                0 => drop(handle),
                _ => world.tasks.push(handle),
            }
        }
        if dice.below(100) == 0 {
            let poller = hosted.runner.enter(|| Poller::active(|| false));
            hosted.pollers.extend(poller);
        } else if dice.below(10) == 0 {
            hosted.pollers.clear();
        }
        let runner = &hosted.runner;
        sleeper.sleep_unless(
            || runner.needs_poll() || runner.next_deadline().is_some(),
            || thread::park_timeout(Duration::from_millis(1)),
        );
    }
}

/// One of the OS threads that make, poll, move and end SpdkThreads.
fn poll_and_end(world: &Arc<World>, at: usize, mut dice: Dice) {
    let this = thread::current();
    let sleeper = Arc::new(Sleeper::new(move || this.unpark()));
    // The other one is to take it.
    let mut gave_away = false;
    loop {
        let stopping = world.stop.load(Ordering::Relaxed);
        let leave = std::mem::take(&mut gave_away) && !stopping;
        let parked = if leave { None } else { world.parked.pop() };
        if stopping && parked.is_none() {
            return;
        }
        let parked = parked.unwrap_or_else(|| {
            let builder = world.library.thread().ring(4).message_limit(64);
            let builder = builder.exit_timeout(Duration::from_millis(dice.below(3)));
            let parked = builder.build().expect("ids do not run out");
            world.handles[at].push(parked.handle());
            parked
        });
        let mut hosted = Hosted {
            runner: parked.attach(),
            pollers: Vec::new(),
            _here: PhantomData,
        };
        hosted.runner.set_host(Some(&sleeper));
        poll_some(world, &mut dice, &mut hosted, &sleeper);
        let ending = dice.below(4);
        if ending == 0 {
            // Dropped without exit, with what it holds.
            abandon(hosted);
            count(&world.books.abandoned);
            continue;
        }
        if ending == 1 && !stopping {
            hosted.pollers.clear();
            match hosted.runner.park() {
                Ok(parked) => {
                    count(&world.books.moved);
                    world.parked.push(parked);
                    gave_away = true;
                    continue;
                }
                Err(runner) => hosted.runner = runner,
            }
        }
        let thread = hosted.runner.handle();
        drop(thread.exit());
        while !thread.is_exited() {
            hosted.runner.poll(0, 0);
        }
        drop(hosted);
        count(&world.books.exited);
    }
}

fn main() {
    let (seconds, seed) = settings("stress");
    let world = Arc::new(World {
        library: ThreadLib::new(),
        books: Books::default(),
        stop: AtomicBool::new(false),
        handles: Default::default(),
        parked: SegQueue::new(),
        wakers: SegQueue::new(),
        tasks: SegQueue::new(),
        aborts: SegQueue::new(),
    });
    let polling: Vec<_> = (0..POLLING)
        .map(|at| {
            let (world, dice) = (world.clone(), Dice::of(seed, at));
            thread::spawn(move || poll_and_end(&world, at, dice))
        })
        .collect();
    let sending: Vec<_> = (POLLING..POLLING + SENDING)
        .map(|n| {
            let (world, dice) = (world.clone(), Dice::of(seed, n));
            thread::spawn(move || send_and_spawn(&world, dice))
        })
        .collect();
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        // A thread that died ends the test.
        if polling.iter().chain(&sending).any(|t| t.is_finished()) {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    world.stop.store(true, Ordering::Relaxed);
    for thread in sending.into_iter().chain(polling) {
        thread.join().expect("no thread of the stress panicked");
    }
    // Both may have looked for the last parked one before it was there.
    while let Some(parked) = world.parked.pop() {
        abandon(parked);
    }
    while let Some(handle) = world.tasks.pop() {
        join(&world, handle);
    }
    while let Some(waker) = world.wakers.pop() {
        waker.wake();
    }
    while let Some(abort) = world.aborts.pop() {
        abort.abort();
        assert!(abort.is_finished());
    }
    let books = &world.books;
    println!(
        "messages: {} accepted, {} refused, {} ran, {} dropped with their thread; \
         futures: {} made, {} dropped; {} tasks joined, and {} by others; \
         threads: {} exited, {} dropped, {} moves",
        read(&books.accepted),
        read(&books.refused),
        read(&books.ran),
        read(&books.dropped_unrun),
        read(&books.futures_made),
        read(&books.futures_dropped),
        read(&books.joined),
        read(&books.joined_by_tasks),
        read(&books.exited),
        read(&books.abandoned),
        read(&books.moved),
    );
    assert_eq!(
        read(&books.accepted),
        read(&books.ran) + read(&books.dropped_unrun)
    );
    assert_eq!(read(&books.futures_made), read(&books.futures_dropped));
    assert_eq!(read(&books.lost), 0, "messages dropped by an exit");
    assert_eq!(read(&books.strayed), 0, "futures off their OS thread");
    assert_eq!(world.library.thread_count(), 0);
    println!("test result: ok. 1 passed; 0 failed");
}
