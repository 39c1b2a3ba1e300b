//! Crates that ask for no runtime in particular, on corespun's: opendal's executor, embedded-io's
//! traits, and an executor of another crate inside of one of our tasks.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::runtimes;
use corespun_compat::net::UnixStream;
use corespun_compat::runtime::Handle;
use embedded_io_adapters::tokio_1::FromTokio;
use opendal_core::raw::BoxedStaticFuture;
use opendal_core::{Execute, Executor, Operator, services};

/// Counts what it passes on.
struct Counted(Handle, Arc<AtomicUsize>);

impl Execute for Counted {
    fn execute(&self, task: BoxedStaticFuture<()>) {
        self.1.fetch_add(1, Ordering::Relaxed);
        Execute::execute(&self.0, task);
    }
}

#[test]
fn opendal_runs_its_tasks_here() {
    for runtime in runtimes() {
        let tasks = Arc::new(AtomicUsize::new(0));
        let executor = Counted(runtime.handle().clone(), tasks.clone());
        let data: Vec<u8> = (0..1u32 << 20).map(|at| (at * 7 % 251) as u8).collect();
        runtime.block_on(async {
            let operator = Operator::new(services::Memory::default()).unwrap().finish();
            operator.update_executor(|_| Executor::with(executor));
            operator.write("data", data.clone()).await.unwrap();
            // In pieces, each of them a task.
            let read = operator.read_with("data").concurrent(4).chunk(64 << 10);
            assert!(read.await.unwrap().to_vec() == data);
        });
        assert!(tasks.load(Ordering::Relaxed) >= 16);
        let (sender, id) = futures::channel::oneshot::channel();
        let tells = async { sender.send(corespun_compat::task::try_id()).unwrap() };
        Execute::execute(runtime.handle(), Box::pin(tells));
        let id = runtime.block_on(id).unwrap();
        assert!(id.is_some(), "it is a task of the runtime");
    }
}

#[test]
fn a_socket_has_embedded_ios_traits() {
    use embedded_io_async::{Read, Write};

    async fn echo(mut stream: impl Read + Write) {
        let mut byte = [0];
        while stream.read(&mut byte).await.unwrap() > 0 {
            stream.write_all(&byte).await.unwrap();
            stream.flush().await.unwrap();
        }
    }
    for runtime in runtimes() {
        runtime.block_on(async {
            let (one, other) = UnixStream::pair().unwrap();
            let echo = corespun_compat::spawn(async { echo(FromTokio::new(other)).await });
            let mut one = FromTokio::new(one);
            let mut back = [0; 4];
            one.write_all(b"ping").await.unwrap();
            one.read_exact(&mut back).await.unwrap();
            assert_eq!(&back, b"ping");
            drop(one);
            echo.await.unwrap();
        });
    }
}

/// Crates that want an `async_executor::Executor` are given one that a task of ours runs.
#[test]
fn an_executor_of_another_crate_runs_in_a_task() {
    for runtime in runtimes() {
        let executor = Arc::new(async_executor::Executor::new());
        let runs = executor.clone();
        let runner = runtime.spawn(async move { runs.run(std::future::pending::<()>()).await });
        let sleeps = async || {
            corespun_compat::time::sleep(std::time::Duration::from_millis(1)).await;
            42
        };
        let tasks: Vec<_> = (0..10).map(|_| executor.spawn(sleeps())).collect();
        let sum = runtime.block_on(async {
            let mut sum = 0;
            for task in tasks {
                sum += task.await;
            }
            sum
        });
        assert_eq!(sum, 420);
        runner.abort();
    }
}
