//! The driver itself: which one is current, what ends a sleep, and what a turn costs.

use std::cell::Cell;
use std::future::Future;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use corespun::io::raw::{opcode, squeue, types};
use corespun::io::{
    Backend, BackendChoice, Driver, DriverConfig, DriverError, PollFd, RawOp, unblock,
};
use futures::StreamExt;
use harness::io::{Loop, io_uring_permitted, on_every_backend, poll_once};
use harness::process::{in_a_process_of_its_own, refuse};
use nix::sys::eventfd::EventFd;

#[test]
fn the_forced_backend_is_the_one_that_runs() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let expected = match choice {
            BackendChoice::IoUring => Backend::IoUring,
            _ => Backend::Epoll,
        };
        assert_eq!(io.driver.backend(), expected);
    });
    let auto = Loop::new(BackendChoice::Auto);
    assert!(["io_uring", "epoll"].contains(&&*auto.driver.backend().to_string()));
}

#[test]
fn a_driver_is_current_while_its_guard_lives() {
    assert!(Driver::current().is_none());
    let driver = Driver::new(&DriverConfig::new()).unwrap();
    let guard = driver.enter();
    assert_eq!(
        Driver::current().unwrap().backend(),
        guard.driver().backend()
    );
    drop(guard);
    assert!(Driver::current().is_none());
    drop(driver.enter());
}

#[test]
#[should_panic(expected = "has entered an I/O driver already")]
fn entering_twice_panics() {
    let io = Loop::new(BackendChoice::Epoll);
    let _second = io.driver.enter();
}

#[test]
fn the_eventfd_ends_a_park_and_is_drained() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        for _ in 0..3 {
            io.wake.wake();
            io.wake.wake();
            assert_eq!(io.driver.park(None), 0);
            assert_eq!(io.take_wakes(), 0, "the eventfd was drained");
        }
        for _ in 0..3 {
            let wake = io.wake.clone();
            let waker = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(5));
                wake.wake();
            });
            assert_eq!(io.driver.park(None), 0);
            waker.join().unwrap();
            assert_eq!(io.take_wakes(), 0);
        }
    });
}

#[test]
fn a_wake_before_a_turn_still_ends_the_next_park() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let (_peer, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let ours = PollFd::new(ours).unwrap();
        let mut wait = pin!(ours.readable());
        assert!(poll_once(wait.as_mut()).is_pending());
        io.driver.park(Some(Duration::ZERO));
        io.wake.wake();
        io.driver.poll(); // something is in flight, so this looks, and may see the wake
        assert_eq!(io.driver.park(None), 0);
    });
}

#[test]
fn a_park_ends_not_before_its_time() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        for nanos in [1, 50_000, 1_500_000, 20_000_000] {
            let limit = Duration::from_nanos(nanos);
            let start = Instant::now();
            assert_eq!(io.driver.park(Some(limit)), 0);
            assert!(
                start.elapsed() >= limit,
                "{:?} < {limit:?}",
                start.elapsed()
            );
        }
        io.driver.park(Some(Duration::ZERO));
    });
}

#[test]
fn readiness_ends_a_park_and_wakes_its_task() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let (mut peer, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let ours = PollFd::new(ours).unwrap();
        let mut byte = [0];
        let mut read = pin!(ours.read_with(|mut fd| fd.read(&mut byte)));
        assert!(poll_once(read.as_mut()).is_pending());
        assert_eq!(io.driver.in_flight(), 1);
        let writer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(5));
            peer.write_all(b"x").unwrap();
            peer
        });
        assert_eq!(io.driver.park(None), 1);
        assert_eq!(io.driver.in_flight(), 0);
        let Poll::Ready(Ok(1)) = poll_once(read.as_mut()) else {
            panic!()
        };
        drop(writer.join().unwrap());
    });
}

#[test]
fn many_tasks_may_wait_for_one_descriptor() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let eventfd = PollFd::new(EventFd::from_value(0).unwrap()).unwrap();
        let mut first = Box::pin(eventfd.readable());
        let mut gone = Box::pin(eventfd.readable());
        assert!(poll_once(first.as_mut()).is_pending());
        assert!(poll_once(gone.as_mut()).is_pending());
        drop(gone);
        let others = (0..10).map(|_| eventfd.readable());
        let write = async { eventfd.get_ref().write(1).unwrap() };
        let waits = futures::future::join_all(others);
        let (woken, results, _) = io.block_on(async { futures::join!(first, waits, write) });
        woken.unwrap();
        assert!(results.iter().all(Result::is_ok));
        // A level: still readable, at once; after it was read, not.
        io.block_on(eventfd.readable()).unwrap();
        eventfd.get_ref().read().unwrap();
        assert!(poll_once(pin!(eventfd.readable())).is_pending());
    });
}

#[test]
fn a_writable_wait_ends_when_there_is_room() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let (mut peer, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let ours = PollFd::new(ours).unwrap();
        let chunk = [0; 4096];
        let mut sent = 0;
        while let Ok(count) = (&mut ours.get_ref()).write(&chunk) {
            sent += count;
        }
        let mut wait = pin!(ours.writable());
        assert!(poll_once(wait.as_mut()).is_pending());
        peer.read_exact(&mut vec![0; sent]).unwrap();
        io.block_on(wait).unwrap();
    });
}

#[test]
fn a_regular_file_is_always_ready() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let file = PollFd::new(tempfile::tempfile().unwrap()).unwrap();
        io.block_on(async {
            file.readable().await.unwrap();
            file.writable().await.unwrap();
        });
    });
}

#[test]
fn blocking_calls_run_elsewhere_and_give_their_value() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let here = std::thread::current().id();
        let (there, name) = io
            .block_on(unblock(|| {
                let thread = std::thread::current();
                (thread.id(), thread.name().unwrap().to_owned())
            }))
            .unwrap();
        assert_ne!(here, there);
        assert_eq!(name, "corespun-helper");
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            io.block_on(unblock(|| panic!("job")))
        }));
        assert_eq!(panic.unwrap_err().downcast_ref(), Some(&"job"));
        let many = (0..100).map(|i| unblock(move || i));
        let values = io.block_on(futures::future::join_all(many));
        assert!(values.into_iter().map(Result::unwrap).eq(0..100));
    });
}

#[test]
fn helper_threads_run_on_the_cpus_they_are_given_with_signals_blocked() {
    use corespun::cpu::{current_affinity, pin_current_thread};
    use nix::sys::signal::{SigSet, Signal};
    let all = current_affinity().unwrap();
    std::thread::spawn(move || {
        pin_current_thread(all.first().unwrap()).unwrap();
        let io = Loop::with(DriverConfig::new().helper_affinity(all));
        let (mask, signals) = io
            .block_on(unblock(move || {
                (
                    current_affinity().unwrap(),
                    SigSet::thread_get_mask().unwrap(),
                )
            }))
            .unwrap();
        assert!(mask == all);
        assert!(signals.contains(Signal::SIGINT) && signals.contains(Signal::SIGTERM));
        assert!(!SigSet::thread_get_mask().unwrap().contains(Signal::SIGINT));
    })
    .join()
    .unwrap();
}

#[test]
fn a_waker_may_use_the_driver_it_is_woken_by() {
    struct Reenter(AtomicBool);
    impl Wake for Reenter {
        fn wake(self: Arc<Self>) {
            let driver = Driver::current().unwrap();
            driver.poll();
            assert!(driver.in_flight() < 2);
            self.0.store(true, Ordering::Relaxed);
        }
    }
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let (mut peer, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let ours = PollFd::new(ours).unwrap();
        let reenter = Arc::new(Reenter(AtomicBool::new(false)));
        let waker = Waker::from(reenter.clone());
        let mut wait = pin!(ours.readable());
        assert!(
            wait.as_mut()
                .poll(&mut Context::from_waker(&waker))
                .is_pending()
        );
        peer.write_all(b"x").unwrap();
        while !reenter.0.load(Ordering::Relaxed) {
            io.driver.park(None);
        }
    });
}

#[test]
fn an_idle_poll_touches_nothing() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        io.wake.wake();
        assert_eq!((io.driver.poll(), io.driver.in_flight()), (0, 0));
        assert_eq!(io.take_wakes(), 1, "left for the park it is meant for");
    });
}

#[test]
fn drivers_leave_no_descriptors_or_threads() {
    // Other tests open descriptors meanwhile.
    in_a_process_of_its_own("drivers_leave_no_descriptors_or_threads", || {
        let count = |what| std::fs::read_dir(what).unwrap().count();
        let turn = || {
            on_every_backend(|choice| {
                let io = Loop::new(choice);
                io.block_on(unblock(|| ())).unwrap();
                let (a, b) = corespun::net::UnixStream::pair().unwrap();
                let mut receive = Box::pin(a.recv(vec![0; 64]));
                assert!(poll_once(receive.as_mut()).is_pending());
                io.driver.poll();
                io.end();
                drop(receive);
                drop((a, b));
            });
        };
        turn();
        let before = (count("/proc/self/fd"), count("/proc/self/task"));
        for _ in 0..20 {
            turn();
        }
        // The kernel tears a ring down after its close has returned, and nobody joins helper threads:
        // also `before` may count some that are about to go.
        let more = || count("/proc/self/fd") > before.0 || count("/proc/self/task") > before.1;
        let begun = Instant::now();
        while more() && begun.elapsed() < harness::PATIENCE {
            std::thread::sleep(Duration::from_millis(10));
        }
        let after = (count("/proc/self/fd"), count("/proc/self/task"));
        assert!(!more(), "{before:?}, after twenty turns {after:?}");
    });
}

fn ring() -> Option<Loop> {
    io_uring_permitted().then(|| Loop::new(BackendChoice::IoUring))
}

#[test]
fn raw_operations_complete_with_what_they_keep() {
    let Some(io) = ring() else { return };
    let (mut peer, ours) = UnixStream::pair().unwrap();
    peer.write_all(b"raw").unwrap();
    let mut buf = vec![0u8; 8];
    let entry = opcode::Recv::new(types::Fd(ours.as_raw_fd()), buf.as_mut_ptr(), 8).build();
    // SAFETY: the vector's bytes and the descriptor are kept.
    let receive = unsafe { io.driver.submit_raw(entry, (buf, ours)) }.unwrap();
    let (completion, (buf, _)) = io.block_on(receive);
    assert_eq!(
        (completion.into_result().unwrap(), &buf[..3]),
        (3, &b"raw"[..])
    );
}

#[test]
fn a_dropped_raw_operation_is_cancelled_and_keeps_its_memory_until_then() {
    let Some(io) = ring() else { return };
    let (_peer, ours) = UnixStream::pair().unwrap();
    let alive = Rc::new(Cell::new(true));
    struct Flag(Rc<Cell<bool>>);
    impl Drop for Flag {
        fn drop(&mut self) {
            self.0.set(false);
        }
    }
    let mut buf = vec![0u8; 8];
    let entry = opcode::Recv::new(types::Fd(ours.as_raw_fd()), buf.as_mut_ptr(), 8).build();
    let keep = (buf, ours, Flag(alive.clone()));
    // SAFETY: the vector's bytes and the descriptor are kept.
    let mut receive = Box::pin(unsafe { io.driver.submit_raw(entry, keep) }.unwrap());
    assert!(poll_once(receive.as_mut()).is_pending());
    io.driver.poll();
    drop(receive);
    assert!(alive.get());
    io.settle();
    assert!(!alive.get());
}

#[test]
fn dropping_the_driver_cancels_raw_operations() {
    let Some(io) = ring() else { return };
    let (_peer, ours) = UnixStream::pair().unwrap();
    let mut buf = vec![0u8; 8];
    let entry = opcode::Recv::new(types::Fd(ours.as_raw_fd()), buf.as_mut_ptr(), 8).build();
    // SAFETY: the vector's bytes and the descriptor are kept.
    let mut receive = pin!(unsafe { io.driver.submit_raw(entry, (buf, ours)) }.unwrap());
    io.end();
    let Poll::Ready((completion, _)) = poll_once(receive.as_mut()) else {
        panic!()
    };
    assert_eq!(completion.result, -libc::ECANCELED);
}

#[test]
fn what_an_abandoned_raw_operation_created_is_released() {
    let Some(io) = ring() else { return };
    let closed = Rc::new(Cell::new(0));
    let path = c"/dev/null";
    let entry = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).build();
    // SAFETY: the path is static.
    let open = unsafe { io.driver.submit_raw(entry, closed.clone()) }.unwrap();
    let open = open.on_abandon(|closed, completion| {
        if completion.result >= 0 {
            // SAFETY: the kernel gave us this descriptor and nobody else knows it.
            drop(unsafe { OwnedFd::from_raw_fd(completion.result) });
            closed.set(closed.get() + 1);
        }
    });
    io.settle();
    drop(open);
    assert_eq!(closed.get(), 1);
}

#[test]
fn a_multi_shot_operation_is_a_stream() {
    let Some(io) = ring() else { return };
    let eventfd = Rc::new(EventFd::from_value(0).unwrap());
    let entry = opcode::PollAdd::new(types::Fd(eventfd.as_raw_fd()), libc::POLLIN as u32)
        .multi(true)
        .build();
    // SAFETY: the descriptor is kept.
    let mut polls = unsafe { io.driver.submit_raw_multi(entry, eventfd.clone()) }.unwrap();
    io.block_on(async {
        for _ in 0..3 {
            eventfd.write(1).unwrap();
            assert!(polls.next().await.unwrap().result > 0);
            eventfd.read().unwrap();
        }
    });
    assert_eq!(io.driver.in_flight(), 1);
    drop(polls);
    io.settle();
    assert_eq!(Rc::strong_count(&eventfd), 1);
}

#[test]
fn raw_operations_are_refused_on_epoll() {
    let io = Loop::new(BackendChoice::Epoll);
    // SAFETY: a no-op refers to nothing.
    let refused = unsafe { io.driver.submit_raw(opcode::Nop::new().build(), ()) };
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::Unsupported);
}

#[test]
fn where_io_uring_is_refused_the_driver_falls_back() {
    std::thread::spawn(|| {
        refuse(libc::SYS_io_uring_setup);
        let forced = DriverConfig::new().backend(BackendChoice::IoUring);
        let error = Driver::new(&forced).unwrap_err();
        assert!(matches!(error, DriverError::IoUringRefused(_)), "{error}");
        assert!(error.to_string().contains("BackendChoice::Auto"), "{error}");
        let io = Loop::new(BackendChoice::Auto);
        assert_eq!(io.driver.backend(), Backend::Epoll);
        assert_eq!(io.block_on(unblock(|| 7)).unwrap(), 7);
    })
    .join()
    .unwrap();
}

#[test]
fn where_aio_is_refused_too_direct_files_use_helper_threads() {
    std::thread::spawn(|| {
        refuse(libc::SYS_io_setup);
        let io = Loop::new(BackendChoice::Epoll);
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        io.block_on(async {
            let mut options = corespun::fs::OpenOptions::new();
            options.read(true).write(true).create(true).direct(true);
            let Ok(file) = options.open(dir.path().join("f")).await else {
                return;
            };
            let mut buf = io.driver.buffer(4096);
            buf.fill(0x5a);
            let (result, buf) = file.write_all_at(buf, 8192).await;
            result.unwrap();
            let (result, buf) = file.read_exact_at(buf, 8192).await;
            result.unwrap();
            assert!(buf.iter().all(|&byte| byte == 0x5a));
        });
    })
    .join()
    .unwrap();
}

#[test]
fn a_park_without_practical_limit_is_legal() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        for limit in [Duration::MAX, Duration::from_secs(1 << 40)] {
            let start = Instant::now();
            let wake = io.wake.clone();
            let waker = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(5));
                wake.wake();
            });
            io.driver.park(Some(limit));
            assert!(start.elapsed() >= Duration::from_millis(5), "it did sleep");
            waker.join().unwrap();
        }
    });
}

/// The number of a slot goes to the next operation as soon as this one's result was taken: a future
/// that is asked again must not ask for it.
#[test]
fn a_raw_operation_polled_after_its_completion_touches_no_other_operation() {
    let Some(io) = ring() else { return };
    // SAFETY: a no-op refers to nothing.
    let mut done = pin!(unsafe { io.driver.submit_raw(opcode::Nop::new().build(), ()) }.unwrap());
    io.settle();
    assert!(poll_once(done.as_mut()).is_ready());

    let (mut peer, ours) = UnixStream::pair().unwrap();
    let mut buf = vec![0u8; 8];
    let entry = opcode::Recv::new(types::Fd(ours.as_raw_fd()), buf.as_mut_ptr(), 8).build();
    // SAFETY: the vector's bytes and the descriptor are kept.
    let mut victim = Box::pin(unsafe { io.driver.submit_raw(entry, (buf, ours)) }.unwrap());
    let woken = Arc::new(AtomicBool::new(false));
    let flag = woken.clone();
    let waker = waker_fn::waker_fn(move || flag.store(true, Ordering::Relaxed));
    let pending = victim.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(pending.is_pending());

    let again = |done: Pin<&mut RawOp<()>>| {
        let polled = std::panic::AssertUnwindSafe(|| poll_once(done).is_ready());
        std::panic::catch_unwind(polled).map_err(|panic| panic.downcast::<&str>().ok())
    };
    // While the victim is in flight, and once its result lies there.
    for complete in [false, true] {
        if complete {
            peer.write_all(b"victim").unwrap();
            io.settle();
        }
        let Err(Some(message)) = again(done.as_mut()) else {
            panic!("it asked for another operation's result")
        };
        assert!(message.contains("polled after it completed"), "{message}");
    }
    assert!(
        woken.load(Ordering::Relaxed),
        "the victim's waker is its own"
    );
    let Poll::Ready((completion, (buf, _))) = poll_once(victim.as_mut()) else {
        panic!("its result was taken")
    };
    assert_eq!((completion.result, &buf[..6]), (6, &b"victim"[..]));
}

/// Taken by nobody: those that were there when the stream was dropped, and those that came later. One
/// release panics, and the others are released all the same.
#[test]
fn what_an_abandoned_raw_stream_created_is_released_each_time() {
    if !io_uring_permitted() {
        return;
    }
    // With so short a queue the cancellation has to wait, and the kernel goes on accepting.
    let config = DriverConfig::new().backend(BackendChoice::IoUring);
    let io = Loop::with(config.entries(1));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let connect = |_| {
        let client = std::net::TcpStream::connect(address).unwrap();
        let limit = Duration::from_secs(20);
        client.set_read_timeout(Some(limit)).unwrap();
        client
    };
    let mut clients: Vec<_> = (0..4).map(connect).collect();
    let released = Rc::new(Cell::new(0));
    let entry = opcode::AcceptMulti::new(types::Fd(listener.as_raw_fd())).build();
    let keep = (listener, released.clone());
    // SAFETY: the listener is kept.
    let accepts = unsafe { io.driver.submit_raw_multi(entry, keep) }.unwrap();
    let mut accepts = accepts.on_abandon(|(_, released), completion| {
        if completion.result >= 0 {
            // SAFETY: the kernel gave us this descriptor and nobody else knows it.
            drop(unsafe { OwnedFd::from_raw_fd(completion.result) });
            released.set(released.get() + 1);
            assert_ne!(released.get(), 2, "the second one panics");
        }
    });
    io.block_on(async {
        let first = accepts.next().await.unwrap().into_result().unwrap();
        // SAFETY: as above.
        drop(unsafe { OwnedFd::from_raw_fd(first as i32) });
    });
    io.driver.poll();
    clients.extend((0..4).map(connect));
    // SAFETY: a no-op refers to nothing.
    let nop = |_| unsafe { io.driver.submit_raw(opcode::Nop::new().build(), ()) };
    let before: Vec<_> = (0..3).map(nop).collect();
    drop(accepts);
    assert_eq!(released.get(), 0, "not while the driver may still be asked");
    io.settle();
    assert_eq!(Rc::strong_count(&released), 1, "the listener is closed too");
    drop(before);
    // None is left open: released, or never accepted and ended by the listener's end.
    for mut client in clients {
        let ended = client.read(&mut [0]);
        let open = ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        assert!(!open, "an accepted descriptor was leaked");
    }
    assert!(released.get() >= 3, "{}", released.get());
}

/// Wakers and destructors are foreign code: what one of them does is not the others' loss.
#[test]
fn a_waker_or_destructor_that_panics_costs_the_turns_others_nothing() {
    struct Panics;
    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("in wake");
        }
    }
    struct PanicsToo(Vec<u8>);
    impl Drop for PanicsToo {
        fn drop(&mut self) {
            panic!("in drop");
        }
    }
    // SAFETY: the vector's.
    unsafe impl corespun::io::IoBuf for PanicsToo {
        fn stable_ptr(&self) -> *const u8 {
            self.0.as_ptr()
        }
        fn bytes_init(&self) -> usize {
            self.0.len()
        }
    }
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let pairs: Vec<_> = (0..5).map(|_| UnixStream::pair().unwrap()).collect();
        let (mut peers, ours): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let ours: Vec<_> = ours
            .into_iter()
            .map(|end| {
                end.set_nonblocking(true).unwrap();
                PollFd::new(end).unwrap()
            })
            .collect();
        let mut waits: Vec<_> = ours.iter().map(|end| Box::pin(end.readable())).collect();
        let woken: Vec<_> = (0..5).map(|_| Arc::new(AtomicBool::new(false))).collect();
        for (index, wait) in waits.iter_mut().enumerate() {
            let flag = woken[index].clone();
            let waker = match index {
                0 | 2 => Waker::from(Arc::new(Panics)),
                _ => waker_fn::waker_fn(move || flag.store(true, Ordering::Relaxed)),
            };
            let polled = wait.as_mut().poll(&mut Context::from_waker(&waker));
            assert!(polled.is_pending());
        }
        // A write whose buffer panics when it is dropped, which the driver does.
        let file = corespun::fs::File::from_std(tempfile::tempfile().unwrap()).unwrap();
        let mut write = Box::pin(file.write_at(PanicsToo(vec![7; 512]), 0));
        assert!(poll_once(write.as_mut()).is_pending());
        drop(write);
        io.driver.poll();
        for peer in &mut peers {
            peer.write_all(b"x").unwrap();
        }
        io.settle();
        let woken: Vec<_> = woken
            .iter()
            .map(|one| one.load(Ordering::Relaxed))
            .collect();
        assert_eq!(woken, [false, true, false, true, true]);
        io.end();
    });
}

/// The kernel ends a chain with the system call that submits it: it goes as a whole, wherever in the
/// queue it begins.
#[test]
fn a_chain_of_raw_entries_stays_linked_however_full_the_queue_is() {
    if !io_uring_permitted() {
        return;
    }
    let config = DriverConfig::new().backend(BackendChoice::IoUring);
    let io = Loop::with(config.entries(4));
    let nop = || opcode::Nop::new().build();
    // Fails, and so do those that are linked to it.
    let failing = || opcode::Fsync::new(types::Fd(-1)).build();
    for already_queued in 0..10 {
        for chains in 1..3 {
            // SAFETY: nothing is referred to.
            let before: Vec<_> = (0..already_queued)
                .map(|_| unsafe { io.driver.submit_raw(nop(), ()) }.unwrap())
                .collect();
            let chain = || vec![(failing(), 'a'), (nop(), 'b'), (nop(), 'c')];
            // SAFETY: as above.
            let chained: Vec<_> = (0..chains)
                .flat_map(|_| unsafe { io.driver.submit_raw_chain(chain()) }.unwrap())
                .collect();
            // SAFETY: as above.
            let after = unsafe { io.driver.submit_raw(nop(), ()) }.unwrap();
            let done = io.block_on(futures::future::join_all(chained));
            for ended in done.chunks(3) {
                let ended: Vec<_> = ended
                    .iter()
                    .map(|(done, kept)| (done.result, *kept))
                    .collect();
                let expected = [-libc::EBADF, -libc::ECANCELED, -libc::ECANCELED];
                assert_eq!(
                    ended,
                    expected.into_iter().zip("abc".chars()).collect::<Vec<_>>()
                );
            }
            for (other, ()) in io.block_on(futures::future::join_all(before)) {
                assert_eq!(other.result, 0);
            }
            assert_eq!(io.block_on(after).0.result, 0);
        }
    }
    // Behind a hard link they go on.
    let hard = failing().flags(squeue::Flags::IO_HARDLINK);
    // SAFETY: as above.
    let chain = unsafe { io.driver.submit_raw_chain(vec![(hard, ()), (nop(), ())]) }.unwrap();
    let done = io.block_on(futures::future::join_all(chain));
    assert_eq!((done[0].0.result, done[1].0.result), (-libc::EBADF, 0));
    assert!(
        // SAFETY: as above.
        unsafe { io.driver.submit_raw_chain(Vec::<(_, ())>::new()) }
            .unwrap()
            .is_empty()
    );
    assert_eq!(io.driver.in_flight(), 0);
}

#[test]
fn raw_entries_that_would_lose_their_link_or_never_complete_are_refused() {
    if !io_uring_permitted() {
        return;
    }
    let config = DriverConfig::new().backend(BackendChoice::IoUring);
    let io = Loop::with(config.entries(4));
    let with = |flags| opcode::Nop::new().build().flags(flags);
    let refused = |error: std::io::Error, what: &str| {
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains(what), "{error}");
    };
    for flags in [squeue::Flags::IO_LINK, squeue::Flags::IO_HARDLINK] {
        // SAFETY: a no-op refers to nothing.
        let lone = unsafe { io.driver.submit_raw(with(flags), ()) };
        refused(lone.unwrap_err(), "submit_raw_chain");
        // SAFETY: a no-op refers to nothing.
        let lone = unsafe { io.driver.submit_raw_multi(with(flags), ()) };
        refused(lone.unwrap_err(), "submit_raw_chain");
        let open_end = vec![(with(flags), ()), (with(flags), ())];
        // SAFETY: a no-op refers to nothing.
        let chain = unsafe { io.driver.submit_raw_chain(open_end) };
        refused(chain.unwrap_err(), "submit_raw_chain");
    }
    let silent = squeue::Flags::SKIP_SUCCESS;
    // SAFETY: a no-op refers to nothing.
    let lone = unsafe { io.driver.submit_raw(with(silent), ()) };
    refused(lone.unwrap_err(), "SKIP_SUCCESS");
    let chain = vec![(with(silent), ()), (with(squeue::Flags::empty()), ())];
    // SAFETY: a no-op refers to nothing.
    let chain = unsafe { io.driver.submit_raw_chain(chain) };
    refused(chain.unwrap_err(), "SKIP_SUCCESS");
    let long = (0..5).map(|_| (with(squeue::Flags::empty()), ()));
    // SAFETY: a no-op refers to nothing.
    let chain = unsafe { io.driver.submit_raw_chain(long.collect()) };
    refused(chain.unwrap_err(), "queue of 4");
    assert_eq!(io.driver.in_flight(), 0);
}

/// A waker whose destructor panics.
struct PanicOnDrop;

impl Wake for PanicOnDrop {
    fn wake(self: Arc<Self>) {}
}

impl Drop for PanicOnDrop {
    fn drop(&mut self) {
        std::panic::resume_unwind(Box::new("a destructor"));
    }
}

/// Of two that panic at once the process would die.
#[test]
fn the_wakers_of_a_dropped_source_may_panic() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let (_peer, socket) = UnixStream::pair().unwrap();
        let socket = PollFd::new(socket).unwrap();
        let blocks =
            |_: &UnixStream| -> std::io::Result<()> { Err(std::io::ErrorKind::WouldBlock.into()) };
        // The last of each kept as the one to wake.
        for poll in [PollFd::poll_read_with, PollFd::poll_write_with] {
            let waker = Waker::from(Arc::new(PanicOnDrop));
            assert!(poll(&socket, &mut Context::from_waker(&waker), blocks).is_pending());
        }
        drop(socket);
        io.settle();
        io.end();
    });
}
