//! Settings of a thread, and its creation.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::library::LibraryInner;
use super::local::Local;
use super::poll::runner::ParkedThread;
use super::poll::time_share::{DEFAULT_SHARES, TimeShare};
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
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use corespun::{cpu::CpuSet, thread::ThreadLib};
///
/// let builder = ThreadLib::new().thread()
///     .name("nvme0 queue 3")
///     .cpumask(CpuSet::single(3))
///     .batch(32)
///     .message_limit(1024)
///     .exit_timeout(Duration::from_secs(30));
/// let runner = builder.build()?.attach();
/// assert_eq!(runner.name(), "nvme0 queue 3");
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[must_use = "call `build` or `create`"]
pub struct ThreadBuilder {
    library: Arc<LibraryInner>,
    name: Option<String>,
    cpumask: CpuSet,
    batch: usize,
    limit: usize,
    ring: usize,
    exit_timeout: Duration,
    shares: u32,
    latency: Option<Duration>,
    context: Option<Box<dyn Any + Send + Sync>>,
    assume_send: bool,
    yield_ends_poll: bool,
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
            shares: DEFAULT_SHARES,
            latency: None,
            context: None,
            assume_send: false,
            yield_ends_poll: false,
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

    /// How many messages sent with `send_msg` may be outstanding, those that the
    /// thread sends itself included; 65,536 unless set, 2 at least. Wakes of tasks
    /// do not count, but while they fill the mailbox's ring, fewer messages fit by
    /// as many. Of senders that look for the last place at the same moment more
    /// than one may find it.
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

    /// Has a task that gives way wait for the next poll, whatever else there is.
    ///
    /// Otherwise it goes on within the same poll, up to the batch, where nothing waits on
    /// the thread that it could give way to: that saves it a poll each time. For a loop of
    /// your own that has other work between two polls, which the thread cannot see.
    pub fn yield_ends_poll(mut self) -> Self {
        self.yield_ends_poll = true;
        self
    }

    /// The thread's shares of its reactor's time, 1 to 1000; 100 unless set.
    ///
    /// When the threads of a reactor want more than its time, each gets time in proportion
    /// to its shares, measured in ticks of busy polls. A thread that has nothing to do costs
    /// and saves up nothing: when it has again, it begins level with the one that has had
    /// least. Shares count over some hundred microseconds; a callback is never interrupted,
    /// so a long one is made up for afterwards ([`task::should_yield`] tells it when its
    /// slice is used). While its reactor stops, a thread's shares do not count.
    ///
    /// `build` fails with [`CreateError::Shares`] for another number.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::thread::{CreateError, ThreadLib};
    ///
    /// let library = ThreadLib::new();
    /// let scrub = library.thread().name("scrub").shares(10).build()?;
    /// assert_eq!(scrub.handle().shares(), 10);
    /// scrub.handle().set_shares(1000).unwrap();
    /// assert!(matches!(library.thread().shares(0).build(), Err(CreateError::Shares(_))));
    /// # Ok::<(), CreateError>(())
    /// ```
    ///
    /// [`task::should_yield`]: crate::task::should_yield
    pub fn shares(mut self, shares: u32) -> Self {
        self.shares = shares;
        self
    }

    /// The longest that the thread is to wait for its next poll while others use its core;
    /// no limit unless set.
    ///
    /// It is polled out of turn, and ahead of its shares, when half of that is over, and a
    /// poll of another thread then ends early: after the message or task it is at, a round
    /// of its active pollers, and one timer. A wait that is longer than the limit all the
    /// same, because single callbacks were, is counted with its cause:
    /// [`SpdkThread::latency_misses`].
    pub fn latency(mut self, limit: Duration) -> Self {
        self.latency = Some(limit);
        self
    }

    /// A value of the framework's, which [`SpdkThread::context`] finds again.
    pub fn context<T: Send + Sync + 'static>(mut self, context: T) -> Self {
        self.context = Some(Box::new(context));
        self
    }

    /// Lets the thread move to another OS thread whatever it holds, as every thread of
    /// SPDK does: nothing binds it but [`SpdkThread::bind`].
    ///
    /// Without this a thread moves while all it holds is known to be `Send`.
    ///
    /// # Safety
    ///
    /// For as long as the thread lives, whenever it may be moved (between two polls),
    /// what it holds may be used and dropped by another OS thread, although it is not
    /// `Send`, because
    ///
    /// - all that it refers to and that is not `Send` or `Sync` moves along: what
    ///   shares an `Rc` or a `Cell` with it, and each handle of its pollers, channels,
    ///   tasks and interrupts, belongs to something that this thread holds, and to no
    ///   other SpdkThread, no `thread_local!` and no function of the OS thread;
    /// - nothing in it depends on the OS thread that made it: no socket, file or timer
    ///   of [`io`](crate::io), [`net`](crate::net) or [`fs`](crate::fs), which are tied to
    ///   the driver of their OS thread, no guard of a `std::sync::Mutex`;
    /// - nothing that was made on it is left behind in the frame of a function that
    ///   outlives an [`enter`](super::ThreadRunner::enter).
    ///
    /// # Examples
    ///
    /// A thread whose tasks share something among themselves only:
    ///
    /// ```
    /// use std::{cell::Cell, rc::Rc};
    /// use corespun::{task, thread::ThreadLib};
    ///
    /// let builder = ThreadLib::new().thread();
    /// // SAFETY: both references to the counter are in tasks of this thread.
    /// let builder = unsafe { builder.assume_send() };
    /// let mut runner = builder.build()?.attach();
    /// runner.enter(|| {
    ///     let served = Rc::new(Cell::new(0));
    ///     for _ in 0..2 {
    ///         let served = served.clone();
    ///         drop(task::spawn_local(async move { served.set(served.get() + 1) }));
    ///     }
    /// });
    /// let parked = runner.park().expect("it was promised");
    /// std::thread::spawn(move || {
    ///     let mut runner = parked.attach();
    ///     while runner.poll(0, 0).is_busy() {}
    /// }).join().unwrap();
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub unsafe fn assume_send(mut self) -> Self {
        self.assume_send = true;
        self
    }

    /// Makes the thread, to be attached and polled by the caller.
    ///
    /// # Errors
    ///
    /// [`CreateError::NoIds`] when the ids have run out.
    ///
    /// # Examples
    ///
    /// For a loop of your own, on whichever OS thread:
    ///
    /// ```
    /// use corespun::thread::ThreadLib;
    ///
    /// let parked = ThreadLib::new().thread().build()?;
    /// let thread = parked.handle();
    /// thread.send_msg(|| ()).unwrap();
    /// let polls = std::thread::spawn(move || {
    ///     let mut runner = parked.attach();
    ///     runner.poll(0, 0).is_busy()
    /// });
    /// assert!(polls.join().unwrap());
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn build(self) -> Result<ParkedThread, CreateError> {
        let time_share = TimeShare::new();
        time_share.set_shares(self.shares)?;
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
            time_share,
            self.context,
        ));
        self.library.add_thread(&shared);
        if self.latency.is_some() {
            SpdkThread::from_shared(shared.clone()).set_latency(self.latency);
        }
        let local = Local::new(
            shared,
            self.batch,
            self.exit_timeout,
            self.assume_send,
            self.yield_ends_poll,
        );
        Ok(ParkedThread::new(local))
    }

    /// Makes the thread and hands it to the library's framework, which will
    /// poll it on a core of its mask.
    ///
    /// # Errors
    ///
    /// [`CreateError::NoFramework`] when none was set, or the framework's own
    /// refusal.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::app::{App, AppHandle};
    ///
    /// let name = App::builder().block_on(async |app: AppHandle| {
    ///     // The app's reactors are the framework.
    ///     let worker = app.thread().name("worker").create()?;
    ///     let name = worker.call(|| "made").await?;
    ///     Ok::<_, Box<dyn std::error::Error>>(name)
    /// })?;
    /// assert_eq!(name?, "made");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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
