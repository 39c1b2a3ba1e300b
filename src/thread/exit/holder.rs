//! The names of what keeps an exiting thread.

use std::fmt;

/// How many of those that hold a thread a log line names.
const MOST_NAMED: usize = 32;

/// Something that keeps an exiting thread from reading EXITED.
///
/// # Examples
///
/// Says by its text what an operator needs to know:
///
/// ```
/// use corespun::thread::{ExitHolder, Poller, ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let poller = runner.enter(|| Poller::builder().name("link watch").register(|| false))?;
/// let exit = runner.exit();
/// runner.poll(0, 0);
/// let holders = runner.exit_holders();
/// assert_eq!(holders, [ExitHolder::Poller("link watch".to_owned())]);
/// assert_eq!(holders[0].to_string(), "poller link watch");
/// # drop((poller, exit));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExitHolder {
    /// A registered poller, by name.
    Poller(String),
    /// A live task, by name and spawn location.
    Task(String),
    /// Messages or woken tasks that have not run yet.
    Messages,
    /// An io_channel that is open or waits to be destroyed, by device name.
    Channel(String),
    /// A walk over the threads that was started here and is under way.
    ThreadWalk,
    /// A walk over the channels of a device, by name, started here.
    ChannelWalk(String),
    /// A device, by name, that this thread unregistered and that still has
    /// channels or walks.
    Unregister(String),
}

/// The text of the first few of them.
pub(super) fn named(holders: &[ExitHolder]) -> String {
    let mut text = String::new();
    for holder in holders.iter().take(MOST_NAMED) {
        let comma = if text.is_empty() { "" } else { ", " };
        text += &format!("{comma}{holder}");
    }
    match holders.len().checked_sub(MOST_NAMED) {
        None | Some(0) => text,
        Some(more) => format!("{text} and {more} more"),
    }
}

impl fmt::Display for ExitHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExitHolder::Poller(name) => write!(f, "poller {name}"),
            ExitHolder::Task(name) => write!(f, "task {name}"),
            ExitHolder::Messages => f.write_str("queued messages"),
            ExitHolder::Channel(device) => write!(f, "channel of {device}"),
            ExitHolder::ThreadWalk => f.write_str("for_each_thread under way"),
            ExitHolder::ChannelWalk(device) => write!(f, "for_each_channel of {device} under way"),
            ExitHolder::Unregister(device) => write!(f, "unregister of {device} under way"),
        }
    }
}
