//! The critical-message slot of a SpdkThread: one function, posted by a single
//! compare-and-swap, so that a signal handler may do it. The owner closes the
//! slot at exit, so that a message is refused rather than accepted and never
//! run.

use std::ptr;

use super::atomic::{AtomicPtr, Ordering};

/// What a critical message may be: a plain function, since a signal handler
/// can neither allocate nor move a closure's content safely.
pub(crate) type CriticalFn = fn();

/// Why a post was refused.
#[derive(Debug)]
pub(crate) enum PostError {
    /// A message is pending or running.
    Pending,
    /// The slot was closed.
    Closed,
}

/// No function lies at this address.
const CLOSED: *mut () = ptr::without_provenance_mut(1);

/// Null when free, `CLOSED`, or the posted function.
pub(crate) struct CriticalSlot(AtomicPtr<()>);

impl CriticalSlot {
    pub(crate) fn new() -> Self {
        CriticalSlot(AtomicPtr::new(ptr::null_mut()))
    }

    /// Posts `f` unless a message is pending or running, or the slot is closed.
    /// Async-signal-safe.
    pub(crate) fn post(&self, f: CriticalFn) -> Result<(), PostError> {
        match self.0.compare_exchange(
            ptr::null_mut(),
            f as *mut (),
            Ordering::AcqRel,
            Ordering::Acquire,
        ) {
            Ok(_) => Ok(()),
            Err(CLOSED) => Err(PostError::Closed),
            Err(_) => Err(PostError::Pending),
        }
    }

    #[inline]
    pub(crate) fn is_posted(&self) -> bool {
        let posted = self.0.load(Ordering::Acquire);
        !posted.is_null() && posted != CLOSED
    }

    /// The posted message; the slot stays taken until [`CriticalSlot::clear`].
    pub(crate) fn get(&self) -> Option<CriticalFn> {
        let posted = self.0.load(Ordering::Acquire);
        if posted.is_null() || posted == CLOSED {
            return None;
        }
        // SAFETY: the only other values ever stored are `CriticalFn`s cast in
        // `post`.
        Some(unsafe { std::mem::transmute::<*mut (), CriticalFn>(posted) })
    }

    /// Makes the slot free again. Owner only, after running the message.
    pub(crate) fn clear(&self) {
        self.0.store(ptr::null_mut(), Ordering::Release);
    }

    /// Refuses every later post, unless a message is pending: says whether it
    /// did, or was closed before. Owner only.
    pub(crate) fn close(&self) -> bool {
        match self
            .0
            .compare_exchange(ptr::null_mut(), CLOSED, Ordering::AcqRel, Ordering::Acquire)
        {
            Ok(_) => true,
            Err(posted) => posted == CLOSED,
        }
    }
}

#[cfg(all(test, not(corespun_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_slot_with_a_message_is_not_closed() {
        let slot = CriticalSlot::new();
        slot.post(|| ()).unwrap();
        assert!(!slot.close());
        assert!(matches!(slot.post(|| ()), Err(PostError::Pending)));
        assert!(slot.is_posted() && slot.get().is_some());
        slot.clear();
        assert!(slot.close());
        assert!(matches!(slot.post(|| ()), Err(PostError::Closed)));
        assert!(slot.close(), "it was closed before");
    }
}
