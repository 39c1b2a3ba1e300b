//! Schedulers: which core polls which thread, decided again and again while all
//! runs.
//!
//! A [`Scheduler`] looks at a [`Snapshot`] of the cores and of the threads on them
//! and answers with a [`Plan`]. When that happens and what becomes of the plan is the
//! reactors' business: a *round* has four phases, each made of events on the reactors
//! that it concerns, so no loop is ever stopped for it.
//!
//! 1. One event after another visits every core, from the *scheduling core* on, and
//!    notes what it and its threads have done since the last round.
//! 2. On the scheduling core, [`Scheduler::balance`] makes a plan.
//! 3. Cores are put to sleep or woken, one after the other, each once the one before
//!    is where it should be.
//! 4. Threads that are to move are told so; each goes after its next poll.
//!
//! Three schedulers are there by name: `static`, where threads stay on the core that
//! they came to first, which is in force until another is set; `dynamic`
//! ([`Dynamic`]), which gathers idle threads on the scheduling core, spreads busy ones
//! and has empty cores sleep; `gscheduler` ([`FrequencyScheduler`]), which moves
//! nothing and sets the cores' frequencies. [`Schedulers`] is where they are chosen and
//! where others are registered.
//!
//! A thread that holds what is not `Send` is *bound* and is never moved; the report
//! of a round ([`Round::held`]) says what a scheduler wanted with it.

mod by_hand;
mod conductor;
mod dynamic;
mod frequency;
mod governing;
mod handle;
mod round;
mod snapshot;

#[cfg(test)]
mod tests;

pub use by_hand::StaticScheduler;
pub(super) use conductor::Scheduling;
pub use dynamic::{Dynamic, DynamicOptions};
pub use frequency::FrequencyScheduler;
pub(crate) use handle::SchedulerConfig;
pub use handle::{SchedulerReply, SchedulerState, Schedulers, Setup};
pub use round::{Hold, Round, ThreadMove};
pub(super) use snapshot::RoundTotals;
pub use snapshot::{CoreSnapshot, Snapshot, ThreadSnapshot, load};

#[cfg(feature = "scheduler-options")]
use serde_json::Value;

use super::governor::{Frequency, GovernorError};

/// Decides which core polls which thread (`struct spdk_scheduler`).
///
/// All of it is called in events on the scheduling core, one call at a time.
///
/// # Examples
///
/// One that sends every thread to the highest core of its mask:
///
/// ```
/// use corespun::{app::{App, AppHandle}, cpu};
/// use corespun::reactor::{ReactorMode, scheduler::{Plan, Scheduler, Snapshot}};
///
/// struct Upwards;
///
/// impl Scheduler for Upwards {
///     fn balance(&mut self, snapshot: &Snapshot) -> Plan {
///         let mut plan = Plan::new();
///         for thread in snapshot.cores.iter().flat_map(|core| &core.threads) {
///             let cores = snapshot.cores.iter().map(|core| core.core);
///             let highest = cores.filter(|core| thread.cpumask.contains(*core)).max();
///             if let Some(core) = highest.filter(|core| *core != thread.core) {
///                 plan.move_thread(thread.id, core);
///             }
///         }
///         plan
///     }
/// }
///
/// let cpu = cpu::available()?.first().unwrap();
/// let app = App::builder().lcores([(0, cpu), (1, cpu)]).mode(ReactorMode::Interrupt);
/// let moved = app.try_block_on(async |app: AppHandle| {
///     let schedulers = app.reactors().schedulers();
///     schedulers.register("upwards", Upwards)?;
///     schedulers.set("upwards").await?;
///     let worker = app.thread().create()?;
///     schedulers.run_round().await?;
///     while worker.core() != Some(1) {
///         corespun::task::yield_now().await;
///     }
///     Ok::<_, Box<dyn std::error::Error>>(schedulers.run_round().await?.moved.len())
/// })?;
/// assert_eq!(moved, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Scheduler: Send + 'static {
    /// Is chosen. Unless overridden, does nothing.
    ///
    /// # Errors
    ///
    /// Why it cannot be used; the caller that asked for it is told, and the one before
    /// is used again.
    fn init(&mut self, setup: &mut Setup<'_>) -> Result<(), String> {
        let _ = setup;
        Ok(())
    }

    /// Is no longer used: another is chosen, or the reactors stop. Cores that it has
    /// put to sleep are woken, and its governor is taken from it, by the caller.
    fn deinit(&mut self) {}

    /// Says what is to change. What does not make sense (a thread or core that is
    /// not in the snapshot, a core that the thread's mask does not hold), and a panic,
    /// ends the round with everything where it was.
    fn balance(&mut self, snapshot: &Snapshot) -> Plan;

    /// When it wants to be asked; looked at after each of its other functions.
    fn rounds(&self) -> Rounds {
        Rounds::Periodic
    }

    /// Changes its options, whether it is in use or not. They live as long as it is
    /// registered. Unless overridden, there are none.
    ///
    /// # Errors
    ///
    /// What is wrong with them and what would fit; nothing has changed then.
    #[cfg(feature = "scheduler-options")]
    fn set_options(&mut self, options: &Value, reactors: &super::Reactors) -> Result<(), String> {
        let _ = reactors;
        match options {
            Value::Null => Ok(()),
            other => Err(format!("{other} was given, and it has no options")),
        }
    }

    /// Its options.
    #[cfg(feature = "scheduler-options")]
    fn options(&self) -> Value {
        Value::Null
    }
}

/// When a scheduler wants to be asked for a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rounds {
    /// Only when a caller asks for a round.
    Never,
    /// Once, as soon as may be.
    Once,
    /// Once per period.
    Periodic,
}

/// What a scheduler wants changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "a scheduler returns it"]
pub struct Plan {
    moves: Vec<(u64, usize)>,
    power: Vec<(usize, Power)>,
    frequencies: Vec<(usize, Frequency)>,
}

/// Whether a core is to sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Power {
    Sleep,
    Wake,
}

impl Plan {
    /// Nothing is to change.
    pub fn new() -> Self {
        Plan::default()
    }

    /// Has the thread with this id polled on `core` from now on.
    pub fn move_thread(&mut self, thread: u64, core: usize) {
        self.moves.push((thread, core));
    }

    /// Has `core` sleep whenever it has nothing to do: interrupt mode, until
    /// [`Plan::wake`]. Left as it is if a thread is there by then.
    pub fn sleep(&mut self, core: usize) {
        self.power.push((core, Power::Sleep));
    }

    /// Gives `core` the mode back that it had before [`Plan::sleep`]; nothing, if it
    /// was not put to sleep.
    pub fn wake(&mut self, core: usize) {
        self.power.push((core, Power::Wake));
    }

    /// Changes the frequency of `core`; nothing, where no governor is set.
    pub fn set_frequency(&mut self, core: usize, frequency: Frequency) {
        self.frequencies.push((core, frequency));
    }

    /// The moves, by thread id and core.
    #[must_use]
    pub fn moves(&self) -> &[(u64, usize)] {
        &self.moves
    }

    /// The cores to sleep.
    pub fn sleeping(&self) -> impl Iterator<Item = usize> {
        self.power_of(Power::Sleep)
    }

    /// The cores to wake.
    pub fn waking(&self) -> impl Iterator<Item = usize> {
        self.power_of(Power::Wake)
    }

    fn power_of(&self, wanted: Power) -> impl Iterator<Item = usize> {
        let of = move |&(core, power): &(usize, Power)| (power == wanted).then_some(core);
        self.power.iter().filter_map(of)
    }

    /// The frequencies, by core.
    #[must_use]
    pub fn frequencies(&self) -> &[(usize, Frequency)] {
        &self.frequencies
    }

    /// What does not fit `snapshot`, if anything.
    fn nonsense(&self, snapshot: &Snapshot) -> Option<String> {
        let cores = snapshot.core_set();
        let listed = cores.as_list();
        let power = self.power.iter().map(|(core, _)| *core);
        let mut named = power.chain(self.frequencies.iter().map(|(core, _)| *core));
        if let Some(core) = named.find(|core| !cores.contains(*core)) {
            return Some(format!("core {core} has no reactor; cores {listed} have"));
        }
        let mut seen = std::collections::BTreeSet::new();
        let threads = snapshot.threads_by_id();
        self.moves.iter().find_map(|&(id, core)| {
            let Some(thread) = threads.get(&id) else {
                return Some(format!("there is no thread {id}"));
            };
            if !seen.insert(id) {
                return Some(format!("thread {id} is to move twice"));
            }
            if !cores.contains(core) {
                return Some(format!("thread {id} is to move to core {core}, which has no reactor; cores {listed} have"));
            }
            let mask = thread.cpumask.as_list();
            let refused = !thread.cpumask.contains(core);
            refused.then(|| format!("thread {id} is to move to core {core} and may run on {mask} only"))
        })
    }
}

/// Why schedulers do not do what they were asked to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SchedulerError {
    /// No scheduler was registered under that name.
    #[error("there is no scheduler {name:?}; registered are {available}")]
    Unknown {
        /// The name asked for.
        name: String,
        /// The names there are.
        available: String,
    },
    /// The name is taken.
    #[error("a scheduler or governor {name:?} is registered already")]
    Registered {
        /// The name.
        name: String,
    },
    /// The scheduler refused to be used.
    #[error("scheduler {name:?} cannot be used: {message}")]
    Init {
        /// Its name.
        name: String,
        /// What it said.
        message: String,
    },
    /// The scheduler refused the options; they are as they were.
    #[error("scheduler {name:?} keeps its options: {message}")]
    Options {
        /// Its name.
        name: String,
        /// What is wrong, and what would fit.
        message: String,
    },
    /// The scheduler panicked.
    #[error("scheduler {name:?} panicked: {message}")]
    Panicked {
        /// Its name.
        name: String,
        /// What the panic said.
        message: String,
    },
    /// The scheduler's plan does not fit what there is; all is as it was.
    #[error("the plan of scheduler {name:?} makes no sense: {message}")]
    Nonsense {
        /// Its name.
        name: String,
        /// What does not fit.
        message: String,
    },
    /// No scheduler is in use.
    #[error("no scheduler is set")]
    Inactive,
    /// There is no reactor on such a core.
    #[error("no reactor runs on {cores}; there are reactors on cores {available}")]
    NoReactor {
        /// The cores asked for.
        cores: String,
        /// The cores that have one.
        available: String,
    },
    /// A core cannot be isolated and run the scheduler.
    #[error("core {core} runs the scheduler and cannot be isolated")]
    SchedulingCore {
        /// The core.
        core: usize,
    },
    /// A governor was asked for and refused.
    #[error(transparent)]
    Governor(#[from] GovernorError),
    /// The reactors are stopping.
    #[error("the reactors are stopping")]
    Stopping,
}
