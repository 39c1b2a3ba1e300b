//! iobuf against the scenarios of the reference suite, with pools as small as
//! those use, which the public builder refuses.

mod pools;

use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};

use super::{Class, Got, GotMany, Iobuf, IobufBuf, IobufChannel, IobufError, PoolStats, WaiterId};
use crate::task;
use crate::thread::{ThreadLib, ThreadRunner};

const SMALL: usize = 4096;
const LARGE: usize = 8192;

struct Bed {
    threads: Vec<ThreadRunner>,
    iobuf: Iobuf,
}

impl Bed {
    /// So many threads, and buffers of either class; modules "0" and "1".
    fn new(threads: usize, buffers: usize) -> Self {
        let library = ThreadLib::new();
        let thread = |_| library.thread().build().unwrap().attach();
        let mut threads: Vec<_> = (0..threads).map(thread).collect();
        let builder = Iobuf::builder().small(buffers, SMALL).large(buffers, LARGE);
        let iobuf = threads[0].enter(|| builder.build_unchecked()).unwrap();
        iobuf.register_module("0").unwrap();
        iobuf.register_module("1").unwrap();
        Bed { threads, iobuf }
    }

    fn channel(&mut self, thread: usize, module: &str, cache: usize) -> IobufChannel {
        self.try_channel(thread, module, cache, cache).unwrap()
    }

    fn try_channel(
        &mut self,
        thread: usize,
        module: &str,
        small: usize,
        large: usize,
    ) -> Result<IobufChannel, IobufError> {
        self.threads[thread].enter(|| self.iobuf.channel(module, small, large))
    }

    fn on<R>(&mut self, thread: usize, f: impl FnOnce() -> R) -> R {
        self.threads[thread].enter(f)
    }

    fn poll(&mut self) {
        for _ in 0..10 {
            self.threads
                .iter_mut()
                .for_each(|thread| _ = thread.poll(0, 0));
        }
    }
}

/// Where a waiter's buffer arrives.
#[derive(Clone, Default)]
struct Served(Rc<RefCell<Option<IobufBuf>>>);

impl Served {
    fn is_served(&self) -> bool {
        self.0.borrow().is_some()
    }

    fn take(&self) -> IobufBuf {
        self.0.take().expect("served")
    }

    fn put(&self, buffer: IobufBuf) {
        assert!(self.0.replace(Some(buffer)).is_none());
    }
}

fn wait(channel: &IobufChannel, len: usize) -> (Served, WaiterId) {
    let place = Served::default();
    let arrives = place.clone();
    let got = channel.get_with(len, move |buffer| {
        arrives.0.replace(Some(buffer));
    });
    match got.unwrap() {
        Got::Waiting(id) => (place, id),
        Got::Buffer(_) => panic!("nothing is free"),
    }
}

fn take(channel: &IobufChannel, len: usize) -> IobufBuf {
    channel.try_get(len).unwrap().expect("one is free")
}

/// T-IB-01 (IO-033, 034).
#[test]
fn waiters_are_served_in_order_when_a_pool_is_exhausted() {
    let mut bed = Bed::new(2, 2);
    let large = bed.channel(0, "0", 0);
    let small = bed.channel(1, "0", 0);
    let (mut larges, (l3, _), (l4, _)) = bed.on(0, || {
        let held = vec![take(&large, LARGE), take(&large, SMALL + 1)];
        (held, wait(&large, LARGE), wait(&large, LARGE))
    });
    let (mut smalls, (s3, _), (s4, _)) = bed.on(1, || {
        let held = vec![take(&small, SMALL), take(&small, 1)];
        (held, wait(&small, SMALL), wait(&small, SMALL))
    });
    assert_eq!(larges[0].len(), LARGE);
    assert_eq!(smalls[0].len(), SMALL);
    let served = || [&l3, &l4, &s3, &s4].map(Served::is_served);
    bed.on(0, || drop(larges.pop()));
    assert_eq!(served(), [true, false, false, false]);
    bed.on(0, || drop(larges.pop()));
    assert_eq!(served(), [true, true, false, false]);
    bed.on(1, || drop(smalls.pop()));
    assert_eq!(served(), [true, true, true, false]);
    bed.on(1, || drop(smalls.pop()));
    assert_eq!(served(), [true; 4]);
    drop((l3.take(), l4.take(), s3.take(), s4.take()));
    assert_eq!(bed.iobuf.free_counts(), [2, 2]);
}

/// T-IB-02 (IO-033).
#[test]
fn waiters_of_two_modules_share_one_queue() {
    let mut bed = Bed::new(1, 2);
    let (mod0, mod1) = (bed.channel(0, "0", 0), bed.channel(0, "1", 0));
    bed.on(0, || {
        for (len, first, second) in [(LARGE, &mod1, &mod0), (SMALL, &mod0, &mod1)] {
            let mut held = vec![take(&mod0, len), take(&mod0, len)];
            let (older, _) = wait(first, len);
            let (newer, _) = wait(second, len);
            held.pop();
            assert!(older.is_served() && !newer.is_served());
            held.pop();
            assert!(newer.is_served());
        }
    });
}

/// T-IB-03 (IO-036).
#[test]
fn an_aborted_waiter_is_passed_over() {
    let mut bed = Bed::new(1, 1);
    let (mod0, mod1) = (bed.channel(0, "0", 0), bed.channel(0, "1", 0));
    bed.on(0, || {
        for (len, aborted, other) in [(LARGE, &mod0, &mod1), (SMALL, &mod1, &mod0)] {
            let held = take(&mod0, len);
            let (gone, id) = wait(aborted, len);
            let (stays, _) = wait(other, len);
            assert!(aborted.abort(&id));
            assert!(!aborted.abort(&id), "absent: nothing");
            drop(held);
            assert!(stays.is_served());
            assert_eq!(Rc::strong_count(&gone.0), 1, "its callback is dropped");
        }
    });
}

/// T-IB-04 (IO-036).
#[test]
fn a_channel_lists_its_own_waiters_only() {
    let mut bed = Bed::new(2, 1);
    let mut kept = Vec::new();
    let mut holders = Vec::new();
    let mut channels = Vec::new();
    for thread in 0..2 {
        for module in ["0", "1"] {
            channels.push((thread, bed.channel(thread, module, 0)));
        }
    }
    bed.on(0, || {
        holders.extend([take(&channels[0].1, LARGE), take(&channels[0].1, SMALL)])
    });
    let mut own = Vec::new();
    for (thread, channel) in &channels {
        let ids = bed.on(*thread, || [LARGE, SMALL].map(|len| wait(channel, len)));
        let [(large, large_id), (small, small_id)] = ids;
        own.push(vec![small_id, large_id]);
        kept.push((large, small));
    }
    for ((_, channel), expected) in channels.iter().zip(&own) {
        let mut seen = Vec::new();
        let all = channel.for_each_waiter(|id| {
            seen.push(id);
            ControlFlow::<()>::Continue(())
        });
        assert_eq!((all, &seen), (ControlFlow::Continue(()), expected));
        assert_eq!(
            seen.iter().map(WaiterId::class).collect::<Vec<_>>(),
            Class::ALL
        );
        let first = channel.for_each_waiter(ControlFlow::Break);
        assert_eq!(first, ControlFlow::Break(expected[0].clone()));
    }
}

/// T-IB-05 (IO-036).
#[test]
fn finishing_completes_once_every_channel_is_closed() {
    let mut bed = Bed::new(2, 4);
    let channels = [bed.channel(0, "0", 1), bed.channel(1, "0", 1)];
    let finish = bed.threads[0].enter(|| bed.iobuf.finish()).unwrap();
    let done = bed.on(0, || task::spawn_local(finish));
    bed.poll();
    assert!(!done.is_finished());
    assert!(bed.try_channel(0, "0", 0, 0).is_err());
    drop(channels);
    bed.poll();
    assert!(done.is_finished());
    assert_eq!(bed.iobuf.free_counts(), [4, 4]);
}

/// T-IB-06 (IO-031, 032).
#[test]
fn a_channel_whose_cache_cannot_be_filled_takes_nothing() {
    let mut bed = Bed::new(1, 4);
    for (small, large) in [(5, 1), (1, 5)] {
        let error = bed.try_channel(0, "0", small, large).unwrap_err();
        assert!(matches!(
            error,
            IobufError::CacheNotFilled { wanted: 5, .. }
        ));
        assert_eq!(bed.iobuf.free_counts(), [4, 4]);
    }
    let first = bed.channel(0, "0", 4);
    assert!(bed.try_channel(0, "0", 4, 4).is_err());
    drop(first);
    assert!(bed.try_channel(0, "0", 4, 4).is_ok());
    let error = bed.try_channel(0, "2", 0, 0).unwrap_err();
    assert!(matches!(error, IobufError::NoModule(name) if name == "2"));
    let twice = bed.iobuf.register_module("1").unwrap_err();
    assert!(matches!(twice, IobufError::ModuleExists(_)));
    bed.iobuf.unregister_module("1").unwrap();
    assert!(bed.iobuf.unregister_module("1").is_err());
    let many: Vec<_> = (0..64).map(|_| bed.channel(0, "0", 0)).collect();
    let error = bed.try_channel(0, "0", 0, 0).unwrap_err();
    assert!(matches!(error, IobufError::TooManyChannels(64)));
    drop(many);
}

/// T-IB-07 (IO-034).
#[test]
fn a_cache_gives_its_surplus_back() {
    let mut bed = Bed::new(1, 4);
    let first = bed.channel(0, "0", 2);
    bed.on(0, || {
        for len in [SMALL, LARGE] {
            let held = [(); 3].map(|()| take(&first, len));
            drop(held);
        }
    });
    assert!(bed.try_channel(0, "1", 2, 2).is_ok());
}

/// T-IB-08.
#[test]
fn a_waiter_comes_before_a_cache() {
    let mut bed = Bed::new(1, 4);
    let (ch0, ch1) = (bed.channel(0, "0", 2), bed.channel(0, "1", 1));
    bed.on(0, || {
        for len in [SMALL, LARGE] {
            let mut held = [(); 3].map(|()| take(&ch0, len)).into_iter();
            let one = take(&ch1, len);
            assert!(ch0.try_get(len).unwrap().is_none());
            assert!(ch1.try_get(len).unwrap().is_none());
            let (older, _) = wait(&ch1, len);
            let (newer, _) = wait(&ch0, len);
            drop(held.next());
            assert!(older.is_served() && !newer.is_served());
            drop(one);
            assert!(newer.is_served());
            drop(held);
        }
    });
}

/// A buffer that comes back between the look into the pool and the listing of a
/// waiter is not left there: a thread that lists itself looks again. The waker is
/// cloned in between, and does there what another OS thread may do at any time.
#[test]
fn a_buffer_that_comes_back_before_who_waits_is_listed_is_not_left() {
    thread_local! {
        static HELD: Cell<Option<IobufBuf>> = const { Cell::new(None) };
    }
    const VTABLE: RawWakerVTable = RawWakerVTable::new(
        |data| {
            drop(HELD.take());
            RawWaker::new(data, &VTABLE)
        },
        |_| (),
        |_| (),
        |_| (),
    );
    let mut bed = Bed::new(1, 1);
    let channel = bed.channel(0, "0", 0);
    bed.on(0, || HELD.set(Some(take(&channel, SMALL))));
    // SAFETY: the table's functions look at no data.
    let waker = unsafe { Waker::new(std::ptr::null(), &VTABLE) };
    let mut context = Context::from_waker(&waker);
    let mut get = Box::pin(channel.get(SMALL));
    assert!(bed.on(0, || get.as_mut().poll(&mut context)).is_pending());
    bed.poll();
    let got = bed.on(0, || get.as_mut().poll(&mut context));
    assert!(matches!(got, Poll::Ready(Ok(_))), "it waits in the pool");
}

/// T-IB-09 (IO-035): one that needs two is itself until it has both.
#[test]
fn who_needs_two_buffers_keeps_the_head_of_the_queue() {
    let mut bed = Bed::new(1, 2);
    let channel = Rc::new(bed.channel(0, "0", 0));
    bed.on(0, || {
        let mut held = vec![take(&channel, SMALL), take(&channel, SMALL)];
        let order = Rc::new(RefCell::new(Vec::new()));
        let kept = Rc::new(RefCell::new(Vec::new()));
        for name in ["a", "b"] {
            let (order, kept) = (order.clone(), kept.clone());
            let both = move |mut pair: Vec<_>| {
                order.borrow_mut().push((name, pair.len()));
                kept.borrow_mut().append(&mut pair);
            };
            let got = channel.get_many_with(SMALL, 2, both).unwrap();
            assert!(matches!(got, GotMany::Waiting(_)));
        }
        for expected in [&[][..], &[("a", 2)], &[("a", 2)], &[("a", 2), ("b", 2)]] {
            if held.is_empty() {
                held.append(&mut kept.borrow_mut());
            }
            held.pop();
            assert_eq!(*order.borrow(), expected);
        }
        // Without a waiter there are both at once; more there are not, and
        // what is there waits with the caller.
        drop(kept.take());
        let pair = channel.get_many_with(SMALL, 2, |_| panic!("they are there"));
        let GotMany::Buffers(pair) = pair.unwrap() else {
            panic!("both are free");
        };
        assert_eq!(pair.len(), 2);
        let asked = channel.get_many_with(SMALL, 2, |_| panic!("aborted"));
        let GotMany::Waiting(waiter) = asked.unwrap() else {
            panic!("both are out");
        };
        drop(pair);
        assert!(!channel.abort(&waiter), "it has got them");
    });
}

/// IO-035: a request made in the callback of another is a new one, whichever
/// module makes it. A module that asks again in each of its callbacks takes
/// turns with the other waiters.
#[test]
fn who_asks_again_in_its_callback_goes_behind_who_waits() {
    fn ask(channel: &Rc<IobufChannel>, name: char, served: &Rc<RefCell<String>>, kept: &Served) {
        let (again, order, place) = (channel.clone(), served.clone(), kept.clone());
        let called = move |buffer| {
            order.borrow_mut().push(name);
            ask(&again, name, &order, &place);
            place.put(buffer);
        };
        let got = channel.get_with(SMALL, called).unwrap();
        assert!(matches!(got, Got::Waiting(_)));
    }

    let mut bed = Bed::new(1, 1);
    let channels = ["0", "1"].map(|module| Rc::new(bed.channel(0, module, 0)));
    let (served, kept) = (Rc::new(RefCell::new(String::new())), Served::default());
    bed.on(0, || {
        kept.put(take(&channels[0], SMALL));
        ask(&channels[0], 'a', &served, &kept);
        ask(&channels[1], 'b', &served, &kept);
        for _ in 0..6 {
            drop(kept.take());
        }
        assert_eq!(*served.borrow(), "ababab");
        for channel in &channels {
            let _: ControlFlow<()> = channel.for_each_waiter(|waiter| {
                assert!(channel.abort(&waiter));
                ControlFlow::Continue(())
            });
        }
    });
    drop(kept);
}

/// The async forms, and two tasks that need two buffers each.
#[test]
fn tasks_that_wait_for_several_do_not_starve_each_other() {
    let mut bed = Bed::new(1, 2);
    let channel = Rc::new(bed.channel(0, "0", 0));
    let turns = Rc::new(Cell::new(0));
    let tasks: Vec<_> = bed.on(0, || {
        let task = |_| {
            let (channel, turns) = (channel.clone(), turns.clone());
            task::spawn_local(async move {
                for _ in 0..10 {
                    let pair = channel.get_many(SMALL, 2).await.unwrap();
                    assert_eq!(pair.len(), 2);
                    task::yield_now().await;
                    turns.set(turns.get() + 1);
                }
                assert!(channel.get(LARGE + 1).await.is_err());
            })
        };
        (0..3).map(task).collect()
    });
    for _ in 0..20 {
        bed.poll();
    }
    assert!(tasks.iter().all(task::JoinHandle::is_finished));
    assert_eq!(turns.get(), 30);
    assert_eq!(bed.iobuf.free_counts(), [2, 2]);

    // Dropped while it waits, with one of its two buffers.
    bed.on(0, || {
        let held = take(&channel, SMALL);
        let mut pair = Box::pin(channel.get_many(SMALL, 2));
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(pair.as_mut().poll(&mut cx).is_pending());
        assert!(channel.try_get(SMALL).unwrap().is_none());
        drop(pair);
        assert!(channel.try_get(SMALL).unwrap().is_some());
        drop(held);
    });
    assert_eq!(bed.iobuf.free_counts(), [2, 2]);
}

/// F.7 2824, 2815: IO-037 does not hold here.
#[test]
fn a_put_on_another_thread_serves_who_waits() {
    let mut bed = Bed::new(3, 1);
    let (a, b) = (bed.channel(0, "0", 0), bed.channel(1, "0", 0));
    let held = bed.on(1, || take(&b, SMALL));
    let (place, _) = bed.on(0, || wait(&a, SMALL));
    let (other, _) = bed.on(1, || wait(&b, SMALL));
    // A thread that has no channel at all.
    bed.on(2, || drop(held));
    assert!(!place.is_served());
    bed.poll();
    assert!(
        place.is_served() && !other.is_served(),
        "the one that waited longest"
    );
    // Not even a thread.
    let held = place.take();
    std::thread::spawn(move || drop(held)).join().unwrap();
    bed.poll();
    assert!(other.is_served());
    bed.on(1, || drop(other.take()));
    assert_eq!(bed.iobuf.free_counts(), [1, 1]);
}

/// A thread that takes and puts without pause leaves a waiter elsewhere its
/// turn; with caches, buffers in both directions.
#[test]
fn a_busy_thread_does_not_keep_a_waiter_elsewhere_out() {
    let mut bed = Bed::new(2, 1);
    let (a, b) = (bed.channel(0, "0", 0), bed.channel(1, "0", 0));
    let held = bed.on(1, || take(&b, SMALL));
    let (place, _) = bed.on(0, || wait(&a, SMALL));
    bed.on(1, || {
        drop(held);
        assert!(b.try_get(SMALL).unwrap().is_none(), "it is on its way");
    });
    bed.poll();
    assert!(place.is_served());
}

/// A waiter whose thread ends in any way passes its buffer on.
#[test]
fn a_buffer_sent_to_a_thread_that_ends_is_not_lost() {
    let mut bed = Bed::new(3, 1);
    let a = bed.channel(0, "0", 0);
    let b = bed.channel(1, "0", 0);
    let held = bed.on(0, || take(&a, SMALL));
    let (_never, _) = bed.on(1, || wait(&b, SMALL));
    let (place, _) = bed.on(0, || wait(&a, SMALL));
    bed.on(2, || drop(held));
    // The buffer is in a message to the thread that is dropped now.
    drop(bed.threads.remove(1));
    bed.poll();
    assert!(place.is_served());
    drop(b);
}

/// Of its class, and of the other.
#[test]
fn a_waiter_is_listed_again_after_the_last_one_has_gone() {
    let mut bed = Bed::new(2, 1);
    let (waits, has) = (bed.channel(0, "0", 0), bed.channel(1, "0", 0));
    let held = bed.on(1, || [take(&has, SMALL), take(&has, LARGE)]);
    let places = bed.on(0, || {
        let (_, id) = wait(&waits, SMALL);
        assert!(waits.abort(&id));
        [wait(&waits, LARGE).0, wait(&waits, SMALL).0]
    });
    bed.on(1, || drop(held));
    bed.poll();
    assert!(places.iter().all(Served::is_served));
    drop(bed.on(0, || places.map(|place| place.take())));
    assert_eq!(bed.iobuf.free_counts(), [1, 1]);
}

/// A cache may not keep what another thread waits for.
#[test]
fn a_waiter_elsewhere_comes_before_a_cache() {
    let mut bed = Bed::new(2, 2);
    let (keeps, waits) = (bed.channel(0, "0", 1), bed.channel(1, "0", 0));
    let other = bed.on(1, || [take(&waits, SMALL), take(&waits, LARGE)]);
    let held = bed.on(0, || [take(&keeps, SMALL), take(&keeps, LARGE)]);
    let (small, large) = bed.on(1, || (wait(&waits, SMALL).0, wait(&waits, LARGE).0));
    bed.on(0, || drop(held));
    bed.poll();
    assert!(small.is_served() && large.is_served());
    drop((other, small, large));
}

/// Four OS threads take from a pool too small for them: none waits for ever,
/// and no two have one buffer.
#[test]
fn os_threads_share_a_pool_too_small_for_them() {
    const ROUNDS: usize = 2_000;
    let mut bed = Bed::new(1, 3);
    let done = Arc::new(AtomicUsize::new(0));
    let library = bed.threads[0].handle().library();
    let workers: Vec<_> = (0..4u8)
        .map(|me| {
            let (library, iobuf, done) = (library.clone(), bed.iobuf.clone(), done.clone());
            std::thread::spawn(move || {
                let mut runner = library.thread().build().unwrap().attach();
                let task = runner.enter(|| {
                    let channel = iobuf.channel("0", 0, 0).unwrap();
                    task::spawn_local(async move {
                        for _ in 0..ROUNDS {
                            let mut buffer = channel.get(SMALL).await.unwrap();
                            buffer[..64].fill(me);
                            task::yield_now().await;
                            assert!(buffer[..64].iter().all(|&byte| byte == me));
                        }
                    })
                });
                while !task.is_finished() {
                    runner.poll(0, 0);
                    std::thread::yield_now();
                }
                done.fetch_add(1, Ordering::Relaxed);
            })
        })
        .collect();
    workers
        .into_iter()
        .for_each(|worker| worker.join().unwrap());
    bed.poll();
    assert_eq!(done.load(Ordering::Relaxed), 4);
    assert_eq!(bed.iobuf.free_counts(), [3, 3]);
}
