//! Primitives under the mailbox and the sleep/wake handshake.
//!
//! Everything here is written against the atomics of this module, which are
//! the standard ones or, under `--cfg corespun_loom`, loom's, so that the very
//! code that runs is the code that is model-checked.

#[cfg(corespun_loom)]
pub(crate) mod async_task;
pub(crate) mod budget;
mod critical;
#[cfg(corespun_loom)]
mod event;
#[cfg(all(test, corespun_loom))]
mod loom_tests;
mod mailbox;
mod own_queue;
#[cfg(all(test, corespun_loom))]
mod own_queue_loom_tests;
mod owner;
mod places;
mod ring;

pub(crate) use critical::{CriticalSlot, PostError};
pub(crate) use mailbox::{Mailbox, PushError};
pub(crate) use own_queue::{OwnEntry, OwnQueue};
pub(crate) use owner::{FREE, OwnerWord};

pub(crate) mod atomic {
    #[cfg(corespun_loom)]
    pub(crate) use loom::sync::atomic::{
        AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicUsize, Ordering, fence,
    };
    #[cfg(not(corespun_loom))]
    pub(crate) use std::sync::atomic::{
        AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicUsize, Ordering, fence,
    };
}

pub(crate) use places::Places;

/// Knows nothing of loom either.
#[cfg(not(corespun_loom))]
pub(crate) use ::async_task;

/// As above.
#[cfg(not(corespun_loom))]
use event_listener::Event;

#[cfg(corespun_loom)]
use event::Event;

#[cfg(corespun_loom)]
pub(crate) use loom::{
    sync::{Mutex, MutexGuard},
    thread::yield_now,
};
#[cfg(not(corespun_loom))]
pub(crate) use std::{
    sync::{Mutex, MutexGuard},
    thread::yield_now,
};

/// The unbounded queue behind the mailbox's ring. crossbeam-queue has no loom
/// support, so the models run on a locked stand-in with the same contract:
/// linearizable push and pop, where a pop synchronizes with its push.
#[cfg(not(corespun_loom))]
pub(crate) use crossbeam_queue::SegQueue;

#[cfg(corespun_loom)]
pub(crate) struct SegQueue<T>(loom::sync::Mutex<std::collections::VecDeque<T>>);

#[cfg(corespun_loom)]
impl<T> SegQueue<T> {
    pub(crate) fn new() -> Self {
        SegQueue(loom::sync::Mutex::new(std::collections::VecDeque::new()))
    }

    pub(crate) fn push(&self, value: T) {
        self.0.lock().unwrap().push_back(value);
    }

    pub(crate) fn pop(&self) -> Option<T> {
        self.0.lock().unwrap().pop_front()
    }
}

/// An `UnsafeCell` with loom's access-checking interface.
#[cfg(not(corespun_loom))]
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(corespun_loom))]
impl<T> UnsafeCell<T> {
    pub(crate) const fn new(value: T) -> Self {
        UnsafeCell(std::cell::UnsafeCell::new(value))
    }

    #[inline]
    pub(crate) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        f(self.0.get())
    }
}

#[cfg(corespun_loom)]
pub(crate) use loom::cell::UnsafeCell;
