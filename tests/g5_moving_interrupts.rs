//! G5: interrupts and post-poller handlers that are `Send` move with their thread, from
//! one OS thread to another and from reactor to reactor.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};
use std::time::Duration;

use corespun::app::AppHandle;
use corespun::interrupt::Readiness;
use corespun::reactor::ReactorMode;
use corespun::thread::{
    BoundBy, Interrupt, InterruptError, Poller, SendInterrupt, SendPoller, ThreadLib, ThreadRunner,
    register_post_poller_handler, register_send_post_poller_handler,
};
use corespun::time;
use harness::reactors::{app, must_end};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// An eventfd that a callback reads, and where that was.
#[derive(Clone)]
struct Bell {
    fd: Arc<EventFd>,
    places: Arc<Mutex<Vec<ThreadId>>>,
    rung: Arc<AtomicU64>,
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Bell {
    fn new() -> Self {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        Bell {
            fd: Arc::new(EventFd::from_flags(flags).unwrap()),
            places: Arc::default(),
            rung: Arc::default(),
        }
    }

    fn ring(&self) {
        self.fd.write(1).unwrap();
    }

    fn answer(&self) {
        if let Ok(count) = self.fd.read() {
            self.rung.fetch_add(count, Ordering::Relaxed);
            self.places.lock().unwrap().push(thread::current().id());
        }
    }

    fn register(&self) -> SendInterrupt {
        let bell = self.clone();
        SendInterrupt::register(self.clone(), move |_event| bell.answer()).unwrap()
    }

    fn places(&self) -> Vec<ThreadId> {
        std::mem::take(&mut self.places.lock().unwrap())
    }

    /// How many bells of it a thread holds: its descriptor, and its callback.
    fn held(&self) -> usize {
        Arc::strong_count(&self.fd) - 1
    }
}

fn attached() -> ThreadRunner {
    ThreadLib::new().thread().build().unwrap().attach()
}

/// Moves the thread to another OS thread for as long as `f` takes, and back.
fn elsewhere<R: Send + 'static>(
    runner: ThreadRunner,
    f: impl FnOnce(&mut ThreadRunner) -> R + Send + 'static,
) -> (ThreadRunner, R) {
    assert_eq!(runner.bound_by(), []);
    let parked = runner.park().expect("nothing of it has to stay");
    let there = thread::spawn(move || {
        let mut runner = parked.attach();
        let result = f(&mut runner);
        (runner.park().expect("nor there"), result)
    });
    let (parked, result) = there.join().unwrap();
    (parked.attach(), result)
}

#[test]
fn an_interrupt_is_answered_where_its_thread_is() {
    let mut runner = attached();
    let bell = Bell::new();
    let interrupt = runner.enter(|| bell.register());
    bell.ring();
    runner.poll(0, 0);
    assert_eq!(bell.places(), [thread::current().id()]);
    // Rung while it is on its way.
    bell.ring();
    let (mut runner, there) = elsewhere(runner, |runner| {
        runner.poll(0, 0);
        thread::current().id()
    });
    assert_eq!(bell.places(), [there]);
    bell.ring();
    runner.poll(0, 0);
    assert_eq!(bell.places(), [thread::current().id()]);
    runner.enter(|| drop(interrupt));
    assert_eq!(bell.held(), 0);
    bell.ring();
    runner.poll(0, 0);
    assert_eq!(bell.places(), []);
}

#[test]
fn the_handle_of_a_moving_interrupt_works_from_everywhere() {
    let mut runner = attached();
    let bell = Bell::new();
    let (first, second) = (Bell::new(), Bell::new());
    let interrupt = runner.enter(|| bell.register());
    let others = runner.enter(|| [first.register(), second.register()]);
    let refused = interrupt.set_events(Readiness::WRITABLE);
    assert!(matches!(refused, Err(InterruptError::NotOnThread(_))));
    runner
        .enter(|| interrupt.set_events(Readiness::WRITABLE))
        .unwrap();
    bell.ring();
    // An eventfd can be written: it is called for that, and reads.
    runner.poll(0, 0);
    assert_eq!(bell.places().len(), 1);
    assert_eq!(interrupt.thread(), runner.handle());
    let dropped = thread::spawn(move || drop(interrupt));
    dropped.join().unwrap();
    assert_eq!(bell.held(), 2, "until a message has run");
    runner.poll(0, 0);
    assert_eq!(bell.held(), 0);
    // Its place is another's now, which the handle of that has no part in.
    let next = runner.enter(|| bell.register());
    let [one, other] = others;
    thread::spawn(move || drop(one)).join().unwrap();
    runner.poll(0, 0);
    assert_eq!((first.held(), second.held(), bell.held()), (0, 2, 2));
    second.ring();
    bell.ring();
    runner.poll(0, 0);
    assert_eq!((second.places().len(), bell.places().len()), (1, 1));
    runner.enter(|| drop((other, next)));
}

/// In order, and with the right to poll it; on its OS thread.
#[test]
fn a_moving_interrupt_ends_with_its_thread() {
    struct Noted(Bell);
    impl Drop for Noted {
        fn drop(&mut self) {
            self.0.places.lock().unwrap().push(thread::current().id());
        }
    }
    for in_order in [true, false] {
        let mut runner = attached();
        let bell = Bell::new();
        let noted = Noted(bell.clone());
        let interrupt = runner.enter(|| {
            let called = move |_event| noted.0.answer();
            SendInterrupt::register(bell.clone(), called).unwrap()
        });
        let parked = runner.park().unwrap();
        let ends = thread::spawn(move || {
            let mut runner = parked.attach();
            if in_order {
                drop(runner.exit());
                while !runner.is_exited() {
                    runner.poll(0, 0);
                }
                let late = runner.enter(|| interrupt.set_events(Readiness::READABLE));
                assert!(matches!(late, Err(InterruptError::Exiting(_))));
            }
            drop(runner);
            (thread::current().id(), interrupt)
        });
        let (there, interrupt) = ends.join().unwrap();
        assert_eq!(bell.places(), [there]);
        assert_eq!(bell.held(), 0);
        drop(interrupt);
    }
}

#[test]
fn one_that_unregisters_itself_or_panics_is_not_called_again() {
    let mut runner = attached();
    let (ends, panics) = (Bell::new(), Bell::new());
    let own = Arc::new(Mutex::new(None::<SendInterrupt>));
    let (itself, called) = (own.clone(), ends.clone());
    let once = move |_event| {
        called.answer();
        drop(itself.lock().unwrap().take());
    };
    let one = runner.enter(|| SendInterrupt::register(ends.clone(), once).unwrap());
    *own.lock().unwrap() = Some(one);
    let called = panics.clone();
    let other = runner.enter(|| {
        let called = move |_event| {
            called.answer();
            panic!("in an interrupt");
        };
        SendInterrupt::register::<()>(panics.clone(), called).unwrap()
    });
    for bell in [&ends, &panics] {
        bell.ring();
    }
    let (mut runner, ()) = elsewhere(runner, |runner| _ = runner.poll(0, 0));
    for bell in [&ends, &panics] {
        bell.ring();
    }
    runner.poll(0, 0);
    assert_eq!((ends.places().len(), panics.places().len()), (1, 1));
    assert_eq!(ends.held(), 0);
    let stays = runner.enter(|| Poller::builder().name("stays").register(|| ()).unwrap());
    assert_eq!(runner.bound_by(), [BoundBy::Poller("stays".to_owned())]);
    drop(stays);
    runner.enter(|| drop(other));
    assert_eq!(panics.held(), 0);
}

/// Beside one that may not move, which alone is named.
#[test]
fn what_binds_is_what_may_not_be_send() {
    let mut runner = attached();
    let (moves, stays) = (Bell::new(), Bell::new());
    let sent = runner.enter(|| moves.register());
    let bell = stays.clone();
    let kept = runner.enter(|| Interrupt::register(stays.clone(), move |_| bell.answer()).unwrap());
    assert_eq!(runner.bound_by(), [BoundBy::Interrupts(1)]);
    drop(kept);
    runner
        .enter(|| register_send_post_poller_handler(|| ()))
        .unwrap();
    assert_eq!(runner.bound_by(), []);
    runner
        .enter(|| register_post_poller_handler(|| ()))
        .unwrap();
    assert_eq!(runner.bound_by(), [BoundBy::PostPoller]);
    runner.enter(|| drop(sent));
}

#[test]
fn a_post_poller_handler_runs_where_its_thread_is() {
    let mut runner = attached();
    let bell = Bell::new();
    let noted = bell.clone();
    let handler = move || noted.places.lock().unwrap().push(thread::current().id());
    runner
        .enter(|| register_send_post_poller_handler(handler))
        .unwrap();
    let poller = runner.enter(|| SendPoller::active(|| ()).unwrap());
    let (mut runner, there) = elsewhere(runner, |runner| {
        runner.poll(0, 0);
        thread::current().id()
    });
    assert_eq!(bell.places(), [there]);
    runner.enter(|| drop(poller));
}

/// Whichever has the thread sleeps, and wakes by the bell; and so it does when the bell is
/// rung on the way.
#[test]
fn an_interrupt_wakes_whichever_reactor_its_thread_is_on() {
    for mode in [
        ReactorMode::Interrupt,
        ReactorMode::Adaptive,
        ReactorMode::Poll,
    ] {
        must_end(move || {
            app(3, mode)
                .block_on(async |app: AppHandle| {
                    let bell = Bell::new();
                    let thread = app.thread().create().unwrap();
                    let here = bell.clone();
                    let interrupt = thread.call(move || here.register()).await.unwrap();
                    for round in 0..30 {
                        let core = round as usize % 3;
                        let arrives = thread.move_to_core(core);
                        if round % 2 == 0 {
                            bell.ring();
                            arrives.await.unwrap();
                        } else {
                            arrives.await.unwrap();
                            bell.ring();
                        }
                        assert_eq!(thread.core(), Some(core));
                        while bell.rung.load(Ordering::Relaxed) <= round {
                            time::sleep(Duration::from_millis(1)).await;
                        }
                    }
                    drop(interrupt);
                    thread.call(|| ()).await.unwrap();
                    assert_eq!(bell.held(), 0);
                })
                .unwrap();
        });
    }
}
