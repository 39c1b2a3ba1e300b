//! tokio's `sync`.
//!
//! All of it is tokio's own: channels and locks need no runtime.

pub use tokio::sync::*;
