//! One program under many seeds.

use std::env;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Sim, SimBuilder, Trace};
use crate::thread::panic::{contain, payload_text};

/// Where a seed to run alone is looked for.
const VARIABLE: &str = "CORESPUN_SIM_SEED";

/// Runs `f` with a simulation of two cores for each of the seeds, and stops at the first
/// that fails: [`SimBuilder::explore`] of usual settings.
///
/// # Errors
///
/// [`SimFailure`].
#[track_caller]
pub fn explore(
    seeds: impl IntoIterator<Item = u64>,
    f: impl FnMut(&mut Sim),
) -> Result<u64, SimFailure> {
    Sim::builder().cores(2).explore(seeds, f)
}

impl SimBuilder {
    /// Runs `f` with a simulation for each of the seeds, and stops at the first that
    /// fails: `f` has panicked, or code on one of the threads has. Says how many were run.
    ///
    /// With the environment variable `CORESPUN_SIM_SEED`, that seed alone is run.
    ///
    /// # Errors
    ///
    /// [`SimFailure`] of the first seed that fails.
    ///
    /// # Panics
    ///
    /// When `CORESPUN_SIM_SEED` is no number.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::sim::Sim;
    ///
    /// let runs = Sim::builder().cores(3).explore(0..20, |sim| {
    ///     let worker = sim.thread().create().unwrap();
    ///     assert_eq!(sim.block_on(worker.call(|| 6 * 7)).unwrap(), 42);
    /// });
    /// assert_eq!(runs.unwrap(), 20);
    /// ```
    #[track_caller]
    pub fn explore(
        &self,
        seeds: impl IntoIterator<Item = u64>,
        mut f: impl FnMut(&mut Sim),
    ) -> Result<u64, SimFailure> {
        if let Some(seed) = seed_of_environment() {
            return self.clone().seed(seed).run(f).map(|()| 1);
        }
        let mut runs = 0;
        for seed in seeds {
            self.clone().seed(seed).run(&mut f)?;
            runs += 1;
        }
        Ok(runs)
    }

    /// Runs `f` with the simulation.
    ///
    /// # Errors
    ///
    /// [`SimFailure`]: `f` has panicked, or code on one of the threads has, also as they
    /// ended with the simulation.
    pub fn run<R>(&self, f: impl FnOnce(&mut Sim) -> R) -> Result<R, SimFailure> {
        let mut sim = self.build();
        let world = sim.world.clone();
        let result = catch_unwind(AssertUnwindSafe(|| f(&mut sim)));
        let trace = sim.trace();
        let failure = |message| SimFailure {
            seed: self.seed,
            message,
            trace: trace.clone(),
        };
        let result = result.map_err(|payload| failure(payload_text(&*payload).to_owned()));
        let ended = contain(|| drop(sim));
        let result = result?;
        if let Err(payload) = ended {
            return Err(failure(payload_text(&*payload).to_owned()));
        }
        if !self.contains_panics
            && let Some(message) = world.state().panics.first()
        {
            return Err(failure(message.clone()));
        }
        Ok(result)
    }
}

/// The seed that was asked for from outside.
#[track_caller]
fn seed_of_environment() -> Option<u64> {
    let text = env::var(VARIABLE).ok()?;
    let number = text.trim().parse();
    Some(number.unwrap_or_else(|_| panic!("{VARIABLE}={text:?} is no number of a seed")))
}

/// A seed under which a program fails, and how it came to that.
///
/// Displayed, and so by `unwrap`, it says how to run that seed again, what went wrong, and
/// what happened last.
#[derive(Clone, thiserror::Error)]
#[error(
    "the simulation with seed {seed} fails: {message}\n\
     again: {VARIABLE}={seed}, or SimBuilder::seed({seed})\n{trace}"
)]
pub struct SimFailure {
    seed: u64,
    message: String,
    trace: Trace,
}

impl SimFailure {
    /// The seed.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// What the panic said.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What happened before.
    #[must_use]
    pub fn trace(&self) -> &Trace {
        &self.trace
    }
}

impl fmt::Debug for SimFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
