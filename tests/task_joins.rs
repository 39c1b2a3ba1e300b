//! Joins between tasks of one thread, which take a shorter way than others, in
//! the orders that could lose a wake, keep something for ever or reach into what
//! is gone; and eager tasks in every place that a spawn may be called from.
#![expect(
    clippy::async_yields_async,
    reason = "a handle that was polled is handed on"
)]

use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn};
use std::panic::resume_unwind;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use corespun::task::{
    self, JoinHandle, JoinSet, block_on, spawn_eager, spawn_local, spawn_movable, yield_now,
};
use corespun::thread::{Poller, ThreadLib, ThreadRunner};
use futures::FutureExt;
use futures::channel::oneshot;
use futures::stream::{FuturesUnordered, StreamExt};
use harness::threads::*;

/// A task that ends when it is told to, and its teller.
fn told<T: 'static>(runner: &mut ThreadRunner) -> (JoinHandle<T>, oneshot::Sender<T>) {
    let (tell, told) = oneshot::channel();
    let task = runner.enter(|| spawn_local(async { told.await.unwrap() }));
    (task, tell)
}

/// Polls `handle` once, with the waker of the task that awaits this.
async fn poll_once<T>(handle: &mut JoinHandle<T>) -> bool {
    poll_fn(|cx| Poll::Ready(handle.poll_unpin(cx).is_ready())).await
}

// Who is woken.

/// Whatever ways the handle was polled before, in every order of two.
#[test]
fn the_last_task_that_polled_a_handle_is_woken_whichever_way_it_was_polled_before() {
    #[derive(Clone, Copy, Debug)]
    enum Before {
        OtherTask,
        OtherThread,
        Wrapped,
        Nobody,
    }
    let all = [
        Before::OtherTask,
        Before::OtherThread,
        Before::Wrapped,
        Before::Nobody,
    ];
    for first in all {
        for second in all {
            for wrapped_at_last in [false, true] {
                let (mut here, mut there) = two_threads();
                let (mut child, tell) = told::<u32>(&mut here);
                settle(&mut here);
                for before in [first, second] {
                    let passes = move |mut child: JoinHandle<u32>| async move {
                        assert!(!poll_once(&mut child).await);
                        child
                    };
                    let passing = match before {
                        Before::Nobody => continue,
                        Before::OtherTask => here.enter(|| spawn_local(passes(child))),
                        Before::OtherThread => there.enter(|| spawn_local(passes(child))),
                        Before::Wrapped => here.enter(|| {
                            spawn_local(async move {
                                let mut all = FuturesUnordered::from_iter([child]);
                                assert!(futures::poll!(all.next()).is_pending());
                                all.into_iter().next().unwrap()
                            })
                        }),
                    };
                    settle_all(&mut [&mut here, &mut there]);
                    child = output(passing);
                }
                let parent = here.enter(|| {
                    spawn_local(async move {
                        if wrapped_at_last {
                            let mut all = FuturesUnordered::from_iter([child]);
                            all.next().await.unwrap().unwrap()
                        } else {
                            child.await.unwrap()
                        }
                    })
                });
                settle_all(&mut [&mut here, &mut there]);
                assert!(!parent.is_finished());
                tell.send(7).unwrap();
                settle_all(&mut [&mut here, &mut there]);
                assert_eq!(output(parent), 7, "{first:?}, {second:?}");
            }
        }
    }
}

/// It asked on the child's thread and is elsewhere when the child ends; the child
/// may end before it has arrived.
#[test]
fn a_movable_task_that_joins_and_hops_is_woken_where_it_is() {
    for arrives_first in [false, true] {
        let (mut here, mut there) = two_threads();
        let (mut child, tell) = told::<u32>(&mut here);
        let target = there.handle();
        let parent = here.enter(|| {
            spawn_movable(async move {
                assert!(!poll_once(&mut child).await);
                task::move_to(&target).await.unwrap();
                child.await.unwrap()
            })
        });
        settle(&mut here);
        if arrives_first {
            settle(&mut there);
        }
        tell.send(7).unwrap();
        settle_all(&mut [&mut here, &mut there]);
        assert_eq!(output(parent), 7);
    }
}

/// The parent is a `Send` task that goes along with its thread, and so is the child.
#[test]
fn a_join_goes_to_another_os_thread_with_its_thread() {
    let (mut here, _) = thread();
    let (tell, told) = oneshot::channel::<u32>();
    let parent = here.enter(|| {
        let child = task::spawn(async { told.await.unwrap() });
        task::spawn(async { child.await.unwrap() })
    });
    settle(&mut here);
    let parked = here.into_inner().park().unwrap();
    let here = thread::spawn(move || {
        let mut here = parked.attach();
        tell.send(7).unwrap();
        settle(&mut here);
        here.park().unwrap()
    })
    .join()
    .unwrap();
    assert_eq!(output(parent), 7);
    drop(here);
}

/// Its end is its first poll's, its second's, an abort, a panic.
#[test]
fn a_join_hears_of_every_way_to_end() {
    let (library, _) = library();
    let mut runner = library.runner("");
    for way in 0..4 {
        let child = runner.enter(|| {
            spawn_local(async move {
                match way {
                    0 => {}
                    1 => yield_now().await,
                    2 => pending().await,
                    _ => resume_unwind(Box::new("on purpose")),
                }
            })
        });
        let abort = child.abort_handle();
        let parent = runner.enter(|| spawn_local(child));
        // The parent has polled the child before that is polled.
        settle(&mut runner);
        if way == 2 {
            abort.abort();
            settle(&mut runner);
        }
        let joined = output(parent);
        match way {
            0 | 1 => joined.unwrap(),
            2 => assert!(joined.unwrap_err().is_cancelled()),
            _ => assert!(joined.unwrap_err().is_panic()),
        }
    }
}

// What is kept, and for how long.

/// Parent before child, and child before parent; ended by an exit, by the drop of
/// the thread, by an abort of the parent.
#[test]
fn parent_and_child_that_end_together_leave_nothing() {
    for child_first in [false, true] {
        for way in 0..3 {
            let (mut runner, _) = thread();
            let content = Rc::new(());
            let (mine, childs) = (content.clone(), content.clone());
            let child = async move {
                let _content = childs;
                pending::<()>().await;
            };
            let slot = Rc::new(Cell::new(None::<JoinHandle<()>>));
            let given = slot.clone();
            let parent = async move {
                let _content = mine;
                yield_now().await;
                let child: JoinHandle<()> = given.take().unwrap();
                child.await
            };
            let parent = runner.enter(|| {
                if child_first {
                    slot.set(Some(spawn_local(child)));
                    spawn_local(parent)
                } else {
                    let parent = spawn_local(parent);
                    slot.set(Some(spawn_local(child)));
                    parent
                }
            });
            settle(&mut runner);
            assert_eq!(Rc::strong_count(&content), 3);
            match way {
                0 => {
                    drop(runner.exit());
                    settle(&mut runner);
                    assert!(runner.is_exited());
                }
                1 => {}
                _ => {
                    parent.abort();
                    settle(&mut runner);
                    assert_eq!(runner.tasks().len(), 1);
                }
            }
            drop(runner);
            assert_eq!(Rc::strong_count(&content), 1);
            let error = block_on(parent).unwrap_err();
            assert!(error.is_thread_exited() || way == 2);
        }
    }
}

/// The parent is gone, its memory kept by the child alone, when the child ends,
/// its handle being elsewhere.
#[test]
fn a_child_may_outlive_all_else_of_the_task_that_joined_it() {
    for handle in ["kept", "dropped elsewhere", "in another task"] {
        let (mut here, mut there) = two_threads();
        let (mut child, tell) = told::<u32>(&mut here);
        let parent = here.enter(|| {
            spawn_local(async move {
                assert!(!poll_once(&mut child).await);
                child
            })
        });
        settle(&mut here);
        let child = output(parent);
        let kept = match handle {
            "kept" => Some(child),
            "dropped elsewhere" => {
                thread::spawn(move || drop(child)).join().unwrap();
                None
            }
            _ => {
                let other = there.enter(|| spawn_local(child));
                settle(&mut there);
                tell.send(7).unwrap();
                settle_all(&mut [&mut here, &mut there]);
                assert_eq!(output(other).unwrap(), 7);
                continue;
            }
        };
        tell.send(7).unwrap();
        settle(&mut here);
        assert!(here.tasks().is_empty());
        if let Some(child) = kept {
            assert_eq!(output(child), 7);
        }
    }
}

/// A circle, too, is cut by the exit.
#[test]
fn tasks_that_join_themselves_or_each_other_end_with_their_thread() {
    for count in 1..4 {
        let (mut runner, _) = thread();
        let content = Rc::new(());
        let slots: Vec<_> = (0..count)
            .map(|_| Rc::new(Cell::new(None::<JoinHandle<()>>)))
            .collect();
        runner.enter(|| {
            for (at, slot) in slots.iter().enumerate() {
                let (slot, content) = (slot.clone(), content.clone());
                let task = spawn_local(async move {
                    let _content = content;
                    let other: JoinHandle<()> = slot.take().unwrap();
                    let _ = other.await;
                    unreachable!("each waits for the other");
                });
                slots[(at + 1) % count].set(Some(task));
            }
        });
        settle(&mut runner);
        assert_eq!(runner.tasks().len(), count);
        drop(runner.exit());
        settle(&mut runner);
        assert!(runner.is_exited());
        assert_eq!(Rc::strong_count(&content), 1);
    }
}

/// The last reference to a task brings its waiter's foreign waker to its end,
/// whose destructor polls and drops handles.
#[test]
fn a_foreign_waker_that_meddles_when_dropped_finds_everything_in_order() {
    struct Meddler(std::sync::Mutex<Vec<JoinHandle<u32>>>);
    impl std::task::Wake for Meddler {
        fn wake(self: Arc<Self>) {}
    }
    impl Drop for Meddler {
        fn drop(&mut self) {
            for mut handle in self.0.get_mut().unwrap().drain(..) {
                let _ = handle.poll_unpin(&mut Context::from_waker(Waker::noop()));
            }
        }
    }
    let (mut here, _) = thread();
    let (mut child, tell) = told::<u32>(&mut here);
    let (other, tell_other) = told::<u32>(&mut here);
    settle(&mut here);
    let meddler = Waker::from(Arc::new(Meddler(vec![other].into())));
    assert!(
        child
            .poll_unpin(&mut Context::from_waker(&meddler))
            .is_pending()
    );
    drop(meddler);
    let parent = here.enter(|| {
        spawn_local(async move {
            assert!(!poll_once(&mut child).await);
            child.await.unwrap()
        })
    });
    settle(&mut here);
    tell.send(7).unwrap();
    settle(&mut here);
    assert_eq!(output(parent), 7);
    drop(tell_other);
    settle(&mut here);
    assert!(here.tasks().is_empty());
    assert_eq!(here.panics().take().len(), 1, "the other was told nothing");
}

/// Spares of the thread's reference count among them.
#[test]
fn a_thread_that_is_gone_is_freed_whatever_its_tasks_left() {
    let context = Arc::new(());
    let library = ThreadLib::new();
    let builder = library.thread().context(context.clone());
    let mut runner = builder.build().unwrap().attach();
    let mut kept = Vec::new();
    for round in 0..40 {
        runner.enter(|| {
            kept.push(spawn_eager(async {}).abort_handle());
            let waits = spawn_local(pending::<()>());
            kept.push(waits.abort_handle());
            let nap = spawn_local(async {
                let _ = futures::poll!(task::unconstrained(Box::pin(corespun::time::sleep(
                    Duration::from_secs(1)
                ))));
            });
            kept.push(nap.abort_handle());
        });
        runner.poll(0, 0);
        if round % 3 == 0 {
            kept.drain(..kept.len() / 2).for_each(|abort| abort.abort());
        }
        if round == 20 {
            // Given back on another OS thread, uncounted there.
            let sent = std::mem::take(&mut kept);
            thread::spawn(move || drop(sent)).join().unwrap();
        }
    }
    drop(runner);
    assert_eq!(Arc::strong_count(&context), 2, "kept by the tasks' remains");
    drop(kept);
    assert_eq!(Arc::strong_count(&context), 1);
}

// Eager tasks.

/// G9: whoever awaits tasks that are finished already gives way all the same.
#[test]
fn a_loop_over_eager_tasks_gives_way() {
    let (mut runner, _) = thread();
    let rounds = Rc::new(Cell::new(0));
    let counted = rounds.clone();
    let task = runner.enter(|| {
        spawn_local(async move {
            for _ in 0..1000 {
                spawn_eager(async {}).await.unwrap();
                counted.set(counted.get() + 1);
            }
        })
    });
    runner.poll(0, 0);
    assert_eq!(rounds.get(), 128);
    settle(&mut runner);
    assert!(task.is_finished());
}

/// A set hands out as many per poll as other sources do.
#[test]
fn a_set_of_finished_tasks_takes_one_unit_of_the_budget_for_each() {
    let (mut runner, _) = thread();
    let joined = Rc::new(Cell::new(0));
    let counted = joined.clone();
    let task = runner.enter(|| {
        let mut set: JoinSet<()> = (0..300).map(|_| spawn_eager(async {})).collect();
        spawn_local(async move {
            while set.join_next().await.is_some() {
                counted.set(counted.get() + 1);
            }
        })
    });
    runner.poll(0, 0);
    assert_eq!(joined.get(), 128);
    settle(&mut runner);
    assert_eq!(joined.get(), 300);
    assert!(task.is_finished());
}

/// In the poll of a task, of a poller, outside of a poll, and in a destructor that
/// runs while a panic unwinds, as the exit's part, for an abort.
#[test]
fn an_eager_task_may_be_spawned_wherever_a_thread_is_current() {
    struct SpawnsWhenDropped(Rc<RefCell<Vec<JoinHandle<u32>>>>);
    impl Drop for SpawnsWhenDropped {
        fn drop(&mut self) {
            let ends = spawn_eager(async { 1 });
            let panics = spawn_eager(async { resume_unwind(Box::new("inside")) });
            let waits = spawn_eager(async {
                yield_now().await;
                2
            });
            self.0.borrow_mut().extend([ends, panics, waits]);
        }
    }
    for place in 0..7 {
        let (library, _) = library();
        let mut runner = library.runner("");
        let spawned = Rc::new(RefCell::new(Vec::new()));
        let spawns = SpawnsWhenDropped(spawned.clone());
        let mut poller = None;
        match place {
            0 => runner.enter(|| drop(spawns)),
            1 => runner.enter(|| drop(spawn_local(async move { drop(spawns) }))),
            2 => {
                let mut spawns = Some(spawns);
                let registered = runner.enter(|| {
                    Poller::active(move || {
                        drop(spawns.take());
                        false
                    })
                });
                poller = registered.ok();
            }
            3 => runner.enter(|| {
                drop(spawn_local(async move {
                    let _spawns = spawns;
                    resume_unwind(Box::new("outside"))
                }))
            }),
            4 | 5 => {
                // Dropped in its place, by the exit or an abort.
                let task = runner.enter(|| {
                    spawn_local(async move {
                        let _spawns = spawns;
                        pending::<()>().await
                    })
                });
                runner.poll(0, 0);
                match place {
                    4 => drop(runner.exit()),
                    _ => task.abort(),
                }
            }
            _ => {
                let outer = runner.enter(|| {
                    spawn_eager(async move {
                        yield_now().await;
                        drop(spawns);
                    })
                });
                settle(&mut runner);
                assert!(outer.is_finished());
            }
        }
        runner.poll(0, 0);
        settle(&mut runner);
        drop(poller);
        let spawned = spawned.take();
        assert_eq!(spawned.len(), 3, "place {place}");
        let outcomes: Vec<_> = spawned.into_iter().map(block_on).collect();
        assert_eq!(*outcomes[0].as_ref().unwrap(), 1);
        assert!(outcomes[1].as_ref().unwrap_err().is_panic());
        assert_eq!(*outcomes[2].as_ref().unwrap(), 2);
        assert!(runner.tasks().is_empty());
        let outside: &[&str] = if place == 3 { &["outside"] } else { &[] };
        assert_eq!(runner.panics().take(), outside);
    }
}

/// It is what the inner one's caller has borrowed: its handle, its abort handle,
/// itself as joiner.
#[test]
fn an_eager_task_may_do_to_the_task_around_it_what_others_may() {
    for way in ["abort", "drop", "join", "exit"] {
        let (mut runner, _) = thread();
        let trace = Trace::default();
        let own = Rc::new(Cell::new(None::<JoinHandle<u32>>));
        let (mine, note) = (own.clone(), DropNote(trace.clone(), "outer"));
        let inner = Rc::new(Cell::new(None));
        let put = inner.clone();
        let task = runner.enter(|| {
            spawn_local(async move {
                let _note = note;
                put.set(Some(spawn_eager(async move {
                    let handle: JoinHandle<u32> = mine.take().unwrap();
                    match way {
                        "abort" => handle.abort(),
                        "drop" => drop(handle),
                        "join" => assert_eq!(handle.await.unwrap(), 7),
                        _ => drop(corespun::thread::SpdkThread::current().unwrap().exit()),
                    }
                })));
                yield_now().await;
                yield_now().await;
                7
            })
        });
        own.set(Some(task));
        settle(&mut runner);
        assert_eq!(trace.take(), ["outer"]);
        let inner: JoinHandle<()> = inner.take().unwrap();
        output(inner);
        assert!(runner.tasks().is_empty(), "{way}");
        assert_eq!(runner.is_exited(), way == "exit");
    }
}

/// What is under way counts for the exit as if it were queued.
#[test]
fn an_eager_task_is_listed_bound_and_cancelled_from_its_first_poll_on() {
    let (mut runner, _) = thread();
    let content = Rc::new(());
    let mine = content.clone();
    let task = runner.enter(|| {
        spawn_eager(async move {
            let _content = mine;
            pending::<()>().await;
        })
    });
    assert_eq!(runner.tasks().len(), 1);
    assert!(!runner.can_move());
    drop(runner.exit());
    settle(&mut runner);
    assert!(runner.is_exited() && runner.can_move());
    assert_eq!(Rc::strong_count(&content), 1);
    assert!(block_on(task).unwrap_err().is_thread_exited());
}

/// The wakers it gave away in its first poll work.
#[test]
fn an_eager_task_that_is_woken_in_or_after_its_first_poll_runs_again() {
    let (mut runner, _) = thread();
    let kept = Rc::new(Cell::new(None::<Waker>));
    let polls = Rc::new(Cell::new(0));
    let (keeps, counted) = (kept.clone(), polls.clone());
    let task = runner.enter(|| {
        let polled = move |cx: &mut Context<'_>| {
            counted.set(counted.get() + 1);
            match counted.get() {
                1 => cx.waker().wake_by_ref(),
                2 => keeps.set(Some(cx.waker().clone())),
                _ => return Poll::Ready(()),
            }
            Poll::Pending
        };
        spawn_eager(poll_fn(polled))
    });
    assert_eq!(polls.get(), 1);
    settle(&mut runner);
    assert_eq!(polls.get(), 2);
    let waker = kept.take().unwrap();
    thread::spawn(move || waker.wake()).join().unwrap();
    settle(&mut runner);
    assert!(task.is_finished());
}

#[test]
fn a_task_keeps_its_budget_over_an_eager_one_inside_it() {
    let (mut runner, _) = thread();
    let taken = Rc::new(Cell::new(0));
    let counted = taken.clone();
    let take = |counted: Rc<Cell<u32>>| async move {
        loop {
            task::consume_budget().await;
            counted.set(counted.get() + 1);
        }
    };
    let inside = Rc::new(Cell::new(0));
    let inner = take(inside.clone());
    runner.enter(|| {
        drop(spawn_local(async move {
            for _ in 0..28 {
                task::consume_budget().await;
            }
            drop(spawn_eager(inner));
            take(counted).await
        }))
    });
    runner.poll(1, 0);
    assert_eq!((inside.get(), taken.get()), (128, 100));
}

/// G7. Between the end of a cancelled task's future and the task's own end, which is
/// queued, another task on its thread may come to join it.
#[test]
fn a_task_that_the_exit_has_cancelled_is_joined_by_what_cleans_up() {
    struct Cleans(Rc<Cell<Option<JoinHandle<()>>>>, Rc<Cell<bool>>);
    impl Drop for Cleans {
        fn drop(&mut self) {
            let (handle, heard) = (self.0.take().unwrap(), self.1.clone());
            drop(spawn_local(async move {
                heard.set(handle.await.unwrap_err().is_thread_exited());
            }));
        }
    }
    let (mut runner, _) = thread();
    let (own, heard) = (Rc::default(), Rc::default());
    let cleans = Cleans(Rc::clone(&own), Rc::clone(&heard));
    let cancelled = runner.enter(|| {
        spawn_local(async move {
            let _cleans = cleans;
            std::future::pending().await
        })
    });
    own.set(Some(cancelled));
    settle(&mut runner);
    drop(runner.exit());
    settle(&mut runner);
    assert!(heard.get());
    assert!(runner.is_exited());
}

/// By hand, with the waker of a task like the one that runs: the one named is woken.
#[test]
fn a_handle_polled_for_another_task_wakes_that_one() {
    let (mut runner, _) = two_threads();
    let (mut child, tell) = told::<u32>(&mut runner);
    let wakers = Rc::new(RefCell::new(Vec::new()));
    let polls = Rc::new(Cell::new([0; 2]));
    // Of one type.
    let twin = |n: usize| {
        let (wakers, polls) = (wakers.clone(), polls.clone());
        poll_fn(move |cx| {
            let mut counts = polls.get();
            counts[n] += 1;
            polls.set(counts);
            let waker: Waker = cx.waker().clone();
            wakers.borrow_mut().push(waker.clone());
            if n == 1 && counts[1] == 1 {
                let first: Waker = wakers.borrow()[0].clone();
                let polled = child_poll(&mut Context::from_waker(&first));
                assert!(polled.is_pending());
            }
            Poll::<()>::Pending
        })
    };
    thread_local!(static CHILD: RefCell<Option<JoinHandle<u32>>> = const { RefCell::new(None) });
    fn child_poll(cx: &mut Context<'_>) -> Poll<Result<u32, task::JoinError>> {
        CHILD.with_borrow_mut(|child| child.as_mut().unwrap().poll_unpin(cx))
    }
    assert!(
        child
            .poll_unpin(&mut Context::from_waker(Waker::noop()))
            .is_pending()
    );
    CHILD.set(Some(child));
    let twins = runner.enter(|| [spawn_local(twin(0)), spawn_local(twin(1))]);
    settle(&mut runner);
    assert_eq!(polls.get(), [1, 1]);
    runner.enter(|| tell.send(5).unwrap());
    settle(&mut runner);
    assert_eq!(polls.get(), [2, 1]);
    runner.enter(|| drop((CHILD.take(), wakers.take())));
    drop(twins);
}
