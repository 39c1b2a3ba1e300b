//! Panics of user code, contained at the edge of each callback.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::local::Local;

/// A panic's payload, as `std::thread::JoinHandle::join` gives it.
pub(crate) type Payload = Box<dyn Any + Send + 'static>;

/// What panicked.
///
/// # Examples
///
/// ```
/// use std::sync::mpsc;
/// use corespun::thread::{PanicSource, Poller, ThreadLib};
///
/// let (sender, panics) = mpsc::channel();
/// let library = ThreadLib::builder()
///     .panic_hook(move |panic| sender.send(panic.source).unwrap())
///     .build();
/// let mut runner = library.thread().build()?.attach();
/// let poller = runner.enter(|| Poller::active(|| -> bool { panic!("no such queue") }))?;
/// runner.handle().send_msg(|| panic!("bad request")).unwrap();
/// runner.poll(0, 0);
/// assert!(panics.try_iter().eq([PanicSource::Message, PanicSource::Poller]));
/// # drop(poller);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PanicSource {
    /// A message's closure.
    Message,
    /// A poller's callback; the poller is unregistered.
    Poller,
    /// A task; its `JoinHandle` yields the payload.
    Task,
    /// An interrupt's callback; the interrupt is unregistered.
    Interrupt,
    /// A hook that was told of something after a callback: of a spinlock that is
    /// still held.
    Hook,
    /// A scheduler or governor of the reactors; the round is abandoned.
    Scheduler,
    /// A destructor of a closure, future or output that the thread dropped.
    Drop,
    /// The loop of a reactor itself, which nothing of the user's should be able
    /// to do: its threads are ended and the app stops.
    Reactor,
}

/// A panic that a SpdkThread contained, as its library's panic hook sees it.
///
/// # Examples
///
/// ```
/// use std::sync::mpsc;
/// use corespun::thread::{Poller, ThreadLib};
///
/// let (sender, reports) = mpsc::channel();
/// let library = ThreadLib::builder()
///     .panic_hook(move |panic| {
///         let report = format!("{} {:?}: {}", panic.thread, panic.name, panic.message);
///         sender.send(report).unwrap();
///     })
///     .build();
/// let mut runner = library.thread().name("disk").build()?.attach();
/// let poller = runner.enter(|| {
///     Poller::builder().name("queue").register(|| -> bool { panic!("no such queue") })
/// })?;
/// runner.poll(0, 0);
/// assert_eq!(reports.recv()?, r#"disk Some("queue"): no such queue"#);
/// # drop(poller);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct ContainedPanic<'a> {
    /// The name of the thread it happened on.
    pub thread: &'a str,
    /// What panicked.
    pub source: PanicSource,
    /// The name or spawn location of the poller or task, if it has one.
    pub name: Option<&'a str>,
    /// The payload's text, or a placeholder if it is not a string.
    pub message: &'a str,
}

/// The text of a panic payload.
pub(crate) fn payload_text(payload: &(dyn Any + Send)) -> &str {
    if let Some(text) = payload.downcast_ref::<&'static str>() {
        text
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text
    } else {
        "a payload that is not a string"
    }
}

/// Runs user code; a panic comes back as its payload.
#[inline]
pub(crate) fn contain<R>(f: impl FnOnce() -> R) -> Result<R, Payload> {
    // What `f` touched may be left half-changed; it is user state that only
    // user code sees again, like state behind a `std` mutex after poisoning.
    catch_unwind(AssertUnwindSafe(f))
}

/// Drops what no waiter is left to be told about; a panic of its destructor is
/// logged.
pub(crate) fn drop_logged<T>(value: T) {
    if let Err(payload) = contain(|| drop(value)) {
        log(payload);
    }
}

/// Drops user content wherever it happens to come to its end, which may be while
/// another panic unwinds. A panic of its destructor is reported by the thread
/// that is current; where none is, it is logged.
pub(crate) fn drop_anywhere<T>(value: T) {
    if let Err(payload) = contain(|| drop(value)) {
        let mut payload = Some(payload);
        Local::with_current(|local| {
            let payload = payload.take().expect("taken here only");
            local.report_panic(PanicSource::Drop, None, payload);
        });
        if let Some(payload) = payload {
            log(payload);
        }
    }
}

fn log(payload: Payload) {
    tracing::error!("a destructor panicked: {}", payload_text(&*payload));
    discard(payload);
}

/// Drops a panic payload whose own destructor may panic in turn.
pub(crate) fn discard(payload: Payload) {
    if let Err(second) = contain(|| drop(payload)) {
        std::mem::forget(second);
    }
}

#[cfg(all(test, not(corespun_loom)))]
mod tests {
    use super::*;

    /// G6, where no thread is current that could report it.
    #[test]
    fn a_destructor_that_panics_off_a_thread_is_logged() {
        struct Bad;
        impl Drop for Bad {
            fn drop(&mut self) {
                std::panic::resume_unwind(Box::new("bad"));
            }
        }
        let (log, _guard) = harness::log::Log::install();
        drop_anywhere(Bad);
        assert_eq!(log.take(), ["ERROR a destructor panicked: bad"]);
    }
}
