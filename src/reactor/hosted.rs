//! A thread as the reactor that polls it keeps it: the right to poll it, whether
//! it is to go elsewhere, and the wait for its interrupts.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use nix::poll::{PollFlags, PollTimeout};

use super::ReactorMode;
use super::group::Shared;
use crate::io::PollFd;
use crate::thread::{InterruptError, LatencyMisses, ParkedThread, SpdkThread, ThreadRunner};

/// Polls that must have found nothing before a thread is dormant: it may look at
/// what it waits for by a task that yields.
const IDLE_POLLS: u32 = 4;

thread_local! {
    /// A SpdkThread has changed its mask on this OS thread.
    static RESCHEDULED: Cell<bool> = const { Cell::new(false) };
}

/// The SpdkThread that is current on this OS thread asks for another mask.
pub(super) fn note_rescheduled() {
    RESCHEDULED.set(true);
}

/// Whether a SpdkThread asked for another mask on this OS thread since the last
/// call.
#[inline]
pub(super) fn take_rescheduled() -> bool {
    RESCHEDULED.take()
}

/// Reactors that are turned inside of a poll of another one keep their own note of it: made
/// at the begin of each of their turns, dropped at its end.
pub(super) struct OwnNote<'a>(&'a Cell<bool>);

impl<'a> OwnNote<'a> {
    /// Exchanges the OS thread's note for `own`.
    pub(super) fn begin(own: &'a Cell<bool>) -> Self {
        RESCHEDULED.with(|note| note.swap(own));
        OwnNote(own)
    }
}

impl Drop for OwnNote<'_> {
    fn drop(&mut self) {
        RESCHEDULED.with(|note| note.swap(self.0));
    }
}

pub(crate) struct Hosted {
    pub(super) runner: ThreadRunner,
    /// Its mask has changed and was not looked at since, or it does not allow
    /// this core and the thread cannot leave yet.
    pub(super) moves: bool,
    watch: Watch,
    /// In interrupt mode because its reactor may sleep; a switch by any other code
    /// is not overruled.
    switched: Switched,
    /// How many polls in a row have found nothing, and when the first of them ended.
    idle_polls: u32,
    idle_since: u64,
    /// What its busy polls took, in proportion to its shares.
    pub(super) weighted: u64,
    /// When its last poll ended, or it was woken, if it has a latency limit; else 0 after a poll.
    pub(super) polled_at: u64,
    /// The polls that came too late for that.
    pub(super) misses: Option<Box<LatencyMisses>>,
}

/// Whether a thread follows its reactor in interrupt mode.
#[derive(Clone, Copy, PartialEq)]
enum Switched {
    No,
    Yes,
    /// It was refused, and the log was told.
    Refused,
}

/// The wait for the interrupts of one thread.
enum Watch {
    None,
    /// Through the reactor's driver, which is woken by a descriptor of its own:
    /// the thread may close its one at any time.
    Waiting(PollFd<OwnedFd>),
    /// The kernel or the driver refused; the reactor stays awake instead.
    Refused,
}

impl Hosted {
    /// Takes up the right to poll `thread`, on the OS thread of the reactor `here`.
    pub(super) fn new(thread: ParkedThread, here: &Shared) -> Self {
        let mut runner = thread.attach();
        runner.set_host(Some(&here.sleeper));
        runner.set_core(Some(here.place.core));
        Hosted {
            runner,
            moves: false,
            watch: Watch::None,
            switched: Switched::No,
            idle_polls: 0,
            idle_since: 0,
            weighted: 0,
            polled_at: 0,
            misses: None,
        }
    }

    /// Notes how a poll that ended at tick `end` went. Says whether that makes the
    /// thread drowsy: nothing was found for so many ticks.
    #[inline]
    pub(super) fn polled(&mut self, busy: bool, end: u64, patience: u64) -> bool {
        if busy {
            self.idle_polls = 0;
            return false;
        }
        if self.idle_polls == 0 {
            self.idle_since = end;
        }
        self.idle_polls = self.idle_polls.saturating_add(1);
        self.is_drowsy(end, patience)
    }

    /// Whether nothing was found for so many ticks, and some polls.
    pub(super) fn is_drowsy(&self, now: u64, patience: u64) -> bool {
        self.idle_polls >= IDLE_POLLS && now.saturating_sub(self.idle_since) >= patience
    }

    /// Makes the thread dormant at `place`, unless there is something to do for it;
    /// says whether it is. What wakes it besides a sender is its deadline, and an
    /// interrupt, which is waited for from here on. One that waits to leave stays
    /// awake: it is not told that the last of what binds it has gone, which may be
    /// in the hands of another thread here.
    pub(super) fn doze(&mut self, place: usize, now: u64) -> bool {
        self.idle_polls = 0;
        if self.moves {
            return false;
        }
        // Looked at without a fence first: a thread with an active poller is asked
        // again and again.
        if self.needs_poll() && !self.runner.has_unwatched_interrupts() {
            return false;
        }
        self.watch_interrupts();
        if !self.runner.doze(place, now) {
            return false;
        }
        if matches!(self.watch, Watch::Waiting(_)) && {
            let rouse = Arc::new(RouseThread(self.runner.handle()));
            self.has_ready_interrupts_or_wakes(&rouse.into())
        } {
            self.runner.wake(now);
            return false;
        }
        true
    }

    /// Ends being dormant.
    pub(super) fn wake(&mut self, now: u64) {
        self.polled_at = now;
        self.runner.wake(now);
    }

    /// Whether the thread follows its reactor in interrupt mode.
    pub(super) fn is_switched(&self) -> bool {
        self.switched != Switched::No
    }

    /// Whether the thread is to leave `core` for another of its mask, and may now.
    /// One that may not yet is asked again after its next poll. Nothing leaves
    /// when all are `stopping`.
    pub(super) fn leaves(&mut self, core: usize, stopping: bool) -> bool {
        self.moves = self.moves
            && !stopping
            && self.runner.is_running()
            && self.runner.handle().wants_elsewhere(core);
        self.moves && self.runner.can_move()
    }

    /// Has the thread follow its reactor into a mode that sleeps, or out of it,
    /// where that makes a difference: it has active pollers with interrupts.
    pub(super) fn follow_mode(&mut self, mode: ReactorMode) -> Result<(), InterruptError> {
        let on = mode != ReactorMode::Poll;
        let due = if on {
            self.runner.gains_by_interrupt_mode()
        } else {
            self.is_switched()
        };
        if due {
            if !on {
                self.switched = Switched::No;
            }
            self.runner.set_interrupt_mode(on)?;
            if on {
                self.switched = Switched::Yes;
            }
        }
        Ok(())
    }

    /// As [`Hosted::follow_mode`], again and again; the log hears of a refusal once.
    pub(super) fn follow_mode_or_tell(&mut self, mode: ReactorMode) {
        if let Err(error) = self.follow_mode(mode)
            && std::mem::replace(&mut self.switched, Switched::Refused) != Switched::Refused
        {
            tracing::error!("its pollers keep the reactor awake: {error}");
        }
    }

    /// Whether the next turn would find something to run here, timers and
    /// interrupts that are waited for apart.
    pub(super) fn needs_poll(&self) -> bool {
        self.runner.needs_poll_now() || self.can_leave()
    }

    /// [`Hosted::needs_poll`] for a reactor that has announced its sleep.
    pub(super) fn needs_poll_before_sleep(&self) -> bool {
        self.runner.needs_poll() || self.can_leave()
    }

    /// Whether it waits to leave and is not bound.
    pub(super) fn can_leave(&self) -> bool {
        self.moves && self.runner.can_move()
    }

    /// Gives the thread away; comes back when it cannot leave this OS thread.
    pub(super) fn park(self) -> Result<ParkedThread, Hosted> {
        let Hosted {
            mut runner,
            moves,
            watch,
            switched,
            weighted,
            misses,
            ..
        } = self;
        if switched != Switched::No {
            // Its next reactor may be in another mode. Nothing is made here that
            // was not there, so nothing is refused.
            let _ = runner.set_interrupt_mode(false);
        }
        runner.park().map_err(|runner| Hosted {
            runner,
            moves,
            watch,
            switched: Switched::No,
            idle_polls: 0,
            idle_since: 0,
            weighted,
            polled_at: 0,
            misses,
        })
    }

    /// Before a sleep: makes sure that interrupts the thread has, if any, are
    /// waited for, so that they need not keep the reactor awake.
    pub(super) fn watch_interrupts(&mut self) {
        match self.watch {
            Watch::None if self.runner.has_unwatched_interrupts() => {
                self.watch = match self.start_watch() {
                    Ok(fd) => Watch::Waiting(fd),
                    Err(error) => self.refuse(&error),
                };
                let watched = matches!(self.watch, Watch::Waiting(_));
                self.runner.set_interrupts_watched(watched);
            }
            Watch::Waiting(_) | Watch::Refused if self.runner.interrupts().is_none() => {
                self.watch = Watch::None;
                self.runner.set_interrupts_watched(false);
            }
            _ => {}
        }
    }

    fn start_watch(&self) -> io::Result<PollFd<OwnedFd>> {
        let fd = self.runner.interrupts();
        let fd = fd.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        PollFd::new(fd.try_clone_to_owned()?)
    }

    fn refuse(&self, error: &io::Error) -> Watch {
        tracing::error!(
            thread = self.runner.name(),
            "its interrupts keep the reactor awake: {error}"
        );
        Watch::Refused
    }

    /// Whether an interrupt that is waited for is ready; if not, the driver ends
    /// the next sleep when it is.
    pub(super) fn has_ready_interrupts(&mut self) -> bool {
        // The end of the driver's wait is all the waking that is needed.
        self.has_ready_interrupts_or_wakes(Waker::noop())
    }

    fn has_ready_interrupts_or_wakes(&mut self, waker: &Waker) -> bool {
        let Watch::Waiting(watch) = &self.watch else {
            return false;
        };
        let mut cx = Context::from_waker(waker);
        match watch.poll_read_with(&mut cx, is_readable) {
            Poll::Pending => false,
            Poll::Ready(Ok(())) => true,
            Poll::Ready(Err(error)) => {
                self.watch = self.refuse(&error);
                self.runner.set_interrupts_watched(false);
                true
            }
        }
    }

    /// What keeps the reactor awake for good, by number: the thread, and its
    /// active poller if it is one.
    pub(super) fn keeper(&self) -> Option<(u64, Option<u64>)> {
        let poller = self.runner.active_poller();
        let keeps = poller.is_some() || self.runner.has_unwatched_interrupts();
        keeps.then(|| (self.runner.id(), poller))
    }
}

/// Rouses a dormant thread whose interrupt is ready.
struct RouseThread(SpdkThread);

impl Wake for RouseThread {
    fn wake(self: Arc<Self>) {
        self.0.rouse();
    }
}

/// Whether `fd` is readable at this moment, or would block.
fn is_readable(fd: &OwnedFd) -> io::Result<()> {
    use std::os::fd::AsFd;
    let mut fds = [nix::poll::PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    match nix::poll::poll(&mut fds, PollTimeout::ZERO)? {
        0 => Err(io::ErrorKind::WouldBlock.into()),
        _ => Ok(()),
    }
}
