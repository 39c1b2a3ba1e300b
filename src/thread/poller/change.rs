//! What is done to pollers: they are registered, paused, resumed, suspended by a
//! switch of modes, unregistered; each from anywhere, their own callbacks included.

use std::cell::{Cell, OnceCell};
use std::rc::Rc;
use std::time::Duration;

use super::{
    PollerBuilder, PollerCore, PollerError, PollerInterrupt, PollerKey, PollerPlace, SwitchHook,
    Turn,
};
use crate::thread::Exited;
use crate::thread::local::{Local, TimerTarget};
use crate::thread::panic::{PanicSource, contain};
use crate::thread::poll::activity::Activity;

impl Local {
    /// Registers what `make` makes, given the key that it will have. `stays` says
    /// that it may not be `Send`.
    pub(super) fn register_poller<A, F>(
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
            let gone = "has exited and takes no poller";
            return Err(Exited::new(self.shared.name(), gone).into());
        }
        let key = self.pollers.next_key();
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
            turn: Cell::new(Turn::None),
            place: Cell::new(PollerPlace::Paused),
            key,
            stays,
            has_handle: Cell::new(stays),
            name,
            period,
            run_count: Cell::new(0),
            busy_count: Cell::new(0),
            interrupt: OnceCell::new(),
        });
        self.pollers.insert(poller.clone());
        self.start_poller(&poller);
        Ok(poller)
    }

    /// Gives a poller that has no place the one where it runs, a full period from now.
    fn start_poller(&self, poller: &Rc<PollerCore>) {
        poller.turn.set(Turn::Runs);
        if poller.interrupt.get().is_some() && self.in_interrupt_mode() {
            let remaining = poller.period;
            poller.place.set(PollerPlace::Suspended { remaining });
        } else {
            self.place_in(poller, poller.period);
        }
    }

    /// Places a poller among those that run, a timed one so many ticks from now.
    fn place_in(&self, poller: &Rc<PollerCore>, ticks: u64) {
        if poller.period == 0 {
            return self.pollers.add_active(poller);
        }
        let now = self.shared.library.clock.now();
        let target = TimerTarget::Poller(poller.clone());
        let key = self.insert_timer(now.saturating_add(ticks), target);
        poller.place.set(PollerPlace::Timed(key));
    }

    /// Takes a poller from its place to one in which it does not run.
    fn displace(&self, poller: &PollerCore, place: PollerPlace) {
        match poller.place.replace(place) {
            PollerPlace::Active(_) => self.pollers.leave_active(),
            PollerPlace::Timed(key) => {
                let removed = self.timers.borrow_mut().remove(key);
                drop(removed);
            }
            PollerPlace::Suspended { .. } | PollerPlace::Paused | PollerPlace::Gone => {}
        }
    }

    pub(super) fn pause_now(&self, poller: &PollerCore) {
        self.displace(poller, PollerPlace::Paused);
        poller.turn.set(Turn::None);
    }

    pub(super) fn pause_poller(&self, poller: &Rc<PollerCore>) {
        match poller.turn.get() {
            // No turn will come at which it could take effect.
            Turn::Runs if poller.is_suspended() => self.pause_now(poller),
            Turn::Runs | Turn::Running => poller.turn.set(Turn::Pauses),
            Turn::Pauses | Turn::None => {}
        }
    }

    pub(super) fn resume_poller(&self, poller: &Rc<PollerCore>) {
        if poller.turn.get() == Turn::Pauses {
            poller.turn.set(Turn::Runs);
        } else if poller.place.get() == PollerPlace::Paused {
            self.start_poller(poller);
        }
    }

    pub(crate) fn unregister_poller(&self, poller: &Rc<PollerCore>) {
        if poller.is_gone() {
            return;
        }
        self.pollers.remove(poller);
        self.displace(poller, PollerPlace::Gone);
        poller.turn.set(Turn::None);
        if let Some(interrupt) = poller.interrupt.get() {
            self.drop_contained(interrupt.hook.take());
        }
        // Absent while it runs; then the pass drops it.
        if let Some(callback) = poller.callback.take() {
            self.drop_contained(callback);
        }
        self.ended_outside();
    }

    /// `hook` is `Send` if the callback of the poller is.
    pub(super) fn set_poller_interrupt(
        &self,
        poller: &Rc<PollerCore>,
        hook: impl FnMut(bool) + 'static,
    ) {
        let mut hook = self.anchor.bind_if(poller.stays, hook);
        let hook: SwitchHook = Box::new(move |on| (hook.get_mut())(on));
        if poller.is_gone() {
            return self.drop_contained(hook);
        }
        let interrupt = poller.interrupt.get_or_init(|| {
            Box::new(PollerInterrupt {
                hook: Cell::new(None),
                order: self.pollers.count_interrupt(),
            })
        });
        let before = interrupt.hook.replace(Some(hook));
        self.drop_contained(before);
        if self.in_interrupt_mode() {
            self.switch_poller(poller, true);
        }
    }

    /// Every poller with an interrupt hears of a mode switch.
    #[cold]
    pub(in crate::thread) fn switch_pollers(&self, to_interrupt: bool) {
        for poller in self.pollers.interruptible() {
            self.switch_poller(&poller, to_interrupt);
        }
    }

    fn switch_poller(&self, poller: &Rc<PollerCore>, to_interrupt: bool) {
        let Some(interrupt) = poller.interrupt.get() else {
            return;
        };
        if poller.is_gone() {
            return;
        }
        if let Some(mut hook) = interrupt.hook.take() {
            if let Err(payload) = contain(|| hook(to_interrupt)) {
                self.report_panic(PanicSource::Poller, Some(&poller.name()), payload);
            }
            self.check_held_locks();
            // It may have ended its poller, or set another hook.
            let later = interrupt.hook.take();
            if !poller.is_gone() && later.is_none() {
                interrupt.hook.set(Some(hook));
            } else {
                interrupt.hook.set(later);
                self.drop_contained(hook);
            }
        }
        match poller.place.get() {
            PollerPlace::Gone | PollerPlace::Paused => {}
            PollerPlace::Suspended { remaining } if !to_interrupt => {
                self.place_in(poller, remaining)
            }
            PollerPlace::Suspended { .. } => {}
            _ if to_interrupt => self.suspend_poller(poller),
            _ => {}
        }
    }

    fn suspend_poller(&self, poller: &PollerCore) {
        if poller.turn.get() == Turn::Pauses {
            // No turn will come at which that could take effect, except that of
            // a callback that runs now.
            let callback = poller.callback.take();
            if callback.is_some() {
                poller.callback.set(callback);
                self.pause_now(poller);
            }
            return;
        }
        let remaining = match poller.place.get() {
            PollerPlace::Timed(key) => {
                let deadline = self.timers.borrow().deadline(key).unwrap_or(0);
                deadline.saturating_sub(self.shared.library.clock.now())
            }
            _ => 0,
        };
        self.displace(poller, PollerPlace::Suspended { remaining });
    }
}
