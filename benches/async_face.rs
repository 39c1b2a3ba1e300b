//! What tasks, timers and calls cost, beside tokio's current-thread runtime and
//! async-executor's `LocalExecutor`, in nanoseconds: medians of interleaved runs.
//!
//! ```text
//! cargo bench --bench async_face [PART OF A ROW'S NAME...]
//! ```
//!
//! Each row measures every peer once per run before the next run begins, so that
//! a machine that changes its pace changes it for all. The floor is a bare
//! cache-line round trip between two pinned OS threads. Run it on a quiet
//! machine, and compare only figures that one run printed together.

mod measure;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::hint::{black_box, spin_loop};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use corespun::cpu;
use corespun::task as ours;
use corespun::thread::{SpdkThread, ThreadLib, ThreadRunner};
use futures::task::noop_waker_ref;
use measure::{Elsewhere, line_round_trip, per_op};

const RUNS: usize = 9;

fn main() {
    // `cargo test --benches` does not pass this: one short run shows that it works.
    let scale = if std::env::args().any(|arg| arg == "--bench") {
        100
    } else {
        1
    };
    let cores: Vec<usize> = cpu::available()
        .expect("the cores of this process")
        .iter()
        .collect();
    cpu::pin_current_thread(cores[0]).expect("pinning to a core of this process");
    println!(
        "{:<44} {:>10} {:>10} {:>10}",
        "ns per operation (medians)", "corespun", "tokio ct", "smol"
    );
    row(
        "local spawn + join, one at a time",
        [
            &|| Ours::spawn_join(300 * scale),
            &|| Tokio::spawn_join(300 * scale),
            &|| Smol::spawn_join(300 * scale),
        ],
    );
    let many = 100 * scale;
    row(
        "spawn 10,000, join all, each",
        [
            &|| Ours::spawn_many(many),
            &|| Tokio::spawn_many(many),
            &|| Smol::spawn_many(many),
        ],
    );
    for (name, tasks) in [("yield, 1 task", 1), ("yield, 1,000 tasks", 1000)] {
        let each = 1000 * scale / tasks + 1;
        row(
            name,
            [
                &|| Ours::yields(tasks, each),
                &|| Tokio::yields(tasks, each),
                &|| Smol::yields(tasks, each),
            ],
        );
    }
    row(
        "local wake ping-pong, round trip",
        [
            &|| Ours::ping_pong(500 * scale),
            &|| Tokio::ping_pong(500 * scale),
            &|| Smol::ping_pong(500 * scale),
        ],
    );
    for (name, live) in [
        ("10 s sleep: create + poll + drop, alone", 0),
        ("10 s sleep: the same, 20,000 live", 200 * scale),
    ] {
        row(
            name,
            [
                &|| our_sleeps(live, 300 * scale),
                &|| tokio_sleeps(live, 300 * scale),
                &|| f64::NAN,
            ],
        );
    }
    let (sleeps, within) = (1000 * scale, Duration::from_millis(scale as u64));
    row(
        "100,000 sleeps in 100 ms: CPU each",
        [
            &|| our_many_sleeps(sleeps, within).0,
            &|| tokio_many_sleeps(sleeps, within).0,
            &|| f64::NAN,
        ],
    );
    row(
        "100,000 sleeps in 100 ms: mean lateness",
        [
            &|| our_many_sleeps(sleeps, within).1,
            &|| tokio_many_sleeps(sleeps, within).1,
            &|| f64::NAN,
        ],
    );
    if let [here, there, ..] = cores[..] {
        row(
            "floor: bare cache-line round trip",
            [
                &|| line_round_trip(here, there, 500 * scale),
                &|| f64::NAN,
                &|| f64::NAN,
            ],
        );
        row(
            "call to another core and back",
            [&|| our_calls(there, 300 * scale), &|| f64::NAN, &|| {
                f64::NAN
            }],
        );
        row(
            "remote spawn, each",
            [
                &|| our_remote_spawns(there, 3000 * scale),
                &|| tokio_remote_spawns(there, 3000 * scale),
                &|| f64::NAN,
            ],
        );
        let _ = here;
    }
}

/// Prints the median of each peer, measured in turn, unless other rows were asked
/// for by a part of their name.
fn row(name: &str, peers: [&dyn Fn() -> f64; 3]) {
    let mut wanted = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"))
        .peekable();
    if wanted.peek().is_some() && !wanted.any(|part| name.contains(&part)) {
        return;
    }
    let mut figures = [(); 3].map(|()| Vec::new());
    for _ in 0..RUNS {
        for (peer, figures) in peers.iter().zip(&mut figures) {
            figures.push(peer());
        }
    }
    let median = figures.map(|mut figures| {
        figures.sort_by(f64::total_cmp);
        figures[RUNS / 2]
    });
    let text = median.map(|figure| {
        if figure.is_nan() {
            "-".to_owned()
        } else {
            format!("{figure:.1}")
        }
    });
    println!("{name:<44} {:>10} {:>10} {:>10}", text[0], text[1], text[2]);
}

/// A single-threaded executor under measurement.
trait Executor {
    type Handle<T>: Future<Output = T>;

    /// Runs `main` on the executor to its end.
    fn run<T: 'static>(main: impl Future<Output = T> + 'static) -> T;
    fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> Self::Handle<T>;
    async fn give_way();

    fn spawn_join(tasks: usize) -> f64 {
        Self::run(async move {
            let start = Instant::now();
            for task in 0..tasks {
                black_box(Self::spawn(async move { task }).await);
            }
            per_op(start, tasks)
        })
    }

    fn spawn_many(tasks: usize) -> f64 {
        Self::run(async move {
            let start = Instant::now();
            let mut handles = Vec::with_capacity(tasks);
            for task in 0..tasks {
                handles.push(Self::spawn(async move { task }));
            }
            for handle in handles {
                black_box(handle.await);
            }
            per_op(start, tasks)
        })
    }

    fn yields(tasks: usize, each: usize) -> f64 {
        Self::run(async move {
            let start = Instant::now();
            let mut handles = Vec::with_capacity(tasks);
            for _ in 0..tasks {
                handles.push(Self::spawn(async move {
                    for _ in 0..each {
                        Self::give_way().await;
                    }
                }));
            }
            for handle in handles {
                handle.await;
            }
            per_op(start, tasks * each)
        })
    }

    /// Two tasks that wake each other through one cell.
    fn ping_pong(rounds: usize) -> f64 {
        Self::run(async move {
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
            let start = Instant::now();
            let players = [Self::spawn(player(0)), Self::spawn(player(1))];
            for player in players {
                player.await;
            }
            per_op(start, rounds)
        })
    }
}

struct Ours;

struct OurHandle<T>(ours::JoinHandle<T>);

impl<T> Future for OurHandle<T> {
    type Output = T;

    fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        std::pin::Pin::new(&mut self.0)
            .poll(cx)
            .map(|joined| joined.expect("it ends"))
    }
}

fn runner() -> ThreadRunner {
    ThreadLib::new()
        .thread()
        .build()
        .expect("a thread")
        .attach()
}

fn run_on<T: 'static>(runner: &mut ThreadRunner, main: impl Future<Output = T> + 'static) -> T {
    let mut handle = runner.enter(|| ours::spawn_local(main));
    let mut cx = Context::from_waker(noop_waker_ref());
    // As a reactor does: a poll begins when the one before ended.
    let thread = runner.handle();
    while !handle.is_finished() {
        runner.poll(0, thread.last_tick());
    }
    match futures::FutureExt::poll_unpin(&mut handle, &mut cx) {
        Poll::Ready(joined) => joined.expect("it ends"),
        Poll::Pending => unreachable!("it has ended"),
    }
}

impl Executor for Ours {
    type Handle<T> = OurHandle<T>;

    fn run<T: 'static>(main: impl Future<Output = T> + 'static) -> T {
        run_on(&mut runner(), main)
    }

    fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> OurHandle<T> {
        OurHandle(ours::spawn_local(future))
    }

    async fn give_way() {
        ours::yield_now().await
    }
}

struct Tokio;

struct TokioHandle<T>(tokio::task::JoinHandle<T>);

impl<T> Future for TokioHandle<T> {
    type Output = T;

    fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        std::pin::Pin::new(&mut self.0)
            .poll(cx)
            .map(|joined| joined.expect("it ends"))
    }
}

fn tokio_runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime")
}

impl Executor for Tokio {
    type Handle<T> = TokioHandle<T>;

    fn run<T: 'static>(main: impl Future<Output = T> + 'static) -> T {
        tokio::task::LocalSet::new().block_on(&tokio_runtime(), main)
    }

    fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> TokioHandle<T> {
        TokioHandle(tokio::task::spawn_local(future))
    }

    async fn give_way() {
        tokio::task::yield_now().await
    }
}

struct Smol;

thread_local! {
    /// For the duration of `Smol::run`; the closures cannot borrow it.
    static SMOL: Cell<Option<&'static async_executor::LocalExecutor<'static>>> =
        const { Cell::new(None) };
}

impl Executor for Smol {
    type Handle<T> = async_executor::Task<T>;

    fn run<T: 'static>(main: impl Future<Output = T> + 'static) -> T {
        let executor: &'static _ = match SMOL.get() {
            Some(executor) => executor,
            None => Box::leak(Box::new(async_executor::LocalExecutor::new())),
        };
        SMOL.set(Some(executor));
        futures::executor::block_on(executor.run(main))
    }

    fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> async_executor::Task<T> {
        SMOL.get().expect("inside `run`").spawn(future)
    }

    async fn give_way() {
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
}

// Timers.

const FAR: Duration = Duration::from_secs(10);

/// Polls a sleep once with the task's own waker, then drops it.
async fn poll_once(sleep: impl Future<Output = ()>) {
    let mut sleep = std::pin::pin!(sleep);
    poll_fn(|cx| {
        assert!(sleep.as_mut().poll(cx).is_pending());
        Poll::Ready(())
    })
    .await
}

fn our_sleeps(live: usize, count: usize) -> f64 {
    Ours::run(async move {
        let mut others: Vec<_> = (0..live)
            .map(|n| Box::pin(corespun::time::sleep(FAR + Duration::from_micros(n as u64))))
            .collect();
        for other in &mut others {
            poll_once(other).await;
        }
        let start = Instant::now();
        for _ in 0..count {
            poll_once(corespun::time::sleep(FAR)).await;
        }
        per_op(start, count)
    })
}

fn tokio_sleeps(live: usize, count: usize) -> f64 {
    Tokio::run(async move {
        let mut others: Vec<_> = (0..live)
            .map(|n| Box::pin(tokio::time::sleep(FAR + Duration::from_micros(n as u64))))
            .collect();
        for other in &mut others {
            poll_once(other).await;
        }
        let start = Instant::now();
        for _ in 0..count {
            // Creating one outside of tokio's own budget, which would make it wait.
            tokio::task::unconstrained(poll_once(tokio::time::sleep(FAR))).await;
        }
        per_op(start, count)
    })
}

fn cpu_time() -> Duration {
    let time = nix_cpu_time();
    Duration::new(time.0, time.1)
}

fn nix_cpu_time() -> (u64, u32) {
    let usage = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)
        .expect("every Linux has it");
    (usage.tv_sec() as u64, usage.tv_nsec() as u32)
}

/// Deadlines spread evenly, in an order that is not theirs.
fn spread(n: usize, count: usize, within: Duration) -> Duration {
    let mixed = n.wrapping_mul(7919) % count;
    within.mul_f64(mixed as f64 / count as f64)
}

/// CPU time per sleep beside an idle loop's, which in poll mode is all of it, and
/// the mean lateness in ns.
fn our_many_sleeps(count: usize, within: Duration) -> (f64, f64) {
    let mut runner = runner();
    let late = Rc::new(Cell::new(0u64));
    let total = late.clone();
    let (mut busy, cpu_before) = (Duration::ZERO, cpu_time());
    let main = async move {
        let start = Instant::now();
        let mut handles = Vec::with_capacity(count);
        for n in 0..count {
            let late = late.clone();
            let due = start + spread(n, count, within);
            handles.push(ours::spawn_local(async move {
                corespun::time::sleep(due.saturating_duration_since(Instant::now())).await;
                late.set(late.get() + due.elapsed().as_nanos() as u64);
            }));
        }
        for handle in handles {
            handle.await.expect("it ends");
        }
    };
    let handle = runner.enter(|| ours::spawn_local(main));
    let mut idle_since = None;
    let mut idle = Duration::ZERO;
    while !handle.is_finished() {
        if runner.poll(0, 0).is_busy() {
            if let Some(since) = idle_since.take() {
                idle += Instant::elapsed(&since);
            }
        } else if idle_since.is_none() {
            idle_since = Some(Instant::now());
        }
    }
    busy += (cpu_time() - cpu_before).saturating_sub(idle);
    (
        busy.as_nanos() as f64 / count as f64,
        total.get() as f64 / count as f64,
    )
}

fn tokio_many_sleeps(count: usize, within: Duration) -> (f64, f64) {
    let cpu_before = cpu_time();
    let late = Tokio::run(async move {
        let late = Rc::new(Cell::new(0u64));
        let start = Instant::now();
        let mut handles = Vec::with_capacity(count);
        for n in 0..count {
            let late = late.clone();
            let due = start + spread(n, count, within);
            handles.push(tokio::task::spawn_local(async move {
                tokio::time::sleep_until(due.into()).await;
                late.set(late.get() + due.elapsed().as_nanos() as u64);
            }));
        }
        for handle in handles {
            handle.await.expect("it ends");
        }
        late.get()
    });
    (
        (cpu_time() - cpu_before).as_nanos() as f64 / count as f64,
        late as f64 / count as f64,
    )
}

// Between cores.

/// Runs `f` with a SpdkThread that another core polls.
fn with_elsewhere<R>(core: usize, f: impl FnOnce(SpdkThread) -> R) -> R {
    let elsewhere = Elsewhere::start(core, |_| ());
    let result = f(elsewhere.thread.clone());
    elsewhere.stop();
    result
}

fn our_calls(there: usize, rounds: usize) -> f64 {
    with_elsewhere(there, |thread| {
        Ours::run(async move {
            let start = Instant::now();
            for round in 0..rounds {
                black_box(thread.call(move || round).await.expect("it answers"));
            }
            per_op(start, rounds)
        })
    })
}

fn our_remote_spawns(there: usize, count: usize) -> f64 {
    with_elsewhere(there, |thread| {
        let ran = Arc::new(AtomicU64::new(0));
        let start = Instant::now();
        for _ in 0..count {
            let ran = ran.clone();
            drop(thread.spawn(async move {
                ran.fetch_add(1, Ordering::Relaxed);
            }));
        }
        while ran.load(Ordering::Relaxed) < count as u64 {
            spin_loop();
        }
        per_op(start, count)
    })
}

fn tokio_remote_spawns(there: usize, count: usize) -> f64 {
    let runtime = tokio_runtime();
    let handle = runtime.handle().clone();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let os_thread = std::thread::spawn(move || {
        cpu::pin_current_thread(there).expect("pinning");
        let _ = runtime.block_on(stopped);
    });
    let ran = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    for _ in 0..count {
        let ran = ran.clone();
        drop(handle.spawn(async move {
            ran.fetch_add(1, Ordering::Relaxed);
        }));
    }
    while ran.load(Ordering::Relaxed) < count as u64 {
        spin_loop();
    }
    let figure = per_op(start, count);
    let _ = stop.send(());
    os_thread.join().expect("the other core");
    figure
}
