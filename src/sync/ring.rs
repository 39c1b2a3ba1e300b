//! A bounded multi-producer, single-consumer ring.
//!
//! The algorithm is Dmitry Vyukov's bounded queue with one sequence number per
//! slot, cut down to one consumer: the consumer needs no read-modify-write, and
//! it learns of a message from the slot that holds it, so that an idle poll is
//! one load and producers do not share a line with a spinning consumer until
//! there is something to read. The top bit of the tail closes the ring: after
//! [`Ring::close`] no producer can claim a slot, and the consumer can tell when
//! the ones claimed before have all been written and read.

use std::mem::MaybeUninit;

use crossbeam_utils::CachePadded;

use super::UnsafeCell;
use super::atomic::{AtomicUsize, Ordering};

const CLOSED: usize = 1 << (usize::BITS - 1);

struct Slot<T> {
    /// `position` while free for that lap, `position + 1` while it holds the
    /// message of that position.
    sequence: AtomicUsize,
    value: UnsafeCell<MaybeUninit<T>>,
}

pub(crate) struct Ring<T> {
    /// Next position to claim, and `CLOSED`. Written by producers only.
    tail: CachePadded<AtomicUsize>,
    /// Next position to read. Written by the consumer only; a sender that has to
    /// know how much the ring holds looks at it.
    head: CachePadded<AtomicUsize>,
    slots: Box<[Slot<T>]>,
    mask: usize,
}

// SAFETY: a value is moved into a slot by the producer that claimed it and out
// of it by the consumer, ordered by the slot's sequence number; `head` is only
// written through the `unsafe` methods whose contract is a single consumer.
unsafe impl<T: Send> Sync for Ring<T> {}
// SAFETY: as above; the ring owns its values.
unsafe impl<T: Send> Send for Ring<T> {}

impl<T> Ring<T> {
    /// A ring of at least `capacity` slots (a power of two, two or more).
    pub(crate) fn new(capacity: usize) -> Self {
        let capacity = capacity.max(2).next_power_of_two();
        let slots = (0..capacity)
            .map(|position| Slot {
                sequence: AtomicUsize::new(position),
                value: UnsafeCell::new(MaybeUninit::uninit()),
            })
            .collect();
        Ring {
            tail: CachePadded::new(AtomicUsize::new(0)),
            head: CachePadded::new(AtomicUsize::new(0)),
            slots,
            mask: capacity - 1,
        }
    }

    pub(crate) fn capacity(&self) -> usize {
        self.mask + 1
    }

    /// Claims the next position, unless the ring is full or closed. Any
    /// thread. The consumer waits at a claimed position, so write at once.
    #[inline]
    pub(crate) fn claim(&self) -> Option<ClaimedSlot<'_, T>> {
        let mut tail = self.tail.load(Ordering::Relaxed);
        loop {
            let slot = &self.slots[tail & self.mask];
            // No slot has the number of a closed tail.
            if slot.sequence.load(Ordering::Acquire) == tail {
                match self.tail.compare_exchange_weak(
                    tail,
                    tail + 1,
                    Ordering::AcqRel,
                    Ordering::Relaxed,
                ) {
                    Ok(_) => {
                        return Some(ClaimedSlot {
                            slot,
                            position: tail,
                        });
                    }
                    Err(now) => tail = now,
                }
            } else {
                // The slot still holds the message of the lap before, or the ring is
                // closed, unless `tail` is stale.
                let now = self.tail.load(Ordering::Relaxed);
                if now == tail {
                    return None;
                }
                tail = now;
            }
        }
    }

    /// How many messages the ring holds: exact for a thread that sees all that was
    /// claimed and read, else stale at once. Any thread.
    pub(crate) fn len(&self) -> usize {
        let head = self.head.load(Ordering::Relaxed);
        self.end().saturating_sub(head)
    }

    /// The position that is claimed next: what was claimed before this call is in
    /// front of it, what is claimed after it is not. Any thread.
    pub(crate) fn end(&self) -> usize {
        self.tail.load(Ordering::Acquire) & !CLOSED
    }

    /// Whether a position is claimed that was not read, by an exchange of the tail: a
    /// claim that this does not see happens after it, and its sender sees what the
    /// caller did before. For the consumer.
    pub(crate) fn is_claimed_exchanged(&self) -> bool {
        let tail = self.tail.fetch_add(0, Ordering::AcqRel);
        tail & !CLOSED != self.head()
    }

    /// The position that is read next. The consumer's, exact for it.
    #[inline]
    pub(crate) fn head(&self) -> usize {
        self.head.load(Ordering::Relaxed)
    }

    /// The message at the head, if it has been written.
    ///
    /// # Safety
    ///
    /// The caller is the only consumer.
    #[inline]
    pub(crate) unsafe fn pop(&self) -> Option<T> {
        let head = self.head();
        let slot = &self.slots[head & self.mask];
        if slot.sequence.load(Ordering::Acquire) != head + 1 {
            return None;
        }
        // SAFETY: the sequence number says that the producer of this position
        // has written the value, and no other consumer exists to take it.
        let value = slot
            .value
            .with_mut(|cell| unsafe { (*cell).assume_init_read() });
        slot.sequence
            .store(head + self.capacity(), Ordering::Release);
        self.head.store(head + 1, Ordering::Relaxed);
        Some(value)
    }

    /// Whether the next message is there to be popped. For the consumer.
    #[inline]
    pub(crate) fn is_ready(&self) -> bool {
        let head = self.head();
        self.slots[head & self.mask]
            .sequence
            .load(Ordering::Acquire)
            == head + 1
    }

    /// Refuses every later push. Any thread.
    pub(crate) fn close(&self) {
        self.tail.fetch_or(CLOSED, Ordering::AcqRel);
    }
}

/// A claimed position, to be written by the producer that claimed it.
pub(crate) struct ClaimedSlot<'a, T> {
    slot: &'a Slot<T>,
    position: usize,
}

impl<T> ClaimedSlot<'_, T> {
    #[inline]
    pub(crate) fn write(self, value: T) {
        self.slot.value.with_mut(|cell| {
            // SAFETY: `Ring::claim` gave this position to its caller alone,
            // and the sequence number said that the consumer is done with the
            // slot; `self` is consumed, so it is written once.
            unsafe { (*cell).write(value) };
        });
        self.slot
            .sequence
            .store(self.position + 1, Ordering::Release);
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        // SAFETY: `&mut self`: there is no other consumer, nor a producer.
        while let Some(value) = unsafe { self.pop() } {
            drop(value);
        }
    }
}

#[cfg(all(test, not(corespun_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_ring_has_room_for_its_capacity_in_every_lap_until_it_is_closed() {
        let ring = Ring::new(3);
        assert_eq!(ring.capacity(), 4);
        // SAFETY: this is the only consumer.
        let pop = || unsafe { ring.pop() };
        for lap in 0..3 {
            for n in 0..4 {
                assert_eq!(ring.len(), n);
                ring.claim().expect("there is room").write((lap, n));
            }
            assert!(ring.claim().is_none());
            for n in 0..4 {
                assert!(ring.is_ready());
                assert_eq!(pop(), Some((lap, n)));
            }
            assert!(!ring.is_ready() && pop().is_none());
        }
        ring.claim().expect("there is room").write((3, 0));
        ring.close();
        assert!(ring.claim().is_none());
        assert_eq!((ring.len(), pop(), ring.len()), (1, Some((3, 0)), 0));
        assert!(ring.claim().is_none());
    }

    #[test]
    fn what_nobody_took_is_dropped_with_the_ring() {
        let value = std::rc::Rc::new(());
        let ring = Ring::new(4);
        for _ in 0..3 {
            ring.claim().expect("there is room").write(value.clone());
        }
        // SAFETY: this is the only consumer.
        drop(unsafe { ring.pop() });
        drop(ring);
        assert_eq!(std::rc::Rc::strong_count(&value), 1);
    }
}
