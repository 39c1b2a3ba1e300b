//! G1: every use of a waker from every place, in every state of its task: it
//! never fails, never polls inline, and brings a poll exactly when there is
//! something to poll.

use std::future::poll_fn;
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::task::{Poll, Waker};
use std::thread;

use corespun::task::{self, JoinHandle};
use corespun::thread::{ThreadLib, ThreadRunner};
use futures::FutureExt;
use harness::threads::Threads;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};

// Places.

type Job = Box<dyn FnOnce() + Send>;

/// Where wakers are used from. Each runs its jobs one by one.
struct Places {
    tokio: tokio::runtime::Runtime,
    signalled: Signalled,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Owner,
    OtherSpdkThread,
    OsThread,
    TokioWorker,
    /// The helper thread of a signal handler, which itself only writes a byte.
    SignalHelper,
    /// A destructor, while its OS thread unwinds.
    UnwindingDrop,
    /// The destructor of a thread-local, while its OS thread ends.
    EndOfOsThread,
}

const PLACES: [Place; 7] = [
    Place::Owner,
    Place::OtherSpdkThread,
    Place::OsThread,
    Place::TokioWorker,
    Place::SignalHelper,
    Place::UnwindingDrop,
    Place::EndOfOsThread,
];

/// Runs a job when dropped.
struct OnDrop(Option<Job>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        if let Some(job) = self.0.take() {
            job();
        }
    }
}

static SIGNAL_PIPE: AtomicI32 = AtomicI32::new(-1);

/// Async-signal-safe: a `write`, and `errno` as it was.
extern "C" fn on_signal(_: i32) {
    let errno = nix::errno::Errno::last_raw();
    let byte = 1u8;
    // SAFETY: writes one byte from a live local to a descriptor that stays open.
    unsafe {
        libc::write(
            SIGNAL_PIPE.load(Ordering::Relaxed),
            std::ptr::from_ref(&byte).cast(),
            1,
        );
    }
    nix::errno::Errno::set_raw(errno);
}

/// A signal handler and the thread that does what it must not.
struct Signalled {
    jobs: mpsc::Sender<Job>,
    done: mpsc::Receiver<()>,
}

impl Signalled {
    fn start() -> Self {
        let (read, write): (OwnedFd, OwnedFd) = nix::unistd::pipe().unwrap();
        let raw = write.as_raw_fd();
        // For the handler, as long as the process lives.
        std::mem::forget(write);
        SIGNAL_PIPE.store(raw, Ordering::Relaxed);
        let handler = SigHandler::Handler(on_signal);
        let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: the handler only does what is async-signal-safe.
        unsafe { sigaction(Signal::SIGUSR1, &action) }.unwrap();
        let (jobs, queue) = mpsc::channel::<Job>();
        let (tell, done) = mpsc::channel();
        thread::spawn(move || {
            let mut byte = [0];
            while nix::unistd::read(&read, &mut byte) == Ok(1) {
                let Ok(job) = queue.recv() else { return };
                job();
                if tell.send(()).is_err() {
                    return;
                }
            }
        });
        Signalled { jobs, done }
    }

    fn run(&self, job: Job) {
        self.jobs.send(job).unwrap();
        raise(Signal::SIGUSR1).unwrap();
        self.done.recv().unwrap();
    }
}

thread_local! {
    static AT_END: std::cell::RefCell<Option<OnDrop>> = const { std::cell::RefCell::new(None) };
}

impl Places {
    fn new() -> Self {
        let tokio = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .unwrap();
        Places {
            tokio,
            signalled: Signalled::start(),
        }
    }

    /// Runs `job` there to its end. `threads` has two threads, or none when the
    /// library is gone; then there is no owner either.
    fn run(&self, place: Place, threads: &mut Option<Threads>, job: Job) {
        match (place, threads) {
            (Place::Owner, Some(threads)) => threads.on(0, job),
            (Place::OtherSpdkThread, Some(threads)) => threads.on(1, job),
            (Place::Owner, None) => job(),
            (Place::OtherSpdkThread, None) => {
                let mut stranger = ThreadLib::new().thread().build().unwrap().attach();
                stranger.enter(job);
            }
            (Place::OsThread, _) => thread::spawn(job).join().unwrap(),
            (Place::TokioWorker, _) => {
                let ran = self.tokio.spawn(async move { job() });
                self.tokio.block_on(ran).unwrap();
            }
            (Place::SignalHelper, _) => self.signalled.run(job),
            (Place::UnwindingDrop, _) => {
                let unwound = catch_unwind(AssertUnwindSafe(|| {
                    let _job = OnDrop(Some(job));
                    std::panic::resume_unwind(Box::new("on purpose"));
                }));
                assert!(unwound.is_err());
            }
            (Place::EndOfOsThread, _) => {
                let ends = thread::spawn(move || AT_END.set(Some(OnDrop(Some(job)))));
                ends.join().unwrap();
            }
        }
    }
}

// Uses and states.

#[derive(Clone, Copy, Debug, PartialEq)]
enum Use {
    WakeByRef,
    WakeByValue,
    WakeAClone,
    Clone,
    Drop,
}

const USES: [Use; 5] = [
    Use::WakeByRef,
    Use::WakeByValue,
    Use::WakeAClone,
    Use::Clone,
    Use::Drop,
];

impl Use {
    fn wakes(self) -> bool {
        !matches!(self, Use::Clone | Use::Drop)
    }

    fn apply(self, waker: Waker) {
        match self {
            Use::WakeByRef => waker.wake_by_ref(),
            Use::WakeByValue => waker.wake(),
            Use::WakeAClone => Waker::clone(&waker).wake(),
            Use::Clone => drop((Waker::clone(&waker), waker)),
            Use::Drop => drop(waker),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// Waits to be woken.
    Idle,
    /// Nobody has a join handle.
    Detached,
    /// Was woken already.
    Queued,
    /// Was aborted, and not polled since.
    Aborted,
    Finished,
    /// Its thread has exited, and the handle is still there.
    ThreadExited,
    /// Thread and library are gone.
    LibraryDropped,
}

const STATES: [State; 7] = [
    State::Idle,
    State::Detached,
    State::Queued,
    State::Aborted,
    State::Finished,
    State::ThreadExited,
    State::LibraryDropped,
];

/// A task that counts its polls and hands out its waker.
#[derive(Clone, Default)]
struct Probe(Arc<(AtomicUsize, Mutex<Option<Waker>>)>);

impl Probe {
    fn polled(&self, waker: &Waker) {
        self.0.0.fetch_add(1, Ordering::Relaxed);
        *self.0.1.lock().unwrap() = Some(waker.clone());
    }

    fn polls(&self) -> usize {
        self.0.0.swap(0, Ordering::Relaxed)
    }

    /// Its only one.
    fn waker(&self) -> Waker {
        self.0.1.lock().unwrap().take().expect("was polled")
    }

    fn spawn(&self, finishes: bool) -> JoinHandle<()> {
        let probe = self.clone();
        task::spawn_local(poll_fn(move |cx| {
            probe.polled(cx.waker());
            if finishes {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        }))
    }
}

fn check(places: &Places, place: Place, state: State, used: Use) {
    let cell = format!("{used:?} from {place:?}, task {state:?}");
    let mut threads = Some(Threads::allocate(2));
    let probe = Probe::default();
    let handle = {
        let threads = threads.as_mut().unwrap();
        let handle = threads.on(0, || probe.spawn(state == State::Finished));
        threads.poll_threads();
        handle
    };
    assert_eq!(probe.polls(), 1, "{cell}");
    let waker = probe.waker();
    let mut handle = Some(handle);
    match state {
        State::Idle | State::Finished => {}
        State::Detached => drop(handle.take()),
        State::Queued => waker.wake_by_ref(),
        State::Aborted => handle.as_ref().unwrap().abort(),
        State::ThreadExited => {
            let threads = threads.as_mut().unwrap();
            threads.exit(0);
            threads.poll_threads();
            assert!(threads.is_exited(0));
        }
        State::LibraryDropped => drop(threads.take()),
    }
    places.run(place, &mut threads, Box::new(move || used.apply(waker)));
    assert_eq!(probe.polls(), 0, "polled inline: {cell}");
    if let Some(threads) = &mut threads {
        // Nobody else runs it.
        threads.poll_thread(1);
        assert_eq!(probe.polls(), 0, "{cell}");
        threads.poll_thread(0);
    }
    let polls = match state {
        State::Idle | State::Detached => usize::from(used.wakes()),
        State::Queued => 1,
        // The poll that it leads to is not the future's.
        State::Aborted | State::Finished | State::ThreadExited | State::LibraryDropped => 0,
    };
    assert_eq!(probe.polls(), polls, "{cell}");
    let joined = handle.and_then(FutureExt::now_or_never);
    match state {
        State::Idle | State::Detached | State::Queued => assert!(joined.is_none(), "{cell}"),
        State::Aborted => assert!(joined.unwrap().unwrap_err().is_cancelled(), "{cell}"),
        State::Finished => joined.unwrap().expect(&cell),
        State::ThreadExited | State::LibraryDropped => {
            assert!(joined.unwrap().unwrap_err().is_thread_exited(), "{cell}");
        }
    }
    // Neither lost nor leaked: the probe's future is gone with its thread.
    if let Some(threads) = threads {
        threads.free();
    }
    drop(probe.0.1.lock().unwrap().take());
    assert_eq!(Arc::strong_count(&probe.0), 1, "{cell}");
}

#[test]
fn every_use_of_a_waker_from_every_place_in_every_state_is_as_documented() {
    let places = Places::new();
    for place in PLACES {
        for state in STATES {
            for used in USES {
                check(&places, place, state, used);
            }
        }
    }
}

/// All at once, on one waker, while the task runs: whatever they do, each wake
/// is followed by a poll that sees what was published before it.
#[test]
fn many_threads_that_use_one_waker_at_once_lose_no_wake() {
    const THREADS: usize = 4;
    const ROUNDS: usize = 300;
    let mut runner = ThreadLib::new().thread().build().unwrap().attach();
    let probe = Probe::default();
    let published = Arc::new(AtomicUsize::new(0));
    let (inside, seen) = (probe.clone(), published.clone());
    let task = runner.enter(|| {
        task::spawn_local(poll_fn(move |cx| {
            inside.polled(cx.waker());
            match seen.load(Ordering::Acquire) {
                n if n == THREADS * ROUNDS => Poll::Ready(()),
                _ => Poll::Pending,
            }
        }))
    });
    runner.poll(0, 0);
    let waker = probe.waker();
    let start = Arc::new(Barrier::new(THREADS));
    let users: Vec<_> = (0..THREADS)
        .map(|n| {
            let (waker, published, start) = (waker.clone(), published.clone(), start.clone());
            thread::spawn(move || {
                start.wait();
                for round in 0..ROUNDS {
                    published.fetch_add(1, Ordering::Release);
                    let uses = USES.iter().cycle().skip(n + round).take(USES.len());
                    uses.for_each(|used| used.apply(waker.clone()));
                }
            })
        })
        .collect();
    drop(waker);
    while users.iter().any(|user| !user.is_finished()) {
        runner.poll(0, 0);
    }
    while runner.poll(0, 0).is_busy() {}
    assert!(task.is_finished());
    for user in users {
        user.join().unwrap();
    }
}

/// The OS thread that polled the task is gone, and another polls it now, or
/// nobody does.
#[test]
fn a_waker_outlives_the_os_thread_that_polled_its_task() {
    for goes_on in [true, false] {
        let probe = Probe::default();
        let inside = probe.clone();
        let (parked, handle) = thread::spawn(move || {
            let mut runner = ThreadLib::new().thread().build().unwrap().attach();
            let handle = runner.enter(|| {
                task::spawn(poll_fn(move |cx| {
                    inside.polled(cx.waker());
                    Poll::<()>::Pending
                }))
            });
            runner.poll(0, 0);
            let parked = if goes_on { runner.park().ok() } else { None };
            (parked, handle)
        })
        .join()
        .unwrap();
        assert_eq!(probe.polls(), 1);
        let waker = probe.waker();
        waker.wake_by_ref();
        let attached: Option<ThreadRunner> = parked.map(|parked| parked.attach());
        assert_eq!(attached.is_some(), goes_on);
        if let Some(mut runner) = attached {
            while runner.poll(0, 0).is_busy() {}
            assert_eq!(probe.polls(), 1);
            waker.wake_by_ref();
            while runner.poll(0, 0).is_busy() {}
            assert_eq!(probe.polls(), 1);
            drop(runner);
        }
        waker.wake();
        assert_eq!(probe.polls(), 0);
        let error = handle.now_or_never().unwrap().unwrap_err();
        assert!(error.is_thread_exited());
    }
}
