//! What goes from stop to stop, one after the other, and comes back at the end: the
//! one machine under all walks, over threads, over channels and over reactors.
//!
//! A journey is one box that travels as a message. Where it is dropped instead of
//! being run (its stop has ended, a destructor ran) it goes on by itself, so that
//! who waits for its end hears of it whatever happens on the way.

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
    fn end(self: Box<Self>);

    /// A visit has unwound with the traveller in it.
    fn unwound(traveller: Traveller<Self>) {
        traveller.advance();
    }
}

/// A journey under way; it goes on when it is dropped.
pub(crate) struct Traveller<J: Journey>(Option<Box<J>>);

impl<J: Journey> Traveller<J> {
    /// Sets out.
    pub(crate) fn start(journey: J) {
        Traveller(Some(Box::new(journey))).advance();
    }

    pub(crate) fn journey(&self) -> &J {
        self.0.as_deref().expect("taken only when consumed")
    }

    pub(crate) fn journey_mut(&mut self) -> &mut J {
        self.0.as_deref_mut().expect("taken only when consumed")
    }

    /// On to the next stop that can be reached, or to the end.
    pub(crate) fn advance(mut self) {
        while let Some(journey) = &mut self.0 {
            let Some(stop) = journey.next_stop() else {
                return self.finish();
            };
            match J::send(stop, self) {
                Ok(()) => return,
                Err(refused) => self = refused,
            }
        }
    }

    pub(crate) fn arrive(self) {
        J::visit(self);
    }

    /// To the end, whatever stops are left.
    pub(crate) fn finish(mut self) {
        if let Some(journey) = self.0.take() {
            journey.end();
        }
    }
}

impl<J: Journey> Drop for Traveller<J> {
    fn drop(&mut self) {
        let Some(journey) = self.0.take() else {
            return;
        };
        let traveller = Traveller(Some(journey));
        match std::thread::panicking() {
            true => J::unwound(traveller),
            false => traveller.advance(),
        }
    }
}
