//! Futures and sockets of real tokio on our runtimes, through `Compat`.
#![cfg(feature = "compat")]

use std::time::{Duration, Instant};

use corespun_compat::compat::Compat;
use corespun_compat::runtime::{Builder, Runtime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn runtimes() -> [Runtime; 2] {
    [
        Builder::new_current_thread().enable_all().build().unwrap(),
        Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap(),
    ]
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
    let (sender, looked) = std::sync::mpsc::channel();
    drop(Compat::new(Looks(sender)));
    assert!(looked.recv().unwrap());
}
