//! Where an I/O object finds the driver that watches for an OS thread without one, and what it says
//! where there is none.

use std::io;

use corespun::io::{Driver, DriverHandle};

/// The driver of the runtime that the calling OS thread is in; `None` where the kernel refuses what it
/// takes, and the first wait will say so.
///
/// # Panics
///
/// Outside of a runtime.
#[track_caller]
pub(crate) fn home() -> Option<DriverHandle> {
    match Driver::current() {
        Some(driver) => driver.handle().ok(),
        None => panic!(
            "there is no reactor running, must be called from the context of a Tokio 1.x runtime"
        ),
    }
}

/// What an operation says when the driver that it waited for has ended.
#[cold]
pub(crate) fn gone(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        None if error.to_string().contains("I/O driver") => io::Error::other(
            "A Tokio 1.x context was found, but it is being shutdown.",
        ),
        _ => error,
    }
}

/// # Panics
///
/// If the socket is blocking: one that is would stop everything on its core.
#[track_caller]
pub(crate) fn check_nonblocking(fd: &impl std::os::fd::AsFd) {
    let nonblocking = socket2::SockRef::from(fd).nonblocking();
    assert!(
        nonblocking.unwrap_or(true),
        "Registering a blocking socket with the tokio runtime is unsupported. \
         Call `set_nonblocking(true)` on it first: it would stop everything on its core"
    );
}
