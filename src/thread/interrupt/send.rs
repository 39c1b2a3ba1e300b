//! Interrupts that move with their thread.
//!
//! Callback and descriptor are `Send`, which the compiler has checked where they were
//! registered, and both are in the owner's part of the thread, which has the epoll that
//! waits for them too: all of it goes along. The handle, which may be on any OS thread, is
//! a key by which the thread finds the interrupt, as that of a
//! [`SendPoller`](crate::thread::SendPoller) is.

use std::cell::RefCell;
use std::fmt;
use std::os::fd::{AsFd, RawFd};
use std::sync::Arc;

use slab::Slab;

use super::{InterruptError, add_handler};
use crate::interrupt::{FdOptions, Member, Readiness};
use crate::thread::SpdkThread;
use crate::thread::local::Local;
use crate::thread::poll::activity::Activity;
use crate::thread::poll::message::Message;
use crate::thread::shared::Shared;

/// Finds an interrupt again on its thread. Any OS thread may have it; it is that of no other
/// one, since only its handle, or the end of the thread, frees the place.
#[derive(Clone, Copy)]
struct InterruptKey(usize);

/// An interrupt that is registered, as its thread keeps it.
struct SentInterrupt {
    member: Member,
    /// Open for as long as it is registered.
    open: Box<dyn AsFd + Send>,
}

/// Those of one thread. Owner only.
#[derive(Default)]
pub(super) struct SentInterrupts {
    all: RefCell<Slab<SentInterrupt>>,
}

impl SentInterrupts {
    /// How many can be called: a handler that has panicked is not.
    pub(super) fn registered(&self) -> usize {
        let all = self.all.borrow();
        let members = all.iter().map(|(_, one)| &one.member);
        members.filter(|member| member.is_registered()).count()
    }

    fn insert(&self, member: Member, open: Box<dyn AsFd + Send>) -> InterruptKey {
        let interrupt = SentInterrupt { member, open };
        InterruptKey(self.all.borrow_mut().insert(interrupt))
    }

    fn take(&self, key: InterruptKey) -> Option<SentInterrupt> {
        self.all.borrow_mut().try_remove(key.0)
    }

    fn take_any(&self) -> Option<SentInterrupt> {
        let mut all = self.all.borrow_mut();
        let (slot, _) = all.iter().next()?;
        all.try_remove(slot)
    }

    /// Unregisters all.
    pub(super) fn end(&self, local: &Local) {
        while let Some(interrupt) = self.take_any() {
            local.drop_interrupt(interrupt);
        }
    }
}

impl Local {
    fn unregister_sent(&self, key: InterruptKey) {
        let interrupts = self.interrupts.get();
        if let Some(interrupt) = interrupts.and_then(|all| all.sent.take(key)) {
            self.drop_interrupt(interrupt);
        }
    }

    fn drop_interrupt(&self, interrupt: SentInterrupt) {
        if let Some(interrupts) = self.interrupts.get() {
            self.drop_contained(interrupts.group.remove_member(&interrupt.member));
        }
        self.drop_contained(interrupt.open);
    }
}

/// An [`Interrupt`](super::Interrupt) whose descriptor and callback are `Send`:
/// unregistered when dropped.
///
/// It lets its thread move to another OS thread, and moves with it: the reactor there
/// waits for it. The handle may be kept anywhere and dropped from any OS thread: on its
/// SpdkThread it is unregistered at once, from elsewhere when the thread has run a
/// message. It ends with its thread, which it does not keep from exiting.
///
/// # Examples
///
/// ```
/// use std::os::unix::net::UnixStream;
/// use std::{io::Write, sync::mpsc};
/// use corespun::thread::{SendInterrupt, ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let (mut peer, socket) = UnixStream::pair()?;
/// let (told, seen) = mpsc::channel();
/// let interrupt = runner.enter(|| SendInterrupt::register(socket, move |_event| {
///     told.send(std::thread::current().id()).unwrap();
/// }))?;
/// let parked = runner.park().expect("nothing on it has to stay");
/// peer.write_all(b"x")?;
/// let other = std::thread::spawn(move || {
///     parked.attach().poll(0, 0);
///     std::thread::current().id()
/// });
/// assert_eq!(other.join().unwrap(), seen.recv()?);
/// # drop(interrupt);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// What it holds must be `Send`:
///
/// ```compile_fail,E0277
/// # use corespun::thread::SendInterrupt;
/// let not_send = std::rc::Rc::new(1);
/// let ready = move |_event| drop(not_send.clone());
/// let interrupt = SendInterrupt::register(std::io::stdin(), ready);
/// ```
#[must_use = "dropping a SendInterrupt unregisters it"]
pub struct SendInterrupt {
    thread: Arc<Shared>,
    key: InterruptKey,
    fd: RawFd,
}

impl SendInterrupt {
    /// As [`Interrupt::register`](super::Interrupt::register).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn register<A: Into<Activity>>(
        fd: impl AsFd + Send + 'static,
        callback: impl FnMut(Readiness) -> A + Send + 'static,
    ) -> Result<SendInterrupt, InterruptError> {
        SendInterrupt::register_with(fd, FdOptions::default(), callback)
    }

    /// As [`Interrupt::register_with`](super::Interrupt::register_with).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn register_with<A: Into<Activity>>(
        fd: impl AsFd + Send + 'static,
        options: FdOptions,
        callback: impl FnMut(Readiness) -> A + Send + 'static,
    ) -> Result<SendInterrupt, InterruptError> {
        let register = |local: &Local| {
            let (interrupts, member) = add_handler(local, fd.as_fd(), options, false, callback)?;
            Ok(SendInterrupt {
                thread: local.shared.clone(),
                fd: member.fd(),
                key: interrupts.sent.insert(member, Box::new(fd)),
            })
        };
        Local::with_current(register).unwrap_or(Err(InterruptError::not_on_thread()))
    }

    /// Changes what the descriptor is watched for, on its SpdkThread.
    ///
    /// # Errors
    ///
    /// [`InterruptError`] when that is not the current one or is past its exit, and when
    /// the kernel refuses.
    pub fn set_events(&self, events: Readiness) -> Result<(), InterruptError> {
        let local = self.thread.current_local();
        let local = local.ok_or_else(InterruptError::not_on_thread)?;
        let thread = || self.thread.name().to_owned();
        let ended = || InterruptError::Exiting(thread());
        let interrupts = local.interrupts.get().ok_or_else(ended)?;
        let all = interrupts.sent.all.borrow();
        let member = &all.get(self.key.0).ok_or_else(ended)?.member;
        let changed = interrupts.group.modify_member(member, events);
        changed.map_err(|source| InterruptError::Group {
            thread: thread(),
            source,
        })
    }

    /// Unregisters it; the same as dropping it.
    pub fn unregister(self) {}

    /// The thread it belongs to.
    pub fn thread(&self) -> SpdkThread {
        SpdkThread::from_shared(self.thread.clone())
    }
}

impl Drop for SendInterrupt {
    fn drop(&mut self) {
        let key = self.key;
        match self.thread.current_local() {
            Some(local) => local.unregister_sent(key),
            // A thread that takes no message has no interrupt.
            None => {
                let unregister =
                    move || _ = Local::with_current(|local| local.unregister_sent(key));
                let _ = self.thread.deliver((), |()| Message::new(unregister));
            }
        }
    }
}

impl fmt::Debug for SendInterrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendInterrupt")
            .field("fd", &self.fd)
            .field("thread", &self.thread.name())
            .finish_non_exhaustive()
    }
}
