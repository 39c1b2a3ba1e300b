//! The parts of a task's waker, without counting one.
//!
//! async-task gives a waker's table away only with a counted waker: two atomic
//! operations, for what is the same for all tasks with the same type of future. So the
//! tables of a few types are remembered. They are constants of the program: which
//! library, or which thread, made the task makes no difference. The type of the future
//! decides which: all tasks are made in one place, `spawn` beside this, with one type of
//! metadata and one function that schedules. A second such place needs a table of its own.

use std::any::TypeId;
use std::cell::Cell;
use std::hash::{Hash, Hasher};
use std::ptr::{self, NonNull};
use std::task::RawWakerVTable;

use super::meta::TaskMeta;
use crate::sync::async_task::Runnable;

/// How many are remembered; a power of two.
const PLACES: usize = 16;

/// The table of the wakers of tasks with this type of future.
type Known = Option<(TypeId, &'static RawWakerVTable)>;

thread_local! {
    static KNOWN: [Cell<Known>; PLACES] = const { [const { Cell::new(None) }; PLACES] };
}

/// Has a new task with the future `F` know the parts of its waker.
#[inline]
pub(super) fn with_waker<F: 'static>(runnable: Runnable<TaskMeta>) -> Runnable<TaskMeta> {
    let of = TypeId::of::<F>();
    let data = runnable.into_raw();
    // SAFETY: `data` is what `into_raw` has just made of a `Runnable` of this very type,
    // which it consumed.
    let runnable = unsafe { Runnable::<TaskMeta>::from_raw(data) };
    let known = KNOWN.with(|known| known[place(of)].get());
    // A model must do the same in each of its runs.
    let vtable = match known {
        Some((known, vtable)) if known == of && !cfg!(corespun_loom) => vtable,
        _ => learn(of, &runnable, data),
    };
    runnable.metadata().set_waker(data.as_ptr(), vtable);
    runnable
}

#[cold]
fn learn(of: TypeId, runnable: &Runnable<TaskMeta>, data: NonNull<()>) -> &'static RawWakerVTable {
    let waker = runnable.waker();
    // async-task does not say so, and it might change.
    assert!(ptr::eq(waker.data(), data.as_ptr()), "a waker is its task");
    let vtable = waker.vtable();
    KNOWN.with(|known| known[place(of)].set(Some((of, vtable))));
    vtable
}

#[inline]
fn place(of: TypeId) -> usize {
    let mut hash = Folded(0);
    of.hash(&mut hash);
    hash.0 as usize % PLACES
}

/// A `TypeId` is a hash already.
struct Folded(u64);

impl Hasher for Folded {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, part: u64) {
        self.0 ^= part;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
