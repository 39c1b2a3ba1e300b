//! Tasks, as futures and opendal ask for them.

use futures::task::{FutureObj, LocalFutureObj, LocalSpawn, Spawn, SpawnError};

use crate::runtime::Handle;

/// Spawns on the runtime. As long as that lives; afterwards the task is dropped.
impl Spawn for Handle {
    fn spawn_obj(&self, future: FutureObj<'static, ()>) -> Result<(), SpawnError> {
        drop(self.spawn(future));
        Ok(())
    }
}

/// Spawns on the runtime, for [`Executor::with`](opendal_core::Executor::with). As long as that
/// lives; afterwards the task is dropped.
#[cfg(feature = "opendal")]
impl opendal_core::Execute for Handle {
    fn execute(&self, f: opendal_core::raw::BoxedStaticFuture<()>) {
        drop(self.spawn(f));
    }
}

/// Spawns on the current OS thread, within a [`LocalSet`](crate::task::LocalSet) or a
/// [`LocalRuntime`](crate::runtime::LocalRuntime).
///
/// # Panics
///
/// Spawning, outside of both.
///
/// # Examples
///
/// ```
/// # use corespun_compat as tokio;
/// use std::rc::Rc;
/// use corespun_compat::adapters::LocalSpawner;
/// use futures::task::LocalSpawnExt;
///
/// let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
/// tokio::task::LocalSet::new().block_on(&runtime, async {
///     let value = Rc::new(42);
///     let task = LocalSpawner.spawn_local_with_handle(async move { *value }).unwrap();
///     assert_eq!(task.await, 42);
/// });
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalSpawner;

impl LocalSpawn for LocalSpawner {
    fn spawn_local_obj(&self, future: LocalFutureObj<'static, ()>) -> Result<(), SpawnError> {
        drop(crate::task::spawn_local(future));
        Ok(())
    }
}

impl Spawn for LocalSpawner {
    fn spawn_obj(&self, future: FutureObj<'static, ()>) -> Result<(), SpawnError> {
        self.spawn_local_obj(future.into())
    }
}
