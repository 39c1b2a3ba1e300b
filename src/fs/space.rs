//! What a `File` takes up: that it is durable, how long it is, where it has holes.

use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;

use super::file::{File, check_range};
use crate::io::fixed::OpenFile;
use crate::io::op::{Payload, Request};
use crate::sync::budget;

impl File {
    /// Makes data and metadata durable (`fsync`).
    ///
    /// # Errors
    ///
    /// Those of `fsync(2)`: data written before may be lost.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::fs::File;
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let file = File::from_std(tempfile::tempfile()?)?;
    /// file.write_all_at(b"committed".to_vec(), 0).await.0?;
    /// // Only now may the client be told.
    /// assert!(file.sync_all().await.is_ok());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub async fn sync_all(&self) -> io::Result<()> {
        self.control(|fd| Request::Sync {
            fd,
            data_only: false,
        })
        .await
    }

    /// Makes data durable, and the metadata needed to read it (`fdatasync`).
    ///
    /// # Errors
    ///
    /// Those of `fdatasync(2)`: data written before may be lost.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::fs::File;
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let file = File::from_std(tempfile::tempfile()?)?;
    /// file.set_len(4096).await?;
    /// file.write_all_at(b"journal entry".to_vec(), 0).await.0?;
    /// // The time of the change may be lost, the entry not.
    /// assert!(file.sync_data().await.is_ok());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub async fn sync_data(&self) -> io::Result<()> {
        self.control(|fd| Request::Sync {
            fd,
            data_only: true,
        })
        .await
    }

    /// Has the kernel begin to read so many bytes from `offset` on into the page cache
    /// (`POSIX_FADV_WILLNEED`), at most 1 GiB. A wish: what the file does not have, or memory has no
    /// room for, is not read.
    ///
    /// # Errors
    ///
    /// Those of `posix_fadvise(2)`; `InvalidInput` if the offset is not a file offset.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::fs::File;
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let file = File::from_std(tempfile::tempfile()?)?;
    /// file.set_len(1 << 20).await?;
    /// file.will_need(0, 1 << 20).await?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub async fn will_need(&self, offset: u64, len: u64) -> io::Result<()> {
        check_range(offset, len).await?;
        let len = len.min(1 << 30) as u32;
        // To the kernel no length is all of the file.
        if len == 0 {
            budget::take().await;
            return Ok(());
        }
        self.control(|fd| Request::WillNeed { fd, offset, len })
            .await
    }

    /// Allocates space for `len` bytes from `offset` on; grows the file if it ends before.
    ///
    /// # Errors
    ///
    /// `Unsupported` if the file system cannot (write zeroes instead); otherwise those of
    /// `fallocate(2)`.
    pub async fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.fallocate(0, offset, len).await
    }

    /// Frees the space of `len` bytes from `offset` on; they read as zero and the length stays.
    ///
    /// # Errors
    ///
    /// As [`allocate`](Self::allocate).
    ///
    /// # Examples
    ///
    /// What a trim does:
    ///
    /// ```
    /// use std::io::ErrorKind;
    /// use corespun::fs::File;
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let file = File::from_std(tempfile::tempfile()?)?;
    /// file.write_all_at(vec![1; 8192], 0).await.0?;
    /// match file.punch_hole(0, 4096).await {
    ///     Ok(()) => {
    ///         let (read, block) = file.read_exact_at(vec![1; 8192], 0).await;
    ///         read?;
    ///         assert_eq!((block[0], block[4096]), (0, 1));
    ///     }
    ///     Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported),
    /// }
    /// assert_eq!(file.len().await?, 8192);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub async fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.fallocate(
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            offset,
            len,
        )
        .await
    }

    /// Makes `len` bytes from `offset` on read as zero, keeping them allocated; the length stays.
    ///
    /// # Errors
    ///
    /// As [`allocate`](Self::allocate).
    ///
    /// # Examples
    ///
    /// With the way out where the file system has no such thing:
    ///
    /// ```
    /// use std::io::ErrorKind;
    /// use corespun::fs::File;
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let file = File::from_std(tempfile::tempfile()?)?;
    /// file.write_all_at(vec![1; 4096], 0).await.0?;
    /// match file.zero_range(0, 4096).await {
    ///     Err(error) if error.kind() == ErrorKind::Unsupported => {
    ///         file.write_all_at(vec![0; 4096], 0).await.0?;
    ///     }
    ///     result => result?,
    /// }
    /// let (read, block) = file.read_exact_at(vec![1; 4096], 0).await;
    /// read?;
    /// assert!(block.iter().all(|&byte| byte == 0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub async fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        self.fallocate(
            libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
            offset,
            len,
        )
        .await
    }

    /// The length in bytes, of a block device too.
    ///
    /// # Errors
    ///
    /// Those of `statx(2)`, or of the device.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::fs::File;
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let file = File::from_std(tempfile::tempfile()?)?;
    /// assert_eq!(file.len().await?, 0);
    /// file.write_all_at(vec![0; 10], 90).await.0?;
    /// assert_eq!(file.len().await?, 100);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub async fn len(&self) -> io::Result<u64> {
        let metadata = self.metadata().await?;
        if metadata.is_block_device() {
            // A device answers from memory.
            let mut len = 0;
            // SAFETY: the descriptor is open, and the size goes to a variable that lives here.
            unsafe { block_device_len(self.fd().as_raw_fd(), &mut len) }?;
            return Ok(len);
        }
        Ok(metadata.len())
    }

    /// Cuts or grows the file to `len` bytes; what is added reads as zero.
    ///
    /// # Errors
    ///
    /// Those of `ftruncate(2)`; `InvalidInput` if `len` is not a file offset.
    pub async fn set_len(&self, len: u64) -> io::Result<()> {
        check_range(len, 0).await?;
        self.control(|fd| Request::Truncate { fd, len }).await
    }

    async fn fallocate(&self, mode: i32, offset: u64, len: u64) -> io::Result<()> {
        check_range(offset, len).await?;
        self.control(|fd| Request::Allocate {
            fd,
            mode,
            offset,
            len,
        })
        .await
        .map_err(|error| match error.raw_os_error() {
            Some(libc::EOPNOTSUPP) => io::Error::new(
                io::ErrorKind::Unsupported,
                "the file system cannot allocate, punch or zero this range: write zeroes",
            ),
            _ => error,
        })
    }

    /// Runs an operation that needs nothing but the descriptor.
    async fn control(&self, request: impl FnOnce(i32) -> Request) -> io::Result<()> {
        let request = request(self.fd().as_raw_fd());
        let fd = self.fd().clone();
        self.run(Control { fd, request }).await.0.map(drop)
    }
}

nix::ioctl_read! {
    /// `BLKGETSIZE64`, whose number is made as if it gave a `size_t`.
    block_device_len, 0x12, 114, u64
}

struct Control {
    fd: Rc<OpenFile>,
    request: Request,
}

// SAFETY: only the descriptor is referred to, and `fd` holds it open.
unsafe impl Payload for Control {
    fn request(&mut self) -> Request {
        debug_assert!(self.fd.as_raw_fd() >= 0);
        self.request
    }
}
