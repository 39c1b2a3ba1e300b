//! What an app's subsystems are guaranteed: their order, and that each that came up goes
//! down, once, however the app ends.

use std::error::Error;
use std::future::pending;
use std::os::unix::process::ExitStatusExt;
use std::rc::Rc;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use corespun::app::{AppBuilder, AppError, AppHandle, Subsystem, SubsystemError};
use corespun::reactor::ReactorMode;
use corespun::reactor::scheduler::{Plan, Scheduler, Snapshot};
use corespun::{task, time};
use futures::future::LocalBoxFuture;
use harness::process::{Scenario, say};
use harness::reactors::{app, must_end};
use nix::sys::signal::Signal;

type Failure = Box<dyn Error + Send + Sync>;
type Init = Box<dyn FnOnce(AppHandle) -> LocalBoxFuture<'static, Result<(), Failure>> + Send>;
type Fini = Box<dyn FnOnce(AppHandle) -> LocalBoxFuture<'static, ()> + Send>;

/// What happened, in order; and whose init has ended.
#[derive(Clone, Default)]
struct Log {
    notes: Arc<Mutex<Vec<String>>>,
    up: Arc<Mutex<Vec<String>>>,
}

impl Log {
    fn note(&self, what: impl Into<String>) {
        self.notes.lock().unwrap().push(what.into());
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.notes.lock().unwrap())
    }

    /// A subsystem that notes its init and fini.
    fn part(&self, name: &str, after: &[&str]) -> Part {
        Part {
            name: name.to_owned(),
            after: after.iter().map(ToString::to_string).collect(),
            log: self.clone(),
            init: Box::new(|_app| Box::pin(async { Ok(()) })),
            fini: Box::new(|_app| Box::pin(async {})),
        }
    }
}

struct Part {
    name: String,
    after: Vec<String>,
    log: Log,
    init: Init,
    fini: Fini,
}

impl Part {
    fn init(
        mut self,
        f: impl AsyncFnOnce(AppHandle) -> Result<(), Failure> + Send + 'static,
    ) -> Self {
        self.init = Box::new(|app| Box::pin(async move { f(app).await }));
        self
    }

    fn fini(mut self, f: impl AsyncFnOnce(AppHandle) + Send + 'static) -> Self {
        self.fini = Box::new(|app| Box::pin(async move { f(app).await }));
        self
    }
}

impl Subsystem for Part {
    /// Not `Send`: it stays where it was made.
    type Running = (Rc<str>, Log, Fini);

    fn name(&self) -> &str {
        &self.name
    }

    fn depends_on(&self) -> Vec<&str> {
        self.after.iter().map(String::as_str).collect()
    }

    async fn init(self, app: AppHandle) -> Result<Self::Running, Failure> {
        assert!(app.app_thread().is_current());
        self.log.note(format!("init {}", self.name));
        (self.init)(app).await?;
        self.log.up.lock().unwrap().push(self.name.clone());
        Ok((self.name.into(), self.log, self.fini))
    }

    async fn fini((name, log, fini): Self::Running, app: AppHandle) {
        assert!(app.app_thread().is_current());
        assert!(app.is_stopping() || !app.app_thread().is_running());
        log.note(format!("fini {name}"));
        fini(app).await;
    }
}

fn idle(reactors: usize) -> AppBuilder {
    app(reactors, ReactorMode::Interrupt)
}

/// An app with these subsystems, each with those that it depends on.
fn with(log: &Log, parts: &[(&str, &[&str])]) -> AppBuilder {
    let add =
        |app: AppBuilder, (name, after): &(&str, &[&str])| app.subsystem(log.part(name, after));
    parts.iter().fold(idle(1), add)
}

/// The names in the order that the app lists them.
fn order(app: AppBuilder) -> Vec<String> {
    let names = |app: &AppHandle| app.subsystems().iter().map(|it| it.name.clone()).collect();
    app.block_on(async move |app| names(&app)).unwrap()
}

/// The error of an app that was not started.
fn refused(app: AppBuilder, log: &Log) -> SubsystemError {
    let ended = app.run(async |_app| panic!("it was called"));
    assert!(log.take().is_empty(), "something was started");
    match ended {
        Err(AppError::Subsystem(error)) => error,
        other => panic!("{other:?}"),
    }
}

// Order.

/// T-AP-09.
#[test]
fn a_chain_comes_up_from_its_end_and_goes_down_in_reverse() {
    must_end(|| {
        let log = Log::default();
        let app = with(
            &log,
            &[("1", &["2"]), ("2", &["3"]), ("3", &["4"]), ("4", &[])],
        );
        let started = log.clone();
        app.block_on(async move |_app| started.note("start"))
            .unwrap();
        let expected = [
            "init 4", "init 3", "init 2", "init 1", "start", "fini 1", "fini 2", "fini 3", "fini 4",
        ];
        assert_eq!(log.take(), expected);
    });
}

/// T-AP-10: eight subsystems, eight dependencies.
#[test]
fn dependencies_precede_and_the_rest_is_as_registered() {
    must_end(|| {
        let parts: [(&str, &[&str]); 8] = [
            ("iscsi", &["scsi", "sock", "rpc"]),
            ("nvmf", &["interface"]),
            ("sock", &["interface"]),
            ("bdev", &["accel"]),
            ("rpc", &["interface"]),
            ("scsi", &["bdev"]),
            ("interface", &[]),
            ("accel", &[]),
        ];
        let sorted = [
            "interface",
            "accel",
            "nvmf",
            "sock",
            "bdev",
            "rpc",
            "scsi",
            "iscsi",
        ];
        let log = Log::default();
        assert_eq!(order(with(&log, &parts)), sorted);
        let inits: Vec<_> = sorted.iter().map(|name| format!("init {name}")).collect();
        assert_eq!(log.take()[..8], inits);
        let independent: [(&str, &[&str]); 3] = [("c", &[]), ("a", &[]), ("b", &[])];
        assert_eq!(order(with(&log, &independent)), ["c", "a", "b"]);
    });
}

/// RP-015.
#[test]
fn subsystems_are_listed_with_what_they_depend_on() {
    must_end(|| {
        let log = Log::default();
        let app = with(
            &log,
            &[("bdev", &["accel", "sock"]), ("sock", &[]), ("accel", &[])],
        );
        let list = app.block_on(async |app| app.subsystems().to_vec()).unwrap();
        let list: Vec<_> = list.iter().map(|it| (&*it.name, &*it.depends_on)).collect();
        let both = ["accel".to_owned(), "sock".to_owned()];
        assert_eq!(list, [("sock", &[][..]), ("accel", &[]), ("bdev", &both)]);
        let none = idle(1).block_on(async |app| app.subsystems().len());
        assert_eq!(none.unwrap(), 0);
    });
}

/// T-AP-11; and a name that is taken.
#[test]
fn a_missing_dependency_and_a_name_registered_twice_start_nothing() {
    let log = Log::default();
    let missing = refused(with(&log, &[("c", &[]), ("a", &["c", "b"])]), &log);
    assert!(
        matches!(&missing, SubsystemError::Missing { name, dependency } if name == "a" && dependency == "b"),
        "{missing:?}"
    );
    let twice = refused(with(&log, &[("a", &[]), ("b", &[]), ("a", &["b"])]), &log);
    assert!(
        matches!(&twice, SubsystemError::Registered { name } if name == "a"),
        "{twice:?}"
    );
}

/// T-X-22.
#[test]
fn a_cycle_is_an_error_that_names_it() {
    must_end(|| {
        let log = Log::default();
        // "first" and "above" are on no cycle.
        let parts: [(&str, &[&str]); 5] = [
            ("above", &["first", "x"]),
            ("x", &["first", "y"]),
            ("y", &["z"]),
            ("z", &["x"]),
            ("first", &[]),
        ];
        match refused(with(&log, &parts), &log) {
            SubsystemError::Cycle { names } => assert_eq!(names, ["x", "y", "z"]),
            other => panic!("{other:?}"),
        }
        let own = refused(with(&log, &[("self", &["self"])]), &log);
        assert_eq!(
            own.to_string(),
            "subsystems depend on each other: self -> self"
        );
    });
}

// Failures of the init.

/// T-AP-12, whichever way the app is run.
#[test]
fn an_init_that_fails_stops_the_app_and_finishes_those_before_it() {
    must_end(|| {
        let log = Log::default();
        let app = || {
            let last = log.part("last", &["fails"]);
            let fails = log.part("fails", &["second"]);
            let fails = fails.init(async |_app| Err(std::io::Error::other("no disk"))?);
            with(&log, &[("first", &[]), ("second", &[])])
                .subsystem(last)
                .subsystem(fails)
        };
        let ended = [
            app().run(async |_app| panic!("it was called")).map(drop),
            app().block_on(async |_app| panic!("it was called")),
            app().try_block_on(async |_app| -> Result<(), AppError> { panic!("it was called") }),
        ];
        for ended in ended {
            let Err(AppError::Subsystem(SubsystemError::Init { name, source })) = ended else {
                panic!("not reported: {ended:?}");
            };
            assert_eq!(name, "fails");
            let source = source.downcast::<std::io::Error>().unwrap();
            assert_eq!(source.to_string(), "no disk");
        }
        let one = [
            "init first",
            "init second",
            "init fails",
            "fini second",
            "fini first",
        ];
        assert_eq!(log.take(), [one, one, one].concat());
    });
}

/// In its first poll and later.
#[test]
fn an_init_that_panics_has_failed() {
    for later in [false, true] {
        must_end(move || {
            let log = Log::default();
            let panics = log.part("panics", &[]).init(async move |_app| {
                if later {
                    time::sleep(Duration::from_micros(50)).await;
                }
                panic!("no disk found")
            });
            let app = with(&log, &[("first", &[])]).subsystem(panics);
            let ended = app.run(async |_app| panic!("it was called"));
            let Err(AppError::Subsystem(error)) = ended else {
                panic!("not reported: {ended:?}");
            };
            let expected = "the init of subsystem \"panics\" panicked: no disk found";
            assert_eq!(error.to_string(), expected);
            assert_eq!(log.take(), ["init first", "init panics", "fini first"]);
        });
    }
}

// The stop.

/// AP-007.
#[test]
fn wherever_the_stop_comes_from_each_is_finished_once() {
    type Stopper = fn(AppHandle);
    let from: [(&str, Stopper); 5] = [
        ("the start function, twice", |app| {
            app.stop(4);
            app.stop(0);
        }),
        ("a thread of another reactor", |app| {
            let other = app.thread().create().unwrap();
            other.send_msg(move || app.stop(4)).unwrap();
        }),
        ("an event", |app| {
            let reactors = app.reactors();
            reactors.send_event(1, move || app.stop(4)).unwrap();
        }),
        ("a foreign OS thread", |app| {
            std::thread::spawn(move || app.stop(4));
        }),
        ("a panic", |_app| {
            drop(task::spawn_local(async { panic!("nobody receives it") }))
        }),
    ];
    for (whence, stop) in from {
        eprintln!("from {whence}");
        must_end(move || {
            let log = Log::default();
            let app = idle(2)
                .stop_on_panic(4)
                .subsystem(log.part("a", &[]))
                .subsystem(log.part("b", &[]));
            let code = app.run(async move |app: AppHandle| {
                stop(app);
                pending().await
            });
            assert_eq!(code.unwrap(), 4);
            assert_eq!(log.take(), ["init a", "init b", "fini b", "fini a"]);
        });
    }
}

/// AP-006, AP-007.
#[test]
fn the_shutdown_function_is_called_before_the_first_fini() {
    must_end(|| {
        let log = Log::default();
        let shutdown = log.clone();
        let app = with(&log, &[("a", &[])]).on_shutdown(move |app| {
            shutdown.note("shutdown");
            app.stop(3);
        });
        let code = app.run(async |app| app.start_shutdown());
        assert_eq!(code.unwrap(), 3);
        assert_eq!(log.take(), ["init a", "shutdown", "fini a"]);
    });
}

#[test]
fn a_start_function_that_panics_leaves_nothing_up() {
    must_end(|| {
        let log = Log::default();
        let ended = with(&log, &[("a", &[])]).run(async |_app| panic!("no disk found"));
        assert!(
            matches!(ended, Err(AppError::StartPanicked { .. })),
            "{ended:?}"
        );
        assert_eq!(log.take(), ["init a", "fini a"]);
    });
}

/// Threads can still be made, and those there are still run.
#[test]
fn the_reactors_run_until_the_last_fini_has_ended() {
    must_end(|| {
        let log = Log::default();
        let said = log.clone();
        let part = log.part("a", &[]).fini(async move |app| {
            let worker = app.thread().name("worker").create().unwrap();
            let name = worker.call(|| {
                let thread = corespun::thread::SpdkThread::current().unwrap();
                thread.name().to_owned()
            });
            said.note(name.await.unwrap());
            time::sleep(Duration::from_micros(50)).await;
            let start = app.library().threads().len();
            said.note(format!("{start} threads"));
        });
        idle(2)
            .subsystem(part)
            .run(async |app| app.stop(0))
            .unwrap();
        assert_eq!(log.take(), ["init a", "fini a", "worker", "2 threads"]);
    });
}

/// A scheduler whose round takes until the test lets it go on.
struct Slow {
    log: Log,
    begins: Option<futures::channel::oneshot::Sender<()>>,
    go_on: mpsc::Receiver<()>,
}

impl Scheduler for Slow {
    fn balance(&mut self, _snapshot: &Snapshot) -> Plan {
        if let Some(begins) = self.begins.take() {
            begins.send(()).unwrap();
            self.go_on.recv().unwrap();
            self.log.note("round");
        }
        Plan::new()
    }
}

/// AP-007.
#[test]
fn a_round_of_the_scheduler_that_is_under_way_ends_before_the_first_fini() {
    must_end(|| {
        let log = Log::default();
        let (begins, begun) = futures::channel::oneshot::channel();
        let (go_on, goes_on) = mpsc::channel();
        let slow = Slow {
            log: log.clone(),
            begins: Some(begins),
            go_on: goes_on,
        };
        let app = idle(2)
            .scheduling_core(1)
            .scheduler_period(Duration::ZERO)
            .register_scheduler("slow", slow)
            .subsystem(log.part("a", &[]));
        let code = app.run(async move |app: AppHandle| {
            let schedulers = app.reactors().schedulers();
            schedulers.set("slow").await.unwrap();
            drop(schedulers.run_round());
            begun.await.unwrap();
            app.stop(0);
            for _ in 0..100 {
                task::yield_now().await;
            }
            go_on.send(()).unwrap();
        });
        assert_eq!(code.unwrap(), 0);
        assert_eq!(log.take(), ["init a", "round", "fini a"]);
    });
}

// The stop during the init.

/// Notes that it is dropped, and panics then if told to.
struct Witness(Log, bool);

impl Drop for Witness {
    fn drop(&mut self) {
        self.0.note("dropped");
        assert!(!self.1, "a destructor");
    }
}

/// AP-007: the init under way is cancelled, and those before it are finished.
#[test]
fn a_stop_during_an_init_finishes_what_is_up() {
    for panics in [false, true] {
        must_end(move || {
            let log = Log::default();
            let waits = || {
                let witness = Witness(log.clone(), panics);
                log.part("waits", &[]).init(async move |app| {
                    let _witness = witness;
                    std::thread::spawn(move || app.stop(0));
                    pending().await
                })
            };
            let never = || {
                let witness = Witness(log.clone(), panics);
                log.part("never", &[]).init(async move |_app| {
                    drop(witness);
                    Ok(())
                })
            };
            let app = || {
                with(&log, &[("up", &[])])
                    .subsystem(waits())
                    .subsystem(never())
            };
            let all = ["init up", "init waits", "dropped", "fini up", "dropped"];
            let code = app().run(async |_app| panic!("it was called"));
            let ended = app().block_on(async |_app| panic!("it was called"));
            assert_eq!(log.take(), [all, all].concat());
            if panics {
                let expected = "the init of subsystem \"waits\" panicked: a destructor";
                assert_eq!(code.unwrap_err().to_string(), expected);
                assert_eq!(ended.unwrap_err().to_string(), expected);
            } else {
                assert_eq!(code.unwrap(), 0);
                assert!(matches!(ended, Err(AppError::Stopped { code: 0 })));
            }
        });
    }
}

#[test]
fn an_init_that_stops_the_app_and_ends_is_finished() {
    must_end(|| {
        let log = Log::default();
        let stops = log.part("stops", &[]).init(async |app| {
            app.stop(2);
            Ok(())
        });
        let app = idle(1).subsystem(stops).subsystem(log.part("never", &[]));
        assert_eq!(app.run(async |_app| panic!("it was called")).unwrap(), 2);
        assert_eq!(log.take(), ["init stops", "fini stops"]);
    });
}

/// Whenever it comes: what came up goes down, in reverse, and nothing else does.
#[test]
fn a_stop_at_any_moment_keeps_the_books() {
    must_end(|| {
        for round in 0..150 {
            let log = Log::default();
            let stops = log.part("stops", &[]).init(async move |app| {
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_micros(2 * round));
                    app.stop(7);
                });
                Ok(())
            });
            let mut app = idle(2).subsystem(stops);
            for name in ["a", "b", "c"] {
                app = app.subsystem(log.part(name, &[]).init(async move |_app| {
                    time::sleep(Duration::from_micros(round)).await;
                    Ok(())
                }));
            }
            assert_eq!(app.run(async |_app| ()).unwrap(), 7);
            let of = |what: &str, log: &[String]| -> Vec<_> {
                let names = log.iter().filter_map(|it| it.strip_prefix(what));
                names.map(str::to_owned).collect()
            };
            let up = log.up.lock().unwrap().clone();
            let log = log.take();
            let begun = of("init ", &log);
            let mut down = of("fini ", &log);
            down.reverse();
            assert_eq!(up, down, "{log:?}");
            assert!(begun.len() - up.len() <= 1, "{log:?}");
        }
    });
}

// The fini.

#[test]
fn a_fini_that_panics_is_reported_and_the_next_goes_on() {
    for later in [false, true] {
        must_end(move || {
            let log = Log::default();
            let panics = log.part("panics", &[]).fini(async move |_app| {
                if later {
                    task::yield_now().await;
                }
                panic!("cannot flush")
            });
            let app = with(&log, &[("a", &[])]).subsystem(panics).stop_on_panic(9);
            // What stops the app on a panic is the report.
            assert_eq!(app.run(async |app| app.stop(0)).unwrap(), 9);
            assert_eq!(
                log.take(),
                ["init a", "init panics", "fini panics", "fini a"]
            );
        });
    }
}

/// One without fini: what its init made, and whether its destructor panics.
struct NoFini(&'static str, Log, bool);

impl Subsystem for NoFini {
    type Running = (Log, Witness);

    fn name(&self) -> &str {
        self.0
    }

    async fn init(self, _app: AppHandle) -> Result<Self::Running, Failure> {
        let witness = Witness(self.1.clone(), self.2);
        Ok((self.1, witness))
    }
}

#[test]
fn one_without_fini_is_dropped_when_its_turn_comes() {
    for panics in [false, true] {
        must_end(move || {
            let log = Log::default();
            let app = with(&log, &[("a", &[])])
                .subsystem(NoFini("b", log.clone(), panics))
                .subsystem(log.part("c", &[]))
                .stop_on_panic(9);
            let code = app.run(async |app| app.stop(0)).unwrap();
            assert_eq!(code, if panics { 9 } else { 0 });
            let expected = ["init a", "init c", "fini c", "dropped", "fini a"];
            assert_eq!(log.take(), expected);
        });
    }
}

// The app thread ends before the app.

/// Its exit is their last chance.
#[test]
fn an_exit_of_the_app_thread_finishes_them_and_the_app_goes_on() {
    must_end(|| {
        let log = Log::default();
        let yields = log
            .part("yields", &[])
            .fini(async |_app| task::yield_now().await);
        let app = idle(2).subsystem(log.part("a", &[])).subsystem(yields);
        let later = log.clone();
        let code = app.run(async move |app: AppHandle| {
            std::thread::spawn(move || {
                futures::executor::block_on(app.app_thread().exit());
                assert!(!app.is_stopping());
                later.note("stop");
                app.stop(5);
            });
        });
        assert_eq!(code.unwrap(), 5);
        let expected = ["init a", "init yields", "fini yields", "fini a", "stop"];
        assert_eq!(log.take(), expected);
    });
}

/// Nobody would stop it: the start function is never called.
#[test]
fn an_exit_of_the_app_thread_during_an_init_stops_the_app() {
    must_end(|| {
        let log = Log::default();
        let exits = log.part("exits", &[]).init(async |app| {
            drop(app.app_thread().exit());
            pending().await
        });
        let app = with(&log, &[("a", &[])]).subsystem(exits);
        assert_eq!(app.run(async |_app| panic!("it was called")).unwrap(), 1);
        assert_eq!(log.take(), ["init a", "init exits", "fini a"]);
    });
}

// Processes of their own.

/// A signal during an init that would wait for ever, and during such a fini.
#[test]
fn a_signal_ends_an_init_and_stderr_is_told_of_a_fini_that_does_not_end() {
    let mut process = Scenario::start("waits in its init");
    process.says("ready");
    process.send(Signal::SIGTERM);
    assert_eq!(process.end().code(), Some(0));

    let mut process = Scenario::start("waits in its fini");
    process.says("ready");
    process.send(Signal::SIGINT);
    process.says("finishing");
    // What is said before that does not name it.
    process.send(Signal::SIGINT);
    process.complains_of(&["the fini of subsystem \"a\" has not ended"]);
    // As anything else that does not end.
    assert_eq!(process.insist(Signal::SIGINT).signal(), Some(2));
}

#[test]
#[ignore = "is run by other tests, in a process of its own"]
fn plays_a_scenario() {
    let Some(scenario) = Scenario::played() else {
        return;
    };
    let log = Log::default();
    let part = match scenario.as_str() {
        "waits in its init" => log.part("a", &[]).init(async |_app| {
            say("ready");
            pending().await
        }),
        _ => log.part("a", &[]).fini(async |_app| {
            say("finishing");
            pending().await
        }),
    };
    let app = corespun::app::App::builder()
        .mode(ReactorMode::Interrupt)
        .shutdown_limit(Duration::from_millis(10))
        .subsystem(part);
    let code = app.run(async |_app| say("ready")).unwrap();
    std::process::exit(code);
}
