//! The thread's own queue, of messages: see [`OwnQueue`] for their order.

use super::local::Local;
use super::message::{Message, Queued};
use crate::sync::{OwnEntry, OwnQueue};

impl OwnEntry for Queued {
    #[inline]
    fn is_task(&self) -> bool {
        self.vtable().task
    }
}

/// What the thread sends to itself, and the tasks that it wakes itself.
pub(crate) struct ReadyQueue(OwnQueue<Queued>);

impl ReadyQueue {
    pub(super) fn new(limit: usize) -> Self {
        ReadyQueue(OwnQueue::new(limit))
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Queueing, and what is next. Since a `Local` is the owner's, so is the caller:
/// the only consumer of the thread's mailbox.
impl Local {
    /// Sends a message of the thread to itself, behind all that was sent to it. An
    /// explicit one counts against the limit, which the caller has looked at.
    #[inline(always)]
    pub(crate) fn send_to_itself(&self, message: Message, explicit: bool) {
        let queued = message.into_queued();
        // SAFETY: this is the owner, and the mailbox the thread's.
        unsafe {
            let ready = &self.ready.0;
            ready.push_message(&self.shared.mailbox, queued, explicit);
        }
    }

    /// Queues a task that its own thread has spawned or woken; one that gives way
    /// waits for the next poll.
    #[inline(always)]
    pub(crate) fn queue_task(&self, task: Message, gives_way: bool) {
        self.ready.0.push_task(task.into_queued(), gives_way);
    }

    #[inline]
    pub(super) fn begin_messages(&self) {
        self.ready.0.begin();
    }

    /// The next message or task that the poll under way may run. `looks` is true
    /// until it has found the mailbox empty.
    #[inline]
    pub(super) fn next_message(&self, looks: &mut bool) -> Option<Message> {
        // SAFETY: this is the owner, and the mailbox the thread's; what is queued
        // was a message, and is taken out once.
        unsafe {
            let own = |queued| Message::from_queued(queued);
            self.ready.0.next(&self.shared.mailbox, looks, own)
        }
    }

    /// Takes out what the thread has sent itself or woken, whatever its turn.
    pub(super) fn take_unrun(&self) -> Option<Message> {
        // SAFETY: as above.
        unsafe {
            let queued = self.ready.0.pop_unordered(&self.shared.mailbox)?;
            Some(Message::from_queued(queued))
        }
    }
}
