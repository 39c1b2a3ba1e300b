//! A round: the events in which it goes over the cores, and what it reports.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::ReactorMode;
use super::super::governor::Frequency;
use super::super::group::Group;
use super::super::inside::Inside;
use super::super::walk::Counted;
use super::{CoreSnapshot, Power, SchedulerError};
use crate::thread::travel::{Journey, Traveller, Trip};

/// What a round did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Round {
    /// How many rounds there were before.
    pub number: u64,
    /// The scheduler that was asked.
    pub scheduler: String,
    /// How many threads it saw.
    pub threads: usize,
    /// The threads that were told to move.
    pub moved: Vec<ThreadMove>,
    /// Moves that the scheduler wanted and that were not made, and why.
    pub held: Vec<(ThreadMove, Hold)>,
    /// The cores that were put to sleep.
    pub slept: Vec<usize>,
    /// The cores that were woken.
    pub woken: Vec<usize>,
    /// The frequencies that were asked for and are in force, by core.
    pub frequencies: Vec<(usize, Frequency)>,
    /// What the governor or a core refused, in words.
    pub refused: Vec<String>,
    /// Why it was abandoned, if it was; then nothing was changed.
    pub error: Option<SchedulerError>,
}

/// A thread, and the cores between which it is to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ThreadMove {
    /// The thread's id.
    pub thread: u64,
    /// The core it is on.
    pub from: usize,
    /// The core the scheduler wants it on.
    pub to: usize,
}

/// Why a thread stays where it is although a scheduler wants to move it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Hold {
    /// It is bound: see [`ThreadRunner::can_move`](crate::thread::ThreadRunner::can_move).
    Bound,
    /// One of the two cores is isolated.
    Isolated,
}

/// Phase 1: from core to core, in ascending order, from the scheduling core on.
pub(super) struct Gather {
    group: Arc<Group>,
    order: VecDeque<usize>,
    pub(super) cores: Vec<CoreSnapshot>,
    pub(super) under_way: UnderWay,
}

/// As long as this lives a round is under way: no command runs, and no reactor ends.
pub(super) struct UnderWay(Option<Counted>);

impl UnderWay {
    pub(super) fn begin(group: &Group, counted: Counted) -> Self {
        group.scheduling.in_round.store(true, Ordering::Release);
        UnderWay(Some(counted))
    }

    /// The next round may begin; reactors end only when the result is dropped.
    pub(super) fn end(mut self) -> Option<Counted> {
        self.free();
        self.0.take()
    }

    fn free(&self) {
        if let Some(counted) = &self.0 {
            let scheduling = &counted.group().scheduling;
            scheduling.in_round.store(false, Ordering::Release);
        }
    }
}

impl Drop for UnderWay {
    /// Lost with a reactor whose loop has panicked.
    fn drop(&mut self) {
        self.free();
        if let Some(counted) = &self.0 {
            // What waits for the end of the round, the end of all among it.
            counted.group().conduct(Box::new(|_, _| ()));
        }
    }
}

impl Gather {
    pub(super) fn new(group: &Arc<Group>, under_way: UnderWay) -> Self {
        let first = group.scheduling.core();
        let mut order: VecDeque<_> = group.by_core.iter().copied().collect();
        let start = order.iter().position(|&index| index == first);
        order.rotate_left(start.unwrap_or(0));
        Gather {
            group: group.clone(),
            order,
            cores: Vec::new(),
            under_way,
        }
    }
}

impl Journey for Gather {
    type Stop = usize;

    fn next_stop(&mut self) -> Option<usize> {
        self.order.pop_front()
    }

    fn send(index: usize, gather: Traveller<Self>) -> Result<(), Traveller<Self>> {
        let group = gather.journey().group.clone();
        group.send_within(index, gather, |reactor, mut gather| {
            let core = reactor.take_snapshot();
            gather.journey_mut().cores.push(core);
            gather.arrive();
        })
    }

    fn visit(gather: Traveller<Self>) {
        gather.advance();
    }

    fn end(mut trip: Box<Trip<Self>>) {
        trip.journey.cores.sort_unstable_by_key(|core| core.core);
        let group = trip.journey.group.clone();
        // Refused when a reactor's loop has panicked: all stop.
        let _ = group.send_within(group.scheduling.core(), trip, |reactor, trip| {
            let group = reactor.group().clone();
            group.scheduling.balance(&group, trip.journey);
        });
    }
}

/// Phases 3 and 4, with what is still to be done.
pub(super) struct Tail {
    pub(super) power: VecDeque<(usize, Power)>,
    pub(super) moves: Vec<ThreadMove>,
    pub(super) round: Round,
    pub(super) under_way: UnderWay,
}

impl Tail {
    /// One step, on the scheduling core: the next core is switched and sends this
    /// back; after the last, threads are told to move.
    pub(super) fn step(mut self, group: &Arc<Group>) {
        let Some((index, power)) = self.power.pop_front() else {
            self.send_threads(group);
            return group.scheduling.finish(group, self.round, self.under_way);
        };
        // Refused as above.
        let _ = group.send_within(index, self, move |reactor, mut tail| {
            tail.note(reactor, power);
            let group = reactor.group().clone();
            let back = group.scheduling.core();
            let _ = group.send_within(back, tail, |reactor, tail| {
                let group = reactor.group().clone();
                tail.step(&group);
            });
        });
    }

    fn note(&mut self, reactor: &mut dyn Inside, power: Power) {
        let core = reactor.group().reactors[reactor.index()].place.core;
        let switched = match power {
            Power::Sleep => put_to_sleep(reactor),
            Power::Wake => wake_core(reactor),
        };
        match (switched, power) {
            (Ok(false), _) => {}
            (Ok(true), Power::Sleep) => self.round.slept.push(core),
            (Ok(true), Power::Wake) => self.round.woken.push(core),
            (Err(error), _) => self.round.refused.push(error),
        }
    }

    fn send_threads(&mut self, group: &Group) {
        for one in std::mem::take(&mut self.moves) {
            // Gone since, and then so is the need.
            if let Some(thread) = group.library.thread_by_id(one.thread) {
                thread.send_to_core(one.to);
                self.round.moved.push(one);
            }
        }
    }
}

/// Into interrupt mode on a scheduler's word, until woken; says whether that is new. Not
/// if threads are there.
fn put_to_sleep(reactor: &mut dyn Inside) -> Result<bool, String> {
    if reactor.awake_mode().is_some() || !reactor.has_no_threads() {
        return Ok(false);
    }
    let shared = &reactor.group().reactors[reactor.index()];
    let before = shared.mode();
    switch(reactor, ReactorMode::Interrupt)?;
    reactor.set_awake_mode(Some(before));
    Ok(true)
}

/// Back into the mode that it had; says whether it was put to sleep.
pub(super) fn wake_core(reactor: &mut dyn Inside) -> Result<bool, String> {
    let Some(mode) = reactor.awake_mode() else {
        return Ok(false);
    };
    switch(reactor, mode)?;
    reactor.set_awake_mode(None);
    Ok(true)
}

fn switch(reactor: &mut dyn Inside, mode: ReactorMode) -> Result<(), String> {
    let core = reactor.group().reactors[reactor.index()].place.core;
    reactor.enter_mode(mode).map_err(|(thread, error)| {
        format!("core {core} keeps its mode: thread {thread:?} cannot follow: {error}")
    })
}
