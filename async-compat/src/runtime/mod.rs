//! tokio's `runtime`.
