//! G11: what holds its thread too long is reported, by itself when it has ended
//! and to another OS thread while it has not.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use corespun::app::AppHandle;
use corespun::clock::{Clock, VirtualClock};
use corespun::cpu::CpuSet;
use corespun::reactor::ReactorMode;
use corespun::task::{self, TaskBuilder};
use corespun::thread::{
    Activity, OsThreadState, Poller, Stall, StallSource, ThreadLib, ThreadRunner,
};
use harness::reactors::{app, must_end};

/// A stall, kept.
#[derive(Clone, Debug)]
struct Seen {
    thread: String,
    core: Option<usize>,
    source: StallSource,
    name: String,
    since: u64,
    held: Duration,
    still_running: bool,
    state: Option<OsThreadState>,
    text: String,
}

impl From<&Stall<'_>> for Seen {
    fn from(stall: &Stall<'_>) -> Self {
        Seen {
            thread: stall.thread.to_owned(),
            core: stall.core,
            source: stall.source,
            name: stall.name.to_owned(),
            since: stall.since,
            held: stall.held,
            still_running: stall.still_running,
            state: stall.os_thread.as_ref().map(|one| one.state),
            text: stall.to_string(),
        }
    }
}

/// A library with a limit of 100 µs, where a tick is 1 µs, and what it reported.
struct Watched {
    library: ThreadLib,
    time: VirtualClock,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Watched {
    fn new() -> Self {
        let (clock, time) = Clock::virtual_at(1_000_000);
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let log = seen.clone();
        let library = ThreadLib::builder()
            .clock(clock)
            .stall_limit(us(100))
            .stall_hook(move |stall| log.lock().unwrap().push(stall.into()))
            .build();
        Watched {
            library,
            time,
            seen,
        }
    }

    fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }

    /// Polls a thread, with what `set_up` has put there, on an OS thread of its
    /// own, until the [`Block`] that `set_up` was given has begun; then looks at
    /// it before and after the limit, ends it, and returns both reports.
    #[track_caller]
    fn holds(&self, set_up: impl FnOnce(&mut ThreadRunner, Block) + Send + 'static) -> [Seen; 2] {
        let thread = self.library.thread().name("held").build().unwrap();
        let (begun, begins) = channel();
        let (release, released) = channel();
        let poller = std::thread::spawn(move || {
            let mut runner = thread.attach();
            set_up(&mut runner, Block { begun, released });
            while runner.has_messages() || runner.has_pollers() {
                runner.poll(0, 0);
            }
        });
        begins.recv().unwrap();
        let start = self.time.now();
        self.time.advance(99);
        assert_eq!(self.library.check_stalls(), 0, "before the limit");
        self.time.advance(1);
        assert_eq!(self.library.check_stalls(), 1);
        self.time.advance(400);
        assert_eq!(self.library.check_stalls(), 0, "reported before");
        drop(release);
        poller.join().unwrap();
        assert_eq!(self.library.check_stalls(), 0, "it has ended");
        let seen: [Seen; 2] = self.take().try_into().unwrap();
        for (one, held) in seen.iter().zip([100, 500]) {
            assert_eq!(one.thread, "held");
            assert_eq!((one.since, one.held), (start, us(held)));
            assert_eq!((one.core, one.state), (None, None));
            assert_eq!(one.source, seen[0].source);
        }
        assert_eq!(seen.each_ref().map(|one| one.still_running), [true, false]);
        seen
    }
}

/// Holds the OS thread that calls `hold` until the test lets it go.
struct Block {
    begun: Sender<()>,
    released: Receiver<()>,
}

impl Block {
    fn hold(&self) {
        self.begun.send(()).unwrap();
        let _ = self.released.recv();
    }
}

struct BlockInDrop(Block);

impl Drop for BlockInDrop {
    fn drop(&mut self) {
        self.0.hold();
    }
}

fn us(us: u64) -> Duration {
    Duration::from_micros(us)
}

#[test]
fn a_message_that_does_not_return_is_seen_by_its_type() {
    let seen = Watched::new().holds(|runner, block| {
        let hold = move || block.hold();
        runner.handle().send_msg(hold).unwrap();
    });
    assert_eq!(seen[0].source, StallSource::Message);
    let own_name = "a_message_that_does_not_return_is_seen_by_its_type";
    assert!(seen[0].name.contains(own_name), "{}", seen[0].name);
    assert_eq!(seen[0].name, seen[1].name);
    let text = &seen[0].text;
    assert!(text.starts_with("message "), "{text}");
    let end = "has held \"held\" for 100µs and still runs";
    assert!(text.ends_with(end), "{text}");
    assert!(seen[1].text.ends_with(" held \"held\" for 500µs"));
}

#[test]
fn a_task_that_does_not_return_is_seen_by_its_name_and_where_it_was_spawned() {
    for name in [None, Some("hog")] {
        let seen = Watched::new().holds(move |runner, block| {
            let mut task = TaskBuilder::new();
            if let Some(name) = name {
                task = task.name(name);
            }
            runner.enter(|| drop(task.spawn_local(async move { block.hold() })));
        });
        assert_eq!(seen[0].source, StallSource::Task);
        let start = match name {
            Some(_) => "hog (spawned at tests/stalls.rs:",
            None => "spawned at tests/stalls.rs:",
        };
        assert!(seen[0].name.starts_with(start), "{}", seen[0].name);
        assert_eq!(seen[0].name, seen[1].name);
    }
}

#[test]
fn a_poller_that_does_not_return_is_seen_by_its_name() {
    for name in [None, Some("spinner")] {
        let seen = Watched::new().holds(move |runner, block| {
            let mut poller = Poller::builder();
            if let Some(name) = name {
                poller = poller.name(name);
            }
            let (give, given) = channel::<Poller>();
            let registered = runner.enter(|| {
                poller.register(move || {
                    block.hold();
                    drop(given.recv());
                    Activity::Busy
                })
            });
            give.send(registered.unwrap()).unwrap();
        });
        assert_eq!(seen[0].source, StallSource::Poller);
        assert_eq!(seen[0].name, name.unwrap_or("poller 1"));
        assert_eq!(seen[0].name, seen[1].name);
    }
}

/// The future of a task is dropped after its last poll.
#[test]
fn a_destructor_that_does_not_return_is_seen_as_a_part_of_the_poll() {
    let seen = Watched::new().holds(|runner, block| {
        let handle = runner.enter(|| {
            let held = BlockInDrop(block);
            task::spawn_local(async move {
                let _held = held;
                std::future::pending::<()>().await;
            })
        });
        handle.abort();
    });
    assert_eq!(seen[0].source, StallSource::Poll);
    assert_eq!(seen[0].name, "outside of messages, pollers and tasks");
}

#[test]
fn time_outside_of_a_poll_holds_nothing() {
    let watched = Watched::new();
    let mut runner = watched.library.thread().build().unwrap().attach();
    for _ in 0..3 {
        runner.poll(0, 0);
        watched.time.advance(1_000);
        assert_eq!(watched.library.check_stalls(), 0);
        // Nor is the poll as old as the caller's tick.
        runner.poll(0, watched.time.now() - 500);
    }
    assert_eq!(watched.take().len(), 0);
}

/// Outside of a poll it holds nothing, and within one, whatever spawned it.
#[test]
fn an_eager_task_is_a_part_of_what_spawns_it() {
    let watched = Watched::new();
    let mut runner = watched.library.thread().build().unwrap().attach();
    runner.enter(|| drop(task::spawn_eager(async {})));
    watched.time.advance(1_000);
    assert_eq!(watched.library.check_stalls(), 0);
    runner.poll(0, 0);
    let time = watched.time.clone();
    let hog = runner.enter(|| {
        TaskBuilder::new().name("hog").spawn_local(async move {
            for _ in 0..2 {
                let time = time.clone();
                drop(task::spawn_eager(async move { _ = time.advance(70) }));
                drop(task::spawn_eager(async {}));
            }
        })
    });
    runner.poll(0, 0);
    assert!(hog.is_finished());
    let seen = watched.take();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert!(seen[0].name.starts_with("hog "), "{}", seen[0].name);
    assert_eq!(seen[0].held, us(140));
}

#[test]
fn what_does_not_return_is_seen_by_its_name_after_it_has_spawned_an_eager_task() {
    let seen = Watched::new().holds(|runner, block| {
        let task = TaskBuilder::new().name("hog");
        runner.enter(|| {
            drop(task.spawn_local(async move {
                drop(task::spawn_eager(async {}));
                block.hold()
            }))
        });
    });
    assert_eq!(seen[0].source, StallSource::Task);
    assert!(seen[0].name.starts_with("hog "), "{}", seen[0].name);
}

#[test]
fn what_was_reported_as_ended_is_not_found_still_running() {
    let (clock, time) = Clock::virtual_at(1_000_000);
    let own: Arc<Mutex<Option<ThreadLib>>> = Arc::default();
    let reports: Arc<Mutex<Vec<(bool, usize)>>> = Arc::default();
    let (log, looks, hand) = (reports.clone(), own.clone(), time.clone());
    let library = ThreadLib::builder()
        .clock(clock)
        .stall_limit(us(100))
        .stall_hook(move |stall| {
            let library = looks.lock().unwrap().clone().unwrap();
            let found = library.check_stalls();
            log.lock().unwrap().push((stall.still_running, found));
            // The hook's time is nobody's stall.
            hand.advance(1_000);
        })
        .build();
    *own.lock().unwrap() = Some(library.clone());
    let mut runner = library.thread().build().unwrap().attach();
    for _ in 0..3 {
        let time = time.clone();
        let spend = move || {
            time.advance(100);
        };
        runner.handle().send_msg(spend).unwrap();
    }
    runner.poll(0, 0);
    assert_eq!(*reports.lock().unwrap(), [(false, 0); 3]);
    *own.lock().unwrap() = None;
}

#[test]
fn many_threads_are_looked_at_and_without_a_limit_none_is() {
    let watched = Watched::new();
    let threads: Vec<_> = (0..200)
        .map(|_| watched.library.thread().build().unwrap())
        .collect();
    assert_eq!(watched.library.check_stalls(), 0);
    let library = watched.library.clone();
    let [seen, _] = watched.holds(|runner, block| {
        let hold = move || block.hold();
        runner.handle().send_msg(hold).unwrap();
    });
    assert!(seen.still_running);
    assert_eq!(library.thread_count(), threads.len());
    assert_eq!(ThreadLib::new().check_stalls(), 0);
}

/// Runs an app of two reactors with a `body` that blocks one of them until what
/// blocks it was reported as still running; gives back the reports of that.
fn reports_of(
    mode: ReactorMode,
    blocks: fn(&Seen) -> bool,
    body: impl AsyncFnOnce(AppHandle, Receiver<()>) + Send + 'static,
) -> [Seen; 2] {
    must_end(move || {
        let all: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (release, released) = channel();
        let log = all.clone();
        app(2, mode)
            .stall_limit(Duration::from_millis(100))
            .stall_hook(move |stall| {
                let seen = Seen::from(stall);
                if blocks(&seen) {
                    if seen.still_running {
                        release.send(()).unwrap();
                    }
                    log.lock().unwrap().push(seen);
                }
            })
            .block_on(async move |app: AppHandle| body(app, released).await)
            .unwrap();
        // The watcher has ended, and its hook is gone.
        let all = Arc::into_inner(all).expect("nobody has the hook any more");
        let mut all = all.into_inner().unwrap();
        // An end may overtake the report that leads to it.
        all.sort_by_key(|one| !one.still_running);
        let [during, after] = all.try_into().unwrap();
        assert!(during.still_running && !after.still_running);
        assert!(during.held >= Duration::from_millis(100));
        assert!(after.held >= during.held);
        assert_eq!(during.since, after.since);
        assert!(during.state.is_some() && after.state.is_none());
        assert!(during.text.contains("; OS thread "), "{}", during.text);
        [during, after]
    })
}

/// It returns only because it was reported.
#[test]
fn an_app_sees_what_blocks_its_reactors_while_it_does() {
    for mode in [ReactorMode::Poll, ReactorMode::Interrupt] {
        let blocks = |one: &Seen| one.name.starts_with("blocks (spawned at");
        let reports = reports_of(mode, blocks, async |app, released| {
            let there = CpuSet::single(1);
            let thread = app.thread().name("stuck").cpumask(there).create().unwrap();
            let task = TaskBuilder::new().name("blocks");
            let blocks = task.spawn_on(&thread, async move { released.recv().unwrap() });
            blocks.await.unwrap();
        });
        for one in reports {
            assert_eq!((&*one.thread, one.core), ("stuck", Some(1)));
            assert_eq!(one.source, StallSource::Task);
        }
    }
}

#[test]
fn an_event_that_blocks_its_reactor_is_seen() {
    let blocks = |one: &Seen| one.source == StallSource::Event;
    let reports = reports_of(ReactorMode::Interrupt, blocks, async |app, released| {
        let (ended, end) = futures::channel::oneshot::channel();
        let blocks = move || {
            released.recv().unwrap();
            let _ = ended.send(());
        };
        app.reactors().send_event(1, blocks).unwrap();
        end.await.unwrap();
    });
    for one in reports {
        assert_eq!((&*one.thread, one.core), ("reactor 1", Some(1)));
        assert!(one.name.contains("an_event_that_blocks"), "{one:?}");
    }
}
