//! Where an I/O object finds the driver that watches for an OS thread without one, and what it says
//! where there is none.

use std::io;
use std::os::fd::AsFd;

use corespun::io::{Driver, Interest, NotWatched, SharedFd};

use crate::runtime::{context, shutdown_error};

/// Takes a descriptor, to be watched by the driver of whichever OS thread polls it; on one that has
/// none, by one of the runtime's drivers, or that of this one. It belongs to the runtime, and waits for
/// nothing once that has ended.
///
/// # Errors
///
/// What is taken, if the runtime is shut down.
///
/// # Panics
///
/// Outside of a runtime and of corespun's own reactors.
#[track_caller]
pub(crate) fn share<T: AsFd>(io: T, interest: Interest) -> Result<SharedFd<T>, T> {
    let driver = Driver::current();
    let runtime = match context::current_rc() {
        Ok(handle) => {
            handle.check_io();
            if handle.is_shut_down() {
                return Err(io);
            }
            Some(handle)
        }
        Err(error) if driver.is_none() => panic!("{error}"),
        Err(_) => None,
    };
    Ok(match (runtime, driver.map(|driver| driver.handle())) {
        // Ends with the runtime, as the driver of an OS thread that was in `block_on` does not.
        (Some(handle), _) => SharedFd::bound_to(io, interest, handle.inner.home.clone()),
        (None, Some(Ok(driver))) => SharedFd::with_driver(io, interest, driver),
        // The kernel refuses what it takes: the first wait will say so.
        _ => SharedFd::new(io, interest),
    })
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
pub(crate) fn check_nonblocking(fd: &impl AsFd) {
    let nonblocking = socket2::SockRef::from(fd).nonblocking();
    debug_assert!(
        nonblocking.unwrap_or(true),
        "Registering a blocking socket with the tokio runtime is unsupported. \
         Call `set_nonblocking(true)` on it first: it would stop everything on its core"
    );
}
