//! The requests of one connection that are in flight, and the limits that bound them.
//!
//! Shared by the connection task and its request tasks, which all run on one thread:
//! cells are enough. Every request in flight holds a [`Ticket`]; what a client can make
//! the server hold is the sum of the tickets and of the unsent replies.

use std::cell::{Cell, RefCell, RefMut};
use std::io;
use std::rc::Rc;
use std::task::{Context, Waker};

use crate::buffers::{CHUNK, Outbox};
use crate::protocol::{ErrorCode, Refusal, ReplyStyle, Request};

/// Requests of one connection that wait for the disk at the same time.
pub(crate) const MAX_TASKS: usize = 256;

/// Bytes one connection holds in requests in flight and unsent replies. A single request
/// is served whatever its size, up to the export's maximum.
pub(crate) const MAX_BYTES: usize = 32 << 20;

/// Unsent replies at which serving stops until they are sent.
const HIGH_WATER: usize = CHUNK / 2;

/// The part of a connection that its request tasks share with it.
#[derive(Default)]
pub(crate) struct Flight {
    outbox: RefCell<Outbox>,
    tasks: Cell<usize>,
    /// Held by the tasks.
    bytes: Cell<usize>,
    /// Of the connection task.
    waker: RefCell<Option<Waker>>,
}

impl Flight {
    /// The replies on their way out. Not to be held while a request may finish.
    pub(crate) fn outbox(&self) -> RefMut<'_, Outbox> {
        self.outbox.borrow_mut()
    }

    /// Requests that hold a ticket.
    pub(crate) fn tasks(&self) -> usize {
        self.tasks.get()
    }

    fn is_empty(&self) -> bool {
        self.tasks.get() == 0 && self.outbox.borrow().queued() == 0
    }

    /// Whether one more request, which will hold `bytes`, may be taken up.
    pub(crate) fn admits(&self, bytes: usize) -> bool {
        let queued = self.outbox.borrow().queued();
        self.tasks.get() < MAX_TASKS
            && queued < HIGH_WATER
            && (queued + self.bytes.get() + bytes <= MAX_BYTES || self.is_empty())
    }

    /// Has the connection task woken whenever a request finishes.
    pub(crate) fn wait(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        match &mut *waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *waker = Some(cx.waker().clone()),
        }
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

/// One request in flight: its share of the limits, and its right to one reply.
pub(crate) struct Ticket {
    flight: Rc<Flight>,
    style: ReplyStyle,
    pub(crate) request: Request,
    bytes: usize,
    answered: bool,
}

impl Ticket {
    pub(crate) fn new(
        flight: &Rc<Flight>,
        style: ReplyStyle,
        request: Request,
        bytes: usize,
    ) -> Ticket {
        flight.tasks.set(flight.tasks.get() + 1);
        flight.bytes.set(flight.bytes.get() + bytes);
        Ticket {
            flight: Rc::clone(flight),
            style,
            request,
            bytes,
            answered: false,
        }
    }

    /// Whether anybody is left to read the reply.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.flight.outbox.borrow().is_broken()
    }

    /// Replies without data.
    pub(crate) fn answer(mut self, status: io::Result<()>) {
        let status = status.map_err(|error| Refusal::from(&error));
        let frame = self.style.status(&self.request, status);
        self.flight.outbox.borrow_mut().push(frame.as_bytes());
        self.answered = true;
    }

    /// Replies with a whole frame: header and data.
    pub(crate) fn answer_with(mut self, frame: Vec<u8>) {
        self.flight.outbox.borrow_mut().push_owned(frame);
        self.answered = true;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.answered {
            // The task panicked or was cancelled. The client must not wait for ever.
            let refusal = Refusal {
                code: ErrorCode::Io,
                message: "the request was abandoned",
            };
            let frame = self.style.status(&self.request, Err(refusal));
            self.flight.outbox.borrow_mut().push(frame.as_bytes());
        }
        self.flight.tasks.set(self.flight.tasks.get() - 1);
        self.flight.bytes.set(self.flight.bytes.get() - self.bytes);
        self.flight.wake();
    }
}
