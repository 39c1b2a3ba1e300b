//! Where a runtime's tasks go.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::thread::ThreadId;

use corespun::thread::{ParkedThread, SpdkThread, ThreadRunner};

use super::RuntimeFlavor;
use super::handle::Handle;
#[cfg(feature = "rt-multi-thread")]
use super::multi_thread::Workers;

/// What is counted of a worker. On a line of its own: its worker writes it all the time.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Load {
    /// Tasks that have begun and not ended.
    alive: AtomicUsize,
    /// Those of them that another thread has spawned and that were not polled yet.
    injected: AtomicUsize,
    /// How often the worker went to sleep, and woke.
    parks: AtomicU64,
    /// How often, one in the other, it is in `block_in_place`.
    #[cfg(feature = "rt-multi-thread")]
    blocked: AtomicUsize,
}

impl Load {
    pub(crate) fn task_begins(&self) {
        self.alive.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn task_ends(&self) {
        self.alive.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn task_injected(&self) {
        self.injected.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn task_taken(&self) {
        self.injected.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn injected(&self) -> usize {
        self.injected.load(Ordering::Relaxed)
    }

    /// The worker goes into `block_in_place`.
    #[cfg(feature = "rt-multi-thread")]
    pub(super) fn blocks(&self) {
        self.blocked.fetch_add(1, Ordering::Relaxed);
    }

    /// It comes back.
    #[cfg(feature = "rt-multi-thread")]
    pub(super) fn goes_on(&self) {
        self.blocked.fetch_sub(1, Ordering::Relaxed);
    }

    /// What is given to it now would wait for long.
    #[cfg(feature = "rt-multi-thread")]
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed) > 0
    }

    pub(super) fn alive(&self) -> usize {
        self.alive.load(Ordering::Relaxed)
    }

    /// The worker goes to sleep, or wakes.
    pub(super) fn note_park(&self) {
        // The worker is the only writer.
        let parks = self.parks.load(Ordering::Relaxed);
        self.parks.store(parks + 1, Ordering::Relaxed);
    }

    /// Odd while the worker sleeps.
    pub(super) fn parks(&self) -> u64 {
        self.parks.load(Ordering::Relaxed)
    }
}

pub(super) enum Scheduler {
    CurrentThread(CurrentThread),
    #[cfg(feature = "rt-multi-thread")]
    MultiThread(Workers),
}

impl Scheduler {
    /// The thread for a task that is spawned now, and where it is counted.
    pub(super) fn place(&self) -> (&SpdkThread, &Arc<Load>) {
        match self {
            Scheduler::CurrentThread(one) => (&one.thread, &one.load),
            #[cfg(feature = "rt-multi-thread")]
            Scheduler::MultiThread(workers) => workers.place(),
        }
    }

    /// As [`place`](Self::place), for a task of `handle`'s runtime: not on a worker that is in
    /// `block_in_place`.
    pub(super) fn place_task<'a>(&'a self, handle: &Handle) -> (&'a SpdkThread, &'a Arc<Load>) {
        let place = self.place();
        #[cfg(feature = "rt-multi-thread")]
        if let Scheduler::MultiThread(workers) = self
            && place.1.is_blocked()
        {
            return workers.place_beside(handle).unwrap_or(place);
        }
        let _ = handle;
        place
    }

    pub(super) fn flavor(&self) -> RuntimeFlavor {
        match self {
            Scheduler::CurrentThread(_) => RuntimeFlavor::CurrentThread,
            #[cfg(feature = "rt-multi-thread")]
            Scheduler::MultiThread(_) => RuntimeFlavor::MultiThread,
        }
    }

    /// What is counted, of all that run tasks.
    pub(super) fn loads(&self) -> Vec<&Arc<Load>> {
        match self {
            Scheduler::CurrentThread(one) => vec![&one.load],
            #[cfg(feature = "rt-multi-thread")]
            Scheduler::MultiThread(workers) => workers.loads(),
        }
    }

    /// The workers: their threads and what is counted of them.
    pub(super) fn workers(&self) -> Vec<(&SpdkThread, &Arc<Load>)> {
        match self {
            Scheduler::CurrentThread(one) => vec![(&one.thread, &one.load)],
            #[cfg(feature = "rt-multi-thread")]
            Scheduler::MultiThread(workers) => workers.all(),
        }
    }
}

/// The one SpdkThread of a `current_thread` runtime, polled by whoever is in `block_on`.
pub(super) struct CurrentThread {
    pub(super) thread: SpdkThread,
    pub(super) load: Arc<Load>,
    seat: Mutex<Seat>,
}

struct Seat {
    state: SeatState,
    /// The OS thread that polled it last.
    last: Option<ThreadId>,
    /// Those in `block_on` who would take it over.
    waiters: Vec<Waker>,
}

enum SeatState {
    /// Nobody polls it.
    Free(ParkedThread),
    /// Somebody does.
    Taken,
    /// It holds what is not `Send`, and waits among the [`STRANDED`] of an OS thread.
    Stranded(ThreadId),
    /// The runtime is shut down.
    Gone,
}

thread_local! {
    /// Threads that nobody polls and that cannot leave this OS thread.
    static STRANDED: std::cell::RefCell<Vec<ThreadRunner>> =
        const { std::cell::RefCell::new(Vec::new()) };
}

impl CurrentThread {
    pub(super) fn new(thread: ParkedThread) -> Self {
        CurrentThread {
            thread: thread.handle(),
            load: Arc::default(),
            seat: Mutex::new(Seat {
                state: SeatState::Free(thread),
                last: None,
                waiters: Vec::new(),
            }),
        }
    }

    /// One that its runtime polls by itself.
    pub(super) fn elsewhere(thread: SpdkThread) -> Self {
        CurrentThread {
            thread,
            load: Arc::default(),
            seat: Mutex::new(Seat {
                state: SeatState::Gone,
                last: None,
                waiters: Vec::new(),
            }),
        }
    }

    fn seat(&self) -> MutexGuard<'_, Seat> {
        // No user code runs under the lock, so a poisoned one is whole.
        self.seat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to poll the thread, unless somebody else has it.
    ///
    /// # Panics
    ///
    /// When the thread cannot leave another OS thread.
    #[track_caller]
    pub(super) fn take(&self) -> Option<Taken<'_>> {
        match self.try_take() {
            Ok(taken) => taken,
            Err(os_thread) => panic!(
                "the tasks of this runtime hold what is not `Send` and stay on {os_thread:?}, \
                 where `block_on` was called last: call it there"
            ),
        }
    }

    /// As [`take`](Self::take); the error is the OS thread that the thread cannot leave.
    pub(super) fn try_take(&self) -> Result<Option<Taken<'_>>, ThreadId> {
        let here = std::thread::current().id();
        let mut seat = self.seat();
        let runner = match std::mem::replace(&mut seat.state, SeatState::Taken) {
            SeatState::Free(parked) => parked.attach(),
            SeatState::Stranded(os_thread) if os_thread == here => {
                // Those of other runtimes may have the same number.
                STRANDED.with_borrow_mut(|stranded| {
                    let place = stranded.iter().position(|one| one.handle() == self.thread);
                    stranded.swap_remove(place.expect("it was left here"))
                })
            }
            SeatState::Stranded(os_thread) => {
                seat.state = SeatState::Stranded(os_thread);
                return Err(os_thread);
            }
            other => {
                seat.state = other;
                return Ok(None);
            }
        };
        let moved = seat.last.replace(here).is_some_and(|last| last != here);
        drop(seat);
        let runner = Some(runner);
        Ok(Some(Taken {
            owner: self,
            runner,
            moved,
        }))
    }

    /// Wakes `waker` when the right to poll becomes free. Says whether it is.
    pub(super) fn poll_free(&self, waker: &Waker) -> bool {
        let mut seat = self.seat();
        if matches!(seat.state, SeatState::Free(_)) {
            return true;
        }
        if !seat.waiters.iter().any(|one| one.will_wake(waker)) {
            seat.waiters.push(waker.clone());
        }
        false
    }

    pub(super) fn forget(&self, waker: &Waker) {
        let mut seat = self.seat();
        let place = seat.waiters.iter().position(|one| one.will_wake(waker));
        let gone = place.map(|place| seat.waiters.swap_remove(place));
        drop(seat);
        drop(gone);
    }

    /// Nobody gets the right to poll any more.
    pub(super) fn close(&self) {
        self.seat().state = SeatState::Gone;
    }
}

/// The right to poll the thread of a runtime, given back when dropped.
pub(super) struct Taken<'a> {
    owner: &'a CurrentThread,
    runner: Option<ThreadRunner>,
    /// Another OS thread polled it last: waits for I/O that tasks have begun there do
    /// not wake them here.
    pub(super) moved: bool,
}

impl Taken<'_> {
    /// Ends the thread: drops its tasks, without polling them once more.
    pub(super) fn end(mut self) {
        drop(self.runner.take());
    }

    pub(super) fn runner(&mut self) -> &mut ThreadRunner {
        self.runner.as_mut().expect("until it is dropped")
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let Some(runner) = self.runner.take() else {
            return;
        };
        let state = match runner.park() {
            Ok(parked) => SeatState::Free(parked),
            Err(runner) => {
                let left = STRANDED.try_with(|stranded| stranded.borrow_mut().push(runner));
                if left.is_err() {
                    // The OS thread ends, and so does what cannot leave it.
                    return self.owner.close();
                }
                SeatState::Stranded(std::thread::current().id())
            }
        };
        let mut seat = self.owner.seat();
        seat.state = state;
        let waiters = std::mem::take(&mut seat.waiters);
        drop(seat);
        waiters.into_iter().for_each(Waker::wake);
    }
}
