//! Values between threads: the channel into a thread, and one value per thread.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use corespun::mpsc::{self, SendError, TryRecvError, TrySendError};
use corespun::sharded::{ShardError, Sharded};
use corespun::task::{block_on, spawn_local};
use corespun::thread::{SpdkThread, ThreadLib, ThreadState};
use futures::{FutureExt, Stream, StreamExt};
use harness::threads::*;

/// How often the waker was woken.
fn counting_waker() -> (Arc<AtomicUsize>, Waker) {
    let wakes = Arc::<AtomicUsize>::default();
    let counted = wakes.clone();
    let waker = waker_fn::waker_fn(move || _ = counted.fetch_add(1, Ordering::Relaxed));
    (wakes, waker)
}

#[test]
fn a_value_is_one_message_and_wakes_its_receiver_in_the_same_poll() {
    let (mut runner, _) = thread();
    let (sender, mut receiver) = runner.enter(|| mpsc::channel(4));
    let got = runner.enter(|| spawn_local(async move { receiver.recv().await }));
    settle(&mut runner);
    sender.try_send(5).unwrap();
    runner.poll(0, 0);
    assert_eq!(output(got), Some(5));
}

#[test]
fn a_channel_is_full_with_what_is_on_its_way_and_a_taken_value_makes_room() {
    let (mut runner, _) = thread();
    let (sender, mut receiver) = runner.enter(|| mpsc::channel(2));
    sender.try_send('a').unwrap();
    sender.try_send('b').unwrap();
    assert_eq!(sender.try_send('c'), Err(TrySendError::Full('c')));
    let mut waits = Box::pin(sender.send('d'));
    assert!(waits.as_mut().now_or_never().is_none());
    assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
    settle(&mut runner);
    assert_eq!(receiver.try_recv(), Ok('a'));
    assert_eq!(waits.as_mut().now_or_never(), Some(Ok(())));
    settle(&mut runner);
    let rest: Vec<char> = std::iter::from_fn(|| receiver.try_recv().ok()).collect();
    assert_eq!(rest, ['b', 'd']);
}

#[test]
fn a_cancelled_send_passes_its_place_on() {
    let (mut runner, _) = thread();
    let (sender, mut receiver) = runner.enter(|| mpsc::channel(1));
    sender.try_send(0).unwrap();
    let mut first = Box::pin(sender.send(1));
    let mut second = Box::pin(sender.send(2));
    assert!(first.as_mut().now_or_never().is_none());
    assert!(second.as_mut().now_or_never().is_none());
    settle(&mut runner);
    assert_eq!(receiver.try_recv(), Ok(0));
    drop(first);
    assert_eq!(second.now_or_never(), Some(Ok(())));
}

#[test]
fn a_channel_ends_after_everything_that_was_sent() {
    let (mut runner, _) = thread();
    let (sender, receiver) = runner.enter(|| mpsc::channel(8));
    let all = runner.enter(|| spawn_local(receiver.collect::<Vec<_>>()));
    let senders: Vec<_> = (0..4)
        .map(|number| {
            let sender = sender.clone();
            std::thread::spawn(move || sender.try_send(number).unwrap())
        })
        .collect();
    for sender in senders {
        sender.join().unwrap();
    }
    settle(&mut runner);
    assert!(!all.is_finished());
    drop(sender);
    settle(&mut runner);
    let mut all = output(all);
    all.sort();
    assert_eq!(all, [0, 1, 2, 3]);
}

#[test]
fn a_gone_receiver_or_thread_gives_the_value_back_and_wakes_those_who_wait() {
    let (mut runner, _) = thread();
    let (sender, receiver) = runner.enter(|| mpsc::channel(1));
    sender.try_send(1).unwrap();
    let mut waits = Box::pin(sender.send(2));
    assert!(waits.as_mut().now_or_never().is_none());
    drop(receiver);
    assert_eq!(waits.now_or_never(), Some(Err(SendError(2))));
    assert_eq!(sender.try_send(3), Err(TrySendError::Closed(3)));

    let (sender, receiver) = runner.enter(|| mpsc::channel(1));
    drop(runner);
    assert_eq!(sender.try_send(4), Err(TrySendError::Closed(4)));
    drop(receiver);
}

/// Whether in order or because the right to poll it is dropped.
#[test]
fn a_channel_ends_with_its_thread_also_beside_a_live_receiver() {
    for in_order in [true, false] {
        let (mut runner, _) = thread();
        let thread = runner.handle();
        let (sender, mut receiver) = runner.enter(|| mpsc::channel(1));
        let (other_sender, other) = runner.enter(|| mpsc::channel::<u8>(1));
        sender.try_send(1).unwrap();
        settle(&mut runner);
        let (wakes, waker) = counting_waker();
        let mut cx = Context::from_waker(&waker);
        let mut waits = Box::pin(sender.send(2));
        assert!(waits.as_mut().poll(&mut cx).is_pending());
        let mut other = Box::pin(other);
        assert!(other.as_mut().poll_next(&mut cx).is_pending());
        if in_order {
            drop(runner.exit());
            settle(&mut runner);
        } else {
            drop(runner);
        }
        assert!(thread.is_exited());
        assert_eq!(wakes.load(Ordering::Relaxed), 2, "both who waited");
        let Poll::Ready(Err(SendError(2))) = waits.as_mut().poll(&mut cx) else {
            panic!("it still waits");
        };
        drop(waits);
        assert_eq!(sender.try_send(3), Err(TrySendError::Closed(3)));
        assert!(other.as_mut().poll_next(&mut cx) == Poll::Ready(None));
        // What had arrived is there.
        assert_eq!(receiver.try_recv(), Ok(1));
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Closed));
        drop(other_sender);
    }
}

/// The waker of one that waits takes away what others wait at.
#[test]
fn a_waker_may_drop_other_receivers_as_their_thread_ends() {
    let (mut runner, _) = thread();
    let mut receivers = Vec::new();
    let mut senders = Vec::new();
    for _ in 0..4 {
        let (sender, receiver) = runner.enter(|| mpsc::channel::<u8>(1));
        senders.push(sender);
        receivers.push(receiver);
    }
    thread_local!(static REST: RefCell<Vec<mpsc::Receiver<u8>>> = RefCell::default());
    REST.set(receivers.split_off(1));
    let waker = waker_fn::waker_fn(|| drop(REST.take()));
    let mut cx = Context::from_waker(&waker);
    let mut first = Box::pin(receivers.remove(0));
    assert!(first.as_mut().poll_next(&mut cx).is_pending());
    drop(runner);
    assert!(first.as_mut().poll_next(&mut cx) == Poll::Ready(None));
    assert!(REST.take().is_empty());
    drop(senders);
}

/// One that is made when its thread has ended is closed at once.
#[test]
fn a_channel_to_a_thread_that_has_exited_is_closed() {
    let (mut runner, _) = thread();
    drop(runner.exit());
    settle(&mut runner);
    let (sender, mut receiver) = runner.enter(|| mpsc::channel(1));
    assert_eq!(sender.try_send(1), Err(TrySendError::Closed(1)));
    assert_eq!(receiver.try_recv(), Err(TryRecvError::Closed));
}

#[test]
fn what_arrives_after_the_receiver_is_gone_is_dropped_on_its_thread() {
    let (mut runner, _) = thread();
    let (sender, receiver) = runner.enter(|| mpsc::channel(1));
    let value = Arc::new(());
    sender.try_send(value.clone()).unwrap();
    drop(receiver);
    assert_eq!(Arc::strong_count(&value), 2);
    settle(&mut runner);
    assert_eq!(Arc::strong_count(&value), 1);
}

/// G5
#[test]
fn a_receiver_keeps_its_thread_on_its_os_thread() {
    let (mut runner, _) = thread();
    let (_sender, receiver) = runner.enter(|| mpsc::channel::<()>(1));
    let runner = runner.into_inner().park().unwrap_err();
    drop(receiver);
    assert!(runner.park().is_ok());
}

/// Real threads: the order is what a race would break.
#[test]
fn values_of_each_sending_thread_arrive_in_order_across_a_full_channel() {
    const EACH: usize = 5_000;
    let parked = ThreadLib::new().thread().ring(4).build().unwrap();
    let thread = parked.handle();
    let poller = std::thread::spawn(move || {
        let mut runner = parked.attach();
        while !runner.handle().is_exited() {
            if !runner.poll(0, 0).is_busy() {
                std::thread::yield_now();
            }
        }
    });
    let (hand_over, sender) = std::sync::mpsc::channel();
    let received = thread.spawn_with(async move || {
        let (sender, mut receiver) = mpsc::channel::<(usize, usize)>(16);
        hand_over.send(sender).unwrap();
        let mut next = [0; 2];
        while let Some((who, number)) = receiver.recv().await {
            assert_eq!(number, next[who]);
            next[who] += 1;
        }
        next
    });
    let sender = sender.recv().unwrap();
    let senders = [0, 1].map(|who| {
        let sender = sender.clone();
        std::thread::spawn(move || {
            block_on(async {
                for number in 0..EACH {
                    sender.send((who, number)).await.unwrap();
                }
            })
        })
    });
    drop(sender);
    for sender in senders {
        sender.join().unwrap();
    }
    assert_eq!(block_on(received).unwrap(), [EACH, EACH]);
    block_on(thread.exit());
    poller.join().unwrap();
}

/// Counts its drops, and panics off its thread.
struct Counter {
    count: Cell<u64>,
    home: SpdkThread,
    dropped: Arc<AtomicUsize>,
    _not_send: Rc<()>,
}

impl Drop for Counter {
    fn drop(&mut self) {
        assert!(self.home.is_current());
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

fn counter(dropped: Arc<AtomicUsize>) -> Counter {
    Counter {
        count: Cell::new(0),
        home: SpdkThread::current().unwrap(),
        dropped,
        _not_send: Rc::new(()),
    }
}

#[test]
fn each_shard_is_made_used_and_dropped_on_its_own_thread() {
    let (mut here, mut there) = two_threads();
    let threads = [here.handle(), there.handle()];
    let dropped = Arc::new(AtomicUsize::new(0));
    let made = dropped.clone();
    let total = here.enter(|| {
        spawn_local(async move {
            let counters = Sharded::start(&threads, async move |index| {
                let counter = counter(made);
                counter.count.set(index as u64);
                counter
            })
            .await
            .unwrap();
            assert_eq!(counters.local().unwrap().home, threads[0]);
            counters
                .invoke_on_async(1, async |counter| {
                    corespun::task::yield_now().await;
                    counter.count.set(counter.count.get() * 10);
                })
                .await
                .unwrap();
            let at_home = |counter: &Counter| counter.home.is_current();
            assert!(counters.invoke_on(1, at_home).await.unwrap());
            counters
                .invoke_on_all(|counter| counter.count.set(counter.count.get() + 1))
                .await
                .unwrap();
            counters
                .map_reduce(|counter| counter.count.get(), 0, |sum, count| sum + count)
                .await
                .unwrap()
        })
    });
    settle_all(&mut [&mut here, &mut there]);
    assert_eq!(output(total), 12);
    // The last clone went with the task.
    assert_eq!(dropped.load(Ordering::Relaxed), 2);
}

#[test]
fn a_stopped_or_exited_shard_refuses_and_a_failed_start_drops_the_others() {
    let (mut here, mut there) = two_threads();
    let threads = [here.handle(), there.handle()];
    let dropped = Arc::new(AtomicUsize::new(0));

    let (made, on) = (dropped.clone(), threads.clone());
    let failed = here.enter(|| {
        spawn_local(async move {
            let started = Sharded::start(&on, async move |index| {
                assert_eq!(index, 0, "no second one");
                counter(made)
            });
            started.await.map(|_| ()).unwrap_err()
        })
    });
    settle_all(&mut [&mut here, &mut there]);
    let ShardError::Call(error) = output(failed) else {
        panic!("it panicked");
    };
    assert!(error.is_panic());
    assert_eq!(dropped.swap(0, Ordering::Relaxed), 1);

    let made = dropped.clone();
    let stopped = here.enter(|| {
        spawn_local(async move {
            let counters = Sharded::start(&threads, async move |_| counter(made))
                .await
                .unwrap();
            drop(threads[1].exit());
            // One yield need not give way to another thread.
            while threads[1].state() == ThreadState::Running {
                corespun::task::yield_now().await;
            }
            let exited = counters.invoke_on(1, |_| ()).await.is_err();
            counters.stop().await;
            (exited, counters.invoke_on(0, |_| ()).await.is_err())
        })
    });
    settle_all(&mut [&mut here, &mut there]);
    assert_eq!(output(stopped), (true, true));
    assert_eq!(dropped.load(Ordering::Relaxed), 2);
}
