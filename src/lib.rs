//! SPDK's threading model, native in Rust, with async/await on top.

pub mod fs;
pub mod io;
pub mod net;
