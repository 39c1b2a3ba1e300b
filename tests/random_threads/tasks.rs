//! Steps as tasks, and those that are awaited.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use corespun::local;
use corespun::task::{self, JoinHandle, JoinSet};
use corespun::thread::SpdkThread;
use corespun::time;

use crate::books::{Buffer, Home, Value, World};
use crate::buffers::LARGE;
use crate::here::{choose, choose_thread, current, holdings, take};
use crate::perform::perform;
use crate::{Kind, Step};

/// Handles that are kept for others.
const KEPT: usize = 24;

/// Tasks, and what they wait for. Whether the step is one of these.
pub fn act(world: &Arc<World>, step: &Arc<Step>) -> bool {
    let Step { a, b, .. } = **step;
    match step.kind {
        Kind::SpawnLocal
        | Kind::SpawnEager
        | Kind::Spawn
        | Kind::SpawnMovable
        | Kind::SpawnOn
        | Kind::SpawnWith => spawn(world, step),
        Kind::Wake => {
            if let Some(waker) = world.wakers.take(a) {
                match b % 4 {
                    0 => waker.wake_by_ref(),
                    1 => drop((waker.clone(), waker)),
                    _ => waker.wake(),
                }
            }
        }
        Kind::DropWaker => drop(world.wakers.take(a)),
        Kind::Abort => {
            if let Some(abort) = world.aborts.choose(a) {
                abort.abort();
            }
        }
        Kind::DropJoin => drop(world.joins.take(a)),
        // These are for tasks, to be awaited; elsewhere they are begun and dropped.
        Kind::Yield
        | Kind::Sleep
        | Kind::WaitForWaker
        | Kind::Join
        | Kind::Recv
        | Kind::SendAsync
        | Kind::GetAsync
        | Kind::GetMany
        | Kind::Notified
        | Kind::Acquire
        | Kind::JoinSet
        | Kind::Scope
        | Kind::Call
        | Kind::MoveTo => begin_and_drop(world, step),
        _ => return false,
    }
    true
}

fn spawn(world: &Arc<World>, step: &Arc<Step>) {
    let here = current(world);
    let value = Value::anywhere(world, step);
    let join = match step.kind {
        Kind::SpawnOn | Kind::SpawnWith => {
            let Some(target) = choose_thread(world, step) else {
                return;
            };
            match step.kind {
                Kind::SpawnOn => target.handle.spawn(sent_body(value)),
                _ => target.handle.spawn_with(move || local_body(value)),
            }
        }
        _ if here.is_none() => return,
        Kind::SpawnLocal => task::spawn_local(local_body(value)),
        Kind::SpawnEager => task::spawn_eager(local_body(value)),
        Kind::SpawnMovable => task::spawn_movable(movable_body(value)),
        _ => task::spawn(sent_body(value)),
    };
    if here.is_some() && step.kind != Kind::SpawnOn && step.kind != Kind::SpawnWith {
        holdings(world, |held| held.tasks.push(join.abort_handle()));
    }
    keep(world, join);
}

pub fn keep(world: &World, join: JoinHandle<Value>) {
    if world.aborts.len() < KEPT {
        world.aborts.push(join.abort_handle());
    }
    if world.joins.len() < KEPT {
        world.joins.push(join);
    }
}

async fn local_body(value: Value) -> Value {
    let (world, step) = (value.world.clone(), value.step.clone());
    let inside = Value::here(&world, &step);
    for step in &step.then {
        inside.check("used");
        if !wait_for(&world, step).await {
            perform(&world, step);
        }
    }
    inside.check("used");
    inside.may_panic();
    // Not after `value` was returned: a panic in there would leak that.
    drop(inside);
    value
}

async fn sent_body(value: Value) -> Value {
    let (world, step) = (value.world.clone(), value.step.clone());
    let inside = current(&world).map(|record| Value::new(&world, &step, Home::Thread(record)));
    for step in &step.then {
        inside.iter().for_each(|inside| inside.check("used"));
        match step.kind {
            Kind::Yield => task::yield_now().await,
            Kind::WaitForWaker => give_wakers(&world, step.a % 2 + 1).await,
            Kind::Join => join(&world, step.a).await,
            _ => perform(&world, step),
        }
    }
    value.may_panic();
    drop(inside);
    value
}

async fn movable_body(value: Value) -> Value {
    let (world, step) = (value.world.clone(), value.step.clone());
    for step in &step.then {
        value.check("used");
        match step.kind {
            Kind::Yield => task::yield_now().await,
            Kind::WaitForWaker => give_wakers(&world, step.a % 2 + 1).await,
            Kind::MoveTo => {
                if let Some(target) = choose_thread(&world, step) {
                    let moved = task::move_to(&target.handle).await;
                    if moved.is_ok() && !target.handle.is_current() {
                        world.fail("move: to another thread");
                    }
                }
            }
            _ => perform(&world, step),
        }
    }
    value.may_panic();
    value
}

async fn give_wakers(world: &World, n: usize) {
    let mut given = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut given, true) {
            return Poll::Ready(());
        }
        for _ in 0..n {
            world.wakers.push(cx.waker().clone());
        }
        Poll::Pending
    })
    .await;
}

async fn join(world: &World, n: usize) {
    let Some(join) = world.joins.take(n) else {
        return;
    };
    match join.await {
        Ok(value) => value.check("received"),
        Err(error) => {
            if !error.is_panic() && !error.is_cancelled() && !error.is_thread_exited() {
                world.fail("join: no outcome");
            }
        }
    }
}

/// Waits for what the step stands for, if that can be waited for.
async fn wait_for(world: &Arc<World>, step: &Arc<Step>) -> bool {
    let Step { a, b, .. } = **step;
    match step.kind {
        Kind::Yield => task::yield_now().await,
        Kind::Sleep => time::sleep(world.time(a % 4)).await,
        Kind::WaitForWaker => give_wakers(world, a % 2 + 1).await,
        Kind::Join => join(world, a).await,
        Kind::Recv => {
            let receiver = holdings(world, |held| take(&mut held.receivers, a)).flatten();
            if let Some(mut receiver) = receiver {
                for _ in 0..=b % 3 {
                    match receiver.receiver.recv().await {
                        Some(item) => receiver.got(item),
                        None => {
                            receiver.closed(world);
                            return true;
                        }
                    }
                }
                holdings(world, |held| held.receivers.push(receiver));
            }
        }
        Kind::SendAsync => {
            let sender = world.senders.take(a);
            if let Some(sender) = sender {
                world.senders.push(sender.clone());
                sender.send(world, step).await;
            }
        }
        Kind::GetAsync | Kind::GetMany => {
            let opened = holdings(world, |held| match held.pools.len() {
                0 => None,
                len => Some(held.pools[a % len].clone()),
            });
            if let Some(opened) = opened.flatten() {
                let count = if step.kind == Kind::GetMany {
                    b % 4 + 1
                } else {
                    1
                };
                let buffers = opened.channel.get_many(LARGE, count).await;
                drop(opened);
                for buffer in buffers.unwrap_or_default() {
                    world.buffers.push(Buffer::new(world, buffer));
                }
            }
        }
        Kind::Notified => {
            if let Some(bell) = holdings(world, |held| choose(&held.bells, a)).flatten() {
                bell.wait().await;
            }
        }
        Kind::Acquire => {
            if let Some(slots) = holdings(world, |held| choose(&held.slots, a)).flatten()
                && let Some(taken) = slots.acquire(b % 3).await
            {
                holdings(world, |held| held.permits.push(taken));
            }
        }
        Kind::JoinSet => {
            let mut set = JoinSet::new();
            for _ in 0..b % 3 + 1 {
                let value = Value::here(world, step);
                set.spawn_local(async move {
                    task::yield_now().await;
                    value.check("used");
                    value.may_panic();
                    value
                });
            }
            for _ in 0..=a % 3 {
                drop(set.join_next().await);
            }
        }
        Kind::Scope => {
            let value = Value::here(world, step);
            task::scope(async |scope| {
                for _ in 0..b % 3 + 1 {
                    let value = &value;
                    scope.spawn(async move {
                        task::yield_now().await;
                        value.check("used");
                    });
                }
            })
            .await;
        }
        Kind::Call => {
            if let Some(target) = choose_thread(world, step) {
                let value = Value::anywhere(world, step);
                let called = target.handle.call(move || {
                    value.call();
                    value
                });
                drop(called.await);
            }
        }
        _ => return false,
    }
    true
}

/// A future that is polled once and dropped.
fn begin_and_drop(world: &Arc<World>, step: &Arc<Step>) {
    if SpdkThread::current().is_some() {
        let future = pin!(wait_for(world, step));
        let mut cx = Context::from_waker(Waker::noop());
        let _ = future.poll(&mut cx);
    }
}

/// A queue within the thread, and the task that empties it.
pub fn local_queue(world: &Arc<World>, step: &Arc<Step>) {
    if SpdkThread::current().is_none() {
        return;
    }
    let (sender, mut receiver) = local::mpsc::channel::<Value>(step.a % 3 + 1);
    let value = Value::anywhere(world, step);
    let join = task::spawn_local(async move {
        while let Some(inner) = receiver.recv().await {
            inner.check("received");
        }
        value
    });
    holdings(world, |held| {
        held.tasks.push(join.abort_handle());
        held.locals.push(sender);
    });
    keep(world, join);
}
