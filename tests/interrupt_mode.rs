//! Interrupts of a thread, its pollable descriptor, and mode switches.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use corespun::channel::IoDevice;
use corespun::interrupt::{FdOptions, Readiness};
use corespun::stream::PollerStream;
use corespun::task::{self, LocalSpawner};
use corespun::thread::{
    Activity, Interrupt, InterruptError, PanicSource, Poller, PollerState, SpdkThread, ThreadLib,
    ThreadRunner, set_interrupt_mode,
};
use harness::threads::{Runs, Threads, us};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

fn is_readable(runner: &mut ThreadRunner, timeout: PollTimeout) -> bool {
    let fd = runner.interrupt_fd().unwrap();
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, timeout).unwrap() == 1
}

/// IN-002, 003, 004, 013.
#[test]
fn an_interrupt_is_run_by_polls_in_both_modes_until_unregistered() {
    let mut threads = Threads::allocate(1);
    let (mut peer, socket) = UnixStream::pair().unwrap();
    let mut reading = socket.try_clone().unwrap();
    let runs = Runs::default();
    let counter = runs.clone();
    let interrupt = threads
        .on(0, || {
            let options = FdOptions {
                name: "socket".to_owned(),
                ..FdOptions::default()
            };
            Interrupt::register_with(socket, options, move |event| {
                assert!(event.contains(Readiness::READABLE));
                counter.add();
                let mut byte = [0];
                reading.read_exact(&mut byte).unwrap();
            })
        })
        .unwrap();
    assert!(threads.runner(0).needs_poll(), "nobody waits for it");
    for on in [false, true, false] {
        threads.runner(0).set_interrupt_mode(on).unwrap();
        assert!(!threads.poll_once(0));
        assert_eq!(runs.take(), 0);
        peer.write_all(b"x").unwrap();
        assert!(threads.poll_once(0));
        assert_eq!(runs.take(), 1);
    }
    interrupt.set_events(Readiness::ERROR).unwrap();
    peer.write_all(b"x").unwrap();
    assert!(!threads.poll_once(0));
    interrupt.set_events(Readiness::READABLE).unwrap();
    drop(interrupt);
    assert!(!threads.poll_once(0));
    assert_eq!(runs.get(), 0);

    threads.on(0, || drop(SpdkThread::current().unwrap().exit()));
    let refused = threads
        .on(0, || Interrupt::register(peer, |_| ()))
        .unwrap_err();
    assert!(matches!(refused, InterruptError::Exiting(_)), "{refused}");
    let (late, _) = UnixStream::pair().unwrap();
    let refused = Interrupt::register(late, |_| ()).unwrap_err();
    assert!(matches!(refused, InterruptError::NotOnThread(_)));
    assert!(matches!(
        set_interrupt_mode(true),
        Err(InterruptError::NotOnThread(_))
    ));
}

/// G6: as a poller's. Its descriptor is still ready, so that it would panic in
/// every poll.
#[test]
fn a_panic_of_an_interrupt_is_contained_and_unregisters_it() {
    let panics = Arc::new(AtomicU64::new(0));
    let seen = panics.clone();
    let library = ThreadLib::builder()
        .panic_hook(move |panic| {
            assert_eq!(panic.source, PanicSource::Interrupt);
            seen.fetch_add(1, Ordering::Relaxed);
        })
        .build();
    let mut runner = library.thread().build().unwrap().attach();
    let (mut peer, socket) = UnixStream::pair().unwrap();
    let register = |runner: &mut ThreadRunner, socket| {
        let called = |_| -> () { panic!("contained") };
        runner.enter(|| Interrupt::register(socket, called).unwrap())
    };
    let socket = Rc::new(socket);
    let interrupt = register(&mut runner, socket.clone());
    peer.write_all(b"x").unwrap();
    for _ in 0..3 {
        runner.poll(0, 0);
        assert_eq!(panics.load(Ordering::Relaxed), 1);
    }
    assert!(!runner.needs_poll());
    let gone = interrupt.set_events(Readiness::READABLE).unwrap_err();
    assert!(matches!(gone, InterruptError::Group { .. }), "{gone}");
    // The handle of the one that is gone does nothing to its successor.
    let next = register(&mut runner, socket);
    drop(interrupt);
    runner.poll(0, 0);
    assert_eq!(panics.load(Ordering::Relaxed), 2);
    drop(next);
}

/// A hook that sets another one for its poller has its will: that hears of the
/// mode at once, and of every switch after it.
#[test]
fn a_hook_may_replace_itself() {
    let mut runner = ThreadLib::new().thread().build().unwrap().attach();
    let heard = Rc::new(RefCell::new(Vec::new()));
    let poller = Rc::new(runner.enter(|| Poller::active(|| ()).unwrap()));
    let (own, first) = (Rc::downgrade(&poller), heard.clone());
    poller.set_interrupt(move |on| {
        first.borrow_mut().push(("first", on));
        let second = first.clone();
        let poller = own.upgrade().unwrap();
        poller.set_interrupt(move |on| second.borrow_mut().push(("second", on)));
    });
    runner.set_interrupt_mode(true).unwrap();
    runner.set_interrupt_mode(false).unwrap();
    let expected = [("first", true), ("second", true), ("second", false)];
    assert_eq!(*heard.borrow(), expected);
}

/// How many descriptors this process has open of a kind. Other tests of this
/// binary run meanwhile, so that it may only be compared across many.
fn open_eventfds() -> usize {
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    let links = open.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
    links
        .filter(|link| link.to_string_lossy().contains("[eventfd]"))
        .count()
}

/// A thread that is gone leaves no descriptor behind, also while the library, a
/// handle of it, and senders that were about to wake it live on.
#[test]
fn the_descriptor_of_a_thread_goes_with_its_runner() {
    const THREADS: usize = 500;
    let library = ThreadLib::new();
    let before = open_eventfds();
    let (sender, handles) = std::sync::mpsc::sync_channel::<SpdkThread>(4);
    let kept = std::thread::scope(|scope| {
        let waking = scope.spawn(|| {
            let mut kept = Vec::new();
            for handle in handles {
                while !handle.is_exited() {
                    let _ = handle.send_msg(|| ());
                }
                let _ = handle.send_critical_msg(|| ());
                kept.push(handle);
            }
            kept
        });
        for _ in 0..THREADS {
            let mut runner = library.thread().build().unwrap().attach();
            runner.set_interrupt_mode(true).unwrap();
            runner.interrupt_fd().unwrap();
            sender.send(runner.handle()).unwrap();
            runner.poll(0, 0);
        }
        drop(sender);
        waking.join().unwrap()
    });
    assert_eq!(kept.len(), THREADS);
    let left = open_eventfds().saturating_sub(before);
    assert!(left < THREADS / 2, "{left} eventfds of {THREADS} threads");
}

/// IN-005, 006, 007; TH-071.
#[test]
fn the_descriptor_is_readable_when_there_is_something_to_do() {
    let mut threads = Threads::allocate(1);
    let runner = threads.runner(0);
    runner.set_interrupt_mode(true).unwrap();
    assert!(!is_readable(runner, PollTimeout::ZERO));
    let thread = runner.handle();
    for _ in 0..20 {
        thread.send_msg(|| ()).unwrap();
    }
    for _ in 0..3 {
        assert!(
            is_readable(runner, PollTimeout::ZERO),
            "a batch of 8 at a time"
        );
        runner.poll(0, 0);
    }
    assert!(!is_readable(runner, PollTimeout::ZERO));
    thread.send_critical_msg(|| ()).unwrap();
    assert!(is_readable(runner, PollTimeout::ZERO));
    runner.poll(0, 0);
    assert!(!is_readable(runner, PollTimeout::ZERO));

    // An active poller, until it has an interrupt of its own.
    let poller = runner.enter(|| Poller::active(|| false)).unwrap();
    runner.poll(0, 0);
    assert!(is_readable(runner, PollTimeout::ZERO));
    runner.enter(|| poller.set_interrupt(|_| ()));
    runner.poll(0, 0);
    assert!(!is_readable(runner, PollTimeout::ZERO));

    // A timer: of real time, whatever the clock.
    let timed = runner.enter(|| Poller::timed(us(1_000), || true)).unwrap();
    runner.poll(0, 0);
    assert!(is_readable(runner, PollTimeout::NONE));
    threads.time.advance(1_000);
    let runner = threads.runner(0);
    assert!(runner.poll(0, 0).is_busy());
    drop((poller, timed));
    runner.poll(0, 0);
    assert!(!is_readable(runner, PollTimeout::ZERO));
}

/// The descriptor moves with its thread, once asked for there.
#[test]
fn the_descriptor_of_a_moved_thread_is_good() {
    let mut runner = ThreadLib::new().thread().build().unwrap().attach();
    runner.set_interrupt_mode(true).unwrap();
    assert!(!is_readable(&mut runner, PollTimeout::ZERO));
    let thread = runner.handle();
    let parked = runner.park().unwrap();
    thread.send_msg(|| ()).unwrap();
    let moved = std::thread::spawn(move || {
        let mut runner = parked.attach();
        assert!(
            is_readable(&mut runner, PollTimeout::ZERO),
            "sent in between"
        );
        assert!(runner.poll(0, 0).is_busy());
        assert!(!is_readable(&mut runner, PollTimeout::ZERO));
        runner.handle().send_msg(|| ()).unwrap();
        assert!(is_readable(&mut runner, PollTimeout::ZERO));
        runner.poll(0, 0);
    });
    moved.join().unwrap();
}

/// TH-109, F.1 2506: the exit brings about the polls that it needs.
#[test]
fn an_exit_in_interrupt_mode_needs_nobody_to_poll_unasked() {
    let mut runner = ThreadLib::new().thread().build().unwrap().attach();
    runner.set_interrupt_mode(true).unwrap();
    let thread = runner.handle();
    let poller = runner
        .enter(|| Poller::timed(Duration::from_secs(100), || ()))
        .unwrap();
    // Asked for once: to ask again is to look again.
    let fd = runner.interrupt_fd().unwrap().try_clone_to_owned().unwrap();
    let is_readable = || {
        let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
    };
    assert!(!is_readable());
    drop(thread.exit());
    let mut poller = Some(poller);
    for _ in 0..10 {
        if thread.is_exited() {
            return;
        }
        if is_readable() {
            runner.poll(0, 0);
        } else {
            drop(poller.take().expect("held by nothing else"));
        }
    }
    panic!("still held by {:?}", runner.exit_holders());
}

/// IN-010, 011, TH-110.
#[test]
fn pollers_with_an_interrupt_hear_of_switches_and_are_not_run() {
    let mut threads = Threads::allocate(1);
    let (runs, plain) = (Runs::default(), Runs::default());
    let heard = Rc::new(Cell::new((0, false)));
    let (own, paused, other) = threads.on(0, || {
        let hook = || {
            let heard = heard.clone();
            move |on| heard.set((heard.get().0 + 1, on))
        };
        let own = Poller::active(runs.idle()).unwrap();
        own.set_interrupt(hook());
        let paused = Poller::active(runs.idle()).unwrap();
        paused.set_interrupt(hook());
        paused.pause();
        (own, paused, Poller::active(plain.idle()).unwrap())
    });
    threads.poll_once(0);
    assert_eq!((runs.take(), plain.take(), heard.get()), (1, 1, (0, false)));
    assert_eq!(paused.state(), PollerState::Paused);

    threads.runner(0).set_interrupt_mode(true).unwrap();
    threads.runner(0).set_interrupt_mode(true).unwrap();
    assert!(threads.runner(0).is_in_interrupt_mode());
    assert_eq!(heard.get(), (2, true), "also the paused one, once");
    threads.poll_once(0);
    assert_eq!((runs.take(), plain.take()), (0, 1));
    assert_eq!(own.state(), PollerState::Waiting);

    // Pause, resume and unregister work there.
    own.pause();
    assert_eq!(own.state(), PollerState::Paused);
    own.resume();
    paused.resume();
    threads.poll_once(0);
    assert_eq!((runs.take(), plain.take()), (0, 1));
    let late = threads.on(0, || {
        let late = Poller::active(runs.idle()).unwrap();
        late.set_interrupt(|on| assert!(on));
        late
    });
    threads.poll_once(0);
    assert_eq!(runs.take(), 0);
    drop(late);

    threads.runner(0).set_interrupt_mode(false).unwrap();
    assert_eq!(heard.get(), (4, false));
    threads.poll_once(0);
    assert_eq!((runs.take(), plain.take()), (2, 2));
    drop((own, paused, other));
    threads.poll_once(0);
    assert!(!threads.runner(0).has_active_pollers());
    threads.free();
}

/// IN-012.
#[test]
fn a_timed_poller_goes_on_with_what_was_left_of_its_period() {
    let mut threads = Threads::allocate(1);
    let runs = Runs::default();
    let poller = threads.on(0, || {
        let poller = Poller::timed(us(100), runs.idle()).unwrap();
        poller.set_interrupt(|_| ());
        poller
    });
    threads.time.advance(70);
    threads.runner(0).set_interrupt_mode(true).unwrap();
    assert_eq!(threads.runner(0).next_deadline(), None);
    threads.time.advance(1_000);
    threads.poll_once(0);
    assert_eq!(runs.get(), 0);
    threads.runner(0).set_interrupt_mode(false).unwrap();
    assert_eq!(threads.runner(0).next_deadline(), Some(1_100));
    threads.time.advance(29);
    threads.poll_once(0);
    assert_eq!(runs.get(), 0);
    threads.time.advance(1);
    threads.poll_once(0);
    assert_eq!(runs.get(), 1);
    drop(poller);
    threads.free();
}

/// TH-057, A.3 row 13.
#[test]
fn a_switch_in_the_middle_of_a_poll_loses_nothing() {
    let mut threads = Threads::allocate(1);
    let runs = Runs::default();
    let counter = runs.clone();
    let (own, switching) = threads.on(0, || {
        let own = Poller::active(runs.idle()).unwrap();
        own.set_interrupt(|_| ());
        let mut on = true;
        let switching = Poller::active(move || {
            let thread = SpdkThread::current().unwrap();
            thread.send_msg(|| ()).unwrap();
            set_interrupt_mode(on).unwrap();
            on = !on;
            Activity::Idle
        });
        (own, switching.unwrap())
    });
    let runner = threads.runner(0);
    runner.interrupt_fd().unwrap();
    for turn in 0..6 {
        runner.poll(0, 0);
        if turn % 2 == 0 {
            assert!(runner.is_in_interrupt_mode());
            assert!(
                is_readable(runner, PollTimeout::ZERO),
                "its own message waits"
            );
        }
    }
    assert!(counter.get() > 0);
    drop((own, switching));
    runner.poll(0, 0);
    runner.poll(0, 0);
    assert!(!runner.has_active_pollers() && !runner.has_pollers());
}

/// T-X-13: a storm of messages and bytes while the mode is toggled; the loop
/// sleeps on the descriptor in interrupt mode, so one lost event would hang it.
/// The only limit on time is that of the test itself.
#[test]
fn nothing_is_lost_while_the_mode_is_toggled() {
    const MESSAGES: u64 = 20_000;
    let library = ThreadLib::new();
    let mut runner = library.thread().build().unwrap().attach();
    let thread = runner.handle();
    let received = Arc::new(AtomicU64::new(0));
    let done = Arc::new(AtomicBool::new(false));
    let (mut peer, socket) = UnixStream::pair().unwrap();
    let mut reading = socket.try_clone().unwrap();
    reading.set_nonblocking(true).unwrap();
    let bytes = Rc::new(Cell::new(0));
    let sum = bytes.clone();
    let _interrupt = runner.enter(|| {
        Interrupt::register(socket, move |_| {
            let mut buffer = [0; 64];
            sum.set(sum.get() + reading.read(&mut buffer).unwrap_or(0) as u64);
        })
    });
    let senders: Vec<_> = (0..2)
        .map(|_| {
            let (thread, received) = (thread.clone(), received.clone());
            std::thread::spawn(move || {
                for sent in 0..MESSAGES / 2 {
                    let received = received.clone();
                    let count = move || _ = received.fetch_add(1, Ordering::Relaxed);
                    thread.send_msg(count).unwrap();
                    if sent % 64 == 0 {
                        std::thread::yield_now();
                    }
                }
            })
        })
        .collect();
    let writer = std::thread::spawn(move || {
        for _ in 0..1_000 {
            peer.write_all(b"x").unwrap();
            std::thread::yield_now();
        }
        peer
    });
    let mut turn = 0u64;
    while received.load(Ordering::Relaxed) < MESSAGES || bytes.get() < 1_000 {
        turn += 1;
        if turn.is_multiple_of(5) {
            let on = !runner.is_in_interrupt_mode();
            runner.set_interrupt_mode(on).unwrap();
        }
        if runner.is_in_interrupt_mode() {
            assert!(is_readable(&mut runner, PollTimeout::NONE));
        }
        runner.poll(0, 0);
    }
    done.store(true, Ordering::Relaxed);
    senders
        .into_iter()
        .for_each(|sender| sender.join().unwrap());
    drop(writer.join().unwrap());
    assert_eq!(received.load(Ordering::Relaxed), MESSAGES);
    assert_eq!(bytes.get(), 1_000);
}

/// G10: what is begun between polls, by `enter` or by a spawner outside of it,
/// reaches who waits for the descriptor that it was once given.
#[test]
fn what_is_begun_between_polls_makes_the_descriptor_readable() {
    let mut runner = ThreadLib::new().thread().build().unwrap().attach();
    runner.set_interrupt_mode(true).unwrap();
    let spawner = runner.enter(LocalSpawner::current).unwrap();
    let fd = runner.interrupt_fd().unwrap().try_clone_to_owned().unwrap();
    let is_readable = |timeout: PollTimeout| {
        let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, timeout).unwrap() == 1
    };
    let settle = |runner: &mut ThreadRunner| {
        while is_readable(PollTimeout::ZERO) {
            runner.poll(0, 0);
        }
    };
    settle(&mut runner);
    let thread = runner.handle();
    let begin: [&dyn Fn(&mut ThreadRunner); 4] = [
        &|runner| runner.enter(|| drop(task::spawn_local(async {}))),
        &|runner| runner.enter(|| thread.send_msg(|| ()).unwrap()),
        &|_| drop(spawner.spawn_local(async {})),
        &|runner| {
            // Also where it unwinds.
            let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                runner.enter(|| {
                    thread.send_msg(|| ()).unwrap();
                    std::panic::resume_unwind(Box::new("on purpose"));
                });
            }));
            assert!(unwound.is_err());
        },
    ];
    for (n, begin) in begin.iter().enumerate() {
        begin(&mut runner);
        assert!(is_readable(PollTimeout::ZERO), "{n}");
        settle(&mut runner);
        assert!(!runner.has_messages(), "{n}");
    }
    // A resumed poller wants its poll, whoever resumes it.
    let active = runner.enter(|| Poller::active(|| false).unwrap());
    active.pause();
    runner.poll(0, 0);
    settle(&mut runner);
    active.resume();
    assert!(is_readable(PollTimeout::ZERO));
    drop(active);
    runner.poll(0, 0);
    settle(&mut runner);
    // A timer arms the descriptor, which its time makes readable.
    let poller = runner.enter(|| Poller::timed(us(1000), || ()).unwrap());
    assert!(is_readable(PollTimeout::from(60_000u16)));
    drop(poller);
}

/// G10: what goes between polls and was the last that held an exit, and the last
/// handle of a channel, whose end is a message.
#[test]
fn what_ends_between_polls_makes_the_descriptor_readable() {
    let device = |runner: &mut ThreadRunner| {
        let device = runner.enter(|| IoDevice::builder().register(|| Ok::<_, Infallible>(())));
        let device = device.unwrap();
        (runner.enter(|| device.channel()).unwrap(), device)
    };
    type Held = Box<dyn FnOnce()>;
    type Hold<'a> = &'a dyn Fn(&mut ThreadRunner) -> Held;
    let poller = |runner: &mut ThreadRunner, period| {
        let poller = runner.enter(|| Poller::timed(period, || false)).unwrap();
        move || drop(poller)
    };
    let hour = Duration::from_secs(3_600);
    let holds: [(&str, bool, Hold<'_>); 6] = [
        ("a timed poller", true, &|runner| {
            Box::new(poller(runner, hour))
        }),
        ("a paused poller", true, &|runner| {
            let poller = runner.enter(|| Poller::active(|| false)).unwrap();
            poller.pause();
            Box::new(|| drop(poller))
        }),
        ("a poller with an interrupt", true, &|runner| {
            let poller = runner.enter(|| Poller::active(|| false)).unwrap();
            runner.enter(|| poller.set_interrupt(|_| ()));
            Box::new(|| poller.unregister())
        }),
        ("a stream of a poller", true, &|runner| {
            let stream = runner.enter(|| PollerStream::timed(hour, || None::<()>));
            Box::new(|| drop(stream.unwrap()))
        }),
        ("a channel", true, &|runner| {
            let channel = device(runner);
            Box::new(|| drop(channel))
        }),
        ("a channel of a running thread", false, &|runner| {
            let channel = device(runner);
            Box::new(|| drop(channel))
        }),
    ];
    for (what, exits, hold) in holds {
        let mut runner = ThreadLib::new().thread().build().unwrap().attach();
        runner.set_interrupt_mode(true).unwrap();
        let held = hold(&mut runner);
        if exits {
            drop(runner.exit());
        }
        while is_readable(&mut runner, PollTimeout::ZERO) {
            runner.poll(0, 0);
        }
        assert!(!runner.is_exited(), "{what}");
        let fd = runner.interrupt_fd().unwrap().try_clone_to_owned().unwrap();
        held();
        let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::ZERO).unwrap(), 1, "{what}");
        while is_readable(&mut runner, PollTimeout::ZERO) && !runner.is_exited() {
            runner.poll(0, 0);
        }
        assert_eq!(runner.is_exited(), exits, "{what}");
    }
}
