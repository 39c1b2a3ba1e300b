//! SPDK's threading model, native in Rust, with async/await on top.

pub mod app;
pub mod channel;
pub mod clock;
pub mod cpu;
pub mod fs;
pub mod io;
pub mod local;
pub mod mpsc;
pub mod net;
pub mod notify;
pub mod reactor;
pub mod sharded;
pub mod stream;
mod sync;
pub mod task;
pub mod thread;
pub mod time;
