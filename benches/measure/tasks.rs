//! What the tasks and timers of any single-threaded executor cost: each measure
//! is written once, for every runtime that it is to be compared on.
//!
//! The measuring task is itself spawned, not the root future that a runtime
//! blocks on: some wake that one through the operating system. What is measured
//! is run before, for a shorter time, so that caches and allocators are warm.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::hint::black_box;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::per_op;

/// A single-threaded executor under measurement.
pub trait Executor: 'static {
    type Handle<T: 'static>: Future<Output = T>;

    /// Runs `main`, as one of its tasks, to its end on this OS thread.
    fn run<T: 'static>(main: impl Future<Output = T> + 'static) -> T;

    /// Spawns on the executor that the caller runs on.
    fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> Self::Handle<T>;

    /// Lets a task run on by itself.
    fn detach<T: 'static>(handle: Self::Handle<T>) {
        drop(handle);
    }

    /// Lets the other tasks run: the executor's own way, where it has one.
    fn give_way() -> impl Future<Output = ()> {
        wake_and_wait()
    }
}

/// An executor with timers.
pub trait Timers: Executor {
    fn sleep(duration: Duration) -> impl Future<Output = ()>;
}

/// The handle of a task that is known to end well.
pub struct Ended<H>(pub H);

impl<T, E: std::fmt::Debug, H: Future<Output = Result<T, E>> + Unpin> Future for Ended<H> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        Pin::new(&mut self.0)
            .poll(cx)
            .map(|joined| joined.expect("it ends"))
    }
}

/// The yield of executors that have none: waits, and is woken already.
async fn wake_and_wait() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

/// Nanoseconds per operation of `run`, which runs so many, once it is warm.
async fn timed(operations: usize, run: impl AsyncFn(usize)) -> f64 {
    run(operations / 10 + 1).await;
    let start = Instant::now();
    run(operations).await;
    per_op(start, operations)
}

/// Tasks spawned and joined one after the other.
pub fn spawn_join<E: Executor>(tasks: usize) -> f64 {
    E::run(timed(tasks, async |tasks| {
        for task in 0..tasks {
            black_box(E::spawn(async move { task }).await);
        }
    }))
}

/// Batches of `each` tasks, all spawned before the first is joined.
pub fn spawn_many<E: Executor>(batches: usize, each: usize) -> f64 {
    let batch = timed(batches, async move |batches| {
        for _ in 0..batches {
            let mut handles = Vec::with_capacity(each);
            for task in 0..each {
                handles.push(E::spawn(async move { task }));
            }
            for handle in handles {
                black_box(handle.await);
            }
        }
    });
    E::run(batch) / each as f64
}

/// So many tasks that yield so often.
pub fn yields<E: Executor>(tasks: usize, each: usize) -> f64 {
    let round = timed(each, async move |each| {
        let mut handles = Vec::with_capacity(tasks);
        for _ in 0..tasks {
            handles.push(E::spawn(async move {
                for _ in 0..each {
                    E::give_way().await;
                }
            }));
        }
        for handle in handles {
            handle.await;
        }
    });
    E::run(round) / tasks as f64
}

/// Two tasks that wake each other through one cell, per round trip.
pub fn ping_pong<E: Executor>(rounds: usize) -> f64 {
    E::run(timed(rounds, async |rounds| {
        let turn = Rc::new(Cell::new(0));
        let wakers = Rc::new([RefCell::new(None::<Waker>), RefCell::new(None)]);
        let player = |me: usize| {
            let (turn, wakers) = (turn.clone(), wakers.clone());
            async move {
                for _ in 0..rounds {
                    poll_fn(|cx| {
                        if turn.get() == me {
                            return Poll::Ready(());
                        }
                        *wakers[me].borrow_mut() = Some(cx.waker().clone());
                        Poll::Pending
                    })
                    .await;
                    turn.set(1 - me);
                    let other = wakers[1 - me].borrow_mut().take();
                    other.into_iter().for_each(Waker::wake);
                }
            }
        };
        for player in [E::spawn(player(0)), E::spawn(player(1))] {
            player.await;
        }
    }))
}

const FAR: Duration = Duration::from_secs(10);

/// A sleep of 10 s created, polled once and dropped, beside `live` others.
pub fn cancelled_sleeps<E: Timers>(live: usize, count: usize) -> f64 {
    E::run(async move {
        let mut others: Vec<_> = (0..live)
            .map(|n| Box::pin(E::sleep(FAR + Duration::from_micros(n as u64))))
            .collect();
        for other in &mut others {
            poll_once(other.as_mut()).await;
        }
        timed(count, async |count| {
            for _ in 0..count {
                poll_once(std::pin::pin!(E::sleep(FAR))).await;
            }
        })
        .await
    })
}

/// Polls a sleep once with the task's own waker.
async fn poll_once(mut sleep: Pin<&mut impl Future<Output = ()>>) {
    poll_fn(|cx| {
        assert!(sleep.as_mut().poll(cx).is_pending());
        Poll::Ready(())
    })
    .await
}

/// Tasks that sleep until instants spread evenly over `within`, spawned in another
/// order than that of the instants: the mean lateness in ns. The first instant
/// leaves time to spawn them all: how long one waits behind a hundred thousand
/// others is another matter than how late a timer is.
pub async fn spread_sleeps<E: Timers>(count: usize, within: Duration) -> f64 {
    let late = Rc::new(Cell::new(0u64));
    let start = Instant::now() + within;
    let mut handles = Vec::with_capacity(count);
    for n in 0..count {
        let late = late.clone();
        let mixed = n.wrapping_mul(7919) % count;
        let due = start + within.mul_f64(mixed as f64 / count as f64);
        handles.push(E::spawn(async move {
            E::sleep(due.saturating_duration_since(Instant::now())).await;
            late.set(late.get() + due.elapsed().as_nanos() as u64);
        }));
    }
    for handle in handles {
        handle.await;
    }
    late.get() as f64 / count as f64
}
