//! One reactor: the loop of one core, and everything that only its OS thread
//! touches.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::group::{Event, Group, Shared};
use super::idle::Spin;
use super::{ReactorMode, StartError};
use crate::cpu;
use crate::io::{Driver, EnterGuard};
use crate::thread::message::Message;
use crate::thread::panic::PanicSource;
use crate::thread::{ParkedThread, ThreadRunner};

/// Events run in one turn, as SPDK's `SPDK_EVENT_BATCH_SIZE`.
const EVENT_BATCH: usize = 8;

pub(crate) struct Reactor {
    group: Arc<Group>,
    index: usize,
    threads: Vec<ThreadRunner>,
    driver: EnterGuard,
    spin: Spin,
    /// Up to where time is accounted for.
    tick: u64,
    /// The tick at which the last work was done, while there is none.
    waiting_since: Option<u64>,
    /// Every thread here was asked to exit.
    stopping: bool,
    /// Nothing can be sent here any more.
    closed: bool,
}

impl Reactor {
    /// Pins the calling OS thread and makes it the reactor of one core.
    pub(crate) fn start(group: Arc<Group>, index: usize) -> Result<Self, StartError> {
        let shared = &group.reactors[index];
        cpu::pin_current_thread(shared.place.cpu)?;
        let driver = Driver::new(&group.driver, shared.wake.clone()).map_err(|source| {
            StartError::Driver {
                core: shared.place.core,
                source,
            }
        })?;
        let _ = shared.backend.set(driver.backend());
        let spin = Spin::new(group.adaptive);
        let tick = group.library.clock().now();
        Ok(Reactor {
            group,
            index,
            threads: Vec::new(),
            driver: driver.enter(),
            spin,
            tick,
            waiting_since: None,
            stopping: false,
            closed: false,
        })
    }

    /// Runs until the group is stopped, every thread here has exited, and all
    /// that was sent here has been run.
    pub(crate) fn run(mut self) {
        let place = self.shared().place;
        tracing::info!(cpu = place.cpu, "reactor started on core {}", place.core);
        while !self.is_done() {
            self.turn();
        }
    }

    fn is_done(&self) -> bool {
        // SAFETY: a reactor is the only consumer of its events.
        self.closed && self.threads.is_empty() && unsafe { self.shared().events.is_drained() }
    }

    /// One turn of the loop.
    fn turn(&mut self) {
        let start = self.tick;
        let worked = self.run_events() | self.poll_threads() | self.run_io();
        if self.group.is_stopping() {
            self.stop();
        }
        if worked {
            self.end_wait(start);
        } else if !self.is_done() {
            self.rest();
        }
    }

    fn shared(&self) -> &Shared {
        &self.group.reactors[self.index]
    }

    fn run_events(&mut self) -> bool {
        for ran in 0..EVENT_BATCH {
            // SAFETY: a reactor is the only consumer of its events.
            let Some(event) = (unsafe { self.shared().events.pop() }) else {
                return ran > 0;
            };
            match event {
                Event::Arrival(thread) => {
                    self.arrive(thread);
                }
                Event::Call(call) => self.run_call(call),
            }
        }
        true
    }

    fn run_call(&self, call: Message) {
        if let Err(payload) = call.run_contained() {
            let name = format!("reactor {}", self.shared().place.core);
            let library = &self.group.library.inner;
            library.report_panic(&name, PanicSource::Message, None, payload);
        }
    }

    /// Takes a thread in, to be polled from now on.
    pub(crate) fn arrive(&mut self, thread: ParkedThread) -> &mut ThreadRunner {
        let mut runner = thread.attach();
        runner.set_host(Some(&self.shared().sleeper));
        self.threads.push(runner);
        self.count_threads();
        self.threads.last_mut().expect("it was pushed")
    }

    fn count_threads(&self) {
        let count = self.threads.len();
        self.shared().threads.store(count, Ordering::Relaxed);
    }

    /// Each thread once, in the order of arrival. Time is chained from poll to
    /// poll, so that none of it goes unaccounted for.
    fn poll_threads(&mut self) -> bool {
        let mut worked = false;
        let mut index = 0;
        while let Some(runner) = self.threads.get_mut(index) {
            let busy = runner.poll(0, self.tick).is_busy();
            let end = runner.last_tick();
            let exited = runner.is_exited();
            self.charge(end, busy);
            worked |= busy;
            if exited {
                drop(self.threads.remove(index));
                self.count_threads();
            } else {
                index += 1;
            }
        }
        worked
    }

    fn run_io(&mut self) -> bool {
        let completed = self.driver.driver().poll() > 0;
        if completed || self.threads.is_empty() {
            let now = self.group.library.clock().now();
            self.charge(now, completed);
        }
        completed
    }

    /// Accounts for the time up to `now`.
    fn charge(&mut self, now: u64, busy: bool) {
        let shared = self.shared();
        let total: &AtomicU64 = if busy {
            &shared.busy_ticks
        } else {
            &shared.idle_ticks
        };
        let spent = now.saturating_sub(self.tick);
        // This OS thread is the only writer.
        total.store(
            total.load(Ordering::Relaxed).wrapping_add(spent),
            Ordering::Relaxed,
        );
        self.tick = now;
    }

    /// Ends the wait, if there was one, with a turn that began at `start` and
    /// found work: how long that took is no part of the wait.
    fn end_wait(&mut self, start: u64) {
        if let Some(since) = self.waiting_since.take() {
            let waited = start.saturating_sub(since);
            let clock = self.group.library.clock();
            self.spin.adjust(clock.duration_from(waited));
        }
    }

    /// What a turn without work ends with: another one soon, or a sleep.
    fn rest(&mut self) {
        let since = *self.waiting_since.get_or_insert(self.tick);
        let mode = self.shared().mode();
        if self.has_work() {
            return self.pause();
        }
        match mode {
            ReactorMode::Poll if !self.group.oversubscribed => self.pause(),
            ReactorMode::Adaptive if self.spins(since) => {
                self.spin.give_way(self.group.library.clock());
            }
            _ => self.sleep(mode),
        }
    }

    fn pause(&self) {
        if self.group.oversubscribed {
            std::thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
    }

    /// Whether a wait that began at tick `since` is still to be spun.
    fn spins(&self, since: u64) -> bool {
        let clock = self.group.library.clock();
        let limit = clock.ticks_from(self.spin.duration(self.tick));
        !self.group.oversubscribed && self.tick.saturating_sub(since) < limit
    }

    /// Sleeps until something arrives, an operation completes, the mode is no
    /// longer the one that led here, or the earliest timer of the threads here
    /// is due.
    fn sleep(&mut self, mode: ReactorMode) {
        let clock = self.group.library.clock();
        let deadline = self.threads.iter().filter_map(|t| t.next_deadline()).min();
        let timeout = deadline.map(|tick| clock.duration_from(tick.saturating_sub(clock.now())));
        let sleeper = &self.shared().sleeper;
        sleeper.sleep_unless(
            || {
                self.has_work()
                    || self.group.is_stopping() != self.stopping
                    || self.shared().mode() != mode
            },
            // Tasks that the completions wake are this reactor's own: it is awake
            // by then, and nobody has to write its eventfd.
            || {
                let driver = self.driver.driver();
                driver.park_then(timeout, || sleeper.retract())
            },
        );
        let now = clock.now();
        self.charge(now, false);
    }

    /// Whether the next turn would find something to run, timers and I/O apart.
    fn has_work(&self) -> bool {
        // SAFETY: a reactor is the only consumer of its events.
        (unsafe { self.shared().events.has_messages() })
            || self.threads.iter().any(ThreadRunner::needs_poll)
    }

    /// One step of the end: asks every thread that was not asked yet to exit;
    /// once all have, refuses what is sent from then on. A thread that was on
    /// its way here before that still arrives, runs its messages, and exits.
    fn stop(&mut self) {
        self.stopping = true;
        for runner in &mut self.threads {
            if runner.is_running() {
                tracing::debug!(thread = runner.name(), "exits because the app stops");
                drop(runner.exit());
            }
        }
        if self.threads.is_empty() && !self.closed {
            self.closed = true;
            self.shared().events.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use futures::AsyncReadExt;

    use super::*;
    use crate::io::DriverConfig;
    use crate::net::UnixStream;
    use crate::reactor::{AdaptivePolling, Place};
    use crate::thread::ThreadLib;

    #[test]
    fn a_completion_that_ends_a_sleep_writes_no_eventfd() {
        let cpu = cpu::available().unwrap().first().unwrap();
        let group = Group::new(
            ThreadLib::new(),
            &[Place { core: cpu, cpu }],
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
            let written = reactor.shared().wake.read();
            reactor.turn();
            assert!(task.is_finished());
            written
        });
        while !shared.reactors[0].sleeper.is_asleep() {
            std::thread::yield_now();
        }
        peer.write_all(b"x").unwrap();
        let written = reactor.join().unwrap();
        assert_eq!(written, Err(nix::errno::Errno::EAGAIN));
    }
}
