//! `for_each_channel`: one message after another visits the threads that have a
//! channel of a device, in the order they were created, and the last comes back
//! to where the walk began.
//!
//! The walk is one box that travels. At each stop it looks for the thread's
//! channel anew, since that may be gone by the time the message runs; a thread
//! that takes no messages any more has no channel, and is passed over. The
//! device is told of the end before the message with the completion is sent: who
//! hears of the completion may free the device.

use std::fmt;
use std::ops::Deref;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::channel::oneshot;

use super::device::{DeviceCore, IoDevice};
use super::io_channel::{self, ChannelCell, IoChannel};
use super::{WalkError, WalkStartError};
use crate::sync::budget::poll_budget;
use crate::task;
use crate::thread::local::Local;
use crate::thread::message::Message;
use crate::thread::panic::drop_anywhere;
use crate::thread::pending::{Pending, PendingKey};
use crate::thread::shared::Shared;
use crate::thread::travel::{Journey, Traveller};

/// What is done at each stop. Takes the walk along and sends it on.
trait Visit<C: 'static, E: Send + 'static>: Send + Sized + 'static {
    fn visit(walk: Traveller<Walk<C, E, Self>>, cell: Rc<ChannelCell<C>>);
}

struct Walk<C: 'static, E, V> {
    device: IoDevice<C>,
    /// The thread visited last.
    cursor: u64,
    /// Taken at the end.
    origin: Option<Arc<Shared>>,
    key: PendingKey<Result<(), WalkError<E>>>,
    /// What it ends with, once that is not that all were visited.
    result: Option<Result<(), WalkError<E>>>,
    visit: V,
}

impl<C: 'static, E: Send + 'static, V: Visit<C, E>> Walk<C, E, V> {
    fn core(&self) -> &Arc<DeviceCore> {
        &self.device.device.core
    }
}

impl<C: 'static, E: Send + 'static, V: Visit<C, E>> Journey for Walk<C, E, V> {
    type Stop = Arc<Shared>;

    fn next_stop(&mut self) -> Option<Arc<Shared>> {
        // Where there is none, the device knows by that that the walk has ended.
        let thread = self.core().next_channel(self.cursor)?;
        self.cursor = thread.id;
        Some(thread)
    }

    fn send(thread: Arc<Shared>, walk: Traveller<Self>) -> Result<(), Traveller<Self>> {
        thread.deliver(walk, |walk| Message::new(move || walk.arrive()))
    }

    fn visit(walk: Traveller<Self>) {
        let core = walk.journey().core();
        let found = Local::with_current(|local| io_channel::existing(local, core));
        match found {
            Some(Some(cell)) => V::visit(walk, cell),
            _ => walk.advance(),
        }
    }

    fn end(mut self: Box<Self>) {
        let origin = self.origin.take().expect("it ends once");
        let sent = origin.deliver(self, |mut walk| {
            Message::new(move || {
                let result = walk.result.take().unwrap_or(Ok(()));
                Local::with_current(|local| local.complete(walk.key, result));
            })
        });
        // Refused only by a thread that has given up waiting. What it visited
        // with may panic, and has perhaps just done so.
        if let Err(walk) = sent {
            drop_anywhere(walk);
        }
    }

    fn unwound(walk: Traveller<Self>) {
        let name = Local::with_current(|local| local.shared.name().to_owned());
        stop(walk, WalkError::Panicked(name.unwrap_or_default()));
    }
}

/// What a visit ended with.
fn proceed<C, E, V>(walk: Traveller<Walk<C, E, V>>, result: Result<(), E>)
where
    C: 'static,
    E: Send + 'static,
    V: Visit<C, E>,
{
    match result {
        Ok(()) => walk.advance(),
        Err(error) => stop(walk, WalkError::Stopped(error)),
    }
}

/// Ends the walk before its last stop.
fn stop<C, E, V>(mut walk: Traveller<Walk<C, E, V>>, error: WalkError<E>)
where
    C: 'static,
    E: Send + 'static,
    V: Visit<C, E>,
{
    let journey = walk.journey_mut();
    journey.core().end_walk();
    journey.result = Some(Err(error));
    walk.finish();
}

/// A function that is done when it returns.
struct Inline<F>(F);

impl<C: 'static, E, F> Visit<C, E> for Inline<F>
where
    E: Send + 'static,
    F: FnMut(&C) -> Result<(), E> + Send + 'static,
{
    fn visit(mut walk: Traveller<Walk<C, E, Self>>, cell: Rc<ChannelCell<C>>) {
        let result = (walk.journey_mut().visit.0)(&cell.context);
        proceed(walk, result);
    }
}

type StepFn<C, E> = dyn Fn(WalkStep<C, E>) + Send + Sync;

/// A function that says later that it is done.
struct Stepwise<C: 'static, E: Send + 'static>(Arc<StepFn<C, E>>);

impl<C: 'static, E: Send + 'static> Visit<C, E> for Stepwise<C, E> {
    fn visit(walk: Traveller<Walk<C, E, Self>>, cell: Rc<ChannelCell<C>>) {
        let function = walk.journey().visit.0.clone();
        let channel = IoChannel::new(cell);
        function(WalkStep { walk, channel });
    }
}

/// One stop of a walk (`struct spdk_io_channel_iter`): the thread's channel,
/// and the right to send the walk on. Derefs to the channel's context.
///
/// Dropped without [`WalkStep::proceed`], it sends the walk on as if that had
/// been called with `Ok`.
///
/// # Examples
///
/// It may be kept until what was started has ended:
///
/// ```
/// use std::{cell::Cell, convert::Infallible, rc::Rc};
/// use corespun::{channel::IoDevice, task, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let device = runner.enter(|| IoDevice::builder().register(|| Ok::<_, Infallible>(Cell::new(0))))?;
/// let channel = runner.enter(|| device.channel())?;
/// let ended = Rc::new(Cell::new(false));
/// let told = ended.clone();
/// runner.enter(|| device.for_each_channel_step(
///     |step| drop(task::spawn_local(async move {
///         task::yield_now().await;
///         // It derefs to the context.
///         step.set(1);
///         step.proceed(Ok::<_, Infallible>(()));
///     })),
///     move |_result| told.set(true),
/// ))?;
/// while runner.poll(0, 0).is_busy() {}
/// assert_eq!((channel.get(), ended.get()), (1, true));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the walk goes on when this is dropped"]
pub struct WalkStep<C: 'static, E: Send + 'static> {
    walk: Traveller<Walk<C, E, Stepwise<C, E>>>,
    channel: IoChannel<C>,
}

impl<C: 'static, E: Send + 'static> WalkStep<C, E> {
    /// The channel, of the thread that the step is on.
    pub fn channel(&self) -> &IoChannel<C> {
        &self.channel
    }

    /// The device.
    pub fn device(&self) -> IoDevice<C> {
        self.channel.device()
    }

    /// Sends the walk on to the next channel, or with an error to its end
    /// (`spdk_for_each_channel_continue`).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{cell::RefCell, convert::Infallible, rc::Rc};
    /// use corespun::{channel::{IoDevice, WalkError}, thread::ThreadLib};
    ///
    /// let mut runner = ThreadLib::new().thread().build()?.attach();
    /// let device = runner.enter(|| IoDevice::builder().register(|| Ok::<_, Infallible>(())))?;
    /// let _channel = runner.enter(|| device.channel())?;
    /// let result = Rc::new(RefCell::new(Ok(())));
    /// let told = result.clone();
    /// runner.enter(|| device.for_each_channel_step(
    ///     |step| step.proceed(Err("queue not empty")),
    ///     move |result| *told.borrow_mut() = result,
    /// ))?;
    /// while runner.poll(0, 0).is_busy() {}
    /// assert_eq!(*result.borrow(), Err(WalkError::Stopped("queue not empty")));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn proceed(self, result: Result<(), E>) {
        let WalkStep { walk, channel } = self;
        drop(channel);
        proceed(walk, result);
    }
}

impl<C: 'static, E: Send + 'static> Deref for WalkStep<C, E> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.channel
    }
}

impl<C: 'static, E: Send + 'static> fmt::Debug for WalkStep<C, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WalkStep")
            .field("channel", &self.channel)
            .finish_non_exhaustive()
    }
}

impl<C: 'static> IoDevice<C> {
    /// Calls `f` with the context of every channel of this device, one after
    /// the other in the order their threads were created, each on its own
    /// thread by message; then `done` on the current thread
    /// (`spdk_for_each_channel`).
    ///
    /// An error of `f` ends the walk and is what `done` gets. A channel that is
    /// gone when its turn comes is passed over; one that is opened before its
    /// turn is visited. `done` is always called by a later message, and the
    /// current thread does not exit before.
    ///
    /// # Errors
    ///
    /// [`WalkStartError`] when no thread of the device's library instance is
    /// current or it has exited. All else is told to `done`.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{cell::Cell, convert::Infallible};
    /// use corespun::{channel::IoDevice, thread::ThreadLib};
    ///
    /// let library = ThreadLib::new();
    /// let mut a = library.thread().build()?.attach();
    /// let mut b = library.thread().build()?.attach();
    /// let device = a.enter(|| IoDevice::builder().register(|| Ok::<_, Infallible>(Cell::new(1))))?;
    /// let _of_a = a.enter(|| device.channel())?;
    /// let of_b = b.enter(|| device.channel())?;
    /// a.enter(|| {
    ///     device.for_each_channel(
    ///         |weight| {
    ///             weight.set(2);
    ///             Ok::<_, Infallible>(())
    ///         },
    ///         |result| assert!(result.is_ok()),
    ///     )
    /// })?;
    /// a.poll(0, 0);
    /// b.poll(0, 0);
    /// assert_eq!(of_b.get(), 2);
    /// a.poll(0, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn for_each_channel<E, F, D>(&self, f: F, done: D) -> Result<(), WalkStartError>
    where
        E: Send + 'static,
        F: FnMut(&C) -> Result<(), E> + Send + 'static,
        D: FnOnce(Result<(), WalkError<E>>) + 'static,
    {
        self.start_walk(Inline(f), true, done)
    }

    /// As [`IoDevice::for_each_channel`], for an `f` that is done later: each
    /// stop lasts until [`WalkStep::proceed`].
    ///
    /// # Errors
    ///
    /// As [`IoDevice::for_each_channel`].
    ///
    /// # Examples
    ///
    /// Each thread drains its queue before the next one's turn:
    ///
    /// ```
    /// use std::{cell::Cell, convert::Infallible};
    /// use corespun::{channel::IoDevice, task, thread::ThreadLib};
    ///
    /// let library = ThreadLib::new();
    /// let (mut a, mut b) = (library.thread().build()?.attach(), library.thread().build()?.attach());
    /// let device = a.enter(|| IoDevice::builder().register(|| Ok::<_, Infallible>(Cell::new(3))))?;
    /// let (of_a, of_b) = (a.enter(|| device.channel())?, b.enter(|| device.channel())?);
    /// a.enter(|| device.for_each_channel_step(
    ///     |step| drop(task::spawn_local(async move {
    ///         while step.get() > 0 {
    ///             step.set(step.get() - 1);
    ///             task::yield_now().await;
    ///         }
    ///         step.proceed(Ok::<_, Infallible>(()));
    ///     })),
    ///     |result| assert!(result.is_ok()),
    /// ))?;
    /// a.poll(0, 0);
    /// assert_eq!(of_b.get(), 3);
    /// while a.poll(0, 0).max(b.poll(0, 0)).is_busy() {}
    /// assert_eq!((of_a.get(), of_b.get()), (0, 0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn for_each_channel_step<E, F, D>(&self, f: F, done: D) -> Result<(), WalkStartError>
    where
        E: Send + 'static,
        F: Fn(WalkStep<C, E>) + Send + Sync + 'static,
        D: FnOnce(Result<(), WalkError<E>>) + 'static,
    {
        self.start_walk(Stepwise(Arc::new(f)), true, done)
    }

    /// As [`IoDevice::for_each_channel`], asynchronous on both ends: the future
    /// that `f` makes is run as a task of the channel's thread, and the walk's
    /// end is awaited.
    ///
    /// # Errors
    ///
    /// [`WalkStartError`] as for [`IoDevice::for_each_channel`]; the future
    /// yields [`WalkError`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future only stops the waiting; the walk goes on. A task
    /// that its thread's exit cancels sends the walk on.
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
    /// let walk = thread.enter(|| {
    ///     device.walk_channels(async |channel| {
    ///         task::yield_now().await;
    ///         assert_eq!(*channel, 7);
    ///         Ok::<_, Infallible>(())
    ///     })
    /// })?;
    /// let walk = thread.enter(|| task::spawn_local(walk));
    /// for _ in 0..5 {
    ///     thread.poll(0, 0);
    /// }
    /// assert!(walk.is_finished());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn walk_channels<E, F>(&self, f: F) -> Result<ChannelWalk<E>, WalkStartError>
    where
        E: Send + 'static,
        F: AsyncFn(IoChannel<C>) -> Result<(), E> + Send + Sync + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let f = Arc::new(f);
        let visit = move |step: WalkStep<C, E>| {
            let f = f.clone();
            drop(task::spawn_local(async move {
                let result = f(step.channel().clone()).await;
                step.proceed(result);
            }));
        };
        let told: Box<dyn FnOnce(_) + Send> = Box::new(move |result| {
            // The one who waited may have given up.
            let _ = sender.send(result);
        });
        self.start_walk(Stepwise(Arc::new(visit)), false, told)?;
        Ok(ChannelWalk { receiver })
    }

    /// `stays` says that `done` may not be `Send`.
    fn start_walk<E, V, D>(&self, visit: V, stays: bool, done: D) -> Result<(), WalkStartError>
    where
        E: Send + 'static,
        V: Visit<C, E>,
        D: FnOnce(Result<(), WalkError<E>>) + 'static,
    {
        let core = &self.device.core;
        let start = |local: &Local| {
            if !core.belongs_to(local) {
                return Err(WalkStartError::NotOnThread(core.name()));
            }
            if local.refuses_work() {
                return Err(WalkStartError::Exited {
                    thread: local.shared.name().to_owned(),
                    device: core.name(),
                });
            }
            let what = Pending::ChannelWalk(core.name.clone());
            let key = local.insert_pending(what, stays, done);
            let mut walk = Walk {
                device: self.clone(),
                cursor: 0,
                origin: Some(local.shared.clone()),
                key,
                result: None,
                visit,
            };
            if core.begin_walk() {
                Traveller::start(walk);
            } else {
                walk.result = Some(Err(WalkError::Unregistered(core.name())));
                Box::new(walk).end();
            }
            Ok(())
        };
        Local::with_current(start).unwrap_or_else(|| Err(WalkStartError::NotOnThread(core.name())))
    }
}

/// Completes when a walk over the channels of a device has ended; made by
/// [`IoDevice::walk_channels`].
///
/// # Examples
///
/// ```
/// use std::{cell::Cell, convert::Infallible};
/// use corespun::{channel::{IoDevice, WalkError}, task, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let device = runner.enter(|| IoDevice::builder().register(|| Ok::<_, Infallible>(Cell::new(5))))?;
/// let channel = runner.enter(|| device.channel())?;
/// let walk = runner.enter(|| device.walk_channels(async |channel| match channel.get() {
///     0 => Ok(()),
///     in_flight => Err(in_flight),
/// }))?;
/// while runner.poll(0, 0).is_busy() {}
/// assert_eq!(futures::executor::block_on(walk), Err(WalkError::Stopped(5)));
/// # drop(channel);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "futures do nothing unless awaited; the walk goes on without"]
pub struct ChannelWalk<E> {
    receiver: oneshot::Receiver<Result<(), WalkError<E>>>,
}

impl<E> Future for ChannelWalk<E> {
    type Output = Result<(), WalkError<E>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let budget = ready!(poll_budget(cx));
        let answer = budget.on(Pin::new(&mut self.receiver).poll(cx));
        answer.map(|answer| answer.unwrap_or(Err(WalkError::Exited)))
    }
}

impl<E> fmt::Debug for ChannelWalk<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChannelWalk").finish_non_exhaustive()
    }
}
