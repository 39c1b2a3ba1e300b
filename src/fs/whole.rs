//! Whole files in one call: read, written, copied.

use std::io;
use std::path::Path;

use super::file::File;
use super::open::OpenOptions;
use crate::io::{IoBuf, unblock};

/// The least that is read at once of a file that does not tell its length, as one in `/proc`.
const PIECE: usize = 8 << 10;

/// Reads a whole file.
///
/// # Errors
///
/// Those of [`File::open`] and [`File::read_at`]; `OutOfMemory` if it does not fit in memory.
///
/// # Examples
///
/// ```
/// use corespun::fs;
///
/// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
/// let dir = tempfile::tempdir()?;
/// let path = dir.path().join("greeting");
/// fs::write(&path, "hello").await?;
/// assert_eq!(fs::read(&path).await?, b"hello");
/// assert_eq!(fs::read_to_string(&path).await?, "hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub async fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let file = File::open(path).await?;
    let len = file.metadata().await?.len();
    // One byte more than it has, so that the read after the last finds room to say so.
    let room = usize::try_from(len).ok().and_then(|len| len.checked_add(1));
    let mut contents = Vec::new();
    contents.try_reserve_exact(room.ok_or(io::ErrorKind::OutOfMemory)?)?;
    loop {
        let done = contents.len();
        if contents.capacity() == done || len == 0 {
            contents.try_reserve(PIECE)?;
        }
        let (count, part) = file.read_at(contents.slice(done..), done as u64).await;
        contents = part.into_inner();
        if count? == 0 {
            return Ok(contents);
        }
    }
}

/// Reads a whole file of text.
///
/// # Errors
///
/// `InvalidData` if it is not UTF-8; otherwise those of [`read`].
pub async fn read_to_string(path: impl AsRef<Path>) -> io::Result<String> {
    let contents = read(path).await?;
    String::from_utf8(contents).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Makes `contents` the whole of a file, created if missing. Not durable, and not at once: a reader
/// may see a part meanwhile; see [`rename`](super::rename) for a way around both.
///
/// # Errors
///
/// Those of [`File::create`] and [`File::write_all_at`].
pub async fn write(path: impl AsRef<Path>, contents: impl IoBuf) -> io::Result<()> {
    let file = File::create(path).await?;
    file.write_all_at(contents, 0).await.0
}

/// Copies a file's contents and permissions, on a helper thread, in the kernel where that is
/// possible; `to` is replaced if it exists. Returns how many bytes that were.
///
/// # Errors
///
/// Those of [`File::open`] and [`File::create`]; `InvalidInput` if `from` is no regular file;
/// otherwise as [`std::fs::copy`].
pub async fn copy(from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<u64> {
    // Opened here, where a FIFO is refused: a helper thread might wait in it for ever.
    let source = File::open(from).await?;
    let metadata = source.metadata().await?;
    if !metadata.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "only a regular file can be copied",
        ));
    }
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    let target = options.mode(metadata.mode() & 0o7777).open(to).await?;
    let (mut source, mut target) = (source.into_std()?, target.into_std()?);
    unblock(move || {
        // The permissions of a device are the system's business.
        if target.metadata()?.is_file() {
            target.set_permissions(metadata.permissions())?;
        }
        io::copy(&mut source, &mut target)
    })
    .await?
}
