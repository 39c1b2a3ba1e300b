//! Pollers: callbacks that a thread runs on every poll (active) or after each
//! period (timed), and the handle that owns one.
//!
//! All of this belongs to the thread's owner. A callback is taken out of its
//! poller while it runs, so registering, pausing, resuming and unregistering
//! anything from inside it only flips states that the pass looks at afterwards.

mod handle;
#[cfg(all(test, corespun_loom))]
mod loom_tests;
mod send;

use std::cell::{Cell, OnceCell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

pub use handle::{Polled, Poller, PollerBuilder};
pub use send::SendPoller;
use slab::Slab;

use super::activity::Activity;
use super::bound::BoundBy;
use super::local::Local;
use super::panic::{PanicSource, Payload, contain};
use super::stall::Occupant;
use super::timer_queue::TimerKey;

/// Where a poller stands; the text forms are SPDK's.
///
/// # Examples
///
/// As text they are SPDK's names:
///
/// ```
/// use corespun::thread::{Poller, PollerState, ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let poller = runner.enter(|| Poller::active(|| ()))?;
/// assert_eq!(poller.state(), PollerState::Waiting);
/// assert_eq!(poller.state().to_string(), "waiting");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PollerState {
    /// Waits for its turn.
    Waiting,
    /// Its callback runs now.
    Running,
    /// Will never run again.
    Unregistered,
    /// Will be paused at its next turn, without running.
    Pausing,
    /// Is paused.
    Paused,
}

impl fmt::Display for PollerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PollerState::Waiting => "waiting",
            PollerState::Running => "running",
            PollerState::Unregistered => "unregistered",
            PollerState::Pausing => "pausing",
            PollerState::Paused => "paused",
        })
    }
}

/// How often a poller ran.
///
/// # Examples
///
/// ```
/// use corespun::thread::{Poller, ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let poller = runner.enter(|| Poller::active(|| false))?;
/// runner.poll(0, 0);
/// let stats = poller.stats();
/// // It has looked once, for nothing.
/// assert_eq!((stats.run_count, stats.busy_count), (1, 0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PollerStats {
    /// Times the callback was called.
    pub run_count: u64,
    /// Times it returned [`Activity::Busy`].
    pub busy_count: u64,
}

/// Why a poller could not be registered.
///
/// # Examples
///
/// ```
/// use corespun::thread::{Poller, PollerError};
///
/// let error = Poller::active(|| ()).unwrap_err();
/// assert!(matches!(error, PollerError::NotOnThread));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PollerError {
    /// No SpdkThread is current on this OS thread.
    #[error(
        "a poller must be registered on a SpdkThread: call this from a message, task or poller"
    )]
    NotOnThread,
    /// The current thread is about to read EXITED.
    #[error("thread {0:?} has exited and takes no poller")]
    Exited(String),
}

type Callback = Box<dyn FnMut() -> Activity>;

/// Finds a poller again on its thread. Any OS thread may have it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PollerKey {
    slot: usize,
    /// Unique on its thread, starting at 1.
    id: u64,
}

impl PollerKey {
    fn occupant(self, name: Option<&str>) -> Occupant<'_> {
        Occupant::Poller { name, id: self.id }
    }
}

pub(crate) struct PollerCore {
    callback: Cell<Option<Callback>>,
    state: Cell<PollerState>,
    /// Where the thread finds it, and its number.
    key: PollerKey,
    /// The callback, and the switch hook, may not be `Send`.
    stays: bool,
    /// A [`Poller`] of it is there, which binds.
    has_handle: Cell<bool>,
    name: Option<String>,
    period: u64,
    timer: Cell<Option<TimerKey>>,
    /// Its place in the active list; 0 while it has none.
    place: Cell<u64>,
    run_count: Cell<u64>,
    busy_count: Cell<u64>,
    interrupt: OnceCell<Box<PollerInterrupt>>,
}

/// Hears of mode switches.
type SwitchHook = Box<dyn FnMut(bool)>;

/// What a poller with an interrupt of its own needs: it is *suspended* in
/// interrupt mode, in no list of those that run.
struct PollerInterrupt {
    hook: Cell<Option<SwitchHook>>,
    suspended: Cell<bool>,
    /// Ticks that were left of a timed poller's period.
    remaining: Cell<u64>,
}

impl PollerCore {
    fn is_suspended(&self) -> bool {
        let interrupt = self.interrupt.get();
        interrupt.is_some_and(|interrupt| interrupt.suspended.get())
    }

    pub(crate) fn name(&self) -> String {
        self.occupant().describe()
    }

    /// What the thread is occupied with while the callback runs.
    fn occupant(&self) -> Occupant<'_> {
        self.key.occupant(self.name.as_deref())
    }

    pub(super) fn id(&self) -> u64 {
        self.key.id
    }

    fn stats(&self) -> PollerStats {
        PollerStats {
            run_count: self.run_count.get(),
            busy_count: self.busy_count.get(),
        }
    }

    pub(crate) fn is_registered(&self) -> bool {
        self.state.get() != PollerState::Unregistered
    }
}

/// An entry of the active list, good while the poller has that place: one that is
/// resumed is the newest again, although its old entry may still be in the list.
struct Listed {
    poller: Rc<PollerCore>,
    place: u64,
}

impl Listed {
    #[inline]
    fn is_good(&self) -> bool {
        self.poller.place.get() == self.place
    }
}

/// The pollers of one thread that are not in its timer queue, and counts of
/// all of them.
#[derive(Default)]
pub(crate) struct PollerLists {
    /// Those that are registered.
    all: RefCell<Slab<Rc<PollerCore>>>,
    active: Cell<Vec<Listed>>,
    last_place: Cell<u64>,
    /// Some entries of `active` are not good any more.
    stale: Cell<bool>,
    paused: RefCell<Vec<Rc<PollerCore>>>,
    suspended: RefCell<Vec<Rc<PollerCore>>>,
    /// All that have an interrupt of their own.
    with_interrupt: RefCell<Vec<Rc<PollerCore>>>,
    next_id: Cell<u64>,
    active_count: Cell<usize>,
}

impl PollerLists {
    /// Pollers that are not unregistered.
    pub(crate) fn registered(&self) -> usize {
        self.all.borrow().len()
    }

    /// The poller of `key`, unless it is unregistered.
    fn find(&self, key: PollerKey) -> Option<Rc<PollerCore>> {
        let all = self.all.borrow();
        // The slot may have another by now.
        all.get(key.slot)
            .filter(|poller| poller.key.id == key.id)
            .cloned()
    }

    /// Active pollers that are not paused.
    pub(crate) fn active_count(&self) -> usize {
        self.active_count.get()
    }

    fn add_active(&self, poller: &Rc<PollerCore>) {
        bump(&self.active_count, 1);
        let place = self.last_place.get() + 1;
        self.last_place.set(place);
        poller.place.set(place);
        let mut active = self.active.take();
        active.push(Listed {
            poller: poller.clone(),
            place,
        });
        self.active.set(active);
    }

    fn leave_active(&self, poller: &PollerCore) {
        bump(&self.active_count, -1);
        poller.place.set(0);
        self.stale.set(true);
    }

    /// Takes out of the active list what does not belong there any more.
    #[inline]
    fn reap(&self, pass: &mut Vec<Listed>) {
        if self.stale.replace(false) {
            pass.retain(Listed::is_good);
        }
    }

    /// Whether a poller has an interrupt of its own.
    pub(super) fn has_interrupts(&self) -> bool {
        !self.with_interrupt.borrow().is_empty()
    }

    /// The newest poller that every poll runs, as `f` sees it.
    pub(super) fn with_newest_active<R>(&self, f: impl FnOnce(&PollerCore) -> R) -> Option<R> {
        let active = self.active.take();
        let newest = active.iter().rev().find(|listed| listed.is_good());
        let seen = newest.map(|listed| f(&listed.poller));
        self.active.set(active);
        seen
    }

    /// Names those that bind their thread. Says how many handles do so besides.
    pub(super) fn binders(&self, by: &mut Vec<BoundBy>) -> usize {
        let mut handles = 0;
        for (_, poller) in self.all.borrow().iter() {
            handles += usize::from(poller.has_handle.get());
            if poller.stays {
                by.push(BoundBy::Poller(poller.name()));
            }
        }
        handles
    }

    /// Every poller outside the timer queue.
    pub(crate) fn for_each(&self, mut f: impl FnMut(&PollerCore)) {
        let active = self.active.take();
        let good = active.iter().filter(|listed| listed.is_good());
        good.for_each(|listed| f(&listed.poller));
        let registered_meanwhile = self.active.replace(active);
        debug_assert!(registered_meanwhile.is_empty());
        self.paused.borrow().iter().for_each(|poller| f(poller));
        let suspended = self.suspended.borrow();
        suspended.iter().for_each(|poller| f(poller));
    }

    /// Every poller outside the timer queue, taken out of the lists.
    fn take_all(&self) -> Vec<Rc<PollerCore>> {
        let active = self.active.take();
        let mut all: Vec<_> = active.into_iter().map(|listed| listed.poller).collect();
        all.append(&mut self.paused.borrow_mut());
        all.append(&mut self.suspended.borrow_mut());
        all
    }
}

fn bump(counter: &Cell<usize>, by: isize) {
    counter.set(counter.get().wrapping_add_signed(by));
}

/// The part of one poll that runs pollers.
impl Local {
    /// Active pollers, newest first; what is registered meanwhile waits for
    /// the next pass.
    pub(crate) fn run_active_pollers(&self) -> Activity {
        let lists = &self.pollers;
        // Taking the list, though empty, is a third of an idle poll's work.
        if lists.active_count.get() == 0 && !lists.stale.get() {
            return Activity::Idle;
        }
        let mut pass = lists.active.take();
        lists.reap(&mut pass);
        let mut activity = Activity::Idle;
        for listed in pass.iter().rev() {
            if !listed.is_good() {
                continue;
            }
            let poller = &listed.poller;
            let runs = poller.state.get() == PollerState::Waiting;
            activity = activity.max(self.run_poller(poller));
            if runs {
                self.run_post_pollers();
            }
        }
        lists.reap(&mut pass);
        pass.append(&mut lists.active.take());
        lists.active.set(pass);
        activity
    }

    /// Runs the callback of a poller whose turn it is.
    #[inline(always)]
    pub(crate) fn run_poller(&self, poller: &Rc<PollerCore>) -> Activity {
        if poller.state.get() != PollerState::Waiting {
            return self.pass_over(poller);
        }
        let Some(mut callback) = poller.callback.take() else {
            return Activity::Ignored;
        };
        poller.state.set(PollerState::Running);
        let watched = self.stall_limit > 0;
        let start = watched.then(|| self.callback_begins(poller.occupant()));
        let outcome = contain(&mut callback);
        self.check_held_locks();
        if let Some(start) = start {
            self.callback_ends(poller.occupant(), start);
        }
        poller.run_count.set(poller.run_count.get() + 1);
        let activity = match outcome {
            Ok(activity) => activity,
            Err(payload) => self.end_panicked(poller, payload),
        };
        if activity == Activity::Busy {
            poller.busy_count.set(poller.busy_count.get() + 1);
        }
        if poller.state.get() == PollerState::Running {
            poller.state.set(PollerState::Waiting);
            poller.callback.set(Some(callback));
        } else {
            self.settle(poller, callback);
        }
        activity
    }

    /// The turn of a poller that does not run.
    #[cold]
    fn pass_over(&self, poller: &Rc<PollerCore>) -> Activity {
        if poller.state.get() == PollerState::Pausing {
            self.pause_now(poller);
        }
        Activity::Ignored
    }

    #[cold]
    fn end_panicked(&self, poller: &Rc<PollerCore>, payload: Payload) -> Activity {
        self.report_panic(PanicSource::Poller, Some(&poller.name()), payload);
        self.unregister_poller(poller);
        Activity::Busy
    }

    /// Does what a callback asked for its own poller, once it has returned.
    #[cold]
    fn settle(&self, poller: &Rc<PollerCore>, callback: Callback) {
        if poller.state.get() == PollerState::Unregistered {
            return self.drop_contained(callback);
        }
        poller.callback.set(Some(callback));
        if poller.state.get() == PollerState::Pausing {
            self.pause_now(poller);
        }
    }

    fn pause_now(&self, poller: &Rc<PollerCore>) {
        poller.state.set(PollerState::Paused);
        if poller.is_suspended() {
            self.forget_suspended(poller);
        } else {
            match poller.timer.take() {
                Some(key) => drop(self.timers.borrow_mut().remove(key)),
                None => self.pollers.leave_active(poller),
            }
        }
        self.pollers.paused.borrow_mut().push(poller.clone());
    }

    /// Registers what `make` makes, given the key that it will have. `stays` says
    /// that it may not be `Send`.
    fn register_poller<A, F>(
        &self,
        settings: PollerBuilder,
        stays: bool,
        make: impl FnOnce(PollerKey) -> F,
    ) -> Result<Rc<PollerCore>, PollerError>
    where
        A: Into<Activity>,
        F: FnMut() -> A + 'static,
    {
        if self.refuses_work() {
            return Err(PollerError::Exited(self.shared.name().to_owned()));
        }
        let lists = &self.pollers;
        lists.next_id.set(lists.next_id.get() + 1);
        let key = PollerKey {
            slot: lists.all.borrow().vacant_key(),
            id: lists.next_id.get(),
        };
        let mut callback = self.anchor.bind_if(stays, make(key));
        let callback = Box::new(move || (callback.get_mut())().into());
        let PollerBuilder { name, period } = settings;
        let clock = &self.shared.library.clock;
        let period = match period {
            Duration::ZERO => 0,
            // A period shorter than a tick must still move time on.
            period => clock.ticks_from(period).max(1),
        };
        let poller = Rc::new(PollerCore {
            callback: Cell::new(Some(callback)),
            state: Cell::new(PollerState::Waiting),
            key,
            stays,
            has_handle: Cell::new(stays),
            name,
            period,
            timer: Cell::new(None),
            place: Cell::new(0),
            run_count: Cell::new(0),
            busy_count: Cell::new(0),
            interrupt: OnceCell::new(),
        });
        lists.all.borrow_mut().insert(poller.clone());
        self.enlist(&poller);
        Ok(poller)
    }

    fn enlist(&self, poller: &Rc<PollerCore>) {
        if let Some(interrupt) = poller.interrupt.get()
            && self.in_interrupt_mode()
        {
            interrupt.suspended.set(true);
            interrupt.remaining.set(poller.period);
            self.pollers.suspended.borrow_mut().push(poller.clone());
        } else if poller.period == 0 {
            self.pollers.add_active(poller);
        } else {
            self.arm_poller(poller);
        }
    }

    fn arm_poller(&self, poller: &Rc<PollerCore>) {
        let now = self.shared.library.clock.now();
        let key = self.insert_timer(
            now.saturating_add(poller.period),
            super::local::TimerTarget::Poller(poller.clone()),
        );
        poller.timer.set(Some(key));
    }

    /// The re-arm of a timed poller whose entry is the first of the queue. Says how
    /// many insertions there had been then.
    pub(crate) fn rearm_first_poller(&self, poller: &PollerCore, now: u64) -> u32 {
        let mut timers = self.timers.borrow_mut();
        timers.rearm_first(now.saturating_add(poller.period));
        timers.insertions()
    }

    /// Puts a poller that was re-armed behind what its callback has armed.
    #[inline]
    pub(crate) fn rearmed_poller_ran(&self, poller: &PollerCore, armed: u32) {
        let mut timers = self.timers.borrow_mut();
        if timers.insertions() != armed
            && let Some(key) = poller.timer.get()
        {
            timers.put_behind_equals(key);
        }
    }

    /// Every poller with an interrupt hears of a mode switch.
    #[cold]
    pub(super) fn switch_pollers(&self, to_interrupt: bool) {
        let concerned = self.pollers.with_interrupt.borrow().clone();
        for poller in concerned {
            self.switch_poller(&poller, to_interrupt);
        }
    }

    fn switch_poller(&self, poller: &Rc<PollerCore>, to_interrupt: bool) {
        let Some(interrupt) = poller.interrupt.get() else {
            return;
        };
        if !poller.is_registered() {
            return;
        }
        if let Some(mut hook) = interrupt.hook.take() {
            if let Err(payload) = contain(|| hook(to_interrupt)) {
                self.report_panic(PanicSource::Poller, Some(&poller.name()), payload);
            }
            self.check_held_locks();
            // It may have ended its poller, or set another hook.
            let later = interrupt.hook.take();
            if poller.is_registered() && later.is_none() {
                interrupt.hook.set(Some(hook));
            } else {
                interrupt.hook.set(later);
                self.drop_contained(hook);
            }
        }
        match poller.state.get() {
            PollerState::Unregistered | PollerState::Paused => {}
            _ if to_interrupt => self.suspend_poller(poller, interrupt),
            _ => self.unsuspend_poller(poller, interrupt),
        }
    }

    fn suspend_poller(&self, poller: &Rc<PollerCore>, interrupt: &PollerInterrupt) {
        if interrupt.suspended.get() {
            return;
        }
        if poller.state.get() == PollerState::Pausing {
            // No turn will come at which that could take effect, except that of
            // a callback that runs now.
            let callback = poller.callback.take();
            if callback.is_some() {
                poller.callback.set(callback);
                self.pause_now(poller);
            }
            return;
        }
        interrupt.suspended.set(true);
        match poller.timer.take() {
            Some(key) => {
                let mut timers = self.timers.borrow_mut();
                let deadline = timers.deadline(key).unwrap_or(0);
                let now = self.shared.library.clock.now();
                interrupt.remaining.set(deadline.saturating_sub(now));
                drop(timers.remove(key));
            }
            None => self.pollers.leave_active(poller),
        }
        self.pollers.suspended.borrow_mut().push(poller.clone());
    }

    fn unsuspend_poller(&self, poller: &Rc<PollerCore>, interrupt: &PollerInterrupt) {
        if !interrupt.suspended.replace(false) {
            return;
        }
        self.forget_suspended(poller);
        if poller.period == 0 {
            self.pollers.add_active(poller);
            return;
        }
        let now = self.shared.library.clock.now();
        let target = super::local::TimerTarget::Poller(poller.clone());
        let key = self.insert_timer(now.saturating_add(interrupt.remaining.get()), target);
        poller.timer.set(Some(key));
    }

    fn forget_suspended(&self, poller: &Rc<PollerCore>) {
        if let Some(interrupt) = poller.interrupt.get() {
            interrupt.suspended.set(false);
        }
        let mut suspended = self.pollers.suspended.borrow_mut();
        suspended.retain(|other| !Rc::ptr_eq(other, poller));
    }

    /// `hook` is `Send` if the callback of the poller is.
    fn set_poller_interrupt(&self, poller: &Rc<PollerCore>, hook: impl FnMut(bool) + 'static) {
        let mut hook = self.anchor.bind_if(poller.stays, hook);
        let hook: SwitchHook = Box::new(move |on| (hook.get_mut())(on));
        if !poller.is_registered() {
            return self.drop_contained(hook);
        }
        let interrupt = poller.interrupt.get_or_init(|| {
            let all = &self.pollers.with_interrupt;
            all.borrow_mut().push(poller.clone());
            Box::new(PollerInterrupt {
                hook: Cell::new(None),
                suspended: Cell::new(false),
                remaining: Cell::new(poller.period),
            })
        });
        let before = interrupt.hook.replace(Some(hook));
        self.drop_contained(before);
        if self.in_interrupt_mode() {
            self.switch_poller(poller, true);
        }
    }

    fn pause_poller(&self, poller: &Rc<PollerCore>) {
        // No turn will come at which it could take effect.
        if poller.is_suspended() && poller.state.get() == PollerState::Waiting {
            return self.pause_now(poller);
        }
        if matches!(
            poller.state.get(),
            PollerState::Waiting | PollerState::Running
        ) {
            poller.state.set(PollerState::Pausing);
        }
    }

    fn resume_poller(&self, poller: &Rc<PollerCore>) {
        match poller.state.get() {
            PollerState::Pausing => poller.state.set(PollerState::Waiting),
            PollerState::Paused => {
                self.pollers
                    .paused
                    .borrow_mut()
                    .retain(|other| !Rc::ptr_eq(other, poller));
                poller.state.set(PollerState::Waiting);
                self.enlist(poller);
            }
            _ => {}
        }
    }

    pub(crate) fn unregister_poller(&self, poller: &Rc<PollerCore>) {
        let before = poller.state.replace(PollerState::Unregistered);
        if before == PollerState::Unregistered {
            return;
        }
        let lists = &self.pollers;
        lists.all.borrow_mut().remove(poller.key.slot);
        if let Some(interrupt) = poller.interrupt.get() {
            let all = &lists.with_interrupt;
            all.borrow_mut().retain(|other| !Rc::ptr_eq(other, poller));
            self.drop_contained(interrupt.hook.take());
        }
        if before == PollerState::Paused {
            lists
                .paused
                .borrow_mut()
                .retain(|other| !Rc::ptr_eq(other, poller));
        } else if poller.is_suspended() {
            self.forget_suspended(poller);
        } else if let Some(key) = poller.timer.take() {
            let removed = self.timers.borrow_mut().remove(key);
            drop(removed);
        } else if poller.period == 0 {
            lists.leave_active(poller);
        }
        // Absent while it runs; then the pass drops it.
        if let Some(callback) = poller.callback.take() {
            self.drop_contained(callback);
        }
        self.ended_outside();
    }

    /// Unregisters every poller: the end of a forced exit.
    pub(crate) fn unregister_all_pollers(&self) {
        for poller in self.pollers.take_all() {
            self.unregister_poller(&poller);
        }
    }
}
