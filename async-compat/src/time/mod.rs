//! tokio's `time`: timers, limits on time, and a clock that tests can stop.
//!
//! A timer is one in the queue of the SpdkThread that polls it first, and moves with its
//! task. No timer thread, no wheel: it is due to the microsecond, where tokio rounds up to
//! the millisecond. Making and dropping one costs O(log n) of that thread's timers.
//! Polled on an OS thread that has no SpdkThread (a foreign executor inside of
//! [`Handle::enter`](crate::runtime::Handle::enter)), a timer costs a task on its runtime.
//!
//! With the feature `test-util`, a `current_thread` runtime has a clock that
//! [`pause`] stops, [`advance`] moves and [`resume`] starts; while it stands and nothing is
//! to be done, it goes on to the next timer by itself.

mod clock;
pub mod error;
mod instant;
mod interval;
mod sleep;
mod timeout;

#[doc(no_inline)]
pub use std::time::Duration;

#[cfg(feature = "rt")]
pub(crate) use clock::Clock;
#[cfg(feature = "test-util")]
pub use clock::{advance, pause, resume};
pub use instant::Instant;
pub use interval::{Interval, MissedTickBehavior, interval, interval_at};
pub use sleep::{Sleep, sleep, sleep_until};
pub use timeout::{Timeout, timeout, timeout_at};
