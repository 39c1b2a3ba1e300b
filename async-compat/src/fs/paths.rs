//! The functions that take a path: those of `std::fs`, on a helper thread.

use std::fs::{Metadata, Permissions};
use std::io;
use std::path::{Path, PathBuf};

use super::asyncify;

macro_rules! one_path {
    ($($(#[$doc:meta])* $name:ident($path:ident) -> $result:ty;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        ///
        #[doc = concat!("As [`std::fs::", stringify!($name), "`].")]
        ///
        /// # Cancel safety
        ///
        /// A dropped future does not stop the call once it has begun.
        pub async fn $name($path: impl AsRef<Path>) -> io::Result<$result> {
            let path = $path.as_ref().to_owned();
            asyncify(move || std::fs::$name(path)).await
        }
    )*};
}

macro_rules! two_paths {
    ($($(#[$doc:meta])* $name:ident = $std:path: ($from:ident, $to:ident) -> $result:ty;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        ///
        #[doc = concat!("As [`", stringify!($std), "`].")]
        ///
        /// # Cancel safety
        ///
        /// A dropped future does not stop the call once it has begun.
        pub async fn $name(
            $from: impl AsRef<Path>,
            $to: impl AsRef<Path>,
        ) -> io::Result<$result> {
            let (from, to) = ($from.as_ref().to_owned(), $to.as_ref().to_owned());
            asyncify(move || $std(from, to)).await
        }
    )*};
}

one_path! {
    /// The absolute path, without links and dots.
    canonicalize(path) -> PathBuf;
    /// Makes a directory.
    create_dir(path) -> ();
    /// Makes a directory and those it is in.
    create_dir_all(path) -> ();
    /// What is known of a file, following links.
    metadata(path) -> Metadata;
    /// The contents of a file.
    read(path) -> Vec<u8>;
    /// Where a symbolic link leads.
    read_link(path) -> PathBuf;
    /// The contents of a file, as text.
    read_to_string(path) -> String;
    /// Removes an empty directory.
    remove_dir(path) -> ();
    /// Removes a directory and what is in it.
    remove_dir_all(path) -> ();
    /// Removes a file.
    remove_file(path) -> ();
    /// What is known of a file or a link itself.
    symlink_metadata(path) -> Metadata;
}

two_paths! {
    /// Copies the contents and permissions of a file; gives how many bytes there were.
    copy = std::fs::copy: (from, to) -> u64;
    /// Makes another name of a file.
    hard_link = std::fs::hard_link: (original, link) -> ();
    /// Gives a file another name, in the same file system.
    rename = std::fs::rename: (from, to) -> ();
    /// Makes a symbolic link.
    symlink = std::os::unix::fs::symlink: (original, link) -> ();
}

/// Whether something is there.
///
/// # Errors
///
/// As [`std::path::Path::try_exists`].
pub async fn try_exists(path: impl AsRef<Path>) -> io::Result<bool> {
    let path = path.as_ref().to_owned();
    asyncify(move || path.try_exists()).await
}

/// Sets the permissions of a file.
///
/// # Errors
///
/// As [`std::fs::set_permissions`].
pub async fn set_permissions(path: impl AsRef<Path>, perm: Permissions) -> io::Result<()> {
    let path = path.as_ref().to_owned();
    asyncify(move || std::fs::set_permissions(path, perm)).await
}

/// Makes `contents` the whole contents of a file, which is made if need be.
///
/// # Errors
///
/// As [`std::fs::write`].
///
/// # Cancel safety
///
/// A dropped future does not stop the call once it has begun.
pub async fn write(path: impl AsRef<Path>, contents: impl AsRef<[u8]>) -> io::Result<()> {
    let path = path.as_ref().to_owned();
    let contents = contents.as_ref().to_owned();
    asyncify(move || std::fs::write(path, contents)).await
}
