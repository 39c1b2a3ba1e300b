//! tokio's `net`.
