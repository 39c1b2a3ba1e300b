//! The settings of a runtime, once it is built.

use std::sync::Arc;
use std::time::Duration;

use super::Placement;

pub(super) type Callback = Arc<dyn Fn() + Send + Sync>;
pub(super) type ThreadNameFn = Arc<dyn Fn() -> String + Send + Sync>;

#[derive(Clone)]
pub(super) struct Config {
    pub(super) name: Option<String>,
    pub(super) is_local: bool,
    /// It is a SpdkThread of corespun's own.
    pub(super) is_native: bool,
    #[allow(dead_code, reason = "looked at by the I/O features")]
    pub(super) enable_io: bool,
    #[allow(dead_code, reason = "looked at by the feature `time`")]
    pub(super) enable_time: bool,
    pub(super) max_blocking_threads: usize,
    pub(super) thread_name: ThreadNameFn,
    pub(super) thread_stack_size: Option<usize>,
    pub(super) after_start: Option<Callback>,
    pub(super) before_stop: Option<Callback>,
    pub(super) before_park: Option<Callback>,
    pub(super) after_unpark: Option<Callback>,
    pub(super) keep_alive: Duration,
    pub(super) event_interval: usize,
    #[allow(dead_code, reason = "looked at by the feature `rt-multi-thread`")]
    pub(super) placement: Placement,
}

impl Config {
    /// A builder for an OS thread of the runtime.
    pub(super) fn os_thread(&self) -> std::thread::Builder {
        let mut builder = std::thread::Builder::new().name((self.thread_name)());
        if let Some(size) = self.thread_stack_size {
            builder = builder.stack_size(size);
        }
        builder
    }
}

/// Calls a hook, if there is one.
pub(super) fn call(hook: &Option<Callback>) {
    if let Some(hook) = hook {
        hook();
    }
}
