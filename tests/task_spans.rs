//! The spans of tasks: what a subscriber hears of them.

use std::fmt;
use std::sync::{Arc, Mutex};

use corespun::task::{self, TaskBuilder};
use corespun::thread::ThreadLib;
use futures::task::LocalSpawn;
use tracing::Subscriber;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// Writes down what happens to spans, numbered from 1 as they are made.
#[derive(Clone, Default)]
struct Recorder {
    spans: Arc<Mutex<Vec<Id>>>,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Recorder {
    /// Records what this OS thread does until the guard is dropped.
    fn install() -> (Self, tracing::subscriber::DefaultGuard) {
        let recorder = Recorder::default();
        let subscriber = tracing_subscriber::registry().with(recorder.clone());
        (recorder, tracing::subscriber::set_default(subscriber))
    }

    fn number(&self, span: &Id) -> usize {
        let spans = self.spans.lock().unwrap();
        1 + spans.iter().position(|id| id == span).unwrap()
    }

    fn note(&self, what: String) {
        self.heard.lock().unwrap().push(what);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.heard.lock().unwrap())
    }
}

/// The fields whose values do not depend on this file's line numbers.
struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let value = format!("{value:?}");
        match field.name() {
            "task.location" => assert!(value.contains("task_spans.rs:"), "{value}"),
            name => self.0 += &format!(" {name}={value}"),
        }
    }
}

impl<S: Subscriber> Layer<S> for Recorder {
    fn on_new_span(&self, span: &Attributes<'_>, id: &Id, _: Context<'_, S>) {
        self.spans.lock().unwrap().push(id.clone());
        let mut fields = Fields(String::new());
        span.record(&mut fields);
        let root = if span.is_root() { "root " } else { "" };
        let (name, number) = (span.metadata().name(), self.number(id));
        self.note(format!("{root}{name} {number}:{}", fields.0));
    }

    fn on_follows_from(&self, span: &Id, follows: &Id, _: Context<'_, S>) {
        let (span, follows) = (self.number(span), self.number(follows));
        self.note(format!("{span} follows {follows}"));
    }

    fn on_enter(&self, span: &Id, _: Context<'_, S>) {
        self.note(format!("enter {}", self.number(span)));
    }

    fn on_exit(&self, span: &Id, _: Context<'_, S>) {
        self.note(format!("exit {}", self.number(span)));
    }

    fn on_close(&self, span: Id, _: Context<'_, S>) {
        self.note(format!("close {}", self.number(&span)));
    }
}

#[test]
fn a_task_is_a_span_entered_for_each_poll_and_for_the_drop() {
    let (recorder, _guard) = Recorder::install();
    let library = ThreadLib::new();
    let mut runner = library.thread().name("t").build().unwrap().attach();
    let handle = runner.enter(|| {
        let builder = TaskBuilder::new().name("napper");
        builder.spawn_local(task::yield_now())
    });
    let id = handle.id();
    assert_eq!(
        recorder.take(),
        [format!(
            "root task 1: task.id={id} task.name=\"napper\" task.thread=\"t\""
        )]
    );
    runner.poll(0, 0);
    assert_eq!(recorder.take(), ["enter 1", "exit 1"]);
    runner.poll(0, 0);
    assert!(handle.is_finished());
    // Polled, then dropped in place.
    assert_eq!(
        recorder.take(),
        ["enter 1", "exit 1", "enter 1", "exit 1", "close 1"]
    );
}

#[test]
fn the_span_of_a_spawned_task_follows_from_the_one_that_spawned_it() {
    let (recorder, _guard) = Recorder::install();
    let mut runner = ThreadLib::new().thread().build().unwrap().attach();
    let thread = runner.handle();
    runner.enter(|| {
        drop(task::spawn_local(async move {
            drop(thread.spawn_with(async || {}));
        }));
    });
    for _ in 0..3 {
        runner.poll(0, 0);
    }
    let heard = recorder.take();
    assert!(heard.contains(&"2 follows 1".to_owned()), "{heard:?}");
    assert!(heard[0].starts_with("root task 1:"), "{heard:?}");
    let second = heard.iter().find(|line| line.contains("task 2:"));
    assert!(second.unwrap().starts_with("root "), "{heard:?}");
}

/// However it is spawned; also by the `futures` crate's traits.
#[test]
fn a_task_of_a_local_spawner_is_a_span_too() {
    let (recorder, _guard) = Recorder::install();
    let mut runner = ThreadLib::new().thread().build().unwrap().attach();
    let spawner = runner.enter(task::LocalSpawner::current).unwrap();
    drop(spawner.spawn_local(async {}));
    spawner.spawn_local_obj(Box::new(async {}).into()).unwrap();
    let heard = recorder.take();
    assert_eq!(heard.len(), 2, "{heard:?}");
    assert!(heard[0].starts_with("root task 1:"), "{heard:?}");
    assert!(heard[1].starts_with("root task 2:"), "{heard:?}");
    runner.poll(0, 0);
    assert_eq!(recorder.take().first().unwrap(), "enter 1");
}
