//! Calls that can only block, for the parts of this crate that are made of them.

use std::io;

/// Runs `f` on a helper thread.
pub(crate) async fn asyncify<T: Send + 'static>(
    f: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match crate::task::spawn_blocking(f).await {
        Ok(done) => done,
        Err(_) => Err(io::Error::other("background task failed")),
    }
}
