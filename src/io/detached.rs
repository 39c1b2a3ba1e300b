//! File operations that belong to no task: started on one OS thread, waited for on any.
//!
//! The operation owns its buffer and a share of the file, and the driver that runs it keeps both until
//! it is done, as of one whose future was dropped. Its result goes to a place that the waiter shares.

use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;

use super::config::Backend;
use super::driver::Driver;
use super::fixed::Known;
use super::op::{Payload, Request, transfer_len};

/// The position that the open file has, and moves.
const CURRENT: u64 = u64::MAX;

/// What is done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileAction {
    /// Fills the buffer's length from the file's own position, which moves on.
    Read,
    /// Writes the buffer at the file's own position, which moves on, or at its end if it was opened to
    /// append.
    Write,
    /// As `fsync(2)`.
    SyncAll,
    /// As `fdatasync(2)`.
    SyncData,
}

/// A file operation that runs by itself; see [`FileOp::start`]. Gives how many bytes were moved, and the
/// buffer.
///
/// Dropped, the operation still takes effect.
///
/// # Examples
///
/// ```
/// use std::{io::Write, sync::Arc};
/// use corespun::io::{FileAction, FileOp};
///
/// let mut file = tempfile::tempfile()?;
/// file.write_all(b"hello")?;
/// std::io::Seek::rewind(&mut file)?;
/// let file = Arc::new(file);
/// # corespun::app::App::builder().handle_signals(false).block_on(async move |_app| {
/// // Refused where the driver does not run on io_uring.
/// if let Ok(read) = FileOp::start(FileAction::Read, &file, vec![0; 64]) {
///     let (count, buf) = read.await;
///     assert_eq!(&buf[..count?], b"hello");
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "it runs without being awaited, but its result is lost"]
pub struct FileOp {
    place: Arc<ResultSlot>,
}

#[derive(Default)]
struct ResultSlot {
    result: Mutex<Option<(i32, Vec<u8>)>>,
    waiter: AtomicWaker,
}

struct Running {
    action: FileAction,
    file: Arc<File>,
    buf: Vec<u8>,
    place: Arc<ResultSlot>,
}

// SAFETY: the buffer's memory does not move with the `Vec`, which is not touched until the completion;
// the shared file stays open.
unsafe impl Payload for Running {
    fn request(&mut self) -> Request {
        let fd = self.file.as_raw_fd();
        match self.action {
            FileAction::Read => Request::Read {
                fd,
                ptr: self.buf.as_mut_ptr(),
                len: transfer_len(self.buf.len()),
                offset: CURRENT,
                direct: false,
                known: Known::default(),
            },
            FileAction::Write => Request::Write {
                fd,
                ptr: self.buf.as_ptr(),
                len: transfer_len(self.buf.len()),
                offset: CURRENT,
                direct: false,
                known: Known::default(),
            },
            FileAction::SyncAll | FileAction::SyncData => Request::Sync {
                fd,
                data_only: self.action == FileAction::SyncData,
            },
        }
    }

    fn abandoned(self: Box<Self>, result: i32) {
        let Running {
            file, buf, place, ..
        } = *self;
        // The waiter may count on being the last to have the file.
        drop(file);
        let mut slot = place.result.lock().unwrap_or_else(PoisonError::into_inner);
        *slot = Some((result, buf));
        drop(slot);
        place.waiter.wake();
    }
}

impl FileOp {
    /// Starts `action` on the driver of this OS thread, if that runs on io_uring.
    ///
    /// For files that end by themselves: one of a terminal or a pipe would hold up the end of the
    /// driver.
    ///
    /// # Errors
    ///
    /// The buffer comes back where there is no such driver: do it on a helper thread.
    pub fn start(
        action: FileAction,
        file: &Arc<File>,
        buf: Vec<u8>,
    ) -> Result<FileOp, (io::Error, Vec<u8>)> {
        let driver = match Driver::current() {
            Some(driver) if driver.backend() == Backend::IoUring => driver,
            _ => return Err((io::ErrorKind::Unsupported.into(), buf)),
        };
        let place = Arc::new(ResultSlot::default());
        let running = Running {
            action,
            file: file.clone(),
            buf,
            place: place.clone(),
        };
        match driver.core().submit(running) {
            // From now on it is the driver's.
            Ok(op) => {
                drop(op);
                Ok(FileOp { place })
            }
            Err((error, running)) => Err((error, running.buf)),
        }
    }
}

impl Future for FileOp {
    type Output = (io::Result<usize>, Vec<u8>);

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.place.waiter.register(cx.waker());
        let result = self
            .place
            .result
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match result {
            None => Poll::Pending,
            Some((result, buf)) => {
                let count =
                    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
                Poll::Ready((count, buf))
            }
        }
    }
}

impl std::fmt::Debug for FileOp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileOp").finish_non_exhaustive()
    }
}
