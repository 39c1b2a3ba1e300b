//! The part of a SpdkThread that any OS thread may touch: its mailbox, its
//! state, its statistics, and the sleeper that is to be woken when something arrives.

use std::any::Any;
use std::mem::offset_of;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::Waker;

use super::library::LibraryInner;
use super::local::{self, Local};
use super::panic::{PanicSource, contain};
use super::placement::Placement;
use super::poll::idle_ticks::IdleTicks;
use super::poll::message::Message;
use super::poll::time_share::{TimeShare, ToldMisses};
use super::stall::StallRecord;
use super::{SendError, ThreadState};
use crate::cpu::CpuSet;
use crate::notify::{Host, Recipient, Sleeper};
use crate::sync::{CriticalSlot, Mailbox, PushError};

pub(crate) const RUNNING: u8 = 0;
pub(crate) const EXITING: u8 = 1;
pub(crate) const EXITED: u8 = 2;

/// What begins here does not share a pair of cache lines, which the processor
/// fetches together, with what is before.
#[repr(align(128))]
struct LinesBegin;

/// The fields stand in the order of their writers, so that senders and the owner
/// do not take each other's lines away.
#[repr(C)]
pub(crate) struct Shared {
    pub(crate) mailbox: Mailbox<Message>,

    // What all threads read and hardly any writes.
    _read: LinesBegin,
    /// The sleeper of the OS thread that polls this thread. The library keeps
    /// every sleeper that was ever put here alive, and this keeps the library alive.
    pub(super) host: Host,
    pub(crate) library: Arc<LibraryInner>,
    pub(crate) id: u64,
    pub(super) limit: usize,
    pub(super) name: Box<str>,
    pub(super) context: Option<Box<dyn Any + Send + Sync>>,
    /// What the thread runs now, where stalls are watched for.
    pub(super) stall_record: Option<Box<StallRecord>>,
    pub(super) exit_wakers: Mutex<Vec<Waker>>,
    pub(crate) critical: CriticalSlot,
    pub(super) state: AtomicU8,
    pub(super) bound: AtomicBool,

    // What the owner writes in each poll.
    _written: LinesBegin,
    pub(super) busy_ticks: AtomicU64,
    pub(super) idle_ticks: IdleTicks,
    pub(super) last_tick: AtomicU64,
    /// Which the owner reads in each poll.
    pub(super) time_share: TimeShare,
    pub(super) placement: Mutex<Placement>,
    /// Polls that came later than the thread's limit.
    pub(super) misses: OnceLock<Box<ToldMisses>>,

    // What senders write, in the next pair of lines already.
    pub(crate) remote_task_ids: AtomicU64,

    /// The sleeper of the thread's own descriptor. Here so that every notifier of
    /// it keeps it.
    own_host: OnceLock<Arc<Sleeper>>,
}

const _: () = assert!(
    offset_of!(Shared, _written) - offset_of!(Shared, host) == 128
        && offset_of!(Shared, remote_task_ids) - offset_of!(Shared, busy_ticks) >= 128
);

impl Recipient for Shared {
    fn id(&self) -> u64 {
        self.id
    }

    unsafe fn messages_sent(&self) -> usize {
        // SAFETY: the OS thread that polls the thread is its mailbox's only
        // consumer.
        unsafe { self.mailbox.sent() }
    }
}

/// The last that holds it may be a task's waker, and async-task lets no
/// destructor unwind.
impl Drop for Shared {
    fn drop(&mut self) {
        let context = self.context.take();
        if let Err(payload) = contain(|| drop(context)) {
            let (library, name) = (&self.library, self.name());
            library.report_panic(name, PanicSource::Drop, None, payload);
        }
    }
}

impl Shared {
    #[expect(
        clippy::too_many_arguments,
        reason = "each is a setting of the builder"
    )]
    pub(super) fn new(
        library: Arc<LibraryInner>,
        id: u64,
        name: Box<str>,
        cpumask: CpuSet,
        ring: usize,
        limit: usize,
        time_share: TimeShare,
        context: Option<Box<dyn Any + Send + Sync>>,
    ) -> Self {
        Shared {
            mailbox: Mailbox::new(ring),
            _read: LinesBegin,
            host: Host::new(),
            stall_record: library.stall_record().map(Box::new),
            library,
            id,
            limit,
            name,
            context,
            exit_wakers: Mutex::new(Vec::new()),
            critical: CriticalSlot::new(),
            state: AtomicU8::new(RUNNING),
            bound: AtomicBool::new(false),
            _written: LinesBegin,
            busy_ticks: AtomicU64::new(0),
            idle_ticks: IdleTicks::default(),
            last_tick: AtomicU64::new(0),
            time_share,
            placement: Mutex::new(Placement::new(cpumask)),
            misses: OnceLock::new(),
            remote_task_ids: AtomicU64::new(0),
            own_host: OnceLock::new(),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn state(&self) -> ThreadState {
        match self.state.load(Ordering::Acquire) {
            RUNNING => ThreadState::Running,
            EXITING => ThreadState::Exiting,
            _ => ThreadState::Exited,
        }
    }

    /// The owner's part, if this thread is being polled by the caller.
    #[inline]
    pub(crate) fn current_local(&self) -> Option<&Local> {
        let current = local::current_ptr();
        if current.is_null() {
            return None;
        }
        // SAFETY: `current` is only set for the duration of a poll or an
        // `enter` on this OS thread, which borrows the runner that keeps the
        // `Local` alive; the reference is used within callbacks of that poll.
        // It is `!Sync`, so it stays on this OS thread.
        let current = unsafe { &*current };
        // The current thread's own `Shared` is alive, so its address is that
        // of no thread that is gone (which that of a `Local` could be).
        std::ptr::eq(&*current.shared, self).then_some(current)
    }

    /// Whether the caller is polling this thread.
    #[inline]
    pub(crate) fn is_current(&self) -> bool {
        self.current_local().is_some()
    }

    /// Sends an explicit message: to the owner itself through its own queue,
    /// else through the mailbox; in one order, and under one limit.
    #[inline]
    pub(crate) fn send<F: FnOnce() + Send + 'static>(&self, f: F) -> Result<(), SendError<F>> {
        if let Some(local) = self.current_local() {
            if local.refuses_work() {
                return Err(self.exited(f));
            }
            return local.send_explicit(f).map_err(|f| self.full(f));
        }
        match self.mailbox.push_limited(self.limit, f, Message::new) {
            Ok(()) => {
                self.notify_pushed();
                Ok(())
            }
            Err(PushError::Full(f)) => Err(self.full(f)),
            Err(PushError::Closed(f)) => Err(self.exited(f)),
        }
    }

    /// How many explicit messages may be outstanding.
    pub(crate) fn message_limit(&self) -> usize {
        self.limit
    }

    /// Whether an explicit message would be refused now because of the limit.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.mailbox.is_full(self.limit)
    }

    fn full<F>(&self, message: F) -> SendError<F> {
        SendError::full(self.name(), self.limit, message)
    }

    fn exited<F>(&self, message: F) -> SendError<F> {
        SendError::exited(self.name(), message)
    }

    /// Puts a message from elsewhere where the owner will find it, without a
    /// limit. Refused only after the mailbox was closed at exit.
    #[inline]
    pub(crate) fn enqueue(&self, message: Message) -> Result<(), Message> {
        self.mailbox.push(message)?;
        self.notify_pushed();
        Ok(())
    }

    /// Sends a message of the library itself, which no limit holds up. The
    /// content comes back from a thread that is past taking messages.
    #[inline]
    pub(crate) fn deliver<C>(&self, content: C, pack: impl FnOnce(C) -> Message) -> Result<(), C> {
        if let Some(local) = self.current_local() {
            if local.refuses_work() {
                return Err(content);
            }
            local.send_to_itself(pack(content));
            return Ok(());
        }
        self.mailbox.push_with(content, pack)?;
        self.notify_pushed();
        Ok(())
    }

    /// Wakes the host if it sleeps; call it after publishing something.
    #[inline]
    pub(crate) fn notify_host(&self) {
        self.host.notify(self);
    }

    /// [`Shared::notify_host`] for a sender that has just pushed into the mailbox.
    #[inline]
    pub(crate) fn notify_pushed(&self) {
        self.host.notify_pushed(self);
    }

    /// [`Shared::notify_host`] for a critical message, perhaps by a signal handler.
    pub(super) fn notify_host_critical(&self) {
        self.host.notify_critical();
    }

    /// Names the sleeper that is to be woken from now on. The caller looks at
    /// the mailbox after this before it sleeps.
    pub(super) fn set_host(&self, host: Option<&Arc<Sleeper>>) {
        if let Some(host) = host {
            self.library.keep_sleeper(host);
        }
        // SAFETY: the library keeps every sleeper that was ever put here, and
        // this keeps the library alive.
        unsafe { self.host.set(host.map_or(std::ptr::null(), Arc::as_ptr)) }
    }

    /// Names the sleeper of the thread's own descriptor, of which there is one.
    pub(super) fn set_own_host(&self, host: &Arc<Sleeper>) {
        let own = self.own_host.get_or_init(|| host.clone());
        debug_assert!(Arc::ptr_eq(own, host));
        // SAFETY: `own_host` never changes, and lives as long as this.
        unsafe { self.host.set(Arc::as_ptr(own)) }
    }
}
