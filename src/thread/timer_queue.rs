//! The timer queue of a thread: timed pollers and sleeping tasks in one order.
//!
//! A 4-ary heap of 16-byte entries, so that the children of an entry share a
//! cache line, over a table of slots that knows where in the heap each timer
//! is: insert, cancel and re-arm are O(log n), cancelling a far timer hardly
//! moves anything, and nothing is allocated per timer once the two vectors have
//! grown.

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
    /// Index in the heap, or the next free slot.
    position: u32,
    target: Option<T>,
}

const NONE: u32 = u32::MAX;
const ARITY: usize = 4;

/// Timers with a target each, earliest deadline first, equal ones in the order
/// inserted.
pub(crate) struct TimerQueue<T> {
    heap: Vec<Entry>,
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
            heap: Vec::new(),
            slots: Vec::new(),
            free: NONE,
            order: 0,
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.heap.len()
    }

    /// The earliest deadline.
    #[inline]
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.heap.first().map(|entry| entry.deadline)
    }

    /// The earliest timer's target.
    pub(crate) fn first(&self) -> Option<&T> {
        let entry = self.heap.first()?;
        self.slots[entry.slot as usize].target.as_ref()
    }

    pub(crate) fn insert(&mut self, deadline: u64, target: T) -> TimerKey {
        let slot = self.take_slot(target);
        let order = self.next_order();
        let position = self.heap.len();
        self.heap.push(Entry {
            deadline,
            order,
            slot,
        });
        self.sift_up(position);
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
        let position = slot.position as usize;
        self.remove_entry(position);
        self.release_slot(key.slot)
    }

    /// When a timer that has not fired is due.
    pub(crate) fn deadline(&self, key: TimerKey) -> Option<u64> {
        let slot = self.slots.get(key.slot as usize)?;
        (slot.generation == key.generation).then(|| self.heap[slot.position as usize].deadline)
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
        let first = self.heap.first()?;
        if first.deadline > now {
            return None;
        }
        let slot = first.slot;
        self.remove_entry(0);
        self.release_slot(slot)
    }

    /// Gives the earliest timer a later deadline, behind its equals.
    pub(crate) fn rearm_first(&mut self, deadline: u64) {
        let order = self.next_order();
        if let Some(first) = self.heap.first_mut() {
            first.deadline = deadline;
            first.order = order;
            self.sift_down(0);
        }
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
        let position = slot.position as usize;
        self.heap[position].order = self.next_order();
        self.sift_down(position);
    }

    /// Takes every target out, in no order.
    pub(crate) fn drain(&mut self) -> Vec<T> {
        let mut targets = Vec::with_capacity(self.heap.len());
        while let Some(entry) = self.heap.pop() {
            targets.extend(self.release_slot(entry.slot));
        }
        targets
    }

    /// Every target, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().filter_map(|slot| slot.target.as_ref())
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
        let index = u32::try_from(self.slots.len()).expect("fewer than 2^32 timers on a thread");
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

    fn remove_entry(&mut self, position: usize) {
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
            let end = (first_child + ARITY).min(self.heap.len());
            if first_child >= end {
                break;
            }
            let mut least = first_child;
            for child in first_child + 1..end {
                if self.heap[child].before(&self.heap[least]) {
                    least = child;
                }
            }
            if !self.heap[least].before(&entry) {
                break;
            }
            let moved = self.heap[least];
            self.place(position, moved);
            position = least;
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
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0u64..50).prop_map(Op::Insert),
            2 => any::<usize>().prop_map(Op::Remove),
            1 => (0u64..60).prop_map(Op::Pop),
            1 => (0u64..60).prop_map(Op::Rearm),
            1 => any::<usize>().prop_map(Op::Behind),
        ]
    }

    proptest! {
        /// Against a sorted list: deadline first, insertion order among equals.
        #[test]
        fn behaves_like_a_sorted_list(ops in proptest::collection::vec(op(), 1..200)) {
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
                    _ => {}
                }
                model.sort();
                prop_assert_eq!(queue.len(), model.len());
                prop_assert_eq!(queue.next_deadline(), model.first().map(|entry| entry.0));
                prop_assert_eq!(queue.first().copied(), model.first().map(|entry| entry.2));
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
