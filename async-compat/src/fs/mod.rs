//! Files and directories, as tokio's `fs`.
//!
//! Reading, writing and syncing a [`File`] runs on the I/O driver of the OS thread that polls it, where
//! that is on io_uring and the file is a regular one; everything else runs on helper threads, as all of
//! tokio's does.

mod abandoned;
mod dir_builder;
mod file;
mod file_times;
mod open_options;
mod paths;
mod read_dir;

pub use dir_builder::DirBuilder;
pub use file::File;
pub use file_times::FileTimes;
pub use open_options::OpenOptions;
pub use paths::{
    canonicalize, copy, create_dir, create_dir_all, hard_link, metadata, read, read_link,
    read_to_string, remove_dir, remove_dir_all, remove_file, rename, set_permissions, symlink,
    symlink_metadata, try_exists, write,
};
pub use read_dir::{DirEntry, ReadDir, read_dir};

use crate::io::blocking::asyncify;
