//! The future of a task: the user's, polled under a guard, and dropped in place as
//! soon as it has ended or is cancelled.

use std::cell::UnsafeCell;
use std::marker::PhantomPinned;
use std::pin::Pin;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use super::meta::TaskMeta;
use crate::sync::budget;
use crate::task::join::{JoinError, Outcome};
use crate::thread::local::Local;
use crate::thread::panic::{PanicSource, contain, payload_text};
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

    /// Drops the future and all that made the thread remember the task; gives
    /// back the waker set aside for it. Owner only, not while the future is
    /// being polled.
    fn release(&self, local: &Local) -> Option<Waker> {
        let meta = self.meta();
        // SAFETY: the owner runs this outside of the future's poll, so nothing
        // else refers into the cell. The place was never moved since the first
        // poll, and the future is dropped in it.
        let future = unsafe { &mut *self.future.get() };
        if future.is_some() {
            if let Err(payload) = contain(|| *future = None) {
                local.report_panic(PanicSource::Drop, Some(&meta.node.describe()), payload);
                // The assignment stored `None` although the old value's
                // destructor unwound; the drop is not tried again.
            }
            meta.finish();
        }
        // SAFETY: the caller is the owner, and a task is only ever listed on its
        // own thread.
        unsafe { local.live.remove(&meta.node) };
        meta.unbind();
        meta.take_kept()
    }

    /// The first poll: from here on the future stays where it is, and the exit
    /// can reach it. Says whether the thread still takes tasks.
    fn place(&self, local: &Local) -> bool {
        let meta = self.meta();
        meta.placed.set(true);
        let subject = ptr::from_ref(self).cast::<()>();
        if meta.node.is_listed() {
            // SAFETY: listed by `list`; `self` is pinned until dropped, and
            // `drop` and `release` take the node off the list.
            unsafe { local.live.set_cancel(&meta.node, cancel::<F>, subject) };
            return true;
        }
        if local.refuses_work() {
            return false;
        }
        // SAFETY: as above; the task is on no list, and by R1 this is the owner.
        unsafe { local.live.insert(&meta.node, cancel::<F>, subject) };
        meta.bind(local);
        true
    }
}

/// Cancels a task whose future is in place: the exit's way.
///
/// # Safety
///
/// `subject` is a pinned, live `TaskFuture<F>` whose task is listed on the
/// current thread, and its future is not being polled.
unsafe fn cancel<F: Future>(subject: *const ()) {
    // SAFETY: by this function's contract.
    let task = unsafe { &*subject.cast::<TaskFuture<F>>() };
    let kept = Local::with_current(|local| task.release(local));
    // Lets the task end, so that whoever joins it hears of it.
    if let Some(waker) = kept.flatten() {
        waker.wake();
    }
}

/// Cancels a listed task that was never polled: its `Runnable` waits in the
/// thread's queue, and the poll that it leads to drops the future. Until then
/// the task binds its thread.
///
/// # Safety
///
/// `subject` is the metadata of a task listed on the current thread.
pub(super) unsafe fn cancel_unpolled(subject: *const ()) {
    // SAFETY: by this function's contract.
    let meta = unsafe { &*subject.cast::<TaskMeta>() };
    meta.node.doomed.set(true);
    meta.aborted.store(true, Ordering::Release);
    Local::with_current(|local| {
        // SAFETY: the current thread is the owner.
        unsafe { local.live.remove(&meta.node) };
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
    fn poll_on(&self, local: &Local, cx: &mut Context<'_>) -> Poll<Outcome<F::Output>> {
        let meta = self.meta();
        meta.node.scheduled.store(false, Ordering::Relaxed);
        // Before the task is placed: one that is cancelled is not listed again.
        if meta.aborted.load(Ordering::Acquire) {
            // Of an abort and the exit, the exit is what ended it: that dooms a task
            // before it comes to it.
            let dooms = meta.node.is_listed() && local.live.dooms(&meta.node);
            // SAFETY: by R1 only the owner gets here, and nothing else refers to it.
            let taken = unsafe { (*self.future.get()).is_none() };
            let cause = if meta.node.doomed.get() || dooms || taken {
                JoinError::exited(meta.id())
            } else {
                JoinError::cancelled(meta.id())
            };
            drop(self.release(local));
            return Poll::Ready(Outcome::failed(cause));
        }
        if !meta.placed.get() && !self.place(local) {
            drop(self.release(local));
            return Poll::Ready(Outcome::failed(JoinError::exited(meta.id())));
        }
        if local.live.dooms(&meta.node) {
            // The exit comes to it in a later poll.
            drop(self.release(local));
            return Poll::Ready(Outcome::failed(JoinError::exited(meta.id())));
        }
        // SAFETY: by R1 only the owner gets here, and never from inside this
        // poll; `release` is not called while this reference is in use.
        let Some(future) = (unsafe { &mut *self.future.get() }) else {
            // The exit was here.
            return Poll::Ready(Outcome::failed(JoinError::exited(meta.id())));
        };
        // SAFETY: the task is pinned, and the future is dropped in its place.
        let future = unsafe { Pin::new_unchecked(future) };
        let polled = {
            let _running = Running::new(local, meta);
            contain(|| future.poll(cx))
        };
        let outcome = match polled {
            Ok(Poll::Pending) => {
                if let Some(target) = meta.hop.take_wanted() {
                    self.leave(local, target);
                }
                return Poll::Pending;
            }
            Ok(Poll::Ready(output)) => Outcome::finished(output),
            Err(payload) => {
                // SAFETY: this is the task's poll, which changes nothing now.
                let thread = unsafe { meta.thread() };
                if thread.library.panic_is_fatal() {
                    thread.library.report_panic_text(
                        thread.name(),
                        PanicSource::Task,
                        Some(&meta.node.describe()),
                        payload_text(&*payload),
                    );
                }
                Outcome::panicked(meta.id(), payload, thread.clone(), meta.node.describe())
            }
        };
        // Not the last reference: the `Runnable` that is running has one.
        drop(self.release(local));
        Poll::Ready(outcome)
    }

    /// Sends a movable task on to `target`: takes it off this thread's list, and
    /// makes async-task schedule it, there, when the poll that this ends returns.
    #[cold]
    fn leave(&self, local: &Local, target: Arc<Shared>) {
        let meta = self.meta();
        // SAFETY: the caller is the owner, and the task is listed here.
        unsafe { local.live.remove(&meta.node) };
        meta.placed.set(false);
        // SAFETY: this is the task's poll, and no reference to the thread is in
        // use. The future is `Send` (`Hop` accepts no other), so that it may go.
        let from = unsafe { meta.set_thread(target) };
        meta.hop.set_came_from(from);
        // SAFETY: the future is in the allocation, so that is alive.
        unsafe { meta.waker() }.wake_by_ref();
    }
}

/// What a thread knows while it polls a task: which, and what is left of the
/// poll's budget.
struct Running<'a> {
    local: &'a Local,
    meta: &'a TaskMeta,
    outer: *const (),
    outer_budget: u32,
    start: u64,
}

impl<'a> Running<'a> {
    #[inline]
    fn new(local: &'a Local, meta: &'a TaskMeta) -> Self {
        Running {
            outer: local.running.replace(ptr::from_ref(meta).cast()),
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
    /// measured, but what runs, where somebody watches, is what it is inside of.
    fn begins(local: &Local, meta: &TaskMeta) -> u64 {
        if local.eager_depth.get() > 0 {
            return local.shared.library.clock.now();
        }
        local.callback_begins(meta.node.occupant())
    }

    /// Returns for how long it was, in ticks.
    fn ends(local: &Local, meta: &TaskMeta, start: u64) -> u64 {
        if local.eager_depth.get() > 0 {
            return local.shared.library.clock.now().saturating_sub(start);
        }
        local.callback_ends(meta.node.occupant(), start)
    }
}

impl Drop for Running<'_> {
    #[inline]
    fn drop(&mut self) {
        let Running { local, meta, .. } = self;
        local.running.set(self.outer);
        budget::replace(self.outer_budget);
        let ticks = match local.times_tasks {
            true => Self::ends(local, meta, self.start),
            false => 0,
        };
        meta.node.count_poll(ticks);
    }
}

/// The task that this OS thread is polling, if `f` is called from within one.
pub(in crate::task) fn with_running<R>(f: impl FnOnce(&TaskMeta) -> R) -> Option<R> {
    Local::with_current(|local| {
        let running = local.running.get().cast::<TaskMeta>();
        // SAFETY: set by `Running`, for the duration of the task's poll, which
        // this is a part of; the metadata lives as long as the task.
        unsafe { running.as_ref() }.map(f)
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
        if let Err(payload) = contain(|| *future = None) {
            // SAFETY: the future is dropped by who has the `Runnable`.
            let thread = unsafe { meta.thread() };
            let name = meta.node.describe();
            let library = &thread.library;
            library.report_panic(thread.name(), PanicSource::Drop, Some(&name), payload);
        }
        meta.finish();
        // What is listed or binds is dropped by the owner (R2, R3).
        if meta.node.is_listed() {
            Local::with_current(|local| {
                // SAFETY: the caller is the owner.
                unsafe { local.live.remove(&meta.node) };
            });
        }
        meta.unbind();
        // Not the last reference: a `Runnable` is being dropped.
        drop(meta.take_kept());
    }
}
