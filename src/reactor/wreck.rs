//! The end of a reactor: in order, or because its loop itself unwinds.
//!
//! What is the user's is contained where it is called or dropped, so that the
//! loop does not unwind. If it does nevertheless, whatever the cause, nothing may
//! go on relying on this reactor: it takes nothing more, the app stops, and its
//! threads are ended, so that the waiters for something of theirs are told.

use super::ground::Ground;
use super::group::{Event, Group, Shared};
use super::turn::Reactor;
use crate::thread::ThreadRunner;
use crate::thread::panic::{PanicSource, Payload, contain, payload_text};

/// How often the end of a thread is begun again when a panic has interrupted it:
/// each attempt is rid of what has panicked in the one before.
const ATTEMPTS: usize = 100;

/// The loop of a reactor has panicked.
#[derive(Debug)]
pub(crate) struct ReactorPanicked {
    pub(crate) core: usize,
    pub(crate) message: String,
}

impl Reactor {
    /// Turns until the group is stopped, every thread here has exited, and all
    /// that was sent here has been run.
    ///
    /// # Errors
    ///
    /// If the loop has panicked: that is reported by then, the group is stopped,
    /// and nothing is left here either.
    pub(crate) fn run(mut self) -> Result<(), ReactorPanicked> {
        let group = self.group.clone();
        let here = &group.reactors[self.index];
        let ended = contain(|| self.turn_until_done()).map_err(|payload| {
            // From now on, making a thread for this core is an error.
            here.events.close();
            group.stop();
            let panicked = ReactorPanicked::new(here, &payload);
            group.report_panic(here, PanicSource::Reactor, payload);
            self.fail_threads(&group, here);
            group.end_scheduling(self.index);
            panicked
        });
        // The driver drops what waits for I/O, wakers among it.
        group.drop_contained(here, self);
        ended
    }
}

impl<G: Ground> Reactor<G> {
    /// Ends the threads that are here, or were sent here, and drops the calls
    /// that were not run. The reactor takes nothing new.
    pub(super) fn fail_threads(&mut self, group: &Group, here: &Shared) {
        let dormant = self.dormant.wake_all(group.library.clock().now(), |_| true);
        for hosted in self.threads.drain(..).chain(dormant) {
            end_thread(group, here, hosted.runner);
        }
        self.count_threads();
        let batch = std::mem::take(&mut self.batch);
        batch
            .into_iter()
            .for_each(|event| end_event(group, here, event));
        // SAFETY: this OS thread runs the reactor, the only consumer of its events.
        unsafe { end_events(group, here) }
    }
}

/// Ends what the events of a reactor are for that takes no more.
///
/// # Safety
///
/// The caller is the only consumer of its events.
pub(super) unsafe fn end_events(group: &Group, here: &Shared) {
    loop {
        // SAFETY: by this function's contract.
        match unsafe { here.events.pop() } {
            Some(event) => end_event(group, here, event),
            // SAFETY: as above.
            None if unsafe { here.events.is_drained() } => return,
            // A sender has claimed a place and is about to write it.
            None => std::thread::yield_now(),
        }
    }
}

impl ReactorPanicked {
    fn new(here: &Shared, payload: &Payload) -> Self {
        ReactorPanicked {
            core: here.place.core,
            message: payload_text(&**payload).to_owned(),
        }
    }
}

/// Ends what an event is for.
fn end_event(group: &Group, here: &Shared, event: Event) {
    match event {
        Event::Arrival(thread) => end_thread(group, here, thread.attach()),
        call => group.drop_contained(here, call),
    }
}

/// Ends a thread at once: what lives on it is cancelled, what waits is dropped,
/// and its waiters hear that it has exited.
fn end_thread(group: &Group, here: &Shared, mut runner: ThreadRunner) {
    for _ in 0..ATTEMPTS {
        match contain(|| runner.abandon()) {
            Ok(()) => return group.drop_contained(here, runner),
            Err(payload) => group.report_panic(here, PanicSource::Drop, payload),
        }
    }
    tracing::error!(
        thread = runner.name(),
        "cannot be ended, and is left behind"
    );
    std::mem::forget(runner);
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::sync::{Arc, Mutex, mpsc};

    use futures::executor::block_on;

    use super::*;
    use crate::cpu;
    use crate::io::DriverConfig;
    use crate::reactor::{AdaptivePolling, Lcore, Placement, ReactorMode};
    use crate::task;
    use crate::thread::{CreateError, ThreadLib};

    type Reports = Arc<Mutex<Vec<(String, PanicSource)>>>;

    /// A group of one reactor in poll mode, and what its library reports.
    fn group() -> (Arc<Group>, Reports) {
        let reports = Reports::default();
        let hook = reports.clone();
        let library = ThreadLib::builder()
            .panic_hook(move |panic| {
                let report = (panic.thread.to_owned(), panic.source);
                hook.lock().unwrap().push(report);
            })
            .build();
        let cpu = cpu::available().unwrap().first().unwrap();
        let places = [Lcore { core: 0, cpu }];
        let (mode, polling) = (ReactorMode::Poll, AdaptivePolling::default());
        let group = Group::new(library, &places, mode, polling, DriverConfig::new()).unwrap();
        let placement = Placement(Arc::downgrade(&group));
        group.library.set_framework(Arc::new(placement)).unwrap();
        (group, reports)
    }

    /// Panics when dropped.
    struct Grenade;

    impl Drop for Grenade {
        fn drop(&mut self) {
            std::panic::resume_unwind(Box::new("a destructor"));
        }
    }

    #[test]
    fn who_waits_for_a_thread_of_a_reactor_that_unwinds_is_told() {
        let (group, reports) = group();
        let mut reactor = Reactor::start(group.clone(), 0).unwrap();
        let thread = group.library.thread().create().unwrap();
        let (dropped, drops) = mpsc::channel::<()>();
        let running = thread.spawn_with(async move || {
            let witness = Rc::new(dropped);
            std::future::pending::<()>().await;
            drop(witness);
        });
        reactor.turn();
        let call = thread.call(|| ());
        let exit = thread.exit();
        let (unrun, unruns) = mpsc::channel::<()>();
        thread.send_msg(move || drop(unrun)).unwrap();
        group.send(0, Event::Unwind).unwrap_or_else(|_| panic!());
        let arriving = group.library.thread().create().unwrap();
        let arrives = arriving.call(|| ());
        let grenade = Grenade;
        let call_behind = crate::thread::message::Message::new(move || drop(grenade));
        group
            .send(0, Event::Call(call_behind))
            .unwrap_or_else(|_| panic!());

        let panicked = reactor.run().unwrap_err();
        assert_eq!(
            (panicked.core, &*panicked.message),
            (0, "unwinds as a test asks")
        );
        let reported = std::mem::take(&mut *reports.lock().unwrap());
        let name = || "reactor 0".to_owned();
        assert_eq!(
            reported,
            [(name(), PanicSource::Reactor), (name(), PanicSource::Drop)]
        );
        assert!(block_on(running).is_err());
        assert!(block_on(call).is_err() && block_on(arrives).is_err());
        block_on(exit);
        assert!(drops.recv().is_err() && unruns.recv().is_err(), "dropped");
        assert!(thread.is_exited() && arriving.is_exited());
        assert_eq!(group.library.thread_count(), 0);
        assert!(group.is_stopping());
        let refused = group.library.thread().create();
        assert!(matches!(refused, Err(CreateError::Stopping)));
        assert!(group.send(0, Event::Unwind).is_err());
        assert!(task::block_on(thread.call(|| ())).is_err());
    }

    /// One that is not polled any more, and one that was roused when it happened.
    #[test]
    fn dormant_threads_of_a_reactor_that_unwinds_are_ended() {
        let (group, _) = group();
        let mut reactor = Reactor::start(group.clone(), 0).unwrap();
        let threads = [(); 2].map(|()| group.library.thread().create().unwrap());
        let running = threads
            .each_ref()
            .map(|thread| thread.spawn(std::future::pending::<()>()));
        while reactor.dormant.len() < 2 {
            reactor.turn();
        }
        group.send(0, Event::Unwind).unwrap_or_else(|_| panic!());
        let call = threads[1].call(|| ());
        reactor.run().unwrap_err();
        for task in running {
            assert!(block_on(task).is_err());
        }
        assert!(block_on(call).is_err());
        assert!(threads.iter().all(|thread| thread.is_exited()));
        assert_eq!(group.library.thread_count(), 0);
    }
}
