//! Stalls: what held a thread for longer than the library's limit.
//!
//! The thread itself finds them, with the clock read before and after each
//! callback, when the callback has returned. For one that does not return, it
//! writes down what it runs ([`StallRecord`]), and another OS thread looks at
//! that: the watcher of an app, or a caller of [`ThreadLib::check_stalls`].
//! Neither costs anything where no limit is set.

mod os_thread;
mod record;

use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub use os_thread::{OsThread, OsThreadState};
pub(crate) use record::{Occupant, StallRecord};

use super::library::{LibraryInner, ThreadLib};
use super::local::Local;
use super::panic::{contain, discard};
use super::shared::Shared;

pub(super) type StallHook = Box<dyn Fn(&Stall<'_>) + Send + Sync>;

/// What held a thread.
///
/// # Examples
///
/// ```
/// use corespun::thread::StallSource;
///
/// // As it is written in the log.
/// assert_eq!(StallSource::Poller.to_string(), "poller");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StallSource {
    /// A message's closure.
    Message,
    /// A poller's callback.
    Poller,
    /// One poll of a task. The first one of an eager task is a part of what spawns
    /// it, and outside of a poll of the thread, nothing.
    Task,
    /// Anything else in a poll of the thread: the destructor of a future or of a
    /// message, an interrupt's callback, a critical message, a foreign waker, a
    /// step of the exit.
    Poll,
    /// An event of a reactor, outside of any thread.
    Event,
}

impl StallSource {
    /// In the order of their numbers.
    const ALL: [StallSource; 5] = [
        StallSource::Message,
        StallSource::Poller,
        StallSource::Task,
        StallSource::Poll,
        StallSource::Event,
    ];
}

impl fmt::Display for StallSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StallSource::Message => "message",
            StallSource::Poller => "poller",
            StallSource::Task => "task",
            StallSource::Poll => "poll",
            StallSource::Event => "event",
        })
    }
}

/// What holds or held a thread for too long, as the library's stall hook sees
/// it.
///
/// One occurrence makes two of them at most, in this order unless it ends just
/// while it is seen: one with `still_running`, if a watcher looks meanwhile (see
/// [`ThreadLib::check_stalls`]), and one when it has ended, with the whole time.
///
/// # Examples
///
/// ```
/// use std::{sync::mpsc, time::Duration};
/// use corespun::thread::{Poller, ThreadLib};
///
/// let (clock, hand) = corespun::clock::Clock::virtual_at(1_000_000);
/// let (sender, reports) = mpsc::channel();
/// let library = ThreadLib::builder()
///     .clock(clock)
///     .stall_limit(Duration::from_micros(50))
///     .stall_hook(move |stall| {
///         let report = format!("{} {} held {}", stall.source, stall.name, stall.thread);
///         sender.send((report, stall.held)).unwrap();
///     })
///     .build();
/// let mut runner = library.thread().name("disk").build()?.attach();
/// let poller = runner.enter(|| {
///     Poller::builder().name("scan").register(move || _ = hand.advance(70))
/// })?;
/// runner.poll(0, 0);
/// assert_eq!(reports.recv()?, ("poller scan held disk".to_owned(), Duration::from_micros(70)));
/// # drop(poller);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Stall<'a> {
    /// The name of the thread that was held; of an event, its reactor's.
    pub thread: &'a str,
    /// The core whose reactor polls the thread, if one does.
    pub core: Option<usize>,
    /// What held it.
    pub source: StallSource,
    /// The name and spawn location of the task, the name of the poller, or the
    /// type of the message's closure, which says where it was written. Of what is
    /// still running, 64 bytes of the name at most.
    pub name: &'a str,
    /// The tick of the library's clock at which it began.
    pub since: u64,
    /// For how long, so far if it is still running.
    pub held: Duration,
    /// Whether it had not ended when this was made.
    pub still_running: bool,
    /// What the kernel says of the OS thread that runs it: of what is still
    /// running on a reactor only.
    pub os_thread: Option<OsThread>,
}

impl fmt::Display for Stall<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stall {
            source,
            name,
            thread,
            held,
            ..
        } = self;
        let holds = if self.still_running {
            "has held"
        } else {
            "held"
        };
        write!(f, "{source} {name} {holds} {thread:?}")?;
        if let Some(core) = self.core {
            write!(f, " on core {core}")?;
        }
        write!(f, " for {held:?}")?;
        if self.still_running {
            f.write_str(" and still runs")?;
        }
        match &self.os_thread {
            Some(os_thread) => write!(f, "; OS thread {} is {os_thread}", os_thread.tid),
            None => Ok(()),
        }
    }
}

impl Local {
    /// A callback begins; returns when. Out of line, since few libraries measure.
    #[inline(never)]
    pub(crate) fn callback_begins(&self, callback: Occupant<'_>) -> u64 {
        let now = self.shared.library.clock.now();
        match &self.shared.stall_record {
            Some(record) => self.note_callback(record, callback, now),
            None => now,
        }
    }

    fn note_callback(&self, record: &StallRecord, callback: Occupant<'_>, now: u64) -> u64 {
        let now = self.end_gap(record, now);
        record.begin(callback, now);
        now
    }

    /// A callback that began at tick `since` has ended; returns how many ticks
    /// it took.
    #[inline(never)]
    pub(crate) fn callback_ends(&self, callback: Occupant<'_>, since: u64) -> u64 {
        let now = self.shared.library.clock.now();
        if let Some(record) = &self.shared.stall_record {
            let now = self.report_if_long(record, callback, since, now);
            record.begin(Occupant::Poll, now);
        }
        now.saturating_sub(since)
    }

    /// The thread's poll begins. Its caller's tick may be older.
    #[inline]
    pub(super) fn watch_poll(&self) {
        if self.stall_limit > 0 {
            self.note_poll_begin();
        }
    }

    /// The thread's poll ends, at its `last_tick`.
    #[inline]
    pub(super) fn unwatch_poll(&self) {
        if self.stall_limit > 0 {
            self.note_poll_end();
        }
    }

    #[cold]
    fn note_poll_begin(&self) {
        if let Some(record) = &self.shared.stall_record {
            record.begin(Occupant::Poll, self.shared.library.clock.now());
        }
    }

    #[cold]
    fn note_poll_end(&self) {
        if let Some(record) = &self.shared.stall_record {
            self.end_gap(record, self.shared.last_tick.load(Ordering::Relaxed));
            record.clear();
        }
    }

    /// Ends the time outside of callbacks; returns when the next thing begins.
    fn end_gap(&self, record: &StallRecord, now: u64) -> u64 {
        match record.polls_since() {
            Some(since) => self.report_if_long(record, Occupant::Poll, since, now),
            None => now,
        }
    }

    /// Reports what ran from tick `since` to `now` if that is too long; returns
    /// the tick after it, since the time of a report is no callback's stall.
    fn report_if_long(
        &self,
        record: &StallRecord,
        occupant: Occupant<'_>,
        since: u64,
        now: u64,
    ) -> u64 {
        let ticks = now.saturating_sub(since);
        if ticks < self.stall_limit {
            return now;
        }
        // First, so that no watcher finds it still running afterwards.
        record.clear();
        self.report_end(occupant, since, ticks);
        self.shared.library.clock.now()
    }

    #[cold]
    fn report_end(&self, occupant: Occupant<'_>, since: u64, ticks: u64) {
        let core = self.shared.core();
        let library = &self.shared.library;
        library.report_stall_end(self.shared.name(), core, occupant, since, ticks);
    }
}

impl LibraryInner {
    /// A place to write down what runs, if stalls are watched for.
    pub(crate) fn stall_record(&self) -> Option<StallRecord> {
        (self.stall_ticks > 0).then(StallRecord::default)
    }

    pub(crate) fn report_stall_end(
        &self,
        thread: &str,
        core: Option<usize>,
        occupant: Occupant<'_>,
        since: u64,
        ticks: u64,
    ) {
        self.report_stall(&Stall {
            thread,
            core,
            source: occupant.source(),
            name: &occupant.describe(),
            since,
            held: self.clock.duration_from(ticks),
            still_running: false,
            os_thread: None,
        });
    }

    /// Reports what `record` says is running, if that is too long and was not
    /// reported before. Any OS thread. `tid` is that of the one that runs it.
    pub(crate) fn check_stall(
        &self,
        record: &StallRecord,
        thread: &str,
        core: Option<usize>,
        tid: Option<i32>,
    ) -> bool {
        let now = self.clock.now();
        let is_long_ago = |since| now.saturating_sub(since) >= self.stall_ticks;
        let Some(occupation) = record.read(is_long_ago) else {
            return false;
        };
        if !record.take_report(&occupation) {
            return false;
        }
        self.report_stall(&Stall {
            thread,
            core,
            source: occupation.source,
            name: &occupation.name,
            since: occupation.since,
            held: self
                .clock
                .duration_from(now.saturating_sub(occupation.since)),
            still_running: true,
            os_thread: tid.and_then(OsThread::read),
        });
        true
    }

    fn report_stall(&self, stall: &Stall<'_>) {
        tracing::warn!(thread = stall.thread, held = ?stall.held, "{stall}");
        if let Some(hook) = &self.stall_hook
            && let Err(payload) = contain(|| hook(stall))
        {
            discard(payload);
        }
    }
}

impl Shared {
    /// [`LibraryInner::check_stall`] for what the thread runs.
    pub(crate) fn check_stall(&self, tid: Option<i32>) -> bool {
        match &self.stall_record {
            Some(record) => {
                let library = &self.library;
                library.check_stall(record, self.name(), self.core(), tid)
            }
            None => false,
        }
    }
}

impl ThreadLib {
    /// Looks at what every thread of this instance runs now, reports each that has
    /// held its thread for the
    /// [`stall_limit`](super::ThreadLibBuilder::stall_limit) or longer and was not
    /// reported as still running before, and returns how many that were.
    ///
    /// From any OS thread, and it stops none: the way to hear of a callback that
    /// never returns, called every half limit or so by one that polls no threads.
    /// An [`App`](crate::app::App) with a stall limit has its own watcher, and
    /// needs this only for threads that are polled by hand.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{sync::mpsc, time::Duration};
    /// use corespun::{clock::Clock, thread::ThreadLib};
    ///
    /// let (clock, hand) = Clock::virtual_at(1_000);
    /// let library = ThreadLib::builder()
    ///     .clock(clock)
    ///     .stall_limit(Duration::from_millis(100))
    ///     .stall_hook(|stall| println!("{stall:?}"))
    ///     .build();
    /// let thread = library.thread().name("held").build()?;
    /// let (begun, begins) = mpsc::channel();
    /// let (release, released) = mpsc::channel::<()>();
    /// thread.handle().send_msg(move || {
    ///     begun.send(()).unwrap();
    ///     let _ = released.recv();
    /// }).unwrap();
    /// let poller = std::thread::spawn(move || drop(thread.attach().poll(0, 0)));
    /// begins.recv().unwrap();
    /// assert_eq!(library.check_stalls(), 0);
    /// hand.advance(100);
    /// assert_eq!(library.check_stalls(), 1); // reported, as still running
    /// assert_eq!(library.check_stalls(), 0);
    /// drop(release);
    /// poller.join().unwrap(); // reported, with the whole time
    /// # Ok::<(), corespun::thread::CreateError>(())
    /// ```
    pub fn check_stalls(&self) -> usize {
        let mut found = 0;
        let mut cursor = 0;
        loop {
            // A few at a time: the registry is locked meanwhile.
            let threads = self.threads_after(cursor, 64);
            let Some(last) = threads.last() else {
                return found;
            };
            cursor = last.id;
            found += threads.iter().filter(|one| one.check_stall(None)).count();
        }
    }
}
