//! A driver that cannot be used: the kernel refuses to serve it, from the start or from some moment
//! on, or the process is a forked child of the one that made it. Each use is a clear error; nothing
//! spins, crashes, or reaches what belongs to somebody else.

use std::future::Future;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use corespun::app::{App, AppError, AppHandle};
use corespun::fs::File;
use corespun::io::raw::{opcode, types};
use corespun::io::{Backend, BackendChoice, Driver, DriverConfig, DriverError, PollFd, unblock};
use corespun::net::UnixStream;
use corespun::reactor::ReactorMode;
use corespun::task::CallError;
use corespun::thread::ThreadLib;
use corespun::time;
use futures::executor::block_on;
use harness::io::{Loop, io_uring_permitted, on_every_backend, poll_once};
use harness::process::{in_a_process_of_its_own, refuse};
use nix::sys::eventfd::EventFd;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::ForkResult;

/// The call that each back-end cannot do without.
fn entrance(choice: BackendChoice) -> Vec<libc::c_long> {
    match choice {
        BackendChoice::IoUring => vec![libc::SYS_io_uring_enter],
        _ => vec![libc::SYS_epoll_wait, libc::SYS_epoll_pwait],
    }
}

/// A filter that permits to make a ring and refuses to enter it decides as one that refuses the ring.
#[test]
fn a_ring_that_cannot_be_entered_is_not_chosen() {
    if !io_uring_permitted() {
        return;
    }
    std::thread::spawn(|| {
        refuse(libc::SYS_io_uring_enter);
        let forced = DriverConfig::new().backend(BackendChoice::IoUring);
        let error = Driver::new(&forced).unwrap_err();
        assert!(matches!(error, DriverError::IoUringRefused(_)), "{error}");
        let io = Loop::new(BackendChoice::Auto);
        assert_eq!(io.driver.backend(), Backend::Epoll);
        let (a, b) = UnixStream::pair().unwrap();
        io.block_on(async {
            a.send_all("works").await.0.unwrap();
            assert_eq!(b.recv_exact(vec![0; 5]).await.1, b"works");
        });
    })
    .join()
    .unwrap();
}

/// Whatever was in flight at that moment: waits and what the kernel has not seen end, and nothing
/// keeps the driver from ending.
#[test]
fn once_the_kernel_refuses_every_operation_says_so() {
    on_every_backend(|choice| {
        let (io, dir) = (Loop::new(choice), tempfile::tempdir().unwrap());
        let path = dir.path().join("f");
        std::fs::write(&path, [7; 4096]).unwrap();
        let file = io.block_on(File::open(&path)).unwrap();
        let (ours, _peer) = UnixStream::pair().unwrap();
        let mut waiting = Box::pin(ours.recv(vec![0; 8]));
        assert!(poll_once(waiting.as_mut()).is_pending());
        io.driver.poll();
        assert!(io.driver.failure().is_none());

        entrance(choice).into_iter().for_each(refuse);
        // Polled by hand: not read on the spot.
        let [unseen, late] = [0, 8].map(|offset| {
            let mut reading = Box::pin(file.read_at(vec![0; 8], offset));
            assert!(poll_once(reading.as_mut()).is_pending());
            reading
        });
        // What was read at once from memory, on epoll, comes yet.
        let (_, (read, _)) = io.block_on(futures::future::join(unseen, late));
        io.driver.park(Some(Duration::from_millis(1)));
        let failure = io.driver.failure().expect("the kernel refuses");
        assert_eq!(failure.kind(), std::io::ErrorKind::PermissionDenied);
        assert!(
            failure.to_string().contains("the kernel refuses"),
            "{failure}"
        );
        match choice {
            BackendChoice::IoUring => assert_eq!(
                read.unwrap_err().raw_os_error(),
                Some(libc::ECANCELED),
                "the kernel has not seen it"
            ),
            _ => assert_eq!(read.unwrap(), 8),
        }
        let told = |error: std::io::Error| assert_eq!(error.to_string(), failure.to_string());
        told(io.block_on(waiting).0.unwrap_err());
        told(io.block_on(ours.send("x")).0.unwrap_err());
        told(io.block_on(file.read_at(vec![0; 8], 0)).0.unwrap_err());
        told(io.block_on(File::open(&path)).unwrap_err());
        told(io.block_on(unblock(|| ())).unwrap_err());
        told(PollFd::new(EventFd::new().unwrap()).unwrap_err());
        // A sleep is a sleep, and ends as any other.
        io.wake.wake();
        assert_eq!(io.driver.park(None), 0);
        assert_eq!(io.take_wakes(), 0, "the eventfd was drained");
        io.end();
        drop((ours, file));
    });
}

/// The kernel may yet write there: nobody is left to say that it does not.
#[test]
fn what_the_kernel_had_begun_stays_pending_and_its_memory_is_kept() {
    if !io_uring_permitted() {
        return;
    }
    let name = "what_the_kernel_had_begun_stays_pending_and_its_memory_is_kept";
    in_a_process_of_its_own(name, || {
        let io = Loop::new(BackendChoice::IoUring);
        let alive = Rc::new(());
        let receive = || {
            let (end, other) = StdUnixStream::pair().unwrap();
            let mut buf = vec![0u8; 8];
            let entry = opcode::Recv::new(types::Fd(end.as_raw_fd()), buf.as_mut_ptr(), 8).build();
            let keep = (buf, end, other, alive.clone());
            // SAFETY: the vector's bytes and the descriptor are kept.
            Box::pin(unsafe { io.driver.submit_raw(entry, keep) }.unwrap())
        };
        let (before, mut after) = (receive(), receive());
        io.driver.poll();
        let unseen = receive();
        refuse(libc::SYS_io_uring_enter);
        io.driver.park(Some(Duration::from_millis(1)));
        assert!(io.driver.failure().is_some());
        assert_eq!(io.block_on(unseen).0.result, -libc::ECANCELED);
        assert!(poll_once(after.as_mut()).is_pending());
        // Dropped while there is a driver, and when there is none.
        drop(before);
        io.end();
        assert!(poll_once(after.as_mut()).is_pending());
        drop(after);
        assert_eq!(
            Rc::strong_count(&alive),
            3,
            "the one that was not seen was given back"
        );
        // SAFETY: ends the process; a leak checker would object to what was just asserted.
        unsafe { libc::_exit(0) }
    });
}

/// Counts the lines of an app's log.
struct Lines(Arc<AtomicUsize>);

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Lines {
    fn on_event(
        &self,
        event: &tracing::Event<'_>,
        _context: tracing_subscriber::layer::Context<'_, S>,
    ) {
        if *event.metadata().level() <= tracing::Level::WARN {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[test]
fn a_reactor_whose_io_is_lost_stops_the_app_and_says_so_once() {
    use tracing_subscriber::layer::SubscriberExt;
    let name = "a_reactor_whose_io_is_lost_stops_the_app_and_says_so_once";
    in_a_process_of_its_own(name, || {
        let lines = Arc::new(AtomicUsize::new(0));
        let subscriber = tracing_subscriber::registry().with(Lines(lines.clone()));
        tracing::subscriber::set_global_default(subscriber).unwrap();
        // Each on an OS thread of its own, which stays filtered.
        for mode in [ReactorMode::Interrupt, ReactorMode::Poll] {
            on_every_backend(|choice| {
                let before = lines.load(Ordering::Relaxed);
                let ended = App::builder()
                    .handle_signals(false)
                    .mode(mode)
                    .io(DriverConfig::new().backend(choice))
                    .run(async move |_app: AppHandle| {
                        let (ours, _peer) = UnixStream::pair().unwrap();
                        entrance(choice).into_iter().for_each(refuse);
                        let error = ours.recv(vec![0; 8]).await.0.unwrap_err();
                        assert!(error.to_string().contains("the kernel refuses"), "{error}");
                        // For ever, but for the stop.
                        time::sleep(Duration::from_secs(3600)).await;
                    });
                let Err(AppError::IoLost { source, .. }) = ended else {
                    panic!("{ended:?}");
                };
                assert_eq!(source.kind(), std::io::ErrorKind::PermissionDenied);
                let said = lines.load(Ordering::Relaxed) - before;
                assert!((1..=3).contains(&said), "{said} lines");
            });
        }
    });
}

/// Runs `child` in a forked child, and asserts that it ended well.
fn in_a_forked_child(child: impl FnOnce()) {
    // SAFETY: the child uses nothing that another thread of the parent may have held; the allocator
    // is prepared by the C library.
    match unsafe { nix::unistd::fork() }.unwrap() {
        ForkResult::Child => {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child));
            // SAFETY: ends the process without running what is the parent's.
            unsafe { libc::_exit(i32::from(outcome.is_err())) }
        }
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
        }
    }
}

fn is_of_the_parent(error: std::io::Error) {
    assert!(error.to_string().contains("parent process"), "{error}");
}

#[test]
fn a_forked_child_does_not_inherit_the_driver() {
    in_a_process_of_its_own("a_forked_child_does_not_inherit_the_driver", || {
        on_every_backend(|choice| {
            let (io, dir) = (Loop::new(choice), tempfile::tempdir().unwrap());
            let mut io = Some(io);
            let path = dir.path().join("f");
            std::fs::write(&path, [7; 4096]).unwrap();
            let file = io.as_ref().unwrap().block_on(File::open(&path)).unwrap();
            let (mut peer, ours) = StdUnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            let ours = PollFd::new(ours).unwrap();
            let mut waiting = Box::pin(ours.readable());
            assert!(poll_once(waiting.as_mut()).is_pending());
            io.as_ref().unwrap().driver.poll();
            let mut reading = Box::pin(file.read_at(vec![0; 8], 0));
            assert!(poll_once(reading.as_mut()).is_pending());
            let dropped = PollFd::new(StdUnixStream::pair().unwrap().0).unwrap();
            let kept = dropped.get_ref().try_clone().unwrap();

            in_a_forked_child(|| {
                let io = io.take().unwrap();
                is_of_the_parent(io.driver.failure().unwrap());
                assert_eq!(io.driver.poll(), 0);
                assert_eq!(io.driver.park(None), 0);
                // New operations, on what there is and on what would be new.
                let mut late = pin!(file.read_at(vec![0; 8], 0));
                let Poll::Ready((Err(error), _)) = poll_once(late.as_mut()) else {
                    panic!("it was started")
                };
                is_of_the_parent(error);
                let Poll::Ready(Err(error)) = poll_once(pin!(File::open(&path))) else {
                    panic!("it was started")
                };
                is_of_the_parent(error);
                is_of_the_parent(PollFd::new(EventFd::new().unwrap()).unwrap_err());
                if choice == BackendChoice::IoUring {
                    // SAFETY: a no-op refers to nothing.
                    let raw = unsafe { io.driver.submit_raw(opcode::Nop::new().build(), ()) };
                    is_of_the_parent(raw.unwrap_err());
                }
                // Those in flight are the parent's; the child has its buffers back.
                let Poll::Ready((Err(error), buf)) = poll_once(reading.as_mut()) else {
                    panic!("it is in flight")
                };
                assert_eq!(error.raw_os_error(), Some(libc::ECANCELED));
                assert_eq!(buf.len(), 8);
                let Poll::Ready(Err(error)) = poll_once(waiting.as_mut()) else {
                    panic!("it is in flight")
                };
                is_of_the_parent(error);
                // Neither a drop nor the end touches what is shared.
                drop(dropped);
                drop(waiting);
                // It makes one of its own, beside and after the parent's.
                let own = Loop::new(choice);
                let file = own.block_on(File::open(&path)).unwrap();
                assert_eq!(own.block_on(file.read_at(vec![0; 8], 0)).0.unwrap(), 8);
                io.end();
                assert_eq!(own.block_on(file.read_at(vec![0; 8], 0)).0.unwrap(), 8);
                own.end();
            });

            let io = io.unwrap();
            assert!(io.driver.failure().is_none());
            let mut byte = [0];
            peer.write_all(b"x").unwrap();
            io.block_on(ours.readable()).unwrap();
            assert_eq!(ours.get_ref().read(&mut byte).unwrap(), 1);
            let (_result, _buf) = io.block_on(file.read_at(vec![0; 8], 0));
            drop(kept);
        });
    });
}

/// A waker whose destructor uses the driver.
struct TurnOnDrop;

impl Wake for TurnOnDrop {
    fn wake(self: Arc<Self>) {}
}

impl Drop for TurnOnDrop {
    fn drop(&mut self) {
        Driver::current().unwrap().poll();
    }
}

/// No foreign code runs while the driver is in use, in a child neither.
#[test]
fn a_forked_child_drops_the_wakers_of_its_parent_outside_of_the_driver() {
    const NAME: &str = "a_forked_child_drops_the_wakers_of_its_parent_outside_of_the_driver";
    in_a_process_of_its_own(NAME, || {
        on_every_backend(|choice| {
            let (io, dir) = (Loop::new(choice), tempfile::tempdir().unwrap());
            let path = dir.path().join("f");
            let mut opening = Box::pin(File::create(&path));
            let waker = Waker::from(Arc::new(TurnOnDrop));
            let mut cx = Context::from_waker(&waker);
            assert!(opening.as_mut().poll(&mut cx).is_pending());
            drop(waker);
            in_a_forked_child(|| {
                let Poll::Ready(Err(error)) = poll_once(opening.as_mut()) else {
                    panic!("it is in flight")
                };
                assert_eq!(error.raw_os_error(), Some(libc::ECANCELED));
            });
            io.block_on(opening).unwrap();
        });
    });
}

/// Its parent's calls may have been in any state: the pool's lock held, say.
#[test]
fn a_forked_child_has_no_helper_threads_but_its_own() {
    in_a_process_of_its_own("a_forked_child_has_no_helper_threads_but_its_own", || {
        let library = ThreadLib::new();
        for _ in 0..20 {
            // One is idle, maybe, and others are busy.
            let calls = [(); 4].map(|()| library.spawn_blocking(|| ()));
            in_a_forked_child(|| {
                match block_on(library.spawn_blocking(|| 1)) {
                    Err(CallError::NoHelper { source }) => is_of_the_parent(source),
                    other => panic!("{other:?}"),
                }
                drop(library.clone());
                let own = ThreadLib::new();
                assert_eq!(block_on(own.spawn_blocking(|| 2)).unwrap(), 2);
            });
            for call in calls {
                block_on(call).unwrap();
            }
        }
    });
}

/// Between the fork and the exec of a command nothing of the driver's runs.
#[test]
fn commands_run_beside_a_driver() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let (mut peer, ours) = StdUnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let ours = PollFd::new(ours).unwrap();
        let mut waiting = pin!(ours.readable());
        assert!(poll_once(waiting.as_mut()).is_pending());
        io.driver.poll();
        let status = std::process::Command::new("true").status().unwrap();
        assert!(status.success());
        peer.write_all(b"x").unwrap();
        io.block_on(waiting).unwrap();
    });
}
