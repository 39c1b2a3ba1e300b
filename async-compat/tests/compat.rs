//! Futures and sockets of real tokio on our runtimes, through `Compat`.
#![cfg(feature = "compat")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use corespun::app::{App, AppHandle};
use corespun::cpu::{self, CpuSet};
use corespun::reactor::ReactorMode;
use corespun_compat::compat::Compat;
use corespun_compat::runtime::{Builder, Runtime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn workers(mode: ReactorMode) -> Runtime {
    let mut builder = Builder::new_multi_thread();
    let builder = builder.worker_threads(2).reactor_mode(mode).enable_all();
    builder.build().unwrap()
}

fn runtimes() -> [Runtime; 4] {
    [
        Builder::new_current_thread().enable_all().build().unwrap(),
        workers(ReactorMode::Adaptive),
        workers(ReactorMode::Poll),
        workers(ReactorMode::Interrupt),
    ]
}

fn app(mode: ReactorMode) -> corespun::app::AppBuilder {
    App::builder().mode(mode).handle_signals(false)
}

/// Where a task of tokio's runs.
async fn place() -> ThreadId {
    let place = async { tokio::spawn(async { thread::current().id() }).await };
    Compat::new(place).await.unwrap()
}

#[test]
fn a_timer_of_tokio_works_in_a_task() {
    for runtime in runtimes() {
        let begin = Instant::now();
        let nap = async { tokio::time::sleep(Duration::from_millis(5)).await };
        let task = runtime.spawn(async move { Compat::new(nap).await });
        runtime.block_on(task).unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(5));
    }
}

#[test]
fn sockets_of_tokio_serve_each_other() {
    for runtime in runtimes() {
        let server = Compat::with(|| {
            let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
            listener.set_nonblocking(true).unwrap();
            tokio::net::TcpListener::from_std(listener).unwrap()
        });
        let address = server.get_ref().local_addr().unwrap();
        let echo = runtime.spawn(async move {
            let accepted = async { server.get_ref().accept().await.unwrap().0 };
            let mut stream = Compat::new(Compat::new(accepted).await);
            let mut text = [0; 5];
            stream.read_exact(&mut text).await.unwrap();
            stream.write_all(&text).await.unwrap();
        });
        let client = runtime.spawn(async move {
            let connect = tokio::net::TcpStream::connect(address);
            let mut stream = Compat::new(Compat::new(connect).await.unwrap());
            stream.write_all(b"hello").await.unwrap();
            let mut text = Vec::new();
            stream.read_to_end(&mut text).await.unwrap();
            text
        });
        assert_eq!(runtime.block_on(client).unwrap(), b"hello");
        runtime.block_on(echo).unwrap();
    }
}

/// What a library of tokio's spawns runs too.
#[test]
fn tasks_of_tokio_run() {
    for runtime in runtimes() {
        let foreign = async { tokio::spawn(async { 42 }).await.unwrap() };
        let answer = runtime.block_on(async move { Compat::new(foreign).await });
        assert_eq!(answer, 42);
    }
}

/// Without the wrapper it fails at once, with tokio's own words.
#[test]
fn a_timer_of_tokio_without_a_context_panics() {
    for runtime in runtimes() {
        let task = runtime.spawn(async { tokio::time::sleep(Duration::from_millis(1)).await });
        let error = runtime.block_on(task).unwrap_err();
        assert!(error.to_string().contains("timers are disabled"), "{error}");
    }
}

/// Its destructor looks for the context too.
#[test]
fn what_is_wrapped_is_dropped_in_the_context() {
    struct Looks(std::sync::mpsc::Sender<bool>);
    impl Drop for Looks {
        fn drop(&mut self) {
            let handle = tokio::runtime::Handle::try_current();
            let runs = handle.map(|handle| handle.spawn(async {}));
            self.0.send(runs.is_ok()).unwrap();
        }
    }
    let (sender, looked) = mpsc::channel();
    drop(Compat::new(Looks(sender.clone())));
    assert!(looked.recv().unwrap());
    // While unwinding, and after the value itself has unwound.
    for runtime in runtimes() {
        let value = Looks(sender.clone());
        let unwinds = async move {
            let _value = Compat::new(value);
            panic!("beside it");
        };
        assert!(runtime.block_on(runtime.spawn(unwinds)).is_err());
        assert!(looked.recv().unwrap());
        let value = Looks(sender.clone());
        let unwinds = Compat::new(async move {
            let _value = value;
            panic!("its own");
        });
        assert!(runtime.block_on(runtime.spawn(unwinds)).is_err());
        assert!(looked.recv().unwrap());
    }
}

/// In poll mode the reactor itself turns tokio's runtime, in the others its helper does; also when
/// that changes while it runs.
#[test]
fn the_reactor_turns_tokios_runtime_in_poll_mode_alone() {
    let ran = app(ReactorMode::Poll).block_on(async |app: AppHandle| {
        let (reactors, here) = (app.reactors(), thread::current().id());
        let core = reactors.cores().first().unwrap();
        for _ in 0..3 {
            for mode in [
                ReactorMode::Poll,
                ReactorMode::Interrupt,
                ReactorMode::Adaptive,
            ] {
                drop(reactors.set_mode(core, mode));
                let wanted = mode == ReactorMode::Poll;
                // The reactor takes note when it has nothing to do.
                while (place().await == here) != wanted {
                    let nap = tokio::time::sleep;
                    Compat::new(async { nap(Duration::from_micros(200)).await }).await;
                }
            }
        }
    });
    ran.unwrap();
}

/// Its poller is no reason to wait for it, and what others have wrapped is turned by the helper
/// or by theirs.
#[test]
fn a_thread_that_has_wrapped_something_exits() {
    for mode in [ReactorMode::Poll, ReactorMode::Interrupt] {
        let ran = app(mode).block_on(async |app: AppHandle| {
            let workers = [0; 2].map(|_| app.thread().create().unwrap());
            let (met, meets) = futures::channel::oneshot::channel();
            let waits = async move {
                let waits = Compat::new(async { tokio::time::sleep(Duration::MAX).await });
                let meets = async { met.send(place().await).unwrap() };
                futures::join!(waits, meets);
            };
            let waits = workers[0].spawn(waits);
            meets.await.unwrap();
            workers[0].exit().await;
            assert!(waits.await.is_err());
            // Its poller has begun tokio's runtime, and another one goes on with it.
            workers[1].spawn(place()).await.unwrap();
            workers[1].exit().await;
            place().await;
        });
        ran.unwrap();
    }
}

/// With nothing wrapped for a while, nobody turns; what was kept of the context works all the same.
#[test]
fn a_handle_that_was_kept_works_when_nothing_is_wrapped() {
    for mode in [ReactorMode::Poll, ReactorMode::Interrupt] {
        let ran = app(mode).block_on(async |_app| {
            let handle = Compat::new(async { tokio::runtime::Handle::current() }).await;
            for pause in [0, 1, 150, 300] {
                corespun::time::sleep(Duration::from_millis(pause)).await;
                let nap = || tokio::time::sleep(Duration::from_millis(1));
                handle.spawn(async move { nap().await }).await.unwrap();
                place().await;
            }
        });
        ran.unwrap();
    }
}

/// The value may be polled, and dropped, where its runtime's OS thread is no more.
#[test]
fn what_is_wrapped_outlives_its_reactor() {
    let nap = || Box::pin(tokio::time::sleep(Duration::from_millis(20)));
    for mode in [ReactorMode::Poll, ReactorMode::Interrupt] {
        let values = thread::spawn(move || {
            app(mode)
                .block_on(async move |_app| [0; 2].map(|_| Compat::with(nap)))
                .unwrap()
        });
        let [waited, dropped] = values.join().unwrap();
        Runtime::new().unwrap().block_on(waited);
        drop(dropped);
    }
}

#[test]
fn a_panic_leaves_neither_the_context_nor_the_others_behind() {
    for runtime in runtimes() {
        runtime.block_on(async {
            let alone = Compat::new(async { tokio::spawn(async { panic!("a task") }).await });
            assert!(alone.await.unwrap_err().is_panic());
        });
        let caught = catch_unwind(AssertUnwindSafe(|| {
            runtime.block_on(Compat::new(async { panic!("a future") }))
        }));
        assert!(caught.is_err());
        assert!(tokio::runtime::Handle::try_current().is_err());
        let panics = runtime.spawn(Compat::new(async { panic!("a future in a task") }));
        assert!(runtime.block_on(panics).unwrap_err().is_panic());
        runtime.block_on(place());
    }
}

/// One that polls what is wrapped stays where it is.
#[test]
fn a_thread_that_has_wrapped_something_is_not_moved() {
    let cpu = cpu::available().unwrap().first().unwrap();
    let app = app(ReactorMode::Poll).lcores([(0, cpu), (1, cpu)]);
    let ran = app.block_on(async |app: AppHandle| {
        let thread = |core| {
            let thread = app.reactors().thread().cpumask(CpuSet::single(core));
            thread.create().unwrap()
        };
        let (free, bound) = (thread(1), thread(1));
        bound.spawn(place()).await.unwrap();
        for thread in [&free, &bound] {
            let moves = || {
                let thread = corespun::thread::SpdkThread::current().unwrap();
                thread.set_cpumask(&CpuSet::single(0)).unwrap();
            };
            thread.call(moves).await.unwrap();
        }
        while free.core() != Some(0) {
            corespun::task::yield_now().await;
        }
        for _ in 0..100 {
            bound.call(|| ()).await.unwrap();
        }
        assert_eq!(bound.core(), Some(1));
    });
    ran.unwrap();
}

/// A reactor is pinned; what is started there for others runs where all helpers do.
#[test]
fn helpers_of_a_pinned_reactor_run_where_its_library_says() {
    let ran = app(ReactorMode::Interrupt).block_on(async |_app| {
        assert_eq!(cpu::current_affinity().unwrap().iter().count(), 1);
        let blocking = corespun_compat::task::spawn_blocking(cpu::current_affinity);
        let helper = async { tokio::spawn(async { cpu::current_affinity() }).await };
        // The reactor may not have slept yet, and turn tokio's runtime itself.
        let here = thread::current().id();
        while place().await == here {
            corespun::time::sleep(Duration::from_micros(200)).await;
        }
        let seen = [blocking.await.unwrap(), Compat::new(helper).await.unwrap()];
        let library = corespun::thread::SpdkThread::current().unwrap().library();
        (library.helper_cpus().unwrap(), seen)
    });
    let (wanted, seen) = ran.unwrap();
    for affinity in seen {
        assert_eq!(affinity.unwrap(), wanted);
    }
}
