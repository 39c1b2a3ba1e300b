//! What binds a SpdkThread to its OS thread, in one place.
//!
//! A value of the program's that a thread owns (a callback, a hook, a handler, a
//! completion, a future, a channel's context, the value of a key) and that may not be
//! `Send` is called and dropped by the OS thread that it was made on. Where such
//! a value is stored, a [`Stay`] is made and stored with it, and lives exactly as
//! long; a thread can be parked only while it has none. So what is forgotten in
//! some list, or put back where no code looks for it, binds its thread as well: it
//! costs a move, not a use after free. A value known to be `Send` gets none.
//!
//! A handle that refers to the owner's part of the thread from outside (a [`Poller`],
//! an [`IoChannel`], the receiver of a queue) is an `Rc` of that, and binds by being
//! one. Handles of what moves ([`SendPoller`], [`SendChannel`]) refer to nothing of
//! the owner's: they say by which key the thread finds the thing, and touch it only
//! where the thread is the current one, for no longer than it is. That is the whole
//! of why they may be on any OS thread: a thread is current between the begin and the
//! end of a borrow of its one [`ThreadRunner`], and to be parked that has to be owned.
//!
//! [`Poller`]: crate::thread::Poller
//! [`SendPoller`]: crate::thread::SendPoller
//! [`IoChannel`]: crate::channel::IoChannel
//! [`SendChannel`]: crate::channel::SendChannel
//! [`ThreadRunner`]: crate::thread::ThreadRunner

use std::fmt;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use crate::thread::local::Local;

/// Counts the [`Stay`]s of one thread: they are its clones. Owner only.
#[derive(Default)]
pub(crate) struct Anchor(Rc<()>);

/// Binds the thread it was made for as long as it lives.
pub(crate) struct Stay {
    _anchor: Rc<()>,
}

impl Anchor {
    #[inline]
    pub(crate) fn stay(&self) -> Stay {
        Stay {
            _anchor: self.0.clone(),
        }
    }

    /// As [`stay`](Anchor::stay), without a value: for a caller that knows by other
    /// means for how long.
    #[inline]
    pub(crate) fn hold(&self) {
        std::mem::forget(self.stay());
    }

    /// Undoes one [`hold`](Anchor::hold).
    ///
    /// # Safety
    ///
    /// Called at most once for each.
    #[inline]
    pub(crate) unsafe fn let_go(&self) {
        // SAFETY: the count of a `Stay` that was forgotten.
        unsafe { Rc::decrement_strong_count(Rc::as_ptr(&self.0)) }
    }

    /// Whether a [`Stay`] lives.
    #[inline]
    pub(in crate::thread) fn holds(&self) -> bool {
        Rc::strong_count(&self.0) > 1
    }

    /// Binds the thread by `value` if that `stays`, because it may not be `Send`.
    pub(in crate::thread) fn bind_if<T>(&self, stays: bool, value: T) -> Bound<T> {
        Bound {
            value,
            stay: stays.then(|| self.stay()),
        }
    }
}

/// A value of the program's with what makes its thread keep it on its OS thread.
pub(in crate::thread) struct Bound<T> {
    // Dropped first.
    value: T,
    stay: Option<Stay>,
}

impl<T> Bound<T> {
    #[inline]
    pub(in crate::thread) fn get(&self) -> &T {
        &self.value
    }

    #[inline]
    pub(in crate::thread) fn get_mut(&mut self) -> &mut T {
        &mut self.value
    }

    /// Whether it binds its thread.
    pub(in crate::thread) fn binds(&self) -> bool {
        self.stay.is_some()
    }

    /// The value, which the thread does not own any more.
    pub(in crate::thread) fn into_inner(self) -> T {
        self.value
    }
}

/// Something that keeps a SpdkThread on its OS thread.
///
/// # Examples
///
/// Says by its text what to look for in the program:
///
/// ```
/// use corespun::thread::{BoundBy, Poller, SendPoller, ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let poller = runner.enter(|| Poller::builder().name("flush").register(|| false))?;
/// assert_eq!(runner.bound_by(), [BoundBy::Poller("flush".to_owned())]);
/// assert_eq!(runner.bound_by()[0].to_string(), "poller flush");
/// drop(poller);
/// // As one that is `Send` it does not bind.
/// let poller = runner.enter(|| Poller::builder().name("flush").register_send(|| false))?;
/// assert_eq!(runner.bound_by(), []);
/// # drop(poller);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BoundBy {
    /// A poller, by name, whose callback or switch hook may not be `Send`: register
    /// it with [`PollerBuilder::register_send`](crate::thread::PollerBuilder::register_send).
    Poller(String),
    /// A task, by name and spawn location, whose future may not be `Send`: spawn it
    /// with [`task::spawn`](crate::task::spawn).
    Task(String),
    /// A channel, by device name, whose context may not be `Send`, or that has an
    /// [`IoChannel`](crate::channel::IoChannel): open it with
    /// [`IoDevice::send_channel`](crate::channel::IoDevice::send_channel).
    Channel(String),
    /// A thread-local of this type: declare it with `static in send`.
    ThreadLocal(&'static str),
    /// The completion of a walk over the channels of a device, by name.
    ChannelWalk(String),
    /// The completion of the unregistration of a device, by name.
    Unregister(String),
    /// A post-poller handler that waits: register it with
    /// [`register_send_post_poller_handler`](crate::thread::register_send_post_poller_handler).
    PostPoller,
    /// This many [`Interrupt`](crate::thread::Interrupt)s: register them as
    /// [`SendInterrupt`](crate::thread::SendInterrupt)s.
    Interrupts(usize),
    /// This many other handles that belong to the OS thread:
    /// [`LocalSpawner`](crate::task::LocalSpawner)s, receivers of
    /// [`mpsc::channel`](crate::mpsc::channel), [`Poller`](crate::thread::Poller)s that are
    /// unregistered or have none of their own.
    Handles(usize),
    /// What was cancelled and waits to be dropped.
    Cancelled,
    /// [`SpdkThread::bind`](crate::thread::SpdkThread::bind).
    Request,
}

impl fmt::Display for BoundBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BoundBy::Poller(name) => write!(f, "poller {name}"),
            BoundBy::Task(name) => write!(f, "task {name}"),
            BoundBy::Channel(device) => write!(f, "channel of {device}"),
            BoundBy::ThreadLocal(name) => write!(f, "thread-local {name}"),
            BoundBy::ChannelWalk(device) => write!(f, "for_each_channel of {device} under way"),
            BoundBy::Unregister(device) => write!(f, "unregister of {device} under way"),
            BoundBy::PostPoller => f.write_str("post-poller handler"),
            BoundBy::Interrupts(count) => write!(f, "{count} interrupts"),
            BoundBy::Handles(count) => write!(f, "{count} handles"),
            BoundBy::Cancelled => f.write_str("what waits to be dropped"),
            BoundBy::Request => f.write_str("SpdkThread::bind"),
        }
    }
}

impl Local {
    /// Whether the thread must stay on this OS thread.
    pub(in crate::thread) fn is_bound(self: &Rc<Self>) -> bool {
        self.stays(1) || self.shared.bound.load(Ordering::Acquire)
    }

    /// Whether something keeps the thread, besides so many `own` references to this.
    #[inline]
    fn stays(self: &Rc<Self>, own: usize) -> bool {
        !self.assume_send
            && (Rc::strong_count(self) > own || Rc::weak_count(self) > 0 || self.anchor.holds())
    }

    /// What keeps the current thread on this OS thread.
    pub(crate) fn current_bound_by() -> Vec<BoundBy> {
        // That of the runner, and this one.
        Local::current_rc().map_or_else(Vec::new, |local| local.bound_by(2))
    }

    /// What keeps the thread on this OS thread, besides so many `own` references to
    /// this.
    pub(in crate::thread) fn bound_by(self: &Rc<Self>, own: usize) -> Vec<BoundBy> {
        let mut by = Vec::new();
        if self.stays(own) {
            let handles = Rc::strong_count(self) - own;
            // The references to this that what is known explains.
            let known: usize = self.parts().map(|part| part.binders(&mut by)).sum();
            match handles.saturating_sub(known) {
                0 if by.is_empty() => by.push(BoundBy::Cancelled),
                0 => {}
                others => by.push(BoundBy::Handles(others)),
            }
        }
        if self.shared.bound.load(Ordering::Acquire) {
            by.push(BoundBy::Request);
        }
        by
    }
}
