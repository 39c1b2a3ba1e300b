//! What is left to chance in a simulation, and how much of it.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::clock::Clock;

/// What may happen.
#[derive(Clone, Debug)]
pub(super) struct Chance {
    pub(super) message_delay: RangeInclusive<Duration>,
    pub(super) poll_time: RangeInclusive<Duration>,
    pub(super) stall: RangeInclusive<Duration>,
    pub(super) preemption: bool,
}

impl Chance {
    /// About what a machine does.
    pub(super) fn usual() -> Self {
        Chance {
            message_delay: Duration::from_nanos(50)..=Duration::from_micros(10),
            poll_time: Duration::from_nanos(20)..=Duration::from_nanos(500),
            stall: Duration::ZERO..=Duration::from_micros(100),
            preemption: true,
        }
    }

    /// Nothing at all.
    pub(super) fn none() -> Self {
        let nothing = Duration::ZERO..=Duration::ZERO;
        Chance {
            message_delay: nothing.clone(),
            poll_time: nothing.clone(),
            stall: nothing,
            preemption: false,
        }
    }
}

/// How a poll is cut short.
pub(super) struct Cut {
    pub(super) max_msgs: usize,
    pub(super) mailbox_next: Option<bool>,
}

/// Chance itself: the same seed throws the same.
pub(super) struct Dice {
    pub(super) rng: fastrand::Rng,
    message_delay: Span,
    poll_time: Span,
    stall: Span,
    preemption: bool,
}

/// From a shortest time to a longest, in ticks.
#[derive(Clone, Copy)]
pub(super) struct Span {
    least: u64,
    more: u64,
}

impl Span {
    pub(super) fn new(range: &RangeInclusive<Duration>, clock: &Clock) -> Self {
        let least = clock.ticks_from(*range.start());
        Span {
            least,
            more: clock.ticks_from(*range.end()).saturating_sub(least),
        }
    }

    /// A time: short ones are as likely as ones of twice, four times, … their length, as
    /// delays are.
    pub(super) fn throw(self, rng: &mut fastrand::Rng) -> u64 {
        match self.more {
            0 => self.least,
            more => {
                let halved = rng.u32(0..8);
                self.least + rng.u64(0..=more >> halved)
            }
        }
    }
}

/// Of so many turns, one is followed by a stall.
const STALLS: u32 = 128;

impl Dice {
    pub(super) fn new(seed: u64, chance: &Chance, clock: &Clock) -> Self {
        Dice {
            rng: fastrand::Rng::with_seed(seed),
            message_delay: Span::new(&chance.message_delay, clock),
            poll_time: Span::new(&chance.poll_time, clock),
            stall: Span::new(&chance.stall, clock),
            preemption: chance.preemption,
        }
    }

    pub(super) fn leaves_order_to_chance(&self) -> bool {
        self.preemption
    }

    pub(super) fn message_delay(&mut self) -> u64 {
        self.message_delay.throw(&mut self.rng)
    }

    /// What a turn takes besides its polls: seldom, the core has to do something else.
    pub(super) fn turn(&mut self) -> u64 {
        let time = self.poll_time.throw(&mut self.rng);
        match self.stall.more > 0 && self.rng.u32(0..STALLS) == 0 {
            true => time + self.stall.throw(&mut self.rng),
            false => time,
        }
    }

    /// What a poll takes, and how it is cut short; `None` for a thread that is passed
    /// over this time.
    pub(super) fn poll(&mut self) -> (u64, Option<Cut>) {
        let time = self.poll_time.throw(&mut self.rng);
        if !self.preemption {
            let whole = Cut {
                max_msgs: 0,
                mailbox_next: None,
            };
            return (time, Some(whole));
        }
        let bits = self.rng.u32(..);
        let cut = Cut {
            // Half of them run the whole batch.
            max_msgs: match bits & 1 {
                0 => 0,
                _ => 1 + (bits >> 1) as usize % 8,
            },
            mailbox_next: Some(bits & 16 == 0),
        };
        (time, (!(bits >> 5).is_multiple_of(8)).then_some(cut))
    }
}
