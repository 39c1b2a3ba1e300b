//! What part of its reactor's time a thread is to have, and how long it may wait for its
//! next poll.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::Duration;

use super::runner::ThreadRunner;
use crate::thread::SpdkThread;
use crate::thread::local::Local;

/// What a thread has unless it is given others.
pub(crate) const DEFAULT_SHARES: u32 = 100;
const MOST_SHARES: u32 = 1000;

/// The bits of the number of shares; the limit of the wait is above them.
const SHARE_BITS: u32 = 10;

/// Shares that no thread can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a thread may have 1 to {MOST_SHARES} shares of its reactor's time, not {0}")]
pub struct SharesError(pub u32);

/// The waits of a thread that were longer than its latency limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LatencyMisses {
    /// How many there were.
    pub count: u64,
    /// The longest of them, from poll to poll.
    pub longest: Duration,
    /// The thread whose poll took most of that one. None if it was an event of the reactor,
    /// or the thread has gone.
    pub cause: Option<String>,
    /// How long that poll, or event, took.
    pub held: Duration,
}

/// Shares and the limit in ticks, 0 for none, in one word: the reactor reads it after each
/// poll.
#[derive(Debug)]
pub(crate) struct TimeShare(AtomicU64);

impl TimeShare {
    pub(in crate::thread) fn new() -> Self {
        TimeShare(AtomicU64::new(u64::from(DEFAULT_SHARES)))
    }

    #[inline]
    pub(crate) fn get(&self) -> (u32, u64) {
        let word = self.0.load(Ordering::Relaxed);
        let shares = word & ((1 << SHARE_BITS) - 1);
        (shares as u32, word >> SHARE_BITS)
    }

    pub(in crate::thread) fn set_shares(&self, shares: u32) -> Result<(), SharesError> {
        if !(1..=MOST_SHARES).contains(&shares) {
            return Err(SharesError(shares));
        }
        self.update(|(_, limit)| (shares, limit));
        Ok(())
    }

    pub(in crate::thread) fn set_limit(&self, ticks: u64) {
        let ticks = ticks.min(u64::MAX >> SHARE_BITS);
        self.update(|(shares, _)| (shares, ticks));
    }

    fn update(&self, f: impl Fn((u32, u64)) -> (u32, u64)) {
        let set = |_| {
            let (shares, limit) = f(self.get());
            Some(limit << SHARE_BITS | u64::from(shares))
        };
        // Two callers that set at once: the word that `set` began with is no longer there,
        // and it is asked again.
        let _ = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, set);
    }
}

/// Misses as the reactor tells them; it waits for no reader.
#[derive(Debug, Default)]
pub(in crate::thread) struct ToldMisses(Mutex<LatencyMisses>);

impl ToldMisses {
    fn get(&self) -> LatencyMisses {
        let told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.clone()
    }

    fn tell(&self, misses: &LatencyMisses) -> bool {
        let mut told = match self.0.try_lock() {
            Ok(told) => told,
            Err(TryLockError::Poisoned(told)) => told.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        told.clone_from(misses);
        true
    }
}

/// How far the poll under way may go. The reactor says, before each.
pub(in crate::thread) struct TimeSlice {
    /// From this tick on [`should_yield`](crate::task::should_yield) says yes.
    end: Cell<u64>,
    /// From this tick on no further callback begins.
    cut: Cell<u64>,
    /// The same, if it is for the sake of another thread's latency limit: then no further
    /// active poller begins either.
    due: Cell<u64>,
}

impl TimeSlice {
    pub(in crate::thread) const fn unlimited() -> Self {
        TimeSlice {
            end: Cell::new(u64::MAX),
            cut: Cell::new(u64::MAX),
            due: Cell::new(u64::MAX),
        }
    }
}

impl Local {
    /// Whether the poll is to end with the callback that has just returned.
    #[inline]
    pub(in crate::thread) fn is_cut(&self) -> bool {
        let cut = self.slice.cut.get();
        cut != u64::MAX && self.shared.library.clock.now() >= cut
    }

    /// Whether another thread has a latency limit, which may come due in this poll.
    #[inline]
    pub(in crate::thread) fn makes_way(&self) -> bool {
        self.slice.due.get() != u64::MAX
    }

    /// Whether it has.
    #[inline]
    pub(in crate::thread) fn is_due_elsewhere(&self) -> bool {
        self.shared.library.clock.now() >= self.slice.due.get()
    }

    /// Whether the poll under way has used up its slice. If so, it ends with the callback
    /// that asks.
    pub(crate) fn slice_is_used(&self) -> bool {
        let end = self.slice.end.get();
        let used = end != u64::MAX && self.shared.library.clock.now() >= end;
        if used {
            self.slice.cut.set(0);
        }
        used
    }
}

impl ThreadRunner {
    /// The next poll has used its slice at tick `end`, and begins no callback from tick
    /// `cut` on.
    #[inline]
    pub(crate) fn set_slice(&self, end: u64, cut: u64) {
        self.local.slice.end.set(end);
        self.local.slice.cut.set(cut);
        self.local.slice.due.set(cut);
    }

    /// Its shares, and the ticks that it may wait from poll to poll, 0 for any number.
    #[inline]
    pub(crate) fn time_share(&self) -> (u32, u64) {
        self.local.shared.time_share.get()
    }

    pub(crate) fn has_critical_message(&self) -> bool {
        self.local.shared.critical.get().is_some()
    }

    /// Tells the readers; not now if one is just reading.
    pub(crate) fn tell_misses(&self, misses: &LatencyMisses) -> bool {
        let told = self.local.shared.misses.get_or_init(Box::default);
        told.tell(misses)
    }
}

impl SpdkThread {
    /// How many shares of its reactor's time the thread has; 100 unless set.
    pub fn shares(&self) -> u32 {
        self.shared.time_share.get().0
    }

    /// Gives the thread another number of shares ([`ThreadBuilder::shares`]), from its next
    /// poll on. From any OS thread.
    ///
    /// # Errors
    ///
    /// [`SharesError`] unless it is 1 to 1000; nothing is changed then.
    ///
    /// [`ThreadBuilder::shares`]: crate::thread::ThreadBuilder::shares
    pub fn set_shares(&self, shares: u32) -> Result<(), SharesError> {
        self.shared.time_share.set_shares(shares)
    }

    /// How long the thread may wait for its next poll while others use its core, if that is
    /// limited.
    pub fn latency(&self) -> Option<Duration> {
        let (_, ticks) = self.shared.time_share.get();
        (ticks > 0).then(|| self.shared.library.clock.duration_from(ticks))
    }

    /// Limits how long the thread may wait for its next poll ([`ThreadBuilder::latency`]),
    /// or ends that; from its next poll on. A tick is the least. From any OS thread.
    ///
    /// [`ThreadBuilder::latency`]: crate::thread::ThreadBuilder::latency
    pub fn set_latency(&self, limit: Option<Duration>) {
        let ticks = |limit| self.shared.library.clock.ticks_from(limit).max(1);
        self.shared.time_share.set_limit(limit.map_or(0, ticks));
    }

    /// The waits that were longer than the latency limit. From any OS thread.
    pub fn latency_misses(&self) -> LatencyMisses {
        let told = self.shared.misses.get();
        told.map_or_else(LatencyMisses::default, |told| told.get())
    }
}
