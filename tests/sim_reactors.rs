//! Scenarios of the reference's reactor tests, which simulates its cores: here they are
//! simulated too, and turned by hand.

use std::cell::Cell;
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use corespun::app::AppHandle;
use corespun::channel::IoDevice;
use corespun::cpu::CpuSet;
use corespun::reactor::scheduler::{Plan, Scheduler, Setup, Snapshot};
use corespun::reactor::{EventError, ReactorMode, SetModeError};
use corespun::sim::{Sim, SimBuilder};
use corespun::thread::{Activity, Poller, SpdkThread, set_interrupt_mode};
use corespun::time;
use futures::FutureExt;
use harness::process::in_a_process_of_its_own;
use harness::reactors::{app, must_end};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// A tick is a microsecond, and passes when it is spent.
fn exact(cores: usize) -> SimBuilder {
    Sim::builder().cores(cores).exact().hz(1_000_000)
}

fn us(us: u64) -> Duration {
    Duration::from_micros(us)
}

fn thread_on(sim: &Sim, core: usize) -> SpdkThread {
    let thread = sim.thread().cpumask(CpuSet::single(core));
    thread.create().unwrap()
}

/// How many threads each reactor has.
fn threads(sim: &Sim) -> Vec<usize> {
    let stats = sim.reactors().stats();
    stats.iter().map(|reactor| reactor.threads).collect()
}

fn asleep(sim: &Sim) -> Vec<bool> {
    let stats = sim.reactors().stats();
    stats.iter().map(|reactor| reactor.asleep).collect()
}

/// T-RE-01 and T-RE-02: three cores, three reactors; none on a fourth.
#[test]
fn each_core_has_its_reactor() {
    let sim = exact(3).build();
    let reactors = sim.reactors();
    assert_eq!(reactors.count(), 3);
    assert_eq!(reactors.cores(), (0..3).collect::<CpuSet>());
    assert_eq!(reactors.mode(2), Some(ReactorMode::Poll));
    let refused = reactors.send_event(3, || ()).unwrap_err();
    assert!(matches!(refused, EventError::NoReactor { core: 3, .. }));
}

/// T-RE-03: an event with two values, to the core's own reactor.
#[test]
fn an_event_runs_in_the_next_turn_of_its_core() {
    let mut sim = exact(1).build();
    let written = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let (values, current) = (written.clone(), Arc::new(AtomicUsize::new(9)));
    let seen = current.clone();
    let event = move || {
        values[0].store(0xa, Ordering::Relaxed);
        values[1].store(0xb, Ordering::Relaxed);
        seen.store(usize::from(SpdkThread::has_current()), Ordering::Relaxed);
    };
    sim.reactors().send_event(0, event).unwrap();
    assert_eq!(written[0].load(Ordering::Relaxed), 0);
    assert!(sim.turn(0));
    let written = written
        .each_ref()
        .map(|value| value.load(Ordering::Relaxed));
    assert_eq!((written, current.load(Ordering::Relaxed)), ([0xa, 0xb], 0));
    assert!(!sim.turn(0), "once");
}

/// T-RE-04: five cores, a mask of core 3, and the search begins behind it.
#[test]
fn a_new_thread_comes_to_the_core_of_its_mask_by_one_event() {
    let mut sim = exact(5).build();
    thread_on(&sim, 3);
    let thread = thread_on(&sim, 3);
    for core in [0, 1, 2, 4] {
        assert!(!sim.turn(core), "core {core} has an event");
    }
    assert_eq!(threads(&sim), [0; 5]);
    assert!(sim.turn(3));
    assert_eq!(threads(&sim), [0, 0, 0, 2, 0]);
    assert_eq!(
        sim.enter(&thread, SpdkThread::current).unwrap(),
        Some(thread)
    );
}

/// T-RE-05: two masks in one context; only the last counts.
#[test]
fn a_thread_that_changes_its_mask_twice_moves_once() {
    let mut sim = exact(3).build();
    let thread = thread_on(&sim, 1);
    assert!(sim.turn(1));
    let moved = thread.clone();
    let moves = move || {
        for core in [0, 2] {
            moved.set_cpumask(&CpuSet::single(core)).unwrap();
        }
    };
    thread.send_msg(moves).unwrap();
    assert!(sim.turn(1));
    assert_eq!(threads(&sim), [0; 3]);
    assert!(!sim.turn(0), "core 0 has an event");
    assert!(sim.turn(2));
    assert_eq!(threads(&sim), [0, 0, 1]);
}

/// Registers a poller on the thread that spends so many ticks in each of its runs.
fn plan(sim: &mut Sim, thread: &SpdkThread, plan: &'static [(u64, Activity)]) -> Poller {
    let handle = sim.handle();
    let mut runs = plan.iter();
    let run = move || match runs.next() {
        Some(&(ticks, activity)) => {
            handle.spend(us(ticks));
            activity
        }
        None => Activity::Ignored,
    };
    sim.enter(thread, || Poller::active(run).unwrap()).unwrap()
}

/// T-RE-08: one turn after the other, to the tick. (The reference begins at 100.)
#[test]
fn every_tick_of_a_simulated_core_is_somebodys() {
    let mut sim = exact(1).build();
    let spent = |thread: &SpdkThread| {
        let stats = thread.stats();
        (thread.last_tick(), stats.busy_ticks, stats.idle_ticks)
    };
    let total = |sim: &Sim| {
        let stats = &sim.reactors().stats()[0];
        (stats.busy_ticks, stats.idle_ticks)
    };
    let (first, second) = (thread_on(&sim, 0), thread_on(&sim, 0));
    let pollers = [
        plan(
            &mut sim,
            &first,
            &[(100, Activity::Busy), (200, Activity::Idle)],
        ),
        plan(
            &mut sim,
            &second,
            &[(300, Activity::Idle), (400, Activity::Busy)],
        ),
    ];
    sim.turn(0);
    assert_eq!(spent(&first), (100, 100, 0));
    assert_eq!(spent(&second), (400, 0, 300));
    assert_eq!(total(&sim), (100, 300));
    sim.turn(0);
    assert_eq!(spent(&first), (600, 100, 200));
    assert_eq!(spent(&second), (1000, 400, 300));
    assert_eq!(total(&sim), (500, 500));
    let _ = sim.enter(&first, || drop(pollers));
    drop((first.exit(), second.exit()));
    sim.run_until(|| first.is_exited() && second.is_exited())
        .unwrap();
    sim.run_until_idle().unwrap();
    assert_eq!(total(&sim), (500, 500), "their exits took no time");
    sim.advance(us(900));
    sim.turn(0);
    assert_eq!(total(&sim), (500, 1400));
    let third = thread_on(&sim, 0);
    let poller = plan(&mut sim, &third, &[(100, Activity::Busy)]);
    sim.turn(0);
    assert_eq!(spent(&third), (2000, 100, 0));
    assert_eq!(total(&sim), (600, 1400));
    let _ = sim.enter(&third, || drop(poller));
}

/// Time passes at once for a simulated core that has nothing to do; its threads have been
/// idle nevertheless.
#[test]
fn what_a_thread_has_waited_for_is_idle_time() {
    let mut sim = exact(1).build();
    sim.advance(us(5));
    sim.turn(0);
    let thread = thread_on(&sim, 0);
    sim.run_until_idle().unwrap();
    sim.run_for(us(10_000)).unwrap();
    let handle = sim.handle();
    thread.send_msg(move || handle.spend(us(70))).unwrap();
    sim.run_until_idle().unwrap();
    let stats = thread.stats();
    assert_eq!((stats.busy_ticks, stats.idle_ticks), (71, 9_999));
}

/// T-RE-09: busy for the first 200 of each 1000 ticks.
#[test]
fn a_mixed_workload_is_accounted_for_poll_by_poll() {
    let mut sim = exact(1).build();
    let thread = thread_on(&sim, 0);
    let handle = sim.handle();
    let begin = handle.now();
    let work = move || {
        let busy = ((handle.now() - begin).as_micros()) % 1000 < 200;
        handle.spend(us(if busy { 10 } else { 1 }));
        busy
    };
    let poller = sim
        .enter(&thread, || Poller::active(work).unwrap())
        .unwrap();
    for period in 1..=3 {
        let before = thread.stats();
        let (mut busy, mut idle) = (0, 0);
        for _ in 0..820 {
            match sim.turn(0) {
                true => busy += 1,
                false => idle += 1,
            }
        }
        let stats = thread.stats();
        assert_eq!((busy, idle), (20, 800));
        assert_eq!(stats.busy_ticks - before.busy_ticks, 200);
        assert_eq!(stats.idle_ticks - before.idle_ticks, 800);
        assert_eq!(thread.last_tick(), period * 1000);
    }
    let _ = sim.enter(&thread, || drop(poller));
}

/// T-IN-01: sleeping reactors that are set to poll, and back, with threads on them.
#[test]
fn reactors_follow_their_mode_and_keep_their_threads() {
    let runs = Sim::builder().cores(3).mode(ReactorMode::Interrupt);
    let runs = runs.explore(0..50, |sim| {
        let placed: Vec<_> = (0..3).map(|core| thread_on(sim, core)).collect();
        sim.run_until_idle().unwrap();
        assert_eq!(asleep(sim), [true; 3]);
        for core in [0, 2] {
            drop(sim.reactors().set_mode(core, ReactorMode::Poll));
        }
        sim.run_until_idle().unwrap();
        assert_eq!(asleep(sim), [false, true, false]);
        for core in [0, 2] {
            drop(sim.reactors().set_mode(core, ReactorMode::Interrupt));
        }
        sim.run_until_idle().unwrap();
        assert_eq!(asleep(sim), [true; 3]);
        assert_eq!(threads(sim), [1; 3]);
        for thread in placed {
            sim.block_on(thread.call(|| ())).unwrap();
        }
    });
    assert_eq!(runs.unwrap(), 50);
}

/// T-IN-02: the same while all threads are on reactor 1, where they go by their masks.
#[test]
fn reactors_follow_their_mode_while_their_threads_are_away() {
    let runs = Sim::builder().cores(3).mode(ReactorMode::Interrupt);
    let runs = runs.explore(0..50, |sim| {
        let placed: Vec<_> = (0..3).map(|core| thread_on(sim, core)).collect();
        sim.run_until_idle().unwrap();
        let send_to = |sim: &mut Sim, cores: [usize; 3]| {
            for (thread, core) in placed.iter().zip(cores) {
                let mask = CpuSet::single(core);
                let go = move || SpdkThread::current().unwrap().set_cpumask(&mask).unwrap();
                thread.send_msg(go).unwrap();
            }
            sim.run_until_idle().unwrap();
        };
        send_to(sim, [1; 3]);
        assert_eq!((threads(sim), asleep(sim)), (vec![0, 3, 0], vec![true; 3]));
        for (mode, sleeps) in [(ReactorMode::Poll, false), (ReactorMode::Interrupt, true)] {
            for core in [0, 2] {
                drop(sim.reactors().set_mode(core, mode));
            }
            sim.run_until_idle().unwrap();
            assert_eq!(asleep(sim), [sleeps, true, sleeps]);
        }
        send_to(sim, [0, 1, 2]);
        assert_eq!((threads(sim), asleep(sim)), (vec![1; 3], vec![true; 3]));
    });
    assert_eq!(runs.unwrap(), 50);
}

/// T-RE-07: one event on each core, in their order, and one for the end.
#[test]
fn a_walk_is_one_event_on_each_core_and_one_at_its_end() {
    let mut sim = exact(5).build();
    let count = Arc::new(AtomicUsize::new(0));
    let (reactors, visits, end) = (sim.reactors(), count.clone(), count.clone());
    let begin = move || {
        let visit = move |_: &_| _ = visits.fetch_add(1, Ordering::Relaxed);
        let done = move |_| _ = end.fetch_add(100, Ordering::Relaxed);
        reactors.for_each_reactor(visit, done).unwrap();
    };
    sim.reactors().send_event(0, begin).unwrap();
    assert!(sim.turn(0));
    assert_eq!(count.load(Ordering::Relaxed), 0);
    for core in 0..5 {
        let later: Vec<_> = (core + 1..5).filter(|&later| sim.turn(later)).collect();
        assert_eq!(later, [0; 0], "before its turn");
        assert!(sim.turn(core));
        assert_eq!(count.load(Ordering::Relaxed), core + 1);
    }
    assert!(sim.turn(0));
    assert_eq!(count.load(Ordering::Relaxed), 105);
}

/// RE-020: a thread whose poller has an interrupt cannot follow where the kernel gives no
/// descriptor. Then its reactor keeps its mode, and so does the thread that could follow.
#[test]
fn a_mode_that_a_thread_cannot_follow_is_refused() {
    in_a_process_of_its_own("a_mode_that_a_thread_cannot_follow_is_refused", || {
        let mut sim = exact(1).build();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let runs = Arc::new(AtomicUsize::new(0));
        let pollers = ["able", "unable"].map(|name| {
            let thread = sim.thread().name(name).create().unwrap();
            let (heard, runs) = (heard.clone(), runs.clone());
            let register = || {
                if name == "able" {
                    // It has its descriptors.
                    set_interrupt_mode(true).unwrap();
                    set_interrupt_mode(false).unwrap();
                }
                let poller = Poller::active(move || {
                    runs.fetch_add(1, Ordering::Relaxed);
                });
                let poller = poller.unwrap();
                poller.set_interrupt(move |on| heard.lock().unwrap().push((name, on)));
                poller
            };
            let poller = sim.enter(&thread, register).unwrap();
            (thread, poller)
        });
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 0, hard).unwrap();
        let asked = sim.reactors().set_mode(0, ReactorMode::Interrupt);
        let refused = answer(&mut sim, asked).unwrap_err();
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        let text = refused.to_string();
        let SetModeError::Refused {
            core: 0, thread, ..
        } = refused
        else {
            panic!("{refused}");
        };
        assert_eq!(thread, "unable");
        assert!(text.contains("keeps its mode: thread \"unable\""), "{text}");
        assert_eq!(sim.reactors().mode(0), Some(ReactorMode::Poll));
        let told = std::mem::take(&mut *heard.lock().unwrap());
        assert_eq!(told, [("able", true), ("able", false)]);
        let before = runs.load(Ordering::Relaxed);
        sim.turn(0);
        assert_eq!(runs.load(Ordering::Relaxed), before + 2);
        let asked = sim.reactors().set_mode(0, ReactorMode::Interrupt);
        answer(&mut sim, asked).unwrap();
        let told = std::mem::take(&mut *heard.lock().unwrap());
        assert_eq!(told, [("able", true), ("unable", true)]);
        sim.run_until_idle().unwrap();
        assert_eq!(asleep(&sim), [true]);
        for (thread, poller) in pollers {
            sim.enter(&thread, || drop(poller)).unwrap();
        }
    });
}

/// T-IN-03: pollers that come and go where all sleep leave nothing behind, neither what
/// keeps a core awake, nor a timer, nor their callbacks.
#[test]
fn pollers_that_were_unregistered_while_all_sleep_are_gone() {
    let runs = Sim::builder().cores(3).mode(ReactorMode::Interrupt);
    let runs = runs.explore(0..20, |sim| {
        let placed: Vec<_> = (0..3).map(|core| thread_on(sim, core)).collect();
        sim.run_until_idle().unwrap();
        let (held, runs) = (Arc::new(()), Arc::new(AtomicUsize::new(0)));
        let (holds, counts) = (held.clone(), runs.clone());
        let device = sim.enter(&placed[0], || {
            IoDevice::builder().name("examined").register(move || {
                let (holds, counts) = (holds.clone(), counts.clone());
                Ok::<_, Infallible>(examine(&holds, &counts))
            })
        });
        let device = device.unwrap().unwrap();
        for thread in &placed {
            let device = device.clone();
            let examines = thread.call(move || {
                // The examination is over with this.
                drop(device.channel().unwrap());
            });
            sim.block_on(examines).unwrap();
        }
        sim.run_until_idle().unwrap();
        let over = sim.now();
        sim.run_until_idle().unwrap();
        assert_eq!(sim.now(), over, "a timer is left");
        assert_eq!(asleep(sim), [true; 3]);
        let stats = sim.reactors().stats();
        assert!(stats.iter().all(|core| core.kept_awake_by.is_none()));
        drop(sim.enter(&placed[0], || device.unregister()));
        drop(device);
        sim.run_until_idle().unwrap();
        assert_eq!(Arc::strong_count(&held), 1, "a callback is left");
        // Nothing holds them, so that no exit is forced.
        for thread in &placed {
            sim.block_on(thread.exit());
        }
        assert!(sim.now() - over < us(1_000_000));
    });
    assert_eq!(runs.unwrap(), 20);
}

/// Registers pollers of all kinds, and unregisters them: at once, in their callback, and
/// with the channel that they are for.
fn examine(held: &Arc<()>, runs: &Arc<AtomicUsize>) -> Vec<Poller> {
    let callback = || {
        let (held, runs) = (held.clone(), runs.clone());
        move || {
            let _ = &held;
            runs.fetch_add(1, Ordering::Relaxed);
        }
    };
    drop((
        Poller::active(callback()).unwrap(),
        Poller::timed(us(50), callback()).unwrap(),
    ));
    for period in [0, 50] {
        let itself = Rc::new(Cell::new(None));
        let (own, held) = (itself.clone(), held.clone());
        let ends = move || {
            let _ = &held;
            drop(own.take());
        };
        itself.set(Some(Poller::timed(us(period), ends).unwrap()));
    }
    vec![
        Poller::active(callback()).unwrap(),
        Poller::timed(us(50), callback()).unwrap(),
    ]
}

/// What a scheduler answers, without a thread that waits for it.
fn answer<T>(sim: &mut Sim, mut reply: impl Future<Output = T> + Unpin) -> T {
    loop {
        if let Some(answer) = (&mut reply).now_or_never() {
            return answer;
        }
        assert!(sim.step(), "nothing is left to run");
    }
}

/// T-SC-01: three idle threads come together on core 0; busy, they are spread again.
#[test]
fn dynamic_gathers_the_idle_and_spreads_the_busy() {
    let mut sim = exact(3).build();
    sim.advance(us(5));
    let placed: Vec<_> = (0..3)
        .map(|core| {
            let thread = thread_on(&sim, core);
            sim.turn(core);
            let all = (0..3).collect::<CpuSet>();
            let free = move || SpdkThread::current().unwrap().set_cpumask(&all).unwrap();
            thread.send_msg(free).unwrap();
            thread
        })
        .collect();
    let schedulers = sim.reactors().schedulers();
    answer(&mut sim, schedulers.set("dynamic")).unwrap();
    answer(&mut sim, schedulers.set_period(Duration::ZERO)).unwrap();
    answer(&mut sim, schedulers.run_round()).unwrap();
    sim.run_for(us(100)).unwrap();
    answer(&mut sim, schedulers.run_round()).unwrap();
    sim.run_for(us(10)).unwrap();
    assert_eq!(threads(&sim), [3, 0, 0]);
    for thread in &placed {
        let handle = sim.handle();
        thread.send_msg(move || handle.spend(us(100))).unwrap();
    }
    sim.run_for(us(300)).unwrap();
    answer(&mut sim, schedulers.run_round()).unwrap();
    sim.run_for(us(10)).unwrap();
    assert_eq!(threads(&sim), [1, 1, 1]);
}

/// Asks for the governor of the machine's own processors.
struct Hasty;

impl Scheduler for Hasty {
    fn init(&mut self, setup: &mut Setup<'_>) -> Result<(), String> {
        let taken = setup.set_governor("cpufreq");
        taken.map_err(|error| error.to_string())
    }

    fn balance(&mut self, _snapshot: &Snapshot) -> Plan {
        Plan::new()
    }
}

/// What the machine's kernel says of its processors would differ from run to run, and a
/// simulation is not to change it.
#[test]
fn the_machine_s_governor_is_not_there() {
    let mut sim = exact(1).build();
    let schedulers = sim.reactors().schedulers();
    schedulers.register("hasty", Hasty).unwrap();
    let refused = sim.block_on(async move { schedulers.set("hasty").await.unwrap_err() });
    let refused = refused.to_string();
    assert!(
        refused.contains("there is no governor \"cpufreq\""),
        "{refused}"
    );
}

/// Turned inside of a poll of a real reactor, on the same OS thread: a mask that the real
/// thread has asked for is its own reactor's to see, and that of a simulated one is the
/// simulation's.
#[test]
fn a_simulation_inside_of_a_poll_takes_no_move_for_its_own() {
    must_end(|| {
        app(2, ReactorMode::Interrupt)
            .block_on(async |app: AppHandle| {
                let thread = app.thread().cpumask(CpuSet::single(0)).create().unwrap();
                let moves = thread.call(|| {
                    let here = SpdkThread::current().unwrap();
                    here.set_cpumask(&CpuSet::single(1)).unwrap();
                    let mut sim = exact(2).build();
                    let simulated = thread_on(&sim, 0);
                    sim.run_until_idle().unwrap();
                    let go = || {
                        let thread = SpdkThread::current().unwrap();
                        thread.set_cpumask(&CpuSet::single(1)).unwrap();
                    };
                    sim.enter(&simulated, go).unwrap();
                    sim.run_until_idle().unwrap();
                    threads(&sim)
                });
                assert_eq!(moves.await.unwrap(), [0, 1]);
                while thread.core() != Some(1) {
                    time::sleep(us(1_000)).await;
                }
            })
            .unwrap();
    });
}
