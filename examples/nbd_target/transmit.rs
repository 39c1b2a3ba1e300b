//! The transmission phase of one connection: requests in, replies out as they finish.
//!
//! One task per connection does all reading and writing of the stream. A request that
//! the disk can answer at once is served inside it, straight into the reply buffer;
//! any other one becomes a task of its own on the same thread and hands its reply over
//! when it is done. So replies overtake each other freely, while header and data of one
//! reply stay together, and many requests cost one system call each way.
//!
//! What a client can make the server hold is bounded: while its requests in flight and
//! its unsent replies are at the limit, nothing more is taken from the stream.

use std::future::poll_fn;
use std::io::{self, IoSlice, IoSliceMut};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use futures::io::{AsyncRead, AsyncWrite};

use crate::buffers::{CHUNK, Inbox};
use crate::disk::{Disk, Zeroing};
use crate::flight::{Flight, Ticket};
use crate::protocol::{Command, Export, Refusal, ReplyStyle, Request, command_flag};

/// Writes up to this size are served out of the inbox; the payload of a larger one is
/// received into a buffer of its own, which saves moving it twice.
const SMALL_WRITE: u32 = 64 << 10;

/// Rounds of reading, serving and writing before the other tasks of the thread get
/// their turn.
const ROUNDS: usize = 4;

/// Payload of a refused write that is skipped to stay in step with the client, in
/// multiples of the export's maximum; who sends more is cut off.
const SKIP_LIMIT: u32 = 2;

/// Bytes zeroed before it is looked at again whether the client is still there.
const ZERO_PIECE: u32 = 32 << 20;

/// How a transmission ended that did not fail.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The client said that it disconnects.
    Disconnected,
    /// The client closed the stream between two requests.
    Closed,
}

/// Why a transmission failed; the connection has to be closed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum TransmitError {
    /// What follows cannot be made sense of.
    #[error("bad request magic {0:#010x}")]
    RequestMagic(u32),
    /// The stream ended inside a request.
    #[error("the client left in the middle of a request")]
    Truncated,
    /// More than is worth skipping.
    #[error("a write of {0} bytes, far beyond the maximum payload")]
    OversizedWrite(u32),
    /// The stream failed.
    #[error("connection lost: {0}")]
    Io(#[from] io::Error),
}

/// Starts tasks on the thread that calls it.
pub(crate) trait Spawn {
    /// Starts `task`, which reports its own result.
    fn spawn(&self, task: impl Future<Output = ()> + 'static);
}

/// What the connections of one thread have done; read by the status line.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) requests: AtomicU64,
    /// Read and written data.
    pub(crate) bytes: AtomicU64,
}

/// Zeroes the area of `ticket` for as long as the client is there: it may be many gigabytes, asked
/// for with a few bytes.
async fn write_zeroes<D: Disk>(ticket: &Ticket, disk: &D, how: Zeroing) -> io::Result<()> {
    let Request { offset, length, .. } = ticket.request;
    // Refused as a whole or not at all; and where it is not refused, it is fast.
    let piece = if how.only_if_fast {
        u32::MAX
    } else {
        ZERO_PIECE
    };
    let mut done = 0;
    loop {
        let part = piece.min(length - done);
        disk.write_zeroes(offset + u64::from(done), part, how)
            .await?;
        done += part;
        if done == length {
            return Ok(());
        }
        if !ticket.is_wanted() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
    }
}

/// Serves the requests that come in on `stream` until the client leaves.
///
/// Returns when every request in flight is done and its reply sent, or dropped where
/// nobody is left to read it: nothing of the connection stays behind.
///
/// # Errors
///
/// When the client breaks the protocol in a way that has no error reply, or the stream
/// fails. The caller closes the stream.
///
/// # Cancel safety
///
/// Not cancel safe: dropped, the stream is in the middle of a message. Drop the stream
/// with it. Requests in flight finish and their replies are dropped.
pub(crate) async fn transmit<S, D, P>(
    stream: &mut S,
    disk: D,
    export: &Export,
    structured: bool,
    spawner: &P,
    traffic: &Traffic,
) -> Result<End, TransmitError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    D: Disk,
    P: Spawn,
{
    let style = if structured {
        ReplyStyle::Structured
    } else {
        ReplyStyle::Simple
    };
    let mut transmission = Transmission {
        stream,
        disk,
        export,
        style,
        spawner,
        traffic,
        served: (0, 0),
        inbox: Inbox::new(),
        incoming: Incoming::Header,
        flight: Rc::default(),
    };
    poll_fn(|cx| transmission.poll(cx)).await
}

/// Where the connection is in the stream of requests.
enum Incoming {
    /// At the start of a request.
    Header,
    /// In the payload of a large write.
    Payload {
        ticket: Ticket,
        data: Vec<u8>,
        filled: usize,
    },
    /// In the payload of a refused write, with so many bytes of it left.
    Skip(usize),
    /// At the end: nothing more is taken from the stream.
    Ended(Result<End, TransmitError>),
}

/// Why no more requests are served.
enum Stop {
    /// What has come is not a whole request.
    NeedsInput,
    /// The next request, which will hold so many bytes, has to wait.
    Full(usize),
    Ended,
}

struct Transmission<'a, S, D, P> {
    stream: &'a mut S,
    disk: D,
    export: &'a Export,
    style: ReplyStyle,
    spawner: &'a P,
    traffic: &'a Traffic,
    /// Not yet added to `traffic`: requests and bytes.
    served: (u64, u64),
    inbox: Inbox,
    incoming: Incoming,
    flight: Rc<Flight>,
}

/// Dropped before its end, nobody is left to read a reply.
impl<S, D, P> Drop for Transmission<'_, S, D, P> {
    fn drop(&mut self) {
        self.flight.outbox().abandon();
    }
}

impl<S, D, P> Transmission<'_, S, D, P>
where
    S: AsyncRead + AsyncWrite + Unpin,
    D: Disk,
    P: Spawn,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<End, TransmitError>> {
        self.flight.wait(cx);
        let polled = self.poll_rounds(cx);
        let (requests, bytes) = std::mem::take(&mut self.served);
        if requests > 0 {
            self.traffic.requests.fetch_add(requests, Relaxed);
            self.traffic.bytes.fetch_add(bytes, Relaxed);
        }
        polled
    }

    /// One turn is: serve what has come, send the replies, receive more.
    fn poll_rounds(&mut self, cx: &mut Context<'_>) -> Poll<Result<End, TransmitError>> {
        for _ in 0..ROUNDS {
            let stop = self.serve();
            let written = match self.poll_write(cx) {
                Poll::Ready(Err(error)) => {
                    self.flight.outbox().abandon();
                    self.end(Err(error.into()));
                    continue;
                }
                Poll::Ready(Ok(())) => true,
                Poll::Pending => false,
            };
            match stop {
                Stop::NeedsInput => {
                    if let Err(error) = ready!(self.poll_read(cx)) {
                        self.end(Err(error));
                    }
                }
                // Either the replies just sent made room, or the stream or a request
                // task wakes us when there is some.
                Stop::Full(bytes) if self.flight.admits(bytes) => {}
                Stop::Full(_) => return Poll::Pending,
                Stop::Ended if written && self.flight.tasks() == 0 => {
                    return Poll::Ready(self.take_end());
                }
                Stop::Ended => return Poll::Pending,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Serves requests that have come until something is missing.
    fn serve(&mut self) -> Stop {
        loop {
            match &mut self.incoming {
                Incoming::Header => match self.take_request() {
                    Some(stop) => return stop,
                    None => continue,
                },
                Incoming::Payload { data, filled, .. } if *filled < data.len() => {
                    return Stop::NeedsInput;
                }
                Incoming::Payload { .. } => {
                    let whole = std::mem::replace(&mut self.incoming, Incoming::Header);
                    if let Incoming::Payload { ticket, data, .. } = whole {
                        self.write(ticket, data);
                    }
                }
                Incoming::Skip(left) => {
                    let part = self.inbox.filled().len().min(*left);
                    self.inbox.consume(part);
                    *left -= part;
                    if *left > 0 {
                        return Stop::NeedsInput;
                    }
                    self.incoming = Incoming::Header;
                }
                Incoming::Ended(_) => return Stop::Ended,
            }
        }
    }

    /// Takes up the request at the front of the inbox, or says why not now.
    fn take_request(&mut self) -> Option<Stop> {
        let Some(header) = self.inbox.filled().first_chunk() else {
            return Some(Stop::NeedsInput);
        };
        let request = match Request::parse(header) {
            Ok(request) => request,
            Err(magic) => {
                self.end(Err(TransmitError::RequestMagic(magic)));
                return None;
            }
        };
        let structured = self.style == ReplyStyle::Structured;
        let command = match self.export.check(&request, structured) {
            Ok(command) => command,
            Err(refusal) => return self.refuse(&request, refusal),
        };
        let holds = match command {
            Command::Read | Command::Write => request.length as usize,
            _ => 0,
        };
        if !self.flight.admits(holds) {
            return Some(Stop::Full(holds));
        }
        let small = request.payload().min(SMALL_WRITE + 1) as usize;
        let here = self.inbox.filled().len() - Request::LEN;
        if small <= SMALL_WRITE as usize && small > here {
            return Some(Stop::NeedsInput);
        }

        self.served.0 += 1;
        self.served.1 += holds as u64;
        match command {
            Command::Disconnect => self.end(Ok(End::Disconnected)),
            Command::Read => {
                self.inbox.consume(Request::LEN);
                self.read(request);
            }
            Command::Write if request.length <= SMALL_WRITE => self.small_write(request),
            Command::Write => self.large_write(request),
            Command::Flush | Command::Trim | Command::Cache | Command::WriteZeroes => {
                self.inbox.consume(Request::LEN);
                self.control(command, request);
            }
        }
        None
    }

    fn refuse(&mut self, request: &Request, refusal: Refusal) -> Option<Stop> {
        if !self.flight.admits(0) {
            return Some(Stop::Full(0));
        }
        let payload = request.payload();
        if payload > self.export.blocks.maximum.saturating_mul(SKIP_LIMIT) {
            self.end(Err(TransmitError::OversizedWrite(payload)));
            return None;
        }
        self.inbox.consume(Request::LEN);
        self.incoming = match payload {
            0 => Incoming::Header,
            payload => Incoming::Skip(payload as usize),
        };
        self.reply(request, Err(refusal));
        None
    }

    fn read(&mut self, request: Request) {
        let header = self.style.read_header(&request);
        let header = header.as_bytes();
        let len = header.len() + request.length as usize;
        if len <= CHUNK {
            let at_once = self.flight.outbox().append(len, |frame| {
                let (front, data) = frame.split_at_mut(header.len());
                front.copy_from_slice(header);
                match self.disk.try_read(request.offset, data) {
                    Some(status) => status.map_err(Some),
                    None => Err(None),
                }
            });
            match at_once {
                Ok(()) => return,
                Err(Some(error)) => return self.reply(&request, Err((&error).into())),
                Err(None) => {}
            }
        }
        let mut frame = vec![0; len];
        frame[..header.len()].copy_from_slice(header);
        let from = header.len();
        let (ticket, disk) = (self.ticket(request, len), self.disk.clone());
        self.spawner.spawn(async move {
            match disk.read(request.offset, frame, from).await {
                (Ok(()), frame) => ticket.answer_with(frame),
                (Err(error), _) => ticket.answer(Err(error)),
            }
        });
    }

    /// Serves a write whose payload is in the inbox.
    fn small_write(&mut self, request: Request) {
        let len = Request::LEN + request.length as usize;
        let data = &self.inbox.filled()[Request::LEN..len];
        if !request.has(command_flag::FUA)
            && let Some(status) = self.disk.try_write(request.offset, data)
        {
            self.inbox.consume(len);
            return self.reply(&request, status.map_err(|error| (&error).into()));
        }
        let data = data.to_vec();
        self.inbox.consume(len);
        let ticket = self.ticket(request, data.len());
        self.write(ticket, data);
    }

    /// Begins to receive the payload of a write.
    fn large_write(&mut self, request: Request) {
        self.inbox.consume(Request::LEN);
        let mut data = vec![0; request.length as usize];
        let filled = self.inbox.filled().len().min(data.len());
        data[..filled].copy_from_slice(&self.inbox.filled()[..filled]);
        self.inbox.consume(filled);
        self.incoming = Incoming::Payload {
            ticket: self.ticket(request, data.len()),
            data,
            filled,
        };
    }

    fn write(&self, ticket: Ticket, data: Vec<u8>) {
        let Request { offset, .. } = ticket.request;
        let durable = ticket.request.has(command_flag::FUA);
        if !durable && let Some(status) = self.disk.try_write(offset, &data) {
            return ticket.answer(status);
        }
        let disk = self.disk.clone();
        self.spawner.spawn(async move {
            let (mut status, data) = disk.write(offset, data).await;
            drop(data);
            if durable && status.is_ok() {
                status = disk.flush().await;
            }
            ticket.answer(status);
        });
    }

    /// Serves a request without payload in either direction.
    fn control(&self, command: Command, request: Request) {
        let (ticket, disk) = (self.ticket(request, 0), self.disk.clone());
        self.spawner.spawn(async move {
            let Request { offset, length, .. } = request;
            let mut status = match command {
                Command::Trim => disk.trim(offset, length).await,
                Command::Cache => disk.cache(offset, length).await,
                Command::WriteZeroes => {
                    let how = Zeroing {
                        may_punch: !request.has(command_flag::NO_HOLE),
                        only_if_fast: request.has(command_flag::FAST_ZERO),
                    };
                    write_zeroes(&ticket, &disk, how).await
                }
                _ => disk.flush().await,
            };
            let wrote = matches!(command, Command::Trim | Command::WriteZeroes);
            if wrote && request.has(command_flag::FUA) && status.is_ok() {
                status = disk.flush().await;
            }
            ticket.answer(status);
        });
    }

    fn ticket(&self, request: Request, bytes: usize) -> Ticket {
        Ticket::new(&self.flight, self.style, request, bytes)
    }

    fn reply(&self, request: &Request, status: Result<(), Refusal>) {
        let frame = self.style.status(request, status);
        self.flight.outbox().push(frame.as_bytes());
    }

    /// Sends until the outbox is empty or the stream takes no more.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut outbox = self.flight.outbox();
        if outbox.is_broken() {
            return Poll::Ready(Ok(()));
        }
        while outbox.queued() > 0 {
            let mut slices = [IoSlice::new(&[]); 16];
            let slices = outbox.next(&mut slices);
            let stream = Pin::new(&mut *self.stream);
            match ready!(stream.poll_write_vectored(cx, slices))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => outbox.sent(sent),
            }
        }
        Pin::new(&mut *self.stream).poll_flush(cx)
    }

    /// Receives whatever has come.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransmitError>> {
        let stream = Pin::new(&mut *self.stream);
        let room = self.inbox.room();
        let received = match &mut self.incoming {
            // What follows the payload comes with it.
            Incoming::Payload { data, filled, .. } => {
                let rest = &mut data[*filled..];
                let missing = rest.len();
                let slices = &mut [IoSliceMut::new(rest), IoSliceMut::new(room)];
                let received = ready!(stream.poll_read_vectored(cx, slices))?;
                let payload = received.min(missing);
                *filled += payload;
                self.inbox.received(received - payload);
                received
            }
            _ => {
                let received = ready!(stream.poll_read(cx, room))?;
                self.inbox.received(received);
                received
            }
        };
        if received == 0 {
            let between =
                matches!(self.incoming, Incoming::Header) && self.inbox.filled().is_empty();
            if !between {
                return Poll::Ready(Err(TransmitError::Truncated));
            }
            self.end(Ok(End::Closed));
        }
        Poll::Ready(Ok(()))
    }

    /// Takes nothing more from the stream. The first reason counts.
    fn end(&mut self, end: Result<End, TransmitError>) {
        if !matches!(self.incoming, Incoming::Ended(_)) {
            self.incoming = Incoming::Ended(end);
        }
    }

    fn take_end(&mut self) -> Result<End, TransmitError> {
        match std::mem::replace(&mut self.incoming, Incoming::Ended(Ok(End::Closed))) {
            Incoming::Ended(end) => end,
            _ => Ok(End::Closed),
        }
    }
}
