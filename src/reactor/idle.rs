//! How long to spin before sleeping: QEMU's adaptive polling, per reactor.
//!
//! After each wait, the time it took is compared with the time spun. Work that
//! came within the spin leaves it as it is; work that came soon after makes it
//! longer; work that took longer than any spin may last makes it shorter.
//!
//! That rests on the core being the reactor's own. Where it is not, a spin keeps
//! other OS threads from running, among them the sender of the message that is
//! waited for; so each step of a spin gives way to them. An OS thread that then
//! stays longer than a spin may last has work of another kind: against such
//! company a reactor that sleeps gets the core sooner (a scheduler favours a
//! thread that has just woken) than one that spins, so it stops spinning for a
//! while.

use std::time::Duration;

use super::AdaptivePolling;
use crate::clock::Clock;

/// The first spin after none.
const START_NS: u64 = 4_000;

/// For how many times as long as the core was lost nothing is spun: that bounds
/// the time lost to finding out whether the company has left at 3 %.
const CROWDED_FACTOR: u64 = 32;

#[derive(Debug)]
pub(crate) struct Spin {
    max_ns: u64,
    grow: u64,
    shrink: u64,
    ns: u64,
    /// The tick until which nothing is spun.
    crowded_until: u64,
}

impl Spin {
    pub(super) fn new(polling: AdaptivePolling) -> Self {
        Spin {
            max_ns: nanos(polling.max),
            grow: match polling.grow {
                0 => 2,
                grow => grow.into(),
            },
            shrink: polling.shrink.into(),
            ns: 0,
            crowded_until: 0,
        }
    }

    /// How long to spin at tick `now`.
    pub(super) fn duration(&self, now: u64) -> Duration {
        match now < self.crowded_until {
            true => Duration::ZERO,
            false => Duration::from_nanos(self.ns),
        }
    }

    /// One step of a spin: lets another OS thread that wants this core have it.
    pub(super) fn give_way(&mut self, clock: &Clock) {
        let left = clock.now();
        std::thread::yield_now();
        self.gave_way(left, clock);
    }

    /// Learns that others had the core since tick `left`.
    fn gave_way(&mut self, left: u64, clock: &Clock) {
        let back = clock.now();
        let away = back.saturating_sub(left);
        if nanos(clock.duration_from(away)) > self.max_ns {
            self.crowded_until = back.saturating_add(away.saturating_mul(CROWDED_FACTOR));
        }
    }

    /// Learns that work came `waited` after the last work was done.
    pub(super) fn adjust(&mut self, waited: Duration) {
        let waited = nanos(waited);
        if waited <= self.ns {
            return;
        }
        if waited > self.max_ns {
            self.ns = self.ns.checked_div(self.shrink).unwrap_or(0);
        } else if self.ns < self.max_ns {
            self.ns = match self.ns {
                0 => START_NS,
                ns => ns.saturating_mul(self.grow),
            }
            .min(self.max_ns);
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spin(max: u64, grow: u32, shrink: u32, ns: u64) -> Spin {
        let mut spin = Spin::new(AdaptivePolling {
            max: Duration::from_nanos(max),
            grow,
            shrink,
        });
        spin.ns = ns;
        spin
    }

    #[test]
    fn who_loses_the_core_to_somebody_busy_stops_spinning_for_a_while() {
        let (clock, hand) = Clock::virtual_at(1_000_000_000);
        let mut spin = spin(50_000, 2, 0, 50_000);
        let lose_core = |spin: &mut Spin, ns| {
            let left = clock.now();
            hand.advance_by(Duration::from_nanos(ns));
            spin.gave_way(left, &clock);
        };
        // A client that answers.
        lose_core(&mut spin, 50_000);
        assert_eq!(spin.duration(clock.now()), Duration::from_micros(50));
        // Work of another kind.
        lose_core(&mut spin, 50_001);
        let again = clock.now() + 32 * 50_001;
        assert_eq!(spin.duration(again - 1), Duration::ZERO);
        assert_eq!(spin.duration(again), Duration::from_micros(50));
    }

    /// T-X-21, the arithmetic: (ns, max, block) gives the new ns.
    #[test]
    fn the_spin_follows_qemus_table() {
        let table = [
            // ns, max, grow, shrink, waited, then
            (0, 32_768, 0, 0, 1, 4_000),
            (4_000, 32_768, 0, 0, 4_000, 4_000),
            (4_000, 32_768, 0, 0, 4_001, 8_000),
            (8_000, 32_768, 3, 0, 9_000, 24_000),
            (24_000, 32_768, 3, 0, 30_000, 32_768),
            (32_768, 32_768, 0, 0, 32_768, 32_768),
            (32_768, 32_768, 0, 0, 32_769, 0),
            (32_768, 32_768, 0, 4, 1_000_000, 8_192),
            (0, 2_000, 0, 0, 100, 2_000),
            (0, 0, 0, 0, 100, 0),
        ];
        for (ns, max, grow, shrink, waited, then) in table {
            let mut spin = spin(max, grow, shrink, ns);
            spin.adjust(Duration::from_nanos(waited));
            assert_eq!(spin.ns, then, "ns {ns}, max {max}, waited {waited}");
        }
    }
}
