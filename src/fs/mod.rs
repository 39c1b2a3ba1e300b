//! Files on the OS thread's I/O driver: positional, with owned buffers.
//!
//! [`File`] has no cursor: every read and write names its offset, so any number may run at once. A
//! buffer goes into the operation and comes back with the result, whatever becomes of the future.

mod file;
mod metadata;
mod open;

pub use file::File;
pub use metadata::Metadata;
pub use open::OpenOptions;
