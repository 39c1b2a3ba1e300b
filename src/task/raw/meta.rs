//! The metadata of a task: what its wakers, its handle and its thread's list find
//! in the allocation besides the future.

use std::cell::{Cell, UnsafeCell};
use std::mem::ManuallyDrop;
use std::panic::Location;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::task::{RawWaker, Waker};

use crate::sync::atomic::{AtomicBool, Ordering};
use crate::task::TaskId;
use crate::task::movable::Hop;
use crate::thread::bound::Stay;
use crate::thread::live::{Label, LiveNode, Metadata};
use crate::thread::local::Local;
use crate::thread::panic::{PanicSource, contain};
use crate::thread::shared::Shared;

/// What is known of a task wherever its `Runnable` or waker is.
pub(crate) struct TaskMeta {
    /// Owner of the thread only, except before the task is first scheduled.
    pub(in crate::task) node: LiveNode,
    thread: UnsafeCell<ManuallyDrop<Arc<Shared>>>,
    pub(in crate::task) aborted: AtomicBool,
    pub(in crate::task) finished: AtomicBool,
    /// Whether the future may be `!Send`. Owner only.
    pub(super) stays: Cell<bool>,
    /// Binds the thread while `stays` and the future is there. Owner only.
    stay: Cell<Option<Stay>>,
    /// Whether a counted waker is set aside (R5). For whoever may drop the
    /// future only.
    pub(super) kept: Cell<bool>,
    /// Whether the first poll was. Owner only.
    pub(super) placed: Cell<bool>,
    /// The task of the same thread that waits for this one's end (R7), by a
    /// counted waker.
    joiner: Cell<Option<NonNull<TaskMeta>>>,
    pub(in crate::task) hop: Hop,
}

// SAFETY: `node`, `stays`, `stay`, `kept`, `placed` and `joiner` are touched by the owner
// of the thread only, or by whoever drops the only `Runnable` of a task that was
// never polled (R1, R2, R3, R7), `thread` and `hop` by those whom R6 names; the waker
// parts are written before the task is shared and only read
// afterwards; the rest is `Send + Sync`.
unsafe impl Send for TaskMeta {}
// SAFETY: as above.
unsafe impl Sync for TaskMeta {}

impl TaskMeta {
    pub(in crate::task) fn new(
        thread: Arc<Shared>,
        id: TaskId,
        location: &'static Location<'static>,
        label: Label,
        kind: TaskKind,
    ) -> Self {
        TaskMeta {
            node: LiveNode::new(location, label, id.into()),
            thread: UnsafeCell::new(ManuallyDrop::new(thread)),
            aborted: AtomicBool::new(false),
            finished: AtomicBool::new(false),
            stays: Cell::new(kind == TaskKind::Bound),
            stay: Cell::new(None),
            kept: Cell::new(false),
            placed: Cell::new(false),
            joiner: Cell::new(None),
            hop: Hop::new(kind == TaskKind::Movable),
        }
    }

    pub(in crate::task) fn id(&self) -> TaskId {
        self.node.id.into()
    }

    /// Whether the future may be `!Send`. Owner only.
    pub(in crate::task) fn stays(&self) -> bool {
        self.stays.get()
    }

    /// The thread that runs the task.
    ///
    /// # Safety
    ///
    /// The caller is one of those whom R6 lets read it, and drops the reference
    /// before the task's poll, if it is in one, changes the thread.
    pub(in crate::task) unsafe fn thread(&self) -> &Arc<Shared> {
        // SAFETY: by this function's contract nobody writes meanwhile.
        unsafe { &*self.thread.get() }
    }

    /// Gives the task another thread, and returns the one before.
    ///
    /// # Safety
    ///
    /// As R6 says for a change; or the caller has the `Runnable`.
    pub(in crate::task) unsafe fn set_thread(&self, thread: Arc<Shared>) -> Arc<Shared> {
        // SAFETY: by this function's contract nobody else reads or writes.
        let place = unsafe { &mut *self.thread.get() };
        ManuallyDrop::into_inner(std::mem::replace(place, ManuallyDrop::new(thread)))
    }

    /// The task's waker, borrowed. Its parts are in the node, where a walk over the
    /// tasks of a thread finds them.
    ///
    /// # Safety
    ///
    /// The task's allocation is alive while the result is used: the caller has
    /// its `Runnable`, a `Waker` or the join handle of it, or its future.
    pub(in crate::task) unsafe fn waker(&self) -> ManuallyDrop<Waker> {
        let vtable = self.node.waker_vtable.get().expect("set by `allocate`");
        let raw = RawWaker::new(self.node.waker_data.get(), vtable);
        // SAFETY: data and table came from a waker of this task; it is not
        // dropped, so the reference count stays right, and the allocation is
        // alive by this function's contract.
        ManuallyDrop::new(unsafe { Waker::from_raw(raw) })
    }

    /// Whether `waker` is the task's own.
    pub(in crate::task) fn is_waker(&self, waker: &Waker) -> bool {
        let vtable = self.node.waker_vtable.get();
        waker.data() == self.node.waker_data.get()
            && vtable.is_some_and(|vtable| ptr::eq(vtable, waker.vtable()))
    }

    /// Sets a counted waker aside (R5).
    pub(super) fn keep(&self, waker: Waker) {
        self.node.waker_data.set(waker.data());
        self.node.waker_vtable.set(Some(waker.vtable()));
        self.kept.set(true);
        std::mem::forget(waker);
    }

    /// The waker that was set aside; for who has just dropped the future.
    pub(super) fn take_kept(&self) -> Option<Waker> {
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
    pub(in crate::task) unsafe fn join_here(&self, joiner: &TaskMeta) -> bool {
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
    pub(in crate::task) unsafe fn forget_joiner(&self) {
        // SAFETY: passed on.
        if unsafe { self.stays_here() } {
            drop(self.take_joiner());
        }
    }

    /// Says that the future is gone. For who has just dropped it.
    #[inline]
    pub(super) fn finish(&self) {
        self.finished.store(true, Ordering::Release);
        // async-task says so only when the poll has returned. The joiner runs
        // after that, or, if it has gone to another thread, asks async-task
        // itself.
        if let Some(joiner) = self.take_joiner() {
            joiner.wake();
        }
        if let Some(metadata) = self.node.take_metadata() {
            self.drop_metadata(metadata);
        }
    }

    /// Here rather than with the allocation, for async-task lets no destructor
    /// unwind.
    #[cold]
    fn drop_metadata(&self, metadata: Metadata) {
        if let Err(payload) = contain(|| drop(metadata)) {
            // SAFETY: the caller of `finish` is the owner, or has the `Runnable`.
            let thread = unsafe { self.thread() };
            let name = self.node.describe();
            let library = &thread.library;
            library.report_panic(thread.name(), PanicSource::Drop, Some(&name), payload);
        }
    }

    /// Binds the thread, if the future has to stay. Owner only.
    #[inline]
    pub(super) fn bind(&self, local: &Local) {
        if self.stays.get() {
            self.stay.set(Some(local.anchor.stay()));
        }
    }

    /// The future is gone. For who has just dropped it: the owner, if the thread
    /// was bound.
    #[inline]
    pub(super) fn unbind(&self) {
        drop(self.stay.take());
    }

    /// Makes the task end with [`JoinError::is_cancelled`] at its next poll.
    ///
    /// # Safety
    ///
    /// The caller has the task's join handle or a counted waker.
    pub(in crate::task) unsafe fn abort(&self) {
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
pub(in crate::task) enum TaskKind {
    /// It may be `!Send`: stays, and keeps its thread, on its OS thread.
    Bound,
    /// It is `Send`: goes where its thread goes.
    Send,
    /// It is `Send` and may change its thread.
    Movable,
}
