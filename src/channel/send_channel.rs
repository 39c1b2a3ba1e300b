//! Channels that move with their thread.
//!
//! The context is `Send`, which the compiler checks where a [`SendChannel`] is asked
//! for: from then on the channel itself does not bind its thread, and is used and
//! dropped on whichever OS thread that is polled by. An [`IoChannel`] lends its
//! context out for as long as it is borrowed, so it binds the thread as ever, while
//! it lives. A [`SendChannel`] may be anywhere. It refers to no channel, but says by
//! which device the thread finds its channel in its table, and lends the context to a
//! function only, while the thread is the current one; a thread is parked, and so
//! moved, only when none of its callbacks runs. The table keeps the channel as long
//! as `send_refs`, which the thread itself counts, says that there are such handles.

use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use super::ChannelError;
use super::device::{Device, IoDevice};
use super::io_channel::{self, ChannelCell, IoChannel};
use crate::thread::SpdkThread;
use crate::thread::local::Local;
use crate::thread::message::Message;
use crate::thread::shared::Shared;

/// A handle of a thread's channel to a device, of which the context is `Send`: the
/// channel moves with its thread, and the handle may be anywhere.
///
/// Made by [`IoDevice::send_channel`]. It keeps the channel, and so the thread from
/// exiting, as an [`IoChannel`] does; cloned and dropped on any OS thread. The
/// context can be used on the channel's SpdkThread only, by [`SendChannel::with`].
///
/// # Examples
///
/// A task that submits wherever its thread is:
///
/// ```
/// use std::cell::Cell;
/// use std::convert::Infallible;
/// use corespun::{channel::IoDevice, task, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let device = runner.enter(|| IoDevice::builder().register(|| Ok::<_, Infallible>(Cell::new(0))))?;
/// let channel = runner.enter(|| device.send_channel())?;
/// let submits = runner.enter(|| task::spawn(async move {
///     channel.with(|submitted| submitted.set(submitted.get() + 1))?;
///     task::yield_now().await;
///     channel.with(|submitted| submitted.get())
/// }));
/// let parked = runner.park().expect("nothing on it has to stay");
/// std::thread::spawn(move || {
///     let mut runner = parked.attach();
///     while runner.poll(0, 0).is_busy() {}
///     assert_eq!(futures::executor::block_on(submits).unwrap().unwrap(), 1);
/// }).join().unwrap();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A context that is not `Send` has none:
///
/// ```compile_fail,E0277
/// # use std::{convert::Infallible, rc::Rc};
/// # use corespun::{channel::IoDevice, thread::ThreadLib};
/// # let mut runner = ThreadLib::new().thread().build().unwrap().attach();
/// let device = runner.enter(|| IoDevice::builder().register(|| Ok::<_, Infallible>(Rc::new(0))));
/// runner.enter(|| device.unwrap().send_channel());
/// ```
pub struct SendChannel<C: Send + 'static> {
    held: Arc<Held<C>>,
}

/// One reference to the channel, for all clones of a handle.
struct Held<C: Send + 'static> {
    device: Arc<Device<C>>,
    thread: Arc<Shared>,
}

impl<C: Send + 'static> Held<C> {
    fn cell(&self) -> Result<Rc<ChannelCell<C>>, ChannelError> {
        let thread = || self.thread.name().to_owned();
        let Some(local) = self.thread.current_local() else {
            return Err(ChannelError::Elsewhere {
                thread: thread(),
                device: self.device.core.name(),
            });
        };
        // A forced exit has destroyed it.
        let core = &self.device.core;
        let gone = || io_channel::opens_no_channel(&thread(), core);
        io_channel::existing(local, core).ok_or_else(gone)
    }
}

/// The channel's thread counts the handle out. The table holds no other channel of
/// the device than the one that this was a handle of: that is destroyed before only
/// by an exit that lets no other be made.
fn release<C: 'static>(local: &Local, device: &Device<C>) {
    if let Some(cell) = io_channel::existing::<C>(local, &device.core) {
        cell.remove_send_ref(local);
    }
}

impl<C: Send + 'static> Drop for Held<C> {
    fn drop(&mut self) {
        if let Some(local) = self.thread.current_local() {
            return release(local, &self.device);
        }
        // Refused by a thread that has no channel any more.
        let _ = self.thread.deliver(self.device.clone(), |device| {
            Message::new(move || {
                Local::with_current(|local| release(local, &device));
            })
        });
    }
}

impl<C: Send + 'static> IoDevice<C> {
    /// The current thread's channel, as [`IoDevice::channel`], which moves with its
    /// thread from now on: only the [`IoChannel`]s that there are keep it from that.
    ///
    /// # Errors
    ///
    /// As [`IoDevice::channel`].
    pub fn send_channel(&self) -> Result<SendChannel<C>, ChannelError> {
        let channel = self.channel()?;
        channel.cell().add_send_ref();
        Ok(SendChannel {
            held: Arc::new(Held {
                device: self.device.clone(),
                thread: channel.thread().shared,
            }),
        })
    }
}

impl<C: Send + 'static> SendChannel<C> {
    /// Calls `f` with the channel's context, on the channel's SpdkThread.
    ///
    /// # Errors
    ///
    /// [`ChannelError::Elsewhere`] when another SpdkThread is current, or none;
    /// [`ChannelError::Exited`] when the exit of the thread was forced.
    #[inline]
    pub fn with<R>(&self, f: impl FnOnce(&C) -> R) -> Result<R, ChannelError> {
        let cell = self.held.cell()?;
        Ok(f(&cell.context))
    }

    /// The channel as what belongs to this OS thread, which the thread cannot leave
    /// while that lives.
    ///
    /// # Errors
    ///
    /// As [`SendChannel::with`].
    pub fn io_channel(&self) -> Result<IoChannel<C>, ChannelError> {
        Ok(IoChannel::new(self.held.cell()?))
    }

    /// The device it is a channel of.
    pub fn device(&self) -> IoDevice<C> {
        IoDevice {
            device: self.held.device.clone(),
        }
    }

    /// The thread it belongs to.
    pub fn thread(&self) -> SpdkThread {
        SpdkThread::from_shared(self.held.thread.clone())
    }
}

impl<C: Send + 'static> Clone for SendChannel<C> {
    fn clone(&self) -> Self {
        SendChannel {
            held: self.held.clone(),
        }
    }
}

impl<C: Send + 'static> fmt::Debug for SendChannel<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendChannel")
            .field("device", &&*self.held.device.core.name)
            .field("thread", &self.held.thread.name())
            .finish()
    }
}
