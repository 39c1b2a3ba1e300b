//! What the reactors tell of themselves while they run. Any OS thread reads it,
//! and no reactor waits for that.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError, TryLockError};

use super::ReactorMode;
use super::group::Shared;
use crate::io::Backend;

/// What a reactor is doing, at one moment.
///
/// # Examples
///
/// Two samples tell how busy a core was in between:
///
/// ```
/// use std::time::Duration;
/// use corespun::{app::{App, AppHandle}, time};
///
/// let (before, after) = App::builder().block_on(async |app: AppHandle| {
///     let before = app.reactors().stats().remove(0);
///     time::sleep(Duration::from_micros(200)).await;
///     (before, app.reactors().stats().remove(0))
/// })?;
/// let busy = after.busy_ticks - before.busy_ticks;
/// let idle = after.idle_ticks - before.idle_ticks;
/// assert!(idle > 0 && 100 * busy / (busy + idle) < 100);
/// # Ok::<(), corespun::app::AppError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReactorStats {
    /// The reactor's core.
    pub core: usize,
    /// The processor that its OS thread is pinned to.
    pub cpu: usize,
    /// Ticks of turns that did something.
    pub busy_ticks: u64,
    /// Ticks of turns that did not, and of sleeping, up to now.
    pub idle_ticks: u64,
    /// How many threads it polls.
    pub threads: usize,
    /// What it does when idle: the mode in force.
    pub mode: ReactorMode,
    /// Whether it sleeps now.
    pub asleep: bool,
    /// What keeps it from sleeping, though its mode lets it.
    pub kept_awake_by: Option<KeptAwake>,
    /// Which I/O back-end it runs, once it has started.
    pub backend: Option<Backend>,
    /// How often its OS thread has given up its processor, seen once a second at
    /// most, and only while it is awake; see
    /// [`Reactors::monitor_context_switches`](super::Reactors::monitor_context_switches).
    pub voluntary_switches: u64,
    /// How often its processor was taken from its OS thread; seen as above. A reactor
    /// that has its processor to itself has few.
    pub involuntary_switches: u64,
    /// Whether a scheduler has put it to sleep because no thread is there.
    pub put_to_sleep: bool,
}

/// What keeps a reactor in a sleeping mode awake all the time.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use corespun::{app::{App, AppHandle}, reactor::ReactorMode, thread::Poller, time};
///
/// let app = App::builder().name("target").mode(ReactorMode::Interrupt);
/// let kept = app.block_on(async |app: AppHandle| {
///     let _poller = Poller::builder().name("scan").register(|| false).unwrap();
///     loop {
///         if let Some(kept) = app.reactors().stats()[0].kept_awake_by.clone() {
///             return kept;
///         }
///         time::sleep(Duration::from_micros(20)).await;
///     }
/// })?;
/// assert_eq!((&kept.thread[..], kept.poller.as_deref()), ("target", Some("scan")));
/// # Ok::<(), corespun::app::AppError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeptAwake {
    /// A thread that wants to be polled again and again: the first of them in
    /// the order that the reactor polls its threads.
    pub thread: String,
    /// The newest of its active pollers that have no interrupt of their own.
    /// `None` when it has [`Interrupt`](crate::thread::Interrupt)s for which
    /// the reactor was refused a descriptor to wait with.
    pub poller: Option<String>,
}

impl ReactorStats {
    pub(super) fn of(reactor: &Shared, now: u64) -> Self {
        let asleep = reactor.sleeper.is_asleep();
        ReactorStats {
            core: reactor.place.core,
            cpu: reactor.place.cpu,
            busy_ticks: reactor.busy_ticks.load(Ordering::Relaxed),
            idle_ticks: reactor.idle_ticks.at(now),
            threads: reactor.threads.load(Ordering::Relaxed),
            mode: reactor.mode(),
            asleep,
            // What the reactor could not tell on its way to this sleep.
            kept_awake_by: match asleep {
                true => None,
                false => reactor.kept_awake_by.get(),
            },
            backend: reactor.backend.get().copied(),
            voluntary_switches: reactor.switches[0].load(Ordering::Relaxed),
            involuntary_switches: reactor.switches[1].load(Ordering::Relaxed),
            put_to_sleep: reactor.put_to_sleep.load(Ordering::Relaxed),
        }
    }
}

/// What a reactor tells of its keeper. Readers may hold each other up; the
/// reactor waits for none of them: it tells what it has to tell when none looks.
#[derive(Debug, Default)]
pub(super) struct ToldKeeper(Mutex<Option<KeptAwake>>);

impl ToldKeeper {
    pub(super) fn get(&self) -> Option<KeptAwake> {
        let told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.clone()
    }

    /// Says whether it was told; else a reader looks right now, and this is to be
    /// tried again. The reactor only.
    pub(super) fn tell(&self, keeper: Option<KeptAwake>) -> bool {
        let mut told = match self.0.try_lock() {
            Ok(told) => told,
            Err(TryLockError::Poisoned(told)) => told.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        *told = keeper;
        true
    }

    #[cfg(test)]
    pub(super) fn read_for_long(&self) -> std::sync::MutexGuard<'_, Option<KeptAwake>> {
        self.0.lock().unwrap()
    }
}
