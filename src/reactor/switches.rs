//! How often the kernel takes a reactor off its processor: SPDK's context-switch
//! monitor. A reactor that has its processor to itself is hardly ever taken off it,
//! so these counts say whether it does.

use std::sync::atomic::Ordering;

use nix::sys::resource::{UsageWho, getrusage};

use super::group::Shared;

/// What a reactor keeps between two looks.
#[derive(Debug, Default)]
pub(super) struct SwitchMonitor {
    /// The tick of the next look.
    due: u64,
    /// What the kernel had counted, voluntary and not, at the last.
    seen: Option<[u64; 2]>,
}

impl SwitchMonitor {
    #[inline]
    pub(super) fn due(&self) -> u64 {
        self.due
    }

    /// Counts what came since the last look, at tick `now`, on the reactor's OS
    /// thread; the next look is `interval` ticks later.
    pub(super) fn look(&mut self, reactor: &Shared, now: u64, interval: u64) {
        self.due = now.saturating_add(interval);
        let Ok(usage) = getrusage(UsageWho::RUSAGE_THREAD) else {
            return;
        };
        let counts = [
            usage.voluntary_context_switches(),
            usage.involuntary_context_switches(),
        ];
        let counts = counts.map(|count| u64::try_from(count).unwrap_or(0));
        if let Some(seen) = self.seen.replace(counts) {
            let [voluntary, involuntary] = [0, 1].map(|kind| {
                let new = counts[kind].saturating_sub(seen[kind]);
                reactor.switches[kind].fetch_add(new, Ordering::Relaxed);
                new
            });
            if voluntary + involuntary > 0 {
                let core = reactor.place.core;
                tracing::info!(core, voluntary, involuntary, "context switches");
            }
        }
    }
}
