//! What watches for OS threads that have no driver: the drivers of a runtime, whichever of them
//! there are.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;

use super::remote::{DriverHandle, NotWatched};
use super::source::Source;
use crate::io::op::contained;
use crate::io::readiness::Direction;

/// What a [`SharedFd`](super::SharedFd) that is polled on an OS thread without a driver falls back on:
/// any of the drivers that serve it, or the first that will.
///
/// For authors of runtimes. Clones are the same home.
///
/// # Examples
///
/// ```
/// use corespun::io::{Driver, Home, Interest, SharedFd};
/// use nix::sys::eventfd::EventFd;
///
/// let home = Home::new();
/// let doorbell = SharedFd::with_home(EventFd::new()?, Interest::READABLE, home.clone());
/// doorbell.get_ref().write(1)?;
/// // It waits for a driver first.
/// let waits = std::thread::spawn(move || {
///     futures::executor::block_on(doorbell.ready(Interest::READABLE)).is_ok()
/// });
/// # corespun::app::App::builder().handle_signals(false).block_on(async move |_app| {
/// home.serve(&Driver::current().unwrap().handle()?);
/// assert!(corespun::task::spawn_blocking(move || waits.join().unwrap()).await?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Default)]
pub struct Home(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Set under the lock; looked at without it.
    ended: AtomicBool,
}

#[derive(Default)]
struct State {
    drivers: Vec<DriverHandle>,
    /// What is waited for through this home, to be told of its end; the marked ones still wait
    /// for a driver.
    sources: Vec<(Weak<Source>, bool)>,
    /// The sources are looked through when they are as many.
    many: usize,
}

impl Home {
    /// A home that no driver serves yet.
    pub fn new() -> Self {
        Home::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No foreign code runs under the lock, so a poisoned one is whole.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it has [`end`](Self::end)ed.
    #[inline]
    pub fn is_ended(&self) -> bool {
        self.0.ended.load(Ordering::Acquire)
    }

    /// Has a driver serve it from now on, as the first choice, until that ends.
    pub fn serve(&self, driver: &DriverHandle) {
        let mut state = self.lock();
        if self.is_ended() || state.drivers.last().is_some_and(|last| last.is(driver)) {
            return;
        }
        state
            .drivers
            .retain(|known| !known.is(driver) && !known.is_ended());
        state.drivers.push(driver.clone());
        let waits = |source: &mut (Weak<Source>, bool)| match std::mem::take(&mut source.1) {
            true => source.0.upgrade(),
            false => None,
        };
        let waiting: Vec<Arc<Source>> = state.sources.iter_mut().filter_map(waits).collect();
        drop(state);
        for source in waiting {
            if driver.watch(&source, Direction::Read).is_err() {
                // It has ended already: they look again.
                source.wake_all();
            }
        }
    }

    /// Has a driver serve it no more, as one that is not polled for the time being. What waits
    /// through it is woken, and looks for another of the drivers.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::io::{Driver, Home};
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let (home, here) = (Home::new(), Driver::current().unwrap().handle()?);
    /// home.serve(&here);
    /// // The reactor goes on, but is to be left in peace.
    /// home.leave(&here);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn leave(&self, driver: &DriverHandle) {
        let mut state = self.lock();
        let Some(place) = state.drivers.iter().position(|known| known.is(driver)) else {
            return;
        };
        let left = state.drivers.remove(place);
        // All of them: one may be on its way to that driver just now.
        let sources = state.sources.iter();
        let sources: Vec<Arc<Source>> = sources.filter_map(|source| source.0.upgrade()).collect();
        drop(state);
        drop(left);
        sources.iter().for_each(|source| source.wake_all());
    }

    /// Ends it: what waits through it is woken, and told so. So is what is bound to it
    /// ([`SharedFd::bound_to`](super::SharedFd::bound_to)) and waits from now on.
    pub fn end(&self) {
        let mut state = self.lock();
        self.0.ended.store(true, Ordering::Release);
        state.drivers.clear();
        let sources = std::mem::take(&mut state.sources);
        drop(state);
        for source in sources.iter().filter_map(|(source, _)| source.upgrade()) {
            source.wake_all();
        }
    }

    /// Has one of its drivers watch `source`, now or as soon as there is one.
    pub(super) fn watch(&self, source: &Arc<Source>, direction: Direction) -> io::Result<()> {
        loop {
            let mut state = self.lock();
            if self.is_ended() {
                return Err(NotWatched::Ended.into());
            }
            state.drivers.retain(|driver| !driver.is_ended());
            let driver = state.drivers.last().cloned();
            state.remember(source, driver.is_none());
            drop(state);
            let Some(driver) = driver else {
                return Ok(());
            };
            match driver.watch(source, direction) {
                // It has ended meanwhile, and so is not found again.
                Err(error) if NotWatched::of(&error) == Some(NotWatched::Ended) => {}
                done => return done,
            }
        }
    }
}

impl State {
    fn remember(&mut self, source: &Arc<Source>, waits: bool) {
        let this = Arc::downgrade(source);
        if let Some(known) = self.sources.iter_mut().find(|known| known.0.ptr_eq(&this)) {
            known.1 |= waits;
            return;
        }
        if self.sources.len() >= self.many {
            self.sources.retain(|known| known.0.strong_count() > 0);
            self.many = 2 * self.sources.len().max(8);
        }
        self.sources.push((this, waits));
    }
}

impl Source {
    /// Has the waiters look again.
    pub(super) fn wake_all(&self) {
        let mut woken = Vec::new();
        self.take_all(&mut woken);
        wake(woken);
    }
}

/// Wakes them one and all: a waker that panics is its owner's matter.
pub(super) fn wake(woken: Vec<Waker>) {
    for waker in woken {
        contained("waker", || waker.wake());
    }
}

/// Where a `SharedFd` falls back on.
#[derive(Clone)]
pub(super) enum Fallback {
    Driver(DriverHandle),
    Home(Home),
    /// As `Home`, and nothing waits anywhere once that has ended.
    Bound(Home),
}

impl Fallback {
    pub(super) fn watch(&self, source: &Arc<Source>, direction: Direction) -> io::Result<()> {
        match self {
            Fallback::Driver(driver) => driver.watch(source, direction),
            Fallback::Home(home) | Fallback::Bound(home) => home.watch(source, direction),
        }
    }

    /// Whether nothing may wait any more.
    #[inline]
    pub(super) fn forbids_waits(&self) -> bool {
        matches!(self, Fallback::Bound(home) if home.is_ended())
    }
}

impl std::fmt::Debug for Home {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Home")
            .field("drivers", &self.lock().drivers)
            .finish_non_exhaustive()
    }
}
