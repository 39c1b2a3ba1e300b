//! The `futures` crate's way to spawn, for code that is generic over it.

use std::fmt;
use std::panic::Location;
use std::rc::Rc;

use futures::task::{FutureObj, LocalFutureObj, LocalSpawn, Spawn, SpawnError};

use super::raw::{FirstPoll, Origin, TaskKind};
use super::{JoinHandle, TaskBuilder};
use crate::thread::SpdkThread;
use crate::thread::local::Local;

/// Spawns on this thread, from anywhere; fails once it has exited.
impl Spawn for SpdkThread {
    fn spawn_obj(&self, future: FutureObj<'static, ()>) -> Result<(), SpawnError> {
        self.status()?;
        drop(self.spawn(future));
        Ok(())
    }

    fn status(&self) -> Result<(), SpawnError> {
        if self.is_exited() {
            return Err(SpawnError::shutdown());
        }
        Ok(())
    }
}

/// Spawns futures, `Send` or not, on the SpdkThread it was made on, from
/// wherever on its OS thread.
///
/// While it lives, the thread cannot move to another OS thread.
///
/// # Examples
///
/// ```
/// use corespun::{task::LocalSpawner, thread::ThreadLib};
/// use futures::task::LocalSpawnExt;
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let spawner = runner.enter(LocalSpawner::current).unwrap();
/// let answer = spawner.spawn_local_with_handle(async { 42 })?;
/// runner.poll(0, 0);
/// assert_eq!(futures::executor::block_on(answer), 42);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct LocalSpawner {
    local: Rc<Local>,
}

impl LocalSpawner {
    /// For the current SpdkThread, if there is one.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{task::LocalSpawner, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// assert!(LocalSpawner::current().is_none());
    /// let spawner = runner.enter(LocalSpawner::current);
    /// assert!(spawner.is_some());
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn current() -> Option<LocalSpawner> {
        Local::current_rc().map(|local| LocalSpawner { local })
    }

    /// The thread that it spawns on.
    pub fn thread(&self) -> SpdkThread {
        SpdkThread::from_shared(self.local.shared.clone())
    }

    /// As [`spawn_local`](super::spawn_local), on its own thread, whichever is
    /// current.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::rc::Rc;
    /// use corespun::{task::LocalSpawner, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let spawner = runner.enter(LocalSpawner::current).unwrap();
    /// let not_send = Rc::new(5);
    /// // Here no thread is current.
    /// let task = spawner.spawn_local(async move { *not_send });
    /// runner.poll(0, 0);
    /// assert_eq!(futures::executor::block_on(task).unwrap(), 5);
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    #[track_caller]
    pub fn spawn_local<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        let local = &*self.local;
        let origin = Origin::Local(local, FirstPoll::Queued);
        let thread = local.shared.clone();
        // SAFETY: the holder of an `Rc` of a thread's owner part is on the OS
        // thread that owns it; the bounds ask for `'static`.
        let handle = unsafe {
            TaskBuilder::new().make(origin, thread, future, TaskKind::Bound, Location::caller())
        };
        local.begun_outside();
        handle
    }
}

impl LocalSpawn for LocalSpawner {
    #[track_caller]
    fn spawn_local_obj(&self, future: LocalFutureObj<'static, ()>) -> Result<(), SpawnError> {
        self.status_local()?;
        drop(self.spawn_local(future));
        Ok(())
    }

    fn status_local(&self) -> Result<(), SpawnError> {
        if self.local.refuses_work() {
            return Err(SpawnError::shutdown());
        }
        Ok(())
    }
}

impl Spawn for LocalSpawner {
    #[track_caller]
    fn spawn_obj(&self, future: FutureObj<'static, ()>) -> Result<(), SpawnError> {
        self.spawn_local_obj(future.into())
    }

    fn status(&self) -> Result<(), SpawnError> {
        self.status_local()
    }
}

impl fmt::Debug for LocalSpawner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalSpawner")
            .field("thread", &self.local.shared.name())
            .finish()
    }
}
