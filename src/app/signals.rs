//! SIGINT and SIGTERM stop the app.
//!
//! Signal dispositions belong to the process, so this is the one place with
//! process-wide state: the handler, and the list of apps it tells. The handler
//! only posts a critical message to each app's thread, which is one
//! compare-and-swap and at most one write to an eventfd.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::{AppError, AppHandle};

const SIGNALS: [Signal; 2] = [Signal::SIGINT, Signal::SIGTERM];
/// Apps that may run in one process with signal handlers at a time.
const APPS: usize = 64;

static TARGETS: [AtomicPtr<AppHandle>; APPS] =
    [const { AtomicPtr::new(std::ptr::null_mut()) }; APPS];
/// Those who look at `TARGETS` now, on whatever OS threads.
static RUNNING: AtomicUsize = AtomicUsize::new(0);
/// What the dispositions were before the first app, and how many apps there are.
static INSTALLED: Mutex<Installed> = Mutex::new(Installed {
    apps: 0,
    before: [MaybeUninit::uninit(); SIGNALS.len()],
});

struct Installed {
    apps: usize,
    before: [MaybeUninit<SigAction>; SIGNALS.len()],
}

extern "C" fn on_signal(_: libc::c_int) {
    let errno = Errno::last_raw();
    RUNNING.fetch_add(1, Ordering::SeqCst);
    for target in &TARGETS {
        let app = target.load(Ordering::SeqCst);
        if !app.is_null() {
            // SAFETY: `free_place` clears the place and then waits for
            // every running handler before it frees the app's handle.
            let app = unsafe { &*app };
            // Refused while an earlier one is pending: that one stops the app.
            let _ = app.shared.app_thread().send_critical_msg(stop_current_app);
        }
    }
    RUNNING.fetch_sub(1, Ordering::SeqCst);
    Errno::set_raw(errno);
}

/// The critical message: on the thread of an app, stops that app.
fn stop_current_app() {
    RUNNING.fetch_add(1, Ordering::SeqCst);
    let current = TARGETS.iter().find_map(|target| {
        let app = target.load(Ordering::SeqCst);
        // SAFETY: as in `on_signal`.
        let app = unsafe { app.as_ref()? };
        app.shared.app_thread().is_current().then(|| app.clone())
    });
    RUNNING.fetch_sub(1, Ordering::SeqCst);
    if let Some(app) = current {
        app.start_shutdown();
    }
}

/// An app that signals stop, until dropped.
pub(super) struct Registration {
    place: &'static AtomicPtr<AppHandle>,
    /// The calling OS thread's signal mask before; a process may be started
    /// with the signals blocked.
    mask: SigSet,
}

impl Registration {
    pub(super) fn new(app: AppHandle) -> Result<Self, AppError> {
        let mask = SigSet::thread_get_mask().map_err(AppError::Signals)?;
        let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
        let free = TARGETS
            .iter()
            .find(|target| target.load(Ordering::SeqCst).is_null());
        let place = free.ok_or(AppError::TooManyApps { limit: APPS })?;
        // Before the handlers are in force: what they find nobody for is lost.
        place.store(Box::into_raw(Box::new(app)), Ordering::SeqCst);
        installed.apps += 1;
        if installed.apps == 1
            && let Err(errno) = installed.install()
        {
            installed.apps = 0;
            free_place(place);
            return Err(AppError::Signals(errno));
        }
        drop(installed);
        let registration = Registration { place, mask };
        SigSet::from_iter(SIGNALS)
            .thread_unblock()
            .map_err(AppError::Signals)?;
        Ok(registration)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
        installed.apps -= 1;
        if installed.apps == 0 {
            installed.restore(SIGNALS.len());
        }
        free_place(self.place);
        let _ = self.mask.thread_set_mask();
    }
}

impl Installed {
    fn install(&mut self) -> Result<(), Errno> {
        let handler = SigHandler::Handler(on_signal);
        let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
        for (index, signal) in SIGNALS.into_iter().enumerate() {
            // SAFETY: the handler is async-signal-safe: atomics, a write to an
            // eventfd, and errno put back.
            match unsafe { sigaction(signal, &action) } {
                Ok(before) => self.before[index].write(before),
                Err(errno) => {
                    self.restore(index);
                    return Err(errno);
                }
            };
        }
        Ok(())
    }

    /// Puts back the first `count` dispositions, which `install` has changed.
    fn restore(&mut self, count: usize) {
        for (signal, before) in SIGNALS.into_iter().zip(&self.before).take(count) {
            // SAFETY: `install` wrote what was in force before.
            let _ = unsafe { sigaction(signal, &before.assume_init()) };
        }
    }
}

/// Takes an app off the list. Called with `INSTALLED` locked.
fn free_place(place: &AtomicPtr<AppHandle>) {
    let app = place.swap(std::ptr::null_mut(), Ordering::SeqCst);
    while RUNNING.load(Ordering::SeqCst) > 0 {
        std::thread::yield_now();
    }
    // SAFETY: made by `Box::into_raw` in `Registration::new`; nobody who could
    // have loaded it is looking any more, and later ones find the place empty.
    drop(unsafe { Box::from_raw(app) });
}
