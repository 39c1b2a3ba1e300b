//! What the run of a task may go on with when the task is pending, as one more of the
//! poll's batch: the task itself, or the one that is next. What a task asks for is the
//! business of the task floor; here is whether the queue would come to the same.

use std::cell::Cell;
use std::ptr;

use super::message::Message;
use crate::thread::local::Local;

/// What a task asks for in a poll that is pending: nothing, to give way, or to be polled
/// again after the task at this address, as the task floor knows it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked(pub(crate) *const ());

impl Asked {
    pub(crate) const NOTHING: Asked = Asked(ptr::null());
    pub(crate) const GIVES_WAY: Asked = Asked(ptr::without_provenance(1));
}

/// Owner only.
pub(crate) struct AtOnce {
    /// By the task that is being polled.
    asked: Cell<Asked>,
    /// How many tasks are run inside each other.
    pub(crate) depth: Cell<u8>,
    /// The next task of which async-task says that it woke itself was woken otherwise.
    keeps_turn: Cell<bool>,
    /// How many more messages and tasks the poll under way may run.
    pub(super) left: Cell<usize>,
    /// The tick that the poll under way began at.
    pub(super) now: Cell<u64>,
}

impl AtOnce {
    pub(in crate::thread) const fn new() -> Self {
        AtOnce {
            asked: Cell::new(Asked::NOTHING),
            depth: Cell::new(0),
            keeps_turn: Cell::new(false),
            left: Cell::new(0),
            now: Cell::new(0),
        }
    }

    /// The poll of a task begins; returns what the one around it has asked for.
    #[inline]
    pub(crate) fn begin(&self) -> Asked {
        self.asked.replace(Asked::NOTHING)
    }

    /// What was asked for since [`AtOnce::begin`].
    #[inline]
    pub(crate) fn asked(&self) -> Asked {
        self.asked.get()
    }

    #[inline]
    pub(crate) fn set_asked(&self, asked: Asked) {
        self.asked.set(asked);
    }

    /// Asks for it, unless something was asked for.
    #[inline]
    pub(crate) fn ask(&self, asked: Asked) -> bool {
        let first = self.asked.get() == Asked::NOTHING;
        if first {
            self.asked.set(asked);
        }
        first
    }

    /// Says that the task whose run is about to end does not give way, if it is queued.
    #[inline]
    pub(crate) fn keep_turn(&self) {
        self.keeps_turn.set(true);
    }

    /// Whether the task whose run has just ended does not give way.
    #[inline]
    pub(crate) fn takes_turn(&self) -> bool {
        self.keeps_turn.replace(false)
    }
}

impl Local {
    /// Whether the poll under way may run one more task inside the run of one. Not inside
    /// of what has spawned an eager task: that is still borrowing.
    #[inline]
    fn may_run_inside(&self) -> bool {
        self.at_once.left.get() > 0 && self.eager_depth.get() == 0 && !self.is_cut()
    }

    #[inline]
    fn count_run(&self) {
        self.at_once.left.set(self.at_once.left.get() - 1);
    }

    /// Whether the running task, which gives way, is next, as there is nothing that it
    /// could give way to. Then it is to go on: that is counted.
    #[inline]
    pub(crate) fn goes_on_alone(&self) -> bool {
        // The task that it is run inside of may have been woken.
        self.at_once.depth.get() == 0 && self.is_alone() && self.goes_on_after()
    }

    /// Whether the running task, woken just now, is next. Then it is to go on: that is
    /// counted.
    #[inline]
    pub(crate) fn goes_on_after(&self) -> bool {
        let goes_on =
            self.may_run_inside() && self.ready.is_empty() && self.shared.mailbox.is_empty();
        if goes_on {
            self.count_run();
        }
        goes_on
    }

    /// What is next, if it is the task whose `Runnable` has this address. To be run: that
    /// is counted.
    #[inline]
    pub(crate) fn next_if_task(&self, runnable: *const ()) -> Option<Message> {
        if !self.may_run_inside() {
            return None;
        }
        let next = self.next_message_if(|queued| queued.is_task_at(runnable))?;
        self.count_run();
        Some(next)
    }
}
