//! Pollers as streams, streams as pollers, and waiting for a condition.

use std::cell::Cell;
use std::rc::Rc;
use std::task::Poll;

use corespun::stream::{PollerStream, poll_until};
use corespun::task::spawn_local;
use corespun::thread::{Poller, PollerState};
use corespun::time::sleep;
use futures::StreamExt;
use harness::threads::*;

#[test]
fn a_timed_poller_stream_yields_once_per_period() {
    let (mut runner, hand) = thread();
    let ticks = runner.enter(|| {
        let ticks = PollerStream::timed(us(10), || Some(corespun::time::now())).unwrap();
        spawn_local(ticks.take(3).collect::<Vec<_>>())
    });
    run_to(&mut runner, &hand, 30);
    assert_eq!(output(ticks), [10, 20, 30]);
}

#[test]
fn a_full_buffer_pauses_the_poller_and_an_item_taken_resumes_it() {
    let (mut runner, _) = thread();
    let calls = Rc::new(Cell::new(0));
    let counted = calls.clone();
    let mut stream = runner
        .enter(|| {
            PollerStream::<u32>::builder()
                .capacity(2)
                .register(move || {
                    counted.set(counted.get() + 1);
                    Some(counted.get())
                })
        })
        .unwrap();
    for _ in 0..5 {
        runner.poll(0, 0);
    }
    assert_eq!((calls.get(), stream.queued()), (2, 2));
    assert_eq!(stream.poller().unwrap().state(), PollerState::Paused);
    let first = runner.enter(|| futures::executor::block_on(stream.next()));
    assert_eq!(first, Some(1));
    runner.poll(0, 0);
    runner.poll(0, 0);
    assert_eq!((calls.get(), stream.queued()), (3, 2));
}

#[test]
fn dropping_a_poller_stream_unregisters_its_poller_and_drops_the_closure() {
    let (mut runner, _) = thread();
    let trace = Trace::default();
    let note = DropNote(trace.clone(), "closure");
    let stream = runner
        .enter(|| {
            PollerStream::<()>::active(move || {
                let _kept = &note;
                None::<()>
            })
        })
        .unwrap();
    runner.poll(0, 0);
    drop(stream);
    assert_eq!(trace.take(), ["closure"]);
    assert!(!runner.has_pollers());
}

#[test]
fn a_poller_stream_ends_when_its_closure_says_so_or_panics() {
    let (library, _) = library();
    let panics = library.panics();
    let mut runner = library.runner("");
    let mut left = 2;
    let ended = runner.enter(|| {
        let stream = PollerStream::active(move || {
            left -= 1;
            Poll::Ready((left >= 0).then_some(left))
        });
        spawn_local(stream.unwrap().collect::<Vec<_>>())
    });
    let mut calls = 0;
    let panicked = runner.enter(|| {
        let stream = PollerStream::active(move || {
            calls += 1;
            assert!(calls < 2, "no more");
            Some(calls)
        });
        spawn_local(stream.unwrap().collect::<Vec<_>>())
    });
    settle(&mut runner);
    assert_eq!(output(ended), [1, 0]);
    assert_eq!(output(panicked), [1]);
    assert_eq!(panics.take_with_sources(), ["Poller: no more"]);
    assert!(!runner.has_pollers());
}

#[test]
fn poll_until_looks_once_per_poll_and_stops_looking_when_dropped() {
    let (mut runner, hand) = thread();
    let looks = Rc::new(Cell::new(0));
    let counted = looks.clone();
    let timed_out = runner.enter(|| {
        spawn_local(corespun::time::timeout(
            us(10),
            poll_until(move || {
                counted.set(counted.get() + 1);
                Poll::<()>::Pending
            }),
        ))
    });
    runner.poll(0, 0);
    runner.poll(0, 0);
    runner.poll(0, 0);
    // Once from the task, and from then on once in each poll.
    assert_eq!(looks.get(), 4);
    hand.advance(10);
    runner.poll(0, 0);
    runner.poll(0, 0);
    assert!(output(timed_out).is_err());
    assert!(!runner.has_pollers());
}

#[test]
fn poll_until_hands_over_what_a_later_look_found() {
    let (mut runner, _) = thread();
    let flag = Rc::new(Cell::new(false));
    let seen = flag.clone();
    let found = runner.enter(|| {
        spawn_local(poll_until(move || {
            if seen.get() {
                Poll::Ready("found")
            } else {
                Poll::Pending
            }
        }))
    });
    for _ in 0..3 {
        runner.poll(0, 0);
    }
    assert!(!found.is_finished());
    flag.set(true);
    runner.poll(0, 0);
    runner.poll(0, 0);
    assert_eq!(output(found), "found");
    assert!(!runner.has_pollers());
}

#[test]
fn poll_until_panics_when_its_closure_did() {
    let (library, _) = library();
    let panics = library.panics();
    let mut runner = library.runner("");
    let mut looks = 0;
    let found = runner.enter(|| {
        spawn_local(poll_until(move || {
            looks += 1;
            assert!(looks < 3, "cannot look");
            Poll::<()>::Pending
        }))
    });
    settle(&mut runner);
    assert!(futures::executor::block_on(found).unwrap_err().is_panic());
    assert_eq!(panics.take_with_sources()[0], "Poller: cannot look");
}

#[test]
fn a_stream_driven_by_a_poller_takes_a_batch_per_poll_and_unregisters_at_its_end() {
    let (mut runner, _) = thread();
    let sum = Rc::new(Cell::new(0));
    let total = sum.clone();
    let poller = runner
        .enter(|| {
            Poller::from_stream(futures::stream::iter([1; 12]), move |one| {
                total.set(total.get() + one)
            })
        })
        .unwrap();
    runner.poll(0, 0);
    assert_eq!(sum.get(), 8);
    runner.poll(0, 0);
    assert_eq!(sum.get(), 12);
    assert_eq!(poller.state(), PollerState::Unregistered);
    assert!(!runner.has_pollers());
}

#[test]
fn a_stream_that_is_dropped_by_its_own_wake_is_no_problem() {
    let (mut runner, hand) = thread();
    let handle = runner.enter(|| {
        spawn_local(async {
            let mut stream = PollerStream::active(|| Some(())).unwrap();
            stream.next().await;
            drop(stream);
            sleep(us(1)).await;
        })
    });
    run_to(&mut runner, &hand, 1);
    output(handle);
    assert!(!runner.has_pollers());
}
