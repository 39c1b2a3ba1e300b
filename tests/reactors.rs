//! What the reactors guarantee: placement, events, accounting, sleeping and
//! waking. On the virtual clock where time matters, in poll mode, because
//! virtual time does not wake anybody.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use corespun::app::AppHandle;
use corespun::clock::Clock;
use corespun::cpu::{self, CpuSet};
use corespun::io::DriverConfig;
use corespun::reactor::{EventError, ReactorMode, ReactorSeat, Reactors, SetModeError};
use corespun::thread::{Activity, CreateError, PanicSource, Poller, SpdkThread, ThreadLib};
use corespun::{task, time};
use harness::io::backends;
use harness::reactors::{app, must_end, stats, wait_until};

const MODES: [ReactorMode; 3] = [
    ReactorMode::Poll,
    ReactorMode::Adaptive,
    ReactorMode::Interrupt,
];

/// Makes a thread on `core`.
fn thread_on(app: &AppHandle, core: usize) -> SpdkThread {
    let cpumask = CpuSet::single(core);
    app.thread().cpumask(cpumask).create().unwrap()
}

/// The name of the OS thread that polls `thread`.
async fn os_thread_of(thread: &SpdkThread) -> String {
    let name = thread.spawn(async { std::thread::current().name().map(str::to_owned) });
    name.await.unwrap().unwrap()
}

/// T-RE-04: with five reactors, a thread that may only run on core 3 is polled
/// by the reactor of core 3.
#[test]
fn a_thread_is_placed_on_a_core_of_its_mask() {
    app(5, ReactorMode::Interrupt)
        .block_on(async |app: AppHandle| {
            let thread = thread_on(&app, 3);
            assert_eq!(os_thread_of(&thread).await, "reactor_3");
            let reactors = app.reactors().stats();
            let threads: Vec<_> = reactors.iter().map(|stats| stats.threads).collect();
            assert_eq!(threads, [1, 0, 0, 1, 0], "the app thread, and the new one");
        })
        .unwrap();
}

/// RE-012: the cursor moves past every core it visits, so that cores outside
/// of the mask do not make a neighbour's share larger.
#[test]
fn threads_are_spread_evenly_over_the_cores_of_their_mask() {
    app(5, ReactorMode::Interrupt)
        .block_on(async |app: AppHandle| {
            let mask: CpuSet = [2, 4].into_iter().collect();
            for round in 0..6 {
                let thread = app.thread().cpumask(mask).create().unwrap();
                let expected = ["reactor_2", "reactor_4"][round % 2];
                assert_eq!(os_thread_of(&thread).await, expected, "thread {round}");
            }
        })
        .unwrap();
}

/// SPDK places such a thread anywhere; here the caller learns of it.
#[test]
fn a_mask_without_a_reactor_is_an_error_that_names_thread_and_cores() {
    app(2, ReactorMode::Interrupt)
        .block_on(async |app: AppHandle| {
            let before = app.library().thread_count();
            let refused = app
                .thread()
                .name("lost")
                .cpumask(CpuSet::single(9))
                .create();
            let error = refused.unwrap_err();
            assert!(matches!(error, CreateError::NoCore { .. }));
            let text = error.to_string();
            for part in ["\"lost\"", "[9]", "[0-1]"] {
                assert!(text.contains(part), "{part} in {text}");
            }
            assert_eq!(
                app.library().thread_count(),
                before,
                "nothing is left of it"
            );
        })
        .unwrap();
}

/// RE-001.
#[test]
fn there_is_one_thread_per_core_and_reactors_are_named_after_their_core() {
    app(3, ReactorMode::Interrupt)
        .block_on(async |app: AppHandle| {
            let threads = app.reactors().thread_per_core("worker").unwrap();
            let names: Vec<_> = threads.iter().map(|thread| thread.name()).collect();
            assert_eq!(names, ["worker_0", "worker_1", "worker_2"]);
            for (core, thread) in threads.iter().enumerate() {
                let place = thread.spawn(async {
                    let name = nix::sys::prctl::get_name().unwrap();
                    (
                        name.into_string().unwrap(),
                        cpu::current_affinity().unwrap(),
                    )
                });
                let (name, affinity) = place.await.unwrap();
                assert_eq!(name, format!("reactor_{core}"));
                assert_eq!(
                    affinity.iter().next(),
                    Some(stats(&app.reactors(), core).cpu)
                );
                assert_eq!(affinity.count(), 1);
            }
        })
        .unwrap();
}

/// T-RE-03 and RE-004, RE-008: more events than one batch, to the own core and
/// to another one.
#[test]
fn events_run_once_in_the_order_sent_with_no_thread_current() {
    must_end(|| {
        app(2, ReactorMode::Interrupt)
            .run(async |app: AppHandle| {
                let reactors = app.reactors();
                for core in [0, 1] {
                    let seen = Arc::new(Mutex::new(Vec::new()));
                    let (done, ended) = futures::channel::oneshot::channel();
                    for number in 0..20 {
                        let seen = seen.clone();
                        let record = move || {
                            assert!(SpdkThread::current().is_none());
                            seen.lock().unwrap().push(number);
                        };
                        reactors.send_event(core, record).unwrap();
                    }
                    reactors
                        .send_event(core, move || done.send(()).unwrap())
                        .unwrap();
                    ended.await.unwrap();
                    let expected: Vec<_> = (0..20).collect();
                    assert_eq!(*seen.lock().unwrap(), expected, "on core {core}");
                }
                app.stop(0);
            })
            .unwrap();
    });
}

/// Counts the turns of the current thread's reactor, each of which polls it once.
fn count_turns() -> (Poller, Arc<AtomicUsize>) {
    let turns = Arc::new(AtomicUsize::new(0));
    let counted = turns.clone();
    let count = move || {
        counted.fetch_add(1, Ordering::Relaxed);
        Activity::Ignored
    };
    (Poller::active(count).unwrap(), turns)
}

/// T-RE-03, RE-008: `SPDK_EVENT_BATCH_SIZE`.
#[test]
fn a_turn_runs_eight_events() {
    must_end(|| {
        let batches = app(1, ReactorMode::Poll).block_on(async |app: AppHandle| {
            let (_poller, turns) = count_turns();
            let seen = Arc::new(Mutex::new(Vec::new()));
            let (done, ended) = futures::channel::oneshot::channel();
            // The reactor runs this task, so it takes no event meanwhile.
            for _ in 0..20 {
                let (seen, turns) = (seen.clone(), turns.clone());
                let event = move || seen.lock().unwrap().push(turns.load(Ordering::Relaxed));
                app.reactors().send_event(0, event).unwrap();
            }
            let last = move || done.send(()).unwrap();
            app.reactors().send_event(0, last).unwrap();
            ended.await.unwrap();
            let seen = seen.lock().unwrap();
            seen.chunk_by(|a, b| a == b).map(<[_]>::len).collect()
        });
        let batches: Vec<_> = batches.unwrap();
        assert_eq!(batches, [8, 8, 4]);
    });
}

/// Making many threads at once costs as much for each as making one: a turn
/// polls every thread, so they must not arrive a few in each.
#[test]
fn threads_made_at_once_arrive_within_few_turns() {
    const THREADS: usize = 4_000;
    must_end(|| {
        let took = app(1, ReactorMode::Poll).block_on(async |app: AppHandle| {
            let (_poller, turns) = count_turns();
            let calls = (0..THREADS).map(|_| app.thread().create().unwrap().call(|| ()));
            let calls: Vec<_> = calls.collect();
            // Answers that are there take no turn, however many.
            let answers = task::unconstrained(async move {
                for call in calls {
                    call.await.unwrap();
                }
            });
            answers.await;
            turns.load(Ordering::Relaxed)
        });
        let took = took.unwrap();
        assert!(took < 20, "{took} turns");
    });
}

/// G3, for events: no such reactor, and a reactor that has ended.
#[test]
fn an_event_that_cannot_be_sent_comes_back() {
    let kept = Arc::new(Mutex::new(None));
    let keep = kept.clone();
    app(1, ReactorMode::Interrupt)
        .block_on(async move |app: AppHandle| {
            let refused = app.reactors().send_event(7, || ());
            let error = refused.unwrap_err();
            assert_eq!(
                error.to_string(),
                "no reactor runs on core 7; there are reactors on cores [0]"
            );
            *keep.lock().unwrap() = Some(app.reactors());
        })
        .unwrap();
    let reactors = kept.lock().unwrap().take().unwrap();
    let ran = Arc::new(AtomicBool::new(false));
    let witness = ran.clone();
    let refused = reactors.send_event(0, move || witness.store(true, Ordering::Relaxed));
    let error = refused.unwrap_err();
    assert!(matches!(error, EventError::Ended { core: 0, .. }));
    error.into_event()();
    assert!(ran.load(Ordering::Relaxed));
}

/// G3: the limit of outstanding events is SPDK's ring size, and the event
/// beyond it comes back.
#[test]
fn events_beyond_the_limit_come_back() {
    must_end(|| {
        app(1, ReactorMode::Interrupt)
            .block_on(async |app: AppHandle| {
                // The reactor runs this task, so it takes no event meanwhile.
                let sent = (0..)
                    .find_map(|sent| app.reactors().send_event(0, || ()).err().map(|e| (sent, e)));
                let (sent, error) = sent.unwrap();
                assert_eq!(sent, 65_536);
                assert!(matches!(error, EventError::Full { core: 0, .. }));
                let mut event = error.into_event();
                while let Err(error) = app.reactors().send_event(0, event) {
                    event = error.into_event();
                    task::yield_now().await;
                }
            })
            .unwrap();
    });
}

/// G6.
#[test]
fn a_panic_in_an_event_leaves_the_reactor_running() {
    must_end(|| {
        app(2, ReactorMode::Interrupt)
            .block_on(async |app: AppHandle| {
                for core in [0, 1] {
                    let reactors = app.reactors();
                    reactors.send_event(core, || panic!("in an event")).unwrap();
                    let thread = thread_on(&app, core);
                    thread.spawn(async {}).await.unwrap();
                }
            })
            .unwrap();
    });
}

/// T-RE-08, through an app: each tick is the busy or idle time of one thread, and
/// of the reactor, exactly. The app thread, which is polled first, takes no time.
/// (A reactor without any thread: in `src/reactor/turn.rs`.)
#[test]
fn the_time_of_every_thread_and_of_the_reactor_is_accounted_for() {
    // A tick is a nanosecond: so little that nobody sits out a turn for its share.
    let (clock, hand) = Clock::virtual_at(1_000_000_000);
    hand.set(100);
    app(1, ReactorMode::Poll)
        .clock(clock)
        .block_on(async move |app: AppHandle| {
            // The pass that the pollers of both threads may make next.
            let pass = Arc::new(AtomicUsize::new(0));
            let hand = Arc::new(hand);
            let mut threads = Vec::new();
            for plan in [
                [(100, Activity::Busy), (200, Activity::Idle)],
                [(300, Activity::Idle), (400, Activity::Busy)],
            ] {
                let thread = app.thread().create().unwrap();
                let (hand, pass) = (hand.clone(), pass.clone());
                let (registered, ready) = futures::channel::oneshot::channel();
                drop(thread.spawn_with(async move || {
                    let mut done = 0;
                    let _poller = Poller::active(move || {
                        if done == pass.load(Ordering::Relaxed) {
                            return Activity::Ignored;
                        }
                        let (ticks, activity) = plan[done];
                        done += 1;
                        hand.advance(ticks);
                        activity
                    });
                    registered.send(()).unwrap();
                    std::future::pending::<()>().await
                }));
                ready.await.unwrap();
                threads.push(thread);
            }
            // A task that yields beside an active poller runs again in the next turn,
            // in which every thread has been polled once.
            let _poller = Poller::active(|| Activity::Ignored);
            let reactors = app.reactors();
            let turn = async |passes| {
                pass.store(passes, Ordering::Relaxed);
                task::yield_now().await;
                let thread = |index: usize| {
                    let stats = threads[index].stats();
                    (
                        threads[index].last_tick(),
                        stats.busy_ticks,
                        stats.idle_ticks,
                    )
                };
                let reactor = stats(&reactors, 0);
                (
                    thread(0),
                    thread(1),
                    (reactor.busy_ticks, reactor.idle_ticks),
                )
            };
            assert_eq!(turn(0).await, ((100, 0, 0), (100, 0, 0), (0, 0)));
            assert_eq!(turn(1).await, ((200, 100, 0), (500, 0, 300), (100, 300)));
            assert_eq!(
                turn(2).await,
                ((700, 100, 200), (1100, 400, 300), (500, 500))
            );
            assert_eq!(hand.now(), 1100);
        })
        .unwrap();
}

/// T-RE-09: a poller that is busy, 10 ticks a call, in the first 200 of each
/// 1000 ticks, and idle, one tick a call, in the rest.
#[test]
fn polls_are_chained_without_a_gap() {
    let (clock, hand) = Clock::virtual_at(1_000_000);
    app(1, ReactorMode::Poll)
        .clock(clock)
        .block_on(async move |app: AppHandle| {
            let thread = app.thread().create().unwrap();
            let work = async move || {
                let (mut done, ended) = futures::channel::mpsc::channel(1);
                let poller = Poller::active(move || match hand.now() {
                    3000 => {
                        let _ = done.try_send(());
                        Activity::Ignored
                    }
                    now if now % 1000 < 200 => {
                        hand.advance(10);
                        Activity::Busy
                    }
                    _ => {
                        hand.advance(1);
                        Activity::Idle
                    }
                });
                let poller = poller.unwrap();
                let mut ended = ended;
                futures::StreamExt::next(&mut ended).await;
                poller.stats().busy_count
            };
            let busy = thread.spawn_with(work).await.unwrap();
            assert_eq!(busy, 3 * 20);
            let spent = thread.stats();
            // The first pass is part of the poll that registers the poller.
            assert_eq!((spent.busy_ticks, spent.idle_ticks), (600, 2400));
            assert_eq!(thread.last_tick(), 3000);
            let reactor = stats(&app.reactors(), 0);
            assert_eq!((reactor.busy_ticks, reactor.idle_ticks), (600, 2400));
        })
        .unwrap();
}

/// T-X-23: nothing happens in a sleeping reactor, not even a turn, which would
/// poll its thread. It sleeps on real time because it is sleeping that is watched.
#[test]
fn an_idle_reactor_that_may_sleep_makes_no_turn() {
    for mode in [ReactorMode::Interrupt, ReactorMode::Adaptive] {
        for backend in backends() {
            must_end(move || {
                app(1, mode)
                    .io(DriverConfig::new().backend(backend))
                    .run(async |app: AppHandle| {
                        std::thread::spawn(move || {
                            let reactors = app.reactors();
                            wait_until(|| stats(&reactors, 0).asleep);
                            let look = || (stats(&reactors, 0), app.app_thread().last_tick());
                            let (before, polled) = look();
                            std::thread::sleep(Duration::from_millis(50));
                            let (after, polled_again) = look();
                            let same = before.busy_ticks == after.busy_ticks
                                && polled == polled_again
                                && after.asleep;
                            app.stop(i32::from(!same));
                        });
                    })
                    .map(|code| assert_eq!(code, 0, "{mode:?} on {backend:?}"))
                    .unwrap();
            });
        }
    }
}

/// The other half of T-X-23.
#[test]
fn a_reactor_in_poll_mode_never_sleeps() {
    must_end(|| {
        let code = app(1, ReactorMode::Poll).run(async |app: AppHandle| {
            std::thread::spawn(move || {
                let reactors = app.reactors();
                let mut slept = false;
                let mut looks = 0;
                wait_until(|| {
                    let now = stats(&reactors, 0);
                    slept |= now.asleep;
                    looks += 1;
                    looks > 50 && now.idle_ticks > 0
                });
                app.stop(i32::from(slept));
            });
        });
        assert_eq!(code.unwrap(), 0);
    });
}

/// Nothing but the timer can end these sleeps.
#[test]
fn a_timer_bounds_the_sleep_in_every_mode() {
    for mode in MODES {
        for backend in backends() {
            must_end(move || {
                app(1, mode)
                    .io(DriverConfig::new().backend(backend))
                    .block_on(async |app: AppHandle| {
                        let clock = app.library().clock().clone();
                        let before = clock.now();
                        let nap = Duration::from_millis(2);
                        let rings = Rc::new(Cell::new(0));
                        let ring = rings.clone();
                        let _bell = Poller::timed(Duration::from_micros(300), move || {
                            ring.set(ring.get() + 1);
                        });
                        time::sleep(nap).await;
                        assert!(clock.now() - before >= clock.ticks_from(nap), "never early");
                        while rings.get() < 3 {
                            time::sleep(Duration::from_micros(100)).await;
                        }
                    })
                    .unwrap();
            });
        }
    }
}

/// DESIGN 4.4: an active poller has no descriptor that could wake the reactor,
/// so the reactor stays awake for it; once it is paused, the reactor sleeps.
#[test]
fn an_active_poller_keeps_its_reactor_awake_until_it_is_paused() {
    must_end(|| {
        app(1, ReactorMode::Interrupt)
            .block_on(async |app: AppHandle| {
                let (mut enough, mut reached) = futures::channel::mpsc::channel(1);
                let runs = Cell::new(0);
                let poller = Poller::active(move || {
                    runs.set(runs.get() + 1);
                    if runs.get() == 1000 {
                        enough.try_send(()).unwrap();
                    }
                    Activity::Idle
                });
                let poller = poller.unwrap();
                futures::StreamExt::next(&mut reached).await.unwrap();
                poller.pause();
                let (awake, slept) = futures::channel::oneshot::channel();
                let reactors = app.reactors();
                std::thread::spawn(move || {
                    wait_until(|| stats(&reactors, 0).asleep);
                    awake.send(()).unwrap();
                });
                slept.await.unwrap();
            })
            .unwrap();
    });
}

/// T-X-14, G10: several OS threads send to one reactor, which has nothing else
/// that could wake it. Every few messages they wait until it sleeps, where its
/// mode lets it, so that all meet it asleep, or on its way there and back.
#[test]
fn no_wake_from_foreign_os_threads_is_lost() {
    const SENDERS: usize = 3;
    const ROUNDS: usize = 100;
    const MESSAGES: usize = 5;
    const ALL: usize = SENDERS * ROUNDS * MESSAGES;
    for mode in MODES {
        for backend in backends() {
            must_end(move || {
                app(1, mode)
                    .io(DriverConfig::new().backend(backend))
                    .run(async move |app: AppHandle| {
                        let received = Arc::new(AtomicUsize::new(0));
                        for _ in 0..SENDERS {
                            let (app, received) = (app.clone(), received.clone());
                            std::thread::spawn(move || {
                                for _ in 0..ROUNDS {
                                    while mode != ReactorMode::Poll
                                        && !stats(&app.reactors(), 0).asleep
                                    {
                                        std::thread::yield_now();
                                    }
                                    for _ in 0..MESSAGES {
                                        let (stop, received) = (app.clone(), received.clone());
                                        let receive = move || {
                                            if received.fetch_add(1, Ordering::Relaxed) + 1 == ALL {
                                                stop.stop(0);
                                            }
                                        };
                                        app.app_thread().send_msg(receive).unwrap();
                                    }
                                }
                            });
                        }
                    })
                    .unwrap();
            });
        }
    }
}

/// G10: two sleeping reactors wake each other; a wake that is lost ends it.
#[test]
fn no_wake_between_two_reactors_is_lost() {
    for mode in MODES {
        for backend in backends() {
            must_end(move || {
                app(2, mode)
                    .io(DriverConfig::new().backend(backend))
                    .block_on(async |app: AppHandle| {
                        let other = thread_on(&app, 1);
                        for round in 0..1_000 {
                            let answer = other.spawn(async move { round + 1 }).await;
                            assert_eq!(answer.unwrap(), round + 1);
                        }
                    })
                    .unwrap();
            });
        }
    }
}

/// T-X-13, RE-021: events are sent to a reactor whose mode changes all the
/// time; each one runs.
#[test]
fn no_event_is_lost_while_the_mode_changes() {
    const EVENTS: usize = 5_000;
    must_end(|| {
        app(2, ReactorMode::Poll)
            .block_on(async |app: AppHandle| {
                let reactors = app.reactors();
                let sending = Arc::new(AtomicBool::new(true));
                let toggler = {
                    let (reactors, sending) = (reactors.clone(), sending.clone());
                    std::thread::spawn(move || {
                        let mut modes = MODES.into_iter().cycle();
                        while sending.load(Ordering::Relaxed) {
                            drop(reactors.set_mode(1, modes.next().unwrap()));
                            std::thread::yield_now();
                        }
                    })
                };
                let ran = Arc::new(AtomicUsize::new(0));
                for number in 0..EVENTS {
                    let ran = ran.clone();
                    let (done, ended) = futures::channel::oneshot::channel();
                    let event = move || {
                        ran.fetch_add(1, Ordering::Relaxed);
                        let _ = done.send(());
                    };
                    reactors.send_event(1, event).unwrap();
                    // Every third round trip waits, so that the reactor idles.
                    if number % 3 == 0 {
                        ended.await.unwrap();
                    }
                }
                let (done, ended) = futures::channel::oneshot::channel();
                reactors
                    .send_event(1, move || done.send(()).unwrap())
                    .unwrap();
                ended.await.unwrap();
                assert_eq!(ran.load(Ordering::Relaxed), EVENTS);
                sending.store(false, Ordering::Relaxed);
                toggler.join().unwrap();
            })
            .unwrap();
    });
}

/// RE-020: a mode set while the reactor sleeps takes effect at once, in both
/// directions.
#[test]
fn a_mode_change_reaches_a_reactor_that_sleeps_or_spins() {
    must_end(|| {
        let code = app(1, ReactorMode::Interrupt).run(async |app: AppHandle| {
            std::thread::spawn(move || {
                let reactors = app.reactors();
                wait_until(|| stats(&reactors, 0).asleep);
                task::block_on(reactors.set_mode(0, ReactorMode::Poll)).unwrap();
                wait_until(|| !stats(&reactors, 0).asleep);
                let idle = stats(&reactors, 0).idle_ticks;
                wait_until(|| stats(&reactors, 0).idle_ticks > idle);
                task::block_on(reactors.set_mode(0, ReactorMode::Interrupt)).unwrap();
                wait_until(|| stats(&reactors, 0).asleep);
                assert_eq!(reactors.mode(0), Some(ReactorMode::Interrupt));
                assert_eq!(reactors.mode(1), None);
                let refused = task::block_on(reactors.set_mode(1, ReactorMode::Poll));
                assert!(matches!(
                    refused,
                    Err(SetModeError::NoReactor { core: 1, .. })
                ));
                app.stop(4);
            });
        });
        assert_eq!(code.unwrap(), 4);
    });
}

/// Five reactors on one processor, in poll mode: a token goes round, which
/// takes each of them, and those that wait for it sleep.
#[test]
fn reactors_that_share_a_processor_all_make_progress() {
    const REACTORS: usize = 5;
    must_end(|| {
        let cpu = cpu::available().unwrap().first().unwrap();
        corespun::app::App::builder()
            .lcores((0..REACTORS).map(|core| (core, cpu)))
            .mode(ReactorMode::Poll)
            .handle_signals(false)
            .block_on(async |app: AppHandle| {
                let threads = app.reactors().thread_per_core("station").unwrap();
                let mut token = 0;
                for _ in 0..200 {
                    for station in &threads {
                        token = station.spawn(async move { token + 1 }).await.unwrap();
                    }
                }
                assert_eq!(token, 200 * REACTORS);
                let (awake, slept) = futures::channel::oneshot::channel();
                let reactors = app.reactors();
                std::thread::spawn(move || {
                    wait_until(|| reactors.stats().iter().all(|stats| stats.asleep));
                    awake.send(()).unwrap();
                });
                slept.await.unwrap();
            })
            .unwrap();
    });
}

/// Nor does an OS thread that is pinned, and makes them, have them share its processor.
#[test]
fn reactors_made_by_a_pinned_os_thread_have_their_own_processors() {
    if std::thread::available_parallelism().unwrap().get() < 2 {
        return;
    }
    must_end(|| {
        let cpus: Vec<_> = cpu::available().unwrap().iter().take(2).collect();
        cpu::pin_current_thread(cpus[0]).unwrap();
        let two = Reactors::builder().lcores([(0, cpus[0]), (1, cpus[1])]);
        let two = two.mode(ReactorMode::Poll).build(&ThreadLib::new());
        let (reactors, seats) = two.unwrap();
        let run = |seat: ReactorSeat| std::thread::spawn(|| seat.run().unwrap());
        let seats: Vec<_> = seats.into_iter().map(run).collect();
        for _ in 0..20 {
            task::block_on(reactors.call(1, || ())).unwrap();
            std::thread::sleep(Duration::from_millis(1));
            // In poll mode they sleep only where others need the processor.
            assert!(!stats(&reactors, 1).asleep);
        }
        reactors.stop();
        seats.into_iter().for_each(|seat| seat.join().unwrap());
    });
}

/// What waited for a reactor that never ran is dropped with its seat: all of it, contained.
#[test]
fn a_seat_that_is_dropped_contains_what_waited_for_it() {
    struct Dropped(Arc<AtomicUsize>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
            panic!("as the content of an event may");
        }
    }
    let reported = Arc::<Mutex<Vec<_>>>::default();
    let reports = reported.clone();
    let library = ThreadLib::builder()
        .panic_hook(move |panic| reports.lock().unwrap().push(panic.source))
        .build();
    let cpu = cpu::available().unwrap().first().unwrap();
    let one = Reactors::builder().lcores([(0, cpu)]).build(&library);
    let (reactors, seats) = one.unwrap();
    let dropped = Arc::new(AtomicUsize::new(0));
    for _ in 0..2 {
        let content = Dropped(dropped.clone());
        let event = move || drop(content);
        reactors.reactor(0).unwrap().send_event(event).unwrap();
    }
    drop(seats);
    assert_eq!(dropped.load(Ordering::Relaxed), 2);
    assert_eq!(*reported.lock().unwrap(), [PanicSource::Drop; 2]);
}

/// Busy neighbours on the same processor do not starve each other either.
#[test]
fn active_pollers_on_reactors_that_share_a_processor_all_run() {
    const REACTORS: usize = 5;
    must_end(|| {
        let cpu = cpu::available().unwrap().first().unwrap();
        corespun::app::App::builder()
            .lcores((0..REACTORS).map(|core| (core, cpu)))
            .mode(ReactorMode::Poll)
            .handle_signals(false)
            .block_on(async |app: AppHandle| {
                let mut ends = Vec::new();
                for thread in app.reactors().thread_per_core("busy").unwrap() {
                    ends.push(thread.spawn_with(async || {
                        let (mut done, mut ended) = futures::channel::mpsc::channel(1);
                        let runs = Cell::new(0);
                        let _poller = Poller::active(move || {
                            runs.set(runs.get() + 1);
                            if runs.get() == 500 {
                                let _ = done.try_send(());
                            }
                            Activity::Idle
                        });
                        futures::StreamExt::next(&mut ended).await.unwrap();
                        // The poller goes on until all are there.
                        std::future::ready(()).await;
                    }));
                }
                for end in ends {
                    end.await.unwrap();
                }
            })
            .unwrap();
    });
}

/// G3, G7: threads are made, and sent messages, while the app stops. Each is
/// refused with an error or runs what it took, and reads EXITED in the end.
#[test]
fn a_thread_made_while_the_app_stops_is_refused_or_runs_its_messages() {
    for _ in 0..20 {
        must_end(|| {
            let ran = Arc::new(AtomicUsize::new(0));
            let counted = ran.clone();
            let makers = Arc::new(Mutex::new(Vec::new()));
            let started = makers.clone();
            app(2, ReactorMode::Interrupt)
                .run(async move |app: AppHandle| {
                    let maker = app.clone();
                    let maker = std::thread::spawn(move || {
                        let (mut threads, mut taken) = (Vec::new(), 0);
                        loop {
                            match maker.thread().create() {
                                Ok(thread) => {
                                    for _ in 0..3 {
                                        let ran = counted.clone();
                                        let count = move || {
                                            ran.fetch_add(1, Ordering::Relaxed);
                                        };
                                        taken += usize::from(thread.send_msg(count).is_ok());
                                    }
                                    threads.push(thread);
                                }
                                Err(CreateError::Stopping) => return (threads, taken),
                                Err(error) => panic!("{error}"),
                            }
                            if threads.len() == 30 {
                                maker.stop(0);
                            }
                        }
                    });
                    started.lock().unwrap().push(maker);
                })
                .unwrap();
            let maker = makers.lock().unwrap().pop().unwrap();
            let (threads, taken) = maker.join().unwrap();
            assert!(threads.len() >= 30);
            assert!(threads.iter().all(SpdkThread::is_exited));
            assert_eq!(ran.load(Ordering::Relaxed), taken);
        });
    }
}

/// G3, G7: the reactor has no thread when the app stops, and one batch of
/// events before the thread that is on its way to it.
#[test]
fn a_thread_on_its_way_to_a_reactor_that_ends_runs_its_messages() {
    must_end(|| {
        let ran = Arc::new(AtomicUsize::new(0));
        let count = ran.clone();
        let made = Arc::new(Mutex::new(None));
        let keep = made.clone();
        app(2, ReactorMode::Interrupt)
            .run(async move |app: AppHandle| {
                let (release, held) = std::sync::mpsc::channel::<()>();
                let hold = move || held.recv().unwrap();
                app.reactors().send_event(1, hold).unwrap();
                for _ in 1..8 {
                    app.reactors().send_event(1, || ()).unwrap();
                }
                let thread = thread_on(&app, 1);
                for _ in 0..20 {
                    let count = count.clone();
                    let message = move || {
                        count.fetch_add(1, Ordering::Relaxed);
                    };
                    thread.send_msg(message).unwrap();
                }
                *keep.lock().unwrap() = Some(thread);
                app.stop(0);
                release.send(()).unwrap();
            })
            .unwrap();
        assert_eq!(ran.load(Ordering::Relaxed), 20);
        let thread = made.lock().unwrap().take().unwrap();
        assert!(thread.is_exited());
    });
}
