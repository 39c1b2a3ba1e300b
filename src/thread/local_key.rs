//! Thread-locals of SpdkThreads: a value per thread and key, made when it is
//! first asked for, dropped on its thread before that reads EXITED.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

use super::local::Local;

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
pub struct LocalKey<T: 'static> {
    init: fn() -> T,
    stays: bool,
}

/// Why a thread-local has no value here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LocalKeyError {
    /// No SpdkThread is current on this OS thread.
    #[error(
        "a thread-local of SpdkThreads was used off one: call this from a message, task or poller"
    )]
    NotOnThread,
    /// The thread is dropping its thread-locals.
    #[error("thread {0:?} is dropping its thread-locals and makes no new one")]
    Exited(String),
}

impl<T: 'static> LocalKey<T> {
    /// A key whose values are made by `init` and may be of any type.
    pub const fn new(init: fn() -> T) -> Self {
        LocalKey { init, stays: true }
    }

    /// A key whose values move with their thread to another OS thread.
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
    pub fn try_with<R>(&'static self, f: impl FnOnce(&T) -> R) -> Result<R, LocalKeyError> {
        let address = std::ptr::from_ref(self).addr();
        let value = Local::with_current(|local| {
            if let Some(value) = local.keys.find::<T>(address) {
                return Ok(value);
            }
            if local.keys.closed.get() {
                return Err(LocalKeyError::Exited(local.shared.name().to_owned()));
            }
            let value = Rc::new((self.init)());
            // `init` may have used the key itself.
            if let Some(earlier) = local.keys.find::<T>(address) {
                return Ok(earlier);
            }
            local
                .not_send
                .set(local.not_send.get() + usize::from(self.stays));
            local.keys.values.borrow_mut().push(Value {
                key: address,
                stays: self.stays,
                value: value.clone(),
            });
            Ok(value)
        });
        match value {
            Some(value) => value.map(|value| f(&value)),
            None => Err(LocalKeyError::NotOnThread),
        }
    }

    /// Calls `f` with the current SpdkThread's value.
    ///
    /// # Panics
    ///
    /// Where [`LocalKey::try_with`] gives an error.
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
    stays: bool,
    value: Rc<dyn Any>,
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
        of_key.find_map(|value| value.value.clone().downcast().ok())
    }
}

impl Local {
    /// Drops every thread-local, newest first. A destructor still finds those
    /// that were made before.
    pub(super) fn drop_locals(&self) {
        self.keys.closed.set(true);
        loop {
            let Some(last) = self.keys.values.borrow_mut().pop() else {
                return;
            };
            self.not_send
                .set(self.not_send.get() - usize::from(last.stays));
            self.drop_contained(last);
        }
    }
}
