//! G5: a thread that holds `!Send` values is not moved to another OS thread; one
//! that does not moves with its messages, timers and tasks, and loses nothing.

use std::cell::Cell;
use std::convert::Infallible;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use corespun::channel::IoDevice;
use corespun::clock::Clock;
use corespun::interrupt::Readiness;
use corespun::stream::PollerStream;
use corespun::thread::{
    Interrupt, Poller, PollerState, ThreadLib, ThreadRunner, register_post_poller_handler,
};
use corespun::{mpsc, spdk_thread_local, task, time};
use harness::threads::us;

fn attached() -> ThreadRunner {
    ThreadLib::new().thread().build().unwrap().attach()
}

fn stays(runner: ThreadRunner) -> ThreadRunner {
    assert!(!runner.can_move());
    runner.park().unwrap_err()
}

#[test]
fn a_local_task_binds_its_thread_until_it_ends() {
    let mut runner = attached();
    let handle = runner.enter(|| task::spawn_local(std::future::pending::<()>()));
    runner = stays(runner);
    runner.poll(0, 0);
    runner = stays(runner);
    handle.abort();
    runner = stays(runner);
    runner.poll(0, 0);
    drop(runner.park().unwrap());
}

#[test]
fn a_task_of_a_factory_binds_its_thread_once_it_is_made() {
    let runner = attached();
    let handle = runner.handle().spawn_with(std::future::pending::<()>);
    // The factory is `Send`, and moves.
    let mut runner = runner.park().unwrap().attach();
    runner.poll(0, 0);
    runner = stays(runner);
    handle.abort();
    runner.poll(0, 0);
    drop(runner.park().unwrap());
}

#[test]
fn a_poller_binds_its_thread_and_so_does_its_handle() {
    let mut runner = attached();
    let poller = runner.enter(|| Poller::active(|| ()).unwrap());
    runner = stays(runner);
    poller.pause();
    runner.poll(0, 0);
    runner = stays(runner);
    drop(poller);
    let mut runner = runner.park().unwrap().attach();
    runner.enter(|| Poller::active(|| ()).unwrap().detach());
    drop(stays(runner));
}

/// Whatever else refers to what is here.
#[test]
fn a_receiver_a_spawner_and_a_poller_stream_bind_their_thread_while_they_live() {
    let mut runner = attached();
    let (sender, receiver) = runner.enter(|| mpsc::channel::<u8>(1));
    runner = stays(runner);
    drop(receiver);
    let mut runner = runner.park().unwrap().attach();
    let spawner = runner.enter(task::LocalSpawner::current);
    runner = stays(runner);
    drop(spawner);
    let mut runner = runner.park().unwrap().attach();
    let stream = runner.enter(|| PollerStream::active(|| Some(())));
    runner = stays(runner);
    drop(stream);
    let mut runner = runner.park().unwrap().attach();
    // What may cross does not.
    let (handle, call) = (runner.handle(), runner.handle().call(|| ()));
    let movable = runner.enter(|| task::spawn_movable(std::future::pending::<()>()));
    runner.poll(0, 0);
    drop(runner.park().unwrap());
    assert!(movable.is_finished());
    drop((sender, handle, call));
}

/// The exit cancels tasks that were never polled; their futures are still here
/// until the poll that drops them.
#[test]
fn a_local_task_that_the_exit_cancelled_unpolled_binds_until_dropped() {
    let mut runner = attached();
    let witness = Rc::new(());
    let thread = runner.handle();
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let mine = witness.clone();
            runner.enter(|| task::spawn_local(async move { drop(mine) }))
        })
        .collect();
    runner.enter(|| drop(thread.exit()));
    runner.poll(1, 0);
    while Rc::strong_count(&witness) > 1 {
        runner = stays(runner);
        runner.poll(1, 0);
    }
    assert!(tasks.iter().all(|task| task.is_finished()));
    runner.poll(1, 0);
    assert!(thread.is_exited());
    drop(runner.park().unwrap());
}

/// The same where the exit ends at once.
#[test]
fn dropping_a_runner_drops_unpolled_local_tasks_here() {
    let mut runner = attached();
    let witness = Rc::new(());
    let mine = witness.clone();
    let task = runner.enter(|| task::spawn_local(async move { drop(mine) }));
    drop(runner);
    assert_eq!(Rc::strong_count(&witness), 1);
    assert!(task.is_finished());
}

#[test]
fn a_send_only_thread_moves_with_all_it_holds() {
    let (clock, hand) = Clock::virtual_at(1_000_000);
    let library = ThreadLib::builder().clock(clock).build();
    let builder = library.thread().ring(2);
    let mut runner = builder.build().unwrap().attach();
    let thread = runner.handle();
    let ran = Arc::new(AtomicUsize::new(0));
    let count = || {
        let ran = ran.clone();
        move || {
            ran.fetch_add(1, Ordering::Relaxed);
        }
    };
    let (sleeper, foreign, ready) = runner.enter(|| {
        let sleeper = task::spawn(async {
            time::sleep(us(100)).await;
            thread::current().id()
        });
        let (send, receive) = futures::channel::oneshot::channel::<u8>();
        drop(task::spawn(async move {
            let _ = receive.await;
        }));
        (sleeper, send, task::spawn(std::future::ready(())))
    });
    runner.poll(2, 0);
    // In the ring, in the spill, and in the owner's own queue.
    for _ in 0..5 {
        thread.send_msg(count()).unwrap();
    }
    runner.enter(|| thread.send_msg(count()).unwrap());
    assert!(runner.can_move());
    let parked = runner.park().unwrap();

    // Between two OS threads it still takes messages.
    thread.send_msg(count()).unwrap();
    drop(foreign);
    let elsewhere = thread::spawn(move || {
        let mut runner = parked.attach();
        while runner.poll(0, 0).is_busy() {}
        assert_eq!(ran.load(Ordering::Relaxed), 7);
        assert!(ready.is_finished());
        assert_eq!(runner.next_deadline(), Some(100));
        hand.advance(100);
        while runner.poll(0, 0).is_busy() {}
        drop(thread.exit());
        while !thread.is_exited() {
            runner.poll(0, 0);
        }
        thread::current().id()
    })
    .join()
    .unwrap();
    let ran_on = futures::executor::block_on(sleeper).unwrap();
    assert_eq!(ran_on, elsewhere);
}

/// Whatever a thread keeps of the program's is counted where it is kept, as long
/// as it is kept: no handle of it has to live for that.
#[test]
fn each_value_that_a_thread_keeps_binds_it() {
    spdk_thread_local! {
        static KEPT: Rc<()> = Rc::new(());
        static in send SENT: u8 = 1;
    }

    let mut runner = attached();
    let witness = Rc::new(());
    let mine = witness.clone();
    runner
        .enter(|| register_post_poller_handler(move || drop(mine)))
        .unwrap();
    runner = stays(runner);
    let poller = runner.enter(|| Poller::active(|| ()).unwrap());
    runner.poll(0, 0);
    drop(poller);
    let mut runner = runner.park().unwrap().attach();

    let device = runner.enter(|| IoDevice::builder().register(|| Ok::<_, Infallible>(Rc::new(()))));
    let device = device.unwrap();
    let channel = runner.enter(|| device.channel().unwrap());
    drop(channel);
    // Until the message that destroys it has run.
    runner = stays(runner);
    runner.poll(0, 0);
    let mut runner = runner.park().unwrap().attach();

    let (mine, other) = (witness.clone(), runner.handle().library());
    let mut walked = other.thread().build().unwrap().attach();
    let held = walked.enter(|| device.channel().unwrap());
    runner.enter(|| device.unregister_with(move || drop(mine)).unwrap());
    runner = stays(runner);
    drop(held);
    while walked.poll(0, 0).max(runner.poll(0, 0)).is_busy() {}
    let mut runner = runner.park().unwrap().attach();

    runner.enter(|| SENT.with(|value| assert_eq!(*value, 1)));
    let mut runner = runner.park().unwrap().attach();
    runner.enter(|| KEPT.with(|value| assert_eq!(Rc::strong_count(value), 1)));
    drop(stays(runner));
    assert_eq!(Rc::strong_count(&witness), 1);
}

/// A hook for a poller that will never run again has nothing to wait for.
#[test]
fn a_hook_set_on_an_unregistered_poller_is_dropped_at_once() {
    let mut runner = attached();
    let witness = Rc::new(());
    let poller = runner.enter(|| Poller::active(|| -> () { panic!("ends") }).unwrap());
    runner.poll(0, 0);
    assert_eq!(poller.state(), PollerState::Unregistered);
    let mine = witness.clone();
    poller.set_interrupt(move |_| assert_eq!(Rc::strong_count(&mine), 2));
    assert_eq!(Rc::strong_count(&witness), 1);
    drop(poller);
    drop(runner.park().unwrap());
}

/// Nor has a hook that has ended its own poller.
#[test]
fn a_hook_that_drops_its_own_poller_is_dropped_when_it_returns() {
    let mut runner = attached();
    let witness = Rc::new(());
    let poller = Rc::new(Cell::new(None));
    let made = runner.enter(|| Poller::active(|| ()).unwrap());
    let (mine, own) = (witness.clone(), poller.clone());
    made.set_interrupt(move |_| {
        drop(own.take());
        assert_eq!(Rc::strong_count(&mine), 2);
    });
    poller.set(Some(made));
    runner.set_interrupt_mode(true).unwrap();
    assert_eq!(Rc::strong_count(&witness), 1);
    assert!(poller.take().is_none());
    drop(runner.park().unwrap());
}

/// A descriptor that answers differently each time it is asked is watched by
/// its first answer, until its `Interrupt` is gone.
#[test]
fn an_interrupt_is_gone_with_its_handle_whatever_its_descriptor_answers() {
    struct Fickle {
        sockets: [UnixStream; 2],
        asked: Cell<usize>,
    }
    impl AsFd for Fickle {
        fn as_fd(&self) -> BorrowedFd<'_> {
            let asked = self.asked.replace(self.asked.get() + 1);
            self.sockets[asked % 2].as_fd()
        }
    }

    let mut runner = attached();
    let witness = Rc::new(());
    let (here, there) = UnixStream::pair().unwrap();
    let other = there.try_clone().unwrap();
    let mine = witness.clone();
    let interrupt = runner.enter(|| {
        let sockets = [there, other];
        let asked = Cell::new(0);
        let called = move |_: Readiness| assert_eq!(Rc::strong_count(&mine), 2);
        Interrupt::register(Fickle { sockets, asked }, called).unwrap()
    });
    (&here).write_all(b"x").unwrap();
    assert!(runner.poll(0, 0).is_busy());
    runner = stays(runner);
    runner.enter(|| drop(interrupt));
    assert_eq!(Rc::strong_count(&witness), 1);
    assert!(!runner.poll(0, 0).is_busy());
    drop(runner.park().unwrap());
}
