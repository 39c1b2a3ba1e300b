//! What the stress binaries share: the settings of a run, dice to choose operations
//! with, and counters of what has happened.
use std::sync::atomic::{AtomicUsize, Ordering};

/// What the panics and errors say that are expected.
pub const ON_PURPOSE: &str = "on purpose";

/// How long to run, in seconds, and the seed of all dice: from the environment, so
/// that a run can be made again. Says both.
pub fn settings(what: &str) -> (u64, u64) {
    let seconds = number("CORESPUN_STRESS_SECONDS", 2);
    let seed = number("CORESPUN_STRESS_SEED", u64::from(std::process::id()));
    println!("{what} for {seconds} s, seed {seed}");
    (seconds, seed)
}

/// A number from the environment.
pub fn number(variable: &str, default: u64) -> u64 {
    let value = std::env::var(variable).ok();
    value.map_or(default, |value| {
        value
            .parse()
            .unwrap_or_else(|_| panic!("{variable} must be a number"))
    })
}

/// xorshift64: enough to choose operations.
#[derive(Clone)]
pub struct Dice(u64);

impl Dice {
    /// That show the same for the same seed.
    pub const fn new(seed: u64) -> Self {
        Dice(seed | 1)
    }

    /// Those of the `n`th OS thread of a run.
    pub fn of(seed: u64, n: usize) -> Self {
        Dice((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (n as u64 + 1))
    }

    /// A number from 0 to below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    /// For something that this starts.
    pub fn other(&mut self) -> Dice {
        Dice::new(self.below(u64::MAX))
    }
}

/// Counts one more.
pub fn count(counter: &AtomicUsize) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// How many were counted.
pub fn read(counter: &AtomicUsize) -> usize {
    counter.load(Ordering::Relaxed)
}
