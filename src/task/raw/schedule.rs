//! How a task comes into being, and into the queue of its thread whenever it is
//! woken.

use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::Arc;

use super::future::TaskFuture;
use super::meta::{Birth, TaskMeta};
use super::waker_table::with_waker;
use crate::sync::async_task::{self, Runnable, ScheduleInfo, WithInfo};
use crate::task::join::JoinHandle;
use crate::thread::local::Local;
use crate::thread::message::{Message, MessageVTable, Payload};
use crate::thread::shared::Shared;

/// How a task comes into being.
pub(in crate::task) enum Origin<'a> {
    /// Spawned by its own thread.
    Local(&'a Local, FirstPoll),
    /// Spawned from elsewhere, on this thread.
    Remote(&'a Arc<Shared>),
}

/// When a task that its own thread spawns is polled first.
#[derive(Clone, Copy)]
pub(in crate::task) enum FirstPoll {
    /// In its turn, as those that wait already.
    Queued,
    /// Before the spawn returns.
    AtOnce,
}

/// How deep eager tasks may be polled inside each other: each takes stack.
const EAGER_DEPTH: u8 = 16;

/// Makes a task and schedules its first poll, or does it.
///
/// # Safety
///
/// With `Origin::Local` the caller is the owner of `birth.thread`. With
/// `Origin::Remote`, what `future` holds before its first poll is `Send`, and
/// so is its output. In both cases future and output are `'static`.
#[inline(always)]
pub(in crate::task) unsafe fn spawn<F: Future + 'static>(
    origin: Origin<'_>,
    birth: Birth,
    future: F,
) -> JoinHandle<F::Output> {
    let meta = TaskMeta::new(&TaskFuture::<F>::MEMBER, birth);
    let wrap = |meta: &TaskMeta| TaskFuture::new(meta, future);
    // SAFETY: what async-task asks for: the future is `'static`; it is polled
    // and dropped by one thread, or holds only `Send` content where it is not
    // (R1, R3, R4); the schedule function is `Send + Sync + 'static`; the
    // wakers reach it from anywhere through R1.
    let (runnable, task) = unsafe {
        async_task::Builder::new()
            .metadata(meta)
            .spawn_unchecked(wrap, WithInfo(schedule_with_info))
    };
    let runnable = with_waker::<F>(runnable);
    let meta = runnable.metadata();
    let meta_pointer = NonNull::from(meta);
    match origin {
        Origin::Local(local, _) if local.refuses_work() => {
            // Too late: the task never runs; joining it says so.
            drop(runnable);
        }
        Origin::Local(local, FirstPoll::AtOnce) if local.eager_depth.get() < EAGER_DEPTH => {
            let depth = local.eager_depth.get();
            local.eager_depth.set(depth + 1);
            runnable.run();
            local.eager_depth.set(depth);
        }
        Origin::Local(local, _) => {
            // SAFETY: by this function's contract the caller is the owner.
            unsafe { meta.queue(local) };
            meta.state.set_scheduled(true);
            local.queue_task(message(runnable), false);
        }
        Origin::Remote(thread) => {
            meta.state.set_scheduled(true);
            send(thread, runnable, None);
        }
    }
    // SAFETY: the pointer is to the metadata of this very task.
    unsafe { JoinHandle::new(task.fallible(), meta_pointer) }
}

fn schedule_with_info(runnable: Runnable<TaskMeta>, info: ScheduleInfo) {
    schedule(runnable, info.woken_while_running);
}

/// Puts a task into its thread's queue. Any OS thread; never runs the task. One
/// that woke itself, or is new, lets a round of pollers and timers pass first.
fn schedule(runnable: Runnable<TaskMeta>, gives_way: bool) {
    // SAFETY: the metadata is in the task's allocation, which the `Runnable` keeps alive for
    // as long as `meta` is used.
    let meta = unsafe { NonNull::from(runnable.metadata()).as_ref() };
    meta.state.set_scheduled(true);
    let came_from = meta.hop().and_then(|hop| hop.came_from.take());
    // SAFETY: this has the `Runnable`.
    let thread = unsafe { meta.thread() };
    if let Some(local) = thread.current_local() {
        let gives_way = gives_way && !local.at_once.takes_turn();
        return local.queue_task(message(runnable), gives_way);
    }
    // The task may run and be freed before the sleeper is notified.
    let thread = Arc::clone(thread);
    send(&thread, runnable, came_from);
}

/// Puts a task into the mailbox of another thread. The caller keeps `thread`, whatever
/// becomes of the task.
#[inline]
fn send(thread: &Shared, runnable: Runnable<TaskMeta>, came_from: Option<Arc<Shared>>) {
    match thread.mailbox.push(message(runnable)) {
        Ok(()) => thread.notify_pushed(),
        Err(refused) => bounce(refused, came_from),
    }
}

/// What becomes of a task whose thread takes no more.
#[cold]
fn bounce(refused: Message, came_from: Option<Arc<Shared>>) {
    let Some(came_from) = came_from else {
        // By R3 this drops a shell, or a future that is `Send` still.
        drop(refused);
        return;
    };
    // A hop whose target has exited: the task goes on where it was. That is the
    // current thread, at the end of the poll that asked for the hop.
    let Some(local) = came_from.current_local() else {
        return drop(refused);
    };
    let runnable = take_runnable(refused);
    let meta = runnable.metadata();
    // SAFETY: this has the `Runnable`.
    let refused_by = unsafe { meta.set_thread(came_from.clone()) };
    if let Some(hop) = meta.hop() {
        hop.refused.set(Some(refused_by));
    }
    local.queue_task(message(runnable), true);
}

/// The `Runnable` that [`message`] packed.
fn take_runnable(message: Message) -> Runnable<TaskMeta> {
    let mut payload = message.into_payload();
    // SAFETY: the callers pass what `message` made, and it is consumed here.
    unsafe { take(&mut payload) }
}

unsafe fn take(payload: &mut Payload) -> Runnable<TaskMeta> {
    // SAFETY: by this function's callers the first word is a `Runnable`, taken
    // once.
    unsafe {
        let raw = payload.as_ptr().cast::<NonNull<()>>().read();
        Runnable::from_raw(raw)
    }
}

#[inline(always)]
fn message(runnable: Runnable<TaskMeta>) -> Message {
    const VTABLE: MessageVTable = MessageVTable {
        run: |payload| {
            // SAFETY: `message` put a `Runnable` here, and it is taken once.
            let runnable = unsafe { take(payload) };
            runnable.run();
        },
        drop: |payload| {
            // SAFETY: as above.
            drop(unsafe { take(payload) });
        },
        task: true,
        name: || "task",
    };

    let raw = runnable.into_raw().as_ptr();
    let payload = [MaybeUninit::new(raw), MaybeUninit::uninit()];
    // SAFETY: a `Runnable` may be sent to its thread, and dropped where R3 lets
    // it be dropped.
    unsafe { Message::from_raw(payload, &VTABLE) }
}
