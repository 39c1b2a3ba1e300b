//! The handle of one reactor.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::group::{Event, Group};
use super::handle::{EVENT_LIMIT, EventError, Reactors};
use super::mode::SetMode;
use super::{ReactorMode, ReactorStats};
use crate::sync::PushError;
use crate::task::call::request;
use crate::task::reply::{CallReply, Callee};
use crate::thread::message::Message;
use crate::thread::panic::{PanicSource, Payload, payload_text};

/// The handle of the reactor of one core (`spdk_reactor_get`). Any OS thread may
/// use it, also after the reactor has ended.
///
/// # Examples
///
/// ```
/// use corespun::app::{App, AppHandle};
///
/// let sum = App::builder().try_block_on(async |app: AppHandle| {
///     let core = app.reactors().cores().first().unwrap();
///     let reactor = app.reactors().reactor(core).unwrap();
///     assert!(app.reactors().reactor(core + 1).is_none());
///     Ok::<_, Box<dyn std::error::Error>>(reactor.call(|| 20 + 22).await?)
/// })?;
/// assert_eq!(sum, 42);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct ReactorHandle {
    group: Arc<Group>,
    index: usize,
}

impl ReactorHandle {
    pub(super) fn new(group: Arc<Group>, index: usize) -> Self {
        ReactorHandle { group, index }
    }

    /// The reactor's core.
    #[must_use]
    pub fn core(&self) -> usize {
        self.group.reactors[self.index].place.core
    }

    /// The processor that its OS thread is pinned to.
    #[must_use]
    pub fn cpu(&self) -> usize {
        self.group.reactors[self.index].place.cpu
    }

    /// All reactors that it is one of.
    #[must_use]
    pub fn reactors(&self) -> Reactors {
        Reactors(self.group.clone())
    }

    /// Whether this is called on it: in one of its events, or on a thread that it
    /// polls.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.group.current() == Some(self.index)
    }

    /// As [`Reactors::mode`].
    #[must_use]
    pub fn mode(&self) -> ReactorMode {
        self.group.reactors[self.index].mode()
    }

    /// As [`Reactors::set_mode`].
    ///
    /// # Errors
    ///
    /// The future yields [`SetModeError`](super::SetModeError).
    pub fn set_mode(&self, mode: ReactorMode) -> SetMode {
        self.group.set_mode_future(self.core(), mode)
    }

    /// What it is doing, as [`Reactors::stats`].
    #[must_use]
    pub fn stats(&self) -> ReactorStats {
        let now = self.group.library.clock().now();
        ReactorStats::of(&self.group.reactors[self.index], now)
    }

    /// As [`Reactors::send_event`].
    ///
    /// # Errors
    ///
    /// [`EventError`] with `f` in it.
    pub fn send_event<F: FnOnce() + Send + 'static>(&self, f: F) -> Result<(), EventError<F>> {
        Self::send_to(&self.group, self.index, f)
    }

    #[inline]
    pub(super) fn send_to<F: FnOnce() + Send + 'static>(
        group: &Group,
        index: usize,
        f: F,
    ) -> Result<(), EventError<F>> {
        let reactor = &group.reactors[index];
        let core = reactor.place.core;
        let pack = |f| Event::Call(Message::new(f));
        match reactor.events.push_limited(EVENT_LIMIT, f, pack) {
            Ok(()) => {
                reactor.sleeper.notify();
                Ok(())
            }
            Err(PushError::Full(event)) => Err(EventError::Full { core, event }),
            Err(PushError::Closed(event)) => Err(EventError::Ended { core, event }),
        }
    }

    /// As [`Reactors::call`].
    ///
    /// # Errors
    ///
    /// The future yields [`ReactorCallError`].
    pub fn call<F, R>(&self, f: F) -> ReactorCall<R>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Send + 'static,
    {
        let library = self.group.library.inner.clone();
        let (run, reply) = request(f, move || library.panic_is_fatal());
        // Refused, the request is dropped, and the reply says so.
        drop(self.group.send_call(self.index, run, Message::new));
        ReactorCall(CallReply::called(
            CalledReactor::At(self.clone()),
            Some(reply),
        ))
    }
}

impl PartialEq for ReactorHandle {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.group, &other.group) && self.index == other.index
    }
}

impl Eq for ReactorHandle {}

impl fmt::Debug for ReactorHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReactorHandle")
            .field("core", &self.core())
            .finish_non_exhaustive()
    }
}

impl Reactors {
    /// The reactor of `core`, if there is one (`spdk_reactor_get`).
    pub fn reactor(&self, core: usize) -> Option<ReactorHandle> {
        let index = self.0.index_of(core)?;
        Some(ReactorHandle::new(self.0.clone(), index))
    }

    /// Runs `f` on the reactor of `core`, in an event, and waits for what it returns.
    ///
    /// The event is sent now; awaiting is for the result. It does not count against
    /// the limit of events: a caller waits for each of its calls, so it cannot flood
    /// the reactor.
    ///
    /// # Errors
    ///
    /// The future yields [`ReactorCallError`]: no reactor on that core, it has ended,
    /// or `f` panicked.
    ///
    /// # Cancel safety
    ///
    /// A call that is dropped runs all the same; its result is dropped, by that
    /// reactor or by the caller, and a panic is reported as that of an event.
    pub fn call<F, R>(&self, core: usize, f: F) -> ReactorCall<R>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Send + 'static,
    {
        match self.reactor(core) {
            Some(reactor) => reactor.call(f),
            None => {
                let available = self.cores().as_list().to_string();
                let callee = CalledReactor::Missing { core, available };
                ReactorCall(CallReply::called(callee, None))
            }
        }
    }
}

/// Why a call to a reactor has no result.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum ReactorCallError {
    /// No reactor runs on that core.
    #[error("no reactor runs on core {core}; there are reactors on cores {available}")]
    NoReactor {
        /// The core asked for.
        core: usize,
        /// The cores that have one.
        available: String,
    },
    /// What was called panicked.
    #[error("a call to the reactor on core {core} panicked: {message}")]
    Panicked {
        /// The reactor's core.
        core: usize,
        /// What the panic said.
        message: String,
    },
    /// The reactor ended before it ran the call, or had ended.
    #[error("the reactor on core {core} ended before it ran the call")]
    Ended {
        /// The reactor's core.
        core: usize,
    },
}

impl fmt::Debug for ReactorCallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReactorCallError({self})")
    }
}

/// The future of [`Reactors::call`].
#[must_use = "the call runs without being awaited, but its result is lost; `send_event` is for that"]
pub struct ReactorCall<R>(CallReply<R, CalledReactor>);

impl<R> Future for ReactorCall<R> {
    type Output = Result<R, ReactorCallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

enum CalledReactor {
    At(ReactorHandle),
    Missing { core: usize, available: String },
}

impl Callee for CalledReactor {
    type Error = ReactorCallError;

    fn panicked(&self, payload: Payload) -> ReactorCallError {
        ReactorCallError::Panicked {
            core: self.core(),
            message: payload_text(&*payload).to_owned(),
        }
    }

    fn ended(&mut self) -> ReactorCallError {
        match self {
            CalledReactor::At(reactor) => ReactorCallError::Ended {
                core: reactor.core(),
            },
            CalledReactor::Missing { core, available } => ReactorCallError::NoReactor {
                core: *core,
                available: std::mem::take(available),
            },
        }
    }

    fn report(&self, payload: Payload) {
        if let CalledReactor::At(reactor) = self {
            let here = &reactor.group.reactors[reactor.index];
            let group = &reactor.group;
            group.report_panic(here, PanicSource::Message, payload);
        }
    }
}

impl CalledReactor {
    fn core(&self) -> usize {
        match self {
            CalledReactor::At(reactor) => reactor.core(),
            CalledReactor::Missing { core, .. } => *core,
        }
    }
}

impl<R> fmt::Debug for ReactorCall<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReactorCall").finish_non_exhaustive()
    }
}
