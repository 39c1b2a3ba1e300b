//! What is tokio's own in `sync` needs nothing of tokio's runtime here.
#![cfg(feature = "full")]

extern crate corespun_compat as tokio;

use std::time::Duration;

use ecosystem::sync::mpsc as theirs;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::error::{SendTimeoutError, TrySendError};
use tokio::sync::{Mutex, RwLock, Semaphore, broadcast, mpsc, oneshot};
use tokio::task;

/// tokio itself, as another crate sees it.
extern crate tokio as ecosystem;

fn both() -> [Runtime; 2] {
    [Builder::new_current_thread(), Builder::new_multi_thread()]
        .map(|mut builder| builder.worker_threads(1).enable_all().build().unwrap())
}

#[test]
fn send_timeout_waits_by_the_timers_of_this_runtime() {
    for runtime in both() {
        let task = runtime.spawn(async {
            let (sender, mut receiver) = mpsc::channel(1);
            let soon = Duration::from_micros(200);
            assert_eq!(sender.send_timeout(1, soon).await, Ok(()));
            let full = sender.send_timeout(2, soon).await;
            assert_eq!(full, Err(SendTimeoutError::Timeout(2)));
            let late = Duration::from_secs(60);
            let (sent, got) = tokio::join!(sender.send_timeout(3, late), receiver.recv());
            assert_eq!((sent, got), (Ok(()), Some(1)));
            drop(receiver);
            let closed = sender.send_timeout(4, late).await;
            assert_eq!(closed, Err(SendTimeoutError::Closed(4)));
        });
        runtime.block_on(task).unwrap();
    }
}

#[test]
fn the_cover_of_a_sender_is_put_on_and_taken_off() {
    let (sender, mut receiver) = mpsc::channel(2);
    // By reference, for who asks for tokio's own type.
    fn takes_theirs(sender: &theirs::Sender<u8>) {
        sender.try_send(1).unwrap();
    }
    takes_theirs(&sender);
    let of_theirs: theirs::Sender<u8> = sender.clone().into();
    let back = mpsc::Sender::from(of_theirs.clone());
    assert!(back.same_channel(&sender));
    assert!(of_theirs.same_channel(&sender));
    assert_eq!((sender.strong_count(), sender.max_capacity()), (3, 2));

    let weak = sender.downgrade();
    let permit = back.try_reserve_owned().unwrap();
    assert!(permit.same_channel_as_sender(&sender));
    let full = sender.clone().try_reserve_owned();
    assert!(matches!(full, Err(TrySendError::Full(again)) if again.same_channel(&sender)));
    assert!(permit.send(2).same_channel(&sender));
    drop((sender, of_theirs));
    assert!(weak.upgrade().is_none());
    let of_tokio: &mut theirs::Receiver<u8> = &mut receiver;
    assert_eq!((of_tokio.try_recv(), of_tokio.try_recv()), (Ok(1), Ok(2)));
}

/// Each call of `sync` that blocks, where it may: on a helper thread, in `block_in_place`, and
/// where there is no runtime at all.
fn calls_that_block() {
    let (sender, mut receiver) = mpsc::channel(1);
    sender.blocking_send(1).unwrap();
    assert_eq!(receiver.blocking_recv(), Some(1));
    let (sender, mut receiver) = mpsc::unbounded_channel();
    sender.send(1).unwrap();
    assert_eq!(receiver.blocking_recv(), Some(1));
    assert_eq!(*Mutex::new(1).blocking_lock(), 1);
    assert_eq!(*RwLock::new(1).blocking_read(), 1);
    assert_eq!(*RwLock::new(1).blocking_write(), 1);
    let (sender, receiver) = oneshot::channel();
    sender.send(1).unwrap();
    assert_eq!(receiver.blocking_recv(), Ok(1));
    let (sender, mut receiver) = broadcast::channel(1);
    sender.send(1).unwrap();
    assert_eq!(receiver.blocking_recv(), Ok(1));
}

#[test]
fn what_blocks_does_so_where_it_may() {
    calls_that_block();
    for runtime in both() {
        runtime.block_on(async { task::spawn_blocking(calls_that_block).await.unwrap() });
    }
    let [_, many] = both();
    many.block_on(async {
        task::block_in_place(calls_that_block);
        tokio::spawn(async { task::block_in_place(calls_that_block) })
            .await
            .unwrap();
    });
}

/// One that is always ready gives way: the budget is counted here.
#[test]
fn what_is_always_ready_gives_way() {
    for runtime in both() {
        let task = runtime.spawn(async {
            let semaphore = Semaphore::new(1);
            let other = tokio::spawn(async {});
            while !other.is_finished() {
                drop(semaphore.acquire().await.unwrap());
            }
        });
        let ended =
            runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), task).await });
        ended.expect("the other one has its turn").unwrap();
    }
}
