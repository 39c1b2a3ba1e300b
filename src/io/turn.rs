//! The turns of a driver: one look at the back-end and at what other OS threads share with it, or a
//! sleep in them, and then the foreign code that they lead to; and the last one.
//!
//! Nothing foreign runs while the state is borrowed. Only the driver's OS thread gets here.

use std::mem;
use std::os::fd::AsRawFd;
use std::task::Waker;
use std::time::Duration;

use super::op::{Effect, Sink};
use super::shared::Watched;
use super::state::{Core, Engine, State};

pub(super) enum Turn {
    /// Of the shared descriptors alone.
    Look,
    /// As well, and sleeps.
    ParkLooking(Option<Duration>),
    Poll,
    Park(Option<Duration>),
}

impl Core {
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
                // It was lost just now: the waiters look for another.
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
