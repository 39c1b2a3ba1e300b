//! Adapters of I/O traits, given objects that do not play by the rules.

use std::io;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use corespun_compat as tokio;

use corespun_compat::adapters::TokioAsHyper;
use tokio::io::{AsyncRead, ReadBuf};

/// Gives back another buffer than it was given. No `unsafe` is needed for that.
struct Swaps;

impl AsyncRead for Swaps {
    fn poll_read(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        *buf = ReadBuf::new(Box::leak(vec![7; 64].into_boxed_slice()));
        buf.set_filled(32);
        Poll::Ready(Ok(()))
    }
}

#[test]
fn a_reader_that_swaps_its_buffer_initialises_nothing() {
    let mut space = [MaybeUninit::uninit(); 64];
    let mut buf = hyper::rt::ReadBuf::uninit(&mut space);
    let mut cx = Context::from_waker(Waker::noop());
    let polled = catch_unwind(AssertUnwindSafe(|| {
        let reader = pin!(TokioAsHyper::new(Swaps));
        let _ = hyper::rt::Read::poll_read(reader, &mut cx, buf.unfilled());
    }));
    assert_eq!(buf.filled().len(), 0, "nobody has written there");
    assert!(polled.is_err());
}
