//! Models of a task's life against other threads, run by loom over every
//! interleaving within a bound of preemptions: the real task floor, SpdkThread and
//! mailbox, over a stand-in for async-task alone
//! ([`sync::async_task`](crate::sync::async_task)).

use std::future::{pending, poll_fn};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize as Count, Ordering::Relaxed};
use std::task::{Poll, Waker};

use futures::FutureExt;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

use crate::clock::Clock;
use crate::task::{JoinError, JoinHandle, move_to, spawn_local, spawn_movable};
use crate::thread::{SpdkThread, ThreadLib, ThreadRunner};

fn model(preemptions: usize, f: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(f);
}

fn library() -> ThreadLib {
    ThreadLib::builder()
        .clock(Clock::virtual_at(1_000_000).0)
        .build()
}

fn runner() -> ThreadRunner {
    library().thread().ring(2).build().unwrap().attach()
}

fn settle(runner: &mut ThreadRunner) {
    while runner.poll(0, 1).is_busy() {}
}

fn exit(runner: &mut ThreadRunner) {
    drop(runner.exit());
    while !runner.is_exited() {
        runner.poll(0, 1);
        thread::yield_now();
    }
}

/// Goes with a future: dropped once, by the owner, before the thread has exited.
struct Witness {
    owner: SpdkThread,
    drops: std::sync::Arc<Count>,
}

impl Witness {
    fn new(runner: &ThreadRunner) -> (Self, std::sync::Arc<Count>) {
        let drops = std::sync::Arc::<Count>::default();
        let witness = Witness {
            owner: runner.handle(),
            drops: drops.clone(),
        };
        (witness, drops)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        assert!(self.owner.is_current(), "dropped off its thread");
        assert!(!self.owner.is_exited());
        assert_eq!(self.drops.fetch_add(1, Relaxed), 0, "dropped twice");
    }
}

fn outcome<T>(handle: JoinHandle<T>) -> Result<T, JoinError> {
    handle.now_or_never().expect("it has ended")
}

/// A task that waits, and its waker, which it gave away in its first poll.
fn waiting(
    runner: &mut ThreadRunner,
    ready: impl Fn() -> bool + 'static,
) -> (JoinHandle<()>, Waker, std::sync::Arc<Count>) {
    let (witness, drops) = Witness::new(runner);
    let given = std::sync::Arc::new(Mutex::new(None));
    let place = given.clone();
    let task = async move {
        let _witness = witness;
        poll_fn(|cx| {
            if ready() {
                return Poll::Ready(());
            }
            let waker = cx.waker().clone();
            place.lock().unwrap().get_or_insert(waker);
            Poll::Pending
        })
        .await;
    };
    let handle = runner.enter(|| spawn_local(task));
    settle(runner);
    let waker = given.lock().unwrap().take().expect("polled");
    (handle, waker, drops)
}

/// An abort comes before, during or after a poll that is pending: it is never
/// lost, and the owner drops the future.
#[test]
fn loom_an_abort_against_a_run_ends_the_task() {
    for polled in [false, true] {
        model(2, move || {
            let mut runner = runner();
            let (witness, drops) = Witness::new(&runner);
            let handle = runner.enter(|| {
                spawn_local(async move {
                    let _witness = witness;
                    pending::<()>().await
                })
            });
            if polled {
                settle(&mut runner);
            }
            let aborts = handle.abort_handle();
            let aborter = thread::spawn(move || aborts.abort());
            runner.poll(0, 1);
            aborter.join().unwrap();
            settle(&mut runner);
            assert!(outcome(handle).unwrap_err().is_cancelled());
            assert_eq!(drops.load(Relaxed), 1);
        });
    }
}

/// One outcome, the same for all that look.
#[test]
fn loom_an_abort_against_the_return_gives_one_outcome() {
    model(2, || {
        let mut runner = runner();
        let handle = runner.enter(|| spawn_local(async { 5 }));
        let aborts = handle.abort_handle();
        let aborter = thread::spawn(move || aborts.abort());
        runner.poll(0, 1);
        aborter.join().unwrap();
        settle(&mut runner);
        match outcome(handle) {
            Ok(five) => assert_eq!(five, 5),
            Err(error) => assert!(error.is_cancelled()),
        }
    });
}

/// Two aborts and a wake: queued once at a time, which the stand-in and the mailbox
/// would not survive otherwise.
#[test]
fn loom_aborts_and_a_wake_against_a_run_end_the_task_once() {
    model(2, || {
        let mut runner = runner();
        let (handle, waker, drops) = waiting(&mut runner, || false);
        let aborts = handle.abort_handle();
        let aborter = thread::spawn(move || aborts.abort());
        let waker = thread::spawn(move || waker.wake());
        handle.abort();
        runner.poll(0, 1);
        aborter.join().unwrap();
        waker.join().unwrap();
        settle(&mut runner);
        assert!(outcome(handle).unwrap_err().is_cancelled());
        assert_eq!(drops.load(Relaxed), 1);
    });
}

/// G7, R3: the exit cancels the task and closes the mailbox meanwhile.
#[test]
fn loom_an_abort_against_the_exit_finds_the_future_gone() {
    for polled in [false, true] {
        model(2, move || {
            let mut runner = runner();
            let (witness, drops) = Witness::new(&runner);
            let handle = runner.enter(|| {
                spawn_local(async move {
                    let _witness = witness;
                    pending::<()>().await
                })
            });
            if polled {
                settle(&mut runner);
            }
            let aborts = handle.abort_handle();
            let aborter = thread::spawn(move || aborts.abort());
            exit(&mut runner);
            aborter.join().unwrap();
            let error = outcome(handle).unwrap_err();
            assert!(error.is_cancelled() || error.is_thread_exited());
            assert_eq!(drops.load(Relaxed), 1);
        });
    }
}

/// G1: what was published before a wake is seen by the poll that it leads to,
/// whether or not the task is queued or being polled already.
#[test]
fn loom_a_wake_against_a_run_is_not_lost() {
    for woken in [false, true] {
        model(2, move || {
            let mut runner = runner();
            let event = Arc::new(AtomicBool::new(false));
            let seen = event.clone();
            let ready = move || seen.load(Ordering::Relaxed);
            let (handle, waker, drops) = waiting(&mut runner, ready);
            if woken {
                waker.wake_by_ref();
            }
            let publisher = thread::spawn(move || {
                event.store(true, Ordering::Relaxed);
                waker.wake();
            });
            runner.poll(0, 1);
            publisher.join().unwrap();
            settle(&mut runner);
            outcome(handle).unwrap();
            assert_eq!(drops.load(Relaxed), 1);
        });
    }
}

/// G1, R3: a wake against the exit never ends with a live future in a refused
/// `Runnable`.
#[test]
fn loom_a_wake_against_the_exit_finds_the_future_gone() {
    model(2, || {
        let mut runner = runner();
        let (handle, waker, drops) = waiting(&mut runner, || false);
        let waker = thread::spawn(move || waker.wake());
        exit(&mut runner);
        assert_eq!(drops.load(Relaxed), 1);
        waker.join().unwrap();
        assert!(outcome(handle).unwrap_err().is_thread_exited());
    });
}

/// R5: a detached task whose last given waker goes, and whose handle goes on a third
/// thread, while its thread exits.
#[test]
fn loom_a_detach_and_the_last_waker_drop_against_the_exit_drop_once() {
    model(2, || {
        let mut runner = runner();
        let (handle, waker, drops) = waiting(&mut runner, || false);
        let waker = thread::spawn(move || drop(waker));
        let handle = thread::spawn(move || drop(handle));
        exit(&mut runner);
        waker.join().unwrap();
        handle.join().unwrap();
        assert_eq!(drops.load(Relaxed), 1);
    });
}

/// G1: a joiner elsewhere hears of the end.
#[test]
fn loom_a_join_from_elsewhere_against_the_end_is_woken() {
    model(2, || {
        let mut runner = runner();
        let handle = runner.enter(|| spawn_local(async { 5 }));
        let joins = thread::spawn(move || loom::future::block_on(handle));
        settle(&mut runner);
        assert_eq!(joins.join().unwrap().unwrap(), 5);
    });
}

/// A task that waits here, then goes there, then waits for an event.
fn hopping(
    here: &mut ThreadRunner,
    there: SpdkThread,
    event: &Arc<AtomicBool>,
) -> (JoinHandle<bool>, Waker) {
    let given = std::sync::Arc::new(Mutex::new(None));
    let (place, event) = (given.clone(), event.clone());
    let task = async move {
        let mut polled = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut polled, true) {
                return Poll::Ready(());
            }
            let waker = cx.waker().clone();
            *place.lock().unwrap() = Some(waker);
            Poll::Pending
        })
        .await;
        let moved = move_to(&there).await.is_ok();
        poll_fn(|_| match event.load(Ordering::Relaxed) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
        moved
    };
    let handle = here.enter(|| spawn_movable(task));
    settle(here);
    let waker = given.lock().unwrap().take().expect("polled");
    (handle, waker)
}

/// G1, R6: a wake, or an abort, that races with a hop reaches the task, on the
/// thread that it comes to or on the one it left; it is never entered twice.
#[test]
fn loom_a_wake_or_an_abort_against_a_hop_reaches_the_task() {
    for aborts in [false, true] {
        model(2, move || {
            let library = library();
            let make = || library.thread().ring(2).build().unwrap();
            let (mut here, parked) = (make().attach(), make());
            let event = Arc::new(AtomicBool::new(false));
            let (handle, waker) = hopping(&mut here, parked.handle(), &event);
            waker.wake_by_ref();
            let abort = handle.abort_handle();
            let caller = thread::spawn(move || {
                if aborts {
                    abort.abort();
                } else {
                    event.store(true, Ordering::Relaxed);
                    waker.wake();
                }
            });
            let there = thread::spawn(move || {
                let mut there = parked.attach();
                there.poll(0, 1);
                there.park().unwrap()
            });
            here.poll(0, 1);
            caller.join().unwrap();
            let mut there = there.join().unwrap().attach();
            settle(&mut here);
            settle(&mut there);
            match outcome(handle) {
                Ok(moved) => assert!(moved && !aborts),
                Err(error) => assert!(aborts && error.is_cancelled()),
            }
        });
    }
}

/// A hop to a thread that exits meanwhile: the task goes on here, or ends with that
/// thread; a wake that races with it drops nothing.
#[test]
fn loom_a_hop_to_a_thread_that_exits_comes_back_or_ends() {
    model(2, || {
        let library = library();
        let make = || library.thread().ring(2).build().unwrap();
        let (mut here, parked) = (make().attach(), make());
        let event = Arc::new(AtomicBool::new(true));
        let (handle, waker) = hopping(&mut here, parked.handle(), &event);
        let there = thread::spawn(move || exit(&mut parked.attach()));
        let waker = thread::spawn(move || waker.wake());
        here.poll(0, 1);
        there.join().unwrap();
        waker.join().unwrap();
        settle(&mut here);
        match outcome(handle) {
            // Back, or through on the other thread before that exited.
            Ok(_) => {}
            Err(error) => assert!(error.is_thread_exited()),
        }
    });
}
