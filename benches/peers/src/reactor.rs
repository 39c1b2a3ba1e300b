//! corespun on its reactors, as an app runs it.

use std::hint::black_box;
use std::time::{Duration, Instant};

use corespun::app::{App, AppBuilder, AppHandle};
use corespun::cpu::{self, CpuSet};
use corespun::reactor::ReactorMode;
use corespun::task;
use corespun::thread::SpdkThread;
use nix::sched::sched_getcpu;

use crate::cores::{self, Court};
use crate::measure::tasks::{self, Ended, Executor, Timers};
use crate::measure::{Line, per_op};
use crate::sockets::{self, Sockets};

fn app(mode: ReactorMode, cores: impl IntoIterator<Item = usize>) -> AppBuilder {
    App::builder()
        .handle_signals(false)
        .mode(mode)
        .cores(cores.into_iter().collect())
}

/// Runs `main` on the app thread.
fn block_on<T: 'static>(app: AppBuilder, main: impl AsyncFnOnce(AppHandle) -> T + 'static) -> T {
    app.block_on(main).expect("only its end stops it")
}

/// An app with one reactor, in poll mode, on the core that the caller is pinned
/// to.
pub struct Reactor;

fn here() -> AppBuilder {
    app(
        ReactorMode::Poll,
        [sched_getcpu().expect("the current core")],
    )
}

impl Executor for Reactor {
    type Handle<T: 'static> = Ended<task::JoinHandle<T>>;

    fn run<T: 'static>(main: impl Future<Output = T> + 'static) -> T {
        block_on(here(), async move |_| main.await)
    }

    fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> Self::Handle<T> {
        Ended(task::spawn_local(future))
    }

    async fn give_way() {
        task::yield_now().await
    }
}

/// The same in interrupt mode.
pub struct SleepingReactor;

impl Executor for SleepingReactor {
    type Handle<T: 'static> = Ended<task::JoinHandle<T>>;

    fn run<T: 'static>(main: impl Future<Output = T> + 'static) -> T {
        let core = sched_getcpu().expect("the current core");
        block_on(app(ReactorMode::Interrupt, [core]), async move |_| {
            main.await
        })
    }

    fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> Self::Handle<T> {
        Reactor::spawn(future)
    }
}

impl Timers for Reactor {
    fn sleep(duration: Duration) -> impl Future<Output = ()> {
        corespun::time::sleep(duration)
    }
}

/// The time of the turns that did something, per sleep.
pub fn spread_sleeps_busy(count: usize, within: Duration) -> f64 {
    block_on(here(), async move |app| {
        let busy = || app.reactors().stats()[0].busy_ticks;
        let before = busy();
        tasks::spread_sleeps::<Reactor>(count, within).await;
        let clock = app.library().clock().clone();
        clock.duration_from(busy() - before).as_nanos() as f64 / count as f64
    })
}

/// Runs `main`, on the reactor of `here`, with a SpdkThread on that of `there`.
fn with_thread<T: 'static>(
    mode: ReactorMode,
    here: usize,
    there: usize,
    main: impl AsyncFnOnce(SpdkThread) -> T + 'static,
) -> T {
    let app = app(mode, [here, there]).main_core(here);
    block_on(app, async move |app| {
        let thread = app.thread().cpumask(CpuSet::single(there)).create();
        main(thread.expect("a thread on that core")).await
    })
}

/// A wake there and one back, between two reactors.
pub fn wakes(mode: ReactorMode, here: usize, there: usize, rounds: usize) -> f64 {
    with_thread(mode, here, there, async move |thread| {
        let court = Court::new();
        let other = court.clone();
        let reply = thread.spawn(async move { other.reply(rounds).await });
        let figure = court.serve(rounds).await;
        reply.await.expect("it ends");
        figure
    })
}

/// A task on the other reactor, from a task here.
pub fn remote_spawns(here: usize, there: usize, count: usize) -> f64 {
    with_thread(ReactorMode::Poll, here, there, async move |thread| {
        cores::spawns(count, |ran| {
            drop(thread.spawn(async move { cores::count(ran) }));
        })
    })
}

/// The same for tasks that nobody can join, which is what the others' are.
pub fn remote_detached_spawns(here: usize, there: usize, count: usize) -> f64 {
    with_thread(ReactorMode::Poll, here, there, async move |thread| {
        cores::spawns(count, |ran| {
            let spawned = thread.spawn_detached(async move || cores::count(ran));
            spawned.expect("the thread takes it");
        })
    })
}

/// A closure run on the other reactor, and its answer awaited.
pub fn calls(here: usize, there: usize, rounds: usize) -> f64 {
    with_thread(ReactorMode::Poll, here, there, async move |thread| {
        let calls = async |rounds: usize| {
            for round in 0..rounds {
                black_box(thread.call(move || round).await.expect("it answers"));
            }
        };
        calls(rounds / 10).await;
        let start = Instant::now();
        calls(rounds).await;
        per_op(start, rounds)
    })
}

/// TCP connections made on one reactor and accepted on the other.
pub fn connections(here: usize, there: usize, count: usize) -> f64 {
    with_thread(ReactorMode::Poll, here, there, async move |thread| {
        let (listener, address) = sockets::bind();
        let warm_up = count / 10;
        let server = thread.spawn_with(async move || {
            let listener = Reactor::listener(listener);
            sockets::accept_all::<Reactor>(&listener, warm_up + count).await;
        });
        sockets::connect_all::<Reactor>(address, warm_up).await;
        let start = Instant::now();
        sockets::connect_all::<Reactor>(address, count).await;
        let figure = per_op(start, count);
        server.await.expect("it ends");
        figure
    })
}

/// Numbers through a bounded channel, from a task here to one on the other reactor.
pub fn numbers(mode: ReactorMode, here: usize, there: usize, count: usize) -> f64 {
    with_thread(mode, here, there, async move |thread| {
        let (sender, receiver) = async_channel::bounded(cores::BOUND);
        let takes = thread.spawn(cores::take_numbers(receiver));
        let figure = cores::send_all(sender, count, |number| number).await;
        takes.await.expect("it ends");
        figure
    })
}

/// Boxed closures through a bounded channel, each made a task by the receiver.
pub fn jobs(here: usize, there: usize, count: usize) -> f64 {
    with_thread(ReactorMode::Poll, here, there, async move |thread| {
        let (sender, receiver) = async_channel::bounded(cores::BOUND);
        let runs = thread.spawn(cores::run_jobs::<Reactor>(receiver));
        let ran = Line::leaked();
        let figure = cores::send_all(sender, count, move |number| cores::job(ran, number)).await;
        runs.await.expect("it ends");
        figure
    })
}

/// Tasks with two shared values each, spawned on a reactor by an OS thread that is none.
pub fn carrying_spawns(here: usize, there: usize, count: usize) -> f64 {
    block_on(app(ReactorMode::Poll, [there]), async move |app| {
        let thread = app.thread().create().expect("a thread on that core");
        let (sender, figure) = futures::channel::oneshot::channel();
        let foreign = std::thread::spawn(move || {
            cpu::pin_current_thread(here).expect("pinning");
            let measured = cores::carrying_spawns(count, |ran, carried| {
                let task = async move || cores::count_carried(ran, carried);
                thread.spawn_detached(task).expect("the thread takes it");
            });
            sender.send(measured).expect("somebody waits");
        });
        let figure = figure.await.expect("it measures");
        foreign.join().expect("it has ended");
        figure
    })
}
