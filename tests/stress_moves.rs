//! 64 SpdkThreads that never stay: what each holds (a timed or active poller, a
//! poller stream, a channel, timers, tasks) is `Send`, and its poller sends it from
//! reactor to reactor, of which there are four, in whatever mode each is then.
//! Meanwhile they, and OS threads that are no reactors, flood each other with
//! messages, and walk over all channels and threads. Each accepted message runs once,
//! those of one sender to one thread in the order sent, on that thread; at the end the
//! books balance: what was made is gone, and each walk has come back.
//!
//! `CORESPUN_STRESS_SECONDS` sets how long it runs (2 s), and nothing it asserts;
//! `CORESPUN_STRESS_SEED` repeats a choice of operations. No test harness, so that
//! it runs under ThreadSanitizer.

use std::cell::{Cell, RefCell, UnsafeCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use corespun::app::{App, AppHandle};
use corespun::channel::{IoDevice, SendChannel};
use corespun::cpu::{self, CpuSet};
use corespun::reactor::ReactorMode;
use corespun::stream::PollerStream;
use corespun::thread::{PollerBuilder, SendPoller, SpdkThread};
use corespun::{task, time};
use futures::StreamExt;
use harness::stress::*;

const CORES: usize = 4;
const THREADS: usize = 64;
/// OS threads that send as well.
const FOREIGN: usize = 2;
const SENDERS: usize = THREADS + FOREIGN;
/// No expectation: far beyond what a loaded machine needs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Made and gone.
#[derive(Default)]
struct Account {
    made: AtomicUsize,
    gone: AtomicUsize,
}

impl Account {
    fn print(&self, what: &str) {
        let (made, gone) = (read(&self.made), read(&self.gone));
        println!("{what}: {made} made, {gone} gone");
        assert_eq!(made, gone, "{what}");
    }
}

#[derive(Default)]
struct Books {
    messages: Account,
    walks: Account,
    contexts: Account,
    callbacks: Account,
    tasks: Account,
    refused: AtomicUsize,
    disordered: AtomicUsize,
    strayed: AtomicUsize,
    moves: AtomicUsize,
}

struct World {
    app: AppHandle,
    books: Arc<Books>,
    stop: AtomicBool,
    device: IoDevice<Ledger>,
    channels: Directory,
}

type Channels = Vec<Option<SendChannel<Ledger>>>;

/// The channel of each thread, once it has one. A lock of the standard library would
/// hide edges from ThreadSanitizer.
struct Directory {
    locked: AtomicBool,
    channels: UnsafeCell<Channels>,
}

// SAFETY: `channels` is touched by whoever has set `locked`.
unsafe impl Sync for Directory {}

impl Directory {
    /// `f` does not call back.
    fn with<R>(&self, f: impl FnOnce(&mut Channels) -> R) -> R {
        while self.locked.swap(true, Ordering::Acquire) {
            thread::yield_now();
        }
        // SAFETY: this has set `locked`.
        let result = f(unsafe { &mut *self.channels.get() });
        self.locked.store(false, Ordering::Release);
        result
    }
}

/// In whatever is made once, and must go.
struct Entry {
    books: Arc<Books>,
    account: fn(&Books) -> &Account,
}

impl Entry {
    fn new(books: &Arc<Books>, account: fn(&Books) -> &Account) -> Self {
        count(&account(books).made);
        Entry {
            books: books.clone(),
            account,
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        count(&(self.account)(&self.books).gone);
    }
}

/// The channel's context: what one thread has sent and received. Touched by that
/// thread only, without a lock, from whichever OS thread.
struct Ledger {
    sent: RefCell<Vec<usize>>,
    received: RefCell<Vec<usize>>,
    visits: Cell<usize>,
    entry: Entry,
}

impl Ledger {
    fn new(books: &Arc<Books>) -> Self {
        Ledger {
            sent: RefCell::new(vec![0; THREADS]),
            received: RefCell::new(vec![0; SENDERS]),
            visits: Cell::new(0),
            entry: Entry::new(books, |books| &books.contexts),
        }
    }

    fn receive(&self, sender: usize, number: usize) {
        let due = &mut self.received.borrow_mut()[sender];
        if *due != number {
            count(&self.entry.books.disordered);
        }
        *due = number + 1;
        count(&self.entry.books.messages.gone);
    }
}

impl World {
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn peer(&self, dice: &mut Dice) -> Option<(usize, SendChannel<Ledger>)> {
        let peer = dice.below(THREADS as u64) as usize;
        let channel = self.channels.with(|all| all.get(peer)?.clone());
        Some((peer, channel?))
    }

    /// Sends one of them some messages, numbered on from `sent`.
    fn send(self: &Arc<Self>, dice: &mut Dice, sender: usize, sent: &mut [usize]) {
        let Some((peer, channel)) = self.peer(dice) else {
            return;
        };
        let thread = channel.thread();
        for _ in 0..dice.below(8) {
            let (number, to, world) = (sent[peer], channel.clone(), self.clone());
            let answer = (dice.below(4) == 0).then(|| dice.other());
            // Before it can be received.
            count(&self.books.messages.made);
            let message = thread.send_msg(move || {
                let received = to.with(|ledger| ledger.receive(sender, number));
                if received.is_err() {
                    count(&world.books.strayed);
                }
                if let Some(mut dice) = answer.filter(|_| !world.is_over()) {
                    let _ = to.with(|ledger| {
                        let sent = &mut ledger.sent.borrow_mut();
                        world.send(&mut dice, peer, sent);
                    });
                }
            });
            match message {
                Ok(()) => sent[peer] += 1,
                Err(error) => {
                    assert!(error.is_full(), "{error}");
                    count(&self.books.messages.gone);
                    count(&self.books.refused);
                }
            }
        }
    }

    fn walk_threads(&self) {
        let walk = Entry::new(&self.books, |books| &books.walks);
        let library = self.app.library();
        let walked = library.for_each_thread(|_| (), move |_| drop(walk));
        assert!(walked.is_ok() || self.is_over());
    }

    async fn walk_channels(&self) {
        let _walk = Entry::new(&self.books, |books| &books.walks);
        let walk = self.device.walk_channels(async |channel| {
            channel.visits.set(channel.visits.get() + 1);
            if channel.visits.get() % 3 == 0 {
                task::yield_now().await;
            }
            Ok::<_, ()>(())
        });
        let _ = walk.await;
    }
}

/// The poller that sends its thread on and on.
fn wander(world: &Arc<World>, mut dice: Dice) -> SendPoller {
    let here = SpdkThread::current().expect("on a thread");
    let entry = Entry::new(&world.books, |books| &books.callbacks);
    let world = world.clone();
    let mut place: Option<ThreadId> = None;
    let period = match dice.below(8) {
        0 => Duration::ZERO,
        _ => Duration::from_micros(20 + dice.below(400)),
    };
    let builder = PollerBuilder::default().name("wander").period(period);
    let poller = builder.register_send(move || {
        let _ = &entry;
        if !here.is_current() {
            count(&world.books.strayed);
        }
        let now = thread::current().id();
        if place.replace(now).is_some_and(|before| before != now) {
            count(&world.books.moves);
        }
        // An active one would keep it moving only.
        if dice.below(if period.is_zero() { 500 } else { 3 }) == 0 {
            let core = dice.below(CORES as u64) as usize;
            let _ = here.set_cpumask(&CpuSet::single(core));
        }
    });
    poller.expect("the thread runs")
}

/// What one thread does all its life.
async fn live(world: Arc<World>, me: usize, mut dice: Dice) {
    let _entry = Entry::new(&world.books, |books| &books.tasks);
    let channel = world.device.send_channel().expect("the device is there");
    let known = channel.clone();
    world.channels.with(|all| all[me] = Some(known));
    let wanderer = wander(&world, dice.other());
    let period = Duration::from_micros(50 + dice.below(200));
    let ticks = PollerStream::<usize>::builder().period(period).capacity(4);
    let mut tick = 0;
    let ticks = ticks.register_send(move || {
        tick += 1;
        Some(tick)
    });
    let mut ticks = ticks.expect("the thread runs").enumerate();
    while let Some((before, tick)) = ticks.next().await {
        assert_eq!(before + 1, tick);
        if world.is_over() {
            break;
        }
        let sent = channel.with(|ledger| {
            let sent = &mut ledger.sent.borrow_mut();
            world.send(&mut dice, me, sent);
        });
        sent.expect("this is its thread");
        match dice.below(60) {
            0 => world.walk_channels().await,
            1 => world.walk_threads(),
            2 => wanderer.pause(),
            3..8 => wanderer.resume(),
            8 => {
                // Its handle, dropped elsewhere, ends another poller of this thread.
                let other = wander(&world, dice.other());
                if let Some((_, peer)) = world.peer(&mut dice) {
                    let _ = peer.thread().send_msg(move || drop(other));
                }
            }
            9..20 => time::sleep(Duration::from_micros(dice.below(300))).await,
            20 => {
                let _ = task::spawn(task::yield_now()).await;
            }
            _ => {}
        }
    }
    // Until the exit.
    std::future::pending::<()>().await;
}

/// An OS thread that sends, and switches the modes of the reactors.
fn interfere(world: &Arc<World>, me: usize, mut dice: Dice) {
    const MODES: [ReactorMode; 3] = [
        ReactorMode::Poll,
        ReactorMode::Adaptive,
        ReactorMode::Interrupt,
    ];
    let mut sent = vec![0; THREADS];
    while !world.is_over() {
        world.send(&mut dice, me, &mut sent);
        if dice.below(200) == 0 {
            let core = dice.below(CORES as u64) as usize;
            let mode = MODES[dice.below(3) as usize];
            drop(world.app.reactors().set_mode(core, mode));
        }
        if dice.below(4) == 0 {
            thread::sleep(Duration::from_micros(dice.below(100)));
        }
    }
}

/// Waits until all that was sent has arrived and each walk is back.
async fn settle(books: &Books) {
    let since = Instant::now();
    while [&books.messages, &books.walks]
        .iter()
        .any(|account| read(&account.made) != read(&account.gone))
    {
        let waited = since.elapsed();
        assert!(waited < PATIENCE, "messages or walks are lost");
        time::sleep(Duration::from_millis(1)).await;
    }
}

async fn run(app: AppHandle, seconds: u64, seed: u64) -> Arc<World> {
    let books: Arc<Books> = Arc::default();
    let counted = books.clone();
    let builder = IoDevice::builder().name("ledgers");
    let device = builder.register(move || Ok::<_, std::io::Error>(Ledger::new(&counted)));
    let world = Arc::new(World {
        app,
        books,
        stop: AtomicBool::new(false),
        device: device.expect("on the app thread"),
        channels: Directory {
            locked: AtomicBool::new(false),
            channels: UnsafeCell::new(vec![None; THREADS]),
        },
    });
    let mut threads = Vec::new();
    for me in 0..THREADS {
        let builder = world.app.thread().name(format!("wanderer {me}"));
        // None is forced.
        let builder = builder.exit_timeout(2 * PATIENCE);
        let thread = builder.create().expect("the app runs");
        drop(thread.spawn(live(world.clone(), me, Dice::of(seed, me))));
        threads.push(thread);
    }
    let foreign: Vec<_> = (THREADS..SENDERS)
        .map(|me| {
            let (world, dice) = (world.clone(), Dice::of(seed, me));
            thread::spawn(move || interfere(&world, me, dice))
        })
        .collect();
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end && !foreign.iter().any(|one| one.is_finished()) {
        time::sleep(Duration::from_millis(10)).await;
    }
    world.stop.store(true, Ordering::Relaxed);
    while !foreign.iter().all(|one| one.is_finished()) {
        time::sleep(Duration::from_millis(1)).await;
    }
    for one in foreign {
        one.join().expect("no OS thread panicked");
    }
    settle(&world.books).await;
    let channels = world.channels.with(std::mem::take);
    // The last but those of the tasks, dropped away from their threads.
    drop(channels);
    for thread in &threads {
        let bound = thread.bound_by().await.expect("it runs");
        assert_eq!(bound, [], "{}", thread.name());
    }
    let exits: Vec<_> = threads.iter().map(SpdkThread::exit).collect();
    for exit in exits {
        let ended = time::timeout(PATIENCE, exit).await;
        assert!(ended.is_ok(), "something is left that holds a thread");
    }
    let gone = world.device.unregister().expect("once");
    gone.await.expect("its last channel is gone");
    world
}

fn main() {
    let (seconds, seed) = settings("stress of moves");
    let cpus: Vec<_> = cpu::available().expect("a mask").iter().collect();
    let cores = (0..CORES).map(|core| (core, cpus[core % cpus.len()]));
    let builder = App::builder().lcores(cores).handle_signals(false);
    let world = builder.block_on(async move |app: AppHandle| run(app, seconds, seed).await);
    let world = world.expect("the app runs");
    let books = &*world.books;
    books.messages.print("messages");
    books.walks.print("walks");
    books.contexts.print("channels");
    books.callbacks.print("pollers");
    books.tasks.print("tasks");
    let (moves, refused) = (read(&books.moves), read(&books.refused));
    println!("{moves} moves, {refused} messages refused");
    assert_eq!(read(&books.contexts.made), THREADS);
    assert_eq!(read(&books.disordered), 0, "out of order");
    assert_eq!(read(&books.strayed), 0, "on another thread");
    assert!(moves > 0, "no thread ever moved");
    assert_eq!(world.app.library().thread_count(), 0);
    println!("test result: ok. 1 passed; 0 failed");
}
