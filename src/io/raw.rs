//! Ring operations that have no wrapper here: any opcode, with what it needs kept alive.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use futures::Stream;
pub use io_uring::{cqueue, opcode, squeue, types};

use super::driver::Driver;
use super::op::{Abandon, Completion};
use super::state::Core;
use super::table::Key;
use crate::sync::budget::poll_budget;

impl Driver {
    /// Queues a ring entry as it stands (its user data is overwritten) and gives a future of its
    /// completion. For opcodes that complete once.
    ///
    /// `keep` is what the entry refers to: buffers, descriptors, addresses. It comes back with the
    /// completion; if the future is dropped early, the operation is asked to cancel and `keep` is
    /// kept until it has completed. See [`RawOp::on_abandon`] for results that must be released.
    ///
    /// # Errors
    ///
    /// `ErrorKind::Unsupported` if the driver runs on another back-end; an error if it is not the
    /// OS thread's current driver. `keep` is dropped then.
    ///
    /// # Safety
    ///
    /// Everything the entry refers to must stay valid until `keep` is dropped, also when `keep` is
    /// moved. The entry must complete exactly once and must not be a linked one whose partner is not
    /// submitted.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::io::{Backend, Driver, raw::opcode};
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let driver = Driver::current().unwrap();
    /// if driver.backend() == Backend::IoUring {
    ///     // SAFETY: a no-op refers to nothing.
    ///     let nop = unsafe { driver.submit_raw(opcode::Nop::new().build(), ())? };
    ///     let (completion, ()) = nop.await;
    ///     assert_eq!(completion.result, 0);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?.unwrap()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub unsafe fn submit_raw<T: 'static>(
        &self,
        entry: squeue::Entry,
        keep: T,
    ) -> std::io::Result<RawOp<T>> {
        let key = self.core().submit_entry(entry, false)?;
        Ok(RawOp {
            core: self.core().clone(),
            running: Some((key, Kept::new(keep))),
        })
    }

    /// As [`submit_raw`](Self::submit_raw), for opcodes with many completions (multi-shot accept,
    /// receive, poll, timeout): a stream that ends after the last one.
    ///
    /// # Errors
    ///
    /// As [`submit_raw`](Self::submit_raw).
    ///
    /// # Safety
    ///
    /// As [`submit_raw`](Self::submit_raw), but for the number of completions.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::os::fd::AsRawFd;
    /// use corespun::io::{Backend, Driver, raw::{opcode, types}};
    /// use futures::StreamExt;
    /// use nix::sys::eventfd::EventFd;
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let driver = Driver::current().unwrap();
    /// let doorbell = std::rc::Rc::new(EventFd::new()?);
    /// if driver.backend() == Backend::IoUring {
    ///     let fd = types::Fd(doorbell.as_raw_fd());
    ///     let poll = opcode::PollAdd::new(fd, libc::POLLIN as u32).multi(true).build();
    ///     // SAFETY: the stream keeps the descriptor open.
    ///     let mut rings = unsafe { driver.submit_raw_multi(poll, doorbell.clone())? };
    ///     for _ in 0..2 {
    ///         doorbell.write(1)?;
    ///         let ready = rings.next().await.unwrap().into_result()?;
    ///         assert_ne!(ready & libc::POLLIN as u32, 0);
    ///         doorbell.read()?;
    ///     }
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?.unwrap()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub unsafe fn submit_raw_multi<T: 'static>(
        &self,
        entry: squeue::Entry,
        keep: T,
    ) -> std::io::Result<RawStream<T>> {
        let key = self.core().submit_entry(entry, true)?;
        Ok(RawStream {
            core: self.core().clone(),
            key,
            kept: Some(Kept::new(keep)),
        })
    }
}

struct Kept<T> {
    keep: T,
    on_abandon: Option<fn(&mut T, Completion)>,
}

impl<T> Kept<T> {
    fn new(keep: T) -> Self {
        Kept {
            keep,
            on_abandon: None,
        }
    }
}

impl<T: 'static> Abandon for Kept<T> {
    fn abandon(&mut self, completion: Completion) {
        if let Some(release) = self.on_abandon {
            release(&mut self.keep, completion);
        }
    }
}

/// A raw operation in flight; see [`Driver::submit_raw`].
///
/// # Cancel safety
///
/// Dropping it asks the kernel to cancel; what it keeps is dropped after the completion.
///
/// # Examples
///
/// ```
/// use corespun::io::{Backend, Driver, raw::opcode};
///
/// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
/// let driver = Driver::current().unwrap();
/// if driver.backend() == Backend::IoUring {
///     // SAFETY: a no-op refers to nothing.
///     let nop = unsafe { driver.submit_raw(opcode::Nop::new().build(), vec![1, 2])? };
///     // What it kept comes back.
///     let (completion, kept) = nop.await;
///     assert_eq!((completion.result, kept), (0, vec![1, 2]));
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?.unwrap()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "dropping it cancels the operation"]
pub struct RawOp<T: 'static> {
    core: Rc<Core>,
    /// None once the completion was given: there is no key left to ask with.
    running: Option<(Key, Kept<T>)>,
}

impl<T: 'static> RawOp<T> {
    /// Sets what to do with the completion if this future is dropped before it saw it, for opcodes
    /// that create something: close an opened descriptor, say. Called on the driver's OS thread,
    /// also for a completion that is an error. A panic of it is logged.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{cell::Cell, rc::Rc, time::Duration};
    /// use corespun::{io::{Backend, Driver, raw::opcode}, time};
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let driver = Driver::current().unwrap();
    /// if driver.backend() == Backend::IoUring {
    ///     let released = Rc::new(Cell::new(false));
    ///     // SAFETY: a no-op refers to nothing.
    ///     let nop = unsafe { driver.submit_raw(opcode::Nop::new().build(), released.clone())? };
    ///     // An accept would close the descriptor here.
    ///     drop(nop.on_abandon(|released, _completion| released.set(true)));
    ///     while !released.get() {
    ///         time::sleep(Duration::from_micros(20)).await;
    ///     }
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?.unwrap()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn on_abandon(mut self, release: fn(&mut T, Completion)) -> Self {
        if let Some((_, kept)) = &mut self.running {
            kept.on_abandon = Some(release);
        }
        self
    }
}

// What is kept is never pinned.
impl<T: 'static> Unpin for RawOp<T> {}

impl<T: 'static> Future for RawOp<T> {
    type Output = (Completion, T);

    /// # Panics
    ///
    /// If it has given its completion already.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some((key, _)) = self.running else {
            panic!("raw operation polled after it completed");
        };
        let budget = ready!(poll_budget(cx));
        let completion = ready!(budget.on(self.core.poll_slot(key, cx)));
        let (_, kept) = self.running.take().expect("it was there");
        Poll::Ready((completion, kept.keep))
    }
}

impl<T: 'static> Drop for RawOp<T> {
    fn drop(&mut self) {
        if let Some((key, kept)) = self.running.take() {
            self.core.abandon_slot(key, Box::new(kept));
        }
    }
}

impl<T: 'static> std::fmt::Debug for RawOp<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawOp")
            .field("key", &self.running.as_ref().map(|(key, _)| key))
            .finish_non_exhaustive()
    }
}

/// A raw operation with many completions; see [`Driver::submit_raw_multi`].
///
/// # Cancel safety
///
/// Dropping it asks the kernel to cancel; completions nobody has taken go to
/// [`on_abandon`](Self::on_abandon).
///
/// # Examples
///
/// Dropping it ends the operation, and then what it kept goes:
///
/// ```
/// use std::{os::fd::AsRawFd, rc::Rc, time::Duration};
/// use corespun::{io::{Backend, Driver, raw::{opcode, types}}, time};
/// use nix::sys::eventfd::EventFd;
///
/// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
/// let driver = Driver::current().unwrap();
/// let doorbell = Rc::new(EventFd::new()?);
/// if driver.backend() == Backend::IoUring {
///     let fd = types::Fd(doorbell.as_raw_fd());
///     let poll = opcode::PollAdd::new(fd, libc::POLLIN as u32).multi(true).build();
///     // SAFETY: the stream keeps the descriptor open.
///     drop(unsafe { driver.submit_raw_multi(poll, doorbell.clone())? });
///     while Rc::strong_count(&doorbell) > 1 {
///         time::sleep(Duration::from_micros(20)).await;
///     }
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?.unwrap()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "dropping it cancels the operation"]
pub struct RawStream<T: 'static> {
    core: Rc<Core>,
    key: Key,
    kept: Option<Kept<T>>,
}

impl<T: 'static> RawStream<T> {
    /// Sets what to do with each completion that this stream did not give out when it was dropped:
    /// those that were waiting, and those that come until the kernel has cancelled. For opcodes that
    /// create something each time. Called on the driver's OS thread, also for completions that are
    /// errors. A panic of it is logged, and the others are released.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::net::TcpListener;
    /// use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    /// use corespun::io::{Backend, Driver, raw::{opcode, types}};
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let driver = Driver::current().unwrap();
    /// let listener = TcpListener::bind("127.0.0.1:0")?;
    /// if driver.backend() == Backend::IoUring {
    ///     let accept = opcode::AcceptMulti::new(types::Fd(listener.as_raw_fd())).build();
    ///     // SAFETY: the stream keeps the listener open.
    ///     let connections = unsafe { driver.submit_raw_multi(accept, listener)? };
    ///     // No connection that nobody took is left open.
    ///     drop(connections.on_abandon(|_listener, completion| {
    ///         if completion.result >= 0 {
    ///             // SAFETY: the kernel gave this descriptor, and nobody else knows it.
    ///             drop(unsafe { OwnedFd::from_raw_fd(completion.result) });
    ///         }
    ///     }));
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?.unwrap()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn on_abandon(mut self, release: fn(&mut T, Completion)) -> Self {
        if let Some(kept) = &mut self.kept {
            kept.on_abandon = Some(release);
        }
        self
    }
}

impl<T: 'static> Unpin for RawStream<T> {}

impl<T: 'static> Stream for RawStream<T> {
    type Item = Completion;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Completion>> {
        let budget = ready!(poll_budget(cx));
        budget.on(self.core.poll_multi(self.key, cx))
    }
}

impl<T: 'static> Drop for RawStream<T> {
    fn drop(&mut self) {
        if let Some(kept) = self.kept.take() {
            self.core.abandon_slot(self.key, Box::new(kept));
        }
    }
}

impl<T: 'static> std::fmt::Debug for RawStream<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawStream")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}
