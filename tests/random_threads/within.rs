//! What is within one SpdkThread: its own values, locks and queues.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use corespun::thread::{SpdkThread, Spinlock, SpinlockMisuse};

use crate::books::{Home, Value, World};
use crate::here::{current, holdings, take};
use crate::perform::contained;
use crate::{Kind, Step, tasks};
use harness::random::Panics;
use harness::stress::ON_PURPOSE;

thread_local! {
    /// What a thread-local is made for.
    static KEY: RefCell<Option<Value>> = const { RefCell::new(None) };
}

corespun::spdk_thread_local! {
    static STAYS: Option<Value> = KEY.take();
    static in send MOVES: Option<Value> = KEY.take();
}

/// Thread-locals, locks, local queues. Whether the step is one of these.
pub fn act(world: &Arc<World>, step: &Arc<Step>) -> bool {
    let a = step.a;
    match step.kind {
        Kind::LocalKey => {
            let unused = KEY.replace(Some(Value::here(world, step)));
            drop(unused);
            let _ = STAYS.try_with(|value| value.as_ref().map(|value| value.check("used")));
            drop(KEY.take());
        }
        Kind::SendKey => {
            let value = match current(world) {
                Some(record) => Value::new(world, step, Home::Thread(record)),
                None => Value::anywhere(world, step),
            };
            let unused = KEY.replace(Some(value));
            drop(unused);
            let _ = MOVES.try_with(|value| value.as_ref().map(|value| value.check("used")));
            drop(KEY.take());
        }
        Kind::HoldLock => {
            if SpdkThread::current().is_some() {
                let _ = world.spinlock.lock();
                let _ = world.spinlock.unlock();
                // Its hook is called when the callback has ended with the lock held.
                let value = Value::anywhere(world, step);
                let lock = Spinlock::with_hook(move |_| value.may_panic());
                let _ = lock.lock();
                holdings(world, |held| held.locks.push(lock));
            }
        }
        Kind::LocalQueue => tasks::local_queue(world, step),
        Kind::LocalSend => {
            let sender = holdings(world, |held| take(&mut held.locals, a)).flatten();
            if let Some(sender) = sender {
                let refused = sender.try_send(Value::here(world, step));
                drop(refused);
                holdings(world, |held| held.locals.push(sender));
            }
        }
        Kind::DropLocalSender => drop(holdings(world, |held| take(&mut held.locals, a))),
        Kind::Shelve => shelve(world, step),
        Kind::Unshelve => {
            // Dropped without the lock, which its destructor may want.
            let value = with_shelf(world, |shelf| shelf.values.pop()).flatten();
            if let Some(value) = value {
                value.check("taken off the shelf");
            }
        }
        _ => return false,
    }
    true
}

/// What all threads share under a spinlock.
#[derive(Default)]
pub struct Shelf {
    /// Changed one after the other, alike when nobody is about to.
    counts: [u64; 2],
    values: Vec<Value>,
}

/// Runs `f`, which runs no code of the program, with the lock; `None` off a thread.
pub fn with_shelf<R>(world: &Arc<World>, f: impl FnOnce(&mut Shelf) -> R) -> Option<R> {
    let mut shelf = match world.shelf.lock() {
        Ok(shelf) => shelf,
        Err(error) => {
            if error.misuse != SpinlockMisuse::NotOnThread || SpdkThread::current().is_some() {
                world.fail(format!("spinlock: {error}"));
            }
            return None;
        }
    };
    if shelf.counts[0] != shelf.counts[1] {
        world.fail("spinlock: two have it");
    }
    shelf.counts[0] += 1;
    let again = world.shelf.lock().map(drop);
    if !again.is_err_and(|error| error.misuse == SpinlockMisuse::Deadlock) {
        world.fail("spinlock: had twice");
    }
    let result = f(&mut shelf);
    shelf.counts[1] += 1;
    Some(result)
}

fn shelve(world: &Arc<World>, step: &Arc<Step>) {
    let mut value = Some(Value::anywhere(world, step));
    with_shelf(world, |shelf| {
        if shelf.values.len() < 8 && !world.ended.load(Ordering::Acquire) {
            shelf.values.extend(value.take());
        }
    });
    // With the lock held, which a panic gives back.
    if step.panics == Panics::InCall && SpdkThread::current().is_some() {
        let _shelf = world.shelf.lock();
        std::panic::resume_unwind(Box::new(ON_PURPOSE));
    }
}

/// Empties the shelf, on a thread.
pub fn clear_shelf(world: &Arc<World>) {
    while let Some(value) = with_shelf(world, |shelf| shelf.values.pop()).flatten() {
        contained(world, || drop(value));
    }
}

/// What the last destructors may have left here.
pub fn leave() -> Option<Value> {
    KEY.take()
}
