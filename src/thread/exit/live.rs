//! The list of things on a thread that must be cancelled, on the thread, before
//! it can read EXITED: its tasks.
//!
//! The list is intrusive: a task embeds a [`LiveNode`], so that being listed
//! costs a few stores and no allocation. This floor knows of a task only that
//! it can be told to cancel itself and that it can be named.

use std::cell::Cell;
use std::ptr;

use super::ExitHolder;
use crate::thread::local::Local;
use crate::thread::part::Part;
use crate::thread::placement::bound::BoundBy;

/// What a thread may do to what it lists.
pub(crate) struct Member {
    /// Cancels it: drops its user content in place, or has that done before it is next
    /// run, and takes it off the list. Called by the owner, outside of any callback.
    pub(crate) cancel: unsafe fn(*const LiveNode),
    /// Names it, for reports.
    pub(crate) describe: unsafe fn(*const LiveNode) -> String,
    /// Whether it keeps its thread on its OS thread.
    pub(crate) binds: unsafe fn(*const LiveNode) -> bool,
}

/// The place of a member in its thread's [`LiveList`], embedded in it.
pub(crate) struct LiveNode {
    previous: Cell<*const LiveNode>,
    next: Cell<*const LiveNode>,
    member: &'static Member,
}

impl LiveNode {
    #[inline]
    pub(crate) fn new(member: &'static Member) -> Self {
        LiveNode {
            previous: Cell::new(ptr::null()),
            next: Cell::new(ptr::null()),
            member,
        }
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

    /// Lists `node`. Says whether an exit that has begun to cancel spares it; the
    /// member remembers that, for [`LiveList::dooms`].
    ///
    /// # Safety
    ///
    /// `node` is on no list, valid for all that its [`Member`] asks for, stays where it
    /// is until it was removed from this list, and is from now on touched by the owner
    /// of the list only. As long as it is listed, it may be cancelled once by the owner,
    /// outside of any callback, which takes it off the list.
    #[inline]
    pub(crate) unsafe fn insert(&self, node: *const LiveNode) -> bool {
        let first = self.first.replace(node);
        // SAFETY: `node` is valid (by this function's contract), and so is a listed
        // one until it is removed; only the owner touches them.
        unsafe {
            (*node).previous.set(ptr::null());
            (*node).next.set(first);
            if !first.is_null() {
                (*first).previous.set(node);
            }
        }
        self.len.set(self.len.get() + 1);
        self.doom.get() != Doom::None
    }

    /// Takes `node` off the list.
    ///
    /// # Safety
    ///
    /// The caller is the owner of the list, and `node` is on it.
    #[inline]
    pub(crate) unsafe fn remove(&self, node: &LiveNode) {
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

    /// Calls `f` for each listed node, which is valid; `f` must not touch the list.
    pub(crate) fn for_each(&self, mut f: impl FnMut(*const LiveNode)) {
        let mut node = self.first.get();
        while !node.is_null() {
            f(node);
            // SAFETY: a listed node is valid, and the list does not change.
            node = unsafe { (*node).next.get() };
        }
    }

    /// Calls `f` for each member, by its node, which is valid for its functions; `f` must
    /// not touch the list.
    fn for_each_member(&self, mut f: impl FnMut(&'static Member, *const LiveNode)) {
        // SAFETY: a listed node is valid.
        self.for_each(|node| f(unsafe { (*node).member }, node));
    }

    /// Dooms all that are listed now; those listed from now on are spared.
    pub(in crate::thread) fn doom_old(&self) {
        self.doom.set(Doom::Old);
        self.next_doomed.set(self.first.get());
    }

    /// Dooms all that are listed, now or later.
    pub(in crate::thread) fn doom_all(&self) {
        self.doom.set(Doom::All);
        self.next_doomed.set(self.first.get());
    }

    /// Whether the exit is about to cancel a listed member, of which [`insert`] said
    /// whether it is `spared`: it is not run any more.
    ///
    /// [`insert`]: LiveList::insert
    #[inline]
    pub(crate) fn dooms(&self, spared: impl FnOnce() -> bool) -> bool {
        match self.doom.get() {
            Doom::None => false,
            Doom::Old => !spared(),
            Doom::All => true,
        }
    }

    /// Cancels the newest of the doomed; says whether there was one. The node is
    /// off the list afterwards.
    pub(in crate::thread) fn cancel_one(&self) -> bool {
        let newest = match self.doom.get() {
            Doom::All => self.first.get(),
            _ => self.next_doomed.get(),
        };
        if newest.is_null() {
            return false;
        }
        // SAFETY: by the contract of `insert`; the node may be gone when this
        // returns, and is not touched again.
        unsafe { ((*newest).member.cancel)(newest) };
        true
    }
}

impl Part for LiveList {
    fn holds(&self) -> bool {
        self.len() > 0
    }

    fn holders(&self, holders: &mut Vec<ExitHolder>) {
        self.for_each_member(|member, node| {
            // SAFETY: a listed node is valid for its member's functions.
            holders.push(ExitHolder::Task(unsafe { (member.describe)(node) }));
        });
    }

    fn binders(&self, by: &mut Vec<BoundBy>) -> usize {
        self.for_each_member(|member, node| {
            // SAFETY: a listed node is valid for its member's functions.
            unsafe {
                if (member.binds)(node) {
                    by.push(BoundBy::Task((member.describe)(node)));
                }
            }
        });
        0
    }

    fn cancel(&self, _local: &Local) {
        while self.cancel_one() {}
    }
}
