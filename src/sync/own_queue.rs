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

/// Owner only.
pub(crate) struct OwnQueue<T> {
    entries: RefCell<VecDeque<T>>,
    /// Those of the messages among the entries.
    marks: RefCell<VecDeque<Mark>>,
    /// How many of the entries are messages.
    messages: Cell<usize>,
    /// How many entries from the front the poll under way may run.
    open: Cell<usize>,
    /// Whether it is the mailbox's turn, when both have some.
    mailbox_next: Cell<bool>,
    /// How many explicit messages may wait, here and in the mailbox.
    limit: usize,
}

impl<T: OwnEntry> OwnQueue<T> {
    pub(crate) fn new(limit: usize) -> Self {
        OwnQueue {
            entries: RefCell::default(),
            marks: RefCell::default(),
            messages: Cell::new(0),
            open: Cell::new(0),
            mailbox_next: Cell::new(true),
            limit,
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
            mailbox.count_own(self.limit);
        }
        self.messages.set(self.messages.get() + 1);
        self.entries.borrow_mut().push_back(entry);
    }

    #[inline]
    fn mark(&self, after: Point, limited: bool) {
        let mut marks = self.marks.borrow_mut();
        if let Some(last) = marks.back_mut()
            && (last.after, last.limited) == (after, limited)
        {
            last.count += 1;
            return;
        }
        marks.push_back(Mark {
            after,
            limited,
            count: 1,
        });
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
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.borrow().is_empty()
    }

    /// What the poll under way runs next, of here by `own` or of the mailbox.
    /// `looks` says whether to look into the mailbox: no longer once that was found
    /// empty by this poll.
    ///
    /// # Safety
    ///
    /// As for [`OwnQueue::push_message`].
    #[inline]
    pub(crate) unsafe fn next<M>(
        &self,
        mailbox: &Mailbox<M>,
        looks: &mut bool,
        own: impl FnOnce(T) -> M,
    ) -> Option<M> {
        // SAFETY: the caller is the owner.
        let (own_may, mailbox_may) = match self.messages.get() {
            0 => (self.open.get() > 0, true),
            _ => unsafe { self.held_by_marks(mailbox) },
        };
        if *looks && mailbox_may && (!own_may || self.mailbox_next.get()) {
            // SAFETY: the caller is the only consumer, and `pop` runs nothing of a
            // message, so it is not nested.
            match unsafe { mailbox.pop() } {
                Some(message) => {
                    self.mailbox_next.set(false);
                    return Some(message);
                }
                None => *looks = false,
            }
        }
        if !own_may {
            return None;
        }
        self.mailbox_next.set(true);
        self.open.set(self.open.get() - 1);
        self.pop(mailbox).map(own)
    }

    /// Whether the first entry here, and the mailbox, may be next, when messages
    /// wait here.
    ///
    /// # Safety
    ///
    /// As for [`OwnQueue::push_message`].
    unsafe fn held_by_marks<M>(&self, mailbox: &Mailbox<M>) -> (bool, bool) {
        let marks = self.marks.borrow();
        let reached = marks
            .front()
            // SAFETY: the caller is the only consumer.
            .is_none_or(|first| unsafe { mailbox.has_reached(first.after) });
        let entries = self.entries.borrow();
        let may_pass = || entries.front().is_some_and(OwnEntry::is_task);
        let own = self.open.get() > 0 && (reached || may_pass());
        (own, !reached)
    }

    /// Takes the first entry out, whatever its turn.
    #[inline]
    fn pop<M>(&self, mailbox: &Mailbox<M>) -> Option<T> {
        let entry = self.entries.borrow_mut().pop_front()?;
        if self.messages.get() > 0 && !entry.is_task() {
            self.unmark(mailbox);
        }
        Some(entry)
    }

    #[inline]
    fn unmark<M>(&self, mailbox: &Mailbox<M>) {
        self.messages.set(self.messages.get() - 1);
        let mut marks = self.marks.borrow_mut();
        let Some(first) = marks.front_mut() else {
            return;
        };
        if first.limited {
            mailbox.uncount_own(self.limit);
        }
        first.count -= 1;
        if first.count == 0 {
            marks.pop_front();
        }
    }

    /// Takes the first entry out, whatever its turn: for who drops them all.
    ///
    /// # Safety
    ///
    /// As for [`OwnQueue::push_message`].
    pub(crate) unsafe fn pop_unordered<M>(&self, mailbox: &Mailbox<M>) -> Option<T> {
        self.pop(mailbox)
    }
}
