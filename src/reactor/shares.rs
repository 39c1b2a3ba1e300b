//! Which of a reactor's threads is polled next, when together they want more time than
//! there is.
//!
//! Each thread has a *weighted time*: the ticks of its busy polls, divided by its shares.
//! A thread that is ahead of the one that has had least, of those that want more, by more
//! than a [`LEAD`], sits out the turn. A thread that had nothing to do is put level with
//! that one when it has again: none saves up. Where none is ahead this costs a comparison
//! per poll.

use std::time::Duration;

use super::hosted::Hosted;
use crate::clock::Clock;
use crate::thread::{DEFAULT_SHARES, LatencyMisses};

/// How far a thread of 100 shares may be ahead: short beside what a user notices, long
/// beside a poll, so that threads that talk to each other are polled in turns.
const LEAD: Duration = Duration::from_micros(50);

/// Weighted time per tick of a thread of 100 shares: short polls of a thread of 1000 are
/// not rounded away.
const PER_TICK: u64 = 16;

/// What a thread makes up for in full at most. A poll that took longer has held up the others
/// for as long as that, and perhaps it was the machine that stood still; and a latency limit
/// may take more than the shares for as long as it is set: no thread is to sit out for hours
/// then.
const MOST_OWED: Duration = Duration::from_millis(100);

/// A weighted time that takes years to come up.
const LARGE: u64 = 1 << 60;

/// The number of no thread: they begin at 1.
const NO_THREAD: u64 = 0;

pub(super) struct Fair {
    /// The least weighted time of those that wanted more in the turn before.
    least: u64,
    /// The same for the turn under way, so far.
    next_least: u64,
    lead: u64,
    /// The lead of a thread of 100 shares in ticks: its slice.
    slice: u64,
    /// Ticks of `MOST_OWED`.
    most_owed: u64,
    /// No thread sits out this turn.
    all: bool,
    /// The tick at which the first thread with a latency limit is to be polled.
    due: u64,
    /// The same for the next turn, so far.
    next_due: u64,
    /// Up to this tick the reactor had nothing to do.
    rested: u64,
    /// The longest poll, or event, since a thread with a limit was polled: its ticks, its
    /// thread.
    longest: Option<(u64, u64)>,
}

impl Fair {
    pub(super) fn new(clock: &Clock) -> Self {
        Fair {
            least: 0,
            next_least: u64::MAX,
            slice: clock.ticks_from(LEAD),
            lead: weighted(clock.ticks_from(LEAD), DEFAULT_SHARES),
            most_owed: clock.ticks_from(MOST_OWED),
            all: false,
            due: u64::MAX,
            next_due: u64::MAX,
            rested: 0,
            longest: None,
        }
    }

    /// Has no thread sit out the next turn.
    pub(super) fn let_all_run(&mut self) {
        self.all = true;
    }

    /// The reactor had nothing to do up to `tick`.
    pub(super) fn rested(&mut self, tick: u64) {
        self.rested = tick;
        self.longest = None;
    }

    /// Whether `hosted` sits out this turn, which is at `tick`.
    #[inline]
    pub(super) fn sits_out(&mut self, hosted: &Hosted, tick: u64) -> bool {
        let ahead = hosted.weighted > self.least.saturating_add(self.lead);
        ahead && self.stays_out(hosted, tick)
    }

    #[cold]
    fn stays_out(&mut self, hosted: &Hosted, tick: u64) -> bool {
        let (_, limit) = hosted.runner.time_share();
        let is_due = limit > 0 && due(hosted, limit) <= tick;
        // An exit has a time limit.
        let hurries = hosted.runner.has_critical_message() || !hosted.runner.is_running();
        if self.all || is_due || hurries {
            return false;
        }
        self.next_least = self.next_least.min(hosted.weighted);
        if limit > 0 {
            self.next_due = self.next_due.min(due(hosted, limit));
        }
        true
    }

    /// Says how far the poll of `hosted` that begins at `tick` may go, which is as far as it
    /// likes for one that is alone. If it comes later than the thread's limit: why.
    #[inline]
    pub(super) fn begin_poll(&self, hosted: &Hosted, tick: u64, alone: bool) -> Option<Miss> {
        if alone {
            hosted.runner.set_slice(u64::MAX, u64::MAX);
            return None;
        }
        let (shares, limit) = hosted.runner.time_share();
        let end = tick.saturating_add(self.slice(shares));
        if limit == 0 {
            hosted.runner.set_slice(end.min(self.due), self.due);
            return None;
        }
        // That another one is due as well is no reason to poll this one in vain.
        hosted.runner.set_slice(end, u64::MAX);
        self.miss(hosted, tick, limit)
    }

    #[inline]
    fn slice(&self, shares: u32) -> u64 {
        if shares == DEFAULT_SHARES {
            return self.slice;
        }
        self.slice.saturating_mul(u64::from(shares)) / u64::from(DEFAULT_SHARES)
    }

    #[cold]
    fn miss(&self, hosted: &Hosted, tick: u64, limit: u64) -> Option<Miss> {
        let (held, by) = self.longest?;
        let since = hosted.polled_at.max(self.rested);
        let waited = tick.saturating_sub(since);
        let late = hosted.polled_at != 0 && waited > limit;
        late.then_some(Miss { waited, held, by })
    }

    /// Accounts for a poll from tick `start` to `end`.
    #[inline]
    pub(super) fn polled(&mut self, hosted: &mut Hosted, busy: bool, start: u64, end: u64) {
        let (shares, limit) = hosted.runner.time_share();
        let spent = end.saturating_sub(start);
        if busy {
            // A clock that stands still must not make work that costs nothing of it.
            let weighted = weighted(spent.max(1), shares);
            hosted.weighted = hosted.weighted.max(self.least).saturating_add(weighted);
            if hosted.weighted > self.least.saturating_add(self.lead) {
                self.limit_debt(hosted, shares);
            }
            self.next_least = self.next_least.min(hosted.weighted);
        }
        if limit > 0 {
            hosted.polled_at = end;
            self.longest = None;
            self.next_due = self.next_due.min(due(hosted, limit));
            return;
        }
        // What it waits without a limit is none of the next one's.
        hosted.polled_at = 0;
        if self.due != u64::MAX && self.longest.is_none_or(|(most, _)| most < spent) {
            self.longest = Some((spent, hosted.runner.id()));
        }
    }

    /// What a thread is ahead by, it sits out: that has an end.
    #[cold]
    fn limit_debt(&self, hosted: &mut Hosted, shares: u32) {
        let most = weighted(self.most_owed, shares).saturating_add(self.lead);
        hosted.weighted = hosted.weighted.min(self.least.saturating_add(most));
    }

    /// Whether a thread with a latency limit is due at `tick`, whichever thread's turn it is.
    #[inline]
    pub(super) fn somebody_is_due(&self, tick: u64) -> bool {
        tick >= self.due
    }

    /// Events took so long, while a thread may have waited.
    pub(super) fn events_ran(&mut self, spent: u64) {
        if self.longest.is_none_or(|(most, _)| most < spent) {
            self.longest = Some((spent, NO_THREAD));
        }
    }

    /// Whether a thread with a latency limit wants to be polled among others.
    #[inline]
    pub(super) fn somebody_hurries(&self) -> bool {
        self.due != u64::MAX
    }

    /// Those of `threads` that were due were polled.
    pub(super) fn served(&mut self, threads: &[Hosted]) {
        self.due = threads
            .iter()
            .filter_map(next_due)
            .min()
            .unwrap_or(u64::MAX);
    }

    /// Ends a turn. Says whether the numbers have grown so large that all are to be made
    /// smaller.
    #[inline]
    pub(super) fn end_turn(&mut self) -> bool {
        if self.next_least != u64::MAX {
            self.least = self.next_least;
            self.next_least = u64::MAX;
        }
        self.due = self.next_due;
        self.next_due = u64::MAX;
        self.all = false;
        self.least >= LARGE
    }

    /// Takes what all threads have in common off their weighted times.
    #[cold]
    pub(super) fn rebase<'a>(&mut self, threads: impl Iterator<Item = &'a mut Hosted>) {
        for hosted in threads {
            hosted.weighted = hosted.weighted.saturating_sub(self.least);
        }
        self.least = 0;
    }
}

/// When a thread is due, if it has a latency limit.
pub(super) fn next_due(hosted: &Hosted) -> Option<u64> {
    let (_, limit) = hosted.runner.time_share();
    (limit > 0).then(|| due(hosted, limit))
}

/// When a thread that was polled last at `polled_at` is due: half its limit later, since
/// the poll that it waits for ends with a callback, not at once.
fn due(hosted: &Hosted, limit: u64) -> u64 {
    hosted.polled_at.saturating_add(limit.div_ceil(2))
}

#[inline]
fn weighted(ticks: u64, shares: u32) -> u64 {
    if shares == DEFAULT_SHARES {
        return ticks.saturating_mul(PER_TICK);
    }
    ticks.saturating_mul(PER_TICK * u64::from(DEFAULT_SHARES)) / u64::from(shares)
}

/// A wait that was longer than the thread's limit, in ticks.
pub(super) struct Miss {
    waited: u64,
    /// By the longest poll meanwhile.
    held: u64,
    /// The thread of that poll.
    pub(super) by: u64,
}

impl Miss {
    /// Adds it to those before.
    pub(super) fn add_to(&self, misses: &mut LatencyMisses, by: Option<&str>, clock: &Clock) {
        let waited = clock.duration_from(self.waited);
        misses.count += 1;
        if waited > misses.longest {
            misses.longest = waited;
            misses.cause = by.map(str::to_owned);
            misses.held = clock.duration_from(self.held);
        }
    }
}
