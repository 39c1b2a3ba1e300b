//! SPDK's threading model, native in Rust, with async/await on top.

pub mod channel;
pub mod clock;
pub mod cpu;
pub mod notify;
mod sync;
pub mod task;
pub mod thread;
pub mod time;
