//! Threads that have nothing to do are polled by nobody: whatever gives one
//! something to do rouses it, in every mode and on either I/O back-end, and nothing
//! else is different for it.

use std::any::Any;
use std::cell::RefCell;
use std::convert::Infallible;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use corespun::app::AppHandle;
use corespun::channel::IoDevice;
use corespun::cpu::CpuSet;
use corespun::interrupt::{FdOptions, Readiness};
use corespun::io::DriverConfig;
use corespun::reactor::ReactorMode;
use corespun::task::LocalSpawner;
use corespun::thread::{Activity, Interrupt, Poller, SpdkThread};
use corespun::{local, task, time};
use futures::AsyncReadExt;
use harness::io::backends;
use harness::reactors::{app, must_end, stats};
use nix::sys::eventfd::{EfdFlags, EventFd};

const MODES: [ReactorMode; 3] = [
    ReactorMode::Poll,
    ReactorMode::Adaptive,
    ReactorMode::Interrupt,
];

fn thread_on(app: &AppHandle, core: usize) -> SpdkThread {
    let cpumask = CpuSet::single(core);
    app.thread().cpumask(cpumask).create().unwrap()
}

async fn until(mut happened: impl FnMut() -> bool) {
    while !happened() {
        time::sleep(Duration::from_millis(1)).await;
    }
}

/// Waits until nobody has polled `thread` for a while.
async fn dormant(thread: &SpdkThread) {
    let mut last = 0;
    let mut quiet = 0;
    until(|| {
        let tick = thread.last_tick();
        quiet = if tick == last { quiet + 1 } else { 0 };
        last = tick;
        quiet == 3
    })
    .await;
}

thread_local! {
    /// What another SpdkThread of the same OS thread has in its hands.
    static HELD: RefCell<Vec<Box<dyn Any>>> = const { RefCell::new(Vec::new()) };
}

fn hold(value: impl Any) {
    HELD.with_borrow_mut(|held| held.push(Box::new(value)));
}

fn held<T: Any>() -> T {
    let value = HELD.with_borrow_mut(Vec::pop).unwrap();
    *value.downcast().unwrap()
}

/// What a way is tried on: two threads of one reactor, of which the first is
/// dormant when something is made for it.
struct Pair {
    app: AppHandle,
    sleeper: SpdkThread,
    neighbour: SpdkThread,
    /// How often the sleeper has done what it was to be roused for.
    done: Arc<AtomicUsize>,
}

impl Pair {
    fn new(app: &AppHandle) -> Self {
        Pair {
            app: app.clone(),
            sleeper: thread_on(app, 1),
            neighbour: thread_on(app, 1),
            done: Arc::default(),
        }
    }

    fn doing(&self) -> impl Fn() + Clone + Send + Sync + 'static {
        let done = self.done.clone();
        let sleeper = self.sleeper.clone();
        move || {
            assert_eq!(SpdkThread::current().as_ref(), Some(&sleeper));
            done.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Runs `prepare` on the sleeper, has that go dormant, and then runs `act` on
    /// the neighbour.
    async fn by_neighbour<P, A>(&self, prepare: P, act: A)
    where
        P: FnOnce() + Send + 'static,
        A: FnOnce() + Send + 'static,
    {
        self.sleeper.call(prepare).await.unwrap();
        dormant(&self.sleeper).await;
        self.neighbour.call(act).await.unwrap();
    }

    async fn is_roused(&self) {
        until(|| self.done.load(Ordering::Relaxed) > 0).await;
    }

    async fn end(self) {
        self.neighbour
            .call(|| HELD.with_borrow_mut(Vec::clear))
            .await
            .unwrap();
        self.sleeper.exit().await;
        self.neighbour.exit().await;
    }
}

/// Tries a way on a fresh pair in each mode, on each back-end; with the reactor
/// kept awake by another thread, too.
fn in_every_mode(way: impl AsyncFn(&Pair) + Copy + Send + 'static) {
    for backend in backends() {
        for mode in MODES {
            for kept_awake in [false, true] {
                must_end(move || {
                    let app = app(2, mode).io(DriverConfig::new().backend(backend));
                    let body = async move |app: AppHandle| {
                        let busy = thread_on(&app, 1);
                        let keeps = busy.spawn_with(async move || {
                            let poller = kept_awake.then(|| Poller::active(|| false).unwrap());
                            std::future::pending::<()>().await;
                            drop(poller);
                        });
                        let pair = Pair::new(&app);
                        dormant(&pair.sleeper).await;
                        way(&pair).await;
                        pair.end().await;
                        keeps.abort();
                    };
                    app.block_on(body).unwrap();
                });
            }
        }
    }
}

#[test]
fn a_message_from_anywhere_rouses_a_dormant_thread() {
    in_every_mode(async |pair| {
        let doing = pair.doing();
        pair.sleeper.send_msg(doing.clone()).unwrap();
        until(|| pair.done.load(Ordering::Relaxed) == 1).await;
        dormant(&pair.sleeper).await;
        let (sleeper, does) = (pair.sleeper.clone(), doing.clone());
        let sent = pair.neighbour.call(move || sleeper.send_msg(does).unwrap());
        sent.await.unwrap();
        until(|| pair.done.load(Ordering::Relaxed) == 2).await;
        dormant(&pair.sleeper).await;
        let sleeper = pair.sleeper.clone();
        let foreign = std::thread::spawn(move || sleeper.send_msg(doing).unwrap());
        until(|| pair.done.load(Ordering::Relaxed) == 3).await;
        foreign.join().unwrap();
    });
}

#[test]
fn a_critical_message_rouses_a_dormant_thread() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    in_every_mode(async |pair| {
        let before = RUNS.load(Ordering::Relaxed);
        let run = || _ = RUNS.fetch_add(1, Ordering::Relaxed);
        pair.sleeper.send_critical_msg(run).unwrap();
        until(|| RUNS.load(Ordering::Relaxed) > before).await;
    });
}

#[test]
fn wakers_and_aborts_rouse_a_dormant_thread() {
    in_every_mode(async |pair| {
        // From another reactor, through a future that is not the crate's.
        let (wake, woken) = futures::channel::oneshot::channel();
        let doing = pair.doing();
        let task = pair.sleeper.spawn(async move {
            woken.await.unwrap();
            doing();
        });
        dormant(&pair.sleeper).await;
        wake.send(()).unwrap();
        task.await.unwrap();
        // By an abort.
        let task = pair.sleeper.spawn(std::future::pending::<()>());
        dormant(&pair.sleeper).await;
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        // By the neighbour, through what is of this OS thread only.
        let doing = pair.doing();
        let prepare = move || {
            let (wake, woken) = local::oneshot::channel::<()>();
            hold(wake);
            drop(task::spawn_local(async move {
                let _ = woken.await;
                doing();
            }));
        };
        pair.by_neighbour(prepare, || {
            held::<local::oneshot::Sender<()>>().send(()).unwrap()
        })
        .await;
        until(|| pair.done.load(Ordering::Relaxed) == 2).await;
    });
}

#[test]
fn a_deadline_rouses_a_dormant_thread() {
    in_every_mode(async |pair| {
        let doing = pair.doing();
        let nap = pair.sleeper.spawn(async move {
            time::sleep(Duration::from_millis(20)).await;
            doing();
        });
        nap.await.unwrap();
        let doing = pair.doing();
        let poller = move || hold(Poller::timed(Duration::from_millis(15), doing).unwrap());
        pair.sleeper.call(poller).await.unwrap();
        until(|| pair.done.load(Ordering::Relaxed) >= 4).await;
        let drops = || drop(held::<Poller>());
        pair.neighbour.call(drops).await.unwrap();
    });
}

#[test]
fn a_poller_that_another_thread_resumes_rouses_a_dormant_thread() {
    in_every_mode(async |pair| {
        for period in [Duration::ZERO, Duration::from_millis(1)] {
            let doing = pair.doing();
            let before = pair.done.load(Ordering::Relaxed);
            let prepare = move || {
                let poller = Poller::builder().period(period).register(doing).unwrap();
                poller.pause();
                hold(poller);
            };
            pair.by_neighbour(prepare, || {
                let poller = held::<Poller>();
                poller.resume();
                hold(poller);
            })
            .await;
            until(|| pair.done.load(Ordering::Relaxed) > before).await;
            pair.neighbour
                .call(|| drop(held::<Poller>()))
                .await
                .unwrap();
        }
    });
}

#[test]
fn a_task_that_another_thread_spawns_locally_rouses_a_dormant_thread() {
    in_every_mode(async |pair| {
        let doing = pair.doing();
        let prepare = || hold(LocalSpawner::current().unwrap());
        pair.by_neighbour(prepare, || {
            let spawner = held::<LocalSpawner>();
            drop(spawner.spawn_local(async move { doing() }));
        })
        .await;
        pair.is_roused().await;
    });
}

#[test]
fn a_channel_that_another_thread_drops_is_destroyed_on_its_dormant_thread() {
    struct Context(Box<dyn Fn()>);
    impl Drop for Context {
        fn drop(&mut self) {
            (self.0)();
        }
    }
    in_every_mode(async |pair| {
        let doing = pair.doing();
        let prepare = move || {
            let make = move || Ok::<_, Infallible>(Context(Box::new(doing.clone())));
            let device = IoDevice::builder().register(make).unwrap();
            let channel = device.channel().unwrap();
            drop(device.unregister());
            hold(channel);
        };
        let drops = || drop(held::<corespun::channel::IoChannel<Context>>());
        pair.by_neighbour(prepare, drops).await;
        pair.is_roused().await;
    });
}

#[test]
fn an_interrupt_rouses_a_dormant_thread() {
    in_every_mode(async |pair| {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let bell = Arc::new(EventFd::from_flags(flags).unwrap());
        let (doing, answered) = (pair.doing(), bell.clone());
        let prepare = move || {
            let read = answered.clone();
            let interrupt = Interrupt::register(answered, move |_event| {
                if read.read().is_ok() {
                    doing();
                }
                Activity::Busy
            });
            hold(interrupt.unwrap());
        };
        pair.sleeper.call(prepare).await.unwrap();
        for round in 1..=3 {
            dormant(&pair.sleeper).await;
            bell.write(1).unwrap();
            until(|| pair.done.load(Ordering::Relaxed) == round).await;
        }
        // And what another thread has it wait for.
        dormant(&pair.sleeper).await;
        let (_peer, socket) = UnixStream::pair().unwrap();
        let doing = pair.doing();
        let prepare = move || {
            let options = FdOptions::default();
            let interrupt = Interrupt::register_with(socket, options, move |_event| doing());
            hold(interrupt.unwrap());
        };
        pair.by_neighbour(prepare, || {
            let interrupt = held::<Interrupt>();
            interrupt.set_events(Readiness::WRITABLE).unwrap();
            hold(interrupt);
        })
        .await;
        until(|| pair.done.load(Ordering::Relaxed) > 3).await;
        let drops = || drop((held::<Interrupt>(), held::<Interrupt>()));
        pair.neighbour.call(drops).await.unwrap();
    });
}

#[test]
fn io_that_completes_rouses_a_dormant_thread() {
    in_every_mode(async |pair| {
        let (mut peer, stream) = UnixStream::pair().unwrap();
        let doing = pair.doing();
        let read = pair.sleeper.spawn_with(async move || {
            let mut stream = corespun::net::UnixStream::from_std(stream).unwrap();
            for _ in 0..3 {
                stream.read_exact(&mut [0]).await.unwrap();
                doing();
            }
        });
        for round in 1..=3 {
            dormant(&pair.sleeper).await;
            peer.write_all(b"x").unwrap();
            until(|| pair.done.load(Ordering::Relaxed) == round).await;
        }
        read.await.unwrap();
        let blocking = pair.sleeper.spawn(async {
            task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(10))).await
        });
        blocking.await.unwrap().unwrap();
    });
}

#[test]
fn a_walk_visits_dormant_threads() {
    in_every_mode(async |pair| {
        dormant(&pair.neighbour).await;
        let doing = pair.doing();
        let sleeper = pair.sleeper.clone();
        let visit = move |thread: &SpdkThread| {
            if *thread == sleeper {
                doing();
            }
        };
        let (tell, end) = futures::channel::oneshot::channel();
        let done = |walked| tell.send(walked).unwrap();
        pair.app.library().for_each_thread(visit, done).unwrap();
        end.await.unwrap().unwrap();
        assert_eq!(pair.done.load(Ordering::Relaxed), 1);
    });
}

/// It is asked while dormant, is dormant again while something holds it, and ends
/// when that goes, by another thread's hand; or when its patience ends.
#[test]
fn an_exit_rouses_a_dormant_thread_and_so_does_the_end_of_what_holds_it() {
    in_every_mode(async |pair| {
        let held_thread = pair
            .app
            .thread()
            .cpumask(CpuSet::single(1))
            .exit_timeout(Duration::from_secs(3600))
            .create()
            .unwrap();
        let prepare = || hold(Poller::timed(Duration::from_secs(3600), || ()).unwrap());
        held_thread.call(prepare).await.unwrap();
        dormant(&held_thread).await;
        let exit = held_thread.exit();
        until(|| held_thread.state() != corespun::thread::ThreadState::Running).await;
        dormant(&held_thread).await;
        assert!(!held_thread.is_exited());
        let drops = || drop(held::<Poller>());
        pair.neighbour.call(drops).await.unwrap();
        exit.await;

        let impatient = pair
            .app
            .thread()
            .cpumask(CpuSet::single(1))
            .exit_timeout(Duration::from_millis(30))
            .create()
            .unwrap();
        let prepare = || {
            Poller::timed(Duration::from_secs(3600), || ())
                .unwrap()
                .detach()
        };
        impatient.call(prepare).await.unwrap();
        dormant(&impatient).await;
        impatient.exit().await;
    });
}

/// G5: it has nothing to do but to wait for that; another thread ends what bound it.
#[test]
fn a_thread_that_waits_to_move_goes_when_another_thread_unbinds_it() {
    // Longer than a thread that has nothing to do stays awake.
    let waits = || time::sleep(Duration::from_millis(10));
    in_every_mode(async move |pair| {
        let prepare = || {
            hold(Poller::timed(Duration::from_secs(3600), || ()).unwrap());
            let thread = SpdkThread::current().unwrap();
            thread.set_cpumask(&CpuSet::single(0)).unwrap();
        };
        pair.sleeper.call(prepare).await.unwrap();
        waits().await;
        let drops = || drop(held::<Poller>());
        pair.neighbour.call(drops).await.unwrap();
        until(|| pair.sleeper.core() == Some(0)).await;
        // And back, when it is asked to stay, and not any more.
        pair.sleeper.bind(true);
        let back = || {
            let thread = SpdkThread::current().unwrap();
            thread.set_cpumask(&CpuSet::single(1)).unwrap();
        };
        pair.sleeper.call(back).await.unwrap();
        waits().await;
        pair.sleeper.bind(false);
        until(|| pair.sleeper.core() == Some(1)).await;
    });
}

/// A mode that sleeps, and back, while everybody is dormant.
#[test]
fn a_dormant_thread_hears_in_every_mode_that_its_reactor_gets_into() {
    in_every_mode(async |pair| {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let bell = Arc::new(EventFd::from_flags(flags).unwrap());
        let (doing, answered) = (pair.doing(), bell.clone());
        let modes = Arc::new(AtomicBool::new(false));
        let told = modes.clone();
        let prepare = move || {
            let read = answered.clone();
            let does = doing.clone();
            let interrupt = Interrupt::register(answered, move |_event| {
                if read.read().is_ok() {
                    does();
                }
            });
            hold(interrupt.unwrap());
            // Active in poll mode only.
            let poller = Poller::active(|| false).unwrap();
            poller.set_interrupt(move |on| told.store(on, Ordering::Relaxed));
            hold(poller);
        };
        pair.sleeper.call(prepare).await.unwrap();
        let reactors = pair.app.reactors();
        let mut rounds = 0;
        for mode in MODES.into_iter().rev().cycle().take(7) {
            reactors.set_mode(1, mode).await.unwrap();
            if stats(&reactors, 1).threads == 2 {
                until(|| modes.load(Ordering::Relaxed) == (mode != ReactorMode::Poll)).await;
            }
            bell.write(1).unwrap();
            rounds += 1;
            until(|| pair.done.load(Ordering::Relaxed) == rounds).await;
            let doing = pair.doing();
            pair.sleeper.send_msg(doing).unwrap();
            rounds += 1;
            until(|| pair.done.load(Ordering::Relaxed) == rounds).await;
        }
        let drops = || drop((held::<Poller>(), held::<Interrupt>()));
        pair.neighbour.call(drops).await.unwrap();
    });
}

#[test]
fn an_app_with_thousands_of_dormant_threads_stops() {
    for mode in MODES {
        must_end(move || {
            let body = async |app: AppHandle| {
                let threads: Vec<_> = (0..3_000).map(|_| thread_on(&app, 1)).collect();
                threads.last().unwrap().call(|| ()).await.unwrap();
                dormant(threads.last().unwrap()).await;
                // Those that go meanwhile are no others' concern.
                threads
                    .iter()
                    .step_by(3)
                    .for_each(|thread| drop(thread.exit()));
                threads
            };
            let threads = app(2, mode).block_on(body).unwrap();
            assert!(threads.iter().all(SpdkThread::is_exited));
        });
    }
}

/// G12: whoever reads it, and whenever.
#[test]
fn idle_ticks_of_a_thread_that_goes_dormant_and_wakes_only_grow() {
    for mode in MODES {
        must_end(move || {
            let body = async |app: AppHandle| {
                let thread = thread_on(&app, 1);
                thread.call(|| ()).await.unwrap();
                let end = Arc::new(AtomicBool::new(false));
                let (ends, watched) = (end.clone(), thread.clone());
                let reader = std::thread::spawn(move || {
                    let mut last = 0;
                    let mut backward = 0;
                    while !ends.load(Ordering::Relaxed) {
                        let idle = watched.stats().idle_ticks;
                        backward = backward.max(u64::saturating_sub(last, idle));
                        last = idle;
                    }
                    backward
                });
                for _ in 0..20 {
                    dormant(&thread).await;
                    let (held, sleeper) = (Duration::from_millis(5), thread.clone());
                    // The reactor is held up when the thread is roused.
                    app.reactors()
                        .send_event(1, move || {
                            std::thread::sleep(held);
                            sleeper.send_msg(|| ()).unwrap();
                        })
                        .unwrap();
                    thread.call(|| ()).await.unwrap();
                }
                end.store(true, Ordering::Relaxed);
                until(|| reader.is_finished()).await;
                assert_eq!(reader.join().unwrap(), 0, "ticks backward");
            };
            app(2, mode).block_on(body).unwrap();
        });
    }
}
