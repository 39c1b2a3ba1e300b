//! The dormant threads of a reactor: those that have nothing to do. No turn, no
//! sleep and no wake looks at them; a sender rouses them, or their deadline, or an
//! interrupt.

use slab::Slab;

use super::hosted::Hosted;
use crate::thread::timer_queue::{TimerKey, TimerQueue};

#[derive(Default)]
pub(super) struct Dormant {
    threads: Slab<Dozing>,
    /// By their place in `threads`.
    deadlines: TimerQueue<usize>,
}

struct Dozing {
    hosted: Hosted,
    deadline: Option<TimerKey>,
}

impl Dormant {
    pub(super) fn len(&self) -> usize {
        self.threads.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.threads.is_empty()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Hosted> {
        self.threads
            .iter_mut()
            .map(|(_, dozing)| &mut dozing.hosted)
    }

    /// Takes a thread in at tick `now`, unless there is something to do for it.
    pub(super) fn admit(&mut self, mut hosted: Hosted, now: u64) -> Result<(), Hosted> {
        let entry = self.threads.vacant_entry();
        let place = entry.key();
        if !hosted.doze(place, now) {
            return Err(hosted);
        }
        let deadline = hosted.runner.next_deadline();
        let deadline = deadline.map(|tick| self.deadlines.insert(tick, place));
        entry.insert(Dozing { hosted, deadline });
        Ok(())
    }

    /// The thread that a sender has roused, at tick `now`. None if it was awake when
    /// this was heard of; then another may be in its place, and is woken for nothing.
    pub(super) fn wake(&mut self, place: usize, now: u64) -> Option<Hosted> {
        let Dozing {
            mut hosted,
            deadline,
        } = self.threads.try_remove(place)?;
        if let Some(deadline) = deadline {
            self.deadlines.remove(deadline);
        }
        hosted.wake(now);
        Some(hosted)
    }

    /// The next thread whose deadline has come at tick `now`.
    pub(super) fn wake_due(&mut self, now: u64) -> Option<Hosted> {
        let place = self.deadlines.pop_due(now)?;
        self.wake(place, now)
    }

    /// Every thread that is asked for, at tick `now`.
    pub(super) fn wake_all(&mut self, now: u64, asked: impl Fn(&Hosted) -> bool) -> Vec<Hosted> {
        let threads = self.threads.iter();
        let places = threads.filter(|(_, dozing)| asked(&dozing.hosted));
        let places: Vec<usize> = places.map(|(place, _)| place).collect();
        let wake = |place| self.wake(place, now);
        places.into_iter().filter_map(wake).collect()
    }

    /// Every dormant thread.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Hosted> {
        self.threads.iter().map(|(_, dozing)| &dozing.hosted)
    }

    /// The earliest deadline.
    #[inline]
    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.deadlines.next_deadline()
    }
}
