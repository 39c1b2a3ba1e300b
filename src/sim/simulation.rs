//! The simulation: which core is next, and how far.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;

use super::world::{Ears, NEVER, Sender, View, World};
use super::{SimBuilder, SimError, SimHandle, Trace};
use crate::clock::{Clock, VirtualClock};
use crate::cpu::CpuSet;
use crate::reactor::{Group, Lcore, Placement, Reactors, Rest, Stepped};
use crate::task;
use crate::thread::panic::{ContainedPanic, contain, discard};
use crate::thread::{SpdkThread, ThreadBuilder, ThreadLib};

/// How many threads a core may poll for their order to be thrown anew in each turn.
const SHUFFLED: usize = 16;

/// How long a reactor spins before it looks again, unless something arrives.
const SPIN: Duration = Duration::from_nanos(500);

/// How many threads an error names.
const NAMED: usize = 20;

/// How many of the last things that happened a trace shows.
const TRACE_LINES: usize = 40;

/// A machine with some cores, each with its reactor, on virtual time.
///
/// It is stepped by hand ([`step`](Self::step), [`turn`](Self::turn)) or to a goal
/// ([`block_on`](Self::block_on), [`run_until`](Self::run_until),
/// [`run_for`](Self::run_for)). Its threads live as long as it does: dropped, it cancels
/// what is left on them. It stays on its OS thread; what may be sent is in its
/// [`handle`](Self::handle) and its [`reactors`](Self::reactors).
///
/// Dropped while its OS thread panics, it writes its seed and its trace to the standard
/// error output.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use corespun::{sim::Sim, time};
///
/// let mut sim = Sim::builder().cores(2).seed(1).build();
/// let worker = sim.thread().name("worker").create()?;
/// // An hour passes, and takes no time.
/// let nap = worker.spawn(async { time::sleep(Duration::from_secs(3600)).await });
/// sim.block_on(nap)?;
/// assert!(sim.now() >= Duration::from_secs(3600));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Sim {
    pub(super) world: Arc<World>,
    reactors: Reactors,
    cores: Vec<Core>,
    numbers: Vec<usize>,
    turns: u64,
    turn_limit: u64,
    contains_panics: bool,
    main: Option<SpdkThread>,
}

/// One core and where it stands.
struct Core {
    reactor: Stepped<View>,
    /// Up to where its time is used.
    time: u64,
    /// When its next turn finds something, as far as it knows itself.
    next: u64,
    rest: Rest,
    /// When its last turn was, among all.
    turned: u64,
}

impl Sim {
    /// Settings of a simulation.
    pub fn builder() -> SimBuilder {
        SimBuilder::default()
    }

    #[track_caller]
    pub(super) fn new(settings: &SimBuilder) -> Self {
        let hand = VirtualClock::new(settings.hz);
        let count = settings.cores.len();
        let (seed, chance) = (settings.seed, &settings.chance);
        let world = Arc::new(World::new(seed, hand, count, chance, TRACE_LINES));
        let reported = Arc::downgrade(&world);
        let library = ThreadLib::builder()
            .clock(world.clock.clone())
            .panic_hook(move |panic| {
                if let Some(world) = reported.upgrade() {
                    world.state().panics.push(described(panic));
                }
            })
            .build();
        let places = settings.cores.iter();
        let places: Vec<_> = places.map(|&core| Lcore { core, cpu: core }).collect();
        let (mode, adaptive) = (settings.mode, settings.adaptive);
        let group = Group::simulated(library, &places, mode, adaptive, |core, events| {
            let world = world.clone();
            Box::new(Ears {
                world,
                core,
                events,
            })
        });
        let placement = Arc::new(Placement(Arc::downgrade(&group)));
        let reactors = Reactors(group.clone());
        let placed = reactors.library().set_framework(placement);
        placed.expect("the library was made here");
        let core = |index| {
            let world = world.clone();
            Core {
                reactor: Stepped::new(View { world, core: index }, &group, index),
                time: 0,
                next: NEVER,
                rest: Rest::Idle,
                turned: 0,
            }
        };
        Sim {
            cores: (0..count).map(core).collect(),
            world,
            reactors,
            numbers: settings.cores.clone(),
            turns: 0,
            turn_limit: settings.turn_limit,
            contains_panics: settings.contains_panics,
            main: None,
        }
    }

    /// The seed that chance is made from.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.world.seed
    }

    /// The handle of the simulated reactors: what a program is given.
    #[must_use]
    pub fn reactors(&self) -> Reactors {
        self.reactors.clone()
    }

    /// The library instance whose threads are simulated.
    #[must_use]
    pub fn library(&self) -> &ThreadLib {
        self.reactors.library()
    }

    /// Settings for a new thread, to be placed by [`create`](ThreadBuilder::create) on one
    /// of the simulated cores.
    pub fn thread(&self) -> ThreadBuilder {
        self.library().thread()
    }

    /// What the simulated program may have.
    #[must_use]
    pub fn handle(&self) -> SimHandle {
        SimHandle {
            world: self.world.clone(),
        }
    }

    /// The clock of the simulation.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.world.clock
    }

    /// The time since the begin.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.world.clock.duration_from(self.world.now())
    }

    /// What has happened.
    #[must_use]
    pub fn trace(&self) -> Trace {
        let state = self.world.state();
        state.trace.trace(&self.world.clock, &self.numbers)
    }

    /// How many polls of threads there were.
    #[must_use]
    pub fn polls(&self) -> u64 {
        self.world.state().polls
    }

    /// How many turns of reactors there were.
    #[must_use]
    pub fn turns(&self) -> u64 {
        self.turns
    }
}

/// Steps.
impl Sim {
    /// The next thing that happens: a turn of a reactor, or something outside of all
    /// cores. Says whether there was any.
    pub fn step(&mut self) -> bool {
        match (self.next_core(), self.world.next_timer()) {
            (core, Some(timer)) if core.is_none_or(|(at, _)| timer <= at) => {
                self.world.hand.set(timer.max(self.world.now()));
                self.world.run_timer();
            }
            (Some((at, core)), _) => self.turn_at(core, at),
            (None, _) => return false,
        }
        true
    }

    /// One turn of the reactor on `core`, now, whether it finds something or not. Says
    /// whether it did. A reactor that sleeps is woken.
    ///
    /// # Panics
    ///
    /// When there is no such core.
    #[track_caller]
    pub fn turn(&mut self, core: usize) -> bool {
        let index = self.numbers.iter().position(|&number| number == core);
        let index = index.unwrap_or_else(|| panic!("no core {core} is simulated"));
        if self.cores[index].reactor.is_done() {
            return false;
        }
        let at = self.world.now().max(self.cores[index].time);
        self.turn_at(index, at);
        self.cores[index].rest == Rest::Worked
    }

    /// Lets time pass that no core has had: a turn after it finds what is due.
    pub fn advance(&mut self, time: Duration) {
        self.world.hand.advance_by(time);
    }

    /// Which core is next, and when.
    fn next_core(&self) -> Option<(u64, usize)> {
        let mut first: Option<(u64, usize)> = None;
        let mut equals = 1;
        for (index, core) in self.cores.iter().enumerate() {
            let at = core.next.min(self.world.alarm(index));
            if at == NEVER {
                continue;
            }
            let at = at.max(core.time);
            match first {
                Some((best, _)) if best < at => {}
                Some((best, other)) if best == at => {
                    equals += 1;
                    if self.goes_before(index, other, equals) {
                        first = Some((at, index));
                    }
                }
                _ => {
                    equals = 1;
                    first = Some((at, index));
                }
            }
        }
        first
    }

    /// Of so many cores at the same moment, whether `one` goes before the others, or
    /// `other`.
    fn goes_before(&self, one: usize, other: usize, equals: u32) -> bool {
        let dice = &mut self.world.state().dice;
        match dice.leaves_order_to_chance() {
            true => dice.rng.u32(0..equals) == 0,
            false => self.cores[one].turned < self.cores[other].turned,
        }
    }

    /// The turn of a core that begins at tick `at`.
    fn turn_at(&mut self, index: usize, at: u64) {
        let (world, core) = (&self.world, &mut self.cores[index]);
        if core.rest == Rest::Idle && at > core.time + 1 && core.turned > 0 {
            // What it has polled for nothing since.
            world.hand.set(at - 1);
            world.state().between = true;
            core.rest = world.on_behalf_of(Sender::Core(index), || core.reactor.turn());
            world.state().between = false;
        }
        world.hand.set(at);
        if core.rest == Rest::Asleep {
            core.reactor.wake();
        }
        world.take_alarm(index, at);
        shuffle(world, &mut core.reactor);
        core.rest = world.on_behalf_of(Sender::Core(index), || core.reactor.turn());
        self.turns += 1;
        core.turned = self.turns;
        let (end, time) = {
            let mut state = world.state();
            state.trace.hash(&[1, at, index as u64, core.rest as u64]);
            (world.now(), state.dice.turn())
        };
        core.time = end.saturating_add(time);
        core.next = next(world, core, index);
        // For code that looks between two steps: nothing is later than the next.
        world.hand.set(at);
    }

    /// Whether code of the user's has panicked.
    fn check(&self) -> Result<(), SimError> {
        if self.contains_panics {
            return Ok(());
        }
        match self.world.state().panics.first() {
            None => Ok(()),
            Some(message) => Err(SimError::Panicked {
                seed: self.world.seed,
                now: self.now(),
                message: message.clone(),
            }),
        }
    }
}

/// The threads of a core in another order.
fn shuffle(world: &World, reactor: &mut Stepped<View>) {
    let dice = &mut world.state().dice;
    let count = reactor.awake();
    if count < 2 || !dice.leaves_order_to_chance() {
        return;
    }
    for place in 1..count.min(SHUFFLED) {
        let first = place - 1;
        reactor.swap(first, dice.rng.usize(first..count));
    }
}

/// When the next turn of a core finds something, as far as it knows.
fn next(world: &World, core: &Core, index: usize) -> u64 {
    if core.reactor.is_done() {
        return NEVER;
    }
    let known = || {
        let known = core.reactor.next().into_iter();
        known.chain(world.next_event(index)).min().unwrap_or(NEVER)
    };
    match core.rest {
        Rest::Worked | Rest::HasWork => core.time,
        Rest::Idle | Rest::Asleep => known(),
        // A spin takes time, also where polls take none.
        Rest::Spins => known().min(core.time + world.clock.ticks_from(SPIN).max(1)),
    }
}

fn described(panic: &ContainedPanic<'_>) -> String {
    let name = panic.name.map(|name| format!(" {name}"));
    let name = name.unwrap_or_default();
    let (thread, source, message) = (panic.thread, panic.source, panic.message);
    format!("{thread:?}: {source:?}{name} panicked: {message}")
}

/// Runs to a goal.
impl Sim {
    /// Steps until `goal` says yes.
    ///
    /// # Errors
    ///
    /// [`SimError`]: nothing is left to run, or it is not reached within the
    /// [limit](SimBuilder::turn_limit), or code of the user's has panicked.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::{Arc, atomic::{AtomicBool, Ordering::Relaxed}};
    /// use corespun::sim::Sim;
    ///
    /// let mut sim = Sim::builder().cores(2).build();
    /// let (done, told) = (Arc::new(AtomicBool::new(false)), Arc::default());
    /// let seen = Arc::clone(&told);
    /// sim.reactors().send_event(1, move || AtomicBool::store(&told, true, Relaxed)).unwrap();
    /// sim.run_until(|| seen.load(Relaxed))?;
    /// // Nothing sets `done`.
    /// assert!(sim.run_until(|| done.load(Relaxed)).is_err());
    /// # Ok::<(), corespun::sim::SimError>(())
    /// ```
    pub fn run_until(&mut self, mut goal: impl FnMut() -> bool) -> Result<(), SimError> {
        let begun = Begun::now(self);
        loop {
            self.check()?;
            if goal() {
                return Ok(());
            }
            if self.turns - begun.turns >= self.turn_limit {
                return Err(self.too_long(&begun));
            }
            if !self.step() {
                self.check()?;
                return match goal() {
                    true => Ok(()),
                    false => Err(self.nothing_left()),
                };
            }
        }
    }

    /// Steps until nothing is left to run, to arrive or to be due.
    ///
    /// # Errors
    ///
    /// [`SimError`], that there is nothing left apart.
    pub fn run_until_idle(&mut self) -> Result<(), SimError> {
        match self.run_until(|| false) {
            Err(SimError::NothingLeft { .. }) => Ok(()),
            other => other,
        }
    }

    /// Steps until so much time has passed; all of it passes also when nothing is left.
    ///
    /// # Errors
    ///
    /// [`SimError`], that there is nothing left apart.
    pub fn run_for(&mut self, time: Duration) -> Result<(), SimError> {
        let begun = Begun::now(self);
        let end = self.world.now();
        let end = end.saturating_add(self.world.clock.ticks_from(time));
        loop {
            self.check()?;
            let core = self.next_core().map(|(at, _)| at);
            let next = core.into_iter().chain(self.world.next_timer()).min();
            if next.is_none_or(|next| next > end) {
                self.world.hand.set(end);
                return Ok(());
            }
            if self.turns - begun.turns >= self.turn_limit {
                return Err(self.too_long(&begun));
            }
            self.step();
        }
    }

    /// Runs a future as a task of the thread "main", which is on the first core and is
    /// made for the first call; steps until the task has ended.
    ///
    /// # Panics
    ///
    /// With the [`SimError`] if that is not reached, and with the future's own panic.
    #[track_caller]
    pub fn block_on<F>(&mut self, future: F) -> F::Output
    where
        F: IntoFuture + 'static,
        F::IntoFuture: 'static,
        F::Output: 'static,
    {
        match self.try_block_on(future) {
            Ok(output) => output,
            Err(error) => panic!("{error}"),
        }
    }

    /// [`block_on`](Self::block_on) that returns the error. The task goes on then.
    ///
    /// # Errors
    ///
    /// As [`run_until`](Self::run_until).
    ///
    /// # Panics
    ///
    /// With the future's own panic.
    #[track_caller]
    pub fn try_block_on<F>(&mut self, future: F) -> Result<F::Output, SimError>
    where
        F: IntoFuture + 'static,
        F::IntoFuture: 'static,
        F::Output: 'static,
    {
        let main = self.main_thread();
        let ended = Rc::new(Cell::new(false));
        let task = self.enter(&main, || {
            let future = future.into_future();
            let ended = ended.clone();
            task::spawn_local(async move {
                let result = std::panic::AssertUnwindSafe(future).catch_unwind().await;
                ended.set(true);
                result
            })
        })?;
        self.run_until(|| ended.get() || task.is_finished())?;
        match task.now_or_never() {
            Some(Ok(Ok(output))) => Ok(output),
            Some(Ok(Err(payload))) => std::panic::resume_unwind(payload),
            Some(Err(error)) => panic!("the main thread has ended: {error}"),
            None => unreachable!("it has ended"),
        }
    }

    /// Makes a thread the current one while `f` runs, without polling it, as
    /// [`ThreadRunner::enter`](crate::thread::ThreadRunner::enter): to spawn what is not
    /// `Send`, or register pollers, from outside. A thread that is on its way to a core is
    /// waited for.
    ///
    /// # Errors
    ///
    /// As [`run_until`](Self::run_until), when it does not come to any core.
    ///
    /// # Panics
    ///
    /// With the panic of `f`.
    pub fn enter<R>(&mut self, thread: &SpdkThread, f: impl FnOnce() -> R) -> Result<R, SimError> {
        let begun = Begun::now(self);
        let mut f = Some(f);
        loop {
            for (index, core) in self.cores.iter_mut().enumerate() {
                if core.reactor.threads().all(|one| one.id() != thread.id()) {
                    continue;
                }
                self.world.set_alarm(index, self.world.now());
                let enter = || f.take().map(|f| f());
                let world = &self.world;
                let entered = world.on_behalf_of(Sender::Core(index), || {
                    core.reactor.enter(thread.id(), enter)
                });
                return Ok(entered.flatten().expect("it is here, and entered once"));
            }
            self.check()?;
            if self.turns - begun.turns >= self.turn_limit {
                return Err(self.too_long(&begun));
            }
            if !self.step() {
                return Err(self.nothing_left());
            }
        }
    }

    fn main_thread(&mut self) -> SpdkThread {
        if let Some(main) = &self.main
            && main.is_running()
        {
            return main.clone();
        }
        let core = CpuSet::single(self.numbers[0]);
        let main = self.thread().name("main").cpumask(core).build();
        let main = main.expect("a thread of usual settings");
        let handle = main.handle();
        self.cores[0].reactor.arrive(main);
        self.main = Some(handle.clone());
        handle
    }

    /// Stops the reactors as the end of an app does, and steps until all their threads
    /// have exited.
    ///
    /// # Errors
    ///
    /// As [`run_until`](Self::run_until).
    pub fn stop(&mut self) -> Result<(), SimError> {
        self.reactors.stop();
        let begun = Begun::now(self);
        while !self.cores.iter().all(|core| core.reactor.is_done()) {
            self.check()?;
            if self.turns - begun.turns >= self.turn_limit {
                return Err(self.too_long(&begun));
            }
            if !self.step() {
                return Err(self.nothing_left());
            }
        }
        self.check()
    }
}

/// Where a run has begun.
struct Begun {
    turns: u64,
    busy: Vec<(u64, u64)>,
}

impl Begun {
    fn now(sim: &Sim) -> Self {
        Begun {
            turns: sim.turns,
            busy: sim.world.state().busy_polls(),
        }
    }
}

/// Reports.
impl Sim {
    fn nothing_left(&self) -> SimError {
        let threads = self.cores.iter().flat_map(|core| core.reactor.threads());
        let waits = |thread: &crate::thread::ThreadRunner| {
            let holders = thread.exit_holders();
            let holders: Vec<_> = holders.iter().map(ToString::to_string).collect();
            let named = format!("{:?}: {}", thread.name(), holders.join(", "));
            (!holders.is_empty()).then_some(named)
        };
        let waiting = threads.filter_map(waits).take(NAMED).collect();
        SimError::NothingLeft {
            seed: self.world.seed,
            now: self.now(),
            waiting,
        }
    }

    fn too_long(&self, begun: &Begun) -> SimError {
        let mut busy = self.world.state().busy_polls();
        for (thread, before) in &begun.busy {
            if let Some((_, polls)) = busy.iter_mut().find(|(one, _)| one == thread) {
                *polls -= before;
            }
        }
        busy.retain(|&(_, polls)| polls > 0);
        busy.sort_by_key(|&(thread, polls)| (std::cmp::Reverse(polls), thread));
        let name = |id| {
            let thread = self.library().thread_by_id(id);
            thread.map_or_else(|| format!("thread {id}"), |one| format!("{:?}", one.name()))
        };
        let busy = busy.into_iter();
        let busy = busy.map(|(id, polls)| format!("{} in {polls} polls", name(id)));
        let threads = self.cores.iter().flat_map(|core| core.reactor.threads());
        let awake = threads.filter_map(|thread| {
            let poller = thread.active_poller_name()?;
            Some(format!("{:?} keeps poller {poller}", thread.name()))
        });
        SimError::TurnLimit {
            seed: self.world.seed,
            turns: self.turns - begun.turns,
            now: self.now(),
            busy: busy.chain(awake).take(NAMED).collect(),
        }
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The user cannot be told in another way, and it is said where the panic is.
            eprintln!("simulation with seed {}:\n{}", self.seed(), self.trace());
        }
        self.reactors.stop();
        self.main = None;
        for (index, core) in self.cores.iter_mut().enumerate() {
            let world = &self.world;
            let end = || world.on_behalf_of(Sender::Core(index), || core.reactor.end());
            if let Err(payload) = contain(end) {
                discard(payload);
            }
        }
        self.world.end();
    }
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sim")
            .field("seed", &self.seed())
            .field("cores", &self.numbers)
            .field("now", &self.now())
            .field("turns", &self.turns)
            .finish_non_exhaustive()
    }
}
