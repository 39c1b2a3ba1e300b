//! What a task that is pending may go on with in the same run of its `Runnable`: a yield
//! that nothing waits for, and the task that it joins, when that is next in any case.
//!
//! To end a run, to be woken and to be run again takes async-task five atomic operations
//! and this crate two passes of the queue. Where the queue would hand the task out again
//! at once, or what it joins and then the task itself, that is done here instead, in the
//! same order and counted like any other run of the poll's batch. The poll of the user's
//! future has returned by then, so nothing that it borrowed is borrowed.
//!
//! One thing is different: a task that is woken otherwise while the task that it joins is
//! run inside its own run is queued when that run ends, as if it had yielded.

use std::ptr;
use std::task::Waker;

use super::future::with_running_on;
use super::joiner::Inside;
use super::meta::TaskMeta;
use crate::thread::at_once::Asked;
use crate::thread::local::Local;

/// How deep tasks may be run inside each other: each takes stack.
const DEPTH: u8 = 16;

/// Has the running task give way when its poll returns, if `waker` is its own. Where this
/// says no, the task is to wake itself.
#[inline]
pub(in crate::task) fn gives_way(waker: &Waker) -> bool {
    let asked = with_running_on(|local, running| {
        running.is_waker(waker) && local.at_once.ask(Asked::GIVES_WAY)
    });
    asked == Some(true)
}

impl TaskMeta {
    /// Has the running task `joiner` go on when the future of this one is gone, without
    /// synchronisation. False where that cannot be done.
    ///
    /// # Safety
    ///
    /// The caller keeps this task alive.
    #[inline]
    pub(in crate::task) unsafe fn join_here(&self, local: &Local, joiner: &TaskMeta) -> bool {
        // SAFETY: passed on.
        if !unsafe { self.stays_on(local) } || self.state.is_gone() {
            return false;
        }
        let this = Asked(ptr::from_ref(self).cast());
        // Until the joiner's poll returns this task cannot end: its thread runs nothing
        // else, so it is alive for the code that finds it there.
        if !self.joiner.is(joiner) && local.at_once.asked() != this && !local.at_once.ask(this) {
            self.joiner.set(joiner);
        }
        true
    }

    /// Forgets the joiner of the task on its own thread, if the caller is there.
    ///
    /// # Safety
    ///
    /// The caller keeps the task alive.
    pub(in crate::task) unsafe fn forget_joiner(&self) {
        Local::with_current(|local| {
            // SAFETY: passed on.
            if unsafe { self.stays_on(local) } {
                if local.at_once.asked() == Asked(ptr::from_ref(self).cast()) {
                    local.at_once.set_asked(Asked::NOTHING);
                }
                drop(self.joiner.take());
            }
        });
    }

    /// The task was pending and has `asked` for something: whether its future is to be
    /// polled again, in the same run. Otherwise it will be woken. Not inlined: most polls
    /// ask for nothing.
    ///
    /// # Safety
    ///
    /// The caller is the task's run, on `local`, outside of the poll of its future.
    #[inline(never)]
    pub(super) unsafe fn goes_on(&self, local: &Local, asked: Asked) -> bool {
        if asked == Asked::GIVES_WAY {
            let alone = local.goes_on_alone();
            if !alone {
                // SAFETY: the task runs.
                unsafe { self.waker() }.wake_by_ref();
            }
            return alone;
        }
        // SAFETY: `join_here` put it there in the poll that has just returned. It was not
        // gone then, and only a run of it on this thread, of which there was none since,
        // or the thread's end makes it so: it is queued or listed, and alive.
        let joined = unsafe { &*asked.0.cast::<TaskMeta>() };
        self.joins(local, joined)
    }

    fn joins(&self, local: &Local, joined: &TaskMeta) -> bool {
        let depth = local.at_once.depth.get();
        let inside = Inside::default();
        let stays = !self.is_movable() && depth < DEPTH;
        let Some(next) = stays
            .then(|| local.next_if_task(joined.runnable()))
            .flatten()
        else {
            joined.joiner.set(self);
            return false;
        };
        // SAFETY: `Entered` calls `leave` before `inside` goes, unless that was told.
        unsafe { joined.joiner.enter(&inside) };
        local.at_once.depth.set(depth + 1);
        let entered = Entered {
            local,
            inside: &inside,
            joined,
        };
        next.run();
        local.check_held_locks();
        drop(entered);
        if !inside.over.get() {
            joined.joiner.set(self);
            return false;
        }
        if local.goes_on_after() {
            return true;
        }
        // Others wait: it goes behind them, as if it had waited for this. async-task queues
        // it when this run returns, which is next.
        local.at_once.keep_turn();
        // SAFETY: the task runs.
        unsafe { self.waker() }.wake_by_ref();
        false
    }
}

/// While a joined task is run inside its joiner's run.
struct Entered<'a> {
    local: &'a Local,
    inside: &'a Inside,
    joined: *const TaskMeta,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let depth = &self.local.at_once.depth;
        depth.set(depth.get() - 1);
        if !self.inside.over.get() {
            // SAFETY: the task has not ended, or it would have told, so that it is
            // listed, and alive.
            unsafe { &*self.joined }.joiner.leave(self.inside);
        }
    }
}
