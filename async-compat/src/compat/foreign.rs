//! tokio's runtime of an OS thread, and the helper OS thread that sleeps in it whenever no poller
//! turns it.
//!
//! Whoever turns it holds the lock of `runtime` meanwhile. The pollers only try: what the helper
//! has not left yet is turned by it.

use std::cell::RefCell;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};

use corespun::cpu::{self, CpuSet};
use tokio::runtime::{EnterGuard, Handle, Runtime};
use tokio::sync::Notify;
use tokio::task::yield_now;

use super::seat;
use crate::runtime::context;

/// tokio's runtime, as those hold it that may need it. With the last of them it ends.
pub(super) struct Foreign {
    core: Arc<Core>,
}

/// As those hold it that turn it.
pub(super) struct Core {
    handle: Handle,
    /// None after its end. The helper drops it, where that may block.
    runtime: Mutex<Option<Runtime>>,
    turners: Mutex<Turners>,
    /// Has the helper look at `turners`: waiting for its turn, and inside of the runtime.
    changed: Condvar,
    called: Notify,
    /// A wrapped value was polled since the last turn of a poller.
    stirred: AtomicBool,
    /// The tick of the next turn of a poller. They are all of one OS thread.
    next: AtomicU64,
}

#[derive(Default)]
struct Turners {
    /// How many pollers turn it.
    pollers: usize,
    ended: bool,
}

thread_local! {
    /// That of the reactor of this OS thread.
    static HOSTED: RefCell<Option<Arc<Foreign>>> = const { RefCell::new(None) };
    /// That of the loops of this OS thread that sleep by themselves, also within a reactor.
    static PARKED: RefCell<Option<Arc<Foreign>>> = const { RefCell::new(None) };
}

impl Foreign {
    /// The one of this OS thread, turned from now on.
    pub(super) fn current() -> io::Result<Arc<Foreign>> {
        let hosted = seat::hosted();
        let place = match hosted {
            Some(_) => &HOSTED,
            None => &PARKED,
        };
        let known = place.try_with(|foreign| foreign.borrow().clone());
        let foreign = match known {
            Ok(Some(foreign)) => foreign,
            _ => {
                let foreign = Arc::new(Foreign::start()?);
                // Not while the OS thread ends.
                let _ = place.try_with(|place| place.replace(Some(foreign.clone())));
                foreign
            }
        };
        if let Some(thread) = hosted {
            seat::take(thread, &foreign);
        }
        Ok(foreign)
    }

    fn start() -> io::Result<Foreign> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let core = Arc::new(Core {
            handle: runtime.handle().clone(),
            runtime: Mutex::new(Some(runtime)),
            turners: Mutex::default(),
            changed: Condvar::new(),
            called: Notify::new(),
            stirred: AtomicBool::new(false),
            next: AtomicU64::new(0),
        });
        let cpus = context::with_current(|handle| handle.free_cpus());
        let (cpus, helped) = (cpus.ok().flatten(), core.clone());
        std::thread::Builder::new()
            .name("corespun-compat".to_owned())
            .spawn(move || helped.help(cpus))?;
        Ok(Foreign { core })
    }

    pub(super) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    pub(super) fn enter(&self) -> EnterGuard<'_> {
        self.core.stirred.store(true, Ordering::Relaxed);
        self.core.handle.enter()
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        lock(&self.core.turners).ended = true;
        self.core.call_helper();
    }
}

impl Core {
    /// Whether some task of tokio's has begun and not ended.
    pub(super) fn has_tasks(&self) -> bool {
        self.handle.metrics().num_alive_tasks() > 0
    }

    /// Whether a poller is to turn the runtime at tick `now`: a while after the last turn, and at
    /// once if what was polled since may have given tasks of tokio's something to do.
    pub(super) fn is_due(&self, now: u64) -> bool {
        let stirred = self.stirred.load(Ordering::Relaxed);
        if stirred {
            self.stirred.store(false, Ordering::Relaxed);
        }
        now >= self.next.load(Ordering::Relaxed) || (stirred && self.has_tasks())
    }

    /// The next turn is due at tick `next`.
    pub(super) fn set_next(&self, next: u64) {
        self.next.store(next, Ordering::Relaxed);
    }

    /// A poller turns the runtime from now on.
    pub(super) fn add_poller(&self) {
        lock(&self.turners).pollers += 1;
        self.call_helper();
    }

    pub(super) fn remove_poller(&self) {
        lock(&self.turners).pollers -= 1;
        self.call_helper();
    }

    fn call_helper(&self) {
        self.changed.notify_one();
        self.called.notify_one();
    }

    /// One turn: what is ready on the descriptors and due of the timers, and tasks. Nothing, while
    /// the helper is inside.
    pub(super) fn turn(&self) {
        let runtime = match self.runtime.try_lock() {
            Ok(runtime) => runtime,
            Err(TryLockError::Poisoned(whole)) => whole.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let Some(runtime) = &*runtime else {
            return;
        };
        let once = async {
            // With a task that yields, tokio looks at its timers and descriptors.
            yield_now().await;
            if self.has_tasks() {
                // Those that were woken by that.
                yield_now().await;
            }
        };
        context::beside_marks(|| runtime.block_on(once));
    }

    /// What the helper does.
    fn help(&self, cpus: Option<CpuSet>) {
        // A reactor is pinned, and so would be what it starts.
        if let Some(cpus) = cpus
            && let Err(error) = cpu::set_current_affinity(&cpus)
        {
            tracing::warn!("a helper thread stays on its starter's core: {error}");
        }
        loop {
            let turned = |turners: &mut Turners| turners.pollers > 0 && !turners.ended;
            let turners = self.changed.wait_while(lock(&self.turners), turned);
            if turners.unwrap_or_else(PoisonError::into_inner).ended {
                break;
            }
            if let Some(runtime) = &*lock(&self.runtime) {
                runtime.block_on(self.called.notified());
            }
        }
        let runtime = lock(&self.runtime).take();
        drop(runtime);
    }
}

/// What is locked is whole, also after a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
