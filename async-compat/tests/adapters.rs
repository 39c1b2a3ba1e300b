//! Adapters of I/O traits: they pass on what they are given, whole and as it is; also given objects
//! that do not play by the rules.

use std::io::{self, Cursor, IoSlice, SeekFrom};
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use corespun_compat as tokio;

use corespun_compat::adapters::{FuturesAsTokio, HyperAsTokio, TokioAsFutures, TokioAsHyper};
use tokio::io::{
    AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncSeekExt, AsyncWrite, AsyncWriteExt, BufReader,
    ReadBuf,
};

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

/// Reads out what it holds, three bytes at a time, and notes what is done to it.
#[derive(Default)]
struct Notes {
    text: Cursor<Vec<u8>>,
    /// Every other call has to wait.
    waits: bool,
    done: Vec<String>,
}

impl Notes {
    fn waits(&mut self, cx: &mut Context<'_>) -> bool {
        self.waits = !self.waits;
        if self.waits {
            cx.waker().wake_by_ref();
        }
        self.waits
    }

    fn note(&mut self, cx: &mut Context<'_>, done: &str) -> Poll<io::Result<()>> {
        if self.waits(cx) {
            return Poll::Pending;
        }
        self.done.push(done.to_owned());
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Notes {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.waits(cx) {
            return Poll::Pending;
        }
        let mut few = [0; 3];
        let room = buf.remaining().min(3);
        let count = io::Read::read(&mut self.text, &mut few[..room])?;
        buf.put_slice(&few[..count]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Notes {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let text = std::str::from_utf8(buf).unwrap();
        self.note(cx, text).map_ok(|()| buf.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let parts: Vec<_> = bufs
            .iter()
            .map(|buf| std::str::from_utf8(buf).unwrap())
            .collect();
        let len = bufs.iter().map(|buf| buf.len()).sum();
        self.note(cx, &parts.join("+")).map_ok(|()| len)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.note(cx, "flush")
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.note(cx, "end")
    }
}

/// Whatever is between, the object sees what its user does, and the user what it holds.
async fn passes_on<S, F>(wrap: impl FnOnce(Notes) -> S, unwrap: F)
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: FnOnce(S) -> Notes,
{
    let text = Cursor::new(b"what it holds".to_vec());
    let mut stream = wrap(Notes {
        text,
        ..Notes::default()
    });
    let mut read = [0; 4];
    stream.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"what");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, " it holds");
    stream.write_all(b"one").await.unwrap();
    assert!(stream.is_write_vectored());
    let parts = [IoSlice::new(b"two"), IoSlice::new(b"three")];
    assert_eq!(stream.write_vectored(&parts).await.unwrap(), 8);
    stream.flush().await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(unwrap(stream).done, ["one", "two+three", "flush", "end"]);
}

#[tokio::test]
async fn every_pair_passes_on_reads_writes_and_ends() {
    // tokio's and futures'.
    passes_on(
        |notes| FuturesAsTokio::new(TokioAsFutures::new(notes)),
        |stream| stream.into_inner().into_inner(),
    )
    .await;
    // tokio's and hyper's.
    passes_on(
        |notes| HyperAsTokio::new(TokioAsHyper::new(notes)),
        |stream| stream.into_inner().into_inner(),
    )
    .await;
    // futures' and hyper's, there and back: two adapters each way.
    passes_on(
        |notes| {
            let hyper = TokioAsHyper::new(FuturesAsTokio::new(TokioAsFutures::new(notes)));
            let futures = TokioAsFutures::new(HyperAsTokio::new(hyper));
            FuturesAsTokio::new(futures)
        },
        |stream| {
            let hyper = stream.into_inner().into_inner().into_inner();
            hyper.into_inner().into_inner().into_inner()
        },
    )
    .await;
}

#[tokio::test]
async fn buffered_reads_and_seeks_are_passed_on() {
    let text = Cursor::new(b"first\nsecond\nthird".to_vec());
    let text = FuturesAsTokio::new(TokioAsFutures::new(BufReader::new(text)));
    let mut lines = text.lines();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("first"));
    let mut text = lines.into_inner();
    assert_eq!(text.fill_buf().await.unwrap(), b"second\nthird");
    text.consume(3);
    assert_eq!(text.fill_buf().await.unwrap(), b"ond\nthird");
    assert_eq!(text.seek(SeekFrom::End(-3)).await.unwrap(), 15);
    let mut rest = String::new();
    text.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "ird");
    assert_eq!(text.seek(SeekFrom::Start(6)).await.unwrap(), 6);
    assert_eq!(text.stream_position().await.unwrap(), 6);
}
