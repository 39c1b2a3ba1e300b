//! `for_each_channel`: one message after another visits the threads that have a
//! channel of a device, in the order they were created, and the last comes back
//! to where the walk began.
//!
//! The walk is one box that travels. At each stop it looks for the thread's
//! channel anew, since that may be gone by the time the message runs; a thread
//! that takes no messages any more has no channel, and is passed over. The
//! device is told of the end before the message with the completion is sent: the
//! caller may free the device when it hears of the completion.

use std::fmt;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

use super::WalkError;
use super::device::{DeviceCore, IoDevice};
use super::io_channel::{self, ChannelCell, IoChannel};
use crate::thread::local::Local;
use crate::thread::message::Message;
use crate::thread::panic::drop_anywhere;
use crate::thread::pending::{Pending, PendingKey};
use crate::thread::shared::Shared;
use crate::thread::travel::{Journey, Traveller, Trip};
use crate::thread::{Exited, NotOnThread, WalkStartError};

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

    fn end(mut trip: Box<Trip<Self>>) {
        let origin = trip.journey.origin.take().expect("it ends once");
        let sent = origin.deliver(trip, |mut trip| {
            Message::new(move || {
                let walked = trip.walked().map_err(WalkError::Panicked);
                let result = trip.journey.result.take().unwrap_or(walked);
                Local::with_current(|local| local.complete(trip.journey.key, result));
            })
        });
        // Refused only by a thread that has given up waiting. What it visited
        // with may panic, and has perhaps just done so.
        if let Err(trip) = sent {
            drop_anywhere(trip);
        }
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
        Err(error) => stop(walk, error),
    }
}

/// Ends the walk before its last stop.
fn stop<C, E, V>(mut walk: Traveller<Walk<C, E, V>>, error: E)
where
    C: 'static,
    E: Send + 'static,
    V: Visit<C, E>,
{
    let journey = walk.journey_mut();
    journey.core().end_walk();
    journey.result = Some(Err(WalkError::Stopped(error)));
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
    /// An error of `f` ends the walk and is what `done` gets; a panic of it is
    /// contained, and the walk goes on: see [walks](crate::thread#walks). A channel that is
    /// gone when its turn comes is passed over; one that is opened before its
    /// turn is visited. `done` is always called by a later message, and the
    /// current thread does not exit before.
    ///
    /// [`IoDevice::walk_channels`] is the form with an asynchronous function.
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
        self.start_walk(Inline(f), done)
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
        self.start_walk(Stepwise(Arc::new(f)), done)
    }

    fn start_walk<E, V, D>(&self, visit: V, done: D) -> Result<(), WalkStartError>
    where
        E: Send + 'static,
        V: Visit<C, E>,
        D: FnOnce(Result<(), WalkError<E>>) + 'static,
    {
        let core = &self.device.core;
        let not_on_thread = || {
            WalkStartError::from(NotOnThread::new(format!(
                "a walk over the channels of io_device {:?} needs a SpdkThread of its library instance to come back to",
                core.name()
            )))
        };
        let start = |local: &Local| {
            if !core.belongs_to(local) {
                return Err(not_on_thread());
            }
            if local.refuses_work() {
                let device = core.name();
                let gone = format!("has exited and cannot wait for a walk of io_device {device:?}");
                return Err(Exited::new(local.shared.name(), gone).into());
            }
            let what = Pending::ChannelWalk(core.name.clone());
            // It need not be `Send`.
            let key = local.insert_pending(what, true, done);
            let walk = Walk {
                device: self.clone(),
                cursor: 0,
                origin: Some(local.shared.clone()),
                key,
                result: None,
                visit,
            };
            match core.begin_walk() {
                true => Traveller::start(walk),
                false => Traveller::end_at_once(Walk {
                    result: Some(Err(WalkError::Unregistered(core.name()))),
                    ..walk
                }),
            }
            Ok(())
        };
        Local::with_current(start).unwrap_or_else(|| Err(not_on_thread()))
    }
}
