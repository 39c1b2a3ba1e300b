//! The owner's own queue beside its mailbox: what a thread sends to itself, and the
//! tasks that it wakes itself, without an atomic read-modify-write.
//!
//! # One FIFO
//!
//! Messages run in the order sent, whichever thread sent them. An own message is
//! queued here only while the mailbox is empty: no position claimed, nothing
//! spilled. Otherwise it goes through the mailbox, behind what waits there. So
//! every message here is older than every message in the mailbox, and runs first.
//! (Empty means nothing claimed, not only nothing readable: a sender that was
//! pre-empted between claim and write hides finished messages behind it.)
//!
//! Tasks that the owner spawns or wakes are queued here whatever the mailbox holds.
//! While no message is among them they take turns with it, so that neither starves
//! the other; a batch may be 1, so whose turn it is lasts beyond the poll. While one
//! is, none is added as long as the mailbox holds anything, so the mailbox's turn
//! comes.
//!
//! # One poll
//!
//! A poll runs what was queued when it began. A task that another one spawns or
//! wakes meanwhile is run by the same poll, as far as its batch goes, if only such
//! tasks are before it, which saves a poll per hand-over; messages and tasks that
//! woke themselves wait for the next, behind a round of pollers and timers. Where there
//! is nothing that such tasks could give way to, the poll may
//! [reopen](OwnQueue::reopen) the queue for them.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use super::mailbox::Mailbox;

/// A message in the own queue, in the form in which it is kept there.
pub(crate) trait OwnEntry: Sized {
    /// The message, as the mailbox has it.
    type Message;

    /// The form of a message for the queue.
    fn from_message(message: Self::Message) -> Self;

    /// Takes the message out again.
    ///
    /// # Safety
    ///
    /// Called once for each [`OwnEntry::from_message`].
    unsafe fn into_message(self) -> Self::Message;

    /// Whether it is a task, whose order with what others send is free.
    fn is_task(&self) -> bool;
}

/// Owner only.
pub(crate) struct OwnQueue<T: OwnEntry> {
    entries: RefCell<VecDeque<T>>,
    /// How many of the entries are messages.
    messages: Cell<usize>,
    /// How many entries from the front the poll under way may run.
    open: Cell<usize>,
    /// How many of the mailbox's messages the poll under way may run.
    mailbox_open: Cell<usize>,
    /// Whether it is the mailbox's turn, when both have some.
    mailbox_next: Cell<bool>,
    /// How many explicit messages may wait, here and in the mailbox.
    limit: usize,
    /// How many messages here make the mailbox crowded.
    crowd_at: usize,
}

impl<T: OwnEntry> OwnQueue<T> {
    /// The queue beside `mailbox`.
    pub(crate) fn new(mailbox: &Mailbox<T::Message>, limit: usize) -> Self {
        OwnQueue {
            entries: RefCell::default(),
            messages: Cell::new(0),
            open: Cell::new(0),
            mailbox_open: Cell::new(0),
            mailbox_next: Cell::new(true),
            limit,
            crowd_at: mailbox.crowd_at(limit),
        }
    }

    /// Sends a message of the owner to itself, behind everything that was sent
    /// before; the poll under way does not run it. There is no limit for it.
    ///
    /// # Safety
    ///
    /// The caller is the owner: the only consumer of `mailbox`, which is the same
    /// in all calls.
    #[inline]
    pub(crate) unsafe fn push_message(&self, mailbox: &Mailbox<T::Message>, message: T::Message) {
        if mailbox.is_empty() {
            self.push_here(mailbox, message);
        } else {
            // SAFETY: the caller is the only consumer.
            unsafe { self.push_behind(mailbox, message) };
        }
    }

    /// [`OwnQueue::push_message`] of `pack(content)`, unless as many messages wait
    /// as the limit allows.
    ///
    /// # Safety
    ///
    /// As there.
    // Inlined so that a message is written once, into its place.
    #[inline(always)]
    pub(crate) unsafe fn push_limited<C>(
        &self,
        mailbox: &Mailbox<T::Message>,
        content: C,
        pack: impl FnOnce(C) -> T::Message,
    ) -> Result<(), C> {
        if mailbox.is_empty() {
            if self.messages.get() >= self.limit {
                return Err(content);
            }
            self.push_here(mailbox, pack(content));
        } else {
            if mailbox.is_full(self.limit) {
                return Err(content);
            }
            // SAFETY: the caller is the only consumer.
            unsafe { self.push_behind(mailbox, pack(content)) };
        }
        Ok(())
    }

    #[inline(always)]
    fn push_here(&self, mailbox: &Mailbox<T::Message>, message: T::Message) {
        let messages = self.messages.get() + 1;
        self.messages.set(messages);
        mailbox.set_own(messages);
        if messages == self.crowd_at {
            mailbox.set_crowded(true);
        }
        let entry = T::from_message(message);
        self.entries.borrow_mut().push_back(entry);
    }

    /// # Safety
    ///
    /// As for [`OwnQueue::push_message`].
    #[cold]
    unsafe fn push_behind(&self, mailbox: &Mailbox<T::Message>, message: T::Message) {
        // SAFETY: the caller is the only consumer.
        let before = unsafe { mailbox.push_own(message) };
        self.mailbox_open.set(self.mailbox_open.get().min(before));
    }

    /// Queues a task that was spawned or woken. Unless it gives way, the poll under
    /// way runs it if nothing that has to wait is before it.
    #[inline(always)]
    pub(crate) fn push_task(&self, task: T::Message, gives_way: bool) {
        let task = T::from_message(task);
        debug_assert!(task.is_task());
        let mut entries = self.entries.borrow_mut();
        if !gives_way && self.open.get() == entries.len() {
            self.open.set(entries.len() + 1);
        }
        entries.push_back(task);
    }

    /// Begins a poll, which may run what is queued now, and so many of the mailbox's
    /// messages.
    #[inline]
    pub(crate) fn begin(&self, mailbox_open: usize) {
        self.open.set(self.entries.borrow().len());
        self.mailbox_open.set(mailbox_open);
    }

    /// Says whose turn it is, when both this and the mailbox have some.
    pub(crate) fn set_mailbox_next(&self, mailbox: bool) {
        self.mailbox_next.set(mailbox);
    }

    /// Lets the poll under way, which has run all that it may, run those tasks too
    /// that gave way. False where something else waits, or nothing.
    #[inline]
    pub(crate) fn reopen(&self, mailbox: &Mailbox<T::Message>) -> bool {
        let waiting = self.entries.borrow().len();
        if waiting == 0 || self.messages.get() > 0 || !mailbox.is_empty() {
            return false;
        }
        self.open.set(waiting);
        true
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.borrow().is_empty()
    }

    /// What the poll under way runs next.
    ///
    /// # Safety
    ///
    /// As for [`OwnQueue::push_message`].
    #[inline]
    pub(crate) unsafe fn next(&self, mailbox: &Mailbox<T::Message>) -> Option<T::Message> {
        let own = self.open.get() > 0;
        let others = self.mailbox_open.get() > 0 && self.messages.get() == 0;
        if others && (!own || self.mailbox_next.get()) {
            // SAFETY: the caller is the only consumer, and `pop` runs nothing of a
            // message, so it is not nested.
            if let Some(message) = unsafe { mailbox.pop() } {
                self.mailbox_open.set(self.mailbox_open.get() - 1);
                self.mailbox_next.set(false);
                return Some(message);
            }
            // Found empty: this poll does not look again.
            self.mailbox_open.set(0);
        }
        if !own {
            return None;
        }
        self.mailbox_next.set(true);
        self.open.set(self.open.get() - 1);
        self.pop(mailbox)
    }

    /// What the poll under way runs next, if that is the first entry here and `is_it`.
    #[inline]
    pub(crate) fn next_if(
        &self,
        mailbox: &Mailbox<T::Message>,
        is_it: impl FnOnce(&T) -> bool,
    ) -> Option<T::Message> {
        let open = self.open.get();
        if open == 0 || !self.entries.borrow().front().is_some_and(is_it) || !mailbox.is_empty() {
            return None;
        }
        self.mailbox_next.set(true);
        self.open.set(open - 1);
        self.pop(mailbox)
    }

    /// Takes the first entry out, whatever its turn: also for a caller that drops
    /// them all.
    #[inline]
    pub(crate) fn pop(&self, mailbox: &Mailbox<T::Message>) -> Option<T::Message> {
        let entry = self.entries.borrow_mut().pop_front()?;
        if !entry.is_task() {
            let messages = self.messages.get();
            self.messages.set(messages - 1);
            mailbox.set_own(messages - 1);
            if messages == self.crowd_at {
                mailbox.set_crowded(false);
            }
        }
        // SAFETY: `from_message` made every entry, and this one is out of the queue.
        Some(unsafe { entry.into_message() })
    }
}
