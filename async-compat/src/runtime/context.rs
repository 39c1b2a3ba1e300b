//! What an OS thread is inside of: which runtime is current, whether it may block,
//! and which task it polls.
//!
//! Channels and locks are tokio's own, and look at tokio's own marks for two things:
//! whether they are inside of a runtime, where their `blocking_*` calls panic, and how
//! much of the cooperative budget the task that is polled has left. So each loop of
//! ours runs inside of a `block_on` of a tokio runtime that has been shut down before:
//! it sets those marks, and runs nothing. What code bound to real tokio asks of it
//! fails where it is asked.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::marker::PhantomData;
use std::num::NonZeroU64;
use std::rc::Rc;
#[cfg(feature = "rt-multi-thread")]
use std::sync::Arc;
use std::sync::{MutexGuard, OnceLock};
use std::task::{Context as TaskContext, Poll, Waker};

use tokio::task::coop::{RestoreOnPending, poll_proceed};

use super::handle::{Handle, TryCurrentError};
use super::native;
#[cfg(feature = "rt-multi-thread")]
use super::scheduler::Load;
use crate::task::Id;
use crate::task::local::{LocalContext, Tasks};

/// Whether the OS thread may be blocked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Entered {
    /// It is in no runtime, or in a part of one that may block.
    No,
    Yes {
        allow_block_in_place: bool,
    },
}

struct Context {
    current: RefCell<Option<Rc<Handle>>>,
    /// What was current before, for each guard of `enter`.
    outer: RefCell<Vec<Option<Rc<Handle>>>>,
    entered: Cell<Entered>,
    task: Cell<Option<Id>>,
    /// That task has accepted a connection.
    accepts: Cell<bool>,
    worker: Cell<Option<usize>>,
    /// What is counted of the spare worker that the OS thread is.
    #[cfg(feature = "rt-multi-thread")]
    spare: RefCell<Option<Arc<Load>>>,
    /// The current `LocalSet`.
    local_set: RefCell<Option<Rc<Tasks>>>,
    /// The `LocalRuntime`s of this OS thread, by number.
    local_runtimes: RefCell<Vec<(NonZeroU64, LocalContext)>>,
    /// What sets tokio's budget; see [`fresh_budget`].
    budget: Cell<Option<RestoreOnPending>>,
    /// The budget is as tokio has set it: whole.
    budget_is_whole: Cell<bool>,
}

thread_local! {
    static CONTEXT: Context = const {
        Context {
            current: RefCell::new(None),
            outer: RefCell::new(Vec::new()),
            entered: Cell::new(Entered::No),
            task: Cell::new(None),
            accepts: Cell::new(false),
            worker: Cell::new(None),
            #[cfg(feature = "rt-multi-thread")]
            spare: RefCell::new(None),
            local_set: RefCell::new(None),
            local_runtimes: RefCell::new(Vec::new()),
            budget: Cell::new(None),
            budget_is_whole: Cell::new(false),
        }
    };
}

fn with<R>(f: impl FnOnce(&Context) -> R) -> Option<R> {
    CONTEXT.try_with(f).ok()
}

/// The current runtime, without touching the count that all OS threads share.
pub(crate) fn current_rc() -> Result<Rc<Handle>, TryCurrentError> {
    CONTEXT
        .try_with(|context| context.current.borrow().clone())
        .map_err(|_| TryCurrentError::thread_local_destroyed())?
        .or_else(native::current)
        .ok_or_else(TryCurrentError::no_context)
}

/// Calls `f` with the current runtime.
pub(crate) fn with_current<R>(f: impl FnOnce(&Handle) -> R) -> Result<R, TryCurrentError> {
    Ok(f(&*current_rc()?))
}

/// Keeps a runtime current.
pub(super) struct SetCurrent {
    depth: usize,
    /// It belongs to the OS thread that made it: `Sync`, and not `Send`.
    _not_send: PhantomData<MutexGuard<'static, ()>>,
}

/// Makes a runtime current; `None` while the OS thread ends.
pub(super) fn set_current(handle: &Handle) -> Option<SetCurrent> {
    let handle = Rc::new(handle.clone());
    with(|context| {
        let previous = context.current.replace(Some(handle));
        let mut outer = context.outer.borrow_mut();
        outer.push(previous);
        SetCurrent {
            depth: outer.len(),
            _not_send: PhantomData,
        }
    })
}

impl Drop for SetCurrent {
    fn drop(&mut self) {
        let left = with(|context| {
            let mut outer = context.outer.borrow_mut();
            if outer.len() != self.depth {
                return Err(());
            }
            let previous = outer.pop().flatten();
            drop(outer);
            Ok(context.current.replace(previous))
        });
        if let Some(Err(())) = left
            && !std::thread::panicking()
        {
            panic!(
                "`EnterGuard` values dropped out of order. Guards returned by \
                 `tokio::runtime::Handle::enter()` must be dropped in the reverse \
                 order as they were acquired."
            );
        }
    }
}

/// tokio's marks: the handle of a runtime that was shut down at once.
fn tokio_marks() -> &'static tokio::runtime::Handle {
    static MARKS: OnceLock<tokio::runtime::Handle> = OnceLock::new();
    MARKS.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a tokio runtime without drivers asks nothing of the system");
        let handle = runtime.handle().clone();
        runtime.shutdown_background();
        handle
    })
}

/// Runs a loop of `handle`'s runtime: inside, it is current, nothing may block, and
/// tasks have budgets.
///
/// # Panics
///
/// When the OS thread is in such a loop already, and is not allowed to block there.
#[track_caller]
pub(super) fn enter_runtime<R>(
    handle: &Handle,
    allow_block_in_place: bool,
    f: impl FnOnce() -> R,
) -> R {
    let mut f = Some(f);
    if native::is_current(with(|context| context.current.borrow().is_some())) {
        panic!(
            "Cannot start a runtime from within a runtime. This OS thread polls a SpdkThread, and \
             would stop everything on its core: await the future in a task instead."
        );
    }
    let _current = set_current(handle);
    let token = |cx: &mut TaskContext<'_>| match poll_proceed(cx) {
        Poll::Ready(token) => Some(token),
        Poll::Pending => None,
    };
    // One more than is kept: dropped, it makes up for the unit that the other takes.
    let mut spare = tokio_marks().block_on(poll_fn(|cx| Poll::Ready(token(cx))));
    tokio_marks().block_on(poll_fn(|cx| {
        let _entered = replace_entered(Entered::Yes {
            allow_block_in_place,
        });
        let kept = token(cx);
        drop(spare.take());
        let _budget = with(|context| RestoreBudget {
            token: context.budget.replace(kept),
            whole: context.budget_is_whole.replace(true),
        });
        let _task = enter_task(None);
        let f = f.take().expect("it is ready at once");
        Poll::Ready(f())
    }))
}

struct RestoreBudget {
    token: Option<RestoreOnPending>,
    whole: bool,
}

impl Drop for RestoreBudget {
    fn drop(&mut self) {
        let ours = with(|context| {
            context.budget_is_whole.set(self.whole);
            context.budget.replace(self.token.take())
        })
        .flatten();
        if let Some(ours) = ours {
            // Not restored: tokio does that when its `block_on` ends.
            ours.made_progress();
        }
    }
}

struct RestoreEntered(Entered);

fn replace_entered(entered: Entered) -> RestoreEntered {
    RestoreEntered(with(|context| context.entered.replace(entered)).unwrap_or(Entered::No))
}

impl Drop for RestoreEntered {
    fn drop(&mut self) {
        with(|context| context.entered.set(self.0));
    }
}

/// Whether the OS thread is in the loop of a runtime and must not block.
pub(crate) fn must_not_block() -> bool {
    with(|context| context.entered.get() != Entered::No).unwrap_or(false)
}

/// Runs `f` where it may block.
#[cfg(feature = "rt-multi-thread")]
#[track_caller]
pub(crate) fn block_in_place<R>(f: impl FnOnce() -> R) -> R {
    let entered = with(|context| context.entered.get()).unwrap_or(Entered::No);
    match entered {
        Entered::No => return f(),
        Entered::Yes {
            allow_block_in_place: false,
        } => panic!("can call blocking only when running on the multi-threaded runtime"),
        Entered::Yes {
            allow_block_in_place: true,
        } => {}
    }
    let _budget = FreshBudget;
    let _blocked = Blocked::of(current_load());
    let _entered = replace_entered(Entered::No);
    tokio::task::block_in_place(f)
}

/// What is counted of the worker that the OS thread is.
#[cfg(feature = "rt-multi-thread")]
fn current_load() -> Option<Arc<Load>> {
    let spare = with(|context| context.spare.borrow().clone()).flatten();
    spare.or_else(|| {
        let index = worker_index()?;
        let load = with_current(|handle| {
            let workers = handle.inner.scheduler.workers();
            // The index may be one of another runtime.
            let worker = workers.get(index).filter(|worker| worker.0.is_current());
            worker.map(|worker| worker.1.clone())
        });
        load.ok().flatten()
    })
}

/// Keeps what is spawned from a worker that blocks.
#[cfg(feature = "rt-multi-thread")]
struct Blocked(Option<Arc<Load>>);

#[cfg(feature = "rt-multi-thread")]
impl Blocked {
    fn of(load: Option<Arc<Load>>) -> Self {
        load.iter().for_each(|load| load.blocks());
        Blocked(load)
    }
}

#[cfg(feature = "rt-multi-thread")]
impl Drop for Blocked {
    fn drop(&mut self) {
        self.0.iter().for_each(|load| load.goes_on());
    }
}

/// Keeps the OS thread named as a spare worker.
#[cfg(feature = "rt-multi-thread")]
pub(super) struct InSpare(());

/// Names the OS thread as a spare worker, which has no index.
#[cfg(feature = "rt-multi-thread")]
pub(super) fn enter_spare(load: Arc<Load>) -> InSpare {
    with(|context| context.spare.replace(Some(load)));
    InSpare(())
}

#[cfg(feature = "rt-multi-thread")]
impl Drop for InSpare {
    fn drop(&mut self) {
        with(|context| context.spare.take());
    }
}

/// Runs `f` where another runtime of real tokio's may be entered, and does not block.
#[cfg(feature = "compat")]
pub(crate) fn beside_marks<R>(f: impl FnOnce() -> R) -> R {
    let _budget = FreshBudget;
    tokio::task::block_in_place(f)
}

/// What goes on after it has blocked has a budget again: tokio takes it away.
#[cfg(any(feature = "rt-multi-thread", feature = "compat"))]
struct FreshBudget;

#[cfg(any(feature = "rt-multi-thread", feature = "compat"))]
impl Drop for FreshBudget {
    fn drop(&mut self) {
        with(|context| context.budget_is_whole.set(false));
        fresh_budget();
    }
}

/// Refuses `block_in_place` while the guard lives: in what must not stop.
pub(crate) fn disallow_block_in_place() -> impl Drop {
    let entered = with(|context| context.entered.get()).unwrap_or(Entered::No);
    replace_entered(match entered {
        Entered::No => Entered::No,
        Entered::Yes { .. } => Entered::Yes {
            allow_block_in_place: false,
        },
    })
}

/// Gives what is polled next tokio's budget of one poll: the whole one the first time in
/// a loop, and one unit less from then on.
///
/// tokio lets its own runtimes alone set the budget. But a token that
/// `poll_proceed` gave in a fresh budget restores that when it is dropped unused, and
/// the next one can be had at once: the OS thread keeps one of them.
#[inline]
pub(crate) fn fresh_budget() {
    with(Context::fresh_budget);
}

impl Context {
    #[inline]
    fn fresh_budget(&self) {
        if self.budget_is_whole.take() {
            return;
        }
        let Some(token) = self.budget.take() else {
            return;
        };
        drop(token);
        if let Poll::Ready(token) = poll_proceed(&mut TaskContext::from_waker(Waker::noop())) {
            self.budget.set(Some(token));
        }
    }
}

/// Keeps a task named as the one that is polled.
pub(crate) struct InTask(Option<Id>);

/// Names the task that is polled, gives the poll its budget, and says whether the task
/// accepts connections.
#[inline]
pub(crate) fn begin_poll(id: Id, accepts: bool) -> InTask {
    InTask(
        with(|context| {
            context.accepts.set(accepts);
            context.fresh_budget();
            context.task.replace(Some(id))
        })
        .flatten(),
    )
}

/// Names the task that is polled, or dropped.
#[inline]
pub(crate) fn enter_task(id: Option<Id>) -> InTask {
    InTask(with(|context| context.task.replace(id)).flatten())
}

impl Drop for InTask {
    #[inline]
    fn drop(&mut self) {
        with(|context| context.task.set(self.0));
    }
}

/// The task that is polled, or dropped.
pub(crate) fn current_task() -> Option<Id> {
    with(|context| context.task.get()).flatten()
}

/// The task that is polled has accepted a connection: what it spawns from now on is one of many
/// that it will spawn, and is to be spread.
#[cfg(feature = "net")]
pub(crate) fn note_accept() {
    with(|context| context.accepts.set(true));
}

/// Whether the task that is polled accepts connections.
pub(crate) fn accepts() -> bool {
    with(|context| context.accepts.get()).unwrap_or(false)
}

/// Which worker of its runtime the OS thread is.
pub(super) fn worker_index() -> Option<usize> {
    with(|context| context.worker.get()).flatten()
}

/// Keeps the OS thread named as a worker.
pub(super) struct InWorker(Option<usize>);

/// Names the OS thread as a worker of its runtime, or as none.
pub(super) fn enter_worker(index: Option<usize>) -> InWorker {
    InWorker(with(|context| context.worker.replace(index)).flatten())
}

impl Drop for InWorker {
    fn drop(&mut self) {
        with(|context| context.worker.set(self.0));
    }
}

/// Keeps a `LocalSet` current.
pub(crate) struct SetLocal(Option<Rc<Tasks>>);

/// Makes a `LocalSet` current.
pub(crate) fn set_local(tasks: Rc<Tasks>) -> SetLocal {
    SetLocal(with(|context| context.local_set.replace(Some(tasks))).flatten())
}

impl Drop for SetLocal {
    fn drop(&mut self) {
        let previous = self.0.take();
        drop(with(|context| context.local_set.replace(previous)));
    }
}

/// Says where `spawn_local` goes in a `LocalRuntime` of this OS thread.
pub(super) fn add_local_runtime(id: NonZeroU64, local: LocalContext) {
    with(|context| context.local_runtimes.borrow_mut().push((id, local)));
}

pub(super) fn remove_local_runtime(id: NonZeroU64) {
    let removed = with(|context| {
        let mut runtimes = context.local_runtimes.borrow_mut();
        let place = runtimes.iter().position(|one| one.0 == id);
        place.map(|place| runtimes.swap_remove(place))
    });
    drop(removed);
}

/// Where `spawn_local` goes.
#[track_caller]
pub(crate) fn current_local() -> Option<LocalContext> {
    let runtime = with_current(|handle| handle.is_local().then_some(handle.inner.id));
    if let Ok(Some(id)) = runtime {
        let found = with(|context| {
            let runtimes = context.local_runtimes.borrow();
            let found = runtimes.iter().find(|one| one.0 == id);
            found.map(|one| one.1.clone())
        });
        return Some(found.flatten().unwrap_or_else(|| {
            panic!(
                "Local tasks can only be spawned on a LocalRuntime from the thread the runtime \
                 was created on"
            )
        }));
    }
    let set = with(|context| context.local_set.borrow().clone()).flatten();
    let set = set.map(LocalContext::Set);
    set.or_else(|| current_rc().ok().and_then(|handle| native::local(&handle)))
}
