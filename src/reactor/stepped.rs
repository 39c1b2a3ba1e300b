//! A reactor that its caller turns, on whatever OS thread: how a simulation has many
//! of them on one. It is the real one on another ground, where a [`Director`] says what
//! has arrived and how much of it a poll may run, and where nothing blocks.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::ground::Ground;
use super::group::{Event, Group};
use super::hosted::{self, Hosted};
use super::idle::Spin;
use super::turn::Reactor;
use crate::clock::Clock;
use crate::notify::Sleeper;
use crate::sync::Mailbox;
use crate::thread::{ParkedThread, Slice, ThreadRunner};

/// Decides what one reactor sees.
pub(crate) trait Director {
    /// How many of the `sent` events of the reactor have arrived by now.
    fn events_arrived(&self, sent: usize) -> usize;

    /// How many of the `sent` messages of a thread have arrived by now.
    fn messages_arrived(&self, thread: u64, sent: usize) -> usize;

    /// When the next message of a thread arrives.
    fn next_arrival(&self, thread: u64) -> Option<u64>;

    /// How the thread is polled that comes next, if it is; so many messages of its
    /// mailbox have arrived.
    fn slice(&mut self, thread: &ThreadRunner, arrived: usize) -> Option<Part>;

    /// That poll has ended.
    fn polled(&mut self, thread: u64, busy: bool);
}

/// A part of what waits for a thread.
#[derive(Clone, Copy)]
pub(crate) struct Part {
    /// Messages and tasks at most; 0 for the thread's batch.
    pub(crate) max_msgs: usize,
    /// How many messages of the mailbox have arrived.
    pub(crate) arrived: usize,
    /// Whether the mailbox goes before the thread's own tasks, if it matters.
    pub(crate) mailbox_next: Option<bool>,
}

impl Slice for Part {
    fn max_msgs(&self) -> usize {
        self.max_msgs
    }

    fn arrived(&self) -> usize {
        self.arrived
    }

    fn mailbox_next(&self) -> Option<bool> {
        self.mailbox_next
    }
}

/// How a turn has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    /// It did something.
    Worked,
    /// It found nothing, and the next one will.
    HasWork,
    /// It found nothing, and nothing will change before something arrives or is due.
    Idle,
    /// It spins before it sleeps.
    Spins,
    /// It sleeps, and is to be [woken](Stepped::wake).
    Asleep,
}

pub(crate) struct Stepped<D: Director> {
    reactor: Reactor<Stage<D>>,
    /// Its own of the note that otherwise an OS thread has.
    rescheduled: Cell<bool>,
}

pub(super) struct Stage<D> {
    director: D,
    events: Arc<Mailbox<Event>>,
    rest: Cell<Rest>,
}

impl<D: Director> Stage<D> {
    fn arrived(&self, runner: &ThreadRunner) -> usize {
        let arrived = self
            .director
            .messages_arrived(runner.id(), runner.messages_sent());
        arrived.saturating_sub(runner.messages_taken())
    }
}

impl<D: Director> Ground for Stage<D> {
    type Slice = Part;

    fn next_event_arrived(&mut self) -> bool {
        self.has_event_arrived()
    }

    fn has_event_arrived(&self) -> bool {
        // SAFETY: this belongs to the reactor, the only consumer of its events.
        let (sent, taken) = unsafe { (self.events.sent(), self.events.taken()) };
        sent > taken && self.director.events_arrived(sent) > taken
    }

    fn slice(&mut self, runner: &ThreadRunner) -> Option<Part> {
        let arrived = self.arrived(runner);
        self.director.slice(runner, arrived)
    }

    fn polled(&mut self, runner: &ThreadRunner, busy: bool) {
        self.director.polled(runner.id(), busy);
    }

    fn needs_poll(&self, hosted: &Hosted) -> bool {
        hosted.runner.needs_poll_of(self.arrived(&hosted.runner)) || hosted.can_leave()
    }

    fn run_io(&self) -> bool {
        false
    }

    fn failure(&self) -> Option<io::Error> {
        None
    }

    fn pause(&mut self, _waiting: bool, has_work: bool) {
        self.rest.set(match has_work {
            true => Rest::HasWork,
            false => Rest::Idle,
        });
    }

    fn give_way(&mut self, _spin: &mut Spin, _clock: &Clock) {
        self.rest.set(Rest::Spins);
    }

    fn sleep<R>(
        &self,
        sleeper: &Sleeper,
        _timeout: Option<Duration>,
        has_work: impl FnOnce() -> bool,
        _around: impl FnOnce() -> R,
    ) -> bool {
        sleeper.announce();
        let over = has_work();
        if over {
            sleeper.retract();
        }
        self.rest.set(match over {
            true => Rest::HasWork,
            false => Rest::Asleep,
        });
        over
    }
}

impl<D: Director> Stepped<D> {
    pub(crate) fn new(director: D, group: &Arc<Group>, index: usize) -> Self {
        let stage = Stage {
            director,
            events: group.reactors[index].events.clone(),
            rest: Cell::new(Rest::Worked),
        };
        Stepped {
            reactor: Reactor::on(stage, group.clone(), index),
            rescheduled: Cell::new(false),
        }
    }

    /// One turn. Not while it sleeps.
    pub(crate) fn turn(&mut self) -> Rest {
        let _note = hosted::OwnNote::begin(&self.rescheduled);
        self.reactor.ground.rest.set(Rest::Worked);
        self.reactor.turn();
        self.reactor.ground.rest.get()
    }

    /// Ends a sleep.
    pub(crate) fn wake(&mut self) {
        self.reactor.shared().sleeper.retract();
        self.reactor.awake();
    }

    /// Whether it has been stopped, and all that was sent here has been run.
    pub(crate) fn is_done(&self) -> bool {
        self.reactor.is_done()
    }

    /// When it has something to do although nothing more is sent: a timer, or what is on
    /// its way. Events apart.
    pub(crate) fn next(&self) -> Option<u64> {
        let director = &self.reactor.ground.director;
        let threads = self.reactor.threads.iter();
        let arrivals = threads.filter_map(|one| director.next_arrival(one.runner.id()));
        arrivals.chain(self.reactor.next_deadline()).min()
    }

    /// Takes a thread in, without an event.
    pub(crate) fn arrive(&mut self, thread: ParkedThread) {
        self.reactor.arrive(thread);
    }

    /// Makes one of the threads here current while `f` runs; `None` if it is not here.
    pub(crate) fn enter<R>(&mut self, thread: u64, f: impl FnOnce() -> R) -> Option<R> {
        let awake = |reactor: &Reactor<_>| {
            let mut threads = reactor.threads.iter();
            threads.position(|hosted| hosted.runner.id() == thread)
        };
        let _note = hosted::OwnNote::begin(&self.rescheduled);
        let place = awake(&self.reactor).or_else(|| {
            let (tick, asked) = (self.reactor.tick, |one: &Hosted| one.runner.id() == thread);
            let woken = self.reactor.dormant.wake_all(tick, asked);
            self.reactor.threads.extend(woken);
            awake(&self.reactor)
        })?;
        let hosted = &mut self.reactor.threads[place];
        let result = hosted.runner.enter(f);
        hosted.moves |= hosted::take_rescheduled();
        Some(result)
    }

    /// How many threads the next turn polls, in their order.
    pub(crate) fn awake(&self) -> usize {
        self.reactor.threads.len()
    }

    /// Exchanges the turns of two threads.
    pub(crate) fn swap(&mut self, one: usize, other: usize) {
        self.reactor.threads.swap(one, other);
    }

    /// Every thread here.
    pub(crate) fn threads(&self) -> impl Iterator<Item = &ThreadRunner> {
        let awake = self.reactor.threads.iter();
        awake
            .chain(self.reactor.dormant.iter())
            .map(|hosted| &hosted.runner)
    }

    /// Ends it here and now: its threads are cancelled, and what waits is dropped.
    pub(crate) fn end(&mut self) {
        let _note = hosted::OwnNote::begin(&self.rescheduled);
        let group = self.reactor.group.clone();
        let here = &group.reactors[self.reactor.index];
        here.events.close();
        self.reactor.fail_threads(&group, here);
    }
}
