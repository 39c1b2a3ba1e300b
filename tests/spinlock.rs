//! Spinlocks of SpdkThreads against the scenarios of the reference suite.

use std::cell::Cell;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use corespun::task;
use corespun::thread::{
    Interrupt, Poller, PollerState, SpinMutex, Spinlock, SpinlockError, SpinlockMisuse as Misuse,
    ThreadLib, register_post_poller_handler,
};
use harness::threads::Threads;

/// A lock whose misuses are kept, in place of the replaced abort.
#[derive(Clone)]
struct Watched {
    lock: Arc<Spinlock>,
    errors: Arc<Mutex<Vec<SpinlockError>>>,
}

impl Watched {
    fn new() -> Self {
        let errors = Arc::new(Mutex::new(Vec::new()));
        let seen = errors.clone();
        let lock = Spinlock::with_hook(move |error| seen.lock().unwrap().push(error.clone()));
        Watched {
            lock: Arc::new(lock),
            errors,
        }
    }

    /// What went wrong since the last look.
    fn misuses(&self) -> Vec<Misuse> {
        let errors = std::mem::take(&mut *self.errors.lock().unwrap());
        errors.iter().map(|error| error.misuse).collect()
    }
}

/// T-SL-01 (TH-120, 121).
#[test]
fn off_a_thread_a_lock_is_only_made_and_destroyed() {
    let watched = Watched::new();
    assert!(watched.lock.lock().is_err());
    assert_eq!(watched.misuses(), [Misuse::NotOnThread]);
    assert!(!watched.lock.is_held());
    assert_eq!(watched.misuses(), [Misuse::NotOnThread]);
    assert!(watched.lock.unlock().is_err());
    assert_eq!(watched.misuses(), [Misuse::NotOnThread]);
    let lock = Arc::into_inner(watched.lock).unwrap();
    assert!(lock.destroy().is_ok());
    assert!(watched.errors.lock().unwrap().is_empty());
}

/// T-SL-02.
#[test]
fn locking_and_unlocking_on_a_thread_is_no_misuse() {
    let mut threads = Threads::allocate(1);
    let watched = threads.on(0, Watched::new);
    threads.on(0, || {
        watched.lock.lock().unwrap();
        watched.lock.unlock().unwrap();
    });
    assert_eq!(watched.misuses(), []);
}

/// T-SL-03, and the report's facts.
#[test]
fn a_second_lock_by_the_owner_is_a_deadlock() {
    let mut threads = Threads::allocate(1);
    let watched = Watched::new();
    threads.on(0, || {
        watched.lock.lock().unwrap();
        let error = watched.lock.lock().unwrap_err();
        let (first, second) = (error.locked.unwrap().line(), error.at.line());
        assert_eq!(second, first + 1);
        assert_eq!(error.holder.as_deref(), Some("thread \"thread 1\""));
        let text = error.to_string();
        assert!(
            text.contains("by thread \"thread 1\" at tests/spinlock.rs"),
            "{text}"
        );
        watched.lock.unlock().unwrap();
    });
    assert_eq!(watched.misuses(), [Misuse::Deadlock]);
}

/// T-SL-04.
#[test]
fn an_unlock_by_another_thread_is_refused() {
    let mut threads = Threads::allocate(2);
    let watched = Watched::new();
    threads.on(0, || watched.lock.lock()).unwrap();
    let error = threads.on(1, || watched.lock.unlock()).unwrap_err();
    assert_eq!(error.thread, "thread \"thread 2\"");
    assert_eq!(error.holder.as_deref(), Some("thread \"thread 1\""));
    assert_eq!(watched.misuses(), [Misuse::WrongThread]);
    threads.on(0, || watched.lock.unlock()).unwrap();
    assert_eq!(watched.misuses(), []);
}

/// T-SL-05.
#[test]
fn a_double_unlock_is_refused() {
    let mut threads = Threads::allocate(1);
    let watched = Watched::new();
    threads.on(0, || {
        watched.lock.lock().unwrap();
        watched.lock.unlock().unwrap();
        watched.lock.unlock().unwrap_err();
    });
    assert_eq!(watched.misuses(), [Misuse::WrongThread]);
}

/// T-SL-06.
#[test]
fn held_is_true_on_the_owner_only() {
    let mut threads = Threads::allocate(2);
    let watched = Watched::new();
    let mut held = |index| {
        let lock = watched.lock.clone();
        threads.on(index, move || lock.is_held())
    };
    assert_eq!((held(0), held(1)), (false, false));
    let mut on = Threads::allocate(1);
    on.on(0, || watched.lock.lock()).unwrap();
    assert_eq!((held(0), held(1)), (false, false));
    assert!(on.on(0, || watched.lock.is_held()));
    on.on(0, || watched.lock.unlock()).unwrap();
    assert!(!on.on(0, || watched.lock.is_held()));
    assert_eq!(watched.misuses(), []);
}

/// T-SL-07.
#[test]
fn a_held_lock_is_not_destroyed() {
    let mut threads = Threads::allocate(1);
    let errors = Arc::new(Mutex::new(Vec::new()));
    let seen = errors.clone();
    let lock = Spinlock::with_hook(move |error| seen.lock().unwrap().push(error.misuse));
    threads.on(0, || {
        lock.lock().unwrap();
        let lock = lock.destroy().unwrap_err();
        assert_eq!(*errors.lock().unwrap(), [Misuse::DestroyedHeld]);
        lock.unlock().unwrap();
        assert!(lock.destroy().is_ok());
    });
    assert_eq!(errors.lock().unwrap().len(), 1);
}

/// T-SL-08: two OS threads; 50,000 turns each, the contended part a few
/// hundred nanoseconds instead of microseconds. Ends also where the lock does
/// not: the limit is for a machine that does nothing else for so long.
#[test]
fn contending_threads_lose_no_update() {
    const TURNS: u32 = 50_000;
    let library = ThreadLib::new();
    let word = Arc::new(SpinMutex::with_hook(0u32, |error| panic!("{error}")));
    let (ended, ends) = std::sync::mpsc::channel();
    for bit in [0u32, 1] {
        let (library, word, ended) = (library.clone(), word.clone(), ended.clone());
        std::thread::spawn(move || {
            let mut runner = library.thread().build().unwrap().attach();
            let turns = Rc::new(Cell::new(0u32));
            let counter = turns.clone();
            let poller = runner.enter(|| {
                Poller::active(move || {
                    let mut word = word.lock().unwrap();
                    assert_eq!(*word >> bit & 1, counter.get() & 1);
                    *word ^= 1 << bit;
                    counter.set(counter.get() + 1);
                    for _ in 0..20 * (bit + 1) {
                        std::hint::spin_loop();
                    }
                })
            });
            let poller = poller.unwrap();
            // An assertion in it ends it.
            while turns.get() < TURNS && poller.state() != PollerState::Unregistered {
                runner.poll(0, 0);
            }
            let runs = poller.stats().run_count;
            // With the poller goes its reference of the word.
            drop((poller, runner));
            ended.send((turns.get(), runs)).unwrap();
        });
    }
    for _ in 0..2 {
        let limit = Duration::from_secs(300);
        let (turns, runs) = ends.recv_timeout(limit).expect("a worker hangs");
        assert_eq!((turns, runs), (TURNS, u64::from(TURNS)));
    }
    assert_eq!(Arc::into_inner(word).unwrap().into_inner(), 0);
}

/// T-SL-09 (TH-122).
#[test]
fn a_poller_that_returns_with_the_lock_is_reported() {
    let mut threads = Threads::allocate(1);
    let watched = Watched::new();
    let lock = watched.lock.clone();
    let mut run = 0;
    let poller = threads.on(0, || {
        Poller::active(move || {
            run += 1;
            if run == 1 {
                lock.lock().unwrap();
            } else {
                lock.lock().unwrap_err();
                lock.unlock().unwrap();
            }
        })
    });
    threads.poll_once(0);
    assert_eq!(watched.misuses(), [Misuse::HeldDuringSwitch]);
    threads.poll_once(0);
    assert_eq!(watched.misuses(), [Misuse::Deadlock]);
    drop(poller);
}

/// T-SL-10 (TH-122): a message, and what else returns to the loop.
#[test]
fn whatever_returns_with_the_lock_is_reported() {
    let mut threads = Threads::allocate(1);
    let watched = Watched::new();
    let lock = watched.lock.clone();
    threads
        .runner(0)
        .handle()
        .send_msg(move || lock.lock().unwrap())
        .unwrap();
    threads.poll_once(0);
    let error = watched.errors.lock().unwrap()[0].clone();
    assert!(error.at.file().ends_with("tests/spinlock.rs"));
    assert_eq!(watched.misuses(), [Misuse::HeldDuringSwitch]);
    threads.on(0, || watched.lock.unlock()).unwrap();

    let lock = watched.lock.clone();
    threads.on(0, || {
        drop(task::spawn_local(async move {
            lock.lock().unwrap();
            task::yield_now().await;
            lock.unlock().unwrap();
        }));
    });
    threads.poll_once(0);
    assert_eq!(watched.misuses(), [Misuse::HeldDuringSwitch]);
    threads.poll_once(0);
    assert_eq!(watched.misuses(), []);

    let lock = watched.lock.clone();
    let poller = threads.on(0, || {
        Poller::timed(Duration::from_micros(1), move || lock.lock().unwrap())
    });
    threads.time.advance(1);
    threads.poll_once(0);
    assert_eq!(watched.misuses(), [Misuse::HeldDuringSwitch]);
    drop(poller);
    threads.on(0, || watched.lock.unlock()).unwrap();

    let (mut peer, socket) = UnixStream::pair().unwrap();
    peer.write_all(b"x").unwrap();
    let lock = watched.lock.clone();
    let interrupt = threads.on(0, || {
        Interrupt::register(socket, move |_| drop(lock.lock()))
    });
    threads.poll_once(0);
    assert_eq!(watched.misuses(), [Misuse::HeldDuringSwitch]);
    drop(interrupt);
    threads.on(0, || watched.lock.unlock()).unwrap();

    let lock = watched.lock.clone();
    let handler = move || lock.lock().unwrap();
    threads
        .on(0, || register_post_poller_handler(handler))
        .unwrap();
    let poller = threads.on(0, || Poller::active(|| ()));
    threads.poll_once(0);
    assert_eq!(watched.misuses(), [Misuse::HeldDuringSwitch]);
    drop(poller);
    threads.on(0, || watched.lock.unlock()).unwrap();

    let lock = watched.lock.clone();
    let poller = threads.on(0, || Poller::active(|| ()).unwrap());
    poller.set_interrupt(move |on| {
        if on {
            lock.lock().unwrap();
        }
    });
    threads.runner(0).set_interrupt_mode(true).unwrap();
    assert_eq!(watched.misuses(), [Misuse::HeldDuringSwitch]);
    threads.on(0, || watched.lock.unlock()).unwrap();
    drop(poller);
}

/// TH-123: without a hook the process aborts, and says why.
#[test]
fn without_a_hook_misuse_aborts() {
    const CHILD: &str = "CORESPUN_TEST_SPINLOCK_ABORT";
    if std::env::var_os(CHILD).is_some() {
        let _ = Spinlock::new().lock();
        return;
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "without_a_hook_misuse_aborts", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains("used off a SpdkThread; by no SpdkThread at tests/spinlock.rs"),
        "{text}"
    );
}

/// A thread that goes with a lock held may be the last to have it: what the lock's
/// hook owns is dropped with it, and its panic is contained as any other.
#[test]
fn a_thread_that_goes_with_a_lock_contains_what_the_hook_drops() {
    struct PanicAtDrop;
    impl Drop for PanicAtDrop {
        fn drop(&mut self) {
            std::panic::resume_unwind(Box::new("on purpose"));
        }
    }
    let mut threads = Threads::allocate(0);
    let mut runner = threads.library.thread().build().unwrap().attach();
    runner.enter(|| {
        let content = PanicAtDrop;
        let lock = Spinlock::with_hook(move |_| _ = &content);
        lock.lock().unwrap();
        drop(lock);
    });
    let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(runner)));
    assert!(dropped.is_ok());
    assert_eq!(threads.take_panics(), ["on purpose"]);
    threads.poll_threads();
}
