//! What the tests share, a room for each kind of test:
//!
//! | room | for tests of |
//! |---|---|
//! | [`threads`] | threads that are polled by hand on a virtual clock |
//! | [`reactors`] | apps with real reactors |
//! | [`io`] | the I/O driver, on every back-end this machine permits |
//! | [`process`] | what a process has one of, in a process of its own |
//! | [`nbd`] | the example `nbd_target`, as a child process |
//! | [`log`] | what is logged |
//! | [`stress`] | random operations for a set time |
//! | [`random`] | random programs, and the small one that fails |
//!
//! A panic that the library contains fails the test, unless it takes note of it
//! ([`threads::Panics`]).

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

pub mod io;
pub mod log;
pub mod nbd;
pub mod process;
pub mod random;
pub mod reactors;
pub mod stress;
pub mod threads;

/// Longest wait for anything. Only a failing test ever waits that long: it is far beyond what a
/// loaded machine needs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `body` on an OS thread of its own and fails if it does not return: for what might block for
/// ever.
#[track_caller]
pub fn must_return<T: Send + 'static>(what: &str, body: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, told) = channel();
    let thread = std::thread::spawn(move || {
        let value = body();
        let _ = tell.send(());
        value
    });
    if told.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
        panic!("this never returned: {what}");
    }
    match thread.join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
