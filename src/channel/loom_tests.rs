//! Models of a device's reference counts, run by loom over every interleaving
//! within a bound of preemptions: channels got and put, walks and the
//! unregistration, each on a thread of its own. The [`Lifetime`] is the real
//! one; completing a request and closing by message is done here at once.

use std::sync::atomic::{AtomicUsize as Count, Ordering::Relaxed};

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

use super::lifetime::{Lifetime, Requested};

fn model(f: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(f);
}

/// A device whose channels touch what is freed when it is gone.
struct Device {
    lifetime: Lifetime<u64, u8>,
    /// Each holder's part: counts its channels that were destroyed.
    parts: [UnsafeCell<usize>; 2],
    completed: Count,
}

impl Device {
    fn new() -> Arc<Self> {
        Arc::new(Device {
            lifetime: Lifetime::new(),
            parts: [UnsafeCell::new(0), UnsafeCell::new(0)],
            completed: Count::new(0),
        })
    }

    /// Holder `id` (1 or 2) opens a channel, if it may, uses and destroys it.
    /// Says whether it did.
    fn use_channel(&self, id: u64) -> bool {
        if !self.lifetime.is_registered() || !self.lifetime.add_channel(id, id) {
            return false;
        }
        self.put(id);
        true
    }

    fn put(&self, id: u64) {
        // SAFETY: loom checks that no other thread touches it.
        self.parts[id as usize - 1].with_mut(|part| unsafe { *part += 1 });
        self.complete(self.lifetime.remove_channel(id).request);
    }

    fn complete(&self, request: Option<u8>) {
        if request.is_none() {
            return;
        }
        assert_eq!(self.completed.fetch_add(1, Relaxed), 0, "completed twice");
        assert!(!self.lifetime.is_registered());
        assert!(self.lifetime.counts().holders.is_empty());
        for part in &self.parts {
            // SAFETY: loom checks that every destructor came before, and none
            // comes after: a model that completes does so for the last time.
            part.with_mut(|part| unsafe { *part += 100 });
        }
    }

    fn unregister(&self) -> Requested {
        let requested = self.lifetime.request(|| 7);
        if requested == Requested::CloseNow {
            self.complete(self.lifetime.close());
        }
        requested
    }

    /// A walk to its end.
    fn walk(&self) -> bool {
        if !self.lifetime.begin_walk() {
            return false;
        }
        let mut cursor = 0;
        loop {
            assert!(self.lifetime.is_registered(), "closed under a walk");
            match self.lifetime.next_channel(cursor) {
                Ok(holder) => {
                    assert!(holder > cursor);
                    cursor = holder;
                }
                Err(request) => {
                    self.end_of_walks(request);
                    return true;
                }
            }
        }
    }

    fn end_of_walks(&self, request: Option<u8>) {
        if request.is_some() {
            self.complete(self.lifetime.close());
        }
    }

    fn assert_gone(&self, destroyed: [usize; 2]) {
        assert_eq!(self.completed.load(Relaxed), 1);
        assert!(!self.use_channel(1) && !self.walk());
        assert_eq!(self.unregister(), Requested::Twice);
        for (part, destroyed) in self.parts.iter().zip(destroyed) {
            // SAFETY: alone by now.
            assert_eq!(part.with(|part| unsafe { *part }), 100 + destroyed);
        }
    }
}

/// IO-003, IO-007: two threads put their last handles while a third unregisters.
/// The device goes once, after both destructors.
#[test]
fn loom_an_unregistration_against_the_last_puts_completes_once() {
    model(|| {
        let device = Device::new();
        for id in [1, 2] {
            assert!(device.lifetime.add_channel(id, id));
        }
        let others = [1, 2].map(|id| {
            let device = device.clone();
            thread::spawn(move || device.put(id))
        });
        assert_eq!(device.unregister(), Requested::CloseNow);
        others.into_iter().for_each(|t| t.join().unwrap());
        device.assert_gone([1, 1]);
    });
}

/// IO-004, IO-006: a channel is got and put while the device is unregistered:
/// either it is refused, or the device waits for its destructor.
#[test]
fn loom_a_channel_got_against_an_unregistration_is_refused_or_waited_for() {
    model(|| {
        let device = Device::new();
        let others = [1, 2].map(|id| {
            let device = device.clone();
            thread::spawn(move || usize::from(device.use_channel(id)))
        });
        assert_eq!(device.unregister(), Requested::CloseNow);
        let destroyed = others.map(|t| t.join().unwrap());
        device.assert_gone(destroyed);
    });
}

/// IO-022: the device is closed by the last to come, the caller or the last
/// walk, and not under a walk.
#[test]
fn loom_an_unregistration_waits_for_walks_under_way() {
    model(|| {
        let device = Device::new();
        assert!(device.lifetime.add_channel(1, 1));
        let walks = [(); 2].map(|()| {
            let device = device.clone();
            thread::spawn(move || _ = device.walk())
        });
        assert_ne!(device.unregister(), Requested::Twice);
        walks.into_iter().for_each(|t| t.join().unwrap());
        assert_eq!(device.completed.load(Relaxed), 0, "there is a channel");
        device.put(1);
        device.assert_gone([1, 0]);
    });
}

/// IO-022: the same with the last put on a third thread.
#[test]
fn loom_a_walk_and_the_last_put_against_an_unregistration_complete_once() {
    model(|| {
        let device = Device::new();
        assert!(device.lifetime.add_channel(1, 1));
        let walk = {
            let device = device.clone();
            thread::spawn(move || _ = device.walk())
        };
        let put = {
            let device = device.clone();
            thread::spawn(move || device.put(1))
        };
        assert_ne!(device.unregister(), Requested::Twice);
        walk.join().unwrap();
        put.join().unwrap();
        device.assert_gone([1, 0]);
    });
}

/// IO-002: of two that unregister one device, one is refused.
#[test]
fn loom_one_of_two_unregistrations_is_refused() {
    model(|| {
        let device = Device::new();
        let other = {
            let device = device.clone();
            thread::spawn(move || device.unregister())
        };
        let mine = device.unregister();
        let theirs = other.join().unwrap();
        assert_ne!(mine == Requested::Twice, theirs == Requested::Twice);
        device.assert_gone([0, 0]);
    });
}
