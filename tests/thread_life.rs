//! The life of a SpdkThread: creation, names, messages, statistics, exit.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use corespun::clock::Clock;
use corespun::thread::{
    Activity, CreateError, CriticalMsgError, Framework, ParkedThread, Poller, PollerError,
    PollerState, SpdkThread, ThreadLib, ThreadState,
};
use harness::threads::{Runs, Threads, us};

/// T-TH-01
#[test]
fn a_thread_is_created_exits_and_is_gone() {
    let threads = Threads::allocate(1);
    assert_eq!(threads.library.thread_count(), 1);
    let thread = threads.handle(0);
    assert_eq!(thread.state(), ThreadState::Running);
    assert_eq!(threads.library.app_thread(), Some(thread.clone()));
    threads.free();
    assert_eq!(thread.state(), ThreadState::Exited);
    assert!(thread.library().thread_by_id(thread.id()).is_none());
}

/// Keeps what it is given, or refuses it.
struct Placer {
    refuses: bool,
    placed: std::sync::Mutex<Vec<ParkedThread>>,
}

impl Framework for Placer {
    fn place(&self, thread: ParkedThread) -> Result<(), CreateError> {
        if self.refuses {
            return Err(CreateError::Stopping);
        }
        self.placed.lock().unwrap().push(thread);
        Ok(())
    }
}

/// T-TH-02, T-TH-03, T-TH-04
#[test]
fn a_framework_places_new_threads_or_refuses_them() {
    for refuses in [false, true] {
        let placer = Arc::new(Placer {
            refuses,
            placed: std::sync::Mutex::default(),
        });
        let library = ThreadLib::new();
        assert!(matches!(
            library.thread().create(),
            Err(CreateError::NoFramework)
        ));
        library.set_framework(placer.clone()).unwrap();
        assert!(library.set_framework(placer.clone()).is_err());
        let created = library.thread().create();
        if refuses {
            assert!(matches!(created, Err(CreateError::Stopping)));
            assert_eq!(library.thread_count(), 0);
            continue;
        }
        let thread = created.unwrap();
        let mut runner = placer.placed.lock().unwrap().pop().unwrap().attach();
        assert_eq!(runner.handle(), thread);
        drop(thread.exit());
        while !thread.is_exited() {
            runner.poll(0, 0);
        }
        assert_eq!(library.thread_count(), 0);
    }
}

/// T-TH-05
#[test]
fn a_message_runs_when_its_thread_is_polled() {
    let mut threads = Threads::allocate(2);
    let target = threads.handle(0);
    let done = Arc::new(AtomicUsize::new(0));
    let flag = done.clone();
    threads.on(1, || {
        target
            .send_msg(move || {
                flag.fetch_add(1, Ordering::Relaxed);
            })
            .unwrap();
    });
    assert_eq!(done.load(Ordering::Relaxed), 0);
    threads.poll_thread(1);
    assert_eq!(done.load(Ordering::Relaxed), 0);
    threads.poll_thread(0);
    assert_eq!(done.load(Ordering::Relaxed), 1);
    threads.free();
}

/// T-TH-20
#[test]
fn a_thread_has_its_name_or_one_made_up() {
    let library = ThreadLib::new();
    let unnamed = library.thread().build().unwrap();
    assert!(!unnamed.handle().name().is_empty());
    let named = library.thread().name("test_thread").build().unwrap();
    assert_eq!(named.handle().name(), "test_thread");
}

/// T-X-17
#[test]
fn names_are_cut_at_256_bytes_and_stay_text() {
    let library = ThreadLib::new();
    let long = library.thread().name("n".repeat(300)).build().unwrap();
    assert_eq!(long.handle().name(), "n".repeat(256));
    let just = library.thread().name("n".repeat(256)).build().unwrap();
    assert_eq!(just.handle().name().len(), 256);
    // Two bytes each: the one that would be cut in half goes.
    let name = format!("n{}", "é".repeat(200));
    let accents = library.thread().name(name).build().unwrap();
    assert_eq!(accents.handle().name(), format!("n{}", "é".repeat(127)));
    let mut runner = library.thread().build().unwrap().attach();
    let poller = runner.enter(|| Poller::builder().name("p".repeat(300)).register(|| ()));
    assert_eq!(poller.unwrap().name(), "p".repeat(256));
}

/// T-TH-26
#[test]
fn a_poll_accounts_its_time_as_idle_or_busy() {
    let mut threads = Threads::allocate(1);
    threads.delay_us(10);
    threads.poll_thread_times(0, 1);
    let thread = threads.handle(0);
    let stats = |thread: &SpdkThread| {
        let stats = thread.stats();
        (thread.last_tick(), stats.idle_ticks, stats.busy_ticks)
    };
    assert_eq!(stats(&thread), (10, 0, 0));

    let costs = |threads: &mut Threads, ticks, activity| {
        let time = threads.time.clone();
        let callback = move || {
            time.advance(ticks);
            activity
        };
        threads.on(0, || Poller::active(callback).unwrap())
    };
    let idle = costs(&mut threads, 1000, Activity::Idle);
    for expected in [(1110, 1000, 0), (2210, 2000, 0)] {
        threads.delay_us(100);
        threads.poll_thread_times(0, 1);
        assert_eq!(stats(&thread), expected);
    }
    drop(idle);
    let busy = costs(&mut threads, 100_000, Activity::Busy);
    for expected in [(112_210, 2000, 100_000), (222_210, 2000, 200_000)] {
        threads.delay_us(10_000);
        threads.poll_thread_times(0, 1);
        assert_eq!(stats(&thread), expected);
    }
    drop(busy);
    threads.free();
}

/// T-TH-30
#[test]
fn messages_sent_before_and_after_the_exit_request_run() {
    let mut threads = Threads::allocate(1);
    let thread = threads.handle(0);
    let ran = Arc::new(AtomicUsize::new(0));
    let send = |threads: &mut Threads| {
        let (ran, thread) = (ran.clone(), thread.clone());
        threads.on(0, || {
            thread
                .send_msg(move || {
                    ran.fetch_add(1, Ordering::Relaxed);
                })
                .unwrap();
        });
    };
    send(&mut threads);
    threads.on(0, || drop(thread.exit()));
    send(&mut threads);
    assert_eq!(thread.state(), ThreadState::Exiting);
    threads.poll_thread_times(0, 1);
    assert!(!thread.is_exited());
    threads.poll_threads();
    assert_eq!(ran.load(Ordering::Relaxed), 2);
    assert!(thread.is_exited());
    threads.free();
}

/// T-TH-32
#[test]
fn a_poller_registered_while_exiting_runs_and_holds_the_thread() {
    let mut threads = Threads::allocate(1);
    let (first, second) = (Runs::default(), Runs::default());
    let thread = threads.handle(0);
    let p2 = threads.on(0, || {
        Poller::active(first.idle()).unwrap().unregister();
        drop(thread.exit());
        Poller::active(second.idle()).unwrap()
    });
    threads.poll_threads();
    assert_eq!((first.get(), second.get()), (0, 1));
    assert!(!thread.is_exited());
    p2.unregister();
    threads.poll_threads();
    assert!(thread.is_exited());
    threads.free();
}

/// T-TH-33
#[test]
fn an_exit_is_forced_after_its_timeout() {
    let mut threads = Threads::allocate(1);
    let runs = Runs::default();
    let thread = threads.handle(0);
    threads.delay_us(10_000_000);
    let poller = threads.on(0, || Poller::active(runs.idle()).unwrap());
    threads.on(0, || drop(thread.exit()));
    threads.delay_us(1_000_000);
    threads.poll_threads();
    assert!(!thread.is_exited());
    threads.delay_us(3_999_999);
    threads.poll_threads();
    assert!(!thread.is_exited());
    threads.delay_us(1);
    threads.poll_threads();
    assert!(thread.is_exited());
    // TH-037: on the thread itself, which is what refuses.
    let late = threads.on(0, || Poller::active(|| ()).unwrap_err());
    assert!(matches!(late, PollerError::Exited(_)), "{late}");
    // The handle of what was left is no dangling pointer, and runs nothing.
    assert_eq!(poller.state(), PollerState::Unregistered);
    let ran = runs.take();
    assert!(ran > 0);
    poller.pause();
    poller.resume();
    threads.poll_threads();
    poller.unregister();
    threads.poll_threads();
    assert_eq!(runs.get(), 0);
    threads.free();
}

/// T-X-01. The ring and the spill behind it together hold the limit.
#[test]
fn a_full_mailbox_refuses_and_loses_nothing() {
    let mut threads = Threads::allocate(2);
    let thread = threads.handle(0);
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let send = |n: usize| {
        let order = order.clone();
        thread.send_msg(move || order.lock().unwrap().push(n))
    };
    for n in 0..65_536 {
        send(n).unwrap();
    }
    let refused = send(65_536).unwrap_err();
    assert!(refused.is_full());
    assert!(refused.to_string().contains("65536"), "{refused}");
    threads.poll_threads();
    refused.into_message()();
    let ran = std::mem::take(&mut *order.lock().unwrap());
    assert!(ran.into_iter().eq(0..=65_536));
    threads.free();
}

/// T-X-01, on the way from a thread to itself.
#[test]
fn the_limit_holds_for_what_a_thread_sends_itself() {
    let (clock, _) = Clock::virtual_at(1_000_000);
    let library = ThreadLib::builder().clock(clock).build();
    for limit in [2, 3, 5, 64, 100] {
        let thread = library.thread().message_limit(limit).build().unwrap();
        let mut runner = thread.attach();
        let thread = runner.handle();
        let accepted = || {
            (0..200)
                .take_while(|_| thread.send_msg(|| ()).is_ok())
                .count()
        };
        assert_eq!(accepted(), limit, "from elsewhere");
        assert_eq!(runner.enter(accepted), 0, "it is one limit");
        while runner.poll(0, 0).is_busy() {}
        assert_eq!(runner.enter(accepted), limit, "from itself");
        assert_eq!(accepted(), 0, "it is one limit");
    }
}

thread_local! {
    static CRITICAL: Cell<usize> = const { Cell::new(0) };
}

fn critical() {
    CRITICAL.set(CRITICAL.get() + 1);
    let thread = SpdkThread::current().unwrap();
    assert_eq!(
        thread.send_critical_msg(critical),
        Err(CriticalMsgError::Pending)
    );
}

/// T-X-03. An exited thread says so, where SPDK keeps the message for ever.
#[test]
fn a_critical_message_has_one_place() {
    let mut threads = Threads::allocate(1);
    let thread = threads.handle(0);
    for round in 1..=2 {
        thread.send_critical_msg(critical).unwrap();
        assert_eq!(
            thread.send_critical_msg(critical),
            Err(CriticalMsgError::Pending)
        );
        assert!(threads.runner(0).poll(0, 0).is_busy());
        assert_eq!(CRITICAL.get(), round);
    }
    threads.free();
    assert_eq!(
        thread.send_critical_msg(critical),
        Err(CriticalMsgError::Exited)
    );
}

/// T-X-03
#[test]
fn a_critical_message_may_be_sent_by_a_signal_handler() {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};
    use std::sync::OnceLock;

    static TARGET: OnceLock<SpdkThread> = OnceLock::new();
    static SENT: AtomicUsize = AtomicUsize::new(0);
    static RAN: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn handler(_: i32) {
        let sent = TARGET.get().unwrap().send_critical_msg(|| {
            RAN.fetch_add(1, Ordering::Relaxed);
        });
        SENT.fetch_add(usize::from(sent.is_ok()), Ordering::Relaxed);
    }

    let mut threads = Threads::allocate(1);
    TARGET.set(threads.handle(0)).unwrap();
    let action = SigAction::new(
        SigHandler::Handler(handler),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    // SAFETY: the handler only does what is async-signal-safe.
    unsafe { sigaction(Signal::SIGUSR2, &action) }.unwrap();
    raise(Signal::SIGUSR2).unwrap();
    assert_eq!(SENT.load(Ordering::Relaxed), 1);
    threads.poll_threads();
    assert_eq!(RAN.load(Ordering::Relaxed), 1);
    threads.free();
}

/// T-X-05
#[test]
fn a_poll_runs_at_most_a_batch_of_messages() {
    let ran = Arc::new(AtomicUsize::new(0));
    let mut threads = Threads::allocate(1);
    let thread = threads.handle(0);
    let mut counts = |messages: usize, max_msgs: usize, own: bool| {
        let send = || {
            for _ in 0..messages {
                let ran = ran.clone();
                let count = move || {
                    ran.fetch_add(1, Ordering::Relaxed);
                };
                thread.send_msg(count).unwrap();
            }
        };
        if own {
            threads.on(0, send);
        } else {
            send();
        }
        let mut counts = Vec::new();
        while threads.runner(0).poll(max_msgs, 0).is_busy() {
            counts.push(ran.swap(0, Ordering::Relaxed));
        }
        counts
    };
    for own in [false, true] {
        assert_eq!(counts(20, 0, own), [8, 8, 4]);
        assert_eq!(counts(7, 3, own), [3, 3, 1]);
        assert_eq!(counts(20, 100, own), [8, 8, 4]);
    }
    threads.free();
}

/// A message never runs inside `send_msg`, and one sent by a message waits for
/// the next poll; `exec_msg` runs at once on its own thread.
#[test]
fn a_message_to_oneself_waits_for_a_later_poll() {
    let mut threads = Threads::allocate(1);
    let log = Rc::new(RefCell::new(Vec::new()));
    thread_local! {
        static LOG: RefCell<Option<Rc<RefCell<Vec<u8>>>>> = const { RefCell::new(None) };
    }
    fn note(n: u8) {
        LOG.with_borrow(|log| log.as_ref().unwrap().borrow_mut().push(n));
    }
    LOG.set(Some(log.clone()));
    threads.on(0, || {
        let thread = SpdkThread::current().unwrap();
        let sender = thread.clone();
        let first = move || {
            sender.send_msg(|| note(2)).unwrap();
            note(1);
            sender.exec_msg(|| note(9)).unwrap();
        };
        thread.send_msg(first).unwrap();
        assert!(log.borrow().is_empty());
    });
    threads.runner(0).poll(0, 0);
    assert_eq!(log.take(), [1, 9]);
    threads.runner(0).poll(0, 0);
    assert_eq!(log.take(), [2]);
    threads.free();
}

/// An exit timeout of one's own.
#[test]
fn the_exit_timeout_is_a_setting() {
    let (clock, time) = Clock::virtual_at(1_000_000);
    let library = ThreadLib::builder().clock(clock).build();
    let builder = library.thread().exit_timeout(Duration::from_millis(1));
    let mut runner = builder.build().unwrap().attach();
    let thread = runner.handle();
    let poller = runner.enter(|| Poller::timed(us(10_000), || ()).unwrap());
    drop(thread.exit());
    runner.poll(0, 0);
    runner.poll(0, 0);
    assert_eq!(runner.next_deadline(), Some(1000));
    time.advance(999);
    runner.poll(0, 0);
    assert!(!thread.is_exited());
    time.advance(1);
    runner.poll(0, 0);
    assert!(thread.is_exited());
    assert_eq!(poller.state().to_string(), "unregistered");
}

/// G7: async-task frees a task that nobody refers to, its future undropped. A
/// task that was detached and can be woken by nobody lives until its thread
/// exits, where its future is dropped.
#[test]
fn a_detached_task_that_nobody_can_wake_lives_until_its_thread_exits() {
    for detached_before_its_first_poll in [true, false] {
        let mut threads = Threads::allocate(1);
        let witness = std::rc::Rc::new(());
        let held = witness.clone();
        let handle = threads.on(0, || {
            corespun::task::spawn_local(async move {
                std::future::pending::<()>().await;
                drop(held);
            })
        });
        if detached_before_its_first_poll {
            drop(handle);
            threads.runner(0).poll(0, 0);
        } else {
            threads.runner(0).poll(0, 0);
            drop(handle);
        }
        threads.runner(0).poll(0, 0);
        assert_eq!(std::rc::Rc::strong_count(&witness), 2, "it lives");
        drop(threads.runner(0).exit());
        threads.runner(0).poll(0, 0);
        assert_eq!(std::rc::Rc::strong_count(&witness), 1, "it is gone");
        threads.runner(0).poll(0, 0);
        assert!(threads.runner(0).is_exited());
    }
}
