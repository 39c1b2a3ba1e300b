//! Joining a task: its handle, its outcome, and the error when there is none.

mod abort;
mod error;
mod handle;
mod outcome;

pub use abort::AbortHandle;
pub use error::JoinError;
pub use handle::JoinHandle;
pub(crate) use outcome::Outcome;
