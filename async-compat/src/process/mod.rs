//! Child processes, as tokio's `process`.
//!
//! The end of a child is an event of its pidfd, which the I/O driver of the polling OS thread watches:
//! no signal is handled for it. Where the kernel gives no pidfd (before Linux 5.3, or forbidden),
//! SIGCHLD tells.
//!
//! A child that is dropped while it runs goes on, unless
//! [`kill_on_drop`](Command::kill_on_drop) is set, and is reaped by a task of the runtime that it is
//! dropped in; outside of one, when a child is next spawned or dropped.

mod child;
mod command;
mod orphans;
mod stdio;

pub use child::Child;
pub use command::Command;
pub use stdio::{ChildStderr, ChildStdin, ChildStdout};
