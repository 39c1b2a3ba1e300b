//! Settings of a simulation.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::Sim;
use super::chance::Chance;
use crate::reactor::{AdaptivePolling, ReactorMode};

/// Settings of a [`Sim`]: one core in poll mode, seed 0, and about the delays of a real
/// machine, until told otherwise.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use corespun::{reactor::ReactorMode, sim::Sim};
///
/// let sim = Sim::builder()
///     .cores(4)
///     .mode(ReactorMode::Interrupt)
///     .message_delay(Duration::from_micros(1)..=Duration::from_micros(50))
///     .seed(42)
///     .build();
/// assert_eq!(sim.reactors().count(), 4);
/// ```
#[derive(Clone, Debug)]
#[must_use = "call `build`, `run` or `explore`"]
pub struct SimBuilder {
    pub(super) seed: u64,
    pub(super) cores: Vec<usize>,
    pub(super) mode: ReactorMode,
    pub(super) adaptive: AdaptivePolling,
    pub(super) hz: u64,
    pub(super) chance: Chance,
    pub(super) turn_limit: u64,
    pub(super) contains_panics: bool,
}

impl Default for SimBuilder {
    fn default() -> Self {
        SimBuilder {
            seed: 0,
            cores: vec![0],
            mode: ReactorMode::Poll,
            adaptive: AdaptivePolling::default(),
            hz: 1_000_000_000,
            chance: Chance::usual(),
            turn_limit: 1_000_000,
            contains_panics: false,
        }
    }
}

impl SimBuilder {
    /// What chance is made from.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// How many cores there are, numbered from 0.
    ///
    /// # Panics
    ///
    /// When there is none, or more than a [`CpuSet`](crate::cpu::CpuSet) can hold.
    #[track_caller]
    pub fn cores(self, count: usize) -> Self {
        self.numbered_cores(0..count)
    }

    /// The numbers of the cores, the main core first.
    ///
    /// # Panics
    ///
    /// When there is none, one comes twice, or one is no number for a
    /// [`CpuSet`](crate::cpu::CpuSet).
    #[track_caller]
    pub fn numbered_cores(mut self, cores: impl IntoIterator<Item = usize>) -> Self {
        self.cores = cores.into_iter().collect();
        assert!(!self.cores.is_empty(), "a simulation has a core at least");
        let mut sorted = self.cores.clone();
        sorted.sort_unstable();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            panic!("core {} comes twice", pair[0]);
        }
        let (last, capacity) = (sorted[sorted.len() - 1], crate::cpu::CpuSet::CAPACITY);
        assert!(last < capacity, "core {last} is not below {capacity}");
        self
    }

    /// What the reactors do when idle.
    pub fn mode(mut self, mode: ReactorMode) -> Self {
        self.mode = mode;
        self
    }

    /// How long adaptive mode spins.
    pub fn adaptive_polling(mut self, polling: AdaptivePolling) -> Self {
        self.adaptive = polling;
        self
    }

    /// Ticks per second of the virtual clock; a tick is a nanosecond else.
    ///
    /// # Panics
    ///
    /// [`build`](Self::build) does, when it is 0 or above
    /// [`Clock::MAX_HZ`](crate::clock::Clock::MAX_HZ).
    pub fn hz(mut self, hz: u64) -> Self {
        self.hz = hz;
        self
    }

    /// How long a message or an event to another core takes: 50 ns to 10 µs else. It never
    /// overtakes one that was sent before it to the same thread or core.
    pub fn message_delay(mut self, delay: RangeInclusive<Duration>) -> Self {
        self.chance.message_delay = delay;
        self
    }

    /// How long a poll of a thread takes, besides what is
    /// [spent](super::SimHandle::spend) in it: 20 to 500 ns else. With none, an active
    /// poller makes time stand.
    pub fn poll_time(mut self, time: RangeInclusive<Duration>) -> Self {
        self.chance.poll_time = time;
        self
    }

    /// How long a core is taken away now and then, as by the machine's host: 100 µs at
    /// most else.
    pub fn stall(mut self, time: RangeInclusive<Duration>) -> Self {
        self.chance.stall = time;
        self
    }

    /// Whether chance decides which thread of a core goes first, how much of what waits a
    /// poll runs, and which core is next at the same moment; it does else.
    pub fn preemption(mut self, on: bool) -> Self {
        self.chance.preemption = on;
        self
    }

    /// Leaves nothing to chance: polls and messages take no time, nothing is cut short,
    /// and the cores take turns. For tests that count every tick, which passes only as it
    /// is [spent](super::SimHandle::spend), or with [`Sim::advance`].
    pub fn exact(mut self) -> Self {
        self.chance = Chance::none();
        self
    }

    /// After how many turns without reaching what is waited for a run gives up: a million
    /// else.
    pub fn turn_limit(mut self, turns: u64) -> Self {
        self.turn_limit = turns;
        self
    }

    /// Whether the simulation goes on when code of the user's panics on a thread, as
    /// reactors do; else, that ends the run with
    /// [`SimError::Panicked`](super::SimError::Panicked). A task whose end has a waiter
    /// tells only the waiter.
    pub fn contain_panics(mut self, contain: bool) -> Self {
        self.contains_panics = contain;
        self
    }

    /// Makes the simulation.
    ///
    /// # Panics
    ///
    /// When the rate of the clock is none.
    #[track_caller]
    pub fn build(&self) -> Sim {
        Sim::new(self)
    }
}
