//! Random uses of the async face from several OS threads, on real time: tasks
//! that give their wakers away, hop, call, join sets and scopes of others, send
//! through channels and shard values, while they are woken, aborted, joined and
//! cancelled by their threads' exits, from SpdkThreads, a plain OS thread, a
//! tokio worker, a signal handler's helper, another executor, and destructors that
//! run while something unwinds or an OS thread ends. At the end the books must
//! balance: whatever was put into a future, a message or a channel is dropped,
//! what is tied to an OS thread was dropped there, every task that was waited for
//! had an outcome, and no thread is left.
//!
//! `CORESPUN_STRESS_SECONDS` sets how long it runs (2 s), which is how many
//! interleavings it tries, and nothing it asserts; `CORESPUN_STRESS_SEED` repeats
//! a choice of operations. No lock here and no test harness, so that
//! ThreadSanitizer, which does not see into a ready-made standard library, can
//! follow every edge.

use std::cell::RefCell;
use std::future::poll_fn;
use std::os::fd::{AsFd, AsRawFd};
use std::panic::resume_unwind;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::task::{Poll, Waker};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use corespun::mpsc;
use corespun::sharded::Sharded;
use corespun::task::{self, AbortHandle, JoinHandle, JoinSet};
use corespun::thread::{SpdkThread, ThreadLib, ThreadRunner};
use corespun::time;
use crossbeam_queue::SegQueue;
use futures::FutureExt;
use futures::channel::oneshot;
use futures::executor::LocalPool;
use futures::future::{Either, abortable, select};
use futures::task::LocalSpawnExt;
use harness::stress::*;
use nix::sys::eventfd::EventFd;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};

const POLLING: usize = 2;

#[derive(Default)]
struct Books {
    made: AtomicUsize,
    dropped: AtomicUsize,
    strayed: AtomicUsize,
    outcomes: AtomicUsize,
    hops: AtomicUsize,
    calls: AtomicUsize,
    received: AtomicUsize,
    sharded: AtomicUsize,
    wakes: AtomicUsize,
    aborts: AtomicUsize,
    panicked: AtomicUsize,
    exited: AtomicUsize,
    abandoned: AtomicUsize,
}

/// Where everybody finds what the others made.
struct World {
    library: ThreadLib,
    books: Arc<Books>,
    stop: AtomicBool,
    threads: SegQueue<SpdkThread>,
    wakers: SegQueue<Waker>,
    aborts: SegQueue<AbortHandle>,
    joins: SegQueue<JoinHandle<()>>,
    senders: SegQueue<mpsc::Sender<Content>>,
}

impl World {
    /// One of the last threads made, which may have exited.
    fn thread(&self) -> Option<SpdkThread> {
        let thread = self.threads.pop()?;
        self.threads.push(thread.clone());
        Some(thread)
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// In whatever must be dropped; if it is tied to an OS thread, there.
struct Content {
    books: Arc<Books>,
    home: Option<ThreadId>,
}

impl Content {
    fn anywhere(world: &World) -> Self {
        count(&world.books.made);
        Content {
            books: world.books.clone(),
            home: None,
        }
    }

    fn here(world: &World) -> Self {
        let mut content = Content::anywhere(world);
        content.home = Some(thread::current().id());
        content
    }

    fn check(&self) {
        // Counted, since a panic in here is contained.
        if self.home.is_some_and(|home| home != thread::current().id()) {
            count(&self.books.strayed);
        }
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        self.check();
        count(&self.books.dropped);
    }
}

/// Uses a waker when dropped, during an unwind mostly.
struct UseOnDrop(Option<Waker>, Dice);

impl Drop for UseOnDrop {
    fn drop(&mut self) {
        if let Some(waker) = self.0.take() {
            use_waker(waker, &mut self.1);
        }
    }
}

fn use_waker(waker: Waker, dice: &mut Dice) {
    match dice.below(5) {
        0 => drop(waker),
        1 => waker.wake_by_ref(),
        2 => Waker::clone(&waker).wake(),
        3 => drop((waker.clone(), waker)),
        _ => waker.wake(),
    }
}

/// What anybody does to the tasks of others.
fn meddle(world: &World, dice: &mut Dice) {
    for _ in 0..dice.below(6) {
        let Some(waker) = world.wakers.pop() else {
            break;
        };
        count(&world.books.wakes);
        if dice.below(8) == 0 {
            let guard = UseOnDrop(Some(waker), dice.other());
            let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let _guard = guard;
                resume_unwind(Box::new(ON_PURPOSE));
            }));
            assert!(unwound.is_err());
        } else {
            use_waker(waker, dice);
        }
    }
    if dice.below(3) == 0
        && let Some(abort) = world.aborts.pop()
    {
        count(&world.books.aborts);
        abort.abort();
        // Other threads may abort it at the same time.
        if dice.below(2) == 0 {
            world.aborts.push(abort);
        }
    }
}

/// Gives the waker away and waits for it; exits and aborts end what is not woken.
async fn wait_for_a_wake(world: &World, wakers: u64) {
    let mut given = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut given, true) {
            return Poll::Ready(());
        }
        for _ in 0..=wakers {
            world.wakers.push(cx.waker().clone());
        }
        Poll::Pending
    })
    .await;
}

/// At most so long; what is dropped then is cancelled midway.
async fn at_most<F: Future>(dice: &mut Dice, future: F) -> Option<F::Output> {
    let limit = Duration::from_nanos(dice.below(5_000_000));
    match select(pin!(future), pin!(time::sleep(limit))).await {
        Either::Left((output, _)) => Some(output),
        Either::Right(_) => None,
    }
}

fn spawn_on(world: &Arc<World>, dice: &mut Dice, thread: &SpdkThread, depth: u32) {
    let (inside, dice_inside) = (world.clone(), dice.other());
    let handle = match dice.below(2) {
        0 => thread.spawn(wander(inside, dice_inside, depth)),
        _ => thread.spawn_with(move || wander_here(inside, dice_inside, depth)),
    };
    keep_or_drop(world, dice, handle);
}

fn keep_or_drop(world: &World, dice: &mut Dice, handle: JoinHandle<()>) {
    if dice.below(2) == 0 {
        world.aborts.push(handle.abort_handle());
    }
    match dice.below(3) {
        0 => drop(handle),
        _ => world.joins.push(handle),
    }
}

async fn join(world: &World, handle: JoinHandle<()>) {
    if let Err(error) = handle.await {
        assert!(error.is_panic() || error.is_cancelled() || error.is_thread_exited());
    }
    count(&world.books.outcomes);
}

/// One thing that a task may do wherever it is.
async fn step(world: &Arc<World>, dice: &mut Dice, depth: u32) {
    let Some(thread) = world.thread() else { return };
    let content = Content::anywhere(world);
    match dice.below(14) {
        0 => task::yield_now().await,
        1 => time::sleep(Duration::from_nanos(dice.below(50_000))).await,
        2 | 3 => wait_for_a_wake(world, dice.below(3)).await,
        4 | 5 => {
            let call = thread.call({
                let panics = dice.below(8) == 0;
                let inside = Content::anywhere(world);
                move || {
                    if panics {
                        resume_unwind(Box::new(ON_PURPOSE));
                    }
                    inside
                }
            });
            if let Some(Ok(reply)) = at_most(dice, call).await {
                reply.check();
                count(&world.books.calls);
            }
        }
        6 if depth > 0 => {
            let (inside, dice_inside) = (world.clone(), dice.other());
            let call = thread.call_async(move || wander_here(inside, dice_inside, depth - 1));
            if at_most(dice, call).await.is_some() {
                count(&world.books.calls);
            }
        }
        7 | 8 if depth > 0 => {
            let mut set = JoinSet::new();
            for _ in 0..dice.below(4) {
                if let Some(thread) = world.thread() {
                    set.spawn_on(&thread, wander(world.clone(), dice.other(), depth - 1));
                }
            }
            match dice.below(3) {
                0 => drop(at_most(dice, set.join_next()).await),
                1 => set.shutdown().await,
                _ => set.detach_all(),
            }
        }
        9 => {
            let (sender, receiver) = oneshot::channel();
            let waits = thread.spawn(async move { drop(receiver.await) });
            keep_or_drop(world, dice, waits);
            task::yield_now().await;
            let _ = sender.send(content);
        }
        10 | 11 => {
            if let Some(sender) = world.senders.pop() {
                if dice.below(8) > 0 && !sender.is_closed() {
                    world.senders.push(sender.clone());
                }
                for _ in 0..dice.below(6) {
                    let value = Content::anywhere(world);
                    match dice.below(2) {
                        0 => drop(sender.try_send(value)),
                        _ => drop(at_most(dice, sender.send(value)).await),
                    }
                }
            }
        }
        12 => {
            let others: Vec<_> = [Some(thread), world.thread()]
                .into_iter()
                .flatten()
                .collect();
            let inside = world.clone();
            let start = Sharded::start(&others, async move |_| Content::here(&inside));
            if let Ok(sharded) = start.await {
                let used = sharded.invoke_on_all(|content| content.check()).await;
                if used.is_ok() {
                    count(&world.books.sharded);
                }
                if dice.below(2) == 0 {
                    sharded.stop().await;
                }
            }
        }
        13 if dice.below(8) == 0 => {
            let _guard = UseOnDrop(world.wakers.pop(), dice.other());
            resume_unwind(Box::new(ON_PURPOSE));
        }
        _ => meddle(world, dice),
    }
}

type Wandering = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A task that may run on any OS thread.
fn wander(world: Arc<World>, mut dice: Dice, depth: u32) -> Wandering {
    let content = Content::anywhere(&world);
    Box::pin(async move {
        for _ in 0..dice.below(6) {
            step(&world, &mut dice, depth).await;
        }
        content.check();
    })
}

/// A task that goes from thread to thread.
fn hop(world: Arc<World>, mut dice: Dice) -> Wandering {
    let content = Content::anywhere(&world);
    Box::pin(async move {
        for _ in 0..dice.below(20) {
            let Some(target) = world.thread() else { return };
            // Withdrawn now and then, in the poll that asked.
            let moves = task::move_to(&target);
            let moved = match dice.below(4) {
                0 => select(moves, std::future::ready(()))
                    .now_or_never()
                    .is_some(),
                _ => moves.await.is_ok(),
            };
            if moved {
                count(&world.books.hops);
            }
            match dice.below(3) {
                0 => wait_for_a_wake(&world, dice.below(3)).await,
                1 => step(&world, &mut dice, 0).await,
                _ => {}
            }
        }
        content.check();
    })
}

/// A task that stays on its OS thread, with what only such a one can have.
fn wander_here(world: Arc<World>, mut dice: Dice, depth: u32) -> Pin<Box<dyn Future<Output = ()>>> {
    let content = Rc::new(Content::here(&world));
    Box::pin(async move {
        for _ in 0..dice.below(6) {
            match dice.below(4) {
                0 => receive(&world, &mut dice).await,
                1 => borrow_in_scope(&world, &mut dice, &content).await,
                _ => step(&world, &mut dice, depth).await,
            }
            content.check();
        }
    })
}

async fn receive(world: &World, dice: &mut Dice) {
    let (sender, mut receiver) = mpsc::channel(2);
    world.senders.push(sender);
    let values = dice.below(6);
    let receiving = async {
        for _ in 0..values {
            match receiver.recv().await {
                Some(_) => count(&world.books.received),
                None => return,
            }
        }
    };
    at_most(dice, receiving).await;
}

async fn borrow_in_scope(world: &Arc<World>, dice: &mut Dice, content: &Content) {
    let mut others = [dice.other(), dice.other(), dice.other()];
    let scope = task::scope(async |scope| {
        for dice in &mut others {
            scope.spawn(async {
                step(world, dice, 0).await;
                content.check();
            });
        }
        task::yield_now().await;
    });
    at_most(dice, scope).await;
}

/// One of the OS threads that make, poll and end SpdkThreads.
fn poll_and_end(world: &Arc<World>, mut dice: Dice) {
    while !world.stopping() {
        let builder = world.library.thread().ring(4).message_limit(64);
        let builder = builder.exit_timeout(Duration::from_millis(dice.below(3)));
        let mut runner = builder.build().expect("ids do not run out").attach();
        world.threads.push(runner.handle());
        // Two of each kind are found, the oldest goes.
        if world.threads.len() > 2 * POLLING {
            world.threads.pop();
        }
        poll_some(world, &mut dice, &mut runner);
        if dice.below(4) == 0 {
            drop(runner);
            count(&world.books.abandoned);
            continue;
        }
        drop(runner.exit());
        while !runner.is_exited() {
            runner.poll(0, 0);
        }
        count(&world.books.exited);
    }
}

fn poll_some(world: &Arc<World>, dice: &mut Dice, runner: &mut ThreadRunner) {
    for _ in 0..dice.below(20_000) {
        if runner.is_exited() || world.stopping() {
            return;
        }
        let busy = runner.poll(dice.below(10) as usize, 0).is_busy();
        match dice.below(40) {
            0 => {
                let (inside, dice_inside) = (world.clone(), dice.other());
                let task = runner.enter(|| task::spawn_movable(hop(inside, dice_inside)));
                keep_or_drop(world, dice, task);
            }
            1 => {
                let (inside, dice_inside) = (world.clone(), dice.other());
                let task = runner.enter(|| task::spawn_local(wander_here(inside, dice_inside, 1)));
                keep_or_drop(world, dice, task);
            }
            2 => runner.enter(|| meddle(world, dice)),
            // The others may have one of the two cores.
            3 if !busy => thread::yield_now(),
            _ => {}
        }
    }
}

/// The plain OS thread.
fn meddle_from_outside(world: &Arc<World>, mut dice: Dice) {
    while !world.stopping() {
        meddle(world, &mut dice);
        if let Some(thread) = world.thread() {
            match dice.below(12) {
                0..4 => spawn_on(world, &mut dice, &thread, 2),
                4 => {
                    let content = Content::anywhere(world);
                    let _ = task::block_on(thread.call(move || drop(content)));
                }
                5 if dice.below(20) == 0 => drop(thread.exit()),
                6 => {
                    if let Some(sender) = world.senders.pop() {
                        let _ = sender.try_send(Content::anywhere(world));
                        if !sender.is_closed() {
                            world.senders.push(sender);
                        }
                    }
                }
                7 => {
                    if let Some(handle) = world.joins.pop() {
                        world.aborts.push(handle.abort_handle());
                        handle.abort();
                        task::block_on(join(world, handle));
                    }
                }
                _ => {}
            }
        }
        thread::yield_now();
    }
}

/// The tokio worker. Nothing wakes its own tasks from elsewhere, which would take
/// a lock of tokio's.
fn meddle_on_tokio(world: &Arc<World>, dice: Dice) {
    let runtime = { tokio::runtime::Builder::new_current_thread() }.build();
    let inside = world.clone();
    runtime.expect("a runtime").block_on(async move {
        let meddling = tokio::spawn(async move {
            let mut dice = dice;
            while !inside.stopping() {
                meddle(&inside, &mut dice);
                if let Some(thread) = inside.thread() {
                    let content = Content::anywhere(&inside);
                    drop(thread.call(move || content));
                }
                thread::yield_now();
                tokio::task::yield_now().await;
            }
        });
        meddling.await.expect("it does not panic");
    });
}

/// Joins what the others spawned, on an executor that knows nothing of them.
fn join_elsewhere(world: &Arc<World>, mut dice: Dice) {
    let mut pool = LocalPool::new();
    while !world.stopping() {
        if let Some(handle) = world.joins.pop() {
            world.aborts.push(handle.abort_handle());
            let inside = world.clone();
            let (joins, cancel) = abortable(async move { join(&inside, handle).await });
            let spawned = pool.spawner().spawn_local(joins.map(drop));
            spawned.expect("the pool lives");
            if dice.below(4) == 0 {
                // Given up midway; the task is detached.
                pool.run_until_stalled();
                cancel.abort();
            }
        }
        if let Some(thread) = world.thread().filter(|_| dice.below(4) == 0) {
            let content = Content::anywhere(world);
            let call = thread.call(move || content);
            let spawned = pool.spawner().spawn_local(call.map(drop));
            spawned.expect("the pool lives");
        }
        pool.run_until_stalled();
        thread::yield_now();
    }
}

thread_local! {
    /// Keeps a few wakers until this OS thread ends.
    static AT_END: RefCell<Vec<UseOnDrop>> = const { RefCell::new(Vec::new()) };
}

/// OS threads that end, with wakers in their thread-locals.
fn end_with_wakers(world: &Arc<World>, mut dice: Dice) {
    while !world.stopping() {
        let wakers: Vec<_> = std::iter::from_fn(|| world.wakers.pop()).take(3).collect();
        let dice = dice.other();
        let ends = thread::spawn(move || {
            let kept = wakers.into_iter().map(|w| UseOnDrop(Some(w), dice.clone()));
            AT_END.with_borrow_mut(|at_end| at_end.extend(kept));
        });
        ends.join().expect("it does not panic");
        thread::sleep(Duration::from_millis(1));
    }
}

static SIGNALLED: AtomicI32 = AtomicI32::new(-1);

/// Async-signal-safe: no more than a `write`.
extern "C" fn on_signal(_: i32) {
    let one = 1u64;
    // SAFETY: writes eight bytes from a live local to an eventfd that stays open.
    unsafe {
        let place = std::ptr::from_ref(&one).cast();
        libc::write(SIGNALLED.load(Ordering::Relaxed), place, 8);
    }
}

/// The helper thread of a signal handler, which does what that must not. The
/// signals come from itself.
fn meddle_for_signals(world: &Arc<World>, mut dice: Dice) {
    let signalled = EventFd::new().expect("an eventfd");
    SIGNALLED.store(signalled.as_fd().as_raw_fd(), Ordering::Relaxed);
    let handler = SigHandler::Handler(on_signal);
    let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler only does what is async-signal-safe.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.expect("a handler");
    while !world.stopping() {
        raise(Signal::SIGUSR1).expect("a signal");
        signalled.read().expect("its count");
        meddle(world, &mut dice);
        thread::yield_now();
    }
}

fn main() {
    let (seconds, seed) = settings("stress of tasks");
    let books = Arc::new(Books::default());
    let counted = books.clone();
    let builder = ThreadLib::builder().panic_hook(move |panic| {
        if panic.message != ON_PURPOSE {
            eprintln!("{panic:?}");
            count(&counted.panicked);
        }
    });
    let world = Arc::new(World {
        library: builder.build(),
        books,
        stop: AtomicBool::new(false),
        threads: SegQueue::new(),
        wakers: SegQueue::new(),
        aborts: SegQueue::new(),
        joins: SegQueue::new(),
        senders: SegQueue::new(),
    });
    let roles: [fn(&Arc<World>, Dice); 7] = [
        poll_and_end,
        poll_and_end,
        meddle_from_outside,
        meddle_on_tokio,
        join_elsewhere,
        meddle_for_signals,
        end_with_wakers,
    ];
    let os_threads: Vec<_> = roles
        .into_iter()
        .zip(0..)
        .map(|(role, n)| {
            let world = world.clone();
            let dice = Dice::of(seed, n);
            thread::spawn(move || role(&world, dice))
        })
        .collect();
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end && !os_threads.iter().any(|t| t.is_finished()) {
        thread::sleep(Duration::from_millis(10));
    }
    world.stop.store(true, Ordering::Relaxed);
    for thread in os_threads {
        thread.join().expect("no thread of the stress panicked");
    }
    while let Some(handle) = world.joins.pop() {
        let joined = join(&world, handle).now_or_never();
        joined.expect("every task has an outcome");
    }
    while let Some(waker) = world.wakers.pop() {
        waker.wake();
    }
    while let Some(abort) = world.aborts.pop() {
        abort.abort();
        assert!(abort.is_finished());
    }
    while world.senders.pop().is_some() {}
    let books = &world.books;
    println!(
        "contents: {} made, {} dropped; {} outcomes, {} hops, {} calls, {} values received, \
         {} shards used, {} wakers used, {} aborts; threads: {} exited, {} dropped",
        read(&books.made),
        read(&books.dropped),
        read(&books.outcomes),
        read(&books.hops),
        read(&books.calls),
        read(&books.received),
        read(&books.sharded),
        read(&books.wakes),
        read(&books.aborts),
        read(&books.exited),
        read(&books.abandoned),
    );
    assert_eq!(read(&books.made), read(&books.dropped));
    assert_eq!(read(&books.strayed), 0, "contents off their OS thread");
    assert_eq!(
        read(&books.panicked),
        0,
        "panics other than those on purpose"
    );
    assert_eq!(world.library.thread_count(), 0);
    println!("test result: ok. 1 passed; 0 failed");
}
