//! Models of a task's hop to another thread against a wake and an abort, run by
//! loom.
//!
//! [`HopTask`] stands in for async-task 4.7: the same state bits, changed in the
//! same steps, by `wake_by_ref` and `run`; `leave` and `bounce` are those of the
//! task floor. The mailboxes are the real ones.

use std::sync::atomic::{AtomicUsize as Count, Ordering::Relaxed};

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;

use super::Mailbox;

const SCHEDULED: usize = 1;
const RUNNING: usize = 2;
const COMPLETED: usize = 4;

const HERE: usize = 0;
const THERE: usize = 1;

/// A movable task, scheduled on `HERE`, that goes `THERE` in its first poll.
struct HopTask {
    state: AtomicUsize,
    mailboxes: [Mailbox<()>; 2],
    /// What `HERE` put into its own queue. Its owner only.
    ready_here: UnsafeCell<bool>,
    /// As the task's metadata: for those whom R6 names, without a lock.
    thread: UnsafeCell<usize>,
    /// How often it was polled: entered on two threads at once, loom objects.
    polls: UnsafeCell<usize>,
    came_from: UnsafeCell<bool>,
    event: AtomicBool,
    /// As the task's metadata.
    aborted: AtomicBool,
    seen: Count,
    runnables: Count,
}

impl HopTask {
    fn new() -> Arc<Self> {
        Arc::new(HopTask {
            state: AtomicUsize::new(SCHEDULED),
            mailboxes: [Mailbox::new(2), Mailbox::new(2)],
            ready_here: UnsafeCell::new(true),
            thread: UnsafeCell::new(HERE),
            polls: UnsafeCell::new(0),
            came_from: UnsafeCell::new(false),
            event: AtomicBool::new(false),
            aborted: AtomicBool::new(false),
            seen: Count::new(0),
            runnables: Count::new(1),
        })
    }

    fn wake_by_ref(&self) {
        let mut state = self.state.load(Ordering::Acquire);
        while state & COMPLETED == 0 {
            match self.state.compare_exchange(
                state,
                state | SCHEDULED,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) if state & (SCHEDULED | RUNNING) == 0 => return self.schedule(),
                Ok(_) => return,
                Err(now) => state = now,
            }
        }
    }

    /// With the task's only `Runnable`.
    fn schedule(&self) {
        assert_eq!(self.runnables.fetch_add(1, Relaxed), 0, "queued twice");
        // SAFETY: R6: this has the `Runnable`; loom checks it.
        let thread = self.thread.with(|thread| unsafe { *thread });
        // SAFETY: as above.
        let hops = self
            .came_from
            .with_mut(|from| unsafe { from.replace(false) });
        if self.mailboxes[thread].push(()).is_err() {
            assert!(hops, "a future was dropped off its thread");
            // SAFETY: R6, and a hop is refused to the thread it comes from.
            self.thread.with_mut(|thread| unsafe { *thread = HERE });
            // SAFETY: as above.
            self.ready_here.with_mut(|ready| unsafe { *ready = true });
        }
    }

    /// Runs the `Runnable` that `here` took out of a queue. The first poll hops;
    /// a later one, if `ends`, completes.
    fn run(&self, ends: bool) {
        assert_eq!(self.runnables.fetch_sub(1, Relaxed), 1);
        self.state.fetch_xor(SCHEDULED | RUNNING, Ordering::AcqRel);
        // SAFETY: never entered twice; loom checks it.
        let poll = self.polls.with_mut(|polls| unsafe {
            *polls += 1;
            *polls
        });
        if self.event.load(Ordering::Relaxed) {
            self.seen.store(1, Relaxed);
        }
        if self.aborted.load(Ordering::Acquire) {
            self.state.fetch_or(COMPLETED, Ordering::AcqRel);
        } else if poll == 1 {
            // `leave`
            // SAFETY: R6: inside the poll.
            self.thread.with_mut(|thread| unsafe { *thread = THERE });
            // SAFETY: as above.
            self.came_from.with_mut(|from| unsafe { *from = true });
            self.wake_by_ref();
        } else if ends {
            self.state.fetch_or(COMPLETED, Ordering::AcqRel);
        }
        let state = self.state.fetch_and(!RUNNING, Ordering::AcqRel);
        if state & (SCHEDULED | COMPLETED) == SCHEDULED {
            self.schedule();
        }
    }

    fn run_mailbox(&self, thread: usize, ends: bool) {
        // SAFETY: the one consumer of this mailbox at a time.
        while unsafe { self.mailboxes[thread].pop() }.is_some() {
            self.run(ends);
        }
    }

    fn run_ready_here(&self, ends: bool) {
        // SAFETY: called by the owner of `HERE` only; loom checks it.
        while self
            .ready_here
            .with_mut(|ready| unsafe { ready.replace(false) })
        {
            self.run(ends);
        }
    }
}

fn model(f: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(f);
}

fn wake_from_elsewhere(task: &Arc<HopTask>) -> thread::JoinHandle<()> {
    let task = task.clone();
    thread::spawn(move || {
        task.event.store(true, Ordering::Relaxed);
        task.wake_by_ref();
    })
}

/// G1: a wake that races with a hop reaches the task: it is queued once at a
/// time, on the thread it is on, never entered twice, and a poll after the wake
/// sees what was published before it.
#[test]
fn loom_a_wake_against_a_hop_reaches_the_task() {
    model(|| {
        let task = HopTask::new();
        let waker = wake_from_elsewhere(&task);
        let there = {
            let task = task.clone();
            thread::spawn(move || task.run_mailbox(THERE, false))
        };
        task.run_ready_here(false);
        waker.join().unwrap();
        there.join().unwrap();
        task.run_mailbox(THERE, false);
        task.run_mailbox(HERE, false);
        assert_eq!(task.seen.load(Relaxed), 1, "lost wake");
        assert_eq!(task.runnables.load(Relaxed), 0);
        assert_eq!(task.state.load(Ordering::Relaxed), 0);
    });
}

/// A hop that its target refuses, since it closes meanwhile, brings the task back
/// to its own thread, although that takes no messages any more either, and a wake
/// that races with it drops nothing.
#[test]
fn loom_a_refused_hop_with_both_ends_closed_comes_back() {
    model(|| {
        let task = HopTask::new();
        let waker = wake_from_elsewhere(&task);
        let there = {
            let task = task.clone();
            thread::spawn(move || {
                task.mailboxes[THERE].close();
                task.run_mailbox(THERE, true);
            })
        };
        task.mailboxes[HERE].close();
        task.run_ready_here(true);
        waker.join().unwrap();
        there.join().unwrap();
        task.run_mailbox(THERE, true);
        assert_eq!(task.runnables.load(Relaxed), 0);
        let state = task.state.load(Ordering::Relaxed);
        assert_eq!(state & (RUNNING | COMPLETED), COMPLETED);
        // SAFETY: everybody else has ended.
        assert_eq!(task.polls.with(|polls| unsafe { *polls }), 2);
    });
}

/// An abort that races with a hop ends the task, on the thread it comes to or on
/// the one it left.
#[test]
fn loom_an_abort_against_a_hop_ends_the_task() {
    model(|| {
        let task = HopTask::new();
        let aborter = {
            let task = task.clone();
            thread::spawn(move || {
                task.aborted.store(true, Ordering::Release);
                task.wake_by_ref();
            })
        };
        let there = {
            let task = task.clone();
            thread::spawn(move || task.run_mailbox(THERE, false))
        };
        task.run_ready_here(false);
        aborter.join().unwrap();
        there.join().unwrap();
        task.run_mailbox(THERE, false);
        task.run_mailbox(HERE, false);
        assert_eq!(task.runnables.load(Relaxed), 0);
        let state = task.state.load(Ordering::Relaxed);
        assert_eq!(state & (RUNNING | COMPLETED), COMPLETED);
    });
}
