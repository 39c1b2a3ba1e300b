//! tokio's `task`.

pub use tokio::task::spawn;
pub use tokio::task::{LocalKey, coop, futures};
