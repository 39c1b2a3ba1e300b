//! What ends the sleep of a driver.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};

/// Ends a [`park`](super::Driver::park) of a driver, from any OS thread: an eventfd.
///
/// Clones name the same eventfd, which lives as long as one of them or the driver does.
///
/// # Examples
///
/// ```
/// use corespun::io::{Driver, DriverConfig};
///
/// let driver = Driver::new(&DriverConfig::new())?;
/// let wake = driver.wake_fd();
/// let other = std::thread::spawn(move || wake.wake());
/// // Until the other thread wakes it.
/// driver.park(None);
/// other.join().unwrap();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct WakeFd(Arc<EventFd>);

impl WakeFd {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(WakeFd(Arc::new(EventFd::from_flags(flags)?)))
    }

    /// Ends the sleep that the driver is in, or else its next one. A system call, that cannot fail;
    /// [`notify::Sleeper`](crate::notify::Sleeper) spares it while the driver is awake.
    pub fn wake(&self) {
        // Fails only when the counter is full, and then it is readable.
        let _ = self.0.write(1);
    }

    /// Takes back the wakes there were; false if there were none.
    pub(crate) fn drain(&self) -> bool {
        self.0.read().is_ok()
    }
}

impl AsFd for WakeFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for WakeFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
