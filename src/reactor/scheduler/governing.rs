//! The governor in use: taken by a scheduler, called on its behalf, and given back.

use super::super::governor::{Governor, GovernorError};
use super::super::group::Group;
use super::conductor::{Conductor, lock};
use super::{Plan, Round};
use crate::cpu::CpuSet;
use crate::thread::panic::contain;

impl Conductor {
    /// `spdk_governor_set`.
    pub(super) fn set_governor(&mut self, group: &Group, name: &str) -> Result<(), GovernorError> {
        if self
            .governor
            .as_ref()
            .is_some_and(|(active, _)| active == name)
        {
            return Ok(());
        }
        let taken = lock(&group.scheduling.governors)
            .get_mut(name)
            .map(Option::take);
        let Some(mut governor) = taken.flatten() else {
            let names = lock(&group.scheduling.governors);
            return Err(GovernorError::Unknown {
                name: name.to_owned(),
                available: names.keys().cloned().collect::<Vec<_>>().join(", "),
            });
        };
        let cpus: CpuSet = group.reactors.iter().map(|one| one.place.cpu).collect();
        let begun = contain(|| governor.init(&cpus)).unwrap_or_else(|payload| {
            Err(GovernorError::Panicked {
                name: name.to_owned(),
                message: group.report_scheduler(payload),
            })
        });
        if let Err(error) = begun {
            lock(&group.scheduling.governors).insert(name.to_owned(), Some(governor));
            return Err(error);
        }
        self.clear_governor(group);
        self.governor = Some((name.to_owned(), governor));
        Ok(())
    }

    /// Calls the governor in use, if there is one; a panic is reported.
    pub(super) fn with_governor<R>(
        &mut self,
        group: &Group,
        f: impl FnOnce(&mut dyn Governor) -> Result<R, GovernorError>,
    ) -> Option<Result<R, GovernorError>> {
        let (name, governor) = self.governor.as_mut()?;
        Some(contain(|| f(&mut **governor)).unwrap_or_else(|payload| {
            Err(GovernorError::Panicked {
                name: name.clone(),
                message: group.report_scheduler(payload),
            })
        }))
    }

    pub(super) fn clear_governor(&mut self, group: &Group) {
        if let Some((name, mut governor)) = self.governor.take() {
            if let Err(payload) = contain(|| governor.deinit()) {
                group.report_scheduler(payload);
            }
            lock(&group.scheduling.governors).insert(name, Some(governor));
        }
    }

    pub(super) fn set_frequencies(&mut self, group: &Group, plan: &Plan, round: &mut Round) {
        for &(core, frequency) in &plan.frequencies {
            let index = group.index_of(core).expect("a core of the snapshot");
            let cpu = group.reactors[index].place.cpu;
            match self.with_governor(group, |governor| governor.set(cpu, frequency)) {
                None => return,
                Some(Ok(_)) => round.frequencies.push((core, frequency)),
                Some(Err(error)) => round.refused.push(error.to_string()),
            }
        }
    }
}
