//! The handle of a poller, and its registration.

use std::any::type_name;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use super::{PollerCore, PollerError, PollerKey, PollerState, PollerStats};
use crate::thread::cut_name;
use crate::thread::local::Local;
use crate::thread::poll::activity::Activity;

/// A registered poller: unregistered when dropped.
///
/// The handle belongs to the SpdkThread that registered it and cannot leave
/// its OS thread. It mirrors `struct spdk_poller *`; what SPDK's calls do to a
/// poller in each of its states is what these methods do.
///
/// # Examples
///
/// ```
/// use std::{cell::Cell, rc::Rc, time::Duration};
/// use corespun::thread::{Poller, ThreadLib};
///
/// let (clock, time) = corespun::clock::Clock::virtual_at(1_000_000);
/// let library = ThreadLib::builder().clock(clock).build();
/// let mut thread = library.thread().build()?.attach();
/// let runs = Rc::new(Cell::new(0));
/// let counter = runs.clone();
/// let poller = thread.enter(|| {
///     Poller::timed(Duration::from_micros(10), move || counter.set(counter.get() + 1))
/// })?;
/// thread.poll(0, 0);
/// assert_eq!(runs.get(), 0);
/// time.advance(10);
/// thread.poll(0, 0);
/// assert_eq!(runs.get(), 1);
/// drop(poller);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// It stays on its OS thread:
///
/// ```compile_fail,E0277
/// fn crosses<T: Send>() {}
/// crosses::<corespun::thread::Poller>();
/// ```
#[must_use = "dropping a Poller unregisters it; call `detach` to keep it until the thread exits"]
pub struct Poller {
    core: Rc<PollerCore>,
    local: Rc<Local>,
    detached: bool,
}

impl Poller {
    /// Registers an active poller: `callback` runs once in every poll of the
    /// current SpdkThread, newest registered first (`spdk_poller_register`
    /// with period 0).
    ///
    /// # Errors
    ///
    /// [`PollerError`] when no SpdkThread is current or it has exited.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{cell::RefCell, collections::VecDeque, rc::Rc};
    /// use corespun::thread::{Poller, ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let completions = Rc::new(RefCell::new(VecDeque::from(["read", "write"])));
    /// let queue = completions.clone();
    /// // Busy as long as it finds something.
    /// let poller = runner.enter(|| Poller::active(move || queue.borrow_mut().pop_front().is_some()))?;
    /// assert!(runner.poll(0, 0).is_busy());
    /// assert!(runner.poll(0, 0).is_busy());
    /// assert!(!runner.poll(0, 0).is_busy());
    /// # drop(poller);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn active<A: Into<Activity>>(
        callback: impl FnMut() -> A + 'static,
    ) -> Result<Poller, PollerError> {
        Poller::builder().register(callback)
    }

    /// Registers a timed poller: `callback` runs once per `period`, first one
    /// full period from now. A late poller runs once and is re-armed from the
    /// poll that ran it: it drifts, and never catches up in a burst.
    ///
    /// # Errors
    ///
    /// [`PollerError`] when no SpdkThread is current or it has exited.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use corespun::thread::{Poller, ThreadLib};
    ///
    /// let (clock, hand) = corespun::clock::Clock::virtual_at(1_000_000);
    /// let mut runner = ThreadLib::builder().clock(clock).build().thread().build()?.attach();
    /// let poller = runner.enter(|| Poller::timed(Duration::from_micros(10), || ()))?;
    /// // Three periods late: it runs once, and not again before a full period.
    /// hand.advance(35);
    /// runner.poll(0, 0);
    /// hand.advance(9);
    /// runner.poll(0, 0);
    /// assert_eq!(poller.stats().run_count, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn timed<A: Into<Activity>>(
        period: Duration,
        callback: impl FnMut() -> A + 'static,
    ) -> Result<Poller, PollerError> {
        Poller::builder().period(period).register(callback)
    }

    /// A poller with a name.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use corespun::thread::{Poller, ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let poller = runner.enter(|| {
    ///     Poller::builder().name("statistics").period(Duration::from_secs(1)).register(|| ())
    /// })?;
    /// assert_eq!(poller.name(), "statistics");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn builder() -> PollerBuilder {
        PollerBuilder::default()
    }

    /// Pauses the poller (`spdk_poller_pause`): it takes effect at its next
    /// turn, a timed one's expiry; from inside its own callback, when that
    /// returns.
    pub fn pause(&self) {
        self.local.pause_poller(&self.core);
    }

    /// Resumes the poller (`spdk_poller_resume`): a timed one waits a full
    /// period from now; a pause that has not taken effect is cancelled.
    pub fn resume(&self) {
        self.local.resume_poller(&self.core);
        self.local.begun_outside();
    }

    /// Unregisters the poller at once: a callback that waits is dropped now,
    /// one that runs when it returns. The same as dropping the handle.
    pub fn unregister(self) {}

    /// Leaves the poller registered for as long as its thread lives. It keeps
    /// the thread from exiting until the exit is forced.
    pub fn detach(mut self) {
        self.detached = true;
        self.core.has_handle.set(false);
    }

    /// Tells that something of the caller's, an [`Interrupt`](crate::thread::Interrupt)
    /// usually, does this poller's work in interrupt mode
    /// (`spdk_poller_register_interrupt`): it is not run there. `hook` is called
    /// with the new mode at each switch, `true` for interrupt mode, to arm and
    /// disarm that; and at once if the thread is in interrupt mode. It may set
    /// another in its own place. An unregistered poller takes none.
    ///
    /// A timed poller goes on, when poll mode comes back, with what was left of
    /// its period.
    ///
    /// # Examples
    ///
    /// A queue that is polled in poll mode, and in interrupt mode rings an eventfd:
    ///
    /// ```
    /// use std::{cell::RefCell, os::fd::AsFd, rc::Rc};
    /// use corespun::{interrupt::{FdKind, FdOptions}, thread::{Interrupt, Poller, ThreadLib}};
    /// use nix::sys::eventfd::EventFd;
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let doorbell = Rc::new(EventFd::new()?);
    /// let served = Rc::new(RefCell::new(Vec::new()));
    /// let by_poller = served.clone();
    /// let poller = runner.enter(|| Poller::active(move || by_poller.borrow_mut().push("poller")))?;
    /// let (armed, bell, by_interrupt) = (RefCell::new(None), doorbell.clone(), served.clone());
    /// poller.set_interrupt(move |on| {
    ///     *armed.borrow_mut() = on.then(|| {
    ///         let served = by_interrupt.clone();
    ///         let options = FdOptions { kind: FdKind::EventFd, ..FdOptions::default() };
    ///         let fd = bell.as_fd().try_clone_to_owned().unwrap();
    ///         Interrupt::register_with(fd, options, move |_| served.borrow_mut().push("interrupt"))
    ///     });
    /// });
    /// runner.poll(0, 0);
    /// runner.set_interrupt_mode(true)?;
    /// doorbell.write(1)?;
    /// runner.poll(0, 0);
    /// assert_eq!(*served.borrow(), ["poller", "interrupt"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_interrupt(&self, hook: impl FnMut(bool) + 'static) {
        self.local.set_poller_interrupt(&self.core, hook);
    }

    /// Where the poller stands.
    pub fn state(&self) -> PollerState {
        self.core.state()
    }

    /// The name given, or one made of the id.
    pub fn name(&self) -> String {
        self.core.name()
    }

    /// A number unique on its thread, starting at 1.
    pub fn id(&self) -> u64 {
        self.core.key.id
    }

    /// The period in ticks; 0 for an active poller.
    pub fn period_ticks(&self) -> u64 {
        self.core.period
    }

    /// How often it ran.
    pub fn stats(&self) -> PollerStats {
        self.core.stats()
    }
}

impl PollerKey {
    /// Pauses the poller, from inside its callback: its thread is the current one.
    pub(crate) fn pause(self) {
        self.with_its_poller(Local::pause_poller);
    }

    /// Unregisters the poller, from inside its callback.
    pub(crate) fn unregister(self) {
        self.with_its_poller(Local::unregister_poller);
    }

    pub(super) fn with_its_poller(self, f: impl FnOnce(&Local, &Rc<PollerCore>)) {
        Local::with_current(|local| {
            if let Some(poller) = local.pollers.find(self) {
                f(local, &poller);
            }
        });
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        if !self.detached {
            self.local.unregister_poller(&self.core);
        }
    }
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poller")
            .field("name", &self.name())
            .field("state", &self.state())
            .field("period_ticks", &self.period_ticks())
            .finish_non_exhaustive()
    }
}

/// A value that can be a poller, as a closure can: see
/// [`PollerBuilder::register_polled`].
///
/// # Examples
///
/// ```
/// use std::collections::VecDeque;
/// use corespun::thread::{Activity, Polled, Poller, ThreadLib};
///
/// struct SubmissionQueue(VecDeque<&'static str>);
///
/// impl Polled for SubmissionQueue {
///     fn poll(&mut self) -> Activity {
///         Activity::from(self.0.pop_front().is_some())
///     }
/// }
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let queue = SubmissionQueue(VecDeque::from(["read"]));
/// let poller = runner.enter(|| Poller::builder().register_polled(queue))?;
/// assert!(runner.poll(0, 0).is_busy());
/// assert!(!runner.poll(0, 0).is_busy());
/// # drop(poller);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Polled: 'static {
    /// Does what there is to do, without blocking, and says whether that was
    /// anything. Called on the thread that registered the value.
    ///
    /// # Examples
    ///
    /// It is an ordinary method, to be tested without a thread:
    ///
    /// ```
    /// use corespun::thread::{Activity, Polled};
    ///
    /// struct Credits(u32);
    ///
    /// impl Polled for Credits {
    ///     fn poll(&mut self) -> Activity {
    ///         let busy = self.0 > 0;
    ///         self.0 = self.0.saturating_sub(1);
    ///         Activity::from(busy)
    ///     }
    /// }
    ///
    /// let mut credits = Credits(1);
    /// assert_eq!([credits.poll(), credits.poll()], [Activity::Busy, Activity::Idle]);
    /// ```
    fn poll(&mut self) -> Activity;
}

/// Settings of a poller to be registered.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use corespun::thread::{PollerBuilder, ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let keep_alive = PollerBuilder::default().name("keep alive").period(Duration::from_secs(5));
/// let (a, b) = (keep_alive.clone(), keep_alive);
/// let pollers = runner.enter(|| [a.register(|| ()), b.register(|| ())]);
/// assert!(pollers.iter().all(|poller| poller.as_ref().unwrap().name() == "keep alive"));
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "call `register`"]
pub struct PollerBuilder {
    pub(super) name: Option<String>,
    pub(super) period: Duration,
}

impl PollerBuilder {
    /// A name for introspection, cut at 256 bytes.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(cut_name(name.into()));
        self
    }

    /// Makes it a timed poller, unless `period` is zero. A period is rounded
    /// to ticks, to one tick at least.
    pub fn period(mut self, period: Duration) -> Self {
        self.period = period;
        self
    }

    /// Registers `callback` on the current SpdkThread.
    ///
    /// # Errors
    ///
    /// [`PollerError`] when no SpdkThread is current or it has exited.
    pub fn register<A: Into<Activity>>(
        self,
        callback: impl FnMut() -> A + 'static,
    ) -> Result<Poller, PollerError> {
        self.register_with(|_| callback)
    }

    /// Registers a value that polls, under the name of its type unless another
    /// was given.
    ///
    /// # Errors
    ///
    /// As [`PollerBuilder::register`].
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::thread::{Activity, Polled, Poller, ThreadLib};
    ///
    /// struct Countdown(u32);
    ///
    /// impl Polled for Countdown {
    ///     fn poll(&mut self) -> Activity {
    ///         self.0 = self.0.saturating_sub(1);
    ///         Activity::from(self.0 > 0)
    ///     }
    /// }
    ///
    /// let mut thread = ThreadLib::new().thread().build()?.attach();
    /// let poller = thread.enter(|| Poller::builder().register_polled(Countdown(2)))?;
    /// assert!(poller.name().ends_with("Countdown"));
    /// assert_eq!(thread.poll(0, 0), Activity::Busy);
    /// assert_eq!(thread.poll(0, 0), Activity::Idle);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn register_polled<P: Polled>(mut self, mut value: P) -> Result<Poller, PollerError> {
        let name = self.name.take();
        let name = name.unwrap_or_else(|| cut_name(type_name::<P>().to_owned()));
        self.name(name).register(move || value.poll())
    }

    /// [`PollerBuilder::register`] for a callback that pauses or unregisters
    /// itself.
    pub(crate) fn register_with<A, F>(
        self,
        make: impl FnOnce(PollerKey) -> F,
    ) -> Result<Poller, PollerError>
    where
        A: Into<Activity>,
        F: FnMut() -> A + 'static,
    {
        let local = Local::current_rc().ok_or_else(PollerError::not_on_thread)?;
        let core = local.register_poller(self, true, make)?;
        Ok(Poller {
            core,
            local,
            detached: false,
        })
    }
}
