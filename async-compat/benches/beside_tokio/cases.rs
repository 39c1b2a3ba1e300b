// The cases. Each makes a runtime, runs once to warm it, and says how long the second run took.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::tokio;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::{JoinHandle, yield_now};

fn runtime(workers: usize) -> Runtime {
    let mut builder = match workers {
        0 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    let built = builder.worker_threads(workers.max(1)).enable_all().build();
    built.expect("a runtime")
}

/// Times the second of two runs.
fn second(mut run: impl FnMut()) -> Duration {
    run();
    let begin = Instant::now();
    run();
    begin.elapsed()
}

/// Times a future that is the runtime's root.
fn in_root<F: Future>(workers: usize, run: impl Fn() -> F) -> Duration {
    let runtime = runtime(workers);
    second(|| {
        runtime.block_on(run());
    })
}

/// Times a future in a task.
fn in_task<F>(workers: usize, run: impl Fn() -> F) -> Duration
where
    F: Future<Output = ()> + Send + 'static,
{
    let runtime = runtime(workers);
    second(|| {
        runtime
            .block_on(runtime.spawn(run()))
            .expect("it does not panic")
    })
}

async fn all(tasks: Vec<JoinHandle<()>>) {
    for task in tasks {
        task.await.expect("it does not panic");
    }
}

/// Counts down; the last one says so.
struct Countdown {
    left: AtomicU32,
    done: std::sync::Mutex<Option<oneshot::Sender<()>>>,
}

impl Countdown {
    fn new(left: u32) -> (Arc<Self>, oneshot::Receiver<()>) {
        let (done, ended) = oneshot::channel();
        let countdown = Countdown {
            left: AtomicU32::new(left),
            done: std::sync::Mutex::new(Some(done)),
        };
        (Arc::new(countdown), ended)
    }

    fn one(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            let done = self.done.lock().expect("nobody panics").take();
            done.expect("once").send(()).expect("it is waited for");
        }
    }
}

async fn spawn_and_wait(ops: u32) {
    let (countdown, ended) = Countdown::new(ops);
    for _ in 0..ops {
        let countdown = countdown.clone();
        tokio::spawn(async move { countdown.one() });
    }
    ended.await.expect("the last one says so");
}

/// The future of `block_on` spawns.
pub(crate) fn spawn_many_local(workers: usize, ops: u32) -> Duration {
    in_root(workers, || spawn_and_wait(ops))
}

/// A task spawns.
pub(crate) fn spawn_many_from_a_task(workers: usize, ops: u32) -> Duration {
    in_task(workers, move || spawn_and_wait(ops))
}

/// A foreign OS thread spawns on a runtime that has nothing to do, and all are joined.
pub(crate) fn spawn_many_remote_idle(workers: usize, ops: u32) -> Duration {
    let runtime = runtime(workers);
    second(|| {
        let tasks = (0..ops).map(|_| runtime.spawn(async {})).collect();
        runtime.block_on(all(tasks));
    })
}

/// The same, on a runtime whose workers are kept busy by a task that yields.
pub(crate) fn spawn_many_remote_busy(workers: usize, ops: u32) -> Duration {
    let runtime = runtime(workers);
    let stop = Arc::new(AtomicU32::new(0));
    for _ in 0..workers.max(1) {
        let stop = stop.clone();
        runtime.spawn(async move {
            while stop.load(Ordering::Relaxed) == 0 {
                yield_now().await;
            }
        });
    }
    let time = second(|| {
        let tasks = (0..ops).map(|_| runtime.spawn(async {})).collect();
        runtime.block_on(all(tasks));
    });
    stop.store(1, Ordering::Relaxed);
    time
}

/// Two hundred tasks that give way.
pub(crate) fn yield_many(workers: usize, ops: u32) -> Duration {
    const TASKS: u32 = 200;
    in_task(workers, move || async move {
        let yields = move || async move {
            for _ in 0..ops / TASKS {
                yield_now().await;
            }
        };
        let tasks = (0..TASKS.min(ops)).map(|_| tokio::spawn(yields()));
        all(tasks.collect()).await;
    })
}

/// Tasks that each spawn a second one and exchange two values with it.
pub(crate) fn ping_pong(workers: usize, ops: u32) -> Duration {
    in_task(workers, move || async move {
        let (countdown, ended) = Countdown::new(ops);
        for _ in 0..ops {
            let countdown = countdown.clone();
            tokio::spawn(async move {
                let (ping, pinged) = oneshot::channel();
                let (pong, ponged) = oneshot::channel();
                tokio::spawn(async move {
                    pinged.await.expect("a ping");
                    pong.send(()).expect("it is waited for");
                });
                ping.send(()).expect("it is waited for");
                ponged.await.expect("a pong");
                countdown.one();
            });
        }
        ended.await.expect("the last one says so");
    })
}

/// Each task spawns the next.
pub(crate) fn chained_spawn(workers: usize, ops: u32) -> Duration {
    fn link(left: u32, done: oneshot::Sender<()>) {
        match left {
            0 => done.send(()).expect("it is waited for"),
            left => drop(tokio::spawn(async move { link(left - 1, done) })),
        }
    }
    in_task(workers, move || async move {
        let (done, ended) = oneshot::channel();
        link(ops, done);
        ended.await.expect("the last one says so");
    })
}

/// Reading the clock.
pub(crate) fn time_now(workers: usize, ops: u32) -> Duration {
    in_task(workers, move || async move {
        for _ in 0..ops {
            black_box(tokio::time::Instant::now());
        }
    })
}

/// A limit on what is ready after one yield, in a hundred tasks.
pub(crate) fn timeout(workers: usize, ops: u32) -> Duration {
    in_task(workers, move || async move {
        let limits = move || async move {
            for _ in 0..ops / 100 {
                let limited = tokio::time::timeout(Duration::from_secs(3), yield_now());
                limited.await.expect("it ends in time");
            }
        };
        all((0..100).map(|_| tokio::spawn(limits())).collect()).await;
    })
}

/// Limits that pass, all at once.
pub(crate) fn timeout_that_passes(workers: usize, ops: u32) -> Duration {
    in_task(workers, move || async move {
        let passes = || async {
            let never = std::future::pending::<()>();
            let limited = tokio::time::timeout(Duration::from_millis(3), never);
            limited.await.expect_err("it never ends");
        };
        all((0..ops).map(|_| tokio::spawn(passes())).collect()).await;
    })
}

/// One task sends and receives.
pub(crate) fn sync_mpsc_uncontended(workers: usize, ops: u32) -> Duration {
    in_task(workers, move || async move {
        let (sender, mut receiver) = mpsc::channel::<u32>(1000);
        for round in 0..ops.div_ceil(1000) {
            for value in 0..1000 {
                sender.send(value + round).await.expect("it is open");
            }
            for _ in 0..1000 {
                black_box(receiver.recv().await);
            }
        }
    })
}

async fn five_senders(ops: u32, places: usize) {
    let (sender, mut receiver) = mpsc::channel::<u32>(places);
    for _ in 0..5 {
        let sender = sender.clone();
        tokio::spawn(async move {
            for value in 0..ops / 5 {
                sender.send(value).await.expect("it is open");
            }
        });
    }
    for _ in 0..ops / 5 * 5 {
        black_box(receiver.recv().await);
    }
}

/// Five tasks send, a sixth one receives.
pub(crate) fn sync_mpsc_contended(workers: usize, ops: u32) -> Duration {
    in_task(workers, move || five_senders(ops, 1_000_000))
}

/// The same through a hundred places.
pub(crate) fn sync_mpsc_contended_full(workers: usize, ops: u32) -> Duration {
    in_task(workers, move || five_senders(ops, 100))
}

/// The same without a limit.
pub(crate) fn sync_mpsc_unbounded(workers: usize, ops: u32) -> Duration {
    in_task(workers, move || async move {
        let (sender, mut receiver) = mpsc::unbounded_channel::<u32>();
        for _ in 0..5 {
            let sender = sender.clone();
            tokio::spawn(async move {
                for value in 0..ops / 5 {
                    sender.send(value).expect("it is open");
                }
            });
        }
        for _ in 0..ops / 5 * 5 {
            black_box(receiver.recv().await);
        }
    })
}

/// Making a channel.
pub(crate) fn sync_mpsc_create(workers: usize, ops: u32) -> Duration {
    in_task(workers, move || async move {
        for _ in 0..ops {
            black_box(mpsc::channel::<u32>(100));
        }
    })
}

/// Requests to an actor that answers each through a `oneshot`.
pub(crate) fn sync_mpsc_oneshot(workers: usize, ops: u32) -> Duration {
    in_task(workers, move || async move {
        let (sender, mut requests) = mpsc::channel::<oneshot::Sender<()>>(10);
        tokio::spawn(async move {
            while let Some(reply) = requests.recv().await {
                reply.send(()).expect("it is waited for");
            }
        });
        for _ in 0..ops {
            let (reply, replied) = oneshot::channel();
            sender.send(reply).await.expect("it is open");
            replied.await.expect("a reply");
        }
    })
}

async fn six_with_permits(ops: u32, permits: usize) {
    let semaphore = Arc::new(Semaphore::new(permits));
    let tasks = (0..6).map(|_| {
        let semaphore = semaphore.clone();
        tokio::spawn(async move {
            for _ in 0..ops / 6 {
                let permit = semaphore.acquire().await.expect("it is open");
                yield_now().await;
                drop(permit);
            }
        })
    });
    all(tasks.collect()).await;
}

/// Six tasks, ten permits.
pub(crate) fn sync_semaphore_uncontended(workers: usize, ops: u32) -> Duration {
    in_task(workers, move || six_with_permits(ops, 10))
}

/// Six tasks, five permits.
pub(crate) fn sync_semaphore_contended(workers: usize, ops: u32) -> Duration {
    in_task(workers, move || six_with_permits(ops, 5))
}

/// A hundred tasks see each change.
pub(crate) fn sync_watch(workers: usize, ops: u32) -> Duration {
    const WATCHERS: u32 = 100;
    in_task(workers, move || async move {
        let changes = ops / WATCHERS;
        let (sender, receiver) = watch::channel(0);
        let (seen, mut all_seen) = mpsc::channel::<()>(WATCHERS as usize);
        for _ in 0..WATCHERS {
            let (mut receiver, seen) = (receiver.clone(), seen.clone());
            tokio::spawn(async move {
                while *receiver.borrow_and_update() < changes {
                    seen.send(()).await.expect("it is open");
                    receiver.changed().await.expect("it is open");
                }
            });
        }
        for change in 1..=changes {
            for _ in 0..WATCHERS {
                all_seen.recv().await;
            }
            sender.send_replace(change);
        }
    })
}

/// 64 KiB through a pipe in memory.
pub(crate) fn copy(workers: usize, ops: u32) -> Duration {
    in_task(workers, move || async move {
        let (mut one, mut other) = tokio::io::duplex(16 << 10);
        let reads = tokio::spawn(async move {
            let mut sink = tokio::io::sink();
            tokio::io::copy(&mut other, &mut sink)
                .await
                .expect("copied");
        });
        let mut source = tokio::io::repeat(7).take(u64::from(ops) * (64 << 10));
        tokio::io::copy(&mut source, &mut one)
            .await
            .expect("copied");
        drop(one);
        reads.await.expect("it does not panic");
    })
}

/// 64 KiB through a proxy of two TCP connections, and back.
pub(crate) fn copy_bidirectional_tcp(workers: usize, ops: u32) -> Duration {
    const LEN: usize = 64 << 10;
    in_task(workers, move || async move {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let address = listener.local_addr().expect("its address");
        let echo = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let behind = echo.local_addr().expect("its address");
        tokio::spawn(async move {
            let (mut socket, _) = echo.accept().await.expect("a connection");
            let (mut reader, mut writer) = socket.split();
            tokio::io::copy(&mut reader, &mut writer)
                .await
                .expect("echoed");
        });
        tokio::spawn(async move {
            let (mut front, _) = listener.accept().await.expect("a connection");
            let mut back = tokio::net::TcpStream::connect(behind)
                .await
                .expect("a connection");
            let copied = tokio::io::copy_bidirectional(&mut front, &mut back).await;
            copied.expect("copied");
        });
        let client = tokio::net::TcpStream::connect(address)
            .await
            .expect("a connection");
        let (mut reader, mut writer) = client.into_split();
        let writes = tokio::spawn(async move {
            for _ in 0..ops {
                writer.write_all(&[7; LEN]).await.expect("written");
            }
        });
        let mut buf = vec![0; LEN];
        for _ in 0..ops {
            reader.read_exact(&mut buf).await.expect("read");
        }
        writes.await.expect("it does not panic");
    })
}

/// 4 KiB of `/dev/zero`.
pub(crate) fn fs_read_zeros(workers: usize, ops: u32) -> Duration {
    in_task(workers, move || async move {
        let mut zeros = tokio::fs::File::open("/dev/zero")
            .await
            .expect("it is there");
        let mut buf = vec![0; 4 << 10];
        for _ in 0..ops {
            zeros.read_exact(&mut buf).await.expect("read");
        }
    })
}

/// 4 KiB written to a file, and read back.
pub(crate) fn fs_write_read(workers: usize, ops: u32) -> Duration {
    in_task(workers, move || async move {
        let mut file = tokio::fs::File::from_std(tempfile::tempfile().expect("a file"));
        let mut buf = vec![7; 4 << 10];
        for _ in 0..ops {
            file.write_all(&buf).await.expect("written");
        }
        file.rewind().await.expect("rewound");
        for _ in 0..ops {
            file.read_exact(&mut buf).await.expect("read");
        }
    })
}
