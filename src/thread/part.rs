//! The parts of a thread: all that lives on it, as its exit and its placement see it.
//!
//! An exit asks each part whether it holds the thread, and has it let go; a move of the
//! thread asks each what binds it. Neither knows what the parts are: one of a later kind
//! is an implementation of [`Part`] and a line of [`PARTS`]. What waits in the queues of
//! the thread is no part, for an exit has it run instead of cancelling it.

use std::any::Any;

use super::exit::ExitHolder;
use super::local::Local;
use super::placement::bound::BoundBy;

/// Something that lives on a thread and takes part in its exit. Owner only.
///
/// `Any`, so that the floor which a part belongs to finds it again where this floor, not
/// knowing the type, keeps it for that one.
pub(crate) trait Part: Any {
    /// Whether it keeps the thread from reading EXITED.
    fn holds(&self) -> bool {
        false
    }

    /// Names what does.
    fn holders(&self, _holders: &mut Vec<ExitHolder>) {}

    /// Names what keeps the thread on its OS thread. Says by how many references to
    /// `Local` it does so.
    fn binders(&self, _by: &mut Vec<BoundBy>) -> usize {
        0
    }

    /// Lets go of all that could hold the thread: the exit is forced, or over. User
    /// content that is dropped may add more, which is let go of too. Called again at
    /// the end, for what the last messages have left.
    fn cancel(&self, _local: &Local) {}

    /// Drops what is left, which held nothing, and takes no more: the last that happens
    /// before EXITED.
    fn end(&self, _local: &Local) {}
}

/// Finds a thread's part of one kind, if it has any of that.
type Find = fn(&Local) -> Option<&dyn Part>;

/// The kinds of parts. They are named and cancelled in this order, and end in the opposite
/// one: a destructor finds what stands before it.
const PARTS: [Find; 8] = [
    |local| Some(&local.pollers),
    |local| Some(&local.live),
    |local| Some(&local.timers),
    |local| Some(&**local.channels.get()?),
    |local| Some(&local.existing_rare()?.keys),
    |local| Some(&local.existing_rare()?.pending),
    |local| Some(&local.existing_rare()?.post_pollers),
    |local| Some(&**local.interrupts.get()?),
];

impl Local {
    /// The parts that the thread has. Each is looked for when its turn comes: a destructor
    /// may just have made it.
    pub(super) fn parts(&self) -> impl DoubleEndedIterator<Item = &dyn Part> {
        PARTS.iter().filter_map(|find| find(self))
    }
}
