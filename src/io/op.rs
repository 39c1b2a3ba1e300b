//! Operations in flight: what they ask, who owns their memory, and the future that waits for one.
//!
//! The rule of this room (cancel safety): from submission to completion the kernel may use an
//! operation's buffer and descriptor, so they must have an owner all that time. While it lives the
//! future is the owner; when it is dropped early it hands them to the table's slot, which keeps
//! them until the completion comes. A slot is freed only after its completion, and no other ever
//! has its key: one that the kernel, a cancellation in the queue, or a future that is polled again
//! still holds names nothing then. Leaking the future leaks the buffer, which is safe.
//!
//! Only the driver's OS thread touches any of this.

use std::any::Any;
use std::collections::VecDeque;
use std::ffi::c_char;
use std::future::Future;
use std::io;
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::fixed::Known;
use super::readiness::{Direction, Sources};
use super::state::Core;
use super::table::{Key, Table};

/// The longest transfer one system call makes (`MAX_RW_COUNT`).
const MAX_TRANSFER: usize = 0x7fff_f000;

/// An operation as plain numbers and addresses, ready for a ring entry, an iocb or a system call.
#[derive(Clone, Copy)]
pub(crate) enum Request {
    Read {
        fd: RawFd,
        ptr: *mut u8,
        len: u32,
        offset: u64,
        direct: bool,
        known: Known,
    },
    Write {
        fd: RawFd,
        ptr: *const u8,
        len: u32,
        offset: u64,
        direct: bool,
        known: Known,
    },
    Sync {
        fd: RawFd,
        data_only: bool,
    },
    Allocate {
        fd: RawFd,
        mode: i32,
        offset: u64,
        len: u64,
    },
    Truncate {
        fd: RawFd,
        len: u64,
    },
    /// `POSIX_FADV_WILLNEED`.
    WillNeed {
        fd: RawFd,
        offset: u64,
        len: u32,
    },
    Open {
        path: *const c_char,
        flags: i32,
        mode: u32,
    },
    /// Of `path` from `fd` on; of `fd` itself where the path is empty and `flags` permit that.
    Stat {
        fd: RawFd,
        path: *const c_char,
        flags: i32,
        out: *mut libc::statx,
    },
    ReadVectored {
        fd: RawFd,
        parts: *const libc::iovec,
        count: u32,
        offset: u64,
    },
    WriteVectored {
        fd: RawFd,
        parts: *const libc::iovec,
        count: u32,
        offset: u64,
    },
    Rename {
        from: *const c_char,
        to: *const c_char,
    },
    /// With `AT_REMOVEDIR` of a directory.
    Unlink {
        path: *const c_char,
        flags: i32,
    },
    MakeDir {
        path: *const c_char,
        mode: u32,
    },
    Symlink {
        target: *const c_char,
        link: *const c_char,
    },
    Link {
        from: *const c_char,
        to: *const c_char,
    },
}

impl Request {
    pub(crate) fn ending(&self) -> Ending {
        match self {
            Request::Read { .. }
            | Request::ReadVectored { .. }
            | Request::WillNeed { .. }
            | Request::Open { .. }
            | Request::Stat { .. } => Ending::CancelledAtEnd,
            Request::Write { .. }
            | Request::Sync { .. }
            | Request::WriteVectored { .. }
            | Request::Allocate { .. }
            | Request::Truncate { .. }
            | Request::Rename { .. }
            | Request::Unlink { .. }
            | Request::MakeDir { .. }
            | Request::Symlink { .. }
            | Request::Link { .. } => Ending::ByItself,
        }
    }
}

/// A buffer length as the kernel takes it; longer ones become short transfers.
pub(crate) fn transfer_len(len: usize) -> u32 {
    len.min(MAX_TRANSFER) as u32
}

/// What an operation owns while it runs.
///
/// # Safety
///
/// Every address and descriptor in `request`'s answer stays valid, and unused by other code in a
/// conflicting way, until the payload is dropped, even if the payload is moved meanwhile.
pub(crate) unsafe trait Payload: 'static {
    /// The request; asked again if the operation was interrupted.
    fn request(&mut self) -> Request;

    /// Called instead of the future's continuation when the future was dropped before the
    /// completion: releases what `result` created (a descriptor, say).
    fn abandoned(self: Box<Self>, result: i32) {
        let _ = result;
    }
}

/// One completion as the kernel reports it.
///
/// # Examples
///
/// ```
/// use corespun::io::Completion;
///
/// let short_read = Completion { result: 512, flags: 0 };
/// assert_eq!(short_read.into_result().unwrap(), 512);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The operation's result: not negative on success, `-errno` on failure.
    pub result: i32,
    /// io_uring completion flags; 0 on other back-ends.
    pub flags: u32,
}

impl Completion {
    /// The result as an [`io::Result`].
    ///
    /// # Errors
    ///
    /// The operating system error in `result`.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::ErrorKind;
    /// use corespun::io::Completion;
    ///
    /// let failed = Completion { result: -libc::ENOENT, flags: 0 };
    /// assert_eq!(failed.into_result().unwrap_err().kind(), ErrorKind::NotFound);
    /// ```
    pub fn into_result(self) -> io::Result<u32> {
        u32::try_from(self.result).map_err(|_| io::Error::from_raw_os_error(-self.result))
    }
}

pub(crate) enum Slot {
    /// In flight; the future owns the payload.
    Waiting(Option<Waker>, Ending),
    /// Completed; the future has not looked yet.
    Done(Completion),
    /// In flight; the future is gone and the slot owns the payload, with the completions that came
    /// before the last one.
    Orphan(Box<dyn Abandon>, Ending, VecDeque<Completion>),
    /// In flight: a one-shot wait for readiness, owning what it waits on. No owner is left once the
    /// source is gone and the kernel holds the file.
    Watch {
        source: Key,
        direction: Direction,
        owner: Option<Rc<dyn Any>>,
    },
    /// In flight: an operation with many completions.
    #[cfg_attr(
        not(feature = "raw-io-uring"),
        expect(dead_code, reason = "only raw operations have many")
    )]
    Multi {
        queue: VecDeque<Completion>,
        ended: bool,
        waker: Option<Waker>,
    },
}

/// What becomes of an operation when its future is dropped, or the driver ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It ends by itself and should: a write that was started takes effect.
    ByItself,
    /// It changes nothing, and might never end: the end of the driver cancels it.
    CancelledAtEnd,
    /// It might never: it is cancelled.
    Cancelled,
}

/// A payload whose future is gone.
pub(crate) trait Abandon {
    /// For each completion that the future has not taken, in their order; then it is dropped.
    fn abandon(&mut self, completion: Completion);
}

struct OrphanPayload<P: Payload>(Option<P>);

impl<P: Payload> Abandon for OrphanPayload<P> {
    fn abandon(&mut self, completion: Completion) {
        if let Some(payload) = self.0.take() {
            Box::new(payload).abandoned(completion.result);
        }
    }
}

/// What must run after the driver's state is released, because it is foreign code: it may call back
/// into the driver.
pub(crate) enum Effect {
    Wake(Waker),
    /// Releases what the completions made, one by one, and drops the payload.
    Abandon(Box<dyn Abandon>, VecDeque<Completion>),
    Drop(Rc<dyn Any>),
}

impl Effect {
    /// A panic is reported and goes no further: the effects after this one are other operations'.
    pub(crate) fn run(self) {
        match self {
            Effect::Wake(waker) => contained("waker", || waker.wake()),
            Effect::Abandon(mut payload, completions) => {
                for completion in completions {
                    contained("release", || payload.abandon(completion));
                }
                contained("destructor", || drop(payload));
            }
            Effect::Drop(owner) => contained("destructor", || drop(owner)),
        }
    }
}

/// Drops foreign values one by one: of two that panic at once the process would die.
pub(super) fn drop_each<T>(values: impl IntoIterator<Item = T>) {
    for value in values {
        contained("destructor", || drop(value));
    }
}

/// Runs foreign code; says of which kind it was if it panics.
pub(super) fn contained(what: &str, f: impl FnOnce()) {
    // What it may leave half-changed is its own.
    let Err(payload) = catch_unwind(AssertUnwindSafe(f)) else {
        return;
    };
    let text = match payload.downcast_ref::<&str>() {
        Some(text) => text,
        None => payload
            .downcast_ref::<String>()
            .map_or("a payload that is not a string", String::as_str),
    };
    tracing::error!("a {what} of an I/O operation panicked: {text}");
    // So may the payload's destructor.
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(second);
    }
}

/// Where a back-end reports completions; it borrows the tables, not the back-end.
pub(crate) struct Sink<'a> {
    pub(crate) slots: &'a mut Table<Slot>,
    pub(crate) sources: &'a mut Sources,
    pub(crate) effects: &'a mut Vec<Effect>,
    /// Completions reported so far.
    pub(crate) reaped: usize,
    /// Operations that are no longer in flight.
    pub(crate) finished: usize,
}

impl Sink<'_> {
    /// Takes the completion of the operation `key`; `more` says that others will follow.
    pub(crate) fn complete(&mut self, key: Key, completion: Completion, more: bool) {
        let Some(slot) = self.slots.get_mut(key) else {
            debug_assert!(false, "completion for the unknown operation {key:?}");
            return;
        };
        self.reaped += 1;
        self.finished += usize::from(!more);
        match slot {
            Slot::Waiting(waker, _) => {
                self.effects.extend(waker.take().map(Effect::Wake));
                *slot = Slot::Done(completion);
            }
            Slot::Multi {
                queue,
                ended,
                waker,
            } => {
                queue.push_back(completion);
                *ended = !more;
                self.effects.extend(waker.take().map(Effect::Wake));
            }
            Slot::Done(_) => debug_assert!(false, "operation {key:?} completed twice"),
            Slot::Orphan(.., completions) => {
                completions.push_back(completion);
                if !more && let Some(Slot::Orphan(payload, _, completions)) = self.slots.remove(key)
                {
                    self.effects.push(Effect::Abandon(payload, completions));
                }
            }
            Slot::Watch {
                source, direction, ..
            } => {
                let (source, direction) = (*source, *direction);
                let result = completion.result;
                self.sources
                    .polled(source, direction, result, more, self.effects);
                if !more && let Some(Slot::Watch { owner, .. }) = self.slots.remove(key) {
                    self.effects.extend(owner.map(Effect::Drop));
                }
            }
        }
    }
}

/// The future of one operation. Gives the completion and the payload back.
///
/// # Cancel safety
///
/// Dropping it early leaves the operation running; its payload is kept until it completes.
pub(crate) struct Op<P: Payload> {
    core: Rc<Core>,
    /// None once the completion was given: there is no key left to ask with.
    running: Option<(Key, P)>,
}

impl<P: Payload> Op<P> {
    /// `key` must be a `Slot::Waiting` made for `payload`.
    pub(crate) fn new(core: Rc<Core>, key: Key, payload: P) -> Self {
        Op {
            core,
            running: Some((key, payload)),
        }
    }
}

// The payload is never pinned: only what it points to must stay in place.
impl<P: Payload> Unpin for Op<P> {}

impl<P: Payload> Future for Op<P> {
    type Output = (Completion, P);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some((key, _)) = self.running else {
            panic!("operation polled after it completed");
        };
        let completion = std::task::ready!(self.core.poll_slot(key, cx));
        let (_, payload) = self.running.take().expect("it was there");
        Poll::Ready((completion, payload))
    }
}

impl<P: Payload> Drop for Op<P> {
    fn drop(&mut self) {
        if let Some((key, payload)) = self.running.take() {
            self.core
                .abandon_slot(key, Box::new(OrphanPayload(Some(payload))));
        }
    }
}
