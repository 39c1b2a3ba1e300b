//! The mailbox of a SpdkThread or a reactor: any thread pushes, one consumer
//! pops. A small ring takes the common case; what does not fit spills to an
//! unbounded queue, so that a push can only fail because of the limit its
//! sender asked for or because the mailbox is closed.
//!
//! # Order
//!
//! A message whose push had returned before another was pushed comes out before
//! it, whichever senders pushed the two, across the spill:
//!
//! - While the spill holds anything (`spilled` is not 0), every sender spills.
//!   A spilled message keeps `spilled` above 0 until the consumer hands it out, so
//!   nothing that is sent later can pass it through the ring. The consumer counts them off together, with the last of a stash: senders and it
//!   would take each other's cache line away for every message.
//! - The consumer takes spilled messages into a *stash* first, and only then
//!   reads how many ring positions are claimed. A ring message sent before a
//!   stashed one was claimed before, so it is among them; the consumer hands out
//!   that many from the ring before the stash.
//!
//! What the consumer sends itself waits elsewhere, in an
//! [`OwnQueue`](super::OwnQueue), unless something waits here.
//!
//! # Limit
//!
//! One limit is for all explicit messages that wait, those in the own queue
//! included. A sender that finds a place in the ring looks at no limit: the ring
//! fits under it, and once the own queue has grown so that it would not, the owner
//! says so by a bit in `spilled` and every sender spills, counted. Two senders that
//! look at once may both find the last place.
//!
//! # Sleep
//!
//! A sender has to see that the consumer sleeps, or the consumer what it sent. Each
//! push that succeeds has exchanged the ring's tail or `spilled`, and
//! [`Mailbox::has_messages_before_sleep`], to be asked when the sleep is announced,
//! exchanges both. Of two exchanges of one place the later sees what was done before
//! the earlier: so either the consumer finds the claim, or the sender, which looks
//! after its push, finds the announcement. Neither needs a fence, which would cost a
//! sender as much as the push.
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

/// Spilled messages in the low 32 bits, those under a limit in the 30 above, and
/// the crowded and the closed bit.
const ONE: usize = 1;
const LIMITED: usize = 1 << 32;
const COUNT_MASK: usize = LIMITED - 1;
const CROWDED: usize = 1 << 62;
const CLOSED: usize = 1 << 63;

/// How many of those that `spilled` counts are under a limit.
fn limited(spilled: usize) -> usize {
    (spilled & !(CROWDED | CLOSED)) / LIMITED
}

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
    queue: VecDeque<Spilled<T>>,
    /// The weights of those that came into `queue`, to be counted off with its
    /// last.
    weight: usize,
    /// Ring messages to hand out before the first of `queue`.
    ring_first: usize,
    /// How many of `queue` were handed out, ever.
    taken: usize,
}

/// What senders look at, away from what the consumer writes for each message.
struct Counts {
    spilled: AtomicUsize,
    /// Explicit messages in the own queue. Written by the consumer only.
    own: AtomicUsize,
}

pub(crate) struct Mailbox<T> {
    ring: Ring<T>,
    counts: CachePadded<Counts>,
    spill: SegQueue<Spilled<T>>,
    /// Consumer only.
    stash: UnsafeCell<Stash<T>>,
    /// Limited messages of the stash that were handed out and are not counted off.
    /// Written by the consumer only.
    uncounted: AtomicUsize,
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
            counts: CachePadded::new(Counts {
                spilled: AtomicUsize::new(0),
                own: AtomicUsize::new(0),
            }),
            spill: SegQueue::new(),
            stash: UnsafeCell::new(Stash {
                queue: VecDeque::new(),
                weight: 0,
                ring_first: 0,
                taken: 0,
            }),
            uncounted: AtomicUsize::new(0),
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

    /// Pushes `pack(content)` unless `limit` or more explicit messages wait. What
    /// the ring holds counts as such. The content is packed only when its place is
    /// certain.
    #[inline]
    pub(crate) fn push_limited<C>(
        &self,
        limit: usize,
        content: C,
        pack: impl FnOnce(C) -> T,
    ) -> Result<(), PushError<C>> {
        self.push_weighted(content, pack, ONE | LIMITED, limit)
    }

    /// Whether `limit` or more explicit messages wait, here and in the own queue.
    #[inline]
    pub(crate) fn is_full(&self, limit: usize) -> bool {
        self.waiting(self.counts.spilled.load(Ordering::Acquire)) >= limit
    }

    /// How many explicit messages wait, here and in the own queue.
    #[inline]
    fn waiting(&self, spilled: usize) -> usize {
        // Handed out is at most what was counted, but a sender may see the counts
        // of different moments.
        let spilled = limited(spilled).saturating_sub(self.uncounted.load(Ordering::Relaxed));
        self.ring.len() + spilled + self.counts.own.load(Ordering::Relaxed)
    }

    #[inline]
    fn push_weighted<C>(
        &self,
        content: C,
        pack: impl FnOnce(C) -> T,
        weight: usize,
        limit: usize,
    ) -> Result<(), PushError<C>> {
        if self.counts.spilled.load(Ordering::Acquire) == 0
            && let Some(place) = self.ring.claim()
        {
            place.write(pack(content));
            return Ok(());
        }
        match self.claim_spill(weight, limit) {
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
    fn claim_spill(&self, weight: usize, limit: usize) -> Result<(), Refusal> {
        // A sender that is refused sees what the consumer did before closing:
        // it may own what the consumer wrote last (a task's emptied future).
        let mut spilled = self.counts.spilled.load(Ordering::Acquire);
        loop {
            if spilled & CLOSED != 0 {
                return Err(Refusal::Closed);
            }
            // Exactly only where it is close: that takes lines that the consumer writes.
            let at_most =
                limited(spilled) + self.ring.capacity() + self.counts.own.load(Ordering::Relaxed);
            if weight >= LIMITED && at_most >= limit && self.waiting(spilled) >= limit {
                return Err(Refusal::Full);
            }
            match self.counts.spilled.compare_exchange_weak(
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
        if self.counts.spilled.load(Ordering::Acquire) & COUNT_MASK == 0 {
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
                    && let Some(spilled) = self.spill.pop()
                {
                    stash.weight += spilled.weight;
                    stash.queue.push_back(spilled);
                }
                stash.ring_first = self.ring.len();
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
            let Spilled { value, weight } = stash.queue.pop_front()?;
            stash.taken += 1;
            if stash.queue.is_empty() {
                // First, so that a sender does not take these off twice.
                self.uncounted.store(0, Ordering::Relaxed);
                let weight = std::mem::take(&mut stash.weight);
                self.counts.spilled.fetch_sub(weight, Ordering::AcqRel);
            } else {
                let uncounted = self.uncounted.load(Ordering::Relaxed) + weight / LIMITED;
                self.uncounted.store(uncounted, Ordering::Relaxed);
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
        self.ring.is_ready() || self.counts.spilled.load(Ordering::Acquire) & COUNT_MASK != 0
    }

    /// Whether something was pushed, or is about to be, that was not popped; for an
    /// owner that has announced a sleep. A sender that pushes after this sees the
    /// announcement, as the module says.
    ///
    /// # Safety
    ///
    /// The caller is the only consumer.
    pub(crate) unsafe fn has_messages_before_sleep(&self) -> bool {
        let spilled = self.counts.spilled.fetch_add(0, Ordering::AcqRel);
        self.ring.is_claimed_exchanged() || spilled & COUNT_MASK != 0
    }

    /// How many messages were popped, ever.
    ///
    /// # Safety
    ///
    /// The caller is the only consumer.
    pub(crate) unsafe fn taken(&self) -> usize {
        // SAFETY: the stash belongs to the one consumer, which is not in `pop`.
        let stashed = self.stash.with_mut(|stash| unsafe { (*stash).taken });
        self.ring.head() + stashed
    }

    /// How many messages were pushed, ever; exact if no sender is under way.
    ///
    /// # Safety
    ///
    /// The caller is the only consumer.
    pub(crate) unsafe fn sent(&self) -> usize {
        // SAFETY: as in `taken`.
        let counted = self.stash.with_mut(|stash| unsafe {
            // Those of the stash that are handed out and still counted.
            ((*stash).weight & COUNT_MASK) - (*stash).queue.len()
        });
        let spilled = self.counts.spilled.load(Ordering::Acquire) & COUNT_MASK;
        // SAFETY: by this function's contract.
        unsafe { self.taken() + self.ring.len() + (spilled - counted) }
    }

    /// Whether nothing waits: no position is claimed, and nothing is spilled. What
    /// was sent before this call is seen. For the consumer.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.ring.len() == 0 && self.counts.spilled.load(Ordering::Acquire) & COUNT_MASK == 0
    }

    /// Pushes an explicit message of the consumer's own, closed or not, whatever the
    /// limit. Says how many of those before it, at least, can be taken out without
    /// taking it.
    ///
    /// # Safety
    ///
    /// The caller is the only consumer.
    pub(super) unsafe fn push_own(&self, value: T) -> usize {
        if self.counts.spilled.load(Ordering::Acquire) == 0 {
            let before = self.ring.len();
            if let Some(place) = self.ring.claim() {
                place.write(value);
                return before;
            }
        }
        let weight = ONE | LIMITED;
        self.counts.spilled.fetch_add(weight, Ordering::AcqRel);
        // SAFETY: the stash belongs to the one consumer, which is not in `pop`.
        let stashed = self.stash.with_mut(|stash| unsafe { (*stash).queue.len() });
        let before = self.ring.len() + stashed;
        self.spill.push(Spilled { value, weight });
        before
    }

    /// How many own messages leave so little room under `limit` that senders have to
    /// count.
    pub(super) fn crowd_at(&self, limit: usize) -> usize {
        limit.saturating_sub(self.ring.capacity()) + 1
    }

    /// Says how many explicit messages are in the own queue. Owner only.
    #[inline]
    pub(super) fn set_own(&self, own: usize) {
        self.counts.own.store(own, Ordering::Relaxed);
    }

    /// Says whether senders have to count, as [`Mailbox::crowd_at`] tells. Owner
    /// only.
    #[cold]
    pub(super) fn set_crowded(&self, crowded: bool) {
        match crowded {
            true => self.counts.spilled.fetch_or(CROWDED, Ordering::AcqRel),
            false => self.counts.spilled.fetch_and(!CROWDED, Ordering::AcqRel),
        };
    }

    /// Refuses every later push. Any thread.
    pub(crate) fn close(&self) {
        self.counts.spilled.fetch_or(CLOSED, Ordering::AcqRel);
        self.ring.close();
    }

    /// Whether every push that succeeded has been popped. Stays true once it
    /// is true after [`Mailbox::close`].
    ///
    /// # Safety
    ///
    /// The caller is the only consumer.
    pub(crate) unsafe fn is_drained(&self) -> bool {
        self.is_empty()
    }
}

#[cfg(all(test, not(corespun_loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_limit_takes_no_room_under_one() {
        let mailbox = Mailbox::new(2);
        for n in 0..10 {
            mailbox.push(n).unwrap();
        }
        // The ring may hold explicit ones.
        for n in 10..12 {
            assert!(mailbox.push_limited(4, n, |n| n).is_ok());
        }
        let refused = mailbox.push_limited(4, 12, |n| n);
        assert!(matches!(refused, Err(PushError::Full(12))));
        assert!(mailbox.is_full(4) && !mailbox.is_full(5));
        // SAFETY: this is the only consumer.
        let taken: Vec<_> = std::iter::from_fn(|| unsafe { mailbox.pop() }).collect();
        assert_eq!(taken, (0..12).collect::<Vec<_>>());
        assert!(mailbox.is_empty());
    }
}
