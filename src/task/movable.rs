//! Tasks that change their thread: QEMU's `aio_co_reschedule_self`.
//!
//! A hop is asked for inside the task's own poll, and happens when that poll has
//! returned: the task leaves its thread's list, gets the other thread, and the
//! one `Runnable` that async-task then makes goes there. A wake of the task
//! meanwhile only marks it, so it is never entered twice and no wake is lost.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::raw::with_running;
use super::{JoinHandle, TaskBuilder};
use crate::sync::budget::poll_budget;
use crate::thread::shared::Shared;
use crate::thread::{Exited, SpdkThread};

/// Empties `place` if `thread` is in it; says whether it was.
fn take_if_same(place: &Cell<Option<Arc<Shared>>>, thread: &Arc<Shared>) -> bool {
    match place.take() {
        Some(found) if Arc::ptr_eq(&found, thread) => true,
        other => {
            place.set(other);
            false
        }
    }
}

/// Spawns a task on the current SpdkThread that can go to others with
/// [`move_to`]. What it holds, and makes, must be `Send` for all its life.
///
/// # Panics
///
/// When no SpdkThread is current.
///
/// # Examples
///
/// Without a hop it is a task like any other, and `Send` all its life, so that the
/// thread stays free to move as well:
///
/// ```
/// use corespun::{task, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let task = runner.enter(|| task::spawn_movable(async { 5 }));
/// assert!(runner.can_move());
/// runner.poll(0, 0);
/// assert_eq!(futures::executor::block_on(task).unwrap(), 5);
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
///
/// What is not `Send` cannot move:
///
/// ```compile_fail,E0277
/// # let mut runner = corespun::thread::ThreadLib::new().thread().build().unwrap().attach();
/// let not_send = std::rc::Rc::new(5);
/// let _task = runner.enter(|| corespun::task::spawn_movable(std::future::ready(not_send)));
/// ```
#[track_caller]
pub fn spawn_movable<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    TaskBuilder::new().spawn_movable(future)
}

/// Takes the task that awaits this, which was spawned with [`spawn_movable`], to
/// `thread`: what follows runs there. At once if it is there already.
///
/// The task as a whole moves, also when only one of the futures that it joins or
/// selects asks for it.
///
/// # Errors
///
/// [`MoveError`]; the task goes on where it is.
///
/// # Cancel safety
///
/// Dropped before the task's poll ends, the request is withdrawn; afterwards the
/// task is on its way.
///
/// # Examples
///
/// ```
/// use corespun::{task, thread::{SpdkThread, ThreadLib}};
///
/// let library = ThreadLib::new();
/// let mut here = library.thread().name("here").build()?.attach();
/// let mut there = library.thread().name("there").build()?.attach();
/// let target = there.handle();
/// let name = here.enter(|| task::spawn_movable(async move {
///     task::move_to(&target).await.unwrap();
///     SpdkThread::current().unwrap().name().to_owned()
/// }));
/// here.poll(0, 0);
/// there.poll(0, 0);
/// assert_eq!(futures::executor::block_on(name).unwrap(), "there");
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
pub fn move_to(thread: &SpdkThread) -> MoveTo {
    MoveTo {
        target: thread.clone(),
        asked: false,
    }
}

/// The future of [`move_to`].
///
/// # Examples
///
/// Awaited again, it brings the task back:
///
/// ```
/// use corespun::{task, thread::{SpdkThread, ThreadLib}};
///
/// let library = ThreadLib::new();
/// let mut home = library.thread().name("home").build()?.attach();
/// let mut disk = library.thread().name("disk").build()?.attach();
/// let (start, target) = (home.handle(), disk.handle());
/// let visited = home.enter(|| task::spawn_movable(async move {
///     task::move_to(&target).await.unwrap();
///     let there = SpdkThread::current().unwrap();
///     task::move_to(&start).await.unwrap();
///     let back = SpdkThread::current().unwrap();
///     [there.name().to_owned(), back.name().to_owned()]
/// }));
/// home.poll(0, 0);
/// disk.poll(0, 0);
/// home.poll(0, 0);
/// assert_eq!(futures::executor::block_on(visited).unwrap(), ["disk", "home"]);
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct MoveTo {
    target: SpdkThread,
    asked: bool,
}

impl Future for MoveTo {
    type Output = Result<(), MoveError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let budget = ready!(poll_budget(cx));
        if self.target.is_current() {
            budget.progressed();
            self.asked = false;
            return Poll::Ready(Ok(()));
        }
        let target = &self.target.shared;
        let asked = with_running(|task| {
            let Some(hop) = task.hop() else {
                return Err(MoveError::NotMovable);
            };
            // A hop that failed was to a thread that had closed its mailbox.
            if self.target.is_exited() || (self.asked && take_if_same(&hop.refused, target)) {
                let gone = "has exited; the task stays where it is";
                return Err(Exited::new(self.target.name(), gone).into());
            }
            hop.wanted.set(Some(target.clone()));
            Ok(())
        });
        match asked.unwrap_or(Err(MoveError::NotMovable)) {
            Ok(()) => {
                self.asked = true;
                // So that what stands between this and the task polls it there.
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Err(error) => {
                budget.progressed();
                self.asked = false;
                Poll::Ready(Err(error))
            }
        }
    }
}

impl Drop for MoveTo {
    fn drop(&mut self) {
        if self.asked {
            with_running(|task| {
                if let Some(hop) = task.hop() {
                    take_if_same(&hop.wanted, &self.target.shared);
                }
            });
        }
    }
}

/// Why a task cannot go to another thread.
///
/// # Examples
///
/// ```
/// use corespun::{task::{self, MoveError}, thread::ThreadLib};
///
/// let library = ThreadLib::new();
/// let mut here = library.thread().build()?.attach();
/// let gone = library.thread().name("gone").build()?.attach().handle();
/// let stays = here.enter(|| task::spawn_movable(async move { task::move_to(&gone).await }));
/// here.poll(0, 0);
/// let refused = futures::executor::block_on(stays).unwrap();
/// assert!(matches!(refused, Err(MoveError::Exited(it)) if it.thread() == "gone"));
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MoveError {
    /// The future is not polled by a task made with [`spawn_movable`].
    #[error("this task cannot change its thread: spawn it with `spawn_movable`")]
    NotMovable,
    /// The thread has exited.
    #[error(transparent)]
    Exited(#[from] Exited),
}
