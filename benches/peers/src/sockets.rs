//! TCP on the loopback: echoes to a plain client on another core, and connections that are made,
//! accepted and closed.

use std::cell::Cell;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Instant;

use corespun::cpu;
use futures::future::join_all;
use socket2::SockRef;

use crate::bare_sockets;
use crate::measure::per_op;
use crate::measure::tasks::Executor;

/// A runtime with TCP.
pub trait Sockets: Executor {
    type Listener: 'static;
    type Stream: 'static;

    /// Makes its own of a listener.
    fn listener(plain: TcpListener) -> Self::Listener;
    fn accept(listener: &Self::Listener) -> impl Future<Output = Self::Stream>;
    fn connect(address: SocketAddr) -> impl Future<Output = Self::Stream>;
    /// Sends back whole messages of `size` bytes until the end.
    fn echo(stream: Self::Stream, size: usize) -> impl Future<Output = ()>;
    /// Waits until the peer is gone, and closes.
    fn wait_for_end(stream: Self::Stream) -> impl Future<Output = ()>;
}

pub fn bind() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    SockRef::from(&listener).listen(1024).expect("a backlog");
    let address = listener.local_addr().expect("it is bound");
    (listener, address)
}

/// How many echoes, over how many connections, of how many bytes.
#[derive(Clone, Copy)]
pub struct Echoes {
    pub connections: usize,
    pub size: usize,
    pub count: usize,
}

/// Echoes by `S` here to a client there, which keeps one message under way on each connection; ns
/// per message.
pub fn echoes<S: Sockets>(here: usize, there: usize, echoes: Echoes) -> f64 {
    let Echoes {
        connections, size, ..
    } = echoes;
    served(here, there, echoes, move |listener| {
        S::run(async move {
            let listener = S::listener(listener);
            let mut servers = Vec::new();
            for _ in 0..connections {
                let stream = S::accept(&listener).await;
                servers.push(S::spawn(S::echo(stream, size)));
            }
            join_all(servers).await;
        });
    })
}

/// The client's figure while `serve` runs on the core `here`.
pub fn served(
    here: usize,
    there: usize,
    echoes: Echoes,
    serve: impl FnOnce(TcpListener) + Send,
) -> f64 {
    let (listener, address) = bind();
    std::thread::scope(|scope| {
        let client = scope.spawn(move || {
            cpu::pin_current_thread(there).expect("pinning");
            bare_sockets::echo_client(address, echoes)
        });
        cpu::pin_current_thread(here).expect("pinning");
        serve(listener);
        client.join().expect("a client that ends")
    })
}

/// So many at a time. Of the connections of one listener, which the ends that close first remember for
/// a minute, there may be as many as there are ports: each measure has a listener of its own.
pub const CLIENTS: usize = 32;

/// Connections made by tasks of `S` and accepted by another task of the same core; ns each.
pub fn connections<S: Sockets>(count: usize) -> f64 {
    S::run(async move {
        let (listener, address) = bind();
        let listener = Rc::new(S::listener(listener));
        let round = async |count: usize| {
            let accepting = listener.clone();
            let server = S::spawn(async move { accept_all::<S>(&accepting, count).await });
            connect_all::<S>(address, count).await;
            server.await;
        };
        round(count / 10).await;
        let start = Instant::now();
        round(count).await;
        per_op(start, count)
    })
}

/// Connections made here and accepted there, by a runtime on each core; ns each.
pub fn connections_between<S: Sockets>(here: usize, there: usize, count: usize) -> f64 {
    let warm_up = count / 10;
    let accept = move |listener| {
        S::run(async move {
            let listener = S::listener(listener);
            accept_all::<S>(&listener, warm_up + count).await;
        });
    };
    between(here, there, accept, move |address| {
        S::run(async move {
            connect_all::<S>(address, warm_up).await;
            let start = Instant::now();
            connect_all::<S>(address, count).await;
            per_op(start, count)
        })
    })
}

/// Runs `accept` on the core `there` and `connect` here.
pub fn between(
    here: usize,
    there: usize,
    accept: impl FnOnce(TcpListener) + Send,
    connect: impl FnOnce(SocketAddr) -> f64,
) -> f64 {
    let (listener, address) = bind();
    let (ready, is_ready) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            cpu::pin_current_thread(there).expect("pinning");
            ready.send(()).expect("it waits");
            accept(listener);
        });
        is_ready.recv().expect("it starts");
        cpu::pin_current_thread(here).expect("pinning");
        connect(address)
    })
}

pub async fn accept_all<S: Sockets>(listener: &S::Listener, count: usize) {
    for _ in 0..count {
        drop(S::accept(listener).await);
    }
}

pub async fn connect_all<S: Sockets>(address: SocketAddr, count: usize) {
    let left = Rc::new(Cell::new(count));
    let client = |_| {
        let left = left.clone();
        S::spawn(async move {
            while left.get() > 0 {
                left.set(left.get() - 1);
                S::wait_for_end(S::connect(address).await).await;
            }
        })
    };
    join_all((0..CLIENTS).map(client)).await;
}

/// Whether a read found the end of a connection, which may be a reset.
pub fn is_end(read: std::io::Result<usize>) -> bool {
    match read {
        Ok(count) => count == 0,
        Err(error) => match error.kind() {
            ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof => true,
            _ => panic!("{error}"),
        },
    }
}
