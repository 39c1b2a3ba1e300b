//! io_devices and io_channels: something shared, and each thread's own part of
//! it.
//!
//! An [`IoDevice`] is what several SpdkThreads do I/O on; an [`IoChannel`] is
//! one thread's access to it: a submission queue, a connection, a cache. The
//! device's constructor makes the channel's context on the thread that asks
//! first, all other users on that thread share it, and its destructor runs there
//! after the last of them let go. So the data path needs no lock.
//!
//! ```
//! use std::cell::Cell;
//! use corespun::{channel::IoDevice, thread::ThreadLib};
//!
//! struct Queue {
//!     submitted: Cell<u64>,
//! }
//!
//! let mut thread = ThreadLib::new().thread().build()?.attach();
//! thread.enter(|| {
//!     let device = IoDevice::builder()
//!         .name("null0")
//!         .register(|| Ok::<_, std::io::Error>(Queue { submitted: Cell::new(0) }))?;
//!     let channel = device.channel()?;
//!     channel.submitted.set(1);
//!     let same = device.channel()?;
//!     assert_eq!(same.submitted.get(), 1);
//!     Ok::<(), Box<dyn std::error::Error>>(())
//! })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod device;
mod io_channel;
mod lifetime;
#[cfg(all(test, corespun_loom))]
mod loom_tests;
mod registry;
mod send_channel;
mod walk;
mod walk_async;

pub use device::{IoDevice, IoDeviceBuilder, Unregister};
pub use io_channel::IoChannel;
pub use registry::{DeviceInfo, devices};
pub use send_channel::SendChannel;
pub use walk::WalkStep;

use crate::thread::{Exited, NotOnThread, WalkPanicked};

/// The error of a channel's constructor, as the caller sees it.
///
/// # Examples
///
/// A constructor's error may be any, a text among them:
///
/// ```
/// use corespun::channel::BoxError;
///
/// fn open_queue(depth: u32) -> Result<u32, BoxError> {
///     if depth == 0 {
///         return Err("a queue needs a depth".into());
///     }
///     Ok(depth)
/// }
///
/// assert_eq!(open_queue(0).unwrap_err().to_string(), "a queue needs a depth");
/// ```
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a device could not be registered.
///
/// # Examples
///
/// ```
/// # use std::convert::Infallible;
/// use corespun::channel::{IoDevice, RegisterError};
///
/// let error = IoDevice::builder().name("null0").register(|| Ok::<_, Infallible>(()));
/// assert!(matches!(error, Err(RegisterError::NotOnThread(_))));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// No SpdkThread is current on this OS thread.
    #[error(transparent)]
    NotOnThread(#[from] NotOnThread),
    /// A device has this key already.
    #[error("an io_device with key {key:#x} is registered already, as {name:?}")]
    Duplicate {
        /// The key.
        key: u64,
        /// The name of the device that has it.
        name: String,
    },
}

/// Why a device was not found.
///
/// # Examples
///
/// ```
/// # use std::convert::Infallible;
/// use corespun::{channel::{FindError, IoDevice}, thread::ThreadLib};
///
/// let library = ThreadLib::new();
/// let mut runner = library.thread().build()?.attach();
/// let device = runner.enter(|| IoDevice::builder().key(7).register(|| Ok::<_, Infallible>(1u8)))?;
/// assert_eq!(IoDevice::<u8>::find(&library, 8), Err(FindError::Unknown(8)));
/// let other = IoDevice::<String>::find(&library, 7);
/// assert!(matches!(other, Err(FindError::WrongType { .. })));
/// # drop(device);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FindError {
    /// No device with this key is registered.
    #[error("no io_device with key {0:#x} is registered")]
    Unknown(u64),
    /// The device's channels are of another type.
    #[error("io_device {name:?} has channels of another type than {wanted}")]
    WrongType {
        /// The device.
        name: String,
        /// The type that was asked for.
        wanted: &'static str,
    },
}

/// Why there is no channel.
///
/// # Examples
///
/// ```
/// use corespun::{channel::{ChannelError, IoDevice}, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let device = runner.enter(|| {
///     IoDevice::builder().name("nvme0").register(|| Err::<(), _>("no queue pair is free"))
/// })?;
/// match runner.enter(|| device.channel()) {
///     Err(ChannelError::Constructor { device, source }) => {
///         assert_eq!((&device[..], &source.to_string()[..]), ("nvme0", "no queue pair is free"));
///     }
///     other => panic!("{other:?}"),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// No SpdkThread is current on this OS thread.
    #[error(transparent)]
    NotOnThread(#[from] NotOnThread),
    /// The current thread has exited.
    #[error(transparent)]
    Exited(#[from] Exited),
    /// The channel is of another thread than the current one, if there is one.
    #[error(
        "the channel of io_device {device:?} belongs to thread {thread:?}: use it in a message, task or poller of that"
    )]
    Elsewhere {
        /// The thread that has the channel.
        thread: String,
        /// The device.
        device: String,
    },
    /// The current thread belongs to another library instance.
    #[error(
        "io_device {device:?} belongs to another library instance than thread {thread:?}; register one in each"
    )]
    OtherLibrary {
        /// The thread.
        thread: String,
        /// The device.
        device: String,
    },
    /// The device is not registered any more.
    #[error("io_device {0:?} is unregistered and opens no more channels")]
    Unregistered(String),
    /// The device's constructor asked for the very channel it is making.
    #[error("the channel of io_device {0:?} is being made by its constructor, which asked for it")]
    Recursive(String),
    /// The device's constructor failed.
    #[error("the channel of io_device {device:?} could not be made: {source}")]
    Constructor {
        /// The device.
        device: String,
        /// The constructor's error.
        source: BoxError,
    },
}

/// Why a device could not be unregistered.
///
/// # Examples
///
/// ```
/// # use std::convert::Infallible;
/// use corespun::{channel::{IoDevice, UnregisterError}, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let device = runner.enter(|| {
///     IoDevice::builder().name("null0").register(|| Ok::<_, Infallible>(()))
/// })?;
/// runner.enter(|| device.unregister_with(|| ()))?;
/// let twice = runner.enter(|| device.unregister_with(|| ()));
/// assert_eq!(twice, Err(UnregisterError::Twice("null0".to_owned())));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnregisterError {
    /// No SpdkThread of the device's library instance is current.
    #[error(transparent)]
    NotOnThread(#[from] NotOnThread),
    /// The current thread has exited.
    #[error(transparent)]
    Exited(#[from] Exited),
    /// It was unregistered before, or waits for walks to end to be so.
    #[error("io_device {0:?} is unregistered already, or about to be")]
    Twice(String),
}

/// What was wrong with a walk over the channels of a device: it ended before the last
/// of them, or its function panicked.
///
/// # Examples
///
/// The first channel that fails ends the walk:
///
/// ```
/// use std::{cell::RefCell, convert::Infallible, rc::Rc};
/// use corespun::{channel::{IoDevice, WalkError}, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let device = runner.enter(|| IoDevice::builder().register(|| Ok::<_, Infallible>(())))?;
/// let _channel = runner.enter(|| device.channel())?;
/// let result = Rc::new(RefCell::new(None));
/// let told = result.clone();
/// runner.enter(|| {
///     device.for_each_channel(|_| Err("busy"), move |result| *told.borrow_mut() = Some(result))
/// })?;
/// while runner.poll(0, 0).is_busy() {}
/// assert_eq!(*result.borrow(), Some(Err(WalkError::Stopped("busy"))));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WalkError<E> {
    /// A channel's turn ended with this.
    #[error("{0}")]
    Stopped(E),
    /// The device is unregistered, or waits for earlier walks to be so.
    #[error("io_device {0:?} is being unregistered and takes no new walk")]
    Unregistered(String),
    /// All channels were visited, and the function panicked at some.
    #[error(transparent)]
    Panicked(WalkPanicked),
}

/// What awaiting [`IoDevice::unregister`] may fail with.
///
/// # Examples
///
/// ```
/// # use std::convert::Infallible;
/// use corespun::{channel::{IoDevice, UnregisterCancelled}, thread::ThreadLib};
///
/// let library = ThreadLib::new();
/// let (mut a, mut b) = (library.thread().build()?.attach(), library.thread().build()?.attach());
/// let device = a.enter(|| IoDevice::builder().register(|| Ok::<_, Infallible>(())))?;
/// let channel = b.enter(|| device.channel())?;
/// let gone = a.enter(|| device.unregister())?;
/// // The thread that was to hear of it ends before.
/// drop(a);
/// assert_eq!(futures::executor::block_on(gone), Err(UnregisterCancelled));
/// # drop(channel);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the exit of the thread that unregistered the io_device was forced before the last channel was gone"
)]
pub struct UnregisterCancelled;
