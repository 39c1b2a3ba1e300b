//! Both ends of a connection: the server's rooms on one side of a pipe, a client that
//! says exactly what a test wants on the other.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use futures::channel::oneshot;
use futures::executor::{LocalPool, LocalSpawner};
use futures::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use futures::task::LocalSpawnExt;

use crate::disk::{Disk, Zeroing};
use crate::negotiate::{self, NegotiateError, Outcome};
use crate::protocol::{
    BlockSizes, Export, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk, command,
};
use crate::transmit::{self, End, Spawn, Traffic, TransmitError};

pub(crate) const MIB: u64 = 1 << 20;

/// An export of 1 MiB called `disk`, with the default block sizes.
pub(crate) fn export() -> Export {
    Export {
        name: "disk".into(),
        description: "a test".into(),
        size: MIB,
        read_only: false,
        blocks: BlockSizes::default(),
    }
}

/// One end of a two-way pipe.
pub(crate) struct Pipe {
    incoming: piper::Reader,
    outgoing: Option<piper::Writer>,
}

/// A pipe that holds `capacity` bytes each way.
pub(crate) fn pipe(capacity: usize) -> (Pipe, Pipe) {
    let (a, b) = (piper::pipe(capacity), piper::pipe(capacity));
    let end = |incoming, outgoing| Pipe {
        incoming,
        outgoing: Some(outgoing),
    };
    (end(a.0, b.1), end(b.0, a.1))
}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.incoming).poll_read(cx, into)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.outgoing {
            Some(writer) => Pin::new(writer).poll_write(cx, data),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outgoing = None;
        Poll::Ready(Ok(()))
    }
}

/// Runs request tasks on the pool of the test.
pub(crate) struct OnPool(pub(crate) LocalSpawner);

impl Spawn for OnPool {
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.0.spawn_local(task).unwrap();
    }
}

/// Loses every task it is given.
pub(crate) struct Forgetful;

impl Spawn for Forgetful {
    fn spawn(&self, _task: impl Future<Output = ()> + 'static) {}
}

/// What a test wants to have of a connection.
pub(crate) struct Setup<D> {
    pub(crate) disk: D,
    pub(crate) export: Export,
    pub(crate) structured: bool,
    /// Bytes the pipe holds each way.
    pub(crate) pipe: usize,
}

impl<D: Disk> Setup<D> {
    pub(crate) fn new(disk: D) -> Setup<D> {
        Setup {
            disk,
            export: export(),
            structured: false,
            pipe: 4 << 20,
        }
    }

    pub(crate) fn structured(mut self) -> Setup<D> {
        self.structured = true;
        self
    }

    /// Serves `client` in the transmission phase until both are done; a client that
    /// returns hangs up.
    pub(crate) fn run(self, client: impl AsyncFnOnce(Client)) -> Result<End, TransmitError> {
        let mut pool = LocalPool::new();
        let spawner = OnPool(pool.spawner());
        self.run_on(&mut pool, &spawner, client)
    }

    pub(crate) fn run_on(
        self,
        pool: &mut LocalPool,
        spawner: &impl Spawn,
        client: impl AsyncFnOnce(Client),
    ) -> Result<End, TransmitError> {
        let (ours, mut theirs) = pipe(self.pipe);
        let traffic = Traffic::default();
        let server = async {
            let end = transmit::transmit(
                &mut theirs,
                self.disk,
                &self.export,
                self.structured,
                spawner,
                &traffic,
            )
            .await;
            drop(theirs);
            end
        };
        let client = client(Client(ours));
        let (end, ()) = pool.run_until(async { futures::join!(server, client) });
        end
    }
}

/// Runs the handshake against `client`; a client that returns hangs up.
pub(crate) fn handshake(
    export: &Export,
    capacity: usize,
    client: impl AsyncFnOnce(Client),
) -> Result<Outcome, NegotiateError> {
    let (ours, mut theirs) = pipe(capacity);
    let server = async {
        let outcome = negotiate::negotiate(&mut theirs, export).await;
        drop(theirs);
        outcome
    };
    let client = client(Client(ours));
    futures::executor::block_on(async { futures::join!(server, client) }).0
}

/// The client's end.
pub(crate) struct Client(pub(crate) Pipe);

/// A reply as it came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) cookie: u64,
    pub(crate) error: u32,
    /// Of a structured read; empty otherwise, for a simple reply does not tell.
    pub(crate) data: Vec<u8>,
}

/// The reply to `cookie` that says `error` and nothing more.
pub(crate) fn status(cookie: u64, error: u32) -> Reply {
    Reply {
        cookie,
        error,
        data: Vec::new(),
    }
}

/// A request header.
pub(crate) fn header(kind: u16, flags: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut header = REQUEST_MAGIC.to_be_bytes().to_vec();
    header.extend(flags.to_be_bytes());
    header.extend(kind.to_be_bytes());
    header.extend(cookie.to_be_bytes());
    header.extend(offset.to_be_bytes());
    header.extend(length.to_be_bytes());
    header
}

/// A write with its payload.
pub(crate) fn write(flags: u16, cookie: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    let mut bytes = header(command::WRITE, flags, cookie, offset, data.len() as u32);
    bytes.extend(data);
    bytes
}

impl Client {
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    pub(crate) async fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes).await.unwrap();
        bytes
    }

    pub(crate) async fn bytes(&mut self, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; n];
        self.0.read_exact(&mut bytes).await.unwrap();
        bytes
    }

    pub(crate) async fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take().await)
    }

    pub(crate) async fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take().await)
    }

    pub(crate) async fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take().await)
    }

    /// The next reply, simple or structured; the data of a simple one is left in the
    /// stream.
    pub(crate) async fn reply(&mut self) -> Reply {
        let magic = self.u32().await;
        if magic == SIMPLE_REPLY_MAGIC {
            let error = self.u32().await;
            return status(self.u64().await, error);
        }
        assert_eq!(magic, STRUCTURED_REPLY_MAGIC);
        assert_eq!(self.u16().await, chunk::FLAG_DONE);
        let kind = self.u16().await;
        let cookie = self.u64().await;
        let payload = self.u32().await as usize;
        let payload = self.bytes(payload).await;
        match kind {
            chunk::NONE => {
                assert!(payload.is_empty());
                status(cookie, 0)
            }
            chunk::OFFSET_DATA => {
                assert!(payload.len() > 8, "a content chunk without content");
                Reply {
                    data: payload[8..].to_vec(),
                    ..status(cookie, 0)
                }
            }
            chunk::ERROR => {
                let error = u32::from_be_bytes(payload[..4].try_into().unwrap());
                let message = usize::from(payload[4]) << 8 | usize::from(payload[5]);
                assert_eq!(payload.len(), 6 + message);
                assert!(std::str::from_utf8(&payload[6..]).is_ok());
                status(cookie, error)
            }
            other => panic!("chunk of type {other}"),
        }
    }

    /// Reads `length` bytes at `offset` with a simple reply.
    pub(crate) async fn read(&mut self, offset: u64, length: u32) -> Vec<u8> {
        self.send(&header(command::READ, 0, 99, offset, length))
            .await;
        assert_eq!(self.reply().await, status(99, 0));
        self.bytes(length as usize).await
    }

    /// Everything until the server closes.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).await.unwrap();
        rest
    }
}

/// A disk that answers nothing at once, and each operation only when the test says so.
#[derive(Clone)]
pub(crate) struct SlowDisk(pub(crate) Rc<Slow>);

#[derive(Default)]
pub(crate) struct Slow {
    pub(crate) waiting: RefCell<Vec<(String, oneshot::Sender<io::Result<()>>)>>,
    pub(crate) log: RefCell<Vec<String>>,
    pub(crate) most_waiting: Cell<usize>,
}

impl SlowDisk {
    pub(crate) fn new() -> SlowDisk {
        SlowDisk(Rc::default())
    }

    async fn operation(&self, what: String) -> io::Result<()> {
        let (sender, receiver) = oneshot::channel();
        self.0.log.borrow_mut().push(format!("start {what}"));
        self.0.waiting.borrow_mut().push((what.clone(), sender));
        let waiting = self.0.waiting.borrow().len();
        self.0
            .most_waiting
            .set(self.0.most_waiting.get().max(waiting));
        let status = receiver.await.expect("the test drops the sender");
        self.0.log.borrow_mut().push(format!("end {what}"));
        status
    }

    /// Lets the operation whose description this is go on.
    pub(crate) fn finish(&self, what: &str, status: io::Result<()>) {
        let mut waiting = self.0.waiting.borrow_mut();
        let at = waiting.iter().position(|(name, _)| name == what);
        let (_, sender) = waiting.remove(at.unwrap_or_else(|| panic!("no {what} waits")));
        sender.send(status).unwrap();
    }

    pub(crate) fn waiting(&self) -> Vec<String> {
        let waiting = self.0.waiting.borrow();
        waiting.iter().map(|(name, _)| name.clone()).collect()
    }
}

impl Disk for SlowDisk {
    fn try_read(&self, _: u64, _: &mut [u8]) -> Option<io::Result<()>> {
        None
    }

    fn try_write(&self, _: u64, _: &[u8]) -> Option<io::Result<()>> {
        None
    }

    /// Every byte is the number of its 4 KiB block.
    async fn read(
        &self,
        offset: u64,
        mut frame: Vec<u8>,
        from: usize,
    ) -> (io::Result<()>, Vec<u8>) {
        let length = frame.len() - from;
        let status = self.operation(format!("read {offset}+{length}")).await;
        frame[from..].fill((offset / 4096) as u8);
        (status, frame)
    }

    async fn write(&self, offset: u64, data: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        let length = data.len();
        (
            self.operation(format!("write {offset}+{length}")).await,
            data,
        )
    }

    async fn flush(&self) -> io::Result<()> {
        self.operation("flush".into()).await
    }

    async fn trim(&self, offset: u64, length: u32) -> io::Result<()> {
        self.operation(format!("trim {offset}+{length}")).await
    }

    async fn write_zeroes(&self, offset: u64, length: u32, how: Zeroing) -> io::Result<()> {
        let punch = if how.may_punch { " punch" } else { "" };
        let fast = if how.only_if_fast { " fast" } else { "" };
        self.operation(format!("zero {offset}+{length}{punch}{fast}"))
            .await
    }

    async fn cache(&self, offset: u64, length: u32) -> io::Result<()> {
        self.operation(format!("cache {offset}+{length}")).await
    }
}

/// Lets everything else run until `ready` holds.
pub(crate) async fn until(ready: impl Fn() -> bool) {
    for _ in 0..10_000 {
        if ready() {
            return;
        }
        corespun::task::yield_now().await;
    }
    panic!("this never comes");
}
