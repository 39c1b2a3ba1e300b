//! What stands in for the async-task crate in models: the crate uses the standard
//! atomics, which loom does not see. This has as much of its interface as
//! [`task::raw`](crate::task) uses, and changes the state of a task in the same
//! steps as async-task 4.7 does, so that what is modelled is the real task floor.
//! Only the awaiter is kept differently: under a lock.

use std::cell::UnsafeCell;
use std::future::Future;
use std::mem::ManuallyDrop;
use std::pin::Pin;
use std::ptr::NonNull;
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};

use loom::sync::Mutex;
use loom::sync::atomic::{AtomicUsize, Ordering};

const SCHEDULED: usize = 1;
const RUNNING: usize = 2;
const COMPLETED: usize = 4;
const CLOSED: usize = 8;
const TASK: usize = 16;
const REFERENCE: usize = 256;

fn references(state: usize) -> usize {
    state / REFERENCE
}

pub(crate) struct ScheduleInfo {
    pub(crate) woken_while_running: bool,
}

pub(crate) struct WithInfo<S>(pub(crate) S);

/// What every task has, whatever its future.
struct Header<M: 'static> {
    state: AtomicUsize,
    awaiter: Mutex<Option<Waker>>,
    schedule: fn(Runnable<M>, ScheduleInfo),
    table: &'static Table<M>,
    metadata: M,
}

/// What is known of the future's type.
struct Table<M: 'static> {
    waker: RawWakerVTable,
    /// Polls the future; when it is ready, its output takes its place.
    poll: unsafe fn(NonNull<Header<M>>, &mut Context<'_>) -> bool,
    drop_future: unsafe fn(NonNull<Header<M>>),
    drop_output: unsafe fn(NonNull<Header<M>>),
    destroy: unsafe fn(NonNull<Header<M>>),
}

/// What a handle knows of its task.
#[repr(C)]
struct Front<T, M: 'static> {
    header: Header<M>,
    output: UnsafeCell<Option<T>>,
}

/// A task: what its pointers point to.
#[repr(C)]
struct Task<F, T, M: 'static> {
    front: Front<T, M>,
    future: UnsafeCell<Option<F>>,
}

impl<F: Future<Output = T>, T, M: 'static> Task<F, T, M> {
    // SAFETY, for each of these: `task` is the header of a `Self`, and what the state
    // says lets no other holder touch the future or the output.
    const TABLE: Table<M> = Table {
        waker: RawWakerVTable::new(clone::<M>, wake::<M>, wake_by_ref::<M>, drop_waker::<M>),
        poll: |task, cx| {
            // SAFETY: as said.
            let task = unsafe { task.cast::<Self>().as_ref() };
            // SAFETY: as said; the future is dropped where it is.
            let future = unsafe { (*task.future.get()).as_mut().expect("not dropped") };
            // SAFETY: as above.
            let Poll::Ready(output) = (unsafe { Pin::new_unchecked(future) }).poll(cx) else {
                return false;
            };
            // SAFETY: as said.
            unsafe {
                *task.future.get() = None;
                *task.front.output.get() = Some(output);
            }
            true
        },
        // SAFETY: as said.
        drop_future: |task| unsafe { *task.cast::<Self>().as_ref().future.get() = None },
        drop_output: |task| {
            // SAFETY: as said.
            drop(unsafe { (*task.cast::<Self>().as_ref().front.output.get()).take() });
        },
        // SAFETY: made by `Box::leak`, and no reference to it is left.
        destroy: |task| drop(unsafe { Box::from_raw(task.cast::<Self>().as_ptr()) }),
    };
}

unsafe fn header<'a, M: 'static>(data: *const ()) -> (&'a Header<M>, NonNull<Header<M>>) {
    let pointer = NonNull::new(data.cast_mut().cast::<Header<M>>()).unwrap();
    // SAFETY: the data of wakers and runnables is a live task, by its references.
    (unsafe { pointer.as_ref() }, pointer)
}

impl<M: 'static> Header<M> {
    /// Changes the state until that succeeds; returns the one before. `None` of
    /// `change` gives up.
    fn update(&self, change: impl Fn(usize) -> Option<usize>) -> Result<usize, usize> {
        let mut state = self.state.load(Ordering::Acquire);
        loop {
            let Some(new) = change(state) else {
                return Err(state);
            };
            match self
                .state
                .compare_exchange(state, new, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return Ok(state),
                Err(now) => state = now,
            }
        }
    }

    fn notify(&self, current: Option<&Waker>) {
        let awaiter = self.awaiter.lock().unwrap().take();
        if let Some(awaiter) = awaiter
            && !current.is_some_and(|current| current.will_wake(&awaiter))
        {
            awaiter.wake();
        }
    }
}

fn schedule<M: 'static>(task: NonNull<Header<M>>, woken_while_running: bool) {
    // SAFETY: the reference that comes with the `Runnable` keeps it alive.
    let schedule = unsafe { task.as_ref() }.schedule;
    schedule(
        Runnable { task },
        ScheduleInfo {
            woken_while_running,
        },
    );
}

fn drop_reference<M: 'static>(task: NonNull<Header<M>>) {
    // SAFETY: the caller gives up a reference.
    let header = unsafe { task.as_ref() };
    let state = header.state.fetch_sub(REFERENCE, Ordering::AcqRel) - REFERENCE;
    if references(state) == 0 && state & TASK == 0 {
        // SAFETY: that was the last.
        unsafe { (header.table.destroy)(task) };
    }
}

unsafe fn clone<M: 'static>(data: *const ()) -> RawWaker {
    // SAFETY: a waker's data.
    let (header, _) = unsafe { header::<M>(data) };
    header.state.fetch_add(REFERENCE, Ordering::Relaxed);
    RawWaker::new(data, &header.table.waker)
}

unsafe fn wake_by_ref<M: 'static>(data: *const ()) {
    // SAFETY: a waker's data.
    let (header, task) = unsafe { header::<M>(data) };
    let before = header.update(|state| match state {
        _ if state & (COMPLETED | CLOSED) != 0 => None,
        _ if state & SCHEDULED != 0 => Some(state),
        _ if state & RUNNING != 0 => Some(state | SCHEDULED),
        _ => Some((state | SCHEDULED) + REFERENCE),
    });
    if let Ok(before) = before
        && before & (SCHEDULED | RUNNING) == 0
    {
        schedule(task, false);
    }
}

unsafe fn wake<M: 'static>(data: *const ()) {
    // SAFETY: a waker's data, consumed.
    let (header, task) = unsafe { header::<M>(data) };
    let before = header.update(|state| match state {
        _ if state & (COMPLETED | CLOSED) != 0 => None,
        _ => Some(state | SCHEDULED),
    });
    match before {
        // The waker's reference goes with the `Runnable`.
        Ok(before) if before & (SCHEDULED | RUNNING) == 0 => schedule(task, false),
        // SAFETY: as above.
        _ => unsafe { drop_waker::<M>(data) },
    }
}

unsafe fn drop_waker<M: 'static>(data: *const ()) {
    // SAFETY: a waker's data, consumed.
    let (header, task) = unsafe { header::<M>(data) };
    let state = header.state.fetch_sub(REFERENCE, Ordering::AcqRel) - REFERENCE;
    if references(state) > 0 || state & TASK != 0 {
        return;
    }
    if state & (COMPLETED | CLOSED) == 0 {
        let last = SCHEDULED | CLOSED | REFERENCE;
        header.state.store(last, Ordering::Release);
        schedule(task, false);
    } else {
        // SAFETY: that was the last.
        unsafe { (header.table.destroy)(task) };
    }
}

pub(crate) struct Builder<M: 'static>(M);

impl Builder<()> {
    pub(crate) fn new() -> Self {
        Builder(())
    }

    pub(crate) fn metadata<M: 'static>(self, metadata: M) -> Builder<M> {
        Builder(metadata)
    }
}

impl<M: 'static> Builder<M> {
    /// # Safety
    ///
    /// As async-task's.
    pub(crate) unsafe fn spawn_unchecked<F: Future>(
        self,
        future: impl FnOnce(&M) -> F,
        schedule: WithInfo<fn(Runnable<M>, ScheduleInfo)>,
    ) -> (Runnable<M>, Handle<F::Output, M>) {
        let header = Header {
            state: AtomicUsize::new(SCHEDULED | TASK | REFERENCE),
            awaiter: Mutex::new(None),
            schedule: schedule.0,
            table: &Task::<F, F::Output, M>::TABLE,
            metadata: self.0,
        };
        let output = UnsafeCell::new(None);
        let task = Box::leak(Box::new(Task::<F, F::Output, M> {
            front: Front { header, output },
            future: UnsafeCell::new(None),
        }));
        *task.future.get_mut() = Some(future(&task.front.header.metadata));
        let task = NonNull::from(task);
        let task = task.cast::<Header<M>>();
        (Runnable { task }, Handle(FallibleTask::of(task)))
    }
}

pub(crate) struct Runnable<M: 'static> {
    task: NonNull<Header<M>>,
}

impl<M: 'static> Runnable<M> {
    fn header(&self) -> &Header<M> {
        // SAFETY: a `Runnable` has a reference.
        unsafe { self.task.as_ref() }
    }

    pub(crate) fn metadata(&self) -> &M {
        &self.header().metadata
    }

    pub(crate) fn waker(&self) -> Waker {
        let data = self.task.as_ptr().cast_const().cast::<()>();
        // SAFETY: the table is that of such data, and `clone` counts it.
        unsafe { Waker::from_raw(clone::<M>(data)) }
    }

    pub(crate) fn into_raw(self) -> NonNull<()> {
        ManuallyDrop::new(self).task.cast()
    }

    /// # Safety
    ///
    /// As async-task's.
    pub(crate) unsafe fn from_raw(task: NonNull<()>) -> Self {
        Runnable { task: task.cast() }
    }

    pub(crate) fn run(self) -> bool {
        let task = ManuallyDrop::new(self).task;
        // SAFETY: the reference of the `Runnable`, given up at the end.
        let header = unsafe { task.as_ref() };
        let table = header.table;
        let begun = header.update(|state| match state & CLOSED {
            0 => Some((state & !SCHEDULED) | RUNNING),
            _ => None,
        });
        if begun.is_err() {
            // SAFETY: the holder of the `Runnable` of a closed task drops its future.
            unsafe { (table.drop_future)(task) };
            header.state.fetch_and(!SCHEDULED, Ordering::AcqRel);
            header.notify(None);
            drop_reference(task);
            return false;
        }
        let data = task.as_ptr().cast_const().cast::<()>();
        // SAFETY: as in `waker`; not dropped, so not counted.
        let waker = unsafe { Waker::from_raw(RawWaker::new(data, &table.waker)) };
        let waker = ManuallyDrop::new(waker);
        // SAFETY: `RUNNING` is ours.
        let ready = unsafe { (table.poll)(task, &mut Context::from_waker(&waker)) };
        if ready {
            let before = header.update(|state| {
                let ended = (state & !RUNNING & !SCHEDULED) | COMPLETED;
                Some(match state & TASK {
                    0 => ended | CLOSED,
                    _ => ended,
                })
            });
            let before = before.unwrap_or_default();
            if before & TASK == 0 || before & CLOSED != 0 {
                // SAFETY: no other holder will take it.
                unsafe { (table.drop_output)(task) };
            }
            header.notify(None);
            drop_reference(task);
            return false;
        }
        let mut dropped = false;
        let before = loop {
            let state = header.state.load(Ordering::Acquire);
            if state & CLOSED != 0 && !dropped {
                // SAFETY: `RUNNING` is ours still.
                unsafe { (table.drop_future)(task) };
                dropped = true;
            }
            let new = match state & CLOSED {
                0 => state & !RUNNING,
                _ => state & !RUNNING & !SCHEDULED,
            };
            let changed =
                header
                    .state
                    .compare_exchange(state, new, Ordering::AcqRel, Ordering::Acquire);
            if changed.is_ok() {
                break state;
            }
        };
        if before & CLOSED == 0 && before & SCHEDULED != 0 {
            schedule(task, true);
            return true;
        }
        if before & CLOSED != 0 {
            header.notify(None);
        }
        drop_reference(task);
        false
    }
}

impl<M: 'static> Drop for Runnable<M> {
    fn drop(&mut self) {
        let task = self.task;
        let header = self.header();
        let _ = header.update(|state| match state & (COMPLETED | CLOSED) {
            0 => Some(state | CLOSED),
            _ => None,
        });
        // SAFETY: the holder of the `Runnable` of a closed task drops its future.
        unsafe { (header.table.drop_future)(task) };
        header.state.fetch_and(!SCHEDULED, Ordering::AcqRel);
        header.notify(None);
        drop_reference(task);
    }
}

pub(crate) struct Handle<T, M: 'static>(FallibleTask<T, M>);

impl<T, M: 'static> Handle<T, M> {
    pub(crate) fn fallible(self) -> FallibleTask<T, M> {
        self.0
    }
}

pub(crate) struct FallibleTask<T, M: 'static> {
    task: NonNull<Header<M>>,
    output: std::marker::PhantomData<T>,
}

impl<T, M: 'static> Unpin for FallibleTask<T, M> {}

impl<T, M: 'static> FallibleTask<T, M> {
    fn of(task: NonNull<Header<M>>) -> Self {
        FallibleTask {
            task,
            output: std::marker::PhantomData,
        }
    }

    fn header(&self) -> &Header<M> {
        // SAFETY: the handle keeps the allocation.
        unsafe { self.task.as_ref() }
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.header().state.load(Ordering::Acquire) & (COMPLETED | CLOSED) != 0
    }

    pub(crate) fn detach(self) {
        let task = self.task;
        std::mem::forget(self);
        let handle = FallibleTask::<T, M>::of(task);
        let header = handle.header();
        loop {
            let state = header.state.load(Ordering::Acquire);
            let leaves_output = state & COMPLETED != 0 && state & CLOSED == 0;
            let new = if leaves_output {
                state | CLOSED
            } else if references(state) == 0 && state & CLOSED == 0 {
                SCHEDULED | CLOSED | REFERENCE
            } else {
                state & !TASK
            };
            let changed =
                header
                    .state
                    .compare_exchange(state, new, Ordering::AcqRel, Ordering::Acquire);
            if changed.is_err() {
                continue;
            }
            if leaves_output {
                // SAFETY: closed by this.
                unsafe { (header.table.drop_output)(task) };
                continue;
            }
            if references(state) == 0 {
                match state & CLOSED {
                    0 => schedule(task, false),
                    // SAFETY: no reference to it is left.
                    _ => unsafe { (header.table.destroy)(task) },
                }
            }
            std::mem::forget(handle);
            return;
        }
    }
}

impl<T, M: 'static> Future for FallibleTask<T, M> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let header = self.header();
        let register = || *header.awaiter.lock().unwrap() = Some(cx.waker().clone());
        loop {
            let state = header.state.load(Ordering::Acquire);
            if state & CLOSED != 0 {
                if state & (SCHEDULED | RUNNING) != 0 {
                    register();
                    if header.state.load(Ordering::Acquire) & (SCHEDULED | RUNNING) != 0 {
                        return Poll::Pending;
                    }
                }
                header.notify(Some(cx.waker()));
                return Poll::Ready(None);
            }
            if state & COMPLETED == 0 {
                register();
                let state = header.state.load(Ordering::Acquire);
                if state & (COMPLETED | CLOSED) == 0 {
                    return Poll::Pending;
                }
                continue;
            }
            let closed = header.update(|now| (now == state).then_some(now | CLOSED));
            if closed.is_ok() {
                header.notify(Some(cx.waker()));
                let front = self.task.cast::<Front<T, M>>();
                // SAFETY: the task is completed, and closed by this.
                return Poll::Ready(unsafe { (*front.as_ref().output.get()).take() });
            }
        }
    }
}
