//! The waiters for something, first come, first served.
//!
//! A waiter is an index into a table that is reused, so waiting allocates
//! nothing once the table has grown, and leaving the queue from the middle is a
//! few stores. A waiter that was let through stays in the table until it has
//! seen that: a waiter that is dropped before can pass on what it was given.

use std::task::Waker;

/// A waiter's place in the table; given back by [`WaitList::remove`].
#[derive(Clone, Copy, Debug)]
pub(super) struct WaiterKey(u32);

const NONE: u32 = u32::MAX;

struct Waiter<W, G> {
    waker: Option<Waker>,
    /// What is waited for.
    wants: W,
    /// What the waiter was let through with.
    got: Option<G>,
    previous: u32,
    /// In the free list, the next free place.
    next: u32,
}

/// Waiters that want a `W` each and are let through with a `G`.
pub(super) struct WaitList<W, G> {
    waiters: Vec<Waiter<W, G>>,
    first: u32,
    last: u32,
    free: u32,
}

impl<W: Copy, G> WaitList<W, G> {
    pub(super) const fn new() -> Self {
        WaitList {
            waiters: Vec::new(),
            first: NONE,
            last: NONE,
            free: NONE,
        }
    }

    /// What the first in the queue wants.
    pub(super) fn front(&self) -> Option<W> {
        self.waiters
            .get(self.first as usize)
            .map(|waiter| waiter.wants)
    }

    /// Goes to the end of the queue.
    pub(super) fn insert(&mut self, wants: W, waker: Waker) -> WaiterKey {
        let waiter = Waiter {
            waker: Some(waker),
            wants,
            got: None,
            previous: self.last,
            next: NONE,
        };
        let index = if self.free == NONE {
            let index = u32::try_from(self.waiters.len()).expect("fewer than 2^32 waiters");
            self.waiters.push(waiter);
            index
        } else {
            let index = self.free;
            let free = &mut self.waiters[index as usize];
            self.free = free.next;
            *free = waiter;
            index
        };
        match self.waiters.get_mut(self.last as usize) {
            Some(last) => last.next = index,
            None => self.first = index,
        }
        self.last = index;
        WaiterKey(index)
    }

    /// Lets the first in the queue through. Its waker is to be woken once no
    /// borrow of this is held.
    pub(super) fn let_through(&mut self, with: G) -> Option<Waker> {
        let first = self.first;
        if first == NONE {
            return None;
        }
        self.unlink(first);
        let waiter = &mut self.waiters[first as usize];
        waiter.got = Some(with);
        waiter.waker.take()
    }

    /// What the waiter was let through with; else it goes on waiting with this
    /// waker. A waker that was replaced comes back as an error, to be dropped
    /// once no borrow of this is held.
    pub(super) fn poll(&mut self, place: WaiterKey, waker: &Waker) -> Result<G, Option<Waker>> {
        let waiter = &mut self.waiters[place.0 as usize];
        if let Some(got) = waiter.got.take() {
            self.release(place.0);
            return Ok(got);
        }
        let known = waiter.waker.as_ref();
        if known.is_some_and(|known| known.will_wake(waker)) {
            return Err(None);
        }
        Err(waiter.waker.replace(waker.clone()))
    }

    /// Leaves, and returns what the waiter was let through with but had not
    /// seen, and its waker.
    pub(super) fn remove(&mut self, place: WaiterKey) -> (Option<G>, Option<Waker>) {
        let waiter = &mut self.waiters[place.0 as usize];
        let got = waiter.got.take();
        let waker = waiter.waker.take();
        if got.is_none() {
            self.unlink(place.0);
        }
        self.release(place.0);
        (got, waker)
    }

    fn unlink(&mut self, index: u32) {
        let Waiter { previous, next, .. } = self.waiters[index as usize];
        match self.waiters.get_mut(previous as usize) {
            Some(before) => before.next = next,
            None => self.first = next,
        }
        match self.waiters.get_mut(next as usize) {
            Some(behind) => behind.previous = previous,
            None => self.last = previous,
        }
    }

    fn release(&mut self, index: u32) {
        self.waiters[index as usize].next = self.free;
        self.free = index;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::task::noop_waker;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    #[derive(Clone, Debug)]
    enum Op {
        Insert,
        LetThrough,
        Remove(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            3 => Just(Op::Insert),
            2 => Just(Op::LetThrough),
            2 => any::<usize>().prop_map(Op::Remove),
        ]
    }

    proptest! {
        #[test]
        fn waiters_are_let_through_in_the_order_they_came(
            ops in proptest::collection::vec(op(), 1..100),
        ) {
            let mut list: WaitList<usize, usize> = WaitList::new();
            let mut queue = VecDeque::new();
            let mut places: Vec<(usize, WaiterKey)> = Vec::new();
            let mut through = std::collections::BTreeMap::new();
            for (name, op) in ops.into_iter().enumerate() {
                match op {
                    Op::Insert => {
                        places.push((name, list.insert(name, noop_waker())));
                        queue.push_back(name);
                    }
                    Op::LetThrough => {
                        let first = queue.pop_front();
                        prop_assert_eq!(list.let_through(name).is_some(), first.is_some());
                        if let Some(first) = first {
                            through.insert(first, name);
                        }
                    }
                    Op::Remove(index) if !places.is_empty() => {
                        let (who, place) = places.swap_remove(index % places.len());
                        queue.retain(|&waiting| waiting != who);
                        prop_assert_eq!(list.remove(place).0, through.remove(&who));
                    }
                    Op::Remove(_) => {}
                }
                prop_assert_eq!(list.front(), queue.front().copied());
            }
        }
    }
}
