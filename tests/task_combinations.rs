//! Every way a task ends, at every point, with everything that can be done with
//! its handle: 64 cells, each asserted by one table of expectations.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::thread::ThreadId;

use corespun::task::{AbortHandle, JoinError, JoinHandle, block_on, spawn_local, yield_now};
use corespun::thread::{SpdkThread, ThreadLib};

/// What the task does, or what is done to it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Act {
    Panics,
    Returns,
    IsAborted,
    ThreadExits,
}

/// Where it does that.
#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    FirstPoll,
    LaterPoll,
    DropOfFuture,
    DropOfOutput,
}

/// What becomes of the handle before the task is polled.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Handle {
    Awaited,
    Dropped,
    Aborted,
    MovedToAnotherThread,
}

#[derive(Debug, PartialEq)]
enum Joined {
    Output,
    Panicked,
    Cancelled,
    ThreadExited,
    /// Nobody joined.
    Unknown,
}

struct World {
    abort: Mutex<Option<AbortHandle>>,
    thread: SpdkThread,
    futures_dropped: AtomicUsize,
    future_dropped_on: Mutex<Option<ThreadId>>,
    outputs_dropped: AtomicUsize,
}

impl World {
    fn act(&self, act: Act) {
        match act {
            Act::Panics => panic!("acted"),
            Act::Returns => {}
            Act::IsAborted => {
                if let Some(abort) = &*self.abort.lock().unwrap() {
                    abort.abort();
                }
            }
            Act::ThreadExits => drop(self.thread.exit()),
        }
    }
}

struct Output(Arc<World>, Option<Act>);

impl Drop for Output {
    fn drop(&mut self) {
        self.0.outputs_dropped.fetch_add(1, Ordering::Relaxed);
        if let Some(act) = self.1 {
            self.0.act(act);
        }
    }
}

/// Owned by the future, dropped with it.
struct InFuture(Arc<World>, Option<Act>);

impl Drop for InFuture {
    fn drop(&mut self) {
        self.0.futures_dropped.fetch_add(1, Ordering::Relaxed);
        *self.0.future_dropped_on.lock().unwrap() = Some(std::thread::current().id());
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

fn joined(result: &Result<Output, JoinError>) -> Joined {
    match result {
        Ok(_) => Joined::Output,
        Err(error) if error.is_panic() => Joined::Panicked,
        Err(error) if error.is_cancelled() => Joined::Cancelled,
        Err(error) if error.is_thread_exited() => Joined::ThreadExited,
        Err(error) => panic!("{error}"),
    }
}

/// Joins, and drops the output; says whether that panicked.
fn join(handle: JoinHandle<Output>) -> (Joined, bool) {
    let result = block_on(handle);
    let how = joined(&result);
    let dropping = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(result)));
    (how, dropping.is_err())
}

fn expected(act: Act, at: At, handle: Handle) -> Joined {
    match (handle, act, at) {
        (Handle::Dropped, ..) => Joined::Unknown,
        // Before its first poll, so nothing else came to pass.
        (Handle::Aborted, ..) => Joined::Cancelled,
        (_, Act::Returns, _) | (_, _, At::DropOfFuture | At::DropOfOutput) => Joined::Output,
        (_, Act::Panics, _) => Joined::Panicked,
        (_, Act::IsAborted, _) => Joined::Cancelled,
        (_, Act::ThreadExits, _) => Joined::ThreadExited,
    }
}

fn check(act: Act, at: At, handle: Handle) {
    let cell = format!("{act:?} at {at:?}, handle {handle:?}");
    let panics = Arc::new(Mutex::new(Vec::new()));
    let reported = panics.clone();
    let library = ThreadLib::builder()
        .panic_hook(move |panic| reported.lock().unwrap().push(format!("{:?}", panic.source)))
        .build();
    let mut runner = library.thread().build().unwrap().attach();
    let world = Arc::new(World {
        abort: Mutex::new(None),
        thread: runner.handle(),
        futures_dropped: AtomicUsize::new(0),
        future_dropped_on: Mutex::new(None),
        outputs_dropped: AtomicUsize::new(0),
    });

    let acts_at = |place| (at == place).then_some(act);
    let (first, later) = (acts_at(At::FirstPoll), acts_at(At::LaterPoll));
    let kept = InFuture(world.clone(), acts_at(At::DropOfFuture));
    let output_acts = acts_at(At::DropOfOutput);
    let inside = world.clone();
    let task = runner.enter(|| {
        let body = async move {
            if let Some(act) = first {
                act_and_go_on(&inside, act).await;
            } else {
                yield_now().await;
            }
            if let Some(act) = later {
                act_and_go_on(&inside, act).await;
            }
            Output(inside.clone(), output_acts)
        };
        spawn_local(Keeping(Box::pin(body), kept))
    });
    *world.abort.lock().unwrap() = Some(task.abort_handle());

    let (mut elsewhere, mut awaited) = (None, None);
    match handle {
        Handle::Awaited => awaited = Some(task),
        Handle::Dropped => drop(task),
        Handle::Aborted => {
            task.abort();
            awaited = Some(task);
        }
        Handle::MovedToAnotherThread => {
            elsewhere = Some(std::thread::spawn(move || join(task)));
        }
    }
    for _ in 0..20 {
        runner.poll(0, 0);
    }
    let (how, output_drop_panicked) = match (awaited, elsewhere) {
        (Some(task), _) => join(task),
        (_, Some(thread)) => thread.join().unwrap(),
        _ => (Joined::Unknown, false),
    };

    assert_eq!(how, expected(act, at, handle), "{cell}");
    // The future is gone, once, and by its own thread.
    assert_eq!(world.futures_dropped.load(Ordering::Relaxed), 1, "{cell}");
    assert_eq!(
        *world.future_dropped_on.lock().unwrap(),
        Some(std::thread::current().id()),
        "{cell}"
    );
    // So is an output, if there was one.
    let made_output = handle != Handle::Aborted
        && (act == Act::Returns || matches!(at, At::DropOfFuture | At::DropOfOutput));
    assert_eq!(
        world.outputs_dropped.load(Ordering::Relaxed),
        usize::from(made_output),
        "{cell}"
    );
    // A panic is somebody's: the joiner's, or reported.
    let panics_in_output = act == Act::Panics && at == At::DropOfOutput && made_output;
    assert_eq!(
        output_drop_panicked,
        panics_in_output && handle != Handle::Dropped,
        "{cell}"
    );
    let polls_panic = act == Act::Panics && matches!(at, At::FirstPoll | At::LaterPoll);
    let report = if act == Act::Panics && at == At::DropOfFuture {
        vec!["Drop"]
    } else if polls_panic && handle == Handle::Dropped {
        vec!["Task"]
    } else if panics_in_output && handle == Handle::Dropped {
        vec!["Drop"]
    } else {
        vec![]
    };
    assert_eq!(*panics.lock().unwrap(), report, "{cell}");
    // The thread lives on, unless it was told to exit; then it has.
    for _ in 0..20 {
        runner.poll(0, 0);
    }
    let acted = match at {
        At::FirstPoll | At::LaterPoll => handle != Handle::Aborted,
        At::DropOfFuture => true,
        At::DropOfOutput => made_output,
    };
    let exits = act == Act::ThreadExits && acted;
    assert_eq!(world.thread.is_exited(), exits, "{cell}");
    if !exits {
        let after = runner.enter(|| spawn_local(async { 1 }));
        runner.poll(0, 0);
        assert_eq!(block_on(after).unwrap(), 1, "{cell}");
    }
}

/// G4, G6, G7
#[test]
fn every_end_of_a_task_at_every_point_with_every_handle_is_as_documented() {
    for act in [Act::Panics, Act::Returns, Act::IsAborted, Act::ThreadExits] {
        for at in [
            At::FirstPoll,
            At::LaterPoll,
            At::DropOfFuture,
            At::DropOfOutput,
        ] {
            for handle in [
                Handle::Awaited,
                Handle::Dropped,
                Handle::Aborted,
                Handle::MovedToAnotherThread,
            ] {
                check(act, at, handle);
            }
        }
    }
}
