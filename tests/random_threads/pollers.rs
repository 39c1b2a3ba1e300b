//! Pollers, their hooks, and descriptors that wake a thread.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use corespun::interrupt::{FdKind, FdOptions};
use corespun::thread::{Activity, Interrupt, Poller, register_post_poller_handler};

use crate::books::{Value, World};
use crate::here::{choose, holdings, take};
use crate::{Kind, Step};

/// Pollers and interrupts. Whether the step is one of these.
pub fn act(world: &Arc<World>, step: &Arc<Step>) -> bool {
    let a = step.a;
    match step.kind {
        Kind::Poller => register_poller(world, step),
        Kind::StreamPoller => register_stream(world, step),
        Kind::Pause => with_poller(world, a, Poller::pause),
        Kind::Resume => with_poller(world, a, Poller::resume),
        Kind::DropPoller => drop(holdings(world, |held| take(&mut held.pollers, a))),
        Kind::Detach => {
            let poller = holdings(world, |held| take(&mut held.pollers, a)).flatten();
            // A callback may be about to use it.
            if let Some(poller) = poller.and_then(Rc::into_inner) {
                poller.detach();
            }
        }
        Kind::Hook => {
            let value = Value::here(world, step);
            with_poller(world, a, |poller| {
                poller.set_interrupt(move |_| value.call())
            });
        }
        Kind::PostPoller => {
            let value = Value::here(world, step);
            let _ = register_post_poller_handler(move || value.call());
        }
        Kind::Interrupt => register_interrupt(world, step),
        Kind::Ring => {
            let _ = world.bells[a % world.bells.len()].write(1);
        }
        Kind::DropInterrupt => drop(holdings(world, |held| take(&mut held.interrupts, a))),
        _ => return false,
    }
    true
}
fn with_poller(world: &Arc<World>, n: usize, f: impl FnOnce(&Poller)) {
    let poller = holdings(world, |held| choose(&held.pollers, n)).flatten();
    if let Some(poller) = poller {
        f(&poller);
    }
}

pub fn period(world: &World, a: usize) -> std::time::Duration {
    match a % 3 {
        0 => std::time::Duration::ZERO,
        _ => world.time(a % 5 + 1),
    }
}

fn register_poller(world: &Arc<World>, step: &Arc<Step>) {
    let value = Value::here(world, step);
    let mut calls = step.b % 3 + 1;
    let poller = Poller::timed(period(world, step.a), move || {
        value.check("called");
        if calls == 0 {
            return Activity::Idle;
        }
        calls -= 1;
        value.call();
        Activity::Busy
    });
    match poller {
        Ok(poller) => drop(holdings(world, |held| held.pollers.push(Rc::new(poller)))),
        Err(error) => drop(error),
    }
}

fn register_stream(world: &Arc<World>, step: &Arc<Step>) {
    let value = Value::here(world, step);
    let items = futures::stream::iter(0..step.b % 3);
    let builder = Poller::builder().period(period(world, step.a));
    if let Ok(poller) = builder.register_stream(items, move |_| value.call()) {
        holdings(world, |held| held.pollers.push(Rc::new(poller)));
    }
}

/// A descriptor that is another one whenever it is asked.
struct TwoFaced {
    faces: [OwnedFd; 2],
    asked: Cell<usize>,
}

impl AsFd for TwoFaced {
    fn as_fd(&self) -> BorrowedFd<'_> {
        let n = self.asked.replace(self.asked.get() + 1);
        self.faces[n % 2].as_fd()
    }
}

fn register_interrupt(world: &Arc<World>, step: &Arc<Step>) {
    let bell = world.bells[step.a % world.bells.len()].clone();
    let value = Value::here(world, step);
    let clone = || {
        bell.as_fd()
            .try_clone_to_owned()
            .expect("descriptors are there")
    };
    let options = FdOptions {
        kind: [FdKind::Plain, FdKind::EventFd][step.b % 2],
        ..FdOptions::default()
    };
    let read = bell.clone();
    let mut calls = step.b % 3 + 1;
    let callback = move |_| {
        let _ = read.read();
        value.check("called");
        if calls > 0 {
            calls -= 1;
            value.call();
        }
    };
    let registered = match step.b % 8 {
        0 => {
            let fd = TwoFaced {
                faces: [clone(), clone()],
                asked: Cell::new(0),
            };
            Interrupt::register_with(fd, options, callback)
        }
        _ => Interrupt::register_with(clone(), options, callback),
    };
    if let Ok(interrupt) = registered {
        holdings(world, |held| held.interrupts.push(interrupt));
    }
}
