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
    /// Next position to read. Consumer only.
    head: CachePadded<UnsafeCell<usize>>,
    slots: Box<[Slot<T>]>,
    mask: usize,
}

// SAFETY: a value is moved into a slot by the producer that claimed it and out
// of it by the consumer, ordered by the slot's sequence number; `head` is only
// touched through the `unsafe` methods whose contract is a single consumer.
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
            head: CachePadded::new(UnsafeCell::new(0)),
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
    pub(crate) fn claim(&self) -> Option<Place<'_, T>> {
        let mut tail = self.tail.load(Ordering::Relaxed);
        loop {
            if tail & CLOSED != 0 {
                return None;
            }
            let slot = &self.slots[tail & self.mask];
            if slot.sequence.load(Ordering::Acquire) == tail {
                match self.tail.compare_exchange_weak(
                    tail,
                    (tail + 1) & !CLOSED,
                    Ordering::AcqRel,
                    Ordering::Relaxed,
                ) {
                    Ok(_) => {
                        return Some(Place {
                            slot,
                            position: tail,
                        });
                    }
                    Err(now) => tail = now,
                }
            } else {
                // The slot still holds the message of the lap before, unless
                // `tail` is stale.
                let now = self.tail.load(Ordering::Relaxed);
                if now == tail {
                    return None;
                }
                tail = now;
            }
        }
    }

    /// Whether a claim would fail now, for want of room or because it is closed:
    /// a hint, stale at once.
    pub(crate) fn is_full(&self) -> bool {
        let tail = self.tail.load(Ordering::Relaxed);
        tail & CLOSED != 0
            || self.slots[tail & self.mask]
                .sequence
                .load(Ordering::Relaxed)
                != tail
    }

    /// The message at the head, if it has been written.
    ///
    /// # Safety
    ///
    /// The caller is the only consumer.
    #[inline]
    pub(crate) unsafe fn pop(&self) -> Option<T> {
        // SAFETY: `head` belongs to the one consumer.
        let head = self.head.with_mut(|head| unsafe { *head });
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
        // SAFETY: as for the read above.
        self.head.with_mut(|cell| unsafe { *cell = head + 1 });
        Some(value)
    }

    /// Whether the next message is there to be popped.
    ///
    /// # Safety
    ///
    /// The caller is the only consumer.
    #[inline]
    pub(crate) unsafe fn is_ready(&self) -> bool {
        // SAFETY: `head` belongs to the one consumer.
        let head = self.head.with_mut(|head| unsafe { *head });
        self.slots[head & self.mask]
            .sequence
            .load(Ordering::Acquire)
            == head + 1
    }

    /// How many positions are claimed and not read: every push that happened
    /// before this call and was not popped is counted.
    ///
    /// # Safety
    ///
    /// The caller is the only consumer.
    pub(crate) unsafe fn claimed(&self) -> usize {
        // SAFETY: `head` belongs to the one consumer.
        let head = self.head.with_mut(|head| unsafe { *head });
        (self.tail.load(Ordering::Acquire) & !CLOSED) - head
    }

    /// Refuses every later push. Any thread.
    pub(crate) fn close(&self) {
        self.tail.fetch_or(CLOSED, Ordering::AcqRel);
    }
}

/// A claimed position, to be written by the producer that claimed it.
pub(crate) struct Place<'a, T> {
    slot: &'a Slot<T>,
    position: usize,
}

impl<T> Place<'_, T> {
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
