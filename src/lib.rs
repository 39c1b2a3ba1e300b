//! SPDK's threading model, native in Rust, with async/await on top.
//!
//! A [`SpdkThread`](thread::SpdkThread) is a lightweight thread: a mailbox,
//! pollers, timers and tasks, without a stack of its own. The holder of its
//! [`ThreadRunner`](thread::ThreadRunner) polls it. Usually that is a *reactor*,
//! an OS thread pinned to a core; an [`App`](app::App) starts one per core. Each
//! SpdkThread is a single-threaded executor: a woken task is a message to its
//! thread, no thread steals work, and nothing on the data path takes a lock.
//!
//! ```
//! use corespun::app::{App, AppHandle};
//! use corespun::{task, time};
//! use std::time::Duration;
//!
//! let answer: i32 = App::builder().try_block_on(async |app: AppHandle| {
//!     // A thread that the reactors place and poll; any OS thread may make one.
//!     let worker = app.thread().name("worker").create()?;
//!     // The closure goes there and makes the future there, so that this may
//!     // hold what is not `Send`.
//!     let far = worker.spawn_with(async || *std::rc::Rc::new(40));
//!     let near = task::spawn_local(async {
//!         time::sleep(Duration::from_micros(50)).await;
//!         2
//!     });
//!     Ok::<_, Box<dyn std::error::Error>>(far.await? + near.await?)
//! })?;
//! assert_eq!(answer, 42);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! New here? Take [the first hour](first_hour): three whole programs.
//!
//! # The rooms
//!
//! From the top down; each uses only what is below it.
//!
//! | module | holds |
//! |---|---|
//! | [`app`] | settings, start and stop, signals |
//! | [`sim`] | reactors and all that runs on them on virtual time, with chance from a seed |
//! | [`reactor`] | the per-core loop, events, modes, placement of threads |
//! | [`mpsc`], [`sharded`], [`iobuf`] | a queue from any thread to one SpdkThread; one value per SpdkThread; pools of I/O buffers |
//! | [`channel`] | io_devices and io_channels |
//! | [`task`], [`time`], [`stream`] | the async face of a thread: tasks, timers, pollers as streams |
//! | [`signal`] | signals of the process as futures and streams |
//! | [`thread`] | SpdkThread: handle, poll, pollers, exit; the library instance |
//! | [`net`], [`fs`] | sockets and files |
//! | [`io`] | the I/O driver of an OS thread, buffers, raw operations, the helper threads |
//! | [`local`] | channels and locks of one thread |
//! | [`notify`], [`interrupt`] | the sleep/wake handshake; groups of file descriptors with handlers |
//! | `sync` | queues and flags with a model; the budget of a poll |
//! | [`cpu`], [`clock`] | core sets and pinning; ticks, real or virtual |
//!
//! There is no process-wide state: everything hangs off a library instance
//! ([`ThreadLib`](thread::ThreadLib)), which an app makes, or you. The one
//! exception are signal handlers, which belong to the process.
//!
//! # Features
//!
//! None is on unless asked for: `tracing-spans` gives each task a span, `bytes` makes
//! buffers of that crate's types, and `raw-io-uring` lets ring operations through that have
//! no wrapper here, with the types of the crate `io-uring`.
//!
//! Linux only.

pub mod app;
pub mod channel;
pub mod clock;
pub mod cpu;
pub mod fs;
pub mod interrupt;
pub mod io;
pub mod iobuf;
pub mod local;
pub mod mpsc;
pub mod net;
pub mod notify;
pub mod reactor;
pub mod sharded;
pub mod signal;
pub mod sim;
pub mod stream;
mod sync;
pub mod task;
pub mod thread;
pub mod time;

#[doc = include_str!("first_hour.md")]
pub mod first_hour {}

/// Runs the code of README.md as a doctest.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Runs the code of MIGRATION.md as doctests.
#[cfg(doctest)]
#[doc = include_str!("../MIGRATION.md")]
struct Migration;
