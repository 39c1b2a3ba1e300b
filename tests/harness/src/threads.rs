//! SpdkThreads on a virtual clock of one tick per µs, polled by hand on the test's own OS
//! thread.
//!
//! [`thread`] and [`two_threads`] are enough for most tests. [`Threads`] has the verbs that
//! the scenarios of the reference suites are written in.

use std::cell::{Cell, RefCell};
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use corespun::clock::{Clock, VirtualClock};
use corespun::task::JoinHandle;
use corespun::thread::{Activity, SpdkThread, ThreadLib, ThreadRunner};
use futures::executor::block_on;

/// Rounds after which something counts as without an end.
const PATIENCE: usize = 10_000;

/// So many microseconds.
pub const fn us(us: u64) -> Duration {
    Duration::from_micros(us)
}

/// The panics that the threads of a library have contained. An assertion that fails inside a
/// message, poller or task is contained there: it fails the test when the last of the library
/// and its runners is dropped, unless it was taken.
#[derive(Clone, Default)]
pub struct Panics(Arc<Unannounced>);

impl Panics {
    /// What they said, since the last `take`.
    pub fn take(&self) -> Vec<String> {
        self.0.take().into_iter().map(|(_, said)| said).collect()
    }

    /// As `take`, as "source: what it said".
    pub fn take_with_sources(&self) -> Vec<String> {
        let panics = self.0.take().into_iter();
        panics
            .map(|(source, said)| format!("{source}: {said}"))
            .collect()
    }
}

/// Sources, and what they said.
#[derive(Default)]
struct Unannounced(Arc<Mutex<Vec<(String, String)>>>);

impl Unannounced {
    fn take(&self) -> Vec<(String, String)> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl Drop for Unannounced {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.take(), [], "contained panics");
        }
    }
}

/// A library instance.
pub struct Library {
    library: ThreadLib,
    panics: Panics,
}

impl Library {
    /// On the virtual clock that comes with it.
    pub fn new() -> (Self, VirtualClock) {
        let (clock, hand) = Clock::virtual_at(1_000_000);
        let panics = Panics::default();
        let seen = panics.0.0.clone();
        let library = ThreadLib::builder()
            .clock(clock)
            .panic_hook(move |panic| {
                let said = (format!("{:?}", panic.source), panic.message.to_owned());
                seen.lock().unwrap().push(said);
            })
            .build();
        (Library { library, panics }, hand)
    }

    /// A thread of it.
    pub fn runner(&self, name: &str) -> Runner {
        let thread = self.library.thread().name(name).build().unwrap();
        self.adopt(thread.attach())
    }

    /// A thread of it that was made otherwise.
    pub fn adopt(&self, runner: ThreadRunner) -> Runner {
        Runner {
            runner,
            panics: self.panics.clone(),
        }
    }

    /// The panics that its threads have contained.
    pub fn panics(&self) -> Panics {
        self.panics.clone()
    }
}

impl Deref for Library {
    type Target = ThreadLib;

    fn deref(&self) -> &ThreadLib {
        &self.library
    }
}

/// A thread, to be polled by hand.
pub struct Runner {
    runner: ThreadRunner,
    panics: Panics,
}

impl Runner {
    /// The runner itself, for what takes it; nobody looks at panics any more.
    pub fn into_inner(self) -> ThreadRunner {
        self.runner
    }

    /// The panics that threads of its library have contained.
    pub fn panics(&self) -> Panics {
        self.panics.clone()
    }
}

impl Deref for Runner {
    type Target = ThreadRunner;

    fn deref(&self) -> &ThreadRunner {
        &self.runner
    }
}

impl DerefMut for Runner {
    fn deref_mut(&mut self) -> &mut ThreadRunner {
        &mut self.runner
    }
}

/// A library.
pub fn library() -> (Library, VirtualClock) {
    Library::new()
}

/// A thread.
pub fn thread() -> (Runner, VirtualClock) {
    let (library, hand) = library();
    (library.runner(""), hand)
}

/// Two threads of one library.
pub fn two_threads() -> (Runner, Runner) {
    let (library, _) = library();
    (library.runner("here"), library.runner("there"))
}

/// Polls at the current tick until nothing is left to do at it. Gives up on what
/// is busy for ever.
pub fn settle(runner: &mut ThreadRunner) {
    for _ in 0..PATIENCE {
        if !runner.poll(0, 0).is_busy() {
            return;
        }
    }
    panic!("the thread is busy without end");
}

/// [`settle`] for threads that talk to each other.
pub fn settle_all(runners: &mut [&mut ThreadRunner]) {
    for _ in 0..PATIENCE {
        let mut busy = false;
        for runner in runners.iter_mut() {
            busy |= runner.poll(0, 0).is_busy();
        }
        if !busy {
            return;
        }
    }
    panic!("the threads are busy without end");
}

/// Settles at each tick up to `tick`.
pub fn run_to(runner: &mut ThreadRunner, hand: &VirtualClock, tick: u64) {
    settle(runner);
    while hand.now() < tick {
        hand.advance(1);
        settle(runner);
    }
}

/// What a task that has ended gave.
pub fn output<T>(handle: JoinHandle<T>) -> T {
    assert!(handle.is_finished(), "the task has not ended");
    block_on(handle).unwrap()
}

/// What happened, in order.
#[derive(Clone, Default)]
pub struct Trace(Rc<RefCell<Vec<String>>>);

impl Trace {
    /// Adds to it.
    pub fn note(&self, what: impl Into<String>) {
        self.0.borrow_mut().push(what.into());
    }

    /// What happened since the last `take`.
    pub fn take(&self) -> Vec<String> {
        self.0.take()
    }
}

/// Notes its drop.
pub struct DropNote(pub Trace, pub &'static str);

impl Drop for DropNote {
    fn drop(&mut self) {
        self.0.note(self.1);
    }
}

/// Several threads, by number.
pub struct Threads {
    runners: Vec<ThreadRunner>,
    /// The library instance they belong to.
    pub library: Library,
    /// Its clock.
    pub time: VirtualClock,
}

impl Threads {
    /// A library instance with `n` unnamed threads; none is current afterwards.
    pub fn allocate(n: usize) -> Self {
        let (library, time) = library();
        let runners = (0..n)
            .map(|_| library.thread().build().unwrap().attach())
            .collect();
        Threads {
            runners,
            library,
            time,
        }
    }

    /// The panics that the threads have contained, which are then expected.
    pub fn take_panics(&self) -> Vec<String> {
        self.library.panics.take()
    }

    /// The handle of a thread.
    pub fn handle(&self, thread: usize) -> SpdkThread {
        self.runners[thread].handle()
    }

    /// What polls a thread.
    pub fn runner(&mut self, thread: usize) -> &mut ThreadRunner {
        &mut self.runners[thread]
    }

    /// `set_thread(i)`, for as long as `f` runs.
    pub fn on<R>(&mut self, thread: usize, f: impl FnOnce() -> R) -> R {
        self.runners[thread].enter(f)
    }

    /// Asks from outside: a message, if the thread is not exiting already.
    pub fn exit(&self, thread: usize) {
        drop(self.handle(thread).exit());
    }

    /// Whether a thread has exited.
    pub fn is_exited(&self, thread: usize) -> bool {
        self.handle(thread).is_exited()
    }

    /// One poll of one message; says whether it was busy.
    pub fn poll_once(&mut self, thread: usize) -> bool {
        self.poll_thread_times(thread, 1)
    }

    /// Lets time pass.
    pub fn delay_us(&self, us: u64) {
        self.time.advance(us);
    }

    /// Exactly `n` polls of one message each, every one beginning when the one
    /// before ended. Says whether one was busy.
    pub fn poll_thread_times(&mut self, thread: usize, n: usize) -> bool {
        let runner = &mut self.runners[thread];
        let mut busy = false;
        let mut now = self.time.now();
        for _ in 0..n {
            busy |= runner.poll(1, now).is_busy();
            now = runner.handle().last_tick();
        }
        busy
    }

    /// Polls while a poll does something; says whether one did.
    pub fn poll_thread(&mut self, thread: usize) -> bool {
        let mut busy = false;
        while self.poll_thread_times(thread, 1) {
            busy = true;
        }
        busy
    }

    /// Polls all threads until a full round did nothing.
    pub fn poll_threads(&mut self) {
        let mut busy = true;
        while busy {
            busy = false;
            for thread in 0..self.runners.len() {
                busy |= self.poll_thread(thread);
            }
        }
    }

    /// Exits every thread and polls until all have; fails if that does not end.
    pub fn free(mut self) {
        for thread in 0..self.runners.len() {
            self.on(thread, || drop(SpdkThread::current().unwrap().exit()));
        }
        for _ in 0..PATIENCE {
            if self.runners.iter().all(|r| r.handle().is_exited()) {
                assert_eq!(self.library.thread_count(), 0);
                return;
            }
            for runner in &mut self.runners {
                runner.poll(1, 0);
            }
        }
        let left: Vec<_> = self.runners.iter().map(|r| r.exit_holders()).collect();
        panic!("threads do not exit; held by {left:?}");
    }
}

/// A counter that a poller and its test share.
#[derive(Clone, Default)]
pub struct Runs(Rc<Cell<u64>>);

impl Runs {
    /// Counts one.
    pub fn add(&self) {
        self.0.set(self.0.get() + 1);
    }

    /// How many so far.
    pub fn get(&self) -> u64 {
        self.0.get()
    }

    /// How many since the last `take`.
    pub fn take(&self) -> u64 {
        self.0.take()
    }

    /// A callback that counts and finds nothing to do.
    pub fn idle(&self) -> impl FnMut() -> Activity + use<> {
        let runs = self.clone();
        move || {
            runs.add();
            Activity::Idle
        }
    }
}

/// A counter for callbacks that travel.
#[derive(Clone, Default)]
pub struct SharedRuns(Arc<AtomicI64>);

impl SharedRuns {
    /// Counts one.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    /// Takes one off.
    pub fn subtract(&self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }

    /// How many so far.
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }
}
