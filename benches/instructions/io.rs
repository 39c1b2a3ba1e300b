//! The hot path of I/O: a driver on epoll, because not every place permits io_uring. What the kernel
//! does is not counted.

use corespun::io::{BackendChoice, DriverConfig, EnterGuard};
use corespun::net::UnixStream;
use corespun::task::{JoinHandle, spawn_local};

use crate::{Bench, ROUNDS};

/// A thread polled by hand, and two connected sockets on the driver beside it.
pub struct WithSockets {
    bench: Bench,
    sockets: Option<(UnixStream, UnixStream)>,
    driver: EnterGuard,
}

/// A thread, and the sockets.
pub fn with_sockets() -> WithSockets {
    let config = DriverConfig::new().backend(BackendChoice::Epoll);
    let driver = corespun::io::Driver::new(&config).expect("an epoll set");
    let mut with = WithSockets {
        bench: Bench::new(),
        driver: driver.enter(),
        sockets: None,
    };
    with.sockets = Some(UnixStream::pair().expect("two sockets"));
    // What the first message makes.
    with.exchange(8);
    with
}

impl WithSockets {
    /// Sends so many messages to and fro.
    fn exchange(&mut self, rounds: usize) {
        let (here, there) = self.sockets.take().expect("they come back");
        let [first, second] = self.bench.runner.enter(|| {
            let echo = spawn_local(async move {
                let mut message = vec![0; 64];
                for _ in 0..rounds {
                    message = received(&there, message).await;
                    message = sent(&there, message).await;
                }
                there
            });
            let client = spawn_local(async move {
                let mut message = vec![0; 64];
                for _ in 0..rounds {
                    message = sent(&here, message).await;
                    message = received(&here, message).await;
                }
                here
            });
            [client, echo]
        });
        self.turn_until(&first);
        self.turn_until(&second);
        let ended = |task: JoinHandle<UnixStream>| {
            let joined = futures::FutureExt::now_or_never(task);
            joined.expect("it has ended").expect("it ends well")
        };
        self.sockets = Some((ended(first), ended(second)));
    }

    fn turn_until<T: 'static>(&mut self, task: &JoinHandle<T>) {
        while !task.is_finished() {
            self.bench.poll();
            self.driver.driver().poll();
        }
    }
}

async fn received(socket: &UnixStream, message: Vec<u8>) -> Vec<u8> {
    let (received, message) = socket.recv_exact(message).await;
    received.expect("a peer");
    message
}

async fn sent(socket: &UnixStream, message: Vec<u8>) -> Vec<u8> {
    let (sent, message) = socket.send_all(message).await;
    sent.expect("a peer");
    message
}

/// Messages between two tasks, over sockets: each waits until its own is readable.
pub fn socket_round_trip(mut with: WithSockets) -> WithSockets {
    with.exchange(ROUNDS);
    with
}
