//! What all users of one shared descriptor, on any OS thread, know of it.
//!
//! | part | written by | ordered by |
//! |---|---|---|
//! | `bits` | the drivers that watch it (set), a user whose system call would have blocked (clear) | one atomic; a clear carries the count of events that it has seen and loses against a newer one |
//! | `wakers` | the last task that polled, per direction; taken by the drivers | [`AtomicWaker`] |
//! | `state` | a user that registers, waits in an async method, or closes | its lock |
//!
//! A task leaves its waker first, makes sure that the driver of its OS thread watches, and looks at
//! `bits` once more; a driver sets `bits` first and takes the wakers then. So either the task sees the
//! event or the driver sees the waker. The lock is on no path that moves data: it is taken when a driver
//! sees the descriptor for the first time, by waits that more than one task may make at once, and at
//! the end.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use futures::task::AtomicWaker;

use super::remote::Remote;
use crate::io::interest::{Interest, Ready};
use crate::io::readiness::Direction;

/// A direction that no driver has an opinion on: try it.
const UNTRIED: [u64; 2] = [1 << 16, 1 << 17];
const TICK: u64 = 1 << 32;

/// What was known of a descriptor at one moment; see [`SharedFd::clear`](super::SharedFd::clear).
///
/// # Examples
///
/// ```
/// use corespun::io::{Interest, Ready, SharedFd};
/// use nix::sys::eventfd::EventFd;
///
/// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
/// let doorbell = SharedFd::new(EventFd::new()?, Interest::READABLE);
/// doorbell.get_ref().write(1)?;
/// let seen = doorbell.ready(Interest::READABLE).await?;
/// assert_eq!(seen.ready(), Ready::READABLE);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ReadyEvent {
    bits: u64,
    asked: Ready,
}

impl ReadyEvent {
    /// What it was ready for, of what was asked.
    pub fn ready(&self) -> Ready {
        Ready::from_bits(self.bits) & self.asked
    }

    /// As if it had said `ready`, of what it said: to clear a part.
    #[must_use]
    pub fn masked(mut self, ready: Ready) -> Self {
        self.asked = self.asked & ready;
        self
    }
}

pub(super) struct Source {
    bits: AtomicU64,
    wakers: [AtomicWaker; 2],
    /// The driver on which each direction was last waited for, by its number; it watches.
    here: [AtomicUsize; 2],
    /// How many wait in `state`.
    waiting: AtomicUsize,
    interest: Interest,
    state: Mutex<State>,
}

struct State {
    /// None once the descriptor is on its way out.
    fd: Option<RawFd>,
    registrations: Vec<Registration>,
    waiters: Vec<WaiterEntry>,
    next_waiter: u64,
    /// A driver could not do as it was asked.
    failed: Option<i32>,
}

struct Registration {
    remote: Arc<Remote>,
    /// None until the driver has done as it was asked.
    key: Option<usize>,
}

struct WaiterEntry {
    id: u64,
    interest: Interest,
    waker: Waker,
}

impl Source {
    pub(super) fn new(fd: RawFd, interest: Interest) -> Self {
        Source {
            bits: AtomicU64::new(UNTRIED[0] | UNTRIED[1]),
            wakers: Default::default(),
            here: Default::default(),
            waiting: AtomicUsize::new(0),
            interest,
            state: Mutex::new(State {
                fd: Some(fd),
                registrations: Vec::new(),
                waiters: Vec::new(),
                next_waiter: 0,
                failed: None,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No foreign code runs under the lock, so a poisoned one is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes it for ready before any driver has looked.
    pub(super) fn assume(&self, ready: Ready) {
        self.bits.fetch_or(ready.bits(), Ordering::SeqCst);
    }

    /// Takes nothing to be worth a try before a driver has looked.
    pub(super) fn untry(&self) {
        self.bits
            .fetch_and(!(UNTRIED[0] | UNTRIED[1]), Ordering::SeqCst);
    }

    /// What is known for `interest`, if a driver has said anything.
    #[inline]
    pub(super) fn seen(&self, interest: Interest) -> Option<ReadyEvent> {
        let event = ReadyEvent {
            bits: self.bits.load(Ordering::SeqCst),
            asked: Ready::answering(interest),
        };
        (!event.ready().is_empty()).then_some(event)
    }

    /// What is known for `interest`; also if it is worth a try because nothing is.
    #[inline]
    pub(super) fn worth_a_try(&self, interest: Interest) -> Option<ReadyEvent> {
        let bits = self.bits.load(Ordering::SeqCst);
        let asked = Ready::answering(interest);
        let mut wanted = asked.bits();
        if interest.is_readable() {
            wanted |= UNTRIED[Direction::Read as usize];
        }
        if interest.is_writable() {
            wanted |= UNTRIED[Direction::Write as usize];
        }
        (bits & wanted != 0).then_some(ReadyEvent { bits, asked })
    }

    /// The system call that `event` allowed would have blocked. A newer event wins; what is closed
    /// stays closed.
    pub(super) fn clear(&self, event: ReadyEvent) {
        let mut gone = (event.ready() - Ready::READ_CLOSED - Ready::WRITE_CLOSED).bits();
        if event.asked.is_readable() {
            gone |= UNTRIED[Direction::Read as usize];
        }
        if event.asked.is_writable() {
            gone |= UNTRIED[Direction::Write as usize];
        }
        let tick = event.bits & !(TICK - 1);
        let _ = self
            .bits
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |bits| {
                (bits & !(TICK - 1) == tick).then_some(bits & !gone)
            });
    }

    /// A driver says what happened; gives the wakers of the waiters.
    pub(super) fn event(&self, ready: Ready, woken: &mut impl Extend<Waker>) {
        let _ = self
            .bits
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |bits| {
                Some((bits | ready.bits()).wrapping_add(TICK))
            });
        if ready.is_readable() {
            woken.extend(self.wakers[Direction::Read as usize].take());
        }
        if ready.is_writable() {
            woken.extend(self.wakers[Direction::Write as usize].take());
        }
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.take_waiters(
                |interest| ready.intersects(Ready::answering(interest)),
                woken,
            );
        }
    }

    fn take_waiters(&self, told: impl Fn(Interest) -> bool, woken: &mut impl Extend<Waker>) {
        let mut state = self.lock();
        let told = state.waiters.extract_if(.., |waiter| told(waiter.interest));
        woken.extend(told.map(|waiter| waiter.waker));
        self.waiting.store(state.waiters.len(), Ordering::SeqCst);
    }

    /// Remembers the task that polls `direction`, instead of the one before.
    pub(super) fn register(&self, direction: Direction, cx: &Context<'_>) {
        self.wakers[direction as usize].register(cx.waker());
    }

    /// Remembers one of any number of tasks that wait; gives its number.
    pub(super) fn wait(&self, id: Option<u64>, interest: Interest, waker: &Waker) -> u64 {
        // Cloned, and its predecessor dropped, outside of the lock: both are foreign code.
        let mut waker = waker.clone();
        let mut state = self.lock();
        let known = id.and_then(|id| state.waiters.iter_mut().find(|waiter| waiter.id == id));
        let id = match known {
            Some(waiter) => {
                std::mem::swap(&mut waiter.waker, &mut waker);
                waiter.id
            }
            None => {
                let id = id.unwrap_or(state.next_waiter);
                state.next_waiter = state.next_waiter.max(id + 1);
                let place = WaiterEntry {
                    id,
                    interest,
                    waker: std::mem::replace(&mut waker, Waker::noop().clone()),
                };
                state.waiters.push(place);
                id
            }
        };
        self.waiting.store(state.waiters.len(), Ordering::SeqCst);
        drop(state);
        drop(waker);
        id
    }

    /// Forgets a task that waits no more.
    pub(super) fn forget(&self, id: u64) {
        let mut state = self.lock();
        let place = state.waiters.iter().position(|waiter| waiter.id == id);
        let gone = place.map(|place| state.waiters.swap_remove(place));
        self.waiting.store(state.waiters.len(), Ordering::SeqCst);
        drop(state);
        drop(gone);
    }

    /// Whether `direction` was last waited for on the driver `id`, which therefore watches.
    #[inline]
    pub(super) fn is_here(&self, direction: Direction, id: usize) -> bool {
        self.here[direction as usize].load(Ordering::Relaxed) == id
    }

    /// Has the driver of `remote` watch, if it does not yet. `add` registers the descriptor there and
    /// gives the key, or `None` if only the driver's own thread can do that, and will.
    pub(super) fn watch_on(
        &self,
        direction: Direction,
        remote: &Arc<Remote>,
        add: impl FnOnce(RawFd, Interest) -> std::io::Result<Option<usize>>,
    ) -> std::io::Result<()> {
        let mut state = self.lock();
        if let Some(errno) = state.failed.take() {
            return Err(std::io::Error::from_raw_os_error(errno));
        }
        let known = state
            .registrations
            .iter()
            .any(|registration| registration.remote.id() == remote.id());
        if !known && let Some(fd) = state.fd {
            let key = add(fd, self.interest)?;
            state.registrations.push(Registration {
                remote: remote.clone(),
                key,
            });
        }
        self.here[direction as usize].store(remote.id(), Ordering::Relaxed);
        Ok(())
    }

    /// On the driver's own thread: does what [`watch_on`](Self::watch_on) asked for, unless that is not
    /// wanted any more. The waiters are told of a failure.
    pub(super) fn fulfil(
        &self,
        remote: &Remote,
        add: impl FnOnce(RawFd, Interest) -> std::io::Result<usize>,
        woken: &mut impl Extend<Waker>,
    ) {
        let mut state = self.lock();
        let fd = state.fd;
        let wanted = state.registrations.iter_mut().find(|registration| {
            registration.remote.id() == remote.id() && registration.key.is_none()
        });
        let (Some(registration), Some(fd)) = (wanted, fd) else {
            return;
        };
        match add(fd, self.interest) {
            Ok(key) => registration.key = Some(key),
            Err(error) => {
                state.failed = error.raw_os_error();
                drop(state);
                self.detach(remote, woken);
            }
        }
    }

    /// Whether the driver `id` alone still watches: the users of the descriptor are elsewhere now.
    pub(super) fn has_left(&self, id: usize) -> bool {
        let here = [0, 1].map(|direction: usize| self.here[direction].load(Ordering::Relaxed));
        !here.contains(&id) && here != [0, 0] && self.waiting.load(Ordering::SeqCst) == 0
    }

    /// The driver of `remote` watches under `key` no more, by itself, as another one does.
    pub(super) fn unwatch(&self, remote: &Remote, key: usize) {
        let mut state = self.lock();
        if let Some(fd) = state.fd
            && state.registrations.len() > 1
        {
            self.strike(&mut state, remote);
            // Under the lock, as long as the descriptor is open.
            remote.forget(fd, key);
        }
    }

    /// The driver of `remote` has ended: the waiters are to look for another.
    pub(super) fn detach(&self, remote: &Remote, woken: &mut impl Extend<Waker>) {
        self.strike(&mut self.lock(), remote);
        self.take_all(woken);
    }

    pub(super) fn take_all(&self, woken: &mut impl Extend<Waker>) {
        for waker in &self.wakers {
            woken.extend(waker.take());
        }
        self.take_waiters(|_| true, woken);
    }

    fn strike(&self, state: &mut State, remote: &Remote) {
        state
            .registrations
            .retain(|registration| registration.remote.id() != remote.id());
        for here in &self.here {
            let _ = here.compare_exchange(remote.id(), 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// The descriptor is about to be closed, or given away: takes it out of every driver's set, from
    /// whatever OS thread this is. No driver sees an event of it after this.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        let fd = state.fd.take();
        let registrations = std::mem::take(&mut state.registrations);
        let waiters = std::mem::take(&mut state.waiters);
        self.waiting.store(0, Ordering::SeqCst);
        if let Some(fd) = fd {
            for registration in registrations {
                if let Some(key) = registration.key {
                    registration.remote.forget(fd, key);
                }
            }
        }
        drop(state);
        drop(waiters);
        for waker in &self.wakers {
            drop(waker.take());
        }
    }
}
