//! What the file system says about a file.

use std::ffi::CString;
use std::fs::Permissions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use crate::io::Lent;
use crate::io::fixed::OpenFile;
use crate::io::op::{Payload, Request};

/// Facts about a file, as of the moment it was asked. A plain value.
///
/// # Examples
///
/// ```
/// use corespun::fs::File;
///
/// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
/// let file = File::from_std(tempfile::tempfile()?)?;
/// let before = file.metadata().await?;
/// file.set_len(512).await?;
/// // A value: it does not change with the file.
/// assert_eq!((before.len(), file.metadata().await?.len()), (0, 512));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy)]
pub struct Metadata(libc::statx);

impl Metadata {
    /// The length in bytes; 0 for a device, see [`File::len`](super::File::len).
    #[expect(clippy::len_without_is_empty, reason = "as std::fs::Metadata")]
    pub fn len(&self) -> u64 {
        self.0.stx_size
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.is(libc::S_IFREG)
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.is(libc::S_IFDIR)
    }

    /// Whether it is a block device.
    pub fn is_block_device(&self) -> bool {
        self.is(libc::S_IFBLK)
    }

    /// Type and permission bits, as `st_mode`.
    pub fn mode(&self) -> u32 {
        self.0.stx_mode.into()
    }

    /// The preferred size of a transfer in bytes.
    pub fn block_size(&self) -> u32 {
        self.0.stx_blksize
    }

    /// The bytes that are allocated: less than [`len`](Self::len) for a sparse file.
    pub fn allocated(&self) -> u64 {
        self.0.stx_blocks * 512
    }

    /// When the contents last changed.
    pub fn modified(&self) -> SystemTime {
        time(&self.0.stx_mtime)
    }

    /// When it was last read, as far as the file system keeps that.
    pub fn accessed(&self) -> SystemTime {
        time(&self.0.stx_atime)
    }

    /// When it was made.
    ///
    /// # Errors
    ///
    /// `Unsupported` if the file system does not keep that.
    pub fn created(&self) -> io::Result<SystemTime> {
        if self.0.stx_mask & libc::STATX_BTIME == 0 {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the file system does not keep when a file was made",
            ));
        }
        Ok(time(&self.0.stx_btime))
    }

    /// Whether it is a symbolic link; only
    /// [`symlink_metadata`](super::symlink_metadata) tells.
    pub fn is_symlink(&self) -> bool {
        self.is(libc::S_IFLNK)
    }

    /// Who may do what with it.
    pub fn permissions(&self) -> Permissions {
        Permissions::from_mode(self.mode())
    }

    /// The number of the device it is on.
    pub fn dev(&self) -> u64 {
        libc::makedev(self.0.stx_dev_major, self.0.stx_dev_minor)
    }

    /// Its number on that device.
    pub fn ino(&self) -> u64 {
        self.0.stx_ino
    }

    /// How many names it has.
    pub fn nlink(&self) -> u64 {
        self.0.stx_nlink.into()
    }

    /// Its owner.
    pub fn uid(&self) -> u32 {
        self.0.stx_uid
    }

    /// Its group.
    pub fn gid(&self) -> u32 {
        self.0.stx_gid
    }

    fn is(&self, kind: u32) -> bool {
        self.mode() & libc::S_IFMT == kind
    }
}

fn time(stamp: &libc::statx_timestamp) -> SystemTime {
    let nanos = Duration::from_nanos(stamp.tv_nsec.into());
    match u64::try_from(stamp.tv_sec) {
        Ok(seconds) => SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + nanos,
        Err(_) => SystemTime::UNIX_EPOCH - Duration::from_secs(stamp.tv_sec.unsigned_abs()) + nanos,
    }
}

impl std::fmt::Debug for Metadata {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metadata")
            .field("len", &self.len())
            .field("mode", &format_args!("{:#o}", self.mode()))
            .field("allocated", &self.allocated())
            .finish_non_exhaustive()
    }
}

/// Asks for the metadata of an open file, or of what a path names: the answer has a place of its
/// own, which does not move.
pub(crate) struct Asking {
    of: Of,
    answer: Vec<libc::statx>,
}

enum Of {
    Fd(Rc<OpenFile>),
    Path(Lent<CString>, i32),
}

impl Asking {
    pub(crate) fn about(fd: Rc<OpenFile>) -> Self {
        Asking {
            of: Of::Fd(fd),
            answer: Vec::with_capacity(1),
        }
    }

    /// Of a symbolic link itself, or of what it leads to.
    pub(crate) fn path(path: CString, follow: bool) -> Self {
        let flags = if follow { 0 } else { libc::AT_SYMLINK_NOFOLLOW };
        Asking {
            of: Of::Path(Lent::new(path), flags),
            answer: Vec::with_capacity(1),
        }
    }

    /// # Safety
    ///
    /// The operation has succeeded.
    pub(crate) unsafe fn answer(mut self) -> Metadata {
        // SAFETY: a successful statx fills the whole structure.
        unsafe { self.answer.set_len(1) };
        Metadata(self.answer[0])
    }
}

// SAFETY: the vector's one element and the path are on the heap; the descriptor is shared.
unsafe impl Payload for Asking {
    fn request(&mut self) -> Request {
        let (fd, path, flags) = match &mut self.of {
            Of::Fd(fd) => (fd.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH),
            Of::Path(path, flags) => (libc::AT_FDCWD, path.get_mut().as_ptr(), *flags),
        };
        Request::Stat {
            fd,
            path,
            flags,
            out: self.answer.as_mut_ptr(),
        }
    }
}
