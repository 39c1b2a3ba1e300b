//! What there may be many of, and does nothing.

use std::time::Duration;

use corespun::app::AppHandle;
use corespun::net::{TcpListener, TcpStream};
use corespun::task::{JoinHandle, spawn_local, yield_now};
use corespun::thread::SpdkThread;
use corespun::time::sleep;
use futures::future::join_all;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

#[derive(Clone, Copy)]
pub enum Kind {
    Threads,
    Tasks,
    Timers,
    Connections,
}

/// Kept while the figures are taken.
pub enum Idle {
    Threads(Vec<SpdkThread>),
    Tasks(Vec<JoinHandle<()>>),
    Connections(Vec<TcpStream>, Vec<JoinHandle<()>>),
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Threads, Kind::Tasks, Kind::Timers, Kind::Connections];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Threads => "idle threads",
            Kind::Tasks => "parked tasks",
            Kind::Timers => "pending timers",
            Kind::Connections => "idle connections",
        }
    }

    pub fn file(self) -> &'static str {
        match self {
            Kind::Threads => "threads.svg",
            Kind::Tasks => "tasks.svg",
            Kind::Timers => "timers.svg",
            Kind::Connections => "connections.svg",
        }
    }

    /// A connection takes two descriptors here, one at each end.
    pub fn limit(self) -> usize {
        match self {
            Kind::Connections => descriptors().saturating_sub(64) / 2,
            _ => usize::MAX,
        }
    }

    pub async fn make(self, app: &AppHandle, count: usize) -> Idle {
        match self {
            Kind::Threads => {
                let create = |n| app.thread().name(format!("idle_{n}")).create();
                let threads: Vec<SpdkThread> = (0..count)
                    .map(|n| create(n).expect("room for it"))
                    .collect();
                for answer in join_all(threads.iter().map(|thread| thread.call(|| ()))).await {
                    answer.expect("an idle thread");
                }
                Idle::Threads(threads)
            }
            Kind::Tasks => tasks(count, || std::future::pending()).await,
            Kind::Timers => tasks(count, || sleep(Duration::from_secs(86_400))).await,
            Kind::Connections => connections(count).await,
        }
    }
}

async fn tasks<F: Future<Output = ()> + 'static>(count: usize, make: impl Fn() -> F) -> Idle {
    let tasks = (0..count).map(|_| spawn_local(make())).collect();
    yield_now().await;
    Idle::Tasks(tasks)
}

/// Each with a task that waits for what never comes.
async fn connections(count: usize) -> Idle {
    let any = "127.0.0.1:0".parse().expect("an address");
    let listener = TcpListener::bind(any).expect("a port");
    let address = listener.local_addr().expect("it is bound");
    let (mut clients, mut servers) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let connect = TcpStream::connect(address);
        let (client, server) = futures::join!(connect, listener.accept());
        let (server, _) = server.expect("a client");
        clients.push(client.expect("a server"));
        servers.push(spawn_local(async move {
            let _ = server.recv(Vec::with_capacity(1)).await;
        }));
    }
    Idle::Connections(clients, servers)
}

impl Idle {
    pub async fn end(self) {
        match self {
            Idle::Threads(threads) => _ = join_all(threads.iter().map(SpdkThread::exit)).await,
            Idle::Tasks(tasks) => tasks.iter().for_each(JoinHandle::abort),
            Idle::Connections(clients, servers) => {
                drop(clients);
                join_all(servers).await;
            }
        }
    }
}

/// How many this process may have, once it may have as many as it can ask for.
fn descriptors() -> usize {
    let (now, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    match setrlimit(Resource::RLIMIT_NOFILE, most, most) {
        Ok(()) => most as usize,
        Err(_) => now as usize,
    }
}
