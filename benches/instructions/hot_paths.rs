//! The hot paths that are counted: each does its operation [`ROUNDS`] times on threads that were
//! made, and warmed up, before. One OS thread and a virtual clock, so that a count repeats.

mod io;

use std::cell::{Cell, RefCell};
use std::hint::black_box;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use corespun::app::{App, AppHandle};
use corespun::channel::IoDevice;
use corespun::clock::VirtualClock;
use corespun::cpu::{self, CpuSet};
use corespun::reactor::ReactorMode;
use corespun::task::{JoinHandle, spawn_local, yield_now};
use corespun::thread::{Poller, SpdkThread, ThreadLib, ThreadRunner};
use corespun::time::sleep;

pub use io::{WithSockets, socket_round_trip, with_sockets};

/// How often a counted path is gone.
pub const ROUNDS: usize = 1_000;

/// A thread polled by hand, and its clock.
pub struct Bench {
    runner: ThreadRunner,
    handle: SpdkThread,
    clock: VirtualClock,
}

impl Bench {
    fn new() -> Self {
        let clock = VirtualClock::new(1_000_000_000);
        let library = ThreadLib::builder().clock(clock.clock()).build();
        let thread = library.thread().build().expect("an id");
        let mut runner = thread.attach();
        runner.poll(0, 0);
        Bench {
            handle: runner.handle(),
            runner,
            clock,
        }
    }

    fn poll(&mut self) {
        let now = self.clock.now();
        self.runner.poll(0, now);
    }

    fn run<T: 'static>(&mut self, task: JoinHandle<T>) {
        while !task.is_finished() {
            self.poll();
        }
    }
}

/// A thread without anything.
pub fn idle() -> Bench {
    Bench::new()
}

/// Polls that find nothing.
pub fn idle_poll(mut bench: Bench) -> Bench {
    (0..ROUNDS).for_each(|_| bench.poll());
    bench
}

/// Polls with one active poller.
pub fn poller_poll(mut bench: Bench) -> Bench {
    (0..ROUNDS).for_each(|_| bench.poll());
    bench
}

/// A thread with an active poller.
pub fn with_poller() -> Bench {
    let mut bench = Bench::new();
    let poller = bench.runner.enter(|| Poller::active(|| black_box(())));
    poller.expect("a running thread").detach();
    bench.poll();
    bench
}

/// Messages to the thread from outside of it, each run by a poll of its own.
pub fn remote_send_run(mut bench: Bench) -> Bench {
    for n in 0..ROUNDS {
        let sent = bench.handle.send_msg(move || _ = black_box(n));
        sent.expect("a running thread");
        bench.poll();
    }
    bench
}

/// Messages that the thread sends to itself, in batches of 8.
pub fn self_messages(mut bench: Bench) -> Bench {
    for _ in 0..ROUNDS / 8 {
        let handle = bench.handle.clone();
        bench.runner.enter(|| {
            for n in 0..8 {
                handle
                    .send_msg(move || _ = black_box(n))
                    .expect("a running thread");
            }
        });
        bench.poll();
    }
    bench
}

/// Tasks spawned and joined by a task, one at a time.
pub fn spawn_join(mut bench: Bench) -> Bench {
    let all = bench.runner.enter(|| {
        spawn_local(async {
            for n in 0..ROUNDS {
                black_box(spawn_local(async move { n }).await.expect("it ends"));
            }
        })
    });
    bench.run(all);
    bench
}

/// A task that yields, alone.
pub fn yields(mut bench: Bench) -> Bench {
    let task = bench.runner.enter(|| {
        spawn_local(async {
            for _ in 0..ROUNDS {
                yield_now().await;
            }
        })
    });
    bench.run(task);
    bench
}

/// Two tasks that wake each other.
pub fn local_wake(mut bench: Bench) -> Bench {
    let turn = Rc::new(Cell::new(0));
    let wakers = Rc::new([RefCell::new(None), RefCell::new(None)]);
    let player = |me: usize| {
        let (turn, wakers) = (turn.clone(), wakers.clone());
        async move {
            for _ in 0..ROUNDS {
                std::future::poll_fn(|cx| {
                    if turn.get() == me {
                        return Poll::Ready(());
                    }
                    *wakers[me].borrow_mut() = Some(cx.waker().clone());
                    Poll::Pending
                })
                .await;
                turn.set(1 - me);
                let other: Option<Waker> = wakers[1 - me].borrow_mut().take();
                other.into_iter().for_each(Waker::wake);
            }
        }
    };
    let [first, second] = bench
        .runner
        .enter(|| [spawn_local(player(0)), spawn_local(player(1))]);
    bench.run(first);
    bench.run(second);
    bench
}

/// A timer armed and fired among others that wait longer.
pub fn timer_insert_fire(mut bench: Bench) -> Bench {
    let task = bench.runner.enter(|| {
        spawn_local(async {
            for _ in 0..ROUNDS {
                sleep(Duration::from_micros(1)).await;
            }
        })
    });
    while !task.is_finished() {
        bench.poll();
        bench.clock.advance_by(Duration::from_micros(1));
    }
    bench
}

/// A thread on which 1,000 tasks sleep for a day.
pub fn with_sleepers() -> Bench {
    let mut bench = Bench::new();
    bench.runner.enter(|| {
        for _ in 0..1_000 {
            drop(spawn_local(sleep(Duration::from_secs(86_400))));
        }
    });
    for _ in 0..1_000 {
        bench.poll();
    }
    bench
}

/// A thread, and a device of which it holds a channel.
pub struct WithDevice {
    device: IoDevice<u32>,
    bench: Bench,
}

/// A thread that holds a channel of a device.
pub fn with_channel() -> WithDevice {
    let mut bench = Bench::new();
    let device = bench.runner.enter(|| {
        let device = IoDevice::builder().register(|| Ok::<_, std::io::Error>(7));
        let device = device.expect("a free key");
        std::mem::forget(device.channel().expect("it is registered"));
        device
    });
    bench.poll();
    WithDevice { device, bench }
}

/// Channels got that are there, and put.
pub fn channel_get_put(mut with: WithDevice) -> WithDevice {
    let WithDevice { device, bench } = &mut with;
    bench.runner.enter(|| {
        for _ in 0..ROUNDS {
            black_box(device.channel().expect("it is registered"));
        }
    });
    with
}

/// Channels made and destroyed, with the poll that this takes.
pub fn channel_create_destroy(mut with: WithDevice) -> WithDevice {
    let WithDevice { device, bench } = &mut with;
    for _ in 0..ROUNDS {
        bench.runner.enter(|| {
            drop(black_box(device.channel().expect("it is registered")));
        });
        bench.poll();
    }
    with
}

/// A thread that knows a device.
pub fn with_device() -> WithDevice {
    let mut bench = Bench::new();
    let device = bench
        .runner
        .enter(|| IoDevice::builder().register(|| Ok::<_, std::io::Error>(7)));
    let device = device.expect("a free key");
    bench.poll();
    WithDevice { device, bench }
}

/// A poll in which all timed pollers are due, and armed again.
pub fn timers_expire(mut bench: Bench) -> Bench {
    bench.clock.advance_by(Duration::from_millis(1_100));
    bench.poll();
    bench
}

/// A thread with 1,000 timed pollers of different periods, which have all run once.
pub fn with_timed_pollers() -> Bench {
    let mut bench = Bench::new();
    for n in 0..ROUNDS as u64 {
        let period = Duration::from_micros(1_000_000 + n * 7919 % 100_000);
        let poller = bench
            .runner
            .enter(|| Poller::timed(period, move || _ = black_box(n)));
        poller.expect("a running thread").detach();
    }
    timers_expire(bench)
}

/// A call to a thread that is dormant, which wakes it, and the turns until it is so again:
/// with the start and the end of an app.
pub fn dormancy(clock: VirtualClock) {
    let core = cpu::available().expect("the cores of this process").first();
    let app = App::builder()
        .cores(CpuSet::single(core.expect("a core")))
        .mode(ReactorMode::Poll)
        .clock(clock.clock())
        .handle_signals(false);
    let main = async move |app: AppHandle| {
        let thread = app.thread().create().expect("room for it");
        for _ in 0..ROUNDS {
            thread.call(|| ()).await.expect("it runs");
            // After so many idle polls in so long a time it is dormant; what gives way
            // when a poll was as long does so for a turn of the reactor.
            for _ in 0..6 {
                clock.advance_by(Duration::from_micros(10));
                yield_now().await;
            }
        }
    };
    app.block_on(main).expect("only its end stops it");
}

/// A clock for an app.
pub fn app_clock() -> VirtualClock {
    VirtualClock::new(1_000_000_000)
}
