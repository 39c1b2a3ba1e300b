//! `dynamic`: idle threads gather on the scheduling core, busy ones spread over as
//! many cores as they need, and the others sleep.
//!
//! The arithmetic is SPDK's, over loads measured per core: a thread's load is its
//! share of its core's time. Where it departs from SPDK it does so for one reason,
//! that a load which does not change moves nothing after the second round:
//!
//! - On a core that has no time left, threads cannot show what they would use. One
//!   that gets about an equal share or more there counts as busy, and goes to the core
//!   that has most room.
//! - Small threads gather on the scheduling core as long as it carries them; those
//!   beyond count as busy.
//! - A thread that had to leave a core comes back only if that has `MARGIN` percent
//!   more to spare than it would otherwise need, for each time that it had to leave with
//!   a load like this.
//! - Where no core has room, a thread goes to the least busy one only if that is then
//!   less busy than the one it leaves.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
#[cfg(feature = "scheduler-options")]
use serde_json::Value;

use super::{CoreSnapshot, Plan, Scheduler, Setup, Snapshot, ThreadSnapshot, load};
#[cfg(feature = "scheduler-options")]
use crate::reactor::Reactors;
use crate::reactor::governor::{CPUFREQ, Frequency};

#[cfg(test)]
mod tests;

/// How much more room than others a thread needs to return to where it had to leave, in
/// percent; and half of what makes a load another one.
const MARGIN: u64 = 10;

/// Options of [`Dynamic`]: the three limits in percent.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct DynamicOptions {
    /// A thread with less load than this goes to the scheduling core.
    pub load_limit: u8,
    /// Threads leave a core that is as busy as this, and none comes.
    pub core_limit: u8,
    /// A core as busy as this has no time left; no thread comes in the round in which
    /// it is relieved.
    pub core_busy: u8,
    /// The governor it uses if that can be used.
    pub governor: String,
}

impl Default for DynamicOptions {
    fn default() -> Self {
        DynamicOptions {
            load_limit: 20,
            core_limit: 80,
            core_busy: 95,
            governor: CPUFREQ.to_owned(),
        }
    }
}

/// The scheduler `dynamic`.
///
/// Its options are those of [`DynamicOptions`]; those that are not named keep their
/// values.
///
/// # Examples
///
/// Its decisions are a function of a snapshot:
///
/// ```
/// use corespun::reactor::scheduler::{CoreSnapshot, Dynamic, Scheduler, Snapshot, ThreadSnapshot};
///
/// let mut snapshot = Snapshot::new(0);
/// for core in [0, 1] {
///     let mut one = CoreSnapshot::new(core, 0, 100);
///     one.threads.push(ThreadSnapshot::new(core as u64 + 1, core, 0, 100));
///     snapshot.cores.push(one);
/// }
/// // Both are idle.
/// assert_eq!(Dynamic::default().balance(&snapshot).moves(), [(2, 0)]);
/// ```
#[derive(Debug, Default)]
pub struct Dynamic {
    options: DynamicOptions,
    left: Departures,
}

/// Threads and the cores that they had to leave.
type Departures = BTreeMap<(u64, usize), Departure>;

#[derive(Debug, Default)]
struct Departure {
    times: u64,
    /// The load that showed afterwards, on a core that had time left.
    load: Option<u64>,
}

impl Scheduler for Dynamic {
    fn init(&mut self, setup: &mut Setup<'_>) -> Result<(), String> {
        if let Err(error) = setup.set_governor(&self.options.governor) {
            tracing::info!("dynamic leaves the cores' frequencies alone: {error}");
        }
        self.left.clear();
        Ok(())
    }

    fn balance(&mut self, snapshot: &Snapshot) -> Plan {
        let mut table = Table::new(&self.options, &mut self.left, snapshot);
        let busy = table.gather(snapshot);
        for claim in busy {
            let target = table.best_core(&claim);
            table.send(&claim, target);
        }
        let mut plan = table.plan;
        set_power(&mut plan, &table.rows, snapshot);
        plan
    }

    #[cfg(feature = "scheduler-options")]
    fn set_options(&mut self, options: &Value, _reactors: &Reactors) -> Result<(), String> {
        let fits = "load_limit, core_limit and core_busy are percentages, governor is a name";
        let mut merged = self.options();
        let (Value::Object(all), Value::Object(new)) = (&mut merged, options) else {
            return Err(format!("{options} is not an object; {fits}"));
        };
        all.extend(new.clone());
        let options = DynamicOptions::deserialize(&merged);
        let options = options.map_err(|error| format!("{error}; {fits}"))?;
        let limits = [
            ("load_limit", options.load_limit),
            ("core_limit", options.core_limit),
            ("core_busy", options.core_busy),
        ];
        if let Some((name, limit)) = limits.into_iter().find(|(_, limit)| *limit > 100) {
            return Err(format!("{name} is {limit}, and 0 to 100 would fit"));
        }
        self.options = options;
        Ok(())
    }

    #[cfg(feature = "scheduler-options")]
    fn options(&self) -> Value {
        serde_json::to_value(&self.options).unwrap_or_default()
    }
}

/// A core in the course of a round, with what moves there and away counted in.
struct Row {
    core: usize,
    busy: u64,
    idle: u64,
    threads: usize,
    isolated: bool,
}

/// A thread, and whether it may want more than it gets.
struct Claim<'s> {
    thread: &'s ThreadSnapshot,
    stinted: bool,
}

struct Table<'a> {
    options: &'a DynamicOptions,
    left: &'a mut Departures,
    main: usize,
    rows: Vec<Row>,
    plan: Plan,
}

impl<'a> Table<'a> {
    fn new(options: &'a DynamicOptions, left: &'a mut Departures, snapshot: &Snapshot) -> Self {
        if !left.is_empty() {
            let threads = snapshot.threads_by_id();
            left.retain(|(id, _), _| threads.contains_key(id));
        }
        let rows = snapshot.cores.iter().map(|core| Row {
            core: core.core,
            busy: core.busy_ticks,
            idle: core.idle_ticks,
            threads: core.threads.len(),
            isolated: core.isolated,
        });
        Table {
            options,
            left,
            main: snapshot.scheduling_core,
            rows: rows.collect(),
            plan: Plan::new(),
        }
    }

    fn row(&self, core: usize) -> &Row {
        let found = self.rows.iter().find(|row| row.core == core);
        found.expect("a core of the snapshot")
    }

    fn row_mut(&mut self, core: usize) -> &mut Row {
        let found = self.rows.iter_mut().find(|row| row.core == core);
        found.expect("a core of the snapshot")
    }

    /// Pass 1: threads with little load to the scheduling core. The others are the
    /// result, in the order of the cores that they are on.
    fn gather<'s>(&mut self, snapshot: &'s Snapshot) -> Vec<Claim<'s>> {
        let mut busy = Vec::new();
        // Those that are there already have the first claim.
        let mut cores: Vec<_> = snapshot.cores.iter().filter(|one| !one.isolated).collect();
        cores.sort_by_key(|one| (one.core != self.main, one.core));
        let main = snapshot.cores.iter().find(|one| one.core == self.main);
        let total = main.map_or(0, |main| main.busy_ticks + main.idle_ticks);
        let limit = u64::from(self.options.core_limit);
        let mut carried = 0;
        for core in cores {
            for thread in &core.threads {
                let claim = self.claim(core, thread);
                let all = carried + thread.busy_ticks;
                let fits = carried == 0 || load(all, total.saturating_sub(all)) < limit;
                if !self.is_small(core, &claim) || !fits {
                    busy.push(claim);
                } else if thread.cpumask.contains(self.main) {
                    carried = all;
                    self.send(&claim, self.main);
                }
            }
        }
        busy.sort_by_key(|claim| claim.thread.core);
        busy
    }

    fn claim<'s>(&mut self, core: &CoreSnapshot, thread: &'s ThreadSnapshot) -> Claim<'s> {
        let crowded = core.load() >= u64::from(self.options.core_busy);
        let equal = core.busy_ticks / 10 * 9;
        let much = thread.busy_ticks.saturating_mul(core.threads.len() as u64) >= equal;
        if !crowded && !self.left.is_empty() {
            self.compare(thread);
        }
        let stinted = crowded && much && core.threads.len() > 1;
        Claim { thread, stinted }
    }

    /// Learns what load a thread has that had to leave a core. With another load, it is
    /// as if it never had.
    fn compare(&mut self, thread: &ThreadSnapshot) {
        let (id, load) = (thread.id, thread.load());
        let mut others = Vec::new();
        for (key, left) in self.left.range_mut((id, 0)..=(id, usize::MAX)) {
            if left.load.get_or_insert(load).abs_diff(load) > 2 * MARGIN {
                others.push(*key);
            }
        }
        for key in others {
            self.left.remove(&key);
        }
    }

    /// Whether a thread belongs on the scheduling core, whatever that has to do. One
    /// that had to leave it does only once it does nothing at all.
    fn is_small(&self, core: &CoreSnapshot, claim: &Claim<'_>) -> bool {
        let load = claim.thread.load();
        let left = core.core != self.main && self.margin(claim.thread, self.main) > 0;
        load < u64::from(self.options.load_limit) && !claim.stinted && !(left && load > 0)
    }

    /// By how much more room a thread needs on `core` than others.
    fn margin(&self, thread: &ThreadSnapshot, core: usize) -> u64 {
        let left = self.left.get(&(thread.id, core));
        left.map_or(0, |left| left.times * MARGIN)
    }

    /// Pass 2, for one thread: where it should be.
    fn best_core(&self, claim: &Claim<'_>) -> usize {
        let (thread, here) = (claim.thread, self.row(claim.thread.core));
        let crowded = self.is_at_limit(here);
        let others = self.rows.iter().filter(|row| {
            row.core != here.core && !row.isolated && thread.cpumask.contains(row.core)
        });
        let fitting = others.clone().filter(|row| self.fits(thread, row));
        let better = |row: &&Row| {
            let lower = row.core < here.core && here.core != self.main;
            crowded || lower || row.core == self.main
        };
        let found = match crowded && claim.stinted {
            true => fitting.min_by_key(|row| row.busy),
            false => fitting.clone().find(better),
        };
        if let Some(row) = found {
            return row.core;
        }
        let relieved = |row: &&Row| row.busy.saturating_add(thread.busy_ticks) < here.busy;
        let least_busy = others.min_by_key(|row| row.busy).filter(relieved);
        match crowded {
            true => least_busy.map_or(here.core, |row| row.core),
            false => here.core,
        }
    }

    /// Whether a core that the thread is not on has room for it.
    fn fits(&self, thread: &ThreadSnapshot, row: &Row) -> bool {
        let (sleeps, ticks) = (row.busy + row.idle == 0, thread.busy_ticks);
        sleeps
            || row.threads == 0
            || row.idle >= ticks
                && load(row.busy + ticks, row.idle - ticks) + self.margin(thread, row.core)
                    < u64::from(self.options.core_limit)
    }

    /// Whether threads should leave a core. One thread alone has nowhere better to be.
    fn is_at_limit(&self, row: &Row) -> bool {
        let limit = u64::from(self.options.core_limit);
        row.threads > 1 && row.busy > 0 && load(row.busy, row.idle) >= limit
    }

    /// Plans a move and counts it in. One of a thread that is bound does not happen:
    /// it is in the plan for the report only.
    fn send(&mut self, claim: &Claim<'_>, to: usize) {
        let (thread, from) = (claim.thread, claim.thread.core);
        if from == to {
            return;
        }
        self.plan.move_thread(thread.id, to);
        if thread.bound {
            return;
        }
        if self.is_at_limit(self.row(from)) {
            self.left.entry((thread.id, from)).or_default().times += 1;
        }
        let busy = thread.busy_ticks;
        let there = self.row_mut(to);
        there.busy = there.busy.saturating_add(busy);
        there.idle -= there.idle.min(busy);
        there.threads += 1;
        let (limit, full) = (self.options.core_limit, self.options.core_busy);
        let here = self.row_mut(from);
        let before = load(here.busy, here.idle);
        here.busy -= here.busy.min(busy);
        here.idle = here.idle.saturating_add(busy);
        here.threads -= 1;
        let now = load(here.busy, here.idle);
        if before >= full.into() && now < limit.into() {
            // It may have more to do than it could show: no thread comes this round.
            let total = here.busy.saturating_add(here.idle);
            let share = u128::from(total) * u128::from(limit) / 100;
            here.busy = u64::try_from(share).expect("no more than the total");
            here.idle = total - here.busy;
        }
    }
}

/// Which cores sleep, and the frequencies.
fn set_power(plan: &mut Plan, rows: &[Row], snapshot: &Snapshot) {
    let main = snapshot.scheduling_core;
    let mut others_work = false;
    for (row, core) in rows.iter().zip(&snapshot.cores) {
        if row.core == main || row.isolated {
            continue;
        }
        if row.threads > 0 {
            others_work = true;
            plan.wake(row.core);
            plan.set_frequency(row.core, Frequency::Max);
        } else if core.threads.is_empty() {
            plan.sleep(row.core);
            plan.set_frequency(row.core, Frequency::Min);
        }
    }
    if let Some(row) = rows.iter().find(|row| row.core == main) {
        let frequency = match (others_work, row.busy > row.idle) {
            (true, _) => Frequency::Max,
            (false, true) => Frequency::Up,
            (false, false) => Frequency::Down,
        };
        plan.set_frequency(main, frequency);
    }
}
