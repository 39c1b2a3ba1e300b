//! What events of the reactors' own do with the reactor that runs them: its mode, and
//! what a scheduler sees of it and asks of it.

use std::sync::Arc;

use super::ReactorMode;
use super::ground::Ground;
use super::group::{Event, Group};
use super::scheduler::CoreSnapshot;
use super::turn::Reactor;
use crate::thread::InterruptError;

/// What such an event is.
pub(crate) type WithinFn = dyn FnOnce(&mut dyn Inside) + Send;

pub(crate) trait Inside {
    fn group(&self) -> &Arc<Group>;

    fn index(&self) -> usize;

    /// Whether no thread is here.
    fn has_no_threads(&self) -> bool;

    /// Puts a mode in force.
    ///
    /// # Errors
    ///
    /// The name of a thread here that cannot follow, and why; then all is as it was.
    fn enter_mode(&mut self, mode: ReactorMode) -> Result<(), (String, InterruptError)>;

    /// The mode to go back to, while a scheduler has put this core to sleep.
    fn awake_mode(&self) -> Option<ReactorMode>;

    fn set_awake_mode(&mut self, mode: Option<ReactorMode>);

    /// What this core and its threads have done since the last round of a scheduler.
    fn take_snapshot(&mut self) -> CoreSnapshot;
}

impl<G: Ground> Inside for Reactor<G> {
    fn group(&self) -> &Arc<Group> {
        &self.group
    }

    fn index(&self) -> usize {
        self.index
    }

    fn has_no_threads(&self) -> bool {
        self.is_empty()
    }

    fn enter_mode(&mut self, mode: ReactorMode) -> Result<(), (String, InterruptError)> {
        Reactor::enter_mode(self, mode)
    }

    fn awake_mode(&self) -> Option<ReactorMode> {
        self.awake_mode
    }

    fn set_awake_mode(&mut self, mode: Option<ReactorMode>) {
        self.awake_mode = mode;
        self.shared().note_sleep(mode.is_some());
    }

    fn take_snapshot(&mut self) -> CoreSnapshot {
        Reactor::take_snapshot(self)
    }
}

impl Group {
    /// Sends an event that is called with its reactor; the content comes back from one
    /// that has ended.
    pub(super) fn send_within<C: Send + 'static>(
        &self,
        index: usize,
        content: C,
        f: impl FnOnce(&mut dyn Inside, C) + Send + 'static,
    ) -> Result<(), C> {
        let reactor = &self.reactors[index];
        let pack =
            |content| Event::Within(Box::new(move |inside: &mut dyn Inside| f(inside, content)));
        reactor.events.push_with(content, pack)?;
        reactor.sleeper.notify();
        Ok(())
    }
}
