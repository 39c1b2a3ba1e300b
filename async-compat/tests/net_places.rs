//! Sockets on more than one OS thread: polled on one, woken by another, dropped on a third; with a
//! runtime that ends, and with executors that know nothing of runtimes.

use std::io::{ErrorKind, Read, Write};
use std::sync::mpsc;
use std::time::Duration;

use corespun_compat as tokio;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket, UnixStream};
use tokio::runtime::{Builder, Runtime};

fn one_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn two_workers() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 % 251) as u8).collect()
}

/// A connection of the runtime's, and its peer, which blocks.
fn connection(runtime: &Runtime) -> (TcpStream, std::net::TcpStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let stream = runtime.block_on(TcpStream::connect(address)).unwrap();
    (stream, listener.accept().unwrap().0)
}

#[test]
fn the_halves_of_a_split_are_polled_in_two_runtimes_and_dropped_outside() {
    const LEN: usize = 8 << 20;
    let home = one_thread();
    let (stream, mut peer) = connection(&home);
    let (mut reader, mut writer) = stream.into_split();
    let echo = std::thread::spawn(move || {
        let mut from = peer.try_clone().unwrap();
        let mut buf = vec![0; 65536];
        loop {
            match from.read(&mut buf).unwrap() {
                0 => return peer,
                count => peer.write_all(&buf[..count]).unwrap(),
            }
        }
    });
    let sent = pattern(LEN);
    let writes = std::thread::spawn(move || {
        one_thread().block_on(async {
            writer.write_all(&sent).await.unwrap();
            writer.shutdown().await.unwrap();
        });
        writer
    });
    let reads = std::thread::spawn(move || {
        let mut all = vec![0; LEN];
        two_workers().block_on(reader.read_exact(&mut all)).unwrap();
        (reader, all)
    });
    let (reader, received) = reads.join().unwrap();
    let writer = writes.join().unwrap();
    assert!(received == pattern(LEN));
    let mut peer = echo.join().unwrap();
    // Neither runtime is there any more, nor the OS threads.
    std::thread::spawn(move || drop(writer)).join().unwrap();
    std::thread::spawn(move || drop(reader)).join().unwrap();
    assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    drop(home);
}

#[test]
fn a_socket_that_is_taken_out_of_its_runtime_goes_on_in_another_one() {
    let first = one_thread();
    let (mut stream, mut peer) = connection(&first);
    // It waits in the first.
    let waits = first.block_on(async {
        let mut buf = [0; 4];
        tokio::time::timeout(Duration::from_millis(1), stream.read(&mut buf)).await
    });
    assert!(waits.is_err());
    drop(first);
    let second = two_workers();
    peer.write_all(b"ping").unwrap();
    let mut buf = [0; 4];
    let error = second.block_on(stream.read_exact(&mut buf)).unwrap_err();
    assert!(tokio::runtime::is_rt_shutdown_err(&error), "{error}");
    let stream = stream.into_std().unwrap();
    second.block_on(async {
        let mut stream = TcpStream::from_std(stream).unwrap();
        stream.read_exact(&mut buf).await.unwrap();
    });
    assert_eq!(&buf, b"ping");
}

#[test]
fn after_the_runtime_a_wait_says_that_it_is_gone() {
    let runtime = one_thread();
    let (mut stream, mut peer) = connection(&runtime);
    drop(runtime);
    peer.write_all(b"ping").unwrap();
    let mut buf = [0; 4];
    // What need not wait goes on.
    futures::executor::block_on(stream.read_exact(&mut buf)).unwrap();
    let error = futures::executor::block_on(stream.read(&mut buf)).unwrap_err();
    assert!(tokio::runtime::is_rt_shutdown_err(&error), "{error}");
}

#[test]
fn a_foreign_executor_is_served_by_the_runtime() {
    let runtime = two_workers();
    let (stream, mut peer) = {
        let _entered = runtime.enter();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        socket.set_nonblocking(true).unwrap();
        (
            TcpStream::from_std(socket).unwrap(),
            listener.accept().unwrap().0,
        )
    };
    let (sender, done) = mpsc::channel();
    let reads = std::thread::spawn(move || {
        let mut stream = stream;
        let mut buf = [0; 4];
        for _ in 0..100 {
            futures::executor::block_on(stream.read_exact(&mut buf)).unwrap();
            sender.send(buf).unwrap();
        }
    });
    for _ in 0..100 {
        peer.write_all(b"ping").unwrap();
        assert_eq!(&done.recv().unwrap(), b"ping");
    }
    reads.join().unwrap();
}

/// In a runtime of one thread it waits until somebody is in `block_on`.
#[test]
fn a_wait_outside_begins_to_be_served_with_block_on() {
    let runtime = one_thread();
    let (stream, mut peer) = {
        let _entered = runtime.enter();
        let (ours, peer) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (UnixStream::from_std(ours).unwrap(), peer)
    };
    let (sender, done) = tokio::sync::oneshot::channel();
    let reads = std::thread::spawn(move || {
        let mut stream = stream;
        let mut buf = [0; 4];
        futures::executor::block_on(stream.read_exact(&mut buf)).unwrap();
        sender.send(buf).unwrap();
    });
    peer.write_all(b"ping").unwrap();
    assert_eq!(&runtime.block_on(done).unwrap(), b"ping");
    reads.join().unwrap();
}

#[test]
fn a_peer_that_never_reads_holds_up_its_own_writer_alone() {
    for runtime in [one_thread(), two_workers()] {
        runtime.block_on(async {
            let (mut deaf, _peer) = UnixStream::pair().unwrap();
            let (mut one, mut other) = UnixStream::pair().unwrap();
            let stuck = tokio::spawn(async move { deaf.write_all(&vec![7; 64 << 20]).await });
            let echo = tokio::spawn(async move {
                let mut buf = [0; 4];
                for _ in 0..1000 {
                    other.read_exact(&mut buf).await.unwrap();
                    other.write_all(&buf).await.unwrap();
                }
            });
            let mut buf = [0; 4];
            for _ in 0..1000 {
                one.write_all(b"ping").await.unwrap();
                one.read_exact(&mut buf).await.unwrap();
            }
            echo.await.unwrap();
            assert!(!stuck.is_finished());
            stuck.abort();
            assert!(stuck.await.unwrap_err().is_cancelled());
        });
    }
}

/// Nothing in the program says so; the statistics of the workers do.
#[test]
fn a_server_with_one_accept_loop_serves_from_both_workers() {
    use std::collections::HashMap;
    use std::sync::{Arc, Mutex};

    let runtime = two_workers();
    let served = Arc::new(Mutex::new(HashMap::new()));
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let counts = served.clone();
        let server = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let counts = counts.clone();
                tokio::spawn(async move {
                    let mut buf = [0; 4];
                    while stream.read_exact(&mut buf).await.is_ok() {
                        let worker = tokio::runtime::worker_index();
                        *counts.lock().unwrap().entry(worker).or_insert(0) += 1;
                        stream.write_all(&buf).await.unwrap();
                    }
                });
            }
        });
        let mut clients = Vec::new();
        for _ in 0..16 {
            clients.push(TcpStream::connect(address).await.unwrap());
        }
        let busy = || {
            let metrics = tokio::runtime::Handle::current().metrics();
            [0, 1].map(|worker| metrics.worker_total_busy_duration(worker))
        };
        let (mut buf, mut before) = ([0; 4], busy());
        for round in 0..10 {
            for client in &mut clients {
                client.write_all(b"ping").await.unwrap();
                client.read_exact(&mut buf).await.unwrap();
            }
            if round == 0 {
                // All of them are accepted.
                before = busy();
            }
        }
        let after = busy();
        assert!(
            (0..2).all(|worker| after[worker] > before[worker]),
            "{before:?} {after:?}"
        );
        server.abort();
    });
    let served = served.lock().unwrap();
    let by_worker = [0, 1].map(|worker| served.get(&Some(worker)).copied().unwrap_or(0));
    assert_eq!(by_worker.iter().sum::<u32>(), 160);
    // The connections are spread evenly but for a few.
    assert!(by_worker.iter().all(|&count| count >= 40), "{by_worker:?}");
}

#[test]
fn one_udp_socket_serves_tasks_on_both_workers() {
    let runtime = two_workers();
    runtime.block_on(async {
        let socket = std::sync::Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let address = socket.local_addr().unwrap();
        let serve = |socket: std::sync::Arc<UdpSocket>| async move {
            let mut buf = [0; 16];
            loop {
                let (count, from) = socket.recv_from(&mut buf).await.unwrap();
                socket.send_to(&buf[..count], from).await.unwrap();
            }
        };
        let servers = [0; 4].map(|_| tokio::spawn(serve(socket.clone())));
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect(address).await.unwrap();
        let mut buf = [0; 16];
        for number in 0..1000u32 {
            client.send(&number.to_be_bytes()).await.unwrap();
            let count = client.recv(&mut buf).await.unwrap();
            assert_eq!(buf[..count], number.to_be_bytes());
        }
        servers.iter().for_each(|server| server.abort());
    });
}

#[test]
fn what_is_dropped_is_closed_at_once_and_its_address_free() {
    let runtime = one_thread();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        // It is watched.
        let waits = tokio::time::timeout(Duration::from_millis(1), listener.accept()).await;
        assert!(waits.is_err());
        drop(listener);
        // Without `SO_REUSEADDR`, in the same poll.
        drop(std::net::TcpListener::bind(address).unwrap());
        let refused = TcpStream::connect(address).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn thousands_of_idle_connections_leave_the_busy_one_alone() {
    let runtime = two_workers();
    runtime.block_on(async {
        let mut idle = Vec::new();
        // As many as the limit of descriptors leaves, up to ten thousand.
        let (_, hard) =
            nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
        let _ =
            nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard, hard);
        let count = (hard.saturating_sub(200) / 2).min(10_000);
        for _ in 0..count {
            let (mut one, other) = UnixStream::pair().unwrap();
            let task = tokio::spawn(async move { one.read(&mut [0; 1]).await });
            idle.push((task, other));
        }
        let (mut one, mut other) = UnixStream::pair().unwrap();
        let echo = tokio::spawn(async move {
            let mut buf = [0; 4];
            while other.read_exact(&mut buf).await.is_ok() {
                other.write_all(&buf).await.unwrap();
            }
        });
        let mut buf = [0; 4];
        for _ in 0..100 {
            one.write_all(b"ping").await.unwrap();
            one.read_exact(&mut buf).await.unwrap();
        }
        drop(one);
        echo.await.unwrap();
        // Every one of them is told of the end of its peer.
        for (task, other) in idle {
            drop(other);
            assert_eq!(task.await.unwrap().unwrap(), 0);
        }
    });
}
