//! The locks that a thread holds: none may be held when a callback returns.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use super::{GONE, LockState, SpinlockMisuse};
use crate::thread::local::Local;
use crate::thread::panic::{PanicSource, contain};

/// The locks that a thread holds. Owner only.
#[derive(Default)]
pub(crate) struct HeldLocks {
    count: Cell<usize>,
    locks: RefCell<Vec<Arc<LockState>>>,
}

impl HeldLocks {
    pub(super) fn push(&self, lock: Arc<LockState>) {
        self.count.set(self.count.get() + 1);
        self.locks.borrow_mut().push(lock);
    }

    pub(super) fn remove(&self, lock: &Arc<LockState>) -> Option<Arc<LockState>> {
        let mut locks = self.locks.borrow_mut();
        let index = locks.iter().rposition(|held| Arc::ptr_eq(held, lock))?;
        self.count.set(self.count.get() - 1);
        Some(locks.swap_remove(index))
    }

    /// After every callback.
    #[inline]
    pub(in crate::thread) fn check(&self, local: &Local) {
        if self.count.get() > 0 {
            self.report(local);
        }
    }

    /// The callback has returned, so that a hook's panic has no caller to go to.
    #[cold]
    fn report(&self, local: &Local) {
        let locks: Vec<_> = self.locks.borrow().clone();
        for lock in locks {
            let at = lock.locked_at().unwrap_or(lock.made);
            let reported = contain(|| lock.misused(SpinlockMisuse::HeldDuringSwitch, at));
            if let Err(payload) = reported {
                local.report_panic(PanicSource::Hook, Some("spinlock"), payload);
            }
        }
    }

    /// The thread's memory goes. What is still held stays so, by no thread, for
    /// another thread may come to have the address by which an owner is known.
    pub(in crate::thread) fn abandon(&self, local: &Local) {
        for lock in self.locks.take() {
            lock.owner.leave_to(GONE);
            // Perhaps the last to have it, and with that its hook.
            local.drop_contained(lock);
        }
    }
}
