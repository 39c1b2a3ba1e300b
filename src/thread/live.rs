//! The list of things on a thread that must be cancelled, on the thread, before
//! it can read EXITED: its tasks.
//!
//! The list is intrusive: a task embeds a [`LiveNode`], so that being listed
//! costs a few stores and no allocation. This floor knows of a task only that
//! it can be told to cancel itself and that it can be named.

use std::any::Any;
use std::cell::{Cell, OnceCell};
use std::mem::ManuallyDrop;
use std::panic::Location;
use std::ptr;
use std::sync::Arc;
use std::task::{RawWaker, RawWakerVTable, Waker};

use super::stall::Occupant;
use crate::sync::atomic::AtomicBool;

/// Cancels what its argument stands for; see [`LiveList::insert`].
pub(crate) type Cancel = unsafe fn(*const ());

/// A member of a thread's [`LiveList`], embedded in what it stands for.
pub(crate) struct LiveNode {
    previous: Cell<*const LiveNode>,
    next: Cell<*const LiveNode>,
    listed: Cell<bool>,
    /// Cancels the owner of the node: drops its user content in place and
    /// takes the node off the list. Called on the thread's owner, outside
    /// of any callback.
    cancel: Cell<Option<(Cancel, *const ())>>,
    pub(crate) location: &'static Location<'static>,
    rare: OnceCell<Box<Rare>>,
    /// Cancelled by the exit before its first poll.
    pub(crate) doomed: Cell<bool>,
    /// Listed after the exit began to cancel, which waits for it.
    spared: Cell<bool>,
    /// Identifies the task; the task floor knows how to read it.
    pub(crate) id: [u64; 2],
    /// Waits in a queue to be polled. Any thread.
    pub(crate) scheduled: AtomicBool,
    polls: Cell<u64>,
    /// The parts of the task's waker, not counted as a reference. Written once,
    /// before the task is first scheduled.
    pub(crate) waker_data: Cell<*const ()>,
    pub(crate) waker_vtable: Cell<Option<&'static RawWakerVTable>>,
}

/// A value of the user's that goes with a task.
pub(crate) type Metadata = Arc<dyn Any + Send + Sync>;

/// What a task is called, and what its user says of it: boxed, since most tasks
/// are spawned without.
pub(crate) type Label = Option<Box<Labelled>>;

#[derive(Clone, Debug, Default)]
pub(crate) struct Labelled {
    pub(crate) name: Option<Box<str>>,
    pub(crate) metadata: Option<Metadata>,
}

/// What few tasks have, in a box so that the others stay small.
#[derive(Default)]
struct Rare {
    name: Option<Box<str>>,
    /// Goes with the future.
    metadata: Cell<Option<Metadata>>,
    /// Ticks of all polls, and of the longest, where the library measures them.
    total: Cell<u64>,
    longest: Cell<u64>,
}

impl Rare {
    #[cold]
    fn labelled(Labelled { name, metadata }: Labelled) -> Box<Self> {
        Box::new(Rare {
            name,
            metadata: Cell::new(metadata),
            ..Rare::default()
        })
    }
}

/// How often a task was polled, and for how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PollCounts {
    pub(crate) polls: u64,
    pub(crate) total_ticks: u64,
    pub(crate) longest_ticks: u64,
}

impl LiveNode {
    pub(crate) fn new(location: &'static Location<'static>, label: Label, id: [u64; 2]) -> Self {
        let rare = OnceCell::new();
        if let Some(label) = label {
            let _ = rare.set(Rare::labelled(*label));
        }
        LiveNode {
            previous: Cell::new(ptr::null()),
            next: Cell::new(ptr::null()),
            listed: Cell::new(false),
            cancel: Cell::new(None),
            location,
            rare,
            doomed: Cell::new(false),
            spared: Cell::new(false),
            id,
            scheduled: AtomicBool::new(false),
            polls: Cell::new(0),
            waker_data: Cell::new(ptr::null()),
            waker_vtable: Cell::new(None),
        }
    }

    pub(crate) fn is_listed(&self) -> bool {
        self.listed.get()
    }

    /// Accounts for one poll, of `ticks` if the thread measures them.
    #[inline]
    pub(crate) fn count_poll(&self, ticks: u64) {
        self.polls.set(self.polls.get() + 1);
        if ticks > 0 {
            let rare = self.rare.get_or_init(Box::default);
            rare.total.set(rare.total.get() + ticks);
            rare.longest.set(rare.longest.get().max(ticks));
        }
    }

    pub(crate) fn poll_counts(&self) -> PollCounts {
        let rare = self.rare.get();
        PollCounts {
            polls: self.polls.get(),
            total_ticks: rare.map_or(0, |rare| rare.total.get()),
            longest_ticks: rare.map_or(0, |rare| rare.longest.get()),
        }
    }

    /// The value that goes with the task, until its future is gone.
    pub(crate) fn metadata(&self) -> Option<Metadata> {
        let place = &self.rare.get()?.metadata;
        let metadata = place.take();
        place.set(metadata.clone());
        metadata
    }

    /// Takes the value away that goes with the task.
    #[inline]
    pub(crate) fn take_metadata(&self) -> Option<Metadata> {
        self.rare.get()?.metadata.take()
    }

    /// The name given.
    pub(crate) fn name(&self) -> Option<&str> {
        self.rare.get()?.name.as_deref()
    }

    /// What the thread is occupied with while the task is polled.
    pub(crate) fn occupant(&self) -> Occupant<'_> {
        Occupant::Task {
            name: self.name(),
            location: self.location,
        }
    }

    /// The name given, or where it was spawned.
    pub(crate) fn describe(&self) -> String {
        self.occupant().describe()
    }
}

/// Which of the listed an exit cancels.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Doom {
    None,
    /// Those that were there when it began to.
    Old,
    All,
}

/// The live tasks of one thread, newest first. Owner only.
pub(crate) struct LiveList {
    first: Cell<*const LiveNode>,
    /// The newest that the exit is to cancel: older ones all are, newer ones only
    /// if all are doomed. So none is looked at twice, whatever they spawn.
    next_doomed: Cell<*const LiveNode>,
    doom: Cell<Doom>,
    len: Cell<usize>,
}

impl LiveList {
    pub(crate) fn new() -> Self {
        LiveList {
            first: Cell::new(ptr::null()),
            next_doomed: Cell::new(ptr::null()),
            doom: Cell::new(Doom::None),
            len: Cell::new(0),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len.get()
    }

    /// Lists `node`.
    ///
    /// # Safety
    ///
    /// `node` is on no list, stays where it is until it was removed from this
    /// one, and is from now on touched by the owner of the list only. As long
    /// as it is listed, `cancel(subject)` may be called once by the owner,
    /// outside of any callback; it takes `node` off the list.
    #[inline]
    pub(crate) unsafe fn insert(&self, node: &LiveNode, cancel: Cancel, subject: *const ()) {
        debug_assert!(!node.listed.get());
        let first = self.first.replace(node);
        node.previous.set(ptr::null());
        node.next.set(first);
        node.listed.set(true);
        node.spared.set(self.doom.get() != Doom::None);
        node.cancel.set(Some((cancel, subject)));
        if !first.is_null() {
            // SAFETY: a listed node stays valid until removed (the contract of
            // `insert`), and only the owner touches it.
            unsafe { (*first).previous.set(node) };
        }
        self.len.set(self.len.get() + 1);
    }

    /// Replaces what cancels a listed node, under the contract of `insert`.
    ///
    /// # Safety
    ///
    /// As for [`LiveList::insert`], for a node that is on this list.
    #[inline]
    pub(crate) unsafe fn set_cancel(&self, node: &LiveNode, cancel: Cancel, subject: *const ()) {
        debug_assert!(node.listed.get());
        node.cancel.set(Some((cancel, subject)));
    }

    /// Takes `node` off the list, if it is on it.
    ///
    /// # Safety
    ///
    /// The caller is the owner of the list, and `node` is on this list or none.
    #[inline]
    pub(crate) unsafe fn remove(&self, node: &LiveNode) {
        if !node.listed.replace(false) {
            return;
        }
        let (previous, next) = (node.previous.get(), node.next.get());
        if ptr::eq(self.next_doomed.get(), node) {
            self.next_doomed.set(next);
        }
        // SAFETY: the neighbours of a listed node are listed, so valid, and
        // only the owner touches them.
        unsafe {
            if previous.is_null() {
                self.first.set(next);
            } else {
                (*previous).next.set(next);
            }
            if !next.is_null() {
                (*next).previous.set(previous);
            }
        }
        self.len.set(self.len.get() - 1);
    }

    /// Calls `f` for each listed node; `f` must not touch the list.
    pub(crate) fn for_each(&self, mut f: impl FnMut(&LiveNode)) {
        let mut node = self.first.get();
        while !node.is_null() {
            // SAFETY: a listed node is valid, and the list does not change.
            let current = unsafe { &*node };
            f(current);
            node = current.next.get();
        }
    }

    /// Wakes what is listed.
    pub(crate) fn wake_all(&self) {
        // The wakes of our own tasks run no foreign code, and change no list.
        self.for_each(|node| {
            let vtable = node.waker_vtable.get().expect("set before it is listed");
            let raw = RawWaker::new(node.waker_data.get(), vtable);
            // SAFETY: data and table came from a waker of the task; it is not
            // dropped, so the reference count stays right, and a task is alive
            // while it is listed.
            ManuallyDrop::new(unsafe { Waker::from_raw(raw) }).wake_by_ref();
        });
    }

    /// Dooms all that are listed now; those listed from now on are spared.
    pub(super) fn doom_old(&self) {
        self.doom.set(Doom::Old);
        self.next_doomed.set(self.first.get());
    }

    /// Dooms all that are listed, now or later.
    pub(super) fn doom_all(&self) {
        self.doom.set(Doom::All);
        self.next_doomed.set(self.first.get());
    }

    /// Whether the exit is about to cancel a listed node: it is not run any more.
    #[inline]
    pub(crate) fn dooms(&self, node: &LiveNode) -> bool {
        match self.doom.get() {
            Doom::None => false,
            Doom::Old => !node.spared.get(),
            Doom::All => true,
        }
    }

    /// Cancels the newest of the doomed; says whether there was one. The node is
    /// off the list afterwards.
    pub(super) fn cancel_one(&self) -> bool {
        let newest = match self.doom.get() {
            Doom::All => self.first.get(),
            _ => self.next_doomed.get(),
        };
        // SAFETY: a listed node is valid.
        let Some(node) = (unsafe { newest.as_ref() }) else {
            return false;
        };
        if let Some((cancel, subject)) = node.cancel.get() {
            // SAFETY: by the contract of `insert`; the node may be gone when this
            // returns, and is not touched again.
            unsafe { cancel(subject) };
        }
        true
    }
}
