//! `for_each_reactor`: one event after another visits the reactors in the order of their
//! cores, and the last comes back to the reactor where the walk began.

use std::cell::Cell;
use std::sync::Arc;

use super::group::{Event, Group};
use super::handle::Reactors;
use super::one::ReactorHandle;
use crate::thread::message::Message;
use crate::thread::panic::drop_anywhere;
use crate::thread::travel::{Journey, Traveller, Trip};
use crate::thread::{SpdkThread, WalkPanicked};

thread_local! {
    /// The reactor that runs events on this OS thread now: its group, and its index.
    static IN_EVENTS: Cell<(*const Group, usize)> = const { Cell::new((std::ptr::null(), 0)) };
}

/// While this lives, events run on this OS thread. Then those again that it was made in,
/// if one of them turns a simulation.
pub(super) struct InEvents(*const Group, usize);

impl InEvents {
    #[inline]
    pub(super) fn of(group: *const Group, index: usize) -> Self {
        let (outer, place) = IN_EVENTS.replace((group, index));
        InEvents(outer, place)
    }
}

impl Drop for InEvents {
    #[inline]
    fn drop(&mut self) {
        IN_EVENTS.set((self.0, self.1));
    }
}

impl Group {
    /// The reactor that this is called on: by an event, or by a thread that it polls.
    pub(super) fn current(&self) -> Option<usize> {
        let (group, index) = IN_EVENTS.get();
        if std::ptr::eq(group, self) {
            return Some(index);
        }
        let thread = SpdkThread::current()?;
        let ours = Arc::ptr_eq(&thread.shared.library, &self.library.inner);
        ours.then(|| self.index_of(thread.core()?)).flatten()
    }
}

/// A walk that the group counts until this is dropped: no reactor ends before.
pub(super) struct Counted(Arc<Group>);

impl Counted {
    /// None if all stop.
    pub(super) fn new(group: &Arc<Group>) -> Option<Self> {
        group.begin_walk().then(|| Counted(group.clone()))
    }

    pub(super) fn group(&self) -> &Arc<Group> {
        &self.0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.end_walk();
    }
}

/// Why a walk over the reactors could not begin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReactorWalkError {
    /// It would have no reactor to come back to.
    #[error(
        "for_each_reactor needs a reactor to come back to: call it from an event, or on a thread that one polls"
    )]
    NotOnReactor,
    /// The reactors are stopping.
    #[error("the reactors are stopping and begin no walk")]
    Stopping,
}

struct Walk<F, D> {
    group: Arc<Group>,
    /// How many of the reactors, in the order of their cores, were visited.
    visited: usize,
    origin: usize,
    visit: F,
    done: D,
    counted: Counted,
}

impl<F, D> Journey for Walk<F, D>
where
    F: FnMut(&ReactorHandle) + Send + 'static,
    D: FnOnce(Result<(), WalkPanicked>) + Send + 'static,
{
    type Stop = usize;

    fn next_stop(&mut self) -> Option<usize> {
        let index = self.group.by_core.get(self.visited)?;
        self.visited += 1;
        Some(*index)
    }

    fn send(index: usize, walk: Traveller<Self>) -> Result<(), Traveller<Self>> {
        let group = walk.journey().group.clone();
        group.send_call(index, walk, |walk| Message::new(move || walk.arrive()))
    }

    fn visit(mut walk: Traveller<Self>) {
        let journey = walk.journey_mut();
        let index = journey.group.by_core[journey.visited - 1];
        let reactor = ReactorHandle::new(journey.group.clone(), index);
        (journey.visit)(&reactor);
        walk.advance();
    }

    fn end(trip: Box<Trip<Self>>) {
        let walked = trip.walked();
        let Walk {
            group,
            origin,
            visit,
            done,
            counted,
            ..
        } = trip.journey;
        // Refused only by a reactor whose loop has panicked: all stop.
        let end = move || {
            done(walked);
            drop(counted);
        };
        let refused = group.send_call(origin, end, Message::new);
        // They may panic, and a visit has perhaps just done so.
        drop_anywhere(refused);
        drop_anywhere(visit);
    }
}

impl Reactors {
    /// Calls `f` on every reactor, one after the other in ascending order of the
    /// cores, each in an event of its own; then `done`, in an event on the reactor
    /// that this was called on (`spdk_for_each_reactor`).
    ///
    /// A panic of `f` is contained, and the walk goes on; see [walks](crate::thread#walks).
    /// A walk that has begun comes to its end: the reactors stop only after it.
    ///
    /// # Errors
    ///
    /// [`ReactorWalkError`] when this is not called on a reactor, or they are
    /// stopping. Neither function is called then.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::mpsc;
    /// use corespun::{app::{App, AppHandle}, cpu};
    /// use futures::channel::oneshot;
    ///
    /// let cpu = cpu::available()?.first().unwrap();
    /// let app = App::builder().lcores([(0, cpu), (1, cpu)]).mode(corespun::reactor::ReactorMode::Interrupt);
    /// let cores = app.block_on(async |app: AppHandle| {
    ///     let (sender, cores) = mpsc::channel();
    ///     let (done, end) = oneshot::channel();
    ///     let visit = move |reactor: &corespun::reactor::ReactorHandle| sender.send(reactor.core()).unwrap();
    ///     app.reactors().for_each_reactor(visit, |walked| done.send(walked).unwrap()).unwrap();
    ///     end.await.unwrap().unwrap();
    ///     cores.try_iter().collect::<Vec<_>>()
    /// })?;
    /// assert_eq!(cores, [0, 1]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn for_each_reactor(
        &self,
        f: impl FnMut(&ReactorHandle) + Send + 'static,
        done: impl FnOnce(Result<(), WalkPanicked>) + Send + 'static,
    ) -> Result<(), ReactorWalkError> {
        let origin = self.0.current().ok_or(ReactorWalkError::NotOnReactor)?;
        let counted = Counted::new(&self.0).ok_or(ReactorWalkError::Stopping)?;
        Traveller::start(Walk {
            group: self.0.clone(),
            visited: 0,
            origin,
            visit: f,
            done,
            counted,
        });
        Ok(())
    }
}

impl Group {
    /// Sends an event whatever the limit; the content comes back from a reactor that
    /// has ended.
    pub(super) fn send_call<C>(
        &self,
        index: usize,
        content: C,
        pack: impl FnOnce(C) -> Message,
    ) -> Result<(), C> {
        let reactor = &self.reactors[index];
        let pack = |content| Event::Call(pack(content));
        reactor.events.push_with(content, pack)?;
        reactor.sleeper.notify();
        Ok(())
    }
}
