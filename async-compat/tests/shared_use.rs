//! Sockets in the hands of several OS threads and runtimes at once, and runtimes beside each other.
#![cfg(feature = "full")]

extern crate corespun_compat as tokio;

use std::future::{Future, poll_fn};
use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};
use tokio::runtime::{Builder, Handle, LocalRuntime, Runtime};
use tokio::task::{LocalSet, spawn_local, yield_now};
use tokio::time::{sleep, timeout};

const LONG: Duration = Duration::from_secs(20);

fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn workers(count: usize) -> Runtime {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(count).enable_all().build().unwrap()
}

/// Each half belongs to another runtime, its twin is polled on an OS thread that has none, and all
/// of them end while they wait.
#[test]
fn halves_wait_on_two_runtimes_and_end_with_them() {
    for round in 0..40 {
        let (one, other) = (workers(1), current_thread());
        let (ours, mut theirs) = one.block_on(async { UnixStream::pair().unwrap() });
        let (mut reads, mut writes) = ours.into_split();
        let moved = Arc::new(AtomicUsize::new(0));
        let counted = moved.clone();
        let reader = one.spawn(async move {
            let mut buf = [0; 1000];
            while let Ok(count @ 1..) = reads.read(&mut buf).await {
                counted.fetch_add(count, Ordering::Relaxed);
            }
        });
        let writer = thread::spawn(move || {
            let told =
                other.spawn(async move { while writes.write_all(&[7; 1000]).await.is_ok() {} });
            other.block_on(async { sleep(Duration::from_millis(1 + round % 3)).await });
            drop(other);
            drop(told);
        });
        let peer = thread::spawn(move || {
            futures::executor::block_on(async {
                let mut buf = [0; 1000];
                for _ in 0..20 {
                    if theirs.write_all(&[1; 1000]).await.is_err()
                        || theirs.read(&mut buf).await.is_err()
                    {
                        break;
                    }
                }
            });
        });
        if round % 2 == 0 {
            writer.join().unwrap();
            drop(one);
        } else {
            drop(one);
            writer.join().unwrap();
        }
        assert!(reader.is_finished());
        peer.join().unwrap();
    }
}

/// The number of a closed socket is at once that of another, on the same drivers.
#[test]
fn a_number_in_use_again_brings_no_event_of_the_one_before() {
    let runtime = workers(2);
    runtime.block_on(async {
        for round in 0..300 {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let reader = tokio::spawn(async move {
                let mut ours = ours;
                let mut buf = [0; 8];
                let read = timeout(Duration::from_micros(200), ours.read(&mut buf)).await;
                drop(ours);
                read.is_err()
            });
            if round % 2 == 0 {
                yield_now().await;
            }
            drop(reader.await.unwrap().then_some(theirs));
            let (mut next, mut peer) = UnixStream::pair().unwrap();
            let mut buf = [0; 8];
            {
                let mut read = pin!(next.read(&mut buf));
                poll_fn(|cx| {
                    assert!(read.as_mut().poll(cx).is_pending());
                    Poll::Ready(())
                })
                .await;
                yield_now().await;
            }
            peer.write_all(b"next").await.unwrap();
            let read = timeout(LONG, next.read(&mut buf)).await.expect("it hangs");
            assert_eq!((read.unwrap(), &buf[..4]), (4, &b"next"[..]));
        }
    });
}

#[test]
#[allow(clippy::async_yields_async, reason = "it is to be unfinished")]
fn a_peer_that_never_reads_holds_up_nobody_and_not_the_end() {
    for runtime in [current_thread(), workers(1)] {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let written = runtime.block_on(async {
            let mut ours = UnixStream::from_std(ours).unwrap();
            let written = tokio::spawn(async move {
                while ours.write_all(&[0; 4096]).await.is_ok() {
                    yield_now().await;
                }
            });
            for _ in 0..10 {
                sleep(Duration::from_millis(1)).await;
            }
            written
        });
        assert!(!written.is_finished());
        drop(runtime);
        assert!(written.is_finished());
        let mut all = Vec::new();
        // To its end: the socket was closed with its task.
        (&theirs).read_to_end(&mut all).unwrap();
        assert!(!all.is_empty());
    }
}

#[test]
fn a_socket_used_after_its_runtime_says_so() {
    let runtime = workers(1);
    let (mut ours, theirs) = runtime.block_on(async { UnixStream::pair().unwrap() });
    drop(runtime);
    let mut buf = [0; 1];
    let error = futures::executor::block_on(ours.read(&mut buf)).unwrap_err();
    assert!(tokio::runtime::is_rt_shutdown_err(&error), "{error}");
    // In another runtime too: it belongs to the one it was made in.
    let next = current_thread();
    let refused = next.block_on(async { timeout(LONG, ours.read(&mut buf)).await.unwrap() });
    let error = refused.unwrap_err();
    assert!(tokio::runtime::is_rt_shutdown_err(&error), "{error}");
    // Taken out, it can be given to the other runtime.
    let read = next.block_on(async {
        let mut ours = UnixStream::from_std(ours.into_std().unwrap()).unwrap();
        let mut theirs = UnixStream::from_std(theirs.into_std().unwrap()).unwrap();
        let (read, written) = tokio::join!(ours.read(&mut buf), theirs.write_all(b"?"));
        written.unwrap();
        read.unwrap()
    });
    assert_eq!((read, &buf), (1, b"?"));
}

/// A runtime that has ended takes nothing new.
#[test]
fn a_socket_made_after_the_end_of_the_runtime_is_refused() {
    for runtime in [current_thread(), workers(1)] {
        let _entered = runtime.enter();
        let ours = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        ours.set_nonblocking(true).unwrap();
        runtime.shutdown_background();
        let refusals = [
            UnixStream::pair().map(drop),
            tokio::net::UdpSocket::from_std(ours).map(drop),
            Handle::current().block_on(async { TcpListener::bind("127.0.0.1:0").await.map(drop) }),
        ];
        for refusal in refusals {
            let error = refusal.unwrap_err();
            assert!(tokio::runtime::is_rt_shutdown_err(&error), "{error}");
        }
    }
}

/// Futures that are not `Send` stay where they are, whoever ends what they wait for.
#[test]
fn what_is_not_send_is_polled_and_dropped_where_it_was_made() {
    struct Here(
        thread::ThreadId,
        #[expect(dead_code, reason = "makes it `!Send`")] Rc<()>,
    );
    impl Here {
        fn check(&self) {
            assert_eq!(self.0, thread::current().id());
        }
    }
    impl Drop for Here {
        fn drop(&mut self) {
            self.check();
        }
    }
    let runtime = workers(2);
    let made = || Here(thread::current().id(), Rc::new(()));
    // In a set, which goes with a task from one runtime to the next on this OS thread.
    let set = LocalSet::new();
    let here = made();
    let (ours, mut theirs) = runtime.block_on(async { UnixStream::pair().unwrap() });
    let mut ours = ours;
    let task = set.spawn_local(async move {
        let mut buf = [0; 1];
        loop {
            here.check();
            if ours.read_exact(&mut buf).await.is_err() {
                return 7;
            }
        }
    });
    let aborted = made();
    let aborted = set.spawn_local(async move {
        aborted.check();
        std::future::pending::<()>().await;
        aborted.check();
    });
    set.block_on(&runtime, async { sleep(Duration::from_millis(1)).await });
    let abort = aborted.abort_handle();
    let other = thread::spawn(move || {
        for _ in 0..100 {
            let _ = futures::executor::block_on(theirs.write_all(b"!"));
        }
        abort.abort();
        drop(theirs);
    });
    let next = current_thread();
    let value = set.block_on(&next, async {
        timeout(LONG, task).await.expect("it hangs")
    });
    assert_eq!(value.unwrap(), 7);
    other.join().unwrap();
    assert!(set.block_on(&next, aborted).unwrap_err().is_cancelled());
    drop((runtime, next));
    drop(set);
    // In a local runtime, whose handle is used elsewhere.
    let local = LocalRuntime::new().unwrap();
    let here = made();
    let task = local.spawn_local(async move {
        here.check();
        std::future::pending::<()>().await;
    });
    let (handle, abort) = (local.handle().clone(), task.abort_handle());
    let elsewhere = thread::spawn(move || {
        let refused = catch_unwind(AssertUnwindSafe(|| {
            handle.block_on(async { drop(spawn_local(async {})) });
        }));
        assert!(refused.is_err());
        let _entered = handle.enter();
        assert!(catch_unwind(AssertUnwindSafe(|| drop(spawn_local(async {})))).is_err());
        abort.abort();
        handle.spawn(async { 1 })
    });
    let spawned = elsewhere.join().unwrap();
    assert_eq!(local.block_on(spawned).unwrap(), 1);
    assert!(local.block_on(task).unwrap_err().is_cancelled());
}

#[test]
fn two_os_threads_share_a_runtime_and_a_join() {
    let runtime = Arc::new(current_thread());
    let counter = Arc::new(AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..3 {
            let (runtime, counter) = (runtime.clone(), counter.clone());
            scope.spawn(move || {
                for _ in 0..50 {
                    let counter = counter.clone();
                    let task = runtime.spawn(async move {
                        sleep(Duration::from_micros(100)).await;
                        counter.fetch_add(1, Ordering::Relaxed);
                    });
                    runtime
                        .block_on(async { timeout(LONG, task).await.expect("it hangs").unwrap() });
                }
            });
        }
    });
    assert_eq!(counter.load(Ordering::Relaxed), 150);
}

/// A worker that blocks in place goes on with the sockets and timers of its own reactor.
#[test]
fn a_worker_blocks_in_place_on_sockets() {
    let runtime = workers(1);
    let task = runtime.spawn(async {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let mut buf = [0; 2];
        tokio::task::block_in_place(|| {
            Handle::current().block_on(async {
                sleep(Duration::from_millis(1)).await;
                let (read, written) = tokio::join!(ours.read_exact(&mut buf), async {
                    yield_now().await;
                    theirs.write_all(b"ok").await
                });
                read.unwrap();
                written.unwrap();
            });
            current_thread().block_on(async { sleep(Duration::from_millis(1)).await });
        });
        // And after it.
        let late = tokio::join!(ours.read_exact(&mut buf), theirs.write_all(b"ok"));
        late.0.unwrap();
        buf
    });
    let ended = runtime.block_on(async { timeout(LONG, task).await });
    assert_eq!(&ended.expect("it hangs").unwrap(), b"ok");
}

#[test]
fn a_listener_is_accepted_from_by_two_runtimes() {
    let (one, other) = (workers(1), workers(1));
    let listener = one.block_on(async { TcpListener::bind("127.0.0.1:0").await.unwrap() });
    let address = listener.local_addr().unwrap();
    let listener = Arc::new(listener);
    let (told, tells) = mpsc::channel();
    let accepts = [&one, &other].map(|runtime| {
        let (listener, told) = (listener.clone(), told.clone());
        runtime.spawn(async move {
            loop {
                let mut socket = match listener.accept().await {
                    Ok((socket, _)) => socket,
                    Err(error) => return error,
                };
                let told = told.clone();
                tokio::spawn(async move {
                    let mut buf = [0; 4];
                    socket.read_exact(&mut buf).await.unwrap();
                    socket.write_all(&buf).await.unwrap();
                    told.send(()).unwrap();
                });
            }
        })
    });
    for _ in 0..100 {
        let mut client = std::net::TcpStream::connect(address).unwrap();
        client.set_read_timeout(Some(LONG)).unwrap();
        client.write_all(b"ping").unwrap();
        let mut buf = [0; 4];
        client.read_exact(&mut buf).unwrap();
    }
    for _ in 0..100 {
        tells.recv_timeout(LONG).unwrap();
    }
    // It belongs to the one it was made in, and so is of no use after that.
    drop(one);
    let _client = std::net::TcpStream::connect(address).unwrap();
    let [first, second] = accepts;
    assert!(other.block_on(first).unwrap_err().is_cancelled());
    let ended = other.block_on(async { timeout(LONG, second).await });
    let error = ended.expect("it hangs").unwrap();
    assert!(tokio::runtime::is_rt_shutdown_err(&error), "{error}");
}
