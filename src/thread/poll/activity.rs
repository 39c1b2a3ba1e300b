//! What a poll achieved.

/// What a poller callback, or a whole poll, did: SPDK's poller return code.
///
/// Ordered, so that the result of several is their maximum.
///
/// # Examples
///
/// The result of several is their maximum, and a callback may as well return
/// `bool` or nothing:
///
/// ```
/// use corespun::thread::Activity;
///
/// let queues = [Activity::Idle, Activity::Busy, Activity::Ignored];
/// assert_eq!(queues.into_iter().max(), Some(Activity::Busy));
/// assert_eq!(Activity::from(false), Activity::Idle);
/// assert_eq!(Activity::from(()), Activity::Busy);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Activity {
    /// Says nothing: neither idle nor busy (a negative return code in SPDK).
    Ignored,
    /// Looked, and found nothing to do (`SPDK_POLLER_IDLE`).
    #[default]
    Idle,
    /// Did some work (`SPDK_POLLER_BUSY`).
    Busy,
}

impl Activity {
    /// Whether this is [`Activity::Busy`].
    pub fn is_busy(self) -> bool {
        self == Activity::Busy
    }
}

impl From<bool> for Activity {
    fn from(busy: bool) -> Self {
        if busy { Activity::Busy } else { Activity::Idle }
    }
}

/// A poller that returns nothing is taken to be busy each time it runs.
impl From<()> for Activity {
    fn from((): ()) -> Self {
        Activity::Busy
    }
}
