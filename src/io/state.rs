//! What a driver and all its I/O objects share: the tables and the back-end.
//!
//! `Core` outlives the driver as an empty shell once the last `Driver` is dropped: the ring is gone by
//! then, results that came in can still be read.
//!
//! Foreign code (wakers, a payload's drop) never runs while the state is borrowed: a turn (`turn`)
//! collects `Effect`s and runs them afterwards. Only the driver's OS thread gets here.

use std::any::Any;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::task::{Context, Poll};

use super::aligned::{BufPool, PooledBuf};
use super::blocking::BlockingOps;
use super::config::{Backend, BackendChoice, DriverConfig, DriverError};
use super::delay::Delays;
use super::epoll::Epoll;
use super::helpers::Helpers;
use super::mark::Mark;
use super::op::{Abandon, Completion, Effect, Ending, Op, Payload, Slot, drop_each};
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
    pub(super) effects: Cell<Vec<Effect>>,
    buffers: Rc<BufPool>,
    pub(super) delays: Delays,
    /// Descriptors that other OS threads use too; made for the first of them.
    pub(super) shared: OnceCell<Watched>,
    /// They are in a set of their own, which is not the back-end's.
    pub(super) apart: Cell<bool>,
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
