//! iobuf: pools of I/O buffers that all threads share, with a cache per thread
//! and module, and queues for callers that find them empty.
//!
//! There are two classes of buffers, small and large. A module (a protocol, a
//! block device) opens an [`IobufChannel`] on each thread that it works on; the
//! channel keeps a few buffers of its own, which no other one gets. A caller
//! that finds no buffer waits in order: on its own thread first come, first
//! served, whatever the module; and a buffer that is given back on a thread
//! without a waiter goes to the thread that has waited longest.
//!
//! ```
//! use corespun::{iobuf::Iobuf, task, thread::ThreadLib};
//!
//! let mut thread = ThreadLib::new().thread().build()?.attach();
//! let task = thread.enter(|| {
//!     let iobuf = Iobuf::builder().small(64, 4096).large(8, 65_536).build()?;
//!     iobuf.register_module("null")?;
//!     let channel = iobuf.channel("null", 8, 2)?;
//!     Ok::<_, corespun::iobuf::IobufError>(task::spawn_local(async move {
//!         let mut buffer = channel.get(512).await?;
//!         buffer[..5].copy_from_slice(b"hello");
//!         Ok::<_, corespun::iobuf::IobufError>(buffer.len())
//!     }))
//! })?;
//! thread.poll(0, 0);
//! assert_eq!(futures::executor::block_on(task)??, 4096);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod arena;
mod buf;
mod builder;
mod channel;
mod pool;
mod queue;
#[cfg(test)]
mod tests;

pub use buf::IobufBuf;
pub use builder::IobufBuilder;
pub use channel::{Got, GotMany, IobufChannel, WaiterId};
pub use pool::{Finish, Iobuf, ModuleStats, PoolStats};
pub use queue::{GetBuf, GetMany};

/// Which of the two sizes.
///
/// # Examples
///
/// The length asked for decides it; the shorter buffers are sorted first:
///
/// ```
/// use corespun::iobuf::Class;
///
/// assert!(Class::Small < Class::Large);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// The small buffers.
    Small,
    /// The large buffers.
    Large,
}

impl Class {
    pub(crate) const ALL: [Class; 2] = [Class::Small, Class::Large];
}

/// What may go wrong with pools of buffers.
///
/// # Examples
///
/// ```
/// use corespun::{iobuf::{Iobuf, IobufError}, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let error = runner.enter(|| Iobuf::builder().small(8, 4096).build()).unwrap_err();
/// assert!(matches!(error, IobufError::TooSmall { minimum: 64, given: 8, .. }));
/// assert_eq!(
///     error.to_string(),
///     "iobuf: the number of small buffers must be at least 64, not 8"
/// );
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IobufError {
    /// A setting is below what the pools need.
    #[error("iobuf: {what} must be at least {minimum}, not {given}")]
    TooSmall {
        /// The setting.
        what: &'static str,
        /// Its least value.
        minimum: usize,
        /// The value given.
        given: usize,
    },
    /// The memory of a pool could not be reserved.
    #[error("iobuf: {bytes} bytes of buffers cannot be reserved: {source}")]
    NoMemory {
        /// How many.
        bytes: usize,
        /// Why.
        source: std::io::Error,
    },
    /// No SpdkThread is current, it has exited, or the pools are finished.
    #[error("iobuf: {0}")]
    Channel(#[from] crate::channel::ChannelError),
    /// No SpdkThread is current.
    #[error("iobuf: {0}")]
    Register(#[from] crate::channel::RegisterError),
    /// A module of this name is registered.
    #[error("iobuf: module {0:?} is registered already")]
    ModuleExists(String),
    /// No module of this name is registered.
    #[error("iobuf: module {0:?} is not registered; call `register_module` first")]
    NoModule(String),
    /// The thread has as many channels as it may.
    #[error("iobuf: this thread has {0} channels already, as many as it may")]
    TooManyChannels(usize),
    /// The pool has not enough free buffers for a channel's cache.
    #[error("iobuf: a cache of {wanted} {class:?} buffers cannot be filled; make the pool larger")]
    CacheNotFilled {
        /// The class.
        class: Class,
        /// How many the cache was to have.
        wanted: usize,
    },
    /// No buffer is that long.
    #[error("iobuf: {wanted} bytes were asked for, and the large buffers have {largest}")]
    TooLong {
        /// The length asked for.
        wanted: usize,
        /// The length of the large buffers.
        largest: usize,
    },
}
