//! A `tracing` span for each task, under the feature `tracing-spans`: entered
//! for every poll of the task and for the drop of its future. Without the
//! feature the future goes through here untouched.

use std::panic::Location;

use super::TaskId;
use crate::thread::shared::Shared;

/// `future` in a span of its own.
///
/// The span has no parent: a task often outlives its spawner, and one that
/// spawns its successor would keep the spans of all its ancestors open. It
/// follows from the span that is current at the spawn.
#[cfg(feature = "tracing-spans")]
pub(super) fn traced<F: Future>(
    future: F,
    thread: &Shared,
    id: TaskId,
    name: Option<&str>,
    location: &'static Location<'static>,
) -> tracing::instrument::Instrumented<F> {
    use tracing::Instrument;

    let span = tracing::debug_span!(
        target: "corespun::task",
        parent: None,
        "task",
        task.id = %id,
        task.name = name,
        task.thread = thread.name(),
        task.location = %location,
    );
    span.follows_from(tracing::Span::current());
    future.instrument(span)
}

#[cfg(not(feature = "tracing-spans"))]
#[inline(always)]
pub(super) fn traced<F: Future>(
    future: F,
    _: &Shared,
    _: TaskId,
    _: Option<&str>,
    _: &'static Location<'static>,
) -> F {
    future
}
