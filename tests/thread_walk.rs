//! `for_each_thread` against the scenarios of the reference suite.

use std::sync::{Arc, Mutex};

use corespun::task;
use corespun::thread::{ExitHolder, Poller, SpdkThread, ThreadWalkError};
use harness::threads::{SharedRuns, Threads};

fn start(threads: &mut Threads, index: usize) -> SharedRuns {
    let count = SharedRuns::default();
    let (visits, end) = (count.clone(), count.clone());
    let library = threads.library.clone();
    threads
        .on(index, || {
            library.for_each_thread(move |_| visits.add(), move || end.add())
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
                || {},
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

/// The awaited form, a panic on the way, and a walk without a thread.
#[test]
fn a_walk_may_be_awaited_anywhere_and_survives_a_panic() {
    let mut threads = Threads::allocate(2);
    let library = threads.library.clone();
    let refused = library.walk_threads(|_| {}).unwrap_err();
    assert_eq!(refused, ThreadWalkError::NotOnThread);
    let visits = SharedRuns::default();
    let seen = visits.clone();
    let walk = threads.on(1, || {
        library.walk_threads(move |thread| {
            seen.add();
            assert_ne!(thread.id(), 1, "contained");
        })
    });
    threads.poll_threads();
    assert_eq!(futures::executor::block_on(walk.unwrap()), Ok(()));
    assert_eq!(visits.get(), 2);
    assert_eq!(threads.take_panics().len(), 1);
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
            let walk = library.walk_threads_async(async move |thread| {
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
        task::spawn_local(
            async move { library.walk_threads_async(async move |_| seen.add()).await },
        )
    });
    threads.poll_thread(1);
    walk.abort();
    threads.poll_threads();
    assert!(walk.is_finished());
    assert_eq!(visits.get(), 1);
    threads.free();
}

/// Nobody waits for a turn; the results are in creation order.
#[test]
fn a_concurrent_walk_is_on_all_threads_at_once() {
    let mut threads = Threads::allocate(3);
    let visits = SharedRuns::default();
    let seen = visits.clone();
    // From no thread.
    let walk = threads
        .library
        .walk_threads_concurrent(async move |thread| {
            seen.add();
            task::yield_now().await;
            assert_ne!(thread.id(), 2, "contained");
            thread.id()
        });
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
