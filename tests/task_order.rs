//! Which poll of its thread a task runs in.

use std::sync::{Arc, Mutex};

use corespun::local::oneshot;
use corespun::task::{spawn_eager, spawn_local, yield_now};
use corespun::thread::{Poller, SpdkThread};
use futures::executor::block_on;
use harness::threads::*;

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
fn a_task_does_not_pass_a_message_that_was_sent_before() {
    let (mut runner, _) = thread();
    let trace = Arc::new(Mutex::new(Vec::new()));
    let (sender, receiver) = oneshot::channel();
    let log = trace.clone();
    let _woken = runner.enter(|| {
        spawn_local(async move {
            receiver.await.unwrap();
            log.lock().unwrap().push("woken");
        })
    });
    runner.poll(0, 0);
    let (to_send, to_spawn) = (trace.clone(), trace.clone());
    let _sends = runner.enter(|| {
        spawn_local(async move {
            let thread = SpdkThread::current().unwrap();
            let message = move || to_send.lock().unwrap().push("message");
            thread.send_msg(message).unwrap();
            let _new = spawn_local(async move { to_spawn.lock().unwrap().push("new") });
            sender.send(()).unwrap();
        })
    });
    runner.poll(0, 0);
    assert!(trace.lock().unwrap().is_empty());
    runner.poll(0, 0);
    assert_eq!(*trace.lock().unwrap(), ["message", "new", "woken"]);
}

/// G9
#[test]
fn a_new_task_runs_in_the_same_poll_as_far_as_the_batch_goes() {
    let (mut runner, _) = thread();
    let trace = Trace::default();
    let polls = trace.clone();
    let _poller = runner
        .enter(|| Poller::active(move || polls.note("pollers")))
        .unwrap();
    fn spawns(log: Trace) {
        let _child = spawn_local(async move {
            log.note("task");
            spawns(log);
        });
    }
    runner.enter(|| spawns(trace.clone()));
    runner.poll(3, 0);
    assert_eq!(trace.take(), ["task", "task", "task", "pollers"]);
    runner.poll(1, 0);
    assert_eq!(trace.take(), ["task", "pollers"]);
}

#[test]
fn an_eager_task_is_polled_before_its_spawn_returns_and_goes_on_through_the_queue() {
    let (mut runner, _) = thread();
    let trace = Trace::default();
    let (sender, receiver) = oneshot::channel();
    let log = trace.clone();
    let handle = runner.enter(|| {
        let handle = spawn_eager(async move {
            log.note("first");
            receiver.await.unwrap();
            log.note("second");
        });
        trace.note("spawned");
        handle
    });
    assert!(!handle.is_finished());
    sender.send(()).unwrap();
    assert_eq!(trace.take(), ["first", "spawned"]);
    runner.poll(0, 0);
    assert_eq!(trace.take(), ["second"]);
    assert!(handle.is_finished());
}

#[test]
fn eager_tasks_that_start_each_other_are_queued_where_it_gets_deep() {
    let (mut runner, _) = thread();
    fn nest(levels: u32, trace: Trace) {
        let _inner = spawn_eager(async move {
            trace.note("in");
            if levels > 1 {
                nest(levels - 1, trace.clone());
            }
            trace.note("out");
        });
    }
    let trace = Trace::default();
    runner.enter(|| nest(20, trace.clone()));
    let notes = trace.take();
    assert_eq!(notes.len(), 32, "16 levels at once");
    assert!(notes[..16].iter().all(|note| note == "in"));
    settle(&mut runner);
    assert_eq!(trace.take().len(), 8, "and the others");
}

/// G6, G7
#[test]
fn an_eager_task_that_panics_or_comes_too_late_harms_nobody() {
    let (library, _) = library();
    let panics = library.panics();
    let mut runner = library.runner("");
    let (outer, inner) = runner.enter(|| {
        let (tell, told) = oneshot::channel();
        let outer = spawn_eager(async move {
            let inner = spawn_eager(async { panic!("inside") });
            assert!(inner.is_finished());
            tell.send(inner.await.unwrap_err()).ok().unwrap();
            1
        });
        (outer, told)
    });
    settle(&mut runner);
    assert_eq!(output(outer), 1);
    assert!(block_on(inner).unwrap().is_panic());
    assert!(panics.take().is_empty(), "it was joined");
    let _exit = runner.exit();
    while !runner.is_exited() {
        runner.poll(0, 0);
    }
    let late = runner.enter(|| spawn_eager(async { unreachable!("the thread has exited") }));
    let late: Result<(), _> = block_on(late);
    assert!(late.unwrap_err().is_thread_exited());
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
