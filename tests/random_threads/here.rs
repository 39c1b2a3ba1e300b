//! What an OS thread has: the threads that it polls, and what those hold.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use corespun::channel::{IoChannel, WalkStep};
use corespun::iobuf::WaiterId;
use corespun::thread::{Interrupt, Poller, SpdkThread, Spinlock, ThreadRunner};

use crate::Step;
use crate::books::{Context, NOWHERE, Record, Value, World};
use crate::buffers::Opened;
use crate::hosting::drop_hosted;
use crate::perform::contained;
use crate::queues::{Item, MpscReceiver};
use crate::waits::{Bell, OneshotSender, Slots, Taken};
use crate::within;

/// A thread whose runner is here.
pub struct Hosted {
    pub record: Arc<Record>,
    pub runner: ThreadRunner,
    /// Of its descriptor.
    pub watched: Option<OwnedFd>,
    /// Polls in a row after which that was readable for nothing.
    pub misled: usize,
    pub ended: bool,
}

/// What a SpdkThread's program holds on its OS thread.
#[derive(Default)]
pub struct Holdings {
    pub pollers: Vec<Rc<Poller>>,
    pub interrupts: Vec<Interrupt>,
    pub channels: Vec<IoChannel<Context>>,
    pub steps: Vec<WalkStep<Context, ()>>,
    pub pools: Vec<Rc<Opened>>,
    pub waiters: Vec<(Rc<Opened>, WaiterId)>,
    pub receivers: Vec<MpscReceiver>,
    pub tasks: Vec<corespun::task::AbortHandle>,
    pub locals: Vec<corespun::local::mpsc::Sender<Value>>,
    pub locks: Vec<Spinlock>,
    pub items: Vec<Item>,
    pub bells: Vec<Rc<Bell>>,
    pub slots: Vec<Rc<Slots>>,
    pub permits: Vec<Taken>,
    pub oneshots: Vec<OneshotSender>,
}

#[derive(Default)]
pub struct Here {
    pub hosted: Vec<Hosted>,
    pub holdings: BTreeMap<u64, Holdings>,
}

thread_local! {
    static SITE: Cell<usize> = const { Cell::new(NOWHERE) };
    pub static HERE: RefCell<Here> = RefCell::default();
    /// Whose things the steps are about while no SpdkThread is current.
    static BESIDE: RefCell<Option<Arc<Record>>> = const { RefCell::new(None) };
}

pub fn begin(site: usize) {
    SITE.set(site);
}

/// The number of this OS thread.
pub fn site() -> usize {
    if SITE.get() == NOWHERE {
        // A reactor's.
        static NEXT: AtomicUsize = AtomicUsize::new(1000);
        SITE.set(NEXT.fetch_add(1, Ordering::Relaxed));
    }
    SITE.get()
}

pub fn hosted<R>(f: impl FnOnce(&[Hosted]) -> R) -> R {
    HERE.with_borrow(|here| f(&here.hosted))
}

pub fn take_hosted(slot: usize) -> Option<Hosted> {
    HERE.with_borrow_mut(|here| match here.hosted.len() {
        0 => None,
        len => Some(here.hosted.remove(slot % len)),
    })
}

pub fn put_back(hosted: Hosted, slot: usize) {
    HERE.with_borrow_mut(|here| {
        let at = match here.hosted.len() {
            0 => 0,
            len => slot % (len + 1),
        };
        here.hosted.insert(at, hosted);
    });
}

/// The current SpdkThread.
pub fn current(world: &World) -> Option<Arc<Record>> {
    let current = SpdkThread::current()?;
    world.libraries.iter().find_map(|library| {
        library.threads.with(|threads| {
            threads
                .iter()
                .find(|record| record.handle == current)
                .cloned()
        })
    })
}

/// Whether the app's own thread is current.
pub fn on_app_thread(world: &World) -> bool {
    let app = world.app.as_ref();
    app.is_some_and(|app| app.app_thread().is_current())
}

/// The current one, or that which this is beside.
pub fn subject(world: &World) -> Option<Arc<Record>> {
    current(world).or_else(|| BESIDE.with_borrow(Clone::clone))
}

/// Runs `f` for the thread of `record`, while none is current.
pub fn beside(record: Option<Arc<Record>>, f: impl FnOnce()) {
    let outer = BESIDE.replace(record);
    f();
    BESIDE.set(outer);
}

/// Its holdings. `f` runs no code of the program.
pub fn holdings<R>(world: &World, f: impl FnOnce(&mut Holdings) -> R) -> Option<R> {
    let record = subject(world)?;
    if !record.is_here() {
        return None;
    }
    HERE.with_borrow_mut(|here| Some(f(here.holdings.entry(record.number).or_default())))
}

pub fn take<T>(items: &mut Vec<T>, n: usize) -> Option<T> {
    match items.len() {
        0 => None,
        len => Some(items.remove(n % len)),
    }
}

pub fn choose<T: Clone>(items: &[T], n: usize) -> Option<T> {
    match items.len() {
        0 => None,
        len => items.get(n % len).cloned(),
    }
}

pub fn choose_hosted(hosted: &[Hosted], n: usize) -> Option<Arc<Record>> {
    match hosted.len() {
        0 => None,
        len => Some(hosted[n % len].record.clone()),
    }
}

pub fn with_hosted(slot: usize, f: impl FnOnce(&mut Hosted)) {
    let slot = match hosted(<[Hosted]>::len) {
        0 => return,
        len => slot % len,
    };
    if let Some(hosted) = take_hosted(slot) {
        // Put back also when something unwinds.
        struct PutBack(Option<Hosted>, usize);
        impl Drop for PutBack {
            fn drop(&mut self) {
                if let Some(hosted) = self.0.take() {
                    put_back(hosted, self.1);
                }
            }
        }
        let mut taken = PutBack(Some(hosted), slot);
        f(taken.0.as_mut().expect("just put there"));
    }
}

pub fn choose_thread(world: &World, step: &Step) -> Option<Arc<Record>> {
    world.libraries[step.a % 2].threads.choose(step.b)
}

/// Drops what a thread holds, and ends its tasks.
pub fn let_go(world: &Arc<World>, hosted: &mut Hosted) {
    let number = hosted.record.number;
    hosted.runner.enter(|| let_go_here(world, number));
}

/// The same on the thread itself.
pub fn let_go_here(world: &Arc<World>, number: u64) {
    // Destructors may make more.
    for _ in 0..4 {
        let held = HERE.with_borrow_mut(|here| here.holdings.remove(&number));
        let Some(held) = held else {
            break;
        };
        for task in &held.tasks {
            task.abort();
        }
        drop_each(world, held);
    }
}

/// One after the other: one that panics does not take the others' drops along.
fn drop_each(world: &Arc<World>, held: Holdings) {
    fn all<T>(world: &World, items: Vec<T>) {
        for item in items {
            contained(world, || drop(item));
        }
    }
    all(world, held.steps);
    all(world, held.waiters);
    all(world, held.pools);
    all(world, held.channels);
    all(world, held.interrupts);
    all(world, held.pollers);
    all(world, held.receivers);
    all(world, held.locals);
    all(world, held.locks);
    all(world, held.items);
    all(world, held.bells);
    all(world, held.permits);
    all(world, held.slots);
    all(world, held.oneshots);
}

/// All of this OS thread.
pub fn let_everything_go(world: &Arc<World>) {
    drop(BESIDE.take());
    while let Some(mut hosted) = take_hosted(0) {
        let_go(world, &mut hosted);
        contained(world, || drop_hosted(world, hosted));
    }
    for _ in 0..4 {
        let held = HERE.with_borrow_mut(|here| std::mem::take(&mut here.holdings));
        for held in held.into_values() {
            drop_each(world, held);
        }
    }
}

/// What the last destructors may have left here.
pub fn leave() -> impl Sized {
    (HERE.take(), BESIDE.take(), within::leave())
}
