//! The asynchronous forms of what completes later, each dropped midway, met by
//! the exit of a thread midway, and with a closure that panics. Where a form has
//! no closure, it cannot panic; what the other files show already is not repeated:
//! `thread_walk.rs` has the walk that is dropped and the one that outlives exits
//! and panics, `io_channel.rs` the concurrent walk that does.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::pending;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use corespun::channel::{self, IoChannel, IoDevice, WalkError};
use corespun::task::{self, JoinHandle, block_on};
use corespun::thread::{ExitHolder, Poller};
use futures::FutureExt;
use harness::threads::{SharedRuns, Threads, us};

fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    future.poll_unpin(&mut Context::from_waker(Waker::noop()))
}

fn device() -> IoDevice<u32> {
    IoDevice::builder()
        .name("disk")
        .register(|| Ok::<_, Infallible>(7))
        .unwrap()
}

/// Walks of all registered devices.
fn walks(threads: &Threads) -> usize {
    let devices = channel::devices(&threads.library);
    devices.iter().map(|device| device.walks).sum()
}

// SpdkThread::exit.

#[test]
fn an_exit_that_nobody_awaits_any_more_goes_on_and_others_hear_of_it() {
    let mut threads = Threads::allocate(2);
    let (target, poller) = (
        threads.handle(1),
        threads.on(1, || Poller::timed(us(1_000_000_000), || ()).unwrap()),
    );
    let mut dropped = target.exit();
    assert!(poll_once(&mut dropped).is_pending());
    let waiting = target.clone();
    let [aborted, waits] = [(); 2].map(|()| {
        let waiting = waiting.clone();
        threads.on(0, || task::spawn_local(async move { waiting.exit().await }))
    });
    threads.poll_threads();
    drop(dropped);
    aborted.abort();
    threads.poll_threads();
    assert!(!waits.is_finished());
    threads.on(1, || drop(poller));
    threads.poll_thread(1);
    assert!(target.is_exited());
    threads.poll_thread(0);
    assert!(aborted.now_or_never().unwrap().unwrap_err().is_cancelled());
    assert!(waits.now_or_never().unwrap().is_ok());
    threads.free();
}

/// Two threads that wait for each other's end; and one that waits for its own.
#[test]
fn a_thread_that_exits_while_it_awaits_an_exit_cancels_the_waiting() {
    let mut threads = Threads::allocate(3);
    let waiting: Vec<_> = [(0, 1), (1, 0), (2, 2)]
        .into_iter()
        .map(|(waiter, target)| {
            let target = threads.handle(target);
            threads.on(waiter, || {
                task::spawn_local(async move { target.exit().await })
            })
        })
        .collect();
    // Each begins to wait before its exit cancels it.
    for thread in 0..3 {
        threads.runner(thread).poll(0, 0);
    }
    threads.poll_threads();
    assert!((0..3).all(|thread| threads.is_exited(thread)));
    let ended: Vec<_> = waiting
        .into_iter()
        .map(|task| task.now_or_never().expect("ended"))
        .collect();
    // Who ends last may have heard of the other's end; nobody hears of its own.
    assert!(ended[1].as_ref().unwrap_err().is_thread_exited());
    assert!(ended[2].as_ref().unwrap_err().is_thread_exited());
    threads.free();
}

// IoDevice::unregister.

#[test]
fn an_unregistration_that_nobody_awaits_any_more_goes_on() {
    let mut threads = Threads::allocate(2);
    let device = threads.on(0, device);
    let channel = threads.on(1, || device.channel()).unwrap();
    let mut unregister = threads.on(0, || device.unregister()).unwrap();
    threads.poll_threads();
    assert!(poll_once(&mut unregister).is_pending());
    drop(unregister);
    assert_eq!(
        threads.runner(0).exit_holders(),
        [ExitHolder::Unregister("disk".to_owned())]
    );
    threads.on(1, || drop(channel));
    threads.poll_threads();
    assert!(channel::devices(&threads.library).is_empty());
    assert!(threads.runner(0).exit_holders().is_empty());
    threads.free();
}

/// The exit of who asked waits for the last channel; forced, it gives up, and says
/// so, and the device goes all the same. The exit of the channel's thread, forced,
/// takes the channel.
#[test]
fn an_unregistration_outlives_the_exits_of_who_asked_and_who_has_a_channel() {
    for forced in [false, true] {
        let mut threads = Threads::allocate(2);
        let device = threads.on(0, device);
        let channel = threads.on(1, || device.channel()).unwrap();
        let mut unregister = threads.on(0, || device.unregister()).unwrap();
        threads.exit(0);
        threads.poll_threads();
        assert!(!threads.is_exited(0));
        if forced {
            threads.delay_us(5_000_000);
            threads.poll_threads();
            assert!(threads.is_exited(0));
            assert!(poll_once(&mut unregister).ready_and(|ended| ended.is_err()));
            assert_eq!(*channel, 7);
            threads.exit(1);
            threads.poll_threads();
            threads.delay_us(5_000_000);
            threads.poll_threads();
            drop(channel);
        } else {
            threads.on(1, || drop(channel));
            threads.poll_threads();
            assert!(poll_once(&mut unregister).ready_and(|ended| ended.is_ok()));
            assert!(threads.is_exited(0));
        }
        assert!(channel::devices(&threads.library).is_empty());
        threads.free();
    }
}

trait ReadyAnd<T> {
    fn ready_and(self, f: impl FnOnce(T) -> bool) -> bool;
}

impl<T> ReadyAnd<T> for Poll<T> {
    fn ready_and(self, f: impl FnOnce(T) -> bool) -> bool {
        match self {
            Poll::Ready(value) => f(value),
            Poll::Pending => false,
        }
    }
}

// ThreadLib::walk_threads.

/// One made by no thread, and dropped where it is at; a thread on the way exits.
#[test]
fn a_walk_over_threads_outlives_a_thread_on_the_way_and_ends_where_it_is_dropped() {
    let mut threads = Threads::allocate(3);
    let visits = SharedRuns::default();
    let seen = visits.clone();
    let walk = threads.library.walk_threads(async move |_| seen.add());
    let mut walk = Box::pin(walk);
    threads.poll_threads();
    assert_eq!(visits.get(), 0, "nothing before it is awaited");
    assert!(poll_once(&mut walk).is_pending());
    threads.exit(0);
    threads.poll_thread(0);
    assert!(threads.is_exited(0));
    assert!(poll_once(&mut walk).is_pending());
    drop(walk);
    threads.poll_threads();
    assert_eq!(visits.get(), 2, "not the third");
    threads.free();
}

// ThreadLib::walk_threads_concurrent.

#[test]
fn a_concurrent_walk_over_threads_goes_on_undisturbed_by_a_drop_or_an_exit() {
    for dropped in [true, false] {
        let mut threads = Threads::allocate(3);
        let visits = SharedRuns::default();
        let seen = visits.clone();
        let walk = threads
            .library
            .walk_threads_concurrent(async move |thread| {
                task::yield_now().await;
                if thread.id() == 2 {
                    pending().await
                }
                seen.add();
            });
        let mut walk = Box::pin(walk);
        threads.runner(0).poll(0, 0);
        assert!(poll_once(&mut walk).is_pending());
        let walk = if dropped { None } else { Some(walk) };
        threads.poll_threads();
        assert_eq!(visits.get(), 2);
        threads.exit(1);
        threads.poll_threads();
        assert!(threads.is_exited(1));
        if let Some(walk) = walk {
            let results = walk.now_or_never().expect("all have ended");
            let ended: Vec<_> = results.iter().map(|(_, result)| result.is_ok()).collect();
            assert_eq!(ended, [true, false, true]);
            assert!(results[1].1.as_ref().unwrap_err().is_thread_exited());
        }
        threads.free();
    }
}

// IoDevice::walk_channels.

/// Three threads with a channel each, walked from the first, with what the walk's
/// future gives for each thread.
struct Walked {
    threads: Threads,
    channels: Vec<IoChannel<u32>>,
    device: IoDevice<u32>,
    visits: SharedRuns,
}

impl Walked {
    fn new() -> Self {
        let mut threads = Threads::allocate(3);
        let device = threads.on(0, device);
        let channels = (0..3).map(|index| threads.on(index, || device.channel()).unwrap());
        Walked {
            channels: channels.collect(),
            device,
            threads,
            visits: SharedRuns::default(),
        }
    }

    fn walk(
        &mut self,
        visit: impl AsyncFn(u64) -> Result<(), u64> + Send + Sync + 'static,
    ) -> JoinHandle<Result<(), WalkError<u64>>> {
        let (device, seen) = (self.device.clone(), self.visits.clone());
        self.threads.on(0, || {
            let walk = device.walk_channels(async move |channel: IoChannel<u32>| {
                seen.add();
                visit(channel.thread().id()).await
            });
            task::spawn_local(walk)
        })
    }

    fn finish(mut self) {
        assert_eq!(walks(&self.threads), 0);
        for (index, channel) in self.channels.into_iter().enumerate() {
            self.threads.on(index, || drop(channel));
        }
        let unregister = self.threads.on(0, || self.device.unregister()).unwrap();
        self.threads.poll_threads();
        assert!(unregister.now_or_never().unwrap().is_ok());
        self.threads.free();
    }
}

#[test]
fn a_walk_over_channels_that_is_dropped_ends_where_it_is_at() {
    let mut walked = Walked::new();
    let walk = walked.walk(async |_| {
        task::yield_now().await;
        Ok(())
    });
    // Its task, and that of the visit.
    walked.threads.runner(0).poll(0, 0);
    assert_eq!((walked.visits.get(), walks(&walked.threads)), (1, 1));
    walk.abort();
    walked.threads.poll_threads();
    assert!(block_on(walk).unwrap_err().is_cancelled());
    assert_eq!(walked.visits.get(), 1);
    walked.finish();
}

#[test]
fn a_panic_in_an_async_walk_over_channels_is_reported_and_told_at_its_end() {
    let mut walked = Walked::new();
    let walk = walked.walk(async |id| {
        task::yield_now().await;
        assert_ne!(id, 2, "contained");
        Ok(())
    });
    walked.threads.poll_threads();
    let error = walk.now_or_never().unwrap().unwrap().unwrap_err();
    assert!(matches!(error, WalkError::Panicked(panicked) if panicked.stops == 1));
    assert_eq!(walked.visits.get(), 3);
    assert_eq!(walked.threads.take_panics().len(), 1);
    walked.finish();
}

#[test]
fn an_error_in_an_async_walk_over_channels_ends_it_though_another_panicked() {
    let mut walked = Walked::new();
    let walk = walked.walk(async |id| {
        assert_ne!(id, 1, "contained");
        Err(id)
    });
    walked.threads.poll_threads();
    let error = walk.now_or_never().unwrap().unwrap().unwrap_err();
    assert_eq!(error, WalkError::Stopped(2));
    assert_eq!(walked.visits.get(), 2);
    assert_eq!(walked.threads.take_panics().len(), 1);
    walked.finish();
}

/// The visit is cancelled and the walk goes on to the next; with the task that awaits
/// it, it ends.
#[test]
fn an_async_walk_over_channels_outlives_the_exit_of_a_thread_that_it_is_at() {
    for exits in [1, 0] {
        let mut walked = Walked::new();
        let walk = walked.walk(async |id| {
            if id == 2 {
                pending().await
            }
            Ok(())
        });
        walked.threads.poll_threads();
        assert_eq!(walked.visits.get(), 2);
        assert!(!walk.is_finished());
        let channel = walked.channels.remove(exits);
        walked.threads.on(exits, || drop(channel));
        walked.threads.exit(exits);
        walked.threads.poll_threads();
        assert!(walked.threads.is_exited(exits));
        let ended = walk.now_or_never().unwrap();
        if exits == 1 {
            assert_eq!(ended.unwrap(), Ok(()));
            assert_eq!((walked.visits.get(), walks(&walked.threads)), (3, 0));
        } else {
            assert!(ended.unwrap_err().is_thread_exited());
            // The visit goes on.
            assert_eq!((walked.visits.get(), walks(&walked.threads)), (2, 1));
            let at = walked.channels.remove(0);
            walked.threads.on(1, || drop(at));
            walked.threads.exit(1);
            walked.threads.poll_threads();
            assert_eq!((walked.visits.get(), walks(&walked.threads)), (2, 0));
        }
        for (index, channel) in walked.channels.into_iter().enumerate() {
            let index = if exits == 1 && index == 0 { 0 } else { 2 };
            walked.threads.on(index, || drop(channel));
        }
        walked.threads.poll_threads();
        walked.threads.free();
    }
}

// IoDevice::walk_channels_concurrent.

#[test]
fn a_concurrent_walk_over_channels_that_nobody_awaits_any_more_goes_on() {
    let mut walked = Walked::new();
    let seen = walked.visits.clone();
    let walk = walked
        .device
        .walk_channels_concurrent(async move |_: IoChannel<u32>| {
            task::yield_now().await;
            seen.add();
            Ok::<_, Infallible>(())
        });
    let mut walk = Box::pin(walk);
    walked.threads.runner(0).poll(0, 0);
    assert!(poll_once(&mut walk).is_pending());
    drop(walk);
    assert_eq!(walks(&walked.threads), 1);
    walked.threads.poll_threads();
    assert_eq!(walked.visits.get(), 3);
    walked.finish();
}

// Poller streams and looks, whose end is a drop.

/// G6, G7: the callback of a poller that a future waits for panics while its
/// thread exits.
#[test]
fn a_poller_that_panics_while_its_thread_exits_ends_like_any_other() {
    let mut threads = Threads::allocate(1);
    let looks = Rc::new(Cell::new(0));
    let count = looks.clone();
    let holds = threads.on(0, || Poller::timed(us(1_000_000_000), || ()).unwrap());
    threads.exit(0);
    threads.poll_once(0);
    // A shutdown chain may still look.
    let found = threads.on(0, || {
        task::spawn_local(corespun::stream::poll_until(move || {
            count.set(count.get() + 1);
            assert!(count.get() < 3, "contained");
            Poll::<()>::Pending
        }))
    });
    threads.poll_threads();
    assert!(found.now_or_never().unwrap().unwrap_err().is_panic());
    assert_eq!(threads.take_panics(), ["contained"]);
    assert!(!threads.is_exited(0));
    threads.on(0, || drop(holds));
    threads.poll_threads();
    assert!(threads.is_exited(0));
    threads.free();
}
