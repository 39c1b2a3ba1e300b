//! The thread's own queue, of messages: see [`OwnQueue`] for their order.

use super::local::Local;
use super::message::{Message, Queued};
use super::shared::Shared;
use crate::sync::{OwnEntry, OwnQueue, Turn};

impl OwnEntry for Queued {
    #[inline]
    fn is_task(&self) -> bool {
        self.vtable().task
    }
}

/// What the thread sends to itself, and the tasks that it wakes itself.
pub(crate) struct ReadyQueue(OwnQueue<Queued>);

impl ReadyQueue {
    pub(super) fn new(shared: &Shared) -> Self {
        ReadyQueue(OwnQueue::new(&shared.mailbox, shared.limit))
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

    /// Whose turn it is in the poll under way.
    #[inline(always)]
    pub(super) fn turn(&self) -> Turn {
        // SAFETY: this is the owner, and the mailbox the thread's.
        unsafe { self.ready.0.turn(&self.shared.mailbox) }
    }

    /// The next message from elsewhere, if it is their turn.
    #[inline(always)]
    pub(super) fn take_sent(&self) -> Option<Message> {
        // SAFETY: this is the only consumer; `pop` runs nothing of a message, so it
        // is not nested.
        let message = unsafe { self.shared.mailbox.pop() };
        self.ready.0.mailbox_had(message.is_some());
        message
    }

    /// The next of what the thread has sent itself or woken, if it is its turn.
    #[inline(always)]
    pub(super) fn take_own(&self) -> Option<Message> {
        let queued = self.ready.0.take(&self.shared.mailbox)?;
        // SAFETY: what is queued was a message, and is taken out once.
        Some(unsafe { Message::from_queued(queued) })
    }
}
