//! The metadata of a task: what its wakers, its handle and its thread's list find
//! in the allocation besides the future.

use std::cell::{Cell, OnceCell, UnsafeCell};
use std::mem::ManuallyDrop;
use std::panic::Location;
use std::ptr;
use std::sync::Arc;
use std::task::{RawWaker, RawWakerVTable, Waker};

use super::joiner::Joiner;
use super::rare::{Hop, Label, Metadata, PollCounts, Rare};
use super::state::{Stage, State};
use crate::task::TaskId;
use crate::thread::live::{LiveNode, Member};
use crate::thread::local::Local;
use crate::thread::panic::{PanicSource, contain};
use crate::thread::shared::Shared;
use crate::thread::stall::Occupant;

/// What a task is made of besides its future.
pub(in crate::task) struct Birth {
    pub(in crate::task) thread: Arc<Shared>,
    pub(in crate::task) id: TaskId,
    pub(in crate::task) location: &'static Location<'static>,
    pub(in crate::task) label: Label,
    pub(in crate::task) kind: TaskKind,
}

/// What is known of a task wherever its `Runnable` or waker is.
// In this order, so that the place in the list is the whole's address.
#[repr(C)]
pub(crate) struct TaskMeta {
    node: LiveNode,
    /// The task's `TaskFuture`, once it was polled. Owner only.
    pub(super) subject: Cell<*const ()>,
    thread: UnsafeCell<ManuallyDrop<Arc<Shared>>>,
    location: &'static Location<'static>,
    /// The parts of the task's waker, not counted as a reference. Written once,
    /// before the task is first scheduled.
    waker_data: Cell<*const ()>,
    waker_vtable: Cell<Option<&'static RawWakerVTable>>,
    pub(super) joiner: Joiner,
    /// There from the begin if the task is movable. Owner only, but for what R6 says
    /// of a movable one.
    rare: OnceCell<Box<Rare>>,
    serial: u64,
    /// Modulo 2^32.
    polls: Cell<u32>,
    kind: TaskKind,
    pub(in crate::task) state: State,
}

// Each of many parked tasks pays for it.
#[cfg(all(target_pointer_width = "64", not(corespun_loom)))]
const _: () = assert!(size_of::<TaskMeta>() == 96);

// SAFETY: `node`, `subject`, `joiner`, `rare` and `polls` are touched by the owner of the
// thread only, or by the holder that drops the only `Runnable` of a task that was never
// polled (R1, R2, R3, R7), `thread` and the hop in `rare` by those that R6 names; the
// waker parts are written before the task is shared and only read afterwards; the stage
// is written by those that `State` names; the rest is `Send + Sync`.
unsafe impl Send for TaskMeta {}
// SAFETY: as above.
unsafe impl Sync for TaskMeta {}

impl TaskMeta {
    /// `member` is the table of the task's future.
    #[inline(always)]
    pub(super) fn new(member: &'static Member, birth: Birth) -> Self {
        let Birth {
            thread,
            id,
            location,
            label,
            kind,
        } = birth;
        let rare = OnceCell::new();
        if label.is_some() || kind == TaskKind::Movable {
            let _ = rare.set(Rare::labelled(label, id.thread));
        }
        TaskMeta {
            node: LiveNode::new(member),
            subject: Cell::new(ptr::null()),
            thread: UnsafeCell::new(ManuallyDrop::new(thread)),
            location,
            waker_data: Cell::new(ptr::null()),
            waker_vtable: Cell::new(None),
            joiner: Joiner::nobody(),
            rare,
            serial: id.serial,
            polls: Cell::new(0),
            kind,
            state: State::new(),
        }
    }

    /// The task whose place in a live list `node` is.
    ///
    /// # Safety
    ///
    /// `node` is on a live list, where `begin` or `queue` put it, and stays there while
    /// the result is used, or else the task is kept alive.
    pub(in crate::task) unsafe fn of<'a>(node: *const LiveNode) -> &'a TaskMeta {
        // SAFETY: the pointer in the list is that to the whole, whose first field the
        // node is; a listed task is alive.
        unsafe { &*node.cast::<TaskMeta>() }
    }

    pub(in crate::task) fn id(&self) -> TaskId {
        let thread = match self.hop() {
            Some(hop) => hop.born_on,
            // SAFETY: the thread of a task that is not movable never changes (R6).
            None => unsafe { self.thread() }.id,
        };
        TaskId {
            thread,
            serial: self.serial,
        }
    }

    /// Whether the future may be `!Send`.
    pub(in crate::task) fn stays(&self) -> bool {
        self.kind == TaskKind::Bound
    }

    /// Where a movable task goes; `None` for one that is not.
    #[inline]
    pub(in crate::task) fn hop(&self) -> Option<&Hop> {
        match self.kind {
            TaskKind::Movable => self.rare.get().map(|rare| &rare.hop),
            _ => None,
        }
    }

    /// Where it was spawned.
    pub(in crate::task) fn location(&self) -> &'static Location<'static> {
        self.location
    }

    /// The name given. Owner only.
    pub(in crate::task) fn name(&self) -> Option<&str> {
        self.rare.get()?.name.as_deref()
    }

    /// What the thread is occupied with while the task is polled. Owner only.
    pub(super) fn occupant(&self) -> Occupant<'_> {
        Occupant::Task {
            name: self.name(),
            location: self.location,
        }
    }

    /// The name given, or where it was spawned. Owner only.
    pub(super) fn describe(&self) -> String {
        self.occupant().describe()
    }

    /// Accounts for one poll, of `ticks` if the thread measures them. Owner only.
    #[inline]
    pub(super) fn count_poll(&self, ticks: u64) {
        let polls = self.polls.get().wrapping_add(1);
        self.polls.set(polls);
        if ticks > 0 || polls == 0 {
            self.count_rarely(ticks, polls == 0);
        }
    }

    #[cold]
    fn count_rarely(&self, ticks: u64, overflowed: bool) {
        let rare = self.rare.get_or_init(Box::default);
        rare.total.set(rare.total.get() + ticks);
        rare.longest.set(rare.longest.get().max(ticks));
        let rounds = rare.poll_rounds.get();
        rare.poll_rounds
            .set(rounds.wrapping_add(u32::from(overflowed)));
    }

    /// Owner only.
    pub(in crate::task) fn poll_counts(&self) -> PollCounts {
        let rare = self.rare.get();
        let rounds = rare.map_or(0, |rare| rare.poll_rounds.get());
        PollCounts {
            polls: (u64::from(rounds) << 32) + u64::from(self.polls.get()),
            total_ticks: rare.map_or(0, |rare| rare.total.get()),
            longest_ticks: rare.map_or(0, |rare| rare.longest.get()),
        }
    }

    /// The value that goes with the task, until its future is gone. Owner only.
    pub(in crate::task) fn metadata(&self) -> Option<Metadata> {
        let place = &self.rare.get()?.metadata;
        let metadata = place.take();
        place.set(metadata.clone());
        metadata
    }

    /// The thread that runs the task.
    ///
    /// # Safety
    ///
    /// The caller is one of those that R6 lets read it, and drops the reference
    /// before the task's poll, if it is in one, changes the thread.
    #[inline]
    pub(in crate::task) unsafe fn thread(&self) -> &Arc<Shared> {
        // SAFETY: by this function's contract nothing writes it meanwhile.
        unsafe { &*self.thread.get() }
    }

    /// Gives the task another thread, and returns the one before.
    ///
    /// # Safety
    ///
    /// As R6 says for a change; or the caller has the `Runnable`.
    pub(in crate::task) unsafe fn set_thread(&self, thread: Arc<Shared>) -> Arc<Shared> {
        // SAFETY: by this function's contract nothing else reads or writes it.
        let place = unsafe { &mut *self.thread.get() };
        ManuallyDrop::into_inner(std::mem::replace(place, ManuallyDrop::new(thread)))
    }

    /// Remembers the parts of the task's waker. For the code that makes the task.
    #[inline]
    pub(super) fn set_waker(&self, data: *const (), vtable: &'static RawWakerVTable) {
        self.waker_data.set(data);
        self.waker_vtable.set(Some(vtable));
    }

    /// The task's waker, borrowed.
    ///
    /// # Safety
    ///
    /// The task's allocation is alive while the result is used: the caller has
    /// its `Runnable`, a `Waker` or the join handle of it, or its future, or it is
    /// listed.
    #[inline]
    pub(in crate::task) unsafe fn waker(&self) -> ManuallyDrop<Waker> {
        let vtable = self.waker_vtable.get().expect("set by `spawn`");
        let raw = RawWaker::new(self.waker_data.get(), vtable);
        // SAFETY: data and table are those of a waker of this task; it is not
        // dropped, so the reference count stays right, and the allocation is
        // alive by this function's contract.
        ManuallyDrop::new(unsafe { Waker::from_raw(raw) })
    }

    /// Whether `waker` is the task's own.
    #[inline]
    pub(in crate::task) fn is_waker(&self, waker: &Waker) -> bool {
        let vtable = self.waker_vtable.get();
        waker.data() == self.waker_data.get()
            && vtable.is_some_and(|vtable| ptr::eq(vtable, waker.vtable()))
    }

    /// The task was spawned by its thread, and waits there for its first poll.
    ///
    /// # Safety
    ///
    /// The caller is the owner of the task's thread, whose part `local` is, and has just
    /// made the task.
    #[inline]
    pub(super) unsafe fn queue(&self, local: &Local) {
        self.state.set_stage(Stage::Queued);
        // SAFETY: passed on.
        unsafe { self.enter(local) };
    }

    /// Lists the task, and binds the thread if its future has to stay.
    ///
    /// # Safety
    ///
    /// The caller is the owner, and the stage, which was of those that are not listed,
    /// is now one of those that are.
    #[inline]
    unsafe fn enter(&self, local: &Local) {
        // SAFETY: the metadata is pinned in the allocation, and leaves the list before
        // that is freed (R2); what has just come into the stage was on no list.
        let spared = unsafe { local.live.insert(ptr::from_ref(self).cast()) };
        if spared {
            let rare = self.rare.get_or_init(Box::default);
            rare.spared.set(true);
        }
        if self.kind == TaskKind::Bound {
            local.anchor.hold();
        }
    }

    /// Takes the task off the list and lets go of the thread, as far as the stage that
    /// was `before` asks for that.
    ///
    /// # Safety
    ///
    /// The caller is the owner, and the stage is not `before` any more.
    #[inline]
    unsafe fn leave(&self, local: &Local, before: Stage) {
        if before.is_listed() {
            // SAFETY: `enter` listed it; the caller is the owner.
            unsafe { local.live.remove(&self.node) };
        }
        if before.binds() && self.kind == TaskKind::Bound {
            // SAFETY: `enter` did so when the task came into a stage that binds, and
            // only the way out of those leads here.
            unsafe { local.anchor.let_go() };
        }
    }

    /// The first poll on a thread: from here on the future stays where it is, and the
    /// exit can reach it at `subject`. Says whether the thread still takes tasks.
    ///
    /// # Safety
    ///
    /// The caller polls the task, on `local`; `subject` is its pinned future.
    pub(super) unsafe fn begin(&self, local: &Local, subject: *const ()) -> bool {
        self.subject.set(subject);
        let next = match self.state.stage() {
            Stage::Queued => {
                self.state.set_stage(Stage::Begun);
                return true;
            }
            _ if local.refuses_work() => return false,
            Stage::Travels => Stage::Waiting,
            _ => Stage::Begun,
        };
        self.state.set_stage(next);
        // SAFETY: by R1 this is the owner.
        unsafe { self.enter(local) };
        true
    }

    /// A poll was pending. After the first, a counted waker is set aside (R5): before,
    /// the `Runnable` keeps the task.
    #[inline]
    pub(super) fn was_pending(&self) {
        if self.state.stage() == Stage::Begun {
            // SAFETY: the caller polls the task.
            std::mem::forget(Waker::clone(&*unsafe { self.waker() }));
            self.state.set_stage(Stage::Waiting);
        }
    }

    /// The exit met the task before its first poll, which will drop the future. Until
    /// then it binds its thread.
    ///
    /// # Safety
    ///
    /// The caller is the owner, and the task is queued.
    pub(super) unsafe fn doom(&self, local: &Local) {
        self.state.set_aborted();
        self.state.set_stage(Stage::Doomed);
        // SAFETY: queued, so listed.
        unsafe { local.live.remove(&self.node) };
    }

    /// The task goes to another thread: see `Hop`.
    ///
    /// # Safety
    ///
    /// The caller is the owner, at the end of a pending poll of a movable task.
    pub(super) unsafe fn depart(&self, local: &Local) {
        let before = self.state.stage();
        self.state.set_stage(Stage::Travels);
        // SAFETY: passed on.
        unsafe { self.leave(local, before) };
        if let Some(rare) = self.rare.get() {
            // By an exit of this thread, if any.
            rare.spared.set(false);
        }
    }

    /// Whether the exit is about to cancel the task.
    #[inline]
    pub(super) fn is_doomed(&self, local: &Local) -> bool {
        self.state.stage().is_listed() && local.live.dooms(|| self.is_spared())
    }

    #[cold]
    fn is_spared(&self) -> bool {
        self.rare.get().is_some_and(|rare| rare.spared.get())
    }

    /// The future is gone: takes the task off its thread's list, unbinds the thread, wakes
    /// the joiner; gives back the waker that was set aside. For the code that has just
    /// dropped the future: the owner of `local`, if the task was in a stage that lists or
    /// binds.
    #[inline]
    pub(super) fn end(&self, local: Option<&Local>) -> Option<Waker> {
        let before = self.state.stage();
        if before == Stage::Gone {
            return None;
        }
        self.state.set_stage(Stage::Gone);
        debug_assert!(local.is_some() || !before.binds());
        if let Some(local) = local {
            // SAFETY: by this function's contract.
            unsafe { self.leave(local, before) };
        }
        // async-task says so only when the poll has returned. The joiner runs
        // after that, or, if it has gone to another thread, asks async-task
        // itself.
        if let Some(joiner) = self.joiner.take() {
            joiner.wake();
        }
        if let Some(rare) = self.rare.get()
            && let Some(metadata) = rare.metadata.take()
        {
            self.drop_metadata(metadata);
        }
        // SAFETY: the reference that was set aside kept the allocation alive,
        // and passes to the caller.
        let kept = || ManuallyDrop::into_inner(unsafe { self.waker() });
        before.keeps_waker().then(kept)
    }

    /// Here rather than with the allocation, for async-task lets no destructor
    /// unwind.
    #[cold]
    fn drop_metadata(&self, metadata: Metadata) {
        if let Err(payload) = contain(|| drop(metadata)) {
            // SAFETY: the caller of `end` is the owner, or has the `Runnable`.
            let thread = unsafe { self.thread() };
            let name = self.describe();
            let library = &thread.library;
            library.report_panic(thread.name(), PanicSource::Drop, Some(&name), payload);
        }
    }

    /// Whether the thread of `local`, the current one, is the task's, and always was.
    ///
    /// # Safety
    ///
    /// The caller keeps the task alive.
    #[inline]
    pub(super) unsafe fn stays_on(&self, local: &Local) -> bool {
        // SAFETY: the thread of a task that is not movable never changes (R6).
        self.kind != TaskKind::Movable && Arc::ptr_eq(unsafe { self.thread() }, &local.shared)
    }

    /// The address of the task's `Runnable`.
    #[inline]
    pub(super) fn runnable(&self) -> *const () {
        self.waker_data.get()
    }

    #[inline]
    pub(super) fn is_movable(&self) -> bool {
        self.kind == TaskKind::Movable
    }

    /// Makes the task end with [`JoinError::is_cancelled`] at its next poll.
    ///
    /// [`JoinError::is_cancelled`]: crate::task::JoinError::is_cancelled
    ///
    /// # Safety
    ///
    /// The caller has the task's join handle or a counted waker.
    pub(in crate::task) unsafe fn abort(&self) {
        self.state.set_aborted();
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
