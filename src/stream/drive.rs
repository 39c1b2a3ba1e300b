//! A stream driven by a poller.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures::stream::Stream;
use futures::task::noop_waker_ref;

use crate::thread::poller::PollerKey;
use crate::thread::{Activity, Poller, PollerBuilder, PollerError, SendPoller};

/// Items taken in one poll, as a poll of the thread takes messages.
const BATCH: usize = 8;

impl Poller {
    /// Drives `stream` as an active poller of the current SpdkThread: each poll
    /// takes what is ready, up to 8 items, and gives it to `each`. The poller
    /// unregisters itself at the stream's end.
    ///
    /// The stream is looked at whether or not it was woken, which is what a
    /// device queue wants; one that is rarely ready costs less in a task.
    ///
    /// # Errors
    ///
    /// [`PollerError`] when no SpdkThread is current or it has exited.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{cell::Cell, rc::Rc};
    /// use corespun::thread::{Poller, PollerState, ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let sum = Rc::new(Cell::new(0));
    /// let total = sum.clone();
    /// let poller = runner.enter(|| {
    ///     let numbers = futures::stream::iter(1..=4);
    ///     Poller::from_stream(numbers, move |number| total.set(total.get() + number))
    /// })?;
    /// runner.poll(0, 0);
    /// assert_eq!(sum.get(), 10);
    /// assert_eq!(poller.state(), PollerState::Unregistered);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_stream<S>(
        stream: S,
        each: impl FnMut(S::Item) + 'static,
    ) -> Result<Poller, PollerError>
    where
        S: Stream + 'static,
    {
        Poller::builder().register_stream(stream, each)
    }
}

impl PollerBuilder {
    /// [`Poller::from_stream`] with these settings.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn register_stream<S>(
        self,
        stream: S,
        mut each: impl FnMut(S::Item) + 'static,
    ) -> Result<Poller, PollerError>
    where
        S: Stream + 'static,
    {
        let mut stream: Pin<Box<S>> = Box::pin(stream);
        self.register_with(move |poller| move || drive(stream.as_mut(), &mut each, poller))
    }

    /// As [`PollerBuilder::register_stream`], for what is `Send`: the stream moves
    /// with its thread.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn register_stream_send<S>(
        self,
        stream: S,
        mut each: impl FnMut(S::Item) + Send + 'static,
    ) -> Result<SendPoller, PollerError>
    where
        S: Stream + Send + 'static,
    {
        let mut stream: Pin<Box<S>> = Box::pin(stream);
        self.register_send_with(move |poller| move || drive(stream.as_mut(), &mut each, poller))
    }
}

/// One turn of the poller that drives `stream`.
fn drive<S: Stream>(
    mut stream: Pin<&mut S>,
    each: &mut impl FnMut(S::Item),
    poller: PollerKey,
) -> Activity {
    let mut cx = Context::from_waker(noop_waker_ref());
    let mut activity = Activity::Idle;
    for _ in 0..BATCH {
        match stream.as_mut().poll_next(&mut cx) {
            Poll::Pending => break,
            Poll::Ready(Some(item)) => {
                activity = Activity::Busy;
                each(item);
            }
            Poll::Ready(None) => {
                poller.unregister();
                return Activity::Busy;
            }
        }
    }
    activity
}
