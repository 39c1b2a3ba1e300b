//! Scenarios of the reference's scheduler tests on simulated cores: loads are parts of
//! virtual time, rounds come by their period, and nothing else uses the machine.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use corespun::cpu::CpuSet;
use corespun::reactor::governor::{Frequency, Governor, GovernorError};
use corespun::reactor::scheduler::{
    Hold, Plan, Round, Scheduler, SchedulerError, Schedulers, Setup, Snapshot,
};
use corespun::reactor::{ReactorMode, Reactors};
use corespun::sim::Sim;
use corespun::task::yield_now;
use corespun::thread::SpdkThread;
use corespun::time::sleep;
use futures::FutureExt;
use serde_json::json;

const PERIOD: Duration = Duration::from_millis(10);

fn us(us: u64) -> Duration {
    Duration::from_micros(us)
}

/// Cores on which only work takes time, in µs.
fn cores(count: usize) -> Sim {
    let sim = Sim::builder().cores(count).exact().hz(1_000_000);
    let mut sim = sim.build();
    // Who has never run has never had a tick.
    sim.advance(us(5));
    sim
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

/// `dynamic` that runs by its period.
fn dynamic(sim: &mut Sim) -> Schedulers {
    let schedulers = sim.reactors().schedulers();
    answer(sim, schedulers.set("dynamic")).unwrap();
    answer(sim, schedulers.set_period(PERIOD)).unwrap();
    schedulers
}

fn periods(sim: &mut Sim, count: u32) {
    sim.run_for(PERIOD * count).unwrap();
}

fn counts(sim: &Sim) -> Vec<usize> {
    let stats = sim.reactors().stats();
    stats.iter().map(|one| one.threads).collect()
}

fn asleep(sim: &Sim) -> Vec<bool> {
    let stats = sim.reactors().stats();
    stats.iter().map(|one| one.asleep).collect()
}

fn round(sim: &mut Sim) -> Round {
    let schedulers = sim.reactors().schedulers();
    answer(sim, schedulers.run_round()).unwrap()
}

fn moves(round: &Round) -> Vec<(u64, usize, usize)> {
    let moved = round.moved.iter();
    moved.map(|one| (one.thread, one.from, one.to)).collect()
}

/// A thread that works so many percent of its time, which can be changed.
#[derive(Clone)]
struct Worker {
    thread: SpdkThread,
    percent: Arc<AtomicU64>,
}

impl Worker {
    /// Begins on `core` and may go to any of `mask`.
    fn new(sim: &mut Sim, core: usize, mask: &[usize], percent: u64) -> Worker {
        let thread = sim.thread().cpumask(CpuSet::single(core));
        let thread = thread.create().unwrap();
        let load = Arc::new(AtomicU64::new(percent));
        let (percent, time) = (load.clone(), sim.handle());
        let mask: CpuSet = mask.iter().copied().collect();
        let work = async move || {
            SpdkThread::current().unwrap().set_cpumask(&mask).unwrap();
            loop {
                let percent = load.load(Ordering::Relaxed);
                if percent > 0 {
                    time.spend(us(percent));
                }
                match percent {
                    100 => yield_now().await,
                    _ => sleep(us(100 - percent)).await,
                }
            }
        };
        // A task that may move along.
        drop(thread.spawn(async move { work().await }));
        while thread.core() != Some(core) {
            assert!(sim.step());
        }
        Worker { thread, percent }
    }

    fn set(&self, percent: u64) {
        self.percent.store(percent, Ordering::Relaxed);
    }

    fn core(&self) -> usize {
        self.thread.core().unwrap()
    }

    /// Keeps its core busy for so many µs, once.
    fn works_for(&self, sim: &mut Sim, time: u64) {
        let handle = sim.handle();
        let work = self.thread.call(move || handle.spend(us(time)));
        sim.block_on(work).unwrap();
        // Elsewhere it is still the time at which that began.
        sim.run_for(us(time)).unwrap();
    }
}

/// T-RE-06: idle threads go to the main core, but for one that is bound.
#[test]
fn a_bound_thread_stays_where_it_is() {
    let mut sim = cores(3);
    let all = [0, 1, 2];
    let threads = all.map(|core| Worker::new(&mut sim, core, &all, 0));
    threads[1].thread.bind(true);
    let schedulers = sim.reactors().schedulers();
    answer(&mut sim, schedulers.set("dynamic")).unwrap();
    answer(&mut sim, schedulers.set_period(Duration::ZERO)).unwrap();
    round(&mut sim);
    sim.run_for(us(100)).unwrap();
    let round = round(&mut sim);
    sim.run_for(us(10)).unwrap();
    assert_eq!(counts(&sim), [2, 1, 0]);
    assert_eq!((threads[1].core(), threads[2].core()), (1, 0));
    let bound = threads[1].thread.id();
    let held = round.held.iter();
    let held: Vec<_> = held.map(|(thread, why)| (thread.thread, *why)).collect();
    assert_eq!(held, [(bound, Hold::Bound)]);
}

/// A level for the main core, as the reference's test has it.
struct Level(Arc<AtomicI64>);

const MAX: i64 = 1_000;

impl Governor for Level {
    fn init(&mut self, _cpus: &CpuSet) -> Result<(), GovernorError> {
        self.0.store(100, Ordering::Relaxed);
        Ok(())
    }

    fn deinit(&mut self) {}

    fn set(&mut self, cpu: usize, frequency: Frequency) -> Result<bool, GovernorError> {
        if cpu == 0 {
            match frequency {
                Frequency::Up => _ = self.0.fetch_add(1, Ordering::Relaxed),
                Frequency::Down => _ = self.0.fetch_sub(1, Ordering::Relaxed),
                Frequency::Max => self.0.store(MAX, Ordering::Relaxed),
                _ => {}
            }
        }
        Ok(true)
    }

    fn frequency(&mut self, _cpu: usize) -> Result<u32, GovernorError> {
        Ok(self.0.load(Ordering::Relaxed) as u32)
    }
}

/// T-SC-02, T-SC-13; in the second part with a load for which SC-037 does not relieve the
/// main core.
#[test]
fn the_governor_follows_the_main_core() {
    let mut sim = cores(2);
    let level = Arc::new(AtomicI64::new(0));
    let schedulers = sim.reactors().schedulers();
    let governor = Level(level.clone());
    schedulers.register_governor("level", governor).unwrap();
    let level = || level.load(Ordering::Relaxed);
    let options = json!({ "governor": "level" });
    answer(&mut sim, schedulers.set_options("dynamic", options)).unwrap();
    answer(&mut sim, schedulers.set("dynamic")).unwrap();
    answer(&mut sim, schedulers.set_period(Duration::ZERO)).unwrap();
    let all = [0, 1];
    let threads = all.map(|core| Worker::new(&mut sim, core, &all, 0));
    round(&mut sim);
    let begun = level();
    sim.run_for(us(100)).unwrap();
    round(&mut sim);
    sim.run_for(us(10)).unwrap();
    assert_eq!(counts(&sim)[..2], [2, 0]);
    assert_eq!(level(), begun - 1);
    threads[0].works_for(&mut sim, 600);
    sim.run_for(us(500)).unwrap();
    assert_eq!(moves(&round(&mut sim)), []);
    assert_eq!(level(), begun);
    threads[1].works_for(&mut sim, 2_000);
    let moved = round(&mut sim);
    let of_two = |one: &&(u64, usize, usize)| one.0 == threads[1].thread.id();
    assert!(moves(&moved).iter().any(|one| of_two(&one)), "{moved:?}");
    assert_eq!(level(), MAX);
    let frequencies = answer(&mut sim, schedulers.frequencies()).unwrap();
    assert_eq!(frequencies, [(0, MAX as u32), (1, MAX as u32)]);
}

/// T-SC-03.
#[test]
fn isolated_cores_are_of_the_app_and_do_not_schedule() {
    let mut sim = cores(3);
    let schedulers = sim.reactors().schedulers();
    let mut set = |cores: &[usize]| {
        let mask = cores.iter().copied().collect();
        answer(&mut sim, schedulers.set_isolated(mask))
    };
    assert_eq!(set(&[1, 2]), Ok(()));
    for wrong in [&[4][..], &[0, 1, 4]] {
        assert!(matches!(set(wrong), Err(SchedulerError::NoReactor { .. })));
    }
    let isolated = schedulers.state().isolated;
    assert_eq!(isolated, [1, 2].into_iter().collect());
}

/// Walks over the reactors from now on, one after the other.
fn walks_without_end(reactors: Reactors) {
    let again = reactors.clone();
    // Refused in the end, when all stop.
    let _ = reactors.for_each_reactor(|_| (), move |_| walks_without_end(again));
}

/// T-SC-10: pinned and free threads, some of which come, go and change, while walks are
/// under way; the end comes all the same.
#[test]
fn a_scheduler_and_walks_without_end_come_to_an_end() {
    let runs = Sim::builder().cores(4).mode(ReactorMode::Interrupt);
    let runs = runs.turn_limit(2_000_000).explore(0..8, |sim| {
        let schedulers = sim.reactors().schedulers();
        answer(sim, schedulers.set_core(2)).unwrap();
        let schedulers = dynamic(sim);
        let walks = sim.reactors();
        let begin = move || walks_without_end(walks);
        sim.reactors().send_event(2, begin).unwrap();
        for core in 0..4 {
            Worker::new(sim, core, &[core], 60);
            Worker::new(sim, core, &[core], 0);
        }
        let free = Worker::new(sim, 0, &[0, 1, 2, 3], 30);
        let changes = Worker::new(sim, 1, &[0, 1, 2, 3], 0);
        periods(sim, 1);
        changes.set(50);
        let short = Worker::new(sim, 3, &[0, 1, 2, 3], 25);
        periods(sim, 1);
        sim.block_on(short.thread.exit());
        periods(sim, 1);
        assert!(schedulers.state().last_round.is_some());
        assert!(free.thread.is_running());
        sim.stop().unwrap();
        assert!(free.thread.is_exited());
    });
    assert_eq!(runs.unwrap(), 8);
}

/// T-SC-14: all on the main core, and none moves any more.
#[test]
fn idle_threads_come_to_the_main_core_and_stay() {
    let mut sim = cores(4);
    let all = [0, 1, 2, 3];
    let threads = all.map(|core| Worker::new(&mut sim, core, &all, 0));
    let schedulers = dynamic(&mut sim);
    periods(&mut sim, 3);
    for _ in 0..5 {
        periods(&mut sim, 1);
        assert_eq!(counts(&sim), [4, 0, 0, 0]);
        assert!(schedulers.state().last_round.unwrap().moved.is_empty());
        for one in &threads {
            let stats = one.thread.stats();
            assert!(stats.idle_ticks > stats.busy_ticks);
        }
    }
}

/// T-SC-15.
#[test]
fn two_busy_threads_have_a_core_each() {
    let mut sim = cores(3);
    let two = [1, 2];
    let threads = [1, 1].map(|core| Worker::new(&mut sim, core, &two, 100));
    let schedulers = dynamic(&mut sim);
    periods(&mut sim, 10);
    for _ in 0..5 {
        let before = threads.clone().map(|one| one.thread.stats().busy_ticks);
        periods(&mut sim, 1);
        assert_eq!(counts(&sim), [0, 1, 1]);
        assert!(schedulers.state().last_round.unwrap().moved.is_empty());
        for (one, before) in threads.iter().zip(before) {
            assert!(one.thread.stats().busy_ticks - before >= 9_500);
        }
    }
}

/// T-SC-16, SC-038: a thread leaves the main core, comes back and leaves again with its
/// load, while others keep the other cores busy; and its core is the quietest.
#[test]
fn a_thread_follows_its_load_away_and_back() {
    let mut sim = cores(3);
    let _keeps = Worker::new(&mut sim, 1, &[1], 60);
    let thread = Worker::new(&mut sim, 0, &[0, 1, 2], 0);
    let _main = Worker::new(&mut sim, 0, &[0], 60);
    dynamic(&mut sim);
    periods(&mut sim, 2);
    for _ in 0..2 {
        thread.set(100);
        periods(&mut sim, 3);
        assert_eq!(thread.core(), 2);
        thread.set(0);
        periods(&mut sim, 3);
        assert_eq!(thread.core(), 0);
    }
}

/// T-SC-17: what fits stays on the main core, and no other is above the limit.
#[test]
fn threads_fill_the_main_core_up_to_its_limit() {
    let mut sim = cores(3);
    let all = [0, 1, 2];
    let mut threads = vec![Worker::new(&mut sim, 0, &all, 90)];
    dynamic(&mut sim);
    periods(&mut sim, 3);
    assert_eq!(threads[0].core(), 0);
    threads.push(Worker::new(&mut sim, 0, &all, 90));
    periods(&mut sim, 3);
    let mut places: Vec<_> = threads.iter().map(Worker::core).collect();
    places.sort_unstable();
    assert_eq!(places[0], 0);
    assert_ne!(places[1], 0);
    threads.iter().for_each(|one| one.set(10));
    threads.push(Worker::new(&mut sim, 0, &all, 10));
    periods(&mut sim, 4);
    assert_eq!(counts(&sim), [3, 0, 0]);
    // Twice 25 would be at the limit.
    threads.extend([24; 3].map(|percent| Worker::new(&mut sim, 0, &all, percent)));
    periods(&mut sim, 6);
    assert_eq!(counts(&sim)[0], 5, "{:?}", counts(&sim));
}

/// T-SC-19: cores without threads sleep, and wake for one that is busy.
#[test]
fn cores_without_threads_sleep() {
    let mut sim = cores(3);
    let thread = Worker::new(&mut sim, 1, &[0, 1], 0);
    let all = [0, 1, 2];
    let _others = [0, 2].map(|core| Worker::new(&mut sim, core, &all, 0));
    dynamic(&mut sim);
    periods(&mut sim, 4);
    assert_eq!(counts(&sim), [3, 0, 0]);
    assert_eq!(asleep(&sim), [false, true, true]);
    // From now on there is no other core for it.
    let pins = || {
        let thread = SpdkThread::current().unwrap();
        thread.set_cpumask(&CpuSet::single(1)).unwrap();
    };
    thread.thread.send_msg(pins).unwrap();
    thread.set(100);
    periods(&mut sim, 3);
    assert_eq!(counts(&sim), [2, 1, 0]);
    assert_eq!(asleep(&sim), [false, false, true]);
    thread.set(0);
    let frees = || {
        let thread = SpdkThread::current().unwrap();
        thread.set_cpumask(&[0, 1].into_iter().collect()).unwrap();
    };
    thread.thread.send_msg(frees).unwrap();
    periods(&mut sim, 4);
    assert_eq!(counts(&sim), [3, 0, 0]);
    assert_eq!(asleep(&sim), [false, true, true]);
}

/// T-SC-20: the core that schedules is not the first, and another is left alone.
#[test]
fn an_isolated_core_keeps_its_threads_whatever_they_do() {
    let mut sim = cores(4);
    let all = [0, 1, 2, 3];
    let threads = all.map(|core| Worker::new(&mut sim, core, &all, 0));
    let schedulers = sim.reactors().schedulers();
    answer(&mut sim, schedulers.set_core(1)).unwrap();
    let isolated = schedulers.set_isolated(CpuSet::single(3));
    answer(&mut sim, isolated).unwrap();
    let schedulers = dynamic(&mut sim);
    periods(&mut sim, 4);
    assert_eq!(counts(&sim), [0, 3, 0, 1]);
    for percent in [0, 80] {
        threads[3].set(percent);
        periods(&mut sim, 3);
        assert_eq!(counts(&sim), [0, 3, 0, 1]);
        // Nor does it want to.
        assert_eq!(schedulers.state().last_round.unwrap().held, []);
    }
    threads[..3].iter().for_each(|one| one.set(80));
    periods(&mut sim, 5);
    assert_eq!(counts(&sim), [1; 4]);
    assert_eq!(threads[3].core(), 3);
}

/// Moves every thread to one core, whatever it is.
struct Gathers(usize);

impl Scheduler for Gathers {
    fn balance(&mut self, snapshot: &Snapshot) -> Plan {
        let mut plan = Plan::new();
        for thread in snapshot.cores.iter().flat_map(|core| &core.threads) {
            plan.move_thread(thread.id, self.0);
        }
        plan
    }
}

/// SC-008: neither to an isolated core nor from one, whatever a scheduler wants.
#[test]
fn nobody_moves_a_thread_to_an_isolated_core_or_from_one() {
    let mut sim = cores(3);
    let all = [0, 1, 2];
    let threads = all.map(|core| Worker::new(&mut sim, core, &all, 0));
    let schedulers = sim.reactors().schedulers();
    let isolated = schedulers.set_isolated(CpuSet::single(2));
    answer(&mut sim, isolated).unwrap();
    answer(&mut sim, schedulers.set_period(Duration::ZERO)).unwrap();
    for (name, to) in [("to it", 2), ("from it", 1)] {
        schedulers.register(name, Gathers(to)).unwrap();
        answer(&mut sim, schedulers.set(name)).unwrap();
        let round = round(&mut sim);
        let ids = |which: &[usize]| -> Vec<_> {
            let ids = which.iter().map(|&n| threads[n].thread.id());
            ids.collect()
        };
        let held = round.held.iter();
        assert!(held.clone().all(|(_, why)| *why == Hold::Isolated));
        let mut held: Vec<_> = held.map(|(one, _)| one.thread).collect();
        held.sort_unstable();
        let expected = if to == 2 { ids(&[0, 1]) } else { ids(&[2]) };
        assert_eq!(held, expected);
        sim.run_for(us(10)).unwrap();
    }
    assert_eq!(counts(&sim), [0, 2, 1]);
}

/// Notes what is asked of it.
struct Notes(&'static str, Arc<Mutex<Vec<String>>>);

impl Notes {
    fn note(&self, call: &str) {
        self.1.lock().unwrap().push(format!("{call} {}", self.0));
    }
}

impl Scheduler for Notes {
    fn init(&mut self, _setup: &mut Setup<'_>) -> Result<(), String> {
        self.note("init");
        Ok(())
    }

    fn deinit(&mut self) {
        self.note("deinit");
    }

    fn balance(&mut self, _snapshot: &Snapshot) -> Plan {
        self.note("balance");
        Plan::new()
    }
}

/// One that is switched while a round of it goes from core to core ends that round first.
#[test]
fn a_round_is_ended_by_who_began_it() {
    let runs = Sim::builder().cores(4).mode(ReactorMode::Poll);
    let runs = runs.explore(0..50, |sim| {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let schedulers = sim.reactors().schedulers();
        for name in ["one", "other"] {
            let notes = Notes(name, calls.clone());
            schedulers.register(name, notes).unwrap();
        }
        answer(sim, schedulers.set_period(Duration::ZERO)).unwrap();
        answer(sim, schedulers.set("one")).unwrap();
        let round = schedulers.run_round();
        let switched = schedulers.set("other");
        assert_eq!(answer(sim, round).unwrap().scheduler, "one");
        answer(sim, switched).unwrap();
        let calls = std::mem::take(&mut *calls.lock().unwrap());
        assert_eq!(
            calls,
            ["init one", "balance one", "deinit one", "init other"]
        );
    });
    assert_eq!(runs.unwrap(), 50);
}
