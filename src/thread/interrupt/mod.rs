//! Interrupts: descriptors whose readiness a thread reacts to, the one
//! descriptor by which a whole thread can be waited for, and interrupt mode.
//!
//! A poll in interrupt mode does all that any poll does. The differences are in
//! which pollers it runs (one that has a descriptor of its own is left to that)
//! and in what happens between polls: then the thread's descriptor becomes
//! readable when there is something to do. Messages write an eventfd, which the
//! senders do only between polls, by the sleep/wake handshake; the earliest
//! timer arms a timerfd, which is set only when that timer has changed; and
//! before a poll ends it looks once more, so that nothing is lost between.

mod doorbell;
mod group;
mod send;

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;

pub(super) use group::Interrupts;
pub use send::SendInterrupt;

use super::NotOnThread;
use super::local::{ExitPhase, Local};
use super::poll::activity::Activity;
use crate::interrupt::{FdGroup, FdGroupError, FdOptions, Member, Readiness};

/// Why an interrupt could not be registered, or interrupt mode not be entered.
///
/// # Examples
///
/// ```
/// use corespun::thread::{Interrupt, InterruptError};
///
/// let (_peer, socket) = std::os::unix::net::UnixStream::pair()?;
/// let error = Interrupt::register(socket, |_event| ()).unwrap_err();
/// assert!(matches!(error, InterruptError::NotOnThread(_)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InterruptError {
    /// No SpdkThread is current on this OS thread.
    #[error(transparent)]
    NotOnThread(#[from] NotOnThread),
    /// The thread was asked to exit.
    #[error("thread {0:?} is exiting and takes no interrupt")]
    Exiting(String),
    /// The descriptor group refused.
    #[error("thread {thread:?}: {source}")]
    Group {
        /// The thread.
        thread: String,
        /// Why.
        source: FdGroupError,
    },
}

impl InterruptError {
    #[cold]
    fn not_on_thread() -> Self {
        NotOnThread::new("interrupts belong to a SpdkThread").into()
    }
}

/// Switches the current SpdkThread between poll mode and interrupt mode
/// (`spdk_thread_set_interrupt_mode`). Switching to the mode it is in changes
/// nothing.
///
/// Pollers that have an interrupt of their own ([`Poller::set_interrupt`]) are
/// told, and are not run in interrupt mode; all others run in every poll, as in
/// poll mode. An active poller without an interrupt keeps the thread's
/// descriptor readable: see [`ThreadRunner::interrupt_fd`].
///
/// # Errors
///
/// [`InterruptError`] when no SpdkThread is current, or the kernel gives no
/// descriptor.
///
/// [`Poller::set_interrupt`]: super::Poller::set_interrupt
/// [`ThreadRunner::interrupt_fd`]: super::ThreadRunner::interrupt_fd
///
/// # Examples
///
/// ```
/// use std::{cell::Cell, rc::Rc};
/// use corespun::thread::{Poller, ThreadLib, set_interrupt_mode};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let modes = Rc::new(Cell::new(None));
/// let seen = modes.clone();
/// let poller = runner.enter(|| Poller::active(|| false))?;
/// poller.set_interrupt(move |on| seen.set(Some(on)));
/// runner.enter(|| set_interrupt_mode(true))?;
/// // The poller was told, and is left to its interrupt.
/// assert_eq!(modes.get(), Some(true));
/// assert!(runner.is_in_interrupt_mode() && !runner.has_active_pollers());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn set_interrupt_mode(on: bool) -> Result<(), InterruptError> {
    Local::with_current(|local| local.set_interrupt_mode(on))
        .unwrap_or_else(|| Err(InterruptError::not_on_thread()))
}

/// A descriptor that a SpdkThread reacts to (`struct spdk_interrupt`): its
/// callback is called in the polls that find it ready. Unregistered when dropped,
/// and when its callback panics, as a poller: its descriptor would be ready again
/// in the next poll.
///
/// It works in both modes; in poll mode every poll of a thread with interrupts
/// costs a system call. The descriptor is kept open as long as this lives.
///
/// # Examples
///
/// ```
/// use std::{cell::Cell, io::Write, os::unix::net::UnixStream, rc::Rc};
/// use corespun::thread::{Interrupt, ThreadLib};
///
/// let mut thread = ThreadLib::new().thread().build()?.attach();
/// let (mut peer, socket) = UnixStream::pair()?;
/// let runs = Rc::new(Cell::new(0));
/// let counter = runs.clone();
/// let interrupt = thread.enter(|| {
///     Interrupt::register(socket, move |_event| counter.set(counter.get() + 1))
/// })?;
/// thread.poll(0, 0);
/// assert_eq!(runs.get(), 0);
/// peer.write_all(b"x")?;
/// thread.poll(0, 0);
/// assert_eq!(runs.get(), 1);
/// drop(interrupt);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "dropping an Interrupt unregisters it"]
pub struct Interrupt {
    member: Member,
    local: Rc<Local>,
    /// Open for as long as it is registered.
    open: Option<Box<dyn AsFd>>,
}

impl Interrupt {
    /// Registers a descriptor with the current SpdkThread, for reading.
    ///
    /// # Errors
    ///
    /// [`InterruptError`] when no SpdkThread is current or it was asked to
    /// exit, when it has this descriptor, and when the kernel refuses it.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::{Read, Write};
    /// use std::{cell::RefCell, os::unix::net::UnixStream, rc::Rc};
    /// use corespun::thread::{Interrupt, ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let (mut peer, socket) = UnixStream::pair()?;
    /// let received = Rc::new(RefCell::new(String::new()));
    /// let (text, mut reader) = (received.clone(), socket.try_clone()?);
    /// let interrupt = runner.enter(|| Interrupt::register(socket, move |_event| {
    ///     let mut bytes = [0; 16];
    ///     let length = reader.read(&mut bytes).unwrap();
    ///     text.borrow_mut().push_str(std::str::from_utf8(&bytes[..length]).unwrap());
    /// }))?;
    /// peer.write_all(b"link up")?;
    /// runner.poll(0, 0);
    /// assert_eq!(*received.borrow(), "link up");
    /// # drop(interrupt);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn register<A: Into<Activity>>(
        fd: impl AsFd + 'static,
        callback: impl FnMut(Readiness) -> A + 'static,
    ) -> Result<Interrupt, InterruptError> {
        Interrupt::register_with(fd, FdOptions::default(), callback)
    }

    /// As [`Interrupt::register`], with events, kind and name
    /// (`spdk_interrupt_register_ext`).
    ///
    /// # Errors
    ///
    /// As [`Interrupt::register`].
    ///
    /// # Examples
    ///
    /// An eventfd, whose counter need not be read by the callback:
    ///
    /// ```
    /// use std::{cell::Cell, os::fd::AsFd, rc::Rc};
    /// use corespun::{interrupt::{FdKind, FdOptions}, thread::{Interrupt, ThreadLib}};
    /// use nix::sys::eventfd::EventFd;
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let doorbell = EventFd::new()?;
    /// let (calls, counter) = (Rc::new(Cell::new(0)), doorbell.as_fd().try_clone_to_owned()?);
    /// let seen = calls.clone();
    /// let options = FdOptions {
    ///     kind: FdKind::EventFd,
    ///     name: "doorbell".to_owned(),
    ///     ..FdOptions::default()
    /// };
    /// let interrupt = runner.enter(|| {
    ///     Interrupt::register_with(counter, options, move |_event| seen.set(seen.get() + 1))
    /// })?;
    /// doorbell.write(1)?;
    /// doorbell.write(1)?;
    /// runner.poll(0, 0);
    /// runner.poll(0, 0);
    /// assert_eq!(calls.get(), 1);
    /// # drop(interrupt);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn register_with<A: Into<Activity>>(
        fd: impl AsFd + 'static,
        options: FdOptions,
        callback: impl FnMut(Readiness) -> A + 'static,
    ) -> Result<Interrupt, InterruptError> {
        let local = Local::current_rc().ok_or_else(InterruptError::not_on_thread)?;
        // Asked once: it may answer differently the next time.
        let (_, member) = add_handler(&local, fd.as_fd(), options, true, callback)?;
        Ok(Interrupt {
            member,
            local,
            open: Some(Box::new(fd)),
        })
    }

    /// Changes what the descriptor is watched for
    /// (`spdk_interrupt_set_event_types`).
    ///
    /// # Errors
    ///
    /// [`InterruptError`] when the kernel refuses.
    ///
    /// # Examples
    ///
    /// Room to write matters only while there is something to be written:
    ///
    /// ```
    /// use std::{cell::Cell, os::unix::net::UnixStream, rc::Rc};
    /// use corespun::{interrupt::Readiness, thread::{Interrupt, ThreadLib}};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let (_peer, socket) = UnixStream::pair()?;
    /// let last = Rc::new(Cell::new(None));
    /// let seen = last.clone();
    /// let interrupt = runner.enter(|| {
    ///     Interrupt::register(socket, move |event: Readiness| seen.set(Some(event)))
    /// })?;
    /// runner.poll(0, 0);
    /// assert_eq!(last.get(), None);
    /// interrupt.set_events(Readiness::READABLE | Readiness::WRITABLE)?;
    /// runner.poll(0, 0);
    /// assert_eq!(last.get(), Some(Readiness::WRITABLE));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_events(&self, events: Readiness) -> Result<(), InterruptError> {
        self.group()
            .modify_member(&self.member, events)
            .map_err(|source| InterruptError::Group {
                thread: self.local.shared.name().to_owned(),
                source,
            })
    }

    /// Unregisters it; the same as dropping it.
    pub fn unregister(self) {}

    fn group(&self) -> &FdGroup {
        let interrupts = self.local.interrupts.get();
        &interrupts.expect("made when this was registered").group
    }
}

/// Adds a callback to those of the thread, which binds it if it `stays`.
fn add_handler<'a, A: Into<Activity>>(
    local: &'a Local,
    fd: BorrowedFd<'_>,
    options: FdOptions,
    stays: bool,
    callback: impl FnMut(Readiness) -> A + 'static,
) -> Result<(&'a Interrupts, Member), InterruptError> {
    let thread = || local.shared.name().to_owned();
    if local.exit_phase.get() != ExitPhase::None {
        return Err(InterruptError::Exiting(thread()));
    }
    let refused = |source| InterruptError::Group {
        thread: thread(),
        source,
    };
    let interrupts = local.interrupts_or_new().map_err(refused)?;
    let sum = interrupts.activity.clone();
    let mut callback = local.anchor.bind_if(stays, callback);
    let run = move |event| {
        let activity = (callback.get_mut())(event).into();
        sum.set(sum.get().max(activity));
    };
    let member = interrupts.group.add_member(fd, options, run);
    Ok((interrupts, member.map_err(refused)?))
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        let handler = self.group().remove_member(&self.member);
        self.local.drop_contained(handler);
        self.local.drop_contained(self.open.take());
    }
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interrupt")
            .field("fd", &self.member.fd())
            .finish_non_exhaustive()
    }
}
