//! The task that is to go on when another has ended, if both are of the same thread.
//!
//! One word: no joiner; the metadata of a task, of which a counted waker is set aside
//! (R7); or, told by the lowest bit, the [`Inside`] of a poll that runs the joined task
//! inside itself and looks afterwards.

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::ptr::{self, NonNull};
use std::task::Waker;

use super::meta::TaskMeta;

/// In the word: it is an [`Inside`].
const INSIDE: usize = 1;

/// The poll of a joiner that runs the task which it joins, on the stack of that poll.
#[derive(Default)]
#[repr(align(2))]
pub(super) struct Inside {
    /// The joined task has ended, or has another joiner now.
    pub(super) over: Cell<bool>,
}

/// Owner only (R7).
pub(super) struct Joiner(Cell<*const ()>);

impl Joiner {
    pub(super) const fn nobody() -> Self {
        Joiner(Cell::new(ptr::null()))
    }

    /// Whether `task` is the joiner, by a counted waker.
    #[inline]
    pub(super) fn is(&self, task: &TaskMeta) -> bool {
        ptr::eq(self.0.get(), ptr::from_ref(task).cast())
    }

    /// Makes `task`, which is being polled, the joiner, by a counted waker.
    #[inline]
    pub(super) fn set(&self, task: &TaskMeta) {
        if !self.is(task) {
            drop(self.take());
            // SAFETY: a running task is alive.
            std::mem::forget(Waker::clone(&*unsafe { task.waker() }));
            self.0.set(ptr::from_ref(task).cast());
        }
    }

    /// Has `inside` told of the end, which goes before any other joiner.
    ///
    /// # Safety
    ///
    /// `inside` stays where it is until it is told, or [`Joiner::leave`] was called.
    #[inline]
    pub(super) unsafe fn enter(&self, inside: &Inside) {
        drop(self.take());
        let marked = ptr::from_ref(inside).map_addr(|address| address | INSIDE);
        self.0.set(marked.cast());
    }

    /// Ends [`Joiner::enter`], if `inside` was not told.
    #[inline]
    pub(super) fn leave(&self, inside: &Inside) {
        debug_assert_eq!(self.0.get().addr(), ptr::from_ref(inside).addr() | INSIDE);
        self.0.set(ptr::null());
    }

    /// Forgets the joiner: tells a poll, or returns the waker of a task.
    #[inline]
    pub(super) fn take(&self) -> Option<Waker> {
        let joiner = NonNull::new(self.0.replace(ptr::null()).cast_mut())?;
        if joiner.addr().get() & INSIDE != 0 {
            let inside = joiner.as_ptr().map_addr(|address| address & !INSIDE);
            // SAFETY: by the contract of `enter`.
            unsafe { &*inside.cast::<Inside>() }.over.set(true);
            return None;
        }
        // SAFETY: the reference that `set` set aside keeps the joiner alive (R7), and
        // passes to the caller.
        let waker = unsafe { joiner.cast::<TaskMeta>().as_ref().waker() };
        Some(ManuallyDrop::into_inner(waker))
    }
}
