//! The owner's own queue: what a thread sends to itself and the tasks it wakes
//! itself. No atomics.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use super::message::Message;

#[derive(Default)]
pub(crate) struct ReadyQueue {
    messages: RefCell<VecDeque<Message>>,
    limited: Cell<usize>,
}

impl ReadyQueue {
    #[inline]
    pub(crate) fn push(&self, message: Message) {
        if message.is_limited() {
            self.limited.set(self.limited.get() + 1);
        }
        self.messages.borrow_mut().push_back(message);
    }

    #[inline]
    pub(crate) fn pop(&self) -> Option<Message> {
        let message = self.messages.borrow_mut().pop_front()?;
        if message.is_limited() {
            self.limited.set(self.limited.get() - 1);
        }
        Some(message)
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.messages.borrow().len()
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
