//! The wait for a reply: the one future behind calls to threads, reactors and helper
//! threads, behind moves, modes, schedulers and the end of a device.
//!
//! The asked side holds a oneshot sender. Dropped unanswered, which only the end of a
//! thread, a reactor or a library does, it says so by itself.

use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::channel::oneshot;

use crate::sync::budget::poll_budget;
use crate::thread::panic::Payload;

/// Knows what the answer to a question means.
pub(crate) trait Asker {
    /// What is sent back.
    type Answer;
    /// What the waiter gets.
    type Output;

    /// `None` if there is no answer, and will be none.
    fn output(&mut self, answer: Option<Self::Answer>) -> Self::Output;

    /// What the waiter gets instead of an answer that would never come while it waits.
    fn instead(&mut self) -> Option<Self::Output> {
        None
    }

    /// The waiter went before it took the answer.
    fn untaken(&mut self, answer: Self::Answer) {
        drop(answer);
    }
}

/// For answers that need nothing remembered.
impl<T, O> Asker for fn(Option<T>) -> O {
    type Answer = T;
    type Output = O;

    fn output(&mut self, answer: Option<T>) -> O {
        self(answer)
    }
}

/// The future of an answer.
pub(crate) struct Reply<A: Asker> {
    asker: A,
    wait: Wait<A::Answer>,
}

enum Wait<T> {
    For(oneshot::Receiver<T>),
    /// The question was not even asked.
    Unasked,
    Over,
}

impl<A: Asker> Reply<A> {
    pub(crate) fn new(asker: A, answer: oneshot::Receiver<A::Answer>) -> Self {
        let wait = Wait::For(answer);
        Reply { asker, wait }
    }

    /// One that has no answer.
    pub(crate) fn unasked(asker: A) -> Self {
        let wait = Wait::Unasked;
        Reply { asker, wait }
    }

    pub(crate) fn asker(&self) -> &A {
        &self.asker
    }
}

// The asker is never pinned.
impl<A: Asker> Unpin for Reply<A> {}

impl<A: Asker> Future for Reply<A> {
    type Output = A::Output;

    /// # Panics
    ///
    /// If it has given its answer already.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<A::Output> {
        let Reply { asker, wait } = &mut *self;
        let budget = ready!(poll_budget(cx));
        let answer = match wait {
            Wait::For(receiver) => Pin::new(receiver).poll(cx).map(Result::ok),
            Wait::Unasked => Poll::Ready(None),
            Wait::Over => panic!("the future of a reply was polled after its end"),
        };
        let output = match answer {
            Poll::Ready(answer) => Some(asker.output(answer)),
            Poll::Pending => asker.instead(),
        };
        let Some(output) = output else {
            return Poll::Pending;
        };
        budget.progressed();
        *wait = Wait::Over;
        Poll::Ready(output)
    }
}

impl<A: Asker> Drop for Reply<A> {
    fn drop(&mut self) {
        let Wait::For(receiver) = &mut self.wait else {
            return;
        };
        // Either the answer is here by now, or its sender learns that the waiter has
        // gone.
        receiver.close();
        if let Ok(Some(answer)) = receiver.try_recv() {
            self.asker.untaken(answer);
        }
    }
}

/// Where something is called that returns or panics.
pub(crate) trait Callee {
    /// Why a call has no result.
    type Error;

    /// What was called has panicked.
    fn panicked(&self, payload: Payload) -> Self::Error;

    /// It was not run to its end, and will not be.
    fn ended(&mut self) -> Self::Error;

    /// Reports a panic that no waiter takes.
    fn report(&self, payload: Payload);
}

/// The asker of a call to `C` that returns an `R`.
pub(crate) struct Called<R, C> {
    callee: C,
    returns: PhantomData<fn() -> R>,
}

impl<R, C> Called<R, C> {
    pub(crate) fn callee(&self) -> &C {
        &self.callee
    }
}

impl<R, C: Callee> Asker for Called<R, C> {
    type Answer = Result<R, Payload>;
    type Output = Result<R, C::Error>;

    fn output(&mut self, answer: Option<Result<R, Payload>>) -> Self::Output {
        match answer {
            Some(Ok(result)) => Ok(result),
            Some(Err(payload)) => Err(self.callee.panicked(payload)),
            None => Err(self.callee.ended()),
        }
    }

    fn untaken(&mut self, answer: Result<R, Payload>) {
        if let Err(payload) = answer {
            self.callee.report(payload);
        }
    }
}

/// The reply of a call.
pub(crate) type CallReply<R, C> = Reply<Called<R, C>>;

impl<R, C: Callee> CallReply<R, C> {
    /// Of a call to `callee`; `None` if it was not sent.
    pub(crate) fn called(callee: C, answer: Option<oneshot::Receiver<Result<R, Payload>>>) -> Self {
        let returns = PhantomData;
        let asker = Called { callee, returns };
        match answer {
            Some(answer) => Reply::new(asker, answer),
            None => Reply::unasked(asker),
        }
    }
}
