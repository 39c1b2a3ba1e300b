//! Shares of a reactor's time, latency limits and slices, on a reactor whose clock is moved
//! by what runs on it: each piece of work takes as long as it says.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use corespun::app::{App, AppHandle};
use corespun::clock::{Clock, VirtualClock};
use corespun::reactor::ReactorMode;
use corespun::task::{should_yield, yield_now};
use corespun::thread::{CreateError, Poller, SendPoller, SharesError, SpdkThread};
use corespun::time::sleep;
use harness::threads::{library, us};

/// Runs `body` on one reactor, with the hand of its clock of a tick per ns.
fn on_one_reactor<R: Send + 'static>(
    body: impl AsyncFnOnce(AppHandle, VirtualClock) -> R + Send + 'static,
) -> R {
    let (clock, hand) = Clock::virtual_at(1_000_000_000);
    let app = App::builder()
        .clock(clock)
        .mode(ReactorMode::Poll)
        .handle_signals(false);
    app.block_on(async move |app: AppHandle| body(app, hand).await)
        .unwrap()
}

/// Keeps `thread` busy with pieces of work of so many µs each.
fn works_without_end(thread: &SpdkThread, hand: &VirtualClock, piece: u64) {
    let hand = hand.clone();
    let spawned = thread.spawn_detached(async move || {
        loop {
            hand.advance_by(us(piece));
            yield_now().await;
        }
    });
    assert!(spawned.is_ok());
}

fn busy(thread: &SpdkThread) -> u64 {
    thread.stats().busy_ticks
}

/// What each of some threads gets of 100 ms, in ns: shares, and how long a piece of its
/// work takes.
fn gets(threads: &'static [(u32, u64)]) -> Vec<u64> {
    on_one_reactor(async move |app, hand| {
        let make = |&(shares, piece): &(u32, u64)| {
            let thread = app.thread().shares(shares).create().unwrap();
            works_without_end(&thread, &hand, piece);
            thread
        };
        let threads: Vec<_> = threads.iter().map(make).collect();
        // Until all are there.
        sleep(us(10_000)).await;
        let before: Vec<_> = threads.iter().map(busy).collect();
        sleep(us(100_000)).await;
        let after = threads.iter().map(busy);
        after
            .zip(before)
            .map(|(after, before)| after - before)
            .collect()
    })
}

#[track_caller]
fn is_about(value: u64, expected: u64) {
    let percent = value.abs_diff(expected) * 100 / expected;
    assert!(percent <= 5, "{value} is {percent} % from {expected}");
}

#[test]
fn time_is_shared_one_to_two_to_four() {
    let got = gets(&[(100, 1), (200, 1), (400, 1)]);
    let whole: u64 = got.iter().sum();
    for (got, share) in got.iter().zip([1, 2, 4]) {
        is_about(*got, whole * share / 7);
    }
}

#[test]
fn time_is_shared_one_to_a_hundred() {
    let got = gets(&[(10, 1), (1000, 1)]);
    is_about(got[1], 100 * got[0]);
}

#[test]
fn time_not_polls_is_shared_also_where_nobody_asked_for_shares() {
    let got = gets(&[(100, 3), (100, 97)]);
    is_about(got[0], got[1]);
}

#[test]
fn a_thread_that_was_idle_has_saved_nothing_up() {
    let (late, early) = on_one_reactor(async |app, hand| {
        let [early, late] = [(); 2].map(|()| app.thread().create().unwrap());
        works_without_end(&early, &hand, 1);
        sleep(us(500_000)).await;
        works_without_end(&late, &hand, 1);
        sleep(us(10_000)).await;
        let before = (busy(&late), busy(&early));
        sleep(us(100_000)).await;
        (busy(&late) - before.0, busy(&early) - before.1)
    });
    is_about(late, early);
}

#[test]
fn shares_change_while_threads_work() {
    let (one, other) = on_one_reactor(async |app, hand| {
        let [one, other] = [(); 2].map(|()| app.thread().create().unwrap());
        works_without_end(&one, &hand, 1);
        works_without_end(&other, &hand, 1);
        sleep(us(10_000)).await;
        one.set_shares(300).unwrap();
        sleep(us(10_000)).await;
        let before = (busy(&one), busy(&other));
        sleep(us(100_000)).await;
        (busy(&one) - before.0, busy(&other) - before.1)
    });
    is_about(one, 3 * other);
}

/// With a callback that cannot be interrupted, and one that could be.
#[test]
fn a_latency_limit_is_kept_as_far_as_callbacks_are_short() {
    for (piece, kept) in [(10, true), (5_000, false)] {
        let misses = on_one_reactor(async move |app, hand| {
            let hog = app.thread().name("hog").shares(1000).create().unwrap();
            // A poll of these is 8 pieces.
            for _ in 0..16 {
                works_without_end(&hog, &hand, piece);
            }
            let quick = app
                .thread()
                .name("quick")
                .shares(1)
                .latency(us(100))
                .create()
                .unwrap();
            works_without_end(&quick, &hand, 1);
            sleep(us(200_000)).await;
            quick.latency_misses()
        });
        if kept {
            assert_eq!(misses.count, 0, "{misses:?}");
        } else {
            assert!(misses.count > 10, "{misses:?}");
            assert_eq!(misses.cause.as_deref(), Some("hog"));
            assert_eq!(misses.held, us(5_000));
            assert!(misses.longest >= us(5_000));
        }
    }
}

/// Each of 20 pollers of 50 µs has its turn all the same.
#[test]
fn a_latency_limit_cuts_a_round_of_pollers_and_the_next_goes_on_with_it() {
    let (misses, runs) = on_one_reactor(async move |app, hand| {
        let polls = app.thread().name("polls").create().unwrap();
        let runs: Arc<Vec<AtomicU64>> = Arc::new((0..20).map(|_| AtomicU64::new(0)).collect());
        let counts = runs.clone();
        let registered = polls.call(move || {
            let one = |n: usize| {
                let (hand, runs) = (hand.clone(), counts.clone());
                let poller = SendPoller::active(move || {
                    hand.advance_by(us(50));
                    runs[n].fetch_add(1, Ordering::Relaxed);
                    true
                });
                poller.unwrap()
            };
            (0..20).map(one).collect::<Vec<_>>()
        });
        let _pollers = registered.await.unwrap();
        let quick = app
            .thread()
            .name("quick")
            .latency(us(200))
            .create()
            .unwrap();
        // Awake, with nothing to do.
        let looks = quick.call(|| SendPoller::active(|| false).unwrap());
        let _looks = looks.await.unwrap();
        sleep(us(200_000)).await;
        let runs = runs.iter().map(|runs| runs.load(Ordering::Relaxed));
        (quick.latency_misses(), runs.collect::<Vec<_>>())
    });
    assert_eq!(misses.count, 0, "{misses:?}");
    let (least, most) = (runs.iter().min().unwrap(), runs.iter().max().unwrap());
    assert!(*least > 100 && most - least <= 2, "{runs:?}");
}

/// Nor do the events of a turn keep it waiting longer than one of them.
#[test]
fn a_latency_limit_goes_before_further_events() {
    let (misses, order) = on_one_reactor(async move |app, hand| {
        let quick = app
            .thread()
            .name("quick")
            .latency(us(200))
            .create()
            .unwrap();
        let looks = quick.call(|| SendPoller::active(|| false).unwrap());
        let _looks = looks.await.unwrap();
        let core = app.reactors().cores().first().unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        for n in 0..40 {
            let (hand, order) = (hand.clone(), order.clone());
            let event = move || {
                hand.advance_by(us(90));
                order.lock().unwrap().push(n);
            };
            app.reactors().send_event(core, event).unwrap();
        }
        app.reactors().call(core, || ()).await.unwrap();
        let order = order.lock().unwrap().clone();
        (quick.latency_misses(), order)
    });
    assert_eq!(misses.count, 0, "{misses:?}");
    assert_eq!(order, (0..40).collect::<Vec<_>>());
}

/// One that cannot be interrupted is a miss with nobody's name.
#[test]
fn an_event_that_takes_too_long_is_a_miss() {
    let misses = on_one_reactor(async move |app, hand| {
        let quick = app.thread().latency(us(200)).create().unwrap();
        let looks = quick.call(|| SendPoller::active(|| false).unwrap());
        let _looks = looks.await.unwrap();
        hand.advance_by(us(1));
        quick.call(|| ()).await.unwrap();
        let core = app.reactors().cores().first().unwrap();
        let event = move || _ = hand.advance_by(us(5_000));
        app.reactors().call(core, event).await.unwrap();
        quick.call(|| ()).await.unwrap();
        quick.latency_misses()
    });
    assert_eq!((misses.count, misses.cause), (1, None));
    assert_eq!(misses.held, us(5_000));
}

/// The machine was suspended while one of two was polled: that one need not make up for all
/// of it.
#[test]
fn a_pause_of_the_machine_is_nobodys_debt_for_long() {
    let (late, early) = on_one_reactor(async |app, hand| {
        let [paused, other] = [(); 2].map(|()| app.thread().create().unwrap());
        works_without_end(&paused, &hand, 1);
        works_without_end(&other, &hand, 1);
        sleep(us(10_000)).await;
        let stops = hand.clone();
        let stopped = paused.call(move || _ = stops.advance_by(us(3_600_000_000)));
        stopped.await.unwrap();
        // What a thread makes up for at most, and a little.
        sleep(us(110_000)).await;
        let before = (busy(&paused), busy(&other));
        sleep(us(100_000)).await;
        (busy(&paused) - before.0, busy(&other) - before.1)
    });
    is_about(late, early);
}

/// Nor need a thread make up for all that its latency limit has taken from another, piece by
/// piece, when it has none any more.
#[test]
fn what_a_latency_limit_took_is_nobodys_debt_for_long() {
    let (late, early) = on_one_reactor(async |app, hand| {
        let hurried = app.thread().latency(us(10)).create().unwrap();
        let other = app.thread().create().unwrap();
        works_without_end(&hurried, &hand, 40);
        works_without_end(&other, &hand, 10);
        sleep(us(1_000_000)).await;
        hurried.set_latency(None);
        sleep(us(110_000)).await;
        let before = (busy(&hurried), busy(&other));
        sleep(us(100_000)).await;
        (busy(&hurried) - before.0, busy(&other) - before.1)
    });
    is_about(late, early);
}

/// Which is what a program would see that sleeps most of the time.
#[test]
fn a_thread_that_waits_for_nobody_misses_nothing() {
    let misses = on_one_reactor(async |app, hand| {
        let quick = app.thread().latency(us(100)).create().unwrap();
        quick.call(|| ()).await.unwrap();
        hand.advance_by(us(1_000_000));
        quick.call(|| ()).await.unwrap();
        quick.latency_misses()
    });
    assert_eq!(misses.count, 0, "{misses:?}");
}

/// Nor does one that had no limit for a while, during which it was polled all the same.
#[test]
fn a_limit_that_is_set_again_misses_nothing_of_the_time_between() {
    let misses = on_one_reactor(async |app, hand| {
        let [quick, other] = [(); 2].map(|()| app.thread().latency(us(1_000)).create().unwrap());
        let slow = app.thread().create().unwrap();
        for (thread, piece) in [(&quick, 1), (&other, 1), (&slow, 10)] {
            works_without_end(thread, &hand, piece);
        }
        sleep(us(10_000)).await;
        quick.set_latency(None);
        sleep(us(100_000)).await;
        quick.set_latency(Some(us(1_000)));
        sleep(us(10_000)).await;
        quick.latency_misses()
    });
    assert_eq!(misses.count, 0, "{misses:?}");
}

#[test]
fn who_asks_is_told_when_its_slice_is_used() {
    let alone = on_one_reactor(async |_, hand| {
        hand.advance_by(us(1_000_000));
        should_yield()
    });
    assert!(!alone);
    let steps = on_one_reactor(async |app, hand| {
        let [long, other] = [(); 2].map(|()| app.thread().create().unwrap());
        works_without_end(&other, &hand, 1);
        let loops = long.spawn_with(async move || {
            // The first poll of a task begins anywhere in the slice.
            yield_now().await;
            let mut steps = 0;
            while !should_yield() {
                hand.advance_by(us(1));
                steps += 1;
            }
            steps
        });
        loops.await.unwrap()
    });
    assert!((1..=50).contains(&steps), "{steps}");
}

/// Messages that wait behind the one that asked run in the next poll; so do timers, and
/// nothing is lost.
#[test]
fn a_poll_whose_slice_is_used_ends_and_loses_nothing() {
    let order = on_one_reactor(async |app, hand| {
        let [thread, other] = [(); 2].map(|()| app.thread().create().unwrap());
        works_without_end(&other, &hand, 1);
        let order = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        for n in 0..20 {
            let (order, hand) = (order.clone(), hand.clone());
            thread
                .send_msg(move || {
                    hand.advance_by(us(100));
                    let used = should_yield();
                    order.lock().unwrap().push((n, used));
                })
                .unwrap();
        }
        thread.call(|| ()).await.unwrap();
        let order = order.lock().unwrap();
        order.clone()
    });
    assert_eq!(order, (0..20).map(|n| (n, true)).collect::<Vec<_>>());
}

#[test]
fn numbers_of_shares_that_nobody_can_have_are_refused() {
    let library = library().0;
    for shares in [0, 1001, u32::MAX] {
        let refused = library.thread().shares(shares).build().unwrap_err();
        assert!(matches!(refused, CreateError::Shares(SharesError(n)) if n == shares));
        assert!(refused.to_string().contains("1 to 1000"), "{refused}");
    }
    assert_eq!(library.thread_count(), 0);
    let thread = library.thread().build().unwrap();
    assert!(thread.handle().set_shares(0).is_err());
    assert_eq!(thread.handle().shares(), 100);
    thread.handle().set_latency(Some(us(7)));
    assert_eq!(thread.handle().latency(), Some(us(7)));
    assert_eq!(thread.handle().shares(), 100);
    thread.handle().set_latency(None);
    assert_eq!(thread.handle().latency(), None);
}

/// A poller that works without end, too.
#[test]
fn an_exit_and_a_critical_message_wait_for_no_share() {
    static HEARD: AtomicBool = AtomicBool::new(false);
    on_one_reactor(async |app, hand| {
        let few = app.thread().shares(1).create().unwrap();
        let many = app.thread().shares(1000).create().unwrap();
        let advances = hand.clone();
        few.call(move || {
            let poller = Poller::active(move || {
                advances.advance_by(us(1_000));
                true
            });
            poller.unwrap().detach();
        })
        .await
        .unwrap();
        works_without_end(&many, &hand, 1);
        sleep(us(10_000)).await;
        // It is far ahead now: its shares alone would have it wait for a second.
        let begun = hand.now();
        few.send_critical_msg(|| HEARD.store(true, Ordering::Relaxed))
            .unwrap();
        while !HEARD.load(Ordering::Relaxed) {
            sleep(us(10)).await;
        }
        assert!(hand.now() - begun < 10_000_000, "{}", hand.now() - begun);
    });
}

/// One that has had far more than its share.
#[test]
fn an_exit_that_has_begun_does_not_sit_out() {
    let waited = on_one_reactor(async |app, hand| {
        let [ahead, other] = [(); 2].map(|()| app.thread().create().unwrap());
        works_without_end(&other, &hand, 1_000);
        sleep(us(10_000)).await;
        ahead.set_shares(1).unwrap();
        // More than one step of the exit can cancel.
        for _ in 0..1_000 {
            ahead.spawn_detached(std::future::pending::<()>).unwrap();
        }
        let (before, long) = (other.clone(), hand.clone());
        let begun = ahead.call(move || {
            // 6 s of the other's time, which is more than the time limit of an exit.
            long.advance_by(us(60_000));
            drop(SpdkThread::current().map(|thread| thread.exit()));
            busy(&before)
        });
        let begun = begun.await.unwrap();
        ahead.exit().await;
        busy(&other) - begun
    });
    assert!(waited < 1_000_000_000, "{waited} ns");
}
