//! What a step does, by way of the room it is of.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::books::World;
use crate::{
    Script, Step, buffers, channels, here, hosting, messages, moving, pollers, queues, tasks,
    waits, within,
};
use harness::stress::ON_PURPOSE;

/// Steps within steps.
const DEEP: usize = 7;

thread_local! {
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Runs what may panic on purpose, which must not be any other panic.
pub fn contained(world: &World, f: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(f)) {
        let text = payload.downcast_ref::<&str>().map(ToString::to_string);
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
        let text = text.unwrap_or_default();
        if text != ON_PURPOSE {
            world.fail(format!("panic: {text}"));
        }
    }
}

pub fn perform_all(world: &Arc<World>, script: &Script) {
    for step in script {
        perform(world, step);
    }
}

pub fn perform(world: &Arc<World>, step: &Arc<Step>) {
    let depth = DEPTH.get();
    // A walk over the threads may end on the app's own one, and its function be dropped
    // there. That thread outlives the books: what a destructor left on it, such as a task
    // that waits, would be one that never ends.
    if depth > DEEP || here::on_app_thread(world) {
        return;
    }
    DEPTH.set(depth + 1);
    world.performed.fetch_add(1, Ordering::Relaxed);
    contained(world, || act(world, step));
    DEPTH.set(depth);
}

/// A step at the top of this OS thread.
pub fn top(world: &Arc<World>, step: &Arc<Step>) {
    hosting::check_descriptors(world);
    perform(world, step);
    hosting::check_descriptors(world);
}

fn act(world: &Arc<World>, step: &Arc<Step>) {
    let rooms = [
        hosting::act,
        messages::act,
        pollers::act,
        moving::act,
        channels::act,
        buffers::act,
        queues::act,
        within::act,
        waits::act,
        tasks::act,
    ];
    let known = rooms.iter().any(|act| act(world, step));
    assert!(known, "no room has {:?}", step.kind);
}
