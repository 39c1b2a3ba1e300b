//! The end of a program: what has to arrive arrives, all threads exit, and nothing
//! is left.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use corespun::channel;
use corespun::thread::{ExitHolder, ThreadRunner};

use crate::Turns;
use crate::books::World;
use crate::here::{self, hosted, take_hosted};
use crate::hosting::{self, poll_hosted};
use crate::moving;
use crate::perform;
use crate::within;
use harness::random::Subject as _;

/// Rounds in which all threads are polled, for messages to arrive.
const ARRIVING: usize = 60;
/// Rounds of exits before time is moved on for the forced ones.
const PATIENT: usize = 30;
/// Rounds after which exits count as ones that do not end.
const ROUNDS: usize = 4000;

/// Of one OS thread.
pub fn end(world: &Arc<World>, site: usize, turns: &Turns, begun: usize) {
    let mut n = begun;
    let mut round = |f: &mut dyn FnMut()| {
        if turns.wait(n + site, site) {
            f();
            turns.pass(n + site);
        }
        n += crate::Threads::SITES;
    };
    round(&mut || {
        while hosting::attach(world, 0) {}
    });
    for _ in 0..ARRIVING {
        round(&mut || poll_all(world));
    }
    if world.exact {
        round(&mut || hosting::check_arrived(world));
    }
    round(&mut || hosting::let_go_and_exit(world));
    world.arrived.fetch_add(1, Ordering::AcqRel);
    let mut over = false;
    for rounds in 0.. {
        round(&mut || {
            // Those that somebody parked meanwhile.
            while hosting::attach(world, 0) {
                hosting::let_go_and_exit(world);
            }
            // All sites of one round see the same, since only the first looks.
            let arrived = world.arrived.load(Ordering::Acquire) == crate::Threads::SITES;
            if site == 0 && arrived && world.unended.load(Ordering::Acquire) == 0 {
                world.ended.store(true, Ordering::Release);
            }
            over = world.ended.load(Ordering::Acquire);
            if rounds > PATIENT
                && let [Some(first), Some(second)] =
                    [0, 1].map(|n| world.libraries[n].time.as_ref())
            {
                first.advance(1);
                second.advance(1);
            }
            poll_all(world);
            if !world.exact && !over {
                std::thread::yield_now();
            }
        });
        if over {
            break;
        }
        // Without turns, the others may need long.
        if rounds > if world.exact { ROUNDS } else { 1000 * ROUNDS } {
            let holders = hosted(|hosted| {
                let live = hosted.iter().filter(|hosted| !hosted.runner.is_exited());
                live.map(|hosted| hosted.runner.exit_holders())
                    .collect::<Vec<_>>()
            });
            world.fail(format!("exit: does not end, held by {holders:?}"));
            world.ended.store(true, Ordering::Release);
        }
    }
    round(&mut || here::let_everything_go(world));
}

fn poll_all(world: &Arc<World>) {
    for slot in 0..hosted(|hosted| hosted.len()) {
        if let Some(mut taken) = take_hosted(slot) {
            poll_hosted(world, &mut taken, 0);
            here::put_back(taken, slot);
        }
    }
}

/// Ends the threads on reactors, and lets go what those have of them.
fn end_of_reactors(world: &Arc<World>) {
    let Some(app) = &world.app else {
        return;
    };
    let placed = world.libraries[0].threads.with(|threads| threads.clone());
    let placed: Vec<_> = placed.into_iter().filter(|record| record.placed).collect();
    for record in &placed {
        let (inside, number) = (world.clone(), record.number);
        let letter = move || here::let_go_here(&inside, number);
        // Some are held to the end of their patience.
        if record.number.is_multiple_of(3) || record.handle.send_msg(letter).is_err() {
            drop(record.handle.exit());
            continue;
        }
        drop(record.handle.exit());
    }
    let end = Instant::now() + Duration::from_secs(20);
    while placed.iter().any(|record| !record.handle.is_exited()) {
        if Instant::now() > end {
            return world.fail("exit: does not end on its reactor");
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    let done = Arc::new(AtomicUsize::new(0));
    // A walk that its thread did not wait for may be on the app's own one still.
    let walked = done.clone();
    let sent = app.app_thread().send_msg(move || {
        walked.fetch_add(1, Ordering::AcqRel);
    });
    if sent.is_err() {
        world.fail("message: refused by the app's own thread");
    }
    let cores = app.reactors().cores();
    for core in &cores {
        let (inside, done) = (world.clone(), done.clone());
        let sent = app.reactors().send_event(core, move || {
            here::let_everything_go(&inside);
            drop(here::leave());
            drop(inside);
            done.fetch_add(1, Ordering::AcqRel);
        });
        if sent.is_err() {
            world.fail("reactor: takes no event");
        }
    }
    while done.load(Ordering::Acquire) < 1 + cores.iter().count() {
        if Instant::now() > end {
            return world.fail("reactor: runs no event, or its app's thread no message");
        }
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// Which nothing is put on any more.
fn clear_shelf(world: &Arc<World>) {
    let builder = world.libraries[1].library.thread();
    let mut last = builder.build().expect("an id").attach();
    perform::contained(world, || last.enter(|| within::clear_shelf(world)));
    end_of_last(world, last);
}

/// A thread that no step knows.
fn end_of_last(world: &Arc<World>, mut last: ThreadRunner) {
    for _ in 0..100 {
        last.poll(0, 0);
    }
    drop(last.exit());
    // A walk of a destructor may wait for the app's own thread, which another OS thread
    // polls. Well before the exit would be forced.
    let end = Instant::now() + Duration::from_secs(2);
    let waits = |last: &ThreadRunner| world.app.is_some() && !last.is_exited();
    for rounds in 0.. {
        last.poll(0, 0);
        if rounds >= 1000 {
            if !waits(&last) || Instant::now() > end {
                break;
            }
            std::thread::yield_now();
        }
    }
    if !last.is_exited() {
        let holders = last.exit_holders();
        // A task that a destructor has begun during the exit is spared by it, and may wait
        // for what no step brings any more: the end of the runner cancels it.
        let spared = |holder: &ExitHolder| matches!(holder, ExitHolder::Task(_));
        if !holders.iter().all(spared) {
            world.fail(format!("exit of the last: held by {holders:?}"));
        }
    }
}

/// What is in no one thread's hands, and what that leaves in this OS thread's.
fn drop_piles(world: &Arc<World>) {
    for _ in 0..100 {
        // A destructor of one may put another.
        let contents = (
            world.senders.take_all(),
            world.wakers.take_all(),
            world.aborts.take_all(),
        );
        perform::contained(world, || drop(contents));
        moving::let_go(world);
        for join in world.joins.take_all() {
            perform::contained(world, || drop(join));
        }
        for buffer in world.buffers.take_all() {
            perform::contained(world, || drop(buffer));
        }
    }
    here::let_everything_go(world);
}

/// After all OS threads have ended.
pub fn end_of_world(world: &Arc<World>) {
    end_of_reactors(world);
    clear_shelf(world);
    drop_piles(world);
    for (n, library) in world.libraries.iter().enumerate() {
        let mut last = library.library.thread().build().expect("an id").attach();
        for device in library.devices.take_all() {
            perform::contained(world, || drop(last.enter(|| device.device.unregister())));
            perform::contained(world, || drop(device));
        }
        last.enter(|| moving::unregister(world, n));
        for pool in library.pools.take_all() {
            if !pool.waiters().is_empty() {
                world.fail("iobuf: a request outlived its thread");
            }
            perform::contained(world, || drop(last.enter(|| pool.iobuf.finish())));
        }
        end_of_last(world, last);
        // The last devices' destructors may have spawned.
        drop_piles(world);
        for record in library.threads.take_all() {
            let waiting = record.waiting.load(Ordering::Acquire);
            if waiting > 0 {
                world.fail(format!("message: {waiting} accepted ones are gone"));
            }
            if !record.handle.is_exited() {
                world.fail("exit: a thread that ended does not read EXITED");
            }
        }
        let devices = channel::devices(&library.library);
        if !devices.is_empty() {
            world.fail(format!("device left: {devices:?}"));
        }
        let threads = library.library.thread_count();
        // The app's own.
        let expected = usize::from(n == 0 && world.app.is_some());
        if threads > expected {
            world.fail(format!("threads left: {threads}"));
        }
    }
    perform::contained(world, || drop(here::leave()));
    world.check_values();
}
