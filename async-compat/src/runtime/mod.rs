//! tokio's `runtime`: threads that run tasks, and their handles.
//!
//! - A `current_thread` [`Runtime`] is one SpdkThread. [`Runtime::block_on`] polls it, and
//!   the I/O driver of the calling OS thread, and sleeps in that driver; between two calls
//!   its tasks stand still. Calls from different OS threads take the SpdkThread along.
//! - A `multi_thread` [`Runtime`] is as many reactors as it has workers, each on an OS
//!   thread of its own that is pinned to a core, with one SpdkThread each. A task is given
//!   to one of them when it is spawned ([`Placement`]) and stays there. Nobody steals work.
//! - A [`LocalRuntime`] is a `current_thread` one that stays on its OS thread, and takes
//!   futures that are not `Send`.
//!
//! On a SpdkThread of corespun's own, in an [`App`](corespun::app::App), that thread is the
//! current runtime: `tokio::spawn`, `spawn_local`, timers and sockets work there as well.
//!
//! # What it costs
//!
//! A spawn is one allocation, and on another worker a message to it. A runtime of one
//! thread costs a few KiB; each OS thread that calls `block_on` has an I/O driver from then
//! on. What tokio settles by stealing does not settle here: a task that keeps its worker
//! busy keeps the tasks placed there waiting, also in
//! [`block_in_place`](crate::task::block_in_place).

mod blocking;
mod builder;
mod config;
pub(crate) mod context;
mod drive;
mod handle;
mod local_runtime;
mod metrics;
#[cfg(feature = "rt-multi-thread")]
mod multi_thread;
mod native;
#[allow(clippy::module_inception, reason = "the file of `Runtime`")]
mod runtime;
mod scheduler;
#[cfg(feature = "rt-multi-thread")]
mod spare;

use std::fmt;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(feature = "compat")]
pub(crate) use builder::system_clock;
pub use builder::{Builder, Placement};
pub use handle::{EnterGuard, Handle, TryCurrentError};
pub use local_runtime::{LocalOptions, LocalRuntime};
pub use metrics::RuntimeMetrics;
#[allow(unused_imports, reason = "for those of the I/O features that are on")]
pub(crate) use runtime::shutdown_error;
pub use runtime::{Runtime, RuntimeFlavor, is_rt_shutdown_err};
pub(crate) use scheduler::Load;

/// A number that names a runtime or a `LocalSet`, unique in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Id(NonZeroU64);

impl Id {
    pub(crate) fn next() -> Id {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Id(NonZeroU64::new(id).expect("2⁶⁴ runtimes take centuries"))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The index of the worker of a `multi_thread` runtime that calls this; `None` anywhere
/// else.
#[must_use]
pub fn worker_index() -> Option<usize> {
    context::worker_index()
}
