//! The handle of all reactors together: what any OS thread may do with them.

use std::fmt;
use std::sync::Arc;

#[cfg(test)]
use super::group::Event;
use super::group::Group;
use super::mode::{SetMode, SetModeError};
use super::one::ReactorHandle;
use super::{ReactorMode, ReactorStats};
use crate::cpu::CpuSet;
use crate::thread::{CreateError, SpdkThread, ThreadBuilder, ThreadLib};

/// Outstanding events per reactor, as SPDK's event ring.
pub(super) const EVENT_LIMIT: usize = 65_536;

/// The handle of all reactors of an app. Any OS thread may use it.
///
/// # Examples
///
/// ```
/// use corespun::app::{App, AppHandle};
///
/// let threads = App::builder().block_on(async |app: AppHandle| {
///     let reactors = app.reactors();
///     // Any OS thread may look.
///     let watcher = std::thread::spawn(move || reactors.stats()[0].threads);
///     watcher.join().unwrap()
/// })?;
/// assert_eq!(threads, 1);
/// # Ok::<(), corespun::app::AppError>(())
/// ```
#[derive(Clone)]
pub struct Reactors(pub(crate) Arc<Group>);

impl Reactors {
    /// The cores that have a reactor.
    pub fn cores(&self) -> CpuSet {
        self.0.cores()
    }

    /// How many reactors there are.
    pub fn count(&self) -> usize {
        self.0.reactors.len()
    }

    /// Settings for a new thread, to be placed by
    /// [`create`](ThreadBuilder::create) on one of these reactors: round-robin
    /// among the cores of its mask.
    pub fn thread(&self) -> ThreadBuilder {
        self.0.library.thread()
    }

    /// Makes one thread on each core, named `name` and the core's number, in
    /// ascending order of the cores.
    ///
    /// # Errors
    ///
    /// Those of [`ThreadBuilder::create`]; threads made before the failing one
    /// stay.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{app::{App, AppHandle}, cpu};
    ///
    /// let cpu = cpu::available()?.first().unwrap();
    /// let names = App::builder().lcores([(0, cpu), (1, cpu)]).block_on(async |app: AppHandle| {
    ///     let workers = app.reactors().thread_per_core("worker")?;
    ///     Ok::<_, corespun::thread::CreateError>(workers.iter().map(|w| w.name().to_owned()).collect())
    /// })?;
    /// let names: Vec<_> = names?;
    /// assert_eq!(names, ["worker_0", "worker_1"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn thread_per_core(&self, name: &str) -> Result<Vec<SpdkThread>, CreateError> {
        self.cores()
            .iter()
            .map(|core| {
                self.thread()
                    .name(format!("{name}_{core}"))
                    .cpumask(CpuSet::single(core))
                    .create()
            })
            .collect()
    }

    /// Runs `f` on the reactor of `core`, outside of any SpdkThread
    /// (`spdk_event_call`). Events of one sender run in the order sent.
    ///
    /// # Errors
    ///
    /// [`EventError`] with `f` in it: no reactor on that core, its limit of
    /// 65,536 outstanding events reached, or the reactor has ended.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{app::{App, AppHandle}, thread::SpdkThread};
    /// use futures::channel::oneshot;
    ///
    /// let current = App::builder().block_on(async |app: AppHandle| {
    ///     let (sender, receiver) = oneshot::channel();
    ///     let core = app.reactors().cores().first().unwrap();
    ///     // No SpdkThread is current in an event.
    ///     app.reactors().send_event(core, || _ = sender.send(SpdkThread::current())).unwrap();
    ///     receiver.await.unwrap()
    /// })?;
    /// assert_eq!(current, None);
    /// # Ok::<(), corespun::app::AppError>(())
    /// ```
    pub fn send_event<F: FnOnce() + Send + 'static>(
        &self,
        core: usize,
        f: F,
    ) -> Result<(), EventError<F>> {
        match self.0.index_of(core) {
            Some(index) => ReactorHandle::send_to(&self.0, index, f),
            None => Err(EventError::NoReactor {
                core,
                available: self.cores().as_list().to_string(),
                event: f,
            }),
        }
    }

    /// The mode in force on the reactor of `core`.
    pub fn mode(&self, core: usize) -> Option<ReactorMode> {
        let index = self.0.index_of(core)?;
        Some(self.0.reactors[index].mode())
    }

    /// Changes the mode of the reactor on `core` while it runs
    /// (`spdk_reactor_set_interrupt_mode`); nothing that was sent to it is lost on the
    /// way. From any OS thread. The change is begun by the call; the future completes
    /// when the mode is in force. Of several changes of one reactor each takes effect,
    /// in the order asked.
    ///
    /// # Errors
    ///
    /// The future yields [`SetModeError`], and the mode is what it was: no reactor on
    /// that core, the reactors are stopping, or a thread there whose active pollers
    /// have interrupts is refused what it needs to wait for them.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future only stops the waiting; the mode changes.
    ///
    /// # Examples
    ///
    /// Quick while there is work, and quiet at night:
    ///
    /// ```
    /// use corespun::{app::App, reactor::ReactorMode};
    ///
    /// let mode = App::builder().mode(ReactorMode::Poll).block_on(async |app| {
    ///     let reactors = app.reactors();
    ///     let core = reactors.cores().first().unwrap();
    ///     reactors.set_mode(core, ReactorMode::Interrupt).await?;
    ///     Ok::<_, corespun::reactor::SetModeError>(reactors.mode(core))
    /// })?;
    /// assert_eq!(mode?, Some(ReactorMode::Interrupt));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_mode(&self, core: usize, mode: ReactorMode) -> SetMode {
        self.0.set_mode_future(core, mode)
    }

    /// As [`Reactors::set_mode`], with a callback: `done` is called once, in an event
    /// of that reactor when the mode is in force or was refused there, or where the
    /// reactor ends.
    ///
    /// # Errors
    ///
    /// [`SetModeError`] when there is no such reactor or they are stopping; `done` is
    /// not called then.
    pub fn set_mode_then(
        &self,
        core: usize,
        mode: ReactorMode,
        done: impl FnOnce(Result<(), SetModeError>) + Send + 'static,
    ) -> Result<(), SetModeError> {
        self.0.set_mode(core, mode, Box::new(done))
    }

    /// Whether the reactors count how often the kernel takes them off their
    /// processors, once a second at most, in the statistics and the log
    /// (`spdk_framework_enable_context_switch_monitor`). On unless set.
    pub fn monitor_context_switches(&self, on: bool) {
        self.0.set_monitors_switches(on);
    }

    /// Whether context switches are counted
    /// (`spdk_framework_context_switch_monitor_enabled`).
    #[must_use]
    pub fn monitors_context_switches(&self) -> bool {
        self.0.monitors_switches()
    }

    /// What every reactor is doing, in ascending order of the cores. Never
    /// stops the loops.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::app::{App, AppHandle};
    ///
    /// let (before, after) = App::builder().block_on(async |app: AppHandle| {
    ///     let before = app.reactors().stats()[0].threads;
    ///     let worker = app.thread().create().unwrap();
    ///     worker.call(|| ()).await.unwrap();
    ///     (before, app.reactors().stats()[0].threads)
    /// })?;
    /// assert_eq!((before, after), (1, 2));
    /// # Ok::<(), corespun::app::AppError>(())
    /// ```
    pub fn stats(&self) -> Vec<ReactorStats> {
        let now = self.0.library.clock().now();
        let reactors = self.0.reactors.iter();
        let mut stats: Vec<_> = reactors.map(|one| ReactorStats::of(one, now)).collect();
        stats.sort_unstable_by_key(|stats| stats.core);
        stats
    }

    /// Makes the loop of the reactor on `core` panic.
    #[cfg(test)]
    pub(crate) fn make_unwind(&self, core: usize) {
        let index = self.0.index_of(core).unwrap();
        assert!(self.0.send(index, Event::Unwind).is_ok());
    }

    /// The library instance whose threads these reactors poll.
    pub fn library(&self) -> &ThreadLib {
        &self.0.library
    }
}

impl fmt::Debug for Reactors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reactors")
            .field("cores", &self.cores())
            .finish_non_exhaustive()
    }
}

/// An event that could not be sent, with its function.
///
/// # Examples
///
/// ```
/// use corespun::{app::{App, AppHandle}, reactor::EventError};
///
/// let refused = App::builder().block_on(async |app: AppHandle| {
///     let missing = app.reactors().cores().iter().last().unwrap() + 1;
///     let error = app.reactors().send_event(missing, || ()).unwrap_err();
///     matches!(error, EventError::NoReactor { core, .. } if core == missing)
/// })?;
/// assert!(refused);
/// # Ok::<(), corespun::app::AppError>(())
/// ```
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum EventError<F> {
    /// No reactor runs on that core.
    #[error("no reactor runs on core {core}; there are reactors on cores {available}")]
    NoReactor {
        /// The core asked for.
        core: usize,
        /// The cores that have one.
        available: String,
        /// The function.
        event: F,
    },
    /// As many events are outstanding as a reactor takes.
    #[error("the reactor on core {core} has its limit of events outstanding; try again later")]
    Full {
        /// The core asked for.
        core: usize,
        /// The function.
        event: F,
    },
    /// The reactor has ended.
    #[error("the reactor on core {core} has ended")]
    Ended {
        /// The core asked for.
        core: usize,
        /// The function.
        event: F,
    },
}

impl<F> EventError<F> {
    /// The function that was not sent.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::app::{App, AppHandle};
    /// use std::sync::mpsc;
    ///
    /// let ran = App::builder().block_on(async |app: AppHandle| {
    ///     let (sender, receiver) = mpsc::channel();
    ///     let missing = app.reactors().cores().iter().last().unwrap() + 1;
    ///     let error = app.reactors().send_event(missing, move || sender.send(5).unwrap()).unwrap_err();
    ///     // What could not be done there is done here.
    ///     error.into_event()();
    ///     receiver.recv()
    /// })?;
    /// assert_eq!(ran, Ok(5));
    /// # Ok::<(), corespun::app::AppError>(())
    /// ```
    pub fn into_event(self) -> F {
        match self {
            EventError::NoReactor { event, .. }
            | EventError::Full { event, .. }
            | EventError::Ended { event, .. } => event,
        }
    }
}

impl<F> fmt::Debug for EventError<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EventError({self})")
    }
}
