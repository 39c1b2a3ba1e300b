//! Reaching reactors: walks over all of them, calls, modes that are awaited, moves to
//! a core.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use corespun::app::AppHandle;
use corespun::clock::Clock;
use corespun::cpu::{self, CpuSet};
use corespun::reactor::{
    ReactorCallError, ReactorMode, ReactorSeat, ReactorWalkError, Reactors, SetModeError,
};
use corespun::sim::Sim;
use corespun::task::{self, block_on};
use corespun::thread::{SetCpumaskError, SpdkThread, ThreadLib};
use futures::channel::oneshot;
use harness::reactors::{app, must_end, stats, wait_until};

fn reactors(library: &ThreadLib, count: usize) -> (Reactors, Vec<ReactorSeat>) {
    let cpu = cpu::available().unwrap().first().unwrap();
    let builder = Reactors::builder().lcores((0..count).map(|core| (core, cpu)));
    builder.mode(ReactorMode::Interrupt).build(library).unwrap()
}

/// T-RE-01, 02, RE-003: they are there before they run; only those asked for.
#[test]
fn reactors_are_found_by_their_core() {
    let (reactors, seats) = reactors(&ThreadLib::new(), 3);
    assert_eq!((reactors.count(), seats.len()), (3, 3));
    for core in 0..3 {
        let reactor = reactors.reactor(core).unwrap();
        assert_eq!((reactor.core(), reactor.stats().backend), (core, None));
        assert!(!reactor.is_current());
    }
    assert_eq!(reactors.reactor(3), None);
}

/// T-RE-07.
#[test]
fn a_walk_visits_every_reactor_in_order_and_ends_where_it_began() {
    must_end(|| {
        let ended = app(5, ReactorMode::Interrupt).block_on(async |app: AppHandle| {
            let reactors = app.reactors();
            let (done, end) = oneshot::channel();
            let visits = Arc::new(Mutex::new(Vec::new()));
            let visited = visits.clone();
            let (walks, count) = (reactors.clone(), visits.clone());
            // From an event of another reactor than the main one.
            let begin = move || {
                let origin = walks.reactor(2).unwrap();
                assert!(origin.is_current());
                let visit = move |reactor: &corespun::reactor::ReactorHandle| {
                    assert!(reactor.is_current() && SpdkThread::current().is_none());
                    visited.lock().unwrap().push(reactor.core());
                };
                let tell = move |walked| {
                    assert_eq!(walked, Ok(()));
                    assert!(origin.is_current());
                    done.send(count.lock().unwrap().len()).unwrap();
                };
                walks.for_each_reactor(visit, tell).unwrap();
            };
            reactors.send_event(2, begin).unwrap();
            (end.await.unwrap(), Arc::into_inner(visits))
        });
        let (seen, visits) = ended.unwrap();
        assert_eq!(seen, 5);
        if let Some(visits) = visits {
            assert_eq!(visits.into_inner().unwrap(), [0, 1, 2, 3, 4]);
        }
    });
}

/// T-RE-07, the other half: nothing happens before the reactors run, and only one event
/// is under way at a time.
#[test]
fn a_walk_goes_from_reactor_to_reactor() {
    must_end(|| {
        let library = ThreadLib::new();
        let (reactors, mut seats) = reactors(&library, 2);
        let count = Arc::new(AtomicUsize::new(0));
        let (walks, visits, end) = (reactors.clone(), count.clone(), count.clone());
        let begin = move || {
            let visit = move |_: &_| _ = visits.fetch_add(1, Ordering::Relaxed);
            let done = move |_| _ = end.fetch_add(10, Ordering::Relaxed);
            walks.for_each_reactor(visit, done).unwrap();
        };
        reactors.send_event(0, begin).unwrap();
        assert_eq!(count.load(Ordering::Relaxed), 0);
        let (second, first) = (seats.pop().unwrap(), seats.pop().unwrap());
        let first = std::thread::spawn(|| first.run().unwrap());
        wait_until(|| count.load(Ordering::Relaxed) == 1);
        // It waits for the second, and so does the end of the first.
        reactors.stop();
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(count.load(Ordering::Relaxed), 1);
        assert!(!first.is_finished());
        second.run().unwrap();
        first.join().unwrap();
        assert_eq!(count.load(Ordering::Relaxed), 12);
    });
}

/// RE-016: SPDK drops such a walk without a word.
#[test]
fn a_walk_is_refused_off_the_reactors_and_once_they_stop() {
    must_end(|| {
        let kept = Arc::new(Mutex::new(None));
        let keep = kept.clone();
        app(2, ReactorMode::Interrupt)
            .run(async move |app: AppHandle| {
                let reactors = app.reactors();
                let elsewhere = reactors.clone();
                let refused =
                    std::thread::spawn(move || elsewhere.for_each_reactor(|_| (), |_| ()));
                while !refused.is_finished() {
                    task::yield_now().await;
                }
                let refused = refused.join().unwrap();
                assert_eq!(refused, Err(ReactorWalkError::NotOnReactor));
                app.stop(0);
                let refused = reactors.for_each_reactor(|_| panic!("visited"), |_| panic!("ended"));
                assert_eq!(refused, Err(ReactorWalkError::Stopping));
                let mode = reactors.set_mode(0, ReactorMode::Poll).await;
                assert!(matches!(mode, Err(SetModeError::Stopping { core: 0 })));
                *keep.lock().unwrap() = Some(reactors);
            })
            .unwrap();
        let reactors = kept.lock().unwrap().take().unwrap();
        let ended = block_on(reactors.call(1, || ()));
        assert!(matches!(ended, Err(ReactorCallError::Ended { core: 1 })));
        let schedulers = block_on(reactors.schedulers().set("dynamic"));
        assert!(schedulers.is_err());
    });
}

/// Its panic is contained, as that of any event, and the walk goes on and tells.
#[test]
fn a_walk_survives_the_panics_of_its_visits() {
    must_end(|| {
        app(3, ReactorMode::Interrupt)
            .block_on(async |app: AppHandle| {
                let (done, end) = oneshot::channel();
                let visits = Arc::new(AtomicUsize::new(0));
                let count = visits.clone();
                let visit = move |reactor: &corespun::reactor::ReactorHandle| {
                    count.fetch_add(1, Ordering::Relaxed);
                    assert_ne!(reactor.core(), 1, "as the test asks");
                };
                let tell = |walked| done.send(walked).unwrap();
                app.reactors().for_each_reactor(visit, tell).unwrap();
                assert_eq!(end.await.unwrap().unwrap_err().stops, 1);
                assert_eq!(visits.load(Ordering::Relaxed), 3);
            })
            .unwrap();
    });
}

/// G6. The reactor that the walk would come back to is gone, and what the walk holds
/// panics while its last visit unwinds.
#[test]
fn a_walk_whose_origin_is_gone_ends_whatever_it_drops() {
    struct Bad(mpsc::Sender<()>);
    impl Drop for Bad {
        fn drop(&mut self) {
            self.0.send(()).unwrap();
            panic!("as the test asks");
        }
    }
    must_end(|| {
        let armed = Arc::new(AtomicBool::new(false));
        let strikes = armed.clone();
        let cpu = cpu::available().unwrap().first().unwrap();
        let builder = Reactors::builder().lcores((0..2).map(|core| (core, cpu)));
        let builder = builder.mode(ReactorMode::Interrupt).sleep_hooks(
            |_| (),
            move |core| assert!(core != 0 || !strikes.load(Ordering::SeqCst), "a hook"),
        );
        let (reactors, seats) = builder.build(&ThreadLib::new()).unwrap();
        let mut seats = seats
            .into_iter()
            .map(|seat| std::thread::spawn(|| drop(seat.run())));
        let (first, second) = (seats.next().unwrap(), seats.next().unwrap());
        let (begun, begins) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let (dropped, drops) = mpsc::channel();
        let (walked, bad) = (reactors.clone(), Bad(dropped));
        let walk = move || {
            let visit = move |reactor: &corespun::reactor::ReactorHandle| {
                if reactor.core() == 1 {
                    begun.send(()).unwrap();
                    let _ = released.recv();
                    panic!("as the test asks");
                }
            };
            walked.for_each_reactor(visit, move |_| drop(bad)).unwrap();
        };
        reactors.send_event(0, walk).unwrap();
        begins.recv().unwrap();
        wait_until(|| stats(&reactors, 0).asleep);
        armed.store(true, Ordering::SeqCst);
        reactors.send_event(0, || ()).unwrap();
        first.join().unwrap();
        assert!(drops.try_recv().is_err());
        drop(release);
        second.join().unwrap();
        assert_eq!(drops.iter().count(), 1);
    });
}

#[test]
fn a_call_brings_its_result_or_says_why_not() {
    must_end(|| {
        app(2, ReactorMode::Interrupt)
            .block_on(async |app: AppHandle| {
                let reactors = app.reactors();
                assert_eq!(reactors.call(1, || 6 * 7).await.unwrap(), 42);
                let on = reactors.call(1, || {
                    assert!(SpdkThread::current().is_none());
                    std::thread::current().name().map(str::to_owned)
                });
                assert_eq!(on.await.unwrap().as_deref(), Some("reactor_1"));
                let missing = reactors.call(9, || ()).await.unwrap_err().to_string();
                let text = "no reactor runs on core 9; there are reactors on cores [0-1]";
                assert_eq!(missing, text);
                let panicked = reactors.call(1, || panic!("no luck")).await;
                let panicked = panicked.unwrap_err().to_string();
                assert_eq!(
                    panicked,
                    "a call to the reactor on core 1 panicked: no luck"
                );
                // Runs all the same.
                let (ran, runs) = oneshot::channel();
                drop(reactors.call(1, move || ran.send(3).unwrap()));
                assert_eq!(runs.await, Ok(3));
            })
            .unwrap();
    });
}

/// As SPDK's: a batch is what was there when it began.
#[test]
fn what_an_event_sends_its_own_core_runs_in_the_next_turn() {
    must_end(|| {
        let order = Arc::new(Mutex::new(Vec::new()));
        let told = order.clone();
        app(1, ReactorMode::Interrupt)
            .block_on(async move |app: AppHandle| {
                let note = |text: &'static str| {
                    let order = told.clone();
                    move || order.lock().unwrap().push(text)
                };
                let reactors = app.reactors();
                let (sender, inner, message) = (
                    reactors.clone(),
                    note("event of the event"),
                    note("message"),
                );
                let (first, thread) = (note("event"), app.app_thread());
                let event = move || {
                    first();
                    sender.send_event(0, inner).unwrap();
                    // The thread is polled before the next turn.
                    thread.send_msg(message).unwrap();
                };
                reactors.send_event(0, event).unwrap();
                let (done, end) = oneshot::channel();
                let last = move || done.send(()).unwrap();
                reactors.call(0, || ()).await.unwrap();
                reactors.send_event(0, last).unwrap();
                end.await.unwrap();
            })
            .unwrap();
        let order = order.lock().unwrap();
        assert_eq!(*order, ["event", "message", "event of the event"]);
    });
}

/// The time of an event is its reactor's own, not a thread's.
#[test]
fn no_thread_is_charged_with_the_time_of_an_event() {
    must_end(|| {
        let (clock, hand) = Clock::virtual_at(1_000_000);
        app(2, ReactorMode::Interrupt)
            .clock(clock)
            .block_on(async move |app: AppHandle| {
                let worker = app.thread().cpumask(CpuSet::single(1)).create().unwrap();
                worker.call(|| ()).await.unwrap();
                let before = (worker.stats(), stats(&app.reactors(), 1));
                let (thread, time) = (worker.clone(), hand.clone());
                let event = move || {
                    // Roused by that, so that it is polled in this turn or the next.
                    thread.send_msg(|| ()).unwrap();
                    time.advance(1_000);
                };
                app.reactors().call(1, event).await.unwrap();
                worker.call(|| ()).await.unwrap();
                let after = (worker.stats(), stats(&app.reactors(), 1));
                assert_eq!(after.0.busy_ticks, before.0.busy_ticks);
                assert_eq!(after.1.busy_ticks - before.1.busy_ticks, 1_000);
            })
            .unwrap();
    });
}

/// RE-020, 021: two at once both take effect, in the order asked, and each is told.
#[test]
fn a_mode_that_was_awaited_is_in_force() {
    must_end(|| {
        app(2, ReactorMode::Interrupt)
            .block_on(async |app: AppHandle| {
                let reactor = app.reactors().reactor(1).unwrap();
                for mode in [ReactorMode::Poll, ReactorMode::Poll, ReactorMode::Adaptive] {
                    reactor.set_mode(mode).await.unwrap();
                    assert_eq!(reactor.mode(), mode);
                }
                let (told, tell) = std::sync::mpsc::channel();
                for mode in [ReactorMode::Poll, ReactorMode::Interrupt] {
                    let (told, here) = (told.clone(), reactor.clone());
                    let done = move |result: Result<(), SetModeError>| {
                        assert!(result.is_ok() && here.is_current());
                        told.send(here.mode()).unwrap();
                    };
                    let set = app.reactors().set_mode_then(1, mode, done);
                    set.unwrap();
                }
                reactor.call(|| ()).await.unwrap();
                let modes: Vec<_> = tell.try_iter().collect();
                assert_eq!(modes, [ReactorMode::Poll, ReactorMode::Interrupt]);
                // A change in an event: not before it is over.
                let here = reactor.clone();
                let during = reactor.call(move || {
                    let change = here.set_mode(ReactorMode::Poll);
                    let mode = here.mode();
                    drop(change);
                    mode
                });
                assert_eq!(during.await.unwrap(), ReactorMode::Interrupt);
                reactor.call(|| ()).await.unwrap();
                assert_eq!(reactor.mode(), ReactorMode::Poll);
            })
            .unwrap();
    });
}

/// Refused by a reactor that never ran, the callback hears of it once.
#[test]
fn a_mode_that_nobody_can_put_in_force_is_told_to_be_refused() {
    let (reactors, seats) = reactors(&ThreadLib::new(), 1);
    let told = Arc::new(AtomicUsize::new(0));
    let count = told.clone();
    let done = move |result: Result<(), SetModeError>| {
        assert!(matches!(result, Err(SetModeError::Stopping { core: 0 })));
        count.fetch_add(1, Ordering::Relaxed);
    };
    reactors.set_mode_then(0, ReactorMode::Poll, done).unwrap();
    let future = reactors.set_mode(0, ReactorMode::Poll);
    drop(seats);
    assert_eq!(told.load(Ordering::Relaxed), 1);
    assert!(block_on(future).is_err());
    let missing = reactors.set_mode_then(4, ReactorMode::Poll, |_| panic!("called"));
    assert!(matches!(
        missing,
        Err(SetModeError::NoReactor { core: 4, .. })
    ));
    assert_eq!(reactors.mode(0), Some(ReactorMode::Interrupt));
}

/// RE-015.
#[test]
fn a_thread_knows_where_it_was_first_and_since_when_it_is_where_it_is() {
    must_end(|| {
        let (clock, hand) = Clock::virtual_at(1_000_000);
        app(3, ReactorMode::Interrupt)
            .clock(clock)
            .block_on(async move |app: AppHandle| {
                let thread = app.thread().cpumask([1, 2].into_iter().collect()).create();
                let thread = thread.unwrap();
                let time = hand.clone();
                thread.call(move || _ = time.advance(50)).await.unwrap();
                thread.call(|| ()).await.unwrap();
                let first = thread.placement().unwrap();
                assert_eq!(first.core, first.initial_core);
                let other = 3 - first.core;
                thread.move_to_core(other).await.unwrap();
                let now = thread.placement().unwrap();
                assert_eq!((now.core, now.initial_core), (other, first.core));
                assert_eq!((now.since, now.baseline.busy_ticks), (50, 50));
                assert_eq!(thread.cpumask(), [1, 2].into_iter().collect());
            })
            .unwrap();
    });
}

#[test]
fn a_move_to_a_core_is_refused_superseded_or_waits() {
    must_end(|| {
        app(3, ReactorMode::Interrupt)
            .block_on(async |app: AppHandle| {
                let mask: CpuSet = [1, 2].into_iter().collect();
                let thread = app.thread().name("one").cpumask(mask).create().unwrap();
                thread.call(|| ()).await.unwrap();
                let here = thread.core().unwrap();
                // There already.
                thread.move_to_core(here).await.unwrap();
                let outside = thread.move_to_core(0).await.unwrap_err().to_string();
                assert_eq!(
                    outside,
                    "thread \"one\" may run on cores [1-2] only, not on core 0"
                );
                for missing in [7, 5_000] {
                    let missing = thread.move_to_core(missing).await;
                    assert!(matches!(missing, Err(SetCpumaskError::NoCore { .. })));
                }
                // Bound, it goes as soon as it is not.
                let stays = thread.spawn_with(std::future::pending::<()>);
                let moving = thread.move_to_core(3 - here);
                thread.call(|| ()).await.unwrap();
                assert_eq!(thread.core(), Some(here));
                let back = thread.move_to_core(here);
                assert!(matches!(
                    moving.await,
                    Err(SetCpumaskError::Superseded { .. })
                ));
                back.await.unwrap();
                let moving = thread.move_to_core(3 - here);
                stays.abort();
                moving.await.unwrap();
                assert_eq!(thread.core(), Some(3 - here));
                let gone = thread.clone();
                thread.exit().await;
                let gone = gone.move_to_core(here).await;
                assert!(matches!(gone, Err(SetCpumaskError::Exited(_))));
            })
            .unwrap();
    });
}

/// RE-023: on real time, because it is the kernel that counts.
#[test]
fn context_switches_are_counted_while_asked() {
    must_end(|| {
        let cpu = cpu::available().unwrap().first().unwrap();
        let sharing = AtomicBool::new(true);
        std::thread::scope(|scope| {
            // Somebody else on the same processor.
            scope.spawn(|| {
                cpu::pin_current_thread(cpu).unwrap();
                while sharing.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
            let counted = app(1, ReactorMode::Poll).run(async |app: AppHandle| {
                std::thread::spawn(move || {
                    let reactors = app.reactors();
                    assert!(reactors.monitors_context_switches());
                    wait_until(|| stats(&reactors, 0).involuntary_switches > 0);
                    reactors.monitor_context_switches(false);
                    assert!(!reactors.monitors_context_switches());
                    app.stop(0);
                });
            });
            sharing.store(false, Ordering::Relaxed);
            assert_eq!(counted.unwrap(), 0);
        });
    });
}

/// A simulation within an event: afterwards it is still the event of this reactor.
#[test]
fn a_simulation_within_an_event_leaves_its_reactor_current() {
    let seen = must_end(|| {
        let app = app(1, ReactorMode::Interrupt);
        let run = app.block_on(async |app: AppHandle| {
            let reactor = app.reactors().reactor(0).unwrap();
            let here = reactor.clone();
            let call = reactor.call(move || {
                let before = here.is_current();
                let mut sim = Sim::builder().build();
                sim.reactors().send_event(0, || ()).unwrap();
                sim.run_until_idle().unwrap();
                (before, here.is_current())
            });
            call.await.unwrap()
        });
        run.unwrap()
    });
    assert_eq!(seen, (true, true));
}
