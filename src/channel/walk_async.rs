//! Walks over the channels of a device with asynchronous functions, one after the other
//! or all at once: tasks on the threads that have one. The walk lasts, for the device,
//! until the future and the last task have dropped their shares of it.

use std::panic::Location;
use std::sync::Arc;

use super::device::{DeviceCore, IoDevice};
use super::io_channel::{self, IoChannel};
use super::{WalkError, WalkPanicked};
use crate::sync::budget;
use crate::task::{JoinHandle, TaskBuilder};
use crate::thread::SpdkThread;
use crate::thread::local::Local;
use crate::thread::panic::PanicSource;
use crate::thread::shared::Shared;

/// A walk that the device counts until this is dropped.
struct Counted(Arc<DeviceCore>);

impl Counted {
    fn new<E>(core: &Arc<DeviceCore>) -> Result<Arc<Self>, WalkError<E>> {
        match core.begin_walk() {
            true => Ok(Arc::new(Counted(core.clone()))),
            false => Err(WalkError::Unregistered(core.name())),
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.end_walk();
    }
}

impl<C: 'static> IoDevice<C> {
    /// Runs `f` as a task with every channel of this device, one after the other in the
    /// order their threads were created: [`IoDevice::for_each_channel`] with an
    /// asynchronous function. Unlike that it may be called and awaited anywhere, and
    /// does nothing until it is awaited. See [walks](crate::thread#walks).
    ///
    /// A channel that is gone before its task runs is passed over, and so is a thread
    /// that exits before its task is through; one that is opened before its turn is
    /// visited.
    ///
    /// # Errors
    ///
    /// The future yields [`WalkError`]: the error of `f` that ended the walk, or that
    /// `f` panicked, which does not end it.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the walk after the channel that it is at.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::convert::Infallible;
    /// use corespun::{channel::IoDevice, task, thread::ThreadLib};
    ///
    /// let mut thread = ThreadLib::new().thread().build()?.attach();
    /// let device = thread.enter(|| IoDevice::builder().register(|| Ok::<_, Infallible>(7)))?;
    /// let _channel = thread.enter(|| device.channel())?;
    /// let walk = device.walk_channels(async |channel| {
    ///     task::yield_now().await;
    ///     assert_eq!(*channel, 7);
    ///     Ok::<_, Infallible>(())
    /// });
    /// let walk = thread.enter(|| task::spawn(walk));
    /// while !walk.is_finished() {
    ///     thread.poll(0, 0);
    /// }
    /// futures::executor::block_on(walk)??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[track_caller]
    pub fn walk_channels<E, F>(
        &self,
        f: F,
    ) -> impl Future<Output = Result<(), WalkError<E>>> + Send + use<C, E, F>
    where
        E: Send + 'static,
        F: AsyncFn(IoChannel<C>) -> Result<(), E> + Send + Sync + 'static,
    {
        let (core, f, location) = (self.device.core.clone(), Arc::new(f), Location::caller());
        async move {
            budget::take().await;
            let walk = Counted::new(&core)?;
            let (mut cursor, mut panicked) = (0, 0);
            while let Some(thread) = core.channel_thread_after(cursor) {
                cursor = thread.id;
                let visit = visit(&walk, &f, thread, location);
                panicked += visit.end().await?;
            }
            walked(panicked)
        }
    }

    /// As [`IoDevice::walk_channels`], but on all threads that have a channel
    /// now at once. All tasks run to their end, also when one fails.
    ///
    /// # Errors
    ///
    /// The future yields the first [`WalkError`] in the order in which the
    /// threads were created, once all tasks have ended; that of a panic is the last.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future only stops the waiting; the tasks that it has spawned go on.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{cell::Cell, convert::Infallible};
    /// use corespun::{channel::IoDevice, task, thread::ThreadLib};
    ///
    /// let mut thread = ThreadLib::new().thread().build()?.attach();
    /// let device = thread.enter(|| IoDevice::builder().register(|| Ok::<_, Infallible>(Cell::new(1))))?;
    /// let channel = thread.enter(|| device.channel())?;
    /// let walk = device.walk_channels_concurrent(async |channel| {
    ///     channel.set(2);
    ///     Ok::<_, Infallible>(())
    /// });
    /// let walk = thread.enter(|| task::spawn(walk));
    /// while !walk.is_finished() {
    ///     thread.poll(0, 0);
    /// }
    /// futures::executor::block_on(walk)??;
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
        let (core, f, location) = (self.device.core.clone(), Arc::new(f), Location::caller());
        async move {
            budget::take().await;
            let walk = Counted::new(&core)?;
            let threads = core.channel_threads().into_iter();
            // All are spawned before the first is waited for.
            let visits: Vec<_> = threads
                .map(|thread| visit(&walk, &f, thread, location))
                .collect();
            drop(walk);
            let (mut first, mut panicked) = (Ok(()), 0);
            for visit in visits {
                match visit.end().await {
                    Ok(panics) => panicked += panics,
                    Err(error) => first = first.and(Err(error)),
                }
            }
            first.and(walked(panicked))
        }
    }
}

fn walked<E>(panicked: usize) -> Result<(), WalkError<E>> {
    WalkPanicked::at(panicked).map_err(WalkError::Panicked)
}

/// A task that visits a channel.
struct Visit<E> {
    thread: SpdkThread,
    task: JoinHandle<Result<(), E>>,
}

fn visit<C, E, F>(
    walk: &Arc<Counted>,
    f: &Arc<F>,
    thread: Arc<Shared>,
    location: &'static Location<'static>,
) -> Visit<E>
where
    C: 'static,
    E: Send + 'static,
    F: AsyncFn(IoChannel<C>) -> Result<(), E> + Send + Sync + 'static,
{
    let thread = SpdkThread::from_shared(thread);
    let (walk, f) = (walk.clone(), f.clone());
    let visit = async move || {
        // Dropped last, after the channel.
        let walk = walk;
        let cell = Local::with_current(|local| io_channel::existing(local, &walk.0));
        match cell.flatten() {
            Some(cell) => f(IoChannel::new(cell)).await,
            None => Ok(()),
        }
    };
    let task = TaskBuilder::new().spawn_with_at(&thread, visit, location);
    Visit { thread, task }
}

impl<E> Visit<E> {
    /// How often it panicked, which is reported.
    async fn end(self) -> Result<usize, WalkError<E>> {
        let error = match self.task.await {
            Ok(result) => return result.map(|()| 0).map_err(WalkError::Stopped),
            Err(error) => error,
        };
        match error.try_into_panic() {
            Ok(payload) => {
                let library = &self.thread.shared.library;
                library.report_panic(self.thread.name(), PanicSource::Task, None, payload);
                Ok(1)
            }
            // The thread has exited, and its channel with it.
            Err(_) => Ok(0),
        }
    }
}
