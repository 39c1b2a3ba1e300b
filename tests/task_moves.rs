//! Tasks that change their thread: they continue there, are never entered on two
//! threads, and no wake is lost.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

use corespun::task::{MoveError, move_to, spawn_local, spawn_movable, yield_now};
use corespun::thread::{Poller, SpdkThread, ThreadLib, ThreadRunner};
use corespun::time::sleep;
use futures::future::{FutureExt, join, select};
use futures::poll;
use harness::threads::*;

fn current() -> String {
    SpdkThread::current().unwrap().name().to_owned()
}

#[test]
fn a_task_continues_on_the_thread_it_moved_to_and_can_come_back() {
    let (mut here, mut there) = two_threads();
    let (home, away) = (here.handle(), there.handle());
    let path = here.enter(|| {
        spawn_movable(async move {
            let mut path = vec![current()];
            for thread in [&away, &away, &home] {
                move_to(thread).await.unwrap();
                path.push(current());
            }
            path
        })
    });
    settle(&mut here);
    assert!(here.tasks().is_empty(), "it has left");
    settle_all(&mut [&mut here, &mut there]);
    assert_eq!(output(path), ["here", "there", "there", "here"]);
}

#[test]
fn only_a_movable_task_moves() {
    let (mut here, there) = two_threads();
    let target = there.handle();
    let stays = here.enter(|| spawn_local(async move { move_to(&target).await }));
    settle(&mut here);
    assert_eq!(output(stays), Err(MoveError::NotMovable));
}

#[test]
fn a_task_stays_where_it_is_when_its_target_has_exited() {
    let (mut here, there) = two_threads();
    let target = there.handle();
    drop(there);
    let result = here.enter(|| {
        spawn_movable(async move {
            let moved = move_to(&target).await;
            yield_now().await;
            (moved.is_err(), current())
        })
    });
    settle(&mut here);
    assert_eq!(output(result), (true, "here".into()));
}

#[test]
fn a_task_that_finds_its_target_gone_on_arrival_goes_on_where_it_was() {
    let (mut here, there) = two_threads();
    let target = there.handle();
    let doomed = Arc::new(Mutex::new(Some(SendBox(there.into_inner()))));
    let gone = doomed.clone();
    let result = here.enter(|| {
        spawn_movable(async move {
            let hop = std::pin::pin!(move_to(&target));
            // The target ends between the request and the end of this poll.
            let ends = std::future::poll_fn(move |_| {
                drop(gone.lock().unwrap().take());
                Poll::<()>::Pending
            });
            let moved = select(hop, ends).await;
            let moved = match moved {
                futures::future::Either::Left((moved, _)) => moved,
                futures::future::Either::Right(_) => unreachable!(),
            };
            (moved.unwrap_err(), current())
        })
    });
    settle(&mut here);
    let (error, at) = output(result);
    assert!(matches!(error, MoveError::Exited(_)));
    assert_eq!(at, "here");
}

/// Lets a test say that a runner goes nowhere although a future owns it.
struct SendBox(#[allow(dead_code, reason = "owned to be dropped")] ThreadRunner);

// SAFETY: the test that uses it polls and drops it on one OS thread.
unsafe impl Send for SendBox {}

#[test]
fn a_withdrawn_move_does_not_happen() {
    let (mut here, there) = two_threads();
    let target = there.handle();
    let at = here.enter(|| {
        spawn_movable(async move {
            {
                let mut hop = move_to(&target);
                assert!(poll!(&mut hop).is_pending());
            }
            yield_now().await;
            current()
        })
    });
    settle(&mut here);
    assert_eq!(output(at), "here");
    drop(there);
}

#[test]
fn a_timer_of_a_task_that_moved_fires_on_its_new_thread() {
    let (library, hand) = library();
    let mut here = library.runner("here");
    let mut there = library.runner("there");
    let target = there.handle();
    let done = here.enter(|| {
        spawn_movable(async move {
            let nap = async {
                sleep(us(10)).await;
                current()
            };
            join(nap, move_to(&target)).await.0
        })
    });
    settle_all(&mut [&mut here, &mut there]);
    assert_eq!(here.next_deadline(), None);
    assert_eq!(there.next_deadline(), Some(10));
    hand.advance(10);
    settle_all(&mut [&mut here, &mut there]);
    assert_eq!(output(done), "there");
}

#[test]
fn the_exit_of_the_thread_it_moved_to_cancels_a_task_there_and_not_that_of_the_old() {
    let (mut here, mut there) = two_threads();
    let target = there.handle();
    let cancelled = here.enter(|| {
        spawn_movable(async move {
            move_to(&target).await.unwrap();
            std::future::pending::<()>().await
        })
    });
    settle_all(&mut [&mut here, &mut there]);
    drop(here);
    assert!(!cancelled.is_finished());
    drop(there);
    let error = futures::executor::block_on(cancelled).unwrap_err();
    assert!(error.is_thread_exited());
}

/// It waits to be cancelled there, behind newer ones, and is not polled meanwhile.
#[test]
fn a_task_that_one_exit_spared_is_not_spared_where_it_moved_to() {
    let (mut here, mut there) = two_threads();
    let holds = here.enter(|| Poller::active(|| false)).unwrap();
    drop(here.exit());
    here.poll(0, 0);
    let (away, polls) = (there.handle(), Arc::new(AtomicU64::new(0)));
    let counter = polls.clone();
    let task = here.enter(|| {
        spawn_movable(async move {
            move_to(&away).await.unwrap();
            loop {
                counter.fetch_add(1, Ordering::Relaxed);
                yield_now().await;
            }
        })
    });
    here.poll(0, 0);
    there.poll(0, 0);
    assert!(polls.load(Ordering::Relaxed) > 0, "it has arrived");
    for _ in 0..1_000 {
        drop(there.enter(|| spawn_local(std::future::pending::<()>())));
    }
    while there.poll(0, 0).is_busy() && there.tasks().iter().any(|task| task.polls == 0) {}
    drop(there.exit());
    there.poll(0, 0);
    polls.store(0, Ordering::Relaxed);
    assert!(!there.is_exited(), "it takes several polls");
    while !there.is_exited() {
        there.poll(0, 0);
    }
    assert_eq!(polls.load(Ordering::Relaxed), 0);
    assert!(task.now_or_never().unwrap().unwrap_err().is_thread_exited());
    drop(holds);
    settle(&mut here);
}

#[test]
fn an_abort_reaches_a_task_between_two_threads() {
    let (mut here, mut there) = two_threads();
    let target = there.handle();
    let moving = here.enter(|| spawn_movable(async move { move_to(&target).await }));
    settle(&mut here);
    moving.abort();
    settle(&mut there);
    let error = futures::executor::block_on(moving).unwrap_err();
    assert!(error.is_cancelled());
}

/// Two OS threads poll; a third wakes without pause, and tasks hop to and fro.
/// Each counts its own polls without atomics in effect: `inside` catches a second
/// entry. Real threads, since the race is between them.
#[test]
fn hops_that_race_with_wakes_neither_lose_one_nor_enter_a_task_twice() {
    const HOPS: u64 = 2_000;
    let library = ThreadLib::new();
    let parked: Vec<_> = (0..2).map(|_| library.thread().build().unwrap()).collect();
    let threads: Vec<_> = parked.iter().map(|parked| parked.handle()).collect();
    let slot: Arc<Mutex<Option<Waker>>> = Arc::default();
    let (inside, wakes) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let pollers: Vec<_> = parked
        .into_iter()
        .map(|parked| {
            std::thread::spawn(move || {
                let mut runner = parked.attach();
                while !runner.handle().is_exited() {
                    if !runner.poll(0, 0).is_busy() {
                        std::thread::yield_now();
                    }
                }
            })
        })
        .collect();
    let (targets, parked_waker, seen) = (threads.clone(), slot.clone(), wakes.clone());
    let task = threads[0].call({
        let inside = inside.clone();
        move || {
            spawn_movable(async move {
                for hop in 0..HOPS {
                    let target = &targets[(hop % 2) as usize];
                    let mut moving = std::pin::pin!(move_to(target));
                    std::future::poll_fn(|cx| {
                        assert!(!inside.swap(true, Ordering::SeqCst), "entered twice");
                        *parked_waker.lock().unwrap() = Some(cx.waker().clone());
                        let moved = moving.as_mut().poll(cx);
                        inside.store(false, Ordering::SeqCst);
                        moved
                    })
                    .await
                    .unwrap();
                    assert!(target.is_current());
                    // Waits for a wake that is not its own.
                    let before = seen.load(Ordering::SeqCst);
                    std::future::poll_fn(|cx| {
                        *parked_waker.lock().unwrap() = Some(cx.waker().clone());
                        if seen.load(Ordering::SeqCst) > before {
                            return Poll::Ready(());
                        }
                        Poll::Pending
                    })
                    .await;
                }
            })
        }
    });
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let waking = std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            wakes.fetch_add(1, Ordering::SeqCst);
            let waker = slot.lock().unwrap().take();
            match waker {
                Some(waker) => waker.wake(),
                None => std::thread::yield_now(),
            }
        }
    });
    let task = corespun::task::block_on(task).unwrap();
    corespun::task::block_on(task).unwrap();
    stop.store(true, Ordering::Relaxed);
    waking.join().unwrap();
    for thread in &threads {
        corespun::task::block_on(thread.exit());
    }
    for poller in pollers {
        poller.join().unwrap();
    }
}
