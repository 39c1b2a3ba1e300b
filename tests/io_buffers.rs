//! Buffers lent to operations: how long they may be, what they promise, and what a part of one is.

mod io_harness;

use std::panic::{AssertUnwindSafe, catch_unwind};

use corespun::io::{AlignedBuf, BackendChoice, POOL_ALIGN};
use io_harness::Loop;

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
