//! What a reactor does when a turn has found nothing: it turns again, spins or sleeps, as
//! its mode says, and tells the statistics what keeps it awake.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Reactor;
use crate::reactor::ReactorMode;
use crate::reactor::ground::Ground;
use crate::reactor::group::Shared;
use crate::reactor::hosted::Hosted;
use crate::reactor::stats::KeptAwake;
use crate::thread::{InterruptError, ThreadRunner};

impl<G: Ground> Reactor<G> {
    /// What a turn without work ends with: another one soon, or a sleep.
    pub(super) fn rest(&mut self) {
        self.look_at_driver();
        self.look_at_switches();
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
            _ => self.sleep(),
        }
    }

    /// Stops the app if the kernel serves this reactor's I/O no longer.
    pub(super) fn look_at_driver(&self) {
        if !self.group.is_stopping()
            && let Some(error) = self.ground.failure()
        {
            let core = self.shared().place.core;
            tracing::error!("reactor {core}: {error}; the app stops");
            self.group.fail(core, error);
        }
    }

    /// Counts the context switches of this OS thread now and then.
    pub(super) fn look_at_switches(&mut self) {
        let real = self.shared().wake.is_some();
        if self.tick >= self.switches.due() && real && self.group.monitors_switches() {
            let second = self
                .group
                .library
                .clock()
                .ticks_from(Duration::from_secs(1));
            let shared = &self.group.reactors[self.index];
            self.switches.look(shared, self.tick, second);
        }
    }

    /// Puts `mode` in force.
    ///
    /// # Errors
    ///
    /// The name of a thread here that cannot follow, and why; then all is as it was.
    pub(in crate::reactor) fn enter_mode(
        &mut self,
        mode: ReactorMode,
    ) -> Result<(), (String, InterruptError)> {
        let before = self.shared().mode();
        let mut threads = self.threads.iter_mut();
        let refused = threads.find_map(|hosted| {
            let error = hosted.follow_mode(mode).err()?;
            Some((hosted.runner.name().to_owned(), error))
        });
        if let Some(refused) = refused {
            if before == ReactorMode::Poll {
                let threads = self.threads.iter_mut();
                // Out of interrupt mode, nothing is made that could be refused.
                threads.for_each(|hosted| drop(hosted.follow_mode(before)));
            }
            return Err(refused);
        }
        self.follow_mode(mode);
        self.shared().enter_mode(mode);
        Ok(())
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
            for hosted in &mut self.threads {
                hosted.follow_mode_or_tell(mode);
            }
        }
    }

    /// Whether a wait that began at tick `since` is still to be spun.
    fn spins(&self, since: u64) -> bool {
        let clock = self.group.library.clock();
        let limit = clock.ticks_from(self.spin.duration(self.tick));
        !self.group.oversubscribed && self.tick.saturating_sub(since) < limit
    }

    /// The tick by which the reactor has to look at its clock again: the earliest
    /// timer of the threads here, or a round of the scheduler.
    pub(in crate::reactor) fn next_deadline(&self) -> Option<u64> {
        let runners = self.threads.iter().map(|hosted| &hosted.runner);
        let deadlines = runners.filter_map(ThreadRunner::next_deadline);
        let round = self.shared().next_round.load(Ordering::Relaxed);
        let round = (round != u64::MAX).then_some(round);
        let others = self.dormant.next_deadline().into_iter().chain(round);
        deadlines.chain(others).min()
    }

    /// Sleeps until something arrives, an operation completes, or a deadline has
    /// come.
    fn sleep(&mut self) {
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
        let closes = self.stopping && !self.closed && self.is_empty();
        let slept = ground.sleep(
            &shared.sleeper,
            timeout,
            || {
                let needs_poll = |hosted: &_| ground.needs_poll_before_sleep(hosted);
                has_work(ground, shared, threads, needs_poll)
                    || self.group.is_stopping() != self.stopping
                    || closes && !self.group.has_walks()
            },
            || self.group.sleep_hooks.around_sleep(shared.place.core),
        );
        if slept {
            self.awake();
        }
    }

    /// After a sleep.
    pub(in crate::reactor) fn awake(&mut self) {
        let now = self.group.library.clock().now();
        self.shared().idle_ticks.end_sleep(now);
        self.tick = now;
    }

    /// Tells the statistics what keeps this reactor awake although its mode lets
    /// it sleep.
    pub(super) fn note_keeper(&mut self) {
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
        let needs_poll = |hosted: &_| self.ground.needs_poll(hosted);
        has_work(&self.ground, self.shared(), &self.threads, needs_poll) || self.may_close()
    }
}

fn has_work<G: Ground>(
    ground: &G,
    here: &Shared,
    threads: &[Hosted],
    needs_poll: impl Fn(&Hosted) -> bool,
) -> bool {
    // SAFETY: a reactor is the only consumer of its events.
    (unsafe { here.events.has_messages() } && ground.has_event_arrived())
        || threads.iter().any(needs_poll)
        || here.sleeper.is_called()
}
