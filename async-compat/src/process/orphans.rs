//! Children that were dropped while they ran: they have to be reaped, or they stay as zombies.
//!
//! Children belong to the process, and so does this list. It holds those that no task looks after.

use std::future::poll_fn;
use std::process::Child;
use std::sync::{Mutex, PoisonError};

use super::child::Waited;

static ORPHANS: Mutex<Vec<Child>> = Mutex::new(Vec::new());

/// Looks after a child: by a task of the current runtime, else by the list.
pub(super) fn adopt(child: Waited) {
    reap();
    let orphan = Orphan(Some(child));
    match crate::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn(orphan.end())),
        Err(_) => drop(orphan),
    }
}

/// Reaps those of the list that have ended.
pub(super) fn reap() {
    // Whoever has the lock does it.
    if let Ok(mut orphans) = ORPHANS.try_lock() {
        orphans.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }
}

/// Goes to the list if its runtime ends first.
struct Orphan(Option<Waited>);

impl Orphan {
    async fn end(mut self) {
        let child = self.0.as_mut().expect("taken by the drop alone");
        // Fails only if the program has reaped it by itself, or there is nothing to wait with.
        let _ = poll_fn(|cx| child.poll_wait(cx)).await;
    }
}

impl Drop for Orphan {
    fn drop(&mut self) {
        let Some(mut waited) = self.0.take() else {
            return;
        };
        if let Ok(None) = waited.child.try_wait() {
            let mut orphans = ORPHANS.lock().unwrap_or_else(PoisonError::into_inner);
            orphans.push(waited.child);
        }
    }
}
