//! The clock of a runtime: real time, or one that stands.

#[cfg(feature = "test-util")]
pub(crate) use stoppable::Clock;
#[cfg(feature = "test-util")]
pub(super) use stoppable::now;
#[cfg(feature = "test-util")]
pub use stoppable::{advance, pause, resume};

/// Real time.
#[cfg(all(feature = "rt", not(feature = "test-util")))]
#[derive(Debug, Default)]
pub(crate) struct Clock;

#[cfg(all(feature = "rt", not(feature = "test-util")))]
impl Clock {
    /// Whether it says that `deadline` has passed although a thread's clock may not.
    #[inline]
    pub(super) fn is_due(&self, _deadline: super::Instant) -> bool {
        false
    }
}

/// The time of the current runtime.
#[cfg(not(feature = "test-util"))]
pub(super) fn now() -> std::time::Instant {
    std::time::Instant::now()
}

#[cfg(feature = "test-util")]
mod stoppable {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use corespun::clock::StoppableClock;

    use crate::runtime::context;

    /// A clock that can be stopped, if its runtime has one thread.
    #[derive(Debug, Default)]
    pub(crate) struct Clock {
        stoppable: Option<Stoppable>,
    }

    #[derive(Debug)]
    struct Stoppable {
        hand: StoppableClock,
        /// A tick and an instant that is not earlier.
        base: (u64, Instant),
        /// It stood once: from then on it differs from real time.
        stood: AtomicBool,
        /// How many things are under way that take real time.
        inhibitors: Arc<AtomicUsize>,
    }

    /// Keeps a standing clock from going on by itself.
    pub(crate) struct Inhibit(Option<Arc<AtomicUsize>>);

    impl Inhibit {
        /// Ends it; says whether that matters to anybody.
        pub(crate) fn end(self) -> bool {
            self.0.is_some()
        }
    }

    impl Drop for Inhibit {
        fn drop(&mut self) {
            if let Some(count) = &self.0 {
                count.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }

    impl Clock {
        /// One that can be stopped.
        pub(crate) fn stoppable(start_paused: bool) -> Self {
            let hand = StoppableClock::new();
            let tick = hand.clock().now();
            let base = (tick, Instant::now());
            if start_paused {
                hand.stop();
            }
            Clock {
                stoppable: Some(Stoppable {
                    hand,
                    base,
                    stood: AtomicBool::new(start_paused),
                    inhibitors: Arc::default(),
                }),
            }
        }

        /// The clock for the SpdkThread.
        pub(crate) fn ticks(&self) -> corespun::clock::Clock {
            match &self.stoppable {
                Some(stoppable) => stoppable.hand.clock(),
                None => corespun::clock::Clock::monotonic(),
            }
        }

        pub(in super::super) fn now(&self) -> Instant {
            match &self.stoppable {
                Some(stoppable) if stoppable.stood.load(Ordering::Acquire) => {
                    let (tick, instant) = stoppable.base;
                    let ticks = stoppable.hand.clock().now();
                    instant + Duration::from_nanos(ticks.saturating_sub(tick))
                }
                _ => Instant::now(),
            }
        }

        /// Whether it says that `deadline` has passed although a thread's clock may not: it
        /// stood once, and is put forward between two turns of the thread's timers.
        pub(in super::super) fn is_due(&self, deadline: crate::time::Instant) -> bool {
            let stoppable = self.stoppable.as_ref();
            stoppable.is_some_and(|one| one.stood.load(Ordering::Acquire))
                && self.now() >= deadline.into_std()
        }

        /// Whether it stands, and nothing is under way that takes real time.
        pub(crate) fn can_auto_advance(&self) -> bool {
            self.stoppable.as_ref().is_some_and(|stoppable| {
                stoppable.hand.is_stopped() && stoppable.inhibitors.load(Ordering::Acquire) == 0
            })
        }

        pub(crate) fn auto_advance(&self, duration: Duration) {
            if let Some(stoppable) = &self.stoppable {
                stoppable.hand.advance_by(duration);
            }
        }

        pub(crate) fn inhibit_auto_advance(&self) -> Inhibit {
            let stoppable = self.stoppable.as_ref();
            Inhibit(stoppable.map(|stoppable| {
                stoppable.inhibitors.fetch_add(1, Ordering::AcqRel);
                stoppable.inhibitors.clone()
            }))
        }
    }

    /// The time of the current runtime.
    pub(in super::super) fn now() -> Instant {
        let now = context::with_current(|handle| handle.inner.clock.now());
        now.unwrap_or_else(|_| Instant::now())
    }

    #[track_caller]
    fn with_clock<R>(f: impl FnOnce(&Clock) -> Result<R, &'static str>) -> R {
        let result = match context::with_current(|handle| f(&handle.inner.clock)) {
            Ok(result) => result,
            Err(_) => Err("time cannot be frozen from outside the Tokio runtime"),
        };
        match result {
            Ok(result) => result,
            Err(message) => panic!("{message}"),
        }
    }

    /// Stops the clock of the current runtime: [`Instant::now`](crate::time::Instant::now)
    /// stands, and timers wait for [`advance`]; or, when nothing else is to be done, the
    /// clock goes on to the next of them by itself.
    ///
    /// # Panics
    ///
    /// When the clock stands already, when the runtime is a `multi_thread` one, and
    /// outside of a runtime.
    #[track_caller]
    pub fn pause() {
        with_clock(|clock| {
            let stoppable = clock.stoppable.as_ref().ok_or(
                "`time::pause()` requires the `current_thread` Tokio runtime. This is the default \
                 Runtime used by `#[tokio::test].",
            )?;
            if !stoppable.hand.stop() {
                return Err("time is already frozen");
            }
            stoppable.stood.store(true, Ordering::Release);
            Ok(())
        });
    }

    /// Lets the clock of the current runtime go on.
    ///
    /// # Panics
    ///
    /// When it does not stand, and outside of a runtime.
    #[track_caller]
    pub fn resume() {
        with_clock(|clock| match &clock.stoppable {
            Some(stoppable) if stoppable.hand.start() => Ok(()),
            _ => Err("time is not frozen"),
        });
    }

    /// Moves the standing clock of the current runtime, then lets what is due run: one
    /// turn of it, not what that leads to.
    ///
    /// # Panics
    ///
    /// When the clock does not stand, and outside of a runtime.
    pub async fn advance(duration: Duration) {
        with_clock(|clock| {
            let stoppable = clock.stoppable.as_ref();
            let moved = stoppable.and_then(|stoppable| stoppable.hand.advance_by(duration));
            moved.map(drop).ok_or("time is not frozen")
        });
        crate::task::yield_now().await;
    }
}
