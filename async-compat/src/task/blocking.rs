//! What blocks.

use super::JoinHandle;
use crate::runtime::Handle;
#[cfg(feature = "rt-multi-thread")]
use crate::runtime::context;

/// Runs `f` on a helper OS thread of the current runtime; see
/// [`Handle::spawn_blocking`](crate::runtime::Handle::spawn_blocking).
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
/// let sum = tokio::task::spawn_blocking(|| (1..=100).sum::<u32>());
/// assert_eq!(sum.await.unwrap(), 5050);
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
#[track_caller]
pub fn spawn_blocking<F, R>(f: F) -> JoinHandle<R>
where
    F: FnOnce() -> R + Send + 'static,
    R: Send + 'static,
{
    Handle::current().spawn_blocking(f)
}

/// Runs `f`, which may block, here.
///
/// tokio gives the worker's other tasks to another worker meanwhile. Here they stay, and
/// wait until `f` returns: prefer [`spawn_blocking`]. What is spawned meanwhile goes to other
/// workers; when all of them block, to a spare one.
///
/// # Panics
///
/// On a `current_thread` runtime.
#[cfg(feature = "rt-multi-thread")]
#[track_caller]
pub fn block_in_place<F, R>(f: F) -> R
where
    F: FnOnce() -> R,
{
    context::block_in_place(f)
}
