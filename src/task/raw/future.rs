//! The future of a task: the user's, polled under a guard, and dropped in place as
//! soon as it has ended or is cancelled.

use std::cell::UnsafeCell;
use std::marker::PhantomPinned;
use std::pin::Pin;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::meta::TaskMeta;
use super::state::Stage;
use crate::sync::budget;
use crate::task::join::{JoinError, Outcome};
use crate::thread::at_once::Asked;
use crate::thread::live::{LiveNode, Member};
use crate::thread::local::Local;
use crate::thread::panic::{PanicSource, Payload, contain, payload_text};
use crate::thread::shared::Shared;

/// The user's future inside its task.
pub(super) struct TaskFuture<F> {
    meta: NonNull<TaskMeta>,
    /// `None` once the future is gone (R4). A cell, since the exit reaches it
    /// through the live list.
    future: UnsafeCell<Option<F>>,
    _pinned: PhantomPinned,
}

impl<F: Future> TaskFuture<F> {
    /// The future of the task whose metadata is `meta`, in the same allocation.
    pub(super) fn new(meta: &TaskMeta, future: F) -> Self {
        TaskFuture {
            meta: NonNull::from(meta),
            future: UnsafeCell::new(Some(future)),
            _pinned: PhantomPinned,
        }
    }

    fn meta(&self) -> &TaskMeta {
        // SAFETY: the metadata lives in the same allocation, which outlives
        // the future in it.
        unsafe { self.meta.as_ref() }
    }

    /// What the thread's list may do to the task.
    pub(super) const MEMBER: Member = Member {
        cancel: cancel::<F>,
        describe,
        binds,
    };

    /// Drops the future, if it is there. Owner only, not while it is being polled.
    fn drop_future(&self) -> Result<(), Payload> {
        // SAFETY: the owner runs this outside of the future's poll, so nothing
        // else refers into the cell. The place was never moved since the first
        // poll, and the future is dropped in it.
        let future = unsafe { &mut *self.future.get() };
        if future.is_none() {
            return Ok(());
        }
        // The assignment stores `None` also when the old value's destructor
        // unwinds; the drop is not tried again.
        contain(|| *future = None)
    }

    /// Drops the future and all that made the thread remember the task; gives
    /// back the waker set aside for it. Owner only, not while the future is
    /// being polled.
    #[inline]
    fn release(&self, local: &Local) -> Option<Waker> {
        let meta = self.meta();
        if let Err(payload) = self.drop_future() {
            local.report_panic(PanicSource::Drop, Some(&meta.describe()), payload);
        }
        meta.end(Some(local))
    }
}

/// The task's name.
///
/// # Safety
///
/// `node` is that of a task listed on the current thread.
unsafe fn describe(node: *const LiveNode) -> String {
    // SAFETY: by this function's contract.
    unsafe { TaskMeta::of(node) }.describe()
}

/// Whether the task keeps its thread on its OS thread.
///
/// # Safety
///
/// As for [`describe`].
unsafe fn binds(node: *const LiveNode) -> bool {
    // SAFETY: by this function's contract.
    unsafe { TaskMeta::of(node) }.stays()
}

/// Cancels a task: the exit's way. One that was never polled has its `Runnable` in the
/// thread's queue, and the poll that it leads to drops the future.
///
/// # Safety
///
/// `node` is that of a task with the future `F` that is listed on the current thread,
/// and not being polled.
unsafe fn cancel<F: Future>(node: *const LiveNode) {
    Local::with_current(|local| {
        // SAFETY: by this function's contract.
        let meta = unsafe { TaskMeta::of(node) };
        if meta.state.stage() == Stage::Queued {
            // SAFETY: the current thread is the owner.
            return unsafe { meta.doom(local) };
        }
        // SAFETY: `begin` put it there, the future is pinned, and the task is listed, so
        // that it is alive.
        let task = unsafe { &*meta.subject.get().cast::<TaskFuture<F>>() };
        // Lets the task end, so that its joiner hears of it.
        if let Some(waker) = task.release(local) {
            waker.wake();
        }
    });
}

impl<F: Future> Future for TaskFuture<F> {
    type Output = Outcome<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.into_ref().get_ref();
        let polled = Local::with_current(|local| this.poll_on(local, cx));
        polled.expect("a task runs on its SpdkThread (R1)")
    }
}

impl<F: Future> TaskFuture<F> {
    #[inline]
    fn poll_on(&self, local: &Local, cx: &mut Context<'_>) -> Poll<Outcome<F::Output>> {
        let mut asked = Asked::NOTHING;
        loop {
            let polled = self.poll_once(local, cx, &mut asked);
            if asked == Asked::NOTHING
                || polled.is_ready()
                // SAFETY: this is the task's run, and the poll of its future has returned.
                || !unsafe { self.meta().goes_on(local, asked) }
            {
                return polled;
            }
            local.check_held_locks();
        }
    }

    /// One poll of the user's future, and what that has asked for.
    #[inline(always)]
    fn poll_once(
        &self,
        local: &Local,
        cx: &mut Context<'_>,
        asked: &mut Asked,
    ) -> Poll<Outcome<F::Output>> {
        let meta = self.meta();
        meta.state.set_scheduled(false);
        // Before the task is placed: one that is cancelled is not listed again.
        if meta.state.is_aborted() {
            return Poll::Ready(self.aborted(local));
        }
        if meta.state.stage() != Stage::Waiting {
            let subject = ptr::from_ref(self).cast();
            // SAFETY: this is the task's poll, so it is pinned.
            if meta.state.is_gone() || !unsafe { meta.begin(local, subject) } {
                return Poll::Ready(self.exited(local));
            }
        }
        if meta.is_doomed(local) {
            // The exit comes to it in a later poll.
            return Poll::Ready(self.exited(local));
        }
        // SAFETY: by R1 only the owner gets here, and never from inside this
        // poll; `release` is not called while this reference is in use.
        let Some(future) = (unsafe { &mut *self.future.get() }) else {
            return Poll::Ready(self.exited(local));
        };
        // SAFETY: the task is pinned, and the future is dropped in its place.
        let future = unsafe { Pin::new_unchecked(future) };
        let polled = {
            let _running = Running::new(local, meta);
            let polled = contain(|| future.poll(cx));
            *asked = local.at_once.asked();
            polled
        };
        let outcome = match polled {
            Ok(Poll::Pending) => {
                meta.was_pending();
                if let Some(hop) = meta.hop()
                    && let Some(target) = hop.wanted.take()
                {
                    *asked = Asked::NOTHING;
                    self.leave(local, target);
                }
                return Poll::Pending;
            }
            Ok(Poll::Ready(output)) => Outcome::finished(output),
            Err(payload) => self.panicked(payload),
        };
        // Not the last reference: the `Runnable` that is running has one.
        drop(self.release(local));
        Poll::Ready(outcome)
    }

    /// The exit was here, or is about to be.
    #[cold]
    fn exited(&self, local: &Local) -> Outcome<F::Output> {
        drop(self.release(local));
        Outcome::failed(JoinError::exited(self.meta().id()))
    }

    /// The end of a task that was told to.
    #[cold]
    fn aborted(&self, local: &Local) -> Outcome<F::Output> {
        let meta = self.meta();
        // Of an abort and the exit, the exit is what ended it: that dooms a task
        // before it comes to it.
        let exited = match meta.state.stage() {
            Stage::Doomed | Stage::Gone => true,
            _ => meta.is_doomed(local),
        };
        let dropped = self.drop_future();
        drop(meta.end(Some(local)));
        match dropped {
            Ok(()) if exited => Outcome::failed(JoinError::exited(meta.id())),
            Ok(()) => Outcome::failed(JoinError::cancelled(meta.id())),
            // A panic of the task like any other.
            Err(payload) => self.panicked(payload),
        }
    }

    #[cold]
    fn panicked(&self, payload: Payload) -> Outcome<F::Output> {
        let meta = self.meta();
        // SAFETY: this is the task's poll, which changes nothing now.
        let thread = unsafe { meta.thread() };
        if thread.library.panic_is_fatal() {
            thread.library.report_panic_text(
                thread.name(),
                PanicSource::Task,
                Some(&meta.describe()),
                payload_text(&*payload),
            );
        }
        Outcome::panicked(meta.id(), payload, thread.clone(), meta.describe())
    }

    /// Sends a movable task on to `target`: takes it off this thread's list, and
    /// makes async-task schedule it, there, when the poll that this ends returns.
    #[cold]
    fn leave(&self, local: &Local, target: Arc<Shared>) {
        let meta = self.meta();
        // SAFETY: the caller is the owner, and this the end of the task's poll.
        unsafe { meta.depart(local) };
        // SAFETY: this is the task's poll, and no reference to the thread is in
        // use. The future is `Send` (`Hop` is that of no other), so that it may go.
        let from = unsafe { meta.set_thread(target) };
        if let Some(hop) = meta.hop() {
            hop.came_from.set(Some(from));
        }
        // SAFETY: the future is in the allocation, so that is alive.
        unsafe { meta.waker() }.wake_by_ref();
    }
}

/// What a thread knows while it polls a task: which, and what is left of the
/// poll's budget.
struct Running<'a> {
    local: &'a Local,
    meta: &'a TaskMeta,
    outer: *const LiveNode,
    outer_asked: Asked,
    outer_budget: u32,
    start: u64,
}

impl<'a> Running<'a> {
    #[inline]
    fn new(local: &'a Local, meta: &'a TaskMeta) -> Self {
        Running {
            outer: local.running.replace(ptr::from_ref(meta).cast()),
            outer_asked: local.at_once.begin(),
            outer_budget: budget::replace(budget::PER_POLL),
            start: match local.times_tasks {
                true => Self::begins(local, meta),
                false => 0,
            },
            local,
            meta,
        }
    }

    /// Begins to measure; returns when. A poll inside of what spawned the task is
    /// measured, but a watcher sees what it is inside of as what runs.
    fn begins(local: &Local, meta: &TaskMeta) -> u64 {
        if local.eager_depth.get() > 0 {
            return local.shared.library.clock.now();
        }
        local.callback_begins(meta.occupant())
    }

    /// Returns for how long it was, in ticks.
    fn ends(local: &Local, meta: &TaskMeta, start: u64) -> u64 {
        if local.eager_depth.get() > 0 {
            return local.shared.library.clock.now().saturating_sub(start);
        }
        local.callback_ends(meta.occupant(), start)
    }
}

impl Drop for Running<'_> {
    #[inline]
    fn drop(&mut self) {
        let Running { local, meta, .. } = self;
        local.running.set(self.outer);
        local.at_once.set_asked(self.outer_asked);
        budget::replace(self.outer_budget);
        let ticks = match local.times_tasks {
            true => Self::ends(local, meta, self.start),
            false => 0,
        };
        meta.count_poll(ticks);
    }
}

/// The task that this OS thread is polling, if `f` is called from within one.
pub(in crate::task) fn with_running<R>(f: impl FnOnce(&TaskMeta) -> R) -> Option<R> {
    with_running_on(|_, running| f(running))
}

/// [`with_running`], with the thread.
#[inline]
pub(in crate::task) fn with_running_on<R>(f: impl FnOnce(&Local, &TaskMeta) -> R) -> Option<R> {
    Local::with_current(|local| {
        let running = local.running.get().cast::<TaskMeta>();
        // SAFETY: set by `Running`, for the duration of the task's poll, which
        // this is a part of; the metadata lives as long as the task.
        unsafe { running.as_ref() }.map(|running| f(local, running))
    })?
}

impl<F> Drop for TaskFuture<F> {
    fn drop(&mut self) {
        // Already empty after a poll that ended, or the exit (R4).
        let future = self.future.get_mut();
        if future.is_none() {
            return;
        }
        // SAFETY: the metadata outlives the future.
        let meta = unsafe { self.meta.as_ref() };
        let dropped = contain(|| *future = None);
        // SAFETY: the future is dropped by the holder of the `Runnable`.
        let thread = unsafe { meta.thread() };
        if let Err(payload) = dropped {
            let name = meta.describe();
            let library = &thread.library;
            library.report_panic(thread.name(), PanicSource::Drop, Some(&name), payload);
        }
        // What is listed or binds is dropped by the owner (R2, R3). Not the last
        // reference: a `Runnable` is being dropped.
        drop(meta.end(thread.current_local()));
    }
}
