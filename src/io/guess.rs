//! Whether a transfer of all that was asked for has left nothing behind: a guess from what followed
//! the last ones.
//!
//! A server of messages of one length asks for one message, gets it, and asks again in vain: half of
//! its reads. A wait that looks at the level may come first, then: should it be wrong, it ends at
//! once. So every so often one read is tried first again, to see whether the guess still holds.

use std::os::fd::AsFd;

use super::readiness::{Direction, PollFd};
use super::state::{Core, Engine};
use super::table::Key;

/// So often in a row a full transfer was followed by none before that is expected.
const SURE: u8 = 4;
/// So many guesses between two tries.
const TRUST: u8 = 16;

/// What is known of one direction.
#[derive(Default)]
pub(crate) struct Guess {
    /// The last transfer was a full one, and no wait has come since.
    full: bool,
    /// Full transfers in a row that were followed by none.
    drained: u8,
    /// Guesses since the last try.
    guessed: u8,
}

impl Guess {
    /// A full transfer has ended. Whether to wait before the next one.
    pub(crate) fn full(&mut self) -> bool {
        if std::mem::replace(&mut self.full, true) {
            // There was more.
            self.drained = 0;
        }
        if self.drained < SURE || self.guessed >= TRUST {
            self.guessed = 0;
            return false;
        }
        self.guessed += 1;
        self.full = false;
        true
    }

    /// A transfer has ended early.
    pub(crate) fn short(&mut self) {
        self.full = false;
    }

    /// There was nothing to transfer.
    pub(crate) fn nothing(&mut self) {
        if std::mem::take(&mut self.full) {
            self.drained = (self.drained + 1).min(SURE);
        }
    }
}

impl<T: AsFd + 'static> PollFd<T> {
    /// The last read or write moved less than it was asked to, so the next would most likely block:
    /// lets it wait at once instead of trying, where that cannot lose an event.
    pub(crate) fn hint_drained(&self, direction: Direction) {
        let drained = |guess: &mut Guess| {
            guess.short();
            true
        };
        self.core().hint(self.source, direction, drained);
    }

    /// The last read moved all that it was asked to: the next waits at once if those before it, after
    /// such a one, found nothing.
    pub(crate) fn hint_full(&self) {
        self.core().hint(self.source, Direction::Read, Guess::full);
    }
}

impl Core {
    /// Each wait on the ring looks at the level, so that being wrong costs it nothing. An edge does
    /// not come back, and a read also ends early with more behind it (at TCP's urgent mark, after a
    /// Unix message that carries descriptors): there only `EAGAIN` says that the source is drained.
    fn hint(&self, source: Key, direction: Direction, drained: impl FnOnce(&mut Guess) -> bool) {
        let state = &mut *self.state.borrow_mut();
        if let Engine::Uring(_) = state.engine {
            let wait = state.sources.wait(source, direction);
            // One that lasts tells of edges too.
            if !wait.lasting && drained(&mut wait.guess) {
                wait.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of so many transfers, each of which is full and leaves nothing, are followed by a try.
    fn tries(guess: &mut Guess, transfers: usize) -> usize {
        let mut tries = 0;
        for _ in 0..transfers {
            if !guess.full() {
                guess.nothing();
                tries += 1;
            }
        }
        tries
    }

    #[test]
    fn after_some_tries_in_vain_few_are_made() {
        let mut guess = Guess::default();
        assert_eq!(tries(&mut guess, SURE.into()), usize::from(SURE));
        assert_eq!(tries(&mut guess, 170), 10);
    }

    #[test]
    fn a_guess_that_holds_no_longer_is_given_up() {
        let mut guess = Guess::default();
        tries(&mut guess, 10);
        let waits = (0..100).filter(|_| guess.full()).count();
        assert!(waits <= usize::from(TRUST), "{waits}");
        assert!(!guess.full());
    }

    #[test]
    fn a_short_transfer_says_nothing_of_full_ones() {
        let mut guess = Guess::default();
        for _ in 0..100 {
            guess.short();
            guess.nothing();
            assert!(!guess.full());
            guess.short();
        }
    }
}
