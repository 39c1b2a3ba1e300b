//! Models of a poller that moves with its thread against its handle, which is on
//! another OS thread, run by loom over every interleaving within a bound of
//! preemptions: real SpdkThreads and mailboxes.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;

use super::SendPoller;
use crate::clock::Clock;
use crate::thread::{ParkedThread, ThreadLib};

fn model(preemptions: usize, f: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(f);
}

/// Says that the callback runs, which no two do at a time, and that it was dropped.
struct Witness {
    runs: Arc<AtomicBool>,
    drops: Arc<AtomicUsize>,
}

impl Witness {
    fn run(&self) {
        assert!(
            !self.runs.swap(true, Ordering::Relaxed),
            "run twice at once"
        );
        self.runs.store(false, Ordering::Relaxed);
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.run();
        self.drops.fetch_add(1, Ordering::Relaxed);
    }
}

/// A parked thread with a poller, its handle, and how often the callback was dropped.
fn polled() -> (ParkedThread, SendPoller, Arc<AtomicUsize>) {
    let clock = Clock::virtual_at(1_000_000).0;
    let library = ThreadLib::builder().clock(clock).build();
    let mut runner = library.thread().ring(2).build().unwrap().attach();
    let drops = Arc::new(AtomicUsize::new(0));
    let witness = Witness {
        runs: Arc::new(AtomicBool::new(false)),
        drops: drops.clone(),
    };
    let poller = runner.enter(|| SendPoller::active(move || witness.run()).unwrap());
    (runner.park().unwrap(), poller, drops)
}

/// The thread is polled here, moves, and is polled there; meanwhile the handle is
/// dropped. The poller ends at the latest with what was sent before the last poll.
#[test]
fn loom_a_handle_dropped_against_a_move_ends_the_poller_once() {
    model(3, || {
        let (parked, poller, drops) = polled();
        let dropper = thread::spawn(move || drop(poller));
        let mover = thread::spawn(move || {
            let mut runner = parked.attach();
            runner.poll(0, 1);
            runner.park().unwrap()
        });
        let mut runner = mover.join().unwrap().attach();
        runner.poll(0, 1);
        dropper.join().unwrap();
        runner.poll(0, 1);
        assert_eq!(drops.load(Ordering::Relaxed), 1);
        assert!(!runner.has_pollers());
    });
}

/// Against the end of the thread: whichever comes first, the callback goes once,
/// before the thread has exited.
#[test]
fn loom_a_handle_dropped_against_the_end_of_its_thread_is_no_use_after_it() {
    model(3, || {
        let (parked, poller, drops) = polled();
        let handle = parked.handle();
        let user = thread::spawn(move || {
            poller.pause();
            drop(poller);
        });
        let mut runner = parked.attach();
        runner.poll(0, 1);
        drop(runner);
        assert!(handle.is_exited());
        assert_eq!(drops.load(Ordering::Relaxed), 1);
        user.join().unwrap();
        assert_eq!(drops.load(Ordering::Relaxed), 1);
    });
}
