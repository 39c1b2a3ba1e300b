//! G7: exit drains: every live task is cancelled and its future dropped on its
//! own thread before the thread reads EXITED; what holds it is named; a forced
//! exit leaves nothing behind.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use corespun::channel::IoDevice;
use corespun::spdk_thread_local;
use corespun::task::{self, JoinHandle, TaskBuilder};
use corespun::thread::{ExitHolder, Poller, SpdkThread, ThreadRunner};
use corespun::time;
use futures::FutureExt;
use harness::log::Log;
use harness::threads::{Runs, Threads, us};

/// Runs a closure when dropped.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn spawn_holding<T: 'static>(threads: &mut Threads, held: T) -> JoinHandle<()> {
    threads.on(0, || {
        task::spawn_local(async move {
            let _held = held;
            pending().await
        })
    })
}

fn is_exited_error(task: JoinHandle<()>) -> bool {
    let error = task.now_or_never().expect("ended").unwrap_err();
    error.is_thread_exited()
}

#[test]
fn live_tasks_are_dropped_on_their_thread_before_exited() {
    let mut threads = Threads::allocate(1);
    let thread = threads.handle(0);
    let drops = Rc::new(Cell::new(0));
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let (drops, thread) = (drops.clone(), thread.clone());
            let held = OnDrop(move || {
                assert!(!thread.is_exited());
                assert_eq!(SpdkThread::current().as_ref(), Some(&thread));
                drops.set(drops.get() + 1);
            });
            spawn_holding(&mut threads, held)
        })
        .collect();
    // Some polled, some not.
    threads.runner(0).poll(0, 0);
    drop(thread.exit());
    threads.poll_threads();
    assert_eq!(drops.get(), 20);
    assert!(thread.is_exited());
    assert!(tasks.into_iter().all(is_exited_error));
    threads.free();
}

#[test]
fn awaiting_the_exit_completes_when_the_thread_has_exited() {
    let mut threads = Threads::allocate(2);
    let target = threads.handle(0);
    let seen = target.clone();
    let waiter = threads.on(1, || {
        task::spawn_local(async move {
            seen.exit().await;
            assert!(seen.is_exited());
            // Again is fine.
            seen.exit().await;
        })
    });
    threads.poll_thread(1);
    assert!(!waiter.is_finished());
    threads.poll_threads();
    assert!(waiter.now_or_never().unwrap().is_ok());
    threads.free();
}

#[test]
fn what_holds_the_thread_is_named() {
    let mut threads = Threads::allocate(1);
    let thread = threads.handle(0);
    let (poller, named, line, unnamed) = threads.on(0, || {
        let poller = Poller::builder().name("heartbeat").period(us(10));
        let named = TaskBuilder::new()
            .name("flush")
            .spawn_local(pending::<()>());
        let line = line!() + 1;
        let unnamed = task::spawn_local(pending::<()>());
        (poller.register(|| ()).unwrap(), named, line, unnamed)
    });
    threads.runner(0).poll(0, 0);
    thread.send_msg(|| ()).unwrap();
    let holders = threads.runner(0).exit_holders();
    let texts: Vec<String> = holders.iter().map(ExitHolder::to_string).collect();
    let here = |line| format!("spawned at {}:{line}", file!());
    assert_eq!(texts.len(), 4, "{texts:?}");
    assert_eq!(texts[0], "poller heartbeat");
    assert!(
        texts[1].starts_with(&format!("task {}", here(line))),
        "{texts:?}"
    );
    assert!(
        texts[2].starts_with(&format!("task flush ({}", here(line - 2).split_at(20).0)),
        "{texts:?}"
    );
    assert_eq!(texts[3], "queued messages");
    drop((poller, named, unnamed));
    threads.free();
}

/// A shutdown chain may still spawn; what it spawns holds the thread.
#[test]
fn a_task_spawned_while_exiting_runs_and_is_waited_for() {
    let mut threads = Threads::allocate(1);
    let thread = threads.handle(0);
    drop(thread.exit());
    let (send, receive) = futures::channel::oneshot::channel::<u8>();
    let tail = thread.spawn(async move { receive.await.unwrap() });
    threads.poll_threads();
    assert!(!thread.is_exited());
    send.send(3).unwrap();
    threads.poll_threads();
    assert!(thread.is_exited());
    assert_eq!(tail.now_or_never().unwrap().unwrap(), 3);
    threads.free();
}

/// What a destructor does while its thread exits: spawning is refused or
/// cancelled too, sending is refused or run, waking works.
fn mischief(polled: Rc<Cell<u64>>, victims: Rc<Cell<u64>>) -> impl FnMut() {
    move || {
        let thread = SpdkThread::current().expect("dropped on its thread");
        let (inner, last) = (polled.clone(), victims.clone());
        let held = OnDrop(move || last.set(last.get() + 1));
        drop(task::spawn_local(poll_fn(move |_| {
            let _ = &held;
            inner.set(inner.get() + 1);
            Poll::<()>::Pending
        })));
        let _ = thread.send_msg(|| ());
        let _ = Poller::active(|| ());
        drop(thread.exit());
    }
}

/// By the time the exit is forced nothing can be spawned any more, so no future
/// is left alive behind the closed mailbox.
#[test]
fn a_destructor_that_spawns_during_a_forced_exit_is_refused() {
    let mut threads = Threads::allocate(1);
    let thread = threads.handle(0);
    let (polled, victims) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let poller = threads.on(0, || Poller::timed(us(1_000_000_000), || ()).unwrap());
    drop(thread.exit());
    threads.poll_threads();
    let held = OnDrop(mischief(polled.clone(), victims.clone()));
    let task = spawn_holding(&mut threads, held);
    threads.poll_threads();
    assert!(!thread.is_exited());
    threads.delay_us(5_000_000);
    threads.poll_threads();
    assert!(thread.is_exited());
    assert_eq!((polled.get(), victims.get()), (0, 1));
    assert!(is_exited_error(task));
    assert!(threads.runner(0).exit_holders().is_empty());
    drop(poller);
    threads.free();
}

#[test]
fn a_destructor_that_spawns_during_an_exit_does_not_keep_it_from_ending() {
    let mut threads = Threads::allocate(1);
    let thread = threads.handle(0);
    let (polled, victims) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let held = OnDrop(mischief(polled.clone(), victims.clone()));
    let task = spawn_holding(&mut threads, held);
    threads.runner(0).poll(0, 0);
    drop(thread.exit());
    threads.poll_threads();
    // What it spawned is new, runs, and holds the thread.
    assert_eq!((polled.get(), victims.get()), (1, 0));
    assert!(!thread.is_exited());
    threads.delay_us(5_000_000);
    threads.poll_threads();
    assert_eq!((polled.get(), victims.get()), (1, 1));
    assert!(thread.is_exited());
    assert!(is_exited_error(task));
    threads.free();
}

#[test]
fn a_runner_dropped_without_exit_cancels_all_and_says_so() {
    let mut threads = Threads::allocate(2);
    let runs = Runs::default();
    let (polled, victims) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let held = OnDrop(mischief(polled.clone(), victims.clone()));
    let task = spawn_holding(&mut threads, held);
    threads.runner(0).poll(0, 0);
    let unpolled = spawn_holding(&mut threads, ());
    let poller = threads.on(0, || Poller::active(runs.idle()).unwrap());
    let thread = threads.handle(0);
    let sent = Arc::new(AtomicUsize::new(0));
    let (count, mine) = (sent.clone(), Arc::new(()));
    let witness = mine.clone();
    thread
        .send_msg(move || {
            drop(mine);
            count.fetch_add(1, Ordering::Relaxed);
        })
        .unwrap();
    let remote = thread.spawn(pending::<()>());
    let exit = threads.on(1, || {
        let exit = thread.exit();
        task::spawn_local(exit)
    });
    let spare = threads.library.thread().build().unwrap().attach();
    let dropped: ThreadRunner = std::mem::replace(threads.runner(0), spare);
    drop(dropped);
    assert!(thread.is_exited());
    assert!([task, unpolled, remote].into_iter().all(is_exited_error));
    assert_eq!((polled.get(), victims.get()), (0, 1));
    assert_eq!(Arc::strong_count(&witness), 1);
    assert_eq!(sent.load(Ordering::Relaxed), 0);
    assert_eq!(poller.state().to_string(), "unregistered");
    drop(poller);
    threads.poll_threads();
    assert!(exit.now_or_never().unwrap().is_ok());
    assert_eq!(runs.get(), 0);
    threads.free();
}

/// A loop that would sleep must not wait for the forced end when the last
/// holder went while another thread was polled.
#[test]
fn a_holder_that_goes_outside_of_a_poll_asks_for_a_poll() {
    let mut threads = Threads::allocate(1);
    let poller = threads.on(0, || Poller::timed(us(1_000_000_000), || ()).unwrap());
    let thread = threads.handle(0);
    drop(thread.exit());
    threads.poll_threads();
    assert!(!threads.runner(0).needs_poll());
    drop(poller);
    assert!(threads.runner(0).needs_poll());
    threads.poll_threads();
    assert!(thread.is_exited());
    assert!(!threads.runner(0).needs_poll());
    threads.free();
}

/// A stream of messages cannot put the end off for ever.
#[test]
fn a_message_that_resends_itself_is_stopped_by_the_forced_exit() {
    fn again() {
        let thread = SpdkThread::current().unwrap();
        let _ = thread.send_msg(again);
    }
    let mut threads = Threads::allocate(1);
    let thread = threads.handle(0);
    thread.send_msg(again).unwrap();
    drop(thread.exit());
    for _ in 0..100 {
        threads.runner(0).poll(0, 0);
    }
    assert!(!thread.is_exited());
    threads.delay_us(5_000_000);
    for _ in 0..3 {
        threads.runner(0).poll(0, 0);
    }
    assert!(thread.is_exited());
    threads.free();
}

/// A detached task whose poll left no waker anywhere is still there, and goes
/// at exit.
#[test]
fn a_detached_task_that_nobody_can_wake_is_dropped_at_exit() {
    let mut threads = Threads::allocate(1);
    let drops = Rc::new(Cell::new(0));
    for _ in 0..3 {
        let counter = drops.clone();
        let held = OnDrop(move || counter.set(counter.get() + 1));
        drop(spawn_holding(&mut threads, held));
    }
    threads.poll_threads();
    assert_eq!(drops.get(), 0);
    assert_eq!(threads.runner(0).exit_holders().len(), 3);
    threads.free();
    assert_eq!(drops.get(), 3);
}

/// One that no task waits for holds nothing, and does not outlive the thread.
#[test]
fn a_timer_that_is_left_at_the_end_lets_its_waker_go() {
    let mut threads = Threads::allocate(1);
    let held = Arc::new(());
    let inside = held.clone();
    let waker = waker_fn::waker_fn(move || _ = &inside);
    let mut nap = Box::pin(time::sleep(us(10)));
    let polled = threads.on(0, || nap.as_mut().poll(&mut Context::from_waker(&waker)));
    assert!(polled.is_pending());
    drop(waker);
    assert_eq!(Arc::strong_count(&held), 2);
    drop(threads.handle(0).exit());
    threads.poll_threads();
    assert!(threads.is_exited(0));
    assert_eq!(Arc::strong_count(&held), 1);
    drop(nap);
    threads.free();
}

spdk_thread_local!(static AT_THE_END: RefCell<Option<OnDrop<Box<dyn FnMut()>>>> = RefCell::default());

/// Nor does one that the destructor of a thread-local begins, which is among the last that
/// runs on the thread.
#[test]
fn a_timer_that_a_thread_local_leaves_lets_its_waker_go() {
    let mut threads = Threads::allocate(1);
    let held = Arc::new(OnDrop(|| panic!("as a waker's content may")));
    let waiting = Arc::downgrade(&held);
    let waker = waker_fn::waker_fn(move || _ = &held);
    let nap = Rc::new(RefCell::new(Box::pin(time::sleep(us(10)))));
    let begun = nap.clone();
    let mut waker = Some(waker);
    let begin = move || {
        let waker = waker.take().expect("once");
        let polled = begun
            .borrow_mut()
            .as_mut()
            .poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
    };
    threads.on(0, || {
        AT_THE_END.with(|slot| *slot.borrow_mut() = Some(OnDrop(Box::new(begin))))
    });
    drop(threads.handle(0).exit());
    threads.poll_threads();
    assert!(threads.is_exited(0));
    assert_eq!(waiting.strong_count(), 0);
    assert_eq!(threads.take_panics(), ["as a waker's content may"]);
    drop(nap);
    threads.free();
}

/// A task that holds its own handles and wakers goes like any other.
#[test]
fn a_task_that_holds_its_own_join_handle_is_dropped_once() {
    let mut threads = Threads::allocate(1);
    let drops = Rc::new(Cell::new(0));
    let own = Rc::new(Cell::new(None::<JoinHandle<()>>));
    let (counter, inside) = (drops.clone(), own.clone());
    let handle = threads.on(0, || {
        let held = OnDrop(move || counter.set(counter.get() + 1));
        task::spawn_local(poll_fn(move |cx| {
            let _ = &held;
            let mut mine = inside.take().unwrap();
            let polled = mine.poll_unpin(cx);
            inside.set(Some(mine));
            assert!(polled.is_pending());
            Poll::Pending
        }))
    });
    own.set(Some(handle));
    drop(own);
    threads.runner(0).poll(0, 0);
    threads.free();
    assert_eq!(drops.get(), 1);
}

/// G9. Each cancelled future spawns a task that cleans up, which is spared and runs.
#[test]
fn an_exit_cancels_so_many_tasks_per_poll_whatever_they_spawn() {
    const TASKS: usize = 5_000;
    let mut threads = Threads::allocate(1);
    let (dropped, cleaned) = (Runs::default(), Runs::default());
    for _ in 0..TASKS {
        let (dropped, cleaned) = (dropped.clone(), cleaned.clone());
        let held = OnDrop(move || {
            dropped.add();
            let cleaned = cleaned.clone();
            drop(task::spawn_local(async move { cleaned.add() }));
        });
        drop(spawn_holding(&mut threads, held));
    }
    threads.poll_threads();
    drop(threads.handle(0).exit());
    let mut most = 0;
    while !threads.is_exited(0) {
        threads.runner(0).poll(0, 0);
        most = most.max(dropped.take());
    }
    assert!((1..=256).contains(&most), "{most} in one poll");
    assert_eq!(cleaned.get(), TASKS as u64);
    threads.free();
}

/// A task that the exit is about to cancel is not run any more, though woken.
#[test]
fn a_task_that_waits_to_be_cancelled_is_not_polled() {
    let mut threads = Threads::allocate(1);
    let polls = Runs::default();
    for _ in 0..1_000 {
        let polls = polls.clone();
        threads.on(0, || {
            drop(task::spawn_local(async move {
                loop {
                    polls.add();
                    task::yield_now().await;
                }
            }))
        });
    }
    threads.runner(0).poll(0, 0);
    drop(threads.on(0, || SpdkThread::current().unwrap().exit()));
    threads.runner(0).poll(0, 0);
    polls.take();
    assert!(!threads.is_exited(0), "it takes several polls");
    for _ in 0..1_000 {
        threads.runner(0).poll(0, 0);
    }
    assert!(threads.is_exited(0));
    assert_eq!(polls.get(), 0);
    threads.free();
}

/// Also the forced end, of which a log line names a few.
#[test]
fn a_forced_exit_cancels_so_many_tasks_per_poll_and_names_what_held_it() {
    let (log, _guard) = Log::install();
    let mut threads = Threads::allocate(1);
    let dropped = Runs::default();
    drop(threads.handle(0).exit());
    threads.poll_threads();
    assert!(threads.is_exited(0), "nothing held it");
    assert_eq!(log.take(), [""; 0]);

    let runner = threads.library.thread().name("slow").build().unwrap();
    *threads.runner(0) = runner.attach();
    let poller = threads.on(0, || Poller::builder().name("watch").register(|| false));
    drop(threads.handle(0).exit());
    threads.runner(0).poll(0, 0);
    for _ in 0..1_000 {
        let dropped = dropped.clone();
        drop(spawn_holding(&mut threads, OnDrop(move || dropped.add())));
    }
    for _ in 0..1_000 {
        threads.runner(0).poll(0, 0);
    }
    threads.delay_us(5_000_000);
    let mut most = 0;
    while !threads.is_exited(0) {
        threads.runner(0).poll(0, 0);
        most = most.max(dropped.take());
    }
    assert!((1..=256).contains(&most), "{most} in one poll");
    let lines = log.take();
    assert_eq!(lines.len(), 1, "{lines:?}");
    let line = &lines[0];
    assert!(
        line.starts_with("ERROR exit timed out and is forced"),
        "{line}"
    );
    assert!(line.contains("held by: poller watch, task "), "{line}");
    assert!(
        line.contains("and 969 more") && line.contains("thread=\"slow\""),
        "{line}"
    );
    drop(poller);
    threads.free();
}

/// TH-039.
#[test]
fn a_runner_dropped_without_exit_names_what_it_leaves() {
    let (log, _guard) = Log::install();
    let mut threads = Threads::allocate(1);
    let named = threads.library.thread().name("left");
    *threads.runner(0) = named.build().unwrap().attach();
    log.take();
    let device = threads.on(0, || {
        IoDevice::builder()
            .name("disk")
            .register(|| Ok::<_, Infallible>(()))
    });
    let device = device.unwrap();
    let channel = threads.on(0, || device.channel()).unwrap();
    let poller = threads.on(0, || Poller::builder().name("watch").register(|| false));
    let task = threads.on(0, || {
        TaskBuilder::new()
            .name("request")
            .spawn_local(pending::<()>())
    });
    let other = threads.library.thread().build().unwrap().attach();
    drop(std::mem::replace(threads.runner(0), other));
    let lines = log.take();
    let left = lines
        .iter()
        .find(|line| line.contains("dropped without exit"));
    let line = left.unwrap_or_else(|| panic!("{lines:?}"));
    for part in [
        "WARN",
        "poller watch",
        "channel of disk",
        "task request",
        "\"left\"",
    ] {
        assert!(line.contains(part), "no {part} in {line}");
    }
    assert!(is_exited_error(task));
    drop((channel, poller, device));
    threads.free();
}

/// By how many: critical ones, its own and those from elsewhere, and no task.
#[test]
fn a_runner_dropped_without_exit_counts_the_messages_it_drops() {
    let (log, _guard) = Log::install();
    for messages in [0, 3] {
        let mut threads = Threads::allocate(1);
        let thread = threads.handle(0);
        threads.on(0, || drop(task::spawn_local(pending::<()>())));
        for _ in 0..messages {
            threads.on(0, || thread.send_msg(|| ()).unwrap());
        }
        if messages > 0 {
            thread.send_critical_msg(|| ()).unwrap();
        }
        for _ in 0..messages {
            thread.send_msg(|| ()).unwrap();
        }
        let spawned = thread.spawn(async {});
        log.take();
        let other = threads.library.thread().build().unwrap().attach();
        drop(std::mem::replace(threads.runner(0), other));
        let lines = log.take();
        let mut counted = lines.iter().filter(|line| line.contains("unrun="));
        if messages == 0 {
            assert_eq!(counted.next(), None);
        } else {
            let line = counted.next().unwrap_or_else(|| panic!("{lines:?}"));
            assert!(
                line.contains("unrun=7 ") || line.ends_with("unrun=7"),
                "{line}"
            );
        }
        assert!(is_exited_error(spawned));
        threads.free();
    }
}
