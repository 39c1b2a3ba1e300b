//! What each step does.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{ErrorKind, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use corespun::fs::{File, OpenOptions};
use corespun::io::raw::{opcode, types};
use corespun::io::{IoBufMut, PollFd, RawOp, unblock};
use corespun::net::{TcpStream, UnixStream};
use futures::StreamExt;
use futures::io::{AsyncReadExt, AsyncWriteExt};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use socket2::SockRef;

use crate::activity::{Activity, Buffer, Waits};
use crate::things::{Books, Connection, FileOf, Ours, Shared, URGENT, World, pattern};
use crate::{Kind, Step};

/// Things of one kind, and activities.
const THINGS: usize = 4;
const ACTIVITIES: usize = 12;

/// The lengths of buffers.
fn length(n: usize) -> usize {
    [0, 1, 2, 3, 7, 16, 64, 100, 513, 4096, 4097, 70_000, 262_144][n % 13]
}

impl World {
    pub fn perform(&mut self, step: &Step) {
        self.performed += 1;
        let Step { a, b, .. } = *step;
        match step.kind {
            Kind::Tcp => self.connect_tcp(),
            Kind::Unix => {
                if self.connections.len() < THINGS {
                    let (ours, peer) = std::os::unix::net::UnixStream::pair().expect("a pair");
                    peer.set_nonblocking(true).expect("a socket");
                    let ours = UnixStream::from_std(ours).expect("a socket");
                    self.add(Ours::Unix(Rc::new(ours)), peer.into());
                }
            }
            Kind::Pipe => {
                if self.connections.len() < THINGS {
                    let flags = nix::fcntl::OFlag::O_NONBLOCK | nix::fcntl::OFlag::O_CLOEXEC;
                    let (ours, peer) = nix::unistd::pipe2(flags).expect("a pipe");
                    let ours = PollFd::new(ours).expect("a pipe");
                    self.add(Ours::Pipe(Rc::new(ours)), peer);
                }
            }
            Kind::File => {
                if self.files.len() < THINGS {
                    let file = tempfile::tempfile().expect("a file");
                    self.files.push(FileOf {
                        file: Rc::new(File::from_std(file).expect("a file")),
                        content: Rc::default(),
                        busy: Rc::default(),
                        version: Rc::default(),
                    });
                }
            }
            Kind::Listener => {
                if self.listeners.len() < 2 {
                    self.listen();
                }
            }
            Kind::Duplicate => self.duplicate(a),
            Kind::Close => self.close(a, b),

            Kind::Recv | Kind::RecvExact => self.recv(step),
            Kind::Send | Kind::SendAll => self.send(step),
            Kind::Readable | Kind::Writable => self.wait_level(step),
            Kind::Accept => self.accept(a),
            Kind::Connect => self.connect(a),
            Kind::ReadAt => self.read_at(a, b),
            Kind::WriteAt => self.write_at(a, b),
            Kind::Sync => self.file_operation(a, "sync", |file| {
                Box::pin(async move { file.sync_all().await.err().map(|error| error.to_string()) })
            }),
            Kind::Length => {
                let Some(file) = self.idle_file(a) else {
                    return;
                };
                let (content, version) = (file.content.clone(), file.version.clone());
                let before = version.get();
                self.file_operation(a, "length", move |file| {
                    Box::pin(async move {
                        let len = file.len().await;
                        let expected = content.borrow().len() as u64;
                        // A write that began meanwhile may be in it.
                        let wrong =
                            version.get() == before && !matches!(len, Ok(n) if n == expected);
                        wrong.then(|| format!("length {len:?}"))
                    })
                });
            }
            Kind::Unblock => {
                let shared = self.shared.clone();
                self.begin(Activity::new("unblock", Waits::Soon, async move {
                    // A job may panic.
                    if unblock(move || a * 2).await.ok() != Some(a * 2) {
                        shared.wrong("unblock: another answer");
                    }
                }));
            }
            Kind::RawRecv => self.raw_recv(a, b),
            Kind::RawRead => self.raw_read(a, b),
            Kind::RawPoll => self.raw_poll(a),
            Kind::RawNop => self.raw_nop(),
            Kind::RawAccept => self.raw_accept(a),

            Kind::OpenFifo => {
                let path = self.paths().folder.path().join("fifo");
                let shared = self.shared.clone();
                let mut activity = Activity::new("open", Waits::Anything, async move {
                    let mut options = OpenOptions::new();
                    match options
                        .read(true)
                        .write(b.is_multiple_of(4))
                        .open(path)
                        .await
                    {
                        Ok(file) => shared.arrived.borrow_mut().push(Box::new(file)),
                        // It has no offsets to read at.
                        Err(error) if error.kind() == ErrorKind::NotSeekable => {}
                        Err(error) => shared.wrong(format!("open: {error}")),
                    }
                });
                activity.descriptors = 1;
                self.begin(activity);
            }
            Kind::ConnectUnix => {
                let path = self.paths().folder.path().join("socket");
                let shared = self.shared.clone();
                let mut activity = Activity::new("connect unix", Waits::Anything, async move {
                    match UnixStream::connect(path).await {
                        Ok(stream) => shared.arrived.borrow_mut().push(Box::new(stream)),
                        Err(error) => shared.wrong(format!("connect: {error}")),
                    }
                });
                activity.descriptors = 1;
                self.begin(activity);
            }
            Kind::RecvVectored => self.recv_vectored(a, b),
            Kind::SendVectored => self.send_vectored(a, b),

            Kind::PollAgain => self.poll_again(a),
            Kind::Drop => {
                if let Some(at) = self.choose_activity(a) {
                    let dropped = self.activities.swap_remove(at);
                    self.lose(&dropped);
                    drop(dropped);
                }
            }
            Kind::Forget => self.forget(a),

            Kind::PeerSend => self.peer_send(a, b),
            Kind::PeerUrgent => self.peer_urgent(a, b),
            Kind::PeerDescriptor => self.peer_descriptor(a, b),
            Kind::PeerRecv => self.peer_recv(a, b),
            Kind::PeerShutdown => {
                if let Some(connection) = self.connection(a)
                    && let Some(peer) = &connection.peer
                {
                    connection.books.ending.set(true);
                    let _ = SockRef::from(peer).shutdown(std::net::Shutdown::Write);
                }
            }
            Kind::PeerClose => {
                if let Some(connection) = self.connection_mut(a) {
                    connection.books.ending.set(true);
                    connection.peer = None;
                }
            }
            Kind::PeerConnect => {
                if let Some(listening) = self.listeners.first() {
                    let address = listening.address;
                    let socket =
                        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
                    let socket = socket.expect("a socket");
                    socket.set_nonblocking(true).expect("a socket");
                    let _ = socket.connect(&address.into());
                    self.strangers.push(socket);
                }
            }

            Kind::PeerOpenFifo => {
                let paths = self.paths();
                if paths.ends.len() < THINGS {
                    let mut options = std::fs::OpenOptions::new();
                    let end = options
                        .read(true)
                        .write(true)
                        .open(paths.folder.path().join("fifo"));
                    paths.ends.push(end.expect("it is there").into());
                }
            }
            Kind::PeerAccept => {
                // Refused when there is none.
                drop(self.paths().listener.accept());
            }

            Kind::Run => drop(self.run()),
            Kind::Turn => drop(self.io.driver.poll()),
            Kind::Park => drop(self.io.driver.park(Some(Duration::ZERO))),
            Kind::Settle => self.settle(),
        }
        let arrived = std::mem::take(&mut *self.shared.arrived.borrow_mut());
        drop(arrived);
    }

    fn begin(&mut self, mut activity: Activity) {
        if self.activities.len() >= ACTIVITIES {
            return self.lose(&activity);
        }
        // Half of them begin at once, the others when all are run.
        if self.performed.is_multiple_of(2) && activity.poll() == Poll::Ready(()) {
            return;
        }
        self.activities.push(activity);
    }

    fn add(&mut self, ours: Ours, peer: OwnedFd) {
        self.next += 1;
        let books = Rc::new(Books {
            number: self.next,
            ..Books::default()
        });
        self.connections.push(Connection {
            tcp: matches!(ours, Ours::Tcp(_)),
            unix: matches!(ours, Ours::Unix(_)),
            books,
            ours: vec![ours],
            peer: Some(peer),
        });
    }

    fn connection(&self, n: usize) -> Option<&Connection> {
        match self.connections.len() {
            0 => None,
            len => self.connections.get(n % len),
        }
    }

    fn connection_mut(&mut self, n: usize) -> Option<&mut Connection> {
        match self.connections.len() {
            0 => None,
            len => self.connections.get_mut(n % len),
        }
    }

    /// A connection and a handle to it.
    fn handle(&self, n: usize, m: usize) -> Option<(&Connection, Ours)> {
        let connection = self.connection(n)?;
        let handle = connection.ours[m % connection.ours.len()].clone();
        Some((connection, handle))
    }

    fn choose_activity(&self, n: usize) -> Option<usize> {
        match self.activities.len() {
            0 => None,
            len => Some(n % len),
        }
    }

    /// Whether an activity uses that direction of a connection; only raw ones, if
    /// asked for.
    fn is_used(&self, number: usize, reads: bool, raw: bool) -> bool {
        let all = self.activities.iter();
        all.filter(|activity| activity.raw || !raw)
            .any(|activity| activity.uses == Some((number, reads)))
    }

    /// What an activity that is dropped may have taken along.
    fn lose(&self, activity: &Activity) {
        let Some((number, reads)) = activity.uses else {
            return;
        };
        for connection in &self.connections {
            if connection.books.number == number {
                if reads && activity.raw {
                    connection.books.in_lost.set(true);
                }
                if !reads {
                    // Some of it may have gone.
                    connection.books.out_lost.set(true);
                }
            }
        }
    }

    fn connect_tcp(&mut self) {
        if self.connections.len() >= THINGS {
            return;
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let ours = std::net::TcpStream::connect(address).expect("it listens");
        let (peer, _) = listener.accept().expect("it is connected");
        peer.set_nonblocking(true).expect("a socket");
        let ours = TcpStream::from_std(ours).expect("a socket");
        self.add(Ours::Tcp(Rc::new(ours)), peer.into());
    }

    fn duplicate(&mut self, a: usize) {
        let Some(connection) = self.connection_mut(a).filter(|c| c.ours.len() < 3) else {
            return;
        };
        let duplicate = match &connection.ours[0] {
            Ours::Tcp(stream) => {
                let fd = stream.as_fd().try_clone_to_owned().expect("a descriptor");
                Ours::Tcp(Rc::new(TcpStream::from_std(fd.into()).expect("a socket")))
            }
            Ours::Unix(stream) => {
                let fd = stream.as_fd().try_clone_to_owned().expect("a descriptor");
                Ours::Unix(Rc::new(UnixStream::from_std(fd.into()).expect("a socket")))
            }
            Ours::Pipe(pipe) => {
                let fd = pipe.as_fd().try_clone_to_owned().expect("a descriptor");
                Ours::Pipe(Rc::new(PollFd::new(fd).expect("a pipe")))
            }
        };
        connection.ours.push(duplicate);
    }

    /// Lets go of one handle, and of the connection with the last; activities keep
    /// theirs.
    fn close(&mut self, a: usize, b: usize) {
        let Some(connection) = self.connection_mut(a) else {
            return;
        };
        let handle = b % connection.ours.len();
        // A stream that is dropped is not shut down: its duplicates go on.
        drop(connection.ours.remove(handle));
        if connection.ours.is_empty() {
            let at = a % self.connections.len();
            self.connections[at].books.ending.set(true);
            drop(self.connections.remove(at));
        }
    }

    fn recv(&mut self, step: &Step) {
        let Some((connection, ours)) = self.handle(step.a, step.b) else {
            return;
        };
        let books = connection.books.clone();
        if self.is_used(books.number, true, true) {
            return;
        }
        let len = length(step.b);
        let exact = step.kind == Kind::RecvExact && !matches!(ours, Ours::Pipe(_));
        let buffer = Buffer::empty(&self.shared.buffers, len);
        let (id, shared, fd) = (buffer.id, self.shared.clone(), ours.fd());
        let uses = Some((books.number, true));
        if exact && self.is_used(books.number, true, false) {
            return;
        }
        let loses = exact;
        let mut activity = Activity::new(
            if exact { "recv_exact" } else { "recv" },
            if len == 0 {
                Waits::Anything
            } else {
                Waits::Read(fd)
            },
            async move {
                let (result, buffer) = match (&ours, exact) {
                    (Ours::Tcp(stream), false) => stream.recv(buffer).await,
                    (Ours::Unix(stream), false) => stream.recv(buffer).await,
                    (Ours::Tcp(stream), true) => {
                        let (result, buffer) = stream.recv_exact(buffer).await;
                        (result.map(|()| buffer.bytes_total()), buffer)
                    }
                    (Ours::Unix(stream), true) => {
                        let (result, buffer) = stream.recv_exact(buffer).await;
                        (result.map(|()| buffer.bytes_total()), buffer)
                    }
                    (Ours::Pipe(pipe), _) => {
                        let mut buffer = buffer;
                        let result = {
                            let pointer = buffer.stable_mut_ptr();
                            // SAFETY: `buffer` is used by this alone until then.
                            let space = unsafe { std::slice::from_raw_parts_mut(pointer, len) };
                            let read = |fd: &OwnedFd| Ok(nix::unistd::read(fd, space)?);
                            pipe.read_with(read).await
                        };
                        (result, buffer)
                    }
                };
                if buffer.id != id {
                    buffer.wrong("buffer: another one came back");
                }
                if exact && result.is_err() {
                    // Some may be in there.
                    books.in_lost.set(true);
                    return;
                }
                received(&shared, &books, result, &buffer);
            },
        );
        activity.uses = uses;
        // Dropped midway, it takes what it has read along.
        activity.raw = loses;
        activity.descriptors = 1;
        self.begin(activity);
    }

    fn send(&mut self, step: &Step) {
        let Some((connection, ours)) = self.handle(step.a, step.b) else {
            return;
        };
        let books = connection.books.clone();
        if self.is_used(books.number, false, false) || matches!(ours, Ours::Pipe(_)) {
            return;
        }
        let len = length(step.b);
        let bytes = (0..len).map(|n| pattern(books.number, books.sent.get() + n as u64));
        let buffer = Buffer::full(&self.shared.buffers, bytes.collect());
        let all = step.kind == Kind::SendAll;
        let (id, shared, fd) = (buffer.id, self.shared.clone(), ours.fd());
        let uses = Some((books.number, false));
        let name = if all { "send_all" } else { "send" };
        let waits = if len == 0 {
            Waits::Anything
        } else {
            Waits::Write(fd)
        };
        let mut activity = Activity::new(name, waits, async move {
            let (result, buffer) = match (&ours, all) {
                (Ours::Tcp(stream), false) => stream.send(buffer).await,
                (Ours::Unix(stream), false) => stream.send(buffer).await,
                (Ours::Tcp(stream), true) => {
                    let (result, buffer) = stream.send_all(buffer).await;
                    (result.map(|()| len), buffer)
                }
                (Ours::Unix(stream), true) => {
                    let (result, buffer) = stream.send_all(buffer).await;
                    (result.map(|()| len), buffer)
                }
                (Ours::Pipe(_), _) => return,
            };
            if buffer.id != id {
                buffer.wrong("buffer: another one came back");
            }
            match result {
                Ok(count) if count > len => shared.wrong("send: more than there was"),
                Ok(count) => books.sent.set(books.sent.get() + count as u64),
                Err(_) if books.ending.get() => books.out_lost.set(true),
                Err(error) => shared.wrong(format!("send: {error}")),
            }
        });
        activity.uses = uses;
        activity.descriptors = 1;
        self.begin(activity);
    }

    /// By way of the traits for readers, into buffers that are the future's.
    fn recv_vectored(&mut self, a: usize, b: usize) {
        let Some((connection, ours)) = self.handle(a, b) else {
            return;
        };
        let books = connection.books.clone();
        // Of several by way of the traits, the last alone is woken.
        if self.is_used(books.number, true, false) || matches!(ours, Ours::Pipe(_)) {
            return;
        }
        let lengths = [length(b).min(70_000), length(a).min(70_000)];
        let whole = lengths[0] + lengths[1];
        let mut buffer = Buffer::empty(&self.shared.buffers, whole);
        let (shared, fd) = (self.shared.clone(), ours.fd());
        let uses = Some((books.number, true));
        let waits = if whole == 0 {
            Waits::Anything
        } else {
            Waits::Read(fd)
        };
        let mut activity = Activity::new("recv_vectored", waits, async move {
            let result = {
                let pointer = buffer.stable_mut_ptr();
                // SAFETY: `buffer` is used by this alone until then.
                let space = unsafe { std::slice::from_raw_parts_mut(pointer, whole) };
                let (first, second) = space.split_at_mut(lengths[0]);
                let mut slices = [IoSliceMut::new(first), IoSliceMut::new(second)];
                match &ours {
                    Ours::Tcp(stream) => (&mut &**stream).read_vectored(&mut slices).await,
                    Ours::Unix(stream) => (&mut &**stream).read_vectored(&mut slices).await,
                    Ours::Pipe(_) => return,
                }
            };
            received(&shared, &books, result, &buffer);
        });
        activity.uses = uses;
        activity.descriptors = 1;
        self.begin(activity);
    }

    fn send_vectored(&mut self, a: usize, b: usize) {
        let Some((connection, ours)) = self.handle(a, b) else {
            return;
        };
        let books = connection.books.clone();
        if self.is_used(books.number, false, false) || matches!(ours, Ours::Pipe(_)) {
            return;
        }
        // More slices than one call takes, now and then.
        let slices = if b.is_multiple_of(8) { 1500 } else { b % 8 };
        let bytes = (0..slices as u64 * 3).map(|n| pattern(books.number, books.sent.get() + n));
        let bytes: Vec<u8> = bytes.collect();
        let (shared, fd) = (self.shared.clone(), ours.fd());
        let uses = Some((books.number, false));
        let waits = if slices == 0 {
            Waits::Anything
        } else {
            Waits::Write(fd)
        };
        let mut activity = Activity::new("send_vectored", waits, async move {
            let slices: Vec<_> = bytes.chunks(3).map(IoSlice::new).collect();
            let result = match &ours {
                Ours::Tcp(stream) => (&mut &**stream).write_vectored(&slices).await,
                Ours::Unix(stream) => (&mut &**stream).write_vectored(&slices).await,
                Ours::Pipe(_) => return,
            };
            match result {
                Ok(count) => books.sent.set(books.sent.get() + count as u64),
                Err(_) if books.ending.get() => books.out_lost.set(true),
                Err(error) => shared.wrong(format!("send_vectored: {error}")),
            }
        });
        activity.uses = uses;
        activity.descriptors = 1;
        self.begin(activity);
    }

    fn wait_level(&mut self, step: &Step) {
        let Some((_, Ours::Pipe(pipe))) = self.handle(step.a, step.b) else {
            return;
        };
        if step.kind == Kind::Writable {
            return;
        }
        let (shared, fd) = (self.shared.clone(), pipe.as_fd().as_raw_fd());
        let mut activity = Activity::new("readable", Waits::Read(fd), async move {
            if let Err(error) = pipe.readable().await {
                shared.wrong(format!("readable: {error}"));
            }
        });
        activity.descriptors = 1;
        self.begin(activity);
    }

    fn accept(&mut self, a: usize) {
        let Some(listening) = self.listeners.get(a % self.listeners.len().max(1)) else {
            return;
        };
        let (listener, shared) = (listening.listener.clone(), self.shared.clone());
        let fd = listener.as_fd().as_raw_fd();
        let mut activity = Activity::new("accept", Waits::Read(fd), async move {
            match listener.accept().await {
                Ok((stream, _)) => shared.arrived.borrow_mut().push(Box::new(stream)),
                Err(error) => shared.wrong(format!("accept: {error}")),
            }
        });
        activity.descriptors = 1;
        self.begin(activity);
    }

    fn connect(&mut self, a: usize) {
        let Some(listening) = self.listeners.get(a % self.listeners.len().max(1)) else {
            return;
        };
        let (address, shared) = (listening.address, self.shared.clone());
        let mut activity = Activity::new("connect", Waits::Anything, async move {
            match TcpStream::connect(address).await {
                Ok(stream) => shared.arrived.borrow_mut().push(Box::new(stream)),
                Err(error) => shared.wrong(format!("connect: {error}")),
            }
        });
        activity.descriptors = 1;
        self.begin(activity);
    }

    /// A file that no operation writes.
    fn idle_file(&self, a: usize) -> Option<&FileOf> {
        let file = self.files.get(a % self.files.len().max(1))?;
        (file.busy.get() == 0).then_some(file)
    }

    fn file_operation(
        &mut self,
        a: usize,
        name: &'static str,
        operation: impl FnOnce(Rc<File>) -> Pin<Box<dyn Future<Output = Option<String>>>>,
    ) {
        let Some(file) = self.files.get(a % self.files.len().max(1)) else {
            return;
        };
        let (shared, operation) = (self.shared.clone(), operation(file.file.clone()));
        let mut activity = Activity::new(name, Waits::Soon, async move {
            if let Some(what) = operation.await {
                shared.wrong(format!("file: {what}"));
            }
        });
        activity.descriptors = 1;
        self.begin(activity);
    }

    fn read_at(&mut self, a: usize, b: usize) {
        let Some(file) = self.idle_file(a) else {
            return;
        };
        let (content, len, at) = (file.content.clone(), length(b), length(a + b));
        let buffer = Buffer::empty(&self.shared.buffers, len);
        let version = file.version.clone();
        let before = version.get();
        self.file_operation(a, "read_at", move |file| {
            Box::pin(async move {
                let (result, buffer) = file.read_at(buffer, at as u64).await;
                let count = match result {
                    Ok(count) if count > len => return Some("more than asked for".to_owned()),
                    Ok(count) => count,
                    Err(error) => return Some(error.to_string()),
                };
                buffer.check_beyond(count);
                let content = content.borrow();
                let expected = content.get(at..).unwrap_or_default();
                let expected = &expected[..len.min(expected.len())];
                // A write that began meanwhile may be in it.
                let wrong = version.get() == before && buffer.bytes()[..count] != *expected;
                wrong.then(|| "it reads something else".to_owned())
            })
        });
    }

    /// Takes effect once it has been started, whether it is waited for or not.
    fn write_at(&mut self, a: usize, b: usize) {
        self.next += 1;
        let (len, at, from) = (length(b).min(5000), length(a + b).min(5000), self.next);
        let Some(file) = self.idle_file(a) else {
            return;
        };
        let bytes: Vec<u8> = (0..len).map(|n| pattern(from, n as u64)).collect();
        let buffer = Buffer::full(&self.shared.buffers, bytes.clone());
        let (content, shared) = (file.content.clone(), self.shared.clone());
        let busy = Busy::new(&file.busy);
        file.version.set(file.version.get() + 1);
        let file = file.file.clone();
        let mut activity = Activity::new("write_at", Waits::Soon, async move {
            busy.undecided.set(true);
            let (result, _buffer) = file.write_at(buffer, at as u64).await;
            busy.undecided.set(false);
            let count = match result {
                Ok(count) => count,
                Err(error) => return shared.wrong(format!("write_at: {error}")),
            };
            let mut content = content.borrow_mut();
            if count > 0 {
                let end = content.len().max(at + count);
                content.resize(end, 0);
                content[at..at + count].copy_from_slice(&bytes[..count]);
            }
        });
        activity.descriptors = 1;
        self.begin(activity);
    }

    fn raw_recv(&mut self, a: usize, b: usize) {
        let Some((connection, ours)) = self.handle(a, b) else {
            return;
        };
        let books = connection.books.clone();
        if self.is_used(books.number, true, false) || matches!(ours, Ours::Pipe(_)) {
            return;
        }
        let mut buffer = Buffer::empty(&self.shared.buffers, length(b));
        let entry = opcode::Recv::new(
            types::Fd(ours.fd()),
            buffer.stable_mut_ptr(),
            buffer.bytes_total() as u32,
        );
        self.raw_reading("raw recv", entry.build(), buffer, ours, books);
    }

    fn raw_read(&mut self, a: usize, b: usize) {
        let Some((connection, ours)) = self.handle(a, b) else {
            return;
        };
        let books = connection.books.clone();
        if self.is_used(books.number, true, false) {
            return;
        }
        let mut buffer = Buffer::empty(&self.shared.buffers, length(b));
        let entry = opcode::Read::new(
            types::Fd(ours.fd()),
            buffer.stable_mut_ptr(),
            buffer.bytes_total() as u32,
        );
        self.raw_reading("raw read", entry.build(), buffer, ours, books);
    }

    fn raw_reading(
        &mut self,
        name: &'static str,
        entry: corespun::io::raw::squeue::Entry,
        buffer: Buffer,
        ours: Ours,
        books: Rc<Books>,
    ) {
        let (shared, id, fd, len) = (
            self.shared.clone(),
            buffer.id,
            ours.fd(),
            buffer.bytes_total(),
        );
        let uses = Some((books.number, true));
        // SAFETY: the buffer and the descriptor are kept.
        let submitted = unsafe { self.io.driver.submit_raw(entry, (buffer, ours)) };
        let Ok(operation) = submitted else {
            return;
        };
        let (operation, again) = (Rc::new(RefCell::new(operation)), self.completed.clone());
        let waits = if len == 0 {
            Waits::Anything
        } else {
            Waits::Read(fd)
        };
        let mut activity = Activity::new(name, waits, async move {
            let (completion, (buffer, ours)) = poll_shared(&operation).await;
            if buffer.id != id {
                buffer.wrong("buffer: another one came back");
            }
            let result = completion.into_result().map(|count| count as usize);
            if matches!(&result, Err(error) if error.kind() == ErrorKind::WouldBlock) {
                // Of a descriptor that does not block.
                drop(ours);
            } else {
                received(&shared, &books, result, &buffer);
            }
            again
                .borrow_mut()
                .push(Box::new(move || poll_completed(&operation)));
        });
        activity.uses = uses;
        activity.raw = true;
        activity.descriptors = 1;
        self.begin(activity);
    }

    fn raw_poll(&mut self, a: usize) {
        let Some((_, ours)) = self.handle(a, 0) else {
            return;
        };
        let fd = ours.fd();
        let entry = opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32).build();
        // SAFETY: the descriptor is kept.
        let Ok(operation) = (unsafe { self.io.driver.submit_raw(entry, ours) }) else {
            return;
        };
        let (operation, again) = (Rc::new(RefCell::new(operation)), self.completed.clone());
        let shared = self.shared.clone();
        let mut activity = Activity::new("raw poll", Waits::Read(fd), async move {
            let (completion, ours) = poll_shared(&operation).await;
            if completion.result <= 0 || ours.fd() != fd {
                shared.wrong(format!("raw poll: {completion:?}"));
            }
            again
                .borrow_mut()
                .push(Box::new(move || poll_completed(&operation)));
        });
        activity.descriptors = 1;
        self.begin(activity);
    }

    fn raw_nop(&mut self) {
        self.next += 1;
        let number = self.next;
        let entry = opcode::Nop::new().build();
        // SAFETY: a no-op refers to nothing.
        let Ok(operation) = (unsafe { self.io.driver.submit_raw(entry, number) }) else {
            return;
        };
        let (operation, again) = (Rc::new(RefCell::new(operation)), self.completed.clone());
        let shared = self.shared.clone();
        self.begin(Activity::new("raw nop", Waits::Soon, async move {
            let (completion, kept) = poll_shared(&operation).await;
            if completion.result != 0 || kept != number {
                shared.wrong(format!("raw nop: {completion:?}"));
            }
            again
                .borrow_mut()
                .push(Box::new(move || poll_completed(&operation)));
        }));
    }

    /// As a stream, of which only some is taken.
    fn raw_accept(&mut self, a: usize) {
        let Some(listening) = self.listeners.get(a % self.listeners.len().max(1)) else {
            return;
        };
        let listener = listening.listener.clone();
        let fd = listener.as_fd().as_raw_fd();
        let entry = opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32)
            .multi(true)
            .build();
        // SAFETY: the descriptor is kept.
        let Ok(mut stream) = (unsafe { self.io.driver.submit_raw_multi(entry, listener) }) else {
            return;
        };
        let mut activity = Activity::new("raw stream", Waits::Anything, async move {
            for _ in 0..=a % 3 {
                stream.next().await;
            }
        });
        activity.descriptors = 1;
        self.begin(activity);
    }

    /// Which is wrong use of a raw operation, and no one else's trouble.
    fn poll_again(&mut self, a: usize) {
        let mut completed = self.completed.borrow_mut();
        if completed.is_empty() {
            return;
        }
        let at = a % completed.len();
        let mut again = completed.swap_remove(at);
        drop(completed);
        let _ = catch_unwind(AssertUnwindSafe(&mut again));
        if a.is_multiple_of(2) {
            self.completed.borrow_mut().push(again);
        }
    }

    fn forget(&mut self, a: usize) {
        let Some(at) = self.choose_activity(a) else {
            return;
        };
        if self.forgotten_buffers > 2 || self.activities[at].waits == Waits::Soon {
            return;
        }
        let forgotten = self.activities.swap_remove(at);
        self.lose(&forgotten);
        if let Some((number, true)) = forgotten.uses {
            for connection in &self.connections {
                if connection.books.number == number {
                    // What it holds may read on.
                    connection.books.in_lost.set(true);
                }
            }
        }
        // Also what it waits for, and the driver's own copy.
        self.forgotten += 2 * forgotten.descriptors;
        self.forgotten_buffers += 1;
        self.forgotten_operations += 2;
        std::mem::forget(forgotten.future);
    }

    fn peer_bytes(connection: &Connection, len: usize) -> Vec<u8> {
        let books = &connection.books;
        let from = books.peer_sent.get();
        (0..len as u64)
            .map(|n| pattern(books.number + 1000, from + n))
            .collect()
    }

    fn peer_send(&self, a: usize, b: usize) {
        let Some(connection) = self.connection(a) else {
            return;
        };
        let Some(peer) = &connection.peer else {
            return;
        };
        let bytes = World::peer_bytes(connection, length(b).min(70_000));
        let sent = if connection.tcp || connection.unix {
            SockRef::from(peer)
                .send_with_flags(&bytes, libc::MSG_NOSIGNAL)
                .ok()
        } else {
            nix::unistd::write(peer, &bytes).ok()
        };
        let books = &connection.books;
        books
            .peer_sent
            .set(books.peer_sent.get() + sent.unwrap_or(0) as u64);
    }

    /// Some bytes, an urgent one and some more. Once: the next would put it among
    /// the others.
    fn peer_urgent(&self, a: usize, b: usize) {
        let Some(connection) = self.connection(a).filter(|c| c.tcp) else {
            return;
        };
        let Some(peer) = &connection.peer else {
            return;
        };
        if connection.books.urgent.replace(true) {
            return;
        }
        self.peer_send(a, 1 + b % 6);
        let _ = SockRef::from(peer).send_with_flags(&[URGENT], libc::MSG_OOB | libc::MSG_NOSIGNAL);
        self.peer_send(a, 1 + b % 7);
    }

    /// Bytes of which some carry a descriptor, at which reads end.
    fn peer_descriptor(&self, a: usize, b: usize) {
        let Some(connection) = self.connection(a).filter(|c| c.unix) else {
            return;
        };
        let Some(peer) = &connection.peer else {
            return;
        };
        let bytes = World::peer_bytes(connection, 1 + b % 9);
        let null = std::fs::File::open("/dev/null").expect("a device");
        let sent = sendmsg::<()>(
            peer.as_raw_fd(),
            &[IoSlice::new(&bytes)],
            &[ControlMessage::ScmRights(&[null.as_raw_fd()])],
            MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
            None,
        );
        let books = &connection.books;
        books
            .peer_sent
            .set(books.peer_sent.get() + sent.unwrap_or(0) as u64);
        self.peer_send(a, 1 + b % 5);
    }

    fn peer_recv(&self, a: usize, b: usize) {
        let Some(connection) = self.connection(a).filter(|c| c.tcp || c.unix) else {
            return;
        };
        let Some(peer) = &connection.peer else {
            return;
        };
        let mut space = vec![0; length(b).max(1)];
        let Ok(count) = nix::unistd::read(peer, &mut space) else {
            return;
        };
        let books = &connection.books;
        let from = books.peer_received.get();
        books.peer_received.set(from + count as u64);
        let right = |(n, byte): (usize, &u8)| *byte == pattern(books.number, from + n as u64);
        if !books.out_lost.get() && !space[..count].iter().enumerate().all(right) {
            self.shared.wrong("peer: it receives something else");
        }
    }
}

/// A write that has not been compared with the file yet. A file of which one was
/// dropped midway is left alone from then on.
struct Busy {
    count: Rc<Cell<usize>>,
    undecided: Cell<bool>,
}

impl Busy {
    fn new(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Busy {
            count: count.clone(),
            undecided: Cell::new(false),
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if !self.undecided.get() {
            self.count.set(self.count.get() - 1);
        }
    }
}

/// The next bytes of a connection have come.
fn received(shared: &Shared, books: &Books, result: std::io::Result<usize>, buffer: &Buffer) {
    let count = match result {
        Ok(count) if count > buffer.bytes_total() => {
            return shared.wrong("recv: more than there is room for");
        }
        Ok(count) => count,
        Err(_) if books.ending.get() => return,
        Err(error) => return shared.wrong(format!("recv: {error}")),
    };
    buffer.check_beyond(count);
    for byte in &buffer.bytes()[..count] {
        let at = books.received.get();
        if *byte == URGENT && books.urgent.get() {
            continue;
        }
        if !books.in_lost.get() && *byte != pattern(books.number + 1000, at) {
            return shared.wrong("recv: something else than was sent");
        }
        books.received.set(at + 1);
    }
    if !books.in_lost.get() && books.received.get() > books.peer_sent.get() {
        shared.wrong("recv: more than was sent");
    }
}

async fn poll_shared<T: 'static>(
    operation: &Rc<RefCell<RawOp<T>>>,
) -> (corespun::io::Completion, T) {
    poll_fn(|cx| Pin::new(&mut *operation.borrow_mut()).poll(cx)).await
}

fn poll_completed<T: 'static>(operation: &Rc<RefCell<RawOp<T>>>) {
    let mut cx = Context::from_waker(Waker::noop());
    let _ = Pin::new(&mut *operation.borrow_mut()).poll(&mut cx);
}
