//! Ctrl-C.

use std::io;

use super::unix::{SignalKind, signal};

/// Waits for the next Ctrl-C (SIGINT), counted from the first poll.
///
/// From then on Ctrl-C does not end the process any more, also when this future is gone.
///
/// # Errors
///
/// Those of [`signal`].
///
/// # Panics
///
/// Outside of a runtime.
///
/// # Examples
///
/// ```no_run
/// # use corespun_compat as tokio;
/// # async fn serve() {}
/// # async fn run() -> std::io::Result<()> {
/// tokio::select! {
///     _ = serve() => {}
///     pressed = tokio::signal::ctrl_c() => pressed?,
/// }
/// # Ok(()) }
/// ```
pub async fn ctrl_c() -> io::Result<()> {
    signal(SignalKind::interrupt())?.recv().await;
    Ok(())
}
