//! The right to learn how a task ended.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::pin::Pin;
use std::ptr::NonNull;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker, ready};

use super::{AbortHandle, JoinError, Outcome};
use crate::sync::budget::poll_budget;
use crate::task::TaskId;
use crate::task::raw::{RawTask, TaskMeta, with_running_on};
use crate::thread::panic::{contain, discard, payload_text};

/// Owns the right to learn how a task ended. Awaiting it gives the task's
/// output; dropping it lets the task run on by itself.
///
/// Works from any thread and any executor: it is `Send` if the output is. A task
/// that has ended takes a unit of the budget of the task that awaits it
/// ([`consume_budget`](crate::task::consume_budget)), so that a loop over tasks that end
/// at once gives way.
///
/// # Cancel safety
///
/// Awaiting `&mut handle` may be cancelled and repeated; the waker of the last
/// poll is the one that is woken.
///
/// # Panics
///
/// When it is polled again after it gave the result.
///
/// # Examples
///
/// ```
/// use corespun::{task, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let handle = runner.enter(|| task::spawn_local(async { 6 * 7 }));
/// runner.poll(0, 0);
/// assert!(handle.is_finished());
/// assert_eq!(futures::executor::block_on(handle).unwrap(), 42);
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
///
/// The handle of an output that cannot be sent stays on its OS thread:
///
/// ```compile_fail,E0277
/// fn crosses<T: Send>() {}
/// crosses::<corespun::task::JoinHandle<std::rc::Rc<u8>>>();
/// ```
#[must_use = "dropping a JoinHandle detaches its task"]
pub struct JoinHandle<T> {
    /// `None` only while being dropped. Keeps `meta` alive.
    task: Option<RawTask<T>>,
    meta: NonNull<TaskMeta>,
    /// Set while a foreign executor waits.
    joiner: Option<(Arc<Joiner>, Waker)>,
    /// Whether the result was given out.
    joined: bool,
}

// SAFETY: async-task's handle is `Send` for a `Send` output, and the metadata
// is `Sync`.
unsafe impl<T: Send> Send for JoinHandle<T> {}
// SAFETY: through a shared reference only the metadata and the task's atomic
// state are read.
unsafe impl<T: Send> Sync for JoinHandle<T> {}

impl<T> Unpin for JoinHandle<T> {}
// Nothing of the task is seen half done: what panicked is gone, and its result
// is an error.
impl<T> UnwindSafe for JoinHandle<T> {}
impl<T> RefUnwindSafe for JoinHandle<T> {}

impl<T> JoinHandle<T> {
    /// # Safety
    ///
    /// `meta` is the metadata of `task`.
    pub(in crate::task) unsafe fn new(task: RawTask<T>, meta: NonNull<TaskMeta>) -> Self {
        JoinHandle {
            task: Some(task),
            meta,
            joiner: None,
            joined: false,
        }
    }

    fn meta(&self) -> &TaskMeta {
        // SAFETY: it lives in the allocation that `task` keeps alive.
        unsafe { self.meta.as_ref() }
    }

    /// Cancels the task: at its next poll, which this brings about, its future
    /// is dropped on its own thread, and joining it yields
    /// [`JoinError::is_cancelled`]. A task that ends before that ends as if
    /// nothing had happened. Any thread may call this.
    pub fn abort(&self) {
        // SAFETY: the join handle keeps the allocation alive.
        unsafe { self.meta().abort() }
    }

    /// A handle that can only abort the task.
    ///
    /// # Examples
    ///
    /// One place waits for the task, another may end it:
    ///
    /// ```
    /// use corespun::{task, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let request = runner.enter(|| task::spawn_local(std::future::pending::<()>()));
    /// let abort = request.abort_handle();
    /// std::thread::spawn(move || abort.abort()).join().unwrap();
    /// runner.poll(0, 0);
    /// assert!(futures::executor::block_on(request).unwrap_err().is_cancelled());
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn abort_handle(&self) -> AbortHandle {
        let meta = self.meta();
        AbortHandle {
            // SAFETY: the join handle keeps the allocation alive.
            waker: Waker::clone(&*unsafe { meta.waker() }),
            meta: self.meta,
        }
    }

    /// Whether the task has ended: awaiting the handle would not wait for it.
    pub fn is_finished(&self) -> bool {
        self.task.as_ref().is_none_or(|task| task.is_finished())
    }

    /// The task's id.
    pub fn id(&self) -> TaskId {
        self.meta().id()
    }
}

/// How a join goes on.
enum Path {
    /// The task has ended: its outcome is taken.
    Ended,
    /// A task of the same thread joins, and is woken by the end of this one without
    /// synchronisation.
    Here,
    /// async-task wakes the joiner. A task of ours is woken by itself; what else it
    /// may be is contained.
    Elsewhere { ours: bool },
}

impl<T> JoinHandle<T> {
    #[inline]
    fn path(&self, waker: &Waker) -> Path {
        if self.is_finished() {
            return Path::Ended;
        }
        let here = with_running_on(|local, running| {
            // SAFETY: the join handle keeps the task alive.
            let join_here = || unsafe { self.meta().join_here(local, running) };
            running.is_waker(waker).then(join_here)
        });
        match here.flatten() {
            Some(true) => Path::Here,
            Some(false) => Path::Elsewhere { ours: true },
            None => Path::Elsewhere { ours: false },
        }
    }

    fn poll_raw(&mut self, waker: &Waker) -> Poll<Option<Outcome<T>>> {
        let task = self.task.as_mut().expect("present until dropped");
        Pin::new(task).poll(&mut Context::from_waker(waker))
    }

    /// With a waker that stays with the task. async-task would abort the process where
    /// one panics: those of our own tasks do not.
    #[cold]
    fn poll_elsewhere(&mut self, ours: bool, waker: &Waker) -> Poll<Option<Outcome<T>>> {
        if ours {
            return self.poll_raw(waker);
        }
        let contained = Joiner::renew(&mut self.joiner, waker).clone();
        self.poll_raw(&contained)
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        assert!(
            !this.joined,
            "the JoinHandle of task {} was polled after it had given the result",
            this.id()
        );
        let polled = match this.path(cx.waker()) {
            Path::Ended => {
                // A source that is always ready: a loop over eager tasks makes those
                // without end.
                ready!(poll_budget(cx)).progressed();
                match this.poll_raw(Waker::noop()) {
                    // The `Runnable` is just being dropped.
                    Poll::Pending => this.poll_elsewhere(false, cx.waker()),
                    ended => ended,
                }
            }
            Path::Here => return Poll::Pending,
            Path::Elsewhere { ours } => this.poll_elsewhere(ours, cx.waker()),
        };
        let outcome = ready!(polled);
        this.joined = true;
        Poll::Ready(match outcome {
            Some(outcome) => outcome.into_result(|| this.id()),
            // The `Runnable` was dropped: only the end of a thread does that.
            None => Err(JoinError::exited(this.id())),
        })
    }
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            if !self.joined && !task.is_finished() {
                // SAFETY: `task` keeps the allocation alive.
                unsafe { self.meta().forget_joiner() };
            }
            task.detach();
        }
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinHandle")
            .field("id", &self.id())
            .field("finished", &self.is_finished())
            .finish()
    }
}

/// The waker of a foreign executor that joins a task: a panic of its code is
/// reported and goes no further.
struct Joiner {
    foreign: Option<Waker>,
}

impl Joiner {
    /// Keeps in `slot` a contained form of `foreign`, made once for polls by
    /// the same waker.
    fn renew<'a>(slot: &'a mut Option<(Arc<Joiner>, Waker)>, foreign: &Waker) -> &'a Waker {
        let same = |(joiner, _): &mut (Arc<Joiner>, Waker)| {
            let kept = joiner.foreign.as_ref();
            kept.is_some_and(|kept| kept.will_wake(foreign))
        };
        let kept = slot.take_if(|kept| !same(kept));
        drop(kept);
        let (_, contained) = slot.get_or_insert_with(|| {
            let joiner = Arc::new(Joiner {
                foreign: Some(foreign.clone()),
            });
            let contained = Waker::from(joiner.clone());
            (joiner, contained)
        });
        contained
    }

    fn contain(f: impl FnOnce()) {
        if let Err(payload) = contain(f) {
            tracing::error!(
                "the waker of a foreign executor panicked: {}",
                payload_text(&*payload)
            );
            discard(payload);
        }
    }
}

impl Wake for Joiner {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(foreign) = &self.foreign {
            Joiner::contain(|| foreign.wake_by_ref());
        }
    }
}

impl Drop for Joiner {
    fn drop(&mut self) {
        Joiner::contain(|| drop(self.foreign.take()));
    }
}
