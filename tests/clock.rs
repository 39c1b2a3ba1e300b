//! What `Clock` promises: exact, overflow-free tick arithmetic at any rate,
//! virtual time that moves only by hand, and system ticks that agree with the
//! kernel's clock.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use corespun::clock::{Clock, ClockSource, StoppableClock, VirtualClock};
use proptest::prelude::*;

/// 2.6 GHz, and one that divides nothing.
const RATES: [u64; 5] = [1, 1_000_000, 2_600_000_000, 2_596_139_807, Clock::MAX_HZ];

fn clock_at(hz: u64) -> Clock {
    Clock::virtual_at(hz).0
}

#[test]
fn virtual_time_moves_only_by_hand_and_in_all_clones() {
    let (clock, hand) = Clock::virtual_at(1_000_000);
    let (clone, second) = (clock.clone(), hand.clock());
    assert_eq!((clock.now(), clock.hz()), (0, 1_000_000));
    assert_eq!(clock.source(), ClockSource::Virtual);

    assert_eq!(hand.advance(7), 7);
    assert_eq!(
        (clock.now(), clone.now(), second.now(), hand.now()),
        (7, 7, 7, 7)
    );
    assert_eq!(hand.clone().advance_by(Duration::from_nanos(1_001)), 9);
    hand.set(3);
    assert_eq!(clone.now(), 3);
    hand.set(u64::MAX - 1);
    assert_eq!(hand.advance(5), u64::MAX);
    assert_eq!(clock.now(), u64::MAX);
}

#[test]
fn two_virtual_clocks_know_nothing_of_each_other() {
    let (first, second) = (VirtualClock::new(1), VirtualClock::new(1));
    first.advance(10);
    assert_eq!((first.clock().now(), second.clock().now()), (10, 0));
}

#[test]
fn virtual_time_is_seen_by_other_threads() {
    let (clock, hand) = Clock::virtual_at(1);
    let reader = std::thread::spawn(move || {
        while clock.now() < 42 {
            std::thread::yield_now();
        }
        clock.now()
    });
    hand.advance(42);
    assert_eq!(reader.join().unwrap(), 42);
}

#[test]
fn a_rate_that_no_clock_can_have_is_refused() {
    for hz in [0, Clock::MAX_HZ + 1] {
        assert!(std::panic::catch_unwind(|| VirtualClock::new(hz)).is_err());
        assert!(std::panic::catch_unwind(|| Clock::virtual_at(hz)).is_err());
    }
}

/// TH-012.
#[test]
fn periods_of_centuries_do_not_overflow() {
    let clock = clock_at(2_600_000_000);
    let century_us = 100 * 365 * 86_400 * 1_000_000;
    assert_eq!(
        clock.ticks_from(Duration::from_micros(century_us)),
        century_us * 2_600
    );
    assert_eq!(clock.ticks_from(Duration::MAX), u64::MAX);
    assert_eq!(clock_at(1).ticks_from(Duration::MAX), u64::MAX);
    assert_eq!(clock_at(1).duration_from(u64::MAX).as_secs(), u64::MAX);
}

#[test]
fn a_period_rounds_up_to_a_whole_tick() {
    let clock = clock_at(1_500_000);
    assert_eq!(clock.ticks_from(Duration::from_micros(1)), 2);
    assert_eq!(clock.ticks_from(Duration::from_micros(2)), 3);
    assert_eq!(clock.ticks_from(Duration::ZERO), 0);
    assert_eq!(clock.ticks_from(Duration::from_nanos(1)), 1);
    assert_eq!(clock.duration_from(1), Duration::from_nanos(667));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn conversions_are_exact_at_any_rate(
        hz in prop_oneof![prop::sample::select(RATES.to_vec()), 1..=Clock::MAX_HZ],
        amount in prop_oneof![any::<u64>(), 0..10_000_000_000u64],
        nanos in 0..1_000_000_000u32,
    ) {
        let clock = clock_at(hz);
        let wide = u128::from(hz);
        let fit = |ticks: u128| u64::try_from(ticks).unwrap_or(u64::MAX);

        let secs = amount % 1_000_000_000_000;
        let duration = Duration::new(secs, nanos);
        prop_assert_eq!(
            clock.ticks_from(duration),
            fit((duration.as_nanos() * wide).div_ceil(1_000_000_000))
        );

        let back = clock.duration_from(amount);
        prop_assert_eq!(back.as_nanos(), (u128::from(amount) * 1_000_000_000).div_ceil(wide));
        prop_assert!(clock.ticks_from(back) >= amount, "a sleep so long would be early");
    }
}

fn ticks_follow_the_kernel_clock(clock: &Clock) {
    // Real time must pass here: the rate of a real clock is what is tested. The
    // bounds come from the two readings that enclose ours, however late they are.
    let outer = Instant::now();
    let first = clock.now();
    let inner = Instant::now();
    std::thread::sleep(Duration::from_millis(20));
    let at_least = inner.elapsed();
    let last = clock.now();
    let at_most = outer.elapsed();

    let measured = clock.duration_from(last - first);
    // Calibration may be off by some ppm; 1000 leave room for a busy machine.
    assert!(
        measured >= at_least - at_least / 1000,
        "{measured:?} < {at_least:?}"
    );
    assert!(
        measured <= at_most + at_most / 1000,
        "{measured:?} > {at_most:?}"
    );
}

#[test]
fn system_ticks_pass_at_the_stated_rate() {
    let clock = Clock::system();
    assert_ne!(clock.source(), ClockSource::Virtual);
    ticks_follow_the_kernel_clock(&clock);
}

#[test]
fn the_fallback_ticks_pass_at_the_stated_rate() {
    let clock = Clock::monotonic();
    assert_eq!(
        (clock.source(), clock.hz()),
        (ClockSource::Monotonic, 1_000_000_000)
    );
    ticks_follow_the_kernel_clock(&clock);
}

#[test]
fn the_fallback_ticks_are_the_kernels_nanoseconds() {
    let kernel = || {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
        Duration::from(now).as_nanos() as u64
    };
    let before = kernel();
    let now = Clock::monotonic().now();
    assert!((before..=kernel()).contains(&now));
}

#[test]
fn system_ticks_never_go_back_on_one_thread() {
    for clock in [Clock::system(), Clock::monotonic()] {
        let mut last = clock.now();
        for _ in 0..100_000 {
            let now = clock.now();
            assert!(now >= last);
            last = now;
        }
    }
}

#[test]
fn a_clock_may_be_shared_by_threads() {
    fn shared<T: Clone + Send + Sync + 'static>() {}
    shared::<Clock>();
    shared::<VirtualClock>();
}

/// Also for who reads while it is stopped, moved and started, from more than one thread.
#[test]
fn a_clock_that_is_stopped_and_started_never_goes_back_and_never_jumps() {
    let hand = StoppableClock::new();
    let done = AtomicBool::new(false);
    // Never advanced, it is never ahead of real time.
    let offset = |clock: &Clock| {
        let tick = clock.now();
        tick.saturating_sub(Clock::monotonic().now())
    };
    let clock = hand.clock();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    hand.stop();
                    hand.start();
                }
            });
        }
        let mut last = clock.now();
        let mut back = 0;
        let mut jump = 0;
        for _ in 0..300_000 {
            jump = jump.max(offset(&clock));
            let now = clock.now();
            back = back.max(last.saturating_sub(now));
            last = now;
        }
        done.store(true, Ordering::Relaxed);
        assert_eq!((back, jump), (0, 0));
    });
}
