//! G9: bounded work per poll: a task that yields or wakes itself goes behind the
//! others and lets pollers and timers run, and what comes from elsewhere and
//! what comes from the thread itself cannot starve each other.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use corespun::clock::Clock;
use corespun::thread::{Poller, ThreadLib};
use corespun::{local, task, time};
use futures::stream::{Stream, StreamExt, select_all};
use harness::threads::{Runs, Threads, us};

#[test]
fn a_yield_loop_lets_pollers_and_timers_run() {
    let mut threads = Threads::allocate(1);
    let (active, timed) = (Runs::default(), Runs::default());
    let (looper, nap, pollers) = threads.on(0, || {
        let looper = task::spawn_local(async {
            loop {
                task::yield_now().await;
            }
        });
        let timed = Poller::timed(us(10), timed.idle()).unwrap();
        let pollers = (Poller::active(active.idle()).unwrap(), timed);
        (looper, task::spawn_local(time::sleep(us(10))), pollers)
    });
    for _ in 0..10 {
        threads.runner(0).poll(0, 0);
    }
    assert_eq!((active.get(), timed.get()), (10, 0));
    threads.delay_us(10);
    for _ in 0..2 {
        threads.runner(0).poll(0, 0);
    }
    assert_eq!(timed.get(), 1);
    assert!(nap.is_finished() && !looper.is_finished());
    drop(pollers);
    threads.free();
}

/// One run of each before the next of any, whichever way the task gives way.
#[test]
fn tasks_that_wake_themselves_take_turns() {
    let mut threads = Threads::allocate(1);
    let log = Rc::new(RefCell::new(Vec::new()));
    let spawn = |name: char| {
        let log = log.clone();
        drop(task::spawn_local(poll_fn(move |cx| {
            log.borrow_mut().push(name);
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        })));
    };
    threads.on(0, || ['a', 'b', 'c'].into_iter().for_each(spawn));
    for _ in 0..2 {
        threads.runner(0).poll(3, 0);
    }
    assert_eq!(log.take(), ['a', 'b', 'c', 'a', 'b', 'c']);
    threads.free();
}

/// Messages of others and tasks of the thread's own both always have more, at every
/// size of a batch. (Among messages the order is that of sending: G13.)
#[test]
fn remote_and_local_work_do_not_starve_each_other() {
    for batch in [1, 2, 3, 8] {
        let library = ThreadLib::builder()
            .clock(Clock::virtual_at(1_000_000).0)
            .build();
        let mut runner = library.thread().batch(batch).build().unwrap().attach();
        let thread = runner.handle();
        let counts = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
        for _ in 0..8 {
            let mine = counts.clone();
            let local = async move {
                loop {
                    mine[0].fetch_add(1, Ordering::Relaxed);
                    task::yield_now().await;
                }
            };
            drop(runner.enter(|| task::spawn_local(local)));
        }
        for _ in 0..100 {
            for _ in 0..batch {
                let counts = counts.clone();
                let remote = move || {
                    counts[1].fetch_add(1, Ordering::Relaxed);
                };
                thread.send_msg(remote).unwrap();
            }
            runner.poll(0, 0);
        }
        let [local, remote] = [0, 1].map(|i| counts[i].load(Ordering::Relaxed));
        assert_eq!(local + remote, 100 * batch);
        assert!(
            local.abs_diff(remote) <= 1,
            "batch {batch}: {local}, {remote}"
        );
    }
}

#[test]
fn a_flood_of_messages_lets_pollers_run_every_batch() {
    let mut threads = Threads::allocate(1);
    let runs = Runs::default();
    let poller = threads.on(0, || Poller::active(runs.idle()).unwrap());
    let thread = threads.handle(0);
    (0..80).for_each(|_| thread.send_msg(|| ()).unwrap());
    let mut polls = 0;
    while threads.runner(0).poll(0, 0).is_busy() {
        polls += 1;
        assert_eq!(runs.get(), polls);
    }
    assert_eq!(polls, 10);
    drop(poller);
    threads.free();
}

/// Where nothing is there to give way to, and the poll before was short, a task that
/// yields goes on within the same poll, as far as the batch goes.
#[test]
fn a_task_that_yields_goes_on_while_nothing_else_waits() {
    let mut threads = Threads::allocate(1);
    let yields = Runs::default();
    let count = yields.clone();
    threads.on(0, || {
        drop(task::spawn_local(async move {
            loop {
                count.add();
                task::yield_now().await;
            }
        }));
    });
    let mut before = 0;
    let mut in_a_poll = |threads: &mut Threads| {
        threads.runner(0).poll(0, 0);
        yields.get() - std::mem::replace(&mut before, yields.get())
    };
    // How long polls are is not known yet.
    assert_eq!(in_a_poll(&mut threads), 1);
    assert_eq!(in_a_poll(&mut threads), 8);
    let active = threads.on(0, || Poller::active(|| false).unwrap());
    assert_eq!(in_a_poll(&mut threads), 1);
    threads.on(0, || drop(active));
    assert_eq!(in_a_poll(&mut threads), 8);
    // A timer that is far, then near.
    let nap = threads.on(0, || task::spawn_local(time::sleep(us(10))));
    assert_eq!(in_a_poll(&mut threads), 7);
    assert_eq!(in_a_poll(&mut threads), 8);
    threads.delay_us(9);
    assert_eq!(in_a_poll(&mut threads), 1);
    threads.delay_us(1);
    assert_eq!(in_a_poll(&mut threads), 1);
    in_a_poll(&mut threads);
    assert!(nap.is_finished());
    // After a poll that was not short it is one again.
    let time = threads.time.clone();
    let long = move || _ = time.advance(10);
    threads.handle(0).send_msg(long).unwrap();
    in_a_poll(&mut threads);
    assert_eq!(in_a_poll(&mut threads), 1);
    assert_eq!(in_a_poll(&mut threads), 8);
    threads.free();
}

#[test]
fn a_million_yields_leave_a_timed_poller_its_ticks() {
    let mut threads = Threads::allocate(1);
    let ticks = Runs::default();
    let (poller, yields) = threads.on(0, || {
        let poller = Poller::timed(us(1000), ticks.idle()).unwrap();
        let yields = task::spawn_local(async {
            for _ in 0..1_000_000 {
                task::yield_now().await;
            }
        });
        (poller, yields)
    });
    let mut polls = 0;
    while !yields.is_finished() {
        // A yield is the end of a poll's messages only where something else waits:
        // hence the 1.
        threads.runner(0).poll(1, 0);
        threads.delay_us(1);
        polls += 1;
    }
    // One yield a poll, one poll a µs.
    assert_eq!((polls, ticks.get()), (1_000_001, 1000));
    drop(poller);
    threads.free();
}

/// A stream of the thread that has an item whenever it is asked.
fn always_ready() -> impl Stream<Item = ()> + Unpin {
    let (sender, receiver) = local::mpsc::unbounded();
    sender.send(()).unwrap();
    receiver.inspect(move |()| sender.send(()).unwrap())
}

/// Each in a task of its own: every poll runs a batch of 8 tasks, each of which
/// takes a budget of 128 items.
#[test]
fn a_thousand_always_ready_streams_leave_the_pollers_their_turn() {
    let mut threads = Threads::allocate(1);
    let (runs, ticks, taken) = (Runs::default(), Runs::default(), Runs::default());
    let pollers = threads.on(0, || {
        for _ in 0..1000 {
            let taken = taken.clone();
            drop(task::spawn_local(always_ready().for_each(move |()| {
                taken.add();
                std::future::ready(())
            })));
        }
        let timed = Poller::timed(us(1000), ticks.idle()).unwrap();
        (Poller::active(runs.idle()).unwrap(), timed)
    });
    for poll in 1..=2000 {
        threads.delay_us(1);
        threads.runner(0).poll(0, 0);
        assert_eq!(runs.get(), poll);
    }
    assert_eq!((ticks.get(), taken.get()), (2, 2000 * 8 * 128));
    drop(pollers);
    threads.free();
}

/// All in one task: every poll takes one budget.
#[test]
fn a_task_of_a_thousand_always_ready_streams_leaves_the_pollers_their_turn() {
    let mut threads = Threads::allocate(1);
    let (runs, taken) = (Runs::default(), Runs::default());
    let poller = threads.on(0, || {
        let all = select_all((0..1000).map(|_| always_ready()));
        let count = taken.clone();
        drop(task::spawn_local(all.for_each(move |()| {
            count.add();
            std::future::ready(())
        })));
        Poller::active(runs.idle()).unwrap()
    });
    for poll in 1..=100 {
        threads.runner(0).poll(0, 0);
        assert_eq!(runs.get(), poll);
    }
    // It does not hand out more, and is not starved either.
    assert!(taken.get() <= 100 * 128, "{}", taken.get());
    assert!(taken.get() >= 100, "{}", taken.get());
    drop(poller);
    threads.free();
}

/// Timers that are due already: each loop gives way after a budget's worth.
#[test]
fn a_loop_over_timers_that_are_due_lets_pollers_run() {
    let mut threads = Threads::allocate(1);
    let active = Runs::default();
    let (loops, poller) = threads.on(0, || {
        let sleeps = task::spawn_local(async {
            loop {
                time::sleep(us(0)).await;
            }
        });
        let timeouts = task::spawn_local(async {
            loop {
                let _ = time::timeout(us(0), std::future::pending::<()>()).await;
            }
        });
        let ticks = task::spawn_local(async {
            // A burst that it takes long to catch up with.
            let mut ticks = time::interval_at(1, us(1));
            loop {
                ticks.tick().await;
            }
        });
        let poller = Poller::active(active.idle()).unwrap();
        ([sleeps, timeouts, ticks], poller)
    });
    for _ in 0..10 {
        threads.runner(0).poll(0, 0);
    }
    assert_eq!(active.get(), 10);
    for handle in &loops {
        assert!(!handle.is_finished());
        handle.abort();
    }
    threads.on(0, || drop(poller));
    threads.free();
}

/// A deadline is met although what it limits is ready without end.
#[test]
fn a_timeout_over_a_future_that_takes_the_whole_budget_elapses() {
    let mut threads = Threads::allocate(1);
    let limited = threads.on(0, || {
        task::spawn_local(time::timeout(us(5), async {
            loop {
                task::consume_budget().await;
            }
        }))
    });
    threads.runner(0).poll(0, 0);
    threads.delay_us(5);
    for _ in 0..2 {
        threads.runner(0).poll(0, 0);
    }
    assert!(limited.is_finished());
    threads.free();
}

/// Who polls by hand may have work between two polls.
#[test]
fn a_yield_ends_the_poll_of_a_thread_that_is_to_have_it_so() {
    let (library, _) = harness::threads::library();
    for ends in [false, true] {
        let builder = library.thread().batch(64);
        let builder = match ends {
            true => builder.yield_ends_poll(),
            false => builder,
        };
        let mut runner = builder.build().unwrap().attach();
        let rounds = std::rc::Rc::new(std::cell::Cell::new(0));
        let count = rounds.clone();
        runner.enter(|| {
            drop(corespun::task::spawn_local(async move {
                loop {
                    count.set(count.get() + 1);
                    corespun::task::yield_now().await;
                }
            }));
        });
        // The first may be long.
        runner.poll(0, 0);
        rounds.set(0);
        runner.poll(0, 0);
        assert_eq!(rounds.get(), if ends { 1 } else { 64 });
    }
}
