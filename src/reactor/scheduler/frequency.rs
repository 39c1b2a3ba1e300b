//! `gscheduler`: moves no thread; sets the frequency of each core after its load.

use serde::{Deserialize, Serialize};
#[cfg(feature = "scheduler-options")]
use serde_json::Value;

use super::{Plan, Scheduler, Setup, Snapshot};
#[cfg(feature = "scheduler-options")]
use crate::reactor::Reactors;
use crate::reactor::governor::{CPUFREQ, Frequency};

/// The scheduler `gscheduler`: sets frequencies and moves nothing. It cannot be used
/// without a governor; its option `governor` names which, `"cpufreq"` unless set.
///
/// The load that counts for a core is the highest of those that share its frequency:
/// below 1 % the lowest frequency, below 50 % one step down, from 99 % the highest,
/// else one step up.
#[derive(Debug, Default)]
pub struct FrequencyScheduler(Options);

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    governor: String,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            governor: CPUFREQ.to_owned(),
        }
    }
}

impl Scheduler for FrequencyScheduler {
    fn init(&mut self, setup: &mut Setup<'_>) -> Result<(), String> {
        let set = setup.set_governor(&self.0.governor);
        set.map_err(|error| error.to_string())
    }

    fn balance(&mut self, snapshot: &Snapshot) -> Plan {
        let mut plan = Plan::new();
        for core in &snapshot.cores {
            let siblings = snapshot.cores.iter();
            let siblings = siblings.filter(|other| core.siblings.contains(other.core));
            let load = siblings.map(super::CoreSnapshot::load).max();
            plan.set_frequency(core.core, frequency(load.unwrap_or_else(|| core.load())));
        }
        plan
    }

    #[cfg(feature = "scheduler-options")]
    fn set_options(&mut self, options: &Value, _reactors: &Reactors) -> Result<(), String> {
        let options = Options::deserialize(options);
        self.0 = options.map_err(|error| format!("{error}; it has `governor`, a name"))?;
        Ok(())
    }

    #[cfg(feature = "scheduler-options")]
    fn options(&self) -> Value {
        serde_json::to_value(&self.0).unwrap_or_default()
    }
}

/// What a load in percent asks for.
fn frequency(load: u64) -> Frequency {
    match load {
        0 => Frequency::Min,
        1..50 => Frequency::Down,
        50..99 => Frequency::Up,
        _ => Frequency::Max,
    }
}

#[cfg(test)]
mod tests {
    use super::super::CoreSnapshot;
    use super::*;
    use crate::cpu::CpuSet;

    /// T-X-19, SC-051, by hand; SMT siblings go by the busier one.
    #[test]
    fn a_core_has_the_frequency_that_its_load_asks_for() {
        let table = [
            (0, 0, Frequency::Min),
            (0, 1_000, Frequency::Min),
            (9, 991, Frequency::Min),
            (10, 990, Frequency::Down),
            (499, 501, Frequency::Down),
            (500, 500, Frequency::Up),
            (989, 11, Frequency::Up),
            (990, 10, Frequency::Max),
        ];
        for (busy, idle, expected) in table {
            let mut snapshot = Snapshot::new(0);
            snapshot.cores.push(CoreSnapshot::new(0, busy, idle));
            let plan = FrequencyScheduler::default().balance(&snapshot);
            assert_eq!(plan.frequencies(), [(0, expected)], "{busy} of {idle}");
        }
        let mut snapshot = Snapshot::new(0);
        for (core, busy) in [(0, 0), (1, 600), (2, 0)] {
            let siblings = match core {
                2 => CpuSet::single(2),
                _ => [0, 1].into_iter().collect(),
            };
            let mut one = CoreSnapshot::new(core, busy, 1_000 - busy);
            one.siblings = siblings;
            snapshot.cores.push(one);
        }
        let plan = FrequencyScheduler::default().balance(&snapshot);
        let expected = [(0, Frequency::Up), (1, Frequency::Up), (2, Frequency::Min)];
        assert_eq!(plan.frequencies(), expected);
        assert!(plan.moves().is_empty());
    }
}
