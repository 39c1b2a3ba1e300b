//! One client.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

use crate::command::{self, Effect};
use crate::hub;
use crate::resp::{self, Reply, Request};
use crate::server::Shared;

/// Serves one client until it leaves, or the server stops.
pub(crate) async fn serve(
    stream: TcpStream,
    shared: Arc<Shared>,
    mut stopping: watch::Receiver<bool>,
) {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut client = Client {
        id: NEXT.fetch_add(1, Ordering::Relaxed),
        stream,
        shared,
        input: BytesMut::with_capacity(16 << 10),
        output: BytesMut::with_capacity(16 << 10),
        channels: HashSet::new(),
        messages: None,
        last_change: None,
    };
    tokio::select! {
        // A client that goes away is none of the server's business.
        _ = client.run() => {}
        _ = stopping.wait_for(|stops| *stops) => {}
    }
    let channels = std::mem::take(&mut client.channels);
    for channel in channels {
        client.shared.hub.unsubscribe(&channel, client.id);
    }
}

struct Client {
    id: u64,
    stream: TcpStream,
    shared: Arc<Shared>,
    input: BytesMut,
    output: BytesMut,
    channels: HashSet<Bytes>,
    /// There from the first subscription on.
    messages: Option<(mpsc::Sender<Bytes>, mpsc::Receiver<Bytes>)>,
    /// The number of the last change that a reply in `output` is about.
    last_change: Option<u64>,
}

/// Whether to go on.
#[derive(PartialEq, Eq)]
enum Next {
    GoOn,
    HangUp,
}

impl Client {
    async fn run(&mut self) -> io::Result<()> {
        self.stream.set_nodelay(true)?;
        loop {
            // All that have come, and then one write: the client may send many at once.
            let mut next = Next::GoOn;
            while next == Next::GoOn {
                match resp::take_request(&mut self.input) {
                    Ok(Some(request)) => next = self.execute(request),
                    Ok(None) => break,
                    Err(error) => {
                        self.output.error(&format!("ERR Protocol error: {error}"));
                        next = Next::HangUp;
                    }
                }
            }
            self.flush().await?;
            if next == Next::HangUp {
                return Ok(());
            }
            resp::trim(&mut self.input);
            resp::trim(&mut self.output);
            self.input.reserve(4096);
            let message = match &mut self.messages {
                None => {
                    if self.stream.read_buf(&mut self.input).await? == 0 {
                        return Ok(());
                    }
                    None
                }
                Some((_, messages)) => tokio::select! {
                    read = self.stream.read_buf(&mut self.input) => {
                        if read? == 0 {
                            return Ok(());
                        }
                        None
                    }
                    message = messages.recv() => message,
                },
            };
            if let Some(message) = message {
                self.output.extend_from_slice(&message);
            }
        }
    }

    /// Sends the replies, once what they say is as safe as was asked for.
    async fn flush(&mut self) -> io::Result<()> {
        if let Some(change) = self.last_change.take()
            && let Some(written) = &self.shared.written
        {
            let mut written = written.clone();
            let reached = written
                .wait_for(|done| done.as_ref().is_ok_and(|&to| to >= change) || done.is_err());
            let failed = match reached.await {
                Ok(done) => done.as_ref().err().cloned(),
                Err(_) => Some("the append-only file is closed".to_owned()),
            };
            if let Some(error) = failed {
                return Err(io::Error::other(error));
            }
        }
        if !self.output.is_empty() {
            self.stream.write_all(&self.output).await?;
            self.output.clear();
        }
        Ok(())
    }

    fn execute(&mut self, request: Request) -> Next {
        match command::execute(&self.shared, &request, &mut self.output) {
            Effect::None => {}
            Effect::Changed(number) => self.last_change = Some(number),
            Effect::Subscribe => self.subscribe(&request[1..]),
            Effect::Unsubscribe => self.unsubscribe(&request[1..]),
            Effect::HangUp => return Next::HangUp,
            Effect::Stop => {
                self.shared.stop.send_replace(true);
                return Next::HangUp;
            }
        }
        Next::GoOn
    }

    fn subscribe(&mut self, channels: &[Bytes]) {
        let (sender, _) = self
            .messages
            .get_or_insert_with(|| mpsc::channel(hub::WAITING));
        for channel in channels {
            // A slice would keep the whole request.
            let channel = Bytes::copy_from_slice(channel);
            let hub = &self.shared.hub;
            hub.subscribe(channel.clone(), self.id, sender.clone());
            self.output.array(3);
            self.output.bulk(b"subscribe");
            self.output.bulk(&channel);
            self.channels.insert(channel);
            self.output.int(self.channels.len() as i64);
        }
    }

    fn unsubscribe(&mut self, channels: &[Bytes]) {
        let channels: Vec<Bytes> = match channels {
            [] => self.channels.iter().cloned().collect(),
            some => some.to_vec(),
        };
        if channels.is_empty() {
            self.output.array(3);
            self.output.bulk(b"unsubscribe");
            self.output.nil();
            self.output.int(0);
        }
        for channel in channels {
            self.channels.remove(&channel);
            self.shared.hub.unsubscribe(&channel, self.id);
            self.output.array(3);
            self.output.bulk(b"unsubscribe");
            self.output.bulk(&channel);
            self.output.int(self.channels.len() as i64);
        }
    }
}
