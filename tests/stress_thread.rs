//! Random operations of everything a SpdkThread can hold, from two OS threads,
//! on real time: create, send, register, pause, resume, channel get and put,
//! walks, unregister, move, exit and drop, from outside and from inside
//! messages, pollers, walks and constructors. What a thread holds outlives it
//! now and then, as after a forced exit. At the end the books must balance: each
//! message accepted ran or was dropped with its thread; each context of a
//! channel and each callback is gone, and was dropped where it was made; each
//! walk and unregistration was told to whoever asked, or its callback dropped;
//! no device and no thread is left.
//!
//! `CORESPUN_STRESS_SECONDS` sets how long it runs (2 s), which is how many
//! interleavings it tries, and nothing it asserts; `CORESPUN_STRESS_SEED` repeats
//! a choice of operations. No test harness, so that ThreadSanitizer can follow
//! every edge.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use corespun::channel::{self, IoChannel, IoDevice, WalkStep};
use corespun::thread::{Activity, ParkedThread, Poller, SpdkThread, ThreadLib, ThreadRunner};
use crossbeam_queue::SegQueue;
use harness::stress::*;

const OS_THREADS: usize = 2;
/// SpdkThreads that one OS thread polls.
const HOSTED: usize = 3;
const DEVICES: usize = 6;

thread_local! {
    static DICE: RefCell<Dice> = const { RefCell::new(Dice::new(1)) };
    /// What the SpdkThreads of this OS thread hold, by their ids.
    static HOLDINGS: RefCell<HashMap<u64, Holdings>> = RefCell::default();
    /// Whether messages may be dropped unrun: refused ones, and those of a thread
    /// that is dropped.
    static DROPPING: Cell<bool> = const { Cell::new(false) };
    /// How deep operations are nested in operations.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

fn below(n: usize) -> usize {
    DICE.with_borrow_mut(|dice| dice.below(n as u64) as usize)
}

/// One in `n`.
fn rarely(n: usize) -> bool {
    below(n) == 0
}

fn drop_with_messages<T>(dropped: T) {
    let outer = DROPPING.replace(true);
    drop(dropped);
    DROPPING.set(outer);
}

/// What was begun, and how it ended.
#[derive(Default)]
struct Account {
    begun: AtomicUsize,
    done: AtomicUsize,
    dropped: AtomicUsize,
}

impl Account {
    fn print(&self, what: &str) {
        let [begun, done, dropped] =
            [&self.begun, &self.done, &self.dropped].map(|count| count.load(Ordering::Relaxed));
        println!("{what}: {begun} begun, {done} done, {dropped} dropped");
        assert_eq!(begun, done + dropped, "{what}");
    }
}

#[derive(Default)]
struct Books {
    messages: Account,
    contexts: Account,
    pollers: Account,
    channel_walks: Account,
    thread_walks: Account,
    unregistrations: Account,
    strayed: AtomicUsize,
    lost: AtomicUsize,
    panicked: AtomicUsize,
    forced: AtomicUsize,
    exited: AtomicUsize,
    abandoned: AtomicUsize,
    moved: AtomicUsize,
}

struct World {
    library: ThreadLib,
    books: Arc<Books>,
    stop: AtomicBool,
    threads: SegQueue<SpdkThread>,
    devices: SegQueue<IoDevice<Context>>,
    parked: SegQueue<ParkedThread>,
}

impl World {
    /// One of the threads, which may have exited.
    fn thread(&self) -> Option<SpdkThread> {
        let thread = self.threads.pop()?;
        if !thread.is_exited() || !rarely(8) {
            self.threads.push(thread.clone());
        }
        Some(thread)
    }

    fn device(&self) -> Option<IoDevice<Context>> {
        let device = self.devices.pop()?;
        if device.is_registered() || !rarely(8) {
            self.devices.push(device.clone());
        }
        Some(device)
    }
}

/// In a message: knows whether it was lost.
struct Letter(Entry);

impl Drop for Letter {
    fn drop(&mut self) {
        if !self.0.done && !DROPPING.get() {
            count(&self.0.world.books.lost);
        }
    }
}

/// In whatever is begun once and then done or dropped.
struct Entry {
    world: Arc<World>,
    account: fn(&Books) -> &Account,
    /// Where it must be dropped.
    home: Option<ThreadId>,
    done: bool,
}

impl Entry {
    /// On no particular OS thread.
    fn anywhere(world: &Arc<World>, account: fn(&Books) -> &Account) -> Self {
        count(&account(&world.books).begun);
        Entry {
            world: world.clone(),
            account,
            home: None,
            done: false,
        }
    }

    fn here(world: &Arc<World>, account: fn(&Books) -> &Account) -> Self {
        let mut entry = Entry::anywhere(world, account);
        entry.home = Some(thread::current().id());
        entry
    }

    fn check(&self) {
        // Counted, since a panic in here is contained.
        if self.home.is_some_and(|home| home != thread::current().id()) {
            count(&self.world.books.strayed);
        }
    }

    fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.check();
        let account = (self.account)(&self.world.books);
        count(if self.done {
            &account.done
        } else {
            &account.dropped
        });
    }
}

/// A channel's context, with a channel of another device perhaps.
struct Context {
    entry: Entry,
    touched: Cell<u64>,
    _below: Option<IoChannel<Context>>,
}

impl Context {
    fn touch(&self) {
        self.entry.check();
        self.touched.set(self.touched.get() + 1);
    }
}

#[derive(Default)]
struct Holdings {
    pollers: Vec<Rc<Poller>>,
    channels: Vec<IoChannel<Context>>,
    steps: Vec<WalkStep<Context, ()>>,
}

/// The current SpdkThread's.
fn holdings<R>(f: impl FnOnce(&mut Holdings) -> R) -> R {
    let id = SpdkThread::current().map_or(0, |thread| thread.id());
    HOLDINGS.with_borrow_mut(|all| f(all.entry(id).or_default()))
}

fn take_one<T>(items: &mut Vec<T>) -> Option<T> {
    match items.len() {
        0 => None,
        n => Some(items.swap_remove(below(n))),
    }
}

fn register_device(world: &Arc<World>) {
    if world.devices.len() >= DEVICES {
        return;
    }
    let inside = world.clone();
    // Above another for every second one only: a device keeps its constructor, and
    // that the device below, so that a chain of them without end would be dropped at
    // a depth that no stack has.
    let under = world.device().filter(|_| rarely(2));
    let registered = IoDevice::builder().register(move || {
        if rarely(16) {
            return Err(std::io::Error::other(ON_PURPOSE));
        }
        let below = under.as_ref().and_then(|device| device.channel().ok());
        Ok(Context {
            entry: Entry::here(&inside, |books| &books.contexts),
            touched: Cell::new(0),
            _below: below,
        })
    });
    world.devices.push(registered.expect("a thread is current"));
}

fn unregister_device(world: &Arc<World>, device: &IoDevice<Context>) {
    let entry = Entry::here(world, |books| &books.unregistrations);
    let _ = device.unregister_with(move || entry.done());
}

fn register_poller(world: &Arc<World>) {
    let (inside, entry) = (world.clone(), Entry::here(world, |books| &books.pollers));
    let period = match below(2) {
        0 => Duration::ZERO,
        _ => Duration::from_micros(below(200) as u64),
    };
    let poller = Poller::timed(period, move || {
        entry.check();
        if rarely(8) {
            operate(&inside);
        }
        if rarely(500) {
            std::panic::resume_unwind(Box::new(ON_PURPOSE));
        }
        Activity::Idle
    });
    match poller {
        Ok(poller) => holdings(|held| held.pollers.push(Rc::new(poller))),
        Err(_) => assert!(SpdkThread::current().is_some()),
    }
}

fn with_poller(f: impl FnOnce(&Poller)) {
    let poller = holdings(|held| match held.pollers.len() {
        0 => None,
        n => held.pollers.get(below(n)).cloned(),
    });
    if let Some(poller) = poller {
        f(&poller);
    }
}

fn walk_channels(world: &Arc<World>, device: &IoDevice<Context>) {
    let (inside, entry) = (
        world.clone(),
        Entry::here(world, |books| &books.channel_walks),
    );
    // Either kind is refused by the drop of its completion.
    let _ = if rarely(2) {
        device.for_each_channel(
            move |context| {
                context.touch();
                if rarely(4) {
                    operate(&inside);
                }
                if rarely(200) {
                    std::panic::resume_unwind(Box::new(ON_PURPOSE));
                }
                if rarely(16) { Err(()) } else { Ok(()) }
            },
            move |_| entry.done(),
        )
    } else {
        device.for_each_channel_step(
            move |step| {
                step.touch();
                match below(4) {
                    0 => drop(step),
                    1 => holdings(|held| held.steps.push(step)),
                    _ => step.proceed(if rarely(16) { Err(()) } else { Ok(()) }),
                }
            },
            move |_| entry.done(),
        )
    };
}

fn walk_threads(world: &Arc<World>) {
    let (inside, entry) = (
        world.clone(),
        Entry::anywhere(world, |books| &books.thread_walks),
    );
    let _ = world.library.for_each_thread(
        move |thread| {
            assert!(thread.is_current());
            if rarely(4) {
                operate(&inside);
            }
        },
        move |_| entry.done(),
    );
}

fn send(world: &Arc<World>, thread: &SpdkThread) {
    for _ in 0..below(6) {
        let mut letter = Letter(Entry::anywhere(world, |books| &books.messages));
        let sent = thread.send_msg(move || {
            letter.0.done = true;
            if rarely(3) {
                operate(&letter.0.world);
            }
        });
        if let Err(error) = sent {
            assert!(error.is_full() || error.is_exited());
            // Comes back whole, to be dropped here.
            drop_with_messages(error.into_message());
        }
    }
}

/// One operation on the current SpdkThread.
fn operate(world: &Arc<World>) {
    // One may lead to another, by way of a constructor or a drop.
    if DEPTH.get() > 3 {
        return;
    }
    DEPTH.set(DEPTH.get() + 1);
    match below(24) {
        0 | 1 => register_poller(world),
        2 => with_poller(Poller::pause),
        3 | 4 => with_poller(Poller::resume),
        5 => drop(holdings(|held| take_one(&mut held.pollers))),
        6..9 => {
            let channel = world.device().and_then(|device| device.channel().ok());
            if let Some(channel) = channel {
                channel.touch();
                holdings(|held| {
                    let device = channel.device();
                    let mut others = held.channels.iter().filter(|c| c.device() == device);
                    assert!(others.all(|c| c.same_channel(&channel)));
                    held.channels.push(channel);
                });
            }
        }
        9 => holdings(|held| {
            let again = held.channels.first().cloned();
            held.channels.extend(again);
        }),
        10..14 => drop(holdings(|held| take_one(&mut held.channels))),
        14 | 15 => {
            if let Some(device) = world.device() {
                walk_channels(world, &device);
            }
        }
        16 | 17 => {
            if let Some(step) = holdings(|held| take_one(&mut held.steps)) {
                step.touch();
                step.proceed(Ok(()));
            }
        }
        18 => register_device(world),
        19 => {
            if let Some(device) = world.device().filter(|_| rarely(4)) {
                unregister_device(world, &device);
            }
        }
        20 | 21 => {
            if let Some(thread) = world.thread() {
                send(world, &thread);
            }
        }
        22 => walk_threads(world),
        _ => {
            if let Some(thread) = world.thread().filter(|_| rarely(100)) {
                drop(thread.exit());
            }
        }
    }
    DEPTH.set(DEPTH.get() - 1);
}

/// Drops what a thread held, on its OS thread, while it lives or afterwards.
fn let_go(id: u64) {
    let held = HOLDINGS.with_borrow_mut(|all| all.remove(&id));
    drop(held);
}

fn host(world: &Arc<World>) -> ThreadRunner {
    let parked = world.parked.pop().unwrap_or_else(|| {
        let builder = world.library.thread().ring(4).message_limit(64);
        let builder = builder.exit_timeout(Duration::from_millis(below(4) as u64));
        let parked = builder.build().expect("ids do not run out");
        world.threads.push(parked.handle());
        parked
    });
    parked.attach()
}

/// Polls an exiting thread until it has exited, and the others of its OS thread:
/// walks it waits for may be on those.
fn finish(world: &Arc<World>, runner: &mut ThreadRunner, others: &mut [ThreadRunner]) {
    let id = runner.handle().id();
    // Else it is held to the end of its patience.
    let forced = rarely(2);
    if forced {
        count(&world.books.forced);
    }
    drop(runner.exit());
    while !runner.is_exited() {
        runner.poll(0, 0);
        if !forced {
            runner.enter(|| let_go(id));
        }
        for other in &mut *others {
            other.poll(0, 0);
        }
        if rarely(16) {
            // The other OS thread may have to go on for this one to end.
            thread::yield_now();
        }
    }
    count(&world.books.exited);
}

fn poll_and_operate(world: &Arc<World>, dice: Dice) {
    DICE.set(dice);
    let mut hosted: Vec<ThreadRunner> = Vec::new();
    while !world.stop.load(Ordering::Relaxed) {
        while hosted.len() < HOSTED {
            hosted.push(host(world));
        }
        let at = below(hosted.len());
        let runner = &mut hosted[at];
        for _ in 0..below(40) {
            runner.poll(below(10), 0);
            if rarely(4) {
                runner.enter(|| operate(world));
            }
        }
        if !rarely(10) && !runner.is_exited() {
            continue;
        }
        let mut runner = hosted.swap_remove(at);
        let id = runner.handle().id();
        match below(4) {
            0 => {
                // Dropped without exit, with all it holds.
                drop_with_messages(runner);
                count(&world.books.abandoned);
            }
            1 => match runner.park() {
                Ok(parked) => {
                    count(&world.books.moved);
                    world.parked.push(parked);
                }
                Err(runner) => hosted.push(runner),
            },
            _ => {
                finish(world, &mut runner, &mut hosted);
                drop(runner);
            }
        }
        if !hosted.iter().any(|runner| runner.handle().id() == id) {
            let_go(id);
        }
    }
    while let Some(mut runner) = hosted.pop() {
        let id = runner.handle().id();
        finish(world, &mut runner, &mut hosted);
        drop(runner);
        let_go(id);
    }
    let left = HOLDINGS.take();
    drop(left);
}

/// Unregisters what devices are left, and expects to hear of each.
fn unregister_all(world: &Arc<World>) {
    let mut last = world.library.thread().build().expect("an id").attach();
    last.enter(|| {
        while let Some(device) = world.devices.pop() {
            if device.is_registered() {
                unregister_device(world, &device);
            }
        }
    });
    drop(last.exit());
    let patience = Instant::now() + Duration::from_secs(60);
    while !last.is_exited() {
        last.poll(0, 0);
        assert!(Instant::now() < patience, "{:?}", last.exit_holders());
    }
}

fn main() {
    let (seconds, seed) = settings("stress of threads");
    let books = Arc::new(Books::default());
    let counted = books.clone();
    let builder = ThreadLib::builder().panic_hook(move |panic| {
        if panic.message != ON_PURPOSE {
            count(&counted.panicked);
        }
    });
    let world = Arc::new(World {
        library: builder.build(),
        books,
        stop: AtomicBool::new(false),
        threads: SegQueue::new(),
        devices: SegQueue::new(),
        parked: SegQueue::new(),
    });
    let os_threads: Vec<_> = (0..OS_THREADS)
        .map(|n| {
            let world = world.clone();
            let dice = Dice::of(seed, n);
            thread::spawn(move || poll_and_operate(&world, dice))
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
    while let Some(parked) = world.parked.pop() {
        drop_with_messages(parked);
    }
    unregister_all(&world);
    let books = &world.books;
    books.messages.print("messages");
    books.contexts.print("channels");
    books.pollers.print("pollers");
    books.channel_walks.print("walks over channels");
    books.thread_walks.print("walks over threads");
    books.unregistrations.print("unregistrations");
    let [exited, forced, abandoned, moved] =
        [&books.exited, &books.forced, &books.abandoned, &books.moved]
            .map(|count| count.load(Ordering::Relaxed));
    println!("threads: {exited} exited ({forced} while held), {abandoned} dropped, {moved} moves");
    assert_eq!(books.strayed.load(Ordering::Relaxed), 0);
    let panicked = books.panicked.load(Ordering::Relaxed);
    assert_eq!(panicked, 0, "panics other than those on purpose");
    let lost = books.lost.load(Ordering::Relaxed);
    assert_eq!(lost, 0, "messages dropped by an exit");
    let devices = channel::devices(&world.library);
    assert!(devices.is_empty(), "{devices:?}");
    assert_eq!(world.library.thread_count(), 0);
    println!("test result: ok. 1 passed; 0 failed");
}
