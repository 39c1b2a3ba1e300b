//! The part of one poll that runs pollers.

use std::rc::Rc;

use super::list::Listed;
use super::{Callback, PollerCore, PollerPlace, Turn};
use crate::thread::local::Local;
use crate::thread::panic::{PanicSource, Payload, contain};
use crate::thread::poll::activity::Activity;

impl Local {
    /// Active pollers, newest first; what is registered meanwhile waits for
    /// the next pass. A pass that is cut is the next poll's to end.
    #[inline(always)]
    pub(crate) fn run_active_pollers(&self) -> Activity {
        // Taking the list, though empty, is a third of an idle poll's work.
        match self.pollers.has_turns() {
            true => self.run_pass(),
            false => Activity::Idle,
        }
    }

    fn run_pass(&self) -> Activity {
        let pollers = &self.pollers;
        let pass = pollers.begin_pass();
        let turns = &pass[..pollers.turns_in(&pass)];
        let activity = match self.makes_way() {
            false => self.run_turns(turns, || false),
            true => self.run_turns(turns, || self.is_due_elsewhere()),
        };
        pollers.end_pass(pass);
        activity
    }

    #[inline(always)]
    fn run_turns(&self, turns: &[Listed], is_cut: impl Fn() -> bool) -> Activity {
        let pollers = &self.pollers;
        let mut activity = Activity::Idle;
        for (older, listed) in turns.iter().enumerate().rev() {
            if pollers.is_stale() && !listed.is_good() {
                continue;
            }
            let runs = listed.poller.turn.get() == Turn::Runs;
            activity = activity.max(self.run_poller(&listed.poller));
            if runs {
                self.run_post_pollers();
            }
            if older > 0 && is_cut() {
                pollers.cut_pass(listed);
                break;
            }
        }
        activity
    }

    /// Runs the callback of a poller whose turn it is.
    #[inline(always)]
    pub(crate) fn run_poller(&self, poller: &Rc<PollerCore>) -> Activity {
        if poller.turn.get() != Turn::Runs {
            return self.pass_over(poller);
        }
        let Some(mut callback) = poller.callback.take() else {
            return Activity::Ignored;
        };
        poller.turn.set(Turn::Running);
        let watched = self.stall_limit > 0;
        let start = watched.then(|| self.callback_begins(poller.occupant()));
        let outcome = contain(&mut callback);
        self.check_held_locks();
        if let Some(start) = start {
            self.callback_ends(poller.occupant(), start);
        }
        poller.run_count.set(poller.run_count.get() + 1);
        let activity = match outcome {
            Ok(activity) => activity,
            Err(payload) => self.end_panicked(poller, payload),
        };
        if activity == Activity::Busy {
            poller.busy_count.set(poller.busy_count.get() + 1);
        }
        if poller.turn.get() == Turn::Running {
            poller.turn.set(Turn::Runs);
            poller.callback.set(Some(callback));
        } else {
            self.settle(poller, callback);
        }
        activity
    }

    /// The turn of a poller that does not run.
    #[cold]
    fn pass_over(&self, poller: &Rc<PollerCore>) -> Activity {
        if poller.turn.get() == Turn::Pauses {
            self.pause_now(poller);
        }
        Activity::Ignored
    }

    #[cold]
    fn end_panicked(&self, poller: &Rc<PollerCore>, payload: Payload) -> Activity {
        self.report_panic(PanicSource::Poller, Some(&poller.name()), payload);
        self.unregister_poller(poller);
        Activity::Busy
    }

    /// Does what a callback asked for its own poller, once it has returned.
    #[cold]
    fn settle(&self, poller: &Rc<PollerCore>, callback: Callback) {
        if poller.is_gone() {
            return self.drop_contained(callback);
        }
        poller.callback.set(Some(callback));
        if poller.turn.get() == Turn::Pauses {
            self.pause_now(poller);
        }
    }

    /// The re-arm of a timed poller whose entry is the first of the queue. Says how
    /// many insertions there had been then.
    pub(crate) fn rearm_first_poller(&self, poller: &PollerCore, now: u64) -> u32 {
        let mut timers = self.timers.borrow_mut();
        timers.rearm_first(now.saturating_add(poller.period));
        timers.insertions()
    }

    /// Puts a poller that was re-armed behind what its callback has armed.
    #[inline]
    pub(crate) fn rearmed_poller_ran(&self, poller: &PollerCore, armed: u32) {
        let mut timers = self.timers.borrow_mut();
        if timers.insertions() != armed
            && let PollerPlace::Timed(key) = poller.place.get()
        {
            timers.put_behind_equals(key);
        }
    }
}
