//! The x86-64 time stamp counter: whether it can serve as a clock, how fast it
//! ticks, and the read itself. Elsewhere there is none and `CLOCK_MONOTONIC`
//! serves.
//!
//! Read and calibrated here rather than through the `quanta` crate, which keeps
//! its calibration in a process-wide static and does not tell the rate. A read
//! costs the same (9.6 ns); calibration takes 2.0 ms, off by 0.2 ppm in the
//! median and 5 ppm at worst of 120 runs, where quanta takes 0.6 ms and was off by
//! 0.3 to 1.6 ppm, once by 16.

#[cfg(target_arch = "x86_64")]
pub(super) use x86_64::{calibrated_hz, read};

#[cfg(not(target_arch = "x86_64"))]
pub(super) use absent::{calibrated_hz, read};

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::x86_64::{__cpuid, _rdtsc};
    use std::fs;

    use super::super::{Clock, NANOS_PER_SEC, monotonic_nanos};

    /// How long calibration watches both clocks.
    const CALIBRATION_NANOS: u64 = 2_000_000;
    /// Paired readings at either end, of which the tightest counts: interrupts
    /// and a hypervisor's pauses land between the two clocks of a pair, but not
    /// in all of so many.
    const PAIRS: u32 = 64;
    /// The extended CPUID leaf on power management, and its invariant-TSC bit.
    const POWER_LEAF: u32 = 0x8000_0007;
    const INVARIANT_TSC: u32 = 1 << 8;
    /// Where the kernel lists the clock sources it would use; it strikes out a
    /// TSC that it has found unstable or not in step between cores.
    const KERNEL_CHOICE: &str =
        "/sys/devices/system/clocksource/clocksource0/available_clocksource";

    /// The tick rate, if the TSC can be trusted as a clock.
    pub(in super::super) fn calibrated_hz() -> Option<u64> {
        if !is_invariant() || !kernel_trusts_it() {
            return None;
        }
        let (tsc_start, nanos_start) = tightest_pair();
        while monotonic_nanos() - nanos_start < CALIBRATION_NANOS {
            std::hint::spin_loop();
        }
        let (tsc_end, nanos_end) = tightest_pair();
        let ticks = u128::from(tsc_end.checked_sub(tsc_start)?);
        let hz = ticks * u128::from(NANOS_PER_SEC) / u128::from(nanos_end - nanos_start);
        u64::try_from(hz)
            .ok()
            .filter(|hz| (1..=Clock::MAX_HZ).contains(hz))
    }

    #[inline]
    pub(in super::super) fn read() -> u64 {
        // SAFETY: every x86-64 processor has RDTSC, and Linux lets user space
        // execute it unless the process itself asked for PR_TSC_SIGSEGV.
        unsafe { _rdtsc() }
    }

    /// Whether the TSC ticks at one rate in every power state.
    #[allow(
        unused_unsafe,
        reason = "CPUID became a safe function after our rust-version"
    )]
    fn is_invariant() -> bool {
        // SAFETY: every x86-64 processor has CPUID; leaf 0x80000000 tells which
        // extended leaves exist, and only an existing one is asked for.
        unsafe {
            __cpuid(0x8000_0000).eax >= POWER_LEAF && __cpuid(POWER_LEAF).edx & INVARIANT_TSC != 0
        }
    }

    /// Where the kernel does not say (a container without sysfs), CPUID decides.
    fn kernel_trusts_it() -> bool {
        fs::read_to_string(KERNEL_CHOICE).map_or(true, |sources| {
            sources.split_whitespace().any(|s| s == "tsc")
        })
    }

    /// The same instant on both clocks, as closely as it can be had: the reading
    /// of `CLOCK_MONOTONIC` with the least time between the TSC readings around
    /// it, and the middle of those.
    fn tightest_pair() -> (u64, u64) {
        let mut best_width = u64::MAX;
        let mut best = (0, 0);
        for _ in 0..PAIRS {
            let before = read();
            let nanos = monotonic_nanos();
            let width = read().wrapping_sub(before);
            if width < best_width {
                best_width = width;
                best = (before + width / 2, nanos);
            }
        }
        best
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod absent {
    pub(in super::super) fn calibrated_hz() -> Option<u64> {
        None
    }

    /// Never reached: without a calibrated rate no clock has this source.
    pub(in super::super) fn read() -> u64 {
        super::super::monotonic_nanos()
    }
}
