//! Orders of events that nobody plans: a task that aborts or joins itself, what
//! is dropped within itself, handles that reach dead threads, calls whose caller
//! is gone. What each guarantee says holds for them too.

use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn};
use std::panic::resume_unwind;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::thread;

use corespun::spdk_thread_local;
use corespun::task::{
    self, AbortHandle, JoinHandle, JoinSet, MoveError, block_on, spawn_local, spawn_movable,
    yield_now,
};
use corespun::thread::{Poller, SpdkThread, ThreadLib};
use futures::FutureExt;
use harness::threads::*;

// A task and its own handles.

/// G6, G7
#[test]
fn a_task_that_aborts_itself_ends_at_its_next_poll_unless_this_one_is_its_last() {
    for returns in [false, true] {
        let (mut runner, _) = thread();
        let trace = Trace::default();
        let own = Rc::new(Cell::new(None::<AbortHandle>));
        let (mine, note) = (own.clone(), DropNote(trace.clone(), "gone"));
        let task = runner.enter(|| {
            spawn_local(poll_fn(move |_| {
                let _ = &note;
                let abort = mine.take().expect("polled once");
                abort.abort();
                assert!(!abort.is_finished());
                if returns {
                    Poll::Ready(1)
                } else {
                    Poll::Pending
                }
            }))
        });
        own.set(Some(task.abort_handle()));
        settle(&mut runner);
        assert_eq!(trace.take(), ["gone"]);
        assert!(runner.tasks().is_empty());
        match block_on(task) {
            Ok(output) => assert_eq!((output, returns), (1, true)),
            Err(error) => assert!(error.is_cancelled() && !returns),
        }
    }
}

/// The set's drop aborts its members, among them the task that drops it.
#[test]
fn a_set_may_be_dropped_by_a_task_that_is_in_it() {
    let (mut runner, _) = thread();
    let trace = Trace::default();
    let set = Rc::new(Cell::new(None::<JoinSet<()>>));
    let (mine, note) = (set.clone(), DropNote(trace.clone(), "dropper"));
    let other = DropNote(trace.clone(), "other");
    runner.enter(|| {
        let mut members = JoinSet::new();
        members.spawn_local(async move {
            let _note = note;
            yield_now().await;
            drop(mine.take());
            yield_now().await;
            unreachable!("it aborted itself");
        });
        members.spawn_local(async move {
            let _other = other;
            pending().await
        });
        set.set(Some(members));
    });
    settle(&mut runner);
    let mut gone = trace.take();
    gone.sort();
    assert_eq!(gone, ["dropper", "other"]);
    assert!(runner.tasks().is_empty());
}

/// Dropped in the poll of the task that it waits for.
#[test]
fn a_join_handle_may_be_dropped_by_the_task_it_is_of() {
    let (library, _) = library();
    let panics = library.panics();
    let mut runner = library.runner("");
    let own = Rc::new(Cell::new(None::<JoinHandle<()>>));
    let mine = own.clone();
    let task = runner.enter(|| {
        spawn_local(async move {
            drop(mine.take());
            resume_unwind(Box::new("after it"));
        })
    });
    own.set(Some(task));
    settle(&mut runner);
    assert_eq!(panics.take_with_sources(), ["Task: after it"]);
    assert!(runner.tasks().is_empty());
}

// Handles and wakers on threads that are gone.

/// The joined task does not mind.
#[test]
fn a_join_handle_that_goes_with_a_dead_thread_detaches_its_task() {
    for dead_already in [false, true] {
        let (mut here, mut there) = two_threads();
        let target = there.handle();
        let exit = |there: &mut corespun::thread::ThreadRunner| {
            drop(there.exit());
            settle(there);
            assert!(there.is_exited());
        };
        if dead_already {
            exit(&mut there);
        }
        let ran = Arc::new(AtomicUsize::new(0));
        let count = ran.clone();
        let task = here.enter(|| {
            task::spawn(async move {
                yield_now().await;
                count.fetch_add(1, Ordering::Relaxed);
            })
        });
        here.poll(0, 0);
        let joiner = target.spawn(async move { task.await.is_ok() });
        if !dead_already {
            there.poll(0, 0);
            exit(&mut there);
        }
        settle(&mut here);
        assert_eq!(ran.load(Ordering::Relaxed), 1);
        assert!(block_on(joiner).unwrap_err().is_thread_exited());
    }
}

thread_local! {
    static LAST_WAKER: RefCell<Vec<Waker>> = const { RefCell::new(Vec::new()) };
}

/// Wakes when dropped.
struct WakeOnDrop(Waker);

impl Drop for WakeOnDrop {
    fn drop(&mut self) {
        self.0.wake_by_ref();
    }
}

spdk_thread_local! {
    static KEPT: RefCell<Vec<WakeOnDrop>> = RefCell::default();
}

fn waker_of_pending(runner: &mut corespun::thread::ThreadRunner) -> (JoinHandle<()>, Waker) {
    let slot = Rc::new(Cell::new(None));
    let give = slot.clone();
    let task = runner.enter(|| {
        spawn_local(poll_fn(move |cx| {
            give.set(Some(cx.waker().clone()));
            Poll::Pending
        }))
    });
    runner.poll(0, 0);
    (task, slot.take().expect("polled"))
}

/// G1
#[test]
fn a_waker_kept_in_a_thread_local_goes_when_its_os_thread_ends() {
    let (mut runner, _) = thread();
    let (task, waker) = waker_of_pending(&mut runner);
    thread::spawn(move || LAST_WAKER.with_borrow_mut(|kept| kept.push(waker)))
        .join()
        .unwrap();
    assert!(!task.is_finished());
    // The last one of a detached task, and of one that is over.
    let (detached, waker) = waker_of_pending(&mut runner);
    drop(detached);
    thread::spawn(move || LAST_WAKER.with_borrow_mut(|kept| kept.push(waker)))
        .join()
        .unwrap();
    let (_, waker) = waker_of_pending(&mut runner);
    drop(runner);
    thread::spawn(move || LAST_WAKER.with_borrow_mut(|kept| kept.push(waker)))
        .join()
        .unwrap();
    assert!(task.is_finished());
}

/// G1, G7
#[test]
fn a_waker_in_a_thread_local_of_its_own_thread_may_wake_at_exit() {
    let (mut runner, _) = thread();
    let (task, waker) = waker_of_pending(&mut runner);
    runner.enter(|| KEPT.with(|kept| kept.borrow_mut().push(WakeOnDrop(waker))));
    drop(runner.exit());
    settle(&mut runner);
    assert!(runner.is_exited());
    assert!(block_on(task).unwrap_err().is_thread_exited());
}

// Scopes.

#[test]
fn a_leaked_scope_leaks_its_children_and_touches_nothing() {
    let (mut runner, _) = thread();
    let polls = Rc::new(Cell::new(0));
    let counted = polls.clone();
    let task = runner.enter(|| {
        spawn_local(async move {
            let mut scope = Box::pin(task::scope(async |scope| {
                scope.spawn(poll_fn(|cx| {
                    counted.set(counted.get() + 1);
                    cx.waker().wake_by_ref();
                    Poll::<()>::Pending
                }));
            }));
            assert!(futures::poll!(scope.as_mut()).is_pending());
            std::mem::forget(scope);
        })
    });
    settle(&mut runner);
    assert!(task.is_finished());
    let when_leaked = polls.get();
    settle(&mut runner);
    assert_eq!(polls.get(), when_leaked);
}

/// G9
#[test]
fn children_that_start_children_without_end_leave_the_pollers_their_turn() {
    fn chain(scope: task::Scope<'static>, ends: bool, limit: Rc<Cell<u32>>) {
        if limit.replace(limit.get().saturating_sub(1)) == 0 {
            return;
        }
        scope.clone().spawn(async move {
            chain(scope, ends, limit);
            if !ends {
                pending::<()>().await;
            }
        });
    }
    for ends in [true, false] {
        let (mut runner, _) = thread();
        // Ends a chain that one poll would run without end.
        let limit = Rc::new(Cell::new(100_000));
        let mine = limit.clone();
        let task = runner.enter(|| {
            spawn_local(task::scope(async move |scope| {
                chain(scope, ends, mine);
                pending::<()>().await
            }))
        });
        // One poll of the task in each: hence the 1.
        runner.poll(1, 0);
        runner.poll(1, 0);
        assert!(limit.get() > 99_000, "{} left", limit.get());
        drop(task);
    }
}

/// Starts a child when dropped.
struct Starts<'a, T: 'a>(task::Scope<'a>, Option<T>);

impl<'a, T: 'a> Drop for Starts<'a, T> {
    fn drop(&mut self) {
        let (note, itself) = (self.1.take(), self.0.clone());
        self.0.spawn(async move {
            let _kept = (note, itself);
            pending::<()>().await
        });
    }
}

#[test]
fn what_is_started_by_a_drop_in_a_scope_that_ends_is_dropped_too() {
    let trace = Trace::default();
    for by_child in [true, false] {
        let note = DropNote(trace.clone(), "started late");
        let mut scope = Box::pin(task::scope(async |scope| {
            let starts = Starts(scope.clone(), Some(note));
            if by_child {
                scope.spawn(async move {
                    let _starts = starts;
                    pending::<()>().await
                });
                pending::<()>().await
            } else {
                let _starts = starts;
                pending::<()>().await
            }
        }));
        assert!(scope.as_mut().now_or_never().is_none());
        assert!(trace.take().is_empty());
        drop(scope);
        assert_eq!(trace.take(), ["started late"], "by a child: {by_child}");
    }
}

#[test]
fn what_is_started_in_a_scope_that_is_over_is_dropped() {
    let trace = Trace::default();
    let outside = RefCell::new(None);
    block_on(task::scope(async |scope| {
        outside.replace(Some(scope));
    }));
    let scope = outside.take().unwrap();
    let note = DropNote(trace.clone(), "late");
    let late = scope.spawn(async move {
        let _note = note;
    });
    assert_eq!(trace.take(), ["late"]);
    assert!(block_on(late).is_err());
}

// Waiting on an OS thread.

#[test]
fn block_on_within_block_on_loses_no_wake() {
    let (outer_wake, outer) = futures::channel::oneshot::channel();
    let (inner_wake, inner) = futures::channel::oneshot::channel();
    let waker = thread::spawn(move || {
        outer_wake.send(1).unwrap();
        inner_wake.send(2).unwrap();
    });
    let sum = block_on(async {
        // Registers the outer waker first, which then is woken while the inner
        // one sleeps.
        let mut outer = outer;
        let early = futures::poll!(&mut outer);
        let inner = block_on(inner).unwrap();
        let outer = match early {
            Poll::Ready(value) => value.unwrap(),
            Poll::Pending => outer.await.unwrap(),
        };
        outer + inner
    });
    assert_eq!(sum, 3);
    waker.join().unwrap();
}

// Calls.

/// G3
#[test]
fn a_call_to_a_thread_that_exits_before_its_turn_is_run_or_refused() {
    let (mut here, mut there) = two_threads();
    let target = there.handle();
    drop(target.exit());
    let before = target.call(|| 1);
    let asked = here.enter(|| spawn_local(before));
    here.poll(0, 0);
    settle(&mut there);
    assert!(there.is_exited());
    let after = target.call(|| 2);
    settle(&mut here);
    assert_eq!(output(asked).unwrap(), 1);
    assert!(block_on(after).unwrap_err().is_exited());
}

/// Also asked by the thread itself, whose own queue nobody runs any more.
#[test]
fn a_call_to_oneself_after_the_exit_is_refused() {
    let (mut runner, _) = thread();
    let me = runner.handle();
    drop(runner.exit());
    settle(&mut runner);
    assert!(runner.is_exited());
    let ran = Arc::new(AtomicUsize::new(0));
    let count = ran.clone();
    let call = runner.enter(|| {
        me.call(move || {
            count.fetch_add(1, Ordering::Relaxed);
        })
    });
    assert!(
        call.now_or_never()
            .expect("refused")
            .unwrap_err()
            .is_exited()
    );
    assert!(!runner.poll(0, 0).is_busy());
    assert_eq!(ran.load(Ordering::Relaxed), 0);
}

/// G6: before the call, and between it and the look at the result.
#[test]
fn the_panic_of_a_call_that_nobody_waits_for_is_reported() {
    let (library, _) = library();
    let panics = library.panics();
    let mut runner = library.runner("");
    let thread = runner.handle();
    drop(thread.call(|| resume_unwind(Box::new("before"))));
    settle(&mut runner);
    assert_eq!(panics.take_with_sources(), ["Message: before"]);
    let call = thread.call(|| resume_unwind(Box::new("after")));
    settle(&mut runner);
    assert!(panics.take().is_empty());
    drop(call);
    assert_eq!(panics.take_with_sources(), ["Message: after"]);
    // One that is waited for is its caller's.
    let call = thread.call(|| resume_unwind(Box::new("taken")));
    settle(&mut runner);
    assert!(block_on(call).unwrap_err().is_panic());
    assert!(panics.take().is_empty());
}

/// G6
#[test]
fn the_panic_of_a_blocking_call_that_nobody_waits_for_is_reported() {
    let (report, reported) = std::sync::mpsc::channel();
    let library = ThreadLib::builder()
        .panic_hook(move |panic| {
            let text = format!("{} {:?}: {}", panic.thread, panic.source, panic.message);
            report.send(text).unwrap();
        })
        .build();
    let next_report = || {
        // A library that says nothing fails the test instead of hanging it.
        reported.recv_timeout(std::time::Duration::from_secs(30))
    };
    let (go, wait) = std::sync::mpsc::channel::<()>();
    drop(library.spawn_blocking(move || {
        wait.recv().unwrap();
        resume_unwind(Box::new("blocking"));
    }));
    go.send(()).unwrap();
    assert_eq!(next_report().unwrap(), "helper Message: blocking");
    // Of its result's destructor, as many as there may be helpers; they go on.
    for _ in 0..65 {
        let (go, wait) = std::sync::mpsc::channel::<()>();
        drop(library.spawn_blocking(move || {
            wait.recv().unwrap();
            OnDrop(|| resume_unwind(Box::new("result")))
        }));
        go.send(()).unwrap();
        assert_eq!(next_report().unwrap(), "helper Drop: result");
    }
    let after = library.spawn_blocking(|| 1);
    assert_eq!(block_on(after).unwrap(), 1);
}

// Moves.

#[test]
fn a_task_that_asks_for_two_moves_at_once_goes_to_the_last() {
    let (mut here, mut there) = two_threads();
    let mut third = here
        .handle()
        .library()
        .thread()
        .name("third")
        .build()
        .unwrap()
        .attach();
    let targets = [there.handle(), third.handle()];
    let task = here.enter(|| {
        spawn_movable(async move {
            let moves = targets.iter().map(task::move_to);
            futures::future::select_all(moves).await.0.unwrap();
            SpdkThread::current().unwrap().name().to_owned()
        })
    });
    settle_all(&mut [&mut here, &mut there, &mut third]);
    assert_eq!(output(task), "third");
}

/// Its JoinHandle, aborts and wakes find it wherever it is.
#[test]
fn a_task_that_moves_to_a_thread_dropped_on_the_way_ends_there_or_stays() {
    let (mut here, there) = two_threads();
    let target = there.handle();
    let task = here.enter(|| {
        spawn_movable(async move {
            let moved = task::move_to(&target).await;
            (
                moved,
                SpdkThread::current().map(|thread| thread.name().to_owned()),
            )
        })
    });
    drop(there);
    settle(&mut here);
    let (moved, place) = output(task);
    assert!(matches!(moved, Err(MoveError::Exited(_))));
    assert_eq!(place.as_deref(), Some("here"));

    let (mut here, there) = two_threads();
    let target = there.handle();
    let witness = Arc::new(());
    let mine = witness.clone();
    let task = here.enter(|| {
        spawn_movable(async move {
            let _mine = mine;
            task::move_to(&target).await
        })
    });
    here.poll(0, 0);
    // In the mailbox of a thread that is dropped.
    drop(there);
    assert_eq!(Arc::strong_count(&witness), 1);
    assert!(block_on(task).unwrap_err().is_thread_exited());
}

// What a destructor may do.

/// Does something when dropped.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// G7: the future's destructor aborts itself and others, wakes itself, spawns,
/// calls and joins while the exit drops it.
#[test]
fn a_destructor_at_exit_may_use_every_handle_it_has() {
    let (mut runner, _) = thread();
    let me = runner.handle();
    let (other, _) = waker_of_pending(&mut runner);
    let others = other.abort_handle();
    let own = Rc::new(RefCell::new(None::<(JoinHandle<()>, Waker)>));
    let (mine, calls) = (own.clone(), Rc::new(RefCell::new(Vec::new())));
    let called = calls.clone();
    let held = OnDrop(move || {
        let (mut handle, waker) = mine.take().expect("dropped once");
        waker.wake_by_ref();
        handle.abort();
        others.abort();
        let mut cx = Context::from_waker(&waker);
        let _ = handle.poll_unpin(&mut cx);
        let poller = Poller::active(|| ());
        called
            .borrow_mut()
            .push((me.call(|| 1), spawn_local(async { 2 })));
        drop(poller);
        drop((handle, waker));
    });
    let (task, waker) = {
        let slot = Rc::new(Cell::new(None));
        let give = slot.clone();
        let task = runner.enter(|| {
            spawn_local(poll_fn(move |cx| {
                let _ = &held;
                give.set(Some(cx.waker().clone()));
                Poll::<()>::Pending
            }))
        });
        runner.poll(0, 0);
        (task, slot.take().unwrap())
    };
    *own.borrow_mut() = Some((task, waker));
    drop(runner.exit());
    settle(&mut runner);
    assert!(runner.is_exited());
    assert!(own.borrow().is_none());
    assert!(block_on(other).unwrap_err().is_thread_exited());
    for (call, task) in calls.take() {
        assert_eq!((block_on(call).unwrap(), block_on(task).unwrap()), (1, 2));
    }
}

/// G6, G7: everything that a thread drops at its exit panics.
#[test]
fn an_exit_in_which_every_destructor_panics_ends_and_reports_each() {
    struct Grenade(&'static str);
    impl Drop for Grenade {
        fn drop(&mut self) {
            resume_unwind(Box::new(self.0));
        }
    }
    spdk_thread_local! {
        static KEY: RefCell<Option<Grenade>> = RefCell::default();
    }
    for forced in [false, true] {
        let reports: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = reports.clone();
        let (clock, hand) = corespun::clock::Clock::virtual_at(1_000_000);
        let library = ThreadLib::builder()
            .clock(clock)
            .panic_hook(move |panic| seen.lock().unwrap().push(panic.message.to_owned()))
            .build();
        let mut runner = library.thread().build().unwrap().attach();
        let task = |name| {
            let held = Grenade(name);
            spawn_local(async move {
                let _held = held;
                pending::<()>().await
            })
        };
        let mut tasks = vec![runner.enter(|| task("polled"))];
        runner.poll(0, 0);
        let callback = Grenade("callback");
        let poller = runner.enter(|| {
            KEY.with(|key| key.replace(Some(Grenade("local"))));
            tasks.push(task("unpolled"));
            Poller::timed(us(1_000_000_000), move || {
                let _ = &callback;
            })
            .unwrap()
        });
        drop(runner.exit());
        if forced {
            settle(&mut runner);
            assert!(!runner.is_exited());
            hand.advance(5_000_000);
        } else {
            runner.enter(|| drop(poller));
        }
        settle(&mut runner);
        assert!(runner.is_exited());
        let mut reports = reports.lock().unwrap();
        reports.sort();
        assert_eq!(*reports, ["callback", "local", "polled", "unpolled"]);
        for task in tasks {
            assert!(block_on(task).unwrap_err().is_thread_exited());
        }
    }
}
