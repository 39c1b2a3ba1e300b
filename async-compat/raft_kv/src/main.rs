//! A key-value store on three nodes, each a process with one reactor: openraft on corespun,
//! with a log on its files and its sockets between the nodes.
//!
//! ```text
//! cargo build --release -p raft-kv
//! target/release/raft_kv 1 /tmp/kv-1 127.0.0.1:4001 &
//! target/release/raft_kv 2 /tmp/kv-2 127.0.0.1:4002 &
//! target/release/raft_kv 3 /tmp/kv-3 127.0.0.1:4003 &
//! printf 'init 1=127.0.0.1:4001 2=127.0.0.1:4002 3=127.0.0.1:4003\n' | nc -N 127.0.0.1 4001
//! printf 'set colour blue\nget colour\n' | nc -N 127.0.0.1 4001
//! ```
//!
//! Anybody but the leader answers `leader` and its address. A node that is started again finds
//! its log in its directory.

mod log;
mod network;
mod node;
mod state;
mod wal;

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;

use corespun::app::App;
use corespun::net::TcpListener;
use futures::future::{Either, select};

openraft::declare_raft_types!(
    /// What openraft is asked to agree about.
    pub(crate) Types:
        D = Set,
        R = (),
        // Everything stays on one SpdkThread, so nothing needs to be `Send`.
        AsyncRuntime = corespun_compat::openraft::CorespunRuntime,
);

/// A change of the store.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Set {
    key: String,
    value: String,
}

impl std::fmt::Display for Set {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} = {}", self.key, self.value)
    }
}

struct Arguments {
    id: u64,
    directory: PathBuf,
    address: SocketAddr,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = arguments().ok_or("raft_kv ID DIRECTORY ADDRESS:PORT")?;
    App::builder()
        .name("raft_kv")
        .try_block_on(async |_app| run(arguments).await)
}

fn arguments() -> Option<Arguments> {
    let mut arguments = std::env::args().skip(1);
    let parsed = Arguments {
        id: arguments.next()?.parse().ok()?,
        directory: arguments.next()?.into(),
        address: arguments.next()?.parse().ok()?,
    };
    arguments.next().is_none().then_some(parsed)
}

/// A node, until somebody presses Ctrl-C. One that is killed loses nothing it has acknowledged.
async fn run(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let Arguments {
        id,
        directory,
        address,
    } = arguments;
    let listener = TcpListener::bind(address)?;
    let node = node::Node::start(id, &directory).await?;
    println!("node {id} serves {}", listener.local_addr()?);
    let serving = std::pin::pin!(node.serve(listener));
    let pressed = std::pin::pin!(corespun::signal::ctrl_c());
    match select(serving, pressed).await {
        Either::Left((never, _)) => match never? {},
        Either::Right((pressed, _)) => Ok(pressed?),
    }
}
