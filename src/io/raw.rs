//! Ring operations that have no wrapper here: any opcode, with what it needs kept alive.
//!
//! Behind the feature `raw-io-uring`, since the entries are those of the crate `io-uring`, which is
//! re-exported here: its version is below 1.0, and this module changes when it does.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use futures::Stream;
use io_uring::squeue::Flags;
pub use io_uring::{cqueue, opcode, squeue, types};

use super::driver::Driver;
use super::op::{Abandon, Completion, Ending, Slot};
use super::state::{Core, Engine, State, shut_down};
use super::table::Key;
use super::uring::{Uring, flags_of, is_linked};
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
    /// `ErrorKind::Unsupported` if the driver runs on another back-end; `InvalidInput` for an entry
    /// that is linked to the next ([`submit_raw_chain`](Self::submit_raw_chain) is for those) or that
    /// asks for no completion; an error if it is not the OS thread's current driver. `keep` is dropped
    /// then.
    ///
    /// # Safety
    ///
    /// Everything the entry refers to must stay valid until `keep` is dropped, also when `keep` is
    /// moved. The entry must complete exactly once.
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
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub unsafe fn submit_raw<T: 'static>(
        &self,
        entry: squeue::Entry,
        keep: T,
    ) -> io::Result<RawOp<T>> {
        check_lone(&entry)?;
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
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub unsafe fn submit_raw_multi<T: 'static>(
        &self,
        entry: squeue::Entry,
        keep: T,
    ) -> io::Result<RawStream<T>> {
        check_lone(&entry)?;
        let key = self.core().submit_entry(entry, true)?;
        Ok(RawStream {
            core: self.core().clone(),
            key,
            kept: Some(Kept::new(keep)),
        })
    }
}

impl Driver {
    /// As [`submit_raw`](Self::submit_raw), for a chain of entries that the kernel performs one after
    /// the other: it reaches the kernel as a whole, however full the queue is. Each entry but the last
    /// gets the flag `IO_LINK`, unless it has `IO_HARDLINK`.
    ///
    /// If one fails, those after it complete with `ECANCELED`, except behind a hard link. To drop one
    /// of the futures is to cancel it, with the same consequence.
    ///
    /// # Errors
    ///
    /// As [`submit_raw`](Self::submit_raw); `InvalidInput` also for a chain that is longer than the
    /// submission queue ([`DriverConfig::entries`](super::DriverConfig::entries)), and for a last
    /// entry that is linked. Nothing is submitted then.
    ///
    /// # Safety
    ///
    /// As [`submit_raw`](Self::submit_raw), for each entry and what is kept for it.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::io::{Backend, Driver, raw::opcode};
    /// use futures::future::join_all;
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let driver = Driver::current().unwrap();
    /// if driver.backend() == Backend::IoUring {
    ///     // A write and an fsync after it, say.
    ///     let chain = ["first", "second"].map(|what| (opcode::Nop::new().build(), what));
    ///     // SAFETY: a no-op refers to nothing.
    ///     let chain = unsafe { driver.submit_raw_chain(chain.into())? };
    ///     let done = join_all(chain).await;
    ///     assert!(done.iter().all(|(completion, _)| completion.result == 0));
    ///     assert_eq!(done[1].1, "second");
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub unsafe fn submit_raw_chain<T: 'static>(
        &self,
        chain: Vec<(squeue::Entry, T)>,
    ) -> io::Result<Vec<RawOp<T>>> {
        let (mut entries, kept): (Vec<_>, Vec<_>) = chain.into_iter().unzip();
        if let Some((last, linked)) = entries.split_last_mut() {
            check_lone(last)?;
            for entry in linked {
                let flags = flags_of(entry);
                if flags.contains(Flags::SKIP_SUCCESS) {
                    return Err(invalid(UNANSWERED));
                }
                if !flags.contains(Flags::IO_HARDLINK) {
                    *entry = entry.clone().flags(Flags::IO_LINK);
                }
            }
        }
        let keys = self.core().submit_chain(entries)?;
        let made = keys.into_iter().zip(kept).map(|(key, keep)| RawOp {
            core: self.core().clone(),
            running: Some((key, Kept::new(keep))),
        });
        Ok(made.collect())
    }
}

impl Engine {
    /// For raw ring entries.
    fn ring(&mut self) -> io::Result<&mut Uring> {
        match self {
            Engine::Uring(uring) => Ok(uring),
            Engine::Epoll(_) => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "raw ring entries need the io_uring back-end; this driver runs on epoll",
            )),
            Engine::Closed => Err(shut_down()),
        }
    }
}

impl Uring {
    /// # Errors
    ///
    /// If a chain of so many entries never fits into the submission ring.
    fn check_length(&mut self, chain: usize) -> io::Result<()> {
        let capacity = self.ring.submission().capacity();
        if chain <= capacity {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "a chain of {chain} entries does not fit into a submission queue of {capacity}"
            ),
        ))
    }

    /// Queues entries of which each but the last is linked to the next, so that they are submitted by
    /// one system call: the kernel ends a chain with the call.
    fn push_chain(&mut self, chain: Vec<squeue::Entry>) {
        self.backlog.extend(chain);
        self.flush_backlog();
    }
}

impl Core {
    /// Queues a ring entry as it stands, in a slot of the kind given.
    fn submit_entry(&self, entry: squeue::Entry, many: bool) -> io::Result<Key> {
        self.check_current()?;
        let mut state = self.state.borrow_mut();
        let State { slots, engine, .. } = &mut *state;
        let uring = engine.ring()?;
        let key = slots.insert(match many {
            false => Slot::Waiting(None, Ending::Cancelled),
            true => Slot::Multi {
                queue: VecDeque::new(),
                ended: false,
                waker: None,
            },
        });
        uring.push(entry.user_data(key.to_bits()));
        self.in_flight.set(self.in_flight.get() + 1);
        Ok(key)
    }

    /// Queues ring entries that go to the kernel together or not at all.
    fn submit_chain(&self, mut chain: Vec<squeue::Entry>) -> io::Result<Vec<Key>> {
        self.check_current()?;
        let mut state = self.state.borrow_mut();
        let State { slots, engine, .. } = &mut *state;
        let uring = engine.ring()?;
        uring.check_length(chain.len())?;
        let mut keys = Vec::with_capacity(chain.len());
        for entry in &mut chain {
            let key = slots.insert(Slot::Waiting(None, Ending::Cancelled));
            entry.set_user_data(key.to_bits());
            keys.push(key);
        }
        uring.push_chain(chain);
        self.in_flight.set(self.in_flight.get() + keys.len());
        Ok(keys)
    }

    /// The next completion of a `Slot::Multi`; None when it has ended.
    fn poll_multi(&self, key: Key, cx: &mut Context<'_>) -> Poll<Option<Completion>> {
        let mut state = self.state.borrow_mut();
        let Some(Slot::Multi {
            queue,
            ended,
            waker,
        }) = state.slots.get_mut(key)
        else {
            unreachable!("only the stream frees the slot");
        };
        if let Some(completion) = queue.pop_front() {
            return Poll::Ready(Some(completion));
        }
        if *ended || self.is_forked() {
            return Poll::Ready(None);
        }
        let replaced = waker.replace(cx.waker().clone());
        drop(state);
        drop(replaced);
        Poll::Pending
    }
}

const UNANSWERED: &str = "a raw entry without a completion would never end: clear SKIP_SUCCESS";

/// Refuses what cannot be submitted alone.
fn check_lone(entry: &squeue::Entry) -> io::Result<()> {
    let flags = flags_of(entry);
    if is_linked(entry) {
        return Err(invalid(
            "a raw entry that is linked has to be submitted with the next one: use submit_raw_chain",
        ));
    }
    if flags.contains(Flags::SKIP_SUCCESS) {
        return Err(invalid(UNANSWERED));
    }
    Ok(())
}

#[cold]
fn invalid(message: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
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
/// # })??;
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
    /// # })??;
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
/// Dropping it asks the kernel to cancel; completions that were not taken go to
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
/// # })??;
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
    ///     // No connection that was not taken is left open.
    ///     drop(connections.on_abandon(|_listener, completion| {
    ///         if completion.result >= 0 {
    ///             // SAFETY: the kernel gave this descriptor, and it is known only here.
    ///             drop(unsafe { OwnedFd::from_raw_fd(completion.result) });
    ///         }
    ///     }));
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
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
