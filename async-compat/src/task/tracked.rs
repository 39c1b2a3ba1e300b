//! What every task of a runtime is wrapped in: it names the task while it is polled or
//! dropped, gives each poll its budget, and counts the task where it was placed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use corespun::task::{Unconstrained, unconstrained};
use pin_project::{pin_project, pinned_drop};

use super::Id;
use crate::runtime::Load;
use crate::runtime::context;

/// A task's future. One budget counts: tokio's, which its channels and our timers and
/// sockets take from alike; the core's is off.
#[pin_project(PinnedDrop)]
pub(crate) struct Tracked<F> {
    #[pin]
    future: Option<Unconstrained<F>>,
    id: Id,
    load: Arc<Load>,
    /// Spawned by another thread, and not polled yet.
    injected: bool,
    /// It has accepted a connection.
    accepts: bool,
}

impl<F: Future> Tracked<F> {
    pub(crate) fn new(future: F, id: Id, load: &Arc<Load>, injected: bool) -> Self {
        load.task_begins();
        if injected {
            load.task_injected();
        }
        Tracked {
            future: Some(unconstrained(future)),
            id,
            load: load.clone(),
            injected,
            accepts: false,
        }
    }
}

impl<F: Future> Future for Tracked<F> {
    type Output = Output<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if std::mem::take(this.injected) {
            this.load.task_taken();
        }
        let _in_task = context::begin_poll(*this.id, *this.accepts);
        let polled = poll_or_drop(this.future, cx);
        *this.accepts = context::accepts();
        let value = ready!(polled);
        Poll::Ready(Output {
            value: Some(value),
            id: *this.id,
        })
    }
}

/// Polls a future that is there. One that panics is dropped at once, while the OS thread
/// unwinds: what it holds may look at that, as the guard of a `std` mutex does.
pub(super) fn poll_or_drop<F: Future>(
    future: Pin<&mut Option<F>>,
    cx: &mut Context<'_>,
) -> Poll<F::Output> {
    struct Unwinding<'a, F>(Pin<&'a mut Option<F>>);
    impl<F> Drop for Unwinding<'_, F> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                // A second panic must not leave a destructor that runs in the first.
                let dropped = catch_unwind(AssertUnwindSafe(|| self.0.set(None)));
                std::mem::forget(dropped);
            }
        }
    }
    let mut future = Unwinding(future);
    let future = future.0.as_mut().as_pin_mut();
    future.expect("a task is not polled after its end").poll(cx)
}

#[pinned_drop]
impl<F> PinnedDrop for Tracked<F> {
    fn drop(self: Pin<&mut Self>) {
        let mut this = self.project();
        if *this.injected {
            this.load.task_taken();
        }
        // Counted out also if the destructor unwinds.
        let _load = Leave(this.load);
        let _in_task = context::enter_task(Some(*this.id));
        this.future.set(None);
    }
}

struct Leave<'a>(&'a Load);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.task_ends();
    }
}

/// What a task gave, dropped in the task's name when nobody takes it.
pub(crate) struct Output<T> {
    value: Option<T>,
    id: Id,
}

impl<T> Output<T> {
    pub(crate) fn take(mut self) -> T {
        self.value.take().expect("taken once")
    }
}

impl<T> Drop for Output<T> {
    fn drop(&mut self) {
        if self.value.is_some() {
            let _in_task = context::enter_task(Some(self.id));
            self.value = None;
        }
    }
}
