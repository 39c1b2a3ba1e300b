//! Stalls: a callback that held its thread for longer than the library's limit.
//!
//! Found by the thread itself, with the clock read before and after each
//! callback, and reported once, when the callback has returned.

use std::fmt;
use std::time::Duration;

use super::local::Local;
use super::panic::{contain, discard};

pub(super) type StallHook = Box<dyn Fn(&Stall<'_>) + Send + Sync>;

/// What held a thread.
///
/// # Examples
///
/// ```
/// use corespun::thread::StallSource;
///
/// // As it is written in the log.
/// assert_eq!(StallSource::Poller.to_string(), "poller");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StallSource {
    /// A message's closure.
    Message,
    /// A poller's callback.
    Poller,
    /// One poll of a task.
    Task,
}

impl fmt::Display for StallSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StallSource::Message => "message",
            StallSource::Poller => "poller",
            StallSource::Task => "task",
        })
    }
}

/// A callback that held its thread for too long, as the library's stall hook
/// sees it.
///
/// # Examples
///
/// ```
/// use std::{sync::mpsc, time::Duration};
/// use corespun::thread::{Poller, ThreadLib};
///
/// let (clock, hand) = corespun::clock::Clock::virtual_at(1_000_000);
/// let (sender, reports) = mpsc::channel();
/// let library = ThreadLib::builder()
///     .clock(clock)
///     .stall_limit(Duration::from_micros(50))
///     .stall_hook(move |stall| {
///         let report = format!("{} {} held {}", stall.source, stall.name, stall.thread);
///         sender.send((report, stall.held)).unwrap();
///     })
///     .build();
/// let mut runner = library.thread().name("disk").build()?.attach();
/// let poller = runner.enter(|| {
///     Poller::builder().name("scan").register(move || _ = hand.advance(70))
/// })?;
/// runner.poll(0, 0);
/// assert_eq!(reports.recv()?, ("poller scan held disk".to_owned(), Duration::from_micros(70)));
/// # drop(poller);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Stall<'a> {
    /// The name of the thread that was held.
    pub thread: &'a str,
    /// What held it.
    pub source: StallSource,
    /// The name and spawn location of the task, the name of the poller, or the
    /// type of the message's closure, which says where it was written.
    pub name: &'a str,
    /// For how long.
    pub held: Duration,
}

impl Local {
    /// Reports a callback that took `ticks`, if that is too long.
    #[inline]
    pub(crate) fn watch_stall(
        &self,
        source: StallSource,
        ticks: u64,
        name: impl FnOnce() -> String,
    ) {
        if self.stall_limit > 0 && ticks >= self.stall_limit {
            self.report_stall(source, ticks, &name());
        }
    }

    #[cold]
    fn report_stall(&self, source: StallSource, ticks: u64, name: &str) {
        let library = &self.shared.library;
        let stall = Stall {
            thread: self.shared.name(),
            source,
            name,
            held: library.clock.duration_from(ticks),
        };
        tracing::warn!(thread = stall.thread, held = ?stall.held, "{source} {name} held its thread");
        if let Some(hook) = &library.stall_hook
            && let Err(payload) = contain(|| hook(&stall))
        {
            discard(payload);
        }
    }
}
