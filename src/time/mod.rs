//! Timers as futures.
//!
//! Every sleep, timeout and interval of a thread is an entry of the thread's
//! one timer queue, beside its timed pollers: it costs no allocation, and
//! dropping it takes the entry out at once. Deadlines are ticks of the library's
//! [`Clock`](crate::clock::Clock); in poll mode a timer is late by the rest of
//! one poll, a fraction of a microsecond.

mod interval;
mod sleep;
mod timeout;

pub use interval::{Interval, MissedTickBehavior, interval, interval_at};
pub use sleep::{Sleep, sleep, sleep_until};
pub use timeout::{Elapsed, Timeout, timeout, timeout_at};

use crate::thread::local::Local;

/// The current tick of the current SpdkThread's clock.
///
/// # Panics
///
/// When no SpdkThread is current; ask [`ThreadLib::clock`] then.
///
/// [`ThreadLib::clock`]: crate::thread::ThreadLib::clock
///
/// # Examples
///
/// ```
/// let (clock, hand) = corespun::clock::Clock::virtual_at(1_000_000);
/// let library = corespun::thread::ThreadLib::builder().clock(clock).build();
/// let mut runner = library.thread().build()?.attach();
/// hand.advance(7);
/// assert_eq!(runner.enter(corespun::time::now), 7);
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[track_caller]
pub fn now() -> u64 {
    match Local::with_current(|local| local.shared.library.clock.now()) {
        Some(tick) => tick,
        None => panic!(
            "time::now needs a current SpdkThread: elsewhere, read the clock of the ThreadLib"
        ),
    }
}
