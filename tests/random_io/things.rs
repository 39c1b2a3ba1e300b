//! What a program of I/O has: connections with their peers, files, listeners, and
//! activities.

use std::cell::{Cell, RefCell};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use corespun::fs::File;
use corespun::io::{BackendChoice, PollFd};
use corespun::net::{TcpListener, TcpStream, UnixStream};
use nix::poll::{PollFd as SysPollFd, PollFlags, PollTimeout};
use socket2::Socket;

use crate::across::Across;
use crate::activity::{Activity, BufferBook, Waits};
use harness::io::Loop;

/// How long a wait that could end may last while all else is quiet.
const PATIENCE: Duration = Duration::from_secs(1);

/// The same where another OS thread has to do its part.
const LONG_PATIENCE: Duration = Duration::from_secs(20);

/// The byte at `at` of what `from` sends; never one of the urgent ones.
pub fn pattern(from: usize, at: u64) -> u8 {
    ((at * 7 + at / 251 + from as u64 * 31) % 251) as u8
}

pub const URGENT: u8 = 0xff;

/// Our end.
#[derive(Clone)]
pub enum Ours {
    Tcp(Rc<TcpStream>),
    Unix(Rc<UnixStream>),
    Pipe(Rc<PollFd<OwnedFd>>),
}

impl Ours {
    pub fn fd(&self) -> RawFd {
        match self {
            Ours::Tcp(stream) => stream.as_fd().as_raw_fd(),
            Ours::Unix(stream) => stream.as_fd().as_raw_fd(),
            Ours::Pipe(fd) => fd.as_fd().as_raw_fd(),
        }
    }
}

/// What is known of a connection, which duplicates share.
#[derive(Default)]
pub struct Books {
    pub number: usize,
    pub peer_sent: Cell<u64>,
    pub received: Cell<u64>,
    pub sent: Cell<u64>,
    pub peer_received: Cell<u64>,
    /// Some bytes went with an operation that was dropped: the rest is not compared.
    pub in_lost: Cell<bool>,
    pub out_lost: Cell<bool>,
    /// It was shut down or closed: errors are to be expected.
    pub ending: Cell<bool>,
    pub urgent: Cell<bool>,
}

pub struct Connection {
    pub books: Rc<Books>,
    /// All handles to it.
    pub ours: Vec<Ours>,
    /// Of the peer.
    pub peer: Option<OwnedFd>,
    pub tcp: bool,
    pub unix: bool,
}

pub struct FileOf {
    pub file: Rc<File>,
    pub content: Rc<RefCell<Vec<u8>>>,
    /// Writes that are under way.
    pub busy: Rc<Cell<usize>>,
    /// Writes that were made.
    pub version: Rc<Cell<usize>>,
}

pub struct Listening {
    pub listener: Rc<TcpListener>,
    pub address: SocketAddr,
}

/// What has a name in a folder of its own: a FIFO, and a Unix-domain socket that
/// listens with hardly any backlog.
pub struct Paths {
    pub folder: tempfile::TempDir,
    pub listener: Socket,
    pub ends: Vec<OwnedFd>,
}

impl Paths {
    fn new() -> std::io::Result<Self> {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let mode = nix::sys::stat::Mode::S_IRWXU;
        nix::unistd::mkfifo(&folder.path().join("fifo"), mode)?;
        let listener = Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
        listener.set_nonblocking(true)?;
        listener.bind(&socket2::SockAddr::unix(folder.path().join("socket"))?)?;
        listener.listen(0)?;
        Ok(Paths {
            folder,
            listener,
            ends: Vec::new(),
        })
    }
}

/// What is shared with the activities.
#[derive(Default)]
pub struct Shared {
    pub wrong: RefCell<Option<String>>,
    pub buffers: Rc<BufferBook>,
    /// Streams that an activity accepted or connected.
    pub arrived: RefCell<Vec<Box<dyn std::any::Any>>>,
}

impl Shared {
    pub fn wrong(&self, what: impl Into<String>) {
        self.wrong.borrow_mut().get_or_insert_with(|| what.into());
    }
}

/// What polls each of them once more.
pub type Completed = Vec<Box<dyn FnMut()>>;

pub struct World {
    pub io: Loop,
    pub shared: Rc<Shared>,
    pub connections: Vec<Connection>,
    pub files: Vec<FileOf>,
    pub listeners: Vec<Listening>,
    pub activities: Vec<Activity>,
    /// Raw operations that have completed, to be polled again.
    pub completed: Rc<RefCell<Completed>>,
    /// Sockets of peers that connected.
    pub strangers: Vec<Socket>,
    pub paths: Option<Paths>,
    pub across: Across,
    pub performed: usize,
    pub next: usize,
    /// Descriptors that forgotten activities keep open.
    pub forgotten: usize,
    pub forgotten_buffers: usize,
    pub forgotten_operations: usize,
}

impl World {
    pub fn new(choice: BackendChoice) -> Self {
        World {
            io: Loop::new(choice),
            shared: Rc::default(),
            connections: Vec::new(),
            files: Vec::new(),
            listeners: Vec::new(),
            activities: Vec::new(),
            completed: Rc::default(),
            strangers: Vec::new(),
            paths: None,
            across: Across::new(choice),
            performed: 0,
            next: 0,
            forgotten: 0,
            forgotten_buffers: 0,
            forgotten_operations: 0,
        }
    }

    pub fn failed(&self) -> Option<String> {
        if let Some(wrong) = self.across.wrong() {
            self.shared.wrong(wrong);
        }
        let wrong = self.shared.wrong.borrow().clone();
        wrong.or_else(|| self.shared.buffers.wrong.borrow().clone())
    }

    /// Polls the activities that were woken. Whether there were any.
    pub fn run(&mut self) -> bool {
        let mut ran = false;
        let mut at = 0;
        while at < self.activities.len() {
            if self.activities[at].is_woken() {
                ran = true;
                if self.poll_activity(at) {
                    continue;
                }
            }
            at += 1;
        }
        ran
    }

    /// Whether it has ended.
    pub fn poll_activity(&mut self, at: usize) -> bool {
        let ended = self.activities[at].poll() == Poll::Ready(());
        if ended {
            drop(self.activities.swap_remove(at));
        }
        ended
    }

    pub fn ready(fd: RawFd, events: PollFlags) -> bool {
        // SAFETY: the activity that waits for it keeps it open.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
        let mut fds = [SysPollFd::new(fd, events)];
        nix::poll::poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// An activity that waits for what `poll(2)` says is there.
    fn sleeper(&self) -> Option<&Activity> {
        self.activities.iter().find(|activity| {
            !activity.is_woken()
                && match activity.waits {
                    Waits::Read(fd) => World::ready(fd, PollFlags::POLLIN),
                    Waits::Write(fd) => World::ready(fd, PollFlags::POLLOUT),
                    Waits::SharedRead(fd) => World::ready(fd, PollFlags::POLLIN),
                    Waits::SharedWrite(fd) => World::ready(fd, PollFlags::POLLOUT),
                    Waits::Soon => true,
                    Waits::Anything => false,
                }
        })
    }

    /// Runs until nothing happens any more, and looks who sleeps though it should
    /// not.
    pub fn settle(&mut self) {
        let begun = Instant::now();
        let mut quiet = 0;
        loop {
            let turned = self.io.driver.park(Some(Duration::ZERO));
            if self.run() || turned > 0 {
                quiet = 0;
                if begun.elapsed() < 2 * PATIENCE {
                    continue;
                }
                return self.shared.wrong("settle: never quiet");
            }
            quiet += 1;
            if quiet < 3 {
                continue;
            }
            let (name, wait, patience) = match self.sleeper() {
                Some(sleeper) => match sleeper.waits {
                    Waits::Read(_) => (sleeper.name, "reads", PATIENCE),
                    Waits::Write(_) => (sleeper.name, "writes", PATIENCE),
                    Waits::SharedRead(_) => (sleeper.name, "reads", LONG_PATIENCE),
                    Waits::SharedWrite(_) => (sleeper.name, "writes", LONG_PATIENCE),
                    _ => (sleeper.name, "ends", PATIENCE),
                },
                None if self.across.sleeps() => ("the other", "goes on", LONG_PATIENCE),
                None => return,
            };
            if begun.elapsed() > patience {
                return self
                    .shared
                    .wrong(format!("lost wake: {name} sleeps though it {wait}"));
            }
            self.io.driver.park(Some(Duration::from_millis(1)));
        }
    }

    /// Ends everything. How many descriptors what was forgotten may hold open.
    pub fn end(mut self) -> Result<usize, String> {
        if let Some(wrong) = self.failed() {
            // What is under way may be in any state.
            std::mem::forget(self);
            return Err(wrong);
        }
        self.settle();
        self.activities.clear();
        self.completed.borrow_mut().clear();
        self.connections.clear();
        self.listeners.clear();
        self.strangers.clear();
        self.across.end();
        if let Some(wrong) = self.across.wrong() {
            self.shared.wrong(wrong);
        }
        self.paths = None;
        self.shared.arrived.borrow_mut().clear();
        self.io.settle_to(self.forgotten_operations, PATIENCE);
        for file in self.files.drain(..) {
            if file.busy.get() == 0
                && let Err(what) = compare_file(&file)
            {
                self.shared.wrong(what);
            }
        }
        let left = self.io.driver.in_flight();
        if left > self.forgotten_operations {
            let forgotten = self.forgotten_operations;
            self.shared
                .wrong(format!("in flight for ever: {left}, forgotten {forgotten}"));
        }
        let World {
            io,
            shared,
            forgotten,
            forgotten_buffers,
            ..
        } = self;
        io.end();
        let book = &shared.buffers;
        let left = book.made.get() - book.dropped.get();
        if left > forgotten_buffers {
            shared.wrong(format!(
                "buffer: {left} never came back, {forgotten_buffers} forgotten"
            ));
        }
        let wrong = shared.wrong.borrow().clone();
        match wrong.or_else(|| book.wrong.borrow().clone()) {
            Some(wrong) => Err(wrong),
            None => Ok(forgotten),
        }
    }

    pub fn paths(&mut self) -> &mut Paths {
        self.paths
            .get_or_insert_with(|| Paths::new().expect("a folder"))
    }

    pub fn listen(&mut self) {
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
        let listener = TcpListener::bind(address).expect("a port of the loopback interface");
        let address = listener.local_addr().expect("it is bound");
        let listener = Rc::new(listener);
        self.listeners.push(Listening { listener, address });
    }
}

fn compare_file(file: &FileOf) -> Result<(), String> {
    use std::os::unix::fs::FileExt;
    let clone = file
        .file
        .as_fd()
        .try_clone_to_owned()
        .expect("a descriptor");
    let clone = std::fs::File::from(clone);
    let content = file.content.borrow();
    let mut found = vec![0; content.len() + 1];
    let count = clone
        .read_at(&mut found, 0)
        .map_err(|error| format!("file: {error}"))?;
    if found[..count] != content[..] {
        return Err("file: it holds something else".to_owned());
    }
    Ok(())
}
