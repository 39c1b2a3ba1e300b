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

use std::cell::{Cell, OnceCell};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::activity::Activity;
use super::doorbell::Doorbell;
use super::local::{ExitPhase, Local};
use super::panic::PanicSource;
use crate::interrupt::{Event, FdGroup, FdGroupError, FdKind, FdOptions, Member};
use crate::notify::Sleeper;

/// Why an interrupt could not be registered, or interrupt mode not be entered.
///
/// # Examples
///
/// ```
/// use corespun::thread::{Interrupt, InterruptError};
///
/// let (_peer, socket) = std::os::unix::net::UnixStream::pair()?;
/// let error = Interrupt::register(socket, |_event| ()).unwrap_err();
/// assert!(matches!(error, InterruptError::NotOnThread));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InterruptError {
    /// No SpdkThread is current on this OS thread.
    #[error("interrupts belong to a SpdkThread: call this from a message, task or poller")]
    NotOnThread,
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

/// The interrupts of one thread. What is shared in it is shared within it only,
/// and an [`Interrupt`] refers to the whole thread, so a thread without any may
/// move to another OS thread with this.
pub(crate) struct Interrupts {
    group: FdGroup,
    /// The reactor waits for the group's descriptor.
    watched: Cell<bool>,
    mode: Cell<bool>,
    /// What the handlers of one wait did.
    activity: Rc<Cell<Activity>>,
    pollable: OnceCell<Pollable>,
}

/// What makes the group readable when the thread has something to do.
struct Pollable {
    wake: Arc<Doorbell>,
    timer: Rc<TimerFd>,
    /// What the timer is set to, if it is.
    armed: Rc<Cell<Option<u64>>>,
    sleeper: Arc<Sleeper>,
}

impl Pollable {
    fn new(group: &FdGroup) -> Result<Self, FdGroupError> {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC);
        let wake = wake.map_err(io::Error::from)?;
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).map_err(io::Error::from)?;
        let timer = Rc::new(timer);
        let armed = Rc::new(Cell::new(None));
        let options = |kind, name: &str| FdOptions {
            kind,
            name: name.to_owned(),
            ..FdOptions::default()
        };
        group.add(&wake, options(FdKind::EventFd, "messages"), |_| ())?;
        let (expired, set) = (timer.clone(), armed.clone());
        let added = group.add(&timer, options(FdKind::Plain, "timers"), move |_| {
            // Not readable any more if it was set again meanwhile.
            let mut count = [0u8; 8];
            let _ = nix::unistd::read(&*expired, &mut count);
            set.set(None);
        });
        if let Err(error) = added {
            let _ = group.remove(&wake);
            return Err(error);
        }
        let wake = Arc::new(Doorbell::new(wake));
        let rung = wake.clone();
        let sleeper = Sleeper::new(move || {
            // Full means that it is readable.
            let _ = rung.ring();
        });
        Ok(Pollable {
            wake,
            timer,
            armed,
            sleeper: Arc::new(sleeper),
        })
    }

    fn arm(&self, local: &Local, deadline: Option<u64>) {
        if self.armed.get() == deadline {
            return;
        }
        let result = match deadline {
            Some(deadline) => {
                let clock = &local.shared.library.clock;
                let left = clock.duration_from(deadline.saturating_sub(clock.now()));
                // Zero would disarm it.
                let left = left.max(Duration::from_nanos(1));
                let once = Expiration::OneShot(left.into());
                self.timer.set(once, TimerSetTimeFlags::empty())
            }
            None => self.timer.unset(),
        };
        match result {
            Ok(()) => self.armed.set(deadline),
            Err(error) => {
                tracing::error!(thread = local.shared.name(), "timerfd: {error}");
                // Then by being always readable.
                let _ = self.wake.ring();
            }
        }
    }
}

impl Drop for Pollable {
    fn drop(&mut self) {
        // The sleeper, which rings it, lives as long as the last handle.
        self.wake.leave();
    }
}

impl Interrupts {
    fn new() -> io::Result<Self> {
        Ok(Interrupts {
            group: FdGroup::new()?,
            watched: Cell::new(false),
            mode: Cell::new(false),
            activity: Rc::default(),
            pollable: OnceCell::new(),
        })
    }

    /// How many interrupts there are: the rest of the group are the thread's own.
    pub(super) fn registered(&self) -> usize {
        let own = if self.pollable.get().is_some() { 2 } else { 0 };
        self.group.fd_count() - own
    }
}

/// The steps of one poll that have to do with interrupts.
impl Local {
    fn interrupts_or_new(&self) -> Result<&Interrupts, FdGroupError> {
        if let Some(interrupts) = self.interrupts.get() {
            return Ok(interrupts);
        }
        let made = Box::new(Interrupts::new()?);
        Ok(self.interrupts.get_or_init(|| made))
    }

    pub(super) fn in_interrupt_mode(&self) -> bool {
        let interrupts = self.interrupts.get();
        interrupts.is_some_and(|interrupts| interrupts.mode.get())
    }

    /// Whether handlers are registered and nobody waits for their descriptors.
    pub(super) fn has_unwatched_interrupts(&self) -> bool {
        let interrupts = self.interrupts.get();
        interrupts
            .is_some_and(|i| i.pollable.get().is_none() && !i.watched.get() && i.registered() > 0)
    }

    /// The descriptor that is readable when a handler is to be called, while
    /// there are any.
    pub(super) fn handlers_fd(&self) -> Option<BorrowedFd<'_>> {
        let interrupts = self.interrupts.get();
        let interrupts = interrupts.filter(|interrupts| interrupts.registered() > 0)?;
        Some(interrupts.group.as_fd())
    }

    /// Says whether somebody waits for that descriptor.
    pub(super) fn set_handlers_watched(&self, watched: bool) {
        if let Some(interrupts) = self.interrupts.get() {
            interrupts.watched.set(watched);
        }
    }

    /// A poll begins: senders need write nothing until it ends.
    #[inline]
    pub(super) fn interrupts_awake(&self) {
        if let Some(interrupts) = self.interrupts.get()
            && let Some(pollable) = interrupts.pollable.get()
        {
            pollable.sleeper.retract();
        }
    }

    /// Calls the handlers of descriptors that are ready, without waiting.
    #[inline]
    pub(super) fn run_interrupts(&self) -> Activity {
        match self.interrupts.get() {
            Some(interrupts) => self.wait_for_interrupts(interrupts),
            None => Activity::Idle,
        }
    }

    fn wait_for_interrupts(&self, interrupts: &Interrupts) -> Activity {
        if interrupts.group.fd_count() > 0 {
            let mut told = |name: &str, outcome| {
                self.check_held_locks();
                if let Err(payload) = outcome {
                    self.report_panic(PanicSource::Interrupt, Some(name), payload);
                    interrupts.activity.set(Activity::Busy);
                }
            };
            let waited = interrupts.group.wait_with(Some(Duration::ZERO), &mut told);
            if let Err(error) = waited {
                tracing::error!(thread = self.shared.name(), "interrupts: {error}");
            }
        }
        interrupts.activity.take()
    }

    /// A poll ends: from here on the descriptor tells of what happens, unless
    /// something has happened already.
    #[inline]
    pub(super) fn interrupts_asleep(&self) {
        if let Some(interrupts) = self.interrupts.get()
            && interrupts.mode.get()
            && let Some(pollable) = interrupts.pollable.get()
        {
            self.make_readable_when_due(pollable);
        }
    }

    fn make_readable_when_due(&self, pollable: &Pollable) {
        pollable.arm(self, self.next_deadline());
        pollable.sleeper.announce();
        if self.needs_poll() {
            pollable.sleeper.retract();
            let _ = pollable.wake.ring();
        }
    }

    /// The thread's descriptor, made when first asked for.
    pub(super) fn interrupt_fd(&self) -> Result<BorrowedFd<'_>, InterruptError> {
        let refused = |source| InterruptError::Group {
            thread: self.shared.name().to_owned(),
            source,
        };
        let interrupts = self.interrupts_or_new().map_err(refused)?;
        if interrupts.pollable.get().is_none() {
            let made = Pollable::new(&interrupts.group).map_err(refused)?;
            let _ = interrupts.pollable.set(made);
        }
        if let Some(pollable) = interrupts.pollable.get() {
            // Also when it is not new: parking the thread took the host away.
            self.shared.set_own_host(&pollable.sleeper);
            self.interrupts_asleep();
        }
        Ok(interrupts.group.as_fd())
    }

    pub(super) fn set_interrupt_mode(&self, on: bool) -> Result<(), InterruptError> {
        let interrupts = self.interrupts_or_new();
        let interrupts = interrupts.map_err(|source| InterruptError::Group {
            thread: self.shared.name().to_owned(),
            source,
        })?;
        if interrupts.mode.replace(on) == on {
            return Ok(());
        }
        tracing::info!(thread = self.shared.name(), interrupt = on, "mode switched");
        self.switch_pollers(on);
        if let Some(pollable) = interrupts.pollable.get() {
            if on {
                // Also when this is not inside a poll, at whose end it is
                // looked at again.
                self.make_readable_when_due(pollable);
            } else {
                pollable.sleeper.retract();
                pollable.arm(self, None);
            }
        }
        Ok(())
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
        .unwrap_or(Err(InterruptError::NotOnThread))
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
        callback: impl FnMut(Event) -> A + 'static,
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
        callback: impl FnMut(Event) -> A + 'static,
    ) -> Result<Interrupt, InterruptError> {
        let local = Local::current_rc().ok_or(InterruptError::NotOnThread)?;
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
        let mut callback = local.anchor.bind(callback);
        let run = move |event| {
            let activity = (callback.get_mut())(event).into();
            sum.set(sum.get().max(activity));
        };
        // Asked once: it may answer differently the next time.
        let member = interrupts.group.add_member(fd.as_fd(), options, run);
        let member = member.map_err(refused)?;
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
    /// use corespun::{interrupt::Event, thread::{Interrupt, ThreadLib}};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let (_peer, socket) = UnixStream::pair()?;
    /// let last = Rc::new(Cell::new(None));
    /// let seen = last.clone();
    /// let interrupt = runner.enter(|| {
    ///     Interrupt::register(socket, move |event: Event| seen.set(Some(event)))
    /// })?;
    /// runner.poll(0, 0);
    /// assert_eq!(last.get(), None);
    /// interrupt.set_events(Event::READABLE | Event::WRITABLE)?;
    /// runner.poll(0, 0);
    /// assert_eq!(last.get(), Some(Event::WRITABLE));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_events(&self, events: Event) -> Result<(), InterruptError> {
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
