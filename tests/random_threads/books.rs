//! The books: what must be true of each value, message and buffer, whatever the
//! program does with it.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use corespun::app::AppHandle;
use corespun::clock::VirtualClock;
use corespun::iobuf::{Iobuf, IobufBuf};
use corespun::thread::{ParkedThread, SpdkThread, SpinMutex, Spinlock, ThreadLib};
use nix::sys::eventfd::EventFd;

use crate::here::site;
use crate::messages::take_refused;
use crate::perform::perform_all;
use crate::within::Shelf;
use crate::{Kind, Step};
use harness::random::Panics;
use harness::stress::ON_PURPOSE;

/// The OS thread that polls a SpdkThread, when none does.
pub const NOWHERE: usize = usize::MAX;

/// A list that any OS thread may change. A lock of the standard library would hide
/// edges from ThreadSanitizer. No user code runs while it is held.
pub struct Pile<T> {
    locked: AtomicBool,
    items: std::cell::UnsafeCell<Vec<T>>,
}

// SAFETY: `items` is touched by whoever has set `locked`.
unsafe impl<T: Send> Sync for Pile<T> {}

impl<T> Default for Pile<T> {
    fn default() -> Self {
        Pile {
            locked: AtomicBool::new(false),
            items: std::cell::UnsafeCell::default(),
        }
    }
}

impl<T> Pile<T> {
    pub fn with<R>(&self, f: impl FnOnce(&mut Vec<T>) -> R) -> R {
        while self.locked.swap(true, Ordering::Acquire) {
            std::thread::yield_now();
        }
        // SAFETY: this has set `locked`; `f` does not call back.
        let result = f(unsafe { &mut *self.items.get() });
        self.locked.store(false, Ordering::Release);
        result
    }

    pub fn push(&self, item: T) {
        self.with(|items| items.push(item));
    }

    /// Takes the `n`th, modulo how many there are.
    pub fn take(&self, n: usize) -> Option<T> {
        self.with(|items| match items.len() {
            0 => None,
            len => Some(items.remove(n % len)),
        })
    }

    pub fn take_all(&self) -> Vec<T> {
        self.with(std::mem::take)
    }

    pub fn len(&self) -> usize {
        self.with(|items| items.len())
    }
}

impl<T: Clone> Pile<T> {
    pub fn choose(&self, n: usize) -> Option<T> {
        self.with(|items| match items.len() {
            0 => None,
            len => items.get(n % len).cloned(),
        })
    }
}

pub struct Library {
    pub library: ThreadLib,
    /// In the exact form. A tick is a second there, so that no timer of the kernel
    /// expires while the program runs.
    pub time: Option<VirtualClock>,
    pub threads: Pile<Arc<Record>>,
    pub devices: Pile<Device>,
    pub pools: Pile<Arc<Pool>>,
}

/// What all OS threads of one program share.
pub struct World {
    /// One step after the other, on whatever OS thread; else all at once.
    pub exact: bool,
    /// Whose reactors poll some threads of the first library.
    pub app: Option<AppHandle>,
    pub libraries: [Library; 2],
    pub parked: Pile<(Arc<Record>, ParkedThread)>,
    pub buffers: Pile<Buffer>,
    pub senders: Pile<crate::queues::MpscSender>,
    pub wakers: Pile<std::task::Waker>,
    pub aborts: Pile<corespun::task::AbortHandle>,
    pub joins: Pile<corespun::task::JoinHandle<Value>>,
    pub moving: crate::moving::Moving,
    pub bells: Vec<Arc<EventFd>>,
    pub spinlock: Arc<Spinlock>,
    pub shelf: SpinMutex<Shelf>,
    pub performed: AtomicUsize,
    /// Threads that have neither exited nor been dropped.
    pub unended: AtomicUsize,
    /// OS threads that have come to the end.
    pub arrived: AtomicUsize,
    pub ended: AtomicBool,
    failures: Pile<String>,
    clock: AtomicU64,
    values: Pile<Arc<ValueBook>>,
    /// Addresses of the buffers that somebody has.
    out: Pile<usize>,
}

impl World {
    pub fn new(exact: bool, app: Option<AppHandle>) -> Arc<Self> {
        Arc::new_cyclic(|world: &std::sync::Weak<World>| {
            let library = || {
                let (builder, time) = match exact {
                    true => {
                        let (clock, time) = corespun::clock::Clock::virtual_at(1);
                        time.advance(1);
                        (ThreadLib::builder().clock(clock), Some(time))
                    }
                    false => (ThreadLib::builder(), None),
                };
                let world = world.clone();
                let builder = builder.panic_hook(move |panic| {
                    if panic.message != ON_PURPOSE
                        && let Some(world) = world.upgrade()
                    {
                        world.fail(format!("contained panic: {}", panic.message));
                    }
                });
                Library {
                    library: builder.build(),
                    time,
                    threads: Pile::default(),
                    devices: Pile::default(),
                    pools: Pile::default(),
                }
            };
            let mut libraries = [library(), library()];
            if let Some(app) = &app {
                libraries[0].library = app.library();
            }
            World {
                exact,
                app,
                libraries,
                parked: Pile::default(),
                buffers: Pile::default(),
                senders: Pile::default(),
                wakers: Pile::default(),
                aborts: Pile::default(),
                joins: Pile::default(),
                moving: crate::moving::Moving::default(),
                bells: (0..3)
                    .map(|_| {
                        let flags = nix::sys::eventfd::EfdFlags::EFD_NONBLOCK;
                        Arc::new(EventFd::from_flags(flags).expect("a descriptor"))
                    })
                    .collect(),
                // Wrong use is an error value.
                spinlock: Arc::new(Spinlock::with_hook(|_| ())),
                shelf: SpinMutex::with_hook(Shelf::default(), |_| ()),
                performed: AtomicUsize::new(0),
                unended: AtomicUsize::new(0),
                arrived: AtomicUsize::new(0),
                ended: AtomicBool::new(false),
                failures: Pile::default(),
                clock: AtomicU64::new(1),
                values: Pile::default(),
                out: Pile::default(),
            }
        })
    }

    /// Says that something was wrong; the program goes on.
    pub fn fail(&self, what: impl Into<String>) {
        self.failures.push(what.into());
    }

    pub fn failed(&self) -> Option<String> {
        self.failures.choose(0)
    }

    pub fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::AcqRel)
    }

    /// So many units of time: seconds in the exact form, else microseconds.
    pub fn time(&self, units: usize) -> Duration {
        match self.exact {
            true => Duration::from_secs(units as u64),
            false => Duration::from_micros(units as u64),
        }
    }

    /// At the end: each value was dropped, each buffer has come back.
    pub fn check_values(&self) {
        for value in self.values.take_all() {
            if value.drops.load(Ordering::Acquire) == 0 {
                self.fail(format!("value never dropped: of a {:?}", value.kind));
            }
        }
        if self.out.len() > 0 {
            self.fail("buffer never came back");
        }
    }
}

/// One SpdkThread.
pub struct Record {
    pub number: u64,
    pub library: usize,
    pub handle: SpdkThread,
    /// The OS thread that may poll it now.
    pub host: AtomicUsize,
    /// On a reactor, which is known only once it has run.
    pub placed: bool,
    /// Its runner is being dropped: its messages may be dropped unrun.
    pub abandoned: AtomicBool,
    /// Messages that were accepted and have neither run nor been dropped.
    pub waiting: AtomicUsize,
    pub order: Order,
    /// Messages that ran in the poll under way.
    pub ran: AtomicUsize,
}

impl Record {
    pub fn is_here(&self) -> bool {
        if self.placed && self.handle.is_current() {
            self.host.store(site(), Ordering::Relaxed);
        }
        self.host.load(Ordering::Relaxed) == site()
    }
}

/// When something was sent.
#[derive(Clone)]
pub struct Stamp {
    begin: u64,
    /// `u64::MAX` while it is under way.
    end: Arc<AtomicU64>,
}

impl Stamp {
    pub fn begin(world: &World) -> Self {
        Stamp {
            begin: world.tick(),
            end: Arc::new(AtomicU64::new(u64::MAX)),
        }
    }

    pub fn sent(&self, world: &World) {
        self.end.store(world.tick(), Ordering::Release);
    }
}

/// That what was sent before something else began to be sent runs before it.
#[derive(Default)]
pub struct Order(AtomicU64);

impl Order {
    /// What was stamped runs now; whether it may.
    pub fn allows(&self, stamp: &Stamp) -> bool {
        let newest = self.0.fetch_max(stamp.begin, Ordering::AcqRel);
        stamp.end.load(Ordering::Acquire) >= newest
    }
}

/// Where a value may be used and dropped.
#[derive(Clone)]
pub enum Home {
    Anywhere,
    /// It is not `Send`.
    OsThread(usize),
    /// It moves with a SpdkThread.
    Thread(Arc<Record>),
}

struct ValueBook {
    kind: Kind,
    drops: AtomicUsize,
}

/// In everything that the program hands over: dropped once, where it may be, and
/// its destructor is a user's.
pub struct Value {
    pub world: Arc<World>,
    pub step: Arc<Step>,
    book: Arc<ValueBook>,
    home: Home,
}

impl Value {
    pub fn new(world: &Arc<World>, step: &Arc<Step>, home: Home) -> Self {
        let book = Arc::new(ValueBook {
            kind: step.kind,
            drops: AtomicUsize::new(0),
        });
        world.values.push(book.clone());
        Value {
            world: world.clone(),
            step: step.clone(),
            book,
            home,
        }
    }

    /// That is not `Send`.
    pub fn here(world: &Arc<World>, step: &Arc<Step>) -> Self {
        Value::new(world, step, Home::OsThread(site()))
    }

    pub fn anywhere(world: &Arc<World>, step: &Arc<Step>) -> Self {
        Value::new(world, step, Home::Anywhere)
    }

    pub fn check(&self, what: &str) {
        let strayed = match &self.home {
            Home::Anywhere => false,
            Home::OsThread(home) => *home != site(),
            Home::Thread(record) => !record.is_here(),
        };
        if strayed {
            let kind = self.book.kind;
            self.world
                .fail(format!("strayed: a {kind:?} was {what} elsewhere"));
        }
        if self.book.drops.load(Ordering::Acquire) > 0 {
            let kind = self.book.kind;
            self.world
                .fail(format!("gone: a {kind:?} was {what} after its drop"));
        }
    }

    /// What a callback that owns this does.
    pub fn call(&self) {
        self.check("called");
        perform_all(&self.world, &self.step.then);
        self.may_panic();
    }

    pub fn may_panic(&self) {
        if self.step.panics == Panics::InCall {
            std::panic::resume_unwind(Box::new(ON_PURPOSE));
        }
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        self.check("dropped");
        self.book.drops.fetch_add(1, Ordering::AcqRel);
        perform_all(&self.world, &self.step.at_drop);
        if self.step.panics == Panics::AtDrop && !std::thread::panicking() {
            std::panic::resume_unwind(Box::new(ON_PURPOSE));
        }
    }
}

/// A message that was accepted.
pub struct Letter {
    pub value: Value,
    to: Arc<Record>,
    stamp: Stamp,
    open: bool,
}

impl Letter {
    pub fn new(world: &Arc<World>, step: &Arc<Step>, to: &Arc<Record>) -> (Self, Stamp) {
        let stamp = Stamp::begin(world);
        to.waiting.fetch_add(1, Ordering::AcqRel);
        let letter = Letter {
            value: Value::anywhere(world, step),
            to: to.clone(),
            stamp: stamp.clone(),
            open: true,
        };
        (letter, stamp)
    }

    fn close(&mut self) -> bool {
        let open = std::mem::replace(&mut self.open, false);
        if open {
            self.to.waiting.fetch_sub(1, Ordering::AcqRel);
        }
        open
    }

    pub fn run(self) {
        if !self.to.order.allows(&self.stamp) {
            self.value
                .world
                .fail("message: ran after one that was sent later");
        }
        self.to.ran.fetch_add(1, Ordering::Relaxed);
        self.run_now();
    }

    /// Without having waited.
    pub fn run_now(mut self) {
        let world = self.value.world.clone();
        if !self.to.handle.is_current() || !self.to.is_here() {
            world.fail("message: ran on another thread");
        }
        if !self.close() {
            world.fail("message: ran twice");
        }
        self.value.call();
    }
}

impl Drop for Letter {
    fn drop(&mut self) {
        let refused = take_refused();
        if self.close() && !refused && !self.to.abandoned.load(Ordering::Acquire) {
            self.value.world.fail("message: dropped unrun");
        }
    }
}

#[derive(Clone)]
pub struct Device {
    pub device: corespun::channel::IoDevice<Context>,
    pub number: u64,
}

/// A channel's context.
pub struct Context {
    pub value: Value,
    pub device: u64,
    pub record: Arc<Record>,
    pub touched: Cell<u64>,
    pub _below: Option<corespun::channel::IoChannel<Context>>,
}

impl Context {
    pub fn touch(&self) {
        self.value.check("used");
        self.touched.set(self.touched.get() + 1);
        if !self.record.handle.is_current() && SpdkThread::current().is_some() {
            self.value.world.fail("channel: of another thread");
        }
    }
}

pub struct Pool {
    pub iobuf: Iobuf,
    waits: Pile<Wait>,
}

struct Wait {
    number: u64,
    thread: u64,
}

impl Pool {
    pub fn new(iobuf: Iobuf) -> Arc<Self> {
        Arc::new(Pool {
            iobuf,
            waits: Pile::default(),
        })
    }

    pub fn free(&self) -> usize {
        self.iobuf.free_counts()[1]
    }

    /// The threads that requests wait on.
    pub fn waiters(&self) -> Vec<u64> {
        self.waits
            .with(|waits| waits.iter().map(|wait| wait.thread).collect())
    }
}

/// One request for a buffer that waits. A thread's are served in the order made.
pub struct Waiting {
    world: Arc<World>,
    pool: Arc<Pool>,
    number: u64,
}

impl Waiting {
    pub fn new(world: &Arc<World>, pool: &Arc<Pool>, record: &Record) -> Self {
        let wait = Wait {
            number: world.tick(),
            thread: record.number,
        };
        let number = wait.number;
        pool.waits.push(wait);
        Waiting {
            world: world.clone(),
            pool: pool.clone(),
            number,
        }
    }

    /// Its buffer has come.
    pub fn served(&self) {
        let first = self.pool.waits.with(|waits| {
            let own = waits.iter().find(|wait| wait.number == self.number);
            let thread = own.map(|wait| wait.thread);
            let mut earlier = waits.iter().filter(|wait| wait.number < self.number);
            earlier.all(|wait| Some(wait.thread) != thread)
        });
        if !first {
            self.world
                .fail("iobuf: a request was served before an earlier one");
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let number = self.number;
        self.pool
            .waits
            .with(|waits| waits.retain(|w| w.number != number));
    }
}

/// A buffer, which only one has.
pub struct Buffer {
    world: Arc<World>,
    buffer: Option<IobufBuf>,
    mark: [u8; 8],
}

impl Buffer {
    pub fn new(world: &Arc<World>, mut buffer: IobufBuf) -> Self {
        let address = buffer.as_ptr().addr();
        let twice = world.out.with(|out| {
            out.push(address);
            out.iter().filter(|other| **other == address).count() > 1
        });
        if twice {
            world.fail("iobuf: a buffer was handed out twice");
        }
        let mark = world.tick().to_le_bytes();
        buffer[..8].copy_from_slice(&mark);
        Buffer {
            world: world.clone(),
            buffer: Some(buffer),
            mark,
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(buffer) = self.buffer.take() else {
            return;
        };
        if buffer[..8] != self.mark {
            self.world.fail("iobuf: a buffer was written by another");
        }
        let address = buffer.as_ptr().addr();
        self.world.out.with(|out| {
            if let Some(at) = out.iter().position(|other| *other == address) {
                out.swap_remove(at);
            }
        });
        drop(buffer);
    }
}
