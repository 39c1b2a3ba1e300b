//! The settings of a device, and its registration.

use std::sync::Arc;

use super::{BoxError, Constructor, Device, DeviceCore, IoDevice, Lifetime, RegisterError};
use crate::channel::registry::{Registered, Registry};
use crate::thread::NotOnThread;
use crate::thread::local::Local;

/// Settings of a device to be registered.
///
/// # Examples
///
/// ```
/// use std::{cell::RefCell, collections::VecDeque};
/// use corespun::{channel::IoDeviceBuilder, thread::ThreadLib};
///
/// type Queue = RefCell<VecDeque<u64>>;
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let settings = IoDeviceBuilder::default().name("nvme0").key(1);
/// let device = runner.enter(|| {
///     settings.register(|| Ok::<_, std::io::Error>(Queue::new(VecDeque::with_capacity(128))))
/// })?;
/// let channel = runner.enter(|| device.channel())?;
/// channel.borrow_mut().push_back(4096);
/// assert_eq!(channel.borrow().len(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "call `register`"]
pub struct IoDeviceBuilder {
    name: Option<String>,
    key: Option<u64>,
}

impl IoDeviceBuilder {
    /// A name for reports and introspection, cut at 256 bytes.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(crate::thread::cut_name(name.into()));
        self
    }

    /// A number, unique among the registered devices of the library instance,
    /// by which [`IoDevice::find`] finds the device. Where SPDK takes an
    /// address, that may be it: it is never looked behind.
    pub fn key(mut self, key: u64) -> Self {
        self.key = Some(key);
        self
    }

    /// Registers the device with the current thread's library instance
    /// (`spdk_io_device_register`). `construct` makes a channel's context, on
    /// the thread that it will belong to; it may open channels of other devices
    /// and keep them in it. Dropping the context is the channel's destructor.
    ///
    /// # Errors
    ///
    /// [`RegisterError`] when no SpdkThread is current or the key is taken.
    ///
    /// # Examples
    ///
    /// A device on top of another one keeps that one's channel in its own:
    ///
    /// ```
    /// use std::convert::Infallible;
    /// use corespun::{channel::IoDevice, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let (base, cache) = runner.enter(|| {
    ///     let base = IoDevice::builder().name("nvme0").register(|| Ok::<_, Infallible>(()))?;
    ///     let below = base.clone();
    ///     let cache = IoDevice::builder().name("cache0").register(move || below.channel())?;
    ///     Ok::<_, corespun::channel::RegisterError>((base, cache))
    /// })?;
    /// let channel = runner.enter(|| cache.channel())?;
    /// assert_eq!(base.holders(), [runner.handle()]);
    /// # drop(channel);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn register<C, E>(
        self,
        construct: impl Fn() -> Result<C, E> + Send + Sync + 'static,
    ) -> Result<IoDevice<C>, RegisterError>
    where
        C: 'static,
        E: Into<BoxError>,
    {
        let registry = Local::with_current(|local| Registry::of(&local.shared.library));
        let Some(registry) = registry else {
            let name = self.name.unwrap_or_default();
            let needs = format!("io_device {name:?} must be registered on a SpdkThread");
            return Err(NotOnThread::new(needs).into());
        };
        let construct: Constructor<C> = Box::new(move || construct().map_err(Into::into));
        let mut registered = None;
        let added = registry.add(self.key, |serial| {
            let name = self.name.unwrap_or_else(|| format!("io_device {serial}"));
            let core = Arc::new(DeviceCore {
                serial,
                name: name.into(),
                key: self.key,
                registry: Arc::downgrade(&registry),
                lifetime: Lifetime::new(),
            });
            let device = Arc::new(Device {
                core: core.clone(),
                construct: Some(construct),
            });
            registered = Some(device.clone());
            Registered { core, device }
        });
        match (added, registered) {
            (Ok(()), Some(device)) => Ok(IoDevice { device }),
            (Err(name), _) => Err(RegisterError::Duplicate {
                key: self.key.unwrap_or_default(),
                name,
            }),
            (Ok(()), None) => unreachable!("`add` succeeds only after it called `make`"),
        }
    }
}
