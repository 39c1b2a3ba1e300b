//! Concurrency with a beginning and an end: children that borrow what is around
//! them and cannot outlive it.
//!
//! The scope is one future, which owns its children and polls those that were
//! woken. Nothing runs but while the scope is polled, so a scope that is dropped
//! has dropped its children, and one that is leaked never touches what they
//! borrow again: borrowing is sound without `unsafe`. (Tasks of the executor,
//! which outlive the future that spawned them, could not borrow.) The price is
//! that all children run within the task that awaits the scope.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use futures::stream::{FuturesUnordered, Stream};

use crate::local::oneshot;
use crate::sync::budget::{self, poll_budget};

/// Runs `body`, which may start children with [`Scope::spawn`], and waits for it
/// and all of them. The children may borrow what lives outside of the scope.
///
/// Dropping the scope drops body and children at once, on this thread, as a part
/// of the drop. A panic of one of them passes on to the task that awaits the scope, and
/// the others are dropped.
///
/// # Cancel safety
///
/// Cancelled, everything in it is cancelled.
///
/// # Examples
///
/// ```
/// use std::cell::Cell;
/// use corespun::task;
///
/// let sum = Cell::new(0);
/// let all = task::scope(async |scope| {
///     for number in [1, 2, 3] {
///         let sum = &sum;
///         scope.spawn(async move { sum.set(sum.get() + number) });
///     }
///     "started"
/// });
/// assert_eq!(futures::executor::block_on(all), "started");
/// assert_eq!(sum.get(), 6);
/// ```
pub async fn scope<'env, B, R>(body: B) -> R
where
    B: AsyncFnOnce(Scope<'env>) -> R,
{
    budget::take().await;
    let scope = Scope::new();
    let body = pin!(body(scope.clone()));
    run(scope, body, |_| false).await
}

/// [`scope`] for a body that can fail: its error cancels the children that still
/// run, at once.
///
/// # Errors
///
/// The body's.
///
/// # Cancel safety
///
/// As [`scope`].
///
/// # Examples
///
/// ```
/// use corespun::task;
///
/// let failing = task::try_scope(async |scope| {
///     scope.spawn(std::future::pending::<()>());
///     Err::<(), _>("no use")
/// });
/// assert_eq!(futures::executor::block_on(failing), Err("no use"));
/// ```
pub async fn try_scope<'env, B, R, E>(body: B) -> Result<R, E>
where
    B: AsyncFnOnce(Scope<'env>) -> Result<R, E>,
{
    budget::take().await;
    let scope = Scope::new();
    let body = pin!(body(scope.clone()));
    run(scope, body, Result::is_err).await
}

/// Polls body and children until both are done, or the body's result says that
/// the children are to go.
async fn run<'env, R>(
    scope: Scope<'env>,
    mut body: Pin<&mut impl Future<Output = R>>,
    gives_up: impl Fn(&R) -> bool,
) -> R {
    // Children not started yet may hold the scope, which holds them.
    let _emptied = EmptyOnDrop(&scope);
    let mut result = None;
    let mut children = FuturesUnordered::new();
    std::future::poll_fn(|cx| {
        if result.is_none()
            && let Poll::Ready(ended) = body.as_mut().poll(cx)
        {
            if gives_up(&ended) {
                scope.cancel();
            }
            result = Some(ended);
        }
        if scope.poll_children(cx, &mut children) && result.is_some() {
            return Poll::Ready(());
        }
        Poll::Pending
    })
    .await;
    result.expect("the loop ends with a result")
}

struct EmptyOnDrop<'a, 'env>(&'a Scope<'env>);

impl Drop for EmptyOnDrop<'_, '_> {
    fn drop(&mut self) {
        // What the destructors here and in the body start is dropped at once.
        self.0.cancel();
        let started = self.0.inner.started.take();
        drop(started);
    }
}

struct ScopeState<'env> {
    /// Children that the scope has not taken in yet.
    started: RefCell<Vec<LocalBoxFuture<'env, ()>>>,
    cancelled: Cell<bool>,
}

/// Starts children in a [`scope`]. Children may have clones of it, to start
/// others.
///
/// # Examples
///
/// Children may start others:
///
/// ```
/// use std::cell::Cell;
/// use corespun::task::{self, Scope};
///
/// fn visit<'env>(scope: Scope<'env>, depth: u32, visited: &'env Cell<u32>) {
///     visited.set(visited.get() + 1);
///     if depth > 0 {
///         let child = scope.clone();
///         scope.spawn(async move { visit(child, depth - 1, visited) });
///     }
/// }
///
/// let visited = Cell::new(0);
/// futures::executor::block_on(task::scope(async |scope| visit(scope, 3, &visited)));
/// assert_eq!(visited.get(), 4);
/// ```
#[derive(Clone)]
pub struct Scope<'env> {
    inner: Rc<ScopeState<'env>>,
}

impl<'env> Scope<'env> {
    fn new() -> Self {
        Scope {
            inner: Rc::new(ScopeState {
                started: RefCell::new(Vec::new()),
                cancelled: Cell::new(false),
            }),
        }
    }

    /// Starts a child. It is polled for the first time after the body has given
    /// way or ended. After [`Scope::cancel`], or the end of the scope, it is
    /// dropped right away.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::task;
    ///
    /// let blocks = [vec![1, 2], vec![3]];
    /// let total = task::scope(async |scope| {
    ///     let sums = blocks.each_ref().map(|block| scope.spawn(async { block.iter().sum::<u32>() }));
    ///     let mut total = 0;
    ///     for sum in sums {
    ///         total += sum.await.unwrap();
    ///     }
    ///     total
    /// });
    /// assert_eq!(futures::executor::block_on(total), 6);
    /// ```
    pub fn spawn<F>(&self, future: F) -> ScopedHandle<F::Output>
    where
        F: Future + 'env,
        F::Output: 'env,
    {
        let (sender, output) = oneshot::channel();
        if !self.inner.cancelled.get() {
            let child = async move {
                let output = future.await;
                // The handle may have been dropped: its output is not wanted.
                let _ = sender.send(output);
            };
            self.inner.started.borrow_mut().push(child.boxed_local());
        }
        ScopedHandle { output }
    }

    /// Cancels every child, those that are started later included. The body goes
    /// on.
    ///
    /// # Examples
    ///
    /// The first answer is enough:
    ///
    /// ```
    /// use corespun::task::{self, ScopeCancelled};
    ///
    /// let answer = task::scope(async |scope| {
    ///     let slow = scope.spawn(std::future::pending::<u8>());
    ///     let fast = scope.spawn(async { 5 }).await;
    ///     scope.cancel();
    ///     (fast, slow.await)
    /// });
    /// assert_eq!(futures::executor::block_on(answer), (Ok(5), Err(ScopeCancelled)));
    /// ```
    pub fn cancel(&self) {
        self.inner.cancelled.set(true);
    }

    /// Whether [`Scope::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.inner.cancelled.get()
    }

    /// Polls the children that were woken; says whether none is left.
    fn poll_children(
        &self,
        cx: &mut Context<'_>,
        children: &mut FuturesUnordered<LocalBoxFuture<'env, ()>>,
    ) -> bool {
        loop {
            // Taken out of the cell first: a child may start others.
            let started = self.inner.started.take();
            children.extend(started);
            if self.inner.cancelled.get() {
                *children = FuturesUnordered::new();
                drop(self.inner.started.take());
                return true;
            }
            match Pin::new(&mut *children).poll_next(cx) {
                Poll::Ready(None) if self.inner.started.borrow().is_empty() => return true,
                Poll::Pending if self.inner.started.borrow().is_empty() => return false,
                // One has ended, or started others.
                Poll::Ready(_) | Poll::Pending => {}
            }
            // Children that start and end without end give way now and then.
            match poll_budget(cx) {
                Poll::Ready(budget) => budget.progressed(),
                Poll::Pending => return false,
            }
        }
    }
}

impl fmt::Debug for Scope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope")
            .field("cancelled", &self.is_cancelled())
            .finish_non_exhaustive()
    }
}

/// Awaits the output of a child of a [`scope`]; dropping it leaves the child
/// running.
///
/// # Examples
///
/// ```
/// use std::cell::Cell;
/// use corespun::task;
///
/// let flushed = Cell::new(false);
/// let all = task::scope(async |scope| {
///     let read = scope.spawn(async { 5 });
///     // Not waited for here; the scope waits for the child.
///     drop(scope.spawn(async { flushed.set(true) }));
///     read.await
/// });
/// assert_eq!(futures::executor::block_on(all), Ok(5));
/// assert!(flushed.get());
/// ```
pub struct ScopedHandle<T> {
    output: oneshot::Receiver<T>,
}

/// A child was cancelled by its [`Scope`].
///
/// # Examples
///
/// ```
/// use corespun::task::{self, ScopeCancelled};
///
/// let late = task::scope(async |scope| {
///     scope.cancel();
///     scope.spawn(async { 5 }).await
/// });
/// assert_eq!(futures::executor::block_on(late), Err(ScopeCancelled));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the child was cancelled by its scope")]
pub struct ScopeCancelled;

impl<T> Future for ScopedHandle<T> {
    type Output = Result<T, ScopeCancelled>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.output)
            .poll(cx)
            .map_err(|oneshot::RecvError| ScopeCancelled)
    }
}

impl<T> fmt::Debug for ScopedHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopedHandle").finish_non_exhaustive()
    }
}
