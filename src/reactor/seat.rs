//! Reactors on OS threads that a framework starts: for one that names its OS
//! threads, sets their stacks and waits for their ends in its own way. An
//! [`App`](crate::app::App) does all that by itself.

use std::fmt;
use std::sync::Arc;

use super::group::{Group, Lcore, Placement, StartError};
use super::handle::Reactors;
use super::turn::Reactor;
use super::wreck::end_events;
use super::{AdaptivePolling, ReactorMode};
use crate::io::DriverConfig;
use crate::thread::ThreadLib;

type Hook = Box<dyn Fn(usize) + Send + Sync>;

/// What is called around each sleep of a reactor, with the reactor's core.
#[derive(Default)]
pub(super) struct SleepHooks {
    before: Option<Hook>,
    after: Option<Hook>,
}

/// Settings of reactors that run on OS threads of the caller's.
///
/// # Examples
///
/// ```
/// use corespun::{cpu, reactor::Reactors, task, thread::ThreadLib};
///
/// let cpu = cpu::available()?.first().ok_or("no core")?;
/// let (reactors, seats) = Reactors::builder().lcores([(0, cpu), (1, cpu)]).build(&ThreadLib::new())?;
/// let os_threads: Vec<_> = seats.into_iter().map(|seat| std::thread::spawn(|| seat.run())).collect();
/// let worker = reactors.thread().create()?;
/// assert_eq!(task::block_on(worker.call(|| 6 * 7))?, 42);
/// reactors.stop();
/// for os_thread in os_threads {
///     os_thread.join().unwrap()?;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Default)]
#[must_use = "call `build`"]
pub struct ReactorsBuilder {
    places: Vec<Lcore>,
    mode: ReactorMode,
    adaptive: AdaptivePolling,
    driver: DriverConfig,
    hooks: SleepHooks,
}

impl Reactors {
    /// Settings of reactors that run on OS threads of the caller's: none, until
    /// [`lcores`](ReactorsBuilder::lcores) says which.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{reactor::Reactors, thread::ThreadLib};
    ///
    /// let (reactors, seats) = Reactors::builder().build(&ThreadLib::new())?;
    /// assert_eq!((reactors.count(), seats.len()), (0, 0));
    /// # Ok::<(), corespun::reactor::StartError>(())
    /// ```
    pub fn builder() -> ReactorsBuilder {
        ReactorsBuilder::default()
    }

    /// Makes every reactor exit its threads and end, as the stop of an app does. Any
    /// OS thread; does not wait.
    pub fn stop(&self) {
        self.0.stop();
    }
}

impl ReactorsBuilder {
    /// Pairs of a core number and the processor that its reactor is pinned to, as
    /// [`AppBuilder::lcores`](crate::app::AppBuilder::lcores).
    pub fn lcores(mut self, lcores: impl IntoIterator<Item = (usize, usize)>) -> Self {
        let places = lcores.into_iter().map(|(core, cpu)| Lcore { core, cpu });
        self.places = places.collect();
        self
    }

    /// What the reactors do when idle.
    pub fn mode(mut self, mode: ReactorMode) -> Self {
        self.mode = mode;
        self
    }

    /// How long adaptive mode spins.
    pub fn adaptive_polling(mut self, polling: AdaptivePolling) -> Self {
        self.adaptive = polling;
        self
    }

    /// Settings of the reactors' I/O drivers.
    pub fn io(mut self, config: DriverConfig) -> Self {
        self.driver = config;
        self
    }

    /// Called on a reactor's OS thread, with its core, before and after each sleep of
    /// it. A panic of one ends the reactors.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::{Arc, atomic::{AtomicU32, Ordering}};
    /// use corespun::reactor::Reactors;
    ///
    /// let sleeps = Arc::new(AtomicU32::new(0));
    /// let counter = sleeps.clone();
    /// let count = move |_core| _ = counter.fetch_add(1, Ordering::Relaxed);
    /// let builder = Reactors::builder().sleep_hooks(count, |_core| ());
    /// # drop(builder);
    /// ```
    pub fn sleep_hooks(
        mut self,
        before: impl Fn(usize) + Send + Sync + 'static,
        after: impl Fn(usize) + Send + Sync + 'static,
    ) -> Self {
        self.hooks = SleepHooks {
            before: Some(Box::new(before)),
            after: Some(Box::new(after)),
        };
        self
    }

    /// Makes the reactors, which place the threads of `library` from now on, and a
    /// seat for each. A thread that is placed on a seat that no OS thread runs waits there.
    ///
    /// # Errors
    ///
    /// [`StartError`]: an eventfd could not be made, or the library has a framework
    /// already.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{reactor::Reactors, thread::ThreadLib};
    ///
    /// let library = ThreadLib::new();
    /// let _first = Reactors::builder().build(&library)?;
    /// assert!(Reactors::builder().build(&library).is_err());
    /// # Ok::<(), corespun::reactor::StartError>(())
    /// ```
    pub fn build(self, library: &ThreadLib) -> Result<(Reactors, Vec<ReactorSeat>), StartError> {
        let group = Group::with_hooks(
            library.clone(),
            &self.places,
            self.mode,
            self.adaptive,
            self.driver,
            self.hooks,
        )?;
        let group = Arc::new(group);
        library
            .set_framework(Arc::new(Placement(Arc::downgrade(&group))))
            .map_err(std::io::Error::other)?;
        let seat = |index| ReactorSeat {
            group: group.clone(),
            index,
        };
        let seats = (0..self.places.len()).map(seat).collect();
        Ok((Reactors(group), seats))
    }
}

impl fmt::Debug for ReactorsBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReactorsBuilder")
            .field("places", &self.places)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

/// Why a reactor ended before it was stopped.
///
/// # Examples
///
/// ```
/// use corespun::reactor::SeatError;
///
/// let message = "index out of bounds".to_owned();
/// let error = SeatError::Panicked { core: 1, message };
/// assert_eq!(error.to_string(), "reactor 1 panicked: index out of bounds");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SeatError {
    /// The OS thread could not be pinned, or there is no I/O driver to be had.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Its loop has panicked. That was reported, and the other reactors stop.
    #[error("reactor {core} panicked: {message}")]
    Panicked {
        /// The reactor's core.
        core: usize,
        /// What the panic said.
        message: String,
    },
}

/// A reactor that wants an OS thread to run on; see [`ReactorsBuilder::build`].
///
/// Dropped without being run, it ends: what is sent to it is refused.
///
/// # Examples
///
/// ```
/// use corespun::{reactor::Reactors, thread::ThreadLib};
///
/// let (reactors, seats) = Reactors::builder().lcores([(0, 0)]).build(&ThreadLib::new())?;
/// drop(seats);
/// assert!(reactors.send_event(0, || ()).is_err());
/// # Ok::<(), corespun::reactor::StartError>(())
/// ```
#[must_use = "the reactor runs in `run`"]
pub struct ReactorSeat {
    group: Arc<Group>,
    index: usize,
}

impl ReactorSeat {
    /// The reactor's core.
    #[must_use]
    pub fn core(&self) -> usize {
        self.group.reactors[self.index].place.core
    }

    /// Pins the calling OS thread and runs the reactor in it, until
    /// [`Reactors::stop`] was called and its threads have exited.
    ///
    /// # Errors
    ///
    /// [`SeatError`]; the reactor has ended then.
    ///
    /// # Panics
    ///
    /// When the OS thread has entered an I/O driver already.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{cpu, reactor::Reactors, thread::ThreadLib};
    ///
    /// let cpu = cpu::available()?.first().ok_or("no core")?;
    /// let (reactors, mut seats) = Reactors::builder().lcores([(0, cpu)]).build(&ThreadLib::new())?;
    /// let seat = seats.remove(0);
    /// let os_thread = std::thread::spawn(|| seat.run());
    /// reactors.stop();
    /// os_thread.join().unwrap()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn run(self) -> Result<(), SeatError> {
        self.start()?.run()
    }

    /// Pins the calling OS thread and makes the I/O driver, and nothing more yet: for a caller
    /// that wants to know that before the reactor runs.
    ///
    /// # Errors
    ///
    /// [`SeatError::Start`]; the reactor has ended then.
    ///
    /// # Panics
    ///
    /// When the OS thread has entered an I/O driver already.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{cpu, reactor::Reactors, thread::ThreadLib};
    ///
    /// let cpu = cpu::available()?.first().ok_or("no core")?;
    /// let (reactors, mut seats) = Reactors::builder().lcores([(0, cpu)]).build(&ThreadLib::new())?;
    /// let seat = seats.remove(0).start()?;
    /// reactors.stop();
    /// seat.run()?; // ends at once
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn start(self) -> Result<StartedSeat, SeatError> {
        let reactor = Reactor::start(self.group.clone(), self.index)?;
        Ok(StartedSeat {
            reactor,
            _seat: self,
        })
    }
}

/// A reactor that has what it needs and does not run yet; see [`ReactorSeat::start`]. It stays on its
/// OS thread.
///
/// Dropped without being run, it ends: what is sent to it is refused.
///
/// # Examples
///
/// ```
/// use corespun::{cpu, reactor::{Reactors, SeatError, StartedSeat}, thread::ThreadLib};
///
/// fn turn(seat: StartedSeat) -> Result<(), SeatError> {
///     seat.run()
/// }
/// let cpu = cpu::available()?.first().ok_or("no core")?;
/// let (reactors, mut seats) = Reactors::builder().lcores([(0, cpu)]).build(&ThreadLib::new())?;
/// reactors.stop();
/// turn(seats.remove(0).start()?)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the reactor runs in `run`"]
pub struct StartedSeat {
    /// Gone before its seat is, which ends what waits for it.
    reactor: Reactor,
    _seat: ReactorSeat,
}

impl StartedSeat {
    /// Runs the reactor, until [`Reactors::stop`] was called and its threads have exited.
    ///
    /// # Errors
    ///
    /// [`SeatError::Panicked`]; the reactor has ended then.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{cpu, reactor::Reactors, thread::ThreadLib};
    ///
    /// let cpu = cpu::available()?.first().ok_or("no core")?;
    /// let (reactors, mut seats) = Reactors::builder().lcores([(0, cpu)]).build(&ThreadLib::new())?;
    /// reactors.stop();
    /// seats.remove(0).start()?.run()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn run(self) -> Result<(), SeatError> {
        let StartedSeat { reactor, _seat } = self;
        reactor.run().map_err(|panicked| SeatError::Panicked {
            core: panicked.core,
            message: panicked.message,
        })
    }
}

impl fmt::Debug for StartedSeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StartedSeat").finish_non_exhaustive()
    }
}

impl Drop for ReactorSeat {
    fn drop(&mut self) {
        // After a run it is closed and empty already.
        let here = &self.group.reactors[self.index];
        here.events.close();
        // What waited for it ends: its threads refuse what is sent to them.
        // SAFETY: a reactor is the only consumer of its events, and this is the only
        // seat of one that has not begun, or has ended.
        unsafe { end_events(&self.group, here) }
    }
}

impl fmt::Debug for ReactorSeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReactorSeat")
            .field("core", &self.core())
            .finish()
    }
}

impl SleepHooks {
    /// Calls the first hook now and the second when dropped.
    pub(super) fn around_sleep(&self, core: usize) -> impl Drop + '_ {
        if let Some(before) = &self.before {
            before(core);
        }
        AfterSleep(self, core)
    }
}

struct AfterSleep<'a>(&'a SleepHooks, usize);

impl Drop for AfterSleep<'_> {
    fn drop(&mut self) {
        if let Some(after) = &self.0.after {
            after(self.1);
        }
    }
}
