//! What goes on with a file although nobody waits for it any more.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use futures::future::BoxFuture;

/// Operations whose futures were dropped: they go on, and hold a share of the file until they end.
#[derive(Default)]
pub(super) struct Abandoned(Mutex<Vec<BoxFuture<'static, ()>>>);

impl Abandoned {
    /// Keeps `op` when the future that waits for it is dropped.
    pub(super) fn unless_done<F>(&self, op: F) -> UnlessDone<'_, F>
    where
        F: Future<Output: Send> + Unpin + Send + 'static,
    {
        let op = Some(op);
        UnlessDone {
            op,
            abandoned: self,
        }
    }

    fn keep(&self, op: BoxFuture<'static, ()>) {
        let mut ops = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut cx = Context::from_waker(Waker::noop());
        ops.retain_mut(|op| op.as_mut().poll(&mut cx).is_pending());
        ops.push(op);
    }

    /// Waits for all of them.
    pub(super) async fn ended(mut self) {
        // Behind the lock also meanwhile: that is what makes the future `Sync`, as tokio's is.
        poll_fn(move |cx| {
            let ops = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
            while let Some(op) = ops.last_mut() {
                ready!(op.as_mut().poll(cx));
                ops.pop();
            }
            Poll::Ready(())
        })
        .await;
    }
}

/// An operation that [`Abandoned`] keeps when this is dropped before it has ended.
pub(super) struct UnlessDone<'a, F: Future<Output: Send> + Unpin + Send + 'static> {
    op: Option<F>,
    abandoned: &'a Abandoned,
}

impl<F: Future<Output: Send> + Unpin + Send + 'static> Future for UnlessDone<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let op = self.op.as_mut().expect("it is not polled after its end");
        let output = ready!(Pin::new(op).poll(cx));
        self.op = None;
        Poll::Ready(output)
    }
}

impl<F: Future<Output: Send> + Unpin + Send + 'static> Drop for UnlessDone<'_, F> {
    fn drop(&mut self) {
        if let Some(op) = self.op.take() {
            self.abandoned.keep(Box::pin(async { drop(op.await) }));
        }
    }
}
