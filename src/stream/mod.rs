//! Pollers as streams, and streams as pollers.
//!
//! A poller looks at something on every poll of its thread; a [`PollerStream`]
//! hands what it finds to a task, and [`poll_until`] does so once. The other way
//! round, [`Poller::from_stream`](crate::thread::Poller::from_stream) drives a
//! stream without a task.

mod drive;
mod poll_until;
mod poller_stream;

use std::task::Poll;

pub use poll_until::{PollUntil, poll_until};
pub use poller_stream::{PollerStream, PollerStreamBuilder};

/// What the closure of a [`PollerStream`] may return: `Poll<Option<T>>`, where
/// `Pending` is nothing for now and `Ready(None)` the end, or `Option<T>`, where
/// `None` is nothing for now and there is no end.
pub trait PollerItem {
    /// The stream's items.
    type Item;

    /// The same as a stream says it.
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
