//! Calls from node to node: a line with a verb and JSON there, a line of JSON back.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use corespun::net::TcpStream;
use corespun::time::timeout;
use futures::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use openraft::BasicNode;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::{SnapshotOf, VoteOf};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Types;
use crate::state::Values;

/// The longest line; a snapshot is one.
const LINE: u64 = 256 << 20;

/// Reads a line, without its end; none at the end of the stream.
pub(crate) async fn read_line<R>(stream: &mut R) -> io::Result<Option<String>>
where
    R: AsyncBufRead + Unpin,
{
    let mut line = String::new();
    stream.take(LINE).read_line(&mut line).await?;
    if line.is_empty() {
        return Ok(None);
    }
    match line.strip_suffix('\n') {
        Some(whole) => Ok(Some(whole.to_owned())),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Makes the connections; each is opened by its first call.
pub(crate) struct Network;

impl RaftNetworkFactory<Types> for Network {
    type Network = Peer;

    async fn new_client(&mut self, _target: u64, node: &BasicNode) -> Peer {
        Peer {
            address: node.addr.clone(),
            connection: None,
        }
    }
}

pub(crate) struct Peer {
    address: String,
    connection: Option<BufReader<TcpStream>>,
}

impl Peer {
    async fn call<Q, A>(&mut self, verb: &str, question: &Q, limit: Duration) -> io::Result<A>
    where
        Q: Serialize,
        A: DeserializeOwned,
    {
        let line = format!("{verb} {}\n", serde_json::to_string(question)?);
        let answer = match timeout(limit, self.exchange(&line)).await {
            Ok(answer) => answer?,
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        };
        let answer: Result<A, String> = serde_json::from_str(&answer)?;
        answer.map_err(io::Error::other)
    }

    /// The connection is kept if this comes to its end; one that was given up in the middle
    /// would give the next call the answer to this one.
    async fn exchange(&mut self, line: &str) -> io::Result<String> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => BufReader::new(self.connect().await?),
        };
        connection.get_mut().write_all(line.as_bytes()).await?;
        let answer = read_line(&mut connection).await?;
        self.connection = Some(connection);
        answer.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        let address: SocketAddr = self.address.parse().map_err(io::Error::other)?;
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// openraft tries again a while later.
fn unreachable(error: io::Error) -> Unreachable<Types> {
    Unreachable::new(&error)
}

impl RaftNetworkV2<Types> for Peer {
    type SnapshotData = Values;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let answer = self.call("append", &rpc, option.hard_ttl()).await;
        Ok(answer.map_err(unreachable)?)
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let answer = self.call("vote", &rpc, option.hard_ttl()).await;
        Ok(answer.map_err(unreachable)?)
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<Types>,
        snapshot: SnapshotOf<Types, Values>,
        _cancel: impl Future<Output = ReplicationClosed> + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let question = (vote, snapshot.meta, snapshot.snapshot);
        let answer = self.call("snapshot", &question, option.hard_ttl()).await;
        Ok(answer.map_err(unreachable)?)
    }
}
