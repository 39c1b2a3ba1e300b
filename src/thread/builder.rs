//! Settings of a thread, and its creation.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::library::LibraryInner;
use super::local::Local;
use super::runner::ParkedThread;
use super::shared::Shared;
use super::{CreateError, SpdkThread, cut_name};
use crate::cpu::CpuSet;

/// Messages run in one poll, as SPDK's `SPDK_MSG_BATCH_SIZE`.
const DEFAULT_BATCH: usize = 8;
/// Outstanding explicit messages, as the size of SPDK's message ring.
const DEFAULT_LIMIT: usize = 65_536;
/// Slots of the ring before messages spill.
const DEFAULT_RING: usize = 64;

/// Settings of a SpdkThread to be made; from
/// [`ThreadLib::thread`](super::ThreadLib::thread).
#[must_use = "call `build` or `create`"]
pub struct ThreadBuilder {
    library: Arc<LibraryInner>,
    name: Option<String>,
    cpumask: CpuSet,
    batch: usize,
    limit: usize,
    ring: usize,
    exit_timeout: Duration,
    context: Option<Box<dyn Any + Send + Sync>>,
}

impl ThreadBuilder {
    pub(super) fn new(library: Arc<LibraryInner>) -> Self {
        ThreadBuilder {
            library,
            name: None,
            cpumask: CpuSet::all(),
            batch: DEFAULT_BATCH,
            limit: DEFAULT_LIMIT,
            ring: DEFAULT_RING,
            exit_timeout: Duration::from_secs(5),
            context: None,
        }
    }

    /// The name, cut at 256 bytes; one is made of the id otherwise.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(cut_name(name.into()));
        self
    }

    /// The cores that the thread may be placed on; all unless set.
    pub fn cpumask(mut self, cpumask: CpuSet) -> Self {
        self.cpumask = cpumask;
        self
    }

    /// The most messages and ready tasks that one poll runs; 8 unless set, 1
    /// at least.
    pub fn batch(mut self, messages: usize) -> Self {
        self.batch = messages.max(1);
        self
    }

    /// How many messages sent with `send_msg` may be outstanding; 65,536
    /// unless set, 2 at least. Wakes of tasks do not count, but while they
    /// fill the mailbox's ring, fewer messages fit by as many.
    pub fn message_limit(mut self, messages: usize) -> Self {
        self.limit = messages.max(2);
        self
    }

    /// Slots of the mailbox's ring, rounded up to a power of two; 64 unless
    /// set, 32 bytes each. What does not fit spills to an unbounded queue,
    /// which costs an allocation now and then.
    pub fn ring(mut self, slots: usize) -> Self {
        self.ring = slots;
        self
    }

    /// How long an exit waits for what still holds the thread before it is
    /// forced; 5 s unless set.
    pub fn exit_timeout(mut self, timeout: Duration) -> Self {
        self.exit_timeout = timeout;
        self
    }

    /// A value of the framework's, which [`SpdkThread::context`] finds again.
    pub fn context<T: Send + Sync + 'static>(mut self, context: T) -> Self {
        self.context = Some(Box::new(context));
        self
    }

    /// Makes the thread, to be attached and polled by the caller.
    ///
    /// # Errors
    ///
    /// [`CreateError::NoIds`] when the ids have run out.
    pub fn build(self) -> Result<ParkedThread, CreateError> {
        let id = self.library.next_thread_id().ok_or(CreateError::NoIds)?;
        let name = self.name.unwrap_or_else(|| format!("thread {id}"));
        // Every slot of the ring may hold a limited message, and the ring is a
        // power of two: rounded down where up would exceed the limit.
        let largest = 1 << self.limit.max(2).ilog2();
        let ring = self.ring.min(largest);
        let shared = Arc::new(Shared::new(
            self.library.clone(),
            id,
            name.into_boxed_str(),
            self.cpumask,
            ring,
            self.limit,
            self.context,
        ));
        self.library.add_thread(&shared);
        let local = Local::new(shared, self.batch, self.exit_timeout);
        Ok(ParkedThread::new(local))
    }

    /// Makes the thread and hands it to the library's framework, which will
    /// poll it on a core of its mask.
    ///
    /// # Errors
    ///
    /// [`CreateError::NoFramework`] when none was set, or the framework's own
    /// refusal.
    pub fn create(self) -> Result<SpdkThread, CreateError> {
        let framework = self
            .library
            .framework()
            .cloned()
            .ok_or(CreateError::NoFramework)?;
        let parked = self.build()?;
        let handle = parked.handle();
        match framework.place(parked) {
            Ok(()) => Ok(handle),
            Err(error) => {
                handle.shared.library.withdraw_thread(&handle.shared);
                Err(error)
            }
        }
    }
}

impl fmt::Debug for ThreadBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadBuilder")
            .field("name", &self.name)
            .field("cpumask", &self.cpumask)
            .finish_non_exhaustive()
    }
}
