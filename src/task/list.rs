//! Seeing the tasks of a thread.

use std::any::Any;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use super::raw::{TaskMeta, with_running};
use super::{Call, TaskId};
use crate::thread::local::Local;
use crate::thread::{SpdkThread, ThreadRunner};

/// What a task is doing.
///
/// # Examples
///
/// ```
/// use corespun::{task::{self, TaskState}, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let request = runner.enter(|| task::spawn_local(std::future::pending::<()>()));
/// assert_eq!(runner.tasks()[0].state, TaskState::Scheduled);
/// runner.poll(0, 0);
/// assert_eq!(runner.tasks()[0].state, TaskState::Idle);
/// # drop(request);
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TaskState {
    /// Waits to be woken.
    Idle,
    /// Was woken, and waits for its turn.
    Scheduled,
    /// Is being polled.
    Running,
}

/// A live task, as [`SpdkThread::tasks`] saw it.
///
/// # Examples
///
/// Which task has been polled how often, for how long, and where it comes from:
///
/// ```
/// use std::time::Duration;
/// use corespun::{task, thread::ThreadLib};
///
/// let (clock, hand) = corespun::clock::Clock::virtual_at(1_000_000);
/// let library = ThreadLib::builder().clock(clock).task_times(true).build();
/// let mut runner = library.thread().build()?.attach();
/// let busy = runner.enter(|| task::spawn_local(async move {
///     loop {
///         hand.advance(3);
///         task::yield_now().await;
///     }
/// }));
/// runner.poll(1, 0);
/// runner.poll(1, 0);
/// let info = &runner.tasks()[0];
/// assert_eq!((info.polls, info.total), (2, Duration::from_micros(6)));
/// assert_eq!(info.longest, Duration::from_micros(3));
/// assert_eq!(info.location.file(), file!());
/// # drop(busy);
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TaskInfo {
    /// Its id.
    pub id: TaskId,
    /// Its name, if it was given one.
    pub name: Option<String>,
    /// The value that goes with it: see [`TaskBuilder::metadata`](super::TaskBuilder::metadata).
    pub metadata: Option<Arc<dyn Any + Send + Sync>>,
    /// Where it was spawned.
    pub location: &'static Location<'static>,
    /// What it is doing.
    pub state: TaskState,
    /// How often it was polled on this thread and those it came from.
    pub polls: u64,
    /// How long its polls took together; zero unless the library measures it.
    pub total: Duration,
    /// How long its longest poll took; zero unless the library measures it.
    pub longest: Duration,
}

impl Local {
    fn tasks(&self) -> Vec<TaskInfo> {
        let clock = &self.shared.library.clock;
        let mut tasks = Vec::with_capacity(self.live.len());
        self.live.for_each(|node| {
            // SAFETY: a listed node is that of a task, and the list does not change.
            let task = unsafe { TaskMeta::of(node) };
            let counts = task.poll_counts();
            let is_running = |running: &TaskMeta| std::ptr::eq(running, task);
            let state = if with_running(is_running) == Some(true) {
                TaskState::Running
            } else if task.state.is_scheduled() {
                TaskState::Scheduled
            } else {
                TaskState::Idle
            };
            tasks.push(TaskInfo {
                id: task.id(),
                name: task.name().map(str::to_owned),
                metadata: task.metadata(),
                location: task.location(),
                state,
                polls: counts.polls,
                total: clock.duration_from(counts.total_ticks),
                longest: clock.duration_from(counts.longest_ticks),
            });
        });
        tasks
    }

    fn wake_tasks(&self) {
        self.live.for_each(|node| {
            // SAFETY: as above: wakes of our own tasks run no foreign code, and change
            // no list. A listed task is alive.
            unsafe { TaskMeta::of(node).waker() }.wake_by_ref();
        });
    }
}

impl SpdkThread {
    /// The live tasks of this thread, newest first. Asked by a message, so that
    /// nothing stops for it; see [`SpdkThread::call`]. Times are measured only
    /// with [`ThreadLibBuilder::task_times`].
    ///
    /// [`ThreadLibBuilder::task_times`]: crate::thread::ThreadLibBuilder::task_times
    ///
    /// # Errors
    ///
    /// As [`SpdkThread::call`].
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{task::{TaskBuilder, TaskState}, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let waiting = runner.enter(|| {
    ///     TaskBuilder::new().name("idler").spawn_local(std::future::pending::<()>())
    /// });
    /// runner.poll(0, 0);
    /// let tasks = runner.handle().tasks();
    /// runner.poll(0, 0);
    /// let tasks = futures::executor::block_on(tasks).unwrap();
    /// assert_eq!(tasks[0].name.as_deref(), Some("idler"));
    /// assert_eq!((tasks[0].state, tasks[0].polls), (TaskState::Idle, 1));
    /// # drop(waiting);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn tasks(&self) -> Call<Vec<TaskInfo>> {
        self.call(|| Local::with_current(Local::tasks).unwrap_or_default())
    }
}

impl ThreadRunner {
    /// [`SpdkThread::tasks`] for the caller that polls the thread.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{task::TaskBuilder, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let request = runner.enter(|| {
    ///     TaskBuilder::new().name("read 7").spawn_local(std::future::pending::<()>())
    /// });
    /// // No message, so no poll is needed.
    /// let names: Vec<_> = runner.tasks().into_iter().map(|task| task.name.unwrap()).collect();
    /// assert_eq!(names, ["read 7"]);
    /// # drop(request);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn tasks(&mut self) -> Vec<TaskInfo> {
        self.enter(|| Local::with_current(Local::tasks).unwrap_or_default())
    }

    /// Wakes every task of the thread: for a caller that took it to another OS thread,
    /// where what its tasks wait for is to be asked for anew.
    pub fn wake_tasks(&mut self) {
        self.enter(|| Local::with_current(Local::wake_tasks));
    }
}
