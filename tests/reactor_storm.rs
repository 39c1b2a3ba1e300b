//! T-X-13: storms of events and messages against a reactor whose mode is switched all
//! the time, and a thread there that is sent to and fro. Everything runs, once, in the
//! order of its sender.
//!
//! A plain program, so that it runs under ThreadSanitizer. For longer:
//!
//! ```text
//! CORESPUN_STRESS_SECONDS=60 cargo test --release --test reactor_storm
//! ```

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use corespun::cpu;
use corespun::reactor::{ReactorMode, Reactors};
use corespun::task::block_on;
use corespun::thread::{SpdkThread, ThreadLib};
use harness::stress::{Dice, number};

const MODES: [ReactorMode; 3] = [
    ReactorMode::Poll,
    ReactorMode::Adaptive,
    ReactorMode::Interrupt,
];

/// What one sender's receivers have seen of it.
#[derive(Default)]
struct Books {
    events: AtomicU64,
    messages: AtomicU64,
}

impl Books {
    fn next(seen: &AtomicU64, number: u64) {
        let before = seen.swap(number + 1, Ordering::Relaxed);
        assert_eq!(before, number, "out of order, lost or twice");
    }
}

/// Sends until told to stop; now and then waits for what it has sent, so that the
/// reactor has nothing to do in between. The result is what it sent.
fn send(reactors: &Reactors, thread: &SpdkThread, mut dice: Dice, over: &AtomicBool) -> u64 {
    let books = Arc::new(Books::default());
    let mut number = 0;
    while !over.load(Ordering::Relaxed) {
        for _ in 0..=dice.below(12) {
            let (event, message) = (books.clone(), books.clone());
            let sent = reactors.send_event(1, move || Books::next(&event.events, number));
            assert!(sent.is_ok(), "{sent:?}");
            thread
                .send_msg(move || Books::next(&message.messages, number))
                .unwrap();
            number += 1;
        }
        let (told, tell) = mpsc::channel();
        match dice.below(2) {
            0 => reactors
                .send_event(1, move || told.send(()).unwrap())
                .unwrap(),
            _ => thread.send_msg(move || told.send(()).unwrap()).unwrap(),
        }
        let woken = tell.recv_timeout(Duration::from_secs(60));
        assert_eq!(woken, Ok(()), "what was sent last is lost");
        if dice.below(4) == 0 {
            std::thread::sleep(Duration::from_micros(dice.below(200)));
        }
    }
    block_on(reactors.call(1, || ())).unwrap();
    block_on(thread.call(|| ())).unwrap();
    assert_eq!(books.events.load(Ordering::Relaxed), number);
    assert_eq!(books.messages.load(Ordering::Relaxed), number);
    number
}

fn main() {
    let seconds = number("CORESPUN_STRESS_SECONDS", 5);
    let seed = number("CORESPUN_STRESS_SEED", u64::from(std::process::id()));
    println!("storms for {seconds} s, seed {seed}");
    let cpus: Vec<_> = cpu::available().unwrap().iter().collect();
    let places = (0..2).map(|core| (core, cpus[core % cpus.len()]));
    let (reactors, seats) = Reactors::builder()
        .lcores(places)
        .build(&ThreadLib::new())
        .unwrap();
    let seats: Vec<_> = seats
        .into_iter()
        .map(|seat| std::thread::spawn(|| seat.run().unwrap()))
        .collect();
    let thread = reactors.thread().create().unwrap();
    let over = AtomicBool::new(false);
    let (switches, moves) = (AtomicU64::new(0), AtomicU64::new(0));
    let sent = std::thread::scope(|scope| {
        let senders = [0, 1].map(|n| {
            let (reactors, thread, over) = (&reactors, &thread, &over);
            scope.spawn(move || send(reactors, thread, Dice::of(seed, n), over))
        });
        scope.spawn(|| {
            let mut dice = Dice::of(seed, 2);
            while !over.load(Ordering::Relaxed) {
                let mode = MODES[dice.below(3) as usize];
                block_on(reactors.set_mode(1, mode)).unwrap();
                assert_eq!(reactors.mode(1), Some(mode));
                switches.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(dice.below(100)));
            }
        });
        scope.spawn(|| {
            let mut dice = Dice::of(seed, 3);
            while !over.load(Ordering::Relaxed) {
                block_on(thread.move_to_core(dice.below(2) as usize)).unwrap();
                moves.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(dice.below(300)));
            }
        });
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end && !senders.iter().any(|sender| sender.is_finished()) {
            std::thread::sleep(Duration::from_millis(10));
        }
        over.store(true, Ordering::Relaxed);
        senders.map(|sender| sender.join().unwrap())
    });
    reactors.stop();
    seats.into_iter().for_each(|seat| seat.join().unwrap());
    let (switches, moves) = (switches.into_inner(), moves.into_inner());
    println!("{sent:?} sent, {switches} switches, {moves} moves");
    assert!(sent.iter().all(|sent| *sent > 0) && switches > 0 && moves > 0);
}
