//! Files, sockets and what else goes through the I/O driver.

use std::future::poll_fn;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::pin::Pin;

use corespun::fs::{self, File, OpenOptions};
use corespun::io::raw::{opcode, types};
use corespun::io::{Driver, PollFd, unblock};
use corespun::net::{TcpListener, TcpStream, UnixListener, UnixStream, lookup_host};
use futures::StreamExt;
use futures::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use nix::sys::eventfd::EventFd;

use super::{ROUNDS, Source, source};

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A stream whose peer, another OS thread, sends and reads without end.
fn tireless() -> UnixStream {
    let (ours, mut peer) = StdUnixStream::pair().unwrap();
    let mut other = peer.try_clone().unwrap();
    std::thread::spawn(move || while peer.write_all(&[7; 65_536]).is_ok() {});
    std::thread::spawn(move || while other.read(&mut [0; 65_536]).is_ok_and(|count| count > 0) {});
    UnixStream::from_std(ours).unwrap()
}

/// As [`tireless`], over TCP.
fn tireless_tcp() -> TcpStream {
    let listener = std::net::TcpListener::bind(LOOPBACK).unwrap();
    let mut peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (ours, _) = listener.accept().unwrap();
    let mut other = peer.try_clone().unwrap();
    std::thread::spawn(move || while peer.write_all(&[7; 65_536]).is_ok() {});
    std::thread::spawn(move || while other.read(&mut [0; 65_536]).is_ok_and(|count| count > 0) {});
    TcpStream::from_std(ours).unwrap()
}

/// A stream whose peer is gone.
fn ended() -> UnixStream {
    UnixStream::pair().unwrap().0
}

/// A listener, and as many connections in its queue as there are rounds.
fn tcp_listener() -> (TcpListener, Vec<std::net::TcpStream>) {
    let listener = TcpListener::bind(LOOPBACK).unwrap();
    let address = listener.local_addr().unwrap();
    let connect = |_| std::net::TcpStream::connect(address).unwrap();
    let clients = (0..=ROUNDS).map(connect).collect();
    (listener, clients)
}

/// As [`tcp_listener`].
fn unix_listener() -> (UnixListener, Vec<StdUnixStream>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let connect = |_| StdUnixStream::connect(&path).unwrap();
    let clients = (0..=ROUNDS).map(connect).collect();
    (listener, clients, dir)
}

/// The address of a listener that another OS thread accepts from without end.
fn served_tcp() -> SocketAddr {
    let listener = std::net::TcpListener::bind(LOOPBACK).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || while listener.accept().is_ok() {});
    address
}

/// As [`served_tcp`].
fn served_unix() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let listener = std::os::unix::net::UnixListener::bind(dir.path().join("s")).unwrap();
    std::thread::spawn(move || while listener.accept().is_ok() {});
    dir
}

async fn file() -> File {
    let file = File::from_std(tempfile::tempfile().unwrap()).unwrap();
    file.write_all_at(vec![7; 4096], 0).await.0.unwrap();
    file
}

/// An eventfd that is readable and writable, always.
fn ready() -> PollFd<EventFd> {
    PollFd::new(EventFd::from_value(1).unwrap()).unwrap()
}

pub(crate) const SOURCES: &[Source] = &[
    // Streams, with a peer that never stops, by each way to read and write.
    source!(
        ["net/socket.rs fn recv"],
        {
            let stream = tireless();
        },
        assert_eq!(stream.recv(vec![0; 1]).await.0.unwrap(), 1)
    ),
    source!(
        [],
        {
            let stream = tireless_tcp();
        },
        assert_eq!(stream.recv(vec![0; 1]).await.0.unwrap(), 1)
    ),
    source!(
        [],
        {
            let ended = ended();
        },
        assert_eq!(ended.recv(vec![0; 1]).await.0.unwrap(), 0)
    ),
    source!(
        ["net/socket.rs fn recv_exact"],
        {
            let stream = tireless();
        },
        stream.recv_exact(vec![0; 1]).await.0.unwrap()
    ),
    source!(
        [],
        {
            let stream = ended();
        },
        stream.recv_exact(vec![0; 0]).await.0.unwrap()
    ),
    source!(
        ["net/socket.rs fn send"],
        {
            let stream = tireless();
        },
        assert_eq!(stream.send(vec![0; 1]).await.0.unwrap(), 1)
    ),
    source!(
        [],
        {
            let stream = tireless_tcp();
        },
        assert_eq!(stream.send(vec![0; 1]).await.0.unwrap(), 1)
    ),
    source!(
        [],
        {
            let ended = ended();
        },
        assert!(ended.send(vec![0; 1]).await.0.is_err())
    ),
    source!(
        ["net/socket.rs fn send_all"],
        {
            let stream = tireless();
        },
        stream.send_all(vec![0; 1]).await.0.unwrap()
    ),
    source!(
        [],
        {
            let ended = ended();
        },
        ended.send_all(vec![0; 0]).await.0.unwrap()
    ),
    source!(
        ["net/socket.rs AsyncRead for type"],
        {
            let mut stream = tireless();
        },
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 1)
    ),
    source!(
        [],
        {
            let mut stream = tireless_tcp();
        },
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 1)
    ),
    source!(
        [],
        {
            let mut stream = tireless();
        },
        {
            let mut byte = [0];
            let bufs = &mut [std::io::IoSliceMut::new(&mut byte)];
            let read = poll_fn(|cx| Pin::new(&mut stream).poll_read_vectored(cx, bufs)).await;
            assert_eq!(read.unwrap(), 1);
        }
    ),
    source!(
        ["net/socket.rs AsyncWrite for type"],
        {
            let mut stream = tireless();
        },
        assert_eq!(stream.write(&[0]).await.unwrap(), 1)
    ),
    source!(
        [],
        {
            let mut stream = tireless();
        },
        {
            let bufs = [std::io::IoSlice::new(&[0])];
            let written = poll_fn(|cx| Pin::new(&mut stream).poll_write_vectored(cx, &bufs)).await;
            assert_eq!(written.unwrap(), 1);
        }
    ),
    source!(
        [],
        {
            let mut stream = tireless();
        },
        stream.flush().await.unwrap()
    ),
    source!(
        [],
        {
            let mut ended = ended();
        },
        ended.close().await.unwrap()
    ),
    source!(
        [],
        {
            let (mut read, _write) = tireless().split();
        },
        assert_eq!(read.read(&mut [0]).await.unwrap(), 1)
    ),
    source!(
        [],
        {
            let (_read, mut write) = tireless().split();
        },
        assert_eq!(write.write(&[0]).await.unwrap(), 1)
    ),
    source!(
        [],
        {
            let mut copied = tireless();
            let mut sink = futures::io::sink();
        },
        {
            let copied = futures::io::copy_buf(
                futures::io::BufReader::new((&mut copied).take(1)),
                &mut sink,
            );
            assert_eq!(copied.await.unwrap(), 1);
        }
    ),
    // Connections, made and taken.
    source!(
        ["net/tcp.rs fn connect"],
        {
            let address = served_tcp();
        },
        drop(TcpStream::connect(address).await.unwrap())
    ),
    source!(
        ["net/unix.rs fn connect"],
        {
            let dir = served_unix();
        },
        drop(UnixStream::connect(dir.path().join("s")).await.unwrap())
    ),
    source!(
        [],
        {},
        assert!(UnixStream::connect("/nonexistent/s").await.is_err())
    ),
    source!(
        [],
        {},
        assert!(UnixStream::connect("x".repeat(200)).await.is_err())
    ),
    source!(
        ["net/tcp.rs fn accept"],
        {
            let (listener, _clients) = tcp_listener();
        },
        drop(listener.accept().await.unwrap())
    ),
    source!(
        ["net/tcp.rs fn accept_std"],
        {
            let (listener, _clients) = tcp_listener();
        },
        drop(listener.accept_std().await.unwrap())
    ),
    source!(
        ["net/tcp.rs Stream for TcpIncoming"],
        {
            let (listener, _clients) = tcp_listener();
        },
        drop(listener.incoming().next().await.unwrap().unwrap())
    ),
    source!(
        ["net/unix.rs fn accept"],
        {
            let (listener, _clients, _dir) = unix_listener();
        },
        drop(listener.accept().await.unwrap())
    ),
    source!(
        ["net/unix.rs fn accept_std"],
        {
            let (listener, _clients, _dir) = unix_listener();
        },
        drop(listener.accept_std().await.unwrap())
    ),
    source!(
        ["net/unix.rs Stream for UnixIncoming"],
        {
            let (listener, _clients, _dir) = unix_listener();
        },
        drop(listener.incoming().next().await.unwrap().unwrap())
    ),
    source!(
        ["net/lookup.rs fn lookup_host"],
        {},
        lookup_host("127.0.0.1:1").await.unwrap()
    ),
    source!([], {}, assert!(lookup_host("127.0.0.1").await.is_err())),
    // Any descriptor.
    source!(
        ["io/readiness.rs fn readable"],
        {
            let ready = ready();
        },
        ready.readable().await.unwrap()
    ),
    source!(
        ["io/readiness.rs fn writable"],
        {
            let ready = ready();
        },
        ready.writable().await.unwrap()
    ),
    source!(
        ["io/readiness.rs fn read_with"],
        {
            let ready = ready();
        },
        ready.read_with(|_| Ok(())).await.unwrap()
    ),
    source!(
        ["io/readiness.rs fn write_with"],
        {
            let ready = ready();
        },
        ready.write_with(|_| Ok(())).await.unwrap()
    ),
    source!(
        ["io/readiness.rs fn poll_read_with"],
        {
            let ready = ready();
        },
        poll_fn(|cx| ready.poll_read_with(cx, |_| Ok(())))
            .await
            .unwrap()
    ),
    source!(
        ["io/readiness.rs fn poll_write_with"],
        {
            let ready = ready();
        },
        poll_fn(|cx| ready.poll_write_with(cx, |_| Ok(())))
            .await
            .unwrap()
    ),
    source!(
        [],
        {
            let ready = ready();
            let mut tries = 0;
        },
        {
            // Interrupted each time, so that one call goes on for ever.
            let rounds = ready.read_with(|_| {
                tries += 1;
                if tries % 2 == 0 {
                    Ok(())
                } else {
                    Err(std::io::ErrorKind::Interrupted.into())
                }
            });
            rounds.await.unwrap();
        }
    ),
    source!(
        ["io/unblock.rs fn unblock"],
        {},
        unblock(|| ()).await.unwrap()
    ),
    // Files.
    source!(
        ["fs/file.rs fn open"],
        {},
        drop(File::open("/dev/null").await.unwrap())
    ),
    source!([], {}, assert!(File::open("/nonexistent").await.is_err())),
    source!([], {}, assert!(File::open("a\0b").await.is_err())),
    source!(
        ["fs/file.rs fn create"],
        {
            let dir = tempfile::tempdir().unwrap();
        },
        drop(File::create(dir.path().join("f")).await.unwrap())
    ),
    source!(
        ["fs/open.rs fn open"],
        {},
        assert!(OpenOptions::new().open("/dev/null").await.is_err())
    ),
    source!(
        ["fs/file.rs fn read_at"],
        {
            let file = file().await;
        },
        assert_eq!(file.read_at(vec![0; 1], 0).await.0.unwrap(), 1)
    ),
    source!(
        [],
        {
            let file = file().await;
        },
        assert!(file.read_at(vec![0; 1], u64::MAX).await.0.is_err())
    ),
    source!(
        ["fs/file.rs fn write_at"],
        {
            let file = file().await;
        },
        assert_eq!(file.write_at(vec![0; 1], 0).await.0.unwrap(), 1)
    ),
    source!(
        [],
        {
            let file = file().await;
        },
        assert!(file.write_at(vec![0; 1], u64::MAX).await.0.is_err())
    ),
    source!(
        ["fs/file.rs fn read_exact_at"],
        {
            let file = file().await;
        },
        file.read_exact_at(vec![0; 2], 0).await.0.unwrap()
    ),
    source!(
        [],
        {
            let file = file().await;
        },
        file.read_exact_at(vec![0; 0], 0).await.0.unwrap()
    ),
    source!(
        ["fs/file.rs fn write_all_at"],
        {
            let file = file().await;
        },
        file.write_all_at(vec![0; 2], 0).await.0.unwrap()
    ),
    source!(
        [],
        {
            let file = file().await;
        },
        file.write_all_at(vec![0; 0], 0).await.0.unwrap()
    ),
    source!(
        ["fs/space.rs fn sync_all"],
        {
            let file = file().await;
        },
        file.sync_all().await.unwrap()
    ),
    source!(
        ["fs/space.rs fn sync_data"],
        {
            let file = file().await;
        },
        file.sync_data().await.unwrap()
    ),
    source!(
        ["fs/space.rs fn allocate"],
        {
            let file = file().await;
        },
        _ = file.allocate(0, 1).await
    ),
    source!(
        [],
        {
            let file = file().await;
        },
        assert!(file.allocate(u64::MAX, 1).await.is_err())
    ),
    source!(
        ["fs/space.rs fn punch_hole"],
        {
            let file = file().await;
        },
        _ = file.punch_hole(0, 1).await
    ),
    source!(
        ["fs/space.rs fn zero_range"],
        {
            let file = file().await;
        },
        _ = file.zero_range(0, 1).await
    ),
    source!(
        ["fs/space.rs fn len"],
        {
            let file = file().await;
        },
        assert_eq!(file.len().await.unwrap(), 4096)
    ),
    source!(
        ["fs/space.rs fn set_len"],
        {
            let file = file().await;
        },
        file.set_len(1).await.unwrap()
    ),
    source!(
        [],
        {
            let file = file().await;
        },
        assert!(file.set_len(u64::MAX).await.is_err())
    ),
    source!(
        ["fs/file.rs fn metadata"],
        {
            let file = file().await;
        },
        _ = file.metadata().await.unwrap()
    ),
    source!(
        ["fs/space.rs fn will_need"],
        {
            let file = file().await;
        },
        _ = file.will_need(0, 1).await
    ),
    source!(
        [],
        {
            let file = file().await;
        },
        assert!(file.will_need(u64::MAX, 1).await.is_err())
    ),
    source!(
        [],
        {
            let file = file().await;
        },
        file.will_need(0, 0).await.unwrap()
    ),
    source!(
        ["fs/vectored.rs fn read_vectored_at"],
        {
            let file = file().await;
        },
        assert_eq!(
            file.read_vectored_at(vec![vec![0; 1]], 0).await.0.unwrap(),
            1
        )
    ),
    source!(
        ["fs/vectored.rs fn write_vectored_at"],
        {
            let file = file().await;
        },
        assert_eq!(
            file.write_vectored_at(vec![vec![0; 1]], 0).await.0.unwrap(),
            1
        )
    ),
    source!(
        [],
        {
            let file = file().await;
        },
        assert!(
            file.write_vectored_at(vec![vec![0; 1]], u64::MAX)
                .await
                .0
                .is_err()
        )
    ),
    // Names and directories; most of the loops are over errors.
    source!(
        ["fs/path.rs fn rename"],
        {},
        assert!(fs::rename("/nonexistent", "/none").await.is_err())
    ),
    source!(
        ["fs/path.rs fn remove_file"],
        {},
        assert!(fs::remove_file("/nonexistent").await.is_err())
    ),
    source!(
        ["fs/path.rs fn create_dir"],
        {},
        assert!(fs::create_dir("/").await.is_err())
    ),
    source!(
        ["fs/path.rs fn create_dir_all"],
        {},
        fs::create_dir_all("/tmp").await.unwrap()
    ),
    source!([], {}, fs::create_dir_all("").await.unwrap()),
    source!(
        ["fs/path.rs fn remove_dir"],
        {},
        assert!(fs::remove_dir("/nonexistent").await.is_err())
    ),
    source!(
        ["fs/path.rs fn remove_dir_all"],
        {},
        assert!(fs::remove_dir_all("/nonexistent").await.is_err())
    ),
    source!(
        ["fs/path.rs fn hard_link"],
        {},
        assert!(fs::hard_link("/nonexistent", "/none").await.is_err())
    ),
    source!(
        ["fs/path.rs fn symlink"],
        {},
        assert!(fs::symlink("/nonexistent", "/").await.is_err())
    ),
    source!(
        ["fs/path.rs fn read_link"],
        {},
        assert!(fs::read_link("/").await.is_err())
    ),
    source!(
        ["fs/path.rs fn canonicalize"],
        {},
        _ = fs::canonicalize("/").await.unwrap()
    ),
    source!(
        ["fs/path.rs fn metadata"],
        {},
        _ = fs::metadata("/").await.unwrap()
    ),
    source!(
        ["fs/path.rs fn symlink_metadata"],
        {},
        _ = fs::symlink_metadata("/").await.unwrap()
    ),
    source!(
        ["fs/path.rs fn try_exists"],
        {},
        assert!(fs::try_exists("/").await.unwrap())
    ),
    source!(
        ["fs/path.rs fn set_permissions"],
        {},
        assert!(
            fs::set_permissions("/nonexistent", std::fs::Permissions::from_mode(0o600))
                .await
                .is_err()
        )
    ),
    source!(
        ["fs/path.rs fn sync_dir"],
        {
            let dir = tempfile::tempdir().unwrap();
        },
        fs::sync_dir(dir.path()).await.unwrap()
    ),
    source!([], {}, assert!(fs::rename("a\0b", "c").await.is_err())),
    source!([], {}, assert!(fs::remove_file("a\0b").await.is_err())),
    source!([], {}, assert!(fs::create_dir("a\0b").await.is_err())),
    source!([], {}, assert!(fs::symlink("a\0b", "c").await.is_err())),
    source!([], {}, assert!(fs::hard_link("a\0b", "c").await.is_err())),
    source!([], {}, assert!(fs::metadata("a\0b").await.is_err())),
    source!([], {}, assert!(fs::create_dir_all("a\0b/c").await.is_err())),
    source!(
        ["fs/read_dir.rs fn read_dir"],
        {},
        drop(fs::read_dir("/").await.unwrap())
    ),
    source!(
        [
            "fs/read_dir.rs fn next_entry",
            "fs/read_dir.rs Stream for ReadDir"
        ],
        {
            let dir = tempfile::tempdir().unwrap();
            (0..=ROUNDS)
                .for_each(|name| drop(std::fs::write(dir.path().join(name.to_string()), "")));
            let mut entries = fs::read_dir(dir.path()).await.unwrap();
        },
        assert!(entries.next_entry().await.unwrap().is_some())
    ),
    source!(
        [],
        {
            let dir = tempfile::tempdir().unwrap();
            let mut entries = fs::read_dir(dir.path()).await.unwrap();
        },
        assert!(entries.next_entry().await.unwrap().is_none())
    ),
    source!(
        ["fs/read_dir.rs fn metadata"],
        {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("f"), "").unwrap();
            let entry = fs::read_dir(dir.path())
                .await
                .unwrap()
                .next_entry()
                .await
                .unwrap()
                .unwrap();
        },
        _ = entry.metadata().await.unwrap()
    ),
    // Whole files.
    source!(
        ["fs/whole.rs fn read"],
        {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("f"), "x").unwrap();
        },
        assert_eq!(fs::read(dir.path().join("f")).await.unwrap(), b"x")
    ),
    source!(
        ["fs/whole.rs fn read_to_string"],
        {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("f"), "x").unwrap();
        },
        assert_eq!(fs::read_to_string(dir.path().join("f")).await.unwrap(), "x")
    ),
    source!(
        ["fs/whole.rs fn write"],
        {
            let dir = tempfile::tempdir().unwrap();
        },
        fs::write(dir.path().join("f"), "x").await.unwrap()
    ),
    source!(
        ["fs/whole.rs fn copy"],
        {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("f"), "x").unwrap();
        },
        assert_eq!(
            fs::copy(dir.path().join("f"), dir.path().join("g"))
                .await
                .unwrap(),
            1
        )
    ),
];

/// What only the ring has.
pub(crate) const RAW_SOURCES: &[Source] = &[
    source!(
        ["io/raw.rs Future for RawOp"],
        {
            let driver = Driver::current().unwrap();
        },
        {
            // SAFETY: a no-op refers to nothing.
            let nop = unsafe { driver.submit_raw(opcode::Nop::new().build(), ()) };
            nop.unwrap().await
        }
    ),
    source!(
        [],
        {
            let driver = Driver::current().unwrap();
        },
        {
            // SAFETY: a no-op refers to nothing.
            let nop = unsafe { driver.submit_raw(opcode::Nop::new().build(), ()) }.unwrap();
            // Completed before it is looked at.
            while driver.poll() == 0 {}
            nop.await
        }
    ),
    source!(
        ["io/raw.rs Stream for RawStream"],
        {
            let driver = Driver::current().unwrap();
            let doorbell = std::rc::Rc::new(EventFd::new().unwrap());
            let fd = types::Fd(doorbell.as_raw_fd());
            let poll = opcode::PollAdd::new(fd, libc::POLLIN as u32)
                .multi(true)
                .build();
            // SAFETY: the stream keeps the descriptor open.
            let mut rings = unsafe { driver.submit_raw_multi(poll, doorbell.clone()) }.unwrap();
            driver.poll();
        },
        {
            doorbell.write(1).unwrap();
            while driver.poll() == 0 {}
            assert!(rings.next().await.unwrap().result > 0);
            doorbell.read().unwrap();
        }
    ),
    source!(
        [],
        {
            let driver = Driver::current().unwrap();
            // SAFETY: a no-op refers to nothing.
            let once = unsafe { driver.submit_raw_multi(opcode::Nop::new().build(), ()) };
            let mut ended = once.unwrap();
            ended.next().await;
        },
        assert!(ended.next().await.is_none())
    ),
];

/// Refused at once where no driver is entered.
pub(crate) const REFUSED_SOURCES: &[Source] = &[
    source!([], {}, assert!(File::open("/dev/null").await.is_err())),
    source!([], {}, assert!(unblock(|| ()).await.is_err())),
    source!([], {}, assert!(lookup_host("127.0.0.1:1").await.is_err())),
    source!(
        [],
        {},
        assert!(UnixStream::connect("/nonexistent/s").await.is_err())
    ),
    source!(
        [],
        {
            let address = served_tcp();
        },
        assert!(TcpStream::connect(address).await.is_err())
    ),
];
