//! Channels and locks for the tasks of one SpdkThread.
//!
//! They are `!Send`: nothing here is atomic and no wake leaves the thread, so
//! that handing a value to another task costs little more than the wake itself.
//! Between threads, use [`mpsc`](crate::mpsc), or any of the runtime-agnostic
//! crates (`async-channel`, `futures::channel`, `event-listener`, tokio's
//! `sync`): a waker of this crate works from anywhere.
//!
//! All of them are fair (first come, first served), cancel-safe where their docs
//! do not say otherwise, and take from the task's
//! [budget](crate::task::consume_budget).

pub mod mpsc;
mod mutex;
mod notify;
pub mod oneshot;
mod semaphore;
mod wait_list;

pub use mutex::{Mutex, MutexGuard};
pub use notify::{Notified, Notify};
pub use semaphore::{Acquire, Closed, Permit, Semaphore, TryAcquireError};
