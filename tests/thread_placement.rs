//! `set_cpumask_async`: when the wait for a move ends, and with what. Threads of
//! a framework that moves nothing by itself, polled by hand.

use std::sync::Arc;

use corespun::cpu::CpuSet;
use corespun::task::{self, SetCpumask, block_on};
use corespun::thread::{
    CreateError, Framework, ParkedThread, SetCpumaskError, SpdkThread, ThreadLib, ThreadRunner,
};
use futures::FutureExt;

/// Takes any mask with one of the cores 0 to 3 and leaves the moving to the test.
struct FourCores;

impl Framework for FourCores {
    fn place(&self, _: ParkedThread) -> Result<(), CreateError> {
        Err(CreateError::Stopping)
    }

    fn reschedule(&self, thread: &SpdkThread, mask: &CpuSet) -> Result<(), SetCpumaskError> {
        match mask.iter().any(|core| core < 4) {
            true => Ok(()),
            false => Err(SetCpumaskError::NoCore {
                thread: thread.name().to_owned(),
                cpumask: mask.to_string(),
                available: "0xf".to_owned(),
            }),
        }
    }
}

fn library() -> ThreadLib {
    let library = ThreadLib::new();
    library.set_framework(Arc::new(FourCores)).unwrap();
    library
}

/// A thread, polled on core 0 as far as it knows.
fn thread_on_core_0() -> ThreadRunner {
    let mut runner = library()
        .thread()
        .name("wanderer")
        .build()
        .unwrap()
        .attach();
    runner.set_core(Some(0));
    runner
}

fn cores<const N: usize>(cores: [usize; N]) -> CpuSet {
    cores.into_iter().collect()
}

/// Asks on the thread itself.
fn ask<const N: usize>(runner: &mut ThreadRunner, mask: [usize; N]) -> SetCpumask {
    let thread = runner.handle();
    runner.enter(|| thread.set_cpumask_async(&cores(mask)))
}

/// As a framework does it.
fn move_to(runner: ThreadRunner, core: usize) -> ThreadRunner {
    let mut runner = runner.park().unwrap().attach();
    runner.set_core(Some(core));
    runner
}

fn superseded_by(cpumask: &str) -> Option<Result<(), SetCpumaskError>> {
    Some(Err(SetCpumaskError::Superseded {
        thread: "wanderer".into(),
        cpumask: cpumask.into(),
    }))
}

#[test]
fn the_wait_ends_when_the_thread_is_polled_on_a_core_of_the_mask() {
    let mut runner = thread_on_core_0();
    let mut moved = ask(&mut runner, [1, 2]);
    assert_eq!(runner.handle().cpumask(), cores([1, 2]));
    runner.poll(0, 0);
    assert_eq!((&mut moved).now_or_never(), None);
    let mut runner = runner.park().unwrap().attach();
    assert_eq!(runner.handle().core(), None);
    assert_eq!((&mut moved).now_or_never(), None, "on the way");
    runner.set_core(Some(2));
    assert_eq!(runner.handle().core(), Some(2));
    assert_eq!(moved.now_or_never(), Some(Ok(())));
}

#[test]
fn a_thread_on_a_core_of_the_mask_is_there_at_once() {
    let mut runner = thread_on_core_0();
    assert_eq!(ask(&mut runner, [0, 3]).now_or_never(), Some(Ok(())));
    // From elsewhere, after one message.
    let moved = runner.handle().set_cpumask_async(&cores([0]));
    assert_eq!(runner.handle().cpumask(), cores([0, 3]));
    runner.poll(0, 0);
    assert_eq!(runner.handle().cpumask(), cores([0]));
    assert_eq!(moved.now_or_never(), Some(Ok(())));
}

#[test]
fn a_mask_that_set_cpumask_refuses_is_refused_and_changes_nothing() {
    let mut runner = thread_on_core_0();
    let before = runner.handle().cpumask();
    let refused = ask(&mut runner, [7]).now_or_never().unwrap().unwrap_err();
    assert!(matches!(refused, SetCpumaskError::NoCore { .. }));
    let refused = runner.handle().set_cpumask_async(&CpuSet::empty());
    runner.poll(0, 0);
    let refused = refused.now_or_never().unwrap().unwrap_err();
    assert_eq!(refused, SetCpumaskError::Empty("wanderer".into()));
    assert_eq!(runner.handle().cpumask(), before);

    let mut alone = ThreadLib::new().thread().build().unwrap().attach();
    let refused = ask(&mut alone, [0]).now_or_never().unwrap().unwrap_err();
    assert!(matches!(refused, SetCpumaskError::NotSupported(_)));
}

#[test]
fn a_later_mask_with_other_cores_ends_the_wait() {
    let mut runner = thread_on_core_0();
    let mut narrow = ask(&mut runner, [1]);
    let mut wide = ask(&mut runner, [1, 2]);
    assert_eq!((&mut narrow).now_or_never(), superseded_by("[1-2]"));
    // What is there for [2] is there for [1,2].
    let mut within = ask(&mut runner, [2]);
    assert_eq!((&mut wide).now_or_never(), None);
    // The form that does not wait counts as well.
    let thread = runner.handle();
    runner.enter(|| thread.set_cpumask(&cores([2, 3]))).unwrap();
    assert_eq!((&mut within).now_or_never(), superseded_by("[2-3]"));
    assert_eq!((&mut wide).now_or_never(), superseded_by("[2-3]"));
    // Back to where it is.
    let mut away = ask(&mut runner, [3]);
    assert_eq!(ask(&mut runner, [0]).now_or_never(), Some(Ok(())));
    assert_eq!((&mut away).now_or_never(), superseded_by("[0]"));
}

#[test]
fn two_who_wait_for_the_same_core_are_both_told() {
    let mut runner = thread_on_core_0();
    let first = ask(&mut runner, [2]);
    let second = ask(&mut runner, [2]);
    let runner = move_to(runner, 2);
    assert_eq!(first.now_or_never(), Some(Ok(())));
    assert_eq!(second.now_or_never(), Some(Ok(())));
    drop(runner);
}

#[test]
fn dropping_the_future_does_not_undo_the_move() {
    let mut runner = thread_on_core_0();
    drop(ask(&mut runner, [1]));
    drop(runner.handle().set_cpumask_async(&cores([2])));
    runner.poll(0, 0);
    assert_eq!(runner.handle().cpumask(), cores([2]));
}

#[test]
fn an_exit_ends_the_wait() {
    let is_exited = |end: Option<Result<(), SetCpumaskError>>| matches!(end, Some(Err(SetCpumaskError::Exited(it))) if it.thread() == "wanderer");
    let mut runner = thread_on_core_0();
    let waiting = ask(&mut runner, [1]);
    drop(runner.exit());
    while !runner.is_exited() {
        runner.poll(0, 0);
    }
    assert!(is_exited(waiting.now_or_never()));
    // After the exit, from here and from elsewhere.
    assert!(is_exited(ask(&mut runner, [1]).now_or_never()));
    let late = runner.handle().set_cpumask_async(&cores([1]));
    assert!(is_exited(late.now_or_never()));

    // Dropped without an exit: on its way, and with the request in its mailbox.
    let mut runner = thread_on_core_0();
    let waiting = ask(&mut runner, [1]);
    let unread = runner.handle().set_cpumask_async(&cores([2]));
    drop(runner.park().unwrap());
    assert!(is_exited(waiting.now_or_never()));
    assert!(is_exited(unread.now_or_never()));
}

/// G5: a task that waits for its own thread goes with it.
#[test]
fn a_task_that_waits_for_its_own_thread_moves_with_it() {
    let mut runner = thread_on_core_0();
    let thread = runner.handle();
    let task = runner.enter(|| {
        task::spawn(async move {
            let before = std::thread::current().id();
            thread.set_cpumask_async(&cores([1])).await.unwrap();
            (before, std::thread::current().id())
        })
    });
    runner.poll(0, 0);
    let parked = runner.park().expect("nothing binds it");
    let elsewhere = std::thread::spawn(move || {
        let mut runner = parked.attach();
        runner.set_core(Some(1));
        runner.poll(0, 0);
        (std::thread::current().id(), runner.park().unwrap())
    });
    let (there, _parked) = elsewhere.join().unwrap();
    let here = std::thread::current().id();
    assert_eq!(block_on(task).unwrap(), (here, there));
}

/// G11: instead of waiting for ever.
#[test]
fn a_task_that_is_not_send_cannot_wait_for_its_own_thread() {
    let mut runner = thread_on_core_0();
    let mut other = library().thread().build().unwrap().attach();
    let thread = runner.handle();
    let wait = move |mask: [usize; 1]| {
        let thread = thread.clone();
        async move { thread.set_cpumask_async(&cores(mask)).await }
    };
    let held = runner.enter(|| task::spawn_local(wait([1])));
    runner.poll(0, 0);
    let refused = held.now_or_never().unwrap().unwrap();
    assert_eq!(
        refused,
        Err(SetCpumaskError::HeldByWaiter("wanderer".into()))
    );
    assert_eq!(runner.handle().cpumask(), cores([1]), "it goes when it can");
    // There already, and on another thread, it can.
    let here = runner.enter(|| task::spawn_local(wait([0])));
    runner.poll(0, 0);
    assert_eq!(here.now_or_never().unwrap().unwrap(), Ok(()));
    let elsewhere = other.enter(|| task::spawn_local(wait([3])));
    other.poll(0, 0);
    runner.poll(0, 0);
    let _runner = move_to(runner, 3);
    other.poll(0, 0);
    assert_eq!(elsewhere.now_or_never().unwrap().unwrap(), Ok(()));
}

#[test]
fn where_nobody_tells_cores_the_frameworks_word_has_to_do() {
    let mut runner = library().thread().build().unwrap().attach();
    assert_eq!(runner.handle().core(), None);
    assert_eq!(ask(&mut runner, [1]).now_or_never(), Some(Ok(())));
}
