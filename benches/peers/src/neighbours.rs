//! The other runtimes, each as its own documentation has it on one core.
//!
//! The measured task is one of the executor's own. glommio and monoio make a task
//! of what they block on themselves; for the others it is spawned.

use std::cell::Cell;
use std::hint::spin_loop;
use std::rc::Rc;
use std::time::Duration;

use async_executor::{LocalExecutor, StaticLocalExecutor};
use glommio::{LocalExecutorBuilder, Placement};
use monoio::{IoUringDriver, RuntimeBuilder};
use nix::sched::sched_getcpu;
use nix::time::{ClockId, clock_gettime};

use crate::measure::tasks::{self, Ended, Executor, Timers};

/// CPU time of the whole process per sleep: some runtimes have helper threads.
pub fn spread_sleeps_cpu<E: Timers>(count: usize, within: Duration) -> f64 {
    let before = process_cpu();
    E::run(tasks::spread_sleeps::<E>(count, within));
    (process_cpu() - before).as_nanos() as f64 / count as f64
}

/// The mean lateness in ns.
pub fn spread_sleeps_late<E: Timers>(count: usize, within: Duration) -> f64 {
    E::run(tasks::spread_sleeps::<E>(count, within))
}

fn process_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)
        .expect("every Linux has it")
        .into()
}

/// tokio's `LocalRuntime`, which spares the detour of a `LocalSet`.
pub struct Tokio;

impl Executor for Tokio {
    type Handle<T: 'static> = Ended<tokio::task::JoinHandle<T>>;

    fn run<T: 'static>(main: impl Future<Output = T> + 'static) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(Default::default())
            .expect("a runtime")
            .block_on(async { Self::spawn(main).await })
    }

    fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> Self::Handle<T> {
        Ended(tokio::task::spawn_local(future))
    }

    fn give_way() -> impl Future<Output = ()> {
        tokio::task::yield_now()
    }
}

impl Timers for Tokio {
    /// Outside of the task's budget: without any left, a sleep is not even
    /// entered into the wheel.
    fn sleep(duration: Duration) -> impl Future<Output = ()> {
        tokio::task::unconstrained(tokio::time::sleep(duration))
    }
}

thread_local! {
    /// This OS thread's, leaked as its documentation says.
    static SMOL: &'static StaticLocalExecutor = LocalExecutor::new().leak();
}

/// async-executor's static local executor, with async-io to wait and for timers.
pub struct Smol;

impl Executor for Smol {
    type Handle<T: 'static> = async_executor::Task<T>;

    fn run<T: 'static>(main: impl Future<Output = T> + 'static) -> T {
        let executor = SMOL.with(|executor| *executor);
        async_io::block_on(executor.run(executor.spawn(main)))
    }

    fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> Self::Handle<T> {
        SMOL.with(|executor| executor.spawn(future))
    }

    fn detach<T: 'static>(handle: Self::Handle<T>) {
        handle.detach();
    }
}

impl Timers for Smol {
    async fn sleep(duration: Duration) {
        async_io::Timer::after(duration).await;
    }
}

/// The same executor, ticked in a loop.
pub struct SmolSpinning;

impl Executor for SmolSpinning {
    type Handle<T: 'static> = async_executor::Task<T>;

    fn run<T: 'static>(main: impl Future<Output = T> + 'static) -> T {
        let executor = SMOL.with(|executor| *executor);
        let task = executor.spawn(main);
        while !task.is_finished() {
            if !executor.try_tick() {
                spin_loop();
            }
        }
        async_io::block_on(task)
    }

    fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> Self::Handle<T> {
        Smol::spawn(future)
    }

    fn detach<T: 'static>(handle: Self::Handle<T>) {
        handle.detach();
    }
}

/// glommio, on the core that the caller is pinned to.
pub struct Glommio;

pub fn glommio_here() -> LocalExecutorBuilder {
    LocalExecutorBuilder::new(Placement::Fixed(sched_getcpu().expect("the current core")))
}

impl Executor for Glommio {
    type Handle<T: 'static> = glommio::Task<T>;

    fn run<T: 'static>(main: impl Future<Output = T> + 'static) -> T {
        glommio_here().make().expect("an executor").run(main)
    }

    fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> Self::Handle<T> {
        glommio::spawn_local(future)
    }

    fn detach<T: 'static>(handle: Self::Handle<T>) {
        handle.detach();
    }
}

impl Timers for Glommio {
    async fn sleep(duration: Duration) {
        glommio::timer::sleep(duration).await;
    }
}

/// glommio, told to spin before it sleeps, for longer than it ever has to wait.
pub struct GlommioSpinning;

impl Executor for GlommioSpinning {
    type Handle<T: 'static> = glommio::Task<T>;

    fn run<T: 'static>(main: impl Future<Output = T> + 'static) -> T {
        glommio_here()
            .spin_before_park(Duration::from_secs(1))
            .make()
            .expect("an executor")
            .run(main)
    }

    fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> Self::Handle<T> {
        Glommio::spawn(future)
    }

    fn detach<T: 'static>(handle: Self::Handle<T>) {
        handle.detach();
    }
}

/// monoio on io_uring.
pub struct Monoio;

impl Executor for Monoio {
    type Handle<T: 'static> = monoio::task::JoinHandle<T>;

    fn run<T: 'static>(main: impl Future<Output = T> + 'static) -> T {
        RuntimeBuilder::<IoUringDriver>::new()
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(main)
    }

    fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> Self::Handle<T> {
        monoio::spawn(future)
    }
}

impl Timers for Monoio {
    fn sleep(duration: Duration) -> impl Future<Output = ()> {
        monoio::time::sleep(duration)
    }
}

/// compio on io_uring.
pub struct Compio;

impl Executor for Compio {
    type Handle<T: 'static> = Ended<compio::runtime::JoinHandle<T>>;

    fn run<T: 'static>(main: impl Future<Output = T> + 'static) -> T {
        compio::runtime::Runtime::new()
            .expect("a runtime")
            .block_on(async { Self::spawn(main).await })
    }

    fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> Self::Handle<T> {
        Ended(compio::runtime::spawn(future))
    }

    fn detach<T: 'static>(handle: Self::Handle<T>) {
        handle.0.detach();
    }
}

impl Timers for Compio {
    fn sleep(duration: Duration) -> impl Future<Output = ()> {
        compio::time::sleep(duration)
    }
}

/// compio, run from a loop that never lets it wait: its interface for that.
pub struct CompioSpinning;

impl Executor for CompioSpinning {
    type Handle<T: 'static> = Ended<compio::runtime::JoinHandle<T>>;

    fn run<T: 'static>(main: impl Future<Output = T> + 'static) -> T {
        let output = Rc::new(Cell::new(None));
        let ended = output.clone();
        let runtime = compio::runtime::Runtime::new().expect("a runtime");
        runtime.enter(|| {
            let _task = runtime.spawn(async move { ended.set(Some(main.await)) });
            loop {
                runtime.run();
                if let Some(output) = output.take() {
                    return output;
                }
                runtime.poll_with(Some(Duration::ZERO));
            }
        })
    }

    fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> Self::Handle<T> {
        Compio::spawn(future)
    }

    fn detach<T: 'static>(handle: Self::Handle<T>) {
        Compio::detach(handle);
    }
}
