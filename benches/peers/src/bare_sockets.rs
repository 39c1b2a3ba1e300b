//! The floors of the socket rows: plain loops over epoll.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Instant;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::measure::per_op;
use crate::sockets::{self, CLIENTS, Echoes, is_end};

struct Watched {
    set: Epoll,
    events: Vec<EpollEvent>,
}

impl Watched {
    fn new() -> Self {
        Watched {
            set: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("an epoll descriptor"),
            events: vec![EpollEvent::empty(); 64],
        }
    }

    fn add(&self, fd: impl AsFd, place: usize) {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, place as u64);
        self.set.add(fd, event).expect("a socket to watch");
    }

    fn wait(&mut self, limit: EpollTimeout) -> impl Iterator<Item = usize> {
        let count = self.set.wait(&mut self.events, limit).expect("a wait");
        self.events[..count]
            .iter()
            .map(|event| event.data() as usize)
    }
}

/// A connection, and what it has of a message.
struct Connection {
    stream: TcpStream,
    message: Vec<u8>,
    filled: usize,
}

impl Connection {
    fn new(stream: TcpStream, size: usize) -> Self {
        stream.set_nonblocking(true).expect("an option");
        Connection {
            stream,
            message: vec![5; size],
            filled: 0,
        }
    }

    /// Reads, and sends the message back if it is whole. `None` at the end.
    fn turn(&mut self) -> Option<bool> {
        match self.stream.read(&mut self.message[self.filled..]) {
            Ok(0) => return None,
            Ok(count) => self.filled += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            // The peer went with an echo unread.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
            Err(error) => panic!("{error}"),
        }
        if self.filled < self.message.len() {
            return Some(false);
        }
        self.filled = 0;
        self.send();
        Some(true)
    }

    fn send(&mut self) {
        self.stream.write_all(&self.message).expect("room for it");
    }
}

/// Keeps one message under way on each connection, and counts what comes back.
pub fn echo_client(address: SocketAddr, echoes: Echoes) -> f64 {
    let Echoes {
        connections,
        size,
        count,
    } = echoes;
    let mut watched = Watched::new();
    let mut all: Vec<_> = (0..connections)
        .map(|place| {
            let stream = TcpStream::connect(address).expect("a server");
            stream.set_nodelay(true).expect("an option");
            watched.add(&stream, place);
            Connection::new(stream, size)
        })
        .collect();
    all.iter_mut().for_each(Connection::send);
    let mut run = |count: usize| {
        let mut came = 0;
        while came < count {
            for place in watched.wait(EpollTimeout::NONE) {
                came += usize::from(all[place].turn().expect("a server that lives"));
            }
        }
    };
    run(count / 10);
    let start = Instant::now();
    run(count);
    per_op(start, count)
}

/// Echoes, asleep or spinning while there is nothing.
pub fn echoes(here: usize, there: usize, echoes: Echoes, spinning: bool) -> f64 {
    sockets::served(here, there, echoes, |listener| {
        let mut watched = Watched::new();
        let mut all = Vec::new();
        for place in 0..echoes.connections {
            let (stream, _) = listener.accept().expect("a client");
            watched.add(&stream, place);
            all.push(Some(Connection::new(stream, echoes.size)));
        }
        let limit = match spinning {
            true => EpollTimeout::ZERO,
            false => EpollTimeout::NONE,
        };
        let mut live = all.len();
        while live > 0 {
            for place in watched.wait(limit) {
                let connection = all[place].as_mut().expect("it is watched");
                if connection.turn().is_none() {
                    all[place] = None;
                    live -= 1;
                }
            }
        }
    })
}

/// Clients that connect, wait for the end, and connect again.
struct Clients {
    address: SockAddr,
    sockets: Vec<Option<Socket>>,
    begun: usize,
    ended: usize,
}

impl Clients {
    fn new(address: SocketAddr) -> Self {
        Clients {
            address: address.into(),
            sockets: Vec::new(),
            begun: 0,
            ended: 0,
        }
    }

    fn start(&mut self, watched: &Watched, count: usize) {
        self.sockets.clear();
        (self.begun, self.ended) = (0, 0);
        for place in 0..CLIENTS.min(count) {
            self.sockets.push(None);
            self.connect(watched, place);
        }
    }

    fn connect(&mut self, watched: &Watched, place: usize) {
        let kind = Type::STREAM.nonblocking();
        let socket = Socket::new(Domain::IPV4, kind, Some(Protocol::TCP)).expect("a socket");
        match socket.connect(&self.address) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => panic!("{error}"),
            _ => {}
        }
        watched.add(&socket, place);
        self.sockets[place] = Some(socket);
        self.begun += 1;
    }

    fn turn(&mut self, watched: &Watched, place: usize, count: usize) {
        let socket = self.sockets[place].as_ref().expect("it is watched");
        match (&*socket).read(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            read => assert!(is_end(read)),
        }
        self.ended += 1;
        self.sockets[place] = None;
        if self.begun < count {
            self.connect(watched, place);
        }
    }
}

const LISTENER: usize = usize::MAX;

/// Connections made and accepted by one loop.
pub fn connections(count: usize) -> f64 {
    let (listener, address) = sockets::bind();
    listener.set_nonblocking(true).expect("an option");
    let mut watched = Watched::new();
    watched.add(&listener, LISTENER);
    let mut clients = Clients::new(address);
    let mut run = |count: usize| {
        clients.start(&watched, count);
        while clients.ended < count {
            let ready: Vec<usize> = watched.wait(EpollTimeout::NONE).collect();
            for place in ready {
                match place {
                    LISTENER => while listener.accept().is_ok() {},
                    place => clients.turn(&watched, place, count),
                }
            }
        }
    };
    run(count / 10);
    let start = Instant::now();
    run(count);
    per_op(start, count)
}

/// Connections made here and accepted there.
pub fn connections_between(here: usize, there: usize, count: usize) -> f64 {
    let warm_up = count / 10;
    let accept = move |listener: TcpListener| {
        listener.set_nonblocking(true).expect("an option");
        let mut watched = Watched::new();
        watched.add(&listener, LISTENER);
        let mut accepted = 0;
        while accepted < warm_up + count {
            watched.wait(EpollTimeout::NONE).for_each(drop);
            while listener.accept().is_ok() {
                accepted += 1;
            }
        }
    };
    sockets::between(here, there, accept, move |address| {
        let mut watched = Watched::new();
        let mut clients = Clients::new(address);
        let mut run = |count: usize| {
            clients.start(&watched, count);
            while clients.ended < count {
                let ready: Vec<usize> = watched.wait(EpollTimeout::NONE).collect();
                for place in ready {
                    clients.turn(&watched, place, count);
                }
            }
        };
        run(warm_up);
        let start = Instant::now();
        run(count);
        per_op(start, count)
    })
}
