//! A value that belongs to a SpdkThread and can be kept by what is `Send`.
//!
//! References to the cell may be on any OS thread, at the same time. The value is
//! lent out only while its thread is the current one, to a function that returns
//! before that ends. A thread is current on one OS thread at a time: on that of its
//! one [`ThreadRunner`](crate::thread::ThreadRunner), which is borrowed for as long and can
//! be parked only afterwards. What hands the parked thread to another OS thread
//! orders what was done here before what is done there. So the value needs no lock,
//! and need not be `Sync`; as it is dropped by the holder of the last reference, and
//! used where its thread goes, it must be `Send`.

use std::sync::Arc;

use crate::thread::local::Local;
use crate::thread::shared::Shared;

pub(crate) struct OnThread<T> {
    thread: Arc<Shared>,
    value: T,
}

// SAFETY: by the rule above the value is touched by one OS thread at a time, each
// of which may have it, for it is `Send`.
unsafe impl<T: Send> Sync for OnThread<T> {}

impl<T> OnThread<T> {
    /// A value of the thread that `local` is of.
    pub(crate) fn new(local: &Local, value: T) -> Self {
        OnThread {
            thread: local.shared.clone(),
            value,
        }
    }

    /// Calls `f` with the value, if its thread is the current one.
    #[inline]
    pub(crate) fn with<R>(&self, f: impl FnOnce(&T) -> R) -> Option<R> {
        self.thread.is_current().then(|| f(&self.value))
    }

    pub(crate) fn thread(&self) -> &Arc<Shared> {
        &self.thread
    }
}
