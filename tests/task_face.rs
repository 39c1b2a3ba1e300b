//! What code on a thread is written with: calls, sets, scopes, budgets, helper
//! threads, spawners, and seeing tasks.

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::rc::Rc;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use corespun::cpu::{self, CpuSet};
use corespun::local::{mpsc, oneshot};
use corespun::task::{
    self, CallError, JoinSet, LocalSpawner, ScopeCancelled, TaskBuilder, TaskState, block_on,
    spawn_local, yield_now,
};
use corespun::thread::{SpdkThread, StallSource, ThreadLib};
use futures::future::LocalBoxFuture;
use futures::task::{LocalSpawnExt, SpawnExt};
use futures::{FutureExt, StreamExt};
use harness::threads::*;

// Calls.

#[test]
fn a_call_runs_there_and_its_result_comes_back_here() {
    let (mut here, mut there) = two_threads();
    let target = there.handle();
    let asked = here.enter(|| {
        spawn_local(async move {
            let name = target.call(|| SpdkThread::current().unwrap().name().to_owned());
            let name = name.await.unwrap();
            (name, SpdkThread::current().unwrap().name().to_owned())
        })
    });
    settle_all(&mut [&mut here, &mut there]);
    assert_eq!(output(asked), ("there".into(), "here".into()));
}

#[test]
fn a_call_that_panics_or_finds_its_thread_gone_is_an_error() {
    let (mut runner, _) = thread();
    let thread = runner.handle();
    let panics = thread.call(|| panic!("oh no"));
    settle(&mut runner);
    let error = block_on(panics).unwrap_err();
    assert!(error.is_panic() && error.to_string().contains("oh no"));
    let unrun = thread.call(|| ());
    let unrun_async = thread.call_async(async || ());
    drop(runner);
    assert!(block_on(unrun).unwrap_err().is_exited());
    assert!(block_on(unrun_async).unwrap_err().is_exited());
    assert!(block_on(thread.call(|| ())).unwrap_err().is_exited());
}

#[test]
fn a_dropped_call_runs_all_the_same_and_a_dropped_async_call_is_aborted() {
    let (mut runner, _) = thread();
    let thread = runner.handle();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = |what| {
        let seen = seen.clone();
        move || seen.lock().unwrap().push(what)
    };
    drop(thread.call(note("call")));
    let (begun, end) = (note("begun"), note("end"));
    let call = thread.call_async(async move || {
        begun();
        yield_now().await;
        end();
    });
    runner.poll(0, 0);
    drop(call);
    settle(&mut runner);
    assert_eq!(*seen.lock().unwrap(), ["call", "begun"]);
}

#[test]
fn try_calls_are_refused_by_a_full_mailbox_with_what_was_to_be_called() {
    let library = ThreadLib::new();
    let mut runner = library
        .thread()
        .ring(2)
        .message_limit(2)
        .build()
        .unwrap()
        .attach();
    let thread = runner.handle();
    while thread.send_msg(|| ()).is_ok() {}
    let refused = thread.try_call(|| 7).unwrap_err();
    assert!(refused.is_full());
    assert_eq!(refused.into_message()(), 7);
    assert!(thread.try_call_async(async || ()).unwrap_err().is_full());
    // What must not be refused is not.
    let call = thread.call(|| 8);
    settle(&mut runner);
    assert_eq!(block_on(call).unwrap(), 8);
    let call = thread.try_call(|| 9).unwrap();
    settle(&mut runner);
    assert_eq!(block_on(call).unwrap(), 9);
    drop(runner);
    assert!(thread.try_call(|| ()).unwrap_err().is_exited());
}

// Sets.

/// G3, G4, G6
#[test]
fn a_detached_task_runs_there_in_its_turn_and_comes_back_from_a_gone_thread() {
    let (library, _) = library();
    let panics = library.panics();
    let mut there = library.runner("there");
    let thread = there.handle();
    let trace = Arc::new(Mutex::new(Vec::new()));
    let note = |what: &'static str| {
        let trace = trace.clone();
        move || trace.lock().unwrap().push(what)
    };
    thread.send_msg(note("before")).unwrap();
    let first = note("first poll");
    let second = note("second poll");
    thread
        .spawn_detached(move || async move {
            let not_send = std::rc::Rc::new(());
            first();
            yield_now().await;
            second();
            drop(not_send);
        })
        .unwrap();
    thread.send_msg(note("after")).unwrap();
    there.poll(0, 0);
    assert_eq!(
        trace.lock().unwrap().drain(..).collect::<Vec<_>>(),
        ["before", "first poll", "after"]
    );
    there.poll(0, 0);
    assert_eq!(*trace.lock().unwrap(), ["second poll"]);

    thread.spawn_detached(async || panic!("oops")).unwrap();
    let late = Arc::new(());
    let waits = late.clone();
    settle(&mut there);
    assert_eq!(panics.take_with_sources(), ["Task: oops"]);

    let exit = there.exit();
    while !there.is_exited() {
        there.poll(0, 0);
    }
    drop(exit);
    let refused = thread
        .spawn_detached(async move || drop(waits))
        .unwrap_err();
    assert!(refused.to_string().contains("there"));
    assert_eq!(Arc::strong_count(&late), 2);
    drop(refused.into_message());
    assert_eq!(Arc::strong_count(&late), 1);
}

#[test]
fn a_set_joins_its_tasks_in_the_order_they_end() {
    let (mut runner, hand) = thread();
    let order = runner.enter(|| {
        spawn_local(async {
            let mut set = JoinSet::new();
            for late in [30, 10, 20] {
                set.spawn_local(async move {
                    corespun::time::sleep(us(late)).await;
                    late
                });
            }
            assert_eq!(set.len(), 3);
            assert!(set.try_join_next().is_none());
            set.spawn_local(async { 1 });
            task::yield_now().await;
            assert!(matches!(set.try_join_next(), Some(Ok(1))));
            assert!(set.try_join_next().is_none());
            set.join_all().await
        })
    });
    run_to(&mut runner, &hand, 31);
    assert_eq!(output(order), [10, 20, 30]);
}

#[test]
fn a_dropped_set_aborts_its_tasks_and_a_detached_one_does_not() {
    let (mut runner, _) = thread();
    let trace = Trace::default();
    let (mut dropped, mut detached) = (JoinSet::new(), JoinSet::new());
    let never = Rc::new(corespun::local::Notify::new());
    runner.enter(|| {
        for (set, name) in [(&mut dropped, "dropped"), (&mut detached, "detached")] {
            let (note, never) = (DropNote(trace.clone(), name), never.clone());
            set.spawn_local(async move {
                let _note = note;
                never.notified().await
            });
        }
    });
    settle(&mut runner);
    drop(dropped);
    detached.detach_all();
    assert!(detached.is_empty());
    drop(detached);
    settle(&mut runner);
    assert_eq!(trace.take(), ["dropped"]);
}

#[test]
fn shutting_a_set_down_waits_until_the_futures_are_gone() {
    let (mut runner, _) = thread();
    let trace = Trace::default();
    let note = DropNote(trace.clone(), "gone");
    let log = trace.clone();
    let handle = runner.enter(|| {
        spawn_local(async move {
            let mut set = JoinSet::new();
            set.spawn_local(async move {
                let _note = note;
                pending::<()>().await
            });
            yield_now().await;
            set.shutdown().await;
            log.note("shut down");
        })
    });
    settle(&mut runner);
    output(handle);
    assert_eq!(trace.take(), ["gone", "shut down"]);
}

// Scopes.

#[test]
fn children_borrow_what_is_around_and_end_before_the_scope() {
    let (mut runner, hand) = thread();
    let sum = runner.enter(|| {
        spawn_local(async {
            let log = RefCell::new(Vec::new());
            let body = task::scope(async |scope| {
                for late in [20, 10] {
                    let (log, nested) = (&log, scope.clone());
                    scope.spawn(async move {
                        corespun::time::sleep(us(late)).await;
                        log.borrow_mut().push(late);
                        nested.spawn(async move { log.borrow_mut().push(late + 1) });
                    });
                }
                let double = scope.spawn(async { 2 });
                double.await.unwrap()
            })
            .await;
            (body, log.into_inner())
        })
    });
    run_to(&mut runner, &hand, 19);
    assert!(!sum.is_finished());
    run_to(&mut runner, &hand, 20);
    assert_eq!(output(sum), (2, vec![10, 11, 20, 21]));
}

#[test]
fn a_dropped_scope_has_dropped_its_children() {
    let trace = Trace::default();
    let mut scope = Box::pin(task::scope(async |scope| {
        let started = DropNote(trace.clone(), "started");
        scope.spawn(async move {
            let _started = started;
            pending::<()>().await
        });
        yield_once().await;
        // Holds the scope that holds it.
        let (unstarted, itself) = (DropNote(trace.clone(), "unstarted"), scope.clone());
        scope.spawn(async move {
            let _kept = (unstarted, itself);
        });
        pending::<()>().await
    }));
    assert!(scope.as_mut().now_or_never().is_none());
    assert!(trace.take().is_empty());
    assert!(scope.as_mut().now_or_never().is_none());
    assert_eq!(trace.take(), ["unstarted"], "it was started, and ended");
    drop(scope);
    assert_eq!(trace.take(), ["started"]);
}

#[test]
fn a_child_that_was_never_taken_in_goes_with_the_scope_though_it_holds_it() {
    let trace = Trace::default();
    let outside = RefCell::new(None);
    let mut scope = Box::pin(task::scope(async |scope| {
        outside.replace(Some(scope));
        pending::<()>().await
    }));
    assert!(scope.as_mut().now_or_never().is_none());
    let handle = outside.take().unwrap();
    let (note, itself) = (DropNote(trace.clone(), "never polled"), handle.clone());
    handle.spawn(async move {
        let _kept = (note, itself);
    });
    drop(handle);
    drop(scope);
    assert_eq!(trace.take(), ["never polled"]);
}

async fn yield_once() {
    let mut yielded = false;
    std::future::poll_fn(|_| {
        if std::mem::replace(&mut yielded, true) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await
}

#[test]
fn an_error_or_a_cancel_drops_the_children_and_a_childs_panic_passes_on() {
    let trace = Trace::default();
    let note = || DropNote(trace.clone(), "child");
    let child = |note| async move {
        let _note = note;
        pending::<()>().await
    };
    let failed = block_on(task::try_scope(async |scope| {
        scope.spawn(child(note()));
        Err::<(), _>("no")
    }));
    assert_eq!((failed, trace.take().len()), (Err("no"), 1));
    let cancelled = block_on(task::scope(async |scope| {
        let handle = scope.spawn(child(note()));
        scope.cancel();
        handle.await
    }));
    assert_eq!((cancelled, trace.take().len()), (Err(ScopeCancelled), 1));
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        block_on(task::scope(async |scope| {
            scope.spawn(child(note()));
            scope.spawn(async { panic!("child") });
        }))
    }));
    assert!(panicked.is_err());
    assert_eq!(trace.take().len(), 1);
}

// Fairness.

/// G9
#[test]
fn sources_that_are_always_ready_give_way_after_a_budget() {
    async fn of_a_channel(taken: Rc<Cell<u32>>) {
        let (sender, mut receiver) = mpsc::unbounded();
        loop {
            sender.send(()).unwrap();
            receiver.next().await;
            taken.set(taken.get() + 1);
        }
    }
    async fn of_oneshots(taken: Rc<Cell<u32>>) {
        loop {
            let (sender, receiver) = oneshot::channel();
            sender.send(()).unwrap();
            receiver.await.unwrap();
            taken.set(taken.get() + 1);
        }
    }
    type Endless = fn(Rc<Cell<u32>>) -> LocalBoxFuture<'static, ()>;
    let loops: [Endless; 2] = [
        |taken| of_a_channel(taken).boxed_local(),
        |taken| of_oneshots(taken).boxed_local(),
    ];
    for endless in loops {
        let (mut runner, _) = thread();
        let taken = Rc::new(Cell::new(0));
        let _task = runner.enter(|| spawn_local(endless(taken.clone())));
        runner.poll(0, 0);
        assert_eq!(taken.get(), 128);
        runner.poll(0, 0);
        assert_eq!(taken.get(), 256);
    }
}

#[test]
fn a_future_outside_of_a_task_has_no_budget() {
    let (mut runner, _) = thread();
    let used_up = runner.enter(|| {
        spawn_local(async {
            for _ in 0..128 {
                task::consume_budget().await;
            }
        })
    });
    runner.poll(0, 0);
    output(used_up);
    let many = async {
        for _ in 0..1000 {
            task::consume_budget().await;
        }
    };
    assert!(runner.enter(|| many.now_or_never()).is_some());
}

#[test]
fn a_wait_that_found_nothing_costs_no_budget() {
    let (mut runner, _) = thread();
    let handle = runner.enter(|| {
        spawn_local(async {
            let (_sender, mut empty) = mpsc::unbounded::<()>();
            for _ in 0..1000 {
                assert!(empty.recv().now_or_never().is_none());
            }
            task::consume_budget().await;
        })
    });
    runner.poll(0, 0);
    output(handle);
}

// Helper threads and other threads' ways in.

/// G6, G7
#[test]
fn metadata_goes_with_the_future_however_that_goes() {
    struct Loud;
    impl Drop for Loud {
        fn drop(&mut self) {
            panic!("on purpose");
        }
    }
    let (library, _) = library();
    let panics = library.panics();
    let mut runner = library.runner("");
    let witness = Arc::new(());
    let labelled = || {
        TaskBuilder::new()
            .name("labelled")
            .metadata(witness.clone())
    };
    let (ended, aborted, cancelled) = runner.enter(|| {
        (
            labelled().spawn_local(async {}),
            labelled().spawn_local(pending::<()>()),
            labelled().spawn_local(pending::<()>()),
        )
    });
    let _loud = runner.enter(|| TaskBuilder::new().metadata(Loud).spawn_local(async {}));
    aborted.abort();
    assert_eq!(Arc::strong_count(&witness), 4);
    settle(&mut runner);
    // The handles keep the tasks' memory, but not this.
    assert_eq!(Arc::strong_count(&witness), 2);
    assert_eq!(panics.take_with_sources(), ["Drop: on purpose"]);
    let unpolled = runner.enter(|| labelled().spawn_local(async {}));
    let _exit = runner.exit();
    while !runner.is_exited() {
        runner.poll(0, 0);
    }
    assert_eq!(Arc::strong_count(&witness), 1);
    let late = labelled().spawn_on(&runner.handle(), async {});
    assert_eq!(Arc::strong_count(&witness), 1);
    drop((ended, aborted, cancelled, unpolled, late));
}

#[test]
fn a_handle_gives_its_result_once_and_then_says_so() {
    let (mut runner, _) = thread();
    let mut handle = runner.enter(|| spawn_local(async { 1 }));
    settle(&mut runner);
    assert_eq!(block_on(&mut handle).unwrap(), 1);
    assert!(handle.is_finished());
    let again = std::panic::catch_unwind(|| block_on(handle)).unwrap_err();
    let text = again.downcast_ref::<String>().unwrap();
    assert!(
        text.contains("polled after it had given the result"),
        "{text}"
    );
}

#[test]
fn block_on_inside_a_spdk_thread_is_refused_and_names_it() {
    let mut runner = ThreadLib::new()
        .thread()
        .name("worker")
        .build()
        .unwrap()
        .attach();
    let refused = runner.enter(|| std::panic::catch_unwind(|| block_on(async {})));
    let text = refused.unwrap_err().downcast::<String>().unwrap();
    assert!(text.contains("\"worker\""), "{text}");
}

#[test]
fn block_on_sleeps_until_another_os_thread_wakes_it() {
    let (sender, receiver) = futures::channel::oneshot::channel();
    let (started, begin) = channel();
    let waker = std::thread::spawn(move || {
        begin.recv().unwrap();
        sender.send(5).unwrap();
    });
    let value = block_on(async {
        started.send(()).unwrap();
        receiver.await
    });
    assert_eq!(value, Ok(5));
    waker.join().unwrap();
}

#[test]
fn blocking_calls_run_side_by_side_on_helper_threads() {
    let library = ThreadLib::new();
    let mut runner = library.thread().build().unwrap().attach();
    let (meet, met) = channel();
    let (first, second) = runner.enter(|| {
        (
            // Each needs the other to run at the same time.
            task::spawn_blocking(move || met.recv().unwrap()),
            task::spawn_blocking(move || meet.send(std::thread::current().id()).unwrap()),
        )
    });
    let helper = block_on(first).unwrap();
    block_on(second).unwrap();
    assert_ne!(helper, std::thread::current().id());
    let panicked = block_on(library.spawn_blocking(|| panic!("helper")));
    assert!(panicked.unwrap_err().is_panic());
}

#[test]
fn helper_threads_run_on_the_cores_they_were_given_though_their_starter_is_pinned() {
    let all = cpu::available().unwrap();
    let library = ThreadLib::builder().helper_cpus(all).build();
    let seen = std::thread::spawn(move || {
        cpu::pin_current_thread(all.first().unwrap()).unwrap();
        block_on(library.spawn_blocking(|| cpu::current_affinity().unwrap()))
    });
    let seen: Result<CpuSet, CallError> = seen.join().unwrap();
    assert_eq!(seen.unwrap(), all);
}

/// Needs two cores to be told apart; with one, both share it.
#[test]
fn an_app_keeps_its_helper_threads_off_the_cores_of_its_reactors() {
    let all = cpu::available().unwrap();
    let reactor = all.first().unwrap();
    let expected = all & !CpuSet::single(reactor);
    let expected = if expected.is_empty() { all } else { expected };
    let seen = corespun::app::App::builder()
        .cores(CpuSet::single(reactor))
        .mode(corespun::reactor::ReactorMode::Interrupt)
        .handle_signals(false)
        .block_on(async |_| task::spawn_blocking(|| cpu::current_affinity().unwrap()).await)
        .unwrap();
    assert_eq!(seen.unwrap(), expected);
}

#[test]
fn the_futures_traits_spawn_and_fail_once_the_thread_has_exited() {
    let (mut runner, _) = thread();
    let thread = runner.handle();
    let local = runner.enter(LocalSpawner::current).unwrap();
    let not_send = Rc::new(1);
    let first = local
        .spawn_local_with_handle(async move { *not_send })
        .unwrap();
    let second = thread.spawn_with_handle(async { 2 }).unwrap();
    settle(&mut runner);
    assert_eq!((block_on(first), block_on(second)), (1, 2));
    let exit = thread.exit();
    settle(&mut runner);
    runner.poll(0, 0);
    block_on(exit);
    assert!(thread.spawn(async {}).now_or_never().unwrap().is_err());
    assert!(
        SpawnExt::spawn(&thread, async {})
            .unwrap_err()
            .is_shutdown()
    );
    assert!(
        LocalSpawnExt::spawn_local(&local, async {})
            .unwrap_err()
            .is_shutdown()
    );
}

// Seeing tasks.

#[test]
fn the_task_list_shows_names_places_states_and_times() {
    let (clock, hand) = corespun::clock::Clock::virtual_at(1_000_000);
    let library = ThreadLib::builder().clock(clock).task_times(true).build();
    let mut runner = library.thread().build().unwrap().attach();
    let line = line!() + 3;
    let work = hand.clone();
    let _busy = runner.enter(|| {
        TaskBuilder::new().name("busy").spawn_local(async move {
            for cost in [3, 7, 5] {
                work.advance(cost);
                yield_now().await;
            }
            pending::<()>().await
        })
    });
    let asks = runner.enter(|| {
        let thread = SpdkThread::current().unwrap();
        spawn_local(async move {
            // Behind all that the other does.
            for _ in 0..8 {
                yield_now().await;
            }
            thread.tasks().await.unwrap()
        })
    });
    settle(&mut runner);
    let tasks = output(asks);
    let busy = &tasks[1];
    assert_eq!(busy.name.as_deref(), Some("busy"));
    assert_eq!(
        (busy.location.file(), busy.location.line()),
        (file!(), line)
    );
    assert_eq!((busy.state, busy.polls), (TaskState::Idle, 4));
    assert_eq!((busy.total, busy.longest), (us(15), us(7)));
    assert_eq!(tasks[0].name, None);
}

#[test]
fn a_task_that_was_woken_is_listed_as_scheduled() {
    let (mut runner, _) = thread();
    let (sender, receiver) = oneshot::channel::<()>();
    let _waits = runner.enter(|| spawn_local(receiver));
    assert_eq!(runner.tasks()[0].state, TaskState::Scheduled);
    settle(&mut runner);
    assert_eq!(runner.tasks()[0].state, TaskState::Idle);
    drop(sender);
    assert_eq!(runner.tasks()[0].state, TaskState::Scheduled);
    settle(&mut runner);
    assert!(runner.tasks().is_empty());
}

/// G11
#[test]
fn whatever_holds_its_thread_too_long_is_reported_once_by_name() {
    let stalls = Arc::new(Mutex::new(Vec::new()));
    let (clock, hand) = corespun::clock::Clock::virtual_at(1_000_000);
    let log = stalls.clone();
    let library = ThreadLib::builder()
        .clock(clock)
        .stall_limit(us(100))
        .stall_hook(move |stall| {
            let entry = (stall.source, stall.name.to_owned(), stall.held);
            log.lock().unwrap().push(entry);
        })
        .build();
    let mut runner = library.thread().build().unwrap().attach();
    let time = hand.clone();
    let spend = move |us| {
        time.advance(us);
    };
    let task_spends = spend.clone();
    let _task = runner.enter(|| {
        TaskBuilder::new().name("hog").spawn_local(async move {
            for cost in [99, 100, 99] {
                task_spends(cost);
                yield_now().await;
            }
        })
    });
    let message_spends = spend.clone();
    runner
        .handle()
        .send_msg(move || message_spends(200))
        .unwrap();
    let mut once = Some(());
    let _poller = runner
        .enter(|| {
            corespun::thread::Poller::builder()
                .name("spinner")
                .register(move || {
                    if once.take().is_some() {
                        spend(300);
                    }
                    corespun::thread::Activity::Idle
                })
        })
        .unwrap();
    settle(&mut runner);
    let mut stalls = stalls.lock().unwrap().clone();
    stalls.sort_by_key(|stall| stall.2);
    let kinds: Vec<_> = stalls.iter().map(|stall| (stall.0, stall.2)).collect();
    assert_eq!(
        kinds,
        [
            (StallSource::Task, us(100)),
            (StallSource::Message, us(200)),
            (StallSource::Poller, us(300)),
        ]
    );
    assert!(stalls[0].1.starts_with("hog (spawned at "));
    assert!(stalls[1].1.contains("whatever_holds_its_thread"));
    assert_eq!(stalls[2].1, "spinner");
}

#[test]
fn a_tokio_util_cancellation_token_cancels_tasks_of_this_crate() {
    let (mut here, mut there) = two_threads();
    let token = tokio_util::sync::CancellationToken::new();
    let child = token.child_token();
    let waits = there
        .handle()
        .spawn(async move { child.run_until_cancelled(pending::<()>()).await });
    settle(&mut there);
    here.enter(|| token.cancel());
    settle_all(&mut [&mut here, &mut there]);
    assert_eq!(output(waits), None);
}
