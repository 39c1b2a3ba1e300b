//! `static`: every thread on the core that it came to first, or that it was mapped to.

use std::collections::BTreeMap;

#[cfg(feature = "scheduler-options")]
use serde::Deserialize;
#[cfg(feature = "scheduler-options")]
use serde_json::{Value, json};

use super::{Plan, Rounds, Scheduler, Setup, Snapshot};
#[cfg(feature = "scheduler-options")]
use crate::reactor::Reactors;

/// The scheduler `static`, which is in force until another is set.
///
/// It runs no round by itself. Chosen again after another it runs one, which wakes
/// all cores and brings every thread back to the core that it was on first. So does
/// its one option, `mappings`: a text like `"3:0,5:1"`, thread ids and the cores that
/// they are to have instead.
#[derive(Debug, Default)]
pub struct StaticScheduler {
    mappings: BTreeMap<u64, usize>,
    due: bool,
}

#[cfg(feature = "scheduler-options")]
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    #[serde(default)]
    mappings: String,
}

impl Scheduler for StaticScheduler {
    fn init(&mut self, _setup: &mut Setup<'_>) -> Result<(), String> {
        // Another was in use before.
        self.due = true;
        Ok(())
    }

    fn rounds(&self) -> Rounds {
        match self.due {
            true => Rounds::Once,
            false => Rounds::Never,
        }
    }

    fn balance(&mut self, snapshot: &Snapshot) -> Plan {
        self.due = false;
        let mut plan = Plan::new();
        let cores = snapshot.core_set();
        cores.iter().for_each(|core| plan.wake(core));
        let threads = snapshot.threads_by_id();
        self.mappings.retain(|id, _| threads.contains_key(id));
        for (id, thread) in threads {
            let core = self.mappings.get(&id).copied();
            let core = core.unwrap_or(thread.initial_core);
            if core != thread.core && thread.cpumask.contains(core) && cores.contains(core) {
                plan.move_thread(id, core);
            }
        }
        plan
    }

    #[cfg(feature = "scheduler-options")]
    fn set_options(&mut self, options: &Value, reactors: &Reactors) -> Result<(), String> {
        let options = Options::deserialize(options);
        let options = options.map_err(|error| format!("{error}; it has `mappings`, a text"))?;
        let mappings = parse(&options.mappings, reactors)?;
        self.due = !mappings.is_empty();
        self.mappings.extend(mappings);
        Ok(())
    }

    #[cfg(feature = "scheduler-options")]
    fn options(&self) -> Value {
        let mappings = self.mappings.iter();
        let pairs: Vec<_> = mappings.map(|(id, core)| format!("{id}:{core}")).collect();
        json!({ "mappings": pairs.join(",") })
    }
}

/// Pairs of a thread and a core where it may be.
#[cfg(feature = "scheduler-options")]
fn parse(text: &str, reactors: &Reactors) -> Result<BTreeMap<u64, usize>, String> {
    let pairs = text
        .split(',')
        .map(str::trim)
        .filter(|pair| !pair.is_empty());
    pairs.map(|pair| parse_pair(pair, reactors)).collect()
}

#[cfg(feature = "scheduler-options")]
fn parse_pair(pair: &str, reactors: &Reactors) -> Result<(u64, usize), String> {
    let numbers = pair.split_once(':').and_then(|(id, core)| {
        let (id, core) = (id.trim().parse(), core.trim().parse());
        Some((id.ok()?, core.ok()?))
    });
    let Some((id, core)) = numbers else {
        return Err(format!("{pair:?} is not a thread's id, a colon and a core"));
    };
    let Some(thread) = reactors.library().thread_by_id(id) else {
        return Err(format!("{pair:?}: there is no thread {id}"));
    };
    let cores = reactors.cores();
    if !cores.contains(core) {
        let cores = cores.as_list();
        return Err(format!(
            "{pair:?}: no reactor runs on core {core}, but on {cores}"
        ));
    }
    let mask = thread.cpumask();
    if !mask.contains(core) {
        let mask = mask.as_list();
        return Err(format!(
            "{pair:?}: thread {id} may run on cores {mask} only"
        ));
    }
    Ok((id, core))
}
