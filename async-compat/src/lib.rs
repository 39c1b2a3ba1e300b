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
//! # Three ways in
//!
//! | what you have | what to do | what it costs |
//! |---|---|---|
//! | a program or a library of your own, written against tokio | the line above | tasks stay where they were placed when they were spawned: [`runtime`] says how, and what that changes |
//! | a crate that is bound to tokio itself (`reqwest`, `sqlx`, `tonic`, axum's `serve`): such a one panics in tokio's words, "there is no reactor running", or says that a timer or I/O is disabled | wrap its futures and I/O objects in `compat::Compat` (feature `compat`) | a runtime of tokio's beside each reactor, turned by it in poll mode and by a helper OS thread in the others: see `compat` |
//! | a crate that asks for traits instead (`hyper`, `opendal`, `openraft`, whatever takes `futures::AsyncRead` or `Spawn`) | the adapters of [`adapters`] (features `hyper`, `opendal`), `openraft::CorespunRuntime` (features `openraft`, `openraft-single-threaded`) | nothing: they keep no bytes and start no threads |
//!
//! All three go together in one program, and with corespun's own API: a `multi_thread` runtime's
//! workers are SpdkThreads, and on the SpdkThreads of an [`App`](corespun::app::App) this crate
//! works without a runtime of its own.
//!
//! What else is different is said by each module, and item by item in `MIGRATION.md`.
//!
//! # Misuse
//!
//! What tokio panics on panics here with tokio's words. Beyond that:
//!
//! | what | what becomes of it |
//! |---|---|
//! | a future polled by another executor, with wakers of its own | it is served by the runtime that made its timers and sockets, for as long as that runs; wakers may wake from any OS thread, panic, or drop what they are told of |
//! | a runtime dropped inside a task | panics in the task, as it would have to wait there; its own tasks are ended all the same. `shutdown_background` may be called there |
//! | a socket, file or timer used after its runtime | a wait that begins, or goes on, says that the runtime is being shut down (`runtime::is_rt_shutdown_err`; a timer panics); what needs no wait still works |
//! | a call that blocks in a task (`block_on`, `blocking_recv`, `blocking_lock` …) | panics before it blocks; `task::block_in_place` and `task::spawn_blocking` are where they may |
//! | such a call on a SpdkThread of an [`App`](corespun::app::App) | `block_on` panics before it blocks; tokio's `blocking_*` calls know of no such thread and stop its reactor, which [`stall_limit`](corespun::app::AppBuilder::stall_limit) has reported |
//! | code that blocks in other ways (a lock, `std::net`) | stops its worker, and what was placed there waits: nobody takes it over |
//!
//! # Examples
//!
//! No line of this knows that it is not tokio:
//!
//! ```
//! # use corespun_compat as tokio;
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//! use tokio::net::{TcpListener, TcpStream};
//!
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! let listener = TcpListener::bind("127.0.0.1:0").await?;
//! let address = listener.local_addr()?;
//! tokio::spawn(async move {
//!     while let Ok((mut socket, _)) = listener.accept().await {
//!         tokio::spawn(async move { socket.write_all(b"hello").await });
//!     }
//! });
//! let mut text = String::new();
//! TcpStream::connect(address).await?.read_to_string(&mut text).await?;
//! assert_eq!(text, "hello");
//! # std::io::Result::Ok(())
//! # })?;
//! # std::io::Result::Ok(())
//! ```

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
