//! Every way a task ends, at every point, with everything that can be done with
//! its handle: one table of expectations, each cell of which is run.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::ThreadId;

use corespun::task::{AbortHandle, JoinError, JoinHandle, block_on, spawn_local, yield_now};
use corespun::thread::{SpdkThread, ThreadLib};
use futures::FutureExt;

/// What the task does, or what is done to it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Act {
    Panics,
    Returns,
    IsAborted,
    ThreadExits,
}

/// Where it does that. The drop of the future is the one that follows its return,
/// except in a task that is aborted unpolled, where it is all that happens.
#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    FirstPoll,
    LaterPoll,
    DropOfFuture,
    DropOfOutput,
}

/// What becomes of the handle.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Handle {
    /// Awaited before the first poll already.
    Awaited,
    /// Dropped before the first poll.
    Dropped,
    /// Aborted before the first poll, then awaited.
    AbortedUnpolled,
    /// Aborted at the very place of the act, right before it, then awaited.
    AbortedThere,
    /// Awaited by another OS thread.
    OnOsThread,
    /// Awaited by a task of another SpdkThread.
    OnSpdkThread,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Joined {
    Output,
    Panicked,
    Cancelled,
    ThreadExited,
    /// Nobody joined.
    Nobody,
}

/// What a cell expects.
#[derive(Clone, Copy)]
struct Cell {
    joined: Joined,
    /// Whether the task comes to the place of the act.
    acts: bool,
}

const fn acts(joined: Joined) -> Cell {
    Cell { joined, acts: true }
}

const OUTPUT: Cell = acts(Joined::Output);
const PANIC: Cell = acts(Joined::Panicked);
const CANCEL: Cell = acts(Joined::Cancelled);
const EXITED: Cell = acts(Joined::ThreadExited);
const NOBODY: Cell = acts(Joined::Nobody);
/// Without meaning, and shown to be: a task that is aborted before its first poll
/// is never polled and makes no output, so it cannot act there.
const NEVER: Cell = Cell {
    joined: Joined::Cancelled,
    acts: false,
};

const HANDLES: [Handle; 6] = [
    Handle::Awaited,
    Handle::Dropped,
    Handle::AbortedUnpolled,
    Handle::AbortedThere,
    Handle::OnOsThread,
    Handle::OnSpdkThread,
];

/// The columns are those of `HANDLES`.
const TABLE: [(Act, At, [Cell; 6]); 16] = {
    use Act::*;
    use At::*;
    [
        // An abort in the poll that panics or returns comes too late.
        (
            Panics,
            FirstPoll,
            [PANIC, NOBODY, NEVER, PANIC, PANIC, PANIC],
        ),
        (
            Panics,
            LaterPoll,
            [PANIC, NOBODY, NEVER, PANIC, PANIC, PANIC],
        ),
        // The panic of a destructor after the end is reported, and changes nothing else;
        // if an abort has called it, it is how the task ends.
        (
            Panics,
            DropOfFuture,
            [OUTPUT, NOBODY, PANIC, OUTPUT, OUTPUT, OUTPUT],
        ),
        (
            Panics,
            DropOfOutput,
            [OUTPUT, NOBODY, NEVER, OUTPUT, OUTPUT, OUTPUT],
        ),
        (
            Returns,
            FirstPoll,
            [OUTPUT, NOBODY, NEVER, OUTPUT, OUTPUT, OUTPUT],
        ),
        (
            Returns,
            LaterPoll,
            [OUTPUT, NOBODY, NEVER, OUTPUT, OUTPUT, OUTPUT],
        ),
        (
            Returns,
            DropOfFuture,
            [OUTPUT, NOBODY, CANCEL, OUTPUT, OUTPUT, OUTPUT],
        ),
        (
            Returns,
            DropOfOutput,
            [OUTPUT, NOBODY, NEVER, OUTPUT, OUTPUT, OUTPUT],
        ),
        (
            IsAborted,
            FirstPoll,
            [CANCEL, NOBODY, NEVER, CANCEL, CANCEL, CANCEL],
        ),
        (
            IsAborted,
            LaterPoll,
            [CANCEL, NOBODY, NEVER, CANCEL, CANCEL, CANCEL],
        ),
        // It has ended already.
        (
            IsAborted,
            DropOfFuture,
            [OUTPUT, NOBODY, CANCEL, OUTPUT, OUTPUT, OUTPUT],
        ),
        (
            IsAborted,
            DropOfOutput,
            [OUTPUT, NOBODY, NEVER, OUTPUT, OUTPUT, OUTPUT],
        ),
        // The exit, which ends the poll, is faster than the abort's next poll.
        (
            ThreadExits,
            FirstPoll,
            [EXITED, NOBODY, NEVER, EXITED, EXITED, EXITED],
        ),
        (
            ThreadExits,
            LaterPoll,
            [EXITED, NOBODY, NEVER, EXITED, EXITED, EXITED],
        ),
        (
            ThreadExits,
            DropOfFuture,
            [OUTPUT, NOBODY, CANCEL, OUTPUT, OUTPUT, OUTPUT],
        ),
        (
            ThreadExits,
            DropOfOutput,
            [OUTPUT, NOBODY, NEVER, OUTPUT, OUTPUT, OUTPUT],
        ),
    ]
};

/// An OS thread, and the SpdkThread that was current on it.
type Place = (ThreadId, Option<SpdkThread>);

fn here() -> Place {
    (std::thread::current().id(), SpdkThread::current())
}

struct World {
    abort: Mutex<Option<AbortHandle>>,
    aborts_there: bool,
    thread: SpdkThread,
    acted: AtomicUsize,
    futures_dropped: Mutex<Vec<Place>>,
    outputs_dropped: Mutex<Vec<Place>>,
    join_wakes: AtomicUsize,
}

impl World {
    fn abort(&self) {
        // Not with the lock: it may be the last that holds the task.
        let abort = self.abort.lock().unwrap().clone();
        abort.expect("known before the first poll").abort();
    }

    fn act(&self, act: Act) {
        self.acted.fetch_add(1, Ordering::Relaxed);
        if self.aborts_there {
            self.abort();
        }
        match act {
            Act::Panics => std::panic::resume_unwind(Box::new("acted")),
            Act::Returns => {}
            Act::IsAborted => self.abort(),
            Act::ThreadExits => drop(self.thread.exit()),
        }
    }
}

impl Wake for World {
    fn wake(self: Arc<Self>) {
        self.join_wakes.fetch_add(1, Ordering::Relaxed);
    }
}

struct Output(Arc<World>, Option<Act>);

impl Drop for Output {
    fn drop(&mut self) {
        self.0.outputs_dropped.lock().unwrap().push(here());
        if let Some(act) = self.1 {
            self.0.act(act);
        }
    }
}

/// Owned by the future, dropped with it.
struct InFuture(Arc<World>, Option<Act>);

impl Drop for InFuture {
    fn drop(&mut self) {
        self.0.futures_dropped.lock().unwrap().push(here());
        if let Some(act) = self.1 {
            self.0.act(act);
        }
    }
}

/// A future that keeps something until it is dropped, not until it is ready.
struct Keeping<F>(Pin<Box<F>>, #[allow(dead_code, reason = "kept")] InFuture);

impl<F: Future> Future for Keeping<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.0.as_mut().poll(cx)
    }
}

/// Acts, and returns only if that is the act.
async fn act_and_go_on(world: &World, act: Act) {
    world.act(act);
    if act != Act::Returns {
        std::future::pending::<()>().await;
    }
}

/// How it was joined, whether dropping the output panicked, and where that was.
type Ended = (Joined, bool, Place);

fn look_and_drop(result: Result<Output, JoinError>) -> Ended {
    let joined = match &result {
        Ok(_) => Joined::Output,
        Err(error) if error.is_panic() => Joined::Panicked,
        Err(error) if error.is_cancelled() => Joined::Cancelled,
        Err(error) if error.is_thread_exited() => Joined::ThreadExited,
        Err(error) => panic!("{error}"),
    };
    let dropping = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(result)));
    (joined, dropping.is_err(), here())
}

async fn join(handle: JoinHandle<Output>) -> Ended {
    look_and_drop(handle.await)
}

fn check(act: Act, at: At, handle: Handle, expected: Cell) {
    let cell = format!("{act:?} at {at:?}, handle {handle:?}");
    let panics = Arc::new(Mutex::new(Vec::new()));
    let reported = panics.clone();
    let library = ThreadLib::builder()
        .panic_hook(move |panic| reported.lock().unwrap().push(format!("{:?}", panic.source)))
        .build();
    // Gone with the last handle, waker and allocation of a task of the thread.
    let allocated = Arc::new(());
    let builder = library.thread().context(allocated.clone());
    let mut runner = builder.build().unwrap().attach();
    let mut other = library.thread().build().unwrap().attach();
    let world = Arc::new(World {
        abort: Mutex::new(None),
        aborts_there: handle == Handle::AbortedThere,
        thread: runner.handle(),
        acted: AtomicUsize::new(0),
        futures_dropped: Mutex::default(),
        outputs_dropped: Mutex::default(),
        join_wakes: AtomicUsize::new(0),
    });

    let acts_at = |place| (at == place).then_some(act);
    let (first, later) = (acts_at(At::FirstPoll), acts_at(At::LaterPoll));
    let kept = InFuture(world.clone(), acts_at(At::DropOfFuture));
    let output_acts = acts_at(At::DropOfOutput);
    let inside = world.clone();
    let mut task = runner.enter(|| {
        let body = async move {
            match first {
                Some(act) => act_and_go_on(&inside, act).await,
                None => yield_now().await,
            }
            if let Some(act) = later {
                act_and_go_on(&inside, act).await;
            }
            Output(inside.clone(), output_acts)
        };
        spawn_local(Keeping(Box::pin(body), kept))
    });
    *world.abort.lock().unwrap() = Some(task.abort_handle());
    assert_eq!(runner.tasks().len(), 1, "{cell}");

    let (mut by_hand, mut on_os_thread, mut on_spdk_thread) = (None, None, None);
    match handle {
        Handle::Dropped => drop(task),
        Handle::OnOsThread => {
            on_os_thread = Some(std::thread::spawn(move || block_on(join(task))));
        }
        Handle::OnSpdkThread => {
            on_spdk_thread = Some(other.handle().spawn(join(task)));
            other.poll(0, 0);
        }
        Handle::Awaited | Handle::AbortedUnpolled | Handle::AbortedThere => {
            if handle == Handle::AbortedUnpolled {
                task.abort();
            }
            let waker = Waker::from(world.clone());
            let polled = task.poll_unpin(&mut Context::from_waker(&waker));
            assert!(polled.is_pending(), "{cell}");
            by_hand = Some(task);
        }
    }
    for _ in 0..20 {
        runner.poll(0, 0);
        other.poll(0, 0);
    }
    let ended = if let Some(task) = by_hand {
        assert_eq!(world.join_wakes.load(Ordering::Relaxed), 1, "{cell}");
        assert!(task.is_finished(), "{cell}");
        Some(block_on(join(task)))
    } else if let Some(thread) = on_os_thread {
        Some(thread.join().unwrap())
    } else {
        on_spdk_thread.map(|task| task.now_or_never().expect("ended").unwrap())
    };

    // What the handle gives.
    let joined = ended.as_ref().map_or(Joined::Nobody, |ended| ended.0);
    assert_eq!(joined, expected.joined, "{cell}");
    let acted = world.acted.load(Ordering::Relaxed);
    assert_eq!(acted, usize::from(expected.acts), "{cell}");
    // The future is gone, once, and by its own thread.
    let own_place = (std::thread::current().id(), Some(runner.handle()));
    let futures_dropped = world.futures_dropped.lock().unwrap().split_off(0);
    assert_eq!(futures_dropped, std::slice::from_ref(&own_place), "{cell}");
    // So is an output, if there was one, by who joined, or by its own thread.
    let returns = act == Act::Returns || matches!(at, At::DropOfFuture | At::DropOfOutput);
    let made_output = returns && handle != Handle::AbortedUnpolled;
    let outputs_dropped = world.outputs_dropped.lock().unwrap().split_off(0);
    let dropping_place = match &ended {
        Some(ended) => ended.2.clone(),
        None => own_place.clone(),
    };
    let expected_drops = Vec::from_iter(made_output.then_some(dropping_place));
    assert_eq!(outputs_dropped, expected_drops, "{cell}");
    // A panic is somebody's: the joiner's, or reported.
    let joiner_panicked = ended.as_ref().is_some_and(|ended| ended.1);
    let nobody = handle == Handle::Dropped;
    let (mut report, mut joiner_is_hit) = (vec![], false);
    if act == Act::Panics && expected.acts {
        match at {
            At::FirstPoll | At::LaterPoll if nobody => report.push("Task"),
            At::FirstPoll | At::LaterPoll => {}
            At::DropOfFuture if handle == Handle::AbortedUnpolled => {}
            At::DropOfFuture => report.push("Drop"),
            At::DropOfOutput if nobody => report.push("Drop"),
            At::DropOfOutput => joiner_is_hit = true,
        }
    }
    assert_eq!(*panics.lock().unwrap(), report, "{cell}");
    assert_eq!(joiner_panicked, joiner_is_hit, "{cell}");
    // The task is on no list, and the thread lives on, unless it was told to
    // exit; then it has.
    for _ in 0..20 {
        runner.poll(0, 0);
    }
    assert!(runner.tasks().is_empty(), "{cell}");
    assert!(runner.exit_holders().is_empty(), "{cell}");
    let exits = act == Act::ThreadExits && expected.acts;
    assert_eq!(world.thread.is_exited(), exits, "{cell}");
    if !exits {
        assert!(runner.can_move(), "{cell}");
        let after = runner.enter(|| spawn_local(async { 1 }));
        runner.poll(0, 0);
        assert_eq!(block_on(after).unwrap(), 1, "{cell}");
    }
    // Nothing keeps anything.
    drop(world.abort.lock().unwrap().take());
    assert_eq!(Arc::strong_count(&world), 1, "{cell}");
    drop((world, runner, ended, futures_dropped));
    drop((outputs_dropped, expected_drops, own_place));
    assert_eq!(Arc::strong_count(&allocated), 1, "{cell}");
}

/// G4, G6, G7
#[test]
fn every_end_of_a_task_at_every_point_with_every_handle_is_as_documented() {
    let mut rows = Vec::new();
    for (act, at, cells) in TABLE {
        rows.push((act, at));
        for (handle, expected) in HANDLES.into_iter().zip(cells) {
            check(act, at, handle, expected);
        }
    }
    // The table has every row.
    for act in [Act::Panics, Act::Returns, Act::IsAborted, Act::ThreadExits] {
        for at in [
            At::FirstPoll,
            At::LaterPoll,
            At::DropOfFuture,
            At::DropOfOutput,
        ] {
            assert!(rows.contains(&(act, at)), "{act:?} at {at:?}");
        }
    }
}
