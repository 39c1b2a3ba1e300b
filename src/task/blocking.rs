//! Running code that blocks on the library's helper threads, off the reactors' cores.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::{fmt, io};

use futures::channel::oneshot;

use super::CallError;
use super::reply::{CallReply, Callee};
use crate::io::helpers::Lane;
use crate::thread::library::LibraryInner;
use crate::thread::panic::{PanicSource, Payload, contain};
use crate::thread::{SpdkThread, ThreadLib};

/// Runs `f`, which may block, on a helper thread, and waits for what it returns.
/// It starts now, not when awaited. At most 64 such calls of a library run at
/// once; more wait their turn.
///
/// # Errors
///
/// [`CallError`] when `f` panicked, or no helper thread could be started.
///
/// # Panics
///
/// When no SpdkThread is current; see [`ThreadLib::spawn_blocking`].
///
/// # Cancel safety
///
/// Dropped, `f` runs to its end, and its result is dropped; a panic is reported
/// to the library's panic hook as that of a message of a thread `helper`.
///
/// # Examples
///
/// ```
/// use corespun::{task, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let length = runner.enter(|| task::spawn_local(async {
///     task::spawn_blocking(|| std::fs::read("/proc/self/status").unwrap().len()).await.unwrap()
/// }));
/// while !length.is_finished() {
///     runner.poll(0, 0);
/// }
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[track_caller]
pub fn spawn_blocking<F, R>(f: F) -> Blocking<R>
where
    F: FnOnce() -> R + Send + 'static,
    R: Send + 'static,
{
    match SpdkThread::current() {
        Some(thread) => thread.library().spawn_blocking(f),
        None => panic!(
            "spawn_blocking needs a current SpdkThread: elsewhere, use `ThreadLib::spawn_blocking`"
        ),
    }
}

impl ThreadLib {
    /// [`spawn_blocking`](crate::task::spawn_blocking) from any OS thread.
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::thread::ThreadLib;
    ///
    /// let library = ThreadLib::new();
    /// let here = std::thread::current().id();
    /// let there = library.spawn_blocking(|| std::thread::current().id());
    /// assert_ne!(futures::executor::block_on(there).unwrap(), here);
    /// ```
    pub fn spawn_blocking<F, R>(&self, f: F) -> Blocking<R>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Send + 'static,
    {
        let (sender, reply) = oneshot::channel();
        let library = self.inner.clone();
        let submitted = self.inner.helpers.run(Lane::Call, move || {
            match contain(|| sender.send(contain(f))) {
                Ok(Err(Err(payload))) => report(&library, PanicSource::Message, payload),
                // The waiter has gone, and the result is dropped here.
                Ok(unwanted) => {
                    if let Err(payload) = contain(|| drop(unwanted)) {
                        report(&library, PanicSource::Drop, payload);
                    }
                }
                // The waker of the waiter.
                Err(payload) => report(&library, PanicSource::Drop, payload),
            }
        });
        let helper = Helper {
            refused: submitted.err(),
            library: self.inner.clone(),
        };
        Blocking(CallReply::called(helper, Some(reply)))
    }
}

/// What runs a blocking call.
struct Helper {
    /// Why none could be started.
    refused: Option<io::Error>,
    library: Arc<LibraryInner>,
}

impl Callee for Helper {
    type Error = CallError;

    fn panicked(&self, payload: Payload) -> CallError {
        CallError::panicked("helper", payload)
    }

    fn ended(&mut self) -> CallError {
        match self.refused.take() {
            Some(source) => CallError::NoHelper { source },
            None => CallError::exited("helper"),
        }
    }

    fn report(&self, payload: Payload) {
        report(&self.library, PanicSource::Message, payload);
    }
}

/// A panic on a helper that no waiter takes.
#[cold]
fn report(library: &LibraryInner, source: PanicSource, payload: Payload) {
    library.report_panic("helper", source, None, payload);
}

/// The future of [`spawn_blocking`].
///
/// # Examples
///
/// Calls run side by side, from when they were made:
///
/// ```
/// use std::sync::mpsc;
/// use corespun::thread::ThreadLib;
///
/// let library = ThreadLib::new();
/// let (sender, receiver) = mpsc::channel();
/// let waits = library.spawn_blocking(move || receiver.recv().unwrap());
/// let sends = library.spawn_blocking(move || sender.send(5).unwrap());
/// futures::executor::block_on(async {
///     assert_eq!(waits.await.unwrap(), 5);
///     sends.await.unwrap();
/// });
/// ```
#[must_use = "it runs without being awaited, but its result is lost"]
pub struct Blocking<R>(CallReply<R, Helper>);

impl<R> Future for Blocking<R> {
    type Output = Result<R, CallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl<R> fmt::Debug for Blocking<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blocking").finish_non_exhaustive()
    }
}
