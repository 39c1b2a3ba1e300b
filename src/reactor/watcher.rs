//! Seeing from outside what a reactor runs, for callbacks that never return: an
//! OS thread of its own that looks now and then, off the reactors' cores where
//! there are others. It ends with its owner.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use super::group::{Group, Shared};
use crate::cpu::{CpuSet, set_current_affinity};
use crate::thread::ThreadLib;
use crate::thread::message::Message;
use crate::thread::stall::{Occupant, StallRecord};

/// The watcher looks no more often, however short the limit.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(1);

/// What a reactor shows to its watcher.
pub(super) struct Watched {
    /// The id of the OS thread, once that runs.
    pub(super) tid: OnceLock<i32>,
    /// The id of the SpdkThread that was polled last.
    polled: AtomicU64,
    /// The event that runs.
    event: StallRecord,
}

impl Watched {
    /// `None` where `library` has no stall limit.
    pub(super) fn new(library: &ThreadLib) -> Option<Self> {
        let event = library.inner.stall_record()?;
        Some(Watched {
            tid: OnceLock::new(),
            polled: AtomicU64::new(0),
            event,
        })
    }

    /// The thread with this id is about to be polled.
    #[inline]
    pub(super) fn polls(&self, thread: u64) {
        self.polled.store(thread, Ordering::Relaxed);
    }
}

pub(super) fn reactor_name(reactor: &Shared) -> String {
    format!("reactor {}", reactor.place.core)
}

impl Group {
    /// Runs an event under watch.
    #[cold]
    pub(super) fn watch_event(
        &self,
        reactor: &Shared,
        watched: &Watched,
        call: Message,
        run: impl FnOnce(Message),
    ) {
        let library = &self.library.inner;
        let event = Occupant::Event(call.vtable());
        let since = library.clock.now();
        watched.event.begin(event, since);
        run(call);
        let ticks = library.clock.now().saturating_sub(since);
        watched.event.clear();
        if ticks >= library.stall_ticks {
            let name = reactor_name(reactor);
            library.report_stall_end(&name, Some(reactor.place.core), event, since, ticks);
        }
    }

    /// Reports what has held a reactor for the stall limit or longer and was not
    /// reported as still running yet; returns how many reactors that are. Any OS
    /// thread.
    pub(super) fn check_stalls(&self) -> usize {
        let stalls = |reactor: &&Shared| {
            let core = reactor.place.core;
            let Some(watched) = &reactor.watched else {
                return false;
            };
            let tid = watched.tid.get().copied();
            let thread = watched.polled.load(Ordering::Relaxed);
            let thread = self.library.thread_by_id(thread);
            // One that has moved is the other reactor's.
            let here = thread.filter(|thread| thread.core() == Some(core));
            let library = &self.library.inner;
            here.is_some_and(|thread| thread.shared.check_stall(tid))
                || library.check_stall(&watched.event, &reactor_name(reactor), Some(core), tid)
        };
        self.reactors.iter().filter(stalls).count()
    }
}

/// The watcher of a group of reactors; it runs until this is dropped.
pub(crate) struct Watcher {
    stop: Arc<Stop>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Stop {
    asked: Mutex<bool>,
    changed: Condvar,
}

impl Watcher {
    /// Looks every half `limit`, on `cpus` if the kernel allows.
    pub(crate) fn start(group: Arc<Group>, limit: Duration, cpus: CpuSet) -> io::Result<Self> {
        let stop = Arc::new(Stop::default());
        let asked = stop.clone();
        let interval = (limit / 2).max(SHORTEST_INTERVAL);
        let thread = std::thread::Builder::new()
            .name("corespun-watch".into())
            .spawn(move || {
                // Its starter may be pinned to a reactor's core.
                if let Err(error) = set_current_affinity(&cpus) {
                    tracing::warn!("the stall watcher stays on its starter's cores: {error}");
                }
                while !asked.wait(interval) {
                    group.check_stalls();
                }
            })?;
        Ok(Watcher {
            stop,
            thread: Some(thread),
        })
    }
}

impl Stop {
    /// Waits for the end, for so long at most; says whether it has come.
    fn wait(&self, interval: Duration) -> bool {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .changed
            .wait_timeout_while(asked, interval, |asked| !*asked);
        let (asked, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *asked
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        *self
            .stop
            .asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.changed.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the stall watcher panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::clock::Clock;
    use crate::cpu;
    use crate::io::DriverConfig;
    use crate::reactor::{AdaptivePolling, Lcore, ReactorMode};
    use crate::thread::{OsThread, Stall};

    /// The reactor that polled a thread last may not be where it is now.
    #[test]
    fn a_stall_is_told_of_the_reactor_that_has_the_thread() {
        let (told, tell) = channel();
        let (clock, time) = Clock::virtual_at(1_000);
        let library = ThreadLib::builder()
            .clock(clock)
            .stall_limit(Duration::from_secs(1))
            .stall_hook(move |stall: &Stall<'_>| {
                let tid = stall.os_thread.as_ref().map(|one: &OsThread| one.tid);
                told.send((stall.core, tid)).unwrap();
            })
            .build();
        let cpu = cpu::available().unwrap().first().unwrap();
        let places = [0, 1].map(|core| Lcore { core, cpu });
        let (mode, polling) = (ReactorMode::Poll, AdaptivePolling::default());
        let driver = DriverConfig::new();
        let group = Group::new(library.clone(), &places, mode, polling, driver).unwrap();
        for (reactor, tid) in group
            .reactors
            .iter()
            .zip([1, nix::unistd::gettid().as_raw()])
        {
            reactor.watched.as_ref().unwrap().tid.set(tid).unwrap();
        }
        let mut runner = library.thread().build().unwrap().attach();
        for reactor in &group.reactors {
            reactor
                .watched
                .as_ref()
                .unwrap()
                .polls(runner.handle().id());
        }
        runner.set_core(Some(1));
        let looks = group.clone();
        let stall = move || {
            assert_eq!(looks.check_stalls(), 0);
            time.advance(1_000);
            assert_eq!(looks.check_stalls(), 1);
            assert_eq!(looks.check_stalls(), 0);
        };
        runner.handle().send_msg(stall).unwrap();
        runner.poll(0, 0);
        let own = nix::unistd::gettid().as_raw();
        assert_eq!(tell.recv(), Ok((Some(1), Some(own))));
        assert_eq!(tell.recv(), Ok((Some(1), None)), "the end");
        assert!(tell.try_recv().is_err());
    }
}
