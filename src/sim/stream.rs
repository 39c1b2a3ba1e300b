//! A pair of byte streams in memory, as a connection that is slow, stingy, and breaks.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use futures::io::{AsyncRead, AsyncWrite};

use super::SimHandle;
use super::chance::Span;
use crate::sync::budget::poll_budget;

/// How a pair of [`SimStream`]s behaves, and how it fails. Chances are one in so many, 0
/// for never.
#[derive(Clone, Debug)]
pub struct StreamFaults {
    /// How long bytes are on their way: 1 to 100 µs.
    pub delay: RangeInclusive<Duration>,
    /// How many bytes may be on their way or unread in each direction: 64 KiB.
    pub buffer: usize,
    /// One in so many reads and writes moves fewer bytes than it could: 4.
    pub short: u32,
    /// One in so many writes finds the connection broken.
    pub breaks: u32,
}

impl Default for StreamFaults {
    /// Slow and stingy, and never broken.
    fn default() -> Self {
        StreamFaults {
            delay: Duration::from_micros(1)..=Duration::from_micros(100),
            buffer: 64 << 10,
            short: 4,
            breaks: 0,
        }
    }
}

/// One end of a connection in memory. Any thread may use it.
///
/// Bytes arrive in order, and later than they were written. Dropped or closed, the other
/// end reads what is on its way and then the end; what that writes to an end that is
/// dropped fails.
///
/// # Examples
///
/// ```
/// use corespun::sim::Sim;
/// use futures::{AsyncReadExt, AsyncWriteExt};
///
/// let mut sim = Sim::builder().cores(2).build();
/// let (mut client, mut server) = sim.handle().byte_stream(Default::default());
/// let echo = sim.thread().create()?;
/// let served = echo.spawn_with(async move || {
///     let mut request = String::new();
///     server.read_to_string(&mut request).await?;
///     server.write_all(request.to_uppercase().as_bytes()).await?;
///     server.close().await
/// });
/// let answer = sim.block_on(async move {
///     client.write_all(b"hello").await?;
///     client.close().await?;
///     let mut answer = String::new();
///     client.read_to_string(&mut answer).await?;
///     std::io::Result::Ok(answer)
/// });
/// assert_eq!(answer?, "HELLO");
/// sim.block_on(served)??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct SimStream {
    handle: SimHandle,
    pair: Arc<Pair>,
    /// Which of the two it is.
    end: usize,
}

struct Pair {
    faults: StreamFaults,
    delay: Span,
    /// By the end that reads.
    pipes: Mutex<[Pipe; 2]>,
}

#[derive(Default)]
struct Pipe {
    chunks: VecDeque<(u64, VecDeque<u8>)>,
    bytes: usize,
    /// When what was written last arrives.
    last: u64,
    state: State,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// Nothing more is written.
    Ended,
    /// It has no reader any more.
    Unread,
    /// The connection is broken.
    Broken,
}

impl SimHandle {
    /// The two ends of a connection.
    #[must_use]
    pub fn byte_stream(&self, faults: StreamFaults) -> (SimStream, SimStream) {
        let pair = Arc::new(Pair {
            delay: Span::new(&faults.delay, &self.world.clock),
            faults,
            pipes: Mutex::default(),
        });
        let end = |end| SimStream {
            handle: self.clone(),
            pair: pair.clone(),
            end,
        };
        (end(0), end(1))
    }
}

impl SimStream {
    /// Breaks the connection: what is on its way is lost, and both ends fail from now on.
    pub fn break_connection(&self) {
        let wakers = self.break_pipes(&mut self.pipes());
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    fn break_pipes(&self, pipes: &mut [Pipe; 2]) -> [Option<Waker>; 4] {
        for pipe in pipes.iter_mut() {
            pipe.chunks.clear();
            pipe.bytes = 0;
            pipe.state = State::Broken;
        }
        let [one, other] = pipes;
        let wakers = [
            &mut one.reader,
            &mut one.writer,
            &mut other.reader,
            &mut other.writer,
        ];
        wakers.map(Option::take)
    }

    fn pipes(&self) -> MutexGuard<'_, [Pipe; 2]> {
        let pipes = self.pair.pipes.lock();
        // No user code runs under this lock.
        pipes.unwrap_or_else(PoisonError::into_inner)
    }

    fn shortened(&self, count: usize) -> usize {
        match count > 1 && self.handle.chance(self.pair.faults.short) {
            true => 1 + self.handle.random(count as u64 - 1) as usize,
            false => count,
        }
    }
}

impl AsyncRead for SimStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let budget = ready!(poll_budget(cx));
        budget.on(self.read_due(cx, buf))
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let budget = ready!(poll_budget(cx));
        budget.on(self.write_now(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.pipes()[1 - self.end].state {
            State::Broken => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            _ => Poll::Ready(Ok(())),
        }
    }

    fn poll_close(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end_writing();
        Poll::Ready(Ok(()))
    }
}

impl SimStream {
    /// Takes what has arrived.
    fn read_due(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let world = &self.handle.world;
        let mut pipes = self.pipes();
        let pipe = &mut pipes[self.end];
        if pipe.state == State::Broken {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        match pipe.chunks.front_mut() {
            Some((at, chunk)) if world.is_due(*at) => {
                let count = self.shortened(buf.len().min(chunk.len()));
                let taken = chunk.drain(..count);
                buf.iter_mut().zip(taken).for_each(|(to, byte)| *to = byte);
                if chunk.is_empty() {
                    pipe.chunks.pop_front();
                }
                pipe.bytes -= count;
                let writer = pipe.writer.take();
                drop(pipes);
                writer.into_iter().for_each(Waker::wake);
                return Poll::Ready(Ok(count));
            }
            Some((at, _)) => world.wake_at(*at, cx.waker()),
            None if pipe.state == State::Ended && world.is_due(pipe.last) => {
                return Poll::Ready(Ok(0));
            }
            None if pipe.state == State::Ended => world.wake_at(pipe.last, cx.waker()),
            None => {}
        }
        pipe.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Sends as much as there is room for.
    fn write_now(&self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut pipes = self.pipes();
        let faults = &self.pair.faults;
        if pipes[1 - self.end].state == State::Open && self.handle.chance(faults.breaks) {
            let wakers = self.break_pipes(&mut pipes);
            drop(pipes);
            self.handle.note("a byte stream breaks");
            wakers.into_iter().flatten().for_each(Waker::wake);
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let pipe = &mut pipes[1 - self.end];
        if pipe.state != State::Open {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = faults.buffer.max(1).saturating_sub(pipe.bytes);
        if room == 0 {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = self.shortened(buf.len().min(room));
        if count == 0 {
            return Poll::Ready(Ok(0));
        }
        let at = self.arrival(pipe);
        pipe.chunks
            .push_back((at, buf[..count].iter().copied().collect()));
        pipe.bytes += count;
        let reader = pipe.reader.take();
        drop(pipes);
        reader.into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(count))
    }

    /// When what is written now arrives: not before what was written earlier.
    fn arrival(&self, pipe: &mut Pipe) -> u64 {
        let world = &self.handle.world;
        let time = {
            let dice = &mut world.state().dice;
            self.pair.delay.throw(&mut dice.rng)
        };
        pipe.last = pipe.last.max(world.now().saturating_add(time));
        pipe.last
    }

    fn end_writing(&self) {
        let mut pipes = self.pipes();
        let pipe = &mut pipes[1 - self.end];
        if pipe.state != State::Open {
            return;
        }
        pipe.state = State::Ended;
        self.arrival(pipe);
        let wakers = [pipe.reader.take(), pipe.writer.take()];
        drop(pipes);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        self.end_writing();
        let mut pipes = self.pipes();
        let pipe = &mut pipes[self.end];
        if pipe.state == State::Open {
            pipe.state = State::Unread;
        }
        pipe.chunks.clear();
        pipe.bytes = 0;
        let wakers = [pipe.reader.take(), pipe.writer.take()];
        drop(pipes);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

impl fmt::Debug for SimStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimStream")
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}
