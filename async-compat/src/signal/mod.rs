//! Signals of the process, as tokio's `signal`.
//!
//! Listening for a signal takes its default effect away from the process for good, as with tokio: a
//! program that has listened for Ctrl-C once ends by itself alone.

mod ctrl_c;
pub mod unix;

pub use ctrl_c::ctrl_c;
