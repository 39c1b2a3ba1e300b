//! The sources of a SpdkThread itself: tasks, channels, locks, timers, walks, buffers.

use std::convert::Infallible;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use corespun::channel::IoDevice;
use corespun::iobuf::Iobuf;
use corespun::reactor::{ReactorMode, Reactors};
use corespun::sharded::Sharded;
use corespun::signal::{SignalKind, Signals, ctrl_c};
use corespun::stream::{PollerStream, poll_until};
use corespun::task::{self, JoinHandle, JoinSet};
use corespun::thread::{SpdkThread, ThreadLib};
use corespun::{local, mpsc, time};
use futures::StreamExt;
use nix::sys::signal::{Signal, raise};

use super::{ROUNDS, Source, source};

fn current() -> SpdkThread {
    SpdkThread::current().unwrap()
}

/// Reactors that nobody runs any more.
fn ended_reactors() -> Reactors {
    let built = Reactors::builder()
        .lcores([(0, 0)])
        .build(&ThreadLib::new());
    built.unwrap().0
}

/// A thread that has exited.
fn exited() -> SpdkThread {
    let mut runner = ThreadLib::new().thread().build().unwrap().attach();
    let thread = runner.handle();
    drop(thread.exit());
    while !runner.is_exited() {
        runner.poll(0, 0);
    }
    thread
}

/// Handles of tasks that have ended.
async fn ended() -> Vec<JoinHandle<()>> {
    let tasks: Vec<_> = (0..=ROUNDS).map(|_| task::spawn_local(async {})).collect();
    while !tasks.iter().all(JoinHandle::is_finished) {
        task::yield_now().await;
    }
    tasks
}

fn device() -> IoDevice<()> {
    IoDevice::<()>::builder()
        .register(|| Ok::<_, Infallible>(()))
        .unwrap()
}

pub(crate) const SOURCES: &[Source] = &[
    source!(
        ["task/budget.rs fn consume_budget"],
        {},
        task::consume_budget().await
    ),
    // Tasks.
    source!(
        ["task/join/handle.rs Future for JoinHandle"],
        {
            let mut tasks = ended().await;
        },
        tasks.pop().unwrap().await.unwrap()
    ),
    source!([], {}, task::spawn_eager(async {}).await.unwrap()),
    source!(
        [],
        {
            let mut tasks: JoinSet<()> =
                ended()
                    .await
                    .into_iter()
                    .fold(JoinSet::new(), |mut set, task| {
                        set.spawn_local(async { task.await.unwrap() });
                        set
                    });
        },
        assert!(tasks.join_next().await.is_some())
    ),
    source!(
        ["task/join_set.rs fn join_next"],
        {
            let mut none = JoinSet::<()>::new();
        },
        assert!(none.join_next().await.is_none())
    ),
    source!(
        ["task/join_set.rs fn poll_join_next"],
        {
            let mut none = JoinSet::<()>::new();
        },
        assert!(poll_fn(|cx| none.poll_join_next(cx)).await.is_none())
    ),
    source!(
        ["task/join_set.rs fn shutdown"],
        {
            let mut none = JoinSet::<()>::new();
        },
        none.shutdown().await
    ),
    source!(
        ["task/join_set.rs fn join_all"],
        {},
        JoinSet::<()>::new().join_all().await
    ),
    source!(
        ["task/scope.rs fn scope"],
        {},
        task::scope(async |_| ()).await
    ),
    source!(
        ["task/scope.rs fn try_scope"],
        {},
        task::try_scope(async |_| Err::<(), _>(()))
            .await
            .unwrap_err()
    ),
    source!(
        ["task/scope.rs Future for ScopedHandle"],
        {},
        task::scope(async |scope: task::Scope<'_>| scope.spawn(async {}).await.unwrap()).await
    ),
    source!(
        ["task/call.rs Future for Call"],
        {
            let gone = exited();
        },
        assert!(gone.call(|| ()).await.is_err())
    ),
    source!(
        ["task/call.rs Future for CallAsync"],
        {
            let gone = exited();
        },
        assert!(gone.call_async(async || ()).await.is_err())
    ),
    source!(
        [],
        {
            let here = current();
        },
        here.call(|| ()).await.unwrap()
    ),
    source!(
        ["task/blocking.rs Future for Blocking"],
        {},
        task::spawn_blocking(|| ()).await.unwrap()
    ),
    source!(
        ["task/movable.rs Future for MoveTo"],
        {
            let here = current();
        },
        task::move_to(&here).await.unwrap()
    ),
    source!(
        [],
        {
            let gone = exited();
        },
        assert!(task::move_to(&gone).await.is_err())
    ),
    source!(
        ["task/set_cpumask.rs Future for SetCpumask"],
        {
            let here = current();
        },
        _ = here.set_cpumask_async(&here.cpumask()).await
    ),
    source!(
        ["reactor/one.rs Future for ReactorCall"],
        {
            let gone = ended_reactors();
        },
        assert!(gone.call(0, || ()).await.is_err())
    ),
    source!(
        ["reactor/mode.rs Future for SetMode"],
        {
            let gone = ended_reactors();
        },
        assert!(gone.set_mode(0, ReactorMode::Poll).await.is_err())
    ),
    source!(
        ["reactor/scheduler/handle.rs Future for SchedulerReply"],
        {
            let gone = ended_reactors().schedulers();
        },
        assert!(gone.unset().await.is_err())
    ),
    source!(
        ["task/walk.rs fn walk_threads"],
        {
            let empty = ThreadLib::new();
        },
        empty.walk_threads(async |_| ()).await
    ),
    source!(
        ["task/walk.rs fn walk_threads_concurrent"],
        {
            let empty = ThreadLib::new();
        },
        empty.walk_threads_concurrent(async |_| ()).await
    ),
    source!(
        ["thread/exit/mod.rs Future for Exit"],
        {
            let gone = exited();
        },
        gone.exit().await
    ),
    // Channels and locks of the thread.
    source!(
        ["local/mpsc.rs fn recv"],
        {
            let (sender, mut receiver) = local::mpsc::unbounded();
        },
        {
            sender.send(()).unwrap();
            receiver.recv().await.unwrap()
        }
    ),
    source!(
        [],
        {
            let (_, mut closed) = local::mpsc::unbounded::<()>();
        },
        assert!(closed.recv().await.is_none())
    ),
    source!(
        ["local/mpsc.rs fn poll_recv"],
        {
            let (sender, mut receiver) = local::mpsc::unbounded();
        },
        {
            sender.send(()).unwrap();
            poll_fn(|cx| receiver.poll_recv(cx)).await.unwrap()
        }
    ),
    source!(
        ["local/mpsc.rs Stream for Receiver"],
        {
            let (sender, mut receiver) = local::mpsc::unbounded();
        },
        {
            sender.send(()).unwrap();
            receiver.next().await.unwrap()
        }
    ),
    source!(
        ["local/mpsc.rs fn send"],
        {
            let (sender, mut receiver) = local::mpsc::channel(1);
        },
        {
            sender.send(()).await.unwrap();
            receiver.try_recv().unwrap()
        }
    ),
    source!(
        [],
        {
            let (closed, _) = local::mpsc::channel(1);
        },
        assert!(closed.send(()).await.is_err())
    ),
    source!(["local/oneshot.rs Future for Receiver"], {}, {
        let (sender, receiver) = local::oneshot::channel();
        sender.send(()).unwrap();
        receiver.await.unwrap()
    }),
    source!([], {}, {
        let (_, receiver) = local::oneshot::channel::<()>();
        assert!(receiver.await.is_err())
    }),
    source!(
        ["local/oneshot.rs fn closed"],
        {
            let (mut sender, _) = local::oneshot::channel::<()>();
        },
        sender.closed().await
    ),
    source!(
        ["local/mutex.rs fn lock"],
        {
            let mutex = local::Mutex::new(());
        },
        drop(mutex.lock().await)
    ),
    source!(
        ["local/semaphore.rs Future for Acquire"],
        {
            let permits = local::Semaphore::new(1);
        },
        drop(permits.acquire(1).await.unwrap())
    ),
    source!(
        [],
        {
            let permits = Rc::new(local::Semaphore::new(1));
        },
        drop(permits.clone().acquire_owned(1).await.unwrap())
    ),
    source!(
        [],
        {
            let closed = local::Semaphore::new(1);
            closed.close();
        },
        assert!(closed.acquire(1).await.is_err())
    ),
    source!(
        ["local/notify.rs Future for Notified"],
        {
            let notify = local::Notify::new();
        },
        {
            notify.notify_one();
            notify.notified().await
        }
    ),
    // Channels between threads.
    source!(
        ["mpsc.rs fn recv"],
        {
            let (sender, mut receiver) = mpsc::channel(4);
        },
        {
            sender.try_send(()).unwrap();
            receiver.recv().await.unwrap()
        }
    ),
    source!(
        [],
        {
            let (_, mut closed) = mpsc::channel::<()>(4);
        },
        assert!(closed.recv().await.is_none())
    ),
    source!(
        ["mpsc.rs fn poll_recv"],
        {
            let (sender, mut receiver) = mpsc::channel(4);
        },
        {
            sender.try_send(()).unwrap();
            poll_fn(|cx| receiver.poll_recv(cx)).await.unwrap()
        }
    ),
    source!(
        ["mpsc.rs Stream for Receiver"],
        {
            let (sender, mut receiver) = mpsc::channel(4);
        },
        {
            sender.try_send(()).unwrap();
            receiver.next().await.unwrap()
        }
    ),
    source!(
        ["mpsc.rs fn send"],
        {
            let (sender, _receiver) = mpsc::channel(ROUNDS * 2);
        },
        sender.send(()).await.unwrap()
    ),
    source!(
        [],
        {
            let (closed, _) = mpsc::channel(1);
        },
        assert!(closed.send(()).await.is_err())
    ),
    // Values per thread.
    source!(
        ["sharded.rs fn start"],
        {},
        _ = Sharded::<()>::start([], async |_| ()).await
    ),
    source!(
        ["sharded.rs fn invoke_on", "sharded.rs fn invoke_on_all"],
        {
            let shards = Sharded::start([&current()], async |_| ()).await.unwrap();
        },
        {
            shards.invoke_on(0, |()| ()).await.unwrap();
            shards.invoke_on_all(|()| ()).await.unwrap()
        }
    ),
    source!(
        ["sharded.rs fn invoke_on_async"],
        {
            let shards = Sharded::start([&current()], async |_| ()).await.unwrap();
        },
        shards.invoke_on_async(0, async |_| ()).await.unwrap()
    ),
    source!(
        ["sharded.rs fn map_reduce"],
        {
            let none = Sharded::<()>::start([], async |_| ()).await.unwrap();
        },
        none.map_reduce(|()| (), (), |(), ()| ()).await.unwrap()
    ),
    source!(
        ["sharded.rs fn stop"],
        {
            let shards = Sharded::start([&current()], async |_| ()).await.unwrap();
        },
        shards.stop().await
    ),
    // Timers and poller streams.
    source!(
        ["time/sleep.rs Future for Sleep"],
        {},
        time::sleep(Duration::ZERO).await
    ),
    source!(
        ["time/timeout.rs Future for Timeout"],
        {},
        assert!(
            time::timeout(Duration::ZERO, std::future::pending::<()>())
                .await
                .is_err()
        )
    ),
    source!(
        ["time/interval.rs fn tick"],
        {
            let mut burst = time::interval_at(1, Duration::from_nanos(1));
        },
        burst.tick().await
    ),
    source!(
        ["time/interval.rs fn poll_tick"],
        {
            let mut burst = time::interval_at(1, Duration::from_nanos(1));
        },
        poll_fn(|cx| burst.poll_tick(cx)).await
    ),
    source!(
        ["time/interval.rs Stream for Interval"],
        {
            let mut burst = time::interval_at(1, Duration::from_nanos(1));
        },
        burst.next().await
    ),
    source!(
        ["stream/poller_stream.rs Stream for PollerStream"],
        {
            let mut items = PollerStream::<()>::builder()
                .capacity(ROUNDS)
                .register(|| Some(()))
                .unwrap();
            while items.queued() <= ROUNDS / 2 {
                task::yield_now().await;
            }
        },
        items.next().await.unwrap()
    ),
    source!(
        ["stream/send_stream.rs Stream for SendPollerStream"],
        {
            let mut items = PollerStream::<()>::builder()
                .capacity(ROUNDS)
                .register_send(|| Some(()))
                .unwrap();
            for _ in 0..2 * ROUNDS {
                task::yield_now().await;
            }
        },
        items.next().await.unwrap()
    ),
    source!(
        [
            "stream/poll_until.rs Future for PollUntil",
            "stream/poll_until.rs fn poll_until"
        ],
        {},
        poll_until(|| Poll::Ready(())).await
    ),
    // Devices and buffers.
    source!(
        ["channel/walk_async.rs fn walk_channels"],
        {
            let device = device();
        },
        device
            .walk_channels(async |_| Ok::<_, Infallible>(()))
            .await
            .unwrap()
    ),
    source!(
        ["channel/walk_async.rs fn walk_channels_concurrent"],
        {
            let device = device();
        },
        device
            .walk_channels_concurrent(async |_| Ok::<_, Infallible>(()))
            .await
            .unwrap()
    ),
    source!(
        ["channel/device.rs Future for Unregister"],
        {},
        device().unregister().unwrap().await.unwrap()
    ),
    source!(
        ["iobuf/queue.rs Future for GetBuf"],
        {
            let iobuf = Iobuf::builder()
                .small(64, 4096)
                .large(8, 8192)
                .build()
                .unwrap();
            iobuf.register_module("test").unwrap();
            let channel = iobuf.channel("test", 16, 2).unwrap();
        },
        drop(channel.get(1).await.unwrap())
    ),
    source!(
        ["iobuf/queue.rs Future for GetMany"],
        {
            let iobuf = Iobuf::builder()
                .small(64, 4096)
                .large(8, 8192)
                .build()
                .unwrap();
            iobuf.register_module("test").unwrap();
            let channel = iobuf.channel("test", 16, 2).unwrap();
        },
        drop(channel.get_many(1, 3).await.unwrap())
    ),
    source!(["iobuf/pool.rs Future for Finish"], {}, {
        let iobuf = Iobuf::builder()
            .small(64, 4096)
            .large(8, 8192)
            .build()
            .unwrap();
        iobuf.finish().unwrap().await.unwrap()
    }),
    source!(
        [
            "signal/mod.rs fn recv",
            "signal/mod.rs fn poll_recv",
            "signal/mod.rs Stream for Signals"
        ],
        {
            let mut signals = Signals::new([SignalKind::WINDOW_CHANGE]).unwrap();
        },
        {
            window_changed();
            signals.next().await.unwrap();
            window_changed();
            signals.recv().await
        }
    ),
    source!(
        ["signal/mod.rs Future for CtrlC"],
        {
            // So that it ends no process whose future is gone.
            let _interrupts = Signals::new([SignalKind::INTERRUPT]).unwrap();
        },
        {
            let next = ctrl_c();
            raise(Signal::SIGINT).unwrap();
            std::thread::sleep(Duration::from_micros(200));
            next.await.unwrap()
        }
    ),
];

/// Refused at once where the signals' own thread cannot start.
pub(crate) const REFUSED_SIGNALS: &[Source] = &[source!([], {}, assert!(ctrl_c().await.is_err()))];

/// What this process ignores unless it listens for it. By the time this has returned it has most
/// likely been delivered.
fn window_changed() {
    raise(Signal::SIGWINCH).unwrap();
    std::thread::sleep(Duration::from_micros(200));
}
