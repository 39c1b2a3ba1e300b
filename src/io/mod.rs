//! The I/O driver of an OS thread, and the buffers its operations own.
//!
//! One [`Driver`] per OS thread serves every SpdkThread that runs there. It rests on io_uring, and on
//! epoll, Linux AIO and helper threads where io_uring is not permitted; [`Driver::backend`] says
//! which. Files are in [`fs`](crate::fs), sockets in [`net`](crate::net); [`PollFd`] waits for any
//! other descriptor, [`unblock`] runs what can only block. With the feature `raw-io-uring`,
//! `Driver::submit_raw` runs ring operations that have no wrapper.
//!
//! An operation owns its buffer and its descriptor until the kernel is done with them, whatever
//! happens to its future: reads and writes therefore take a buffer ([`IoBuf`], [`IoBufMut`]) and give
//! it back with the result.
//!
//! Everything here is bound to the driver's OS thread and neither `Send` nor `Sync`, except
//! [`SharedFd`], which is watched by whichever driver polls it, and the plain values ([`DriverConfig`],
//! [`AlignedBuf`], …):
//!
//! ```compile_fail,E0277
//! fn elsewhere(file: corespun::fs::File) {
//!     std::thread::spawn(move || drop(file));
//! }
//! ```
//!
//! # For the loop
//!
//! Tasks are woken from inside [`Driver::poll`] and [`Driver::park`], on the loop's own OS thread; a
//! loop that found nothing to do may announce its sleep, look at its queues once more, and park. A
//! write to the wake eventfd after the announcement ends the park, whenever it comes. The driver
//! itself writes that eventfd only while it is parked, for results of its helper threads.

mod aio;
mod aligned;
mod block;
mod blocking;
mod buf;
mod cached;
mod config;
pub(crate) mod delay;
mod detached;
pub(crate) mod driver;
mod epoll;
mod epoll_wait;
pub(crate) mod fixed;
mod guess;
pub(crate) mod helpers;
mod interest;
mod mark;
pub(crate) mod op;
#[cfg(feature = "raw-io-uring")]
pub mod raw;
pub(crate) mod readiness;
mod shared;
pub(crate) mod state;
mod table;
mod turn;
mod unblock;
mod unusable;
mod uring;
mod wake;

pub use aligned::{AlignedBuf, POOL_ALIGN, PooledBuf};
pub use block::Block;
pub(crate) use buf::Lent;
pub use buf::{IoBuf, IoBufMut, Slice};
pub use config::{Backend, BackendChoice, DriverConfig, DriverError};
pub use detached::{FileAction, FileOp};
pub use driver::{Driver, EnterGuard};
#[doc(hidden)]
pub use fixed::KnownBuf;
pub use interest::{Interest, Ready};
pub use op::Completion;
#[cfg(feature = "raw-io-uring")]
pub use raw::{RawOp, RawStream};
pub use readiness::PollFd;
pub use shared::{DriverHandle, FdWatch, Home, NotWatched, ReadyEvent, SharedFd};
pub use unblock::unblock;
pub use wake::WakeFd;
