//! What a round sees: plain values, so that a scheduler's arithmetic is a function of
//! them and can be tried with numbers made up.

use std::collections::BTreeMap;

use super::super::ReactorMode;
use super::super::ground::Ground;
use super::super::hosted::Hosted;
use super::super::turn::Reactor;
use crate::cpu::CpuSet;

/// How much of its time a core or a thread was busy, in percent; 0 where there was no
/// time.
#[must_use]
pub fn load(busy: u64, idle: u64) -> u64 {
    let total = u128::from(busy) + u128::from(idle);
    let share = (u128::from(busy) * 100).checked_div(total).unwrap_or(0);
    u64::try_from(share).expect("at most 100")
}

/// The cores and their threads, as one round sees them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// In ascending order.
    pub cores: Vec<CoreSnapshot>,
    /// The core that runs the scheduler.
    pub scheduling_core: usize,
}

/// One core, as a round sees it (`struct spdk_scheduler_core_info`).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CoreSnapshot {
    /// Its number.
    pub core: usize,
    /// Ticks since the last round in which its reactor did something.
    pub busy_ticks: u64,
    /// Ticks since the last round in which it did not.
    pub idle_ticks: u64,
    /// All busy ticks so far.
    pub total_busy_ticks: u64,
    /// All idle ticks so far.
    pub total_idle_ticks: u64,
    /// The mode in force.
    pub mode: ReactorMode,
    /// Whether a scheduler has put it to sleep.
    pub put_to_sleep: bool,
    /// Whether threads are to be moved neither to nor from it.
    pub isolated: bool,
    /// The cores that share its frequency, itself included, as the governor knows.
    pub siblings: CpuSet,
    /// Its threads.
    pub threads: Vec<ThreadSnapshot>,
}

/// One thread, as a round sees it (`struct spdk_scheduler_thread_info`).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ThreadSnapshot {
    /// Its id.
    pub id: u64,
    /// The core that polls it.
    pub core: usize,
    /// The core it was placed on first.
    pub initial_core: usize,
    /// The cores it may run on.
    pub cpumask: CpuSet,
    /// Whether it holds what keeps it here.
    pub bound: bool,
    /// Ticks in which it did something, since the last round or since it came to this
    /// core, whichever is later.
    pub busy_ticks: u64,
    /// All other ticks of that time, whichever thread had them: so its load is a
    /// share of its core, and does not grow because its core's other threads leave it
    /// few polls.
    pub idle_ticks: u64,
}

impl Snapshot {
    /// Without cores yet.
    #[must_use]
    pub fn new(scheduling_core: usize) -> Self {
        Snapshot {
            cores: Vec::new(),
            scheduling_core,
        }
    }

    /// The numbers of the cores.
    #[must_use]
    pub fn core_set(&self) -> CpuSet {
        self.cores.iter().map(|core| core.core).collect()
    }

    pub(super) fn threads_by_id(&self) -> BTreeMap<u64, &ThreadSnapshot> {
        let threads = self.cores.iter().flat_map(|core| &core.threads);
        threads.map(|thread| (thread.id, thread)).collect()
    }
}

impl CoreSnapshot {
    /// A core in poll mode that was busy and idle for so long, without threads.
    #[must_use]
    pub fn new(core: usize, busy_ticks: u64, idle_ticks: u64) -> Self {
        CoreSnapshot {
            core,
            busy_ticks,
            idle_ticks,
            total_busy_ticks: busy_ticks,
            total_idle_ticks: idle_ticks,
            mode: ReactorMode::Poll,
            put_to_sleep: false,
            isolated: false,
            siblings: CpuSet::single(core),
            threads: Vec::new(),
        }
    }

    /// Its load, in percent.
    #[must_use]
    pub fn load(&self) -> u64 {
        load(self.busy_ticks, self.idle_ticks)
    }
}

impl ThreadSnapshot {
    /// A thread that may run anywhere and was busy for so many ticks of `period`.
    #[must_use]
    pub fn new(id: u64, core: usize, busy_ticks: u64, period: u64) -> Self {
        ThreadSnapshot {
            id,
            core,
            initial_core: core,
            cpumask: CpuSet::all(),
            bound: false,
            busy_ticks,
            idle_ticks: period.saturating_sub(busy_ticks),
        }
    }

    /// The share of its core's time that it had work for, in percent.
    #[must_use]
    pub fn load(&self) -> u64 {
        load(self.busy_ticks, self.idle_ticks)
    }
}

/// What a reactor had done when a round looked at it last.
#[derive(Clone, Copy, Debug, Default)]
pub(in super::super) struct RoundTotals {
    busy: u64,
    idle: u64,
}

impl<G: Ground> Reactor<G> {
    /// What this core and its threads have done since the last round.
    pub(in super::super) fn take_snapshot(&mut self) -> CoreSnapshot {
        let shared = &self.group.reactors[self.index];
        let stats = super::super::ReactorStats::of(shared, self.tick);
        let last = self.last_round;
        let (core, now) = (stats.core, self.tick);
        self.last_round = RoundTotals {
            busy: stats.busy_ticks,
            idle: stats.idle_ticks,
        };
        let threads = self.threads.iter_mut().chain(self.dormant.iter_mut());
        let mut threads: Vec<_> = threads.map(|hosted| hosted.snapshot(core, now)).collect();
        // Not in the order in which they happened to be woken.
        threads.sort_unstable_by_key(|thread| thread.id);
        CoreSnapshot {
            total_busy_ticks: stats.busy_ticks,
            total_idle_ticks: stats.idle_ticks,
            mode: stats.mode,
            put_to_sleep: stats.put_to_sleep,
            threads,
            ..CoreSnapshot::new(
                core,
                stats.busy_ticks.saturating_sub(last.busy),
                stats.idle_ticks.saturating_sub(last.idle),
            )
        }
    }
}

impl Hosted {
    fn snapshot(&self, core: usize, now: u64) -> ThreadSnapshot {
        let runner = &self.runner;
        let (initial_core, cpumask, period, busy) = runner.take_round(now);
        ThreadSnapshot {
            initial_core: initial_core.unwrap_or(core),
            cpumask,
            bound: !runner.can_move(),
            ..ThreadSnapshot::new(runner.id(), core, busy, period)
        }
    }
}
