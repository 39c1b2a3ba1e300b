//! What tokio's own tests do not look at: where tasks go, what a runtime does when it is
//! dropped in odd places, and two of them side by side.
#![cfg(feature = "full")]

extern crate corespun_compat as tokio;

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, LocalRuntime, Placement, Runtime, worker_index};
use tokio::sync::oneshot;
use tokio::task::{JoinSet, LocalSet, yield_now};
use tokio::time::{Instant, sleep, timeout};

fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn workers(count: usize) -> Runtime {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(count).enable_all().build().unwrap()
}

fn panic_text(f: impl FnOnce()) -> String {
    let payload = catch_unwind(AssertUnwindSafe(f)).expect_err("it panics");
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => (*payload.downcast_ref::<&str>().unwrap()).to_owned(),
    }
}

/// Tasks that last, as connections do: on which workers they are.
async fn spread(count: usize) -> HashSet<usize> {
    let mut tasks = JoinSet::new();
    let all = Arc::new(tokio::sync::Barrier::new(count));
    for _ in 0..count {
        let all = all.clone();
        tasks.spawn(async move {
            let index = worker_index().unwrap();
            all.wait().await;
            index
        });
    }
    tasks.join_all().await.into_iter().collect()
}

#[test]
fn what_block_on_spawns_goes_to_all_workers() {
    let runtime = workers(2);
    assert_eq!(runtime.block_on(spread(16)), HashSet::from([0, 1]));
    // As each reactor's statistics say.
    let metrics = runtime.metrics();
    for worker in 0..2 {
        assert!(metrics.worker_total_busy_duration(worker) > Duration::ZERO);
    }
}

#[test]
fn a_worker_gives_away_lasting_tasks_when_it_has_more_than_another() {
    let runtime = workers(2);
    let spread = runtime.block_on(async { tokio::spawn(spread(300)).await.unwrap() });
    assert_eq!(spread, HashSet::from([0, 1]));
}

#[test]
fn what_a_task_spawns_stays_beside_it() {
    let runtime = workers(2);
    let tasks = runtime.block_on(async { tokio::spawn(spread(16)).await.unwrap() });
    assert_eq!(tasks.len(), 1);
}

/// One loop accepts for all workers, also where it is a task itself.
#[test]
fn a_task_that_accepts_connections_spreads_what_it_spawns() {
    let runtime = workers(2);
    let served = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepts = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            for _ in 0..8 {
                let (socket, _) = listener.accept().await.unwrap();
                connections.spawn(async move {
                    // Until the client leaves; so they are all there together.
                    socket.readable().await.unwrap();
                    worker_index().unwrap()
                });
            }
            connections.join_all().await
        });
        let mut clients = Vec::new();
        for _ in 0..8 {
            clients.push(tokio::net::TcpStream::connect(address).await.unwrap());
        }
        sleep(Duration::from_millis(5)).await;
        drop(clients);
        accepts.await.unwrap()
    });
    let first = served.iter().filter(|&&worker| worker == 0).count();
    assert!((2..=6).contains(&first), "{served:?}");
}

#[test]
fn the_helper_of_a_task_stays_beside_it() {
    let runtime = workers(2);
    runtime.block_on(async {
        let task = tokio::spawn(async {
            for _ in 0..100 {
                let helper = tokio::spawn(async { worker_index() });
                assert_eq!(helper.await.unwrap(), worker_index());
            }
        });
        task.await.unwrap();
    });
}

#[test]
fn local_placement_keeps_all_that_a_task_spawns() {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(2).placement(Placement::Local);
    let runtime = builder.build().unwrap();
    let spread = runtime.block_on(async { tokio::spawn(spread(32)).await.unwrap() });
    assert_eq!(spread.len(), 1);
}

#[test]
fn a_task_stays_where_it_was_placed() {
    let runtime = workers(2);
    runtime.block_on(async {
        let task = tokio::spawn(async {
            let here = || (worker_index(), thread::current().id());
            let placed = here();
            for _ in 0..50 {
                tokio::task::spawn_blocking(|| ()).await.unwrap();
                yield_now().await;
                assert_eq!(here(), placed);
            }
        });
        task.await.unwrap();
    });
}

/// A waker that is woken by an OS thread that knows no runtime.
#[test]
fn a_foreign_os_thread_wakes_tasks_of_every_runtime() {
    for runtime in [current_thread(), workers(2)] {
        let (sender, receiver) = oneshot::channel();
        let task = runtime.spawn(async move { receiver.await.unwrap() });
        let foreign = thread::spawn(move || {
            thread::sleep(Duration::from_millis(10));
            sender.send(42).unwrap();
        });
        assert_eq!(runtime.block_on(task).unwrap(), 42);
        foreign.join().unwrap();
    }
}

/// A waker of a foreign executor waits for what a runtime does.
#[test]
fn a_foreign_executor_waits_for_timers_and_tasks() {
    let runtime = workers(1);
    let _current = runtime.enter();
    let begin = Instant::now();
    futures::executor::block_on(async {
        sleep(Duration::from_millis(5)).await;
        assert_eq!(tokio::spawn(async { 42 }).await.unwrap(), 42);
        let late = timeout(Duration::from_millis(5), std::future::pending::<()>());
        assert!(late.await.is_err());
    });
    assert!(begin.elapsed() >= Duration::from_millis(10));
}

/// Says when it is dropped.
struct End(Arc<AtomicBool>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_runtime_dropped_in_a_task_panics_and_ends_its_tasks() {
    for inner in [current_thread(), workers(1)] {
        let ended = Arc::new(AtomicBool::new(false));
        let guard = End(ended.clone());
        inner.spawn(async move {
            let _guard = guard;
            std::future::pending::<()>().await;
        });
        let text = panic_text(|| current_thread().block_on(async { drop(inner) }));
        assert!(
            text.starts_with("Cannot drop a runtime in a context"),
            "{text}"
        );
        while !ended.load(Ordering::SeqCst) {
            thread::yield_now();
        }
    }
}

#[test]
fn a_runtime_may_end_in_the_background_of_a_task() {
    for inner in [current_thread(), workers(1)] {
        current_thread().block_on(async { inner.shutdown_background() });
    }
}

#[test]
fn two_runtimes_take_turns_on_an_os_thread() {
    let (one, other) = (current_thread(), current_thread());
    let counter = Arc::new(AtomicUsize::new(0));
    for runtime in [&one, &other] {
        let counter = counter.clone();
        runtime.spawn(async move {
            loop {
                counter.fetch_add(1, Ordering::SeqCst);
                yield_now().await;
            }
        });
    }
    for runtime in [&one, &other, &one] {
        let before = counter.load(Ordering::SeqCst);
        runtime.block_on(async { sleep(Duration::from_millis(1)).await });
        assert!(counter.load(Ordering::SeqCst) > before);
    }
    // Nobody is in `block_on`: its tasks stand still.
    let before = counter.load(Ordering::SeqCst);
    thread::sleep(Duration::from_millis(5));
    assert_eq!(counter.load(Ordering::SeqCst), before);
}

#[test]
fn a_runtime_inside_of_another_is_refused_as_tokio_does() {
    let nested = async { current_thread().block_on(async {}) };
    let text = panic_text(|| current_thread().block_on(nested));
    assert!(
        text.starts_with("Cannot start a runtime from within a runtime"),
        "{text}"
    );
    let text = panic_text(|| drop(tokio::spawn(async {})));
    assert!(
        text.contains("must be called from the context of a Tokio 1.x runtime"),
        "{text}"
    );
}

/// Channels are tokio's own, and still see that nothing may block here.
#[test]
fn a_blocking_call_in_a_task_is_refused() {
    for runtime in [current_thread(), workers(1)] {
        let task = runtime.spawn(async {
            let (_sender, receiver) = oneshot::channel::<()>();
            let _ = receiver.blocking_recv();
        });
        let error = runtime.block_on(task).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("Cannot block the current thread"),
            "{error}"
        );
    }
}

#[test]
fn block_in_place_may_block_on_what_this_os_thread_does_meanwhile() {
    let runtime = workers(2);
    let answer = runtime.block_on(async {
        let task = tokio::spawn(async {
            tokio::task::block_in_place(|| {
                Handle::current().block_on(async {
                    sleep(Duration::from_millis(1)).await;
                    42
                })
            })
        });
        task.await
    });
    assert_eq!(answer.unwrap(), 42);
}

/// A task that is always ready gives way to the others.
#[test]
fn a_full_channel_does_not_hold_the_thread() {
    let runtime = current_thread();
    runtime.block_on(async {
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        sender.send(()).unwrap();
        let busy = tokio::spawn(async move {
            while let Some(()) = receiver.recv().await {
                sender.send(()).unwrap();
            }
        });
        tokio::spawn(async {}).await.unwrap();
        busy.abort();
    });
}

/// Of two that block on one runtime, one runs its tasks; the other takes over.
#[test]
fn who_blocks_beside_another_takes_over_the_tasks() {
    let runtime = Arc::new(current_thread());
    let (entered, is_in) = mpsc::channel();
    let (leave, left) = oneshot::channel::<()>();
    let of_first = runtime.clone();
    let first = thread::spawn(move || {
        of_first.block_on(async {
            entered.send(()).unwrap();
            left.await.unwrap();
        });
    });
    is_in.recv().unwrap();
    let (tick, mut ticks) = tokio::sync::mpsc::unbounded_channel();
    runtime.spawn(async move {
        while tick.send(()).is_ok() {
            sleep(Duration::from_millis(1)).await;
        }
    });
    runtime.block_on(async {
        // While the first one polls it.
        ticks.recv().await.unwrap();
        leave.send(()).unwrap();
        first.join().unwrap();
        while ticks.try_recv().is_ok() {}
        // Now nobody else does.
        for _ in 0..3 {
            ticks.recv().await.unwrap();
        }
    });
}

/// What a task waits for was asked of the driver of one OS thread; another polls it.
#[test]
#[allow(clippy::async_yields_async, reason = "another `block_on` awaits it")]
fn tasks_that_wait_for_sockets_go_along_to_another_os_thread() {
    use tokio::io::AsyncReadExt;
    let runtime = current_thread();
    let (mut near, far) = std::os::unix::net::UnixStream::pair().unwrap();
    far.set_nonblocking(true).unwrap();
    let task = runtime.block_on(async {
        let task = tokio::spawn(async move {
            let mut far = tokio::net::UnixStream::from_std(far).unwrap();
            far.read_u8().await.unwrap()
        });
        sleep(Duration::from_millis(5)).await;
        assert!(!task.is_finished());
        task
    });
    let there = thread::spawn(move || {
        std::io::Write::write_all(&mut near, &[42]).unwrap();
        runtime.block_on(task)
    });
    assert_eq!(there.join().unwrap().unwrap(), 42);
}

#[test]
fn the_end_of_a_runtime_drops_tasks_on_their_own_threads() {
    struct Where(Arc<Mutex<Vec<Option<usize>>>>);
    impl Drop for Where {
        fn drop(&mut self) {
            self.0.lock().unwrap().push(worker_index());
        }
    }
    let dropped = Arc::new(Mutex::new(Vec::new()));
    let runtime = workers(2);
    let started = Arc::new(Barrier::new(5));
    for _ in 0..4 {
        let (guard, started) = (Where(dropped.clone()), started.clone());
        runtime.spawn(async move {
            let _guard = guard;
            let waits = tokio::task::spawn_blocking(move || started.wait());
            waits.await.unwrap();
            std::future::pending::<()>().await;
        });
    }
    started.wait();
    drop(runtime);
    let dropped = dropped.lock().unwrap();
    assert_eq!(dropped.len(), 4);
    assert!(dropped.iter().all(Option::is_some), "{dropped:?}");
}

#[test]
fn what_is_spawned_after_the_end_is_cancelled() {
    for runtime in [current_thread(), workers(1)] {
        let handle = runtime.handle().clone();
        drop(runtime);
        let error = handle.block_on(handle.spawn(async {})).unwrap_err();
        assert!(error.is_cancelled());
        let blocking = handle.spawn_blocking(|| ());
        assert!(handle.block_on(blocking).unwrap_err().is_cancelled());
    }
}

#[test]
fn what_destructors_spawn_at_the_end_is_dropped() {
    struct Spawns(Arc<AtomicBool>);
    impl Drop for Spawns {
        fn drop(&mut self) {
            let guard = End(self.0.clone());
            tokio::spawn(async move {
                let _guard = guard;
                std::future::pending::<()>().await;
            });
        }
    }
    for runtime in [current_thread(), workers(1)] {
        let ended = Arc::new(AtomicBool::new(false));
        let spawns = Spawns(ended.clone());
        runtime.spawn(async move {
            let _spawns = spawns;
            std::future::pending::<()>().await;
        });
        runtime.block_on(yield_now());
        drop(runtime);
        assert!(ended.load(Ordering::SeqCst));
    }
}

#[test]
fn a_hook_that_panics_costs_its_worker_and_cancels_what_goes_there() {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(1).on_thread_start(|| panic!("no"));
    let runtime = builder.build().unwrap();
    let error = runtime.block_on(runtime.spawn(async {})).unwrap_err();
    assert!(error.is_cancelled());
}

#[test]
fn a_hook_of_a_blocking_thread_that_panics_leaves_the_runtime_whole() {
    let mut builder = Builder::new_current_thread();
    builder.on_thread_stop(|| panic!("no"));
    let runtime = builder.build().unwrap();
    runtime.block_on(async {
        tokio::task::spawn_blocking(|| ()).await.unwrap();
    });
    // Waits for that thread's end, and does not hang.
    drop(runtime);
}

#[test]
fn tasks_that_are_not_send_run_beside_those_that_are() {
    let local = LocalSet::new();
    let runtime = workers(2);
    let sum = local.block_on(&runtime, async {
        let near = std::rc::Rc::new(40);
        let near = tokio::task::spawn_local(async move {
            sleep(Duration::from_millis(1)).await;
            *near
        });
        let far = tokio::spawn(async { 2 });
        near.await.unwrap() + far.await.unwrap()
    });
    assert_eq!(sum, 42);
}

#[test]
fn a_local_runtime_takes_what_is_not_send() {
    let runtime = LocalRuntime::new().unwrap();
    let shared = std::rc::Rc::new(std::cell::Cell::new(0));
    let counter = shared.clone();
    runtime.spawn_local(async move {
        loop {
            counter.set(counter.get() + 1);
            yield_now().await;
        }
    });
    runtime.block_on(async { sleep(Duration::from_millis(1)).await });
    assert!(shared.get() > 0);
    drop(runtime);
    // Its task is gone.
    assert_eq!(std::rc::Rc::strong_count(&shared), 1);
}

/// Without a runtime of this crate.
#[test]
fn a_thread_of_an_app_is_a_runtime_of_its_own() {
    let app = corespun::app::App::builder().handle_signals(false);
    let sum = app.block_on(async |_app| {
        let begin = Instant::now();
        sleep(Duration::from_millis(1)).await;
        assert!(begin.elapsed() >= Duration::from_millis(1));
        let not_send = std::rc::Rc::new(1);
        let near = tokio::task::spawn_local(async move { *not_send });
        let task = tokio::spawn(async { 2 });
        let blocking = tokio::task::spawn_blocking(|| 3);
        near.await.unwrap() + task.await.unwrap() + blocking.await.unwrap()
    });
    assert_eq!(sum.unwrap(), 6);
    let app = corespun::app::App::builder().handle_signals(false);
    let text = panic_text(|| {
        let blocks = async |_app| Handle::current().block_on(async {});
        if let Err(error) = app.block_on(blocks) {
            panic!("{error}");
        }
    });
    assert!(
        text.contains("Cannot start a runtime from within a runtime"),
        "{text}"
    );
    // Here there is none.
    assert!(Handle::try_current().is_err());
}

/// Ten thousand idle tasks, and fifty thousand that are made and gone.
#[test]
fn many_tasks_come_and_go() {
    let runtime = workers(2);
    runtime.block_on(async {
        let mut idle = JoinSet::new();
        for _ in 0..10_000 {
            idle.spawn(std::future::pending::<()>());
        }
        let mut quick = JoinSet::new();
        for _ in 0..50 {
            quick.extend((0..1000).map(|round| async move { round }));
            while quick.join_next().await.is_some() {}
        }
        assert!(runtime.metrics().num_alive_tasks() >= 10_000);
        idle.shutdown().await;
    });
    while runtime.metrics().num_alive_tasks() > 0 {
        thread::yield_now();
    }
}

/// Each runtime counts in its own way: TSC ticks, or nanoseconds of a clock that can be stopped.
#[test]
fn a_sleep_goes_on_in_a_runtime_with_another_clock() {
    let (many, one) = (workers(1), current_thread());
    for (first, then) in [(&many, &one), (&one, &many)] {
        let entered = first.enter();
        let mut nap = Box::pin(sleep(Duration::from_millis(20)));
        drop(entered);
        first.block_on(async { assert!(futures::poll!(nap.as_mut()).is_pending()) });
        let ended = then.block_on(async move { timeout(Duration::from_secs(20), nap).await });
        ended.expect("it ends in time");
    }
}

#[cfg(feature = "test-util")]
#[test]
fn a_sleep_of_a_clock_that_was_put_forward_ends_by_that_of_another_runtime() {
    let mut builder = Builder::new_current_thread();
    let ahead = builder.enable_all().start_paused(true).build().unwrap();
    ahead.block_on(async { tokio::time::advance(Duration::from_secs(86_400)).await });
    let entered = ahead.enter();
    let nap = sleep(Duration::from_millis(5));
    drop(entered);
    let here = current_thread();
    let ended = here.block_on(async { timeout(Duration::from_secs(20), nap).await });
    ended.expect("it has 5 ms left");
}

/// Blocked are all workers, and then the spare one too.
#[test]
fn what_is_spawned_while_all_workers_block_in_place_runs() {
    let runtime = workers(1);
    let (end, ends) = mpsc::channel::<()>();
    let (told, tells) = mpsc::channel();
    let ends = Arc::new(Mutex::new(ends));
    for index in [Some(0), None, None] {
        let (ends, told) = (ends.clone(), told.clone());
        runtime.spawn(async move {
            assert_eq!(worker_index(), index);
            let inside = tokio::task::block_in_place(|| {
                let inside = tokio::spawn(async { sleep(Duration::from_millis(1)).await });
                told.send(()).unwrap();
                let _ = ends.lock().unwrap().recv();
                inside
            });
            inside.await.unwrap();
            told.send(()).unwrap();
        });
        tells.recv_timeout(Duration::from_secs(20)).unwrap();
    }
    assert_eq!(runtime.metrics().num_workers(), 1);
    let free = runtime.spawn(async { worker_index() });
    assert_eq!(runtime.block_on(free).unwrap(), None);
    drop(end);
    for _ in 0..3 {
        tells.recv_timeout(Duration::from_secs(20)).unwrap();
    }
    // They are as before, and the spare ones end with the runtime.
    let back = runtime.spawn(async { worker_index() });
    assert_eq!(runtime.block_on(back).unwrap(), Some(0));
    let spared = runtime.handle().clone();
    let held = Arc::new(());
    let kept = Arc::downgrade(&held);
    spared.spawn(async move {
        tokio::task::block_in_place(|| {
            drop(tokio::spawn(async move {
                let _held = held;
                std::future::pending::<()>().await;
            }))
        });
    });
    sleep_until_spared(&runtime);
    drop(runtime);
    assert_eq!(kept.strong_count(), 0);
}

fn sleep_until_spared(runtime: &Runtime) {
    runtime.block_on(async {
        while runtime.metrics().num_alive_tasks() > 1 {
            sleep(Duration::from_millis(1)).await;
        }
    });
}
