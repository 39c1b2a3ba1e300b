//! What few tasks have, in a box of its own so that the others stay small: a name, a
//! value of the user's, measured times, leave to change the thread.

use std::any::Any;
use std::cell::Cell;
use std::sync::Arc;

use crate::thread::shared::Shared;

/// A value of the user's that goes with a task.
pub(in crate::task) type Metadata = Arc<dyn Any + Send + Sync>;

/// What a task is called, and what its user says of it.
pub(in crate::task) type Label = Option<Box<Labelled>>;

#[derive(Clone, Debug, Default)]
pub(in crate::task) struct Labelled {
    pub(in crate::task) name: Option<Box<str>>,
    pub(in crate::task) metadata: Option<Metadata>,
}

/// Owner only, but for `hop`.
#[derive(Default)]
pub(super) struct Rare {
    pub(super) name: Option<Box<str>>,
    /// Goes with the future.
    pub(super) metadata: Cell<Option<Metadata>>,
    /// Ticks of all polls, and of the longest, where the library measures them.
    pub(super) total: Cell<u64>,
    pub(super) longest: Cell<u64>,
    /// How often the count of polls overflowed.
    pub(super) poll_rounds: Cell<u32>,
    /// Listed after the exit began to cancel, which waits for it.
    pub(super) spared: Cell<bool>,
    pub(super) hop: Hop,
}

/// Where a movable task wants to go, and where it came from: for its own poll, and for
/// the holder of its `Runnable`.
#[derive(Default)]
pub(in crate::task) struct Hop {
    /// The id of the thread that spawned the task, which it is named after.
    pub(super) born_on: u64,
    pub(in crate::task) wanted: Cell<Option<Arc<Shared>>>,
    /// Set between the request and its arrival in a queue.
    pub(super) came_from: Cell<Option<Arc<Shared>>>,
    /// The thread that a hop was to, but that takes no more.
    pub(in crate::task) refused: Cell<Option<Arc<Shared>>>,
}

impl Rare {
    #[cold]
    pub(super) fn labelled(label: Label, born_on: u64) -> Box<Self> {
        let Labelled { name, metadata } = *label.unwrap_or_default();
        let metadata = Cell::new(metadata);
        let hop = Hop {
            born_on,
            ..Hop::default()
        };
        Box::new(Rare {
            name,
            metadata,
            hop,
            ..Rare::default()
        })
    }
}

/// How often a task was polled, and for how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::task) struct PollCounts {
    pub(in crate::task) polls: u64,
    pub(in crate::task) total_ticks: u64,
    pub(in crate::task) longest_ticks: u64,
}
