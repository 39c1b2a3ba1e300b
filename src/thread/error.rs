//! What is wrong when a thread cannot be made, or a message not be sent to it.

use std::borrow::Cow;
use std::fmt;

use super::SharesError;

/// No SpdkThread is current on this OS thread, or none that would do. In every error
/// that says so.
///
/// # Examples
///
/// ```
/// use corespun::thread::{Poller, PollerError};
///
/// let error = Poller::active(|| ()).unwrap_err();
/// assert!(matches!(error, PollerError::NotOnThread(_)));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}: call this from a message, task or poller")]
pub struct NotOnThread(Cow<'static, str>);

impl NotOnThread {
    /// What has to be done on a thread, as a sentence.
    pub(crate) fn new(sentence: impl Into<Cow<'static, str>>) -> Self {
        NotOnThread(sentence.into())
    }
}

/// A thread has exited, or is so far in its exit that it takes nothing more. In every
/// error that says so, except [`CriticalMsgError`], which a signal handler may get.
///
/// # Examples
///
/// ```
/// use corespun::{task::CallError, thread::ThreadLib};
///
/// let thread = ThreadLib::new().thread().name("disk").build()?.handle();
/// let error = futures::executor::block_on(thread.call(|| 5)).unwrap_err();
/// assert!(matches!(&error, CallError::Exited(exited) if exited.thread() == "disk"));
/// assert_eq!(error.to_string(), r#"thread "disk" exited before it finished the call"#);
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("thread {thread:?} {consequence}")]
pub struct Exited {
    thread: String,
    consequence: Cow<'static, str>,
}

impl Exited {
    /// What follows for the caller is the rest of a sentence that the thread begins.
    #[cold]
    pub(crate) fn new(thread: &str, consequence: impl Into<Cow<'static, str>>) -> Self {
        Exited {
            thread: thread.to_owned(),
            consequence: consequence.into(),
        }
    }

    /// The thread's name.
    pub fn thread(&self) -> &str {
        &self.thread
    }
}

/// Why a walk that comes back to where it began could not begin.
///
/// # Examples
///
/// ```
/// use corespun::thread::{ThreadLib, WalkStartError};
///
/// // It could not come back to here.
/// let walk = ThreadLib::new().for_each_thread(|_thread| (), |_walked| ());
/// assert!(matches!(walk, Err(WalkStartError::NotOnThread(_))));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WalkStartError {
    /// No SpdkThread is current on this OS thread, or none of the library instance of
    /// what is walked over.
    #[error(transparent)]
    NotOnThread(#[from] NotOnThread),
    /// The current thread has exited.
    #[error(transparent)]
    Exited(#[from] Exited),
}

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
/// assert!(matches!(refused.reason(), SendErrorReason::Exited(it) if it.thread() == "disk"));
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
    #[error(transparent)]
    Exited(#[from] Exited),
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
            reason: Exited::new(thread, "has exited and runs no more messages").into(),
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
        matches!(self.reason, SendErrorReason::Exited(_))
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
    /// No framework was named that would poll the thread.
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
