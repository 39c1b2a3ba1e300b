//! How a driver watches shared descriptors: an epoll set of edges, which any OS thread may take a
//! descriptor out of, and a table of the sources that the edges concern, which only the driver's
//! own thread touches.
//!
//! A descriptor is taken out of the set where and when it is closed, so that neither its number nor the
//! file behind it outlives it here. Its place in the table is given free later, by the driver, after the
//! events it has already fetched: a place in the kernel's hands never names another descriptor.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::task::Waker;
use std::time::Duration;

use crossbeam_queue::SegQueue;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll as Set, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use slab::Slab;

use super::home::wake;
use super::source::Source;
use crate::io::epoll_wait::EpollWait;
use crate::io::interest::{Interest, Ready};
use crate::io::readiness::Direction;
use crate::io::state::Core;
use crate::io::wake::WakeFd;

/// Marks the events of shared descriptors in a set that has others too: a place that no `Key` has. With
/// the last numbers of all it marks what is no descriptor's event.
const MARK: u64 = u32::MAX as u64;

/// Whether an event of the set is that of a shared descriptor; the set's own tags are looked at first.
pub(crate) fn is_tag(data: u64) -> bool {
    data & MARK == MARK
}

/// The tag of the wake eventfd, in either set.
const WAKE: u64 = u64::MAX;

/// In so many turns one looks at the set, where each look is a system call.
const TURNS: u32 = 16;

/// So many places that wait to be given free end the driver's sleep.
const MANY: usize = 64;

/// So many events in a row for a descriptor that is used elsewhere end its watch.
const STRAYS: u8 = 16;

/// What a driver's own thread is to do.
enum Note {
    Free(usize),
    Watch(Arc<Source>),
}

/// The part of a driver that every OS thread may use.
pub(super) struct Remote {
    id: usize,
    /// The process that made it: the set is also in the hands of a forked child, which may not touch
    /// what its parent watches.
    process: u32,
    set: Arc<Set>,
    notes: SegQueue<Note>,
    /// Places among the notes.
    freed: AtomicUsize,
    /// The notes should be looked at soon.
    urgent: AtomicBool,
    ended: AtomicBool,
    wake: WakeFd,
}

impl Remote {
    /// A number no other driver has that any source knows of.
    pub(super) fn id(&self) -> usize {
        self.id
    }

    /// Takes a descriptor, which is still open, out of the set. Any thread.
    pub(super) fn forget(&self, fd: RawFd, key: usize) {
        if std::process::id() != self.process {
            return;
        }
        // SAFETY: the caller holds the descriptor open.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        // Fails only if the descriptor's owner has closed the file behind it.
        let _ = self.set.delete(fd);
        // Counted before the driver can find the note and count it out.
        let freed = self.freed.fetch_add(1, Ordering::Relaxed) + 1;
        self.notes.push(Note::Free(key));
        if freed == MANY {
            self.hurry();
        }
    }

    /// Asks the driver to watch; false if it has ended. Any thread.
    fn ask(&self, source: Arc<Source>) -> bool {
        self.notes.push(Note::Watch(source));
        // Pairs with the fence in `Watched::end`: either that finds the note or this sees the end.
        fence(Ordering::SeqCst);
        self.hurry();
        !self.ended.load(Ordering::Relaxed)
    }

    fn hurry(&self) {
        self.urgent.store(true, Ordering::Release);
        self.wake.wake();
    }
}

/// A driver, for other OS threads: what a [`SharedFd`](super::SharedFd) falls back on where it is
/// polled on an OS thread that has none.
///
/// It does not keep the driver alive.
///
/// # Examples
///
/// ```
/// use corespun::io::{Driver, Interest, SharedFd};
/// use nix::sys::eventfd::EventFd;
///
/// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
/// let here = Driver::current().unwrap().handle()?;
/// let doorbell = SharedFd::with_driver(EventFd::new()?, Interest::READABLE, here);
/// doorbell.get_ref().write(1)?;
/// // An executor that knows nothing of drivers may wait for it.
/// let rung = corespun::task::spawn_blocking(move || {
///     futures::executor::block_on(doorbell.ready(Interest::READABLE)).is_ok()
/// });
/// assert!(rung.await?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct DriverHandle(Arc<Remote>);

impl DriverHandle {
    /// Whether the driver has ended.
    pub fn is_ended(&self) -> bool {
        self.0.ended.load(Ordering::Relaxed)
    }

    pub(super) fn is(&self, other: &DriverHandle) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Has the driver watch `source`, by a note to its own thread.
    pub(super) fn watch(&self, source: &Arc<Source>, direction: Direction) -> io::Result<()> {
        if self.is_ended() {
            return Err(NotWatched::Ended.into());
        }
        let mut asked = false;
        source.watch_on(direction, &self.0, |_, _| {
            asked = true;
            Ok(None)
        })?;
        // Outside of the source's lock, which the driver takes to do it.
        let ended_meanwhile = match asked {
            true => !self.0.ask(source.clone()),
            false => self.is_ended(),
        };
        if ended_meanwhile {
            // Its number may be another driver's one day. Waiters elsewhere look again.
            let mut woken = Vec::new();
            source.detach(&self.0, &mut woken);
            wake(woken);
            return Err(NotWatched::Ended.into());
        }
        Ok(())
    }
}

impl std::fmt::Debug for DriverHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DriverHandle")
            .field("ended", &self.is_ended())
            .finish_non_exhaustive()
    }
}

/// The descriptors that a driver watches. Its own thread only.
pub(crate) struct Watched {
    remote: Arc<Remote>,
    waits: EpollWait,
    entries: RefCell<Slab<Entry>>,
    events: RefCell<Vec<EpollEvent>>,
    /// The last look at the set fetched as many events as it could.
    more: Cell<bool>,
    /// Turns since the set was looked at, while nothing else tells of its events.
    turns: Cell<u32>,
}

struct Entry {
    source: Arc<Source>,
    strays: u8,
}

impl Watched {
    /// For the driver of `core`, in its set, or one of its own.
    pub(crate) fn new(core: &Core, set: Option<Arc<Set>>) -> io::Result<Self> {
        let set = match set {
            Some(set) => set,
            None => Arc::new(Set::new(EpollCreateFlags::EPOLL_CLOEXEC)?),
        };
        let remote = Remote {
            id: std::ptr::from_ref(core).addr(),
            process: std::process::id(),
            set,
            notes: SegQueue::new(),
            freed: AtomicUsize::new(0),
            urgent: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            wake: core.wake.clone(),
        };
        Ok(Watched {
            remote: Arc::new(remote),
            waits: EpollWait::default(),
            entries: RefCell::default(),
            events: RefCell::default(),
            more: Cell::new(false),
            turns: Cell::new(0),
        })
    }

    pub(crate) fn set(&self) -> &Set {
        &self.remote.set
    }

    pub(crate) fn handle(&self) -> DriverHandle {
        DriverHandle(self.remote.clone())
    }

    /// Whether the last look at the set has left events there, perhaps.
    pub(crate) fn has_more(&self) -> bool {
        self.more.get()
    }

    /// Whether a turn has something to do here whatever the kernel says.
    pub(crate) fn is_urgent(&self) -> bool {
        self.has_more() || self.remote.urgent.load(Ordering::Relaxed)
    }

    /// Whether there are places to be given free.
    pub(crate) fn has_freed(&self) -> bool {
        self.remote.freed.load(Ordering::Relaxed) > 0
    }

    pub(super) fn watch(&self, source: &Arc<Source>, direction: Direction) -> io::Result<()> {
        source.watch_on(direction, &self.remote, |fd, interest| {
            self.add(source, fd, interest).map(Some)
        })
    }

    fn add(&self, source: &Arc<Source>, fd: RawFd, interest: Interest) -> io::Result<usize> {
        let mut entries = self.entries.borrow_mut();
        let entry = entries.vacant_entry();
        let key = entry.key();
        // SAFETY: the source's lock is held and it has not given the descriptor up.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let event = EpollEvent::new(interest.epoll_flags(), (key as u64) << 32 | MARK);
        self.remote.set.add(fd, event)?;
        entry.insert(Entry {
            source: source.clone(),
            strays: 0,
        });
        Ok(key)
    }

    /// Has the wake eventfd end the waits for the set too, on a back-end whose own set it is not in.
    pub(crate) fn watch_wake(&self) -> io::Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, WAKE);
        Ok(self.remote.set.add(&self.remote.wake, event)?)
    }

    /// Whether a turn is to look at the set, while nothing else tells of its events: a system call in
    /// so many turns.
    #[inline]
    pub(crate) fn is_due(&self) -> bool {
        let turns = self.turns.get() + 1;
        self.turns.set(turns % TURNS);
        turns == TURNS
    }

    /// Has the next turn look at the set.
    pub(crate) fn look_next_turn(&self) {
        self.turns.set(TURNS - 1);
    }

    /// Blocks until there are events, or a write to the wake eventfd, which is drained, and deals with
    /// them. Returns how many there were.
    pub(crate) fn park(&self, limit: Option<Duration>, woken: &mut impl Extend<Waker>) -> usize {
        let mut events = self.events.borrow_mut();
        events.resize(256, EpollEvent::empty());
        let count = match self.waits.wait(&self.remote.set, &mut events, limit) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => {
                tracing::error!(%error, "epoll_wait failed");
                0
            }
        };
        self.more.set(count == events.len());
        self.turns.set(0);
        let mut seen = 0;
        for event in &events[..count] {
            if event.data() == WAKE {
                self.remote.wake.drain();
            } else {
                seen += 1;
                self.dispatch(*event, woken);
            }
        }
        seen
    }

    /// Fetches events from the set, for a back-end that has only been told that there are some.
    /// Returns how many there were.
    pub(crate) fn fetch(&self, woken: &mut impl Extend<Waker>) -> usize {
        let mut events = self.events.borrow_mut();
        events.resize(256, EpollEvent::empty());
        let count = self.remote.set.wait(&mut events, EpollTimeout::ZERO);
        let count = count.unwrap_or(0);
        self.more.set(count == events.len());
        let mut seen = 0;
        for event in &events[..count] {
            // A driver's park drains that.
            if event.data() != WAKE {
                seen += 1;
                self.dispatch(*event, woken);
            }
        }
        seen
    }

    /// Tells a source of its event.
    pub(crate) fn dispatch(&self, event: EpollEvent, woken: &mut impl Extend<Waker>) {
        let key = (event.data() >> 32) as usize;
        let mut entries = self.entries.borrow_mut();
        let Some(entry) = entries.get_mut(key) else {
            debug_assert!(false, "an event for the unknown descriptor {key}");
            return;
        };
        entry.source.event(Ready::from_epoll(event.events()), woken);
        if !entry.source.has_left(self.remote.id) {
            entry.strays = 0;
            return;
        }
        entry.strays += 1;
        if entry.strays < STRAYS {
            return;
        }
        // It has moved for good: its events need not disturb this driver.
        entry.strays = 0;
        let source = entry.source.clone();
        drop(entries);
        source.unwatch(&self.remote, key);
    }

    /// Does what was noted, after the events that were fetched are dealt with.
    pub(crate) fn tidy(&self, woken: &mut impl Extend<Waker>) {
        self.remote.urgent.store(false, Ordering::Relaxed);
        // Pairs with the store in `Remote::hurry`, after the note: a note that this misses sets it
        // again.
        fence(Ordering::SeqCst);
        let mut freed = 0;
        while let Some(note) = self.remote.notes.pop() {
            match note {
                Note::Free(key) => {
                    // The source goes with its last handle or here; neither holds a waker by then.
                    drop(self.entries.borrow_mut().try_remove(key));
                    freed += 1;
                }
                Note::Watch(source) => {
                    let add = |fd, interest| self.add(&source, fd, interest);
                    source.fulfil(&self.remote, add, woken);
                }
            }
        }
        self.remote.freed.fetch_sub(freed, Ordering::Relaxed);
    }

    /// The driver ends: those that wait through it look for another.
    pub(crate) fn end(&self, woken: &mut impl Extend<Waker>) {
        self.remote.ended.store(true, Ordering::Relaxed);
        // Pairs with the fence in `Remote::ask`.
        fence(Ordering::SeqCst);
        while let Some(note) = self.remote.notes.pop() {
            match note {
                Note::Free(key) => drop(self.entries.borrow_mut().try_remove(key)),
                Note::Watch(source) => source.detach(&self.remote, woken),
            }
        }
        for entry in self.entries.take().drain() {
            entry.source.detach(&self.remote, woken);
        }
    }
}

/// Why no driver watches a descriptor; inside of the [`io::Error`] of a wait.
///
/// # Examples
///
/// ```
/// use corespun::io::{Interest, NotWatched, SharedFd};
/// use nix::sys::eventfd::EventFd;
///
/// let doorbell = SharedFd::new(EventFd::new()?, Interest::READABLE);
/// // An executor without a driver.
/// let refused = futures::executor::block_on(doorbell.ready(Interest::READABLE)).unwrap_err();
/// assert!(matches!(NotWatched::of(&refused), Some(NotWatched::NoDriver)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotWatched {
    /// The OS thread has no driver, and the descriptor no home.
    #[error(
        "no I/O driver on this OS thread: wait on a reactor, enter a Driver, or make the SharedFd \
         with a driver or a home"
    )]
    NoDriver,
    /// The driver that watched for this OS thread has ended.
    #[error("the I/O driver that watched this descriptor was shut down")]
    Ended,
}

impl NotWatched {
    /// What `error` holds, if it is one.
    pub fn of(error: &io::Error) -> Option<NotWatched> {
        error.get_ref()?.downcast_ref().copied()
    }
}

impl From<NotWatched> for io::Error {
    #[cold]
    fn from(error: NotWatched) -> io::Error {
        io::Error::other(error)
    }
}
