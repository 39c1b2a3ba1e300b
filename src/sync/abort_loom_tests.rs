//! Models of an abort against the poll of its task, its return, and its thread's
//! exit, run by loom over every interleaving within a bound of 3 preemptions.
//!
//! [`AbortTask`] stands in for async-task 4.7, which uses the standard atomics:
//! the same state bits, changed in the same steps, by `wake_by_ref` and `run`.
//! `abort` is `TaskMeta::abort`, `poll` is `TaskFuture::poll_on`, `cancel` and
//! `cancel_unpolled` are the exit's two ways, all of `task::raw`; the mailbox is
//! the real one.

use std::sync::atomic::{AtomicUsize as Count, Ordering::Relaxed};

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;

use super::Mailbox;

const SCHEDULED: usize = 1;
const RUNNING: usize = 2;
const COMPLETED: usize = 4;
const CLOSED: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    Returned,
    Cancelled,
    Exited,
}

/// A task with a join handle, which keeps it allocated, so that references need
/// not be counted.
struct AbortTask {
    state: AtomicUsize,
    mailbox: Mailbox<()>,
    aborted: AtomicBool,
    /// Owner only, as are the next two.
    doomed: UnsafeCell<bool>,
    future: UnsafeCell<bool>,
    /// How many polls the future takes until it returns.
    polls_left: UnsafeCell<usize>,
    /// Written before `COMPLETED` is set, read by who saw that.
    outcome: UnsafeCell<Option<Outcome>>,
    runnables: Count,
}

impl AbortTask {
    fn new(state: usize, polls_left: usize) -> Arc<Self> {
        Arc::new(AbortTask {
            state: AtomicUsize::new(state),
            mailbox: Mailbox::new(2),
            aborted: AtomicBool::new(false),
            doomed: UnsafeCell::new(false),
            future: UnsafeCell::new(true),
            polls_left: UnsafeCell::new(polls_left),
            outcome: UnsafeCell::new(None),
            runnables: Count::new(0),
        })
    }

    /// Waits for its first poll.
    fn queued(polls_left: usize) -> Arc<Self> {
        let task = AbortTask::new(SCHEDULED, polls_left);
        task.schedule();
        task
    }

    fn update(&self, change: impl Fn(usize) -> usize) -> usize {
        let mut state = self.state.load(Ordering::Acquire);
        loop {
            match self.state.compare_exchange(
                state,
                change(state),
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return state,
                Err(now) => state = now,
            }
        }
    }

    fn schedule(&self) {
        assert_eq!(self.runnables.fetch_add(1, Relaxed), 0, "queued twice");
        if self.mailbox.push(()).is_err() {
            // By R3 this drops an empty shell, wherever it is.
            assert_eq!(self.runnables.fetch_sub(1, Relaxed), 1);
            // SAFETY: loom checks that the owner's drop comes before.
            assert!(!self.future.with(|future| unsafe { *future }));
            self.update(|state| state | CLOSED);
        }
    }

    fn wake_by_ref(&self) {
        let mut state = self.state.load(Ordering::Acquire);
        while state & (COMPLETED | CLOSED) == 0 {
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

    fn abort(&self) {
        self.aborted.store(true, Ordering::Release);
        self.wake_by_ref();
    }

    /// What joining gives, once the task has ended.
    fn join(&self) -> Option<Outcome> {
        match self.state.load(Ordering::Acquire) {
            state if state & COMPLETED != 0 => {
                // SAFETY: written before the state said so; loom checks it.
                self.outcome.with(|outcome| unsafe { *outcome })
            }
            state if state & CLOSED != 0 => Some(Outcome::Exited),
            _ => None,
        }
    }

    /// Owner only.
    fn release(&self) {
        // SAFETY: the owner; loom checks it.
        self.future.with_mut(|future| unsafe { *future = false });
    }

    fn poll(&self) -> Option<Outcome> {
        if self.aborted.load(Ordering::Acquire) {
            self.release();
            // SAFETY: the owner; loom checks it.
            let doomed = self.doomed.with(|doomed| unsafe { *doomed });
            return Some(if doomed {
                Outcome::Exited
            } else {
                Outcome::Cancelled
            });
        }
        // SAFETY: as above.
        if !self.future.with(|future| unsafe { *future }) {
            return Some(Outcome::Exited);
        }
        // SAFETY: as above.
        let left = self.polls_left.with_mut(|left| unsafe {
            *left -= 1;
            *left
        });
        if left > 0 {
            return None;
        }
        self.release();
        Some(Outcome::Returned)
    }

    fn run(&self) {
        assert_eq!(self.runnables.fetch_sub(1, Relaxed), 1);
        if self.state.load(Ordering::Acquire) & CLOSED != 0 {
            return self.release();
        }
        self.update(|state| (state & !SCHEDULED) | RUNNING);
        if let Some(outcome) = self.poll() {
            // SAFETY: nobody looks before `COMPLETED` is set; loom checks it.
            let earlier = self
                .outcome
                .with_mut(|place| unsafe { (*place).replace(outcome) });
            assert_eq!(earlier, None, "ended twice");
            self.update(|state| (state & !RUNNING & !SCHEDULED) | COMPLETED);
        } else if self.update(|state| state & !RUNNING) & SCHEDULED != 0 {
            self.schedule();
        }
    }

    /// Owner only.
    fn run_queued(&self) {
        // SAFETY: the one consumer.
        while unsafe { self.mailbox.pop() }.is_some() {
            self.run();
        }
    }

    /// The exit of the thread, with one poll's worth of its closed phase.
    fn exit(&self, polled: bool) {
        // SAFETY: the owner; loom checks it.
        self.doomed.with_mut(|doomed| unsafe { *doomed = true });
        if polled {
            // `cancel`
            self.release();
            self.wake_by_ref();
        } else {
            // `cancel_unpolled`
            self.aborted.store(true, Ordering::Release);
            self.run_queued();
        }
        self.mailbox.close();
        self.drain();
    }

    /// Until nothing that was pushed before the close is left.
    fn drain(&self) {
        // SAFETY: the one consumer.
        while !unsafe { self.mailbox.is_drained() } {
            self.run_queued();
            thread::yield_now();
        }
    }

    fn assert_ended(&self) -> Outcome {
        assert_eq!(self.runnables.load(Relaxed), 0);
        // SAFETY: the owner, alone by now.
        assert!(!self.future.with(|future| unsafe { *future }));
        self.join().expect("ended")
    }
}

fn model(f: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(f);
}

fn abort_elsewhere(task: &Arc<AbortTask>) -> thread::JoinHandle<Option<Outcome>> {
    let task = task.clone();
    thread::spawn(move || {
        task.abort();
        // As a join handle may, at any time.
        task.join()
    })
}

/// The abort comes before, during or after a poll that is pending: it is never
/// lost, the future is dropped by the owner, and the task is queued at most once.
#[test]
fn loom_an_abort_against_a_run_ends_the_task() {
    for queued in [true, false] {
        model(move || {
            let task = match queued {
                true => AbortTask::queued(2),
                false => AbortTask::new(0, 2),
            };
            let aborter = abort_elsewhere(&task);
            task.run_queued();
            let seen = aborter.join().unwrap();
            task.run_queued();
            assert_eq!(task.assert_ended(), Outcome::Cancelled);
            assert!(matches!(seen, None | Some(Outcome::Cancelled)));
        });
    }
}

/// The abort races with the poll that returns: one outcome, the same for all who
/// look, and whole when it is seen.
#[test]
fn loom_an_abort_against_the_return_gives_one_outcome() {
    model(|| {
        let task = AbortTask::queued(1);
        let aborter = abort_elsewhere(&task);
        task.run_queued();
        let seen = aborter.join().unwrap();
        task.run_queued();
        let ended = task.assert_ended();
        assert!(matches!(ended, Outcome::Returned | Outcome::Cancelled));
        assert!(seen.is_none_or(|seen| seen == ended));
    });
}

/// Two aborts, and the wake that the future waited for, against a run.
#[test]
fn loom_aborts_and_a_wake_against_a_run_queue_once() {
    model(|| {
        let task = AbortTask::queued(3);
        let aborter = abort_elsewhere(&task);
        let waker = {
            let task = task.clone();
            thread::spawn(move || task.wake_by_ref())
        };
        task.abort();
        task.run_queued();
        aborter.join().unwrap();
        waker.join().unwrap();
        task.run_queued();
        assert_eq!(task.assert_ended(), Outcome::Cancelled);
    });
}

/// G7, R3: the exit cancels the task and closes the mailbox while somebody aborts:
/// the owner drops the future, who is refused finds an empty shell, and a join
/// says that the thread exited.
#[test]
fn loom_an_abort_against_the_exit_finds_the_future_gone() {
    for polled in [true, false] {
        model(move || {
            let task = match polled {
                true => AbortTask::new(0, 2),
                false => AbortTask::queued(2),
            };
            let aborter = abort_elsewhere(&task);
            task.exit(polled);
            let seen = aborter.join().unwrap();
            task.drain();
            let ended = task.assert_ended();
            assert_eq!(ended, Outcome::Exited);
            assert!(seen.is_none_or(|seen| seen == ended));
        });
    }
}
