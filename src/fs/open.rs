//! Opening files: the options, and the operation that owns the path while it runs.

use std::ffi::CString;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::uio::preadv;

use super::file::{File, run};
use super::path::c_path;
use crate::io::Lent;
use crate::io::driver::Driver;
use crate::io::op::{Payload, Request};
use crate::sync::budget;

/// How to open a file; as [`std::fs::OpenOptions`], with direct I/O besides.
///
/// # Examples
///
/// ```
/// use corespun::fs::OpenOptions;
///
/// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
/// let dir = tempfile::tempdir()?;
/// let path = dir.path().join("disk.img");
/// let disk = OpenOptions::new().read(true).write(true).create_new(true).open(&path).await?;
/// disk.set_len(1 << 20).await?;
/// assert_eq!(disk.len().await?, 1 << 20);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
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
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::ErrorKind;
    /// use corespun::fs::OpenOptions;
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let nothing_permitted = OpenOptions::new().open("/dev/null").await;
    /// assert_eq!(nothing_permitted.unwrap_err().kind(), ErrorKind::InvalidInput);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::ErrorKind;
    /// use corespun::{fs::OpenOptions, io::AlignedBuf};
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let dir = tempfile::tempdir()?;
    /// let path = dir.path().join("disk.img");
    /// std::fs::write(&path, [7; 4096])?;
    /// match OpenOptions::new().read(true).direct(true).open(&path).await {
    ///     Ok(disk) => {
    ///         assert!(disk.is_direct());
    ///         let (read, block) = disk.read_at(AlignedBuf::zeroed(4096, 4096), 0).await;
    ///         assert_eq!((read?, block[0]), (4096, 7));
    ///     }
    ///     // Some file systems have no direct I/O.
    ///     Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidInput),
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::fs::OpenOptions;
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let dir = tempfile::tempdir()?;
    /// let path = dir.path().join("link");
    /// std::os::unix::fs::symlink("/etc", &path)?;
    /// // Not through a symbolic link.
    /// let mut options = OpenOptions::new();
    /// options.read(true).custom_flags(libc::O_NOFOLLOW);
    /// assert_eq!(options.open(&path).await.unwrap_err().raw_os_error(), Some(libc::ELOOP));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn custom_flags(&mut self, flags: i32) -> &mut Self {
        self.custom_flags = flags;
        self
    }

    /// Opens the file at `path`. The descriptor is closed on exec.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a combination std would refuse too, or a path with a zero byte;
    /// `NotSeekable` for a FIFO, a terminal and whatever else has no offsets (wrap its descriptor in
    /// a [`PollFd`](crate::io::PollFd)); an error if no driver is entered; otherwise those of
    /// `open(2)`, for a FIFO as if `O_NONBLOCK` were given.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, a descriptor opened nevertheless is closed.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::ErrorKind;
    /// use corespun::fs::OpenOptions;
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let mut options = OpenOptions::new();
    /// options.read(true).write(true);
    /// // The options can be used again.
    /// let missing = options.open("/no/such/file").await;
    /// assert_eq!(missing.unwrap_err().kind(), ErrorKind::NotFound);
    /// assert!(options.open("/dev/null").await.is_ok());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub async fn open(&self, path: impl AsRef<Path>) -> io::Result<File> {
        budget::take().await;
        let flags = self.flags()?;
        let path = Lent::new(c_path(path.as_ref())?);
        let core = Driver::current_core()?;
        let mut opening = Opening {
            path,
            // A FIFO would wait for its peer, maybe for ever.
            flags: flags | libc::O_NONBLOCK,
            mode: self.mode,
        };
        let fd = loop {
            let (result, back) = run(&core, opening).await;
            match result {
                // SAFETY: the kernel has just given us this descriptor.
                Ok(fd) => break unsafe { OwnedFd::from_raw_fd(fd as i32) },
                // Another process holds a lease on the file, which the kernel ends in time.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && back.flags != flags => {
                    opening = Opening { flags, ..back };
                }
                Err(error) => return Err(error),
            }
        };
        if flags & libc::O_PATH == 0 {
            must_be_seekable(&fd)?;
            if flags & libc::O_NONBLOCK == 0 {
                let flags = OFlag::from_bits_retain(flags);
                fcntl(&fd, FcntlArg::F_SETFL(flags))?;
            }
        }
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

/// Refuses what has no offsets: epoll's helpers could not read it, and the ring would wait for data
/// without end.
pub(super) fn must_be_seekable(fd: &OwnedFd) -> io::Result<()> {
    // A read of no bytes at an offset asks only that.
    match preadv(fd, &mut [], 0) {
        Err(Errno::ESPIPE) => Err(io::Error::new(
            io::ErrorKind::NotSeekable,
            "a pipe, FIFO, socket or terminal has no offsets to read or write at: use io::PollFd",
        )),
        _ => Ok(()),
    }
}

fn flag(set: bool, bits: i32) -> i32 {
    if set { bits } else { 0 }
}

fn invalid(message: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

struct Opening {
    path: Lent<CString>,
    flags: i32,
    mode: u32,
}

// SAFETY: a CString's bytes are on the heap.
unsafe impl Payload for Opening {
    fn request(&mut self) -> Request {
        Request::Open {
            path: self.path.get_mut().as_ptr(),
            flags: self.flags,
            mode: self.mode,
        }
    }

    fn abandoned(self: Box<Self>, result: i32) {
        if result >= 0 {
            // SAFETY: the kernel has just given us this descriptor, and it has no other owner.
            drop(unsafe { OwnedFd::from_raw_fd(result) });
        }
    }
}
