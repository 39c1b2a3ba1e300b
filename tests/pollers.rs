//! Pollers: when they run, and what register, unregister, pause and resume do
//! to them in each state, from outside and from inside any callback.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use corespun::thread::{Activity, Polled, Poller, PollerState, SpdkThread};
use harness::threads::{Runs, Threads, us};

fn register(threads: &mut Threads, period: u64, runs: &Runs) -> Poller {
    threads.on(0, || Poller::timed(us(period), runs.idle()).unwrap())
}

/// A poller that its own callback can reach.
#[derive(Clone, Default)]
struct Own(Rc<RefCell<Option<Poller>>>);

impl Own {
    fn register<A: Into<Activity>>(
        &self,
        threads: &mut Threads,
        period: u64,
        mut callback: impl FnMut(&Poller) -> A + 'static,
    ) {
        let own = self.clone();
        let poller = threads.on(0, || {
            Poller::timed(us(period), move || {
                callback(own.0.borrow().as_ref().unwrap())
            })
        });
        *self.0.borrow_mut() = Some(poller.unwrap());
    }

    fn with<R>(&self, f: impl FnOnce(&Poller) -> R) -> R {
        f(self.0.borrow().as_ref().unwrap())
    }

    fn unregister(&self) {
        drop(self.0.take());
    }
}

/// T-TH-06
#[test]
fn an_active_poller_runs_in_the_first_poll_until_unregistered() {
    let mut threads = Threads::allocate(1);
    let runs = Runs::default();
    let poller = register(&mut threads, 0, &runs);
    threads.poll_threads();
    assert_eq!(runs.take(), 1);
    poller.unregister();
    threads.poll_threads();
    assert_eq!(runs.get(), 0);
    threads.free();
}

/// T-TH-07
#[test]
fn a_timed_poller_runs_once_per_period() {
    let mut threads = Threads::allocate(1);
    let runs = Runs::default();
    let poller = register(&mut threads, 1000, &runs);
    threads.poll_threads();
    assert_eq!(runs.take(), 0);
    threads.delay_us(999);
    threads.poll_threads();
    assert_eq!(runs.take(), 0);
    threads.delay_us(1);
    threads.poll_threads();
    assert_eq!(runs.take(), 1);
    threads.poll_threads();
    assert_eq!(runs.take(), 0);
    threads.delay_us(1000);
    threads.poll_threads();
    assert_eq!(runs.take(), 1);
    drop(poller);
    threads.free();
}

/// T-TH-08
#[test]
fn an_active_poller_that_pauses_itself_runs_once() {
    let mut threads = Threads::allocate(1);
    let (runs, own) = (Runs::default(), Own::default());
    let counter = runs.clone();
    own.register(&mut threads, 0, move |poller| {
        counter.add();
        poller.pause();
        Activity::Idle
    });
    threads.poll_thread_times(0, 3);
    assert_eq!(runs.get(), 1);
    assert!(threads.runner(0).has_pollers());
    own.unregister();
    assert!(!threads.runner(0).has_pollers());
    threads.free();
}

/// T-TH-09
#[test]
fn pause_resume_pause_inside_the_callback_leaves_it_paused() {
    let mut threads = Threads::allocate(1);
    let (runs, own) = (Runs::default(), Own::default());
    let counter = runs.clone();
    own.register(&mut threads, 0, move |poller| {
        counter.add();
        poller.pause();
        poller.resume();
        poller.pause();
        Activity::Idle
    });
    threads.poll_thread_times(0, 3);
    assert_eq!(runs.get(), 1);
    assert_eq!(own.with(Poller::state), PollerState::Paused);
    own.unregister();
    threads.free();
}

/// T-TH-10, T-TH-11, T-TH-12
#[test]
fn pause_and_resume_from_outside_take_effect_at_the_next_turn() {
    let mut threads = Threads::allocate(1);
    let runs = Runs::default();
    let poller = register(&mut threads, 0, &runs);
    // Resuming one that is not paused changes nothing.
    poller.resume();
    threads.poll_threads();
    assert_eq!(runs.take(), 1);
    // Paused twice, resumed once.
    poller.pause();
    threads.poll_threads();
    assert_eq!(runs.take(), 0);
    poller.pause();
    threads.poll_threads();
    assert_eq!(runs.take(), 0);
    poller.resume();
    threads.poll_threads();
    assert_eq!(runs.take(), 1);
    // Both before a poll.
    poller.pause();
    poller.resume();
    threads.poll_threads();
    assert_eq!(runs.take(), 1);
    drop(poller);
    threads.free();
}

/// T-TH-13, T-TH-14. An unregistered poller is gone at once, not at its next
/// turn as in SPDK.
#[test]
fn an_unregistered_poller_is_gone_at_once_also_while_paused() {
    let mut threads = Threads::allocate(1);
    let runs = Runs::default();
    let poller = register(&mut threads, 0, &runs);
    poller.unregister();
    assert!(!threads.runner(0).has_pollers());

    let poller = register(&mut threads, 0, &runs);
    threads.poll_threads();
    assert_eq!(runs.take(), 1);
    poller.pause();
    threads.poll_threads();
    poller.unregister();
    assert!(!threads.runner(0).has_pollers());
    threads.poll_threads();
    assert_eq!(runs.get(), 0);
    threads.free();
}

/// T-TH-15
#[test]
fn pause_and_resume_from_outside_for_active_and_timed() {
    for period in [0, 1000] {
        let mut threads = Threads::allocate(1);
        let runs = Runs::default();
        let poller = register(&mut threads, period, &runs);
        for (pause, expected) in [(false, 1), (true, 0), (false, 1)] {
            if pause {
                poller.pause();
            } else {
                poller.resume();
            }
            threads.delay_us(period);
            threads.poll_threads();
            assert_eq!(runs.take(), expected, "period {period}, pause {pause}");
        }
        drop(poller);
        threads.free();
    }
}

/// T-TH-16: messages come before pollers, so a pause by message holds in the
/// same pass; a resumed timed poller waits a full period.
#[test]
fn pause_and_resume_by_message_for_active_and_timed() {
    thread_local! {
        static POLLER: RefCell<Option<Poller>> = const { RefCell::new(None) };
    }
    fn with(f: fn(&Poller)) {
        POLLER.with_borrow(|poller| f(poller.as_ref().unwrap()));
    }
    for period in [0, 1000] {
        let mut threads = Threads::allocate(1);
        let runs = Runs::default();
        let poller = register(&mut threads, period, &runs);
        POLLER.set(Some(poller));
        let thread = threads.handle(0);

        thread.send_msg(|| with(Poller::pause)).unwrap();
        threads.delay_us(period);
        threads.poll_threads();
        assert_eq!(runs.take(), 0);

        thread.send_msg(|| with(Poller::resume)).unwrap();
        threads.poll_threads();
        let in_that_pass = runs.take();
        assert_eq!(in_that_pass > 0, period == 0);
        threads.delay_us(period);
        threads.poll_threads();
        assert_eq!(runs.take(), 1);
        drop(POLLER.take());
        threads.free();
    }
}

/// T-TH-17, T-TH-18
#[test]
fn a_poller_that_pauses_itself_waits_a_period_after_resume() {
    for period in [0, 1000] {
        for again in [false, true] {
            let mut threads = Threads::allocate(1);
            let (runs, own) = (Runs::default(), Own::default());
            let counter = runs.clone();
            own.register(&mut threads, period, move |poller| {
                counter.add();
                poller.pause();
                if again {
                    poller.resume();
                    poller.pause();
                }
                Activity::Idle
            });
            threads.delay_us(period);
            threads.poll_threads();
            assert_eq!(runs.take(), 1);
            threads.delay_us(period);
            threads.poll_threads();
            assert_eq!(runs.take(), 0);
            own.with(Poller::resume);
            if period > 0 {
                threads.poll_threads();
                assert_eq!(runs.take(), 0);
            }
            threads.delay_us(period);
            threads.poll_threads();
            assert_eq!(runs.take(), 1);
            own.unregister();
            threads.free();
        }
    }
}

/// T-TH-21. An unnamed poller is named after its id, where SPDK prints the
/// address of its function.
#[test]
fn a_poller_has_its_name_or_one_made_of_its_id() {
    let mut threads = Threads::allocate(1);
    threads.on(0, || {
        let unnamed = Poller::active(|| Activity::Idle).unwrap();
        assert_eq!(unnamed.name(), "poller 1");
        let named = Poller::builder().name("name").register(|| Activity::Idle);
        assert_eq!(named.unwrap().name(), "name");
    });
    threads.free();
}

/// T-TH-22
#[test]
fn poller_ids_start_at_one_on_each_thread() {
    let mut threads = Threads::allocate(2);
    for thread in 0..2 {
        threads.on(thread, || {
            let ids: Vec<_> = (0..3)
                .map(|_| Poller::active(|| ()).unwrap().id())
                .collect();
            assert_eq!(ids, [1, 2, 3]);
        });
    }
    threads.free();
}

/// T-TH-23
#[test]
fn a_poller_tells_its_state() {
    let mut threads = Threads::allocate(1);
    let own = Own::default();
    let inside = Rc::new(RefCell::new(String::new()));
    let seen = inside.clone();
    own.register(&mut threads, 0, move |poller| {
        *seen.borrow_mut() = poller.state().to_string();
        Activity::Idle
    });
    let state = || own.with(|poller| poller.state().to_string());
    assert_eq!(state(), "waiting");
    threads.poll_threads();
    assert_eq!(*inside.borrow(), "running");
    assert_eq!(state(), "waiting");
    own.with(Poller::pause);
    assert_eq!(state(), "pausing");
    threads.poll_threads();
    assert_eq!(state(), "paused");
    threads.poll_threads();
    assert_eq!(state(), "paused");
    own.with(Poller::resume);
    assert_eq!(state(), "waiting");
    own.unregister();
    threads.free();
}

/// T-TH-24
#[test]
fn a_poller_tells_its_period_in_ticks() {
    let mut threads = Threads::allocate(1);
    let runs = Runs::default();
    assert_eq!(register(&mut threads, 0, &runs).period_ticks(), 0);
    assert_eq!(register(&mut threads, 10, &runs).period_ticks(), 10);
    threads.free();
}

/// T-TH-25
#[test]
fn a_poller_counts_its_runs_and_its_busy_ones() {
    let mut threads = Threads::allocate(1);
    let (idle, busy) = threads.on(0, || {
        let idle = Poller::timed(us(5), || Activity::Idle).unwrap();
        (idle, Poller::timed(us(5), || Activity::Busy).unwrap())
    });
    threads.delay_us(5);
    threads.poll_thread_times(0, 1);
    let counts = |poller: &Poller| (poller.stats().run_count, poller.stats().busy_count);
    assert_eq!(counts(&idle), (1, 0));
    assert_eq!(counts(&busy), (1, 1));
    drop((idle, busy));
    threads.free();
}

/// T-TH-27. A waiting timer that is unregistered goes at once, where SPDK keeps
/// it as the earliest until its expiry.
#[test]
fn the_earliest_timer_is_always_known() {
    let mut threads = Threads::allocate(1);
    let runs = Runs::default();
    let [p1, p2, p3] = [1000, 1500, 1800].map(|period| register(&mut threads, period, &runs));
    let next = |threads: &mut Threads| threads.runner(0).next_deadline();
    assert_eq!(next(&mut threads), Some(1000));
    threads.delay_us(1000);
    threads.poll_threads();
    assert_eq!(next(&mut threads), Some(1500));
    p2.unregister();
    assert_eq!(next(&mut threads), Some(1800));
    threads.delay_us(500);
    // A paused one stays until its turn, as in SPDK.
    p3.pause();
    threads.delay_us(299);
    threads.poll_threads();
    assert_eq!(next(&mut threads), Some(1800));
    threads.delay_us(1);
    threads.poll_threads();
    assert_eq!(next(&mut threads), Some(2000));
    drop((p1, p3));
    assert_eq!(next(&mut threads), None);
    threads.delay_us(200);
    threads.poll_threads();
    assert_eq!(runs.get(), 1);
    threads.free();
}

/// Timed pollers that log their names.
struct Log(Rc<RefCell<Vec<&'static str>>>);

impl Log {
    fn register(&self, threads: &mut Threads, period: u64, name: &'static str) -> Poller {
        let log = self.0.clone();
        let callback = move || {
            log.borrow_mut().push(name);
            Activity::Idle
        };
        threads.on(0, || Poller::timed(us(period), callback).unwrap())
    }

    fn after(&self, threads: &mut Threads, delay: u64) -> Vec<&'static str> {
        threads.delay_us(delay);
        threads.poll_threads();
        self.0.take()
    }
}

/// T-TH-28: among equal expirations the one armed first runs first, and a
/// re-armed one goes behind its equals.
#[test]
fn equal_expirations_run_in_the_order_armed() {
    let mut threads = Threads::allocate(1);
    let log = Log(Rc::default());
    let pollers = [("p1", 500), ("p2", 500), ("p3", 1000), ("p4", 1500)]
        .map(|(name, period)| log.register(&mut threads, period, name));
    assert_eq!(log.after(&mut threads, 500), ["p1", "p2"]);
    assert_eq!(threads.runner(0).next_deadline(), Some(1000));
    assert_eq!(log.after(&mut threads, 500), ["p3", "p1", "p2"]);
    assert_eq!(log.after(&mut threads, 500), ["p4", "p1", "p2"]);
    drop(pollers);
    assert_eq!(threads.runner(0).next_deadline(), None);
    assert!(log.after(&mut threads, 1500).is_empty());
    threads.free();
}

/// T-TH-29. The unregistered one leaves nothing behind that would have to
/// expire first, and of two that are due at 1000 the one armed first is first.
#[test]
fn unregistering_one_of_several_leaves_the_others_in_order() {
    for p3_stays in [false, true] {
        let mut threads = Threads::allocate(1);
        let log = Log(Rc::default());
        let p1 = log.register(&mut threads, 500, "p1");
        assert!(log.after(&mut threads, 250).is_empty());
        let p2 = log.register(&mut threads, 500, "p2");
        let p3 = log.register(&mut threads, 750, "p3");
        p2.unregister();
        assert_eq!(log.after(&mut threads, 250), ["p1"]);
        assert_eq!(threads.runner(0).next_deadline(), Some(1000));
        assert!(log.after(&mut threads, 250).is_empty());
        let p3 = Some(p3).filter(|_| p3_stays);
        let at_1000: &[&str] = if p3_stays { &["p3", "p1"] } else { &["p1"] };
        assert_eq!(log.after(&mut threads, 250), at_1000);
        assert_eq!(threads.runner(0).next_deadline(), Some(1500));
        drop((p1, p3));
        assert!(log.after(&mut threads, 500).is_empty());
        threads.free();
    }
}

/// TH-054, TH-060: a poller is armed again when its callback has returned.
#[test]
fn what_a_callback_arms_is_before_its_own_poller_at_the_same_tick() {
    let mut threads = Threads::allocate(1);
    let log = Log(Rc::default());
    let (runs, child) = (log.0.clone(), Rc::new(RefCell::new(None)));
    let first = threads.on(0, || {
        Poller::timed(us(100), move || {
            runs.borrow_mut().push("parent");
            if child.borrow().is_none() {
                let runs = runs.clone();
                let armed = Poller::timed(us(100), move || runs.borrow_mut().push("child"));
                *child.borrow_mut() = Some(armed.unwrap());
            }
        })
    });
    assert_eq!(log.after(&mut threads, 100), ["parent"]);
    assert_eq!(log.after(&mut threads, 100), ["child", "parent"]);
    assert_eq!(log.after(&mut threads, 100), ["child", "parent"]);
    drop(first);
    threads.free();
}

/// TH-084: also one that is resumed before the list has let go of it.
#[test]
fn a_resumed_poller_is_the_newest() {
    let mut threads = Threads::allocate(1);
    let log = Rc::new(RefCell::new(Vec::new()));
    let paused = Rc::new(RefCell::new(None::<Poller>));
    let register = |threads: &mut Threads, name: &'static str| {
        let (log, paused) = (log.clone(), paused.clone());
        let poller = threads.on(0, || {
            Poller::active(move || {
                log.borrow_mut().push(name);
                if name == "resumes" && log.borrow().len() == 2 {
                    paused.borrow().as_ref().unwrap().resume();
                }
            })
        });
        poller.unwrap()
    };
    let oldest = register(&mut threads, "resumes");
    *paused.borrow_mut() = Some(register(&mut threads, "paused"));
    let newest = register(&mut threads, "newest");
    paused.borrow().as_ref().unwrap().pause();
    // Its turn is between the two: it is paused there, and resumed in the same pass.
    threads.runner(0).poll(0, 0);
    assert_eq!(log.take(), ["newest", "resumes"]);
    threads.runner(0).poll(0, 0);
    assert_eq!(log.take(), ["paused", "newest", "resumes"]);
    // In a later poll.
    let young = register(&mut threads, "young");
    paused.borrow().as_ref().unwrap().pause();
    threads.runner(0).poll(0, 0);
    log.take();
    threads.runner(0).poll(0, 0);
    paused.borrow().as_ref().unwrap().resume();
    log.take();
    threads.runner(0).poll(0, 0);
    assert_eq!(log.take(), ["paused", "young", "newest", "resumes"]);
    paused.take();
    drop((oldest, newest, young));
    threads.free();
}

/// T-X-04
#[test]
fn active_pollers_run_newest_first_and_new_ones_wait_for_the_next_pass() {
    let mut threads = Threads::allocate(1);
    let log = Rc::new(RefCell::new(Vec::new()));
    let born = Rc::new(RefCell::new(Vec::new()));
    let pollers = threads.on(0, || {
        ["first", "second"].map(|name| {
            let (log, born) = (log.clone(), born.clone());
            Poller::active(move || {
                log.borrow_mut().push(name);
                if name == "first" && born.borrow().is_empty() {
                    let log = log.clone();
                    let child = Poller::active(move || log.borrow_mut().push("child"));
                    born.borrow_mut().push(child.unwrap());
                }
            })
            .unwrap()
        })
    });
    threads.runner(0).poll(0, 0);
    assert_eq!(log.take(), ["second", "first"]);
    threads.runner(0).poll(0, 0);
    assert_eq!(log.take(), ["child", "second", "first"]);
    drop(pollers);
    born.take();
    threads.free();
}

/// T-X-06
#[test]
fn a_late_timed_poller_runs_once_and_drifts() {
    let mut threads = Threads::allocate(1);
    let runs = Runs::default();
    let poller = register(&mut threads, 100, &runs);
    threads.delay_us(570);
    threads.poll_threads();
    assert_eq!(runs.take(), 1);
    assert_eq!(threads.runner(0).next_deadline(), Some(670));
    drop(poller);
    threads.free();
}

/// T-X-07
#[test]
fn a_poll_says_the_most_that_any_poller_did() {
    let mut threads = Threads::allocate(1);
    let says = |activity| move || activity;
    for (activities, expected) in [
        (vec![Activity::Ignored], Activity::Idle),
        (vec![Activity::Ignored, Activity::Idle], Activity::Idle),
        (vec![Activity::Busy, Activity::Ignored], Activity::Busy),
        (vec![Activity::Idle, Activity::Busy], Activity::Busy),
    ] {
        let pollers: Vec<_> = threads.on(0, || {
            let register = |activity: &Activity| Poller::active(says(*activity)).unwrap();
            activities.iter().map(register).collect()
        });
        assert_eq!(threads.runner(0).poll(0, 0), expected);
        drop(pollers);
    }
    let before = threads.handle(0).stats();
    let time = threads.time.clone();
    let poller = threads.on(0, || {
        Poller::active(move || {
            time.advance(7);
            Activity::Ignored
        })
    });
    threads.runner(0).poll(0, 0);
    let after = threads.handle(0).stats();
    assert_eq!(after.idle_ticks, before.idle_ticks + 7);
    assert_eq!(after.busy_ticks, before.busy_ticks);
    drop(poller);
    threads.free();
}

/// A poll at the last tick there is comes to an end.
#[test]
fn a_poll_at_the_end_of_time_runs_each_timer_once() {
    let mut threads = Threads::allocate(1);
    let runs = Runs::default();
    let poller = register(&mut threads, 10, &runs);
    threads.runner(0).poll(0, u64::MAX);
    assert_eq!(runs.take(), 1);
    drop(poller);
    threads.free();
}

/// From inside any callback, of itself or another.
#[test]
fn a_poller_may_unregister_itself_and_others() {
    for period in [0, 10] {
        let mut threads = Threads::allocate(1);
        let (runs, own) = (Runs::default(), Own::default());
        let victim = Rc::new(Cell::new(Some(register(&mut threads, period, &runs))));
        let killer_runs = Runs::default();
        let (counter, itself) = (killer_runs.clone(), own.clone());
        let poller = threads.on(0, || {
            Poller::timed(us(period), move || {
                counter.add();
                drop(victim.take());
                itself.unregister();
                assert!(SpdkThread::current().is_some());
                Activity::Idle
            })
        });
        *own.0.borrow_mut() = Some(poller.unwrap());
        threads.delay_us(10);
        threads.poll_threads();
        threads.delay_us(10);
        threads.poll_threads();
        assert_eq!(killer_runs.get(), 1);
        // The victim is older: an active one comes later, a timed one earlier.
        assert_eq!(runs.get(), u64::from(period > 0));
        assert!(!threads.runner(0).has_pollers());
        threads.free();
    }
}

/// A poller registered by value is one registered by closure, under the name of
/// its type or the one given, and dropped as soon as it is unregistered.
#[test]
fn a_value_that_polls_is_registered_under_the_name_of_its_type() {
    struct Counter(Runs);

    impl Polled for Counter {
        fn poll(&mut self) -> Activity {
            self.0.add();
            Activity::Busy
        }
    }

    let mut threads = Threads::allocate(1);
    let runs = Runs::default();
    let unnamed = threads.on(0, || {
        Poller::builder()
            .register_polled(Counter(runs.clone()))
            .unwrap()
    });
    let named = threads.on(0, || {
        let builder = Poller::builder().name("named").period(us(10));
        builder.register_polled(Counter(runs.clone())).unwrap()
    });
    assert!(unnamed.name().ends_with("Counter"), "{}", unnamed.name());
    assert_eq!(named.name(), "named");
    assert!(threads.poll_thread_times(0, 1));
    assert_eq!(runs.take(), 1);
    assert_eq!(unnamed.stats().busy_count, 1);
    threads.on(0, || drop((unnamed, named)));
    threads.poll_threads();
    assert_eq!(runs.get(), 0);
    threads.free();
}
