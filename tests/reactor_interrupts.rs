//! Interrupts on a reactor that sleeps: they wake it, on either I/O back-end, and
//! they do not keep it awake; and what does is named.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use corespun::app::AppHandle;
use corespun::cpu::CpuSet;
use corespun::io::DriverConfig;
use corespun::reactor::ReactorMode;
use corespun::thread::{Activity, Interrupt, Poller, SpdkThread};
use corespun::time;
use harness::io::backends;
use harness::reactors::{app, must_end, stats, wait_until};
use nix::sys::eventfd::{EfdFlags, EventFd};

const SLEEPING: [ReactorMode; 2] = [ReactorMode::Adaptive, ReactorMode::Interrupt];

/// Runs `body` on the app thread of an app with three reactors, once for each
/// back-end and sleeping mode.
fn on_each_kind_of_app(body: impl AsyncFnOnce(AppHandle) + Copy + Send + 'static) {
    for backend in backends() {
        for mode in SLEEPING {
            must_end(move || {
                let app = app(3, mode).io(DriverConfig::new().backend(backend));
                app.block_on(body).unwrap();
            });
        }
    }
}

fn thread_on(app: &AppHandle, core: usize) -> SpdkThread {
    let cpumask = CpuSet::single(core);
    app.thread().cpumask(cpumask).create().unwrap()
}

/// An eventfd that only an `Interrupt` reads, and the sum of what it has read.
#[derive(Clone)]
struct Doorbell {
    bell: Arc<EventFd>,
    rung: Arc<AtomicU64>,
}

impl Doorbell {
    fn new() -> Self {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        Doorbell {
            bell: Arc::new(EventFd::from_flags(flags).unwrap()),
            rung: Arc::default(),
        }
    }

    fn ring(&self) {
        self.bell.write(1).unwrap();
    }

    fn rung(&self) -> u64 {
        self.rung.load(Ordering::Relaxed)
    }

    /// Answers on the current SpdkThread until the result is dropped.
    fn answer(&self) -> Interrupt {
        let (bell, rung) = (self.bell.clone(), self.rung.clone());
        Interrupt::register(self.bell.clone(), move |_event| match bell.read() {
            Ok(count) => {
                rung.fetch_add(count, Ordering::Relaxed);
                Activity::Busy
            }
            Err(_) => Activity::Idle,
        })
        .unwrap()
    }

    /// Answers on `thread` until the result is dropped.
    fn answer_on(&self, thread: &SpdkThread) -> futures::channel::oneshot::Sender<()> {
        let (keep, kept) = futures::channel::oneshot::channel::<()>();
        let doorbell = self.clone();
        drop(thread.spawn_with(async move || {
            let _interrupt = doorbell.answer();
            let _ = kept.await;
        }));
        keep
    }
}

async fn until(mut happened: impl FnMut() -> bool) {
    while !happened() {
        time::sleep(Duration::from_millis(1)).await;
    }
}

/// Waits until the reactor on `core` has gone to sleep and stays so for a while:
/// a thread that was just sent something may find it asleep from before.
async fn asleep(app: &AppHandle, core: usize) {
    let reactors = app.reactors();
    let mut before = stats(&reactors, core).busy_ticks;
    let mut quiet = 0;
    until(|| {
        let now = stats(&reactors, core);
        let same = now.asleep && now.busy_ticks == before;
        before = now.busy_ticks;
        quiet = if same { quiet + 1 } else { 0 };
        quiet == 5
    })
    .await;
}

/// IN-002, RE-022: nothing else happens on that reactor.
#[test]
fn an_interrupt_wakes_a_reactor_that_sleeps() {
    on_each_kind_of_app(async |app: AppHandle| {
        let doorbell = Doorbell::new();
        let thread = thread_on(&app, 1);
        let keep = doorbell.answer_on(&thread);
        for round in 1..=20 {
            asleep(&app, 1).await;
            assert_eq!(stats(&app.reactors(), 1).kept_awake_by, None);
            doorbell.ring();
            until(|| doorbell.rung() == round).await;
        }
        drop(keep);
    });
}

/// One that was ready before anybody waited for it, and two threads whose
/// descriptors are ready at once.
#[test]
fn every_ready_interrupt_of_a_sleeping_reactor_is_answered() {
    on_each_kind_of_app(async |app: AppHandle| {
        let bells: Vec<_> = (0..3).map(|_| Doorbell::new()).collect();
        bells[0].ring();
        let threads = [thread_on(&app, 1), thread_on(&app, 1)];
        let _kept: Vec<_> = [(0, 0), (1, 0), (2, 1)]
            .map(|(bell, thread): (usize, usize)| bells[bell].answer_on(&threads[thread]))
            .into();
        until(|| bells[0].rung() == 1).await;
        asleep(&app, 1).await;
        bells.iter().for_each(Doorbell::ring);
        until(|| bells.iter().map(Doorbell::rung).sum::<u64>() == 4).await;
    });
}

/// A descriptor whose interrupt is gone wakes nobody, and the next one that the
/// thread registers does.
#[test]
fn an_interrupt_that_was_removed_leaves_the_reactor_asleep() {
    on_each_kind_of_app(async |app: AppHandle| {
        let (gone, next) = (Doorbell::new(), Doorbell::new());
        let thread = thread_on(&app, 1);
        let keep = gone.answer_on(&thread);
        asleep(&app, 1).await;
        drop(keep);
        asleep(&app, 1).await;
        let busy = stats(&app.reactors(), 1).busy_ticks;
        gone.ring();
        asleep(&app, 1).await;
        assert_eq!(stats(&app.reactors(), 1).busy_ticks, busy);
        assert_eq!(gone.rung(), 0);
        let _keep = next.answer_on(&thread);
        asleep(&app, 1).await;
        next.ring();
        until(|| next.rung() == 1).await;
    });
}

/// G5: an interrupt binds its thread; when it is gone, the thread moves, and the
/// interrupts that it has there wake the reactor of that core.
#[test]
fn interrupts_arrive_and_leave_with_their_thread() {
    on_each_kind_of_app(async |app: AppHandle| {
        let doorbell = Doorbell::new();
        let thread = thread_on(&app, 1);
        let mut rung = 0;
        for core in [2, 1, 2] {
            let keep = doorbell.answer_on(&thread);
            asleep(&app, 3 - core).await;
            doorbell.ring();
            rung += 1;
            until(|| doorbell.rung() == rung).await;
            let change = thread.spawn(async move {
                let thread = SpdkThread::current().unwrap();
                thread.set_cpumask(&CpuSet::single(core)).unwrap();
            });
            change.await.unwrap();
            asleep(&app, 3 - core).await;
            assert_eq!(stats(&app.reactors(), core).threads, 0, "it is bound");
            // Rung between two owners, it is answered by the next.
            drop(keep);
            until(|| stats(&app.reactors(), core).threads == 1).await;
            doorbell.ring();
            let keep = doorbell.answer_on(&thread);
            rung += 1;
            until(|| doorbell.rung() == rung).await;
            asleep(&app, core).await;
            doorbell.ring();
            rung += 1;
            until(|| doorbell.rung() == rung).await;
            drop(keep);
        }
    });
}

/// RE-021, T-X-13, for descriptors: none of many rings is lost while the mode of
/// the reactor changes all the time.
#[test]
fn no_interrupt_is_lost_while_the_mode_changes() {
    on_each_kind_of_app(async |app: AppHandle| {
        const RINGS: u64 = 2_000;
        let doorbell = Doorbell::new();
        let thread = thread_on(&app, 1);
        let _keep = doorbell.answer_on(&thread);
        let (ringing, reactors) = (doorbell.clone(), app.reactors());
        let ringer = std::thread::spawn(move || {
            let modes = [
                ReactorMode::Interrupt,
                ReactorMode::Poll,
                ReactorMode::Adaptive,
            ];
            for ring in 0..RINGS {
                ringing.ring();
                if ring % 7 == 0 {
                    drop(reactors.set_mode(1, modes[(ring / 7) as usize % 3]));
                }
                // Each is answered by itself: nothing else would wake it.
                wait_until_yielding(|| ringing.rung() > ring);
            }
        });
        until(|| ringer.is_finished()).await;
        ringer.join().unwrap();
        assert_eq!(doorbell.rung(), RINGS);
    });
}

fn wait_until_yielding(mut happened: impl FnMut() -> bool) {
    while !happened() {
        std::thread::yield_now();
    }
}

/// RE-015, RE-022, IN-010: the reactor takes a thread whose active poller has an
/// interrupt into interrupt mode when it may sleep itself, and out of it.
#[test]
fn a_poller_with_an_interrupt_lets_its_reactor_sleep() {
    on_each_kind_of_app(async |app: AppHandle| {
        let reactors = app.reactors();
        let sleeping = reactors.mode(1).unwrap();
        reactors.set_mode(1, ReactorMode::Poll).await.unwrap();
        let doorbell = Doorbell::new();
        let (runs, switches) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let thread = thread_on(&app, 1);
        let (answering, count, hook) = (doorbell.clone(), runs.clone(), switches.clone());
        let (keep, kept) = futures::channel::oneshot::channel::<()>();
        let task = thread.spawn_with(async move || {
            let run = move || {
                count.fetch_add(1, Ordering::Relaxed);
                Activity::Idle
            };
            let poller = Poller::active(run).unwrap();
            poller.set_interrupt(move |on| {
                hook.fetch_add(if on { 1 } else { 100 }, Ordering::Relaxed);
            });
            let _interrupt = answering.answer();
            let _ = kept.await;
        });
        until(|| runs.load(Ordering::Relaxed) > 10).await;
        assert_eq!(switches.load(Ordering::Relaxed), 0);
        reactors.set_mode(1, sleeping).await.unwrap();
        asleep(&app, 1).await;
        assert_eq!(switches.load(Ordering::Relaxed), 1);
        let before = runs.load(Ordering::Relaxed);
        doorbell.ring();
        until(|| doorbell.rung() == 1).await;
        assert_eq!(runs.load(Ordering::Relaxed), before);
        reactors.set_mode(1, ReactorMode::Poll).await.unwrap();
        until(|| runs.load(Ordering::Relaxed) > before + 10).await;
        assert_eq!(switches.load(Ordering::Relaxed), 101);
        // What binds it gone, it leaves in poll mode.
        reactors.set_mode(1, sleeping).await.unwrap();
        asleep(&app, 1).await;
        assert_eq!(switches.load(Ordering::Relaxed), 102);
        drop(keep);
        task.await.unwrap();
        let change = thread.spawn(async {
            let thread = SpdkThread::current().unwrap();
            thread.set_cpumask(&CpuSet::single(2)).unwrap();
        });
        change.await.unwrap();
        until(|| stats(&reactors, 2).threads == 1).await;
        let told = switches.clone();
        let polled = thread.spawn_with(async move || {
            let (done, ended) = futures::channel::oneshot::channel::<()>();
            let mut done = Some(done);
            let poller = Poller::timed(Duration::from_micros(1), move || drop(done.take()));
            let poller = poller.unwrap();
            poller.set_interrupt(move |_| {
                told.fetch_add(10_000, Ordering::Relaxed);
            });
            let _ = ended.await;
        });
        polled.await.unwrap();
        assert_eq!(switches.load(Ordering::Relaxed), 102);
    });
}

/// DESIGN's G12 and 4.4: the poller is named while it keeps the reactor awake,
/// busy or idle, and only then.
#[test]
fn the_statistics_name_the_poller_that_keeps_a_reactor_awake() {
    for activity in [Activity::Idle, Activity::Busy] {
        on_each_kind_of_app(async move |app: AppHandle| {
            let reactors = app.reactors();
            let thread = app.thread().name("restless");
            let thread = thread.cpumask(CpuSet::single(1)).create().unwrap();
            assert_eq!(stats(&reactors, 1).kept_awake_by, None);
            let (pause, paused) = futures::channel::oneshot::channel::<()>();
            drop(thread.spawn_with(async move || {
                let run = move || activity;
                let poller = Poller::builder().name("spinner").register(run).unwrap();
                let poller = Rc::new(poller);
                let _ = paused.await;
                poller.pause();
                std::future::pending::<()>().await;
            }));
            until(|| stats(&reactors, 1).kept_awake_by.is_some()).await;
            let keeper = stats(&reactors, 1).kept_awake_by.unwrap();
            assert_eq!(keeper.thread, "restless");
            assert_eq!(keeper.poller.as_deref(), Some("spinner"));
            // By its mode, it is not its poller that keeps it awake.
            let mode = stats(&reactors, 1).mode;
            reactors.set_mode(1, ReactorMode::Poll).await.unwrap();
            until(|| stats(&reactors, 1).kept_awake_by.is_none()).await;
            reactors.set_mode(1, mode).await.unwrap();
            until(|| stats(&reactors, 1).kept_awake_by.is_some()).await;
            drop(pause);
            until(|| stats(&reactors, 1).kept_awake_by.is_none()).await;
            asleep(&app, 1).await;
        });
    }
}

/// G12: what a sleeping reactor idles away is seen while it sleeps.
#[test]
fn idle_ticks_go_on_while_a_reactor_sleeps() {
    must_end(|| {
        app(2, ReactorMode::Interrupt)
            .run(async |app: AppHandle| {
                std::thread::spawn(move || {
                    let reactors = app.reactors();
                    wait_until(|| stats(&reactors, 1).asleep);
                    let mut before = stats(&reactors, 1);
                    for _ in 0..5 {
                        std::thread::sleep(Duration::from_millis(1));
                        let now = stats(&reactors, 1);
                        assert!(now.asleep, "nothing was sent to it");
                        assert!(now.idle_ticks > before.idle_ticks);
                        assert_eq!(now.busy_ticks, before.busy_ticks);
                        before = now;
                    }
                    app.stop(0);
                });
            })
            .unwrap();
    });
}
