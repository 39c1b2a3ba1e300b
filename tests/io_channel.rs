//! io_devices and io_channels against the scenarios of the reference suite.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use corespun::channel::{
    self, ChannelError, FindError, IoChannel, IoDevice, RegisterError, UnregisterError, WalkError,
    WalkStep,
};
use corespun::task;
use corespun::thread::{ExitHolder, Poller, SpdkThread};
use harness::io::poll_once;
use harness::threads::{Runs, SharedRuns, Threads};

/// A channel context that counts how many of its kind live.
struct Context {
    live: SharedRuns,
    value: u64,
}

impl Drop for Context {
    fn drop(&mut self) {
        self.live.subtract();
    }
}

/// A device whose contexts count themselves in `made` and `live`.
fn device(value: u64, made: &SharedRuns, live: &SharedRuns) -> IoDevice<Context> {
    let (made, live) = (made.clone(), live.clone());
    IoDevice::builder()
        .key(value)
        .register(move || {
            made.add();
            live.add();
            Ok::<_, Infallible>(Context {
                live: live.clone(),
                value,
            })
        })
        .unwrap()
}

fn plain_device() -> IoDevice<Context> {
    device(0x10, &SharedRuns::default(), &SharedRuns::default())
}

/// T-IO-01 (IO-004, 005, 006, 009).
#[test]
fn a_channel_is_made_once_and_destroyed_after_the_last_put() {
    let mut threads = Threads::allocate(1);
    let (made1, live1) = Default::default();
    let (made2, live2) = Default::default();
    let (dev1, dev2) = threads.on(0, || (device(1, &made1, &live1), device(2, &made2, &live2)));

    let first = threads.on(0, || dev1.channel()).unwrap();
    assert_eq!(made1.get(), 1);
    assert_eq!(first.device(), dev1);
    assert_eq!(first.thread(), threads.runner(0).handle());
    let again = threads.on(0, || dev1.channel()).unwrap();
    assert!(first.same_channel(&again));
    let third = first.clone();
    assert_eq!((made1.get(), third.ref_count()), (1, 3));

    drop(third);
    threads.poll_threads();
    assert_eq!(live1.get(), 1);

    let other = threads.on(0, || dev2.channel()).unwrap();
    assert_eq!((other.value, first.value), (2, 1));
    assert_eq!(made2.get(), 1);

    drop(again);
    threads.poll_threads();
    assert_eq!(live1.get(), 1);
    drop(first);
    assert_eq!(live1.get(), 1, "never destroyed inside the put");
    threads.poll_threads();
    assert_eq!(live1.get(), 0);
    drop(other);
    threads.poll_threads();
    assert_eq!(live2.get(), 0);

    let unknown = IoDevice::<Context>::find(&threads.library, 3);
    assert_eq!(unknown.unwrap_err(), FindError::Unknown(3));
    threads.on(0, || {
        dev1.unregister_with(|| {}).unwrap();
        dev2.unregister_with(|| {}).unwrap();
    });
    let refused = threads.on(0, || dev1.channel()).unwrap_err();
    assert!(matches!(refused, ChannelError::Unregistered(_)));
    threads.poll_threads();
    assert!(channel::devices(&threads.library).is_empty());
    threads.free();
}

/// T-IO-02 (IO-008).
#[test]
fn two_puts_before_a_poll_destroy_once() {
    let mut threads = Threads::allocate(1);
    let (made, live) = Default::default();
    let device = threads.on(0, || device(1, &made, &live));
    threads.on(0, || {
        drop(device.channel().unwrap());
        drop(device.channel().unwrap());
    });
    assert_eq!((made.get(), live.get()), (1, 1));
    threads.poll_threads();
    assert_eq!((made.get(), live.get()), (1, 0));

    let gone = Runs::default();
    let seen = gone.clone();
    threads
        .on(0, || device.unregister_with(move || seen.add()))
        .unwrap();
    assert_eq!(gone.get(), 0, "always by message");
    threads.poll_threads();
    assert_eq!(gone.get(), 1);
    threads.free();
}

/// IO-008: of the destroy messages that are queued only the last acts, so that
/// who sends before it puts finds the channel in that message.
#[test]
fn a_put_leaves_the_channel_to_a_later_put() {
    let mut threads = Threads::allocate(1);
    let (made, live) = Default::default();
    let device = threads.on(0, || device(1, &made, &live));
    let alive = SharedRuns::default();
    let thread = threads.handle(0);
    threads.on(0, || {
        drop(device.channel().unwrap());
        let again = device.channel().unwrap();
        let (live, alive) = (live.clone(), alive.clone());
        let look = move || {
            if live.get() == 1 {
                alive.add();
            }
        };
        thread.send_msg(look).unwrap();
        drop(again);
    });
    threads.poll_threads();
    assert_eq!((made.get(), live.get()), (1, 0));
    assert_eq!(alive.get(), 1);
    threads.free();
}

/// T-IO-03 (IO-010).
#[test]
fn nested_channels_are_destroyed_one_level_a_poll() {
    struct Nested {
        _inner: Option<Box<dyn std::any::Any>>,
        _poller: Poller,
    }
    let poller = || Poller::active(|| false).unwrap();
    let mut threads = Threads::allocate(1);
    let (dev1, dev2, dev3) = threads.on(0, || {
        let dev3 = IoDevice::builder()
            .register(move || {
                let context = Nested {
                    _inner: None,
                    _poller: poller(),
                };
                Ok::<_, Infallible>(context)
            })
            .unwrap();
        let inner = dev3.clone();
        let dev2 = IoDevice::builder()
            .register(move || {
                let context = Nested {
                    _inner: Some(Box::new(inner.channel()?)),
                    _poller: poller(),
                };
                Ok::<_, ChannelError>(context)
            })
            .unwrap();
        let inner = dev2.clone();
        let dev1 = IoDevice::builder()
            .register(move || {
                let context = Nested {
                    _inner: Some(Box::new(inner.channel()?)),
                    _poller: poller(),
                };
                Ok::<_, ChannelError>(context)
            })
            .unwrap();
        (dev1, dev2, dev3)
    });
    let counts = || [&dev1, &dev2, &dev3].map(|device| device.holders().len());

    let channel = threads.on(0, || dev1.channel()).unwrap();
    assert_eq!(channel.ref_count(), 1);
    assert_eq!(counts(), [1, 1, 1]);

    drop(channel);
    threads.on(0, || drop(SpdkThread::current().unwrap().exit()));
    assert_eq!(counts(), [1, 1, 1]);
    for left in [[0, 1, 1], [0, 0, 1], [0, 0, 0]] {
        assert!(!threads.is_exited(0));
        threads.poll_once(0);
        assert_eq!(counts(), left);
    }
    assert!(threads.is_exited(0));
}

/// What the four variants of for_each_channel_remove share: three threads with
/// a channel each, and a walk that counts.
struct Walked {
    threads: Threads,
    device: IoDevice<Context>,
    channels: Vec<Option<IoChannel<Context>>>,
    count: SharedRuns,
}

impl Walked {
    fn new() -> Self {
        let mut threads = Threads::allocate(3);
        let device = threads.on(0, plain_device);
        let channels = (0..3)
            .map(|index| Some(threads.on(index, || device.channel()).unwrap()))
            .collect();
        Walked {
            threads,
            device,
            channels,
            count: SharedRuns::default(),
        }
    }

    fn for_each(&mut self) {
        let (seen, end) = (self.count.clone(), self.count.clone());
        let device = self.device.clone();
        self.threads
            .on(0, || {
                let count = move |context: &Context| {
                    assert_eq!(context.value, 0x10);
                    seen.add();
                    Ok::<_, Infallible>(())
                };
                device.for_each_channel(count, move |result| {
                    assert_eq!(result, Ok(()));
                    end.add();
                })
            })
            .unwrap();
    }

    fn finish(mut self) {
        self.channels.clear();
        self.threads.poll_threads();
        let device = self.device.clone();
        self.threads
            .on(0, || device.unregister_with(|| {}))
            .unwrap();
        self.threads.poll_threads();
        assert!(channel::devices(&self.threads.library).is_empty());
        self.threads.free();
    }
}

/// T-IO-04 (IO-020).
#[test]
fn a_walk_visits_only_threads_with_a_channel() {
    let mut walked = Walked::new();
    walked.channels[0] = None;
    walked.threads.poll_threads();
    assert_eq!(walked.device.holders().len(), 2);
    walked.for_each();
    assert_eq!(walked.count.get(), 0);
    walked.threads.poll_threads();
    assert_eq!(walked.count.get(), 3);
    walked.finish();
}

/// T-IO-05.
#[test]
fn a_walk_message_before_the_destroy_message_still_visits() {
    let mut walked = Walked::new();
    walked.for_each();
    walked.channels[0] = None;
    walked.threads.poll_threads();
    assert_eq!(walked.count.get(), 4);
    assert_eq!(walked.device.holders().len(), 2);
    walked.finish();
}

/// T-IO-06 (IO-021).
#[test]
fn a_channel_gone_before_its_turn_is_passed_over() {
    let mut walked = Walked::new();
    walked.channels[0] = None;
    walked.for_each();
    walked.threads.poll_threads();
    assert_eq!(walked.count.get(), 3);
    walked.finish();
}

/// T-IO-07 (IO-008, 021).
#[test]
fn a_channel_got_again_before_its_turn_is_visited() {
    let mut walked = Walked::new();
    walked.channels[0] = None;
    let device = walked.device.clone();
    let back = Rc::new(RefCell::new(None));
    // A task, since a message could not hold the channel.
    let place = back.clone();
    walked.threads.on(0, || {
        drop(task::spawn_local(async move {
            *place.borrow_mut() = Some(device.channel().unwrap());
        }));
    });
    walked.for_each();
    walked.threads.poll_threads();
    assert_eq!(walked.count.get(), 4);
    drop(back.borrow_mut().take());
    walked.finish();
}

/// T-IO-08 (IO-001, 022).
#[test]
fn unregistering_during_a_walk_waits_for_its_end() {
    let mut threads = Threads::allocate(1);
    let (device, channel) = threads.on(0, || {
        let device = plain_device();
        let twice = IoDevice::builder()
            .key(0x10)
            .register(|| Ok::<_, Infallible>(()));
        assert!(matches!(
            twice.unwrap_err(),
            RegisterError::Duplicate { key: 0x10, .. }
        ));
        let channel = device.channel().unwrap();
        (device, channel)
    });
    assert_eq!(channel::devices(&threads.library).len(), 1);

    let (visits, end) = (SharedRuns::default(), Runs::default());
    let gone = Runs::default();
    threads.on(0, || {
        let (visits, end, gone) = (visits.clone(), end.clone(), gone.clone());
        let visit = move |_: &Context| {
            visits.add();
            Ok::<_, Infallible>(())
        };
        device.for_each_channel(visit, move |_| end.add()).unwrap();
        device.unregister_with(move || gone.add()).unwrap();
    });
    let info = &channel::devices(&threads.library)[0];
    assert!(info.unregistering && info.walks == 1);
    assert_eq!(
        threads.runner(0).exit_holders().len(),
        4,
        "channel, walk, unregister and the walk's message"
    );
    threads.poll_threads();
    assert_eq!((visits.get(), end.get(), gone.get()), (1, 1, 0));
    assert!(channel::devices(&threads.library).is_empty());
    assert_eq!(device.holders().len(), 1);

    drop(channel);
    threads.poll_threads();
    assert_eq!(gone.get(), 1);
    threads.free();
}

/// T-IO-09 (IO-001).
#[test]
fn keys_of_all_sizes_find_their_own_device() {
    let keys = [
        0x1,
        0x7FFF_FFFF,
        0x8000_0000,
        0x1_0000_0000,
        0x8000_0000_0000_0000,
        0x8000_0001_0000_0000,
        u64::MAX,
    ];
    let mut threads = Threads::allocate(1);
    let devices: Vec<_> = threads.on(0, || {
        keys.map(|key| device(key, &Default::default(), &Default::default()))
            .into()
    });
    let library = threads.library.clone();
    let channels = threads.on(0, || {
        keys.map(|key| {
            let device = IoDevice::<Context>::find(&library, key).unwrap();
            device.channel().unwrap()
        })
    });
    for ((key, device), channel) in keys.iter().zip(&devices).zip(&channels) {
        assert_eq!(&channel.device(), device);
        assert_eq!(channel.value, *key);
    }
    let known: Vec<_> = channel::devices(&library)
        .iter()
        .map(|d| d.key.unwrap())
        .collect();
    assert_eq!(known, keys);
    let wrong = IoDevice::<u8>::find(&library, 1).unwrap_err();
    assert!(matches!(wrong, FindError::WrongType { .. }), "{wrong}");
    drop(channels);
    threads.on(0, || {
        devices
            .iter()
            .for_each(|device| device.unregister_with(|| {}).unwrap())
    });
    threads.free();
}

/// T-IO-10 (IO-004).
#[test]
fn a_constructor_may_unregister_its_device_and_fail() {
    let mut threads = Threads::allocate(1);
    let gone = SharedRuns::default();
    let seen = gone.clone();
    let library = threads.library.clone();
    let device = threads.on(0, || {
        IoDevice::builder()
            .key(7)
            .register(move || {
                let device = IoDevice::<()>::find(&library, 7).unwrap();
                let seen = seen.clone();
                device.unregister_with(move || seen.add()).unwrap();
                Err::<(), _>("broken")
            })
            .unwrap()
    });
    let error = threads.on(0, || device.channel()).unwrap_err();
    assert!(matches!(error, ChannelError::Constructor { .. }), "{error}");
    assert!(channel::devices(&threads.library).is_empty());
    assert_eq!(gone.get(), 0);
    threads.poll_threads();
    assert_eq!(gone.get(), 1);
    threads.free();
}

/// IO-004: rolled back also by a panic; and asking for itself is an error.
#[test]
fn a_constructor_that_panics_or_recurs_leaves_nothing_behind() {
    let mut threads = Threads::allocate(1);
    let library = threads.library.clone();
    let attempt = SharedRuns::default();
    let device = threads.on(0, || {
        IoDevice::builder()
            .key(1)
            .register(move || {
                attempt.add();
                match attempt.get() {
                    1 => panic!("first attempt"),
                    2 => {
                        let device = IoDevice::<u8>::find(&library, 1).unwrap();
                        device.channel().map(|channel| *channel)
                    }
                    _ => Ok(3),
                }
            })
            .unwrap()
    });
    threads.on(0, || {
        let attempt = std::panic::AssertUnwindSafe(|| device.channel());
        std::panic::catch_unwind(attempt).unwrap_err();
        assert!(device.holders().is_empty());
        let error = device.channel().unwrap_err();
        assert!(error.to_string().contains("by its constructor"), "{error}");
        assert!(device.holders().is_empty());
        assert_eq!(*device.channel().unwrap(), 3);
    });
    threads.on(0, || device.unregister_with(|| {})).unwrap();
    threads.free();
}

/// T-TH-31 (IO-008, TH-036).
#[test]
fn an_exiting_thread_gets_its_channel_again() {
    let mut threads = Threads::allocate(1);
    let (made, live) = Default::default();
    let device = threads.on(0, || device(1, &made, &live));
    let channel = threads.on(0, || device.channel()).unwrap();
    drop(channel);
    threads.on(0, || drop(SpdkThread::current().unwrap().exit()));
    assert!(!threads.is_exited(0));
    let channel = threads.on(0, || device.channel()).unwrap();
    threads.poll_threads();
    assert_eq!((made.get(), live.get()), (1, 1));
    assert!(!threads.is_exited(0));
    let holders = threads.runner(0).exit_holders();
    assert_eq!(holders, [ExitHolder::Channel("io_device 1".into())]);
    drop(channel);
    threads.poll_threads();
    assert_eq!((made.get(), live.get()), (1, 0));
    assert!(threads.is_exited(0));
    let late = threads.on(0, || device.channel()).unwrap_err();
    assert!(matches!(late, ChannelError::Exited(_)), "{late}");
}

/// T-TH-34 (IO-021).
#[test]
fn a_thread_that_only_started_a_walk_waits_for_its_end() {
    let mut threads = Threads::allocate(3);
    let device = threads.on(0, plain_device);
    let channels = [1, 2].map(|index| threads.on(index, || device.channel()).unwrap());
    let (calls, outstanding) = (SharedRuns::default(), SharedRuns::default());
    outstanding.add();
    threads.on(0, || {
        let (visits, end, outstanding) = (calls.clone(), calls.clone(), outstanding.clone());
        let visit = move |_: &Context| {
            visits.add();
            Ok::<_, Infallible>(())
        };
        device
            .for_each_channel(visit, move |_| {
                end.add();
                outstanding.subtract();
            })
            .unwrap();
        drop(SpdkThread::current().unwrap().exit());
    });
    threads.poll_thread(0);
    assert_eq!(outstanding.get(), 1);
    assert!(!threads.is_exited(0));
    let holders = threads.runner(0).exit_holders();
    assert_eq!(holders, [ExitHolder::ChannelWalk("io_device 1".into())]);
    threads.poll_threads();
    assert_eq!((calls.get(), outstanding.get()), (3, 0));
    assert!(threads.is_exited(0));
    drop(channels);
    threads.on(1, || device.unregister_with(|| {})).unwrap();
    threads.free();
}

/// T-TH-36 (IO-003).
#[test]
fn a_thread_that_unregistered_a_device_waits_for_the_last_channel() {
    let mut threads = Threads::allocate(2);
    let device = threads.on(0, plain_device);
    let a = threads.on(0, || device.channel()).unwrap();
    let b = threads.on(1, || device.channel()).unwrap();
    let gone = Runs::default();

    threads.exit(0);
    drop(a);
    let seen = gone.clone();
    threads
        .on(0, || device.unregister_with(move || seen.add()))
        .unwrap();
    threads.poll_thread(0);
    assert!(!threads.is_exited(0));
    let holders = threads.runner(0).exit_holders();
    assert_eq!(holders, [ExitHolder::Unregister("io_device 1".into())]);

    threads.exit(1);
    threads.poll_thread(1);
    assert!(!threads.is_exited(1));
    drop(b);
    threads.poll_thread(1);
    assert!(threads.is_exited(1));
    assert!(!threads.is_exited(0));
    assert_eq!(gone.get(), 0);

    threads.poll_thread(0);
    assert_eq!(gone.get(), 1);
    assert!(device.holders().is_empty());
    assert!(threads.is_exited(0));
}

/// T-X-09 (IO-022).
#[test]
fn a_device_about_to_be_unregistered_refuses_another_and_new_walks() {
    let mut threads = Threads::allocate(1);
    let device = threads.on(0, plain_device);
    let refused = Rc::new(RefCell::new(None));
    threads.on(0, || {
        let visit = |_: &Context| Ok::<_, Infallible>(());
        device
            .for_each_channel(visit, |result| assert_eq!(result, Ok(())))
            .unwrap();
        device.unregister_with(|| {}).unwrap();
        let twice = device.unregister_with(|| {}).unwrap_err();
        assert_eq!(twice, UnregisterError::Twice("io_device 1".into()));
        let place = refused.clone();
        device
            .for_each_channel(visit, move |result| *place.borrow_mut() = Some(result))
            .unwrap();
    });
    assert!(refused.borrow().is_none(), "always by message");
    threads.poll_threads();
    let expected = Err(WalkError::Unregistered("io_device 1".into()));
    assert_eq!(refused.borrow_mut().take(), Some(expected));
    threads.free();
}

/// T-X-10 (IO-020).
#[test]
fn an_error_stops_a_walk_and_reaches_its_completion() {
    let mut walked = Walked::new();
    let visited = Arc::new(Mutex::new(Vec::new()));
    let result = Rc::new(Cell::new(None));
    let (seen, place) = (visited.clone(), result.clone());
    let device = walked.device.clone();
    walked.threads.on(2, || {
        let visit = move |_: &Context| {
            let id = SpdkThread::current().unwrap().id();
            seen.lock().unwrap().push(id);
            if id == 2 { Err(-5) } else { Ok(()) }
        };
        device
            .for_each_channel(visit, move |result| place.set(Some(result)))
            .unwrap();
    });
    walked.threads.poll_threads();
    assert_eq!(*visited.lock().unwrap(), [1, 2]);
    assert_eq!(result.take(), Some(Err(WalkError::Stopped(-5))));
    walked.finish();
}

/// IO-020: a stop that ends later, and one that is dropped.
#[test]
fn a_step_holds_the_walk_until_it_proceeds_or_is_dropped() {
    let mut walked = Walked::new();
    thread_local! {
        static STEPS: RefCell<Vec<WalkStep<Context, Infallible>>> = const { RefCell::new(Vec::new()) };
    }
    let end = Runs::default();
    let seen = end.clone();
    let device = walked.device.clone();
    walked.threads.on(0, || {
        let keep = |step| STEPS.with_borrow_mut(|steps| steps.push(step));
        device
            .for_each_channel_step(keep, move |_| seen.add())
            .unwrap();
    });
    for stop in 0..3 {
        walked.threads.poll_threads();
        assert_eq!(end.get(), 0);
        let step = STEPS
            .with_borrow_mut(|steps| steps.pop())
            .expect("one stop at a time");
        assert_eq!(
            step.channel().thread(),
            walked.threads.runner(stop).handle()
        );
        match stop {
            1 => drop(step),
            _ => step.proceed(Ok(())),
        }
    }
    walked.threads.poll_threads();
    assert_eq!(end.get(), 1);
    walked.finish();
}

/// IO-022: the end of one walk is not that of the other.
#[test]
fn an_unregistration_waits_for_the_last_of_several_walks() {
    let mut walked = Walked::new();
    type Kept = Rc<RefCell<Vec<WalkStep<Context, Infallible>>>>;
    let kept: [Kept; 2] = Default::default();
    let (device, gone) = (walked.device.clone(), Runs::default());
    walked.channels[1] = None;
    walked.channels[2] = None;
    walked.threads.poll_threads();
    for kept in &kept {
        // Back on the thread it began on: the steps do not leave it.
        thread_local!(static KEPT: RefCell<Option<Kept>> = const { RefCell::new(None) });
        KEPT.set(Some(kept.clone()));
        walked.threads.on(0, || {
            let keep = |step| {
                let kept = KEPT.take().expect("one stop");
                kept.borrow_mut().push(step);
            };
            device.for_each_channel_step(keep, |_| ()).unwrap();
        });
        walked.threads.poll_threads();
        assert_eq!(kept.borrow().len(), 1);
    }
    let seen = gone.clone();
    walked
        .threads
        .on(0, || device.unregister_with(move || seen.add()).unwrap());
    walked.channels.clear();
    walked.threads.poll_threads();
    kept[1].take().pop().unwrap().proceed(Ok(()));
    walked.threads.poll_threads();
    assert!(device.is_registered(), "a walk is under way");
    assert_eq!(gone.get(), 0);
    kept[0].take().pop().unwrap().proceed(Ok(()));
    walked.threads.poll_threads();
    assert!(!device.is_registered());
    assert_eq!(gone.get(), 1);
    walked.threads.free();
}

/// A walk survives what it meets: after a panic it goes on and tells, a thread that
/// is dropped with the message in its queue is passed over.
#[test]
fn a_walk_ends_whatever_becomes_of_its_message() {
    let mut walked = Walked::new();
    let result = Rc::new(Cell::new(None));
    let place = result.clone();
    let device = walked.device.clone();
    walked.threads.on(0, || {
        let visit = |_: &Context| -> Result<(), Infallible> { panic!("contained") };
        device
            .for_each_channel(visit, move |result| place.set(Some(result)))
            .unwrap();
    });
    walked.threads.poll_threads();
    // On each of the three.
    let Some(Err(WalkError::Panicked(panicked))) = result.take() else {
        panic!("it went on and tells");
    };
    assert_eq!(panicked.stops, 3);

    let mut extra = walked.threads.library.thread().build().unwrap().attach();
    let channel = extra.enter(|| walked.device.channel()).unwrap();
    walked.for_each();
    walked.threads.poll_threads();
    assert_eq!(
        walked.count.get(),
        3,
        "its message waits on the fourth thread"
    );
    drop(extra);
    assert_eq!(channel.value, 0x10, "the handle outlives the thread");
    assert_eq!(walked.device.holders().len(), 3);
    walked.threads.poll_threads();
    assert_eq!(walked.count.get(), 4);
    drop(channel);
    assert_eq!(walked.threads.take_panics(), ["contained"; 3]);
    walked.finish();
}

/// IO-020, the async form, on threads of two OS threads.
#[test]
fn an_async_walk_crosses_os_threads() {
    let mut threads = Threads::allocate(1);
    let library = threads.library.clone();
    let device = threads.on(0, plain_device);
    let _here = threads.on(0, || device.channel()).unwrap();
    let there = device.clone();
    let (ready, is_ready) = std::sync::mpsc::channel();
    let remote = std::thread::spawn(move || {
        let mut runner = library.thread().build().unwrap().attach();
        let channel = runner.enter(|| there.channel()).unwrap();
        ready.send(runner.handle()).unwrap();
        let mut channel = Some(channel);
        while !runner.handle().is_exited() {
            runner.poll(0, 0);
            if !runner.handle().is_running() {
                drop(channel.take());
            }
        }
    });
    let other = is_ready.recv().unwrap();
    let visits = SharedRuns::default();
    let seen = visits.clone();
    let walk = device.walk_channels(async move |channel: IoChannel<Context>| {
        task::yield_now().await;
        assert_eq!(channel.value, 0x10);
        seen.add();
        Ok::<_, Infallible>(())
    });
    let walk = threads.on(0, || task::spawn_local(walk));
    while !walk.is_finished() {
        threads.poll_once(0);
        std::thread::yield_now();
    }
    assert_eq!(visits.get(), 2);
    drop(other.exit());
    remote.join().unwrap();
    assert_eq!(device.holders().len(), 1);
}

/// TH-035, F.1 2982: a forced exit takes the channels away from under their
/// handles, which stay good.
#[test]
fn a_forced_exit_leaves_no_dangling_channel() {
    let mut threads = Threads::allocate(1);
    let (made, live) = Default::default();
    let device = threads.on(0, || device(1, &made, &live));
    let channel = threads.on(0, || device.channel()).unwrap();
    threads.exit(0);
    threads.poll_threads();
    assert!(!threads.is_exited(0));
    threads.time.advance(5_000_000);
    threads.poll_once(0);
    threads.poll_once(0);
    assert!(threads.is_exited(0));
    assert!(device.holders().is_empty());
    assert_eq!(live.get(), 1);
    assert_eq!(channel.value, 1);
    drop(channel);
    assert_eq!(live.get(), 0);
}

/// G5: a channel keeps its thread on its OS thread.
#[test]
fn a_thread_with_a_channel_is_bound() {
    let threads = Threads::allocate(0);
    let library = &threads.library;
    let mut runner = library.thread().build().unwrap().attach();
    let device = runner.enter(plain_device);
    assert!(runner.can_move());
    drop(runner.enter(|| device.channel()).unwrap());
    assert!(!runner.can_move());
    runner.poll(0, 0);
    assert!(runner.can_move());
}

/// IO-001, 002, 004: everything that needs a thread says so off one.
#[test]
fn off_a_thread_every_call_says_what_it_needs() {
    let refused = IoDevice::builder()
        .name("x")
        .register(|| Ok::<_, Infallible>(()));
    assert!(
        matches!(refused.unwrap_err(), RegisterError::NotOnThread(it) if it.to_string().contains("\"x\""))
    );
    let mut threads = Threads::allocate(1);
    let device = threads.on(0, plain_device);
    assert!(device.name().starts_with("io_device "));
    assert!(matches!(
        device.channel(),
        Err(ChannelError::NotOnThread(_))
    ));
    assert!(matches!(
        device.unregister_with(|| {}),
        Err(UnregisterError::NotOnThread(_))
    ));
    let mut others = Threads::allocate(1);
    let refused = others.on(0, || device.channel()).unwrap_err();
    assert!(
        matches!(refused, ChannelError::OtherLibrary { .. }),
        "{refused}"
    );
}

/// IO-022: who asked is dropped between the end of the last walk and the message
/// that tells of it; the device goes all the same.
#[test]
fn a_deferred_unregistration_outlives_who_asked_for_it() {
    let mut threads = Threads::allocate(2);
    let mut asker = threads.library.thread().build().unwrap().attach();
    let device = threads.on(0, plain_device);
    let channel = threads.on(0, || device.channel()).unwrap();
    threads.on(1, || {
        device
            .for_each_channel(|_| Ok::<_, Infallible>(()), |_| ())
            .unwrap();
    });
    asker.enter(|| device.unregister_with(|| ())).unwrap();
    threads.poll_threads();
    assert!(device.is_registered(), "its message was not run yet");
    drop(asker);
    assert!(!device.is_registered());
    assert!(threads.on(0, || device.channel()).is_err());
    drop(channel);
    threads.poll_threads();
    assert_eq!(channel::devices(&threads.library).len(), 0);
    threads.free();
}

/// Walks of all registered devices.
fn walks(threads: &Threads) -> usize {
    let devices = channel::devices(&threads.library);
    devices.iter().map(|device| device.walks).sum()
}

/// Every channel has its task before one has ended, and the device stays
/// registered until the last has; the first error in thread order is the walk's.
#[test]
fn a_concurrent_walk_is_on_all_channels_at_once_and_holds_the_device() {
    let mut threads = Threads::allocate(3);
    let device = threads.on(0, plain_device);
    let mut channels: Vec<_> = (0..3)
        .map(|index| Some(threads.on(index, || device.channel()).unwrap()))
        .collect();
    let visits = SharedRuns::default();
    let seen = visits.clone();
    let visit = async move |channel: IoChannel<Context>| {
        seen.add();
        task::yield_now().await;
        match channel.thread().id() {
            1 => Ok(()),
            id => Err(id),
        }
    };
    // The channel is destroyed before the task looks for it: passed over.
    let mut walk = Box::pin(device.walk_channels_concurrent(visit));
    threads.on(1, || drop(channels[1].take()));
    assert!(poll_once(walk.as_mut()).is_pending());
    let gone = SharedRuns::default();
    let ended = gone.clone();
    threads
        .on(0, || device.unregister_with(move || ended.add()))
        .unwrap();
    assert_eq!(walks(&threads), 1);
    for index in [2, 1] {
        threads.poll_thread(index);
    }
    assert_eq!(visits.get(), 1);
    assert_eq!(walks(&threads), 1, "thread 1 was not polled");
    threads.poll_thread(0);
    assert_eq!((visits.get(), walks(&threads)), (2, 0));
    let result = futures::executor::block_on(walk);
    assert_eq!(result, Err(WalkError::Stopped(3)));
    let late = device.walk_channels_concurrent(async |_| Ok::<_, Infallible>(()));
    let late = futures::executor::block_on(late);
    assert!(matches!(late, Err(WalkError::Unregistered(_))));
    for (index, channel) in channels.into_iter().enumerate() {
        threads.on(index, || drop(channel));
    }
    threads.poll_threads();
    assert_eq!(gone.get(), 1);
    threads.free();
}

/// A thread that exits with the walk's task is passed over; a panic is reported
/// and is the walk's error.
#[test]
fn a_concurrent_walk_outlives_an_exit_and_a_panic() {
    let mut threads = Threads::allocate(2);
    let device = threads.on(0, plain_device);
    let _channel = threads.on(0, || device.channel()).unwrap();
    let other = threads.on(1, || device.channel()).unwrap();
    let walk = device.walk_channels_concurrent(async |channel: IoChannel<Context>| {
        if channel.thread().id() == 1 {
            panic!("contained");
        }
        std::future::pending::<Result<(), Infallible>>().await
    });
    let mut walk = Box::pin(walk);
    assert!(poll_once(walk.as_mut()).is_pending());
    threads.poll_threads();
    assert_eq!(walks(&threads), 1);
    threads.on(1, || drop(other));
    threads.exit(1);
    threads.poll_threads();
    assert_eq!(walks(&threads), 0);
    let result = futures::executor::block_on(walk);
    assert!(matches!(result, Err(WalkError::Panicked(panicked)) if panicked.stops == 1));
    assert_eq!(threads.take_panics(), ["contained"]);
}

/// A walk that is dropped between two stops lets the device go.
#[test]
fn an_async_walk_holds_the_device_until_it_ends_or_is_dropped() {
    let mut threads = Threads::allocate(2);
    let device = threads.on(0, plain_device);
    let channels = [0, 1].map(|index| threads.on(index, || device.channel()).unwrap());
    let visits = SharedRuns::default();
    let seen = visits.clone();
    let visit = async move |_: IoChannel<Context>| {
        seen.add();
        Ok::<_, Infallible>(())
    };
    let mut walk = Box::pin(device.walk_channels(visit));
    assert_eq!(walks(&threads), 0, "nothing before it is awaited");
    assert!(poll_once(walk.as_mut()).is_pending());
    threads.poll_threads();
    assert_eq!(visits.get(), 1, "who awaits it sends it on");
    let gone = Runs::default();
    let ended = gone.clone();
    threads
        .on(0, || device.unregister_with(move || ended.add()))
        .unwrap();
    threads.poll_threads();
    assert!(device.is_registered(), "the walk is under way");
    drop(walk);
    threads.poll_threads();
    assert!(!device.is_registered());
    for (index, channel) in channels.into_iter().enumerate() {
        threads.on(index, || drop(channel));
    }
    threads.poll_threads();
    assert_eq!((visits.get(), gone.get()), (1, 1));
    threads.free();
}

/// A context that, destroyed, opens its device's channel again, once.
struct Reopens {
    device: Rc<RefCell<Option<IoDevice<Reopens>>>>,
    opened: Rc<RefCell<Option<IoChannel<Reopens>>>>,
}

impl Drop for Reopens {
    fn drop(&mut self) {
        if let Some(device) = self.device.take() {
            *self.opened.borrow_mut() = device.channel().ok();
        }
    }
}

thread_local! {
    static REOPENS: RefCell<Option<Reopens>> = const { RefCell::new(None) };
}

/// While one context is being destroyed another one may be made: the device waits for
/// each of them.
#[test]
fn a_channel_opened_by_the_destructor_of_the_one_before_is_known_to_its_device() {
    let mut threads = Threads::allocate(1);
    let opened = Rc::new(RefCell::new(None));
    let next = || Reopens {
        device: Rc::default(),
        opened: Rc::default(),
    };
    let device = threads.on(0, || {
        let make = move || Ok::<_, Infallible>(REOPENS.take().unwrap_or_else(next));
        IoDevice::builder().register(make).unwrap()
    });
    REOPENS.set(Some(Reopens {
        device: Rc::new(RefCell::new(Some(device.clone()))),
        opened: opened.clone(),
    }));
    let first = threads.on(0, || device.channel()).unwrap();
    threads.on(0, || drop(first));
    threads.poll_threads();
    assert!(opened.borrow().is_some());
    assert_eq!(device.holders().len(), 1, "the device knows of the second");
    let gone = Runs::default();
    let seen = gone.clone();
    threads
        .on(0, || device.unregister_with(move || seen.add()))
        .unwrap();
    threads.poll_threads();
    assert_eq!(gone.get(), 0, "one is open");
    threads.on(0, || drop(opened.take()));
    threads.poll_threads();
    assert_eq!(gone.get(), 1);
    threads.free();
}
