//! A task under the surface: the future that wraps the user's inside the
//! async-task allocation, its metadata, and the schedule function.
//!
//! async-task's own local spawn ties a task to an OS thread; here a task is
//! tied to a SpdkThread, by these rules, on which every `unsafe` of this room
//! rests:
//!
//! - **R1** A `Runnable` is run by the owner of its SpdkThread only: `schedule`
//!   puts it into that thread's queues, and no other thread takes it out.
//! - **R2** A task whose future may be `!Send` binds its thread to its OS thread
//!   from before it can be woken until its future is gone, and it is listed in
//!   the thread's live list for as long, unless the exit met it unpolled: then
//!   its one `Runnable` waits in the owner's queue.
//! - **R3** No thread closes its mailbox while its live list holds anything,
//!   and nothing is listed any more by then. So an OS thread that gets a
//!   `Runnable` back from a closed mailbox holds a task whose future is gone,
//!   or one that was spawned from elsewhere and never polled, and those hold
//!   only what was `Send`. Dropping it is sound anywhere.
//!   A movable task between two threads is on no list; its future is `Send` for
//!   as long as it lives, so the same holds for it.
//! - **R4** The future is dropped in place, by the owner, as soon as it is
//!   finished, aborted or cancelled by the exit; what async-task drops later is
//!   an empty shell.
//! - **R5** From the end of its first poll on, while a task has its future, one counted
//!   waker of it is set aside, so that no other reference is the last (before, its
//!   `Runnable` is). async-task frees a detached
//!   task that returned from a poll without leaving a waker anywhere, and does
//!   not drop its future: the live list would point at nothing, and pinned
//!   memory would go without a destructor. A task that can no longer be woken therefore
//!   stays until its thread exits, which names it.
//! - **R6** The thread of a task changes only inside its own poll, and is read
//!   only inside it, by the holder of its `Runnable`, or by the owner of a thread
//!   that lists it. While a task runs, its wakes only mark it; async-task
//!   schedules it when the poll returns. So the thread is not read while it
//!   changes, and the one `Runnable` goes where it says. The thread of a task
//!   that is not movable never changes, so that every holder that keeps the task
//!   alive may read it.
//! - **R7** The joiner of a task is a task of ours, of which one counted waker is
//!   set aside, so that its metadata is alive; or a run on the stack, of a task that
//!   runs this one inside itself, and looks after it. It is touched by the owner of the
//!   joined task's thread only, while that is the current one, and movable tasks
//!   have none. A drop of the future elsewhere (R3) comes before any task could have
//!   joined it: the handle is given out after that.

mod at_once;
mod future;
mod joiner;
#[cfg(all(test, corespun_loom))]
mod loom_tests;
mod meta;
mod rare;
mod schedule;
mod state;
mod waker_table;

pub(super) use at_once::gives_way;
pub(super) use future::{with_running, with_running_on};
pub(super) use meta::{Birth, TaskKind, TaskMeta};
pub(super) use rare::Label;
pub(super) use schedule::{FirstPoll, Origin, spawn};

use super::join::Outcome;
use crate::sync::async_task::FallibleTask;

pub(super) type RawTask<T> = FallibleTask<Outcome<T>, TaskMeta>;
