//! Reactors that are turned by hand.

use std::io::Write;

use futures::AsyncReadExt;

use super::*;
use crate::clock::Clock;
use crate::cpu::CpuSet;
use crate::io::DriverConfig;
use crate::net::UnixStream;
use crate::reactor::{AdaptivePolling, Lcore, Placement, ReactorStats};
use crate::thread::{Activity, Poller, SpdkThread, ThreadLib};

/// What a move meets when the app stops between its look at that and its
/// arrival.
#[test]
fn a_thread_that_the_other_reactor_refuses_stays_whole() {
    let cpu = cpu::available().unwrap().first().unwrap();
    let places = [0, 1].map(|core| Lcore { core, cpu });
    let (mode, polling) = (ReactorMode::Poll, AdaptivePolling::default());
    let library = ThreadLib::new();
    let group = Group::new(library, &places, mode, polling, DriverConfig::new()).unwrap();
    let placement = Placement(Arc::downgrade(&group));
    group.library.set_framework(Arc::new(placement)).unwrap();
    group.reactors[1].events.close();
    let mut reactor = Reactor::start(group.clone(), 0).unwrap();
    let thread = group.library.thread().build().unwrap();
    let handle = thread.handle();
    let there = CpuSet::single(1);
    let moved = reactor.arrive(thread).enter(|| handle.set_cpumask(&there));
    moved.unwrap();
    let (done, ended) = std::sync::mpsc::channel();
    handle.send_msg(move || done.send(1).unwrap()).unwrap();
    reactor.turn();
    assert_eq!(ended.try_recv(), Ok(1));
    assert_eq!(reactor.threads.len(), 1);
    let (done, ended) = std::sync::mpsc::channel();
    handle.send_msg(move || done.send(2).unwrap()).unwrap();
    reactor.turn();
    assert_eq!(ended.try_recv(), Ok(2));
    group.stop();
    reactor.run().unwrap();
    assert!(handle.is_exited());
}

/// T-RE-08: one turn after the other, to the tick; the last part of it in a
/// reactor without any thread.
#[test]
fn every_tick_is_somebodys_and_without_threads_it_is_idle() {
    let (clock, hand) = Clock::virtual_at(1_000_000);
    hand.set(100);
    let cpu = cpu::available().unwrap().first().unwrap();
    let places = [Lcore { core: 0, cpu }];
    let (mode, polling) = (ReactorMode::Poll, AdaptivePolling::default());
    let library = ThreadLib::builder().clock(clock).build();
    let group = Group::new(library, &places, mode, polling, DriverConfig::new()).unwrap();
    let mut reactor = Reactor::start(group.clone(), 0).unwrap();
    let hand = Arc::new(hand);
    // A thread with a poller that takes so many ticks in each of its runs.
    let add = |reactor: &mut Reactor, plan: &'static [(u64, Activity)]| {
        let thread = group.library.thread().build().unwrap();
        let handle = thread.handle();
        let mut runs = plan.iter();
        let hand = hand.clone();
        let run = move || match runs.next() {
            Some(&(ticks, activity)) => {
                hand.advance(ticks);
                activity
            }
            None => Activity::Ignored,
        };
        let poller = reactor.arrive(thread).enter(|| Poller::active(run));
        (handle, poller.unwrap())
    };
    let spent = |thread: &SpdkThread| {
        let stats = thread.stats();
        (thread.last_tick(), stats.busy_ticks, stats.idle_ticks)
    };
    let total = || {
        let stats = ReactorStats::of(&group.reactors[0], 0);
        (stats.busy_ticks, stats.idle_ticks, hand.now())
    };
    let (first, poller1) = add(
        &mut reactor,
        &[(100, Activity::Busy), (200, Activity::Idle)],
    );
    let (second, poller2) = add(
        &mut reactor,
        &[(300, Activity::Idle), (400, Activity::Busy)],
    );
    reactor.turn();
    assert_eq!(spent(&first), (200, 100, 0));
    assert_eq!(spent(&second), (500, 0, 300));
    assert_eq!(total(), (100, 300, 500));
    reactor.turn();
    assert_eq!(spent(&first), (700, 100, 200));
    assert_eq!(spent(&second), (1100, 400, 300));
    assert_eq!(total(), (500, 500, 1100));
    drop((poller1, poller2, first.exit(), second.exit()));
    while !reactor.threads.is_empty() {
        reactor.turn();
    }
    assert_eq!(total(), (500, 500, 1100), "their exits took no time");
    for _ in 0..9 {
        hand.advance(100);
        reactor.turn();
    }
    assert_eq!(total(), (500, 1400, 2000));
    let (third, poller3) = add(&mut reactor, &[(100, Activity::Busy)]);
    reactor.turn();
    assert_eq!(spent(&third), (2100, 100, 0));
    assert_eq!(total(), (600, 1400, 2100));
    drop((poller3, third.exit()));
    group.stop();
    reactor.run().unwrap();
}

/// A reader during the call that rouses the thread, and one afterwards: the time
/// of the call was idle, and is not counted again as that of its next poll.
#[test]
fn a_dormant_thread_is_idle_until_it_is_roused() {
    let (clock, hand) = Clock::virtual_at(1_000_000);
    hand.set(100);
    let cpu = cpu::available().unwrap().first().unwrap();
    let places = [Lcore { core: 0, cpu }];
    let (mode, polling) = (ReactorMode::Poll, AdaptivePolling::default());
    let library = ThreadLib::builder().clock(clock).build();
    let group = Group::new(library, &places, mode, polling, DriverConfig::new()).unwrap();
    let mut reactor = Reactor::start(group.clone(), 0).unwrap();
    let thread = group.library.thread().build().unwrap();
    let thread = reactor.arrive(thread).handle();
    while reactor.dormant.is_empty() {
        reactor.turn();
        hand.advance(1);
    }
    let begun = (hand.now(), thread.stats());
    let hand = Arc::new(hand);
    let (during, reads) = std::sync::mpsc::channel();
    let (sleeper, time) = (thread.clone(), hand.clone());
    let call = Event::Call(Message::new(move || {
        time.advance(5_000);
        during.send(sleeper.stats().idle_ticks).unwrap();
        sleeper.send_msg(move || _ = time.advance(70)).unwrap();
    }));
    group.send(0, call).unwrap_or_else(|_| panic!());
    // The turn of the call, and the next, which hears that it has roused the thread.
    reactor.turn();
    reactor.turn();
    let during = reads.recv().unwrap();
    assert_eq!(during - begun.1.idle_ticks, hand.now() - 70 - begun.0);
    let after = thread.stats();
    assert_eq!(after.idle_ticks, during);
    assert_eq!(after.busy_ticks - begun.1.busy_ticks, 70);
    drop(thread.exit());
    group.stop();
    reactor.run().unwrap();
}

/// G12: introspection never stops the loops.
#[test]
fn a_reader_of_the_keeper_that_takes_its_time_holds_nobody_up() {
    let cpu = cpu::available().unwrap().first().unwrap();
    let places = [Lcore { core: 0, cpu }];
    let (mode, polling) = (ReactorMode::Interrupt, AdaptivePolling::default());
    let library = ThreadLib::new();
    let group = Group::new(library, &places, mode, polling, DriverConfig::new()).unwrap();
    let shared = group.clone();
    let (turned, turns) = std::sync::mpsc::channel();
    let reading = shared.reactors[0].kept_awake_by.read_for_long();
    let reactor = std::thread::spawn(move || {
        let mut reactor = Reactor::start(group.clone(), 0).unwrap();
        let thread = group.library.thread().name("busy").build().unwrap();
        let poller = reactor.arrive(thread).enter(|| Poller::active(|| false));
        reactor.turn();
        turned.send(()).unwrap();
        while group.reactors[0].kept_awake_by.get().is_none() {
            reactor.turn();
        }
        drop(poller);
    });
    let turned = turns.recv_timeout(std::time::Duration::from_secs(60));
    assert!(turned.is_ok(), "the loop waits for its reader");
    drop(reading);
    reactor.join().unwrap();
    let told = shared.reactors[0].kept_awake_by.get().unwrap();
    assert_eq!(told.thread, "busy");
}

#[test]
fn a_completion_that_ends_a_sleep_writes_no_eventfd() {
    let cpu = cpu::available().unwrap().first().unwrap();
    let group = Group::new(
        ThreadLib::new(),
        &[Lcore { core: cpu, cpu }],
        ReactorMode::Interrupt,
        AdaptivePolling::default(),
        DriverConfig::new(),
    )
    .unwrap();
    let (mut peer, stream) = std::os::unix::net::UnixStream::pair().unwrap();
    let shared = group.clone();
    let reactor = std::thread::spawn(move || {
        let mut reactor = Reactor::start(group.clone(), 0).unwrap();
        let thread = group.library.thread().build().unwrap();
        let task = reactor.arrive(thread).enter(|| {
            crate::task::spawn_local(async move {
                let mut stream = UnixStream::from_std(stream).unwrap();
                stream.read_exact(&mut [0]).await.unwrap();
            })
        });
        // The turn that polls the task, and the one that sleeps until the
        // byte comes and wakes the task.
        reactor.turn();
        assert!(!task.is_finished());
        reactor.turn();
        let written = reactor.shared().wake.as_ref().unwrap().drain();
        reactor.turn();
        assert!(task.is_finished());
        written
    });
    while !shared.reactors[0].sleeper.is_asleep() {
        std::thread::yield_now();
    }
    peer.write_all(b"x").unwrap();
    let written = reactor.join().unwrap();
    assert!(!written);
}
