//! The places of a channel between threads: a sender that finds none waits until
//! one is free, or the channel is closed.

use super::Event;
use super::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Places may be taken, and freed, on any thread.
pub(crate) struct Places {
    taken: AtomicUsize,
    capacity: usize,
    freed: Event,
    closed: AtomicBool,
}

impl Places {
    pub(crate) fn new(capacity: usize) -> Self {
        Places {
            taken: AtomicUsize::new(0),
            capacity,
            freed: Event::new(),
            closed: AtomicBool::new(false),
        }
    }

    /// Takes a place, if there is one; says how many were taken before.
    pub(crate) fn try_take(&self) -> Option<usize> {
        self.taken
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |taken| {
                (taken < self.capacity).then_some(taken + 1)
            })
            .ok()
    }

    /// Takes a place once there is one, and says how many were taken before; `None`
    /// when closed. Cancelled, it passes on a place that it was told of.
    pub(crate) async fn take(&self) -> Option<usize> {
        let mut listens = None;
        loop {
            if self.is_closed() {
                return None;
            }
            if let Some(before) = self.try_take() {
                return Some(before);
            }
            match listens.take() {
                // Looks once more: a place may have become free before this.
                None => listens = Some(self.freed.listen()),
                Some(freed) => freed.await,
            }
        }
    }

    /// Frees a place that was taken.
    pub(crate) fn free(&self) {
        self.taken.fetch_sub(1, Ordering::AcqRel);
        self.freed.notify_additional(1);
    }

    /// Lets no sender wait any more.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.freed.notify_additional(usize::MAX);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

#[cfg(all(test, corespun_loom))]
mod loom_tests {
    use loom::future::block_on;
    use loom::sync::Arc;
    use loom::thread;

    use super::Places;

    fn model(f: impl Fn() + Send + Sync + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(f);
    }

    /// A place that becomes free while a sender begins to wait for it.
    #[test]
    fn loom_a_place_freed_against_a_wait_is_taken() {
        model(|| {
            let places = Arc::new(Places::new(1));
            assert_eq!(places.try_take(), Some(0));
            let waits = {
                let places = places.clone();
                thread::spawn(move || block_on(places.take()))
            };
            places.free();
            assert_eq!(waits.join().unwrap(), Some(0));
            assert_eq!(places.try_take(), None);
        });
    }

    /// The channel is closed while a sender begins to wait.
    #[test]
    fn loom_a_close_against_a_wait_ends_it() {
        model(|| {
            let places = Arc::new(Places::new(1));
            assert_eq!(places.try_take(), Some(0));
            let waits = {
                let places = places.clone();
                thread::spawn(move || block_on(places.take()))
            };
            places.close();
            assert_eq!(waits.join().unwrap(), None);
        });
    }

    /// Two wait for places that become free one after the other.
    #[test]
    fn loom_two_who_wait_share_what_is_freed() {
        model(|| {
            let places = Arc::new(Places::new(1));
            assert_eq!(places.try_take(), Some(0));
            let takers = [(); 2].map(|()| {
                let places = places.clone();
                thread::spawn(move || {
                    let before = block_on(places.take());
                    places.free();
                    before
                })
            });
            places.free();
            for taker in takers {
                assert_eq!(taker.join().unwrap(), Some(0));
            }
        });
    }
}
