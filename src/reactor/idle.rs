//! How long to spin before sleeping: QEMU's adaptive polling, per reactor.
//!
//! After each wait, the time it took is compared with the time spun. Work that
//! came within the spin leaves it as it is; work that came soon after makes it
//! longer; work that took longer than any spin may last makes it shorter.

use std::time::Duration;

use super::AdaptivePolling;

/// The first spin after none.
const START_NS: u64 = 4_000;

#[derive(Debug)]
pub(super) struct Spin {
    max_ns: u64,
    grow: u64,
    shrink: u64,
    ns: u64,
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
        }
    }

    /// How long to spin now.
    pub(super) fn duration(&self) -> Duration {
        Duration::from_nanos(self.ns)
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
