//! What a thread asked of others and waits to hear the end of: walks over
//! threads or channels that it started, devices that it is unregistering. The
//! completion stays here, on the thread that asked, and the answer comes as a
//! message with the completion's key, so that a completion need not be `Send`.
//! While one is pending, the thread does not exit.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::sync::Arc;

use super::ExitHolder;
use crate::thread::local::{Local, Rare};
use crate::thread::part::Part;
use crate::thread::placement::bound::{Bound, BoundBy};

/// Consumes the answer, whose type only the key tells.
type Completion = Box<dyn FnOnce(&mut dyn Any)>;

/// What is pending, for the query of what holds an exit.
pub(crate) enum Pending {
    ThreadWalk,
    ChannelWalk(Arc<str>),
    Unregister(Arc<str>),
}

impl Pending {
    fn holder(&self) -> ExitHolder {
        match self {
            Pending::ThreadWalk => ExitHolder::ThreadWalk,
            Pending::ChannelWalk(device) => ExitHolder::ChannelWalk(device.to_string()),
            Pending::Unregister(device) => ExitHolder::Unregister(device.to_string()),
        }
    }
}

/// Finds one completion again, on its own thread, and says what answer it takes.
pub(crate) struct PendingKey<A> {
    slot: u32,
    generation: u32,
    takes: PhantomData<fn(A)>,
}

impl<A> Clone for PendingKey<A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A> Copy for PendingKey<A> {}

struct Entry {
    what: Pending,
    completion: Bound<Completion>,
}

#[derive(Default)]
struct PendingSlot {
    generation: u32,
    entry: Option<Entry>,
}

/// The pending completions of one thread. Owner only.
#[derive(Default)]
pub(crate) struct PendingTable {
    slots: RefCell<Vec<PendingSlot>>,
    free: RefCell<Vec<u32>>,
    len: Cell<usize>,
}

impl PendingTable {
    fn take(&self, index: usize) -> Option<Entry> {
        let mut slots = self.slots.borrow_mut();
        let slot = slots.get_mut(index)?;
        let entry = slot.entry.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.borrow_mut().push(index as u32);
        self.len.set(self.len.get() - 1);
        Some(entry)
    }
}

impl Part for PendingTable {
    fn holds(&self) -> bool {
        self.len.get() > 0
    }

    fn holders(&self, holders: &mut Vec<ExitHolder>) {
        let slots = self.slots.borrow();
        let pending = slots.iter().filter_map(|slot| slot.entry.as_ref());
        holders.extend(pending.map(|entry| entry.what.holder()));
    }

    fn binders(&self, by: &mut Vec<BoundBy>) -> usize {
        let slots = self.slots.borrow();
        let pending = slots.iter().filter_map(|slot| slot.entry.as_ref());
        let binders = pending.filter(|entry| entry.completion.binds());
        by.extend(binders.filter_map(|entry| match &entry.what {
            // Its completion is `Send`.
            Pending::ThreadWalk => None,
            Pending::ChannelWalk(device) => Some(BoundBy::ChannelWalk(device.to_string())),
            Pending::Unregister(device) => Some(BoundBy::Unregister(device.to_string())),
        }));
        0
    }

    fn cancel(&self, local: &Local) {
        let mut index = 0;
        // Dropping user content may add more.
        while index < self.slots.borrow().len() {
            if let Some(entry) = self.take(index) {
                local.drop_contained(entry.completion);
            }
            index += 1;
        }
    }
}

impl Local {
    /// Keeps `completion` until [`Local::complete`] is called with the key.
    /// `stays` says that it must not leave this OS thread.
    pub(crate) fn insert_pending<A: 'static>(
        &self,
        what: Pending,
        stays: bool,
        completion: impl FnOnce(A) + 'static,
    ) -> PendingKey<A> {
        let completion: Completion = Box::new(move |answer: &mut dyn Any| {
            let answer = answer.downcast_mut::<Option<A>>().and_then(Option::take);
            completion(answer.expect("an answer is given by the key"));
        });
        let (slot, generation) = self.store_pending(what, stays, completion);
        PendingKey {
            slot,
            generation,
            takes: PhantomData,
        }
    }

    /// Says in which slot, and the how manieth of it.
    fn store_pending(&self, what: Pending, stays: bool, completion: Completion) -> (u32, u32) {
        let table = &self.rare().pending;
        table.len.set(table.len.get() + 1);
        let entry = Some(Entry {
            what,
            completion: self.anchor.bind_if(stays, completion),
        });
        let mut slots = table.slots.borrow_mut();
        if let Some(slot) = table.free.borrow_mut().pop() {
            let reused = &mut slots[slot as usize];
            reused.entry = entry;
            return (slot, reused.generation);
        }
        let slot = u32::try_from(slots.len()).expect("fewer than 2^32 walks of one thread");
        slots.push(PendingSlot {
            generation: 0,
            entry,
        });
        (slot, 0)
    }

    /// Calls the completion with its answer; one that was cancelled meanwhile
    /// is not there any more.
    pub(crate) fn complete<A: 'static>(&self, key: PendingKey<A>, answer: A) {
        let index = key.slot as usize;
        let Some(Rare { pending, .. }) = self.existing_rare() else {
            return;
        };
        let known = pending
            .slots
            .borrow()
            .get(index)
            .is_some_and(|slot| slot.generation == key.generation);
        if known && let Some(entry) = pending.take(index) {
            (entry.completion.into_inner())(&mut Some(answer));
        }
    }
}
