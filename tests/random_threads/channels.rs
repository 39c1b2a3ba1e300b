//! Devices, their channels, and walks over those.

use std::cell::Cell;
use std::sync::Arc;

use corespun::channel::{IoDevice, WalkStep};
use corespun::thread::SpdkThread;

use crate::books::{Context, Device, Value, World};
use crate::here::{choose, current, holdings, subject, take};
use crate::perform::perform_all;
use crate::{Kind, Step};
use harness::stress::ON_PURPOSE;

/// Devices and channels. Whether the step is one of these.
pub fn act(world: &Arc<World>, step: &Arc<Step>) -> bool {
    let Step { a, b, .. } = **step;
    match step.kind {
        Kind::Device => register_device(world, step),
        Kind::Channel => get_channel(world, step),
        Kind::CloneChannel => {
            let clone = holdings(world, |held| choose(&held.channels, a)).flatten();
            if let Some(clone) = clone {
                clone.touch();
                holdings(world, |held| held.channels.push(clone));
            }
        }
        Kind::DropChannel => drop(holdings(world, |held| take(&mut held.channels, a))),
        Kind::Unregister => {
            if let Some(device) = choose_device(world, step) {
                let value = Value::here(world, step);
                let _ = device.device.unregister_with(move || value.call());
            }
        }
        Kind::WalkChannels => walk_channels(world, step),
        Kind::WalkSteps => walk_steps(world, step),
        Kind::ProceedStep => {
            let waiting = holdings(world, |held| take(&mut held.steps, a)).flatten();
            if let Some(waiting) = waiting {
                waiting.touch();
                waiting.proceed(if b.is_multiple_of(8) { Err(()) } else { Ok(()) });
            }
        }
        _ => return false,
    }
    true
}
fn choose_device(world: &World, step: &Step) -> Option<Device> {
    // Mostly of the library that is current.
    let own = subject(world).map_or(0, |record| record.library);
    let library = if step.a.is_multiple_of(8) {
        1 - own
    } else {
        own
    };
    world.libraries[library].devices.choose(step.b)
}

fn register_device(world: &Arc<World>, step: &Arc<Step>) {
    let Some(record) = current(world) else {
        return;
    };
    let devices = &world.libraries[record.library].devices;
    devices.with(|devices| {
        if devices.len() > 5 {
            devices.retain(|device| device.device.is_registered());
        }
    });
    if devices.len() >= 4 {
        return;
    }
    let under = devices.choose(step.b).filter(|_| step.a.is_multiple_of(2));
    let (number, value) = (world.tick(), Value::anywhere(world, step));
    let registered = IoDevice::builder().register(move || {
        value.check("called");
        let world = &value.world;
        if value.step.b.is_multiple_of(16) {
            value.may_panic();
            return Err(std::io::Error::other(ON_PURPOSE));
        }
        perform_all(world, &value.step.then);
        let record = current(world).ok_or_else(|| std::io::Error::other(ON_PURPOSE))?;
        Ok(Context {
            value: Value::here(world, &value.step),
            device: number,
            record,
            touched: Cell::new(0),
            _below: under.as_ref().and_then(|under| under.device.channel().ok()),
        })
    });
    if let Ok(device) = registered {
        devices.push(Device { device, number });
    }
}

fn get_channel(world: &Arc<World>, step: &Arc<Step>) {
    let Some(device) = choose_device(world, step) else {
        return;
    };
    let Ok(channel) = device.device.channel() else {
        return;
    };
    if channel.device != device.number || channel.device() != device.device {
        world.fail("channel: of another device");
    }
    channel.touch();
    if Some(channel.thread()) != SpdkThread::current() {
        world.fail("channel: of another thread");
    }
    holdings(world, |held| {
        let mut others = held.channels.iter().filter(|c| c.device == channel.device);
        if !others.all(|other| other.same_channel(&channel)) {
            world.fail("channel: two of one device on one thread");
        }
        held.channels.push(channel);
    });
}

fn walk_channels(world: &Arc<World>, step: &Arc<Step>) {
    let Some(device) = choose_device(world, step) else {
        return;
    };
    let (visit, end) = (Value::anywhere(world, step), Value::here(world, step));
    let number = device.number;
    let _ = device.device.for_each_channel(
        move |context| {
            if context.device != number {
                visit.world.fail("walk: over another device");
            }
            context.touch();
            visit.call();
            Ok::<(), ()>(())
        },
        move |_| end.check("called"),
    );
}

fn walk_steps(world: &Arc<World>, step: &Arc<Step>) {
    let Some(device) = choose_device(world, step) else {
        return;
    };
    let (visit, end) = (Value::anywhere(world, step), Value::here(world, step));
    let _ = device.device.for_each_channel_step(
        move |walk: WalkStep<Context, ()>| {
            walk.touch();
            visit.call();
            let mut walk = Some(walk);
            if !visit.step.b.is_multiple_of(3) {
                holdings(&visit.world, |held| held.steps.extend(walk.take()));
            }
            if let Some(walk) = walk {
                walk.proceed(Ok(()));
            }
        },
        move |_| end.check("called"),
    );
}
