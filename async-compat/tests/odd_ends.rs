//! Destructors and wakers that panic or re-enter, and ends in places where a program does not plan
//! them: nothing else may suffer from it.
#![cfg(feature = "full")]

extern crate corespun_compat as tokio;

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Handle, LocalRuntime, Runtime};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, LocalSet, yield_now};
use tokio::time::sleep;

fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn workers(count: usize) -> Runtime {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(count).enable_all().build().unwrap()
}

/// Its destructor panics.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("the destructor's own");
    }
}

/// Panics when it wakes.
struct Alarm;

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        panic!("the waker's own");
    }
}

/// Polls once, with a waker that panics.
fn poll_with_alarm<F: Future + Unpin>(future: &mut F) {
    let alarm = Waker::from(Arc::new(Alarm));
    let polled = std::pin::Pin::new(future).poll(&mut Context::from_waker(&alarm));
    assert!(polled.is_pending());
}

/// One helper thread, kept busy until the sender is dropped; what comes next waits.
fn busy_helper(runtime: &Runtime) -> (mpsc::Sender<()>, JoinHandle<()>) {
    let (release, held) = mpsc::channel::<()>();
    let (begun, begins) = mpsc::channel();
    let first = runtime.spawn_blocking(move || {
        begun.send(()).unwrap();
        let _ = held.recv();
    });
    begins.recv().unwrap();
    (release, first)
}

fn one_helper() -> Runtime {
    let mut builder = Builder::new_current_thread();
    builder
        .max_blocking_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

#[test]
fn a_closure_aborted_before_it_runs_ends_its_join_though_its_destructor_panics() {
    let runtime = one_helper();
    let (release, first) = busy_helper(&runtime);
    let bomb = Bomb;
    let second = runtime.spawn_blocking(move || drop(bomb));
    let third = runtime.spawn_blocking(|| 3);
    second.abort();
    drop(release);
    runtime.block_on(async {
        first.await.unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(20), second).await;
        let error = ended.expect("it hangs").expect_err("it did not run");
        assert!(error.is_panic(), "{error:?}");
        let third = tokio::time::timeout(Duration::from_secs(20), third).await;
        assert_eq!(third.expect("it hangs").unwrap(), 3);
    });
}

#[test]
fn a_destructor_that_panics_at_the_end_of_a_runtime_leaves_the_rest_of_the_end_whole() {
    let runtime = one_helper();
    let (release, _first) = busy_helper(&runtime);
    let bomb = Bomb;
    let second = runtime.spawn_blocking(move || drop(bomb));
    let third = runtime.spawn_blocking(|| 3);
    let task = runtime.spawn(std::future::pending::<()>());
    let ended = catch_unwind(AssertUnwindSafe(|| runtime.shutdown_background()));
    drop(release);
    assert!(ended.is_ok(), "the end of the runtime panicked");
    assert!(task.is_finished());
    // What was spawned before the end is still run.
    let error = futures::executor::block_on(second).unwrap_err();
    assert!(error.is_panic(), "{error:?}");
    assert_eq!(futures::executor::block_on(third).unwrap(), 3);
}

#[test]
fn a_waker_that_panics_costs_no_helper_thread() {
    let runtime = one_helper();
    let (release, mut first) = busy_helper(&runtime);
    poll_with_alarm(&mut first);
    let second = runtime.spawn_blocking(|| 2);
    drop(release);
    runtime.block_on(async {
        let second = tokio::time::timeout(Duration::from_secs(20), second).await;
        assert_eq!(second.expect("it hangs").unwrap(), 2);
    });
}

#[test]
fn a_waker_that_panics_does_not_stop_the_end_of_a_runtime() {
    for count in [0, 1] {
        let runtime = match count {
            0 => current_thread(),
            count => workers(count),
        };
        let task = runtime.spawn(std::future::pending::<()>());
        let (mut ours, _peer) = {
            let _entered = runtime.enter();
            UnixStream::pair().unwrap()
        };
        let mut buf = [0; 1];
        let mut read = Box::pin(ours.read(&mut buf));
        poll_with_alarm(&mut read);
        let ended = catch_unwind(AssertUnwindSafe(|| {
            runtime.shutdown_timeout(Duration::from_secs(20))
        }));
        assert!(ended.is_ok(), "the end of the runtime panicked");
        assert!(task.is_finished());
    }
}

/// Two pairs of sockets: made in `block_on`, and in a task of a worker.
#[test]
fn a_foreign_executor_waits_for_sockets_while_nobody_blocks_on_the_runtime() {
    let runtime = workers(1);
    let near = runtime.block_on(async { UnixStream::pair().unwrap() });
    let far = runtime.block_on(async {
        tokio::spawn(async { UnixStream::pair().unwrap() })
            .await
            .unwrap()
    });
    let entered = {
        let _entered = runtime.enter();
        UnixStream::pair().unwrap()
    };
    // The last word on who watches, and its OS thread goes on to other things.
    runtime.block_on(async {});
    for (name, (mut ours, mut theirs)) in [("near", near), ("far", far), ("entered", entered)] {
        let (told, tells) = mpsc::channel();
        let (begun, begins) = mpsc::channel();
        thread::spawn(move || {
            let mut buf = [0; 4];
            let read = async {
                let mut read = pin!(ours.read(&mut buf));
                poll_fn(|cx| {
                    let polled = read.as_mut().poll(cx);
                    let _ = begun.send(());
                    polled
                })
                .await
            };
            let _ = told.send(futures::executor::block_on(read).unwrap());
        });
        begins.recv().unwrap();
        futures::executor::block_on(theirs.write_all(b"ping")).unwrap();
        let read = tells.recv_timeout(Duration::from_secs(10));
        assert_eq!(read, Ok(4), "{name}");
    }
}

#[test]
fn a_socket_outlives_the_os_thread_that_made_it() {
    let runtime = workers(1);
    let handle = runtime.handle().clone();
    let maker = thread::spawn(move || handle.block_on(async { UnixStream::pair().unwrap() }));
    let (mut ours, mut theirs) = maker.join().unwrap();
    let waits = thread::spawn(move || {
        let mut buf = [0; 4];
        futures::executor::block_on(ours.read(&mut buf))
    });
    thread::sleep(Duration::from_millis(20));
    futures::executor::block_on(theirs.write_all(b"ping")).unwrap();
    assert_eq!(waits.join().unwrap().unwrap(), 4);
}

/// Tasks that are not `Send`, by corespun's own API, bind a runtime to its OS thread.
fn bound(name: &'static str, dropped: mpsc::Sender<(&'static str, thread::ThreadId)>) -> Runtime {
    struct Tell(
        &'static str,
        mpsc::Sender<(&'static str, thread::ThreadId)>,
        #[expect(dead_code, reason = "makes it `!Send`")] Rc<()>,
    );
    impl Drop for Tell {
        fn drop(&mut self) {
            let _ = self.1.send((self.0, thread::current().id()));
        }
    }
    let runtime = current_thread();
    let tell = Tell(name, dropped, Rc::new(()));
    runtime.block_on(async {
        drop(corespun::task::spawn_local(async move {
            let _tell = tell;
            std::future::pending::<()>().await;
        }));
        yield_now().await;
    });
    runtime
}

#[test]
fn what_is_not_send_is_dropped_on_its_os_thread_though_the_runtime_ends_elsewhere() {
    let (dropped, drops) = mpsc::channel();
    let maker = thread::spawn(move || {
        let runtime = bound("it", dropped);
        let elsewhere = thread::spawn(move || drop(runtime));
        assert!(elsewhere.join().is_ok(), "the end of the runtime panicked");
        thread::current().id()
    });
    let maker = maker.join().unwrap();
    assert_eq!(drops.recv(), Ok(("it", maker)));
}

#[test]
fn runtimes_that_are_bound_to_one_os_thread_are_not_confused() {
    let (dropped, drops) = mpsc::channel();
    let first = bound("first", dropped.clone());
    let second = bound("second", dropped);
    // Each runs its own tasks.
    for runtime in [&second, &first, &first, &second] {
        let library = runtime.block_on(async {
            let task = tokio::spawn(async { Handle::current().id() });
            task.await.unwrap()
        });
        assert_eq!(library, runtime.handle().id());
    }
    drop(first);
    assert_eq!(drops.try_recv().map(|told| told.0), Ok("first"));
    drop(second);
    assert_eq!(drops.try_recv().map(|told| told.0), Ok("second"));
}

#[test]
fn a_local_set_may_be_awaited_in_its_own_task() {
    let runtime = current_thread();
    let set = Rc::new(LocalSet::new());
    let inner = set.clone();
    let sum = set.block_on(&runtime, async {
        let task = tokio::task::spawn_local(async move {
            let set = inner.clone();
            let helper = async move {
                let helper = tokio::task::spawn_local(async {
                    sleep(Duration::from_millis(1)).await;
                    40
                });
                helper.await.unwrap()
            };
            set.run_until(helper).await
        });
        let far = tokio::task::spawn_local(async { 2 });
        task.await.unwrap() + far.await.unwrap()
    });
    assert_eq!(sum, 42);
}

#[test]
fn a_runtime_may_end_on_one_of_its_own_helper_threads() {
    for count in [0, 1] {
        let runtime = match count {
            0 => current_thread(),
            count => workers(count),
        };
        let (give, given) = mpsc::channel::<Runtime>();
        let (told, tells) = mpsc::channel();
        drop(runtime.spawn_blocking(move || {
            drop(given.recv().unwrap());
            told.send(()).unwrap();
        }));
        give.send(runtime).unwrap();
        assert_eq!(
            tells.recv_timeout(Duration::from_secs(20)),
            Ok(()),
            "{count} hangs"
        );
    }
}

#[test]
fn a_runtime_may_end_where_its_worker_may_block() {
    let runtime = workers(1);
    let (give, given) = oneshot::channel::<Runtime>();
    let (told, tells) = mpsc::channel();
    runtime.spawn(async move {
        let runtime = given.await.unwrap();
        let ended =
            tokio::task::block_in_place(|| catch_unwind(AssertUnwindSafe(|| drop(runtime))));
        told.send(ended.is_ok()).unwrap();
    });
    give.send(runtime).unwrap();
    assert_eq!(tells.recv_timeout(Duration::from_secs(20)), Ok(true));
}

/// It would stop everything on the app's core; on an OS thread of its own it may.
#[test]
fn a_runtime_blocks_beside_an_app_and_not_inside() {
    let app = corespun::app::App::builder().handle_signals(false);
    let read = app.block_on(async |_app| {
        let runtime = current_thread();
        let inside = catch_unwind(AssertUnwindSafe(|| runtime.block_on(async {})));
        assert!(inside.is_err());
        let beside = move || {
            runtime.block_on(async {
                let (mut ours, mut theirs) = UnixStream::pair().unwrap();
                let task = tokio::spawn(async move {
                    sleep(Duration::from_millis(1)).await;
                    theirs.write_all(b"ping").await.unwrap();
                });
                let mut buf = [0; 4];
                ours.read_exact(&mut buf).await.unwrap();
                task.await.unwrap();
                buf
            })
        };
        corespun::task::spawn_blocking(beside).await.unwrap()
    });
    assert_eq!(&read.unwrap(), b"ping");
}

/// Real time: what blocks is an OS thread.
#[test]
fn a_call_that_blocks_a_reactor_of_an_app_is_reported_while_it_blocks() {
    let (sender, receiver) = oneshot::channel();
    let sender = std::sync::Mutex::new(Some(sender));
    let app = corespun::app::App::builder().handle_signals(false);
    let app = app.stall_limit(Duration::from_millis(5));
    let app = app.stall_hook(move |stall| {
        if stall.still_running
            && let Some(sender) = sender.lock().unwrap().take()
        {
            sender.send(7).unwrap();
        }
    });
    // Nothing else ends the wait.
    let received = app.block_on(async move |_app| receiver.blocking_recv());
    assert_eq!(received.unwrap(), Ok(7));
}

#[test]
fn a_task_whose_destructor_panics_at_the_end_does_not_keep_the_others() {
    struct Count(Arc<AtomicUsize>);
    impl Drop for Count {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    for count in [0, 1] {
        let runtime = match count {
            0 => current_thread(),
            count => workers(count),
        };
        let dropped = Arc::new(AtomicUsize::new(0));
        for index in 0..10 {
            let held = Count(dropped.clone());
            let bomb = (index % 2 == 0).then(|| Bomb);
            runtime.spawn(async move {
                let _held = (held, bomb);
                std::future::pending::<()>().await;
            });
        }
        let ended = catch_unwind(AssertUnwindSafe(|| drop(runtime)));
        assert!(ended.is_ok(), "the end of the runtime panicked");
        assert_eq!(dropped.load(Ordering::Relaxed), 10);
    }
}

/// The socket is dropped by the waker of its own wait.
#[test]
fn a_waker_may_drop_the_socket_that_it_is_told_of() {
    struct Owner {
        socket: std::sync::Mutex<Option<UnixStream>>,
        woken: AtomicBool,
    }
    impl Wake for Owner {
        fn wake(self: Arc<Self>) {
            drop(self.socket.lock().unwrap().take());
            self.woken.store(true, Ordering::SeqCst);
        }
    }
    for runtime in [current_thread(), workers(1)] {
        runtime.block_on(async {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let owner = Arc::new(Owner {
                socket: std::sync::Mutex::new(Some(ours)),
                woken: AtomicBool::new(false),
            });
            let waker = Waker::from(owner.clone());
            {
                let socket = owner.socket.lock().unwrap();
                let mut cx = Context::from_waker(&waker);
                assert!(
                    socket
                        .as_ref()
                        .unwrap()
                        .poll_read_ready(&mut cx)
                        .is_pending()
                );
            }
            theirs.write_all(b"ping").await.unwrap();
            while !owner.woken.load(Ordering::SeqCst) {
                yield_now().await;
            }
            let error = theirs.write_all(b"ping").await.unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
        });
    }
}

#[test]
fn a_local_runtime_may_be_forgotten_or_end_while_the_os_thread_unwinds() {
    let unwound = thread::spawn(|| {
        let runtime = LocalRuntime::new().unwrap();
        let near = Rc::new(());
        runtime.spawn_local(async move {
            let _near = near;
            std::future::pending::<()>().await;
        });
        runtime.block_on(async { panic!("the future's own") });
    });
    assert!(unwound.join().is_err());
    let forgotten = thread::spawn(|| {
        let runtime = LocalRuntime::new().unwrap();
        runtime.block_on(async { yield_now().await });
        std::mem::forget(runtime);
    });
    forgotten.join().unwrap();
}

/// In a process of its own, whose limit the other tests do not feel.
#[test]
fn at_the_descriptor_limit_a_runtime_is_refused_or_works() {
    const CHILD: &str = "CORESPUN_COMPAT_AT_THE_LIMIT";
    if std::env::var_os(CHILD).is_none() {
        let name = "at_the_descriptor_limit_a_runtime_is_refused_or_works";
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let child = child.args(["--exact", name, "--nocapture"]).env(CHILD, "1");
        let output = child.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
        return;
    }
    let limit = |soft: u64, hard: u64| {
        let limit = libc::rlimit {
            rlim_cur: soft,
            rlim_max: hard,
        };
        // SAFETY: the call only reads the limit.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
    };
    // All numbers below the highest are in use, so that a limit is a count.
    let mut held = Vec::new();
    let first = loop {
        let file = std::fs::File::open("/dev/null").unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&file) as u64;
        held.push(file);
        if number >= 64 {
            break number + 1;
        }
    };
    let mut refused = 0;
    for left in 0..24 {
        limit(first + left, 1024);
        let built = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build();
        // Whoever starts late is not to be saved by this.
        if built.is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
        limit(1024, 1024);
        match built {
            Err(_) => refused += 1,
            Ok(runtime) => runtime.block_on(async {
                for _ in 0..8 {
                    assert_eq!(tokio::spawn(async { 1 }).await.unwrap(), 1, "{left} left");
                }
            }),
        }
    }
    assert!((1..24).contains(&refused), "{refused}");
}

/// What an abandoned call has of a file is waited for.
#[test]
fn into_std_waits_for_what_was_given_up() {
    let runtime = workers(1);
    runtime.block_on(async {
        let file = tokio::fs::File::from_std(tempfile::tempfile().unwrap());
        for _ in 0..200 {
            let mut given_up = pin!(file.metadata());
            let _ = futures::poll!(given_up.as_mut());
            let mut given_up = pin!(file.sync_all());
            let _ = futures::poll!(given_up.as_mut());
        }
        let std = file.into_std().await;
        assert!(std.metadata().unwrap().is_file());
    });
}

/// The one that ends leaves the set to the other.
#[test]
fn two_run_untils_of_a_set_do_not_miss_each_others_wakes() {
    let runtime = current_thread();
    let set = Rc::new(LocalSet::new());
    let (tell, told) = oneshot::channel::<()>();
    let (begin, begun) = oneshot::channel::<()>();
    let ended = set.spawn_local(async move {
        begun.await.unwrap();
        told.await.unwrap();
    });
    let outer = LocalSet::new();
    let first = set.clone();
    outer.spawn_local(async move { first.run_until(ended).await.unwrap() });
    let second = set.clone();
    outer.spawn_local(async move {
        // Polled last, and the first to end.
        second.run_until(sleep(Duration::from_millis(2))).await;
        begin.send(()).unwrap();
        sleep(Duration::from_millis(2)).await;
        tell.send(()).unwrap();
    });
    let ends = async { tokio::time::timeout(Duration::from_secs(20), outer).await };
    runtime.block_on(ends).expect("the task of the set goes on");
}
