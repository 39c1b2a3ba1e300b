//! G5, the other half: what is `Send` does not bind its thread. Pollers, channels,
//! poller streams, timers and the handles of all these move along and lose nothing;
//! and what binds after all is named.

use std::cell::Cell;
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};

use corespun::channel::{ChannelError, IoDevice, SendChannel};
use corespun::clock::{Clock, VirtualClock};
use corespun::stream::{PollerStream, SendPollerStream};
use corespun::thread::{
    BoundBy, Interrupt, Poller, PollerState, SendPoller, ThreadLib, ThreadRunner,
    register_post_poller_handler,
};
use corespun::{mpsc, spdk_thread_local, task, time};
use futures::{FutureExt, Stream, StreamExt};
use harness::threads::us;

fn attached() -> ThreadRunner {
    ThreadLib::new().thread().build().unwrap().attach()
}

fn on_virtual_time() -> (ThreadRunner, VirtualClock) {
    let (clock, hand) = Clock::virtual_at(1_000_000);
    let library = ThreadLib::builder().clock(clock).build();
    (library.thread().build().unwrap().attach(), hand)
}

/// Moves the thread to another OS thread for as long as `f` takes, and back.
fn elsewhere<R: Send + 'static>(
    runner: ThreadRunner,
    f: impl FnOnce(&mut ThreadRunner) -> R + Send + 'static,
) -> (ThreadRunner, R) {
    assert_eq!(runner.bound_by(), []);
    let parked = runner.park().expect("nothing of it has to stay");
    let there = thread::spawn(move || {
        let mut runner = parked.attach();
        let result = f(&mut runner);
        (runner.park().expect("nor there"), result)
    });
    let (parked, result) = there.join().unwrap();
    (parked.attach(), result)
}

fn settle(runner: &mut ThreadRunner) {
    while runner.poll(0, 0).is_busy() {}
}

/// Where its callback ran.
#[derive(Clone, Default)]
struct Places(Arc<Mutex<Vec<ThreadId>>>);

impl Places {
    fn note(&self) {
        self.0.lock().unwrap().push(thread::current().id());
    }

    fn take(&self) -> Vec<ThreadId> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

#[test]
fn active_timed_and_paused_pollers_move_with_their_thread() {
    let (mut runner, hand) = on_virtual_time();
    let here = thread::current().id();
    let places: [Places; 3] = Default::default();
    let [active, timed, paused] = runner.enter(|| {
        let [a, b, c] = places.clone();
        [
            SendPoller::active(move || a.note()).unwrap(),
            SendPoller::timed(us(100), move || b.note()).unwrap(),
            SendPoller::active(move || c.note()).unwrap(),
        ]
    });
    runner.enter(|| paused.pause());
    hand.advance(40);
    runner.poll(0, 0);
    assert_eq!(places[0].take(), [here]);
    let (mut runner, there) = elsewhere(runner, move |runner| {
        // What was left of its period moved along.
        assert_eq!(runner.next_deadline(), Some(100));
        hand.advance(60);
        runner.poll(0, 0);
        runner.enter(|| paused.resume());
        runner.poll(0, 0);
        (thread::current().id(), hand, paused)
    });
    let (there, hand, paused) = there;
    assert_ne!(here, there);
    assert_eq!(places[0].take(), [there, there]);
    assert_eq!(places[1].take(), [there]);
    assert_eq!(places[2].take(), [there]);
    hand.advance(100);
    runner.poll(0, 0);
    let stats = runner.enter(|| [&active, &timed, &paused].map(|p| p.stats().unwrap().run_count));
    assert_eq!(stats, [4, 2, 2]);
    assert!(places.iter().all(|place| place.take() == [here]));
}

/// On its thread a call counts at once, elsewhere when the thread has run a message.
#[test]
fn the_handle_of_a_moving_poller_works_from_everywhere() {
    let mut runner = attached();
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = runs.clone();
    let poller = runner
        .enter(|| SendPoller::active(move || _ = counted.fetch_add(1, Ordering::Relaxed)).unwrap());
    assert_eq!(poller.state(), None);
    assert_eq!(poller.stats(), None);
    assert_eq!(poller.name(), "poller 1");
    assert_eq!(poller.thread(), runner.handle());
    let mut poll = |f: &dyn Fn()| {
        f();
        runs.store(0, Ordering::Relaxed);
        runner.poll(0, 0);
        runner.poll(0, 0);
        runs.load(Ordering::Relaxed)
    };
    assert_eq!(poll(&|| ()), 2);
    assert_eq!(poll(&|| poller.pause()), 0);
    let from_another = || {
        thread::scope(|scope| _ = scope.spawn(|| poller.resume()));
    };
    assert_eq!(poll(&from_another), 2);
    let mut state = || runner.enter(|| poller.state()).unwrap();
    assert_eq!(state(), PollerState::Waiting);
    thread::spawn(move || drop(poller)).join().unwrap();
    assert!(runner.has_pollers());
    runner.poll(0, 0);
    assert!(!runner.has_pollers());
}

/// The number and the slot of a poller are not the poller.
#[test]
fn a_handle_of_another_thread_does_nothing_to_a_poller_of_the_same_number() {
    let [mut one, mut other] = [attached(), attached()];
    let of_one = one.enter(|| SendPoller::active(|| ()).unwrap());
    let of_other = other.enter(|| SendPoller::active(|| ()).unwrap());
    assert_eq!(of_one.id(), of_other.id());
    other.enter(|| {
        assert_eq!(of_one.state(), None);
        of_one.pause();
        drop(of_one);
        assert_eq!(of_other.state(), Some(PollerState::Waiting));
    });
    settle(&mut one);
    assert!(!one.has_pollers());
    // Nor to the one that has the slot after it.
    let first = other.enter(|| SendPoller::active(|| -> () { panic!("ends") }).unwrap());
    other.poll(0, 0);
    let second = other.enter(|| SendPoller::active(|| ()).unwrap());
    other.enter(|| {
        assert_eq!(first.state(), Some(PollerState::Unregistered));
        assert_eq!(first.stats(), None);
        first.pause();
        drop(first);
        assert_eq!(second.state(), Some(PollerState::Waiting));
    });
    other.poll(0, 0);
    assert_eq!(other.enter(|| second.stats()).unwrap().run_count, 1);
}

#[test]
fn a_moving_poller_that_drops_its_handle_in_its_callback_ends_there() {
    let mut runner = attached();
    let own = Arc::new(Mutex::new(None));
    let mine = own.clone();
    let witness = Arc::new(());
    let kept = witness.clone();
    let poller = runner.enter(|| {
        SendPoller::active(move || {
            let handle: Option<SendPoller> = mine.lock().unwrap().take();
            drop(handle);
            assert_eq!(Arc::strong_count(&kept), 2);
        })
    });
    *own.lock().unwrap() = Some(poller.unwrap());
    runner.poll(0, 0);
    assert_eq!(Arc::strong_count(&witness), 1);
    assert!(!runner.has_pollers());
}

#[test]
fn a_handle_outlives_its_thread_and_a_detached_poller_holds_its_exit() {
    let mut runner = attached();
    let poller = runner.enter(|| SendPoller::active(|| ()).unwrap());
    let witness = Arc::new(());
    let kept = witness.clone();
    runner.enter(|| {
        SendPoller::active(move || drop(kept.clone()))
            .unwrap()
            .detach()
    });
    assert_eq!(runner.exit_holders().len(), 2);
    drop(runner);
    assert_eq!(Arc::strong_count(&witness), 1);
    poller.pause();
    let kept = witness.clone();
    poller.set_interrupt(move |_| drop(kept.clone()));
    assert_eq!(Arc::strong_count(&witness), 1);
    assert_eq!(poller.state(), None);
    drop(poller);
}

#[test]
fn a_switch_hook_that_is_send_moves_and_is_called_where_its_thread_is() {
    let mut runner = attached();
    let places = Places::default();
    let noted = places.clone();
    let poller = runner.enter(|| SendPoller::active(|| ()).unwrap());
    poller.set_interrupt(move |_| noted.note());
    runner.poll(0, 0);
    let (mut runner, there) = elsewhere(runner, |runner| {
        runner.set_interrupt_mode(true).unwrap();
        assert!(!runner.has_active_pollers());
        thread::current().id()
    });
    runner.set_interrupt_mode(false).unwrap();
    assert_eq!(places.take(), [there, thread::current().id()]);
    assert!(runner.has_active_pollers());
    drop(poller);
}

/// `Send`, and not `Sync`.
struct Queue {
    submitted: Cell<u32>,
    dropped: Places,
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.dropped.note();
    }
}

fn queue_device(runner: &mut ThreadRunner, dropped: &Places) -> IoDevice<Queue> {
    let dropped = dropped.clone();
    let device = runner.enter(|| {
        IoDevice::builder().name("null0").register(move || {
            Ok::<_, Infallible>(Queue {
                submitted: Cell::new(0),
                dropped: dropped.clone(),
            })
        })
    });
    device.unwrap()
}

fn submit(channel: &SendChannel<Queue>) -> Result<u32, ChannelError> {
    channel.with(|queue| {
        queue.submitted.set(queue.submitted.get() + 1);
        queue.submitted.get()
    })
}

#[test]
fn a_channel_of_send_context_moves_and_is_dropped_where_its_thread_is() {
    let mut runner = attached();
    let dropped = Places::default();
    let device = queue_device(&mut runner, &dropped);
    let channel = runner.enter(|| device.send_channel().unwrap());
    assert_eq!(runner.enter(|| submit(&channel).unwrap()), 1);
    let mine = channel.clone();
    let (runner, there) = elsewhere(runner, move |runner| {
        assert_eq!(runner.enter(|| submit(&mine).unwrap()), 2);
        runner.enter(|| drop(mine));
        settle(runner);
        thread::current().id()
    });
    assert_eq!(dropped.take(), []);
    // The last, off its thread: the thread hears of it wherever it is then.
    drop(channel);
    let (mut runner, again) = elsewhere(runner, |runner| {
        settle(runner);
        thread::current().id()
    });
    assert_ne!(there, again);
    assert_eq!(dropped.take(), [again]);
    runner.enter(|| drop(device.unregister().unwrap()));
    settle(&mut runner);
    assert!(!device.is_registered());
}

#[test]
fn the_context_is_lent_on_its_thread_only() {
    let mut runner = attached();
    let device = queue_device(&mut runner, &Places::default());
    let channel = runner.enter(|| device.send_channel().unwrap());
    let elsewhere = |error: ChannelError| matches!(error, ChannelError::Elsewhere { .. });
    let error = submit(&channel).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the channel of io_device \"null0\" belongs to thread \"thread 1\": use it in a message, task or poller of that"
    );
    let library = runner.handle().library();
    let mut neighbour = library.thread().build().unwrap().attach();
    neighbour.enter(|| {
        assert!(elsewhere(submit(&channel).unwrap_err()));
        assert!(elsewhere(channel.io_channel().unwrap_err()));
        // What this thread has of the device is its own.
        let own = device.send_channel().unwrap();
        assert_eq!(submit(&own).unwrap(), 1);
        assert_eq!(submit(&own).unwrap(), 2);
    });
    // Not even while the one is entered from inside the other.
    runner.enter(|| {
        assert_eq!(submit(&channel).unwrap(), 1);
        neighbour.enter(|| assert!(submit(&channel).is_err()));
        assert_eq!(submit(&channel).unwrap(), 2);
    });
}

/// An `IoChannel` lends its context out for as long as it lives.
#[test]
fn an_io_channel_binds_though_its_context_is_send() {
    let mut runner = attached();
    let dropped = Places::default();
    let device = queue_device(&mut runner, &dropped);
    let named = [BoundBy::Channel("null0".to_owned())];
    let lent = runner.enter(|| device.channel().unwrap());
    assert_eq!(runner.bound_by(), named);
    let channel = runner.enter(|| device.send_channel().unwrap());
    assert_eq!(lent.ref_count(), 2);
    assert_eq!(runner.bound_by(), named);
    drop(lent);
    assert_eq!(runner.bound_by(), []);
    let lent = runner.enter(|| channel.io_channel().unwrap());
    let again = lent.clone();
    drop(lent);
    let runner = runner.park().unwrap_err();
    drop(again);
    let (mut runner, ()) = elsewhere(runner, move |runner| {
        runner.enter(|| drop(channel));
        settle(runner);
    });
    assert_eq!(dropped.take().len(), 1);
    // One that nobody has proven to be `Send` binds until it is destroyed.
    runner.enter(|| drop(device.channel().unwrap()));
    assert_eq!(runner.bound_by(), named);
    settle(&mut runner);
    assert_eq!(runner.bound_by(), []);
}

#[test]
fn a_moving_channel_holds_the_exit_and_is_gone_after_a_forced_one() {
    let mut runner = attached();
    let dropped = Places::default();
    let device = queue_device(&mut runner, &dropped);
    let channel = runner.enter(|| device.send_channel().unwrap());
    assert_eq!(runner.exit_holders().len(), 1);
    let other = channel.clone();
    runner.enter(|| {
        drop(task::spawn(async move {
            // Its own, and that of the table, when the exit cancels it.
            let _held = other;
            std::future::pending::<()>().await;
        }));
    });
    settle(&mut runner);
    drop(runner);
    assert_eq!(dropped.take(), [thread::current().id()]);
    let error = submit(&channel).unwrap_err();
    assert!(matches!(error, ChannelError::Elsewhere { .. }));
    drop(channel.clone());
    drop(channel);
}

/// A walk finds a channel wherever its thread is, and binds neither its origin nor,
/// when it is over, those it visited.
#[test]
fn walks_and_unregistrations_that_are_awaited_bind_nobody() {
    let library = ThreadLib::new();
    let [mut a, mut b] = [(); 2].map(|()| library.thread().build().unwrap().attach());
    let device = queue_device(&mut a, &Places::default());
    let channel = b.enter(|| device.send_channel().unwrap());
    let walk = device.walk_channels(async |channel| {
        channel.submitted.set(7);
        Ok::<_, Infallible>(())
    });
    let walk = a.enter(|| task::spawn(walk));
    let (mut a, ()) = elsewhere(a, settle);
    let (b, ()) = elsewhere(b, settle);
    settle(&mut a);
    assert!(walk.now_or_never().unwrap().unwrap().is_ok());

    let gone = a.enter(|| task::spawn(device.unregister().unwrap()));
    let (a, ()) = elsewhere(a, settle);
    let (_b, ()) = elsewhere(b, move |b| {
        assert_eq!(
            b.enter(|| channel.with(|queue| queue.submitted.get()).unwrap()),
            7
        );
        b.enter(|| drop(channel));
        settle(b);
    });
    let (_a, ()) = elsewhere(a, settle);
    assert!(gone.now_or_never().unwrap().unwrap().is_ok());
}

fn numbers(runner: &mut ThreadRunner, capacity: usize) -> SendPollerStream<u32> {
    let mut next = 0;
    let builder = PollerStream::<u32>::builder().capacity(capacity);
    let stream = runner.enter(|| {
        builder.register_send(move || {
            next += 1;
            Some(next)
        })
    });
    stream.unwrap()
}

#[test]
fn a_poller_stream_moves_with_the_task_that_takes_from_it() {
    let mut runner = attached();
    let mut stream = numbers(&mut runner, 3);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let taken = seen.clone();
    runner.poll(0, 0);
    let task = runner.enter(|| {
        task::spawn(async move {
            while let Some(number) = stream.next().await {
                taken.lock().unwrap().push(number);
                if number == 10 {
                    return;
                }
            }
        })
    });
    for _ in 0..8 {
        let (moved, ()) = elsewhere(runner, |runner| _ = runner.poll(1, 0));
        runner = moved;
    }
    settle(&mut runner);
    assert!(task.is_finished());
    assert!(seen.lock().unwrap().iter().copied().eq(1..=10));
    assert!(!runner.has_pollers());
}

#[test]
fn a_moving_stream_that_is_full_pauses_and_goes_on() {
    let mut runner = attached();
    let mut stream = numbers(&mut runner, 2);
    for _ in 0..5 {
        runner.poll(0, 0);
    }
    runner.enter(|| {
        assert_eq!(stream.queued(), Some(2));
        assert_eq!(stream.size_hint(), (2, None));
        assert_eq!(stream.next().now_or_never(), Some(Some(1)));
    });
    assert_eq!((stream.queued(), stream.size_hint()), (None, (0, None)));
    for _ in 0..2 {
        runner.poll(0, 0);
    }
    let queued = runner.enter(|| std::iter::from_fn(|| stream.next().now_or_never()?).collect());
    let queued: Vec<u32> = queued;
    assert_eq!(queued, [2, 3]);
}

#[test]
fn a_moving_stream_ends_with_its_poller_and_with_its_thread() {
    let mut runner = attached();
    let builder = PollerStream::<u32>::builder();
    let ended = runner.enter(|| builder.register_send(|| -> Option<u32> { panic!("ends") }));
    let (mut ended, mut left) = (ended.unwrap(), numbers(&mut runner, 4));
    runner.poll(0, 0);
    runner.enter(|| assert_eq!(ended.next().now_or_never(), Some(None)));
    assert!(ended.poller().is_none());
    drop(runner);
    assert_eq!(left.next().now_or_never(), Some(None));
    assert!(left.poller().is_none());
}

#[test]
#[should_panic(expected = "a SendPollerStream of thread \"thread 1\" must be polled there")]
fn a_moving_stream_is_polled_on_its_thread_only() {
    let mut runner = attached();
    let mut stream = numbers(&mut runner, 2);
    runner.poll(0, 0);
    let _ = stream.next().now_or_never();
}

#[test]
fn a_stream_that_a_poller_drives_moves() {
    let mut runner = attached();
    let (sender, receiver) = futures::channel::mpsc::unbounded::<u32>();
    let sum = Arc::new(AtomicUsize::new(0));
    let total = sum.clone();
    let poller = runner.enter(|| {
        Poller::builder().register_stream_send(receiver, move |number| {
            total.fetch_add(number as usize, Ordering::Relaxed);
        })
    });
    let poller = poller.unwrap();
    sender.unbounded_send(1).unwrap();
    runner.poll(0, 0);
    sender.unbounded_send(2).unwrap();
    drop(sender);
    let (mut runner, ()) = elsewhere(runner, |runner| {
        runner.poll(0, 0);
    });
    assert_eq!(sum.load(Ordering::Relaxed), 3);
    let state = runner.enter(|| poller.state());
    assert_eq!(state, Some(PollerState::Unregistered));
}

#[test]
fn intervals_and_timeouts_move_with_their_tasks() {
    let (mut runner, hand) = on_virtual_time();
    let beats = Arc::new(AtomicUsize::new(0));
    let counted = beats.clone();
    let task = runner.enter(|| {
        task::spawn(async move {
            let mut interval = time::interval(us(10));
            for _ in 0..4 {
                interval.tick().await;
                counted.fetch_add(1, Ordering::Relaxed);
            }
            let never = std::future::pending::<()>();
            time::timeout(us(25), never).await.unwrap_err();
        })
    });
    settle(&mut runner);
    for _ in 0..6 {
        hand.advance(10);
        let (moved, ()) = elsewhere(runner, settle);
        runner = moved;
        assert!(!task.is_finished() || hand.now() >= 55);
    }
    assert_eq!(beats.load(Ordering::Relaxed), 4);
    assert!(task.is_finished());
}

#[test]
fn whatever_binds_is_named() {
    spdk_thread_local! {
        static KEPT: Rc<()> = Rc::new(());
        static in send SENT: u8 = 1;
    }

    let mut runner = attached();
    assert_eq!(runner.bound_by(), []);
    let thread = runner.handle();
    let device = queue_device(&mut runner, &Places::default());
    let mut elsewhere = thread.library().thread().build().unwrap().attach();
    let other = elsewhere.enter(|| device.channel().unwrap());
    let flush = runner.enter(|| Poller::builder().name("flush").register(|| ()).unwrap());
    runner.enter(|| {
        Poller::builder()
            .name("loose")
            .register(|| ())
            .unwrap()
            .detach()
    });
    let hooked = runner.enter(|| {
        Poller::builder()
            .name("hooked")
            .register_send(|| ())
            .unwrap()
    });
    runner.enter(|| hooked.set_interrupt(|_| ()));
    let builder = task::TaskBuilder::new().name("7");
    let task = runner.enter(|| builder.spawn_local(std::future::pending::<()>()));
    let moves = runner.enter(|| task::spawn(std::future::pending::<()>()));
    let channel = runner.enter(|| device.channel().unwrap());
    runner.enter(|| (KEPT.with(|_| ()), SENT.with(|_| ())));
    runner
        .enter(|| register_post_poller_handler(|| ()))
        .unwrap();
    let walked = runner.enter(|| device.for_each_channel(|_| Ok::<_, ()>(()), |_| ()));
    walked.unwrap();
    let (here, _there) = std::os::unix::net::UnixStream::pair().unwrap();
    let interrupt = runner.enter(|| Interrupt::register(here, |_| ()).unwrap());
    let (sender, receiver) = runner.enter(|| mpsc::channel::<u8>(1));
    let spawner = runner.enter(task::LocalSpawner::current);
    thread.bind(true);

    let named: Vec<_> = runner.bound_by().iter().map(|by| by.to_string()).collect();
    assert!(
        named[2].starts_with("task 7 (spawned at tests/g5_moving_content.rs:"),
        "{named:?}"
    );
    let others = [&named[..2], &named[3..]].concat();
    assert_eq!(
        others,
        [
            "poller flush",
            "poller loose",
            "channel of null0",
            "thread-local alloc::rc::Rc<()>",
            "for_each_channel of null0 under way",
            "post-poller handler",
            "1 interrupts",
            "2 handles",
            "SpdkThread::bind",
        ]
    );
    // Asked from elsewhere, and without what the poll has run meanwhile.
    let asked = thread.bound_by();
    runner.poll(0, 0);
    assert_eq!(asked.now_or_never().unwrap().unwrap().len(), 10);
    thread.bind(false);
    drop((flush, task, channel, interrupt, receiver, spawner));
    drop((moves, other, sender));
}

/// One that was cancelled before its first poll is on no list any more.
#[test]
fn what_only_waits_to_be_dropped_is_named_as_such() {
    let mut runner = attached();
    let thread = runner.handle();
    for _ in 0..20 {
        drop(runner.enter(|| task::spawn_local(std::future::pending::<()>())));
    }
    runner.enter(|| drop(thread.exit()));
    runner.poll(1, 0);
    assert_eq!(runner.bound_by(), [BoundBy::Cancelled]);
}

/// DESIGN 4.5: those who promise it for all.
#[test]
fn by_promise_a_thread_moves_whatever_it_holds() {
    let library = ThreadLib::new();
    // SAFETY: each clone of the counter is in a poller, task or channel of the
    // thread, and so is each handle of those.
    let builder = unsafe { library.thread().assume_send() };
    let mut runner = builder.build().unwrap().attach();
    let told = Arc::new(AtomicUsize::new(0));
    let telling = told.clone();
    runner.enter(move || {
        let turns = Rc::new(Cell::new(0));
        let counted = turns.clone();
        let poller = Poller::active(move || counted.set(counted.get() + 1)).unwrap();
        drop(task::spawn_local(async move {
            while turns.get() < 5 {
                task::yield_now().await;
            }
            telling.store(turns.get(), Ordering::Relaxed);
            drop(poller);
        }));
    });
    assert!(runner.can_move());
    for _ in 0..6 {
        let (moved, ()) = elsewhere(runner, |runner| _ = runner.poll(1, 0));
        runner = moved;
    }
    assert_eq!(told.load(Ordering::Relaxed), 5);
    assert!(!runner.has_pollers());
    // A request is heeded still.
    runner.handle().bind(true);
    assert_eq!(runner.bound_by(), [BoundBy::Request]);
    assert!(runner.park().is_err());
}
