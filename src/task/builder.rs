//! The settings of a task, and the one way that all ways to spawn lead to.

use std::any::Any;
use std::panic::Location;
use std::sync::Arc;

use super::raw::{self, Birth, FirstPoll, Label, Origin, TaskKind};
use super::{JoinHandle, TaskId, span};
use crate::thread::SpdkThread;
use crate::thread::local::Local;
use crate::thread::shared::Shared;

/// Names a task, and gives it a value to go with it, before it is spawned.
///
/// # Examples
///
/// ```
/// use corespun::{task::TaskBuilder, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let handle = runner.enter(|| TaskBuilder::new().name("answer").spawn_local(async { 42 }));
/// runner.poll(0, 0);
/// assert!(handle.is_finished());
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "call one of the `spawn` methods"]
pub struct TaskBuilder {
    label: Label,
}

impl TaskBuilder {
    /// A task without a name.
    pub fn new() -> Self {
        TaskBuilder::default()
    }

    /// A name for reports and introspection, cut at 256 bytes.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        let name = crate::thread::cut_name(name.into()).into_boxed_str();
        self.label.get_or_insert_default().name = Some(name);
        self
    }

    /// A value that goes with the task: it is told to a caller that lists tasks
    /// ([`TaskInfo::metadata`](super::TaskInfo::metadata)), and the task finds it itself
    /// ([`metadata`](super::metadata())). It is dropped with the task's future.
    pub fn metadata(mut self, value: impl Any + Send + Sync) -> Self {
        self.label.get_or_insert_default().metadata = Some(Arc::new(value));
        self
    }

    /// As [`spawn_local`](super::spawn_local).
    ///
    /// # Panics
    ///
    /// When no SpdkThread is current.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::rc::Rc;
    /// use corespun::{task::TaskBuilder, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let not_send = Rc::new(5);
    /// let task = runner.enter(|| TaskBuilder::new().name("sum").spawn_local(async move { *not_send }));
    /// runner.poll(0, 0);
    /// assert_eq!(futures::executor::block_on(task).unwrap(), 5);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    #[track_caller]
    pub fn spawn_local<F>(self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        self.spawn_here(FirstPoll::Queued, future, TaskKind::Bound)
    }

    /// As [`spawn_eager`](super::spawn_eager).
    ///
    /// # Panics
    ///
    /// When no SpdkThread is current.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{task::TaskBuilder, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let read = runner.enter(|| TaskBuilder::new().name("read").spawn_eager(async { 512 }));
    /// assert!(read.is_finished());
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    #[track_caller]
    pub fn spawn_eager<F>(self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        self.spawn_here(FirstPoll::AtOnce, future, TaskKind::Bound)
    }

    /// As [`spawn`](super::spawn()).
    ///
    /// # Panics
    ///
    /// When no SpdkThread is current.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{task::TaskBuilder, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let task = runner.enter(|| TaskBuilder::new().name("checksum").spawn(async { 0xcafe }));
    /// // The thread may move to another OS thread before the task is first polled.
    /// let parked = runner.park().unwrap();
    /// std::thread::spawn(move || _ = parked.attach().poll(0, 0)).join().unwrap();
    /// assert_eq!(futures::executor::block_on(task).unwrap(), 0xcafe);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    #[track_caller]
    pub fn spawn<F>(self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.spawn_here(FirstPoll::Queued, future, TaskKind::Send)
    }

    /// As [`spawn_movable`](super::spawn_movable).
    ///
    /// # Panics
    ///
    /// When no SpdkThread is current.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{task::{self, TaskBuilder}, thread::ThreadLib};
    ///
    /// let library = ThreadLib::new();
    /// let mut front = library.thread().build()?.attach();
    /// let mut back = library.thread().build()?.attach();
    /// let target = back.handle();
    /// let task = front.enter(|| TaskBuilder::new().name("hopper").spawn_movable(async move {
    ///     task::move_to(&target).await
    /// }));
    /// front.poll(0, 0);
    /// // It is the other thread's now.
    /// assert!(front.tasks().is_empty());
    /// back.poll(0, 0);
    /// assert!(futures::executor::block_on(task).unwrap().is_ok());
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    #[track_caller]
    pub fn spawn_movable<F>(self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.spawn_here(FirstPoll::Queued, future, TaskKind::Movable)
    }

    fn name_given(&self) -> Option<&str> {
        self.label.as_ref()?.name.as_deref()
    }

    #[track_caller]
    fn spawn_here<F>(
        self,
        first_poll: FirstPoll,
        future: F,
        kind: TaskKind,
    ) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        let location = Location::caller();
        match self.spawn_current(first_poll, future, kind, location) {
            Some(handle) => handle,
            None => panic!(
                "spawn needs a current SpdkThread: call it from a message, task or poller, inside `ThreadRunner::enter`, or use `SpdkThread::spawn`"
            ),
        }
    }

    /// `None` when no SpdkThread is current.
    pub(super) fn spawn_current<F>(
        self,
        first_poll: FirstPoll,
        future: F,
        kind: TaskKind,
        location: &'static Location<'static>,
    ) -> Option<JoinHandle<F::Output>>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        Local::with_current(|local| {
            let origin = Origin::Local(local, first_poll);
            // SAFETY: the current thread's owner is the caller, and the bounds
            // ask for `'static`.
            unsafe { self.make(origin, local.lend_shared(), future, kind, location) }
        })
    }

    /// What every way to spawn comes to.
    ///
    /// # Safety
    ///
    /// With `Origin::Local` the caller is the owner of `thread`. With `Origin::Remote`,
    /// what `future` holds before its first poll is `Send`, and so is its output.
    #[inline(always)]
    pub(super) unsafe fn make<F>(
        self,
        origin: Origin<'_>,
        thread: Arc<Shared>,
        future: F,
        kind: TaskKind,
        location: &'static Location<'static>,
    ) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        let id = match origin {
            Origin::Local(local, _) => TaskId::local(local),
            Origin::Remote(thread) => TaskId::remote(thread),
        };
        let name = self.name_given();
        let future = span::traced(future, &thread, id, name, location);
        let label = self.label;
        let birth = Birth {
            thread,
            id,
            location,
            label,
            kind,
        };
        // SAFETY: passed on.
        unsafe { raw::spawn(origin, birth, future) }
    }

    /// As [`SpdkThread::spawn`].
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{task::TaskBuilder, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let task = TaskBuilder::new().name("audit").spawn_on(&runner.handle(), async { 5 });
    /// runner.poll(0, 0);
    /// assert_eq!(futures::executor::block_on(task).unwrap(), 5);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    #[track_caller]
    pub fn spawn_on<F>(self, thread: &SpdkThread, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.spawn_remote(&thread.shared, future, TaskKind::Send, Location::caller())
    }

    /// As [`SpdkThread::spawn_with`].
    #[track_caller]
    pub fn spawn_with_on<M, F>(self, thread: &SpdkThread, make: M) -> JoinHandle<F::Output>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future + 'static,
        F::Output: Send + 'static,
    {
        self.spawn_with_at(thread, make, Location::caller())
    }

    pub(crate) fn spawn_with_at<M, F>(
        self,
        thread: &SpdkThread,
        make: M,
        location: &'static Location<'static>,
    ) -> JoinHandle<F::Output>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future + 'static,
        F::Output: Send + 'static,
    {
        // Until its first poll, which is on the target, this holds `make` only.
        let future = async move { make().await };
        self.spawn_remote(&thread.shared, future, TaskKind::Bound, location)
    }

    /// `future` must hold only `Send` content before its first poll.
    fn spawn_remote<F>(
        self,
        thread: &Arc<Shared>,
        future: F,
        kind: TaskKind,
        location: &'static Location<'static>,
    ) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: Send + 'static,
    {
        if let Some(local) = thread.current_local() {
            let origin = Origin::Local(local, FirstPoll::Queued);
            // SAFETY: the target is the current thread, so its owner is the
            // caller.
            return unsafe { self.make(origin, local.lend_shared(), future, kind, location) };
        }
        // SAFETY: the two callers see to it that what the future holds before
        // its first poll is `Send`; the output is, by the bound.
        unsafe {
            self.make(
                Origin::Remote(thread),
                thread.clone(),
                future,
                kind,
                location,
            )
        }
    }
}
