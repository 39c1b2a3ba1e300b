//! tokio's `task`: spawning, waiting, giving way.
//!
//! A task runs on one SpdkThread from its spawn to its end. What it costs is said by
//! [`runtime`](crate::runtime). [`coop`], [`task_local!`](crate::task_local) and their types
//! are tokio's own: the budget that its channels take from is the one that our timers,
//! sockets and join handles take from.

mod blocking;
mod builder;
mod id;
mod join;
mod join_set;
pub(crate) mod local;
pub(crate) mod slot;
pub(crate) mod tracked;
mod yield_now;

use corespun::task::TaskBuilder;

#[cfg(feature = "rt-multi-thread")]
pub use blocking::block_in_place;
pub use blocking::spawn_blocking;
pub use builder::Builder;
pub use id::{Id, id, try_id};
pub use join::{AbortHandle, JoinError, JoinHandle};
pub use join_set::JoinSet;
pub use local::{LocalEnterGuard, LocalSet, spawn_local};
pub use yield_now::yield_now;

#[doc(inline)]
pub use tokio::task::coop;
#[doc(inline)]
pub use tokio::task::coop::{Unconstrained, consume_budget, unconstrained};
#[doc(inline)]
pub use tokio::task::{LocalKey, futures};

use crate::runtime::context;

/// Spawns a task on the current runtime; see [`Handle::spawn`](crate::runtime::Handle::spawn).
///
/// # Panics
///
/// Outside of a runtime.
///
/// # Examples
///
/// ```
/// # use corespun_compat as tokio;
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// let task = tokio::spawn(async { 42 });
/// assert_eq!(task.await.unwrap(), 42);
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
#[track_caller]
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    spawn_named(TaskBuilder::new(), future)
}

#[track_caller]
fn spawn_named<F>(builder: TaskBuilder, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    // Not through `with_current`: the caller's place goes with the task.
    match context::current_rc() {
        Ok(handle) => handle.spawn_named(builder, future),
        Err(error) => panic!("{error}"),
    }
}
