//! What is done to a path: names made, changed, removed, and asked about.

use std::ffi::CString;
use std::fs::Permissions;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::file::{File, run};
use super::metadata::{Asking, Metadata};
use crate::io::driver::Driver;
use crate::io::op::{Payload, Request};
use crate::io::{Lent, unblock};
use crate::sync::budget;

/// A path as the kernel takes it.
///
/// # Errors
///
/// `InvalidInput` if there is a zero byte in it.
pub(super) fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// An operation on a path, or two.
struct OnPath {
    path: Lent<CString>,
    other: Lent<CString>,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Rename,
    Unlink { flags: i32 },
    MakeDir { mode: u32 },
    Symlink,
    Link,
}

// SAFETY: a CString's bytes are on the heap.
unsafe impl Payload for OnPath {
    fn request(&mut self) -> Request {
        let (path, other) = (self.path.get_mut().as_ptr(), self.other.get_mut().as_ptr());
        match self.kind {
            Kind::Rename => Request::Rename {
                from: path,
                to: other,
            },
            Kind::Unlink { flags } => Request::Unlink { path, flags },
            Kind::MakeDir { mode } => Request::MakeDir { path, mode },
            Kind::Symlink => Request::Symlink {
                target: path,
                link: other,
            },
            Kind::Link => Request::Link {
                from: path,
                to: other,
            },
        }
    }
}

async fn on_path(kind: Kind, path: &Path, other: Option<&Path>) -> io::Result<()> {
    // What is refused here has waited for nothing.
    budget::take().await;
    let operation = OnPath {
        path: Lent::new(c_path(path)?),
        other: Lent::new(other.map(c_path).transpose()?.unwrap_or_default()),
        kind,
    };
    let core = Driver::current_core()?;
    run(&core, operation).await.0.map(drop)
}

/// Gives what is at `from` the name `to`, which is replaced if it exists. Both are on one file
/// system. Durable once the directories are ([`sync_dir`]).
///
/// # Errors
///
/// Those of `rename(2)`; `InvalidInput` for a path with a zero byte; an error if no driver is
/// entered on this OS thread. The same holds for everything that takes a path here.
///
/// # Cancel safety
///
/// A dropped future does not stop what was started; so for everything here that changes something.
///
/// # Examples
///
/// A file is replaced as a whole, or not at all:
///
/// ```
/// use corespun::fs;
///
/// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
/// let dir = tempfile::tempdir()?;
/// let (new, name) = (dir.path().join("state.new"), dir.path().join("state"));
/// fs::write(&name, "old").await?;
/// let file = fs::File::create(&new).await?;
/// file.write_all_at("new", 0).await.0?;
/// file.sync_all().await?;
/// fs::rename(&new, &name).await?;
/// fs::sync_dir(dir.path()).await?;
/// assert_eq!(fs::read(&name).await?, b"new");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub async fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
    on_path(Kind::Rename, from.as_ref(), Some(to.as_ref())).await
}

/// Removes the name of a file; the file goes with its last name and descriptor.
///
/// # Errors
///
/// Those of `unlink(2)`; `IsADirectory` for a directory.
pub async fn remove_file(path: impl AsRef<Path>) -> io::Result<()> {
    on_path(Kind::Unlink { flags: 0 }, path.as_ref(), None).await
}

/// Makes a directory, with mode 0o777 less the umask.
///
/// # Errors
///
/// Those of `mkdir(2)`; `AlreadyExists` if anything is there.
pub async fn create_dir(path: impl AsRef<Path>) -> io::Result<()> {
    on_path(Kind::MakeDir { mode: 0o777 }, path.as_ref(), None).await
}

/// Makes a directory and those above it that are missing. That it exists is no error.
///
/// # Errors
///
/// Those of [`create_dir`], except for a directory that exists.
///
/// # Examples
///
/// ```
/// use corespun::fs;
///
/// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
/// let dir = tempfile::tempdir()?;
/// let deep = dir.path().join("a/b/c");
/// fs::create_dir_all(&deep).await?;
/// fs::create_dir_all(&deep).await?;
/// assert!(fs::metadata(&deep).await?.is_dir());
/// fs::remove_dir_all(dir.path().join("a")).await?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub async fn create_dir_all(path: impl AsRef<Path>) -> io::Result<()> {
    let path = path.as_ref();
    if path == Path::new("") {
        budget::take().await;
        return Ok(());
    }
    // Up until one can be made, and down again.
    let mut missing = Vec::new();
    for ancestor in path.ancestors().filter(|path| *path != Path::new("")) {
        match make_or_find(ancestor).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(ancestor),
            made => {
                made?;
                break;
            }
        }
    }
    for path in missing.into_iter().rev() {
        make_or_find(path).await?;
    }
    Ok(())
}

/// Makes a directory unless there is one.
async fn make_or_find(path: &Path) -> io::Result<()> {
    match create_dir(path).await {
        // Some file systems say something else of a directory that exists.
        Err(error) if error.kind() != io::ErrorKind::NotFound => match metadata(path).await {
            Ok(found) if found.is_dir() => Ok(()),
            _ => Err(error),
        },
        made => made,
    }
}

/// Removes an empty directory.
///
/// # Errors
///
/// Those of `rmdir(2)`; `DirectoryNotEmpty` if it is not.
pub async fn remove_dir(path: impl AsRef<Path>) -> io::Result<()> {
    let flags = libc::AT_REMOVEDIR;
    on_path(Kind::Unlink { flags }, path.as_ref(), None).await
}

/// Removes a directory and all below it, on a helper thread. Symbolic links are removed, not
/// followed.
///
/// # Errors
///
/// As [`std::fs::remove_dir_all`]; a part may be gone then.
pub async fn remove_dir_all(path: impl AsRef<Path>) -> io::Result<()> {
    let path = path.as_ref().to_owned();
    unblock(move || std::fs::remove_dir_all(path)).await?
}

/// Gives the file at `original` a second name, `link`.
///
/// # Errors
///
/// Those of `link(2)`; `AlreadyExists` if anything is at `link`.
pub async fn hard_link(original: impl AsRef<Path>, link: impl AsRef<Path>) -> io::Result<()> {
    on_path(Kind::Link, original.as_ref(), Some(link.as_ref())).await
}

/// Makes `link` a symbolic link to `target`, which need not exist.
///
/// # Errors
///
/// Those of `symlink(2)`; `AlreadyExists` if anything is at `link`.
pub async fn symlink(target: impl AsRef<Path>, link: impl AsRef<Path>) -> io::Result<()> {
    on_path(Kind::Symlink, target.as_ref(), Some(link.as_ref())).await
}

/// Where a symbolic link leads, as it was written.
///
/// # Errors
///
/// Those of `readlink(2)`; `InvalidInput` if it is no symbolic link.
pub async fn read_link(path: impl AsRef<Path>) -> io::Result<PathBuf> {
    let path = path.as_ref().to_owned();
    unblock(move || std::fs::read_link(path)).await?
}

/// The absolute path without symbolic links, `.` and `..`. All of it exists.
///
/// # Errors
///
/// Those of `realpath(3)`.
pub async fn canonicalize(path: impl AsRef<Path>) -> io::Result<PathBuf> {
    let path = path.as_ref().to_owned();
    unblock(move || std::fs::canonicalize(path)).await?
}

/// Facts about what `path` leads to, symbolic links followed.
///
/// # Errors
///
/// Those of `statx(2)`.
pub async fn metadata(path: impl AsRef<Path>) -> io::Result<Metadata> {
    budget::take().await;
    ask(path.as_ref(), true).await
}

/// Facts about what is at `path`, a symbolic link itself for example.
///
/// # Errors
///
/// Those of `statx(2)`.
pub async fn symlink_metadata(path: impl AsRef<Path>) -> io::Result<Metadata> {
    budget::take().await;
    ask(path.as_ref(), false).await
}

async fn ask(path: &Path, follow: bool) -> io::Result<Metadata> {
    let core = Driver::current_core()?;
    let (result, asking) = run(&core, Asking::path(c_path(path)?, follow)).await;
    result?;
    // SAFETY: it has succeeded.
    Ok(unsafe { asking.answer() })
}

/// Whether `path` leads to anything.
///
/// # Errors
///
/// Those of [`metadata`], except that there is nothing.
pub async fn try_exists(path: impl AsRef<Path>) -> io::Result<bool> {
    match metadata(path).await {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Sets who may do what with the file that `path` leads to.
///
/// # Errors
///
/// Those of `chmod(2)`.
pub async fn set_permissions(path: impl AsRef<Path>, permissions: Permissions) -> io::Result<()> {
    let path = path.as_ref().to_owned();
    unblock(move || std::fs::set_permissions(path, permissions)).await?
}

/// Makes the names in a directory durable: after a file was created, renamed or removed there.
///
/// # Errors
///
/// Those of `open(2)` and `fsync(2)`; `NotADirectory` for anything else.
pub async fn sync_dir(path: impl AsRef<Path>) -> io::Result<()> {
    let mut options = super::OpenOptions::new();
    options.read(true).custom_flags(libc::O_DIRECTORY);
    let directory: File = options.open(path).await?;
    directory.sync_all().await
}
