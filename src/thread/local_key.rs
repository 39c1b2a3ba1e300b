//! Thread-locals of SpdkThreads: a value per thread and key, made when it is
//! first asked for, dropped on its thread before that reads EXITED.

use std::any::{Any, type_name};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

use super::local::{ExitPhase, Local};
use super::part::Part;
use super::placement::bound::{Bound, BoundBy};
use super::{Exited, NotOnThread};

/// Declares thread-locals of SpdkThreads, as [`std::thread_local!`] does those
/// of OS threads.
///
/// The values are dropped when nothing else holds the exiting thread, so one
/// that contains a poller or channel holds it until the exit is forced: keep
/// those in an `Option` and take them out.
///
/// A value is not taken to be `Send`, so it keeps its thread on its OS thread;
/// `static in send KEY` declares one that moves along.
///
/// # Examples
///
/// ```
/// use std::cell::Cell;
/// use corespun::{spdk_thread_local, thread::ThreadLib};
///
/// spdk_thread_local! {
///     static REQUESTS: Cell<u32> = Cell::new(0);
///     static in send BYTES: Cell<u64> = Cell::new(0);
/// }
///
/// let mut thread = ThreadLib::new().thread().build()?.attach();
/// thread.enter(|| REQUESTS.with(|requests| requests.set(1)));
/// thread.enter(|| REQUESTS.with(|requests| assert_eq!(requests.get(), 1)));
/// assert!(REQUESTS.try_with(|_| ()).is_err());
/// # thread.enter(|| BYTES.with(|bytes| bytes.set(1)));
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[macro_export]
macro_rules! spdk_thread_local {
    () => {};
    ($(#[$attr:meta])* $vis:vis static in send $name:ident: $t:ty = $init:expr $(; $($rest:tt)*)?) => {
        $(#[$attr])* $vis static $name: $crate::thread::LocalKey<$t> =
            $crate::thread::LocalKey::new_send(|| $init);
        $($crate::spdk_thread_local!($($rest)*);)?
    };
    ($(#[$attr:meta])* $vis:vis static $name:ident: $t:ty = $init:expr $(; $($rest:tt)*)?) => {
        $(#[$attr])* $vis static $name: $crate::thread::LocalKey<$t> =
            $crate::thread::LocalKey::new(|| $init);
        $($crate::spdk_thread_local!($($rest)*);)?
    };
}

/// The key of a thread-local of SpdkThreads; declare it with
/// [`spdk_thread_local!`](crate::spdk_thread_local).
///
/// # Examples
///
/// ```
/// use std::cell::Cell;
/// use corespun::{spdk_thread_local, thread::ThreadLib};
///
/// spdk_thread_local! {
///     static REQUESTS: Cell<u32> = Cell::new(0);
/// }
///
/// let library = ThreadLib::new();
/// let mut a = library.thread().build()?.attach();
/// let mut b = library.thread().build()?.attach();
/// a.enter(|| REQUESTS.with(|requests| requests.set(7)));
/// // Each SpdkThread has its own, though both are polled by this OS thread.
/// assert_eq!(b.enter(|| REQUESTS.with(Cell::get)), 0);
/// assert_eq!(a.enter(|| REQUESTS.with(Cell::get)), 7);
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
pub struct LocalKey<T: 'static> {
    init: fn() -> T,
    stays: bool,
}

/// Why a thread-local has no value here.
///
/// # Examples
///
/// ```
/// use std::cell::Cell;
/// use corespun::{spdk_thread_local, thread::LocalKeyError};
///
/// spdk_thread_local!(static REQUESTS: Cell<u32> = Cell::new(0));
///
/// let refused = REQUESTS.try_with(Cell::get);
/// assert!(matches!(refused, Err(LocalKeyError::NotOnThread(_))));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LocalKeyError {
    /// No SpdkThread is current on this OS thread.
    #[error(transparent)]
    NotOnThread(#[from] NotOnThread),
    /// The thread is dropping its thread-locals.
    #[error(transparent)]
    Exited(#[from] Exited),
}

impl<T: 'static> LocalKey<T> {
    /// A key whose values are made by `init` and may be of any type.
    ///
    /// # Examples
    ///
    /// What [`spdk_thread_local!`](crate::spdk_thread_local) expands to:
    ///
    /// ```
    /// use std::cell::Cell;
    /// use corespun::thread::{LocalKey, ThreadLib};
    ///
    /// static REQUESTS: LocalKey<Cell<u32>> = LocalKey::new(|| Cell::new(1));
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// assert_eq!(runner.enter(|| REQUESTS.with(Cell::get)), 1);
    /// // The value keeps its thread on this OS thread.
    /// assert!(!runner.can_move());
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub const fn new(init: fn() -> T) -> Self {
        LocalKey { init, stays: true }
    }

    /// A key whose values move with their thread to another OS thread.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::cell::Cell;
    /// use corespun::thread::{LocalKey, ThreadLib};
    ///
    /// static BYTES: LocalKey<Cell<u64>> = LocalKey::new_send(|| Cell::new(0));
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// runner.enter(|| BYTES.with(|bytes| bytes.set(512)));
    /// let parked = runner.park().unwrap();
    /// let moved = std::thread::spawn(move || parked.attach().enter(|| BYTES.with(Cell::get)));
    /// assert_eq!(moved.join().unwrap(), 512);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub const fn new_send(init: fn() -> T) -> Self
    where
        T: Send,
    {
        LocalKey { init, stays: false }
    }

    /// Calls `f` with the current SpdkThread's value.
    ///
    /// # Errors
    ///
    /// [`LocalKeyError`] when no SpdkThread is current, or when it is at the
    /// end of its exit and has no value.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::cell::Cell;
    /// use corespun::{spdk_thread_local, thread::ThreadLib};
    ///
    /// spdk_thread_local!(static REQUESTS: Cell<u32> = Cell::new(0));
    ///
    /// // Code that runs on SpdkThreads and elsewhere counts where it can.
    /// fn count() -> bool {
    ///     REQUESTS.try_with(|requests| requests.set(requests.get() + 1)).is_ok()
    /// }
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// assert!(runner.enter(count));
    /// assert!(!count());
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn try_with<R>(&'static self, f: impl FnOnce(&T) -> R) -> Result<R, LocalKeyError> {
        let address = std::ptr::from_ref(self).addr();
        let value = Local::with_current(|local| {
            let keys = &local.rare().keys;
            if let Some(value) = keys.find::<T>(address) {
                return Ok(value);
            }
            if keys.closed.get() || local.exit_phase.get() == ExitPhase::Done {
                let gone = "is dropping its thread-locals and makes no new one";
                return Err(Exited::new(local.shared.name(), gone).into());
            }
            let value = Rc::new((self.init)());
            // `init` may have used the key itself.
            if let Some(earlier) = keys.find::<T>(address) {
                return Ok(earlier);
            }
            let kept: Rc<dyn Any> = value.clone();
            keys.values.borrow_mut().push(Value {
                key: address,
                name: type_name::<T>(),
                value: local.anchor.bind_if(self.stays, kept),
            });
            Ok(value)
        });
        match value {
            Some(value) => value.map(|value| f(&value)),
            None => Err(NotOnThread::new("a thread-local of SpdkThreads was used off one").into()),
        }
    }

    /// Calls `f` with the current SpdkThread's value.
    ///
    /// # Panics
    ///
    /// Where [`LocalKey::try_with`] gives an error.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::cell::RefCell;
    /// use corespun::{spdk_thread_local, thread::ThreadLib};
    ///
    /// spdk_thread_local!(static FREE: RefCell<Vec<Vec<u8>>> = RefCell::default());
    ///
    /// // A list of free buffers per thread: no lock, no atomic.
    /// let take = || FREE.with(|free| free.borrow_mut().pop().unwrap_or_else(|| vec![0; 512]));
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let buffer = runner.enter(take);
    /// runner.enter(|| FREE.with(|free| free.borrow_mut().push(buffer)));
    /// assert_eq!(runner.enter(|| FREE.with(|free| free.borrow().len())), 1);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    #[track_caller]
    pub fn with<R>(&'static self, f: impl FnOnce(&T) -> R) -> R {
        match self.try_with(f) {
            Ok(result) => result,
            Err(error) => panic!("{error}"),
        }
    }
}

impl<T: 'static> fmt::Debug for LocalKey<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalKey").finish_non_exhaustive()
    }
}

struct Value {
    /// The address of the key, a `static`.
    key: usize,
    name: &'static str,
    value: Bound<Rc<dyn Any>>,
}

/// The values of one thread. Owner only.
#[derive(Default)]
pub(crate) struct LocalValues {
    values: RefCell<Vec<Value>>,
    closed: Cell<bool>,
}

impl LocalValues {
    fn find<T: 'static>(&self, key: usize) -> Option<Rc<T>> {
        let values = self.values.borrow();
        let mut of_key = values.iter().filter(|value| value.key == key);
        // Constants promoted to statics may share an address, not a type.
        of_key.find_map(|value| value.value.get().clone().downcast().ok())
    }
}

impl Part for LocalValues {
    fn binders(&self, by: &mut Vec<BoundBy>) -> usize {
        let values = self.values.borrow();
        let binders = values.iter().filter(|value| value.value.binds());
        by.extend(binders.map(|value| BoundBy::ThreadLocal(value.name)));
        0
    }

    /// Drops every value, newest first. A destructor still finds those that were made
    /// before.
    fn end(&self, local: &Local) {
        self.closed.set(true);
        loop {
            let Some(last) = self.values.borrow_mut().pop() else {
                return;
            };
            local.drop_contained(last);
        }
    }
}
