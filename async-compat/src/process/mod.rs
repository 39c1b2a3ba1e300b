//! tokio's `process`.
