//! The simulator keeps its promises: one seed is one run, a failure names its seed, what
//! does not end says who is to blame, and what it simulates is what reactors do.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use corespun::cpu::CpuSet;
use corespun::reactor::ReactorMode;
use corespun::sim::{self, Sim, SimError, Trace};
use corespun::task;
use corespun::thread::{Poller, SpdkThread};
use corespun::time;
use futures::channel::oneshot;

const MODES: [ReactorMode; 3] = [
    ReactorMode::Poll,
    ReactorMode::Adaptive,
    ReactorMode::Interrupt,
];

/// Threads on three cores that send each other messages, sleep, poll and move.
fn mixed(sim: &mut Sim) {
    let threads: Vec<_> = (0..6)
        .map(|index| {
            let thread = sim.thread().name(format!("worker_{index}"));
            thread.create().unwrap()
        })
        .collect();
    let polled = threads[0].clone();
    let poller = sim.enter(&polled, || {
        Poller::timed(Duration::from_micros(20), || ()).unwrap()
    });
    let tasks: Vec<_> = (0..6)
        .map(|index| {
            let all = threads.clone();
            threads[index].spawn(async move {
                for step in 0..20 {
                    let next = &all[(index + step) % all.len()];
                    if !next.is_current() {
                        next.call(|| ()).await.unwrap();
                    }
                    if step % 5 == 0 {
                        let core = CpuSet::single((index + step) % 3);
                        SpdkThread::current().unwrap().set_cpumask(&core).ok();
                        time::sleep(Duration::from_micros(7)).await;
                    }
                }
            })
        })
        .collect();
    sim.block_on(async {
        for task in tasks {
            task.await.unwrap();
        }
    });
    let _ = sim.enter(&polled, || drop(poller));
}

fn trace_of(seed: u64, mode: ReactorMode) -> Trace {
    let mut sim = Sim::builder().cores(3).mode(mode).seed(seed).build();
    mixed(&mut sim);
    sim.trace()
}

#[test]
fn one_seed_is_one_run() {
    for mode in MODES {
        let mut fingerprints = BTreeSet::new();
        for seed in 0..20 {
            let trace = trace_of(seed, mode);
            assert_eq!(trace, trace_of(seed, mode));
            fingerprints.insert(trace.fingerprint());
        }
        assert_eq!(fingerprints.len(), 20, "another seed is another run");
    }
}

#[test]
fn two_simulations_at_once_know_nothing_of_each_other() {
    let alone: Vec<_> = (0..2)
        .map(|seed| trace_of(seed, ReactorMode::Poll))
        .collect();
    // On two OS threads.
    let both = [0, 1].map(|seed| std::thread::spawn(move || trace_of(seed, ReactorMode::Poll)));
    for (trace, alone) in both.into_iter().zip(&alone) {
        assert_eq!(trace.join().unwrap(), *alone);
    }
    // On one, step by step.
    let mut sims = [0, 1].map(|seed| Sim::builder().cores(2).seed(seed).build());
    let answers = sims.each_mut().map(|sim| {
        let thread = sim.thread().create().unwrap();
        thread.call(|| SpdkThread::current().unwrap().library().thread_count())
    });
    while sims.iter_mut().map(Sim::step).filter(|&any| any).count() > 0 {}
    for answer in answers {
        assert_eq!(futures::executor::block_on(answer).unwrap(), 1);
    }
}

/// One FIFO, also between cores: per sender, and what was sent before comes before.
#[test]
fn messages_run_in_the_order_sent_whatever_the_seed() {
    for mode in MODES {
        let builder = Sim::builder().cores(4).mode(mode);
        let runs = builder.explore(0..50, |sim| {
            let got = Arc::new(Mutex::new(Vec::new()));
            let sent = Arc::new(AtomicU64::new(0));
            let target = sim.thread().ring(4).create().unwrap();
            let senders: Vec<_> = (0..4)
                .map(|core| sim.thread().cpumask(CpuSet::single(core)).create().unwrap())
                .collect();
            let sends = senders.iter().map(|sender| {
                let (target, got, sent) = (target.clone(), got.clone(), sent.clone());
                sender.spawn(async move {
                    for _ in 0..30 {
                        let number = sent.fetch_add(1, Ordering::Relaxed);
                        let got = got.clone();
                        let message = move || got.lock().unwrap().push(number);
                        target.send_msg(message).unwrap();
                        task::yield_now().await;
                    }
                })
            });
            let sends: Vec<_> = sends.collect();
            sim.block_on(async {
                for send in sends {
                    send.await.unwrap();
                }
            });
            sim.run_until_idle().unwrap();
            let got = got.lock().unwrap();
            // Cores are turned one after the other, so numbers are taken in the order sent.
            assert_eq!(*got, (0..120).collect::<Vec<_>>());
        });
        assert_eq!(runs.unwrap(), 50);
    }
}

#[test]
fn a_message_takes_as_long_as_it_was_told_to() {
    let delay = Duration::from_micros(30);
    for mode in MODES {
        let mut sim = Sim::builder()
            .cores(2)
            .mode(mode)
            .exact()
            .message_delay(delay..=delay)
            .build();
        let [here, there] = [0, 1].map(|core| {
            let thread = sim.thread().cpumask(CpuSet::single(core));
            thread.create().unwrap()
        });
        let handle = sim.handle();
        let took = here.spawn(async move {
            let begin = handle.now();
            there.call(|| ()).await.unwrap();
            handle.now() - begin
        });
        let took = sim.block_on(took).unwrap();
        assert_eq!(took, delay * 2, "{mode:?}");
        // To a dormant or sleeping one, too: once there, it is roused.
        assert!(sim.now() >= delay * 3);
    }
}

#[test]
fn a_failure_names_its_seed_and_is_found_again() {
    let program = |sim: &mut Sim| {
        let [one, other] = [(); 2].map(|()| sim.thread().create().unwrap());
        let order = Arc::new(Mutex::new(Vec::new()));
        for (name, thread) in [("one", one), ("other", other)] {
            let order = order.clone();
            thread
                .send_msg(move || order.lock().unwrap().push(name))
                .unwrap();
        }
        sim.run_until_idle().unwrap();
        assert_eq!(*order.lock().unwrap(), ["one", "other"]);
    };
    let failure = sim::explore(0..1000, program).unwrap_err();
    let text = failure.to_string();
    let seed = failure.seed();
    assert!(
        text.contains(&format!("CORESPUN_SIM_SEED={seed}")),
        "{text}"
    );
    assert!(text.contains("left: [\"other\", \"one\"]"), "{text}");
    let again = Sim::builder().cores(2).seed(seed).run(program).unwrap_err();
    assert_eq!(again.trace(), failure.trace());
    assert_eq!(again.message(), failure.message());
    for before in 0..seed {
        Sim::builder().cores(2).seed(before).run(program).unwrap();
    }
}

/// Dropped from outside of everything, on the way out of a panic.
struct Dropped(Arc<AtomicUsize>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_panic_out_of_a_simulation_leaves_nothing_behind() {
    let drops = Arc::new(AtomicUsize::new(0));
    let kept = Rc::new(RefCell::new(None));
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let mut sim = Sim::builder().cores(2).build();
        let threads = [(); 2].map(|()| sim.thread().create().unwrap());
        for thread in &threads {
            let witness = Dropped(drops.clone());
            drop(thread.spawn(async move {
                std::future::pending::<()>().await;
                drop(witness);
            }));
            let witness = Dropped(drops.clone());
            thread.send_msg(move || drop(witness)).unwrap();
        }
        for _ in 0..20 {
            sim.step();
        }
        let witness = Dropped(drops.clone());
        threads[0].send_msg(move || drop(witness)).unwrap();
        *kept.borrow_mut() = Some((threads, sim.handle(), sim.reactors()));
        std::panic::resume_unwind(Box::new("the test fails"));
    }));
    assert!(panicked.is_err());
    assert_eq!(drops.load(Ordering::Relaxed), 5);
    // What is left of it refuses, and says so.
    let (threads, handle, reactors) = kept.take().unwrap();
    assert!(threads.iter().all(SpdkThread::is_exited));
    assert!(threads[0].send_msg(|| ()).is_err());
    assert!(reactors.send_event(0, || ()).is_err());
    assert!(reactors.thread().create().is_err());
    futures::executor::block_on(handle.delay(Duration::from_secs(1)));
}

#[test]
fn who_waits_for_nobody_is_named() {
    let mut sim = Sim::builder().cores(2).build();
    let thread = sim.thread().name("asker").create().unwrap();
    let (_sender, receiver) = oneshot::channel::<()>();
    let waits = task::TaskBuilder::new().name("question");
    drop(sim.enter(&thread, || waits.spawn_local(receiver)).unwrap());
    match sim.run_until(|| false) {
        Err(SimError::NothingLeft { waiting, .. }) => {
            assert_eq!(waiting.len(), 1);
            assert!(
                waiting[0].starts_with("\"asker\": task question"),
                "{waiting:?}"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn who_keeps_a_simulation_busy_is_named() {
    let mut sim = Sim::builder().cores(2).turn_limit(10_000).build();
    let spinner = sim.thread().name("spinner").create().unwrap();
    let scanner = sim.thread().name("scanner").create().unwrap();
    let poller = sim.enter(&scanner, || {
        Poller::builder().name("scan").register(|| false).unwrap()
    });
    drop(spinner.spawn(async {
        loop {
            task::yield_now().await;
        }
    }));
    let (_sender, receiver) = oneshot::channel::<()>();
    match sim.try_block_on(receiver) {
        Err(SimError::TurnLimit { busy, turns, .. }) => {
            assert_eq!(turns, 10_000);
            assert!(busy[0].starts_with("\"spinner\" in "), "{busy:?}");
            assert_eq!(busy.last().unwrap(), "\"scanner\" keeps poller scan");
        }
        other => panic!("{other:?}"),
    }
    let _ = sim.enter(&scanner, || drop(poller));
}

#[test]
fn a_panic_on_a_thread_ends_the_run_unless_it_is_contained() {
    let detached = |sim: &mut Sim| {
        let thread = sim.thread().name("clumsy").create().unwrap();
        thread.send_msg(|| panic!("dropped it")).unwrap();
        sim.run_until_idle()
    };
    let error = detached(&mut Sim::builder().seed(9).build()).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("\"clumsy\": Message panicked: dropped it (seed 9"),
        "{text}"
    );
    detached(&mut Sim::builder().contain_panics(true).build()).unwrap();
    // Of a task that somebody waits for, that one is told.
    let mut sim = Sim::builder().build();
    let thread = sim.thread().create().unwrap();
    let task = thread.spawn(async { panic!("told") });
    let error: task::JoinError = sim.block_on(task).unwrap_err();
    assert!(error.is_panic());
    // That of the future itself comes out.
    let payload = catch_unwind(AssertUnwindSafe(|| sim.block_on(async { panic!("out") })));
    assert_eq!(payload.unwrap_err().downcast_ref(), Some(&"out"));
}

/// Allowed: it arrives at once. Nobody waits for it.
#[test]
fn another_os_thread_may_send_to_a_simulated_thread() {
    for mode in MODES {
        let mut sim = Sim::builder().cores(2).mode(mode).build();
        let thread = sim.thread().create().unwrap();
        sim.run_until_idle().unwrap();
        let (asked, core) = (thread.clone(), sim.reactors());
        let sent = std::thread::spawn(move || {
            core.send_event(1, || ()).unwrap();
            asked.call(|| 7)
        });
        let answer = sent.join().unwrap();
        assert_eq!(sim.block_on(answer).unwrap(), 7);
    }
}

#[test]
fn a_simulated_hour_passes_at_once_and_in_order() {
    for mode in MODES {
        let mut sim = Sim::builder().cores(2).mode(mode).build();
        let order = Arc::new(Mutex::new(Vec::new()));
        for minutes in [60, 1, 30] {
            let order = order.clone();
            let thread = sim.thread().create().unwrap();
            drop(thread.spawn(async move {
                time::sleep(Duration::from_secs(60 * minutes)).await;
                order.lock().unwrap().push(minutes);
            }));
        }
        sim.run_until_idle().unwrap();
        assert_eq!(*order.lock().unwrap(), [1, 30, 60]);
        assert!(sim.now() >= Duration::from_secs(3600));
        assert!(sim.turns() < 1_000, "{} turns in {mode:?}", sim.turns());
    }
}

#[test]
fn run_for_stops_the_clock_where_it_was_told() {
    let mut sim = Sim::builder().cores(2).build();
    let ticks = Arc::new(AtomicUsize::new(0));
    let count = ticks.clone();
    let thread = sim.thread().create().unwrap();
    let poller = sim.enter(&thread, || {
        let tick = move || _ = count.fetch_add(1, Ordering::Relaxed);
        Poller::timed(Duration::from_millis(1), tick).unwrap()
    });
    let begin = sim.now();
    sim.run_for(Duration::from_millis(100)).unwrap();
    assert_eq!(sim.now(), begin + Duration::from_millis(100));
    assert!((98..=100).contains(&ticks.load(Ordering::Relaxed)));
    let _ = sim.enter(&thread, || drop(poller));
    sim.run_until_idle().unwrap();
    sim.run_for(Duration::from_secs(1)).unwrap();
    assert!(sim.now() >= begin + Duration::from_millis(1100));
}

/// G14 of the simulation: those that have nothing to do cost nothing.
#[test]
fn a_hundred_thousand_threads_sleep_while_one_works() {
    let mut sim = Sim::builder().cores(4).build();
    let threads: Vec<_> = (0..100_000)
        .map(|_| sim.thread().create().unwrap())
        .collect();
    sim.run_until_idle().unwrap();
    // One message makes them dormant, as time passes.
    for _ in 0..8 {
        sim.run_for(Duration::from_micros(50)).unwrap();
        for core in 0..4 {
            sim.turn(core);
        }
    }
    let (polls, turns) = (sim.polls(), sim.turns());
    let last = threads[77_777].clone();
    let worker = sim.thread().create().unwrap();
    let work = worker.spawn(async move {
        for _ in 0..1_000 {
            last.call(|| ()).await.unwrap();
        }
    });
    sim.block_on(work).unwrap();
    let (polls, turns) = (sim.polls() - polls, sim.turns() - turns);
    assert!(polls < 10 * turns, "{polls} polls in {turns} turns");
}

#[test]
fn stop_ends_every_thread_in_order() {
    for mode in MODES {
        let mut sim = Sim::builder().cores(3).mode(mode).build();
        let threads: Vec<_> = (0..9).map(|_| sim.thread().create().unwrap()).collect();
        let pending: Vec<_> = threads
            .iter()
            .map(|thread| thread.spawn(std::future::pending::<()>()))
            .collect();
        sim.run_until_idle().unwrap();
        sim.stop().unwrap();
        assert!(threads.iter().all(SpdkThread::is_exited));
        assert_eq!(sim.library().thread_count(), 0);
        for task in pending {
            assert!(futures::executor::block_on(task).is_err());
        }
        assert!(
            !sim.step() || {
                sim.run_until_idle().unwrap();
                true
            }
        );
    }
}

#[test]
fn a_mode_may_change_while_it_runs() {
    let runs = Sim::builder().cores(2).explore(0..30, |sim| {
        let reactors = sim.reactors();
        let threads: Vec<_> = (0..4).map(|_| sim.thread().create().unwrap()).collect();
        let ran = Arc::new(AtomicUsize::new(0));
        let sender = sim.thread().create().unwrap();
        let handle = sim.handle();
        let count = ran.clone();
        let storm = sender.spawn(async move {
            for round in 0..100 {
                let mode = MODES[handle.random(3) as usize];
                drop(reactors.set_mode(handle.random(2) as usize, mode));
                let count = count.clone();
                let message = move || _ = count.fetch_add(1, Ordering::Relaxed);
                threads[round % 4].send_msg(message).unwrap();
                time::sleep(Duration::from_nanos(handle.random(5_000))).await;
            }
        });
        sim.block_on(storm).unwrap();
        sim.run_until_idle().unwrap();
        assert_eq!(ran.load(Ordering::Relaxed), 100);
    });
    assert_eq!(runs.unwrap(), 30);
}
