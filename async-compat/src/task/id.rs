//! What names a task.

use std::cell::Cell;
use std::fmt;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::runtime::context;

/// A task's name: a number that no other task of the process has had.
///
/// # Examples
///
/// ```
/// # use corespun_compat as tokio;
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// let task = tokio::spawn(async { tokio::task::id() });
/// let id = task.id();
/// assert_eq!(task.await.unwrap(), id);
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Id(NonZeroU64);

/// How many numbers an OS thread takes at once, so that not every spawn of every
/// core meets at one counter.
const TAKEN: u64 = 1024;

thread_local! {
    /// The next number of this OS thread, and the end of those it has taken.
    static RANGE: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
}

impl Id {
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let (mut next, mut end) = RANGE.get();
        if next == end {
            next = NEXT.fetch_add(TAKEN, Ordering::Relaxed);
            end = next + TAKEN;
        }
        RANGE.set((next + 1, end));
        Id(NonZeroU64::new(next).expect("2⁶⁴ tasks take centuries"))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Id").field(&self.0.get()).finish()
    }
}

/// The id of the task that calls this.
///
/// # Panics
///
/// Outside of a task: also in the future of a `block_on`.
#[track_caller]
#[must_use]
pub fn id() -> Id {
    try_id().expect("Can't get a task id when not inside a task")
}

/// The id of the task that calls this, if it is one.
#[must_use]
pub fn try_id() -> Option<Id> {
    context::current_task()
}
