//! Sockets on each back-end: bytes arrive, waits keep the last waker, and nothing leaks.

use std::future::Future;
use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::os::fd::AsRawFd;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use corespun::io::{BackendChoice, IoBuf};
use corespun::net::{TcpListener, TcpStream, UnixListener, UnixStream, lookup_host};
use futures::future::{join, join_all};
use futures::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use futures::{StreamExt, io::AsyncWrite};
use harness::io::{Loop, on_every_backend, poll_once};
use harness::process::in_a_process_of_its_own;

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Counts how often it is woken.
#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Count {
    fn new() -> (Arc<Count>, Waker) {
        let count = Arc::new(Count::default());
        (count.clone(), Waker::from(count))
    }

    fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// Turns the driver until `done`, for at most a few seconds.
fn turn_until(io: &Loop, mut done: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if done() {
            return;
        }
        io.driver.park(Some(Duration::from_millis(5)));
    }
    panic!("nothing came");
}

fn noise(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 255) as u8).collect()
}

#[test]
fn tcp_streams_carry_what_is_written() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        io.block_on(async {
            let listener = TcpListener::bind(LOOPBACK).unwrap();
            let address = listener.local_addr().unwrap();
            let server = async {
                let (mut stream, peer) = listener.accept().await.unwrap();
                assert_eq!(stream.peer_addr().unwrap(), peer);
                let mut all = Vec::new();
                stream.read_to_end(&mut all).await.unwrap();
                stream.write_all(&all).await.unwrap();
                stream.close().await.unwrap();
            };
            let client = async {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.set_nodelay(true).unwrap();
                assert!(stream.nodelay().unwrap());
                assert_eq!(stream.peer_addr().unwrap(), address);
                stream.write_all(&noise(3 << 20)).await.unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                let mut back = Vec::new();
                stream.read_to_end(&mut back).await.unwrap();
                assert!(back == noise(3 << 20));
            };
            join(server, client).await;
        });
    });
}

#[test]
fn unix_streams_carry_what_is_written() {
    on_every_backend(|choice| {
        let (io, dir) = (Loop::new(choice), tempfile::tempdir().unwrap());
        let path = dir.path().join("s");
        io.block_on(async {
            let listener = UnixListener::bind(&path).unwrap();
            let address = listener.local_addr().unwrap();
            assert_eq!(address.as_pathname(), Some(path.as_path()));
            let server = async {
                let stream = listener.incoming().next().await.unwrap().unwrap();
                let (result, buf) = stream.recv_exact(vec![0; 2 << 20]).await;
                result.unwrap();
                let (result, _) = stream.send_all(buf).await;
                result.unwrap();
            };
            let client = async {
                let stream = UnixStream::connect(&path).await.unwrap();
                let (read, write) = (
                    async || stream.recv_exact(vec![0; 2 << 20]).await,
                    async || stream.send_all(noise(2 << 20)).await,
                );
                let ((received, back), (sent, _)) = join(read(), write()).await;
                received.unwrap();
                sent.unwrap();
                assert!(back == noise(2 << 20));
            };
            join(server, client).await;
        });
        let twice = UnixListener::bind(&path).unwrap_err();
        assert_eq!(twice.kind(), ErrorKind::AddrInUse);
    });
}

#[test]
fn unix_addresses_are_paths_abstract_names_or_nothing() {
    use std::os::linux::net::SocketAddrExt;
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let name = format!("corespun-{}-{choice:?}", std::process::id());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        let listener = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
        let listener = UnixListener::from_std(listener).unwrap();
        let named = listener.local_addr().unwrap();
        assert_eq!(named.as_abstract_name(), Some(name.as_bytes()));
        let client = std::os::unix::net::UnixStream::connect_addr(&address).unwrap();
        let (server, peer) = io.block_on(listener.accept()).unwrap();
        assert!(peer.is_unnamed() && server.peer_addr().unwrap().is_unnamed());
        drop(client);
    });
}

#[test]
fn a_refused_connection_is_an_error() {
    on_every_backend(|choice| {
        let (io, dir) = (Loop::new(choice), tempfile::tempdir().unwrap());
        let free = std::net::TcpListener::bind(LOOPBACK)
            .unwrap()
            .local_addr()
            .unwrap();
        let refused = io.block_on(TcpStream::connect(free)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        let missing = io
            .block_on(UnixStream::connect(dir.path().join("none")))
            .unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
    });
}

#[test]
fn a_unix_connect_waits_for_room_in_the_listeners_queue() {
    on_every_backend(|choice| {
        let (io, dir) = (Loop::new(choice), tempfile::tempdir().unwrap());
        let path = dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
        io.block_on(async {
            let connects = join_all((0..4).map(|_| UnixStream::connect(&path)));
            let accepts = async {
                // By now the queue is full and the rest wait on helper threads.
                let listener = UnixListener::from_std(listener).unwrap();
                for _ in 0..4 {
                    listener.accept().await.unwrap();
                }
            };
            let (connected, ()) = join(connects, accepts).await;
            assert!(connected.iter().all(Result::is_ok));
        });
    });
}

#[test]
fn vectored_reads_and_writes_move_all_parts() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let (a, b) = UnixStream::pair().unwrap();
        io.block_on(async {
            let parts = [
                IoSlice::new(b"he"),
                IoSlice::new(b"llo wor"),
                IoSlice::new(b"ld"),
            ];
            assert_eq!((&a).write_vectored(&parts).await.unwrap(), 11);
            let (mut head, mut tail) = ([0; 5], [0; 10]);
            let mut parts = [IoSliceMut::new(&mut head), IoSliceMut::new(&mut tail)];
            assert_eq!((&b).read_vectored(&mut parts).await.unwrap(), 11);
            assert_eq!((&head, &tail[..6]), (b"hello", &b" world"[..]));
        });
    });
}

#[test]
fn one_task_may_read_while_another_writes() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let (a, b) = UnixStream::pair().unwrap();
        io.block_on(async {
            let (mut reader, mut writer) = a.split();
            let (mut echo_reader, mut echo_writer) = b.split();
            let echo = async {
                futures::io::copy(&mut echo_reader, &mut echo_writer)
                    .await
                    .unwrap();
                drop(echo_writer); // shuts the sending direction down
            };
            let send = async {
                writer.write_all(&noise(1 << 20)).await.unwrap();
                drop(writer);
            };
            let mut back = Vec::new();
            let receive = async { reader.read_to_end(&mut back).await.unwrap() };
            join(echo, join(send, receive)).await;
            assert!(back == noise(1 << 20));
        });
    });
}

#[test]
fn halves_of_one_stream_reunite() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let (a, b) = UnixStream::pair().unwrap();
        let ((a_read, a_write), (b_read, b_write)) = (a.split(), b.split());
        let error = a_read.reunite(b_write).unwrap_err();
        let (a, b) = (
            error.0.reunite(a_write).unwrap(),
            b_read.reunite(error.1).unwrap(),
        );
        io.block_on(async {
            (&a).write_all(b"still open").await.unwrap();
            assert_eq!(b.recv(vec![0; 10]).await.1, b"still open");
        });
    });
}

#[test]
fn a_wait_wakes_the_waker_of_the_last_poll() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let (mut peer, ours) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut stream = UnixStream::from_std(ours).unwrap();
        let (stale, stale_waker) = Count::new();
        let (last, last_waker) = Count::new();
        let mut buf = [0; 8];
        for waker in [&stale_waker, &last_waker] {
            let mut cx = Context::from_waker(waker);
            assert!(
                Pin::new(&mut stream)
                    .poll_read(&mut cx, &mut buf)
                    .is_pending()
            );
        }
        io.driver.poll();
        peer.write_all(b"x").unwrap();
        turn_until(&io, || last.get() > 0);
        assert_eq!((stale.get(), last.get()), (0, 1));
    });
}

#[test]
fn a_reader_and_a_writer_wait_on_one_socket() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let (mut peer, ours) = std::os::unix::net::UnixStream::pair().unwrap();
        let stream = UnixStream::from_std(ours).unwrap();
        let (reader, reader_waker) = Count::new();
        let (writer, writer_waker) = Count::new();
        let mut buf = [0; 8];
        let mut cx = Context::from_waker(&reader_waker);
        assert!(
            Pin::new(&mut &stream)
                .poll_read(&mut cx, &mut buf)
                .is_pending()
        );
        let chunk = vec![0; 65_536];
        let mut cx = Context::from_waker(&writer_waker);
        let mut sent = 0;
        while let Poll::Ready(count) = Pin::new(&mut &stream).poll_write(&mut cx, &chunk) {
            sent += count.unwrap();
        }
        io.driver.poll();
        assert_eq!(
            (reader.get(), writer.get(), io.driver.in_flight()),
            (0, 0, 2)
        );
        peer.write_all(b"x").unwrap();
        turn_until(&io, || reader.get() == 1);
        assert_eq!(writer.get(), 0);
        peer.read_exact(&mut vec![0; sent]).unwrap();
        turn_until(&io, || writer.get() == 1);
        assert_eq!(reader.get(), 1);
    });
}

/// After many messages of one length, one at a time, a read waits first: for several at once, too, and
/// for the end.
#[test]
fn a_burst_after_many_lone_messages_is_read_to_its_end() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let (mut peer, ours) = std::os::unix::net::UnixStream::pair().unwrap();
        let ours = UnixStream::from_std(ours).unwrap();
        for burst in [1, 3, 1, 7] {
            for _ in 0..50 {
                for message in 0..burst {
                    peer.write_all(&[message; 16]).unwrap();
                }
                for message in 0..burst {
                    let (read, buf) = io.must_end("a message", ours.recv_exact(vec![99; 16]));
                    read.unwrap();
                    assert_eq!(buf, [message; 16]);
                }
            }
        }
        let waiting = async {
            let (read, buf) = ours.recv_exact(vec![0; 16]).await;
            read.unwrap();
            assert_eq!(buf, [5; 16]);
            ours.recv(buf).await.0.unwrap()
        };
        let mut waiting = pin!(waiting);
        assert!(poll_once(waiting.as_mut()).is_pending());
        peer.write_all(&[5; 16]).unwrap();
        drop(peer);
        assert_eq!(io.must_end("the end", waiting), 0);
    });
}

#[test]
fn the_end_after_a_short_read_is_seen() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        for linger in [false, true] {
            let (mut peer, ours) = std::os::unix::net::UnixStream::pair().unwrap();
            let mut stream = UnixStream::from_std(ours).unwrap();
            // Data and end together, or the end while somebody waits.
            peer.write_all(b"last").unwrap();
            if !linger {
                drop(peer);
                io.driver.poll();
                let mut all = Vec::new();
                io.block_on(stream.read_to_end(&mut all)).unwrap();
                assert_eq!(all, b"last");
                continue;
            }
            let mut buf = [0; 64];
            assert_eq!(io.block_on(stream.read(&mut buf)).unwrap(), 4);
            let mut end = pin!(stream.read(&mut buf));
            assert!(poll_once(end.as_mut()).is_pending());
            io.driver.poll();
            drop(peer);
            assert_eq!(io.block_on(end).unwrap(), 0);
        }
    });
}

#[test]
fn writing_to_a_gone_peer_is_an_error_and_no_signal() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let (peer, ours) = std::os::unix::net::UnixStream::pair().unwrap();
        let stream = UnixStream::from_std(ours).unwrap();
        drop(peer);
        // SAFETY: sets the default action of a signal; restored by nobody, needed by nobody.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        io.block_on(async {
            let (result, _) = stream.send_all(vec![1; 10]).await;
            assert_eq!(result.unwrap_err().kind(), ErrorKind::BrokenPipe);
            let parts = [IoSlice::new(b"ab")];
            let error = (&stream).write_vectored(&parts).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        });
    });
}

#[test]
fn an_accepted_socket_moves_to_another_os_thread() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let listener = TcpListener::bind(LOOPBACK).unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (moved, _) = io.block_on(listener.accept_std()).unwrap();
        let worker = std::thread::spawn(move || {
            let io = Loop::new(choice);
            let mut stream = TcpStream::from_std(moved).unwrap();
            io.block_on(async {
                let mut buf = [0; 5];
                stream.read_exact(&mut buf).await.unwrap();
                stream.write_all(&buf).await.unwrap();
            });
            // A wait in flight does not keep the socket from moving on.
            let mut buf = [0; 1];
            assert!(poll_once(pin!(stream.read(&mut buf))).is_pending());
            stream.into_std().unwrap()
        });
        client.write_all(b"hello").unwrap();
        let mut back = [0; 5];
        client.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"hello");
        let mut again = TcpStream::from_std(worker.join().unwrap()).unwrap();
        client.write_all(b"!").unwrap();
        assert_eq!(io.block_on(again.read(&mut back)).unwrap(), 1);
    });
}

#[test]
fn a_socket_under_another_driver_is_an_error() {
    let first = Loop::new(BackendChoice::Auto);
    let (a, _b) = UnixStream::pair().unwrap();
    let keep = first.driver.clone();
    first.end();
    let second = Loop::new(BackendChoice::Auto);
    let error = second.block_on((&a).write(b"x")).unwrap_err();
    assert!(error.to_string().contains("another driver"), "{error}");
    second.end();
    let error = poll_once(pin!(a.recv(vec![0])));
    let Poll::Ready((Err(error), _)) = error else {
        panic!("{error:?}")
    };
    assert!(error.to_string().contains("no I/O driver"), "{error}");
    drop(keep);
}

#[test]
fn a_socket_that_outlives_its_driver_answers_with_an_error() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let (a, _b) = UnixStream::pair().unwrap();
        let (count, waker) = Count::new();
        let mut read = Box::pin(a.recv(vec![0; 8]));
        assert!(
            read.as_mut()
                .poll(&mut Context::from_waker(&waker))
                .is_pending()
        );
        io.end();
        assert_eq!(count.get(), 1, "the waiting task is told");
        assert!(matches!(poll_once(read.as_mut()), Poll::Ready((Err(_), _))));
    });
}

#[test]
fn a_dropped_stream_closes_its_descriptor_though_a_wait_was_in_flight() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let (mut peer, ours) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut stream = UnixStream::from_std(ours).unwrap();
        let mut buf = [0; 8];
        assert!(poll_once(pin!(stream.read(&mut buf))).is_pending());
        io.driver.poll();
        drop(stream);
        io.settle();
        assert_eq!(peer.read(&mut buf).unwrap(), 0, "the peer sees the end");
    });
}

/// With no turn of the driver in between, also where a wait was in flight, and where it had only been
/// queued.
#[test]
fn a_dropped_listener_frees_its_address_at_once() {
    on_every_backend(|choice| {
        for submitted in [false, true] {
            let io = Loop::new(choice);
            let listener = TcpListener::bind(LOOPBACK).unwrap();
            let address = listener.local_addr().unwrap();
            let mut accept = Box::pin(listener.accept());
            assert!(poll_once(accept.as_mut()).is_pending());
            if submitted {
                io.driver.poll();
            }
            drop(accept);
            drop(listener);
            let again = TcpListener::bind(address).unwrap();
            // What is left of the old wait does no harm to the new one.
            let _client = std::net::TcpStream::connect(address).unwrap();
            io.must_end("accept", again.accept()).unwrap();
            drop(again);
            io.settle();
        }
    });
}

/// As by `close`.
#[test]
fn the_peer_of_a_dropped_stream_is_told_at_once() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let (stream, mut peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let stream = UnixStream::from_std(stream).unwrap();
        let mut receive = Box::pin(stream.recv(vec![0; 8]));
        assert!(poll_once(receive.as_mut()).is_pending());
        io.driver.poll();
        drop(receive);
        drop(stream);
        peer.set_nonblocking(true).unwrap();
        assert_eq!(peer.read(&mut [0; 8]).unwrap(), 0);
        io.settle();
    });
}

#[test]
fn a_dropped_receive_takes_nothing() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let (mut peer, ours) = std::os::unix::net::UnixStream::pair().unwrap();
        let stream = UnixStream::from_std(ours).unwrap();
        let mut receive = Box::pin(stream.recv(vec![0; 8]));
        assert!(poll_once(receive.as_mut()).is_pending());
        io.driver.poll();
        peer.write_all(b"kept").unwrap();
        turn_until(&io, || io.driver.in_flight() == 0);
        drop(receive);
        let (result, buf) = io.block_on(stream.recv(Vec::with_capacity(8)));
        assert_eq!((result.unwrap(), &buf[..]), (4, &b"kept"[..]));
    });
}

#[test]
fn a_receive_stays_within_its_slice() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let (mut peer, ours) = std::os::unix::net::UnixStream::pair().unwrap();
        let stream = UnixStream::from_std(ours).unwrap();
        peer.write_all(&[1; 64]).unwrap();
        let (result, part) = io.block_on(stream.recv(vec![0; 32].slice(8..16)));
        assert_eq!(result.unwrap(), 8);
        let buf = part.into_inner();
        assert_eq!(
            (&buf[..8], &buf[8..16], &buf[16..]),
            (&[0; 8][..], &[1; 8][..], &[0; 16][..])
        );
    });
}

#[test]
fn two_hundred_connections_echo_on_one_os_thread() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        io.block_on(async {
            let listener = TcpListener::bind(LOOPBACK).unwrap();
            let address = listener.local_addr().unwrap();
            let served = std::cell::Cell::new(0);
            let server = listener
                .incoming()
                .take(200)
                .for_each_concurrent(None, |stream| {
                    let served = &served;
                    async move {
                        let mut stream = stream.unwrap();
                        let mut buf = [0; 64];
                        while let Ok(count @ 1..) = stream.read(&mut buf).await {
                            stream.write_all(&buf[..count]).await.unwrap();
                        }
                        served.set(served.get() + 1);
                    }
                });
            let clients = join_all((0..200u32).map(|client| async move {
                let mut stream = TcpStream::connect(address).await.unwrap();
                for round in 0..10u32 {
                    let message = [client.to_le_bytes(), round.to_le_bytes()].concat();
                    stream.write_all(&message).await.unwrap();
                    let mut echo = [0; 8];
                    stream.read_exact(&mut echo).await.unwrap();
                    assert_eq!(echo[..], message[..]);
                }
            }));
            join(server, clients).await;
            assert_eq!(served.get(), 200);
        });
        io.settle();
    });
}

#[test]
fn names_are_resolved_off_the_loop() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let found = io.block_on(lookup_host("127.0.0.1:80")).unwrap();
        assert_eq!(found, ["127.0.0.1:80".parse().unwrap()]);
        assert!(io.block_on(lookup_host("no port")).is_err());
    });
}

/// Takes the next connection, one of the ways there are.
type Accept<'a, L> = &'a dyn Fn(&'a L) -> futures::future::LocalBoxFuture<'a, std::io::Result<()>>;

/// Out of descriptors, each try but the first waits, longer each time; when there are some again, the
/// connections are all there, also those a dropped future has waited for.
fn accept_at_the_limit<'a, L>(io: &Loop, listener: &'a L, accept: Accept<'a, L>) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // The number the next descriptor would get.
    let lowest = std::fs::File::open("/dev/null").unwrap().as_raw_fd();
    setrlimit(Resource::RLIMIT_NOFILE, lowest as u64, hard).unwrap();
    let mut last = Instant::now();
    for at_least in [0, 5, 10, 20] {
        let refused = io.block_on(accept(listener)).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EMFILE));
        assert!(last.elapsed() >= Duration::from_millis(at_least));
        last = Instant::now();
    }
    let mut dropped = accept(listener);
    assert!(poll_once(dropped.as_mut()).is_pending());
    assert_eq!(io.driver.in_flight(), 1, "it waits for the time");
    drop(dropped);
    assert_eq!(io.driver.in_flight(), 0);
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    io.block_on(accept(listener)).unwrap();
    // It does not wait any more.
    assert!(matches!(
        poll_once(accept(listener).as_mut()),
        Poll::Ready(Ok(()))
    ));
}

#[test]
fn out_of_descriptors_an_accept_waits_before_it_tries_again() {
    let name = "out_of_descriptors_an_accept_waits_before_it_tries_again";
    in_a_process_of_its_own(name, || {
        on_every_backend(|choice| {
            let io = Loop::new(choice);
            let listener = TcpListener::bind(LOOPBACK).unwrap();
            let address = listener.local_addr().unwrap();
            let connect = |_| std::net::TcpStream::connect(address).unwrap();
            let _clients: Vec<_> = (0..6).map(connect).collect();
            let accept: Accept<TcpListener> =
                &|listener| Box::pin(async { listener.accept().await.map(drop) });
            accept_at_the_limit(&io, &listener, accept);
            let accept: Accept<TcpListener> =
                &|listener| Box::pin(async { listener.accept_std().await.map(drop) });
            accept_at_the_limit(&io, &listener, accept);
            let accept: Accept<TcpListener> =
                &|listener| Box::pin(async { listener.incoming().next().await.unwrap().map(drop) });
            accept_at_the_limit(&io, &listener, accept);

            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("s");
            let listener = UnixListener::bind(&path).unwrap();
            let connect = |_| std::os::unix::net::UnixStream::connect(&path).unwrap();
            let _clients: Vec<_> = (0..6).map(connect).collect();
            let accept: Accept<UnixListener> =
                &|listener| Box::pin(async { listener.accept().await.map(drop) });
            accept_at_the_limit(&io, &listener, accept);
            let accept: Accept<UnixListener> =
                &|listener| Box::pin(async { listener.accept_std().await.map(drop) });
            accept_at_the_limit(&io, &listener, accept);
            let accept: Accept<UnixListener> =
                &|listener| Box::pin(async { listener.incoming().next().await.unwrap().map(drop) });
            accept_at_the_limit(&io, &listener, accept);
        });
    });
}

/// Reads `expected` piece by piece with room for more: a read that ends early has not emptied the
/// socket.
fn reads_all_of(io: &Loop, stream: &mut (impl AsyncRead + Unpin), expected: &[u8]) {
    let mut got: Vec<u8> = Vec::new();
    while got.len() < expected.len() {
        let mut room = [0; 64];
        let read = io.must_end("a read of what is there", stream.read(&mut room));
        got.extend(&room[..read.unwrap()]);
    }
    assert_eq!(got, expected);
}

/// A read ends at TCP's urgent mark, with more behind it, for which no new edge comes.
#[test]
fn a_read_that_ends_at_the_urgent_mark_is_followed_by_the_next() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let listener = std::net::TcpListener::bind(LOOPBACK).unwrap();
        let mut peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut ours = TcpStream::from_std(listener.accept().unwrap().0).unwrap();
        // The stream has been waited for, so that its edge has been and gone.
        let mut first = [0; 1];
        let mut waiting = pin!(ours.read_exact(&mut first));
        assert!(poll_once(waiting.as_mut()).is_pending());
        peer.write_all(b"abc").unwrap();
        socket2::SockRef::from(&peer)
            .send_out_of_band(b"!")
            .unwrap();
        peer.write_all(b"def").unwrap();
        io.must_end("the first byte", waiting).unwrap();
        reads_all_of(&io, &mut ours, b"bcdef");
        // The same through `recv`, which owns its buffer.
        peer.write_all(b"abc").unwrap();
        socket2::SockRef::from(&peer)
            .send_out_of_band(b"!")
            .unwrap();
        peer.write_all(b"def").unwrap();
        let mut got: Vec<u8> = Vec::new();
        while got.len() < 6 {
            let (read, buf) = io.must_end("a recv of what is there", ours.recv(vec![0; 64]));
            got.extend(&buf[..read.unwrap()]);
        }
        assert_eq!(got, b"abcdef");
    });
}

/// A read ends after a Unix message that carries descriptors, with more behind it.
#[test]
fn a_read_that_ends_at_a_message_with_descriptors_is_followed_by_the_next() {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    use std::os::fd::AsRawFd;
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let (mut peer, ours) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut ours = UnixStream::from_std(ours).unwrap();
        let mut first = [0; 1];
        let mut waiting = pin!(ours.read_exact(&mut first));
        assert!(poll_once(waiting.as_mut()).is_pending());
        let descriptors = [peer.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let part = [IoSlice::new(b"bc")];
        peer.write_all(b"a").unwrap();
        sendmsg::<()>(peer.as_raw_fd(), &part, &rights, MsgFlags::empty(), None).unwrap();
        peer.write_all(b"def").unwrap();
        io.must_end("the first byte", waiting).unwrap();
        reads_all_of(&io, &mut ours, b"bcdef");
    });
}

/// More of them than the kernel takes at once.
#[test]
fn vectored_transfers_of_very_many_parts_move_the_first() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let (mut one, mut other) = UnixStream::pair().unwrap();
        let bytes = noise(3000);
        let parts: Vec<_> = bytes.chunks(1).map(IoSlice::new).collect();
        let sent = io.must_end("a write", one.write_vectored(&parts)).unwrap();
        assert_eq!(sent, 1024);
        let mut room = vec![0; 3000];
        let mut parts: Vec<_> = room.chunks_mut(1).map(IoSliceMut::new).collect();
        let got = io.must_end("a read", other.read_vectored(&mut parts));
        assert_eq!(got.unwrap(), 1024);
        assert_eq!(room[..1024], bytes[..1024]);
    });
}

/// What a server meets whose client has sent its request, shut its side down and
/// reads slowly: the wait for room ends when there is room, not again and again
/// because the other direction has ended.
#[test]
fn a_blocked_writer_beside_a_half_closed_peer_sleeps() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        for tcp in [false, true] {
            let (ours, mut peer): (_, Box<dyn Read + Send>) = if tcp {
                let listener = std::net::TcpListener::bind(LOOPBACK).unwrap();
                let ours = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                let (peer, _) = listener.accept().unwrap();
                peer.shutdown(Shutdown::Write).unwrap();
                let ours = TcpStream::from_std(ours).unwrap();
                (futures::future::Either::Left(ours), Box::new(peer))
            } else {
                let (ours, peer) = std::os::unix::net::UnixStream::pair().unwrap();
                peer.shutdown(Shutdown::Write).unwrap();
                let ours = UnixStream::from_std(ours).unwrap();
                (futures::future::Either::Right(ours), Box::new(peer))
            };
            let (count, waker) = Count::new();
            let mut cx = Context::from_waker(&waker);
            let len = 16 << 20;
            let mut send = pin!(async {
                match &ours {
                    futures::future::Either::Left(tcp) => tcp.send_all(vec![0x5a; len]).await,
                    futures::future::Either::Right(unix) => unix.send_all(vec![0x5a; len]).await,
                }
            });
            assert!(send.as_mut().poll(&mut cx).is_pending());
            // A few, for the buffers to fill.
            for _ in 0..200 {
                let before = count.get();
                io.driver.park(Some(Duration::from_millis(1)));
                if count.get() > before {
                    assert!(send.as_mut().poll(&mut cx).is_pending());
                }
            }
            assert!(count.get() < 20, "woken {} times for nothing", count.get());
            let reader = std::thread::spawn(move || {
                let mut read = vec![0; len];
                peer.read_exact(&mut read).unwrap();
                read
            });
            let (sent, _) = io.block_on(send);
            sent.unwrap();
            assert!(reader.join().unwrap() == vec![0x5a; len]);
        }
    });
}
