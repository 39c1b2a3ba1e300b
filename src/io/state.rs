//! What a driver and all its I/O objects share: the tables, the back-end, and the turns.
//!
//! `Core` outlives the driver as an empty shell once the last `Driver` is dropped: the ring is gone by
//! then, results that came in can still be read.
//!
//! Foreign code (wakers, a payload's drop) never runs while the state is borrowed: a turn collects
//! `Effect`s and runs them afterwards. Only the driver's OS thread gets here.

use std::any::Any;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::aligned::{BufPool, PooledBuf};
use super::blocking::BlockingOps;
use super::config::{Backend, BackendChoice, DriverConfig, DriverError};
use super::delay::Delays;
use super::epoll::Epoll;
use super::helpers::Helpers;
use super::mark::Mark;
use super::op::{Abandon, Completion, Effect, Ending, Op, Payload, Sink, Slot, drop_each};
use super::readiness::{Direction, Replaced, Sources, Wait, Waiter};
use super::shared::Watched;
use super::table::{Key, Table};
use super::unusable::CANCELLED;
use super::uring::Uring;
use super::wake::WakeFd;

/// What all I/O objects of the driver share.
pub(crate) struct Core {
    /// Whether the driver may be used.
    pub(super) mark: Mark,
    /// Why not, if the kernel has refused: which engine, and its errno.
    pub(super) lost: Cell<Option<(Backend, i32)>>,
    pub(super) wake: WakeFd,
    /// Operations and waits in flight: when zero, `poll` has nothing to look at.
    pub(super) in_flight: Cell<usize>,
    waiters: Cell<u64>,
    pub(super) state: RefCell<State>,
    /// Kept between turns for its allocation.
    effects: Cell<Vec<Effect>>,
    buffers: Rc<BufPool>,
    pub(super) delays: Delays,
    /// Descriptors that other OS threads use too; made for the first of them.
    shared: OnceCell<Watched>,
    /// They are in a set of their own, which is not the back-end's.
    apart: Cell<bool>,
}

pub(super) struct State {
    pub(super) slots: Table<Slot>,
    pub(super) sources: Sources,
    pub(super) blocking: BlockingOps,
    pub(super) engine: Engine,
}

pub(super) enum Engine {
    Uring(Box<Uring>),
    Epoll(Box<Epoll>),
    Closed,
}

pub(super) enum Turn {
    /// Of the shared descriptors alone.
    Look,
    /// As well, and sleeps.
    ParkLooking(Option<Duration>),
    Poll,
    Park(Option<Duration>),
}

impl Core {
    pub(crate) fn new(config: &DriverConfig, wake: WakeFd) -> Result<(Core, Backend), DriverError> {
        let (engine, backend) = match config.backend {
            BackendChoice::IoUring => uring(config, &wake)?,
            BackendChoice::Epoll => epoll(config, &wake)?,
            BackendChoice::Auto => match uring(config, &wake) {
                Ok(made) => made,
                Err(error) => {
                    tracing::info!(%error, "using epoll, AIO and helper threads for I/O");
                    epoll(config, &wake)?
                }
            },
        };
        let mark = Mark::new().map_err(|source| DriverError::Setup {
            what: "a page of memory",
            source,
        })?;
        let core = Core {
            mark,
            lost: Cell::new(None),
            wake: wake.clone(),
            in_flight: Cell::new(0),
            waiters: Cell::new(0),
            shared: OnceCell::new(),
            apart: Cell::new(false),
            state: RefCell::new(State {
                slots: Table::default(),
                sources: Sources::default(),
                blocking: BlockingOps::new(config.pool(), config.blocking_threads, wake),
                engine,
            }),
            effects: Cell::default(),
            buffers: BufPool::new(config.pooled_bytes, config.registered_bytes),
            delays: Delays::default(),
        };
        Ok((core, backend))
    }

    pub(crate) fn poll(&self) -> usize {
        let urgent = match self.shared.get() {
            None if self.in_flight.get() == 0 => return 0,
            None => false,
            Some(watched) if self.looks_alone() => {
                if !watched.is_urgent() && !watched.is_due() {
                    return 0;
                }
                return self.turn(Turn::Look, || {});
            }
            Some(watched) => watched.is_urgent(),
        };
        if !urgent && self.is_quiet() && !self.delays.is_due() {
            return 0;
        }
        self.turn(Turn::Poll, || {})
    }

    /// `awake` runs after the kernel's wait and before anything foreign.
    pub(crate) fn park(&self, limit: Option<Duration>, awake: impl FnOnce()) -> usize {
        let limit = match self.shared.get() {
            Some(watched) if watched.is_urgent() => Some(Duration::ZERO),
            _ => self.delays.limit(limit),
        };
        match self.looks_alone() {
            true => self.turn(Turn::ParkLooking(limit), awake),
            false => self.turn(Turn::Park(limit), awake),
        }
    }

    /// Whether the ring has nothing to do, so that all that is waited for is in the epoll set of the
    /// shared descriptors: one system call less for each of their events.
    #[inline]
    fn looks_alone(&self) -> bool {
        self.in_flight.get() == 0 && self.apart.get() && self.mark.is_set()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    pub(super) fn count_in_flight(&self, more: isize) {
        let count = self.in_flight.get().saturating_add_signed(more);
        self.in_flight.set(count);
    }

    #[track_caller]
    pub(crate) fn buffer(&self, len: usize) -> PooledBuf {
        self.buffers
            .take(len, |buf, limit| self.fix_buffer(buf, limit))
    }

    pub(super) fn pool(&self) -> *const BufPool {
        Rc::as_ptr(&self.buffers)
    }

    /// Starts an operation. The payload comes back if it cannot be started.
    pub(crate) fn submit<P: Payload>(
        self: &Rc<Self>,
        mut payload: P,
    ) -> Result<Op<P>, (io::Error, P)> {
        if let Err(error) = self.check_current() {
            return Err((error, payload));
        }
        let request = payload.request();
        let ending = request.ending();
        let mut state = self.state.borrow_mut();
        let State {
            slots,
            engine,
            blocking,
            ..
        } = &mut *state;
        let key = slots.next_key();
        let started = match engine {
            Engine::Uring(uring) => uring.start(key, request, blocking),
            Engine::Epoll(epoll) => epoll.start(key, request, blocking),
            Engine::Closed => Err(shut_down()),
        };
        if let Err(error) = started {
            drop(state);
            return Err((error, payload));
        }
        slots.insert(Slot::Waiting(None, ending));
        self.in_flight.set(self.in_flight.get() + 1);
        drop(state);
        Ok(Op::new(self.clone(), key, payload))
    }

    /// The completion of `Slot::Waiting`/`Done`, freeing the slot.
    pub(crate) fn poll_slot(&self, key: Key, cx: &mut Context<'_>) -> Poll<Completion> {
        let mut state = self.state.borrow_mut();
        let replaced: Replaced = match state.slots.get_mut(key) {
            Some(&mut Slot::Done(completion)) => {
                state.slots.remove(key);
                return Poll::Ready(completion);
            }
            Some(Slot::Waiting(Some(waker), _)) if waker.will_wake(cx.waker()) => None,
            Some(Slot::Waiting(waker, _)) => waker.replace(cx.waker().clone()),
            _ => unreachable!("the future still owns the payload, and has the key once"),
        };
        if self.is_forked() {
            let removed = state.slots.remove(key);
            drop(state);
            drop((replaced, removed));
            return Poll::Ready(CANCELLED);
        }
        drop(state);
        drop(replaced);
        Poll::Pending
    }

    /// The future of `key` is gone: keep `payload` until the completion, or release it now.
    pub(crate) fn abandon_slot(&self, key: Key, payload: Box<dyn Abandon>) {
        let mut state = self.state.borrow_mut();
        let State { slots, engine, .. } = &mut *state;
        let slot = slots.get_mut(key).expect("abandoned once");
        let (waker, ending, mut untaken, ended) = match mem::replace(slot, Slot::Done(CANCELLED)) {
            Slot::Done(completion) => (None, Ending::ByItself, [completion].into(), true),
            Slot::Waiting(waker, ending) => (waker, ending, VecDeque::new(), false),
            Slot::Multi {
                queue,
                ended,
                waker,
            } => (waker, Ending::Cancelled, queue, ended),
            Slot::Orphan(..) | Slot::Watch { .. } => unreachable!("abandoned once"),
        };
        if ended || self.is_forked() {
            slots.remove(key);
            if !ended {
                untaken.push_back(CANCELLED);
            }
            drop(state);
            Effect::Abandon(payload, untaken).run();
        } else if let Engine::Closed = engine {
            // The kernel refused to say whether it is done with the payload.
            slots.remove(key);
            drop(state);
            mem::forget(payload);
        } else {
            *slot = Slot::Orphan(payload, ending, untaken);
            if let Engine::Uring(uring) = engine
                && ending == Ending::Cancelled
                && self.mark.is_set()
            {
                uring.cancel(key);
            }
            drop(state);
        }
        // A foreign waker's destructor is foreign code.
        drop(waker);
    }

    /// As [`table`](Self::table), if there is one.
    pub(crate) fn watched(&self) -> Option<&Watched> {
        self.shared.get()
    }

    /// The table of descriptors that other OS threads use too.
    ///
    /// # Errors
    ///
    /// If the driver cannot be used, or the kernel refuses what it takes.
    pub(crate) fn table(&self) -> io::Result<&Watched> {
        if !self.mark.is_set() {
            return Err(self.failure().unwrap_or_else(shut_down));
        }
        if let Some(table) = self.shared.get() {
            return Ok(table);
        }
        let mut state = self.state.borrow_mut();
        let table = match &mut state.engine {
            Engine::Uring(_) => {
                let watched = Watched::new(self, None)?;
                watched.watch_wake()?;
                self.apart.set(true);
                watched
            }
            Engine::Epoll(epoll) => {
                let table = Watched::new(self, Some(epoll.set().clone()))?;
                epoll.shares = true;
                table
            }
            Engine::Closed => return Err(shut_down()),
        };
        Ok(self.shared.get_or_init(|| table))
    }

    pub(crate) fn add_source(&self, fd: RawFd, owner: Rc<dyn Any>) -> io::Result<Key> {
        let mut state = self.state.borrow_mut();
        let State {
            sources, engine, ..
        } = &mut *state;
        let source = sources.insert(fd, owner);
        let added = match engine {
            Engine::Uring(_) => Ok(()),
            Engine::Epoll(epoll) => epoll.add(fd, source),
            Engine::Closed => Err(shut_down()),
        };
        let removed = added.as_ref().err().map(|_| sources.remove(source));
        drop(state);
        drop(removed);
        added.map(|()| source)
    }

    /// The source is gone; so is its descriptor, unless another holds it, once this has returned.
    pub(crate) fn remove_source(&self, source: Key) {
        let mut state = self.state.borrow_mut();
        let State {
            slots,
            sources,
            engine,
            ..
        } = &mut *state;
        let removed = sources.remove(source);
        let mut owners = Vec::new();
        match engine {
            // Nothing waits any more, or the set is the parent's.
            _ if !self.mark.is_set() => {}
            Engine::Uring(uring) => {
                let watches = || removed.waits.iter().filter_map(|wait| wait.watch);
                if watches().count() > 0 {
                    uring.end_watches(watches());
                }
                // The kernel has taken the file itself with the entry.
                for key in watches().filter(|key| !uring.holds_back(*key)) {
                    if let Some(Slot::Watch { owner, .. }) = slots.get_mut(key) {
                        owners.extend(owner.take());
                    }
                }
            }
            Engine::Epoll(epoll) => {
                epoll.remove(removed.fd);
                let armed = removed.waits.iter().filter(|wait| wait.armed).count();
                epoll.waiting -= armed;
                self.in_flight.set(self.in_flight.get() - armed);
            }
            Engine::Closed => {}
        }
        drop(state);
        drop_each(removed.waits.into_iter().flat_map(Wait::into_wakers));
        // The PollFd holds the owner too.
        drop((owners, removed.owner));
    }

    pub(crate) fn poll_ready(
        &self,
        source: Key,
        direction: Direction,
        waiter: Waiter,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.state.borrow_mut();
        let State {
            slots,
            sources,
            engine,
            ..
        } = &mut *state;
        let wait = sources.wait(source, direction);
        if let ready @ Poll::Ready(_) = wait.check() {
            return ready;
        }
        let replaced = wait.register(waiter, cx.waker());
        let lasting = wait.lasting;
        if !wait.armed {
            match engine {
                Engine::Uring(uring) => {
                    let state = sources.get_mut(source);
                    let key = slots.insert(Slot::Watch {
                        source,
                        direction,
                        owner: Some(state.owner.clone()),
                    });
                    uring.watch(key, state.fd, direction.poll_mask(), lasting);
                    sources.wait(source, direction).watch = Some(key);
                }
                Engine::Epoll(epoll) => epoll.waiting += 1,
                Engine::Closed => return Poll::Ready(Err(shut_down())),
            }
            sources.wait(source, direction).armed = true;
            self.in_flight.set(self.in_flight.get() + 1);
        }
        drop(state);
        drop(replaced);
        Poll::Pending
    }

    pub(crate) fn with_wait<R>(
        &self,
        source: Key,
        direction: Direction,
        change: impl FnOnce(&mut Wait) -> R,
    ) -> R {
        change(self.state.borrow_mut().sources.wait(source, direction))
    }

    /// A number no other waiter of this driver has.
    pub(crate) fn next_waiter(&self) -> u64 {
        self.waiters.replace(self.waiters.get() + 1)
    }

    /// The pool for calls that block.
    pub(crate) fn helpers(&self) -> io::Result<Helpers> {
        self.check_current()?;
        let state = self.state.borrow();
        match state.engine {
            Engine::Closed => Err(shut_down()),
            _ => Ok(state.blocking.helpers().clone()),
        }
    }

    /// Whether a turn would find nothing, as far as memory tells.
    fn is_quiet(&self) -> bool {
        if !self.mark.is_set() {
            return false;
        }
        let state = &mut *self.state.borrow_mut();
        match &mut state.engine {
            Engine::Uring(uring) => {
                // A turn has the ring tell of the shared descriptors first.
                let told = self.shared.get().is_none() || uring.is_shared_armed();
                told && uring.is_quiet() && state.blocking.is_quiet()
            }
            Engine::Epoll(_) | Engine::Closed => false,
        }
    }

    /// One turn of the back-end, `then`, and the foreign code it leads to.
    fn turn(&self, turn: Turn, then: impl FnOnce()) -> usize {
        let mut effects = self.effects.take();
        let turned = if !self.mark.is_set() {
            self.unusable_turn(turn, &mut self.state.borrow_mut(), &mut effects)
        } else {
            let mut state = self.state.borrow_mut();
            let State {
                slots,
                sources,
                blocking,
                engine,
            } = &mut *state;
            let mut sink = Sink {
                slots,
                sources,
                effects: &mut effects,
                reaped: 0,
                finished: 0,
            };
            blocking.reap(&mut sink);
            let mut looked = Look::IfShown;
            if let (Engine::Uring(uring), Turn::Poll | Turn::Park(_), Some(watched)) =
                (&mut *engine, &turn, self.shared.get())
            {
                uring.watch_shared(watched.set().0.as_raw_fd());
            }
            let served = match (&mut *engine, turn) {
                (_, Turn::Look) => {
                    looked = Look::Now;
                    Ok(())
                }
                (_, Turn::ParkLooking(limit)) => {
                    looked = Look::Park(limit);
                    Ok(())
                }
                (Engine::Uring(uring), Turn::Poll) => uring.poll(&mut sink),
                (Engine::Uring(uring), Turn::Park(timeout)) => {
                    uring.park(timeout, blocking, &mut sink)
                }
                (Engine::Epoll(epoll), Turn::Poll) => epoll.poll(&mut sink),
                (Engine::Epoll(epoll), Turn::Park(timeout)) => {
                    epoll.park(timeout, blocking, &mut sink)
                }
                (Engine::Closed, _) => unreachable!("a handle keeps the engine open"),
            };
            blocking.reap(&mut sink);
            if let Err(error) = served {
                self.lose(engine, &mut sink, &error);
            }
            let (reaped, finished) = (sink.reaped, sink.finished);
            match self.shared.get() {
                // It was lost just now: who waits looks for another.
                Some(watched) if !self.mark.is_set() => {
                    watched.end(&mut Woken(&mut effects));
                    (reaped, finished)
                }
                Some(watched) => {
                    let events = serve(watched, &mut state.engine, looked, &mut effects);
                    (reaped + events, finished)
                }
                None => (reaped, finished),
            }
        };
        let (reaped, finished) = turned;
        let ended = self.delays.end_due(&mut effects);
        self.in_flight.set(self.in_flight.get() - finished - ended);
        then();
        for effect in effects.drain(..) {
            effect.run();
        }
        self.effects.set(effects);
        reaped + ended
    }

    /// Cancels what can be cancelled and waits for the rest. No foreign code runs before the kernel
    /// and the helper threads have let go of every buffer.
    pub(crate) fn shut_down(&self) {
        let mut effects = Vec::new();
        let engine = {
            let mut state = self.state.borrow_mut();
            if self.mark.is_set() {
                self.drain(&mut state, &mut effects);
            }
            if !self.mark.is_set() {
                self.drop_unusable(&mut state, &mut effects);
            }
            let State {
                slots,
                sources,
                engine,
                ..
            } = &mut *state;
            let sink = Sink {
                slots,
                sources,
                effects: &mut effects,
                reaped: 0,
                finished: 0,
            };
            sink.sources.wake_all(sink.effects);
            self.delays.end_all(sink.effects);
            self.in_flight.set(0);
            if let Some(watched) = self.shared.get() {
                watched.end(&mut Woken(&mut effects));
            }
            mem::replace(engine, Engine::Closed)
        };
        drop(engine);
        for effect in effects {
            effect.run();
        }
    }

    /// Waits until nothing is in flight, or the kernel refuses.
    fn drain(&self, state: &mut State, effects: &mut Vec<Effect>) {
        let State {
            slots,
            sources,
            blocking,
            engine,
        } = state;
        let mut sink = Sink {
            slots,
            sources,
            effects,
            reaped: 0,
            finished: 0,
        };
        let drained = match engine {
            Engine::Uring(uring) => uring.drain(blocking, &mut sink),
            Engine::Epoll(epoll) => {
                epoll.drain(blocking, &mut sink);
                Ok(())
            }
            Engine::Closed => Ok(()),
        };
        if let Err(error) = drained {
            self.lose(engine, &mut sink, &error);
        }
    }
}

/// Deals with the events of shared descriptors that a turn of the back-end has shown, or waits for them
/// if that has nothing else to do, and then with the notes. Returns how many events there were.
fn serve(watched: &Watched, engine: &mut Engine, turn: Look, effects: &mut Vec<Effect>) -> usize {
    let mut woken = Woken(effects);
    let count = match (engine, turn) {
        (_, Look::Park(limit)) => watched.park(limit, &mut woken),
        (_, Look::Now) => watched.fetch(&mut woken),
        (Engine::Uring(uring), Look::IfShown) => match uring.take_shared() || watched.has_more() {
            true => watched.fetch(&mut woken),
            false => 0,
        },
        (Engine::Epoll(epoll), Look::IfShown) => {
            for event in &epoll.shared {
                watched.dispatch(*event, &mut woken);
            }
            let count = epoll.shared.len();
            epoll.shared.clear();
            count
        }
        (Engine::Closed, Look::IfShown) => 0,
    };
    if watched.is_urgent() || count > 0 && watched.has_freed() {
        watched.tidy(&mut woken);
    }
    count
}

/// Whether a turn looks at the shared descriptors by itself.
#[derive(Clone, Copy)]
enum Look {
    /// Only if the back-end says that there are events.
    IfShown,
    Now,
    Park(Option<Duration>),
}

/// Wakers on their way into the effects of a turn.
struct Woken<'a>(&'a mut Vec<Effect>);

impl Extend<Waker> for Woken<'_> {
    fn extend<I: IntoIterator<Item = Waker>>(&mut self, wakers: I) {
        self.0.extend(wakers.into_iter().map(Effect::Wake));
    }
}

fn uring(config: &DriverConfig, wake: &WakeFd) -> Result<(Engine, Backend), DriverError> {
    let uring = Uring::new(config, wake.clone())?;
    Ok((Engine::Uring(Box::new(uring)), Backend::IoUring))
}

fn epoll(config: &DriverConfig, wake: &WakeFd) -> Result<(Engine, Backend), DriverError> {
    let epoll = Epoll::new(config, wake.clone())?;
    Ok((Engine::Epoll(Box::new(epoll)), Backend::Epoll))
}

#[cold]
pub(super) fn shut_down() -> io::Error {
    io::Error::other("the I/O driver this object belongs to was shut down")
}
