//! Where the result of a task waits that no SpdkThread runs: one of a helper thread,
//! or of a `LocalSet`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;

use super::{Id, JoinError};
use crate::runtime::context;

/// The part of a slot that does not know the result's type.
pub(crate) struct Abort {
    id: Id,
    aborted: AtomicBool,
    finished: AtomicBool,
    /// Wakes the task, to see that it was aborted.
    task: AtomicWaker,
}

impl Abort {
    pub(crate) fn abort(&self) {
        self.aborted.store(true, Ordering::Release);
        self.task.wake();
    }

    pub(crate) fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }

    /// As [`Abort::is_aborted`], with the task's waker to be told of a later one.
    pub(crate) fn poll_aborted(&self, cx: &mut Context<'_>) -> bool {
        self.task.register(cx.waker());
        self.is_aborted()
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.finished.load(Ordering::SeqCst)
    }
}

/// A result on its way from a task to who joins it.
pub(crate) struct Slot<T> {
    abort: Arc<Abort>,
    result: Mutex<Stage<T>>,
    joiner: AtomicWaker,
    /// There is a `JoinHandle` that may take the result.
    wanted: AtomicBool,
}

enum Stage<T> {
    Pending,
    Ready(Result<T, JoinError>),
    Taken,
}

impl<T> Slot<T> {
    pub(crate) fn new(id: Id) -> Arc<Self> {
        Arc::new(Slot {
            abort: Arc::new(Abort {
                id,
                aborted: AtomicBool::new(false),
                finished: AtomicBool::new(false),
                task: AtomicWaker::new(),
            }),
            result: Mutex::new(Stage::Pending),
            joiner: AtomicWaker::new(),
            wanted: AtomicBool::new(true),
        })
    }

    pub(crate) fn id(&self) -> Id {
        self.abort.id
    }

    pub(crate) fn abort_part(&self) -> Arc<Abort> {
        self.abort.clone()
    }

    pub(crate) fn abort(&self) {
        self.abort.abort();
    }

    pub(crate) fn is_aborted(&self) -> bool {
        self.abort.is_aborted()
    }

    pub(crate) fn poll_aborted(&self, cx: &mut Context<'_>) -> bool {
        self.abort.poll_aborted(cx)
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.abort.is_finished()
    }

    fn result(&self) -> MutexGuard<'_, Stage<T>> {
        // No user code runs under the lock, so a poisoned one is whole.
        self.result.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the result. The first one counts.
    pub(crate) fn finish(&self, result: Result<T, JoinError>) {
        let mut place = self.result();
        if !matches!(*place, Stage::Pending) {
            return;
        }
        *place = Stage::Ready(result);
        drop(place);
        // Either this sees that nobody joins, or who does not join sees the result.
        self.abort.finished.store(true, Ordering::SeqCst);
        // Nobody joins: the result is dropped by who made it.
        if !self.wanted.load(Ordering::SeqCst) {
            self.discard();
        }
        // A waker that panics is the joiner's matter, and not that of who ran the task.
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| self.joiner.wake())) {
            tracing::error!(task = %self.id(), "the waker of who joins a task panicked");
            std::mem::forget(payload);
        }
    }

    /// Nobody will take the result.
    pub(crate) fn unwanted(&self) {
        self.wanted.store(false, Ordering::SeqCst);
        if self.is_finished() {
            self.discard();
        }
    }

    fn discard(&self) {
        let mut place = self.result();
        if matches!(*place, Stage::Pending) {
            return;
        }
        let result = std::mem::replace(&mut *place, Stage::Taken);
        drop(place);
        let _in_task = context::enter_task(Some(self.id()));
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(result)));
        if let Err(payload) = dropped {
            tracing::error!(task = %self.id(), "an unjoined task's output panicked when dropped");
            // Its destructor may panic too.
            std::mem::forget(payload);
        }
    }

    pub(crate) fn poll_join(&self, cx: &mut Context<'_>) -> Poll<Result<T, JoinError>> {
        if !self.is_finished() {
            self.joiner.register(cx.waker());
            if !self.is_finished() {
                return Poll::Pending;
            }
        }
        match std::mem::replace(&mut *self.result(), Stage::Taken) {
            Stage::Ready(result) => Poll::Ready(result),
            Stage::Taken => panic!("JoinHandle polled after completion"),
            Stage::Pending => unreachable!("the task has finished"),
        }
    }
}
