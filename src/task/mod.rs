//! Tasks: futures that a SpdkThread runs.
//!
//! Every SpdkThread is an executor. A woken task is a message to its thread: it
//! goes behind what is queued there, and a wake never runs anything itself,
//! whichever thread it comes from. [`spawn_local`] is for code on a thread;
//! [`SpdkThread::spawn`] and [`SpdkThread::spawn_with`] reach a thread from
//! elsewhere.
//!
//! With the feature `tracing-spans` each task is a `tracing` span, of level
//! debug and target `corespun::task`, that names the task, its thread and where
//! it was spawned, and is entered for each poll and for the drop of the future.
//! It follows from the span that was current at the spawn. Without the feature
//! nothing of this is compiled.

mod block_on;
mod blocking;
mod budget;
mod builder;
pub(crate) mod call;
mod join;
mod join_set;
mod list;
mod movable;
mod raw;
pub(crate) mod reply;
mod scope;
mod set_cpumask;
mod span;
mod spawner;
mod walk;
mod yield_now;

use std::any::Any;
use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub use block_on::block_on;
pub use blocking::{Blocking, spawn_blocking};
pub use budget::{Unconstrained, consume_budget, unconstrained};
pub use builder::TaskBuilder;
pub use call::{Call, CallAsync, CallError};
pub use join::{AbortHandle, JoinError, JoinHandle};
pub use join_set::JoinSet;
pub use list::{TaskInfo, TaskState};
pub use movable::{MoveError, MoveTo, move_to, spawn_movable};
use raw::{FirstPoll, TaskKind, TaskMeta};
pub use scope::{Scope, ScopeCancelled, ScopedHandle, scope, try_scope};
pub use set_cpumask::SetCpumask;
pub use spawner::LocalSpawner;
pub use yield_now::{YieldNow, should_yield, yield_now};

use crate::thread::local::Local;
use crate::thread::message::Message;
use crate::thread::shared::Shared;
use crate::thread::{SendError, SpdkThread};

/// Identifies a task within its library instance.
///
/// # Examples
///
/// ```
/// use std::collections::HashMap;
/// use corespun::{task, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let (read, write) = runner.enter(|| (task::spawn_local(async {}), task::spawn_local(async {})));
/// let started = HashMap::from([(read.id(), "read"), (write.id(), "write")]);
/// assert_eq!(started[&read.id()], "read");
/// // As it is shown in errors and logs: thread and serial number.
/// assert_eq!(read.id().to_string(), "1.0");
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId {
    thread: u64,
    /// Odd when spawned from elsewhere.
    serial: u64,
}

impl TaskId {
    fn local(local: &Local) -> Self {
        let serial = local.task_ids.get();
        local.task_ids.set(serial + 2);
        TaskId {
            thread: local.shared.id,
            serial,
        }
    }

    fn remote(shared: &Shared) -> Self {
        TaskId {
            thread: shared.id,
            serial: shared.remote_task_ids.fetch_add(2, Ordering::Relaxed) + 1,
        }
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.thread, self.serial)
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TaskId({self})")
    }
}

/// The id of the task that calls this; `None` outside of one.
pub fn id() -> Option<TaskId> {
    raw::with_running(TaskMeta::id)
}

/// The value that was given to the task that calls this, if it is a `T`; see
/// [`TaskBuilder::metadata`].
pub fn metadata<T: Any + Send + Sync>() -> Option<Arc<T>> {
    let metadata = raw::with_running(TaskMeta::metadata)??;
    metadata.downcast().ok()
}

/// Spawns a future, `Send` or not, on the current SpdkThread.
///
/// It is first polled when this has returned and what is queued has run, by this
/// poll of the thread or a later one; see [`spawn_eager`] for at once. While it lives, the thread
/// cannot move to another OS thread; see [`spawn`] for futures that do not mind.
///
/// # Panics
///
/// When no SpdkThread is current.
///
/// # Examples
///
/// ```
/// use std::{cell::RefCell, rc::Rc};
/// use corespun::{task, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let log = Rc::new(RefCell::new(Vec::new()));
/// let lines = log.clone();
/// let writer = runner.enter(|| task::spawn_local(async move {
///     lines.borrow_mut().push("one");
///     task::yield_now().await;
///     lines.borrow_mut().push("two");
/// }));
/// runner.poll(1, 0);
/// assert_eq!(*log.borrow(), ["one"]);
/// runner.poll(1, 0);
/// assert_eq!(*log.borrow(), ["one", "two"]);
/// # drop(writer);
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[track_caller]
pub fn spawn_local<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    TaskBuilder::new().spawn_local(future)
}

/// As [`spawn_local`], but polls the future for the first time before it returns:
/// one that is ready at once, such as a read that finds its block in a cache, costs
/// no turn in the queue. Wakes go through the queue as ever.
///
/// The future runs inside the caller: what the caller has borrowed stays borrowed,
/// and its poll counts into that of the caller. Eager tasks that start each other
/// more than 16 deep are queued. Called outside of a poll, as in
/// [`ThreadRunner::enter`](crate::thread::ThreadRunner::enter), it polls the future
/// there.
///
/// # Panics
///
/// When no SpdkThread is current. A panic of the future is the task's, as ever.
///
/// # Examples
///
/// ```
/// use corespun::{task, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let read = runner.enter(|| task::spawn_eager(async { b"from the cache" }));
/// assert!(read.is_finished());
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[track_caller]
pub fn spawn_eager<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    TaskBuilder::new().spawn_eager(future)
}

/// Spawns a `Send` future on the current SpdkThread. Unlike [`spawn_local`], it
/// lets the thread move to another OS thread, and moves with it.
///
/// # Panics
///
/// When no SpdkThread is current.
///
/// # Examples
///
/// ```
/// use corespun::{task, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let answer = runner.enter(|| task::spawn(async { 42 }));
/// runner.poll(0, 0);
/// assert_eq!(futures::executor::block_on(answer).unwrap(), 42);
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[track_caller]
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    TaskBuilder::new().spawn(future)
}

/// Spawning on a thread from elsewhere.
impl SpdkThread {
    /// Spawns a `Send` future on this thread, from any OS thread. If the thread
    /// has exited, joining the task says so.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::thread::{SpdkThread, ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().name("disk").build()?.attach();
    /// let task = runner.handle().spawn(async { SpdkThread::current().unwrap().name().to_owned() });
    /// runner.poll(0, 0);
    /// assert_eq!(futures::executor::block_on(task).unwrap(), "disk");
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    ///
    /// One that is not `Send` must be made there, by [`SpdkThread::spawn_with`]:
    ///
    /// ```compile_fail,E0277
    /// # let runner = corespun::thread::ThreadLib::new().thread().build().unwrap().attach();
    /// let not_send = std::rc::Rc::new(5);
    /// let _task = runner.handle().spawn(std::future::ready(not_send));
    /// ```
    #[track_caller]
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        TaskBuilder::new().spawn_on(self, future)
    }

    /// Sends `make` to this thread, where it makes the future, which need not
    /// be `Send`, and never leaves. If the thread has exited, joining the task
    /// says so, and `make` is not called.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::rc::Rc;
    /// use corespun::thread::ThreadLib;
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let thread = runner.handle();
    /// let handle = std::thread::spawn(move || {
    ///     thread.spawn_with(async || {
    ///         let not_send = Rc::new(5);
    ///         *not_send
    ///     })
    /// })
    /// .join()
    /// .unwrap();
    /// runner.poll(0, 0);
    /// assert_eq!(futures::executor::block_on(handle).unwrap(), 5);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    #[track_caller]
    pub fn spawn_with<M, F>(&self, make: M) -> JoinHandle<F::Output>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future + 'static,
        F::Output: Send + 'static,
    {
        TaskBuilder::new().spawn_with_on(self, make)
    }

    /// As [`SpdkThread::spawn_with`] for a task that will not be joined: it is
    /// made by a message, which this thread runs in its turn and polls it at once.
    /// The sender allocates nothing for a `make` of up to a word, which makes this
    /// the quickest way to start many tasks on another core. The thread's message
    /// limit does not apply.
    ///
    /// A panic of the task is reported to the library's panic hook. A thread whose
    /// exit is past taking work when the message comes drops `make`.
    ///
    /// # Errors
    ///
    /// [`SendError`] with `make` when the thread has exited.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::rc::Rc;
    /// use corespun::thread::ThreadLib;
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let (sender, answer) = std::sync::mpsc::channel();
    /// runner.handle().spawn_detached(move || async move {
    ///     let not_send = Rc::new(5);
    ///     sender.send(*not_send).unwrap();
    /// }).unwrap();
    /// runner.poll(0, 0);
    /// assert_eq!(answer.recv()?, 5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[track_caller]
    pub fn spawn_detached<M, F>(&self, make: M) -> Result<(), SendError<M>>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future<Output = ()> + 'static,
    {
        let location = Location::caller();
        let sent = self.shared.deliver(make, |make| {
            Message::new(move || {
                // So that a panic of `make` is the task's.
                let future = async move { make().await };
                drop(TaskBuilder::new().spawn_current(
                    FirstPoll::AtOnce,
                    future,
                    TaskKind::Bound,
                    location,
                ));
            })
        });
        sent.map_err(|make| SendError::exited(self.name(), make))
    }
}
