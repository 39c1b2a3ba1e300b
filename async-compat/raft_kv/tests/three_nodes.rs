//! Three nodes as three processes: killed, replaced, started again from their logs. Nothing that
//! was acknowledged is lost.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a cluster may be without a leader before a test gives up: elections take a second on
/// a machine that has nothing else to do.
const PATIENCE: Duration = Duration::from_secs(120);

struct Node {
    address: String,
    directory: PathBuf,
    process: Mutex<Option<Child>>,
}

impl Node {
    fn start(&mut self, id: usize) {
        let mut process = Command::new(env!("CARGO_BIN_EXE_raft_kv"))
            .arg(id.to_string())
            .arg(&self.directory)
            .arg(&self.address)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        stdout.read_line(&mut said).unwrap();
        *self.process.get_mut().unwrap() = Some(process);
        // "node 1 serves ADDRESS"
        let address = said.trim().rsplit(' ').next().unwrap();
        assert!(said.starts_with("node "), "it did not start: {said:?}");
        self.address = address.to_owned();
    }

    /// SIGKILL, and nothing else.
    fn kill(&self) {
        if let Some(mut process) = self.process.lock().unwrap().take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    fn ask(&self, line: &str) -> std::io::Result<String> {
        let stream = TcpStream::connect(&self.address)?;
        // A node that is stopped, or has nobody to agree with, does not answer.
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        (&stream).write_all(format!("{line}\n").as_bytes())?;
        let mut answer = String::new();
        BufReader::new(&stream).read_line(&mut answer)?;
        match answer.strip_suffix('\n') {
            Some(answer) => Ok(answer.to_owned()),
            None => Err(std::io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Cluster {
    nodes: Vec<Node>,
    _directory: TempDir,
}

impl Cluster {
    /// Three nodes that have found each other. They have an address of 127.0.0.0/8 of their own:
    /// nobody else takes a port there while a node is down.
    fn start() -> Cluster {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let directory = tempfile::tempdir().unwrap();
        let [high, low] = (std::process::id() as u16).to_be_bytes();
        let last = NEXT.fetch_add(1, Ordering::Relaxed);
        let node = |id: usize| Node {
            address: format!("127.{}.{low}.{last}:0", 128 | (high & 0x7f)),
            directory: directory.path().join(id.to_string()),
            process: Mutex::new(None),
        };
        let nodes = (1..=3).map(node).collect();
        let mut cluster = Cluster {
            nodes,
            _directory: directory,
        };
        (0..3).for_each(|index| cluster.start_node(index));
        let members = cluster.nodes.iter().enumerate();
        let members: Vec<_> = members
            .map(|(index, node)| format!("{}={}", index + 1, node.address))
            .collect();
        let init = format!("init {}", members.join(" "));
        assert_eq!(cluster.nodes[0].ask(&init).unwrap(), "ok");
        cluster
    }

    fn start_node(&mut self, index: usize) {
        self.nodes[index].start(index + 1);
    }

    /// Asks one after the other until one answers as the leader.
    fn ask(&self, line: &str) -> (usize, String) {
        let begin = Instant::now();
        let mut index = 0;
        loop {
            let answer = self.nodes[index].ask(line);
            let next = match &answer {
                Ok(answer) if answer.starts_with("leader ") => {
                    let address = answer.strip_prefix("leader ");
                    let named = |node: &Node| Some(&*node.address) == address;
                    self.nodes.iter().position(named).unwrap()
                }
                Ok(answer) if answer != "leader" && !answer.starts_with("error ") => {
                    return (index, answer.clone());
                }
                _ => (index + 1) % 3,
            };
            assert!(begin.elapsed() < PATIENCE, "{line:?}: {answer:?}");
            if next == (index + 1) % 3 {
                thread::sleep(Duration::from_millis(20));
            }
            index = next;
        }
    }

    fn leader(&self) -> usize {
        self.ask("get nothing").0
    }

    fn set(&self, number: usize) {
        let (_, answer) = self.ask(&format!("set key{number} value {number}"));
        assert_eq!(answer, "ok");
    }

    /// Looks for all that was acknowledged.
    fn expect(&self, count: usize) {
        for number in 0..count {
            let (_, answer) = self.ask(&format!("get key{number}"));
            assert_eq!(answer, format!("value value {number}"), "key{number}");
        }
    }
}

#[test]
fn a_killed_leader_is_replaced_and_comes_back_with_its_log() {
    let mut cluster = Cluster::start();
    assert_eq!(cluster.ask("get nothing").1, "none");
    let first = cluster.leader();
    let (count, stop) = (AtomicU32::new(0), AtomicBool::new(false));
    let acknowledged = |count: &AtomicU32| count.load(Ordering::Acquire) as usize;
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Acquire) {
                cluster.set(acknowledged(&count));
                count.fetch_add(1, Ordering::Release);
            }
        });
        let wait_for = |more| {
            let until = acknowledged(&count) + more;
            let begin = Instant::now();
            while acknowledged(&count) < until && begin.elapsed() < PATIENCE {
                thread::sleep(Duration::from_millis(5));
            }
        };
        wait_for(20);
        // While a change is under way.
        cluster.nodes[first].kill();
        wait_for(20);
        stop.store(true, Ordering::Release);
    });
    let count = acknowledged(&count);
    let second = cluster.leader();
    assert_ne!(second, first);
    cluster.expect(count);

    // Without the second leader there is no majority but with what the first has in its log.
    cluster.start_node(first);
    cluster.nodes[second].kill();
    cluster.set(count);
    cluster.expect(count + 1);
}

#[test]
fn a_node_that_was_away_for_long_gets_a_snapshot() {
    let mut cluster = Cluster::start();
    let away = (cluster.leader() + 1) % 3;
    cluster.nodes[away].kill();
    // The others cut their logs off behind snapshots meanwhile.
    (0..500).for_each(|number| cluster.set(number));
    let snapshot = |node: &Node| node.directory.join("snapshot").exists();
    assert!(!snapshot(&cluster.nodes[away]));
    cluster.start_node(away);
    let begin = Instant::now();
    while !snapshot(&cluster.nodes[away]) {
        assert!(begin.elapsed() < PATIENCE, "no snapshot comes");
        thread::sleep(Duration::from_millis(20));
    }
    // It is one of the majority now.
    let other = (0..3).find(|&one| one != away && one != cluster.leader());
    cluster.nodes[other.unwrap()].kill();
    cluster.set(500);
    cluster.expect(501);
}

#[test]
fn after_the_end_of_all_and_with_torn_logs_everything_is_there() {
    let mut cluster = Cluster::start();
    (0..50).for_each(|number| cluster.set(number));
    cluster.nodes.iter().for_each(Node::kill);
    let torn: [&[u8]; 3] = [
        // The header of a frame in pieces; a frame that was to be longer; room without bytes.
        &[9],
        b"\x40\0\0\0\x12\x34\x56\x78{\"Vote\":{\"leader",
        &[0; 4096],
    ];
    for (node, tail) in cluster.nodes.iter().zip(torn) {
        let log = node.directory.join("log");
        let mut log: File = OpenOptions::new().append(true).open(log).unwrap();
        log.write_all(tail).unwrap();
    }
    (0..3).for_each(|index| cluster.start_node(index));
    cluster.expect(50);
    cluster.set(50);
    cluster.expect(51);
}
