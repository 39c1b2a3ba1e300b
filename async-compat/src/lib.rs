//! tokio's API on [`corespun`]'s SpdkThreads.
//!
//! ```toml
//! [dependencies]
//! tokio = { package = "corespun-compat", version = "0.1", features = ["full"] }
//! ```
//!
//! is the whole port of a program or a library of one's own: the paths, the features
//! and their defaults are tokio's. What touches no runtime in tokio (channels and
//! locks, the I/O traits and their combinators, `select!` and its kin) *is* tokio's,
//! re-exported, so that the types are those of the ecosystem. The rest is native:
//! tasks, timers, sockets and files belong to the SpdkThread that polls them and to the
//! I/O driver of its OS thread.
//!
//! What is different, and what it costs, is said by each module.

#[cfg(not(target_os = "linux"))]
compile_error!("corespun-compat runs on Linux alone: depend on tokio itself elsewhere");
#[cfg(all(tokio_unstable, feature = "schedule-latency"))]
compile_error!(
    "corespun-compat has no histogram of schedule latencies: \
     corespun::thread::ThreadLibBuilder::task_times measures how long tasks wait and run"
);
#[cfg(all(tokio_unstable, feature = "tracing"))]
compile_error!(
    "corespun-compat has no spans of tokio's: the feature `tracing-spans` of corespun gives each \
     task a span"
);
#[cfg(all(tokio_unstable, feature = "taskdump"))]
compile_error!(
    "corespun-compat has no task dumps: list the tasks of a SpdkThread with \
     corespun::thread::SpdkThread::tasks, which names them, their state and where they were spawned"
);

#[cfg(feature = "rt")]
pub mod adapters;
#[cfg(feature = "compat")]
pub mod compat;
#[cfg(feature = "fs")]
pub mod fs;
pub mod io;
#[cfg(feature = "net")]
pub mod net;
#[cfg(feature = "openraft")]
pub mod openraft;
#[cfg(feature = "process")]
pub mod process;
#[cfg(feature = "rt")]
pub mod runtime;
#[cfg(feature = "signal")]
pub mod signal;
#[cfg(feature = "sync")]
pub mod sync;
#[cfg(feature = "rt")]
pub mod task;
#[cfg(feature = "time")]
pub mod time;

#[cfg(feature = "rt")]
pub use task::spawn;

#[doc(hidden)]
pub use tokio::macros;
pub use tokio::pin;
#[cfg(feature = "rt")]
pub use tokio::task_local;
#[cfg(feature = "macros")]
pub use tokio::{join, main, select, test, try_join};
