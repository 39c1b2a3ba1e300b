//! `for_each_thread`: one message after another visits the threads of a library
//! instance in the order they were created, and the last comes back to where the
//! walk began. Threads that were asked to exit are passed over, and a thread
//! that exits with the message in its queue, or drops it unrun, lets it go on.

pub(crate) mod travel;

use std::sync::Arc;

use super::exit::pending::{Pending, PendingKey};
use super::local::Local;
use super::panic::drop_anywhere;
use super::poll::message::Message;
use super::shared::Shared;
use super::{Exited, NotOnThread, SpdkThread, ThreadLib, WalkStartError};
use travel::{Journey, Traveller, Trip};

/// A walk went to its end, and the function panicked at some of its stops.
///
/// # Examples
///
/// ```
/// use std::sync::mpsc;
/// use corespun::thread::ThreadLib;
///
/// let library = ThreadLib::builder().panic_hook(|_panic| ()).build();
/// let mut a = library.thread().name("a").build()?.attach();
/// let mut b = library.thread().name("b").build()?.attach();
/// let (sender, visits) = mpsc::channel();
/// let (tell, end) = mpsc::channel();
/// let visit = move |thread: &corespun::thread::SpdkThread| match thread.name() {
///     "a" => panic!("not here"),
///     name => sender.send(name.to_owned()).unwrap(),
/// };
/// a.enter(|| library.for_each_thread(visit, move |walked| tell.send(walked).unwrap()))?;
/// a.poll(0, 0);
/// b.poll(0, 0);
/// a.poll(0, 0);
/// assert!(visits.try_iter().eq(["b"]));
/// assert_eq!(end.try_recv()?.unwrap_err().stops, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the function of a walk panicked at {stops} of its stops; each panic was reported there")]
#[non_exhaustive]
pub struct WalkPanicked {
    /// At how many.
    pub stops: usize,
}

impl WalkPanicked {
    /// An error, unless that is nowhere.
    pub(crate) fn at(stops: usize) -> Result<(), Self> {
        match stops {
            0 => Ok(()),
            stops => Err(WalkPanicked { stops }),
        }
    }
}

struct Walk<F> {
    library: ThreadLib,
    /// The id of the thread visited last.
    cursor: u64,
    origin: Arc<Shared>,
    key: PendingKey<Result<(), WalkPanicked>>,
    visit: F,
}

impl<F: FnMut(&SpdkThread) + Send + 'static> Journey for Walk<F> {
    type Stop = Arc<Shared>;

    fn next_stop(&mut self) -> Option<Arc<Shared>> {
        let thread = self.library.next_running(self.cursor)?;
        self.cursor = thread.id;
        Some(thread)
    }

    fn send(thread: Arc<Shared>, walk: Traveller<Self>) -> Result<(), Traveller<Self>> {
        thread.deliver(walk, |walk| Message::new(move || walk.arrive()))
    }

    fn visit(mut walk: Traveller<Self>) {
        if let Some(thread) = SpdkThread::current() {
            (walk.journey_mut().visit)(&thread);
        }
        walk.advance();
    }

    fn end(trip: Box<Trip<Self>>) {
        let walked = trip.walked();
        // Refused only by a thread that has given up waiting.
        let _ = trip.journey.origin.deliver(trip.journey.key, |key| {
            Message::new(move || {
                Local::with_current(|local| local.complete(key, walked));
            })
        });
        // What it visited with may panic, and has perhaps just done so.
        drop_anywhere(trip);
    }
}

impl ThreadLib {
    /// Calls `f` on every running thread of this instance, one after the other
    /// in the order created, by message; then `done` on the current thread
    /// (`spdk_for_each_thread`).
    ///
    /// Threads that were asked to exit before their turn are passed over;
    /// threads made while the walk is under way are visited. `done` is always
    /// called by a later message, and the current thread does not exit before.
    /// A panic of `f` is contained, and the walk goes on; see [walks](crate::thread#walks).
    ///
    /// [`ThreadLib::walk_threads`] is the form with an asynchronous function.
    ///
    /// # Errors
    ///
    /// [`WalkStartError`] when no SpdkThread is current or it has exited.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::mpsc;
    /// use corespun::thread::ThreadLib;
    ///
    /// let library = ThreadLib::new();
    /// let mut a = library.thread().name("a").build()?.attach();
    /// let mut b = library.thread().name("b").build()?.attach();
    /// let (sender, visits) = mpsc::channel();
    /// let end = sender.clone();
    /// a.enter(|| {
    ///     library.for_each_thread(
    ///         move |thread| sender.send(thread.name().to_owned()).unwrap(),
    ///         move |walked| end.send(format!("all: {walked:?}")).unwrap(),
    ///     )
    /// })?;
    /// a.poll(0, 0);
    /// b.poll(0, 0);
    /// a.poll(0, 0);
    /// assert!(visits.try_iter().eq(["a", "b", "all: Ok(())"]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn for_each_thread(
        &self,
        f: impl FnMut(&SpdkThread) + Send + 'static,
        done: impl FnOnce(Result<(), WalkPanicked>) + Send + 'static,
    ) -> Result<(), WalkStartError> {
        let start = |local: &Local| {
            if local.refuses_work() {
                let gone = "has exited and cannot wait for a for_each_thread";
                return Err(Exited::new(local.shared.name(), gone).into());
            }
            // Both functions are `Send`, so a walk does not bind its thread.
            let key = local.insert_pending(Pending::ThreadWalk, false, done);
            let walk = Walk {
                library: self.clone(),
                cursor: 0,
                origin: local.shared.clone(),
                key,
                visit: f,
            };
            Traveller::start(walk);
            Ok(())
        };
        let needs = "for_each_thread needs a SpdkThread to come back to";
        Local::with_current(start).unwrap_or_else(|| Err(NotOnThread::new(needs).into()))
    }
}
