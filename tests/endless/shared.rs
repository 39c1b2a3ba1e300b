//! Shared descriptors, datagram sockets, and what streams offer beside reads and writes.

use std::future::poll_fn;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream as StdUnixStream;

use corespun::io::{Interest, SharedFd};
use corespun::net::{TcpSocket, UdpSocket, UnixDatagram, UnixStream};
use nix::sys::eventfd::EventFd;

use super::{Source, source};

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// An eventfd that is readable and writable, always.
fn ready() -> SharedFd<EventFd> {
    let fd = SharedFd::new(EventFd::from_value(1).unwrap(), Interest::READABLE);
    fd.assume(corespun::io::Ready::READABLE)
}

/// A socket whose datagrams come back to it; one is there.
fn udp() -> UdpSocket {
    let socket = UdpSocket::bind(LOOPBACK).unwrap();
    socket.connect(socket.local_addr().unwrap()).unwrap();
    assert_eq!(
        socket
            .try_send_to(b"x", socket.local_addr().unwrap())
            .unwrap(),
        1
    );
    socket
}

/// As [`udp`].
fn unix() -> (UnixDatagram, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.connect(&path).unwrap();
    assert_eq!(socket.try_send(b"x").unwrap(), 1);
    (socket, dir)
}

/// A stream with something to read and room to write, and its other end.
fn stream() -> (UnixStream, StdUnixStream) {
    let (ours, mut peer) = StdUnixStream::pair().unwrap();
    peer.write_all(b"x").unwrap();
    (UnixStream::from_std(ours).unwrap(), peer)
}

pub(crate) const SOURCES: &[Source] = &[
    source!(
        ["io/shared/mod.rs fn poll_ready"],
        {
            let fd = ready();
        },
        assert!(
            poll_fn(|cx| fd.poll_ready(cx, Interest::READABLE))
                .await
                .is_ok()
        )
    ),
    source!(
        ["io/shared/mod.rs fn ready"],
        {
            let fd = ready();
        },
        assert!(fd.ready(Interest::READABLE).await.is_ok())
    ),
    source!(
        ["io/shared/mod.rs fn poll_io"],
        {
            let fd = ready();
        },
        poll_fn(|cx| fd.poll_io(cx, Interest::READABLE, |_, _| Ok(())))
            .await
            .unwrap()
    ),
    source!(
        ["io/shared/mod.rs fn async_io"],
        {
            let (mut peer, ours) = StdUnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            let fd = SharedFd::new(ours, Interest::READABLE);
        },
        {
            peer.write_all(b"x").unwrap();
            let read = |mut socket: &StdUnixStream| socket.read(&mut [0]);
            assert_eq!(fd.async_io(Interest::READABLE, read).await.unwrap(), 1);
        }
    ),
    source!(
        ["net/udp.rs fn readable"],
        {
            let socket = udp();
        },
        socket.readable().await.unwrap()
    ),
    source!(
        ["net/udp.rs fn writable"],
        {
            let socket = udp();
        },
        socket.writable().await.unwrap()
    ),
    source!(
        ["net/udp.rs fn send"],
        {
            let socket = udp();
        },
        assert_eq!(socket.send("x").await.0.unwrap(), 1)
    ),
    source!(
        ["net/udp.rs fn send_to"],
        {
            let socket = udp();
            let address = socket.local_addr().unwrap();
        },
        assert_eq!(socket.send_to("x", address).await.0.unwrap(), 1)
    ),
    source!(
        ["net/udp.rs fn recv"],
        {
            let socket = udp();
            let address = socket.local_addr().unwrap();
        },
        {
            socket.try_send_to(b"x", address).unwrap();
            assert_eq!(socket.recv(vec![0; 1]).await.0.unwrap(), 1);
        }
    ),
    source!(
        ["net/udp.rs fn recv_from"],
        {
            let socket = udp();
            let address = socket.local_addr().unwrap();
        },
        {
            socket.try_send_to(b"x", address).unwrap();
            assert_eq!(socket.recv_from(vec![0; 1]).await.0.unwrap(), (1, address));
        }
    ),
    source!(
        ["net/udp.rs fn peek_from"],
        {
            let socket = udp();
            let address = socket.local_addr().unwrap();
        },
        assert_eq!(socket.peek_from(vec![0; 1]).await.0.unwrap(), (1, address))
    ),
    source!(
        ["net/unix_datagram.rs fn readable"],
        {
            let (socket, _dir) = unix();
        },
        socket.readable().await.unwrap()
    ),
    source!(
        ["net/unix_datagram.rs fn writable"],
        {
            let (socket, _peer) = UnixDatagram::pair().unwrap();
        },
        socket.writable().await.unwrap()
    ),
    source!(
        [
            "net/unix_datagram.rs fn send",
            "net/unix_datagram.rs fn recv"
        ],
        {
            let (socket, _dir) = unix();
        },
        {
            // Few fit: each is taken out again, at once.
            assert_eq!(socket.try_recv(&mut [0; 1]).unwrap(), 1);
            assert_eq!(socket.send("x").await.0.unwrap(), 1);
        }
    ),
    source!(
        [],
        {
            let (socket, _dir) = unix();
        },
        {
            assert_eq!(socket.recv(vec![0; 1]).await.0.unwrap(), 1);
            assert_eq!(socket.try_send(b"x").unwrap(), 1);
        }
    ),
    source!(
        ["net/unix_datagram.rs fn send_to"],
        {
            let (socket, dir) = unix();
            let path = dir.path().join("s");
        },
        {
            assert_eq!(socket.try_recv(&mut [0; 1]).unwrap(), 1);
            assert_eq!(socket.send_to("x", &path).await.0.unwrap(), 1);
        }
    ),
    source!(
        ["net/unix_datagram.rs fn recv_from"],
        {
            let (socket, _dir) = unix();
        },
        {
            let (received, _) = socket.recv_from(vec![0; 1]).await;
            assert_eq!(received.unwrap().0, 1);
            assert_eq!(socket.try_send(b"x").unwrap(), 1);
        }
    ),
    source!(
        ["net/tcp_socket.rs fn connect"],
        {
            let listener = std::net::TcpListener::bind(LOOPBACK).unwrap();
            let address = listener.local_addr().unwrap();
            std::thread::spawn(move || while listener.accept().is_ok() {});
        },
        drop(
            TcpSocket::of(address)
                .unwrap()
                .connect(address)
                .await
                .unwrap()
        )
    ),
    source!(
        ["net/ready.rs fn readable"],
        {
            let (stream, _peer) = stream();
        },
        stream.readable().await.unwrap()
    ),
    source!(
        ["net/ready.rs fn writable"],
        {
            let (stream, _peer) = stream();
        },
        stream.writable().await.unwrap()
    ),
    source!(
        ["net/ready.rs fn peek"],
        {
            let (stream, _peer) = stream();
        },
        assert_eq!(stream.peek(vec![0; 1]).await.0.unwrap(), 1)
    ),
];
