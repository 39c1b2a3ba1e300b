//! G12: statistics and introspection never stop the loops, and tolerate threads
//! that vanish.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use corespun::app::{App, AppHandle};
use corespun::reactor::ReactorMode;
use corespun::thread::ThreadState;
use futures::channel::oneshot;

/// A foreign OS thread reads everything there is to read, without pause, while
/// threads come, work and go: each of them exits, and no reading waits for one.
#[test]
fn reading_statistics_tolerates_threads_that_vanish_and_stops_none() {
    let core = corespun::cpu::available().unwrap().first().unwrap();
    let ran = App::builder()
        .lcores([(0, core), (1, core)])
        .mode(ReactorMode::Interrupt)
        .handle_signals(false)
        .block_on(async |app: AppHandle| {
            let done = Arc::new(AtomicBool::new(false));
            let (begun, begins) = oneshot::channel();
            let reader = std::thread::spawn({
                let (done, app) = (done.clone(), app.clone());
                move || {
                    let mut begun = Some(begun);
                    let mut kept = Vec::new();
                    while !done.load(Ordering::Relaxed) {
                        for thread in app.library().threads() {
                            // The thread may exit between any two of these.
                            let stats = thread.stats();
                            assert!(stats.busy_ticks <= thread.last_tick());
                            let _ = (thread.state(), thread.name().len(), thread.cpumask());
                            kept.push(thread);
                        }
                        assert_eq!(app.reactors().stats().len(), 2);
                        if let Some(begun) = begun.take() {
                            begun.send(()).expect("it is waited for");
                        }
                    }
                    // Handles of threads that are gone still answer.
                    kept.retain(|thread| thread.state() == ThreadState::Exited);
                    for thread in &kept {
                        assert!(thread.library().thread_by_id(thread.id()).is_none());
                        let _ = thread.stats();
                    }
                }
            });
            begins.await.expect("no reading failed");
            let mut ran = 0;
            for _ in 0..200 {
                let thread = app.thread().create().expect("a place on a reactor");
                ran += thread.spawn(async { 1 }).await.expect("it runs");
                thread.exit().await;
            }
            done.store(true, Ordering::Relaxed);
            reader.join().expect("no reading failed");
            ran
        })
        .expect("nobody else stops the app");
    assert_eq!(ran, 200);
}
