//! G4: `!Send` futures are safe: made on their thread, polled and dropped only
//! by the OS thread that polls it.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::thread::{self, ThreadId};

use corespun::task;
use corespun::thread::{SpdkThread, ThreadLib};
use futures::FutureExt;
use harness::threads::Threads;

/// Notes where it is touched; not `Send`.
struct Place {
    log: Arc<Mutex<Vec<ThreadId>>>,
    _not_send: Rc<()>,
}

impl Place {
    fn note(&self) {
        self.log.lock().unwrap().push(thread::current().id());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.note();
    }
}

#[test]
fn the_factory_runs_on_the_target_and_the_future_stays_there() {
    let mut threads = Threads::allocate(1);
    let target = threads.handle(0);
    let log = Arc::new(Mutex::new(Vec::new()));
    let place = log.clone();
    let handle = thread::spawn(move || {
        let name = target.clone();
        target.spawn_with(move || {
            assert_eq!(SpdkThread::current(), Some(name));
            let place = Place {
                log: place,
                _not_send: Rc::new(()),
            };
            place.note();
            let mut polls = 0;
            poll_fn(move |cx| {
                place.note();
                polls += 1;
                if polls < 3 {
                    let waker = cx.waker().clone();
                    thread::spawn(move || waker.wake()).join().unwrap();
                    return Poll::Pending;
                }
                Poll::Ready(polls)
            })
        })
    })
    .join()
    .unwrap();
    assert!(log.lock().unwrap().is_empty());
    threads.poll_threads();
    assert_eq!(handle.now_or_never().unwrap().unwrap(), 3);
    // Made, polled three times, dropped.
    assert_eq!(*log.lock().unwrap(), [thread::current().id(); 5]);
    threads.free();
}

/// The future is dropped by the poll that follows, on its thread, also where
/// the abort, the last waker and the join handle are elsewhere.
#[test]
fn an_aborted_future_is_dropped_on_its_own_thread() {
    let mut threads = Threads::allocate(1);
    let target = threads.handle(0);
    let log = Arc::new(Mutex::new(Vec::new()));
    let place = log.clone();
    let handle = target.spawn_with(move || {
        let place = Place {
            log: place,
            _not_send: Rc::new(()),
        };
        async move {
            std::future::pending::<()>().await;
            drop(place);
        }
    });
    threads.poll_threads();
    thread::spawn(move || {
        let abort = handle.abort_handle();
        handle.abort();
        drop(handle);
        abort.abort();
    })
    .join()
    .unwrap();
    assert!(log.lock().unwrap().is_empty());
    threads.poll_threads();
    assert_eq!(*log.lock().unwrap(), [thread::current().id()]);
    threads.free();
}

#[test]
fn a_factory_that_is_not_called_is_dropped() {
    let library = ThreadLib::new();
    let runner = library.thread().build().unwrap().attach();
    let thread = runner.handle();
    let witness = Arc::new(());
    let mine = witness.clone();
    let handle = thread.spawn_with(move || async move { drop(mine) });
    drop(runner);
    assert_eq!(Arc::strong_count(&witness), 1);
    let error = handle.now_or_never().unwrap().unwrap_err();
    assert!(error.is_thread_exited());
}

#[test]
fn an_output_that_is_not_send_is_joined_on_its_thread() {
    let mut threads = Threads::allocate(1);
    let shared = Rc::new(Cell::new(0));
    let inside = shared.clone();
    threads.on(0, || {
        let task = task::spawn_local(async move { inside });
        drop(task::spawn_local(async move {
            task.await.unwrap().set(7);
        }));
    });
    threads.poll_threads();
    assert_eq!(shared.get(), 7);
    assert_eq!(Rc::strong_count(&shared), 1);
    threads.free();
}
