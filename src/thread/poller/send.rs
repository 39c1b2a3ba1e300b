//! Pollers that move with their thread.
//!
//! The callback is `Send`, which the compiler has checked where it was registered,
//! so it gets no token of [`bound`](crate::thread::bound) and the thread may go.
//! What is left is the handle, which may be on any OS thread at any time: it holds
//! no reference to the poller, only the key by which the thread finds it, and looks
//! it up only where the thread is the current one. Elsewhere it sends a message. So
//! there is nothing that two OS threads could touch at a time, nor anything that is
//! left behind.

use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::{PollerBuilder, PollerCore, PollerError, PollerKey, PollerState, PollerStats};
use crate::thread::SpdkThread;
use crate::thread::local::Local;
use crate::thread::panic::drop_anywhere;
use crate::thread::poll::activity::Activity;
use crate::thread::poll::message::Message;
use crate::thread::shared::Shared;

/// A registered poller whose callback is `Send`: unregistered when dropped.
///
/// Unlike a [`Poller`](super::Poller), it lets its thread move to another OS thread,
/// and moves with it. The handle may be kept anywhere, in a task that is `Send`
/// above all, and works from any OS thread: on the poller's SpdkThread each call
/// takes effect at once, as for a `Poller`; from elsewhere it sends a message that
/// does so, and once the thread has exited there is nothing to be done.
///
/// # Examples
///
/// A queue that is polled wherever its thread is:
///
/// ```
/// use corespun::thread::{SendPoller, ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let mut polls = 0;
/// let poller = runner.enter(|| SendPoller::active(move || {
///     polls += 1;
///     polls == 1
/// }))?;
/// let parked = runner.park().expect("nothing on it has to stay");
/// std::thread::spawn(move || {
///     let mut runner = parked.attach();
///     assert!(runner.poll(0, 0).is_busy());
///     assert!(!runner.poll(0, 0).is_busy());
///     let stats = runner.enter(|| poller.stats()).unwrap();
///     assert_eq!((stats.run_count, stats.busy_count), (2, 1));
/// }).join().unwrap();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// What it holds must be `Send`:
///
/// ```compile_fail,E0277
/// # use corespun::thread::SendPoller;
/// let not_send = std::rc::Rc::new(1);
/// let poller = SendPoller::active(move || drop(not_send.clone()));
/// ```
#[must_use = "dropping a SendPoller unregisters it; call `detach` to keep it until the thread exits"]
pub struct SendPoller {
    thread: Arc<Shared>,
    key: PollerKey,
    name: Option<String>,
    period: u64,
    detached: bool,
}

impl SendPoller {
    /// As [`Poller::active`](super::Poller::active).
    ///
    /// # Errors
    ///
    /// [`PollerError`] when no SpdkThread is current or it has exited.
    pub fn active<A: Into<Activity>>(
        callback: impl FnMut() -> A + Send + 'static,
    ) -> Result<SendPoller, PollerError> {
        PollerBuilder::default().register_send(callback)
    }

    /// As [`Poller::timed`](super::Poller::timed).
    ///
    /// # Errors
    ///
    /// [`PollerError`] when no SpdkThread is current or it has exited.
    pub fn timed<A: Into<Activity>>(
        period: Duration,
        callback: impl FnMut() -> A + Send + 'static,
    ) -> Result<SendPoller, PollerError> {
        PollerBuilder::default()
            .period(period)
            .register_send(callback)
    }

    /// Pauses the poller, as [`Poller::pause`](super::Poller::pause); from another
    /// thread, when its own has run a message.
    pub fn pause(&self) {
        self.send_unless_here(Local::pause_poller);
    }

    /// Resumes the poller, as [`Poller::resume`](super::Poller::resume); from
    /// another thread, when its own has run a message.
    pub fn resume(&self) {
        self.send_unless_here(Local::resume_poller);
    }

    /// Unregisters the poller; the same as dropping the handle. On its own thread a
    /// callback that waits is dropped now, and one that runs when it returns; from
    /// elsewhere, when the thread has run a message: it may run until then.
    pub fn unregister(self) {}

    /// Leaves the poller registered for as long as its thread lives. It keeps
    /// the thread from exiting until the exit is forced.
    pub fn detach(mut self) {
        self.detached = true;
    }

    /// As [`Poller::set_interrupt`](super::Poller::set_interrupt), with a hook that
    /// moves along; from another thread, when the poller's own has run a message.
    pub fn set_interrupt(&self, hook: impl FnMut(bool) + Send + 'static) {
        self.send_unless_here(move |local, poller| {
            local.set_poller_interrupt(poller, hook);
        });
    }

    /// Where the poller stands; `None` when its thread is not the current one.
    pub fn state(&self) -> Option<PollerState> {
        self.here(|poller| poller.map_or(PollerState::Unregistered, |poller| poller.state()))
    }

    /// How often it ran; `None` when its thread is not the current one, and once it
    /// is unregistered.
    pub fn stats(&self) -> Option<PollerStats> {
        self.here(|poller| poller.map(|poller| poller.stats()))
            .flatten()
    }

    /// The thread it belongs to.
    pub fn thread(&self) -> SpdkThread {
        SpdkThread::from_shared(self.thread.clone())
    }

    /// The name given, or one made of the id.
    pub fn name(&self) -> String {
        self.key.occupant(self.name.as_deref()).describe()
    }

    /// A number unique on its thread, starting at 1.
    pub fn id(&self) -> u64 {
        self.key.id
    }

    /// The period in ticks; 0 for an active poller.
    pub fn period_ticks(&self) -> u64 {
        self.period
    }

    fn here<R>(&self, f: impl FnOnce(Option<Rc<PollerCore>>) -> R) -> Option<R> {
        let local = self.thread.current_local()?;
        Some(f(local.pollers.find(self.key)))
    }

    /// Does `f` to the poller, if it is still there: now if its thread is the current
    /// one, else by a message. A thread that takes no message has no poller.
    fn send_unless_here(&self, f: impl FnOnce(&Local, &Rc<PollerCore>) + Send + 'static) {
        if let Some(local) = self.thread.current_local() {
            if let Some(poller) = local.pollers.find(self.key) {
                f(local, &poller);
            }
            return;
        }
        let key = self.key;
        let sent = self
            .thread
            .deliver(f, |f| Message::new(move || key.with_its_poller(f)));
        if let Err(f) = sent {
            drop_anywhere(f);
        }
    }
}

impl Drop for SendPoller {
    fn drop(&mut self) {
        if !self.detached {
            self.send_unless_here(Local::unregister_poller);
        }
    }
}

impl fmt::Debug for SendPoller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendPoller")
            .field("name", &self.name())
            .field("thread", &self.thread.name())
            .field("period_ticks", &self.period)
            .finish_non_exhaustive()
    }
}

impl PollerBuilder {
    /// Registers `callback`, which is `Send`, on the current SpdkThread: it does not
    /// keep the thread on its OS thread.
    ///
    /// # Errors
    ///
    /// [`PollerError`] when no SpdkThread is current or it has exited.
    pub fn register_send<A: Into<Activity>>(
        self,
        callback: impl FnMut() -> A + Send + 'static,
    ) -> Result<SendPoller, PollerError> {
        self.register_send_with(|_| callback)
    }

    /// [`PollerBuilder::register_send`] for a callback that pauses or unregisters
    /// itself.
    pub(crate) fn register_send_with<A, F>(
        self,
        make: impl FnOnce(PollerKey) -> F,
    ) -> Result<SendPoller, PollerError>
    where
        A: Into<Activity>,
        F: FnMut() -> A + Send + 'static,
    {
        let name = self.name.clone();
        let registered = Local::with_current(|local| {
            let core = local.register_poller(self, false, make)?;
            Ok(SendPoller {
                thread: local.shared.clone(),
                key: core.key,
                name,
                period: core.period,
                detached: false,
            })
        });
        registered.unwrap_or_else(|| Err(PollerError::not_on_thread()))
    }
}
