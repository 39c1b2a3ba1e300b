//! Reactors, their threads, timers and messages on one OS thread and on virtual time,
//! with chance thrown from a seed.
//!
//! A [`Sim`] has cores with reactors that are turned one after the other: the real
//! ones, with real SpdkThreads, mailboxes, placement, events and moves. What differs is
//! what they stand on. Time is virtual, and goes where something happens. A seed
//! decides in which order the cores take turns, how long messages between them take,
//! where the poll of a thread is cut short, which thread of a core goes first, and when a
//! core has to do something else for a while. The same seed gives the same run, so
//! what goes wrong once goes wrong again:
//!
//! ```
//! use corespun::sim;
//! use std::sync::{Arc, atomic::{AtomicU32, Ordering::Relaxed}};
//!
//! let failure = sim::explore(0..100, |sim| {
//!     let sum = Arc::new(AtomicU32::new(0));
//!     let threads = [(); 2].map(|()| sim.thread().create().unwrap());
//!     let adds = threads.map(|thread| {
//!         let sum = sum.clone();
//!         thread.spawn(async move {
//!             let before = sum.load(Relaxed);
//!             corespun::task::yield_now().await;
//!             // Whatever was added meanwhile is lost.
//!             sum.store(before + 1, Relaxed);
//!         })
//!     });
//!     sim.block_on(async { for add in adds { add.await.unwrap() } });
//!     assert_eq!(sum.load(Relaxed), 2);
//! });
//! let failure = failure.unwrap_err();
//! println!("{failure}"); // The seed, the panic, and the last that happened.
//! # assert!(failure.to_string().contains("left: 1"));
//! ```
//!
//! Tests of a program's logic need no more: [`explore`] runs many seeds, and reports the
//! first that fails. A program that is made from [`Reactors`](crate::reactor::Reactors) or
//! [`ThreadLib`](crate::thread::ThreadLib), and does its I/O through the traits of
//! [`futures::io`] and [`Block`](crate::io::Block), runs as it is;
//! [`SimHandle`] has byte streams, a network and disks that fail as the real ones do.
//!
//! # What is not simulated
//!
//! - Callbacks are not cut into: what runs between two `.await`s, or in one message, is
//!   one step. A race of two OS threads on one value is not found (loom finds those).
//! - There is no I/O driver: sockets and files of [`net`](crate::net) and
//!   [`fs`](crate::fs) say that they want one. Threads that wait for real descriptors are
//!   polled in each turn.
//! - What another OS thread sends to a simulated thread arrives at once, and at whatever
//!   virtual time it is by then: that is allowed, and its run is not like another one. A
//!   simulation that waits for nothing else does not wait for that: it says that
//!   nothing is left to do.
//! - Cores work side by side, each at its own time. A core that
//!   [spends](SimHandle::spend) time is ahead of the others until they are there too; what
//!   it leaves meanwhile in memory that they share is there for them before. Messages are
//!   not: they arrive later than they were sent.

mod builder;
mod chance;
mod disk;
mod error;
mod explore;
mod handle;
mod network;
mod simulation;
mod stream;
mod trace;
mod world;

pub use builder::SimBuilder;
pub use disk::{DiskFaults, SimDisk};
pub use error::SimError;
pub use explore::{SimFailure, explore};
pub use handle::SimHandle;
pub use network::{DatagramFaults, SimNetwork, SimSocket};
pub use simulation::Sim;
pub use stream::{SimStream, StreamFaults};
pub use trace::Trace;
