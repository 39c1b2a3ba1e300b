//! Sockets that two OS threads share: the program's own, and another one with a driver
//! of its own, which does what it is told.
//!
//! They carry words, each another number, so that it is seen if one is lost or comes
//! twice, whoever of the two takes it.

use std::future::Future;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

use corespun::io::{BackendChoice, Interest, SharedFd};
use crossbeam_queue::SegQueue;
use harness::io::Loop;
use nix::poll::PollFlags;

use crate::activity::{Activity, Waits};
use crate::things::World;
use crate::{Kind, Step};

/// Sockets at a time, and words that each carries at most.
const SOCKETS: usize = 2;
const WORDS: usize = 256;
/// What the other OS thread does at a time.
const MOST: usize = 8;

type Wrong = Arc<SegQueue<String>>;

/// One direction.
struct Words {
    name: &'static str,
    made: AtomicUsize,
    sent: AtomicUsize,
    received: AtomicUsize,
    seen: [AtomicBool; WORDS],
}

impl Words {
    fn new(name: &'static str) -> Self {
        Words {
            name,
            made: AtomicUsize::new(0),
            sent: AtomicUsize::new(0),
            received: AtomicUsize::new(0),
            seen: [const { AtomicBool::new(false) }; WORDS],
        }
    }

    /// The next one, which need not be sent.
    fn make(&self) -> Option<usize> {
        let word = self.made.fetch_add(1, Ordering::Relaxed);
        (word < WORDS).then_some(word)
    }

    fn receive(&self, socket: &UnixDatagram, wrong: &Wrong) -> std::io::Result<()> {
        let mut bytes = [0; 9];
        let count = socket.recv(&mut bytes)?;
        let word = bytes[..count].try_into().map(usize::from_le_bytes);
        let first =
            word.is_ok_and(|word| word < WORDS && !self.seen[word].swap(true, Ordering::Relaxed));
        if !first {
            wrong.push(format!(
                "shared {}: a word nobody sent, or twice",
                self.name
            ));
        }
        self.received.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn send(&self, socket: &UnixDatagram, word: usize) -> std::io::Result<()> {
        socket.send(&word.to_le_bytes())?;
        self.sent.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// After the last use: takes what is left.
    fn end(&self, socket: &UnixDatagram, wrong: &Wrong) {
        while self.receive(socket, wrong).is_ok() {}
        let [sent, received] = [&self.sent, &self.received].map(|n| n.load(Ordering::Relaxed));
        if sent != received {
            let name = self.name;
            wrong.push(format!("shared {name}: {received} words of {sent} came"));
        }
    }
}

/// A shared socket.
struct Crossed {
    socket: SharedFd<UnixDatagram>,
    peer: UnixDatagram,
    inward: Words,
    outward: Words,
    /// Who waits on the other OS thread, to receive and to send.
    waiting: [AtomicUsize; 2],
    wrong: Wrong,
}

impl Drop for Crossed {
    fn drop(&mut self) {
        self.inward.end(self.socket.get_ref(), &self.wrong);
        self.outward.end(&self.peer, &self.wrong);
    }
}

impl Crossed {
    fn new(wrong: &Wrong) -> Arc<Self> {
        let (socket, peer) = UnixDatagram::pair().expect("a pair");
        socket.set_nonblocking(true).expect("a socket");
        peer.set_nonblocking(true).expect("a socket");
        let both = Interest::READABLE.add(Interest::WRITABLE);
        Arc::new(Crossed {
            socket: SharedFd::new(socket, both),
            peer,
            inward: Words::new("inward"),
            outward: Words::new("outward"),
            waiting: Default::default(),
            wrong: wrong.clone(),
        })
    }

    fn fd(&self) -> RawFd {
        self.socket.get_ref().as_raw_fd()
    }

    async fn recv(self: Arc<Self>) {
        let receive = |socket: &UnixDatagram| self.inward.receive(socket, &self.wrong);
        if let Err(error) = self.socket.async_io(Interest::READABLE, receive).await {
            self.wrong.push(format!("shared recv: {error}"));
        }
    }

    async fn send(self: Arc<Self>) {
        let Some(word) = self.outward.make() else {
            return;
        };
        let send = |socket: &UnixDatagram| self.outward.send(socket, word);
        if let Err(error) = self.socket.async_io(Interest::WRITABLE, send).await {
            self.wrong.push(format!("shared send: {error}"));
        }
    }

    /// On the other OS thread.
    fn there(self: Arc<Self>, sends: bool) -> impl Future<Output = ()> + Send {
        self.waiting[usize::from(sends)].fetch_add(1, Ordering::Relaxed);
        // Also if it is dropped before it is polled.
        let waits = Waiting(self.clone(), sends);
        async move {
            match sends {
                true => self.send().await,
                false => self.recv().await,
            }
            drop(waits);
        }
    }
}

struct Waiting(Arc<Crossed>, bool);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting[usize::from(self.1)].fetch_sub(1, Ordering::Release);
    }
}

enum Order {
    Begin(Pin<Box<dyn Future<Output = ()> + Send>>),
    Drop(usize),
}

#[derive(Default)]
struct Orders {
    given: SegQueue<Order>,
    over: AtomicBool,
}

/// The other OS thread.
fn serve(choice: BackendChoice, orders: &Orders) {
    let io = Loop::new(choice);
    let mut activities: Vec<Activity> = Vec::new();
    while !orders.over.load(Ordering::Acquire) {
        while let Some(order) = orders.given.pop() {
            match order {
                Order::Begin(future) if activities.len() < MOST => {
                    activities.push(Activity::new("there", Waits::Anything, future));
                }
                Order::Drop(n) if !activities.is_empty() => {
                    let at = n % activities.len();
                    drop(activities.swap_remove(at));
                }
                _ => {}
            }
        }
        activities.retain_mut(|activity| {
            let woken = activity.is_woken();
            !woken || activity.poll() == Poll::Pending
        });
        io.driver.park(Some(Duration::from_micros(200)));
    }
    while let Some(order) = orders.given.pop() {
        drop(order);
    }
    activities.clear();
    io.end();
}

pub struct Across {
    choice: BackendChoice,
    sockets: Vec<Arc<Crossed>>,
    other: Option<(Arc<Orders>, JoinHandle<()>)>,
    wrong: Wrong,
}

impl Across {
    pub fn new(choice: BackendChoice) -> Self {
        Across {
            choice,
            sockets: Vec::new(),
            other: None,
            wrong: Wrong::default(),
        }
    }

    pub fn wrong(&self) -> Option<String> {
        self.wrong.pop()
    }

    /// Whether the other OS thread waits for what is there.
    pub fn sleeps(&self) -> bool {
        self.sockets.iter().any(|crossed| {
            let waits = |n: usize| crossed.waiting[n].load(Ordering::Acquire) > 0;
            waits(0) && World::ready(crossed.fd(), PollFlags::POLLIN)
                || waits(1) && World::ready(crossed.fd(), PollFlags::POLLOUT)
        })
    }

    fn choose(&self, n: usize) -> Option<&Arc<Crossed>> {
        match self.sockets.len() {
            0 => None,
            len => self.sockets.get(n % len),
        }
    }

    /// Ends the other OS thread, and what it does.
    pub fn end(&mut self) {
        self.sockets.clear();
        if let Some((orders, other)) = self.other.take() {
            orders.over.store(true, Ordering::Release);
            if other.join().is_err() {
                self.wrong.push("the other OS thread panicked".to_owned());
            }
        }
    }
}

impl World {
    pub fn share(&mut self) {
        let across = &mut self.across;
        if across.sockets.len() >= SOCKETS {
            return;
        }
        across.sockets.push(Crossed::new(&across.wrong));
        let choice = across.choice;
        across.other.get_or_insert_with(|| {
            let orders = Arc::<Orders>::default();
            let taken = orders.clone();
            (orders, std::thread::spawn(move || serve(choice, &taken)))
        });
    }

    pub fn unshare(&mut self, a: usize) {
        let sockets = &mut self.across.sockets;
        if !sockets.is_empty() {
            drop(sockets.swap_remove(a % sockets.len()));
        }
    }

    pub fn shared_recv(&mut self, a: usize) {
        if let Some(crossed) = self.across.choose(a).cloned() {
            let waits = Waits::SharedRead(crossed.fd());
            self.begin_shared(Activity::new("shared recv", waits, crossed.recv()));
        }
    }

    pub fn shared_send(&mut self, a: usize) {
        if let Some(crossed) = self.across.choose(a).cloned() {
            let waits = Waits::SharedWrite(crossed.fd());
            self.begin_shared(Activity::new("shared send", waits, crossed.send()));
        }
    }

    fn begin_shared(&mut self, mut activity: Activity) {
        activity.descriptors = 2;
        self.begin(activity);
    }

    /// Has the other OS thread begin something, or drop what it has begun.
    pub fn order(&mut self, step: &Step) {
        let Some((orders, _)) = &self.across.other else {
            return;
        };
        if step.kind == Kind::OtherDrop {
            return orders.given.push(Order::Drop(step.b));
        }
        if let Some(crossed) = self.across.choose(step.a).cloned() {
            let sends = step.kind == Kind::OtherSend;
            let future = crossed.there(sends);
            orders.given.push(Order::Begin(Box::pin(future)));
        }
    }

    pub fn peer_share(&self, a: usize, b: usize) {
        let Some(crossed) = self.across.choose(a) else {
            return;
        };
        for _ in 0..=b % 3 {
            if !b.is_multiple_of(3) {
                let word = crossed.inward.made.load(Ordering::Relaxed);
                if word < WORDS && crossed.inward.send(&crossed.peer, word).is_ok() {
                    crossed.inward.made.store(word + 1, Ordering::Relaxed);
                }
            } else {
                // Whatever there is.
                let _ = crossed.outward.receive(&crossed.peer, &crossed.wrong);
            }
        }
    }
}
