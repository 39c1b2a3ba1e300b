//! Opening files: the options, and the operation that owns the path while it runs.

use std::ffi::CString;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::file::File;
use crate::io::driver::Driver;
use crate::io::op::{Payload, Request};

/// How to open a file; as [`std::fs::OpenOptions`], with direct I/O besides.
///
/// # Examples
///
/// ```no_run
/// use corespun::fs::OpenOptions;
///
/// # async fn f() -> std::io::Result<()> {
/// let disk = OpenOptions::new().read(true).write(true).direct(true).open("disk.img").await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct OpenOptions {
    read: bool,
    write: bool,
    create: bool,
    create_new: bool,
    truncate: bool,
    direct: bool,
    data_sync: bool,
    mode: u32,
    custom_flags: i32,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl OpenOptions {
    /// Nothing is permitted yet; a created file gets mode 0o666 less the umask.
    pub fn new() -> Self {
        OpenOptions {
            read: false,
            write: false,
            create: false,
            create_new: false,
            truncate: false,
            direct: false,
            data_sync: false,
            mode: 0o666,
            custom_flags: 0,
        }
    }

    /// Permits reading.
    pub fn read(&mut self, yes: bool) -> &mut Self {
        self.read = yes;
        self
    }

    /// Permits writing.
    pub fn write(&mut self, yes: bool) -> &mut Self {
        self.write = yes;
        self
    }

    /// Creates the file if it does not exist. Needs `write`.
    pub fn create(&mut self, yes: bool) -> &mut Self {
        self.create = yes;
        self
    }

    /// Creates the file and fails if it exists. Needs `write`.
    pub fn create_new(&mut self, yes: bool) -> &mut Self {
        self.create_new = yes;
        self
    }

    /// Cuts an existing file to length 0. Needs `write`.
    pub fn truncate(&mut self, yes: bool) -> &mut Self {
        self.truncate = yes;
        self
    }

    /// Bypasses the page cache (`O_DIRECT`): addresses, offsets and lengths must then be aligned to
    /// the device's logical block, see [`AlignedBuf`](crate::io::AlignedBuf).
    pub fn direct(&mut self, yes: bool) -> &mut Self {
        self.direct = yes;
        self
    }

    /// Makes every write durable before it completes (`O_DSYNC`).
    pub fn data_sync(&mut self, yes: bool) -> &mut Self {
        self.data_sync = yes;
        self
    }

    /// The permission bits of a created file, before the umask.
    pub fn mode(&mut self, mode: u32) -> &mut Self {
        self.mode = mode;
        self
    }

    /// Further `O_` flags of `open(2)`; access-mode bits are ignored.
    pub fn custom_flags(&mut self, flags: i32) -> &mut Self {
        self.custom_flags = flags;
        self
    }

    /// Opens the file at `path`. The descriptor is closed on exec.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a combination std would refuse too, or a path with a zero byte; an error
    /// if no driver is entered; otherwise those of `open(2)`.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, a descriptor opened nevertheless is closed.
    pub async fn open(&self, path: impl AsRef<Path>) -> io::Result<File> {
        let flags = self.flags()?;
        let path = CString::new(path.as_ref().as_os_str().as_bytes())?;
        let core = Driver::current_core()?;
        let opening = Opening {
            path,
            flags,
            mode: self.mode,
        };
        let (completion, _) = core.submit(opening).map_err(|(error, _)| error)?.await;
        let fd = completion.into_result()?;
        // SAFETY: the kernel has just given us this descriptor.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        Ok(File::on(
            core,
            fd,
            self.direct || self.custom_flags & libc::O_DIRECT != 0,
        ))
    }

    fn flags(&self) -> io::Result<i32> {
        let access = match (self.read, self.write) {
            (true, true) => libc::O_RDWR,
            (true, false) => libc::O_RDONLY,
            (false, true) => libc::O_WRONLY,
            (false, false) => return Err(invalid("to open a file, permit read or write")),
        };
        if !self.write && (self.create || self.create_new || self.truncate) {
            return Err(invalid("to create or truncate a file, permit write"));
        }
        let creation = match (self.create_new, self.create, self.truncate) {
            (true, ..) => libc::O_CREAT | libc::O_EXCL,
            (false, create, truncate) => {
                flag(create, libc::O_CREAT) | flag(truncate, libc::O_TRUNC)
            }
        };
        Ok(access
            | creation
            | flag(self.direct, libc::O_DIRECT)
            | flag(self.data_sync, libc::O_DSYNC)
            | (self.custom_flags & !libc::O_ACCMODE)
            | libc::O_CLOEXEC
            | libc::O_LARGEFILE)
    }
}

fn flag(set: bool, bits: i32) -> i32 {
    if set { bits } else { 0 }
}

fn invalid(message: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

struct Opening {
    path: CString,
    flags: i32,
    mode: u32,
}

// SAFETY: a CString's bytes are on the heap.
unsafe impl Payload for Opening {
    fn request(&mut self) -> Request {
        Request::Open {
            path: self.path.as_ptr(),
            flags: self.flags,
            mode: self.mode,
        }
    }

    fn abandoned(self: Box<Self>, result: i32) {
        if result >= 0 {
            // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
            drop(unsafe { OwnedFd::from_raw_fd(result) });
        }
    }
}
