//! The poller of a SpdkThread that turns tokio's runtime in poll mode.
//!
//! It belongs to a task that only waits: the end of the thread cancels that, and the poller does
//! not hold it up.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::Duration;

use corespun::clock::Clock;
use corespun::task;
use corespun::thread::{Activity, Poller, SpdkThread};

use super::foreign::{Core, Foreign};
use crate::runtime::system_clock;

/// From one turn to the next. A turn takes 1 to 2 µs.
const PERIOD: Duration = Duration::from_micros(20);

/// How long nothing must have been wrapped for the helper to take over.
const LINGER: Duration = Duration::from_millis(100);

struct Seat {
    thread: SpdkThread,
    core: Arc<Core>,
    foreign: Weak<Foreign>,
    poller: RefCell<Option<Poller>>,
    /// Something is wrapped, or was a moment ago.
    wanted: Cell<bool>,
    /// The thread is in interrupt mode, where no poller runs.
    sleeps: Cell<bool>,
    /// The poller is gone.
    ended: Cell<bool>,
    /// The poller turns the runtime, as these three say.
    turns: Cell<bool>,
    clock: Clock,
    last_wanted: Cell<u64>,
}

thread_local! {
    static SEATS: RefCell<Vec<Rc<Seat>>> = const { RefCell::new(Vec::new()) };
}

/// The current SpdkThread, if a reactor polls it.
pub(super) fn hosted() -> Option<SpdkThread> {
    SpdkThread::current().filter(|thread| thread.core().is_some())
}

/// Has the poller of `thread`, the current one, turn the runtime of its OS thread. If there can
/// be none, because the thread exits, the helper does.
pub(super) fn take(thread: SpdkThread, foreign: &Arc<Foreign>) {
    let known = SEATS.try_with(|seats| {
        let seats = seats.borrow();
        seats.iter().find(|seat| seat.thread == thread).cloned()
    });
    match known {
        Ok(Some(seat)) => seat.want(),
        Ok(None) => Seat::add(thread, foreign),
        Err(_) => {}
    }
}

impl Seat {
    fn add(thread: SpdkThread, foreign: &Arc<Foreign>) {
        let clock = system_clock();
        let seat = Rc::new(Seat {
            thread,
            core: foreign.core().clone(),
            foreign: Arc::downgrade(foreign),
            poller: RefCell::new(None),
            wanted: Cell::new(true),
            sleeps: Cell::new(false),
            ended: Cell::new(false),
            turns: Cell::new(false),
            last_wanted: Cell::new(clock.now()),
            clock,
        });
        let turner = Turner(seat.clone());
        let Ok(poller) = Poller::builder().name("tokio").register(move || {
            turner.0.poll();
            Activity::Idle
        }) else {
            return;
        };
        let follower = seat.clone();
        seat.poller.replace(Some(poller));
        if let Some(poller) = &*seat.poller.borrow() {
            poller.set_interrupt(move |sleeps| {
                follower.sleeps.set(sleeps);
                follower.settle();
            });
        }
        SEATS.with_borrow_mut(|seats| seats.push(seat.clone()));
        seat.settle();
        let holder = Holder(seat);
        let waits = async move {
            let _holder = holder;
            std::future::pending::<()>().await;
        };
        drop(task::TaskBuilder::new().name("tokio").spawn_local(waits));
    }

    /// Something is wrapped.
    fn want(&self) {
        if !self.wanted.replace(true) {
            self.last_wanted.set(self.clock.now());
            if let Some(poller) = &*self.poller.borrow() {
                poller.resume();
            }
            self.settle();
        }
    }

    fn settle(&self) {
        let turns = self.wanted.get() && !self.sleeps.get() && !self.ended.get();
        match (self.turns.replace(turns), turns) {
            (false, true) => self.core.add_poller(),
            (true, false) => self.core.remove_poller(),
            _ => {}
        }
    }

    fn poll(&self) {
        if !self.core.is_due(self.clock.now()) {
            return;
        }
        self.core.turn();
        let now = self.clock.now();
        self.core.set_next(now + self.clock.ticks_from(PERIOD));
        // The OS thread itself holds one.
        if self.foreign.strong_count() > 1 || self.core.has_tasks() {
            self.last_wanted.set(now);
        } else if now - self.last_wanted.get() > self.clock.ticks_from(LINGER) {
            self.wanted.set(false);
            if let Some(poller) = &*self.poller.borrow() {
                poller.pause();
            }
            self.settle();
        }
    }
}

/// In the poller: when that is gone, also because it has panicked, the helper turns the runtime.
struct Turner(Rc<Seat>);

impl Drop for Turner {
    fn drop(&mut self) {
        self.0.ended.set(true);
        self.0.settle();
    }
}

/// In the task: with the thread the poller ends.
struct Holder(Rc<Seat>);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = SEATS.try_with(|seats| {
            seats.borrow_mut().retain(|seat| !Rc::ptr_eq(seat, &self.0));
        });
        let poller = self.0.poller.take();
        drop(poller);
    }
}
