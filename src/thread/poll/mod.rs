//! The poll of a thread: the one function that says what it is, its steps, and what
//! they take from.
//!
//! The right to poll is a [`ThreadRunner`]; a reactor asks it a few things more
//! (`hosting`). Messages and woken tasks wait in the mailbox and in the thread's own queue
//! (`ready`), each as a `message`; timers in the `timer_queue`. What a task may go on with
//! at the end of its run, out of turn but in order, is in `at_once`. What a poll found is
//! an [`Activity`], how long it took is counted in `idle_ticks` and beside, and what part
//! of its reactor's time a thread is to have is in `time_share`.

pub(crate) mod activity;
pub(crate) mod at_once;
mod hosting;
pub(crate) mod idle_ticks;
pub(crate) mod message;
pub(super) mod ready;
pub(super) mod runner;
pub(super) mod time_share;
pub(crate) mod timer_queue;

use std::panic::resume_unwind;
use std::sync::atomic::Ordering;

use super::local::{Entered, ExitPhase, Local, TimerTarget};
use super::panic::{PanicSource, contain};
use super::stall::Occupant;
use activity::Activity;
use message::Message;
use runner::ThreadRunner;

/// How much of what waits for a thread one poll of it may run.
pub(crate) trait Slice {
    /// Messages and tasks at most; 0 for the thread's batch.
    fn max_msgs(&self) -> usize;

    /// How many messages of the mailbox have arrived: the rest is on its way.
    fn arrived(&self) -> usize;

    /// Whether the mailbox goes before the thread's own tasks, if it matters.
    fn mailbox_next(&self) -> Option<bool>;
}

/// All that waits, and so many messages and tasks at most.
#[derive(Clone, Copy)]
pub(crate) struct Whole(pub(crate) usize);

impl Slice for Whole {
    #[inline(always)]
    fn max_msgs(&self) -> usize {
        self.0
    }

    #[inline(always)]
    fn arrived(&self) -> usize {
        usize::MAX
    }

    #[inline(always)]
    fn mailbox_next(&self) -> Option<bool> {
        None
    }
}

impl ThreadRunner {
    /// [`ThreadRunner::poll`] of so much of what waits.
    pub(crate) fn poll_slice(&mut self, slice: impl Slice, now: u64) -> Activity {
        let local = &*self.local;
        let _entered = Entered::new(&self.local);
        let now = if now == 0 {
            local.shared.library.clock.now()
        } else {
            now
        };
        local.interrupts_awake();
        local.watch_poll();
        let mut activity = local
            .run_critical_message()
            .max(local.run_messages(slice, now))
            .max(local.run_active_pollers())
            .max(local.run_timers(now))
            .max(local.run_interrupts())
            .max(Activity::Idle);
        if local.exit_phase.get() != ExitPhase::None {
            activity = activity.max(local.exit_step(now));
        }
        local.account(now, activity);
        local.unwatch_poll();
        local.interrupts_asleep();
        activity
    }
}

/// The steps of one poll, and the questions about the next.
impl Local {
    pub(super) fn needs_poll(&self) -> bool {
        self.has_ready_work() || self.has_more_to_do()
    }

    /// [`Local::needs_poll`] for an owner that has announced a sleep.
    pub(super) fn needs_poll_before_sleep(&self) -> bool {
        self.has_more_to_do() || self.has_ready_work_before_sleep()
    }

    /// Whether the next poll has something to run apart from messages, tasks and
    /// timers.
    pub(super) fn has_more_to_do(&self) -> bool {
        self.pollers.active_count() > 0
            || self.has_unwatched_interrupts()
            || match self.exit_phase.get() {
                ExitPhase::None | ExitPhase::Done => false,
                // What held it may have gone outside of a poll.
                ExitPhase::Waiting => !self.is_held(),
                ExitPhase::Requested
                | ExitPhase::Cancelling
                | ExitPhase::Closing
                | ExitPhase::Closed => true,
            }
    }

    pub(super) fn next_deadline(&self) -> Option<u64> {
        let timer = self.timers.borrow().next_deadline();
        match self.exit_phase.get() {
            ExitPhase::Waiting => {
                let forced = self.exit_deadline.get();
                Some(timer.map_or(forced, |timer| timer.min(forced)))
            }
            _ => timer,
        }
    }

    fn run_critical_message(&self) -> Activity {
        let Some(f) = self.shared.critical.get() else {
            return Activity::Idle;
        };
        if let Err(payload) = contain(f) {
            self.report_panic(PanicSource::Message, None, payload);
        }
        // Only now: one that is sent meanwhile is refused.
        self.shared.critical.clear();
        Activity::Busy
    }

    /// Messages in the order sent, and tasks, as far as the batch goes, or one if the
    /// poll is cut. What they send here waits for the next poll; tasks that they wake may
    /// run in this one, and so do tasks that give way where nothing waits that they could
    /// give way to.
    #[inline(always)]
    fn run_messages(&self, slice: impl Slice, now: u64) -> Activity {
        let limit = match slice.max_msgs() {
            0 => self.batch,
            max => max.min(self.batch),
        };
        if let Some(mailbox) = slice.mailbox_next() {
            self.set_mailbox_next(mailbox);
        }
        self.begin_messages(slice.arrived());
        match self.next_message() {
            None => Activity::Idle,
            Some(first) => {
                self.at_once.left.set(limit);
                self.at_once.now.set(now);
                self.run_batches(first);
                self.at_once.left.set(0);
                Activity::Busy
            }
        }
    }

    /// As many messages and tasks as are left for the poll, of which `next` is the first.
    fn run_batches(&self, mut next: Message) {
        loop {
            // Contained as a whole, which costs once: after a panic it goes on with the
            // next message.
            if let Err(payload) = contain(|| self.run_batch(next)) {
                self.report_panic(PanicSource::Message, None, payload);
                self.check_held_locks();
            } else if self.is_cut() || !self.nothing_else_waits() {
                return;
            }
            if self.at_once.left.get() == 0 {
                return;
            }
            match self.next_message() {
                Some(message) => next = message,
                None => return,
            }
        }
    }

    #[inline]
    fn run_batch(&self, first: Message) {
        let left = &self.at_once.left;
        let mut message = first;
        loop {
            left.set(left.get() - 1);
            if self.stall_limit > 0 && !message.is_task() {
                self.run_watched(message);
            } else {
                message.run();
            }
            self.check_held_locks();
            if left.get() == 0 || self.is_cut() {
                return;
            }
            match self.next_message() {
                Some(next) => message = next,
                None => return,
            }
        }
    }

    /// Runs a message that may hold up the thread. A task measures itself.
    #[cold]
    fn run_watched(&self, message: Message) {
        let callback = Occupant::Message(message.vtable());
        let start = self.callback_begins(callback);
        let ran = message.run_contained();
        self.callback_ends(callback, start);
        if let Err(payload) = ran {
            resume_unwind(payload);
        }
    }

    /// Whether a poll that has run its messages may go on with the tasks among them that
    /// gave way, as there is nothing else: that saves them a poll each. A waiter outside
    /// of the thread (another thread, the completions of I/O) cannot be seen from here:
    /// so only if the last poll was short, and no timer is due as soon.
    #[inline]
    fn nothing_else_waits(&self) -> bool {
        !self.ready.is_empty() && self.is_alone() && self.reopen_messages()
    }

    /// Whether nothing else waits than messages and tasks, as far as can be seen.
    #[inline]
    pub(super) fn is_alone(&self) -> bool {
        self.was_short.get()
            && self.pollers.active_count() == 0
            && self.exit_phase.get() == ExitPhase::None
            && self.interrupts.get().is_none()
            && !self.shared.critical.is_posted()
            && !self
                .timers
                .borrow()
                .is_due(self.at_once.now.get().saturating_add(self.short))
    }

    /// Everything due at `now`, earliest first, each once; one at least if the poll is cut.
    #[inline(always)]
    fn run_timers(&self, now: u64) -> Activity {
        // The last tick is never: what is re-armed is later than `now`.
        let now = now.min(u64::MAX - 1);
        let due = self.timers.borrow().is_due(now);
        match due {
            true => self.run_due_timers(now),
            false => Activity::Idle,
        }
    }

    fn run_due_timers(&self, now: u64) -> Activity {
        let mut activity = Activity::Idle;
        self.timers.borrow_mut().gather_due(now);
        loop {
            let mut timers = self.timers.borrow_mut();
            let Some(target) = timers.first_due(now) else {
                return activity;
            };
            let TimerTarget::Poller(poller) = target else {
                let target = timers.pop_due(now);
                drop(timers);
                if let Some(TimerTarget::Waker(waker)) = target {
                    self.wake_contained(waker);
                    activity = Activity::Busy;
                }
                if self.is_cut() {
                    return activity;
                }
                continue;
            };
            let poller = poller.clone();
            drop(timers);
            // Re-armed before it runs, so that what it does to itself finds
            // the timer in place; but its turn among equals is behind what it arms.
            let armed = self.rearm_first_poller(&poller, now);
            activity = activity.max(self.run_poller(&poller));
            self.rearmed_poller_ran(&poller, armed);
            if self.is_cut() {
                return activity;
            }
        }
    }

    pub(super) fn wake_contained(&self, waker: std::task::Waker) {
        // A foreign waker is foreign code.
        if let Err(payload) = contain(|| waker.wake()) {
            self.report_panic(PanicSource::Drop, None, payload);
        }
    }

    #[inline(always)]
    fn account(&self, start: u64, activity: Activity) {
        let shared = &*self.shared;
        let end = shared.library.clock.now();
        let spent = end.saturating_sub(start);
        // The owner is the only writer.
        if activity.is_busy() {
            let busy = shared.busy_ticks.load(Ordering::Relaxed);
            shared
                .busy_ticks
                .store(busy.wrapping_add(spent), Ordering::Relaxed);
        } else {
            shared.idle_ticks.add(spent);
        }
        shared.last_tick.store(end, Ordering::Relaxed);
        self.was_short.set(spent < self.short);
    }
}
