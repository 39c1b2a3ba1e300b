//! Random operations on the pollers of one thread, from outside and from inside
//! callbacks, against a plain model on the virtual clock: who runs in which
//! order, where each stands afterwards, and when the next one is due.

use std::cell::RefCell;
use std::rc::Rc;

use corespun::thread::{Activity, Poller, PollerState, PollerStats};
use harness::threads::{Threads, us};
use proptest::collection::vec;
use proptest::prelude::*;

const MOST: usize = 24;

/// Pollers are named by a number, modulo how many there are.
#[derive(Clone, Debug)]
enum Op {
    Register {
        period: u64,
        busy: bool,
        /// What its callback does, one entry a run, over and over.
        script: Vec<Vec<Op>>,
    },
    Pause(usize),
    Resume(usize),
    Unregister(usize),
    Advance(u64),
}

fn register(script: impl Strategy<Value = Vec<Vec<Op>>>) -> impl Strategy<Value = Op> {
    // Half of them active, the others with periods that often coincide.
    (0u64..8, any::<bool>(), script).prop_map(|(period, busy, script)| Op::Register {
        period: period.saturating_sub(3) * 2,
        busy,
        script,
    })
}

fn op_inside() -> impl Strategy<Value = Op> {
    let index = || 0..MOST;
    prop_oneof![
        3 => index().prop_map(Op::Pause),
        4 => index().prop_map(Op::Resume),
        1 => index().prop_map(Op::Unregister),
        1 => register(Just(Vec::new())),
        1 => (0u64..4).prop_map(Op::Advance),
    ]
}

fn op_outside() -> impl Strategy<Value = Option<Op>> {
    let index = || 0..MOST;
    let script = vec(vec(op_inside(), 0..4), 0..3);
    prop_oneof![
        4 => register(script).prop_map(Some),
        3 => index().prop_map(|at| Some(Op::Pause(at))),
        4 => index().prop_map(|at| Some(Op::Resume(at))),
        1 => index().prop_map(|at| Some(Op::Unregister(at))),
        4 => (0u64..12).prop_map(|ticks| Some(Op::Advance(ticks))),
        // A poll.
        10 => Just(None),
    ]
}

struct ModelPoller {
    period: u64,
    busy: bool,
    script: Vec<Vec<Op>>,
    state: PollerState,
    /// In the list of active ones: the newest that it was given.
    place: u64,
    /// When it is due, and its place among equals.
    due: Option<(u64, u64)>,
    stats: PollerStats,
}

#[derive(Default)]
struct Model {
    pollers: Vec<ModelPoller>,
    /// Oldest first, with the place that a poller must have to be meant.
    active: Vec<(usize, u64)>,
    places: u64,
    armed: u64,
    now: u64,
    ran: Vec<usize>,
}

impl Model {
    fn enlist(&mut self, at: usize) {
        self.pollers[at].state = PollerState::Waiting;
        let period = self.pollers[at].period;
        if period > 0 {
            self.arm(at, self.now + period);
        } else {
            self.places += 1;
            self.pollers[at].place = self.places;
            self.active.push((at, self.places));
        }
    }

    fn arm(&mut self, at: usize, due: u64) {
        self.armed += 1;
        self.pollers[at].due = Some((due, self.armed));
    }

    fn apply(&mut self, op: &Op) {
        let count = self.pollers.len();
        match op {
            Op::Advance(ticks) => self.now += ticks,
            Op::Register {
                period,
                busy,
                script,
            } if count < MOST => {
                self.pollers.push(ModelPoller {
                    period: *period,
                    busy: *busy,
                    script: script.clone(),
                    state: PollerState::Waiting,
                    place: 0,
                    due: None,
                    stats: PollerStats::default(),
                });
                self.enlist(count);
            }
            Op::Pause(at) if count > 0 => {
                let state = &mut self.pollers[at % count].state;
                if matches!(state, PollerState::Waiting | PollerState::Running) {
                    *state = PollerState::Pausing;
                }
            }
            Op::Resume(at) if count > 0 => match self.pollers[at % count].state {
                PollerState::Pausing => self.pollers[at % count].state = PollerState::Waiting,
                PollerState::Paused => self.enlist(at % count),
                _ => {}
            },
            Op::Unregister(at) if count > 0 => {
                self.pollers[at % count].state = PollerState::Unregistered;
                self.pollers[at % count].due = None;
            }
            _ => {}
        }
    }

    fn turn(&mut self, at: usize) {
        if self.pollers[at].state == PollerState::Waiting {
            self.pollers[at].state = PollerState::Running;
            self.ran.push(at);
            let poller = &mut self.pollers[at];
            let run = poller.stats.run_count as usize;
            poller.stats.run_count += 1;
            poller.stats.busy_count += u64::from(poller.busy);
            if !poller.script.is_empty() {
                for op in poller.script[run % poller.script.len()].clone() {
                    self.apply(&op);
                }
            }
        }
        let poller = &mut self.pollers[at];
        match poller.state {
            PollerState::Running => poller.state = PollerState::Waiting,
            PollerState::Pausing => {
                poller.state = PollerState::Paused;
                poller.due = None;
            }
            _ => {}
        }
    }

    fn poll(&mut self) {
        let now = self.now;
        for (at, place) in self.active.clone().into_iter().rev() {
            // One resumed in this pass is the newest, and waits for the next.
            if self.pollers[at].place == place {
                self.turn(at);
            }
        }
        let pollers = &self.pollers;
        self.active.retain(|(at, place)| {
            pollers[*at].place == *place
                && !matches!(
                    pollers[*at].state,
                    PollerState::Paused | PollerState::Unregistered
                )
        });
        while let Some((_, at)) = self.next_due().filter(|((due, _), _)| *due <= now) {
            self.arm(at, now + self.pollers[at].period);
            self.turn(at);
            // Behind what its callback has armed.
            if let Some((due, _)) = self.pollers[at].due {
                self.arm(at, due);
            }
        }
    }

    fn next_due(&self) -> Option<((u64, u64), usize)> {
        let pollers = self.pollers.iter().enumerate();
        pollers
            .filter_map(|(at, poller)| Some((poller.due?, at)))
            .min()
    }
}

/// The real pollers, as callbacks reach them. The handle of an unregistered one
/// is gone.
struct Real {
    time: corespun::clock::VirtualClock,
    pollers: RefCell<Vec<Option<Rc<Poller>>>>,
    ran: RefCell<Vec<usize>>,
}

impl Real {
    fn poller(&self, at: usize) -> Option<Rc<Poller>> {
        let pollers = self.pollers.borrow();
        pollers.get(at % pollers.len().max(1))?.clone()
    }

    fn apply(self: &Rc<Self>, op: &Op) {
        match op {
            Op::Advance(ticks) => _ = self.time.advance(*ticks),
            Op::Register {
                period,
                busy,
                script,
            } => {
                let at = self.pollers.borrow().len();
                if at == MOST {
                    return;
                }
                let (inside, script, busy) = (self.clone(), script.clone(), *busy);
                let mut run = 0;
                let poller = Poller::timed(us(*period), move || {
                    inside.ran.borrow_mut().push(at);
                    if !script.is_empty() {
                        let ops = &script[run % script.len()];
                        run += 1;
                        ops.iter().for_each(|op| inside.apply(op));
                    }
                    if busy { Activity::Busy } else { Activity::Idle }
                });
                let poller = Rc::new(poller.expect("the thread takes pollers"));
                self.pollers.borrow_mut().push(Some(poller));
            }
            Op::Pause(at) => {
                if let Some(poller) = self.poller(*at) {
                    poller.pause();
                }
            }
            Op::Resume(at) => {
                if let Some(poller) = self.poller(*at) {
                    poller.resume();
                }
            }
            Op::Unregister(at) => {
                let mut pollers = self.pollers.borrow_mut();
                let count = pollers.len().max(1);
                let poller = pollers.get_mut(at % count).and_then(Option::take);
                drop(pollers);
                drop(poller);
            }
        }
    }
}

fn behaves_like_the_model(ops: Vec<Option<Op>>) -> Result<(), TestCaseError> {
    let mut threads = Threads::allocate(1);
    let real = Rc::new(Real {
        time: threads.time.clone(),
        pollers: RefCell::default(),
        ran: RefCell::default(),
    });
    let mut model = Model {
        now: threads.time.now(),
        ..Model::default()
    };
    for op in ops {
        match &op {
            Some(op) => {
                model.apply(op);
                threads.on(0, || real.apply(op));
            }
            None => {
                model.poll();
                threads.runner(0).poll(0, 0);
            }
        }
        prop_assert_eq!(real.ran.take(), std::mem::take(&mut model.ran));
        prop_assert_eq!(threads.time.now(), model.now);
        let pollers = real.pollers.borrow();
        prop_assert_eq!(pollers.len(), model.pollers.len());
        for (at, (poller, expected)) in pollers.iter().zip(&model.pollers).enumerate() {
            match poller {
                None => prop_assert_eq!(expected.state, PollerState::Unregistered),
                Some(poller) => {
                    prop_assert_eq!(poller.state(), expected.state, "poller {}", at);
                    prop_assert_eq!(poller.stats(), expected.stats, "poller {}", at);
                }
            }
        }
        let registered = pollers.iter().flatten().count();
        drop(pollers);
        let runner = threads.runner(0);
        prop_assert_eq!(runner.has_pollers(), registered > 0);
        let active = model.pollers.iter().any(|poller| {
            poller.period == 0
                && matches!(poller.state, PollerState::Waiting | PollerState::Pausing)
        });
        prop_assert_eq!(runner.has_active_pollers(), active);
        prop_assert_eq!(
            runner.next_deadline(),
            model.next_due().map(|((due, _), _)| due)
        );
    }
    // The callbacks hold what holds them.
    let pollers = real.pollers.take();
    drop(pollers);
    prop_assert!(!threads.runner(0).has_pollers());
    threads.free();
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() })]

    /// TH-053 … 055, TH-060, TH-061, TH-081 … 085, TH-088.
    #[test]
    fn pollers_behave_like_a_plain_list(ops in vec(op_outside(), 1..120)) {
        behaves_like_the_model(ops)?;
    }
}
