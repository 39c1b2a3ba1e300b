//! Messages, and walks over the threads.

use std::cell::Cell;
use std::sync::Arc;

use crate::books::{Letter, Value, World};
use crate::here::{choose_thread, current};
use crate::{Kind, Step};

/// Sending to threads. Whether the step is one of these.
pub fn act(world: &Arc<World>, step: &Arc<Step>) -> bool {
    let Step { a, b, .. } = **step;
    match step.kind {
        Kind::Send => send(world, step),
        Kind::Burst => (0..b % 12).for_each(|_| send(world, step)),
        Kind::Exec => execute(world, step),
        Kind::Critical => {
            if let Some(record) = choose_thread(world, step) {
                let _ = record.handle.send_critical_msg(|| ());
            }
        }
        Kind::Exit => {
            if let Some(record) = choose_thread(world, step) {
                drop(record.handle.exit());
            }
        }
        Kind::WalkThreads => {
            let (visit, end) = (Value::anywhere(world, step), Value::anywhere(world, step));
            let library = &world.libraries[a % 2].library;
            let _ = library.for_each_thread(
                move |thread| {
                    if !thread.is_current() {
                        visit.world.fail("walk: a thread visited elsewhere");
                    }
                    // The app's own threads are left alone.
                    if current(&visit.world).is_some() {
                        visit.call();
                    }
                },
                move |_| end.check("called"),
            );
        }
        _ => return false,
    }
    true
}
thread_local! {
    /// A message that was refused is dropped by whoever sent it.
    static REFUSED: Cell<bool> = const { Cell::new(false) };
}

/// Whether the message that is dropped now was refused.
pub fn take_refused() -> bool {
    REFUSED.take()
}

fn send(world: &Arc<World>, step: &Arc<Step>) {
    let Some(record) = choose_thread(world, step) else {
        return;
    };
    let (letter, stamp) = Letter::new(world, step, &record);
    match record.handle.send_msg(move || letter.run()) {
        Ok(()) => stamp.sent(world),
        Err(error) => {
            if !error.is_full() && !error.is_exited() {
                world.fail("message: refused for no reason");
            }
            REFUSED.set(true);
            drop(error.into_message());
        }
    }
}

fn execute(world: &Arc<World>, step: &Arc<Step>) {
    let Some(record) = choose_thread(world, step) else {
        return;
    };
    // At once then, whatever waits.
    let now = record.handle.is_current();
    let (letter, stamp) = Letter::new(world, step, &record);
    let run = move || match now {
        true => letter.run_now(),
        false => letter.run(),
    };
    match record.handle.exec_msg(run) {
        Ok(()) => stamp.sent(world),
        Err(error) => {
            if now {
                world.fail("message: refused by its own thread");
            }
            REFUSED.set(true);
            drop(error.into_message());
        }
    }
}
