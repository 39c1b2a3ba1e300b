//! Tasks that are not `Send`, beside a future that is awaited or blocked on.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use corespun::task::LocalSpawner;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use pin_project::{pin_project, pinned_drop};
use tokio::task::coop::unconstrained;

use super::slot::Slot;
use super::tracked::{Tracked, poll_or_drop};
use super::{Id, JoinError, JoinHandle};
use crate::runtime::context::{self, SetLocal};
use crate::runtime::{Load, Runtime};

/// Where [`spawn_local`] goes.
#[derive(Clone)]
pub(crate) enum LocalContext {
    /// To a `LocalSet`.
    Set(Rc<Tasks>),
    /// To the thread of a `LocalRuntime`.
    Thread(LocalSpawner, Arc<Load>),
}

/// Spawns a future, `Send` or not, on the current [`LocalSet`] or
/// [`LocalRuntime`](crate::runtime::LocalRuntime).
///
/// # Panics
///
/// Where there is neither.
#[track_caller]
pub fn spawn_local<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    match context::current_local() {
        Some(LocalContext::Set(tasks)) => tasks.spawn(future),
        Some(LocalContext::Thread(spawner, load)) => spawn_on_thread(&spawner, &load, future),
        None => panic!(
            "`spawn_local` called from outside of a `task::LocalSet` or `runtime::LocalRuntime`"
        ),
    }
}

/// Spawns on the thread of a `LocalRuntime`.
#[track_caller]
pub(crate) fn spawn_on_thread<F>(
    spawner: &LocalSpawner,
    load: &Arc<Load>,
    future: F,
) -> JoinHandle<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    let id = Id::next();
    let task = spawner.spawn_local(Tracked::new(future, id, load, false));
    JoinHandle::of_task(task, id)
}

/// Tasks that are not `Send`, which run while the set is awaited, in
/// [`run_until`](Self::run_until) or by itself.
///
/// They run inside of the task that does so, on its thread. Dropped, the set drops its
/// tasks.
///
/// # Examples
///
/// ```
/// # use corespun_compat as tokio;
/// # let runtime = tokio::runtime::Runtime::new()?;
/// # runtime.block_on(async {
/// let local = tokio::task::LocalSet::new();
/// let answer = local.run_until(async {
///     let not_send = std::rc::Rc::new(42);
///     tokio::task::spawn_local(async move { *not_send }).await.unwrap()
/// });
/// assert_eq!(answer.await, 42);
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct LocalSet {
    tasks: Rc<Tasks>,
    id: crate::runtime::Id,
}

/// Keeps a set current; see [`LocalSet::enter`].
pub struct LocalEnterGuard {
    _local: SetLocal,
}

impl fmt::Debug for LocalEnterGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalEnterGuard").finish_non_exhaustive()
    }
}

type BoxedTask = Pin<Box<dyn Future<Output = ()>>>;

/// The tasks of a set.
pub(crate) struct Tasks {
    running: RefCell<FuturesUnordered<BoxedTask>>,
    /// Those that were spawned since, also by those that run.
    spawned: RefCell<VecDeque<BoxedTask>>,
    /// Who polls the set, to be told of those, and of tasks that are woken.
    pollers: Arc<Pollers>,
    waker: Waker,
    /// The number of the last `run_until`.
    last_poller: Cell<u64>,
    closed: Cell<bool>,
}

/// Who polls a set: it as a future, and each of its [`run_until`](LocalSet::run_until)s. When
/// one of them ends, the others must hear of what the tasks wait for.
#[derive(Default)]
struct Pollers {
    /// By number; without a waker from one wake to the next poll.
    wakers: Mutex<Vec<(u64, Option<Waker>)>>,
}

/// The number of the set itself among its pollers.
const WHOLE_SET: u64 = 0;

impl Pollers {
    fn lock(&self) -> MutexGuard<'_, Vec<(u64, Option<Waker>)>> {
        // No user code runs under the lock but a waker's clone; a poisoned one is whole.
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self, poller: u64, waker: &Waker) {
        let waker = Some(waker.clone());
        let mut wakers = self.lock();
        let gone = match wakers.iter_mut().find(|known| known.0 == poller) {
            Some(known) => std::mem::replace(&mut known.1, waker),
            None => {
                wakers.push((poller, waker));
                None
            }
        };
        drop(wakers);
        drop(gone);
    }

    fn forget(&self, poller: u64) {
        let mut wakers = self.lock();
        let place = wakers.iter().position(|known| known.0 == poller);
        let gone = place.map(|place| wakers.swap_remove(place));
        drop(wakers);
        drop(gone);
    }

    fn wake_all(&self) {
        // Not for ever, should a waker poll the set on the spot.
        let most = self.lock().len();
        for _ in 0..most {
            let next = self.lock().iter_mut().find_map(|known| known.1.take());
            match next {
                Some(waker) => waker.wake(),
                None => return,
            }
        }
    }
}

impl Wake for Pollers {
    fn wake(self: Arc<Self>) {
        self.wake_all();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wake_all();
    }
}

/// One `run_until`, among the pollers until it ends.
struct Poller<'a> {
    tasks: &'a Tasks,
    number: u64,
}

impl Drop for Poller<'_> {
    fn drop(&mut self) {
        self.tasks.pollers.forget(self.number);
        // It may have been woken for what the others are to do now.
        self.tasks.pollers.wake_all();
    }
}

/// How many tasks end in one poll of the set.
const ENDS_PER_POLL: usize = 61;

impl Tasks {
    #[track_caller]
    fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        let slot = Slot::new(Id::next());
        let join = JoinHandle::of_slot(slot.clone());
        let task = Box::pin(LocalTask {
            future: Some(future),
            slot,
        });
        if self.closed.get() {
            // Cancelled by its drop.
            drop(task);
        } else {
            self.spawned.borrow_mut().push_back(task);
            self.pollers.wake_all();
        }
        join
    }

    /// Whether it is one of the tasks that asks: whoever polls the set goes on after it.
    fn is_polled(&self) -> bool {
        self.running.try_borrow_mut().is_err()
    }

    /// Polls the tasks that are ready, for the poller of that number. Ready itself when there
    /// is none at all.
    fn poll(&self, poller: u64, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_polled() {
            return Poll::Pending;
        }
        self.pollers.register(poller, cx.waker());
        // The tasks wake whoever polls the set then.
        let cx = &mut Context::from_waker(&self.waker);
        let tasks = poll_fn(|cx| self.poll_ready(cx));
        // The budgets of the tasks are their own, and not that of who polls the set.
        pin!(unconstrained(tasks)).poll(cx)
    }

    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..ENDS_PER_POLL {
            let mut running = self.running.borrow_mut();
            running.extend(self.spawned.take());
            match running.poll_next_unpin(cx) {
                Poll::Ready(Some(())) => {}
                _ if !self.spawned.borrow().is_empty() => {}
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl LocalSet {
    /// A set without tasks.
    #[must_use]
    pub fn new() -> LocalSet {
        let pollers = Arc::new(Pollers::default());
        LocalSet {
            id: crate::runtime::Id::next(),
            tasks: Rc::new(Tasks {
                running: RefCell::default(),
                spawned: RefCell::default(),
                waker: Waker::from(pollers.clone()),
                pollers,
                last_poller: Cell::new(WHOLE_SET),
                closed: Cell::new(false),
            }),
        }
    }

    /// A number that no other set, and no runtime, of the process has.
    #[must_use]
    pub fn id(&self) -> crate::runtime::Id {
        self.id
    }

    /// Makes the set the place where [`spawn_local`] goes, until the guard is dropped.
    pub fn enter(&self) -> LocalEnterGuard {
        LocalEnterGuard {
            _local: self.set_current(),
        }
    }

    fn set_current(&self) -> SetLocal {
        context::set_local(self.tasks.clone())
    }

    /// Spawns a task on the set. It runs when the set does.
    #[track_caller]
    pub fn spawn_local<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        self.tasks.spawn(future)
    }

    /// Runs `future` with the set on a runtime.
    ///
    /// # Panics
    ///
    /// As [`Runtime::block_on`].
    #[track_caller]
    pub fn block_on<F: Future>(&self, rt: &Runtime, future: F) -> F::Output {
        rt.block_on(self.run_until(future))
    }

    /// Runs `future`, and the set as long as that takes. A task of the set may do so too.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe if `future` is: the tasks stay.
    pub async fn run_until<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        let number = self.tasks.last_poller.get() + 1;
        self.tasks.last_poller.set(number);
        let poller = Poller {
            tasks: &self.tasks,
            number,
        };
        poll_fn(|cx| {
            let _local = self.set_current();
            let _no_blocking = context::disallow_block_in_place();
            // Before the future: what it spawns wakes this.
            if !self.tasks.is_polled() {
                self.tasks.pollers.register(poller.number, cx.waker());
            }
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(output);
            }
            let _ = self.tasks.poll(poller.number, cx);
            Poll::Pending
        })
        .await
    }
}

impl Default for LocalSet {
    fn default() -> Self {
        LocalSet::new()
    }
}

/// Runs the set until it has no task left.
impl Future for LocalSet {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let _local = self.set_current();
        let _no_blocking = context::disallow_block_in_place();
        self.tasks.poll(WHOLE_SET, cx)
    }
}

impl Drop for LocalSet {
    fn drop(&mut self) {
        let _local = self.set_current();
        let _no_blocking = context::disallow_block_in_place();
        self.tasks.closed.set(true);
        // Each by itself: the destructor of one may panic.
        let spawned = self.tasks.spawned.take();
        let running = self.tasks.running.take();
        drop(running);
        drop(spawned);
    }
}

impl fmt::Debug for LocalSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalSet").finish_non_exhaustive()
    }
}

/// A task of a set. A panic of its future is its own.
#[pin_project(PinnedDrop)]
struct LocalTask<F: Future> {
    #[pin]
    future: Option<F>,
    slot: Arc<Slot<F::Output>>,
}

impl<F: Future> Future for LocalTask<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        let id = this.slot.id();
        let _in_task = context::enter_task(Some(id));
        let panicked = |payload| JoinError::panicked(id, payload);
        let result = if this.slot.poll_aborted(cx) {
            Err(JoinError::cancelled(id))
        } else {
            context::fresh_budget();
            let future = this.future.as_mut();
            match catch_unwind(AssertUnwindSafe(|| poll_or_drop(future, cx))) {
                Ok(Poll::Pending) => return Poll::Pending,
                Ok(Poll::Ready(output)) => Ok(output),
                Err(payload) => Err(panicked(payload)),
            }
        };
        let dropped = catch_unwind(AssertUnwindSafe(|| this.future.set(None)));
        let result = match dropped {
            Err(payload) => Err(panicked(payload)),
            Ok(()) => result,
        };
        this.slot.finish(result);
        Poll::Ready(())
    }
}

#[pinned_drop]
impl<F: Future> PinnedDrop for LocalTask<F> {
    fn drop(self: Pin<&mut Self>) {
        let mut this = self.project();
        if this.future.is_none() {
            return;
        }
        let id = this.slot.id();
        let _in_task = context::enter_task(Some(id));
        let dropped = catch_unwind(AssertUnwindSafe(|| this.future.set(None)));
        this.slot.finish(Err(match dropped {
            Ok(()) => JoinError::cancelled(id),
            Err(payload) => JoinError::panicked(id, payload),
        }));
    }
}
