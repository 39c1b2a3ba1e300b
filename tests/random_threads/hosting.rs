//! SpdkThreads that the program's OS threads poll, enter, move and drop.

use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use corespun::thread::{SpdkThread, set_interrupt_mode};
use nix::poll::{PollFd, PollFlags, PollTimeout};

use crate::books::{NOWHERE, Order, Record, World};
use crate::here::{
    HERE, Hosted, beside, choose_hosted, hosted, let_go, put_back, site, take_hosted, with_hosted,
};
use crate::moving;
use crate::perform::perform_all;
use crate::{Kind, Step};

/// SpdkThreads that one OS thread polls.
const HOSTED: usize = 4;
/// What a poll runs at most, as SPDK.
const BATCH: usize = 8;
/// Making, polling and moving threads. Whether the step is one of these.
pub fn act(world: &Arc<World>, step: &Arc<Step>) -> bool {
    let Step { a, b, .. } = **step;
    match step.kind {
        Kind::Host => host(world, a),
        Kind::Poll => with_hosted(a, |hosted| poll_hosted(world, hosted, b % 10)),
        Kind::Settle => {
            for slot in 0..20 {
                with_hosted(slot, |hosted| poll_hosted(world, hosted, 0));
            }
        }
        Kind::Enter => with_hosted(a, |hosted| {
            hosted.runner.enter(|| perform_all(world, &step.then));
        }),
        Kind::Beside => {
            let record = hosted(|hosted| choose_hosted(hosted, a));
            if SpdkThread::current().is_none() {
                beside(record, || perform_all(world, &step.then));
            }
        }
        Kind::Park => park(world, a),
        Kind::Leave => {
            with_hosted(a, |hosted| {
                let_go(world, hosted);
                for _ in 0..12 {
                    poll_hosted(world, hosted, 0);
                }
            });
            // The same again: it was put back to where it was.
            park(world, a);
        }
        Kind::Attach => drop(attach(world, a)),
        Kind::DropRunner => {
            if let Some(hosted) = take_hosted(a) {
                drop_hosted(world, hosted);
            }
        }
        Kind::DropParked => {
            if let Some((record, parked)) = world.parked.take(a) {
                record.host.store(site(), Ordering::Relaxed);
                record.abandoned.store(true, Ordering::Release);
                drop_runner(world, parked);
                world.unended.fetch_sub(1, Ordering::AcqRel);
            }
        }
        Kind::Advance => {
            let library = &world.libraries[a % 2];
            if let Some(time) = &library.time {
                time.advance(b as u64 % 4);
            }
        }
        Kind::ExitRunner => with_hosted(a, |hosted| drop(hosted.runner.exit())),
        Kind::Descriptor => with_hosted(a, |hosted| {
            let fd = hosted.runner.interrupt_fd().expect("descriptors are there");
            hosted.watched = Some(fd.try_clone_to_owned().expect("descriptors are there"));
        }),
        Kind::Mode => with_hosted(a, |hosted| {
            let set = hosted.runner.set_interrupt_mode(!b.is_multiple_of(4));
            set.expect("descriptors are there");
        }),
        Kind::ModeInside => drop(set_interrupt_mode(b.is_multiple_of(2))),
        _ => return false,
    }
    true
}
fn host(world: &Arc<World>, a: usize) {
    let library = &world.libraries[a % 2];
    let placed = a.is_multiple_of(2) && world.app.is_some();
    if !placed && hosted(<[Hosted]>::len) >= HOSTED {
        return;
    }
    let builder = library.library.thread().ring(4).message_limit(24);
    let builder = builder.exit_timeout(world.time(4));
    let record = |handle: SpdkThread, host| {
        Arc::new(Record {
            number: (a % 2) as u64 * 1_000_000 + handle.id(),
            library: a % 2,
            handle,
            host: AtomicUsize::new(host),
            placed,
            abandoned: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            order: Order::default(),
            ran: AtomicUsize::new(0),
        })
    };
    if placed {
        if library.threads.len() < 8 {
            let handle = builder.create().expect("the app has not been stopped");
            library.threads.push(record(handle, NOWHERE));
        }
        return;
    }
    let runner = builder.build().expect("ids do not run out").attach();
    let record = record(runner.handle(), site());
    world.unended.fetch_add(1, Ordering::AcqRel);
    library.threads.push(record.clone());
    let hosted = Hosted {
        record,
        runner,
        watched: None,
        misled: 0,
        ended: false,
    };
    put_back(hosted, usize::MAX - 1);
}

pub fn poll_hosted(world: &Arc<World>, hosted: &mut Hosted, max: usize) {
    hosted.record.ran.store(0, Ordering::Relaxed);
    let polled = catch_unwind(AssertUnwindSafe(|| hosted.runner.poll(max, 0)));
    if polled.is_err() {
        world.fail("poll: unwound");
    }
    if hosted.record.ran.load(Ordering::Relaxed) > BATCH && SpdkThread::current().is_none() {
        world.fail("poll: more messages than a batch");
    }
    if !hosted.ended && hosted.runner.is_exited() {
        hosted.ended = true;
        world.unended.fetch_sub(1, Ordering::AcqRel);
    }
    check_quiet(world, hosted);
}

fn readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    nix::poll::poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Each thread here that is waited for by its descriptor, if nobody else is about
/// to change that.
pub fn check_descriptors(world: &World) {
    HERE.with_borrow(|here| {
        for hosted in &here.hosted {
            if let Some(fd) = &hosted.watched
                && hosted.runner.is_in_interrupt_mode()
                && hosted.runner.needs_poll()
                && !readable(fd.as_fd())
                // A sender may be between its message and its notice.
                && world.exact
            {
                world.fail("interrupt_fd: not readable, and the thread needs a poll");
            }
        }
    });
}

/// After polls, a thread's descriptor is readable only if there is something to do;
/// one that ended in what the end of a poll does may find it so once.
fn check_quiet(world: &World, hosted: &mut Hosted) {
    let Some(fd) = &hosted.watched else {
        return;
    };
    let interrupts = HERE.with_borrow(|here| {
        let held = here.holdings.get(&hosted.record.number);
        held.is_some_and(|held| !held.interrupts.is_empty())
    });
    let clock = world.libraries[hosted.record.library].library.clock();
    let due = hosted
        .runner
        .next_deadline()
        .is_some_and(|at| at <= clock.now());
    let misled = world.exact
        && !interrupts
        && !due
        && hosted.runner.is_in_interrupt_mode()
        && SpdkThread::current().is_none()
        && !hosted.runner.needs_poll()
        && readable(fd.as_fd());
    hosted.misled = if misled { hosted.misled + 1 } else { 0 };
    if hosted.misled > 1 {
        world.fail("interrupt_fd: readable, and the thread needs no poll");
    }
}

fn park(world: &Arc<World>, slot: usize) {
    let len = hosted(<[Hosted]>::len);
    if len == 0 {
        return;
    }
    let Some(hosted) = take_hosted(slot % len) else {
        return;
    };
    if hosted.ended {
        return put_back(hosted, slot % len);
    }
    let Hosted {
        record,
        runner,
        watched,
        misled,
        ended,
    } = hosted;
    match runner.park() {
        Ok(parked) => {
            record.host.store(NOWHERE, Ordering::Relaxed);
            world.parked.push((record, parked));
        }
        Err(runner) => put_back(
            Hosted {
                record,
                runner,
                watched,
                misled,
                ended,
            },
            slot % len,
        ),
    }
}

/// Whether there was one.
pub fn attach(world: &Arc<World>, n: usize) -> bool {
    let Some((record, parked)) = world.parked.take(n) else {
        return false;
    };
    record.host.store(site(), Ordering::Relaxed);
    let hosted = Hosted {
        record,
        runner: parked.attach(),
        watched: None,
        misled: 0,
        ended: false,
    };
    put_back(hosted, usize::MAX - 1);
    true
}

/// In which everything that may panic is contained.
fn drop_runner<T>(world: &World, runner: T) {
    if catch_unwind(AssertUnwindSafe(|| drop(runner))).is_err() {
        world.fail("runner: its drop unwound");
    }
}

pub fn drop_hosted(world: &Arc<World>, hosted: Hosted) {
    if !hosted.runner.is_exited() {
        hosted.record.abandoned.store(true, Ordering::Release);
    }
    let number = hosted.record.number;
    let Hosted { runner, ended, .. } = hosted;
    drop_runner(world, runner);
    if !ended {
        world.unended.fetch_sub(1, Ordering::AcqRel);
    }
    let held = HERE.with_borrow_mut(|here| here.holdings.remove(&number));
    drop(held);
}

/// At the end, when all is quiet: what was accepted has arrived, and nobody waits
/// beside free buffers. Runs nothing of the program.
pub fn check_arrived(world: &Arc<World>) {
    HERE.with_borrow_mut(|here| {
        for hosted in &here.hosted {
            let waiting = hosted.record.waiting.load(Ordering::Acquire);
            if waiting > 0 && !hosted.runner.is_exited() {
                world.fail("message: does not arrive");
            }
            let held = here.holdings.get_mut(&hosted.record.number);
            if let Some(held) = held.filter(|_| hosted.runner.is_running()) {
                if held.bells.iter().any(|bell| bell.sleeps()) {
                    world.fail("notify: one that was notified sleeps");
                }
                if held.slots.iter().any(|slots| slots.sleeps()) {
                    world.fail("semaphore: one sleeps beside free permits");
                }
                for receiver in &mut held.receivers {
                    while let Ok(item) = receiver.receiver.try_recv() {
                        receiver.book.received.fetch_add(1, Ordering::AcqRel);
                        held.items.push(item);
                    }
                    receiver.check_all(world, "mpsc: an accepted value does not arrive");
                }
            }
        }
    });
    for library in &world.libraries {
        // Those of threads whose exit was forced wait for ever.
        let live = library.threads.with(|threads| {
            let live = threads.iter().filter(|record| !record.handle.is_exited());
            live.map(|record| record.number).collect::<Vec<_>>()
        });
        library.pools.with(|pools| {
            for pool in pools {
                let waits = pool.waiters().iter().any(|thread| live.contains(thread));
                if waits && pool.free() > 0 && world.parked.len() == 0 {
                    world.fail("iobuf: a request waits beside a free buffer");
                }
            }
        });
    }
}

pub fn let_go_and_exit(world: &Arc<World>) {
    moving::let_go(world);
    for slot in 0..hosted(<[Hosted]>::len) {
        with_hosted(slot, |hosted| {
            // Some are held to the end of their patience.
            if !hosted.record.number.is_multiple_of(3) {
                let_go(world, hosted);
            }
            drop(hosted.runner.exit());
        });
    }
}
