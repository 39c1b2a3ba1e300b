//! A walk that visits all channels of a device at once: a task on each thread
//! that has one. The walk lasts, for the device, until the last task has dropped
//! its share of it.

use std::sync::Arc;

use super::WalkError;
use super::device::{DeviceCore, IoDevice};
use super::io_channel::{self, IoChannel};
use crate::sync::budget;
use crate::task::JoinHandle;
use crate::thread::SpdkThread;
use crate::thread::local::Local;
use crate::thread::panic::PanicSource;

/// A walk that the device counts until this is dropped.
struct Counted(Arc<DeviceCore>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.end_walk();
    }
}

impl<C: 'static> IoDevice<C> {
    /// As [`IoDevice::walk_channels`], but on all threads that have a channel
    /// now at once, from whatever thread; the future may be awaited anywhere.
    ///
    /// The tasks are spawned by the call. A channel that is gone before its
    /// task runs is passed over, and so is a thread that exits before its task
    /// is through. All tasks run to their end, also when one fails.
    ///
    /// # Errors
    ///
    /// The future yields the first [`WalkError`] in the order in which the
    /// threads were created, once all tasks have ended.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future only stops the waiting; the tasks go on.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{cell::Cell, convert::Infallible};
    /// use corespun::{channel::IoDevice, thread::ThreadLib};
    ///
    /// let mut thread = ThreadLib::new().thread().build()?.attach();
    /// let device = thread.enter(|| IoDevice::builder().register(|| Ok::<_, Infallible>(Cell::new(1))))?;
    /// let channel = thread.enter(|| device.channel())?;
    /// let walk = device.walk_channels_concurrent(async |channel| {
    ///     channel.set(2);
    ///     Ok::<_, Infallible>(())
    /// });
    /// thread.poll(0, 0);
    /// futures::executor::block_on(walk)?;
    /// assert_eq!(channel.get(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[track_caller]
    pub fn walk_channels_concurrent<E, F>(
        &self,
        f: F,
    ) -> impl Future<Output = Result<(), WalkError<E>>> + Send + use<C, E, F>
    where
        E: Send + 'static,
        F: AsyncFn(IoChannel<C>) -> Result<(), E> + Send + Sync + 'static,
    {
        let core = &self.device.core;
        let visits = if core.begin_walk() {
            Ok(self.visit_all(Arc::new(Counted(core.clone())), f))
        } else {
            Err(WalkError::Unregistered(core.name()))
        };
        async move {
            budget::take().await;
            let mut walk = Ok(());
            for (thread, visit) in visits? {
                walk = walk.and(result(&thread, visit).await);
            }
            walk
        }
    }

    #[track_caller]
    fn visit_all<E, F>(
        &self,
        walk: Arc<Counted>,
        f: F,
    ) -> Vec<(SpdkThread, JoinHandle<Result<(), E>>)>
    where
        E: Send + 'static,
        F: AsyncFn(IoChannel<C>) -> Result<(), E> + Send + Sync + 'static,
    {
        let f = Arc::new(f);
        let mut visits = Vec::new();
        for thread in walk.0.channel_threads() {
            let thread = SpdkThread::from_shared(thread);
            let (walk, f) = (walk.clone(), f.clone());
            let visit = thread.spawn_with(async move || {
                // Dropped last, after the channel.
                let walk = walk;
                let cell = Local::with_current(|local| io_channel::existing(local, &walk.0));
                match cell.flatten() {
                    Some(cell) => f(IoChannel::new(cell)).await,
                    None => Ok(()),
                }
            });
            visits.push((thread, visit));
        }
        visits
    }
}

/// What one visit ended with; its panic is reported.
async fn result<E>(
    thread: &SpdkThread,
    visit: JoinHandle<Result<(), E>>,
) -> Result<(), WalkError<E>> {
    match visit.await {
        Ok(result) => result.map_err(WalkError::Stopped),
        Err(error) => match error.try_into_panic() {
            Ok(payload) => {
                let (library, name) = (&thread.shared.library, thread.name());
                library.report_panic(name, PanicSource::Task, None, payload);
                Err(WalkError::Panicked(name.to_owned()))
            }
            // The thread has exited, and its channel with it.
            Err(_) => Ok(()),
        },
    }
}
