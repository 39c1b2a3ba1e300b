//! The timer queue of a thread: timed pollers and sleeping tasks in one order.
//!
//! A 4-ary heap of 16-byte entries, so that the children of an entry share a
//! cache line, over a table of slots that knows where in the heap each timer
//! is: insert, cancel and re-arm are O(log n), cancelling a far timer hardly
//! moves anything, and nothing is allocated per timer once the vectors have grown.
//!
//! The earliest timer, where it was that when it was inserted, does not go into the heap: it
//! is the *front*. One that waits for a short while among many that wait for long, which
//! is what most are that fire at all, is put there and taken from there, and the heap is
//! not touched.
//!
//! Where a good part of all timers is due at once, they are not taken out of the heap
//! one by one, each of which moves another down its whole height, but together, and
//! sorted: the *run*, which is then read from its begin. What is re-armed meanwhile goes
//! into the heap, where it is later than most and so hardly moves either. While a run is
//! there, and no front, the earliest timer is the earlier of its first and the heap's.

use std::cmp::Ordering;

/// A timer's place in the queue; stale once the timer fired or was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimerKey {
    slot: u32,
    generation: u32,
}

#[derive(Clone, Copy)]
struct Entry {
    deadline: u64,
    /// Insertion order among equal deadlines, compared modulo 2^32.
    order: u32,
    slot: u32,
}

impl Entry {
    #[inline]
    fn before(&self, other: &Entry) -> bool {
        if self.deadline == other.deadline {
            (self.order.wrapping_sub(other.order) as i32) < 0
        } else {
            self.deadline < other.deadline
        }
    }
}

struct Slot<T> {
    generation: u32,
    /// Index in the heap, or with `IN_RUN` in the run, or `FRONT`; or the next free slot.
    position: u32,
    target: Option<T>,
}

const NONE: u32 = u32::MAX;
const IN_RUN: u32 = 1 << 31;
const FRONT: u32 = NONE - 1;
const ARITY: usize = 4;

/// So many timers have to be due for a run, and this part of all.
const RUN_AT_LEAST: usize = 16;
const RUN_PART: usize = 4;

/// Where a timer is.
#[derive(Clone, Copy)]
enum Place {
    Front,
    Heap(usize),
    Run(usize),
}

impl Place {
    #[inline]
    fn read(position: u32) -> Self {
        match position {
            FRONT => Place::Front,
            heap if heap & IN_RUN == 0 => Place::Heap(heap as usize),
            run => Place::Run((run & !IN_RUN) as usize),
        }
    }
}

/// Timers with a target each, earliest deadline first, equal ones in the order
/// inserted.
pub(crate) struct TimerQueue<T> {
    /// Before all others, if it is there.
    front: Option<Entry>,
    heap: Vec<Entry>,
    /// Due timers, the next one last; without a slot where one was cancelled.
    run: Vec<Entry>,
    /// Where in the heap due timers were found; kept for its memory.
    found: Vec<u32>,
    slots: Vec<Slot<T>>,
    free: u32,
    order: u32,
}

impl<T> Default for TimerQueue<T> {
    fn default() -> Self {
        TimerQueue::new()
    }
}

impl<T> TimerQueue<T> {
    pub(crate) fn new() -> Self {
        TimerQueue {
            front: None,
            heap: Vec::new(),
            run: Vec::new(),
            found: Vec::new(),
            slots: Vec::new(),
            free: NONE,
            order: 0,
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        let run = self.run.iter().filter(|entry| entry.slot != NONE);
        usize::from(self.front.is_some()) + self.heap.len() + run.count()
    }

    /// The earliest timer.
    #[inline]
    fn earliest(&self) -> Option<Entry> {
        let behind = || self.earliest_behind().map(|(entry, _)| entry);
        self.front.or_else(behind)
    }

    /// The earliest timer but for the front, and whether it is in the run.
    #[inline]
    fn earliest_behind(&self) -> Option<(Entry, bool)> {
        match (self.heap.first(), self.run.last()) {
            (Some(heap), None) => Some((*heap, false)),
            (Some(heap), Some(run)) if heap.before(run) => Some((*heap, false)),
            (_, Some(run)) => Some((*run, true)),
            (None, None) => None,
        }
    }

    /// The earliest deadline.
    #[inline]
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.earliest().map(|entry| entry.deadline)
    }

    /// The earliest timer's target.
    #[cfg(test)]
    pub(crate) fn first(&self) -> Option<&T> {
        self.first_due(u64::MAX)
    }

    /// The earliest timer's target, if it is due at `now`.
    #[inline]
    pub(crate) fn first_due(&self, now: u64) -> Option<&T> {
        let entry = self.earliest().filter(|entry| entry.deadline <= now)?;
        self.slots[entry.slot as usize].target.as_ref()
    }

    /// Whether a timer is due at `now`.
    #[inline]
    pub(crate) fn is_due(&self, now: u64) -> bool {
        let is_due = |entry: &Entry| entry.deadline <= now;
        self.front.as_ref().is_some_and(is_due)
            || self.heap.first().is_some_and(is_due)
            || !self.run.is_empty()
    }

    /// Makes what is due at `now` the run, if that is enough for one. For a caller that
    /// is about to take it out.
    #[inline]
    pub(crate) fn gather_due(&mut self, now: u64) {
        if self.heap.len() >= RUN_AT_LEAST && self.run.is_empty() {
            let at_the_top = self.heap[..=ARITY].iter();
            let due = at_the_top.filter(|entry| entry.deadline <= now).count();
            // Where so many are due, these are not far apart.
            if due > 2 {
                self.gather_run(now);
            }
        }
    }

    #[cold]
    fn gather_run(&mut self, now: u64) {
        let enough = (self.heap.len() / RUN_PART).max(RUN_AT_LEAST);
        // A timer whose parent is not due is not due either.
        self.found.clear();
        self.found.push(0);
        let mut looked_at = 0;
        while looked_at < self.found.len() && self.found.len() < enough {
            let first_child = self.found[looked_at] as usize * ARITY + 1;
            let end = (first_child + ARITY).min(self.heap.len());
            for child in first_child..end {
                if self.heap[child].deadline <= now {
                    self.found.push(child as u32);
                }
            }
            looked_at += 1;
        }
        if self.found.len() < enough {
            return;
        }
        let run = &mut self.run;
        self.heap.retain(|entry| {
            let is_due = entry.deadline <= now;
            if is_due {
                run.push(*entry);
            }
            !is_due
        });
        self.run
            .sort_unstable_by(|one, other| match one.before(other) {
                true => Ordering::Greater,
                false => Ordering::Less,
            });
        for (position, entry) in self.run.iter().enumerate() {
            self.slots[entry.slot as usize].position = position as u32 | IN_RUN;
        }
        for position in (0..self.heap.len()).rev() {
            self.sift_down(position);
        }
    }

    pub(crate) fn insert(&mut self, deadline: u64, target: T) -> TimerKey {
        let slot = self.take_slot(target);
        let order = self.next_order();
        self.place_behind_earlier(Entry {
            deadline,
            order,
            slot,
        });
        TimerKey {
            slot,
            generation: self.slots[slot as usize].generation,
        }
    }

    /// Removes a timer that has not fired.
    pub(crate) fn remove(&mut self, key: TimerKey) -> Option<T> {
        let slot = self.slots.get(key.slot as usize)?;
        if slot.generation != key.generation {
            return None;
        }
        let position = slot.position;
        self.remove_entry(position);
        self.release_slot(key.slot)
    }

    /// When a timer that has not fired is due.
    pub(crate) fn deadline(&self, key: TimerKey) -> Option<u64> {
        let slot = self.slots.get(key.slot as usize)?;
        (slot.generation == key.generation).then(|| self.entry(slot.position).deadline)
    }

    /// The target of a timer that has not fired.
    pub(crate) fn get_mut(&mut self, key: TimerKey) -> Option<&mut T> {
        let slot = self.slots.get_mut(key.slot as usize)?;
        if slot.generation != key.generation {
            return None;
        }
        slot.target.as_mut()
    }

    /// Removes and returns the earliest timer if it is due.
    #[inline]
    pub(crate) fn pop_due(&mut self, now: u64) -> Option<T> {
        if let Some(front) = self.front {
            if front.deadline > now {
                return None;
            }
            self.front = None;
            return self.release_slot(front.slot);
        }
        let (first, in_run) = self.earliest_behind()?;
        if first.deadline > now {
            return None;
        }
        match in_run {
            true => self.pop_run(),
            false => self.remove_from_heap(0),
        }
        self.release_slot(first.slot)
    }

    /// Gives the earliest timer a later deadline, behind its equals.
    #[inline]
    pub(crate) fn rearm_first(&mut self, deadline: u64) {
        let order = self.next_order();
        if let Some(front) = self.front {
            self.front = None;
            return self.place_behind_earlier(Entry {
                deadline,
                order,
                slot: front.slot,
            });
        }
        let Some((first, in_run)) = self.earliest_behind() else {
            return;
        };
        let entry = Entry {
            deadline,
            order,
            slot: first.slot,
        };
        if in_run {
            self.pop_run();
            self.push(entry);
        } else {
            self.heap[0] = entry;
            self.sift_down(0);
        }
    }

    /// The entry of a timer that has not fired.
    fn entry(&self, position: u32) -> Entry {
        match Place::read(position) {
            Place::Front => self.front.expect("a slot knows where its timer is"),
            Place::Heap(position) => self.heap[position],
            Place::Run(position) => self.run[position],
        }
    }

    /// Makes an entry the front, if it is before all others, or puts it into the heap.
    #[inline]
    fn place_behind_earlier(&mut self, entry: Entry) {
        let earliest = self.earliest();
        if earliest.is_some_and(|earliest| !entry.before(&earliest)) {
            return self.push(entry);
        }
        if let Some(front) = self.front.replace(entry) {
            self.push(front);
        }
        self.slots[entry.slot as usize].position = FRONT;
    }

    /// Takes the first of the run out, and what was cancelled behind it.
    #[inline]
    fn pop_run(&mut self) {
        self.run.pop();
        while self.run.last().is_some_and(|entry| entry.slot == NONE) {
            self.run.pop();
        }
    }

    #[inline]
    fn push(&mut self, entry: Entry) {
        let position = self.heap.len();
        self.heap.push(entry);
        self.sift_up(position);
    }

    /// How often a timer was inserted or re-armed, modulo 2^32.
    #[inline]
    pub(crate) fn insertions(&self) -> u32 {
        self.order
    }

    /// Puts a timer that has not fired behind its equals.
    pub(crate) fn put_behind_equals(&mut self, key: TimerKey) {
        let Some(slot) = self.slots.get(key.slot as usize) else {
            return;
        };
        if slot.generation != key.generation {
            return;
        }
        let position = slot.position;
        let order = self.next_order();
        let entry = Entry {
            order,
            ..self.entry(position)
        };
        match Place::read(position) {
            Place::Heap(position) => {
                self.heap[position] = entry;
                self.sift_down(position);
            }
            Place::Front | Place::Run(_) => {
                self.remove_entry(position);
                self.place_behind_earlier(entry);
            }
        }
    }

    /// Takes every target out, in no order.
    pub(crate) fn drain(&mut self) -> Vec<T> {
        let mut entries = std::mem::take(&mut self.heap);
        entries.extend(self.front.take());
        entries.extend(self.run.drain(..).filter(|entry| entry.slot != NONE));
        entries
            .into_iter()
            .filter_map(|entry| self.release_slot(entry.slot))
            .collect()
    }

    fn next_order(&mut self) -> u32 {
        self.order = self.order.wrapping_add(1);
        self.order
    }

    fn take_slot(&mut self, target: T) -> u32 {
        if self.free != NONE {
            let index = self.free;
            let slot = &mut self.slots[index as usize];
            self.free = slot.position;
            slot.target = Some(target);
            return index;
        }
        let index = u32::try_from(self.slots.len()).expect("fewer than 2^31 timers on a thread");
        assert!(index < IN_RUN, "fewer than 2^31 timers on a thread");
        self.slots.push(Slot {
            generation: 0,
            position: NONE,
            target: Some(target),
        });
        index
    }

    fn release_slot(&mut self, index: u32) -> Option<T> {
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        slot.position = self.free;
        self.free = index;
        slot.target.take()
    }

    fn remove_entry(&mut self, position: u32) {
        match Place::read(position) {
            Place::Front => self.front = None,
            Place::Heap(position) => self.remove_from_heap(position),
            Place::Run(position) => {
                self.run[position].slot = NONE;
                if position + 1 == self.run.len() {
                    self.pop_run();
                }
            }
        }
    }

    fn remove_from_heap(&mut self, position: usize) {
        let last = self.heap.len() - 1;
        self.heap.swap_remove(position);
        if position < last {
            // The entry that took the place may belong above or below it.
            if self.sift_up(position) == position {
                self.sift_down(position);
            }
        }
    }

    #[inline]
    fn place(&mut self, position: usize, entry: Entry) {
        self.heap[position] = entry;
        self.slots[entry.slot as usize].position = position as u32;
    }

    fn sift_up(&mut self, mut position: usize) -> usize {
        let entry = self.heap[position];
        while position > 0 {
            let parent = (position - 1) / ARITY;
            if !entry.before(&self.heap[parent]) {
                break;
            }
            let moved = self.heap[parent];
            self.place(position, moved);
            position = parent;
        }
        self.place(position, entry);
        position
    }

    fn sift_down(&mut self, mut position: usize) {
        let entry = self.heap[position];
        loop {
            let first_child = position * ARITY + 1;
            // With its children in one slice, whose length is looked at once.
            let children = match self.heap.get(first_child..first_child + ARITY) {
                Some(all) => all,
                None => self.heap.get(first_child..).unwrap_or_default(),
            };
            let Some((mut least, others)) = children.split_first() else {
                break;
            };
            let mut least_at = first_child;
            for (other, at) in others.iter().zip(first_child + 1..) {
                if other.before(least) {
                    (least, least_at) = (other, at);
                }
            }
            if !least.before(&entry) {
                break;
            }
            let moved = *least;
            self.place(position, moved);
            position = least_at;
        }
        self.place(position, entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Op {
        Insert(u64),
        Remove(usize),
        Pop(u64),
        Rearm(u64),
        Behind(usize),
        Gather(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0u64..50).prop_map(Op::Insert),
            2 => any::<usize>().prop_map(Op::Remove),
            1 => (0u64..60).prop_map(Op::Pop),
            1 => (0u64..60).prop_map(Op::Rearm),
            1 => any::<usize>().prop_map(Op::Behind),
            1 => (0u64..60).prop_map(Op::Gather),
        ]
    }

    proptest! {
        /// Against a sorted list: deadline first, insertion order among equals.
        #[test]
        fn behaves_like_a_sorted_list(ops in proptest::collection::vec(op(), 1..400)) {
            let mut queue = TimerQueue::new();
            let mut model: Vec<(u64, u64, u64)> = Vec::new(); // deadline, order, name
            let mut keys = Vec::new();
            let mut order = 0;
            for op in ops {
                match op {
                    Op::Insert(deadline) => {
                        order += 1;
                        keys.push((queue.insert(deadline, order), order));
                        model.push((deadline, order, order));
                    }
                    Op::Remove(index) if !keys.is_empty() => {
                        let (key, name) = keys[index % keys.len()];
                        let known = model.iter().position(|entry| entry.2 == name);
                        prop_assert_eq!(queue.remove(key), known.map(|at| model.remove(at).2));
                    }
                    Op::Pop(now) => {
                        model.sort();
                        let due = model.first().filter(|entry| entry.0 <= now).copied();
                        if due.is_some() {
                            model.remove(0);
                        }
                        prop_assert_eq!(queue.pop_due(now), due.map(|entry| entry.2));
                    }
                    Op::Rearm(deadline) if !model.is_empty() => {
                        model.sort();
                        order += 1;
                        model[0].0 = deadline;
                        model[0].1 = order;
                        queue.rearm_first(deadline);
                    }
                    Op::Behind(index) if !keys.is_empty() => {
                        let (key, name) = keys[index % keys.len()];
                        queue.put_behind_equals(key);
                        if let Some(entry) = model.iter_mut().find(|entry| entry.2 == name) {
                            order += 1;
                            entry.1 = order;
                        }
                    }
                    Op::Gather(now) => queue.gather_due(now),
                    _ => {}
                }
                model.sort();
                prop_assert_eq!(queue.len(), model.len());
                prop_assert_eq!(queue.next_deadline(), model.first().map(|entry| entry.0));
                prop_assert_eq!(queue.first().copied(), model.first().map(|entry| entry.2));
            }
            for (key, name) in &keys {
                let known = model.iter().find(|entry| entry.2 == *name);
                prop_assert_eq!(queue.deadline(*key), known.map(|entry| entry.0));
            }
        }
    }

    #[test]
    fn a_stale_key_finds_nothing() {
        let mut queue = TimerQueue::new();
        let key = queue.insert(5, 'a');
        assert_eq!(queue.pop_due(5), Some('a'));
        let reused = queue.insert(6, 'b');
        assert_eq!(queue.remove(key), None);
        assert!(queue.get_mut(key).is_none());
        assert_eq!(queue.remove(reused), Some('b'));
    }
}
