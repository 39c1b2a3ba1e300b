//! How much is going on, and the line that says so on a terminal.
//!
//! Each group counts for itself; the line adds up, so counting costs no core anything
//! that another one does.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use corespun::time::sleep;

use crate::transmit::Traffic;

const INTERVAL: Duration = Duration::from_secs(1);

/// What one group is doing.
#[derive(Debug, Default)]
pub(crate) struct GroupStatus {
    pub(crate) traffic: Traffic,
    connections: AtomicUsize,
}

impl GroupStatus {
    /// Counts a connection for as long as the value lives.
    pub(crate) fn connected(self: &Arc<GroupStatus>) -> Connected {
        self.connections.fetch_add(1, Relaxed);
        Connected(Arc::clone(self))
    }
}

/// See [`GroupStatus::connected`].
pub(crate) struct Connected(Arc<GroupStatus>);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
    }
}

/// Keeps one line on stderr up to date; returns at once where that is no terminal.
pub(crate) async fn show(groups: Vec<Arc<GroupStatus>>) {
    if !std::io::stderr().is_terminal() {
        return;
    }
    let total = |count: fn(&GroupStatus) -> u64| groups.iter().map(|group| count(group)).sum();
    let traffic = || -> (u64, u64) {
        (
            total(|group| group.traffic.requests.load(Relaxed)),
            total(|group| group.traffic.bytes.load(Relaxed)),
        )
    };
    let (mut before, mut then) = (traffic(), Instant::now());
    loop {
        sleep(INTERVAL).await;
        let (now, at) = (traffic(), Instant::now());
        let seconds = at.duration_since(then).as_secs_f64();
        let connections: u64 = total(|group| group.connections.load(Relaxed) as u64);
        let iops = (now.0 - before.0) as f64 / seconds;
        let megabytes = (now.1 - before.1) as f64 / 1e6 / seconds;
        // A terminal that has gone away is no reason to stop.
        let _ = write!(
            std::io::stderr(),
            "\r\x1b[K{connections} connections, {iops:.0} IOPS, {megabytes:.1} MB/s"
        );
        (before, then) = (now, at);
    }
}
