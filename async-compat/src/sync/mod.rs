//! tokio's `sync`.
//!
//! All of it is tokio's own: channels and locks need no runtime. Only the sender of a bounded
//! channel has a cover, for the sake of its timer; see [`mpsc`].

pub mod mpsc;

pub use tokio::sync::*;
