//! What goes from stop to stop, one after the other, and comes back at the end: the
//! one machine under all walks, over threads, over channels and over reactors.
//!
//! A journey is one box that travels as a message. Where it is dropped instead of
//! being run (its stop has ended, a destructor ran) it goes on by itself, so that
//! the waiter for its end hears of it whatever happens on the way. A panic at a
//! stop does not end it: it is counted, and the end is told.

use super::WalkPanicked;

/// What a journey is for: where it stops, and what it does there.
pub(crate) trait Journey: Send + Sized + 'static {
    type Stop;

    /// The next stop, or none. It counts as visited from then on.
    fn next_stop(&mut self) -> Option<Self::Stop>;

    /// Sends the traveller to `stop`, to [`arrive`](Traveller::arrive) there; gives
    /// it back if nothing can be sent there any more.
    fn send(stop: Self::Stop, traveller: Traveller<Self>) -> Result<(), Traveller<Self>>;

    /// Is at a stop, and goes on from there, now or later.
    fn visit(traveller: Traveller<Self>);

    /// No stop is left.
    fn end(trip: Box<Trip<Self>>);
}

/// A journey, and how it went.
pub(crate) struct Trip<J> {
    pub(crate) journey: J,
    /// At how many stops the visit has unwound.
    panicked: usize,
    /// It has arrived at a stop, and not gone on.
    visiting: bool,
}

impl<J> Trip<J> {
    /// Whether every visit returned.
    pub(crate) fn walked(&self) -> Result<(), WalkPanicked> {
        WalkPanicked::at(self.panicked)
    }
}

/// A journey under way; it goes on when it is dropped.
pub(crate) struct Traveller<J: Journey>(Option<Box<Trip<J>>>);

impl<J: Journey> Traveller<J> {
    /// Sets out.
    pub(crate) fn start(journey: J) {
        Self::at_home(journey).advance();
    }

    /// Stays, and is at the end.
    pub(crate) fn end_at_once(journey: J) {
        Self::at_home(journey).finish();
    }

    fn at_home(journey: J) -> Self {
        let trip = Trip {
            journey,
            panicked: 0,
            visiting: false,
        };
        Traveller(Some(Box::new(trip)))
    }

    pub(crate) fn journey(&self) -> &J {
        let trip = self.0.as_deref().expect("taken only when consumed");
        &trip.journey
    }

    pub(crate) fn journey_mut(&mut self) -> &mut J {
        let trip = self.0.as_deref_mut().expect("taken only when consumed");
        &mut trip.journey
    }

    /// On to the next stop that can be reached, or to the end.
    pub(crate) fn advance(mut self) {
        while let Some(trip) = &mut self.0 {
            trip.visiting = false;
            let Some(stop) = trip.journey.next_stop() else {
                return self.finish();
            };
            match J::send(stop, self) {
                Ok(()) => return,
                Err(refused) => self = refused,
            }
        }
    }

    pub(crate) fn arrive(mut self) {
        if let Some(trip) = &mut self.0 {
            trip.visiting = true;
        }
        J::visit(self);
    }

    /// To the end, whatever stops are left.
    pub(crate) fn finish(mut self) {
        if let Some(trip) = self.0.take() {
            J::end(trip);
        }
    }
}

impl<J: Journey> Drop for Traveller<J> {
    fn drop(&mut self) {
        let Some(mut trip) = self.0.take() else {
            return;
        };
        // One that waited to be visited where something unwinds was not visited.
        trip.panicked += usize::from(trip.visiting && std::thread::panicking());
        Traveller(Some(trip)).advance();
    }
}
