//! G15: what a program owns through this library is known by what it is, never
//! by a number that something else can have as well: another library instance's
//! device, thread or lock, or a descriptor that was closed and opened anew.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use corespun::channel::{ChannelError, IoDevice};
use corespun::iobuf::{Iobuf, IobufBuf, IobufChannel};
use corespun::thread::{Spinlock, SpinlockMisuse, ThreadLib, ThreadRunner};

/// The only thread of a library instance: its ids and serials are those of
/// every other such instance.
fn alone() -> ThreadRunner {
    ThreadLib::new().thread().build().unwrap().attach()
}

fn pools(runner: &mut ThreadRunner) -> (Iobuf, IobufChannel) {
    runner.enter(|| {
        let iobuf = Iobuf::builder().small(64, 4096).large(8, 8192).build();
        let iobuf = iobuf.unwrap();
        iobuf.register_module("null").unwrap();
        let channel = iobuf.channel("null", 4, 0).unwrap();
        (iobuf, channel)
    })
}

fn all_of(channel: &IobufChannel) -> Vec<IobufBuf> {
    std::iter::from_fn(|| channel.try_get(4096).unwrap()).collect()
}

/// A buffer that is dropped on a thread of another library instance, with pools
/// of its own there, goes back to the pools it came from, and is no second owner
/// of a buffer of the others.
#[test]
fn a_buffer_goes_back_to_its_own_pools_wherever_it_is_dropped() {
    let (mut a, mut b) = (alone(), alone());
    let (_pools_of_a, of_a) = pools(&mut a);
    let (_pools_of_b, of_b) = pools(&mut b);
    let count = a.enter(|| all_of(&of_a)).len();
    assert_eq!(count, 64);
    let travellers = a.enter(|| all_of(&of_a));
    b.enter(|| drop(travellers));
    for (runner, channel) in [(&mut a, &of_a), (&mut b, &of_b)] {
        let buffers = runner.enter(|| all_of(channel));
        let places: BTreeSet<_> = buffers.iter().map(|buffer| buffer.as_ptr()).collect();
        assert_eq!((buffers.len(), places.len()), (count, count));
        runner.enter(|| drop(buffers));
    }
}

/// A waiter's name says nothing to the pools of another library instance.
#[test]
fn a_waiter_is_aborted_by_its_own_pools_only() {
    let (mut a, mut b) = (alone(), alone());
    let (_pools_of_a, of_a) = pools(&mut a);
    let (_pools_of_b, of_b) = pools(&mut b);
    let wait = |runner: &mut ThreadRunner, channel: &IobufChannel| {
        runner.enter(|| {
            let held = all_of(channel);
            let corespun::iobuf::Got::Waiting(waiter) = channel.get_with(1, drop).unwrap() else {
                panic!("the pool is empty");
            };
            (held, waiter)
        })
    };
    let (_held_of_a, waiter_of_a) = wait(&mut a, &of_a);
    let (_held_of_b, waiter_of_b) = wait(&mut b, &of_b);
    assert_ne!(waiter_of_a, waiter_of_b);
    assert!(!b.enter(|| of_b.abort(&waiter_of_a)));
    assert!(b.enter(|| of_b.abort(&waiter_of_b)));
    assert!(a.enter(|| of_a.abort(&waiter_of_a)));
}

/// A thread that has a channel of its own library's device gets none of another
/// library's device for it, be the channels of the same type or not.
#[test]
fn a_channel_is_one_of_the_device_that_was_asked() {
    let (mut a, mut b) = (alone(), alone());
    let register = |runner: &mut ThreadRunner, context: u32| {
        runner.enter(|| {
            IoDevice::builder()
                .register(move || Ok::<_, Infallible>(context))
                .unwrap()
        })
    };
    let (of_a, of_b) = (register(&mut a, 1), register(&mut b, 2));
    let mine = b.enter(|| of_b.channel().unwrap());
    let other = b.enter(|| of_a.channel());
    assert!(
        matches!(other, Err(ChannelError::OtherLibrary { .. })),
        "{other:?}"
    );
    let mut c = alone();
    let texts = c.enter(|| {
        IoDevice::builder()
            .register(|| Ok::<_, Infallible>("text"))
            .unwrap()
    });
    let other = b.enter(|| texts.channel());
    assert!(
        matches!(other, Err(ChannelError::OtherLibrary { .. })),
        "{other:?}"
    );
    assert_eq!(*mine, 2);
}

/// A thread that ended with a lock held takes the right to it along: what is
/// made in its place in memory does not hold the lock.
#[test]
fn a_lock_held_by_a_thread_that_is_gone_is_held_by_no_other() {
    let library = ThreadLib::new();
    let misuses = Arc::new(Mutex::new(Vec::new()));
    let seen = misuses.clone();
    let lock = Spinlock::with_hook(move |error| seen.lock().unwrap().push(error.clone()));
    // The first of a library is known to it for ever.
    let _app_thread = library.thread().build().unwrap();
    let mut gone = library.thread().build().unwrap().attach();
    gone.enter(|| lock.lock()).unwrap();
    drop(gone);
    for _ in 0..100 {
        let mut runner = library.thread().build().unwrap().attach();
        assert!(!runner.enter(|| lock.is_held()));
        assert!(runner.enter(|| lock.unlock()).is_err());
    }
    assert!(lock.destroy().is_err());
    let misuses = misuses.lock().unwrap();
    assert_eq!(
        misuses.last().unwrap().misuse,
        SpinlockMisuse::DestroyedHeld
    );
    assert_eq!(misuses[0].misuse, SpinlockMisuse::WrongThread);
    assert_eq!(misuses[0].holder.as_deref(), Some("a thread that is gone"));
}
