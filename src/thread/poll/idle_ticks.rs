//! Idle time that goes on while the code that counts it does not run: a reactor
//! that sleeps, a thread that is dormant.

use std::sync::atomic::{AtomicU64, Ordering};

/// A total of idle ticks that goes on during a sleep, when its only writer does
/// not run. It is one word, so that no reader sees a sleep twice or not at all:
/// the total, or during a sleep the tick of its start minus the total, marked.
///
/// The writer reads its clock before it ends a sleep, and a reader may have read it
/// in between; so readers leave what they were told, and the next is told no less.
#[derive(Debug, Default)]
pub(crate) struct IdleTicks {
    word: AtomicU64,
    told: AtomicU64,
}

const SLEEPS: u64 = 1 << 63;

impl IdleTicks {
    /// The total at tick `now`; never less than it was to an earlier reader.
    pub(crate) fn at(&self, now: u64) -> u64 {
        let total = self.total(now);
        self.told.fetch_max(total, Ordering::Relaxed).max(total)
    }

    fn total(&self, now: u64) -> u64 {
        match self.word.load(Ordering::Relaxed) {
            word if word & SLEEPS != 0 => now.saturating_sub(word ^ SLEEPS),
            total => total,
        }
    }

    /// Adds ticks that were not slept. The writer only.
    pub(crate) fn add(&self, ticks: u64) {
        let total = self.word.load(Ordering::Relaxed);
        self.word
            .store(total.wrapping_add(ticks) & !SLEEPS, Ordering::Relaxed);
    }

    /// From tick `now` on all time is idle. The writer only.
    pub(crate) fn start_sleep(&self, now: u64) {
        let total = self.word.load(Ordering::Relaxed);
        self.word
            .store(now.wrapping_sub(total) | SLEEPS, Ordering::Relaxed);
    }

    /// Until tick `now` all time was idle. The writer only.
    pub(crate) fn end_sleep(&self, now: u64) {
        self.word.store(self.total(now), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_ticks_go_on_during_a_sleep_and_are_counted_once() {
        let idle = IdleTicks::default();
        idle.add(30);
        assert_eq!(idle.at(1_000), 30);
        idle.start_sleep(1_000);
        assert_eq!(idle.at(1_000), 30);
        assert_eq!(idle.at(1_500), 530);
        // Another core's clock may be a little behind.
        assert_eq!(idle.at(1_400), 530);
        // And the writer's, which has read it before that reader did.
        idle.end_sleep(1_450);
        assert_eq!(idle.at(1_500), 530);
        idle.start_sleep(1_450);
        idle.end_sleep(2_000);
        assert_eq!(idle.at(9_000), 1_030);
        idle.add(1);
        assert_eq!(idle.at(9_000), 1_031);
    }
}
