//! Small apps for tests: reactors on however many processors there are, and a
//! guard against hangs.

use std::time::Duration;

use corespun::app::{App, AppBuilder};
use corespun::cpu;
use corespun::reactor::{ReactorMode, ReactorStats, Reactors};

use crate::must_return;

/// An app with `count` reactors, numbered from 0, on the processors there are.
/// It leaves signals alone: the tests of one binary share a process.
pub fn app(count: usize, mode: ReactorMode) -> AppBuilder {
    let cpus: Vec<_> = cpu::available().unwrap().iter().collect();
    App::builder()
        .lcores((0..count).map(|core| (core, cpus[core % cpus.len()])))
        .mode(mode)
        .handle_signals(false)
}

/// Runs `body` in an OS thread of its own and fails if it hangs, which is what a lost wake
/// looks like.
#[track_caller]
pub fn must_end<R: Send + 'static>(body: impl FnOnce() -> R + Send + 'static) -> R {
    must_return("the test", body)
}

/// What the reactor on `core` is doing.
pub fn stats(reactors: &Reactors, core: usize) -> ReactorStats {
    let mut all = reactors.stats();
    let index = all.iter().position(|stats| stats.core == core).unwrap();
    all.swap_remove(index)
}

/// Waits, in an OS thread that is no reactor, until `happened` says so.
pub fn wait_until(mut happened: impl FnMut() -> bool) {
    while !happened() {
        std::thread::sleep(Duration::from_millis(1));
    }
}
