//! What all simulated cores share: the time, the chance, and what is on its way between
//! them.
//!
//! Each core has its own time, as cores work side by side: while one takes its turn, the
//! clock shows that core's time. The core that is the furthest behind goes next, so that
//! nothing arrives before it was sent.
//!
//! A message is in its mailbox from the moment it was sent, with all that the mailbox
//! decides (its limit, its order, whether it is closed); only the target does not see
//! it yet. A [`Gate`] says how much of a mailbox it sees. Since what was sent later
//! arrives later, that is always the front part, and the order is the mailbox's own.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::thread::ThreadId;

use super::chance::{Chance, Dice};
use super::trace::{Recorder, What};
use crate::clock::{Clock, VirtualClock};
use crate::notify::{Observer, Recipient};
use crate::reactor::{Director, Event, Part};
use crate::sync::Mailbox;
use crate::thread::ThreadRunner;

/// No tick at all.
pub(super) const NEVER: u64 = u64::MAX;

pub(super) struct World {
    pub(super) seed: u64,
    /// The one that plays all cores.
    os_thread: ThreadId,
    pub(super) hand: VirtualClock,
    pub(super) clock: Clock,
    /// When each core has to look at what it was told meanwhile.
    alarms: Box<[AtomicU64]>,
    state: Mutex<State>,
}

pub(super) struct State {
    pub(super) dice: Dice,
    pub(super) trace: Recorder,
    /// By the thread's number.
    gates: Vec<Gate>,
    /// By the core's index.
    events: Vec<Gate>,
    /// What sends now.
    pub(super) sender: Sender,
    /// An idle turn between two others, which takes no time.
    pub(super) between: bool,
    timers: BinaryHeap<Reverse<Timer>>,
    timer_number: u64,
    /// What was reported of the user's code, in order.
    pub(super) panics: Vec<String>,
    pub(super) polls: u64,
    /// Nothing is simulated any more.
    ended: bool,
}

/// What does or sends something.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sender {
    /// The program around the simulation.
    Outside,
    /// A core, by its index.
    Core(usize),
    /// What the simulated machine is connected with.
    Surroundings,
}

/// How much of what was put into one mailbox has arrived.
#[derive(Default)]
pub(super) struct Gate {
    /// Up to which message, counted from the first ever, is on its way until when.
    coming: VecDeque<(usize, u64)>,
    /// The message up to which all have arrived.
    open: usize,
    /// The last message that this knows of, and when it arrives.
    last: (usize, u64),
    /// Polls that did something, for a user who asks what is going on.
    pub(super) busy: u64,
}

impl Gate {
    /// `sent` messages were sent by now, the last of which is to arrive at `at`; later,
    /// if one before it does. Says when, if it is new.
    fn sent(&mut self, sent: usize, at: u64) -> Option<u64> {
        if sent <= self.last.0 {
            return None;
        }
        let at = at.max(self.last.1);
        self.last = (sent, at);
        self.coming.push_back((sent, at));
        Some(at)
    }

    /// How many of `sent` messages have arrived at tick `now`. One that this was not told
    /// of was sent while no core had the mailbox, or by its owner.
    fn arrived(&mut self, sent: usize, now: u64) -> usize {
        while let Some(&(message, at)) = self.coming.front()
            && at <= now
        {
            self.open = message;
            self.coming.pop_front();
        }
        match self.coming.is_empty() {
            true => sent,
            false => self.open,
        }
    }

    fn next(&self) -> Option<u64> {
        self.coming.front().map(|&(_, at)| at)
    }
}

/// Something that happens outside of all cores.
struct Timer {
    at: u64,
    number: u64,
    waker: Waker,
}

impl PartialEq for Timer {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Timer {}

impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timer {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl World {
    pub(super) fn new(
        seed: u64,
        hand: VirtualClock,
        cores: usize,
        chance: &Chance,
        trace: usize,
    ) -> Self {
        let clock = hand.clock();
        World {
            seed,
            os_thread: std::thread::current().id(),
            alarms: (0..cores).map(|_| AtomicU64::new(NEVER)).collect(),
            state: Mutex::new(State {
                dice: Dice::new(seed, chance, &clock),
                trace: Recorder::new(trace),
                gates: Vec::new(),
                events: (0..cores).map(|_| Gate::default()).collect(),
                sender: Sender::Outside,
                between: false,
                timers: BinaryHeap::new(),
                timer_number: 0,
                panics: Vec::new(),
                polls: 0,
                ended: false,
            }),
            hand,
            clock,
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // No user code runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> u64 {
        self.hand.now()
    }

    /// Runs `f` as the doing of `sender`.
    pub(super) fn on_behalf_of<R>(&self, sender: Sender, f: impl FnOnce() -> R) -> R {
        struct Restore<'a>(&'a World, Sender);
        impl Drop for Restore<'_> {
            fn drop(&mut self) {
                self.0.state().sender = self.1;
            }
        }
        let before = std::mem::replace(&mut self.state().sender, sender);
        let _restore = Restore(self, before);
        f()
    }

    fn is_os_thread(&self) -> bool {
        std::thread::current().id() == self.os_thread
    }

    pub(super) fn alarm(&self, core: usize) -> u64 {
        self.alarms[core].load(Ordering::Acquire)
    }

    pub(super) fn set_alarm(&self, core: usize, at: u64) {
        self.alarms[core].fetch_min(at, Ordering::AcqRel);
    }

    /// Takes back what has rung by tick `now`.
    pub(super) fn take_alarm(&self, core: usize, now: u64) {
        let rung = |at| (at <= now).then_some(NEVER);
        let alarm = &self.alarms[core];
        let _ = alarm.fetch_update(Ordering::AcqRel, Ordering::Acquire, rung);
    }

    /// When the next event arrives at a core.
    pub(super) fn next_event(&self, core: usize) -> Option<u64> {
        self.state().events[core].next()
    }

    pub(super) fn wake_at(&self, at: u64, waker: &Waker) {
        let waker = waker.clone();
        let mut state = self.state();
        if state.ended {
            drop(state);
            // Its time will not come.
            return waker.wake();
        }
        state.timer_number += 1;
        let number = state.timer_number;
        state.timers.push(Reverse(Timer { at, number, waker }));
    }

    /// Whether a tick has come, or no later one will.
    pub(super) fn is_due(&self, at: u64) -> bool {
        at <= self.now() || self.has_ended()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.state().ended
    }

    pub(super) fn next_timer(&self) -> Option<u64> {
        let state = self.state();
        state.timers.peek().map(|Reverse(timer)| timer.at)
    }

    /// Lets happen what is next outside of all cores.
    pub(super) fn run_timer(&self) {
        let mut state = self.state();
        let Some(Reverse(timer)) = state.timers.pop() else {
            return;
        };
        state.trace.hash(&[2, timer.at]);
        drop(state);
        self.on_behalf_of(Sender::Surroundings, || timer.waker.wake());
    }

    /// The waiters for a time to come hear now that it will not.
    pub(super) fn end(&self) {
        let mut state = self.state();
        state.ended = true;
        let timers = std::mem::take(&mut state.timers);
        drop(state);
        // Foreign wakers are foreign code.
        crate::thread::panic::drop_logged(timers);
    }
}

impl State {
    pub(super) fn gate(&mut self, thread: u64) -> &mut Gate {
        let index = usize::try_from(thread).expect("threads of one process");
        if index >= self.gates.len() {
            self.gates.resize_with(index + 1, Gate::default);
        }
        &mut self.gates[index]
    }

    /// Polls of each thread that did something, by its number.
    pub(super) fn busy_polls(&self) -> Vec<(u64, u64)> {
        let gates = (0u64..).zip(&self.gates);
        let busy = gates.filter(|(_, gate)| gate.busy > 0);
        busy.map(|(thread, gate)| (thread, gate.busy)).collect()
    }

    /// When something arrives at `core` that is sent at tick `now`.
    fn arrival(&mut self, core: usize, now: u64) -> u64 {
        match self.sender {
            Sender::Surroundings => now,
            Sender::Core(from) if from == core => now,
            _ => now.saturating_add(self.dice.message_delay()),
        }
    }
}

/// Hears of what is sent to one core.
pub(super) struct Ears {
    pub(super) world: Arc<World>,
    pub(super) core: usize,
    pub(super) events: Arc<Mailbox<Event>>,
}

impl Observer for Ears {
    fn sent(&self, recipient: &dyn Recipient) {
        let world = &self.world;
        let now = world.now();
        if !world.is_os_thread() {
            return world.set_alarm(self.core, now);
        }
        // SAFETY: the thread is polled by a core of the simulation, so by this OS thread,
        // and senders are called from within no mailbox.
        let sent = unsafe { recipient.messages_sent() };
        let mut state = world.state();
        let thread = recipient.id();
        let at = match sent > state.gate(thread).last.0 {
            true => {
                let at = state.arrival(self.core, now);
                let at = state.gate(thread).sent(sent, at).unwrap_or(now);
                let (from, to) = (state.sender, self.core);
                state
                    .trace
                    .record(now, from, What::Message { thread, to, at });
                at
            }
            false => now,
        };
        drop(state);
        world.set_alarm(self.core, at);
    }

    fn notified(&self) {
        let world = &self.world;
        let now = world.now();
        if !world.is_os_thread() {
            return world.set_alarm(self.core, now);
        }
        // SAFETY: as above, of the reactor.
        let sent = unsafe { self.events.sent() };
        let mut state = world.state();
        let at = match sent > state.events[self.core].last.0 {
            true => {
                let at = state.arrival(self.core, now);
                let at = state.events[self.core].sent(sent, at).unwrap_or(now);
                let (from, to) = (state.sender, self.core);
                state.trace.record(now, from, What::Event { to, at });
                at
            }
            false => now,
        };
        drop(state);
        world.set_alarm(self.core, at);
    }
}

/// What one core sees of the world.
pub(super) struct View {
    pub(super) world: Arc<World>,
    pub(super) core: usize,
}

impl Director for View {
    fn events_arrived(&self, sent: usize) -> usize {
        let now = self.world.now();
        self.world.state().events[self.core].arrived(sent, now)
    }

    fn messages_arrived(&self, thread: u64, sent: usize) -> usize {
        let now = self.world.now();
        self.world.state().gate(thread).arrived(sent, now)
    }

    fn next_arrival(&self, thread: u64) -> Option<u64> {
        self.world.state().gate(thread).next()
    }

    fn slice(&mut self, thread: &ThreadRunner, arrived: usize) -> Option<Part> {
        let mut state = self.world.state();
        let between = state.between;
        state.polls += 1;
        state.trace.name(thread.id(), thread.name());
        if between {
            return Some(Part {
                max_msgs: 0,
                arrived,
                mailbox_next: None,
            });
        }
        let (time, cut) = state.dice.poll();
        drop(state);
        if time > 0 {
            self.world.hand.advance(time);
        }
        let cut = cut?;
        Some(Part {
            max_msgs: cut.max_msgs,
            arrived,
            mailbox_next: cut.mailbox_next,
        })
    }

    fn polled(&mut self, thread: u64, busy: bool) {
        let now = self.world.now();
        let mut state = self.world.state();
        state.trace.hash(&[thread, now, u64::from(busy)]);
        if busy {
            state.gate(thread).busy += 1;
            let core = Sender::Core(self.core);
            state.trace.record(now, core, What::Polled { thread });
        }
    }
}
