//! G3: a message that cannot be sent comes back with its closure, whatever the
//! reason; nothing is dropped silently.

use std::sync::Arc;

use corespun::thread::{SendErrorReason, SpdkThread, ThreadLib};
use futures::FutureExt;

#[test]
fn a_full_thread_gives_the_closure_back() {
    let builder = ThreadLib::new().thread().name("small").message_limit(4);
    let mut runner = builder.build().unwrap().attach();
    let thread = runner.handle();
    let witness = Arc::new(5);
    for own in [false, true] {
        let send = || {
            let mine = witness.clone();
            thread.send_msg(move || assert_eq!(*mine, 5))
        };
        let fill = || (0..4).for_each(|_| send().unwrap());
        let error = if own {
            runner.enter(|| {
                fill();
                send().unwrap_err()
            })
        } else {
            fill();
            send().unwrap_err()
        };
        assert_eq!(
            *error.reason(),
            SendErrorReason::Full {
                thread: "small".to_owned(),
                limit: 4
            }
        );
        assert_eq!(Arc::strong_count(&witness), 6);
        error.into_message()();
        assert_eq!(Arc::strong_count(&witness), 5);
        while runner.poll(0, 0).is_busy() {}
        assert_eq!(Arc::strong_count(&witness), 1);
    }
}

#[test]
fn an_exited_thread_gives_the_closure_back() {
    let mut runner = ThreadLib::new()
        .thread()
        .name("gone")
        .build()
        .unwrap()
        .attach();
    let thread = runner.handle();
    drop(thread.exit());
    while !thread.is_exited() {
        runner.poll(0, 0);
    }
    let owned = vec![1, 2, 3];
    let error = runner.enter(|| thread.send_msg(move || drop(owned)).unwrap_err());
    assert!(error.is_exited());
    assert!(error.to_string().contains("gone"), "{error}");
    drop(runner);
    let message = error.into_message();
    let error = thread.send_msg(message).unwrap_err();
    assert!(error.is_exited());
    error.into_message()();
}

/// The owner part of a thread that is gone may be followed by another's at the
/// same address.
#[test]
fn a_message_to_a_thread_that_is_gone_does_not_reach_its_successor() {
    let library = ThreadLib::new();
    for _ in 0..100 {
        let gone = library.thread().build().unwrap().handle();
        let mut runner = library.thread().build().unwrap().attach();
        runner.enter(|| {
            assert!(!gone.is_current());
            let error = gone.send_msg(|| unreachable!()).unwrap_err();
            assert!(error.is_exited());
            let task = gone.spawn(async { unreachable!() });
            let error = task.now_or_never().unwrap().unwrap_err();
            assert!(error.is_thread_exited());
        });
        assert!(!runner.has_messages());
        while runner.poll(0, 0).is_busy() {}
    }
}

#[test]
fn a_refused_spawn_says_so_and_drops_the_future_on_the_spawner() {
    let library = ThreadLib::new();
    let gone = library.thread().build().unwrap().handle();
    let witness = Arc::new(());
    let mine = witness.clone();
    let task = gone.spawn(async move { drop(mine) });
    assert_eq!(Arc::strong_count(&witness), 1);
    assert!(task.is_finished());
    let error = task.now_or_never().unwrap().unwrap_err();
    assert!(error.is_thread_exited());
    assert!(SpdkThread::current().is_none());
}
