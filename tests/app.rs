//! What the app framework guarantees: how an app starts, stops and fails, and
//! what signals do. Tests about signals, and about what belongs to the whole
//! process, run this test binary once more as a process of their own.

use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use corespun::app::{App, AppError, AppHandle};
use corespun::cpu::{self, CpuSet};
use corespun::reactor::ReactorMode;
use corespun::task::TaskBuilder;
use corespun::thread::{Poller, SpdkThread, ThreadLib};
use corespun::{task, time};
use harness::process::{Scenario, entries, say};
use harness::reactors::{app, must_end, wait_until};
use nix::sys::signal::{SigHandler, Signal, kill, raise, signal};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

const IDLE: ReactorMode = ReactorMode::Interrupt;

fn thread_on(app: &AppHandle, core: usize) -> SpdkThread {
    let cpumask = CpuSet::single(core);
    app.thread().cpumask(cpumask).create().unwrap()
}

// Stopping.

/// AP-007, T-X-16: of several codes the first that is not 0 is kept.
#[test]
fn the_first_exit_code_that_is_not_zero_is_kept() {
    for (codes, kept) in [(vec![3, 5], 3), (vec![0, 4, 5], 4), (vec![0, 0], 0)] {
        let code = app(1, IDLE).run(async move |app: AppHandle| {
            for code in codes {
                app.stop(code);
            }
            assert!(app.is_stopping());
        });
        assert_eq!(code.unwrap(), kept);
    }
}

#[test]
fn the_end_of_the_start_function_does_not_stop_the_app() {
    must_end(|| {
        let later = Arc::new(AtomicBool::new(false));
        let witness = later.clone();
        let code = app(1, IDLE).run(async move |app: AppHandle| {
            drop(task::spawn_local(async move {
                time::sleep(Duration::from_millis(1)).await;
                witness.store(true, Ordering::Relaxed);
                app.stop(2);
            }));
        });
        assert_eq!(code.unwrap(), 2);
        assert!(later.load(Ordering::Relaxed));
    });
}

/// AP-007: any OS thread may stop an app, on a reactor or off.
#[test]
fn an_app_can_be_stopped_from_everywhere() {
    type Stopper = fn(AppHandle);
    let from: [(&str, Stopper); 6] = [
        ("the start function", |app| app.stop(0)),
        ("a poller", |app| {
            let poller = Poller::timed(Duration::from_micros(100), move || app.stop(0));
            // Ends with the exit of its task, as this closure would not.
            drop(task::spawn_local(async move {
                let _poller = poller.unwrap();
                std::future::pending::<()>().await;
            }));
        }),
        ("a thread of another reactor", |app| {
            let other = thread_on(&app, 1);
            other.send_msg(move || app.stop(0)).unwrap();
        }),
        ("an event", |app| {
            let reactors = app.reactors();
            reactors.send_event(1, move || app.stop(0)).unwrap();
        }),
        ("a foreign OS thread", |app| {
            std::thread::spawn(move || app.stop(0));
        }),
        ("a shutdown", |app| app.start_shutdown()),
    ];
    for (whence, stop) in from {
        eprintln!("from {whence}");
        must_end(move || {
            let code = app(2, IDLE).run(async move |app: AppHandle| stop(app));
            assert_eq!(code.unwrap(), 0);
        });
    }
}

/// G7: what lives on any thread when the app stops is dropped there before
/// `run` returns, and all threads have exited.
#[test]
fn everything_has_ended_where_it_lived_when_run_returns() {
    struct Witness(Arc<Mutex<Vec<(String, String)>>>, String);
    impl Drop for Witness {
        fn drop(&mut self) {
            let here = SpdkThread::current().unwrap().name().to_owned();
            self.0.lock().unwrap().push((here, self.1.clone()));
        }
    }
    must_end(|| {
        let dropped = Arc::new(Mutex::new(Vec::new()));
        let threads = Arc::new(Mutex::new(Vec::new()));
        let (report, made) = (dropped.clone(), threads.clone());
        app(2, IDLE)
            .run(async move |app: AppHandle| {
                let workers = app.reactors().thread_per_core("worker").unwrap();
                for worker in &workers {
                    let witness = Witness(report.clone(), worker.name().to_owned());
                    let (running, runs) = futures::channel::oneshot::channel();
                    drop(worker.spawn_with(async move || {
                        running.send(()).unwrap();
                        let _witness = witness;
                        std::future::pending::<()>().await;
                    }));
                    runs.await.unwrap();
                }
                *made.lock().unwrap() = workers;
                app.stop(0);
            })
            .unwrap();
        let mut dropped = std::mem::take(&mut *dropped.lock().unwrap());
        dropped.sort();
        let own = |name: &str| (name.to_owned(), name.to_owned());
        assert_eq!(dropped, [own("worker_0"), own("worker_1")]);
        assert!(threads.lock().unwrap().iter().all(SpdkThread::is_exited));
    });
}

// The start function and `block_on`.

/// Neither at once nor later does a panic leave an app that nobody stops.
#[test]
fn a_start_function_that_panics_stops_the_app_and_is_reported() {
    for later in [false, true] {
        must_end(move || {
            let ended = app(2, IDLE).run(async move |_app: AppHandle| {
                if later {
                    time::sleep(Duration::from_micros(100)).await;
                }
                panic!("no disk found");
            });
            let Err(AppError::StartPanicked { message }) = ended else {
                panic!("not reported: {ended:?}");
            };
            assert!(message.contains("no disk found"), "{message}");
        });
    }
}

/// More messages than one poll runs wait on the thread when its main ends.
#[test]
fn block_on_returns_the_output_however_much_is_queued() {
    must_end(|| {
        let ran = Arc::new(AtomicUsize::new(0));
        let count = ran.clone();
        let output = app(1, IDLE).block_on(async move |app: AppHandle| {
            for _ in 0..100 {
                let count = count.clone();
                let message = move || {
                    count.fetch_add(1, Ordering::Relaxed);
                };
                app.app_thread().send_msg(message).unwrap();
            }
            "output"
        });
        assert_eq!(output.unwrap(), "output");
        assert_eq!(ran.load(Ordering::Relaxed), 100, "what was taken was run");
    });
}

#[test]
fn block_on_says_when_the_app_was_stopped_before_its_main_ended() {
    must_end(|| {
        let output = app(1, IDLE).block_on(async |app: AppHandle| {
            app.stop(3);
            std::future::pending::<()>().await;
        });
        assert!(matches!(output, Err(AppError::Stopped { code: 3 })));
    });
}

// Panics elsewhere.

/// G6: the policies. (Aborting is tested in a process of its own.)
#[test]
fn a_panic_on_a_thread_is_contained_or_stops_the_app() {
    must_end(|| {
        let output = app(2, IDLE).block_on(async |app: AppHandle| {
            let other = thread_on(&app, 1);
            other.send_msg(|| panic!("contained")).unwrap();
            other.spawn(async { 1 }).await.unwrap()
        });
        assert_eq!(output.unwrap(), 1);

        let code = app(2, IDLE).stop_on_panic(9).run(async |app: AppHandle| {
            let other = thread_on(&app, 1);
            other.send_msg(|| panic!("stops the app")).unwrap();
            std::future::pending::<()>().await;
        });
        assert_eq!(code.unwrap(), 9);
    });
}

// What cannot be started.

/// Each names what was wrong, and the start function is not called.
#[test]
fn an_app_that_cannot_start_says_why() {
    let cpu = cpu::available().unwrap().first().unwrap();
    let builder = || App::builder().handle_signals(false);
    let cases = [
        (builder().cores(CpuSet::empty()), "no core was asked for"),
        (
            builder().cores(CpuSet::single(1023)),
            "core 1023 does not exist",
        ),
        (builder().lcores([(0, 1023)]), "core 1023 does not exist"),
        (builder().lcores([(4000, cpu)]), "core 4000 is too high"),
        (
            builder().lcores([(1, cpu), (1, cpu)]),
            "core 1 is listed twice",
        ),
        (
            builder().lcores([(1, cpu), (2, cpu)]).main_core(3),
            "main core 3 is not among the cores asked for, [1-2]",
        ),
    ];
    for (builder, part) in cases {
        let error = builder
            .run(async |_app: AppHandle| panic!("it was called"))
            .unwrap_err();
        assert!(error.to_string().contains(part), "{part} in: {error}");
    }
}

#[test]
fn an_app_inside_a_spdk_thread_is_an_error_that_names_it() {
    let mut runner = ThreadLib::new()
        .thread()
        .name("host")
        .build()
        .unwrap()
        .attach();
    let ended = runner.enter(|| app(1, IDLE).run(async |_app: AppHandle| ()));
    assert!(matches!(&ended, Err(AppError::InsideThread { thread }) if thread == "host"));
}

/// An event runs on a reactor with no SpdkThread current.
#[test]
fn an_app_inside_an_event_is_an_error() {
    must_end(|| {
        let refused = app(1, IDLE).block_on(async |outer: AppHandle| {
            let (done, ended) = futures::channel::oneshot::channel();
            let event = move || {
                let inner = app(1, IDLE).run(async |_app: AppHandle| ());
                done.send(matches!(inner, Err(AppError::InsideLoop)))
                    .unwrap();
            };
            outer.reactors().send_event(0, event).unwrap();
            ended.await.unwrap()
        });
        assert!(refused.unwrap());
    });
}

// Several apps.

/// No process-wide state: each app has its own threads, ids and reactors.
#[test]
fn two_apps_at_once_know_nothing_of_each_other() {
    must_end(|| {
        let both = Arc::new(std::sync::Barrier::new(2));
        let run = |code: i32| {
            let both = both.clone();
            std::thread::spawn(move || {
                app(2, IDLE).run(async move |app: AppHandle| {
                    both.wait();
                    let other = thread_on(&app, 1);
                    let names = app.library().threads();
                    assert_eq!(names.len(), 2, "only its own: {names:?}");
                    other.spawn(async {}).await.unwrap();
                    both.wait();
                    app.stop(code);
                })
            })
        };
        let apps = [run(1), run(2)];
        let codes = apps.map(|app| app.join().unwrap().unwrap());
        assert_eq!(codes, [1, 2]);
    });
}

#[test]
fn the_calling_os_thread_gets_its_affinity_and_name_back() {
    let before = (
        cpu::current_affinity().unwrap(),
        nix::sys::prctl::get_name().unwrap(),
    );
    let inside = app(1, IDLE).block_on(async |_app: AppHandle| {
        let name = nix::sys::prctl::get_name().unwrap();
        (
            cpu::current_affinity().unwrap().count(),
            name.into_string().unwrap(),
        )
    });
    assert_eq!(inside.unwrap(), (1, "reactor_0".to_owned()));
    let after = (
        cpu::current_affinity().unwrap(),
        nix::sys::prctl::get_name().unwrap(),
    );
    assert_eq!(before, after);
}

// Processes of their own.

/// T-X-16, AP-006.
#[test]
fn sigint_and_sigterm_stop_the_app_with_code_0() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut process = Scenario::start("waits");
        process.says("ready");
        process.send(signal);
        assert_eq!(process.end().code(), Some(0), "{signal}");
    }
}

/// T-X-16: while the app winds down, which takes until the second has come.
#[test]
fn a_second_signal_is_ignored_while_the_app_winds_down() {
    let mut process = Scenario::start("winds down");
    process.says("ready");
    process.send(Signal::SIGINT);
    process.says("winding down");
    process.send(Signal::SIGINT);
    assert_eq!(
        process.end().code(),
        Some(7),
        "the shutdown function's code"
    );
}

/// T-X-16: the main reactor has ended; a thread elsewhere takes its time.
#[test]
fn a_second_signal_is_ignored_until_the_last_reactor_has_ended() {
    let mut process = Scenario::start("lingers elsewhere");
    process.says("ready");
    process.send(Signal::SIGINT);
    process.says("main reactor has ended");
    process.send(Signal::SIGINT);
    assert_eq!(process.end().code(), Some(0));
}

/// T-X-16: while the reactors start, before the start function runs.
#[test]
fn a_signal_during_start_up_stops_the_app() {
    for starting in ["reactor 1 starts", "reactor 0 starts"] {
        assert_eq!(Scenario::start(starting).end().code(), Some(0));
    }
}

/// T-X-16.
#[test]
fn a_signal_inside_the_start_function_stops_the_app() {
    let mut process = Scenario::start("is signalled at start");
    process.says("signalled");
    assert_eq!(process.end().code(), Some(0));
}

#[test]
fn the_third_signal_in_short_order_ends_a_process_whose_reactor_is_blocked() {
    let mut process = Scenario::start("blocks");
    process.says("ready");
    let status = process.insist(Signal::SIGINT);
    assert_eq!(status.signal(), Some(Signal::SIGINT as i32));
}

#[test]
fn the_third_signal_in_short_order_ends_an_app_whose_shutdown_never_stops_it() {
    let mut process = Scenario::start("never stops");
    process.says("ready");
    let status = process.insist(Signal::SIGTERM);
    assert_eq!(status.signal(), Some(Signal::SIGTERM as i32));
}

#[test]
fn stderr_is_told_which_reactor_holds_up_the_end() {
    let mut process = Scenario::start("blocks");
    process.says("ready");
    process.send(Signal::SIGTERM);
    process.complains_of(&[
        "\"app\" has not ended",
        "its shutdown has not begun",
        "reactor 0 does not answer",
        "thread \"app\": on reactor 0",
    ]);
}

#[test]
fn stderr_is_told_what_a_shutdown_that_does_not_stop_the_app_leaves() {
    let mut process = Scenario::start("never stops");
    process.says("ready");
    process.send(Signal::SIGINT);
    process.complains_of(&[
        "\"app\" has not ended",
        "on_shutdown was called",
        "thread \"worker\": has poller scrub, task flush",
    ]);
}

#[test]
fn stderr_is_told_what_an_exiting_thread_waits_for() {
    let mut process = Scenario::start("lingers");
    process.says("ready");
    process.send(Signal::SIGINT);
    process.complains_of(&["has not ended", "thread \"worker\": waits for poller scrub"]);
    // And once more for who asks once more.
    process.send(Signal::SIGINT);
}

/// The app goes on without it, and stops when asked to.
#[test]
fn a_signal_stops_an_app_whose_app_thread_has_exited() {
    for (scenario, code) in [
        ("outlives its thread", 0),
        ("outlives it, with a shutdown", 5),
    ] {
        let mut process = Scenario::start(scenario);
        process.says("ready");
        process.send(Signal::SIGTERM);
        assert_eq!(process.end().code(), Some(code), "{scenario}");
    }
}

/// The place of a critical message is one of the app's own just then.
#[test]
fn a_signal_stops_an_app_that_has_a_critical_message_pending() {
    let process = Scenario::start("has a critical message");
    assert_eq!(process.end().code(), Some(0));
}

#[test]
fn a_shutdown_function_that_panics_stops_the_app_with_code_1() {
    must_end(|| {
        let app = app(1, IDLE).on_shutdown(|_app| panic!("no disk to flush"));
        let code = app.run(async |app: AppHandle| {
            app.start_shutdown();
            std::future::pending().await
        });
        assert_eq!(code.unwrap(), 1);
    });
}

/// The one of the other signal is put back.
#[test]
fn a_handler_that_the_program_installs_meanwhile_stays() {
    let mut process = Scenario::start("installs a handler");
    process.says("ended");
    process.send(Signal::SIGTERM);
    process.says("handled");
    process.send(Signal::SIGINT);
    assert_eq!(process.end().signal(), Some(Signal::SIGINT as i32));
}

#[test]
fn a_forked_child_takes_signals_as_by_default() {
    assert_eq!(Scenario::start("forks").end().code(), Some(0));
}

/// AP-006: a process may inherit a mask that blocks them.
#[test]
fn signals_blocked_by_the_parent_reach_the_app() {
    let mut process = Scenario::start_with_signals_blocked("waits");
    process.says("ready");
    process.send(Signal::SIGTERM);
    assert_eq!(process.end().code(), Some(0));
}

/// AP-006: the option.
#[test]
fn signals_that_the_app_leaves_alone_do_what_they_did() {
    let mut process = Scenario::start("leaves signals alone");
    process.says("ready");
    process.send(Signal::SIGTERM);
    assert_eq!(process.end().signal(), Some(Signal::SIGTERM as i32));
}

#[test]
fn signals_do_what_they_did_once_the_app_has_ended() {
    let mut process = Scenario::start("has ended its app");
    process.says("ended");
    process.send(Signal::SIGINT);
    assert_eq!(process.end().signal(), Some(Signal::SIGINT as i32));
}

/// When the first of two has ended, the other is still asked; after both, signals do
/// what they did.
#[test]
fn an_app_that_is_left_of_two_handles_signals_to_its_end() {
    let mut process = Scenario::start("is left of two");
    process.says("ready");
    process.send(Signal::SIGINT);
    process.says("ended");
    process.send(Signal::SIGINT);
    assert_eq!(process.end().signal(), Some(Signal::SIGINT as i32));
}

/// AP-006: both are told.
#[test]
fn a_signal_stops_every_app_of_the_process() {
    let mut process = Scenario::start("runs two apps");
    process.says("ready");
    process.says("ready");
    process.send(Signal::SIGINT);
    assert_eq!(process.end().code(), Some(0));
}

/// G6.
#[test]
fn a_panic_aborts_the_process_if_asked_to() {
    let status = Scenario::start("aborts on panic").end();
    assert_eq!(status.signal(), Some(Signal::SIGABRT as i32));
}

/// T-AP-19, AP-008: each round does its work, is told to shut down, and leaves the
/// process to the next; the last signal finds no app.
#[test]
fn rounds_of_an_app_each_end_by_a_signal() {
    let mut process = Scenario::start("rounds");
    for _ in 0..4 {
        process.says("ready");
        process.send(Signal::SIGTERM);
        process.says("shut down");
    }
    process.says("ended");
    process.send(Signal::SIGTERM);
    assert_eq!(process.end().signal(), Some(Signal::SIGTERM as i32));
}

/// AP-008: one app after the other, each leaving nothing behind.
#[test]
fn apps_one_after_the_other_leave_no_descriptor_or_os_thread() {
    assert_eq!(Scenario::start("repeats").end().code(), Some(0));
}

/// A reactor that cannot be started takes the others with it, and the next app
/// can start.
#[test]
fn a_reactor_that_fails_to_start_leaves_nothing_behind() {
    assert_eq!(
        Scenario::start("runs out of descriptors").end().code(),
        Some(0)
    );
}

/// What the tests above start in a process of its own; nothing otherwise.
#[test]
#[ignore = "is run by other tests, in a process of its own"]
fn plays_a_scenario() {
    let Some(scenario) = Scenario::played() else {
        return;
    };
    let builder = || app(2, IDLE).handle_signals(true);
    let wait = async |_app: AppHandle| say("ready");
    let ended = match &*scenario {
        "waits" => builder().run(wait),
        "leaves signals alone" => builder().handle_signals(false).run(wait),
        "is signalled at start" => builder().run(async |_app: AppHandle| {
            raise(Signal::SIGINT).unwrap();
            say("signalled");
            std::future::pending().await
        }),
        "reactor 0 starts" | "reactor 1 starts" => {
            let core = scenario.contains('1').into();
            tracing::subscriber::set_global_default(AtStart { core }).unwrap();
            builder().run(async |_app: AppHandle| std::future::pending().await)
        }
        "blocks" => {
            builder()
                .shutdown_limit(Duration::from_millis(50))
                .run(async |_app: AppHandle| {
                    say("ready");
                    loop {
                        std::thread::park();
                    }
                })
        }
        "never stops" => builder()
            .shutdown_limit(Duration::from_millis(50))
            .on_shutdown(|_app| ())
            .run(async |app: AppHandle| {
                busy_worker(&app).await;
                say("ready");
            }),
        "lingers" => {
            builder()
                .shutdown_limit(Duration::from_millis(50))
                .run(async |app: AppHandle| {
                    busy_worker(&app).await;
                    say("ready");
                })
        }
        "outlives its thread" => builder().run(outlive),
        "outlives it, with a shutdown" => builder()
            .on_shutdown(|app| {
                assert!(SpdkThread::current().is_none());
                app.stop(5);
            })
            .run(outlive),
        "has a critical message" => builder().run(async |app: AppHandle| {
            app.app_thread().send_critical_msg(|| ()).unwrap();
            kill(Pid::this(), Signal::SIGTERM).unwrap();
            // Long enough for the signal to be delivered; otherwise this would find
            // less.
            std::thread::sleep(Duration::from_millis(100));
        }),
        "installs a handler" => {
            extern "C" fn handle(_: i32) {
                HANDLED.store(true, Ordering::Relaxed);
            }
            static HANDLED: AtomicBool = AtomicBool::new(false);
            let ran = builder().block_on(async |_app: AppHandle| {
                // SAFETY: the handler stores to an atomic.
                unsafe { signal(Signal::SIGTERM, SigHandler::Handler(handle)) }.unwrap();
            });
            ran.unwrap();
            say("ended");
            wait_until(|| HANDLED.load(Ordering::Relaxed));
            say("handled");
            loop {
                std::thread::park();
            }
        }
        "forks" => builder().run(async |app: AppHandle| {
            // SAFETY: the child makes two system calls.
            let status = match unsafe { fork() }.unwrap() {
                ForkResult::Child => {
                    let _ = raise(Signal::SIGTERM);
                    // SAFETY: the end of the process, without its destructors.
                    unsafe { libc::_exit(7) }
                }
                ForkResult::Parent { child } => waitpid(child, None).unwrap(),
            };
            let expected = matches!(status, WaitStatus::Signaled(_, Signal::SIGTERM, _));
            app.stop(i32::from(!expected));
        }),
        "is left of two" => {
            let (started, starts) = std::sync::mpsc::channel();
            let other = std::thread::spawn(move || {
                builder().block_on(async move |_app: AppHandle| starts.recv().unwrap())
            });
            let code = builder().run(async move |_app: AppHandle| {
                started.send(()).unwrap();
                other.join().unwrap().unwrap();
                say("ready");
            });
            assert_eq!(code.unwrap(), 0);
            say("ended");
            loop {
                std::thread::park();
            }
        }
        "rounds" => {
            for _ in 0..4 {
                let app = builder().on_shutdown(|app| app.stop(0));
                let code = app.run(async |app: AppHandle| {
                    let other = thread_on(&app, 1);
                    assert_eq!(other.spawn(async { 1 }).await.unwrap(), 1);
                    say("ready");
                });
                assert_eq!(code.unwrap(), 0);
                say("shut down");
            }
            say("ended");
            loop {
                std::thread::park();
            }
        }
        "winds down" => builder()
            .on_shutdown(|app| {
                assert!(app.app_thread().is_current());
                let app = app.clone();
                drop(task::spawn_local(async move {
                    say("winding down");
                    // Long enough for the signals to come; longer, or shorter,
                    // changes nothing but what this would find.
                    time::sleep(Duration::from_millis(200)).await;
                    app.stop(7);
                }));
            })
            .run(wait),
        "lingers elsewhere" => builder().run(async |app: AppHandle| {
            let lingering = thread_on(&app, 1);
            let main = app.app_thread();
            lingering
                .send_msg(move || {
                    // Keeps the exit waiting until it is unregistered.
                    let mut turns = 0;
                    let poller = std::rc::Rc::new(std::cell::Cell::new(None));
                    let own = poller.clone();
                    let registered = Poller::timed(Duration::from_millis(1), move || {
                        if main.is_exited() {
                            turns += 1;
                        }
                        match turns {
                            1 => say("main reactor has ended"),
                            200 => drop(own.take()),
                            _ => {}
                        }
                    });
                    poller.set(registered.ok());
                })
                .unwrap();
            say("ready");
        }),
        "has ended its app" => {
            builder().block_on(async |_app: AppHandle| ()).unwrap();
            say("ended");
            loop {
                std::thread::park();
            }
        }
        "runs two apps" => {
            let other = std::thread::spawn(move || builder().run(wait));
            let code = builder().run(wait);
            assert_eq!(other.join().unwrap().unwrap(), 0);
            code
        }
        "aborts on panic" => builder().abort_on_panic().run(async |app: AppHandle| {
            let other = thread_on(&app, 1);
            other.send_msg(|| panic!("fatal")).unwrap();
            std::future::pending().await
        }),
        "repeats" => {
            let round = |_| {
                let code = builder().stop_on_panic(1).run(async |app: AppHandle| {
                    let other = thread_on(&app, 1);
                    other.spawn(async {}).await.unwrap();
                    app.stop(0);
                });
                assert_eq!(code.unwrap(), 0);
                (entries("/proc/self/fd"), entries("/proc/self/task"))
            };
            let counts: Vec<_> = (0..4).map(round).collect();
            assert!(
                counts.windows(2).all(|pair| pair[0] == pair[1]),
                "{counts:?}"
            );
            Ok(0)
        }
        "runs out of descriptors" => runs_out_of_descriptors(),
        unknown => panic!("no scenario {unknown:?}"),
    };
    std::process::exit(ended.unwrap());
}

/// Sends the process SIGINT when the reactor of one core starts.
struct AtStart {
    core: usize,
}

impl tracing::Subscriber for AtStart {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let starts = format!("reactor started on core {}", self.core);
        if format!("{event:?}").contains(&starts) {
            kill(Pid::this(), Signal::SIGINT).unwrap();
        }
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// A thread on the other core with a poller that stays, and a task.
async fn busy_worker(app: &AppHandle) {
    let cpumask = CpuSet::single(1);
    let worker = app.thread().name("worker").cpumask(cpumask);
    let worker = worker
        .exit_timeout(Duration::from_secs(50))
        .create()
        .unwrap();
    let set_up = || {
        let scrub = Poller::builder().name("scrub");
        scrub
            .period(Duration::from_millis(1))
            .register(|| ())
            .unwrap()
            .detach();
        let flush = TaskBuilder::new().name("flush");
        drop(flush.spawn_local(std::future::pending::<()>()));
    };
    worker.call(set_up).await.unwrap();
}

/// The app thread exits, and a thread elsewhere stays.
async fn outlive(app: AppHandle) {
    let stays = thread_on(&app, 1);
    let main = app.app_thread();
    drop(stays.spawn(async move {
        main.exit().await;
        say("ready");
    }));
}

/// Starts apps with more and more descriptors to spare, until one can.
fn runs_out_of_descriptors() -> Result<i32, AppError> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let before = (entries("/proc/self/fd"), entries("/proc/self/task"));
    let mut failures = 0;
    loop {
        let limit = (before.0 + failures) as u64;
        setrlimit(Resource::RLIMIT_NOFILE, limit, hard).unwrap();
        let called = Arc::new(AtomicBool::new(false));
        let witness = called.clone();
        let ended = app(4, IDLE).run(async move |app: AppHandle| {
            witness.store(true, Ordering::Relaxed);
            app.stop(0);
        });
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        match ended {
            Ok(code) => {
                assert!(failures > 4, "it needs more than its eventfds");
                return Ok(code);
            }
            Err(AppError::Start(_)) => failures += 1,
            Err(error) => panic!("{error}"),
        }
        assert!(!called.load(Ordering::Relaxed));
        wait_until(|| entries("/proc/self/task") == before.1);
        assert_eq!(entries("/proc/self/fd"), before.0);
    }
}
