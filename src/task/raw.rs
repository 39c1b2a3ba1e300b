//! A task under the surface: the future that wraps the user's inside the
//! async-task allocation, its metadata, and the schedule function.
//!
//! async-task's own local spawn ties a task to an OS thread; here a task is
//! tied to a SpdkThread, by these rules, on which every `unsafe` of this room
//! rests:
//!
//! - **R1** A `Runnable` is run by the owner of its SpdkThread only: `schedule`
//!   puts it into that thread's queues, and nobody else takes it out.
//! - **R2** A task whose future may be `!Send` is counted among what keeps its
//!   thread on its OS thread from before it can be woken until its future is
//!   gone, and it is listed in the thread's live list for as long, unless the
//!   exit met it unpolled: then its one `Runnable` waits in the owner's queue.
//! - **R3** No thread closes its mailbox while its live list holds anything,
//!   and nothing is listed any more by then. So whoever gets a `Runnable` back
//!   from a closed mailbox holds a task whose future is gone, or one that was
//!   spawned from elsewhere and never polled, and those hold only what was
//!   `Send`. Dropping it is sound anywhere.
//!   A movable task between two threads is on no list; its future is `Send` for
//!   as long as it lives, so the same holds for it.
//! - **R4** The future is dropped in place, by the owner, as soon as it is
//!   finished, aborted or cancelled by the exit; what async-task drops later is
//!   an empty shell.
//! - **R5** While a task has its future, one counted waker of it is set aside,
//!   so that nobody else's reference is the last. async-task frees a detached
//!   task that returned from a poll without leaving a waker anywhere, and does
//!   not drop its future: the live list would point at nothing, and pinned
//!   memory would go without a destructor. A task that nobody can wake any more
//!   therefore stays until its thread exits, which names it.
//! - **R6** The thread of a task changes only inside its own poll, and is read
//!   only inside it, by who has its `Runnable`, or by the owner of a thread that
//!   lists it. While a task runs, its wakes only mark it; async-task schedules it
//!   when the poll returns. So nobody reads the thread while it changes, and the
//!   one `Runnable` goes where it says. The thread of a task that is not movable
//!   never changes, so that whoever keeps the task alive may read it.
//! - **R7** The joiner of a task is a task of ours, of which one counted waker is
//!   set aside, so that its metadata is alive. It is touched by the owner of its thread only, while
//!   that is the current one, and movable tasks have none. Who drops the future
//!   elsewhere (R3) does so before anybody could have joined it: the handle is
//!   given out after that.

use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomPinned;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::panic::Location;
use std::pin::Pin;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};

use async_task::{FallibleTask, Runnable, ScheduleInfo, WithInfo};

use super::TaskId;
use super::join::{JoinError, JoinHandle, Outcome};
use super::movable::Hop;
use crate::thread::live::LiveNode;
use crate::thread::local::Local;
use crate::thread::message::{Message, MessageVTable, Payload};
use crate::thread::panic::{PanicSource, contain, payload_text};
use crate::thread::shared::Shared;

pub(crate) type RawTask<T> = FallibleTask<Outcome<T>, TaskMeta>;

/// What is known of a task wherever its `Runnable` or waker is.
pub(crate) struct TaskMeta {
    /// Owner of the thread only, except before the task is first scheduled.
    pub(super) node: LiveNode,
    thread: UnsafeCell<ManuallyDrop<Arc<Shared>>>,
    pub(super) aborted: AtomicBool,
    pub(super) finished: AtomicBool,
    /// Whether the future may be `!Send`. Owner only.
    stays: Cell<bool>,
    /// Whether it is counted in `Local::not_send`. Owner only.
    counted: Cell<bool>,
    /// Whether a counted waker is set aside (R5). For whoever may drop the
    /// future only.
    kept: Cell<bool>,
    /// Whether the first poll was. Owner only.
    placed: Cell<bool>,
    /// The task of the same thread that waits for this one's end (R7), by a
    /// counted waker.
    joiner: Cell<Option<NonNull<TaskMeta>>>,
    pub(super) hop: Hop,
    /// The parts of the task's waker, not counted as a reference. Written once,
    /// before the task is first scheduled.
    waker_data: Cell<*const ()>,
    waker_vtable: Cell<Option<&'static RawWakerVTable>>,
}

// SAFETY: `node`, `stays`, `counted`, `kept`, `placed` and `joiner` are touched by the owner
// of the thread only, or by whoever drops the only `Runnable` of a task that was
// never polled (R1, R2, R3, R7), `thread` and `hop` by those whom R6 names; the waker
// parts are written before the task is shared and only read
// afterwards; the rest is `Send + Sync`.
unsafe impl Send for TaskMeta {}
// SAFETY: as above.
unsafe impl Sync for TaskMeta {}

impl TaskMeta {
    pub(super) fn new(
        thread: Arc<Shared>,
        id: TaskId,
        location: &'static Location<'static>,
        name: Option<Box<str>>,
        kind: TaskKind,
    ) -> Self {
        TaskMeta {
            node: LiveNode::new(location, name, id.into()),
            thread: UnsafeCell::new(ManuallyDrop::new(thread)),
            aborted: AtomicBool::new(false),
            finished: AtomicBool::new(false),
            stays: Cell::new(kind == TaskKind::Bound),
            counted: Cell::new(false),
            kept: Cell::new(false),
            placed: Cell::new(false),
            joiner: Cell::new(None),
            hop: Hop::new(kind == TaskKind::Movable),
            waker_data: Cell::new(ptr::null()),
            waker_vtable: Cell::new(None),
        }
    }

    pub(super) fn id(&self) -> TaskId {
        self.node.id.into()
    }

    /// Whether the future may be `!Send`. Owner only.
    pub(super) fn stays(&self) -> bool {
        self.stays.get()
    }

    /// The thread that runs the task.
    ///
    /// # Safety
    ///
    /// The caller is one of those whom R6 lets read it, and drops the reference
    /// before the task's poll, if it is in one, changes the thread.
    pub(super) unsafe fn thread(&self) -> &Arc<Shared> {
        // SAFETY: by this function's contract nobody writes meanwhile.
        unsafe { &*self.thread.get() }
    }

    /// Gives the task another thread, and returns the one before.
    ///
    /// # Safety
    ///
    /// As R6 says for a change; or the caller has the `Runnable`.
    pub(super) unsafe fn set_thread(&self, thread: Arc<Shared>) -> Arc<Shared> {
        // SAFETY: by this function's contract nobody else reads or writes.
        let place = unsafe { &mut *self.thread.get() };
        ManuallyDrop::into_inner(std::mem::replace(place, ManuallyDrop::new(thread)))
    }

    /// The task's waker, borrowed.
    ///
    /// # Safety
    ///
    /// The task's allocation is alive while the result is used: the caller has
    /// its `Runnable`, a `Waker` or the join handle of it, or its future.
    pub(super) unsafe fn waker(&self) -> ManuallyDrop<Waker> {
        let vtable = self.waker_vtable.get().expect("set by `allocate`");
        let raw = RawWaker::new(self.waker_data.get(), vtable);
        // SAFETY: data and table came from a waker of this task; it is not
        // dropped, so the reference count stays right, and the allocation is
        // alive by this function's contract.
        ManuallyDrop::new(unsafe { Waker::from_raw(raw) })
    }

    /// Whether `waker` is the task's own.
    pub(super) fn is_waker(&self, waker: &Waker) -> bool {
        let vtable = self.waker_vtable.get();
        waker.data() == self.waker_data.get()
            && vtable.is_some_and(|vtable| ptr::eq(vtable, waker.vtable()))
    }

    /// Sets a counted waker aside (R5).
    fn keep(&self, waker: Waker) {
        self.waker_data.set(waker.data());
        self.waker_vtable.set(Some(waker.vtable()));
        self.kept.set(true);
        std::mem::forget(waker);
    }

    /// The waker that was set aside; for who has just dropped the future.
    fn take_kept(&self) -> Option<Waker> {
        if !self.kept.replace(false) {
            return None;
        }
        // SAFETY: the reference that was set aside kept the allocation alive,
        // and passes to the caller.
        Some(ManuallyDrop::into_inner(unsafe { self.waker() }))
    }

    /// Whether the current thread is the task's, and always was.
    ///
    /// # Safety
    ///
    /// The caller keeps the task alive.
    #[inline]
    unsafe fn stays_here(&self) -> bool {
        // SAFETY: the thread of a task that is not movable never changes (R6).
        !self.hop.is_movable() && unsafe { self.thread() }.is_current()
    }

    /// Has the running task `joiner` woken when the future of this one is gone,
    /// without synchronisation. False where that cannot be done.
    ///
    /// # Safety
    ///
    /// The caller keeps this task alive.
    #[inline]
    pub(super) unsafe fn join_here(&self, joiner: &TaskMeta) -> bool {
        // SAFETY: passed on.
        if !unsafe { self.stays_here() } || self.finished.load(Ordering::Relaxed) {
            return false;
        }
        // This is the owner, on the task's thread (R7).
        let pointer = NonNull::from(joiner);
        if self.joiner.get() != Some(pointer) {
            drop(self.take_joiner());
            // SAFETY: a running task is alive.
            std::mem::forget(Waker::clone(&*unsafe { joiner.waker() }));
            self.joiner.set(Some(pointer));
        }
        true
    }

    /// The waker of the task that joins this one on its thread. For the owner.
    #[inline]
    fn take_joiner(&self) -> Option<Waker> {
        let joiner = self.joiner.take()?;
        // SAFETY: the reference that `join_here` set aside keeps the joiner
        // alive (R7), and passes to the caller.
        Some(ManuallyDrop::into_inner(unsafe { joiner.as_ref().waker() }))
    }

    /// Forgets who joins the task on its own thread, if the caller is there.
    ///
    /// # Safety
    ///
    /// The caller keeps the task alive.
    pub(super) unsafe fn forget_joiner(&self) {
        // SAFETY: passed on.
        if unsafe { self.stays_here() } {
            drop(self.take_joiner());
        }
    }

    /// Says that the future is gone. For who has just dropped it.
    #[inline]
    fn finish(&self) {
        self.finished.store(true, Ordering::Release);
        // async-task says so only when the poll has returned. The joiner runs
        // after that, or, if it has gone to another thread, asks async-task
        // itself.
        if let Some(joiner) = self.take_joiner() {
            joiner.wake();
        }
    }

    /// Counts the task among what keeps its thread here. Owner only.
    fn count(&self, local: &Local) {
        if self.stays.get() && !self.counted.replace(true) {
            local.not_send.set(local.not_send.get() + 1);
        }
    }

    /// Owner only.
    fn uncount(&self, local: &Local) {
        if self.counted.replace(false) {
            local.not_send.set(local.not_send.get() - 1);
        }
    }

    /// Makes the task end with [`JoinError::is_cancelled`] at its next poll.
    ///
    /// # Safety
    ///
    /// The caller has the task's join handle or a counted waker.
    pub(super) unsafe fn abort(&self) {
        self.aborted.store(true, Ordering::Release);
        // Either the wake schedules the task, or it is scheduled already; in
        // both cases its next poll sees what was stored before.
        // SAFETY: passed on.
        unsafe { self.waker() }.wake_by_ref();
    }
}

impl Drop for TaskMeta {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: taken once, here.
        let thread = unsafe { ManuallyDrop::take(self.thread.get_mut()) };
        Local::give_back_shared(thread);
    }
}

/// What a task's future lets be done with it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum TaskKind {
    /// It may be `!Send`: stays, and keeps its thread, on its OS thread.
    Bound,
    /// It is `Send`: goes where its thread goes.
    Send,
    /// It is `Send` and may change its thread.
    Movable,
}

/// The user's future inside its task.
struct TaskFuture<F> {
    meta: NonNull<TaskMeta>,
    /// `None` once the future is gone (R4). A cell, since the exit reaches it
    /// through the live list.
    future: UnsafeCell<Option<F>>,
    _pinned: PhantomPinned,
}

impl<F: Future> TaskFuture<F> {
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
        meta.uncount(local);
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
        meta.count(local);
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
/// the task stays counted.
///
/// # Safety
///
/// `subject` is the metadata of a task listed on the current thread.
unsafe fn cancel_unpolled(subject: *const ()) {
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
            let cause = if meta.node.doomed.get() {
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
            outer_budget: local.budget.replace(super::budget::PER_POLL),
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
        local.budget.set(self.outer_budget);
        let ticks = match local.times_tasks {
            true => Self::ends(local, meta, self.start),
            false => 0,
        };
        meta.node.count_poll(ticks);
    }
}

/// The task that this OS thread is polling, if `f` is called from within one.
pub(super) fn with_running<R>(f: impl FnOnce(&TaskMeta) -> R) -> Option<R> {
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
        // What is listed or counted is dropped by the owner (R2, R3).
        if meta.node.is_listed() || meta.counted.get() {
            Local::with_current(|local| {
                // SAFETY: the caller is the owner.
                unsafe { local.live.remove(&meta.node) };
                meta.uncount(local);
            });
        }
        // Not the last reference: a `Runnable` is being dropped.
        drop(meta.take_kept());
    }
}

/// How a task comes into being.
pub(super) enum Origin<'a> {
    /// Spawned by its own thread.
    Local(&'a Local, FirstPoll),
    /// Spawned from elsewhere.
    Remote,
}

/// When a task that its own thread spawns is polled first.
#[derive(Clone, Copy)]
pub(super) enum FirstPoll {
    /// In its turn, as those that wait already.
    Queued,
    /// Before the spawn returns.
    AtOnce,
}

/// How deep eager tasks may be polled inside each other: each takes stack.
const EAGER_DEPTH: u8 = 16;

/// Makes a task and schedules its first poll, or does it.
///
/// # Safety
///
/// With `Origin::Local` the caller is the owner of `meta.thread`. With
/// `Origin::Remote`, what `future` holds before its first poll is `Send`, and
/// so is its output. In both cases future and output are `'static`.
pub(super) unsafe fn spawn<F: Future>(
    origin: Origin<'_>,
    meta: TaskMeta,
    future: F,
) -> JoinHandle<F::Output> {
    let wrap = |meta: &TaskMeta| TaskFuture {
        meta: NonNull::from(meta),
        future: UnsafeCell::new(Some(future)),
        _pinned: PhantomPinned,
    };
    // SAFETY: what async-task asks for: the future is `'static`; it is polled
    // and dropped by one thread, or holds only `Send` content where it is not
    // (R1, R3, R4); the schedule function is `Send + Sync + 'static`; the
    // wakers reach it from anywhere through R1.
    let (runnable, task) = unsafe {
        async_task::Builder::new()
            .metadata(meta)
            .spawn_unchecked(wrap, WithInfo(schedule_with_info))
    };
    let meta = runnable.metadata();
    let meta_pointer = NonNull::from(meta);
    meta.keep(runnable.waker());
    match origin {
        Origin::Local(local, _) if local.refuses_work() => {
            // Too late: the task never runs; joining it says so.
            drop(runnable);
        }
        Origin::Local(local, FirstPoll::AtOnce) if local.eager_depth.get() < EAGER_DEPTH => {
            let depth = local.eager_depth.get();
            local.eager_depth.set(depth + 1);
            runnable.run();
            local.eager_depth.set(depth);
        }
        Origin::Local(local, _) => {
            let subject = ptr::from_ref(meta).cast::<()>();
            // SAFETY: by this function's contract the caller is the owner; the
            // metadata is pinned in the allocation and leaves the list before
            // that is freed, as the future does (R2).
            unsafe { local.live.insert(&meta.node, cancel_unpolled, subject) };
            meta.count(local);
            meta.node.scheduled.store(true, Ordering::Relaxed);
            local.ready.push_task(message(runnable));
        }
        Origin::Remote => schedule(runnable, true),
    }
    // SAFETY: the pointer is to the metadata of this very task.
    unsafe { JoinHandle::new(task.fallible(), meta_pointer) }
}

fn schedule_with_info(runnable: Runnable<TaskMeta>, info: ScheduleInfo) {
    schedule(runnable, info.woken_while_running);
}

/// Puts a task into its thread's queue. Any OS thread; never runs the task. One
/// that woke itself, or is new, lets a round of pollers and timers pass first.
fn schedule(runnable: Runnable<TaskMeta>, gives_way: bool) {
    let meta = runnable.metadata();
    meta.node.scheduled.store(true, Ordering::Relaxed);
    let came_from = meta.hop.take_came_from();
    // SAFETY: this has the `Runnable`.
    let thread = unsafe { meta.thread() };
    if thread.is_current() {
        Local::with_current(|local| {
            let message = message(runnable);
            if gives_way {
                local.ready.push(message);
            } else {
                local.ready.push_task(message);
            }
        });
        return;
    }
    // The task may run and be freed before the sleeper is notified.
    let thread = Arc::clone(thread);
    match thread.mailbox.push(message(runnable)) {
        Ok(()) => thread.notify_host(),
        Err(refused) => bounce(refused, came_from),
    }
}

/// What becomes of a task whose thread takes no more.
#[cold]
fn bounce(refused: Message, came_from: Option<Arc<Shared>>) {
    let Some(came_from) = came_from else {
        // By R3 this drops a shell, or a future that is `Send` still.
        drop(refused);
        return;
    };
    // A hop whose target has exited: the task goes on where it was. That is the
    // current thread, at the end of the poll that asked for the hop.
    let Some(local) = came_from.current_local() else {
        return drop(refused);
    };
    let runnable = take_runnable(refused);
    let meta = runnable.metadata();
    // SAFETY: this has the `Runnable`.
    let refused_by = unsafe { meta.set_thread(came_from.clone()) };
    meta.hop.set_refused(refused_by);
    local.ready.push(message(runnable));
}

/// The `Runnable` that [`message`] packed.
fn take_runnable(message: Message) -> Runnable<TaskMeta> {
    let mut payload = message.into_payload();
    // SAFETY: the callers pass what `message` made, and it is consumed here.
    unsafe { take(&mut payload) }
}

unsafe fn take(payload: &mut Payload) -> Runnable<TaskMeta> {
    // SAFETY: by this function's callers the first word is a `Runnable`, taken
    // once.
    unsafe {
        let raw = payload.as_ptr().cast::<NonNull<()>>().read();
        Runnable::from_raw(raw)
    }
}

#[inline(always)]
fn message(runnable: Runnable<TaskMeta>) -> Message {
    const VTABLE: MessageVTable = MessageVTable {
        run: |payload| {
            // SAFETY: `message` put a `Runnable` here, and it is taken once.
            let runnable = unsafe { take(payload) };
            runnable.run();
        },
        drop: |payload| {
            // SAFETY: as above.
            drop(unsafe { take(payload) });
        },
        limited: false,
        name: || "task",
    };

    let raw = runnable.into_raw().as_ptr();
    let payload = [MaybeUninit::new(raw), MaybeUninit::uninit()];
    // SAFETY: a `Runnable` may be sent to its thread, and dropped where R3 lets
    // it be dropped.
    unsafe { Message::from_raw(payload, &VTABLE) }
}
