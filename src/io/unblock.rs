//! Running a blocking call on a helper thread.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use futures::channel::oneshot;

use super::driver::Driver;
use super::helpers::Lane;
use crate::sync::budget;

/// Runs `job` on a helper thread and gives its value.
///
/// For calls that may block and have no asynchronous form: name resolution, `ioctl`s, libraries.
/// On a reactor it shares the pool of [`task::spawn_blocking`](crate::task::spawn_blocking), where
/// at most 64 calls run at once and more wait their turn; a driver that was made by hand has a pool
/// of its own. Not even 64 calls that never end keep files from their operations.
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
/// A dropped future does not stop the job; its value is dropped on the helper thread, where a panic
/// of its destructor is contained. The end of the driver does not wait for the job either.
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
/// # })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub async fn unblock<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    // A short job has ended before its result is looked for.
    budget::take().await;
    let (sender, receiver) = oneshot::channel();
    let helpers = Driver::current_core()?.helpers()?;
    helpers.run(Lane::Call, move || {
        let outcome = catch_unwind(AssertUnwindSafe(job));
        // Refused if the waiter has gone; the value is dropped here then.
        drop(sender.send(outcome));
    })?;
    match receiver.await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(panic)) => resume_unwind(panic),
        Err(_) => Err(io::Error::other("the job was dropped before it ran")),
    }
}
