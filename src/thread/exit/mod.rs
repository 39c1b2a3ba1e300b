//! How a thread ends: what it waits for, what it cancels, and the point after
//! which nothing new can reach it.
//!
//! 1. *Requested*, then *Cancelling*: the exit tests from the next one on cancel
//!    every task that lives at that one, so many per poll, each future dropped here
//!    and now. What they spawn is spared.
//! 2. *Waiting*: messages, pollers and new tasks work as ever, so that shutdown
//!    chains can run. It lasts until nothing holds the thread and no message
//!    is queued, or until the exit timeout, when what is left is cancelled.
//! 3. *Closing*, then *Closed*: the thread takes no task, poller or message of its
//!    own, then what is left is cancelled, so many tasks per poll, then the mailbox
//!    refuses every push. In this order: a destructor that spawns is refused, so no task lives when the
//!    mailbox closes, and a `Runnable` refused from there on holds no future
//!    and may be dropped by any holder. What was pushed before is run.
//! 4. *Done*: every push that succeeded has been run; the thread reads EXITED.

pub(crate) mod ended;
mod holder;
pub(crate) mod live;
pub(crate) mod pending;

use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

pub use holder::ExitHolder;
use holder::named;

use super::local::{Entered, ExitPhase, Local};
use super::part::Part;
use super::poll::activity::Activity;
use super::shared::{self, Shared};
use crate::sync::budget::poll_budget;
use crate::sync::yield_now;

/// How many tasks an exit cancels per poll: each drops a future of the user's.
const CANCEL_BATCH: usize = 128;

impl Local {
    pub(crate) fn request_exit(&self) {
        if self.exit_phase.get() != ExitPhase::None {
            return;
        }
        let clock = &self.shared.library.clock;
        let limit = clock.ticks_from(self.exit_timeout);
        self.exit_deadline.set(clock.now().saturating_add(limit));
        self.exit_phase.set(ExitPhase::Requested);
        self.shared.state.store(shared::EXITING, Ordering::Release);
    }

    /// What an exit would wait for now.
    pub(crate) fn exit_holders(&self) -> Vec<ExitHolder> {
        let mut holders = Vec::new();
        self.parts().for_each(|part| part.holders(&mut holders));
        if self.has_ready_work() {
            holders.push(ExitHolder::Messages);
        }
        holders
    }

    pub(super) fn is_held(&self) -> bool {
        self.parts().any(Part::holds) || self.has_ready_work()
    }

    /// One step of the exit, at the end of a poll: busy if it leaves work for
    /// the next, so that a caller that polls until nothing is done gets to the end.
    #[cold]
    pub(super) fn exit_step(&self, now: u64) -> Activity {
        let before = self.exit_phase.get();
        self.advance_exit(now);
        Activity::from(match self.exit_phase.get() {
            ExitPhase::Cancelling | ExitPhase::Closing | ExitPhase::Closed => true,
            ExitPhase::Waiting => before != ExitPhase::Waiting && self.has_ready_work(),
            _ => false,
        })
    }

    /// Cancels a batch of what is doomed; says whether that was all.
    fn cancel_batch(&self) -> bool {
        (0..CANCEL_BATCH).any(|_| !self.live.cancel_one())
    }

    fn advance_exit(&self, now: u64) {
        if self.exit_phase.get() == ExitPhase::Requested {
            self.live.doom_old();
            self.exit_phase.set(ExitPhase::Cancelling);
        }
        if self.exit_phase.get() == ExitPhase::Cancelling {
            if !self.cancel_batch() {
                return;
            }
            self.exit_phase.set(ExitPhase::Waiting);
        }
        if self.exit_phase.get() == ExitPhase::Waiting {
            if self.is_held() {
                if now < self.exit_deadline.get() {
                    return;
                }
                tracing::error!(
                    thread = self.shared.name(),
                    "exit timed out and is forced; still held by: {}",
                    named(&self.exit_holders())
                );
            }
            self.begin_closing();
        }
        if self.exit_phase.get() == ExitPhase::Closing {
            if !self.cancel_batch() {
                return;
            }
            self.close();
        }
        if self.exit_phase.get() == ExitPhase::Closed {
            // SAFETY: this `Local` is the owner's, so the caller is the consumer.
            let drained = unsafe { self.shared.mailbox.is_drained() };
            if drained && self.ready.is_empty() && self.shared.critical.close() {
                self.finish_exit();
            }
        }
    }

    fn begin_closing(&self) {
        self.exit_phase.set(ExitPhase::Closing);
        self.live.doom_all();
    }

    fn close(&self) {
        self.cancel_everything();
        debug_assert_eq!(self.live.len(), 0);
        self.shared.mailbox.close();
        self.exit_phase.set(ExitPhase::Closed);
    }

    /// Cancels all that could hold the thread. `Closing` refuses what user
    /// content makes when it is dropped, so this comes to an end.
    fn cancel_everything(&self) {
        self.parts().for_each(|part| part.cancel(self));
    }

    fn finish_exit(&self) {
        // The last messages may have left timers.
        self.cancel_everything();
        self.parts().rev().for_each(|part| part.end(self));
        self.exit_phase.set(ExitPhase::Done);
        self.shared.state.store(shared::EXITED, Ordering::Release);
        self.shared.library.forget_thread(self.shared.id);
        let wakers = match self.shared.exit_wakers.lock() {
            Ok(mut wakers) => std::mem::take(&mut *wakers),
            Err(poisoned) => std::mem::take(&mut *poisoned.into_inner()),
        };
        for waker in wakers {
            self.wake_contained(waker);
        }
        self.tell_ends();
        self.shared.end_all_moves();
    }

    /// The end of a thread whose right to be polled is dropped: everything is
    /// cancelled here, messages that wait are dropped unrun.
    pub(super) fn abandon(self: &Rc<Self>) {
        if self.exit_phase.get() == ExitPhase::Done {
            return;
        }
        let _entered = Entered::new(self);
        self.request_exit();
        let mut holders = self.exit_holders();
        holders.retain(|holder| *holder != ExitHolder::Messages);
        self.begin_closing();
        // Tasks go first, as they do in order.
        while !self.cancel_batch() {}
        self.close();
        let mut unrun = 0;
        while !self.shared.critical.close() {
            unrun += 1;
            self.shared.critical.clear();
        }
        loop {
            while let Some(message) = self.take_unrun() {
                unrun += usize::from(!message.is_task());
                self.drop_contained(message);
            }
            // SAFETY: this `Local` is the owner's, so the caller is the consumer.
            match unsafe { self.shared.mailbox.pop() } {
                Some(message) => {
                    unrun += usize::from(!message.is_task());
                    self.drop_contained(message);
                }
                // SAFETY: as above.
                None if unsafe { self.shared.mailbox.is_drained() } => break,
                // A sender claimed a place and is about to write it.
                None => yield_now(),
            }
        }
        if unrun > 0 {
            tracing::warn!(
                thread = self.shared.name(),
                unrun,
                "thread dropped without exit; its waiting messages are dropped"
            );
        }
        if !holders.is_empty() {
            tracing::warn!(
                thread = self.shared.name(),
                "thread dropped without exit; it was still held by: {}",
                named(&holders)
            );
        }
        self.finish_exit();
    }
}

/// Completes when a thread reads EXITED; made by
/// [`SpdkThread::exit`](super::SpdkThread::exit).
///
/// The exit goes on whether or not this is awaited.
///
/// # Cancel safety
///
/// Dropping it only stops the waiting.
///
/// # Examples
///
/// ```
/// use corespun::{task, thread::ThreadLib};
///
/// let library = ThreadLib::new();
/// let mut worker = library.thread().build()?.attach();
/// let mut manager = library.thread().build()?.attach();
/// let exit = worker.handle().exit();
/// let ended = manager.enter(|| task::spawn(exit));
/// manager.poll(0, 0);
/// assert!(!ended.is_finished());
/// while !worker.is_exited() {
///     worker.poll(0, 0);
/// }
/// manager.poll(0, 0);
/// assert!(ended.is_finished());
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[must_use = "futures do nothing unless awaited; the exit goes on without"]
pub struct Exit {
    pub(super) shared: Arc<Shared>,
}

impl Future for Exit {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let budget = ready!(poll_budget(cx));
        let mut wakers = match self.shared.exit_wakers.lock() {
            Ok(wakers) => wakers,
            Err(poisoned) => poisoned.into_inner(),
        };
        // Looked at under the lock that the end of the exit takes afterwards.
        if self.shared.state.load(Ordering::Acquire) == shared::EXITED {
            budget.progressed();
            return Poll::Ready(());
        }
        if !wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            wakers.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl fmt::Debug for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exit")
            .field("thread", &self.shared.name())
            .finish()
    }
}
