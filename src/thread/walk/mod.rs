//! `for_each_thread`: one message after another visits the threads of a library
//! instance in the order they were created, and the last comes back to where the
//! walk began. Threads that were asked to exit are passed over, and a thread
//! that exits with the message in its queue, or drops it unrun, lets it go on.

pub(crate) mod travel;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::channel::oneshot;

use super::exit::pending::{Pending, PendingKey};
use super::local::Local;
use super::panic::drop_anywhere;
use super::poll::message::Message;
use super::shared::Shared;
use super::{SpdkThread, ThreadLib};
use crate::sync::budget::poll_budget;
use travel::{Journey, Traveller};

/// A walk over threads needs a SpdkThread to come back to.
///
/// # Examples
///
/// ```
/// use corespun::thread::{ThreadLib, ThreadWalkError};
///
/// // It could not come back to here.
/// let walk = ThreadLib::new().for_each_thread(|_thread| (), || ());
/// assert_eq!(walk, Err(ThreadWalkError::NotOnThread));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ThreadWalkError {
    /// No SpdkThread is current on this OS thread.
    #[error(
        "for_each_thread needs a SpdkThread to come back to: call it from a message, task or poller"
    )]
    NotOnThread,
    /// The current thread has exited.
    #[error("thread {0:?} has exited and cannot wait for a for_each_thread")]
    Exited(String),
    /// The thread that started the walk was forced to exit before its end.
    #[error("the thread that started the for_each_thread was forced to exit before its end")]
    Cancelled,
}

struct Walk<F> {
    library: ThreadLib,
    /// The id of the thread visited last.
    cursor: u64,
    origin: Arc<Shared>,
    key: PendingKey<()>,
    visit: F,
}

impl<F: FnMut(&SpdkThread) + Send + 'static> Journey for Walk<F> {
    type Stop = Arc<Shared>;

    fn next_stop(&mut self) -> Option<Arc<Shared>> {
        let thread = self.library.next_running(self.cursor)?;
        self.cursor = thread.id;
        Some(thread)
    }

    fn send(thread: Arc<Shared>, walk: Traveller<Self>) -> Result<(), Traveller<Self>> {
        thread.deliver(walk, |walk| Message::new(move || walk.arrive()))
    }

    fn visit(mut walk: Traveller<Self>) {
        if let Some(thread) = SpdkThread::current() {
            (walk.journey_mut().visit)(&thread);
        }
        walk.advance();
    }

    fn end(self: Box<Self>) {
        // Refused only by a thread that has given up waiting.
        let _ = self.origin.deliver(self.key, |key| {
            Message::new(move || {
                Local::with_current(|local| local.complete(key, ()));
            })
        });
        // What it visited with may panic, and has perhaps just done so.
        drop_anywhere(self);
    }
}

impl ThreadLib {
    /// Calls `f` on every running thread of this instance, one after the other
    /// in the order created, by message; then `done` on the current thread
    /// (`spdk_for_each_thread`).
    ///
    /// Threads that were asked to exit before their turn are passed over;
    /// threads made while the walk is under way are visited. `done` is always
    /// called by a later message, and the current thread does not exit before.
    /// A panic of `f` is contained, and the walk goes on.
    ///
    /// # Errors
    ///
    /// [`ThreadWalkError`] when no SpdkThread is current or it has exited.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::mpsc;
    /// use corespun::thread::ThreadLib;
    ///
    /// let library = ThreadLib::new();
    /// let mut a = library.thread().name("a").build()?.attach();
    /// let mut b = library.thread().name("b").build()?.attach();
    /// let (sender, visits) = mpsc::channel();
    /// let end = sender.clone();
    /// a.enter(|| {
    ///     library.for_each_thread(
    ///         move |thread| sender.send(thread.name().to_owned()).unwrap(),
    ///         move || end.send("all".to_owned()).unwrap(),
    ///     )
    /// })?;
    /// a.poll(0, 0);
    /// b.poll(0, 0);
    /// a.poll(0, 0);
    /// assert!(visits.try_iter().eq(["a", "b", "all"]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn for_each_thread(
        &self,
        f: impl FnMut(&SpdkThread) + Send + 'static,
        done: impl FnOnce() + Send + 'static,
    ) -> Result<(), ThreadWalkError> {
        let start = |local: &Local| {
            if local.refuses_work() {
                return Err(ThreadWalkError::Exited(local.shared.name().to_owned()));
            }
            // Both functions are `Send`, so a walk does not bind its thread.
            let key = local.insert_pending(Pending::ThreadWalk, false, move |()| done());
            let walk = Walk {
                library: self.clone(),
                cursor: 0,
                origin: local.shared.clone(),
                key,
                visit: f,
            };
            Traveller::start(walk);
            Ok(())
        };
        Local::with_current(start).unwrap_or(Err(ThreadWalkError::NotOnThread))
    }

    /// As [`ThreadLib::for_each_thread`]; the future completes where the
    /// callback would be called, and may be awaited anywhere.
    ///
    /// # Errors
    ///
    /// As [`ThreadLib::for_each_thread`]; the future yields
    /// [`ThreadWalkError::Cancelled`] if it comes to that.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future only stops the waiting; the walk goes on.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::{Arc, atomic::{AtomicU32, Ordering}};
    /// use corespun::thread::ThreadLib;
    ///
    /// let library = ThreadLib::new();
    /// let (mut a, mut b) = (library.thread().build()?.attach(), library.thread().build()?.attach());
    /// let visits = Arc::new(AtomicU32::new(0));
    /// let counter = visits.clone();
    /// let walk = a.enter(|| {
    ///     library.walk_threads(move |_thread| _ = counter.fetch_add(1, Ordering::Relaxed))
    /// })?;
    /// a.poll(0, 0);
    /// b.poll(0, 0);
    /// a.poll(0, 0);
    /// futures::executor::block_on(walk)?;
    /// assert_eq!(visits.load(Ordering::Relaxed), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn walk_threads(
        &self,
        f: impl FnMut(&SpdkThread) + Send + 'static,
    ) -> Result<ThreadWalk, ThreadWalkError> {
        let (sender, receiver) = oneshot::channel();
        self.for_each_thread(f, move || {
            // The one who waited may have given up.
            let _ = sender.send(());
        })?;
        Ok(ThreadWalk { receiver })
    }
}

/// Completes when a walk over threads has ended; made by
/// [`ThreadLib::walk_threads`].
///
/// # Examples
///
/// Awaited by a task, it tells when a change has reached every thread:
///
/// ```
/// use std::sync::{Arc, atomic::{AtomicU32, Ordering}};
/// use corespun::{task, thread::{SpdkThread, ThreadLib}};
///
/// let library = ThreadLib::new();
/// let (mut a, mut b) = (library.thread().build()?.attach(), library.thread().build()?.attach());
/// let changed = a.enter(|| task::spawn_local(async {
///     let reached = Arc::new(AtomicU32::new(0));
///     let counter = reached.clone();
///     let library = SpdkThread::current().unwrap().library();
///     library.walk_threads(move |_| _ = counter.fetch_add(1, Ordering::Relaxed))?.await?;
///     Ok::<_, corespun::thread::ThreadWalkError>(reached.load(Ordering::Relaxed))
/// }));
/// while !changed.is_finished() {
///     a.poll(0, 0);
///     b.poll(0, 0);
/// }
/// assert_eq!(futures::executor::block_on(changed)??, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "futures do nothing unless awaited; the walk goes on without"]
pub struct ThreadWalk {
    receiver: oneshot::Receiver<()>,
}

impl Future for ThreadWalk {
    type Output = Result<(), ThreadWalkError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let budget = ready!(poll_budget(cx));
        let answer = budget.on(Pin::new(&mut self.receiver).poll(cx));
        answer.map(|answer| answer.map_err(|oneshot::Canceled| ThreadWalkError::Cancelled))
    }
}

impl fmt::Debug for ThreadWalk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadWalk").finish_non_exhaustive()
    }
}
