//! The mailbox of a SpdkThread or a reactor: any thread pushes, one consumer
//! pops. A small ring takes the common case; what does not fit spills to an
//! unbounded queue, so that a push can only fail because of the limit its
//! sender asked for or because the mailbox is closed.
//!
//! # Order
//!
//! Messages of one sender come out in the order sent, across the spill:
//!
//! - While the spill holds anything (`spilled` is not 0), every sender spills.
//!   A sender's own spilled message keeps `spilled` above 0 until the consumer
//!   hands it out, so nothing it sends later can pass it through the ring. The
//!   consumer counts them off together, with the last of a stash: senders and it
//!   would take each other's cache line away for every message.
//! - The consumer takes spilled messages into a *stash* first, and only then
//!   reads how many ring positions are claimed. A ring message sent before a
//!   stashed one by the same sender was claimed before, so it is among them;
//!   the consumer hands out that many from the ring before the stash.
//!
//! # Closing
//!
//! [`Mailbox::close`] sets one bit in the ring's tail and one in `spilled`:
//! after it no push can succeed, and each push that did succeed is counted in
//! one of the two, so the consumer knows when it has seen the last message.

use std::collections::VecDeque;

use crossbeam_utils::CachePadded;

use super::atomic::{AtomicUsize, Ordering};
use super::ring::Ring;
use super::{SegQueue, UnsafeCell};

/// Spilled messages in the low 32 bits, those under a limit in the 31 above,
/// and the closed bit.
const ONE: usize = 1;
const LIMITED: usize = 1 << 32;
const COUNT_MASK: usize = LIMITED - 1;
const CLOSED: usize = 1 << 63;

/// Spilled messages moved to the stash at a time.
const STASH: usize = 64;

/// Why a push was refused; the message comes back.
pub(crate) enum PushError<T> {
    /// As many limited messages are outstanding as the limit allows.
    Full(T),
    /// The mailbox was closed.
    Closed(T),
}

enum Refusal {
    Full,
    Closed,
}

struct Spilled<T> {
    value: T,
    weight: usize,
}

struct Stash<T> {
    queue: VecDeque<T>,
    /// The weights of those that came into `queue`, to be counted off with its
    /// last.
    weight: usize,
    /// Ring messages to hand out before the first of `queue`.
    ring_first: usize,
}

pub(crate) struct Mailbox<T> {
    ring: Ring<T>,
    spilled: CachePadded<AtomicUsize>,
    spill: SegQueue<Spilled<T>>,
    /// Consumer only.
    stash: UnsafeCell<Stash<T>>,
}

// SAFETY: `stash` is only touched through the `unsafe` methods whose contract
// is a single consumer; everything else is `Sync` for `T: Send`.
unsafe impl<T: Send> Sync for Mailbox<T> {}
// SAFETY: the mailbox owns its messages.
unsafe impl<T: Send> Send for Mailbox<T> {}

impl<T> Mailbox<T> {
    pub(crate) fn new(ring: usize) -> Self {
        Mailbox {
            ring: Ring::new(ring),
            spilled: CachePadded::new(AtomicUsize::new(0)),
            spill: SegQueue::new(),
            stash: UnsafeCell::new(Stash {
                queue: VecDeque::new(),
                weight: 0,
                ring_first: 0,
            }),
        }
    }

    /// Pushes without a limit: fails only when closed.
    #[inline]
    pub(crate) fn push(&self, value: T) -> Result<(), T> {
        self.push_with(value, |value| value)
    }

    /// [`Mailbox::push`] of `pack(content)`, packed only when its place is
    /// certain.
    #[inline]
    pub(crate) fn push_with<C>(&self, content: C, pack: impl FnOnce(C) -> T) -> Result<(), C> {
        match self.push_weighted(content, pack, ONE, usize::MAX) {
            Ok(()) => Ok(()),
            Err(PushError::Full(content) | PushError::Closed(content)) => Err(content),
        }
    }

    /// Pushes `pack(content)` unless `limit` or more messages pushed by this
    /// method are outstanding. The ring's slots count as taken by them, and those
    /// of a stash until its last is out. The content is packed only when its place
    /// is certain.
    #[inline]
    pub(crate) fn push_limited<C>(
        &self,
        limit: usize,
        content: C,
        pack: impl FnOnce(C) -> T,
    ) -> Result<(), PushError<C>> {
        let spill_limit = limit.saturating_sub(self.ring.capacity());
        self.push_weighted(content, pack, ONE | LIMITED, spill_limit)
    }

    /// Whether [`Mailbox::push_limited`] would be refused by this limit now.
    pub(crate) fn is_full(&self, limit: usize) -> bool {
        let spilled = self.spilled.load(Ordering::Relaxed) & !CLOSED;
        let spill_limit = limit.saturating_sub(self.ring.capacity());
        spilled / LIMITED >= spill_limit && (spilled > 0 || self.ring.is_full())
    }

    #[inline]
    fn push_weighted<C>(
        &self,
        content: C,
        pack: impl FnOnce(C) -> T,
        weight: usize,
        spill_limit: usize,
    ) -> Result<(), PushError<C>> {
        if self.spilled.load(Ordering::Acquire) == 0
            && let Some(place) = self.ring.claim()
        {
            place.write(pack(content));
            return Ok(());
        }
        match self.claim_spill(weight, spill_limit) {
            Ok(()) => {
                let value = pack(content);
                self.spill.push(Spilled { value, weight });
                Ok(())
            }
            Err(Refusal::Full) => Err(PushError::Full(content)),
            Err(Refusal::Closed) => Err(PushError::Closed(content)),
        }
    }

    #[cold]
    fn claim_spill(&self, weight: usize, spill_limit: usize) -> Result<(), Refusal> {
        // A sender that is refused sees what the consumer did before closing:
        // it may own what the consumer wrote last (a task's emptied future).
        let mut spilled = self.spilled.load(Ordering::Acquire);
        loop {
            if spilled & CLOSED != 0 {
                return Err(Refusal::Closed);
            }
            if weight >= LIMITED && spilled / LIMITED >= spill_limit {
                return Err(Refusal::Full);
            }
            match self.spilled.compare_exchange_weak(
                spilled,
                spilled + weight,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return Ok(()),
                Err(now) => spilled = now,
            }
        }
    }

    /// The next message, if one is there.
    ///
    /// # Safety
    ///
    /// The caller is the only consumer, and this call is not entered from
    /// within itself.
    #[inline]
    pub(crate) unsafe fn pop(&self) -> Option<T> {
        if self.spilled.load(Ordering::Acquire) & COUNT_MASK == 0 {
            // SAFETY: the caller is the only consumer.
            return unsafe { self.ring.pop() };
        }
        // SAFETY: as above.
        unsafe { self.pop_spilled() }
    }

    #[cold]
    unsafe fn pop_spilled(&self) -> Option<T> {
        // SAFETY: the stash belongs to the one consumer, and nothing in here
        // runs code of a message, so no second borrow can exist.
        self.stash.with_mut(|stash| unsafe {
            let stash = &mut *stash;
            if stash.queue.is_empty() {
                if let Some(value) = self.ring.pop() {
                    return Some(value);
                }
                while stash.queue.len() < STASH
                    && let Some(Spilled { value, weight }) = self.spill.pop()
                {
                    stash.weight += weight;
                    stash.queue.push_back(value);
                }
                stash.ring_first = self.ring.claimed();
            }
            if stash.queue.is_empty() {
                return None;
            }
            if stash.ring_first > 0 {
                // A claimed position that is not written yet holds back what
                // was sent after it.
                let value = self.ring.pop()?;
                stash.ring_first -= 1;
                return Some(value);
            }
            let value = stash.queue.pop_front()?;
            if stash.queue.is_empty() {
                let weight = std::mem::take(&mut stash.weight);
                self.spilled.fetch_sub(weight, Ordering::AcqRel);
            }
            Some(value)
        })
    }

    /// Whether there is something to pop, or about to be.
    ///
    /// # Safety
    ///
    /// The caller is the only consumer.
    #[inline]
    pub(crate) unsafe fn has_messages(&self) -> bool {
        // SAFETY: the caller is the only consumer.
        (unsafe { self.ring.is_ready() }) || self.spilled.load(Ordering::Acquire) & COUNT_MASK != 0
    }

    /// Refuses every later push. Any thread.
    pub(crate) fn close(&self) {
        self.spilled.fetch_or(CLOSED, Ordering::AcqRel);
        self.ring.close();
    }

    /// Whether every push that succeeded has been popped. Stays true once it
    /// is true after [`Mailbox::close`].
    ///
    /// # Safety
    ///
    /// The caller is the only consumer.
    pub(crate) unsafe fn is_drained(&self) -> bool {
        // SAFETY: the caller is the only consumer.
        (unsafe { self.ring.claimed() }) == 0
            && self.spilled.load(Ordering::Acquire) & COUNT_MASK == 0
    }
}
