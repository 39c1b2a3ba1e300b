//! G6: a panic of user code is contained where it happens: the message, task or
//! poller ends, and the thread lives on.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::poll_fn;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Poll, RawWaker, RawWakerVTable, Waker};
use std::time::Duration;

use corespun::channel::IoDevice;
use corespun::iobuf::{Got, Iobuf};
use corespun::task::{self, TaskBuilder};
use corespun::thread::{
    Interrupt, PanicPolicy, PanicSource, Poller, SpdkThread, SpinMutex, Spinlock, SpinlockMisuse,
    ThreadLib, ThreadRunner,
};
use corespun::{clock::Clock, time};

type Reports = Arc<Mutex<Vec<(PanicSource, String)>>>;

fn reporting() -> (ThreadRunner, Reports) {
    let reports = Reports::default();
    let hook = reports.clone();
    let library = ThreadLib::builder()
        .clock(Clock::virtual_at(1_000_000).0)
        .panic_hook(move |panic| {
            assert_eq!(panic.thread, "host");
            let report = (panic.source, panic.message.to_owned());
            hook.lock().unwrap().push(report);
        })
        .build();
    (
        library.thread().name("host").build().unwrap().attach(),
        reports,
    )
}

/// Unwinds without the noise of the default panic hook.
fn quiet_panic(text: &'static str) {
    std::panic::resume_unwind(Box::new(text));
}

fn take(reports: &Reports) -> Vec<(PanicSource, String)> {
    std::mem::take(&mut *reports.lock().unwrap())
}

fn lives_on(mut runner: ThreadRunner) {
    let task = runner.enter(|| task::spawn_local(async { 1 }));
    runner.poll(0, 0);
    assert!(task.is_finished());
    let thread = runner.handle();
    drop(thread.exit());
    for _ in 0..10 {
        runner.poll(0, 0);
    }
    assert!(thread.is_exited());
}

/// Panics when dropped.
struct Grenade(&'static str);

impl Drop for Grenade {
    fn drop(&mut self) {
        quiet_panic(self.0);
    }
}

#[test]
fn a_panicking_message_is_reported_and_the_next_runs() {
    let (mut runner, reports) = reporting();
    let thread = runner.handle();
    thread.send_msg(|| quiet_panic("first")).unwrap();
    let after = Arc::new(());
    let mine = after.clone();
    thread.send_msg(move || drop(mine)).unwrap();
    thread
        .send_critical_msg(|| quiet_panic("critical"))
        .unwrap();
    runner.poll(0, 0);
    let expected = ["critical", "first"].map(|text| (PanicSource::Message, text.to_owned()));
    assert_eq!(take(&reports), expected);
    assert_eq!(Arc::strong_count(&after), 1);
    // Its place is free again.
    thread.send_critical_msg(|| ()).unwrap();
    lives_on(runner);
}

#[test]
fn a_panicking_poller_is_unregistered_and_the_others_run() {
    let (mut runner, reports) = reporting();
    let runs = Rc::new(RefCell::new(0));
    let counter = runs.clone();
    let pollers = runner.enter(|| {
        let older = Poller::active(move || *counter.borrow_mut() += 1);
        (
            older.unwrap(),
            Poller::active(|| quiet_panic("poller")).unwrap(),
        )
    });
    runner.poll(0, 0);
    runner.poll(0, 0);
    assert_eq!(take(&reports), [(PanicSource::Poller, "poller".to_owned())]);
    assert_eq!(*runs.borrow(), 2);
    assert_eq!(pollers.1.state().to_string(), "unregistered");
    drop(pollers);
    lives_on(runner);
}

#[test]
fn a_panicking_task_gives_its_payload_to_who_joins_it() {
    let (mut runner, reports) = reporting();
    let joined = runner.enter(|| task::spawn_local(async { quiet_panic("joined") }));
    runner.poll(0, 0);
    assert!(take(&reports).is_empty());
    let error = futures::executor::block_on(joined).unwrap_err();
    assert!(error.is_panic());
    assert_eq!(error.to_string().rsplit(": ").next(), Some("joined"));
    assert_eq!(*error.into_panic().downcast::<&str>().unwrap(), "joined");
    // Also from a poll after the first.
    let late = runner.enter(|| {
        task::spawn_local(async {
            task::yield_now().await;
            quiet_panic("late");
        })
    });
    runner.poll(0, 0);
    runner.poll(0, 0);
    assert!(futures::executor::block_on(late).unwrap_err().is_panic());
    lives_on(runner);
}

#[test]
fn a_panic_that_nobody_joins_is_reported_once() {
    let (mut runner, reports) = reporting();
    // Detached before it panics, and after.
    drop(runner.enter(|| task::spawn_local(async { quiet_panic("before") })));
    runner.poll(0, 0);
    assert_eq!(take(&reports), [(PanicSource::Task, "before".to_owned())]);
    let handle = runner.enter(|| task::spawn_local(async { quiet_panic("after") }));
    runner.poll(0, 0);
    drop(handle);
    assert_eq!(take(&reports), [(PanicSource::Task, "after".to_owned())]);
    lives_on(runner);
}

#[test]
fn panicking_destructors_are_contained() {
    let (mut runner, reports) = reporting();
    let thread = runner.handle();
    // Of a future: aborted, finished, cancelled before its first poll.
    let spawn = |runner: &mut ThreadRunner, text| {
        let grenade = Grenade(text);
        runner.enter(|| {
            task::spawn_local(async move {
                let _grenade = grenade;
                std::future::pending::<()>().await;
            })
        })
    };
    let aborted = spawn(&mut runner, "aborted");
    runner.poll(0, 0);
    aborted.abort();
    runner.poll(0, 0);
    let unpolled = spawn(&mut runner, "unpolled");
    unpolled.abort();
    runner.poll(0, 0);
    // A panic of the task like any other: told to who joins it, else reported.
    assert!(take(&reports).is_empty());
    let error = futures::executor::block_on(aborted).unwrap_err();
    assert!(error.is_panic() && error.to_string().contains("aborted"));
    drop(unpolled);
    assert_eq!(take(&reports), [(PanicSource::Task, "unpolled".to_owned())]);
    // Of an output that nobody takes.
    drop(runner.enter(|| task::spawn_local(async { Grenade("output") })));
    let dropped_later = runner.enter(|| task::spawn_local(async { Grenade("output") }));
    runner.poll(0, 0);
    assert_eq!(take(&reports), [(PanicSource::Drop, "output".to_owned())]);
    // Off the thread, there is no library to report to: it is logged.
    drop(dropped_later);
    assert_eq!(take(&reports), []);
    // Of a poller's callback, and of a message that runs.
    let grenade = Grenade("callback");
    let poller = runner.enter(|| {
        Poller::active(move || {
            let _ = &grenade;
        })
    });
    drop(poller);
    assert_eq!(take(&reports), [(PanicSource::Drop, "callback".to_owned())]);
    let grenade = Grenade("message");
    thread.send_msg(move || drop(grenade)).unwrap();
    runner.poll(0, 0);
    assert_eq!(
        take(&reports),
        [(PanicSource::Message, "message".to_owned())]
    );
    // Of what an abandoned thread holds: live, unpolled, unrun.
    let live = spawn(&mut runner, "live");
    runner.poll(0, 0);
    let unpolled = spawn(&mut runner, "unpolled");
    let grenade = Grenade("unrun");
    thread.send_msg(move || drop(grenade)).unwrap();
    drop(runner);
    let mut texts: Vec<_> = take(&reports).into_iter().map(|report| report.1).collect();
    texts.sort();
    assert_eq!(texts, ["live", "unpolled", "unrun"]);
    assert!(live.is_finished() && unpolled.is_finished());
}

fn panicking_waker(in_drop: bool) -> Waker {
    fn clone(data: *const ()) -> RawWaker {
        RawWaker::new(data, &VTABLE)
    }
    fn wake(_: *const ()) {
        quiet_panic("wake");
    }
    fn release(data: *const ()) {
        // Only when asked for, and not on top of another panic.
        if !data.is_null() && !std::thread::panicking() {
            quiet_panic("drop");
        }
    }
    static VTABLE: RawWakerVTable = RawWakerVTable::new(clone, wake, wake, release);
    let data = std::ptr::without_provenance(usize::from(in_drop));
    // SAFETY: the functions do nothing with the data but look at it.
    unsafe { Waker::from_raw(RawWaker::new(data, &VTABLE)) }
}

/// A joiner's waker that panics must not reach into async-task, which would
/// abort the process.
#[test]
fn a_panicking_waker_of_a_joiner_is_contained() {
    for in_drop in [false, true] {
        let (mut runner, _) = reporting();
        let mut handle = runner.enter(|| task::spawn_local(std::future::pending::<()>()));
        let waker = std::mem::ManuallyDrop::new(panicking_waker(in_drop));
        let mut cx = std::task::Context::from_waker(&waker);
        for _ in 0..2 {
            let polled = Future::poll(std::pin::Pin::new(&mut handle), &mut cx);
            assert!(polled.is_pending());
        }
        runner.poll(0, 0);
        handle.abort();
        runner.poll(0, 0);
        assert!(handle.is_finished());
        lives_on(runner);
    }
}

#[test]
fn a_panicking_waker_of_a_timer_or_an_exit_is_contained() {
    let (mut runner, reports) = reporting();
    let thread = runner.handle();
    let waker = std::mem::ManuallyDrop::new(panicking_waker(false));
    let mut cx = std::task::Context::from_waker(&waker);
    let mut sleep = time::sleep_until(5);
    let polled = runner.enter(|| Future::poll(std::pin::Pin::new(&mut sleep), &mut cx));
    assert!(polled.is_pending());
    runner.poll(0, 5);
    assert_eq!(take(&reports).len(), 1);
    let mut exit = thread.exit();
    assert!(Future::poll(std::pin::Pin::new(&mut exit), &mut cx).is_pending());
    while !thread.is_exited() {
        runner.poll(0, 0);
    }
    assert_eq!(take(&reports).len(), 1);
}

/// A task that panics while another is in the middle of waking it.
#[test]
fn a_panic_ends_only_its_own_task() {
    let (mut runner, _) = reporting();
    let tasks: Vec<_> = runner.enter(|| {
        (0..8)
            .map(|n| {
                TaskBuilder::new()
                    .name(format!("task {n}"))
                    .spawn_local(poll_fn(move |_| {
                        if n % 2 == 0 {
                            quiet_panic("even");
                        }
                        Poll::Ready(n)
                    }))
            })
            .collect()
    });
    runner.poll(0, 0);
    for (n, task) in tasks.into_iter().enumerate() {
        match futures::executor::block_on(task) {
            Ok(value) => assert_eq!(value, n),
            Err(error) => assert!(error.is_panic() && n % 2 == 0),
        }
    }
    lives_on(runner);
}

/// The function that makes a future belongs to the task.
#[test]
fn a_factory_that_panics_gives_its_payload_to_who_joins_it() {
    let (mut runner, reports) = reporting();
    let thread = runner.handle();
    let joined = thread.spawn_with(|| -> std::future::Pending<()> {
        std::panic::resume_unwind(Box::new("factory"));
    });
    let called = thread.call_async(|| -> std::future::Pending<()> {
        std::panic::resume_unwind(Box::new("factory"));
    });
    runner.poll(0, 0);
    assert!(futures::executor::block_on(joined).unwrap_err().is_panic());
    assert!(futures::executor::block_on(called).unwrap_err().is_panic());
    assert!(take(&reports).is_empty());
    lives_on(runner);
}

/// Whichever of the two panics, the poller ends, and drops both.
#[test]
fn a_panic_in_a_driven_stream_or_its_consumer_unregisters_the_poller() {
    for stream_panics in [true, false] {
        let (mut runner, reports) = reporting();
        let witness = Rc::new(());
        let [in_stream, in_consumer] = [witness.clone(), witness.clone()];
        let stream = futures::stream::poll_fn(move |_| {
            let _ = &in_stream;
            if stream_panics {
                quiet_panic("driven");
            }
            Poll::Ready(Some(()))
        });
        let poller = runner.enter(|| {
            Poller::from_stream(stream, move |()| {
                let _ = &in_consumer;
                quiet_panic("driven");
            })
        });
        runner.poll(0, 0);
        assert_eq!(take(&reports), [(PanicSource::Poller, "driven".to_owned())]);
        assert_eq!(Rc::strong_count(&witness), 1);
        assert!(!runner.has_pollers());
        drop(poller);
        lives_on(runner);
    }
}

/// The callback has returned by the time the hook of the lock that it left held
/// is called.
#[test]
fn a_panicking_hook_of_a_lock_costs_no_callback() {
    let (mut runner, reports) = reporting();
    let lock = Arc::new(Spinlock::with_hook(|error| {
        if error.misuse == SpinlockMisuse::HeldDuringSwitch {
            quiet_panic("hook");
        }
    }));
    let (mut peer, socket) = UnixStream::pair().unwrap();
    let runs = Rc::new(Cell::new([0; 3]));
    let count = |kind: usize| {
        let (runs, lock) = (runs.clone(), lock.clone());
        move || {
            let mut all = runs.get();
            all[kind] += 1;
            runs.set(all);
            if kind > 0 {
                let _ = lock.lock();
            }
        }
    };
    let pollers = runner.enter(|| {
        let timed = Poller::timed(Duration::ZERO, count(0));
        [timed, Poller::active(count(0)), Poller::active(count(1))].map(Result::unwrap)
    });
    let interrupted = count(2);
    let called = move |_| interrupted();
    let _interrupt = runner.enter(|| Interrupt::register(socket, called).unwrap());
    peer.write_all(b"x").unwrap();
    let sent = lock.clone();
    let send = move || drop(sent.lock());
    runner.handle().send_msg(send).unwrap();
    let sent = lock.clone();
    let task = runner.enter(|| task::spawn_local(async move { drop(sent.lock()) }));
    for round in 1..=3 {
        runner.poll(0, 0);
        assert_eq!(runs.get(), [2 * round, round, round]);
        assert!(!take(&reports).is_empty());
    }
    assert!(task.is_finished());
    runner.enter(|| lock.unlock()).unwrap();
    drop((pollers, _interrupt));
    lives_on(runner);
}

/// A guard that is dropped where it does not belong, while a panic unwinds, is
/// no second panic.
#[test]
fn a_hook_that_panics_while_another_panic_unwinds_is_contained() {
    let lock = SpinMutex::with_hook(0, |error| {
        if error.misuse == SpinlockMisuse::NotOnThread {
            quiet_panic("hook");
        }
    });
    let (mut runner, _reports) = reporting();
    let guard = runner.enter(|| lock.lock().unwrap());
    let unwound = catch_unwind(AssertUnwindSafe(|| {
        let _guard = guard;
        quiet_panic("first");
    }));
    assert_eq!(*unwound.unwrap_err().downcast::<&str>().unwrap(), "first");
    drop(lock);
}

/// Handlers that end themselves, whose destructors panic, and one that panics:
/// every other handler of the batch has its turn, and so has the thread.
#[test]
fn an_interrupt_that_unregisters_itself_may_panic_in_its_destructor() {
    let (mut runner, reports) = reporting();
    let handles: Rc<RefCell<Vec<Option<Interrupt>>>> = Rc::default();
    let runs = Rc::new(Cell::new(0));
    let mut peers = Vec::new();
    for place in 0..6 {
        let (mut peer, socket) = UnixStream::pair().unwrap();
        peer.write_all(b"x").unwrap();
        peers.push(peer);
        let grenade = (place % 2 == 0).then(|| Grenade("destructor"));
        let (handles_here, runs) = (handles.clone(), runs.clone());
        let called = move |_| {
            runs.set(runs.get() + 1);
            match place {
                0 | 1 => drop(handles_here.borrow_mut()[place].take()),
                2 | 3 => quiet_panic("handler"),
                _ => assert_eq!(grenade.is_some(), place == 4),
            }
        };
        let interrupt = runner.enter(|| Interrupt::register(socket, called).unwrap());
        handles.borrow_mut().push(Some(interrupt));
    }
    runner.poll(0, 0);
    assert_eq!(runs.take(), 6);
    let mut told: Vec<_> = take(&reports).into_iter().map(|report| report.1).collect();
    told.sort();
    assert_eq!(told, ["destructor", "destructor", "handler", "handler"]);
    runner.poll(0, 0);
    assert_eq!(runs.take(), 2, "those that did nothing wrong");
    runner.enter(|| handles.take());
    assert_eq!(take(&reports).len(), 1);
    lives_on(runner);
}

/// So does a descriptor that its `Interrupt` keeps open.
#[test]
fn a_descriptor_that_panics_when_closed_is_contained() {
    struct Socket(UnixStream, Grenade);
    impl AsFd for Socket {
        fn as_fd(&self) -> BorrowedFd<'_> {
            let _ = &self.1;
            self.0.as_fd()
        }
    }
    let (mut runner, reports) = reporting();
    let (_peer, socket) = UnixStream::pair().unwrap();
    let socket = Socket(socket, Grenade("closed"));
    let interrupt = runner.enter(|| Interrupt::register(socket, |_| ()).unwrap());
    drop(interrupt);
    assert_eq!(take(&reports), [(PanicSource::Drop, "closed".to_owned())]);
    lives_on(runner);
}

/// What a device keeps of the program's goes with its registration or with the
/// library: each of them, and whoever waits hears of the end.
#[test]
fn a_constructor_that_panics_when_dropped_is_contained() {
    let (mut runner, reports) = reporting();
    let witness = Arc::new(());
    let register = |runner: &mut ThreadRunner| {
        let (grenade, mine) = (Grenade("constructor"), witness.clone());
        let construct = move || {
            let _ = (&grenade, &mine);
            Ok::<_, Infallible>(())
        };
        runner.enter(|| IoDevice::builder().register(construct).unwrap())
    };
    let gone = register(&mut runner);
    let channel = runner.enter(|| gone.channel().unwrap());
    let told = runner.enter(|| gone.unregister().unwrap());
    drop(gone);
    runner.enter(|| drop(channel));
    while runner.poll(0, 0).is_busy() {}
    assert_eq!(futures::executor::block_on(told), Ok(()));
    assert_eq!(Arc::strong_count(&witness), 1);
    let report = (PanicSource::Drop, "constructor".to_owned());
    assert_eq!(take(&reports), [report]);
    // Those that were never unregistered go with the library, far from every thread.
    let left: Vec<_> = (0..3).map(|_| register(&mut runner)).collect();
    assert_eq!(Arc::strong_count(&witness), 4);
    drop(left);
    lives_on(runner);
    assert_eq!(Arc::strong_count(&witness), 1);
}

/// A walk comes to its end though what it did cannot be dropped in peace.
#[test]
fn a_walk_ends_though_its_function_panics_when_dropped() {
    let (mut runner, reports) = reporting();
    for panics in [false, true] {
        let grenade = Grenade("function");
        let done = Arc::new(Mutex::new(None));
        let told = done.clone();
        let library = runner.handle().library();
        let visit = move |_: &SpdkThread| {
            let _ = &grenade;
            if panics {
                quiet_panic("visit");
            }
        };
        let walk = runner
            .enter(|| library.for_each_thread(visit, move |end| *told.lock().unwrap() = Some(end)));
        walk.unwrap();
        while runner.poll(0, 0).is_busy() {}
        let walked = done.lock().unwrap().take().unwrap();
        assert_eq!(walked.is_err(), panics);
        let told: Vec<_> = take(&reports).into_iter().map(|report| report.1).collect();
        let expected = [&["visit"][..usize::from(panics)], &["function"]].concat();
        assert_eq!(told.len(), expected.len(), "{told:?}");
    }
    lives_on(runner);
}

/// The same for one over channels whose origin is gone, so that the function is
/// dropped where it panicked.
#[test]
fn a_walk_whose_origin_is_gone_ends_where_its_function_panics() {
    let (mut runner, reports) = reporting();
    let library = runner.handle().library();
    let mut origin = library.thread().name("host").build().unwrap().attach();
    let device = runner.enter(|| IoDevice::builder().register(|| Ok::<_, Infallible>(())));
    let device = device.unwrap();
    let _channel = runner.enter(|| device.channel().unwrap());
    let grenade = Grenade("function");
    let walk = origin.enter(|| {
        let visit = move |_: &()| {
            let _ = &grenade;
            quiet_panic("visit");
            Ok::<_, Infallible>(())
        };
        device.for_each_channel(visit, |_| panic!("nobody is told"))
    });
    walk.unwrap();
    drop(origin);
    runner.poll(0, 0);
    let told: Vec<_> = take(&reports).into_iter().map(|report| report.1).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(runner.enter(|| device.unregister_with(|| ())).is_ok());
}

/// A request that a closing channel takes back cannot keep its buffers.
#[test]
fn a_waiter_that_panics_when_dropped_costs_no_buffer() {
    let (mut runner, reports) = reporting();
    let iobuf = runner.enter(|| Iobuf::builder().small(64, 4096).large(8, 8192).build());
    let iobuf = iobuf.unwrap();
    iobuf.register_module("null").unwrap();
    let free = iobuf.free_counts();
    let channel = runner.enter(|| iobuf.channel("null", 4, 2).unwrap());
    let other = runner.enter(|| iobuf.channel("null", 8, 0).unwrap());
    let large: Vec<_> = std::iter::from_fn(|| channel.try_get(8192).unwrap()).collect();
    for _ in 0..2 {
        let grenade = Grenade("waiter");
        let called = move |_| drop(grenade);
        let got = runner.enter(|| channel.get_with(8192, called).unwrap());
        assert!(matches!(got, Got::Waiting(_)));
    }
    runner.enter(|| drop(channel));
    drop(large);
    runner.enter(|| drop(other));
    assert_eq!(iobuf.free_counts(), free);
    assert_eq!(take(&reports).len(), 2);
    lives_on(runner);
}

/// What a thread and its library hold of the user's goes with the last handle,
/// which may be a waker, far from everything.
#[test]
fn a_destructor_that_the_last_waker_runs_is_contained() {
    let reports = Reports::default();
    let (hook, in_hook) = (reports.clone(), Grenade("hook"));
    let library = ThreadLib::builder().panic_hook(move |panic| {
        let _ = &in_hook;
        let report = (panic.source, panic.message.to_owned());
        hook.lock().unwrap().push(report);
    });
    let library = library.build();
    let builder = library.thread().context(Grenade("context"));
    let mut runner = builder.build().unwrap().attach();
    let slot = Rc::new(RefCell::new(None));
    let give = slot.clone();
    drop(runner.enter(|| {
        task::spawn_local(poll_fn(move |cx| {
            *give.borrow_mut() = Some(cx.waker().clone());
            Poll::<()>::Pending
        }))
    }));
    runner.poll(0, 0);
    drop((runner, library));
    assert!(take(&reports).is_empty());
    let waker: Waker = slot.take().unwrap();
    std::thread::spawn(move || drop(waker)).join().unwrap();
    assert_eq!(take(&reports), [(PanicSource::Drop, "context".to_owned())]);
    assert_eq!(Arc::strong_count(&reports), 1, "the library is gone");
}

/// Set for the process that is to abort, to what panics in it.
const ABORTS: &str = "CORESPUN_TEST_ABORTS";

/// The policy to abort holds for panics that somebody could still receive, too.
/// In a process of its own each, which is this test again.
#[test]
fn where_the_policy_is_to_abort_any_panic_aborts() {
    if let Ok(what) = std::env::var(ABORTS) {
        let library = ThreadLib::builder().panic_policy(PanicPolicy::Abort);
        let mut runner = library.build().thread().build().unwrap().attach();
        let thread = runner.handle();
        let boom = || quiet_panic("on purpose");
        // Kept, since what nobody joins is reported, and so fatal, anyway.
        let task = (what == "task").then(|| thread.spawn_with(async move || boom()));
        let call = (what == "call").then(|| thread.call(boom));
        std::mem::forget((task, call));
        if what == "message" {
            thread.send_msg(boom).unwrap();
        }
        let _poller = (what == "poller").then(|| runner.enter(|| Poller::active(boom)));
        runner.poll(0, 0);
        return;
    }
    let run = |what| {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "where_the_policy_is_to_abort_any_panic_aborts"])
            .env(ABORTS, what)
            .output()
            .unwrap()
            .status
    };
    assert!(run("nothing").success());
    for what in ["task", "call", "message", "poller"] {
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(run(what).signal(), Some(libc::SIGABRT), "{what}");
    }
}
