//! G2: scheduling cannot fail: a task is queued at most once, a full ring
//! spills, and each sender's order holds across the spill.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

use corespun::task;
use corespun::thread::ThreadLib;

#[test]
fn a_task_is_queued_at_most_once() {
    let mut runner = ThreadLib::new().thread().build().unwrap().attach();
    let polls = Arc::new(AtomicUsize::new(0));
    let slot = Arc::new(Mutex::new(None::<Waker>));
    let (counter, keep) = (polls.clone(), slot.clone());
    drop(runner.enter(|| {
        task::spawn_local(std::future::poll_fn(move |cx| {
            counter.fetch_add(1, Ordering::Relaxed);
            *keep.lock().unwrap() = Some(cx.waker().clone());
            Poll::<()>::Pending
        }))
    }));
    runner.poll(0, 0);
    let waker = slot.lock().unwrap().clone().unwrap();
    for _ in 0..10 {
        waker.wake_by_ref();
        runner.enter(|| waker.wake_by_ref());
    }
    while runner.poll(0, 0).is_busy() {}
    assert_eq!(polls.load(Ordering::Relaxed), 2);
}

/// Far more tasks than slots, and a message limit that none of them counts
/// against.
#[test]
fn wakes_are_not_limited() {
    let builder = ThreadLib::new().thread().ring(2).message_limit(2);
    let mut runner = builder.build().unwrap().attach();
    let thread = runner.handle();
    let done = Arc::new(AtomicUsize::new(0));
    let spawner = std::thread::spawn({
        let done = done.clone();
        move || {
            for _ in 0..1000 {
                let done = done.clone();
                drop(thread.spawn(async move {
                    done.fetch_add(1, Ordering::Relaxed);
                }));
            }
        }
    });
    spawner.join().unwrap();
    while runner.poll(0, 0).is_busy() {}
    assert_eq!(done.load(Ordering::Relaxed), 1000);
}

/// Two senders and a ring of two, polled while they send.
#[test]
fn each_senders_order_holds_across_the_spill() {
    const MESSAGES: usize = 20_000;
    let builder = ThreadLib::new().thread().ring(2);
    let mut runner = builder.build().unwrap().attach();
    let next = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let ordered = Arc::new(AtomicBool::new(true));
    let senders: Vec<_> = (0..2)
        .map(|sender| {
            let (thread, next, ordered) = (runner.handle(), next.clone(), ordered.clone());
            std::thread::spawn(move || {
                for n in 0..MESSAGES {
                    let (next, ordered) = (next.clone(), ordered.clone());
                    let check = move || {
                        if next[sender].fetch_add(1, Ordering::Relaxed) != n {
                            ordered.store(false, Ordering::Relaxed);
                        }
                    };
                    thread.send_msg(check).unwrap();
                }
            })
        })
        .collect();
    while senders.iter().any(|sender| !sender.is_finished()) {
        runner.poll(0, 0);
    }
    while runner.poll(0, 0).is_busy() {}
    assert!(ordered.load(Ordering::Relaxed));
    for sender in &*next {
        assert_eq!(sender.load(Ordering::Relaxed), MESSAGES);
    }
}
