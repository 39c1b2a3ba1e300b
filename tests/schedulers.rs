//! What schedulers do with running reactors: rounds, moves, sleeping cores, governors,
//! and what happens when they are switched, refuse, panic or talk nonsense. On a
//! virtual clock that only the tests' own messages advance, so that loads are exact;
//! the arithmetic itself has its table beside it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use corespun::app::{App, AppError, AppHandle};
use corespun::clock::{Clock, VirtualClock};
use corespun::cpu::{self, CpuSet};
use corespun::reactor::governor::{Frequency, Governor, GovernorError};
use corespun::reactor::scheduler::{
    Hold, Plan, Round, Scheduler, SchedulerError, Schedulers, Setup, Snapshot,
};
use corespun::reactor::{ReactorMode, Reactors};
use corespun::task::{self, block_on};
use corespun::thread::{SpdkThread, ThreadLib};
use harness::reactors::{app, must_end, wait_until};
use serde_json::json;

/// Reactors on OS threads of the test's, without an app thread; they stop when this is
/// dropped.
struct Cores {
    reactors: Reactors,
    schedulers: Schedulers,
    hand: VirtualClock,
    seats: Vec<std::thread::JoinHandle<()>>,
}

impl Cores {
    fn new(count: usize, mode: ReactorMode) -> Self {
        let (clock, hand) = Clock::virtual_at(1_000_000);
        hand.set(1_000);
        let library = ThreadLib::builder().clock(clock).build();
        Cores::on(library, hand, count, mode)
    }

    fn on(library: ThreadLib, hand: VirtualClock, count: usize, mode: ReactorMode) -> Self {
        let cpus: Vec<_> = cpu::available().unwrap().iter().collect();
        let places = (0..count).map(|core| (core, cpus[core % cpus.len()]));
        let builder = Reactors::builder().lcores(places).mode(mode);
        let (reactors, seats) = builder.build(&library).unwrap();
        let seats = seats.into_iter();
        let seats = seats.map(|seat| std::thread::spawn(move || seat.run().unwrap()));
        let seats = seats.collect();
        let schedulers = reactors.schedulers();
        // Only rounds that a test asks for.
        block_on(schedulers.set_period(Duration::ZERO)).unwrap();
        Cores {
            seats,
            schedulers,
            reactors,
            hand,
        }
    }

    /// One thread on each core, which may go to any.
    fn threads(&self, count: usize) -> Vec<SpdkThread> {
        let threads: Vec<_> = (0..count)
            .map(|_| self.reactors.thread().create().unwrap())
            .collect();
        for (core, thread) in threads.iter().enumerate() {
            self.arrived(thread, core);
        }
        threads
    }

    /// Time passes, and nobody does anything.
    fn idle(&self, ticks: u64) {
        self.all_rest();
        self.hand.advance(ticks);
    }

    /// A reactor that is in the middle of something would count as busy while time
    /// passes.
    fn all_rest(&self) {
        let quiet = |core: &corespun::reactor::ReactorStats| {
            core.asleep || core.mode != ReactorMode::Interrupt
        };
        wait_until(|| self.reactors.stats().iter().all(quiet));
    }

    fn work(&self, thread: &SpdkThread, ticks: u64) {
        self.all_rest();
        let hand = self.hand.clone();
        let work = thread.call(move || _ = hand.advance(ticks));
        block_on(work).unwrap();
        // The poll of it is over by then.
        block_on(thread.call(|| ())).unwrap();
    }

    fn round(&self) -> Round {
        block_on(self.schedulers.run_round()).unwrap()
    }

    fn arrived(&self, thread: &SpdkThread, core: usize) {
        wait_until(|| thread.core() == Some(core));
    }

    fn counts(&self) -> Vec<usize> {
        let stats = self.reactors.stats();
        stats.iter().map(|one| one.threads).collect()
    }

    fn dynamic(&self) {
        block_on(self.schedulers.set("dynamic")).unwrap();
    }
}

impl Drop for Cores {
    fn drop(&mut self) {
        self.reactors.stop();
        for seat in self.seats.drain(..) {
            let ended = seat.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}

fn moves(round: &Round) -> Vec<(u64, usize, usize)> {
    let moved = round.moved.iter();
    moved.map(|one| (one.thread, one.from, one.to)).collect()
}

/// T-SC-01.
#[test]
fn idle_threads_gather_and_busy_ones_part() {
    must_end(|| {
        let cores = Cores::new(3, ReactorMode::Interrupt);
        let threads = cores.threads(3);
        cores.dynamic();
        cores.round();
        cores.idle(100);
        cores.round();
        threads.iter().for_each(|thread| cores.arrived(thread, 0));
        assert_eq!(cores.counts(), [3, 0, 0]);
        cores.round();
        threads.iter().for_each(|thread| cores.work(thread, 100));
        let round = cores.round();
        assert_eq!(round.moved.len(), 2, "{round:?}");
        wait_until(|| cores.counts() == [1, 1, 1]);
    });
}

/// T-SC-14: later rounds move nothing.
#[test]
fn what_is_idle_stays_where_it_is() {
    must_end(|| {
        let cores = Cores::new(4, ReactorMode::Interrupt);
        let threads = cores.threads(4);
        cores.dynamic();
        cores.idle(1_000);
        cores.round();
        threads.iter().for_each(|thread| cores.arrived(thread, 0));
        for _ in 0..5 {
            cores.idle(1_000);
            let round = cores.round();
            assert!(round.moved.is_empty() && round.held.is_empty(), "{round:?}");
        }
        assert_eq!(cores.counts(), [4, 0, 0, 0]);
    });
}

/// T-SC-16: out when it works, back when it does not, out again.
#[test]
fn a_thread_leaves_and_returns_with_its_load() {
    must_end(|| {
        let cores = Cores::new(2, ReactorMode::Interrupt);
        let threads = cores.threads(2);
        cores.dynamic();
        cores.idle(100);
        cores.round();
        cores.arrived(&threads[1], 0);
        cores.round();
        for _ in 0..2 {
            cores.work(&threads[1], 1_000);
            let gone = cores.round();
            assert_eq!(moves(&gone), [(threads[1].id(), 0, 1)]);
            cores.arrived(&threads[1], 1);
            cores.work(&threads[1], 1_000);
            assert!(cores.round().moved.is_empty());
            cores.idle(1_000);
            let back = cores.round();
            assert_eq!(moves(&back), [(threads[1].id(), 1, 0)]);
            cores.arrived(&threads[1], 0);
            cores.round();
        }
    });
}

/// T-RE-06: a bound thread stays, and the round says what was wanted with it. So does
/// one that holds what is not `Send`.
#[test]
fn bound_threads_stay_and_the_round_says_so() {
    must_end(|| {
        let cores = Cores::new(3, ReactorMode::Interrupt);
        let threads = cores.threads(3);
        threads[1].bind(true);
        cores.dynamic();
        cores.idle(100);
        let round = cores.round();
        assert_eq!(moves(&round), [(threads[2].id(), 2, 0)]);
        let (held, why) = round.held[0];
        assert_eq!((held.thread, held.from, held.to), (threads[1].id(), 1, 0));
        assert_eq!(why, Hold::Bound);
        cores.arrived(&threads[2], 0);
        assert_eq!(threads[1].core(), Some(1));
        let told = cores.schedulers.state().last_round.unwrap();
        assert_eq!(told.held, round.held);
        threads[1].bind(false);
        let task = threads[1].spawn_with(std::future::pending::<()>);
        block_on(threads[1].call(|| ())).unwrap();
        cores.idle(100);
        let round = cores.round();
        assert!(round.moved.is_empty());
        assert_eq!(round.held.len(), 1);
        task.abort();
        block_on(task).unwrap_err();
        cores.idle(100);
        assert_eq!(moves(&cores.round()), [(threads[1].id(), 1, 0)]);
        cores.arrived(&threads[1], 0);
    });
}

/// SC-038, T-SC-19: empty cores sleep, and get the mode back that they had: not poll
/// mode, if that was not theirs.
#[test]
fn a_core_that_was_put_to_sleep_gets_its_mode_back() {
    must_end(|| {
        for mode in [ReactorMode::Adaptive, ReactorMode::Poll] {
            let cores = Cores::new(3, mode);
            let reactor = |core| cores.reactors.reactor(core).unwrap();
            let threads = cores.threads(3);
            cores.dynamic();
            cores.idle(100);
            assert!(
                cores.round().slept.is_empty(),
                "their threads are still there"
            );
            threads.iter().for_each(|thread| cores.arrived(thread, 0));
            cores.idle(100);
            assert_eq!(cores.round().slept, [1, 2]);
            for core in [1, 2] {
                assert_eq!(reactor(core).mode(), ReactorMode::Interrupt);
                assert!(reactor(core).stats().put_to_sleep);
                wait_until(|| reactor(core).stats().asleep);
            }
            assert_eq!(reactor(0).mode(), mode);
            // Asked for by name, its mode is no longer the scheduler's.
            block_on(reactor(2).set_mode(ReactorMode::Interrupt)).unwrap();
            assert!(!reactor(2).stats().put_to_sleep);
            cores.work(&threads[1], 1_000);
            let round = cores.round();
            assert_eq!(round.moved.len(), 1, "{round:?}");
            let to = round.moved[0].to;
            cores.arrived(&threads[1], to);
            if to == 1 {
                assert_eq!((round.woken, reactor(1).mode()), (vec![1], mode));
            }
            assert_eq!(reactor(2).mode(), ReactorMode::Interrupt);
            // So do the others when the scheduler is no longer in use.
            block_on(cores.schedulers.unset()).unwrap();
            wait_until(|| reactor(1).mode() == mode && !reactor(1).stats().put_to_sleep);
            assert_eq!(reactor(2).mode(), ReactorMode::Interrupt);
        }
    });
}

/// RE-013: threads are not placed on a core that a scheduler has put to sleep, unless
/// their mask says so.
#[test]
fn new_threads_avoid_cores_that_were_put_to_sleep() {
    must_end(|| {
        let cores = Cores::new(2, ReactorMode::Adaptive);
        let _keep = cores.threads(1);
        cores.dynamic();
        cores.idle(100);
        assert_eq!(cores.round().slept, [1]);
        for _ in 0..3 {
            let thread = cores.reactors.thread().create().unwrap();
            cores.arrived(&thread, 0);
        }
        let there = cores.reactors.thread().cpumask(CpuSet::single(1)).create();
        let there = there.unwrap();
        cores.arrived(&there, 1);
        block_on(there.call(|| ())).unwrap();
        cores.idle(100);
        assert_eq!(cores.round().woken, [1]);
    });
}

/// T-SC-20: the scheduling core is another than the main core, one core is isolated.
#[test]
fn isolated_cores_are_left_alone() {
    must_end(|| {
        let cores = Cores::new(4, ReactorMode::Interrupt);
        let threads = cores.threads(4);
        block_on(cores.schedulers.set_core(2)).unwrap();
        block_on(cores.schedulers.set_isolated(CpuSet::single(3))).unwrap();
        cores.dynamic();
        cores.idle(100);
        cores.round();
        threads[..3]
            .iter()
            .for_each(|thread| cores.arrived(thread, 2));
        assert_eq!(cores.counts(), [0, 0, 3, 1]);
        cores.work(&threads[3], 10_000);
        assert!(cores.round().moved.is_empty());
        threads[..3]
            .iter()
            .for_each(|thread| cores.work(thread, 1_000));
        assert_eq!(cores.round().moved.len(), 2);
        wait_until(|| cores.counts() == [1, 1, 1, 1]);
        assert_eq!(threads[3].core(), Some(3));
        let state = cores.schedulers.state();
        assert_eq!(
            (state.scheduling_core, state.isolated),
            (2, CpuSet::single(3))
        );
    });
}

/// T-SC-03.
#[test]
fn a_core_without_a_reactor_or_that_schedules_cannot_be_isolated() {
    must_end(|| {
        let cores = Cores::new(3, ReactorMode::Interrupt);
        let set = |list: &[usize]| {
            let mask = list.iter().copied().collect();
            block_on(cores.schedulers.set_isolated(mask))
        };
        assert_eq!(set(&[1, 2]), Ok(()));
        let error = set(&[4]).unwrap_err().to_string();
        assert_eq!(
            error,
            "no reactor runs on [4]; there are reactors on cores [0-2]"
        );
        assert_eq!(set(&[0, 1, 4]).unwrap_err().to_string(), error);
        assert_eq!(set(&[0]), Err(SchedulerError::SchedulingCore { core: 0 }));
        assert_eq!(
            cores.schedulers.state().isolated,
            [1, 2].into_iter().collect()
        );
        let core = block_on(cores.schedulers.set_core(1));
        assert_eq!(core, Err(SchedulerError::SchedulingCore { core: 1 }));
        let beyond = block_on(cores.schedulers.set_core(5_000)).unwrap_err();
        assert!(matches!(beyond, SchedulerError::NoReactor { .. }));
    });
}

/// T-SC-12, SC-020 … 022.
#[test]
fn static_brings_threads_back_to_their_first_or_mapped_cores() {
    must_end(|| {
        let cores = Cores::new(3, ReactorMode::Interrupt);
        assert_eq!(
            cores.schedulers.state().scheduler.as_deref(),
            Some("static")
        );
        let threads = cores.threads(3);
        cores.dynamic();
        cores.idle(100);
        cores.round();
        threads.iter().for_each(|thread| cores.arrived(thread, 0));
        block_on(cores.schedulers.set("static")).unwrap();
        for (core, thread) in threads.iter().enumerate() {
            cores.arrived(thread, core);
            assert_eq!(thread.placement().unwrap().initial_core, core);
        }
        let id = threads[2].id();
        let only_here = cores.reactors.thread().cpumask(CpuSet::single(1)).create();
        let only_here = only_here.unwrap().id();
        let map = |text: String| {
            let options = json!({ "mappings": text });
            block_on(cores.schedulers.set_options("static", options))
        };
        let wrong = [
            (
                format!("{id}:0,999:1"),
                "\"999:1\": there is no thread 999".to_owned(),
            ),
            (
                format!("{id}:7"),
                format!("\"{id}:7\": no reactor runs on core 7, but on [0-2]"),
            ),
            (
                format!("{id}:0,{only_here}:0"),
                format!("\"{only_here}:0\": thread {only_here} may run on cores [1] only"),
            ),
            (
                "x".to_owned(),
                "\"x\" is not a thread's id, a colon and a core".to_owned(),
            ),
        ];
        for (text, message) in wrong {
            let name = "static".to_owned();
            assert_eq!(map(text), Err(SchedulerError::Options { name, message }));
        }
        let rounds = cores.schedulers.state().rounds;
        assert_eq!(threads[2].core(), Some(2), "nothing was applied");
        map(format!("{id}:0")).unwrap();
        cores.arrived(&threads[2], 0);
        wait_until(|| cores.schedulers.state().rounds == rounds + 1);
        let options = block_on(cores.schedulers.options("static")).unwrap();
        assert_eq!(options, json!({ "mappings": format!("{id}:0") }));
    });
}

/// T-SC-11, T-X-18: options survive other schedulers; what does not fit is named, and
/// changes nothing.
#[test]
fn options_are_kept_and_wrong_ones_refused() {
    must_end(|| {
        let cores = Cores::new(1, ReactorMode::Interrupt);
        let schedulers = &cores.schedulers;
        let set = |options| block_on(schedulers.set_options("dynamic", options));
        set(json!({ "core_limit": 42 })).unwrap();
        block_on(schedulers.set_period(Duration::from_micros(424_242))).unwrap();
        cores.dynamic();
        block_on(schedulers.set("static")).unwrap();
        cores.dynamic();
        let kept = block_on(schedulers.options("dynamic")).unwrap();
        let expected = json!({
            "load_limit": 20, "core_limit": 42, "core_busy": 95, "governor": "cpufreq",
        });
        assert_eq!(kept, expected);
        assert_eq!(schedulers.state().period, Duration::from_micros(424_242));
        for (options, named) in [
            (
                json!({ "core_limit": 101 }),
                "core_limit is 101, and 0 to 100 would fit",
            ),
            (json!({ "core_limit": "x" }), "invalid type: string \"x\""),
            (json!({ "core_limits": 1 }), "unknown field `core_limits`"),
            (json!(7), "7 is not an object"),
        ] {
            let error = set(options).unwrap_err().to_string();
            assert!(error.contains(named), "{named}: {error}");
            assert!(error.contains("\"dynamic\""), "{error}");
        }
        assert_eq!(block_on(schedulers.options("dynamic")).unwrap(), expected);
        let unknown = Err(SchedulerError::Unknown {
            name: "dynamo".to_owned(),
            available: "dynamic, gscheduler, static".to_owned(),
        });
        assert_eq!(block_on(schedulers.set("dynamo")), unknown);
        assert_eq!(
            block_on(schedulers.set_options("dynamo", json!({}))),
            unknown
        );
        assert_eq!(schedulers.state().scheduler.as_deref(), Some("dynamic"));
        let twice = schedulers.register("dynamic", Sleepless).unwrap_err();
        assert!(matches!(twice, SchedulerError::Registered { name } if name == "dynamic"));
    });
}

struct Sleepless;

impl Scheduler for Sleepless {
    fn balance(&mut self, _snapshot: &Snapshot) -> Plan {
        Plan::new()
    }
}

/// What a test's scheduler does next.
#[derive(Clone, Default)]
struct Unruly {
    refuses: Arc<AtomicBool>,
    /// What `balance` does: 0 nothing, 1 panics, 2 talks nonsense.
    mood: Arc<AtomicUsize>,
    calls: Arc<Mutex<Vec<&'static str>>>,
}

impl Scheduler for Unruly {
    fn init(&mut self, _setup: &mut Setup<'_>) -> Result<(), String> {
        self.calls.lock().unwrap().push("init");
        match self.refuses.load(Ordering::Relaxed) {
            true => Err("not today".to_owned()),
            false => Ok(()),
        }
    }

    fn deinit(&mut self) {
        self.calls.lock().unwrap().push("deinit");
    }

    fn balance(&mut self, snapshot: &Snapshot) -> Plan {
        let mut plan = Plan::new();
        let thread = snapshot.cores[1].threads[0].id;
        match self.mood.load(Ordering::Relaxed) {
            1 => panic!("in a bad mood"),
            2 => {
                plan.move_thread(thread, 0);
                plan.move_thread(4_711, 0);
            }
            _ => {}
        }
        plan
    }
}

/// A round is abandoned, threads are where they were, and the next round runs.
#[test]
fn a_scheduler_that_panics_or_talks_nonsense_changes_nothing() {
    must_end(|| {
        let told = Arc::new(Mutex::new(Vec::new()));
        let hook = told.clone();
        let (clock, hand) = Clock::virtual_at(1_000_000);
        let library = ThreadLib::builder().clock(clock).panic_hook(move |panic| {
            let report = (format!("{:?}", panic.source), panic.message.to_owned());
            hook.lock().unwrap().push(report);
        });
        let cores = Cores::on(library.build(), hand, 2, ReactorMode::Interrupt);
        let threads = cores.threads(2);
        let unruly = Unruly::default();
        cores.schedulers.register("unruly", unruly.clone()).unwrap();
        block_on(cores.schedulers.set("unruly")).unwrap();
        unruly.mood.store(1, Ordering::Relaxed);
        let error = block_on(cores.schedulers.run_round()).unwrap_err();
        let text = "scheduler \"unruly\" panicked: in a bad mood";
        assert_eq!(error.to_string(), text);
        let report = ("Scheduler".to_owned(), "in a bad mood".to_owned());
        assert_eq!(*told.lock().unwrap(), [report]);
        unruly.mood.store(2, Ordering::Relaxed);
        let error = block_on(cores.schedulers.run_round()).unwrap_err();
        let text = "the plan of scheduler \"unruly\" makes no sense: there is no thread 4711";
        assert_eq!(error.to_string(), text);
        let state = cores.schedulers.state();
        assert_eq!(state.last_round.unwrap().error, Some(error));
        block_on(threads[1].call(|| ())).unwrap();
        assert_eq!(cores.counts(), [1, 1]);
        unruly.mood.store(0, Ordering::Relaxed);
        assert_eq!(cores.round().number, 2);
    });
}

/// SC-002: the old one is used again when the new one refuses.
#[test]
fn a_scheduler_that_refuses_leaves_the_old_one_in_use() {
    must_end(|| {
        let cores = Cores::new(2, ReactorMode::Interrupt);
        let (old, new) = (Unruly::default(), Unruly::default());
        cores.schedulers.register("old", old.clone()).unwrap();
        cores.schedulers.register("new", new.clone()).unwrap();
        block_on(cores.schedulers.set("old")).unwrap();
        new.refuses.store(true, Ordering::Relaxed);
        let error = block_on(cores.schedulers.set("new")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "scheduler \"new\" cannot be used: not today"
        );
        assert_eq!(*old.calls.lock().unwrap(), ["init", "deinit", "init"]);
        assert_eq!(*new.calls.lock().unwrap(), ["init"]);
        assert_eq!(cores.schedulers.state().scheduler.as_deref(), Some("old"));
        // Neither of them any more.
        old.refuses.store(true, Ordering::Relaxed);
        block_on(cores.schedulers.set("new")).unwrap_err();
        assert_eq!(cores.schedulers.state().scheduler, None);
        let none = block_on(cores.schedulers.run_round());
        assert_eq!(none, Err(SchedulerError::Inactive));
        // In use at the end, it is told of that.
        old.refuses.store(false, Ordering::Relaxed);
        block_on(cores.schedulers.set("old")).unwrap();
        drop(cores);
        assert_eq!(old.calls.lock().unwrap().last(), Some(&"deinit"));
    });
}

/// A governor that has a level for each processor.
#[derive(Clone, Default)]
struct Levels {
    level: Arc<Mutex<i64>>,
    begun: Arc<AtomicUsize>,
}

const MAX: i64 = 1_000;

impl Governor for Levels {
    fn init(&mut self, cpus: &CpuSet) -> Result<(), GovernorError> {
        assert!(!cpus.is_empty());
        self.begun.fetch_add(1, Ordering::Relaxed);
        *self.level.lock().unwrap() = 100;
        Ok(())
    }

    fn deinit(&mut self) {
        self.begun.fetch_sub(1, Ordering::Relaxed);
    }

    fn set(&mut self, cpu: usize, frequency: Frequency) -> Result<bool, GovernorError> {
        let main = cpu::available().unwrap().first().unwrap();
        if cpu != main {
            return Ok(false);
        }
        let mut level = self.level.lock().unwrap();
        match frequency {
            Frequency::Up => *level += 1,
            Frequency::Down => *level -= 1,
            Frequency::Max => *level = MAX,
            _ => {}
        }
        Ok(true)
    }

    fn frequency(&mut self, _cpu: usize) -> Result<u32, GovernorError> {
        Ok(*self.level.lock().unwrap() as u32)
    }
}

/// T-SC-02; with loads for which SC-037 does not relieve the main core in its second
/// part.
#[test]
fn the_governor_follows_the_load_of_the_main_core() {
    must_end(|| {
        let cores = Cores::new(2, ReactorMode::Interrupt);
        let levels = Levels::default();
        let level = || *levels.level.lock().unwrap();
        cores
            .schedulers
            .register_governor("levels", levels.clone())
            .unwrap();
        let options = json!({ "governor": "levels" });
        block_on(cores.schedulers.set_options("dynamic", options)).unwrap();
        let threads = cores.threads(2);
        cores.dynamic();
        assert_eq!(cores.schedulers.state().governor.as_deref(), Some("levels"));
        cores.idle(100);
        cores.round();
        threads.iter().for_each(|thread| cores.arrived(thread, 0));
        // The processors of both cores may be one, where there is only one.
        if cpu::available().unwrap().count() < 2 {
            return;
        }
        assert_eq!(level(), 99);
        cores.work(&threads[0], 600);
        cores.idle(500);
        assert!(cores.round().moved.is_empty());
        assert_eq!(level(), 100);
        cores.work(&threads[1], 2_000);
        assert_eq!(moves(&cores.round()), [(threads[1].id(), 0, 1)]);
        assert_eq!(level(), MAX);
        // T-SC-13, and what becomes of it.
        let frequencies = block_on(cores.schedulers.frequencies()).unwrap();
        assert_eq!(frequencies, [(0, MAX as u32), (1, MAX as u32)]);
        assert_eq!(levels.begun.load(Ordering::Relaxed), 1);
        block_on(cores.schedulers.set("static")).unwrap();
        assert_eq!(levels.begun.load(Ordering::Relaxed), 0);
        assert_eq!(block_on(cores.schedulers.frequencies()), Ok(Vec::new()));
    });
}

/// SC-050: without a governor there is nothing that `gscheduler` could do.
#[test]
fn gscheduler_wants_a_governor() {
    must_end(|| {
        let cores = Cores::new(1, ReactorMode::Interrupt);
        let set = |name: &str| {
            let options = json!({ "governor": name });
            block_on(cores.schedulers.set_options("gscheduler", options)).unwrap();
            block_on(cores.schedulers.set("gscheduler"))
        };
        let error = set("none").unwrap_err().to_string();
        assert!(
            error.ends_with("there is no governor \"none\"; registered are cpufreq"),
            "{error}"
        );
        assert_eq!(
            cores.schedulers.state().scheduler.as_deref(),
            Some("static")
        );
        cores
            .schedulers
            .register_governor("levels", Levels::default())
            .unwrap();
        set("levels").unwrap();
        cores.idle(100);
        assert_eq!(cores.round().frequencies, [(0, Frequency::Min)]);
    });
}

/// SC-003, 004: rounds by themselves, also where the scheduling core sleeps; on real
/// time, because that is what ends such a sleep.
#[test]
fn rounds_begin_once_per_period_in_every_mode() {
    for mode in [
        ReactorMode::Poll,
        ReactorMode::Adaptive,
        ReactorMode::Interrupt,
    ] {
        must_end(move || {
            let app = app(2, mode)
                .scheduler("dynamic", json!({ "load_limit": 10 }))
                .scheduler_period(Duration::from_millis(1));
            let code = app.run(async |app: AppHandle| {
                std::thread::spawn(move || {
                    let schedulers = app.reactors().schedulers();
                    wait_until(|| schedulers.state().rounds >= 20);
                    block_on(schedulers.set_period(Duration::ZERO)).unwrap();
                    // One that was about to begin may still come.
                    std::thread::sleep(Duration::from_millis(20));
                    let rounds = schedulers.state().rounds;
                    std::thread::sleep(Duration::from_millis(20));
                    let after = schedulers.state().rounds;
                    app.stop(i32::from(after != rounds));
                });
            });
            assert_eq!(code.unwrap(), 0, "{mode:?}");
        });
    }
}

/// F.6 (3550, 3388), T-SC-10: schedulers are switched, periods changed, walks begun,
/// threads made and ended while rounds run back to back; then all ends.
#[test]
fn schedulers_are_switched_between_rounds_only_and_the_end_comes() {
    must_end(|| {
        let app = app(3, ReactorMode::Adaptive).scheduler_period(Duration::from_micros(1));
        let code = app.run(async |app: AppHandle| {
            let reactors = app.reactors();
            fn walk(reactors: Reactors, app: AppHandle) {
                let again = (reactors.clone(), app);
                // Refused at the end.
                let _ = reactors.for_each_reactor(|_| (), move |_| walk(again.0, again.1));
            }
            walk(reactors.clone(), app.clone());
            let switch = |names: [&'static str; 2]| {
                let schedulers = reactors.schedulers();
                std::thread::spawn(move || {
                    for name in names.into_iter().cycle().take(200) {
                        match block_on(schedulers.set(name)) {
                            Ok(()) | Err(SchedulerError::Stopping) => {}
                            Err(other) => panic!("{other}"),
                        }
                    }
                })
            };
            let switchers = [switch(["dynamic", "static"]), switch(["static", "dynamic"])];
            for _ in 0..50 {
                let thread = app.thread().create().unwrap();
                thread.call(|| ()).await.unwrap();
                thread.exit().await;
            }
            let stopper = app.clone();
            std::thread::spawn(move || {
                for switcher in switchers {
                    switcher.join().unwrap();
                }
                let state = stopper.reactors().schedulers().state();
                stopper.stop(if state.rounds > 0 { 3 } else { 4 });
            });
        });
        assert_eq!(code.unwrap(), 3);
    });
}

/// What is wrong is said before anything starts.
#[test]
fn an_app_with_a_wrong_scheduler_does_not_start() {
    let start = |app: corespun::app::AppBuilder| match app.block_on(async |_app| ()) {
        Err(AppError::Scheduler(error)) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let unknown = start(app(1, ReactorMode::Interrupt).scheduler("dynamo", json!(null)));
    assert!(unknown.starts_with("there is no scheduler \"dynamo\""));
    let builder = app(2, ReactorMode::Interrupt);
    let isolated = start(builder.isolated_cores(CpuSet::single(0)));
    assert_eq!(isolated, "core 0 runs the scheduler and cannot be isolated");
    let core = start(app(1, ReactorMode::Interrupt).scheduling_core(3));
    assert!(core.contains("[3]") && core.contains("[0]"), "{core}");
    let mine = app(2, ReactorMode::Interrupt)
        .scheduling_core(1)
        .isolated_cores(CpuSet::single(0))
        .register_scheduler("mine", Sleepless)
        .scheduler("mine", json!(null));
    let state = mine.block_on(async |app: AppHandle| app.reactors().schedulers().state());
    let state = state.unwrap();
    assert_eq!(
        (state.scheduler.as_deref(), state.scheduling_core),
        (Some("mine"), 1)
    );
}

/// Two apps in one process know nothing of each other's schedulers.
#[test]
fn schedulers_belong_to_their_reactors() {
    let inside = app(1, ReactorMode::Interrupt).block_on(async |app: AppHandle| {
        let mine = app.reactors().schedulers();
        mine.register("mine", Sleepless).unwrap();
        let other = std::thread::spawn(|| {
            App::builder()
                .handle_signals(false)
                .block_on(async |app: AppHandle| app.reactors().schedulers().names())
        });
        while !other.is_finished() {
            task::yield_now().await;
        }
        (mine.names(), other.join().unwrap().unwrap())
    });
    let (mine, others) = inside.unwrap();
    assert_eq!(mine, ["dynamic", "gscheduler", "mine", "static"]);
    assert_eq!(others, ["dynamic", "gscheduler", "static"]);
}
