//! One reactor: the loop of one core, and everything that only its OS thread
//! touches.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::unistd::gettid;

use super::dormant::Dormant;
use super::ground::Ground;
use super::group::{Event, Group, Shared};
use super::hosted::{self, Hosted};
use super::idle::Spin;
use super::shares::{self, Fair, Miss};
use super::stats::KeptAwake;
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
    /// Up to where time is accounted for.
    pub(super) tick: u64,
    /// The tick at which the last work was done, while there is none.
    waiting_since: Option<u64>,
    /// The mode that the threads here were told.
    followed: ReactorMode,
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
        let driver = Driver::new(&group.driver, wake).map_err(|source| StartError::Driver {
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
            tick,
            waiting_since: None,
            followed: ReactorMode::Poll,
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
        self.closed && self.is_empty() && unsafe { self.shared().events.is_drained() }
    }

    fn is_empty(&self) -> bool {
        self.threads.is_empty() && self.dormant.is_empty()
    }

    /// One turn of the loop.
    pub(super) fn turn(&mut self) {
        let start = self.tick;
        let events = self.run_events();
        self.wake_dormant();
        let worked = events | self.poll_threads() | self.run_io();
        if self.group.is_stopping() {
            self.fair.let_all_run();
            self.stop();
        }
        if worked {
            self.end_wait(start);
            self.worked_turns += 1;
            if self.worked_turns >= KEEPER_TURNS {
                self.look_at_driver();
                self.note_keeper();
            }
        } else if !self.is_done() {
            self.rest();
        }
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.group.reactors[self.index]
    }

    /// A batch of calls, and what arrives or is roused up to the last of them. A turn
    /// takes in as many threads as it polls already: what a turn costs at most
    /// doubles, and making many threads is not quadratic in their number, as it
    /// would be with a batch of them between two polls of all.
    fn run_events(&mut self) -> bool {
        let mut calls = EVENT_BATCH;
        let mut arrivals = self.threads.len().max(ARRIVALS);
        let mut worked = false;
        let mut caught_up = false;
        while calls > 0 && arrivals > 0 && self.ground.next_event_arrived() {
            // SAFETY: a reactor is the only consumer of its events.
            let Some(event) = (unsafe { self.shared().events.pop() }) else {
                break;
            };
            worked = true;
            match event {
                Event::Arrival(thread) => {
                    arrivals -= 1;
                    self.arrive(thread);
                }
                Event::Roused(place) => {
                    arrivals -= 1;
                    if !caught_up {
                        self.catch_up();
                        caught_up = true;
                    }
                    let roused = self.dormant.wake(place, self.tick);
                    self.threads.extend(roused);
                }
                Event::Call(call) => {
                    calls -= 1;
                    caught_up = false;
                    self.run_call(call);
                }
                #[cfg(test)]
                Event::Unwind => std::panic::resume_unwind(Box::new("unwinds as a test asks")),
            }
        }
        worked
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

    /// Those whose latency limit asks for it, before whoever's turn it is.
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
        miss.add_to(&mut hosted.misses, cause.as_deref(), clock);
        // Who is just reading hears of it with the next one.
        hosted.runner.tell_misses(&hosted.misses);
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

    fn run_io(&mut self) -> bool {
        let completed = self.ground.run_io();
        if completed || self.threads.is_empty() {
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

    /// What a turn without work ends with: another one soon, or a sleep.
    fn rest(&mut self) {
        self.look_at_driver();
        self.rest_some();
        self.fair.rested(self.tick);
    }

    fn rest_some(&mut self) {
        let since = *self.waiting_since.get_or_insert(self.tick);
        let mode = self.shared().mode();
        self.follow_mode(mode);
        if mode != ReactorMode::Poll || self.group.oversubscribed {
            self.threads.iter_mut().for_each(Hosted::watch_interrupts);
        }
        if self.has_work() {
            self.note_keeper();
            return self.ground.pause(self.group.oversubscribed, true);
        }
        match mode {
            ReactorMode::Poll if !self.group.oversubscribed => self.ground.pause(false, false),
            ReactorMode::Adaptive if self.spins(since) => {
                let clock = self.group.library.clock();
                self.ground.give_way(&mut self.spin, clock);
            }
            _ => self.sleep(mode),
        }
    }

    /// Stops the app if the kernel serves this reactor's I/O no longer.
    fn look_at_driver(&self) {
        if !self.group.is_stopping()
            && let Some(error) = self.ground.failure()
        {
            let core = self.shared().place.core;
            tracing::error!("reactor {core}: {error}; the app stops");
            self.group.fail(core, error);
        }
    }

    /// Has the threads here follow `mode`: into one that sleeps whenever one of
    /// them may have come to need that, out of it once.
    fn follow_mode(&mut self, mode: ReactorMode) {
        if mode != ReactorMode::Poll || self.followed != mode {
            self.followed = mode;
            if mode == ReactorMode::Poll {
                self.catch_up();
                let switched = self.dormant.wake_all(self.tick, Hosted::is_switched);
                self.threads.extend(switched);
            }
            let threads = self.threads.iter_mut();
            threads.for_each(|hosted| hosted.follow_mode(mode));
        }
    }

    /// Whether a wait that began at tick `since` is still to be spun.
    fn spins(&self, since: u64) -> bool {
        let clock = self.group.library.clock();
        let limit = clock.ticks_from(self.spin.duration(self.tick));
        !self.group.oversubscribed && self.tick.saturating_sub(since) < limit
    }

    /// Sleeps until something arrives, an operation completes, the mode is no
    /// longer the one that led here, or the earliest timer of the threads here
    /// is due.
    fn sleep(&mut self, mode: ReactorMode) {
        if self.threads.iter_mut().any(Hosted::has_ready_interrupts) {
            return;
        }
        self.note_keeper();
        let clock = self.group.library.clock();
        let timeout = self.next_deadline();
        let timeout = timeout.map(|tick| clock.duration_from(tick.saturating_sub(clock.now())));
        let shared = &self.group.reactors[self.index];
        shared.idle_ticks.start_sleep(self.tick);
        let (threads, ground) = (&self.threads, &self.ground);
        let slept = ground.sleep(
            &shared.sleeper,
            timeout,
            || {
                has_work(ground, shared, threads)
                    || self.group.is_stopping() != self.stopping
                    || shared.mode() != mode
            },
            || self.group.sleep_hooks.around_sleep(shared.place.core),
        );
        if slept {
            self.awake();
        }
    }

    /// After a sleep.
    pub(super) fn awake(&mut self) {
        let now = self.group.library.clock().now();
        self.shared().idle_ticks.end_sleep(now);
        self.tick = now;
    }

    /// When the earliest timer of the threads here is due.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        let runners = self.threads.iter().map(|hosted| &hosted.runner);
        let deadlines = runners.filter_map(ThreadRunner::next_deadline);
        deadlines.chain(self.dormant.next_deadline()).min()
    }

    /// Tells the statistics what keeps this reactor awake although its mode lets
    /// it sleep.
    fn note_keeper(&mut self) {
        self.worked_turns = 0;
        let keeper = match self.shared().mode() {
            ReactorMode::Poll => None,
            _ => self.threads.iter().find_map(Hosted::keeper),
        };
        if keeper == self.kept_awake_by {
            return;
        }
        let named = keeper.and_then(|(id, _)| {
            let hosted = self.threads.iter().find(|one| one.runner.id() == id)?;
            Some(KeptAwake {
                thread: hosted.runner.name().to_owned(),
                poller: hosted.runner.active_poller_name(),
            })
        });
        if self.shared().kept_awake_by.tell(named) {
            self.kept_awake_by = keeper;
        }
    }

    /// Whether the next turn would find something to run, timers and I/O apart.
    fn has_work(&self) -> bool {
        has_work(&self.ground, self.shared(), &self.threads)
    }

    /// One step of the end: asks every thread that was not asked yet to exit;
    /// once all have, refuses what is sent from then on. A thread that was on
    /// its way here before that still arrives, runs its messages, and exits.
    fn stop(&mut self) {
        if !self.stopping {
            self.stopping = true;
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
        if self.is_empty() && !self.closed {
            self.closed = true;
            self.shared().events.close();
        }
    }
}

fn has_work<G: Ground>(ground: &G, here: &Shared, threads: &[Hosted]) -> bool {
    // SAFETY: a reactor is the only consumer of its events.
    (unsafe { here.events.has_messages() } && ground.has_event_arrived())
        || threads.iter().any(|hosted| ground.needs_poll(hosted))
        || here.sleeper.is_called()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use futures::AsyncReadExt;

    use super::*;
    use crate::clock::Clock;
    use crate::cpu::CpuSet;
    use crate::io::DriverConfig;
    use crate::net::UnixStream;
    use crate::reactor::{AdaptivePolling, Place, Placement, ReactorStats};
    use crate::thread::{Activity, Poller, SpdkThread, ThreadLib};

    /// What a move meets when the app stops between its look at that and its
    /// arrival.
    #[test]
    fn a_thread_that_the_other_reactor_refuses_stays_whole() {
        let cpu = cpu::available().unwrap().first().unwrap();
        let places = [0, 1].map(|core| Place { core, cpu });
        let (mode, polling) = (ReactorMode::Poll, AdaptivePolling::default());
        let library = ThreadLib::new();
        let group = Group::new(library, &places, mode, polling, DriverConfig::new()).unwrap();
        let placement = Placement(Arc::downgrade(&group));
        group.library.set_framework(Arc::new(placement)).unwrap();
        group.reactors[1].events.close();
        let mut reactor = Reactor::start(group.clone(), 0).unwrap();
        let thread = group.library.thread().build().unwrap();
        let handle = thread.handle();
        let there = CpuSet::single(1);
        let moved = reactor.arrive(thread).enter(|| handle.set_cpumask(&there));
        moved.unwrap();
        let (done, ended) = std::sync::mpsc::channel();
        handle.send_msg(move || done.send(1).unwrap()).unwrap();
        reactor.turn();
        assert_eq!(ended.try_recv(), Ok(1));
        assert_eq!(reactor.threads.len(), 1);
        let (done, ended) = std::sync::mpsc::channel();
        handle.send_msg(move || done.send(2).unwrap()).unwrap();
        reactor.turn();
        assert_eq!(ended.try_recv(), Ok(2));
        group.stop();
        reactor.run().unwrap();
        assert!(handle.is_exited());
    }

    /// T-RE-08: one turn after the other, to the tick; the last part of it in a
    /// reactor without any thread.
    #[test]
    fn every_tick_is_somebodys_and_without_threads_it_is_idle() {
        let (clock, hand) = Clock::virtual_at(1_000_000);
        hand.set(100);
        let cpu = cpu::available().unwrap().first().unwrap();
        let places = [Place { core: 0, cpu }];
        let (mode, polling) = (ReactorMode::Poll, AdaptivePolling::default());
        let library = ThreadLib::builder().clock(clock).build();
        let group = Group::new(library, &places, mode, polling, DriverConfig::new()).unwrap();
        let mut reactor = Reactor::start(group.clone(), 0).unwrap();
        let hand = Arc::new(hand);
        // A thread with a poller that takes so many ticks in each of its runs.
        let add = |reactor: &mut Reactor, plan: &'static [(u64, Activity)]| {
            let thread = group.library.thread().build().unwrap();
            let handle = thread.handle();
            let mut runs = plan.iter();
            let hand = hand.clone();
            let run = move || match runs.next() {
                Some(&(ticks, activity)) => {
                    hand.advance(ticks);
                    activity
                }
                None => Activity::Ignored,
            };
            let poller = reactor.arrive(thread).enter(|| Poller::active(run));
            (handle, poller.unwrap())
        };
        let spent = |thread: &SpdkThread| {
            let stats = thread.stats();
            (thread.last_tick(), stats.busy_ticks, stats.idle_ticks)
        };
        let total = || {
            let stats = ReactorStats::of(&group.reactors[0], 0);
            (stats.busy_ticks, stats.idle_ticks, hand.now())
        };
        let (first, poller1) = add(
            &mut reactor,
            &[(100, Activity::Busy), (200, Activity::Idle)],
        );
        let (second, poller2) = add(
            &mut reactor,
            &[(300, Activity::Idle), (400, Activity::Busy)],
        );
        reactor.turn();
        assert_eq!(spent(&first), (200, 100, 0));
        assert_eq!(spent(&second), (500, 0, 300));
        assert_eq!(total(), (100, 300, 500));
        reactor.turn();
        assert_eq!(spent(&first), (700, 100, 200));
        assert_eq!(spent(&second), (1100, 400, 300));
        assert_eq!(total(), (500, 500, 1100));
        drop((poller1, poller2, first.exit(), second.exit()));
        while !reactor.threads.is_empty() {
            reactor.turn();
        }
        assert_eq!(total(), (500, 500, 1100), "their exits took no time");
        for _ in 0..9 {
            hand.advance(100);
            reactor.turn();
        }
        assert_eq!(total(), (500, 1400, 2000));
        let (third, poller3) = add(&mut reactor, &[(100, Activity::Busy)]);
        reactor.turn();
        assert_eq!(spent(&third), (2100, 100, 0));
        assert_eq!(total(), (600, 1400, 2100));
        drop((poller3, third.exit()));
        group.stop();
        reactor.run().unwrap();
    }

    /// A reader during the call that rouses the thread, and one afterwards: the time
    /// of the call was idle, and is not counted again as that of its next poll.
    #[test]
    fn a_dormant_thread_is_idle_until_it_is_roused() {
        let (clock, hand) = Clock::virtual_at(1_000_000);
        hand.set(100);
        let cpu = cpu::available().unwrap().first().unwrap();
        let places = [Place { core: 0, cpu }];
        let (mode, polling) = (ReactorMode::Poll, AdaptivePolling::default());
        let library = ThreadLib::builder().clock(clock).build();
        let group = Group::new(library, &places, mode, polling, DriverConfig::new()).unwrap();
        let mut reactor = Reactor::start(group.clone(), 0).unwrap();
        let thread = group.library.thread().build().unwrap();
        let thread = reactor.arrive(thread).handle();
        while reactor.dormant.is_empty() {
            reactor.turn();
            hand.advance(1);
        }
        let begun = (hand.now(), thread.stats());
        let hand = Arc::new(hand);
        let (during, reads) = std::sync::mpsc::channel();
        let (sleeper, time) = (thread.clone(), hand.clone());
        let call = Event::Call(Message::new(move || {
            time.advance(5_000);
            during.send(sleeper.stats().idle_ticks).unwrap();
            sleeper.send_msg(move || _ = time.advance(70)).unwrap();
        }));
        group.send(0, call).unwrap_or_else(|_| panic!());
        reactor.turn();
        let during = reads.recv().unwrap();
        assert_eq!(during - begun.1.idle_ticks, hand.now() - 70 - begun.0);
        let after = thread.stats();
        assert_eq!(after.idle_ticks, during);
        assert_eq!(after.busy_ticks - begun.1.busy_ticks, 70);
        drop(thread.exit());
        group.stop();
        reactor.run().unwrap();
    }

    /// G12: introspection never stops the loops.
    #[test]
    fn a_reader_of_the_keeper_that_takes_its_time_holds_nobody_up() {
        let cpu = cpu::available().unwrap().first().unwrap();
        let places = [Place { core: 0, cpu }];
        let (mode, polling) = (ReactorMode::Interrupt, AdaptivePolling::default());
        let library = ThreadLib::new();
        let group = Group::new(library, &places, mode, polling, DriverConfig::new()).unwrap();
        let shared = group.clone();
        let (turned, turns) = std::sync::mpsc::channel();
        let reading = shared.reactors[0].kept_awake_by.read_for_long();
        let reactor = std::thread::spawn(move || {
            let mut reactor = Reactor::start(group.clone(), 0).unwrap();
            let thread = group.library.thread().name("busy").build().unwrap();
            let poller = reactor.arrive(thread).enter(|| Poller::active(|| false));
            reactor.turn();
            turned.send(()).unwrap();
            while group.reactors[0].kept_awake_by.get().is_none() {
                reactor.turn();
            }
            drop(poller);
        });
        let turned = turns.recv_timeout(std::time::Duration::from_secs(60));
        assert!(turned.is_ok(), "the loop waits for its reader");
        drop(reading);
        reactor.join().unwrap();
        let told = shared.reactors[0].kept_awake_by.get().unwrap();
        assert_eq!(told.thread, "busy");
    }

    #[test]
    fn a_completion_that_ends_a_sleep_writes_no_eventfd() {
        let cpu = cpu::available().unwrap().first().unwrap();
        let group = Group::new(
            ThreadLib::new(),
            &[Place { core: cpu, cpu }],
            ReactorMode::Interrupt,
            AdaptivePolling::default(),
            DriverConfig::new(),
        )
        .unwrap();
        let (mut peer, stream) = std::os::unix::net::UnixStream::pair().unwrap();
        let shared = group.clone();
        let reactor = std::thread::spawn(move || {
            let mut reactor = Reactor::start(group.clone(), 0).unwrap();
            let thread = group.library.thread().build().unwrap();
            let task = reactor.arrive(thread).enter(|| {
                crate::task::spawn_local(async move {
                    let mut stream = UnixStream::from_std(stream).unwrap();
                    stream.read_exact(&mut [0]).await.unwrap();
                })
            });
            // The turn that polls the task, and the one that sleeps until the
            // byte comes and wakes the task.
            reactor.turn();
            assert!(!task.is_finished());
            reactor.turn();
            let written = reactor.shared().wake.as_ref().unwrap().read();
            reactor.turn();
            assert!(task.is_finished());
            written
        });
        while !shared.reactors[0].sleeper.is_asleep() {
            std::thread::yield_now();
        }
        peer.write_all(b"x").unwrap();
        let written = reactor.join().unwrap();
        assert_eq!(written, Err(nix::errno::Errno::EAGAIN));
    }
}
