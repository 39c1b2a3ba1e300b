//! What places the threads of a library instance: the reactors, or a scheduler of
//! the program's own.

use crate::cpu::CpuSet;
use crate::thread::{CreateError, ParkedThread, SetCpumaskError, SpdkThread};

/// What places new threads on something that polls them: the reactors, or a
/// scheduler of your own (SPDK's `new_thread_fn`).
///
/// # Examples
///
/// One OS thread that polls whatever was created, in turn:
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use corespun::thread::{CreateError, Framework, ParkedThread, ThreadLib};
///
/// #[derive(Default)]
/// struct Arrivals(Mutex<Vec<ParkedThread>>);
///
/// impl Framework for Arrivals {
///     fn place(&self, thread: ParkedThread) -> Result<(), CreateError> {
///         self.0.lock().unwrap().push(thread);
///         Ok(())
///     }
/// }
///
/// let arrivals = Arc::new(Arrivals::default());
/// let library = ThreadLib::new();
/// library.set_framework(arrivals.clone())?;
/// let calls = [library.thread().create()?.call(|| 1), library.thread().create()?.call(|| 2)];
///
/// let mut ring: Vec<_> = arrivals.0.lock().unwrap().drain(..).map(ParkedThread::attach).collect();
/// for thread in &mut ring {
///     thread.poll(0, 0);
/// }
/// let results = futures::executor::block_on(futures::future::try_join_all(calls))?;
/// assert_eq!(results, [1, 2]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Framework: Send + Sync + 'static {
    /// Takes a new thread, to attach and poll it somewhere. Called by
    /// [`ThreadBuilder::create`](crate::thread::ThreadBuilder::create), on the creating OS thread, with no lock held.
    ///
    /// # Errors
    ///
    /// The error of the caller's `create`; dropping `thread` destroys it.
    ///
    /// # Examples
    ///
    /// A framework may refuse, and the thread is gone as if it had never been there:
    ///
    /// ```
    /// use std::sync::Arc;
    /// use corespun::thread::{CreateError, Framework, ParkedThread, ThreadLib};
    ///
    /// struct Closed;
    ///
    /// impl Framework for Closed {
    ///     fn place(&self, _thread: ParkedThread) -> Result<(), CreateError> {
    ///         Err(CreateError::Stopping)
    ///     }
    /// }
    ///
    /// let library = ThreadLib::new();
    /// library.set_framework(Arc::new(Closed))?;
    /// assert!(matches!(library.thread().create(), Err(CreateError::Stopping)));
    /// assert_eq!(library.thread_count(), 0);
    /// # Ok::<(), corespun::thread::FrameworkSet>(())
    /// ```
    fn place(&self, thread: ParkedThread) -> Result<(), CreateError>;

    /// Hears that `thread`, the current one, asks for another mask (SPDK's
    /// `SPDK_THREAD_OP_RESCHED`): look at [`SpdkThread::cpumask`] after the
    /// poll and move it if it must. Unless overridden, refuses. A caller that
    /// awaits [`SpdkThread::set_cpumask_async`] waits for
    /// [`ThreadRunner::set_core`](crate::thread::ThreadRunner::set_core).
    ///
    /// # Errors
    ///
    /// The error of the caller's [`SpdkThread::set_cpumask`]; the mask stays
    /// as it is then.
    ///
    /// # Examples
    ///
    /// The mask is looked at when the poll is over:
    ///
    /// ```
    /// use std::sync::{Arc, Mutex};
    /// use corespun::cpu::CpuSet;
    /// use corespun::thread::{CreateError, Framework, ParkedThread, SetCpumaskError};
    /// use corespun::thread::{SpdkThread, ThreadLib};
    ///
    /// #[derive(Default)]
    /// struct Moves(Mutex<Vec<SpdkThread>>);
    ///
    /// impl Framework for Moves {
    ///     fn place(&self, _thread: ParkedThread) -> Result<(), CreateError> {
    ///         Ok(())
    ///     }
    ///
    ///     fn reschedule(&self, thread: &SpdkThread, _mask: &CpuSet) -> Result<(), SetCpumaskError> {
    ///         self.0.lock().unwrap().push(thread.clone());
    ///         Ok(())
    ///     }
    /// }
    ///
    /// let (library, moves) = (ThreadLib::new(), Arc::new(Moves::default()));
    /// library.set_framework(moves.clone())?;
    /// let mut runner = library.thread().build()?.attach();
    /// runner.enter(|| SpdkThread::current().unwrap().set_cpumask(&CpuSet::single(1)))?;
    /// let asked = moves.0.lock().unwrap().pop().unwrap();
    /// assert_eq!(asked.cpumask(), CpuSet::single(1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn reschedule(&self, thread: &SpdkThread, mask: &CpuSet) -> Result<(), SetCpumaskError> {
        let _ = mask;
        Err(SetCpumaskError::NotSupported(thread.name().to_owned()))
    }

    /// Hears that `thread`, the current one, is to go to `core` with its mask as it
    /// is: move it there after the poll. Unless overridden, refuses.
    ///
    /// # Errors
    ///
    /// The error of the caller's [`SpdkThread::move_to_core`].
    fn move_to(&self, thread: &SpdkThread, core: usize) -> Result<(), SetCpumaskError> {
        let _ = core;
        Err(SetCpumaskError::NotSupported(thread.name().to_owned()))
    }
}

/// A framework was set on this library instance before.
///
/// # Examples
///
/// ```
/// use corespun::app::{App, AppHandle};
/// use corespun::thread::{CreateError, Framework, FrameworkSet, ParkedThread};
///
/// struct Mine;
///
/// impl Framework for Mine {
///     fn place(&self, _thread: ParkedThread) -> Result<(), CreateError> {
///         Ok(())
///     }
/// }
///
/// let second = App::builder().block_on(async |app: AppHandle| {
///     // The app's instance has the reactors.
///     app.library().set_framework(std::sync::Arc::new(Mine))
/// })?;
/// assert!(matches!(second, Err(FrameworkSet)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[error("this library instance already has a framework that places its threads")]
pub struct FrameworkSet;
