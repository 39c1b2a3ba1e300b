//! One reactor: the loop of one core, and everything that only its OS thread
//! touches.

mod rest;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::unistd::gettid;

use super::dormant::Dormant;
use super::ground::Ground;
use super::group::{Event, Group, Shared};
use super::hosted::{self, Hosted};
use super::idle::Spin;
use super::scheduler::RoundTotals;
use super::shares::{self, Fair, Miss};
use super::switches::SwitchMonitor;
use super::walk::InEvents;
use super::{ReactorMode, StartError};
use crate::cpu;
use crate::io::{Driver, EnterGuard};
use crate::thread::message::Message;
use crate::thread::panic::PanicSource;
use crate::thread::{ParkedThread, ThreadRunner};

/// Calls run in one turn, as SPDK's `SPDK_EVENT_BATCH_SIZE`.
const EVENT_BATCH: usize = 8;

/// Threads taken in in one turn, where there are no more than that yet.
const ARRIVALS: usize = 64;

/// How long a thread must have had nothing to do before it is dormant: long enough
/// that one which waits for another core's answer is not.
const PATIENCE: Duration = Duration::from_micros(10);

/// Of so many turns with work, one looks at what keeps the reactor awake.
const KEEPER_TURNS: u32 = 256;

pub(crate) struct Reactor<G = EnterGuard> {
    pub(super) group: Arc<Group>,
    pub(super) index: usize,
    /// The threads that a turn polls.
    pub(super) threads: Vec<Hosted>,
    pub(super) dormant: Dormant,
    /// Ticks of `PATIENCE`.
    patience: u64,
    pub(super) ground: G,
    spin: Spin,
    fair: Fair,
    /// What was taken out of the mailbox and has not run yet.
    pub(super) batch: VecDeque<Event>,
    switches: SwitchMonitor,
    /// Up to where time is accounted for.
    pub(super) tick: u64,
    /// The tick at which the last work was done, while there is none.
    waiting_since: Option<u64>,
    /// The mode that the threads here were told.
    followed: ReactorMode,
    /// The mode to go back to, while a scheduler has put this core to sleep.
    pub(super) awake_mode: Option<ReactorMode>,
    /// What the last round of a scheduler has seen.
    pub(super) last_round: RoundTotals,
    /// What keeps the reactor awake, as the statistics say, by number.
    kept_awake_by: Option<(u64, Option<u64>)>,
    /// Turns with work since that was looked at.
    worked_turns: u32,
    /// Every thread here was asked to exit.
    stopping: bool,
    /// Nothing can be sent here any more.
    closed: bool,
}

/// What the polls of a turn have come to.
#[derive(Default)]
struct Polled {
    worked: bool,
    /// A thread has exited, or is to go elsewhere.
    some_go: bool,
    some_drowsy: bool,
}

impl Reactor {
    /// Pins the calling OS thread and makes it the reactor of one core.
    pub(crate) fn start(group: Arc<Group>, index: usize) -> Result<Self, StartError> {
        let shared = &group.reactors[index];
        cpu::pin_current_thread(shared.place.cpu)?;
        let wake = shared
            .wake
            .clone()
            .expect("none but a simulated one lacks it");
        let driver =
            Driver::with_wake(&group.driver, wake).map_err(|source| StartError::Driver {
                core: shared.place.core,
                source,
            })?;
        let _ = shared.backend.set(driver.backend());
        if let Some(watched) = &shared.watched {
            let _ = watched.tid.set(gettid().as_raw());
        }
        Ok(Reactor::on(driver.enter(), group, index))
    }
}

impl<G: Ground> Reactor<G> {
    /// The reactor of one core, on what it stands on.
    pub(super) fn on(ground: G, group: Arc<Group>, index: usize) -> Self {
        let spin = Spin::new(group.adaptive);
        let clock = group.library.clock();
        let (tick, patience) = (clock.now(), clock.ticks_from(PATIENCE));
        let fair = Fair::new(clock);
        Reactor {
            group,
            index,
            threads: Vec::new(),
            dormant: Dormant::default(),
            patience,
            ground,
            spin,
            fair,
            batch: VecDeque::new(),
            switches: SwitchMonitor::default(),
            tick,
            waiting_since: None,
            followed: ReactorMode::Poll,
            awake_mode: None,
            last_round: RoundTotals::default(),
            kept_awake_by: None,
            worked_turns: 0,
            stopping: false,
            closed: false,
        }
    }

    /// Turns until the group is stopped, every thread here has exited, and all
    /// that was sent here has been run.
    pub(super) fn turn_until_done(&mut self) {
        let place = self.shared().place;
        tracing::info!(cpu = place.cpu, "reactor started on core {}", place.core);
        while !self.is_done() {
            self.turn();
        }
    }

    pub(super) fn is_done(&self) -> bool {
        // SAFETY: a reactor is the only consumer of its events.
        let drained = || unsafe { self.shared().events.is_drained() };
        self.closed && self.is_empty() && self.batch.is_empty() && drained()
    }

    /// Whether no thread is here.
    pub(super) fn is_empty(&self) -> bool {
        self.threads.is_empty() && self.dormant.is_empty()
    }

    /// One turn of the loop.
    pub(super) fn turn(&mut self) {
        let start = self.tick;
        let events = self.run_events();
        self.wake_dormant();
        let worked = events | self.poll_threads() | self.run_io(events);
        if self.group.is_stopping() {
            self.fair.let_all_run();
            self.stop();
        } else if self.tick >= self.shared().next_round.load(Ordering::Relaxed) {
            self.group.begin_round();
        }
        if worked {
            self.end_wait(start);
            self.worked_turns += 1;
            if self.worked_turns >= KEEPER_TURNS {
                self.look_at_driver();
                self.look_at_switches();
                self.note_keeper();
            }
        } else if !self.is_done() {
            self.rest();
        }
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.group.reactors[self.index]
    }

    /// A batch of calls, and what arrives or is roused up to the last of them. All
    /// is taken before any is run, so that what an event sends here itself waits for
    /// the next turn. The time of the calls is the reactor's own: no thread is
    /// charged with it.
    fn run_events(&mut self) -> bool {
        let calls = self.take_batch();
        if self.batch.is_empty() {
            return false;
        }
        let _here = InEvents::of(Arc::as_ptr(&self.group), self.index);
        let mut caught_up = false;
        while let Some(event) = self.batch.pop_front() {
            match event {
                Event::Arrival(thread) => _ = self.arrive(thread),
                Event::Roused(place) => {
                    if !caught_up {
                        self.catch_up();
                        caught_up = true;
                    }
                    let roused = self.dormant.wake(place, self.tick);
                    self.threads.extend(roused);
                }
                Event::Call(call) => {
                    caught_up = false;
                    self.run_call(call);
                }
                Event::Within(call) => {
                    caught_up = false;
                    call(self);
                }
                #[cfg(test)]
                Event::Unwind => std::panic::resume_unwind(Box::new("unwinds as a test asks")),
            }
            if !caught_up && self.fair.somebody_hurries() {
                let begun = self.tick;
                self.catch_up();
                self.fair.events_ran(self.tick.saturating_sub(begun));
                caught_up = true;
                if self.fair.somebody_is_due(self.tick) {
                    break;
                }
            }
        }
        if calls && !caught_up {
            self.catch_up();
        }
        true
    }

    /// Takes out the events of this turn; says whether a call is among them. A turn
    /// takes in as many threads as it polls already: what a turn costs at most
    /// doubles, and making many threads is not quadratic in their number, as it
    /// would be with a batch of them between two polls of all. What a turn has left for
    /// the sake of a latency limit is the batch of the next.
    fn take_batch(&mut self) -> bool {
        if !self.batch.is_empty() {
            return true;
        }
        let mut calls = EVENT_BATCH;
        let mut arrivals = self.threads.len().max(ARRIVALS);
        while calls > 0 && arrivals > 0 && self.ground.next_event_arrived() {
            // SAFETY: a reactor is the only consumer of its events.
            let Some(event) = (unsafe { self.shared().events.pop() }) else {
                break;
            };
            match event {
                Event::Arrival(_) | Event::Roused(_) => arrivals -= 1,
                _ => calls -= 1,
            }
            self.batch.push_back(event);
        }
        calls < EVENT_BATCH
    }

    fn run_call(&self, call: Message) {
        let reactor = self.shared();
        match &reactor.watched {
            None => self.run_call_contained(call),
            Some(watched) => {
                let run = |call| self.run_call_contained(call);
                self.group.watch_event(reactor, watched, call, run);
            }
        }
    }

    fn run_call_contained(&self, call: Message) {
        if let Err(payload) = call.run_contained() {
            let group = &self.group;
            group.report_panic(self.shared(), PanicSource::Message, payload);
        }
    }

    /// Takes a thread in, to be polled from now on.
    pub(crate) fn arrive(&mut self, thread: ParkedThread) -> &mut ThreadRunner {
        let hosted = Hosted::new(thread, self.shared());
        self.threads.push(hosted);
        self.count_threads();
        &mut self.threads.last_mut().expect("it was pushed").runner
    }

    pub(super) fn count_threads(&self) {
        let count = self.threads.len() + self.dormant.len();
        self.shared().threads.store(count, Ordering::Relaxed);
    }

    /// Those dormant threads that are due, and those to look at because one of them
    /// has a critical message.
    #[inline]
    fn wake_dormant(&mut self) {
        let due = |deadline| deadline <= self.tick;
        if self.dormant.next_deadline().is_some_and(due) {
            self.catch_up();
            while let Some(hosted) = self.dormant.wake_due(self.tick) {
                self.threads.push(hosted);
            }
        }
        if self.shared().sleeper.take_call() {
            self.catch_up();
            let called = self.dormant.wake_all(self.tick, Hosted::needs_poll);
            self.threads.extend(called);
        }
    }

    /// Each thread once, in the order of arrival, but for those that are ahead of their
    /// share, and those that a latency limit puts before others. Time is chained from poll
    /// to poll, so that none of it goes unaccounted for.
    fn poll_threads(&mut self) -> bool {
        if hosted::take_rescheduled() {
            // Outside of a poll: it may be any of them.
            self.threads.iter_mut().for_each(|one| one.moves = true);
        }
        let mut turn = Polled::default();
        if self.fair.somebody_is_due(self.tick) {
            self.poll_due(&mut turn);
        }
        for index in 0..self.threads.len() {
            if self.fair.sits_out(&self.threads[index], self.tick) {
                turn.worked = true;
                continue;
            }
            self.poll_thread(index, &mut turn);
            if self.fair.somebody_is_due(self.tick) {
                self.poll_due(&mut turn);
            }
        }
        if self.fair.end_turn() {
            let dormant = self.dormant.iter_mut();
            self.fair.rebase(self.threads.iter_mut().chain(dormant));
        }
        if turn.some_go {
            self.let_go();
        }
        if turn.some_drowsy {
            self.let_doze();
        }
        turn.worked
    }

    #[inline]
    fn poll_thread(&mut self, index: usize, turn: &mut Polled) {
        let (start, alone) = (self.tick, self.threads.len() == 1);
        let hosted = &mut self.threads[index];
        let Some(slice) = self.ground.slice(&hosted.runner) else {
            return;
        };
        let miss = self.fair.begin_poll(hosted, start, alone);
        let runner = &mut hosted.runner;
        if let Some(watched) = &self.group.reactors[self.index].watched {
            watched.polls(runner.id());
        }
        let busy = runner.poll_slice(slice, start).is_busy();
        self.ground.polled(runner, busy);
        let end = runner.last_tick();
        hosted.moves |= hosted::take_rescheduled();
        turn.some_go |= hosted.moves || runner.is_exited();
        turn.some_drowsy |= hosted.polled(busy, end, self.patience);
        turn.worked |= busy;
        self.fair.polled(hosted, busy, start, end);
        self.charge(end, busy);
        if let Some(miss) = miss {
            self.note_miss(index, &miss);
        }
    }

    /// Those whose latency limit asks for it, before the thread whose turn it is.
    #[cold]
    fn poll_due(&mut self, turn: &mut Polled) {
        for index in 0..self.threads.len() {
            let due = shares::next_due(&self.threads[index]);
            if due.is_some_and(|due| due <= self.tick) {
                self.poll_thread(index, turn);
            }
        }
        self.fair.served(&self.threads);
    }

    #[cold]
    fn note_miss(&mut self, index: usize, miss: &Miss) {
        let clock = self.group.library.clock();
        let mut threads = self.threads.iter();
        let cause = threads.find(|hosted| hosted.runner.id() == miss.by);
        let cause = cause.map(|hosted| hosted.runner.name().to_owned());
        let hosted = &mut self.threads[index];
        let misses = hosted.misses.get_or_insert_default();
        miss.add_to(misses, cause.as_deref(), clock);
        // A reader that is just reading hears of it with the next one.
        hosted.runner.tell_misses(misses);
    }

    /// Parts with the threads that have exited, and with those that leave for a
    /// core of their mask: all in one pass, since each removal by itself costs as
    /// much as there are threads.
    #[cold]
    fn let_go(&mut self) {
        let Reactor { group, threads, .. } = self;
        let here = &group.reactors[self.index];
        let stopping = group.is_stopping();
        let goes = |hosted: &mut Hosted| {
            hosted.runner.is_exited() || hosted.leaves(here.place.core, stopping)
        };
        let mut stays = Vec::new();
        for hosted in threads.extract_if(.., goes) {
            if hosted.runner.is_exited() {
                group.drop_contained(here, hosted);
            } else if let Err(hosted) = group.pass_on(here, hosted) {
                stays.push(hosted);
            }
        }
        threads.append(&mut stays);
        self.count_threads();
    }

    /// Parts with the threads that have had nothing to do for a while.
    #[cold]
    fn let_doze(&mut self) {
        let now = self.tick;
        let drowsy = |hosted: &mut Hosted| hosted.is_drowsy(now, self.patience);
        let mut stays = Vec::new();
        for hosted in self.threads.extract_if(.., drowsy) {
            stays.extend(self.dormant.admit(hosted, now).err());
        }
        self.threads.append(&mut stays);
    }

    /// Takes the completions of I/O. Time is accounted for by now if there are
    /// threads, or if there were `events`.
    fn run_io(&mut self, events: bool) -> bool {
        let completed = self.ground.run_io();
        if completed || self.threads.is_empty() && !events {
            let now = self.group.library.clock().now();
            self.charge(now, completed);
        }
        completed
    }

    /// Before dormant threads are woken: up to this moment they were idle, whatever
    /// the reactor has done since the last poll.
    fn catch_up(&mut self) {
        let now = self.group.library.clock().now();
        self.charge(now, true);
    }

    /// Accounts for the time up to `now`.
    fn charge(&mut self, now: u64, busy: bool) {
        let shared = self.shared();
        let spent = now.saturating_sub(self.tick);
        // This OS thread is the only writer of either total.
        if busy {
            let total = shared.busy_ticks.load(Ordering::Relaxed);
            let total = total.wrapping_add(spent);
            shared.busy_ticks.store(total, Ordering::Relaxed);
        } else {
            shared.idle_ticks.add(spent);
        }
        self.tick = now;
    }

    /// Ends the wait, if there was one, with a turn that began at `start` and
    /// found work: how long that took is no part of the wait.
    fn end_wait(&mut self, start: u64) {
        if let Some(since) = self.waiting_since.take() {
            let waited = start.saturating_sub(since);
            let clock = self.group.library.clock();
            self.spin.adjust(clock.duration_from(waited));
        }
    }

    /// Whether nothing needs this reactor any more: all stop, no thread is here, and
    /// no walk is to pass through.
    fn may_close(&self) -> bool {
        self.stopping && !self.closed && self.is_empty() && !self.group.has_walks()
    }

    /// One step of the end: asks every thread that was not asked yet to exit;
    /// once all have, refuses what is sent from then on. A thread that was on
    /// its way here before that still arrives, runs its messages, and exits.
    fn stop(&mut self) {
        if !self.stopping {
            self.stopping = true;
            self.group.end_scheduling(self.index);
            self.catch_up();
            self.threads
                .extend(self.dormant.wake_all(self.tick, |_| true));
        }
        for Hosted { runner, .. } in &mut self.threads {
            if runner.is_running() {
                tracing::debug!(thread = runner.name(), "exits because the app stops");
                drop(runner.exit());
            }
        }
        if self.may_close() {
            self.closed = true;
            self.shared().events.close();
        }
    }
}

#[cfg(test)]
mod tests;
