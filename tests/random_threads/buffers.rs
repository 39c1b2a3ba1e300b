//! Pools of I/O buffers.

use std::rc::Rc;
use std::sync::Arc;

use corespun::iobuf::{Got, Iobuf, IobufChannel};

use crate::books::{Buffer, Pool, Record, Value, Waiting, World};
use crate::here::{choose, current, holdings, subject, take};
use crate::{Kind, Step};

/// A length of the large buffers, of which there are few.
pub const LARGE: usize = 8192;

pub struct Opened {
    pub pool: Arc<Pool>,
    pub channel: IobufChannel,
}

/// Buffers and requests for them. Whether the step is one of these.
pub fn act(world: &Arc<World>, step: &Arc<Step>) -> bool {
    let Step { a, b, .. } = **step;
    match step.kind {
        Kind::Pool => {
            if let Some(record) = current(world) {
                let pools = &world.libraries[record.library].pools;
                if pools.len() < 2
                    && let Ok(iobuf) = Iobuf::builder().small(64, 4096).large(8, LARGE).build()
                {
                    iobuf.register_module("m").expect("the first of this name");
                    pools.push(Pool::new(iobuf));
                }
            }
        }
        Kind::OpenPool => open_pool(world, step),
        Kind::GetBuffers => get_buffers(world, a, b % 9 + 1),
        Kind::GetWith => ask(world, step, 0),
        Kind::AskAgain => {
            // Mostly when there is none left.
            if !b.is_multiple_of(4) {
                get_buffers(world, a, usize::MAX);
            }
            ask(world, step, b % 9);
        }
        Kind::GiveBack => {
            for _ in 0..=b % 6 {
                drop(world.buffers.take(a));
            }
        }
        Kind::AbortWaiter => {
            let waiter = holdings(world, |held| take(&mut held.waiters, a)).flatten();
            if let Some((opened, waiter)) = waiter {
                opened.channel.abort(&waiter);
            }
        }
        Kind::ClosePool => {
            drop(holdings(world, |held| {
                let opened = take(&mut held.pools, a)?;
                // Whoever could abort keeps it open.
                let (own, others): (Vec<_>, Vec<_>) = std::mem::take(&mut held.waiters)
                    .into_iter()
                    .partition(|(other, _)| Rc::ptr_eq(other, &opened));
                held.waiters = others;
                Some((own, opened))
            }));
        }
        _ => return false,
    }
    true
}
fn open_pool(world: &Arc<World>, step: &Arc<Step>) {
    let Some(record) = current(world) else {
        return;
    };
    let pools = &world.libraries[record.library].pools;
    if let Some(pool) = pools.choose(step.a)
        && let Ok(channel) = pool.iobuf.channel("m", 0, step.b % 3)
    {
        let opened = Rc::new(Opened { pool, channel });
        holdings(world, |held| held.pools.push(opened));
    }
}

fn get_buffers(world: &Arc<World>, module: usize, most: usize) {
    let opened = holdings(world, |held| choose(&held.pools, module)).flatten();
    for _ in 0..most {
        let opened = opened.as_ref();
        let got = opened.and_then(|opened| opened.channel.try_get(LARGE).ok().flatten());
        let Some(buffer) = got else {
            break;
        };
        world.buffers.push(Buffer::new(world, buffer));
    }
}

/// Asks for a buffer, and `again` so often when it comes.
fn ask(world: &Arc<World>, step: &Arc<Step>, again: usize) {
    let opened = holdings(world, |held| choose(&held.pools, step.a)).flatten();
    if let (Some(opened), Some(record)) = (opened, subject(world)) {
        ask_of(world, step, &opened, &record, again);
    }
}

fn ask_of(
    world: &Arc<World>,
    step: &Arc<Step>,
    opened: &Rc<Opened>,
    record: &Arc<Record>,
    again: usize,
) {
    let value = Value::here(world, step);
    let waiting = Waiting::new(world, &opened.pool, record);
    let (module, asking) = (Rc::downgrade(opened), record.clone());
    let got = opened.channel.get_with(LARGE, move |buffer| {
        waiting.served();
        drop(waiting);
        let world = &value.world;
        world.buffers.push(Buffer::new(world, buffer));
        if again > 0
            && let Some(opened) = module.upgrade()
        {
            ask_of(world, &value.step, &opened, &asking, again - 1);
        }
        value.call();
    });
    match got {
        Ok(Got::Buffer(buffer)) => world.buffers.push(Buffer::new(world, buffer)),
        Ok(Got::Waiting(waiter)) => {
            let opened = opened.clone();
            holdings(world, |held| held.waiters.push((opened, waiter)));
        }
        Err(error) => world.fail(format!("iobuf: {error}")),
    }
}
