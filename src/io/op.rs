//! Operations in flight: what they ask, who owns their memory, and the future that waits for one.
//!
//! The rule of this room (cancel safety): from submission to completion the kernel may use an
//! operation's buffer and descriptor, so somebody must own them all that time. While the future
//! lives it does; when it is dropped early it hands them to the table's slot, which keeps them until
//! the completion comes. A slot is freed only after its completion, so a key in the kernel's hands
//! never names another operation. Leaking the future leaks the buffer, which is safe.
//!
//! Only the driver's OS thread touches any of this.

use std::any::Any;
use std::collections::VecDeque;
use std::ffi::c_char;
use std::future::Future;
use std::io;
use std::os::fd::RawFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use slab::Slab;

use super::readiness::{Direction, Sources};
use super::state::Core;

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
    },
    Write {
        fd: RawFd,
        ptr: *const u8,
        len: u32,
        offset: u64,
        direct: bool,
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
/// Every address and descriptor in `request`'s answer stays valid, and unused by anyone else in a
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
    /// In flight; the future is gone and the slot owns the payload.
    Orphan(Box<dyn Abandon>, Ending),
    /// In flight: a one-shot wait for readiness, owning what it waits on.
    Watch {
        source: Option<usize>,
        direction: Direction,
        _owner: Rc<dyn Any>,
    },
    /// In flight: an operation with many completions.
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
    fn abandon(self: Box<Self>, completion: Completion);
}

struct OrphanPayload<P: Payload>(P);

impl<P: Payload> Abandon for OrphanPayload<P> {
    fn abandon(self: Box<Self>, completion: Completion) {
        Box::new(self.0).abandoned(completion.result);
    }
}

/// What must run after the driver's state is released, because it is foreign code: it may call back
/// into the driver.
pub(crate) enum Effect {
    Wake(Waker),
    Abandon(Box<dyn Abandon>, Completion),
    Drop(#[expect(dead_code, reason = "held to be dropped")] Rc<dyn Any>),
}

impl Effect {
    pub(crate) fn run(self) {
        match self {
            Effect::Wake(waker) => waker.wake(),
            Effect::Abandon(payload, completion) => payload.abandon(completion),
            Effect::Drop(_) => {}
        }
    }
}

/// Where a back-end reports completions; it borrows the tables, not the back-end.
pub(crate) struct Sink<'a> {
    pub(crate) slots: &'a mut Slab<Slot>,
    pub(crate) sources: &'a mut Sources,
    pub(crate) effects: &'a mut Vec<Effect>,
    /// Completions reported so far.
    pub(crate) reaped: usize,
    /// Operations that are no longer in flight.
    pub(crate) finished: usize,
}

impl Sink<'_> {
    /// Takes the completion of the operation `key`; `more` says that others will follow.
    pub(crate) fn complete(&mut self, key: usize, completion: Completion, more: bool) {
        self.reaped += 1;
        self.finished += usize::from(!more);
        let Some(slot) = self.slots.get_mut(key) else {
            debug_assert!(false, "completion for the unknown operation {key}");
            return;
        };
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
            Slot::Done(_) => debug_assert!(false, "operation {key} completed twice"),
            Slot::Orphan(..) | Slot::Watch { .. } if more => {}
            Slot::Orphan(..) | Slot::Watch { .. } => match self.slots.remove(key) {
                Slot::Orphan(payload, _) => {
                    self.effects.push(Effect::Abandon(payload, completion));
                }
                Slot::Watch {
                    source,
                    direction,
                    _owner,
                } => {
                    if let Some(source) = source {
                        let error = (completion.result < 0).then_some(-completion.result);
                        self.sources.ready(source, direction, error, self.effects);
                    }
                    self.effects.push(Effect::Drop(_owner));
                }
                _ => unreachable!("matched above"),
            },
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
    key: usize,
    payload: Option<P>,
}

impl<P: Payload> Op<P> {
    /// `key` must be a `Slot::Waiting` made for `payload`.
    pub(crate) fn new(core: Rc<Core>, key: usize, payload: P) -> Self {
        Op {
            core,
            key,
            payload: Some(payload),
        }
    }
}

// The payload is never pinned: only what it points to must stay in place.
impl<P: Payload> Unpin for Op<P> {}

impl<P: Payload> Future for Op<P> {
    type Output = (Completion, P);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let completion = std::task::ready!(self.core.poll_slot(self.key, cx));
        let payload = self
            .payload
            .take()
            .expect("operation polled after it completed");
        Poll::Ready((completion, payload))
    }
}

impl<P: Payload> Drop for Op<P> {
    fn drop(&mut self) {
        let Some(payload) = self.payload.take() else {
            return;
        };
        self.core
            .abandon_slot(self.key, Box::new(OrphanPayload(payload)));
    }
}
