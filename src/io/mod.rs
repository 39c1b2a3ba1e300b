//! The I/O driver of an OS thread, and the buffers its operations own.
//!
//! One [`Driver`] per OS thread serves every SpdkThread that runs there. It rests on io_uring, and on
//! epoll, Linux AIO and helper threads where io_uring is not permitted; [`Driver::backend`] says
//! which. Files are in [`fs`](crate::fs), sockets in [`net`](crate::net); [`PollFd`] waits for any
//! other descriptor, [`unblock`] runs what can only block, and [`Driver::submit_raw`] runs ring
//! operations that have no wrapper.
//!
//! An operation owns its buffer and its descriptor until the kernel is done with them, whatever
//! happens to its future: reads and writes therefore take a buffer ([`IoBuf`], [`IoBufMut`]) and give
//! it back with the result.
//!
//! Everything here is bound to the driver's OS thread and neither `Send` nor `Sync`, except the plain
//! values ([`DriverConfig`], [`AlignedBuf`], …).

mod aio;
mod aligned;
mod blocking;
mod buf;
mod config;
pub(crate) mod driver;
mod epoll;
pub(crate) mod op;
pub mod raw;
pub(crate) mod readiness;
mod unblock;
mod uring;

pub use aligned::{AlignedBuf, POOL_ALIGN, PooledBuf};
pub use buf::{IoBuf, IoBufMut, Slice};
pub use config::{Backend, BackendChoice, DriverConfig, DriverError};
pub use driver::{Driver, EnterGuard};
pub use op::Completion;
pub use raw::{RawOp, RawStream};
pub use readiness::PollFd;
pub use unblock::unblock;
