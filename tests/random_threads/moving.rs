//! What moves with its thread: pollers, channels and streams that are `Send`, and their
//! handles, which any OS thread may have and use at any time.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use corespun::channel::{ChannelError, IoDevice, SendChannel};
use corespun::stream::PollerStream;
use corespun::task;
use corespun::thread::{Activity, PollerBuilder, SendPoller};
use futures::StreamExt;

use crate::books::{Home, Pile, Record, Value, World};
use crate::here::current;
use crate::perform::{contained, perform_all};
use crate::{Kind, Step};
use harness::stress::ON_PURPOSE;

pub fn act(world: &Arc<World>, step: &Arc<Step>) -> bool {
    match step.kind {
        Kind::MovingPoller => register_poller(world, step),
        Kind::UseMovingPoller => use_poller(world, step),
        Kind::DropMovingPoller => drop_poller(world, step),
        Kind::MovingDevice => register_device(world, step),
        Kind::MovingChannel => open_channel(world, step),
        Kind::UseMovingChannel => use_channel(world, step),
        Kind::DropMovingChannel => drop(world.moving.channels.take(step.a)),
        Kind::MovingStream => stream(world, step),
        _ => return false,
    }
    true
}

/// What is in no one thread's hands.
#[derive(Default)]
pub struct Moving {
    pollers: Pile<Arc<SendPoller>>,
    channels: Pile<SendChannel<Goods>>,
    /// Of each library.
    devices: [Pile<IoDevice<Goods>>; 2],
}

/// A channel's context.
struct Goods {
    value: Value,
    record: Arc<Record>,
    touched: Cell<u64>,
}

impl Goods {
    fn touch(&self) {
        self.value.check("used");
        if !self.record.handle.is_current() {
            self.value.world.fail("moving channel: lent off its thread");
        }
        self.touched.set(self.touched.get() + 1);
    }
}

/// A value that goes where the current SpdkThread goes.
fn value_of_thread(world: &Arc<World>, step: &Arc<Step>) -> Option<Value> {
    let record = current(world)?;
    Some(Value::new(world, step, Home::Thread(record)))
}

fn period(world: &World, a: usize) -> Duration {
    match a % 3 {
        0 => Duration::ZERO,
        _ => world.time(a % 5 + 1),
    }
}

fn register_poller(world: &Arc<World>, step: &Arc<Step>) {
    let Some(value) = value_of_thread(world, step) else {
        return;
    };
    let mut calls = step.b % 3 + 1;
    let builder = PollerBuilder::default().period(period(world, step.a));
    let poller = builder.register_send(move || {
        value.check("called");
        if calls == 0 {
            return Activity::Idle;
        }
        calls -= 1;
        value.call();
        Activity::Busy
    });
    if let Ok(poller) = poller {
        world.moving.pollers.push(Arc::new(poller));
    }
}

/// Pauses, resumes or looks at one, or gives it a hook, from wherever this is.
fn use_poller(world: &Arc<World>, step: &Arc<Step>) {
    let Some(poller) = world.moving.pollers.choose(step.a) else {
        return;
    };
    match step.b % 4 {
        0 => poller.pause(),
        1 => {
            let here = poller.thread().is_current();
            if poller.state().is_some() != here {
                world.fail("moving poller: its state is known off its thread, or not on it");
            }
        }
        2 => {
            let (value, thread) = (Value::anywhere(world, step), poller.thread());
            poller.set_interrupt(move |_| {
                if !thread.is_current() {
                    value.world.fail("moving poller: its hook called elsewhere");
                }
                value.call();
            });
        }
        _ => poller.resume(),
    }
}

fn drop_poller(world: &Arc<World>, step: &Arc<Step>) {
    let poller = world.moving.pollers.take(step.a);
    match poller.and_then(Arc::into_inner) {
        Some(poller) if step.b.is_multiple_of(8) => poller.detach(),
        poller => drop(poller),
    }
}

fn register_device(world: &Arc<World>, step: &Arc<Step>) {
    let Some(record) = current(world) else {
        return;
    };
    let devices = &world.moving.devices[record.library];
    if devices.len() > 1 {
        return;
    }
    let value = Value::anywhere(world, step);
    let registered = IoDevice::builder().register(move || {
        value.check("called");
        perform_all(&value.world, &value.step.then);
        let record = current(&value.world).ok_or_else(|| std::io::Error::other(ON_PURPOSE))?;
        Ok::<_, std::io::Error>(Goods {
            value: Value::new(&value.world, &value.step, Home::Thread(record.clone())),
            record,
            touched: Cell::new(0),
        })
    });
    if let Ok(device) = registered {
        devices.push(device);
    }
}

fn open_channel(world: &Arc<World>, step: &Arc<Step>) {
    let Some(record) = current(world) else {
        return;
    };
    let device = world.moving.devices[record.library].choose(step.a);
    if let Some(Ok(channel)) = device.map(|device| device.send_channel()) {
        world.moving.channels.push(channel);
    }
}

/// Uses one: it is lent on its thread, and nowhere else.
fn use_channel(world: &Arc<World>, step: &Arc<Step>) {
    let Some(channel) = world.moving.channels.choose(step.a) else {
        return;
    };
    let here = channel.thread().is_current();
    let used = match step.b % 4 {
        0 => channel.io_channel().map(|goods| goods.touch()),
        1 => channel.with(|goods| {
            goods.touch();
            goods.value.call();
            goods.touch();
        }),
        _ => channel.with(Goods::touch),
    };
    match used {
        Ok(()) if !here => world.fail("moving channel: lent off its thread"),
        Err(ChannelError::Elsewhere { .. }) if here => {
            world.fail("moving channel: refused on its own thread");
        }
        _ => {}
    }
}

/// A stream, and a task that takes what it finds.
fn stream(world: &Arc<World>, step: &Arc<Step>) {
    let (Some(found), Some(taken)) = (value_of_thread(world, step), value_of_thread(world, step))
    else {
        return;
    };
    let builder = PollerStream::<usize>::builder().period(period(world, step.a));
    let mut next = 0;
    let stream = builder.capacity(step.b % 3).register_send(move || {
        found.check("called");
        next += 1;
        (next <= 4).then_some(next)
    });
    let Ok(stream) = stream else {
        return;
    };
    drop(task::spawn(async move {
        let mut stream = stream.take(4).enumerate();
        while let Some((before, item)) = stream.next().await {
            taken.check("used");
            if item != before + 1 {
                taken
                    .world
                    .fail("moving stream: items lost or out of order");
            }
        }
    }));
}

/// Drops the handles that there are.
pub fn let_go(world: &Arc<World>) {
    for poller in world.moving.pollers.take_all() {
        contained(world, || drop(poller));
    }
    for channel in world.moving.channels.take_all() {
        contained(world, || drop(channel));
    }
}

/// The devices of a library, at its end.
pub fn unregister(world: &Arc<World>, library: usize) {
    for device in world.moving.devices[library].take_all() {
        contained(world, || drop(device.unregister()));
        contained(world, || drop(device));
    }
}
