//! What the reactors ask of a thread that they host, besides polling it: whether
//! its interrupts have to be waited for, what keeps it from sleeping, and to be
//! dormant.

use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;

use super::message::Message;
use super::runner::ThreadRunner;
use crate::cpu::CpuSet;
use crate::thread::SpdkThread;
use crate::thread::local::Local;

impl SpdkThread {
    /// Has the OS thread that polls the thread look at it.
    pub(crate) fn rouse(&self) {
        self.shared.notify_host();
    }

    /// Has the thread go to `core` after a poll, unless something keeps it or its mask
    /// does not hold that core any more. By message, so that nothing is looked at in
    /// each poll.
    pub(crate) fn send_to_core(&self, core: usize) {
        let thread = self.clone();
        // Refused by a thread that has exited.
        let _ = self.shared.enqueue(Message::new(move || {
            let bound = Local::with_current(|local| local.anchor.holds());
            if bound == Some(false) && !thread.is_bound() {
                let _ = thread.set_target(core);
            }
        }));
    }
}

impl ThreadRunner {
    /// A scheduler looks at it at tick `now`: the core it was on first and those it may
    /// be on, the ticks since it looked last or the thread came here, and in how many of
    /// them it did something.
    pub(crate) fn take_round(&self, now: u64) -> (Option<usize>, CpuSet, u64, u64) {
        let busy = self.local.shared.busy_ticks.load(Ordering::Relaxed);
        let (first, mask, seen) = self.local.shared.look_at_placement(now, busy);
        let period = now.saturating_sub(seen.0);
        (first, mask, period, busy.saturating_sub(seen.1))
    }

    pub(crate) fn id(&self) -> u64 {
        self.local.shared.id
    }

    /// [`ThreadRunner::needs_poll`] for a caller that does not sleep for it.
    pub(crate) fn needs_poll_now(&self) -> bool {
        self.local.needs_poll()
    }

    /// Whether the next poll would find something to run if only so many messages of
    /// its mailbox had arrived.
    pub(crate) fn needs_poll_of(&self, arrived: usize) -> bool {
        arrived > 0 || self.local.has_own_work() || self.local.has_more_to_do()
    }

    /// How many messages of its mailbox the thread has run.
    pub(crate) fn messages_taken(&self) -> usize {
        // SAFETY: the holder of the right to poll is the mailbox's only consumer.
        unsafe { self.local.shared.mailbox.taken() }
    }

    /// How many messages its mailbox has taken.
    pub(crate) fn messages_sent(&self) -> usize {
        // SAFETY: as above.
        unsafe { self.local.shared.mailbox.sent() }
    }

    /// The end of the thread here and now, as when this is dropped. May be called
    /// again if it has unwound.
    pub(crate) fn abandon(&mut self) {
        self.local.abandon();
    }

    /// The descriptor that is readable when an [`Interrupt`](crate::thread::Interrupt) of
    /// the thread is ready, while it has any.
    pub(crate) fn interrupts(&self) -> Option<BorrowedFd<'_>> {
        self.local.handlers_fd()
    }

    /// Says that the caller waits for [`ThreadRunner::interrupts`] from now on,
    /// or does so no longer: interrupts that are not waited for make
    /// [`ThreadRunner::needs_poll`] say yes.
    pub(crate) fn set_interrupts_watched(&self, watched: bool) {
        self.local.set_handlers_watched(watched);
    }

    /// Whether there are interrupts that are not waited for.
    pub(crate) fn has_unwatched_interrupts(&self) -> bool {
        self.local.has_unwatched_interrupts()
    }

    /// Whether interrupt mode would stop an active poller that has an interrupt
    /// of its own.
    pub(crate) fn gains_by_interrupt_mode(&self) -> bool {
        self.has_active_pollers()
            && self.local.pollers.has_interrupts()
            && !self.is_in_interrupt_mode()
    }

    /// The number of the newest active poller, unique within the thread.
    pub(crate) fn active_poller(&self) -> Option<u64> {
        match self.has_active_pollers() {
            true => self.local.pollers.with_newest_active(|poller| poller.id()),
            false => None,
        }
    }

    /// The name of the newest active poller.
    pub(crate) fn active_poller_name(&self) -> Option<String> {
        let pollers = &self.local.pollers;
        pollers.with_newest_active(|poller| poller.name())
    }

    /// Makes the thread dormant at `place` of its host, from tick `now` on, unless
    /// there is work for it; says whether it is. Then the host has to poll it no
    /// more until it is told to, or [`ThreadRunner::next_deadline`] has come.
    pub(crate) fn doze(&mut self, place: usize, now: u64) -> bool {
        let shared = &self.local.shared;
        let dozes = shared
            .host
            .doze_unless(place, || self.local.needs_poll_before_sleep());
        if dozes {
            shared.idle_ticks.start_sleep(now);
        }
        dozes
    }

    /// Ends being dormant, at tick `now`.
    pub(crate) fn wake(&mut self, now: u64) {
        let shared = &self.local.shared;
        shared.host.wake();
        shared.idle_ticks.end_sleep(now);
    }
}
