//! A thread whose mask changes while it runs on a reactor: where it goes, when,
//! and that nothing of it is lost on the way.

use std::cell::RefCell;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use corespun::app::AppHandle;
use corespun::channel::IoDevice;
use corespun::cpu::CpuSet;
use corespun::reactor::{ReactorMode, Reactors};
use corespun::stream::PollerStream;
use corespun::thread::{Poller, SendPoller, SetCpumaskError, SpdkThread};
use corespun::{task, time};
use futures::StreamExt;
use harness::reactors::{app, must_end, stats, wait_until};

const MODES: [ReactorMode; 3] = [
    ReactorMode::Poll,
    ReactorMode::Adaptive,
    ReactorMode::Interrupt,
];

fn thread_on(app: &AppHandle, core: usize) -> SpdkThread {
    let cpumask = CpuSet::single(core);
    app.thread().cpumask(cpumask).create().unwrap()
}

/// How many threads each reactor polls.
fn spread(reactors: &Reactors) -> Vec<usize> {
    reactors.stats().iter().map(|stats| stats.threads).collect()
}

/// Sets the mask of `thread` from a task on it.
async fn set_mask(thread: &SpdkThread, cores: &[usize]) -> Result<(), SetCpumaskError> {
    let mask: CpuSet = cores.iter().copied().collect();
    let change = thread.spawn(async move {
        let thread = SpdkThread::current().unwrap();
        thread.set_cpumask(&mask)
    });
    change.await.unwrap()
}

/// The kernel's name of this OS thread: the main reactor renames its caller's.
fn this_os_thread() -> String {
    let name = nix::sys::prctl::get_name().unwrap();
    name.into_string().unwrap()
}

/// The name of the OS thread that polls `thread`.
async fn os_thread_of(thread: &SpdkThread) -> String {
    thread.spawn(async { this_os_thread() }).await.unwrap()
}

/// Yields until `happened`, on the app thread.
async fn until(mut happened: impl FnMut() -> bool) {
    while !happened() {
        time::sleep(Duration::from_millis(1)).await;
    }
}

/// Runs `body` on the app thread of an app with `count` reactors.
fn on_app(count: usize, mode: ReactorMode, body: impl AsyncFnOnce(AppHandle) + Send + 'static) {
    must_end(move || app(count, mode).block_on(body).unwrap());
}

/// T-RE-05, TH-043: of two masks in one poll the last counts, and the core of the
/// first never gets the thread.
#[test]
fn the_last_mask_of_a_poll_says_where_the_thread_goes() {
    for mode in MODES {
        on_app(3, mode, async |app: AppHandle| {
            let reactors = app.reactors();
            let thread = thread_on(&app, 1);
            until(|| spread(&reactors) == [1, 1, 0]).await;
            let both = thread.spawn(async {
                let thread = SpdkThread::current().unwrap();
                thread.set_cpumask(&CpuSet::single(0)).unwrap();
                thread.set_cpumask(&CpuSet::single(2)).unwrap();
                this_os_thread()
            });
            let during = both.await.unwrap();
            assert_eq!(during, "reactor_1", "not inside the poll");
            let mut seen_on_0 = false;
            until(|| {
                let now = spread(&reactors);
                seen_on_0 |= now[0] > 1;
                now == [1, 0, 1]
            })
            .await;
            assert!(!seen_on_0);
            assert_eq!(os_thread_of(&thread).await, "reactor_2");
            assert_eq!(thread.cpumask(), CpuSet::single(2));
        });
    }
}

#[test]
fn a_thread_whose_core_is_in_the_new_mask_stays() {
    on_app(3, ReactorMode::Interrupt, async |app: AppHandle| {
        let thread = thread_on(&app, 1);
        for _ in 0..6 {
            set_mask(&thread, &[0, 1, 2]).await.unwrap();
            assert_eq!(os_thread_of(&thread).await, "reactor_1");
        }
        // It may go anywhere, but only a mask without its core sends it away.
        set_mask(&thread, &[0, 2]).await.unwrap();
        until(|| stats(&app.reactors(), 1).threads == 0).await;
    });
}

#[test]
fn threads_that_move_are_spread_over_the_cores_of_their_mask() {
    on_app(4, ReactorMode::Interrupt, async |app: AppHandle| {
        let reactors = app.reactors();
        let threads: Vec<_> = (0..6).map(|_| thread_on(&app, 1)).collect();
        for thread in &threads {
            set_mask(thread, &[2, 3]).await.unwrap();
        }
        until(|| spread(&reactors) == [1, 0, 3, 3]).await;
    });
}

/// RE-012 says whichever core comes last; here the caller learns of it.
#[test]
fn a_mask_without_a_reactor_is_refused_and_changes_nothing() {
    on_app(2, ReactorMode::Interrupt, async |app: AppHandle| {
        let thread = thread_on(&app, 1);
        let refused = set_mask(&thread, &[7, 9]).await.unwrap_err();
        assert!(matches!(refused, SetCpumaskError::NoCore { .. }));
        for part in ["[7,9]", "[0-1]"] {
            assert!(refused.to_string().contains(part), "{part} in {refused}");
        }
        assert_eq!(thread.cpumask(), CpuSet::single(1));
        assert_eq!(os_thread_of(&thread).await, "reactor_1");
    });
}

/// G5: what is not `Send` holds the thread; it goes when the last of it ends.
#[test]
fn a_bound_thread_moves_when_nothing_binds_it_any_more() {
    for mode in MODES {
        on_app(2, mode, async |app: AppHandle| {
            let reactors = app.reactors();
            let thread = thread_on(&app, 1);
            let task = thread.spawn_with(std::future::pending::<()>);
            let (stop_poller, stopped) = futures::channel::oneshot::channel::<()>();
            let poller = thread.spawn_with(async || {
                let _poller = Poller::timed(Duration::from_secs(3600), || ()).unwrap();
                let _ = stopped.await;
            });
            set_mask(&thread, &[0]).await.unwrap();
            for _ in 0..20 {
                assert_eq!(os_thread_of(&thread).await, "reactor_1");
            }
            task.abort();
            assert!(task.await.unwrap_err().is_cancelled());
            for _ in 0..20 {
                assert_eq!(os_thread_of(&thread).await, "reactor_1");
            }
            drop(stop_poller);
            poller.await.unwrap();
            until(|| spread(&reactors) == [2, 0]).await;
            assert_eq!(os_thread_of(&thread).await, "reactor_0");
        });
    }
}

/// From the app thread, from a foreign OS thread, and from the thread itself.
#[test]
fn set_cpumask_async_ends_on_a_core_of_the_mask() {
    for mode in MODES {
        on_app(3, mode, async |app: AppHandle| {
            let thread = thread_on(&app, 1);
            let to = |core| thread.set_cpumask_async(&CpuSet::single(core));
            for core in [2, 0, 1, 1, 2] {
                to(core).await.unwrap();
                assert_eq!(thread.core(), Some(core));
                assert_eq!(os_thread_of(&thread).await, format!("reactor_{core}"));
            }
            let waiting = to(1);
            let foreign = std::thread::spawn(move || task::block_on(waiting));
            until(|| foreign.is_finished()).await;
            foreign.join().unwrap().unwrap();
            assert_eq!(os_thread_of(&thread).await, "reactor_1");
            let (own, itself) = (thread.clone(), CpuSet::single(2));
            let along = thread.spawn(async move {
                own.set_cpumask_async(&itself).await.unwrap();
                (own.core(), this_os_thread())
            });
            assert_eq!(along.await.unwrap(), (Some(2), "reactor_2".to_owned()));
        });
    }
}

/// G5
#[test]
fn set_cpumask_async_waits_until_nothing_binds_the_thread() {
    for mode in MODES {
        on_app(2, mode, async |app: AppHandle| {
            let thread = thread_on(&app, 1);
            let (release, released) = futures::channel::oneshot::channel::<()>();
            let binding = thread.spawn_with(async move || {
                let _ = released.await;
            });
            let mut moved = thread.set_cpumask_async(&CpuSet::single(0));
            for _ in 0..10 {
                assert_eq!(os_thread_of(&thread).await, "reactor_1");
                assert_eq!(futures::poll!(&mut moved), std::task::Poll::Pending);
            }
            drop(release);
            moved.await.unwrap();
            assert_eq!(os_thread_of(&thread).await, "reactor_0");
            binding.await.unwrap();
        });
    }
}

#[test]
fn a_stop_of_the_app_ends_the_wait_for_a_move() {
    let ended = must_end(|| {
        let waiting = Arc::new(Mutex::new(None));
        let keep = waiting.clone();
        app(2, ReactorMode::Interrupt)
            .block_on(async move |app: AppHandle| {
                let thread = thread_on(&app, 1);
                // It cannot move before it exits.
                thread.bind(true);
                let mut moved = thread.set_cpumask_async(&CpuSet::single(0));
                thread.call(|| ()).await.unwrap();
                assert_eq!(futures::poll!(&mut moved), std::task::Poll::Pending);
                *keep.lock().unwrap() = Some(moved);
            })
            .unwrap();
        let waiting = waiting.lock().unwrap().take().unwrap();
        task::block_on(waiting)
    });
    assert!(matches!(ended, Err(SetCpumaskError::Exited(_))));
}

/// TH-103: also while its reactor sleeps, taking the hint back moves it.
#[test]
fn a_thread_asked_to_stay_moves_when_that_is_taken_back() {
    on_app(2, ReactorMode::Interrupt, async |app: AppHandle| {
        let reactors = app.reactors();
        let thread = thread_on(&app, 1);
        thread.bind(true);
        set_mask(&thread, &[0]).await.unwrap();
        until(|| stats(&reactors, 1).asleep).await;
        assert_eq!(os_thread_of(&thread).await, "reactor_1");
        until(|| stats(&reactors, 1).asleep).await;
        thread.bind(false);
        until(|| spread(&reactors) == [2, 0]).await;
    });
}

/// G5: messages of one sender, a task that counts by a timer, and wakes from
/// elsewhere, while the thread goes round.
#[test]
fn messages_timers_and_tasks_survive_moves() {
    const MESSAGES: usize = 3_000;
    const MOVES: usize = 60;
    for mode in MODES {
        on_app(3, mode, async |app: AppHandle| {
            let thread = thread_on(&app, 1);
            let seen = Arc::new(Mutex::new(Vec::new()));
            let (target, log) = (thread.clone(), seen.clone());
            let sender = std::thread::spawn(move || {
                for number in 0..MESSAGES {
                    let log = log.clone();
                    let record = move || log.lock().unwrap().push(number);
                    target.send_msg(record).unwrap();
                    if number % 100 == 0 {
                        std::thread::yield_now();
                    }
                }
            });
            let ticks = Arc::new(AtomicUsize::new(0));
            let count = ticks.clone();
            let timer = thread.spawn(async move {
                for _ in 0..50 {
                    time::sleep(Duration::from_micros(100)).await;
                    count.fetch_add(1, Ordering::Relaxed);
                    task::yield_now().await;
                }
            });
            for step in 0..MOVES {
                let core = [2, 0, 1][step % 3];
                set_mask(&thread, &[core]).await.unwrap();
                let name = format!("reactor_{core}");
                while os_thread_of(&thread).await != name {}
            }
            timer.await.unwrap();
            assert_eq!(ticks.load(Ordering::Relaxed), 50);
            until(|| sender.is_finished()).await;
            sender.join().unwrap();
            until(|| seen.lock().unwrap().len() == MESSAGES).await;
            let in_order: Vec<_> = (0..MESSAGES).collect();
            assert_eq!(*seen.lock().unwrap(), in_order);
        });
    }
}

/// G3, G7: threads that hop from core to core when the app stops run what they
/// took and read EXITED, wherever the stop meets them.
#[test]
fn a_stop_meets_threads_that_move() {
    for round in 0..20 {
        must_end(move || {
            let made = Arc::new(Mutex::new(Vec::new()));
            let ran = Arc::new(AtomicUsize::new(0));
            let taken = Arc::new(AtomicUsize::new(0));
            let (keep, counted, sent) = (made.clone(), ran.clone(), taken.clone());
            app(3, MODES[round % 3])
                .run(async move |app: AppHandle| {
                    for number in 0..8 {
                        let thread = thread_on(&app, number % 3);
                        keep.lock().unwrap().push(thread.clone());
                        drop(thread.spawn(async move {
                            for step in number.. {
                                let thread = SpdkThread::current().unwrap();
                                thread.set_cpumask(&CpuSet::single(step % 3)).unwrap();
                                task::yield_now().await;
                            }
                        }));
                        let (counted, sent) = (counted.clone(), sent.clone());
                        std::thread::spawn(move || {
                            loop {
                                let counted = counted.clone();
                                let count = move || {
                                    counted.fetch_add(1, Ordering::Relaxed);
                                };
                                if thread.send_msg(count).is_err_and(|error| error.is_exited()) {
                                    break;
                                }
                                sent.fetch_add(1, Ordering::Relaxed);
                                std::thread::yield_now();
                            }
                        });
                    }
                    let stopper = app.clone();
                    std::thread::spawn(move || {
                        std::thread::sleep(Duration::from_micros(500 * round as u64));
                        stopper.stop(0);
                    });
                })
                .unwrap();
            let made = made.lock().unwrap();
            assert!(made.iter().all(SpdkThread::is_exited));
            // A sender counts after it has sent.
            wait_until(|| ran.load(Ordering::Relaxed) == taken.load(Ordering::Relaxed));
        });
    }
}

thread_local! {
    /// Holds the exit of a thread of this OS thread.
    static HELD: RefCell<Option<Poller>> = const { RefCell::new(None) };
}

/// One that exits ends where it is, though nothing on it has to stay.
#[test]
fn a_thread_that_exits_does_not_move_any_more() {
    for mode in MODES {
        let end = must_end(move || {
            app(2, mode).block_on(async |app| {
                let thread = thread_on(&app, 0);
                let before = os_thread_of(&thread).await;
                let hold =
                    || HELD.set(Some(Poller::timed(Duration::from_secs(60), || ()).unwrap()));
                thread.call(hold).await.unwrap();
                let exit = thread.exit();
                // One that comes before the exit has begun is cancelled by it.
                while thread.spawn(task::yield_now()).await.is_err() {}
                // It is `Send`, and binds the thread to nothing.
                let late = thread.spawn(async {
                    HELD.take();
                    let thread = SpdkThread::current().unwrap();
                    thread.set_cpumask(&CpuSet::single(1)).unwrap();
                    let mut polled_by = Vec::new();
                    for _ in 0..20 {
                        task::yield_now().await;
                        polled_by.push(this_os_thread());
                    }
                    polled_by
                });
                let polled_by = late.await.unwrap();
                assert!(
                    polled_by.iter().all(|name| *name == before),
                    "{polled_by:?}"
                );
                exit.await;
            })
        });
        end.unwrap();
    }
}

/// Step 9 of the reference's own loop over threads (C.1): a thread whose poller sends it
/// to the next core each time wanders over all of them, and what it holds goes on
/// working: its poller, its channel, its tasks and timers, and a poller stream.
#[test]
fn a_polled_thread_that_holds_a_channel_wanders_over_all_cores() {
    const CORES: usize = 3;
    for mode in MODES {
        on_app(CORES, mode, async |app: AppHandle| {
            let device = IoDevice::builder().name("group");
            let device = device.register(|| Ok::<_, Infallible>(RefCell::new(Vec::new())));
            let device = device.unwrap();
            let group = thread_on(&app, 1);
            let done = group.spawn(wander::<CORES>(device.clone()));
            let served = app.thread().create().unwrap();
            // Messages from another thread find it wherever it is.
            let (asking, asked) = (group.clone(), Arc::new(AtomicUsize::new(0)));
            let answers = asked.clone();
            let asks = served.spawn(async move {
                for number in 0..300 {
                    let found = answers.clone();
                    let answer = asking.call(move || found.fetch_add(1, Ordering::Relaxed));
                    assert_eq!(answer.await.unwrap(), number);
                }
            });
            let steps = done.await.unwrap();
            asks.await.unwrap();
            assert_eq!(asked.load(Ordering::Relaxed), 300);
            // Each core follows the one before, and each is another OS thread.
            let names: Vec<_> = steps.iter().map(|(_, name)| name.as_str()).collect();
            for (step, name) in names.iter().enumerate() {
                assert_eq!(*name, names[step % CORES], "{names:?}");
            }
            assert_ne!(names[0], names[1]);
            assert!(group.bound_by().await.unwrap().is_empty());
            group.exit().await;
            device.unregister().unwrap().await.unwrap();
        });
    }
}

/// Lets its thread wander until it has been everywhere three times; says where.
async fn wander<const CORES: usize>(device: IoDevice<RefCell<Vec<Step>>>) -> Vec<Step> {
    let thread = SpdkThread::current().unwrap();
    let group = device.send_channel().unwrap();
    let (noted, moving) = (group.clone(), thread.clone());
    let mut core = 1;
    let poller = SendPoller::timed(Duration::from_micros(100), move || {
        let here = this_os_thread();
        let arrived = noted.with(|steps| {
            let mut steps = steps.borrow_mut();
            let arrived = steps.last().is_none_or(|(_, before)| *before != here);
            if arrived {
                steps.push((core, here));
            }
            arrived
        });
        if arrived.unwrap() {
            core = (core + 1) % CORES;
            moving.set_cpumask(&CpuSet::single(core)).unwrap();
        }
    });
    let _poller = poller.unwrap();
    let seen = group.clone();
    let steps = PollerStream::<usize>::builder();
    let steps = steps.period(Duration::from_micros(50));
    let mut steps = steps
        .register_send(move || seen.with(|steps| steps.borrow().len()).ok())
        .unwrap();
    while steps.next().await.unwrap() < 3 * CORES {
        time::sleep(Duration::from_micros(20)).await;
    }
    group.with(|steps| steps.take()).unwrap()
}

/// A core, and the OS thread that was found there.
type Step = (usize, String);
