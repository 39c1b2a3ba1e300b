//! Scheduling where its parts meet: a governor or a destructor that panics, a refusal with
//! nothing to fall back to, and a scheduling core that changes while cores sleep or all
//! stop.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use corespun::app::AppHandle;
use corespun::cpu::{self, CpuSet};
use corespun::reactor::governor::{Frequency, Governor, GovernorError};
use corespun::reactor::scheduler::{Plan, Rounds, Scheduler, SchedulerError, Setup, Snapshot};
use corespun::reactor::{ReactorMode, Reactors};
use corespun::task::block_on;
use corespun::thread::ThreadLib;
use harness::reactors::{app, must_end, stats, wait_until};

/// Counts its beginnings and ends.
#[derive(Clone, Default)]
struct Counts(Arc<[AtomicUsize; 2]>);

impl Counts {
    fn get(&self) -> [usize; 2] {
        self.0.each_ref().map(|one| one.load(Ordering::SeqCst))
    }
}

/// A governor that cannot say a frequency.
struct Fragile(Counts);

impl Governor for Fragile {
    fn init(&mut self, _cpus: &CpuSet) -> Result<(), GovernorError> {
        self.0.0[0].fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn deinit(&mut self) {
        self.0.0[1].fetch_add(1, Ordering::SeqCst);
    }

    fn set(&mut self, _cpu: usize, _frequency: Frequency) -> Result<bool, GovernorError> {
        Ok(false)
    }

    fn frequency(&mut self, _cpu: usize) -> Result<u32, GovernorError> {
        panic!("no thermometer either")
    }
}

/// Takes the governor `fragile`, and is content with that or not.
struct Takes {
    content: bool,
    ends: Counts,
}

impl Scheduler for Takes {
    fn init(&mut self, setup: &mut Setup<'_>) -> Result<(), String> {
        setup
            .set_governor("fragile")
            .map_err(|error| error.to_string())?;
        match self.content {
            true => Ok(()),
            false => Err("not content".to_owned()),
        }
    }

    fn deinit(&mut self) {
        self.ends.0[1].fetch_add(1, Ordering::SeqCst);
    }

    fn balance(&mut self, _snapshot: &Snapshot) -> Plan {
        Plan::new()
    }

    fn rounds(&self) -> Rounds {
        Rounds::Never
    }
}

#[test]
fn a_governor_that_panics_when_asked_for_a_frequency_is_contained() {
    let seen = must_end(|| {
        app(1, ReactorMode::Interrupt).block_on(async |app: AppHandle| {
            let schedulers = app.reactors().schedulers();
            let fragile = Fragile(Counts::default());
            schedulers.register_governor("fragile", fragile).unwrap();
            let takes = Takes {
                content: true,
                ends: Counts::default(),
            };
            schedulers.register("takes", takes).unwrap();
            schedulers.set("takes").await.unwrap();
            schedulers.frequencies().await
        })
    });
    let error = seen.unwrap().unwrap_err();
    assert!(
        matches!(&error, SchedulerError::Governor(GovernorError::Panicked { name, .. }) if name == "fragile"),
        "{error}"
    );
}

#[test]
fn a_refusal_takes_its_governor_along_also_where_no_scheduler_was_set() {
    let (counts, governor) = must_end(|| {
        let app = app(1, ReactorMode::Interrupt);
        let run = app.block_on(async |app: AppHandle| {
            let schedulers = app.reactors().schedulers();
            let counts = Counts::default();
            let fragile = Fragile(counts.clone());
            schedulers.register_governor("fragile", fragile).unwrap();
            let takes = Takes {
                content: false,
                ends: Counts::default(),
            };
            schedulers.register("takes", takes).unwrap();
            schedulers.unset().await.unwrap();
            schedulers.set("takes").await.unwrap_err();
            (counts.get(), schedulers.state().governor)
        });
        run.unwrap()
    });
    assert_eq!((counts, governor), ([1, 1], None));
}

/// Puts every other core to sleep.
struct Lullaby;

impl Scheduler for Lullaby {
    fn balance(&mut self, snapshot: &Snapshot) -> Plan {
        let mut plan = Plan::new();
        let others = snapshot.cores.iter().map(|core| core.core);
        let others = others.filter(|core| *core != snapshot.scheduling_core);
        others.for_each(|core| plan.sleep(core));
        plan
    }

    fn rounds(&self) -> Rounds {
        Rounds::Never
    }
}

#[test]
fn a_core_that_becomes_the_scheduling_core_or_isolated_is_woken() {
    let seen = must_end(|| {
        let app = app(3, ReactorMode::Adaptive);
        let run = app.block_on(async |app: AppHandle| {
            let schedulers = app.reactors().schedulers();
            schedulers.register("lullaby", Lullaby).unwrap();
            schedulers.set("lullaby").await.unwrap();
            assert_eq!(schedulers.run_round().await.unwrap().slept, [1, 2]);
            schedulers.set_core(1).await.unwrap();
            schedulers.set_isolated(CpuSet::single(2)).await.unwrap();
            let reactors = app.reactors().clone();
            let mut seen = Vec::new();
            for core in [1, 2] {
                reactors.call(core, || ()).await.unwrap();
                let stats = stats(&reactors, core);
                seen.push((stats.put_to_sleep, stats.mode));
            }
            seen
        });
        run.unwrap()
    });
    assert_eq!(seen, [(false, ReactorMode::Adaptive); 2]);
}

#[test]
fn a_scheduler_is_told_its_end_though_the_scheduling_core_moves_while_all_stop() {
    let ends = Counts::default();
    let told = ends.clone();
    must_end(move || {
        let app = app(2, ReactorMode::Interrupt);
        let run = app.block_on(async move |app: AppHandle| {
            let schedulers = app.reactors().schedulers();
            let fragile = Fragile(Counts::default());
            schedulers.register_governor("fragile", fragile).unwrap();
            let takes = Takes {
                content: true,
                ends: told,
            };
            schedulers.register("takes", takes).unwrap();
            schedulers.set("takes").await.unwrap();
            let there = app.thread().cpumask(CpuSet::single(1)).create().unwrap();
            let (lives, ended) = mpsc::channel::<()>();
            let task = there.spawn(async move {
                let _lives = lives;
                std::future::pending::<()>().await;
            });
            there.call(|| ()).await.unwrap();
            let reactors = app.reactors().clone();
            // Both in one turn of core 0.
            let event = move || {
                reactors.stop();
                // Core 1 has begun its end.
                ended.recv().unwrap_err();
            };
            app.reactors().send_event(0, event).unwrap();
            schedulers.set_core(1).await.ok();
            drop(task);
        });
        run.unwrap();
    });
    assert_eq!(ends.get()[1], 1);
}

/// Panics when it is dropped, unless it is told not to.
struct Grenade(Arc<AtomicBool>);

impl Drop for Grenade {
    fn drop(&mut self) {
        assert!(!self.0.load(Ordering::SeqCst), "a scheduler's destructor");
    }
}

impl Scheduler for Grenade {
    fn balance(&mut self, _snapshot: &Snapshot) -> Plan {
        Plan::new()
    }
}

#[test]
fn schedulers_whose_destructors_panic_are_contained() {
    let ended = must_end(|| {
        std::panic::catch_unwind(|| {
            app(1, ReactorMode::Interrupt)
                .block_on(async |app: AppHandle| {
                    let schedulers = app.reactors().schedulers();
                    for name in ["one", "another"] {
                        let armed = Arc::new(AtomicBool::new(true));
                        schedulers.register(name, Grenade(armed)).unwrap();
                    }
                    schedulers.set_period(Duration::ZERO).await.unwrap();
                })
                .unwrap();
        })
        .is_ok()
    });
    assert!(ended, "the panic came out of the app");
}

/// The reactor of the scheduling core unwinds while a round is on another core.
#[test]
fn who_waits_for_a_round_that_is_lost_is_told() {
    let error = must_end(|| {
        let armed = Arc::new(AtomicBool::new(false));
        let strikes = armed.clone();
        let after = move |core| assert!(core != 0 || !strikes.load(Ordering::SeqCst), "a hook");
        let cpus: Vec<_> = cpu::available().unwrap().iter().collect();
        let builder =
            Reactors::builder().lcores((0..2).map(|core| (core, cpus[core % cpus.len()])));
        let builder = builder
            .mode(ReactorMode::Interrupt)
            .sleep_hooks(|_| (), after);
        let (reactors, seats) = builder.build(&ThreadLib::new()).unwrap();
        let seats = seats.into_iter();
        let seats: Vec<_> = seats
            .map(|seat| std::thread::spawn(|| drop(seat.run())))
            .collect();
        let (begun, begins) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let holds = move || {
            begun.send(()).unwrap();
            let _ = released.recv();
        };
        reactors.send_event(1, holds).unwrap();
        begins.recv().unwrap();
        let schedulers = reactors.schedulers();
        let round = schedulers.run_round();
        // It has left core 0, which sleeps now.
        block_on(reactors.call(0, || ())).unwrap();
        wait_until(|| stats(&reactors, 0).asleep);
        armed.store(true, Ordering::SeqCst);
        drop(release);
        let error = block_on(round).unwrap_err();
        seats.into_iter().for_each(|seat| seat.join().unwrap());
        error
    });
    assert_eq!(error, SchedulerError::Stopping);
}
