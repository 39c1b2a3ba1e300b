//! How long a device lives: the count of its channels and walks, and the steps
//! in which it goes.
//!
//! Threads add and remove their channels, walks begin and end, and one thread
//! asks for the end, all at once. Each change is made under the lock, and the
//! one after which nothing is left is the one that gets the request to complete,
//! so that it is completed once. Completing it is the caller's, without the
//! lock. Model-checked with loom.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::PoisonError;

use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// `T` is what holds a channel, by its id; `R` is what is told of the end.
pub(super) struct Lifetime<T, R> {
    /// Changed under the lock, read without.
    registered: AtomicBool,
    state: Mutex<State<T, R>>,
}

/// The holder of a channel; of two, while the destructor of one has opened the
/// next.
struct Holder<T> {
    holder: T,
    channels: usize,
}

struct State<T, R> {
    channels: BTreeMap<u64, Holder<T>>,
    walks: usize,
    request: Option<R>,
}

impl<T: Clone, R> State<T, R> {
    fn holder_after(&self, cursor: u64) -> Option<T> {
        let mut later = self.channels.range(cursor.saturating_add(1)..);
        later.next().map(|(_, of)| of.holder.clone())
    }
}

/// What [`Lifetime::request`] led to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Requested {
    /// No walk is under way: [`Lifetime::close`] is to be called.
    CloseNow,
    /// The last walk will hand the request out.
    AfterWalks,
    /// There was a request before.
    Twice,
}

/// What the end of a channel left.
#[must_use]
pub(super) struct Removed<T, R> {
    /// Its holder, if that was its last.
    pub(super) holder: Option<T>,
    /// To be completed.
    pub(super) request: Option<R>,
}

/// A snapshot.
pub(super) struct Counts<T> {
    pub(super) holders: Vec<T>,
    pub(super) walks: usize,
    pub(super) unregistering: bool,
}

impl<T: Clone, R: Clone> Lifetime<T, R> {
    pub(super) fn new() -> Self {
        Lifetime {
            registered: AtomicBool::new(true),
            state: Mutex::new(State {
                channels: BTreeMap::new(),
                walks: 0,
                request: None,
            }),
        }
    }

    /// No user code runs under the lock, so that a poisoned one is whole.
    fn lock(&self) -> MutexGuard<'_, State<T, R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether new channels may be opened.
    #[inline]
    pub(super) fn is_registered(&self) -> bool {
        self.registered.load(Ordering::Acquire)
    }

    /// Counts the channel that holder `id` is about to make, unless the device
    /// is gone.
    pub(super) fn add_channel(&self, id: u64, holder: T) -> bool {
        let mut state = self.lock();
        let registered = self.is_registered();
        if registered {
            let added = Holder {
                holder,
                channels: 0,
            };
            state.channels.entry(id).or_insert(added).channels += 1;
        }
        registered
    }

    /// The channel of `id` is destroyed, or was not made after all. With the
    /// last one of a closed device comes the request to be completed.
    pub(super) fn remove_channel(&self, id: u64) -> Removed<T, R> {
        let mut state = self.lock();
        let mut holder = None;
        if let Entry::Occupied(mut entry) = state.channels.entry(id) {
            entry.get_mut().channels -= 1;
            if entry.get().channels == 0 {
                holder = Some(entry.remove().holder);
            }
        }
        let request = self.take_if_gone(&mut state);
        Removed { holder, request }
    }

    fn take_if_gone(&self, state: &mut State<T, R>) -> Option<R> {
        if self.is_registered() || !state.channels.is_empty() {
            return None;
        }
        state.request.take()
    }

    /// Counts a walk, unless the device is gone or about to be.
    pub(super) fn begin_walk(&self) -> bool {
        let mut state = self.lock();
        if !self.is_registered() || state.request.is_some() {
            return false;
        }
        state.walks += 1;
        true
    }

    /// For a walk under way: the first holder after `cursor`. If there is none
    /// the walk has ended, as by [`end_walk`](Lifetime::end_walk).
    pub(super) fn next_channel(&self, cursor: u64) -> Result<T, Option<R>> {
        let mut state = self.lock();
        match state.holder_after(cursor) {
            Some(holder) => Ok(holder),
            None => Err(self.end_walk_locked(&mut state)),
        }
    }

    /// The first holder after `cursor`.
    pub(super) fn holder_after(&self, cursor: u64) -> Option<T> {
        self.lock().holder_after(cursor)
    }

    /// A walk has ended. With the last one comes the request that waited for
    /// it: the requester is to [`close`](Lifetime::close).
    #[must_use]
    pub(super) fn end_walk(&self) -> Option<R> {
        self.end_walk_locked(&mut self.lock())
    }

    fn end_walk_locked(&self, state: &mut State<T, R>) -> Option<R> {
        state.walks -= 1;
        if state.walks > 0 || !self.is_registered() {
            return None;
        }
        state.request.clone()
    }

    /// Asks for the end; `make` is called, under the lock, for the first request.
    pub(super) fn request(&self, make: impl FnOnce() -> R) -> Requested {
        let mut state = self.lock();
        if !self.is_registered() || state.request.is_some() {
            return Requested::Twice;
        }
        state.request = Some(make());
        match state.walks {
            0 => Requested::CloseNow,
            _ => Requested::AfterWalks,
        }
    }

    /// Lets no channel in any more. If there is no channel, the request to be
    /// completed.
    #[must_use]
    pub(super) fn close(&self) -> Option<R> {
        let mut state = self.lock();
        self.registered.store(false, Ordering::Release);
        self.take_if_gone(&mut state)
    }

    pub(super) fn counts(&self) -> Counts<T> {
        let state = self.lock();
        Counts {
            holders: state
                .channels
                .values()
                .map(|of| of.holder.clone())
                .collect(),
            walks: state.walks,
            unregistering: state.request.is_some(),
        }
    }
}
