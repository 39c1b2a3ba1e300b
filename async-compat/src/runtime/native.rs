//! The runtime of code that runs on a SpdkThread of corespun's own, in an
//! [`App`](corespun::app::App) or a loop of the user's: the thread itself.
//!
//! It has no `block_on`, no budgets and no mark that says that nothing may block: those
//! are of the loops of this crate.

use std::cell::RefCell;
use std::rc::Rc;

use corespun::task::LocalSpawner;
use corespun::thread::SpdkThread;

use super::builder::Builder;
use super::handle::Handle;
use crate::task::local::LocalContext;

thread_local! {
    /// The handles of the threads of this OS thread that have asked for one.
    static NATIVE: RefCell<Vec<(SpdkThread, Rc<Handle>)>> = const { RefCell::new(Vec::new()) };
}

/// The handle of the current SpdkThread, if there is one.
pub(super) fn current() -> Option<Rc<Handle>> {
    if !SpdkThread::has_current() {
        return None;
    }
    let known = NATIVE.try_with(|native| {
        let native = native.borrow();
        let found = native.iter().find(|(thread, _)| thread.is_current());
        found.map(|(_, handle)| handle.clone())
    });
    if let Ok(Some(handle)) = known {
        return Some(handle);
    }
    let thread = SpdkThread::current()?;
    let handle = Rc::new(Builder::new_current_thread().native(thread.clone()));
    let gone = NATIVE.try_with(|native| {
        let mut native = native.borrow_mut();
        let (gone, mut stay): (Vec<_>, Vec<_>) = std::mem::take(&mut *native)
            .into_iter()
            .partition(|(thread, _)| thread.is_exited());
        stay.push((thread, handle.clone()));
        *native = stay;
        gone
    });
    // Their helper threads end.
    drop(gone);
    Some(handle)
}

/// Whether the OS thread polls a SpdkThread of corespun's own: one that no runtime of this
/// crate has entered.
pub(super) fn is_current(in_runtime: Option<bool>) -> bool {
    in_runtime == Some(false) && SpdkThread::has_current()
}

/// Where `spawn_local` goes on such a thread.
pub(super) fn local(handle: &Handle) -> Option<LocalContext> {
    let (thread, load) = handle.inner.scheduler.place();
    if !handle.inner.config.is_native || !thread.is_current() {
        return None;
    }
    Some(LocalContext::Thread(LocalSpawner::current()?, load.clone()))
}
