//! What an app does when one of its reactors unwinds, which no public door leads
//! to.

use std::error::Error;
use std::sync::mpsc;

use futures::executor::block_on;

use super::{App, AppBuilder, AppError, AppHandle, Subsystem};
use crate::cpu::{self, CpuSet};
use crate::reactor::{EventError, ReactorMode};
use crate::thread::CreateError;

fn two_reactors() -> AppBuilder {
    let cpu = cpu::available().unwrap().first().unwrap();
    App::builder()
        .lcores([(0, cpu), (1, cpu)])
        .mode(ReactorMode::Interrupt)
        .handle_signals(false)
}

/// Whichever reactor it is, the one that runs in `run`'s OS thread included.
#[test]
fn a_reactor_that_unwinds_stops_the_app_and_fails_its_threads() {
    for dies in [0, 1] {
        let (hand_over, handles) = mpsc::channel();
        let foreign = std::thread::spawn(move || {
            let app: AppHandle = handles.recv().unwrap();
            let on = |core| app.thread().cpumask(CpuSet::single(core));
            let victim = on(dies).create().unwrap();
            let waits = victim.spawn(std::future::pending::<()>());
            block_on(victim.call(|| ())).unwrap();
            app.reactors().make_unwind(dies);
            assert!(block_on(waits).is_err());
            block_on(victim.exit());
            assert!(block_on(victim.spawn(async {})).is_err());
            assert!(app.is_stopping());
            assert!(matches!(on(dies).create(), Err(CreateError::Stopping)));
            let event = app.reactors().send_event(dies, || ());
            assert!(matches!(event, Err(EventError::Ended { .. })));
        });
        let ended = two_reactors().run(async move |app: AppHandle| {
            hand_over.send(app).unwrap();
            std::future::pending().await
        });
        foreign.join().unwrap();
        match ended {
            Err(AppError::ReactorPanicked { core, .. }) => assert_eq!(core, dies),
            other => panic!("{other:?}"),
        }
    }
}

/// Says when it is finished, and when what its init made is dropped.
struct Witness(mpsc::Sender<&'static str>);

impl Drop for Witness {
    fn drop(&mut self) {
        let _ = self.0.send("dropped");
    }
}

impl Subsystem for Witness {
    type Running = Self;

    fn name(&self) -> &str {
        "witness"
    }

    async fn init(self, _app: AppHandle) -> Result<Self, Box<dyn Error + Send + Sync>> {
        Ok(self)
    }

    async fn fini(witness: Self, _app: AppHandle) {
        crate::task::yield_now().await;
        let _ = witness.0.send("finished");
    }
}

/// In the exit of the app thread, unless its own reactor is the one that unwinds.
#[test]
fn subsystems_are_finished_where_another_reactor_unwinds() {
    for (dies, expected) in [(0, &["dropped"][..]), (1, &["finished", "dropped"])] {
        let (says, said) = mpsc::channel();
        let app = two_reactors().subsystem(Witness(says));
        let ended = app.run(async move |app: AppHandle| {
            app.reactors().make_unwind(dies);
            std::future::pending().await
        });
        assert!(matches!(ended, Err(AppError::ReactorPanicked { core, .. }) if core == dies));
        assert_eq!(said.try_iter().collect::<Vec<_>>(), expected);
    }
}
