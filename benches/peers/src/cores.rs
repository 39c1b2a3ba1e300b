//! From one core to another: two tasks that wake each other, and tasks spawned
//! from afar in the way that each runtime has for it.

use std::collections::HashSet;
use std::future::poll_fn;
use std::hint::{black_box, spin_loop};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Instant;

use async_executor::Executor as SendExecutor;
use compio::dispatcher::Dispatcher;
use corespun::cpu;
use futures::channel::oneshot;
use futures::task::AtomicWaker;
use glommio::channels::shared_channel;

use crate::measure::tasks::Executor;
use crate::measure::{Line, per_op};
use crate::neighbours::glommio_here;

/// Whose turn it is, and who waits for it; nobody's line is another's neighbour.
pub struct Court {
    turn: Line,
    players: [Player; 2],
}

#[derive(Default)]
#[repr(align(256))]
struct Player(AtomicWaker);

impl Court {
    pub fn new() -> Arc<Self> {
        Arc::new(Court {
            turn: Line(AtomicU64::new(0)),
            players: Default::default(),
        })
    }

    /// Plays so many times as player `me`; player 0 begins.
    pub async fn play(&self, me: usize, times: usize) {
        for _ in 0..times {
            poll_fn(|cx| {
                let is_mine = || self.turn.0.load(Ordering::Acquire) == me as u64;
                if is_mine() {
                    return Poll::Ready(());
                }
                self.players[me].0.register(cx.waker());
                // It may have become so meanwhile.
                if is_mine() {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            })
            .await;
            self.turn.0.store(1 - me as u64, Ordering::Release);
            self.players[1 - me].0.wake();
        }
    }

    /// Plays as player 0, and says what a round took once it was warm.
    pub async fn serve(&self, rounds: usize) -> f64 {
        self.play(0, warm_up(rounds)).await;
        let start = Instant::now();
        self.play(0, rounds).await;
        per_op(start, rounds)
    }

    /// Plays as player 1, to the end of the game.
    pub async fn reply(&self, rounds: usize) {
        self.play(1, warm_up(rounds) + rounds).await;
    }
}

fn warm_up(rounds: usize) -> usize {
    rounds / 10 + 1
}

/// A wake there and one back, between two OS threads that run an executor each.
pub fn wakes<E: Executor>(here: usize, there: usize, rounds: usize) -> f64 {
    let court = Court::new();
    let other = court.clone();
    let os_thread = std::thread::spawn(move || {
        cpu::pin_current_thread(there).expect("pinning");
        E::run(async move { other.reply(rounds).await });
    });
    cpu::pin_current_thread(here).expect("pinning");
    let figure = E::run(async move { court.serve(rounds).await });
    os_thread.join().expect("the other core");
    figure
}

/// Spawns tasks that only count, a tenth of them first to warm up, and waits until
/// they have run: the time that takes for each.
pub fn spawns(count: usize, mut spawn: impl FnMut(&'static Line)) -> f64 {
    let ran = Line::leaked();
    let mut batch = |count: usize| {
        let before = ran.0.load(Ordering::Relaxed);
        let start = Instant::now();
        for _ in 0..count {
            spawn(ran);
        }
        while ran.0.load(Ordering::Relaxed) < before + count as u64 {
            spin_loop();
        }
        per_op(start, count)
    };
    batch(count / 10);
    batch(count)
}

/// What a spawned task does. Only one executor counts.
pub fn count(ran: &Line) {
    let before = ran.0.load(Ordering::Relaxed);
    ran.0.store(before + 1, Ordering::Release);
}

/// Through the handle of a runtime that another OS thread blocks on.
pub fn tokio_spawns(here: usize, there: usize, tasks: usize) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let handle = runtime.handle().clone();
    while_blocked(
        there,
        move |stopped| _ = runtime.block_on(stopped),
        || {
            cpu::pin_current_thread(here).expect("pinning");
            spawns(tasks, |ran| drop(handle.spawn(async move { count(ran) })))
        },
    )
}

/// Through an executor that another OS thread runs.
pub fn smol_spawns(here: usize, there: usize, tasks: usize) -> f64 {
    let executor = SendExecutor::new().leak();
    while_blocked(
        there,
        |stopped| _ = async_io::block_on(executor.run(stopped)),
        || {
            cpu::pin_current_thread(here).expect("pinning");
            spawns(tasks, |ran| {
                executor.spawn(async move { count(ran) }).detach();
            })
        },
    )
}

/// Runs `block`, which returns when told, on another OS thread for as long as
/// `measure` takes.
fn while_blocked(
    core: usize,
    block: impl FnOnce(oneshot::Receiver<()>) + Send + 'static,
    measure: impl FnOnce() -> f64,
) -> f64 {
    let (stop, stopped) = oneshot::channel();
    let os_thread = std::thread::spawn(move || {
        cpu::pin_current_thread(core).expect("pinning");
        block(stopped);
    });
    let figure = measure();
    stop.send(()).expect("it waits for that");
    os_thread.join().expect("the other core");
    figure
}

/// glommio has no spawn from afar: a shared channel from executor to executor, of
/// the capacity in its own bench, and a task for whatever comes out of it.
pub fn glommio_spawns(here: usize, there: usize, tasks: usize) -> f64 {
    let (sender, receiver) = shared_channel::new_bounded::<&'static Line>(1024);
    let os_thread = std::thread::spawn(move || {
        cpu::pin_current_thread(there).expect("pinning");
        let receive = async move {
            let receiver = receiver.connect().await;
            while let Some(ran) = receiver.recv().await {
                glommio::spawn_local(async move { count(ran) }).detach();
            }
        };
        glommio_here().make().expect("an executor").run(receive);
    });
    cpu::pin_current_thread(here).expect("pinning");
    let send = async move {
        let sender = sender.connect().await;
        let ran = Line::leaked();
        let mut figure = 0.0;
        let mut before = 0;
        for batch in [tasks / 10, tasks] {
            let start = Instant::now();
            for _ in 0..batch {
                sender.send(ran).await.expect("it receives");
            }
            before += batch as u64;
            // The last ones only go when their executor runs.
            while ran.0.load(Ordering::Relaxed) < before {
                glommio::executor().yield_task_queue_now().await;
            }
            figure = per_op(start, batch);
        }
        figure
    };
    let figure = glommio_here().make().expect("an executor").run(send);
    os_thread.join().expect("the other core");
    figure
}

/// Through its dispatcher, with one worker.
pub fn compio_spawns(here: usize, there: usize, tasks: usize) -> f64 {
    let dispatcher = Dispatcher::builder()
        .worker_threads(NonZeroUsize::MIN)
        .thread_affinity(move |_| HashSet::from([there]))
        .build()
        .expect("a dispatcher");
    cpu::pin_current_thread(here).expect("pinning");
    let figure = spawns(tasks, |ran| {
        let dispatched = dispatcher.dispatch(async move || count(ran));
        drop(dispatched.expect("its worker runs"));
    });
    futures::executor::block_on(dispatcher.join()).expect("a worker that ends well");
    figure
}

/// Sends `count` times what `next` makes through `sender`, a tenth of them first to warm
/// up: the time that takes for each.
pub async fn send_all<T>(
    sender: async_channel::Sender<T>,
    count: usize,
    mut next: impl FnMut(u64) -> T,
) -> f64 {
    let mut figure = 0.0;
    for batch in [count / 10, count] {
        let start = Instant::now();
        for number in 0..batch as u64 {
            let sent = sender.send(next(number)).await;
            assert!(sent.is_ok(), "it receives");
        }
        figure = per_op(start, batch);
    }
    figure
}

/// Takes numbers until the channel is closed.
pub async fn take_numbers(receiver: async_channel::Receiver<u64>) {
    while let Ok(number) = receiver.recv().await {
        black_box(number);
    }
}

/// What is sent to another core to be run there.
pub type Job = Box<dyn FnOnce() + Send>;

/// A job that captures two words.
pub fn job(ran: &'static Line, number: u64) -> Job {
    Box::new(move || {
        black_box(number);
        count(ran);
    })
}

/// Spawns a task for each job until the channel is closed.
pub async fn run_jobs<E: Executor>(receiver: async_channel::Receiver<Job>) {
    while let Ok(job) = receiver.recv().await {
        E::detach(E::spawn(async move { job() }));
    }
}

/// How many messages wait at most in the channels that are measured.
pub const BOUND: usize = 1024;

/// Numbers through a bounded channel, between two OS threads that run an executor each.
pub fn numbers<E: Executor>(here: usize, there: usize, count: usize) -> f64 {
    let (sender, receiver) = async_channel::bounded(BOUND);
    between::<E, _>(here, there, take_numbers(receiver), || {
        send_all(sender, count, |number| number)
    })
}

/// The same for boxed closures, each of which the receiver makes a task of.
pub fn jobs<E: Executor>(here: usize, there: usize, count: usize) -> f64 {
    let (sender, receiver) = async_channel::bounded(BOUND);
    let ran = Line::leaked();
    between::<E, _>(here, there, run_jobs::<E>(receiver), move || {
        send_all(sender, count, move |number| job(ran, number))
    })
}

fn between<E: Executor, S: Future<Output = f64> + 'static>(
    here: usize,
    there: usize,
    receives: impl Future<Output = ()> + Send + 'static,
    sends: impl FnOnce() -> S,
) -> f64 {
    let os_thread = std::thread::spawn(move || {
        cpu::pin_current_thread(there).expect("pinning");
        E::run(receives);
    });
    cpu::pin_current_thread(here).expect("pinning");
    let figure = E::run(sends());
    os_thread.join().expect("the other core");
    figure
}

/// Two shared values, as a request has that carries its device and its answer's place.
pub type Carried = (Arc<Line>, Arc<Line>);

/// Tasks spawned by an OS thread that runs no executor, each with two shared values that
/// were counted before: the time that takes for each.
pub fn carrying_spawns(count: usize, mut spawn: impl FnMut(&'static Line, Carried)) -> f64 {
    let carried = (
        Arc::new(Line(AtomicU64::new(0))),
        Arc::new(Line(AtomicU64::new(0))),
    );
    let ran = Line::leaked();
    let mut figure = 0.0;
    let mut before = 0;
    for batch in [count / 10, count] {
        let all = vec![carried.clone(); batch];
        let start = Instant::now();
        for carried in all {
            spawn(ran, carried);
        }
        before += batch as u64;
        while ran.0.load(Ordering::Relaxed) < before {
            spin_loop();
        }
        figure = per_op(start, batch);
    }
    figure
}

/// What a task does that carries something.
pub fn count_carried(ran: &Line, carried: Carried) {
    drop(carried);
    count(ran);
}

/// As [`tokio_spawns`].
pub fn tokio_carrying(here: usize, there: usize, tasks: usize) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let handle = runtime.handle().clone();
    while_blocked(
        there,
        move |stopped| _ = runtime.block_on(stopped),
        || {
            cpu::pin_current_thread(here).expect("pinning");
            carrying_spawns(tasks, |ran, carried| {
                drop(handle.spawn(async move { count_carried(ran, carried) }));
            })
        },
    )
}

/// As [`smol_spawns`].
pub fn smol_carrying(here: usize, there: usize, tasks: usize) -> f64 {
    let executor = SendExecutor::new().leak();
    while_blocked(
        there,
        |stopped| _ = async_io::block_on(executor.run(stopped)),
        || {
            cpu::pin_current_thread(here).expect("pinning");
            carrying_spawns(tasks, |ran, carried| {
                let task = executor.spawn(async move { count_carried(ran, carried) });
                task.detach();
            })
        },
    )
}
