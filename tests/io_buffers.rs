//! Buffers lent to operations: how long they may be, what they promise, and what a part of one is.

mod io_harness;

use std::panic::{AssertUnwindSafe, catch_unwind};

use std::cell::Cell;
use std::io::{Seek, SeekFrom};
use std::ops::Bound;
use std::os::unix::fs::FileTypeExt;
use std::rc::Rc;

use corespun::fs::File;
use corespun::io::{AlignedBuf, BackendChoice, IoBuf, POOL_ALIGN};
use io_harness::{Loop, on_every_backend};

fn panic_of(f: impl FnOnce()) -> String {
    let payload = catch_unwind(AssertUnwindSafe(f)).unwrap_err();
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => (*payload.downcast::<&str>().unwrap()).to_owned(),
    }
}

/// None of the lengths that wrap when they are rounded up, nor one that no allocation can have.
#[test]
fn a_buffer_of_an_impossible_length_is_refused_with_a_panic_that_names_it() {
    let io = Loop::new(BackendChoice::Epoll);
    let longest = isize::MAX as usize;
    for len in [
        usize::MAX,
        usize::MAX - 1,
        usize::MAX - (POOL_ALIGN - 2),
        usize::MAX - POOL_ALIGN,
        longest,
        longest - 1,
    ] {
        let text = panic_of(|| drop(io.driver.buffer(len)));
        assert!(
            text.contains("isize::MAX") && text.contains(&len.to_string()),
            "{text}"
        );
        let text = panic_of(|| drop(AlignedBuf::zeroed(len, POOL_ALIGN)));
        assert!(text.contains("isize::MAX"), "{text}");
    }
    let text = panic_of(|| drop(AlignedBuf::zeroed(16, 3)));
    assert!(text.contains("a power of two"), "{text}");
    // And the driver serves as before.
    assert_eq!(io.driver.buffer(5000).len(), 5000);
}

/// A bound after the greatest number is no beginning.
#[test]
fn a_slice_of_a_buffer_has_no_bounds_that_wrap() {
    let text = panic_of(|| {
        let _ = vec![0; 8].slice((Bound::Excluded(usize::MAX), Bound::Unbounded));
    });
    assert!(text.contains("usize::MAX"), "{text}");
    let whole = vec![7; 8].slice((Bound::Unbounded, Bound::Included(usize::MAX)));
    assert_eq!(whole.len(), 8);
}

/// A buffer that breaks its word: it shrinks.
struct Shrinking(&'static [u8], Rc<Cell<usize>>);

// SAFETY: static memory; that the length shrinks is what the test is about.
unsafe impl IoBuf for Shrinking {
    fn stable_ptr(&self) -> *const u8 {
        self.0.as_ptr()
    }
    fn bytes_init(&self) -> usize {
        self.1.get()
    }
}

#[test]
fn a_part_of_a_buffer_that_shrinks_is_empty_and_not_endless() {
    let len = Rc::new(Cell::new(8));
    let part = Shrinking(&[1; 8], len.clone()).slice(4..);
    assert_eq!(part.len(), 4);
    len.set(2);
    assert_eq!((part.bytes_init(), part.len()), (0, 0));
}

/// Whoever else has the descriptor goes on where they were.
#[test]
fn the_length_of_a_block_device_moves_no_cursor() {
    let entries = std::fs::read_dir("/dev").unwrap().flatten();
    let device = entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_block_device()))
        .filter_map(|entry| std::fs::File::open(entry.path()).ok())
        .find_map(|mut device| {
            let len = device.seek(SeekFrom::End(0)).ok()?;
            (len > 7).then_some((device, len))
        });
    let Some((mut device, expected)) = device else {
        eprintln!("skipped: no block device may be opened here");
        return;
    };
    device.seek(SeekFrom::Start(7)).unwrap();
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let file = File::from_std(device.try_clone().unwrap()).unwrap();
        let len = io.must_end("the length", file.len()).unwrap();
        assert_eq!(len, expected);
    });
    assert_eq!(device.stream_position().unwrap(), 7);
}
