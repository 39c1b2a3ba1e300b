//! The owner's own queue: what a thread sends to itself and the tasks it wakes
//! itself. No atomics.
//!
//! One poll runs what was queued when it began. A task that another one spawns or
//! wakes meanwhile is run by the same poll, as far as its batch goes, if only such
//! tasks are before it, which saves a poll per hand-over; messages and tasks that
//! woke themselves wait for the next, behind a round of pollers and timers.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use super::message::{Message, Queued};

#[derive(Default)]
pub(crate) struct ReadyQueue {
    messages: RefCell<VecDeque<Queued>>,
    limited: Cell<usize>,
    /// How many from the front the poll under way may run.
    open: Cell<usize>,
}

impl ReadyQueue {
    // Inlined so that a message is written once, into its place.
    #[inline(always)]
    pub(crate) fn push(&self, message: Message) {
        if message.is_limited() {
            self.limited.set(self.limited.get() + 1);
        }
        let message = message.into_queued();
        self.messages.borrow_mut().push_back(message);
    }

    /// Queues a task that was spawned or woken, to be run by the poll under way if nothing
    /// that has to wait is before it.
    #[inline(always)]
    pub(crate) fn push_task(&self, task: Message) {
        let task = task.into_queued();
        let mut messages = self.messages.borrow_mut();
        if self.open.get() == messages.len() {
            self.open.set(messages.len() + 1);
        }
        messages.push_back(task);
    }

    /// Begins a poll, which may run what is queued now.
    #[inline]
    pub(crate) fn begin(&self) {
        self.open.set(self.messages.borrow().len());
    }

    /// Whether the poll under way may run another.
    #[inline]
    pub(crate) fn has_open(&self) -> bool {
        self.open.get() > 0
    }

    /// The next that the poll under way may run.
    #[inline]
    pub(crate) fn pop_open(&self) -> Option<Message> {
        let open = self.open.get();
        if open == 0 {
            return None;
        }
        self.open.set(open - 1);
        self.pop()
    }

    #[inline]
    pub(crate) fn pop(&self) -> Option<Message> {
        let queued = self.messages.borrow_mut().pop_front()?;
        // SAFETY: only `push` and `push_task` queue, and this took it out.
        let message = unsafe { Message::from_queued(queued) };
        if message.is_limited() {
            self.limited.set(self.limited.get() - 1);
        }
        Some(message)
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.messages.borrow().is_empty()
    }

    /// How many explicit messages wait here.
    #[inline]
    pub(crate) fn limited(&self) -> usize {
        self.limited.get()
    }
}

impl Drop for ReadyQueue {
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}
