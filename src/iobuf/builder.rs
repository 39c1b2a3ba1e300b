//! The settings of the pools, and how those are made.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock};

use super::IobufError;
use super::pool::{Iobuf, Pool, Pools};
use super::queue::ThreadState;
use crate::channel::IoDevice;
use crate::cpu::CpuSet;
use crate::thread::local::Local;

/// As SPDK's: the alignment and the least sizes.
const PAGE: usize = 4096;
const MIN_SMALL: (usize, usize) = (64, 4096);
const MIN_LARGE: (usize, usize) = (8, 8192);

/// Settings of the pools; SPDK's defaults.
///
/// # Examples
///
/// ```
/// use corespun::{iobuf::Iobuf, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let settings = Iobuf::builder().small(128, 4096).large(16, 65_536);
/// let iobuf = runner.enter(|| settings.build())?;
/// assert_eq!(iobuf.free_counts(), [128, 16]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "call `build`"]
pub struct IobufBuilder {
    small: (usize, usize),
    large: (usize, usize),
    numa: bool,
}

impl IobufBuilder {
    pub(super) fn new() -> Self {
        IobufBuilder {
            small: (8192, 8192),
            large: (1024, 135_168),
            numa: false,
        }
    }

    /// How many small buffers there are, 64 at least, and how many bytes each
    /// has, 4,096 at least, rounded up to 4 KiB; 8,192 of 8 KiB unless set.
    pub fn small(mut self, count: usize, size: usize) -> Self {
        self.small = (count, size);
        self
    }

    /// The same of the large buffers: 8 at least, of 8 KiB at least; 1,024 of
    /// 132 KiB unless set.
    pub fn large(mut self, count: usize, size: usize) -> Self {
        self.large = (count, size);
        self
    }

    /// As many buffers again for each memory node of the machine, near to it; a
    /// thread uses those of the node that it opened its channel on.
    pub fn numa(mut self, numa: bool) -> Self {
        self.numa = numa;
        self
    }

    /// Makes the pools, on the current SpdkThread. Memory is reserved only, and
    /// used as buffers are touched.
    ///
    /// # Errors
    ///
    /// [`IobufError`] when a setting is too small, when no SpdkThread is
    /// current, or when the memory cannot be reserved.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{iobuf::{Iobuf, IobufError}, thread::ThreadLib};
    ///
    /// let settings = Iobuf::builder().small(64, 4096).large(8, 8192);
    /// // The pools are an io_device, which belongs to a library instance.
    /// assert!(matches!(settings.clone().build(), Err(IobufError::Register(_))));
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// assert!(runner.enter(|| settings.build()).is_ok());
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn build(self) -> Result<Iobuf, IobufError> {
        let limits = [
            ("the number of small buffers", MIN_SMALL.0, self.small.0),
            ("the size of small buffers", MIN_SMALL.1, self.small.1),
            ("the number of large buffers", MIN_LARGE.0, self.large.0),
            ("the size of large buffers", MIN_LARGE.1, self.large.1),
        ];
        for (what, minimum, given) in limits {
            if given < minimum {
                return Err(IobufError::TooSmall {
                    what,
                    minimum,
                    given,
                });
            }
        }
        self.build_unchecked()
    }

    /// [`IobufBuilder::build`] for tests, which run small pools dry.
    pub(super) fn build_unchecked(self) -> Result<Iobuf, IobufError> {
        let (small, large) = (self.small.0, self.large.0);
        let sizes = [whole_pages(self.small.1)?, whole_pages(self.large.1)?];
        let nodes = if self.numa { memory_nodes() } else { vec![] };
        let pools = |node| {
            let small = Pool::new(small, sizes[0], node)?;
            Ok([small, Pool::new(large, sizes[1], node)?])
        };
        let pools = match &nodes[..] {
            [] => vec![pools(None)?],
            nodes => nodes
                .iter()
                .map(|&node| pools(Some(node)))
                .collect::<Result<Vec<_>, IobufError>>()?,
        };
        let inner = Arc::new(Pools {
            pools,
            sizes,
            modules: Mutex::default(),
            device: OnceLock::new(),
            next_channel: AtomicU64::new(1),
        });
        let for_threads = Arc::downgrade(&inner);
        let device = IoDevice::builder().name("iobuf").register(move || {
            let inner = for_threads.upgrade().ok_or("the pools are gone")?;
            let thread = Local::with_current(|local| local.shared.clone());
            let thread = thread.ok_or("no SpdkThread is current")?;
            Ok::<_, &str>(ThreadState::new(inner, thread))
        })?;
        let _ = inner.device.set(device);
        let counts = inner.free_counts();
        Ok(Iobuf { inner, counts })
    }
}

fn whole_pages(size: usize) -> Result<usize, IobufError> {
    let whole = size.checked_next_multiple_of(PAGE);
    whole.ok_or_else(|| no_memory(size))
}

pub(super) fn no_memory(bytes: usize) -> IobufError {
    IobufError::NoMemory {
        bytes,
        source: std::io::ErrorKind::OutOfMemory.into(),
    }
}

fn memory_nodes() -> Vec<usize> {
    nodes_up_to(&std::fs::read_to_string("/sys/devices/system/node/online").unwrap_or_default())
}

/// The numbers of the machine's memory nodes, one for each index up to the
/// highest of those that are online.
pub(super) fn nodes_up_to(online: &str) -> Vec<usize> {
    let nodes = format!("[{}]", online.trim()).parse::<CpuSet>();
    let highest = nodes.ok().and_then(|nodes| nodes.iter().last());
    (0..=highest.unwrap_or(0)).collect()
}
