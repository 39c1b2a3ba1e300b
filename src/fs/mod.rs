//! Files and directories on the OS thread's I/O driver.
//!
//! [`File`] has no cursor: every read and write names its offset, so any number may run at once. A
//! buffer goes into the operation and comes back with the result, whatever becomes of the future.
//! How much is read is said by the buffer: a `Vec` is filled up to its *capacity*, and
//! [`slice(..n)`](crate::io::IoBuf::slice) asks for `n` bytes.
//!
//! The functions here do what those of [`std::fs`] with the same names do, without blocking: on
//! io_uring the kernel has most of them as ring operations; the others, and all on epoll, run on
//! helper threads.
//!
//! ```
//! use corespun::fs;
//!
//! # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
//! let dir = tempfile::tempdir()?;
//! let (draft, kept) = (dir.path().join("draft"), dir.path().join("kept"));
//! fs::write(&draft, "text").await?;
//! fs::rename(&draft, &kept).await?;
//! assert_eq!(fs::metadata(&kept).await?.len(), 4);
//! fs::remove_file(&kept).await?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })??;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod block;
mod file;
mod metadata;
mod open;
mod path;
mod read_dir;
mod space;
mod vectored;
mod whole;

pub use file::File;
pub use metadata::Metadata;
pub use open::OpenOptions;
pub use path::{
    canonicalize, create_dir, create_dir_all, hard_link, metadata, read_link, remove_dir,
    remove_dir_all, remove_file, rename, set_permissions, symlink, symlink_metadata, sync_dir,
    try_exists,
};
pub use read_dir::{DirEntry, ReadDir, read_dir};
pub use whole::{copy, read, read_to_string, write};
