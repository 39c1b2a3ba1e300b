//! The life of a task: one stage at a time, and two signals from elsewhere.
//!
//! | stage | listed | binds | waker kept | the task |
//! |---|---|---|---|---|
//! | `Sent` | | | | is on its way from elsewhere to its first poll |
//! | `Queued` | ✓ | ✓ | | was spawned by its thread, and waits for its first poll |
//! | `Begun` | ✓ | ✓ | | is in its first poll |
//! | `Waiting` | ✓ | ✓ | ✓ | was polled: waits, is queued, or runs |
//! | `Travels` | | | ✓ | is on its way from one thread to another |
//! | `Doomed` | | ✓ | | met the exit before its first poll, which will end it |
//! | `Gone` | | | | has no future any more |
//!
//! *Listed*: in its thread's live list. *Binds*: keeps its thread on its OS thread, if
//! its future may be `!Send` (R2). *Waker kept*: a counted waker of it is set aside (R5).
//!
//! | from | to | when |
//! |---|---|---|
//! | `Sent`, `Queued` | `Begun` | it is polled first |
//! | `Begun` | `Waiting` | its first poll is pending |
//! | `Waiting` | `Travels` | a poll in which it asked for another thread is pending |
//! | `Travels` | `Waiting` | it is polled on the other thread |
//! | `Queued` | `Doomed` | the exit of its thread comes to it |
//! | any | `Gone` | it ended, was aborted, was cancelled by the exit, or dropped unpolled |
//!
//! The stage is written by the thread's owner, and before the first poll or between two
//! threads by the holder of the `Runnable`; any thread may ask whether it is `Gone`.

use crate::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// See the table of this module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(in crate::task) enum Stage {
    Sent,
    Queued,
    Begun,
    Waiting,
    Travels,
    Doomed,
    Gone,
}

impl Stage {
    /// The stage that was written as `stage as u8`.
    #[inline]
    fn read(written: u8) -> Stage {
        match written {
            0 => Stage::Sent,
            1 => Stage::Queued,
            2 => Stage::Begun,
            3 => Stage::Waiting,
            4 => Stage::Travels,
            5 => Stage::Doomed,
            _ => Stage::Gone,
        }
    }

    #[inline]
    pub(super) fn is_listed(self) -> bool {
        matches!(self, Stage::Queued | Stage::Begun | Stage::Waiting)
    }

    #[inline]
    pub(super) fn binds(self) -> bool {
        self.is_listed() || self == Stage::Doomed
    }

    #[inline]
    pub(super) fn keeps_waker(self) -> bool {
        matches!(self, Stage::Waiting | Stage::Travels)
    }

    /// Whether the table of transitions has this one.
    fn may_become(self, next: Stage) -> bool {
        use Stage::*;
        match next {
            Sent => false,
            Queued => self == Sent,
            Begun => matches!(self, Sent | Queued),
            Waiting => matches!(self, Begun | Travels),
            Travels => self == Waiting,
            Doomed => self == Queued,
            Gone => self != Gone,
        }
    }
}

/// The stage of a task, and what is signalled to it.
pub(in crate::task) struct State {
    stage: AtomicU8,
    /// It is to end at its next poll. Any thread.
    aborted: AtomicBool,
    /// Waits in a queue to be polled. Any thread; for introspection.
    scheduled: AtomicBool,
}

impl State {
    pub(super) fn new() -> Self {
        State {
            stage: AtomicU8::new(Stage::Sent as u8),
            aborted: AtomicBool::new(false),
            scheduled: AtomicBool::new(false),
        }
    }

    /// The stage, for a thread that may change it.
    #[inline]
    pub(super) fn stage(&self) -> Stage {
        Stage::read(self.stage.load(Ordering::Relaxed))
    }

    #[inline]
    pub(super) fn set_stage(&self, next: Stage) {
        debug_assert!(
            self.stage().may_become(next),
            "{:?} → {next:?}",
            self.stage()
        );
        // A thread that sees that the future is gone sees what its end did.
        self.stage.store(next as u8, Ordering::Release);
    }

    /// Whether the future is gone. Any thread.
    #[inline]
    pub(in crate::task) fn is_gone(&self) -> bool {
        self.stage.load(Ordering::Acquire) == Stage::Gone as u8
    }

    #[inline]
    pub(super) fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }

    pub(super) fn set_aborted(&self) {
        self.aborted.store(true, Ordering::Release);
    }

    #[inline]
    pub(in crate::task) fn is_scheduled(&self) -> bool {
        self.scheduled.load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn set_scheduled(&self, scheduled: bool) {
        self.scheduled.store(scheduled, Ordering::Relaxed);
    }
}
