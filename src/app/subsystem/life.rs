//! The life of an app's subsystems: a task of the app thread initialises them, has the
//! start function run, waits for the stop and finishes them. Only then do the reactors
//! stop.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::Poll;

use futures::task::AtomicWaker;

use super::super::handle::AppHandle;
use super::{Fini, Registered, SubsystemError, SubsystemInfo};
use crate::task::{JoinHandle, TaskBuilder};
use crate::thread::panic::{PanicSource, drop_anywhere, payload_text};

/// What any OS thread may see and ask of an app's subsystems.
pub(in super::super) struct Control {
    order: Box<[SubsystemInfo]>,
    /// The task that waits for the stop.
    stop: AtomicWaker,
    /// There is nothing to finish any more, or never was.
    over: AtomicBool,
    /// What stderr is told if the end takes its time.
    step: Mutex<Option<String>>,
}

impl Control {
    pub(in super::super) fn new(sorted: &[Registered]) -> Self {
        Control {
            order: sorted.iter().map(|one| one.info().clone()).collect(),
            stop: AtomicWaker::new(),
            over: AtomicBool::new(sorted.is_empty()),
            step: Mutex::new(None),
        }
    }

    pub(in super::super) fn order(&self) -> &[SubsystemInfo] {
        &self.order
    }

    /// The app was asked to stop: whether nothing is to be finished before. In one order
    /// with [`Control::end`] and the flag that asks: either this sees that it is over, or
    /// who ends it sees the flag.
    pub(in super::super) fn stop(&self) -> bool {
        self.stop.wake();
        self.over.load(Ordering::SeqCst)
    }

    /// Which init or fini is under way.
    pub(in super::super) fn step(&self) -> Option<String> {
        let step = self.step.lock();
        step.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_step(&self, step: Option<String>) {
        *self.step.lock().unwrap_or_else(PoisonError::into_inner) = step;
    }

    fn end(&self) {
        self.set_step(None);
        drop(self.stop.take());
        self.over.store(true, Ordering::SeqCst);
    }
}

/// Those that are up, in the order they were initialised.
type Up = Rc<RefCell<Vec<(String, Fini)>>>;

/// Takes the subsystems of an app up and down. Dropped, it leaves that to another task:
/// the app thread exits before the app has stopped.
pub(in super::super) struct Lifecycle {
    app: AppHandle,
    /// Those that are not up yet.
    down: std::vec::IntoIter<Registered>,
    up: Up,
    failed: Rc<Cell<Option<SubsystemError>>>,
    /// The start function was called.
    started: bool,
}

impl Lifecycle {
    pub(in super::super) fn new(
        app: AppHandle,
        sorted: Vec<Registered>,
        failed: Rc<Cell<Option<SubsystemError>>>,
    ) -> Self {
        Lifecycle {
            app,
            down: sorted.into_iter(),
            up: Up::default(),
            failed,
            started: false,
        }
    }

    /// Has `start` called, on the app thread, which is current, once all are up.
    pub(in super::super) fn launch(mut self, start: impl FnOnce() + 'static) {
        if self.down.as_slice().is_empty() {
            self.started = true;
            return start();
        }
        let task = TaskBuilder::new().name("subsystems");
        drop(task.spawn_local(self.drive(start)));
    }

    async fn drive(mut self, start: impl FnOnce()) {
        let inited = self.init().await;
        self.app.shared.subsystems.set_step(None);
        match inited {
            Ok(true) => {
                start();
                self.started = true;
            }
            Ok(false) => (),
            Err(error) => {
                tracing::error!(app = self.app.name(), "{error}");
                self.failed.set(Some(error));
                self.app.stop(1);
            }
        }
        stopped(&self.app).await;
        // It may have moved what they are made of; refused, there is no scheduling any more.
        let _ = self.app.reactors().schedulers().between_rounds().await;
        finish(&self.app, &self.up).await;
    }

    /// Initialises one after the other; whether all are up, as they are not when the app
    /// is stopped.
    async fn init(&mut self) -> Result<bool, SubsystemError> {
        while !self.app.was_stopped() {
            let Some(Registered { info, init }) = self.down.next() else {
                return Ok(true);
            };
            let name = info.name;
            let task = task("init", &name, &self.app);
            let (app, up, own) = (self.app.clone(), self.up.clone(), name.clone());
            let init = task.spawn_local(async move {
                let fini = init(app).await?;
                // Here, so that it is known to be up though nobody may join this task.
                up.borrow_mut().push((own, fini));
                Ok(())
            });
            let Some(inited) = ended_or_stopped(init, &self.app).await else {
                continue;
            };
            match inited {
                Ok(Ok(())) => (),
                Ok(Err(source)) => return Err(SubsystemError::Init { name, source }),
                Err(error) => {
                    let payload = error.try_into_panic();
                    let message = payload.map_or_else(
                        |error| error.to_string(),
                        |payload| {
                            let text = payload_text(&*payload).to_owned();
                            drop_anywhere(payload);
                            text
                        },
                    );
                    return Err(SubsystemError::InitPanicked { name, message });
                }
            }
        }
        Ok(false)
    }
}

impl Drop for Lifecycle {
    /// At its end, or in the exit of the app thread.
    fn drop(&mut self) {
        let down = std::mem::take(&mut self.down);
        down.for_each(drop_anywhere);
        let app = self.app.clone();
        if self.up.borrow().is_empty() || !app.shared.app_thread().is_current() {
            drop(Ending(self.app.clone()));
        } else {
            let up = self.up.clone();
            let ending = Ending(app);
            let task = TaskBuilder::new().name("end of the subsystems");
            drop(task.spawn_local(async move { finish(&ending.0, &up).await }));
        }
        if !self.started && !self.app.was_stopped() {
            // Nothing else would: the start function is never called.
            self.app.stop(1);
        }
    }
}

/// Dropped when nothing is up any more: what asks for the stop may stop the reactors now.
struct Ending(AppHandle);

impl Drop for Ending {
    fn drop(&mut self) {
        let Ending(app) = self;
        app.shared.subsystems.end();
        if app.was_stopped() {
            app.shared.group.stop();
        }
    }
}

/// A task for the init or fini of the subsystem `name`.
fn task(step: &str, name: &str, app: &AppHandle) -> TaskBuilder {
    let name = format!("{step} of subsystem {name:?}");
    app.shared.subsystems.set_step(Some(name.clone()));
    TaskBuilder::new().name(name)
}

/// Waits until the app is asked to stop.
async fn stopped(app: &AppHandle) {
    poll_fn(|cx| {
        app.shared.subsystems.stop.register(cx.waker());
        match app.was_stopped() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
}

/// Waits for the end of `task`; it is cancelled if the app is stopped before, and `None`.
async fn ended_or_stopped<T>(
    mut task: JoinHandle<T>,
    app: &AppHandle,
) -> Option<Result<T, crate::task::JoinError>> {
    use futures::future::{Either, select};
    let stopped = std::pin::pin!(stopped(app));
    let ended = match select(&mut task, stopped).await {
        Either::Left((ended, _)) => ended,
        Either::Right(_) => {
            task.abort();
            task.await
        }
    };
    match ended {
        Err(error) if error.is_cancelled() => None,
        ended => Some(ended),
    }
}

/// Finishes those that are up, the last one first.
async fn finish(app: &AppHandle, up: &Up) {
    loop {
        // Not borrowed while user code runs.
        let next = up.borrow_mut().pop();
        let Some((name, fini)) = next else { break };
        let task = task("fini", &name, app);
        let app = app.clone();
        let fini = {
            let app = app.clone();
            task.spawn_local(async move { fini(app).await })
        };
        let Err(error) = fini.await else { continue };
        if let Ok(payload) = error.try_into_panic() {
            let library = app.library();
            let (thread, source) = (app.app_thread(), PanicSource::Task);
            let name = format!("fini of subsystem {name:?}");
            library
                .inner
                .report_panic(thread.name(), source, Some(&name), payload);
        }
    }
}
