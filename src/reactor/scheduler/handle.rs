//! The handle of the reactors' scheduling: what any OS thread may ask for.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::channel::oneshot;
#[cfg(feature = "scheduler-options")]
use serde_json::Value;

use super::super::governor::{Governor, GovernorError};
use super::super::group::Group;
use super::super::handle::Reactors;
use super::conductor::{Command, Conductor, lock};
use super::{Round, Scheduler, SchedulerError};
use crate::cpu::CpuSet;
use crate::task::reply::Reply;

/// Schedulers and governors of some reactors: registration, choice and settings.
///
/// Any OS thread may use it. What changes something is begun by the call and takes
/// effect on the scheduling core, in the order asked and between two rounds; its
/// future says when, and whether.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use corespun::app::{App, AppHandle};
/// use serde_json::json;
///
/// App::builder().try_block_on(async |app: AppHandle| {
///     let schedulers = app.reactors().schedulers();
///     assert_eq!(schedulers.state().scheduler.as_deref(), Some("static"));
///     schedulers.set_options("dynamic", json!({ "core_limit": 70 })).await?;
///     schedulers.set_period(Duration::from_millis(100)).await?;
///     schedulers.set("dynamic").await?;
///     assert_eq!(schedulers.options("dynamic").await?["core_limit"], 70);
///     let error = schedulers.set("dynamo").await.unwrap_err();
///     assert!(error.to_string().ends_with("registered are dynamic, gscheduler, static"));
///     Ok::<_, Box<dyn std::error::Error>>(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Schedulers(pub(super) Arc<Group>);

/// The state of scheduling, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SchedulerState {
    /// The scheduler in use.
    pub scheduler: Option<String>,
    /// The governor in use.
    pub governor: Option<String>,
    /// The time between the beginnings of two rounds; zero: none by themselves.
    pub period: Duration,
    /// The core that runs the scheduler.
    pub scheduling_core: usize,
    /// The cores that threads are moved neither to nor from.
    pub isolated: CpuSet,
    /// How many rounds there were.
    pub rounds: u64,
    /// What the last one did.
    pub last_round: Option<Arc<Round>>,
}

impl Reactors {
    /// The schedulers of these reactors.
    #[must_use]
    pub fn schedulers(&self) -> Schedulers {
        Schedulers(self.0.clone())
    }
}

impl Schedulers {
    /// Adds a scheduler, to be chosen by `name`.
    ///
    /// # Errors
    ///
    /// [`SchedulerError::Registered`]: the name is taken.
    pub fn register(
        &self,
        name: impl Into<String>,
        scheduler: impl Scheduler,
    ) -> Result<(), SchedulerError> {
        let name = name.into();
        let mut all = lock(&self.0.scheduling.schedulers);
        if all.contains_key(&name) {
            return Err(SchedulerError::Registered { name });
        }
        all.insert(name, Some(Box::new(scheduler)));
        Ok(())
    }

    /// Adds a governor, to be chosen by a scheduler by `name`.
    ///
    /// # Errors
    ///
    /// [`SchedulerError::Registered`]: the name is taken.
    pub fn register_governor(
        &self,
        name: impl Into<String>,
        governor: impl Governor,
    ) -> Result<(), SchedulerError> {
        let name = name.into();
        let mut all = lock(&self.0.scheduling.governors);
        if all.contains_key(&name) {
            return Err(SchedulerError::Registered { name });
        }
        all.insert(name, Some(Box::new(governor)));
        Ok(())
    }

    /// The names of the schedulers that are registered.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        lock(&self.0.scheduling.schedulers)
            .keys()
            .cloned()
            .collect()
    }

    /// What is in force now. What was asked for and not awaited may not be, yet.
    #[must_use]
    pub fn state(&self) -> SchedulerState {
        self.0.scheduling.state()
    }

    /// Uses the scheduler `name` from now on (`spdk_scheduler_set`). The one in use,
    /// if it is another, is no longer: its cores are woken. If the new one refuses,
    /// the old one is used again.
    ///
    /// # Errors
    ///
    /// The future yields [`SchedulerError`].
    pub fn set(&self, name: &str) -> SchedulerReply<()> {
        let name = name.to_owned();
        self.ask(move |conductor, group| conductor.choose(group, Some(&name)))
    }

    /// Uses no scheduler any more.
    ///
    /// # Errors
    ///
    /// The future yields [`SchedulerError::Stopping`] while the reactors stop.
    pub fn unset(&self) -> SchedulerReply<()> {
        self.ask(|conductor, group| conductor.choose(group, None))
    }

    /// Changes the options of the scheduler `name`, in use or not. With the feature
    /// `scheduler-options`, which is on by default.
    ///
    /// # Errors
    ///
    /// The future yields [`SchedulerError::Unknown`], or
    /// [`SchedulerError::Options`] with the options as they were.
    #[cfg(feature = "scheduler-options")]
    pub fn set_options(&self, name: &str, options: Value) -> SchedulerReply<()> {
        let name = name.to_owned();
        self.ask(move |conductor, group| {
            let reactors = group.handle();
            let set = conductor.with_scheduler(group, &name, |scheduler, _| {
                scheduler.set_options(&options, &reactors)
            })?;
            set.map_err(|message| SchedulerError::Options { name, message })?;
            conductor.set_clock(group);
            Ok(())
        })
    }

    /// The options of the scheduler `name`; those that were set before this was
    /// called.
    ///
    /// # Errors
    ///
    /// The future yields [`SchedulerError::Unknown`].
    #[cfg(feature = "scheduler-options")]
    pub fn options(&self, name: &str) -> SchedulerReply<Value> {
        let name = name.to_owned();
        self.ask(move |conductor, group| {
            conductor.with_scheduler(group, &name, |scheduler, _| scheduler.options())
        })
    }

    /// Has rounds begin so often (`spdk_scheduler_set_period`); zero: only when
    /// [`Schedulers::run_round`] asks. One second unless set.
    ///
    /// # Errors
    ///
    /// The future yields [`SchedulerError::Stopping`] once the reactors have stopped.
    pub fn set_period(&self, period: Duration) -> SchedulerReply<()> {
        self.ask(move |conductor, group| {
            conductor.set_period(group, period);
            Ok(())
        })
    }

    /// Has threads moved neither to nor from `cores`
    /// (`scheduler_set_isolated_core_mask`).
    ///
    /// # Errors
    ///
    /// The future yields [`SchedulerError::NoReactor`] for a core without a reactor,
    /// and [`SchedulerError::SchedulingCore`] for the scheduling core.
    pub fn set_isolated(&self, cores: CpuSet) -> SchedulerReply<()> {
        self.ask(move |conductor, group| conductor.set_isolated(group, cores))
    }

    /// Has `core` run the scheduler (`spdk_scheduler_set_scheduling_lcore`); the main
    /// core unless set.
    ///
    /// # Errors
    ///
    /// The future yields [`SchedulerError::NoReactor`], or
    /// [`SchedulerError::SchedulingCore`] for one that is isolated.
    pub fn set_core(&self, core: usize) -> SchedulerReply<()> {
        self.ask(move |conductor, group| conductor.set_core(group, core))
    }

    /// Runs a round now, or after the one that is under way.
    ///
    /// # Errors
    ///
    /// The future yields [`SchedulerError`]: no scheduler is set, it panicked or its
    /// plan makes no sense, or the reactors are stopping. Nothing has changed then.
    pub fn run_round(&self) -> SchedulerReply<Round> {
        let (sender, answer) = oneshot::channel();
        self.0.conduct(Box::new(|conductor, group| {
            conductor.start_round(group, Some(sender));
        }));
        SchedulerReply::new(answer)
    }

    /// The frequencies of the cores in kHz, in ascending order of the cores, as the
    /// governor in use reads them; nothing, without one.
    ///
    /// # Errors
    ///
    /// The future yields [`SchedulerError::Governor`].
    pub fn frequencies(&self) -> SchedulerReply<Vec<(usize, u32)>> {
        self.ask(|conductor, group| {
            let reactors = group
                .by_core
                .iter()
                .map(|&index| group.reactors[index].place);
            let mut frequency = |place: super::super::Lcore| {
                let ask = |governor: &mut dyn Governor| governor.frequency(place.cpu);
                let khz = conductor.with_governor(group, ask).transpose()?;
                Ok(khz.map(|khz| (place.core, khz)))
            };
            reactors
                .filter_map(|place| frequency(place).transpose())
                .collect()
        })
    }

    /// Waits for the end of the round that is under way, if one is.
    pub(crate) fn between_rounds(&self) -> SchedulerReply<()> {
        self.ask(|_, _| Ok(()))
    }

    fn ask<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Conductor, &Arc<Group>) -> Result<T, SchedulerError> + Send + 'static,
    ) -> SchedulerReply<T> {
        let (command, answer) = command(f);
        self.0.conduct(command);
        SchedulerReply::new(answer)
    }
}

type Answer<T> = oneshot::Receiver<Result<T, SchedulerError>>;

fn command<T: Send + 'static>(
    f: impl FnOnce(&mut Conductor, &Arc<Group>) -> Result<T, SchedulerError> + Send + 'static,
) -> (Command, Answer<T>) {
    let (sender, answer) = oneshot::channel();
    let run = move |conductor: &mut Conductor, group: &Arc<Group>| {
        let result = f(conductor, group);
        group.scheduling.tell(conductor, group);
        group.answer(sender, result);
    };
    (Box::new(run), answer)
}

impl Group {
    /// Changes something before any reactor runs.
    pub(crate) fn configure_scheduling(
        self: &Arc<Self>,
        config: SchedulerConfig,
    ) -> Result<(), SchedulerError> {
        let (command, mut answer) = command(move |conductor, group| config.apply(conductor, group));
        self.conduct_now(command);
        match answer.try_recv() {
            Ok(Some(result)) => result,
            _ => Err(SchedulerError::Stopping),
        }
    }
}

/// What an app sets before it starts.
#[derive(Default)]
pub(crate) struct SchedulerConfig {
    pub(crate) schedulers: Vec<(String, Box<dyn Scheduler>)>,
    #[cfg(feature = "scheduler-options")]
    pub(crate) scheduler: Option<(String, Value)>,
    pub(crate) period: Option<Duration>,
    pub(crate) core: Option<usize>,
    pub(crate) isolated: Option<CpuSet>,
}

impl SchedulerConfig {
    fn apply(self, conductor: &mut Conductor, group: &Arc<Group>) -> Result<(), SchedulerError> {
        for (name, scheduler) in self.schedulers {
            let mut all = lock(&group.scheduling.schedulers);
            if all.contains_key(&name) {
                return Err(SchedulerError::Registered { name });
            }
            all.insert(name, Some(scheduler));
        }
        if let Some(core) = self.core {
            conductor.set_core(group, core)?;
        }
        if let Some(cores) = self.isolated {
            conductor.set_isolated(group, cores)?;
        }
        if let Some(period) = self.period {
            conductor.set_period(group, period);
        }
        #[cfg(feature = "scheduler-options")]
        if let Some((name, options)) = self.scheduler {
            return Self::choose(conductor, group, &name, &options);
        }
        Ok(())
    }

    #[cfg(feature = "scheduler-options")]
    fn choose(
        conductor: &mut Conductor,
        group: &Arc<Group>,
        name: &str,
        options: &Value,
    ) -> Result<(), SchedulerError> {
        if !options.is_null() {
            let reactors = group.handle();
            let set = conductor.with_scheduler(group, name, |scheduler, _| {
                scheduler.set_options(options, &reactors)
            })?;
            set.map_err(|message| SchedulerError::Options {
                name: name.to_owned(),
                message,
            })?;
        }
        conductor.choose(group, Some(name))
    }
}

impl fmt::Debug for Schedulers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Schedulers")
            .field("state", &self.state())
            .finish()
    }
}

/// What a scheduler may use while it is being chosen; see [`Scheduler::init`].
pub struct Setup<'a> {
    conductor: &'a mut Conductor,
    group: &'a Arc<Group>,
}

impl<'a> Setup<'a> {
    pub(super) fn new(conductor: &'a mut Conductor, group: &'a Arc<Group>) -> Self {
        Setup { conductor, group }
    }

    /// The reactors.
    #[must_use]
    pub fn reactors(&self) -> Reactors {
        self.group.handle()
    }

    /// Uses the governor `name` for the frequencies of its plans, until it is no
    /// longer in use itself (`spdk_governor_set`).
    ///
    /// # Errors
    ///
    /// [`GovernorError`]: no such governor, or it cannot be used here.
    pub fn set_governor(&mut self, name: &str) -> Result<(), GovernorError> {
        self.conductor.set_governor(self.group, name)
    }
}

impl fmt::Debug for Setup<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setup").finish_non_exhaustive()
    }
}

/// What [`Schedulers`] was asked for, when it has happened.
#[must_use = "it happens without being awaited; this says when, and whether"]
pub struct SchedulerReply<T>(Reply<SchedulerAnswered<T>>);

/// What the waiter gets for an answer, or for none.
type SchedulerAnswered<T> = fn(Option<Result<T, SchedulerError>>) -> Result<T, SchedulerError>;

impl<T> SchedulerReply<T> {
    fn new(answer: Answer<T>) -> Self {
        // Dropped unanswered where the reactors have ended.
        let answered: SchedulerAnswered<T> =
            |answer| answer.unwrap_or(Err(SchedulerError::Stopping));
        SchedulerReply(Reply::new(answered, answer))
    }
}

impl<T> Future for SchedulerReply<T> {
    type Output = Result<T, SchedulerError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl<T> fmt::Debug for SchedulerReply<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SchedulerReply").finish_non_exhaustive()
    }
}
