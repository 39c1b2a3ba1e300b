//! G13: if one message was sent to a thread before another, by whomever and from
//! wherever, it runs first.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use corespun::cpu::CpuSet;
use corespun::local::oneshot;
use corespun::mpsc;
use corespun::reactor::ReactorMode;
use corespun::task::{spawn_local, yield_now};
use corespun::thread::{SpdkThread, ThreadRunner};
use futures::StreamExt;
use harness::reactors::{app, must_end};
use harness::threads::*;
use proptest::prelude::*;

type Log = Arc<Mutex<Vec<usize>>>;

fn note(log: &Log, number: usize) -> impl FnOnce() + Send + 'static {
    let log = log.clone();
    move || log.lock().unwrap().push(number)
}

fn small(ring: usize, batch: usize) -> ThreadRunner {
    let library = library().0;
    let thread = library.thread().ring(ring).batch(batch);
    thread.build().unwrap().attach()
}

/// From outside and from within, one after the other, across ring and spill.
#[test]
fn one_os_thread_that_sends_from_outside_and_from_within_is_one_sender() {
    for batch in [1, 3, 8] {
        let mut runner = small(2, batch);
        let thread = runner.handle();
        let log = Log::default();
        for number in 0..40 {
            if number / 2 % 2 == 0 {
                thread.send_msg(note(&log, number)).unwrap();
            } else {
                runner.enter(|| thread.send_msg(note(&log, number)).unwrap());
            }
        }
        settle(&mut runner);
        assert!(log.lock().unwrap().iter().copied().eq(0..40), "{log:?}");
    }
}

/// "A message to myself: then all before it is done."
#[test]
fn a_message_to_oneself_runs_after_all_that_waited_when_it_was_sent() {
    let mut runner = small(4, 8);
    let thread = runner.handle();
    let log = Log::default();
    let (first, again) = (log.clone(), thread.clone());
    let sends = move || {
        first.lock().unwrap().push(0);
        again.send_msg(note(&first, 100)).unwrap();
    };
    thread.send_msg(sends).unwrap();
    for number in 1..20 {
        let (thread, message) = (thread.clone(), note(&log, number));
        let sender = std::thread::spawn(move || thread.send_msg(message).unwrap());
        sender.join().unwrap();
    }
    runner.poll(1, 0);
    thread.send_msg(note(&log, 101)).unwrap();
    settle(&mut runner);
    let expected = (0..20).chain([100, 101]);
    assert!(log.lock().unwrap().iter().copied().eq(expected), "{log:?}");
}

#[derive(Clone, Debug)]
enum Op {
    Outside,
    Inside,
    /// From within a message, of that many more.
    Nested(usize),
    /// A task of its own thread, which is free to run between.
    Task,
    Poll(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => Just(Op::Outside),
        4 => Just(Op::Inside),
        2 => (1usize..4).prop_map(Op::Nested),
        2 => Just(Op::Task),
        2 => (1usize..5).prop_map(Op::Poll),
    ]
}

/// Numbers are taken when a message is sent.
fn send(thread: &SpdkThread, log: &Log, sent: &Arc<AtomicUsize>, nested: usize) {
    let number = sent.fetch_add(1, Ordering::Relaxed);
    let (again, log, more) = (thread.clone(), log.clone(), sent.clone());
    let message = move || {
        log.lock().unwrap().push(number);
        (0..nested).for_each(|_| send(&again, &log, &more, 0));
    };
    thread.send_msg(message).unwrap();
}

proptest! {
    /// All on one OS thread, so that "before" is known of any two.
    #[test]
    fn messages_run_in_the_order_sent(
        ops in proptest::collection::vec(op(), 1..120),
        ring in 2usize..9,
        batch in 1usize..9,
    ) {
        let mut runner = small(ring, batch);
        let thread = runner.handle();
        let (log, sent) = (Log::default(), Arc::<AtomicUsize>::default());
        let tasks = Arc::<AtomicUsize>::default();
        let mut spawned = 0;
        for op in ops {
            match op {
                Op::Outside => send(&thread, &log, &sent, 0),
                Op::Inside => runner.enter(|| send(&thread, &log, &sent, 0)),
                Op::Nested(more) => send(&thread, &log, &sent, more),
                Op::Task => {
                    let ran = tasks.clone();
                    spawned += 1;
                    drop(runner.enter(|| spawn_local(async move {
                        yield_now().await;
                        ran.fetch_add(1, Ordering::Relaxed);
                    })));
                }
                Op::Poll(most) => _ = runner.poll(most, 0),
            }
        }
        settle(&mut runner);
        let log = log.lock().unwrap();
        prop_assert!(log.iter().copied().eq(0..sent.load(Ordering::Relaxed)), "{log:?}");
        prop_assert_eq!(tasks.load(Ordering::Relaxed), spawned);
    }
}

/// Tasks take turns with messages: a woken one may run before an own message that
/// waits behind those of others, and both run.
#[test]
fn a_task_is_not_held_up_by_messages_nor_they_by_it() {
    let mut runner = small(2, 1);
    let thread = runner.handle();
    let log = Log::default();
    let (wake, woken) = oneshot::channel();
    let woken_log = log.clone();
    let _woken = runner.enter(|| {
        spawn_local(async move {
            woken.await.unwrap();
            woken_log.lock().unwrap().push(102);
        })
    });
    settle(&mut runner);
    for number in 0..10 {
        thread.send_msg(note(&log, number)).unwrap();
    }
    runner.enter(|| {
        thread.send_msg(note(&log, 100)).unwrap();
        let new = note(&log, 101);
        drop(spawn_local(async move { new() }));
        wake.send(()).unwrap();
    });
    settle(&mut runner);
    let log = log.lock().unwrap();
    let messages = log.iter().copied().filter(|number| *number < 101);
    assert!(messages.eq((0..10).chain([100])), "{log:?}");
    let tasks = log.iter().copied().filter(|number| *number > 100);
    assert!(tasks.eq([101, 102]), "{log:?}");
}

/// The end of a channel is a message, and so is a value.
#[test]
fn the_end_of_a_channel_does_not_overtake_values_that_wait() {
    for ring in [2, 64] {
        let mut runner = small(ring, 8);
        let (sender, receiver) = runner.enter(|| mpsc::channel(1_000));
        let all = runner.enter(|| spawn_local(receiver.collect::<Vec<_>>()));
        settle(&mut runner);
        let last = sender.clone();
        std::thread::spawn(move || (0..100).for_each(|n| sender.try_send(n).unwrap()))
            .join()
            .unwrap();
        runner.enter(|| drop(last));
        settle(&mut runner);
        assert!(output(all).into_iter().eq(0..100));
    }
}

/// A value that is given on the receiver's own thread needs no message, unless
/// others are on their way.
#[test]
fn a_value_given_on_the_thread_does_not_overtake_those_on_their_way() {
    let mut runner = small(2, 8);
    let (sender, receiver) = runner.enter(|| mpsc::channel(8));
    sender.try_send(0).unwrap();
    runner.enter(|| sender.try_send(1).unwrap());
    sender.try_send(2).unwrap();
    runner.enter(|| sender.try_send(3).unwrap());
    let all = runner.enter(|| spawn_local(receiver.take(4).collect::<Vec<_>>()));
    settle(&mut runner);
    assert_eq!(output(all), [0, 1, 2, 3]);
}

/// Real reactors: a task there sends, and the last sender goes here as soon as it
/// has, while values wait.
#[test]
fn a_channel_between_reactors_gives_all_that_it_accepted() {
    const VALUES: usize = 50_000;
    let received = must_end(|| {
        let app = app(2, ReactorMode::Poll);
        app.block_on(async |_| {
            let library = SpdkThread::current().unwrap().library();
            let there = library.thread().cpumask(CpuSet::single(1));
            let there = there.create().unwrap();
            let (sender, receiver) = mpsc::channel(VALUES);
            let sends = sender.clone();
            let sent = there.spawn(async move {
                for value in 0..VALUES {
                    sends.send(value).await.unwrap();
                }
            });
            while !sent.is_finished() {
                yield_now().await;
            }
            drop(sender);
            receiver.count().await
        })
    });
    assert_eq!(received.unwrap(), VALUES);
}

/// Wherever it waits, and wherever it came from.
#[test]
fn the_limit_counts_messages_from_outside_and_from_within_together() {
    for (limit, ring) in [(2, 2), (4, 2), (5, 4), (100, 64), (100, 8)] {
        for inside in 0..=limit {
            for inside_first in [true, false] {
                let library = library().0;
                let thread = library.thread().message_limit(limit).ring(ring);
                let mut runner = thread.batch(1).build().unwrap().attach();
                let thread = runner.handle();
                let send = || thread.send_msg(|| ());
                if inside_first {
                    runner.enter(|| (0..inside).for_each(|_| send().unwrap()));
                    (inside..limit).for_each(|_| send().unwrap());
                } else {
                    (inside..limit).for_each(|_| send().unwrap());
                    runner.enter(|| (0..inside).for_each(|_| send().unwrap()));
                }
                assert!(send().unwrap_err().is_full());
                assert!(runner.enter(send).unwrap_err().is_full());
                // Each that has run makes room for one.
                for round in 0..2 * limit {
                    runner.poll(1, 0);
                    if round % 2 == 0 {
                        send().unwrap();
                    } else {
                        runner.enter(send).unwrap();
                    }
                    assert!(send().unwrap_err().is_full(), "{limit} {ring} {inside}");
                    assert!(runner.enter(send).unwrap_err().is_full());
                }
            }
        }
    }
}

/// G9. A chain of messages to oneself, and a flood of others that never ends.
#[test]
fn messages_of_both_kinds_that_never_end_share_the_thread() {
    let mut runner = small(4, 8);
    let thread = runner.handle();
    let chain = Arc::<AtomicUsize>::default();
    fn link(chain: Arc<AtomicUsize>) {
        chain.fetch_add(1, Ordering::Relaxed);
        let next = move || link(chain);
        SpdkThread::current().unwrap().send_msg(next).unwrap();
    }
    let first = chain.clone();
    thread.send_msg(move || link(first)).unwrap();
    let others = Arc::<AtomicUsize>::default();
    for _ in 0..100 {
        for _ in 0..8 {
            let others = others.clone();
            let other = move || _ = others.fetch_add(1, Ordering::Relaxed);
            thread.send_msg(other).unwrap();
        }
        runner.poll(0, 0);
        runner.poll(0, 0);
    }
    // Each link waits for the eight that were sent before it.
    assert!(chain.load(Ordering::Relaxed) >= 100, "{chain:?}");
    assert!(others.load(Ordering::Relaxed) >= 600, "{others:?}");
}
