//! Panics of user code, contained at the edge of each callback.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A panic's payload, as `std::thread::JoinHandle::join` gives it.
pub(crate) type Payload = Box<dyn Any + Send + 'static>;

/// What panicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PanicSource {
    /// A message's closure.
    Message,
    /// A poller's callback; the poller is unregistered.
    Poller,
    /// A task; its `JoinHandle` yields the payload.
    Task,
    /// An interrupt's callback; the interrupt stays registered.
    Interrupt,
    /// A destructor of a closure, future or output that the thread dropped.
    Drop,
}

/// A panic that a SpdkThread contained, as its library's panic hook sees it.
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

/// Drops what nobody is left to be told about; a panic of its destructor is
/// logged.
pub(crate) fn drop_logged<T>(value: T) {
    if let Err(payload) = contain(|| drop(value)) {
        tracing::error!("a destructor panicked: {}", payload_text(&*payload));
        discard(payload);
    }
}

/// Drops a panic payload whose own destructor may panic in turn.
pub(crate) fn discard(payload: Payload) {
    if let Err(second) = contain(|| drop(payload)) {
        std::mem::forget(second);
    }
}
