//! Queues from any OS thread to one SpdkThread.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use corespun::local::mpsc::TryRecvError;
use corespun::mpsc;
use corespun::thread::SpdkThread;

use crate::books::{Order, Stamp, Value, World};
use crate::here::{holdings, take};
use crate::{Kind, Step};

/// Queues. Whether the step is one of these.
pub fn act(world: &Arc<World>, step: &Arc<Step>) -> bool {
    let Step { a, b, .. } = **step;
    match step.kind {
        Kind::Mpsc => make_mpsc(world, step),
        Kind::TrySend => {
            if let Some(sender) = world.senders.take(a) {
                sender.try_send(world, step);
                world.senders.push(sender);
            }
        }
        Kind::CloneSender => {
            if let Some(sender) = world.senders.take(a) {
                world.senders.push(sender.clone());
                world.senders.push(sender);
            }
        }
        Kind::DropSender => drop(world.senders.take(a)),
        Kind::TryRecv => {
            let receiver = holdings(world, |held| take(&mut held.receivers, a)).flatten();
            if let Some(mut receiver) = receiver {
                let mut open = true;
                for _ in 0..=b % 5 {
                    match receiver.receiver.try_recv() {
                        Ok(item) => receiver.got(item),
                        Err(TryRecvError::Closed) => {
                            receiver.closed(world);
                            open = false;
                            break;
                        }
                        Err(_) => break,
                    }
                }
                if open {
                    holdings(world, |held| held.receivers.push(receiver));
                }
            }
        }
        Kind::DropReceiver => {
            let receiver = holdings(world, |held| take(&mut held.receivers, a)).flatten();
            drop(receiver);
        }
        _ => return false,
    }
    true
}
/// What is known of one mpsc channel.
pub struct MpscBook {
    pub accepted: AtomicUsize,
    pub received: AtomicUsize,
    order: Order,
}

pub struct Item {
    value: Value,
    stamp: Stamp,
}

pub struct MpscSender {
    pub book: Arc<MpscBook>,
    pub sender: mpsc::Sender<Item>,
}

impl Clone for MpscSender {
    fn clone(&self) -> Self {
        MpscSender {
            book: self.book.clone(),
            sender: self.sender.clone(),
        }
    }
}

impl MpscSender {
    fn item(&self, world: &Arc<World>, step: &Arc<Step>) -> (Item, Stamp) {
        let stamp = Stamp::begin(world);
        let item = Item {
            value: Value::anywhere(world, step),
            stamp: stamp.clone(),
        };
        (item, stamp)
    }

    fn accepted(&self, world: &World, stamp: &Stamp) {
        stamp.sent(world);
        self.book.accepted.fetch_add(1, Ordering::AcqRel);
    }

    fn try_send(&self, world: &Arc<World>, step: &Arc<Step>) {
        let (item, stamp) = self.item(world, step);
        match self.sender.try_send(item) {
            Ok(()) => self.accepted(world, &stamp),
            Err(error) => drop(error.into_inner()),
        }
    }

    pub async fn send(&self, world: &Arc<World>, step: &Arc<Step>) {
        let (item, stamp) = self.item(world, step);
        if self.sender.send(item).await.is_ok() {
            self.accepted(world, &stamp);
        }
    }
}

pub struct MpscReceiver {
    pub book: Arc<MpscBook>,
    pub receiver: mpsc::Receiver<Item>,
}

impl MpscReceiver {
    pub fn got(&self, item: Item) {
        self.book.received.fetch_add(1, Ordering::AcqRel);
        let world = &item.value.world;
        if !self.book.order.allows(&item.stamp) {
            world.fail("mpsc: a value came after one that was sent later");
        }
        item.value.call();
    }

    /// All senders are gone.
    pub fn closed(&self, world: &World) {
        self.check_all(world, "mpsc: it ended before what it had accepted came");
    }

    pub fn check_all(&self, world: &World, otherwise: &str) {
        let book = &self.book;
        let [accepted, received] =
            [&book.accepted, &book.received].map(|n| n.load(Ordering::Acquire));
        if accepted != received {
            world.fail(otherwise);
        }
    }
}

fn make_mpsc(world: &Arc<World>, step: &Arc<Step>) {
    if SpdkThread::current().is_none() || world.senders.len() > 8 {
        return;
    }
    let (sender, receiver) = mpsc::channel(step.a % 6 + 1);
    let book = Arc::new(MpscBook {
        accepted: AtomicUsize::new(0),
        received: AtomicUsize::new(0),
        order: Order::default(),
    });
    world.senders.push(MpscSender {
        book: book.clone(),
        sender,
    });
    let receiver = MpscReceiver { book, receiver };
    holdings(world, |held| held.receivers.push(receiver));
}
