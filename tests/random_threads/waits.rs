//! What tasks of one SpdkThread wait for: notifications, permits, values and
//! streams of pollers, and what is known of them.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use corespun::local::{Notify, Permit, Semaphore, oneshot};
use corespun::stream::PollerStream;
use corespun::task::{self, JoinHandle};
use corespun::thread::SpdkThread;
use futures::StreamExt;

use crate::books::{Value, World};
use crate::here::{choose, holdings, take};
use crate::pollers::period;
use crate::tasks::keep;
use crate::{Kind, Step};

/// Notifications and permits of one thread. Whether the step is one of these.
pub fn act(world: &Arc<World>, step: &Arc<Step>) -> bool {
    let Step { a, b, .. } = **step;
    match step.kind {
        Kind::LocalNotify => make_bell(world, step),
        Kind::NotifyOne => with_bell(world, a, Bell::notify_one),
        Kind::NotifyAll => with_bell(world, a, Bell::notify_all),
        Kind::Semaphore => make_slots(world, step),
        Kind::TryAcquire => {
            if let Some(slots) = holdings(world, |held| choose(&held.slots, a)).flatten() {
                let permits = b % 3;
                if let Ok(permit) = slots.semaphore.try_acquire(permits) {
                    // For as long as the semaphore itself.
                    permit.forget();
                    slots.total.set(slots.total.get() - permits);
                }
            }
        }
        Kind::AddPermits => {
            if let Some(slots) = holdings(world, |held| choose(&held.slots, a)).flatten() {
                slots.total.set(slots.total.get() + b % 3);
                slots.semaphore.add_permits(b % 3);
            }
        }
        Kind::DropPermit => drop(holdings(world, |held| take(&mut held.permits, a))),
        Kind::CloseSemaphore => {
            if let Some(slots) = holdings(world, |held| choose(&held.slots, a)).flatten() {
                slots.semaphore.close();
            }
        }
        Kind::Oneshot => make_oneshot(world, step),
        Kind::OneshotSend => {
            let sender = holdings(world, |held| take(&mut held.oneshots, a)).flatten();
            if let Some(sender) = sender {
                sender.send(Value::here(world, step));
            }
        }
        Kind::DropOneshot => drop(holdings(world, |held| take(&mut held.oneshots, a))),
        Kind::PollerStream => poller_stream(world, step),
        _ => return false,
    }
    true
}

/// A `Notify`, and which of those that wait must wake.
#[derive(Default)]
pub struct Bell {
    notify: Notify,
    waiting: Cell<usize>,
    /// Those that were told of those, and have not gone on yet.
    owed: Cell<usize>,
}

impl Bell {
    fn notify_one(&self) {
        self.owed.set(self.waiting.get().min(self.owed.get() + 1));
        self.notify.notify_one();
    }

    fn notify_all(&self) {
        self.owed.set(self.waiting.get());
        self.notify.notify_waiters();
    }

    pub async fn wait(&self) {
        let waits = Waits(self);
        self.waiting.set(self.waiting.get() + 1);
        self.notify.notified().await;
        self.owed.set(self.owed.get().saturating_sub(1));
        drop(waits);
    }

    /// When all is quiet: whether one sleeps that was notified.
    pub fn sleeps(&self) -> bool {
        self.owed.get() > 0
    }
}

/// One that is dropped passes its notification on.
struct Waits<'a>(&'a Bell);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let left = self.0.waiting.get() - 1;
        self.0.waiting.set(left);
        self.0.owed.set(self.0.owed.get().min(left));
    }
}

/// And tasks that wait for it, as for the others that this makes.
fn make_bell(world: &Arc<World>, step: &Arc<Step>) {
    if SpdkThread::current().is_none() {
        return;
    }
    let bell = Rc::new(Bell::default());
    holdings(world, |held| held.bells.push(bell.clone()));
    for times in 1..=step.a % 3 {
        let (bell, value) = (bell.clone(), Value::anywhere(world, step));
        keep_task(
            world,
            task::spawn_local(async move {
                for _ in 0..times {
                    bell.wait().await;
                }
                value
            }),
        );
    }
}

fn keep_task(world: &Arc<World>, join: JoinHandle<Value>) {
    holdings(world, |held| held.tasks.push(join.abort_handle()));
    keep(world, join);
}

fn with_bell(world: &Arc<World>, n: usize, f: impl FnOnce(&Bell)) {
    if let Some(bell) = holdings(world, |held| choose(&held.bells, n)).flatten() {
        f(&bell);
    }
}

/// A semaphore, and who has its permits.
pub struct Slots {
    world: Arc<World>,
    semaphore: Rc<Semaphore>,
    total: Cell<usize>,
    taken: Cell<usize>,
    /// How many permits each that waits wants, and its number.
    wanted: RefCell<VecDeque<(u64, usize)>>,
}

impl Slots {
    fn new(world: &Arc<World>, permits: usize) -> Rc<Self> {
        Rc::new(Slots {
            world: world.clone(),
            semaphore: Rc::new(Semaphore::new(permits)),
            total: Cell::new(permits),
            taken: Cell::new(0),
            wanted: RefCell::default(),
        })
    }

    pub async fn acquire(self: Rc<Self>, permits: usize) -> Option<Taken> {
        let wants = Wants {
            slots: &self,
            number: self.world.tick(),
        };
        let entry = (wants.number, permits);
        self.wanted.borrow_mut().push_back(entry);
        let permit = self.semaphore.clone().acquire_owned(permits).await;
        drop(wants);
        let permit = permit.ok()?;
        self.taken.set(self.taken.get() + permits);
        if self.taken.get() > self.total.get() {
            self.world.fail("semaphore: more permits than there are");
        }
        Some(Taken {
            permit: Some(permit),
            slots: self,
        })
    }

    /// When all is quiet: whether one sleeps that was given its permits, or the first
    /// beside what it wants.
    pub fn sleeps(&self) -> bool {
        let wanted = self.wanted.borrow().front().map(|(_, permits)| *permits);
        let free = self.semaphore.available_permits();
        let given = self.total.get() - self.taken.get() > free;
        given || wanted.is_some_and(|wanted| wanted <= free || self.semaphore.is_closed())
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        if self.semaphore.available_permits() != self.total.get() {
            self.world.fail("semaphore: permits did not come back");
        }
    }
}

fn make_slots(world: &Arc<World>, step: &Arc<Step>) {
    if SpdkThread::current().is_none() {
        return;
    }
    let slots = Slots::new(world, step.b % 3);
    holdings(world, |held| held.slots.push(slots.clone()));
    for permits in 1..=step.a % 3 {
        let (slots, value) = (slots.clone(), Value::anywhere(world, step));
        keep_task(
            world,
            task::spawn_local(async move {
                let taken = slots.clone().acquire(permits).await;
                task::yield_now().await;
                drop(taken);
                drop(slots.acquire(1).await);
                value
            }),
        );
    }
}

struct Wants<'a> {
    slots: &'a Slots,
    number: u64,
}

impl Drop for Wants<'_> {
    fn drop(&mut self) {
        let mut wanted = self.slots.wanted.borrow_mut();
        wanted.retain(|(number, _)| *number != self.number);
    }
}

pub struct Taken {
    permit: Option<Permit<Rc<Semaphore>>>,
    slots: Rc<Slots>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        let permits = self.permit.as_ref().map_or(0, Permit::num_permits);
        self.slots.taken.set(self.slots.taken.get() - permits);
        drop(self.permit.take());
    }
}

/// The sender of a local oneshot.
pub struct OneshotSender {
    sender: oneshot::Sender<Value>,
    sent: Rc<Cell<bool>>,
}

impl OneshotSender {
    fn send(self, value: Value) {
        self.sent.set(self.sender.send(value).is_ok());
    }
}

fn make_oneshot(world: &Arc<World>, step: &Arc<Step>) {
    if SpdkThread::current().is_none() {
        return;
    }
    let (sender, receiver) = oneshot::channel::<Value>();
    let sent = Rc::new(Cell::new(false));
    let (known, value) = (sent.clone(), Value::anywhere(world, step));
    let join = task::spawn_local(async move {
        match receiver.await {
            Ok(received) => received.check("received"),
            Err(_) if known.get() => value.world.fail("oneshot: a value was lost"),
            Err(_) => {}
        }
        value
    });
    holdings(world, |held| {
        held.oneshots.push(OneshotSender { sender, sent })
    });
    keep_task(world, join);
}

/// A poller as a stream, and the task that takes what it finds.
fn poller_stream(world: &Arc<World>, step: &Arc<Step>) {
    let value = Value::here(world, step);
    let (last, mut made) = (step.b % 20, 0);
    let ended = Rc::new(Cell::new(false));
    let by_itself = ended.clone();
    let builder = PollerStream::<usize>::builder()
        .period(period(world, step.a))
        .capacity(step.a % 3 + 1);
    let stream = builder.register(move || {
        value.check("called");
        if made == last {
            by_itself.set(true);
            return Poll::Ready(None);
        }
        if made % 8 == 7 {
            value.call();
        }
        made += 1;
        Poll::Ready(Some(made))
    });
    let Ok(mut stream) = stream else {
        return;
    };
    let value = Value::anywhere(world, step);
    let join = task::spawn_local(async move {
        let mut taken = 0;
        while let Some(item) = stream.next().await {
            taken += 1;
            if item != taken {
                value.world.fail("poller stream: an item is missing");
            }
            if item % 4 == 0 {
                task::yield_now().await;
            }
        }
        if ended.get() && taken != last {
            value
                .world
                .fail("poller stream: the last items are missing");
        }
        value
    });
    keep_task(world, join);
}
