//! The part of a simulation that the simulated program may have.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::trace::What;
use super::world::World;
use crate::clock::Clock;
use crate::sync::budget;

/// What a program may ask of the simulation that it runs in, on any thread of it:
/// the time, chance, and the stand-ins for what it is connected with.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use corespun::sim::Sim;
///
/// let mut sim = Sim::builder().seed(3).build();
/// let handle = sim.handle();
/// let took = sim.block_on(async move {
///     let begin = handle.now();
///     handle.spend(Duration::from_millis(2)); // computes
///     handle.delay(Duration::from_millis(5)).await; // waits
///     handle.now() - begin
/// });
/// assert!(took >= Duration::from_millis(7));
/// ```
#[derive(Clone)]
pub struct SimHandle {
    pub(super) world: Arc<World>,
}

impl SimHandle {
    /// The time since the begin of the simulation.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.world.clock.duration_from(self.world.now())
    }

    /// The clock of the simulation.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.world.clock
    }

    /// Takes so much of the current core's time, as a computation does. On no core, time
    /// passes for all.
    pub fn spend(&self, time: Duration) {
        self.world.hand.advance_by(time);
    }

    /// Waits so long. Unlike [`time::sleep`](crate::time::sleep), it is no timer of a
    /// thread: the waiter may go elsewhere meanwhile.
    ///
    /// # Cancel safety
    ///
    /// Dropped, nothing is lost; the simulation still goes on to that time.
    pub async fn delay(&self, time: Duration) {
        let now = self.world.now();
        let until = now.saturating_add(self.world.clock.ticks_from(time));
        budget::take().await;
        self.delay_until(until).await;
    }

    /// Waits until a tick.
    pub(super) async fn delay_until(&self, tick: u64) {
        poll_fn(|cx| match self.world.is_due(tick) {
            true => Poll::Ready(()),
            false => {
                self.world.wake_at(tick, cx.waker());
                Poll::Pending
            }
        })
        .await;
    }

    /// A number below `limit` from the simulation's chance; 0 if that is 0.
    #[must_use]
    pub fn random(&self, limit: u64) -> u64 {
        match limit {
            0 => 0,
            limit => self.world.state().dice.rng.u64(0..limit),
        }
    }

    /// Whether one of `in_so_many` chances has come: never for 0, always for 1.
    #[must_use]
    pub fn chance(&self, in_so_many: u32) -> bool {
        in_so_many != 0 && self.random(in_so_many.into()) == 0
    }

    /// Writes something into the [trace](super::Trace).
    pub fn note(&self, text: impl fmt::Display) {
        let text = text.to_string().into();
        let now = self.world.now();
        let mut state = self.world.state();
        let sender = state.sender;
        state.trace.record(now, sender, What::Note(text));
    }
}

impl fmt::Debug for SimHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimHandle")
            .field("seed", &self.world.seed)
            .field("now", &self.now())
            .finish()
    }
}
