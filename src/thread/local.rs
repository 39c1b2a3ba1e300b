//! The owner's part of a SpdkThread: everything that only the OS thread that
//! polls it may touch. It is shared, not locked: short `Cell` and `RefCell`
//! borrows that never last while user code runs.

use std::cell::{Cell, OnceCell, RefCell};
use std::ptr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use super::exit::ended::EndList;
use super::exit::live::{LiveList, LiveNode};
use super::exit::pending::PendingTable;
use super::interrupt::Interrupts;
use super::local_key::LocalValues;
use super::panic::{PanicSource, Payload, contain};
use super::part::Part;
use super::placement::bound::Anchor;
use super::poll::at_once::AtOnce;
use super::poll::ready::ReadyQueue;
use super::poll::time_share::TimeSlice;
use super::poll::timer_queue::{TimerKey, TimerQueue};
use super::poller::{PollerCore, PollerList, PostPollers};
use super::shared::Shared;
use super::spinlock::HeldLocks;
use crate::sync::budget;

/// What a timer does when it is due.
pub(crate) enum TimerTarget {
    /// Runs a timed poller and is re-armed.
    Poller(Rc<PollerCore>),
    /// Wakes a task and is gone.
    Waker(Waker),
}

impl Part for RefCell<TimerQueue<TimerTarget>> {
    fn cancel(&self, local: &Local) {
        let targets = self.borrow_mut().drain();
        for target in targets {
            match target {
                TimerTarget::Poller(poller) => local.unregister_poller(&poller),
                TimerTarget::Waker(waker) => local.drop_contained(waker),
            }
        }
    }

    /// Lets those go that destructors of other parts have begun since.
    fn end(&self, local: &Local) {
        self.cancel(local);
    }
}

/// How many references a thread keeps for tasks to come: the end of the thread
/// gives each back by itself.
const SPARE_LIMIT: usize = 16_384;

/// How long a poll is at most that is short: so long can the lone task that yields
/// without end delay a waiter that it cannot see.
const SHORT_POLL: Duration = Duration::from_micros(2);

/// How far the exit of a thread has come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExitPhase {
    /// Not asked for.
    None,
    /// Asked for; no task is cancelled yet.
    Requested,
    /// Cancels the tasks of the moment that this began at.
    Cancelling,
    /// Waits for what still holds the thread.
    Waiting,
    /// Takes nothing new, and cancels the tasks that are left.
    Closing,
    /// The mailbox is closed and nothing new is taken; what was sent before
    /// is being run.
    Closed,
    /// Reads EXITED.
    Done,
}

pub(crate) struct Local {
    pub(crate) shared: Arc<Shared>,
    /// How many counted references to `shared` lie here for tasks to come.
    spare_shared: Cell<usize>,
    pub(super) ready: ReadyQueue,
    pub(crate) pollers: PollerList,
    pub(crate) timers: RefCell<TimerQueue<TimerTarget>>,
    pub(crate) live: LiveList,
    rare: OnceCell<Box<Rare>>,
    pub(super) interrupts: OnceCell<Box<Interrupts>>,
    /// The io_channels of this thread: a part that only their own floor knows the type of.
    pub(crate) channels: OnceCell<Box<dyn Part>>,
    /// Knows of the values that must not leave this OS thread, besides those
    /// that hold an `Rc` of this.
    pub(crate) anchor: Anchor,
    /// By the promise of [`ThreadBuilder::assume_send`](super::ThreadBuilder::assume_send)
    /// nothing binds the thread.
    pub(super) assume_send: bool,
    pub(crate) task_ids: Cell<u64>,
    /// How many eager first polls are under way, one inside the other.
    pub(crate) eager_depth: Cell<u8>,
    /// The task being polled: what this floor knows of it.
    pub(crate) running: Cell<*const LiveNode>,
    pub(crate) at_once: AtOnce,
    /// Whether each poll of a task is measured.
    pub(crate) times_tasks: bool,
    /// Ticks after which a callback has held the thread too long; 0 for never.
    pub(super) stall_limit: u64,
    pub(super) batch: usize,
    pub(super) slice: TimeSlice,
    /// How long a poll may be, in ticks, for the next to run tasks that give way more
    /// than once.
    pub(super) short: u64,
    /// Whether the last poll was that short.
    pub(super) was_short: Cell<bool>,
    pub(super) exit_phase: Cell<ExitPhase>,
    pub(super) exit_deadline: Cell<u64>,
    pub(super) exit_timeout: Duration,
}

/// What few threads have: made when first used, so that an idle one stays small.
#[derive(Default)]
pub(super) struct Rare {
    pub(super) pending: PendingTable,
    pub(super) keys: LocalValues,
    pub(super) post_pollers: PostPollers,
    pub(super) held: HeldLocks,
    pub(super) ends: EndList,
}

use current::CURRENT;

#[cfg(not(corespun_loom))]
mod current {
    use super::*;

    thread_local! {
        /// The SpdkThread being polled, or entered, by this OS thread.
        pub(super) static CURRENT: Cell<*const Local> = const { Cell::new(ptr::null()) };
    }
}

/// The threads of a model are those of loom, which all run on one OS thread.
#[cfg(corespun_loom)]
mod current {
    use super::*;

    loom::thread_local! {
        static OF_MODEL: Cell<*const Local> = Cell::new(ptr::null());
    }

    pub(super) struct Current;

    pub(super) static CURRENT: Current = Current;

    impl Current {
        pub(super) fn get(&self) -> *const Local {
            OF_MODEL.with(Cell::get)
        }

        pub(super) fn set(&self, current: *const Local) {
            OF_MODEL.with(|place| place.set(current));
        }

        pub(super) fn replace(&self, current: *const Local) -> *const Local {
            OF_MODEL.with(|place| place.replace(current))
        }
    }
}

/// The address of the current thread's `Local`, or null.
#[inline]
pub(crate) fn current_ptr() -> *const Local {
    CURRENT.get()
}

/// Makes a thread the current one until dropped, then what was before.
pub(crate) struct Entered<'a> {
    previous: *const Local,
    /// Of the task that entered another thread: what runs there takes none of it.
    budget: u32,
    /// Keeps the `Local` alive and the guard on its OS thread.
    _local: &'a Rc<Local>,
}

impl<'a> Entered<'a> {
    #[inline]
    pub(crate) fn new(local: &'a Rc<Local>) -> Self {
        Entered {
            previous: CURRENT.replace(Rc::as_ptr(local)),
            budget: budget::replace(budget::UNLIMITED),
            _local: local,
        }
    }
}

impl Drop for Entered<'_> {
    #[inline]
    fn drop(&mut self) {
        CURRENT.set(self.previous);
        budget::replace(self.budget);
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        while self.take_unrun().is_some() {}
        if let Some(rare) = self.existing_rare() {
            rare.held.abandon(self);
        }
        while self.spare_shared.get() > 0 {
            drop(self.lend_shared());
        }
    }
}

impl Local {
    pub(super) fn new(
        shared: Arc<Shared>,
        batch: usize,
        exit_timeout: Duration,
        assume_send: bool,
        yield_ends_poll: bool,
    ) -> Rc<Self> {
        let stall_limit = shared.library.stall_ticks;
        // None is shorter than nothing.
        let short = match yield_ends_poll {
            true => 0,
            false => shared.library.clock.ticks_from(SHORT_POLL),
        };
        Rc::new(Local {
            times_tasks: shared.library.times_tasks || stall_limit > 0,
            stall_limit,
            eager_depth: Cell::new(0),
            running: Cell::new(ptr::null()),
            at_once: AtOnce::new(),
            ready: ReadyQueue::new(&shared.mailbox, shared.limit),
            shared,
            spare_shared: Cell::new(0),
            pollers: PollerList::default(),
            timers: RefCell::new(TimerQueue::new()),
            live: LiveList::new(),
            rare: OnceCell::new(),
            interrupts: OnceCell::new(),
            channels: OnceCell::new(),
            anchor: Anchor::default(),
            assume_send,
            task_ids: Cell::new(0),
            batch,
            slice: TimeSlice::unlimited(),
            short,
            was_short: Cell::new(false),
            exit_phase: Cell::new(ExitPhase::None),
            exit_deadline: Cell::new(0),
            exit_timeout,
        })
    }

    /// Runs `f` with the current thread's owner part.
    #[inline]
    pub(crate) fn with_current<R>(f: impl FnOnce(&Local) -> R) -> Option<R> {
        let current = CURRENT.get();
        if current.is_null() {
            return None;
        }
        // SAFETY: `CURRENT` is only non-null while an `Entered` on this OS
        // thread borrows the `Rc` it came from.
        Some(f(unsafe { &*current }))
    }

    /// A counted reference to `shared`, of those given back if there are any: a
    /// task that comes and goes on its thread counts without atomics.
    #[inline]
    pub(crate) fn lend_shared(&self) -> Arc<Shared> {
        let spare = self.spare_shared.get();
        if spare == 0 {
            return self.shared.clone();
        }
        self.spare_shared.set(spare - 1);
        // SAFETY: the count in `spare_shared` is of references forgotten by
        // `give_back_shared`, to this very object.
        unsafe { Arc::from_raw(Arc::as_ptr(&self.shared)) }
    }

    /// Takes a reference back for the next task, if its thread is the current one.
    #[inline]
    pub(crate) fn give_back_shared(shared: Arc<Shared>) {
        if !shared.is_current() {
            return;
        }
        std::mem::forget(shared);
        Local::with_current(|local| {
            local.spare_shared.set(local.spare_shared.get() + 1);
            if local.spare_shared.get() > SPARE_LIMIT {
                local.drop_spare();
            }
        });
    }

    /// Gives half of the spare references up: all at once, for a thread that counts
    /// them in elsewhere (a sender of tasks) loses the line of the count to this.
    #[cold]
    fn drop_spare(&self) {
        while self.spare_shared.get() > SPARE_LIMIT / 2 {
            drop(self.lend_shared());
        }
    }

    pub(crate) fn current_rc() -> Option<Rc<Local>> {
        let current = CURRENT.get();
        if current.is_null() {
            return None;
        }
        // SAFETY: as in `with_current`; the pointer came from `Rc::as_ptr`.
        unsafe {
            Rc::increment_strong_count(current);
            Some(Rc::from_raw(current))
        }
    }

    /// After something was begun that a poll has to see: if that was between two
    /// polls, an OS thread may wait for the thread's descriptor.
    #[inline]
    pub(crate) fn begun_outside(&self) {
        if !self.shared.is_current() {
            self.shared.notify_host();
        }
    }

    /// After something went that may have been the last that held an exit: as
    /// [`Local::begun_outside`], for only a poll sees it.
    pub(crate) fn ended_outside(&self) {
        if self.exit_phase.get() == ExitPhase::Waiting && !self.is_held() {
            self.begun_outside();
        }
    }

    /// The rare parts, made now if need be.
    pub(super) fn rare(&self) -> &Rare {
        self.rare.get_or_init(Box::default)
    }

    /// The rare parts, if there are any.
    #[inline]
    pub(super) fn existing_rare(&self) -> Option<&Rare> {
        self.rare.get().map(|rare| &**rare)
    }

    /// After every callback: no spinlock may be held.
    #[inline]
    pub(crate) fn check_held_locks(&self) {
        if let Some(rare) = self.existing_rare() {
            rare.held.check(self);
        }
    }

    /// Whether new pollers, tasks and messages are refused: the exit is past
    /// the point where it could wait for them.
    #[inline]
    pub(crate) fn refuses_work(&self) -> bool {
        matches!(
            self.exit_phase.get(),
            ExitPhase::Closing | ExitPhase::Closed | ExitPhase::Done
        )
    }

    pub(crate) fn insert_timer(&self, deadline: u64, target: TimerTarget) -> TimerKey {
        self.timers.borrow_mut().insert(deadline, target)
    }

    /// Takes a timer out that has not fired.
    pub(crate) fn cancel_timer(&self, key: TimerKey) {
        let target = self.timers.borrow_mut().remove(key);
        // A foreign waker's destructor is foreign code.
        drop(target);
    }

    /// Whether a poll now would find something to run, apart from timers.
    pub(crate) fn has_ready_work(&self) -> bool {
        // SAFETY: this `Local` is the owner's, so the caller is the consumer.
        !self.ready.is_empty()
            || unsafe { self.shared.mailbox.has_messages() }
            || self.shared.critical.is_posted()
    }

    /// [`Local::has_ready_work`] for an owner that has announced a sleep: a sender that
    /// sends after this sees the announcement.
    pub(super) fn has_ready_work_before_sleep(&self) -> bool {
        // SAFETY: as above.
        self.has_own_work() || unsafe { self.shared.mailbox.has_messages_before_sleep() }
    }

    /// Whether a poll now would find something to run, apart from timers and from what
    /// is in the mailbox.
    pub(super) fn has_own_work(&self) -> bool {
        !self.ready.is_empty() || self.shared.critical.is_posted()
    }

    /// Drops user content; a panic of its destructor is reported, not passed on.
    pub(crate) fn drop_contained<T>(&self, value: T) {
        if let Err(payload) = contain(|| drop(value)) {
            self.report_panic(PanicSource::Drop, None, payload);
        }
    }

    #[cold]
    pub(crate) fn report_panic(&self, source: PanicSource, name: Option<&str>, payload: Payload) {
        self.shared
            .library
            .report_panic(self.shared.name(), source, name, payload);
    }
}
