//! What a task leaves behind, between its end and its join.

use std::sync::Arc;

use super::JoinError;
use crate::task::TaskId;
use crate::thread::panic::{PanicSource, Payload, discard, drop_anywhere};
use crate::thread::shared::Shared;

/// What a task ended with, on its way to the joiner. Dropped unjoined, a
/// panic is reported.
pub(crate) struct Outcome<T>(Option<Ended<T>>);

/// Failures are boxed: every task has room for this beside its future.
enum Ended<T> {
    Finished(T),
    Failed(Box<JoinError>),
    Panicked(Box<Panicked>),
}

struct Panicked {
    id: TaskId,
    payload: Payload,
    thread: Arc<Shared>,
    name: String,
}

impl<T> Outcome<T> {
    pub(in crate::task) fn finished(output: T) -> Self {
        Outcome(Some(Ended::Finished(output)))
    }

    pub(in crate::task) fn failed(error: JoinError) -> Self {
        Outcome(Some(Ended::Failed(Box::new(error))))
    }

    pub(in crate::task) fn panicked(
        id: TaskId,
        payload: Payload,
        thread: Arc<Shared>,
        name: String,
    ) -> Self {
        Outcome(Some(Ended::Panicked(Box::new(Panicked {
            id,
            payload,
            thread,
            name,
        }))))
    }

    #[inline]
    pub(super) fn into_result(mut self, id: impl FnOnce() -> TaskId) -> Result<T, JoinError> {
        match self.0.take() {
            Some(Ended::Finished(output)) => Ok(output),
            Some(Ended::Failed(error)) => Err(*error),
            Some(Ended::Panicked(panicked)) => {
                Err(JoinError::panicked(panicked.id, panicked.payload))
            }
            None => Err(JoinError::exited(id())),
        }
    }
}

impl<T> Drop for Outcome<T> {
    fn drop(&mut self) {
        match self.0.take() {
            Some(Ended::Panicked(panicked)) => {
                let Panicked {
                    payload,
                    thread,
                    name,
                    ..
                } = *panicked;
                let library = &thread.library;
                if library.panic_is_fatal() {
                    return discard(payload);
                }
                library.report_panic(thread.name(), PanicSource::Task, Some(&name), payload);
            }
            // The output's destructor is the task's own business, and must not
            // reach into async-task, which would abort.
            Some(ended) => drop_anywhere(ended),
            None => {}
        }
    }
}
