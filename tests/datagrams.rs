//! UDP and Unix datagram sockets, the readiness of streams, and sockets with options, on each
//! back-end.

use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::pin::pin;
use std::time::Duration;

use corespun::net::{TcpListener, TcpSocket, UdpSocket, UnixDatagram, UnixStream};
use harness::io::{Loop, on_every_backend, poll_once};

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

#[test]
fn datagrams_arrive_whole_with_their_senders() {
    on_every_backend(|choice| {
        let a = Loop::new(choice);
        a.block_on(async {
            let one = UdpSocket::bind(LOOPBACK).unwrap();
            let other = UdpSocket::bind(LOOPBACK).unwrap();
            let (here, there) = (one.local_addr().unwrap(), other.local_addr().unwrap());
            assert_eq!(one.send_to("ping", there).await.0.unwrap(), 4);
            assert_eq!(one.send_to("pong!", there).await.0.unwrap(), 5);
            let (peeked, buf) = other.peek_from(Vec::with_capacity(2)).await;
            assert_eq!((peeked.unwrap(), &buf[..]), ((2, here), &b"pi"[..]));
            let (received, buf) = other.recv_from(Vec::with_capacity(16)).await;
            assert_eq!((received.unwrap(), &buf[..]), ((4, here), &b"ping"[..]));
            // What does not fit is lost.
            let (received, buf) = other.recv_from(Vec::with_capacity(4)).await;
            assert_eq!((received.unwrap(), &buf[..]), ((4, here), &b"pong"[..]));
            let nothing = other.try_recv_from(&mut [0; 4]).unwrap_err();
            assert_eq!(nothing.kind(), ErrorKind::WouldBlock);

            one.connect(there).unwrap();
            other.connect(here).unwrap();
            one.send("x").await.0.unwrap();
            other.readable().await.unwrap();
            assert_eq!(other.recv(vec![0; 4]).await.0.unwrap(), 1);
            assert_eq!(one.peer_addr().unwrap(), there);
        });
    });
}

#[test]
fn a_dropped_receive_has_taken_nothing() {
    on_every_backend(|choice| {
        let a = Loop::new(choice);
        let (one, other) = UnixDatagram::pair().unwrap();
        assert!(poll_once(pin!(other.recv(vec![0; 4]))).is_pending());
        one.try_send(b"ping").unwrap();
        a.driver.park(Some(Duration::from_millis(20)));
        let (received, buf) = a.block_on(other.recv(vec![0; 4]));
        assert_eq!((received.unwrap(), &buf[..]), (4, &b"ping"[..]));
    });
}

#[test]
fn a_datagram_socket_knows_its_path_and_its_peer() {
    on_every_backend(|choice| {
        let a = Loop::new(choice);
        let dir = tempfile::tempdir().unwrap();
        let (here, there) = (dir.path().join("here"), dir.path().join("there"));
        let one = UnixDatagram::bind(&here).unwrap();
        let other = UnixDatagram::bind(&there).unwrap();
        let nameless = UnixDatagram::unbound().unwrap();
        a.block_on(async {
            one.send_to("ping", &there).await.0.unwrap();
            let (received, _) = other.recv_from(vec![0; 16]).await;
            let (count, from) = received.unwrap();
            assert_eq!((count, from.as_pathname()), (4, Some(&*here)));
            nameless.send_to("x", &there).await.0.unwrap();
            let (received, _) = other.recv_from(vec![0; 16]).await;
            assert!(received.unwrap().1.is_unnamed());
            nameless.connect(&there).unwrap();
            assert_eq!(nameless.peer_addr().unwrap().as_pathname(), Some(&*there));
        });
    });
}

/// A receiver that never reads: the sender waits, and others have their turn.
#[test]
fn a_full_receiver_makes_the_sender_wait() {
    on_every_backend(|choice| {
        let a = Loop::new(choice);
        let (one, other) = UnixDatagram::pair().unwrap();
        let mut sent = 0;
        while one.try_send(&[7; 1000]).is_ok() {
            sent += 1;
        }
        let mut sending = pin!(one.send(vec![8; 1000]));
        assert!(poll_once(sending.as_mut()).is_pending());
        a.driver.park(Some(Duration::ZERO));
        assert!(poll_once(sending.as_mut()).is_pending());
        for _ in 0..sent {
            assert_eq!(other.try_recv(&mut [0; 1000]).unwrap(), 1000);
        }
        assert_eq!(a.block_on(sending).0.unwrap(), 1000);
    });
}

#[test]
fn a_peek_leaves_what_it_sees() {
    on_every_backend(|choice| {
        let a = Loop::new(choice);
        let (mut peer, ours) = StdUnixStream::pair().unwrap();
        let stream = UnixStream::from_std(ours).unwrap();
        let would_block = stream.try_recv(&mut [0; 4]).unwrap_err();
        assert_eq!(would_block.kind(), ErrorKind::WouldBlock);
        let mut readable = pin!(stream.readable());
        assert!(poll_once(readable.as_mut()).is_pending());
        peer.write_all(b"ping").unwrap();
        a.block_on(readable).unwrap();
        let (peeked, buf) = a.block_on(stream.peek(Vec::with_capacity(2)));
        assert_eq!((peeked.unwrap(), &buf[..]), (2, &b"pi"[..]));
        let mut buf = [0; 8];
        assert_eq!(stream.try_recv(&mut buf).unwrap(), 4);
        // The next one waits: what was tried has said that it is empty.
        let mut receiving = pin!(stream.recv(vec![0; 1]));
        assert!(poll_once(receiving.as_mut()).is_pending());
        peer.write_all(b"x").unwrap();
        assert_eq!(a.block_on(receiving).0.unwrap(), 1);
    });
}

#[test]
fn a_socket_has_its_options_before_it_connects() {
    on_every_backend(|choice| {
        let a = Loop::new(choice);
        let listen = |address| -> std::io::Result<TcpListener> {
            let socket = TcpSocket::of(address)?;
            socket.set_reuse_port(true)?;
            socket.bind(address)?;
            socket.listen(8)
        };
        let first = listen(LOOPBACK).unwrap();
        let address = first.local_addr().unwrap();
        let second = listen(address).unwrap();
        assert_eq!(second.local_addr().unwrap(), address);

        let socket = TcpSocket::of(address).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_linger(Some(Duration::ZERO)).unwrap();
        let stream = a.block_on(socket.connect(address)).unwrap();
        assert!(stream.nodelay().unwrap());
        assert_eq!(stream.linger().unwrap(), Some(Duration::ZERO));
        drop((first, second));
        let refused = TcpSocket::of(address).unwrap().connect(address);
        assert!(a.block_on(refused).is_err());
    });
}

/// What stays on its OS thread is named so; that it cannot be sent is in the documentation of `io`.
#[test]
fn a_stream_goes_to_another_thread_as_its_std_type() {
    let a = Loop::new(corespun::io::BackendChoice::Auto);
    let (mut peer, ours) = StdUnixStream::pair().unwrap();
    let stream = UnixStream::from_std(ours).unwrap();
    let std = stream.into_std().unwrap();
    let choice = corespun::io::BackendChoice::Auto;
    let other = std::thread::spawn(move || {
        let b = Loop::new(choice);
        let stream = UnixStream::from_std(std).unwrap();
        b.block_on(stream.recv(vec![0; 4])).0.unwrap()
    });
    peer.write_all(b"ping").unwrap();
    assert_eq!(other.join().unwrap(), 4);
    drop(a);
}
