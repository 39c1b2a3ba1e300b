//! A poller stream that moves with its thread. The poller and the consumer are both
//! `Send`; what they share is touched on their thread only.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::stream::{FusedStream, Stream};

use super::poller_stream::{Buffer, Producer, Share};
use super::{PollerItem, PollerStreamBuilder};
use crate::thread::local::Local;
use crate::thread::on_thread::OnThread;
use crate::thread::{PollerError, SendPoller, ThreadState};

impl<T> Share<T> for Arc<OnThread<Buffer<T>>> {
    fn lend(&self, f: impl FnOnce(&Buffer<T>)) {
        self.with(f);
    }
}

/// A [`PollerStream`](super::PollerStream) whose closure and items are `Send`: it
/// lets its thread move to another OS thread, and moves with it, in a task that is
/// `Send`.
///
/// Made by [`PollerStreamBuilder::register_send`].
///
/// # Panics
///
/// When it is polled while another SpdkThread is current, or none, and its own has
/// not exited. Of one that has exited it is at its end.
///
/// # Examples
///
/// ```
/// use corespun::{stream::{PollerStream, SendPollerStream}, task, thread::ThreadLib};
/// use futures::StreamExt;
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let mut found = 0;
/// let sum = runner.enter(|| {
///     let numbers = PollerStream::<u32>::builder().register_send(move || {
///         found += 1;
///         Some(found)
///     })?;
///     Ok::<_, corespun::thread::PollerError>(task::spawn(async move {
///         numbers.take(4).fold(0, async |sum, number| sum + number).await
///     }))
/// })?;
/// runner.poll(0, 0);
/// // Half of it is done there.
/// let parked = runner.park().expect("nothing on it has to stay");
/// std::thread::spawn(move || {
///     let mut runner = parked.attach();
///     while !sum.is_finished() {
///         runner.poll(0, 0);
///     }
///     assert_eq!(futures::executor::block_on(sum).unwrap(), 10);
/// }).join().unwrap();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "dropping a SendPollerStream unregisters its poller"]
pub struct SendPollerStream<T: Send + 'static> {
    buffer: Arc<OnThread<Buffer<T>>>,
    /// `None` once the stream has ended.
    poller: Option<SendPoller>,
}

impl<T: Send + 'static> SendPollerStream<T> {
    /// The poller behind the stream, until the stream has ended.
    pub fn poller(&self) -> Option<&SendPoller> {
        self.poller.as_ref()
    }

    /// How many items wait to be taken; `None` when the stream's thread is not the
    /// current one.
    pub fn queued(&self) -> Option<usize> {
        self.buffer.with(Buffer::queued)
    }

    /// Whether the thread is gone, and with it what made the items.
    fn is_orphaned(&self) -> bool {
        self.buffer.thread().state() == ThreadState::Exited
    }
}

impl<T: Send + 'static> Unpin for SendPollerStream<T> {}

impl<T: Send + 'static> Stream for SendPollerStream<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let this = &mut *self;
        let next = this.buffer.with(|buffer| {
            buffer.poll_take(cx, || {
                if let Some(poller) = &this.poller {
                    poller.resume();
                }
            })
        });
        let next = match next {
            Some(next) => next,
            None if this.is_orphaned() => Poll::Ready(None),
            None => panic!(
                "a SendPollerStream of thread {:?} must be polled there",
                this.buffer.thread().name()
            ),
        };
        if let Poll::Ready(None) = next {
            this.poller = None;
        }
        next
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let known = self.buffer.with(|buffer| {
            let queued = buffer.queued();
            (queued, buffer.has_ended().then_some(queued))
        });
        known.unwrap_or((0, None))
    }
}

impl<T: Send + 'static> FusedStream for SendPollerStream<T> {
    fn is_terminated(&self) -> bool {
        let ended = |buffer: &Buffer<T>| buffer.has_ended() && buffer.queued() == 0;
        self.buffer
            .with(ended)
            .unwrap_or_else(|| self.is_orphaned())
    }
}

impl<T: Send + 'static> fmt::Debug for SendPollerStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendPollerStream")
            .field("poller", &self.poller)
            .field("queued", &self.queued())
            .finish()
    }
}

impl PollerStreamBuilder {
    /// Registers a poller that is `Send` on the current SpdkThread, so that the
    /// stream does not keep it on its OS thread.
    ///
    /// # Errors
    ///
    /// [`PollerError`] when no SpdkThread is current or it has exited.
    pub fn register_send<R>(
        self,
        mut f: impl FnMut() -> R + Send + 'static,
    ) -> Result<SendPollerStream<R::Item>, PollerError>
    where
        R: PollerItem,
        R::Item: Send + 'static,
    {
        let buffer = Local::with_current(|local| OnThread::new(local, Buffer::new(self.capacity)));
        let buffer = Arc::new(buffer.ok_or_else(PollerError::not_on_thread)?);
        let shared = buffer.clone();
        let poller = self.poller().register_send_with(move |poller| {
            let producer = Producer::new(shared, poller);
            move || producer.put(f().into_poll())
        })?;
        Ok(SendPollerStream {
            buffer,
            poller: Some(poller),
        })
    }
}
