//! tokio's `time`.
