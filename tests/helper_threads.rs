//! Helper threads: what runs on them ends no thread, whatever it does, and calls of the program
//! cannot keep a driver from its files or from its end.

use std::pin::pin;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier};

use corespun::fs::{File, OpenOptions};
use corespun::io::{BackendChoice, DriverConfig, unblock};
use corespun::task::CallError;
use corespun::thread::ThreadLib;
use futures::executor::block_on;
use harness::io::{Loop, on_every_backend, poll_once};
use harness::process::refuse;

/// More than a pool runs at once.
const MANY: usize = 70;

struct PanicOnDrop;

impl Drop for PanicOnDrop {
    fn drop(&mut self) {
        std::panic::resume_unwind(Box::new("a destructor"));
    }
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// What epoll does on helper threads.
async fn use_files(dir: &tempfile::TempDir) {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true);
    let file = options.open(dir.path().join("f")).await.unwrap();
    file.write_all_at(b"written".to_vec(), 0).await.0.unwrap();
    file.sync_data().await.unwrap();
    assert_eq!(file.len().await.unwrap(), 7);
}

/// The value of a job that nobody waits for any more.
#[test]
fn a_destructor_that_panics_on_a_helper_thread_ends_none() {
    on_every_backend(|choice| {
        let (io, dir) = (Loop::new(choice), scratch());
        for _ in 0..MANY {
            let (go, wait) = channel::<()>();
            let mut job = Box::pin(unblock(move || {
                wait.recv().unwrap();
                PanicOnDrop
            }));
            assert!(poll_once(job.as_mut()).is_pending());
            drop(job);
            go.send(()).unwrap();
        }
        assert_eq!(io.must_end("a call", unblock(|| 7)).unwrap(), 7);
        io.must_end("the use of files", use_files(&dir));
        io.end();
    });
}

/// Calls that wait until they are let go, one for each.
fn stuck(count: usize) -> (Vec<Sender<()>>, Vec<Receiver<()>>) {
    (0..count).map(|_| channel()).unzip()
}

#[test]
fn calls_that_never_end_leave_a_driver_its_files_and_its_end() {
    on_every_backend(|choice| {
        let (io, dir) = (Loop::new(choice), scratch());
        let (go, wait) = stuck(MANY);
        let calls: Vec<_> = wait
            .into_iter()
            .map(|wait| {
                let mut call = Box::pin(unblock(move || wait.recv()));
                assert!(poll_once(call.as_mut()).is_pending());
                call
            })
            .collect();
        io.must_end("the use of files", use_files(&dir));
        io.end();
        drop(go);
        // They went on, and tell who still waits.
        for call in calls {
            assert!(block_on(call).unwrap().is_err());
        }
    });
}

/// An App has one pool.
#[test]
fn blocking_calls_of_tasks_leave_a_reactor_its_files() {
    use corespun::app::App;
    on_every_backend(|choice| {
        let dir = scratch();
        let (go, wait) = stuck(MANY);
        App::builder()
            .handle_signals(false)
            .io(DriverConfig::new().backend(choice))
            .block_on(async move |_app| {
                let calls = wait
                    .into_iter()
                    .map(|wait| corespun::task::spawn_blocking(move || wait.recv()));
                let calls: Vec<_> = calls.collect();
                use_files(&dir).await;
                drop(go);
                for call in calls {
                    assert!(call.await.unwrap().is_err());
                }
            })
            .unwrap();
    });
}

/// One that has nothing to do serves the next call; there is always room for one.
#[test]
fn a_helper_thread_that_is_idle_is_used_again() {
    assert_eq!(
        DriverConfig::new().blocking_threads(0),
        DriverConfig::new().blocking_threads(1)
    );
    assert_ne!(
        DriverConfig::new().blocking_threads(2),
        DriverConfig::new().blocking_threads(3)
    );
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let call = || io.must_end("a call", unblock(|| std::thread::current().id()));
        let first = call().unwrap();
        for _ in 0..10 {
            assert_eq!(call().unwrap(), first);
        }
    });
}

/// More operations than a driver may have on helper threads wait their turn.
#[test]
fn a_drivers_operations_beyond_its_helper_threads_wait_their_turn() {
    let io = Loop::with(
        DriverConfig::new()
            .backend(BackendChoice::Epoll)
            .blocking_threads(1),
    );
    let file = File::from_std(tempfile::tempfile().unwrap()).unwrap();
    let writes = (0..100).map(|i| file.write_all_at(vec![i as u8; 10], i * 10));
    let written = io.must_end("a hundred writes", futures::future::join_all(writes));
    assert!(written.into_iter().all(|(result, _)| result.is_ok()));
    let (read, bytes) = io.must_end("the read", file.read_exact_at(vec![0; 1000], 0));
    read.unwrap();
    assert!((0..1000).all(|at| bytes[at] == (at / 10) as u8));
}

/// Each of two callers that can start no thread hears of its own call, and no call is left to a
/// thread that never comes.
#[test]
fn callers_that_can_start_no_thread_at_once_are_both_refused() {
    let (tell, told) = channel();
    std::thread::spawn(move || {
        for _ in 0..300 {
            let library = ThreadLib::new();
            let start = Barrier::new(2);
            let held = Arc::new(());
            let calls = std::thread::scope(|scope| {
                let threads = [(); 2].map(|()| {
                    scope.spawn(|| {
                        refuse(libc::SYS_clone3);
                        refuse(libc::SYS_clone);
                        let captured = held.clone();
                        start.wait();
                        library.spawn_blocking(move || drop(captured))
                    })
                });
                threads.map(|thread| thread.join().unwrap())
            });
            for call in calls {
                assert!(matches!(block_on(call), Err(CallError::NoHelper { .. })));
            }
            assert_eq!(Arc::strong_count(&held), 1);
        }
        tell.send(()).unwrap();
    });
    told.recv_timeout(harness::PATIENCE)
        .expect("each call is served or refused");
}

/// The one helper is in a call that may never end, and no other can start.
#[test]
fn a_file_operation_that_only_a_call_could_let_go_is_refused() {
    std::thread::spawn(|| {
        let (io, dir) = (Loop::new(BackendChoice::Epoll), scratch());
        let (begun, begins) = channel();
        let (go, wait) = channel::<()>();
        let mut call = Box::pin(unblock(move || {
            begun.send(()).unwrap();
            let _ = wait.recv();
        }));
        assert!(poll_once(call.as_mut()).is_pending());
        begins.recv().unwrap();
        refuse(libc::SYS_clone3);
        refuse(libc::SYS_clone);
        let created = io.must_end("the refusal", File::create(dir.path().join("f")));
        assert!(created.is_err());
        // Another call waits for that one, as calls do.
        let mut next = Box::pin(unblock(|| 7));
        assert!(poll_once(next.as_mut()).is_pending());
        go.send(()).unwrap();
        assert_eq!(io.must_end("the next call", next).unwrap(), 7);
        io.must_end("the use of files", use_files(&dir));
        io.end();
    })
    .join()
    .unwrap();
}

/// A library without a thread of its pool, where none can start.
#[test]
fn a_call_without_any_helper_is_refused_and_dropped() {
    std::thread::spawn(|| {
        refuse(libc::SYS_clone3);
        refuse(libc::SYS_clone);
        let library = ThreadLib::new();
        let held = Arc::new(());
        let captured = held.clone();
        let refused = library.spawn_blocking(move || drop(captured));
        assert!(matches!(block_on(refused), Err(CallError::NoHelper { .. })));
        assert_eq!(Arc::strong_count(&held), 1);
        let io = Loop::new(BackendChoice::Epoll);
        let mut opening = pin!(File::open("/dev/null"));
        let opened = io.must_end("the refusal", opening.as_mut());
        assert!(opened.is_err());
        assert_eq!(io.driver.in_flight(), 0);
    })
    .join()
    .unwrap();
}
