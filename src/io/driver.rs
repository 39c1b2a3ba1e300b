//! The handle a loop holds, and which driver is current on an OS thread.

use std::cell::{Cell, RefCell};
use std::io;
use std::ptr;
use std::rc::Rc;
use std::time::Duration;

use super::aligned::PooledBuf;
use super::config::{Backend, DriverConfig, DriverError};
use super::shared::DriverHandle;
use super::state::Core;
use super::wake::WakeFd;
use crate::notify::Sleeper;

thread_local! {
    /// The entered driver; `CURRENT_CORE` is its core's address, for the check on every operation.
    static CURRENT: RefCell<Option<Driver>> = const { RefCell::new(None) };
    static CURRENT_CORE: Cell<*const Core> = const { Cell::new(ptr::null()) };
}

/// The I/O driver of one OS thread.
///
/// A loop makes one on its OS thread, [`enter`](Driver::enter)s it, and calls
/// [`poll`](Driver::poll) every turn, or [`park`](Driver::park) to sleep. Everything in
/// [`fs`](crate::fs) and [`net`](crate::net) made on that OS thread meanwhile belongs to it.
///
/// A forked child does not inherit it: there every use of it is an error
/// ([`failure`](Driver::failure)), and dropping it leaves what it shares with the parent alone. The
/// child may make one of its own.
///
/// Clones name the same driver. Neither `Send` nor `Sync`. When the last handle is dropped, all
/// operations in flight are cancelled or waited for, so that no buffer is freed under the kernel's
/// hands; objects that still refer to the driver then answer with an error.
///
/// # Examples
///
/// ```
/// use corespun::io::{Driver, DriverConfig};
///
/// let driver = Driver::new(&DriverConfig::new())?;
/// let entered = driver.enter();
/// assert_eq!(driver.poll(), 0);
/// driver.wake_fd().wake();
/// assert_eq!(driver.park(None), 0); // no sleep: it was woken before
/// # drop(entered);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Driver(Rc<Handle>);

/// Shuts the core down when the last `Driver` goes.
struct Handle {
    core: Rc<Core>,
    backend: Backend,
    wake: WakeFd,
}

impl Driver {
    /// Makes a driver for the calling OS thread.
    ///
    /// # Errors
    ///
    /// [`DriverError`]; with [`BackendChoice::Auto`](super::BackendChoice) only if not even epoll is to be had.
    pub fn new(config: &DriverConfig) -> Result<Driver, DriverError> {
        let wake = WakeFd::new().map_err(|source| DriverError::Setup {
            what: "the wake eventfd",
            source,
        })?;
        Self::with_wake(config, wake)
    }

    /// One whose sleep `wake` ends.
    pub(crate) fn with_wake(config: &DriverConfig, wake: WakeFd) -> Result<Driver, DriverError> {
        let (core, backend) = Core::new(config, wake.clone())?;
        let core = Rc::new(core);
        Ok(Driver(Rc::new(Handle {
            core,
            backend,
            wake,
        })))
    }

    /// What ends a [`park`](Self::park), from any OS thread.
    ///
    /// # Examples
    ///
    /// A loop inside of another one on the same OS thread sleeps in that one's driver:
    ///
    /// ```
    /// use corespun::{app::App, io::Driver};
    ///
    /// let completions = App::builder().block_on(async |_app| {
    ///     let driver = Driver::current().unwrap();
    ///     let wake = driver.wake_fd();
    ///     let other = std::thread::spawn(move || wake.wake());
    ///     // Until the other thread wakes it.
    ///     let completions = driver.park(None);
    ///     other.join().unwrap();
    ///     completions
    /// })?;
    /// assert_eq!(completions, 0);
    /// # Ok::<(), corespun::app::AppError>(())
    /// ```
    pub fn wake_fd(&self) -> WakeFd {
        self.0.wake.clone()
    }

    /// Which back-end runs.
    pub fn backend(&self) -> Backend {
        self.0.backend
    }

    /// Makes this the OS thread's current driver until the guard is dropped. In a forked child it
    /// takes the place of the parent's, should that have been entered here.
    ///
    /// # Panics
    ///
    /// If this OS thread has a current driver already: one loop, one driver.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::io::{Driver, DriverConfig};
    ///
    /// let driver = Driver::new(&DriverConfig::new())?;
    /// let entered = driver.enter();
    /// assert!(Driver::current().is_some());
    /// drop(entered);
    /// assert!(Driver::current().is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[track_caller]
    #[must_use = "the driver is current only while the guard lives"]
    pub fn enter(&self) -> EnterGuard {
        let left_by_parent = CURRENT.with(|current| {
            let mut current = current.borrow_mut();
            let usable = current.as_ref().is_some_and(|it| !it.0.core.is_forked());
            assert!(
                !usable,
                "this OS thread has entered an I/O driver already: drop its EnterGuard first"
            );
            current.replace(self.clone())
        });
        // Not dropped inside `with`, as in the guard.
        drop(left_by_parent);
        CURRENT_CORE.set(Rc::as_ptr(&self.0.core));
        EnterGuard {
            driver: self.clone(),
        }
    }

    /// The OS thread's current driver.
    ///
    /// # Examples
    ///
    /// A reactor has entered its driver:
    ///
    /// ```
    /// use corespun::{app::App, io::Driver};
    ///
    /// assert!(Driver::current().is_none());
    /// let on_reactor = App::builder().block_on(async |_app| Driver::current().is_some())?;
    /// assert!(on_reactor);
    /// # Ok::<(), corespun::app::AppError>(())
    /// ```
    pub fn current() -> Option<Driver> {
        CURRENT
            .try_with(|current| current.borrow().clone())
            .ok()
            .flatten()
    }

    pub(crate) fn current_core() -> io::Result<Rc<Core>> {
        let core = Driver::current().ok_or_else(no_driver)?.0.core.clone();
        match core.failure() {
            Some(error) => Err(error),
            None => Ok(core),
        }
    }

    /// Has the next [`poll`](Driver::poll) look for events of [`SharedFd`](super::SharedFd)s, which it
    /// does only in some turns while it is not parked: for a task that gives way to them.
    pub fn look_next_turn(&self) {
        if let Some(watched) = self.0.core.watched() {
            watched.look_next_turn();
        }
    }

    /// A way to this driver for other OS threads.
    ///
    /// # Errors
    ///
    /// If the kernel refuses the epoll set that it takes, which is made by the first call.
    pub fn handle(&self) -> io::Result<DriverHandle> {
        Ok(self.0.core.table()?.handle())
    }

    pub(crate) fn core(&self) -> &Rc<Core> {
        &self.0.core
    }

    /// Submits what is queued, reaps what has completed and wakes the tasks that wait for it,
    /// without blocking. Returns how many completions there were.
    ///
    /// Costs a load when nothing is in flight. On io_uring it makes no system call unless something
    /// is queued or the kernel says that completions wait to be posted; on epoll it makes one while
    /// a task waits for readiness.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{future::Future, pin::pin, task::{Context, Waker}};
    /// use corespun::{fs::File, io::{Driver, DriverConfig}};
    ///
    /// let driver = Driver::new(&DriverConfig::new())?;
    /// let _entered = driver.enter();
    /// let mut opening = pin!(File::open("/dev/null"));
    /// let mut cx = Context::from_waker(Waker::noop());
    /// // A loop that never sleeps.
    /// while opening.as_mut().poll(&mut cx).is_pending() {
    ///     driver.poll();
    /// }
    /// assert_eq!(driver.in_flight(), 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn poll(&self) -> usize {
        self.0.core.poll()
    }

    /// Submits what is queued, then blocks until a completion, a readable descriptor, a
    /// [wake](WakeFd::wake), or the end of `timeout` (nanoseconds count; `None` waits without limit).
    /// Wakes tasks, and returns how many completions there were. A signal ends it too.
    ///
    /// A wake that came before the call, and after the last park, ends it at once.
    pub fn park(&self, timeout: Option<Duration>) -> usize {
        self.park_then(timeout, || {})
    }

    /// As [`park`](Self::park), for a sleep that `sleeper` has announced: the announcement is taken
    /// back once the wait is over and before any task is woken, so that no wake of this OS thread's
    /// own tasks makes a system call.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use corespun::{io::{Driver, DriverConfig}, notify::Sleeper};
    ///
    /// let driver = Driver::new(&DriverConfig::new())?;
    /// let wake = driver.wake_fd();
    /// let sleeper = Sleeper::new(move || wake.wake());
    /// let limit = Some(Duration::from_micros(100));
    /// let slept = sleeper.sleep_unless(|| false, || driver.park_announced(limit, &sleeper));
    /// assert_eq!(slept, Some(0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn park_announced(&self, timeout: Option<Duration>, sleeper: &Sleeper) -> usize {
        self.park_then(timeout, || sleeper.retract())
    }

    /// As [`park`](Self::park), with `awake` called once the wait is over and before any task is
    /// woken, for a loop that has to take back the announcement of its sleep first.
    pub(crate) fn park_then(&self, timeout: Option<Duration>, awake: impl FnOnce()) -> usize {
        // A limit of centuries is none, and the kernel's clock could not hold it.
        let limit = timeout.filter(|timeout| timeout.as_secs() <= u32::MAX.into());
        self.0.core.park(limit, awake)
    }

    /// How many operations and waits for readiness are in flight.
    pub fn in_flight(&self) -> usize {
        self.0.core.in_flight()
    }

    /// Why this driver cannot be used any more, if it cannot. All operations answer with this error
    /// then, and those that the kernel had begun stay pending: it may yet write to their buffers.
    ///
    /// That is so from the moment the kernel refuses to serve the ring, or the epoll set (a seccomp
    /// filter that was installed after the driver was made, say); a reactor stops its app then. And
    /// it is so in a process that was forked from the one that made the driver, whose rings a child
    /// does not inherit.
    pub fn failure(&self) -> Option<io::Error> {
        self.0.core.failure()
    }

    /// An aligned buffer of `len` bytes from this driver's pool; its contents are arbitrary. The first
    /// ones are registered with the ring
    /// ([`DriverConfig::registered_bytes`](super::DriverConfig::registered_bytes)), which
    /// [`fs::File`](crate::fs::File) makes use of by itself.
    ///
    /// # Panics
    ///
    /// If `len`, rounded up to [`POOL_ALIGN`](super::POOL_ALIGN), is more than `isize::MAX`.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::io::{Driver, DriverConfig, POOL_ALIGN};
    ///
    /// let driver = Driver::new(&DriverConfig::new())?;
    /// let buf = driver.buffer(5000);
    /// assert_eq!((buf.len(), buf.as_ptr().addr() % POOL_ALIGN), (5000, 0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[track_caller]
    pub fn buffer(&self, len: usize) -> PooledBuf {
        self.0.core.buffer(len)
    }
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver")
            .field("backend", &self.backend())
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}

/// Keeps a driver current; see [`Driver::enter`].
///
/// # Examples
///
/// ```
/// use corespun::io::{Driver, DriverConfig};
///
/// fn entered() -> Result<corespun::io::EnterGuard, Box<dyn std::error::Error>> {
///     let driver = Driver::new(&DriverConfig::new())?;
///     Ok(driver.enter())
/// }
///
/// // It keeps the driver alive.
/// let guard = entered()?;
/// assert_eq!(guard.driver().poll(), 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct EnterGuard {
    driver: Driver,
}

impl EnterGuard {
    /// The driver that is current.
    pub fn driver(&self) -> &Driver {
        &self.driver
    }
}

impl Drop for EnterGuard {
    fn drop(&mut self) {
        if !ptr::eq(CURRENT_CORE.get(), &*self.driver.0.core) {
            // Another has taken the place in a forked child.
            return;
        }
        CURRENT_CORE.set(ptr::null());
        // Not dropped inside `with`: the last handle's drop runs foreign code.
        let entered = CURRENT.try_with(RefCell::take);
        drop(entered);
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.core.shut_down();
    }
}

impl Core {
    /// # Errors
    ///
    /// If this is not the core of the OS thread's current driver, or the driver cannot be used.
    #[inline]
    pub(crate) fn check_current(&self) -> io::Result<()> {
        if ptr::eq(CURRENT_CORE.get(), self) && self.mark.is_set() {
            Ok(())
        } else {
            Err(self.failure().unwrap_or_else(wrong_driver))
        }
    }
}

/// The number of this OS thread's current driver; 0 if there is none.
#[inline]
pub(crate) fn current_id() -> usize {
    CURRENT_CORE.get().addr()
}

/// Whether this OS thread's current driver serves this process.
pub(crate) fn current_is_usable() -> bool {
    let usable = |current: &RefCell<Option<Driver>>| {
        let current = current.borrow();
        current
            .as_ref()
            .is_some_and(|driver| driver.0.core.mark.is_set())
    };
    CURRENT.try_with(usable).unwrap_or(false)
}

#[cold]
pub(crate) fn no_driver() -> io::Error {
    io::Error::other(
        "no I/O driver on this OS thread: do I/O on a reactor, or enter a Driver (Driver::enter)",
    )
}

#[cold]
fn wrong_driver() -> io::Error {
    if CURRENT_CORE.get().is_null() {
        no_driver()
    } else {
        io::Error::other(
            "this I/O object belongs to another driver: use it on the OS thread it was made on, or \
             turn it into its std type there and wrap that here",
        )
    }
}
