//! Channels and locks of one thread: order, cancellation and drop order.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use corespun::local::{Closed, Mutex, Notify, Semaphore, mpsc, oneshot};
use corespun::task::{spawn_local, yield_now};
use futures::executor::block_on;
use futures::stream::StreamExt;
use futures::{FutureExt, poll};
use harness::threads::*;

fn pending<F: Future + Unpin>(future: &mut F) -> bool {
    block_on(async { poll!(future).is_pending() })
}

#[test]
fn a_oneshot_value_arrives_and_an_unsent_one_is_an_error() {
    let (mut runner, _) = thread();
    let (sender, receiver) = oneshot::channel();
    let (unsent, unreceived) = oneshot::channel::<()>();
    let handle = runner.enter(|| spawn_local(receiver));
    let lost = runner.enter(|| spawn_local(unreceived));
    settle(&mut runner);
    assert!(!handle.is_finished() && !lost.is_finished());
    sender.send(5).unwrap();
    drop(unsent);
    settle(&mut runner);
    assert_eq!(output(handle), Ok(5));
    assert_eq!(output(lost), Err(oneshot::RecvError));
}

#[test]
fn a_oneshot_sender_learns_that_the_receiver_is_gone_and_keeps_its_value() {
    let (mut sender, receiver) = oneshot::channel();
    let mut closed = Box::pin(sender.closed());
    assert!(pending(&mut closed));
    drop(receiver);
    assert!(!pending(&mut closed));
    drop(closed);
    assert!(sender.is_closed());
    assert_eq!(sender.send('x'), Err('x'));
}

#[test]
fn an_unreceived_oneshot_value_is_dropped_with_the_receiver() {
    let trace = Trace::default();
    let (sender, receiver) = oneshot::channel();
    assert!(sender.send(DropNote(trace.clone(), "value")).is_ok());
    drop(receiver);
    assert_eq!(trace.take(), ["value"]);
}

#[test]
fn a_bounded_channel_makes_its_senders_wait_in_turn() {
    let (mut runner, _) = thread();
    let (sender, mut receiver) = mpsc::channel(1);
    let senders: Vec<_> = (0..3)
        .map(|number| {
            let sender = sender.clone();
            runner.enter(|| spawn_local(async move { sender.send(number).await.unwrap() }))
        })
        .collect();
    drop(sender);
    settle(&mut runner);
    assert_eq!(receiver.len(), 1);
    let received = runner.enter(|| {
        spawn_local(async move {
            let mut all = Vec::new();
            while let Some(number) = receiver.recv().await {
                all.push(number);
            }
            all
        })
    });
    settle(&mut runner);
    assert_eq!(output(received), [0, 1, 2]);
    senders.into_iter().for_each(output);
}

#[test]
fn try_send_says_full_or_closed_and_returns_the_value() {
    let (sender, receiver) = mpsc::channel(1);
    sender.try_send('a').unwrap();
    assert_eq!(sender.try_send('b'), Err(mpsc::TrySendError::Full('b')));
    drop(receiver);
    assert_eq!(sender.try_send('c'), Err(mpsc::TrySendError::Closed('c')));
    assert_eq!(block_on(sender.send('d')), Err(mpsc::SendError('d')));
}

#[test]
fn a_cancelled_send_gives_its_place_to_the_next() {
    let (sender, mut receiver) = mpsc::channel(1);
    sender.try_send(0).unwrap();
    let mut first = Box::pin(sender.send(1));
    let mut second = Box::pin(sender.send(2));
    assert!(pending(&mut first) && pending(&mut second));
    assert_eq!(receiver.try_recv(), Ok(0));
    // The place is the first one's, who never takes it.
    drop(first);
    assert!(!pending(&mut second));
    assert_eq!(receiver.try_recv(), Ok(2));
}

#[test]
fn a_dropped_receiver_refuses_those_who_wait_and_drops_what_was_queued() {
    let trace = Trace::default();
    let note = |name| DropNote(trace.clone(), name);
    let (sender, receiver) = mpsc::channel(1);
    assert!(sender.try_send(note("queued")).is_ok());
    let mut waiting = Box::pin(sender.send(note("waiting")));
    assert!(pending(&mut waiting));
    drop(receiver);
    assert_eq!(trace.take(), ["queued"]);
    let refused = waiting.as_mut().now_or_never().unwrap();
    assert!(refused.is_err());
}

#[test]
fn what_was_let_through_but_sent_after_the_close_is_refused() {
    let (sender, mut receiver) = mpsc::channel(1);
    sender.try_send(0).unwrap();
    let mut late = Box::pin(sender.send(1));
    assert!(pending(&mut late));
    assert_eq!(receiver.try_recv(), Ok(0));
    receiver.close();
    assert_eq!(receiver.try_recv(), Err(mpsc::TryRecvError::Closed));
    assert_eq!(block_on(late), Err(mpsc::SendError(1)));
}

#[test]
fn a_closed_channel_still_hands_out_what_is_in_it() {
    let (sender, mut receiver) = mpsc::unbounded();
    sender.send(1).unwrap();
    receiver.close();
    assert!(sender.send(2).is_err());
    assert_eq!(block_on(receiver.collect::<Vec<_>>()), [1]);
}

#[test]
fn a_channel_that_carries_its_own_sender_does_not_leak() {
    let trace = Trace::default();
    let (sender, receiver) = mpsc::unbounded();
    let itself = sender.clone();
    struct Holds(
        #[allow(dead_code)] DropNote,
        #[allow(dead_code)] mpsc::UnboundedSender<Holds>,
    );
    assert!(
        sender
            .send(Holds(DropNote(trace.clone(), "value"), itself))
            .is_ok()
    );
    drop(sender);
    drop(receiver);
    assert_eq!(trace.take(), ["value"]);
}

#[test]
fn permits_go_to_those_who_came_first_even_if_later_ones_want_less() {
    let semaphore = Semaphore::new(1);
    let mut many = semaphore.acquire(2);
    let mut few = semaphore.acquire(1);
    assert!(pending(&mut many) && pending(&mut few));
    assert!(semaphore.try_acquire(1).is_err());
    semaphore.add_permits(1);
    let got = Pin::new(&mut many).now_or_never().unwrap().unwrap();
    assert_eq!(got.num_permits(), 2);
    assert!(pending(&mut few));
    drop(got);
    assert!(!pending(&mut few));
}

#[test]
fn a_waiter_that_leaves_lets_those_behind_it_through() {
    let semaphore = Semaphore::new(1);
    let mut many = semaphore.acquire(2);
    let mut few = semaphore.acquire(1);
    assert!(pending(&mut many) && pending(&mut few));
    drop(many);
    assert!(!pending(&mut few));
}

#[test]
fn permits_given_to_a_waiter_that_never_looked_come_back() {
    let semaphore = Semaphore::new(0);
    let mut waiter = semaphore.acquire(1);
    assert!(pending(&mut waiter));
    semaphore.add_permits(1);
    assert_eq!(semaphore.available_permits(), 0);
    drop(waiter);
    assert_eq!(semaphore.available_permits(), 1);
}

#[test]
fn a_closed_semaphore_refuses_those_who_wait() {
    let semaphore = Rc::new(Semaphore::new(0));
    let mut waiter = semaphore.clone().acquire_owned(1);
    assert!(pending(&mut waiter));
    semaphore.close();
    assert_eq!(block_on(waiter).unwrap_err(), Closed);
    assert_eq!(block_on(semaphore.acquire(0)).unwrap_err(), Closed);
}

#[test]
fn a_mutex_held_across_a_wait_excludes_the_others_in_turn() {
    let (mut runner, _) = thread();
    let shared = Rc::new(Mutex::new(Vec::new()));
    let inside = Rc::new(Cell::new(0));
    let tasks: Vec<_> = (0..4)
        .map(|me| {
            let (shared, inside) = (shared.clone(), inside.clone());
            runner.enter(|| {
                spawn_local(async move {
                    let mut order = shared.lock().await;
                    assert_eq!(inside.replace(1), 0);
                    yield_now().await;
                    order.push(me);
                    inside.set(0);
                })
            })
        })
        .collect();
    settle(&mut runner);
    tasks.into_iter().for_each(output);
    assert_eq!(*shared.try_lock().unwrap(), [0, 1, 2, 3]);
}

#[test]
fn an_aborted_task_gives_its_mutex_free() {
    let (mut runner, _) = thread();
    let shared = Rc::new(Mutex::new(()));
    let held = shared.clone();
    let holder = runner.enter(|| {
        spawn_local(async move {
            let _guard = held.lock().await;
            std::future::pending::<()>().await
        })
    });
    settle(&mut runner);
    assert!(shared.try_lock().is_none());
    holder.abort();
    settle(&mut runner);
    assert!(shared.try_lock().is_some());
}

#[test]
fn one_notification_wakes_one_waiter_and_is_kept_when_there_is_none() {
    let notify = Notify::new();
    notify.notify_one();
    notify.notify_one();
    assert!(!pending(&mut notify.notified()));
    let (mut first, mut second) = (notify.notified(), notify.notified());
    assert!(pending(&mut first) && pending(&mut second));
    notify.notify_one();
    assert!(!pending(&mut first));
    assert!(pending(&mut second));
}

#[test]
fn a_notification_that_a_dropped_waiter_was_given_goes_to_the_next() {
    let notify = Notify::new();
    let (mut first, mut second) = (notify.notified(), notify.notified());
    assert!(pending(&mut first) && pending(&mut second));
    notify.notify_one();
    drop(first);
    assert!(!pending(&mut second));
    let mut third = notify.notified();
    assert!(pending(&mut third));
    notify.notify_waiters();
    drop(third);
    assert!(pending(&mut notify.notified()), "not kept for later ones");
}

#[test]
fn notify_waiters_reaches_those_that_were_made_before_and_never_polled() {
    let notify = Notify::new();
    let mut made_before = notify.notified();
    notify.notify_waiters();
    let mut made_after = notify.notified();
    assert!(!pending(&mut made_before));
    assert!(pending(&mut made_after));
}

#[test]
fn the_last_waker_of_a_receiver_is_the_one_that_is_woken() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Context;
    let (sender, mut receiver) = mpsc::unbounded();
    let counts = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
    for count in &counts {
        let count = count.clone();
        let waker = waker_fn::waker_fn(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let polled = receiver.poll_recv(&mut Context::from_waker(&waker));
        assert_eq!(polled, Poll::Pending);
    }
    sender.send(()).unwrap();
    assert_eq!(counts.map(|count| count.load(Ordering::Relaxed)), [0, 1]);
}
