//! G8, I/O is cancel-safe: an operation in flight owns its buffer and descriptor until the kernel is
//! done, whatever happens to its future, its file, or its driver. Sockets: `io_net.rs`
//! (`a_dropped_receive_takes_nothing`); raw operations: `io_driver.rs`.

use std::future::Future;
use std::pin::pin;
use std::task::Poll;

use corespun::fs::{File, OpenOptions};
use corespun::io::{BackendChoice, IoBuf, IoBufMut};
use harness::io::{Loop, on_every_backend, poll_once};
use harness::process::open_descriptors_of;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

/// A directory whose file system is the disk's.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn read_write() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true);
    options
}

/// A buffer that says when it is dropped.
struct Tattling(Vec<u8>, std::rc::Rc<std::cell::Cell<bool>>);

impl Drop for Tattling {
    fn drop(&mut self) {
        self.1.set(true);
    }
}

// SAFETY: the vector's.
unsafe impl IoBuf for Tattling {
    fn stable_ptr(&self) -> *const u8 {
        self.0.as_ptr()
    }
    fn bytes_init(&self) -> usize {
        self.0.len()
    }
}

// SAFETY: the vector's.
unsafe impl IoBufMut for Tattling {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.0.as_mut_ptr()
    }
    fn bytes_total(&self) -> usize {
        self.0.len()
    }
    unsafe fn set_init(&mut self, _len: usize) {}
}

/// Starts an operation on `file`, drops its future and the file, and checks that buffer and
/// descriptor live until the completion.
fn dropped_in_flight<F: Future>(choice: BackendChoice, operation: impl Fn(File, Tattling) -> F) {
    let (io, dir) = (Loop::new(choice), scratch());
    let path = dir.path().join("f");
    std::fs::write(&path, pattern(65_536)).unwrap();
    let file = io.block_on(read_write().open(&path)).unwrap();
    let dropped = std::rc::Rc::new(std::cell::Cell::new(false));
    {
        let buf = Tattling(vec![3; 65_536], dropped.clone());
        let mut future = pin!(operation(file, buf));
        assert!(poll_once(future.as_mut()).is_pending());
        assert_eq!(io.driver.in_flight(), 1);
    }
    assert_eq!(
        open_descriptors_of(&path),
        1,
        "the operation holds the descriptor"
    );
    io.settle();
    assert_eq!(open_descriptors_of(&path), 0, "and lets go of it when done");
    assert!(dropped.get());
}

#[test]
fn a_dropped_read_or_write_keeps_buffer_and_descriptor_until_done() {
    on_every_backend(|choice| {
        dropped_in_flight(choice, |file, buf| async move {
            let still_owned = buf.1.clone();
            let read = file.read_at(buf, 0);
            let mut read = pin!(read);
            std::future::poll_fn(|cx| {
                let poll = read.as_mut().poll(cx).map(drop);
                assert!(!still_owned.get());
                poll
            })
            .await;
        });
        dropped_in_flight(
            choice,
            |file, buf| async move { file.write_at(buf, 0).await },
        );
    });
}

#[test]
fn a_buffer_outlives_its_dropped_future() {
    on_every_backend(|choice| {
        let (io, dir) = (Loop::new(choice), scratch());
        std::fs::write(dir.path().join("f"), pattern(65_536)).unwrap();
        let file = io.block_on(File::open(dir.path().join("f"))).unwrap();
        let dropped = std::rc::Rc::new(std::cell::Cell::new(false));
        let mut future = Box::pin(file.read_at(Tattling(vec![3; 4096], dropped.clone()), 0));
        assert!(poll_once(future.as_mut()).is_pending());
        drop(future);
        assert!(!dropped.get(), "the kernel may still write to it");
        io.settle();
        assert!(dropped.get());
    });
}

#[test]
fn every_other_operation_may_be_dropped_in_flight() {
    on_every_backend(|choice| {
        dropped_in_flight(choice, |file, _buf| async move { file.sync_all().await });
        dropped_in_flight(
            choice,
            |file, _buf| async move { file.allocate(0, 4096).await },
        );
        dropped_in_flight(choice, |file, _buf| async move { file.metadata().await });
        dropped_in_flight(choice, |file, _buf| async move { file.set_len(1).await });
    });
}

#[test]
fn a_dropped_open_leaves_no_descriptor() {
    on_every_backend(|choice| {
        for settle_first in [false, true] {
            let (io, dir) = (Loop::new(choice), scratch());
            let path = dir.path().join("f");
            std::fs::write(&path, b"").unwrap();
            let mut future = Box::pin(File::open(&path));
            assert!(poll_once(future.as_mut()).is_pending());
            if settle_first {
                io.settle(); // completed, but nobody has looked
                drop(future);
            } else {
                drop(future);
                io.settle();
            }
            assert_eq!(open_descriptors_of(&path), 0);
        }
    });
}

#[test]
fn dropping_the_driver_waits_for_what_is_in_flight() {
    on_every_backend(|choice| {
        let (io, dir) = (Loop::new(choice), scratch());
        let path = dir.path().join("f");
        std::fs::write(&path, pattern(65_536)).unwrap();
        let file = io.block_on(read_write().open(&path)).unwrap();
        let dropped = std::rc::Rc::new(std::cell::Cell::new(false));
        let mut kept = Box::pin(file.read_at(vec![0; 4096], 4096));
        let mut abandoned = Box::pin(file.write_at(Tattling(vec![5; 512], dropped.clone()), 0));
        assert!(poll_once(kept.as_mut()).is_pending());
        assert!(poll_once(abandoned.as_mut()).is_pending());
        drop(abandoned);
        io.end();
        assert!(dropped.get());
        assert_eq!(std::fs::read(&path).unwrap()[..512], [5; 512]);
        // The result that came in is still to be had; a new operation is refused.
        let Poll::Ready((result, buf)) = poll_once(kept.as_mut()) else {
            panic!("still pending")
        };
        assert_eq!(result.unwrap(), 4096);
        assert_eq!(buf, &pattern(65_536)[4096..8192]);
        drop(kept);
        let mut late = Box::pin(file.sync_all());
        assert!(matches!(poll_once(late.as_mut()), Poll::Ready(Err(_))));
        drop(late);
        drop(file);
        assert_eq!(open_descriptors_of(&path), 0);
    });
}
