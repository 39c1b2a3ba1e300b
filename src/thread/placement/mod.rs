//! Where a thread may be, where it is, and the waiters for it to get there.
//!
//! The mask is changed on the thread itself, the core is told by the holder of
//! its runner. Both happen with each move at most, so a lock holds them; no
//! user code runs under it.

pub(crate) mod bound;
pub(crate) mod on_thread;

use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};

use futures::channel::oneshot;

use super::panic::{PanicSource, contain, drop_anywhere};
use super::poll::runner::ThreadRunner;
use super::shared::Shared;
use super::{Exited, SpdkThread, ThreadState, ThreadStats};
use crate::cpu::CpuSet;

/// Why a thread's cpumask could not be changed, or did not bring it to one of
/// those cores.
///
/// # Examples
///
/// ```
/// use corespun::{cpu::CpuSet, thread::{SetCpumaskError, ThreadLib}};
///
/// let mut runner = ThreadLib::new().thread().name("disk").build()?.attach();
/// let (thread, mask) = (runner.handle(), CpuSet::single(1));
/// assert_eq!(thread.set_cpumask(&mask), Err(SetCpumaskError::NotCurrent("disk".to_owned())));
/// // No framework moves a thread that is polled by hand.
/// let alone = runner.enter(|| thread.set_cpumask(&mask));
/// assert_eq!(alone, Err(SetCpumaskError::NotSupported("disk".to_owned())));
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SetCpumaskError {
    /// Another thread, or none, is current.
    #[error(
        "the cpumask of thread {0:?} can be changed on that thread only: send it a message, or use `set_cpumask_async`"
    )]
    NotCurrent(String),
    /// No core was given.
    #[error("thread {0:?} needs at least one core in its cpumask")]
    Empty(String),
    /// The library instance has no framework that moves threads.
    #[error("no framework moves thread {0:?} to other cores; start an App, or set one that does")]
    NotSupported(String),
    /// The framework has none of these cores.
    #[error(
        "thread {thread:?} may not be restricted to cores {cpumask}: none is among {available}"
    )]
    NoCore {
        /// The thread's name.
        thread: String,
        /// The mask asked for.
        cpumask: String,
        /// What the framework has.
        available: String,
    },
    /// The mask was changed again before the thread had arrived, to one with
    /// other cores. Only from [`SpdkThread::set_cpumask_async`].
    #[error(
        "thread {thread:?} goes elsewhere: its cpumask became {cpumask} before it had arrived where this call sent it"
    )]
    Superseded {
        /// The thread's name.
        thread: String,
        /// The mask that took the place of the one asked for.
        cpumask: String,
    },
    /// The task that waits for the move must not leave its OS thread, and so the
    /// thread cannot. The mask is changed: the thread moves when it can. Only
    /// from [`SpdkThread::set_cpumask_async`].
    #[error(
        "thread {0:?} cannot leave while a task that is not `Send` waits on it for that: wait in one made by `task::spawn`, or on another thread"
    )]
    HeldByWaiter(String),
    /// The core that the thread is to move to is not in its mask. Only from
    /// [`SpdkThread::move_to_core`].
    #[error("thread {thread:?} may run on cores {cpumask} only, not on core {core}")]
    OutsideMask {
        /// The thread's name.
        thread: String,
        /// The core asked for.
        core: usize,
        /// Its mask.
        cpumask: String,
    },
    /// The thread exited first, or had exited. Only from
    /// [`SpdkThread::set_cpumask_async`] and [`SpdkThread::move_to_core`].
    #[error(transparent)]
    Exited(#[from] Exited),
}

impl SetCpumaskError {
    #[cold]
    pub(crate) fn exited(thread: &str) -> Self {
        Exited::new(thread, "exited before it was on a core of its new cpumask").into()
    }
}

/// Is told how a move ended.
type MoveEnd = oneshot::Sender<Result<(), SetCpumaskError>>;

struct Move {
    mask: CpuSet,
    end: MoveEnd,
}

/// Where a thread is to go.
#[derive(Clone)]
pub(crate) enum Destination {
    /// Any core of this, which becomes its mask.
    Mask(CpuSet),
    /// This core of its mask.
    Core(usize),
}

/// Where a thread is polled, and what it had done when it came there; told by
/// [`SpdkThread::placement`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ThreadPlacement {
    /// The core whose reactor polls the thread.
    pub core: usize,
    /// The core that it was placed on first.
    pub initial_core: usize,
    /// The tick at which it came to `core`.
    pub since: u64,
    /// Its statistics at that tick.
    pub baseline: ThreadStats,
}

pub(super) struct Placement {
    mask: CpuSet,
    /// Unknown between two reactors, and where the runner is not told.
    core: Option<usize>,
    /// Where it is to go within its mask.
    target: Option<usize>,
    /// The core it was on first.
    initial_core: Option<usize>,
    /// The tick of its last arrival on a core, and its statistics then.
    since: u64,
    baseline: ThreadStats,
    /// The tick at which a scheduler looked at it last, or at which it came to this
    /// core, and how busy it had been.
    seen: (u64, u64),
    /// Those that have a waiter.
    moves: Vec<Move>,
}

impl Placement {
    pub(super) fn new(mask: CpuSet) -> Self {
        Placement {
            mask,
            core: None,
            target: None,
            initial_core: None,
            since: 0,
            baseline: ThreadStats::default(),
            seen: (0, 0),
            moves: Vec::new(),
        }
    }

    /// The moves that `ended` says are over.
    fn take_moves(&mut self, ended: impl Fn(&CpuSet) -> bool) -> Vec<Move> {
        self.moves.extract_if(.., |one| ended(&one.mask)).collect()
    }
}

impl Shared {
    fn placement(&self) -> MutexGuard<'_, Placement> {
        // No user code runs under the lock, so a poisoned one is whole.
        self.placement
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn end_moves(&self, moves: Vec<Move>, result: &Result<(), SetCpumaskError>) {
        for Move { end, .. } in moves {
            // The waiter may have given up; its waker may be foreign.
            if let Err(payload) = contain(|| drop(end.send(result.clone()))) {
                self.library
                    .report_panic(self.name(), PanicSource::Drop, None, payload);
            }
        }
    }

    pub(super) fn core(&self) -> Option<usize> {
        self.placement().core
    }

    fn change_mask(&self, mask: &CpuSet) {
        let mut placement = self.placement();
        placement.mask = *mask;
        placement.target = None;
        self.supersede(placement, mask);
    }

    /// Ends the waits for moves that may now end elsewhere: in `mask`.
    fn supersede(&self, mut placement: MutexGuard<'_, Placement>, mask: &CpuSet) {
        // What arrives in `mask` arrives in any that holds all of it.
        let superseded = placement.take_moves(|wanted| !(*mask & !*wanted).is_empty());
        drop(placement);
        if !superseded.is_empty() {
            let error = SetCpumaskError::Superseded {
                thread: self.name().to_owned(),
                cpumask: mask.as_list().to_string(),
            };
            self.end_moves(superseded, &Err(error));
        }
    }

    pub(super) fn set_core(&self, core: Option<usize>) {
        let stats = self.stats();
        let now = self.library.clock.now();
        let mut placement = self.placement();
        placement.core = core;
        let landed = match core {
            Some(core) => {
                placement.initial_core.get_or_insert(core);
                placement.target.take_if(|target| *target == core);
                (placement.since, placement.baseline) = (now, stats);
                placement.seen = (now, stats.busy_ticks);
                placement.take_moves(|wanted| wanted.contains(core))
            }
            None => Vec::new(),
        };
        drop(placement);
        self.end_moves(landed, &Ok(()));
    }

    /// The core it was on first, and its mask; and since when a scheduler has not
    /// looked at it, and how busy it had been by then. It looks now.
    pub(super) fn look_at_placement(
        &self,
        now: u64,
        busy: u64,
    ) -> (Option<usize>, CpuSet, (u64, u64)) {
        let mut placement = self.placement();
        let seen = std::mem::replace(&mut placement.seen, (now, busy));
        (placement.initial_core, placement.mask, seen)
    }

    pub(super) fn stats(&self) -> ThreadStats {
        ThreadStats {
            busy_ticks: self.busy_ticks.load(Ordering::Relaxed),
            idle_ticks: self.idle_ticks.at(self.library.clock.now()),
        }
    }

    /// Ends every wait for a move: the thread reads EXITED.
    pub(super) fn end_all_moves(&self) {
        let moves = self.placement().take_moves(|_| true);
        if !moves.is_empty() {
            let error = SetCpumaskError::exited(self.name());
            self.end_moves(moves, &Err(error));
        }
    }
}

impl SpdkThread {
    /// The cores that the thread may be placed on.
    pub fn cpumask(&self) -> CpuSet {
        self.shared.placement().mask
    }

    /// The core whose reactor polls the thread. `None` on the way from one to
    /// another, and when its runner was not told: see [`ThreadRunner::set_core`].
    pub fn core(&self) -> Option<usize> {
        self.shared.core()
    }

    /// Changes the cores that this thread, the current one, may be placed on
    /// (`spdk_thread_set_cpumask`), and has the framework move it after the
    /// poll if it must. Of several calls in one poll the last counts. A bound
    /// thread is moved once it is no longer bound.
    ///
    /// [`SpdkThread::set_cpumask_async`] waits for that, and can be called
    /// anywhere.
    ///
    /// # Errors
    ///
    /// [`SetCpumaskError`] when the thread is not the current one, when `mask`
    /// is empty, when the library instance has no framework, and when that
    /// refuses the mask. The mask is unchanged then.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use corespun::thread::{CreateError, Framework, ParkedThread, SetCpumaskError};
    /// use corespun::{cpu::CpuSet, thread::{SpdkThread, ThreadLib}};
    ///
    /// # struct Reactors;
    /// # impl Framework for Reactors {
    /// #     fn place(&self, _: ParkedThread) -> Result<(), CreateError> { Ok(()) }
    /// #     fn reschedule(&self, _: &SpdkThread, _: &CpuSet) -> Result<(), SetCpumaskError> { Ok(()) }
    /// # }
    /// let library = ThreadLib::new();
    /// # library.set_framework(Arc::new(Reactors))?;
    /// let mut runner = library.thread().build()?.attach();
    /// let call = runner.handle().call(|| {
    ///     // Only a thread itself may change its mask: send it a message.
    ///     SpdkThread::current().unwrap().set_cpumask(&CpuSet::single(1))
    /// });
    /// runner.poll(0, 0);
    /// futures::executor::block_on(call)??;
    /// assert_eq!(runner.handle().cpumask(), CpuSet::single(1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_cpumask(&self, mask: &CpuSet) -> Result<(), SetCpumaskError> {
        let name = || self.name().to_owned();
        if !self.is_current() {
            return Err(SetCpumaskError::NotCurrent(name()));
        }
        if mask.is_empty() {
            return Err(SetCpumaskError::Empty(name()));
        }
        let framework = self.shared.library.framework();
        let framework = framework.ok_or_else(|| SetCpumaskError::NotSupported(name()))?;
        framework.reschedule(self, mask)?;
        self.shared.change_mask(mask);
        Ok(())
    }

    /// As [`SpdkThread::set_cpumask`] or, with the mask as it is, to a core of it;
    /// `end` is told when the thread is there.
    pub(crate) fn go_then(&self, to: &Destination, end: MoveEnd) {
        let result = match (self.state(), to) {
            (ThreadState::Exited, _) => Err(SetCpumaskError::exited(self.name())),
            (_, Destination::Mask(mask)) => self.set_cpumask(mask),
            (_, Destination::Core(core)) => self.set_target(*core),
        };
        let mask = match to {
            Destination::Mask(mask) => *mask,
            // Refused, if there is no such core.
            Destination::Core(core) => CpuSet::single((*core).min(CpuSet::CAPACITY - 1)),
        };
        let mut placement = self.shared.placement();
        // Where cores are not told, the framework's word has to do.
        let landed = placement.core.is_none_or(|core| mask.contains(core));
        if result.is_err() || landed {
            drop(placement);
            // No caller waits for it yet, or the waiter has given up.
            let _ = end.send(result);
            return;
        }
        let given_up = placement.moves.extract_if(.., |one| one.end.is_canceled());
        let given_up: Vec<_> = given_up.collect();
        placement.moves.push(Move { mask, end });
        drop(placement);
        // Outside of the lock: a waiter that gives up now may leave a foreign waker.
        drop_anywhere(given_up);
    }

    /// Has the framework move this thread, the current one, to `core` of its mask.
    pub(crate) fn set_target(&self, core: usize) -> Result<(), SetCpumaskError> {
        let name = || self.name().to_owned();
        let framework = self.shared.library.framework();
        let framework = framework.ok_or_else(|| SetCpumaskError::NotSupported(name()))?;
        framework.move_to(self, core)?;
        let mut placement = self.shared.placement();
        if !placement.mask.contains(core) {
            return Err(SetCpumaskError::OutsideMask {
                thread: name(),
                core,
                cpumask: placement.mask.as_list().to_string(),
            });
        }
        placement.target = (placement.core != Some(core)).then_some(core);
        self.shared.supersede(placement, &CpuSet::single(core));
        Ok(())
    }

    /// Whether the thread's mask, or where it was sent, takes it away from `core`.
    pub(crate) fn wants_elsewhere(&self, core: usize) -> bool {
        let placement = self.shared.placement();
        match placement.target {
            Some(target) => target != core,
            None => !placement.mask.contains(core),
        }
    }

    /// Where the thread was sent within its mask.
    pub(crate) fn target(&self) -> Option<usize> {
        self.shared.placement().target
    }

    /// Where the thread is, since when, and where it was first. `None` on the way
    /// from one core to another, and when its runner was not told: see
    /// [`ThreadRunner::set_core`].
    ///
    /// # Examples
    ///
    /// How busy it has been where it is:
    ///
    /// ```
    /// use corespun::{clock::Clock, thread::ThreadLib};
    ///
    /// let (clock, hand) = Clock::virtual_at(1_000_000);
    /// let mut runner = ThreadLib::builder().clock(clock).build().thread().build()?.attach();
    /// let thread = runner.handle();
    /// for core in [3, 5] {
    ///     hand.advance(100);
    ///     runner.set_core(Some(core));
    ///     let work = hand.clone();
    ///     thread.send_msg(move || _ = work.advance(7)).unwrap();
    ///     runner.poll(0, 0);
    /// }
    /// let place = thread.placement().unwrap();
    /// assert_eq!((place.core, place.initial_core, place.since), (5, 3, 207));
    /// assert_eq!(thread.stats().busy_ticks - place.baseline.busy_ticks, 7);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn placement(&self) -> Option<ThreadPlacement> {
        let placement = self.shared.placement();
        let core = placement.core?;
        Some(ThreadPlacement {
            core,
            initial_core: placement.initial_core.unwrap_or(core),
            since: placement.since,
            baseline: placement.baseline,
        })
    }
}

impl ThreadRunner {
    /// Says on which core the caller polls the thread from now on: what
    /// [`SpdkThread::core`] answers, and what ends the wait of
    /// [`SpdkThread::set_cpumask_async`]. For a framework of your own that moves
    /// threads; call it before the first poll there. [`ThreadRunner::park`] takes
    /// it back.
    pub fn set_core(&mut self, core: Option<usize>) {
        self.local.shared.set_core(core);
    }
}
