//! Which poll of its thread a task runs in.

mod task_harness;

use corespun::local::oneshot;
use corespun::task::{spawn_local, yield_now};
use corespun::thread::{Poller, SpdkThread};
use task_harness::*;

/// TH-052, G9
#[test]
fn a_handed_over_task_runs_in_the_same_poll_and_what_gives_way_in_the_next() {
    let (mut runner, _) = thread();
    let trace = Trace::default();
    let polls = trace.clone();
    let _poller = runner
        .enter(|| Poller::active(move || polls.note("pollers")))
        .unwrap();
    let (sender, receiver) = oneshot::channel();
    let log = trace.clone();
    let _woken = runner.enter(|| {
        spawn_local(async move {
            receiver.await.unwrap();
            log.note("woken");
            yield_now().await;
            log.note("yielded");
        })
    });
    runner.poll(0, 0);
    trace.take();
    let log = trace.clone();
    let _waker = runner.enter(|| {
        spawn_local(async move {
            log.note("wakes");
            sender.send(()).unwrap();
        })
    });
    runner.poll(0, 0);
    runner.poll(0, 0);
    assert_eq!(
        trace.take(),
        ["wakes", "woken", "pollers", "yielded", "pollers"]
    );
}

/// TH-052
#[test]
fn a_woken_task_does_not_pass_a_message_that_was_sent_before() {
    let (mut runner, _) = thread();
    let trace = Trace::default();
    let (sender, receiver) = oneshot::channel();
    let log = trace.clone();
    let _woken = runner.enter(|| {
        spawn_local(async move {
            receiver.await.unwrap();
            log.note("task");
        })
    });
    runner.poll(0, 0);
    let spawner_log = trace.clone();
    let _sends = runner.enter(|| {
        spawn_local(async move {
            let log = spawner_log.clone();
            let _new = spawn_local(async move { log.note("new task") });
            sender.send(()).unwrap();
        })
    });
    runner.poll(0, 0);
    assert!(trace.take().is_empty());
    runner.poll(0, 0);
    assert_eq!(trace.take(), ["new task", "task"]);
}

/// G9
#[test]
fn tasks_that_wake_each_other_leave_the_pollers_their_turn() {
    let (mut runner, _) = thread();
    let trace = Trace::default();
    let polls = trace.clone();
    let _poller = runner
        .enter(|| Poller::active(move || polls.note("p")))
        .unwrap();
    runner.enter(|| {
        let (to_b, from_a) = corespun::local::mpsc::unbounded();
        let (to_a, from_b) = corespun::local::mpsc::unbounded();
        to_a.send(()).unwrap();
        for (to, mut from) in [(to_b, from_b), (to_a, from_a)] {
            let _task = spawn_local(async move {
                while from.recv().await.is_some() {
                    let _ = to.send(());
                }
            });
        }
    });
    for _ in 0..5 {
        runner.poll(0, 0);
    }
    assert_eq!(trace.take().len(), 5);
    assert!(SpdkThread::current().is_none());
}
