//! What the file system says about an open file.

use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use crate::io::op::{Payload, Request};

/// Facts about a file, as of the moment it was asked. A plain value.
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
        let stamp = &self.0.stx_mtime;
        let nanos = Duration::from_nanos(stamp.tv_nsec.into());
        match u64::try_from(stamp.tv_sec) {
            Ok(seconds) => SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + nanos,
            Err(_) => {
                SystemTime::UNIX_EPOCH - Duration::from_secs(stamp.tv_sec.unsigned_abs()) + nanos
            }
        }
    }

    fn is(&self, kind: u32) -> bool {
        self.mode() & libc::S_IFMT == kind
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

/// The operation: the answer has a place of its own, which does not move.
pub(crate) struct Asking {
    fd: Rc<OwnedFd>,
    answer: Vec<libc::statx>,
}

impl Asking {
    pub(crate) fn new(fd: Rc<OwnedFd>) -> Self {
        Asking {
            fd,
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

// SAFETY: the vector's one element is on the heap; the descriptor is shared.
unsafe impl Payload for Asking {
    fn request(&mut self) -> Request {
        Request::Stat {
            fd: self.fd.as_raw_fd(),
            out: self.answer.as_mut_ptr(),
        }
    }
}
