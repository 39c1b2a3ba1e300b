//! T-X-23: two reactors with ten thousand threads that have nothing to do take less
//! than 1 % of a processor each, in the modes that sleep.
//!
//! In a process of its own, by the clock of its processor time, over two seconds of
//! real time: what others do on this machine does not count.

use std::time::Duration;

use corespun::app::AppHandle;
use corespun::reactor::ReactorMode;
use corespun::{task, time};
use harness::reactors::app;
use nix::time::{ClockId, clock_gettime};

const THREADS: usize = 10_000;
const REACTORS: u32 = 2;
const SPAN: Duration = Duration::from_secs(2);

fn processor_time() -> Duration {
    let spent = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("every Linux has it");
    Duration::new(spent.tv_sec() as u64, spent.tv_nsec() as u32)
}

async fn idle(app: AppHandle) -> Duration {
    let threads: Vec<_> = (0..THREADS)
        .map(|_| app.thread().create().unwrap())
        .collect();
    for thread in &threads {
        thread.call(|| ()).await.unwrap();
    }
    let placed: usize = app.reactors().stats().iter().map(|one| one.threads).sum();
    assert_eq!(placed, THREADS + 1);
    // Until all of them have gone dormant.
    let mut last = Duration::MAX;
    loop {
        let before = processor_time();
        time::sleep(Duration::from_millis(100)).await;
        let spent = processor_time() - before;
        if spent >= last || spent < Duration::from_millis(1) {
            break;
        }
        last = spent;
    }
    let before = processor_time();
    time::sleep(SPAN).await;
    let spent = processor_time() - before;
    task::yield_now().await;
    spent
}

fn main() {
    for mode in [ReactorMode::Interrupt, ReactorMode::Adaptive] {
        let spent = app(REACTORS as usize, mode).block_on(idle).unwrap();
        let share = 100.0 * spent.as_secs_f64() / SPAN.as_secs_f64() / f64::from(REACTORS);
        println!("{mode:?}: {share:.3} % of a processor per reactor, {THREADS} idle threads");
        assert!(spent < SPAN / 100 * REACTORS, "{mode:?}: {spent:?}");
    }
}
