//! What listening for signals guarantees: who is told, where, and what becomes of
//! signals that nobody listens for any more.
//!
//! Signals belong to the process. Tests in this one use a real-time signal each;
//! those about what a signal does by default run in a process of their own.

use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use corespun::app::AppHandle;
use corespun::cpu::CpuSet;
use corespun::reactor::ReactorMode;
use corespun::signal::{SignalKind, Signals, ctrl_c};
use corespun::task;
use corespun::thread::SpdkThread;
use futures::StreamExt;
use harness::process::{Scenario, entries, say};
use harness::reactors::{app, must_end, wait_until};
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

const IDLE: ReactorMode = ReactorMode::Interrupt;

/// A real-time signal, which nothing else in this process uses.
fn own(number: i32) -> SignalKind {
    SignalKind::from_raw(libc::SIGRTMIN() + number)
}

/// Sends it to this process.
fn send(kind: SignalKind) {
    // SAFETY: a system call without pointers.
    assert_eq!(unsafe { libc::kill(libc::getpid(), kind.as_raw()) }, 0);
}

fn poll(signals: &mut Signals) -> Poll<SignalKind> {
    signals.poll_recv(&mut Context::from_waker(Waker::noop()))
}

/// The reactor sleeps, and nothing but the signal wakes it.
#[test]
fn a_signal_is_delivered_on_the_thread_that_awaits_it() {
    must_end(|| {
        let told = app(2, IDLE).block_on(async |app: AppHandle| {
            let cpumask = CpuSet::single(1);
            let listens = app.thread().name("listens").cpumask(cpumask).create();
            let (listening, ready) = futures::channel::oneshot::channel();
            let told = listens.unwrap().spawn_with(async move || {
                let mut signals = Signals::new([own(1)]).unwrap();
                listening.send(()).unwrap();
                let kind = signals.recv().await;
                let here = SpdkThread::current().unwrap().name().to_owned();
                (kind, here)
            });
            ready.await.unwrap();
            let reactors = app.reactors();
            std::thread::spawn(move || {
                wait_until(|| reactors.stats()[1].asleep);
                send(own(1));
            });
            told.await.unwrap()
        });
        assert_eq!(told.unwrap(), (own(1), "listens".to_owned()));
    });
}

/// In two apps, and off any SpdkThread.
#[test]
fn everyone_who_listens_is_told() {
    must_end(|| {
        let all = Arc::new(std::sync::Barrier::new(4));
        let listen = |kind| {
            let all = all.clone();
            std::thread::spawn(move || {
                app(1, IDLE)
                    .block_on(async move |_app: AppHandle| {
                        let (mut one, mut other) =
                            (Signals::new([kind]).unwrap(), Signals::new([kind]).unwrap());
                        all.wait();
                        futures::join!(one.recv(), other.recv());
                    })
                    .unwrap();
            })
        };
        let apps = [listen(own(2)), listen(own(2))];
        let waits = all.clone();
        let foreign = std::thread::spawn(move || {
            let mut signals = Signals::new([own(2)]).unwrap();
            waits.wait();
            futures::executor::block_on(signals.next())
        });
        all.wait();
        send(own(2));
        for app in apps {
            app.join().unwrap();
        }
        assert_eq!(foreign.join().unwrap(), Some(own(2)));
    });
}

#[test]
fn signals_that_wait_are_one_of_each_kind() {
    must_end(|| {
        let mut both = Signals::new([own(4), own(3)]).unwrap();
        let mut last = Signals::new([own(5)]).unwrap();
        for kind in [own(4), own(4), own(3), own(4), own(5)] {
            send(kind);
            // Delivered by then, as it is to this one.
            let mut witness = Signals::new([own(6)]).unwrap();
            send(own(6));
            task::block_on(witness.recv());
        }
        task::block_on(last.recv());
        assert_eq!(poll(&mut both), Poll::Ready(own(3)));
        assert_eq!(poll(&mut both), Poll::Ready(own(4)));
        assert_eq!(poll(&mut both), Poll::Pending);
    });
}

#[test]
fn what_cannot_be_listened_for_is_an_error_that_names_it() {
    for (kind, name) in [
        (9, "SIGKILL"),
        (19, "SIGSTOP"),
        (11, "SIGSEGV"),
        (65, "65"),
        (0, "0"),
    ] {
        let error = Signals::new([own(7), SignalKind::from_raw(kind)]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains(name), "{error}");
    }
}

/// A waker is foreign code: it may panic, and drop what it wakes for.
#[test]
fn a_waker_may_drop_its_listener_or_panic() {
    struct Drops(Mutex<Option<Signals>>, AtomicUsize);
    impl Wake for Drops {
        fn wake(self: Arc<Self>) {
            drop(self.0.lock().unwrap().take());
            self.1.fetch_add(1, Ordering::Relaxed);
            std::panic::resume_unwind(Box::new("in a waker"));
        }
    }
    must_end(|| {
        for _ in 0..3 {
            let drops = Arc::new(Drops(Mutex::new(None), AtomicUsize::new(0)));
            let mut signals = Signals::new([own(8)]).unwrap();
            let waker = Waker::from(drops.clone());
            assert!(
                signals
                    .poll_recv(&mut Context::from_waker(&waker))
                    .is_pending()
            );
            *drops.0.lock().unwrap() = Some(signals);
            send(own(8));
            wait_until(|| drops.1.load(Ordering::Relaxed) == 1);
        }
    });
}

#[test]
fn ctrl_c_belongs_to_who_listens_for_it_and_then_to_the_app_again() {
    let mut process = Scenario::start("listens for a while");
    // More often, and sooner, than what would end the process.
    for _ in 0..4 {
        process.says("ready");
        process.send(Signal::SIGINT);
        process.says("heard");
    }
    process.says("stopped listening");
    process.send(Signal::SIGINT);
    assert_eq!(process.end().code(), Some(0));
}

#[test]
fn a_signal_that_nobody_listens_for_stops_the_app_as_ever() {
    let mut process = Scenario::start("listens for ever");
    process.says("ready");
    process.send(Signal::SIGTERM);
    assert_eq!(process.end().code(), Some(0));
}

#[test]
fn what_was_in_force_is_put_back_when_nobody_listens_any_more() {
    let mut process = Scenario::start("has listened");
    process.says("ended");
    process.send(Signal::SIGUSR1);
    assert_eq!(process.end().signal(), Some(Signal::SIGUSR1 as i32));
}

#[test]
fn a_forked_child_has_no_listeners_but_its_own() {
    assert_eq!(Scenario::start("forks").end().code(), Some(0));
}

#[test]
fn listeners_leave_no_os_thread_and_no_descriptor() {
    assert_eq!(
        Scenario::start("listens again and again").end().code(),
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
    let app = app(1, IDLE).handle_signals(true);
    let code = match &*scenario {
        "listens for a while" => app.run(async |_app: AppHandle| {
            for _ in 0..4 {
                let interrupted = ctrl_c();
                say("ready");
                interrupted.await.unwrap();
                say("heard");
            }
            say("stopped listening");
        }),
        "listens for ever" => app.run(async |_app: AppHandle| {
            let interrupted = ctrl_c();
            say("ready");
            interrupted.await.unwrap();
        }),
        "has listened" => {
            drop(Signals::new([SignalKind::USER1]).unwrap());
            say("ended");
            loop {
                std::thread::park();
            }
        }
        "forks" => {
            let _listener = Signals::new([SignalKind::USER1]).unwrap();
            // SAFETY: the C library makes its allocator usable in the child, and the
            // parent's other threads wait in the kernel, holding no lock.
            let in_child = |run: fn()| match unsafe { fork() }.unwrap() {
                ForkResult::Child => {
                    run();
                    // SAFETY: the end of the process, without its destructors.
                    unsafe { libc::_exit(7) }
                }
                ForkResult::Parent { child } => waitpid(child, None).unwrap(),
            };
            let ended = in_child(|| _ = raise(Signal::SIGUSR1));
            assert!(matches!(ended, WaitStatus::Signaled(_, Signal::SIGUSR1, _)));
            let ended = in_child(|| {
                let mut own = Signals::new([SignalKind::USER1]).unwrap();
                raise(Signal::SIGUSR1).unwrap();
                assert_eq!(task::block_on(own.recv()), SignalKind::USER1);
            });
            assert!(matches!(ended, WaitStatus::Exited(_, 7)));
            // One that does nothing by default, before the child listens for it.
            let _listener = Signals::new([SignalKind::WINDOW_CHANGE]).unwrap();
            let ended = in_child(|| {
                raise(Signal::SIGWINCH).unwrap();
                let mut own = Signals::new([SignalKind::WINDOW_CHANGE]).unwrap();
                raise(Signal::SIGWINCH).unwrap();
                assert_eq!(task::block_on(own.recv()), SignalKind::WINDOW_CHANGE);
            });
            assert!(matches!(ended, WaitStatus::Exited(_, 7)));
            Ok(0)
        }
        "listens again and again" => {
            let before = (entries("/proc/self/fd"), entries("/proc/self/task"));
            for _ in 0..100 {
                let kinds = [SignalKind::USER1, SignalKind::HANGUP];
                let (one, other) = (Signals::new(kinds).unwrap(), ctrl_c());
                raise(Signal::SIGUSR1).unwrap();
                drop((one, other));
            }
            wait_until(|| (entries("/proc/self/fd"), entries("/proc/self/task")) == before);
            Ok(0)
        }
        unknown => panic!("no scenario {unknown:?}"),
    };
    std::process::exit(code.unwrap());
}
