//! SPDK's threading model, native in Rust, with async/await on top.

pub mod clock;
pub mod cpu;
pub mod local;
pub mod notify;
pub mod stream;
mod sync;
pub mod task;
pub mod thread;
pub mod time;
