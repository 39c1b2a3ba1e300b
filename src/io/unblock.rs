//! Running a blocking call on one of the driver's helper threads.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use futures::channel::oneshot;

use super::driver::Driver;
use crate::sync::budget;

/// Runs `job` on a helper thread of the OS thread's current driver and gives its value.
///
/// For calls that may block and have no asynchronous form: name resolution, `ioctl`s, libraries.
/// Helpers are few (see [`DriverConfig::blocking_threads`](super::DriverConfig::blocking_threads));
/// jobs beyond them queue.
///
/// # Errors
///
/// If no driver is entered, or no helper thread can be started.
///
/// # Panics
///
/// With `job`'s panic, on the awaiting task.
///
/// # Cancel safety
///
/// A dropped future does not stop the job; its value is dropped on the helper thread.
///
/// # Examples
///
/// ```
/// use std::thread;
/// use corespun::io;
///
/// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
/// let here = thread::current().id();
/// let there = io::unblock(|| thread::current().id()).await?;
/// assert_ne!(there, here);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?.unwrap()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub async fn unblock<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    // A short job has ended before its result is looked for.
    budget::take().await;
    let (sender, receiver) = oneshot::channel();
    Driver::current_core()?.run_blocking(Box::new(move || {
        let outcome = catch_unwind(AssertUnwindSafe(job));
        // Fails only if nobody waits any more.
        let _ = sender.send(outcome);
    }))?;
    match receiver.await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(panic)) => resume_unwind(panic),
        Err(_) => Err(io::Error::other(
            "the I/O driver was shut down before the job ran",
        )),
    }
}
