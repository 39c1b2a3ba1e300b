//! tokio's `fs`.
