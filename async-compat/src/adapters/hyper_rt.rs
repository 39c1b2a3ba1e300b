//! Tasks and timers, as hyper asks for them.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use pin_project::pin_project;

/// Spawns hyper's tasks on the current runtime: HTTP/2 has some for each connection.
///
/// # Examples
///
/// ```
/// # use corespun_compat as tokio;
/// use corespun_compat::adapters::HyperExecutor;
/// use hyper::rt::Executor;
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let (sender, receiver) = tokio::sync::oneshot::channel();
/// HyperExecutor.execute(async move { sender.send(42).unwrap() });
/// assert_eq!(receiver.await, Ok(42));
/// # });
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct HyperExecutor;

impl<F> hyper::rt::Executor<F> for HyperExecutor
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        crate::task::spawn(future);
    }
}

/// Spawns hyper's tasks on the current OS thread, where they may hold what is not `Send`: within a
/// [`LocalSet`](crate::task::LocalSet) or a [`LocalRuntime`](crate::runtime::LocalRuntime).
///
/// # Examples
///
/// ```
/// # use corespun_compat as tokio;
/// use std::rc::Rc;
/// use corespun_compat::adapters::HyperLocalExecutor;
/// use hyper::rt::Executor;
///
/// let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
/// tokio::task::LocalSet::new().block_on(&runtime, async {
///     let (sender, receiver) = tokio::sync::oneshot::channel();
///     let value = Rc::new(42);
///     HyperLocalExecutor.execute(async move { sender.send(*value).unwrap() });
///     assert_eq!(receiver.await, Ok(42));
/// });
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct HyperLocalExecutor;

impl<F> hyper::rt::Executor<F> for HyperLocalExecutor
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        crate::task::spawn_local(future);
    }
}

/// hyper's timers, as those of this crate: for time limits on headers and pings.
///
/// # Examples
///
/// ```
/// # use corespun_compat as tokio;
/// use std::time::Duration;
/// use corespun_compat::adapters::HyperTimer;
/// use hyper::rt::Timer;
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// HyperTimer.sleep(Duration::from_micros(50)).await;
/// # });
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct HyperTimer;

#[pin_project]
struct Sleep(#[pin] crate::time::Sleep);

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.project().0.poll(cx)
    }
}

impl hyper::rt::Sleep for Sleep {}

impl hyper::rt::Timer for HyperTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(Sleep(crate::time::sleep(duration)))
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(Sleep(crate::time::sleep_until(deadline.into())))
    }

    fn now(&self) -> Instant {
        crate::time::Instant::now().into_std()
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn hyper::rt::Sleep>>, new_deadline: Instant) {
        match sleep.as_mut().downcast_mut_pin::<Sleep>() {
            Some(sleep) => sleep.project().0.reset(new_deadline.into()),
            None => *sleep = self.sleep_until(new_deadline),
        }
    }
}
