//! All pollers of a thread, and the order of those that every poll runs.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use slab::Slab;

use super::{PollerCore, PollerKey, PollerPlace};
use crate::thread::exit::ExitHolder;
use crate::thread::local::Local;
use crate::thread::part::Part;
use crate::thread::placement::bound::BoundBy;

/// An entry of the active order, good while the poller has that place: one that is
/// resumed is the newest again, although its old entry may still be in the order.
pub(super) struct Listed {
    pub(super) poller: Rc<PollerCore>,
    number: u64,
}

impl Listed {
    #[inline]
    pub(super) fn is_good(&self) -> bool {
        self.poller.place.get() == PollerPlace::Active(self.number)
    }
}

/// The pollers of one thread.
#[derive(Default)]
pub(crate) struct PollerList {
    /// Those that are registered.
    all: RefCell<Slab<Rc<PollerCore>>>,
    /// Those that every poll runs, oldest first.
    active: Cell<Vec<Listed>>,
    last_number: Cell<u64>,
    /// Some entries of `active` are not good any more.
    stale: Cell<bool>,
    active_count: Cell<usize>,
    /// The last pass was cut: those of lower numbers go on with it. 0: it was not.
    cut_at: Cell<u64>,
    next_id: Cell<u64>,
    /// How many have an interrupt of their own, and how many ever had.
    with_interrupt: Cell<usize>,
    interrupts: Cell<u64>,
}

impl PollerList {
    /// Pollers that are not unregistered.
    pub(crate) fn registered(&self) -> usize {
        self.all.borrow().len()
    }

    /// The key that the next one registered will have.
    pub(super) fn next_key(&self) -> PollerKey {
        self.next_id.set(self.next_id.get() + 1);
        PollerKey {
            slot: self.all.borrow().vacant_key(),
            id: self.next_id.get(),
        }
    }

    pub(super) fn insert(&self, poller: Rc<PollerCore>) {
        let key = poller.key;
        let slot = self.all.borrow_mut().insert(poller);
        debug_assert_eq!(slot, key.slot);
    }

    pub(super) fn remove(&self, poller: &PollerCore) {
        let removed = self.all.borrow_mut().try_remove(poller.key.slot);
        drop(removed);
        if poller.interrupt.get().is_some() {
            bump(&self.with_interrupt, -1);
        }
    }

    /// The poller of `key`, unless it is unregistered.
    pub(super) fn find(&self, key: PollerKey) -> Option<Rc<PollerCore>> {
        let all = self.all.borrow();
        // The slot may have another by now.
        all.get(key.slot)
            .filter(|poller| poller.key.id == key.id)
            .cloned()
    }

    /// Those registered, in that order.
    pub(super) fn in_order(&self) -> Vec<Rc<PollerCore>> {
        let all = self.all.borrow();
        let mut pollers: Vec<_> = all.iter().map(|(_, poller)| poller.clone()).collect();
        pollers.sort_by_key(|poller| poller.key.id);
        pollers
    }

    /// Those that have an interrupt of their own, in the order they were given it.
    pub(super) fn interruptible(&self) -> Vec<Rc<PollerCore>> {
        let all = self.all.borrow();
        let pollers = all.iter().map(|(_, poller)| poller);
        let mut concerned: Vec<_> = pollers
            .filter_map(|poller| Some((poller.interrupt.get()?.order, poller.clone())))
            .collect();
        concerned.sort_by_key(|(order, _)| *order);
        concerned.into_iter().map(|(_, poller)| poller).collect()
    }

    /// One more has an interrupt of its own; the how manieth ever.
    pub(super) fn count_interrupt(&self) -> u64 {
        bump(&self.with_interrupt, 1);
        self.interrupts.set(self.interrupts.get() + 1);
        self.interrupts.get()
    }

    /// Whether a poller has an interrupt of its own.
    pub(in crate::thread) fn has_interrupts(&self) -> bool {
        self.with_interrupt.get() > 0
    }

    /// Active pollers that are not paused.
    pub(crate) fn active_count(&self) -> usize {
        self.active_count.get()
    }

    /// Whether a pass over the active ones would do anything.
    #[inline]
    pub(super) fn has_turns(&self) -> bool {
        self.active_count.get() > 0 || self.stale.get()
    }

    /// Whether an entry of the active order, of a pass under way included, may not be
    /// good any more.
    #[inline]
    pub(super) fn is_stale(&self) -> bool {
        self.stale.get()
    }

    /// Makes the poller the newest of those that every poll runs.
    pub(super) fn add_active(&self, poller: &Rc<PollerCore>) {
        bump(&self.active_count, 1);
        let number = self.last_number.get() + 1;
        self.last_number.set(number);
        poller.place.set(PollerPlace::Active(number));
        let mut active = self.active.take();
        active.push(Listed {
            poller: poller.clone(),
            number,
        });
        self.active.set(active);
    }

    /// An active poller gets another place.
    pub(super) fn leave_active(&self) {
        bump(&self.active_count, -1);
        self.stale.set(true);
    }

    /// The active ones, oldest first, for a pass over them.
    #[inline]
    pub(super) fn begin_pass(&self) -> Vec<Listed> {
        let mut pass = self.active.take();
        self.reap(&mut pass);
        pass
    }

    /// How many of the `pass`, from the oldest on, have their turn in it: those that a pass
    /// that was cut has left, or all.
    #[inline]
    pub(super) fn turns_in(&self, pass: &[Listed]) -> usize {
        match self.cut_at.get() {
            0 => pass.len(),
            number => self.left_by(number, pass),
        }
    }

    #[cold]
    fn left_by(&self, number: u64, pass: &[Listed]) -> usize {
        self.cut_at.set(0);
        match pass.partition_point(|listed| listed.number < number) {
            // They have all gone.
            0 => pass.len(),
            left => left,
        }
    }

    /// Leaves those that are older than the one `listed` to the next pass.
    pub(super) fn cut_pass(&self, listed: &Listed) {
        self.cut_at.set(listed.number);
    }

    /// After the pass; those that have become active meanwhile are the newest.
    #[inline]
    pub(super) fn end_pass(&self, mut pass: Vec<Listed>) {
        self.reap(&mut pass);
        pass.append(&mut self.active.take());
        self.active.set(pass);
    }

    /// Takes out of the active order what does not belong there any more.
    #[inline]
    fn reap(&self, pass: &mut Vec<Listed>) {
        if self.stale.replace(false) {
            pass.retain(Listed::is_good);
        }
    }

    /// The newest poller that every poll runs, as `f` sees it.
    pub(in crate::thread) fn with_newest_active<R>(
        &self,
        f: impl FnOnce(&PollerCore) -> R,
    ) -> Option<R> {
        let active = self.active.take();
        let newest = active.iter().rev().find(|listed| listed.is_good());
        let seen = newest.map(|listed| f(&listed.poller));
        self.active.set(active);
        seen
    }
}

impl Part for PollerList {
    fn holds(&self) -> bool {
        self.registered() > 0
    }

    fn holders(&self, holders: &mut Vec<ExitHolder>) {
        let pollers = self.in_order();
        let names = pollers.iter().map(|poller| poller.name());
        holders.extend(names.map(ExitHolder::Poller));
    }

    fn binders(&self, by: &mut Vec<BoundBy>) -> usize {
        let pollers = self.in_order();
        let binders = pollers.iter().filter(|poller| poller.stays);
        by.extend(binders.map(|poller| BoundBy::Poller(poller.name())));
        let handles = pollers.iter().filter(|poller| poller.has_handle.get());
        handles.count()
    }

    fn cancel(&self, local: &Local) {
        for poller in self.in_order() {
            local.unregister_poller(&poller);
        }
    }
}

fn bump(counter: &Cell<usize>, by: isize) {
    counter.set(counter.get().wrapping_add_signed(by));
}
