//! The devices of one library instance. Locked, so for registering, finding and
//! listing only: the path to a channel that is there does not come here.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::device::DeviceCore;
use crate::thread::library::LibraryInner;
use crate::thread::{SpdkThread, ThreadLib};

pub(super) struct Registered {
    pub(super) core: Arc<DeviceCore>,
    /// The typed device, for callers that have a key only.
    pub(super) device: Arc<dyn Any + Send + Sync>,
}

#[derive(Default)]
struct Tables {
    by_serial: BTreeMap<u64, Registered>,
    serial_of_key: BTreeMap<u64, u64>,
    last_serial: u64,
}

#[derive(Default)]
pub(super) struct Registry {
    tables: Mutex<Tables>,
}

/// A lock under which no user code runs, so that a poisoned one is whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    pub(super) fn of(library: &LibraryInner) -> Arc<Registry> {
        let any = library
            .devices
            .get_or_init(|| Arc::new(Registry::default()))
            .clone();
        any.downcast().expect("only this function stores there")
    }

    /// Adds what `make` makes of a new serial number, or says which device has
    /// the key.
    pub(super) fn add(
        &self,
        key: Option<u64>,
        make: impl FnOnce(u64) -> Registered,
    ) -> Result<(), String> {
        let mut tables = lock(&self.tables);
        let holder = key.and_then(|key| tables.serial_of_key.get(&key));
        if let Some(registered) = holder.and_then(|serial| tables.by_serial.get(serial)) {
            return Err(registered.core.name.to_string());
        }
        tables.last_serial += 1;
        let serial = tables.last_serial;
        if let Some(key) = key {
            tables.serial_of_key.insert(key, serial);
        }
        tables.by_serial.insert(serial, make(serial));
        Ok(())
    }

    pub(super) fn remove(&self, core: &DeviceCore) {
        let mut tables = lock(&self.tables);
        if let Some(key) = core.key {
            tables.serial_of_key.remove(&key);
        }
        let removed = tables.by_serial.remove(&core.serial);
        drop(tables);
        // The constructor in it is user content.
        drop(removed);
    }

    pub(super) fn find(&self, key: u64) -> Option<Registered> {
        let tables = lock(&self.tables);
        let registered = tables.by_serial.get(tables.serial_of_key.get(&key)?)?;
        Some(Registered {
            core: registered.core.clone(),
            device: registered.device.clone(),
        })
    }
}

impl Drop for Registry {
    /// The leak report of `spdk_thread_lib_fini`.
    fn drop(&mut self) {
        let tables = self
            .tables
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        for registered in tables.by_serial.values() {
            tracing::error!(
                device = &*registered.core.name,
                "io_device was never unregistered"
            );
        }
    }
}

/// One io_device as introspection sees it.
///
/// # Examples
///
/// What keeps a device from going:
///
/// ```
/// # use std::convert::Infallible;
/// use corespun::{channel::{self, IoDevice}, thread::ThreadLib};
///
/// let library = ThreadLib::new();
/// let mut runner = library.thread().name("holder").build()?.attach();
/// let device = runner.enter(|| {
///     IoDevice::builder().name("null0").key(7).register(|| Ok::<_, Infallible>(()))
/// })?;
/// let channel = runner.enter(|| device.channel())?;
/// let info = &channel::devices(&library)[0];
/// assert_eq!((&info.name[..], info.key, info.walks), ("null0", Some(7), 0));
/// assert_eq!(info.holders[0].name(), "holder");
/// # drop(channel);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// Its name.
    pub name: String,
    /// The key it was registered under, if any.
    pub key: Option<u64>,
    /// The threads that have a channel of it, in the order created.
    pub holders: Vec<SpdkThread>,
    /// Walks over its channels under way.
    pub walks: usize,
    /// Whether it waits for those to end to be unregistered.
    pub unregistering: bool,
}

/// The io_devices registered with a library instance, in the order registered.
/// Any OS thread; a snapshot, stale at once.
///
/// # Examples
///
/// ```
/// use corespun::{channel::{self, IoDevice}, thread::ThreadLib};
///
/// let library = ThreadLib::new();
/// let mut thread = library.thread().name("holder").build()?.attach();
/// let channel = thread.enter(|| {
///     let device = IoDevice::builder().name("null0").register(|| Ok::<_, std::io::Error>(()))?;
///     Ok::<_, Box<dyn std::error::Error>>(device.channel()?)
/// })?;
/// let leaked = &channel::devices(&library)[0];
/// assert_eq!(leaked.name, "null0");
/// assert_eq!(leaked.holders[0].name(), "holder");
/// # drop(channel);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn devices(library: &ThreadLib) -> Vec<DeviceInfo> {
    let registry = Registry::of(&library.inner);
    let cores: Vec<_> = {
        let tables = lock(&registry.tables);
        tables.by_serial.values().map(|r| r.core.clone()).collect()
    };
    cores.iter().map(|core| core.info()).collect()
}
