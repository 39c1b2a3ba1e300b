//! The interrupts of a thread, and the descriptor by which all of it can be waited for.

use std::cell::{Cell, OnceCell};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::InterruptError;
use super::doorbell::Doorbell;
use super::send::SentInterrupts;
use crate::interrupt::{FdGroup, FdGroupError, FdKind, FdOptions};
use crate::notify::Sleeper;
use crate::thread::local::Local;
use crate::thread::panic::PanicSource;
use crate::thread::part::Part;
use crate::thread::placement::bound::BoundBy;
use crate::thread::poll::activity::Activity;

/// The interrupts of one thread. What is shared in it is shared within it only,
/// and an [`Interrupt`](super::Interrupt) refers to the whole thread, so a thread without any may
/// move to another OS thread with this, and with the [`SendInterrupt`](super::SendInterrupt)s in it.
pub(crate) struct Interrupts {
    pub(super) group: FdGroup,
    /// The reactor waits for the group's descriptor.
    watched: Cell<bool>,
    mode: Cell<bool>,
    /// What the handlers of one wait did.
    pub(super) activity: Rc<Cell<Activity>>,
    pollable: OnceCell<Pollable>,
    /// Those that move along.
    pub(super) sent: SentInterrupts,
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
            sent: SentInterrupts::default(),
        })
    }

    /// How many interrupts there are: the rest of the group are the thread's own.
    fn registered(&self) -> usize {
        let own = if self.pollable.get().is_some() { 2 } else { 0 };
        self.group.fd_count() - own
    }
}

impl Part for Interrupts {
    /// An [`Interrupt`](super::Interrupt) refers to its thread.
    fn binders(&self, by: &mut Vec<BoundBy>) -> usize {
        let stay = self.registered() - self.sent.registered();
        if stay > 0 {
            by.push(BoundBy::Interrupts(stay));
        }
        stay
    }

    /// Those that are not their handles' to unregister.
    fn end(&self, local: &Local) {
        self.sent.end(local);
    }
}

/// The steps of one poll that have to do with interrupts.
impl Local {
    pub(super) fn interrupts_or_new(&self) -> Result<&Interrupts, FdGroupError> {
        if let Some(interrupts) = self.interrupts.get() {
            return Ok(interrupts);
        }
        let made = Box::new(Interrupts::new()?);
        Ok(self.interrupts.get_or_init(|| made))
    }

    pub(in crate::thread) fn in_interrupt_mode(&self) -> bool {
        let interrupts = self.interrupts.get();
        interrupts.is_some_and(|interrupts| interrupts.mode.get())
    }

    /// Whether handlers are registered and their descriptors are not waited for.
    pub(in crate::thread) fn has_unwatched_interrupts(&self) -> bool {
        let interrupts = self.interrupts.get();
        interrupts
            .is_some_and(|i| i.pollable.get().is_none() && !i.watched.get() && i.registered() > 0)
    }

    /// The descriptor that is readable when a handler is to be called, while
    /// there are any.
    pub(in crate::thread) fn handlers_fd(&self) -> Option<BorrowedFd<'_>> {
        let interrupts = self.interrupts.get();
        let interrupts = interrupts.filter(|interrupts| interrupts.registered() > 0)?;
        Some(interrupts.group.as_fd())
    }

    /// Says whether that descriptor is waited for.
    pub(in crate::thread) fn set_handlers_watched(&self, watched: bool) {
        if let Some(interrupts) = self.interrupts.get() {
            interrupts.watched.set(watched);
        }
    }

    /// A poll begins: senders need write nothing until it ends.
    #[inline]
    pub(in crate::thread) fn interrupts_awake(&self) {
        if let Some(interrupts) = self.interrupts.get()
            && let Some(pollable) = interrupts.pollable.get()
        {
            pollable.sleeper.retract();
        }
    }

    /// Calls the handlers of descriptors that are ready, without waiting.
    #[inline]
    pub(in crate::thread) fn run_interrupts(&self) -> Activity {
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
    pub(in crate::thread) fn interrupts_asleep(&self) {
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
        if self.needs_poll_before_sleep() {
            pollable.sleeper.retract();
            let _ = pollable.wake.ring();
        }
    }

    /// The thread's descriptor, made when first asked for.
    pub(in crate::thread) fn interrupt_fd(&self) -> Result<BorrowedFd<'_>, InterruptError> {
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

    pub(in crate::thread) fn set_interrupt_mode(&self, on: bool) -> Result<(), InterruptError> {
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
