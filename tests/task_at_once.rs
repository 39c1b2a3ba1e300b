//! What a task goes on with at the end of its run without a way through the queue: a yield
//! that nobody waits for, and the task that it joins. Nobody is to notice but by the time.

use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn};
use std::rc::Rc;
use std::task::Poll;

use corespun::local::{Notify, oneshot};
use corespun::task::{AbortHandle, JoinHandle, spawn_eager, spawn_local, yield_now};
use corespun::thread::SpdkThread;
use futures::future::{FutureExt, join};
use harness::threads::*;

/// A value that several tasks of a thread have.
type Shared<T> = Rc<RefCell<Option<T>>>;

/// Spawns and joins without end; how many joins it has done.
fn joins(runner: &mut Runner) -> (JoinHandle<()>, Rc<Cell<u32>>) {
    let done = Rc::new(Cell::new(0));
    let counted = done.clone();
    let task = runner.enter(|| {
        spawn_local(async move {
            loop {
                spawn_local(async {}).await.unwrap();
                counted.set(counted.get() + 1);
            }
        })
    });
    (task, done)
}

/// G9
#[test]
fn runs_inside_a_run_count_into_the_batch() {
    let (mut runner, _) = thread();
    let (task, done) = joins(&mut runner);
    // The joiner, and so on in turn: the fourth task has ended, and was not joined.
    runner.poll(0, 0);
    assert_eq!(done.get(), 3);
    for polls in 2..10 {
        runner.poll(2, 0);
        assert_eq!(done.get(), polls + 2);
    }
    runner.poll(1, 0);
    assert_eq!(done.get(), 12);
    runner.poll(1, 0);
    assert_eq!(done.get(), 12, "the joined task alone");
    task.abort();
    settle(&mut runner);
}

/// G9
#[test]
fn who_joins_goes_behind_what_waits() {
    let (mut runner, _) = thread();
    let trace = Trace::default();
    let log = trace.clone();
    let task = runner.enter(|| {
        spawn_local(async move {
            let (first, second) = (log.clone(), log.clone());
            let joined = spawn_local(async move {
                first.note("joined");
                let third = first.clone();
                drop(spawn_local(async move { third.note("spawned by it") }));
            });
            drop(spawn_local(async move { second.note("spawned beside it") }));
            joined.await.unwrap();
            log.note("joiner");
        })
    });
    runner.poll(0, 0);
    let order = ["joined", "spawned beside it", "spawned by it", "joiner"];
    assert_eq!(trace.take(), order);
    assert!(task.is_finished());
}

/// Only the poll of the future borrows what it borrows, not the wait.
#[test]
fn what_the_poll_of_a_join_borrows_is_free_when_the_joined_task_runs() {
    let (mut runner, _) = thread();
    let task = runner.enter(|| {
        spawn_local(async {
            let value = Rc::new(RefCell::new(1));
            let other = value.clone();
            let mut joined = spawn_local(async move { *other.borrow_mut() += 1 });
            poll_fn(|cx| {
                let _borrowed = value.borrow_mut();
                joined.poll_unpin(cx)
            })
            .await
            .unwrap();
            *value.borrow()
        })
    });
    runner.poll(0, 0);
    assert_eq!(output(task), 2);
}

#[test]
fn tasks_that_join_each_other_deep_do_not_take_stack_for_each() {
    fn count(depth: u32) -> JoinHandle<u32> {
        spawn_local(async move {
            match depth {
                0 => 0,
                _ => count(depth - 1).await.unwrap() + 1,
            }
        })
    }
    let (library, _) = library();
    let thread = library.thread().batch(100_000).build().unwrap();
    let mut runner = library.adopt(thread.attach());
    let task = runner.enter(|| count(20_000));
    settle(&mut runner);
    assert_eq!(output(task), 20_000);
}

#[test]
fn a_joined_task_that_waits_is_joined_later() {
    let (mut runner, _) = thread();
    let (sender, receiver) = oneshot::channel();
    let polls = Rc::new(Cell::new(0));
    let counted = polls.clone();
    let task = runner.enter(|| {
        spawn_local(async move {
            let mut joined = spawn_local(async move { receiver.await.unwrap() });
            let value = poll_fn(|cx| {
                counted.set(counted.get() + 1);
                joined.poll_unpin(cx)
            });
            value.await.unwrap()
        })
    });
    settle(&mut runner);
    assert_eq!(polls.get(), 1);
    runner.enter(|| sender.send(7).unwrap());
    settle(&mut runner);
    assert_eq!((output(task), polls.get()), (7, 2));
}

/// G6
#[test]
fn a_joined_task_that_panics_or_was_aborted_is_joined_as_such() {
    let (mut runner, _) = thread();
    let task = runner.enter(|| {
        spawn_local(async {
            let panics = spawn_local(async { panic!("joined") });
            let panicked = panics.await.unwrap_err();
            let aborted = spawn_local(pending::<()>());
            aborted.abort();
            let aborted = aborted.await.unwrap_err();
            (panicked.is_panic(), aborted.is_cancelled())
        })
    });
    settle(&mut runner);
    assert_eq!(output(task), (true, true));
}

#[test]
fn a_joined_task_may_abort_its_joiner() {
    let (mut runner, _) = thread();
    let witness = Rc::new(());
    let kept = witness.clone();
    let abort: Shared<AbortHandle> = Shared::default();
    let taken = abort.clone();
    let task = runner.enter(|| {
        spawn_local(async move {
            let _kept = kept;
            let abort = spawn_local(async move { taken.take().unwrap().abort() });
            abort.await.unwrap();
            unreachable!("it is aborted");
        })
    });
    abort.replace(Some(task.abort_handle()));
    settle(&mut runner);
    assert_eq!(Rc::strong_count(&witness), 1);
    let error = task.now_or_never().unwrap().unwrap_err();
    assert!(error.is_cancelled());
}

/// The handle that is awaited goes while its task is run inside the joiner.
#[test]
fn a_joined_task_may_drop_its_own_handle() {
    for waits in [false, true] {
        let (mut runner, _) = thread();
        let handle: Shared<JoinHandle<()>> = Shared::default();
        let taken = handle.clone();
        let task = runner.enter(|| {
            spawn_local(async move {
                let own = spawn_local(async move {
                    drop(taken.take());
                    if waits {
                        pending::<()>().await;
                    }
                });
                handle.replace(Some(own));
                poll_fn(|cx| match &mut *handle.borrow_mut() {
                    Some(own) => own.poll_unpin(cx).map(|_| unreachable!("it drops it")),
                    None => Poll::Ready(()),
                })
                .await;
            })
        });
        // Nobody wakes it for that; it is polled again all the same, or by this.
        settle(&mut runner);
        runner.wake_tasks();
        settle(&mut runner);
        output(task);
    }
}

#[test]
fn a_joined_task_may_wake_its_joiner_otherwise() {
    let (mut runner, _) = thread();
    let trace = Trace::default();
    let (log, told) = (trace.clone(), Rc::new(Notify::new()));
    let task = runner.enter(|| {
        spawn_local(async move {
            let (tells, other) = (told.clone(), log.clone());
            let joined = spawn_local(async move {
                tells.notify_one();
                other.note("joined");
                yield_now().await;
                other.note("yielded");
                yield_now().await;
                other.note("again");
            });
            let told = async {
                told.notified().await;
                log.note("told");
            };
            let (_, joined) = join(told, joined).await;
            joined.unwrap();
        })
    });
    settle(&mut runner);
    // Its wake counts from the end of the run that it is inside of: behind the yield, but
    // not behind another.
    assert_eq!(trace.take(), ["joined", "yielded", "told", "again"]);
    output(task);
}

/// What has spawned an eager task is in the middle of something.
#[test]
fn an_eager_task_runs_nobody_else_in_its_first_poll() {
    let (mut runner, _) = thread();
    let task = runner.enter(|| {
        spawn_local(async {
            let value = Rc::new(RefCell::new(0));
            let other = value.clone();
            let joined = spawn_local(async move { *other.borrow_mut() += 1 });
            let borrowed = value.borrow();
            let joins = spawn_eager(async move { joined.await.unwrap() });
            drop(borrowed);
            joins.await.unwrap();
            *value.borrow()
        })
    });
    settle(&mut runner);
    assert_eq!(output(task), 1);
}

/// A task that gives way, and spawns one that does so inside of the same poll.
#[test]
fn a_yield_around_an_eager_task_that_yields_is_not_lost() {
    let (mut runner, _) = thread();
    let task = runner.enter(|| {
        spawn_local(async {
            let eager = poll_fn(|_| Poll::Ready(spawn_eager(yield_now())));
            let ((), eager) = join(yield_now(), eager).await;
            eager.await.unwrap();
        })
    });
    settle(&mut runner);
    output(task);
}

#[test]
fn a_task_may_yield_and_join_in_one_poll() {
    let (mut runner, _) = thread();
    let task = runner.enter(|| {
        spawn_local(async {
            for _ in 0..10 {
                let both = join(yield_now(), spawn_local(async { 5 }));
                assert_eq!(both.await.1.unwrap(), 5);
                let both = join(spawn_local(async { 6 }), yield_now());
                assert_eq!(both.await.0.unwrap(), 6);
                let both = join(spawn_local(async { 7 }), spawn_local(yield_now()));
                assert_eq!(both.await.0.unwrap(), 7);
            }
        })
    });
    settle(&mut runner);
    output(task);
}

/// G7
#[test]
fn a_joined_task_may_ask_its_thread_to_exit() {
    let (mut runner, _) = thread();
    let witness = Rc::new(());
    let kept = witness.clone();
    let task = runner.enter(|| {
        spawn_local(async move {
            let _kept = kept;
            loop {
                let exits = spawn_local(async { drop(SpdkThread::current().unwrap().exit()) });
                exits.await.unwrap();
            }
        })
    });
    settle(&mut runner);
    assert!(runner.is_exited());
    assert_eq!(Rc::strong_count(&witness), 1);
    assert!(task.now_or_never().unwrap().is_err());
}
