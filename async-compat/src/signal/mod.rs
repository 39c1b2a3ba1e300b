//! tokio's `signal`.
