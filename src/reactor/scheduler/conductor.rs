//! What makes rounds happen: the state of scheduling, which the scheduling core's
//! events change, one at a time.
//!
//! What changes it (another scheduler, options, the period) is a command. A command
//! runs on the scheduling core and between two rounds: while one is under way it
//! waits for its end. So a scheduler is never switched in a round that it has begun,
//! and set and get are in the order asked.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::channel::oneshot;

use super::super::governor::{CPUFREQ, Cpufreq, Governor};
use super::super::group::Group;
use super::super::handle::Reactors;
use super::super::inside::Inside;
use super::super::walk::Counted;
use super::round::{Gather, Tail, UnderWay, wake_core};
use super::{
    Dynamic, FrequencyScheduler, Hold, Plan, Round, Rounds, Scheduler, SchedulerError,
    SchedulerState, Setup, Snapshot, StaticScheduler, ThreadMove,
};
use crate::cpu::CpuSet;
use crate::thread::panic::{PanicSource, Payload, contain, drop_anywhere, payload_text};
use crate::thread::travel::Traveller;

/// The period of rounds unless another is set, as SPDK's.
const PERIOD: Duration = Duration::from_secs(1);

/// The scheduler in force until another is set.
const DEFAULT: &str = "static";

pub(super) type Command = Box<dyn FnOnce(&mut Conductor, &Arc<Group>) + Send>;
pub(super) type RoundEnd = oneshot::Sender<Result<Round, SchedulerError>>;
/// The reactors to switch, by index, and the threads to move.
type Work = (VecDeque<(usize, super::Power)>, Vec<ThreadMove>);
type Schedulers = BTreeMap<String, Option<Box<dyn Scheduler>>>;
type Governors = BTreeMap<String, Option<Box<dyn Governor>>>;

/// The scheduling of one group of reactors.
pub(in super::super) struct Scheduling {
    conductor: Mutex<Conductor>,
    /// Those registered; one that is being called or is in use is taken out.
    pub(super) schedulers: Mutex<Schedulers>,
    pub(super) governors: Mutex<Governors>,
    /// What others may read at any time.
    told: Mutex<SchedulerState>,
    /// The index of the reactor that runs commands and rounds.
    core: AtomicUsize,
    /// A round is under way. Only the scheduling core begins one.
    pub(super) in_round: AtomicBool,
}

/// What only commands and rounds touch.
pub(super) struct Conductor {
    active: Option<String>,
    pub(super) governor: Option<(String, Box<dyn Governor>)>,
    period: Duration,
    isolated: CpuSet,
    waiting: VecDeque<Command>,
    /// The callers that hear of the round that is under way.
    listeners: Vec<RoundEnd>,
    rounds: u64,
    last_round: Option<Arc<Round>>,
    ended: bool,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is the user's is contained where it is called, so one is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Scheduling {
    pub(in super::super) fn new(main: usize) -> Self {
        let mut schedulers = Schedulers::new();
        let mut add = |name: &str, one: Box<dyn Scheduler>| {
            schedulers.insert(name.to_owned(), Some(one));
        };
        add(DEFAULT, Box::<StaticScheduler>::default());
        add("dynamic", Box::<Dynamic>::default());
        add("gscheduler", Box::<FrequencyScheduler>::default());
        let cpufreq: Box<dyn Governor> = Box::new(Cpufreq::new());
        let conductor = Conductor {
            active: Some(DEFAULT.to_owned()),
            governor: None,
            period: PERIOD,
            isolated: CpuSet::empty(),
            waiting: VecDeque::new(),
            listeners: Vec::new(),
            rounds: 0,
            last_round: None,
            ended: false,
        };
        Scheduling {
            told: Mutex::new(conductor.state(main)),
            conductor: Mutex::new(conductor),
            schedulers: Mutex::new(schedulers),
            governors: Mutex::new([(CPUFREQ.to_owned(), Some(cpufreq))].into()),
            core: AtomicUsize::new(0),
            in_round: AtomicBool::new(false),
        }
    }

    /// Without those of the machine's own processors, before others are registered.
    pub(in super::super) fn forget_governors(&self) {
        lock(&self.governors).clear();
    }

    /// The index of the reactor that runs the scheduler.
    pub(super) fn core(&self) -> usize {
        self.core.load(Ordering::SeqCst)
    }

    pub(super) fn state(&self) -> SchedulerState {
        lock(&self.told).clone()
    }

    /// Runs commands until one begins a round, on the scheduling core.
    fn proceed(&self, group: &Arc<Group>, first: Option<Command>) {
        let mut conductor = lock(&self.conductor);
        conductor.waiting.extend(first);
        while !self.in_round.load(Ordering::Acquire)
            && let Some(command) = conductor.waiting.pop_front()
        {
            command(&mut conductor, group);
            self.tell(&conductor, group);
        }
    }

    /// Before the caller that asked for a change is told that it has happened.
    pub(super) fn tell(&self, conductor: &Conductor, group: &Group) {
        let core = group.reactors[self.core()].place.core;
        *lock(&self.told) = conductor.state(core);
    }

    /// Phase 2, and the beginning of the others.
    pub(super) fn balance(&self, group: &Arc<Group>, gather: Gather) {
        let Gather {
            cores, under_way, ..
        } = gather;
        let mut conductor = lock(&self.conductor);
        let mut round = Round {
            number: conductor.rounds,
            ..Round::default()
        };
        match conductor.plan(group, cores, &mut round) {
            Ok((power, moves)) => {
                drop(conductor);
                let tail = Tail {
                    power,
                    moves,
                    round,
                    under_way,
                };
                tail.step(group);
            }
            Err(error) => {
                drop(conductor);
                tracing::error!("a round of the scheduler is abandoned: {error}");
                round.error = Some(error);
                self.finish(group, round, under_way);
            }
        }
    }

    /// The end of a round.
    pub(super) fn finish(&self, group: &Arc<Group>, round: Round, under_way: UnderWay) {
        let counted = under_way.end();
        let mut conductor = lock(&self.conductor);
        conductor.rounds += 1;
        let listeners = std::mem::take(&mut conductor.listeners);
        conductor.last_round = Some(Arc::new(round.clone()));
        self.tell(&conductor, group);
        drop(conductor);
        for listener in listeners {
            let result = match &round.error {
                Some(error) => Err(error.clone()),
                None => Ok(round.clone()),
            };
            group.answer(listener, result);
        }
        self.proceed(group, None);
        drop(counted);
    }
}

impl Drop for Scheduling {
    /// The reactors have gone without an orderly end.
    fn drop(&mut self) {
        let conductor = self.conductor.get_mut();
        let conductor = conductor.unwrap_or_else(PoisonError::into_inner);
        if let Some((_, mut governor)) = conductor.governor.take() {
            drop_anywhere(contain(|| governor.deinit()));
            drop_anywhere(governor);
        }
        for (_, scheduler) in std::mem::take(&mut *lock(&self.schedulers)) {
            drop_anywhere(scheduler);
        }
        for (_, governor) in std::mem::take(&mut *lock(&self.governors)) {
            drop_anywhere(governor);
        }
    }
}

impl Conductor {
    fn state(&self, core: usize) -> SchedulerState {
        SchedulerState {
            scheduler: self.active.clone(),
            governor: self.governor.as_ref().map(|(name, _)| name.clone()),
            period: self.period,
            scheduling_core: core,
            isolated: self.isolated,
            rounds: self.rounds,
            last_round: self.last_round.clone(),
        }
    }

    /// Calls a registered scheduler, in use or not; a panic is reported.
    pub(super) fn with_scheduler<R>(
        &mut self,
        group: &Arc<Group>,
        name: &str,
        f: impl FnOnce(&mut dyn Scheduler, &mut Self) -> R,
    ) -> Result<R, SchedulerError> {
        let taken = lock(&group.scheduling.schedulers)
            .get_mut(name)
            .map(Option::take);
        let Some(mut scheduler) = taken.flatten() else {
            return Err(group.scheduling.unknown(name));
        };
        let result = contain(|| f(&mut *scheduler, self));
        lock(&group.scheduling.schedulers).insert(name.to_owned(), Some(scheduler));
        result.map_err(|payload| SchedulerError::Panicked {
            name: name.to_owned(),
            message: group.report_scheduler(payload),
        })
    }

    /// `spdk_scheduler_set`.
    pub(super) fn choose(
        &mut self,
        group: &Arc<Group>,
        name: Option<&str>,
    ) -> Result<(), SchedulerError> {
        if self.ended || group.is_stopping() {
            return Err(SchedulerError::Stopping);
        }
        if self.active.as_deref() == name {
            return Ok(());
        }
        if let Some(name) = name
            && !lock(&group.scheduling.schedulers).contains_key(name)
        {
            return Err(group.scheduling.unknown(name));
        }
        let before = self.active.clone();
        self.retire(group);
        let Some(name) = name else { return Ok(()) };
        let begun = self.begin(group, name);
        if begun.is_err() {
            // It may have taken one before it refused.
            self.clear_governor(group);
            if let Some(before) = before
                && let Err(error) = self.begin(group, &before)
            {
                tracing::error!("no scheduler is set any more: {error}");
                self.clear_governor(group);
            }
        }
        begun
    }

    fn begin(&mut self, group: &Arc<Group>, name: &str) -> Result<(), SchedulerError> {
        let begun = self.with_scheduler(group, name, |scheduler, conductor| {
            scheduler.init(&mut Setup::new(conductor, group))
        })?;
        begun.map_err(|message| SchedulerError::Init {
            name: name.to_owned(),
            message,
        })?;
        self.active = Some(name.to_owned());
        self.set_clock(group);
        Ok(())
    }

    /// The scheduler in use is no longer.
    fn retire(&mut self, group: &Arc<Group>) {
        let Some(name) = self.active.take() else {
            return;
        };
        // Panicked: that was reported.
        let _ = self.with_scheduler(group, &name, |scheduler, _| scheduler.deinit());
        self.clear_governor(group);
        self.set_clock(group);
        (0..group.reactors.len()).for_each(|index| group.wake(index));
    }

    pub(super) fn set_period(&mut self, group: &Arc<Group>, period: Duration) {
        self.period = period;
        self.set_clock(group);
    }

    pub(super) fn set_isolated(
        &mut self,
        group: &Group,
        cores: CpuSet,
    ) -> Result<(), SchedulerError> {
        let all = group.cores();
        let core = group.reactors[group.scheduling.core()].place.core;
        if !(cores & !all).is_empty() {
            return Err(group.no_reactor(cores & !all));
        }
        if cores.contains(core) {
            return Err(SchedulerError::SchedulingCore { core });
        }
        // Schedulers leave them alone from now on.
        let now_isolated = (cores & !self.isolated).iter();
        let now_isolated = now_isolated.filter_map(|core| group.index_of(core));
        now_isolated.for_each(|index| group.wake(index));
        self.isolated = cores;
        Ok(())
    }

    pub(super) fn set_core(
        &mut self,
        group: &Arc<Group>,
        core: usize,
    ) -> Result<(), SchedulerError> {
        let Some(index) = group.index_of(core) else {
            let beyond = CpuSet::single(core.min(CpuSet::CAPACITY - 1));
            return Err(group.no_reactor(beyond));
        };
        if self.isolated.contains(core) {
            return Err(SchedulerError::SchedulingCore { core });
        }
        let before = group.scheduling.core();
        group.set_next_round(before, u64::MAX);
        group.scheduling.core.store(index, Ordering::SeqCst);
        // Either this sees that all stop, or the new core sees, when it does, what it is.
        fence(Ordering::SeqCst);
        if group.is_stopping() {
            self.ended = true;
            self.retire(group);
        }
        self.set_clock(group);
        // So that it looks when, before it sleeps.
        group.wake(index);
        // What waits here goes there, in its order, as does all that is sent here.
        for command in std::mem::take(&mut self.waiting) {
            group.conduct(command);
        }
        Ok(())
    }

    /// Has the next round begin when the scheduler in use wants it.
    pub(super) fn set_clock(&mut self, group: &Arc<Group>) {
        let wanted = self.active.clone().and_then(|name| {
            let rounds = self.with_scheduler(group, &name, |scheduler, _| scheduler.rounds());
            rounds.ok()
        });
        let now = group.library.clock().now();
        let next = match wanted {
            Some(Rounds::Once) => now,
            Some(Rounds::Periodic) if !self.period.is_zero() => {
                let period = group.library.clock().ticks_from(self.period);
                now.saturating_add(period.max(1))
            }
            _ => u64::MAX,
        };
        group.set_next_round(group.scheduling.core(), next);
    }

    /// Phase 1, unless no scheduler is active or the reactors stop.
    pub(super) fn start_round(&mut self, group: &Arc<Group>, listener: Option<RoundEnd>) {
        let refused = match (&self.active, Counted::new(group)) {
            (_, None) => SchedulerError::Stopping,
            (None, _) => SchedulerError::Inactive,
            (Some(_), Some(counted)) => {
                self.listeners.extend(listener);
                let under_way = UnderWay::begin(group, counted);
                return Traveller::start(Gather::new(group, under_way));
            }
        };
        if let Some(listener) = listener {
            group.answer(listener, Err(refused));
        }
    }

    /// Phase 2: asks the scheduler, and says what is to be done.
    fn plan(
        &mut self,
        group: &Arc<Group>,
        cores: Vec<super::CoreSnapshot>,
        round: &mut Round,
    ) -> Result<Work, SchedulerError> {
        if group.is_stopping() {
            return Err(SchedulerError::Stopping);
        }
        let name = self.active.clone().ok_or(SchedulerError::Inactive)?;
        round.scheduler = name.clone();
        round.threads = cores.iter().map(|core| core.threads.len()).sum();
        let snapshot = self.snapshot(group, cores);
        let plan = self.with_scheduler(group, &name, |scheduler, _| scheduler.balance(&snapshot));
        self.set_clock(group);
        let plan = plan?;
        if let Some(message) = plan.nonsense(&snapshot) {
            return Err(SchedulerError::Nonsense { name, message });
        }
        self.set_frequencies(group, &plan, round);
        let index = |core| group.index_of(core).expect("a core of the snapshot");
        let power = plan.power.iter().map(|&(core, power)| (index(core), power));
        Ok((power.collect(), self.sort_moves(&plan, &snapshot, round)))
    }

    /// The moves to make; the others are noted.
    fn sort_moves(&self, plan: &Plan, snapshot: &Snapshot, round: &mut Round) -> Vec<ThreadMove> {
        let threads = snapshot.threads_by_id();
        let moves = plan.moves.iter().map(|&(id, to)| {
            let thread = threads[&id];
            let one = ThreadMove {
                thread: id,
                from: thread.core,
                to,
            };
            (one, thread.bound)
        });
        let mut made = Vec::new();
        for (one, bound) in moves.filter(|(one, _)| one.from != one.to) {
            if self.isolated.contains(one.from) || self.isolated.contains(one.to) {
                tracing::error!(?one, "a scheduler moves threads on isolated cores");
                round.held.push((one, Hold::Isolated));
            } else if bound {
                round.held.push((one, Hold::Bound));
            } else {
                made.push(one);
            }
        }
        made
    }

    fn snapshot(&mut self, group: &Group, mut cores: Vec<super::CoreSnapshot>) -> Snapshot {
        for core in &mut cores {
            core.isolated = self.isolated.contains(core.core);
            if let (Some((_, governor)), Some(index)) =
                (&mut self.governor, group.index_of(core.core))
            {
                let cpu = group.reactors[index].place.cpu;
                let cpus = contain(|| governor.siblings(cpu)).unwrap_or_else(|payload| {
                    group.report_scheduler(payload);
                    CpuSet::single(cpu)
                });
                let share = group.reactors.iter().map(|one| one.place);
                let share = share.filter(|place| cpus.contains(place.cpu));
                core.siblings = share.map(|place| place.core).collect();
            }
        }
        Snapshot {
            cores,
            scheduling_core: group.reactors[group.scheduling.core()].place.core,
        }
    }
}

impl Scheduling {
    fn unknown(&self, name: &str) -> SchedulerError {
        let names = lock(&self.schedulers);
        SchedulerError::Unknown {
            name: name.to_owned(),
            available: names.keys().cloned().collect::<Vec<_>>().join(", "),
        }
    }
}

impl Group {
    /// Has a command run on the scheduling core, between two rounds; dropped where
    /// that has ended.
    pub(super) fn conduct(&self, command: Command) {
        let run = |reactor: &mut dyn Inside, command: Command| {
            let group = reactor.group().clone();
            if reactor.index() == group.scheduling.core() {
                group.scheduling.proceed(&group, Some(command));
            } else {
                group.conduct(command);
            }
        };
        drop(self.send_within(self.scheduling.core(), command, run));
    }

    /// Runs a command here and now, before any reactor runs.
    pub(super) fn conduct_now(self: &Arc<Self>, command: Command) {
        self.scheduling.proceed(self, Some(command));
    }

    /// The scheduling core: the time of a round has come.
    #[cold]
    pub(in super::super) fn begin_round(self: &Arc<Self>) {
        let begin = |conductor: &mut Conductor, group: &Arc<Group>| {
            conductor.start_round(group, None);
        };
        // Until the scheduler is asked again what it wants.
        self.set_next_round(self.scheduling.core(), u64::MAX);
        self.scheduling.proceed(self, Some(Box::new(begin)));
    }

    /// The reactor at `index` stops: if it is the scheduling core's, the scheduler in
    /// use is no longer, as soon as no round is under way.
    pub(in super::super) fn end_scheduling(self: &Arc<Self>, index: usize) {
        if index != self.scheduling.core() {
            return;
        }
        let end = |conductor: &mut Conductor, group: &Arc<Group>| {
            conductor.ended = true;
            conductor.retire(group);
            // Those of a round that was lost with a reactor.
            for listener in std::mem::take(&mut conductor.listeners) {
                group.answer(listener, Err(SchedulerError::Stopping));
            }
        };
        self.scheduling.proceed(self, Some(Box::new(end)));
    }

    /// Has a core awake that a scheduler has put to sleep.
    fn wake(&self, index: usize) {
        // One that refuses it has ended.
        let _ = self.send_within(index, (), |reactor, ()| {
            if let Err(error) = wake_core(reactor) {
                tracing::error!("{error}");
            }
        });
    }

    fn set_next_round(&self, index: usize, tick: u64) {
        let reactor = &self.reactors[index];
        reactor.next_round.store(tick, Ordering::Relaxed);
        reactor.sleeper.notify();
    }

    fn no_reactor(&self, cores: CpuSet) -> SchedulerError {
        SchedulerError::NoReactor {
            cores: cores.as_list().to_string(),
            available: self.cores().as_list().to_string(),
        }
    }

    /// Tells the waiter; its waker may be foreign.
    pub(super) fn answer<T>(&self, listener: oneshot::Sender<T>, answer: T) {
        if let Err(payload) = contain(|| drop(listener.send(answer))) {
            let here = &self.reactors[self.scheduling.core()];
            self.report_panic(here, PanicSource::Drop, payload);
        }
    }

    pub(super) fn report_scheduler(&self, payload: Payload) -> String {
        let message = payload_text(&*payload).to_owned();
        let here = &self.reactors[self.scheduling.core()];
        self.report_panic(here, PanicSource::Scheduler, payload);
        message
    }

    pub(super) fn handle(self: &Arc<Self>) -> Reactors {
        Reactors(self.clone())
    }
}
