//! The owner's own queue beside its mailbox: what a thread sends to itself, and the
//! tasks that it wakes itself, without an atomic read-modify-write.
//!
//! # One FIFO
//!
//! Messages run in the order sent, whoever sent them. The mailbox keeps that order
//! among its own, this queue among its own; between the two it is kept by *marks*:
//! with each message goes the point that the mailbox had got to when it was sent.
//! Until the mailbox has reached it, the message is not run, and while the message
//! waits, nothing behind that point is taken out of the mailbox. A sender that has
//! claimed a position and not written it holds up what was sent later, here as in
//! the mailbox. Messages that follow each other at the same point share a mark.
//!
//! Tasks keep their place among the owner's messages. With what others sent they
//! take turns, so that neither starves the other: a batch may be 1, so whose turn
//! it is lasts beyond the poll. They cannot keep a message from its turn for ever,
//! nor it them: what is before it was there when it was sent.
//!
//! # One poll
//!
//! A poll runs what was queued when it began. A task that another one spawns or
//! wakes meanwhile is run by the same poll, as far as its batch goes, if only such
//! tasks are before it, which saves a poll per hand-over; messages and tasks that
//! woke themselves wait for the next, behind a round of pollers and timers.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use super::mailbox::{Mailbox, Point};

/// What a queue asks of its entries.
pub(crate) trait OwnEntry {
    /// Whether it is a task, whose order with what others send is free.
    fn is_task(&self) -> bool;
}

/// Where `count` messages in succession stand against the mailbox.
struct Mark {
    after: Point,
    /// Whether they count against the limit.
    limited: bool,
    count: usize,
}

/// Whose turn it is.
pub(crate) enum Turn {
    /// The own queue's: [`OwnQueue::take`].
    Own,
    /// The mailbox's: pop it, and say [`OwnQueue::mailbox_had`].
    Mailbox,
    /// Nobody's: the poll under way may run no more.
    Nobody,
}

/// Owner only.
pub(crate) struct OwnQueue<T> {
    entries: RefCell<VecDeque<T>>,
    /// How many messages the first mark is for: none only if there is none here.
    first_count: Cell<usize>,
    /// The rest of the first mark, by itself since there is seldom a second.
    first_after: Cell<Point>,
    first_limited: Cell<bool>,
    /// Whether the mailbox was seen to have reached it.
    reached: Cell<bool>,
    /// How many marks are behind it, in `others`.
    other_marks: Cell<usize>,
    others: RefCell<VecDeque<Mark>>,
    /// How many entries from the front the poll under way may run.
    open: Cell<usize>,
    /// Whether it is the mailbox's turn, when both have some.
    mailbox_next: Cell<bool>,
    /// Whether the poll under way still looks into the mailbox: it does until it
    /// has found it empty.
    looks: Cell<bool>,
    /// From how many limited messages on the mailbox is crowded.
    crowd: usize,
}

impl<T: OwnEntry> OwnQueue<T> {
    /// The own queue beside `mailbox`, for as many explicit messages in both.
    pub(crate) fn new<M>(mailbox: &Mailbox<M>, limit: usize) -> Self {
        OwnQueue {
            entries: RefCell::default(),
            first_count: Cell::new(0),
            first_after: Cell::default(),
            first_limited: Cell::new(false),
            reached: Cell::new(false),
            other_marks: Cell::new(0),
            others: RefCell::default(),
            open: Cell::new(0),
            mailbox_next: Cell::new(true),
            looks: Cell::new(true),
            crowd: mailbox.crowd(limit),
        }
    }

    /// Queues a message, behind everything that was sent before. A limited one is
    /// counted, whether or not that goes beyond the limit.
    ///
    /// # Safety
    ///
    /// The caller is the owner: the only consumer of `mailbox`, which is the same
    /// in all calls.
    // Inlined so that a message is written once, into its place.
    #[inline(always)]
    pub(crate) unsafe fn push_message<M>(&self, mailbox: &Mailbox<M>, entry: T, limited: bool) {
        debug_assert!(!entry.is_task());
        // SAFETY: the caller is the only consumer.
        self.mark(unsafe { mailbox.end() }, limited);
        if limited {
            mailbox.count_own(self.crowd);
        }
        self.entries.borrow_mut().push_back(entry);
    }

    #[inline(always)]
    fn mark(&self, after: Point, limited: bool) {
        let count = self.first_count.get();
        if count == 0 {
            self.first_after.set(after);
            self.first_limited.set(limited);
            self.reached.set(false);
        } else if self.first_after.get() != after
            || self.first_limited.get() != limited
            || self.other_marks.get() > 0
        {
            return self.mark_behind(after, limited);
        }
        self.first_count.set(count + 1);
    }

    #[cold]
    fn mark_behind(&self, after: Point, limited: bool) {
        let mut others = self.others.borrow_mut();
        match others.back_mut() {
            Some(last) if (last.after, last.limited) == (after, limited) => last.count += 1,
            _ => others.push_back(Mark {
                after,
                limited,
                count: 1,
            }),
        }
        self.other_marks.set(others.len());
    }

    /// Queues a task that was spawned or woken. Unless it gives way, the poll under
    /// way runs it if nothing that has to wait is before it.
    #[inline(always)]
    pub(crate) fn push_task(&self, task: T, gives_way: bool) {
        debug_assert!(task.is_task());
        let mut entries = self.entries.borrow_mut();
        if !gives_way && self.open.get() == entries.len() {
            self.open.set(entries.len() + 1);
        }
        entries.push_back(task);
    }

    /// Begins a poll, which may run what is queued now.
    #[inline]
    pub(crate) fn begin(&self) {
        self.open.set(self.entries.borrow().len());
        self.looks.set(true);
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.borrow().is_empty()
    }

    /// Whose turn it is in the poll under way.
    ///
    /// # Safety
    ///
    /// As for [`OwnQueue::push_message`].
    #[inline(always)]
    pub(crate) unsafe fn turn<M>(&self, mailbox: &Mailbox<M>) -> Turn {
        let (own, others) = if self.first_count.get() == 0 {
            (self.open.get() > 0, self.looks.get())
        } else {
            // SAFETY: passed on.
            unsafe { self.may_be_next(mailbox) }
        };
        if others && (!own || self.mailbox_next.get()) {
            Turn::Mailbox
        } else if own {
            Turn::Own
        } else {
            Turn::Nobody
        }
    }

    /// Whether the first entry here, and whether the mailbox may be next, when
    /// messages wait here.
    ///
    /// # Safety
    ///
    /// As for [`OwnQueue::push_message`].
    #[inline]
    unsafe fn may_be_next<M>(&self, mailbox: &Mailbox<M>) -> (bool, bool) {
        let open = self.open.get() > 0;
        // SAFETY: the caller is the only consumer.
        if self.reached.get() || unsafe { mailbox.has_reached(self.first_after.get()) } {
            self.reached.set(true);
            return (open, false);
        }
        let entries = self.entries.borrow();
        let may_pass = open && entries.front().is_some_and(OwnEntry::is_task);
        (may_pass, self.looks.get())
    }

    /// Says whether the mailbox had a message when it was its turn.
    #[inline(always)]
    pub(crate) fn mailbox_had(&self, one: bool) {
        if one {
            self.mailbox_next.set(false);
        } else {
            self.looks.set(false);
        }
    }

    /// Takes out what is next, if it is the own queue's turn.
    #[inline(always)]
    pub(crate) fn take<M>(&self, mailbox: &Mailbox<M>) -> Option<T> {
        self.mailbox_next.set(true);
        self.open.set(self.open.get().saturating_sub(1));
        let entry = self.entries.borrow_mut().pop_front()?;
        if self.first_count.get() > 0 && !entry.is_task() {
            self.unmark(mailbox);
        }
        Some(entry)
    }

    #[inline(always)]
    fn unmark<M>(&self, mailbox: &Mailbox<M>) {
        if self.first_limited.get() {
            mailbox.uncount_own(self.crowd);
        }
        let count = self.first_count.get() - 1;
        self.first_count.set(count);
        if count == 0 && self.other_marks.get() > 0 {
            self.next_mark();
        }
    }

    #[cold]
    fn next_mark(&self) {
        let mut others = self.others.borrow_mut();
        if let Some(next) = others.pop_front() {
            self.first_count.set(next.count);
            self.first_after.set(next.after);
            self.first_limited.set(next.limited);
            self.reached.set(false);
        }
        self.other_marks.set(others.len());
    }
}
