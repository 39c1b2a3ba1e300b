//! `for_each_thread` against the scenarios of the reference suite.

use std::sync::{Arc, Mutex};

use corespun::task;
use corespun::thread::{ExitHolder, Poller, SpdkThread, WalkStartError};
use harness::io::poll_once;
use harness::threads::{SharedRuns, Threads};

fn start(threads: &mut Threads, index: usize) -> SharedRuns {
    let count = SharedRuns::default();
    let (visits, end) = (count.clone(), count.clone());
    let library = threads.library.clone();
    threads
        .on(index, || {
            library.for_each_thread(
                move |_| visits.add(),
                move |walked| {
                    assert_eq!(walked, Ok(()));
                    end.add();
                },
            )
        })
        .unwrap();
    count
}

/// T-TH-19 (TH-073).
#[test]
fn a_walk_visits_threads_in_creation_order_and_completes_on_its_origin() {
    let mut threads = Threads::allocate(3);
    let count = start(&mut threads, 0);
    assert_eq!(count.get(), 0);
    for (index, expected) in [(0, 1), (1, 2), (2, 3), (0, 4)] {
        threads.poll_thread(index);
        assert_eq!(count.get(), expected);
    }
    threads.free();
}

/// T-TH-35.
#[test]
fn a_thread_that_exits_after_starting_a_walk_sees_its_end() {
    let mut threads = Threads::allocate(3);
    let count = start(&mut threads, 0);
    threads.on(0, || drop(SpdkThread::current().unwrap().exit()));
    for (index, expected) in [(0, 1), (1, 2), (2, 3)] {
        threads.poll_thread(index);
        assert_eq!(count.get(), expected);
        assert!(!threads.is_exited(0));
    }
    assert!(
        threads
            .runner(0)
            .exit_holders()
            .contains(&ExitHolder::ThreadWalk)
    );
    threads.poll_thread(0);
    assert_eq!(count.get(), 4);
    assert!(threads.is_exited(0));
    threads.free();
}

/// T-X-08: threads on the way that exit, have exited, or are dropped.
#[test]
fn a_walk_of_another_thread_outlives_the_exit_of_those_it_meets() {
    let mut threads = Threads::allocate(4);
    let count = start(&mut threads, 0);
    // Exits with the walk's message in its queue: that is run.
    threads.poll_thread(0);
    threads.exit(1);
    // Asked to exit before the walk gets there, and held: passed over.
    let held = threads.on(2, || Poller::active(|| false)).unwrap();
    threads.exit(2);
    threads.poll_thread(2);
    threads.poll_thread(1);
    assert!(threads.is_exited(1) && !threads.is_exited(2));
    assert_eq!(count.get(), 2);
    threads.poll_thread(3);
    threads.poll_thread(0);
    assert_eq!(count.get(), 4);

    drop(held);
    // Dropped with the message in its queue.
    let extra = threads.library.thread().build().unwrap();
    let count = start(&mut threads, 0);
    threads.poll_threads();
    assert_eq!(count.get(), 2, "it waits on the extra thread");
    drop(extra);
    threads.poll_threads();
    assert_eq!(count.get(), 3);
    threads.free();
}

/// TH-073: behind the cursor not visited, before it visited.
#[test]
fn a_thread_made_during_a_walk_is_visited() {
    let mut threads = Threads::allocate(1);
    let names = Arc::new(Mutex::new(Vec::new()));
    let (seen, library) = (names.clone(), threads.library.clone());
    threads
        .on(0, || {
            library.for_each_thread(
                move |thread| seen.lock().unwrap().push(thread.name().to_owned()),
                |_| {},
            )
        })
        .unwrap();
    let mut late = threads
        .library
        .thread()
        .name("late")
        .build()
        .unwrap()
        .attach();
    threads.poll_threads();
    late.poll(0, 0);
    threads.poll_threads();
    assert_eq!(*names.lock().unwrap(), ["thread 1", "late"]);
    drop(late);
    threads.free();
}

/// A panic on the way, which the end tells of, and a walk without a thread.
#[test]
fn a_walk_goes_on_after_a_panic_and_tells_of_it() {
    let mut threads = Threads::allocate(3);
    let library = threads.library.clone();
    let refused = library.for_each_thread(|_| {}, |_| {}).unwrap_err();
    assert!(matches!(refused, WalkStartError::NotOnThread(_)));
    let (visits, end) = (SharedRuns::default(), Arc::new(Mutex::new(None)));
    let (seen, tell) = (visits.clone(), end.clone());
    let visit = move |thread: &SpdkThread| {
        seen.add();
        assert_eq!(thread.id(), 2, "contained");
    };
    let done = move |walked| *tell.lock().unwrap() = Some(walked);
    threads
        .on(1, || library.for_each_thread(visit, done))
        .unwrap();
    threads.poll_threads();
    let walked = end.lock().unwrap().take().unwrap();
    assert_eq!(walked.unwrap_err().stops, 2);
    assert_eq!(visits.get(), 3);
    assert_eq!(threads.take_panics().len(), 2);
    threads.free();
}

/// A thread that is dropped by what unwinds, with the walk in its queue, is passed over:
/// nothing was visited that could have panicked.
#[test]
fn a_walk_that_waits_where_something_else_unwinds_has_not_panicked() {
    let mut threads = Threads::allocate(1);
    let library = threads.library.clone();
    let other = library.thread().build().unwrap().attach();
    let end = Arc::new(Mutex::new(None));
    let tell = end.clone();
    let done = move |walked| *tell.lock().unwrap() = Some(walked);
    threads
        .on(0, || library.for_each_thread(|_| (), done))
        .unwrap();
    threads.poll_once(0);
    let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _other = other;
        std::panic::resume_unwind(Box::new("not its own"));
    }));
    assert!(unwound.is_err());
    threads.poll_threads();
    assert_eq!(end.lock().unwrap().take(), Some(Ok(())));
    threads.free();
}

/// The asynchronous walk holds one thread at a time, passes over one that was
/// asked to exit, visits one made meanwhile, and goes on after a panic and after
/// an exit during a turn.
#[test]
fn an_async_walk_is_in_order_and_outlives_what_ends_on_the_way() {
    let mut threads = Threads::allocate(4);
    let library = threads.library.clone();
    let visits = SharedRuns::default();
    let seen = visits.clone();
    let walk = threads.on(0, || {
        task::spawn_local(async move {
            let walk = library.walk_threads(async move |thread| {
                seen.add();
                task::yield_now().await;
                match thread.id() {
                    2 => panic!("contained"),
                    3 => std::future::pending().await,
                    id => id,
                }
            });
            walk.await
        })
    });
    threads.poll_thread(0);
    assert_eq!(visits.get(), 1, "thread 2 has its turn, but was not polled");
    threads.poll_thread(1);
    threads.poll_thread(2);
    assert_eq!(visits.get(), 2, "the walk's own thread sends it on");
    let mut late = threads.library.thread().build().unwrap().attach();
    threads.exit(3);
    threads.poll_thread(3);
    threads.poll_threads();
    assert_eq!(visits.get(), 3, "thread 3 holds the walk");
    threads.exit(2);
    threads.poll_threads();
    while !walk.is_finished() {
        late.poll(0, 0);
        threads.poll_threads();
    }
    let results = futures::executor::block_on(walk).unwrap();
    let ids: Vec<_> = results.iter().map(|(thread, _)| thread.id()).collect();
    assert_eq!(ids, [1, 2, 3, late.handle().id()]);
    assert_eq!(*results[0].1.as_ref().unwrap(), 1);
    assert!(results[1].1.as_ref().unwrap_err().is_panic());
    assert!(results[2].1.as_ref().unwrap_err().is_thread_exited());
    assert!(results[3].1.is_ok());
    drop(late);
    threads.free();
}

/// Dropped, it ends after the thread that it is at.
#[test]
fn a_dropped_async_walk_visits_no_further_thread() {
    let mut threads = Threads::allocate(2);
    let library = threads.library.clone();
    let visits = SharedRuns::default();
    let seen = visits.clone();
    let walk = threads.on(1, || {
        task::spawn_local(async move { library.walk_threads(async move |_| seen.add()).await })
    });
    threads.poll_thread(1);
    walk.abort();
    threads.poll_threads();
    assert!(walk.is_finished());
    assert_eq!(visits.get(), 1);
    threads.free();
}

/// No stop waits for another; the results are in creation order.
#[test]
fn a_concurrent_walk_is_on_all_threads_at_once() {
    let mut threads = Threads::allocate(3);
    let visits = SharedRuns::default();
    let seen = visits.clone();
    // From no thread.
    let mut walk = Box::pin(
        threads
            .library
            .walk_threads_concurrent(async move |thread| {
                seen.add();
                task::yield_now().await;
                assert_ne!(thread.id(), 2, "contained");
                thread.id()
            }),
    );
    threads.poll_threads();
    assert_eq!(visits.get(), 0, "nothing before it is awaited");
    assert!(poll_once(walk.as_mut()).is_pending());
    for index in [2, 1, 0] {
        assert_eq!(visits.get(), 2 - index as i64);
        threads.poll_thread(index);
    }
    let results = futures::executor::block_on(walk);
    let ids: Vec<_> = results.iter().map(|(thread, _)| thread.id()).collect();
    assert_eq!(ids, [1, 2, 3]);
    assert_eq!(*results[0].1.as_ref().unwrap(), 1);
    assert!(results[1].1.as_ref().unwrap_err().is_panic());
    assert_eq!(*results[2].1.as_ref().unwrap(), 3);
    threads.free();
}
