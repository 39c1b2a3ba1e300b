//! What binds a SpdkThread to its OS thread, in one place.
//!
//! A value of the program's that a thread owns (a callback, a hook, a handler, a
//! completion, a future, a channel's context, the value of a key) and that may not be
//! `Send` is called and dropped by the OS thread that it was made on. Where such
//! a value is stored, a [`Stay`] is made and stored with it, and lives exactly as
//! long; a thread can be parked only while it has none. So what is forgotten in
//! some list, or put back where nobody looks for it, binds its thread as well: it
//! costs a move, not a use after free. A value known to be `Send` gets none.

use std::rc::Rc;

/// Counts the [`Stay`]s of one thread: they are its clones. Owner only.
#[derive(Default)]
pub(crate) struct Anchor(Rc<()>);

/// Binds the thread it was made for as long as it lives.
pub(crate) struct Stay {
    _anchor: Rc<()>,
}

impl Anchor {
    #[inline]
    pub(crate) fn stay(&self) -> Stay {
        Stay {
            _anchor: self.0.clone(),
        }
    }

    /// As [`stay`](Anchor::stay), without a value: for who knows by other means for how
    /// long.
    #[inline]
    pub(crate) fn hold(&self) {
        std::mem::forget(self.stay());
    }

    /// Undoes one [`hold`](Anchor::hold).
    ///
    /// # Safety
    ///
    /// Called at most once for each.
    #[inline]
    pub(crate) unsafe fn let_go(&self) {
        // SAFETY: the count of a `Stay` that was forgotten.
        unsafe { Rc::decrement_strong_count(Rc::as_ptr(&self.0)) }
    }

    /// Whether a [`Stay`] lives.
    #[inline]
    pub(super) fn holds(&self) -> bool {
        Rc::strong_count(&self.0) > 1
    }

    /// Binds the thread by `value`.
    pub(super) fn bind<T>(&self, value: T) -> Bound<T> {
        self.bind_if(true, value)
    }

    /// Binds the thread by `value` if that `stays`, because it may not be `Send`.
    pub(super) fn bind_if<T>(&self, stays: bool, value: T) -> Bound<T> {
        Bound {
            value,
            _stay: stays.then(|| self.stay()),
        }
    }
}

/// A value of the program's with what makes its thread keep it on its OS thread.
pub(super) struct Bound<T> {
    // Dropped first.
    value: T,
    _stay: Option<Stay>,
}

impl<T> Bound<T> {
    #[inline]
    pub(super) fn get(&self) -> &T {
        &self.value
    }

    #[inline]
    pub(super) fn get_mut(&mut self) -> &mut T {
        &mut self.value
    }

    /// The value, which the thread does not own any more.
    pub(super) fn into_inner(self) -> T {
        self.value
    }
}
