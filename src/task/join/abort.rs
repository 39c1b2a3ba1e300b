//! Ending a task from anywhere, without the right to its output.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::ptr::NonNull;
use std::task::Waker;

use crate::task::TaskId;
use crate::task::raw::TaskMeta;

/// Aborts a task without being able to join it. Any thread may use it.
///
/// # Examples
///
/// Clones of it can be kept wherever the wish to cancel may come from:
///
/// ```
/// use corespun::{task, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let request = runner.enter(|| task::spawn_local(std::future::pending::<()>()));
/// let (on_timeout, on_disconnect) = (request.abort_handle(), request.abort_handle());
/// // The task runs on by itself, as its handle is gone, until one of them is used.
/// drop(request);
/// on_disconnect.abort();
/// runner.poll(0, 0);
/// assert!(on_timeout.is_finished());
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
pub struct AbortHandle {
    /// Keeps the task's allocation, and so `meta`, alive.
    pub(super) waker: Waker,
    pub(super) meta: NonNull<TaskMeta>,
}

// SAFETY: `TaskMeta` is `Sync`, and is only read here.
unsafe impl Send for AbortHandle {}
// SAFETY: as above.
unsafe impl Sync for AbortHandle {}

impl UnwindSafe for AbortHandle {}
impl RefUnwindSafe for AbortHandle {}

impl AbortHandle {
    fn meta(&self) -> &TaskMeta {
        // SAFETY: the waker keeps the task's allocation alive.
        unsafe { self.meta.as_ref() }
    }

    /// As [`JoinHandle::abort`](super::JoinHandle::abort).
    pub fn abort(&self) {
        // SAFETY: the waker keeps the allocation alive.
        unsafe { self.meta().abort() }
    }

    /// Whether the task's future is gone.
    pub fn is_finished(&self) -> bool {
        self.meta().state.is_gone()
    }

    /// The task's id.
    pub fn id(&self) -> TaskId {
        self.meta().id()
    }
}

impl Clone for AbortHandle {
    fn clone(&self) -> Self {
        AbortHandle {
            waker: self.waker.clone(),
            meta: self.meta,
        }
    }
}

impl fmt::Debug for AbortHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AbortHandle")
            .field("id", &self.id())
            .finish()
    }
}
