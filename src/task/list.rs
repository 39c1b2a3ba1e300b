//! Seeing the tasks of a thread.

use std::panic::Location;
use std::time::Duration;

use super::{Call, TaskId};
use crate::thread::local::Local;
use crate::thread::{SpdkThread, ThreadRunner};

/// What a task is doing.
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
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TaskInfo {
    /// Its id.
    pub id: TaskId,
    /// Its name, if it was given one.
    pub name: Option<String>,
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
            let counts = node.poll_counts();
            let state = if self.is_running(node) {
                TaskState::Running
            } else if node.scheduled.load(std::sync::atomic::Ordering::Relaxed) {
                TaskState::Scheduled
            } else {
                TaskState::Idle
            };
            tasks.push(TaskInfo {
                id: node.id.into(),
                name: node.name.as_deref().map(str::to_owned),
                location: node.location,
                state,
                polls: counts.polls,
                total: clock.duration_from(counts.total_ticks),
                longest: clock.duration_from(counts.longest_ticks),
            });
        });
        tasks
    }

    fn is_running(&self, node: &crate::thread::live::LiveNode) -> bool {
        super::raw::with_running(|task| task.id() == TaskId::from(node.id)).unwrap_or(false)
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
    /// [`SpdkThread::tasks`] for who polls the thread.
    pub fn tasks(&mut self) -> Vec<TaskInfo> {
        self.enter(|| Local::with_current(Local::tasks).unwrap_or_default())
    }
}
