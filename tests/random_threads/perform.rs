//! What each step does, and what an OS thread holds.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use corespun::channel::{IoChannel, IoDevice, WalkStep};
use corespun::interrupt::{FdKind, FdOptions};
use corespun::iobuf::{Got, Iobuf, IobufChannel, WaiterId};
use corespun::local::mpsc::TryRecvError;
use corespun::mpsc;
use corespun::thread::{
    Activity, Interrupt, Poller, SpdkThread, Spinlock, ThreadRunner, register_post_poller_handler,
    set_interrupt_mode,
};
use nix::poll::{PollFd, PollFlags, PollTimeout};

use crate::books::{
    Buffer, Context, Device, Home, Letter, NOWHERE, Order, Pool, Record, Stamp, Value, Waiting,
    World,
};
use crate::random_harness::ON_PURPOSE;
use crate::tasks;
use crate::{Kind, Script, Step};

/// SpdkThreads that one OS thread polls.
const HOSTED: usize = 4;
/// What a poll runs at most, as SPDK.
const BATCH: usize = 8;
/// Steps within steps.
const DEEP: usize = 7;
/// A length of the large buffers, of which there are few.
pub const LARGE: usize = 8192;

/// A thread whose runner is here.
pub struct Hosted {
    pub record: Arc<Record>,
    pub runner: ThreadRunner,
    /// Of its descriptor.
    watched: Option<OwnedFd>,
    /// Polls in a row after which that was readable for nothing.
    misled: usize,
    ended: bool,
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
    pub parcels: Vec<Parcel>,
}

pub struct Opened {
    pub pool: Arc<Pool>,
    pub channel: IobufChannel,
}

#[derive(Default)]
struct Here {
    hosted: Vec<Hosted>,
    holdings: BTreeMap<u64, Holdings>,
}

thread_local! {
    static SITE: Cell<usize> = const { Cell::new(NOWHERE) };
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    static HERE: RefCell<Here> = RefCell::default();
    /// Whose things the steps are about while no SpdkThread is current.
    static BESIDE: RefCell<Option<Arc<Record>>> = const { RefCell::new(None) };
    /// What a thread-local is made for.
    static KEY: RefCell<Option<Value>> = const { RefCell::new(None) };
}

corespun::spdk_thread_local! {
    static STAYS: Option<Value> = KEY.take();
    static in send MOVES: Option<Value> = KEY.take();
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

/// The current one, or that which this is beside.
fn subject(world: &World) -> Option<Arc<Record>> {
    current(world).or_else(|| BESIDE.with_borrow(Clone::clone))
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

fn choose<T: Clone>(items: &[T], n: usize) -> Option<T> {
    match items.len() {
        0 => None,
        len => items.get(n % len).cloned(),
    }
}

/// Runs what may panic on purpose, which must not be any other panic.
pub fn contained(world: &World, f: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(f)) {
        let text = payload.downcast_ref::<&str>().map(ToString::to_string);
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
        let text = text.unwrap_or_default();
        if text != ON_PURPOSE {
            world.fail(format!("panic: {text}"));
        }
    }
}

pub fn perform_all(world: &Arc<World>, script: &Script) {
    for step in script {
        perform(world, step);
    }
}

pub fn perform(world: &Arc<World>, step: &Arc<Step>) {
    let depth = DEPTH.get();
    if depth > DEEP {
        return;
    }
    DEPTH.set(depth + 1);
    world.performed.fetch_add(1, Ordering::Relaxed);
    contained(world, || act(world, step));
    DEPTH.set(depth);
}

/// A step at the top of this OS thread.
pub fn top(world: &Arc<World>, step: &Arc<Step>) {
    check_descriptors(world);
    perform(world, step);
    check_descriptors(world);
}

fn act(world: &Arc<World>, step: &Arc<Step>) {
    let Step { a, b, .. } = **step;
    match step.kind {
        Kind::Host => host(world, a),
        Kind::Poll => with_hosted(a, |hosted| poll_hosted(world, hosted, b % 10)),
        Kind::Settle => {
            for slot in 0..20 {
                with_hosted(slot, |hosted| poll_hosted(world, hosted, 0));
            }
        }
        Kind::Enter => with_hosted(a, |hosted| {
            hosted.runner.enter(|| perform_all(world, &step.then));
        }),
        Kind::Beside => {
            let record = hosted(|hosted| choose_hosted(hosted, a));
            if SpdkThread::current().is_none() {
                let outer = BESIDE.replace(record);
                perform_all(world, &step.then);
                BESIDE.set(outer);
            }
        }
        Kind::Park => park(world, a),
        Kind::Leave => {
            with_hosted(a, |hosted| {
                let_go(world, hosted);
                for _ in 0..12 {
                    poll_hosted(world, hosted, 0);
                }
            });
            // The same again: it was put back to where it was.
            park(world, a);
        }
        Kind::Attach => drop(attach(world, a)),
        Kind::DropRunner => {
            if let Some(hosted) = take_hosted(a) {
                drop_hosted(world, hosted);
            }
        }
        Kind::DropParked => {
            if let Some((record, parked)) = world.parked.take(a) {
                record.host.store(site(), Ordering::Relaxed);
                record.abandoned.store(true, Ordering::Release);
                drop_runner(world, parked);
                world.unended.fetch_sub(1, Ordering::AcqRel);
            }
        }
        Kind::Advance => {
            let library = &world.libraries[a % 2];
            if let Some(time) = &library.time {
                time.advance(b as u64 % 4);
            }
        }
        Kind::ExitRunner => with_hosted(a, |hosted| drop(hosted.runner.exit())),
        Kind::Descriptor => with_hosted(a, |hosted| {
            let fd = hosted.runner.interrupt_fd().expect("descriptors are there");
            hosted.watched = Some(fd.try_clone_to_owned().expect("descriptors are there"));
        }),
        Kind::Mode => with_hosted(a, |hosted| {
            let set = hosted.runner.set_interrupt_mode(!b.is_multiple_of(4));
            set.expect("descriptors are there");
        }),
        Kind::ModeInside => drop(set_interrupt_mode(b.is_multiple_of(2))),

        Kind::Send => send(world, step),
        Kind::Burst => (0..b % 12).for_each(|_| send(world, step)),
        Kind::Exec => execute(world, step),
        Kind::Critical => {
            if let Some(record) = choose_thread(world, step) {
                let _ = record.handle.send_critical_msg(|| ());
            }
        }
        Kind::Exit => {
            if let Some(record) = choose_thread(world, step) {
                drop(record.handle.exit());
            }
        }

        Kind::Poller => register_poller(world, step),
        Kind::StreamPoller => register_stream(world, step),
        Kind::Pause => with_poller(world, a, Poller::pause),
        Kind::Resume => with_poller(world, a, Poller::resume),
        Kind::DropPoller => drop(holdings(world, |held| take(&mut held.pollers, a))),
        Kind::Detach => {
            let poller = holdings(world, |held| take(&mut held.pollers, a)).flatten();
            // A callback may be about to use it.
            if let Some(poller) = poller.and_then(Rc::into_inner) {
                poller.detach();
            }
        }
        Kind::Hook => {
            let value = Value::here(world, step);
            with_poller(world, a, |poller| {
                poller.set_interrupt(move |_| value.call())
            });
        }
        Kind::PostPoller => {
            let value = Value::here(world, step);
            let _ = register_post_poller_handler(move || value.call());
        }
        Kind::Interrupt => register_interrupt(world, step),
        Kind::Ring => {
            let _ = world.bells[a % world.bells.len()].write(1);
        }
        Kind::DropInterrupt => drop(holdings(world, |held| take(&mut held.interrupts, a))),

        Kind::Device => register_device(world, step),
        Kind::Channel => get_channel(world, step),
        Kind::CloneChannel => {
            let clone = holdings(world, |held| choose(&held.channels, a)).flatten();
            if let Some(clone) = clone {
                clone.touch();
                holdings(world, |held| held.channels.push(clone));
            }
        }
        Kind::DropChannel => drop(holdings(world, |held| take(&mut held.channels, a))),
        Kind::Unregister => {
            if let Some(device) = choose_device(world, step) {
                let value = Value::here(world, step);
                let _ = device.device.unregister_with(move || value.call());
            }
        }
        Kind::WalkChannels => walk_channels(world, step),
        Kind::WalkSteps => walk_steps(world, step),
        Kind::ProceedStep => {
            let waiting = holdings(world, |held| take(&mut held.steps, a)).flatten();
            if let Some(waiting) = waiting {
                waiting.touch();
                waiting.proceed(if b.is_multiple_of(8) { Err(()) } else { Ok(()) });
            }
        }
        Kind::WalkThreads => {
            let (visit, end) = (Value::anywhere(world, step), Value::anywhere(world, step));
            let library = &world.libraries[a % 2].library;
            let _ = library.for_each_thread(
                move |thread| {
                    if !thread.is_current() {
                        visit.world.fail("walk: a thread visited elsewhere");
                    }
                    // The app's own threads are left alone.
                    if current(&visit.world).is_some() {
                        visit.call();
                    }
                },
                move || end.check("called"),
            );
        }

        Kind::Pool => {
            if let Some(record) = current(world) {
                let pools = &world.libraries[record.library].pools;
                if pools.len() < 2
                    && let Ok(iobuf) = Iobuf::builder().small(64, 4096).large(8, LARGE).build()
                {
                    iobuf.register_module("m").expect("the first of this name");
                    pools.push(Pool::new(iobuf));
                }
            }
        }
        Kind::OpenPool => open_pool(world, step),
        Kind::GetBuffers => get_buffers(world, a, b % 9 + 1),
        Kind::GetWith => ask(world, step, 0),
        Kind::AskAgain => {
            // Mostly when there is none left.
            if !b.is_multiple_of(4) {
                get_buffers(world, a, usize::MAX);
            }
            ask(world, step, b % 9);
        }
        Kind::GiveBack => {
            for _ in 0..=b % 6 {
                drop(world.buffers.take(a));
            }
        }
        Kind::AbortWaiter => {
            let waiter = holdings(world, |held| take(&mut held.waiters, a)).flatten();
            if let Some((opened, waiter)) = waiter {
                opened.channel.abort(&waiter);
            }
        }
        Kind::ClosePool => {
            drop(holdings(world, |held| {
                let opened = take(&mut held.pools, a)?;
                // Whoever could abort keeps it open.
                let (own, others): (Vec<_>, Vec<_>) = std::mem::take(&mut held.waiters)
                    .into_iter()
                    .partition(|(other, _)| Rc::ptr_eq(other, &opened));
                held.waiters = others;
                Some((own, opened))
            }));
        }

        Kind::Mpsc => make_mpsc(world, step),
        Kind::TrySend => {
            if let Some(sender) = world.senders.take(a) {
                sender.try_send(world, step);
                world.senders.push(sender);
            }
        }
        Kind::CloneSender => {
            if let Some(sender) = world.senders.take(a) {
                world.senders.push(sender.clone());
                world.senders.push(sender);
            }
        }
        Kind::DropSender => drop(world.senders.take(a)),
        Kind::TryRecv => {
            let receiver = holdings(world, |held| take(&mut held.receivers, a)).flatten();
            if let Some(mut receiver) = receiver {
                let mut open = true;
                for _ in 0..=b % 5 {
                    match receiver.receiver.try_recv() {
                        Ok(parcel) => receiver.got(parcel),
                        Err(TryRecvError::Closed) => {
                            receiver.closed(world);
                            open = false;
                            break;
                        }
                        Err(_) => break,
                    }
                }
                if open {
                    holdings(world, |held| held.receivers.push(receiver));
                }
            }
        }
        Kind::DropReceiver => {
            let receiver = holdings(world, |held| take(&mut held.receivers, a)).flatten();
            drop(receiver);
        }

        Kind::SpawnLocal
        | Kind::SpawnEager
        | Kind::Spawn
        | Kind::SpawnMovable
        | Kind::SpawnOn
        | Kind::SpawnWith => tasks::spawn(world, step),
        Kind::Wake => {
            if let Some(waker) = world.wakers.take(a) {
                match b % 4 {
                    0 => waker.wake_by_ref(),
                    1 => drop((waker.clone(), waker)),
                    _ => waker.wake(),
                }
            }
        }
        Kind::DropWaker => drop(world.wakers.take(a)),
        Kind::Abort => {
            if let Some(abort) = world.aborts.choose(a) {
                abort.abort();
            }
        }
        Kind::DropJoin => drop(world.joins.take(a)),

        Kind::LocalKey => {
            let unused = KEY.replace(Some(Value::here(world, step)));
            drop(unused);
            let _ = STAYS.try_with(|value| value.as_ref().map(|value| value.check("used")));
            drop(KEY.take());
        }
        Kind::SendKey => {
            let value = match current(world) {
                Some(record) => Value::new(world, step, Home::Thread(record)),
                None => Value::anywhere(world, step),
            };
            let unused = KEY.replace(Some(value));
            drop(unused);
            let _ = MOVES.try_with(|value| value.as_ref().map(|value| value.check("used")));
            drop(KEY.take());
        }
        Kind::HoldLock => {
            if SpdkThread::current().is_some() {
                let _ = world.spinlock.lock();
                let _ = world.spinlock.unlock();
                // Its hook is called when the callback has ended with the lock held.
                let value = Value::anywhere(world, step);
                let lock = Spinlock::with_hook(move |_| value.may_panic());
                let _ = lock.lock();
                holdings(world, |held| held.locks.push(lock));
            }
        }
        Kind::LocalQueue => tasks::local_queue(world, step),
        Kind::LocalSend => {
            let sender = holdings(world, |held| take(&mut held.locals, a)).flatten();
            if let Some(sender) = sender {
                let refused = sender.try_send(Value::here(world, step));
                drop(refused);
                holdings(world, |held| held.locals.push(sender));
            }
        }
        Kind::DropLocalSender => drop(holdings(world, |held| take(&mut held.locals, a))),

        // These are for tasks, to be awaited; elsewhere they are begun and dropped.
        Kind::Yield
        | Kind::Sleep
        | Kind::WaitForWaker
        | Kind::Join
        | Kind::Recv
        | Kind::SendAsync
        | Kind::GetAsync
        | Kind::GetMany
        | Kind::JoinSet
        | Kind::Scope
        | Kind::Call
        | Kind::MoveTo => tasks::begin_and_drop(world, step),
    }
}

fn choose_hosted(hosted: &[Hosted], n: usize) -> Option<Arc<Record>> {
    match hosted.len() {
        0 => None,
        len => Some(hosted[n % len].record.clone()),
    }
}

fn with_hosted(slot: usize, f: impl FnOnce(&mut Hosted)) {
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

fn host(world: &Arc<World>, a: usize) {
    let library = &world.libraries[a % 2];
    let placed = a.is_multiple_of(2) && world.app.is_some();
    if !placed && hosted(<[Hosted]>::len) >= HOSTED {
        return;
    }
    let builder = library.library.thread().ring(4).message_limit(24);
    let builder = builder.exit_timeout(world.time(4));
    let record = |handle: SpdkThread, host| {
        Arc::new(Record {
            number: (a % 2) as u64 * 1_000_000 + handle.id(),
            library: a % 2,
            handle,
            host: AtomicUsize::new(host),
            placed,
            abandoned: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            order: Order::default(),
            ran: AtomicUsize::new(0),
        })
    };
    if placed {
        if library.threads.len() < 8 {
            let handle = builder.create().expect("the app has not been stopped");
            library.threads.push(record(handle, NOWHERE));
        }
        return;
    }
    let runner = builder.build().expect("ids do not run out").attach();
    let record = record(runner.handle(), site());
    world.unended.fetch_add(1, Ordering::AcqRel);
    library.threads.push(record.clone());
    let hosted = Hosted {
        record,
        runner,
        watched: None,
        misled: 0,
        ended: false,
    };
    put_back(hosted, usize::MAX - 1);
}

pub fn poll_hosted(world: &Arc<World>, hosted: &mut Hosted, max: usize) {
    hosted.record.ran.store(0, Ordering::Relaxed);
    let polled = catch_unwind(AssertUnwindSafe(|| hosted.runner.poll(max, 0)));
    if polled.is_err() {
        world.fail("poll: unwound");
    }
    if hosted.record.ran.load(Ordering::Relaxed) > BATCH && SpdkThread::current().is_none() {
        world.fail("poll: more messages than a batch");
    }
    if !hosted.ended && hosted.runner.is_exited() {
        hosted.ended = true;
        world.unended.fetch_sub(1, Ordering::AcqRel);
    }
    check_quiet(world, hosted);
}

fn readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    nix::poll::poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Each thread here that is waited for by its descriptor, if nobody else is about
/// to change that.
fn check_descriptors(world: &World) {
    HERE.with_borrow(|here| {
        for hosted in &here.hosted {
            if let Some(fd) = &hosted.watched
                && hosted.runner.is_in_interrupt_mode()
                && hosted.runner.needs_poll()
                && !readable(fd.as_fd())
                // A sender may be between its message and its notice.
                && world.exact
            {
                world.fail("interrupt_fd: not readable, and the thread needs a poll");
            }
        }
    });
}

/// After polls, a thread's descriptor is readable only if there is something to do;
/// one that ended in what the end of a poll does may find it so once.
fn check_quiet(world: &World, hosted: &mut Hosted) {
    let Some(fd) = &hosted.watched else {
        return;
    };
    let interrupts = HERE.with_borrow(|here| {
        let held = here.holdings.get(&hosted.record.number);
        held.is_some_and(|held| !held.interrupts.is_empty())
    });
    let clock = world.libraries[hosted.record.library].library.clock();
    let due = hosted
        .runner
        .next_deadline()
        .is_some_and(|at| at <= clock.now());
    let misled = world.exact
        && !interrupts
        && !due
        && hosted.runner.is_in_interrupt_mode()
        && SpdkThread::current().is_none()
        && !hosted.runner.needs_poll()
        && readable(fd.as_fd());
    hosted.misled = if misled { hosted.misled + 1 } else { 0 };
    if hosted.misled > 1 {
        world.fail("interrupt_fd: readable, and the thread needs no poll");
    }
}

fn park(world: &Arc<World>, slot: usize) {
    let len = hosted(<[Hosted]>::len);
    if len == 0 {
        return;
    }
    let Some(hosted) = take_hosted(slot % len) else {
        return;
    };
    if hosted.ended {
        return put_back(hosted, slot % len);
    }
    let Hosted {
        record,
        runner,
        watched,
        misled,
        ended,
    } = hosted;
    match runner.park() {
        Ok(parked) => {
            record.host.store(NOWHERE, Ordering::Relaxed);
            world.parked.push((record, parked));
        }
        Err(runner) => put_back(
            Hosted {
                record,
                runner,
                watched,
                misled,
                ended,
            },
            slot % len,
        ),
    }
}

/// Whether there was one.
pub fn attach(world: &Arc<World>, n: usize) -> bool {
    let Some((record, parked)) = world.parked.take(n) else {
        return false;
    };
    record.host.store(site(), Ordering::Relaxed);
    let hosted = Hosted {
        record,
        runner: parked.attach(),
        watched: None,
        misled: 0,
        ended: false,
    };
    put_back(hosted, usize::MAX - 1);
    true
}

/// In which everything that may panic is contained.
fn drop_runner<T>(world: &World, runner: T) {
    if catch_unwind(AssertUnwindSafe(|| drop(runner))).is_err() {
        world.fail("runner: its drop unwound");
    }
}

fn drop_hosted(world: &Arc<World>, hosted: Hosted) {
    if !hosted.runner.is_exited() {
        hosted.record.abandoned.store(true, Ordering::Release);
    }
    let number = hosted.record.number;
    let Hosted { runner, ended, .. } = hosted;
    drop_runner(world, runner);
    if !ended {
        world.unended.fetch_sub(1, Ordering::AcqRel);
    }
    let held = HERE.with_borrow_mut(|here| here.holdings.remove(&number));
    drop(held);
}

/// Drops what a thread holds, and ends its tasks.
fn let_go(world: &Arc<World>, hosted: &mut Hosted) {
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
    all(world, held.parcels);
}

/// At the end, when all is quiet: what was accepted has arrived, and nobody waits
/// beside free buffers. Runs nothing of the program.
pub fn check_arrived(world: &Arc<World>) {
    HERE.with_borrow_mut(|here| {
        for hosted in &here.hosted {
            let waiting = hosted.record.waiting.load(Ordering::Acquire);
            if waiting > 0 && !hosted.runner.is_exited() {
                world.fail("message: does not arrive");
            }
            let held = here.holdings.get_mut(&hosted.record.number);
            if let Some(held) = held.filter(|_| hosted.runner.is_running()) {
                for receiver in &mut held.receivers {
                    while let Ok(parcel) = receiver.receiver.try_recv() {
                        receiver.book.received.fetch_add(1, Ordering::AcqRel);
                        held.parcels.push(parcel);
                    }
                    receiver.check_all(world, "mpsc: an accepted value does not arrive");
                }
            }
        }
    });
    for library in &world.libraries {
        // Those of threads whose exit was forced wait for ever.
        let live = library.threads.with(|threads| {
            let live = threads.iter().filter(|record| !record.handle.is_exited());
            live.map(|record| record.number).collect::<Vec<_>>()
        });
        library.pools.with(|pools| {
            for pool in pools {
                let waits = pool.waiters().iter().any(|thread| live.contains(thread));
                if waits && pool.free() > 0 && world.parked.len() == 0 {
                    world.fail("iobuf: a request waits beside a free buffer");
                }
            }
        });
    }
}

pub fn let_go_and_exit(world: &Arc<World>) {
    for slot in 0..hosted(<[Hosted]>::len) {
        with_hosted(slot, |hosted| {
            // Some are held to the end of their patience.
            if !hosted.record.number.is_multiple_of(3) {
                let_go(world, hosted);
            }
            drop(hosted.runner.exit());
        });
    }
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
    (HERE.take(), BESIDE.take(), KEY.take())
}

thread_local! {
    /// A message that was refused is dropped by whoever sent it.
    static REFUSED: Cell<bool> = const { Cell::new(false) };
}

/// Whether the message that is dropped now was refused.
pub fn take_refused() -> bool {
    REFUSED.take()
}

fn send(world: &Arc<World>, step: &Arc<Step>) {
    let Some(record) = choose_thread(world, step) else {
        return;
    };
    let (letter, stamp) = Letter::new(world, step, &record);
    match record.handle.send_msg(move || letter.run()) {
        Ok(()) => stamp.sent(world),
        Err(error) => {
            if !error.is_full() && !error.is_exited() {
                world.fail("message: refused for no reason");
            }
            REFUSED.set(true);
            drop(error.into_message());
        }
    }
}

fn execute(world: &Arc<World>, step: &Arc<Step>) {
    let Some(record) = choose_thread(world, step) else {
        return;
    };
    // At once then, whatever waits.
    let now = record.handle.is_current();
    let (letter, stamp) = Letter::new(world, step, &record);
    let run = move || match now {
        true => letter.run_now(),
        false => letter.run(),
    };
    match record.handle.exec_msg(run) {
        Ok(()) => stamp.sent(world),
        Err(error) => {
            if now {
                world.fail("message: refused by its own thread");
            }
            REFUSED.set(true);
            drop(error.into_message());
        }
    }
}

fn with_poller(world: &Arc<World>, n: usize, f: impl FnOnce(&Poller)) {
    let poller = holdings(world, |held| choose(&held.pollers, n)).flatten();
    if let Some(poller) = poller {
        f(&poller);
    }
}

fn period(world: &World, a: usize) -> std::time::Duration {
    match a % 3 {
        0 => std::time::Duration::ZERO,
        _ => world.time(a % 5 + 1),
    }
}

fn register_poller(world: &Arc<World>, step: &Arc<Step>) {
    let value = Value::here(world, step);
    let mut calls = step.b % 3 + 1;
    let poller = Poller::timed(period(world, step.a), move || {
        value.check("called");
        if calls == 0 {
            return Activity::Idle;
        }
        calls -= 1;
        value.call();
        Activity::Busy
    });
    match poller {
        Ok(poller) => drop(holdings(world, |held| held.pollers.push(Rc::new(poller)))),
        Err(error) => drop(error),
    }
}

fn register_stream(world: &Arc<World>, step: &Arc<Step>) {
    let value = Value::here(world, step);
    let items = futures::stream::iter(0..step.b % 3);
    let builder = Poller::builder().period(period(world, step.a));
    if let Ok(poller) = builder.register_stream(items, move |_| value.call()) {
        holdings(world, |held| held.pollers.push(Rc::new(poller)));
    }
}

/// A descriptor that is another one whenever it is asked.
struct TwoFaced {
    faces: [OwnedFd; 2],
    asked: Cell<usize>,
}

impl AsFd for TwoFaced {
    fn as_fd(&self) -> BorrowedFd<'_> {
        let n = self.asked.replace(self.asked.get() + 1);
        self.faces[n % 2].as_fd()
    }
}

fn register_interrupt(world: &Arc<World>, step: &Arc<Step>) {
    let bell = world.bells[step.a % world.bells.len()].clone();
    let value = Value::here(world, step);
    let clone = || {
        bell.as_fd()
            .try_clone_to_owned()
            .expect("descriptors are there")
    };
    let options = FdOptions {
        kind: [FdKind::Plain, FdKind::EventFd][step.b % 2],
        ..FdOptions::default()
    };
    let read = bell.clone();
    let mut calls = step.b % 3 + 1;
    let callback = move |_| {
        let _ = read.read();
        value.check("called");
        if calls > 0 {
            calls -= 1;
            value.call();
        }
    };
    let registered = match step.b % 8 {
        0 => {
            let fd = TwoFaced {
                faces: [clone(), clone()],
                asked: Cell::new(0),
            };
            Interrupt::register_with(fd, options, callback)
        }
        _ => Interrupt::register_with(clone(), options, callback),
    };
    if let Ok(interrupt) = registered {
        holdings(world, |held| held.interrupts.push(interrupt));
    }
}

fn choose_device(world: &World, step: &Step) -> Option<Device> {
    // Mostly of the library that is current.
    let own = subject(world).map_or(0, |record| record.library);
    let library = if step.a.is_multiple_of(8) {
        1 - own
    } else {
        own
    };
    world.libraries[library].devices.choose(step.b)
}

fn register_device(world: &Arc<World>, step: &Arc<Step>) {
    let Some(record) = current(world) else {
        return;
    };
    let devices = &world.libraries[record.library].devices;
    devices.with(|devices| {
        if devices.len() > 5 {
            devices.retain(|device| device.device.is_registered());
        }
    });
    if devices.len() >= 4 {
        return;
    }
    let under = devices.choose(step.b).filter(|_| step.a.is_multiple_of(2));
    let (number, value) = (world.tick(), Value::anywhere(world, step));
    let registered = IoDevice::builder().register(move || {
        value.check("called");
        let world = &value.world;
        if value.step.b.is_multiple_of(16) {
            value.may_panic();
            return Err(std::io::Error::other(ON_PURPOSE));
        }
        perform_all(world, &value.step.then);
        let record = current(world).ok_or_else(|| std::io::Error::other(ON_PURPOSE))?;
        Ok(Context {
            value: Value::here(world, &value.step),
            device: number,
            record,
            touched: Cell::new(0),
            _below: under.as_ref().and_then(|under| under.device.channel().ok()),
        })
    });
    if let Ok(device) = registered {
        devices.push(Device { device, number });
    }
}

fn get_channel(world: &Arc<World>, step: &Arc<Step>) {
    let Some(device) = choose_device(world, step) else {
        return;
    };
    let Ok(channel) = device.device.channel() else {
        return;
    };
    if channel.device != device.number || channel.device() != device.device {
        world.fail("channel: of another device");
    }
    channel.touch();
    if Some(channel.thread()) != SpdkThread::current() {
        world.fail("channel: of another thread");
    }
    holdings(world, |held| {
        let mut others = held.channels.iter().filter(|c| c.device == channel.device);
        if !others.all(|other| other.same_channel(&channel)) {
            world.fail("channel: two of one device on one thread");
        }
        held.channels.push(channel);
    });
}

fn walk_channels(world: &Arc<World>, step: &Arc<Step>) {
    let Some(device) = choose_device(world, step) else {
        return;
    };
    let (visit, end) = (Value::anywhere(world, step), Value::here(world, step));
    let number = device.number;
    let _ = device.device.for_each_channel(
        move |context| {
            if context.device != number {
                visit.world.fail("walk: over another device");
            }
            context.touch();
            visit.call();
            Ok::<(), ()>(())
        },
        move |_| end.check("called"),
    );
}

fn walk_steps(world: &Arc<World>, step: &Arc<Step>) {
    let Some(device) = choose_device(world, step) else {
        return;
    };
    let (visit, end) = (Value::anywhere(world, step), Value::here(world, step));
    let _ = device.device.for_each_channel_step(
        move |walk: WalkStep<Context, ()>| {
            walk.touch();
            visit.call();
            let mut walk = Some(walk);
            if !visit.step.b.is_multiple_of(3) {
                holdings(&visit.world, |held| held.steps.extend(walk.take()));
            }
            if let Some(walk) = walk {
                walk.proceed(Ok(()));
            }
        },
        move |_| end.check("called"),
    );
}

fn open_pool(world: &Arc<World>, step: &Arc<Step>) {
    let Some(record) = current(world) else {
        return;
    };
    let pools = &world.libraries[record.library].pools;
    if let Some(pool) = pools.choose(step.a)
        && let Ok(channel) = pool.iobuf.channel("m", 0, step.b % 3)
    {
        let opened = Rc::new(Opened { pool, channel });
        holdings(world, |held| held.pools.push(opened));
    }
}

fn get_buffers(world: &Arc<World>, module: usize, most: usize) {
    let opened = holdings(world, |held| choose(&held.pools, module)).flatten();
    for _ in 0..most {
        let opened = opened.as_ref();
        let got = opened.and_then(|opened| opened.channel.try_get(LARGE).ok().flatten());
        let Some(buffer) = got else {
            break;
        };
        world.buffers.push(Buffer::new(world, buffer));
    }
}

/// Asks for a buffer, and `again` so often when it comes.
fn ask(world: &Arc<World>, step: &Arc<Step>, again: usize) {
    let opened = holdings(world, |held| choose(&held.pools, step.a)).flatten();
    if let (Some(opened), Some(record)) = (opened, subject(world)) {
        ask_of(world, step, &opened, &record, again);
    }
}

fn ask_of(
    world: &Arc<World>,
    step: &Arc<Step>,
    opened: &Rc<Opened>,
    record: &Arc<Record>,
    again: usize,
) {
    let value = Value::here(world, step);
    let waiting = Waiting::new(world, &opened.pool, record);
    let (module, asking) = (Rc::downgrade(opened), record.clone());
    let got = opened.channel.get_with(LARGE, move |buffer| {
        waiting.served();
        drop(waiting);
        let world = &value.world;
        world.buffers.push(Buffer::new(world, buffer));
        if again > 0
            && let Some(opened) = module.upgrade()
        {
            ask_of(world, &value.step, &opened, &asking, again - 1);
        }
        value.call();
    });
    match got {
        Ok(Got::Buffer(buffer)) => world.buffers.push(Buffer::new(world, buffer)),
        Ok(Got::Waiting(waiter)) => {
            let opened = opened.clone();
            holdings(world, |held| held.waiters.push((opened, waiter)));
        }
        Err(error) => world.fail(format!("iobuf: {error}")),
    }
}

/// What is known of one mpsc channel.
pub struct MpscBook {
    pub accepted: AtomicUsize,
    pub received: AtomicUsize,
    order: Order,
}

pub struct Parcel {
    value: Value,
    stamp: Stamp,
}

pub struct MpscSender {
    pub book: Arc<MpscBook>,
    pub sender: mpsc::Sender<Parcel>,
}

impl Clone for MpscSender {
    fn clone(&self) -> Self {
        MpscSender {
            book: self.book.clone(),
            sender: self.sender.clone(),
        }
    }
}

impl MpscSender {
    fn parcel(&self, world: &Arc<World>, step: &Arc<Step>) -> (Parcel, Stamp) {
        let stamp = Stamp::begin(world);
        let parcel = Parcel {
            value: Value::anywhere(world, step),
            stamp: stamp.clone(),
        };
        (parcel, stamp)
    }

    fn accepted(&self, world: &World, stamp: &Stamp) {
        stamp.sent(world);
        self.book.accepted.fetch_add(1, Ordering::AcqRel);
    }

    fn try_send(&self, world: &Arc<World>, step: &Arc<Step>) {
        let (parcel, stamp) = self.parcel(world, step);
        match self.sender.try_send(parcel) {
            Ok(()) => self.accepted(world, &stamp),
            Err(error) => drop(error.into_inner()),
        }
    }

    pub async fn send(&self, world: &Arc<World>, step: &Arc<Step>) {
        let (parcel, stamp) = self.parcel(world, step);
        if self.sender.send(parcel).await.is_ok() {
            self.accepted(world, &stamp);
        }
    }
}

pub struct MpscReceiver {
    pub book: Arc<MpscBook>,
    pub receiver: mpsc::Receiver<Parcel>,
}

impl MpscReceiver {
    pub fn got(&self, parcel: Parcel) {
        self.book.received.fetch_add(1, Ordering::AcqRel);
        let world = &parcel.value.world;
        if !self.book.order.allows(&parcel.stamp) {
            world.fail("mpsc: a value came after one that was sent later");
        }
        parcel.value.call();
    }

    /// All senders are gone.
    pub fn closed(&self, world: &World) {
        self.check_all(world, "mpsc: it ended before what it had accepted came");
    }

    fn check_all(&self, world: &World, otherwise: &str) {
        let book = &self.book;
        let [accepted, received] =
            [&book.accepted, &book.received].map(|n| n.load(Ordering::Acquire));
        if accepted != received {
            world.fail(otherwise);
        }
    }
}

fn make_mpsc(world: &Arc<World>, step: &Arc<Step>) {
    if SpdkThread::current().is_none() || world.senders.len() > 8 {
        return;
    }
    let (sender, receiver) = mpsc::channel(step.a % 6 + 1);
    let book = Arc::new(MpscBook {
        accepted: AtomicUsize::new(0),
        received: AtomicUsize::new(0),
        order: Order::default(),
    });
    world.senders.push(MpscSender {
        book: book.clone(),
        sender,
    });
    let receiver = MpscReceiver { book, receiver };
    holdings(world, |held| held.receivers.push(receiver));
}
