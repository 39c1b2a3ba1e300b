//! Waiting until a thread is where its new mask sends it.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::channel::oneshot;

use super::raw::with_running;
use super::reply::{Asker, Reply};
use crate::cpu::CpuSet;
use crate::thread::message::Message;
use crate::thread::{Destination, SetCpumaskError, SpdkThread};

impl SpdkThread {
    /// Changes the cores that the thread may be placed on, and waits until it is
    /// on one of them: [`SpdkThread::set_cpumask`] for any thread, from any OS
    /// thread.
    ///
    /// The change is made by the call if the thread is the current one, else by
    /// a message to it, in either case whether or not the future is awaited. A
    /// thread that is on a core of `mask` already is there at once. A bound thread
    /// goes once it is no longer bound, and that is how long this waits. A task
    /// that waits for its own thread goes with it and continues on the new core.
    ///
    /// A later change to a mask within this one does not matter, to any other it
    /// ends the wait. Where the framework is one that does not tell on which core
    /// it polls ([`ThreadRunner::set_core`](crate::thread::ThreadRunner::set_core)),
    /// that it takes the mask has to do.
    ///
    /// # Errors
    ///
    /// The future yields [`SetCpumaskError`]: what `set_cpumask` refuses, with the
    /// mask unchanged; and with the mask changed,
    /// [`Superseded`](SetCpumaskError::Superseded) by a later change,
    /// [`Exited`](SetCpumaskError::Exited), and
    /// [`HeldByWaiter`](SetCpumaskError::HeldByWaiter) when a task that is not
    /// `Send` would wait for its own thread, and so for ever.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future only stops the waiting; the thread moves.
    pub fn set_cpumask_async(&self, mask: &CpuSet) -> SetCpumask {
        self.go(Destination::Mask(*mask))
    }

    /// Moves the thread to `core`, one of its mask, which stays as it is, and waits
    /// until it is there. From any OS thread, and with the rules of
    /// [`SpdkThread::set_cpumask_async`] for when it goes and what ends the wait.
    ///
    /// # Errors
    ///
    /// As there; [`OutsideMask`](SetCpumaskError::OutsideMask) when its mask does
    /// not hold `core`.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future only stops the waiting; the thread moves.
    pub fn move_to_core(&self, core: usize) -> SetCpumask {
        self.go(Destination::Core(core))
    }

    fn go(&self, to: Destination) -> SetCpumask {
        let (sender, end) = oneshot::channel();
        if self.is_current() {
            self.go_then(&to, sender);
        } else {
            let thread = self.clone();
            // Refused only by a thread that takes nothing more; the sender is
            // dropped then, and says so.
            let _ = self.shared.enqueue(Message::new(move || {
                thread.go_then(&to, sender);
            }));
        }
        SetCpumask(Reply::new(Mover(self.clone()), end))
    }
}

/// The future of [`SpdkThread::set_cpumask_async`] and [`SpdkThread::move_to_core`].
///
/// # Examples
///
/// ```
/// use corespun::{cpu::CpuSet, task::SetCpumask, thread::{SetCpumaskError, ThreadLib}};
/// use futures::executor::block_on;
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let moving: SetCpumask = runner.handle().set_cpumask_async(&CpuSet::single(1));
/// runner.poll(0, 0);
/// // A thread that is polled by hand has no framework that moves it.
/// assert!(matches!(block_on(moving), Err(SetCpumaskError::NotSupported(_))));
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[must_use = "futures do nothing unless awaited; the thread moves without"]
pub struct SetCpumask(Reply<Mover>);

impl Future for SetCpumask {
    type Output = Result<(), SetCpumaskError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

/// The asker, with the thread that moves.
struct Mover(SpdkThread);

impl Asker for Mover {
    type Answer = Result<(), SetCpumaskError>;
    type Output = Result<(), SetCpumaskError>;

    fn output(&mut self, answer: Option<Self::Answer>) -> Self::Output {
        answer.unwrap_or_else(|| Err(SetCpumaskError::exited(self.0.name())))
    }

    fn instead(&mut self) -> Option<Self::Output> {
        let waiter_holds = self.0.is_current() && with_running(|task| task.stays()) == Some(true);
        waiter_holds.then(|| Err(SetCpumaskError::HeldByWaiter(self.0.name().to_owned())))
    }
}

impl fmt::Debug for SetCpumask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SetCpumask")
            .field("thread", &self.0.asker().0)
            .finish_non_exhaustive()
    }
}
