//! From one core to another: two tasks that wake each other, and tasks spawned
//! from afar in the way that each runtime has for it.

use std::collections::HashSet;
use std::future::poll_fn;
use std::hint::spin_loop;
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
