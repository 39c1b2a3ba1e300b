//! What a driver and all its I/O objects share: the tables, the back-end, and the turns.
//!
//! `Core` outlives the driver as an empty shell once the last `Driver` is dropped: the ring is gone by
//! then, results that came in can still be read.
//!
//! Foreign code (wakers, a payload's drop) never runs while the state is borrowed: a turn collects
//! `Effect`s and runs them afterwards. Only the driver's OS thread gets here.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use nix::sys::eventfd::EventFd;
use slab::Slab;

use super::aligned::{BufPool, PooledBuf};
use super::blocking::BlockingOps;
use super::config::{Backend, BackendChoice, DriverConfig, DriverError};
use super::epoll::Epoll;
use super::helpers::Helpers;
use super::op::{Abandon, Completion, Effect, Ending, Op, Payload, Sink, Slot};
use super::readiness::{Direction, Replaced, Sources, Wait, Waiter};
use super::uring::Uring;

/// What all I/O objects of the driver share.
pub(crate) struct Core {
    /// Operations and waits in flight: when zero, `poll` has nothing to look at.
    in_flight: Cell<usize>,
    waiters: Cell<u64>,
    state: RefCell<State>,
    /// Kept between turns for its allocation.
    effects: Cell<Vec<Effect>>,
    buffers: Rc<BufPool>,
}

struct State {
    slots: Slab<Slot>,
    sources: Sources,
    blocking: BlockingOps,
    engine: Engine,
}

enum Engine {
    Uring(Box<Uring>),
    Epoll(Box<Epoll>),
    Closed,
}

enum Turn {
    Poll,
    Park(Option<Duration>),
}

impl Core {
    pub(crate) fn new(
        config: &DriverConfig,
        wake: Arc<EventFd>,
    ) -> Result<(Core, Backend), DriverError> {
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
        let core = Core {
            in_flight: Cell::new(0),
            waiters: Cell::new(0),
            state: RefCell::new(State {
                slots: Slab::new(),
                sources: Sources::default(),
                blocking: BlockingOps::new(config.pool(), config.blocking_threads, wake),
                engine,
            }),
            effects: Cell::default(),
            buffers: BufPool::new(config.pooled_bytes),
        };
        Ok((core, backend))
    }

    pub(crate) fn poll(&self) -> usize {
        if self.in_flight.get() == 0 || self.is_quiet() {
            return 0;
        }
        self.turn(Turn::Poll, || {})
    }

    /// `awake` runs after the kernel's wait and before anything foreign.
    pub(crate) fn park(&self, limit: Option<Duration>, awake: impl FnOnce()) -> usize {
        self.turn(Turn::Park(limit), awake)
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    #[track_caller]
    pub(crate) fn buffer(&self, len: usize) -> PooledBuf {
        self.buffers.take(len)
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
        let entry = slots.vacant_entry();
        let key = entry.key();
        let started = match engine {
            Engine::Uring(uring) => uring.start(key, request, blocking),
            Engine::Epoll(epoll) => epoll.start(key, request, blocking),
            Engine::Closed => Err(shut_down()),
        };
        if let Err(error) = started {
            drop(state);
            return Err((error, payload));
        }
        entry.insert(Slot::Waiting(None, ending));
        self.in_flight.set(self.in_flight.get() + 1);
        drop(state);
        Ok(Op::new(self.clone(), key, payload))
    }

    /// Queues a ring entry as it stands, in a slot of the kind given.
    pub(crate) fn submit_entry(
        &self,
        entry: io_uring::squeue::Entry,
        many: bool,
    ) -> io::Result<usize> {
        self.check_current()?;
        let mut state = self.state.borrow_mut();
        let State { slots, engine, .. } = &mut *state;
        let uring = match engine {
            Engine::Uring(uring) => uring,
            Engine::Epoll(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    "raw ring entries need the io_uring back-end; this driver runs on epoll",
                ));
            }
            Engine::Closed => return Err(shut_down()),
        };
        let key = slots.insert(match many {
            false => Slot::Waiting(None, Ending::Cancelled),
            true => Slot::Multi {
                queue: VecDeque::new(),
                ended: false,
                waker: None,
            },
        });
        uring.push(entry.user_data(key as u64));
        self.in_flight.set(self.in_flight.get() + 1);
        Ok(key)
    }

    /// The completion of `Slot::Waiting`/`Done`, freeing the slot.
    pub(crate) fn poll_slot(&self, key: usize, cx: &mut Context<'_>) -> Poll<Completion> {
        let mut state = self.state.borrow_mut();
        let replaced: Replaced = match &mut state.slots[key] {
            &mut Slot::Done(completion) => {
                state.slots.remove(key);
                return Poll::Ready(completion);
            }
            Slot::Waiting(Some(waker), _) if waker.will_wake(cx.waker()) => None,
            Slot::Waiting(waker, _) => waker.replace(cx.waker().clone()),
            _ => unreachable!("the future still owns the payload"),
        };
        drop(state);
        drop(replaced);
        Poll::Pending
    }

    /// The next completion of a `Slot::Multi`; None when it has ended.
    pub(crate) fn poll_multi(&self, key: usize, cx: &mut Context<'_>) -> Poll<Option<Completion>> {
        let mut state = self.state.borrow_mut();
        let Slot::Multi {
            queue,
            ended,
            waker,
        } = &mut state.slots[key]
        else {
            unreachable!("only the stream frees the slot");
        };
        if let Some(completion) = queue.pop_front() {
            return Poll::Ready(Some(completion));
        }
        if *ended {
            return Poll::Ready(None);
        }
        let replaced = waker.replace(cx.waker().clone());
        drop(state);
        drop(replaced);
        Poll::Pending
    }

    /// The future of `key` is gone: keep `payload` until the completion, or release it now.
    pub(crate) fn abandon_slot(&self, key: usize, payload: Box<dyn Abandon>) {
        let mut state = self.state.borrow_mut();
        let State { slots, engine, .. } = &mut *state;
        match std::mem::replace(
            &mut slots[key],
            Slot::Done(Completion {
                result: 0,
                flags: 0,
            }),
        ) {
            Slot::Done(completion) => {
                slots.remove(key);
                drop(state);
                payload.abandon(completion);
            }
            Slot::Multi { ended: true, .. } => {
                slots.remove(key);
                drop(state);
                payload.abandon(Completion {
                    result: -libc::ECANCELED,
                    flags: 0,
                });
            }
            running @ (Slot::Waiting(..) | Slot::Multi { .. }) => {
                let ending = match running {
                    Slot::Waiting(_, ending) => ending,
                    _ => Ending::Cancelled,
                };
                slots[key] = Slot::Orphan(payload, ending);
                if let Engine::Uring(uring) = engine
                    && ending == Ending::Cancelled
                {
                    uring.cancel(key);
                }
                drop(state);
                drop(running);
            }
            _ => unreachable!("abandoned once"),
        }
    }

    pub(crate) fn add_source(&self, fd: RawFd, owner: Rc<dyn Any>) -> io::Result<usize> {
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

    pub(crate) fn remove_source(&self, source: usize) {
        let mut state = self.state.borrow_mut();
        let State {
            slots,
            sources,
            engine,
            ..
        } = &mut *state;
        let removed = sources.remove(source);
        match engine {
            Engine::Uring(uring) => {
                for key in removed.waits.iter().filter_map(|wait| wait.watch) {
                    if let Slot::Watch { source, .. } = &mut slots[key] {
                        *source = None;
                    }
                    uring.cancel(key);
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
        drop(removed);
    }

    pub(crate) fn poll_ready(
        &self,
        source: usize,
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
        if !wait.armed {
            match engine {
                Engine::Uring(uring) => {
                    let state = sources.get_mut(source);
                    let key = slots.insert(Slot::Watch {
                        source: Some(source),
                        direction,
                        _owner: state.owner.clone(),
                    });
                    uring.watch(key, state.fd, direction.poll_mask());
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
        source: usize,
        direction: Direction,
        change: impl FnOnce(&mut Wait) -> R,
    ) -> R {
        change(self.state.borrow_mut().sources.wait(source, direction))
    }

    /// A transfer that moved less than it was asked to has most likely drained the source. Each wait
    /// on the ring looks at the level, so that being wrong costs it nothing. An edge does not come
    /// back, and a read also ends early with more behind it (at TCP's urgent mark, after a Unix
    /// message that carries descriptors): there only `EAGAIN` says that the source is drained.
    pub(crate) fn hint_drained(&self, source: usize, direction: Direction) {
        let state = &mut *self.state.borrow_mut();
        if let Engine::Uring(_) = state.engine {
            state.sources.wait(source, direction).clear();
        }
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
        let state = &mut *self.state.borrow_mut();
        match &mut state.engine {
            Engine::Uring(uring) => uring.is_quiet() && state.blocking.is_quiet(),
            Engine::Epoll(_) | Engine::Closed => false,
        }
    }

    /// One turn of the back-end, `then`, and the foreign code it leads to.
    fn turn(&self, turn: Turn, then: impl FnOnce()) -> usize {
        let mut effects = self.effects.take();
        let reaped = {
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
            match (engine, turn) {
                (Engine::Uring(uring), Turn::Poll) => uring.poll(&mut sink),
                (Engine::Uring(uring), Turn::Park(timeout)) => {
                    uring.park(timeout, blocking, &mut sink);
                }
                (Engine::Epoll(epoll), Turn::Poll) => epoll.poll(&mut sink),
                (Engine::Epoll(epoll), Turn::Park(timeout)) => {
                    epoll.park(timeout, blocking, &mut sink);
                }
                (Engine::Closed, _) => unreachable!("a handle keeps the engine open"),
            }
            blocking.reap(&mut sink);
            self.in_flight.set(self.in_flight.get() - sink.finished);
            sink.reaped
        };
        then();
        for effect in effects.drain(..) {
            effect.run();
        }
        self.effects.set(effects);
        reaped
    }

    /// Cancels what can be cancelled and waits for the rest. No foreign code runs before the kernel
    /// and the helper threads have let go of every buffer.
    pub(crate) fn shut_down(&self) {
        let mut effects = Vec::new();
        let engine = {
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
            match engine {
                Engine::Uring(uring) => uring.drain(blocking, &mut sink),
                Engine::Epoll(epoll) => epoll.drain(blocking, &mut sink),
                Engine::Closed => {}
            }
            sink.sources.wake_all(sink.effects);
            self.in_flight.set(0);
            std::mem::replace(engine, Engine::Closed)
        };
        drop(engine);
        for effect in effects {
            effect.run();
        }
    }
}

fn uring(config: &DriverConfig, wake: &Arc<EventFd>) -> Result<(Engine, Backend), DriverError> {
    let uring = Uring::new(config, wake.clone())?;
    Ok((Engine::Uring(Box::new(uring)), Backend::IoUring))
}

fn epoll(config: &DriverConfig, wake: &Arc<EventFd>) -> Result<(Engine, Backend), DriverError> {
    let epoll = Epoll::new(config, wake.clone())?;
    Ok((Engine::Epoll(Box::new(epoll)), Backend::Epoll))
}

#[cold]
fn shut_down() -> io::Error {
    io::Error::other("the I/O driver this object belongs to was shut down")
}
