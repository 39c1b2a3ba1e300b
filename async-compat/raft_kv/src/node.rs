//! A node: its part in the agreement, and what it answers to clients and to the other nodes.
//!
//! | line | answer |
//! |---|---|
//! | `set KEY VALUE` | `ok`, when a majority has it on the disk |
//! | `get KEY` | `value VALUE` or `none`: what was acknowledged last, whoever was asked |
//! | `init 1=ADDRESS 2=ADDRESS …` | `ok`; once, by one node that is empty as all of them |
//! | `append`, `vote`, `snapshot` with JSON | the other nodes' calls; JSON |
//!
//! Whoever is not the leader answers `leader ADDRESS` to the first two, or `leader` while there
//! is none. `error` and a text is the answer to all else; a `set` may have taken effect then.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::error::Error;
use std::fmt::Display;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use corespun::fs;
use corespun::net::{TcpListener, TcpStream};
use corespun::task::spawn_local;
use futures::io::{AsyncWriteExt, BufReader};
use openraft::errors::ForwardToLeader;
use openraft::{BasicNode, Config, Raft, ReadPolicy, Snapshot, SnapshotPolicy};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::log::Log;
use crate::network::{Network, read_line};
use crate::state::State;
use crate::{Set, Types};

pub(crate) struct Node {
    raft: Raft<Types, State>,
    state: State,
}

impl Node {
    /// Starts the node of a directory, where it was left.
    pub(crate) async fn start(id: u64, directory: &Path) -> Result<Rc<Node>, Box<dyn Error>> {
        fs::create_dir_all(directory).await?;
        let config = Config {
            cluster_name: "raft_kv".to_owned(),
            heartbeat_interval: 100,
            election_timeout_min: 500,
            election_timeout_max: 1000,
            // Few, so that one sees it happen.
            snapshot_policy: SnapshotPolicy::LogsSinceLast(200),
            max_in_snapshot_log_to_keep: 50,
            ..Config::default()
        };
        let config = Arc::new(config.validate()?);
        let log = Log::open(directory).await?;
        let state = State::new(directory);
        let raft = Raft::new(id, config, Network, log, state.clone()).await?;
        Ok(Rc::new(Node { raft, state }))
    }

    /// Serves every connection in a task of its own.
    pub(crate) async fn serve(self: Rc<Self>, listener: TcpListener) -> io::Result<Infallible> {
        loop {
            let (stream, _) = listener.accept().await?;
            let node = self.clone();
            // One that breaks off needs no word.
            drop(spawn_local(async move { node.converse(stream).await }));
        }
    }

    async fn converse(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut stream = BufReader::new(stream);
        while let Some(line) = read_line(&mut stream).await? {
            let mut answer = self.answer(&line).await;
            answer.push('\n');
            stream.get_mut().write_all(answer.as_bytes()).await?;
        }
        Ok(())
    }

    async fn answer(&self, line: &str) -> String {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        match verb {
            "set" => self.set(rest).await,
            "get" => self.get(rest).await,
            "init" => self.init(rest).await,
            "append" => call(rest, async |rpc| self.raft.append_entries(rpc).await).await,
            "vote" => call(rest, async |rpc| self.raft.vote(rpc).await).await,
            "snapshot" => {
                let install = async |(vote, meta, snapshot)| {
                    let snapshot = Snapshot { meta, snapshot };
                    self.raft.install_full_snapshot(vote, snapshot).await
                };
                call(rest, install).await
            }
            _ => format!("error what is {verb:?}?"),
        }
    }

    async fn set(&self, rest: &str) -> String {
        let Some((key, value)) = rest.split_once(' ') else {
            return "error set KEY VALUE".to_owned();
        };
        let (key, value) = (key.to_owned(), value.to_owned());
        match self.raft.client_write(Set { key, value }).await {
            Ok(_) => "ok".to_owned(),
            Err(error) => match error.forward_to_leader() {
                Some(leader) => redirect(leader),
                None => format!("error {error}"),
            },
        }
    }

    async fn get(&self, key: &str) -> String {
        // A leader that was replaced and does not know it yet finds out here.
        match self.raft.ensure_linearizable(ReadPolicy::ReadIndex).await {
            Ok(_) => match self.state.get(key) {
                Some(value) => format!("value {value}"),
                None => "none".to_owned(),
            },
            Err(error) => match error.forward_to_leader() {
                Some(leader) => redirect(leader),
                None => format!("error {error}"),
            },
        }
    }

    async fn init(&self, rest: &str) -> String {
        let member = |text: &str| {
            let (id, address) = text.split_once('=')?;
            Some((id.parse().ok()?, BasicNode::new(address)))
        };
        let members: Option<BTreeMap<u64, BasicNode>> = rest.split(' ').map(member).collect();
        let Some(members) = members else {
            return "error init ID=ADDRESS ID=ADDRESS …".to_owned();
        };
        match self.raft.initialize(members).await {
            Ok(()) => "ok".to_owned(),
            Err(error) => format!("error {error}"),
        }
    }
}

fn redirect(leader: &ForwardToLeader<Types>) -> String {
    match &leader.leader_node {
        Some(node) => format!("leader {}", node.addr),
        None => "leader".to_owned(),
    }
}

/// Another node's call.
async fn call<Q, A, E>(text: &str, serve: impl AsyncFnOnce(Q) -> Result<A, E>) -> String
where
    Q: DeserializeOwned,
    A: Serialize,
    E: Display,
{
    let answer = match serde_json::from_str(text) {
        Ok(question) => serve(question).await.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    serde_json::to_string(&answer).expect("it has no maps with keys other than texts")
}
