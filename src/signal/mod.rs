//! Signals of the process.

mod process;

use std::panic::{AssertUnwindSafe, catch_unwind};

pub(crate) use process::{Registration, Stoppable, register_app, shut_down_current_app, tell};

/// Runs what may be foreign code; a panic of it is logged.
fn contained<R>(f: impl FnOnce() -> R) -> Option<R> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(result) => Some(result),
        Err(payload) => {
            tracing::error!("what a signal was delivered to panicked");
            // Its destructor may panic in turn.
            std::mem::forget(payload);
            None
        }
    }
}
