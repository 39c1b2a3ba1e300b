//! Descriptors that any OS thread may use: [`SharedFd`].
//!
//! They are watched by the driver of whoever polls them, each of its users on its own; what waits is
//! never lost, whatever ends first.

use std::future::Future;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use corespun::io::{BackendChoice, DriverHandle, Home, Interest, Ready, SharedFd};
use harness::io::{Loop, on_every_backend, poll_once};

const BOTH: Interest = Interest::READABLE.add(Interest::WRITABLE);

fn pair() -> (UnixStream, Arc<SharedFd<UnixStream>>) {
    let (peer, socket) = UnixStream::pair().unwrap();
    socket.set_nonblocking(true).unwrap();
    (peer, Arc::new(SharedFd::new(socket, BOTH)))
}

async fn read(socket: &SharedFd<UnixStream>) -> io::Result<Vec<u8>> {
    let mut buf = [0; 4096];
    let count = socket
        .async_io(Interest::READABLE, |mut socket| socket.read(&mut buf))
        .await?;
    Ok(buf[..count].to_vec())
}

async fn write_all(socket: &SharedFd<UnixStream>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = socket
            .async_io(Interest::WRITABLE, |mut socket| socket.write(bytes))
            .await?;
        bytes = &bytes[count..];
    }
    Ok(())
}

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Turns the driver until `done`, sleeping a little in between.
fn turn_until(a: &Loop, done: impl Fn() -> bool) {
    while !done() {
        a.driver.park(Some(Duration::from_millis(5)));
    }
}

#[test]
fn it_is_send_and_sync_and_needs_no_driver_to_be_made() {
    fn check<T: Send + Sync>(_: &T) {}
    let (_peer, socket) = pair();
    check(&socket);
    // What need not wait needs no driver either.
    assert_eq!(
        socket
            .try_io(Interest::WRITABLE, |mut socket| socket.write(b"x"))
            .unwrap(),
        1
    );
    let would_block = socket.try_io(Interest::READABLE, |mut socket| socket.read(&mut [0]));
    assert_eq!(would_block.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    // A wait does.
    let Poll::Ready(Err(error)) = poll_once(pin!(socket.ready(Interest::READABLE))) else {
        panic!("it waits for nobody");
    };
    assert!(error.to_string().contains("no I/O driver"), "{error}");
}

#[test]
fn a_wait_ends_with_the_next_event_on_every_backend() {
    on_every_backend(|choice| {
        let a = Loop::new(choice);
        let (mut peer, socket) = pair();
        for round in 0..100u8 {
            let mut reading = pin!(read(&socket));
            assert!(poll_once(reading.as_mut()).is_pending());
            peer.write_all(&[round]).unwrap();
            assert_eq!(a.block_on(reading).unwrap(), [round]);
        }
        drop(peer);
        assert!(a.block_on(read(&socket)).unwrap().is_empty());
        if let Some(seen) = socket.seen(Interest::READABLE) {
            socket.clear(seen);
        }
        let seen = a.block_on(socket.ready(Interest::READABLE)).unwrap();
        assert!(seen.ready().is_read_closed());
    });
}

#[test]
fn readiness_is_an_edge_until_it_is_cleared() {
    on_every_backend(|choice| {
        let a = Loop::new(choice);
        let (mut peer, socket) = pair();
        let seen = a.block_on(socket.ready(Interest::WRITABLE)).unwrap();
        assert_eq!(seen.ready(), Ready::WRITABLE);
        assert!(socket.seen(Interest::READABLE).is_none());
        peer.write_all(b"x").unwrap();
        let first = a.block_on(socket.ready(Interest::READABLE)).unwrap();
        peer.write_all(b"y").unwrap();
        a.driver.park(Some(Duration::from_millis(100)));
        // Older than what is known: it clears nothing.
        socket.clear(first);
        let second = socket.seen(Interest::READABLE).unwrap();
        socket.clear(second);
        let mut again = pin!(socket.ready(Interest::READABLE));
        assert!(poll_once(again.as_mut()).is_pending(), "no new edge");
        peer.write_all(b"z").unwrap();
        a.block_on(again).unwrap();
    });
}

/// For OS threads that have none, again and again.
#[test]
fn the_driver_of_a_home_watches_what_others_wait_for() {
    on_every_backend(|choice| {
        let a = Loop::new(choice);
        let home = Home::new();
        home.serve(&a.driver.handle().unwrap());
        for _ in 0..3 {
            let (mut peer, socket) = UnixStream::pair().unwrap();
            socket.set_nonblocking(true).unwrap();
            let socket = SharedFd::with_home(socket, BOTH, home.clone());
            let woken = Arc::new(Count::default());
            let waker = Waker::from(woken.clone());
            let mut reading = Box::pin(read(&socket));
            let wait = || {
                reading
                    .as_mut()
                    .poll(&mut Context::from_waker(&waker))
                    .is_pending()
            };
            assert!(thread::scope(|scope| scope.spawn(wait).join().unwrap()));
            peer.write_all(b"x").unwrap();
            let begun = std::time::Instant::now();
            while woken.0.load(Ordering::SeqCst) == 0 {
                assert!(begun.elapsed() < harness::PATIENCE, "nobody watches");
                a.driver.park(Some(Duration::from_millis(5)));
            }
        }
    });
}

/// No driver watches it any more for the one that has given it back.
#[test]
fn a_descriptor_that_is_given_back_can_be_shared_again() {
    on_every_backend(|choice| {
        let a = Loop::new(choice);
        let (mut peer, mut socket) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        for round in 0..3u8 {
            let shared = SharedFd::new(socket, BOTH);
            let mut reading = Box::pin(read(&shared));
            assert!(poll_once(reading.as_mut()).is_pending());
            peer.write_all(&[round]).unwrap();
            assert_eq!(a.block_on(reading).unwrap(), [round]);
            socket = shared.into_inner();
        }
    });
}

#[test]
fn readiness_is_added_and_taken_away() {
    let both = Ready::READABLE | Ready::WRITABLE;
    assert_eq!(both - Ready::WRITABLE, Ready::READABLE);
    assert_eq!(Ready::READABLE - Ready::WRITABLE, Ready::READABLE);
    assert_eq!(both & Ready::WRITABLE, Ready::WRITABLE);
    assert_eq!(Ready::READABLE & Ready::WRITABLE, Ready::EMPTY);
    assert!(BOTH.is_readable() && !Interest::WRITABLE.is_readable());
    assert_eq!(BOTH.remove(Interest::READABLE), Some(Interest::WRITABLE));
    assert_eq!(Interest::READABLE.remove(Interest::READABLE), None);
}

/// Which otherwise looks in some of its turns only.
#[test]
fn the_next_turn_looks_if_it_is_asked_to() {
    on_every_backend(|choice| {
        let a = Loop::new(choice);
        let (mut peer, socket) = pair();
        for _ in 0..3 {
            let mut reading = pin!(read(&socket));
            let woken = Arc::new(Count::default());
            let waker = Waker::from(woken.clone());
            let mut cx = Context::from_waker(&waker);
            assert!(reading.as_mut().poll(&mut cx).is_pending());
            peer.write_all(b"x").unwrap();
            a.driver.look_next_turn();
            a.driver.poll();
            assert_eq!(woken.0.load(Ordering::SeqCst), 1);
            assert!(reading.as_mut().poll(&mut cx).is_ready());
        }
    });
}

#[test]
fn two_halves_on_two_drivers_and_the_drop_on_a_third_thread() {
    on_every_backend(|choice| {
        const LEN: usize = 4 << 20;
        let (peer, socket) = pair();
        let sent: Vec<u8> = (0..LEN).map(|at| (at * 7 % 251) as u8).collect();
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let a = Loop::new(choice);
                a.block_on(async {
                    let mut all = Vec::new();
                    while all.len() < LEN {
                        all.extend(read(&socket).await.unwrap());
                    }
                    all
                })
            });
            let writer = scope.spawn(|| {
                Loop::new(choice)
                    .block_on(write_all(&socket, &sent))
                    .unwrap()
            });
            // The peer echoes.
            let mut to = peer.try_clone().unwrap();
            let mut from = peer.try_clone().unwrap();
            let echo = scope.spawn(move || {
                let mut buf = [0; 65536];
                let mut done = 0;
                while done < LEN {
                    let count = from.read(&mut buf).unwrap();
                    to.write_all(&buf[..count]).unwrap();
                    done += count;
                }
            });
            writer.join().unwrap();
            echo.join().unwrap();
            assert!(reader.join().unwrap() == sent);
        });
        let mut peer = peer;
        thread::spawn(move || drop(socket)).join().unwrap();
        assert_eq!(peer.read(&mut [0]).unwrap(), 0, "closed with its drop");
    });
}

/// Also when a driver that watches never turns again while it lives.
#[test]
fn a_drop_elsewhere_closes_at_once() {
    on_every_backend(|choice| {
        let a = Loop::new(choice);
        let (mut peer, socket) = pair();
        assert!(poll_once(pin!(socket.ready(Interest::READABLE))).is_pending());
        a.driver.poll();
        thread::spawn(move || drop(socket)).join().unwrap();
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    });
}

#[test]
fn a_reused_descriptor_is_not_confused_with_the_one_before() {
    on_every_backend(|choice| {
        let a = Loop::new(choice);
        let mut reused = 0;
        for _ in 0..50 {
            let (mut old_peer, old) = pair();
            assert!(poll_once(pin!(old.ready(Interest::READABLE))).is_pending());
            let number = old.get_ref().as_raw_fd();
            // An event is on its way, for the one that is closed now.
            old_peer.write_all(b"old").unwrap();
            // Another descriptor for the same file keeps that open.
            let kept: OwnedFd = old.get_ref().try_clone().unwrap().into();
            let elsewhere = thread::spawn(move || drop(old));
            elsewhere.join().unwrap();
            let (new_peer, socket) = UnixStream::pair().unwrap();
            // Unless another test was quicker.
            reused += usize::from(socket.as_raw_fd() == number || new_peer.as_raw_fd() == number);
            socket.set_nonblocking(true).unwrap();
            let new = SharedFd::new(socket, BOTH);
            let mut ready = pin!(new.ready(Interest::READABLE));
            assert!(poll_once(ready.as_mut()).is_pending());
            a.driver.park(Some(Duration::ZERO));
            a.driver.park(Some(Duration::ZERO));
            assert!(
                poll_once(ready.as_mut()).is_pending(),
                "an event of the one before"
            );
            (&new_peer).write_all(b"new").unwrap();
            a.block_on(ready).unwrap();
            drop(kept);
        }
        assert!(reused > 0);
    });
}

#[test]
fn a_driver_that_ends_wakes_who_waits_and_another_goes_on() {
    on_every_backend(|choice| {
        let (mut peer, socket) = pair();
        let woken = Arc::new(Count::default());
        let waker = Waker::from(woken.clone());
        let mut cx = Context::from_waker(&waker);
        let mut waiting = pin!(read(&socket));
        let first = Loop::new(choice);
        assert!(waiting.as_mut().poll(&mut cx).is_pending());
        first.end();
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        thread::scope(|scope| {
            scope.spawn(|| {
                let next = Loop::new(choice);
                peer.write_all(b"x").unwrap();
                assert_eq!(next.block_on(waiting).unwrap(), b"x");
            });
        });
    });
}

#[test]
fn a_wait_on_an_os_thread_without_a_driver_is_served_by_the_home() {
    on_every_backend(|choice| {
        let a = Loop::new(choice);
        let home = a.driver.handle().unwrap();
        let (mut peer, socket) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        let socket = SharedFd::with_driver(socket, BOTH, home.clone());
        let done = Arc::new(Count::default());
        let told = done.clone();
        let other = thread::spawn(move || {
            let mut got = Vec::new();
            while got != b"pingping" {
                got.extend(futures::executor::block_on(read(&socket)).unwrap());
            }
            told.wake();
            socket
        });
        peer.write_all(b"ping").unwrap();
        a.driver.park(Some(Duration::from_millis(20)));
        peer.write_all(b"ping").unwrap();
        turn_until(&a, || done.0.load(Ordering::SeqCst) == 1);
        let socket = other.join().unwrap();
        a.end();
        assert!(home.is_ended());
        let outcome = thread::scope(|scope| {
            scope
                .spawn(|| futures::executor::block_on(read(&socket)))
                .join()
                .unwrap()
        });
        assert!(outcome.unwrap_err().to_string().contains("shut down"));
    });
}

/// The wait begins, and is lost, in every order against the driver's end.
#[test]
fn a_wait_that_meets_the_end_of_its_home_is_not_forgotten() {
    for round in 0..200 {
        let choice = [BackendChoice::Auto, BackendChoice::Epoll][round % 2];
        let (_peer, socket) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        let start = Arc::new(Barrier::new(2));
        let (sender, homes) = mpsc::channel::<DriverHandle>();
        let go = start.clone();
        let driver = thread::spawn(move || {
            let a = Loop::new(choice);
            sender.send(a.driver.handle().unwrap()).unwrap();
            go.wait();
            a.end();
        });
        let socket = SharedFd::with_driver(socket, BOTH, homes.recv().unwrap());
        start.wait();
        // Ends with an error, or would never.
        assert!(futures::executor::block_on(read(&socket)).is_err());
        driver.join().unwrap();
    }
}

#[test]
fn a_socket_that_has_moved_leaves_its_first_driver_in_peace() {
    on_every_backend(|choice| {
        let a = Loop::new(choice);
        let (mut peer, socket) = pair();
        a.block_on(socket.ready(Interest::WRITABLE)).unwrap();
        assert!(poll_once(pin!(socket.ready(Interest::READABLE))).is_pending());
        let (ask, asked) = mpsc::channel::<()>();
        let (answer, answered) = mpsc::channel::<()>();
        let moved = socket.clone();
        let other = thread::spawn(move || {
            let b = Loop::new(choice);
            b.block_on(moved.ready(Interest::WRITABLE)).unwrap();
            let seen = moved.seen(Interest::WRITABLE).unwrap();
            moved.clear(seen);
            assert!(poll_once(pin!(moved.ready(Interest::WRITABLE))).is_pending());
            while asked.recv().is_ok() {
                b.block_on(read(&moved)).unwrap();
                assert!(poll_once(pin!(read(&moved))).is_pending());
                answer.send(()).unwrap();
            }
        });
        let mut disturbed = 0;
        for _ in 0..100 {
            peer.write_all(b"x").unwrap();
            ask.send(()).unwrap();
            answered.recv().unwrap();
            disturbed += a.driver.park(Some(Duration::ZERO));
        }
        drop(ask);
        other.join().unwrap();
        assert!(
            disturbed < 40,
            "{disturbed} events of a socket that is used elsewhere"
        );
    });
}

#[test]
fn a_dropped_wait_leaves_nothing_behind() {
    on_every_backend(|choice| {
        let a = Loop::new(choice);
        let (mut peer, socket) = pair();
        let woken = Arc::new(Count::default());
        let waker = Waker::from(woken.clone());
        let mut cx = Context::from_waker(&waker);
        for _ in 0..10 {
            assert!(
                pin!(socket.ready(Interest::READABLE))
                    .poll(&mut cx)
                    .is_pending()
            );
        }
        drop(waker);
        assert_eq!(Arc::strong_count(&woken), 1);
        peer.write_all(b"x").unwrap();
        a.driver.park(None);
        assert_eq!(a.block_on(read(&socket)).unwrap(), b"x");
    });
}

/// On io_uring the two are waited for in different ways, by turns.
#[test]
fn events_are_seen_beside_operations_of_the_driver_and_without_them() {
    on_every_backend(|choice| {
        let a = Loop::new(choice);
        let (mut peer, socket) = pair();
        let (mut bound_peer, bound) = UnixStream::pair().unwrap();
        bound.set_nonblocking(true).unwrap();
        let bound = corespun::io::PollFd::new(bound).unwrap();
        for sleeps in [true, false] {
            for round in 0..50u8 {
                // Alone, beside a wait that does not end, alone again.
                for beside in [false, true, false] {
                    let mut waits = pin!(bound.read_with(|mut socket| socket.read(&mut [0])));
                    if beside {
                        assert!(poll_once(waits.as_mut()).is_pending());
                    }
                    let mut reading = pin!(read(&socket));
                    assert!(poll_once(reading.as_mut()).is_pending());
                    peer.write_all(&[round]).unwrap();
                    let got = loop {
                        if let Poll::Ready(got) = poll_once(reading.as_mut()) {
                            break got.unwrap();
                        }
                        match sleeps {
                            true => a.driver.park(None),
                            false => a.driver.poll(),
                        };
                    };
                    assert_eq!(got, [round]);
                    if beside {
                        bound_peer.write_all(b"x").unwrap();
                        assert_eq!(a.block_on(waits).unwrap(), 1);
                    }
                }
            }
        }
    });
}

#[test]
fn the_wake_eventfd_ends_a_sleep_that_waits_for_shared_descriptors_alone() {
    on_every_backend(|choice| {
        let a = Loop::new(choice);
        let (_peer, socket) = pair();
        a.block_on(socket.ready(Interest::WRITABLE)).unwrap();
        // Written before the sleep, also if a turn comes in between, and during it.
        for turns in 0..40 {
            a.wake.wake();
            for _ in 0..turns {
                a.driver.poll();
            }
            a.driver.park(None);
        }
        let wake = a.wake.clone();
        let other = thread::spawn(move || {
            thread::sleep(Duration::from_millis(10));
            wake.wake();
        });
        a.driver.park(None);
        other.join().unwrap();
    });
}

/// One descriptor of each driver, however many sockets; and those that are closed elsewhere, while the
/// driver sleeps, are not kept.
#[test]
fn thousands_of_idle_sockets_cost_no_descriptor_and_no_turn() {
    on_every_backend(|choice| {
        let a = Loop::new(choice);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut sockets = Vec::new();
        let mut peers = Vec::new();
        for _ in 0..1000 {
            let socket = TcpStream::connect(address).unwrap();
            socket.set_nonblocking(true).unwrap();
            peers.push(listener.accept().unwrap().0);
            let socket = SharedFd::new(socket, BOTH);
            assert!(poll_once(pin!(socket.ready(Interest::READABLE))).is_pending());
            sockets.push(socket);
        }
        turn_until(&a, || {
            sockets
                .iter()
                .all(|socket| socket.seen(Interest::WRITABLE).is_some())
        });
        assert_eq!(a.driver.park(Some(Duration::ZERO)), 0);
        assert_eq!(a.driver.poll(), 0);
        let (last, _) = (
            sockets.pop().unwrap(),
            thread::spawn(move || drop(sockets)).join(),
        );
        let mut peer = peers.pop().unwrap();
        peer.write_all(b"x").unwrap();
        a.block_on(last.ready(Interest::READABLE)).unwrap();
    });
}

#[test]
fn at_the_descriptor_limit_a_wait_fails_and_may_be_tried_again() {
    const CHILD: &str = "CORESPUN_AT_THE_LIMIT";
    // The limit belongs to the process: a child has its own.
    if std::env::var_os(CHILD).is_none() {
        let name = "at_the_descriptor_limit_a_wait_fails_and_may_be_tried_again";
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, "1")
            .status();
        return assert!(child.unwrap().success());
    }
    let (mut peer, socket) = pair();
    // On io_uring the shared descriptors take an epoll set of their own.
    let a = Loop::new(BackendChoice::Auto);
    let mut full = Vec::new();
    let limit = nix::sys::resource::Resource::RLIMIT_NOFILE;
    nix::sys::resource::setrlimit(limit, 64, 64).unwrap();
    while let Ok(fd) = std::fs::File::open("/dev/null") {
        full.push(fd);
    }
    if a.driver.backend() == corespun::io::Backend::IoUring {
        let refused = poll_once(pin!(socket.ready(Interest::READABLE)));
        let Poll::Ready(Err(error)) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
    }
    full.pop();
    peer.write_all(b"x").unwrap();
    a.block_on(socket.ready(Interest::READABLE)).unwrap();
}
