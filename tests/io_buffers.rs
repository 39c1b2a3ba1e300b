//! Buffers lent to operations: how long they may be, what they promise, and what a part of one is.

use std::panic::{AssertUnwindSafe, catch_unwind};

use std::cell::Cell;
use std::io::{Seek, SeekFrom};
use std::ops::Bound;
use std::os::unix::fs::FileTypeExt;
use std::rc::Rc;

use corespun::fs::File;
use corespun::io::{AlignedBuf, BackendChoice, IoBuf, POOL_ALIGN};
use corespun::iobuf::Iobuf;
use corespun::thread::ThreadLib;
use harness::io::{Loop, on_every_backend};

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
    assert_eq!(vec![7; 8].slice(3..).begin(), 3);
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

/// Writes `buf` to a file, and a part of it, and looks at what came.
fn is_written<B: IoBuf>(io: &Loop, buf: B, expected: &[u8]) {
    let file = File::from_std(tempfile::tempfile().unwrap()).unwrap();
    let (written, buf) = io.must_end("a write", file.write_all_at(buf, 0));
    written.unwrap();
    let part = buf.slice(1..3);
    let (written, _) = io.must_end("a write", file.write_all_at(part, expected.len() as u64));
    written.unwrap();
    let (read, got) = io.must_end("a read", file.read_at(Vec::with_capacity(64), 0));
    read.unwrap();
    assert_eq!(got, [expected, &expected[1..3]].concat());
}

#[test]
fn what_holds_bytes_in_place_can_be_written() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        is_written(&io, String::from("bytes"), b"bytes");
        is_written(&io, std::sync::Arc::<[u8]>::from(*b"bytes"), b"bytes");
        is_written(&io, b"bytes", b"bytes");
        is_written(&io, &b"bytes"[..], b"bytes");
        is_written(&io, "bytes", b"bytes");
        is_written(&io, Box::<[u8]>::from(*b"bytes"), b"bytes");
        #[cfg(feature = "bytes")]
        {
            is_written(&io, bytes::Bytes::from_static(b"bytes"), b"bytes");
            is_written(
                &io,
                bytes::Bytes::from(b"some bytes".to_vec()).slice(5..),
                b"bytes",
            );
            is_written(&io, bytes::BytesMut::from(&b"bytes"[..]), b"bytes");
        }
    });
}

/// A part of a larger allocation is filled, and no byte beside it.
#[cfg(feature = "bytes")]
#[test]
fn bytes_that_share_an_allocation_are_read_into_apart() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let file = File::from_std(tempfile::tempfile().unwrap()).unwrap();
        let (written, _) = io.must_end("a write", file.write_all_at(vec![7; 64], 0));
        written.unwrap();
        let mut whole = bytes::BytesMut::zeroed(48);
        let last = whole.split_off(32);
        let first = whole.split_to(16);
        whole.truncate(4);
        let (read, middle) = io.must_end("a read", file.read_at(whole, 0));
        let read = read.unwrap();
        assert_eq!(read, middle.len());
        assert!(middle.iter().all(|&byte| byte == 7));
        assert!(first.iter().chain(&last).all(|&byte| byte == 0));
    });
}

/// A buffer that is used again is no larger for a slice of it.
/// Those of a pool of an io_device, which a driver knows nothing of.
#[test]
fn a_buffer_of_an_iobuf_pool_is_read_into_and_written_from() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let mut runner = ThreadLib::new().thread().build().unwrap().attach();
        let builder = Iobuf::builder().small(64, 4096).large(8, 8192);
        let iobuf = runner.enter(|| builder.build()).unwrap();
        iobuf.register_module("m").unwrap();
        let channel = runner.enter(|| iobuf.channel("m", 0, 0)).unwrap();
        let mut get = || runner.enter(|| channel.try_get(4096)).unwrap().unwrap();
        let (mut from, into) = (get(), get());
        from.iter_mut()
            .enumerate()
            .for_each(|(n, byte)| *byte = n as u8);
        let file = File::from_std(tempfile::tempfile().unwrap()).unwrap();
        let (written, from) = io.must_end("a write", file.write_at(from, 0));
        assert_eq!(written.unwrap(), 4096);
        let (read, into) = io.must_end("a read", file.read_at(into, 0));
        assert_eq!(read.unwrap(), 4096);
        assert_eq!(into[..], from[..]);
    });
}

#[test]
fn a_slice_bounds_what_is_read() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let file = File::from_std(tempfile::tempfile().unwrap()).unwrap();
        let (written, _) = io.must_end("a write", file.write_all_at(vec![7; 64], 0));
        written.unwrap();
        let mut buf = vec![1; 32];
        buf.truncate(2);
        let (read, part) = io.must_end("a read", file.read_at(buf.slice(..5), 0));
        assert_eq!(read.unwrap(), 5);
        assert_eq!(part.into_inner(), [7; 5]);
    });
}
