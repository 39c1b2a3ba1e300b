//! What each step does.

use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use corespun::fs::{File, OpenOptions};
use corespun::io::{PollFd, unblock};
use corespun::net::{TcpStream, UnixStream};
use socket2::SockRef;

use crate::activity::{Activity, Waits};
use crate::things::{Books, Connection, FileOf, Ours, World};
use crate::{Kind, Step};

/// Things of one kind, and activities.
const THINGS: usize = 4;
const ACTIVITIES: usize = 12;

/// The lengths of buffers.
pub fn length(n: usize) -> usize {
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
            Kind::RawChain => self.raw_chain(a, b),
            Kind::RawAcceptMany => self.raw_accept_many(a),

            Kind::Share => self.share(),
            Kind::Unshare => self.unshare(a),
            Kind::SharedRecv => self.shared_recv(a),
            Kind::SharedSend => self.shared_send(a),
            Kind::OtherRecv | Kind::OtherSend | Kind::OtherDrop => self.order(step),
            Kind::PeerShare => self.peer_share(a, b),

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

    pub fn begin(&mut self, mut activity: Activity) {
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

    pub fn connection(&self, n: usize) -> Option<&Connection> {
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
    pub fn handle(&self, n: usize, m: usize) -> Option<(&Connection, Ours)> {
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
    pub fn is_used(&self, number: usize, reads: bool, raw: bool) -> bool {
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

    fn forget(&mut self, a: usize) {
        let Some(at) = self.choose_activity(a) else {
            return;
        };
        if self.forgotten_buffers > 2
            || self.activities[at].waits == Waits::Soon
            || self.activities[at].unbounded
        {
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
        // Also what it waits for, the driver's own copy, and the driver itself with the
        // set of what is shared.
        self.forgotten += 2 * forgotten.descriptors + 2;
        self.forgotten_buffers += 1;
        self.forgotten_operations += 2;
        std::mem::forget(forgotten.future);
    }
}
