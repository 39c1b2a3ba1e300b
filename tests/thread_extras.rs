//! Thread-locals, the framework's context value, binding, cpumask changes and
//! post-poller handlers.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use corespun::cpu::CpuSet;
use corespun::spdk_thread_local;
use corespun::thread::{
    CreateError, Framework, LocalKeyError, ParkedThread, Poller, PostPollerError, SetCpumaskError,
    SpdkThread, ThreadLib, register_post_poller_handler,
};
use harness::threads::{Runs, Threads};

thread_local! {
    static DROPPED_ON: RefCell<Vec<(String, bool)>> = const { RefCell::new(Vec::new()) };
}

struct Witness(Cell<u32>);

impl Drop for Witness {
    fn drop(&mut self) {
        let thread = SpdkThread::current().unwrap();
        let entry = (thread.name().to_owned(), thread.is_exited());
        DROPPED_ON.with_borrow_mut(|seen| seen.push(entry));
        assert!(matches!(
            NEVER.try_with(|_| ()),
            Err(LocalKeyError::Exited(_))
        ));
    }
}

spdk_thread_local! {
    static WITNESS: Witness = Witness(Cell::new(0));
    static in send COUNT: Cell<u32> = Cell::new(7);
    static NEVER: () = ();
}

/// Issue 3 part 1: a value per thread, dropped on its thread at exit.
#[test]
fn a_thread_local_has_a_value_per_thread_and_is_dropped_there_before_exited() {
    let mut threads = Threads::allocate(2);
    for (index, value) in [(0, 10), (1, 20)] {
        threads.on(index, || WITNESS.with(|witness| witness.0.set(value)));
    }
    for (index, value) in [(0, 10), (1, 20)] {
        threads.on(index, || {
            WITNESS.with(|witness| assert_eq!(witness.0.get(), value))
        });
    }
    let refused = WITNESS.try_with(|_| ());
    assert!(matches!(refused, Err(LocalKeyError::NotOnThread(_))));
    threads.exit(1);
    threads.poll_threads();
    let seen = DROPPED_ON.take();
    assert_eq!(seen, [("thread 2".to_owned(), false)]);
    threads.free();
    assert_eq!(DROPPED_ON.take(), [("thread 1".to_owned(), false)]);
}

/// G5: one that is not `Send` keeps the thread on its OS thread, one that is
/// moves along.
#[test]
fn a_send_thread_local_moves_with_its_thread() {
    let library = ThreadLib::new();
    let mut runner = library.thread().build().unwrap().attach();
    runner.enter(|| COUNT.with(|count| count.set(8)));
    let parked = runner.park().unwrap();
    let moved = std::thread::spawn(move || {
        let mut runner = parked.attach();
        runner.enter(|| COUNT.with(Cell::get))
    });
    assert_eq!(moved.join().unwrap(), 8);

    let mut runner = library.thread().build().unwrap().attach();
    runner.enter(|| WITNESS.with(|_| ()));
    assert!(!runner.can_move());
    assert!(runner.park().is_err());
}

/// TH-010.
#[test]
fn a_context_value_is_found_again_by_its_type() {
    let library = ThreadLib::new();
    let parked = library.thread().context(Mutex::new(41)).build().unwrap();
    *parked
        .handle()
        .context::<Mutex<i32>>()
        .unwrap()
        .lock()
        .unwrap() += 1;
    let thread = parked.handle();
    assert_eq!(*thread.context::<Mutex<i32>>().unwrap().lock().unwrap(), 42);
    assert!(thread.context::<u8>().is_none());
    let plain = library.thread().build().unwrap().handle();
    assert!(plain.context::<Mutex<i32>>().is_none());
}

/// TH-103.
#[test]
fn binding_is_a_hint_that_leaves_the_mask_alone() {
    let runner = ThreadLib::new().thread().build().unwrap().attach();
    let thread = runner.handle();
    let mask = thread.cpumask();
    assert!(!thread.is_bound() && runner.can_move());
    thread.bind(true);
    assert!(thread.is_bound() && !runner.can_move());
    assert_eq!(thread.cpumask(), mask);
    thread.bind(false);
    assert!(runner.park().is_ok());
}

/// A framework of cores 0 and 1 that keeps what it is told.
#[derive(Default)]
struct TwoCores {
    placed: Mutex<Vec<ParkedThread>>,
    rescheduled: Mutex<Vec<u64>>,
}

impl Framework for TwoCores {
    fn place(&self, thread: ParkedThread) -> Result<(), CreateError> {
        self.placed.lock().unwrap().push(thread);
        Ok(())
    }

    fn reschedule(&self, thread: &SpdkThread, mask: &CpuSet) -> Result<(), SetCpumaskError> {
        if !mask.contains(0) && !mask.contains(1) {
            return Err(SetCpumaskError::NoCore {
                thread: thread.name().to_owned(),
                cpumask: mask.to_string(),
                available: "0x3".to_owned(),
            });
        }
        self.rescheduled.lock().unwrap().push(thread.id());
        Ok(())
    }
}

/// A framework that takes only threads that may run on core 0.
struct OneCore(TwoCores);

impl Framework for OneCore {
    fn place(&self, thread: ParkedThread) -> Result<(), CreateError> {
        match thread.cpumask().contains(0) {
            true => self.0.place(thread),
            false => Err(CreateError::Stopping),
        }
    }
}

/// The app thread is the first that was made: one that was refused was not.
#[test]
fn a_refused_thread_is_not_the_app_thread() {
    let library = ThreadLib::new();
    library
        .set_framework(Arc::new(OneCore(TwoCores::default())))
        .unwrap();
    let elsewhere = || library.thread().cpumask(CpuSet::single(7)).create();
    elsewhere().unwrap_err();
    assert_eq!(library.app_thread(), None);
    let first = library.thread().create().unwrap();
    assert_eq!(library.app_thread(), Some(first.clone()));
    elsewhere().unwrap_err();
    library.thread().create().unwrap();
    assert_eq!(library.app_thread(), Some(first));
}

/// TH-021, 043, A.3 row 15: the last mask of a poll wins, and a mask that
/// matches no core is an error at the call.
#[test]
fn a_changed_cpumask_is_told_to_the_framework() {
    let library = ThreadLib::new();
    let framework = Arc::new(TwoCores::default());
    library.set_framework(framework.clone()).unwrap();
    let thread = library.thread().name("wanderer").create().unwrap();
    let core = |index: usize| [index].into_iter().collect::<CpuSet>();
    let refused = thread.set_cpumask(&core(0)).unwrap_err();
    assert_eq!(refused, SetCpumaskError::NotCurrent("wanderer".into()));

    let mut runner = framework.placed.lock().unwrap().pop().unwrap().attach();
    runner.enter(|| {
        thread.set_cpumask(&core(0)).unwrap();
        thread.set_cpumask(&core(1)).unwrap();
        let refused = thread.set_cpumask(&core(5)).unwrap_err();
        assert!(
            matches!(refused, SetCpumaskError::NoCore { .. }),
            "{refused}"
        );
        let refused = thread.set_cpumask(&CpuSet::empty()).unwrap_err();
        assert_eq!(refused, SetCpumaskError::Empty("wanderer".into()));
    });
    assert_eq!(thread.cpumask(), core(1));
    assert_eq!(*framework.rescheduled.lock().unwrap(), [thread.id(); 2]);

    let mut alone = ThreadLib::new().thread().build().unwrap().attach();
    let thread = alone.handle();
    let refused = alone.enter(|| thread.set_cpumask(&core(0))).unwrap_err();
    assert!(matches!(refused, SetCpumaskError::NotSupported(_)));
}

/// T-X-11 (TH-106).
#[test]
fn post_poller_handlers_run_once_in_order_after_an_active_poller() {
    let mut threads = Threads::allocate(1);
    let order = Rc::new(RefCell::new(Vec::new()));
    let note = |what: &'static str| {
        let order = order.clone();
        move || order.borrow_mut().push(what)
    };
    let register = |what| register_post_poller_handler(note(what));
    let refused = register_post_poller_handler(|| {}).unwrap_err();
    assert!(matches!(refused, PostPollerError::NotOnThread(_)));

    let (timed, older, newer) = threads.on(0, || {
        let period = Duration::from_micros(1);
        let after = note("after timed");
        let timed = Poller::timed(period, {
            let timed = note("timed");
            let mut after = Some(after);
            move || {
                timed();
                if let Some(after) = after.take() {
                    register_post_poller_handler(after).unwrap();
                }
            }
        });
        let older = Poller::active(note("older"));
        let first = Cell::new(true);
        let (newer, a, b) = (note("newer"), note("a"), note("b"));
        let newer = Poller::active(move || {
            newer();
            if first.replace(false) {
                register_post_poller_handler(a.clone()).unwrap();
                let b = b.clone();
                register_post_poller_handler(move || {
                    b();
                    let nested = register_post_poller_handler(|| {});
                    assert_eq!(nested, Err(PostPollerError::Nested));
                })
                .unwrap();
            }
        });
        (timed, older, newer)
    });
    threads.time.advance(1);
    threads.poll_once(0);
    assert_eq!(*order.borrow(), ["newer", "a", "b", "older", "timed"]);
    order.borrow_mut().clear();
    threads.poll_once(0);
    assert_eq!(*order.borrow(), ["newer", "after timed", "older"]);

    order.borrow_mut().clear();
    threads.on(0, || {
        for what in ["1", "2", "3", "4"] {
            register(what).unwrap();
        }
        assert_eq!(register("5"), Err(PostPollerError::Full));
    });
    threads.poll_once(0);
    assert_eq!(*order.borrow(), ["newer", "1", "2", "3", "4", "older"]);
    drop((timed, older, newer));
    // Dropped unrun with the thread.
    let counter = Runs::default();
    let unrun = counter.clone();
    threads
        .on(0, || register_post_poller_handler(move || unrun.add()))
        .unwrap();
    threads.free();
    assert_eq!(counter.get(), 0);
}

/// TH-007, 040, 042, 045, 101, 102.
#[test]
fn a_thread_is_found_by_its_id_until_it_has_exited() {
    let mut threads = Threads::allocate(2);
    let library = threads.library.clone();
    let (first, second) = (threads.handle(0), threads.handle(1));
    assert_eq!((first.id(), second.id()), (1, 2));
    assert_eq!(library.thread_by_id(2), Some(second.clone()));
    assert_eq!(library.thread_by_id(0), None);
    assert_eq!(library.thread_by_id(3), None);
    assert_eq!(library.thread_count(), 2);
    assert_eq!(library.app_thread(), Some(first.clone()));
    assert!(second.is_running());
    threads.time.advance(40);
    threads.poll_once(1);
    assert_eq!((first.last_tick(), second.last_tick()), (0, 40));

    threads.exit(1);
    threads.poll_once(1);
    assert!(!second.is_running() && second.is_exited());
    assert_eq!(library.thread_by_id(2), None);
    assert_eq!(library.thread_count(), 1);
    let third = library.thread().build().unwrap();
    assert_eq!(third.handle().id(), 3, "never used again");
    drop(third);
    threads.free();
    assert!(first.is_exited());
}

/// A foreign flood: a million messages from each of four OS threads through a
/// ring of 64 slots; all run, each sender's order kept.
#[test]
fn a_flood_from_foreign_os_threads_runs_whole_and_in_order() {
    const EACH: u64 = 1_000_000;
    thread_local! {
        static NEXT: [Cell<u64>; 4] = const { [const { Cell::new(0) }; 4] };
        // Counted, since a panic in a message is contained.
        static OUT_OF_ORDER: Cell<u64> = const { Cell::new(0) };
    }
    let parked = ThreadLib::new().thread().ring(64).build().unwrap();
    let thread = parked.handle();
    let senders = [0, 1, 2, 3].map(|me: usize| {
        let thread = thread.clone();
        std::thread::spawn(move || {
            for number in 0..EACH {
                let mut message = move || {
                    if NEXT.with(|next| next[me].replace(number + 1)) != number {
                        OUT_OF_ORDER.set(OUT_OF_ORDER.get() + 1);
                    }
                };
                while let Err(refused) = thread.send_msg(message) {
                    assert!(refused.is_full());
                    message = refused.into_message();
                    std::thread::yield_now();
                }
            }
        })
    });
    let mut runner = parked.attach();
    while NEXT.with(|next| next.iter().any(|next| next.get() < EACH)) {
        if !runner.poll(0, 0).is_busy() {
            std::thread::yield_now();
        }
    }
    for sender in senders {
        sender.join().unwrap();
    }
    assert!(!runner.has_messages());
    assert_eq!(OUT_OF_ORDER.get(), 0);
}

/// It is dropped before they are.
#[test]
fn a_post_poller_handler_that_is_dropped_unrun_finds_thread_locals() {
    struct CountAtDrop;
    impl Drop for CountAtDrop {
        fn drop(&mut self) {
            LATE.with(|late| AT_DROP.set(late.get()));
        }
    }
    corespun::spdk_thread_local! {
        static LATE: Cell<u32> = Cell::new(1);
    }
    thread_local! {
        static AT_DROP: Cell<u32> = const { Cell::new(0) };
    }
    let mut threads = Threads::allocate(1);
    threads.on(0, || {
        let held = CountAtDrop;
        register_post_poller_handler(move || drop(held)).unwrap();
    });
    // Fails if the destructor has panicked.
    threads.exit(0);
    threads.poll_threads();
    assert_eq!(AT_DROP.get(), 1);
    threads.free();
}

/// What an exiting thread accepts it drops before it reads EXITED, and what an
/// exited one is given it refuses.
#[test]
fn a_post_poller_handler_never_outlives_its_thread() {
    struct RegisterAtDrop(Option<Arc<()>>);
    impl Drop for RegisterAtDrop {
        fn drop(&mut self) {
            let value = self.0.take();
            let registered = register_post_poller_handler(move || drop(value));
            assert!(matches!(registered, Err(PostPollerError::Exited(_))));
        }
    }
    corespun::spdk_thread_local! {
        static LAST: std::cell::RefCell<Option<RegisterAtDrop>> = std::cell::RefCell::new(None);
    }
    let value = Arc::new(());
    let mut runner = ThreadLib::new().thread().build().unwrap().attach();
    runner.enter(|| {
        // So that there is something to drop first.
        let waits = value.clone();
        register_post_poller_handler(move || drop(waits)).unwrap();
        LAST.with(|last| last.replace(Some(RegisterAtDrop(Some(value.clone())))));
    });
    drop(runner.exit());
    while !runner.is_exited() {
        runner.poll(0, 0);
    }
    assert_eq!(Arc::strong_count(&value), 1);
    let late = value.clone();
    let refused = runner.enter(|| register_post_poller_handler(move || drop(late)));
    assert!(matches!(refused, Err(PostPollerError::Exited(_))));
    assert_eq!(Arc::strong_count(&value), 1);
}
