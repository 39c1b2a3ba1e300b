//! Pairs of sockets that talk, each end a task that whichever OS thread comes first polls: two with
//! drivers, which end and begin again, serve the home and leave it, and one without. Every word must
//! arrive, whoever watched when.
//!
//! `CORESPUN_STRESS_SECONDS` sets how long it runs (2 s), `CORESPUN_STRESS_SEED` repeats a choice of
//! operations. No test harness, so that ThreadSanitizer can follow every edge.

use std::future::Future;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use corespun::io::{Driver, DriverConfig, Home, Interest, SharedFd};
use crossbeam_queue::SegQueue;
use harness::stress::*;

const BOTH: Interest = Interest::READABLE.add(Interest::WRITABLE);
const PAIRS: usize = 6;
const WORDS: usize = 40;

type Socket = Arc<SharedFd<UnixStream>>;

#[derive(Default)]
struct Shared {
    home: Home,
    ready: SegQueue<Arc<Task>>,
    done: AtomicBool,
    ended: AtomicUsize,
    moved: AtomicUsize,
}

struct Task {
    future: Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>,
    queued: AtomicBool,
    shared: Arc<Shared>,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::SeqCst) {
            let shared = self.shared.clone();
            shared.ready.push(self);
        }
    }
}

impl Shared {
    fn spawn(self: &Arc<Self>, future: impl Future<Output = ()> + Send + 'static) {
        let task = Task {
            future: Mutex::new(Some(Box::pin(future))),
            queued: AtomicBool::new(false),
            shared: self.clone(),
        };
        Arc::new(task).wake();
    }

    /// Polls a task that was woken, if there is one.
    fn turn(&self) -> bool {
        let Some(task) = self.ready.pop() else {
            return false;
        };
        let waker = Waker::from(task.clone());
        let mut place = task.future.lock().unwrap();
        task.queued.store(false, Ordering::SeqCst);
        if let Some(future) = &mut *place
            && future
                .as_mut()
                .poll(&mut Context::from_waker(&waker))
                .is_ready()
        {
            *place = None;
            self.ended.fetch_add(1, Ordering::SeqCst);
        }
        true
    }
}

async fn exactly(socket: &Socket, buf: &mut [u8]) -> io::Result<()> {
    let mut count = 0;
    while count < buf.len() {
        let read = |mut io: &UnixStream| io.read(&mut buf[count..]);
        match socket.async_io(Interest::READABLE, read).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => count += more,
        }
    }
    Ok(())
}

async fn all(socket: &Socket, bytes: &[u8]) -> io::Result<()> {
    let mut count = 0;
    while count < bytes.len() {
        let write = |mut io: &UnixStream| io.write(&bytes[count..]);
        count += socket.async_io(Interest::WRITABLE, write).await?;
    }
    Ok(())
}

/// Two ends: one asks, the other answers by two tasks, a half each.
fn talk(shared: &Arc<Shared>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let wrap = |socket: UnixStream| {
        socket.set_nonblocking(true).unwrap();
        Arc::new(SharedFd::with_home(socket, BOTH, shared.home.clone()))
    };
    let (ours, theirs): (Socket, Socket) = (wrap(ours), wrap(theirs));
    let asks = ours.clone();
    shared.spawn(async move {
        for word in 0..WORDS {
            all(&asks, &[word as u8; 8]).await.unwrap();
        }
    });
    let of_asker = shared.clone();
    shared.spawn(async move {
        let mut buf = [0; 8];
        for word in 0..WORDS {
            exactly(&ours, &mut buf).await.unwrap();
            assert_eq!(buf, [word as u8; 8]);
            count(&of_asker.moved);
        }
    });
    shared.spawn(async move {
        let mut buf = [0; 8];
        for _ in 0..WORDS {
            exactly(&theirs, &mut buf).await.unwrap();
            all(&theirs, &buf).await.unwrap();
        }
    });
}

/// Polls tasks, with drivers one after the other.
fn drive(shared: &Shared, mut dice: Dice) {
    while !shared.done.load(Ordering::SeqCst) {
        let driver = Driver::new(&DriverConfig::new()).unwrap();
        let handle = driver.handle().unwrap();
        let entered = driver.enter();
        for _ in 0..dice.below(3000) {
            match dice.below(40) {
                0 => shared.home.serve(&handle),
                1 => shared.home.leave(&handle),
                _ => {}
            }
            if !shared.turn() && driver.poll() == 0 {
                thread::yield_now();
            }
            driver.poll();
            if shared.done.load(Ordering::SeqCst) {
                break;
            }
        }
        drop(entered);
        drop(driver);
    }
}

fn main() {
    let (seconds, seed) = settings("shared descriptors on three OS threads");
    let shared = Arc::new(Shared::default());
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut begun = 0;
    thread::scope(|scope| {
        for n in 0..2 {
            let shared = &shared;
            scope.spawn(move || drive(shared, Dice::of(seed, n)));
        }
        scope.spawn(|| {
            while !shared.done.load(Ordering::SeqCst) {
                if !shared.turn() {
                    thread::sleep(Duration::from_micros(100));
                }
            }
        });
        while Instant::now() < end {
            for _ in 0..PAIRS {
                talk(&shared);
                begun += 3;
            }
            while shared.ended.load(Ordering::SeqCst) < begun {
                thread::sleep(Duration::from_micros(200));
            }
        }
        shared.done.store(true, Ordering::SeqCst);
    });
    let words = shared.moved.load(Ordering::SeqCst);
    assert_eq!(words, begun / 3 * WORDS);
    println!("{words} words between {begun} tasks");
}
