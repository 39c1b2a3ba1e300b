//! A disk that is a file, or a block device.
//!
//! Each reactor thread has its own handle, on its own driver; the descriptors are
//! duplicates of one, so they share the page cache, and `fdatasync` on any of them covers
//! what was written through all. Every operation is positional.

use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use corespun::fs::{File, OpenOptions};
use corespun::io::IoBuf;

use crate::disk::{Disk, Zeroing};
use crate::options::Size;

/// What is written, piece by piece, where zeroes have to be: the same bytes for every request.
static ZEROES: [u8; 1 << 20] = [0; 1 << 20];

/// How much of an area is read ahead when a client asks to have it cached, which is no more than a
/// wish: so many clients cannot keep the device busy with a few bytes each.
const READ_AHEAD: u32 = 32 << 20;

/// A file, before it is taken to the threads that serve it.
#[derive(Debug)]
pub(crate) struct Image {
    file: std::fs::File,
    /// In bytes.
    pub(crate) size: u64,
}

/// Why a file cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ImageError {
    /// It is not there, and no size was given to create it with.
    #[error("there is no such file: give --size SIZE to create it")]
    Missing,
    /// It exists, but not as asked.
    #[error("it has {found} bytes, not {asked}: leave --size out to serve it as it is")]
    OtherSize { found: u64, asked: u64 },
    /// Nothing to serve.
    #[error("it is empty")]
    Empty,
    /// A directory, a pipe, …
    #[error("it is neither a file nor a block device")]
    NotADisk,
    /// The system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Image {
    /// Opens the file at `path`; with a `size`, creates it durably if it is missing.
    /// Nothing is left behind when that fails.
    ///
    /// # Errors
    ///
    /// [`ImageError`].
    pub(crate) async fn open(
        path: &Path,
        size: Option<Size>,
        read_only: bool,
    ) -> Result<(Image, Created), ImageError> {
        let mut options = OpenOptions::new();
        options.read(true).write(!read_only);
        let missing = match options.open(path).await {
            Ok(file) => return Self::existing(file, size).await,
            Err(error) if error.kind() == io::ErrorKind::NotFound => error,
            Err(error) => return Err(error.into()),
        };
        let Some(Size(size)) = size else {
            // A dangling symbolic link, or a missing directory, reads the same.
            tracing::debug!(%missing, "cannot open the file");
            return Err(ImageError::Missing);
        };
        let file = options.create_new(true).open(path).await?;
        let created = Created(Some(path.to_owned()));
        file.set_len(size).await?;
        file.sync_all().await?;
        let directory = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let directory = File::open(directory.unwrap_or(Path::new("."))).await?;
        directory.sync_all().await?;
        let file = file.into_std()?;
        Ok((Image { file, size }, created))
    }

    async fn existing(file: File, asked: Option<Size>) -> Result<(Image, Created), ImageError> {
        let metadata = file.metadata().await?;
        if !metadata.is_file() && !metadata.is_block_device() {
            return Err(ImageError::NotADisk);
        }
        let size = file.len().await?;
        match asked {
            Some(Size(asked)) if asked != size => {
                return Err(ImageError::OtherSize { found: size, asked });
            }
            _ if size == 0 => return Err(ImageError::Empty),
            _ => {}
        }
        let file = file.into_std()?;
        Ok((Image { file, size }, Created::nothing()))
    }

    /// A handle for another thread.
    ///
    /// # Errors
    ///
    /// Those of `dup(2)`.
    pub(crate) fn try_clone(&self) -> io::Result<Image> {
        Ok(Image {
            file: self.file.try_clone()?,
            size: self.size,
        })
    }
}

/// A file this server has created: removed when dropped, unless it is to be kept.
#[derive(Debug)]
pub(crate) struct Created(Option<PathBuf>);

impl Created {
    /// Nothing to remove.
    pub(crate) fn nothing() -> Created {
        Created(None)
    }

    /// From now on the file is the user's.
    pub(crate) fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // Nobody can be told more than the error that led here.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A file on the thread that serves it.
#[derive(Clone)]
pub(crate) struct FileDisk {
    file: File,
    /// What the file system has refused once, it is not asked again.
    refused: Rc<Refused>,
}

#[derive(Default)]
struct Refused {
    punch: Cell<bool>,
    zero: Cell<bool>,
}

impl FileDisk {
    /// Takes up a file on this thread.
    ///
    /// # Errors
    ///
    /// If this is no reactor's thread.
    pub(crate) fn new(image: Image) -> io::Result<FileDisk> {
        Ok(FileDisk {
            file: File::from_std(image.file)?,
            refused: Rc::default(),
        })
    }

    /// Says whether the area was punched.
    async fn punch(&self, offset: u64, length: u32) -> io::Result<bool> {
        let punched = self.file.punch_hole(offset, length.into());
        supported(&self.refused.punch, punched).await
    }

    /// Says whether the area was zeroed.
    async fn zero(&self, offset: u64, length: u32) -> io::Result<bool> {
        let zeroed = self.file.zero_range(offset, length.into());
        supported(&self.refused.zero, zeroed).await
    }

    async fn write_pieces_of_zero(&self, offset: u64, length: u32) -> io::Result<()> {
        let length = length as usize;
        for done in (0..length).step_by(ZEROES.len()) {
            let piece = ZEROES.as_slice().slice(..ZEROES.len().min(length - done));
            self.file
                .write_all_at(piece, offset + done as u64)
                .await
                .0?;
        }
        Ok(())
    }
}

/// Runs `operation` unless its kind was refused before.
async fn supported(
    refused: &Cell<bool>,
    operation: impl Future<Output = io::Result<()>>,
) -> io::Result<bool> {
    if refused.get() {
        return Ok(false);
    }
    match operation.await {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            refused.set(true);
            Ok(false)
        }
        done => done.map(|()| true),
    }
}

impl Disk for FileDisk {
    /// Any access may have to wait for the device.
    fn try_read(&self, _offset: u64, _into: &mut [u8]) -> Option<io::Result<()>> {
        None
    }

    fn try_write(&self, _offset: u64, _data: &[u8]) -> Option<io::Result<()>> {
        None
    }

    async fn read(&self, offset: u64, frame: Vec<u8>, from: usize) -> (io::Result<()>, Vec<u8>) {
        let whole = frame.len();
        let (status, data) = self
            .file
            .read_exact_at(frame.slice(from..whole), offset)
            .await;
        (status, data.into_inner())
    }

    async fn write(&self, offset: u64, data: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        self.file.write_all_at(data, offset).await
    }

    async fn flush(&self) -> io::Result<()> {
        self.file.sync_data().await
    }

    async fn trim(&self, offset: u64, length: u32) -> io::Result<()> {
        // A wish, which may be ignored. Of no length it is none, and the kernel refuses it.
        if length > 0 {
            self.punch(offset, length).await?;
        }
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, length: u32, how: Zeroing) -> io::Result<()> {
        if length == 0
            || how.may_punch && self.punch(offset, length).await?
            || self.zero(offset, length).await?
        {
            return Ok(());
        }
        if how.only_if_fast {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.write_pieces_of_zero(offset, length).await
    }

    /// Has the system read the front of the area into the page cache, which takes no memory of the
    /// server's.
    async fn cache(&self, offset: u64, length: u32) -> io::Result<()> {
        let length = length.min(READ_AHEAD);
        self.file.will_need(offset, length.into()).await
    }
}
