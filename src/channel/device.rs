//! The device: its registration, the threads that have channels of it, and its end.
//!
//! The end comes in steps. Unregistering waits for walks under way first; then
//! the device opens no more channels; and when the last channel
//! has been destroyed, the thread that unregistered it is told by message.

mod builder;

use std::any::type_name;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use futures::channel::oneshot;

pub use builder::IoDeviceBuilder;

use super::io_channel::{self, IoChannel};
use super::lifetime::{Lifetime, Removed, Requested};
use super::registry::{DeviceInfo, Registry};
use super::{
    BoxError, ChannelError, FindError, RegisterError, UnregisterCancelled, UnregisterError,
};
use crate::task::reply::Reply;
use crate::thread::local::Local;
use crate::thread::message::Message;
use crate::thread::panic::drop_anywhere;
use crate::thread::pending::{Pending, PendingKey};
use crate::thread::shared::Shared;
use crate::thread::{Exited, NotOnThread, SpdkThread, ThreadLib};

type Constructor<C> = Box<dyn Fn() -> Result<C, BoxError> + Send + Sync>;

pub(super) struct Device<C> {
    pub(super) core: Arc<DeviceCore>,
    /// There until the device is dropped.
    construct: Option<Constructor<C>>,
}

impl<C> Device<C> {
    /// Calls the program's constructor.
    pub(super) fn construct(&self) -> Result<C, BoxError> {
        match &self.construct {
            Some(construct) => construct(),
            None => unreachable!("taken by `drop` only"),
        }
    }
}

/// The last reference may be that of a handle, of a channel, or of the registry,
/// which is to drop the others as well.
impl<C> Drop for Device<C> {
    fn drop(&mut self) {
        drop_anywhere(self.construct.take());
    }
}

/// What does not depend on the channel's type.
pub(super) struct DeviceCore {
    /// The order registered, within a library instance. Says not which device it is:
    /// that of another instance has the same number.
    pub(super) serial: u64,
    pub(super) name: Arc<str>,
    pub(super) key: Option<u64>,
    registry: Weak<Registry>,
    /// Holders are threads, by id, which is the order created.
    lifetime: Lifetime<Arc<Shared>, Request>,
}

/// The thread that is to be told that the device is gone.
#[derive(Clone)]
struct Request {
    origin: Arc<Shared>,
    key: PendingKey<()>,
}

impl Request {
    fn complete(self) {
        let key = self.key;
        // Refused only by a thread that has given up waiting.
        let _ = self.origin.deliver((), |()| {
            Message::new(move || {
                Local::with_current(|local| local.complete(key, ()));
            })
        });
    }
}

/// Goes on with an unregistration that waited for walks, when dropped: so it is
/// not lost with a message.
struct Close(Arc<DeviceCore>);

impl Drop for Close {
    fn drop(&mut self) {
        self.0.unregister_now();
    }
}

impl DeviceCore {
    pub(super) fn name(&self) -> String {
        self.name.to_string()
    }

    /// Whether new channels may be opened.
    #[inline]
    pub(super) fn is_registered(&self) -> bool {
        self.lifetime.is_registered()
    }

    pub(super) fn belongs_to(&self, local: &Local) -> bool {
        let registry = local.shared.library.devices.get();
        registry.is_some_and(|of| std::ptr::addr_eq(Arc::as_ptr(of), self.registry.as_ptr()))
    }

    /// Counts the channel that the thread is about to make, unless the device
    /// is gone.
    pub(super) fn add_channel(&self, local: &Local) -> bool {
        self.lifetime
            .add_channel(local.shared.id, local.lend_shared())
    }

    /// The thread's channel is destroyed, or was not made after all.
    pub(super) fn remove_channel(&self, thread: u64) {
        let Removed { holder, request } = self.lifetime.remove_channel(thread);
        if let Some(request) = request {
            request.complete();
        }
        if let Some(holder) = holder {
            Local::give_back_shared(holder);
        }
    }

    /// The first thread after `cursor` that has a channel. If there is none, the
    /// walk that asks has ended.
    pub(super) fn next_channel(self: &Arc<Self>, cursor: u64) -> Option<Arc<Shared>> {
        match self.lifetime.next_channel(cursor) {
            Ok(thread) => Some(thread),
            Err(request) => {
                self.walks_ended(request);
                None
            }
        }
    }

    /// The first thread that has a channel after the one of that id.
    pub(super) fn channel_thread_after(&self, id: u64) -> Option<Arc<Shared>> {
        self.lifetime.holder_after(id)
    }

    /// The threads that have a channel, in the order they were created.
    pub(super) fn channel_threads(&self) -> Vec<Arc<Shared>> {
        self.lifetime.counts().holders
    }

    /// Counts a walk, unless the device is gone or about to be.
    pub(super) fn begin_walk(&self) -> bool {
        self.lifetime.begin_walk()
    }

    /// The last thing a walk does to its device.
    pub(super) fn end_walk(self: &Arc<Self>) {
        self.walks_ended(self.lifetime.end_walk());
    }

    /// Has the thread that asked for the end, if that waited for walks, go on
    /// with it.
    fn walks_ended(self: &Arc<Self>, request: Option<Request>) {
        let Some(request) = request else {
            return;
        };
        // Refused or dropped unrun, it closes the device all the same.
        let _ = request.origin.deliver(Close(self.clone()), |close| {
            Message::new(move || drop(close))
        });
    }

    /// `stays` says that `done` may not be `Send`.
    fn unregister(
        self: &Arc<Self>,
        stays: bool,
        done: Box<dyn FnOnce()>,
    ) -> Result<(), UnregisterError> {
        let not_on_thread = || {
            UnregisterError::from(NotOnThread::new(format!(
                "io_device {:?} must be unregistered on a SpdkThread of its library instance",
                self.name()
            )))
        };
        Local::with_current(|local| {
            if !self.belongs_to(local) {
                return Err(not_on_thread());
            }
            if local.refuses_work() {
                let device = self.name();
                let gone = format!("has exited and cannot wait for io_device {device:?}");
                return Err(Exited::new(local.shared.name(), gone).into());
            }
            let requested = self.lifetime.request(|| {
                let what = Pending::Unregister(self.name.clone());
                let key = local.insert_pending(what, stays, move |()| done());
                Request {
                    origin: local.shared.clone(),
                    key,
                }
            });
            match requested {
                Requested::CloseNow => self.unregister_now(),
                Requested::AfterWalks => {}
                Requested::Twice => return Err(UnregisterError::Twice(self.name())),
            }
            Ok(())
        })
        .unwrap_or_else(|| Err(not_on_thread()))
    }

    fn unregister_now(&self) {
        if let Some(request) = self.lifetime.close() {
            request.complete();
        }
        if let Some(registry) = self.registry.upgrade() {
            registry.remove(self);
        }
    }

    pub(super) fn info(&self) -> DeviceInfo {
        let counts = self.lifetime.counts();
        DeviceInfo {
            name: self.name(),
            key: self.key,
            holders: threads(counts.holders),
            walks: counts.walks,
            unregistering: counts.unregistering,
        }
    }
}

fn threads(holders: Vec<Arc<Shared>>) -> Vec<SpdkThread> {
    holders.into_iter().map(SpdkThread::from_shared).collect()
}

/// Something that SpdkThreads have channels to (`struct io_device`): a handle
/// of it, good on every thread. `C` is the context of a channel.
///
/// The device stays registered until it is unregistered, whether or not there
/// are handles; what was never unregistered is logged when the library instance
/// ends.
///
/// # Examples
///
/// A device that is unregistered while another thread has a channel: the caller
/// hears of it once that is gone.
///
/// ```
/// use corespun::{channel::IoDevice, task, thread::ThreadLib};
///
/// let library = ThreadLib::new();
/// let mut a = library.thread().build()?.attach();
/// let mut b = library.thread().build()?.attach();
/// let device = a.enter(|| IoDevice::builder().register(|| Ok::<_, std::io::Error>(())))?;
/// let channel = b.enter(|| device.channel())?;
///
/// let gone = a.enter(|| device.unregister())?;
/// let waiting = a.enter(|| task::spawn_local(gone));
/// a.poll(0, 0);
/// assert!(b.enter(|| device.channel()).is_err());
/// assert!(!waiting.is_finished());
///
/// drop(channel);
/// b.poll(0, 0); // destroys the channel
/// a.poll(0, 0); // runs the completion
/// a.poll(0, 0);
/// assert!(waiting.is_finished());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct IoDevice<C: 'static> {
    pub(super) device: Arc<Device<C>>,
}

impl<C: 'static> Clone for IoDevice<C> {
    fn clone(&self) -> Self {
        IoDevice {
            device: self.device.clone(),
        }
    }
}

impl IoDevice<()> {
    /// Settings of a device to be registered.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::convert::Infallible;
    /// use corespun::{channel::IoDevice, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let device = runner.enter(|| {
    ///     IoDevice::builder().name("null0").key(7).register(|| Ok::<_, Infallible>(()))
    /// })?;
    /// assert_eq!((device.name(), device.key()), ("null0", Some(7)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn builder() -> IoDeviceBuilder {
        IoDeviceBuilder::default()
    }
}

impl<C: 'static> IoDevice<C> {
    /// The device registered under `key` with a library instance. Any OS
    /// thread.
    ///
    /// # Errors
    ///
    /// [`FindError`] when there is none, or one of other channels.
    ///
    /// # Examples
    ///
    /// By a key that was agreed on, from anywhere:
    ///
    /// ```
    /// use std::{cell::Cell, convert::Infallible};
    /// use corespun::{channel::IoDevice, thread::ThreadLib};
    ///
    /// let library = ThreadLib::new();
    /// let mut runner = library.thread().build()?.attach();
    /// let device = runner.enter(|| {
    ///     IoDevice::builder().key(0xacce1).register(|| Ok::<_, Infallible>(Cell::new(0u32)))
    /// })?;
    /// assert_eq!(IoDevice::<Cell<u32>>::find(&library, 0xacce1)?, device);
    /// assert!(IoDevice::<Cell<u32>>::find(&library, 0xbad).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn find(library: &ThreadLib, key: u64) -> Result<Self, FindError> {
        let registered = Registry::of(&library.inner)
            .find(key)
            .ok_or(FindError::Unknown(key))?;
        match registered.device.downcast::<Device<C>>() {
            Ok(device) => Ok(IoDevice { device }),
            Err(_) => Err(FindError::WrongType {
                name: registered.core.name(),
                wanted: type_name::<C>(),
            }),
        }
    }

    /// The current thread's channel (`spdk_get_io_channel`): the one that it
    /// has, or a new one, made here and now by the device's constructor.
    ///
    /// # Errors
    ///
    /// [`ChannelError`] when no SpdkThread is current or it has exited, when
    /// the device is unregistered, and when the constructor fails.
    ///
    /// # Examples
    ///
    /// Every user of a thread gets the same channel; another thread has its own:
    ///
    /// ```
    /// use std::sync::atomic::{AtomicU32, Ordering};
    /// use corespun::{channel::IoDevice, thread::ThreadLib};
    ///
    /// let library = ThreadLib::new();
    /// let (mut a, mut b) = (library.thread().build()?.attach(), library.thread().build()?.attach());
    /// let queues = AtomicU32::new(1);
    /// let device = a.enter(|| {
    ///     IoDevice::builder()
    ///         .register(move || Ok::<_, std::io::Error>(queues.fetch_add(1, Ordering::Relaxed)))
    /// })?;
    /// let (protocol, health) = a.enter(|| (device.channel(), device.channel()));
    /// let of_b = b.enter(|| device.channel())?;
    /// assert_eq!((*protocol?, *health?, *of_b), (1, 1, 2));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn channel(&self) -> Result<IoChannel<C>, ChannelError> {
        io_channel::get(&self.device)
    }

    /// Calls `f` with the context of the current thread's channel, if it has
    /// one, without counting as a handle.
    pub(crate) fn with_existing<R>(&self, f: impl FnOnce(&C) -> R) -> Option<R> {
        let core = &*self.device.core;
        let cell = Local::with_current(|local| io_channel::existing(local, core)).flatten()?;
        Some(f(&cell.context))
    }

    /// Unregisters the device (`spdk_io_device_unregister`): after walks under
    /// way have ended, no new channel is opened; when the last one is gone,
    /// the future completes. Until then the current thread does not exit,
    /// whether or not the future is awaited.
    ///
    /// # Errors
    ///
    /// [`UnregisterError`] when no thread of the device's library instance is
    /// current or it has exited, or when it was unregistered before.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future only stops the waiting.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::convert::Infallible;
    /// use corespun::{channel::IoDevice, task, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let device = runner.enter(|| IoDevice::builder().register(|| Ok::<_, Infallible>(())))?;
    /// let removed = runner.enter(|| {
    ///     let gone = device.unregister()?;
    ///     Ok::<_, corespun::channel::UnregisterError>(task::spawn_local(gone))
    /// })?;
    /// while !removed.is_finished() {
    ///     runner.poll(0, 0);
    /// }
    /// assert!(!device.is_registered());
    /// assert_eq!(futures::executor::block_on(removed)?, Ok(()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn unregister(&self) -> Result<Unregister, UnregisterError> {
        let (sender, receiver) = oneshot::channel();
        let told: Box<dyn FnOnce() + Send> = Box::new(move || {
            // The waiter may have given up.
            let _ = sender.send(());
        });
        self.device.core.unregister(false, told)?;
        let gone: Gone = |answer| answer.ok_or(UnregisterCancelled);
        Ok(Unregister(Reply::new(gone, receiver)))
    }

    /// [`IoDevice::unregister`] with a callback, which is run by a message on
    /// the current thread.
    ///
    /// # Errors
    ///
    /// As [`IoDevice::unregister`].
    pub fn unregister_with(&self, done: impl FnOnce() + 'static) -> Result<(), UnregisterError> {
        self.device.core.unregister(true, Box::new(done))
    }

    /// The name given, or one made of a number.
    pub fn name(&self) -> &str {
        &self.device.core.name
    }

    /// The key it was registered under.
    pub fn key(&self) -> Option<u64> {
        self.device.core.key
    }

    /// Whether it is registered: channels can be had.
    pub fn is_registered(&self) -> bool {
        self.device.core.is_registered()
    }

    /// The threads that have a channel, in the order created: what a leak
    /// report names. Stale at once.
    pub fn holders(&self) -> Vec<SpdkThread> {
        threads(self.device.core.lifetime.counts().holders)
    }
}

impl<C: 'static> PartialEq for IoDevice<C> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.device, &other.device)
    }
}

impl<C: 'static> Eq for IoDevice<C> {}

impl<C: 'static> fmt::Debug for IoDevice<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoDevice")
            .field("name", &self.name())
            .field("registered", &self.is_registered())
            .finish_non_exhaustive()
    }
}

/// Completes when an unregistered device has no channel left; made by
/// [`IoDevice::unregister`].
///
/// # Examples
///
/// ```
/// use std::convert::Infallible;
/// use corespun::{channel::IoDevice, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let device = runner.enter(|| IoDevice::builder().register(|| Ok::<_, Infallible>(())))?;
/// let channel = runner.enter(|| device.channel())?;
/// let mut gone = Box::pin(runner.enter(|| device.unregister())?);
/// runner.poll(0, 0);
/// // A channel is still there.
/// assert!(futures::FutureExt::now_or_never(gone.as_mut()).is_none());
/// drop(channel);
/// while runner.poll(0, 0).is_busy() {}
/// assert_eq!(futures::executor::block_on(gone), Ok(()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "futures do nothing unless awaited; the device is unregistered without"]
pub struct Unregister(Reply<Gone>);

/// What the waiter gets when the last channel is gone, or when it will not be told.
type Gone = fn(Option<()>) -> Result<(), UnregisterCancelled>;

impl Future for Unregister {
    type Output = Result<(), UnregisterCancelled>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl fmt::Debug for Unregister {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unregister").finish_non_exhaustive()
    }
}
