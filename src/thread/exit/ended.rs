//! What hears of the end of a thread: things of higher floors that may have
//! waiters, which would wait for ever. In order, or when the right to poll the
//! thread is dropped.

use std::cell::RefCell;
use std::sync::Arc;

use slab::Slab;

use crate::thread::local::{ExitPhase, Local};
use crate::thread::panic::{PanicSource, contain};

/// Something that ends with its thread.
pub(crate) trait EndsWithThread {
    /// The thread has exited. Called by its owner, once.
    fn thread_ended(&self);
}

/// Finds one again, to take it out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EndKey(usize);

/// Owner only.
#[derive(Default)]
pub(in crate::thread) struct EndList(RefCell<Slab<Arc<dyn EndsWithThread>>>);

impl EndList {
    fn take_any(&self) -> Option<Arc<dyn EndsWithThread>> {
        let mut list = self.0.borrow_mut();
        let (key, _) = list.iter().next()?;
        list.try_remove(key)
    }
}

impl Local {
    /// Has `what` told of the thread's end, now if that has been.
    pub(crate) fn tell_end(&self, what: Arc<dyn EndsWithThread>) -> Option<EndKey> {
        if self.exit_phase.get() == ExitPhase::Done {
            what.thread_ended();
            return None;
        }
        let list = &self.rare().ends.0;
        Some(EndKey(list.borrow_mut().insert(what)))
    }

    /// Takes one out that need not be told any more. A key is not given out again
    /// after the end, so that it finds nothing then.
    pub(crate) fn forget_end(&self, key: EndKey) {
        let Some(rare) = self.existing_rare() else {
            return;
        };
        let removed = rare.ends.0.borrow_mut().try_remove(key.0);
        drop(removed);
    }

    /// Tells all: the last step of the exit.
    pub(in crate::thread) fn tell_ends(&self) {
        let Some(rare) = self.existing_rare() else {
            return;
        };
        // Wakers are foreign code, which may take others out.
        while let Some(what) = rare.ends.take_any() {
            if let Err(payload) = contain(|| what.thread_ended()) {
                self.report_panic(PanicSource::Drop, None, payload);
            }
            self.drop_contained(what);
        }
    }
}
