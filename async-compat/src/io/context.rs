//! Where an I/O object finds the driver that watches for an OS thread without one, and what it says
//! where there is none.

use std::io;

use corespun::io::{Driver, DriverHandle, NotWatched};

use crate::runtime::{context, shutdown_error};

/// The driver of the calling OS thread; `None` where the kernel refuses what it takes, and the first
/// wait will say so, or where the runtime is only entered.
///
/// # Panics
///
/// Outside of a runtime and of corespun's own reactors.
#[track_caller]
pub(crate) fn home() -> Option<DriverHandle> {
    let driver = Driver::current();
    match context::current_rc() {
        Ok(handle) => handle.check_io(),
        Err(error) if driver.is_none() => panic!("{error}"),
        Err(_) => {}
    }
    driver?.handle().ok()
}

/// What an operation says when there is nobody to watch for it: its runtime is gone.
pub(crate) fn gone(error: io::Error) -> io::Error {
    match NotWatched::of(&error) {
        Some(_) => shutdown_error(),
        None => error,
    }
}

/// # Panics
///
/// With debug assertions, if the socket is blocking: one that is would stop everything on its core.
#[track_caller]
pub(crate) fn check_nonblocking(fd: &impl std::os::fd::AsFd) {
    let nonblocking = socket2::SockRef::from(fd).nonblocking();
    debug_assert!(
        nonblocking.unwrap_or(true),
        "Registering a blocking socket with the tokio runtime is unsupported. \
         Call `set_nonblocking(true)` on it first: it would stop everything on its core"
    );
}
