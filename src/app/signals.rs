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

use super::AppHandle;

const SIGNALS: [Signal; 2] = [Signal::SIGINT, Signal::SIGTERM];
/// Apps that may run in one process with signal handlers at a time.
const APPS: usize = 16;

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
            // SAFETY: `Registration::drop` clears the place and then waits for
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
}

impl Registration {
    pub(super) fn new(app: AppHandle) -> Result<Self, Errno> {
        let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
        let free = TARGETS
            .iter()
            .find(|target| target.load(Ordering::SeqCst).is_null());
        let place = free.ok_or(Errno::EMFILE)?;
        if installed.apps == 0 {
            let handler = SigHandler::Handler(on_signal);
            let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
            for (index, signal) in SIGNALS.into_iter().enumerate() {
                // SAFETY: the handler is async-signal-safe: atomics, a write to
                // an eventfd, and errno put back.
                let before = unsafe { sigaction(signal, &action)? };
                installed.before[index].write(before);
            }
        }
        installed.apps += 1;
        place.store(Box::into_raw(Box::new(app)), Ordering::SeqCst);
        Ok(Registration { place })
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
        installed.apps -= 1;
        if installed.apps == 0 {
            for (index, signal) in SIGNALS.into_iter().enumerate() {
                // SAFETY: written when the first app came; it is what was in
                // force before.
                let _ = unsafe { sigaction(signal, &installed.before[index].assume_init()) };
            }
        }
        let app = self.place.swap(std::ptr::null_mut(), Ordering::SeqCst);
        while RUNNING.load(Ordering::SeqCst) > 0 {
            std::thread::yield_now();
        }
        // SAFETY: made by `Box::into_raw` in `new`; nobody who could have
        // loaded it is looking any more, and later ones find the place empty.
        drop(unsafe { Box::from_raw(app) });
    }
}
