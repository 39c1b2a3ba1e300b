//! The process's signals. Dispositions belong to the process, so this is the one
//! place with process-wide state.
//!
//! The handler does what is safe in one and no more: it notes the signal, and
//! writes to the eventfd of the *delivery thread*, an OS thread that is there
//! while anything here is in use. That one tells the listeners for the signal;
//! if there are none, and it is one that stops apps, it asks each app to stop. It
//! is no reactor, so it can tell what holds one.
//!
//! | what | touched by |
//! |---|---|
//! | the atomics below | the handler, on any OS thread at any moment |
//! | `REGISTRY` | a listener that begins or ends; the delivery thread |
//! | `DELIVERING` | the delivery thread while it calls what it found in there; an app that leaves waits for that |

use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures::task::AtomicWaker;
use libc::c_int;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};

use super::contained;
use crate::cpu::{CpuSet, set_current_affinity};

/// The signals that ask an app to stop.
const STOPPING: [c_int; 2] = [libc::SIGINT, libc::SIGTERM];

/// As many of them, so soon after each other, end the process at once.
const INSISTENCE: Duration = Duration::from_secs(2);

/// One bit for each signal, 1 to 64.
type Bits = u64;

/// What has come and was not delivered yet.
static PENDING: AtomicU64 = AtomicU64::new(0);
/// Signals that have a listener: they stop no app.
static HEARD: AtomicU64 = AtomicU64::new(0);
/// What stops apps.
static STOPS: AtomicU64 = AtomicU64::new(0);
/// The delivery thread's eventfd, or -1.
static WAKE: AtomicI32 = AtomicI32::new(-1);
/// The process that the delivery thread runs in. It is not there in a child made
/// by fork.
static PROCESS: AtomicU32 = AtomicU32::new(0);
/// When the last signal that stops apps came, and the one before it, in
/// nanoseconds of the monotonic clock; 0 for never.
static LAST: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
/// Handlers that run now, on whatever OS threads: while there are any, the eventfd
/// may be in use.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

static REGISTRY: Mutex<Registry> = Mutex::new(Registry {
    process: 0,
    delivery: None,
    dispositions: BTreeMap::new(),
    next_id: 0,
    listeners: Vec::new(),
    apps: Vec::new(),
});
static DELIVERING: Mutex<()> = Mutex::new(());

/// An app that signals stop, as the delivery thread sees it.
pub(crate) trait Stoppable: Send + Sync {
    /// One of the signals came, and it has no listener.
    fn ask_to_stop(&self, signal: Signal);

    /// Called after that, and when it said it wants to be: the result is when to
    /// call it again.
    fn look(&self, now: Instant) -> Option<Instant>;

    /// Begins the shutdown of the app whose thread is the current one.
    fn shut_down_if_current(&self);
}

/// A listener for some signals.
#[derive(Debug)]
pub(super) struct Listener {
    wanted: Bits,
    pub(super) pending: AtomicU64,
    pub(super) waker: AtomicWaker,
}

type App = (u64, Arc<dyn Stoppable>);

struct Registry {
    /// The process that this is true of; a fork copies it.
    process: u32,
    delivery: Option<Delivery>,
    /// The signals that the handler is installed for.
    dispositions: BTreeMap<c_int, Disposition>,
    next_id: u64,
    listeners: Vec<(u64, Arc<Listener>)>,
    apps: Vec<App>,
}

struct Disposition {
    users: usize,
    before: libc::sigaction,
}

struct Delivery {
    wake: Arc<EventFd>,
    ends: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

fn registry() -> MutexGuard<'static, Registry> {
    // Nothing foreign runs under the lock, so a poisoned one is whole.
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn bit(signal: c_int) -> Bits {
    1 << (signal - 1)
}

/// The signals of a set.
pub(super) fn signals(mut bits: Bits) -> impl Iterator<Item = c_int> {
    std::iter::from_fn(move || {
        let signal = bits.trailing_zeros();
        bits &= bits.wrapping_sub(1);
        (signal < Bits::BITS).then(|| signal as c_int + 1)
    })
}

extern "C" fn on_signal(signal: c_int) {
    let errno = Errno::last_raw();
    RUNNING.fetch_add(1, Ordering::SeqCst);
    if std::process::id() != PROCESS.load(Ordering::SeqCst) {
        do_default(signal);
    } else {
        let bit = bit(signal);
        let stops = STOPS.load(Ordering::SeqCst) & !HEARD.load(Ordering::SeqCst) & bit != 0;
        if stops && is_insisted_on() {
            tell("corespun: the third signal within two seconds: the process ends at once\n");
            do_default(signal);
        }
        PENDING.fetch_or(bit, Ordering::SeqCst);
        let wake = WAKE.load(Ordering::SeqCst);
        if wake >= 0 {
            // SAFETY: the OS thread that closes it takes it out first, and then
            // waits until no handler runs.
            let wake = unsafe { BorrowedFd::borrow_raw(wake) };
            // Fails only when the counter is full, and then it is readable.
            let _ = nix::unistd::write(wake, &1u64.to_ne_bytes());
        }
    }
    RUNNING.fetch_sub(1, Ordering::SeqCst);
    Errno::set_raw(errno);
}

/// Does what the signal does to a process that does not handle it. In the handler
/// the signal is blocked: it takes effect as that returns.
fn do_default(signal: c_int) {
    // SAFETY: no handler is installed; both calls are async-signal-safe.
    unsafe {
        let _ = exchange_action(signal, Some(&action(libc::SIG_DFL)));
        libc::raise(signal);
    }
}

/// Notes the time of a signal that stops apps; says whether it is the third in
/// short order.
fn is_insisted_on() -> bool {
    use nix::time::{ClockId, clock_gettime};
    // Async-signal-safe, by POSIX; it does not fail.
    let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else {
        return false;
    };
    let now = Duration::from(now).as_nanos() as u64;
    let last = LAST[0].swap(now, Ordering::SeqCst);
    let before = LAST[1].swap(last, Ordering::SeqCst);
    before > 0 && now.saturating_sub(before) <= INSISTENCE.as_nanos() as u64
}

/// Says something to the user at the terminal, who sends the signals; there may be
/// no subscriber of `tracing`. It takes no lock, which whatever holds the app up
/// may have, and waits for nothing but, shortly, for room.
pub(crate) fn tell(text: &str) {
    let stderr = io::stderr();
    let mut room = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    if matches!(poll(&mut room, PollTimeout::from(100u8)), Ok(1..)) {
        let _ = nix::unistd::write(stderr.as_fd(), text.as_bytes());
    }
}

/// Something that is in the registry until dropped.
#[derive(Debug)]
pub(crate) struct Registration {
    id: u64,
    wanted: Bits,
    process: u32,
}

/// Has `app` asked to stop by SIGINT and SIGTERM, for as long as the result lives.
/// `cpus` is where the delivery thread may run if it is made now.
///
/// # Errors
///
/// When the handlers, the delivery thread or its eventfd are refused.
pub(crate) fn register_app(app: Arc<dyn Stoppable>, cpus: &CpuSet) -> io::Result<Registration> {
    let wanted = STOPPING.into_iter().map(bit).fold(0, |all, one| all | one);
    register(wanted, Some(cpus), |registry, id| {
        registry.apps.push((id, app))
    })
}

/// Has those signals delivered to a new listener, and to no app, for as long as the
/// result lives.
///
/// # Errors
///
/// As [`register_app`].
pub(super) fn register_listener(
    wanted: impl IntoIterator<Item = c_int>,
    cpus: Option<&CpuSet>,
) -> io::Result<(Registration, Arc<Listener>)> {
    let wanted = wanted.into_iter().map(bit).fold(0, |all, one| all | one);
    let listener = Arc::new(Listener {
        wanted,
        pending: AtomicU64::new(0),
        waker: AtomicWaker::new(),
    });
    let added = listener.clone();
    let registration = register(wanted, cpus, |registry, id| {
        registry.listeners.push((id, added));
    })?;
    Ok((registration, listener))
}

fn register(
    wanted: Bits,
    cpus: Option<&CpuSet>,
    add: impl FnOnce(&mut Registry, u64),
) -> io::Result<Registration> {
    let mut registry = registry();
    registry.forget_parent();
    registry.start_delivery(cpus)?;
    let id = registry.next_id;
    registry.next_id += 1;
    // Before the handler is in force: what it finds no listener for is lost.
    add(&mut registry, id);
    registry.note_bits();
    let mut registration = Registration {
        id,
        wanted: 0,
        process: registry.process,
    };
    for signal in signals(wanted) {
        if let Err(error) = registry.install(signal) {
            drop(registry);
            // Takes back what was done.
            drop(registration);
            return Err(error);
        }
        registration.wanted |= bit(signal);
    }
    // It unblocks the new signals for itself.
    registry.wake_delivery();
    Ok(registration)
}

impl Drop for Registration {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            // A child made by fork, to which nothing of this belongs.
            return;
        }
        let mut registry = registry();
        let (app, listener) = registry.remove(self.id);
        for signal in signals(self.wanted) {
            registry.uninstall(signal);
        }
        registry.note_bits();
        let ended = registry.end_delivery_if_unused();
        drop(registry);
        let thread = ended.map(Delivery::end);
        // An app waits until nothing calls it any more. A listener does not: what the
        // delivery thread calls may be its waker, which may wait for its owner.
        if app.is_some() {
            match thread.map(JoinHandle::join) {
                Some(Ok(())) => {}
                Some(Err(_)) => tracing::error!("the signal thread panicked"),
                None => drop(DELIVERING.lock()),
            }
        }
        drop((app, listener));
    }
}

impl Registry {
    /// In a child made by fork: what was registered is the parent's, and the
    /// delivery thread is not here. The handlers are.
    fn forget_parent(&mut self) {
        let process = std::process::id();
        if self.process == process {
            return;
        }
        self.process = process;
        PENDING.store(0, Ordering::SeqCst);
        WAKE.store(-1, Ordering::SeqCst);
        // Nothing of the parent's is ended, or dropped, by its child.
        std::mem::forget(self.delivery.take());
        std::mem::forget(std::mem::take(&mut self.listeners));
        std::mem::forget(std::mem::take(&mut self.apps));
        for disposition in self.dispositions.values_mut() {
            disposition.users = 0;
        }
        PROCESS.store(process, Ordering::SeqCst);
    }

    fn start_delivery(&mut self, cpus: Option<&CpuSet>) -> io::Result<()> {
        if self.delivery.is_some() {
            return Ok(());
        }
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = Arc::new(EventFd::from_flags(flags)?);
        let ends = Arc::new(AtomicBool::new(false));
        let (waits, ended, cpus) = (wake.clone(), ends.clone(), cpus.copied());
        let thread = std::thread::Builder::new()
            .name("corespun-signal".into())
            .spawn(move || {
                // Its starter may be pinned to a reactor's core.
                if let Some(Err(error)) = cpus.map(|cpus| set_current_affinity(&cpus)) {
                    tracing::warn!("the signal thread stays on its starter's cores: {error}");
                }
                deliver(&waits, &ended);
            })?;
        WAKE.store(wake.as_fd().as_raw_fd(), Ordering::SeqCst);
        self.delivery = Some(Delivery { wake, ends, thread });
        Ok(())
    }

    fn wake_delivery(&self) {
        if let Some(delivery) = &self.delivery {
            let _ = delivery.wake.write(1);
        }
    }

    fn end_delivery_if_unused(&mut self) -> Option<Delivery> {
        if !self.apps.is_empty() || !self.listeners.is_empty() {
            return None;
        }
        let delivery = self.delivery.take()?;
        WAKE.store(-1, Ordering::SeqCst);
        Some(delivery)
    }

    fn remove(&mut self, id: u64) -> (Option<App>, Option<(u64, Arc<Listener>)>) {
        let mut apps = self.apps.extract_if(.., |(one, _)| *one == id);
        let mut listeners = self.listeners.extract_if(.., |(one, _)| *one == id);
        (apps.next(), listeners.next())
    }

    /// Tells the handler what is wanted now.
    fn note_bits(&self) {
        let heard = self
            .listeners
            .iter()
            .fold(0, |all, (_, one)| all | one.wanted);
        HEARD.store(heard, Ordering::SeqCst);
        let stops = match self.apps.is_empty() {
            true => 0,
            false => STOPPING.into_iter().map(bit).fold(0, |all, one| all | one),
        };
        STOPS.store(stops, Ordering::SeqCst);
        if stops == 0 {
            LAST.iter().for_each(|last| last.store(0, Ordering::SeqCst));
        }
    }

    fn install(&mut self, signal: c_int) -> io::Result<()> {
        let known = self.dispositions.get_mut(&signal);
        if let Some(disposition) = known.filter(|one| one.users > 0) {
            disposition.users += 1;
            return Ok(());
        }
        let action = action(on_signal as *const () as libc::sighandler_t);
        // SAFETY: the handler is async-signal-safe: atomics, `getpid`,
        // `clock_gettime`, `poll`, `write`, `sigaction` and `raise`, and errno put
        // back.
        let before = unsafe { exchange_action(signal, Some(&action)) }?;
        // In a child made by fork it is known what was in force before the parent's.
        let disposition = Disposition { users: 0, before };
        self.dispositions.entry(signal).or_insert(disposition).users = 1;
        Ok(())
    }

    /// Puts back what was in force before the first user of the signal, unless the
    /// program has installed a handler of its own since then.
    fn uninstall(&mut self, signal: c_int) {
        let Some(disposition) = self.dispositions.get_mut(&signal) else {
            return;
        };
        disposition.users = disposition.users.saturating_sub(1);
        if disposition.users > 0 {
            return;
        }
        let before = disposition.before;
        self.dispositions.remove(&signal);
        // SAFETY: nothing is installed; then what was in force before.
        unsafe {
            let now = exchange_action(signal, None);
            let ours = on_signal as *const () as libc::sighandler_t;
            if now.is_ok_and(|now| now.sa_sigaction == ours) {
                let _ = exchange_action(signal, Some(&before));
            }
        }
    }
}

/// An action that restarts system calls and blocks nothing but the signal itself.
fn action(handler: libc::sighandler_t) -> libc::sigaction {
    // SAFETY: plain data, for which zero is no flags, no signals and no restorer.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = libc::SA_RESTART;
    action
}

/// `sigaction`. Without an action it only looks.
///
/// # Safety
///
/// A handler in `action` is async-signal-safe.
unsafe fn exchange_action(
    signal: c_int,
    action: Option<&libc::sigaction>,
) -> io::Result<libc::sigaction> {
    let action = action.map_or(std::ptr::null(), |action| &raw const *action);
    let mut before = MaybeUninit::uninit();
    // SAFETY: the call writes what was in force to `before` if it succeeds. The
    // caller answers for the handler.
    unsafe {
        Errno::result(libc::sigaction(signal, action, before.as_mut_ptr()))?;
        Ok(before.assume_init())
    }
}

impl Delivery {
    /// Has the thread end; once this returns, no handler writes to its eventfd, which
    /// is no longer to be found.
    fn end(self) -> JoinHandle<()> {
        self.ends.store(true, Ordering::SeqCst);
        let _ = self.wake.write(1);
        while RUNNING.load(Ordering::SeqCst) > 0 {
            std::thread::yield_now();
        }
        self.thread
    }
}

/// The delivery thread.
fn deliver(wake: &EventFd, ends: &AtomicBool) {
    let mut next_look: Option<Instant> = None;
    loop {
        unblock_handled();
        let timeout = next_look.map(|next| next.saturating_duration_since(Instant::now()));
        wait(wake, timeout);
        if ends.load(Ordering::SeqCst) {
            return;
        }
        let delivering = DELIVERING.lock().unwrap_or_else(PoisonError::into_inner);
        for signal in signals(PENDING.swap(0, Ordering::SeqCst)) {
            // What is called is contained by itself; this is for what is dropped.
            contained(|| deliver_one(signal));
        }
        next_look = apps()
            .iter()
            .filter_map(|app| contained(|| app.look(Instant::now())).flatten())
            .min();
        drop(delivering);
    }
}

/// Blocks every signal for this OS thread but those that the handler is installed
/// for: it takes them where all others have them blocked, and no others, which the
/// program may have blocked to wait for them.
fn unblock_handled() {
    let mut blocked = SigSet::all();
    for &signal in registry().dispositions.keys() {
        if let Ok(signal) = Signal::try_from(signal) {
            blocked.remove(signal);
        }
    }
    let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&blocked), None);
}

fn wait(wake: &EventFd, timeout: Option<Duration>) {
    // Rounded up: never early. A wait that is cut short is begun again.
    let timeout = timeout.map_or(PollTimeout::NONE, |timeout| {
        let millis = timeout.as_millis().saturating_add(1);
        PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
    });
    let mut fds = [PollFd::new(wake.as_fd(), PollFlags::POLLIN)];
    let _ = poll(&mut fds, timeout);
    let _ = wake.read();
}

fn apps() -> Vec<Arc<dyn Stoppable>> {
    registry().apps.iter().map(|(_, app)| app.clone()).collect()
}

/// A critical message: on the thread of an app, shuts that app down.
pub(crate) fn shut_down_current_app() {
    apps().iter().for_each(|app| app.shut_down_if_current());
}

fn deliver_one(signal: c_int) {
    let listeners: Vec<_> = {
        let registry = registry();
        let listens = |one: &&(u64, Arc<Listener>)| one.1.wanted & bit(signal) != 0;
        registry.listeners.iter().filter(listens).cloned().collect()
    };
    for (_, listener) in &listeners {
        listener.pending.fetch_or(bit(signal), Ordering::SeqCst);
        // A waker may be foreign code.
        if let Some(waker) = listener.waker.take() {
            contained(|| waker.wake());
        }
    }
    if listeners.is_empty()
        && STOPPING.contains(&signal)
        && let Ok(signal) = Signal::try_from(signal)
    {
        for app in apps() {
            contained(|| app.ask_to_stop(signal));
        }
    }
}
