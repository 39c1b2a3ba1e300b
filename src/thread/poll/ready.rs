//! The thread's own queue, of messages: see [`OwnQueue`] for their order.

use super::message::{Message, Queued};
use crate::sync::{Mailbox, OwnEntry, OwnQueue};
use crate::thread::local::Local;

impl OwnEntry for Queued {
    type Message = Message;

    #[inline(always)]
    fn from_message(message: Message) -> Self {
        message.into_queued()
    }

    #[inline(always)]
    unsafe fn into_message(self) -> Message {
        // SAFETY: by the trait's contract it is turned back once.
        unsafe { Message::from_queued(self) }
    }

    #[inline]
    fn is_task(&self) -> bool {
        self.vtable().task
    }
}

/// What the thread sends to itself, and the tasks that it wakes itself.
pub(crate) struct ReadyQueue(OwnQueue<Queued>);

impl ReadyQueue {
    pub(in crate::thread) fn new(mailbox: &Mailbox<Message>, limit: usize) -> Self {
        ReadyQueue(OwnQueue::new(mailbox, limit))
    }

    #[inline]
    pub(in crate::thread) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Queueing, and what is next. Since a `Local` is the owner's, so is the caller:
/// the only consumer of the thread's mailbox.
impl Local {
    /// Sends a message of the library itself to its own thread, behind all that was
    /// sent to it. No limit holds it up.
    #[inline]
    pub(crate) fn send_to_itself(&self, message: Message) {
        // SAFETY: this is the owner, and the mailbox the thread's.
        unsafe { self.ready.0.push_message(&self.shared.mailbox, message) }
    }

    /// Sends an explicit message of the thread to itself, behind all that was sent
    /// to it, unless the limit is reached.
    #[inline(always)]
    pub(in crate::thread) fn send_explicit<F: FnOnce() + Send + 'static>(
        &self,
        f: F,
    ) -> Result<(), F> {
        // SAFETY: as above.
        unsafe {
            let ready = &self.ready.0;
            ready.push_limited(&self.shared.mailbox, f, Message::new)
        }
    }

    /// Queues a task that its own thread has spawned or woken; one that gives way
    /// waits for the next poll.
    #[inline(always)]
    pub(crate) fn queue_task(&self, task: Message, gives_way: bool) {
        self.ready.0.push_task(task, gives_way);
    }

    #[inline]
    pub(in crate::thread) fn begin_messages(&self, mailbox_open: usize) {
        self.ready.0.begin(mailbox_open);
    }

    /// Says whether the mailbox's messages go before the thread's own tasks.
    pub(in crate::thread) fn set_mailbox_next(&self, mailbox: bool) {
        self.ready.0.set_mailbox_next(mailbox);
    }

    /// Lets the poll under way go on with the tasks that gave way; see
    /// [`OwnQueue::reopen`].
    #[inline]
    pub(in crate::thread) fn reopen_messages(&self) -> bool {
        self.ready.0.reopen(&self.shared.mailbox)
    }

    /// The next message or task that the poll under way may run.
    #[inline]
    pub(in crate::thread) fn next_message(&self) -> Option<Message> {
        // SAFETY: as above.
        unsafe { self.ready.0.next(&self.shared.mailbox) }
    }

    /// [`Local::next_message`], if it is of the thread's own queue and of those asked for.
    #[inline]
    pub(super) fn next_message_if(&self, is_it: impl FnOnce(&Queued) -> bool) -> Option<Message> {
        self.ready.0.next_if(&self.shared.mailbox, is_it)
    }

    /// Takes out what the thread has sent itself or woken, whatever its turn.
    pub(in crate::thread) fn take_unrun(&self) -> Option<Message> {
        self.ready.0.pop(&self.shared.mailbox)
    }
}
