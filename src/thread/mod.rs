//! SpdkThreads: lightweight threads, each polled by the holder of its runner.
//!
//! A SpdkThread is a mailbox, pollers, timers and tasks, without a stack of its
//! own. The holder of its [`ThreadRunner`] polls it, on one OS thread at a time;
//! all other code has [`SpdkThread`] handles and sends it messages. The reactors
//! (one pinned OS thread per core) are one such holder; a loop of your own is
//! another:
//!
//! ```
//! use corespun::thread::ThreadLib;
//!
//! let library = ThreadLib::new();
//! let mut runner = library.thread().name("hello").build()?.attach();
//! let thread = runner.handle();
//! thread.send_msg(|| println!("hello reader")).unwrap();
//! let exit = thread.exit();
//! while !thread.is_exited() {
//!     runner.poll(0, 0);
//! }
//! # drop(exit);
//! # Ok::<(), corespun::thread::CreateError>(())
//! ```
//!
//! # Walks
//!
//! What there are several of is visited by walks, threads here, the
//! [channels](crate::channel) of a device, and [reactors](crate::reactor), all by one
//! rule:
//!
//! - `for_each_*` calls a function at each stop, one after the other, by message (or in
//!   an event), and then another one where the walk began. It begins with the call, and
//!   what it comes back to waits for it.
//! - `walk_*` runs an asynchronous function as a task at each stop, one after the other,
//!   and is a future: it may be awaited anywhere, and does nothing until it is. Dropped,
//!   it visits no further stop; the one that it is at goes on.
//! - `walk_*_concurrent` is the same with all stops at once.
//! - A stop that is gone when its turn comes is passed over.
//! - A panic at a stop is contained and ends that visit, not the walk. Its end tells: as
//!   that stop's [`JoinError`](crate::task::JoinError) where each stop has a result, else
//!   as [`WalkPanicked`], with the panics reported where contained panics are.
//!
//! The order of work inside one poll is written in one function,
//! [`ThreadRunner::poll`].
//!
//! A thread is two values: what any OS thread may touch of it (`shared`) and what its
//! owner alone does (`local`), whose contents are its parts (`part`). Its
//! [handle](SpdkThread) and its settings ([`ThreadBuilder`]) stand beside them, and so do
//! panics, thread-locals and errors. The rest has rooms:
//!
//! | room | holds |
//! |---|---|
//! | `poll` | the right to poll, the poll and its steps; messages, ready tasks, the timer queue, shares of time |
//! | `poller` | pollers, active and timed; post-poller handlers |
//! | `interrupt` | descriptors that a thread reacts to, the one that it is waited for by, interrupt mode |
//! | `exit` | the phases of an exit; what holds a thread, what is cancelled, what hears of the end |
//! | `placement` | where a thread may be, is and goes to, and what binds it to its OS thread |
//! | `walk` | visits to all threads, and the traveller under every walk |
//! | `stall` | what held a thread too long |
//! | `library` | the instance: registry, framework, panic policy |
//! | `spinlock` | locks that SpdkThreads own |

mod builder;
mod error;
pub(crate) mod exit;
mod handle;
mod interrupt;
pub(crate) mod library;
pub(crate) mod local;
mod local_key;
pub(crate) mod panic;
pub(crate) mod part;
mod placement;
mod poll;
pub(crate) mod poller;
pub(crate) mod shared;
mod spinlock;
pub(crate) mod stall;
mod walk;

pub use builder::ThreadBuilder;
pub use error::{
    CreateError, CriticalMsgError, Exited, NotOnThread, SendError, SendErrorReason, WalkStartError,
};
pub use exit::{Exit, ExitHolder};
pub use handle::SpdkThread;
pub use interrupt::{Interrupt, InterruptError, SendInterrupt, set_interrupt_mode};
pub use library::{Framework, FrameworkSet, PanicPolicy, ThreadLib, ThreadLibBuilder};
pub use local_key::{LocalKey, LocalKeyError};
pub use panic::{ContainedPanic, PanicSource};
pub(crate) use placement::Destination;
pub use placement::bound::BoundBy;
pub use placement::{SetCpumaskError, ThreadPlacement};
pub use poll::activity::Activity;
pub use poll::runner::{ParkedThread, ThreadRunner};
pub(crate) use poll::time_share::DEFAULT_SHARES;
pub use poll::time_share::{LatencyMisses, SharesError};
pub(crate) use poll::{Slice, Whole};
pub use poller::{
    Polled, Poller, PollerBuilder, PollerError, PollerState, PollerStats, PostPollerError,
    SendPoller, register_post_poller_handler, register_send_post_poller_handler,
};
pub use spinlock::{SpinMutex, SpinMutexGuard, Spinlock, SpinlockError, SpinlockMisuse};
pub use stall::{OsThread, OsThreadState, Stall, StallSource};
pub use walk::WalkPanicked;

// What other floors use of the rooms.
pub(crate) use exit::{ended, live, pending};
pub(crate) use placement::{bound, on_thread};
pub(crate) use poll::{at_once, idle_ticks, message, timer_queue};
pub(crate) use walk::travel;

/// Names are cut at this many bytes, as SPDK's.
const MAX_NAME: usize = 256;

pub(crate) fn cut_name(mut name: String) -> String {
    name.truncate(cut(&name, MAX_NAME).len());
    name
}

/// The beginning of `text`: as many whole characters as `most` bytes hold.
fn cut(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Where a thread stands in its life.
///
/// # Examples
///
/// ```
/// use corespun::thread::{ThreadLib, ThreadState};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let thread = runner.handle();
/// assert_eq!(thread.state(), ThreadState::Running);
/// let exit = runner.exit();
/// assert_eq!(thread.state(), ThreadState::Exiting);
/// while !runner.is_exited() {
///     runner.poll(0, 0);
/// }
/// assert_eq!(thread.state(), ThreadState::Exited);
/// # drop(exit);
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ThreadState {
    /// Takes everything.
    Running,
    /// Was asked to exit; still takes messages, pollers and tasks.
    Exiting,
    /// Takes nothing any more.
    Exited,
}

/// How a thread's time was spent, in ticks of its library's clock.
///
/// # Examples
///
/// ```
/// use corespun::thread::{Poller, ThreadLib};
///
/// let (clock, hand) = corespun::clock::Clock::virtual_at(1_000_000);
/// let mut runner = ThreadLib::builder().clock(clock).build().thread().build()?.attach();
/// let mut rounds = 0;
/// let poller = runner.enter(|| Poller::active(move || {
///     rounds += 1;
///     hand.advance(rounds * 10);
///     rounds == 2
/// }))?;
/// runner.poll(0, 0); // 10 ticks for nothing
/// runner.poll(0, 0); // 20 ticks of work
/// let stats = runner.handle().stats();
/// assert_eq!((stats.idle_ticks, stats.busy_ticks), (10, 20));
/// # drop(poller);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadStats {
    /// Ticks of polls that did something.
    pub busy_ticks: u64,
    /// Ticks of polls that did not.
    pub idle_ticks: u64,
}
