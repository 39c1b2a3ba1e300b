//! What is wrong when a thread cannot be made, or a message not be sent to it.

use std::fmt;

use super::SharesError;

/// A message that could not be sent, with its closure.
///
/// # Examples
///
/// ```
/// use std::sync::mpsc;
/// use corespun::thread::ThreadLib;
///
/// let mut runner = ThreadLib::new().thread().message_limit(2).build()?.attach();
/// let thread = runner.handle();
/// let (sender, done) = mpsc::channel();
/// (0..2).for_each(|_| thread.send_msg(|| ()).unwrap());
/// let refused = thread.send_msg(move || sender.send("sent at last").unwrap()).unwrap_err();
/// assert!(refused.is_full());
/// // The closure, with all it holds, is tried again later.
/// runner.poll(0, 0);
/// thread.send_msg(refused.into_message()).unwrap();
/// runner.poll(0, 0);
/// assert_eq!(done.try_recv(), Ok("sent at last"));
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[derive(thiserror::Error)]
#[error("{reason}")]
pub struct SendError<F> {
    reason: SendErrorReason,
    message: F,
}

/// Why a message could not be sent.
///
/// # Examples
///
/// ```
/// use corespun::thread::{SendErrorReason, ThreadLib};
///
/// let runner = ThreadLib::new().thread().name("disk").build()?.attach();
/// let thread = runner.handle();
/// drop(runner);
/// let refused = thread.send_msg(|| ()).unwrap_err();
/// assert_eq!(*refused.reason(), SendErrorReason::Exited { thread: "disk".to_owned() });
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendErrorReason {
    /// As many messages are outstanding as the thread allows.
    #[error("thread {thread:?} has its limit of {limit} messages outstanding; try again later")]
    Full {
        /// The thread's name.
        thread: String,
        /// Its limit.
        limit: usize,
    },
    /// The thread has exited.
    #[error("thread {thread:?} has exited and runs no more messages")]
    Exited {
        /// The thread's name.
        thread: String,
    },
}

impl<F> SendError<F> {
    #[cold]
    pub(crate) fn full(thread: &str, limit: usize, message: F) -> Self {
        SendError {
            reason: SendErrorReason::Full {
                thread: thread.to_owned(),
                limit,
            },
            message,
        }
    }

    #[cold]
    pub(crate) fn exited(thread: &str, message: F) -> Self {
        SendError {
            reason: SendErrorReason::Exited {
                thread: thread.to_owned(),
            },
            message,
        }
    }

    /// The closure that was not sent.
    pub fn into_message(self) -> F {
        self.message
    }

    /// Why.
    pub fn reason(&self) -> &SendErrorReason {
        &self.reason
    }

    /// Whether trying again later may succeed.
    pub fn is_full(&self) -> bool {
        matches!(self.reason, SendErrorReason::Full { .. })
    }

    /// Whether the thread has exited.
    pub fn is_exited(&self) -> bool {
        matches!(self.reason, SendErrorReason::Exited { .. })
    }
}

impl<F> fmt::Debug for SendError<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SendError").field(&self.reason).finish()
    }
}

/// Why a critical message was not posted.
///
/// # Examples
///
/// ```
/// use corespun::thread::{CriticalMsgError, ThreadLib};
///
/// let parked = ThreadLib::new().thread().build()?;
/// let thread = parked.handle();
/// assert_eq!(thread.send_critical_msg(|| ()), Ok(()));
/// assert_eq!(thread.send_critical_msg(|| ()), Err(CriticalMsgError::Pending));
/// drop(parked);
/// assert_eq!(thread.send_critical_msg(|| ()), Err(CriticalMsgError::Exited));
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CriticalMsgError {
    /// There is one place, and it is taken.
    #[error("a critical message is pending or running on this thread already; try again later")]
    Pending,
    /// The thread has exited.
    #[error("the thread has exited and runs no more critical messages")]
    Exited,
}

/// Why a thread could not be made.
///
/// # Examples
///
/// ```
/// use corespun::thread::{CreateError, ThreadLib};
///
/// let error = ThreadLib::new().thread().create().unwrap_err();
/// assert!(matches!(error, CreateError::NoFramework));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// All thread ids of the library instance are used up.
    #[error("this library instance has used up its thread ids")]
    NoIds,
    /// Nobody was named who would poll the thread.
    #[error(
        "no framework places threads for this library instance; start an App, or `build` the thread and poll it yourself"
    )]
    NoFramework,
    /// The thread's cpumask and the cores that the framework has do not meet.
    #[error("thread {thread:?} may run on cores {cpumask}, none of which is among {available}")]
    NoCore {
        /// The thread's name.
        thread: String,
        /// Its mask.
        cpumask: String,
        /// What the framework has.
        available: String,
    },
    /// No thread can have so many shares.
    #[error(transparent)]
    Shares(#[from] SharesError),
    /// The framework is shutting down.
    #[error("the framework is stopping and takes no new thread")]
    Stopping,
}
