//! Pollers as streams, and streams as pollers.
//!
//! A poller looks at something on every poll of its thread; a [`PollerStream`]
//! hands what it finds to a task, and [`poll_until`] does so once. The other way
//! round, [`Poller::from_stream`](crate::thread::Poller::from_stream) drives a
//! stream without a task.

mod drive;
mod poll_until;
mod poller_stream;
mod send_stream;

use std::task::Poll;

pub use poll_until::{PollUntil, poll_until};
pub use poller_stream::{PollerStream, PollerStreamBuilder};
pub use send_stream::SendPollerStream;

/// What the closure of a [`PollerStream`] may return: `Poll<Option<T>>`, where
/// `Pending` is nothing for now and `Ready(None)` the end, or `Option<T>`, where
/// `None` is nothing for now and there is no end.
///
/// # Examples
///
/// A ring of completions that says when it is torn down:
///
/// ```
/// use std::task::Poll;
/// use corespun::{stream::{PollerItem, PollerStream}, thread::ThreadLib};
/// use futures::FutureExt;
/// use futures::StreamExt;
///
/// enum Ring { Empty, Completion(u16), Gone }
///
/// impl PollerItem for Ring {
///     type Item = u16;
///
///     fn into_poll(self) -> Poll<Option<u16>> {
///         match self {
///             Ring::Empty => Poll::Pending,
///             Ring::Completion(tag) => Poll::Ready(Some(tag)),
///             Ring::Gone => Poll::Ready(None),
///         }
///     }
/// }
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let mut states = [Ring::Empty, Ring::Completion(5), Ring::Gone].into_iter();
/// let tags = runner.enter(|| PollerStream::active(move || states.next().unwrap())).unwrap();
/// for _ in 0..3 {
///     runner.poll(0, 0);
/// }
/// let tags = runner.enter(|| tags.collect::<Vec<_>>().now_or_never());
/// assert_eq!(tags.unwrap(), [5]);
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
pub trait PollerItem {
    /// The stream's items.
    type Item;

    /// The same as a stream says it.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::task::Poll;
    /// use corespun::stream::PollerItem;
    ///
    /// // An `Option` never ends the stream, a `Poll` may.
    /// assert_eq!(Some(5).into_poll(), Poll::Ready(Some(5)));
    /// assert_eq!(None::<u8>.into_poll(), Poll::Pending);
    /// assert_eq!(Poll::Ready(None::<u8>).into_poll(), Poll::Ready(None));
    /// ```
    fn into_poll(self) -> Poll<Option<Self::Item>>;
}

impl<T> PollerItem for Poll<Option<T>> {
    type Item = T;

    fn into_poll(self) -> Poll<Option<T>> {
        self
    }
}

impl<T> PollerItem for Option<T> {
    type Item = T;

    fn into_poll(self) -> Poll<Option<T>> {
        match self {
            Some(item) => Poll::Ready(Some(item)),
            None => Poll::Pending,
        }
    }
}
