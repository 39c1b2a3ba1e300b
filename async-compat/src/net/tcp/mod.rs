//! TCP streams and listeners, and their halves.

pub(super) mod listener;
pub(super) mod split;
pub(super) mod stream;

pub use split::{OwnedReadHalf, OwnedWriteHalf, ReadHalf, ReuniteError, WriteHalf};
