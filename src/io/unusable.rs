//! A driver that cannot be used: the kernel serves it no longer, or this process is a forked child of
//! the one that made it.
//!
//! New operations are refused with an error that says which (`Core::check_current`). What was in
//! flight differs. Where the kernel serves no longer, waits for readiness and operations it has not
//! seen end with an error; it may yet write to the buffers of the others, so those stay pending, and
//! their buffers are kept, in the end for ever. Helper threads go on. In a child nothing is in flight:
//! the kernel works for the parent, in the parent's memory. The child's copies are let go without
//! touching what is shared.

use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::config::Backend;
use super::op::{Completion, Effect, Sink, Slot};
use super::state::{Core, Engine, State};
use super::table::Key;
use super::turn::Turn;

/// How an operation ends that no driver performs.
pub(super) const CANCELLED: Completion = Completion {
    result: -libc::ECANCELED,
    flags: 0,
};

impl Core {
    /// Whether this process is a child of the one that made the driver.
    pub(super) fn is_forked(&self) -> bool {
        !self.mark.is_set() && self.mark.is_forked()
    }

    /// Why the driver cannot be used, if it cannot.
    pub(super) fn failure(&self) -> Option<io::Error> {
        if self.mark.is_set() {
            return None;
        }
        if self.mark.is_forked() {
            return Some(io::Error::other(
                "this I/O driver is that of the parent process: after a fork, exec, or make a Driver \
                 of the child's own",
            ));
        }
        let (backend, errno) = self.lost.get()?;
        let call = match backend {
            Backend::IoUring => "io_uring_enter",
            Backend::Epoll => "epoll_wait",
        };
        let errno = io::Error::from_raw_os_error(errno);
        Some(io::Error::new(
            errno.kind(),
            format!("the kernel refuses this I/O driver its {call} from now on: {errno}"),
        ))
    }

    /// The kernel has refused to serve the engine, for good.
    #[cold]
    pub(super) fn lose(&self, engine: &mut Engine, sink: &mut Sink<'_>, error: &io::Error) {
        let backend = match engine {
            Engine::Uring(_) => Backend::IoUring,
            Engine::Epoll(_) | Engine::Closed => Backend::Epoll,
        };
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        self.lost.set(Some((backend, errno)));
        self.mark.clear();
        match engine {
            Engine::Uring(uring) => {
                let watched = sink.slots.iter().filter(|(_, slot)| is_watch(slot));
                let watched: Vec<Key> = watched.map(|(key, _)| key).collect();
                // Some are in both lists.
                for key in uring.take_unsubmitted().chain(watched) {
                    if sink.slots.get_mut(key).is_some_and(|slot| is_running(slot)) {
                        sink.complete(key, CANCELLED, false);
                    }
                }
            }
            Engine::Epoll(epoll) => sink.finished += mem::take(&mut epoll.waiting),
            Engine::Closed => {}
        }
        sink.sources.wake_all(sink.effects);
        let in_flight = self.in_flight().saturating_sub(sink.finished);
        tracing::error!(%error, in_flight, "the kernel no longer serves the {backend} driver of this OS thread");
    }

    /// What a turn comes to. Helper threads and timers do not need the kernel's service.
    #[cold]
    pub(super) fn unusable_turn(
        &self,
        turn: Turn,
        state: &mut State,
        effects: &mut Vec<Effect>,
    ) -> (usize, usize) {
        if self.mark.is_forked() {
            if let Turn::Park(limit) = turn {
                // The eventfd that would end it is the parent's too.
                let short = Duration::from_millis(10);
                std::thread::sleep(limit.map_or(short, |limit| limit.min(short)));
            }
            return (0, 0);
        }
        let State {
            slots,
            sources,
            blocking,
            engine,
        } = state;
        let mut sink = Sink {
            slots,
            sources,
            effects,
            reaped: 0,
            finished: 0,
        };
        blocking.reap(&mut sink);
        match engine {
            Engine::Uring(uring) => uring.reap(&mut sink),
            // It waits for no readiness, so this enters no set.
            Engine::Epoll(epoll) => _ = epoll.poll(&mut sink),
            Engine::Closed => {}
        }
        if let Turn::Park(limit) = turn {
            if sink.reaped == 0 && blocking.announce_sleep() {
                // AIO's results would not end it.
                let most = Duration::from_millis(100);
                let limit = TimeSpec::from(limit.map_or(most, |limit| limit.min(most)));
                let wake = PollFd::new(self.wake.as_fd(), PollFlags::POLLIN);
                let _ = ppoll(&mut [wake], Some(limit), None);
            }
            blocking.retract();
            self.wake.drain();
            blocking.reap(&mut sink);
        }
        (sink.reaped, sink.finished)
    }

    /// Lets go of the engine of a driver that cannot be used.
    pub(super) fn drop_unusable(&self, state: &mut State, effects: &mut Vec<Effect>) {
        let State {
            slots,
            sources,
            blocking,
            engine,
        } = state;
        if self.mark.is_forked() {
            blocking.leave_to_parent();
            match mem::replace(engine, Engine::Closed) {
                Engine::Uring(uring) => uring.leave_to_parent(),
                // The set, and the AIO context, are the parent's.
                engine => mem::forget(engine),
            }
            return;
        }
        let mut sink = Sink {
            slots,
            sources,
            effects,
            reaped: 0,
            finished: 0,
        };
        if let Engine::Epoll(epoll) = engine {
            // None of it needs the set.
            epoll.drain(blocking, &mut sink);
        }
        while !blocking.is_idle() {
            blocking.reap(&mut sink);
            std::thread::sleep(Duration::from_millis(1));
        }
        // The kernel cancels what is in flight after this has returned.
        *engine = Engine::Closed;
        let left = sink.slots.iter().filter(|(_, slot)| is_running(slot));
        let left: Vec<Key> = left.map(|(key, _)| key).collect();
        let mut leaked = 0;
        for key in left {
            if matches!(sink.slots.get_mut(key), Some(Slot::Orphan(..))) {
                mem::forget(sink.slots.remove(key));
                leaked += 1;
            }
        }
        if leaked > 0 {
            tracing::error!(
                leaked,
                "buffers of operations that the kernel may still perform are leaked"
            );
        }
    }
}

fn is_watch(slot: &Slot) -> bool {
    matches!(slot, Slot::Watch { .. })
}

/// Whether its last completion has not come.
fn is_running(slot: &Slot) -> bool {
    !matches!(slot, Slot::Done(_) | Slot::Multi { ended: true, .. })
}
