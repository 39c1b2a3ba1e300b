//! All reactors together: the part of each that any OS thread may touch, and the
//! placement of threads on them.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use super::hosted::{self, Hosted};
use super::inside::WithinFn;
use super::scheduler::Scheduling;
use super::seat::SleepHooks;
use super::stats::ToldKeeper;
use super::watcher::{Watched, reactor_name};
use super::{AdaptivePolling, ReactorMode};
use crate::cpu::{self, CpuSet};
use crate::io::{Backend, DriverConfig, WakeFd};
use crate::notify::{Observer, Sleeper};
use crate::sync::Mailbox;
use crate::thread::idle_ticks::IdleTicks;
use crate::thread::message::Message;
use crate::thread::panic::{PanicSource, Payload, contain};
use crate::thread::{CreateError, Framework, ParkedThread, SetCpumaskError, SpdkThread, ThreadLib};

/// Slots of a reactor's ring of events before they spill.
const EVENT_RING: usize = 1024;

/// Which processor a reactor's OS thread is pinned to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lcore {
    /// The reactor's number.
    pub(crate) core: usize,
    /// The processor; usually the same number.
    pub(crate) cpu: usize,
}

/// What a reactor is sent.
pub(crate) enum Event {
    /// A function to call, with no SpdkThread current.
    Call(Message),
    /// A function of the reactors' own to call with the reactor, which contains what
    /// is the user's in it.
    Within(Box<WithinFn>),
    /// A thread to poll from now on.
    Arrival(ParkedThread),
    /// The dormant thread at this place may have something to do.
    Roused(usize),
    /// Makes the loop itself panic.
    #[cfg(test)]
    Unwind,
}

/// The part of a reactor that any OS thread may touch.
pub(super) struct Shared {
    pub(super) place: Lcore,
    pub(super) events: Arc<Mailbox<Event>>,
    pub(super) sleeper: Arc<Sleeper>,
    /// What ends the sleep of an OS thread's driver; a simulated reactor has none.
    pub(super) wake: Option<WakeFd>,
    /// The mode in force; written by the reactor.
    mode: AtomicU8,
    /// A scheduler has put the core to sleep: the placing of threads avoids it.
    pub(super) put_to_sleep: AtomicBool,
    /// The tick at which the next round of the scheduler begins here; never where
    /// others begin it.
    pub(super) next_round: AtomicU64,
    /// Context switches of the OS thread that were seen, voluntary and not.
    pub(super) switches: [AtomicU64; 2],
    pub(super) busy_ticks: AtomicU64,
    pub(super) idle_ticks: IdleTicks,
    pub(super) threads: AtomicUsize,
    pub(super) backend: OnceLock<Backend>,
    pub(super) kept_awake_by: ToldKeeper,
    /// Where stalls are watched for.
    pub(super) watched: Option<Watched>,
}

impl Shared {
    fn new(library: &ThreadLib, place: Lcore, mode: ReactorMode) -> io::Result<Self> {
        let wake = WakeFd::new()?;
        let events = Arc::new(Mailbox::new(EVENT_RING));
        let unpark = wake.clone();
        let sleeper = Sleeper::with_dormant(move || unpark.wake(), rouse(&events));
        Ok(Shared::of(
            library,
            place,
            mode,
            events,
            Some(wake),
            sleeper,
        ))
    }

    /// One that a simulation turns, which hears of all that is sent here.
    fn simulated(
        library: &ThreadLib,
        place: Lcore,
        mode: ReactorMode,
        observer: impl FnOnce(Arc<Mailbox<Event>>) -> Box<dyn Observer>,
    ) -> Self {
        let events = Arc::new(Mailbox::new(EVENT_RING));
        // Awake is what the state of the sleeper says.
        let sleeper = Sleeper::with_dormant(|| (), rouse(&events));
        let sleeper = sleeper.observed_by(observer(events.clone()));
        Shared::of(library, place, mode, events, None, sleeper)
    }

    fn of(
        library: &ThreadLib,
        place: Lcore,
        mode: ReactorMode,
        events: Arc<Mailbox<Event>>,
        wake: Option<WakeFd>,
        sleeper: Sleeper,
    ) -> Self {
        Shared {
            place,
            events,
            sleeper: Arc::new(sleeper),
            wake,
            mode: AtomicU8::new(mode as u8),
            put_to_sleep: AtomicBool::new(false),
            next_round: AtomicU64::new(u64::MAX),
            switches: Default::default(),
            busy_ticks: AtomicU64::new(0),
            idle_ticks: IdleTicks::default(),
            threads: AtomicUsize::new(0),
            backend: OnceLock::new(),
            kept_awake_by: ToldKeeper::default(),
            watched: Watched::new(library),
        }
    }

    pub(super) fn mode(&self) -> ReactorMode {
        ReactorMode::ALL[usize::from(self.mode.load(Ordering::Relaxed))]
    }

    /// The reactor only: a scheduler has put it to sleep, or no longer.
    pub(super) fn note_sleep(&self, sleeps: bool) {
        self.put_to_sleep.store(sleeps, Ordering::Relaxed);
    }

    /// The reactor only: the mode is in force.
    pub(super) fn enter_mode(&self, mode: ReactorMode) {
        self.mode.store(mode as u8, Ordering::Relaxed);
    }
}

/// How a dormant thread is roused; refused by a reactor without threads only.
fn rouse(events: &Arc<Mailbox<Event>>) -> impl Fn(usize) + Send + Sync + 'static {
    let events = events.clone();
    move |place| drop(events.push(Event::Roused(place)))
}

pub(crate) struct Group {
    pub(super) library: ThreadLib,
    pub(super) reactors: Box<[Shared]>,
    /// Their places among `reactors`, in ascending order of the cores.
    pub(super) by_core: Box<[usize]>,
    pub(super) adaptive: AdaptivePolling,
    pub(super) driver: DriverConfig,
    /// More reactors than processors: each must sleep for the others to run.
    pub(super) oversubscribed: bool,
    /// Called around each sleep of a reactor.
    pub(super) sleep_hooks: SleepHooks,
    stopping: AtomicBool,
    /// Walks over the reactors under way: none ends before.
    walks: AtomicUsize,
    /// Whether reactors count their context switches.
    monitors_switches: AtomicBool,
    pub(super) scheduling: Scheduling,
    /// The core and the error of the reactor whose I/O ended first.
    failed: OnceLock<(usize, io::Error)>,
    /// Where the search for a place for the next thread begins.
    cursor: AtomicUsize,
}

impl Group {
    pub(crate) fn new(
        library: ThreadLib,
        places: &[Lcore],
        mode: ReactorMode,
        adaptive: AdaptivePolling,
        driver: DriverConfig,
    ) -> io::Result<Arc<Self>> {
        let hooks = SleepHooks::default();
        Group::with_hooks(library, places, mode, adaptive, driver, hooks).map(Arc::new)
    }

    pub(super) fn with_hooks(
        library: ThreadLib,
        places: &[Lcore],
        mode: ReactorMode,
        adaptive: AdaptivePolling,
        driver: DriverConfig,
        sleep_hooks: SleepHooks,
    ) -> io::Result<Self> {
        let reactors: io::Result<Box<[Shared]>> = places
            .iter()
            .map(|&place| Shared::new(&library, place, mode))
            .collect();
        let cpus = places.iter().map(|place| place.cpu).collect();
        let group = Group::of(library, reactors?, adaptive);
        Ok(Group {
            driver,
            oversubscribed: places.len() > processors_of(&cpus),
            sleep_hooks,
            ..group
        })
    }

    /// Reactors on cores of a simulation, of which `observer` makes what hears of all that
    /// is sent to one, by its number and its events.
    pub(crate) fn simulated(
        library: ThreadLib,
        places: &[Lcore],
        mode: ReactorMode,
        adaptive: AdaptivePolling,
        observer: impl Fn(usize, Arc<Mailbox<Event>>) -> Box<dyn Observer>,
    ) -> Arc<Self> {
        let one = |(index, &place)| {
            Shared::simulated(&library, place, mode, |events| observer(index, events))
        };
        let reactors = places.iter().enumerate().map(one).collect();
        let group = Group::of(library, reactors, adaptive);
        group.scheduling.forget_governors();
        Arc::new(group)
    }

    fn of(library: ThreadLib, reactors: Box<[Shared]>, adaptive: AdaptivePolling) -> Self {
        let core = |index: usize| reactors[index].place.core;
        let mut by_core: Box<[usize]> = (0..reactors.len()).collect();
        by_core.sort_unstable_by_key(|&index| core(index));
        let main = reactors.first().map_or(0, |reactor| reactor.place.core);
        Group {
            library,
            reactors,
            by_core,
            adaptive,
            driver: DriverConfig::default(),
            oversubscribed: false,
            sleep_hooks: SleepHooks::default(),
            stopping: AtomicBool::new(false),
            walks: AtomicUsize::new(0),
            monitors_switches: AtomicBool::new(true),
            scheduling: Scheduling::new(main),
            failed: OnceLock::new(),
            cursor: AtomicUsize::new(0),
        }
    }

    pub(super) fn index_of(&self, core: usize) -> Option<usize> {
        self.reactors
            .iter()
            .position(|reactor| reactor.place.core == core)
    }

    pub(super) fn cores(&self) -> CpuSet {
        self.reactors
            .iter()
            .map(|reactor| reactor.place.core)
            .collect()
    }

    #[inline]
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(super) fn monitors_switches(&self) -> bool {
        self.monitors_switches.load(Ordering::Relaxed)
    }

    pub(super) fn set_monitors_switches(&self, on: bool) {
        self.monitors_switches.store(on, Ordering::Relaxed);
    }

    /// Counts a walk in, unless all stop. In one order with `stop`: either this sees
    /// that, or every reactor sees the walk before it ends.
    pub(super) fn begin_walk(&self) -> bool {
        self.walks.fetch_add(1, Ordering::SeqCst);
        if self.stopping.load(Ordering::SeqCst) {
            self.end_walk();
            return false;
        }
        true
    }

    pub(super) fn end_walk(&self) {
        if self.walks.fetch_sub(1, Ordering::SeqCst) == 1 && self.is_stopping() {
            self.wake_all();
        }
    }

    pub(super) fn has_walks(&self) -> bool {
        self.walks.load(Ordering::SeqCst) > 0
    }

    fn wake_all(&self) {
        for reactor in &self.reactors {
            reactor.sleeper.notify();
        }
    }

    /// Makes every reactor exit its threads and end. Any OS thread.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.wake_all();
    }

    /// As [`stop`](Self::stop), because the reactor of `core` cannot do I/O any more.
    pub(super) fn fail(&self, core: usize, error: io::Error) {
        let _ = self.failed.set((core, error));
        self.stop();
    }

    /// Which reactor's I/O ended, and why, if that has stopped this.
    pub(crate) fn failure(&self) -> Option<(usize, io::Error)> {
        let (core, error) = self.failed.get()?;
        Some((*core, io::Error::new(error.kind(), error.to_string())))
    }

    pub(super) fn send(&self, index: usize, event: Event) -> Result<(), Event> {
        let reactor = &self.reactors[index];
        reactor.events.push(event)?;
        reactor.sleeper.notify();
        Ok(())
    }

    /// Runs `f` on the main reactor, outside of any SpdkThread and whatever its
    /// limit of events; not at all if it has ended.
    pub(crate) fn call_main(&self, f: impl FnOnce() + Send + 'static) {
        let _ = self.send(0, Event::Call(Message::new(f)));
    }

    /// Runs what `make` makes for its core on each reactor, as
    /// [`Group::call_main`]; the result is the cores of those that have not ended.
    pub(crate) fn call_each<F: FnOnce() + Send + 'static>(
        &self,
        make: impl Fn(usize) -> F,
    ) -> Vec<usize> {
        let cores = self.reactors.iter().map(|reactor| reactor.place.core);
        let sent = |&(index, core): &(usize, usize)| {
            let call = Event::Call(Message::new(make(core)));
            self.send(index, call).is_ok()
        };
        let asked = cores.enumerate().filter(sent);
        asked.map(|(_, core)| core).collect()
    }

    /// Reports a panic of the user's code on the reactor `here`, outside of any
    /// SpdkThread.
    pub(super) fn report_panic(&self, here: &Shared, source: PanicSource, payload: Payload) {
        let library = &self.library.inner;
        library.report_panic(&reactor_name(here), source, None, payload);
    }

    /// Drops what the user's values are in, on the reactor `here`.
    pub(super) fn drop_contained<T>(&self, here: &Shared, value: T) {
        if let Err(payload) = contain(|| drop(value)) {
            self.report_panic(here, PanicSource::Drop, payload);
        }
    }
}

/// Placing threads.
impl Group {
    /// The next reactor whose core is in `mask`, counted from the one after
    /// the last chosen. One that a scheduler has put to sleep only if there is no
    /// other.
    pub(super) fn next_of(&self, mask: &CpuSet) -> Option<usize> {
        let count = self.reactors.len();
        let next = |start: usize| {
            let round = (0..count).map(|step| (start + step) % count);
            let fits = |&index: &usize| mask.contains(self.reactors[index].place.core);
            let sleeps = |index: usize| self.reactors[index].put_to_sleep.load(Ordering::Relaxed);
            let mut fitting = round.filter(fits);
            let first = fitting.next()?;
            match sleeps(first) {
                false => Some(first),
                true => fitting.find(|&index| !sleeps(index)).or(Some(first)),
            }
        };
        let mut chosen = None;
        let _ = self
            .cursor
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |start| {
                chosen = next(start);
                chosen.map(|index| index + 1)
            });
        chosen
    }

    /// Sends a thread on from the reactor `here` to one of its mask; what cannot
    /// leave, or is refused there because that reactor has ended, stays here.
    pub(super) fn pass_on(&self, here: &Shared, mut hosted: Hosted) -> Result<(), Hosted> {
        let thread = hosted.runner.handle();
        let target = thread.target().and_then(|core| self.index_of(core));
        let Some(target) = target.or_else(|| self.next_of(&thread.cpumask())) else {
            hosted.moves = false;
            return Err(hosted);
        };
        match self.send(target, Event::Arrival(hosted.park()?)) {
            Err(Event::Arrival(thread)) => Err(Hosted::new(thread, here)),
            _ => Ok(()),
        }
    }

    /// Round-robin over the cores of the thread's mask.
    fn place(&self, thread: ParkedThread) -> Result<(), CreateError> {
        let mask = thread.cpumask();
        let Some(index) = self.next_of(&mask) else {
            return Err(CreateError::NoCore {
                thread: thread.handle().name().to_owned(),
                cpumask: mask.as_list().to_string(),
                available: self.cores().as_list().to_string(),
            });
        };
        if self.is_stopping() {
            return Err(CreateError::Stopping);
        }
        // Refused by a reactor that has ended; then the thread ends here.
        self.send(index, Event::Arrival(thread))
            .map_err(|_| CreateError::Stopping)
    }
}

/// How many of `cpus` can work at a time: a quota may allow for fewer. The calling OS thread
/// may be pinned, to one that it is to have for itself, which says nothing of the others.
fn processors_of(cpus: &CpuSet) -> usize {
    let all = *cpus;
    let allowed = move || {
        // Where they cannot be had, the reactors will say so.
        let _ = cpu::set_current_affinity(&all);
        std::thread::available_parallelism()
    };
    let asked = std::thread::Builder::new().spawn(allowed);
    let allowed = asked.ok().and_then(|asked| asked.join().ok()?.ok());
    allowed.map_or(1, |n| n.get()).min(cpus.count())
}

/// What places the library's threads: the reactors, as long as they are there.
/// They own the library, so it must not own them.
pub(crate) struct Placement(pub(crate) Weak<Group>);

impl Framework for Placement {
    fn place(&self, thread: ParkedThread) -> Result<(), CreateError> {
        match self.0.upgrade() {
            Some(group) => group.place(thread),
            None => Err(CreateError::Stopping),
        }
    }

    fn reschedule(&self, thread: &SpdkThread, mask: &CpuSet) -> Result<(), SetCpumaskError> {
        let name = || thread.name().to_owned();
        let group = self.0.upgrade();
        let group = group.ok_or_else(|| SetCpumaskError::NotSupported(name()))?;
        let cores = group.cores();
        if !mask.iter().any(|core| cores.contains(core)) {
            return Err(SetCpumaskError::NoCore {
                thread: name(),
                cpumask: mask.as_list().to_string(),
                available: cores.as_list().to_string(),
            });
        }
        hosted::note_rescheduled();
        Ok(())
    }

    fn move_to(&self, thread: &SpdkThread, core: usize) -> Result<(), SetCpumaskError> {
        let name = || thread.name().to_owned();
        let group = self.0.upgrade();
        let group = group.ok_or_else(|| SetCpumaskError::NotSupported(name()))?;
        if group.index_of(core).is_none() {
            return Err(SetCpumaskError::NoCore {
                thread: name(),
                cpumask: format!("[{core}]"),
                available: group.cores().as_list().to_string(),
            });
        }
        hosted::note_rescheduled();
        Ok(())
    }
}

/// Why the reactors could not be started.
///
/// # Examples
///
/// An app that does not start says which reactor it was:
///
/// ```
/// use corespun::{app::{App, AppError}, reactor::StartError};
/// use corespun::io::{BackendChoice, DriverConfig};
///
/// let io = DriverConfig::new().backend(BackendChoice::IoUring);
/// match App::builder().io(io).run(async |app| app.stop(0)) {
///     Ok(code) => assert_eq!(code, 0),
///     // Where io_uring is not permitted.
///     Err(AppError::Start(error @ StartError::Driver { .. })) => {
///         assert!(error.to_string().starts_with("reactor"));
///     }
///     Err(other) => panic!("{other}"),
/// }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A reactor's OS thread could not be pinned.
    #[error(transparent)]
    Affinity(#[from] crate::cpu::AffinityError),
    /// A reactor's I/O driver could not be made.
    #[error("reactor {core}: {source}")]
    Driver {
        /// The reactor's core.
        core: usize,
        /// What was refused.
        source: crate::io::DriverError,
    },
    /// A reactor's OS thread or eventfd could not be made.
    #[error("cannot start the reactors: {0}")]
    Io(#[from] io::Error),
}
