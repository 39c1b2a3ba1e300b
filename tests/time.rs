//! Timers as futures, exact to the tick on a virtual clock of 1 tick per µs.

use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn, ready};
use std::rc::Rc;
use std::time::Duration;

use corespun::clock::{Clock, VirtualClock};
use corespun::task::{JoinHandle, spawn_local};
use corespun::thread::{ThreadLib, ThreadRunner};
use corespun::time::{
    Elapsed, MissedTickBehavior, interval, interval_at, now, sleep, sleep_until, timeout,
    timeout_at,
};
use futures::executor::block_on;
use futures::poll;

const fn us(us: u64) -> Duration {
    Duration::from_micros(us)
}

fn thread() -> (ThreadRunner, VirtualClock) {
    let (clock, hand) = Clock::virtual_at(1_000_000);
    let library = ThreadLib::builder().clock(clock).build();
    (library.thread().build().unwrap().attach(), hand)
}

/// Polls at the current tick until nothing is left to do at it.
fn settle(runner: &mut ThreadRunner) {
    while runner.poll(0, 0).is_busy() {}
}

fn run_to(runner: &mut ThreadRunner, hand: &VirtualClock, tick: u64) {
    while hand.now() < tick {
        hand.advance(1);
        settle(runner);
    }
}

fn output<T>(handle: JoinHandle<T>) -> T {
    assert!(handle.is_finished());
    block_on(handle).unwrap()
}

#[test]
fn a_sleep_ends_at_its_deadline_and_not_before() {
    let (mut runner, hand) = thread();
    let nap = runner.enter(|| {
        spawn_local(async {
            sleep(us(10)).await;
            now()
        })
    });
    settle(&mut runner);
    run_to(&mut runner, &hand, 9);
    assert!(!nap.is_finished());
    run_to(&mut runner, &hand, 10);
    assert_eq!(output(nap), 10);
}

#[test]
fn a_dropped_sleep_leaves_no_timer() {
    let (mut runner, _hand) = thread();
    let nap = runner.enter(|| spawn_local(sleep(us(10))));
    settle(&mut runner);
    assert_eq!(runner.next_deadline(), Some(10));
    nap.abort();
    settle(&mut runner);
    assert_eq!(runner.next_deadline(), None);
}

#[test]
fn a_reset_sleep_wakes_its_task_at_the_new_deadline_without_another_poll() {
    for deadline in [5, 50] {
        let (mut runner, hand) = thread();
        let shared = Rc::new(RefCell::new(Box::pin(sleep(us(20)))));
        let waited = shared.clone();
        let nap = runner.enter(|| {
            spawn_local(poll_fn(move |cx| {
                waited.borrow_mut().as_mut().poll(cx).map(|()| now())
            }))
        });
        settle(&mut runner);
        runner.enter(|| shared.borrow_mut().reset(deadline));
        run_to(&mut runner, &hand, deadline - 1);
        assert!(!nap.is_finished());
        run_to(&mut runner, &hand, deadline);
        assert_eq!(output(nap), deadline);
    }
}

#[test]
fn a_completed_sleep_can_be_reset_and_waited_for_again() {
    let (mut runner, hand) = thread();
    let nap = runner.enter(|| {
        spawn_local(async {
            let mut sleep = sleep_until(3);
            (&mut sleep).await;
            assert!(sleep.is_elapsed());
            sleep.reset_after(us(4));
            assert!(!sleep.is_elapsed());
            sleep.await;
            now()
        })
    });
    run_to(&mut runner, &hand, 7);
    assert_eq!(output(nap), 7);
}

#[test]
fn a_sleep_follows_the_last_waker_that_polled_it() {
    let (mut runner, hand) = thread();
    let shared = Rc::new(RefCell::new(Box::pin(sleep_until(5))));
    let handles: Vec<_> = (0..2)
        .map(|_| {
            let shared = shared.clone();
            let handle = runner
                .enter(|| spawn_local(poll_fn(move |cx| shared.borrow_mut().as_mut().poll(cx))));
            settle(&mut runner);
            handle
        })
        .collect();
    run_to(&mut runner, &hand, 5);
    assert_eq!(
        handles
            .iter()
            .map(JoinHandle::is_finished)
            .collect::<Vec<_>>(),
        [false, true]
    );
}

#[test]
fn a_timeout_lets_what_is_ready_win_over_a_deadline_that_passed() {
    let (mut runner, hand) = thread();
    hand.set(100);
    let handle = runner.enter(|| spawn_local(timeout_at(50, ready('x'))));
    settle(&mut runner);
    assert_eq!(output(handle), Ok('x'));
}

#[test]
fn a_timeout_ends_what_is_late_and_drops_it() {
    struct Dropped(Rc<Cell<u64>>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.set(now());
        }
    }
    let (mut runner, hand) = thread();
    let dropped = Rc::new(Cell::new(0));
    let late = Dropped(dropped.clone());
    let handle = runner.enter(|| {
        spawn_local(timeout(us(10), async move {
            let _late = late;
            pending::<()>().await
        }))
    });
    settle(&mut runner);
    run_to(&mut runner, &hand, 9);
    assert!(!handle.is_finished());
    run_to(&mut runner, &hand, 10);
    assert_eq!(output(handle), Err(Elapsed));
    assert_eq!(dropped.get(), 10);
    assert_eq!(runner.next_deadline(), None);
}

#[test]
fn a_timeout_made_off_a_thread_counts_from_its_first_poll() {
    let (mut runner, hand) = thread();
    let off_thread = timeout(us(10), pending::<()>());
    assert_eq!(off_thread.deadline(), None);
    hand.set(100);
    let handle = runner.enter(|| spawn_local(off_thread));
    settle(&mut runner);
    run_to(&mut runner, &hand, 109);
    assert!(!handle.is_finished());
    run_to(&mut runner, &hand, 110);
    assert!(handle.is_finished());
}

/// Ticks every 10 µs from 0, and sits out 35 µs after the one at 10. Says when
/// each tick was due and when it was taken.
fn ticks_around_a_gap(missed: MissedTickBehavior) -> Vec<(u64, u64)> {
    let (mut runner, hand) = thread();
    let taken = Rc::new(RefCell::new(Vec::new()));
    let log = taken.clone();
    let _task = runner.enter(|| {
        spawn_local(async move {
            let mut interval = interval(us(10));
            interval.set_missed_tick_behavior(missed);
            loop {
                let due = interval.tick().await;
                log.borrow_mut().push((due, now()));
                if due == 10 {
                    sleep(us(35)).await;
                }
            }
        })
    });
    settle(&mut runner);
    run_to(&mut runner, &hand, 70);
    taken.take()
}

#[test]
fn missed_ticks_burst_are_delayed_or_are_skipped_as_asked() {
    assert_eq!(
        ticks_around_a_gap(MissedTickBehavior::Burst),
        [
            (0, 0),
            (10, 10),
            (20, 45),
            (30, 45),
            (40, 45),
            (50, 50),
            (60, 60),
            (70, 70)
        ]
    );
    assert_eq!(
        ticks_around_a_gap(MissedTickBehavior::Delay),
        [(0, 0), (10, 10), (20, 45), (55, 55), (65, 65)]
    );
    assert_eq!(
        ticks_around_a_gap(MissedTickBehavior::Skip),
        [(0, 0), (10, 10), (20, 45), (50, 50), (60, 60), (70, 70)]
    );
}

#[test]
fn a_tick_taken_late_within_its_period_does_not_move_the_others() {
    for missed in [
        MissedTickBehavior::Burst,
        MissedTickBehavior::Delay,
        MissedTickBehavior::Skip,
    ] {
        let (mut runner, hand) = thread();
        let handle = runner.enter(|| {
            spawn_local(async move {
                let mut interval = interval_at(10, us(10));
                interval.set_missed_tick_behavior(missed);
                sleep_until(19).await;
                assert_eq!(interval.tick().await, 10);
                assert_eq!(interval.tick().await, 20);
                now()
            })
        });
        settle(&mut runner);
        run_to(&mut runner, &hand, 20);
        assert_eq!(output(handle), 20);
    }
}

#[test]
fn a_cancelled_tick_is_not_lost() {
    let (mut runner, hand) = thread();
    let handle = runner.enter(|| {
        spawn_local(async {
            let mut interval = interval_at(10, us(10));
            assert!(poll!(Box::pin(interval.tick())).is_pending());
            assert_eq!(interval.tick().await, 10);
            interval.reset_at(13);
            assert_eq!(interval.tick().await, 13);
            interval.reset();
            assert_eq!(interval.tick().await, 23);
            interval.reset_immediately();
            assert_eq!(interval.tick().await, 23);
            assert_eq!(interval.tick().await, 33);
        })
    });
    settle(&mut runner);
    run_to(&mut runner, &hand, 33);
    output(handle);
}

#[test]
#[should_panic(expected = "period above zero")]
fn an_interval_refuses_a_period_of_zero() {
    let _ = interval(Duration::ZERO);
}

/// Two libraries of one process count in their own ways.
#[test]
fn a_sleep_that_moves_to_another_library_keeps_the_time_it_has_left() {
    let (clock, hand) = Clock::virtual_at(1_000_000);
    hand.advance(1_000_000_000);
    let library = ThreadLib::builder().clock(clock).build();
    let mut first = library.thread().build().unwrap().attach();
    let (clock, hand) = Clock::virtual_at(2_000_000);
    let library = ThreadLib::builder().clock(clock).build();
    let mut other = library.thread().build().unwrap().attach();

    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let mut nap = first.enter(|| Box::pin(sleep(us(5))));
    assert!(first.enter(|| nap.as_mut().poll(&mut cx)).is_pending());
    assert!(other.enter(|| nap.as_mut().poll(&mut cx)).is_pending());
    hand.advance(9);
    other.poll(0, 0);
    assert!(other.enter(|| nap.as_mut().poll(&mut cx)).is_pending());
    hand.advance(1);
    other.poll(0, 0);
    assert!(other.enter(|| nap.as_mut().poll(&mut cx)).is_ready());
    first.poll(0, 0);
}
