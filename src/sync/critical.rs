//! The critical-message slot of a SpdkThread: one function, posted by a single
//! compare-and-swap, so that a signal handler may do it.

use super::atomic::{AtomicPtr, Ordering};

/// What a critical message may be: a plain function, since a signal handler
/// can neither allocate nor move a closure's content safely.
pub(crate) type CriticalFn = fn();

pub(crate) struct CriticalSlot(AtomicPtr<()>);

impl CriticalSlot {
    pub(crate) fn new() -> Self {
        CriticalSlot(AtomicPtr::new(std::ptr::null_mut()))
    }

    /// Posts `f` unless a message is pending or running. Async-signal-safe.
    pub(crate) fn post(&self, f: CriticalFn) -> bool {
        self.0
            .compare_exchange(
                std::ptr::null_mut(),
                f as *mut (),
                Ordering::SeqCst,
                Ordering::SeqCst,
            )
            .is_ok()
    }

    #[inline]
    pub(crate) fn is_posted(&self) -> bool {
        !self.0.load(Ordering::Acquire).is_null()
    }

    /// The posted message; the slot stays taken until [`CriticalSlot::clear`].
    pub(crate) fn get(&self) -> Option<CriticalFn> {
        let posted = self.0.load(Ordering::Acquire);
        if posted.is_null() {
            return None;
        }
        // SAFETY: the only non-null values ever stored are `CriticalFn`s cast
        // in `post`.
        Some(unsafe { std::mem::transmute::<*mut (), CriticalFn>(posted) })
    }

    /// Makes the slot free again. Owner only, after running the message.
    pub(crate) fn clear(&self) {
        self.0.store(std::ptr::null_mut(), Ordering::Release);
    }
}
